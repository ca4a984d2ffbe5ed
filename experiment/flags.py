"""The flags that every script shares; and the range of each flag, in its help and in what is refused."""

import importlib.util
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
import tyro

from experiment.notes import end_with_a_sentence, say


class Range(NamedTuple):
    """The numbers that a flag takes, in words and as a function; NaN and inf are in no range."""

    words: str
    holds: Callable[[float], bool]


def whole(text: str) -> int:
    """A whole number as one writes it: 1000000, 1_000_000 or 1e6."""
    if not float(text).is_integer():
        raise ValueError(f"{text!r} is no whole number")
    return int(float(text))


def number(kind: type, words: str, holds: Callable[[float], bool]) -> Any:
    """The type of a flag of this kind and range, which stands in --help and is checked before anything is made."""
    read = whole if kind is int else kind
    spec = tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=f"{kind.__name__.upper()}, {words}",
        instance_from_str=lambda texts: read(texts[0]),
        is_instance=lambda value: isinstance(value, kind),
        str_from_instance=lambda value: [str(value)],
    )
    return Annotated[kind, Range(words, holds), spec]


Count = number(int, "at least 1", lambda x: x >= 1)
Natural = number(int, "at least 0", lambda x: x >= 0)
Seed = number(int, "from 0 to 2^31 - 1", lambda x: 0 <= x < 2**31)  # evaluation's lie beyond
Positive = number(float, "more than 0", lambda x: x > 0)
NonNegative = number(float, "at least 0", lambda x: x >= 0)
Share = number(float, "from 0 to 1", lambda x: 0 <= x <= 1)
PositiveShare = number(float, "more than 0, at most 1", lambda x: 0 < x <= 1)
Finite = number(float, "finite", lambda x: True)


@dataclass
class Experiment:
    """A run: its name, what it writes, where it begins, how its agent is evaluated."""

    exp_name: str | None = None
    """name of the experiment, a part of the name of the run's folder under runs/; default: the script's"""
    seed: Seed = 1
    """seed of everything random; ranks derive theirs from it"""
    track: bool = False
    """log to Weights & Biases too (pip install wandb)"""
    wandb_project_name: str = "masked-rl"
    """project name at Weights & Biases"""
    capture_video: bool = False
    """write agent.gif, the trained agent playing, into the run's folder"""
    save_model: bool = True
    """write checkpoint.pt into the run's folder at the end, and on SIGINT or SIGTERM"""
    checkpoint_every: Natural = 0
    """iterations between checkpoints during training; 0: none"""
    resume: str | None = None
    """run to continue, its folder or checkpoint.pt, with its flags and there; --total-timesteps may prolong it"""
    eval_episodes: Natural = 100
    """episodes played after training, as trained and again with the mask removed; 0: none"""
    eval_max_steps: Count = 5_000
    """steps after which such an episode is cut, for an agent without the mask may play one for ever"""
    eval_mask_drop: Share = 0.0
    """evaluate with masks that are too strict as well: each legal choice is forbidden with this probability"""
    eval_only: str | None = None
    """run, its folder or checkpoint.pt, whose agent is evaluated without training"""
    init_from: str | None = None
    """run, its folder or checkpoint.pt, whose agent this new run begins with, in other worlds or with other flags"""


@dataclass
class Environment:
    """The environments, and what is done to their observations and rewards."""

    env_id: str = "Masked/JobRouting-v0"
    """any registered id; module:Id-v0 imports the module first"""
    env_kwargs: tuple[str, ...] = ()
    """arguments of the environment as pairs KEY VALUE; with --eval-only they replace the checkpoint's"""
    num_envs: Count = 64
    """environments over all ranks, stepped together, one action each"""
    async_envs: bool = False
    """one process for each environment, for slow ones that others wrote"""
    norm_obs: bool = False
    """scale observations by their running mean and deviation, which a checkpoint holds and evaluation leaves alone"""
    norm_reward: bool = False
    """scale rewards by the running deviation of the discounted return; logged returns stay as they are"""


@dataclass
class Masking:
    """What the mask is for."""

    mask_mode: Literal["mask", "naive", "penalty", "none"] = "mask"
    """mask: act and learn with it; naive: act with it only; penalty: illegal actions cost; none: ignore it"""
    invalid_penalty: Finite = -0.1
    """added to the reward for each illegal action under --mask-mode penalty"""


@dataclass
class Runtime:
    """How long, and on what."""

    total_timesteps: Count = 1_000_000
    """environment steps over all environments and ranks"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA where there is a GPU"""
    torch_deterministic: bool = True
    """use deterministic kernels wherever CUDA has them; CPUs are deterministic anyway"""
    compile: bool = False
    """compile gradient, clipping and Adam: 10 to 40 s at the start (3 s from the cache), faster updates after"""
    num_threads: Count = 1
    """torch's CPU threads in each process; small networks gain nothing from more"""


@dataclass
class Flags(Runtime, Masking, Environment, Experiment):
    """A script's `Args` inherits these and adds those of its algorithm.

    It has a method `check(world_size)`, which refuses flags that do not fit together (ValueError) and returns the
    environment steps of an iteration over all environments. `given` holds the names of the flags that were given: those
    of a command line (`parse`), and in Python code those that differ from their default.
    """

    shapes: ClassVar[tuple[str, ...]] = ()  # flags of the agent that the shapes of its weights do not tell

    def __post_init__(self):
        self.given = {field.name for field in fields(self) if getattr(self, field.name) != field.default}


def parse(kind: type[Flags], words: Sequence[str] | None = None) -> Any:
    """The flags of the command line, whose process then ends with a sentence if they are refused, or of `words`."""
    if words is None:
        words, sys.excepthook = sys.argv[1:], end_with_a_sentence
    initials = {"--" + "".join(part[0] for part in x.name.split("_")): flag(x.name) for x in fields(kind)}
    for word in initials.keys() & set(words):
        say(f"{word}: did you mean {initials[word]}?")
    args = read_in_groups(kind, words)
    names = [word.partition("=")[0].removeprefix("--").replace("-", "_") for word in words if word.startswith("--")]
    if names.count("env_kwargs") > 1:  # the last would count alone
        raise ValueError("--env-kwargs is given twice; expected it once, with all pairs KEY VALUE.")
    args.given = {field.name for field in fields(args) if {field.name, f"no_{field.name}"} & set(names)}
    return args


def read_in_groups(kind: type[Flags], words: Sequence[str]) -> Any:
    """The flags of `words`. In --help they stand in groups, which tyro makes of nested dataclasses."""
    groups = {base.__name__.lower(): base for base in reversed(Flags.__bases__)}
    parts = {name: base(**{x.name: getattr(kind, x.name) for x in fields(base)}) for name, base in groups.items()}
    suppressed = [(x.name, tyro.conf.Suppress[x.type], field(default=x.default)) for x in fields(Flags)]
    parts["algorithm"] = make_dataclass("Algorithm", suppressed, bases=(kind,))()
    nested = make_dataclass("Nested", [(name, tyro.conf.OmitArgPrefixes[type(part)]) for name, part in parts.items()])
    found = tyro.cli(nested, args=words, default=nested(**parts), description=kind.__doc__)
    values = {name: x for part in ("algorithm", *groups) for name, x in vars(getattr(found, part)).items()}
    return kind(**{x.name: values[x.name] for x in fields(kind)})


def flag(name: str) -> str:
    """The flag as one writes it, "--num-envs" for "num_envs"."""
    return f"--{name.replace('_', '-')}"


def check_flags(args: Any, world_size: int) -> int:
    """Refuse what cannot work before any time is spent on it, and return the environment steps of one iteration.

    Raises:
        ValueError: names the flag, what was given and what was expected.
    """
    for name, hint in get_type_hints(type(args), include_extras=True).items():
        parts = get_args(hint) if get_origin(hint) in (Literal, Union, UnionType) else (hint,)
        kinds = [getattr(part, "__origin__", part) for part in parts]
        limits = [x for part in parts for x in getattr(part, "__metadata__", ()) if type(x) is Range]
        value = getattr(args, name)
        if isinstance(value, np.generic):  # of a sweep in Python; a checkpoint holds plain numbers
            value = value.item()
            setattr(args, name, value)
        if int in kinds and isinstance(value, float) and value.is_integer():  # 1e6, as on the command line
            value = int(value)
            setattr(args, name, value)
        choices = parts if get_origin(hint) is Literal else (True, False) if hint is bool else (value,)
        if (type(value), value) not in [(type(choice), choice) for choice in choices]:
            raise ValueError(f"{flag(name)} {value!r}: expected one of {', '.join(map(repr, choices))}.")
        if str in kinds and type(value) not in kinds:
            raise ValueError(f"{flag(name)} {value!r}: expected text.")
        if limits and not (value is None and type(None) in kinds):
            if type(value) not in (int, *kinds):  # nor bool, which Python takes for a number
                kind = "a number" if float in kinds else "a whole number"
                raise ValueError(f"{flag(name)} {value!r}: expected {kind}, {limits[0].words}.")
            if not (math.isfinite(value) and limits[0].holds(value)):
                raise ValueError(f"{flag(name)} {value}: expected {limits[0].words}.")
    if Path(args.exp_name).parts != (args.exp_name,) or len(args.exp_name.encode()) > 100:
        expected = "a name that a folder can have, without a / and of 100 bytes at most"
        raise ValueError(f"--exp-name {args.exp_name!r}: expected {expected}.")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no GPU here; use --device auto or cpu, or install torch for CUDA.")
    if args.track and importlib.util.find_spec("wandb") is None:
        raise ValueError("--track needs Weights & Biases: pip install wandb, or leave --track out.")
    if args.eval_only and args.eval_episodes == 0:
        raise ValueError("--eval-only plays episodes: expected --eval-episodes of at least 1.")
    if args.eval_only and (args.capture_video or args.track):
        raise ValueError("--eval-only makes no folder for --capture-video and --track to write into; leave them out.")
    check_shares(args, world_size, "num_envs")
    steps = args.check(world_size)
    if args.total_timesteps < steps:
        raise ValueError(f"--total-timesteps {args.total_timesteps} is less than one rollout of {steps} steps.")
    if (left_over := args.total_timesteps % steps) and "total_timesteps" in args.given and not args.eval_only:
        say(f"--total-timesteps {args.total_timesteps}: {steps} are played at a time, so {left_over} are left over.")
    return steps


def check_shares(args: Any, world_size: int, name: str) -> None:
    """Refuse a total that the ranks cannot share evenly (ValueError)."""
    if (total := getattr(args, name)) % world_size:
        raise ValueError(f"{flag(name)} {total} is a total that the ranks share; expected a multiple of {world_size}.")


def check_rollout(args: Any, world_size: int) -> int:
    """The steps of a rollout, `num_envs` x `num_steps`, which minibatches must divide (ValueError)."""
    check_shares(args, world_size, "minibatch_size")
    steps = args.num_envs * args.num_steps
    rollout = f"a rollout, --num-envs {args.num_envs} x --num-steps {args.num_steps} = {steps} samples"
    if steps % args.minibatch_size:
        raise ValueError(f"--minibatch-size {args.minibatch_size} does not divide {rollout}; expected a divisor.")
    return steps
