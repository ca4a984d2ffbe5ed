"""Checkpoint files: written whole or not at all, loaded without running code, refused with a reason."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

# Flags that say how to run, not what is trained: on --resume and --eval-only the command line's count.
RUNTIME_FLAGS = ("resume", "eval_only", "eval_episodes", "capture_video", "device", "checkpoint_every", "track")
EVAL_FLAGS = ("env_kwargs",)  # with --eval-only those of the command line count where they are given
# The part of an observation's shape that an agent is bound to: when evaluated, it reads sets and maps of any size.
BOUND = {"flat": slice(None), "entities": slice(1, None), "grid": slice(1)}
FORMAT = 2  # of the file; raised when its meaning changes


def save_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write to a temporary name and move it into place, so that a kill at any moment leaves a whole file."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        torch.save(checkpoint | {"format": FORMAT}, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def load_checkpoint(path: str, args: Any, script: str) -> tuple[dict[str, Any], Any]:
    """Load a checkpoint, and the flags it was trained with.

    Args:
        path: the file.
        args: the dataclass of the command line's flags; it has a default for each.
        script: the script that must have written it, without ".py".

    Returns:
        The checkpoint, and flags of the type of `args`: those of the checkpoint, but for RUNTIME_FLAGS and, with
        `eval_only`, for given EVAL_FLAGS.

    Raises:
        ValueError: no such file, not a whole one, one of another script or version, or a flag that contradicts the
            checkpoint's.
    """
    flag = "eval-only" if args.eval_only else "resume"
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
        raise ValueError(f"--{flag} {path}: written by another version of {script}.py; use that one, or train anew.")
    for name, value in vars(args).items():
        if name in RUNTIME_FLAGS or (args.eval_only and name in EVAL_FLAGS and value):
            saved[name] = value
        elif value not in (getattr(type(args)(), name), saved[name]):
            given = f"--{name.replace('_', '-')} {value}: the checkpoint was trained with {saved[name]}."
            raise ValueError(f"{given} A checkpoint brings its own flags; leave this one out, or start a new run.")
    return checkpoint, type(args)(**saved)


def check_shapes(run: Any) -> None:
    """Refuse a checkpoint whose agent saw other observations or had other choices (ValueError)."""
    saved, found = run.checkpoint, run.shapes
    bound = BOUND[run.envs.layout] if run.args.eval_only else slice(None)
    if (list(saved["obs_shape"])[bound], saved["nvec"]) != (found["obs_shape"][bound], found["nvec"]):
        raise ValueError(
            f"{run.path}: trained on {saved['obs_shape']} observations and {saved['nvec']} choices; {run.args.env_id} "
            f"has {found['obs_shape']} and {found['nvec']}: another version of it."
        )


def rank_state(run: Any) -> dict[str, Any]:
    """What is this rank's own: generators, environments, a replay buffer."""
    state = {
        "generator": run.generator.get_state(),
        "rng": run.rng.bit_generator.state,
        "torch": torch.get_rng_state(),
        # equal on all ranks, whose weights are the same
        "weights_sum": sum(p.detach().double().sum().cpu() for p in run.model.parameters()),
    }
    return state | {name: swap_arrays(thing.get_state()) for name, thing in run.own.items()}


def restore_rank(run: Any, seed: int) -> None:
    """Restore this rank's own state; environments that cannot be saved restart, with another seed.

    Raises:
        ValueError: the checkpoint was written by another number of ranks.
    """
    ranks, run.iteration = run.checkpoint["ranks"], run.checkpoint["iteration"]
    if len(ranks) != run.world_size:
        raise ValueError(
            f"--resume {run.path}: written by {len(ranks)} ranks, not {run.world_size}; expected torchrun "
            f"--nproc-per-node {len(ranks)}."
        )
    mine = ranks[run.rank]
    run.generator.set_state(mine["generator"])
    run.rng.bit_generator.state = mine["rng"]
    torch.set_rng_state(mine["torch"])
    if mine["envs"] is None:
        print(f"{run.args.env_id} cannot be saved, so its environments restart; the agent and its optimizer continue.")
        run.envs.reset(seed=seed + run.iteration * run.args.num_envs)
    for name, thing in run.own.items():
        if mine[name] is not None:
            thing.set_state(swap_arrays(mine[name]))


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
