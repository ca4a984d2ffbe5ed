"""Worlds, and how a mask gets from a world to a script.

| file | what it holds |
|-|-|
| `worlds/` | the environments, one a file, registered here under `Masked/`, and what they are drawn with |
| `base.py` | `BatchedEnv`: rules written once, in NumPy, for N environments; `SingleEnv`: a batch of one |
| `constraints.py` | masks declared by a function of the observation: `In`, `Mask`, `MaskFunction` |
| `masks.py` | pure functions that check masks and count illegal actions |
| `observations.py` | observations flattened, or as a set of entities |
| `foreign.py` | environments that others wrote: their conventions, and what may be wrong with them |
| `statistics.py` | running statistics, with which observations and rewards are scaled |
| `players.py` | agents of earlier trainings, and of earlier moments of this one, as players of games |
| `uniform.py` | `UniformVectorEnv`: what the scripts step, the same for every environment |
| `episodes.py` | episodes played by an agent: scores, and moments to draw |
| `make.py` | `make_vec`: from an id and its arguments to a `UniformVectorEnv` |
"""

from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import load_env_creator

from envs.base import BatchedEnv, SingleEnv
from envs.constraints import In, Mask, MaskFunction, VectorMaskFunction, legal_actions

__all__ = [
    "BatchedEnv",
    "In",
    "Mask",
    "MaskFunction",
    "SingleEnv",
    "VectorMaskFunction",
    "legal_actions",
    "register_batched",
]


def register_batched(env_id: str, vector_entry_point: str, **kwargs: Any) -> None:
    """Register a batched environment, and the single one that is a batch of one of it.

    `gymnasium.make` keeps an argument `max_episode_steps` for a time limit of its own, which the rules do not know of:
    it can end episodes earlier, never later. `make_vec` hands it to the environment.

    Args:
        env_id: the id for `gymnasium.make` and `make_vec`.
        vector_entry_point: "module:callable" that takes `num_envs` and the environment's arguments.
        **kwargs: default arguments.
    """

    def single(**arguments: Any) -> SingleEnv:
        return SingleEnv(load_env_creator(vector_entry_point)(num_envs=1, **arguments))

    gym.register(env_id, single, vector_entry_point=vector_entry_point, kwargs=kwargs)


register_batched("Masked/JobRouting-v0", "envs.worlds.job_routing:make_job_routing_vec")
register_batched("Masked/Maze-v0", "envs.worlds.maze:Maze")
register_batched("Masked/BinPlacement-v0", "envs.worlds.bin_placement:make_bin_placement_vec")
register_batched("Masked/Harvest-v0", "envs.worlds.harvest:Harvest")
register_batched("Masked/PandaForest-v0", "envs.worlds.panda_forest:PandaForest")
register_batched("Masked/OrderPicking-v0", "envs.worlds.order_picking:OrderPicking")
register_batched("Masked/Vault-v0", "envs.worlds.vault:Vault")
register_batched("Masked/MicroRTS-v0", "envs.worlds.microrts:MicroRTS")
register_batched("Masked/MicroRTSHarvest-v0", "envs.worlds.microrts:MicroRTSHarvest")
register_batched("Masked/ConnectFour-v0", "envs.worlds.connect_four:ConnectFour")
register_batched("Masked/PettingZoo-v0", "envs.worlds.pettingzoo:PettingZoo")
