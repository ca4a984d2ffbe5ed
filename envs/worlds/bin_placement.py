"""Bin placement: pack each object into the bin, and in the orientation, that it fits most snugly."""

from enum import IntEnum
from typing import Any

import numpy as np
from gymnasium import spaces
from PIL import ImageDraw

from envs.base import BatchedEnv
from envs.constraints import In, Mask, VectorMaskFunction
from envs.worlds.drawing import ACCENT, GOLD, GRID, ILLEGAL, INK, LEGAL, MUTED, canvas, cross, pixels, text


class Bin(IntEnum):
    """Where an object goes; the values are the labels on the bins, not indices."""

    REJECT = 10
    SMALL_A = 11
    SMALL_B = 12
    SMALL_C = 13
    LARGE_A = 21
    LARGE_B = 22
    LARGE_C = 23


class Orientation(IntEnum):
    """UPRIGHT: as the object stands; FLAT: on its side, width and height exchanged."""

    UPRIGHT = 1
    FLAT = 2


SMALL, LARGE = list(Bin)[1:4], list(Bin)[4:]
SIZES = ("small", "medium", "large")
SIZE_COLORS = (LEGAL, ACCENT, "#8a5fa8")
TAKES = np.array([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1]], bool)  # size class x real bin
SIDES = np.array([[0.1, 0.5], [0.3, 0.7], [0.5, 1.0]])  # shortest and longest side of an object of each size class
ROOMS = np.array([[0.1, 0.6]] * 3 + [[0.4, 1.0]] * 3)  # the same of each real bin's room
P_OPEN, REJECT_REWARD, PICKINESS = 0.7, 0.1, 3.0
SLACK = 0.1  # by which an object may stick out, where orientations depend on the bin
INDEX = np.full(max(Bin) + 1, -1)  # position of a value in the enumeration, -1 where it has no such member
INDEX[list(Bin)] = np.arange(len(Bin))


def fitting_bins(state: dict[str, np.ndarray]) -> dict[str, In]:
    """The mask function: bins of the object's size that are open, and REJECT; the orientation is unconstrained."""
    is_small, is_large = state["object"][..., 2:3] == 1, state["object"][..., 4:5] == 1
    padding = np.full_like(state["small_bins"], -1)
    small, large = (np.concatenate([state[key], padding], axis=-1) for key in ("small_bins", "large_bins"))
    bins = np.where(is_small, small, np.where(is_large, large, state["open_bins"]))  # (..., 6)
    reject = np.full_like(bins[..., :1], Bin.REJECT)
    return {"bin": In(np.concatenate([bins, reject], axis=-1))}


def fitting_choices(state: dict[str, np.ndarray], chosen: dict[str, np.ndarray]) -> dict[str, Mask]:
    """The mask function of `dependent`: bins that the object fits into, then orientations in which it fits there."""
    fits = state["fits"]  # (N, 7, 2)
    if "bin" not in chosen:
        return {"bin": Mask(fits.any(axis=2))}
    into = INDEX[chosen["bin"]]
    return {"orientation": Mask(fits[np.arange(len(fits)), into], counts=chosen["bin"] != Bin.REJECT)}


class BinPlacement(BatchedEnv):
    """Place objects into the open bins of their size.

    ## Description
    A carousel shows, in each step, six bins with random room and one object. Three bins are small, upright slots, and
    three large, flat trays; each is open with probability 0.7. A small object may go into small bins, a large one into
    large bins, and a medium one into any. The object may be placed upright or flat, and every object may be rejected. A
    gap around the object is as bad as a part of it that sticks out, so the best choice is the bin and orientation whose
    sides match best.

    ## Action Space
    A `Dict` of enumeration values, each (N,) integers: `bin`, a value of `Bin` (10 to 13, 21 to 23), and `orientation`,
    a value of `Orientation` (1, 2). The orientation of a rejected object does not matter. `make_bin_placement_vec`
    takes their indices instead, `MultiDiscrete([7, 2])`.

    ## Observation Space
    A `Dict` of

    | key | shape, dtype | content |
    |-|-|-|
    | `object` | (6,) float32 in [0, 1] | width, height, size class (3, one-hot), share of the episode that is left |
    | `gap` | (6, 2, 2) float32 in [-1, 1] | free width and height minus the object's, by real bin and orientation |
    | `small_bins` | (3,) int64 | values of the small bins that are open, -1 for each that is closed |
    | `large_bins` | (3,) int64 | the same for large bins |
    | `open_bins` | (6,) int64 | the same for all real bins |

    Only the mask needs the last three; `make_bin_placement_vec` hides them from the learner. With `dependent` the mask
    needs `fits` (7, 2) int8 instead, 1 where the object may go into that bin in that orientation.

    ## Rewards
    `exp(-3 * (|room width - width| + |room height - height|))` for the object as it is placed, in (0, 1], and 0.1 for
    REJECT. Random legal play earns about half of what best play does.

    ## Starting State
    A random object, random room, and each bin open with probability 0.7.

    ## Episode End
    The carousel stops after `num_objects` steps: a termination, and the observation tells the time left.
    `final_info["optimal_return"]` is what the best legal choice would have earned, summed over the steps of this
    episode; an object that is refused counts again. No truncation.

    ## Action Mask
    `action_mask` (N, 9) int8, 1 where legal: 7 bins, then 2 orientations. Bins that are closed or of the wrong size are
    illegal, as is a value that is no `Bin`. An object that is sent there
    is refused: the reward is 0, the object stays for the next step, and the carousel moves on to fresh bins. REJECT is
    always legal, so the mask is never empty. The mask is declared by `fitting_bins`.

    With `dependent` an object must not stick out by more than 0.1, so which orientations are legal depends on the bin;
    of a rejected object the orientation does not count. The mask is declared by `fitting_choices`.

    ## Arguments
    Args:
        num_envs: N, environments in the batch.
        num_objects: steps in an episode.
        dependent: the legal orientations depend on the bin.
        render_mode: "rgb_array", "ansi" or None.

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> import gymnasium as gym
        >>> env = gym.make("Masked/BinPlacement-v0", num_objects=4)
        >>> obs, info = env.reset(seed=1)
        >>> sorted(obs), info["action_mask"]
        (['gap', 'object'], array([1, 1, 1, 1, 1, 1, 0, 1, 1], dtype=int8))
        >>> env.step([0, 1])[1]  # REJECT
        0.1
    """

    state_arrays = (
        *("sides", "size", "room", "open", "optimum", "total"),
        *("last_bin", "last_orientation", "last_reward"),
    )

    def __init__(self, num_envs: int, num_objects: int = 32, dependent: bool = False, render_mode: str | None = None):
        if num_objects < 1:
            raise ValueError(f"num_objects must be at least 1, got {num_objects}.")
        self.num_objects, self.dependent = num_objects, dependent
        observation_space = spaces.Dict(
            {
                "object": spaces.Box(0, 1, (6,), np.float32),
                "gap": spaces.Box(-1, 1, (6, 2, 2), np.float32),
                "small_bins": spaces.Box(-1, int(max(Bin)), (3,), np.int64),
                "large_bins": spaces.Box(-1, int(max(Bin)), (3,), np.int64),
                "open_bins": spaces.Box(-1, int(max(Bin)), (6,), np.int64),
            }
            | ({"fits": spaces.MultiBinary((len(Bin), len(Orientation)))} if dependent else {})
        )
        action_space = spaces.Dict(
            {
                "bin": spaces.Discrete(int(max(Bin) - min(Bin)) + 1, start=int(min(Bin))),
                "orientation": spaces.Discrete(len(Orientation), start=int(min(Orientation))),
            }
        )
        # One step more than an episode has: the base never truncates.
        super().__init__(num_envs, observation_space, action_space, num_objects + 1, render_mode)
        self.sides, self.size = np.zeros((num_envs, 2)), np.zeros(num_envs, np.int64)
        self.room, self.open = np.zeros((num_envs, 6, 2)), np.zeros((num_envs, 6), bool)
        self.optimum, self.total, self.last_reward = np.zeros((3, num_envs))
        self.last_bin, self.last_orientation = np.full((2, num_envs), -1)

    def best_actions(self) -> np.ndarray:
        """The best choice (N, 2) int64 for the present object: indices of the bin and the orientation, not values."""
        best = self._offers(self._rows).reshape(self.num_envs, -1).argmax(axis=1)
        return np.stack(np.divmod(best, len(Orientation)), axis=1)

    def _legal(self, rows: np.ndarray) -> np.ndarray:
        """Which real bins (R, 6) bool take the present object."""
        return self._fits(rows)[:, 1:].any(axis=2)

    def _fits(self, rows: np.ndarray) -> np.ndarray:
        """Which bins take the present object, in which orientation: (R, 7, 2) bool."""
        fits = np.ones((len(rows), len(Bin), len(Orientation)), bool)
        fits[:, 1:] = (self.open[rows] & TAKES[self.size[rows]])[..., None]
        if self.dependent:
            fits[:, 1:] &= (self._gaps(rows) >= -SLACK).all(axis=-1)
        return fits

    def _gaps(self, rows: np.ndarray) -> np.ndarray:
        """Free width and height minus the object's, by bin and orientation (R, 6, 2, 2) float64."""
        upright = self.sides[rows]
        placed = np.stack([upright, upright[:, ::-1]], axis=1)  # (R, orientation, 2)
        return self.room[rows][:, :, None] - placed[:, None]

    def _offers(self, rows: np.ndarray) -> np.ndarray:
        """What each bin and orientation would earn now (R, 7, 2) float64: 0 where it is illegal."""
        misfit = np.abs(self._gaps(rows)).sum(axis=-1)
        offers = np.full((len(rows), len(Bin), len(Orientation)), REJECT_REWARD)
        offers[:, 1:] = np.exp(-PICKINESS * misfit)
        return np.where(self._fits(rows), offers, 0.0)

    def _new_objects(self, rows: np.ndarray, draws: np.ndarray) -> None:
        size = (len(SIZES) * draws[:, 0]).astype(np.int64)
        short, long = SIDES[size].T[..., None]
        # An upright object is at least as high as it is wide.
        self.size[rows], self.sides[rows] = size, np.sort(short + (long - short) * draws[:, 1:], axis=1)

    def _new_bins(self, rows: np.ndarray) -> None:
        draws, (least, most) = self._uniform(rows, 6, 3), ROOMS.T[..., None]
        room = np.sort(least + (most - least) * draws[..., :2], axis=-1)
        room[:, 3:] = room[:, 3:, ::-1].copy()  # small bins are upright slots, large ones flat trays
        self.room[rows] = room
        self.open[rows] = draws[..., 2] < P_OPEN

    def _reset_rows(self, rows: np.ndarray) -> None:
        self._new_objects(rows, self._uniform(rows, 3))
        self._new_bins(rows)
        self.optimum[rows] = self.total[rows] = self.last_reward[rows] = 0
        self.last_bin[rows] = self.last_orientation[rows] = -1

    def _advance(self, actions: Any) -> tuple[np.ndarray, np.ndarray]:
        bins, orientation = np.asarray(actions["bin"]), np.asarray(actions["orientation"])
        index, offers = INDEX[bins], self._offers(self._rows)
        rewards = np.where(index >= 0, offers[self._rows, index, orientation - 1], 0.0)
        self.total += rewards
        self.optimum += offers.max(axis=(1, 2))
        self.last_bin[:], self.last_orientation[:], self.last_reward[:] = bins, orientation, rewards
        placed = rewards > 0
        self._new_objects(self._rows[placed], self._uniform(self._rows, 3)[placed])
        self._new_bins(self._rows)
        return rewards, self.elapsed + 1 >= self.num_objects

    def _observe(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        time_left = 1 - self.elapsed[rows, None] / self.num_objects
        item = np.concatenate([self.sides[rows], np.eye(len(SIZES))[self.size[rows]], time_left], axis=1)
        open_bins = np.where(self.open[rows], [*SMALL, *LARGE], -1)
        lists = {"small_bins": open_bins[:, :3].copy(), "large_bins": open_bins[:, 3:].copy(), "open_bins": open_bins}
        if self.dependent:
            lists["fits"] = self._fits(rows).astype(np.int8)
        return {"object": item.astype(np.float32), "gap": self._gaps(rows).astype(np.float32), **lists}

    def _final_info(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {"optimal_return": self.optimum[rows]}

    def _headline(self, row: int) -> str:
        share = f" = {self.total[row] / self.optimum[row]:.0%} of the best" if self.optimum[row] else ""
        return f"step {self.elapsed[row]}/{self.num_objects}   return {self.total[row]:.2f}{share}"

    def _news(self, row: int) -> str:
        if self.last_bin[row] < 0:
            return "the carousel starts"
        value = self.last_bin[row]
        name = Bin(value).name if INDEX[value] >= 0 else f"{value}, which is no bin"
        if not self.last_reward[row]:
            return f"refused by {name}: the object stays"
        posture = "" if value == Bin.REJECT else f" {Orientation(self.last_orientation[row]).name}"
        return f"last object: {name}{posture} earned {self.last_reward[row]:.2f}"

    def _render_ansi(self, row: int) -> str:
        offers = self._offers(np.array([row]))[0]
        best = np.unravel_index(offers.argmax(), offers.shape)
        width, height = self.sides[row]
        lines = [
            self._headline(row),
            f"object: {SIZES[self.size[row]]}, {width:.2f} wide x {height:.2f} high   ({self._news(row)})",
            f"   {'bin':<8} {'room':<11}  upright  flat",
        ]
        for b, (member, (upright, flat)) in enumerate(zip(Bin, offers, strict=True)):
            sign = (">" if member == self.last_bin[row] else " ") + ("*" if b == best[0] else " ")
            room = "" if member == Bin.REJECT else "{:.2f} x {:.2f}".format(*self.room[row, b - 1])
            offer = "     ".join(f"{x:.2f}" if x else " xx " for x in (upright, flat))
            if not offers[b].any():
                offer = f"xx       xx    ({self._refusal(row, b - 1)})"
            lines.append(f"{sign} {member.name:<8} {room:<11}  {offer}")
        choice = f"{list(Bin)[best[0]].name} {list(Orientation)[best[1]].name}"
        return "\n".join([*lines, f"* best choice ({choice})   > last choice   xx illegal"])

    def _refusal(self, row: int, real_bin: int) -> str:
        if not self.open[row, real_bin]:
            return "closed"
        return "sticks out" if TAKES[self.size[row], real_bin] else "wrong size"

    def _render_rgb(self, row: int) -> np.ndarray:
        offers = self._offers(np.array([row]))[0]
        best_bin = offers.max(axis=1).argmax()
        color, unit = SIZE_COLORS[self.size[row]], 100  # pixels per unit of length, for objects and rooms alike
        image, draw = canvas(864, 500)
        text(draw, (24, 28), "Bin placement", 20, anchor="lm")
        text(draw, (840, 28), self._headline(row), 14, anchor="rm")

        # The conveyor, with the object in both orientations.
        belt = 176
        draw.rounded_rectangle([24, belt, 840, belt + 14], 7, fill=GRID)
        for x in range(34, 836, 18):
            draw.ellipse([x - 3, belt + 4, x + 3, belt + 10], fill=MUTED)
        text(draw, (24, 76), SIZES[self.size[row]], 22, color, "lm")
        text(draw, (24, 102), "{:.2f} wide x {:.2f} high".format(*self.sides[row]), 14, anchor="lm")
        for x, orientation, sides in ((380, "UPRIGHT", self.sides[row]), (580, "FLAT", self.sides[row, ::-1])):
            standing_box(draw, (x, belt - 1), sides * unit, color)
            text(draw, (x, belt + 26), orientation, 12, MUTED)

        # The bins, to the same scale; in each legal one the object as it would lie there best.
        for b, member in enumerate(Bin):
            left, floor, is_best = 24 + 118 * b, 396, b == best_bin
            middle = left + 54
            outline, width = (GOLD, 4) if is_best else (INK, 2) if member == self.last_bin[row] else (GRID, 1)
            legal = offers[b].any()
            fill = "#fdf3dc" if is_best else "white" if legal else GRID
            draw.rounded_rectangle([left, 230, left + 108, 446], 8, fill=fill, outline=outline, width=width)
            text(draw, (middle, 246), member.name, 13, INK if legal else MUTED)
            if member == Bin.REJECT:
                text(draw, (middle, 340), "always possible", 12, MUTED)
                text(draw, (middle, 418), f"{REJECT_REWARD:.2f}", 15, LEGAL)
                continue
            if legal:
                orientation = offers[b].argmax()
                sides = self.sides[row] if orientation == 0 else self.sides[row, ::-1]
                standing_box(draw, (middle, floor - 3), sides * unit, color)
                text(draw, (middle, 412), f"{offers[b, orientation]:.2f}", 15, LEGAL)
                text(draw, (middle, 432), list(Orientation)[orientation].name.lower(), 12, MUTED)
            half, height = self.room[row, b - 1] * unit * (0.5, 1)
            walls = [(middle - half, floor - height), (middle - half, floor), (middle + half, floor)]
            draw.line([*walls, (middle + half, floor - height)], fill=INK if legal else MUTED, width=3, joint="curve")
            if not legal:
                cross(draw, (middle, floor - 40), 18)
                text(draw, (middle, 420), self._refusal(row, b - 1), 12, ILLEGAL)

        refused = self.last_bin[row] >= 0 and not self.last_reward[row]
        text(draw, (24, 474), self._news(row), 14, ILLEGAL if refused else INK, "lm")
        text(draw, (840, 474), "gold: best   dark: last   walls: room, to scale", 12, MUTED, "rm")
        return pixels(image)


def standing_box(draw: ImageDraw.ImageDraw, foot: tuple[float, float], sides: np.ndarray, color: str) -> None:
    """A box of `sides` (width, height) in pixels that stands on `foot`, the middle of its lower side."""
    (x, y), (width, height) = foot, sides
    draw.rounded_rectangle([x - width / 2, y - height, x + width / 2, y], 3, fill=color)


def make_bin_placement_vec(
    num_envs: int, num_objects: int = 32, dependent: bool = False, render_mode: str | None = None
) -> VectorMaskFunction:
    """`BinPlacement` with its action mask, and with what only the mask needs kept from the learner.

    >>> env = make_bin_placement_vec(num_envs=3)
    >>> obs, infos = env.reset(seed=0)
    >>> obs["gap"].shape, infos["action_mask"].shape
    ((3, 6, 2, 2), (3, 9))
    """
    fields, mask_function = {"bin": Bin, "orientation": Orientation}, fitting_choices if dependent else fitting_bins
    hidden = ("small_bins", "large_bins", "open_bins", *(("fits",) if dependent else ()))
    return VectorMaskFunction(
        BinPlacement(num_envs, num_objects, dependent, render_mode), fields, mask_function, hide=hidden
    )
