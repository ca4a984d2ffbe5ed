"""JobRouting: its fleet, its optimum, what the learner sees, its pictures."""

import numpy as np
import pytest

from envs.worlds.job_routing import JobRouting, machines, make_job_routing_vec, only_machines_that_are_up


def random_legal(rng, mask):
    return np.where(mask, rng.random(mask.shape), -1).argmax(axis=1)


def test_the_fleet_depends_on_its_own_seed_only():
    fleet, same, other = JobRouting(2), JobRouting(3), JobRouting(2, fleet_seed=1)
    fleet.reset(seed=1), same.reset(seed=2)
    np.testing.assert_array_equal(fleet.speed, same.speed)
    np.testing.assert_array_equal(fleet.price, same.price)
    assert (fleet.speed != other.speed).all() and (fleet.price != other.price).all()


def test_the_mask_is_what_the_dynamics_accept():
    env = make_job_routing_vec(4, num_machines=8, num_up=3)
    obs, infos = env.reset(seed=5)
    state, before = env.unwrapped.get_state(), obs["job"][:, :6].copy()
    for machine in range(8):
        env.unwrapped.set_state(state)
        obs, rewards, *_ = env.step(np.full(4, machine))
        legal = infos["action_mask"][:, machine] == 1
        np.testing.assert_array_equal(rewards > 0, legal)
        np.testing.assert_array_equal(rewards[~legal], 0)
        np.testing.assert_array_equal((obs["job"][:, :6] == before).all(axis=1), ~legal)


@pytest.mark.parametrize(("num_machines", "num_up"), [(2, 1), (7, 1), (16, 8), (16, 15)])
def test_one_machine_fails_and_one_returns_after_every_step(num_machines, num_up):
    rng = np.random.default_rng(0)
    env = make_job_routing_vec(8, num_machines, num_up, num_jobs=1000)
    _, infos = env.reset(seed=0)
    seen = np.zeros((8, num_machines), bool)
    for _ in range(200):
        before = infos["action_mask"].copy()
        *_, infos = env.step(random_legal(rng, before))
        change = infos["action_mask"] - before
        assert ((change == 1).sum(axis=1) == 1).all() and ((change == -1).sum(axis=1) == 1).all()
        assert (infos["action_mask"].sum(axis=1) == num_up).all()
        seen |= change == 1
    assert seen.all()


def test_when_all_machines_are_up_none_fails():
    env = make_job_routing_vec(2, num_machines=4, num_up=4)
    env.reset(seed=0)
    for _ in range(5):
        assert env.step(np.array([0, 3]))[-1]["action_mask"].all()


def brute_force_best(env, row):
    kind, size, urgency = env.kind[row], env.size[row], env.urgency[row]
    return max(
        1 / (1 + 0.1 * urgency * size / env.speed[kind, m] + 6 * env.price[m])
        for m in range(env.num_machines)
        if env.up[row, m]
    )


def test_best_play_earns_the_optimal_return_and_brute_force_agrees():
    env = make_job_routing_vec(6, num_jobs=20)
    env.reset(seed=2)
    earned, optimum = np.zeros(6), np.zeros(6)
    for step in range(20):
        optimum += [brute_force_best(env.unwrapped, row) for row in range(6)]
        _, rewards, terminations, truncations, infos = env.step(env.unwrapped.best_actions())
        earned += rewards
        assert not truncations.any() and (terminations == (step == 19)).all()
    np.testing.assert_array_equal(earned, infos["final_info"]["optimal_return"])
    np.testing.assert_allclose(optimum, earned, rtol=1e-12)


def test_the_optimum_does_not_depend_on_what_is_played_while_jobs_are_accepted():
    rng = np.random.default_rng(0)
    env = make_job_routing_vec(32)
    _, infos = env.reset(seed=0)
    earned = np.zeros(32)
    for _ in range(64):
        _, rewards, *_, infos = env.step(random_legal(rng, infos.get("action_mask")))
        earned += rewards
    optimum = infos["final_info"]["optimal_return"]
    assert (earned < optimum).all()
    assert 0.45 < earned.sum() / optimum.sum() < 0.6  # random legal play leaves much to learn
    env.reset(seed=0)
    for _ in range(64):
        *_, infos = env.step(env.unwrapped.best_actions())
    np.testing.assert_array_equal(infos["final_info"]["optimal_return"], optimum)


def test_the_best_machine_depends_on_kind_size_and_urgency():
    env = JobRouting(8, num_up=16)
    env.reset(seed=0)
    env.kind[:] = [0, 1, 2, 3, 2, 2, 2, 2]
    env.size[:] = [1, 1, 1, 1, 0.01, 1, 1, 0.01]
    env.urgency[:] = [1, 1, 1, 1, 1, 0.01, 1, 0.01]
    best = env.best_actions()
    assert len(set(best[:4])) > 1 and best[4] != best[6] and best[5] != best[6]


def test_the_shift_ends_on_time_and_the_observation_tells_the_time_left():
    env = make_job_routing_vec(1, num_jobs=4)
    obs, infos = env.reset(seed=0)
    left = [obs["job"][0, 6]]
    for _ in range(4):
        obs, _, terminations, _, infos = env.step(infos["action_mask"].argmax(axis=1))
        left.append(obs["job"][0, 6])
    assert left == [1, 0.75, 0.5, 0.25, 1] and terminations[0]
    assert infos["final_obs"]["job"][0, 6] == 0


def test_observations_and_masks_are_in_their_spaces():
    env = make_job_routing_vec(3, num_machines=5)
    obs, infos = env.reset(seed=0)
    assert obs in env.observation_space and obs["job"].dtype == np.float32
    assert (obs["job"][:, :4].sum(axis=1) == 1).all()
    assert infos["action_mask"].dtype == np.int8 and infos["action_mask"].shape == (3, 5)
    raw, _ = env.unwrapped.reset(seed=0)
    assert raw in env.unwrapped.observation_space and raw["up"].dtype == np.int8


def test_the_learner_does_not_get_what_the_mask_function_sees():
    seen = []

    def spy(state):
        seen.append(set(state))
        return only_machines_that_are_up(state)

    env = make_job_routing_vec(2, num_jobs=1)
    env.mask_function = spy
    obs, infos = env.reset(seed=0)
    after, *_, infos = env.step(infos["action_mask"].argmax(axis=1))
    assert set(obs) == set(after) == set(infos["final_obs"]) == set(env.single_observation_space) == {"job"}
    assert len(seen) == 3 and all(keys == {"job", "up"} for keys in seen)  # reset, final state, new episode


def test_the_learner_sees_what_is_up_if_it_is_told_to():
    env = make_job_routing_vec(3, num_machines=5, show_up=True)
    obs, infos = env.reset(seed=0)
    assert obs in env.observation_space
    for _ in range(5):
        np.testing.assert_array_equal(obs["up"], infos["action_mask"])
        obs, *_, infos = env.step(infos["action_mask"].argmax(axis=1))


def test_machines_are_named_in_order_and_made_once():
    assert [(m.name, m.value) for m in machines(3)] == [("M0", 0), ("M1", 1), ("M2", 2)]
    assert machines(3) is machines(3)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_machines": 1}, "num_machines must be 2 to 1024, got 1"),
        ({"num_machines": 1025}, "num_machines must be 2 to 1024, got 1025"),
        ({"num_up": 0}, "num_up must be 1 to num_machines=16, got 0"),
        ({"num_machines": 4, "num_up": 5}, "num_up must be 1 to num_machines=4, got 5"),
        ({"num_jobs": 0}, "num_jobs must be at least 1, got 0"),
        ({"render_mode": "human"}, "render_mode must be .* got 'human'"),
    ],
)
def test_bad_arguments_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_job_routing_vec(2, **kwargs)


@pytest.mark.parametrize("num_machines", [2, 16, 1024])
def test_pictures_of_any_fleet(num_machines):
    env = make_job_routing_vec(2, num_machines, render_mode="rgb_array")
    _, infos = env.reset(seed=0)
    first = env.render()
    env.step(infos["action_mask"].argmin(axis=1))  # refused: the news say so
    second = env.render()
    assert all(frame.shape == (500, 800, 3) and frame.dtype == np.uint8 for frame in (*first, *second))
    assert (first[0] != first[1]).any() and (first[0] != second[0]).any()


def test_text_marks_machines_that_are_down_the_best_and_the_last():
    env = make_job_routing_vec(1, 6, 2, render_mode="ansi")
    _, infos = env.reset(seed=0)
    down = int(infos["action_mask"][0].argmin())
    *_, infos = env.step(np.array([down]))
    (picture,) = env.render()
    assert f"M{down} was down: the job waits" in picture
    tiles = [tile.strip() for line in picture.splitlines()[2:4] for tile in line.split("|")]
    best = int(env.unwrapped.best_actions()[0])
    for machine, (tile, is_up) in enumerate(zip(tiles, infos["action_mask"][0], strict=True)):
        assert (" xx " in tile) == (not is_up)
        assert tile.split("M")[0].strip() == (machine == down) * ">" + (machine == best) * "*"
    assert "+960 more" in "\n".join(text_of(1024))


def text_of(num_machines):
    env = make_job_routing_vec(1, num_machines, render_mode="ansi")
    env.reset(seed=0)
    return env.render()
