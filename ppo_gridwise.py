"""Grid-wise PPO: one network acts for all agents on a map, one action for each cell that holds one.

    python ppo_gridwise.py                                            # Harvest: workers come and go
    python ppo_gridwise.py --env-kwargs height 16 width 16            # the same network on any map
    python ppo_gridwise.py --ratio joint                              # one clipped ratio for the whole team's action
    torchrun --nproc-per-node 2 ppo_gridwise.py                       # data-parallel, one rank a core or GPU
    tensorboard --logdir runs

Scores, minutes and spread over seeds of every environment are in the README.

References: Han et al. 2019, Grid-wise control for multi-agent RL, http://proceedings.mlr.press/v97/han19a
            Huang et al. 2021, Gym-microRTS, https://arxiv.org/abs/2105.13807
            Schulman et al. 2017, Proximal policy optimization algorithms, https://arxiv.org/abs/1707.06347
"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.distributed as dist
import torch.nn as nn
import tyro
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from envs.checkpoint import load_checkpoint, save_checkpoint, swap_arrays
from envs.runs import StopOnSignal, action_map, check_finite, check_shared_flags, open_run, write_pictures, write_scores
from envs.vector import UniformVectorEnv, make_vec, parse_env_kwargs

SCRIPT = "ppo_gridwise"
METRICS = ("policy_loss", "value_loss", "entropy", "old_approx_kl", "approx_kl", "clipfrac", "loss")


@dataclass
class Args:
    """Masked PPO for many agents on a grid."""

    # Experiment
    exp_name: str = "ppo_gridwise"
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
    env_id: str = "Masked/Harvest-v0"
    """any registered id; module:Id-v0 imports the module first"""
    env_kwargs: tuple[str, ...] = ()
    """arguments of the environment as pairs KEY VALUE; with --eval-only they replace the checkpoint's"""
    num_envs: int = 64
    """environments over all ranks, each stepped once before every action"""
    async_envs: bool = False
    """one process for each environment, for slow ones that others wrote"""

    # Mask
    mask_mode: Literal["mask", "naive", "penalty", "none"] = "mask"
    """mask: sample and learn with it; naive: sample with it only; penalty: illegal actions cost; none: ignore it"""
    invalid_penalty: float = -0.1
    """added to the reward for each illegal action under --mask-mode penalty"""

    # Algorithm
    total_timesteps: int = 1_000_000
    """environment steps over all environments and ranks"""
    num_steps: int = 16
    """steps of each environment in a rollout"""
    minibatch_size: int = 256
    """samples in a gradient step over all ranks; updates per sample decide learning, so this is no num_minibatches"""
    update_epochs: int = 4
    """passes over each rollout"""
    learning_rate: float = 3e-3
    """Adam's step size"""
    anneal_lr: bool = True
    """let the learning rate fall linearly to 0"""
    gamma: float = 0.99
    """discount"""
    gae_lambda: float = 0.95
    """lambda of generalized advantage estimation"""
    norm_adv: bool = True
    """normalize the advantages of a rollout to mean 0 and deviation 1, over all ranks"""
    clip_coef: float = 0.2
    """the ratio is clipped to 1 +- this"""
    clip_vloss: bool = True
    """clip the change of the value as well"""
    ent_coef: float = 0.01
    """weight of the entropy over legal actions"""
    vf_coef: float = 0.5
    """weight of the value loss"""
    max_grad_norm: float = 0.5
    """gradients are scaled down to this norm"""
    target_kl: float | None = None
    """end an update's epochs early beyond this approximate KL divergence"""
    ratio: Literal["joint", "agent"] = "agent"
    """joint: one clipped ratio for the action of all agents of a map; agent: one for each agent"""
    channels: int = 16
    """channels of the encoder at half of the map's size; twice as many at a quarter"""

    # Runtime
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA where there is a GPU"""
    torch_deterministic: bool = True
    """use deterministic kernels only"""
    compile: bool = False
    """compile gradient, clipping and Adam: about 10 s at the start (1 s from the cache), faster updates after"""
    num_threads: int = 1
    """torch's CPU threads in each process; small networks gain nothing from more"""


# The class to copy: it needs torch and einops only.
class CategoricalMasked:
    """Independent categorical distributions over the fields of an action, illegal choices with probability exactly 0.

    Their logits are replaced by the lowest finite number (never -inf: p * log p would be NaN), in a new tensor, so that
    they get no gradient either. All fields are computed at once. Half-precision logits are computed in float32, where
    no legal logit can come near the replacement. Huang & Ontanon 2020, section 3 (https://arxiv.org/abs/2006.14171).

    Args:
        logits: (..., sum(nvec)), any floating dtype.
        mask: bool of the same shape, True where legal, or None: all legal.
        nvec: choices in each of K fields; None for one field, whose actions then have no field axis.
        validate: look at the mask's values, which waits for the device; False if they were checked on the host.

    Raises:
        ValueError: the mask is not bool, has another shape, or leaves a field without a legal choice.

    >>> dist = CategoricalMasked(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[True, True, False]]))
    >>> dist.probs
    tensor([[0.2689, 0.7311, 0.0000]])
    """

    _cache: ClassVar[dict[tuple[tuple[int, ...], torch.device], Tensor]] = {}

    def __init__(self, logits: Tensor, mask: Tensor | None, nvec: tuple[int, ...] | None = None, validate: bool = True):
        if mask is not None and (mask.dtype != torch.bool or mask.shape != logits.shape):
            raise ValueError(
                f"The mask has shape {tuple(mask.shape)} and dtype {mask.dtype}; expected the logits' shape "
                f"{tuple(logits.shape)} and torch.bool, True where legal."
            )
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        self.single = nvec is None
        if nvec is not None and len(set(nvec)) == 1:
            logits = rearrange(logits, "... (k a) -> ... k a", k=len(nvec))
            mask = None if mask is None else rearrange(mask, "... (k a) -> ... k a", k=len(nvec))
        elif nvec is not None:  # fields of unequal size: pad all to the largest, with choices that are never legal
            place = self._places(nvec, logits.device)
            shape = (*logits.shape[:-1], len(nvec) * max(nvec))
            mask = torch.ones_like(logits, dtype=torch.bool) if mask is None else mask
            mask = rearrange(mask.new_zeros(shape).index_copy(-1, place, mask), "... (k a) -> ... k a", k=len(nvec))
            logits = rearrange(
                logits.new_zeros(shape).index_copy(-1, place, logits), "... (k a) -> ... k a", k=len(nvec)
            )
        self.mask = mask  # (..., A) or (..., K, A)
        if validate and mask is not None and not mask.any(-1).all():
            raise ValueError(
                f"No legal action in row {(~mask.any(-1)).nonzero()[0].tolist()}: all its entries are False."
            )
        self.lowest = torch.finfo(logits.dtype).min
        self.logits = logits if mask is None else torch.where(mask, logits, self.lowest)
        self._log_probs: Tensor | None = None

    @classmethod
    def _places(cls, nvec: tuple[int, ...], device: torch.device) -> Tensor:
        """Where the choices (sum(nvec),) stand among the K * max(nvec) padded ones."""
        if (nvec, device) not in cls._cache:  # functools.lru_cache would break torch.compile's graph
            with torch.inference_mode(False):  # made while acting, it must serve the backward pass as well
                parts = [k * max(nvec) + torch.arange(n, device=device) for k, n in enumerate(nvec)]
                cls._cache[nvec, device] = torch.cat(parts)
        return cls._cache[nvec, device]

    @property
    def probs(self) -> Tensor:
        """Probabilities (..., A), or (..., K, A) with fields padded to the largest."""
        return self.logits.softmax(-1)

    @property
    def mode(self) -> Tensor:
        """The most probable action: int64 (...), or (..., K)."""
        return self.logits.argmax(-1)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """A random action: int64 (...), or (..., K). The Gumbel-max trick, faster than torch.multinomial."""
        noisy = self.logits - torch.empty_like(self.logits).exponential_(generator=generator).log()
        # An exponential draw can be 0 in float32 and its noise +inf, so the mask comes after the noise.
        return (noisy if self.mask is None else torch.where(self.mask, noisy, self.lowest)).argmax(-1)

    @property
    def log_probs(self) -> Tensor:
        """Log-probabilities in the shape of `probs`; about the lowest finite number where illegal."""
        if self._log_probs is None:  # functools.cached_property would break torch.compile's graph
            self._log_probs = self.logits.log_softmax(-1)
        return self._log_probs

    def log_prob(self, action: Tensor) -> Tensor:
        """Log-probability (...) of `action` int64 (...) or (..., K), summed over fields."""
        log_prob = self.log_probs.gather(-1, action.unsqueeze(-1)).squeeze(-1)
        return log_prob if self.single else log_prob.sum(-1)

    def entropy(self) -> Tensor:
        """Entropy (...) in nats over legal actions, summed over fields."""
        # softmax(x) is ten times faster than log_softmax(x).exp() where x holds the lowest number (on CPUs).
        p_log_p = self.probs * (self.log_probs if self.mask is None else torch.where(self.mask, self.log_probs, 0.0))
        return -p_log_p.sum(-1) if self.single else -p_log_p.sum((-1, -2))


def layer_init(layer: nn.Linear, std: float = np.sqrt(2), bias_const: float = 0.0) -> nn.Linear:
    """Orthogonal weights of gain `std` and a constant bias."""
    nn.init.orthogonal_(layer.weight, std)
    nn.init.constant_(layer.bias, bias_const)
    return layer


# The class to copy, with the one above.
class CategoricalMap:
    """One action for each occupied cell of a map; the joint action of all of them is one sample.

    It computes on the occupied cells only. The joint log-probability is the sum over them, the entropy their mean; a
    map without agents has 0 for both. Han et al. 2019, section 4 (http://proceedings.mlr.press/v97/han19a).

    Args:
        logits: (B, A, H, W) for all cells, or (P, A) for the P occupied ones in the order of `mask.nonzero()`, from a
            head that computes no other.
        mask: (B, H, W) bool, True where the cell holds an agent.
        action_mask: (B, A, H, W) or (P, A) bool, True where legal, or None: all legal.
        nvec: choices in each of K fields of an agent's action, A in all; None for one field without an axis of its own.
        validate: look at the masks' values, which waits for the device; False if they were checked on the host.

    Raises:
        ValueError: as `CategoricalMasked`, for any agent.

    >>> logits, agents = torch.zeros(1, 3, 2, 2), torch.tensor([[[True, False], [False, True]]])
    >>> dist = CategoricalMap(logits, agents, None)
    >>> dist.log_prob(torch.tensor([[[0, 0], [2, 2]]])), dist.entropy()
    (tensor([-2.1972]), tensor([1.0986]))
    """

    def __init__(
        self,
        logits: Tensor,
        mask: Tensor,
        action_mask: Tensor | None,
        nvec: tuple[int, ...] | None = None,
        validate: bool = True,
    ):
        self.mask, self.maps = mask, mask.nonzero()[:, 0]  # (P,) the map of each agent
        self.agents = CategoricalMasked(self._gather(logits), self._gather(action_mask), nvec, validate)

    def _gather(self, values: Tensor | None) -> Tensor | None:
        """Values (P, A) of the occupied cells."""
        return values if values is None or values.dim() == 2 else rearrange(values, "b a h w -> b h w a")[self.mask]

    def scatter(self, actions: Tensor) -> Tensor:
        """Actions (P,) or (P, K) as a map (B, H, W) or (B, H, W, K), 0 where there is no agent."""
        full = actions.new_zeros((*self.mask.shape, *actions.shape[1:]))
        full[self.mask] = actions
        return full

    def sum(self, values: Tensor) -> Tensor:
        """The sum (B,) of values (P,) over the agents of each map."""
        return values.new_zeros(len(self.mask)).index_add(0, self.maps, values)

    @property
    def mode(self) -> Tensor:
        """The most probable action of each agent: int64 (B, H, W) or (B, H, W, K)."""
        return self.scatter(self.agents.mode)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """A random action for each agent: int64 (B, H, W) or (B, H, W, K)."""
        return self.scatter(self.agents.sample(generator))

    def log_prob(self, action: Tensor) -> Tensor:
        """Joint log-probability (B,) of `action` (B, H, W) or (B, H, W, K); `agents.log_prob` has each agent's."""
        return self.sum(self.agents.log_prob(action[self.mask]))

    def entropy(self) -> Tensor:
        """Entropy (B,) in nats, the mean over a map's agents."""
        return self.sum(self.agents.entropy()) / self.mask.sum((1, 2)).clamp(min=1)


class Agent(nn.Module):
    """An encoder of the whole map, which a decoder reads where agents stand and nowhere else; any height and width.

    Most cells hold no agent, so a decoder of full size would mostly compute what nobody acts on. Each agent gets what
    the encoder says at its place, at half and at a quarter of the size, and the 3 x 3 cells around it as they are: the
    skip connections, without which no place is finer than the encoder's.
    """

    def __init__(self, obs_shape: tuple[int, int, int], nvec: tuple[int, ...], channels: int):
        super().__init__()
        self.nvec = nvec if len(nvec) > 1 else None
        # --- adapt this to your env ---
        planes = obs_shape[0]
        self.encoder1 = layer_init(nn.Conv2d(planes, channels, 2, stride=2))
        self.encoder2 = layer_init(nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1))
        self.encoder3 = layer_init(nn.Conv2d(2 * channels, 2 * channels, 3, padding=1))
        self.decoder = layer_init(nn.Linear(9 * planes + 3 * channels, 4 * channels))
        self.actor = layer_init(nn.Linear(4 * channels, sum(nvec)), std=0.01)
        self.critic = nn.Sequential(
            layer_init(nn.Linear(4 * channels, 128)), nn.ReLU(), layer_init(nn.Linear(128, 1), std=1.0)
        )
        # ------------------------------

    def encode(self, obs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The maps (B, channels, H / 2, W / 2) and (B, 2 * channels, H / 4, W / 4), and values (B,) of (B, C, H, W)."""
        even = F.pad(obs, (0, -obs.shape[3] % 2, 0, -obs.shape[2] % 2))  # sizes are rounded up
        half = self.encoder1(even.to(torch.float32, memory_format=torch.channels_last)).relu()
        quarter = self.encoder3(self.encoder2(half).relu()).relu()
        pooled = torch.cat([quarter.mean((2, 3)), quarter.amax((2, 3))], dim=1)  # no size of the map is wired in
        return half, quarter, self.critic(pooled).squeeze(-1)

    def forward(self, obs: Tensor, agents: Tensor, legal: Tensor | None) -> tuple[CategoricalMap, Tensor]:
        """Distribution over the agents' actions, and values (B,).

        Args:
            obs: (B, C, H, W), any dtype.
            agents: (B, H, W) bool, where the P agents stand.
            legal: (P, A) bool, what each may do, checked on the host, or None: all.
        """
        half, quarter, values = self.encode(obs)
        b, y, x = agents.nonzero().unbind(1)  # (P,) each: where agents stand
        near = torch.arange(3, device=obs.device)
        rows, columns = y[:, None] + near, x[:, None] + near  # (P, 3) of the map with a margin of 1
        around = F.pad(obs, (1, 1, 1, 1))[b[:, None, None], :, rows[:, :, None], columns[:, None]]
        around = rearrange(around.float(), "p i j c -> p (i j c)")
        seen = torch.cat([around, half[b, :, y // 2, x // 2], quarter[b, :, y // 4, x // 4]], dim=1)
        logits = self.actor(self.decoder(seen).relu())  # (P, A)
        return CategoricalMap(logits, agents, legal, self.nvec, validate=False), values


def split_masks(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Where agents stand, (B, H, W), and what each of them may do, (P, A), from masks (B, 1 + A, H, W)."""
    agents = masks[:, 0]
    b, y, x = agents.nonzero().unbind(1)
    return agents, masks[b, 1:, y, x]


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


def compute_gae(
    rewards: Tensor, values: Tensor, next_values: Tensor, dones: Tensor, gamma: float, gae_lambda: float
) -> Tensor:
    """Advantages (T, N) by generalized advantage estimation (Schulman et al. 2016, https://arxiv.org/abs/1506.02438).

    Args:
        rewards, values: (T, N), of step t and of the state it was taken in.
        next_values: (T, N), value of the state that the step led to: 0 where it terminated, that of the final
            observation where it was truncated (truncation is not termination).
        dones: (T, N) bool, the step ended an episode either way.
        gamma, gae_lambda: discount and lambda.
    """
    advantages = rewards + gamma * next_values - values  # so far of one step
    carry = (gamma * gae_lambda * (~dones)).unbind()
    rows = advantages.unbind()  # views: indexing in the loop would cost more than the arithmetic
    for t in reversed(range(len(rows) - 1)):
        rows[t].addcmul_(carry[t], rows[t + 1])
    return advantages


def ppo_loss(agent: Any, mb: tuple[Tensor | None, ...], args: Args) -> tuple[Tensor, Tensor]:
    """The clipped loss of a minibatch of maps, and its terms as METRICS, (7,) without gradient.

    With `--ratio agent` the clipped objective is the mean over all agents of the minibatch, each with its map's
    advantage. With `--ratio joint` it is that of the maps, whose ratio is the product over their agents: with many
    agents it leaves the clipping range at once. Means over no agents are 0, not NaN.

    Args:
        agent: callable as `Agent`.
        mb: of the rollout's agents: actions (R,) or (R, K), masks (R, A) or None, old log-probabilities (R,); of the
            minibatch's maps: obs (B, C, H, W), which of those agents stands in a cell (B, H, W), -1 for none, and
            advantages, returns and old values (B,).
        args: coefficients.
    """
    b_actions, b_legal, b_logprobs, mb_obs, mb_rows, mb_advantages, mb_returns, mb_values = mb
    agents = mb_rows >= 0
    rows = mb_rows[agents]  # (P,)
    policy, newvalue = agent(mb_obs, agents, None if b_legal is None else b_legal[rows])
    logratio = policy.agents.log_prob(b_actions[rows]) - b_logprobs[rows]  # (P,)
    advantages = mb_advantages[policy.maps]
    if args.ratio == "joint":
        logratio, advantages = policy.sum(logratio), mb_advantages
    ratio = logratio.exp()
    clipped = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
    count = max(len(ratio), 1)
    pg_loss = -torch.min(advantages * ratio, advantages * clipped).sum() / count

    v_loss = (newvalue - mb_returns) ** 2
    if args.clip_vloss:
        v_clipped = mb_values + (newvalue - mb_values).clamp(-args.clip_coef, args.clip_coef)
        v_loss = torch.max(v_loss, (v_clipped - mb_returns) ** 2)
    v_loss = 0.5 * v_loss.mean()

    entropy_loss = policy.entropy().mean()
    loss = pg_loss - args.ent_coef * entropy_loss + args.vf_coef * v_loss
    with torch.no_grad():
        approx_kl = (ratio - 1 - logratio).sum() / count  # http://joschu.net/blog/kl-approx.html
        clipfrac = (clipped != ratio).float().sum() / count
        metrics = torch.stack((pg_loss, v_loss, entropy_loss, -logratio.sum() / count, approx_kl, clipfrac, loss))
    return loss, metrics


def make_envs(args: Args, num_envs: int, require_mask: bool, render_mode: str | None = None) -> UniformVectorEnv:
    """The environments that the flags ask for."""
    return make_vec(
        args.env_id,
        num_envs,
        parse_env_kwargs(args.env_kwargs),
        args.async_envs,
        require_mask,
        layout="grid",
        render_mode=render_mode,
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
    """Sampled actions, from the host and to it: int64 (N, H, W) or (N, H, W, K).

    Not the most probable ones: agents that play deterministically and want the same cell wait for each other for ever.
    """
    agents, legal = split_masks(torch.from_numpy(mask).bool().to(device))
    with torch.inference_mode():
        policy, _ = agent(torch.from_numpy(obs).to(device), agents, legal if use_mask else None)
        return policy.sample().cpu().numpy()


def masks_acting(args: Args) -> bool:
    """Whether the mask restricts what is played."""
    return args.mask_mode in ("mask", "naive")


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
    batch_size = args.num_envs * args.num_steps
    counts = ("num_envs", "num_steps", "minibatch_size", "update_epochs", "total_timesteps", "num_threads")
    check_shared_flags(args, (*counts, "channels"))
    if args.num_envs % world_size or args.minibatch_size % world_size:
        raise ValueError(f"--num-envs {args.num_envs} and --minibatch-size {args.minibatch_size} are totals that the "
                         f"{world_size} ranks share; expected multiples of {world_size}.")  # fmt: skip
    if batch_size % args.minibatch_size:
        raise ValueError(f"--minibatch-size {args.minibatch_size} does not divide a rollout, --num-envs {args.num_envs}"
                         f" x --num-steps {args.num_steps} = {batch_size} samples; expected a divisor.")  # fmt: skip
    if args.total_timesteps < batch_size:
        raise ValueError(f"--total-timesteps {args.total_timesteps} is less than one rollout of {batch_size} steps.")


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
    generator = torch.Generator(device).manual_seed(args.seed + rank)
    if world_size > 1:
        dist.init_process_group("cpu:gloo,cuda:nccl" if use_cuda else "gloo")

    num_envs, minibatch_size = args.num_envs // world_size, args.minibatch_size // world_size  # of this rank
    require_mask = args.mask_mode != "none"
    if args.capture_video:
        make_envs(args, 1, require_mask, "rgb_array").close()
    envs = make_envs(args, num_envs, require_mask)
    obs_shape, nvec = envs.single_observation_space.shape, tuple(envs.nvec.tolist())
    agent = Agent(obs_shape, nvec, args.channels).to(device)
    flat = flat_parameters(agent)
    optimizer = torch.optim.Adam([flat], lr=args.learning_rate, eps=1e-5, fused=True)
    if checkpoint:
        kept = slice(1 if args.eval_only else None)  # the planes: an agent plays on maps of any size
        if (tuple(checkpoint["obs_shape"][kept]), tuple(checkpoint["nvec"])) != (obs_shape[kept], nvec):
            raise ValueError(f"{path}: trained on {checkpoint['obs_shape']} observations and {checkpoint['nvec']} "
                             f"choices; {args.env_id} has {obs_shape} and {nvec}: another version of it.")  # fmt: skip
        agent.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
    if args.eval_only:
        scores = [evaluate(agent, args, device, use_mask) for use_mask in (masks_acting(args), False)]
        print(json.dumps(dict(zip(("as_trained", "no_mask"), scores, strict=True)), indent=2))
        return scores[0]
    if world_size > 1:
        dist.broadcast(flat.data, src=0)

    # START: a new run, or where a checkpoint left off
    next_obs, infos = envs.reset(seed=args.seed + rank * num_envs)
    next_mask, iteration = infos["action_mask"], 0
    if checkpoint:
        if len(checkpoint["ranks"]) != world_size:
            raise ValueError(f"--resume {path}: written by {len(checkpoint['ranks'])} ranks, not {world_size}; "
                             f"expected torchrun --nproc-per-node {len(checkpoint['ranks'])}.")  # fmt: skip
        iteration, mine = checkpoint["iteration"], checkpoint["ranks"][rank]
        generator.set_state(mine["generator"])
        torch.set_rng_state(mine["torch"])
        if mine["envs"] is None:
            print(f"{args.env_id} cannot be saved, so its environments restart; the agent and its optimizer continue.")
            next_obs, infos = envs.reset(seed=args.seed + rank * num_envs + iteration * args.num_envs)
            next_mask = infos["action_mask"]
        else:
            envs.set_state(swap_arrays(mine["envs"]))
            next_obs, next_mask = mine["next_obs"].numpy(), mine["next_mask"].numpy()
    run_dir = None  # of rank 0, which alone writes
    if rank == 0:
        step = iteration * args.num_envs * args.num_steps
        run_dir, writer = open_run(args, Path(path).parent if checkpoint else None, step)
    stop = StopOnSignal()

    def save() -> None:
        mine = {
            "generator": generator.get_state(),
            "torch": torch.get_rng_state(),
            "envs": swap_arrays(envs.get_state()),
            "next_obs": torch.from_numpy(next_obs),
            "next_mask": torch.from_numpy(next_mask),
            "weights_sum": flat.detach().double().sum().cpu(),  # equal on all ranks, whose weights are the same
        }
        ranks: list[Any] = [None] * world_size
        if world_size > 1:
            dist.all_gather_object(ranks, mine)
        if rank == 0:
            state = {"model": agent.state_dict(), "optimizer": optimizer.state_dict(), "iteration": iteration}
            shapes = {"obs_shape": list(obs_shape), "nvec": list(nvec)}
            script = {"script": SCRIPT, "args": dict(vars(args)), "ranks": ranks if world_size > 1 else [mine]}
            save_checkpoint(run_dir / "checkpoint.pt", script | shapes | state)

    T, N, A = args.num_steps, num_envs, sum(nvec)
    # A rollout is collected on the host and moved once: small writes cost less in NumPy, on CPUs as well.
    host_obs = np.empty((T + 1, N, *obs_shape), next_obs.dtype)  # the last row is the state after the rollout
    host_masks = np.empty((T, N, 1 + A, *obs_shape[1:]), bool)
    host_actions = np.empty((T, N, *envs.single_action_space.shape), np.int64)
    host_rewards = np.empty((T, N), np.float32)
    host_terminations, host_truncations = np.empty((2, T, N), bool)
    buffers = (host_obs, host_masks, host_actions, host_rewards, host_terminations, host_truncations)
    update = make_update(ppo_loss, agent, flat, optimizer, args, world_size)
    num_iterations = args.total_timesteps // (args.num_envs * T)
    log_every = max(1, num_iterations // 250)
    returns, lengths, final_obs = [], [], []
    start_time, first_iteration, last_return = time.time(), iteration, float("nan")
    bar = tqdm(total=num_iterations * N * T * world_size, initial=iteration * N * T * world_size, unit="step",
               unit_scale=True, disable=rank != 0)  # fmt: skip

    acting = masks_acting(args)
    stopping = False  # agreed by all ranks, so that all stop after the same iteration
    while iteration < num_iterations and not stopping:
        lr = args.learning_rate * (1 - iteration / num_iterations) if args.anneal_lr else args.learning_rate
        optimizer.param_groups[0]["lr"] = lr

        # ROLLOUT: act in all environments. Values and log-probabilities follow in one batch after it.
        final_obs.clear()
        for t in range(T):
            host_obs[t], host_masks[t] = next_obs, next_mask
            agents, legal = split_masks(torch.from_numpy(host_masks[t]).to(device))
            with torch.inference_mode():
                policy, _ = agent(torch.from_numpy(next_obs).to(device), agents, legal if acting else None)
                host_actions[t] = policy.sample(generator).cpu().numpy()
            next_obs, host_rewards[t], terminated, truncated, infos = envs.step(host_actions[t])
            next_mask = infos["action_mask"]
            host_terminations[t], host_truncations[t] = terminated, truncated & ~terminated
            if "episode" in infos:
                returns.extend(infos["episode"]["r"][infos["_episode"]])
                lengths.extend(infos["episode"]["l"][infos["_episode"]])
                final_obs.append(infos["final_obs"][host_truncations[t]])
        host_obs[T] = next_obs
        illegal = envs.illegal(
            host_actions.reshape(N * T, *host_actions.shape[2:]), host_masks.reshape(N * T, 1 + A, *obs_shape[1:])
        )
        num_agents = host_masks[:, :, 0].sum((2, 3))
        if args.mask_mode == "penalty":
            host_rewards += args.invalid_penalty * illegal.reshape(T, N) * num_agents

        # ADVANTAGES
        obs, masks, actions, rewards, terminations, truncations = (torch.from_numpy(b).to(device) for b in buffers)
        b_obs, (b_agents, legal) = obs[:T].flatten(0, 1), split_masks(masks.flatten(0, 1))
        # Few cells hold an agent, so what belongs to agents is kept in rows (R, ...) from here on, and no more in maps.
        b_actions = actions.flatten(0, 1)[b_agents]
        b_rows = torch.full(b_agents.shape, -1, device=device)
        b_rows[b_agents] = torch.arange(len(b_actions), device=device)
        # naive: without the mask from here on, the old log-probability too, so that the ratio starts at 1
        b_legal = legal if args.mask_mode == "mask" else None
        with torch.no_grad():
            policy, values = agent(b_obs, b_agents, b_legal)
            b_logprobs = policy.agents.log_prob(b_actions)
            values = torch.cat([values, agent.encode(obs[T])[2]]).view(T + 1, N)
            next_values = values[1:].masked_fill(terminations, 0.0)
            if final_obs:  # bootstrap from the final observation, not from the next episode's first
                next_values[truncations] = agent.encode(torch.from_numpy(np.concatenate(final_obs)).to(device))[2]
            dones = terminations | truncations
            advantages = compute_gae(rewards, values[:T], next_values, dones, args.gamma, args.gae_lambda)
            b_values, b_returns = values[:T].flatten(), (advantages + values[:T]).flatten()
            b_advantages = advantages.flatten()
            if args.norm_adv:  # over the whole rollout and all ranks, once
                sums = torch.stack((b_advantages.sum(), b_advantages.square().sum()))
                if world_size > 1:
                    dist.all_reduce(sums)
                mean, square = sums / (N * T * world_size)
                b_advantages = (b_advantages - mean) / ((square - mean**2).clamp(min=0).sqrt() + 1e-8)

        # UPDATE: every field of the batch is shuffled once an epoch and cut into minibatches
        batch = (b_obs, b_rows, b_advantages, b_returns, b_values)
        tables = (b_actions, b_legal, b_logprobs)
        # A spare row, for an empty table does not compile.
        rows = [None if b is None else torch.cat([b, b.new_zeros(1, *b.shape[1:])]) for b in tables]
        if args.compile:  # R changes: without this the second rollout would compile again
            for b in filter(torch.is_tensor, rows):
                torch._dynamo.maybe_mark_dynamic(b, 0)
        for _ in range(args.update_epochs):
            b_inds = torch.randperm(N * T, generator=generator, device=device)
            splits = [b[b_inds].split(minibatch_size) for b in batch]
            metrics = torch.stack([update((*rows, *mb)) for mb in zip(*splits, strict=True)]).mean(0)
            # Written so that a NaN, which compares as False, ends the epochs too.
            if args.target_kl is not None and not agreed(metrics, world_size)[4] <= args.target_kl:
                break
        iteration += 1
        global_step = iteration * N * T * world_size

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
            for name, value in zip(METRICS[:-1], metrics.tolist(), strict=False):
                writer.add_scalar(f"losses/{name}", value, global_step)
            explained = 1 - (b_returns - b_values).var() / b_returns.var()
            writer.add_scalar("losses/explained_variance", explained.item(), global_step)
            writer.add_scalar("charts/agents", num_agents.mean(), global_step)
            writer.add_scalar("masks/legal_fraction", legal.sum() / max(legal.numel(), 1), global_step)
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
            scores = finish(agent, args, device, run_dir, writer, num_iterations * N * T * world_size)
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
    """Evaluate as trained and with the mask removed, and write scores, HParams, action maps and pictures."""
    scores = {}
    if args.eval_episodes:
        as_trained, removed = (evaluate(agent, args, device, use_mask) for use_mask in (masks_acting(args), False))
        scores = as_trained | {f"{key}_no_mask": value for key, value in removed.items()}
        write_scores(writer, args, scores, step)
    if args.eval_episodes or args.capture_video:

        def act(envs: UniformVectorEnv, obs: np.ndarray, mask: np.ndarray) -> np.ndarray:
            return eval_actions(agent, obs, mask, masks_acting(args), device)

        gif = run_dir / "agent.gif" if args.capture_video else None
        make_one = partial(make_envs, args, 1, args.mask_mode != "none")
        moments = write_pictures(writer, make_one, act, gif, step)
        _, mask, actions = max(moments, key=lambda moment: moment[1][:, 0].sum())  # when most agents act
        nvec = np.array(agent.nvec or [mask.shape[1] - 1])
        writer.add_image("actions", action_map(actions[0], mask[0, 0], nvec), step, dataformats="HWC")
    return scores


if __name__ == "__main__":
    main(tyro.cli(Args))
