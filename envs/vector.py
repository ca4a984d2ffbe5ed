"""`make_vec`: any registered environment as a vector environment whose masks, observations and resets are uniform."""

import ast
import importlib
from collections.abc import Sequence
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space

HOW_TO_GIVE_A_MASK = (
    'Give info["action_mask"] in reset() and step(), or a method action_masks() or get_available_actions(), or an '
    'observation dict with the key "action_mask"; or train without masks: --mask-mode none.'
)
NO_FLAT_FORM = (
    "The observation space {} has no fixed flat form; expected Box, Discrete, MultiDiscrete, MultiBinary, or a Dict or "
    "Tuple of these."
)


def action_nvec(space: gym.Space) -> np.ndarray:
    """The number of choices in each field of an action space, (K,) int64.

    Raises:
        ValueError: the space is none of Discrete, MultiDiscrete and MultiBinary.

    >>> action_nvec(spaces.Discrete(4)), action_nvec(spaces.MultiDiscrete([3, 2])), action_nvec(spaces.MultiBinary(2))
    (array([4]), array([3, 2]), array([2, 2]))
    """
    if isinstance(space, spaces.Discrete):
        return np.array([space.n], np.int64)
    if isinstance(space, spaces.MultiDiscrete):
        return space.nvec.ravel().astype(np.int64)
    if isinstance(space, spaces.MultiBinary):
        return np.full(int(np.prod(space.shape)), 2, np.int64)
    raise ValueError(
        f"The action space {space} is not supported; expected Discrete (ppo_action_mask.py, dqn_action_mask.py), "
        f"MultiDiscrete or MultiBinary (ppo_action_mask.py). Choices can be masked, numbers cannot: discretise them."
    )


def check_action_mask(action_mask: Any, nvec: np.ndarray, first_env: int = 0, ended: Any = False) -> np.ndarray:
    """Check masks on the host, before they reach the device, and return them as int8.

    Args:
        action_mask: (N, sum(nvec)), bool or numbers that are 0 or 1; 1 where the action is legal.
        nvec: (K,) choices in each action field.
        first_env: the index of the environment that row 0 belongs to, for messages.
        ended: (N,) bool or a bool, rows of states that nobody acts in any more, which may have no legal action.

    Raises:
        ValueError: wrong shape, a value other than 0 and 1 (NaN among them), or a field without a legal action.

    >>> check_action_mask([[1, 1, 0], [0, 0, 0]], np.array([3]))
    Traceback (most recent call last):
    ...
    ValueError: Environment 1: the action mask leaves no legal action in field 0 (its 3 entries are all 0). ...
    """
    mask = np.asarray(action_mask)
    if mask.ndim != 2 or mask.shape[1] != nvec.sum() or mask.dtype.kind not in "biuf":
        fields = " + ".join(map(str, nvec[:6])) + (" + ..." if len(nvec) > 6 else "")
        raise ValueError(
            f"Environment {first_env}: the action mask has shape {mask.shape[1:]} and dtype {mask.dtype}; expected "
            f"shape ({nvec.sum()},), one entry for each choice ({fields}), as int8 with 1 where legal."
        )
    # With few environments the calls cost more than the arithmetic: whether a row is bad comes first, which one after.
    bad = mask.view(np.uint8).max() > 1 if mask.dtype == np.int8 else ((mask != 0) & (mask != 1)).any()
    if bad:
        row, column = np.argwhere((mask != 0) & (mask != 1))[0]
        raise ValueError(
            f"Environment {first_env + row}: the action mask holds {mask[row, column]} at entry {column}; expected "
            f"only 0 (illegal) and 1 (legal)."
        )
    mask = mask.astype(np.int8, copy=False)
    if len(nvec) == 1:
        legal = mask.any(axis=1, keepdims=True)
    else:
        legal = np.add.reduceat(mask, np.cumsum(nvec) - nvec, axis=1, dtype=np.int64) > 0
    if not legal.all() and not (legal.all(axis=1) | ended).all():
        row = np.flatnonzero(~(legal.all(axis=1) | ended))[0]
        field = np.flatnonzero(~legal[row])[0]
        raise ValueError(
            f"Environment {first_env + row}: the action mask leaves no legal action in field {field} (its "
            f"{nvec[field]} entries are all 0). A state to act in needs one: add a no-op, or end the episode."
        )
    return mask


def illegal_actions(actions: np.ndarray, masks: np.ndarray, nvec: np.ndarray) -> np.ndarray:
    """Which actions (B,) or (B, K) break their masks (B, sum(nvec)), in any field: bool (B,).

    >>> illegal_actions(np.array([[0, 1], [0, 2], [1, 0]]), np.array([[1, 0, 1, 1, 0]] * 3), np.array([2, 3]))
    array([False,  True,  True])
    """
    columns = np.reshape(actions, (len(actions), len(nvec))) + (np.cumsum(nvec) - nvec)
    return (np.take_along_axis(masks, columns, axis=1) == 0).any(axis=1)


def check_grid_masks(action_mask: Any, agent_mask: Any, nvec: np.ndarray, ended: Any = False) -> np.ndarray:
    """Check the two masks of a grid, and return them as one (N, 1 + sum(nvec), H, W) int8, the agent mask in front.

    Args:
        action_mask: (N, sum(nvec), H, W), 1 where the cell's agent may do this; without an agent 0 or 1, as you like.
        agent_mask: (N, H, W), 1 where the cell holds an agent.
        nvec: (K,) choices in each field of one agent's action.
        ended: (N,) bool, rows of states that nobody acts in any more.

    Raises:
        ValueError: wrong shape, a value other than 0 and 1, or an agent without a legal choice in one of its fields.
    """
    masks, agents = np.asarray(action_mask), np.asarray(agent_mask)
    shape = (len(agents), nvec.sum(), *agents.shape[1:])
    if agents.ndim != 3 or masks.shape != shape:
        raise ValueError(
            f"The agent mask has shape {agents.shape[1:]} and the action mask {masks.shape[1:]}; expected (H, W) and "
            f"({nvec.sum()}, H, W): {' + '.join(map(str, nvec))} choices in each cell."
        )
    for name, mask in (("agent", agents), ("action", masks)):
        bad = mask.view(np.uint8) > 1 if mask.dtype == np.int8 else (mask != 0) & (mask != 1)
        if bad.any():
            row, *place = np.argwhere(bad)[0].tolist()
            raise ValueError(
                f"Environment {row}: the {name} mask holds {mask[row, *place]} at {place}; expected only 0 and 1."
            )
    row, y, x = np.nonzero(agents)  # of each agent, few beside the cells
    legal = np.add.reduceat(masks[row, :, y, x], np.cumsum(nvec) - nvec, axis=1, dtype=np.int64) > 0  # (P, K)
    stuck = ~legal.all(axis=1) & ~np.broadcast_to(ended, len(agents))[row]
    if stuck.any():
        agent = np.flatnonzero(stuck)[0]
        row, y, x, field = row[agent], y[agent], x[agent], np.flatnonzero(~legal[agent])[0]
        raise ValueError(
            f"Environment {row}: the action mask leaves the agent in cell ({y}, {x}) no legal action in field {field}. "
            f"An agent needs one: add a no-op, or take it out of the agent mask."
        )
    return np.concatenate([agents[:, None], masks], axis=1, dtype=np.int8, casting="unsafe")


def flatten_observations(space: gym.Space, obs: Any, num_envs: int) -> np.ndarray:
    """A batch of observations as (N, D) float32, without a loop over environments; Discrete becomes one-hot.

    >>> space = spaces.Dict({"cell": spaces.Discrete(3), "speed": spaces.Box(0, 1, (2,))})
    >>> flatten_observations(space, {"cell": np.array([2]), "speed": np.array([[0.5, 1.0]])}, num_envs=1)
    array([[0. , 0. , 1. , 0.5, 1. ]], dtype=float32)
    """
    if isinstance(space, spaces.Box | spaces.MultiBinary):
        return np.asarray(obs, np.float32).reshape(num_envs, -1)
    if isinstance(space, spaces.Discrete):
        return np.eye(space.n, dtype=np.float32)[np.asarray(obs) - space.start]
    if isinstance(space, spaces.MultiDiscrete):
        columns = (np.asarray(obs) - space.start).reshape(num_envs, -1).T
        parts = [np.eye(n, dtype=np.float32)[column] for n, column in zip(space.nvec.ravel(), columns, strict=True)]
    elif isinstance(space, spaces.Dict):
        parts = [flatten_observations(sub, obs[key], num_envs) for key, sub in space.spaces.items()]
    elif isinstance(space, spaces.Tuple):
        parts = [flatten_observations(sub, part, num_envs) for sub, part in zip(space.spaces, obs, strict=True)]
    else:
        raise ValueError(NO_FLAT_FORM.format(space))
    return np.concatenate(parts, axis=1)


class MaskToInfo(gym.Wrapper):
    """Turn the three mask conventions of foreign environments into one: `info["action_mask"]`, int8, checked.

    In this order: an `action_mask` in the info (Gymnasium), a method `action_masks()` (sb3-contrib), a method
    `get_available_actions()` that lists the indices of the legal actions (highway-env), a key "action_mask" of a Dict
    observation (PettingZoo, RLlib, OpenSpiel), which then leaves the observation. An environment without a mask passes
    as it is.

    Args:
        env: the environment.
        index: its index among the vector environment's, for messages.
    """

    def __init__(self, env: gym.Env, index: int = 0):
        super().__init__(env)
        self.index, self.nvec = index, action_nvec(env.action_space)
        self.mask_shape = (self.nvec.sum(),)
        space = env.observation_space
        self.in_observation = isinstance(space, spaces.Dict) and "action_mask" in space.spaces
        if self.in_observation:
            self.observation_space = spaces.Dict({k: v for k, v in space.spaces.items() if k != "action_mask"})
        self.action_masks = env.get_wrapper_attr("action_masks") if env.has_wrapper_attr("action_masks") else None
        if env.has_wrapper_attr("get_available_actions"):
            self.action_masks = self.action_masks or self._available

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Reset, with the mask in the info."""
        obs, info = self.env.reset(**kwargs)
        return self._convert(obs, info, ended=False)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step, with the mask in the info."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        obs, info = self._convert(obs, info, ended=terminated)
        return obs, reward, terminated, truncated, info

    def _available(self) -> np.ndarray:
        mask = np.zeros(self.mask_shape, np.int8)
        mask[list(self.env.get_wrapper_attr("get_available_actions")())] = 1
        return mask

    def _convert(self, obs: Any, info: dict[str, Any], ended: bool) -> tuple[Any, dict[str, Any]]:
        mask = info.get("action_mask")
        if mask is None and self.action_masks:
            mask = self.action_masks()
        if self.in_observation:
            mask = obs["action_mask"] if mask is None else mask
            obs = {key: value for key, value in obs.items() if key != "action_mask"}
        if mask is None or "agent_mask" in info:  # a grid's masks are checked together, in a batch
            return obs, info
        mask = np.asarray(mask)
        # Gymnasium copies the masks into one array of the first one's dtype: what could change there is checked before.
        if mask.dtype != np.int8 or mask.shape != self.mask_shape:
            mask = check_action_mask(mask[None], self.nvec, self.index, ended)[0]
        info["action_mask"] = mask
        return obs, info


class UniformVectorEnv(VectorWrapper):
    """What the scripts step: any SAME_STEP vector environment, checked, with one form of everything they read.

    * `infos["action_mask"]` (N, sum(nvec)) int8 after every `reset` and `step`, checked (`check_action_mask`).
    * `infos["final_obs"]`, where an episode ended: a batched observation, valid in the rows `infos["_final_obs"]`, and
      `infos["final_info"]["action_mask"]` (N, sum(nvec)) its mask.
    * `infos["episode"] = {"r", "l"}`, return and length (N,), valid in the rows `infos["_episode"]`.
    * Actions are indices from 0: (N,) for Discrete, else (N, K); an action space's `start` is added here.
    * Observations in a layout: "flat" (N, D) float32; "entities" (N, E, 1 + D) float32, whose first column is 1 where
      an entity is present, from a Dict of `entities` (E, D) and `entity_mask` (E,), or from a matrix (E, D) with
      a presence column; "grid" (N, C, H, W), and "raw", as the environment gives them.
    * On a grid `action_mask` is (N, 1 + A, H, W), the agent mask in front (`check_grid_masks`), and actions are
      (N, H, W) or, with K > 1 fields, (N, H, W, K).

    Args:
        env: the vector environment.
        require_mask: raise if it gives no mask; otherwise every action counts as legal.
        layout: of the observations.
        presence_column: the column of a matrix observation that is positive where the entity is present.

    Raises:
        ValueError: another autoreset mode, an unsupported space, and at run time a missing or broken mask, or NaN or
            inf in an observation or reward, with the environment's index.
    """

    def __init__(
        self,
        env: VectorEnv,
        require_mask: bool = True,
        layout: Literal["flat", "entities", "grid", "raw"] = "flat",
        presence_column: int | None = None,
    ):
        super().__init__(env)
        mode = env.metadata.get("autoreset_mode")
        if mode != AutoresetMode.SAME_STEP:
            raise ValueError(
                f"{env} resets with autoreset mode {mode}; the scripts need AutoresetMode.SAME_STEP, in which the last "
                f"step of an episode returns the next one's first observation. Set metadata['autoreset_mode'], or give "
                f"the id an entry_point so that Gymnasium's vector environments can be used."
            )
        self.require_mask, self.layout, self.raw_space = require_mask, layout, env.single_observation_space
        self.presence_column = presence_column
        self.nvec = grid_nvec(env) if layout == "grid" else action_nvec(env.single_action_space)
        self.start = getattr(env.single_action_space, "start", 0)
        if layout in ("flat", "entities"):
            shape = (
                (flat_size(self.raw_space),) if layout == "flat" else entities_shape(self.raw_space, presence_column)
            )
            self.single_observation_space = spaces.Box(-np.inf, np.inf, shape, np.float32)
            self.observation_space = batch_space(self.single_observation_space, env.num_envs)
        self.episode_returns, self.episode_lengths = np.zeros(env.num_envs), np.zeros(env.num_envs, np.int64)

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Reset all environments."""
        obs, infos = self.env.reset(**kwargs)
        self.episode_returns[:], self.episode_lengths[:] = 0.0, 0
        return self._observation(obs), infos | {"action_mask": self._mask(infos)}

    def step(self, actions: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Step all environments."""
        obs, rewards, terminations, truncations, infos = self.env.step(actions + self.start)
        if not np.isfinite(rewards).all():
            row = np.flatnonzero(~np.isfinite(rewards))[0]
            raise ValueError(f"Environment {row}: the reward is {rewards[row]}; expected a finite number.")
        self.episode_returns += rewards
        self.episode_lengths += 1
        ended = terminations | truncations
        if ended.any():
            self._finish(infos, ended, terminations)
        infos["action_mask"] = self._mask(infos)
        return self._observation(obs), rewards, terminations, truncations, infos

    def illegal(self, actions: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Whether each environment's action breaks its mask, (N,); on a grid the share of its agents that do."""
        if self.layout != "grid":
            return illegal_actions(actions, mask, self.nvec)
        agents = mask[:, 0].astype(bool)
        flat = np.moveaxis(mask[:, 1:], 1, -1)[agents]  # (P, A)
        broken = np.zeros(agents.shape)
        broken[agents] = illegal_actions(actions[agents], flat, self.nvec)
        return broken.sum((1, 2)) / np.maximum(agents.sum((1, 2)), 1)

    def get_state(self) -> dict[str, Any] | None:
        """All state, the statistics of running episodes included; None if the environments cannot be saved."""
        if not hasattr(self.env.unwrapped, "get_state"):
            return None
        statistics = {"episode_returns": self.episode_returns.copy(), "episode_lengths": self.episode_lengths.copy()}
        return statistics | {"env": self.env.unwrapped.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_state` gave."""
        self.episode_returns[:], self.episode_lengths[:] = state["episode_returns"], state["episode_lengths"]
        self.env.unwrapped.set_state(state["env"])

    def _finish(self, infos: dict[str, Any], ended: np.ndarray, terminations: np.ndarray) -> None:
        infos["episode"] = {"r": self.episode_returns.copy(), "l": self.episode_lengths.copy()}
        infos["_episode"] = ended
        self.episode_returns[ended], self.episode_lengths[ended] = 0.0, 0
        final_obs, rows = infos["final_obs"], np.flatnonzero(ended)
        if isinstance(final_obs, np.ndarray) and final_obs.dtype == object:  # Gymnasium's: one object a row, or None
            batch = gym.vector.utils.create_empty_array(self.raw_space, self.num_envs)
            filled = [final_obs[i if ended[i] else rows[0]] for i in range(self.num_envs)]
            final_obs = gym.vector.utils.concatenate(self.raw_space, filled, batch)
        infos["final_obs"], infos["_final_obs"] = self._observation(final_obs), ended
        final_info = infos["final_info"]
        final_info["action_mask"] = self._mask(final_info, ended, terminations)

    def _mask(self, infos: dict[str, Any], expected: Any = True, terminations: Any = False) -> np.ndarray:
        if self.layout == "grid":
            if "agent_mask" not in infos:
                raise ValueError(
                    'No agent mask was given; expected info["agent_mask"] (H, W), 1 where a cell has an agent.'
                )
            agents = infos["agent_mask"]
            shape = (self.num_envs, self.nvec.sum(), *agents.shape[1:])
            given = infos.get("action_mask", None if self.require_mask else np.ones(shape, np.int8))
            if given is None:
                raise ValueError(
                    'No action mask was given; expected info["action_mask"] (A, H, W), or --mask-mode none.'
                )
            return check_grid_masks(given, agents, self.nvec, terminations | ~infos["_agent_mask"])
        if not self.require_mask and "action_mask" not in infos:
            return np.ones((self.num_envs, self.nvec.sum()), np.int8)
        given = infos.get("_action_mask", np.zeros(self.num_envs, bool))
        if (expected & ~given).any():
            row = np.flatnonzero(expected & ~given)[0]
            raise ValueError(f"Environment {row}: no action mask was given. {HOW_TO_GIVE_A_MASK}")
        return check_action_mask(infos["action_mask"], self.nvec, ended=terminations | ~given)

    def _observation(self, obs: Any) -> Any:
        if self.layout in ("grid", "raw"):
            return obs
        if self.layout == "entities":
            flat, seen = self._entities(obs)
        else:
            flat = flatten_observations(self.raw_space, obs, self.num_envs)
            seen = flat
        if not np.isfinite(seen).all():
            row, *place = np.argwhere(~np.isfinite(seen))[0].tolist()
            raise ValueError(
                f"Environment {row}: the observation holds {seen[row, *place]} at entry {place} of its {self.layout} "
                f"form; expected finite numbers. Training stops here, before they reach the network."
            )
        return flat

    def _entities(self, obs: Any) -> tuple[np.ndarray, np.ndarray]:
        """Presence and features (N, E, 1 + D), and the same with absent entities, which may hold anything, as 0."""
        if isinstance(obs, dict):
            present, features = obs["entity_mask"] > 0, obs["entities"]
        else:
            present, features = obs[..., self.presence_column] > 0, obs
        entities = np.concatenate([present[..., None], features], axis=-1, dtype=np.float32)
        return entities, np.where(present[..., None], entities, 0)


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


def flat_size(space: gym.Space) -> int:
    """The number of entries D of a flattened observation; raises ValueError for a space without a flat form."""
    try:
        return spaces.flatdim(space)
    except (NotImplementedError, ValueError) as error:
        raise ValueError(NO_FLAT_FORM.format(space)) from error


def grid_nvec(env: VectorEnv) -> np.ndarray:
    """The number of choices in each field of one cell's action, (K,), the same in all cells.

    Raises:
        ValueError: the observation is no map (C, H, W), or the action space not a MultiDiscrete (H, W) or (H, W, K).
    """
    seen, space = env.single_observation_space, env.single_action_space
    if not isinstance(seen, spaces.Box) or len(seen.shape) != 3:
        raise ValueError(f"The observation space {seen} is no map; expected a Box (C, H, W).")
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.shape[:2] == seen.shape[1:] and space.nvec.ndim <= 3:
        nvec = space.nvec.reshape(*seen.shape[1:], -1)
        if (nvec == nvec[0, 0]).all():
            return nvec[0, 0].astype(np.int64)
    raise ValueError(
        f"The action space {space} is not one action for each cell; expected a MultiDiscrete of shape {seen.shape[1:]} "
        f"or {(*seen.shape[1:], 'K')}, with the same choices in each cell."
    )


def entities_shape(space: gym.Space, presence_column: int | None) -> tuple[int, int]:
    """The shape (E, 1 + D) of the layout "entities".

    Raises:
        ValueError: neither a Dict with `entities` and `entity_mask` nor a matrix with a presence column.

    >>> entities_shape(spaces.Box(-1, 1, (5, 7)), presence_column=0)
    (5, 8)
    """
    if isinstance(space, spaces.Dict) and {"entities", "entity_mask"} <= set(space.spaces):
        (count, size), masks = space["entities"].shape, space["entity_mask"].shape
        if masks == (count,):
            return count, 1 + size
    elif isinstance(space, spaces.Box) and len(space.shape) == 2:
        if presence_column is None:
            raise ValueError(
                f"The observation is a matrix {space.shape}, one row for each entity. Name the column that is 1 where "
                f"the entity is present: --presence-column 0 for highway-env's Kinematics."
            )
        if 0 <= presence_column < space.shape[1]:
            return space.shape[0], 1 + space.shape[1]
        raise ValueError(f"--presence-column {presence_column}: the observation has columns 0 to {space.shape[1] - 1}.")
    raise ValueError(
        f"The observation space {space} has no entities; expected a Dict with entities (E, D) and entity_mask (E,), or "
        f"a matrix (E, D) with --presence-column."
    )


def flat_dtype(space: gym.Space) -> np.dtype:
    """The smallest dtype that holds flattened observations as they are, at most float32: what a replay buffer stores.

    >>> flat_dtype(spaces.Discrete(500)), flat_dtype(spaces.Box(0, 255, (3,), np.uint8)), flat_dtype(spaces.Box(0, 1))
    (dtype('bool'), dtype('uint8'), dtype('float32'))
    """
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts = space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces
        return np.result_type(*(flat_dtype(part) for part in parts))
    if isinstance(space, spaces.Box):
        return space.dtype if space.dtype.itemsize <= 2 else np.dtype(np.float32)
    return np.dtype(bool)  # one-hot, or bits


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
