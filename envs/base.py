"""Batched environments: the dynamics are written once, in NumPy, for N environments at a time.

A subclass of `BatchedEnv` holds its whole state in arrays whose first axis is the environment, and `SingleEnv` turns a
batch of one into a plain `gymnasium.Env`, so that both views of an environment share every line of its rules.
"""

from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from envs.constraints import VectorMaskFunction


def put_rows(batch: Any, rows: np.ndarray, values: Any) -> None:
    """Write `values` (R, ...) into `rows` (R,) of `batch` (N, ...), in place; both may be dicts of arrays.

    >>> obs = {"x": np.zeros((3, 2))}
    >>> put_rows(obs, np.array([2]), {"x": np.ones((1, 2))})
    >>> obs["x"].sum(axis=1)
    array([0., 0., 2.])
    """
    if isinstance(batch, dict):
        for key, value in values.items():
            put_rows(batch[key], rows, value)
    else:
        batch[rows] = values


def layers(env: Any) -> list[Any]:
    """The environment, plain or batched, and all that it wraps, from the outermost wrapper inwards."""
    chain = [env]
    while chain[-1] is not env.unwrapped:
        chain.append(chain[-1].env)
    return chain


class BatchedEnv(VectorEnv):
    """N copies of one environment, stepped together without a Python loop over them.

    A subclass calls `__init__` with its spaces, allocates its state as arrays of shape (N, ...), names them in
    `state_arrays`, and implements four methods; `rows` is always an int64 array of environment indices (R,).

    * `_reset_rows(rows)`: start a new episode in these rows; all randomness comes from `_uniform`.
    * `_advance(actions)`: play one step in all N; returns `rewards` (N,) float64 and `terminations` (N,) bool.
      Illegal actions are no-ops: the clock and the outside world go on, and nothing is raised.
    * `_observe(rows)`: the observation of these rows, freshly allocated: an array (R, ...) or a dict of such arrays.
    * `_info(rows)`: a dict of arrays (R, ...); `action_mask` (R, sum of choices) int8 among them, unless a
      `VectorMaskFunction` around the environment makes it. `_final_info(rows)` adds what is known when an episode ends:
      by convention `optimal_return`, the return of best play, and `optimal_length`, its number of steps; `success`,
      `drawn` and `lost`, 0 or 1; `points_...`, what was got against a kind of opponent, NaN against others; `by_other`,
      True where somebody else had the seat.

    Autoreset is SAME_STEP: where an episode ends, the returned observation and info are those of the new episode, and
    `infos["final_obs"]` and `infos["final_info"]` hold those of the finished one. Unlike Gymnasium's own vector
    environments, `final_obs` is a batched observation, valid in the rows that `infos["_final_obs"]` marks.

    Rewards are float64, flags bool, masks int8.

    Args:
        num_envs: N.
        observation_space, action_space: of one environment.
        max_episode_steps: steps after which an episode is truncated.
        render_mode: one of `metadata["render_modes"]`, or None.

    Raises:
        ValueError: num_envs or max_episode_steps below 1, an unknown render_mode; in `step`, another shape from
            `_advance`.
    """

    metadata: dict[str, Any] = {
        "render_modes": ["rgb_array", "ansi"],
        "render_fps": 6,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }
    state_arrays: tuple[str, ...] = ()
    age = 0  # steps of the batch in this training, where it counts them; a resumed one sets it if games start anew

    def __init__(
        self,
        num_envs: int,
        observation_space: gym.Space,
        action_space: gym.Space,
        max_episode_steps: int,
        render_mode: str | None = None,
    ):
        if num_envs < 1 or max_episode_steps < 1:
            raise ValueError(f"num_envs and max_episode_steps must be at least 1, got {num_envs}, {max_episode_steps}.")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(
                f"render_mode must be one of {self.metadata['render_modes']} or None, got {render_mode!r}."
            )
        self.num_envs, self.max_episode_steps, self.render_mode = num_envs, max_episode_steps, render_mode
        self.single_observation_space, self.single_action_space = observation_space, action_space
        self.observation_space = batch_space(observation_space, num_envs)
        self.action_space = batch_space(action_space, num_envs)
        self.autoreset = True  # SingleEnv switches it off: a gymnasium.Env waits for reset()
        self.elapsed = np.zeros(num_envs, np.int64)
        self._rows = np.arange(num_envs)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start a new episode in every environment; `seed` restarts the one generator that all of them share."""
        super().reset(seed=seed)
        self._begin(self._rows)
        return self._observe(self._rows), _flagged(self._info(self._rows), np.ones(self.num_envs, bool))

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Play one step in every environment, then start a new episode wherever one has ended (SAME_STEP)."""
        rewards, terminations = self._advance(actions)
        # Copies, for a world may keep both in state that the next episode clears.
        rewards, terminations = np.array(rewards, np.float64), np.array(terminations, bool)
        if not rewards.shape == terminations.shape == (self.num_envs,):
            found = f"rewards {rewards.shape} and terminations {terminations.shape}"
            raise ValueError(f"_advance() of {type(self).__name__} gives {found}; expected ({self.num_envs},) each.")
        self.elapsed += 1
        truncations = ~terminations & (self.elapsed >= self.max_episode_steps)
        obs, info = self._observe(self._rows), self._info(self._rows)
        infos = _flagged(info, np.ones(self.num_envs, bool))
        ended = terminations | truncations
        if ended.any():
            rows = np.flatnonzero(ended)
            final_info = {key: self._spread(rows, value) for key, value in self._final_info(rows).items()}
            if not self.autoreset:
                return obs, rewards, terminations, truncations, infos | _flagged(final_info, ended)
            final_info |= {key: value.copy() for key, value in info.items()}
            infos |= {"final_obs": _copy(obs), "_final_obs": ended}
            infos |= {"final_info": _flagged(final_info, ended), "_final_info": ended}
            self._begin(rows)
            put_rows(obs, rows, self._observe(rows))
            put_rows(info, rows, self._info(rows))
        return obs, rewards, terminations, truncations, infos

    def get_state(self) -> dict[str, Any]:
        """Everything the future depends on: the generator's state and copies of all state arrays."""
        arrays = {name: getattr(self, name).copy() for name in ("elapsed", *self.state_arrays)}
        return {"generator": self.np_random.bit_generator.state, **arrays}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_state` gave, into an environment made with the same arguments."""
        self.np_random.bit_generator.state = state["generator"]
        for name in ("elapsed", *self.state_arrays):
            mine, saved = getattr(self, name), state[name]
            if mine.shape != saved.shape:
                raise ValueError(f"{name} has shape {mine.shape}, and was saved with {saved.shape}")
            if mine.dtype == saved.dtype:
                mine[...] = saved
            else:  # it was made with one, and became the other
                setattr(self, name, saved.copy())

    def render(self) -> tuple[Any, ...] | None:
        """One picture (H, W, 3) uint8, or one text, for each environment, as `render_mode` says."""
        if self.render_mode is None:
            gym.logger.warn("render() was called without a render_mode; pass render_mode='rgb_array' or 'ansi'.")
            return None
        draw = self._render_ansi if self.render_mode == "ansi" else self._render_rgb
        return tuple(draw(row) for row in range(self.num_envs))

    def _begin(self, rows: np.ndarray) -> None:
        self.elapsed[rows] = 0
        self._reset_rows(rows)

    def _uniform(self, rows: np.ndarray, *shape: int) -> np.ndarray:
        """Uniform draws in [0, 1) of shape (R, *shape): the only source of randomness, so that tests can replace it."""
        return self.np_random.random((len(rows), *shape))

    def _spread(self, rows: np.ndarray, values: np.ndarray) -> np.ndarray:
        values = np.asarray(values)
        full = np.zeros((self.num_envs, *values.shape[1:]), values.dtype)
        full[rows] = values
        return full

    def _reset_rows(self, rows: np.ndarray) -> None:
        raise NotImplementedError

    def _advance(self, actions: Any) -> tuple[np.ndarray, np.ndarray]:
        raise NotImplementedError

    def _observe(self, rows: np.ndarray) -> Any:
        raise NotImplementedError

    def _info(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {}

    def _final_info(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {}

    def _render_ansi(self, row: int) -> str:
        raise NotImplementedError

    def _render_rgb(self, row: int) -> np.ndarray:
        raise NotImplementedError


class SingleEnv(gym.Env):
    """A batch of one as a `gymnasium.Env`, without autoreset: `step` after the end of an episode needs a `reset`.

    Args:
        batch: a vector environment with `num_envs` 1 whose `unwrapped` is a `BatchedEnv`.
    """

    def __init__(self, batch: VectorEnv):
        self.batch, self.metadata, self.render_mode = batch, batch.metadata, batch.render_mode
        self.observation_space, self.action_space = batch.single_observation_space, batch.single_action_space
        batch.unwrapped.autoreset = False
        self._declared = next((e for e in layers(batch) if isinstance(e, VectorMaskFunction)), None)
        if getattr(self._declared, "field_masks", None):  # fields that depend on each other
            self.field_mask = lambda chosen: self._declared.field_masks(np.array([chosen], np.int64))[0]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start a new episode."""
        super().reset(seed=seed)
        obs, infos = self.batch.reset(seed=seed, options=options)
        return _first(obs), _unflagged(infos)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Play one step."""
        actions = {k: np.asarray([v]) for k, v in action.items()} if isinstance(action, dict) else np.asarray([action])
        obs, rewards, terminations, truncations, infos = self.batch.step(actions)
        return _first(obs), float(rewards[0]), bool(terminations[0]), bool(truncations[0]), _unflagged(infos)

    def render(self) -> Any:
        """The picture (H, W, 3) uint8 or the text of the environment."""
        frames = self.batch.render()
        return None if frames is None else frames[0]

    def get_state(self) -> dict[str, Any]:
        """The whole state, the generator's included."""
        seen = {"seen": deepcopy(self._declared.seen)} if self._declared else {}
        return self.batch.unwrapped.get_state() | seen

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_state` gave."""
        self.batch.unwrapped.set_state(state)
        if "seen" in state:
            self._declared.seen = state["seen"]


def _flagged(info: dict[str, np.ndarray], flags: np.ndarray) -> dict[str, np.ndarray]:
    """Gymnasium's convention for vector infos: `_key` says which rows of `key` are filled."""
    return info | {f"_{key}": flags for key in info}


def _unflagged(infos: dict[str, np.ndarray]) -> dict[str, Any]:
    return {key: value[0] for key, value in infos.items() if not key.startswith("_")}


def _first(obs: Any) -> Any:
    return {key: _first(value) for key, value in obs.items()} if isinstance(obs, dict) else obs[0]


def _copy(obs: Any) -> Any:
    return {key: _copy(value) for key, value in obs.items()} if isinstance(obs, dict) else obs.copy()
