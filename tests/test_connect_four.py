"""Connect Four through PettingZoo: rules, seats, masks; skipped where PettingZoo is not installed."""

import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from envs.make import make_vec
from envs.worlds.connect_four import COLUMNS, INSTALL, LINES, PLAYERS, ConnectFour


def has_pettingzoo():
    try:
        import pettingzoo.classic.connect_four.connect_four  # noqa: F401
    except ImportError:
        return False
    return True


needs_pettingzoo = pytest.mark.skipif(not has_pettingzoo(), reason=f"optional: {INSTALL}")


def test_a_missing_pettingzoo_is_said_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "pettingzoo.classic.connect_four.connect_four", None)
    with pytest.raises(ImportError, match=r'pip install "pettingzoo'):
        ConnectFour()


@needs_pettingzoo
def test_gymnasiums_checker_passes():
    check_env(gym.make("Masked/ConnectFour-v0", render_mode="rgb_array").unwrapped)


@needs_pettingzoo
def test_games_are_won_and_lost_by_four_in_a_row_and_the_mask_is_full_columns():
    env, rng, outcomes = ConnectFour(), np.random.default_rng(0), []
    for episode in range(60):
        obs, _ = env.reset(seed=episode)
        assert obs["observation"].sum() in (0, 1)  # either seat
        terminated = False
        while not terminated:
            board = obs["observation"].sum(-1)
            np.testing.assert_array_equal(obs["action_mask"], 1 - board[0])
            action = rng.choice(np.flatnonzero(obs["action_mask"]))
            obs, reward, terminated, truncated, _ = env.step(action)
            assert not truncated and (reward == 0 or terminated)
        own, other = (obs["observation"][..., k].reshape(-1)[LINES].all(axis=1).any() for k in (0, 1))
        assert reward == int(own) - int(other)
        outcomes.append(reward)
    assert outcomes.count(1) > 10 and outcomes.count(-1) > 10


@needs_pettingzoo
def test_a_full_column_is_a_no_op():
    env = ConnectFour()
    env.reset(seed=0)
    for seed in range(50):
        obs, _ = env.reset(seed=seed)
        terminated = False
        while not terminated and obs["action_mask"].all():
            obs, _, terminated, _, _ = env.step(3)
        if not terminated and obs["action_mask"][3] == 0:
            after, reward, terminated, truncated, _ = env.step(3)
            np.testing.assert_array_equal(after["observation"], obs["observation"])
            assert reward == 0 and not terminated and not truncated
            return
    raise AssertionError("some game fills the middle column")


@needs_pettingzoo
def test_only_illegal_moves_reach_the_time_limit_which_is_no_termination():
    env = ConnectFour(max_episode_steps=9)
    env.reset(seed=0)
    env.game.board[:COLUMNS] = [1, 0, 0, 0, 0, 0, 0]
    ends = [env.step(0)[2:4] for _ in range(9)]
    assert ends == [(False, False)] * 8 + [(False, True)]


@needs_pettingzoo
def test_the_mask_of_a_finished_game_is_pettingzoos_own():
    """All zeros after one's own last move; after the opponent's, the columns with room."""
    env, rng, seen = ConnectFour(), np.random.default_rng(0), set()
    for episode in range(40):
        obs, _ = env.reset(seed=episode)
        terminated = False
        while not terminated:
            obs, reward, terminated, *_ = env.step(rng.choice(np.flatnonzero(obs["action_mask"])))
        room = 1 - obs["observation"].sum(-1)[0]
        np.testing.assert_array_equal(obs["action_mask"], 0 * room if reward == 1 else room)
        seen.add((env.seat, reward))
    assert seen >= {(seat, reward) for seat in PLAYERS for reward in (1, -1)}


@needs_pettingzoo
def test_seeds_decide_the_game_and_make_vec_takes_the_mask_out_of_the_observation():
    def play(seed):
        envs = make_vec("Masked/ConnectFour-v0", 3)
        obs, infos = envs.reset(seed=seed)
        seen = []
        for _ in range(30):
            obs, rewards, *_, infos = envs.step(infos["action_mask"].argmax(1))
            seen.append(np.concatenate([obs, rewards[:, None], infos["action_mask"]], axis=1))
        return np.stack(seen)

    a = play(1)
    assert a.shape[2] == 6 * 7 * 2 + 1 + 7
    np.testing.assert_array_equal(a, play(1))
    assert (a != play(2)).any()


@needs_pettingzoo
def test_rendering_shows_full_columns():
    env = ConnectFour(render_mode="ansi")
    env.reset(seed=0)
    assert "↓ ↓ ↓ ↓ ↓ ↓ ↓" in env.render()
    env.game.board[3] = 1  # the top of the fourth column
    assert "↓ ↓ ↓ × ↓ ↓ ↓" in env.render()
    env.render_mode = "rgb_array"
    frame = env.render()
    assert frame.dtype == np.uint8 and frame.ndim == 3 and frame.std() > 20
