"""Bad inputs, and trainings that are killed: what the scripts make of them.

    python benchmark/robustness.py --out docs/results/robustness.json    # all parts, then the tables of the page
    python benchmark/robustness.py --only attention                      # the cases whose kind and name match this
    python benchmark/robustness.py --part kills --kills 20
    python benchmark/robustness.py --part guests --out docs/results/robustness.json    # with the packages of the page

A case is something that others do wrong, or do in their own way, and what is right then: a value, a run that ends well
and says certain words, or a refusal (ValueError or TypeError, before training or at the step that is wrong) whose
sentence holds certain words. Anything else fails: another exception, another sentence, silence, a wrong value, and
whatever takes longer than the limit. `guests.py` has the environments. A part that is run replaces its record in the
file, and the tables in docs/robustness.md are written from it.
"""

import contextlib
import io
import json
import multiprocessing
import os
import random
import re
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import tracemalloc
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints
from unittest import mock

import gymnasium as gym
import numpy as np
import torch
import tyro
from gymnasium import spaces
from seam import ROOT
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import dqn_action_mask
import ppo_action_mask
import ppo_attention_mask
import ppo_gridwise
import ppo_recurrent_mask
from benchmark.guests import LOG
from envs import In, Mask, MaskFunction, legal_actions
from envs.make import make_vec
from experiment.checkpoint import save_checkpoint

SCRIPTS = {
    script.__name__: script
    for script in (ppo_action_mask, dqn_action_mask, ppo_attention_mask, ppo_gridwise, ppo_recurrent_mask)
}
TINY = {  # iterations of 32 steps
    "ppo_action_mask": "--num-envs 4 --num-steps 8 --minibatch-size 16",
    "dqn_action_mask": "--num-envs 4 --train-frequency 8 --batch-size 16 --replay-ratio 1 --learning-starts 64 "
    "--buffer-size 512",
    "ppo_attention_mask": "--num-envs 4 --num-steps 8 --minibatch-size 16 --dim 8",
    "ppo_gridwise": "--num-envs 4 --num-steps 8 --minibatch-size 16 --channels 4",
    "ppo_recurrent_mask": "--num-envs 4 --num-steps 8 --minibatch-size 16 --hidden-dim 8",
}
ROTATING = [[int(a == t % 3) for a in range(3)] for t in range(12)]  # the masks of the doors: 100, 010, 001, 100, ...
WELL = "ended well"


class Wrong(Exception):
    """A run that ended, and not as it should have."""


class TimeLimitError(BaseException):
    """Not an Exception, so that nobody on the way takes it for one of an environment."""


@dataclass
class Refusal:
    """A sentence that holds all of these (regular expressions, in any case)."""

    words: tuple[str, ...]


@dataclass
class Case:
    """What is tried.

    Args:
        kind: of the fault.
        name: of the case, unique within its kind.
        run: gives a value, in an empty folder.
        right: the value, or a Refusal, or a tuple of them where each is right.
        limit: seconds.
    """

    kind: str
    name: str
    run: Callable[[], Any]
    right: Any
    limit: float


def refused(*words: str) -> Refusal:
    return Refusal(words)


def cases_of(kind: str) -> Callable[..., Case]:
    """What makes a case of this kind: of its name, what is right, and a function with its arguments."""

    def case(name: str, right: Any, function: Callable, *args: Any, limit: float = 30.0, **kwargs: Any) -> Case:
        return Case(kind, name, partial(function, *args, **kwargs), right, limit)

    return case


# How things are run
@dataclass
class Ended:
    code: int
    text: str


def script(name: str | Path, *flags: str) -> Ended:
    """Run a script as its command line does, in this process: exceptions come through, prints are collected."""
    path, text = name if isinstance(name, Path) else ROOT / f"{name}.py", io.StringIO()
    argv, sys.argv = sys.argv, [str(path), *TINY[path.stem].split(), "--eval-episodes", "0", *flags]
    try:
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            runpy.run_path(str(path), run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise ValueError(f"{text.getvalue()}\n{end.code if isinstance(end.code, str) else ''}") from end
    except Exception as error:  # what it printed before belongs to what it said
        error.add_note(text.getvalue()[-2000:])
        raise
    finally:
        sys.argv = argv
    return Ended(0, text.getvalue())


class Forked:
    """A script in a process of its own, forked where all packages are imported; of `subprocess.Popen` what is used."""

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch.utils.tensorboard", "tyro", "experiment", "benchmark.guests"])

    def __init__(self, argv: list[str], file_size: int):
        self.out = Path(tempfile.mkstemp()[1])
        self.process = self.context.Process(target=become, args=(argv, os.getcwd(), str(self.out), file_size))
        self.process.start()
        self.pid = self.process.pid

    def poll(self) -> int | None:
        return self.process.exitcode

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def send_signal(self, signum: int) -> None:
        os.kill(self.pid, signum)

    def communicate(self) -> tuple[str, None]:
        self.process.join()
        text = self.out.read_text(errors="replace")
        self.out.unlink()
        return text, None


def become(argv: list[str], folder: str, out: str, file_size: int) -> None:
    """Run a script as its command line does: its last words go into a file, and its exit code is this process's."""
    file = os.open(out, os.O_WRONLY)
    os.dup2(file, 1), os.dup2(file, 2)
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    multiprocessing.process._parent_process = None  # it is nobody's worker
    if file_size:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    sys.argv = argv
    try:
        runpy.run_path(argv[0], run_name="__main__")
    except KeyboardInterrupt:  # which ends Python by the signal itself
        traceback.print_exc()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)


def process(name: str, *flags: str, ranks: int = 1, file_size: int = 0) -> Any:
    """Start a script in a process of its own, which may write files of `file_size` bytes, or of any size."""
    argv = [str(ROOT / f"{name}.py"), *TINY[name].split(), "--eval-episodes", "0", *flags]
    if ranks == 1 and "--compile" not in flags:
        return Forked(argv, file_size)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, *launcher, *argv], **pipes)


def finish(running: Any) -> Ended:
    try:
        text = running.communicate()[0]
    finally:  # at a time limit too
        kill(running.pid)
    return Ended(running.returncode, text)


def kill(pid: int) -> None:
    """SIGKILL to a process and to all that it has started, torchrun's workers among them."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    family = [pid]
    for one in family:
        family += [child for child, parent in parents.items() if parent == one]
    for one in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)


def ends(name: str, *flags: str, says: tuple[str, ...] = (), value: Callable[[], Any] = lambda: WELL) -> Any:
    """Run a script that has to end well and to say these words; the value to compare, taken after it."""
    LOG.clear()
    check(script(name, "--total-timesteps", "64", *flags), 0, *says)
    return value()


def check(done: Ended, code: int, *says: str) -> str:
    """Raise Wrong unless a run ended with this code and these words."""
    missing = [words for words in says if not re.search(words, done.text, re.I | re.S)]
    if done.code != code or missing:
        tail = "" if done.code == code else f" {last_line(done.text)}"
        raise Wrong(f"exit code {done.code}, expected {code}; not said: {missing}.{tail}")
    return WELL


def last_line(text: str) -> str:
    lines = [line for line in re.split(r"[\r\n]+", text.strip()) if line.strip()]
    return lines[-1][:300] if lines else ""


def guest(kind: str, **kwargs: Any) -> tuple[str, ...]:
    """Flags of an environment of guests.py."""
    words = [str(word) for pair in kwargs.items() for word in pair]
    return ("--env-id", f"benchmark.guests:Guests/{kind}-v0", *(("--env-kwargs", *words) if words else ()))


def vector(kind: str, num_envs: int = 2, options: dict[str, Any] | None = None, **kwargs: Any) -> Any:
    return make_vec(f"benchmark.guests:Guests/{kind}-v0", num_envs, kwargs, **(options or {}))


def roll(envs: Any, steps: int, action: Callable[[np.ndarray], np.ndarray] | None = None) -> list[tuple]:
    """What `reset` and `steps` steps give: (obs, mask, infos), copied; actions are the first legal ones."""
    LOG.clear()
    with contextlib.closing(envs):
        obs, infos = envs.reset(seed=0)
        got = [(np.copy(obs), np.copy(infos["action_mask"]), infos)]
        for _ in range(steps):
            mask = got[-1][1]
            obs, rewards, _, _, infos = envs.step((action or (lambda m: m.argmax(1)))(mask))
            got.append((np.copy(obs), np.copy(infos["action_mask"]), infos | {"rewards": np.copy(rewards)}))
    return got


def masks(kind: str = "Doors", steps: int = 7, options: dict[str, Any] | None = None, **kwargs: Any) -> list:
    """The masks that the last of two environments gave, from the reset on."""
    return [mask[-1].tolist() for _, mask, _ in roll(vector(kind, options=options, **kwargs), steps)]


def finals(steps: int, options: dict[str, Any] | None = None, kind: str = "Doors", **kwargs: Any) -> list:
    """Of the last step, where an episode ends: new observation and mask, final observation and mask."""
    obs, mask, infos = roll(vector(kind, options=options, cut=True, length=steps, keep=True, **kwargs), steps)[-1]
    final = (infos["final_obs"], infos["final_info"]["action_mask"])
    return [np.asarray(x[-1]).ravel().tolist() for x in (obs, mask, *final)]


def only_legal() -> bool:
    """Whether everything that was played in this process was legal."""
    steps = [entry for entry in LOG if entry[0] == "step"]
    return len(steps) >= 32 and all(entry[3] for entry in steps)


def members() -> bool:
    """Whether every action that reached an environment in this process is a member of its space."""
    actions = [entry for entry in LOG if entry[0] == "action"]
    return len(actions) >= 4 and all(entry[3] for entry in actions)


def run_folder() -> Path:
    (only,) = Path("runs").iterdir()
    return only


def load(path: Path | None = None) -> dict[str, Any]:
    return torch.load(path or run_folder() / "checkpoint.pt", weights_only=True)


@cache
def trained(name: str, *flags: str) -> bytes:
    """The checkpoint of a run of 64 steps, made once."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        script(name, "--total-timesteps", "64", *flags)
        return (run_folder() / "checkpoint.pt").read_bytes()


def placed(content: bytes) -> str:
    """A checkpoint in a run's folder; its path."""
    path = Path("runs/before/checkpoint.pt")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return str(path)


def rewritten(name: str, change: Callable[[dict], Any], *flags: str) -> str:
    """The path of a checkpoint with other contents, written as the scripts write it."""
    path = Path(placed(trained(name, *flags)))
    checkpoint = load(path)
    change(checkpoint)
    save_checkpoint(path, checkpoint)
    return str(path)


def changed(name: str, change: Callable[[dict], Any], flag: str = "--resume") -> Ended:
    """Run a script on a checkpoint with other contents."""
    return script(name, flag, rewritten(name, change), "--eval-episodes", "2")


# The cases
# fmt: off
def frozen_masks() -> Iterator[Case]:
    kind = "one info, observation or mask for ever, changed in place"
    case = cases_of(kind)
    for convention in ("info", "method", "list", "obs"):
        for async_envs in (False, True):
            options = {"async_envs": async_envs}
            name = f"mask by {convention}{(', async' if async_envs else '')}"
            yield case(name, ROTATING[:8], masks, options=options, convention=convention, keep=True, length=99)
    yield case("mask by property", ROTATING[:8], masks, "Owned", convention="none", keep=True, length=99)
    batched = partial(masks, "Batched", 5)
    yield case("a vector environment that keeps its infos", ROTATING[:6], batched)
    for convention in ("method", "list", "obs"):
        yield case(f"final mask, mask by {convention}", [[0], [1, 0, 0], [8], [0, 0, 1]], finals, 8,
            convention=convention)
        yield case(f"final mask, mask by {convention}, async", [[0], [1, 0, 0], [8], [0, 0, 1]], finals, 8,
            {"async_envs": True}, convention=convention)
    yield case("final observation in a Dict", [[0], [1, 0, 0], [8], [0, 0, 1]], finals, 8, dict_obs=True)
    grid = {"layout": "grid"}
    yield case("a grid's final map and masks",
        [[0] * 4, [1, 0, 0, 1, *[1] * 4, *[0] * 8], [8] * 4, [1, 0, 0, 1, *[0] * 8, *[1] * 4]], finals, 8, grid,
        "Lamps")
    for name in ("ppo_action_mask", "dqn_action_mask"):
        for convention in ("method", "list", "obs"):
            flags = guest("Doors", convention=convention, keep=True)
            yield case(f"{name}: no illegal action, mask by {convention}", True, ends, name, *flags, value=only_legal)
        flags = guest("Batched")
        yield case(f"{name}: no illegal action, own vector environment", True, ends, name, *flags, value=only_legal)
    flags = guest("Lamps", keep=True)
    yield case("ppo_gridwise: no illegal action", True, ends, "ppo_gridwise", *flags, value=only_legal)

    def stored() -> float:
        return max(float(x.max()) for x in [load()["ranks"][0]["replay"]["next_obs"]])

    flags = guest("Doors", keep=True, cut=True, length=8)
    yield case("dqn_action_mask: the state before a time limit leads to state 8", 8.0, ends, "dqn_action_mask",
        *flags, value=stored)


def infos() -> Iterator[Case]:
    case = cases_of("what else is in an info")
    for name, value in {"a counter called episode": "info | {'episode': t}",
            "a flag called _episode": "info | {'_episode': 1}", "final_obs": "info | {'final_obs': 'none yet'}",
            "final_info": "info | {'final_info': t}", "_action_mask": "info | {'_action_mask': False}",
            "_final_obs": "info | {'_final_obs': True}", "agent_mask beside a flat mask": "info | {'agent_mask': 1}",
            "arrays of changing length": "info | {'path': np.zeros(t)}",
            "a value that changes its type": "info | {'note': 'x' if t % 2 else 1.0}",
            "an array, then a dict": "info | {'note': {} if t % 2 else np.ones(2)}",
            "keys that are no text": "info | {3: 'three'}", "None": "info | {'note': None}",
            "success of an odd type": "info | {'success': 'maybe'}"}.items():
        for async_envs in (False, True):
            options = {"async_envs": async_envs}
            arguments = {"fault": "info", "value": value, "at": 0, "length": 3}
            yield case(f"{name}{(', async' if async_envs else '')}", [*ROTATING[:3]] * 2 + ROTATING[:2], masks,
                options=options, **arguments)
    yield case("a function, async", (ROTATING * 2)[:6] + ROTATING[:2], masks, options={"async_envs": True},
        fault="info", at=0, value="info | {'f': lambda: 0}")


Gate = IntEnum("Gate", {"A": 5, "B": 6, "C": 9})
Side = IntEnum("Side", {"LEFT": 0, "RIGHT": 1})


def constraints() -> Iterator[Case]:
    case = cases_of("constraints on named fields")

    def legal(constraint: Any, num_envs: int = 1, **fields: Any) -> list:
        return legal_actions({"gate": constraint}, fields or {"gate": Gate}, num_envs).tolist()

    empty = refused("Environment 0", "gate", "no legal value")
    for name, constraint, num_envs, right in [("In([])", In([]), 1, empty), ("In(())", In(()), 1, empty),
            ("In(set())", In(set()), 1, empty),
            ("Mask([])", Mask([]), 1, refused("gate", "3 members|no legal value")),
            ("In of shape (2, 0)", In(np.zeros((2, 0), int)), 2, empty),
            ("Mask of shape (2, 0)", Mask(np.zeros((2, 0), int)), 2, refused("gate", "3 members|no legal value")),
            ("In of empty rows", In([[], []]), 2, empty),
            ("In with one empty row", In([[5], []]), 2, refused("Environment 1", "gate", "no legal value")),
            ("In of unknown values only", In([-1, 7]), 1, empty), ("Mask of zeros", Mask([0, 0, 0]), 1, empty),
            ("In of a set", In({5, 9}), 1, [[1, 0, 1]]), ("In of a frozenset", In(frozenset({6})), 1, [[0, 1, 0]]),
            ("In of a range", In(range(5, 7)), 1, [[1, 1, 0]]), ("In of a tuple", In((9,)), 1, [[0, 0, 1]]),
            ("In of members", In([Gate.A, Gate.C]), 1, [[1, 0, 1]]),
            ("In of the enumeration itself", In(Gate), 1, [[1, 1, 1]]),
            ("In of a dict's keys", In({5: "a"}.keys()), 1, [[1, 0, 0]]),
            ("In of whole floats", In(np.array([5.0, -1.0], np.float32)), 1, [[1, 0, 0]]),
            ("In of mixed numbers", In([5, 6.0, np.int8(9)]), 1, [[1, 1, 1]]),
            ("In([1.5])", In([1.5]), 1, refused("gate", "1.5")),
            ("In([nan])", In([np.nan, 5]), 1, refused("gate", "nan")),
            ("In of text", In(["A"]), 1, refused("gate", "In")), ("In of None", In([None]), 1, refused("gate", "In")),
            ("In of rows of different lengths", In([[5], [5, 6]]), 2, [[1, 0, 0], [1, 1, 0]]),
            ("In of sets, one for each environment", In([{5}, {6, 9}]), 2, [[1, 0, 0], [0, 1, 1]]),
            ("In of arrays of different lengths", In([np.array([5]), np.array([6, 9])]), 2, [[1, 0, 0], [0, 1, 1]]),
            ("In for three environments of two", In([[5]] * 3), 2, refused("gate", "In", "3", "2")),
            ("Mask of another length", Mask([1, 0]), 1, refused("gate", "3 members", "\\(2,\\)")),
            ("Mask for three environments of two", Mask([[1, 1, 1]] * 3), 2, refused("gate", "3 members")),
            ("Mask of 0.5", Mask([0.5, 1, 1]), 1, refused("gate", "0.5")),
            ("Mask of NaN", Mask([np.nan, 1, 1]), 1, refused("gate", "nan")),
            ("Mask of -1", Mask([-1, 1, 1]), 1, refused("gate", "-1")),
            ("Mask of text", Mask(["yes", "no", "no"]), 1, refused("gate", "True or False|1 or 0")),
            ("a list in place of In", [5], 1, refused("gate", "In or Mask", "list"))]:
        yield case(name, right, legal, constraint, num_envs)
    both = {"gate": Gate, "side": Side}
    yield case("{} is no constraint", [[1, 1, 1, 1, 1]], lambda: legal_actions({}, both).tolist())
    yield case("a field left out is free", [[1, 1, 1, 0, 1]], lambda: legal_actions({"side": In([1])}, both).tolist())
    yield case("an unknown field", refused("gats", "gate.*side"), lambda: legal_actions({"gats": In([5])}, both))
    yield case("None in place of a dict", refused("dict of field names", "None"), lambda: legal_actions(None, both))
    yield case("a terminal state may be empty", [[1, 1, 1, 0, 0]],
        lambda: legal_actions({"side": In([])}, both, terminated=np.array([True])).tolist())
    yield case("the second of two is empty", refused("Environment 1", "gate"), legal, In([[5], [-1]]), 2)

    def wrapped(mask_function: Callable, steps: int = 1) -> list:
        env = MaskFunction(gym.make("CartPole-v1"), {"move": Side}, mask_function)
        mask = env.reset(seed=0)[1]["action_mask"]
        for _ in range(steps):
            mask = env.step(0)[4]["action_mask"]
        return mask.tolist()

    yield case("a wrapper's function returns In([])", refused("move", "no legal value"), wrapped,
        lambda obs: {"move": In([])})
    yield case("a wrapper's function returns nothing", refused("mask function"), wrapped, lambda obs: None)
    yield case("floats of an observation", [0, 1], wrapped, lambda obs: {"move": In(np.float32([1.0]))})
    yield case("an enumeration without members", refused("at least one member"),
        lambda: MaskFunction(gym.make("CartPole-v1"), {"move": IntEnum("E", {})}, lambda obs: {}))
    yield case("hiding a key that is not there", refused("hide", "up"),
        lambda: MaskFunction(gym.make("CartPole-v1"), {"move": Side}, lambda obs: {}, hide=("up",)))


def returned() -> float:
    """The return of the last evaluation in this process, from TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_folder()))
    events.Reload()
    return events.Scalars("eval/episodic_return")[-1].value


def attention() -> Iterator[Case]:
    case, name = (cases_of("sets of entities"), "ppo_attention_mask")
    flags = ("--num-envs", "16", "--num-steps", "16", "--minibatch-size", "64", "--learning-rate", "3e-3", "--dim",
        "16", "--total-timesteps", "8192", "--eval-episodes", "64")
    def learns():
        return returned() > 5.5
    for title, kwargs in {"first place taken": {"first": True}, "first place always empty": {}}.items():
        yield case(f"learns, {title}", True, ends, name, *guest("Sets", **kwargs), *flags, value=learns, limit=90)
    key = ("--total-timesteps", "64")
    yield case("learns what a key beside the entities tells, or refuses it", (refused("goal", "entities"), True),
        ends, name, *guest("Sets", first=True, goal=True), *flags, value=learns, limit=90)

    def reads(pointer: bool) -> bool:
        """Whether logits and value follow an entity that does not stand in the first place."""
        torch.manual_seed(0)
        agent = ppo_attention_mask.Agent((3, 4), (3,), ppo_attention_mask.Args(dim=8, pointer=pointer))
        obs = torch.zeros(2, 3, 4)
        obs[:, 1, 0], obs[0, 1, 1:], obs[1, 1, 1:] = (1, torch.tensor([1.0, 0, 0]), torch.tensor([0, 0, 1.0]))
        policy, values = agent(obs, torch.ones(2, 3, dtype=torch.bool))
        return bool((policy.logits[0] != policy.logits[1]).any() and values[0] != values[1])

    yield case("logits and value follow an entity in the second place", True, reads, False)
    yield case("the same with --pointer", True, reads, True)
    entity = "environment \\d"
    for title, fault, value, words in [("entity_mask of 0.5", "entity_mask", "np.full(3, 0.5)",
            (entity, "entity_mask", "0.5")),
            ("entity_mask of NaN", "entity_mask", "np.full(3, np.nan)", (entity, "entity_mask", "nan")),
            ("entity_mask of 2", "entity_mask", "np.full(3, 2)", (entity, "entity_mask", "2")),
            ("entity_mask of -1", "entity_mask", "np.full(3, -1)", (entity, "entity_mask", "-1")),
            ("entity_mask of another shape", "entity_mask", "np.ones(4, np.int8)",
            (entity, "entity_mask|observation")), ("entities of another shape", "entities",
            "np.ones((2, 3), np.float32)", (entity, "entities|observation")),
            ("NaN in an entity that is there", "entities", "np.full((3, 3), np.nan)", (entity, "nan")),
            ("inf in an entity that is there", "entities", "np.full((3, 3), np.inf)", (entity, "inf")),
            ("entities of None", "entities", "None", (entity, "entities|observation"))]:
        free = "spaces.Box(-np.inf, np.inf, {}, np.float32)"
        space = f"spaces.Dict(entities={free.format((3, 3))}, entity_mask={free.format((3,))})"
        yield case(title, refused(*words), ends, name, *guest("Sets", space=space, fault=fault, value=value))
    nobody = guest("Sets", fault="entity_mask", value="np.zeros(3, np.int8)", at=0)
    yield case("nobody is there, ever", WELL, ends, name, *nobody)
    absent = guest("Sets", fault="entities", value="np.where(entities.any(1)[:, None], entities, np.nan)", at=0)
    yield case("NaN in entities that are not there", WELL, ends, name, *absent)
    rows, bits = "spaces.Box(0, 1, {})", "spaces.MultiBinary({})"
    for title, entities, mask in [
            ("entities of three axes", rows.format((2, 3, 3)), bits.format(2)),
            ("entities of one axis", rows.format((3,)), bits.format(3)),
            ("entities as a Sequence", "spaces.Sequence(spaces.Box(0, 1, (3,)))", bits.format(3)),
            ("entities as a Tuple", "spaces.Tuple([spaces.Box(0, 1, (3,))] * 3)", bits.format(3)),
            ("entity_mask of another length", rows.format((3, 3)), bits.format(4)),
            ("entity_mask of two axes", rows.format((3, 3)), bits.format((3, 1))),
            ("no entity_mask", rows.format((3, 3)), ""), ("a vector", "", "")]:
        space = f"spaces.Dict(entities={entities}{mask and ', entity_mask='}{mask})" if entities else rows.format((3,))
        yield case(title, refused("entities", "expected"), ends, name, *guest("Sets", space=space))
    yield case("a matrix without --presence-column", refused("--presence-column"), ends, name, *guest("Rows"))
    for column, right in [("0", WELL), ("4", refused("--presence-column 4", "columns 0 to 3")),
            ("-1", refused("--presence-column", "at least 0"))]:
        flags = (*guest("Rows", first=True), "--presence-column", column)
        yield case(f"--presence-column {column} of four columns", right, ends, name, *flags)
    yield case("--presence-column on a Dict", refused("--presence-column", "Dict"), ends, name, *guest("Sets"),
        "--presence-column", "0")
    bad = guest("Rows", fault="entity_mask", value="np.full(3, 0.5)")
    yield case("a presence column of 0.5", refused(entity, "0.5"), ends, name, *bad, "--presence-column", "0")
    yield case("--pointer with as many actions as entities", WELL, ends, name, *guest("Sets"), "--pointer", *key)
    yield case("--pointer with another number of actions", refused("--pointer", "Discrete"), ends, name, "--pointer",
        *key)


def statistics() -> Iterator[Case]:
    case = cases_of("learnt statistics and large returns")
    for name in SCRIPTS:
        for flag in ("--norm-obs", "--norm-reward"):
            yield case(f"{name} {flag}", WELL, ends, name, flag)
    yield case("a wrapper that learns statistics inside the environment is named", WELL, ends, "ppo_action_mask",
        *guest("Learnt"), says=("Normalize|statistics", "--norm-obs"))

    def again(name: str) -> bool:
        """An agent evaluated twice, from its file, has the same scores as after its training: nothing was learnt."""
        environment = guest("Doors", length=8) if name == "ppo_action_mask" else ()
        scored = ("--eval-episodes", "8")
        ends(name, *environment, "--norm-obs", "--norm-reward", *scored)
        after = returned()
        path = str(run_folder() / "checkpoint.pt")
        printed = [script(name, "--eval-only", path, *scored).text for _ in range(2)]
        scores = [json.loads(re.search(r'{\s*"as_trained".*}', text, re.S)[0])["as_trained"] for text in printed]
        return scores[0] == scores[1] and abs(scores[0]["episodic_return"] - after) < 0.0001

    yield case("statistics are frozen in evaluation, and in the checkpoint", True, again, "ppo_action_mask")

    def resumed(name: str) -> bool:
        flags = ("--norm-obs", "--norm-reward", "--total-timesteps", "320", "--checkpoint-every", "1")
        with in_folder("whole"):
            script(name, *flags)
            whole = load()
        half = half_way(name, *flags)
        script(name, "--resume", half)
        return difference(whole, load(Path(half))) is None

    for name in SCRIPTS:
        yield case(f"{name}: statistics exact on resume", True, resumed, name)
    large = guest("Doors", fault="reward", value="2000.0 + 1000 * (t % 2)", at=0)
    yield case("returns near 2,000 without scaling: a warning names the flag", WELL, ends, "ppo_action_mask", *large,
        "--total-timesteps", "3200", "--update-epochs", "1", says=("--norm-reward",), limit=60)


@contextlib.contextmanager
def in_folder(name: str) -> Iterator[None]:
    Path(name).mkdir()
    with contextlib.chdir(name):
        yield


def half_way(name: str, *flags: str) -> str:
    """The path of a checkpoint of iteration 5 of 10, as a SIGKILL would leave it."""
    with in_folder("half"):
        copies = watching_saves(5)
        with copies:
            script(name, *flags)
        path = run_folder() / "checkpoint.pt"
        path.write_bytes(copies.kept)
        for other in path.parent.glob("checkpoint*"):
            if other != path:
                other.unlink()
    return f"half/{path}"


class watching_saves:  # noqa: N801 (a context manager)
    """Keeps the bytes of the checkpoint that is written as the n-th."""

    def __init__(self, n: int):
        self.left, self.kept = n, b""

    def __enter__(self) -> None:
        import experiment.run as module

        self.module, self.save = module, module.save_checkpoint

        def save(path: Path, *rest: Any) -> None:
            self.save(path, *rest)
            self.left -= 1
            if self.left == 0:
                self.kept = path.read_bytes()

        module.save_checkpoint = save

    def __exit__(self, *error: Any) -> None:
        self.module.save_checkpoint = self.save


def difference(a: Any, b: Any, where: str = "") -> str | None:
    """Where two checkpoints differ in weights, optimizer, generators, environments or scores; None: nowhere."""
    if isinstance(a, dict):
        keys = [key for key in a.keys() | b.keys() if key not in ("args", "checksum")]
        parts = [(key, a.get(key), b.get(key)) for key in keys]
    elif isinstance(a, list | tuple):
        parts = [(i, x, y) for i, (x, y) in enumerate(zip(a, b, strict=True))]
    else:
        same = torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        return None if same else where
    return next((found for key, x, y in parts if (found := difference(x, y, f"{where}/{key}"))), None)


def action_spaces() -> Iterator[Case]:
    case = cases_of("actions are members of their space")

    def rewards(space: str, async_envs: bool) -> list:
        """Each environment says whether the action that it got is a member."""
        got = roll(vector("Spaces", options={"async_envs": async_envs}, space=space), 3, last_choice(space))
        return sorted({float(x) for *_, infos in got[1:] for x in infos["rewards"]})

    def last_choice(space: str) -> Callable:
        """The greatest index of each field."""
        made = eval(space, {"spaces": spaces, "np": np})
        if isinstance(made, spaces.Discrete):
            return lambda mask: np.full(2, made.n - 1)
        top = made.nvec - 1 if isinstance(made, spaces.MultiDiscrete) else np.ones(made.shape, int)
        return lambda mask: np.stack([np.ravel(top)] * 2)

    for space in ("spaces.Discrete(3)", "spaces.Discrete(1)", "spaces.Discrete(3, start=5)",
            "spaces.Discrete(3, start=-1)", "spaces.Discrete(3, dtype=np.int32)",
            "spaces.Discrete(3, dtype=np.uint8)", "spaces.MultiDiscrete([4])", "spaces.MultiDiscrete([2, 3])",
            "spaces.MultiDiscrete([3, 3], start=[1, 2])", "spaces.MultiDiscrete([2, 3], dtype=np.int32)",
            "spaces.MultiDiscrete(np.array([[2, 3], [4, 2]]))", "spaces.MultiBinary(1)", "spaces.MultiBinary(3)",
            "spaces.MultiBinary((2, 2))"):
        for async_envs in (False, True):
            yield case(f"{space}{(', async' if async_envs else '')}", [1.0], rewards, space, async_envs)
        yield case(f"ppo_action_mask, {space}", True, ends, "ppo_action_mask", *guest("Spaces", space=space),
            value=members)
    for start in (1, -1, 5):
        yield case(f"get_available_actions() with start={start}", (ROTATING[:6] * 2)[:8], masks, convention="list",
            start=start)
        flags = guest("Doors", convention="list", start=start)
        yield case(f"dqn_action_mask, get_available_actions() with start={start}", True, ends, "dqn_action_mask",
            *flags, value=only_right_doors(start))
    for dtype in ("np.int64", "np.int32", "np.uint8"):
        flags = guest("Lamps", space=f"spaces.MultiDiscrete(np.full((2, 2), 3), dtype={dtype})")
        yield case(f"ppo_gridwise, a grid of {dtype}", True, ends, "ppo_gridwise", *flags, value=members)
    yield case("ppo_gridwise, a grid with start", (True, refused("start")), ends, "ppo_gridwise",
        *guest("Lamps", space="spaces.MultiDiscrete(np.full((2, 2), 3), start=np.ones((2, 2), int))"), value=members)
    for space, words in {"spaces.Box(-1, 1, (2,))": ("Box", "expected Discrete", "discretise"),
            "spaces.Tuple([spaces.Discrete(2)] * 2)": ("Tuple", "expected Discrete"),
            "spaces.Dict(a=spaces.Discrete(2))": ("Dict", "expected Discrete"),
            "spaces.Text(3)": ("Text", "expected Discrete")}.items():
        yield case(f"{space} is refused", refused(*words), ends, "ppo_action_mask", *guest("Spaces", space=space))
    for space in ("spaces.MultiDiscrete([2, 2])", "spaces.MultiBinary(2)"):
        yield case(f"dqn_action_mask, {space}", refused("DQN takes Discrete", "ppo_action_mask.py"), ends,
            "dqn_action_mask", *guest("Spaces", space=space))
    for space in ("spaces.Discrete(3)", "spaces.MultiDiscrete([3, 3, 3])"):
        yield case(f"ppo_gridwise, {space}", refused("one action for each cell", "expected"), ends, "ppo_gridwise",
            *guest("Lamps", space=space))


def only_right_doors(start: int) -> Callable[[], bool]:
    return lambda: only_legal() and {entry[2] - start for entry in LOG if entry[0] == "step"} == {0, 1, 2}


def observation_spaces() -> Iterator[Case]:
    case, name = (cases_of("observations"), "ppo_action_mask")

    def seen(space: str, obs: Any = None) -> list:
        return roll(vector("Seen", space=space, obs=obs), 1)[-1][0][-1].tolist()

    for space, obs, right in [("spaces.Discrete(4)", "2", [0, 0, 1, 0]),
            ("spaces.Discrete(4, start=3)", "5", [0, 0, 1, 0]), ("spaces.Discrete(3, start=-1)", "0-1", [1, 0, 0]),
            ("spaces.MultiDiscrete([2, 3])", "np.array([1, 2])", [0, 1, 0, 0, 1]),
            ("spaces.MultiDiscrete([2, 2], start=[1, 5])", "np.array([2, 5])", [0, 1, 1, 0]),
            ("spaces.MultiBinary(3)", "np.array([1, 0, 1], np.int8)", [1, 0, 1]),
            ("spaces.Box(0, 255, (2, 2), np.uint8)", "np.array([[1, 2], [3, 255]], np.uint8)", [1, 2, 3, 255]),
            ("spaces.Box(-1, 1, (), np.float32)", "np.float32(0.5)", [0.5]),
            ("spaces.Box(-1, 1, (2,), np.float64)", "[0.5, -0.5]", [0.5, -0.5]),
            ("spaces.Tuple([spaces.Discrete(2), spaces.Box(0, 1, (1,))])", "(1, np.ones(1, np.float32))", [0, 1, 1]),
            ("spaces.Dict(a=spaces.Discrete(2), b=spaces.Dict(c=spaces.MultiBinary(1)))",
            "{'a': 0, 'b': {'c': np.ones(1, np.int8)}}", [1, 0, 1])]:
        yield case(f"flat form of {space}", right, seen, space, obs)
    for space in ("spaces.Text(3)", "spaces.Sequence(spaces.Discrete(2))", "spaces.Dict(a=spaces.Text(3))",
            "spaces.Graph(spaces.Discrete(2), None)", "spaces.OneOf([spaces.Discrete(2), spaces.Box(0, 1, (1,))])"):
        yield case(f"{space} is refused", refused("observation space", "no fixed flat form", "expected Box"), ends,
            name, *guest("Seen", space=space))
    somewhere = "environment \\d"
    for space, obs, words in [("spaces.Discrete(5)", "7", ("7", "Discrete|0 to 4")),
            ("spaces.Discrete(5)", "0-1", ("-1", "Discrete|0 to 4")),
            ("spaces.Discrete(5, start=2)", "1", ("1", "Discrete|2 to 6")),
            ("spaces.MultiDiscrete([2, 3])", "np.array([1, 3])", ("3", "MultiDiscrete|0 to 2")),
            ("spaces.Dict(a=spaces.Discrete(2))", "{'a': 2}", ("2", "Discrete|0 to 1")),
            ("spaces.Dict(a=spaces.Discrete(2))", "{'b': 0}", ("expected|'a'",)),
            ("spaces.Tuple([spaces.Discrete(2)] * 2)", "(0,)", ("expected|Tuple",)),
            ("spaces.Box(0, 1, (2,))", "np.full(2, np.nan)", ("nan", "finite")),
            ("spaces.Box(0, 1, (2,))", "np.full(2, np.inf)", ("inf", "finite")),
            ("spaces.Dict(a=spaces.Box(0, 1, (2,)))", "{'a': np.full(2, np.nan)}", ("nan", "finite")),
            ("spaces.Box(0, 1, (2,))", "np.zeros(3)", ("\\(3,\\)", "\\(2,\\)")),
            ("spaces.Box(0, 1, (2,))", "np.zeros((1, 2))", ("\\(1, 2\\)", "\\(2,\\)")),
            ("spaces.Box(0, 1, (2,))", "np.zeros(1)", ("\\(1,\\)", "\\(2,\\)")),
            ("spaces.Box(0, 1, (2,))", "0.5", ("\\(\\)|0\\.5", "\\(2,\\)")),
            ("spaces.Box(0, 1, (2,))", "dict(a=1)", ("expected|observation",)),
            ("spaces.Box(0, 1, (2,))", "'text'.upper()", ("expected|observation",))]:
        flags = guest("Seen", space=space, obs=obs)
        yield case(f"{obs} in {space}", refused(somewhere, *words), ends, name, *flags)
        yield case(f"{obs} in {space}, async", refused(somewhere, *words), ends, name, *flags, "--async-envs")
    none = guest("Doors", fault="obs", value="None")
    for more in ((), ("--async-envs",)):
        yield case(f"None {' '.join(more)}", refused(somewhere, "None", "observation"), ends, name, *none, *more)
    for fault in ("np.full((1, 2, 2), np.nan)", "np.zeros((1, 3, 3))", "np.zeros((2, 2))"):
        yield case(f"a grid map of {fault}", refused(somewhere, "nan" if "nan" in fault else "\\(1, 2, 2\\)"), ends,
            "ppo_gridwise", *guest("Lamps", fault="obs", value=fault))
    yield case("no map on a grid", refused("no map", "expected"), ends, "ppo_gridwise", *guest("Doors"))

    def memory() -> bool:
        tracemalloc.start()
        try:
            roll(vector("Seen", space="spaces.Discrete(20000)"), 3)
            return tracemalloc.get_traced_memory()[1] < 50000000.0
        finally:
            tracemalloc.stop()

    yield case("Discrete(20000) takes less than 50 MB", True, memory)


def streams(name: str, *flags: str) -> set[float]:
    """The first random numbers of every environment that a training resets with a seed."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        ends(name, *guest("Lamps" if name == "ppo_gridwise" else "Rows" if "attention" in name else "Doors", length=99),
             *(("--presence-column", "0") if "attention" in name else ()), *flags)  # fmt: skip
    return {draw for what, seed, draw in (e for e in LOG if e[0] == "reset") if seed is not None}


def seeds() -> Iterator[Case]:
    case = cases_of("seeds")
    for name in SCRIPTS:

        def shared(name: str = name) -> int:
            many = [streams(name, "--seed", seed) for seed in ("1", "2", "3")]
            return sum(map(len, many)) - len(set().union(*many))

        yield case(f"{name}: seeds 1, 2 and 3 share no stream", 0, shared)
        yield case(f"{name}: the same seed, the same streams", True, lambda name=name: streams(name) == streams(name))
    yield case("evaluation has other streams than training", True,
        lambda: len(streams("ppo_action_mask", "--seed", "10000", "--num-envs", "8", "--eval-episodes", "8")) >= 16)
    yield case("reset() without a seed: taken, with a warning", WELL, ends, "ppo_action_mask", *guest("Seedless"),
        says=("seed",))


def flags() -> Iterator[Case]:
    """Each number of each script with a value outside of its range, and everything else that a flag may hold."""
    case = cases_of("flags out of their range")
    for name, module in SCRIPTS.items():
        for flag, hint in get_type_hints(module.Args, include_extras=True).items():
            number = next((kind for kind in (float, int) if kind in (hint, *flat_args(hint))), None)
            option = f"--{flag.replace('_', '-')}"
            values = {float: ["nan", "inf", "-1"], int: ["-1"]}.get(number, [])
            for value in values if "penalty" not in flag else values[:2]:
                yield case(f"{name} {option} {value}", refused(option, "expected|invalid|at least|from|more than"),
                    untouched, name, f"{option}={value}")
    special = {"ppo_action_mask": ["gamma 2", "gae-lambda 1.1", "num-steps 0", "minibatch-size 7",
        "total-timesteps 31", "eval-only nowhere.pt", "resume nowhere.pt", "device tpu", "mask-mode maybe",
        "seed 1.5", "env-kwargs length", "env-id Nowhere-v0", "env-id nowhere:Env-v0", "num-envs many",
        "hidden-dim 0", "seed 4294967296", "device cuda", "no-such-flag 1", "num-threads 0"],
        "dqn_action_mask": ["tau 2", "tau 0", "end-e 1.5", "exploration-fraction 0", "exploration-fraction 2",
        "replay-ratio 0", "replay-ratio 0.3", "buffer-size 8", "learning-starts 1000", "buffer-size 100000000000000",
        "train-frequency 0", "batch-size 0", "target-network-frequency 0"],
        "ppo_attention_mask": ["heads 3", "dim 0", "num-blocks 0", "presence-column one", "heads 0"],
        "ppo_gridwise": ["channels 0", "ratio both", "clip-coef 0"],
        "ppo_recurrent_mask": ["hidden-dim 0", "num-steps 5", "minibatch-size 12"]}
    for name, given in special.items():
        for words in given:
            option, value = words.split()
            if option == "device" and value == "cuda" and torch.cuda.is_available():
                continue
            yield case(f"{name} --{words}", refused(f"--{option}|unrecognized"), untouched, name, f"--{option}",
                value)
    for name in SCRIPTS:
        for flag in ("--resume", "--eval-only"):
            yield case(f'{name} {flag} ""', refused(flag, "expected|empty"), untouched, name, f"{flag}=")
    yield case("--exp-name ..", (WELL, refused("--exp-name")), ends, "ppo_action_mask", "--exp-name", "..")
    for bad in ("/../../up", "a/b", "../up"):
        yield case(f"--exp-name {bad}", refused("--exp-name"), untouched, "ppo_action_mask", "--exp-name", bad)
    yield case("--exp-name of 300 letters", refused("--exp-name"), untouched, "ppo_action_mask", "--exp-name",
        "x" * 300)
    yield case('--exp-name ""', (WELL, refused("--exp-name")), ends, "ppo_action_mask", "--exp-name=")
    yield case("--track without wandb", refused("pip install wandb"), untouched, "ppo_action_mask", "--track")


def flat_args(hint: Any) -> list[Any]:
    return [x for arg in get_args(hint) for x in (arg, *flat_args(arg))]


def untouched(name: str, *flags: str) -> Any:
    """Run a script that has to refuse before it writes anything."""
    before = sorted(Path("..").rglob("*"))
    try:
        return ends(name, *flags)
    finally:
        if isinstance(sys.exception(), ValueError | TypeError) and sorted(Path("..").rglob("*")) != before:
            raise Wrong("refused after something was written") from sys.exception()


def contradictions() -> Iterator[Case]:
    case = cases_of("flags that contradict, steps that are left over")
    ppo, dqn = ("ppo_action_mask", "dqn_action_mask")

    def both(name: str) -> Any:
        path = placed(trained(name))
        return script(name, "--eval-only", path, "--resume", path, "--eval-episodes", "2")

    for name in SCRIPTS:
        yield case(f"{name} --eval-only with --resume", refused("--eval-only", "--resume"), both, name)
        left = ("--num-envs", "16", "--num-steps", "8") if name != dqn else ("--num-envs", "16")
        yield case(f"{name} --total-timesteps 2047", WELL, lambda name=name,
            left=left: ends(name, *left, "--total-timesteps", "2047", says=("1,?920|2,?047",)))
    yield case("--eval-only without episodes", refused("--eval-only", "--eval-episodes"),
        lambda: script(ppo, "--eval-only", placed(trained(ppo))))
    yield case("--async-envs on a batched environment", refused("--async-envs", "batched"), untouched, ppo,
        "--async-envs")
    yield case("an argument that the environment does not take", refused("--env-kwargs", "colour"), untouched, ppo,
        "--env-kwargs", "colour", "1")
    yield case("no mask", refused("no action mask", "--mask-mode none"), untouched, ppo, "--env-id", "CartPole-v1")
    yield case("no mask, --mask-mode none", WELL, ends, ppo, "--env-id", "CartPole-v1", "--mask-mode", "none")
    yield case("--capture-video where nothing renders", (refused("--capture-video|render"), WELL), ends, ppo,
        *guest("Doors"), "--capture-video", "--eval-episodes", "2")
    for name, more in {ppo: ("--minibatch-size", "15"), dqn: ("--batch-size", "15")}.items():
        yield case(f"{name}, two ranks, batches of 15", refused(more[0], "multiple of 2|divide"), as_first_of_two,
            name, *more)
    yield case("two ranks, five environments", refused("--num-envs", "multiple of 2"), as_first_of_two, ppo,
        "--num-envs", "5")


def as_first_of_two(name: str, *flags: str) -> Any:
    """What torchrun's first rank does with these flags, before it meets the second."""
    with mock.patch.dict(os.environ, RANK="0", WORLD_SIZE="2"):
        return untouched(name, *flags)


def refused_by_process(name: str, *flags: str, **how: Any) -> Any:
    """A refusal by a process: exit code, and the last lines that it printed."""
    done = finish(process(name, "--total-timesteps", "64", *flags, **how))
    if done.code:
        raise ValueError(done.text[-6000:])
    return done


def resuming() -> Iterator[Case]:
    case, ppo = (cases_of("resumed and evaluated wrongly"), "ppo_action_mask")

    once = "t == 100 and 'stop' not in LOG and [LOG.append('stop'), os.kill(os.getpid(), signal.SIGTERM)]"

    def steps_after(name: str, steps: str, *more: str) -> int:
        path = placed(trained(name))
        check(script(name, "--resume", path, "--total-timesteps", steps, *more), 0)
        return load(Path(path))["iteration"] * 32

    for name in SCRIPTS:
        yield case(f"{name}: prolonged to 128 steps", 128, steps_after, name, "128")
        default = str(SCRIPTS[name].Args().total_timesteps)

        def to_the_default(name: str = name, default: str = default) -> tuple[int, bool]:
            """With M equal to the flag's default; a signal ends it after a while, all the same to a training."""
            kinds = {"ppo_attention_mask": "Sets", "ppo_gridwise": "Lamps"}
            flags = guest(kinds.get(name, "Doors"), length=500, fault="step", at=100, value=once)
            path = placed(trained(name, *flags))
            LOG.clear()
            with contextlib.suppress(ValueError, SystemExit):
                script(name, "--resume", path, "--total-timesteps", default)
            saved = load(Path(path))
            return (saved["args"]["total_timesteps"], saved["iteration"] > 2)

        yield case(f"{name}: prolonged to the flag's default", (int(default), True), to_the_default, limit=60)
    yield case("fewer steps than were done", (refused("--total-timesteps", "64"), 64), steps_after, ppo, "32")
    yield case("says what happens to the step size", WELL, lambda: check(script(ppo, "--resume", placed(trained(ppo)),
        "--total-timesteps", "128"), 0, "learning rate|step size|anneal"))

    def finished(name: str) -> bool:
        path = placed(trained(name))
        before = load(Path(path))
        check(script(name, "--resume", path), 0)
        return difference(before, load(Path(path))) is None

    for name in SCRIPTS:
        yield case(f"{name}: a finished run resumed changes nothing", True, finished, name)
        for flag in ("--resume", "--eval-only"):
            more = ("--eval-episodes", "2")
            yield case(f"{name} {flag} no-such-file", refused(f"{flag} none.pt", "no such file"), untouched, name,
                flag, "none.pt", *more)
    for flag in ("--resume", "--eval-only"):
        yield case(f"{flag} a folder", refused(flag, "file"), ends, ppo, flag, ".", "--eval-episodes", "2")
    given = {"another value": (("--gamma", "0.9"), ("--gamma 0.9", "0.99")),
        "another environment": (("--env-id", "Taxi-v4"), ("--env-id Taxi-v4",)),
        "other arguments of the environment": (("--env-kwargs", "num_machines", "4"), ("--env-kwargs",)),
        "another number of environments": (("--num-envs", "8"), ("--num-envs 8",))}
    for title, (flags, words) in given.items():
        yield case(f"--resume with {title}", refused(*words),
            lambda flags=flags: script(ppo, "--resume", placed(trained(ppo)), *flags))
    yield case("--resume with a flag's default where the checkpoint has another value", refused("--gamma", "0.9"),
        lambda: script(ppo, "--resume", placed(trained(ppo, "--gamma", "0.9")), "--gamma", "0.99"))
    yield case("--eval-only in another world", refused("trained on", "choices"), lambda: script(ppo, "--eval-only",
        placed(trained(ppo)), "--eval-episodes", "2", "--env-kwargs", "num_machines", "4"))
    yield case("written by two ranks, resumed by one", refused("2 ranks", "expected torchrun"), changed, ppo,
        lambda saved: saved.update(ranks=saved["ranks"] * 2))

    def by_two() -> Any:
        path = str(Path(placed(trained(ppo))).absolute())
        return refused_by_process(ppo, "--resume", path, ranks=2)

    yield case("written by one rank, resumed by two", refused("1 rank", "expected torchrun"), by_two, limit=90)


def checkpoints() -> Iterator[Case]:
    case, ppo = (cases_of("checkpoints that are broken"), "ppo_action_mask")

    def with_bytes(name: str, change: Callable[[bytes], bytes], flag: str = "--resume") -> Any:
        path = placed(change(trained(name)))
        try:
            return script(name, flag, path, "--eval-episodes", "2")
        except (ValueError, TypeError):
            if Path(path).read_bytes() != change(trained(name)):
                raise Wrong("refused, and the file was changed") from None
            raise

    def flip(seed: int, content: bytes) -> bytes:
        place = random.Random(seed).randrange(8 * len(content))
        return content[: place // 8] + bytes([content[place // 8] ^ 1 << place % 8]) + content[place // 8 + 1 :]

    whole = refused("checkpoint.pt", "whole|checksum|damaged|corrupt")
    for name in SCRIPTS:
        for share in (0.0, 0.3, 0.9, 0.999):
            yield case(f"{name}: the first {share:.1%} of the file", whole, with_bytes, name, lambda x,
                share=share: x[: int(share * len(x))])
        for seed in range(8):
            yield case(f"{name}: bit flip {seed}", whole, with_bytes, name, partial(flip, seed))
        yield case(f"{name}: bit flip, --eval-only", whole, with_bytes, name, partial(flip, 9), "--eval-only")
    yield case("text", whole, with_bytes, ppo, lambda x: b"not a checkpoint")
    yield case("zeros in the middle", whole, with_bytes, ppo, lambda x: x[:5000] + bytes(5000) + x[10000:])
    yield case("bytes after the end", (whole, Ended(0, "")), with_bytes, ppo, lambda x: x + b"x" * 100)

    def code_in_it(content: bytes) -> bytes:
        file = io.BytesIO()
        torch.save({"script": ppo, "args": {}, "run": partial(os.system, "touch owned")}, file)
        return file.getvalue()

    yield case("code in it", whole, with_bytes, ppo, code_in_it)

    def spoil(value: float, saved: dict) -> None:
        weights = next(iter(saved["model"].values()))
        weights[(0,) * weights.dim()] = value

    for name in SCRIPTS:
        for flag in ("--resume", "--eval-only"):
            for value in (np.nan, np.inf):
                yield case(f"{name} {flag}: weights with {value}", refused("checkpoint.pt", "nan|inf|finite"), changed,
                    name, partial(spoil, value), flag)
        other = "dqn_action_mask" if name == ppo else ppo
        yield case(f"{name} of {other}.py", refused(f"checkpoint of {other}.py, expected one of {name}.py"),
            lambda name=name, other=other: script(name, "--resume", placed(trained(other))))
    words = ("checkpoint.pt", "whole|model|weights|shape|version|generator|optimizer")
    for title, change in [
            ("no weights", lambda saved: saved.pop("model")),
            ("a layer less", lambda saved: saved["model"].popitem()),
            ("a layer more", lambda saved: saved["model"].update(more=torch.zeros(2))),
            ("weights of another shape", lambda saved: saved["model"].update({"actor.0.weight": torch.zeros(3, 3)})),
            ("no optimizer", lambda saved: saved.pop("optimizer")),
            ("no generators", lambda saved: saved["ranks"][0].pop("generator")),
            ("another observation", lambda saved: saved.update(obs_shape=[99]))]:
        yield case(title, refused(*words), changed, ppo, change, "--resume")

    def copied(name: str, edit: Callable[[str], str], swap: bool) -> str:
        """Train with one of a script and its edited copy, and resume with the other."""
        Path("mine").mkdir()
        copy = Path(f"mine/{name}.py").absolute()
        copy.write_text(edit((ROOT / f"{name}.py").read_text()))
        first, second = (copy, ROOT / f"{name}.py") if swap else (ROOT / f"{name}.py", copy)
        script(first, "--total-timesteps", "64")
        return script(second, "--resume", str(run_folder() / "checkpoint.pt"))

    def more(text):
        return text.replace("    vf_coef:", '    mine: float = 2.5\n    """my own"""\n    vf_coef:', 1)
    for name in (ppo, "ppo_gridwise"):
        yield case(f"{name}: a copy with a flag more resumes what the script wrote", WELL,
            lambda name=name: check(copied(name, more, False), 0), limit=60)
        yield case(f"{name}: the script resumes what a copy with a flag more wrote", (refused("mine"), WELL),
            lambda name=name: check(copied(name, more, True), 0, "mine"), limit=60)

    def kept_beside(name: str) -> bool:
        script(name, "--total-timesteps", "128", "--checkpoint-every", "1")
        found = [load(path)["iteration"] for path in run_folder().glob("*checkpoint*")]
        return sorted(found)[-2:] in ([3, 4], [4, 4])

    for name in SCRIPTS:
        yield case(f"{name}: the checkpoint before the last is kept", True, kept_beside, name)


def bad_masks() -> Iterator[Case]:
    case = cases_of("masks that are wrong")
    somewhere = "environment \\d"
    for value, words in {"np.array([1, 0])": ("shape", "\\(3,\\)"), "np.ones((1, 3), np.int8)": ("shape", "\\(3,\\)"),
            "np.ones(4)": ("shape", "\\(3,\\)"), "np.array(1)": ("shape", "\\(3,\\)"),
            "np.array([np.nan, 1, 1])": ("nan", "0"), "np.array([0.5, 1, 1])": ("0.5",),
            "np.array([-1, 1, 1])": ("-1",), "np.array([2, 1, 1])": ("holds 2",), "np.array([256, 1, 1])": ("256",),
            "np.zeros(3, np.int8)": ("no legal action",), "np.zeros(3, bool)": ("no legal action",),
            "np.array(['a', 'b', 'c'])": ("dtype|numbers",), "[[1], [1, 1]]": ("mask",),
            "None": ("no action mask", "--mask-mode none"), "dict(a=1)": ("mask",)}.items():
        for name in ("ppo_action_mask", "dqn_action_mask"):
            flags = guest("Doors", fault="mask", value=value)
            yield case(f"{name}: {value}", refused(somewhere, *words), ends, name, *flags)
    for convention in ("method", "obs"):
        for value, words in {"np.array([0.5, 1, 1])": ("0.5",), "np.zeros(3, np.int8)": ("no legal action",),
                "np.ones(4, np.int8)": ("\\(3,\\)",), "np.array([1, np.nan, 1])": ("nan",)}.items():
            flags = guest("Doors", convention=convention, fault="mask", value=value)
            yield case(f"mask by {convention}: {value}", refused(somewhere, *words), ends, "ppo_action_mask", *flags)
            yield case(f"mask by {convention}: {value}, async", refused(somewhere, *words), ends, "ppo_action_mask",
                *flags, "--async-envs")
    for value, words in {"[]": ("no legal action",), "[3]": ("3",), "[0, -1]": ("-1",), "[0.5]": ("0.5",),
            "None": ("get_available_actions",)}.items():
        flags = guest("Doors", convention="list", fault="mask", value=value)
        yield case(f"get_available_actions() gives {value}", refused(somewhere, *words), ends, "ppo_action_mask",
            *flags)
    for value in ("{}", "dict(action_mask=None)"):
        flags = guest("Doors", fault="info", value=value)
        yield case(f"an info of {value}", refused(somewhere, "no action mask"), ends, "ppo_action_mask", *flags)
    yield case("an info of None", refused(somewhere, "info", "None|dict"), ends, "ppo_action_mask",
        *guest("Doors", fault="info", value="None"))
    yield case("the first mask is missing", refused(somewhere, "no action mask"), untouched, "ppo_action_mask",
        *guest("Doors", fault="info", value="{}", at=0))

    def named() -> list:
        envs = vector("Doors", 3)
        inner = envs.unwrapped.envs[2].unwrapped
        inner.fault, inner.value = ("mask", "np.array([0.5, 1, 1])")
        return roll(envs, 3)

    yield case("the third of three", refused("Environment 2", "0.5"), named)
    raising = guest("Doors", convention="method", fault="mask", value="{}['gone']")
    yield case("action_masks() raises", refused(somewhere, "action_masks|KeyError", "gone"), ends, "ppo_action_mask",
        *raising)
    unready = guest("Doors", convention="method", fault="mask",
        value="(_ for _ in ()).throw(NotImplementedError('later'))", at=0)
    yield case("action_masks() raises NotImplementedError", refused("no action mask", "--mask-mode none"), ends,
        "ppo_action_mask", *unready)
    flags = guest("Renumbered", convention="method")
    yield case("a wrapper renumbers actions between the mask and us", refused("Renumbered", "action"), ends,
        "ppo_action_mask", *flags)
    for lacks in ("_action_mask", "final_info", "final_obs", "action_mask"):
        yield case(f"own vector environment without {lacks}", refused(f"{lacks}|no action mask"), ends,
            "ppo_action_mask", *guest("Batched", lacks=lacks))
    for mode in ("NEXT_STEP", "DISABLED"):
        yield case(f"own vector environment, {mode}", refused("SAME_STEP", mode), ends, "ppo_action_mask",
            *guest("Batched", mode=mode))
    for fault, value, words in [("agent_mask", "None", ("agent mask", "expected")),
            ("agent_mask", "np.full((2, 2), 0.5)", ("agent mask", "0.5")),
            ("agent_mask", "np.full((2, 2), np.nan)", ("agent mask", "nan")),
            ("agent_mask", "np.full((2, 2), -1)", ("agent mask", "-1")),
            ("agent_mask", "np.ones((3, 3))", ("agent mask", "\\(2, 2\\)|\\(H, W\\)")),
            ("mask", "None", ("action mask", "expected")),
            ("mask", "np.full((3, 2, 2), 0.5)", ("action mask", "0.5")),
            ("mask", "np.full((3, 2, 2), np.nan)", ("action mask", "nan")),
            ("mask", "np.ones((2, 2, 3), np.int8)", ("action mask", "\\(3, 2, 2\\)|\\(3, H, W\\)")),
            ("mask", "np.ones((4, 2, 2), np.int8)", ("action mask", "\\(3, 2, 2\\)|\\(3, H, W\\)")),
            ("mask", "np.zeros((3, 2, 2), np.int8)", ("cell \\(0, 0\\)", "no legal action"))]:
        yield case(f"a grid's {fault} of {value}", refused(*words), ends, "ppo_gridwise",
            *guest("Lamps", fault=fault, value=value))


def odd_masks() -> Iterator[Case]:
    """Masks in a form of their own, and states in which nobody asks for one."""
    case = cases_of("masks that are right in their own way")
    doors = "np.arange(3) == t % 3"
    for name, value in {"bool": doors, "list": f"({doors}).tolist()", "tuple": f"tuple(({doors}).tolist())",
            "float": f"({doors}).astype(float)", "int64": f"({doors}).astype(np.int64)",
            "uint8": f"({doors}).astype(np.uint8)", "read-only": f"np.broadcast_to({doors}, 3)",
            "a type that changes": f"({doors}).astype(float if t % 2 else np.int8)"}.items():
        yield case(name, (ROTATING[:6] * 2)[:8], masks, fault="mask", value=value, at=0)
        yield case(f"{name}, async", (ROTATING[:6] * 2)[:8], masks, options={"async_envs": True}, fault="mask",
            value=value, at=0)

    def flat(mask: str, space: str, async_envs: bool) -> list:
        envs = vector("Spaces", options={"async_envs": async_envs}, space=space, mask=mask)
        return roll(envs, 1, lambda m: np.array([[0, 0], [1, 1]]))[-1][1][-1].tolist()

    for async_envs in (False, True):
        more = ", async" if async_envs else ""
        yield case(f"a tuple of arrays for MultiDiscrete{more}", [1, 1, 1, 1, 0], flat,
            "(np.ones(2, np.int8), np.array([1, 1, 0], np.int8))", "spaces.MultiDiscrete([2, 3])", async_envs)
        yield case(f"a list of lists for MultiDiscrete{more}", [1, 1, 1, 1, 0], flat, "[[1, 1], [1, 1, 0]]",
            "spaces.MultiDiscrete([2, 3])", async_envs)
    last = "if t == self.length else"
    states = {"a terminal info of {}": ("info", f"{{}} {last} info", {}),
        "a terminal info of None for the mask": ("info", f"dict(action_mask=None) {last} info", {}),
        "a terminal mask of zeros": ("mask", f"np.zeros(3) {last} mask", {}),
        "action_masks() raises after the end": ("mask", f"{{}}[t] {last} mask", {"convention": "method"}),
        "get_available_actions() is empty at the end": ("mask", f"[] {last} mask", {"convention": "list"}),
        "a terminal mask of another length": ("mask", f"np.ones(7) {last} mask", {"convention": "method"})}
    for title, (fault, value, kwargs) in states.items():
        for name in ("ppo_action_mask", "dqn_action_mask"):
            flags = guest("Doors", fault=fault, value=value, at=0, **kwargs)
            yield case(f"{name}: {title}", True, ends, name, *flags, value=only_legal)
        flags = guest("Doors", fault=fault, value=value, at=0, **kwargs)
        yield case(f"{title}, async", WELL, ends, "ppo_action_mask", *flags, "--async-envs")
    flags = guest("Doors", fault="mask", value=f"np.zeros(3) {last} mask", at=0, cut=True)
    yield case("a truncated state with a mask of zeros, PPO", True, ends, "ppo_action_mask", *flags, value=only_legal)
    for value in ("np.array([0.5, 1, 1])", "np.zeros(3)", "np.ones(7)", "{}['gone']", "np.array([np.nan] * 3)"):
        flags = guest("Doors", convention="method", fault="mask", value=value, at=0)
        yield case(f"--mask-mode none does not read {value}", WELL, ends, "ppo_action_mask", *flags, "--mask-mode",
            "none")
    unready = "(_ for _ in ()).throw(NotImplementedError('later'))"
    for convention in ("method", "list"):
        flags = guest("Doors", convention=convention, fault="mask", value=unready, at=0)
        yield case(f"{convention} that raises NotImplementedError, --mask-mode none", WELL, ends, "ppo_action_mask",
            *flags, "--mask-mode", "none")
    yield case("no agent on a grid, ever", WELL, ends, "ppo_gridwise",
        *guest("Lamps", fault="agent_mask", value="np.zeros((2, 2))", at=0))
    yield case("a grid's masks as bool", True, ends, "ppo_gridwise",
        *guest("Lamps", fault="agent_mask", value="agent_mask == 1", at=0), value=only_legal)


def steps() -> Iterator[Case]:
    case, name = (cases_of("what step and reset give"), "ppo_action_mask")
    somewhere = "environment \\d"
    results = {("reward", "np.nan"): ("reward", "nan"), ("reward", "0-np.inf"): ("reward", "inf"),
        ("reward", "None"): ("reward", "None|nan"), ("reward", "str('much')"): ("reward", "much"),
        ("reward", "np.ones(2)"): ("reward", "\\(2,\\)|\\[1|size 1"), ("reward", "dict(a=1.0)"): ("reward",),
        ("terminated", "None"): ("terminated|None",), ("terminated", "str('no')"): ("terminated|no",),
        ("terminated", "np.array([True, False])"): ("terminated|shape|flag",),
        ("result", "(obs, 1.0, False, info)"): ("4", "5|terminated"),
        ("result", "(obs, 1.0, False)"): ("3", "5|terminated"), ("result", "obs"): ("step", "5|terminated"),
        ("result", "None"): ("step", "5|terminated"), ("step", "1 / 0"): ("ZeroDivisionError|division by zero",),
        ("step", "{}['lost']"): ("KeyError|lost",), ("step", "self.lost"): ("lost",),
        ("reset", "1 / 0"): ("ZeroDivisionError|division by zero",), ("reset_result", "obs"): ("reset", "info|2"),
        ("reset_result", "(obs,)"): ("reset", "info|2"), ("reset_result", "None"): ("reset", "info|2|None")}
    for (fault, value), words in results.items():
        at = 0 if "reset" in fault else 2
        for more in ((), ("--async-envs",)):
            flags = (*guest("Doors", fault=fault, value=value, at=at), *more)
            yield case(f"{fault}: {value}{(', async' if more else '')}", refused(somewhere, *words), ends, name,
                *flags)
    for value in ("1 / 0", "{}['lost']"):
        flags = (*guest("Doors", fault="step", value=value),)
        yield case(f"dqn_action_mask: step raises {value}", refused(somewhere), ends, "dqn_action_mask", *flags)
        yield case(f"ppo_gridwise: step raises {value}", refused(somewhere), ends, "ppo_gridwise",
            *guest("Lamps", fault="step", value=value))
        yield case(f"ppo_attention_mask: step raises {value}", refused(somewhere), ends, "ppo_attention_mask",
            *guest("Sets", fault="step", value=value))

    def rewards(value: str, async_envs: bool = False) -> list:
        got = roll(vector("Doors", options={"async_envs": async_envs}, fault="reward", value=value, at=0), 2)
        return got[-1][2]["rewards"].tolist()

    for value in ("np.ones(1)", "np.array(1.0)", "np.float32(1)", "1", "True", "[1.0]", "np.ones((1, 1))"):
        for async_envs in (False, True):
            yield case(f"a reward of {value}{(', async' if async_envs else '')}", [1.0, 1.0], rewards, value,
                async_envs)
    for value in ("np.bool_(t >= 6)", "int(t >= 6)", "np.array(t >= 6)", "np.array([t >= 6])"):
        flags = guest("Doors", fault="terminated", value=value, at=0)
        yield case(f"terminated as {value}", True, ends, name, *flags, value=only_legal)
    flags = guest("Doors", fault="truncated", value="t >= 6", at=0)
    yield case("terminated and truncated at once", True, ends, name, *flags, value=only_legal)
    yield case("episodes of one step", True, ends, name, *guest("Doors", length=1), value=only_legal)
    yield case("episodes that never end", True, ends, name, *guest("Doors", length=10**9), value=only_legal)
    yield case("a reset that ends an episode before it began", WELL, ends, name, *guest("Doors", length=0))
    yield case("close() raises", WELL, ends, name, *guest("Doors", fault="close", value="1 / 0"),
        says=("close|division",))


def workers() -> Iterator[Case]:
    case, name = (cases_of("workers under --async-envs"), "ppo_action_mask")

    def works(**fault: Any) -> Any:
        """With five seconds of patience, in place of minutes."""
        with mock.patch("envs.foreign.AsyncGuests.patience", 5.0):
            return ends(name, *guest("Doors", **fault), "--async-envs")

    gone, late = refused("environment \\d", "died|exit|kill|ended|gone"), refused("environment \\d", "5.* s")
    for title, right, fault in [
            ("a worker that leaves", gone, {"fault": "step", "value": "os._exit(3)"}),
            ("a worker that is killed", gone, {"fault": "step", "value": "os.kill(os.getpid(), signal.SIGKILL)"}),
            ("a worker that is killed at reset", gone, {"fault": "reset", "value": "os.kill(os.getpid(), 9)", "at": 0}),
            ("a worker that cannot be made", refused("colour"), {"colour": "1"}),
            ("a worker that hangs", late, {"fault": "step", "value": "time.sleep(1e6)"}),
            ("a worker that hangs at reset", late, {"fault": "reset", "value": "time.sleep(1e6)", "at": 0})]:
        yield case(title, right, works, **fault, limit=60)
    yield case("evaluation and pictures too", WELL, ends, name, *guest("Painted"), "--async-envs", "--eval-episodes",
        "2", says=("Evaluation",), limit=60)


def evaluations() -> Iterator[Case]:
    case, scored = (cases_of("what is finished is not lost"), ("--eval-episodes", "4"))
    kinds = {"ppo_action_mask": "Doors", "dqn_action_mask": "Doors", "ppo_gridwise": "Lamps",
        "ppo_attention_mask": "Sets", "ppo_recurrent_mask": "Doors"}
    strict = guest("Doors", strict=True)

    def with_file(name: str, *flags: str, says: tuple[str, ...]) -> str:
        path = placed(trained(name, *flags))
        return check(script(name, "--eval-only", path, *scored), 0, *says)

    for name in ("ppo_action_mask", "dqn_action_mask"):
        yield case(f"{name}: an environment that raises on an illegal action", WELL, ends, name, *strict, *scored,
            says=("episodic_return 6", "closed"))
        yield case(f"{name}: the same with --eval-only", WELL, with_file, name, *strict,
            says=('"episodic_return": 6', "closed"))
    lost = "np.zeros(3) if t and not LOG[-1][3] else mask"
    yield case("a mask that is empty where illegal play leads", WELL, ends, "ppo_action_mask",
        *guest("Doors", fault="mask", value=lost, at=1), *scored, says=("episodic_return 6", "no legal action|mask"))
    for title, value in {"success as text": "info | dict(success='maybe')",
            "success of None": "info | dict(success=None)", "success as an array": "info | dict(success=np.ones(2))",
            "success as a flag": "info | dict(success=True)",
            "optimal_return of 0": "info | dict(optimal_return=0.0)",
            "optimal_return of None": "info | dict(optimal_return=None)",
            "optimal_return of NaN": "info | dict(optimal_return=np.nan)",
            "success in some episodes only": "info | (dict(success=1.0) if id(self) % 32 else {})"}.items():
        flags = guest("Doors", fault="info", value=value, at=0)
        yield case(title, WELL, ends, "ppo_action_mask", *flags, *scored, says=("Evaluation: episodic_return 6",))
    yield case("close() raises", WELL, ends, "ppo_action_mask", *guest("Doors", fault="close", value="1 / 0"),
        *scored, says=("Evaluation: episodic_return 6", "close|division"))
    for name, kind in kinds.items():
        flags = (*guest(kind, length=10**9), *scored, "--eval-max-steps", "40")
        yield case(f"{name}: an evaluation that never ends, --eval-max-steps 40", WELL, ends, name, *flags,
            says=("cut", "40|--eval-max-steps"))
    yield case("CliffWalking-v1 --mask-mode none ends", WELL, ends, "ppo_action_mask", "--env-id", "CliffWalking-v1",
        "--mask-mode", "none", *scored, "--eval-max-steps", "200", says=("Evaluation: episodic_return", "cut"))
    yield case("the same with the bound as it is", WELL, ends, "ppo_action_mask", "--env-id", "CliffWalking-v1",
        "--mask-mode", "none", "--eval-episodes", "1", says=("Evaluation: episodic_return", "cut"), limit=120)


def renderers() -> Iterator[Case]:
    case, name = (cases_of("renderers"), "ppo_action_mask")
    says = ("Evaluation: episodic_return 6",)
    pictures = {"None": "None", "a list of frames": "[np.zeros((8, 8, 3), np.uint8)]", "an empty list": "list()",
        "text": "str('....')", "grey frames": "np.zeros((8, 8), np.uint8)", "float frames": "np.zeros((8, 8, 3))",
        "one channel": "np.zeros((8, 8, 1), np.uint8)", "four channels": "np.zeros((8, 8, 4), np.uint8)",
        "channels first": "np.zeros((3, 8, 8), np.uint8)", "an empty frame": "np.zeros((0, 0, 3), np.uint8)",
        "a frame that grows": "np.zeros((8 + self.t, 8, 3), np.uint8)", "an exception": "1 / 0",
        "an import error": "__import__('no_such_package')"}
    for title, picture in pictures.items():
        flags = (*guest("Painted", picture=picture), "--eval-episodes", "4")
        yield case(f"render() gives {title}", WELL, ends, name, *flags, says=says)
        right = (WELL, refused("render|picture|--capture-video"))
        yield case(f"render() gives {title} --capture-video", right, untouched, name, *flags, "--capture-video")
    for title, flags in {"no render_mode argument": guest("Unpainted"),
            "an import error with render_mode": guest("Painted", needs="__import__('no_such_package')"),
            "an exception with render_mode": guest("Painted", needs="1 / 0")}.items():
        yield case(title, WELL, ends, name, *flags, "--eval-episodes", "4", says=(*says, "no picture"))
        yield case(f"{title} --capture-video", (WELL, refused("--capture-video|render_mode|picture")), ends, name,
            *flags, "--eval-episodes", "4", "--capture-video", says=says)

    def drawn(picture: str) -> bool:
        from PIL import Image

        ends(name, *guest("Painted", picture=picture), "--eval-episodes", "4", "--capture-video", says=says)
        return Image.open(run_folder() / "agent.gif").size == (8, 8)

    yield case("a renderer that is right", True, drawn, "np.zeros((8, 8, 3), np.uint8)")


def wait_for(pattern: str, running: Any) -> None:
    while not list(Path().glob(pattern)) and running.poll() is None:
        time.sleep(0.02)


def machines() -> Iterator[Case]:
    """Disks, signals, folders."""
    case, ppo = (cases_of("full disks, signals, folders"), "ppo_action_mask")

    def full(name: str) -> str:
        """No file may grow beyond half of a checkpoint: what a full disk does, for one process."""
        path = Path(placed(trained(name)))
        half = len(trained(name)) // 2
        done = finish(process(name, "--resume", str(path), "--total-timesteps", "128", file_size=half))
        left = [str(p) for p in path.parent.glob("*.tmp")]
        whole = path.read_bytes() == trained(name)
        if not done.code or left or not whole:
            raise Wrong(f"exit code {done.code}, left {left}, old checkpoint whole: {whole}")
        if "Traceback" in done.text and (not re.search("ValueError: .*(disk|space|written)", done.text)):
            raise Wrong(f"no sentence: {last_line(done.text)}")
        return check(done, done.code, "checkpoint.pt", "disk|space|File too large")

    def stopped(name: str, signum: int) -> str:
        running = process(name, "--total-timesteps", "10000000", "--checkpoint-every", "5")
        wait_for("runs/*/checkpoint.pt", running)
        running.send_signal(signum)
        done = finish(running)
        return check(done, 128 + signum, f"Stopped by {signal.Signals(signum).name}. Continue with --resume runs")

    def in_evaluation(name: str) -> str:
        kinds = {"ppo_gridwise": "Lamps", "ppo_attention_mask": "Sets"}
        endless = guest(kinds.get(name, "Doors"), length=10**9)
        endless += ("--eval-episodes", "4", "--eval-max-steps", str(10**9))
        running = process(name, "--total-timesteps", "64", *endless)
        wait_for("runs/*/checkpoint.pt", running)
        time.sleep(1)
        running.send_signal(signal.SIGINT)
        return check(finish(running), 130, "Stopped by SIGINT after the training")

    for name in SCRIPTS:
        yield case(f"{name}: a full disk", WELL, full, name, limit=60)
        for signum in (signal.SIGINT, signal.SIGTERM):
            yield case(f"{name}: {signum.name} in training", WELL, stopped, name, signum, limit=60)
        yield case(f"{name}: SIGINT in evaluation", WELL, in_evaluation, name, limit=60)

    def twice() -> int:
        time.sleep(1 - time.time() % 1)
        for _ in range(3):
            ends(ppo)
        return len(list(Path("runs").iterdir()))

    yield case("three runs at once with the same flags: folders", 3, twice)

    def blocked() -> Any:
        Path("runs").write_text("not a folder")
        return ends(ppo)

    yield case("runs is a file", refused("runs"), blocked)
    module = "import gymnasium as gym\nfrom benchmark.guests import Doors\ngym.register('Mine-v0', Doors)\n"

    def in_the_working_folder(name: str, content: str) -> Ended:
        Path(f"{name}.py").write_text(content)
        return script(ppo, "--env-id", f"{name}:{name.title()}-v0", "--total-timesteps", "64")

    yield case("--env-id mine:Mine-v0 in the working folder", Ended(0, ""), in_the_working_folder, "mine", module)
    yield case("a module that raises", refused("--env-id broken:Broken-v0", "division"), in_the_working_folder,
        "broken", "1 / 0")
    yield case("a module that registers nothing", refused("--env-id idle:Idle-v0"), in_the_working_folder, "idle", "")
    yield case("an environment whose making raises", refused("Spaces-v0", "division"), untouched, ppo,
        *guest("Spaces", space="1 / 0"))


def classes() -> Iterator[Case]:
    case = cases_of("classes to copy")
    Categorical, Map = (ppo_action_mask.CategoricalMasked, ppo_gridwise.CategoricalMap)
    logits, legal = (torch.zeros(2, 3), torch.tensor([[True, True, False]] * 2))
    shape = refused("mask", "shape", "expected")
    for title, arguments, right in [("CategoricalMasked, mask of uint8", (logits, legal.byte()),
            refused("uint8", "torch.bool")),
            ("CategoricalMasked, mask of float", (logits, legal.float()), refused("float32", "torch.bool")),
            ("CategoricalMasked, mask of int64", (logits, legal.long()), refused("int64", "torch.bool")),
            ("CategoricalMasked, mask of one row", (logits, legal[0]), shape),
            ("CategoricalMasked, mask of shape (1, 3)", (logits, legal[:1]), shape),
            ("CategoricalMasked, transposed mask", (logits, legal.T), shape), ("CategoricalMasked, a row of False",
            (logits, legal & torch.tensor([[True], [False]])), refused("row", "1")),
            ("CategoricalMasked, nvec of another sum", (logits, legal, (2, 2)), refused("nvec", "3|4")),
            ("CategoricalMasked, nvec of equal fields, another sum",
            (torch.zeros(2, 6), torch.ones(2, 6, dtype=torch.bool), (2, 2)), refused("nvec")),
            ("CategoricalMasked, nvec of unequal fields, another sum",
            (torch.zeros(2, 6), torch.ones(2, 6, dtype=torch.bool), (2, 3)), refused("nvec")),
            ("CategoricalMasked, nvec with 0", (logits, legal, (3, 0)), refused("nvec")),
            ("CategoricalMasked, nvec with a negative", (logits, legal, (4, -1)), refused("nvec")),
            ("CategoricalMasked, nvec of nothing", (logits, legal, ()), refused("nvec"))]:
        yield case(title, right, Categorical, *arguments)

    def probs(values: list[float], dtype: torch.dtype = torch.float32) -> list[float]:
        dist = Categorical(torch.tensor([values], dtype=dtype), torch.tensor([[True, True, False]]))
        samples = [dist.sample().item() for _ in range(200)] + [dist.mode.item()]
        return [*(round(x, 4) for x in dist.probs[0].tolist()), 2 in samples]

    lowest = torch.finfo(torch.float32).min
    for title, values, dtype, right in [("a legal logit of -inf", [-np.inf, 0, 5], torch.float32, [0, 1, 0, False]),
            ("both legal logits of -inf", [-np.inf, -np.inf, 5], torch.float32, None),
            ("a legal logit of the lowest number", [lowest, 0, 5], torch.float32, [0, 1, 0, False]),
            ("both legal logits of the lowest number", [lowest, lowest, 5], torch.float32, [0.5, 0.5, 0, False]),
            ("an illegal logit of inf", [0, 0, np.inf], torch.float32, [0.5, 0.5, 0, False]),
            ("an illegal logit of NaN", [0, 0, np.nan], torch.float32, [0.5, 0.5, 0, False]),
            ("a legal logit of -inf in float16", [-np.inf, 0, 5], torch.float16, [0, 1, 0, False]),
            ("a legal logit of the lowest number in float64", [torch.finfo(torch.float64).min] * 2 + [5],
            torch.float64, [0.5, 0.5, 0, False])]:
        right = (refused("inf"), [0.5, 0.5, 0, False]) if right is None else right
        yield case(f"CategoricalMasked, {title}", right, probs, values, dtype)
    agents = torch.tensor([[[True, False], [False, True]]])
    free = torch.ones(1, 3, 2, 2, dtype=torch.bool)
    for title, arguments, words in [("mask of uint8", (torch.zeros(1, 3, 2, 2), agents.byte(), free),
            ("mask", "bool")), ("mask of float", (torch.zeros(1, 3, 2, 2), agents.float(), free), ("mask", "bool")),
            ("mask of another map", (torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 3, dtype=torch.bool), free),
            ("mask", "shape")), ("transposed mask",
            (torch.zeros(1, 3, 2, 4), torch.ones(1, 4, 2, dtype=torch.bool), None), ("mask", "shape")),
            ("mask without a batch", (torch.zeros(1, 3, 2, 2), agents[0], free), ("mask", "shape")),
            ("mask of one map for two", (torch.zeros(2, 3, 2, 2), agents, None), ("shape", "expected")),
            ("action mask of uint8", (torch.zeros(1, 3, 2, 2), agents, free.byte()), ("mask", "bool")),
            ("action mask with actions behind", (torch.zeros(1, 3, 2, 2), agents, free.movedim(1, -1)),
            ("mask", "shape")),
            ("action mask of fewer actions", (torch.zeros(1, 3, 2, 2), agents, free[:, :2]), ("mask", "shape")),
            ("action mask of one agent for two", (torch.zeros(2, 3), agents, torch.ones(1, 3, dtype=torch.bool)),
            ("mask", "shape")),
            ("logits of three agents for two", (torch.zeros(3, 3), agents, None), ("logits", "shape|2|3")),
            ("an agent without a choice", (torch.zeros(1, 3, 2, 2), agents, ~free), ("row|agent", "no legal"))]:
        yield case(f"CategoricalMap, {title}", refused(*words), Map, *arguments)
    attend, x = (ppo_attention_mask.MultiHeadAttention(8, 2, 4), torch.randn(2, 3, 8))
    there = torch.tensor([[True, True, False]] * 2)
    for weights in (True, False):
        for title, mask in {"transposed mask": there.T, "mask of shape (2, 2)": there[:, :2],
                "mask of shape (1, 3) for two sets": there[:1], "mask of shape (3,)": there[0],
                "mask of shape (2, 3, 1)": there[..., None], "mask of shape (2, 1)": there[:, :1],
                "mask of shape (2, 3, 3)": there[:, None].repeat(1, 3, 1), "mask of uint8": there.byte(),
                "mask of float": there.float(), "mask of int64": there.long()}.items():
            words = ("mask", "bool") if mask.shape == there.shape else ("mask", "shape")
            yield case(f"MultiHeadAttention, {title}{('' if weights else ', fused')}", refused(*words), attend, x,
                mask, weights)
    q, alive = (torch.tensor([[1.0, 2.0, 9.0]] * 2), torch.tensor([False, False]))
    def target(mask):
        return dqn_action_mask.td_targets(torch.zeros(2), alive, q, mask, 0.5).tolist()
    yield case("td_targets, a mask", [1.0, 1.0], target, legal)
    yield case("td_targets, mask of uint8", refused("mask", "bool"), target, legal.byte())
    yield case("td_targets, mask of float", refused("mask", "bool"), target, legal.float())
    yield case("td_targets, mask of one row for two", refused("mask", "shape"), target, legal[:1])
    yield case("td_targets, transposed mask", refused("mask", "shape"), target, legal.T)


GROUPS = (frozen_masks, infos, constraints, attention, statistics, action_spaces, observation_spaces, seeds, flags,
          contradictions, resuming, checkpoints, bad_masks, odd_masks, steps, workers, evaluations, renderers, machines,
          classes)  # fmt: skip
# fmt: on


# Judging them
def ring(signum: int, frame: Any) -> None:
    raise TimeLimitError


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Nothing is printed, by this process's workers neither."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept), os.close(nowhere)


def judge(case: Case) -> tuple[str, str]:
    """Run a case; what came of it (passed, refused, failed) and, of a failure, what it got."""
    rights = (
        case.right
        if isinstance(case.right, tuple) and any(isinstance(x, Refusal) for x in case.right)
        else (case.right,)
    )
    before, path = signal.signal(signal.SIGALRM, ring), list(sys.path)
    handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), silence():
        work = Path(folder) / "work"
        work.mkdir()
        warnings.simplefilter("always")
        try:
            with contextlib.chdir(work):
                signal.setitimer(signal.ITIMER_REAL, case.limit, 1)  # again and again, for whoever catches it
                try:
                    value = case.run()
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
            if any(not isinstance(right, Refusal) and same(value, right) for right in rights):
                return "passed", ""
            return "failed", f"no refusal: {shown(value)}" if isinstance(
                rights[0], Refusal
            ) else f"value {shown(value)}"
        except TimeLimitError:
            return "failed", f"not finished after {case.limit:.0f} s"
        except Wrong as wrong:
            return "failed", str(wrong)
        except (ValueError, TypeError) as error:
            text = "\n".join([str(error), *getattr(error, "__notes__", ())])
            refusals = [right for right in rights if isinstance(right, Refusal)]
            if any(all(re.search(words, text, re.I | re.S) for words in right.words) for right in refusals):
                return "refused", ""
            return "failed", f"{type(error).__name__}: {last_line(str(error))}"
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1].name
            return "failed", f"{type(error).__name__}: {last_line(str(error))} ({place})"
        finally:
            signal.signal(signal.SIGALRM, before)
            sys.path[:] = path
            for signum, handler in handlers.items():
                signal.signal(signum, handler)
            for child in multiprocessing.active_children():
                child.kill()


def same(value: Any, right: Any) -> bool:
    if isinstance(value, Ended) and isinstance(right, Ended):
        return value.code == right.code
    return type(value) is type(right) and value == right if isinstance(right, bool) else value == right


def shown(value: Any) -> str:
    return (repr(value) if not isinstance(value, Ended) else "it ended well")[:200]


def tried(only: str) -> list[dict[str, str]]:
    """Run all cases, or those whose kind and name match `only`."""
    cases = [case for group in GROUPS for case in group()]
    if twins := [name for name, n in Counter((case.kind, case.name) for case in cases).items() if n > 1]:
        raise ValueError(f"Cases of the same name: {twins}")
    records = []
    for case in cases:
        if not re.search(only, f"{case.kind}: {case.name}", re.I):
            continue
        start = time.time()
        outcome, got = judge(case)
        records.append(
            {"kind": case.kind, "name": case.name, "outcome": outcome, "got": got, "right": described(case.right)}
        )
        seconds = time.time() - start
        if outcome == "failed" or seconds > 10:
            print(f"{outcome:8} {seconds:5.1f} s  {case.kind}: {case.name}\n    got: {got}", flush=True)
            print(f"    expected: {records[-1]['right']}", flush=True)
    return records


def described(right: Any) -> str:
    if isinstance(right, tuple) and any(isinstance(x, Refusal) for x in right):
        return " or ".join(map(described, right))
    return f"a refusal with {', '.join(right.words)}" if isinstance(right, Refusal) else shown(right)


# Kills
ITERATIONS = 100  # of a training that is killed
KILLED = {  # how a training is started; of twenty kills, how many
    "ppo_action_mask": {"": 12, "--compile": 4, "2 ranks": 4},
    "dqn_action_mask": {"": 17, "--compile": 3},
    "ppo_attention_mask": {"": 17, "--compile": 3},
    "ppo_gridwise": {"": 17, "--compile": 3},
    "ppo_recurrent_mask": {"": 17, "--compile": 3},
}


# Environments that others wrote
OTHERS = {  # flags, and what to install, of what the README and the page say
    "Taxi-v4": ("--total-timesteps 200000", ""),
    "CliffWalking-v1": ("--mask-mode none --total-timesteps 200000", ""),
    "FrozenLake-v1": ("--mask-mode none --env-kwargs is_slippery False --total-timesteps 100000", ""),
    "Blackjack-v1": ("--mask-mode none --total-timesteps 200000", ""),
    "highway_env:highway-fast-v0": ("--num-steps 16 --total-timesteps 10000", "highway-env"),
    "grids:Empty-v0": ("--mask-mode none --num-steps 128 --total-timesteps 100000", "minigrid"),
    "catan:Catan-v0": ("--num-steps 64 --total-timesteps 20000", "catanatron_gym"),
    "jobshop:JobShop-v0": ("--num-steps 128 --norm-reward --total-timesteps 40000", "JSSEnv"),
    "leduc:Leduc-v0": ("--total-timesteps 200000", "rlcard"),
}
BLOCK = r"\(`(\w+\.py)`\):\n\n```python\n(.*?)```"  # of the page: a file to write


def others_trained() -> list[dict[str, Any]]:
    """Train on each of OTHERS, with the files of the page in the folder and nothing else, but where a package lacks."""
    blocks = dict(re.findall(BLOCK, (ROOT / "docs/robustness.md").read_text(), re.S))
    records = []
    for env_id, (flags, package) in OTHERS.items():
        with tempfile.TemporaryDirectory() as folder:
            for name, block in blocks.items():
                Path(folder, name).write_text(block)
            flags = f"--num-envs 16 {flags}"
            start, script = time.time(), str(ROOT / "ppo_action_mask.py")
            command = [sys.executable, script, "--env-id", env_id, *flags.split()]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
            if done.returncode:
                print(f"{env_id} is left out: {done.stderr.splitlines()[-1]}")
                continue
            minutes = (time.time() - start) / 60
            events = EventAccumulator(str(next(Path(folder, "runs").iterdir()))).Reload()
        returns = [event.value for event in events.Scalars("charts/episodic_return")]
        lines = blocks.get(f"{env_id.split(':')[0]}.py", "").splitlines()
        scored = float(re.search(r"Evaluation: episodic_return ([-\d.]+)", done.stdout)[1])
        records.append(
            {"env_id": env_id, "flags": flags, "package": package, "lines": sum(map(bool, lines)), "return": scored}
            | {"first": returns[0], "minutes": minutes}
        )
        print(*records[-1].values(), flush=True)
    return records


def guests_table(records: list[dict[str, Any]]) -> str:
    rows = [
        f"| `{r['env_id']}` | {f'`pip install {p}`' if (p := r['package']) else ''} | {r['lines']} | `{r['flags']}` | "
        f"{r['first']:.3g} | {r['return']:.3g} | {r['minutes']:.1f} |"
        for r in records
    ]
    head = "| `--env-id` | needs | lines | flags of `ppo_action_mask.py` | return at first | in the end | minutes |"
    return "\n".join([head, "|-|-|-|-|-|-|-|", *rows])


@dataclass
class Args:
    """Bad inputs, kills, and environments that others wrote."""

    part: Literal["all", "inputs", "kills", "guests"] = "all"
    """what to run"""
    only: str = ""
    """inputs whose kind and name match this regular expression; nothing is written then"""
    kills: int = 20
    """SIGKILLs of each script, shared out among its ways to be started"""
    seed: int = 0
    """of the moments of the kills"""
    out: Path | None = None
    """where to record the outcomes; docs/robustness.md is then written as well"""


def training(name: str, way: str, *flags: str) -> Any:
    """A training, in an empty folder, or with --resume."""
    more = ("--compile",) if way == "--compile" else ()
    return process(name, "--eval-episodes", "8", *more, *flags, ranks=2 if way == "2 ranks" else 1)


def ended(running: Any) -> dict[str, Any]:
    """The checkpoint at the end of a training, and its scores."""
    done = finish(running)
    check(done, 0)
    return load() | {"scores": re.search(r"Evaluation: (.*)", done.text)[1]}


@cache
def left_alone(name: str, way: str, flags: tuple[str, ...]) -> tuple[dict[str, Any], float]:
    """The training that nobody kills, and the seconds between its first checkpoint and its last."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        running = training(name, way, *flags, "--checkpoint-every", "1")
        wait_for("runs/*/checkpoint.pt", running)
        start, whole = time.time(), ended(running)
        return whole, (run_folder() / "checkpoint.pt").stat().st_mtime - start


def killed(name: str, way: str, rng: random.Random) -> dict[str, Any]:
    """Kill a training at a random moment after its first checkpoint, and resume it; whether it ends as the other."""
    flags = ("--total-timesteps", str(32 * ITERATIONS))
    whole, seconds = left_alone(name, way, flags)
    record = {"script": name, "way": way, "every": rng.randint(1, 5)}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        running = training(name, way, *flags, "--checkpoint-every", str(record["every"]))
        wait_for("runs/*/checkpoint.pt", running)
        time.sleep(rng.random() * seconds)
        kill(running.pid)
        running.communicate()
        path = run_folder() / "checkpoint.pt"
        record["iteration"] = load(path)["iteration"]
        try:
            record["differs"] = difference(whole, ended(training(name, way, "--resume", str(path))))
        except Wrong as wrong:
            record["differs"] = str(wrong)
    return record


def kills(count: int, seed: int) -> list[dict[str, Any]]:
    rng, records = random.Random(seed), []
    for name, ways in KILLED.items():
        for way, share in ways.items():
            for _ in range(round(share * count / 20)):
                records.append(killed(name, way, rng))
                print(*records[-1].values(), flush=True)
    return records


# The page
def inputs_table(records: list[dict[str, str]]) -> str:
    counts: dict[str, Counter] = {}
    for record in records:
        counts.setdefault(record["kind"], Counter())[record["outcome"]] += 1
    counts["all"] = sum(counts.values(), Counter())
    rows = [f"| {kind} | {c.total()} | {c['passed']} | {c['refused']} | {c['failed']} |" for kind, c in counts.items()]
    return "\n".join(
        ["| kind | tried | passed: the right value | refused, with the right sentence | failed |", "|-|-|-|-|-|", *rows]
    )


def failures(records: list[dict[str, str]]) -> str:
    failed = [record for record in records if record["outcome"] == "failed"]
    if not failed:
        return "None of the recorded cases fails."
    cells = [
        [record[key].replace("|", "\\|").replace("\n", " ") for key in ("kind", "name", "got", "right")]
        for record in failed
    ]
    return "\n".join(["| kind | case | got | right |", "|-|-|-|-|", *(f"| {' | '.join(row)} |" for row in cells)])


def kills_table(records: list[dict[str, Any]]) -> str:
    rows = []
    for name, way in dict.fromkeys((record["script"], record["way"]) for record in records):
        mine = [record for record in records if (record["script"], record["way"]) == (name, way)]
        equal, at = sum(not record["differs"] for record in mine), [record["iteration"] for record in mine]
        rows.append(
            f"| `{name}.py` | {way or 'as it is'} | {len(mine)} | {min(at)} to {max(at)} of {ITERATIONS} | {equal} |"
        )
    return "\n".join(
        ["| script | started | kills | resumed from iteration | ends equal bit for bit |", "|-|-|-|-|-|", *rows]
    )


def fill(page: str, record: dict[str, Any]) -> str:
    """docs/robustness.md with fresh tables between its markers."""
    tables = {"inputs": inputs_table, "failures": failures, "kills": kills_table, "guests": guests_table}
    for name, table in tables.items():
        part = "inputs" if name == "failures" else name
        if part in record:
            text = table(record[part]["records"]) + f"\n\nMeasured at commit {record[part]['commit']}."
            page = re.sub(
                f"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)", lambda m, t=text: m[1] + t + m[2], page, flags=re.S
            )
    return page


def main(args: Args) -> None:
    torch.set_num_threads(1)
    sys.path[:] = [path for path in sys.path if path not in ("", ".")]
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    record = json.loads(args.out.read_text()) if args.out and args.out.exists() else {}
    if args.part in ("all", "inputs"):
        records = tried(args.only)
        print(inputs_table(records))
        record["inputs"] = {"commit": commit, "records": records}
    if args.part in ("all", "kills") and not args.only:
        records = kills(args.kills, args.seed)
        print(kills_table(records))
        record["kills"] = {"commit": commit, "records": records}
    if args.part in ("all", "guests") and not args.only:
        record["guests"] = {"commit": commit, "records": others_trained()}
    if args.out and not args.only:
        args.out.write_text(json.dumps(record, indent=1) + "\n")
        page = ROOT / "docs/robustness.md"
        page.write_text(fill(page.read_text(), record))


if __name__ == "__main__":
    main(tyro.cli(Args))
