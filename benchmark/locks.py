"""Locks: the smallest world of fields that depend on each other, `--env-id benchmark.locks:Locks-v0`."""

from typing import Any

import numpy as np
from gymnasium import spaces

from envs import BatchedEnv, register_batched

KINDS, STEPS, P_LEGAL = 8, 16, 0.25


class Locks(BatchedEnv):
    """A lock of some kind is shown, which keys of several fields open, each worth something; few combinations turn.

    What a combination earns, in (0, 1], is the mean over its fields of what each choice is worth for this kind, fixed
    and never shown. A random quarter of all combinations turns, others in each step; one that does not earns nothing.
    There are 16 steps.

    Args:
        num_envs: N.
        sizes: of the fields, such as "4x4".
        way: how legal combinations are told: "joint", a mask of whole actions, from which those of fields follow;
            "product", what is legal in some combination, field by field, as independent fields have it; "flat", the
            same as "joint" with all combinations in one field.
    """

    metadata = BatchedEnv.metadata | {"render_modes": []}
    state_arrays = ("kind", "legal", "optimum")

    def __init__(self, num_envs: int, sizes: str = "4x4", way: str = "joint"):
        self.sizes, self.way = tuple(map(int, sizes.split("x"))), way
        flat = spaces.Discrete(int(np.prod(self.sizes)))
        actions = flat if way == "flat" else spaces.MultiDiscrete(self.sizes)
        super().__init__(num_envs, spaces.Discrete(KINDS), actions, STEPS + 1)
        worth = [np.random.default_rng(k).random((KINDS, size)) for k, size in enumerate(self.sizes)]
        axes = range(len(self.sizes))
        spread = [w.reshape(KINDS, *(-1 if a == k else 1 for a in axes)) for k, w in enumerate(worth)]
        self.worth = sum(spread) / len(self.sizes)  # (KINDS, *sizes)
        self.kind, self.optimum = np.zeros(num_envs, np.int64), np.zeros(num_envs)
        self.legal = np.zeros((num_envs, *self.sizes), bool)

    def _draw(self, rows: np.ndarray) -> None:
        self.kind[rows] = KINDS * self._uniform(rows)
        draws = self._uniform(rows, *self.sizes)
        least = draws.reshape(len(rows), -1).min(1).reshape(-1, *np.ones(len(self.sizes), int))
        self.legal[rows] = (draws < P_LEGAL) | (draws == least)  # one at least

    def _reset_rows(self, rows: np.ndarray) -> None:
        self._draw(rows)
        self.optimum[rows] = 0

    def _advance(self, actions: Any) -> tuple[np.ndarray, np.ndarray]:
        offers = (self.worth[self.kind] * self.legal).reshape(self.num_envs, -1)
        if self.way != "flat":
            actions = np.ravel_multi_index(np.asarray(actions).T, self.sizes)
        rewards = offers[self._rows, actions]
        self.optimum += offers.max(1)
        self._draw(self._rows)
        return rewards, self.elapsed + 1 >= STEPS

    def _observe(self, rows: np.ndarray) -> np.ndarray:
        return self.kind[rows]

    def _info(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        legal, axes = self.legal[rows], range(1, 1 + len(self.sizes))
        if self.way == "flat":
            legal = legal.reshape(len(rows), -1)
        if self.way == "product":
            legal = np.concatenate([legal.any(tuple(a for a in axes if a != k)) for k in axes], axis=1)
        return {"action_mask": legal.astype(np.int8)}

    def _final_info(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {"optimal_return": self.optimum[rows]}


register_batched("Locks-v0", "benchmark.locks:Locks")
