"""What Huang & Ontanon 2020 (https://arxiv.org/abs/2006.14171) have and no flag of ppo_action_mask.py gives.

Their networks, by size of the map; and actions that are sampled in evaluation, as there: in a game without chance the
most probable action, once refused, would be refused for ever.
"""

import torch
from torch import Tensor, nn

import ppo_action_mask
from benchmark import seam
from ppo_action_mask import layer_init as init

PLANES = 27


class Map(nn.Module):
    """Flat observations (B, D) as maps (B, 27, size, size), in the layout in which convolutions are fast on CPUs."""

    def forward(self, obs: Tensor) -> Tensor:
        """The maps."""
        size = round((obs.shape[1] / PLANES) ** 0.5)
        return obs.view(-1, PLANES, size, size).contiguous(memory_format=torch.channels_last)


def cnn(obs_dim: int, hidden_dim: int, out_dim: int, std: float) -> nn.Sequential:
    """The network for maps of 4 x 4, 10 x 10 or 24 x 24."""
    size = round((obs_dim / PLANES) ** 0.5)
    convolutions = {
        4: (init(nn.Conv2d(PLANES, 16, 2)), nn.ReLU()),
        10: (init(nn.Conv2d(PLANES, 16, 3)), nn.ReLU(), init(nn.Conv2d(16, 32, 3)), nn.ReLU()),
        24: (
            *(init(nn.Conv2d(PLANES, 16, 3)), nn.MaxPool2d(2), nn.ReLU()),
            *(init(nn.Conv2d(16, 32, 2)), nn.MaxPool2d(2), nn.ReLU()),
        ),
    }[size]
    width = {4: 16 * 3 * 3, 10: 32 * 6 * 6, 24: 32 * 5 * 5}[size]
    dense = (init(nn.Linear(width, hidden_dim)), nn.ReLU(), init(nn.Linear(hidden_dim, out_dim), std))
    return nn.Sequential(Map(), *convolutions, nn.Flatten(), *dense)


def prepare() -> None:
    """Let ppo_action_mask train so from now on, in this process."""
    seam.replace(ppo_action_mask, cnn)


def each_field() -> None:
    """The same, with the ratio of each field clipped by itself, as in their code."""
    prepare()
    seam.clip_each_field(ppo_action_mask)


def certain() -> None:
    """The same, with the entropy added to the loss, as in their code, where others subtract it."""
    prepare()
    seam.add_entropy_to_loss(ppo_action_mask)
