"""Connect Four against a random opponent: PettingZoo's game as an ordinary single-agent environment."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from envs.worlds.drawing import ACCENT, GOLD, ILLEGAL, INK, LEGAL, MUTED, PAPER, canvas, cross, pixels, text

ROWS, COLUMNS = 6, 7
PLAYERS = ("player_0", "player_1")  # PettingZoo's names of the seats, the first mover first
INSTALL = 'pip install "pettingzoo==1.27.0" "pygame-ce==2.5.8"'
TILE, MARGIN, TOP, RADIUS = 128, 48, 184, 48  # pixels, drawn at twice the size and halved at the end: smooth edges


class ConnectFour(gym.Env):
    """Connect Four against an opponent that plays random legal moves.

    ## Description
    Two players drop discs into the seven columns of an upright board; who first has four in a row, column or diagonal
    wins. The rules are those of PettingZoo's `connect_four_v3`, without its wrappers: an illegal move is refused here
    instead of losing the game. PettingZoo is optional, see `INSTALL`.

    ## Action Space
    `Discrete(7)`: the column that gets the disc, 0 is the leftmost.

    ## Observation Space
    PettingZoo's `Dict`, as it is:

    | key | shape, dtype | content |
    |-|-|-|
    | `observation` | (6, 7, 2) int8 | 1 where there is a disc, top row first: one's own, the opponent's |
    | `action_mask` | (7,) int8 | 1 where the column has room |

    ## Rewards
    +1 for a win, -1 for a loss, 0 for a draw and in every other step.

    ## Starting State
    An empty board, with one disc of the opponent where the draw of seats has made it the first player.

    ## Episode End
    Termination: four in a row, or a full board. Truncation: after `max_episode_steps` actions, which only an agent
    that plays illegal moves can reach, since a game has at most 21 legal ones.

    ## Action Mask
    Part of the observation, PettingZoo's convention. Full columns are illegal; a disc that is dropped into one
    changes nothing, the opponent does not move, and the reward is 0. In a terminal state the mask is what PettingZoo
    gives: all 0 after one's own last move, the columns with room after the opponent's.

    ## Arguments
    Args:
        max_episode_steps: actions until truncation.
        render_mode: "rgb_array", "ansi" or None.

    Raises:
        ImportError: PettingZoo or pygame is missing; the message has the command that installs them.

    Example:
        >>> import pytest; _ = pytest.importorskip("pettingzoo.classic.connect_four.connect_four")
        >>> env = ConnectFour()
        >>> obs, info = env.reset(seed=0)
        >>> obs["observation"].shape, obs["action_mask"]
        ((6, 7, 2), array([1, 1, 1, 1, 1, 1, 1], dtype=int8))
        >>> obs, reward, terminated, truncated, info = env.step(3)
        >>> obs["observation"][5, 3], reward, terminated
        (array([1, 0], dtype=int8), 0.0, False)
    """

    metadata = {"render_modes": ["rgb_array", "ansi"], "render_fps": 2}

    def __init__(self, max_episode_steps: int = 42, render_mode: str | None = None):
        if max_episode_steps < 1:
            raise ValueError(f"max_episode_steps must be at least 1, got {max_episode_steps}.")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(
                f"render_mode must be one of {self.metadata['render_modes']} or None, got {render_mode!r}."
            )
        try:
            from pettingzoo.classic.connect_four.connect_four import raw_env
        except ImportError as error:
            raise ImportError(f"ConnectFour plays PettingZoo's game, which is not installed: {INSTALL}") from error
        self.game, self.max_episode_steps, self.render_mode = raw_env(), max_episode_steps, render_mode
        self.observation_space = self.game.observation_space(PLAYERS[0])
        self.action_space = spaces.Discrete(COLUMNS)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start a new game: draw the seat, and let the opponent move if it is the first."""
        super().reset(seed=seed)
        self.game.reset()
        self.elapsed, self.seat = 0, PLAYERS[self._draw(2)]
        if self.seat != PLAYERS[0]:
            self._opponent_moves()
        return self.game.observe(self.seat), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Drop a disc into column `action`, and let the opponent answer."""
        if self.game.board[action] == 0:  # the board's first row is the top one
            self.game.step(int(action))
            if not self.game.terminations[self.seat]:
                self._opponent_moves()
        self.elapsed += 1
        terminated = self.game.terminations[self.seat]
        truncated = not terminated and self.elapsed >= self.max_episode_steps
        return self.game.observe(self.seat), float(self.game.rewards[self.seat]), terminated, truncated, {}

    def render(self) -> np.ndarray | str | None:
        """The picture (height, width, 3) uint8, or the text, of the board."""
        if self.render_mode is None:
            gym.logger.warn("render() was called without a render_mode; pass render_mode='rgb_array' or 'ansi'.")
            return None
        board = np.array(self.game.board)
        own = 1 + PLAYERS.index(self.seat)
        board[board > 0] = np.where(board[board > 0] == own, 1, 2)  # 1 is the agent, in either seat
        return self._render_ansi(board) if self.render_mode == "ansi" else self._render_rgb(board)

    def _draw(self, n: int) -> int:
        return int(self.np_random.random() * n)  # a third of the time of integers(n)

    def _opponent_moves(self) -> None:
        columns = [column for column in range(COLUMNS) if self.game.board[column] == 0]
        self.game.step(columns[self._draw(len(columns))])

    def _headline(self) -> str:
        if self.game.terminations[self.seat]:
            return {1: "You win", -1: "You lose", 0: "Draw"}[self.game.rewards[self.seat]]
        return "Your move"

    def _render_ansi(self, board: np.ndarray) -> str:
        order = "first" if self.seat == PLAYERS[0] else "second"
        signs = ["×" if board[column] else "↓" for column in range(COLUMNS)]
        rows = ["│ " + " ".join("·●○"[disc] for disc in row) + " │" for row in board.reshape(ROWS, COLUMNS)]
        head = [f"{self._headline()} (● you, {order}; ○ opponent)", "  " + " ".join(signs), *rows]
        return "\n".join([*head, "└" + "─" * (2 * COLUMNS + 1) + "┘", "  " + " ".join(map(str, range(COLUMNS)))])

    def _render_rgb(self, board: np.ndarray) -> np.ndarray:
        width, height = COLUMNS * TILE + 2 * MARGIN, TOP + ROWS * TILE + 2 * MARGIN
        image, draw = canvas(width, height)
        text(draw, (MARGIN, 52), self._headline(), 44, anchor="lm")
        for x, color, name in ((width - 420, GOLD, "you"), (width - 260, INK, "opponent")):
            _disc(draw, (x, 52), 18, color)
            text(draw, (x + 36, 52), name, 30, anchor="lm")
        draw.rounded_rectangle([MARGIN - 20, TOP, width - MARGIN + 20, height - 24], 36, fill=ACCENT)
        centres = np.indices((ROWS, COLUMNS))[::-1].reshape(2, -1).T * TILE + (MARGIN + TILE / 2, TOP + 16 + TILE / 2)
        for (x, y), disc in zip(centres, board, strict=True):
            _disc(draw, (x, y), RADIUS, (PAPER, GOLD, INK)[disc])
        for column, (x, _) in enumerate(centres[:COLUMNS]):
            if board[column]:
                cross(draw, (x, TOP - 40), 18, width=8)
            else:
                draw.polygon([(x - 20, TOP - 52), (x + 20, TOP - 52), (x, TOP - 24)], fill=LEGAL)
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
