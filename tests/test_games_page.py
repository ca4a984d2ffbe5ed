"""The game that docs/games.md writes down, as a reader would copy it."""

import re
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from script import ROOT, run, tensorboard

from envs.make import make_vec

(NIM,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "games.md").read_text(), re.S)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with `nim.py`, which is imported anew."""
    (tmp_path / "nim.py").write_text(NIM)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(gym.registry, "Nim-v0", raising=False)
    monkeypatch.delitem(sys.modules, "nim", raising=False)
    return tmp_path


def test_the_game_of_the_page_is_played_to_its_rules(folder):
    rng, left, wins = np.random.default_rng(0), np.full(32, 21), []
    envs = make_vec("nim:Nim-v0", 64)
    obs, infos = envs.reset(seed=0)
    for _ in range(200):
        mask, turn = infos["action_mask"].astype(bool), obs[:, -1] == 1
        assert (turn[::2] ^ turn[1::2]).all() and (obs[:, :-1].argmax(axis=1) == np.repeat(left, 2)).all()
        assert (mask[~turn] == [False, False, False, True]).all()  # who waits can but pass
        np.testing.assert_array_equal(mask[turn], np.stack([left >= 1, left >= 2, left >= 3, left < 0], axis=1))
        actions = np.where(mask, rng.random(mask.shape), -1).argmax(axis=1)
        left = left - actions[turn] - 1
        obs, rewards, terminations, truncations, infos = envs.step(actions)
        assert not truncations.any() and (rewards[::2] == -rewards[1::2]).all()
        np.testing.assert_array_equal(terminations, np.repeat(left == 0, 2))
        np.testing.assert_array_equal(rewards, np.where(terminations, np.where(turn, 1, -1), 0))  # who took the last
        wins += rewards[::2][left == 0].tolist()
        left[left == 0] = 21
    assert 0.2 < np.mean(np.array(wins) > 0) < 0.8 and len(wins) > 400


def test_illegal_moves_change_nothing_and_a_saved_game_goes_on(folder):
    envs = make_vec("nim:Nim-v0", 4)
    before, infos = envs.reset(seed=0)
    for actions in ([3, 3, 3, 3], [3, 0, 3, 1]):  # who moves passes, who waits moves
        obs, rewards, terminations, *_ = envs.step(np.array(actions))
        np.testing.assert_array_equal(obs, before)
        assert not rewards.any() and not terminations.any()
    envs.step(np.array([2, 3, 0, 3]))
    other = make_vec("nim:Nim-v0", 4)
    other.reset(seed=1)
    other.set_state(envs.get_state())
    for actions in ([3, 0, 3, 1], [1, 3, 2, 3]):
        np.testing.assert_array_equal(*(e.step(np.array(actions))[0] for e in (envs, other)))


def test_alone_it_passes_gymnasiums_checker_and_ends(folder):
    check_env(gym.make("nim:Nim-v0").unwrapped, skip_render_check=True)
    envs = make_vec("nim:Nim-v0", 1)
    envs.reset(seed=0)
    ends = [envs.step(np.array([action]))[2][0] for action in [2, 3] * 5 + [0]]  # it takes 3, they take 1
    assert ends == [False] * 10 + [True]


def test_a_script_trains_on_it_and_evaluates_it(folder):
    flags = ("--env-id", "nim:Nim-v0", "--num-envs", "16", "--num-steps", "16", "--minibatch-size", "64")
    done = run(folder, "ppo_action_mask", *flags, "--total-timesteps", "2048", "--eval-episodes", "7")
    assert done.returncode == 0, done.stderr
    assert "Evaluation: episodic_return" in done.stdout
    returns = [event.value for event in tensorboard(folder).Scalars("charts/episodic_return")]
    assert returns and max(map(abs, returns)) == 0  # zero-sum
    (path,) = folder.glob("runs/*/checkpoint.pt")
    done = run(folder, "ppo_action_mask", "--eval-only", str(path), "--eval-episodes", "4")
    assert done.returncode == 0, done.stderr
