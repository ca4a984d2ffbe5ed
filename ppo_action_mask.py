"""Masked PPO: illegal actions get probability 0, in acting and in the gradient.

    python ppo_action_mask.py                                                    # JobRouting: half of 16 are down
    python ppo_action_mask.py --env-id Masked/Maze-v0 --total-timesteps 3000000  # a new maze each episode
    python ppo_action_mask.py --mask-mode none                                   # the same agent without the mask
    torchrun --nproc-per-node 2 ppo_action_mask.py                               # data-parallel, one rank a core or GPU
    tensorboard --logdir runs

Scores, minutes and spread over seeds of every environment are in docs/results.md.

References: Schulman et al. 2017, Proximal policy optimization algorithms, https://arxiv.org/abs/1707.06347
            Huang & Ontanon 2020, A closer look at invalid action masking, https://arxiv.org/abs/2006.14171
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from envs.masks import illegal_actions
from experiment import Adam, Flags, Run, sampler
from experiment.flags import Count, NonNegative, Positive, Share, check_rollout, parse

METRICS = ("policy_loss", "value_loss", "entropy", "old_approx_kl", "approx_kl", "clipfrac", "loss")


@dataclass
class Args(Flags):
    """Masked PPO for Discrete, MultiDiscrete and MultiBinary actions."""

    num_steps: Count = 16
    """steps of each environment in a rollout"""
    minibatch_size: Count = 256
    """samples in a gradient step over all ranks; unlike CleanRL's num_minibatches, it stays when num_envs changes"""
    update_epochs: Count = 4
    """passes over each rollout"""
    learning_rate: Positive = 1e-3
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
    hidden_dim: Count = 64
    """width of the two hidden layers of policy and value"""
    predict_mask: bool = False
    """learn what is legal as well, and evaluate with the mask as predicted: for when nobody gives it at run time"""

    def check(self, world_size: int) -> int:
        """Refuse what does not fit together; returns the environment steps of a rollout."""
        if self.predict_mask and self.mask_mode == "none":
            raise ValueError("--predict-mask learns from masks, which --mask-mode none does not read; leave out one.")
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


class Agent(nn.Module):
    """Policy and value over flat observations: edit the marked part, the rest follows it."""

    def __init__(self, obs_dim: int, nvec: tuple[int, ...], hidden_dim: int):
        super().__init__()
        self.nvec = nvec if len(nvec) > 1 else None
        # --- adapt this to your env ---
        self.actor = self._mlp(obs_dim, hidden_dim, sum(nvec), std=0.01)  # a policy near uniform over legal actions
        self.critic = self._mlp(obs_dim, hidden_dim, 1, std=1.0)

    def forward(self, obs: Tensor, mask: Tensor) -> tuple[CategoricalMasked, Tensor]:
        """Distribution over actions, and values (B,), for obs (B, D) and mask (B, sum(nvec)), checked on the host."""
        logits, values = self.actor(obs), self.critic(obs).squeeze(-1)
        # ------------------------------
        return CategoricalMasked(logits, mask, self.nvec, validate=False), values

    @staticmethod
    def _mlp(obs_dim: int, hidden_dim: int, out_dim: int, std: float) -> nn.Sequential:
        return nn.Sequential(
            layer_init(nn.Linear(obs_dim, hidden_dim)),
            nn.Tanh(),
            layer_init(nn.Linear(hidden_dim, hidden_dim)),
            nn.Tanh(),
            layer_init(nn.Linear(hidden_dim, out_dim), std=std),
        )


class MaskHead(nn.Module):
    """Which choices are legal, as a linear function of what the policy's last layer reads.

    Zabounidis et al. 2026, https://arxiv.org/abs/2603.09090. No gradient goes into the policy. It reads the layers of
    `agent.actor`: what you write around them in `Agent.forward` belongs here too.
    """

    def __init__(self, agent: Agent):
        super().__init__()
        if not isinstance(agent.actor, nn.Sequential):
            raise ValueError(
                "--predict-mask reads the layers of Agent.actor: expected nn.Sequential, or edit MaskHead."
            )
        *self.trunk, last = agent.actor  # a list, so that these layers stay the policy's alone
        self.linear = nn.Linear(last.in_features, last.out_features)

    def forward(self, obs: Tensor) -> Tensor:
        """The logit (B, sum(nvec)) of each choice's being legal."""
        with torch.no_grad():
            for layer in self.trunk:
                obs = layer(obs)
        return self.linear(obs)

    def predict(self, obs: Tensor, nvec: tuple[int, ...]) -> Tensor:
        """The mask (B, sum(nvec)) bool: probable choices, and the most probable one of a field that has none."""
        fields = self(obs).split(nvec, dim=-1)
        return torch.cat([(z > 0) | (z == z.amax(-1, keepdim=True)) for z in fields], dim=-1)

    def learn(self, optimizer: Adam, obs: Tensor, masks: Tensor, mean: Callable) -> None:
        """A step of Adam along the gradient of the binary cross-entropy, for obs (B, D) and masks (B, sum(nvec))."""
        loss = F.binary_cross_entropy_with_logits(self(obs), masks.float())
        optimizer.apply(mean(torch.autograd.grad(loss, optimizer.params)))


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
    envs = run.make_envs(N, dependent=True)
    obs_shape, nvec = envs.single_observation_space.shape, tuple(envs.nvec.tolist())
    agent = run.place(Agent(obs_shape[0], nvec, args.hidden_dim))
    optimizer = Adam(agent, eps=1e-5)
    kept = {"model": agent, "optimizer": optimizer}
    if args.predict_mask:
        envs.reset(seed=run.seed)  # which tells whether fields depend on each other
        if envs.field_mask:
            raise ValueError("--predict-mask predicts each field by itself; here they depend on each other: leave it.")
        head = run.place(MaskHead(agent))
        head_optimizer = Adam(head, eps=1e-5)
        kept |= {"head": head, "head_optimizer": head_optimizer}
    run.keep(**kept)  # what a checkpoint holds, beside the environments; restored here
    act = sampler(agent, envs.nvec, run.rng)  # as CategoricalMasked.sample, drawn on the host
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
            host_obs[t] = next_obs
            # Fields that depend on each other are chosen one by one; stored are the masks that the choices met.
            host_actions[t] = act(next_obs, next_mask | run.free_play, None if run.free_play else envs.field_mask)
            host_masks[t] = envs.path_mask(host_actions[t])
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
        b_obs, b_legal = obs[:T].flatten(0, 1), masks[:T].flatten(0, 1)
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
            if args.predict_mask:
                head_optimizer.lr.fill_(lr)
                for inds in b_inds.split(minibatch_size):
                    head.learn(head_optimizer, b_obs[inds], b_legal[inds], run.mean)
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

    def play(obs: np.ndarray, mask: np.ndarray, started: np.ndarray, field_mask: Callable | None = None) -> np.ndarray:
        """What the agent thinks best; without memory it does not matter where episodes started."""
        return act(obs, mask, field_mask, greedy=True)

    def play_predicted(obs: np.ndarray, mask: np.ndarray, started: np.ndarray) -> np.ndarray:
        """The same with the mask as predicted, whatever is given."""
        return act(obs, head.predict(run.tensor(obs), nvec).cpu().numpy(), greedy=True)

    others = {"predicted_mask": play_predicted} if args.predict_mask else {}
    return run.finish(play, **others)  # evaluate with the mask and without, write scores and pictures


if __name__ == "__main__":
    main(parse(Args))
