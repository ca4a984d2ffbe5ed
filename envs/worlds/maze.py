"""A maze with new random walls in every episode: the walls around the agent are its action mask."""

from enum import IntEnum
from typing import Any

import numpy as np
from gymnasium import spaces

from envs.base import BatchedEnv
from envs.worlds.drawing import ACCENT, GOLD, GRID, INK, LEGAL, PAPER, canvas, cross, pixels, text

Move = IntEnum("Move", ["UP", "DOWN", "LEFT", "RIGHT"], start=0)

WALL, FREE, GOAL = 1, 0, -1  # what the map holds: cells up to FREE may be entered
MAX_SIZE = 128  # the search for ways keeps a bit of each cell for each step
VIEW, TRAIL = 4, 2  # how far the agent sees walls, and its own trail: windows of 9 x 9 and 5 x 5 cells
VISIT = 0.25  # what one visit adds to the trail
STEP_COST = 1 / 64  # a binary fraction, so that sums of rewards are exact
WALL_TOP, WALL_EDGE, TRAIL_DOT = "#52606d", "#7b8794", "#a9c1de"


class Maze(BatchedEnv):
    """Find the goal of a maze that has never been seen before.

    ## Description
    A square of `size` x `size` cells, each of them a wall with probability `density`. The agent walks from cell to cell
    towards the goal, which it always can reach. It sees the walls near it, where the goal lies, and where it has
    been: enough for a policy without memory to search a maze without going in circles.

    ## Action Space
    `Discrete(4)`, actions (N,) integers, the values of `Move`:

    - 0: up
    - 1: down
    - 2: left
    - 3: right

    ## Observation Space
    A `Box` of 110 float32 in [-1, 1], all as seen from the agent, windows row by row:

    | index | content |
    |-|-|
    | 0-80 | the 9 x 9 cells around the agent: 1 wall (also beyond the border), 0 free, -1 the goal |
    | 81-105 | the trail in the 5 x 5 cells around the agent: 0.25 for each step that ended there, at most 1 |
    | 106-107 | how far the goal is to the right and down, divided by `size` |
    | 108-109 | the signs of these two |

    With `trail` False the trail is left out, 85 float32: an agent without memory walks in circles.

    ## Rewards
    -1/64 in every step, and +1 on reaching the goal.

    ## Starting State
    Random walls, a goal uniform among the free cells, and a start uniform among the cells from which the goal can be
    reached within `max_episode_steps`. A maze in which fewer than `size` cells are connected to the goal is redrawn.

    ## Episode End
    Termination: the agent reaches the goal. Truncation: after `max_episode_steps`. `final_info` has the length of the
    shortest path from the start, `optimal_length`, and its return, `optimal_return`.

    ## Action Mask
    `action_mask` (N, 4) int8, 1 where legal. Moves into a wall or beyond the border are illegal. They leave the agent
    where it is, and the step is lost.

    ## Arguments
    Args:
        num_envs: N, environments in the batch.
        size: cells along one side, 2 to 128.
        density: the probability that a cell is a wall, 0 to 0.5.
        max_episode_steps: steps until truncation; default 4 * size.
        trail: whether the observation holds the trail.
        render_mode: "rgb_array", "ansi" or None.

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> import gymnasium as gym
        >>> env = gym.make("Masked/Maze-v0", size=5)
        >>> obs, info = env.reset(seed=0)
        >>> obs.shape, info["action_mask"]
        ((110,), array([0, 0, 1, 1], dtype=int8))
        >>> same, reward, terminated, truncated, info = env.step(Move.UP)  # illegal: only the trail changes
        >>> np.flatnonzero(same != obs), reward
        (array([93]), -0.015625)

        The batched version has the answer as well, a move along a shortest path for each environment:

        >>> envs = gym.make_vec("Masked/Maze-v0", num_envs=3)
        >>> obs, infos = envs.reset(seed=1)
        >>> infos["action_mask"][np.arange(3), envs.unwrapped.best_actions()]
        array([1, 1, 1], dtype=int8)
    """

    state_arrays = ("maps", "distances", "cell", "goal", "optimal_length")

    def __init__(
        self,
        num_envs: int,
        size: int = 8,
        density: float = 0.25,
        max_episode_steps: int | None = None,
        trail: bool = True,
        render_mode: str | None = None,
    ):
        if not 2 <= size <= MAX_SIZE:
            raise ValueError(f"size must be 2 to {MAX_SIZE}, got {size}.")
        if not 0 <= density <= 0.5:
            raise ValueError(f"density must be in [0, 0.5], got {density}.")
        limit = 4 * size if max_episode_steps is None else max_episode_steps
        num_features = (2 * VIEW + 1) ** 2 + trail * (2 * TRAIL + 1) ** 2 + 4
        observation_space = spaces.Box(-1, 1, (num_features,), np.float32)
        super().__init__(num_envs, observation_space, spaces.Discrete(len(Move)), limit, render_mode)
        # A cell is one integer, its place in the flattened map, whose margin of walls is as wide as the view: looking
        # and walking need no check of the borders, and one `take` gathers both windows of the observation.
        self.size, self.density, self.width = size, density, size + 2 * VIEW
        self.num_cells = self.width**2
        self.cells = np.arange(self.num_cells).reshape(self.width, -1)[VIEW:-VIEW, VIEW:-VIEW].ravel()  # without margin
        self.moves = np.array([-self.width, self.width, -1, 1])  # (4,) what each Move adds to the agent's cell
        self._windows = self._window(VIEW)
        if trail:
            self._windows = np.concatenate([self._windows, self._window(TRAIL) + self.num_cells])
        self._xy = (np.indices((self.width, self.width))[::-1].reshape(2, -1).T / size).astype(np.float32)
        self._first = self._rows * 2 * self.num_cells  # where each environment's map begins in `maps`

        self.maps = np.zeros((num_envs, 2, self.num_cells), np.float32)  # walls and goal, trail
        self.distances = np.zeros((num_envs, self.num_cells), np.int64)  # steps to the goal, -1: none leads there
        self.cell, self.goal, self.optimal_length = np.zeros((3, num_envs), np.int64)

    def best_actions(self) -> np.ndarray:
        """A move (N,) int64 along a shortest path to the goal."""
        ahead = self.distances[self._rows[:, None], self.cell[:, None] + self.moves]
        return np.where(ahead < 0, self.num_cells, ahead).argmin(axis=1)

    def _reset_rows(self, rows: np.ndarray) -> None:
        while len(rows):
            here = np.arange(len(rows))
            draws = self._uniform(rows, 2 + self.size**2)  # for the goal, the start, and the walls
            free = draws[:, 2:] >= self.density
            maps = np.full((len(rows), 2, self.num_cells), WALL, np.float32)
            maps[:, 0, self.cells] = ~free
            goal = self.cells[_pick(free, draws[:, 0])]
            distances = _distances(maps[:, 0] == FREE, goal, self.width)
            cell = _pick((distances > 0) & (distances <= self.max_episode_steps), draws[:, 1])
            maps[here, 0, goal] = GOAL
            maps[:, 1] = 0
            maps[here, 1, cell] = VISIT
            self.maps[rows], self.distances[rows], self.cell[rows], self.goal[rows] = maps, distances, cell, goal
            self.optimal_length[rows] = distances[here, cell]
            rows = rows[(distances >= 0).sum(axis=1) < self.size]

    def _advance(self, actions: Any) -> tuple[np.ndarray, np.ndarray]:
        target = self.cell + self.moves[actions]
        maps = self.maps.reshape(-1)
        self.cell = np.where(maps[self._first + target] <= FREE, target, self.cell)
        trail = self._first + self.num_cells + self.cell
        maps[trail] = np.minimum(maps[trail] + VISIT, 1)
        arrived = self.cell == self.goal
        return arrived - STEP_COST, arrived

    def _observe(self, rows: np.ndarray) -> np.ndarray:
        cell = self.cell[rows]
        windows = self.maps.take((self._first[rows] + cell)[:, None] + self._windows)
        compass = self._xy[self.goal[rows]] - self._xy[cell]
        return np.concatenate([windows, compass, np.sign(compass)], axis=1)

    def _info(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        ahead = self.maps.take((self._first[rows] + self.cell[rows])[:, None] + self.moves)
        return {"action_mask": (ahead <= FREE).astype(np.int8)}

    def _final_info(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        length = self.optimal_length[rows]
        return {"optimal_return": 1 - STEP_COST * length, "optimal_length": length}

    def _window(self, radius: int) -> np.ndarray:
        """What to add to a cell to get the cells around it, row by row."""
        reach = np.arange(-radius, radius + 1)
        return (reach[:, None] * self.width + reach).ravel()

    def _headline(self, row: int) -> str:
        left = self.distances[row, self.cell[row]]
        return (
            f"step {self.elapsed[row]}/{self.max_episode_steps}, {left} to go, shortest path {self.optimal_length[row]}"
        )

    def _render_ansi(self, row: int) -> str:
        walls, trail = self.maps[row]
        signs = np.select([walls == WALL, walls == GOAL, trail > 0], ["██", "★ ", "· "], "  ")
        signs[self.cell[row]] = "● "
        lines = ["│" + "".join(line) + "│" for line in signs[self.cells].reshape(self.size, self.size)]
        border, mask = "──" * self.size, self._info(np.array([row]))["action_mask"][0]
        legal, blocked = (", ".join(move.name for move in Move if mask[move] == flag) or "none" for flag in (1, 0))
        head = [self._headline(row), f"legal: {legal}; blocked: {blocked}"]
        return "\n".join([*head, f"┌{border}┐", *lines, f"└{border}┘"])

    def _render_rgb(self, row: int) -> np.ndarray:
        # Drawn at twice the size and halved at the end: smooth edges. Only one cell of the margin is shown.
        tile, top = max(24, 960 // (self.size + 2)), 72
        shown = slice(VIEW - 1, 1 - VIEW)
        walls, trail = self.maps[row].reshape(2, self.width, self.width)[:, shown, shown]
        image, draw = canvas(tile * (self.size + 2), tile * (self.size + 2) + top)
        text(draw, (image.width / 2, top / 2 - tile / 12), self._headline(row), min(30, image.width // 16))

        def centre(cell: int) -> np.ndarray:
            return (np.array([cell % self.width, cell // self.width]) - VIEW + 1.5) * tile + (0, top)

        for y, x in np.ndindex(walls.shape):  # from the back to the front: a wall hides the foot of the one behind it
            box = np.array([x, y, x + 1, y + 1]) * tile + (0, top, -1, top - 1)
            middle, dot = (box[:2] + box[2:]) / 2, tile * 0.16 * trail[y, x] ** 0.5
            if walls[y, x] == WALL:
                draw.rectangle([*box], fill=INK)
                draw.rectangle(
                    [*(box - (0, tile // 6, 0, tile // 6))], fill=WALL_TOP, outline=WALL_EDGE, width=tile // 32
                )
            else:
                draw.rectangle([*box], fill=PAPER, outline=GRID, width=tile // 32)
                draw.ellipse([*(middle - dot), *(middle + dot)], fill=TRAIL_DOT)
        _star(draw, centre(self.goal[row]), tile * 0.36)
        here = centre(self.cell[row])
        draw.ellipse([*(here - tile * 0.3), *(here + tile * 0.3)], fill=ACCENT, outline=INK, width=tile // 24)
        ways = np.array([[0, -1], [0, 1], [-1, 0], [1, 0]])
        for way, legal in zip(ways, self._info(np.array([row]))["action_mask"][0], strict=True):
            if legal:
                side, base = way[::-1] * tile * 0.2, here + way * tile * 0.66
                draw.polygon([tuple(base + side), tuple(base - side), tuple(base + way * tile * 0.26)], fill=LEGAL)
            else:
                cross(draw, tuple(here + way * tile * 0.9 - (0, tile / 12)), tile * 0.2, width=tile // 9)
        return pixels(image.reduce(2))


def _star(draw: Any, xy: np.ndarray, radius: float) -> None:
    """A golden star with five points."""
    angles = np.arange(10) * np.pi / 5
    points = xy + radius * np.where(np.arange(10) % 2, 0.45, 1)[:, None] * np.stack(
        [np.sin(angles), -np.cos(angles)], 1
    )
    draw.polygon([tuple(point) for point in points], fill=GOLD, outline=INK)


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
    seen = np.unpackbits(
        np.frombuffer(b"".join(levels), np.uint8).reshape(len(levels), nbytes), axis=1, bitorder="little"
    )
    age = seen[:, : free.size].sum(axis=0, dtype=np.int64).reshape(free.shape)
    return np.where(age > 0, len(levels) - age, -1)
