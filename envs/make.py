"""`make_vec`: from an id and arguments, as flags give them, to the vector environment that the scripts step."""

import ast
import importlib
from collections.abc import Sequence
from typing import Any, Literal

import gymnasium as gym
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from envs.foreign import MaskToInfo
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
) -> UniformVectorEnv:
    """Make `num_envs` copies of a registered environment, as the scripts need them (`UniformVectorEnv`).

    An id whose `vector_entry_point` gives a SAME_STEP vector environment, as ours do, is made with it; any other goes
    through Gymnasium's SyncVectorEnv, or with `async_envs` through AsyncVectorEnv, one process an environment.

    Args:
        env_id: a registered id, or "module:Id-v0" to import a module that registers it.
        num_envs: N.
        env_kwargs: arguments of the environment.
        async_envs: for slow environments that others wrote.
        require_mask: raise if the environment gives no mask; otherwise every action counts as legal.
        layout: of the observations, as for `UniformVectorEnv`.
        render_mode: "rgb_array" or "ansi" to render.
        presence_column: for the layout "entities", as for `UniformVectorEnv`.

    Raises:
        ValueError: an unknown id, arguments that the environment does not take, or what `UniformVectorEnv` refuses.
    """
    kwargs = dict(env_kwargs or {})
    if render_mode:
        kwargs["render_mode"] = render_mode
    try:
        module, _, name = env_id.rpartition(":")
        if module:
            importlib.import_module(module)
        spec = gym.spec(name)
    except (gym.error.Error, ImportError) as error:
        raise ValueError(f"--env-id {env_id}: {error} Ids of this repository begin with Masked/.") from error
    try:
        env = gym.make_vec(env_id, num_envs, "vector_entry_point", **kwargs) if spec.vector_entry_point else None
        if env is None or (spec.entry_point and env.metadata.get("autoreset_mode") != AutoresetMode.SAME_STEP):
            vectorise = AsyncVectorEnv if async_envs else SyncVectorEnv
            makers = [lambda index=index: MaskToInfo(gym.make(env_id, **kwargs), index) for index in range(num_envs)]
            env = vectorise(makers, autoreset_mode=AutoresetMode.SAME_STEP)
        elif async_envs:
            raise ValueError(
                f"--async-envs: {env_id} is batched already and steps all environments at once; leave it out."
            )
    except (TypeError, gym.error.Error) as error:
        raise ValueError(f"{env_id} cannot be made with --env-kwargs {env_kwargs or {}}: {error}") from error
    return UniformVectorEnv(env, require_mask, layout, presence_column)


def parse_env_kwargs(pairs: Sequence[str]) -> dict[str, Any]:
    """The pairs KEY VALUE of --env-kwargs; values are Python literals, or else plain text.

    >>> parse_env_kwargs(["size", "8", "map_name", "4x4"])
    {'size': 8, 'map_name': '4x4'}
    """
    if len(pairs) % 2:
        raise ValueError(f"--env-kwargs takes pairs KEY VALUE, got {len(pairs)} words: {' '.join(pairs)}.")
    kwargs = {}
    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
        try:
            kwargs[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            kwargs[key] = value
    return kwargs
