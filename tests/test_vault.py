"""Vault: what is shown, what the mask says, and that memory alone opens the doors."""

import gymnasium as gym
import numpy as np
from gymnasium.utils.env_checker import check_env

from envs.make import make_vec


def test_the_single_environment_passes_gymnasiums_checks():
    check_env(gym.make("Masked/Vault-v0").unwrapped, skip_render_check=True)


def test_who_remembers_opens_every_door_and_who_guesses_one_of_three():
    envs, rng = make_vec("Masked/Vault-v0", 200), np.random.default_rng(0)
    obs, infos = envs.reset(seed=0)
    code, returns = [], np.zeros(200)
    for t in range(12):
        mask = infos["action_mask"]
        if t < 3:
            code.append(obs[:, :6].argmax(1))
        else:
            assert (obs[:, :6] == 0).all()  # shown once
        at_door = t >= 9
        assert (mask[:, 6] == (not at_door)).all() and (mask[:, :6].sum(1) == 3 * at_door).all()
        actions = code[t - 9] if at_door else np.full(200, 6)
        assert not envs.illegal(actions, mask).any()
        assert (actions == envs.env.unwrapped.best_actions()).all()
        obs, rewards, terminations, _, infos = envs.step(actions)
        returns += rewards
    assert terminations.all() and (returns == 3).all() and (infos["final_info"]["optimal_return"] == 3).all()
    total = np.zeros(200)
    for _ in range(12):
        actions = np.where(infos["action_mask"], rng.random((200, 7)), -1).argmax(1)
        _, rewards, *_, infos = envs.step(actions)
        total += rewards
    assert 0.8 < total.mean() < 1.2


def test_its_state_can_be_saved():
    envs, other = make_vec("Masked/Vault-v0", 5), make_vec("Masked/Vault-v0", 5)
    envs.reset(seed=0), other.reset(seed=1)
    for _ in range(7):
        envs.step(np.full(5, 6))
    other.set_state(envs.get_state())
    for t in range(20):
        actions = np.full(5, t % 7)
        (a, x, *_, i), (b, y, *_, j) = envs.step(actions), other.step(actions)
        assert (a == b).all() and (x == y).all() and (i["action_mask"] == j["action_mask"]).all()


def test_it_is_drawn():
    for mode in ("rgb_array", "ansi"):
        envs = make_vec("Masked/Vault-v0", 1, render_mode=mode)
        envs.reset(seed=0)
        frames = []
        for _ in range(12):
            frames.append(envs.render()[0])
            envs.step(np.array([6]))
        assert len({np.asarray(frame).tobytes() for frame in frames}) == 12
    for extreme in ({"num_keys": 200}, {"delay": 300}):
        envs = make_vec("Masked/Vault-v0", 1, extreme, render_mode="rgb_array")
        envs.reset(seed=0)
        assert envs.render()[0].shape == (300, 800, 3)
