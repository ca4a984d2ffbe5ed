"""Harvest: a team whose size rises and falls brings resources home; the world around each worker is its mask."""

from enum import IntEnum
from typing import Any

import numpy as np
from gymnasium import spaces

from envs.base import BatchedEnv
from envs.worlds.drawing import ACCENT, GOLD, GRID, ILLEGAL, INK, LEGAL, MUTED, PAPER, canvas, cross, pixels, text

ACTIONS = [f"{verb}_{way}" for verb in ("MOVE", "GATHER", "RETURN") for way in ("UP", "DOWN", "LEFT", "RIGHT")]
Action = IntEnum("Action", ["STAY", *ACTIONS], start=0)
Kind = IntEnum("Kind", ["WALL", "FREE", "RESOURCE", "BASE", "HAZARD", "WORKER", "LOADED"], start=0)  # what a cell holds

STEPS = np.array([[0, 0], *[[-1, 0], [1, 0], [0, -1], [0, 1]] * 3])  # (A, 2) where each action points: down, right
VERBS = np.array([0, *[1] * 4, *[2] * 4, *[3] * 4])  # (A,) 0 stay, 1 move, 2 gather, 3 return
RING = np.array([[y, x] for y in (-1, 0, 1) for x in (-1, 0, 1) if y or x])  # (8, 2) the cells around the base
LEGAL_WHEN = np.zeros((len(Kind), len(Action), len(Kind)), bool)  # [worker, action, what lies where the action points]
LEGAL_WHEN[Kind.WORKER :, Action.STAY] = True
LEGAL_WHEN[Kind.WORKER :, 1:5, [Kind.FREE, Kind.HAZARD]] = True
LEGAL_WHEN[Kind.WORKER, 5:9, Kind.RESOURCE] = LEGAL_WHEN[Kind.LOADED, 9:, Kind.BASE] = True

MANY = 5  # units in a resource that all workers around it can gather from, with some to spare
REWARD = 0.5  # for each unit gathered, and again for each unit returned
NEW, LOST = -1, 3 * len(Action)  # what `last` holds beside `action + len(Action) * outcome`
OUTCOMES = ("done", "too many wanted it", "illegal")

LEGEND = {"moved": ACCENT, "gathered": GOLD, "returned": LEGAL, "too many at once": MUTED, "illegal, lost": ILLEGAL}
ANGLES = np.arange(1, 97, 2) * np.pi / 48
CIRCLE = np.stack([np.sin(ANGLES), np.cos(ANGLES)], axis=1)  # outlines, in cells, around the middle of a cell
OCTAGON, SPIKES = CIRCLE[2::6], CIRCLE[1::3] * np.where(np.arange(16) % 2, 0.44, 0.28)[:, None]
ARROW = np.array([[0, -6], [24, -6], [24, -17], [50, 0], [24, 17], [24, 6], [0, 6]]) / 100  # (7, 2) along, across


class Harvest(BatchedEnv):
    """Bring home as much as possible with a team of workers, one action for each cell that holds one.

    ## Description
    A grid of `height` x `width` cells with a base, resources of limited amount, hazards and workers, at most one thing
    in a cell. Workers walk, gather one unit at a time from a resource next to them, and return it to the base when they
    stand next to it. For every `workers_cost` units in stock the base makes another worker on a free cell among the
    eight around it, up to `max_workers` in the field and one in a step. Hazards wander: in each step each of them
    enters a random neighbouring cell that is free or holds a worker, and that worker is lost, with its load. So the
    number of agents rises and falls, and may be zero; after `respawn` steps without a worker one comes free of charge.

    A step is played in this order, everything within one of these at once, so that no order of cells matters:

    1. Workers act. Where several want to enter the same cell, none does; where more gather from a resource than it has
       units left, none gets one. Any number may return at once. An empty resource leaves a free cell.
    2. Hazards move; where several want to enter the same cell, none does.
    3. The base makes a worker.

    ## Action Space
    `MultiDiscrete` of shape (H, W) with 13 choices in each cell, actions (N, H, W) integers, the values of `Action`.
    Only those in cells that hold a worker count.

    - 0: stay
    - 1-4: move up, down, left, right
    - 5-8: gather from the resource that lies there
    - 9-12: return the load to the base that lies there

    ## Observation Space
    A `Box` (12, H, W) uint8 of planes, all of them 0 or 1; the last five are the same in all cells:

    | plane | 1 where |
    |-|-|
    | 0 | the cell is free |
    | 1-2 | there is a resource; the base |
    | 3 | there is a hazard |
    | 4-5 | there is a worker without load; with load |
    | 6 | a resource has at least 5 units left |
    | 7-9 | a quarter, half, three quarters of the time have passed |
    | 10-11 | half, all of the price of another worker is in stock |

    ## Rewards
    One for the whole team: +0.5 for each unit gathered and +0.5 for each unit returned. Losing a worker costs nothing
    but what it would have brought. A return is at most the number of units in the field.

    ## Starting State
    The base is uniform among the cells at least two away from the border, with `num_workers` workers on random cells of
    the eight around it. Resources and hazards lie on random cells further away; the amount in each resource is uniform
    from half of `max_amount` to `max_amount`.

    ## Episode End
    Truncation after `max_episode_steps`; no termination. `final_info` has `returned` and `gathered` (units), `workers`
    (in the field at the end), `workers_lost` and `available` (units at the start). The episode's return is at
    most `available`; the best possible one is not known, so there is no `optimal_return`.

    ## Action Mask
    Two masks, laid out like the grid: `agent_mask` (N, H, W) int8 is 1 where there is a worker, `action_mask`
    (N, 13, H, W) int8 is 1 where this worker may do this, and 0 in cells without a worker. Staying is always legal,
    moves are into cells free at the start of the step (or fatally into a hazard's), gathering takes empty hands and a
    resource, returning a load and the base. An illegal action is as good as staying. Legal ones fail only if too many
    want the same, as above: that depends on the other agents.

    ## Arguments
    Args:
        num_envs: N, environments in the batch.
        height: H, 8 to 32.
        width: W, 8 to 32.
        num_workers: workers at the start, 1 to 8.
        max_workers: the base makes no more than this many; at least num_workers.
        workers_cost: units for another worker, at least 1.
        num_resources: cells with resources, at least 1.
        max_amount: the most units that a resource has, at least 1.
        num_hazards: hazards, with the resources at most half of the cells.
        respawn: steps without a worker until a free one comes.
        max_episode_steps: steps until truncation.
        render_mode: "rgb_array", "ansi" or None.

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> import gymnasium as gym
        >>> env = gym.make("Masked/Harvest-v0", num_workers=1, render_mode="ansi")
        >>> obs, info = env.reset(seed=0)
        >>> obs.shape, info["action_mask"].shape, info["agent_mask"].shape
        ((12, 8, 8), (13, 8, 8), (8, 8))
        >>> y, x = np.argwhere(info["agent_mask"])[0]
        >>> info["action_mask"][:, y, x]
        array([1, 1, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0], dtype=int8)
        >>> obs, reward, terminated, truncated, info = env.step(np.full((8, 8), Action.MOVE_LEFT))
        >>> (np.argwhere(info["agent_mask"])[0] - (y, x)).tolist(), reward
        ([0, -1], 0.0)
    """

    state_arrays = ("kinds", "amounts", "last", "base", "hazards", "counts")

    def __init__(
        self,
        num_envs: int,
        height: int = 8,
        width: int = 8,
        num_workers: int = 3,
        max_workers: int = 8,
        workers_cost: int = 5,
        num_resources: int = 6,
        max_amount: int = 20,
        num_hazards: int = 1,
        respawn: int = 10,
        max_episode_steps: int = 100,
        render_mode: str | None = None,
    ):
        for name, value, least, most in (
            ("height", height, 8, 32),
            ("width", width, 8, 32),
            ("num_workers", num_workers, 1, len(RING)),
            ("max_workers", max_workers, num_workers, height * width),
            ("workers_cost", workers_cost, 1, 10000),
            ("num_resources", num_resources, 1, height * width // 2),
            ("max_amount", max_amount, 1, 10000),
            ("num_hazards", num_hazards, 0, height * width // 2 - num_resources),
            ("respawn", respawn, 0, 10000),
        ):
            if not least <= value <= most:
                raise ValueError(f"{name} must be {least} to {most}, got {value}.")
        observation_space = spaces.Box(0, 1, (12, height, width), np.uint8)
        action_space = spaces.MultiDiscrete(np.full((height, width), len(Action)))
        super().__init__(num_envs, observation_space, action_space, max_episode_steps, render_mode)
        self.height, self.width, self.num_workers, self.max_workers = height, width, num_workers, max_workers
        self.workers_cost, self.num_resources, self.max_amount = workers_cost, num_resources, max_amount
        self.num_hazards, self.respawn = num_hazards, respawn
        # A cell is one integer, its place in the flattened maps of all environments, whose margin is a wall: looking
        # and walking need no check of the borders, and the work of a step grows with the workers, not with the cells.
        shape = (num_envs, height + 2, width + 2)
        self.num_cells = shape[1] * shape[2]
        self._first = self._rows * self.num_cells  # where each environment's map begins
        self._inside = np.arange(self.num_cells).reshape(shape[1:])[1:-1, 1:-1].ravel()  # (H * W,) without margin
        self._steps, self._ring = STEPS @ (shape[2], 1), RING @ (shape[2], 1)  # what to add to a cell

        self.kinds = np.zeros(shape, np.uint8)  # what each cell holds: Kind
        self.amounts = np.zeros(shape, np.int64)  # units in each resource
        self.last = np.zeros(shape, np.int8)  # what became of the last action of the worker that is here, for pictures
        self.base, self.hazards = np.zeros(num_envs, np.int64), np.zeros((num_envs, num_hazards), np.int64)
        self.counts = np.zeros((num_envs, 6), np.int64)
        # Units in stock, returned, gathered, and there at the start; workers lost; steps without any worker: views.
        self.stock, self.returned, self.gathered, self.available, self.lost, self.idle = self.counts.T

    def _reset_rows(self, rows: np.ndarray) -> None:
        count, height, width = len(rows), self.height, self.width
        draws = self._uniform(rows, 2 + len(RING) + self.num_resources + height * width)
        where, ring, amounts, cells = np.split(draws, np.cumsum([2, len(RING), self.num_resources]), axis=1)
        base = (where * (height - 4, width - 4)).astype(np.int64) @ (width + 2, 1) + 3 * (width + 3)
        around = base[:, None] + self._ring
        order = np.full((count, self.num_cells), 2.0)
        order.reshape(count, height + 2, -1)[:, 1:-1, 1:-1] = cells.reshape(count, height, width)
        np.put_along_axis(order, np.column_stack([base, around]), 2.0, axis=1)
        order = order.argsort(axis=1)
        resources = order[:, : self.num_resources]
        hazards = order[:, self.num_resources : self.num_resources + self.num_hazards]
        low = (self.max_amount + 1) // 2
        amounts = low + (amounts * (self.max_amount + 1 - low)).astype(np.int64)

        kinds = np.full((count, height + 2, width + 2), Kind.WALL, np.uint8)
        kinds[:, 1:-1, 1:-1] = Kind.FREE
        flat, here = kinds.reshape(count, -1), np.arange(count)[:, None]
        flat[here, resources], flat[here, hazards], flat[here, base[:, None]] = Kind.RESOURCE, Kind.HAZARD, Kind.BASE
        flat[here, around[here, ring.argsort(axis=1)[:, : self.num_workers]]] = Kind.WORKER
        self.kinds[rows], self.last[rows], self.amounts[rows] = kinds, NEW, 0
        self.amounts.reshape(-1)[self._first[rows, None] + resources] = amounts
        self.base[rows], self.hazards[rows] = self._first[rows] + base, self._first[rows, None] + hazards
        self.counts[rows] = 0
        self.available[rows] = amounts.sum(axis=1)

    def _advance(self, actions: Any) -> tuple[np.ndarray, np.ndarray]:
        draws = self._uniform(self._rows, len(RING) + 4 * self.num_hazards)
        units = self._work(np.asarray(actions).reshape(self.num_envs, -1))
        if self.num_hazards:
            self._wander(draws[:, len(RING) :].reshape(self.num_envs, -1, 4))
        self._make_workers(draws[:, : len(RING)])
        return REWARD * units, np.zeros(self.num_envs, bool)

    def _work(self, actions: np.ndarray) -> np.ndarray:
        """All workers act; returns the units (N,) that were gathered or returned."""
        kinds, amounts, last = self.kinds.reshape(-1), self.amounts.reshape(-1), self.last.reshape(-1)
        cell, row, inside = self._workers(self._rows)
        kind, action = kinds[cell], actions[row, inside]
        target = cell + self._steps[action]
        ahead, verb = kinds[target], VERBS[action]
        legal = LEGAL_WHEN[kind, action, ahead]
        move, gather, bring = (legal & (verb == which) for which in (1, 2, 3))
        wanted = np.bincount(target[move | gather], minlength=kinds.size)[target]
        done = legal & (wanted <= np.where(gather, amounts[target], 1))
        move, gather, fatal = move & done, gather & done, ahead == Kind.HAZARD

        kinds[cell[move]], kinds[cell[gather]], kinds[cell[bring]] = Kind.FREE, Kind.LOADED, Kind.WORKER
        kinds[target[move]] = np.where(fatal, ahead, kind)[move]
        source = target[gather]
        amounts[source] -= wanted[gather]  # the same for all who gather from one resource
        kinds[source[amounts[source] == 0]] = Kind.FREE
        last.fill(NEW)
        last[np.where(move, target, cell)] = action + len(Action) * (2 - legal.astype(np.int64) - done)
        last[target[move & fatal]] = LOST
        who = (gather, bring, move & fatal)
        gathered, returned, lost = (np.bincount(row[which], minlength=self.num_envs) for which in who)
        self.gathered += gathered
        self.returned += returned
        self.stock += returned
        self.lost += lost
        return gathered + returned

    def _wander(self, draws: np.ndarray) -> None:
        """Each hazard enters the neighbouring cell, free or a worker's, with the highest of its `draws` (N, K, 4)."""
        kinds = self.kinds.reshape(-1)
        around = self.hazards[..., None] + self._steps[1:5]
        ahead = kinds[around]
        draws = np.where((ahead == Kind.FREE) | (ahead >= Kind.WORKER), draws, -1)
        way = draws.argmax(axis=2)[..., None]
        target = np.take_along_axis(around, way, axis=2)[..., 0]
        target = np.where(draws.max(axis=2) < 0, self.hazards, target)
        if self.num_hazards > 1:
            target = np.where(np.bincount(target.ravel())[target] > 1, self.hazards, target)
        caught = kinds[target] >= Kind.WORKER
        self.lost += caught.sum(axis=1)
        self.last.reshape(-1)[target[caught]] = LOST
        kinds[self.hazards], kinds[target] = Kind.FREE, Kind.HAZARD
        self.hazards[:] = target

    def _make_workers(self, draws: np.ndarray) -> None:
        """Bases that can pay, or have waited for long, make a worker on the free cell of highest `draws` (N, 8)."""
        kinds = self.kinds.reshape(-1)
        workers = (self.kinds.reshape(self.num_envs, -1) >= Kind.WORKER).sum(axis=1)
        self.idle += 1
        self.idle *= workers == 0
        pays = (self.stock >= self.workers_cost) & (workers < self.max_workers)
        rows = np.flatnonzero(pays | (self.idle > self.respawn))
        around = self.base[rows, None] + self._ring
        draws = np.where(kinds[around] == Kind.FREE, draws[rows], -1)
        best = draws.argmax(axis=1)[:, None]
        room = draws.max(axis=1) >= 0
        rows, born = rows[room], np.take_along_axis(around, best, axis=1)[room, 0]
        kinds[born], self.last.reshape(-1)[born] = Kind.WORKER, NEW
        self.stock[rows] -= self.workers_cost * pays[rows]
        self.idle[rows] = 0

    def _workers(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The cells (M,) of all workers in `rows`; and which row (M,), and place in the grid (M,), each of them is."""
        flags = self.kinds[rows, 1:-1, 1:-1] >= Kind.WORKER
        row, inside = np.divmod(np.flatnonzero(flags), self.height * self.width)
        return self._first[rows[row]] + self._inside[inside], row, inside

    def _observe(self, rows: np.ndarray) -> np.ndarray:
        kinds = self.kinds[rows, 1:-1, 1:-1]
        obs = np.zeros((len(rows), *self.single_observation_space.shape), np.uint8)
        np.equal(kinds[:, None], np.arange(1, 7, dtype=np.uint8)[:, None, None], out=obs[:, :6].view(bool))
        obs[:, 6] = self.amounts[rows, 1:-1, 1:-1] >= MANY
        time, stock = 4 * self.elapsed[rows, None], 2 * self.stock[rows, None]
        flags = [time >= np.arange(1, 4) * self.max_episode_steps, stock >= np.arange(1, 3) * self.workers_cost]
        obs[:, 7:] = np.concatenate(flags, axis=1)[..., None, None]
        return obs

    def _info(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        cell, row, inside = self._workers(rows)
        kinds, size = self.kinds.reshape(-1), self.height * self.width
        agents, legal = np.zeros((len(rows), size), np.int8), np.zeros((len(rows), len(Action), size), np.int8)
        agents[row, inside] = 1
        ahead = kinds[cell[:, None] + self._steps]
        legal[row, :, inside] = LEGAL_WHEN[kinds[cell, None], np.arange(len(Action)), ahead]
        shape = (self.height, self.width)
        return {"action_mask": legal.reshape(*legal.shape[:2], *shape), "agent_mask": agents.reshape(-1, *shape)}

    def _final_info(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        workers = (self.kinds[rows] >= Kind.WORKER).sum(axis=(1, 2))
        counts = {name: getattr(self, name)[rows] for name in ("returned", "gathered", "available")}
        counts["workers_lost"] = self.lost[rows]
        return {"workers": workers, **counts}

    def _headline(self, row: int) -> str:
        workers = np.count_nonzero(self.kinds[row] >= Kind.WORKER)
        return (
            f"step {self.elapsed[row]}/{self.max_episode_steps}, {workers} of {self.max_workers} workers, "
            f"{self.returned[row]} returned, {self.stock[row]} in stock"
        )

    def _deeds(self, row: int) -> list[tuple[int, int, Action, int]]:
        """What the workers did last, where they are now: (y, x, action, outcome)."""
        last = self.last[row, 1:-1, 1:-1]
        return [
            (y, x, Action(last[y, x] % len(Action)), last[y, x] // len(Action))
            for y, x in np.argwhere((last != NEW) & (last != LOST)).tolist()
        ]

    def _render_ansi(self, row: int) -> str:
        kinds, amounts = self.kinds[row, 1:-1, 1:-1], self.amounts[row, 1:-1, 1:-1]
        signs = np.array(["██", "· ", "", "⌂ ", "✸ ", "○ ", "● "], object)[kinds]
        signs[kinds == Kind.RESOURCE] = [f"{min(amount, 99):<2}" for amount in amounts[kinds == Kind.RESOURCE]]
        lines, border = ["│" + "".join(line) + "│" for line in signs], "──" * self.width
        deeds = [f"({y}, {x}) {action.name}: {OUTCOMES[outcome]}" for y, x, action, outcome in self._deeds(row)]
        legend = "⌂ base   ✸ hazard   ○ worker   ● with load   1-99 units"
        return "\n".join([self._headline(row), f"┌{border}┐", *lines, f"└{border}┘", legend, *deeds])

    def _render_rgb(self, row: int) -> np.ndarray:
        # Drawn at twice the size and halved at the end: smooth edges.
        tile, top = 2 * max(20, 560 // self.width), 72
        image, draw = canvas(tile * self.width, tile * self.height + 2 * top)
        text(draw, (image.width / 2, top / 2), self._headline(row), 32)
        for i, (name, color) in enumerate(LEGEND.items()):
            text(draw, (image.width * (i + 0.5) / len(LEGEND), image.height - top / 2), name, 28, color)

        def centre(y: int, x: int) -> np.ndarray:
            return np.array([x + 0.5, y + 0.5]) * tile + (0, top)

        def shape(middle: np.ndarray, points: Any, fill: str | None, outline: str = INK, width: int = tile // 32):
            corners = middle + np.array(points) * tile
            draw.polygon([tuple(corner) for corner in corners], fill=fill, outline=outline, width=max(2, width))

        kinds, amounts, last = (x[row, 1:-1, 1:-1] for x in (self.kinds, self.amounts, self.last))
        for y, x in np.ndindex(kinds.shape):
            middle = centre(y, x)
            draw.rectangle([*(middle - tile / 2), *(middle + tile / 2)], fill=PAPER, outline=GRID, width=tile // 32)
            if kinds[y, x] == Kind.RESOURCE:
                shape(middle, 0.44 * OCTAGON, GOLD if amounts[y, x] >= MANY else "#f3dcae")
                text(draw, tuple(middle), str(amounts[y, x]), int(tile * 0.36))
            elif kinds[y, x] == Kind.BASE:
                shape(middle, [(-0.34, -0.1), (0.34, -0.1), (0.34, 0.42), (-0.34, 0.42)], "white")
                shape(middle, [(-0.46, -0.04), (0, -0.44), (0.46, -0.04)], LEGAL)
                text(draw, tuple(middle + (0, tile * 0.2)), str(self.stock[row]), int(tile * 0.32))
            elif kinds[y, x] == Kind.HAZARD:
                shape(middle, SPIKES, ILLEGAL)
                for side in (-0.1, 0.1):
                    shape(middle, 0.07 * CIRCLE + (side, -0.04), "white")
            elif kinds[y, x] >= Kind.WORKER:
                shape(middle, 0.28 * CIRCLE, ACCENT)
                if kinds[y, x] == Kind.LOADED:
                    shape(middle, 0.18 * OCTAGON, GOLD)
            if last[y, x] == LOST:
                shape(middle, 0.46 * CIRCLE, None, ILLEGAL, tile // 12)
        for y, x, action, outcome in self._deeds(row):
            verb, way = VERBS[action], STEPS[action][::-1]
            tail = -0.8 if verb == 1 and not outcome else 0.26  # who moved did so before
            if verb:
                arrow = (ARROW + (tail, 0)) @ np.array([way, way[::-1]])
                shape(centre(y, x), arrow, MUTED if outcome else list(LEGEND.values())[verb - 1])
            if outcome == OUTCOMES.index("illegal"):
                cross(draw, tuple(centre(y, x) + way * tile * 0.5), tile * 0.15, width=tile // 10)
        return pixels(image.reduce(2))
