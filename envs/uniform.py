"""`UniformVectorEnv`: what the scripts step."""

import math
from collections import defaultdict
from collections.abc import Callable
from copy import deepcopy
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import (
    AsyncVectorEnv,
    AutoresetMode,
    SyncVectorEnv,
    VectorActionWrapper,
    VectorEnv,
    VectorWrapper,
)
from gymnasium.vector.utils import batch_space

from envs.base import BatchedEnv, layers
from envs.constraints import VectorMaskFunction
from envs.foreign import KNOWN, AsyncGuests, Guest, GuestBatch, warn_of_statistics
from envs.masks import action_nvec, check_action_mask, check_grid_masks, check_uses, grid_nvec, illegal_actions
from envs.observations import (
    check_kind,
    entities_shape,
    entity_rows,
    flat_dtype,
    flat_size,
    flatten_observations,
    globals_space,
)
from envs.statistics import Statistics

HOW_TO_GIVE_A_MASK = (
    'Give info["action_mask"] in reset() and step(), or a method action_masks() or get_available_actions(), or an '
    'observation dict with the key "action_mask"; or train without masks: --mask-mode none.'
)
POINTS = "points_"  # so begin the names of points against a kind of opponent, NaN in games against another
BY_OTHER = "by_other"  # True where a seat was played by somebody else: the episode does not count
# State beside that of the environments; what legal choices in further fields depend on comes too.
KEPT = ("episode_returns", "episode_lengths", "discounted", "last_obs", "last_mask")


class UniformVectorEnv(VectorWrapper):
    """What the scripts step: any SAME_STEP vector environment, checked, with one form of everything they read.

    * `infos["action_mask"]` (N, sum(nvec)) int8 after every `reset` and `step`, checked (`check_action_mask`).
    * `truncations` are False where the episode terminated as well.
    * `infos["final_obs"]`, where an episode ended: a batched observation, valid in the rows `infos["_final_obs"]`, and
      `infos["final_info"]["action_mask"]` (N, sum(nvec)) its mask.
    * `infos["episode"] = {"r", "l"}`, return and length (N,), valid in the rows `infos["_episode"]`, those of episodes
      that ended and count; `ended` collects them, and what `final_info` says of success and points, until somebody
      clears it.
    * Where the legal choices of a field depend on those of the fields before it, `field_mask` gives them (it is None
      where they do not), and `path_mask` the masks that an action met; `action_mask` is then right for the first field
      only, and may allow too much in the others.
    * `uses` (nvec[0], K) bool says which fields count for each choice in the first, if the environment declares it.
    * `last_obs` and `last_mask` are the last observations and masks that it gave, which are saved with its state.
    * Actions are indices from 0: (N,) for Discrete, else (N, K); an action space's `start` is added here.
    * Observations in a layout: "flat" (N, D) float32; "entities" (N, E, 1 + D) float32, whose first column is 1 where
      an entity is present, from a Dict of `entities` (E, D) and `entity_mask` (E,), or from a matrix (E, D) with
      a presence column; "grid" (N, C, H, W), and "raw", as the environment gives them.
    * A Dict's other keys beside its entities, flattened, end each of their rows: (N, E, 1 + D + G), G `num_globals`.
    * On a grid `action_mask` is (N, 1 + A, H, W), the agent mask in front (`check_grid_masks`), and actions are
      (N, H, W) or, with K > 1 fields, (N, H, W, K).

    Args:
        env: the vector environment.
        require_mask: raise if it gives no mask; otherwise every action counts as legal.
        layout: of the observations.
        presence_column: the column of a matrix observation that is 1 where the entity is present, else 0.
        prev_inputs: append the last action, one-hot by field, and the last reward to the layout "flat": 0 at the start
            of an episode; a final observation comes with those that led to it.
        dependent: whether the script chooses field by field; otherwise fields that depend on each other are refused.
        statistics: by which observations, final ones as well, and rewards are scaled; `episode_returns` are of the
            rewards as they are.
        learns: whether what is seen counts in the statistics; not in evaluation.

    Raises:
        ValueError: another autoreset mode, an unsupported space, scaled observations in a world with past selves, which
            would not see them, and at run time a missing or broken mask, or NaN or inf in an observation or reward,
            with the environment's index.
    """

    def __init__(
        self,
        env: VectorEnv,
        require_mask: bool = True,
        layout: Literal["flat", "entities", "grid", "raw"] = "flat",
        presence_column: int | None = None,
        prev_inputs: bool = False,
        dependent: bool = False,
        statistics: Statistics | None = None,
        learns: bool = True,
    ):
        mode = env.metadata.get("autoreset_mode")
        if mode != AutoresetMode.SAME_STEP:
            raise ValueError(
                f"{env} resets with autoreset mode {mode}; the scripts need AutoresetMode.SAME_STEP, in which the last "
                f"step of an episode returns the next one's first observation. Set metadata['autoreset_mode'], or give "
                f"the id an entry_point so that Gymnasium's vector environments can be used."
            )
        of_guests = isinstance(env, AsyncGuests) or (isinstance(env, SyncVectorEnv) and isinstance(env.envs[0], Guest))
        if isinstance(env.unwrapped, SyncVectorEnv | AsyncVectorEnv) and not of_guests:
            raise ValueError(
                f"{env} holds environments as they are, whose last observations the next episode may overwrite. "
                f"Register the environment itself, with an entry_point: the scripts make as many as they need."
            )
        ours = isinstance(env.unwrapped, BatchedEnv)
        super().__init__(env if ours or of_guests else GuestBatch(env, require_mask))
        self.require_mask, self.layout, self.raw_space = require_mask, layout, env.single_observation_space
        self.presence_column = presence_column
        given = env.single_action_space
        self.nvec = grid_nvec(self.raw_space, given) if layout == "grid" else action_nvec(given)
        self.start, self.action_shape, self.action_dtype = getattr(given, "start", 0), given.shape, given.dtype
        self.masks_are_checked = getattr(env, "masks_are_checked", False)
        if layout in ("flat", "entities"):
            shape = (
                (flat_size(self.raw_space),) if layout == "flat" else entities_shape(self.raw_space, presence_column)
            )
            if layout == "entities":
                self.globals = globals_space(self.raw_space)
                self.num_globals = flat_size(self.globals)
            if prev_inputs:
                shape = (shape[0] + self.nvec.sum() + 1,)
            self.single_observation_space = spaces.Box(-np.inf, np.inf, shape, np.float32)
            self.observation_space = batch_space(self.single_observation_space, env.num_envs)
        warn_of_statistics(env)
        chain = layers(env)
        self.declared = next((e for e in chain if isinstance(e, VectorMaskFunction)), None)
        asked = next((e for e in chain if getattr(e, "field_masks", None)), None)
        self.dependent, self.joint, self.field_masks = dependent, None, getattr(asked, "field_masks", None)
        for wrapper in chain[: chain.index(asked or self.declared or env)]:
            if require_mask and isinstance(wrapper, VectorActionWrapper):
                what = f"{type(wrapper).__name__} changes actions between the script and the mask's function"
                raise ValueError(f"{what}, whose mask is of other actions then; expected it inside of that function.")
        if of_guests and env.get_attr("by_field")[0]:
            self.field_masks = lambda chosen: np.stack(env.call("field_mask_of_row", chosen))
        uses = None  # of a grid's agents; elsewhere an attribute of this name is the environment's own
        if layout == "grid":
            uses = env.get_attr("uses")[0] if of_guests else getattr(env.unwrapped, "uses", None)
        self.field_masks = self.field_masks if len(self.nvec) > 1 else None  # a single field depends on nothing
        self.uses = None if uses is None else check_uses(uses, self.nvec)
        self.statistics, self.learns, self.obs_dtype = statistics or None, learns, flat_dtype(self.raw_space)
        if statistics and statistics.obs:
            if getattr(env.unwrapped, "meets", False):
                raise ValueError("--norm-obs: past selves see observations as the world gives them. Leave it out.")
            self.obs_dtype = np.dtype(np.float32)
        self.digits = np.float64 if statistics and statistics.obs else np.float32
        if layout != "grid":
            one = len(self.nvec) == 1
            self.single_action_space = spaces.Discrete(self.nvec[0]) if one else spaces.MultiDiscrete(self.nvec)
            self.action_space = batch_space(self.single_action_space, env.num_envs)
        self.previous = np.zeros((env.num_envs, self.nvec.sum() + 1), np.float32) if prev_inputs else None
        self.episode_returns, self.episode_lengths = np.zeros(env.num_envs), np.zeros(env.num_envs, np.int64)
        self.discounted = np.zeros(env.num_envs)  # rewards of each running episode
        self.ended: defaultdict[str, list[float]] = defaultdict(list)  # figures of the episodes that ended
        self.tells_success = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset all environments; from one seed each of a guest's gets its own, which no other seed's share."""
        if seed is not None and isinstance(self.env, SyncVectorEnv | AsyncGuests):
            seed = (np.random.SeedSequence(seed).generate_state(self.num_envs) >> 1).tolist()  # some take 31 bits
        obs, infos = self.env.reset(seed=seed, options=options)
        self.episode_returns[:], self.episode_lengths[:], self.discounted[:] = 0.0, 0, 0.0
        if self.previous is not None:
            self.previous[:] = 0
        check_kind(self.raw_space, obs)
        self.last_obs, self.last_mask = self._observation(obs), self._mask(infos)
        return self.last_obs, {"action_mask": self.last_mask}

    def step(self, actions: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Step all environments."""
        played = actions.reshape(self.num_envs, *self.action_shape) + self.start
        obs, rewards, terminations, truncations, given = self.env.step(played.astype(self.action_dtype, copy=False))
        if not math.isfinite(rewards.sum()) and len(bad := np.flatnonzero(~np.isfinite(rewards))):
            row = bad[0]
            raise ValueError(f"Environment {row}: the reward is {rewards[row]}; expected a finite number.")
        self.episode_returns += rewards
        self.episode_lengths += 1
        ended = terminations | truncations
        if self.statistics:
            self.discounted = self.discounted * self.statistics.gamma + rewards
            rewards = self.statistics.scale_rewards(rewards, self.discounted, self.learns)
            self.discounted[ended] = 0.0
        if self.previous is not None:
            self.previous[:] = 0
            columns = actions.reshape(self.num_envs, -1) + (np.cumsum(self.nvec) - self.nvec)
            np.put_along_axis(self.previous, columns, 1, axis=1)
            self.previous[:, -1] = rewards
        infos = self._finished(given, ended) if ended.any() else {}
        if self.previous is not None:
            self.previous[ended] = 0
        self.last_obs, self.last_mask = self._observation(obs), self._mask(given)
        infos["action_mask"] = self.last_mask
        return self.last_obs, rewards, terminations, truncations & ~terminations, infos

    def illegal(self, actions: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Whether each environment's action breaks its mask, (N,); on a grid the share of its agents that do."""
        if self.layout != "grid":
            return illegal_actions(actions, mask, self.nvec)
        agents = mask[:, 0].astype(bool)
        flat = np.moveaxis(mask[:, 1:], 1, -1)[agents]  # (P, A)
        broken = np.zeros(agents.shape)
        broken[agents] = illegal_actions(actions[agents], flat, self.nvec)
        return broken.sum((1, 2)) / np.maximum(agents.sum((1, 2)), 1)

    @property
    def field_mask(self) -> Callable[[np.ndarray], np.ndarray] | None:
        """Maps what was chosen so far (N, k) to the mask (N, nvec[k]) of the next field; None for independent fields.

        It is for the present states, and raises ValueError where nothing is legal after what was chosen.
        """
        return self._field_mask if self.field_masks or self.joint is not None else None

    def path_mask(self, actions: np.ndarray) -> np.ndarray:
        """The masks (N, ...) that actions (N, K) meet in the present states: each field's, after those before it."""
        if self.field_mask is None:
            return self.last_mask
        legal, parts, rows = actions.copy(), [], np.arange(self.num_envs)
        for k in range(len(self.nvec)):
            parts.append(self._field_mask(legal[:, :k]))
            # After an illegal choice, which breaks its mask whatever follows, the path goes on with a legal one.
            legal[:, k] = np.where(parts[k][rows, actions[:, k]], actions[:, k], parts[k].argmax(1))
        return np.concatenate(parts, axis=1)

    def all_legal(self, mask: np.ndarray) -> np.ndarray:
        """The mask as if every action were legal; on a grid agents stay where they are."""
        free = np.ones_like(mask)
        if self.layout == "grid":
            free[:, 0] = mask[:, 0]
        return free

    def get_state(self) -> dict[str, Any] | None:
        """All state, running episodes and what was last seen included; None if the environments cannot be saved."""
        if not all(hasattr(self.env.unwrapped, name) for name in ("get_state", "set_state")):
            return None
        kept = {name: getattr(self, name).copy() for name in KEPT} | {"env": self.env.unwrapped.get_state()}
        seen = deepcopy(self.declared.seen) if self.declared else None
        return kept | {"joint": deepcopy(self.joint), "seen": seen}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_state` gave."""
        for name in KEPT:
            setattr(self, name, state[name])
        self.joint = state["joint"]
        if self.declared:
            self.declared.seen = state["seen"]
        self.env.unwrapped.set_state(state["env"])

    def _finished(self, given: dict[str, Any], ended: np.ndarray) -> dict[str, Any]:
        """What the infos say of the episodes that ended."""
        episode = {"r": self.episode_returns.copy(), "l": self.episode_lengths.copy()}
        self.episode_returns[ended], self.episode_lengths[ended] = 0.0, 0
        final_obs, rows = given["final_obs"], np.flatnonzero(ended)
        if isinstance(final_obs, np.ndarray) and final_obs.dtype == object:  # Gymnasium's: one object a row, or None
            batch = gym.vector.utils.create_empty_array(self.raw_space, self.num_envs)
            filled = [final_obs[i if ended[i] else rows[0]] for i in range(self.num_envs)]
            final_obs = gym.vector.utils.concatenate(self.raw_space, filled, batch)
        final_info = {k: v for k, v in given["final_info"].items() if k in KNOWN or k.startswith(POINTS)}
        for name, values in final_info.items():  # NaN where an episode ended that does not know it
            unknown = ended & ~given["final_info"].get(f"_{name}", ended)
            final_info[name] = np.where(unknown, np.nan, values) if unknown.any() else values
        counted = ended & ~given["final_info"].get(BY_OTHER, np.zeros_like(ended))
        figures = {"episodic_return": episode["r"], "episodic_length": episode["l"]}
        figures |= {k: v for k, v in final_info.items() if k.startswith(POINTS)}
        self.tells_success |= "success" in final_info
        if self.tells_success:  # some say so only of what succeeds
            figures["success"] = np.nan_to_num(final_info.get("success", np.zeros(self.num_envs)))
        for name, values in figures.items():
            if known := values[counted & ~np.isnan(values)].tolist():
                self.ended[name].extend(known)
        final_info["action_mask"] = self._final_mask(given["final_info"], ended)
        return {
            "episode": episode,
            "_episode": counted,
            "final_obs": self._observation(final_obs, learn=False),
            "_final_obs": ended,
            "final_info": final_info,
        }

    def _field_mask(self, chosen: np.ndarray) -> np.ndarray:
        k, rows = chosen.shape[1], np.arange(self.num_envs)
        if self.joint is None:
            try:
                mask = np.asarray(self.field_masks(chosen))
            except ValueError:
                if self.require_mask:
                    raise
                mask = np.ones((self.num_envs, self.nvec[k]), np.int8)
        else:
            mask = self.joint[rows, *chosen.T]  # (N, A_k, ..., A_K)
            mask = mask.any(tuple(range(2, mask.ndim)))
        start = self.nvec[:k].sum()  # a wrapper may have narrowed the mask further
        mask = mask.astype(np.int8) & self.last_mask[:, start : start + self.nvec[k]]
        stuck = ~mask.any(1)
        if stuck.any():
            row = np.flatnonzero(stuck)[0]
            raise ValueError(
                f"Environment {row}: after the choices {chosen[row].tolist()} nothing is legal in field {k}. Every "
                f"legal choice must leave a legal one in the fields after it."
            )
        return mask

    def _mask(self, infos: dict[str, Any]) -> np.ndarray:
        """The masks of states that somebody acts in, (N, ...), all of them there and checked."""
        self.joint = None
        if len(self.nvec) > 1 and np.shape(infos.get("action_mask"))[1:] == tuple(self.nvec):
            infos = infos | {"action_mask": self._marginals(infos)}
        if self.require_mask and not self.dependent and self.field_mask is not None:
            raise ValueError(
                "Which choices are legal depends on those in the fields before: ppo_action_mask.py chooses field by "
                "field, this script does not."
            )
        if self.masks_are_checked:
            return infos["action_mask"]
        if self.layout == "grid":
            self._expect("agent_mask", infos, 'No agent mask: expected info["agent_mask"] (H, W), 1 where an agent is.')
            agents = infos["agent_mask"]
            if self.require_mask:
                words = 'No action mask: expected info["action_mask"] (A, H, W), or --mask-mode none.'
                self._expect("action_mask", infos, words)
            elif "action_mask" not in infos:
                infos = {"action_mask": np.ones((self.num_envs, self.nvec.sum(), *agents.shape[1:]), np.int8)}
            return check_grid_masks(infos["action_mask"], agents, self.nvec)
        return self._flat_mask(infos, self.nvec)

    def _flat_mask(self, infos: dict[str, Any], nvec: np.ndarray) -> np.ndarray:
        """The masks (N, sum(nvec)); if they are not required, every action is legal where one is missing or broken."""
        if self.require_mask:
            self._expect("action_mask", infos, f"No action mask was given. {HOW_TO_GIVE_A_MASK}")
            return check_action_mask(infos["action_mask"], nvec)
        free = np.ones((self.num_envs, nvec.sum()), np.int8)
        try:  # here it only counts who plays illegally, and must not stop those who play without it
            given = np.where(infos["_action_mask"][:, None], infos["action_mask"], free)
            return check_action_mask(given, nvec, ended=True)
        except (KeyError, ValueError):
            return free

    def _marginals(self, infos: dict[str, Any]) -> np.ndarray:
        """The masks (N, sum(nvec)) of choices that some legal action has, by a joint mask (N, *nvec), which is kept."""
        flat = {"action_mask": infos["action_mask"].reshape(self.num_envs, -1)}
        joint = self._flat_mask(infos | flat, np.array([self.nvec.prod()]))
        joint = joint | ~joint.any(axis=1, keepdims=True)  # empty ones are let through where none is required
        self.joint = joint.reshape(self.num_envs, *self.nvec)
        axes = range(1, self.joint.ndim)
        return np.concatenate([self.joint.any(tuple(a for a in axes if a != k)) for k in axes], axis=1)

    def _final_mask(self, infos: dict[str, Any], ended: np.ndarray) -> np.ndarray:
        """The masks of the states that episodes ended in, 0 elsewhere and where there is none: nobody acts in them."""
        names = ("action_mask", "agent_mask") if self.layout == "grid" else ("action_mask",)
        if not set(names) <= infos.keys() or self.field_mask is not None:
            return np.zeros_like(self.last_mask)
        try:
            masks = [np.where(ended.reshape(-1, *[1] * (infos[name].ndim - 1)), infos[name], 0) for name in names]
            check = check_grid_masks if self.layout == "grid" else check_action_mask
            return check(*masks, self.nvec, ended=True)
        except ValueError:
            if self.require_mask:
                raise
            return np.zeros_like(self.last_mask)

    def _expect(self, name: str, infos: dict[str, Any], sentence: str) -> None:
        missing = ~infos.get(f"_{name}", np.zeros(self.num_envs, bool))
        if missing.any():
            raise ValueError(f"Environment {np.flatnonzero(missing)[0]}: {sentence[0].lower()}{sentence[1:]}")

    def _observation(self, obs: Any, learn: bool = True) -> Any:
        if self.layout == "raw":
            return obs
        if self.layout == "grid":
            flat = seen = obs
        elif self.layout == "entities":
            flat, seen = entity_rows(obs, self.presence_column, self.globals, self.digits)
        else:
            flat = seen = flatten_observations(self.raw_space, obs, self.num_envs, self.digits)
        if seen.dtype.kind == "f" and not np.isfinite(seen).all():
            row, *place = np.argwhere(~np.isfinite(seen))[0].tolist()
            raise ValueError(
                f"Environment {row}: the observation holds {seen[row, *place]} at entry {place} of its {self.layout} "
                f"form; expected finite numbers. Training stops here, before they reach the network."
            )
        if self.statistics:
            flat = self.statistics.scale_observations(flat, self.layout, learn and self.learns)
        return flat if self.previous is None else np.concatenate([flat, self.previous], axis=1)
