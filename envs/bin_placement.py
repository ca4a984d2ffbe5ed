"""BinPlacement: objects arrive before a carousel of bins; which bin, and which way round? The mask uses `In`."""

from enum import IntEnum
from typing import Any

import numpy as np
from gymnasium import spaces

from envs.base import BatchedEnv
from envs.constraints import In, VectorMaskFunction
from envs.drawing import ACCENT, GOLD, GRID, ILLEGAL, INK, LEGAL, MUTED, PAPER, canvas, cross, pixels, text

REJECT_REWARD = 0.1
CLASSES = ("small", "medium", "large")


class Bin(IntEnum):
    """Where an object can go. The simulator's own numbers: they start at 10 and have gaps."""

    REJECT = 10
    SMALL_A = 11
    SMALL_B = 12
    SMALL_C = 13
    LARGE_A = 21
    LARGE_B = 22
    LARGE_C = 23


class Orientation(IntEnum):
    """Which way round an object is put down; FLAT swaps its width and height."""

    UPRIGHT = 1
    FLAT = 2


BINS = np.array([int(member) for member in Bin if member is not Bin.REJECT])  # (6,), small ones first


class BinPlacement(BatchedEnv):
    """N conveyors, each with six bins and a reject bin: the simulator, which takes the enumerations' own values.

    ## Description
    Objects of random width and height arrive one at a time. A carousel shows six bins, three small and three large,
    each open or closed and with a random free room. The agent names a bin and an orientation; the closer the object's
    outline is to the bin's room, the better. Then the carousel turns: bins and object are drawn anew, so that the best
    choice depends on the present state only and is known exactly.

    ## Action Space
    `MultiDiscrete([7, 2])` through `make_vec` or `gymnasium.make`: an index into `Bin` and one into `Orientation`. The
    simulator itself takes `{"bin": (N,), "orientation": (N,)}` with the enumerations' values (10 to 23, 1 to 2).

    ## Observation Space
    A Dict. For the learner `object` (6,) float32: width, height, one-hot of small, medium, large, time left; and `room`
    (6, 2) float32: free width and height of each bin. For the mask only: `small_bins` and `large_bins` (3,) int64, the
    open bins of each size, and `open_bins` (6,) int64, all open ones, each padded with -1.

    ## Rewards
    `max(0, 1 - 2 * max(|width - room width|, |height - room height|))` after rotation, 0.1 in the reject bin, and 0 for
    an illegal action.

    ## Starting State
    A random object, random bins.

    ## Episode End
    Terminates after `num_objects` steps; time left is observed.

    ## Action Mask
    Small objects may go to open small bins, large ones to open large bins, middle ones to any open bin, all of them to
    the reject bin, which keeps the mask from being empty. The orientation is free. An illegal action is a no-op: the
    object stays, the carousel turns.

    ## Arguments
    `num_envs`, `num_objects` (32) and `render_mode` (None, "rgb_array" or "ansi").

    Example:
        >>> import gymnasium as gym
        >>> env = gym.make("Masked/BinPlacement-v0")
        >>> obs, info = env.reset(seed=1)
        >>> sorted(obs), info["action_mask"].shape, int(info["action_mask"][0])
        (['object', 'room'], (9,), 1)
        >>> env.step([0, 0])[1]  # the reject bin
        0.1
    """

    state_arrays = ("item", "room", "is_open", "optimum", "total", "last", "last_reward")

    def __init__(self, num_envs: int, num_objects: int = 32, render_mode: str | None = None):
        if num_objects < 1:
            raise ValueError(f"num_objects must be at least 1, got {num_objects}.")
        self.num_objects = num_objects
        names = {"small_bins": 3, "large_bins": 3, "open_bins": 6}
        observation_space = spaces.Dict(
            {"object": spaces.Box(0, 1, (6,), np.float32), "room": spaces.Box(0, 1, (6, 2), np.float32)}
            | {name: spaces.Box(-1, int(max(Bin)), (size,), np.int64) for name, size in names.items()}
        )
        action_space = spaces.Dict({"bin": spaces.Discrete(14, start=10), "orientation": spaces.Discrete(2, start=1)})
        # One step more than an episode has: the base never truncates.
        super().__init__(num_envs, observation_space, action_space, num_objects + 1, render_mode)
        self.item = np.zeros((num_envs, 2))  # (N, 2): width, height
        self.room = np.zeros((num_envs, 6, 2))
        self.is_open = np.zeros((num_envs, 6), bool)
        self.optimum, self.total, self.last_reward = (np.zeros(num_envs) for _ in range(3))
        self.last = np.full((num_envs, 2), -1)  # the last bin and orientation, by value

    def best_actions(self) -> np.ndarray:
        """Indices (N, 2) int64 of the best bin and orientation."""
        return np.stack(np.divmod(self._rewards().reshape(self.num_envs, -1).argmax(axis=1), 2), axis=1)

    def _size_class(self, rows: np.ndarray) -> np.ndarray:
        area = self.item[rows].prod(axis=1)
        return (area > 0.2).astype(int) + (area > 0.4)

    def _legal_bins(self, rows: np.ndarray) -> np.ndarray:
        size_class = self._size_class(rows)[:, None]
        suits = np.where(np.arange(6) < 3, size_class != 2, size_class != 0)
        return self.is_open[rows] & suits

    def _rewards(self) -> np.ndarray:
        """The reward (N, 7, 2) of each bin and orientation; 0 where illegal."""
        ways = np.stack([self.item, self.item[:, ::-1]], axis=1)  # (N, 2, 2): orientation, width and height
        misfit = np.abs(ways[:, None] - self.room[:, :, None]).max(axis=-1)  # (N, 6, 2)
        fits = np.where(self._legal_bins(self._rows)[..., None], np.maximum(0.0, 1 - 2 * misfit), 0.0)
        return np.concatenate([np.full((self.num_envs, 1, 2), REJECT_REWARD), fits], axis=1)

    def _draw(self, rows: np.ndarray, new_item: np.ndarray) -> None:
        draws = self._uniform(rows, 20)
        self.item[rows[new_item]] = 0.2 + 0.8 * draws[new_item, :2]
        self.room[rows] = 0.2 + 0.8 * draws[:, 2:14].reshape(-1, 6, 2)
        self.is_open[rows] = draws[:, 14:] < 0.7

    def _reset_rows(self, rows: np.ndarray) -> None:
        self.optimum[rows] = self.total[rows] = self.last_reward[rows] = 0
        self.last[rows] = -1
        self._draw(rows, np.ones(len(rows), bool))

    def _advance(self, actions: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        bins, ways = np.asarray(actions["bin"]), np.asarray(actions["orientation"])
        index = np.where(bins == Bin.REJECT, 0, 1 + np.searchsorted(BINS, bins).clip(max=5))
        table = self._rewards()
        rewards = table[self._rows, index, ways - 1]
        legal = np.concatenate([np.ones((self.num_envs, 1), bool), self._legal_bins(self._rows)], axis=1)
        self.optimum += table.max(axis=(1, 2))
        self.total += rewards
        self.last[:, 0], self.last[:, 1], self.last_reward[:] = bins, ways, rewards
        self._draw(self._rows, legal[self._rows, index])
        return rewards, self.elapsed + 1 >= self.num_objects

    def _observe(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        is_open = self.is_open[rows]
        time_left = 1 - self.elapsed[rows] / self.num_objects
        item = np.concatenate([self.item[rows], np.eye(3)[self._size_class(rows)], time_left[:, None]], axis=1)
        open_bins = np.where(is_open, BINS, -1)
        mask_only = {"small_bins": open_bins[:, :3], "large_bins": open_bins[:, 3:], "open_bins": open_bins}
        return {"object": item.astype(np.float32), "room": self.room[rows].astype(np.float32)} | mask_only

    def _final_info(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {"optimal_return": self.optimum[rows]}

    def _headline(self, row: int) -> str:
        share = f" = {self.total[row] / self.optimum[row]:.0%} of the best" if self.optimum[row] else ""
        return f"object {self.elapsed[row]}/{self.num_objects}   return {self.total[row]:.2f}{share}"

    def _news(self, row: int) -> str:
        if self.last[row, 0] < 0:
            return "a new belt"
        where, way = Bin(self.last[row, 0]).name, Orientation(self.last[row, 1]).name
        reward = self.last_reward[row]
        return f"last: {where}, {way}, {f'earned {reward:.2f}' if reward else 'did not go in'}"

    def _render_ansi(self, row: int) -> str:
        width, height = self.item[row]
        name = CLASSES[self._size_class(np.array([row]))[0]]
        lines = [self._headline(row), self._news(row), f"{name} object {width:.2f} x {height:.2f}"]
        for index, legal in enumerate(self._legal_bins(np.array([row]))[0]):
            room = "{:.2f} x {:.2f}".format(*self.room[row, index])
            lines.append(f"  {'o' if legal else 'x'} {Bin(BINS[index]).name:8s} {room}{'' if legal else '  illegal'}")
        return "\n".join([*lines, "  o REJECT"])

    def _render_rgb(self, row: int) -> np.ndarray:
        image, draw = canvas(640, 400)
        unit, legal = 96, self._legal_bins(np.array([row]))[0]
        width, height = self.item[row]
        text(draw, (20, 24), self._headline(row), 16, anchor="lm")
        text(draw, (20, 48), self._news(row), 13, MUTED, anchor="lm")
        draw.rounded_rectangle([16, 72, 184, 384], 10, fill="#f1ecdf")
        text(draw, (100, 92), f"{CLASSES[self._size_class(np.array([row]))[0]]} object", 14)
        for base, (w, h), label in ((228, (width, height), "UPRIGHT"), (356, (height, width), "FLAT")):
            box = [100 - w * unit / 2, base - h * unit, 100 + w * unit / 2, base]
            draw.rounded_rectangle(box, 5, fill=ACCENT, outline=INK, width=2)
            text(draw, (100, base + 12), label, 11, MUTED)
        best = self.best_actions()[row, 0] - 1
        for index in range(6):
            left, top = 200 + 144 * (index % 3), 72 + 136 * (index // 3)
            floor, center = top + 112, left + 66
            draw.rounded_rectangle([left, top, left + 132, top + 128], 10, fill="#ffffff", outline=GRID)
            w, h = self.room[row, index] * unit
            color = LEGAL if legal[index] else MUTED
            draw.rectangle([center - w / 2, floor - h, center + w / 2, floor], fill="#dff1ee" if legal[index] else GRID)
            draw.line([center - w / 2, floor - h, center - w / 2, floor, center + w / 2, floor, center + w / 2, floor - h],
                      fill=color, width=4)  # fmt: skip
            text(draw, (center, floor + 9), Bin(BINS[index]).name, 11, INK if legal[index] else MUTED)
            if not legal[index]:
                cross(draw, (center, floor - h / 2), 14, ILLEGAL)
            if index == best:
                draw.rounded_rectangle([left, top, left + 132, top + 128], 10, outline=GOLD, width=3)
        draw.rounded_rectangle([200, 348, 620, 384], 10, fill=PAPER, outline=GOLD if best < 0 else GRID, width=2)
        text(draw, (410, 366), f"REJECT: always legal, earns {REJECT_REWARD}", 13, MUTED)
        return pixels(image)


def fitting_bins(state: dict[str, np.ndarray]) -> dict[str, In]:
    """The mask function: small objects into open small bins, large into large, middle ones into any, all may be rejected."""
    small, large = state["object"][..., 2:3] > 0, state["object"][..., 4:5] > 0
    of_small = np.where(large, -1, state["small_bins"])
    of_large = np.where(small, -1, state["large_bins"])
    reject = np.full_like(of_small[..., :1], Bin.REJECT)
    return {"bin": In(np.concatenate([of_small, of_large, reject], axis=-1))}


def make_bin_placement_vec(num_envs: int, num_objects: int = 32, render_mode: str | None = None) -> VectorMaskFunction:
    """BinPlacement with its mask, indices for actions, and only `object` and `room` for the learner."""
    envs = BinPlacement(num_envs, num_objects, render_mode)
    hidden = ("small_bins", "large_bins", "open_bins")
    return VectorMaskFunction(envs, {"bin": Bin, "orientation": Orientation}, fitting_bins, hide=hidden)
