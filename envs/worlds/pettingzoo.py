"""PettingZoo's games by turns, with a row of the batch for each seat."""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector.utils import concatenate, create_empty_array

from envs.base import BatchedEnv
from envs.foreign import admit, reason
from envs.masks import check_action_mask


class PettingZoo(BatchedEnv):
    """Any AEC game of PettingZoo with two or more seats whose observations hold an `action_mask`.

    ## Description
    Every seat is an environment of the batch: those of one game follow each other, in the order of `possible_agents`.
    A step is one move. Who waits, and who is out while others play on, has a single legal action, to pass, so that its
    log-probability, entropy and gradient are 0: self-play, without a line of it in the scripts.

    ## Action Space
    `Discrete(n + 1)`: the game's actions, counted from 0, and n to pass.

    ## Observation Space
    A `Dict` of what this seat observes of the game, without the mask, and `turn` (1,) int8, 1 where it moves next.

    ## Rewards
    The game's, to each seat what it gives, when it gives it.

    ## Starting State
    That of the game.

    ## Episode End
    Of all seats at once, where no seat is left, or each that is has ended. Truncation: after `max_episode_steps` moves,
    or where the game cuts all that are left; else a termination. `final_info` has `success`, `drawn` and `lost`:
    returns above, at and below 0.

    ## Action Mask
    `action_mask` (N, n + 1) int8, 1 where legal: the game's for who moves, to pass for all others. An illegal action
    never reaches the game: nobody moves, and the reward is 0.

    The game cannot be saved: there is no `get_state`, and a resumed run begins with new games.

    ## Arguments
    Args:
        num_envs: N, a multiple of the number of seats; an evaluation takes the next one.
        game: module of the game, "pettingzoo.classic.tictactoe_v3" (`pip install "pettingzoo[classic]"`).
        max_episode_steps: moves until truncation.
        render_mode: "rgb_array" or None; what the game draws.
        **kwargs: for the game.

    Raises:
        ImportError: the module, or what it needs, is missing.
        ValueError: a game without masks, with one seat, with actions that are not Discrete, or with seats that see or
            do different things.

    Example:
        >>> import pytest; _ = pytest.importorskip("pettingzoo.classic.tictactoe_v3")
        >>> env = PettingZoo(num_envs=2, game="pettingzoo.classic.tictactoe_v3")
        >>> obs, infos = env.reset(seed=0)
        >>> infos["action_mask"]
        array([[1, 1, 1, 1, 1, 1, 1, 1, 1, 0],
               [0, 0, 0, 0, 0, 0, 0, 0, 0, 1]], dtype=int8)
    """

    metadata = BatchedEnv.metadata | {"render_modes": ["rgb_array"], "render_fps": 2}
    get_state = set_state = property()  # hidden, so that `hasattr` says that the game cannot be saved

    def __init__(
        self, num_envs: int, game: str, max_episode_steps: int = 500, render_mode: str | None = None, **kwargs: Any
    ):
        mode = {"render_mode": render_mode} if render_mode else {}
        make = partial(_load(game), **mode, **kwargs)
        first = make()
        self.seats = list(getattr(first, "possible_agents", ()))
        if len(self.seats) < 2 or num_envs % len(self.seats):
            found = f"{len(self.seats)} seats and {num_envs} environments"
            raise ValueError(f"{game} has {found}; expected two seats or more, and --num-envs a multiple of them.")
        seen = [first.observation_space(seat) for seat in self.seats]
        actions = [first.action_space(seat) for seat in self.seats]
        if not isinstance(seen[0], spaces.Dict) or not {"observation", "action_mask"} <= seen[0].spaces.keys():
            raise ValueError(f"{game} observes {seen[0]}; expected a Dict of observation and action_mask.")
        if any(space != seen[0] for space in seen) or any(space != actions[0] for space in actions):
            raise ValueError(f"{game}: its seats have different spaces; expected the same for all of them.")
        if not isinstance(actions[0], spaces.Discrete):
            raise ValueError(f"{game} takes actions of {actions[0]}; expected Discrete.")
        self.passing, self.first_action = int(actions[0].n), int(actions[0].start)
        self.seen = spaces.Dict({key: part for key, part in seen[0].spaces.items() if key != "action_mask"})
        space = spaces.Dict(self.seen.spaces | {"turn": spaces.MultiBinary(1)})
        super().__init__(num_envs, space, spaces.Discrete(self.passing + 1), max_episode_steps, render_mode)
        self.games = [first] + [make() for _ in range(num_envs // len(self.seats) - 1)]
        self.masks = np.zeros((num_envs, self.passing + 1), np.int8)
        self.totals = np.zeros(num_envs)

    @staticmethod
    def multiple(game: str, max_episode_steps: int = 500, render_mode: str | None = None, **kwargs: Any) -> int:
        """The seats of a game, by which `num_envs` must be divisible."""
        return len(_load(game)(**kwargs).possible_agents)

    def _reset_rows(self, rows: np.ndarray) -> None:
        self.totals[rows] = 0
        games = np.unique(rows // len(self.seats))
        for index, draw in zip(games, self._uniform(games), strict=True):
            with _blaming(index * len(self.seats), "reset()"):
                self.games[index].reset(seed=int(draw * 2**31))
            self._look(index)

    def _advance(self, actions: Any) -> tuple[np.ndarray, np.ndarray]:
        rewards, over = np.zeros(self.num_envs), np.zeros(self.num_envs, bool)
        for index, game in enumerate(self.games):
            start = index * len(self.seats)
            rows, row = slice(start, start + len(self.seats)), start + self.seats.index(game.agent_selection)
            action = int(actions[row])
            if action != self.passing and self.masks[row, action]:
                with _blaming(row, f"step({action + self.first_action})"):
                    ended = self._play(game, action + self.first_action, rewards[rows])
                over[rows] = not game.agents and ended
                if not game.agents and not ended:  # the game's own truncation
                    self.elapsed[rows] = self.max_episode_steps
                self._look(index)
        self.totals += rewards
        return rewards, over

    def _play(self, game: Any, action: int | None, rewards: np.ndarray) -> bool:
        """One move, and the formal ones of seats that are out; adds what each seat gets to `rewards`, in place.

        Returns whether the move has ended the game for some seat, rather than cut it.
        """
        game.step(action)
        ended = any(game.terminations[seat] for seat in game.agents)
        rewards += [game.rewards.get(seat, 0) for seat in self.seats]
        while game.agents and (game.terminations[game.agent_selection] or game.truncations[game.agent_selection]):
            game.step(None)  # pays nothing, and takes the seat off the list
        return ended

    def _look(self, index: int) -> None:
        game, start = self.games[index], index * len(self.seats)
        rows = slice(start, start + len(self.seats))
        self.masks[rows] = 0
        self.masks[rows, self.passing] = 1
        if game.agents:
            row = start + self.seats.index(game.agent_selection)
            with _blaming(row, "observe()"):
                mask = np.array([game.observe(game.agent_selection)["action_mask"]])
            self.masks[row, : self.passing] = check_action_mask(mask, np.array([self.passing]), first_env=row)
            self.masks[row, self.passing] = 0

    def _observe(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        seen = []
        for row in rows:
            game, seat = self.games[row // len(self.seats)], self.seats[row % len(self.seats)]
            with _blaming(row, "observe()"):
                given = game.observe(seat)
            seen.append(admit(self.seen, given, row))
        batch = concatenate(self.seen, seen, create_empty_array(self.seen, len(rows)))
        return dict(batch) | {"turn": 1 - self.masks[rows, -1:]}

    def _info(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {"action_mask": self.masks[rows].copy()}

    def _final_info(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        totals = self.totals[rows]
        return {"success": (totals > 0) * 1.0, "drawn": (totals == 0) * 1.0, "lost": (totals < 0) * 1.0}

    def _render_rgb(self, row: int) -> np.ndarray:
        return self.games[row // len(self.seats)].render()

    def close(self, **kwargs: Any) -> None:
        """Close all games."""
        for game in self.games:
            game.close()


@contextmanager
def _blaming(row: int, call: str) -> Iterator[None]:
    """Name the environment whose game failed in this call (ValueError)."""
    try:
        yield
    except Exception as error:
        what = f"Environment {row}: {call} of its game raised {type(error).__name__}: {reason(error)}"
        raise ValueError(f"{what}. Expected what PettingZoo's AEC games do.") from error


def _load(game: str) -> Callable[..., Any]:
    """What makes the game of this module."""
    try:
        return importlib.import_module(game).env
    except (ImportError, AttributeError) as error:
        raise ImportError(
            f"game {game}: {error}. Expected the module of a game, as pettingzoo.classic.tictactoe_v3; pip install "
            f'"pettingzoo[classic]" has its classic ones.'
        ) from error
