"""The shared environments, registered under `Masked/`, with their masks, constraints and vector-env plumbing."""

import gymnasium as gym

from envs.bin_placement import make_bin_placement_vec
from envs.constraints import In, Mask, MaskFunction, VectorMaskFunction, legal_actions
from envs.job_routing import make_job_routing_vec
from envs.maze import Maze
from envs.base import BatchedEnv, SingleEnv

__all__ = ["BatchedEnv", "In", "Mask", "MaskFunction", "SingleEnv", "VectorMaskFunction", "legal_actions"]

for name, make in {
    "Masked/JobRouting-v0": make_job_routing_vec,
    "Masked/Maze-v0": Maze,
    "Masked/BinPlacement-v0": make_bin_placement_vec,
}.items():
    gym.register(name, lambda make=make, **kwargs: SingleEnv(make(num_envs=1, **kwargs)), vector_entry_point=make)

gym.register("Masked/ConnectFour-v0", "envs.connect_four:ConnectFour")
