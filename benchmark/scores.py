"""The README's scores: train on every environment with the README's flags, over seeds, and record score and minutes.

    python benchmark/scores.py --out docs/results/ppo_action_mask.json

Resumable: runs that the file already holds are not repeated. They run one after another: the minutes mean something.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

ROOT = Path(__file__).parent.parent
RUNS = {
    "JobRouting": "--env-id Masked/JobRouting-v0 --total-timesteps 500000",
    "Maze": "--env-id Masked/Maze-v0 --total-timesteps 3000000 --compile",
    "BinPlacement": "--env-id Masked/BinPlacement-v0 --total-timesteps 3000000 --compile",
    "Taxi": "--env-id Taxi-v4 --num-envs 16 --total-timesteps 1000000 --compile",
    "ConnectFour": "--env-id Masked/ConnectFour-v0 --num-envs 16 --total-timesteps 1000000 --compile",
}
CODE = (
    "import json, sys, ppo_action_mask as p; print('SCORES', json.dumps(p.main(p.tyro.cli(p.Args, args=sys.argv[1:]))))"
)


@dataclass
class Args:
    """Which runs to record, and where."""

    out: Path = ROOT / "docs/results/ppo_action_mask.json"
    """file of the results (JSON)"""
    seeds: tuple[int, ...] = (1, 2, 3)
    """seeds of each run"""
    only: tuple[str, ...] = tuple(RUNS)
    """names of the runs"""
    eval_episodes: int = 500
    """episodes of each evaluation"""


def main(args: Args) -> None:
    """Run what is missing, writing after each run."""
    results = json.loads(args.out.read_text()) if args.out.exists() else {}
    for name in args.only:
        for seed in args.seeds:
            flags = f"{RUNS[name]} --seed {seed} --eval-episodes {args.eval_episodes}"
            if any(run["flags"] == flags for run in results.get(name, [])):
                continue
            start = time.time()
            command = [sys.executable, "-c", CODE, *flags.split()]
            environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode:
                raise RuntimeError(f"{flags}\n{done.stderr}")
            scores = json.loads(done.stdout.split("SCORES")[1])
            commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
            run = {"flags": flags, "minutes": round((time.time() - start) / 60, 2), "commit": commit.stdout.strip()}
            results.setdefault(name, []).append(run | {"scores": scores})
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(results, indent=1) + "\n")
            print(name, run["minutes"], "min", {key: round(value, 3) for key, value in scores.items()}, flush=True)


if __name__ == "__main__":
    main(tyro.cli(Args))
