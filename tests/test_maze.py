"""The maze's own promises: what the agent sees, which mazes are drawn, and how pictures show blocked moves."""

import numpy as np
import pytest

from envs.make import make_vec
from envs.worlds.maze import GOAL, STEP_COST, TRAIL, VIEW, VISIT, WALL, Maze, Move, _distances, _pick

STEPS = {Move.UP: (-1, 0), Move.DOWN: (1, 0), Move.LEFT: (0, -1), Move.RIGHT: (0, 1)}


def random_legal(mask, rng):
    return (rng.random(mask.shape) * mask).argmax(axis=1)


def place(env, cell):
    """Row and column of a cell, counted without the margin."""
    return np.stack(np.divmod(cell, env.width)) - VIEW


def test_the_observation_is_what_its_table_says():
    """Walls, goal, trail and compass are kept here cell by cell, in plain loops and without any flat index."""
    env, rng = Maze(8, size=6), np.random.default_rng(0)
    obs, infos = env.reset(seed=1)
    visits = [{tuple(place(env, env.cell)[:, row]): 1} for row in range(8)]
    for _ in range(40):
        for row in range(8):
            (y, x), goal = place(env, env.cell)[:, row], place(env, env.goal)[:, row]
            walls = env.maps[row, 0].reshape(env.width, -1)[VIEW:-VIEW, VIEW:-VIEW] == WALL
            seen, trail = [], []
            for dy, dx in np.ndindex(2 * VIEW + 1, 2 * VIEW + 1):
                j, i = y + dy - VIEW, x + dx - VIEW
                blocked = not (0 <= j < 6 and 0 <= i < 6) or walls[j, i]
                seen.append(WALL if blocked else GOAL if (j, i) == tuple(goal) else 0)
            for dy, dx in np.ndindex(2 * TRAIL + 1, 2 * TRAIL + 1):
                trail.append(min(1, VISIT * visits[row].get((y + dy - TRAIL, x + dx - TRAIL), 0)))
            compass = np.array([goal[1] - x, goal[0] - y])
            np.testing.assert_allclose(obs[row], [*seen, *trail, *compass / 6, *np.sign(compass)], atol=1e-6)
        actions = random_legal(infos["action_mask"], rng)
        actions[0] = Move.LEFT  # illegal at times
        obs, _, terminations, truncations, infos = env.step(actions)
        for row, cell in enumerate(place(env, env.cell).T.tolist()):
            if terminations[row] or truncations[row]:
                visits[row] = {}
            visits[row][tuple(cell)] = visits[row].get(tuple(cell), 0) + 1


def test_moves_go_where_their_names_say():
    env = Maze(16, density=0)
    _, infos = env.reset(seed=2)
    state = env.get_state()
    for move, step in STEPS.items():
        env.set_state(state)
        env.autoreset = False
        before, legal = place(env, env.cell), infos["action_mask"][:, move]
        env.step(np.full(16, move))
        np.testing.assert_array_equal(place(env, env.cell) - before, np.outer(step, legal))
        assert legal.any()


def test_rewards_of_best_play_add_up_exactly_and_the_final_observation_is_at_the_goal():
    env = Maze(32)
    env.reset(seed=3)
    returns, lengths, ends = np.zeros(32), np.zeros(32, int), 0
    for _ in range(60):
        obs, rewards, terminations, truncations, infos = env.step(env.best_actions())
        returns, lengths = returns + rewards, lengths + 1
        assert not truncations.any()
        for row in np.flatnonzero(terminations):
            assert returns[row] == infos["final_info"]["optimal_return"][row] == 1 - STEP_COST * lengths[row]
            assert lengths[row] == infos["final_info"]["optimal_length"][row]
            assert infos["final_obs"][row, (2 * VIEW + 1) ** 2 // 2] == GOAL  # the agent stands on it
            assert (infos["final_obs"][row, -4:] == 0).all() and (obs[row, -4:] != 0).any()
            ends += 1
        returns[terminations] = lengths[terminations] = 0
    assert ends > 64


@pytest.mark.parametrize("size, density", [(2, 0.5), (6, 0.5), (12, 0.5), (20, 0.3)])
def test_mazes_without_room_are_drawn_again(size, density):
    env = Maze(100, size=size, density=density)
    env.reset(seed=4)
    assert ((env.distances >= 0).sum(axis=1) >= size).all() and (env.optimal_length >= 1).all()
    inner = env.maps[:, 0, env.cells] == WALL
    assert inner.any(axis=0).all() and not inner.all(axis=0).any()  # no cell is always or never a wall
    assert ((env.maps[:, 0] == WALL).sum(axis=1) - inner.sum(axis=1) == env.num_cells - size**2).all()


def test_a_start_is_never_further_away_than_the_time_limit():
    env = Maze(200, size=12, max_episode_steps=3)
    env.reset(seed=5)
    np.testing.assert_array_equal(np.unique(env.optimal_length), [1, 2, 3])
    assert env.distances.max() > 3


def test_goals_and_starts_are_uniform():
    env = Maze(4000, size=3, density=0)
    env.reset(seed=6)
    for cells in (env.goal, env.cell):
        counts = np.bincount(np.searchsorted(env.cells, cells), minlength=9)
        assert (abs(counts - 4000 / 9) < 100).all()  # five standard deviations
    assert (env.goal != env.cell).all()


def test_pick_takes_true_entries_only_also_at_the_ends_of_the_draw():
    flags = np.array([[False, True, False, True, False]] * 4)
    draws = np.array([0, 0.5 - 2**-54, 0.5, 1 - 2**-53])
    np.testing.assert_array_equal(_pick(flags, draws), [1, 1, 3, 3])


def test_distances_do_not_leak_into_the_next_row():
    """The rows of a batch are neighbours in one long integer; only the margin of walls keeps them apart."""
    free = np.zeros((3, 4, 4), bool)
    free[:, 1:3, 1:3] = True
    free[1, 1, 2] = free[1, 2, 1] = False  # in the second map nothing else can be reached
    found = _distances(free.reshape(3, 16), np.array([5, 5, 10]), width=4)[:, [5, 6, 9, 10]]
    np.testing.assert_array_equal(found, [[0, 1, 1, 2], [0, -1, -1, -1], [2, 1, 1, 0]])


def test_the_text_names_blocked_moves_and_shows_the_map():
    env = Maze(30, size=5, density=0.4, render_mode="ansi")
    _, infos = env.reset(seed=7)
    for page, mask, cell in zip(env.render(), infos["action_mask"], place(env, env.cell).T, strict=True):
        legal, blocked = (", ".join(m.name for m in Move if mask[m] == flag) or "none" for flag in (1, 0))
        lines = page.splitlines()
        assert lines[1] == f"legal: {legal}; blocked: {blocked}"
        assert lines[3 + cell[0]][1 + 2 * cell[1]] == "●" and page.count("★") == 1
    assert {len(line) for line in lines[2:]} == {2 * 5 + 2}


def test_the_picture_marks_each_blocked_move_in_red_and_each_legal_one_in_green():
    env = Maze(12, size=5, density=0.4, render_mode="rgb_array")
    _, infos = env.reset(seed=8)
    tile, top = 960 // 7 / 2, 36
    for frame, mask, (y, x) in zip(env.render(), infos["action_mask"], place(env, env.cell).T, strict=True):
        assert frame.dtype == np.uint8 and frame.shape == (516, 480, 3)
        for move, (dy, dx) in STEPS.items():
            cy, cx = top + (y + 1.5 + 0.85 * dy) * tile, (x + 1.5 + 0.85 * dx) * tile
            reach = int(tile * 0.2)
            spot = frame[int(cy) - reach : int(cy) + reach, int(cx) - reach : int(cx) + reach].astype(int)
            red = (spot[..., 0] - spot[..., 1] > 100) & (spot[..., 2] < 110)
            green = spot[..., 1] - spot[..., 0] > 90
            assert (green.sum() > 20, red.sum() > 20) == (bool(mask[move]), not mask[move])


def test_the_trail_can_be_left_out():
    envs = [make_vec("Masked/Maze-v0", 4, {"trail": trail}) for trail in (True, False)]
    (whole, _), (short, _) = (env.reset(seed=0) for env in envs)
    assert whole.shape == (4, 110) and short.shape == (4, 85)
    for _ in range(5):
        actions = envs[0].env.unwrapped.best_actions()
        whole, short = (env.step(actions)[0] for env in envs)
        np.testing.assert_array_equal(np.delete(whole, np.s_[81:106], axis=1), short)
