"""Speed of the attention encoder against nn.TransformerEncoder with src_key_padding_mask, in alternation.

    python benchmark/attention.py --out docs/results/attention_speed.json

One PPO update (loss, gradient, clipping, Adam) of a minibatch of 256 sets on one thread: same embedding, width, heads,
inner width, depth, loss and optimizer. Both read the first row, or with a pointer policy all rows.
"""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
import tyro
from seam import updater

import ppo_attention_mask
from ppo_attention_mask import Agent
from ppo_attention_mask import Args as ScriptArgs


@dataclass
class Args:
    """Alternate the two encoders and write the ratios."""

    pairs: int = 9
    """rounds"""
    repeats: int = 20
    """updates of each encoder in a round"""
    entities: int = 16
    """entities in a set"""
    out: Path | None = None
    """file for the results (JSON)"""


class Peer(Agent):
    """The same agent with PyTorch's encoder: norm first, no dropout, padding masked by `src_key_padding_mask`."""

    def __init__(self, obs_shape: tuple[int, int], nvec: tuple[int, ...], args: ScriptArgs):
        super().__init__(obs_shape, nvec, args)
        layer = nn.TransformerEncoderLayer(
            args.dim, args.heads, 2 * args.dim, dropout=0.0, batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, args.num_blocks, enable_nested_tensor=False)

    def encode(self, obs, need_weights=False):
        """All rows through all blocks, as PyTorch's module has it."""
        present = obs[..., 0] > 0
        x = self.blocks(self.embed(obs[..., 1:]), src_key_padding_mask=~present)
        read = None if self.pointer else 1
        return torch.where(present[:, :read, None], self.norm(x[:, :read]), 0.0), present[:, :read], None


def encoder_update(
    agent_class: type[Agent], blocks: int, pointer: bool, present: float, entities: int, compiled: bool
) -> Callable:
    """A function that makes one update, on sets of which the share `present` is there."""
    torch.manual_seed(0)
    args = ScriptArgs(num_blocks=blocks, pointer=pointer, compile=compiled)
    choices, size = entities if pointer else 5, 256
    agent = agent_class((entities, 1 + 16), (choices,), args)
    update = updater(ppo_attention_mask, agent, args)
    there = torch.zeros(size, entities)
    there[:, : round(present * entities)] = 1
    obs = torch.cat([there[..., None], torch.randn(size, entities, 16) * there[..., None]], dim=-1)
    mask = there.bool() if pointer else torch.ones(size, choices, dtype=torch.bool)
    batch = [torch.randn(size) for _ in range(3)]
    mb = (obs, torch.zeros(size, dtype=torch.long), mask, torch.full((size,), -1.5), *batch)
    return lambda: update(mb)


def main(args: Args) -> None:
    """Alternate, print and write."""
    torch.set_num_threads(1)
    results = {}
    for blocks, pointer, compiled in ((1, False, False), (1, False, True), (2, False, False), (2, True, False)):
        for present in (1.0, 0.5):
            common = (blocks, pointer, present, args.entities)
            ours, peer = encoder_update(Agent, *common, compiled), encoder_update(Peer, *common, False)
            ratios = []
            for pair in range(args.pairs + 1):  # the first round warms up
                seconds = []
                for step in (ours, peer):
                    start = time.perf_counter()
                    for _ in range(args.repeats):
                        step()
                    seconds.append(time.perf_counter() - start)
                ratios += [seconds[1] / seconds[0]] if pair else []
            read = "all rows" if pointer else "own row"
            name = f"{blocks} block{'s'[: blocks > 1]}, {read} read, {present:.0%} present{', compiled' * compiled}"
            results[name] = {"median_ratio": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
            print(f"{name}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})", flush=True)
    if args.out:
        args.out.write_text(
            json.dumps({"torch": torch.__version__} | vars(args) | {"out": "", "ratios": results}, indent=1)
        )


if __name__ == "__main__":
    main(tyro.cli(Args))
