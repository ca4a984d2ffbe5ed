"""Steps per second of our scripts as ratios to well-known implementations, measured in alternation.

    pip install -r requirements.txt -r benchmark/requirements.txt
    python benchmark/throughput.py --suite ppo --out docs/results/throughput_ppo.json
    python benchmark/throughput.py --suite dqn --out docs/results/throughput_dqn.json
    python benchmark/throughput.py --suite fields --out docs/results/throughput_fields.json
    python benchmark/throughput.py --suite memory --out docs/results/throughput_memory.json
    git clone --branch v0.6.0 https://github.com/Farama-Foundation/MicroRTS-Py
    python benchmark/throughput.py --suite microrts --out docs/results/throughput_microrts.json
    python benchmark/throughput.py --suite jax-64 --out docs/results/throughput_jax-64.json
    python benchmark/throughput.py --suite jax-256 --out docs/results/throughput_jax-256.json

Every arm of a suite trains on the same environment, JobRouting with 16 machines, 339 binary fields or MicroRTS, with
the same network (but for MicroRTS, where each script has its own), batch size, updates per sample and learning rate, in
a process of its own on one thread unless its name says otherwise; arms alternate, so that a slow phase of the machine
hits all. A figure is the median over rounds of (arm / first peer of the same round), with the smallest and largest
ratio. The first quarter of each run is left out of the speed: imports, and compiling where it is on. The seconds to a
score count from the first step, compiling included: until the last 64 episodes of training return 36, which is 86 % of
the optimum in JobRouting. The final return is that of the last 64 episodes as well. All arms of round r have the seed
r, so that times and returns have a spread. Resumable: rounds that the file already holds are not repeated.

The suites beside JAX count CPU seconds, each arm pinned to one core: jax_ppo.py is a training compiled whole, with the
environment in it, and its figures are of the time after compiling.
"""

import collections
import importlib
import importlib.metadata
import json
import os
import platform
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
import tyro
from seam import ROOT, watched

from envs import BatchedEnv, SingleEnv
from envs.worlds.job_routing import DELAY_WEIGHT, KINDS, PRICE_WEIGHT, JobRouting

TARGET_RETURN = 36


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
        self.new_job()
        return self.seen(), {"action_mask": self.mask.copy()}

    def new_job(self):
        kind, self.size, self.urgency = self.np_random.random(3).tolist()
        self.kind = int(len(KINDS) * kind)

    def seen(self):
        obs = np.zeros(len(KINDS) + 3, np.float32)
        obs[self.kind], obs[-3], obs[-2], obs[-1] = 1, self.size, self.urgency, 1 - self.elapsed / self.num_jobs
        return obs

    def step(self, action):
        delay = self.urgency * self.size / self.speed[self.kind][action]
        reward = 0.0
        if self.mask[action]:  # a machine that is down refuses the job, which stays
            reward = 1 / (1 + DELAY_WEIGHT * delay + PRICE_WEIGHT * self.price[action])
            self.new_job()
        a, b = (self.np_random.random(2) * (len(self.up), len(self.down))).astype(int).tolist()
        self.up[a], self.down[b] = self.down[b], self.up[a]
        self.mask[self.up[a]], self.mask[self.down[b]] = 1, 0
        self.elapsed += 1
        return self.seen(), reward, self.elapsed >= self.num_jobs, False, {"action_mask": self.mask.copy()}

    def action_masks(self):
        return self.mask.astype(bool)


class Bits(BatchedEnv):
    """339 lamps, of which a random half is broken and stays off; every eighth shall be as one of eight bits shows.

    The reward of a step is the share of lamps that are right, and an episode has 16 steps: it never returns 36.
    """

    state_arrays = ("shown", "works")

    def __init__(self, num_envs: int, num_bits: int = 339, render_mode: str | None = None):
        space = gym.spaces.Box(0, 1, (8,), np.float32)
        super().__init__(num_envs, space, gym.spaces.MultiBinary(num_bits), 17, render_mode)
        self.shown, self.works = np.zeros((num_envs, 8), np.float32), np.zeros((num_envs, num_bits), bool)

    def _reset_rows(self, rows):
        draws = self._uniform(rows, 8 + self.works.shape[1]) < 0.5
        self.shown[rows], self.works[rows] = draws[:, :8], draws[:, 8:]

    def _advance(self, actions):
        wanted = np.resize(np.arange(8), self.works.shape[1])
        rewards = (self.works & (actions == self.shown[:, wanted])).mean(axis=1)
        self._reset_rows(self._rows)
        return rewards, self.elapsed == 15

    def _observe(self, rows):
        return self.shown[rows]

    def _info(self, rows):
        works = self.works[rows]
        return {"action_mask": np.stack([np.ones_like(works), works], axis=-1).reshape(len(rows), -1).astype(np.int8)}


class SingleBits(SingleEnv):
    """One `Bits`, with the method that MaskablePPO asks for masks."""

    def __init__(self):
        super().__init__(Bits(1))

    def action_masks(self):
        return self.batch._info(np.array([0]))["action_mask"][0].astype(bool)


gym.register("Bench/JobRouting-v0", PythonJobRouting, disable_env_checker=True)
gym.register("Bench/SingleBits-v0", SingleBits, disable_env_checker=True)
gym.register("Bench/Bits-v0", SingleBits, vector_entry_point=Bits)

JAX = {"jax-64": 64, "jax-256": 256}  # suites, and their environments
PPO, DQN, GRID, MEMORY = "ppo_action_mask", "dqn_action_mask", "ppo_gridwise", "ppo_recurrent_mask"
PYTHON, BATCHED = "Bench/JobRouting-v0", "Masked/JobRouting-v0"
# default steps of a round, and how many times more our PPO takes
STEPS = {"ppo": (100_000, 4), "dqn": (100_000, 1), "fields": (1024, 8), "microrts": (24_576, 2)} | {
    "memory": (50_000, 4),
    "jax-64": (600_000, 1),
    "jax-256": (600_000, 1),
}
SUITES = {  # peers, and our arms: script, environment, environments, steps between updates, minibatch, ranks, compiled
    "ppo": (
        ["MaskablePPO"],
        {
            "ours, 8 Python envs": (PPO, PYTHON, 8, 128, 256, 1, False),
            "ours, 8 Python envs, compiled": (PPO, PYTHON, 8, 128, 256, 1, True),
            "ours, 8 batched envs": (PPO, BATCHED, 8, 128, 256, 1, False),
            "ours, 8 batched envs, compiled": (PPO, BATCHED, 8, 128, 256, 1, True),
            "ours, 64 batched envs": (PPO, BATCHED, 64, 16, 256, 1, False),
            "ours, 64 batched envs, compiled": (PPO, BATCHED, 64, 16, 256, 1, True),
            "ours, 256 batched envs, compiled": (PPO, BATCHED, 256, 16, 256, 1, True),
            "ours, 64 batched envs, compiled, 2 ranks": (PPO, BATCHED, 64, 16, 256, 2, True),
            "ours, 256 batched envs, minibatches of 1,024, compiled": (PPO, BATCHED, 256, 16, 1024, 1, True),
            "ours, 256 batched envs, minibatches of 1,024, compiled, 2 ranks": (PPO, BATCHED, 256, 16, 1024, 2, True),
        },
    ),
    "dqn": (
        ["Stable-Baselines3 DQN (no mask)", "Tianshou DQN (masked)"],
        {
            "ours, 1 Python env": (DQN, PYTHON, 1, 64, 256, 1, False),
            "ours, 8 Python envs": (DQN, PYTHON, 8, 8, 256, 1, False),
            "ours, 64 batched envs": (DQN, BATCHED, 64, 4, 256, 1, False),
            "ours, 64 batched envs, compiled": (DQN, BATCHED, 64, 4, 256, 1, True),
            "ours, 256 batched envs, compiled": (DQN, BATCHED, 256, 1, 256, 1, True),
        },
    ),
    "fields": (
        ["MaskablePPO"],
        {
            "ours, 8 single envs": (PPO, "Bench/SingleBits-v0", 8, 32, 256, 1, False),
            "ours, 8 single envs, compiled": (PPO, "Bench/SingleBits-v0", 8, 32, 256, 1, True),
            "ours, 64 batched envs": (PPO, "Bench/Bits-v0", 64, 4, 256, 1, False),
            "ours, 64 batched envs, compiled": (PPO, "Bench/Bits-v0", 64, 4, 256, 1, True),
        },
    ),
    "memory": (  # sequences of 32 steps
        ["RecurrentPPO (no mask)"],
        {
            "ours, 32 Python envs": (MEMORY, PYTHON, 32, 32, 256, 1, False),
            "ours, 32 Python envs, compiled": (MEMORY, PYTHON, 32, 32, 256, 1, True),
            "ours, 32 batched envs": (MEMORY, BATCHED, 32, 32, 256, 1, False),
            "ours, 32 batched envs, compiled": (MEMORY, BATCHED, 32, 32, 256, 1, True),
        },
    ),
    "microrts": (
        ["MicroRTS-Py's ppo_gridnet", "MicroRTS-Py's ppo_gridnet, 2 threads"],
        {
            "ours": (GRID, "Masked/MicroRTS-v0", 24, 256, 1536, 1, False),
            "ours, 2 ranks": (GRID, "Masked/MicroRTS-v0", 24, 256, 1536, 2, False),
        },
    ),
    "jax-64": (
        ["JAX, compiled whole"],
        {"ours": (PPO, BATCHED, 64, 16, 256, 1, False), "ours, compiled": (PPO, BATCHED, 64, 16, 256, 1, True)},
    ),
    "jax-256": (
        ["JAX, compiled whole"],
        {"ours": (PPO, BATCHED, 256, 16, 256, 1, False), "ours, compiled": (PPO, BATCHED, 256, 16, 256, 1, True)},
    ),
}


@dataclass
class Args:
    """Alternate all arms and write the ratios."""

    suite: Literal["ppo", "dqn", "fields", "memory", "microrts", "jax-64", "jax-256"] = "ppo"
    """which script and peers"""
    pairs: int = 5
    """rounds, each of which runs every arm once"""
    steps: int | None = None
    """environment steps of an arm in a round, of which our PPO's arms, which are faster, take more; default: STEPS"""
    out: Path | None = None
    """file for the results (JSON)"""
    microrts_py: Path = Path("MicroRTS-Py")
    """a clone of MicroRTS-Py at its tag v0.6.0, which the suite microrts needs"""
    arm: str | None = None
    """run this one arm and print its figures (used by the alternation itself)"""
    seed: int = 1
    """seed of this arm"""


class Clock:
    """Steps per second between the first quarter of the steps and the last one, and seconds to the target return.

    Args:
        total_steps: of the training.
        seconds: the clock that the speed is of; the seconds to the return are always of wall time.
    """

    def __init__(self, total_steps: int, seconds: Callable[[], float] = time.perf_counter):
        self.total_steps, self.seconds, self.steps, self.marks = total_steps, seconds, 0, []
        self.start, self.returns, self.seconds_to_score = None, collections.deque(maxlen=64), None

    def tick(self, steps: int) -> None:
        self.start = self.start or time.perf_counter()
        self.steps += steps
        if self.steps >= self.total_steps // 4:
            self.marks.append((self.seconds(), self.steps))

    def episodes(self, returns: Iterable[float]) -> None:
        self.returns.extend(returns)
        if self.seconds_to_score is None and len(self.returns) == 64 and np.mean(self.returns) >= TARGET_RETURN:
            self.seconds_to_score = time.perf_counter() - self.start

    def figures(self) -> dict[str, float | None]:
        (start, first), (end, last) = self.marks[0], self.marks[-1]
        return {
            "steps_per_second": (last - first) / (end - start),
            "seconds_to_score": self.seconds_to_score,
            "final_return": float(np.mean(self.returns)) if self.returns else None,
        }


class Timed(gym.Wrapper):
    """A Python environment of a peer: every step ticks the clock, every episode is reported."""

    def __init__(self, clock: Clock, env: gym.Env):
        super().__init__(env)
        self.clock, self.total = clock, 0.0

    def step(self, action):
        self.clock.tick(1)
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.total += reward
        if terminated:
            self.clock.episodes([self.total])
            self.total = 0.0
        return obs, reward, terminated, truncated, info


def run_ours(args: Args, steps: int) -> Clock:
    """Train with the script's own main; every environment step ticks the clock."""
    script, env_id, num_envs, num_steps, minibatch_size, _, compiled = SUITES[args.suite][1][args.arm]
    clock = Clock(steps, time.process_time if args.suite in JAX else time.perf_counter)
    module = importlib.import_module(script)
    if script in (PPO, MEMORY):
        # The peers do not clip the value's change either. Adam's step size grows with the root of the minibatch.
        flags = dict(num_steps=num_steps, minibatch_size=minibatch_size, clip_vloss=False)
        flags["learning_rate"] = 3e-4 * (minibatch_size / 256) ** 0.5
    elif script == GRID:
        game = ("map_path", "maps/16x16/basesWorkers16x16A.xml", "self_play", "True", "max_episode_steps", "2000")
        game += ("skip_idle", "False", "exact_masks", "False")  # the frames and masks of MicroRTS-Py
        flags = dict(num_steps=num_steps, minibatch_size=minibatch_size, learning_rate=2.5e-4, env_kwargs=game)
    else:
        flags = dict(train_frequency=num_steps, batch_size=minibatch_size, learning_rate=1e-3, learning_starts=1000)
    flags |= dict(env_id=env_id, num_envs=num_envs, anneal_lr=False, compile=compiled, seed=args.seed)
    with watched(lambda _: clock.tick(num_envs), lambda returns, _: clock.episodes(returns)):  # over all ranks
        module.main(module.Args(total_timesteps=steps, eval_episodes=0, save_model=False, **flags))
    return clock


def run_maskable_ppo(args: Args, steps: int) -> Clock:
    """sb3-contrib's MaskablePPO over eight single environments of the same rules."""
    from sb3_contrib import MaskablePPO
    from stable_baselines3.common.vec_env import DummyVecEnv

    clock, (make_env, num_steps) = Clock(steps), (SingleBits, 32) if args.suite == "fields" else (PythonJobRouting, 128)
    model = MaskablePPO(
        "MlpPolicy",
        DummyVecEnv([lambda: Timed(clock, make_env())] * 8),
        n_steps=num_steps,
        batch_size=256,
        n_epochs=4,
        learning_rate=3e-4,
        ent_coef=0.01,
        seed=args.seed,
        device="cpu",
        policy_kwargs=dict(net_arch=dict(pi=[64, 64], vf=[64, 64]), activation_fn=torch.nn.Tanh),
    )
    model.learn(steps)
    return clock


def run_recurrent_ppo(args: Args, steps: int) -> Clock:
    """sb3-contrib's RecurrentPPO, which knows no masks, with one LSTM of the GRU's width for policy and value."""
    from sb3_contrib import RecurrentPPO
    from stable_baselines3.common.vec_env import DummyVecEnv

    clock = Clock(steps)
    model = RecurrentPPO(
        "MlpLstmPolicy",
        DummyVecEnv([lambda: Timed(clock, PythonJobRouting())] * 32),
        n_steps=32,
        batch_size=256,
        n_epochs=4,
        learning_rate=3e-4,
        ent_coef=0.01,
        seed=args.seed,
        device="cpu",
        policy_kwargs=dict(lstm_hidden_size=64, shared_lstm=True, enable_critic_lstm=False, net_arch=[]),
    )
    model.learn(steps)
    return clock


def run_sb3_dqn(args: Args, steps: int) -> Clock:
    """Stable-Baselines3's DQN, which knows no masks, over one environment: one update of 256 every 64 steps."""
    from stable_baselines3 import DQN
    from stable_baselines3.common.vec_env import DummyVecEnv

    clock = Clock(steps)
    model = DQN(
        "MlpPolicy",
        DummyVecEnv([lambda: Timed(clock, PythonJobRouting())]),
        learning_rate=1e-3,
        buffer_size=100_000,
        learning_starts=1000,
        batch_size=256,
        train_freq=64,
        gradient_steps=1,
        target_update_interval=2000,
        exploration_fraction=0.3,
        seed=args.seed,
        device="cpu",
        policy_kwargs=dict(net_arch=[128, 128]),
    )
    model.learn(steps)
    return clock


def run_tianshou_dqn(args: Args, steps: int) -> Clock:
    """Tianshou's DQN with its own mask convention over eight Python environments: one update of 256 every 64 steps."""
    from tianshou.algorithm import DQN
    from tianshou.algorithm.modelfree.dqn import DiscreteQLearningPolicy
    from tianshou.algorithm.optim import AdamOptimizerFactory
    from tianshou.data import Collector, VectorReplayBuffer
    from tianshou.env import DummyVectorEnv
    from tianshou.trainer import OffPolicyTrainerParams
    from tianshou.utils.net.common import Net

    clock = Clock(steps)

    class Masked(Timed):
        def reset(self, **kwargs):
            obs, info = self.env.reset(**kwargs)
            return {"obs": obs, "mask": info["action_mask"].astype(bool)}, {}

        def step(self, action):
            obs, reward, terminated, truncated, info = super().step(action)
            return {"obs": obs, "mask": info["action_mask"].astype(bool)}, reward, terminated, truncated, {}

    np.random.seed(args.seed)
    torch.manual_seed(args.seed)
    envs = DummyVectorEnv([lambda: Masked(clock, PythonJobRouting())] * 8)
    envs.seed(args.seed)
    space = PythonJobRouting().action_space
    policy = DiscreteQLearningPolicy(
        model=Net(state_shape=(len(KINDS) + 3,), action_shape=(space.n,), hidden_sizes=[128, 128]), action_space=space
    )
    algorithm = DQN(policy=policy, optim=AdamOptimizerFactory(lr=1e-3), target_update_freq=2000 // 64)
    collector = Collector(algorithm, envs, VectorReplayBuffer(100_000, 8), exploration_noise=True)
    policy.set_eps_training(1.0)
    collector.reset()
    collector.collect(n_step=1000)

    def explore(epoch: int, step: int) -> None:
        policy.set_eps_training(max(0.05, 1 - 0.95 * step / (0.3 * steps)))

    algorithm.run_training(
        OffPolicyTrainerParams(
            training_collector=collector,
            test_collector=None,
            max_epochs=1,
            epoch_num_steps=steps - 1000,
            collection_step_num_env_steps=64,
            update_step_num_gradient_steps_per_sample=1 / 64,
            batch_size=256,
            training_fn=explore,
            show_progress=False,
        )
    )
    return clock


def run_ppo_gridnet(args: Args, steps: int) -> Clock:
    """MicroRTS-Py's script with its own flags: 24 seats of self-play, 256 steps, four minibatches, four epochs."""
    sys.modules["gym"], sys.modules["gym.spaces"] = gym, gym.spaces  # of which it takes the spaces only
    from gym_microrts.envs import vec_env

    clock, step = Clock(steps), vec_env.MicroRTSGridModeSharedMemVecEnv.step_wait

    def tick(self):
        clock.tick(self.num_envs)
        return step(self)

    vec_env.MicroRTSGridModeSharedMemVecEnv.step_wait = tick
    Path("gym-microrts-static-files").mkdir()
    Path("gym-microrts-static-files/league.csv").write_text("name\n")  # of its ratings, which are off
    sys.argv = ["ppo_gridnet.py", "--total-timesteps", str(steps), "--seed", str(args.seed)]
    sys.argv += ["--cuda", "False", "--max-eval-workers", "0"]
    runpy.run_path(str(args.microrts_py / "experiments/ppo_gridnet.py"), run_name="__main__")
    return clock


def run_jax(args: Args, steps: int) -> Any:
    """The same PPO on the same world as one compiled program, whose clock is its own."""
    import jax_ppo

    figures = jax_ppo.main(jax_ppo.Args(num_envs=JAX[args.suite], total_timesteps=steps, seed=args.seed))
    return SimpleNamespace(figures=lambda: figures)


PEERS = {
    "JAX, compiled whole": run_jax,
    "MaskablePPO": run_maskable_ppo,
    "RecurrentPPO (no mask)": run_recurrent_ppo,
    "Stable-Baselines3 DQN (no mask)": run_sb3_dqn,
    "Tianshou DQN (masked)": run_tianshou_dqn,
    "MicroRTS-Py's ppo_gridnet": run_ppo_gridnet,
    "MicroRTS-Py's ppo_gridnet, 2 threads": run_ppo_gridnet,
}


def child(file: str, *flags: str, ranks: int = 1) -> Any:
    """Run a benchmark on one thread in a process (or two ranks) of its own, and return the figures that it prints."""
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:  # for runs/
        command = [*launcher, str(Path(file).resolve()), *flags]
        done = subprocess.run(command, capture_output=True, text=True, env=one_thread, cwd=folder)
    if done.returncode:
        raise RuntimeError(f"{' '.join(flags)}:\n{done.stderr}")
    return json.loads(done.stdout.split("FIGURES")[1])


def setup(pairs: int, *peers: str) -> dict[str, Any]:
    """What a recorded result has to state, the versions of the packages that it measured included."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    versions = {name: importlib.metadata.version(name) for name in ("torch", "gymnasium", *peers)} | {
        "python": platform.python_version()
    }
    flags = [flag.replace(f"{ROOT.resolve()}/", "") for flag in sys.argv[1:]]  # no folders of this machine
    return {"commit": commit, "versions": versions, "cores": os.cpu_count(), "flags": flags, "pairs": pairs}


def main(args: Args) -> None:
    """Alternate, print and write."""
    steps, more = STEPS[args.suite]
    steps = args.steps or steps
    if args.arm:
        torch.set_num_threads(2 if "2 threads" in args.arm else 1)
        if args.suite in JAX:
            os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        clock = PEERS[args.arm](args, steps) if args.arm in PEERS else run_ours(args, steps)
        if os.environ.get("RANK", "0") == "0":
            print("FIGURES", json.dumps(clock.figures()))
        return
    peers, ours = SUITES[args.suite]
    if args.suite == "microrts" and not (args.microrts_py / "experiments").is_dir():
        raise SystemExit(
            f"--microrts-py {args.microrts_py}: expected a clone of MicroRTS-Py, see the first lines here."
        )
    microrts_py = ("--microrts-py", str(args.microrts_py.resolve()))
    results = json.loads(args.out.read_text()) if args.out and args.out.exists() else {"pairs": 0, "steps": steps}
    if results["steps"] != steps:
        raise SystemExit(f"{args.out} holds runs of {results['steps']} steps, not {steps}: give another --out.")
    rates: dict[str, list[float]] = results.get("steps_per_second", {})
    seconds: dict[str, list[float | None]] = results.get("seconds_to_score", {})
    returns: dict[str, list[float | None]] = results.get("final_return", {})
    packages = {"dqn": ("stable-baselines3", "sb3-contrib", "tianshou"), "microrts": ("gym-microrts",)}
    packages |= dict.fromkeys(JAX, ("jax", "optax"))
    seeds: list[int] = results.get("seeds", [1] * results["pairs"])  # rounds once shared one seed
    for pair in range(results["pairs"], args.pairs):
        seeds.append(pair + 1)
        for arm in (*peers, *ours):
            arm_steps, ranks = (more * steps, ours[arm][5]) if arm in ours else (steps, 1)
            flags = ("--suite", args.suite, "--arm", arm, "--steps", str(arm_steps), "--seed", str(seeds[-1]))
            figures = child(__file__, *flags, *microrts_py, ranks=ranks)
            rates.setdefault(arm, []).append(figures["steps_per_second"])
            seconds.setdefault(arm, []).append(figures["seconds_to_score"])
            returns.setdefault(arm, []).append(figures["final_return"])
            print(f"round {pair + 1}: {arm}: {rates[arm][-1]:,.0f} steps/s, score after {seconds[arm][-1]} s, "
                  f"return at the end {returns[arm][-1]}", flush=True)  # fmt: skip
        table = {}
        for arm in (*peers[1:], *ours):
            ratios = [a / b for a, b in zip(rates[arm], rates[peers[0]], strict=True)]
            table[arm] = {"median_ratio": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
        commits = results.get("commit", "").split(", ")
        versions = packages.get(args.suite, ("stable-baselines3", "sb3-contrib"))
        results = setup(pair + 1, *versions) | {"seeds": seeds, "steps": steps, "ratios": table}
        results["commit"] = ", ".join(filter(None, dict.fromkeys([*commits, results["commit"]])))
        results |= {"steps_per_second": rates, "seconds_to_score": seconds, "final_return": returns}
        if args.out:
            args.out.write_text(json.dumps(results, indent=2) + "\n")
    for arm, ratio in results.get("ratios", {}).items():
        print(f"{arm}: {ratio['median_ratio']:.2f} x {peers[0]} ({ratio['min']:.2f} to {ratio['max']:.2f})")


if __name__ == "__main__":
    main(tyro.cli(Args))
