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
from torch.utils.tensorboard.summary import hparams

from envs.drawing import GRID, PAPER, canvas, pixels, text
from envs.vector import UniformVectorEnv

LAYOUT = {  # TensorBoard's tab Custom Scalars: title of each chart, and regular expressions of the tags in it
    "Runs compared": {
        "return while training": ["Multiline", ["charts/episodic_return$"]],
        "return in evaluation: as trained, mask removed": [
            "Multiline",
            ["eval/episodic_return(_no_mask)?$"],
        ],
        "share of illegal actions": ["Multiline", ["masks/illegal_rate$"]],
        "approximate KL divergence (PPO), Q-values (DQN)": ["Multiline", ["losses/(approx_kl|q_values)$"]],
        "entropy (PPO), TD loss (DQN)": ["Multiline", ["losses/(entropy|td_loss)$"]],
        "episode length while training": ["Multiline", ["charts/episodic_length$"]],
    }
}
PICTURE = 6  # steps of the trained agent before its picture is taken


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
    writer.add_custom_scalars(LAYOUT)
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
    for summary in hparams(flags, {f"eval/{key}": value for key, value in scores.items()}):
        writer.file_writer.add_summary(summary)  # add_hparams opens another file, with all scores once more at step 0
    print("Evaluation: " + ", ".join(f"{key} {value:.3f}" for key, value in scores.items()))


def write_pictures(
    writer: SummaryWriter,
    make_envs: Callable[[str | None], UniformVectorEnv],
    act: Callable[[UniformVectorEnv, Any, np.ndarray], np.ndarray],
    gif: Path | None,
    step: int,
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Play a few steps of a new episode, and write what it looks like then as the TensorBoard image `agent`.

    An environment that cannot render gets no picture; one whose renderer fails, for want of a screen or of a package,
    gets none either, unless a GIF was asked for.

    Args:
        writer: of the run.
        make_envs: makes one environment with the render mode that it is given.
        act: maps the environment, observations and masks (1, ...) to actions; what it sets is in the picture.
        gif: where to write an animation of 200 steps, or None.
        step: environment steps of the training.

    Returns:
        Observation, mask and actions (1, ...) of each moment up to that of the picture.
    """
    envs, frames, moments = make_envs(None), [], []
    renders = gif is not None or "rgb_array" in envs.metadata.get("render_modes", ())
    if renders:
        envs.close()
        envs = make_envs("rgb_array")
    obs, infos = envs.reset(seed=20_000)
    for t in range(200 if gif else PICTURE + 1):
        mask = infos["action_mask"]
        actions = act(envs, obs, mask)  # before the picture, in which the agent may show what it looks at
        if t <= PICTURE:
            moments.append((obs, mask, actions))
        if renders and (gif or t == PICTURE):
            try:
                frames.append(envs.render()[0])
            except Exception as error:  # of any kind: it is another's renderer, and this is the end of a long run
                if gif:
                    raise
                print(f"No picture of the agent: {error}")
        obs, _, _, _, infos = envs.step(actions)
    envs.close()
    if frames:
        writer.add_image("agent", frames[PICTURE if gif else 0], step, dataformats="HWC")
    if gif:
        pictures = [Image.fromarray(frame) for frame in frames]
        pictures[0].save(gif, save_all=True, append_images=pictures[1:], duration=150, loop=0)
        print(f"Wrote {gif}")
    return moments


def action_map(actions: np.ndarray, agents: np.ndarray, nvec: np.ndarray) -> np.ndarray:
    """A picture of what the agents of a map do: a map for each field, in cells that act the number of the choice.

    Args:
        actions: (H, W) or (H, W, K) int, a choice for each cell; those of cells without an agent do not count.
        agents: (H, W), 1 where the cell holds an agent.
        nvec: (K,) choices in each field, which get a colour each.

    Returns:
        (24 * H, 24 * (K * W + K - 1), 3) uint8: the maps stand side by side.
    """
    cell = 24
    (height, width), fields = agents.shape, len(nvec)
    image, draw = canvas((fields * width + fields - 1) * cell, height * cell)
    for k, y, x in np.ndindex(fields, height, width):
        left, top = (k * (width + 1) + x) * cell, y * cell
        choice = actions.reshape(height, width, fields)[y, x, k]
        color = f"hsl({360 * choice // nvec[k]}, 55%, 75%)" if agents[y, x] else PAPER
        draw.rectangle([left, top, left + cell - 1, top + cell - 1], fill=color, outline=GRID)
        if agents[y, x]:
            text(draw, (left + cell / 2, top + cell / 2), str(choice), cell // 2)
    return pixels(image)
