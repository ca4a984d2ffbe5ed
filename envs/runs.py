"""The folder of a run: its TensorBoard files, its checkpoint and pictures, and how a signal ends it."""

import importlib.util
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from envs.vector import UniformVectorEnv


def check_shared_flags(args: Any, counts: tuple[str, ...]) -> None:
    """Refuse a device that is not there, --track without its package, and counts below 1.

    Args:
        args: the flags of a script.
        counts: names of the flags that are at least 1.

    Raises:
        ValueError: names the flag and what was expected.
    """
    for name in counts:
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(args, name)}: expected at least 1.")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no GPU here; use --device auto or cpu, or install torch for CUDA.")
    if args.track and importlib.util.find_spec("wandb") is None:
        raise ValueError("--track needs Weights & Biases: pip install wandb, or leave --track out.")


def open_run(args: Any, resumed: Path | None, step: int) -> tuple[Path, SummaryWriter]:
    """The run's folder, which a new run makes under runs/, and the writer of its TensorBoard files.

    Args:
        args: the flags of a script.
        resumed: the folder of the run to continue, or None.
        step: environment steps so far; what the folder holds of later ones is hidden.
    """
    name = f"{args.env_id.replace('/', '-')}__{args.exp_name}__{args.mask_mode}__{args.seed}__{int(time.time())}"
    run_dir = resumed or Path("runs") / name.replace(":", "-")
    run_dir.mkdir(parents=True, exist_ok=resumed is not None)
    if args.track:
        import wandb

        wandb.init(project=args.wandb_project_name, name=run_dir.name, config=vars(args), sync_tensorboard=True)
    writer = SummaryWriter(run_dir, purge_step=step if resumed else None)
    rows = "\n".join(f"|{key}|{value}|" for key, value in vars(args).items())
    writer.add_text("hyperparameters", f"|flag|value|\n|-|-|\n{rows}")
    return run_dir, writer


def check_finite(metrics: torch.Tensor, weights: torch.Tensor, step: int, run_dir: Path | None) -> None:
    """Stop a training that has diverged, before its weights are saved over the last good ones.

    Args:
        metrics, weights: of the last update, on every rank.
        step: environment steps so far.
        run_dir: the run's folder, None on ranks that do not write.

    Raises:
        ValueError: NaN or inf in either; names the last good checkpoint.
    """
    if torch.isfinite(metrics).all() and torch.isfinite(weights).all():
        return
    kept = run_dir / "checkpoint.pt" if run_dir else None
    known = "known to rank 0" if kept is None else kept if kept.exists() else "none was written"
    raise ValueError(
        f"The loss or the weights are NaN or inf after {step} steps. Lower --learning-rate, or scale rewards and "
        f"observations. Last good checkpoint: {known}."
    )


class StopOnSignal:
    """SIGINT and SIGTERM ask for a stop, which the training loop does at its next good moment; a second one kills."""

    def __init__(self):
        self.stopped_by: signal.Signals | None = None
        self.handlers = {signum: signal.signal(signum, self._stop) for signum in (signal.SIGINT, signal.SIGTERM)}

    def _stop(self, signum: int, frame: FrameType | None) -> None:
        self.stopped_by = signal.Signals(signum)
        signal.signal(signum, self.handlers[signum])

    def restore(self) -> None:
        """Give the signals back to those who had them."""
        for signum, handler in self.handlers.items():
            signal.signal(signum, handler)


def write_scores(writer: SummaryWriter, args: Any, scores: dict[str, float], step: int) -> None:
    """Write the scores of an evaluation as scalars, and beside the flags as HParams, so that runs can be compared."""
    for key, value in scores.items():
        writer.add_scalar(f"eval/{key}", value, step)
    flags = {key: value if isinstance(value, int | float | str) else str(value) for key, value in vars(args).items()}
    writer.add_hparams(flags, {f"eval/{key}": value for key, value in scores.items()}, run_name=".")
    print("Evaluation: " + ", ".join(f"{key} {value:.3f}" for key, value in scores.items()))


def write_video(
    writer: SummaryWriter,
    envs: UniformVectorEnv,
    act: Callable[[Any, np.ndarray], np.ndarray],
    path: Path,
    step: int,
) -> None:
    """Play from a new episode on, at most 200 steps, and write an animated GIF and a TensorBoard image.

    Args:
        writer: of the run.
        envs: one environment that renders "rgb_array"; it is closed.
        act: maps observations and masks (1, ...) to actions.
        path: the GIF's.
        step: environment steps of the training.
    """
    obs, infos = envs.reset(seed=20_000)
    actions = act(obs, infos["action_mask"])  # before the picture, in which the agent may show what it looks at
    frames = [envs.render()[0]]
    while len(frames) < 200:
        obs, _, _, _, infos = envs.step(actions)
        actions = act(obs, infos["action_mask"])
        frames.append(envs.render()[0])
    envs.close()
    writer.add_image("agent", frames[len(frames) // 2], step, dataformats="HWC")
    pictures = [Image.fromarray(frame) for frame in frames]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=150, loop=0)
    print(f"Wrote {path}")
