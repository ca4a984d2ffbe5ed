"""Order picking: take the ordered parcels off a shelf, lightest first; an action names a parcel, not a direction."""

from typing import Any

import numpy as np
from gymnasium import spaces

from envs.base import BatchedEnv
from envs.worlds.drawing import ACCENT, GOLD, GRID, INK, LEGAL, MUTED, canvas, cross, pixels, text


class OrderPicking(BatchedEnv):
    """Pick the right entities in the right order: the smallest world with a choice among entities.

    ## Description
    A shelf has E places. Some hold a parcel of some weight, and some of these parcels are ordered. They go into one
    box, the lightest first. Every pick takes the parcel away. A parcel that is not ordered, or picked before a lighter
    ordered one, spoils the box.

    ## Action Space
    `Discrete(num_entities)`, actions (N,) integers: the place whose parcel is picked.

    ## Observation Space
    A `Dict` of

    | key | shape, dtype | content |
    |-|-|-|
    | `entities` | (E, 2) float32 | ordered (0 or 1), weight in [0, 1); rows of empty places are 0 |
    | `entity_mask` | (E,) int8 | 1 where the place holds a parcel |

    The order of the places means nothing: a network that treats entities alike has an easier task.

    ## Rewards
    1 / (number of ordered parcels) for each right pick, so that a full box returns 1; nothing for a wrong one.

    ## Starting State
    Each place but two is empty with probability 1/2, and each parcel is ordered with probability 1/2; two random places
    always hold a parcel, of which one is ordered and one is not. With `num_parcels` that many random places hold one.

    ## Episode End
    A termination when the box is full or spoilt. After 2 E steps, which legal play never needs, it is truncated.
    `final_info` holds `optimal_return` 1 and `optimal_length`, the number of ordered parcels.

    ## Action Mask
    `action_mask` (N, E) int8, 1 where legal. Empty places are illegal: picking from one does nothing but take time.

    ## Arguments
    Args:
        num_envs: N, environments in the batch.
        num_entities: E, places on the shelf, at least 2.
        num_parcels: how many of them hold a parcel at the start, 2 to E; default: about half, at random.
        render_mode: "rgb_array", "ansi" or None.

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> import gymnasium as gym
        >>> env = gym.make("Masked/OrderPicking-v0", num_entities=5)
        >>> obs, info = env.reset(seed=1)
        >>> obs["entities"][:, 0].tolist(), info["action_mask"].tolist()
        ([0.0, 1.0, 1.0, 0.0, 1.0], [0, 1, 1, 1, 1])
        >>> round(env.step(4)[1], 3)  # the lightest of the three that are ordered
        0.333
    """

    state_arrays = ("present", "ordered", "weight", "num_ordered", "last")

    def __init__(
        self, num_envs: int, num_entities: int = 10, num_parcels: int | None = None, render_mode: str | None = None
    ):
        if num_entities < 2:
            raise ValueError(f"num_entities must be at least 2, got {num_entities}.")
        if num_parcels is not None and not 2 <= num_parcels <= num_entities:
            raise ValueError(f"num_parcels must be 2 to num_entities={num_entities}, got {num_parcels}.")
        observation_space = spaces.Dict(
            {
                "entities": spaces.Box(0, 1, (num_entities, 2), np.float32),
                "entity_mask": spaces.MultiBinary(num_entities),
            }
        )
        super().__init__(num_envs, observation_space, spaces.Discrete(num_entities), 2 * num_entities, render_mode)
        self.num_entities, self.num_parcels = num_entities, num_parcels
        self.present, self.ordered = np.zeros((2, num_envs, num_entities), bool)
        self.weight = np.zeros((num_envs, num_entities))
        self.num_ordered, self.last = np.zeros(num_envs, np.int64), np.full(num_envs, -1)

    def best_actions(self) -> np.ndarray:
        """The lightest ordered parcel (N,) int64."""
        return np.where(self.present & self.ordered, self.weight, 2.0).argmin(axis=1)

    def _reset_rows(self, rows: np.ndarray) -> None:
        draws, here = self._uniform(rows, 4, self.num_entities), np.arange(len(rows))
        places = draws[:, 3].argsort(axis=1)
        first, second = places[:, :2].T
        present, ordered = draws[:, 0] < 0.5, draws[:, 1] < 0.5
        if self.num_parcels is not None:
            present[...] = False
            np.put_along_axis(present, places[:, : self.num_parcels], True, axis=1)
        present[here, first] = present[here, second] = True
        ordered[here, first], ordered[here, second] = True, False
        self.present[rows], self.ordered[rows], self.weight[rows] = present, ordered & present, draws[:, 2]
        self.num_ordered[rows] = self.ordered[rows].sum(axis=1)
        self.last[rows] = -1

    def _advance(self, actions: Any) -> tuple[np.ndarray, np.ndarray]:
        rows, actions = self._rows, np.asarray(actions)
        picked = self.present[rows, actions]
        right = picked & (actions == self.best_actions())
        self.present[rows, actions] = False
        self.last[:] = actions
        full = ~(self.present & self.ordered).any(axis=1)
        return right / self.num_ordered, (picked & ~right) | full

    def _observe(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        present = self.present[rows]
        entities = np.stack([self.ordered[rows], self.weight[rows]], axis=-1) * present[..., None]
        return {"entities": entities.astype(np.float32), "entity_mask": present.astype(np.int8)}

    def _info(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {"action_mask": self.present[rows].astype(np.int8)}

    def _final_info(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {"optimal_return": np.ones(len(rows)), "optimal_length": self.num_ordered[rows]}

    def _render_ansi(self, row: int) -> str:
        def place(e: int) -> str:
            if not self.present[row, e]:
                return " .... "
            return f"[{self.weight[row, e]:.2f}]" if self.ordered[row, e] else f" {self.weight[row, e]:.2f} "

        best = f"the lightest ordered parcel is in place {self.best_actions()[row]}"
        best = best if (self.present & self.ordered)[row].any() else "no ordered parcel is left"
        picked = f"picked {self.last[row]}" if self.last[row] >= 0 else "a new shelf"
        return "\n".join(
            [
                f"step {self.elapsed[row]}/{self.max_episode_steps}: {picked}",
                " ".join(place(e) for e in range(self.num_entities)),
                "[] ordered, .... empty: illegal",
                best,
            ]
        )

    def _render_rgb(self, row: int) -> np.ndarray:
        columns = int(np.ceil(np.sqrt(self.num_entities)))
        lines = int(np.ceil(self.num_entities / columns))
        image, draw = canvas(40 + 110 * columns, 90 + 110 * lines)
        best, ordered_left = self.best_actions()[row], (self.present & self.ordered)[row].any()
        text(draw, (20, 24), "Order picking: lightest ordered parcel first", 15, anchor="lm")
        for e in range(self.num_entities):
            x, y = 75 + 110 * (e % columns), 100 + 110 * (e // columns)
            draw.rectangle([x - 50, y + 46, x + 50, y + 50], fill=GRID)
            if e == self.last[row]:
                text(draw, (x, y + 20), "picked", 12, MUTED)
            if not self.present[row, e]:
                cross(draw, (x, y), 8)
                continue
            half = 14 + 32 * np.sqrt(self.weight[row, e])  # the area of a parcel is its weight
            outline, width = (GOLD, 5) if e == best and ordered_left else (INK, 1)
            fill = LEGAL if self.ordered[row, e] else "#c9a66b"
            draw.rectangle([x - half, y + 46 - 2 * half, x + half, y + 46], fill=fill, outline=outline, width=width)
            text(draw, (x, y + 46 - half), f"{self.weight[row, e]:.2f}", 12, "white")
        text(draw, (20, 70 + 110 * lines), "green: ordered   gold: best next   cross: empty, illegal", 12, ACCENT, "lm")
        return pixels(image)
