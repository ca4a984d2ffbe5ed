"""What users do to their copy of a script: they edit the marked part, or add a line, and nothing bypasses it."""

import importlib.util
import re
import sys

import numpy as np
import pytest
import torch
import worlds  # noqa: F401
from script import ROOT
from torch import nn

import dqn_action_mask as dqn
import ppo_action_mask as ppo
from experiment.fast import COMPARE_EVERY, OnHost, sampler

TRUNK = """
        self.trunk = self._mlp(obs_dim, hidden_dim, hidden_dim, std=1.0)
        self.actor = layer_init(nn.Linear(hidden_dim, sum(nvec)), std=0.01)
        self.critic = layer_init(nn.Linear(hidden_dim, 1), std=1.0)

    def forward(self, obs, mask):
        hidden = self.trunk(obs)
        logits, values = self.actor(hidden), self.critic(hidden).squeeze(-1)
"""
CNN = """
        self.trunk = nn.Sequential(layer_init(nn.Conv2d(1, 8, 3)), nn.ReLU(), nn.Flatten())
        self.actor = layer_init(nn.Linear(8 * 4 * 4, sum(nvec)), std=0.01)
        self.critic = layer_init(nn.Linear(8 * 4 * 4, 1), std=1.0)

    def forward(self, obs, mask):
        hidden = self.trunk(obs.view(-1, 1, 6, 6) / 255)
        logits, values = self.actor(hidden), self.critic(hidden).squeeze(-1)
"""
Q_CNN = """
        self.network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4 * 4, num_actions))

    def forward(self, obs):
        return self.network(obs.view(-1, 1, 6, 6).float() / 255)
"""


def edited(name, marked, folder):
    """The script with another text between its two marks, as a module."""
    source = (ROOT / f"{name}.py").read_text()
    source, count = re.subn(
        r"(# --- adapt this to your env ---\n).*?( *# -{30}\n)", rf"\1{marked}\2", source, flags=re.S
    )
    assert count == 1
    path = folder / f"{name}.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(f"edited_{name}", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("marked, env_id, steps", [
    (TRUNK, "Masked/JobRouting-v0", 60_000),
    (CNN, "Test/Spot-v0", 10_000),
])  # fmt: skip
def test_a_shared_trunk_and_a_cnn_need_the_marked_part_only(
    tmp_path, monkeypatch, capsys, marked, env_id, steps, compile
):
    """Random legal play scores half of the optimum on JobRouting, and 8 / 3 of 8 on pictures."""
    monkeypatch.chdir(tmp_path)
    script = edited("ppo_action_mask", marked, tmp_path)
    sizes = {} if "Masked" in env_id else dict(num_envs=8, num_steps=32, minibatch_size=64, learning_rate=3e-3)
    scores = script.main(script.Args(env_id=env_id, total_timesteps=steps, eval_episodes=32, compile=compile, **sizes))
    assert scores["illegal_rate"] == 0
    assert scores.get("optimality", scores["episodic_return"] / 8) > 0.85
    assert "Agent acts in torch" in capsys.readouterr().err


def test_dqn_takes_pictures_as_well(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    script = edited("dqn_action_mask", Q_CNN, tmp_path)
    sizes = dict(num_envs=8, batch_size=64, train_frequency=8, learning_starts=512, buffer_size=4096)
    scores = script.main(script.Args(env_id="Test/Spot-v0", total_timesteps=10_240, eval_episodes=32, **sizes))
    assert scores["episodic_return"] / 8 > 0.85 and scores["illegal_rate"] == 0
    assert "QNetwork acts in torch" in capsys.readouterr().err


class Rescaled(ppo.Agent):
    """One line more: observations are scaled before anything sees them."""

    def forward(self, obs, mask):
        return super().forward(0.1 * obs, mask)


class Warmer(ppo.Agent):
    """One line more: the logits get a temperature."""

    def forward(self, obs, mask):
        policy, values = super().forward(obs, mask)
        return ppo.CategoricalMasked(policy.logits / 3, mask, self.nvec, validate=False), values


class Normalized(ppo.Agent):
    """A normalization that starts as no change at all, and changes while it trains."""

    def __init__(self, *args):
        super().__init__(*args)
        self.register_buffer("scale", torch.ones(()))

    def forward(self, obs, mask):
        return super().forward(self.scale * obs, mask)


class ReadsMask(ppo.Agent):
    """The network sees what is legal."""

    def __init__(self, obs_dim, nvec, hidden_dim):
        super().__init__(obs_dim + sum(nvec), nvec, hidden_dim)

    def forward(self, obs, mask):
        return super().forward(torch.cat([obs, mask.float()], dim=1), mask)


def frequencies(act, obs, calls):
    mask = np.ones((len(obs), 4), bool)
    mask[:, 3] = False
    return np.mean([np.bincount(act(obs, mask), minlength=4) / len(obs) for _ in range(calls)], axis=0)


@pytest.mark.parametrize("agent_class", [ppo.Agent, Rescaled, Warmer, Normalized, ReadsMask])
def test_a_line_that_is_added_counts_when_acting(agent_class, capsys):
    """Frequencies of 100,000 draws within 0.01, where those of the unedited network would be off by more."""
    torch.manual_seed(0)
    agent = agent_class(3, (4,), 8)
    with torch.no_grad():
        for p in agent.actor.parameters():
            p.mul_(3)
        agent.actor[-1].weight.mul_(100)
    act = sampler(agent, np.array([4]), np.random.default_rng(0))
    obs = np.tile(np.array([[2.0, -1.0, 0.5]], np.float32), (10_000, 1))
    frequencies(act, obs[:8], 1)
    if agent_class is Normalized:
        agent.scale.fill_(0.1)
        frequencies(act, obs[:8], COMPARE_EVERY)
    mask = torch.tensor([[True, True, True, False]])
    with torch.no_grad():
        right = agent(torch.from_numpy(obs[:1]), mask)[0].probs[0].numpy()
        plain = torch.from_numpy(obs[0])
        plain = torch.cat([plain, torch.ones(4)]) if agent_class is ReadsMask else plain  # as if all were legal
        plain = torch.where(mask[0], agent.actor(plain), -torch.inf).softmax(-1).numpy()
    assert agent_class is ppo.Agent or np.abs(right - plain).max() > 0.05
    np.testing.assert_allclose(frequencies(act, obs, 10), right, atol=0.01)
    assert ("acts in torch" in capsys.readouterr().err) == (agent_class is not ppo.Agent)


def test_a_line_that_is_added_counts_for_q_values(capsys):
    class Rescaled(dqn.QNetwork):
        def forward(self, obs):
            return super().forward(0.1 * obs)

    obs = np.random.default_rng(0).standard_normal((16, 3), np.float32)
    for network, said in ((dqn.QNetwork(3, 4, 8), ""), (Rescaled(3, 4, 8), "acts in torch")):
        with torch.no_grad():
            np.testing.assert_allclose(OnHost(network, network)(obs), network(torch.from_numpy(obs)), atol=1e-6)
        assert said in capsys.readouterr().err


def test_another_activation_acts_in_torch():
    agent = ppo.Agent(3, (4,), 8)
    agent.actor[1] = nn.ELU()
    act = sampler(agent, np.array([4]), np.random.default_rng(0))
    assert set(act(np.zeros((50, 3), np.float32), np.array([[True, False, True, False]] * 50))) == {0, 2}


def test_a_network_of_another_width_is_never_taken_for_the_policy():
    """Both last layers are 0 at first, and one column of zeros is near four."""
    agent = ppo.Agent(3, (4,), 8)
    agent._modules = {name: agent._modules[name] for name in ("critic", "actor")}
    for network in (agent.actor, agent.critic):
        nn.init.zeros_(network[-1].weight)
    act = sampler(agent, np.array([4]), np.random.default_rng(0))
    drawn = act(np.zeros((400, 3), np.float32), np.ones((400, 4), bool))
    assert np.bincount(drawn, minlength=4).min() > 50


@pytest.mark.parametrize("bias", [float("nan"), float("-inf")])
def test_a_network_that_has_diverged_stops_nowhere_but_where_the_loss_is_looked_at(bias):
    agent = ppo.Agent(3, (4,), 8)
    nn.init.constant_(agent.actor[-1].bias, bias)
    act = sampler(agent, np.array([4]), np.random.default_rng(0))
    assert set(act(np.zeros((50, 3), np.float32), np.array([[False, True, False, False]] * 50))) == {1}
    network = dqn.QNetwork(3, 4, 8)
    nn.init.constant_(network.network[-1].bias, bias)
    assert not np.isfinite(OnHost(network, network)(np.zeros((2, 3), np.float32))).any()
