"""A maze with new random walls in every episode: the walls around the agent are its action mask."""

from enum import IntEnum

import numpy as np
from gymnasium import spaces

from envs.base import BatchedEnv
from envs.drawing import ACCENT, GOLD, GRID, ILLEGAL, INK, LEGAL, MUTED, PAPER, canvas, cross, pixels, text

Move = IntEnum("Move", ["UP", "DOWN", "LEFT", "RIGHT"], start=0)

WALL, FREE, GOAL = 1, 0, -1  # what the map holds; so "may be entered" is `<= FREE`
VIEW, TRAIL = 4, 2  # how far the agent sees walls and its own trail: windows of 9x9 and 5x5 cells
STEP_COST = 1 / 64  # a binary fraction, so that sums of rewards are exact


class Maze(BatchedEnv):
    def __init__(
        self,
        num_envs: int,
        size: int = 8,
        density: float = 0.25,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
    ):
        if size < 2:
            raise ValueError(f"size must be at least 2, got {size}.")
        if not 0 <= density <= 0.5:
            raise ValueError(f"density must be in [0, 0.5], got {density}.")
        view, trail = np.arange(-VIEW, VIEW + 1), np.arange(-TRAIL, TRAIL + 1)
        super().__init__(
            num_envs,
            spaces.Box(-1, 1, (view.size**2 + trail.size**2 + 4,), np.float32),
            spaces.Discrete(len(Move)),
            4 * size if max_episode_steps is None else max_episode_steps,
            render_mode,
        )
        self.size, self.density = size, density
        # A cell is one integer, its place in the flattened map. The map has a margin of walls as wide as the view, so
        # that looking and walking never need a bounds check.
        self.width = width = size + 2 * VIEW
        inner = np.arange(VIEW, VIEW + size)
        self._cells = (inner[:, None] * width + inner).ravel()
        self._moves = np.array([-width, width, -1, 1])
        self._window = np.concatenate(
            [(view[:, None] * width + view).ravel(), width**2 + (trail[:, None] * width + trail).ravel()]
        )
        self._xy = (np.indices((width, width))[::-1].reshape(2, -1).T / size).astype(np.float32)
        self.maps = np.ones((num_envs, 2, width**2), np.float32)  # WALL, FREE or GOAL; the trail
        self.distances = np.full((num_envs, width**2), -1, np.int64)
        self.cell, self.goal, self.optimal_length = np.zeros((3, num_envs), np.int64)

    state_arrays = ("maps", "distances", "cell", "goal", "optimal_length")

    def best_actions(self) -> np.ndarray:
        """A move along a shortest path to the goal, for each environment: (N,) int64."""
        ahead = self.distances[self._rows[:, None], self.cell[:, None] + self._moves]
        return np.where(ahead < 0, self.width**2, ahead).argmin(axis=1)

    def _reset_rows(self, rows: np.ndarray) -> None:
        while len(rows):
            draws = self._uniform(rows, self.size**2 + 2)
            free = draws[:, 2:] >= self.density
            goal = self._cells[_pick(free, draws[:, 0])]
            maps = np.ones((len(rows), 2, self.width**2), np.float32)
            maps[:, 0, self._cells] = ~free
            maps[:, 1] = 0
            distances = _distances(maps[:, 0] == FREE, goal, self.width)
            starts = (distances > 0) & (distances <= self.max_episode_steps)
            start = _pick(starts, draws[:, 1])
            here = np.arange(len(rows))
            maps[here, 0, goal] = GOAL
            maps[here, 1, start] = 0.25
            self.maps[rows], self.distances[rows], self.cell[rows], self.goal[rows] = maps, distances, start, goal
            self.optimal_length[rows] = distances[here, start]
            rows = rows[(distances >= 0).sum(axis=1) < self.size]

    def _advance(self, actions):
        first = self._rows * 2 * self.width**2
        target = self.cell + self._moves[actions]
        maps = self.maps.reshape(-1)
        self.cell = np.where(maps.take(first + target) <= FREE, target, self.cell)
        here = first + self.width**2 + self.cell
        maps[here] = np.minimum(maps[here] + 0.25, 1)
        arrived = self.cell == self.goal
        return arrived - STEP_COST, arrived

    def _observe(self, rows):
        cell = self.cell[rows]
        around = self.maps.take((rows * 2 * self.width**2 + cell)[:, None] + self._window)
        compass = self._xy[self.goal[rows]] - self._xy[cell]
        return np.concatenate([around, compass, np.sign(compass)], axis=1)

    def _info(self, rows):
        around = self.maps.take((rows * 2 * self.width**2 + self.cell[rows])[:, None] + self._moves)
        return {"action_mask": (around <= FREE).astype(np.int8)}

    def _final_info(self, rows):
        length = self.optimal_length[rows]
        return {"optimal_return": 1 - STEP_COST * length, "optimal_length": length}


def _pick(flags: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """The index (R,) of one of the True entries of each row of `flags` (R, K), each equally likely."""
    counts = flags.cumsum(axis=1)
    return (counts > (draws * counts[:, -1])[:, None]).argmax(axis=1)


def _distances(free: np.ndarray, goals: np.ndarray, width: int) -> np.ndarray:
    """Steps (R, width**2) int64 from every cell to the goal of its row, -1 where no path leads there.

    Breadth-first search in all rows at once: one big integer holds one bit per cell, and shifting it takes a step in
    every row. That is many times faster than NumPy, whose cost per call dominates on maps this small.
    """
    reached = np.zeros_like(free)
    reached[np.arange(len(free)), goals] = True
    nbytes = (free.size + 7) // 8
    open_bits, bits = (int.from_bytes(np.packbits(x, bitorder="little").tobytes(), "little") for x in (free, reached))
    bits &= open_bits
    levels, before = [], None
    while bits != before:
        levels.append(bits.to_bytes(nbytes, "little"))
        before, bits = bits, bits | (bits << 1 | bits >> 1 | bits << width | bits >> width) & open_bits
    seen = np.unpackbits(np.frombuffer(b"".join(levels), np.uint8).reshape(len(levels), nbytes), axis=1, bitorder="little")
    age = seen[:, : free.size].sum(axis=0, dtype=np.int64).reshape(free.shape)
    return np.where(age > 0, len(levels) - age, -1)
