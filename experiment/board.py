"""TensorBoard: a run's folder, its tags, text and HParams, and the tab that compares runs."""

import time
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

LAYOUT = {  # the tab Custom Scalars: title of each chart, and regular expressions of the tags in it
    "Runs compared": {
        "return while training": ["Multiline", ["charts/episodic_return$"]],
        "return in evaluation: as trained, mask removed": ["Multiline", ["eval/episodic_return(_no_mask)?$"]],
        "share of illegal actions": ["Multiline", ["masks/illegal_rate$"]],
        "approximate KL divergence (PPO), Q-values (DQN)": ["Multiline", ["losses/(approx_kl|q_values)$"]],
        "entropy (PPO), TD loss (DQN)": ["Multiline", ["losses/(entropy|td_loss)$"]],
        "episode length while training": ["Multiline", ["charts/episodic_length$"]],
    }
}


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


def write_scores(writer: SummaryWriter, args: Any, scores: dict[str, float], step: int) -> None:
    """Write the scores of an evaluation as scalars, and beside the flags as HParams, so that runs can be compared."""
    for key, value in scores.items():
        writer.add_scalar(f"eval/{key}", value, step)
    flags = {key: value if isinstance(value, int | float | str) else str(value) for key, value in vars(args).items()}
    for summary in hparams(flags, {f"eval/{key}": value for key, value in scores.items()}):
        writer.file_writer.add_summary(summary)  # add_hparams opens another file, with all scores once more at step 0
