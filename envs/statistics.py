"""Running statistics of observations and returns, with which the vector layer scales what the scripts read."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium.wrappers.utils import RunningMeanStd
from torch import Tensor

CLIP = 10.0  # deviations


class Statistics:
    """What an agent has learnt about the scale of observations and rewards: a part of it, as its weights are.

    Observations are centred and divided by their deviation, feature by feature: columns of the layout "flat", columns
    of present rows of "entities", planes of "grid". Rewards are divided by the deviation of the discounted return
    (Engstrom et al. 2020, https://arxiv.org/abs/2005.12729, section 3). Both are clipped at 10 deviations.

    Args:
        observations, rewards: whether they are scaled.
        gamma: discount of the return.
    """

    def __init__(self, observations: bool, rewards: bool, gamma: float):
        self.gamma = gamma
        # They take the shape of what they are given. A count of more than 0 at the start would stand for samples at 0,
        # which make the deviation of what is far from there too large for long.
        self.obs = RunningMeanStd(epsilon=0) if observations else None
        self.returns = RunningMeanStd(epsilon=0) if rewards else None

    def __bool__(self) -> bool:
        """Whether anything is scaled."""
        return bool(self._kept())

    def scale_observations(self, obs: np.ndarray, layout: str, learn: bool) -> np.ndarray:
        """Observations in a layout of `UniformVectorEnv`, scaled, float32; with `learn` they count first."""
        if self.obs is None:
            return obs
        rows = np.moveaxis(obs, 1, -1) if layout == "grid" else obs[..., 1:] if layout == "entities" else obs
        counted = rows[obs[..., 0] > 0] if layout == "entities" else rows.reshape(-1, rows.shape[-1])
        if learn and len(counted):
            self.obs.update(counted)
        scaled = ((rows - self.obs.mean) / np.sqrt(self.obs.var + 1e-8)).clip(-CLIP, CLIP).astype(np.float32)
        if layout == "grid":
            return np.moveaxis(scaled, -1, 1)
        return np.concatenate([obs[..., :1], scaled], axis=-1, dtype=np.float32) if layout == "entities" else scaled

    def scale_rewards(self, rewards: np.ndarray, discounted: np.ndarray, learn: bool) -> np.ndarray:
        """Rewards (N,), scaled; with `learn` the discounted sums (N,) of their episodes so far count first."""
        if self.returns is None:
            return rewards
        if learn:
            self.returns.update(discounted)
        return (rewards / np.sqrt(self.returns.var + 1e-8)).clip(-CLIP, CLIP)

    def average(self, mean: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]) -> None:
        """Make them the same on all ranks: the moments' means over them."""
        for x in self._kept().values():
            moments = (torch.as_tensor(m, dtype=torch.float64) for m in (x.mean, x.count))
            center, count = (m.numpy() for m in mean(tuple(moments)))
            (var,) = mean((torch.as_tensor(x.var + (x.mean - center) ** 2),))  # squares around 0 would lose digits
            x.mean, x.var, x.count = center, var.numpy(), float(count)

    def state_dict(self) -> dict[str, Any]:
        """Mean, variance and count of each, as tensors."""
        return {
            name: {key: torch.as_tensor(value, dtype=torch.float64) for key, value in vars(x).items()}
            for name, x in self._kept().items()
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave; ValueError where other things were scaled."""
        if state.keys() != self._kept().keys():
            found = f"it scales {', '.join(state) or 'nothing'} and these flags {', '.join(self._kept()) or 'nothing'}"
            raise ValueError(f"{found}; expected --norm-obs and --norm-reward as they were")
        for name, x in self._kept().items():
            x.mean, x.var, x.count = (state[name][key].numpy().copy() for key in ("mean", "var", "count"))

    def _kept(self) -> dict[str, RunningMeanStd]:
        return {name: x for name, x in (("obs", self.obs), ("returns", self.returns)) if x is not None}
