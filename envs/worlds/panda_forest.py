"""A panda looks for watermelons among trees, which hide what is behind them, while scorpions and dragons roam."""

from enum import IntEnum
from functools import lru_cache
from typing import Any

import numpy as np
from gymnasium import spaces
from PIL import Image, ImageDraw

from envs.base import BatchedEnv
from envs.worlds.drawing import GOLD, INK, canvas, cross, pixels, text

Move = IntEnum("Move", ["UP", "DOWN", "LEFT", "RIGHT", "STAY"], start=0)

KINDS = ("panda", "watermelon", "scorpion", "dragon", "tree")
FEATURES = len(KINDS) + 16
VISIT = 0.25  # what each visit adds to a cell of the trail, up to 1
MIN_SIZE, MAX_SIZE = 4, 16
SAFE_DISTANCE = 3  # steps between the panda and each enemy at the start

GRASS = ("#b9dd9b", "#b0d691", "#8fb087", "#88a980")  # seen, and not seen: two shades each, like a chessboard
BEAM = "#ff8c1a"
# Shapes in a square of 100 x 100, from the back to the front: colour, shape, a list of coordinates for each, and what
# all of them share: the angles of arcs and pieslices, then the width of arcs and lines.
# fmt: off
SPRITES = {
    "panda": [
        (INK, "ellipse", [(10, 8, 38, 36), (62, 8, 90, 36), (8, 13, 92, 93)]),
        ("#ffffff", "ellipse", [(11, 16, 89, 90)]),
        (INK, "ellipse", [(20, 38, 43, 66), (57, 38, 80, 66), (43, 62, 57, 71)]),
        ("#ffffff", "ellipse", [(29, 44, 39, 54), (61, 44, 71, 54)]),
        ("#f6b8b8", "ellipse", [(16, 66, 30, 75), (70, 66, 84, 75)]),
        (INK, "arc", [(36, 66, 50, 80), (50, 66, 64, 80)], 20, 160, 3)],
    "watermelon": [
        ("#2f7d3b", "pieslice", [(6, -18, 94, 86)], 0, 180),
        ("#dff2c4", "pieslice", [(12, -10, 88, 79)], 0, 180),
        ("#e8505b", "pieslice", [(17, -5, 83, 73)], 0, 180),
        (INK, "ellipse", [(30, 40, 35, 48), (47, 40, 52, 48), (64, 40, 69, 48), (38, 53, 43, 61), (56, 53, 61, 61)])],
    "scorpion": [
        ("#6e3517", "line", [(20, y + 8, 50, y, 80, y + 8) for y in (52, 62, 72)], 4),
        ("#8f4a22", "line", [(40, 46, 22, 38, 20, 26), (60, 46, 78, 38, 80, 26)], 7),
        ("#a85a2c", "pieslice", [(8, 8, 34, 34), (66, 8, 92, 34)], -60, 240),
        ("#8f4a22", "ellipse", [(34, 34, 66, 64), (36, 48, 64, 80), (40, 68, 60, 88)]),
        ("#c8743c", "arc", [(36, 38, 64, 60), (38, 52, 62, 72), (41, 66, 59, 82)], 20, 160, 3),
        (GOLD, "ellipse", [(41, 38, 48, 45), (52, 38, 59, 45)]),
        ("#8f4a22", "arc", [(50, 62, 88, 96)], -100, 170, 7),
        (INK, "polygon", [(68, 58, 68, 73, 53, 61)])],
    "dragon": [
        ("#5e2a84", "polygon", [(36, 60, 2, 20, 6, 70, 18, 62, 26, 80), (64, 60, 98, 20, 94, 70, 82, 62, 74, 80)]),
        (GOLD, "polygon", [(30, 32, 24, 2, 46, 22), (70, 32, 76, 2, 54, 22)]),
        ("#8e44ad", "ellipse", [(22, 16, 78, 70), (26, 46, 74, 94)]),
        ("#b57bd0", "ellipse", [(31, 54, 69, 86)]),
        ("#ffe066", "ellipse", [(29, 30, 46, 48), (54, 30, 71, 48)]),
        (INK, "ellipse", [(36, 31, 41, 47), (59, 31, 64, 47), (39, 60, 45, 66), (55, 60, 61, 66)]),
        (INK, "line", [(26, 26, 46, 33), (74, 26, 54, 33)], 5),
        ("#ffffff", "polygon", [(x, 75, x + 8, 75, x + 4, 86) for x in (36, 46, 56)])],
    "tree": [
        ("#6b9560", "ellipse", [(16, 80, 84, 98)]),
        ("#7a5230", "rectangle", [(43, 60, 57, 92)]),
        ("#2d6a3e", "ellipse", [(8, 30, 58, 76), (42, 30, 92, 76), (20, 4, 80, 62)]),
        ("#3c8550", "ellipse", [(14, 30, 48, 58), (48, 32, 80, 60), (26, 8, 66, 44)]),
        ("#58a366", "ellipse", [(32, 12, 50, 26), (20, 36, 32, 46), (54, 36, 68, 46)])],
}
# fmt: on


class PandaForest(BatchedEnv):
    """Eat all watermelons of a forest, and keep away from scorpions and dragons.

    ## Description
    A panda walks on `size` x `size` cells. Trees block the way, and the sight: what stands behind one cannot be seen.
    After the panda the enemies move, one after the other. A scorpion wanders: to a random free neighbouring cell, or
    nowhere. A dragon that sees the panda steps towards it, along the longer of the two distances, or along the other if
    that cell is not free; one that does not see it wanders. In each step a dragon rests with probability `dragon_rest`,
    so that a careful panda gets away. Enemies never enter a tree, a watermelon, or each other.

    ## Action Space
    `Discrete(5)`, actions (N,) integers, the values of `Move`:

    - 0: up
    - 1: down
    - 2: left
    - 3: right
    - 4: stay

    ## Observation Space
    A `Dict` of a set of E = 1 + `num_watermelons` + `num_scorpions` + `num_dragons` + `num_trees` entities:

    | key | shape, dtype | content |
    |-|-|-|
    | `entities` | (E, 21) float32 in [-1, 1] | a row for each entity: the panda, then the others in this order |
    | `entity_mask` | (E,) int8 | 1 where the entity is there and seen; the rows of all others are 0 |

    An entity is hidden if the straight line from its cell's centre to that of the panda's passes through a tree's cell;
    touching the corner of one does no harm. Trees hide each other too. Sight is mutual. The features:

    | index | content |
    |-|-|
    | 0-4 | kind, one-hot: panda, watermelon, scorpion, dragon, tree |
    | 5-6 | how far it is below and to the right of the panda, divided by `size` |
    | 7 | its distance in steps without trees, divided by 2 * `size` |
    | 8-9 | the panda's row only: its place, row and column, 0 to 1 |
    | 10-13 | the panda's row only: 1 for each of up, down, left, right that is legal |
    | 14 | the panda's row only: the share of watermelons that is left |
    | 15 | the panda's row only: the share of time that is left |
    | 16-20 | the panda's row only: 0.25 for each visit to the cell up, down, left, right of it and its own, at most 1 |

    The trail is what a search without memory needs: without it the panda looks for hidden watermelons in circles.

    ## Rewards
    1 / `num_watermelons` for each watermelon, which the panda eats by stepping on it, and -1 for harm.

    ## Starting State
    Everything at random, each enemy at least 3 steps away from the panda, where it can walk to all others.

    ## Episode End
    Termination: all watermelons are eaten, or the panda is harmed, by stepping on an enemy (also on one that would
    have moved on, so that the two cannot swap cells), or by an enemy that steps on it. Truncation: after
    `max_episode_steps`. `final_info` has `success`, True where all watermelons were eaten without harm, `harmed`,
    `watermelons`, how many were eaten, and `optimal_return`, always 1: the return of a perfect episode, which no play
    exceeds and bad luck can prevent.

    ## Action Mask
    `action_mask` (N, 5) int8, 1 where legal. Moves into a tree or beyond the border are illegal; to stay is always
    legal, and to step on an enemy is legal too. An illegal move leaves the panda where it is, and the world goes on.

    ## Rendering
    Darker cells are those that the panda does not see; hidden entities are pale. If `attention` is set on the batched
    environment, weights (N, E) from the panda to the entities, lines in the picture show them, relative to the largest.

    ## Arguments
    Args:
        num_envs: N, environments in the batch.
        size: cells along one side, 4 to 16.
        num_watermelons: at least 1.
        num_scorpions: enemies that wander.
        num_dragons: enemies that hunt.
        num_trees: at most a third of the cells; all entities together at most half of them.
        dragon_rest: the probability that a dragon does not move in a step.
        max_episode_steps: steps until truncation.
        render_mode: "rgb_array", "ansi" or None.

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> import gymnasium as gym
        >>> env = gym.make("Masked/PandaForest-v0", size=5, num_trees=4, num_scorpions=0)
        >>> obs, info = env.reset(seed=1)
        >>> obs["entities"].shape, obs["entity_mask"], info["action_mask"]  # a watermelon and two trees are hidden
        ((9, 21), array([1, 0, 1, 0, 0, 1, 0, 1, 1], dtype=int8), array([1, 1, 0, 0, 1], dtype=int8))
        >>> same, reward, terminated, truncated, info = env.step(Move.LEFT)  # illegal: the panda stays
        >>> np.array_equal(same["entities"][0, 8:10], obs["entities"][0, 8:10]), reward
        (True, 0.0)
    """

    state_arrays = ("cells", "eaten", "harmed", "trees", "taken", "tree_bits", "trail")

    def __init__(
        self,
        num_envs: int,
        size: int = 8,
        num_watermelons: int = 3,
        num_scorpions: int = 1,
        num_dragons: int = 1,
        num_trees: int = 8,
        dragon_rest: float = 0.8,
        max_episode_steps: int = 100,
        render_mode: str | None = None,
    ):
        if not MIN_SIZE <= size <= MAX_SIZE:
            raise ValueError(f"size must be {MIN_SIZE} to {MAX_SIZE}, got {size}.")
        counts = np.array([1, num_watermelons, num_scorpions, num_dragons, num_trees])
        for kind, count, least in zip(KINDS, counts.tolist(), (1, 1, 0, 0, 0), strict=True):
            if count < least:
                raise ValueError(f"num_{kind}s must be at least {least}, got {count}.")
        if num_trees > size**2 // 3:
            raise ValueError(f"num_trees must be at most a third of the {size**2} cells, got {num_trees}.")
        if counts.sum() > size**2 // 2:
            raise ValueError(f"All entities must fill at most half of the {size**2} cells, got {counts.sum()}.")
        if not 0 <= dragon_rest <= 1:
            raise ValueError(f"dragon_rest must be in [0, 1], got {dragon_rest}.")
        num_entities = int(counts.sum())
        observation_space = spaces.Dict(
            {
                "entities": spaces.Box(-1, 1, (num_entities, FEATURES), np.float32),
                "entity_mask": spaces.MultiBinary(num_entities),
            }
        )
        super().__init__(num_envs, observation_space, spaces.Discrete(len(Move)), max_episode_steps, render_mode)
        # A cell is one integer, its place in the flattened map, whose last row and column are a margin that nobody may
        # enter: what leaves the map, at any side, gets there, since negative indices wrap around.
        self.size, self.width, self.dragon_rest = size, size + 1, dragon_rest
        self.num_cells = self.width**2
        self.inner = np.arange(self.num_cells).reshape(self.width, -1)[:-1, :-1].ravel()  # the cells without margin
        self.moves = np.array([-self.width, self.width, -1, 1, 0])  # (5,) what each Move adds to a cell
        self.num_trees, self.num_watermelons, self.num_entities = num_trees, num_watermelons, num_entities
        self.kinds = np.repeat(np.arange(len(KINDS)), counts)  # (E,) places in KINDS
        self.watermelons = slice(1, 1 + num_watermelons)  # columns of `cells`
        self.enemies = slice(1 + num_watermelons, num_entities - num_trees)
        self._between, self._features, self._hunt = _tables(size)
        self._one_hot = np.eye(FEATURES, dtype=np.float32)[self.kinds]
        self._first = self._rows[:, None] * self.num_cells  # where each environment's map begins
        self.attention: np.ndarray | None = None  # (N, E), for the pictures only

        self.cells = np.zeros((num_envs, num_entities), np.int64)
        self.eaten = np.zeros((num_envs, num_watermelons), bool)
        self.harmed = np.zeros(num_envs, bool)
        self.trees = np.ones((num_envs, self.num_cells), bool)  # and the margin: closed to all
        self.taken = np.ones((num_envs, self.num_cells), bool)  # closed to enemies
        self.trail = np.zeros((num_envs, self.num_cells), np.float32)
        self.tree_bits = np.zeros((num_envs, len(self._between)), np.int64)  # the trees, one bit for each cell

    def _reset_rows(self, rows: np.ndarray) -> None:
        while len(rows):
            here = np.arange(len(rows))[:, None]
            places = self.inner[self._uniform(rows, self.size**2).argsort(axis=1)]  # all cells in random order
            cells, places = places[:, : self.num_trees + 1], places[:, self.num_trees + 1 :]
            forest, panda = cells[:, :-1], cells[:, -1:]
            trees = np.ones((len(rows), self.num_cells), bool)
            trees[:, self.inner] = False
            trees[here, forest] = True
            good = _connected(~trees, panda[:, 0], self.width)[here, places]
            watermelons, enough = _first_true(good, self.num_watermelons)
            far = good & (self._features[panda * self.num_cells + places, 7] > (SAFE_DISTANCE - 0.5) / (2 * self.size))
            far[here, watermelons] = False
            enemies, also_enough = _first_true(far, self.enemies.stop - self.enemies.start)
            creatures = np.concatenate([places[here, watermelons], places[here, enemies]], axis=1)
            self.cells[rows] = np.concatenate([panda, creatures, forest], axis=1)
            self.eaten[rows] = False
            self.harmed[rows] = False
            self.trail[rows] = 0
            self.trail[rows, panda[:, 0]] = VISIT
            self.trees[rows], self.tree_bits[rows] = trees, _bits(trees[:, self.inner])
            trees[here, creatures] = True
            self.taken[rows] = trees
            rows = rows[~(enough & also_enough)]

    def _advance(self, actions: Any) -> tuple[np.ndarray, np.ndarray]:
        rows, cells, enemies = self._rows, self.cells, self.enemies
        target = cells[:, 0] + self.moves[actions]
        panda = np.where(self.trees.take(self._first[:, 0] + target), cells[:, 0], target)
        cells[:, 0] = panda
        self.trail[rows, panda] = np.minimum(self.trail[rows, panda] + VISIT, 1)
        eats = (cells[:, self.watermelons] == panda[:, None]) & ~self.eaten
        self.eaten |= eats
        ate = eats.any(axis=1)
        self.taken[rows[ate], panda[ate]] = False
        self.harmed[:] = (cells[:, enemies] == panda[:, None]).any(axis=1)
        over = self.harmed | self.eaten.all(axis=1)
        draws = self._uniform(rows, enemies.stop - enemies.start, len(Move) + 1)
        scores = 1 + draws[:, :, :-1]
        for k, column in enumerate(range(enemies.start, enemies.stop)):
            cell, score, resting = cells[:, column].copy(), scores[:, k], over
            if KINDS[self.kinds[column]] == "dragon":
                sees = self._sees(rows, panda[:, None], cell[:, None])
                score = score + sees * self._hunt.take(cell * self.num_cells + panda, axis=0)
                resting = over | (draws[:, k, -1] < self.dragon_rest)
            options = cell[:, None] + self.moves
            free = ~(self.taken.take(self._first + options) | resting[:, None])
            free[:, Move.STAY] = True
            chosen = options[rows, (score * free).argmax(axis=1)]
            self.taken[rows, cell] = False
            self.taken[rows, chosen] = True
            cells[:, column] = chosen
            self.harmed |= chosen == panda
            over = over | self.harmed
        return eats.sum(axis=1) / self.num_watermelons - self.harmed, over

    def _sees(self, rows: np.ndarray, here: np.ndarray, there: np.ndarray) -> np.ndarray:
        """Whether no tree stands between two cells, (R, K) bool."""
        between = self._between.take(here * self.num_cells + there, axis=1)  # (words, R, K)
        return ~(between & self.tree_bits[rows].T[:, :, None]).any(axis=0)

    def _seen(self, rows: np.ndarray) -> np.ndarray:
        """Which entities (R, E) are there and seen by the panda."""
        seen = self._sees(rows, self.cells[rows, :1], self.cells[rows])
        seen[:, self.watermelons] &= ~self.eaten[rows]
        return seen

    def _observe(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        cells, seen = self.cells[rows], self._seen(rows)
        entities = self._features.take(cells[:, :1] * self.num_cells + cells, axis=0)
        entities += self._one_hot
        entities *= seen[:, :, None]
        panda = entities[:, 0]
        panda[:, 8], panda[:, 9] = np.divmod(cells[:, 0], self.width)
        panda[:, 8:10] /= self.size - 1
        panda[:, 10:14] = self._legal(rows)[:, : Move.STAY]
        panda[:, 14] = 1 - self.eaten[rows].mean(axis=1)
        panda[:, 15] = 1 - self.elapsed[rows] / self.max_episode_steps
        panda[:, 16:] = self.trail.take(self._first[rows] + cells[:, :1] + self.moves)
        return {"entities": entities, "entity_mask": seen.view(np.int8)}

    def _legal(self, rows: np.ndarray) -> np.ndarray:
        return ~self.trees.take(self._first[rows] + self.cells[rows, :1] + self.moves)

    def _info(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {"action_mask": self._legal(rows).view(np.int8)}

    def _final_info(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        eaten, harmed = self.eaten[rows], self.harmed[rows]
        info = {"success": eaten.all(axis=1) & ~harmed, "harmed": harmed, "watermelons": eaten.sum(axis=1)}
        return info | {"optimal_return": np.ones(len(rows))}

    def _headline(self, row: int) -> str:
        eaten = self.eaten[row].sum()
        news = ", harmed!" if self.harmed[row] else ", all eaten!" if eaten == self.num_watermelons else ""
        return f"step {self.elapsed[row]}/{self.max_episode_steps}, watermelons {eaten}/{self.num_watermelons}{news}"

    def _there(self, row: int) -> list[tuple[int, int, int, bool]]:
        """The entities that are there, the panda last: place in `cells`, row, column, and whether it is seen."""
        seen, there = self._seen(np.array([row]))[0], np.ones(self.num_entities, bool)
        there[self.watermelons] = ~self.eaten[row]
        return [(k, *divmod(int(self.cells[row, k]), self.width), seen[k]) for k in np.flatnonzero(there)[::-1]]

    def _render_ansi(self, row: int) -> str:
        signs = np.full((self.size, self.size), "· ")
        for k, y, x, seen in self._there(row):
            signs[y, x] = "●oSD♣"[self.kinds[k]] + ("?", " ")[int(seen)]
        mask = self._legal(np.array([row]))[0]
        legal, blocked = (", ".join(move.name for move in Move if mask[move] == flag) or "none" for flag in (1, 0))
        head = [self._headline(row), f"legal: {legal}; blocked: {blocked}; ? not seen"]
        border = "──" * self.size
        lines = ["│" + "".join(line) + "│" for line in signs]
        return "\n".join([*head, f"┌{border}┐", *lines, f"└{border}┘"])

    def _render_rgb(self, row: int) -> np.ndarray:
        # Drawn at twice the size and halved at the end: smooth edges.
        tile, top, side = max(64, 1024 // self.size), 72, 24
        image, draw = canvas(tile * self.size + 2 * side, tile * self.size + top + side)
        text(draw, (image.width / 2, top / 2), self._headline(row), 34)
        sight = self._sees(np.array([row]), self.cells[row, :1], self.inner[None])[0]
        for (y, x), bright in zip(np.ndindex(self.size, self.size), sight, strict=True):
            left, upper = side + x * tile, top + y * tile
            draw.rectangle([left, upper, left + tile - 1, upper + tile - 1], fill=GRASS[2 * (not bright) + (x + y) % 2])
        entities = self._there(row)

        def centre(y: int, x: int) -> np.ndarray:
            return np.array([x + 0.5, y + 0.5]) * tile + (side, top)

        here = centre(*entities[-1][1:3])
        if self.attention is not None:
            weights = np.clip(np.asarray(self.attention[row]), 0, None)
            weights = weights / max(weights.max(), 1e-9)
            for k, y, x, _ in sorted(entities, key=lambda entity: weights[entity[0]]):
                beam = Image.new("L", image.size)
                pen, there, width = ImageDraw.Draw(beam), centre(y, x), max(1, int(tile * 0.14 * weights[k]))
                pen.line([*here, *there], fill=int(230 * weights[k]), width=width)
                spot = [*(there - tile * 0.49), *(there + tile * 0.49)]
                pen.ellipse(spot, fill=int(90 * weights[k]), outline=int(230 * weights[k]), width=width)
                image.paste(BEAM, mask=beam)
        for k, y, x, seen in entities[::-1] if self.harmed[row] else entities:  # whoever strikes is on top
            picture = sprite(KINDS[self.kinds[k]], tile)
            mask = picture.getchannel("A").point(lambda alpha, share=1 if seen else 0.4: int(alpha * share))
            image.paste(picture, (side + x * tile, top + y * tile), mask)
        ways = np.array([[0, -1], [0, 1], [-1, 0], [1, 0]])
        for way, legal in zip(ways, self._legal(np.array([row]))[0], strict=False):
            if not legal:
                cross(draw, tuple(here + way * tile * 0.5), tile * 0.1, width=tile // 18)
        return pixels(image.reduce(2))


@lru_cache
def sprite(kind: str, tile: int) -> Image.Image:
    """The picture of one kind, `tile` pixels wide, on a transparent ground."""
    image = Image.new("RGBA", (tile, tile))
    draw = ImageDraw.Draw(image)
    for color, shape, places, *more in SPRITES[kind]:
        width = {"width": round(more.pop() * tile / 100)} if shape in ("line", "arc") else {}
        for points in places:
            getattr(draw, shape)([tile * point / 100 for point in points], *more, fill=color, **width)
    return image


def _first_true(flags: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The places (R, count) of the first True entries of each row of `flags` (R, K), and whether it has so many."""
    return (~flags).argsort(axis=1, kind="stable")[:, :count], flags.sum(axis=1) >= count


def _bits(flags: np.ndarray) -> np.ndarray:
    """Flags (R, K) bool as bits of integers (R, ceil(K / 64)) int64."""
    padded = np.zeros((len(flags), -(-flags.shape[1] // 64) * 64), bool)
    padded[:, : flags.shape[1]] = flags
    return np.packbits(padded, axis=1, bitorder="little").view(np.int64)


def _connected(free: np.ndarray, start: np.ndarray, width: int) -> np.ndarray:
    """Which cells (R, width**2) bool can be reached through `free` ones from the `start` (R,) of their row.

    All rows are one big integer with a bit for each cell, as in `envs.worlds.maze`; the margins keep them apart.
    """
    reached = np.zeros_like(free)
    reached[np.arange(len(free)), start] = True
    open_bits, bits = (int.from_bytes(np.packbits(x, bitorder="little").tobytes(), "little") for x in (free, reached))
    before = 0
    while bits != before:
        before, bits = bits, bits | (bits << 1 | bits >> 1 | bits << width | bits >> width) & open_bits
    packed = np.frombuffer(bits.to_bytes((free.size + 7) // 8, "little"), np.uint8)
    return np.unpackbits(packed, count=free.size, bitorder="little").reshape(free.shape).astype(bool)


@lru_cache
def _tables(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What depends on two cells only, for all P = (size + 1)**4 pairs of cells, the margin included.

    Returns:
        The cells between the two, as bits (words, P) int64: those that the straight line between the two centres passes
        through, without the two; the features (P, 16) float32, but for its kind, of an entity in the second cell, seen
        from the first; and how much an enemy in the first cell likes each move (P, 5) int8 when it hunts the second.
    """
    y, x = np.indices((size + 1, size + 1)).reshape(2, -1)
    dy, dx = y - y[:, None], x - x[:, None]
    inner = (y < size) & (x < size)
    between = []
    for cy, cx in zip(dy, dx, strict=True):  # all cells as seen from one: (C,), as other ends (C, 1), as between (C,)
        ey, ex = cy[:, None], cx[:, None]
        in_box = (abs(cy) + abs(ey - cy) == abs(ey)) & (abs(cx) + abs(ex - cx) == abs(ex))
        crossed = 2 * abs(cy * ex - cx * ey) < abs(ey) + abs(ex)  # the corners lie on both sides of the line
        ends = (cy == 0) & (cx == 0) | (cy == ey) & (cx == ex)
        between.append(_bits((in_box & crossed & ~ends)[:, inner]))
    features = np.zeros((*dy.shape, FEATURES), np.float32)
    features[:, :, 5:8] = np.stack([dy / size, dx / size, (abs(dy) + abs(dx)) / (2 * size)], axis=2)
    vertical, horizontal = 2 + (abs(dy) > abs(dx)), 2 + (abs(dx) > abs(dy))
    hunt = [vertical * (dy < 0), vertical * (dy > 0), horizontal * (dx < 0), horizontal * (dx > 0), 1 + 0 * dy]
    hunt = np.stack(hunt, axis=2).astype(np.int8)
    return np.concatenate(between).T.copy(), features.reshape(-1, FEATURES), hunt.reshape(-1, len(Move))
