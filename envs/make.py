"""`make_vec`: from an id and arguments, as flags give them, to the vector environment that the scripts step."""

import ast
import importlib
import inspect
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import copy
from functools import partial
from typing import Any, Literal, get_args

import gymnasium as gym
from gymnasium.envs.registration import load_env_creator
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from envs.base import BatchedEnv, layers
from envs.foreign import AsyncGuests, Guest, Seedless
from envs.statistics import Statistics
from envs.uniform import UniformVectorEnv


def make_vec(
    env_id: str,
    num_envs: int,
    env_kwargs: dict[str, Any] | None = None,
    async_envs: bool = False,
    require_mask: bool = True,
    layout: Literal["flat", "entities", "grid", "raw"] = "flat",
    render_mode: str | None = None,
    presence_column: int | None = None,
    prev_inputs: bool = False,
    dependent: bool = False,
    statistics: Statistics | None = None,
    learns: bool = True,
) -> UniformVectorEnv:
    """Make `num_envs` copies of a registered environment, as the scripts need them (`UniformVectorEnv`).

    An id whose `vector_entry_point` gives a SAME_STEP vector environment, as ours do, is made with it; any other goes
    through Gymnasium's SyncVectorEnv, or with `async_envs` through AsyncVectorEnv, one process an environment.

    Args:
        env_id: a registered id, or "module:Id-v0" to import a module that registers it.
        num_envs: N; without `learns`, rounded up to what a world can have, as its static method `multiple` says.
        env_kwargs: arguments of the environment.
        async_envs: for slow environments that others wrote.
        require_mask: raise if the environment gives no mask; otherwise every action counts as legal.
        layout: of the observations, as for `UniformVectorEnv`.
        render_mode: "rgb_array" or "ansi" to render.
        presence_column: for the layout "entities", as for `UniformVectorEnv`.
        prev_inputs, dependent: of the script, as for `UniformVectorEnv`.
        statistics, learns: for scaled observations and rewards, as for `UniformVectorEnv`.

    Raises:
        ValueError: an unknown id, arguments that the environment does not take, or what `UniformVectorEnv` refuses.
    """
    kwargs = dict(env_kwargs or {})
    if render_mode:
        kwargs["render_mode"] = render_mode
    try:
        module, _, name = env_id.rpartition(":")
        if module:
            if os.getcwd() not in sys.path:  # which holds the script's folder instead
                sys.path.append(os.getcwd())
            importlib.import_module(module)
        spec = gym.spec(name)
        creator = _creator(spec.vector_entry_point or spec.entry_point)
    except Exception as error:  # of its module too
        raise ValueError(
            f"--env-id {env_id}: {error} ({type(error).__name__}). Ids of this repository begin with Masked/."
        ) from error
    _refuse_kinds(env_id, creator, kwargs)
    try:
        batched = isinstance(creator, type) and issubclass(creator, BatchedEnv)  # a guest's `multiple` is its own
        if not learns and batched and hasattr(creator, "multiple"):
            multiple = creator.multiple(**kwargs)
            num_envs = -(-num_envs // multiple) * multiple
        env = gym.make_vec(env_id, num_envs, "vector_entry_point", **kwargs) if spec.vector_entry_point else None
        if env is None or (spec.entry_point and env.metadata.get("autoreset_mode") != AutoresetMode.SAME_STEP):
            if env is not None:
                env.close()
            vectorise, here = AsyncGuests if async_envs else SyncVectorEnv, os.getpid()
            makers = [partial(_make_guest, env_id, kwargs, i, require_mask, layout, here) for i in range(num_envs)]
            env = vectorise(makers, autoreset_mode=AutoresetMode.SAME_STEP)
        elif async_envs:
            raise ValueError(
                f"--async-envs: {env_id} is batched already and steps all environments at once; leave it out."
            )
    except (ValueError, ImportError, RuntimeError):  # with a sentence of their own
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        takes = inspect.signature(creator).parameters
        names = ", ".join(name for name in takes if name not in ("self", "num_envs", "render_mode")) or "nothing"
        asked = f"{env_id} cannot be made with --env-kwargs {env_kwargs or {}}"
        raise ValueError(f"{asked}: {what}. It takes {names}.") from error
    if env.num_envs != num_envs:
        raise ValueError(f"{env_id} was asked for {num_envs} environments and made {env.num_envs}; expected as many.")
    return UniformVectorEnv(env, require_mask, layout, presence_column, prev_inputs, dependent, statistics, learns)


def _refuse_kinds(env_id: str, creator: Callable, kwargs: dict[str, Any]) -> None:
    """Numbers that are not whole, and flags that are neither True nor False, as arguments of our own worlds."""
    ours = creator.__module__.startswith("envs.")
    for name, parameter in inspect.signature(creator).parameters.items() if ours else ():
        kinds = get_args(parameter.annotation) or (parameter.annotation,)
        words = "a whole number" if int in kinds else "True or False" if bool in kinds else ""
        if words and name in kwargs and type(kwargs[name]) not in kinds:
            raise ValueError(f"{env_id}: {name} is {kwargs[name]!r}; expected {words}.")


def _creator(entry_point: str | Callable) -> Callable:
    return entry_point if callable(entry_point) else load_env_creator(entry_point)


def _make_guest(env_id: str, kwargs: dict[str, Any], index: int, require_mask: bool, layout: str, main: int) -> Guest:
    if os.getpid() != main:  # a worker's process: signals are the training's, which saves and ends all of them
        for signum in (signal.SIGINT, signal.SIGTERM):  # that many send to the whole group
            signal.signal(signum, signal.SIG_IGN)
    env = gym.make(env_id, **kwargs)
    if not _takes_seed(env):
        if index == 0:
            gym.logger.warn(f"reset() of {env_id} takes no seed, so a run of it cannot be repeated.")
        env.close()
        spec, make = copy(env.spec), _creator(env.spec.entry_point)
        spec.entry_point = lambda **kwargs: Seedless(make(**kwargs))  # inside of Gymnasium's wrappers, which pass one
        env = gym.make(spec)
    return Guest(env, index, require_mask, layout)


def _takes_seed(env: gym.Env) -> bool:
    """Whether a seed gets to the first `reset`, from outside, that somebody wrote with arguments of its own."""
    for layer in layers(env):
        takes = inspect.signature(layer.reset).parameters.values()
        ours = any(
            "reset" in vars(kind) for kind in type(layer).__mro__ if not kind.__module__.startswith("gymnasium.")
        )
        if ours and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes):
            return any(parameter.name == "seed" for parameter in takes)
    return True


def parse_env_kwargs(pairs: Sequence[Any] | Mapping[str, Any]) -> dict[str, Any]:
    """The pairs KEY VALUE of --env-kwargs, or in Python a dict, which is taken as it is.

    Text is read as a Python literal, true and false too, or as a list or object of JSON; else it is plain text.

    >>> parse_env_kwargs(["size", "8", "map_name", "4x4"])
    {'size': 8, 'map_name': '4x4'}
    """
    if isinstance(pairs, Mapping):
        return dict(pairs)
    if not isinstance(pairs, list | tuple) or len(pairs) % 2 or not all(isinstance(key, str) for key in pairs[::2]):
        words = f"{len(pairs)} words: {' '.join(map(str, pairs))}" if isinstance(pairs, list | tuple) else repr(pairs)
        raise ValueError(f"--env-kwargs takes pairs KEY VALUE, got {words}.")
    kwargs = {}
    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
        if key in kwargs:
            raise ValueError(f"--env-kwargs: {key} is given twice, {kwargs[key]!r} and {value}; expected it once.")
        kwargs[key] = _read(value) if isinstance(value, str) else value
    return kwargs


def _read(text: str) -> Any:
    with suppress(ValueError, SyntaxError):
        return ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
    with suppress(ValueError):
        return json.loads(text) if text.startswith(("[", "{")) else text
    return text
