"""What holds for every environment of ours: Gymnasium's contract, one set of rules, masks that match the dynamics."""

from collections import deque

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from envs.base import BatchedEnv
from envs.make import make_vec
from envs.worlds.bin_placement import BinPlacement
from envs.worlds.job_routing import JobRouting
from envs.worlds.maze import Maze
from envs.worlds.order_picking import OrderPicking
from envs.worlds.panda_forest import Move, PandaForest

NAMES = ("JobRouting", "Maze", "BinPlacement", "PandaForest", "OrderPicking")
IDS = [f"Masked/{name}-v0" for name in NAMES]
UNSOLVED = ["Masked/PandaForest-v0"]  # best play is not known


def random_legal(mask, nvec, rng):
    """One uniformly drawn legal choice for each field: (N,), or (N, K)."""
    fields = np.split(rng.random(mask.shape) * mask, np.cumsum(nvec)[:-1], axis=1)
    columns = [field.argmax(1) for field in fields]
    return columns[0] if len(nvec) == 1 else np.stack(columns, axis=1)


def assert_same(a, b):
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    else:
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("env_id", IDS)
def test_gymnasiums_checker_passes(env_id):
    check_env(gym.make(env_id, render_mode="rgb_array").unwrapped)


@pytest.mark.parametrize("env_id", IDS)
def test_same_seed_same_episodes_and_other_seed_other_ones(env_id):
    def play(seed):
        envs, rng, seen = make_vec(env_id, 5), np.random.default_rng(0), []
        obs, infos = envs.reset(seed=seed)
        for _ in range(40):
            obs, rewards, *_, infos = envs.step(random_legal(infos["action_mask"], envs.nvec, rng))
            seen.append(np.concatenate([obs, rewards[:, None], infos["action_mask"]], axis=1))
        return np.stack(seen)

    np.testing.assert_array_equal(play(3), play(3))
    assert (play(3) != play(4)).any()


@pytest.mark.parametrize("env_id", IDS)
def test_a_batch_is_the_same_as_single_environments(env_id, monkeypatch):
    """Every row has a generator of its own here, so that the batch and the single ones draw the same numbers."""
    num_envs = 4

    def streams(env, first):
        env.streams = [np.random.default_rng(100 + first + row) for row in range(env.num_envs)]

    def uniform(self, rows, *shape):
        return np.stack([self.streams[row].random(shape) for row in rows]) if len(rows) else np.zeros((0, *shape))

    monkeypatch.setattr(BatchedEnv, "_uniform", uniform)
    batch, rng = make_vec(env_id, num_envs, layout="raw"), np.random.default_rng(0)
    singles = [gym.make(env_id).unwrapped for _ in range(num_envs)]
    streams(batch.unwrapped, 0)
    for row, single in enumerate(singles):
        streams(single.batch.unwrapped, row)
    obs, infos = batch.reset()
    outs = [single.reset() for single in singles]
    ends = 0
    for _ in range(100):
        for row, (single_obs, single_info) in enumerate(outs):
            assert_same({"o": single_obs}, {"o": pick(obs, row)})
            assert_same(single_info["action_mask"], infos["action_mask"][row])
        actions = random_legal(infos["action_mask"], batch.nvec, rng)
        actions[0] = 1  # illegal at times
        obs, rewards, terminations, truncations, infos = batch.step(actions)
        outs = []
        for row, single in enumerate(singles):
            single_obs, reward, terminated, truncated, info = single.step(actions[row])
            assert (reward, terminated, truncated) == (rewards[row], terminations[row], truncations[row])
            if terminated or truncated:
                ends += 1
                assert_same({"o": single_obs}, {"o": pick(infos["final_obs"], row)})
                assert_same(info["action_mask"], infos["final_info"]["action_mask"][row])
                assert info["optimal_return"] == infos["final_info"]["optimal_return"][row]
                single_obs, info = single.reset()
            outs.append((single_obs, info))
    assert ends >= num_envs


def pick(obs, row):
    return {key: value[row] for key, value in obs.items()} if isinstance(obs, dict) else obs[row]


@pytest.mark.parametrize("env_id", IDS)
def test_saved_state_continues_exactly(env_id):
    envs, rng = make_vec(env_id, 6), np.random.default_rng(0)
    obs, infos = envs.reset(seed=1)
    for _ in range(11):
        obs, *_, infos = envs.step(random_legal(infos["action_mask"], envs.nvec, rng))
    state, mask = envs.get_state(), infos["action_mask"].copy()

    def go_on(envs):
        rng, infos, seen = np.random.default_rng(5), {"action_mask": mask}, []
        for _ in range(80):
            obs, rewards, *_, infos = envs.step(random_legal(infos["action_mask"], envs.nvec, rng))
            seen.append(np.concatenate([obs, rewards[:, None]], axis=1))
            if "episode" in infos:
                seen.append(np.stack([infos["episode"]["r"], infos["episode"]["l"]], axis=1))
        return seen

    first, other = go_on(envs), make_vec(env_id, 6)
    other.reset(seed=99)
    other.set_state(state)
    for a, b in zip(first, go_on(other), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("env_id", IDS)
def test_random_legal_play_never_meets_an_empty_mask_and_never_beats_the_optimum(env_id):
    envs, rng, episodes = make_vec(env_id, 32), np.random.default_rng(0), 0
    obs, infos = envs.reset(seed=2)
    for _ in range(200):  # make_vec raises on an empty mask
        assert envs.single_observation_space.shape == obs.shape[1:] and np.isfinite(obs).all()
        obs, _, _, _, infos = envs.step(random_legal(infos["action_mask"], envs.nvec, rng))
        if "episode" in infos:
            ended = infos["_episode"]
            episodes += ended.sum()
            assert (infos["episode"]["r"][ended] <= infos["final_info"]["optimal_return"][ended] + 1e-9).all()
    assert episodes >= 64


@pytest.mark.parametrize("env_id", [env_id for env_id in IDS if env_id not in UNSOLVED])
def test_best_play_reaches_exactly_the_optimum(env_id):
    envs = make_vec(env_id, 16)
    envs.reset(seed=3)
    episodes = 0
    for _ in range(150):
        *_, infos = envs.step(envs.unwrapped.best_actions())
        if "episode" in infos:
            ended = infos["_episode"]
            episodes += ended.sum()
            np.testing.assert_allclose(infos["episode"]["r"][ended], infos["final_info"]["optimal_return"][ended])
            if "optimal_length" in infos["final_info"]:
                assert (infos["episode"]["l"] == infos["final_info"]["optimal_length"])[ended].all()
    assert episodes >= 32


def position(env):
    """What an illegal action must leave as it is."""
    return {JobRouting: lambda e: np.stack([e.kind, e.size, e.urgency], axis=1), Maze: lambda e: e.cell.copy()[:, None],
            BinPlacement: lambda e: np.concatenate([e.sides, e.size[:, None]], axis=1),
            PandaForest: lambda e: e.cells[:, :1].copy(),
            OrderPicking: lambda e: e.present.copy()}[type(env)](env)  # fmt: skip


@pytest.mark.parametrize("env_id", IDS)
def test_the_mask_is_exactly_what_the_dynamics_refuse(env_id):
    """Each choice is played from saved copies of the same states: legal ones act, illegal ones are no-ops."""
    envs = make_vec(env_id, 24)
    obs, infos = envs.reset(seed=4)
    rng, checked = np.random.default_rng(0), np.zeros(2, int)
    for _ in range(6):
        state, mask = envs.get_state(), infos["action_mask"].copy()
        for choice in range(envs.nvec[0]):
            envs.set_state(state)
            before = position(envs.unwrapped)
            actions = (
                np.full(24, choice) if len(envs.nvec) == 1 else np.stack([np.full(24, choice), np.zeros(24, int)], 1)
            )
            _, rewards, terminations, truncations, _ = envs.step(actions)
            stayed = (position(envs.unwrapped) == before).all(axis=1)
            alive = ~(terminations | truncations)
            if isinstance(envs.unwrapped, PandaForest) and choice == Move.STAY:
                assert stayed[alive].all() and mask[:, choice].all()
                continue
            legal = mask[:, choice].astype(bool)
            np.testing.assert_array_equal(stayed[alive], ~legal[alive])
            if not isinstance(envs.unwrapped, Maze | PandaForest | OrderPicking):
                np.testing.assert_array_equal(rewards > 0, legal)
            checked += [legal.sum(), (~legal).sum()]
        envs.set_state(state)
        *_, infos = envs.step(random_legal(mask, envs.nvec, rng))
    assert checked.min() > 50


@pytest.mark.parametrize("env_id", IDS)
def test_rendering(env_id):
    envs = make_vec(env_id, 2, render_mode="rgb_array")
    *_, infos = envs.reset(seed=0)
    frames = envs.render()
    assert len(frames) == 2 and all(frame.dtype == np.uint8 and frame.shape[2] == 3 for frame in frames)
    assert frames[0].std() > 10 and (frames[0] != frames[1]).any()
    envs.unwrapped.render_mode = "ansi"
    before = envs.render()[0]
    envs.step(infos["action_mask"][:, : envs.nvec[0]].argmin(1) if len(envs.nvec) == 1 else np.zeros((2, 2), int))
    assert isinstance(before, str) and len(before.splitlines()) > 3 and envs.render()[0] != before


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: JobRouting(1, num_machines=1), "num_machines must be 2 to 1024, got 1"),
        (lambda: JobRouting(1, num_machines=4, num_up=5), "num_up must be 1 to num_machines=4, got 5"),
        (lambda: JobRouting(1, num_jobs=0), "num_jobs must be at least 1, got 0"),
        (lambda: BinPlacement(1, num_objects=0), "num_objects must be at least 1, got 0"),
        (lambda: OrderPicking(1, num_entities=1), "num_entities must be at least 2, got 1"),
        (lambda: OrderPicking(1, num_parcels=1), "num_parcels must be 2 to num_entities=10, got 1"),
        (lambda: OrderPicking(1, num_parcels=11), "num_parcels must be 2 to num_entities=10, got 11"),
        (lambda: JobRouting(1, fleet_seed=-1), "fleet_seed must be at least 0, got -1"),
        (lambda: Maze(1, size=1), "size must be 2 to 128, got 1"),
        (lambda: Maze(1, size=200), "size must be 2 to 128, got 200"),
        (lambda: Maze(1, density=0.9), "density must be in .0, 0.5., got 0.9"),
        (lambda: Maze(0), "num_envs.*at least 1, got 0"),
        (lambda: Maze(1, render_mode="human"), "render_mode must be one of .*'human'"),
    ],
)
def test_bad_arguments_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("size, density", [(2, 0.0), (3, 0.5), (5, 0.3), (8, 0.25), (12, 0.4)])
def test_maze_distances_match_a_slow_search_and_the_goal_is_reachable(size, density):
    env = Maze(20, size=size, density=density)
    env.reset(seed=5)
    for row in range(20):
        free = env.maps[row, 0] <= 0
        found, queue = {int(env.goal[row]): 0}, deque([int(env.goal[row])])
        while queue:
            cell = queue.popleft()
            for move in env.moves.tolist():
                if free[cell + move] and cell + move not in found:
                    found[cell + move] = found[cell] + 1
                    queue.append(cell + move)
        assert int(env.cell[row]) in found and found[int(env.cell[row])] == env.optimal_length[row] >= 1
        assert {c: int(env.distances[row, c]) for c in np.flatnonzero(env.distances[row] >= 0)} == found


def test_maze_truncates_and_that_is_no_termination():
    envs = make_vec("Masked/Maze-v0", 64, {"max_episode_steps": 3})
    *_, infos = envs.reset(seed=6)
    rng, truncated = np.random.default_rng(0), 0
    for _ in range(9):
        _, _, terminations, truncations, infos = envs.step(random_legal(infos["action_mask"], envs.nvec, rng))
        assert not (terminations & truncations).any()
        truncated += truncations.sum()
    assert truncated > 20


def test_job_routing_keeps_num_up_machines_up_and_shows_them_to_the_mask_only():
    envs = make_vec("Masked/JobRouting-v0", 8, {"num_machines": 40, "num_up": 3}, layout="raw")
    obs, infos = envs.reset(seed=7)
    changed = 0
    for _ in range(100):
        assert list(obs) == ["job"] and (infos["action_mask"].sum(1) == 3).all()
        np.testing.assert_array_equal(infos["action_mask"], envs.unwrapped.up)
        before = infos["action_mask"]
        obs, *_, infos = envs.step(before.argmax(1))
        changed += (before != infos["action_mask"]).any(1).sum()
    assert changed > 700


def test_job_routing_at_its_largest_and_its_smallest():
    for kwargs in (
        {"num_machines": 1024, "num_up": 4},
        {"num_machines": 2, "num_up": 1},
        {"num_machines": 2, "num_up": 2},
    ):
        envs = make_vec("Masked/JobRouting-v0", 3, kwargs)
        *_, infos = envs.reset(seed=8)
        for _ in range(70):
            *_, infos = envs.step(infos["action_mask"].argmax(1))
        assert infos["action_mask"].sum() == 3 * kwargs["num_up"]


def test_bin_placement_masks_by_size_and_closed_bins():
    envs = make_vec("Masked/BinPlacement-v0", 200, layout="raw")
    obs, infos = envs.reset(seed=9)
    raw, mask = envs.unwrapped, infos["action_mask"]
    small, large = obs["object"][:, 2] == 1, obs["object"][:, 4] == 1
    assert small.any() and large.any() and sorted(obs) == ["gap", "object"]
    expected = raw.open.copy()
    expected[small, 3:] = expected[large, :3] = False
    np.testing.assert_array_equal(mask[:, 1:7], expected)
    assert mask[:, 0].all() and mask[:, 7:].all()


@pytest.mark.parametrize("num_parcels", [2, 5, 12])
def test_a_shelf_holds_as_many_parcels_as_it_was_told_in_random_places(num_parcels):
    env = OrderPicking(256, num_entities=12, num_parcels=num_parcels)
    _, infos = env.reset(seed=0)
    assert (infos["action_mask"].sum(axis=1) == num_parcels).all() and infos["action_mask"].any(axis=0).all()
    assert (env.present & env.ordered).any(axis=1).all() and (env.present & ~env.ordered).any(axis=1).all()


def test_order_picking_ends_with_a_wrong_pick_and_illegal_picks_only_take_time():
    env = OrderPicking(64, num_entities=6)
    env.reset(seed=1)
    state, wrong = env.get_state(), (env.present & ~env.ordered).argmax(axis=1)  # there always is one
    _, rewards, terminations, *_ = env.step(wrong)
    assert terminations.all() and (rewards == 0).all()

    env.set_state(state)
    heaviest = np.where(env.present & env.ordered, env.weight, -1).argmax(axis=1)
    several = env.num_ordered > 1
    _, rewards, terminations, *_ = env.step(heaviest)  # right only where it is the lightest as well
    np.testing.assert_array_equal(rewards, np.where(several, 0.0, 1.0))
    assert terminations.all() and 10 < several.sum() < 64

    env.set_state(state)
    empty, rows = (~env.present).argmax(axis=1), ~env.present.all(axis=1)
    for step in range(12):
        held = env.present.copy()
        _, rewards, terminations, truncations, _ = env.step(empty)
        assert (rewards[rows] == 0).all() and not terminations[rows].any()
        assert truncations[rows].all() if step == 11 else (env.present == held)[rows].all()


@pytest.mark.parametrize("env_id, kwargs, words", [
    ("Masked/JobRouting-v0", {"num_up": 1.5}, "Masked/JobRouting-v0: num_up is 1.5; expected a whole number"),
    ("Masked/JobRouting-v0", {"fleet_seed": None}, "fleet_seed is None; expected a whole number"),
    ("Masked/JobRouting-v0", {"show_up": "no"}, "show_up is 'no'; expected True or False"),
    ("Masked/Vault-v0", {"delay": 0.5}, "delay is 0.5; expected a whole number"),
    ("Masked/Harvest-v0", {"workers_cost": 2.5}, "workers_cost is 2.5; expected a whole number"),
    ("Masked/ConnectFour-v0", {"depth": 8}, "Expected depth from 1 to 7"),
])  # fmt: skip
def test_arguments_that_are_no_whole_numbers_or_flags_are_refused(env_id, kwargs, words):
    with pytest.raises(ValueError, match=words):
        make_vec(env_id, 2, kwargs)
