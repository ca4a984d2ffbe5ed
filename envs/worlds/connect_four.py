"""Connect Four, all games of a batch at once: against random play, a search, past agents, or oneself."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from envs.base import BatchedEnv
from envs.players import POOL, Player, weights_of
from envs.worlds.drawing import ACCENT, GOLD, ILLEGAL, INK, LEGAL, MUTED, PAPER, canvas, cross, pixels, text

ROWS, COLUMNS = 6, 7
PASS = COLUMNS  # the action of who waits
HEIGHT = ROWS + 1  # bits of a column: one more than its cells, always 0, so that no line runs on into the next one
CELLS = np.arange(COLUMNS)[None, :] * HEIGHT + np.arange(ROWS)[::-1, None]  # (6, 7) the bit of each cell, top row first
BOTTOM = np.uint64(1) << (np.arange(COLUMNS, dtype=np.uint64) * np.uint64(HEIGHT))  # (7,)
COLUMN = BOTTOM * np.uint64((1 << ROWS) - 1)  # (7,) the cells of each column
TOP = BOTTOM << np.uint64(ROWS - 1)  # (7,)
YARDSTICKS = {"random": 0, "minimax_2": 2, "minimax_4": 4}  # depth of search of those that a pool holds beside agents
PART = 0.125  # of the games against others that are against each of them
TILE, MARGIN, HEAD, RADIUS = 128, 48, 184, 48  # pixels, drawn at twice the size and halved at the end: smooth edges


def has_four(discs: np.ndarray) -> np.ndarray:
    """Whether boards (...,) uint64 hold four in a row: bool (...,). Each bit is a cell, as in CELLS."""
    found = np.zeros(discs.shape, bool)
    for step in (1, HEIGHT, HEIGHT - 1, HEIGHT + 1):  # up, across, and both diagonals
        pairs = discs & (discs >> np.uint64(step))
        found |= (pairs & (pairs >> np.uint64(2 * step))) != 0
    return found


def drops(discs: np.ndarray) -> np.ndarray:
    """The bit (..., 7) uint64 that a disc dropped into each column sets, 0 where it is full; discs (...,) of both."""
    return (discs[..., None] + BOTTOM) & COLUMN


def negamax(own: np.ndarray, other: np.ndarray, depth: int) -> np.ndarray:
    """What each column is worth to whoever moves next, as far as `depth` moves show.

    All moves are played to that depth, all positions of a depth at once.

    Args:
        own, other: (P,) uint64, the discs of who moves next, and of who moved last.
        depth: moves to look ahead, at least 1; 7 of them are 800,000 positions for one game.

    Returns:
        (P, 7) float64: 1 / n for a win with the mover's n-th of all moves from now on, -1 / n for a loss, 0 for a draw
        and for what is not decided within `depth`, -2 where the column is full.

    >>> three = np.array([0b111], np.uint64)  # in the first column
    >>> negamax(three, three << np.uint64(HEIGHT), 1)[0]
    array([1., 0., 0., 0., 0., 0., 0.])
    """
    new = drops(own | other)  # (P, 7)
    values = np.where(new, 0.0, -2.0)
    mine = own[:, None] | new
    won = has_four(mine) & (new != 0)
    values[won] = 1.0
    if depth > 1:
        open_ = (new != 0) & ~won
        parent, column = np.nonzero(open_)
        if len(parent):
            theirs = negamax(other[parent], mine[parent, column], depth - 1).max(axis=1)  # -2: the board is full
            deeper = np.where(theirs == 0, 0.0, -theirs / (1 + np.abs(theirs)))  # 1 / n becomes -1 / (n + 1)
            values[parent, column] = np.where(theirs == -2, 0.0, deeper)
    return values


def search(own: np.ndarray, other: np.ndarray, draws: np.ndarray, depth: int) -> np.ndarray:
    """Columns (P,), by the largest of draws (P, 7): of most worth in `negamax`, or with depth 0 of all with room."""
    values = negamax(own, other, depth) if depth else drops(own | other) != 0
    return np.where(values == values.max(axis=1, keepdims=True), draws, -1).argmax(axis=1)


class ConnectFour(BatchedEnv):
    """Connect Four against an opponent of one's choice, or with both seats as agents.

    ## Description
    Two players drop discs into the seven columns of an upright board; who first has four in a row, column or diagonal
    wins. The rules are those of PettingZoo's `connect_four_v3`, but that an illegal move is refused instead of losing
    the game. With best play the first player wins (Allis 1988).

    ## Action Space
    `Discrete(8)`: the column that gets the disc, 0 is the leftmost; 7 passes.

    ## Observation Space
    A `Box` (6, 7, 3) int8, top row first: 1 where there is a disc of one's own; of the opponent; and 1 everywhere when
    it is one's turn.

    ## Rewards
    +1 for a win, -1 for a loss, 0 for a draw and in every other step.

    ## Starting State
    An empty board, with one disc of the opponent where the draw of seats has made it the first player.

    ## Episode End
    Termination: four in a row, or a full board. Truncation: after `max_episode_steps` steps, which only an agent that
    plays illegal moves can reach. `final_info` has `success`, `drawn` and `lost`.

    ## Action Mask
    `action_mask` (N, 8) int8, 1 where legal: columns with room, or, for who waits, to pass and nothing else. An illegal
    action changes nothing: the opponent does not move either, and the reward is 0.

    ## Self-play
    With `opponent` self or pool the environments 2i and 2i + 1 are the seats of one game, the first mover and the
    other; a step is one move. Who waits has a single legal action, so that its log-probability, entropy and gradient
    are 0, and no script has to know. Rewards are zero-sum, and both episodes end in the same step. In a share of the
    games of `pool` one seat, drawn, is played by somebody else; its environment then waits for the whole game, and its
    episode does not count (`by_other`). An eighth of these games each is against random moves, minimax of depth 2 and
    minimax of depth 4, as yardsticks and for variety. The rest is against one of the last 16 agents that this training
    was earlier (`meet`), or self-play as long as there is none. `final_info` has the points, 1 for a win and a half for
    a draw, by who was met: `points_random`, `points_minimax_2`, `points_minimax_4` and `points_pool`, NaN in other
    games. The last of an odd number of environments plays against random moves.

    ## Arguments
    Args:
        num_envs: N, environments in the batch.
        opponent: "random": legal moves; "minimax": sees what is decided within `depth` moves, and is random among
            columns of equal worth; "self"; "pool"; or the path of a checkpoint of `ppo_action_mask.py` or
            `dqn_action_mask.py`, trained here, which plays greedily as with `--eval-only`.
        depth: of minimax, its own first move included.
        share: of the games of "pool" that are against others.
        max_episode_steps: steps until truncation.
        render_mode: "rgb_array", "ansi" or None.

    Raises:
        ValueError: an argument out of its range, or a file that is no checkpoint of this game.

    Example:
        >>> env = ConnectFour(num_envs=2, opponent="self")
        >>> obs, infos = env.reset(seed=0)
        >>> infos["action_mask"]
        array([[1, 1, 1, 1, 1, 1, 1, 0],
               [0, 0, 0, 0, 0, 0, 0, 1]], dtype=int8)
        >>> obs, rewards, terminations, truncations, infos = env.step([3, 7])
        >>> obs[0, 5, 3], obs[1, 5, 3], infos["action_mask"][0]
        (array([1, 0, 0], dtype=int8), array([0, 1, 1], dtype=int8), array([0, 0, 0, 0, 0, 0, 0, 1], dtype=int8))
    """

    metadata = BatchedEnv.metadata | {"render_fps": 2}
    state_arrays = ("discs", "plies", "seat", "by", "result")

    def __init__(
        self,
        num_envs: int,
        opponent: str = "random",
        depth: int = 4,
        share: float = 0.5,
        max_episode_steps: int = 42,
        render_mode: str | None = None,
    ):
        if not 1 <= depth <= 7 or not 0 <= share <= 1:  # each move more takes seven times as long
            raise ValueError(f"Expected depth from 1 to 7 and share from 0 to 1; got {depth} and {share}.")
        super().__init__(
            num_envs, spaces.Box(0, 1, (ROWS, COLUMNS, 3), np.int8), spaces.Discrete(COLUMNS + 1), max_episode_steps,
            render_mode,
        )  # fmt: skip
        self.opponent, self.share, self.meets = opponent, share, opponent == "pool"
        self.others = [partial(search, depth=depth if opponent == "minimax" else 0)]  # who else may play
        if opponent == "pool":
            self.others = [partial(search, depth=n) for n in YARDSTICKS.values()]
        if opponent not in ("random", "minimax", "self", "pool"):
            if not Path(opponent).is_file():
                known = "random, minimax, self, pool or the path of a checkpoint"
                raise ValueError(f"opponent {opponent!r}: expected {known}, and there is no such file.")
            player = Player.of_checkpoint(opponent, "ConnectFour", (ROWS * COLUMNS * 3, COLUMNS + 1))
            self.others = [partial(self._ask, lambda obs, mask, draws: player.best(obs, mask))]
        paired = num_envs // 2 * 2 if opponent in ("self", "pool") else 0
        # A game is a row of these; environment i is one side of game `game[i]`, and sides are 0 for the first mover.
        self.game = np.concatenate([np.arange(paired) // 2, np.arange(paired, num_envs) - paired // 2])
        games = num_envs - paired // 2
        self.paired = np.arange(games) < paired // 2
        self.discs = np.zeros((games, 2), np.uint64)  # of each side
        self.plies = np.zeros(games, np.int64)  # moves played
        self.seat = np.arange(num_envs) % 2  # (N,) the side of each environment
        self.by = np.full((games, 2), -1)  # which of the others plays a side, -1 for an environment
        self.result = np.zeros(games)  # 1 where the first mover has won, -1 where the other has
        self.pool: list[dict[str, np.ndarray]] = []  # weights of past agents

    def meet(self, agent: torch.nn.Module) -> None:
        """Take a copy of an agent into the pool of past ones."""
        self._fill([*self.pool, weights_of(agent)][-POOL:])

    def get_state(self) -> dict[str, Any]:
        """As of any world, and the pool."""
        return super().get_state() | {"pool": dict(enumerate(self.pool))}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_state` gave."""
        super().set_state({key: value for key, value in state.items() if key != "pool"})
        self._fill(list(state["pool"].values()))

    def _fill(self, pool: list[dict[str, np.ndarray]]) -> None:
        """Make these the past agents, who stand behind the yardsticks."""
        self.pool, shape = pool, (ROWS * COLUMNS * 3, COLUMNS + 1)
        players = [Player(weights, shape, "a past agent") for weights in pool]
        self.others[len(YARDSTICKS) :] = [partial(self._ask, player.sample) for player in players]

    def _reset_rows(self, rows: np.ndarray) -> None:
        games = np.unique(self.game[rows])
        self.discs[games], self.plies[games], self.by[games], self.result[games] = 0, 0, -1, 0
        draws = self._uniform(games, 3)
        single = rows[~self.paired[self.game[rows]]]
        self.seat[single] = draws[np.searchsorted(games, self.game[single]), 0] < 0.5
        self.by[self.game[single], 1 - self.seat[single]] = 0
        if self.opponent == "pool":
            drawn = self.paired[games] & (draws[:, 0] < self.share)
            part, known = draws[drawn, 2] / PART, len(YARDSTICKS)
            past = known + (part - known) / (1 / PART - known) * len(self.pool)  # below `known` for a yardstick
            who = np.where(part < known, part, past if self.pool else -1).astype(int)
            self.by[games[drawn], (draws[drawn, 1] < 0.5) * 1] = who
        self._others_move(games)

    def _advance(self, actions: Any) -> tuple[np.ndarray, np.ndarray]:
        actions = np.asarray(actions)
        movers = np.flatnonzero(self._turn() & (actions != PASS))
        games, columns = self.game[movers], actions[movers]
        moved = games[self._drop(games, columns)]
        self._others_move(moved)
        first = self.result[self.game]
        over = (first != 0) | (self.plies[self.game] == ROWS * COLUMNS)
        return np.where(self.seat == 0, first, -first), over

    def _turn(self) -> np.ndarray:
        """Whether each environment (N,) moves next, and nobody else in its place."""
        game = self.game
        return (self.plies[game] % 2 == self.seat) & (self.by[game, self.seat] < 0)

    def _drop(self, games: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Drop a disc of whoever is to move into these columns of these games; False (G,) where there is no room."""
        new = drops(self.discs[games].sum(axis=1))[np.arange(len(games)), columns]
        fits, side = new != 0, self.plies[games] % 2
        self.discs[games, side] |= new
        self.plies[games] += fits
        self.result[games] = np.where(has_four(self.discs[games, side]) & fits, 1 - 2 * side, self.result[games])
        return fits

    def _others_move(self, games: np.ndarray) -> None:
        """Those of these games that go on and in which it is the turn of somebody else get a move."""
        games = games[(self.result[games] == 0) & (self.plies[games] < ROWS * COLUMNS)]
        side = self.plies[games] % 2
        theirs = self.by[games, side] >= 0
        if theirs.any():
            games, side = games[theirs], side[theirs]
            self._drop(games, self._choose(games, side))

    def _choose(self, games: np.ndarray, side: np.ndarray) -> np.ndarray:
        """The columns (G,) that the others choose, of the games whose `side` is theirs."""
        own, other, by = self.discs[games, side], self.discs[games, 1 - side], self.by[games, side]
        draws, columns = self._uniform(games, COLUMNS), np.empty(len(games), int)
        for index in np.unique(by):
            rows = by == index
            columns[rows] = self.others[index](own[rows], other[rows], draws[rows])
        return columns

    def _ask(self, choose: Callable, own: np.ndarray, other: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """The columns (G,) that an agent chooses, who is to move on these boards."""
        obs = self._see(own, other, np.ones(len(own), bool)).reshape(len(own), -1)
        return choose(obs, np.pad(drops(own | other) != 0, ((0, 0), (0, 1))), draws[:, 0])

    def _see(self, own: np.ndarray, other: np.ndarray, turn: np.ndarray) -> np.ndarray:
        """Observations (R, 6, 7, 3) int8 of boards (R,) uint64."""
        boards = np.stack([own, other], axis=-1)[:, None, None]  # (R, 1, 1, 2)
        discs = (boards >> CELLS.astype(np.uint64)[None, :, :, None]) & np.uint64(1)
        planes = np.broadcast_to(turn[:, None, None, None], (len(turn), ROWS, COLUMNS, 1))
        return np.concatenate([discs, planes], axis=-1, dtype=np.int8, casting="unsafe")

    def _observe(self, rows: np.ndarray) -> np.ndarray:
        game, seat = self.game[rows], self.seat[rows]
        return self._see(self.discs[game, seat], self.discs[game, 1 - seat], self._turn()[rows])

    def _info(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        room = drops(self.discs[self.game[rows]].sum(axis=1)) != 0
        turn = self._turn()[rows, None]
        return {"action_mask": np.concatenate([room & turn, ~turn], axis=1).astype(np.int8)}

    def _final_info(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        game, seat = self.game[rows], self.seat[rows]
        result = np.where(seat == 0, 1, -1) * self.result[game]
        info = {"success": (result > 0) * 1.0, "drawn": (result == 0) * 1.0, "lost": (result < 0) * 1.0}
        if self.opponent == "pool":
            met = np.minimum(self.by[game, 1 - seat], len(YARDSTICKS))  # past agents stand behind the yardsticks
            for kind, name in enumerate((*YARDSTICKS, "pool")):
                info[f"points_{name}"] = np.where(met == kind, (1 + result) / 2, np.nan)
            info["by_other"] = self.by[game, seat] >= 0
        return info

    def _board(self, row: int) -> np.ndarray:
        """The flattened board (42,) of one environment: 1 its own discs, 2 the opponent's."""
        own, other = (self.discs[self.game[row], side] for side in (self.seat[row], 1 - self.seat[row]))
        one = np.uint64(1)
        return (
            ((own >> CELLS.astype(np.uint64) & one) + 2 * (other >> CELLS.astype(np.uint64) & one)).ravel().astype(int)
        )

    def _headline(self, row: int) -> str:
        result = self.result[self.game[row]] * (1 - 2 * self.seat[row])
        if result or self.plies[self.game[row]] == ROWS * COLUMNS:
            return {1: "You win", -1: "You lose", 0: "Draw"}[int(result)]
        return "Your move" if self._turn()[row] else "You wait"

    def _render_ansi(self, row: int) -> str:
        board, order = self._board(row), ("first", "second")[self.seat[row]]
        signs = ["×" if board[column] else "↓" for column in range(COLUMNS)]
        drawn = [["·●○"[disc] for disc in discs] for discs in board.reshape(ROWS, COLUMNS)]
        rows = [f"│ {' '.join(discs)} │" for discs in drawn]
        head = [f"{self._headline(row)} (● you, {order}; ○ opponent)", "  " + " ".join(signs), *rows]
        return "\n".join([*head, "└" + "─" * (2 * COLUMNS + 1) + "┘", "  " + " ".join(map(str, range(COLUMNS)))])

    def _render_rgb(self, row: int) -> np.ndarray:
        board, width, height = self._board(row), COLUMNS * TILE + 2 * MARGIN, HEAD + ROWS * TILE + 2 * MARGIN
        image, draw = canvas(width, height)
        text(draw, (MARGIN, 52), self._headline(row), 44, anchor="lm")
        for x, color, name in ((width - 420, GOLD, "you"), (width - 260, INK, "opponent")):
            _disc(draw, (x, 52), 18, color)
            text(draw, (x + 36, 52), name, 30, anchor="lm")
        draw.rounded_rectangle([MARGIN - 20, HEAD, width - MARGIN + 20, height - 24], 36, fill=ACCENT)
        centres = np.indices((ROWS, COLUMNS))[::-1].reshape(2, -1).T * TILE + (MARGIN + TILE / 2, HEAD + 16 + TILE / 2)
        for (x, y), disc in zip(centres, board, strict=True):
            _disc(draw, (x, y), RADIUS, (PAPER, GOLD, INK)[disc])
        for column, (x, _) in enumerate(centres[:COLUMNS]):
            if board[column]:
                cross(draw, (x, HEAD - 40), 18, width=8)
            else:
                draw.polygon([(x - 20, HEAD - 52), (x + 20, HEAD - 52), (x, HEAD - 24)], fill=LEGAL)
            text(draw, (x, height - 52), str(column), 28, PAPER)
        for four in LINES[(board[LINES] == board[LINES[:, :1]]).all(axis=1) & (board[LINES[:, 0]] > 0)]:
            line = [tuple(centres[four[0]]), tuple(centres[four[-1]])]
            draw.line(line, fill=LEGAL if board[four[0]] == 1 else ILLEGAL, width=16)
        return pixels(image.reduce(2))


def _disc(draw: Any, xy: tuple[float, float], radius: float, fill: str) -> None:
    x, y = xy
    draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=fill, outline=MUTED, width=2)


# All 69 rows of four cells, as places in the flattened board (69, 4).
LINES = np.array(
    [
        [(row + k * dy) * COLUMNS + column + k * dx for k in range(4)]
        for dx, dy in ((1, 0), (0, 1), (1, 1), (1, -1))
        for row in range(ROWS)
        for column in range(COLUMNS)
        if 0 <= row + 3 * dy < ROWS and column + 3 * dx < COLUMNS
    ]
)
