"""POPGym's worlds with masks (`pip install popgym`): `--env-id benchmark.pop:Pop-v0 --env-kwargs name HigherLower`.

Morad et al. 2023, https://arxiv.org/abs/2303.01859. The last action is a part of the observation, as there. Where there
is something that cannot help, a mask forbids it; `--mask-mode none` trains without it.
"""

from typing import Any

import gymnasium as gym
import numpy as np
import popgym  # noqa: F401  registers its environments
from gymnasium import spaces
from popgym.core.wrapper import POPGymWrapper
from popgym.wrappers import PreviousAction


class Cells(POPGymWrapper):
    """One choice for each cell (row, column) of Battleship and MineSweeper; legal are those that are still closed."""

    def __init__(self, env: gym.Env):
        super().__init__(env)
        self.nvec = env.action_space.nvec
        self.action_space = spaces.Discrete(int(self.nvec.prod()))

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self.closed = np.ones(self.action_space.n, np.int8)
        return self.env.reset(**kwargs)

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.closed[action] = 0
        return self.env.step(np.array(np.unravel_index(action, self.nvec)))

    def action_masks(self) -> np.ndarray:
        return self.closed


class Cards(POPGymWrapper):
    """Concentration; legal are the cards that lie face down."""

    def action_masks(self) -> np.ndarray:
        deck, face_down = self.unwrapped.deck, np.ones(self.action_space.n, np.int8)
        face_down[deck["face_up_idx"] + deck["in_play_idx"]] = 0
        return face_down


def make(name: str) -> gym.Env:
    """An environment of POPGym, by the name in its id."""
    kinds = {"Battleship": Cells, "MineSweeper": Cells, "Concentration": Cards}
    env = gym.make(f"popgym-{name}-v0", disable_env_checker=True)
    wrappers = [wrapper for start, wrapper in kinds.items() if name.startswith(start)]
    return PreviousAction(wrappers[0](env) if wrappers else env)


gym.register("Pop-v0", make, disable_env_checker=True)
