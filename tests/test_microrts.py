"""MicroRTS, played for real, each test in a process of its own; skipped where the game or Java is not installed.

There can be one JVM in a process, for good, and pytest's own forks workers in other tests: it stays without one.
"""

import contextlib
import functools
import os
import shlex
import subprocess
import sys
import tempfile

import gymnasium as gym
import numpy as np
import pytest
import script
import torch
from gymnasium.utils.env_checker import check_env

import ppo_gridwise as gridwise
from envs.make import make_vec
from envs.masks import check_action_mask, check_grid_masks, illegal_actions
from envs.worlds.microrts import CHOICES, STARTS, USES, MicroRTS, load_game

GRID, HARVEST = "Masked/MicroRTS-v0", "Masked/MicroRTSHarvest-v0"


def missing():
    """Why the game cannot be played here, or an empty text."""
    try:
        import gym_microrts  # noqa: F401
        import jpype

        jpype.getDefaultJVMPath()
    except (ImportError, ValueError) as error:  # a missing Java runtime is a ValueError
        return f"optional: {error}"
    return ""


needs_microrts = pytest.mark.skipif(bool(missing()), reason=missing())


def in_a_process(test):
    @needs_microrts
    @functools.wraps(test)
    def run():
        code = f"import test_microrts; test_microrts.{test.__name__}.__wrapped__()"
        paths = f"{script.ROOT}{os.pathsep}{script.ROOT / 'tests'}"
        environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr + done.stdout

    return run


def random_legal(rng, legal, nvec):
    """A random legal choice in each field, (..., K), from masks (..., sum(nvec))."""
    draws = rng.random(legal.shape) * legal
    ends = np.cumsum(nvec)
    return np.stack([draws[..., end - n : end].argmax(-1) for n, end in zip(nvec, ends, strict=True)], axis=-1)


def random_orders(rng, infos):
    return random_legal(rng, np.moveaxis(infos["action_mask"][:, -78:], 1, -1), CHOICES)


def test_a_missing_package_is_said_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "gym_microrts", None)
    monkeypatch.setitem(sys.modules, "gym_microrts.microrts_ai", None)
    with pytest.raises(ImportError, match="pip install --no-deps --ignore-requires-python gym-microrts==0.6.0"):
        make_vec(GRID, 1, layout="grid")


@needs_microrts
def test_a_missing_java_is_said_with_what_to_install(monkeypatch):
    def no_java():
        raise ValueError

    monkeypatch.setattr("jpype.getDefaultJVMPath", no_java)
    monkeypatch.setattr("jpype.isJVMStarted", lambda: False)
    with pytest.raises(ImportError, match="No Java runtime.*Java 17"):
        load_game()


@in_a_process
def test_a_jvm_of_others_and_one_that_was_shut_down_are_refused():
    import jpype

    jpype.startJVM()
    with pytest.raises(RuntimeError, match="Other code started it"):
        make_vec(GRID, 1, layout="grid")
    jpype.shutdownJVM()
    with pytest.raises(RuntimeError, match="JVM cannot be restarted.*make the environment first"):
        make_vec(GRID, 1, layout="grid")


@in_a_process
def test_shapes_dtypes_and_masks_under_random_legal_play():
    kwargs = {"opponents": ("coacAI", "workerRushAI", "randomBiasedAI"), "max_episode_steps": 150}
    kwargs |= {"skip_idle": False, "exact_masks": False}
    envs, rng = make_vec(GRID, 3, kwargs, layout="grid", render_mode="rgb_array"), np.random.default_rng(0)
    assert envs.single_observation_space == gym.spaces.Box(0, 1, (27, 8, 8), np.uint8)
    assert envs.get_state() is None
    obs, infos = envs.reset(seed=0)
    first, agents = obs.copy(), []
    for _ in range(200):
        assert obs.shape == (3, 27, 8, 8) and obs.dtype == np.uint8 and obs.max() == 1
        np.testing.assert_array_equal([obs[:, a:b].sum(1).min() for a, b in ((0, 5), (5, 10), (10, 13))], 1)
        np.testing.assert_array_equal(obs.sum(1), 5)  # one plane of each layer
        mask = infos["action_mask"]
        assert mask.shape == (3, 79, 8, 8) and mask.dtype == np.int8
        check_grid_masks(mask[:, 1:], mask[:, 0], envs.nvec)
        agent, own, idle = mask[:, 0].astype(bool), obs[:, 11] == 1, obs[:, 21] == 1
        np.testing.assert_array_equal(agent, own & idle)
        assert not np.moveaxis(mask[:, 1:], 1, -1)[~agent].any() and mask[:, 1][agent].all()
        agents.append(agent.sum((1, 2)))
        actions = random_orders(rng, infos)
        assert not envs.illegal(actions, mask).any()
        obs, rewards, terminations, truncations, infos = envs.step(actions)
        assert rewards.shape == (3,) and rewards.dtype == np.float64
        for row in np.flatnonzero(terminations | truncations):
            np.testing.assert_array_equal(obs[row], first[row])  # the next game has begun
    assert np.min(agents) == 0 and np.max(agents) > 2  # all are busy at times
    for env_id in (GRID, HARVEST):
        check_env(gym.make(env_id, render_mode="rgb_array").unwrapped)
    frame = envs.render()[0]
    assert frame.dtype == np.uint8 and frame.ndim == 3 and frame.std() > 20
    with pytest.raises(ValueError, match="opponents must be among.*coacAI"):
        make_vec(GRID, 1, {"opponents": "deepBlue"}, layout="grid")
    with pytest.raises(ValueError, match="map_path 'maps/9x9.xml' is no file"):
        make_vec(GRID, 1, {"map_path": "maps/9x9.xml"}, layout="grid")


@in_a_process
def test_illegal_orders_are_no_ops_and_the_game_repeats_itself():
    envs = [make_vec(GRID, 2, {"opponents": ("workerRushAI", "passiveAI")}, layout="grid") for _ in range(3)]
    infos, rng, illegal = [env.reset()[1] for env in envs], np.random.default_rng(0), 0
    for _ in range(150):
        orders = random_orders(rng, infos[0])
        other = rng.integers(0, CHOICES, size=orders.shape)
        legal = np.moveaxis(infos[0]["action_mask"][:, 1:], 1, -1)
        allowed = np.take_along_axis(legal, other + STARTS, axis=-1).astype(bool)
        broken = ~(allowed | ~USES[other[..., 0]]).all(-1)
        illegal += (broken & (infos[0]["action_mask"][:, 0] > 0)).sum()
        keep = rng.random(broken.shape) < 0.5  # these cells get orders, the others illegal ones or none
        actions = np.where(keep[..., None], orders, 0)
        noisy = np.where((~keep & broken)[..., None], other, actions)
        steps = [env.step(a) for env, a in zip(envs, (actions, noisy, actions), strict=True)]
        infos = [step[-1] for step in steps]
        for step in steps[1:]:
            for mine, yours in zip(steps[0][:4], step[:4], strict=True):
                np.testing.assert_array_equal(mine, yours)
            np.testing.assert_array_equal(infos[0]["action_mask"], step[-1]["action_mask"])
    assert illegal > 100


@in_a_process
def test_exact_masks_allow_what_the_game_does():
    """Of the orders of random legal play most are refused by the game, without them; with them one in thirty."""
    refused = {}
    for exact in (False, True):
        kwargs = {"opponents": ("workerRushAI", "coacAI"), "exact_masks": exact, "max_episode_steps": 1000}
        envs, rng = make_vec(GRID, 8, kwargs, layout="grid"), np.random.default_rng(0)
        obs, infos = envs.reset()
        given = idle = 0
        for _ in range(500):
            actions = random_orders(rng, infos)
            told = (infos["action_mask"][:, 0] > 0) & (actions[..., 0] > 0)
            _, _, terminations, truncations, infos = envs.step(actions)
            going_on = ~(terminations | truncations)[:, None, None]
            kinds, doing = envs.unwrapped.layers[:, 3], envs.unwrapped.layers[:, 4]
            there = told & going_on & (kinds > 0)  # who is destroyed or has moved says nothing
            given, idle = given + there.sum(), idle + (there & (doing == 0)).sum()
        refused[exact] = idle / given
    assert refused[False] > 0.4 and refused[True] < 0.06, refused


@in_a_process
def test_frames_without_a_decision_are_skipped_and_what_they_pay_is_kept():
    def play(skip_idle):
        kwargs = {"opponents": "passiveAI", "skip_idle": skip_idle, "max_episode_steps": 300}
        envs, rng = make_vec(GRID, 1, kwargs, layout="grid"), np.random.default_rng(0)
        (obs, infos), seen, returns, steps = envs.reset(), [], 0, 0
        while True:
            acts = infos["action_mask"][0, 0].any()
            seen += [obs[0].copy()] if acts else []
            obs, rewards, terminations, truncations, infos = envs.step(random_orders(rng, infos) if acts else nothing)
            returns, steps = returns + rewards[0], steps + 1
            assert acts or not skip_idle
            if terminations[0] or truncations[0]:
                return np.array(seen), returns, steps

    nothing = np.zeros((1, 8, 8, 7), int)
    (every, paid, frames), (decisions, paid_as_well, steps) = play(False), play(True)
    np.testing.assert_array_equal(every, decisions)
    assert paid == pytest.approx(paid_as_well) and frames == 300 and steps == len(decisions) < 300


@in_a_process
def test_all_rewards_but_the_wins_fade():
    paid = []
    for fade in (0, 100):
        kwargs = {"opponents": "passiveAI", "fade": fade, "reward_weights": (10, 1, 1, 1, 1, 1)}
        envs, rng = make_vec(GRID, 2, kwargs, layout="grid"), np.random.default_rng(0)
        infos, rewards = envs.reset()[1], []
        for _ in range(130):
            _, reward, terminations, _, infos = envs.step(random_orders(rng, infos))
            rewards.append(reward)
            assert not terminations.any()
        paid.append(np.array(rewards))
    assert (paid[0].sum(0) > 5).all() and paid[0][100:].any()
    np.testing.assert_allclose(paid[1], paid[0] * (1 - np.arange(130) / 100).clip(0)[:, None])


@in_a_process
def test_in_a_resumed_training_they_go_on_to_fade():
    advance, ages = MicroRTS._advance, []
    MicroRTS._advance = lambda envs, actions: [ages.append(envs.age), advance(envs, actions)][1]
    flags = "--num-envs 4 --num-steps 8 --minibatch-size 32 --eval-episodes 0 --env-kwargs opponents passiveAI"
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        gridwise.main(gridwise.parse(gridwise.Args, ["--env-id", GRID, "--total-timesteps", "64", *flags.split()]))
        resume = ("--resume", str(script.run_folder()), "--total-timesteps", "96", "--eval-episodes", "0")
        gridwise.main(gridwise.parse(gridwise.Args, resume))
    assert ages == list(range(24))


@in_a_process
def test_time_limits_are_truncations_and_lost_games_terminations_with_their_final_observations():
    envs = make_vec(GRID, 2, {"opponents": "passiveAI", "max_episode_steps": 12, "skip_idle": False}, layout="grid")
    obs, infos = envs.reset()
    first, rng = obs.copy(), np.random.default_rng(1)
    for step in range(1, 13):
        obs, _, terminations, truncations, infos = envs.step(random_orders(rng, infos))
        assert not terminations.any() and truncations.all() == truncations.any() == (step == 12)
    np.testing.assert_array_equal(obs, first)
    assert infos["_final_obs"].all() and (infos["final_obs"] != first).any((1, 2, 3)).all()
    assert infos["final_info"]["action_mask"].shape == (2, 79, 8, 8) and infos["final_info"]["drawn"].all()
    assert not (infos["final_info"]["success"].any() or infos["final_info"]["lost"].any())

    envs, wait = make_vec(GRID, 1, {"opponents": "workerRushAI"}, layout="grid"), np.zeros((1, 8, 8, 7), int)
    envs.reset()
    for _ in range(2000):
        obs, rewards, terminations, truncations, infos = envs.step(wait)
        if terminations or truncations:
            break
    assert terminations.all() and not truncations.any() and rewards[0] == -10
    assert infos["final_obs"][0, 11].sum() == 0 < infos["final_obs"][0, 12].sum()  # none of ours is left
    assert [infos["final_info"][name][0] for name in ("success", "drawn", "lost")] == [0, 0, 1]
    assert obs[0, 11].sum() == 2 and infos["episode"]["r"][0] == -10  # a base and a worker, in the next game


@in_a_process
def test_self_play_has_two_seats_of_one_game_and_partial_observability_hides():
    kwargs = {"self_play": True, "opponents": "passiveAI", "max_episode_steps": 100, "skip_idle": False}
    envs = make_vec(GRID, 3, kwargs, layout="grid")
    obs, infos = envs.reset()
    rng, returns = np.random.default_rng(0), 0
    for _ in range(100):
        np.testing.assert_array_equal(obs[0, 11:13], obs[1, 12:10:-1])  # what is mine is not yours
        np.testing.assert_array_equal(obs[0, 13:], obs[1, 13:])
        obs, rewards, terminations, truncations, infos = envs.step(random_orders(rng, infos))
        assert terminations[0] == terminations[1] and truncations[0] == truncations[1]
        returns += rewards
    assert (returns[:2] > 0).all() and truncations[2]

    kwargs = {"map_path": "maps/16x16/basesWorkers16x16.xml", "partial_obs": True}
    kwargs |= {"skip_idle": False, "exact_masks": False}
    envs = make_vec(GRID, 2, kwargs | {"self_play": True}, layout="grid")
    obs, infos = envs.reset()
    assert obs.shape == (2, 29, 16, 16)
    for step in range(300):
        agents = infos["action_mask"][:, 0] > 0
        np.testing.assert_array_equal(agents, (obs[:, 11] & obs[:, 21]) == 1)  # units are seen when they take orders
        assert obs[:, 11].any((1, 2)).all() and (step > 50 or not obs[:, 12].any())  # the other is far away at first
        obs, *_, infos = envs.step(random_orders(rng, infos))


def past_team(verb):
    """`ppo_gridwise.py`'s agent that gives all units one kind of order, where it is legal, or by chance another."""
    agent = gridwise.Agent((27, 8, 8), tuple(CHOICES), 4)
    torch.nn.init.zeros_(agent.actor.weight)
    agent.actor.bias.data[verb] = 100.0
    return agent


@in_a_process
def test_past_selves_give_the_orders_of_their_seats():
    kwargs = {"self_play": True, "share": 0.5, "max_episode_steps": 150}
    envs, wait = make_vec(GRID, 21, kwargs, layout="grid"), np.zeros((21, 8, 8, 7), int)
    raw, agent = envs.unwrapped, past_team(verb=4)
    obs, infos = envs.reset(seed=0)
    assert (raw.past < 0).all() and infos["action_mask"][:, 0].any((1, 2)).all()
    raw.meet(agent)
    agent.actor.bias.data[:] = 0  # its past self is a copy
    agent.actor.bias.data[0] = 100.0
    raw.meet(agent)
    obs, infos = envs.reset(seed=1)
    past = raw.past.copy()
    pairs = past[:20].reshape(10, 2)
    assert set(past) == {-1, 0, 1} and past[20] == -1 and ((pairs >= 0).sum(axis=1) <= 1).all()
    assert 2 <= (pairs >= 0).any(axis=1).sum() <= 8 and (pairs >= 0).any(axis=0).all()
    while True:
        assert not infos["action_mask"][past >= 0].any()  # nobody there takes orders, or may do anything
        waiting = raw.masks[..., 0].astype(bool) & (past >= 0)[:, None]
        rows, cells = np.nonzero(waiting)
        given, legal = raw._with_past(wait).reshape(21, 64, 7), raw.masks[..., 1:]
        produces = (past[rows] == 0) & (legal[rows, cells, 4] > 0)
        assert (given[rows[produces], cells[produces], 0] == 4).all()
        assert not given[rows[past[rows] == 1], cells[past[rows] == 1], 0].any()
        assert not given[~waiting].any()
        obs, rewards, terminations, truncations, infos = envs.step(wait)
        ended = terminations | truncations
        np.testing.assert_array_equal(ended[:20:2], ended[1:20:2])
        if ended[:20].any():
            break
    units = infos["final_obs"][:, 11].sum((1, 2))  # a base and a worker in the beginning
    assert ended[:20].all() and (units[past == 0] > 2).any() and (units[:20][past[:20] != 0] == 2).all()


@in_a_process
def test_points_and_returns_are_those_of_who_met_a_past_self():
    kwargs = {"self_play": True, "share": 0.5, "max_episode_steps": 40}
    envs, rng = make_vec(GRID, 20, kwargs, layout="grid"), np.random.default_rng(0)
    raw = envs.unwrapped
    raw.meet(past_team(verb=1))
    infos, returns, expected, games = envs.reset(seed=0)[1], np.zeros(20), [], 0
    while games < 40:
        others = raw.past >= 0
        _, rewards, terminations, truncations, infos = envs.step(random_orders(rng, infos))
        returns, ended = returns + rewards, terminations | truncations
        if ended.any():
            np.testing.assert_array_equal(infos["_episode"], ended & ~others)
            expected += returns[ended & ~others].tolist()
            met = others.reshape(10, 2)[:, ::-1].ravel()
            np.testing.assert_array_equal(np.isfinite(infos["final_info"]["points_pool"])[ended], met[ended])
            returns[ended], games = 0, games + (ended & met).sum()
    assert envs.ended["episodic_return"] == pytest.approx(expected) and len(envs.ended["points_pool"]) == games
    raw.past[:4], raw.past[4:], raw.result[:] = [-1, 0, 0, -1], -1, 0
    raw.result[:4] = [1, -1, 1, -1]
    assert raw._final_info(np.arange(5))["points_pool"].tolist() == pytest.approx(
        [1, np.nan, np.nan, 0, np.nan], nan_ok=True
    )
    assert raw._final_info(np.arange(5))["by_other"].tolist() == [False, True, True, False, False]
    raw = make_vec(GRID, 7, {"opponents": ("passiveAI", "coacAI"), "self_play": True}, layout="grid").unwrapped
    assert "points_passiveAI" not in raw._final_info(np.arange(7))  # the one that is left over meets the first
    raw = make_vec(GRID, 4, {"opponents": ("passiveAI", "coacAI", "coacAI")}, layout="grid").unwrapped
    raw.result[:] = [1, 0, -1, -1]
    info = raw._final_info(np.array([0, 2, 3]))
    assert info["points_passiveAI"].tolist() == pytest.approx([1, np.nan, 0], nan_ok=True)
    assert info["points_coacAI"].tolist() == pytest.approx([np.nan, 0, np.nan], nan_ok=True)
    with pytest.raises(ValueError, match="Expected frame_skip and fade at least 0 and 6 reward_weights.*got 0, -1"):
        make_vec(GRID, 2, {"fade": -1}, layout="grid")
    for wrong in ({"self_play": True, "share": 1.5}, {"share": 0.5}):
        with pytest.raises(ValueError, match="Expected share from 0 to 1, and self_play with it"):
            make_vec(GRID, 2, wrong, layout="grid")


@in_a_process
def test_harvest_pays_one_for_each_harvest_and_return():
    envs, rng = make_vec(HARVEST, 4, {"size": 4}), np.random.default_rng(0)
    raw, nvec = envs.unwrapped, envs.nvec
    assert nvec.tolist() == [16, *CHOICES] and raw.single_observation_space.shape == (27, 4, 4)
    obs, infos = envs.reset()
    total, paid = np.zeros(4), np.zeros(4)
    for step in range(1, 201):
        mask = check_action_mask(infos["action_mask"], nvec)
        actions = random_legal(rng, mask, nvec)
        assert not illegal_actions(actions, mask, nvec).any()
        idle = raw.masks[np.arange(4), actions[:, 0], 1:]  # what the chosen unit itself can do
        for verb in (2, 3):  # harvest, return
            paid += (actions[:, 1] == verb) & (idle[np.arange(4), 6 + 4 * (verb - 1) + actions[:, verb + 1]] > 0)
        obs, rewards, terminations, truncations, infos = envs.step(actions)
        total += rewards
        if terminations.any():  # attacks can end the game
            break
        assert truncations.all() == truncations.any() == (step == 200)
    np.testing.assert_array_equal(total, paid)
    assert total.sum() > 4
    mask = make_vec(HARVEST, 1, {"size": 4, "units_only": True}).reset()[1]["action_mask"][0]
    assert mask[:16].sum() == 2 and mask[16:-49].all() and mask[-49:].sum() == 1  # base and worker; no target yet


@in_a_process
def test_a_scripted_worker_brings_resources_home():
    """4x4: deposit in cell 0, worker in (1, 1), base in (1, 2). Up to (0, 1), harvest left, down, return right."""
    envs = make_vec(HARVEST, 1, {"size": 4})
    obs, infos = envs.reset()
    rewards = []
    plan = [(5, 1, 0, 0, 0), (1, 2, 0, 3, 0), (1, 0, 0, 0, 0), (1, 1, 2, 0, 0), (5, 3, 0, 0, 1)]  # the third waits
    for cell, verb, move, harvest, bring in plan * 8:
        obs, reward, *_, infos = envs.step(np.array([[cell, verb, move, harvest, bring, 0, 0, 0]]))
        rewards.append(reward[0])
    assert rewards == [0, 1, 0, 0, 1] * 8


@needs_microrts
def test_the_scripts_train_on_it(tmp_path):
    small = shlex.split("--num-envs 4 --num-steps 32 --total-timesteps 512 --eval-episodes 2")
    (tmp_path / "grid").mkdir()
    map_path = ("map_path", "maps/8x8/basesWorkers8x8.xml", "max_episode_steps", "60")
    done = script.run(tmp_path / "grid", "ppo_gridwise", "--env-id", GRID, *small, "--capture-video",
                      "--minibatch-size", "64", "--env-kwargs", *map_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Evaluation: episodic_return" in done.stdout and "success" in done.stdout
    (tmp_path / "pool").mkdir()
    done = script.run(tmp_path / "pool", "ppo_gridwise", "--env-id", GRID, *small, "--minibatch-size", "64",
                      "--env-kwargs", *map_path, "self_play", "True", "share", "1.0")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "success" in done.stdout and "points_pool" not in done.stdout  # evaluation has no past selves
    points = script.tensorboard(tmp_path / "pool").Scalars("charts/points_pool")
    assert points and all(0 <= event.value <= 1 for event in points)
    (tmp_path / "flat").mkdir()
    done = script.run(tmp_path / "flat", "ppo_action_mask", "--env-id", HARVEST, *small, "--minibatch-size", "64",
                      "--env-kwargs", "size", "4")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Evaluation: episodic_return" in done.stdout
