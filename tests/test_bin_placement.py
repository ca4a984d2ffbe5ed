"""BinPlacement beyond what `test_envs.py` asks of every environment: values, rewards, refusals and pictures."""

import numpy as np
import pytest

from envs.base import SingleEnv
from envs.constraints import MaskFunction
from envs.worlds.bin_placement import Bin, BinPlacement, Orientation, fitting_bins, make_bin_placement_vec

FIELDS = {"bin": Bin, "orientation": Orientation}
HIDDEN = ("small_bins", "large_bins", "open_bins")


def random_legal(rng, mask):
    score = np.where(mask, rng.random(mask.shape), -1)
    return np.stack([score[:, :7].argmax(axis=1), score[:, 7:].argmax(axis=1)], axis=1)


def test_the_simulator_receives_values_not_indices():
    env = make_bin_placement_vec(7)
    env.reset(seed=0)
    actions = np.stack([np.arange(7), np.arange(7) % 2], axis=1)
    env.step(actions)
    assert env.unwrapped.last_bin.tolist() == [10, 11, 12, 13, 21, 22, 23]
    assert env.unwrapped.last_orientation.tolist() == [1, 2, 1, 2, 1, 2, 1]
    assert env.single_action_space.nvec.tolist() == [7, 2]


def test_the_simulators_spaces_hold_exactly_what_it_takes():
    env = BinPlacement(3)
    obs, _ = env.reset(seed=0)
    assert obs in env.observation_space
    space = env.single_action_space
    assert all({"bin": np.int64(b), "orientation": np.int64(o)} in space for b in Bin for o in Orientation)
    assert {"bin": np.int64(0), "orientation": np.int64(1)} not in space


def test_a_value_that_is_no_bin_is_refused_and_does_not_raise():
    env = BinPlacement(7)
    env.reset(seed=0)
    before = env.sides.copy()
    _, rewards, *_ = env.step({"bin": np.arange(14, 21), "orientation": np.ones(7, np.int64)})
    assert not rewards.any() and not env.total.any()
    np.testing.assert_array_equal(env.sides, before)


def brute_force(env, row):
    """Every legal choice and what it earns, from the rules as the docstring states them."""
    (width, height), size = env.sides[row], ["small", "medium", "large"][env.size[row]]
    earns = {(Bin.REJECT, orientation): 0.1 for orientation in Orientation}
    for index, member in enumerate(list(Bin)[1:]):
        if env.open[row, index] and (size == "medium" or member.name.startswith(size.upper())):
            room_width, room_height = env.room[row, index]
            for orientation in Orientation:
                w, h = (width, height) if orientation == Orientation.UPRIGHT else (height, width)
                earns[member, orientation] = np.exp(-3 * (abs(room_width - w) + abs(room_height - h)))
    return earns


def test_rewards_and_the_optimum_agree_with_brute_force():
    rng, env = np.random.default_rng(0), make_bin_placement_vec(16, num_objects=20)
    raw = env.unwrapped
    env.reset(seed=1)
    optimum, counts = np.zeros(16), {"refused": 0, "rejected": 0, "placed": 0}
    for _ in range(20):
        tables = [brute_force(raw, row) for row in range(16)]
        optimum += [max(table.values()) for table in tables]
        for row, (b, o) in enumerate(raw.best_actions()):
            assert tables[row][list(Bin)[b], list(Orientation)[o]] == pytest.approx(max(tables[row].values()))
        actions = rng.integers([7, 2], size=(16, 2))
        _, rewards, *_, infos = env.step(actions)
        for row, (b, o) in enumerate(actions):
            reward = tables[row].get((list(Bin)[b], list(Orientation)[o]), 0)
            assert rewards[row] == pytest.approx(reward)
            counts["rejected" if b == 0 else "placed" if reward else "refused"] += 1
    np.testing.assert_allclose(infos["final_info"]["optimal_return"], optimum)
    assert min(counts.values()) > 20


def test_random_legal_play_leaves_much_to_learn_and_rejecting_is_at_times_best():
    rng, env = np.random.default_rng(0), make_bin_placement_vec(64)
    _, infos = env.reset(seed=0)
    earned, rejects = 0, 0
    for _ in range(32):
        rejects += (env.unwrapped.best_actions()[:, 0] == 0).sum()
        _, rewards, *_, infos = env.step(random_legal(rng, infos["action_mask"]))
        earned += rewards.sum()
    assert 0.4 < earned / infos["final_info"]["optimal_return"].sum() < 0.6
    assert 0.005 < rejects / (32 * 64) < 0.15


def test_rejected_and_placed_objects_are_replaced_and_refused_ones_stay_before_fresh_bins():
    env = BinPlacement(64)
    obs, _ = env.reset(seed=3)
    legal = env._legal(np.arange(64))
    bins = np.where(legal[:, 0], Bin.SMALL_A, np.where(np.arange(64) % 2, Bin.REJECT, Bin.SMALL_A))
    refused = (bins == Bin.SMALL_A) & ~legal[:, 0]
    sides, room = env.sides.copy(), env.room.copy()
    env.step({"bin": bins, "orientation": np.full(64, Orientation.FLAT)})
    assert refused.any() and (~refused).any()
    np.testing.assert_array_equal((env.sides == sides).all(axis=1), refused)
    assert (env.room != room).all()


def test_the_gap_is_what_the_reward_is_made_of():
    env = BinPlacement(32)
    obs, _ = env.reset(seed=0)
    offers = np.exp(-3 * np.abs(obs["gap"]).sum(axis=-1))
    legal = env._legal(np.arange(32))
    for member, index in zip(list(Bin)[1:], range(6), strict=True):
        for orientation in Orientation:
            state = env.get_state()
            _, rewards, *_ = env.step({"bin": np.full(32, member), "orientation": np.full(32, orientation)})
            env.set_state(state)
            expected = np.where(legal[:, index], offers[:, index, orientation - 1], 0)
            np.testing.assert_allclose(rewards, expected, rtol=1e-5)


def test_the_learner_does_not_get_what_the_mask_function_sees():
    seen = []

    def spy(state):
        seen.append(set(state))
        return fitting_bins(state)

    env = make_bin_placement_vec(2, num_objects=1)
    env.mask_function = spy
    obs, _ = env.reset(seed=0)
    after, *_, infos = env.step(np.zeros((2, 2), int))
    shown = {"object", "gap"}
    assert set(obs) == set(after) == set(infos["final_obs"]) == set(env.single_observation_space) == shown
    assert len(seen) == 3 and all(keys == shown | set(HIDDEN) for keys in seen)  # reset, final state, new episode


def test_the_mask_function_takes_one_state_as_well_as_a_batch():
    wrapped = MaskFunction(SingleEnv(BinPlacement(1)), FIELDS, fitting_bins, hide=HIDDEN)
    batched = make_bin_placement_vec(1)
    masks = set()
    for seed in range(20):
        mask = wrapped.reset(seed=seed)[1]["action_mask"]
        np.testing.assert_array_equal(mask, batched.reset(seed=seed)[1]["action_mask"][0])
        masks.add(mask.tobytes())
    assert len(masks) > 5


def test_the_episode_ends_on_time_and_the_observation_tells_the_time_left():
    env = make_bin_placement_vec(1, num_objects=4)
    obs, _ = env.reset(seed=0)
    left = [obs["object"][0, 5]]
    for step in range(4):
        obs, _, terminations, truncations, infos = env.step(np.zeros((1, 2), int))
        left.append(obs["object"][0, 5])
        assert terminations[0] == (step == 3) and not truncations[0]
    assert left == [1, 0.75, 0.5, 0.25, 1]
    assert infos["final_obs"]["object"][0, 5] == 0


def test_text_marks_illegal_bins_the_best_and_the_last():
    env = make_bin_placement_vec(1, render_mode="ansi")
    _, infos = env.reset(seed=0)
    refusing = int(infos["action_mask"][0, :7].argmin())
    *_, infos = env.step(np.array([[refusing, 0]]))
    (picture,) = env.render()
    assert f"refused by {list(Bin)[refusing].name}: the object stays" in picture
    best = env.unwrapped.best_actions()[0, 0]
    lines = picture.splitlines()[3:10]
    for index, (line, member, legal) in enumerate(zip(lines, Bin, infos["action_mask"][0, :7], strict=True)):
        sign, name, *_ = line[:2], *line[2:].split()
        assert name == member.name and ("xx" in line) == (not legal)
        assert ("closed" in line or "wrong size" in line) == (not legal)
        assert sign.strip() == ">" * (index == refusing) + "*" * bool(index == best)


def test_pictures_mark_illegal_bins_in_red():
    env = make_bin_placement_vec(24, render_mode="rgb_array")
    _, infos = env.reset(seed=0)
    red = np.array([0xD6, 0x45, 0x45])
    for frame, mask in zip(env.render(), infos["action_mask"], strict=True):
        assert frame.shape == (500, 864, 3) and frame.dtype == np.uint8
        slots = [(frame[230:446, left : left + 108] == red).all(axis=-1).any() for left in range(24, 850, 118)]
        np.testing.assert_array_equal(slots, mask[:7] == 0)
