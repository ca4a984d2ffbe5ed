"""Masked PPO: its functions, and what it learns."""

import numpy as np
import pytest
import torch
import worlds  # noqa: F401
from script import checkpoint

import ppo_action_mask as ppo
from envs.masks import drop_legal
from ppo_action_mask import Args, main


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gae_matches_the_definition_with_terminations_and_truncations(dtype):
    """The sum over l of (gamma lambda)^l delta, cut where an episode ends; bootstrap 0, V(final) or V(next)."""
    generator = torch.Generator().manual_seed(0)
    T, N, gamma, lam = 12, 5, 0.9, 0.8
    rewards, values, next_values = (torch.randn(T, N, generator=generator, dtype=dtype) for _ in range(3))
    dones = torch.rand(T, N, generator=generator) < 0.3
    expected = torch.zeros(T, N, dtype=dtype)
    for n in range(N):
        for t in range(T):
            for k in range(t, T):
                delta = rewards[k, n] + gamma * next_values[k, n] - values[k, n]
                expected[t, n] += (gamma * lam) ** (k - t) * delta
                if dones[k, n]:
                    break
    torch.testing.assert_close(ppo.compute_gae(rewards, values, next_values, dones, gamma, lam), expected)


def random_minibatch(agent, size=32):
    obs, mask = torch.randn(size, 3), torch.rand(size, len(agent.actor[-1].bias)) < 0.6
    mask[:, [0, -1]] = True  # a legal choice in either field
    with torch.no_grad():
        policy, values = agent(obs, mask)
        actions = policy.sample()
        logprobs = policy.log_prob(actions)
    return obs, actions, mask, logprobs, torch.randn(size), torch.randn(size), values


def test_ratio_is_one_and_kl_zero_before_the_first_step():
    agent = ppo.Agent(3, (4,), 8)
    metrics = dict(zip(ppo.METRICS, ppo.ppo_loss(agent, random_minibatch(agent), ppo.Args())[1].tolist(), strict=True))
    assert metrics["approx_kl"] == metrics["old_approx_kl"] == metrics["clipfrac"] == 0.0


@pytest.mark.parametrize("nvec", [(4,), (3, 3), (2, 5)])
@pytest.mark.parametrize("masked", [True, False])
def test_acting_in_numpy_draws_from_the_policy(nvec, masked):
    """Frequencies of 40,000 draws within five standard errors, after a change of the weights that both must see."""
    agent = ppo.Agent(3, nvec, 8)
    act = ppo.sampler(agent, np.array(nvec), np.random.default_rng(0))
    act(np.zeros((1, 3), np.float32), np.ones((1, sum(nvec)), bool))  # the first comparison is before the change
    with torch.no_grad():
        for p in agent.parameters():
            p += 0.3 * torch.randn_like(p)
    obs, mask = torch.randn(1, 3), torch.ones(1, sum(nvec), dtype=torch.bool)
    mask[0, 1] = not masked
    count = 40_000
    actions = act(obs.expand(count, -1).numpy(), mask.expand(count, -1).numpy())
    assert actions.shape == ((count,) if len(nvec) == 1 else (count, len(nvec))) and actions.dtype == np.int64
    probs = agent(obs, mask)[0].probs.detach().numpy().reshape(len(nvec), -1)
    for p, column in zip(probs, actions.reshape(count, -1).T, strict=True):
        frequencies = np.bincount(column, minlength=len(p)) / count
        assert (abs(frequencies - p) <= 5 * np.sqrt(p * (1 - p) / count) + 1e-6).all()


def test_acting_in_numpy_draws_from_the_policy_of_large_logits_too():
    """In float32 the noise would be lost beside them."""
    agent = ppo.Agent(3, (3,), 8)
    with torch.no_grad():
        agent.actor[-1].weight.zero_()
        agent.actor[-1].bias.copy_(torch.tensor([1e8, 1e8, 1e8 + 1e9]))
    act, mask = ppo.sampler(agent, np.array([3]), np.random.default_rng(0)), np.array([[True, True, False]])
    actions = act(np.zeros((10_000, 3), np.float32), mask.repeat(10_000, axis=0))
    assert abs(np.bincount(actions, minlength=3) / 10_000 - [0.5, 0.5, 0]).max() < 0.025


@pytest.mark.parametrize("flags, words", [
    (("--num-envs", "6", "--num-steps", "5", "--minibatch-size", "7"), "--minibatch-size 7 does not divide"),
    (("--total-timesteps", "10"), "less than one rollout of 1024 steps"),
])  # fmt: skip
def test_bad_flags_are_refused(flags, words):
    with pytest.raises(ValueError, match=words):
        ppo.main(ppo.parse(ppo.Args, flags))


@pytest.mark.parametrize("kind", ["binary", "discrete"])
def test_several_fields_and_nested_observations_train(tmp_path, monkeypatch, kind):
    """The best return is 2 switches x 8 steps; random legal play gets 8."""
    monkeypatch.chdir(tmp_path)
    envs = dict(env_id="Test/Switches-v0", env_kwargs=("kind", kind), num_envs=8, num_steps=16, minibatch_size=64)
    scores = ppo.main(ppo.Args(total_timesteps=12_000, eval_episodes=16, learning_rate=3e-3, **envs))
    assert scores["episodic_return"] > 15 and scores["illegal_rate"] == 0


@pytest.mark.parametrize("cut, worth", [("truncation", 5.0), ("termination", 1 + 0.8 + 0.64 + 0.512)])
def test_truncation_bootstraps_and_termination_does_not(tmp_path, monkeypatch, cut, worth):
    """With gamma 0.8 the first state is worth 5 if the episode would go on, 2.952 if it is over after four."""
    monkeypatch.chdir(tmp_path)
    envs = dict(env_id="Test/Treadmill-v0", env_kwargs=("cut", cut), num_envs=8, num_steps=16, minibatch_size=32)
    ppo.main(ppo.Args(total_timesteps=40_000, gamma=0.8, clip_vloss=False, eval_episodes=0, learning_rate=3e-3, **envs))
    agent = ppo.Agent(2, (2,), 64)
    agent.load_state_dict(checkpoint(tmp_path)["model"])
    assert agent.critic(torch.tensor([[0.0, 1.0]])).item() == pytest.approx(worth, abs=0.25)


def test_the_bootstrap_is_from_the_final_observation_not_from_the_next_episodes_first(tmp_path, monkeypatch):
    """V(state) = 10 gamma^(7 - state) / (1 - gamma^8), as if nothing were cut; the next first state is a random one."""
    monkeypatch.chdir(tmp_path)
    envs = dict(env_id="Test/Wheel-v0", num_envs=16, num_steps=16, minibatch_size=64)
    ppo.main(ppo.Args(total_timesteps=80_000, gamma=0.8, clip_vloss=False, eval_episodes=0, learning_rate=3e-3, **envs))
    agent = ppo.Agent(8, (2,), 64)
    agent.load_state_dict(checkpoint(tmp_path)["model"])
    expected = 10 * 0.8 ** (7 - torch.arange(8.0)) / (1 - 0.8**8)
    torch.testing.assert_close(agent.critic(torch.eye(8)).squeeze(1).detach(), expected, atol=0.5, rtol=0)


def test_learns_job_routing_in_seconds(tmp_path, monkeypatch):
    """Random legal play scores about half of the optimum; 100,000 steps reach over 95 %, 60,000 already over 85 %."""
    monkeypatch.chdir(tmp_path)
    scores = ppo.main(ppo.Args(total_timesteps=60_000, eval_episodes=64))
    assert scores["optimality"] > 0.85
    assert scores["optimality_no_mask"] < scores["optimality"] - 0.2


def test_the_mask_is_predicted_where_the_state_tells_it_and_cannot_be_where_it_does_not(tmp_path, monkeypatch):
    """Shown which machines are up, the head knows them; hidden, half of what it allows is down."""
    monkeypatch.chdir(tmp_path)
    flags = dict(predict_mask=True, eval_mask_drop=0.5, eval_episodes=64, save_model=False)
    shown = main(Args(**flags, total_timesteps=81920, env_kwargs=("show_up", "True")))
    hidden = main(Args(**flags, total_timesteps=20480))
    assert shown["illegal_rate"] == hidden["illegal_rate"] == 0 == shown["illegal_rate_mask_dropped"]
    assert shown["illegal_rate_predicted_mask"] < 0.3 < 0.4 < hidden["illegal_rate_predicted_mask"]
    assert shown["episodic_return_predicted_mask"] > shown["episodic_return_no_mask"]
    assert shown["episodic_return_mask_dropped"] < shown["episodic_return"]


def test_a_predicted_mask_leaves_every_field_a_choice_and_the_policy_alone():
    torch.manual_seed(0)
    agent = ppo.Agent(4, (3, 2), 8)
    head, obs = ppo.MaskHead(agent), torch.randn(64, 4)
    head.linear.bias.data.fill_(-10)  # nothing is probable
    mask = head.predict(obs, (3, 2))
    assert mask[:, :3].sum(1).tolist() == [1] * 64 == mask[:, 3:].sum(1).tolist()
    before = [p.detach().clone() for p in agent.parameters()]
    optimizer = ppo.Adam(head, eps=1e-5)
    optimizer.lr.fill_(0.1)
    for _ in range(400):
        head.learn(optimizer, obs, torch.ones(64, 5, dtype=torch.bool), lambda x: x)
    assert head.predict(obs, (3, 2)).all()
    assert all(torch.equal(a, b) for a, b in zip(before, agent.parameters(), strict=True))


def test_what_cannot_be_predicted_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="--predict-mask learns from masks, which --mask-mode none does not read"):
        main(Args(predict_mask=True, mask_mode="none"))
    with pytest.raises(ValueError, match="--predict-mask predicts each field by itself; here they depend"):
        main(Args(predict_mask=True, env_id="Masked/BinPlacement-v0", env_kwargs=("dependent", "True")))
    assert not (tmp_path / "runs").exists()
    agent = ppo.Agent(3, (2,), 8)
    agent.actor = agent.actor[-1]
    with pytest.raises(ValueError, match="--predict-mask reads the layers of Agent.actor: expected nn.Sequential"):
        ppo.MaskHead(agent)


def test_the_head_of_the_mask_learns_from_updates_that_end_early(tmp_path, monkeypatch):
    """Two rollouts of four minibatches, with one epoch each."""
    monkeypatch.chdir(tmp_path)
    main(Args(predict_mask=True, target_kl=1e-12, total_timesteps=2048, eval_episodes=0))
    saved = checkpoint()
    assert saved["head_optimizer"]["steps"][0] == saved["optimizer"]["steps"][0] == 8


def test_stricter_masks_keep_a_choice_in_each_field_and_allow_nothing_new():
    rng, nvec = np.random.default_rng(0), np.array([2, 3])
    mask = (rng.random((2000, 5)) < 0.6).astype(np.int8)
    mask[:, [0, 2]] = 1
    strict = drop_legal(mask, nvec, 0.5, rng)
    assert (strict <= mask).all() and strict[:, :2].any(1).all() and strict[:, 2:].any(1).all()
    # Of two legal choices one stays at least: each goes with probability 1/2 - 1/2 * 1/4.
    both = mask[:, :2].all(1)
    assert abs(strict[both, 1].mean() - 0.625) < 0.05
    np.testing.assert_array_equal(drop_legal(mask, nvec, 0.0, rng), mask)
    grid = np.concatenate([np.ones((2000, 1, 1, 1), np.int8), mask[:, :, None, None]], axis=1)
    strict = drop_legal(grid, nvec, 0.5, rng)
    assert strict.shape == grid.shape and strict[:, 0].all() and abs(strict[both, 2].mean() - 0.625) < 0.05
    assert not drop_legal(grid * 0, nvec, 0.5, rng).any()


def test_dependent_fields_are_learnt_in_all_arms(tmp_path, monkeypatch):
    """The orientation depends on the bin: legal play only with the mask, and better than independent fields can be."""
    monkeypatch.chdir(tmp_path)
    flags = dict(env_id="Masked/BinPlacement-v0", env_kwargs=("dependent", "True"), eval_episodes=64, save_model=False)
    scores = main(Args(**flags, total_timesteps=40960))
    assert scores["illegal_rate"] == 0 and scores["optimality"] > 0.6
    for mode in ("naive", "penalty", "none"):
        scores = main(Args(**flags, total_timesteps=2048, mask_mode=mode))
        assert (scores["illegal_rate"] == 0) == (mode == "naive")
