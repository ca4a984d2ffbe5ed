"""Running statistics: the numbers that Gymnasium's wrappers give, frozen in evaluation, equal on all ranks."""

import threading

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from envs.make import make_vec
from envs.statistics import Statistics


class Noise(gym.Env):
    """Observations around 1,000 and rewards around 2,000; an episode has five steps."""

    observation_space, action_space = spaces.Box(-np.inf, np.inf, (3,), np.float32), spaces.Discrete(2)

    def seen(self):
        return (1000 + self.np_random.normal(size=3) * [1, 10, 100]).astype(np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.seen(), {}

    def step(self, action):
        self.t += 1
        return self.seen(), 2000 + self.np_random.normal(), False, self.t == 5, {}


gym.register("Test/Noise-v0", Noise, disable_env_checker=True)


def play(statistics, steps=23, learns=True, seed=0):
    envs = make_vec("Test/Noise-v0", 4, require_mask=False, statistics=statistics, learns=learns)
    seen, rewards, finals = [envs.reset(seed=seed)[0]], [], []
    for _ in range(steps):
        obs, reward, *_, infos = envs.step(np.zeros(4, int))
        seen.append(obs), rewards.append(reward)
        if "final_obs" in infos:
            finals.append(infos["final_obs"])
    return envs, np.array(seen), np.array(rewards), np.array(finals)


def test_observations_and_rewards_are_scaled_by_what_was_seen_so_far():
    """As Gymnasium's NormalizeObservation and NormalizeReward do it, which refuse SAME_STEP."""
    envs, seen, rewards, finals = play(Statistics(True, True, 0.9))
    _, raw, raw_rewards, _ = play(None)
    sums, discounted = [], np.zeros(4)
    for t in range(23):
        history = raw[: t + 2].reshape(-1, 3).astype(float)  # the present observation counts first
        expected = (raw[t + 1] - history.mean(0)) / history.std(0)
        np.testing.assert_allclose(seen[t + 1], expected, rtol=1e-3, atol=1e-3)
        discounted = (0 if t % 5 == 0 else 0.9 * discounted) + raw_rewards[t]
        sums.append(discounted)
        np.testing.assert_allclose(rewards[t], (raw_rewards[t] / np.std(sums)).clip(-10, 10), rtol=1e-5)
    assert seen.dtype == np.float32
    assert abs(finals).max() <= 10 and finals.std() > 0.5  # by the same scale, and not counted
    assert envs.statistics.obs.count == 4 * 24
    assert np.mean(envs.ended["episodic_return"]) == pytest.approx(10_000, rel=1e-3)  # of the rewards as they are


def test_in_evaluation_they_are_frozen():
    statistics = Statistics(True, True, 0.9)
    play(statistics)
    before = {name: x["mean"].clone() for name, x in statistics.state_dict().items()}
    _, seen, _, _ = play(statistics, learns=False, seed=5)
    assert all(torch.equal(x["mean"], before[name]) for name, x in statistics.state_dict().items())
    np.testing.assert_allclose(seen.mean((0, 1)), 0, atol=0.5)


def test_a_state_that_is_restored_gives_the_same_numbers():
    statistics, restored = Statistics(True, True, 0.9), Statistics(True, True, 0.9)
    play(statistics)
    restored.load_state_dict(statistics.state_dict())
    for mine, other in zip(play(statistics, seed=1)[1:], play(restored, seed=1)[1:], strict=True):
        np.testing.assert_array_equal(mine, other)


@pytest.mark.parametrize("center, deviation", [(3, 2), (1.7e9, 1), (1e8, 0.5)])
def test_ranks_get_the_moments_of_all(center, deviation):
    parts = [Statistics(True, False, 0.9) for _ in range(2)]
    rows = np.random.default_rng(0).normal(center, deviation, (2, 50, 4))
    for part, seen in zip(parts, rows, strict=True):
        part.scale_observations(seen, "flat", learn=True)
    meeting, given = threading.Barrier(2, timeout=10), {}

    def average(rank):
        def mean(tensors):
            given[rank] = tensors
            meeting.wait()
            means = tuple(torch.stack(pair).mean(0) for pair in zip(given[0], given[1], strict=True))
            meeting.wait()
            return means

        parts[rank].average(mean)

    ranks = [threading.Thread(target=average, args=(rank,)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    for part in parts:
        np.testing.assert_allclose(part.obs.mean, rows.reshape(100, 4).mean(0))
        np.testing.assert_allclose(part.obs.var, rows.reshape(100, 4).var(0), rtol=1e-5)
        assert part.obs.count == 50


def test_sets_are_scaled_by_what_is_there_and_maps_plane_by_plane():
    sets = np.array([[[1, 5.0], [0, np.nan]], [[1, 7.0], [1, 9.0]]], np.float32)
    statistics = Statistics(True, False, 0.9)
    scaled = statistics.scale_observations(sets, "entities", learn=True)
    np.testing.assert_array_equal(scaled[..., 0], sets[..., 0])
    np.testing.assert_allclose(scaled[..., 1][sets[..., 0] > 0], np.array([-2, 0, 2]) / np.sqrt(8 / 3), rtol=1e-6)
    maps = np.stack([np.full((2, 3, 3), 4), np.arange(18).reshape(2, 3, 3)], axis=1)
    assert scaled.dtype == np.float32
    scaled = Statistics(True, False, 0.9).scale_observations(maps, "grid", learn=True)
    assert scaled.shape == (2, 2, 3, 3) and scaled.dtype == np.float32
    np.testing.assert_allclose(scaled[:, 1].std(), 1, atol=0.01)


class Seconds(gym.Env):
    """Seconds since 1970, of which float32 knows every 128th."""

    action_space = spaces.Discrete(2)

    def __init__(self, sets=False):
        self.sets = sets
        now = spaces.Box(0, np.inf, (1,), np.float64)
        entities = spaces.Box(-np.inf, np.inf, (2, 1), np.float64)
        parts = {"entities": entities, "entity_mask": spaces.MultiBinary(2), "now": now}
        self.observation_space = spaces.Dict(parts) if sets else now

    def seen(self):
        now = np.array([1.7e9 + self.t])
        rows = np.array([now, [np.nan]])
        return {"entities": rows, "entity_mask": np.array([1, 0], np.int8), "now": now} if self.sets else now

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.seen(), {}

    def step(self, action):
        self.t += 1
        return self.seen(), 0.0, False, False, {}


gym.register("Test/Seconds-v0", Seconds, disable_env_checker=True)


@pytest.mark.parametrize("layout", ["flat", "entities"])
def test_large_numbers_are_centred_before_their_digits_are_lost(layout):
    kwargs, statistics = {"sets": layout == "entities"}, Statistics(True, False, 0.9)
    envs = make_vec("Test/Seconds-v0", 1, kwargs, require_mask=False, layout=layout, statistics=statistics)
    envs.reset(seed=0)
    seen = [envs.step(np.zeros(1, int))[0] for _ in range(8)]
    column = np.array([obs.reshape(-1)[-1 if layout == "entities" else 0] for obs in seen])
    t = np.arange(1, 9)
    # At time t the seen times are 0 to t.
    np.testing.assert_allclose(column, (t - t / 2) / np.sqrt(t * (t + 2) / 12), rtol=1e-4)
    assert all(obs.dtype == np.float32 for obs in seen)
