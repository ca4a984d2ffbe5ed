"""Masked PPO with memory: a GRU carries what was seen through an episode; illegal actions get probability 0.

    python ppo_recurrent_mask.py                                                 # Vault: a code is shown once
    python ppo_recurrent_mask.py --env-id Masked/Maze-v0 --env-kwargs trail False --total-timesteps 3000000
    python ppo_recurrent_mask.py --prev-inputs                                   # sees its last action and reward
    torchrun --nproc-per-node 2 ppo_recurrent_mask.py                            # data-parallel, one rank a core or GPU
    tensorboard --logdir runs

Scores, minutes and spread over seeds of every environment are in docs/results.md.

References: Schulman et al. 2017, Proximal policy optimization algorithms, https://arxiv.org/abs/1707.06347
            Cho et al. 2014, Learning phrase representations using RNN encoder-decoder (the GRU),
                https://arxiv.org/abs/1406.1078
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
from experiment import Adam, Flags, Run
from experiment.flags import Count, NonNegative, Positive, Share, check_rollout, parse

METRICS = ("policy_loss", "value_loss", "entropy", "old_approx_kl", "approx_kl", "clipfrac", "loss")


@dataclass
class Args(Flags):
    """Masked PPO with memory, for Discrete, MultiDiscrete and MultiBinary actions."""

    env_id: str = "Masked/Vault-v0"
    num_steps: Count = 32
    """steps of each environment in a rollout, through all of which gradients flow (backpropagation truncated there)"""
    minibatch_size: Count = 512
    """samples in a gradient step over all ranks, of whole environments: a multiple of num_steps"""
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
    """width of the encoder and of the GRU's state"""
    prev_inputs: bool = False
    """the last action and reward are inputs too, 0 at the start of an episode (RL^2 would carry them across)"""

    def check(self, world_size: int) -> int:
        """Refuse what does not fit together; returns the environment steps of a rollout."""
        sequences = self.num_steps * world_size
        if self.minibatch_size % sequences:
            raise ValueError(
                f"--minibatch-size {self.minibatch_size}: minibatches hold whole environments with their --num-steps "
                f"{self.num_steps} steps, on each of {world_size} ranks; expected a multiple of {sequences}."
            )
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


# The class to copy: it needs torch only.
class EpisodicGRU(nn.GRUCell):
    """A GRU over time whose state is zeroed where an episode starts, inside of sequences as well.

    No state and no gradient crosses the start of an episode. Cho et al. 2014 (https://arxiv.org/abs/1406.1078), in
    torch's variant: the reset gate multiplies W_hn h + b_hn, not h. `forward` is the single step of `nn.GRUCell`, which
    knows no starts: call `run`.

    >>> gru, x = EpisodicGRU(3, 4), torch.randn(5, 2, 3)
    >>> starts = torch.tensor([[True, False], [False, False], [False, True], [False, False], [False, False]])
    >>> states = gru.run(x, starts, torch.randn(2, 4))
    >>> again = gru.run(x[2:, 1:], starts[2:, 1:], torch.zeros(1, 4))  # as if it began there
    >>> torch.allclose(states[2:, 1:], again, atol=1e-6)
    True
    """

    def run(self, x: Tensor, starts: Tensor, state: Tensor) -> Tensor:
        """The states (T, N, H) after each step.

        Args:
            x: (T, N, D).
            starts: (T, N) bool, the step is the first of its episode.
            state: (N, H), before the first step.

        Raises:
            ValueError: other shapes.
        """
        if starts.shape != x.shape[:2] or state.shape != (x.shape[1], self.hidden_size):
            expected = f"{tuple(x.shape[:2])} and {(x.shape[1], self.hidden_size)}"
            raise ValueError(f"starts is {tuple(starts.shape)} and state {tuple(state.shape)}; expected {expected}.")
        inputs = F.linear(x, self.weight_ih, self.bias_ih).unbind()  # (N, 3 * H) each, of all steps at once
        states = []
        for given, start in zip(inputs, starts.unsqueeze(-1).unbind(), strict=True):
            state = torch.where(start, 0.0, state)
            recurrent = F.linear(state, self.weight_hh, self.bias_hh)
            (reset_x, update_x, new_x), (reset_h, update_h, new_h) = given.chunk(3, -1), recurrent.chunk(3, -1)
            new = torch.tanh(new_x + torch.sigmoid(reset_x + reset_h) * new_h)
            keep = torch.sigmoid(update_x + update_h)
            state = torch.lerp(new.to(state.dtype), state, keep.to(state.dtype))  # they differ under autocast
            states.append(state)
        return torch.stack(states)


class Agent(nn.Module):
    """Policy and value over flat observations and what was seen before: edit the marked part, the rest follows it."""

    def __init__(self, obs_dim: int, nvec: tuple[int, ...], hidden_dim: int):
        super().__init__()
        self.nvec = nvec if len(nvec) > 1 else None
        # --- adapt this to your env ---
        self.encoder = nn.Sequential(layer_init(nn.Linear(obs_dim, hidden_dim)), nn.Tanh())
        self.memory = EpisodicGRU(hidden_dim, hidden_dim)
        self.actor = layer_init(nn.Linear(hidden_dim, sum(nvec)), std=0.01)  # near uniform over legal actions
        self.critic = layer_init(nn.Linear(hidden_dim, 1), std=1.0)
        # ------------------------------

    def remember(self, obs: Tensor, starts: Tensor, state: Tensor) -> Tensor:
        """The states (T, N, H) after obs (T, N, D); `starts` (T, N) where an episode begins, `state` (N, H) before."""
        return self.memory.run(self.encoder(obs), starts, state)

    def decide(self, states: Tensor, mask: Tensor) -> tuple[CategoricalMasked, Tensor]:
        """Distribution over actions, and values (...), for states (..., H) and checked masks (..., sum(nvec))."""
        logits, values = self.actor(states), self.critic(states).squeeze(-1)
        return CategoricalMasked(logits, mask, self.nvec, validate=False), values

    def forward(self, seen: tuple[Tensor, Tensor, Tensor], mask: Tensor) -> tuple[CategoricalMasked, Tensor]:
        """Distribution and values of sequences (T, N), for what `remember` takes and mask (T, N, sum(nvec))."""
        return self.decide(self.remember(*seen), mask)


class Memory:
    """The GRU's state in each environment (N, H), which a checkpoint holds."""

    def __init__(self, num_envs: int, hidden_dim: int, device: torch.device):
        self.state = torch.zeros(num_envs, hidden_dim, device=device)

    def get_state(self) -> dict[str, np.ndarray]:
        """All of it, on the host."""
        return {"state": self.state.cpu().numpy()}

    def set_state(self, state: dict[str, np.ndarray]) -> None:
        """Restore what `get_state` gave."""
        self.state.copy_(torch.from_numpy(state["state"]))


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
def evaluate_actions(
    agent: nn.Module, seen: tuple[Tensor, Tensor, Tensor], masks: Tensor, actions: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities and values (T + 1, N), and states (T + 1, N, H), of a rollout and of the state after it."""
    states = agent.remember(*seen)
    policy, values = agent.decide(states, masks)
    return policy.log_prob(actions), values, states


def main(args: Args) -> dict[str, float]:
    """Train, evaluate and write everything into runs/; returns the scores of the evaluation."""
    run = Run(args, __file__)  # ranks, device, seeds; with --resume or --eval-only the flags of the checkpoint
    args, T, N = run.args, run.args.num_steps, run.args.num_envs // run.world_size
    sequences = args.minibatch_size // run.world_size // T  # environments in a minibatch
    envs = run.make_envs(N, prev_inputs=args.prev_inputs)
    obs_shape, nvec = envs.single_observation_space.shape, tuple(envs.nvec.tolist())
    agent = run.place(Agent(obs_shape[0], nvec, args.hidden_dim))
    optimizer = Adam(agent, eps=1e-5)
    memory = Memory(N, args.hidden_dim, run.device)
    run.keep(model=agent, optimizer=optimizer, memory=memory)  # what a checkpoint holds; restored here
    take_step, evaluate_rollout = run.compile(update), run.compile(evaluate_actions)

    # A rollout is collected on the host and moved once: small writes cost less in NumPy, on CPUs as well.
    # The last row is the state after it, in which nobody acts.
    host_obs = np.empty((T + 1, N, *obs_shape), np.float32)
    host_starts = np.empty((T + 1, N), bool)
    host_masks = np.empty((T + 1, N, sum(nvec)), bool)
    host_actions = np.zeros((T + 1, N, *envs.single_action_space.shape), np.int64)
    host_rewards = np.empty((T, N), np.float32)
    host_terminations, host_truncations = np.empty((2, T, N), bool)
    buffers = (host_obs, host_starts, host_masks, host_actions, host_rewards, host_terminations, host_truncations)

    next_obs, next_mask = run.begin()  # reset, or where a checkpoint left off
    for iteration in run.iterations():  # after each: signals, checkpoints when they are due
        lr = args.learning_rate * (1 - iteration / run.num_iterations) if args.anneal_lr else args.learning_rate
        optimizer.lr.fill_(lr)

        # ROLLOUT: act in all environments. Values and log-probabilities follow in one batch after it.
        # Updates start from the state stored here, of older weights: R2D2's stored state (Kapturowski et al. 2019).
        first_state, final_obs, final_masks = memory.state.clone(), [], []
        for t in range(T):
            host_obs[t], host_starts[t], host_masks[t] = next_obs, envs.episode_lengths == 0, next_mask
            with torch.inference_mode():
                seen = (run.tensor(x[t]).unsqueeze(0) for x in (host_obs, host_starts))
                memory.state.copy_(agent.remember(*seen, memory.state)[0])
                policy, _ = agent.decide(memory.state, run.tensor(host_masks[t] | run.free_play))
                host_actions[t] = policy.sample(run.generator).cpu().numpy()
            next_obs, host_rewards[t], host_terminations[t], host_truncations[t], infos = envs.step(host_actions[t])
            next_mask = infos["action_mask"]
            if host_truncations[t].any():
                final_obs.append(infos["final_obs"][host_truncations[t]])
                final_masks.append(infos["final_info"]["action_mask"][host_truncations[t]])
        host_obs[T], host_starts[T], host_masks[T] = next_obs, envs.episode_lengths == 0, next_mask
        illegal = illegal_actions(host_actions[:T].reshape(T * N, -1), host_masks[:T].reshape(T * N, -1), envs.nvec)
        if args.mask_mode == "penalty":
            host_rewards += args.invalid_penalty * illegal.reshape(T, N)

        # ADVANTAGES
        obs, starts, masks, actions, rewards, terminations, truncations = (run.tensor(b) for b in buffers)
        # But for --mask-mode mask all actions count as legal from here on, in the old log-probability too: the ratio
        # starts at 1.
        masks = masks | (args.mask_mode != "mask")
        logprobs, values, states = evaluate_rollout(agent, (obs, starts, first_state), masks, actions)
        next_values = values[1:].masked_fill(terminations, 0.0)
        if final_obs:  # bootstrap from the final observation, with the memory of its episode, not of the next one
            final_obs, final_masks = (run.tensor(np.concatenate(x)) for x in (final_obs, final_masks))
            with torch.no_grad():
                before = states[:T][truncations]
                no_start = torch.zeros(1, len(before), dtype=torch.bool, device=run.device)
                final_states = agent.remember(final_obs[None], no_start, before)[0]
                _, next_values[truncations] = agent.decide(final_states, final_masks.bool())
        dones = terminations | truncations
        advantages = compute_gae(rewards, values[:T], next_values, dones, args.gamma, args.gae_lambda)
        returns = advantages + values[:T]
        if args.norm_adv:  # over the whole rollout and all ranks, once
            advantages = advantages - run.mean(advantages.mean())
            advantages /= run.mean(advantages.square().mean()).sqrt() + 1e-8

        # UPDATE: environments are shuffled once an epoch and cut into minibatches, each with all of its steps
        batch = [x[:T] for x in (obs, starts, actions, masks, logprobs, advantages, returns, values)]
        for _ in range(args.update_epochs):
            steps = []
            for inds in torch.randperm(N, generator=run.generator, device=run.device).split(sequences):
                mb_obs, mb_starts, *mb = (b.index_select(1, inds) for b in batch)  # (T, sequences, ...)
                mb = ((mb_obs, mb_starts, first_state[inds]), *mb)
                steps.append(take_step(agent, optimizer, mb, args, run.mean))
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

    state = None

    def play(obs: np.ndarray, mask: np.ndarray, started: np.ndarray) -> np.ndarray:
        """What the agent thinks best, with the memory of each environment's episode."""
        nonlocal state
        if state is None or len(state) != len(obs):
            state = torch.zeros(len(obs), args.hidden_dim, device=run.device)
        state = agent.remember(run.tensor(obs)[None], run.tensor(started)[None], state)[0]
        return agent.decide(state, run.tensor(mask).bool())[0].mode.cpu().numpy()

    return run.finish(play)  # evaluate with the mask and without, write scores and pictures


if __name__ == "__main__":
    main(parse(Args))
