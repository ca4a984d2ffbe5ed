"""The scores of docs/results.md: train on every environment with the flags below, over seeds, and record them.

    python benchmark/scores.py --scripts dqn_action_mask

Resumable: runs that the file already holds are not repeated. They run one after another: the minutes mean something.
"""

import itertools
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).parent.parent
MICRORTS = (
    "--env-id Masked/MicroRTS-v0 --num-envs 24 --num-steps 64 --minibatch-size 384 --learning-rate 1e-3 "
    "--ent-coef 0.005 --env-kwargs max_episode_steps"
)
LARGE = "2000 map_path maps/16x16/basesWorkers16x16.xml opponents lightRushAI"
THEN = " && "
RUNS = {
    "ppo_action_mask": {
        "JobRouting": "--env-id Masked/JobRouting-v0 --total-timesteps 500000",
        "Maze": "--env-id Masked/Maze-v0 --total-timesteps 3000000 --compile",
        "BinPlacement": "--env-id Masked/BinPlacement-v0 --total-timesteps 3000000 --compile",
        "Taxi": "--env-id Taxi-v4 --num-envs 16 --total-timesteps 1000000 --compile",
    },
    "dqn_action_mask": {
        "JobRouting": "--env-id Masked/JobRouting-v0 --total-timesteps 300000",
        "Maze": "--env-id Masked/Maze-v0 --total-timesteps 3000000 --compile",
        "Taxi": "--env-id Taxi-v4 --num-envs 16 --train-frequency 16 --total-timesteps 500000 --compile",
    },
    "ppo_attention_mask": {
        "PandaForest": "--env-id Masked/PandaForest-v0 --compile",
        "PandaForest, padding seen": "--env-id Masked/PandaForest-v0 --compile --no-attention-mask",
        "PandaForest, no action mask": "--env-id Masked/PandaForest-v0 --compile --mask-mode none",
        "PandaForest, no mask": "--env-id Masked/PandaForest-v0 --compile --mask-mode none --no-attention-mask",
        "OrderPicking": "--env-id Masked/OrderPicking-v0 --pointer --total-timesteps 100000",
    },
    "ppo_gridwise": {
        "Harvest": "--env-id Masked/Harvest-v0 --total-timesteps 400000",
        "Harvest, joint ratio": "--env-id Masked/Harvest-v0 --total-timesteps 400000 --ratio joint",
        "Harvest, naive": "--env-id Masked/Harvest-v0 --total-timesteps 400000 --mask-mode naive --learning-rate 1e-3",
        "Harvest, penalty": "--env-id Masked/Harvest-v0 --total-timesteps 400000 --mask-mode penalty",
        "Harvest, none": "--env-id Masked/Harvest-v0 --total-timesteps 400000 --mask-mode none",
        "Harvest 16x16": "--env-id Masked/Harvest-v0 --env-kwargs height 16 width 16",
        "MicroRTS 8x8, workerRushAI": f"{MICRORTS} 1000 opponents workerRushAI --total-timesteps 1000000",
        "MicroRTS 8x8, workerRushAI, short": f"{MICRORTS} 1000 opponents workerRushAI --total-timesteps 400000",
        "MicroRTS 8x8, lightRushAI": f"{MICRORTS} 1000 opponents lightRushAI --total-timesteps 1000000",
        "MicroRTS 16x16, lightRushAI": f"{MICRORTS} {LARGE} --total-timesteps 1000000",
        "MicroRTS 16x16, lightRushAI, after 8x8": f"{MICRORTS} 1000 opponents lightRushAI --total-timesteps 1000000"
        f"{THEN}{MICRORTS} {LARGE} --total-timesteps 200000",
    },
    "ppo_recurrent_mask": {
        "Vault": "--total-timesteps 1000000",
        "Maze, no trail": "--env-id Masked/Maze-v0 --env-kwargs trail False --prev-inputs --total-timesteps 3000000",
    },
}
CODE = """
import importlib, json, sys
if sys.argv[2]:
    module, name = sys.argv[2].split(":")
    getattr(importlib.import_module(module), name)()
script = importlib.import_module(sys.argv[1])
print("SCORES", json.dumps(script.main(script.parse(script.Args, sys.argv[3:]))))
"""


@dataclass
class Args:
    """Which runs to record, and where."""

    scripts: tuple[str, ...] = tuple(RUNS)
    """scripts to run"""
    out: Path = ROOT / "docs/results"
    """folder of the results, one JSON file for each script"""
    seeds: tuple[int, ...] = (1, 2, 3)
    """seeds of each run"""
    only: tuple[str, ...] = ()
    """names of the runs; default all"""
    eval_episodes: int = 500
    """episodes of each evaluation"""


def train(script: str, flags: str, prepare: str = "") -> tuple[dict[str, float], EventAccumulator]:
    """The scores of a run in a folder of its own, and what it wrote for TensorBoard.

    Args:
        script: name of the script.
        flags: for the script; where `THEN` stands, another run begins with the agent of the one before.
        prepare: "module:function" that is called first.
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        runs: list[Path] = []
        for stage in flags.split(THEN):
            command = [sys.executable, "-c", CODE, script, prepare, *shlex.split(stage)]
            command += ["--init-from", str(runs[-1])] if runs else []
            done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
            if done.returncode:
                raise RuntimeError(f"{script} {stage}\n{done.stderr}")
            runs += set(Path(folder, "runs").iterdir()) - set(runs)
        events = EventAccumulator(str(runs[-1])).Reload()
    return json.loads(done.stdout.split("SCORES")[1]), events


def commit() -> str:
    """The short hash of what is checked out."""
    return subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout[:-1]


def curve(events: EventAccumulator, points: int = 50, tag: str = "charts/episodic_return") -> list[tuple[int, float]]:
    """The training return, or what the tag says, about `points` pairs of steps and mean."""
    scalars = events.Scalars(tag)
    groups = np.array_split(np.array([(event.step, event.value) for event in scalars]), min(points, len(scalars)))
    return [(int(step), round(value, 3)) for step, value in (group.mean(0).tolist() for group in groups)]


def main(args: Args) -> None:
    """Run what is missing, writing after each run."""
    for script in args.scripts:
        path = args.out / f"{script}.json"
        results = json.loads(path.read_text()) if path.exists() else {}
        for name, seed in itertools.product(args.only or RUNS[script], args.seeds):
            stages = RUNS[script][name].split(THEN)
            flags = THEN.join(f"{stage} --seed {seed} --eval-episodes {args.eval_episodes}" for stage in stages)
            if any(run["flags"] == flags for run in results.get(name, [])):
                continue
            start = time.time()
            scores, events = train(script, flags)
            run = {"flags": flags, "minutes": round((time.time() - start) / 60, 2), "commit": commit()}
            results.setdefault(name, []).append(run | {"scores": scores, "curve": curve(events)})
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(results, indent=1) + "\n")
            print(script, name, run["minutes"], "min", {k: round(v, 3) for k, v in scores.items()}, flush=True)


if __name__ == "__main__":
    main(tyro.cli(Args))
