"""make_vec: foreign environments, mask conventions, SAME_STEP, statistics, and what bad environments get."""

import tracemalloc

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

from envs.make import make_vec, parse_env_kwargs
from envs.masks import check_action_mask, check_grid_masks, check_uses, grid_nvec
from envs.observations import entities_shape, flat_size, flatten_observations


class Counter(gym.Env):
    """Counts to `length`. Its mask forbids `count % 3`; `convention` says how it is given, `fault` what breaks."""

    observation_space = spaces.Box(0, 100, (1,))
    action_space = spaces.Discrete(3, start=5)

    def __init__(self, convention="info", length=4, fault=None, truncate=False, start=0):
        self.convention, self.length, self.fault, self.truncate = convention, length, fault, truncate
        if convention == "dict":
            self.observation_space = spaces.Dict({"x": Counter.observation_space, "action_mask": spaces.MultiBinary(3)})
        if convention == "method":
            self.action_masks = self.mask
        if convention == "list":
            self.get_available_actions = lambda: (5 + np.flatnonzero(self.mask())).tolist()

    def mask(self):
        mask = np.arange(3) != self.count % 3
        if self.count == 2 and self.fault == "mask":
            return np.zeros(3, bool)
        if self.count == 2 and self.fault == "half":
            return np.array([0.5, 1, 1])
        return mask[:2] if self.fault == "shape" else mask

    def seen(self):
        x = np.array([np.nan if self.fault == "obs" and self.count == 2 else self.count], np.float32)
        info = {}
        if self.convention == "info" and not (self.fault == "missing" and self.count == 2):
            info["action_mask"] = self.mask().astype(float if self.fault == "half" else np.int8)
        return ({"x": x, "action_mask": self.mask().astype(np.int8)} if self.convention == "dict" else x), info

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return self.seen()

    def step(self, action):
        assert 5 <= action <= 7, action
        self.count += 1
        obs, info = self.seen()
        ended = self.count == self.length
        reward = np.nan if self.fault == "reward" and self.count == 2 else 1.0
        return obs, reward, ended and not self.truncate, ended and self.truncate, info


gym.register("Test/Counter-v0", Counter, disable_env_checker=True)


class NextStep(VectorEnv):
    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
    num_envs, single_action_space, single_observation_space = 1, spaces.Discrete(2), spaces.Box(0, 1, (1,))

    def __init__(self, num_envs=1):
        pass


gym.register("Test/NextStep-v0", vector_entry_point=NextStep)


@pytest.mark.parametrize("convention", ["info", "method", "list", "dict"])
@pytest.mark.parametrize("async_envs", [False, True])
def test_all_conventions_become_one(convention, async_envs):
    envs = make_vec("Test/Counter-v0", 2, {"convention": convention}, async_envs=async_envs)
    obs, infos = envs.reset(seed=0)
    assert obs.tolist() == [[0], [0]] and obs.dtype == np.float32
    assert infos["action_mask"].tolist() == [[0, 1, 1]] * 2 and infos["action_mask"].dtype == np.int8
    for count in range(1, 4):
        obs, _, terminations, _, infos = envs.step(np.array([1, 2]))
        assert infos["action_mask"].tolist() == [[int(a != count % 3) for a in range(3)]] * 2
        assert not terminations.any() and "final_obs" not in infos and "episode" not in infos
    obs, rewards, terminations, truncations, infos = envs.step(np.array([0, 0]))
    # SAME_STEP: observation and mask are the new episode's, final_obs and final_info the finished one's.
    assert obs.tolist() == [[0], [0]] and infos["action_mask"].tolist() == [[0, 1, 1]] * 2
    assert terminations.all() and infos["final_obs"].tolist() == [[4], [4]]
    # Nobody acts in a terminal state, so nobody is asked for its mask.
    assert infos["final_info"]["action_mask"].tolist() == [[0, 0, 0]] * 2
    assert infos["episode"]["r"].tolist() == [4, 4] and infos["episode"]["l"].tolist() == [4, 4]
    envs.close()


def test_statistics_and_final_rows_when_only_one_episode_ends():
    envs = make_vec("Test/Counter-v0", 2, {"truncate": True})
    envs.reset(seed=0)
    envs.env.envs[1].unwrapped.length = 3
    for _ in range(3):
        obs, _, _, truncations, infos = envs.step(np.array([1, 1]))
    assert truncations.tolist() == [False, True] and infos["_episode"].tolist() == [False, True]
    assert infos["final_obs"][1].tolist() == [3] and obs.tolist() == [[3], [0]]
    assert infos["final_info"]["action_mask"][1].tolist() == [0, 1, 1]  # of the truncated state
    assert infos["episode"]["r"][1] == 3
    *_, infos = envs.step(np.array([1, 1]))
    assert infos["_episode"].tolist() == [True, False] and infos["episode"]["l"][0] == 4


@pytest.mark.parametrize("fault, words", [
    ("mask", "no legal action in field 0"),
    ("half", "holds 0.5 at entry 0.*0 .illegal. and 1"),
    ("shape", r"shape \(2,\).*expected shape \(3,\)"),
    ("missing", 'Environment 0: no action mask.*action_masks.*--mask-mode none'),
    ("obs", "Environment 0: the observation holds nan"),
    ("reward", "Environment 0: the reward is nan"),
])  # fmt: skip
def test_broken_environments_are_named(fault, words):
    envs = make_vec("Test/Counter-v0", 2, {"fault": fault})
    with pytest.raises(ValueError, match=words):
        envs.reset(seed=0)
        for _ in range(3):
            envs.step(np.array([1, 1]))


gym.register("Test/Lacking-v0", "no_such_module:Env")  # as where a package of the environment is not installed


def test_an_env_without_a_mask_is_refused_unless_masks_are_off():
    with pytest.raises(ValueError, match="no action mask was given"):
        make_vec("CartPole-v1", 2).reset(seed=0)
    envs = make_vec("CartPole-v1", 2, require_mask=False)
    obs, infos = envs.reset(seed=0)
    assert infos["action_mask"].tolist() == [[1, 1], [1, 1]] and obs.shape == (2, 4)
    for _ in range(60):
        *_, infos = envs.step(np.array([0, 0]))
        if "final_obs" in infos:
            row = np.flatnonzero(infos["_final_obs"])[0]
            assert np.abs(infos["final_obs"][row]).max() > 0.05
            return
    raise AssertionError("CartPole pushed to one side always falls")


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("Masked/Nothing-v0", 1), "--env-id Masked/Nothing-v0"),
        (("no_such_module:Env-v0", 1), "--env-id no_such_module:Env-v0"),
        (("Test/Lacking-v0", 1), "--env-id Test/Lacking-v0: No module named 'no_such_module'"),
        (("Test/NextStep-v0", 1), "NEXT_STEP.*SAME_STEP"),
        (("Pendulum-v1", 1), "Box.*not supported; expected Discrete .*MultiDiscrete or MultiBinary"),
        (("Masked/Maze-v0", 1, {"walls": 3}), "cannot be made with --env-kwargs.*walls"),
        (("Masked/Maze-v0", 2, {}, True), "--async-envs: Masked/Maze-v0 is batched"),
    ],
)
def test_what_cannot_be_made_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        make_vec(*arguments)


@pytest.mark.parametrize(
    "mask, words",
    [
        ([[1, 1, 1], [1, 1, 1]], r"shape \(3,\).*expected shape \(5,\).*2 \+ 3"),
        ([[1, 1, 1, 1, -1]], "holds -1 at entry 4"),
        ([[1, 1, np.nan, 1, 1]], "holds nan at entry 2"),
        ([[1, 0, 1, 0, 0], [0, 1, 0, 0, 0]], "Environment 11: .* field 1 .its 3 entries"),
        ([["yes"] * 5], "dtype"),
    ],
)
def test_bad_masks_name_environment_and_entry(mask, words):
    with pytest.raises(ValueError, match=words):
        check_action_mask(mask, np.array([2, 3]), first_env=10)


def test_many_fields_and_bool_masks_pass():
    mask = np.ones((3, 678), bool)
    assert check_action_mask(mask, np.full(339, 2)).dtype == np.int8
    assert check_action_mask(np.zeros((1, 4)), np.array([4]), ended=np.array([True])).sum() == 0


def test_flattening_matches_gymnasium():
    space = spaces.Dict(
        {
            "a": spaces.Discrete(4, start=2),
            "b": spaces.Tuple((spaces.MultiDiscrete([3, 2]), spaces.MultiBinary(3))),
            "c": spaces.Box(-1, 1, (2, 2)),
        }
    )
    space.seed(0)
    samples = [space.sample() for _ in range(5)]
    batch = gym.vector.utils.concatenate(space, samples, gym.vector.utils.create_empty_array(space, 5))
    flat = flatten_observations(space, batch, 5)
    assert flat.shape == (5, flat_size(space)) and flat.dtype == np.float32
    np.testing.assert_array_equal(flat, [gym.spaces.flatten(space, sample) for sample in samples])


def test_one_hot_needs_memory_for_its_rows_only():
    """Not for a table of n x n, which is 1.5 GiB here."""
    space = spaces.Dict(cell=spaces.Discrete(20_000), pair=spaces.MultiDiscrete([20_000, 3]))
    obs = {"cell": np.array([0, 19_999]), "pair": np.array([[7, 0], [19_999, 2]])}
    tracemalloc.start()
    flat = flatten_observations(space, obs, 2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert flat.nbytes == 2 * 40_003 * 4 and peak < 2.5 * flat.nbytes  # the parts, and both in one
    assert np.argwhere(flat).tolist() == [[0, 0], [0, 20_007], [0, 40_000], [1, 19_999], [1, 39_999], [1, 40_002]]


@pytest.mark.parametrize("dtype", [np.int64, np.int8, np.uint8, np.float32, bool])
def test_choices_of_any_dtype_are_one_hot(dtype):
    assert flatten_observations(spaces.Discrete(2), np.array([1, 0], dtype), 2).tolist() == [[0, 1], [1, 0]]
    pairs = np.array([[1, 1], [1, 0]], dtype)
    flat = [[0, 1, 0, 0, 1], [0, 1, 0, 1, 0]]
    assert flatten_observations(spaces.MultiDiscrete([2, 3], start=[0, -1]), pairs, 2).tolist() == flat
    assert flatten_observations(spaces.MultiDiscrete([2, 3], np.uint8), pairs, 2)[:, :2].tolist() == [[0, 1], [0, 1]]


@pytest.mark.parametrize("space, obs, words", [
    (spaces.Discrete(5), [4, 5], r"Environment 1: .* holds 5 at entry 0, outside of its space Discrete\(5\)"),
    (spaces.Discrete(5), [-1, 0], "Environment 0: the observation holds -1 "),
    (spaces.Discrete(3, start=5), [7, 4], r"Environment 1: .* 4 at entry 0, .*Discrete\(3, start=5\)"),
    (spaces.Discrete(100, start=100, dtype=np.int8), np.array([100, -128], np.int8), "Environment 1: .* holds -128 "),
    (spaces.Discrete(5), [0.0, 1.5], "Environment 1: the observation holds 1.5 "),
    (spaces.Discrete(5), [np.nan, 0], "Environment 0: the observation holds nan"),
    (spaces.Discrete(5), [0, np.inf], "Environment 1: the observation holds inf"),
    (spaces.MultiDiscrete([[2, 3]]), [[[1, 2]], [[2, 2]]], "Environment 1: .* 2 at entry 0, outside of"),
    (spaces.MultiDiscrete([2, 3], start=[0, 4]), [[1, 4], [1, 7]], "Environment 1: .* 7 at entry 1, outside of"),
    (spaces.MultiBinary(3), [[0, 1, 0], [0, 1, 2]], r"Environment 1: .* 2.0 at entry 2, .*MultiBinary\(3\)"),
    (spaces.MultiBinary(3), [[0, 0.5, 0], [0, 1, 1]], "Environment 0: .* 0.5 at entry 1"),
    (spaces.Dict(a=spaces.Tuple([spaces.Discrete(5)])), {"a": [[0, 9]]}, "Environment 1: .* holds 9"),
])  # fmt: skip
def test_observations_outside_of_their_space_name_the_environment(space, obs, words):
    with pytest.raises(ValueError, match=words):
        flatten_observations(space, obs, 2)


def test_taxi_is_one_hot_with_its_own_mask():
    envs = make_vec("Taxi-v4", 3)
    obs, infos = envs.reset(seed=0)
    assert obs.shape == (3, 500) and (obs.sum(1) == 1).all()
    assert infos["action_mask"].shape == (3, 6) and not infos["action_mask"].all()


def test_spaces_without_a_flat_form_are_refused():
    with pytest.raises(ValueError, match="no fixed flat form"):
        flat_size(spaces.Sequence(spaces.Discrete(2)))


def test_env_kwargs_come_in_pairs():
    assert parse_env_kwargs(["a", "1.5", "b", "text", "c", "[1, 2]"]) == {"a": 1.5, "b": "text", "c": [1, 2]}
    assert parse_env_kwargs(["a", "true", "b", "false", "c", "True"]) == {"a": True, "b": False, "c": True}
    given = parse_env_kwargs(["a", '{"b": true, "c": null}', "d", "{open", "e", "null"])
    assert given == {"a": {"b": True, "c": None}, "d": "{open", "e": "null"}
    assert parse_env_kwargs(("a", [1, 2], "b", {"c": 1})) == {"a": [1, 2], "b": {"c": 1}}
    with pytest.raises(ValueError, match="pairs KEY VALUE, got 3"):
        parse_env_kwargs(["a", "1", "b"])


def grid(**given):
    masks = {"action_mask": np.ones((2, 3, 2, 2), np.int8), "agent_mask": np.array([[[1, 0], [0, 0]]] * 2, np.int8)}
    return check_grid_masks(**(masks | given), nvec=np.array([3]))


def test_grid_masks_become_one_with_the_agents_in_front():
    both = grid()
    assert both.shape == (2, 4, 2, 2) and both.dtype == np.int8
    np.testing.assert_array_equal(both[:, 0], [[[1, 0], [0, 0]]] * 2)
    assert (
        grid(action_mask=np.zeros((2, 3, 2, 2)), agent_mask=np.zeros((2, 2, 2))).sum() == 0
    )  # nobody: nothing to check


@pytest.mark.parametrize(
    "given, words",
    [
        ({"action_mask": np.ones((2, 4, 2, 2))}, r"the action mask \(4, 2, 2\); expected \(H, W\) and \(3, H, W\)"),
        ({"agent_mask": np.full((2, 2, 2), 0.5)}, r"Environment 0: the agent mask holds 0.5 at \[0, 0\]"),
        ({"action_mask": np.full((2, 3, 2, 2), 2, np.int8)}, r"the action mask holds 2 at \[0, 0, 0\]"),
        ({"action_mask": np.zeros((2, 3, 2, 2))}, r"leaves the agent in cell \(0, 0\) no legal action in field 0"),
    ],
)
def test_bad_grid_masks_name_environment_and_cell(given, words):
    with pytest.raises(ValueError, match=words):
        grid(**given)


def test_illegal_actions_on_a_grid_are_counted_per_agent_and_nobody_does_nothing_illegal():
    envs = make_vec("Masked/Harvest-v0", 3, layout="grid")
    envs.reset(seed=0)
    masks = np.ones((3, 14, 8, 8), np.int8)
    masks[0, 0] = 0  # no agents
    masks[1, 0] = masks[2, 0] = np.eye(8)
    masks[2, 1, :4] = 0  # staying is illegal for half of them
    np.testing.assert_array_equal(envs.illegal(np.zeros((3, 8, 8), int), masks), [0, 0, 0.5])
    assert (envs.illegal(np.zeros((1, 8, 8), int), masks[:1]) == 0).all()


class Cars(gym.Env):
    """A matrix of vehicles with a presence column, as highway-env's Kinematics; absent rows hold NaN."""

    observation_space = spaces.Box(-np.inf, np.inf, (3, 2), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.array([[1, 0.5], [0, np.nan], [1, -0.5]], np.float32), {}

    def step(self, action):
        return *self.reset()[:1], 0.0, False, False, {}

    def get_available_actions(self):
        return [1]


gym.register("Test/Cars-v0", Cars, disable_env_checker=True)


def test_entities_have_their_presence_in_front_and_may_hold_anything_where_absent():
    envs = make_vec("Test/Cars-v0", 2, layout="entities", presence_column=0)
    obs, infos = envs.reset()
    np.testing.assert_array_equal(obs[1], [[1, 1, 0.5], [0, 0, np.nan], [1, 1, -0.5]])
    np.testing.assert_array_equal(infos["action_mask"], [[0, 1], [0, 1]])
    forest = make_vec("Masked/PandaForest-v0", 2, layout="entities")
    raw = make_vec("Masked/PandaForest-v0", 2, layout="raw")
    seen, whole = forest.reset(seed=3)[0], raw.reset(seed=3)[0]
    np.testing.assert_array_equal(seen[..., 0], whole["entity_mask"])
    np.testing.assert_array_equal(seen[..., 1:], whole["entities"])


@pytest.mark.parametrize("space, column, words", [
    (spaces.Box(0, 1, (5, 7)), None, "Name the column .* --presence-column 0"),
    (spaces.Box(0, 1, (5, 7)), 7, "--presence-column 7: the observation has columns 0 to 6"),
    (spaces.Box(0, 1, (5,)), 0, "has no entities; expected a Dict with entities"),
    (spaces.Dict(entities=spaces.Box(0, 1, (5, 7)), entity_mask=spaces.MultiBinary(4)), None, "has no entities"),
])  # fmt: skip
def test_observations_without_entities_are_refused(space, column, words):
    with pytest.raises(ValueError, match=words):
        entities_shape(space, column)


@pytest.mark.parametrize("shape, nvec, words", [
    ((4,), np.full((2, 2), 3), "is no map; expected a Box"),
    ((1, 2, 2), np.full((2, 3), 3), "is not one action for each cell"),
    ((1, 2, 2), np.array([[3, 3], [3, 4]]), "with the same choices in each cell"),
])  # fmt: skip
def test_what_is_no_grid_is_refused(shape, nvec, words):
    with pytest.raises(ValueError, match=words):
        grid_nvec(spaces.Box(0, 1, shape), spaces.MultiDiscrete(nvec))


@pytest.mark.parametrize("uses", [[[1, 1]], [[1, 2], [1, 0]], [[1, 0], [0, 1]], [[0.5, 1], [1, 1]]])
def test_a_declaration_of_which_fields_count_that_cannot_be_meant_is_refused(uses):
    with pytest.raises(
        ValueError, match=r"attribute `uses` has shape .*; expected \(2, 2\), for each choice in field 0"
    ):
        check_uses(uses, np.array([2, 3]))
