"""Grid-wise PPO: one network acts for all agents on a map, one action for each cell that holds one.

    python ppo_gridwise.py                                            # Harvest: workers come and go
    python ppo_gridwise.py --env-kwargs height 16 width 16            # the same network on any map
    python ppo_gridwise.py --ratio joint                              # one clipped ratio for the whole team's action
    torchrun --nproc-per-node 2 ppo_gridwise.py                       # data-parallel, one rank a core or GPU
    tensorboard --logdir runs

Scores, minutes and spread over seeds of every environment are in docs/results.md.

References: Han et al. 2019, Grid-wise control for multi-agent RL, http://proceedings.mlr.press/v97/han19a
            Huang et al. 2021, Gym-microRTS, https://arxiv.org/abs/2105.13807
            Schulman et al. 2017, Proximal policy optimization algorithms, https://arxiv.org/abs/1707.06347
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn as nn
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from experiment import Adam, Flags, Run
from experiment.flags import Count, NonNegative, Positive, Share, check_rollout, parse

METRICS = ("policy_loss", "value_loss", "entropy", "old_approx_kl", "approx_kl", "clipfrac", "loss")


@dataclass
class Args(Flags):
    """Masked PPO for many agents on a grid."""

    env_id: str = "Masked/Harvest-v0"
    num_steps: Count = 16
    """steps of each environment in a rollout"""
    minibatch_size: Count = 256
    """samples in a gradient step over all ranks; unlike CleanRL's num_minibatches, it stays when num_envs changes"""
    update_epochs: Count = 4
    """passes over each rollout"""
    learning_rate: Positive = 3e-3
    """Adam's step size"""
    anneal_lr: bool = True
    """let the learning rate fall linearly to 0"""
    gamma: Share = 0.99
    """discount"""
    gae_lambda: Share = 0.95
    """lambda of generalized advantage estimation"""
    norm_adv: bool = True
    """normalize the advantages of a rollout to mean 0 and deviation 1, over all ranks"""
    clip_coef: Positive = 0.2
    """the ratio is clipped to 1 +- this"""
    clip_vloss: bool = True
    """clip the change of the value as well"""
    ent_coef: NonNegative = 0.01
    """weight of the entropy over legal actions"""
    vf_coef: NonNegative = 0.5
    """weight of the value loss"""
    max_grad_norm: Positive = 0.5
    """gradients are scaled down to this norm"""
    target_kl: Positive | None = None
    """end an update's epochs early beyond this approximate KL divergence"""
    ratio: Literal["joint", "agent"] = "agent"
    """joint: one clipped ratio for all agents of a map; agent: one for each, with the team's advantage, as MAPPO's"""
    count_unused: bool = True
    """keep fields that an order does not use, as the direction of one that is no move, in ratio and entropy"""
    channels: Count = 16
    """channels of the encoder at half of the map's size; twice as many at a quarter"""

    def check(self, world_size: int) -> int:
        """Refuse what does not fit together; returns the environment steps of a rollout."""
        return check_rollout(self, world_size)


# The class to copy: it needs torch and einops only.
class CategoricalMasked:
    """Independent categorical distributions over the fields of an action, illegal choices with probability exactly 0.

    Their logits are replaced by the dtype's lowest finite number (not -inf, with which p * log p is NaN), in a new
    tensor, so that they get no gradient either. Legal logits are clamped at half of that number, so that even -inf
    stays above illegal ones; +inf and NaN pass, and make the loss NaN. All fields are computed at once, half-precision
    logits in float32. Huang & Ontanon 2020, section 3 (https://arxiv.org/abs/2006.14171).

    Args:
        logits: (..., sum(nvec)), any floating dtype.
        mask: bool of the same shape, True where legal, or None: all legal.
        nvec: choices in each of K fields; None for one field, whose actions then have no field axis.
        validate: look at the mask's values, which waits for the device; False if they were checked on the host.

    Raises:
        ValueError: the mask is not bool, has another shape, or leaves a field without a legal choice; `nvec` does not
            add up to the logits, or has a field without choices.

    >>> dist = CategoricalMasked(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[True, True, False]]))
    >>> dist.probs
    tensor([[0.2689, 0.7311, 0.0000]])
    """

    _cache: ClassVar[dict[tuple[tuple[int, ...], torch.device], Tensor]] = {}

    def __init__(self, logits: Tensor, mask: Tensor | None, nvec: tuple[int, ...] | None = None, validate: bool = True):
        mask = torch.ones_like(logits, dtype=torch.bool) if mask is None else mask
        if mask.dtype != torch.bool or mask.shape != logits.shape:
            raise ValueError(
                f"The mask has shape {tuple(mask.shape)} and dtype {mask.dtype}; expected the logits' shape "
                f"{tuple(logits.shape)} and torch.bool, True where legal."
            )
        nvec = nvec if nvec is None else tuple(int(n) for n in nvec)  # a list or an array will do, of int8 as well
        if nvec is not None and (sum(nvec) != logits.shape[-1] or min(nvec) < 1):
            raise ValueError(
                f"nvec={nvec} has {sum(nvec)} choices; expected {logits.shape[-1]}, as the logits, 1 or more a field."
            )
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        self.single = nvec is None
        if nvec is not None and len(set(nvec)) > 1:  # pad fields to the largest, with choices that are never legal
            place = self._places(nvec, logits.device)
            shape = (*logits.shape[:-1], len(nvec) * max(nvec))
            mask = mask.new_zeros(shape).index_copy(-1, place, mask)
            logits = logits.new_zeros(shape).index_copy(-1, place, logits)
        if nvec is not None:
            mask = rearrange(mask, "... (k a) -> ... k a", k=len(nvec))
            logits = rearrange(logits, "... (k a) -> ... k a", k=len(nvec))
        self.mask = mask  # (..., A) or (..., K, A)
        if validate and not mask.any(-1).all():
            raise ValueError(
                f"No legal action in row {(~mask.any(-1)).nonzero()[0].tolist()}: all its entries are False."
            )
        self.lowest = torch.finfo(logits.dtype).min
        self.logits = torch.where(mask, logits.clamp(min=self.lowest / 2), self.lowest)
        self._log_probs: Tensor | None = None

    @classmethod
    def _places(cls, nvec: tuple[int, ...], device: torch.device) -> Tensor:
        """Where the choices (sum(nvec),) stand among the K * max(nvec) padded ones."""
        parts = (k * max(nvec) + torch.arange(n, device=device) for k, n in enumerate(nvec))
        if torch.compiler.is_compiling():  # a graph, and torch.export, keep it themselves
            return torch.cat([*parts])
        if (nvec, device) not in cls._cache:
            with torch.inference_mode(False):  # made while acting, it must serve the backward pass as well
                cls._cache[nvec, device] = torch.cat([*parts])
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
        centred = self.logits - self.logits.amax(-1, keepdim=True)  # beside a logit of 1e7 the noise would be lost
        noisy = centred - torch.empty_like(self.logits).exponential_(generator=generator).log()
        # An exponential draw can be 0 in float32 and its noise +inf, so the mask comes after the noise.
        return torch.where(self.mask, noisy, self.lowest).argmax(-1)

    @property
    def log_probs(self) -> Tensor:
        """Log-probabilities in the shape of `probs`; about the lowest finite number where illegal."""
        grad = torch.is_grad_enabled() and self.logits.requires_grad  # what no_grad has left has no gradient
        if self._log_probs is None or (grad and not self._log_probs.requires_grad):
            self._log_probs = self.logits.log_softmax(-1)  # functools.cached_property would break torch.compile's graph
        return self._log_probs

    def log_prob(self, action: Tensor) -> Tensor:
        """Log-probability (...) of `action` int64 (...) or (..., K), summed over fields; other shapes: ValueError."""
        if action.shape != self.logits.shape[:-1]:
            expected = tuple(self.logits.shape[:-1])
            raise ValueError(f"The action has shape {tuple(action.shape)}; expected {expected}.")
        log_prob = self.log_probs.gather(-1, action.unsqueeze(-1)).squeeze(-1)
        return log_prob if self.single else log_prob.sum(-1).clamp(min=self.lowest)

    def entropy(self) -> Tensor:
        """Entropy (...) in nats over legal actions, summed over fields."""
        # softmax(x) is ten times faster than log_softmax(x).exp() where x holds the lowest number (on CPUs).
        p_log_p = self.probs * torch.where(self.mask, self.log_probs, 0.0)
        return -p_log_p.sum(-1) if self.single else -p_log_p.sum((-1, -2))


# The class to copy, with the one above.
class CategoricalMap:
    """One action for each occupied cell of a map; the joint action of all of them is one sample.

    It computes on the occupied cells only. `log_prob` is the joint one, the sum over agents; `entropy` is their mean,
    so that its bonus does not grow with the team; a map without agents has 0 for both. Han et al. 2019, section 4
    (http://proceedings.mlr.press/v97/han19a).

    Args:
        logits: (B, A, H, W) for all cells, or (P, A) for the P occupied ones in the order of `mask.nonzero()`, from a
            head that computes no other.
        mask: (B, H, W) bool, True where the cell holds an agent.
        action_mask: (B, A, H, W) or (P, A) bool, True where legal, or None: all legal.
        nvec: choices in each of K fields of an agent's action, A in all; None for one field without an axis of its own.
        validate: look at the masks' values, which waits for the device; False if they were checked on the host.

    Raises:
        ValueError: as `CategoricalMasked`, for any agent; a mask of cells that is not bool, logits or an action mask
            that are neither of its B, H and W nor of its P agents.

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
        if mask.dtype != torch.bool or mask.dim() != 3:
            raise ValueError(
                f"The mask of cells has shape {tuple(mask.shape)} and dtype {mask.dtype}; expected (B, H, W) and "
                f"torch.bool, True where the cell holds an agent."
            )
        self.mask, self.map_index = mask, mask.nonzero()[:, 0]  # (P,) which map each agent is on
        legal = self._gather("An action mask", action_mask)
        self.agents = CategoricalMasked(self._gather("Logits", logits), legal, nvec, validate)

    def _gather(self, name: str, values: Tensor | None) -> Tensor | None:
        """Values (P, A) of the occupied cells."""
        if values is None or (values.dim() == 2 and len(values) == len(self.map_index)):
            return values
        if values.dim() == 4 and (len(values), *values.shape[2:]) == tuple(self.mask.shape):
            return rearrange(values, "b a h w -> b h w a")[self.mask]
        b, h, w = self.mask.shape
        raise ValueError(
            f"{name} of shape {tuple(values.shape)}; expected ({b}, A, {h}, {w}) for all cells of the "
            f"mask, or ({len(self.map_index)}, A) for the occupied ones."
        )

    def scatter(self, actions: Tensor) -> Tensor:
        """Actions (P,) or (P, K) as a map (B, H, W) or (B, H, W, K), 0 where there is no agent."""
        full = actions.new_zeros((*self.mask.shape, *actions.shape[1:]))
        full[self.mask] = actions
        return full

    def sum(self, values: Tensor) -> Tensor:
        """The sum (B,) of values (P,) over the agents of each map."""
        return values.new_zeros(len(self.mask)).index_add(0, self.map_index, values)

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


def drop_unused(actions: Tensor, legal: Tensor, uses: Tensor, nvec: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Actions and masks in which a field that the chosen order does not use has one legal entry, the first.

    Its log-probability, entropy and gradient are then 0: the direction of an order that is no move is no decision.

    Args:
        actions: (P, K), what P agents do.
        legal: (P, A) bool, what each may do.
        uses: (nvec[0], K) bool, which fields count for each choice in field 0.
        nvec: choices in each field.
    """
    unused = ~uses[actions[:, 0]]  # (P, K)
    sizes = torch.tensor(nvec, device=actions.device)
    first = torch.zeros_like(legal).index_fill(1, sizes.cumsum(0) - sizes, True)
    return actions.masked_fill(unused, 0), torch.where(unused.repeat_interleave(sizes, dim=1), first, legal)


def layer_init(layer: nn.Linear, std: float = np.sqrt(2), bias_const: float = 0.0) -> nn.Linear:
    """Orthogonal weights of gain `std` and a constant bias."""
    nn.init.orthogonal_(layer.weight, std)
    nn.init.constant_(layer.bias, bias_const)
    return layer


class Agent(nn.Module):
    """An encoder of the whole map, which a decoder reads where agents stand and nowhere else; any height and width.

    Most cells hold no agent, so a decoder of full size, as GridNet's, would mostly compute what nobody acts on. This
    one reads the encoder's features at each agent's place, at half and at a quarter of the resolution, and the 3 x 3
    cells around it as they are, a skip connection that keeps the full resolution.
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

    def forward(self, obs: Tensor, agents: Tensor, legal: Tensor) -> tuple[CategoricalMap, Tensor]:
        """Distribution over the agents' actions, and values (B,).

        Args:
            obs: (B, C, H, W), any dtype.
            agents: (B, H, W) bool, where the P agents stand.
            legal: (P, A) bool, what each may do, checked on the host.
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

    Raises:
        ValueError: dones are not bool, whose inverse would be another number, or a shape is another.
    """
    if dones.dtype != torch.bool or not rewards.shape == values.shape == next_values.shape == dones.shape:
        found = ", ".join(f"{tuple(x.shape)} {x.dtype}" for x in (rewards, values, next_values, dones))
        raise ValueError(f"rewards, values, next_values and dones are {found}; expected (T, N) each, dones bool.")
    advantages = rewards + gamma * next_values - values  # so far of one step
    carry = (gamma * gae_lambda * (~dones).to(advantages.dtype)).unbind()
    rows = advantages.unbind()  # views: indexing in the loop would cost more than the arithmetic
    for t in reversed(range(len(rows) - 1)):
        rows[t].addcmul_(carry[t], rows[t + 1])
    return advantages


def ppo_loss(agent: nn.Module, mb: tuple[Tensor, ...], args: Args) -> tuple[Tensor, Tensor]:
    """The clipped loss of a minibatch of maps, and its terms as METRICS, (7,) without gradient.

    With `--ratio agent` the clipped objective is the mean over all agents of the minibatch, each with its map's
    advantage. With `--ratio joint` it is that of the maps, whose ratio is the product over their agents: with many
    agents it leaves the clipping range at once. Means over no agents are 0, not NaN.

    Args:
        agent: as `Agent`.
        mb: of the rollout's agents: actions (R,) or (R, K), masks (R, A), old log-probabilities (R,); of the
            minibatch's maps: obs (B, C, H, W), which of those agents stands in a cell (B, H, W), -1 for none, and
            advantages, returns and old values (B,).
        args: coefficients.
    """
    b_actions, b_legal, b_logprobs, mb_obs, mb_rows, mb_advantages, mb_returns, mb_values = mb
    agents = mb_rows >= 0
    rows = mb_rows[agents]  # (P,)
    policy, newvalue = agent(mb_obs, agents, b_legal[rows])
    logratio = policy.agents.log_prob(b_actions[rows]) - b_logprobs[rows]  # (P,)
    advantages = mb_advantages[policy.map_index]
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

    entropy_loss = policy.agents.entropy().sum() / max(len(policy.map_index), 1)  # the mean over agents' decisions
    loss = pg_loss - args.ent_coef * entropy_loss + args.vf_coef * v_loss
    with torch.no_grad():
        approx_kl = (ratio - 1 - logratio).sum() / count  # http://joschu.net/blog/kl-approx.html
        clipfrac = (clipped != ratio).float().sum() / count
        metrics = torch.stack((pg_loss, v_loss, entropy_loss, -logratio.sum() / count, approx_kl, clipfrac, loss))
    return loss, metrics


def update(agent: nn.Module, optimizer: Adam, mb: tuple[Tensor, ...], args: Args, mean: Callable) -> Tensor:
    """One step of Adam along the clipped gradient of a minibatch, its `mean` over all ranks; returns METRICS, (7,)."""
    loss, metrics = ppo_loss(agent, mb, args)
    gradients = mean(torch.autograd.grad(loss, optimizer.params))
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
    scale = (args.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
    optimizer.apply([g * scale for g in gradients])
    return metrics


def spare_row(table: Tensor) -> Tensor:
    """The table (R, ...) of all agents of a rollout with a row more, for an empty one does not compile."""
    table = torch.cat([table, table.new_zeros(1, *table.shape[1:])])
    torch._dynamo.maybe_mark_dynamic(table, 0)  # R changes: without this the second rollout would compile again
    return table


@torch.no_grad()
def evaluate_actions(
    agent: nn.Module, obs: Tensor, rows: Tensor, legal: Tensor, actions: Tensor
) -> tuple[Tensor, Tensor]:
    """Log-probabilities (R,) of all agents of a rollout, and values (T + 1, N).

    Args:
        agent: as `Agent`.
        obs: (T + 1, N, C, H, W), the last of them of the state after the rollout.
        rows: (T + 1, N, H, W), which of the R agents stands in a cell, -1 for none.
        legal, actions: (R + 1, A), and (R + 1,) or (R + 1, K): one row for each agent and a spare one.
    """
    agents = (rows >= 0).flatten(0, 1)
    places = rows.flatten(0, 1)[agents]
    policy, values = agent(obs.flatten(0, 1), agents, legal[places])
    return policy.agents.log_prob(actions[places]), values.view(obs.shape[:2])


def main(args: Args) -> dict[str, float]:
    """Train, evaluate and write everything into runs/; returns the scores of the evaluation."""
    run = Run(args, __file__)  # ranks, device, seeds; with --resume or --eval-only the flags of the checkpoint
    args, T, N = run.args, run.args.num_steps, run.args.num_envs // run.world_size
    minibatch_size = args.minibatch_size // run.world_size
    envs = run.make_envs(N, layout="grid")
    obs_shape, nvec = envs.single_observation_space.shape, tuple(envs.nvec.tolist())
    if (envs.uses is None or len(nvec) == 1) and not args.count_unused:
        raise ValueError(
            f"--no-count-unused: {args.env_id} has {len(nvec)} fields and its attribute `uses` is {envs.uses}; "
            f"expected several, and ({nvec[0]}, {len(nvec)}), 1 where a field counts for a choice in field 0. Or count "
            f"all of them."
        )
    agent = run.place(Agent(obs_shape, nvec, args.channels))
    optimizer = Adam(agent, eps=1e-5)
    run.keep(model=agent, optimizer=optimizer)  # what a checkpoint holds, beside the environments; restored here
    take_step, evaluate_rollout = run.compile(update), run.compile(evaluate_actions)

    # A rollout is collected on the host and moved once: small writes cost less in NumPy, on CPUs as well.
    # The last row is the state after it, in which nobody acts.
    host_obs = np.empty((T + 1, N, *obs_shape), envs.obs_dtype)
    host_masks = np.empty((T + 1, N, 1 + sum(nvec), *obs_shape[1:]), bool)
    host_actions = np.zeros((T + 1, N, *envs.single_action_space.shape), np.int64)
    host_rewards = np.empty((T, N), np.float32)
    host_terminations, host_truncations = np.empty((2, T, N), bool)
    buffers = (host_obs, host_masks, host_actions, host_rewards, host_terminations, host_truncations)

    next_obs, next_mask = run.begin()  # reset, or where a checkpoint left off
    for iteration in run.iterations():  # after each: signals, checkpoints when they are due
        lr = args.learning_rate * (1 - iteration / run.num_iterations) if args.anneal_lr else args.learning_rate
        optimizer.lr.fill_(lr)

        # ROLLOUT: act in all environments. Values and log-probabilities follow in one batch after it.
        final_obs, final_masks = [], []
        for t in range(T):
            host_obs[t], host_masks[t] = next_obs, next_mask
            agents, legal = split_masks(run.tensor(host_masks[t]))
            with torch.inference_mode():
                policy, _ = agent(run.tensor(next_obs), agents, legal | run.free_play)
                host_actions[t] = policy.sample(run.generator).cpu().numpy()
            next_obs, host_rewards[t], host_terminations[t], host_truncations[t], infos = envs.step(host_actions[t])
            next_mask = infos["action_mask"]
            if host_truncations[t].any():
                final_obs.append(infos["final_obs"][host_truncations[t]])
                final_masks.append(infos["final_info"]["action_mask"][host_truncations[t]])
        host_obs[T], host_masks[T] = next_obs, next_mask
        illegal = envs.illegal(*(b[:T].reshape(T * N, *b.shape[2:]) for b in (host_actions, host_masks)))
        num_agents = host_masks[:T, :, 0].sum((2, 3))
        if args.mask_mode == "penalty":
            host_rewards += args.invalid_penalty * illegal.reshape(T, N) * num_agents  # a share, times all agents

        # ADVANTAGES
        obs, masks, actions, rewards, terminations, truncations = (run.tensor(b) for b in buffers)
        # Few cells hold an agent, so what belongs to agents is kept in rows (R, ...) from here on, and no more in maps.
        agents, legal = split_masks(masks.flatten(0, 1))
        rows = torch.full(agents.shape, -1, device=run.device)
        rows[agents] = torch.arange(len(legal), device=run.device)
        rows = rows.unflatten(0, (T + 1, N))
        # But for --mask-mode mask all actions count as legal from here on, in the old log-probability too: the ratio
        # starts at 1.
        b_legal, b_actions = legal | (args.mask_mode != "mask"), actions.flatten(0, 1)[agents]
        if not args.count_unused:
            b_actions, b_legal = drop_unused(b_actions, b_legal, run.tensor(envs.uses), nvec)
        b_legal, b_actions = spare_row(b_legal), spare_row(b_actions)
        b_logprobs, values = evaluate_rollout(agent, obs, rows, b_legal, b_actions)
        next_values = values[1:].masked_fill(terminations, 0.0)
        if final_obs:  # bootstrap from the final observation, not from the next episode's first
            final_obs, final_masks = (run.tensor(np.concatenate(x)) for x in (final_obs, final_masks))
            with torch.no_grad():
                _, next_values[truncations] = agent(final_obs, *split_masks(final_masks.bool()))
        dones = terminations | truncations
        advantages = compute_gae(rewards, values[:T], next_values, dones, args.gamma, args.gae_lambda)
        returns = advantages + values[:T]
        if args.norm_adv:  # over the whole rollout and all ranks, once; maps in which nobody acts do not count
            acts = (rows[:T] >= 0).flatten(2).any(2).float()
            share = run.mean(acts.mean()).clamp(min=1e-8)
            advantages = acts * (advantages - run.mean((advantages * acts).mean()) / share)
            advantages /= (run.mean(advantages.square().mean()) / share).sqrt() + 1e-8

        # UPDATE: the batch is shuffled once an epoch and cut into minibatches
        tables = (b_actions, b_legal, spare_row(b_logprobs))  # of the agents; maps know their rows
        batch = [x[:T].flatten(0, 1) for x in (obs, rows, advantages, returns, values)]
        for _ in range(args.update_epochs):
            b_inds = torch.randperm(T * N, generator=run.generator, device=run.device)
            shuffled = [b.index_select(0, b_inds).split(minibatch_size) for b in batch]
            steps = [take_step(agent, optimizer, (*tables, *mb), args, run.mean) for mb in zip(*shuffled, strict=True)]
            metrics = torch.stack(steps).mean(0)
            # Written so that a NaN, which compares as False, ends the epochs too.
            if args.target_kl is not None and not run.mean(metrics)[METRICS.index("approx_kl")] <= args.target_kl:
                break
        run.check_finite(metrics)

        # LOG
        if run.log_due:  # return, length and speed are added
            played = legal[: int(num_agents.sum())]  # without the state after the rollout
            run.log(
                {f"losses/{name}": value for name, value in zip(METRICS[:-1], metrics.tolist(), strict=False)}
                | {"losses/explained_variance": 1 - (returns - values[:T]).var() / returns.var()}
                | {"charts/learning_rate": lr, "charts/agents": num_agents.mean()}
                | {"masks/legal_fraction": played.sum() / max(played.numel(), 1), "masks/illegal_rate": illegal.mean()}
            )

    def play(obs: np.ndarray, mask: np.ndarray, started: np.ndarray) -> np.ndarray:
        """Sampled: agents that play deterministically and want the same cell wait for each other for ever."""
        agents, legal = split_masks(run.tensor(mask).bool())
        policy, _ = agent(run.tensor(obs), agents, legal)
        return policy.sample().cpu().numpy()

    return run.finish(play, how="sampled")  # evaluate with the mask and without, write scores and pictures


if __name__ == "__main__":
    main(parse(Args))
