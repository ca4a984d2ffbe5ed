"""What every run needs and no algorithm: its folder, TensorBoard, checkpoints, evaluation, ranks and pictures.

| file | what it holds |
|-|-|
| `run.py` | `Run`: the order of all that stands around an algorithm, from flags to scores |
| `flags.py` | `Flags`: the flags that every script shares, and the ranges of all flags |
| `ranks.py` | several processes with one training: means over them |
| `fast.py` | numerics for speed alone: `Adam`, which compiles with the loss, and `sampler`, which acts in NumPy |
| `checkpoint.py` | files that are written whole or not at all, and loaded without running code |
| `evaluation.py` | episodes played by a trained agent, and their scores |
| `board.py` | TensorBoard: tags, text, HParams, layout |
| `pictures.py` | the trained agent playing, what it attends to, what a team does |
| `notes.py` | what is said on the way, and why a run does not begin |
| `signals.py` | SIGINT and SIGTERM as a wish to stop; what is kept where an environment fails |

A script calls a `Run`, which calls back for two things only: actions for these observations and masks (`play`), and
what the agent looks at, for a picture (`look`). `experiment` imports `envs`, and neither imports a script.
"""

from experiment.fast import Adam, OnHost, sampler
from experiment.flags import Flags
from experiment.run import Run

__all__ = ["Adam", "Flags", "OnHost", "Run", "sampler"]
