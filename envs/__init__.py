"""The shared environments, registered under `Masked/`, with their masks, constraints and vector-env plumbing."""

from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import load_env_creator

from envs.base import BatchedEnv, SingleEnv
from envs.constraints import In, Mask, MaskFunction, VectorMaskFunction, legal_actions

__all__ = ["BatchedEnv", "In", "Mask", "MaskFunction", "SingleEnv", "VectorMaskFunction", "legal_actions"]


def register_batched(env_id: str, vector_entry_point: str, **kwargs: Any) -> None:
    """Register a batched environment, and the single one that is a batch of one of it.

    Args:
        env_id: the id for `gymnasium.make` and `make_vec`.
        vector_entry_point: "module:callable" that takes `num_envs` and the environment's arguments.
        **kwargs: default arguments.
    """

    def single(**arguments: Any) -> SingleEnv:
        return SingleEnv(load_env_creator(vector_entry_point)(num_envs=1, **arguments))

    gym.register(env_id, single, vector_entry_point=vector_entry_point, kwargs=kwargs)


register_batched("Masked/JobRouting-v0", "envs.job_routing:make_job_routing_vec")
register_batched("Masked/Maze-v0", "envs.maze:Maze")
register_batched("Masked/BinPlacement-v0", "envs.bin_placement:make_bin_placement_vec")
register_batched("Masked/Harvest-v0", "envs.harvest:Harvest")
register_batched("Masked/PandaForest-v0", "envs.panda_forest:PandaForest")
register_batched("Masked/OrderPicking-v0", "envs.order_picking:OrderPicking")
register_batched("Masked/MicroRTS-v0", "envs.microrts:MicroRTS")
register_batched("Masked/MicroRTSHarvest-v0", "envs.microrts:MicroRTSHarvest")
gym.register("Masked/ConnectFour-v0", "envs.connect_four:ConnectFour")
