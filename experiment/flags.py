"""The flags that every script shares; and the range of each flag, in its help and in what is refused."""

import importlib.util
import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_type_hints

import torch
import tyro


class Range(NamedTuple):
    """Numbers from `low`, itself included unless `above`, to `high`; NaN and inf are in no range."""

    low: float
    high: float
    above: bool

    def __contains__(self, value: float) -> bool:
        return math.isfinite(value) and self.low <= value <= self.high and not (self.above and value == self.low)

    def __str__(self) -> str:
        if math.isinf(self.low):
            return "a finite number"
        least = f"more than {self.low}" if self.above else f"at least {self.low}"
        return least if math.isinf(self.high) else f"{least}, at most {self.high}"


def _number(kind: type, low: float, high: float = math.inf, above: bool = False) -> Any:
    """The type of a flag of this kind and range, which tyro shows in --help."""
    limits = Range(low, high, above)
    return Annotated[kind, limits, tyro.conf.arg(metavar=f"{kind.__name__.upper()}, {limits}")]


Count = _number(int, 1)
Natural = _number(int, 0)
Positive = _number(float, 0, above=True)
NonNegative = _number(float, 0)
Share = _number(float, 0, 1)
PositiveShare = _number(float, 0, 1, above=True)
Finite = _number(float, -math.inf)


@dataclass
class Flags:
    """A script's `Args` inherits these and adds those of its algorithm."""

    # Experiment
    exp_name: str | None = None
    """name of the experiment, the first part of the run's folder under runs/; default: the script's"""
    seed: _number(int, 0, 2**32 - 1) = 1
    """seed of everything random; rank r adds r"""
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
    """checkpoint.pt of a run to continue, with that run's flags and in its folder"""
    eval_episodes: Natural = 100
    """episodes played after training, as trained and again with the mask removed; 0: none"""
    eval_only: str | None = None
    """checkpoint.pt of an agent to evaluate without training"""

    # Environment
    env_id: str = "Masked/JobRouting-v0"
    """any registered id; module:Id-v0 imports the module first"""
    env_kwargs: tuple[str, ...] = ()
    """arguments of the environment as pairs KEY VALUE; with --eval-only they replace the checkpoint's"""
    num_envs: Count = 64
    """environments over all ranks, each stepped once before every action"""
    async_envs: bool = False
    """one process for each environment, for slow ones that others wrote"""

    # Mask
    mask_mode: Literal["mask", "naive", "penalty", "none"] = "mask"
    """mask: act and learn with it; naive: act with it only; penalty: illegal actions cost; none: ignore it"""
    invalid_penalty: Finite = -0.1
    """added to the reward for each illegal action under --mask-mode penalty"""

    # Runtime
    total_timesteps: Count = 1_000_000
    """environment steps over all environments and ranks"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA where there is a GPU"""
    torch_deterministic: bool = True
    """use deterministic kernels only"""
    compile: bool = False
    """compile gradient, clipping and Adam: 10 to 40 s at the start (1 s from the cache), faster updates after"""
    num_threads: Count = 1
    """torch's CPU threads in each process; small networks gain nothing from more"""

    def check(self, world_size: int) -> int:
        """Refuse flags that do not fit together (ValueError), and return the environment steps of one iteration."""
        raise NotImplementedError


def check_flags(args: Flags, world_size: int) -> int:
    """Refuse what cannot work before any time is spent on it, and return the environment steps of one iteration.

    Raises:
        ValueError: names the flag, what was given and what was expected.
    """
    for name, hint in get_type_hints(type(args), include_extras=True).items():
        value, flag = getattr(args, name), f"--{name.replace('_', '-')}"
        limits = [x for part in (hint, *get_args(hint)) for x in getattr(part, "__metadata__", ()) if type(x) is Range]
        if limits and value is not None and value not in limits[0]:
            raise ValueError(f"{flag} {value}: expected {limits[0]}.")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no GPU here; use --device auto or cpu, or install torch for CUDA.")
    if args.track and importlib.util.find_spec("wandb") is None:
        raise ValueError("--track needs Weights & Biases: pip install wandb, or leave --track out.")
    check_shares(args, world_size, "num_envs")
    steps = args.check(world_size)
    if args.total_timesteps < steps:
        raise ValueError(f"--total-timesteps {args.total_timesteps} is less than one rollout of {steps} steps.")
    return steps


def check_shares(args: Any, world_size: int, name: str) -> None:
    """Refuse a total that the ranks cannot share evenly (ValueError)."""
    if getattr(args, name) % world_size:
        raise ValueError(
            f"--{name.replace('_', '-')} {getattr(args, name)} is a total that the {world_size} ranks share; expected "
            f"a multiple of {world_size}."
        )


def check_rollout(args: Any, world_size: int) -> int:
    """The steps of a rollout, `num_envs` x `num_steps`, which minibatches must divide (ValueError)."""
    batch_size = args.num_envs * args.num_steps
    check_shares(args, world_size, "minibatch_size")
    if batch_size % args.minibatch_size:
        raise ValueError(
            f"--minibatch-size {args.minibatch_size} does not divide a rollout, --num-envs {args.num_envs} x "
            f"--num-steps {args.num_steps} = {batch_size} samples; expected a divisor."
        )
    return batch_size
