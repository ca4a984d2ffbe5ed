"""Environments that others wrote: their conventions for masks become one."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from envs.masks import action_nvec, check_action_mask


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
