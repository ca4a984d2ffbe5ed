"""Environments that others wrote are guests: checked, copied, never written to, and their conventions become one."""

import multiprocessing.connection
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.util import Finalize
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, VectorEnv, VectorWrapper
from gymnasium.vector.async_vector_env import AsyncState
from gymnasium.vector.utils import concatenate, create_empty_array

from envs.base import layers
from envs.masks import action_nvec, check_action_mask, check_grid_masks, grid_nvec

OUTCOMES = ("success", "drawn", "lost")
KNOWN = ("optimal_return", "optimal_length", *OUTCOMES)  # of an episode that ended, if they know
METHODS = ("field_mask", "action_masks", "get_available_actions")  # of a field, of an action; legal actions
MAX_JOINT = 1_000_000  # entries of a mask of whole actions
STEP = "obs, reward, terminated, truncated and info"


def reason(error: Exception) -> str:
    """What an error says, in one line; where it was raised if it says nothing, as Gymnasium's own render() does."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    return " ".join(str(error).split()) or f"raised in {where.name}(), line {where.lineno} of {where.filename}"


class Guest(gym.Wrapper):
    """One environment that somebody else wrote, as Gymnasium's vector environments and the scripts need it.

    * Conventions for masks become `info["action_mask"]`, int8: an `action_mask` in the info (Gymnasium),
      `action_masks()` or a property of that name (sb3-contrib), `get_available_actions()`, which lists legal actions
      (highway-env), a key "action_mask" of a Dict observation (PettingZoo, RLlib), which then leaves the observation.
      A mask is one array or, for several fields, a tuple of one for each. On a grid masks are `info["action_mask"]`
      (A, H, W) and `info["agent_mask"]` (H, W).
    * Of several methods that of the outermost wrapper counts, and before what the info and the observation hold, which
      may be of what it wraps. Where it cannot be told which mask is the outermost one, all have to be the same.
    * It is asked for a mask where somebody acts next: not in a terminal state, and in a truncated one it may have none.
    * Its info is read and never written to; the new one holds masks, and `KNOWN` where an episode ended.
    * Observations are copies in the form that their space declares, since many return one array, changed in place.

    Args:
        env: the environment.
        index: its index among the vector environment's, for messages.
        require_mask: raise if a mask is broken; otherwise it is as if there were none.
        layout: of the observations, as for `UniformVectorEnv`.

    Raises:
        ValueError: actions are renumbered between us and the mask; at run time whatever it raises, and observations,
            rewards and masks that are not what the spaces say.
    """

    def __init__(self, env: gym.Env, index: int = 0, require_mask: bool = True, layout: str = "flat"):
        super().__init__(env)
        self.index, self.require_mask, self.grid, self.told = index, require_mask, layout == "grid", set()
        space = env.observation_space
        self.nvec = grid_nvec(space, env.action_space) if self.grid else action_nvec(env.action_space)
        self.num_choices, self.fields = int(self.nvec.sum()), tuple(self.nvec.tolist())
        self.in_observation = isinstance(space, spaces.Dict) and "action_mask" in space.spaces
        if self.in_observation:
            self.observation_space = spaces.Dict({k: v for k, v in space.spaces.items() if k != "action_mask"})
            if not self.observation_space.spaces:
                raise ValueError(f"{env} observes nothing but its action mask; expected another key beside it.")
        chain = layers(env)
        givers = [(e, name) for e in chain for name in METHODS if name in vars(e) or hasattr(type(e), name)]
        self.giver, self.method = givers[0] if givers else (None, None)
        self.by_field = self.method == "field_mask"  # of a single one too
        inside = [e for e, name in givers if name == "field_mask" and not self.by_field]
        if require_mask and inside and len(self.fields) > 1:
            raise ValueError(
                f"{type(self.giver).__name__} has {self.method}() around {type(inside[0]).__name__}, whose "
                f"field_mask() says what is legal after other choices; expected a field_mask() of the wrapper, too."
            )
        outside = chain[: chain.index(self.giver)] if givers else chain
        wraps = self.giver is not env.unwrapped and not any(map(_may_write, outside))
        self.outermost = self.method if wraps else None  # counts whatever the info and the observation hold
        self.uses = next((e.uses for e in chain if hasattr(type(e), "uses") or "uses" in vars(e)), None)
        if require_mask:
            self._refuse_renumbering(chain)
        if index == 0:
            warn_of_statistics(env)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset, with the mask in the info."""
        try:
            obs, info = self.env.reset(seed=seed, options=options)
        except Exception as error:
            raise self._blame("reset()", error, "obs and info") from error
        return admit(self.observation_space, obs, self.index), self._masks(obs, self._info(info), acts=True)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step, with the mask in the info."""
        try:
            obs, reward, terminated, truncated, info = self.env.step(action)
            if type(reward) is not float:  # some give it as an array of one
                reward = float(np.asarray(reward, float).item())
        except Exception as error:
            raise self._blame(f"step({action})", error, STEP) from error
        terminated, truncated = self._flag("terminated", terminated), self._flag("truncated", truncated)
        info = self._info(info)
        given = {} if terminated else self._masks(obs, info, acts=not truncated)
        if terminated or truncated:
            given |= self._known(info)
        return admit(self.observation_space, obs, self.index), reward, terminated, truncated, given

    def field_mask_of_row(self, chosen: np.ndarray) -> np.ndarray:
        """The mask (nvec[k],) int8 of the next field after the choices (N, k), of which its own row counts."""
        k, start = chosen.shape[1], np.ravel(getattr(self.env.action_space, "start", 0))
        path = tuple((chosen[self.index] + start[:k]).tolist())
        try:
            mask = np.array(self.giver.field_mask(path))
        except Exception as error:
            raise self._blame(f"field_mask({path})", error, "the mask of legal choices in the next field") from error
        return check_action_mask(mask[None], self.nvec[k : k + 1], self.index, first_field=k)[0]

    def _info(self, info: Any) -> Mapping[str, Any]:
        if info is not None and not isinstance(info, Mapping):
            raise ValueError(f"Environment {self.index}: the info is {info!r:.60}; expected a dict.")
        return info or {}

    def _flag(self, name: str, value: Any) -> bool:
        if type(value) is not bool:
            if np.size(value) != 1 or np.asarray(value).dtype.kind not in "biu":
                raise ValueError(f"Environment {self.index}: {name} is {value!r:.60}; expected True or False.")
            value = bool(np.asarray(value).item())
        return value

    def _blame(self, call: str, error: Exception, expected: str) -> ValueError:
        return ValueError(
            f"Environment {self.index}: {call} of {type(self.env.unwrapped).__name__} raised {type(error).__name__}: "
            f"{reason(error)}. Expected {expected}, as Gymnasium's environments return them."
        )

    def _refuse_renumbering(self, chain: list[gym.Env]) -> None:
        """An ActionWrapper between us and whoever gives the mask: a mask of other actions than those we play."""
        if self.giver is None:  # by info or observation, of the outermost environment that is no standard wrapper
            written = [e for e in chain if not type(e).__module__.startswith("gymnasium.wrappers")]
            giver = next(e for e in written if not isinstance(e, gym.ActionWrapper) or "step" in vars(type(e)))
        else:
            giver = self.giver
        between = [e for e in chain[: chain.index(giver)] if isinstance(e, gym.ActionWrapper)]
        if between:
            raise ValueError(
                f"{type(between[0]).__name__} changes actions between the script and {type(giver).__name__}, whose "
                f"mask is of other actions then: wrap it so that the mask follows, with a wrapper that has "
                f"action_masks()."
            )

    def _masks(self, obs: Any, info: Mapping[str, Any], acts: bool) -> dict[str, np.ndarray]:
        """The masks of a state, none if there are none; `acts`: somebody acts in it."""
        try:
            given = self._ask(obs, info)
        except Exception as error:
            if acts and self.require_mask:
                raise self._blame(f"{self.method}", error, "the mask of legal actions") from error
            return {}
        agents = info.get("agent_mask") if self.grid else None
        try:
            mask = self._agreed(given) if acts else next(iter(given.values()), None)
            if agents is not None:
                return self._grid_masks(mask, agents, acts)
            return {} if self.grid or mask is None else {"action_mask": self._one_form(mask, acts)}
        except ValueError:
            if self.require_mask:
                raise
            return {}

    def _ask(self, obs: Any, info: Mapping[str, Any]) -> dict[str, Any]:
        """The masks of a state, by who gives them."""
        given = {}
        if self.by_field:
            first, rest = self.field_mask_of_row(np.zeros((self.index + 1, 0), np.int64)), self.nvec[1:].sum()
            given["field_mask"] = np.concatenate([first, np.ones(rest, np.int8)])
        elif self.giver is not None:
            given[self.method] = getattr(self.giver, self.method)
            try:
                given[self.method] = given[self.method]() if callable(given[self.method]) else given[self.method]
            except NotImplementedError:  # a base class's: this environment has no such mask
                given[self.method] = None
            if given[self.method] is not None and self.method != "action_masks":
                given[self.method] = self._listed(given[self.method])
        given["the info"] = info.get("action_mask")
        given["the observation"] = obs["action_mask"] if self.in_observation else None
        known = {name: mask for name, mask in given.items() if mask is not None}
        return {self.outermost: known[self.outermost]} if self.outermost in known else known

    def _agreed(self, given: dict[str, Any]) -> Any:
        """The mask of a state that somebody acts in, on which all agree that give one."""
        if len(given) < 2:
            return next(iter(given.values()), None)
        names = list(given)
        masks = [np.array(mask) if self.grid else self._one_form(mask, acts=True) for mask in given.values()]
        if self.by_field and masks[0].shape == masks[-1].shape:  # a flat mask beside it may forbid more
            return np.minimum.reduce(masks)
        for name, mask in zip(names, masks, strict=True):
            if not np.array_equal(mask, masks[0]):
                shown = f"{names[0]} gives {masks[0].tolist()!r:.60} and {name} {mask.tolist()!r:.60}"
                raise ValueError(
                    f"Environment {self.index}: {shown} as the mask of one state; expected the same, or a wrapper "
                    f"around all others with action_masks(), which then counts."
                )
        return masks[0]

    def _listed(self, actions: Any) -> np.ndarray:
        if len(self.fields) > 1:
            raise ValueError("it lists actions of several fields; expected flags, as action_masks() gives them")
        listed = np.asarray(list(actions))
        if listed.dtype == bool or len(set(listed.tolist())) < len(listed):
            raise ValueError(f"it gives {list(actions)}; expected each legal action once. action_masks() gives flags")
        indices = listed.astype(np.int64) - getattr(self.env.action_space, "start", 0)
        if len(indices) and not (indices.min() >= 0 and indices.max() < self.nvec.sum() and (listed % 1 == 0).all()):
            raise ValueError(f"it lists {list(actions)}, which are not all in {self.env.action_space}")
        return np.bincount(indices, minlength=self.nvec.sum()) > 0

    def _one_form(self, mask: Any, acts: bool) -> np.ndarray:
        several = len(self.fields) > 1
        if several and isinstance(mask, tuple | list) and len(mask) == len(self.fields) and np.ndim(mask[0]):
            whole = (len(mask), *np.shape(mask[0])) == self.fields and np.size(mask[-1]) == np.size(mask[0])
            if isinstance(mask, list) and whole and np.size(mask[0]) == self.fields[0]:
                what = f"Environment {self.index}: the action mask is the list {mask!r:.60}"
                raise ValueError(f"{what}; expected a tuple of a mask for each field, or an array of whole actions.")
            if isinstance(mask, tuple) or not whole:
                mask = np.concatenate([np.ravel(field) for field in mask])
        mask = self._array("action mask", mask, f"{self.num_choices} entries")
        # Values of int8 are checked in a batch; Gymnasium copies all masks into one array of the first one's type.
        if several and mask.shape == self.fields:  # joint
            if mask.size > MAX_JOINT:
                raise ValueError(
                    f"Environment {self.index}: a joint action mask of {mask.size:,} entries in every step; expected "
                    f"at most {MAX_JOINT:,}. Give a method field_mask(chosen), or declare the mask (MaskFunction)."
                )
            flat = check_action_mask(mask.reshape(1, -1), np.array([mask.size]), self.index, not acts)
            return flat.reshape(self.fields)
        if mask.dtype != np.int8 or mask.shape != (self.num_choices,):
            mask = check_action_mask(mask[None], self.nvec, self.index, ended=not acts)[0]
        return mask

    def _grid_masks(self, mask: Any, agents: Any, acts: bool) -> dict[str, np.ndarray]:
        agents = self._array("agent mask", agents, "(H, W)")
        free = np.ones((self.nvec.sum(), *agents.shape), np.int8)
        if mask is None and self.require_mask:
            return {"agent_mask": agents}
        try:
            mask = free if mask is None else self._array("action mask", mask, "(A, H, W)")
            both = check_grid_masks(mask[None], agents[None], self.nvec, self.index, ended=not acts)[0]
        except ValueError:
            if self.require_mask:
                raise
            both = check_grid_masks(free[None], agents[None], self.nvec, self.index)[0]  # who is there counts
        return {"agent_mask": both[0], "action_mask": both[1:]}

    def _array(self, name: str, mask: Any, expected: str) -> np.ndarray:
        cause = None
        try:
            if not isinstance(mask, np.ma.MaskedArray):  # what it hides would count
                return np.array(mask)  # a copy
        except ValueError as error:  # rows of different lengths
            cause = error
        what = f"Environment {self.index}: the {name} is {mask!r:.60}"  # repr is slow
        raise ValueError(f"{what}; expected {expected}, 1 where legal and 0 elsewhere.") from cause

    def _known(self, info: Mapping[str, Any]) -> dict[str, float]:
        """What it knows about the episode that ended, as numbers; what is no number is reported once."""
        known = {}
        for name in set(KNOWN) & set(info):
            value = np.asarray(info[name])
            if value.size == 1 and value.dtype.kind in "biuf" and np.isfinite(value).all():
                known[name] = float(value.item())
            elif name not in self.told:
                self.told.add(name)
                gym.logger.warn(f"Environment {self.index}: info[{name!r}] is {info[name]!r}, no number; left out.")
        return known


class Seedless(gym.Wrapper):
    """An environment whose `reset` takes neither seed nor options, as before Gymnasium."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset, whatever the seed."""
        return self.env.reset()


class AsyncGuests(AsyncVectorEnv):
    """One process for each guest; who dies or does not answer within `patience` seconds is named (ValueError).

    Signals are for the training, so these processes ignore them, and are killed where it ends without closing them.
    """

    patience = 300.0

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        Finalize(self, _kill, (self.processes,), exitpriority=0)  # before multiprocessing asks them to end, and waits

    def close_extras(self, timeout: float | None = None, terminate: bool = False) -> None:
        """End all processes, by force with `terminate`."""
        if terminate:
            _kill(self.processes)
        super().close_extras(timeout, terminate)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset all environments."""
        return self._answer(lambda: self.reset_async(seed, options), self.reset_wait)

    def step(self, actions: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Step all environments."""
        return self._answer(lambda: self.step_async(actions), self.step_wait)

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """What each guest's method or attribute of this name gives."""
        return self._answer(lambda: self.call_async(name, *args, **kwargs), self.call_wait)

    def _answer(self, ask: Callable, wait: Callable) -> Any:
        try:
            ask()
            return wait(self.patience)
        except ValueError as error:  # a guest's sentence, from its process
            raise ValueError(*error.args) from error
        except (EOFError, ConnectionError, multiprocessing.TimeoutError) as error:
            answered = multiprocessing.connection.wait(self.parent_pipes, timeout=0)
            late = [i for i, pipe in enumerate(self.parent_pipes) if pipe not in answered]
            for process in self.processes:
                process.join(0.1)
            dead = [i for i, process in enumerate(self.processes) if process.exitcode is not None]
            what = f"did not answer within {self.patience:g} s: it hangs"
            if dead:
                code = self.processes[dead[0]].exitcode
                what = f"its process ended with exit code {code}" + (" (killed by a signal)" if code < 0 else "")
            self._state = AsyncState.DEFAULT
            self.close(terminate=True)
            raise ValueError(f"Environment {(dead or late)[0]}: {what}. Try it without --async-envs.") from error


def _kill(processes: list[Any]) -> None:
    for process in processes:
        process.kill()


class GuestBatch(VectorWrapper):
    """A vector environment that somebody else wrote: what it returns is copied, and checked for what scripts read."""

    def __init__(self, env: VectorEnv, require_mask: bool):
        super().__init__(env)
        self.require_mask, self.told = require_mask, set()
        space = env.single_observation_space
        if isinstance(space, spaces.Dict) and "action_mask" in space.spaces:
            raise ValueError(
                f"{env} observes an action_mask; expected it in the infos, as vector environments give it."
            )

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Reset all environments."""
        try:
            obs, infos = self.env.reset(**kwargs)
        except Exception as error:
            raise self._blame("reset()", error, "obs and infos") from error
        return self._batch(self.single_observation_space, obs), self._read(infos)

    def step(self, actions: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Step all environments."""
        try:
            obs, *results, infos = self.env.step(actions)
            rewards, terminations, truncations = (np.array(x).reshape(self.num_envs) for x in results)
            if "f" in terminations.dtype.kind + truncations.dtype.kind:
                raise TypeError("terminations and truncations are numbers")
        except Exception as error:
            raise self._blame("step()", error, STEP) from error
        given, ended = self._read(infos), terminations | truncations
        if ended.any():
            if not {"final_obs", "final_info"} <= set(infos) or not isinstance(infos["final_info"], Mapping):
                raise ValueError(
                    f"An episode ended, and the infos of {self.env} hold {sorted(infos)}: expected final_obs and "
                    f"final_info, the last observation and info of it, as Gymnasium's SAME_STEP mode gives them."
                )
            given["final_info"] = self._known(infos["final_info"]) | self._read(infos["final_info"])
            given["final_obs"] = self._final(infos["final_obs"], ended)
        obs = self._batch(self.single_observation_space, obs)
        return obs, rewards, terminations.astype(bool), truncations.astype(bool), given

    def _batch(self, space: gym.Space, obs: Any, verb: str = "observes") -> Any:
        """A copy of a batch of observations, which has a row for each environment in every part."""
        if isinstance(space, spaces.Dict) and isinstance(obs, Mapping) and set(space.spaces) <= set(obs):
            return {key: self._batch(part, obs[key], verb) for key, part in space.spaces.items()}
        if isinstance(space, spaces.Tuple) and isinstance(obs, tuple) and len(obs) == len(space.spaces):
            return tuple(self._batch(part, value, verb) for part, value in zip(space.spaces, obs, strict=True))
        if isinstance(space, spaces.Dict | spaces.Tuple) or np.shape(obs) != (self.num_envs, *(space.shape or ())):
            found = f"{type(obs).__name__} of shape {np.shape(obs)}"
            raise ValueError(f"{self.env} {verb} a {found}; expected {self.num_envs} rows of {space}.")
        return np.array(obs)

    def _final(self, final_obs: Any, ended: np.ndarray) -> Any:
        """A batch of last observations, or Gymnasium's array of one object a row; others may hold anything."""
        space, rows = self.single_observation_space, np.where(ended, np.arange(self.num_envs), ended.argmax())
        if isinstance(final_obs, np.ndarray) and final_obs.dtype == object and len(final_obs) == self.num_envs:
            single = [admit(space, final_obs[row], row) for row in rows]
            return concatenate(space, single, create_empty_array(space, self.num_envs))
        return _rows(self._batch(space, final_obs, "has as final_obs"), rows)

    def _known(self, info: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """What it knows about the episodes that ended, as numbers; what is no number is reported once."""
        known = {}
        for key in set(KNOWN) & set(info):
            try:
                values = np.array(info[key], float)
            except (TypeError, ValueError):
                if key not in self.told:
                    gym.logger.warn(f"The final_info of {self.env} holds {key} {info[key]!r:.60}, no number; left out.")
                self.told.add(key)
                continue
            flags = np.asarray(info.get(f"_{key}", values == values))
            if not values.shape == flags.shape == (self.num_envs,):
                found = f"{key} of shape {values.shape} with flags of shape {flags.shape}"
                raise ValueError(f"The final_info of {self.env} holds {found}; expected ({self.num_envs},) each.")
            known[key] = np.where(flags, values, np.nan)
        return known

    def _read(self, infos: Mapping[str, Any]) -> dict[str, np.ndarray]:
        if not isinstance(infos, Mapping):
            raise ValueError(f"The infos of {self.env} are {infos!r:.60}; expected a dict.")
        try:
            return self._masks(infos)
        except ValueError:
            if self.require_mask:
                raise
            return {}

    def _masks(self, infos: Mapping[str, Any]) -> dict[str, np.ndarray]:
        masks = {name: np.array(infos[name]) for name in ("action_mask", "agent_mask") if name in infos}
        for name, mask in list(masks.items()):
            if np.shape(mask)[:1] != (self.num_envs,):
                found = f"{name} of shape {mask.shape}"
                raise ValueError(f"The infos of {self.env} hold {found}; expected {self.num_envs} rows.")
            if f"_{name}" not in infos:
                raise ValueError(
                    f"The infos of {self.env} hold {name} without _{name}: expected (N,) bool, True in the rows that "
                    f"are filled, as in Gymnasium's vector environments."
                )
            filled = masks[f"_{name}"] = np.array(infos[f"_{name}"])
            if filled.dtype != bool or filled.shape != (self.num_envs,):
                found = f"_{name} of shape {filled.shape} and type {filled.dtype}"
                raise ValueError(f"The infos of {self.env} hold {found}; expected ({self.num_envs},) bool.")
        return masks

    def _blame(self, call: str, error: Exception, expected: str) -> ValueError:
        return ValueError(
            f"{call} of {self.env} raised {type(error).__name__}: {reason(error)}. Expected {expected}, each of "
            f"{self.num_envs} rows."
        )


def warn_of_statistics(env: gym.Env | VectorEnv) -> None:
    """Warn of Gymnasium's normalizing wrappers."""
    if any(hasattr(layer, name) for layer in layers(env) for name in ("obs_rms", "return_rms")):
        gym.logger.warn(
            f"{env} learns statistics of its own, which no checkpoint holds and every evaluation begins anew. Take its "
            f"wrapper away, and use --norm-obs or --norm-reward."
        )


def _may_write(env: gym.Env) -> bool:
    """Whether a wrapper that is not Gymnasium's has a `reset` or `step` of its own, and may write masks into infos."""
    own = [kind for kind in type(env).__mro__ if not kind.__module__.startswith(("gymnasium.", "envs."))]
    return any(name in vars(kind) for kind in own for name in ("reset", "step"))


def _rows(obs: Any, rows: np.ndarray) -> Any:
    """A copy of these rows of a batch of observations: in those of episodes that go on may stand anything."""
    if isinstance(obs, Mapping):
        return {key: _rows(value, rows) for key, value in obs.items()}
    return tuple(_rows(value, rows) for value in obs) if isinstance(obs, tuple) else np.asarray(obs)[rows]


def admit(space: gym.Space, obs: Any, index: int) -> Any:
    """A copy of an observation, in the types and shapes that its space declares.

    Raises:
        ValueError: it has another form, with the environment's `index`.

    >>> admit(spaces.Box(0, 1, (2,)), [0.5, 1], index=3)
    array([0.5, 1. ], dtype=float32)
    >>> admit(spaces.Box(0, 1, (2,)), None, index=3)
    Traceback (most recent call last):
    ...
    ValueError: Environment 3: the observation is None; expected Box(0.0, 1.0, (2,), float32).
    """
    if type(obs) is np.ndarray and obs.dtype == space.dtype and obs.shape == space.shape:
        return obs.copy()  # the usual case, and a quick one, as is the next
    if type(obs) is int and type(space) is spaces.Discrete:
        return np.int64(obs)
    if isinstance(space, spaces.Dict) and isinstance(obs, Mapping) and set(space.spaces) <= set(obs):
        return {key: admit(part, obs[key], index) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple) and isinstance(obs, tuple | list) and len(obs) == len(space.spaces):
        return tuple(admit(part, value, index) for part, value in zip(space.spaces, obs, strict=True))
    if not isinstance(space, spaces.Dict | spaces.Tuple):
        try:
            given = np.asarray(obs)
            copied = np.array(given, space.dtype)
            fits = given.shape == space.shape and given.dtype.kind in "biuf"
            if fits and (np.can_cast(given.dtype, space.dtype, "same_kind") or (copied == given).all()):
                return copied
        except (TypeError, ValueError):  # rows of different lengths, text
            pass
    shown = f"{obs!r:.60}" + (f" of shape {np.shape(obs)} and type {obs.dtype}" if isinstance(obs, np.ndarray) else "")
    raise ValueError(f"Environment {index}: the observation is {shown}; expected {space}.")
