"""The GRU that begins anew where episodes start, against PyTorch's own, in alternation.

    python benchmark/gru.py --out docs/results/gru_speed.json

Outputs and gradients of a minibatch of sequences on one thread. `nn.GRU` knows no starts: once as it is, on whole
sequences, which is wrong and the fastest one could hope for, and once over segments, each episode a sequence of its
own, cut at the starts and padded to the longest.
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
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ppo_recurrent_mask import EpisodicGRU


@dataclass
class Args:
    """Alternate the ways and write the ratios."""

    pairs: int = 9
    """rounds"""
    repeats: int = 30
    """forward and backward passes of each way in a round"""
    steps: int = 32
    """steps of a sequence"""
    sequences: int = 16
    """sequences in a minibatch"""
    width: int = 64
    """of inputs and state"""
    length: int = 16
    """mean length of an episode"""
    out: Path | None = None
    """file for the results (JSON)"""


def segmented(gru: nn.GRU, x: Tensor, starts: Tensor, state: Tensor) -> Tensor:
    """The states (T, N, H) of `EpisodicGRU.run`, with each episode as a sequence of its own."""
    steps, sequences = starts.shape
    cut = starts.clone()
    cut[0] = True
    lengths = torch.diff(cut.T.flatten().nonzero()[:, 0], append=torch.tensor([steps * sequences])).tolist()
    first = torch.where(starts[0][:, None], 0.0, state)  # a sequence that goes on begins with its state
    begun = torch.zeros(len(lengths), state.shape[1]).index_copy(0, cut.sum(0).cumsum(0) - cut.sum(0), first)
    segments = x.transpose(0, 1).flatten(0, 1).split(lengths)
    states, _ = gru(pad_sequence(segments), begun[None])
    there = torch.arange(max(lengths))[:, None] < torch.tensor(lengths)
    return states.transpose(0, 1)[there.T].unflatten(0, (sequences, steps)).transpose(0, 1)


def main(args: Args) -> None:
    """Check that they agree, alternate, print and write."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    theirs = nn.GRU(args.width, args.width)
    ours = EpisodicGRU(args.width, args.width)
    ours.load_state_dict({name.removesuffix("_l0"): value for name, value in theirs.state_dict().items()})
    x = torch.randn(args.steps, args.sequences, args.width, requires_grad=True)
    starts, state = torch.rand(args.steps, args.sequences) < 1 / args.length, torch.randn(args.sequences, args.width)
    compiled = torch.compile(ours.run)
    ways: dict[str, Callable[[], Tensor]] = {
        "nn.GRU, no starts": lambda: theirs(x, state[None])[0],
        "nn.GRU over segments": lambda: segmented(theirs, x, starts, state),
        "ours": lambda: ours.run(x, starts, state),
        "ours, compiled": lambda: compiled(x, starts, state),
    }
    for way in ("nn.GRU over segments", "ours, compiled"):
        torch.testing.assert_close(ways[way](), ways["ours"](), atol=1e-5, rtol=1e-4)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(args.pairs + 1):  # the first round warms up
        for way, run in ways.items():
            start = time.perf_counter()
            for _ in range(args.repeats):
                run().square().sum().backward()
            seconds[way].append((time.perf_counter() - start) / args.repeats)
    base, results = seconds["nn.GRU, no starts"][1:], {}
    for way, times in seconds.items():
        ratios = [a / b for a, b in zip(times[1:], base, strict=True)]
        results[way] = {"median_ratio": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
        results[way]["milliseconds"] = 1000 * statistics.median(times[1:])
        print(f"{way}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) times nn.GRU")
    if args.out:
        record = {"torch": torch.__version__} | vars(args) | {"out": "", "ratios": results}
        args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Args))
