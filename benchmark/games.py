"""Connect Four against a search and in self-play: how far it gets, the first mover's share, and games per second.

    python benchmark/games.py --out docs/results/games.json
    python benchmark/games.py --speed --out docs/results/games_speed.json    # needs PettingZoo; run it alone

The agent introduces itself to the pool 32 times in a training; past agents then play, greedily, against
random moves and searches, and by their odds against themselves. Resumable: runs that the file holds are not repeated.
"""

import importlib
import json
import os
import shlex
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import tyro
from seam import ROOT

from envs.players import Player, weights_of
from envs.worlds.connect_four import COLUMNS, PASS, ROWS, ConnectFour

SHAPE = (ROWS * COLUMNS * 3, COLUMNS + 1)
WORLD = "--env-id Masked/ConnectFour-v0 --num-envs 256 --hidden-dim 256 --eval-episodes 0 --no-save-model"
PPO = f"{WORLD} --minibatch-size 1024 --total-timesteps 5000000"
DQN = f"{WORLD} --train-frequency 4 --batch-size 1024 --replay-ratio 2 --buffer-size 400000 --total-timesteps 4000000"
RUNS = {  # script and flags
    "PPO against minimax 2": ("ppo_action_mask", f"{PPO} --env-kwargs opponent minimax depth 2"),
    "PPO against past selves": ("ppo_action_mask", f"{PPO} --env-kwargs opponent pool"),
    "DQN against minimax 2": ("dqn_action_mask", f"{DQN} --env-kwargs opponent minimax depth 2"),
}
AGAINST = {"random": {}, "minimax": {"depth": 2}, "minimax ": {"depth": 4}}


@dataclass
class Args:
    """What to measure, and where to record it."""

    runs: tuple[str, ...] = tuple(RUNS)
    """names of the trainings"""
    seeds: tuple[int, ...] = (1, 2, 3)
    """seeds of each"""
    flags: str = ""
    """more flags for the script, for a try"""
    games: int = 400
    """games of a past agent against each opponent"""
    speed: bool = False
    """games per second against PettingZoo's instead"""
    pairs: int = 5
    """rounds of the speed"""
    out: Path | None = None
    """file for the results (JSON)"""


def points(player: Player, opponent: str, games: int, depth: int = 4) -> float:
    """The mean of 1 for a win, a half for a draw, of so many games, half of them as the first mover."""
    env, ends = ConnectFour(games, opponent, depth), np.full(games, np.nan)
    obs, infos = env.reset(seed=2**31)
    while np.isnan(ends).any():
        obs, rewards, terminations, _, infos = env.step(player.best(obs.reshape(games, -1), infos["action_mask"] > 0))
        ends = np.where(np.isnan(ends) & terminations, (rewards + 1) / 2, ends)
    return float(ends.mean())


def first_share(player: Player, games: int) -> float:
    """The first mover's share of the points against itself, actions drawn by the agent's odds."""
    env, ends, rng = ConnectFour(2 * games, "self"), np.full(2 * games, np.nan), np.random.default_rng(0)
    obs, infos = env.reset(seed=0)
    while np.isnan(ends).any():
        actions = player.sample(obs.reshape(2 * games, -1), infos["action_mask"] > 0, rng.random(2 * games))
        obs, rewards, terminations, _, infos = env.step(actions)
        ends = np.where(np.isnan(ends) & terminations, (rewards + 1) / 2, ends)
    return float(ends[::2].mean())


def record(script: str, flags: str, games: int) -> dict:
    """Train, and let every past agent play."""
    module, kept, meet = importlib.import_module(script), [], ConnectFour.meet

    def keep(env: ConnectFour, agent: torch.nn.Module) -> None:
        kept.append(weights_of(agent))
        meet(env, agent)

    start = time.time()
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(ConnectFour, "meet", keep):
        os.chdir(folder)
        module.main(module.parse(module.Args, shlex.split(flags)))
        os.chdir(ROOT)
    minutes, curve = (time.time() - start) / 60, []
    for i, weights in enumerate(kept[:-1:4] + kept[-1:]):
        player = Player(weights, SHAPE, script)
        row = {"share": min(1.0, (4 * i + 1) / len(kept)) if i < len(kept[:-1:4]) else 1.0}
        row |= {f"{name.strip()} {kw.get('depth', '')}".strip(): points(player, name.strip(), games, **kw)
                for name, kw in AGAINST.items()}  # fmt: skip
        curve.append(row | {"first": first_share(player, games)})
    return {"flags": flags, "minutes": minutes, "curve": curve}


def speeds(seconds: float) -> dict[str, float]:
    """Games per CPU second of random legal play, ours and PettingZoo's."""
    from pettingzoo.classic import connect_four_v3

    rng = np.random.default_rng(0)

    def pettingzoo() -> int:
        env = connect_four_v3.env()
        env.reset()
        for _ in env.agent_iter():
            obs, *_, terminated, truncated, _ = env.last()
            env.step(None if terminated or truncated else int(rng.choice(np.flatnonzero(obs["action_mask"]))))
        return 1

    batch = ConnectFour(1024, "self")
    _, infos = batch.reset(seed=0)
    state = {"infos": infos}

    def ours() -> int:
        turn = state["infos"]["action_mask"][:, PASS] == 0
        draws = np.where(state["infos"]["action_mask"][turn] > 0, rng.random((int(turn.sum()), PASS + 1)), -1)
        actions = np.full(1024, PASS)
        actions[turn] = draws.argmax(axis=1)
        _, _, terminations, _, state["infos"] = batch.step(actions)
        return int(terminations[::2].sum())

    rates = {}
    for name, play in {"PettingZoo's connect_four_v3": pettingzoo, "ours, 512 games": ours}.items():
        start, games = time.process_time(), 0
        while time.process_time() - start < seconds:
            games += play()
        rates[name] = games / (time.process_time() - start)
    return rates


def main(args: Args) -> None:
    """Train what is missing, or alternate the speeds, print and write."""
    torch.set_num_threads(1)
    if args.speed:
        rounds = [speeds(5.0) for _ in range(args.pairs)]
        peer, ours = rounds[0]
        ratios = [one[ours] / one[peer] for one in rounds]
        result = {"rounds": rounds, "ratio": [statistics.median(ratios), min(ratios), max(ratios)]}
        print(result)
        if args.out:
            args.out.write_text(json.dumps(result, indent=1) + "\n")
        return
    results = json.loads(args.out.read_text()) if args.out and args.out.exists() else {}
    for seed in args.seeds:
        for name in args.runs:
            script, flags = RUNS[name]
            flags = f"{flags} --seed {seed} {args.flags}".strip()
            if any(run["flags"] == flags for run in results.get(name, [])):
                continue
            results.setdefault(name, []).append(record(script, flags, args.games))
            print(name, seed, f"{results[name][-1]['minutes']:.1f} min", flush=True)
            for row in results[name][-1]["curve"]:
                print(row, flush=True)
            if args.out:
                args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main(tyro.cli(Args))
