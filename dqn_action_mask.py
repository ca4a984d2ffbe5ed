"""Masked DQN: illegal actions are never explored, never greedy and never in the target.

    python dqn_action_mask.py                                                    # JobRouting: half of 16 are down
    python dqn_action_mask.py --env-id Masked/Maze-v0 --total-timesteps 3000000  # a new maze each episode
    python dqn_action_mask.py --mask-mode naive                                  # illegal actions in the target
    torchrun --nproc-per-node 2 dqn_action_mask.py                               # data-parallel, one rank a core or GPU
    tensorboard --logdir runs

Scores, minutes and spread over seeds of every environment are in docs/results.md.

References: Mnih et al. 2015, Human-level control through deep RL, https://doi.org/10.1038/nature14236
            van Hasselt et al. 2016, Deep RL with double Q-learning, https://arxiv.org/abs/1509.06461
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn as nn
from torch import Tensor
from torch.nn import functional as F

from envs.masks import check_truncated, illegal_actions
from experiment import Adam, Flags, OnHost, Run
from experiment.flags import Count, Natural, Positive, PositiveShare, Share, check_shares, parse

METRICS = ("td_loss", "q_values")


@dataclass
class Args(Flags):
    """Masked (double) DQN for Discrete actions."""

    total_timesteps: Count = 500_000
    learning_rate: Positive = 1e-3
    """Adam's step size"""
    anneal_lr: bool = True
    """let the learning rate fall linearly to 0"""
    buffer_size: Count = 100_000
    """transitions that the replay buffers of all ranks hold"""
    gamma: Share = 0.99
    """discount"""
    tau: PositiveShare = 1.0
    """share of the online network's weights that an update of the target network takes over"""
    target_network_frequency: Count = 2000
    """environment steps between updates of the target network, at most one in a round of gradient steps"""
    batch_size: Count = 256
    """samples in a gradient step over all ranks"""
    replay_ratio: Positive = 4.0
    """samples learnt from for each environment step (Acme's samples per insert): updates per step times batch_size"""
    train_frequency: Count = 4
    """steps of each environment between rounds of gradient steps, as many as the replay ratio asks for"""
    start_e: Share = 1.0
    """epsilon, the share of random legal actions, at the start"""
    end_e: Share = 0.05
    """epsilon at the end of exploration"""
    exploration_fraction: PositiveShare = 0.3
    """share of all steps in which epsilon falls linearly"""
    learning_starts: Natural = 10_000
    """environment steps before the first gradient step"""
    double_q: bool = True
    """choose the target's action with the online network, value it with the target network"""
    max_grad_norm: Positive = 10.0
    """gradients are scaled down to this norm"""
    hidden_dim: Count = 128
    """width of the two hidden layers"""

    def check(self, world_size: int) -> int:
        """Refuse what does not fit together; returns the environment steps between rounds of updates."""
        steps = self.num_envs * self.train_frequency
        check_shares(self, world_size, "batch_size")
        if (updates := steps * self.replay_ratio / self.batch_size) != max(1, round(updates)):
            raise ValueError(
                f"--replay-ratio {self.replay_ratio}: {steps} environment steps (--num-envs x --train-frequency) would "
                f"be followed by {updates:.4g} updates of --batch-size {self.batch_size}; expected a whole number, 1 "
                f"or more."
            )
        if "target_network_frequency" in self.given and self.target_network_frequency < steps:
            raise ValueError(
                f"--target-network-frequency {self.target_network_frequency}: the target network is updated once after "
                f"each round of {steps} environment steps (--num-envs x --train-frequency); expected that many or more."
            )
        if self.buffer_size < max(steps, self.learning_starts):
            raise ValueError(
                f"--buffer-size {self.buffer_size} holds less than --learning-starts {self.learning_starts}, or less "
                f"than the {steps} steps between updates."
            )
        if 0 < (played := self.total_timesteps // steps * steps) < self.learning_starts:
            raise ValueError(
                f"--learning-starts {self.learning_starts}: nothing would be learnt in {played} steps "
                f"(--total-timesteps {self.total_timesteps}); expected at most as many."
            )
        return steps


# The function to copy, with the one below: they need torch only.
def td_targets(
    rewards: Tensor,
    terminations: Tensor,
    next_q: Tensor,
    next_masks: Tensor | None,
    gamma: float,
    online_next_q: Tensor | None = None,
) -> Tensor:
    """What Q(s, a) should be: r + gamma * Q(s', a'), a' the best action that is legal in s' (Mnih et al. 2015).

    A maximum over illegal actions as well would bootstrap from values that nothing ever corrects. After a termination
    the target is r, whatever the mask holds: at the end of a game it may be all False. A truncated s' is the final
    observation, with its own mask.

    Args:
        rewards: (B,).
        terminations: (B,) bool.
        next_q: (B, A), the target network's values of s'.
        next_masks: (B, A) bool, True where legal in s', or None: all legal.
        gamma: discount.
        online_next_q: (B, A), the online network's values of s': it chooses a', the target network values it (double
            DQN, van Hasselt et al. 2016); None: the target network does both.

    Raises:
        ValueError: the mask is not bool, or shapes do not fit together. Where the episode goes on, s' needs a legal
            action, which is not checked.

    >>> reward, terminated, q = torch.zeros(1), torch.tensor([False]), torch.tensor([[1.0, 2.0, 9.0]])
    >>> td_targets(reward, terminated, q, torch.tensor([[True, True, False]]), gamma=0.5)
    tensor([1.])
    """
    if next_q.dim() != 2 or not rewards.shape == terminations.shape == next_q.shape[:1]:
        found = f"{tuple(rewards.shape)}, terminations {tuple(terminations.shape)}, next_q {tuple(next_q.shape)}"
        raise ValueError(f"rewards have shape {found}; expected (B,), (B,) and (B, A).")
    if online_next_q is not None and online_next_q.shape != next_q.shape:
        found = f"{tuple(online_next_q.shape)}, next_q {tuple(next_q.shape)}"
        raise ValueError(f"online_next_q has shape {found}; expected the same.")
    choice = masked(next_q if online_next_q is None else online_next_q, next_masks).argmax(1, keepdim=True)
    return rewards + gamma * torch.where(terminations, 0.0, next_q.gather(1, choice).squeeze(1))


def masked(q: Tensor, mask: Tensor | None) -> Tensor:
    """Q-values (B, A) with the lowest finite number where `mask` is False: an illegal action never is the maximum.

    Legal ones stay above it, as in CategoricalMasked: half of it stands for any that is lower, -inf included.

    Raises:
        ValueError: the mask is not bool or has another shape.
    """
    if mask is not None and (mask.dtype != torch.bool or mask.shape != q.shape):
        found, expected = f"{tuple(mask.shape)} and dtype {mask.dtype}", tuple(q.shape)
        raise ValueError(f"The mask has shape {found}; expected {expected} and torch.bool, True where legal.")
    lowest = torch.finfo(q.dtype).min
    return q if mask is None else torch.where(mask, q.clamp(min=lowest / 2), lowest)


class QNetwork(nn.Module):
    """Values of all actions over flat observations: edit the marked part, the rest follows it."""

    def __init__(self, obs_dim: int, num_actions: int, hidden_dim: int):
        super().__init__()
        # --- adapt this to your env ---
        self.network = nn.Sequential(
            nn.Linear(obs_dim, hidden_dim),
            nn.ReLU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.ReLU(),
            nn.Linear(hidden_dim, num_actions),
        )

    def forward(self, obs: Tensor) -> Tensor:
        """Values (B, A) of obs (B, D), of any dtype."""
        return self.network(obs.float())
        # ------------------------------


class ReplayBuffer:
    """The last `capacity` transitions, in preallocated tensors; the oldest are overwritten.

    Args:
        capacity: number of transitions, a multiple of those added at a time.
        fields: shape and dtype of one transition's entries, by name.
        device: where they are stored.

    Raises:
        ValueError: it would not fit into the device's memory.
    """

    def __init__(self, capacity: int, fields: dict[str, tuple[tuple[int, ...], torch.dtype]], device: torch.device):
        self.capacity, self.pos, self.size = capacity, 0, 0
        self.nbytes = capacity * sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in fields.values())
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if device.type == "cuda":
            memory = torch.cuda.mem_get_info(device)[0]
        if self.nbytes > memory:
            raise ValueError(
                f"--buffer-size: {capacity:,} transitions need {self.nbytes / 2**30:,.1f} GiB, but {device} has "
                f"{memory / 2**30:,.1f} GiB; expected {capacity * memory // self.nbytes:,} or fewer."
            )
        self.storage = {name: torch.empty((capacity, *x[0]), dtype=x[1], device=device) for name, x in fields.items()}

    def add(self, transitions: dict[str, np.ndarray]) -> None:
        """Write transitions (T, N, ...) of all environments at once."""
        for name, values in transitions.items():
            rows = torch.from_numpy(values).flatten(0, 1)
            self.storage[name][self.pos : self.pos + len(rows)] = rows
        self.pos = (self.pos + len(rows)) % self.capacity
        self.size = min(self.size + len(rows), self.capacity)

    def sample(self, count: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """`count` transitions, drawn uniformly with replacement: each field (count, ...)."""
        inds = torch.randint(self.size, (count,), generator=generator, device=generator.device)
        return tuple(values[inds] for values in self.storage.values())

    def get_state(self) -> dict[str, Any]:
        """What it holds, in NumPy."""
        return {"pos": self.pos, **{name: values[: self.size].cpu().numpy() for name, values in self.storage.items()}}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_state` gave."""
        self.pos = state["pos"]
        for name, values in self.storage.items():
            self.size = len(state[name])
            values[: self.size] = torch.from_numpy(state[name])


def td_loss(
    q_network: nn.Module, target_network: nn.Module, mb: tuple[Tensor, ...], args: Args
) -> tuple[Tensor, Tensor]:
    """The mean squared temporal-difference error of a minibatch, and METRICS (2,) without gradient.

    Errors are not clipped, unlike those of Mnih et al. 2015; the gradient's norm is.

    Args:
        q_network, target_network: as QNetwork.
        mb: obs (B, D), actions, rewards, terminations (B,), next obs (B, D) and next masks (B, A).
        args: coefficients.
    """
    mb_obs, mb_actions, mb_rewards, mb_terminations, mb_next_obs, mb_next_masks = mb
    with torch.no_grad():
        next_q = target_network(mb_next_obs)
        online_next_q = q_network(mb_next_obs) if args.double_q else None
        targets = td_targets(mb_rewards, mb_terminations, next_q, mb_next_masks, args.gamma, online_next_q)
    q_values = q_network(mb_obs).gather(1, mb_actions.unsqueeze(1)).squeeze(1)
    loss = F.mse_loss(q_values, targets)
    return loss, torch.stack((loss.detach(), q_values.detach().mean()))


def update(
    q_network: nn.Module,
    target_network: nn.Module,
    optimizer: Adam,
    mb: tuple[Tensor, ...],
    args: Args,
    mean: Callable,
) -> Tensor:
    """One step of Adam along the clipped gradient of a minibatch, its `mean` over all ranks; returns METRICS, (2,)."""
    loss, metrics = td_loss(q_network, target_network, mb, args)
    gradients = mean(torch.autograd.grad(loss, optimizer.params))
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
    scale = (args.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
    optimizer.apply([g * scale for g in gradients])
    return metrics


def linear_schedule(start_e: float, end_e: float, duration: float, t: int) -> float:
    """Epsilon after `t` steps, of which `duration` lead from `start_e` to `end_e`."""
    return end_e + (start_e - end_e) * max(0.0, 1 - t / duration)


def epsilon_greedy(q_values: np.ndarray, mask: np.ndarray, epsilon: float, rng: np.random.Generator) -> np.ndarray:
    """Actions (N,) for q_values and mask (N, A): with probability epsilon uniform over legal ones, else the best."""
    explore = rng.random(len(q_values)) < epsilon
    q_values = np.maximum(q_values, np.finfo(np.float32).min)  # a copy
    q_values[explore] = rng.random((explore.sum(), q_values.shape[1]), np.float32)
    return np.where(mask, q_values, -np.inf).argmax(1)


def main(args: Args) -> dict[str, float]:
    """Train, evaluate and write everything into runs/; returns the scores of the evaluation."""
    run = Run(args, __file__)  # ranks, device, seeds; with --resume or --eval-only the flags of the checkpoint
    args, T, N = run.args, run.args.train_frequency, run.args.num_envs // run.world_size
    batch_size = args.batch_size // run.world_size
    envs = run.make_envs(N)
    obs_shape, nvec = envs.single_observation_space.shape, envs.nvec
    if len(nvec) > 1:
        raise ValueError(
            f"{args.env_id} has the action space {envs.single_action_space}; DQN takes Discrete, and "
            f"ppo_action_mask.py takes MultiDiscrete and MultiBinary."
        )
    q_network, target_network = (run.place(QNetwork(obs_shape[0], nvec[0], args.hidden_dim)) for _ in range(2))
    target_network.load_state_dict(q_network.state_dict())
    optimizer = Adam(q_network, eps=1e-8)
    stored = torch.from_numpy(np.empty(0, envs.obs_dtype)).dtype
    fields = {
        "obs": (obs_shape, stored),
        "actions": ((), torch.int64),
        "rewards": ((), torch.float32),
        "terminations": ((), torch.bool),
        "next_obs": (obs_shape, stored),
        "next_masks": ((nvec[0],), torch.bool),
    }
    replay = ReplayBuffer(args.buffer_size // run.world_size // (T * N) * (T * N), fields, run.device)
    if run.rank == 0 and not args.eval_only:
        print(f"Replay buffer: {replay.capacity:,} transitions, {replay.nbytes / 2**20:,.1f} MiB on {run.device}")
    run.keep(model=q_network, target=target_network, optimizer=optimizer, replay=replay)  # restored here
    act_values = OnHost(q_network, q_network)  # the function, and the module whose MLP may compute it in NumPy
    take_step = run.compile(update)

    # Transitions are collected on the host and moved once: small writes cost less in NumPy, on CPUs as well.
    host = {name: torch.empty((T, N, *shape), dtype=dtype).numpy() for name, (shape, dtype) in fields.items()}
    host_masks, metrics = np.empty((T, N, nvec[0]), bool), torch.zeros(len(METRICS))
    num_updates = round(run.steps * args.replay_ratio / args.batch_size)

    next_obs, next_mask = run.begin()  # reset, or where a checkpoint left off
    for iteration in run.iterations():  # after each: signals, checkpoints when they are due
        lr = args.learning_rate * (1 - iteration / run.num_iterations) if args.anneal_lr else args.learning_rate
        optimizer.lr.fill_(lr)
        duration = args.exploration_fraction * args.total_timesteps
        epsilon = linear_schedule(args.start_e, args.end_e, duration, iteration * run.steps)

        # ROLLOUT: act in all environments
        for t in range(T):
            host["obs"][t], host_masks[t] = next_obs, next_mask
            q_values = act_values(next_obs)
            host["actions"][t] = epsilon_greedy(q_values, host_masks[t] | run.free_play, epsilon, run.rng)
            next_obs, host["rewards"][t], host["terminations"][t], _, infos = envs.step(host["actions"][t])
            next_mask = infos["action_mask"]
            host["next_obs"][t], host["next_masks"][t] = next_obs, next_mask
            if "final_obs" in infos:  # the transition leads to the final state, not to the next episode's first
                ended = infos["_final_obs"]
                host["next_obs"][t, ended] = infos["final_obs"][ended]
                final_masks = infos["final_info"]["action_mask"]
                if args.mask_mode == "mask":  # the target's maximum needs a legal action there
                    check_truncated(final_masks, ended & ~host["terminations"][t])
                host["next_masks"][t, ended] = final_masks[ended]
        illegal = illegal_actions(host["actions"].ravel(), host_masks.reshape(T * N, -1), nvec)
        if args.mask_mode == "penalty":
            host["rewards"] += args.invalid_penalty * illegal.reshape(T, N)
        host["next_masks"] |= args.mask_mode != "mask"  # without the mask in the target
        replay.add(host)

        # UPDATE: as many minibatches as the replay ratio asks for, drawn at once
        if run.global_step >= args.learning_starts:
            samples = replay.sample(num_updates * batch_size, run.generator)
            minibatches = zip(*(field.split(batch_size) for field in samples), strict=True)
            steps = [take_step(q_network, target_network, optimizer, mb, args, run.mean) for mb in minibatches]
            metrics = torch.stack(steps).mean(0)
            if run.global_step % args.target_network_frequency < run.steps:
                for target, online in zip(target_network.parameters(), q_network.parameters(), strict=True):
                    target.data.lerp_(online.data, args.tau)
        run.check_finite(metrics)

        # LOG
        if run.log_due:  # return, length and speed are added
            run.log(
                {f"losses/{name}": value for name, value in zip(METRICS, metrics.tolist(), strict=True)}
                | {"charts/learning_rate": lr, "charts/epsilon": epsilon}
                | {"masks/legal_fraction": host_masks.mean(), "masks/illegal_rate": illegal.mean()}
            )

    def play(obs: np.ndarray, mask: np.ndarray, started: np.ndarray) -> np.ndarray:
        """The best legal actions; without memory it does not matter where episodes started."""
        return masked(q_network(run.tensor(obs)), run.tensor(mask).bool()).argmax(1).cpu().numpy()

    return run.finish(play)  # evaluate with the mask and without, write scores and pictures


if __name__ == "__main__":
    main(parse(Args))
