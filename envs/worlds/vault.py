"""Vault: a code is shown once, digit by digit; later each door opens to its digit only."""

from typing import Any

import numpy as np
from gymnasium import spaces

from envs.base import BatchedEnv
from envs.worlds.drawing import ACCENT, GOLD, GRID, ILLEGAL, INK, LEGAL, MUTED, canvas, cross, pixels, text


class Vault(BatchedEnv):
    """Remember a code, walk down a corridor, and open the doors with it.

    ## Description
    A code of `num_doors` digits is shown, one in each step. A corridor of `delay` steps follows, then the doors, one in
    each step. A door has a keyboard with `num_keys` keys, of which a random half works, the right one always among
    them. Who does not remember the code can do no better than guess among the keys that work.

    ## Action Space
    `Discrete(num_keys + 1)`: the key to press, and last, to walk on.

    ## Observation Space
    A `Box` (num_keys + num_doors + 2,) float32 in [0, 1]:

    | index | content |
    |-|-|
    | the first num_keys | the digit that is shown, one-hot; 0 elsewhere |
    | the next num_doors | the number of the digit or door, one-hot; 0 in the corridor |
    | the last but one | 1 in front of a door |
    | the last | the share of the episode that is over |

    ## Rewards
    1 for the right key at a door, 0 otherwise.

    ## Starting State
    A random code.

    ## Episode End
    Behind the last door, after 2 * num_doors + delay steps: a termination. `final_info["optimal_return"]` is num_doors;
    without memory, the best is num_doors / (number of keys that work).

    ## Action Mask
    `action_mask` (N, num_keys + 1) int8, 1 where legal: in front of a door the keys that work, elsewhere only to walk
    on. A key that does not work opens nothing, and one walks on in any case.

    ## Arguments
    Args:
        num_envs: N, environments in the batch.
        num_doors: digits of the code, and doors.
        num_keys: on each keyboard.
        delay: steps between the last digit and the first door.
        render_mode: "rgb_array", "ansi" or None.

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> import gymnasium as gym
        >>> env = gym.make("Masked/Vault-v0", num_doors=2, delay=0)
        >>> obs, info = env.reset(seed=1)
        >>> info["action_mask"]  # the first digit is shown: walk on
        array([0, 0, 0, 0, 0, 0, 1], dtype=int8)
        >>> code = [obs[:6].argmax(), env.step(6)[0][:6].argmax()]
        >>> env.step(6)[4]["action_mask"].sum(), env.step(code[0])[1]
        (np.int64(3), 1.0)
    """

    state_arrays = ("code", "works", "total", "last_key", "last_reward")

    def __init__(
        self, num_envs: int, num_doors: int = 3, num_keys: int = 6, delay: int = 6, render_mode: str | None = None
    ):
        if num_doors < 1 or num_keys < 2 or delay < 0:
            expected = "at least 1 door, 2 keys and a delay of 0"
            raise ValueError(f"Expected {expected}; got num_doors={num_doors}, num_keys={num_keys}, delay={delay}.")
        self.num_doors, self.num_keys, self.delay = num_doors, num_keys, delay
        self.first_door, self.length = num_doors + delay, 2 * num_doors + delay
        space = spaces.Box(0, 1, (num_keys + num_doors + 2,), np.float32)
        # One step more than an episode has: the base never truncates.
        super().__init__(num_envs, space, spaces.Discrete(num_keys + 1), self.length + 1, render_mode)
        self.code = np.zeros((num_envs, num_doors), np.int64)
        self.works = np.zeros((num_envs, num_keys), bool)
        self.total, self.last_reward = np.zeros((2, num_envs))
        self.last_key = np.full(num_envs, num_keys)

    def best_actions(self) -> np.ndarray:
        """The best choice (N,) int64 of who remembers the code."""
        door = (self.elapsed - self.first_door).clip(0, self.num_doors - 1)
        return np.where(self.elapsed >= self.first_door, self.code[self._rows, door], self.num_keys)

    def _draw_keys(self, rows: np.ndarray) -> None:
        """Half of the keys of the next keyboard work, the right one too."""
        draws = self._uniform(rows, self.num_keys)
        door = (self.elapsed[rows] - self.first_door).clip(0, self.num_doors - 1)
        draws[np.arange(len(rows)), self.code[rows, door]] = -1
        self.works[rows] = draws.argsort(axis=1).argsort(axis=1) < (self.num_keys + 1) // 2

    def _reset_rows(self, rows: np.ndarray) -> None:
        self.code[rows] = self.num_keys * self._uniform(rows, self.num_doors)
        self.total[rows], self.last_reward[rows], self.last_key[rows] = 0, 0, self.num_keys
        self._draw_keys(rows)

    def _advance(self, actions: Any) -> tuple[np.ndarray, np.ndarray]:
        right = (self.elapsed >= self.first_door) & (np.asarray(actions) == self.best_actions())
        self.last_key[:], self.last_reward[:] = actions, right
        self.total += right
        self.elapsed += 1  # the keyboard is that of the next step
        self._draw_keys(self._rows)
        self.elapsed -= 1
        return right.astype(np.float64), self.elapsed + 1 >= self.length

    def _observe(self, rows: np.ndarray) -> np.ndarray:
        obs, at, here = np.zeros((len(rows), self.num_keys + self.num_doors + 2), np.float32), self.elapsed[rows], rows
        shown, door = at < self.num_doors, at - self.first_door
        digits = self.code[here, at.clip(max=self.num_doors - 1)]
        number = np.where(shown, at, door)
        obs[np.flatnonzero(shown), digits[shown]] = 1
        numbered = (number >= 0) & (number < self.num_doors) & (shown | (door >= 0))
        obs[np.flatnonzero(numbered), self.num_keys + number[numbered]] = 1
        obs[:, -2], obs[:, -1] = door >= 0, at / self.length
        return obs

    def _info(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        at_door = self.elapsed[rows, None] >= self.first_door
        return {"action_mask": np.concatenate([self.works[rows] & at_door, ~at_door], axis=1).astype(np.int8)}

    def _final_info(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {"optimal_return": np.full(len(rows), float(self.num_doors))}

    def _headline(self, row: int) -> str:
        at = self.elapsed[row]
        if at < self.num_doors:
            return f"digit {at + 1} of the code is {self.code[row, at]}"
        if at < self.first_door:
            return f"a corridor, {self.first_door - at} steps to the doors"
        return f"door {at - self.first_door + 1}" if at < self.length else "behind the last door"

    def _news(self, row: int) -> str:
        at, key = self.elapsed[row], self.last_key[row]
        last = (
            f"key {key} {'opened' if self.last_reward[row] else 'did not open'} the door; "
            if at > self.first_door
            else ""
        )
        return f"{last}{self.total[row]:.0f} of {self.num_doors} opened"

    def _render_ansi(self, row: int) -> str:
        at_door = self.elapsed[row] >= self.first_door
        keys = " ".join(str(k) if self.works[row, k] and at_door else "x" for k in range(self.num_keys))
        return f"{self._headline(row)}\nkeys: {keys}\n{self._news(row)}"

    def _render_rgb(self, row: int) -> np.ndarray:
        image, draw = canvas(800, 300)
        at, size = self.elapsed[row], 752 / self.length
        text(draw, (24, 28), "Vault", 20, anchor="lm")
        text(draw, (776, 28), self._headline(row), 14, anchor="rm")
        for step in range(self.length):  # the way: digits, corridor, doors
            box = [24 + step * size, 70, 24 + (step + 1) * size - min(6, size / 4), 150]
            door = step >= self.first_door
            fill = "#fdf3dc" if step == at else "white" if step < self.num_doors else GRID
            draw.rounded_rectangle(box, 6, fill=fill, outline=GOLD if step == at else INK if door else GRID, width=3)
            middle = ((box[0] + box[2]) / 2, 110)
            if step < self.num_doors:  # what was shown is for us to compare; the agent sees it once
                text(draw, middle, str(self.code[row, step]), 24, INK if step == at else MUTED)
            elif door:
                text(draw, middle, "door", 13, INK)
        pitch = min(752 / self.num_keys, 110)
        best = self.best_actions()[row]
        for k in range(self.num_keys):
            left, works = 24 + k * pitch, self.works[row, k] and at >= self.first_door
            outline = GOLD if works and k == best else INK if k == self.last_key[row] else GRID
            box = [left, 180, left + pitch - min(10, pitch / 4), 240]
            draw.rounded_rectangle(box, 8, fill="white" if works else GRID, outline=outline, width=3)
            middle = ((box[0] + box[2]) / 2, 210)
            text(draw, middle, str(k), 20, ACCENT if works else MUTED)
            if at >= self.first_door and not works:
                cross(draw, middle, 14)
        text(draw, (24, 272), self._news(row), 14, LEGAL if self.last_reward[row] else ILLEGAL, "lm")
        text(draw, (776, 272), "gold: where one is, and the right key   dark: last key", 12, MUTED, "rm")
        return pixels(image)
