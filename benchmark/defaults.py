"""Choose the scripts' numbers of environments, steps and samples by the time that a training takes to a score.

    taskset -c 0 python benchmark/defaults.py --tasks "ppo JobRouting" --seeds 1 2

A figure is in CPU seconds on one core, nothing compiled, from the first step until the episodes of training that ended
in the last 16,384 steps reach the score: a share of what best play would have returned in them, or a mean return where
the world does not know that. Everything else is as in the script, schedules over the steps of the runs in
docs/results.md included; where minibatches are of another size, Adam's step size follows with the root of it. A run
that takes `cap` steps without the score has not reached it. Each run has a process of its own, and settings alternate
within a seed, so that a slow phase of the machine hits all. Resumable: runs that the file already holds are not
repeated.
"""

import collections
import importlib
import json
import platform
import time
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path

import numpy as np
import tyro
from scores import ROOT, commit
from seam import watched
from throughput import child

WINDOW = 16_384  # steps; the score counts from twice as many, since the first episodes to end are short ones
Setting = tuple[int, int, int]


@dataclass(frozen=True)
class Task:
    """A script, a world and a score; the first setting is the script's present default."""

    script: str
    env_id: str
    total_timesteps: int  # of the schedules
    score: float
    cap: int
    settings: tuple[Setting, ...]  # of the flags in SIZES
    seeds: int


SIZES = {"dqn_action_mask": ("num_envs", "train_frequency", "batch_size")}
SIZES |= dict.fromkeys(
    ("ppo_action_mask", "ppo_gridwise", "ppo_attention_mask"), ("num_envs", "num_steps", "minibatch_size")
)
PPO = (
    (64, 16, 256), (16, 64, 256), (64, 8, 256), (64, 16, 128), (64, 16, 512), (128, 8, 256), (128, 16, 256),
    (128, 8, 512), (128, 16, 512), (256, 4, 256), (256, 8, 512), (256, 16, 256), (256, 16, 1024),
)  # fmt: skip
MAZE = (
    (64, 16, 256), (64, 16, 512), (128, 8, 256), (128, 16, 256), (128, 8, 512), (256, 4, 256), (256, 8, 512),
    (256, 16, 256), (256, 16, 1024),
)  # fmt: skip
DQN = (
    (64, 4, 256), (16, 4, 256), (64, 1, 256), (64, 4, 128), (64, 4, 512), (128, 2, 256), (256, 1, 256), (256, 1, 512),
    (256, 4, 1024),
)  # fmt: skip
SLOW = ((64, 16, 256), (64, 16, 512), (128, 8, 256), (128, 8, 512), (256, 4, 256))
TASKS = {
    "ppo JobRouting": Task("ppo_action_mask", "Masked/JobRouting-v0", 500_000, 0.95, 300_000, PPO, 5),
    "ppo Maze": Task("ppo_action_mask", "Masked/Maze-v0", 3_000_000, 0.95, 800_000, MAZE, 5),
    "dqn JobRouting": Task("dqn_action_mask", "Masked/JobRouting-v0", 300_000, 0.95, 300_000, DQN, 5),
    "grid Harvest": Task("ppo_gridwise", "Masked/Harvest-v0", 400_000, 20.0, 200_000, SLOW, 3),
    "attention PandaForest": Task("ppo_attention_mask", "Masked/PandaForest-v0", 3_000_000, 0.5, 400_000, SLOW, 2),
}


@dataclass
class Args:
    """Run what is missing, writing after each run."""

    tasks: tuple[str, ...] = tuple(TASKS)
    """names of the tasks"""
    seeds: tuple[int, ...] = ()
    """default: those of the task"""
    out: Path = ROOT / "docs/results/defaults.json"
    """file for the results"""
    setting: Setting | None = None
    """run this setting of a task with a seed and print its figures (used by the alternation itself)"""


class Done(Exception):
    """The score was reached, or the cap."""


class Watch:
    """Counts steps and CPU seconds of a training, and ends it."""

    def __init__(self, task: Task):
        self.task, self.steps, self.start, self.reached = task, 0, None, False
        self.ended, self.sums = collections.deque(), np.zeros(2)  # of the window: returns, and those of best play

    def tick(self, steps: int) -> None:
        self.start = self.start or time.process_time()
        self.steps += steps

    def episodes(self, returns: np.ndarray, optima: np.ndarray) -> None:
        self.ended.append((self.steps, np.array([returns.sum(), optima.sum()])))
        self.sums += self.ended[-1][1]
        while self.ended[0][0] <= self.steps - WINDOW:
            self.sums -= self.ended.popleft()[1]
        self.reached = self.steps >= 2 * WINDOW and self.score() >= self.task.score
        if self.reached or self.steps >= self.task.cap:
            raise Done

    def score(self) -> float:
        return float(self.sums[0] / self.sums[1])

    def figures(self) -> dict[str, float | bool]:
        seconds = time.process_time() - self.start
        return {
            "reached": self.reached,
            "seconds": round(seconds, 2),
            "steps": self.steps,
            "score": round(self.score(), 4),
        }


def train(task: Task, setting: Setting, seed: int) -> dict[str, float | bool]:
    """Train with the script's own main until the score, or the cap."""
    script, watch = importlib.import_module(task.script), Watch(task)
    sizes = dict(zip(SIZES[task.script], setting, strict=True))
    rate = script.Args.learning_rate * (setting[2] / task.settings[0][2]) ** 0.5
    flags = dict(env_id=task.env_id, total_timesteps=task.total_timesteps, learning_rate=rate, seed=seed)
    args = script.Args(**sizes, **flags, device="cpu", eval_episodes=0, save_model=False)
    try:
        with watched(watch.tick, watch.episodes):
            script.main(args)
    except Done:
        return watch.figures()
    raise ValueError(f"{task}: the cap is beyond the steps of the schedules.")


def main(args: Args) -> None:
    """Alternate, print and write."""
    if args.setting:
        print("FIGURES", json.dumps(train(TASKS[args.tasks[0]], args.setting, args.seeds[0])))
        return
    runs = json.loads(args.out.read_text()) if args.out.exists() else []
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "gymnasium"))
    versions = f"Python {platform.python_version()}, {packages}"
    done = {(run["task"], run["seed"], tuple(run["setting"])) for run in runs}
    for name in args.tasks:
        task = TASKS[name]
        for seed, setting in product(args.seeds or range(1, task.seeds + 1), task.settings):
            if (name, seed, setting) in done:
                continue
            figures = child(__file__, "--tasks", name, "--seeds", str(seed), "--setting", *map(str, setting))
            what = {"task": name, "setting": setting, "seed": seed, "commit": commit(), "versions": versions}
            runs.append(what | figures)
            args.out.write_text("[\n" + ",\n".join(map(json.dumps, runs)) + "\n]\n")
            print(name, setting, seed, figures, flush=True)


if __name__ == "__main__":
    main(tyro.cli(Args))
