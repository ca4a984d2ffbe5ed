"""PettingZoo's games by turns, with a row for each seat; skipped where PettingZoo is not installed."""

import json
import sys
import types

import numpy as np
import pytest
from gymnasium import spaces
from script import run_folder
from test_scripts import main

from envs.make import make_vec
from envs.worlds.pettingzoo import PettingZoo

TICTACTOE = "pettingzoo.classic.tictactoe_v3"


def legal_moves(rng, infos):
    mask = infos["action_mask"]
    return np.where(mask > 0, rng.random(mask.shape), -1).argmax(axis=1)


class Race:
    """Three seats say in turn how far they run, 1 or 2; who gets to 4 is out, until the last is. A mask says how far.

    The interface is PettingZoo's, the rules are too small for it to have them.
    """

    possible_agents = ["ann", "bob", "cyd"]

    def __init__(self, masked=True, seats=3, render_mode=None, first=0, fields=1, fault=None):
        self.fault = fault
        self.masked, self.possible_agents, self.first = masked, Race.possible_agents[:seats], first
        self.actions = spaces.Discrete(2, start=first) if fields == 1 else spaces.MultiDiscrete([2] * fields)

    def observation_space(self, seat):
        seen = {"observation": spaces.Box(0, 9, (3,), np.int64)}
        return spaces.Dict(seen | ({"action_mask": spaces.MultiBinary(2)} if self.masked else {}))

    def action_space(self, seat):
        return self.actions

    def reset(self, seed=None):
        self.agents, self.at = list(self.possible_agents), dict.fromkeys(self.possible_agents, 0)
        self.terminations = dict.fromkeys(self.possible_agents, False)
        self.truncations = dict(self.terminations)
        self.agent_selection, self.rewards = self.agents[0], {}

    def step(self, action):
        if self.fault == "step":
            raise KeyError("ann")
        seat, order = self.agent_selection, self.agents
        behind = order[(order.index(seat) + 1) % len(order)]
        if self.terminations[seat]:
            assert action is None
            self.agents = [one for one in self.agents if one != seat]
            self.rewards = {}
        else:
            self.at[seat] += int(action) - self.first + 1
            self.rewards = {seat: 1.0 if self.at[seat] == 4 else 0.0}
            self.terminations[seat] = self.at[seat] == 4
            behind = seat if self.terminations[seat] else behind
        self.agent_selection = behind if behind in self.agents else (self.agents or [seat])[0]

    def observe(self, seat):
        mask = np.array([1, self.at[seat] < 3], np.int8)
        mask = {"half": np.array([0.5, 1]), "nan": [1, np.nan], "long": [1, 1, 1], "none": [0, 0]}.get(self.fault, mask)
        if self.fault == "thin":
            return {"observation": np.zeros(2), "action_mask": mask}
        return {"observation": np.array([self.at[one] for one in Race.possible_agents[:3]]), "action_mask": mask}

    def close(self):
        pass


@pytest.fixture(autouse=True)
def race(monkeypatch):
    module = types.ModuleType("race_v0")
    module.env = Race
    monkeypatch.setitem(sys.modules, "race_v0", module)


@pytest.mark.parametrize("first", [0, 5])
def test_three_seats_move_in_turn_and_who_is_out_waits_for_the_others(first):
    env = PettingZoo(6, game="race_v0", first=first)
    obs, infos = env.reset(seed=0)
    assert infos["action_mask"].tolist() == [[1, 1, 0], [0, 0, 1], [0, 0, 1]] * 2
    assert obs["turn"].tolist() == [[1], [0], [0]] * 2
    turns, paid = [], np.zeros(6)
    for _ in range(9):
        actions = [0 if infos["action_mask"][row, 2] == 0 else 2 for row in range(6)]
        if infos["action_mask"][0, 1]:
            actions[0] = 1  # the first one runs: 2, 4 and is out
        turns.append(int(obs["turn"][:3].argmax()))
        obs, rewards, terminations, truncations, infos = env.step(actions)
        paid += rewards
        assert not terminations.any()
    assert turns == [0, 1, 2, 0, 1, 2, 1, 2, 1]
    assert paid.tolist() == [1, 1, 0, 0, 0, 0]
    obs, rewards, terminations, *_, infos = env.step([2, 2, 0, 2, 2, 0])
    assert terminations.tolist() == [True] * 3 + [False] * 3 and rewards.tolist() == [0, 0, 1, 0, 0, 0]
    assert infos["final_info"]["success"].tolist() == [1, 1, 1, 0, 0, 0]
    assert infos["final_obs"]["observation"][2].tolist() == [4, 4, 4] and obs["observation"][0].tolist() == [0, 0, 0]


def test_illegal_moves_and_those_of_who_waits_never_reach_the_game():
    env = PettingZoo(3, game="race_v0", max_episode_steps=5)
    env.reset(seed=0)
    env.games[0].at["ann"] = 3
    env._look(0)
    for actions in ([1, 2, 2], [2, 0, 0], [2, 2, 2]):
        _, rewards, terminations, _, infos = env.step(actions)
        assert env.games[0].at == {"ann": 3, "bob": 0, "cyd": 0} and not rewards.any() and not terminations.any()
    env.step([2, 2, 2])
    assert env.step([2, 2, 2])[3].all()  # truncated


@pytest.mark.parametrize("num_envs, kwargs, words", [
    (3, {"game": "race_v0", "masked": False}, "race_v0 observes Dict.*; expected a Dict of observation and action"),
    (1, {"game": "race_v0", "seats": 1}, "race_v0 has 1 seats and 1 environments; expected two seats or more"),
    (3, {"game": "race_v0", "fields": 2}, r"race_v0 takes actions of MultiDiscrete\(\[2 2\]\); expected Discrete"),
    (4, {"game": "race_v0"}, "race_v0 has 3 seats and 4 environments; expected .* a multiple of them"),
])  # fmt: skip
def test_what_cannot_be_played_by_turns_is_refused(num_envs, kwargs, words):
    with pytest.raises(ValueError, match=words):
        make_vec("Masked/PettingZoo-v0", num_envs, kwargs)
    with pytest.raises(ImportError, match=r"game no_such_game: .*pettingzoo.classic.tictactoe_v3"):
        make_vec("Masked/PettingZoo-v0", 2, {"game": "no_such_game"})


@pytest.mark.parametrize("fault, words", [
    ("half", "Environment 4: the action mask holds 0.5 at entry 0; expected only 0"),
    ("nan", "Environment 4: the action mask holds nan at entry 1"),
    ("long", r"Environment 4: the action mask has shape \(3,\)"),
    ("none", "Environment 4: the action mask leaves no legal action"),
    ("thin", "Environment [03]: the observation is .*; expected Box"),
    ("step", r"Environment 3: step\(0\) of its game raised KeyError: 'ann'. Expected what PettingZoo's"),
])  # fmt: skip
def test_what_a_game_does_wrong_is_one_sentence_with_its_index(fault, words):
    env = PettingZoo(6, game="race_v0")
    env.reset(seed=0)
    env.games[1].fault = fault
    with pytest.raises(ValueError, match=words):
        env.step([0, 2, 2, 0, 2, 2])
        env.reset(seed=0)


def test_games_of_tictactoe_are_its_own_and_sum_to_zero():
    pytest.importorskip(TICTACTOE, reason="optional")
    envs, rng, ends = make_vec("Masked/PettingZoo-v0", 8, {"game": TICTACTOE}), np.random.default_rng(0), []
    obs, infos = envs.reset(seed=0)
    assert obs.shape == (8, 3 * 3 * 2 + 1) and envs.get_state() is None
    for _ in range(200):
        np.testing.assert_array_equal(infos["action_mask"][:, 9] == 0, obs[:, -1] == 1)
        assert (obs[::2, -1] + obs[1::2, -1] == 1).all()
        obs, rewards, terminations, _, infos = envs.step(legal_moves(rng, infos))
        np.testing.assert_array_equal(rewards[::2], -rewards[1::2])
        np.testing.assert_array_equal(terminations[::2], terminations[1::2])
        ends += rewards[::2][terminations[::2]].tolist()
    assert {-1, 0, 1} == set(ends)


def test_a_script_trains_on_it_in_self_play(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = (
        "--env-id",
        "Masked/PettingZoo-v0",
        "--env-kwargs",
        "game",
        "race_v0",
        "--num-envs",
        "6",
        "--num-steps",
        "8",
    )
    scores = main(
        "ppo_action_mask", *flags, "--minibatch-size", "48", "--total-timesteps", "96", "--eval-episodes", "6"
    )
    assert scores["episodic_return"] == 1 and scores["illegal_rate"] == 0
    capsys.readouterr()
    for episodes in ("1", "4"):  # no multiple of the three seats
        main("ppo_action_mask", "--eval-only", str(run_folder()), "--eval-episodes", episodes)
        assert json.loads(capsys.readouterr().out)["as_trained"]["episodic_return"] == 1


class Cut(Race):
    """Cut, for all seats at once, after three moves; a seat sees its hand, too."""

    def observation_space(self, seat):
        return spaces.Dict(super().observation_space(seat).spaces | {"hand": spaces.MultiBinary(2)})

    def reset(self, seed=None):
        super().reset(seed)
        self.moves = 0

    def step(self, action):
        if self.truncations[self.agent_selection]:
            assert action is None
            self.agents, self.rewards = self.agents[1:], {}
            self.agent_selection = (self.agents or ["ann"])[0]
            return
        super().step(action)
        self.moves += 1
        if self.moves == 3:
            self.truncations, self.agent_selection = dict.fromkeys(self.agents, True), self.agents[0]

    def observe(self, seat):
        return super().observe(seat) | {"hand": np.array([seat == "ann", 1], np.int8)}


def test_a_games_own_truncation_is_one_and_every_key_is_seen(monkeypatch):
    monkeypatch.setattr(sys.modules["race_v0"], "env", Cut)
    env = PettingZoo(num_envs=3, game="race_v0")
    obs, infos = env.reset(seed=0)
    assert obs["hand"].tolist() == [[1, 1], [0, 1], [0, 1]] and obs["turn"].tolist() == [[1], [0], [0]]
    for ended in (False, False, True):
        actions = infos["action_mask"].argmax(1)  # who moves runs 1
        _, _, terminations, truncations, infos = env.step(actions)
        assert (truncations == ended).all() and not terminations.any()
    assert infos["final_obs"]["observation"].tolist() == [[1, 1, 1]] * 3
