"""Masked DQN: illegal actions are never explored, never greedy and never in the target.

    python dqn_action_mask.py                                                    # JobRouting: half of 16 are down
    python dqn_action_mask.py --env-id Masked/Maze-v0 --total-timesteps 3000000  # a new maze each episode
    python dqn_action_mask.py --mask-mode naive                                  # illegal actions in the target
    torchrun --nproc-per-node 2 dqn_action_mask.py                               # data-parallel, one rank a core or GPU
    tensorboard --logdir runs

Scores, minutes and spread over seeds of every environment are in the README.

References: Mnih et al. 2015, Human-level control through deep RL, https://doi.org/10.1038/nature14236
            van Hasselt et al. 2016, Deep RL with double Q-learning, https://arxiv.org/abs/1509.06461
"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
import torch.nn as nn
import tyro
from torch import Tensor
from torch.nn import functional as F
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from envs.checkpoint import load_checkpoint, save_checkpoint, swap_arrays
from envs.runs import StopOnSignal, check_finite, check_shared_flags, open_run, write_pictures, write_scores
from envs.vector import UniformVectorEnv, flat_dtype, illegal_actions, make_vec, parse_env_kwargs

SCRIPT = "dqn_action_mask"
METRICS = ("td_loss", "q_values")


@dataclass
class Args:
    """Masked (double) DQN for Discrete actions."""

    # Experiment
    exp_name: str = "dqn_action_mask"
    """name of the experiment, the first part of the run's folder under runs/"""
    seed: int = 1
    """seed of everything random; rank r adds r"""
    track: bool = False
    """log to Weights & Biases too (pip install wandb)"""
    wandb_project_name: str = "masked-rl"
    """project name at Weights & Biases"""
    capture_video: bool = False
    """write agent.gif, the trained agent playing, into the run's folder"""
    save_model: bool = True
    """write checkpoint.pt into the run's folder at the end, and on SIGINT or SIGTERM"""
    checkpoint_every: int = 0
    """iterations between checkpoints during training; 0: none"""
    resume: str | None = None
    """checkpoint.pt of a run to continue, with that run's flags and in its folder"""
    eval_episodes: int = 100
    """episodes played greedily after training, as trained and again with the mask removed; 0: none"""
    eval_only: str | None = None
    """checkpoint.pt of an agent to evaluate without training"""

    # Environment
    env_id: str = "Masked/JobRouting-v0"
    """any registered id; module:Id-v0 imports the module first"""
    env_kwargs: tuple[str, ...] = ()
    """arguments of the environment as pairs KEY VALUE; with --eval-only they replace the checkpoint's"""
    num_envs: int = 64
    """environments over all ranks, each stepped once before every action"""
    async_envs: bool = False
    """one process for each environment, for slow ones that others wrote"""

    # Mask
    mask_mode: Literal["mask", "naive", "penalty", "none"] = "mask"
    """mask: act and learn with it; naive: act with it only; penalty: illegal actions cost; none: ignore it"""
    invalid_penalty: float = -0.1
    """added to the reward for each illegal action under --mask-mode penalty"""

    # Algorithm
    total_timesteps: int = 500_000
    """environment steps over all environments and ranks"""
    learning_rate: float = 1e-3
    """Adam's step size"""
    anneal_lr: bool = True
    """let the learning rate fall linearly to 0"""
    buffer_size: int = 100_000
    """transitions that the replay buffers of all ranks hold"""
    gamma: float = 0.99
    """discount"""
    tau: float = 1.0
    """share of the online network's weights that an update of the target network takes over"""
    target_network_frequency: int = 2000
    """environment steps between updates of the target network"""
    batch_size: int = 256
    """samples in a gradient step over all ranks"""
    replay_ratio: float = 4.0
    """samples learnt from for each environment step: CleanRL's batch_size / train_frequency for one environment"""
    train_frequency: int = 4
    """steps of each environment between rounds of gradient steps, as many as the replay ratio asks for"""
    start_e: float = 1.0
    """epsilon, the share of random legal actions, at the start"""
    end_e: float = 0.05
    """epsilon at the end of exploration"""
    exploration_fraction: float = 0.3
    """share of all steps in which epsilon falls linearly"""
    learning_starts: int = 10_000
    """environment steps before the first gradient step"""
    double_q: bool = True
    """choose the target's action with the online network, value it with the target network"""
    max_grad_norm: float = 10.0
    """gradients are scaled down to this norm"""
    hidden_dim: int = 128
    """width of the two hidden layers"""

    # Runtime
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA where there is a GPU"""
    torch_deterministic: bool = True
    """use deterministic kernels only"""
    compile: bool = False
    """compile gradient, clipping and Adam: about 10 s at the start (1 s from the cache), faster updates after"""
    num_threads: int = 1
    """torch's CPU threads in each process; small networks gain nothing from more"""


# The function to copy: it needs torch only.
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
            Q-learning, van Hasselt et al. 2016, equation 4); None: the target network does both.

    >>> reward, alive, q = torch.zeros(1), torch.tensor([False]), torch.tensor([[1.0, 2.0, 9.0]])
    >>> td_targets(reward, alive, q, torch.tensor([[True, True, False]]), gamma=0.5)
    tensor([1.])
    """
    choice = masked(next_q if online_next_q is None else online_next_q, next_masks).argmax(1, keepdim=True)
    return rewards + gamma * torch.where(terminations, 0.0, next_q.gather(1, choice).squeeze(1))


def masked(q: Tensor, mask: Tensor | None) -> Tensor:
    """Q-values (B, A) with the lowest finite number where `mask` is False: an illegal action never is the maximum."""
    return q if mask is None else torch.where(mask, q, torch.finfo(q.dtype).min)


class QNetwork(nn.Module):
    """Values of all actions over flat observations."""

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
        # ------------------------------

    def forward(self, obs: Tensor) -> Tensor:
        """Values (B, A) of obs (B, D), of any dtype."""
        return self.network(obs.float())

    def greedy(self, obs: Tensor, mask: Tensor | None) -> Tensor:
        """The best actions (B,) for obs (B, D) that mask (B, A) allows."""
        return masked(self(obs), mask).argmax(1)


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
        memory = (torch.cuda.mem_get_info(device)[0] if device.type == "cuda"
                  else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))  # fmt: skip
        if self.nbytes > memory:
            raise ValueError(f"--buffer-size: {capacity:,} transitions need {self.nbytes / 2**30:,.1f} GiB, but "
                             f"{device} has {memory / 2**30:,.1f} GiB; expected {capacity * memory // self.nbytes:,} "
                             f"or fewer.")  # fmt: skip
        self.storage = {name: torch.empty((capacity, *shape), dtype=dtype, device=device)
                        for name, (shape, dtype) in fields.items()}  # fmt: skip

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
        """What it holds, on the CPU."""
        return {"pos": self.pos, **{name: values[: self.size].cpu() for name, values in self.storage.items()}}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_state` gave."""
        self.pos = state["pos"]
        for name, values in self.storage.items():
            self.size = len(state[name])
            values[: self.size] = state[name]


def flat_parameters(module: nn.Module) -> nn.Parameter:
    """Move all parameters into one vector, of which they become views, and their gradients likewise.

    One vector makes Adam, gradient clipping and averaging over ranks a single operation each.
    """
    flat = nn.Parameter(torch.cat([p.detach().flatten() for p in module.parameters()]))
    flat.grad = torch.zeros_like(flat)
    offset = 0
    for p in module.parameters():
        view = slice(offset, offset + p.numel())
        p.data, p.grad = flat.data[view].view_as(p), flat.grad[view].view_as(p)
        offset += p.numel()
    return flat


def td_loss(
    target_network: nn.Module, q_network: Any, mb: tuple[Tensor | None, ...], args: Args
) -> tuple[Tensor, Tensor]:
    """The squared temporal-difference error of a minibatch, and METRICS (2,) without gradient.

    Args:
        target_network: as QNetwork.
        q_network: callable as QNetwork.
        mb: obs (B, D), actions, rewards, terminations (B,), next obs (B, D) and next masks (B, A) or None.
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


def linear_schedule(start_e: float, end_e: float, duration: float, t: int) -> float:
    """Epsilon after `t` steps, of which `duration` lead from `start_e` to `end_e`."""
    return end_e + (start_e - end_e) * max(0.0, 1 - t / duration)


def make_envs(args: Args, num_envs: int, require_mask: bool, render_mode: str | None = None) -> UniformVectorEnv:
    """The environments that the flags ask for."""
    return make_vec(
        args.env_id, num_envs, parse_env_kwargs(args.env_kwargs), args.async_envs, require_mask, render_mode=render_mode
    )


def evaluate(
    agent: nn.Module, args: Args, device: torch.device, use_mask: bool, seed: int = 10_000
) -> dict[str, float]:
    """Play `args.eval_episodes` episodes, the mask applied or removed, and average over them.

    Every environment plays the same number of episodes: taking the first to finish would favour short ones. `win_rate`
    is the share of episodes with a positive return; where the environment knows best play, `optimality` is the return
    as a share of the optimum; `success` is the share of episodes that it calls a success.
    """
    num_envs = min(args.eval_episodes, args.num_envs)
    envs = make_envs(args, num_envs, use_mask)
    left = np.full(num_envs, args.eval_episodes // num_envs)
    left[: args.eval_episodes % num_envs] += 1
    obs, infos = envs.reset(seed=seed)
    totals = {"episodic_return": 0.0, "episodic_length": 0.0, "win_rate": 0.0}
    illegal = steps = 0
    while left.any():
        mask = infos["action_mask"]
        actions = eval_actions(agent, obs, mask, use_mask, device)
        illegal += (envs.illegal(actions, mask) * (left > 0)).sum()
        steps += (left > 0).sum()
        obs, _, _, _, infos = envs.step(actions)
        if "episode" in infos:
            ended = infos["_episode"] & (left > 0)
            left[ended] -= 1
            totals["episodic_return"] += infos["episode"]["r"][ended].sum()
            totals["episodic_length"] += infos["episode"]["l"][ended].sum()
            totals["win_rate"] += (infos["episode"]["r"][ended] > 0).sum()
            for key in ("optimal_return", "optimal_length", "success"):
                if key in infos["final_info"]:
                    totals[key] = totals.get(key, 0.0) + infos["final_info"][key][ended].sum()
    envs.close()
    scores = {key: float(total) / args.eval_episodes for key, total in totals.items()}
    if "optimal_return" in scores:
        scores["optimality"] = scores["episodic_return"] / scores["optimal_return"]
    return scores | {"illegal_rate": float(illegal / steps)}


def eval_actions(
    agent: nn.Module, obs: np.ndarray, mask: np.ndarray, use_mask: bool, device: torch.device
) -> np.ndarray:
    """What the agent thinks best, from the host and to it: int64 (N,) or (N, K)."""
    b_mask = torch.from_numpy(mask).bool().to(device) if use_mask else None
    with torch.inference_mode():
        return agent.greedy(torch.from_numpy(obs).to(device), b_mask).cpu().numpy()


def masks_acting(args: Args) -> bool:
    """Whether the mask restricts what is played."""
    return args.mask_mode in ("mask", "naive")


def on_host(network: nn.Sequential) -> Callable[[np.ndarray], np.ndarray] | None:
    """A network of Linear, Tanh and ReLU layers as a NumPy function (N, D) -> (N, A); None if it has other layers.

    For a few rows, calling torch costs four times as much as the arithmetic. The function reads the network's own
    memory, so it follows the training.
    """
    functions = {nn.Tanh: np.tanh, nn.ReLU: lambda x: np.maximum(x, 0)}
    if not all(type(layer) in (nn.Linear, *functions) for layer in network):
        return None
    layers = [
        (layer.weight.detach().numpy().T, layer.bias.detach().numpy()) if type(layer) is nn.Linear else type(layer)
        for layer in network
    ]

    def forward(x: np.ndarray) -> np.ndarray:
        for layer in layers:
            x = x @ layer[0] + layer[1] if isinstance(layer, tuple) else functions[layer](x)
        return x

    return forward


def make_act(
    q_network: QNetwork, device: torch.device, rng: np.random.Generator
) -> Callable[[np.ndarray, np.ndarray | None, float], np.ndarray]:
    """A function that picks actions int64 (N,) for obs (N, D), masks (N, A) bool or None, and epsilon.

    With probability epsilon the action is uniform over the legal ones, else the best of them. On CPUs the network acts
    in NumPy if `on_host` takes its layers; any other, or a GPU, acts in torch.
    """

    def in_torch(obs: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return q_network(torch.from_numpy(obs).to(device)).cpu().numpy()

    forward = (on_host(q_network.network) if device.type == "cpu" else None) or in_torch

    def act(obs: np.ndarray, mask: np.ndarray | None, epsilon: float) -> np.ndarray:
        q_values = forward(obs)
        explore = rng.random(len(obs)) < epsilon
        q_values[explore] = rng.random((explore.sum(), q_values.shape[1]), np.float32)
        return (q_values if mask is None else np.where(mask, q_values, np.finfo(np.float32).min)).argmax(1)

    return act


def make_update(
    loss_function: Callable[[Any, tuple[Tensor | None, ...], Any], tuple[Tensor, Tensor]],
    agent: nn.Module,
    flat: nn.Parameter,
    optimizer: torch.optim.Adam,
    args: Args,
    world_size: int,
) -> Callable[[tuple[Tensor | None, ...]], Tensor]:
    """A function that takes one clipped Adam step on a minibatch, the mean over all ranks, and returns its METRICS.

    Args:
        loss_function: maps (a callable as the agent, minibatch, args) to the loss and its METRICS.
        agent, flat: the module, and the one vector that holds its parameters.
        optimizer: Adam over `flat`; its state is used with and without `args.compile`.
        args: `max_grad_norm` and `compile`.
        world_size: number of ranks.
    """

    def step() -> None:
        if world_size > 1:
            dist.all_reduce(flat.grad)
            flat.grad /= world_size
        norm = torch.linalg.vector_norm(flat.grad)
        flat.grad *= (args.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
        optimizer.step()

    def eager(mb: tuple[Tensor | None, ...]) -> Tensor:
        flat.grad.zero_()
        loss, metrics = loss_function(agent, mb, args)
        loss.backward()
        step()
        return metrics

    if not args.compile:
        return eager
    names, shapes = zip(*((name, p.shape) for name, p in agent.named_parameters()), strict=True)
    sizes = [shape.numel() for shape in shapes]

    def loss_of_vector(vector: Tensor, mb: tuple[Tensor | None, ...]) -> tuple[Tensor, Tensor]:
        views = (part.view(shape) for part, shape in zip(vector.split(sizes), shapes, strict=True))
        parameters = dict(zip(names, views, strict=True))
        return loss_function(lambda *inputs: torch.func.functional_call(agent, parameters, inputs), mb, args)

    gradient = torch.func.grad(loss_of_vector, has_aux=True)
    # On CPUs inductor then computes tanh as 2 / (1 + exp(-2x)) - 1, within 2e-7: 15 % off an update.
    options = {"fullgraph": True, "options": {"cpp_wrapper": True, "cpp.use_decompose_tanh": True}}
    if world_size > 1:  # the average over ranks stands between the gradient and the step
        graph = torch.compile(gradient, **options)

        def compiled_gradient(mb: tuple[Tensor | None, ...]) -> Tensor:
            with torch.no_grad():
                grad, metrics = graph(flat.detach(), mb)
            flat.grad.copy_(grad)
            step()
            return metrics

        return compiled_gradient

    # Forward, backward, clipping and Adam in one graph, with one vector for all parameters: little is left to call.
    beta1, beta2, eps = *optimizer.defaults["betas"], optimizer.defaults["eps"]

    def whole_step(vector: Tensor, state: dict[str, Tensor], lr: Tensor, mb: tuple[Tensor | None, ...]) -> Tensor:
        grad, metrics = gradient(vector, mb)
        grad = grad * (args.max_grad_norm / (torch.linalg.vector_norm(grad) + 1e-6)).clamp(max=1.0)
        state["step"].add_(1)
        mean = state["exp_avg"].lerp_(grad, 1 - beta1) / (1 - beta1 ** state["step"])
        square = state["exp_avg_sq"].lerp_(grad * grad, 1 - beta2) / (1 - beta2 ** state["step"])
        vector.sub_(lr * mean / (square.sqrt() + eps))
        return metrics

    graph, lr = torch.compile(whole_step, **options), torch.empty(())
    state = optimizer.state[flat]  # Adam's own, as after its first step, so that it is saved and restored as usual
    if not state:
        state |= {"step": torch.zeros(()), "exp_avg": torch.zeros_like(flat), "exp_avg_sq": torch.zeros_like(flat)}

    def compiled(mb: tuple[Tensor | None, ...]) -> Tensor:
        lr.fill_(optimizer.param_groups[0]["lr"])
        with torch.no_grad():
            return graph(flat.detach(), dict(state), lr, mb)

    return compiled


def check_args(args: Args, world_size: int) -> None:
    """Refuse what cannot work before any time is spent on it."""
    counts = ("num_envs", "train_frequency", "batch_size", "buffer_size", "total_timesteps", "target_network_frequency")
    check_shared_flags(args, (*counts, "num_threads", "hidden_dim"))
    steps = args.num_envs * args.train_frequency
    if args.num_envs % world_size or args.batch_size % world_size:
        raise ValueError(f"--num-envs {args.num_envs} and --batch-size {args.batch_size} are totals that the "
                         f"{world_size} ranks share; expected multiples of {world_size}.")  # fmt: skip
    if (updates := steps * args.replay_ratio / args.batch_size) != max(1, round(updates)):
        raise ValueError(f"--replay-ratio {args.replay_ratio}: {steps} environment steps (--num-envs x "
                         f"--train-frequency) would be followed by {updates:.4g} updates of --batch-size "
                         f"{args.batch_size}; expected a whole number, 1 or more.")  # fmt: skip
    if args.total_timesteps < steps:
        raise ValueError(f"--total-timesteps {args.total_timesteps} is less than one round of {steps} steps.")
    if args.buffer_size < max(steps, args.learning_starts):
        raise ValueError(f"--buffer-size {args.buffer_size} holds less than --learning-starts {args.learning_starts}, "
                         f"or less than the {steps} steps between updates.")  # fmt: skip


def main(args: Args) -> dict[str, float]:
    """Train, evaluate and write everything into runs/; returns the scores of the evaluation."""
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    checkpoint = None
    if path := args.eval_only or args.resume:
        checkpoint, args = load_checkpoint(path, args, "eval-only" if args.eval_only else "resume", SCRIPT)
    check_args(args, world_size)
    use_cuda = args.device == "cuda" or (args.device == "auto" and torch.cuda.is_available())
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if use_cuda else torch.device("cpu")
    torch.set_num_threads(args.num_threads)
    torch.use_deterministic_algorithms(args.torch_deterministic and use_cuda, warn_only=True)  # CPU kernels are anyway
    torch.manual_seed(args.seed)
    generator, rng = torch.Generator(device).manual_seed(args.seed + rank), np.random.default_rng(args.seed + rank)
    if world_size > 1:
        dist.init_process_group("cpu:gloo,cuda:nccl" if use_cuda else "gloo")

    num_envs, batch_size = args.num_envs // world_size, args.batch_size // world_size  # of this rank
    require_mask = args.mask_mode != "none"
    if args.capture_video:
        make_envs(args, 1, require_mask, "rgb_array").close()
    envs = make_envs(args, num_envs, require_mask)
    obs_shape, nvec = envs.single_observation_space.shape, tuple(envs.nvec.tolist())
    if len(nvec) > 1:
        raise ValueError(f"{args.env_id} has the action space {envs.single_action_space}; DQN takes Discrete, and "
                         f"ppo_action_mask.py takes MultiDiscrete and MultiBinary.")  # fmt: skip
    q_network, target_network = (QNetwork(obs_shape[0], nvec[0], args.hidden_dim).to(device) for _ in range(2))
    flat, target_flat = flat_parameters(q_network), flat_parameters(target_network)
    optimizer = torch.optim.Adam([flat], lr=args.learning_rate, fused=True)
    if checkpoint:
        if (tuple(checkpoint["obs_shape"]), tuple(checkpoint["nvec"])) != (obs_shape, nvec):
            raise ValueError(f"{path}: trained on {checkpoint['obs_shape']} observations and {checkpoint['nvec']} "
                             f"choices; {args.env_id} has {obs_shape} and {nvec}: another version of it.")  # fmt: skip
        q_network.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
    if args.eval_only:
        scores = [evaluate(q_network, args, device, use_mask) for use_mask in (masks_acting(args), False)]
        print(json.dumps(dict(zip(("as_trained", "no_mask"), scores, strict=True)), indent=2))
        return scores[0]
    if world_size > 1:
        dist.broadcast(flat.data, src=0)
    target_flat.data.copy_(flat.data)

    T, N = args.train_frequency, num_envs
    fields = {
        "obs": (obs_shape, torch.from_numpy(np.empty(0, flat_dtype(envs.raw_space))).dtype),
        "actions": ((), torch.int64),
        "rewards": ((), torch.float32),
        "terminations": ((), torch.bool),
        "next_obs": (obs_shape, torch.from_numpy(np.empty(0, flat_dtype(envs.raw_space))).dtype),
        "next_masks": ((nvec[0],), torch.bool),
    }
    replay = ReplayBuffer(args.buffer_size // world_size // (T * N) * (T * N), fields, device)
    if rank == 0:
        print(f"Replay buffer: {replay.capacity:,} transitions, {replay.nbytes / 2**20:,.1f} MiB on {device}")

    # START: a new run, or where a checkpoint left off
    next_obs, infos = envs.reset(seed=args.seed + rank * num_envs)
    next_mask, iteration = infos["action_mask"], 0
    if checkpoint:
        if len(checkpoint["ranks"]) != world_size:
            raise ValueError(f"--resume {path}: written by {len(checkpoint['ranks'])} ranks, not {world_size}; "
                             f"expected torchrun --nproc-per-node {len(checkpoint['ranks'])}.")  # fmt: skip
        iteration, mine = checkpoint["iteration"], checkpoint["ranks"][rank]
        generator.set_state(mine["generator"])
        rng.bit_generator.state = mine["rng"]
        torch.set_rng_state(mine["torch"])
        replay.set_state(mine["replay"])
        target_network.load_state_dict(checkpoint["target"])
        if mine["envs"] is None:
            print(f"{args.env_id} cannot be saved, so its environments restart; the agent and its optimizer continue.")
            next_obs, infos = envs.reset(seed=args.seed + rank * num_envs + iteration * args.num_envs)
            next_mask = infos["action_mask"]
        else:
            envs.set_state(swap_arrays(mine["envs"]))
            next_obs, next_mask = mine["next_obs"].numpy(), mine["next_mask"].numpy()
    run_dir = None  # of rank 0, which alone writes
    if rank == 0:
        step = iteration * args.num_envs * T
        run_dir, writer = open_run(args, Path(path).parent if checkpoint else None, step)
    stop = StopOnSignal()

    def save() -> None:
        mine = {
            "generator": generator.get_state(),
            "rng": rng.bit_generator.state,
            "torch": torch.get_rng_state(),
            "replay": replay.get_state(),
            "envs": swap_arrays(envs.get_state()),
            "next_obs": torch.from_numpy(next_obs),
            "next_mask": torch.from_numpy(next_mask),
            "weights_sum": flat.detach().double().sum().cpu(),  # equal on all ranks, whose weights are the same
        }
        ranks: list[Any] = [None] * world_size
        if world_size > 1:
            dist.all_gather_object(ranks, mine)
        if rank == 0:
            state = {
                "model": q_network.state_dict(),
                "target": target_network.state_dict(),
                "optimizer": optimizer.state_dict(),
                "iteration": iteration,
            }
            shapes = {"obs_shape": list(obs_shape), "nvec": list(nvec)}
            script = {"script": SCRIPT, "args": dict(vars(args)), "ranks": ranks if world_size > 1 else [mine]}
            save_checkpoint(run_dir / "checkpoint.pt", script | shapes | state)

    # Transitions are collected on the host and moved once: small writes cost less in NumPy, on CPUs as well.
    host = {
        "obs": np.empty((T, N, *obs_shape), np.float32),
        "actions": np.empty((T, N), np.int64),
        "rewards": np.empty((T, N), np.float32),
        "terminations": np.empty((T, N), bool),
        "next_obs": np.empty((T, N, *obs_shape), np.float32),
        "next_masks": np.empty((T, N, nvec[0]), bool),
    }
    host_masks = np.empty((T, N, nvec[0]), bool)
    act = make_act(q_network, device, rng)
    update = make_update(partial(td_loss, target_network), q_network, flat, optimizer, args, world_size)
    num_updates = round(args.num_envs * T * args.replay_ratio / args.batch_size)
    num_iterations = args.total_timesteps // (args.num_envs * T)
    log_every = max(1, num_iterations // 250)
    returns, lengths, metrics = [], [], torch.zeros(len(METRICS))
    start_time, first_iteration, last_return = time.time(), iteration, float("nan")
    bar = tqdm(total=num_iterations * N * T * world_size, initial=iteration * N * T * world_size, unit="step",
               unit_scale=True, disable=rank != 0)  # fmt: skip

    acting = masks_acting(args)
    stopping = False  # agreed by all ranks, so that all stop after the same iteration
    while iteration < num_iterations and not stopping:
        lr = args.learning_rate * (1 - iteration / num_iterations) if args.anneal_lr else args.learning_rate
        optimizer.param_groups[0]["lr"] = lr
        duration = args.exploration_fraction * args.total_timesteps
        epsilon = linear_schedule(args.start_e, args.end_e, duration, iteration * args.num_envs * T)

        # ROLLOUT: act in all environments
        for t in range(T):
            host["obs"][t], host_masks[t] = next_obs, next_mask
            host["actions"][t] = act(next_obs, host_masks[t] if acting else None, epsilon)
            next_obs, host["rewards"][t], host["terminations"][t], _, infos = envs.step(host["actions"][t])
            next_mask = infos["action_mask"]
            host["next_obs"][t], host["next_masks"][t] = next_obs, next_mask
            if "episode" in infos:  # the transition leads to the final state, not to the next episode's first
                ended = infos["_episode"]
                host["next_obs"][t, ended] = infos["final_obs"][ended]
                host["next_masks"][t, ended] = infos["final_info"]["action_mask"][ended]
                returns.extend(infos["episode"]["r"][ended])
                lengths.extend(infos["episode"]["l"][ended])
        illegal = illegal_actions(host["actions"].ravel(), host_masks.reshape(T * N, -1), envs.nvec)
        if args.mask_mode == "penalty":
            host["rewards"] += args.invalid_penalty * illegal.reshape(T, N)
        replay.add(host)
        iteration += 1
        global_step = iteration * N * T * world_size

        # UPDATE: as many minibatches as the replay ratio asks for, drawn at once
        if global_step >= args.learning_starts:
            samples = replay.sample(num_updates * batch_size, generator)
            splits = [field.split(batch_size) for field in samples]
            if args.mask_mode != "mask":
                splits[-1] = [None] * num_updates
            metrics = torch.stack([update(mb) for mb in zip(*splits, strict=True)]).mean(0)
            if global_step % args.target_network_frequency < N * T * world_size:
                target_flat.data.lerp_(flat.data, args.tau)

        check_finite(metrics, flat, global_step, run_dir)

        # LOG
        if rank == 0 and (iteration % log_every == 0 or iteration == num_iterations):
            if returns:
                last_return = float(np.mean(returns))
                writer.add_scalar("charts/episodic_return", last_return, global_step)
                writer.add_scalar("charts/episodic_length", float(np.mean(lengths)), global_step)
            sps = int((iteration - first_iteration) * N * T * world_size / (time.time() - start_time))
            writer.add_scalar("charts/learning_rate", lr, global_step)
            writer.add_scalar("charts/SPS", sps, global_step)
            writer.add_scalar("charts/epsilon", epsilon, global_step)
            for name, value in zip(METRICS, metrics.tolist(), strict=True):
                writer.add_scalar(f"losses/{name}", value, global_step)
            writer.add_scalar("masks/legal_fraction", host_masks.mean(), global_step)
            writer.add_scalar("masks/illegal_rate", illegal.mean(), global_step)
            returns.clear(), lengths.clear()
            bar.set_postfix_str(f"return {last_return:.2f}, {sps:,} steps/s", refresh=False)
        bar.update(N * T * world_size)
        stopping = bool(agreed(torch.tensor(float(stop.stopped_by is not None)), world_size) > 0)
        if args.checkpoint_every and iteration % args.checkpoint_every == 0:
            save()

    bar.close()
    stop.restore()
    if args.save_model or stopping:
        save()
    scores = {}
    if rank == 0:
        if stopping:
            name = stop.stopped_by.name if stop.stopped_by else "a signal to another rank"
            print(f"Stopped by {name}. Continue with --resume {run_dir / 'checkpoint.pt'}")
        else:
            scores = finish(q_network, args, device, run_dir, writer, num_iterations * N * T * world_size)
        writer.close()
    envs.close()
    if world_size > 1:
        dist.barrier()
        dist.destroy_process_group()
    return scores


def agreed(values: Tensor, world_size: int) -> Tensor:
    """The mean over all ranks, the same number on each, so that they decide alike."""
    if world_size > 1:
        values = values.clone()
        dist.all_reduce(values)
        values /= world_size
    return values


def finish(agent: nn.Module, args: Args, device: torch.device, run_dir: Path, writer: SummaryWriter, step: int) -> dict:
    """Evaluate as trained and with the mask removed, and write scores, HParams and pictures."""
    scores = {}
    if args.eval_episodes:
        as_trained, removed = (evaluate(agent, args, device, use_mask) for use_mask in (masks_acting(args), False))
        scores = as_trained | {f"{key}_no_mask": value for key, value in removed.items()}
        write_scores(writer, args, scores, step)
    if args.eval_episodes or args.capture_video:

        def act(envs: UniformVectorEnv, obs: np.ndarray, mask: np.ndarray) -> np.ndarray:
            return eval_actions(agent, obs, mask, masks_acting(args), device)

        gif = run_dir / "agent.gif" if args.capture_video else None
        write_pictures(writer, partial(make_envs, args, 1, args.mask_mode != "none"), act, gif, step)
    return scores


if __name__ == "__main__":
    main(tyro.cli(Args))
