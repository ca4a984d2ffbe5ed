"""Several processes with one training, as torchrun starts them: each has its share of environments and minibatches."""

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor


def rank_seed(seed: int, rank: int) -> int:
    """The seed of a rank, whose streams no other rank has, nor one of another seed; rank 0 has the seed itself."""
    return int(np.random.SeedSequence((seed, rank)).generate_state(1)[0] >> 1) if rank else seed


@torch.compiler.disable  # a graph is cut in two here
def mean_over_ranks(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The mean of each tensor over all ranks, the same numbers on each: new tensors of the same shapes, contiguous."""
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    parts = (flat / dist.get_world_size()).split([tensor.numel() for tensor in tensors])
    return tuple(part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True))


def gather(mine: Any) -> list[Any]:
    """What each rank has, on every rank."""
    everyone = [mine] * (dist.get_world_size() if dist.is_initialized() else 1)
    if len(everyone) > 1:
        dist.all_gather_object(everyone, mine)
    return everyone
