"""Checkpoint files: written whole or not at all, loaded without running code, refused with a reason."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

# Flags that say how to run, not what is trained: on --resume and --eval-only the command line's count.
RUNTIME_FLAGS = ("resume", "eval_only", "eval_episodes", "capture_video", "device", "checkpoint_every", "track")
EVAL_FLAGS = ("env_kwargs",)  # with --eval-only those of the command line count where they are given
FORMAT = 2  # of the file; raised when its meaning changes


def save_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write to a temporary name and move it into place, so that a kill at any moment leaves a whole file."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        torch.save(checkpoint | {"format": FORMAT}, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def load_checkpoint(path: str, args: Any, flag: str, script: str) -> tuple[dict[str, Any], Any]:
    """Load a checkpoint, and the flags it was trained with.

    Args:
        path: the file.
        args: the dataclass of the command line's flags; it has a default for each.
        flag: the flag that named the file, for messages.
        script: the script that must have written it, without ".py".

    Returns:
        The checkpoint, and flags of the type of `args`: those of the checkpoint, but for RUNTIME_FLAGS and, where
        `flag` is "eval-only", for given EVAL_FLAGS.

    Raises:
        ValueError: no such file, not a whole one, one of another script or version, or a flag that contradicts the
            checkpoint's.
    """
    if not Path(path).is_file():
        raise ValueError(f"--{flag} {path}: there is no such file; expected the checkpoint.pt of a run under runs/.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        writer, saved = checkpoint["script"], checkpoint["args"]
    except Exception as error:
        raise ValueError(
            f"--{flag} {path}: not a whole checkpoint of these scripts ({type(error).__name__}). A truncated file "
            f"cannot be continued; name another one, or start again."
        ) from error
    if writer != script:
        raise ValueError(f"--{flag} {path}: a checkpoint of {writer}.py, expected one of {script}.py.")
    if checkpoint.get("format", 1) != FORMAT:
        raise ValueError(
            f"--{flag} {path}: written by another version of {script}.py, with format {checkpoint.get('format', 1)}, "
            f"not {FORMAT}. Use that version of the scripts, or train anew."
        )
    for name, value in vars(args).items():
        if name in RUNTIME_FLAGS or (flag == "eval-only" and name in EVAL_FLAGS and value):
            saved[name] = value
        elif value not in (getattr(type(args)(), name), saved[name]):
            option = f"--{name.replace('_', '-')}"
            raise ValueError(
                f"{option} {value}: the checkpoint was trained with {saved[name]}. A checkpoint brings its own flags; "
                f"leave {option} out, or start a new run."
            )
    return checkpoint, type(args)(**saved)


def swap_arrays(state: Any) -> Any:
    """NumPy arrays to tensors and tensors to arrays, in nested dicts: torch.load(weights_only=True) takes tensors only.

    >>> swap_arrays({"x": np.zeros(2), "n": 3})
    {'x': tensor([0., 0.], dtype=torch.float64), 'n': 3}
    """
    if isinstance(state, dict):
        return {key: swap_arrays(value) for key, value in state.items()}
    if isinstance(state, torch.Tensor):
        return state.numpy()
    return torch.from_numpy(state.copy()) if isinstance(state, np.ndarray) else state
