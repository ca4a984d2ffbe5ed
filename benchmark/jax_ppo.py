"""Masked PPO on JobRouting as one compiled JAX program, world included: what our own script's speed is held against.

    pip install -r requirements.txt jax optax
    taskset -c 0 python benchmark/jax_ppo.py                    # 64 environments, a million steps
    taskset -c 0 python benchmark/jax_ppo.py --num-envs 256

Rules, network, loss and schedule are those of ppo_action_mask.py in the suite "ppo" of throughput.py. The layout is
that of purejaxrl (https://github.com/luchris429/purejaxrl): rollout, advantages and epochs are scans inside a scan
over updates, so that Python runs only between chunks, eighths of a training.

XLA gets one thread to compute on, and `taskset` pins it to one core together with the threads that hand it work. The
speed is in environment steps per CPU second, without the first quarter of the training and without compiling, which
comes first; the seconds to a score are of wall time and include both. The last line holds the figures, as throughput.py
reads them.
"""

import json
import os
import sys
import time
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
os.environ |= {"JAX_PLATFORMS": "cpu", "NPROC": "1", "OMP_NUM_THREADS": "1"}  # NPROC sizes XLA's pools

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
import tyro  # noqa: E402
from jax import Array  # noqa: E402
from jax.nn.initializers import orthogonal  # noqa: E402

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from envs.worlds.job_routing import KINDS, JobRouting  # noqa: E402

FLEET = JobRouting(num_envs=1)
NUM_MACHINES, NUM_UP, NUM_JOBS = FLEET.num_machines, FLEET.num_up, FLEET.num_jobs
SLOWNESS, DEARNESS = jnp.float32(FLEET.slowness), jnp.float32(FLEET.dearness)  # (4, M) and (M,)
OBS_DIM, LOWEST = len(KINDS) + 3, float(np.finfo(np.float32).min)
CHUNKS, TARGET_RETURN = 8, 36


@dataclass(frozen=True)
class Args:
    """Train once and print the figures."""

    num_envs: int = 64
    """environments"""
    num_steps: int = 16
    """steps of each environment in a rollout"""
    total_timesteps: int = 1_000_000
    """environment steps, rounded down to eight chunks of whole rollouts"""
    minibatch_size: int = 256
    """samples in a gradient step"""
    update_epochs: int = 4
    """passes over each rollout"""
    learning_rate: float = 3e-4
    """Adam's step size, constant"""
    gamma: float = 0.99
    """discount"""
    gae_lambda: float = 0.95
    """lambda of generalized advantage estimation"""
    norm_adv: bool = True
    """normalize the advantages of a rollout"""
    clip_coef: float = 0.2
    """the ratio is clipped to 1 +- this"""
    clip_vloss: bool = False
    """clip the change of the value as well"""
    ent_coef: float = 0.01
    """weight of the entropy over legal actions"""
    vf_coef: float = 0.5
    """weight of the value loss"""
    max_grad_norm: float = 0.5
    """gradients are scaled down to this norm"""
    hidden_dim: int = 64
    """width of the two hidden layers of policy and value"""
    seed: int = 1
    """of everything random"""


def pick(table: Array, machine: Array) -> Array:
    """The entries (B,) of a table (B, M) at these machines (B,); the gradient of indexing would be slow on CPUs."""
    return jnp.where(jax.nn.one_hot(machine, NUM_MACHINES, dtype=bool), table, 0).sum(axis=1)


# WORLD


class World(NamedTuple):
    """The state of N environments; `up` (N, M) bool is their action mask as well."""

    kind: Array
    size: Array
    urgency: Array
    up: Array
    elapsed: Array
    total: Array


def new_shift(draws: Array) -> World:
    """Environments at the start of an episode, from uniform draws (N, 3 + M)."""
    ranks = draws[:, 3:].argsort(axis=1).argsort(axis=1)
    start = jnp.zeros(len(draws))
    return World(*new_jobs(draws), ranks < NUM_UP, start.astype(int), start)


def new_jobs(draws: Array) -> tuple[Array, Array, Array]:
    """Kind, size and urgency of a job in every environment, each (N,)."""
    return (len(KINDS) * draws[:, 0]).astype(int), 1 - draws[:, 1], 1 - draws[:, 2]


def observe(world: World) -> Array:
    """What the learner sees, (N, 7): the kind as one-hot, size, urgency, and the share of the shift that is left."""
    numbers = (world.size, world.urgency, 1 - world.elapsed / NUM_JOBS)
    return jnp.concatenate([jax.nn.one_hot(world.kind, len(KINDS)), jnp.stack(numbers, axis=1)], axis=1)


def step(world: World, machine: Array, draws: Array) -> tuple[World, Array, Array, Array]:
    """Route every job to its machine; draws (N, 3 + M) decide what follows, be it a job or an episode.

    Returns the next state, rewards, dones and the episodes' returns up to here, each (N,).
    """
    delay = world.urgency * world.size * SLOWNESS[world.kind, machine]
    accepted = pick(world.up, machine) > 0
    rewards = jnp.where(accepted, 1 / (delay + DEARNESS[machine]), 0.0)
    total, elapsed = world.total + rewards, world.elapsed + 1
    jobs = (jnp.where(accepted, new, old) for new, old in zip(new_jobs(draws), world[:3], strict=True))
    luck = draws[:, 3:] - world.up  # below 0 where the machine is up
    fails = jax.nn.one_hot(luck.argmin(axis=1), NUM_MACHINES, dtype=bool)
    recovers = jax.nn.one_hot(luck.argmax(axis=1), NUM_MACHINES, dtype=bool)
    later, dones = World(*jobs, world.up & ~fails | recovers, elapsed, total), elapsed >= NUM_JOBS

    def start_anew() -> World:
        ends = (dones[:, None] if old.ndim > 1 else dones for old in later)
        return World(*map(jnp.where, ends, new_shift(draws), later))

    return jax.lax.cond(dones.any(), start_anew, lambda: later), rewards, dones, total


# AGENT

Layers = list[tuple[Array, Array]]


class Agent(NamedTuple):
    """Weights and biases of the policy and of the value."""

    actor: Layers
    critic: Layers


def init_agent(key: Array, hidden_dim: int) -> Agent:
    """Orthogonal weights and biases of 0; the policy starts near uniform over legal actions."""

    def layers(key: Array, out_dim: int, gain: float) -> Layers:
        sizes, gains = (OBS_DIM, hidden_dim, hidden_dim, out_dim), (2**0.5, 2**0.5, gain)
        initializers = zip(jax.random.split(key, 3), gains, pairwise(sizes), strict=True)
        return [(orthogonal(gain)(key, shape), jnp.zeros(shape[1])) for key, gain, shape in initializers]

    actor_key, critic_key = jax.random.split(key)
    return Agent(layers(actor_key, NUM_MACHINES, 0.01), layers(critic_key, 1, 1.0))


def mlp(layers: Layers, x: Array) -> Array:
    """Hidden layers with tanh, and a linear one."""
    for weight, bias in layers[:-1]:
        x = jnp.tanh(x @ weight + bias)
    weight, bias = layers[-1]
    return x @ weight + bias


def policy(actor: Layers, obs: Array, mask: Array) -> tuple[Array, Array]:
    """Logits and log-probabilities (B, M), about the lowest finite number where illegal."""
    logits = jnp.where(mask, mlp(actor, obs), LOWEST)
    return logits, jax.nn.log_softmax(logits)


# LOSS


class Batch(NamedTuple):
    """Samples of a rollout, each with the same leading axes."""

    obs: Array
    masks: Array
    actions: Array
    logprobs: Array
    values: Array
    rewards: Array
    dones: Array


def ppo_loss(agent: Agent, mb: tuple[Batch, Array, Array], args: Args) -> tuple[Array, Array]:
    """The clipped loss of samples, advantages (B,) and returns (B,); its terms, KL divergence and clipped share."""
    batch, advantages, returns = mb
    logits, log_probs = policy(agent.actor, batch.obs, batch.masks)
    values = mlp(agent.critic, batch.obs)[:, 0]
    logratio = pick(log_probs, batch.actions) - batch.logprobs
    entropy = -(jax.nn.softmax(logits) * jnp.where(batch.masks, log_probs, 0.0)).sum(axis=1).mean()
    ratio = jnp.exp(logratio)
    clipped = ratio.clip(1 - args.clip_coef, 1 + args.clip_coef)
    pg_loss = -jnp.minimum(advantages * ratio, advantages * clipped).mean()
    v_loss = (values - returns) ** 2
    if args.clip_vloss:
        v_clipped = batch.values + (values - batch.values).clip(-args.clip_coef, args.clip_coef)
        v_loss = jnp.maximum(v_loss, (v_clipped - returns) ** 2)
    v_loss = 0.5 * v_loss.mean()
    metrics = jnp.stack([pg_loss, v_loss, entropy, (ratio - 1 - logratio).mean(), (clipped != ratio).mean()])
    return pg_loss - args.ent_coef * entropy + args.vf_coef * v_loss, metrics


# TRAINING


class Training(NamedTuple):
    """All that changes from update to update."""

    agent: Agent
    moments: optax.OptState
    world: World
    key: Array


Reports = tuple[Array, Array, Array]


def optimizer(args: Args) -> optax.GradientTransformation:
    """Adam along clipped gradients; over one flat vector, as small kernels cost more than their arithmetic."""
    clip = optax.clip_by_global_norm(args.max_grad_norm)
    return optax.flatten(optax.chain(clip, optax.adam(args.learning_rate, eps=1e-5)))


def begin(args: Args) -> Training:
    """The state before the first update."""
    key, agent_key, world_key = jax.random.split(jax.random.key(args.seed), 3)
    agent = init_agent(agent_key, args.hidden_dim)
    world = new_shift(jax.random.uniform(world_key, (args.num_envs, 3 + NUM_MACHINES)))
    return Training(agent, optimizer(args).init(agent), world, key)


def collect(agent: Agent, world: World, key: Array, args: Args) -> tuple[World, Batch, Array]:
    """Play a rollout; the world after it, its samples (T, N, ...), and the episodes' returns up to each step (T, N)."""

    def play(world: World, chance: tuple[Array, Array]) -> tuple[World, tuple[Batch, Array]]:
        noise, draws = chance
        obs, mask = observe(world), world.up
        logits, log_probs = policy(agent.actor, obs, mask)
        actions = jnp.where(mask, logits + noise, LOWEST).argmax(axis=1)  # Gumbel-max; the noise before the mask
        values = mlp(agent.critic, obs)[:, 0]
        world, rewards, dones, totals = step(world, actions, draws)
        return world, (Batch(obs, mask, actions, pick(log_probs, actions), values, rewards, dones), totals)

    noise_key, world_key = jax.random.split(key)  # all chance at once, since small draws cost more
    noise = jax.random.gumbel(noise_key, (args.num_steps, args.num_envs, NUM_MACHINES))
    draws = jax.random.uniform(world_key, (args.num_steps, args.num_envs, 3 + NUM_MACHINES))
    world, (rollout, totals) = jax.lax.scan(play, world, (noise, draws))
    return world, rollout, totals


def compute_gae(rollout: Batch, last_values: Array, args: Args) -> Array:
    """Advantages (T, N) by generalized advantage estimation; every end of an episode is a termination here."""

    def look_back(after: tuple[Array, Array], sample: Batch) -> tuple[tuple[Array, Array], Array]:
        advantages, next_values = after
        discounts = args.gamma * (1 - sample.dones)
        deltas = sample.rewards + discounts * next_values - sample.values
        advantages = deltas + discounts * args.gae_lambda * advantages
        return (advantages, sample.values), advantages

    return jax.lax.scan(look_back, (jnp.zeros_like(last_values), last_values), rollout, reverse=True)[1]


def update(training: Training, args: Args) -> tuple[Training, Reports]:
    """A rollout and the epochs over it; reports the sum and number of the returns, and the last epoch's metrics."""
    size = args.num_steps * args.num_envs
    key, play_key, *epoch_keys = jax.random.split(training.key, 2 + args.update_epochs)
    world, rollout, totals = collect(training.agent, training.world, play_key, args)
    advantages = compute_gae(rollout, mlp(training.agent.critic, observe(world))[:, 0], args)
    returns = advantages + rollout.values
    if args.norm_adv:
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    samples = jax.tree.map(lambda x: x.reshape(size, *x.shape[2:]), (rollout, advantages, returns))

    def learn(carry: tuple[Agent, Any], mb: tuple[Batch, Array, Array]) -> tuple[tuple[Agent, Any], Array]:
        agent, moments = carry
        gradients, metrics = jax.grad(ppo_loss, has_aux=True)(agent, mb, args)
        changes, moments = optimizer(args).update(gradients, moments)
        return (optax.apply_updates(agent, changes), moments), metrics

    def epoch(carry: tuple[Agent, Any], key: Array) -> tuple[tuple[Agent, Any], Array]:
        order = jax.random.bits(key, size).argsort().reshape(-1, args.minibatch_size)
        carry, metrics = jax.lax.scan(learn, carry, jax.tree.map(lambda x: x[order], samples))
        return carry, metrics.mean(axis=0)

    start = (training.agent, training.moments)
    (agent, moments), metrics = jax.lax.scan(epoch, start, jnp.stack(epoch_keys))
    return Training(agent, moments, world, key), ((totals * rollout.dones).sum(), rollout.dones.sum(), metrics[-1])


@partial(jax.jit, static_argnames=("args", "updates"), donate_argnums=0)
def train(training: Training, args: Args, updates: int) -> tuple[Training, Reports]:
    """So many updates in one call; what `update` reports has a leading axis for them."""
    return jax.lax.scan(lambda carry, _: update(carry, args), training, None, updates)


def main(args: Args) -> dict[str, float | None]:
    """Train chunk by chunk, print each of them, and return the figures."""
    rollout = args.num_steps * args.num_envs
    updates = args.total_timesteps // (CHUNKS * rollout)
    if rollout % args.minibatch_size or not updates:
        raise SystemExit(
            f"Expected {CHUNKS} or more rollouts of {rollout} steps, and whole minibatches in each; got {args}."
        )
    training = begin(args)
    start = time.perf_counter()
    program = train.lower(training, args, updates).compile()
    print(f"compiled in {time.perf_counter() - start:.1f} s; jax {jax.__version__}, optax {optax.__version__}")
    speeds, seconds_to_score = [], None
    for chunk in range(CHUNKS):
        wall, cpu = time.perf_counter(), time.process_time()
        training, reports = program(training)
        sums, counts, metrics = jax.tree.map(np.asarray, reports)  # waits for them
        wall_seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
        speeds.append(updates * rollout / cpu_seconds)
        good = np.flatnonzero(sums >= TARGET_RETURN * np.maximum(counts, 1))
        if seconds_to_score is None and len(good):  # all updates take equally long
            seconds_to_score = wall - start + wall_seconds * (good[0] + 1) / updates
        final_return = float(sums.sum() / max(counts.sum(), 1))
        print(
            f"{(chunk + 1) * updates * rollout:,} steps: return {final_return:.2f}, entropy {metrics[-1, 2]:.2f}, KL "
            f"{metrics[-1, 3]:.4f}; {speeds[-1]:,.0f} steps per CPU second, {cpu_seconds / wall_seconds:.2f} cores"
        )
    speed = len(speeds[CHUNKS // 4 :]) / sum(1 / s for s in speeds[CHUNKS // 4 :])
    return {"steps_per_second": speed, "seconds_to_score": seconds_to_score, "final_return": final_return}


if __name__ == "__main__":
    print("FIGURES", json.dumps(main(tyro.cli(Args))))
