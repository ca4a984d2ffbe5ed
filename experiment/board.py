"""TensorBoard: a run's folder, its tags, text and HParams, and the tab that compares runs."""

import time
from contextlib import suppress
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams
from tqdm import tqdm

from experiment.notes import attempt, say

COMPARED = {"env_id", "exp_name", "learning_rate", "mask_mode", "seed"}  # the flags that HParams shows first
LARGE, PATIENCE = 100, 50  # returns that a value takes long to reach; logs, a fifth of a long training
LAYOUT = {  # the tab Custom Scalars: title of each chart, and regular expressions of the tags in it
    "Runs compared": {
        "return while training": ["Multiline", ["charts/episodic_return$"]],
        "share of illegal actions": ["Multiline", ["masks/illegal_rate$"]],
        "approximate KL divergence (PPO), Q-values (DQN)": ["Multiline", ["losses/(approx_kl|q_values)$"]],
        "entropy (PPO), TD loss (DQN)": ["Multiline", ["losses/(entropy|td_loss)$"]],
        "episode length while training": ["Multiline", ["charts/episodic_length$"]],
    }
}


class Board:
    """The run's folder, which a new run makes under runs/, and all that is shown of it. Rank 0 alone has one.

    Args:
        args: the flags of a script; with `resume` it is the folder of that checkpoint.
        step: environment steps so far; what the folder holds of later ones is hidden.
    """

    def __init__(self, args: Any, step: int):
        self.args, self.folder = asdict(args), Path(args.resume).parent if args.resume else new_folder(args)
        self.checkpoint = self.folder / "checkpoint.pt"
        if args.resume and Path(args.resume).name != self.checkpoint.name and self.checkpoint.exists():
            aside = self.checkpoint.rename(self.folder / f"checkpoint_{int(time.time())}.pt")
            say(f"{self.checkpoint} is {aside.name} now, for this run goes on from {Path(args.resume).name}.")
        if args.track:
            import wandb

            wandb.init(project=args.wandb_project_name, name=self.folder.name, config=self.args, sync_tensorboard=True)
        rows = "\n".join(f"|{key}|{value}|" for key, value in self.args.items())
        try:
            self.writer = SummaryWriter(self.folder, purge_step=step + 1 if args.resume else None)
            self.writer.add_custom_scalars(LAYOUT)
            self.writer.add_text("hyperparameters", f"|flag|value|\n|-|-|\n{rows}")
        except OSError as error:
            raise ValueError(f"Nothing can be written into {self.folder}: {error}.") from error
        self.blind = 0  # logs in a row in which the value explained nothing

    def log(self, scalars: dict[str, Any], ended: dict[str, list[float]], step: int, bar: tqdm) -> None:
        """Write scalars by tag, with the speed so far, and the means of what is known of episodes that ended."""
        scalars["charts/SPS"] = int((step - bar.initial) / bar.format_dict["elapsed"])
        scalars |= {f"charts/{name}": np.mean(values) for name, values in ended.items()}
        if returns := ended.get("episodic_return"):
            bar.set_postfix_str(f"return {np.mean(returns):.2f}", refresh=False)
            lost = abs(np.mean(returns)) > LARGE and scalars.get("losses/explained_variance", 1) < 0.05
            self.blind = self.blind + 1 if lost else 0
            if self.blind == PATIENCE:
                say(f"The value explains nothing of returns around {np.mean(returns):.0f}: try --norm-reward.")
        values = [Summary.Value(tag=tag, simple_value=float(value)) for tag, value in scalars.items()]
        with attempt("TensorBoard's file is not written"):  # one event: add_scalar writes one for each
            self.writer.file_writer.add_summary(Summary(value=values), step)

    @attempt("TensorBoard's file lacks scores")
    def show_scores(self, scores: dict[str, float], suffix: str, step: int, how: str) -> None:
        """Print the scores of an evaluation and `how` they came about, and write them as scalars, at once."""
        shown = ", ".join(f"{key} {value:.3f}" for key, value in scores.items())
        print(f"Evaluation{suffix.replace('_', ' ')}: {shown} ({how})", flush=True)
        for key, value in scores.items():
            self.writer.add_scalar(f"eval/{key}{suffix}", value, step)
        self.writer.flush()

    @attempt("TensorBoard's file lacks scores beside flags")
    def compare(self, scores: dict[str, float]) -> None:
        """Write all scores beside the flags, as HParams."""
        flags = {k: v if type(v) in (int, float, str) else str(v) for k, v in self.args.items()}
        experiment, *session = hparams(flags, {f"eval/{key}": value for key, value in scores.items()})
        plugin = experiment.value[0].metadata.plugin_data
        data = HParamsPluginData.FromString(plugin.content)
        for flag in data.experiment.hparam_infos:  # TensorBoard sorts them, those that differ first, and shows five
            flag.differs = flag.name in COMPARED
        plugin.content = data.SerializeToString()
        for summary in (experiment, *session):
            self.writer.file_writer.add_summary(summary)  # add_hparams opens another file, all scores again at step 0


def new_folder(args: Any) -> Path:
    """Make the folder of a new run: what runs differ in comes first, the time in seconds last, a later one if taken."""
    name = f"{args.mask_mode}__{args.exp_name}__{args.seed}__{args.env_id.replace('/', '-')}".replace(":", "-")
    try:
        Path("runs").mkdir(exist_ok=True)
        for second in count(int(time.time())):
            folder = Path("runs") / f"{name}__{second}"
            with suppress(FileExistsError):
                folder.mkdir()
                return folder
    except OSError as error:
        raise ValueError(f"No folder for this run can be made in runs/: {error}. Start it elsewhere.") from error
