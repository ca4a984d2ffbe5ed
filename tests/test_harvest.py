"""Harvest's own promises: masks that match the dynamics, no order among cells, agents that come and go."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from envs.base import BatchedEnv, SingleEnv
from envs.worlds.harvest import LOST, MANY, REWARD, RING, STEPS, VERBS, Action, Harvest, Kind

BUSY = {"num_workers": 8, "max_workers": 20, "workers_cost": 2, "num_resources": 14, "max_amount": 3, "num_hazards": 3}


def random_legal(infos, rng):
    """A random legal action in each cell with a worker, 0 elsewhere."""
    mask = infos["action_mask"]
    return (rng.random(mask.shape) * mask).argmax(axis=1)


def greedy(env, infos, rng):
    """Go to the nearest resource, gather, go home, return; at times at random, which ends quarrels (N, H, W)."""
    kinds = env.kinds[:, 1:-1, 1:-1]
    n, height, width = kinds.shape
    legal = infos["action_mask"].astype(float)
    open_cells = (kinds == Kind.FREE) | (kinds >= Kind.WORKER)

    def around(plane, fill):
        padded = np.full((n, height + 2, width + 2), fill, float)
        padded[:, 1:-1, 1:-1] = plane
        return [padded[:, 1 + y : 1 + y + height, 1 + x : 1 + x + width] for y, x in STEPS[1:5]]

    def distances(goals):
        steps = np.where(goals, 0.0, 99)
        for _ in range(height + width):
            steps = np.where(open_cells, np.minimum(steps, np.min(around(steps, 99), axis=0) + 1), steps)
        return np.stack(around(steps, 99), axis=1)

    home, source = distances(kinds == Kind.BASE), distances(kinds == Kind.RESOURCE)
    danger = np.stack(around(np.max(around(kinds == Kind.HAZARD, 0), axis=0), 0), axis=1)
    ahead = np.where((kinds == Kind.LOADED)[:, None], home, source) + 5 * danger
    score = rng.random(legal.shape) * 0.1
    score[:, 1:5] += 200 - ahead
    score[:, 5:] += 300
    score[:, 0] += 190 - np.max(around(kinds == Kind.HAZARD, 0), axis=0) * 20
    confused = rng.random((n, 1, height, width)) < 0.1
    return (np.where(confused, rng.random(legal.shape), score) * legal).argmax(axis=1)


def play(env, policy, steps, seed=0):
    """Step `env` and yield what every step began with and gave."""
    rng, (_, infos) = np.random.default_rng(seed), env.reset(seed=seed)
    for _ in range(steps):
        actions = policy(infos, rng)
        _, rewards, _, _, after = env.step(actions)
        yield infos, actions, rewards, after
        infos = after


def mixed(infos, rng):
    """Mostly legal, at times anything."""
    anything = rng.integers(len(Action), size=infos["agent_mask"].shape)
    return np.where(rng.random(anything.shape) < 0.2, anything, random_legal(infos, rng))


def fix(env, monkeypatch, draws):
    """The environment draws these numbers from now on."""
    monkeypatch.setattr(env, "_uniform", lambda rows, *shape: draws[rows])


class Slow:
    """One environment in plain Python, cell by cell, with the rules as they stand in the docstring."""

    def __init__(self, env, row):
        kinds = env.kinds[row, 1:-1, 1:-1]
        self.kinds = {(y, x): Kind(kinds[y, x]) for y, x in np.ndindex(kinds.shape)}
        self.amounts = {yx: int(env.amounts[row, yx[0] + 1, yx[1] + 1]) for yx in self.kinds}
        self.base = next(yx for yx, kind in self.kinds.items() if kind == Kind.BASE)
        inside = env.hazards[row] - row * env.num_cells
        self.hazards = [(int(i) // (env.width + 2) - 1, int(i) % (env.width + 2) - 1) for i in inside]
        self.stock = self.returned = self.gathered = self.lost = self.idle = self.spilled = 0
        self.env = env

    def look(self, yx, action):
        target = (yx[0] + STEPS[action][0], yx[1] + STEPS[action][1])
        return target, self.kinds.get(target, Kind.WALL)

    def workers(self):
        return [yx for yx, kind in self.kinds.items() if kind in (Kind.WORKER, Kind.LOADED)]

    def is_legal(self, yx, action):
        _, ahead = self.look(yx, action)
        empty = self.kinds[yx] == Kind.WORKER
        name = Action(action).name
        if name.startswith("MOVE"):
            return ahead in (Kind.FREE, Kind.HAZARD)
        if name.startswith("GATHER"):
            return empty and ahead == Kind.RESOURCE
        return name == "STAY" or (not empty and ahead == Kind.BASE)

    def step(self, actions, draws):
        spot, wander = draws[: len(RING)], draws[len(RING) :].reshape(-1, 4)
        plans = [(yx, Action(actions[yx]), *self.look(yx, actions[yx])) for yx in self.workers()]
        plans = [plan for plan in plans if self.is_legal(plan[0], plan[1])]
        goals = [(VERBS[action], target) for _, action, target, _ in plans]
        start, units = dict(self.kinds), 0
        amounts = dict(self.amounts)
        for yx, action, target, ahead in plans:
            rivals = goals.count((VERBS[action], target))
            if VERBS[action] == 1 and rivals == 1:
                self.kinds[yx] = Kind.FREE
                if ahead == Kind.HAZARD:
                    self.lost += 1
                    self.spilled += start[yx] == Kind.LOADED
                else:
                    self.kinds[target] = start[yx]
            elif VERBS[action] == 2 and rivals <= amounts[target]:
                self.kinds[yx] = Kind.LOADED
                self.amounts[target] -= 1
                self.gathered, units = self.gathered + 1, units + 1
                if self.amounts[target] == 0:
                    self.kinds[target] = Kind.FREE
            elif VERBS[action] == 3:
                self.kinds[yx] = Kind.WORKER
                self.stock, self.returned, units = self.stock + 1, self.returned + 1, units + 1
        targets = []
        for yx, luck in zip(self.hazards, wander, strict=True):
            options = [self.look(yx, move) for move in range(1, 5)]
            can = [i for i in range(4) if options[i][1] in (Kind.FREE, Kind.WORKER, Kind.LOADED)]
            targets.append(options[max(can, key=lambda i: luck[i])][0] if can else yx)
        targets = [yx if targets.count(to) > 1 else to for yx, to in zip(self.hazards, targets, strict=True)]
        for target in targets:
            self.lost += self.kinds[target] >= Kind.WORKER
            self.spilled += self.kinds[target] == Kind.LOADED
        for yx in self.hazards:
            self.kinds[yx] = Kind.FREE
        for yx in targets:
            self.kinds[yx] = Kind.HAZARD
        self.hazards = targets
        count = len(self.workers())
        self.idle = 0 if count else self.idle + 1
        pays = self.stock >= self.env.workers_cost and count < self.env.max_workers
        ring = [(self.base[0] + y, self.base[1] + x) for y, x in RING]
        can = [i for i in range(len(RING)) if self.kinds[ring[i]] == Kind.FREE]
        if (pays or self.idle > self.env.respawn) and can:
            self.kinds[ring[max(can, key=lambda i: spot[i])]] = Kind.WORKER
            self.stock -= self.env.workers_cost * pays
            self.idle = 0
        return units * REWARD


@pytest.mark.parametrize("kwargs", [{}, BUSY | {"width": 10}, {"num_hazards": 8, "respawn": 2, "num_workers": 1}])
def test_a_slow_version_of_the_rules_plays_the_same(kwargs, monkeypatch):
    env, rng = Harvest(4, max_episode_steps=1000, **kwargs), np.random.default_rng(0)
    _, infos = env.reset(seed=1)
    slow, spilled = [Slow(env, row) for row in range(4)], 0
    for _ in range(150):
        actions, draws = mixed(infos, rng), rng.random((4, len(RING) + 4 * env.num_hazards))
        fix(env, monkeypatch, draws)
        _, rewards, _, _, infos = env.step(actions)
        for row, one in enumerate(slow):
            assert one.step(actions[row], draws[row]) == rewards[row]
            kinds, amounts = np.zeros((2, env.height, env.width), int)
            for yx, kind in one.kinds.items():
                kinds[yx], amounts[yx] = kind, one.amounts[yx]
            np.testing.assert_array_equal(env.kinds[row, 1:-1, 1:-1], kinds)
            np.testing.assert_array_equal(env.amounts[row, 1:-1, 1:-1], amounts)
            for name in ("stock", "returned", "gathered", "lost", "idle"):
                assert getattr(env, name)[row] == getattr(one, name)
            agents = {tuple(yx) for yx in np.argwhere(infos["agent_mask"][row]).tolist()}
            assert agents == set(one.workers())
            for yx in one.kinds:
                legal = [int(yx in agents and one.is_legal(yx, action)) for action in Action]
                assert infos["action_mask"][row, :, *yx].tolist() == legal
            # Every unit is in a resource, carried, brought home, or lost with a worker.
            carried = (kinds == Kind.LOADED).sum()
            assert amounts.sum() + carried + one.returned + one.spilled == env.available[row]
        spilled = sum(one.spilled for one in slow)
    assert spilled > 0 and env.gathered.sum() > 0 and env.lost.sum() > 4 and env.returned.sum() > 0


def test_each_worker_alone_can_do_exactly_what_the_mask_says():
    """Each worker plays each action while the others stay: legal ones change what they should, illegal ones nothing."""
    env, checked = Harvest(6, num_workers=6, max_workers=12, workers_cost=500, num_hazards=0), np.zeros(2, int)
    rng, (_, infos) = np.random.default_rng(0), env.reset(seed=2)
    for _ in range(12):
        for _ in range(7):
            *_, infos = env.step(random_legal(infos, rng))
        state, mask, kinds = env.get_state(), infos["action_mask"], env.kinds[:, 1:-1, 1:-1].copy()
        for turn in range(6):
            where = [np.argwhere(agents)[turn] for agents in infos["agent_mask"]]
            for action in Action:
                env.set_state(state)
                actions = np.zeros(kinds.shape, int)
                for row, (y, x) in enumerate(where):
                    actions[row, y, x] = action
                _, rewards, *_ = env.step(actions)
                after = env.kinds[:, 1:-1, 1:-1]
                for row, (y, x) in enumerate(where):
                    legal, kind = mask[row, action, y, x], kinds[row, y, x]
                    checked[legal] += 1
                    expected = kinds[row].copy()
                    if legal and VERBS[action] == 1:
                        expected[y, x], expected[y + STEPS[action][0], x + STEPS[action][1]] = Kind.FREE, kind
                    elif legal and VERBS[action]:
                        expected[y, x] = Kind.WORKER + Kind.LOADED - kind
                    assert rewards[row] == REWARD * (legal and VERBS[action] > 1)
                    source = after[row] != expected
                    assert not (source & (kinds[row] != Kind.RESOURCE)).any() and source.sum() <= (VERBS[action] == 2)
        env.set_state(state)
    assert checked.min() > 1000


def test_a_worker_may_walk_into_a_hazard_and_is_lost():
    env = Harvest(1, num_workers=1, respawn=3)
    env.reset(seed=0)
    cell = env._workers(np.array([0]))[0][0]
    kinds = env.kinds.reshape(-1)
    way = next(way for way in range(1, 5) if kinds[cell + env._steps[way]] == Kind.FREE)
    kinds[env.hazards[0, 0]] = Kind.FREE
    env.hazards[0, 0] = cell + env._steps[way]
    kinds[env.hazards[0, 0]] = Kind.HAZARD
    infos = env._info(np.array([0]))
    assert infos["action_mask"][0, way][infos["agent_mask"][0] == 1] == 1
    _, rewards, _, _, infos = env.step(np.full((1, 8, 8), way))
    assert env.lost == 1 and rewards == 0 and infos["agent_mask"].sum() == infos["action_mask"].sum() == 0
    assert (env.last == LOST).sum() == 1


def test_zero_workers_are_survived_and_one_comes_back():
    env = Harvest(64, num_workers=1, num_hazards=12, respawn=4, max_episode_steps=60)
    empty, lengths = np.zeros(64, int), []
    for step, (infos, _, rewards, after) in enumerate(play(env, random_legal, 120), 1):
        none = infos["agent_mask"].sum((1, 2)) == 0
        assert (infos["action_mask"].sum((1, 2, 3)) == 0)[none].all() and (rewards[none] == 0).all()
        assert ("final_info" in after) == (step % 60 == 0)
        back = after["agent_mask"].sum((1, 2)) > 0
        empty += none
        if "final_info" not in after:
            lengths.extend(empty[none & back])
        empty[back] = 0
    assert len(lengths) > 20 and min(lengths) == 4
    assert np.mean(np.array(lengths) == 4) > 0.8  # longer only where the ring of the base is full of hazards


def test_the_base_makes_workers_for_what_it_is_brought_up_to_the_limit():
    env = Harvest(16, num_workers=1, max_workers=4, workers_cost=3, num_hazards=0, max_episode_steps=150)
    sizes = set()
    for _, _, _, infos in play(env, lambda infos, rng: greedy(env, infos, rng), 149):
        workers = infos["agent_mask"].sum((1, 2))
        born = workers - 1
        np.testing.assert_array_equal(env.stock, env.returned - 3 * born)
        assert ((env.stock < 3) | (workers == 4)).all() and workers.max() <= 4
        sizes |= set(workers.tolist())
    assert sizes == {1, 2, 3, 4}


def test_several_wanting_the_same():
    """The last unit, a cell, and the base, written out by hand."""
    env = Harvest(1, num_workers=1, num_resources=1, num_hazards=0, workers_cost=100)
    env.reset(seed=0)
    kinds, rows = env.kinds[0, 1:-1, 1:-1], np.array([0])

    def put(*things):
        kinds[:], env.amounts[:] = Kind.FREE, 0
        for y, x, kind in things:
            kinds[y, x] = kind
        return np.zeros((1, 8, 8), int)

    # Two want the last unit: none gets it. Of two units both get one, and the empty resource leaves a free cell.
    for left in (1, 2):
        actions = put((3, 3, Kind.RESOURCE), (3, 2, Kind.WORKER), (2, 3, Kind.WORKER))
        env.amounts[0, 4, 4] = left
        actions[0, 3, 2], actions[0, 2, 3] = Action.GATHER_RIGHT, Action.GATHER_DOWN
        assert env.step(actions)[1] == (0 if left == 1 else 2 * REWARD)
        assert kinds[3, 3] == (Kind.RESOURCE if left == 1 else Kind.FREE)
        assert kinds[3, 2] == kinds[2, 3] == (Kind.WORKER if left == 1 else Kind.LOADED)
    # Two want one cell, two want to change places, one follows another: only the one with a free cell ahead moves.
    actions = put((0, 0, Kind.WORKER), (0, 2, Kind.LOADED), *((y, x, Kind.WORKER) for y in (4, 6) for x in (1, 2)))
    actions[0, 0, [0, 2]] = Action.MOVE_RIGHT, Action.MOVE_LEFT
    actions[0, 4, [1, 2]] = Action.MOVE_RIGHT, Action.MOVE_LEFT
    actions[0, 6, [1, 2]] = Action.MOVE_RIGHT, Action.MOVE_RIGHT
    before = kinds.copy()
    env.step(actions)
    before[6, 2], before[6, 3] = Kind.FREE, Kind.WORKER
    np.testing.assert_array_equal(kinds, before)
    assert env._info(rows)["agent_mask"].sum() == 6
    # All around the base return at once.
    ways = {
        (3, 4): Action.RETURN_DOWN,
        (5, 4): Action.RETURN_UP,
        (4, 3): Action.RETURN_RIGHT,
        (4, 5): Action.RETURN_LEFT,
    }
    actions = put((4, 4, Kind.BASE), *((*yx, Kind.LOADED) for yx in ways))
    for yx, action in ways.items():
        actions[0, *yx] = action
    assert env.step(actions)[1] == 4 * REWARD and env.stock == 4 and (kinds == Kind.WORKER).sum() == 4


TURNS = {
    "flip": (lambda grid: grid[..., ::-1, :], lambda yx: (-yx[0], yx[1])),
    "mirror": (lambda grid: grid[..., ::-1], lambda yx: (yx[0], -yx[1])),
    "transpose": (lambda grid: grid.swapaxes(-1, -2), lambda yx: (yx[1], yx[0])),
}


@pytest.mark.parametrize("name", TURNS)
def test_a_turned_world_goes_on_as_the_turned_result(name, monkeypatch):
    """No order of cells or directions matters, also among hazards and where workers appear."""
    turn, turn_way = TURNS[name]
    index = {tuple(way): i for i, way in enumerate(STEPS[1:5].tolist())}
    ways = np.array([index[turn_way(way)] for way in STEPS[1:5].tolist()])  # the turned direction of each direction
    to = np.array([0, *(1 + 4 * verb + way for verb in range(3) for way in ways)])  # ... and of each action
    ring_index = {tuple(yx): i for i, yx in enumerate(RING.tolist())}
    ring = np.array([ring_index[turn_way(yx)] for yx in RING.tolist()])
    env, other, rng = Harvest(32, **BUSY), Harvest(32, **BUSY), np.random.default_rng(0)
    _, infos = env.reset(seed=3)
    other.reset(seed=4)
    cells = np.arange(env.num_cells).reshape(env.kinds.shape[1:])
    turned = np.empty(env.num_cells, int)
    turned[turn(cells).ravel()] = cells.ravel()  # where each cell comes to lie
    for _ in range(60):
        other.elapsed[:] = env.elapsed
        for array in ("kinds", "amounts"):
            getattr(other, array)[:] = turn(getattr(env, array))
        other.base[:] = turned[env.base - env._first] + env._first
        other.hazards[:] = turned[env.hazards - env._first[:, None]] + env._first[:, None]
        other.counts[:] = env.counts
        actions, draws = mixed(infos, rng), rng.random((32, len(RING) + 4 * env.num_hazards))
        wander = draws[:, len(RING) :].reshape(32, -1, 4)
        other_draws = np.concatenate([draws[:, ring], wander[:, :, ways].reshape(32, -1)], axis=1)
        fix(env, monkeypatch, draws)
        fix(other, monkeypatch, other_draws)
        obs, rewards, _, _, infos = env.step(actions)
        other_obs, other_rewards, _, _, other_infos = other.step(turn(to[actions]))
        np.testing.assert_array_equal(other_obs, turn(obs))
        np.testing.assert_array_equal(other_rewards, rewards)
        np.testing.assert_array_equal(other_infos["agent_mask"], turn(infos["agent_mask"]))
        np.testing.assert_array_equal(other_infos["action_mask"][:, to], turn(infos["action_mask"]))
        np.testing.assert_array_equal(other.kinds, turn(env.kinds))
        np.testing.assert_array_equal(other.counts, env.counts)
    assert env.lost.sum() > 32 and env.gathered.sum() > 32


def test_the_observation_is_what_its_table_says():
    env = Harvest(8, width=12, **BUSY | {"workers_cost": 4, "max_amount": 8}, max_episode_steps=40)
    for step, (_, _, _, infos) in enumerate(play(env, random_legal, 39), 1):
        obs = env._observe(np.arange(8))
        for row, (y, x) in ((row, yx) for row in range(8) for yx in np.ndindex(8, 12)):
            kind, amount = env.kinds[row, y + 1, x + 1], env.amounts[row, y + 1, x + 1]
            order = (Kind.FREE, Kind.RESOURCE, Kind.BASE, Kind.HAZARD, Kind.WORKER, Kind.LOADED)
            planes = [kind == which for which in order] + [amount >= MANY]
            planes += [step >= quarter * 10 for quarter in (1, 2, 3)] + [env.stock[row] >= units for units in (2, 4)]
            assert obs[row, :, y, x].tolist() == planes
            assert infos["agent_mask"][row, y, x] == (planes[4] or planes[5])
    assert env.single_observation_space.shape == obs.shape[1:] and obs.dtype == np.uint8


def test_starts_are_as_described():
    env = Harvest(300, height=9, width=14, num_workers=5, num_resources=7, max_amount=11, num_hazards=2)
    env.reset(seed=5)
    kinds, bases = env.kinds[:, 1:-1, 1:-1], []
    counts = [(kinds == kind).sum((1, 2)) for kind in Kind]
    for kind, number in zip(Kind, (0, 126 - 15, 7, 1, 2, 5, 0), strict=True):
        assert (counts[kind] == number).all()
    for row in range(300):
        (base,) = np.argwhere(kinds[row] == Kind.BASE)
        away = [abs(np.argwhere(kinds[row] == kind) - base).max(axis=1) for kind in (2, 4, 5)]
        assert (away[2] == 1).all() and away[0].min() > 1 and away[1].min() > 1
        bases.append(base)
    np.testing.assert_array_equal([np.min(bases, axis=0), np.max(bases, axis=0)], [[2, 2], [6, 11]])
    amounts = env.amounts[env.amounts > 0]
    np.testing.assert_array_equal(np.unique(amounts), np.arange(6, 12))
    assert ((env.amounts[:, 1:-1, 1:-1] > 0) == (kinds == Kind.RESOURCE)).all()
    np.testing.assert_array_equal(env.available, env.amounts.sum((1, 2)))


def test_a_batch_is_the_same_as_single_environments(monkeypatch):
    """Every row has a generator of its own here, so that the batch and the single ones draw the same numbers."""
    streams = {}

    def uniform(self, rows, *shape):
        return np.stack([streams[self][row].random(shape) for row in rows])

    monkeypatch.setattr(BatchedEnv, "_uniform", uniform)
    batch, rng = Harvest(4, max_episode_steps=30, **BUSY), np.random.default_rng(0)
    singles = [SingleEnv(Harvest(1, max_episode_steps=30, **BUSY)) for _ in range(4)]
    streams[batch] = [np.random.default_rng(100 + row) for row in range(4)]
    for row, single in enumerate(singles):
        streams[single.batch] = [np.random.default_rng(100 + row)]
    obs, infos = batch.reset()
    outs = [single.reset() for single in singles]
    batch.elapsed[:] = [0, 7, 14, 21]  # ends at different times, so that some rows reset and others do not
    for single, elapsed in zip(singles, [0, 7, 14, 21], strict=True):
        single.batch.elapsed[:] = elapsed
    ends = 0
    for step in range(70):
        for row, (single_obs, single_info) in enumerate(outs):
            if step:
                np.testing.assert_array_equal(single_obs, obs[row])
            for key in ("action_mask", "agent_mask"):
                np.testing.assert_array_equal(single_info[key], infos[key][row])
        actions = mixed(infos, rng)
        obs, rewards, _, truncations, infos = batch.step(actions)
        outs = []
        for row, single in enumerate(singles):
            single_obs, reward, terminated, truncated, info = single.step(actions[row])
            assert (reward, terminated, truncated) == (rewards[row], False, truncations[row])
            if truncated:
                ends += 1
                np.testing.assert_array_equal(single_obs, infos["final_obs"][row])
                counts = ("returned", "gathered", "workers", "workers_lost", "available")
                for key in ("action_mask", "agent_mask", *counts):
                    np.testing.assert_array_equal(info[key], infos["final_info"][key][row])
                single_obs, info = single.reset()
            outs.append((single_obs, info))
    assert ends >= 8


def test_saved_state_continues_exactly():
    env, other = Harvest(6, max_episode_steps=40, **BUSY), Harvest(6, max_episode_steps=40, **BUSY)
    *_, (_, _, _, infos) = play(env, mixed, 25)
    other.reset(seed=99)
    other.set_state(env.get_state())
    rng = np.random.default_rng(1)
    for _ in range(50):
        actions = mixed(infos, rng)
        obs, rewards, *_, infos = env.step(actions)
        other_obs, other_rewards, *_ = other.step(actions)
        np.testing.assert_array_equal(obs, other_obs)
        np.testing.assert_array_equal(rewards, other_rewards)
        np.testing.assert_array_equal(env.last, other.last)


def test_greedy_play_clearly_beats_random_legal_play_and_no_play_beats_what_is_available():
    returns = {}
    for name in ("greedy", "random"):
        env = Harvest(64)
        policy = random_legal if name == "random" else lambda infos, rng, env=env: greedy(env, infos, rng)
        returns[name] = np.zeros(64)
        for step in play(env, policy, 100):
            returns[name] += step[2]
        final = step[3]["final_info"]
        np.testing.assert_array_equal(returns[name], (final["gathered"] + final["returned"]) * REWARD)
        assert (returns[name] <= final["available"]).all()
    assert returns["random"].mean() < 5 < 25 < returns["greedy"].mean()


def test_gymnasiums_checker_passes():
    check_env(gym.make("Masked/Harvest-v0", render_mode="rgb_array").unwrapped)


def test_pictures_and_texts_show_what_became_of_actions():
    env = Harvest(2, num_workers=1, num_hazards=0, render_mode="rgb_array")
    _, infos = env.reset(seed=6)
    quiet = env.render()
    assert quiet[0].dtype == np.uint8 and quiet[0].shape[2] == 3 and (quiet[0] != quiet[1]).any()

    def red(frame):
        frame = frame[36:-36].astype(int)
        return ((frame[..., 0] - frame[..., 1] > 100) & (frame[..., 2] < 110)).sum()

    assert red(quiet[0]) == 0
    env.step(np.full((2, 8, 8), Action.RETURN_UP))  # empty hands
    assert all(red(frame) > 50 for frame in env.render())
    env.render_mode = "ansi"
    for page, agents in zip(env.render(), infos["agent_mask"], strict=True):
        (y, x), lines = np.argwhere(agents)[0], page.splitlines()
        assert lines[-1] == f"({y}, {x}) RETURN_UP: illegal" and lines[2 + y][1 + 2 * x] == "○"
        assert {len(line) for line in lines[1:11]} == {18} and page.count("⌂") == 2  # one of them in the legend
    env.step(np.zeros((2, 8, 8), int))
    assert all("STAY: done" in page for page in env.render())


@pytest.mark.parametrize(
    "kwargs, words",
    [
        ({"height": 7}, "height must be 8 to 32, got 7"),
        ({"width": 33}, "width must be 8 to 32, got 33"),
        ({"num_workers": 9}, "num_workers must be 1 to 8, got 9"),
        ({"num_workers": 3, "max_workers": 2}, "max_workers must be 3 to 64, got 2"),
        ({"workers_cost": 0}, "workers_cost must be 1 to 10000, got 0"),
        ({"num_resources": 0}, "num_resources must be 1 to 32, got 0"),
        ({"max_amount": 0}, "max_amount must be 1 to 10000, got 0"),
        ({"num_resources": 20, "num_hazards": 13}, "num_hazards must be 0 to 12, got 13"),
        ({"respawn": -1}, "respawn must be 0 to 10000, got -1"),
        ({"max_episode_steps": 0}, "max_episode_steps must be at least 1"),
        ({"render_mode": "human"}, "render_mode must be one of .*'human'"),
    ],
)
def test_bad_arguments_are_refused(kwargs, words):
    with pytest.raises(ValueError, match=words):
        Harvest(1, **kwargs)
