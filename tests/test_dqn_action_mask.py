"""Masked DQN: target, buffer, exploration, a solved decision problem, and what it learns."""

import numpy as np
import pytest
import torch
import worlds  # noqa: F401
from script import checkpoint

import dqn_action_mask as dqn
import ppo_action_mask as ppo

CPU = torch.device("cpu")


def test_columns_where_rows_are_expected_are_refused():
    rows, q = torch.zeros(3), torch.zeros(3, 2)
    for rewards, terminations in ((rows[:, None], rows.bool()), (rows, rows[:, None].bool()), (rows[:1], rows[:1] > 0)):
        with pytest.raises(ValueError, match="rewards have shape .*, terminations .*; expected .B,., .B,. and .B, A."):
            dqn.td_targets(rewards, terminations, q, None, 0.9)
    with pytest.raises(ValueError, match="next_q .3, 2, 2.; expected .B,., .B,. and .B, A."):
        dqn.td_targets(rows, rows.bool(), torch.zeros(3, 2, 2), None, 0.9)
    for online in (q[:1], q[:, :1]):
        with pytest.raises(ValueError, match="online_next_q has shape .*, next_q .3, 2.; expected the same"):
            dqn.td_targets(rows, rows.bool(), q, None, 0.9, online)


def test_the_target_takes_the_best_legal_next_action():
    rewards, alive = torch.tensor([1.0, 1.0]), torch.tensor([False, False])
    next_q = torch.tensor([[1.0, 2.0, 9.0], [-5.0, -4.0, 9.0]])  # the illegal one is the largest, legal ones negative
    masks = torch.tensor([[True, True, False]] * 2)
    assert dqn.td_targets(rewards, alive, next_q, masks, 0.5).tolist() == [2.0, -1.0]
    assert dqn.td_targets(rewards, alive, next_q, None, 0.5).tolist() == [5.5, 5.5]


def test_double_q_chooses_among_legal_actions_with_the_online_network_and_values_with_the_target_network():
    next_q, online = torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[7.0, 3.0, 8.0]])
    mask = torch.tensor([[True, True, False]])
    assert dqn.td_targets(torch.zeros(1), torch.tensor([False]), next_q, mask, 1.0, online).item() == 1.0
    assert dqn.td_targets(torch.zeros(1), torch.tensor([False]), next_q, None, 1.0, online).item() == 9.0


def test_a_legal_value_as_low_as_can_be_lets_no_illegal_action_in():
    q, mask = (
        torch.tensor([[5.0, -torch.inf], [5.0, torch.finfo(torch.float32).min]]),
        torch.tensor([[False, True]] * 2),
    )
    assert dqn.masked(q, mask).argmax(1).tolist() == [1, 1]


@pytest.mark.parametrize("mask", [
    torch.ones(2, 3, dtype=torch.uint8), torch.ones(2, 3), torch.ones(1, 3, dtype=torch.bool),
    torch.ones(3, 2, dtype=torch.bool),
])  # fmt: skip
def test_a_mask_that_would_not_mask_is_refused(mask):
    words = r"The mask has shape \(\d, \d\) and dtype .*; expected \(2, 3\) and torch.bool, True where legal"
    with pytest.raises(ValueError, match=words):
        dqn.td_targets(torch.zeros(2), torch.tensor([False, False]), torch.zeros(2, 3), mask, 0.5)


@pytest.mark.parametrize("double_q", [True, False])
def test_a_terminal_state_without_legal_actions_contributes_nothing(double_q):
    """And never inf or NaN, in the loss and in its gradient."""
    network, target = dqn.QNetwork(3, 4, 8), dqn.QNetwork(3, 4, 8)
    obs, masks = torch.randn(5, 3), torch.zeros(5, 4, dtype=torch.bool)
    rewards, ended = torch.arange(5.0), torch.ones(5, dtype=torch.bool)
    mb = (obs, torch.zeros(5, dtype=torch.long), rewards, ended, torch.full((5, 3), 1e4), masks)
    loss, metrics = dqn.td_loss(network, target, mb, dqn.Args(double_q=double_q))
    assert loss.item() == pytest.approx(((network(obs)[:, 0] - rewards) ** 2).mean().item(), rel=1e-6)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters()) and not metrics.requires_grad


# Four states; the last one is only ever reached by a termination. Action 2 of state 1 would pay 10, but it is illegal
# there and never tried, so that nothing but its first value stands in the table.
NEXT = [[0, 1, 2], [1, 2, 3], [2, 3, 0], [3, 3, 3]]
REWARD = [[0.0, 1.0, 2.0], [0.5, 0.0, 10.0], [0.1, 3.0, 0.0], [1.0, 2.0, 5.0]]
LEGAL = [[True, True, False], [True, True, False], [True, False, True], [True, True, False]]
GAMMA = 0.9


def value_iteration():
    q = np.zeros((4, 3))
    for _ in range(500):
        best = np.where(LEGAL, q, -np.inf).max(axis=1)
        best[3] = 0  # state 3 is only reached by a termination
        q = np.array(REWARD) + GAMMA * best[NEXT]
    return q


def learn_table(args, first_illegal_value):
    """All legal transitions as one minibatch, until the table stands still."""
    torch.manual_seed(0)
    pairs = [(s, a) for s in range(3) for a in range(3) if LEGAL[s][a]]
    states, actions = (torch.tensor(column) for column in zip(*pairs, strict=True))
    following = torch.tensor(NEXT)[states, actions]
    rewards, masks = torch.tensor(REWARD)[states, actions], torch.tensor(LEGAL)
    eye = torch.eye(4)
    table, target = (torch.nn.Sequential(torch.nn.Linear(4, 3, bias=False)) for _ in range(2))
    with torch.no_grad():
        table[0].weight.T[~masks] = first_illegal_value
    optimizer = dqn.Adam(table, eps=1e-8)
    next_masks = masks[following] | (args.mask_mode != "mask")
    mb = (eye[states], actions, rewards, following == 3, eye[following], next_masks)
    for step in range(4000):
        optimizer.lr.fill_(0.05 * (1 - step / 4000))
        if step % 20 == 0:
            target.load_state_dict(table.state_dict())
        dqn.update(table, target, optimizer, mb, args, mean=lambda gradients: gradients)
    return table[0].weight.detach().T.numpy(), pairs


@pytest.mark.parametrize("double_q", [True, False])
def test_a_small_problem_is_solved_exactly_and_the_unmasked_target_overestimates(double_q):
    """Value iteration over legal actions gives Q*(0, 1) = 1.0 + 0.9 Q*(1, 0) = 5.5; the update finds the same to 1e-3.

    Without the mask the target takes in the illegal actions' values (8 here), which no experience corrects: the table
    then says 8.2 for the same state and action.
    """
    expected = value_iteration()
    args = dqn.Args(gamma=GAMMA, double_q=double_q, max_grad_norm=1e9)
    q, pairs = learn_table(args, first_illegal_value=8.0)
    for s, a in pairs:
        assert q[s, a] == pytest.approx(expected[s, a], abs=1e-3), (s, a)
    args.mask_mode = "naive"
    wrong, _ = learn_table(args, first_illegal_value=8.0)
    print(f"Q(0, 1): exact {expected[0, 1]:.3f}, masked target {q[0, 1]:.3f}, unmasked {wrong[0, 1]:.3f}")
    assert wrong[0, 1] > expected[0, 1] + 1.0
    assert all(wrong[s, a] >= expected[s, a] - 1e-3 for s, a in pairs)


def test_the_buffer_keeps_dtypes_wraps_around_and_samples_what_it_holds():
    fields = {"obs": ((2,), torch.uint8), "rewards": ((), torch.float32), "next_masks": ((3,), torch.bool)}
    replay = dqn.ReplayBuffer(12, fields, CPU)
    generator = torch.Generator().manual_seed(0)
    for i in range(5):  # 2 steps of 2 environments at a time
        number = np.arange(4.0, dtype=np.float32).reshape(2, 2) + 4 * i
        replay.add({"obs": np.stack([number, number], -1), "rewards": number, "next_masks": np.ones((2, 2, 3), bool)})
        assert replay.size == min(4 * (i + 1), 12)
        obs, rewards, masks = replay.sample(2000, generator)
        held = set(range(max(0, 4 * (i + 1) - 12), 4 * (i + 1)))
        assert set(rewards.tolist()) == held and torch.equal(obs[:, 0].float(), rewards)
        assert (obs.dtype, masks.dtype) == (torch.uint8, torch.bool)
    assert replay.nbytes == 12 * (2 + 4 + 3)


def test_a_buffer_that_cannot_fit_is_refused_with_the_number(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match=r"--buffer-size: 10,000,000,000,000 transitions need .* GiB, but cpu has .* or fewer"
    ):
        dqn.main(dqn.Args(buffer_size=10**13))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("epsilon", [0.0, 0.4, 1.0])
def test_exploration_is_uniform_over_legal_actions(epsilon):
    """Frequencies of 40,000 draws within five standard errors; illegal actions never, though their values are best."""
    network = dqn.QNetwork(2, 5, 8)
    with torch.no_grad():
        network.network[-1].bias.copy_(torch.tensor([0.0, 50.0, 20.0, 90.0, 10.0]))
    q_values = dqn.OnHost(network, network)(np.zeros((40_000, 2), np.float32))
    mask = np.array([True, False, True, False, True])
    count = 40_000
    given = q_values.copy()
    actions = dqn.epsilon_greedy(q_values, np.tile(mask, (count, 1)), epsilon, np.random.default_rng(0))
    np.testing.assert_array_equal(q_values, given)
    expected = epsilon * mask / 3 + (1 - epsilon) * np.array([0, 0, 1, 0, 0])
    frequencies = np.bincount(actions, minlength=5) / count
    assert (abs(frequencies - expected) <= 5 * np.sqrt(expected * (1 - expected) / count)).all()
    lowest = np.array([[-np.inf, 0.0, -np.inf]] * 8, np.float32)  # the values of what is legal too
    legal = np.array([[False, False, True]] * 8)
    assert dqn.epsilon_greedy(lowest, legal, epsilon, np.random.default_rng(0)).tolist() == [2] * 8


def test_stored_transitions_lead_to_the_final_state_not_to_the_next_episodes_first(tmp_path, monkeypatch):
    """On the wheel the next state always is the following one, also where a piece is cut."""
    monkeypatch.chdir(tmp_path)
    stored = []

    class Recorded(dqn.ReplayBuffer):
        def add(self, transitions):
            super().add(transitions)
            stored.append({name: values.copy() for name, values in transitions.items()})

    monkeypatch.setattr(dqn, "ReplayBuffer", Recorded)
    sizes = dict(num_envs=8, train_frequency=4, batch_size=32, replay_ratio=1, learning_starts=64, buffer_size=512)
    dqn.main(dqn.Args(env_id="Test/Wheel-v0", total_timesteps=640, eval_episodes=0, save_model=False, **sizes))
    states = np.concatenate([t["obs"].argmax(-1).ravel() for t in stored])
    next_states = np.concatenate([t["next_obs"].argmax(-1).ravel() for t in stored])
    assert len(states) == 640 and (next_states == (states + 1) % 8).all()


def train_small(env_id, obs_dim, **flags):
    sizes = dict(num_envs=8, batch_size=64, replay_ratio=4, train_frequency=4, learning_starts=256, buffer_size=4096)
    flags |= sizes | dict(gamma=0.8, target_network_frequency=200, hidden_dim=32, eval_episodes=0)
    dqn.main(dqn.Args(env_id=env_id, total_timesteps=20_000, **flags))
    network = dqn.QNetwork(obs_dim, 2, 32)
    network.load_state_dict(checkpoint()["model"])
    return network


def test_truncation_bootstraps_from_the_final_observation(tmp_path, monkeypatch):
    """V(state) = 10 gamma^(7 - state) / (1 - gamma^8), as if nothing were cut; the next first state is a random one."""
    monkeypatch.chdir(tmp_path)
    values = train_small("Test/Wheel-v0", 8)(torch.eye(8)).detach()
    expected = 10 * 0.8 ** (7 - torch.arange(8.0)) / (1 - 0.8**8)
    torch.testing.assert_close(values, expected[:, None].expand(8, 2), atol=0.5, rtol=0)


def test_termination_does_not_bootstrap(tmp_path, monkeypatch):
    """Four steps of reward 1 are worth 1 + 0.8 + 0.64 + 0.512."""
    monkeypatch.chdir(tmp_path)
    values = train_small("Test/Treadmill-v0", 2, env_kwargs=("cut", "termination"))(torch.tensor([[0.0, 1.0]]))
    assert values.max().item() == pytest.approx(2.952, abs=0.25)


@pytest.mark.parametrize("flags, words", [
    (("--replay-ratio", "0.3"), "--replay-ratio 0.3: 256 environment steps .* 0.3 updates of --batch-size 256"),
    (("--batch-size", "100"), "10.24 updates of --batch-size 100; expected a whole number"),
    (("--buffer-size", "5000"), "--buffer-size 5000 holds less than --learning-starts 10000"),
    (("--target-network-frequency", "200"), "--target-network-frequency 200: .* after each round of 256 environment"),
    (("--total-timesteps", "10"), "less than one rollout of 256 steps"),
    (("--total-timesteps", "8192"), "--learning-starts 10000: nothing would be learnt in 8192 steps"),
    (("--env-id", "Masked/BinPlacement-v0"), "DQN takes Discrete, and ppo_action_mask.py takes MultiDiscrete"),
])  # fmt: skip
def test_bad_flags_are_refused(tmp_path, monkeypatch, flags, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=words):
        dqn.main(dqn.parse(dqn.Args, flags))
    assert not (tmp_path / "runs").exists()


def test_learns_job_routing_in_seconds(tmp_path, monkeypatch, capsys):
    """Random legal play scores about half of the optimum; 300,000 steps reach over 99 %, 60,000 already over 85 %."""
    monkeypatch.chdir(tmp_path)
    scores = dqn.main(dqn.Args(total_timesteps=60_000, eval_episodes=64))
    assert scores["optimality"] > 0.85
    assert scores["optimality_no_mask"] < scores["optimality"] - 0.2
    assert "Replay buffer: 99,840 transitions, 8.1 MiB on cpu" in capsys.readouterr().out


def test_a_truncated_state_in_which_nothing_is_legal_has_no_target(tmp_path, monkeypatch):
    """Its value is the best legal action's: without one DQN stops; PPO, which values the state itself, does not."""
    monkeypatch.chdir(tmp_path)
    flags = {"env_id": "test_guests:Test/Over-v0", "env_kwargs": ("convention", "own", "cut", "truncated")}
    flags |= {"num_envs": 2, "total_timesteps": 64, "eval_episodes": 0}
    with pytest.raises(ValueError, match="Environment 0: nothing is legal in the state that a truncation led to"):
        dqn.main(dqn.Args(**flags, train_frequency=8, learning_starts=0, batch_size=8))
    ppo.main(ppo.Args(**flags, num_steps=8, minibatch_size=8))
