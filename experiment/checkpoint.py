"""Checkpoint files: written whole or not at all, loaded without running code, refused with a reason."""

import hashlib
import io
import os
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from envs.base import BatchedEnv
from envs.foreign import reason
from envs.uniform import UniformVectorEnv
from experiment.flags import flag
from experiment.notes import say
from experiment.ranks import rank_seed

SOURCES = ("resume", "eval_only", "init_from")  # flags that name a checkpoint
# Flags that say how to run, not what is trained: they may be given with a checkpoint. --resume goes on with the rest.
RUNTIME_FLAGS = {"resume", "eval_only", "device", "eval_episodes", "eval_max_steps", "eval_mask_drop"}
RUNTIME_FLAGS |= {"capture_video", "checkpoint_every", "track"}
# These are the checkpoint's, where they are not given.
FREE_FLAGS = RUNTIME_FLAGS | {"num_threads", "compile", "async_envs", "wandb_project_name"}
# The part of an observation's shape that an agent is bound to: in a new run, it reads sets and maps of any size.
BOUND = {"flat": slice(None), "entities": slice(1, None), "grid": slice(1)}
FORMAT = 3  # of the file; raised when its meaning changes
PREVIOUS = "checkpoint_previous.pt"  # beside a checkpoint, the one before it


def save_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write to a temporary name and move it into place, so that a kill at any moment leaves a whole file.

    Its SHA-256 stands behind torch's archive, where torch.load does not look. The checkpoint that was there is kept as
    PREVIOUS, on file systems that know hard links.

    Raises:
        OSError: it could not be written; the checkpoint that was there is as it was.
    """
    buffer, temporary = io.BytesIO(), path.with_suffix(f".{os.getpid()}.tmp")
    torch.save(checkpoint | {"format": FORMAT}, buffer)
    try:
        with temporary.open("wb") as file:
            file.write(buffer.getbuffer())
            file.write(hashlib.sha256(buffer.getbuffer()).digest())
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            with suppress(OSError):
                path.with_name(PREVIOUS).unlink(missing_ok=True)
                path.with_name(PREVIOUS).hardlink_to(path)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(names: list[str], args: Any, script: str) -> tuple[dict[str, Any], Any, str]:
    """Load the checkpoint that a flag names, and the flags that count.

    Args:
        names: those of SOURCES that were given; one is expected, with the path of the file or of its folder.
        args: the dataclass of the command line's flags.
        script: the script that must have written it, without ".py".

    Returns:
        The checkpoint, the flags, and the file's path, which is also the flag's now. A new run has its own flags; else
        they are those of the checkpoint, but for flags that it does not know, RUNTIME_FLAGS (on resume only those that
        were given, and `device`), and where they were given FREE_FLAGS, `total_timesteps` on resume, `env_kwargs` in
        evaluation.

    Raises:
        ValueError: several paths or an empty one, no such file, not a whole one, one of another script or version,
            weights that are no numbers, or a flag that was given and contradicts the checkpoint's.
    """
    name, path = names[0], getattr(args, names[0])
    if len(names) > 1 or not path:
        found = " ".join(f"{flag(name)} {getattr(args, name)!r}" for name in names)
        raise ValueError(f"{found}: expected one of them, and a path; '' comes from an unset variable.")
    path = str(Path(path) / "checkpoint.pt" if Path(path).is_dir() else path)
    given, previous = f"{flag(name)} {path}", Path(path).parent / PREVIOUS
    if not Path(path).is_file():
        raise ValueError(f"{given}: there is no such file; expected a run's folder under runs/, or its checkpoint.pt.")
    content, other = memoryview(Path(path).read_bytes()), f" The one before is {previous}." if previous.exists() else ""
    if hashlib.sha256(content[:-32]).digest() != content[-32:]:
        raise ValueError(f"{given}: not a whole checkpoint of these scripts, for its checksum does not fit.{other}")
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    if checkpoint["script"] != script:
        raise ValueError(f"{given}: a checkpoint of {checkpoint['script']}.py, expected one of {script}.py.")
    if checkpoint["format"] != FORMAT:
        raise ValueError(f"{given}: written by another version of {script}.py; use that one, or train anew.")
    if not all(weights.isfinite().all() for weights in checkpoint.get("model", {}).values()):
        raise ValueError(f"{given}: the agent's weights hold NaN or inf.{other}")
    setattr(args, name, path)
    flags, saved = asdict(args), checkpoint["args"]
    if name == "init_from":
        if other := [key for key in args.shapes if flags[key] != saved.get(key)]:
            raise ValueError(f"{given}: trained with {flag(other[0])} {saved.get(other[0])}, not {flags[other[0]]}.")
        return checkpoint, args, path
    for one in flags.keys() ^ saved.keys():
        counts = f"does not know {flag(one)}: {flags[one]} counts" if one in flags else f"knows {flag(one)}: ignored"
        say(f"{given} {counts}, for this {script}.py has other flags.")
    own = FREE_FLAGS | {"total_timesteps" if args.resume else "env_kwargs"}
    free = (args.given & own) | ({"resume", "eval_only", "device"} if args.resume else RUNTIME_FLAGS)
    bound = {key: value for key, value in saved.items() if key in flags.keys() - free}
    for key in args.given & bound.keys():
        if flags[key] != bound[key]:
            clash = f"{flag(key)} {flags[key]}: the checkpoint was trained with {bound[key]}."
            raise ValueError(f"{clash} A checkpoint brings its own flags; leave this one out, or start a new run.")
    loaded = type(args)(**flags | bound)
    loaded.given = args.given
    return checkpoint, loaded, path


def rehearse(envs: UniformVectorEnv) -> None:
    """Save the state of environments and restore it once, before a training, at whose end it would be lost.

    Raises:
        ValueError: it cannot be saved, or not be restored.
    """
    buffer = io.BytesIO()
    try:
        torch.save(swap_arrays(envs.get_state()), buffer)
        buffer.seek(0)
        if state := torch.load(buffer, weights_only=True):
            envs.set_state(swap_arrays(state))
    except Exception as error:
        what = f"get_state() and set_state() of {envs.unwrapped} fail: {reason(error)} ({type(error).__name__})"
        raise ValueError(f"{what}. Expected dicts of arrays and plain numbers; state_arrays names arrays.") from error


def restore_shared(run: Any) -> None:
    """Restore what is the same on all ranks: the agent, its optimizer.

    Raises:
        ValueError: the agent saw other observations or had other choices, or the script keeps more than the file holds.
    """
    saved, found = run.checkpoint, run.shapes
    bound = slice(None) if run.args.resume else BOUND[run.envs.layout]
    if (list(saved["obs_shape"])[bound], saved["nvec"]) != (found["obs_shape"][bound], found["nvec"]):
        was, is_now = (f"{x['obs_shape']} observations and {x['nvec']} choices" for x in (saved, found))
        other = f"{run.args.env_id} has {is_now}: another version of it, or other arguments"
        raise ValueError(f"{run.path}: trained on {was}; {other}.")
    kept = run.shared.keys() | run.own.keys() | {"generator", "rng", "torch"}
    if missing := kept - saved.keys() - saved["ranks"][0].keys():
        lacks = f"holds no {', '.join(sorted(missing))}, which {run.script}.py keeps with these flags"
        raise ValueError(f"{run.path}: {lacks}; expected a run with the same ones.")
    for name, thing in run.shared.items():
        try:
            thing.load_state_dict(saved[name])
        except (KeyError, RuntimeError, ValueError) as error:
            raise ValueError(f"{run.path}: its {name} does not fit this {run.script}.py: {error}") from error


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


def begin_rank(run: Any) -> None:
    """What is this rank's own, as a new run has it or as the checkpoint to resume says; ValueError as below."""
    rehearse(run.envs)
    if run.args.resume:
        restore_rank(run)


def restore_rank(run: Any) -> None:
    """Restore this rank's own state; environments that cannot be saved restart, with another seed.

    Raises:
        ValueError: the checkpoint was written by another number of ranks, all steps are played already, or the state is
            of another version of the environments.
    """
    ranks, run.iteration = run.checkpoint["ranks"], run.checkpoint["iteration"]
    run.global_step = run.iteration * run.steps
    say_what_total_changes(run)
    if len(ranks) != run.world_size:
        known = f"{run.path}: written by {len(ranks)} ranks, not {run.world_size}"
        raise ValueError(f"--resume {known}; expected torchrun --nproc-per-node {len(ranks)}.")
    # Without what the first reset, which is not played on, has added.
    run.statistics.load_state_dict(run.checkpoint["statistics"])
    mine = ranks[run.rank]
    try:
        run.generator.set_state(mine["generator"])
    except RuntimeError:  # the state of a GPU's is another thing than that of a CPU's
        run.generator.manual_seed(rank_seed(run.args.seed + run.iteration, run.rank))
        say(f"{run.path} was written on another kind of device than {run.device}: minibatches are drawn anew.")
    run.rng.bit_generator.state = mine["rng"]
    torch.set_rng_state(mine["torch"])
    if mine["envs"] is None:
        say(f"{run.args.env_id} cannot be saved, so its environments restart; the agent and its optimizer continue.")
        run.envs.reset(seed=run.seed + run.iteration * run.args.num_envs)
        if isinstance(run.envs.unwrapped, BatchedEnv):
            run.envs.unwrapped.age = run.iteration * run.steps // run.args.num_envs
    for name, thing in run.own.items():
        if mine[name] is not None:
            try:
                thing.set_state(swap_arrays(mine[name]))
            except (KeyError, ValueError) as error:
                fits = f"its {name} fit another version of these"
                raise ValueError(f"{run.path}: {fits} ({error}); train anew.") from error


def say_what_total_changes(run: Any) -> None:
    """Say what another total of steps does to a training that goes on; refuse one that is past already (ValueError)."""
    before, now = run.checkpoint["args"]["total_timesteps"], run.args.total_timesteps
    if now != before:
        given = f"--total-timesteps {now} instead of {before}, of which {run.global_step} are played"
        if run.iteration >= run.num_iterations:
            raise ValueError(f"{given}; expected more than that.")
        left = " to ".join(f"{1 - run.iteration / (total // run.steps):.1%}" for total in (before, now))
        say(f"{given}: a step size that is annealed jumps from {left} of its first value; DQN's epsilon goes back too.")


def swap_arrays(state: Any) -> Any:
    """NumPy arrays to tensors and tensors to arrays, in nested dicts: torch.load(weights_only=True) takes tensors only.

    >>> swap_arrays({"x": np.zeros(2), "n": 3})
    {'x': tensor([0., 0.], dtype=torch.float64), 'n': 3}
    """
    if isinstance(state, dict):
        return {key: swap_arrays(value) for key, value in state.items()}
    if isinstance(state, torch.Tensor):
        return state.numpy()
    if isinstance(state, np.ndarray):
        return torch.from_numpy(state)
    return state.item() if isinstance(state, np.generic) else state
