"""Masked attention: PPO over a set of entities, of which absent and hidden ones do not exist for the network.

    python ppo_attention_mask.py                                           # PandaForest: trees hide what is behind them
    python ppo_attention_mask.py --no-attention-mask                       # the same agent sees the padding
    python ppo_attention_mask.py --env-id Masked/OrderPicking-v0 --pointer # an action picks an entity
    torchrun --nproc-per-node 2 ppo_attention_mask.py                      # data-parallel, one rank a core or GPU
    tensorboard --logdir runs

Scores, minutes and spread over seeds of every environment are in docs/results.md.

References: Vaswani et al. 2017, Attention is all you need, https://arxiv.org/abs/1706.03762
            Vinyals et al. 2015, Pointer networks, https://arxiv.org/abs/1506.03134
            Schulman et al. 2017, Proximal policy optimization algorithms, https://arxiv.org/abs/1707.06347
            Huang & Ontanon 2020, A closer look at invalid action masking, https://arxiv.org/abs/2006.14171
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn as nn
from einops import einsum, rearrange
from torch import Tensor
from torch.nn import functional as F

from envs.masks import illegal_actions
from experiment import Adam, Flags, Run
from experiment.flags import Count, Natural, NonNegative, Positive, Share, check_rollout, parse

METRICS = ("policy_loss", "value_loss", "entropy", "old_approx_kl", "approx_kl", "clipfrac", "loss")


@dataclass
class Args(Flags):
    """Masked PPO over sets of entities."""

    shapes: ClassVar[tuple[str, ...]] = ("heads",)
    env_id: str = "Masked/PandaForest-v0"
    presence_column: Natural | None = None
    """column of a matrix observation (E, D) that is 1 where the entity is present (0 for highway-env's Kinematics)"""
    attention_mask: bool = True
    """hide absent entities from the network; without it their padding is seen"""
    total_timesteps: Count = 3_000_000
    num_steps: Count = 16
    """steps of each environment in a rollout"""
    minibatch_size: Count = 256
    """samples in a gradient step over all ranks; unlike CleanRL's num_minibatches, it stays when num_envs changes"""
    update_epochs: Count = 4
    """passes over each rollout"""
    learning_rate: Positive = 5e-4
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
    ent_coef: NonNegative = 0.003
    """weight of the entropy over legal actions"""
    vf_coef: NonNegative = 0.5
    """weight of the value loss"""
    max_grad_norm: Positive = 0.5
    """gradients are scaled down to this norm"""
    target_kl: Positive | None = None
    """end an update's epochs early beyond this approximate KL divergence"""
    dim: Count = 64
    """width of an entity's embedding"""
    heads: Count = 4
    """attention heads, each of dim / heads"""
    num_blocks: Count = 1
    """attention blocks"""
    pointer: bool = False
    """actions pick an entity, Discrete(E): one linear layer gives each entity's embedding its logit"""

    def check(self, world_size: int) -> int:
        """Refuse what does not fit together; returns the environment steps of a rollout."""
        if self.dim % self.heads:
            raise ValueError(f"--dim {self.dim} is shared by the heads; expected a multiple of --heads {self.heads}.")
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


def layer_init(layer: nn.Linear, std: float = np.sqrt(2), bias_const: float = 0.0) -> nn.Linear:
    """Orthogonal weights of gain `std` and a constant bias."""
    nn.init.orthogonal_(layer.weight, std)
    nn.init.constant_(layer.bias, bias_const)
    return layer


# The class to copy, with the one below.
class Packing:
    """Moves rows between padded sets (B, E, ...) and their P present entities alone (P, ...), in order.

    Layers that treat each entity by itself compute on the packed rows, so absent ones cost nothing, and what they hold
    is never read.

    Args:
        mask: (B, E) bool, True where the entity is present.

    Raises:
        ValueError: the mask is not bool, or has another shape than the rows.
    """

    def __init__(self, mask: Tensor):
        if mask.dtype != torch.bool or mask.dim() != 2:
            raise ValueError(
                f"The mask has shape {tuple(mask.shape)} and dtype {mask.dtype}; expected (B, E) and torch.bool, True "
                f"where the entity is present."
            )
        self.mask, self.places = mask, mask.flatten().nonzero().squeeze(1)  # (P,)

    def pack(self, x: Tensor) -> Tensor:
        """The present rows (P, ...) of x (B, E, ...)."""
        if x.shape[:2] != self.mask.shape:
            raise ValueError(
                f"The mask has shape {tuple(self.mask.shape)}; expected {tuple(x.shape[:2])}, an entry for each row of "
                f"the sets {tuple(x.shape)}."
            )
        return x.flatten(0, 1).index_select(0, self.places)  # boolean indexing is twice as slow, backwards too

    def unpack(self, x: Tensor) -> Tensor:
        """Padded sets (B, E, D) of the present rows x (P, D), with zeros elsewhere."""
        return x.new_zeros(self.mask.numel(), x.shape[1]).index_add(0, self.places, x).unflatten(0, self.mask.shape)


# The class to copy: with the one above it needs torch and einops only.
class MultiHeadAttention(nn.Module):
    """Self-attention softmax(Q K^T / sqrt(d)) V over a set, in which absent entities do not exist.

    Attention weights to and from absent entities are exactly 0 and their outputs are 0, whatever their rows hold, NaN
    and inf included, in values and in gradients; a set without entities gives zeros. Vaswani et al. 2017, section 3.2
    (https://arxiv.org/abs/1706.03762).

    Args:
        dim: width of the rows, in and out.
        heads: number of heads.
        dim_head: width of each.

    >>> attention = MultiHeadAttention(dim=8, heads=2, dim_head=4)
    >>> out, weights = attention(torch.randn(1, 3, 8), torch.tensor([[True, True, False]]))
    >>> out.shape, weights[0, 0, 2].tolist(), weights[0, 0, :, 2].tolist()
    (torch.Size([1, 3, 8]), [0.0, 0.0, 0.0], [0.0, 0.0, 0.0])
    """

    def __init__(self, dim: int, heads: int, dim_head: int):
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, heads * dim_head, bias=False)
        self.to_kv = nn.Linear(dim, 2 * heads * dim_head, bias=False)
        self.to_out = nn.Linear(heads * dim_head, dim)

    def forward(
        self, x: Tensor, mask: Tensor | None, need_weights: bool = True, num_queries: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Attend.

        Args:
            x: (B, E, dim), any floating dtype.
            mask: (B, E) bool, True where the entity is present (the sense of `scaled_dot_product_attention`; that of
                `nn.MultiheadAttention`'s `key_padding_mask` is the opposite), or None: all are.
            need_weights: write the attention out and return it; else use the faster fused kernel.
            num_queries: only the first Q entities are queries; default all E.

        Returns:
            The outputs (B, Q, dim), and the attention weights (B, heads, Q, E) or None.

        Raises:
            ValueError: the mask is not bool, or not of shape (B, E).
        """
        if mask is None:
            mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        keys, queries = Packing(mask), Packing(mask[:, :num_queries])
        x_kv, x_q = keys.pack(x), queries.pack(x[:, :num_queries])
        out, weights = self.attend(x_q, x_kv, queries, keys, need_weights)
        return queries.unpack(out), weights

    def attend(
        self, x_q: Tensor, x_kv: Tensor, queries: Packing, keys: Packing, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """`forward` on packed rows: queries (P_Q, dim), and keys and values (P, dim); returns (P_Q, dim)."""
        q = rearrange(queries.unpack(self.to_q(x_q)), "b q (h d) -> b h q d", h=self.heads)
        k, v = (
            rearrange(part, "b e (h d) -> b h e d", h=self.heads)
            for part in keys.unpack(self.to_kv(x_kv)).chunk(2, dim=-1)
        )
        # In an empty set all keys are open: no output of it is used, and without an open key some kernels give NaN.
        mask = rearrange(keys.mask | ~keys.mask.any(-1, keepdim=True), "b e -> b 1 1 e")
        if need_weights:
            scores = einsum(q * q.shape[-1] ** -0.5, k, "b h q d, b h e d -> b h q e")
            lowest = torch.finfo(scores.dtype).min  # as in CategoricalMasked: -inf may not lose against an absent one
            weights = torch.where(mask, scores.clamp(min=lowest / 2), lowest).softmax(-1)
            weights = torch.where(rearrange(queries.mask, "b q -> b 1 q 1"), weights, 0.0)
            out = einsum(weights, v, "b h q e, b h e d -> b h q d")
        else:
            weights, out = None, F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.to_out(queries.pack(rearrange(out, "b h q d -> b q (h d)"))), weights


class Block(nn.Module):
    """A pre-norm transformer block: attention, then an MLP for each entity, each with a residual connection."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = MultiHeadAttention(dim, heads, dim // heads)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, dim))

    def forward(
        self, x_q: Tensor, x: Tensor, queries: Packing, keys: Packing, need_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The query rows (P_Q, dim) after attending to the rows x (P, dim); attention weights or None."""
        normed = self.norm1(x)
        normed_q = normed if x_q is x else self.norm1(x_q)
        out, weights = self.attention.attend(normed_q, normed, queries, keys, need_weights)
        x_q = x_q + out
        return x_q + self.mlp(self.norm2(x_q)), weights


class Agent(nn.Module):
    """Policy and value over a set of entities, observed as rows (E, 1 + D + G) whose first column is the presence mask.

    The first row is the agent's own entity, if it has one; the order of the others means nothing. The last G columns
    are global features, which belong to no entity: the same in all rows, those of absent ones too.
    """

    def __init__(self, obs_shape: tuple[int, int], nvec: tuple[int, ...], args: Args, num_globals: int = 0):
        super().__init__()
        self.nvec = nvec if len(nvec) > 1 else None
        self.attention_mask, self.pointer, self.num_globals = args.attention_mask, args.pointer, num_globals
        # --- adapt this to your env ---
        self.embed = self._mlp(obs_shape[1] - 1, args.dim)
        self.embed_globals = self._mlp(num_globals, args.dim) if num_globals else None
        self.blocks = nn.ModuleList(Block(args.dim, args.heads) for _ in range(args.num_blocks))
        self.norm = nn.LayerNorm(args.dim)
        self.actor = layer_init(nn.Linear(args.dim, 1 if args.pointer else sum(nvec)), std=0.01)
        self.critic = layer_init(nn.Linear(args.dim, 1), std=1.0)
        # ------------------------------

    @staticmethod
    def _mlp(size: int, dim: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(size, dim), nn.ReLU(), nn.Linear(dim, dim))

    @staticmethod
    def query_row(x: Tensor, keys: Packing) -> tuple[Tensor, Packing]:
        """The single query row of each set, (P_Q, dim) from the present rows x (P, dim), and its packing.

        It is the first one, the agent's own, where that is present, else the mean of the present rows, since their
        order means nothing. An empty set has none.
        """
        read = keys.mask.clone()  # (B, E)
        read[:, 1:] &= ~keys.mask[:, :1]
        rows = keys.pack(read).nonzero().squeeze(1)  # those of x; reading them alone costs less than padding x
        sets = keys.places.index_select(0, rows) // read.shape[1]
        total = x.new_zeros(len(read), x.shape[1]).index_add(0, sets, x.index_select(0, rows))
        mean = total / read.sum(1, keepdim=True).clamp(min=1)  # (B, dim)
        queries = Packing(keys.mask.any(1, keepdim=True))
        return queries.pack(mean.unsqueeze(1)), queries

    def encode(self, obs: Tensor, need_weights: bool = False) -> tuple[Tensor, Tensor, Tensor | None]:
        """Rows (B, Q, dim), 0 where absent, their mask (B, Q), and the last block's weights (B, heads, Q, E) or None.

        Q is E for a pointer policy; otherwise one row is read, so the last block computes no other (`query_row`).
        """
        present = obs[..., 0] > 0
        keys = Packing(present if self.attention_mask else torch.ones_like(present))
        x, weights = self.embed(keys.pack(obs[..., 1:])), None
        for i, block in enumerate(self.blocks):
            one_row = not self.pointer and i + 1 == len(self.blocks)
            x_q, queries = self.query_row(x, keys) if one_row else (x, keys)
            x, weights = block(x_q, x, queries, keys, need_weights)
        return queries.unpack(self.norm(x)), queries.mask, weights

    def logits_and_values(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, sum(nvec)) and values (B,) of obs (B, E, 1 + D + G)."""
        x, present, _ = self.encode(obs)
        pooled = x.sum(1) / present.sum(1, keepdim=True).clamp(min=1)  # (B, dim), the mean over present entities
        if self.num_globals:  # they are in the entities' rows as well, but of an empty set they are all that is known
            known = self.embed_globals(obs[:, 0, -self.num_globals :])  # (B, dim)
            x, pooled = x + known.unsqueeze(1), pooled + known
        return self.actor(x).flatten(1), self.critic(pooled).squeeze(-1)

    def forward(self, obs: Tensor, mask: Tensor) -> tuple[CategoricalMasked, Tensor]:
        """Distribution and values (B,) of obs (B, E, 1 + D + G) and action mask (B, sum(nvec)), checked before."""
        logits, values = self.logits_and_values(obs)
        return CategoricalMasked(logits, mask, self.nvec, validate=False), values


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
    """The clipped loss of a minibatch, and its terms as METRICS, (7,) without gradient.

    Args:
        agent: as `Agent`.
        mb: obs as the agent takes them; actions, masks, old log-probabilities, advantages, returns and old values,
            (B, ...); in ppo_recurrent_mask.py (T, B, ...).
        args: coefficients.
    """
    mb_obs, mb_actions, mb_masks, mb_logprobs, mb_advantages, mb_returns, mb_values = mb
    policy, newvalue = agent(mb_obs, mb_masks)
    logratio = policy.log_prob(mb_actions) - mb_logprobs
    ratio = logratio.exp()
    clipped = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
    pg_loss = -torch.min(mb_advantages * ratio, mb_advantages * clipped).mean()

    v_loss = (newvalue - mb_returns) ** 2
    if args.clip_vloss:
        v_clipped = mb_values + (newvalue - mb_values).clamp(-args.clip_coef, args.clip_coef)
        v_loss = torch.max(v_loss, (v_clipped - mb_returns) ** 2)
    v_loss = 0.5 * v_loss.mean()

    entropy_loss = policy.entropy().mean()
    loss = pg_loss - args.ent_coef * entropy_loss + args.vf_coef * v_loss
    with torch.no_grad():
        approx_kl = (ratio - 1 - logratio).mean()  # http://joschu.net/blog/kl-approx.html
        clipfrac = (clipped != ratio).float().mean()
        metrics = torch.stack((pg_loss, v_loss, entropy_loss, -logratio.mean(), approx_kl, clipfrac, loss))
    return loss, metrics


def update(agent: nn.Module, optimizer: Adam, mb: tuple[Tensor, ...], args: Args, mean: Callable) -> Tensor:
    """One step of Adam along the clipped gradient of a minibatch, its `mean` over all ranks; returns METRICS, (7,)."""
    loss, metrics = ppo_loss(agent, mb, args)
    gradients = mean(torch.autograd.grad(loss, optimizer.params))
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
    scale = (args.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
    optimizer.apply([g * scale for g in gradients])
    return metrics


@torch.no_grad()
def evaluate_actions(agent: nn.Module, obs: Tensor, masks: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of a rollout's actions and values of its states and of the one after it, (T + 1, N) each."""
    policy, values = agent(obs.flatten(0, 1), masks.flatten(0, 1))
    return policy.log_prob(actions.flatten(0, 1)).view(obs.shape[:2]), values.view(obs.shape[:2])


def main(args: Args) -> dict[str, float]:
    """Train, evaluate and write everything into runs/; returns the scores of the evaluation."""
    run = Run(args, __file__)  # ranks, device, seeds; with --resume or --eval-only the flags of the checkpoint
    args, T, N = run.args, run.args.num_steps, run.args.num_envs // run.world_size
    minibatch_size = args.minibatch_size // run.world_size
    envs = run.make_envs(N, layout="entities", presence_column=args.presence_column)
    obs_shape, nvec = envs.single_observation_space.shape, tuple(envs.nvec.tolist())
    if args.pointer and nvec != obs_shape[:1]:
        raise ValueError(
            f"--pointer: actions pick one of {obs_shape[0]} entities; expected Discrete({obs_shape[0]}), and "
            f"{args.env_id} has {envs.single_action_space}."
        )
    agent = run.place(Agent(obs_shape, nvec, args, envs.num_globals))
    optimizer = Adam(agent, eps=1e-5)
    run.keep(model=agent, optimizer=optimizer)  # what a checkpoint holds, beside the environments; restored here
    take_step, evaluate_rollout = run.compile(update), run.compile(evaluate_actions)

    # A rollout is collected on the host and moved once: small writes cost less in NumPy, on CPUs as well.
    # The last row is the state after it, in which nobody acts.
    host_obs = np.empty((T + 1, N, *obs_shape), np.float32)
    host_masks = np.empty((T + 1, N, sum(nvec)), bool)
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
            with torch.inference_mode():
                policy, _ = agent(run.tensor(next_obs), run.tensor(host_masks[t] | run.free_play))
                host_actions[t] = policy.sample(run.generator).cpu().numpy()
            next_obs, host_rewards[t], host_terminations[t], host_truncations[t], infos = envs.step(host_actions[t])
            next_mask = infos["action_mask"]
            if host_truncations[t].any():
                final_obs.append(infos["final_obs"][host_truncations[t]])
                final_masks.append(infos["final_info"]["action_mask"][host_truncations[t]])
        host_obs[T], host_masks[T] = next_obs, next_mask
        illegal = illegal_actions(host_actions[:T].reshape(T * N, -1), host_masks[:T].reshape(T * N, -1), envs.nvec)
        if args.mask_mode == "penalty":
            host_rewards += args.invalid_penalty * illegal.reshape(T, N)

        # ADVANTAGES
        obs, masks, actions, rewards, terminations, truncations = (run.tensor(b) for b in buffers)
        # But for --mask-mode mask all actions count as legal from here on, in the old log-probability too: the ratio
        # starts at 1.
        masks = masks | (args.mask_mode != "mask")
        logprobs, values = evaluate_rollout(agent, obs, masks, actions)
        next_values = values[1:].masked_fill(terminations, 0.0)
        if final_obs:  # bootstrap from the final observation, not from the next episode's first
            final_obs, final_masks = (run.tensor(np.concatenate(x)) for x in (final_obs, final_masks))
            with torch.no_grad():
                _, next_values[truncations] = agent(final_obs, final_masks.bool())
        dones = terminations | truncations
        advantages = compute_gae(rewards, values[:T], next_values, dones, args.gamma, args.gae_lambda)
        returns = advantages + values[:T]
        if args.norm_adv:  # over the whole rollout and all ranks, once
            advantages = advantages - run.mean(advantages.mean())
            advantages /= run.mean(advantages.square().mean()).sqrt() + 1e-8

        # UPDATE: the batch is shuffled once an epoch and cut into minibatches
        batch = [x[:T].flatten(0, 1) for x in (obs, actions, masks, logprobs, advantages, returns, values)]
        for _ in range(args.update_epochs):
            b_inds = torch.randperm(T * N, generator=run.generator, device=run.device)
            shuffled = [b.index_select(0, b_inds).split(minibatch_size) for b in batch]
            steps = [take_step(agent, optimizer, mb, args, run.mean) for mb in zip(*shuffled, strict=True)]
            metrics = torch.stack(steps).mean(0)
            # Written so that a NaN, which compares as False, ends the epochs too.
            if args.target_kl is not None and not run.mean(metrics)[METRICS.index("approx_kl")] <= args.target_kl:
                break
        run.check_finite(metrics)

        # LOG
        if run.log_due:  # return, length and speed are added
            run.log(
                {f"losses/{name}": value for name, value in zip(METRICS[:-1], metrics.tolist(), strict=False)}
                | {"losses/explained_variance": 1 - (returns - values[:T]).var() / returns.var()}
                | {"charts/learning_rate": lr}
                | {"masks/legal_fraction": host_masks[:T].mean(), "masks/illegal_rate": illegal.mean()}
            )

    def play(obs: np.ndarray, mask: np.ndarray, started: np.ndarray) -> np.ndarray:
        """What the agent thinks best; without memory it does not matter where episodes started."""
        return agent(run.tensor(obs), run.tensor(mask).bool())[0].mode.cpu().numpy()

    def look(obs: np.ndarray) -> np.ndarray:
        """The last block's attention (N, heads, Q, E)."""
        return agent.encode(run.tensor(obs), need_weights=True)[2].cpu().numpy()

    return run.finish(play, look)  # evaluate with the mask and without, write scores and pictures


if __name__ == "__main__":
    main(parse(Args))
