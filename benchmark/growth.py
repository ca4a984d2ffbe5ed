"""Where our time goes, and how it grows, in CPU seconds on one thread, so that another process hardly matters.

    python benchmark/growth.py --suite breakdown --out docs/results/throughput_breakdown.json
    python benchmark/growth.py --suite grid --out docs/results/throughput_grid.json
    python benchmark/growth.py --suite growth --out docs/results/throughput_growth.json

breakdown: shares of environment, acting and update in trainings of ppo_action_mask.py, and the share that their matrix
    products reach of what this core reaches in sgemm alone. The first quarter of a training is left out.
grid: one PPO update of ppo_gridwise.py against torch.distributions over all cells of the map, as GridNet is commonly
    written; with our decoder on every cell, and with GridNet's, a mirrored encoder that is smaller and has no skip
    connections. Same encoder, loss and optimizer, 256 maps of 16 x 16 with agents in a tenth of the cells.
growth: CPU time per step, as a ratio to the smallest, with more actions and environments (trainings of
    ppo_action_mask.py) and more entities and agents (updates of ppo_attention_mask.py and ppo_gridwise.py).

In every round all arms take their turn; a figure is the median over rounds, with the smallest and the largest.
"""

import collections
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import attention
import seam
import torch
import torch.nn as nn
import tyro
from einops import rearrange
from throughput import child, setup
from torch.distributions import Categorical
from torch.utils.flop_counter import FlopCounterMode

import ppo_action_mask
import ppo_attention_mask
import ppo_gridwise

HARVEST, MICRORTS = (13,), (6, 4, 4, 4, 4, 7, 49)  # choices in the fields of an agent's action
PLANES = 12


@dataclass
class Args:
    """Alternate all arms of a suite and write the figures."""

    suite: Literal["breakdown", "grid", "growth"]
    """what to measure"""
    pairs: int = 5
    """rounds, each of which runs every arm once"""
    out: Path | None = None
    """file for the results (JSON)"""
    arm: str | None = None
    """measure this one arm and print its figures (used by the benchmark itself)"""


class Parts:
    """CPU seconds of the parts of a training, from the first quarter of its steps to the last one."""

    def __init__(self, total_steps: int):
        self.total_steps, self.steps, self.seconds, self.marks = total_steps, 0, collections.Counter(), []

    def timed(self, part: str, function: Callable) -> Callable:
        """The function, whose time counts for this part."""

        def wrapped(*inputs: Any) -> Any:
            start = time.process_time()
            result = function(*inputs)
            self.seconds[part] += time.process_time() - start
            return result

        return wrapped

    def tick(self, steps: int) -> None:
        """Called before these steps are played."""
        self.steps += steps
        if self.steps >= self.total_steps // 4:
            self.marks[1:] = [(time.process_time(), self.steps, self.seconds.copy())]

    def per_step(self) -> dict[str, float]:
        """Seconds per environment step: of each part, of the rest, and in all."""
        (start, first, before), (end, last, after) = self.marks
        parts = {part: (after[part] - before[part]) / (last - first) for part in after}
        total = (end - start) / (last - first)
        return parts | {"rest": total - sum(parts.values()), "total": total}


def train(steps: int, **flags: Any) -> dict[str, float]:
    """CPU seconds per step of a training with the script's own main, its functions timed from outside."""
    parts, name = Parts(steps), f"run_{time.time_ns()}"
    args = ppo_action_mask.Args(exp_name=name, total_timesteps=steps, eval_episodes=0, save_model=False, **flags)
    with seam.timed(ppo_action_mask, parts.timed), seam.watched(parts.tick):
        ppo_action_mask.main(args)
    return parts.per_step()


def cpu_seconds(function: Callable, repeats: int) -> float:
    """CPU seconds of a call, the mean of some."""
    start = time.process_time()
    for _ in range(repeats):
        function()
    return (time.process_time() - start) / repeats


def sgemm(m: int, k: int, n: int) -> float:
    """FLOP per CPU second of the product (m, k) x (k, n), the best of five goes."""
    a, b, out, flops = torch.randn(m, k), torch.randn(k, n), torch.empty(m, n), 2 * m * k * n
    return flops / min(cpu_seconds(lambda: torch.mm(a, b, out=out), int(5e9 / flops)) for _ in range(5))


def flops_per_step(args: ppo_action_mask.Args) -> float:
    """FLOP of all matrix products for one step of JobRouting (7 numbers seen, 16 machines), as torch counts them."""
    agent, size = ppo_action_mask.Agent(7, (16,), args.hidden_dim), args.minibatch_size
    obs, mask = torch.randn(size, 7), torch.ones(size, 16, dtype=torch.bool)
    mb = (obs, torch.zeros(size, dtype=torch.long), mask, *torch.randn(4, size))

    def count(function: Callable) -> float:
        with FlopCounterMode(display=False) as counter:
            function()
        return counter.get_total_flops() / size

    acting, value = count(lambda: agent.actor(obs)), count(lambda: agent.critic(obs))
    update = count(lambda: ppo_action_mask.ppo_loss(agent, mb, args)[0].backward())
    return (
        2 * acting + value + args.update_epochs * update
    )  # acting, the rollout's log-probabilities and values, epochs


def breakdown(num_envs: int, compiled: bool, pairs: int) -> dict[str, float]:
    """One training, and what the core reaches right after it; the rounds are made of processes."""
    flags = dict(num_envs=num_envs, num_steps=1024 // num_envs, learning_rate=3e-4, anneal_lr=False, compile=compiled)
    figures = train(65_536, **flags)
    flops = flops_per_step(ppo_action_mask.Args())
    peaks = {"sgemm 1024 x 1024 x 1024": sgemm(1024, 1024, 1024), "sgemm 256 x 64 x 64": sgemm(256, 64, 64)}
    return figures | {"flops_per_step": flops} | peaks


class AllCells(ppo_gridwise.CategoricalMap):
    """The distribution as it is commonly written: torch's, field by field, for logits (B * H * W, A) of all cells."""

    def __init__(self, logits: torch.Tensor, mask: torch.Tensor, action_mask: torch.Tensor, nvec: tuple[int, ...]):
        self.mask, self.map_index, self.agents = mask, mask.nonzero()[:, 0], self
        legal = rearrange(action_mask, "b a h w -> (b h w) a").split(nvec, dim=1)
        self.fields = [
            Categorical(logits=torch.where(allowed, scores, -1e8))
            for scores, allowed in zip(logits.split(nvec, dim=1), legal, strict=True)
        ]

    def log_prob(self, action: torch.Tensor) -> torch.Tensor:
        """Log-probabilities (P,) of the agents' actions (P,) or (P, K), after those of all cells."""
        columns = self.scatter(action).view(-1, len(self.fields)).unbind(1)
        cells = sum(field.log_prob(column) for field, column in zip(self.fields, columns, strict=True))
        return cells.view(self.mask.shape)[self.mask]

    def entropy(self) -> torch.Tensor:
        """Entropy (B,), the mean over a map's agents."""
        cells = sum(field.entropy() for field in self.fields).view(self.mask.shape) * self.mask
        return cells.sum((1, 2)) / self.mask.sum((1, 2)).clamp(min=1)


class EveryCell(ppo_gridwise.Agent):
    """Our network, whose decoder computes every cell."""

    legal: torch.Tensor  # (B, A, H, W), what agents may do, as maps

    def __init__(self, obs_shape: tuple[int, int, int], nvec: tuple[int, ...], channels: int):
        super().__init__(obs_shape, nvec, channels)
        self.nvec, self.fields = None, nvec  # the logits of all fields in a row

    def forward(self, obs: torch.Tensor, agents: torch.Tensor, legal: Any) -> tuple[AllCells, torch.Tensor]:
        """Distribution and values (B,)."""
        free = torch.ones(agents.numel(), sum(self.fields), dtype=torch.bool)
        policy, values = super().forward(obs, torch.ones_like(agents), free)
        return AllCells(policy.agents.logits, agents, self.legal, self.fields), values


class GridNet(ppo_gridwise.Agent):
    """The same encoder, and a decoder that mirrors it up to logits for every cell. Han et al. 2019, section 4."""

    legal: torch.Tensor  # (B, A, H, W), what agents may do, as maps

    def __init__(self, obs_shape: tuple[int, int, int], nvec: tuple[int, ...], channels: int):
        super().__init__(obs_shape, nvec, channels)
        self.fields = nvec
        self.decoder = nn.ConvTranspose2d(2 * channels, channels, 3, stride=2, padding=1, output_padding=1)
        self.actor = nn.ConvTranspose2d(channels, sum(nvec), 2, stride=2)

    def forward(self, obs: torch.Tensor, agents: torch.Tensor, legal: Any) -> tuple[AllCells, torch.Tensor]:
        """Distribution and values (B,)."""
        _, quarter, values = self.encode(obs)
        logits = self.actor(self.decoder(quarter).relu())
        return AllCells(rearrange(logits, "b a h w -> (b h w) a"), agents, self.legal, self.fields), values


class GatheringGridNet(GridNet):
    """GridNet's decoder, but the distribution of occupied cells only."""

    def forward(self, obs: torch.Tensor, agents: torch.Tensor, legal: Any) -> tuple[Any, torch.Tensor]:
        """Distribution and values (B,)."""
        _, quarter, values = self.encode(obs)
        logits = self.actor(self.decoder(quarter).relu())
        return ppo_gridwise.CategoricalMap(logits, agents, legal, self.nvec, validate=False), values


def grid_update(
    agent_class: Callable, nvec: tuple[int, ...], size: int, agents: int, compiled: bool = False
) -> Callable:
    """A function that makes one update on 256 maps (size, size) with this many agents on each."""
    torch.manual_seed(0)
    args, maps, cells = ppo_gridwise.Args(compile=compiled), 256, (size, size)
    agent = agent_class((PLANES, *cells), nvec, args.channels)
    update = seam.updater(ppo_gridwise, agent, args)
    obs = torch.randint(2, (maps, PLANES, *cells), dtype=torch.uint8)
    occupied = torch.rand(maps, size * size).argsort(1).argsort(1).view(maps, *cells) < agents
    legal = torch.rand(maps, sum(nvec), *cells) < 0.5
    legal[:, [sum(nvec[:k]) for k in range(len(nvec))]] = True  # the first choice of each field
    agent.legal, count = legal, maps * agents
    actions = torch.zeros(count, *nvec[1:2] and (len(nvec),), dtype=torch.long)
    rows = torch.full(occupied.shape, -1).masked_scatter(occupied, torch.arange(count))
    legal, old = rearrange(legal, "b a h w -> b h w a")[occupied], torch.full((count,), -1.5 * len(nvec))
    mb = (*map(ppo_gridwise.spare_row, (actions, legal, old)), obs, rows, *torch.randn(3, maps))
    return lambda: update(mb)


def alternate(costs: dict[str, Callable[[], float]], pairs: int) -> dict[str, list[float]]:
    """What each of the functions returns in each round, after one to warm up."""
    rounds = [{name: cost() for name, cost in costs.items()} for _ in range(pairs + 1)][1:]
    return {name: [each[name] for each in rounds] for name in costs}


def grid(nvec: tuple[int, ...], pairs: int) -> dict[str, list[float]]:
    """CPU seconds of an update of each arm."""
    agents = {
        "GridNet's decoder, torch.distributions": GridNet,
        "GridNet's decoder, CategoricalMap": GatheringGridNet,
        "our decoder on every cell, torch.distributions": EveryCell,
        "ours": ppo_gridwise.Agent,
    }
    updates = {name: grid_update(agent, nvec, 16, 26) for name, agent in agents.items()}
    updates["ours, compiled"] = grid_update(ppo_gridwise.Agent, nvec, 16, 26, compiled=True)
    return alternate({name: partial(cpu_seconds, update, 3) for name, update in updates.items()}, pairs)


def grow(sizes: tuple[int, ...], cost: Callable[[int], Callable[[], float]], pairs: int) -> dict[str, list[float]]:
    """Cost at each size in each round."""
    return alternate({str(size): cost(size) for size in sizes}, pairs)


def more_actions(size: int) -> Callable[[], float]:
    """A training of 64 environments with `size` machines."""
    return lambda: train(16_384, env_kwargs=("num_machines", str(size)))["total"]


def more_environments(size: int) -> Callable[[], float]:
    """A training of `size` environments, always with rollouts of 1,024 steps."""
    return lambda: train(16_384, num_envs=size, num_steps=1024 // size)["total"]


def more_entities(pointer: bool, size: int) -> Callable[[], float]:
    """An update on 256 sets of `size` entities."""
    update = attention.encoder_update(ppo_attention_mask.Agent, 1, pointer, 1.0, size, False)
    return partial(cpu_seconds, update, max(1, 64 // size))


def more_agents(size: int) -> Callable[[], float]:
    """An update on 256 maps of 32 x 32 with `size` agents on each."""
    return partial(cpu_seconds, grid_update(ppo_gridwise.Agent, HARVEST, 32, size), 3)


SUITES: dict[str, dict[str, Callable[..., dict]]] = {
    "breakdown": {
        "8 environments": partial(breakdown, 8, False),
        "8 environments, compiled": partial(breakdown, 8, True),
        "64 environments": partial(breakdown, 64, False),
        "64 environments, compiled": partial(breakdown, 64, True),
    },
    "grid": {
        "13 choices (Harvest)": partial(grid, HARVEST),
        "7 fields, 78 choices (MicroRTS)": partial(grid, MICRORTS),
    },
    "growth": {
        "actions": partial(grow, (16, 64, 256, 1024), more_actions),
        "environments": partial(grow, (1, 8, 64, 256), more_environments),
        "entities, own row read": partial(grow, (8, 32, 128, 256), partial(more_entities, False)),
        "entities, all rows read": partial(grow, (8, 32, 128, 256), partial(more_entities, True)),
        "agents": partial(grow, (1, 4, 16, 64, 256), more_agents),
    },
}


def main(args: Args) -> None:
    """Alternate, print and write."""
    arms = SUITES[args.suite]
    if args.arm:
        torch.set_num_threads(1)
        print("FIGURES", json.dumps(arms[args.arm](pairs=args.pairs)))
        return
    run = partial(child, __file__, "--pairs", str(args.pairs), "--suite", args.suite, "--arm")
    if args.suite == "breakdown":
        rounds = [{arm: run(arm) for arm in arms} for _ in range(args.pairs)]
        results = {arm: {key: [each[arm][key] for each in rounds] for key in rounds[0][arm]} for arm in arms}
    else:
        results = {arm: run(arm) for arm in arms}
    for arm, figures in results.items():
        print(f"{arm}: " + ", ".join(f"{name} {statistics.median(values):.3g}" for name, values in figures.items()))
    if args.out:
        args.out.write_text(json.dumps(setup(args.pairs) | {"figures": results}, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Args))
