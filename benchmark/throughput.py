"""Steps per second of ppo_action_mask.py as a ratio to sb3-contrib's MaskablePPO, measured in alternation.

    pip install -r requirements.txt -r benchmark/requirements.txt
    python benchmark/throughput.py --pairs 5 --out docs/results/throughput.json

Every arm trains on the same JobRouting (16 machines) with the same network (2x64 tanh), minibatches of 256, 4 epochs
and learning rate, in a process of its own on one thread; arms alternate, so that a slow phase of the machine hits all.
A figure is the median over rounds of (arm / MaskablePPO of the same round), with the smallest and largest ratio. The
first quarter of each run is left out: imports, and compiling where it is on.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
import tyro

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import ppo_action_mask as ppo  # noqa: E402
from envs.job_routing import DELAY_WEIGHT, KINDS, PRICE_WEIGHT, JobRouting  # noqa: E402


class PythonJobRouting(gym.Env):
    """JobRouting written as most environments are: one at a time, in plain Python, as light as can be."""

    def __init__(self):
        fleet = JobRouting(num_envs=1)
        self.speed, self.price = fleet.speed.tolist(), fleet.price.tolist()
        self.num_machines, self.num_up, self.num_jobs = fleet.num_machines, fleet.num_up, fleet.num_jobs
        self.observation_space = gym.spaces.Box(0, 1, (len(KINDS) + 3,), np.float32)
        self.action_space = gym.spaces.Discrete(self.num_machines)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.elapsed = 0
        order = self.np_random.permutation(self.num_machines).tolist()
        self.up, self.down = order[: self.num_up], order[self.num_up :]
        self.mask = np.zeros(self.num_machines, np.int8)
        self.mask[self.up] = 1
        return self.new_job(), {"action_mask": self.mask.copy()}

    def new_job(self):
        kind, self.size, self.urgency = self.np_random.random(3).tolist()
        self.kind = int(len(KINDS) * kind)
        obs = np.zeros(len(KINDS) + 3, np.float32)
        obs[self.kind], obs[-3], obs[-2], obs[-1] = 1, self.size, self.urgency, 1 - self.elapsed / self.num_jobs
        return obs

    def step(self, action):
        delay = self.urgency * self.size / self.speed[self.kind][action]
        reward = 1 / (1 + DELAY_WEIGHT * delay + PRICE_WEIGHT * self.price[action]) if self.mask[action] else 0.0
        a, b = (self.np_random.random(2) * (len(self.up), len(self.down))).astype(int).tolist()
        self.up[a], self.down[b] = self.down[b], self.up[a]
        self.mask[self.up[a]], self.mask[self.down[b]] = 1, 0
        self.elapsed += 1
        return self.new_job(), reward, self.elapsed >= self.num_jobs, False, {"action_mask": self.mask.copy()}

    def action_masks(self):
        return self.mask.astype(bool)


gym.register("Bench/JobRouting-v0", PythonJobRouting, disable_env_checker=True)

OURS = {  # arm: (environment id, environments, steps, ranks, flags)
    "ours, 8 Python envs": ("Bench/JobRouting-v0", 8, 128, 1, {}),
    "ours, 8 Python envs, compiled": ("Bench/JobRouting-v0", 8, 128, 1, {"compile": True}),
    "ours, 8 batched envs": ("Masked/JobRouting-v0", 8, 128, 1, {}),
    "ours, 8 batched envs, compiled": ("Masked/JobRouting-v0", 8, 128, 1, {"compile": True}),
    "ours, 64 batched envs": ("Masked/JobRouting-v0", 64, 16, 1, {}),
    "ours, 64 batched envs, compiled": ("Masked/JobRouting-v0", 64, 16, 1, {"compile": True}),
    "ours, 256 batched envs, compiled": ("Masked/JobRouting-v0", 256, 16, 1, {"compile": True}),
    "ours, 64 batched envs, compiled, 2 ranks": ("Masked/JobRouting-v0", 64, 16, 2, {"compile": True}),
}


@dataclass
class Args:
    """Alternate all arms and write the ratios."""

    pairs: int = 5
    """rounds, each of which runs every arm once"""
    steps: int = 100_000
    """environment steps of MaskablePPO in a round; the faster arms take four times as many"""
    out: Path | None = None
    """file for the results (JSON)"""
    arm: str | None = None
    """run this one arm and print its steps per second (used by the alternation itself)"""


class Clock:
    """Steps per second between the first quarter of the steps and the last one."""

    def __init__(self, total_steps: int):
        self.total_steps, self.steps, self.marks = total_steps, 0, []

    def tick(self, steps: int) -> None:
        self.steps += steps
        if self.steps >= self.total_steps // 4:
            self.marks.append((time.perf_counter(), self.steps))

    def rate(self) -> float:
        (start, first), (end, last) = self.marks[0], self.marks[-1]
        return (last - first) / (end - start)


def run_ours(arm: str, steps: int) -> float:
    """Train with the script's own main; every environment step ticks the clock."""
    env_id, num_envs, num_steps, ranks, flags = OURS[arm]
    clock = Clock(steps)
    make_vec = ppo.make_vec

    def clocked(*args, **kwargs):
        made = make_vec(*args, **kwargs)
        step = made.step

        def tick(actions):
            clock.tick(num_envs)  # over all ranks
            return step(actions)

        made.step = tick
        return made

    ppo.make_vec = clocked
    args = dict(num_envs=num_envs, num_steps=num_steps, env_id=env_id, learning_rate=3e-4, anneal_lr=False)
    ppo.main(ppo.Args(total_timesteps=steps, eval_episodes=0, save_model=False, **args, **flags))
    return clock.rate()


def run_maskable_ppo(steps: int) -> float:
    """sb3-contrib's MaskablePPO over eight Python environments of the same rules."""
    from sb3_contrib import MaskablePPO
    from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper

    clock = Clock(steps)

    class Clocked(VecEnvWrapper):
        def reset(self):
            return self.venv.reset()

        def step_wait(self):
            clock.tick(8)
            return self.venv.step_wait()

    torch.set_num_threads(1)
    model = MaskablePPO(
        "MlpPolicy",
        Clocked(DummyVecEnv([PythonJobRouting] * 8)),
        n_steps=128,
        batch_size=256,
        n_epochs=4,
        learning_rate=3e-4,
        ent_coef=0.01,
        seed=1,
        device="cpu",
        policy_kwargs=dict(net_arch=dict(pi=[64, 64], vf=[64, 64]), activation_fn=torch.nn.Tanh),
    )
    model.learn(steps)
    return clock.rate()


def measure(arm: str, steps: int) -> float:
    """Run one arm in a process (or two ranks) of its own."""
    ranks = OURS[arm][3] if arm in OURS else 1
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launcher, __file__, "--arm", arm, "--steps", str(steps)], capture_output=True, text=True, env=environment
    )
    if done.returncode:
        raise RuntimeError(f"{arm}:\n{done.stderr}")
    return float(done.stdout.split("steps_per_second")[1].split()[0])


def main(args: Args) -> None:
    """Alternate, print and write."""
    if args.arm:
        rate = run_maskable_ppo(args.steps) if args.arm == "MaskablePPO" else run_ours(args.arm, args.steps)
        if os.environ.get("RANK", "0") == "0":
            print("steps_per_second", rate)
        return
    rates: dict[str, list[float]] = {}
    for pair in range(args.pairs):
        for arm in ("MaskablePPO", *OURS):
            rates.setdefault(arm, []).append(measure(arm, args.steps if arm == "MaskablePPO" else 4 * args.steps))
            print(f"round {pair + 1}: {arm}: {rates[arm][-1]:,.0f} steps/s", flush=True)
    table = {}
    for arm in OURS:
        ratios = [a / b for a, b in zip(rates[arm], rates["MaskablePPO"], strict=True)]
        table[arm] = {"median_ratio": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
        print(f"{arm}: {table[arm]['median_ratio']:.2f} x MaskablePPO ({min(ratios):.2f} to {max(ratios):.2f})")
    if args.out:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
        versions = {"python": platform.python_version(), "torch": torch.__version__, "gymnasium": gym.__version__}
        setup = {
            "commit": commit,
            "versions": versions,
            "cores": os.cpu_count(),
            "pairs": args.pairs,
            "steps": args.steps,
        }
        args.out.write_text(json.dumps(setup | {"ratios": table, "steps_per_second": rates}, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Args))
