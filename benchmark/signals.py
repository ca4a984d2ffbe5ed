"""Signals: the smallest world for a team of any size, `--env-id benchmark.signals:Signals-v0`."""

from math import isqrt
from typing import Any

import numpy as np
from gymnasium import spaces

from envs import BatchedEnv, register_batched

BITS, STEPS = 2, 16


class Signals(BatchedEnv):
    """Each cell of a square map is an agent that is shown a number of two bits and has to say which one.

    The team earns the share of its agents that are right, 16 times in an episode. An agent's task is the same however
    many there are, a square number; only the noise grows that the others bring into the team's reward.
    """

    metadata = BatchedEnv.metadata | {"render_modes": []}
    state_arrays = ("numbers",)

    def __init__(self, num_envs: int, num_agents: int = 16):
        side = isqrt(num_agents)
        observation_space = spaces.Box(0, 1, (BITS, side, side), np.uint8)
        action_space = spaces.MultiDiscrete(np.full((side, side), 2**BITS))
        super().__init__(num_envs, observation_space, action_space, STEPS)
        self.numbers = np.zeros((num_envs, side, side), np.int64)

    def _draw(self, rows: np.ndarray) -> None:
        self.numbers[rows] = 2**BITS * self._uniform(rows, *self.numbers.shape[1:])

    def _reset_rows(self, rows: np.ndarray) -> None:
        self._draw(rows)

    def _advance(self, actions: Any) -> tuple[np.ndarray, np.ndarray]:
        rewards = (np.asarray(actions) == self.numbers).mean((1, 2))
        self._draw(self._rows)
        return rewards, np.zeros(self.num_envs, bool)

    def _observe(self, rows: np.ndarray) -> np.ndarray:
        return (self.numbers[rows, None] >> np.arange(BITS)[:, None, None] & 1).astype(np.uint8)

    def _info(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        agents = np.ones((len(rows), *self.numbers.shape[1:]), np.int8)
        return {"agent_mask": agents, "action_mask": np.repeat(agents[:, None], 2**BITS, axis=1)}

    def _final_info(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {"optimal_return": np.full(len(rows), float(STEPS))}


register_batched("Signals-v0", "benchmark.signals:Signals")
