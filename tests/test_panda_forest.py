"""The forest's own promises: who sees whom, how enemies move, what harms, and what the pictures show."""

from collections import Counter, deque
from fractions import Fraction

import numpy as np
import pytest

from envs.base import SingleEnv
from envs.make import make_vec
from envs.worlds.panda_forest import KINDS, SAFE_DISTANCE, Move, PandaForest, _bits, _first_true

STEPS = {Move.UP: (-1, 0), Move.DOWN: (1, 0), Move.LEFT: (0, -1), Move.RIGHT: (0, 1), Move.STAY: (0, 0)}


def random_legal(mask, rng):
    return (rng.random(mask.shape) * mask).argmax(axis=1)


def forest(rows, **kwargs):
    """A batch of one whose state is drawn: P panda, o watermelon, S scorpion, D dragon, # tree; no randomness left."""
    text = "".join(rows)
    counts = {name: text.count(sign) for name, sign in zip(KINDS[1:], "oSD#", strict=True)}
    counts["watermelon"] = counts["watermelon"] or 1
    env = PandaForest(1, len(rows), **{f"num_{name}s": count for name, count in counts.items()}, **kwargs)
    env.autoreset = False
    env.reset(seed=0)
    cells = [(y * env.width + x) for sign in "PoSD#" for (y, x) in np.ndindex(env.size, env.size) if rows[y][x] == sign]
    env.cells[0] = cells
    env.trees[:], env.taken[:] = True, True
    for closed, signs in ((env.trees, "#"), (env.taken, "#oSD")):
        closed[0, env.inner] = [sign in signs for sign in text]
    env.tree_bits[:] = _bits(env.trees[:, env.inner])
    return env


def places(env, row=0):
    """Row and column (E, 2) of each entity."""
    return np.stack(np.divmod(env.cells[row], env.width), axis=1)


def crosses(a, b, cell):
    """Whether the line between the centres of a and b passes through the open unit square around `cell`, in fractions:
    the parts of the line within its rows and within its columns are intervals that must overlap."""
    low, high = Fraction(0), Fraction(1)
    for start, end, middle in zip(a, b, cell, strict=True):
        edges = [2 * (middle - start) - 1, 2 * (middle - start) + 1]
        if start == end:
            if middle != start:
                return False
            continue
        near, far = sorted(Fraction(edge, 2 * (end - start)) for edge in edges)
        low, high = max(low, near), min(high, far)
    return low < high


@pytest.mark.parametrize("size", [4, 5, 8, 9])
def test_line_of_sight_matches_a_slow_reference_and_is_mutual(size):
    env = PandaForest(3, size, num_watermelons=1, num_scorpions=0, num_dragons=0, num_trees=size**2 // 4)
    env.reset(seed=size)
    here, there = (pairs.ravel() for pairs in np.meshgrid(env.inner, env.inner))
    rng = np.random.default_rng(size)
    for row in range(3):
        rows = np.array([row])
        sees, seen = (env._sees(rows, *pair)[0] for pair in ((here[None], there[None]), (there[None], here[None])))
        np.testing.assert_array_equal(sees, seen)
        trees = [tuple(place) for place in places(env, row)[env.enemies.stop :].tolist()]
        assert 0 < sees.sum() < sees.size
        for k in rng.permutation(len(here))[:1500]:
            a, b = (divmod(int(cell), env.width) for cell in (here[k], there[k]))
            expected = not any(crosses(a, b, tree) for tree in trees if tree not in (a, b))
            assert sees[k] == expected, (a, b, trees)


def test_the_largest_forest_sees_by_the_same_rule():
    """Here the trees fill four integers of bits."""
    env, rng = PandaForest(2, size=16, num_trees=60), np.random.default_rng(0)
    env.reset(seed=0)
    trees = [tuple(place) for place in places(env)[env.enemies.stop :].tolist()]
    here, there = rng.choice(env.inner, (2, 1, 400))
    for a, b, sees in zip(here[0], there[0], env._sees(np.array([0]), here, there)[0], strict=True):
        a, b = divmod(int(a), env.width), divmod(int(b), env.width)
        assert sees == (not any(crosses(a, b, tree) for tree in trees if tree not in (a, b)))


def test_the_observation_is_what_its_table_says():
    """Each row is written here in plain Python; rows of hidden and of eaten entities are zeros."""
    env, rng = PandaForest(8, size=6, num_trees=9, max_episode_steps=40), np.random.default_rng(0)
    obs, infos = env.reset(seed=1)
    hidden = eaten = 0
    trails = [Counter() for _ in range(8)]
    for _ in range(40):
        for row in range(8):
            trails[row] = Counter() if env.elapsed[row] == 0 else trails[row]
            where, gone = places(env, row), np.zeros(env.num_entities, bool)
            gone[env.watermelons] = env.eaten[row]
            trees = [tuple(place) for place in where[env.enemies.stop :].tolist()]
            (y, x), free, been = where[0].tolist(), [], []
            trails[row][y, x] += 1
            for dy, dx in [*list(STEPS.values())[:4], (0, 0)]:
                free.append(0 <= y + dy < 6 and 0 <= x + dx < 6 and (y + dy, x + dx) not in trees)
                been.append(min(trails[row][y + dy, x + dx] / 4, 1))
            np.testing.assert_array_equal(infos["action_mask"][row], free)
            for k, (j, i) in enumerate(where.tolist()):
                behind = any(crosses((y, x), (j, i), tree) for tree in trees if tree != (j, i))
                kind = np.arange(5) == env.kinds[k]
                expected = np.array([*kind, (j - y) / 6, (i - x) / 6, (abs(j - y) + abs(i - x)) / 12, *[0] * 13])
                if k == 0:
                    left = 1 - env.eaten[row].sum() / 3
                    expected[8:] = [y / 5, x / 5, *free[:4], left, 1 - env.elapsed[row] / 40, *been]
                present = not (behind or gone[k])
                np.testing.assert_allclose(obs["entities"][row, k], expected * present, atol=1e-6)
                assert obs["entity_mask"][row, k] == present
                hidden, eaten = hidden + behind, eaten + gone[k]
        obs, *_, infos = env.step(random_legal(infos["action_mask"], rng))
        assert env.observation_space.contains(obs)
    assert hidden > 100 and eaten > 20


def test_the_scripts_read_the_presence_of_each_entity_and_its_row_and_nothing_else():
    envs = make_vec("Masked/PandaForest-v0", 4, {"max_episode_steps": 5}, layout="entities")
    raw = make_vec("Masked/PandaForest-v0", 4, {"max_episode_steps": 5}, layout="raw")
    pairs, actions = [(envs.reset(seed=0)[0], raw.reset(seed=0)[0])], np.full(4, Move.STAY)
    for _ in range(6):
        seen, *_, infos = envs.step(actions)
        whole, *_, raw_infos = raw.step(actions)
        pairs.append((seen, whole))
        if "final_obs" in infos:
            pairs.append((infos["final_obs"], raw_infos["final_obs"]))
    assert len(pairs) > 7 and envs.num_globals == 0
    for seen, whole in pairs:
        np.testing.assert_array_equal(seen, np.dstack([whole["entity_mask"][..., None], whole["entities"]]))
        assert (seen[:, 0, 0] == 1).all()  # the panda's own row, which is the one that is read


def test_nothing_about_hidden_watermelons_is_observed():
    one, other = (forest([row, "....", "....", "...."])._observe(np.array([0])) for row in ("P#.o", "P#o."))
    assert one["entity_mask"].tolist() == [[1, 0, 1]] and not one["entities"][0, 1].any()
    for key in one:
        np.testing.assert_array_equal(one[key], other[key])


def test_without_trees_everything_is_seen():
    env = PandaForest(16, num_trees=0)
    obs, _ = env.reset(seed=2)
    assert obs["entity_mask"].all() and (obs["entities"][:, :, :5].sum(axis=2) == 1).all()


def test_a_perfect_episode_returns_one():
    env = forest(["P.o.", "....", "o..o", "...."])
    route = [Move.RIGHT, Move.RIGHT, Move.DOWN, Move.DOWN, Move.RIGHT, Move.LEFT, Move.LEFT, Move.LEFT]
    total = 0
    for t, move in enumerate(route):
        obs, rewards, terminations, truncations, infos = env.step(np.array([move]))
        total += rewards[0]
        assert terminations[0] == (t == len(route) - 1) and not truncations[0]
        assert obs["entity_mask"][0, 1:4].tolist() == [int(t < 1), int(t < 7), int(t < 4)]
    assert total == infos["optimal_return"][0] == 1
    assert infos["success"].dtype == bool and infos["success"][0] and not infos["harmed"][0]
    assert infos["watermelons"][0] == 3 and obs["entities"][0, 0, 14] == 0


def test_time_runs_out():
    env = forest(["Po..", "....", "....", "...."], max_episode_steps=2)
    assert not env.step(np.array([Move.STAY]))[3]
    _, rewards, terminations, truncations, infos = env.step(np.array([Move.STAY]))
    assert (rewards[0], terminations[0], truncations[0], infos["success"][0]) == (0, False, True, False)


@pytest.mark.parametrize(
    "rows, way",
    [
        (["P.o.", "....", "....", ".D.."], (-1, 0)),  # the longer distance first
        (["P.o.", "...D", "....", "...."], (0, -1)),
        (["P...", "..oD", "....", "...."], (-1, 0)),  # no way through a watermelon: the other distance
        ([".o..", "P#..", "....", "..D."], None),  # either of two equal distances
        (["P...", ".o..", "...#", "..#D"], (0, 0)),  # it sees the panda between two corners, and cannot get there
    ],
)
def test_dragons_hunt_what_they_see(rows, way):
    env, found = forest(rows, dragon_rest=0.0), set()
    state, dragon = env.get_state(), env.enemies.start
    for seed in range(20):
        env.set_state(state)
        env._np_random = np.random.default_rng(seed)
        before = places(env)[dragon]
        env.step(np.array([Move.STAY]))
        found.add(tuple((places(env)[dragon] - before).tolist()))
    assert found == ({way} if way else {(-1, 0), (0, -1)})


def test_dragons_wander_when_a_tree_hides_the_panda_and_rest_as_often_as_told():
    env, found = forest(["P#.D", "....", "....", "...o"], dragon_rest=0.0), set()
    state, dragon = env.get_state(), env.enemies.start
    for seed in range(40):
        env.set_state(state)
        env._np_random = np.random.default_rng(seed)
        env.step(np.array([Move.STAY]))
        found.add(tuple(places(env)[dragon].tolist()))
    assert found == {(0, 3), (0, 2), (1, 3)}
    env = PandaForest(500, num_trees=0, num_scorpions=0, dragon_rest=0.8)
    env.reset(seed=3)
    before = env.cells[:, env.enemies.start].copy()
    env.step(np.full(500, Move.STAY))
    assert 0.72 < (env.cells[:, env.enemies.start] == before).mean() < 0.88


def test_a_dragon_catches_a_panda_that_stays():
    env = forest(["P..o", "....", "....", "D..."], dragon_rest=0.0)
    for left in (2, 1, 0):
        _, rewards, terminations, _, infos = env.step(np.array([Move.STAY]))
        assert abs(places(env)[0] - places(env)[2]).sum() == left
        assert (rewards[0], terminations[0]) == ((-1, True) if left == 0 else (0, False))
    assert infos["harmed"][0] and not infos["success"][0]


@pytest.mark.parametrize("enemy", "SD")
def test_stepping_on_an_enemy_harms_also_where_the_two_would_swap_cells(enemy):
    """The dragon wants the panda's cell, the panda wants the dragon's: they meet."""
    env = forest([f"P{enemy}.o", "##..", "....", "...."], dragon_rest=0.0)
    _, rewards, terminations, _, infos = env.step(np.array([Move.RIGHT]))
    assert (rewards[0], terminations[0], infos["harmed"][0], infos["success"][0]) == (-1, True, True, False)
    assert env.cells[0, 0] == env.cells[0, 2] == 1
    assert "harmed!" in env._headline(0)
    env.reset()
    assert not env.harmed.any() and "harmed!" not in env._headline(0)


def test_the_last_watermelon_ends_the_episode_before_an_enemy_can_strike():
    env = forest(["PoD.", "....", "....", "...."], dragon_rest=0.0)
    _, rewards, terminations, _, infos = env.step(np.array([Move.RIGHT]))
    assert (rewards[0], terminations[0], infos["success"][0]) == (1, True, True)


def test_illegal_moves_change_nothing_but_the_world_goes_on():
    env = forest(["P#.o", "....", "....", "D..."], dragon_rest=0.0)
    for move, distance in ((Move.UP, 2), (Move.RIGHT, 1)):
        assert env._info(np.array([0]))["action_mask"].tolist() == [[0, 1, 0, 0, 1]]
        env.step(np.array([move]))
        assert env.cells[0, 0] == 0 and abs(places(env)[2] - places(env)[0]).sum() == distance


def test_moves_go_where_their_names_say_and_nowhere_else():
    env = PandaForest(40, size=4, num_trees=4, num_scorpions=0, num_dragons=0)
    _, infos = env.reset(seed=4)
    state, env.autoreset = env.get_state(), False
    for move, step in STEPS.items():
        env.set_state(state)
        before = [places(env, row)[0] for row in range(40)]
        env.step(np.full(40, move))
        moved = np.array([places(env, row)[0] - before[row] for row in range(40)])
        np.testing.assert_array_equal(moved, np.outer(infos["action_mask"][:, move], step))
    assert 0 < infos["action_mask"][:, :4].mean() < 1


@pytest.mark.parametrize(
    "size, counts", [(4, (2, 1, 1, 3)), (4, (1, 6, 0, 0)), (5, (1, 1, 1, 8)), (8, (3, 2, 1, 10)), (16, (42, 0, 0, 85))]
)
def test_starts_are_fair(size, counts):
    env = PandaForest(40, size, *counts)
    env.reset(seed=5)
    for row in range(40):
        where = [tuple(place) for place in places(env, row).tolist()]
        assert len(set(where)) == len(where) and np.isin(env.cells[row], env.inner).all()
        trees, reached, queue = set(where[env.enemies.stop :]), {where[0]}, deque([where[0]])
        while queue:
            y, x = queue.popleft()
            for dy, dx in STEPS.values():
                cell = y + dy, x + dx
                if max(cell) < size and min(cell) >= 0 and cell not in trees | reached:
                    reached.add(cell)
                    queue.append(cell)
        assert set(where[: env.enemies.stop]) <= reached
        for y, x in where[env.enemies]:
            assert abs(y - where[0][0]) + abs(x - where[0][1]) >= SAFE_DISTANCE


def test_enemies_keep_off_trees_watermelons_and_each_other_and_go_everywhere_else():
    env, rng = (
        PandaForest(40, size=5, num_trees=4, num_watermelons=2, num_scorpions=2, num_dragons=2),
        np.random.default_rng(0),
    )
    env.reset(seed=6)
    visited, stays, steps = set(), 0, 0
    for _ in range(150):
        before = env.cells[:, env.enemies].copy()
        *_, infos = env.step(rng.integers(0, 5, 40))
        kept = np.ones(40, bool) if "final_info" not in infos else ~infos["_final_info"]
        for row in np.flatnonzero(kept):
            enemies = env.cells[row, env.enemies].tolist()
            closed = {*env.cells[row, env.enemies.stop :].tolist()}
            closed |= {*env.cells[row, env.watermelons][~env.eaten[row]].tolist()}
            assert len({*enemies}) == 4 and not closed & {*enemies} and {*enemies} <= {*env.inner.tolist()}
            np.testing.assert_array_equal(
                np.flatnonzero(env.taken[row, env.inner]), np.flatnonzero(np.isin(env.inner, [*closed, *enemies]))
            )
            way = abs(np.stack(np.divmod(enemies, 6)) - np.stack(np.divmod(before[row], 6))).sum(axis=0)
            assert way.max() <= 1
            stays, steps, visited = stays + (way == 0).sum(), steps + 4, visited | {*enemies}
    assert visited == {*env.inner.tolist()} and 0.2 < stays / steps < 0.7


def test_first_true_takes_the_first_ones_and_says_where_there_are_too_few():
    found, enough = _first_true(np.array([[False, True, True, True], [False, False, True, False]]), 2)
    assert found[0].tolist() == [1, 2] and enough.tolist() == [True, False] and found[1, 0] == 2


def test_attention_changes_the_picture_only():
    env = PandaForest(2, render_mode="rgb_array")
    env.reset(seed=7)
    plain, state = env.render(), env.get_state()
    env.attention = np.full((2, env.num_entities), 0.01)
    env.attention[0, env.enemies.stop :] = 0.3
    lined = env.render()
    assert (plain[0] != lined[0]).any() and "attention" not in env.get_state()
    for key, value in env.get_state().items():
        np.testing.assert_equal(value, state[key])
    env.attention *= 2  # only shares count
    np.testing.assert_array_equal(env.render(), lined)
    env.attention = np.zeros((2, env.num_entities))
    np.testing.assert_array_equal(env.render(), plain)


def test_the_picture_pales_what_is_hidden_and_crosses_out_what_is_illegal():
    """Red pixels in the rightmost quarter are a watermelon's flesh; those at the panda's edges are crosses."""
    for row, pale, right in (("P..o", False, False), ("P#.o", True, True)):
        (frame,) = forest([row, "....", "....", "..#."], render_mode="rgb_array").render()
        frame = frame.astype(int)
        red, tile = (frame[..., 0] - frame[..., 1] > 100) & (frame[..., 2] < 110), 128
        assert (red[:, 12 + 3 * tile :].sum() < 200) == pale
        middle = np.array([36 + tile // 2, 12 + tile // 2])
        for move, illegal in ((Move.UP, True), (Move.DOWN, False), (Move.LEFT, True), (Move.RIGHT, right)):
            y, x = middle + np.array(STEPS[move]) * tile // 2
            assert (red[max(y - 12, 0) : y + 12, max(x - 12, 0) : x + 12].sum() > 20) == illegal


def test_the_text_shows_the_map_and_names_blocked_moves():
    page = forest(["P#.o", "....", "S.D.", "...."], render_mode="ansi").render()[0].splitlines()
    assert page[0] == "step 0/100, watermelons 0/1"
    assert page[1] == "legal: DOWN, STAY; blocked: UP, LEFT, RIGHT; ? not seen"
    assert page[3:5] == ["│● ♣ · o?│", "│· · · · │"] and page[5] == "│S · D · │"


@pytest.mark.parametrize(
    "kwargs, words",
    [
        ({"size": 3}, "size must be 4 to 16, got 3"),
        ({"size": 17}, "size must be 4 to 16, got 17"),
        ({"num_watermelons": 0}, "num_watermelons must be at least 1, got 0"),
        ({"num_scorpions": -1}, "num_scorpions must be at least 0, got -1"),
        ({"num_dragons": -2}, "num_dragons must be at least 0, got -2"),
        ({"num_trees": -1}, "num_trees must be at least 0, got -1"),
        ({"num_trees": 22}, "num_trees must be at most a third of the 64 cells, got 22"),
        ({"size": 4, "num_trees": 5}, "must fill at most half of the 16 cells, got 11"),
        ({"dragon_rest": 1.5}, r"dragon_rest must be in \[0, 1\], got 1.5"),
        ({"max_episode_steps": 0}, "max_episode_steps must be at least 1, got"),
    ],
)
def test_bad_arguments_are_refused(kwargs, words):
    with pytest.raises(ValueError, match=words):
        PandaForest(1, **kwargs)


def test_a_single_environment_reports_success_as_a_flag():
    env = SingleEnv(PandaForest(1, max_episode_steps=1))
    env.reset(seed=8)
    *_, truncated, info = env.step(Move.STAY)
    assert truncated and info["success"] == 0 and info["watermelons"] == 0 and not info["harmed"]
