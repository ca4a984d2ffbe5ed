"""Recurrent PPO: the state ends with its episode, in rollouts, values, gradients and evaluation; and what it learns."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.testing import assert_close

import ppo_recurrent_mask as rec
from envs.make import make_vec

T, N, H = 12, 5, 7


def sequences(seed=0, dim=4, p=0.3):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(T, N, dim, generator=generator, dtype=torch.float64)
    return x, torch.rand(T, N, generator=generator) < p, torch.randn(N, H, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_states_and_gradients_are_those_of_a_loop_over_steps_and_episodes(p):
    """torch's own cell, one environment and one step at a time, which begins anew where an episode does."""
    x, starts, first = sequences(p=p)
    gru = rec.EpisodicGRU(4, H).double()
    reference = torch.nn.GRUCell(4, H).double()
    reference.load_state_dict(gru.state_dict())
    weights = torch.randn(T, N, H, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    states = gru.run(mine, starts, first)
    expected = torch.zeros(T, N, H, dtype=torch.float64)
    for n in range(N):
        state = first[n : n + 1]
        for t in range(T):
            state = torch.zeros(1, H, dtype=torch.float64) if starts[t, n] else state
            state = reference(theirs[t, n : n + 1], state)
            expected[t, n] = state[0]
    assert_close(states, expected)
    (states * weights).sum().backward()
    (expected * weights).sum().backward()
    assert_close(mine.grad, theirs.grad)
    for a, b in zip(gru.parameters(), reference.parameters(), strict=True):
        assert_close(a.grad, b.grad)


def test_no_state_and_no_gradient_crosses_the_start_of_an_episode():
    x, _, first = sequences()
    starts = torch.zeros(T, N, dtype=torch.bool)
    starts[6] = True
    x, first = x.requires_grad_(), first.requires_grad_()
    gru = rec.EpisodicGRU(4, H).double()
    gru.run(x, starts, first)[6:].sum().backward()
    assert (x.grad[:6] == 0).all() and (first.grad == 0).all() and (x.grad[6:] != 0).any()
    broken = first.detach().clone().fill_(torch.nan)  # whatever the last episode left
    assert gru.run(x.detach(), torch.ones_like(starts), broken).isfinite().all()


def test_sequences_of_another_shape_are_refused_and_half_precision_is_taken():
    gru, x, starts, state = rec.EpisodicGRU(3, 4), torch.randn(5, 2, 3), torch.zeros(5, 2).bool(), torch.zeros(2, 4)
    for wrong in ((starts[..., None], state), (starts[:, 0], state), (starts, state[None]), (starts, state[:, :1])):
        with pytest.raises(ValueError, match=r"starts is .* and state .*; expected \(5, 2\) and \(2, 4\)"):
            gru.run(x, *wrong)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = gru.run(x, starts, state)
    assert_close(half, gru.run(x, starts, state), atol=0.02, rtol=0.02)


def test_the_ratio_is_1_before_the_first_step_whatever_the_minibatch():
    torch.manual_seed(0)
    agent, (obs, starts, _) = rec.Agent(4, (3, 2), H), sequences()
    obs, first = obs.float(), torch.randn(N, H)
    masks = torch.rand(T, N, 5) < 0.7
    masks[..., [0, 3]] = True
    actions = agent((obs, starts, first), masks)[0].sample()
    logprobs, values, states = rec.evaluate_actions(agent, (obs, starts, first), masks, actions)
    assert states.shape == (T, N, H)
    numbers = torch.randn(2, T, N)
    for inds in ([0, 1, 2, 3, 4], [3, 1], [4]):
        mb = [b[:, inds] for b in (actions, masks, logprobs, *numbers, values)]
        _, metrics = rec.ppo_loss(agent, ((obs[:, inds], starts[:, inds], first[inds]), *mb), rec.Args())
        named = dict(zip(rec.METRICS, metrics.tolist(), strict=True))
        assert abs(named["approx_kl"]) < 1e-6 and abs(named["old_approx_kl"]) < 1e-6 and named["clipfrac"] == 0


class Echo(gym.Env):
    """Shows a bit at the start of an episode, and pays for saying it at the end: `cut` is how the end comes."""

    observation_space, action_space = spaces.Box(-1, 1, (2,)), spaces.Discrete(3)

    def __init__(self, cut="termination", length=4):
        self.cut, self.length = cut, length

    def seen(self):
        shown = 2 * self.bit - 1 if self.t == 0 else 0
        mask = np.array([1, 1, 0] if self.t == self.length - 1 else [0, 0, 1], np.int8)  # the last is to wait
        return np.array([shown, self.t / self.length], np.float32), {"action_mask": mask}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.bit = 0, int(self.np_random.integers(2))
        return self.seen()

    def step(self, action):
        reward = float(self.t == self.length - 1 and action == self.bit)
        self.t += 1
        ended = self.t == self.length
        return (
            self.seen()[0],
            reward,
            ended and self.cut == "termination",
            ended and self.cut == "truncation",
            self.seen()[1],
        )


gym.register("Test/Echo-v0", Echo, disable_env_checker=True)


def test_a_truncated_episode_is_valued_with_its_own_memory(tmp_path, monkeypatch):
    """The value of its final observation, by hand: from its first observation on, and not with the next one's state."""
    monkeypatch.chdir(tmp_path)
    seen = {}
    compute_gae, agents = rec.compute_gae, []

    def spy(rewards, values, next_values, dones, *rest):
        seen.setdefault("next_values", next_values.clone())
        seen.setdefault("dones", dones.clone())
        return compute_gae(rewards, values, next_values, dones, *rest)

    class Spied(rec.Agent):
        def __init__(self, *args):
            super().__init__(*args)
            agents.append(self)
            self.first = {name: p.detach().clone() for name, p in self.state_dict().items()}

    monkeypatch.setattr(rec, "compute_gae", spy)
    monkeypatch.setattr(rec, "Agent", Spied)
    flags = dict(env_id="test_ppo_recurrent_mask:Test/Echo-v0", env_kwargs=("cut", "truncation"), num_envs=2)
    rec.main(rec.Args(**flags, num_steps=8, minibatch_size=16, total_timesteps=16, eval_episodes=0, save_model=False))
    agent = agents[0]
    agent.load_state_dict(agent.first)
    envs = make_vec("Test/Echo-v0", 2, {"cut": "truncation"})
    (obs, _), state = envs.reset(seed=1), torch.zeros(2, 64)
    for t in range(8):
        new = torch.full((2,), t % 4 == 0)
        state = agent.remember(torch.from_numpy(obs)[None], new[None], state)[0]
        obs, _, _, truncations, infos = envs.step(np.where(t % 4 == 3, 0, 2) * np.ones(2, int))
        if t % 4 == 3:
            final = torch.from_numpy(infos["final_obs"])[None]
            after = agent.remember(final, torch.zeros(1, 2, dtype=torch.bool), state)[0]
            assert_close(seen["next_values"][t], agent.critic(after).squeeze(-1), atol=1e-6, rtol=1e-5)
            assert seen["dones"][t].all() and truncations.all()


def train(tmp_path, monkeypatch, script=rec, **flags):
    monkeypatch.chdir(tmp_path)
    return script.main(script.Args(eval_episodes=64, save_model=False, **flags))


def test_it_learns_what_cannot_be_done_without_memory_and_carries_it_through_evaluation(tmp_path, monkeypatch):
    """1 of 1 where no policy without memory can have more than a half; and the mask belongs to its step."""
    flags = dict(env_id="test_ppo_recurrent_mask:Test/Echo-v0", num_envs=16, total_timesteps=16384, learning_rate=3e-3)
    scores = train(tmp_path, monkeypatch, **flags, num_steps=8, minibatch_size=64)
    assert scores["episodic_return"] > 0.9 and scores["illegal_rate"] == 0


def test_previous_actions_and_rewards_are_inputs():
    envs = make_vec("Test/Echo-v0", 2, {"cut": "truncation"}, prev_inputs=True)
    obs, _ = envs.reset(seed=0)
    assert obs.shape == (2, 2 + 3 + 1) == (2, *envs.single_observation_space.shape) and (obs[:, 2:] == 0).all()
    for t in range(4):
        bits = np.array([env.unwrapped.bit for env in envs.env.envs])
        actions = bits if t == 3 else np.array([2, 2])
        obs, rewards, _, _, infos = envs.step(actions)
        if t < 3:
            assert obs[:, 2:5].argmax(1).tolist() == [2, 2] and (obs[:, 5] == 0).all()
    assert (obs[:, 2:] == 0).all()  # a new episode
    np.testing.assert_array_equal(infos["final_obs"][:, 2:5], np.eye(3)[bits])
    assert infos["final_obs"][:, 5].tolist() == rewards.tolist() == [1, 1]


@pytest.mark.parametrize("flags, words", [
    (dict(minibatch_size=48), "--minibatch-size 48: minibatches hold whole environments.*a multiple of 32"),
    (dict(hidden_dim=0), "--hidden-dim 0: expected at least 1"),
    (dict(num_envs=8, minibatch_size=96), "--minibatch-size 96 does not divide a rollout"),
])  # fmt: skip
def test_flags_that_do_not_fit_are_refused(flags, words):
    with pytest.raises(ValueError, match=words):
        rec.main(rec.Args(**flags))
