"""Mask constraints and their wrappers, as a user would declare them."""

from enum import IntEnum
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from hypothesis import given
from hypothesis import strategies as st

from envs.constraints import In, Mask, MaskFunction, VectorMaskFunction, legal_actions
from envs.worlds.job_routing import JobRouting, machines, only_machines_that_are_up


class Tool(IntEnum):  # neither from 0, nor contiguous, nor sorted
    SAW = 7
    AXE = -3
    PICK = 40


class Hand(IntEnum):
    LEFT = 1
    RIGHT = 2


FIELDS = {"tool": Tool, "hand": Hand}


@given(st.lists(st.lists(st.integers(-5, 45), min_size=3, max_size=3), min_size=1, max_size=6))
def test_in_keeps_exactly_the_named_values_for_each_environment(rows):
    rows = [[*row, 40] for row in rows]  # never empty
    mask = legal_actions({"tool": In(rows)}, FIELDS, num_envs=len(rows))
    expected = [[int(member in row) for member in Tool] + [1, 1] for row in rows]
    assert mask.tolist() == expected and mask.dtype == np.int8


def test_fields_are_independent_and_unnamed_ones_are_free():
    assert legal_actions({"hand": Mask([0, 1])}, FIELDS).tolist() == [[1, 1, 1, 0, 1]]
    both = legal_actions({"hand": Mask([0, 1]), "tool": In([7])}, FIELDS)
    assert both.tolist() == [[1, 0, 0, 0, 1]]
    assert legal_actions({}, FIELDS, num_envs=2).all()


def test_batched_and_broadcast_constraints():
    mask = legal_actions({"tool": Mask([[1, 0, 0], [0, 1, 1]]), "hand": In([2])}, FIELDS, num_envs=2)
    assert mask.tolist() == [[1, 0, 0, 0, 1], [0, 1, 1, 0, 1]]


ROW = st.lists(st.integers(-5, 45) | st.integers(-5, 45).map(float), max_size=5).map(lambda row: [*row, 40])
KINDS = [list, tuple, set, frozenset, dict.fromkeys, lambda row: dict.fromkeys(row).keys(), np.array,
         lambda row: np.array(row, np.float32), lambda row: np.array(row, object), torch.tensor]  # fmt: skip


@given(st.lists(st.tuples(ROW, st.sampled_from(KINDS)), min_size=1, max_size=6), st.sampled_from([list, tuple]))
def test_in_takes_any_collections_of_any_length(rows, outer):
    values = outer(kind(row) for row, kind in rows)
    expected = [[int(member in row) for member in Tool] + [1, 1] for row, _ in rows]
    assert legal_actions({"tool": In(values)}, FIELDS, num_envs=len(rows)).tolist() == expected
    shared = legal_actions({"tool": In(values[0])}, FIELDS, num_envs=3)
    assert shared.tolist() == [expected[0]] * 3


@pytest.mark.parametrize("values, first, second", [
    (range(6, 41), [1, 0, 1], [1, 0, 1]),
    (Tool, [1, 1, 1], [1, 1, 1]),
    ([Tool.AXE, 40.0], [0, 1, 1], [0, 1, 1]),
    (np.array([[7.0, -1.0], [-3.0, 40.0]], np.float32), [1, 0, 0], [0, 1, 1]),
    (np.array([7, 200], np.uint8), [1, 0, 0], [1, 0, 0]),
    ([[7, 2**70], [1e300, 40]], [1, 0, 0], [0, 0, 1]),  # huge ones are no tools
    (np.array([{7, -3}, {40}], object), [1, 1, 0], [0, 0, 1]),
    ([[Tool.SAW], range(-3, 41)], [1, 0, 0], [1, 1, 1]),
])  # fmt: skip
def test_what_in_takes(values, first, second):
    assert legal_actions({"tool": In(values)}, FIELDS, num_envs=2)[:, :3].tolist() == [first, second]


@pytest.mark.parametrize("constraint, row", [
    (In([]), 0),
    (In(()), 0),
    (In(set()), 0),
    (In(range(0)), 0),
    (In(np.array([])), 0),
    (In(np.zeros((2, 0), int)), 0),
    (In([[], []]), 0),
    (In([[7], []]), 1),
    (In([{7}, set()]), 1),
    (In([np.array([7]), np.array([], int)]), 1),
    (In([-1, 8]), 0),
    (In([[7, -1], [-1, -1]]), 1),
    (In(np.array([[7.0], [-1.0]])), 1),
    (Mask([]), 0),
    (Mask(np.zeros((2, 0))), 0),
])  # fmt: skip
def test_a_constraint_that_names_nothing_fails_closed(constraint, row):
    words = f"Environment {row}: the constraint {type(constraint).__name__} on field 'tool' leaves no legal value"
    with pytest.raises(ValueError, match=words + ".*leave the field out"):
        legal_actions({"tool": constraint}, FIELDS, num_envs=2)
    ended = np.array([True, True])
    assert legal_actions({"tool": constraint}, FIELDS, 2, ended)[row].tolist() == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("values, words", [
    ([1.5], "'tool': In.. takes a collection of whole numbers.* got 1.5"),
    ([7, np.nan], "'tool'.*whole numbers.* got nan"),
    (np.array([7, np.inf]), "'tool'.*whole numbers.* got inf"),
    (["a"], "'tool'.*whole numbers.* got 'a'"),
    ("a", "'tool'.*whole numbers.* got 'a'"),
    ([None], "'tool'.*whole numbers.* got None"),
    ([True, False], "'tool'.*whole numbers.* got True. Flags, .*Mask"),
    ([7, True], "'tool'.* got True. Flags, .*Mask"),
    (np.array([True, False]), "'tool'.* got True. Flags, .*Mask"),
    (7, "'tool'.*a collection of whole numbers.* got 7"),
    ((value for value in [7]), "'tool'.*a collection of whole numbers.* got <generator"),
    ([[7], [1.5]], "Environment 1, field 'tool'.* got 1.5"),
    ([[7], 40], "Environment 1, field 'tool'.*a collection .* got 40"),
    (np.array([[7.0], [np.nan]]), "Environment 1, field 'tool'.* got nan"),
    ([[True, True], [True, True]], "Environment 0, field 'tool'.* got True. Flags, .*Mask"),
    ([[7], [7], [7]], r"'tool'.*\(K,\) or \(2, K\), got \(3, 1\)"),
    (np.array([[[7]], [[7]]]), r"'tool'.*\(K,\) or \(2, K\), got \(2, 1, 1\)"),
    (np.int64(7), r"'tool'.*\(K,\) or \(2, K\), got \(\)"),
    ({7: True, 40: False}, "'tool': In.. takes the legal values alone, got {7: True"),
    (np.ma.masked_array([7, 40], [0, 1]), "'tool': In.. takes the legal values alone, got masked_array"),
])  # fmt: skip
def test_what_in_refuses(values, words):
    with pytest.raises(ValueError, match=words):
        legal_actions({"tool": In(values)}, FIELDS, num_envs=2)


@pytest.mark.parametrize(
    "constraints, error, words",
    [
        ({"tool": In([[7], [-1]])}, ValueError, "Environment 1.*'tool'.*no legal value.*SAW=7"),
        ({"hand": Mask([[1, 0], [0, 0]])}, ValueError, "Environment 1.*Mask.*'hand'"),
        ({"hand": Mask([1, 0, 1])}, ValueError, r"'hand'.*2 members.*got \(3,\)"),
        ({"hand": Mask([[1, 0]] * 3)}, ValueError, r"\(2, 2\), got \(3, 2\)"),
        ({"hand": Mask([0.5, 1])}, ValueError, "True or False"),
        ({"hand": Mask([np.nan, 1])}, ValueError, "True or False"),
        ({"foot": In([1])}, ValueError, r"unknown fields \['foot'\].*\['tool', 'hand'\]"),
        ({"hand": Mask([1, 0], counts=[True, True, True])}, ValueError, r"'hand': counts takes .*\(2,\) of them"),
        ({"hand": In([3], counts=[1, 2])}, ValueError, r"'hand': counts takes a bool.*got \[1, 2\]"),
        ({"hand": [1]}, TypeError, "expected In or Mask, got list"),
        ({"hand": None}, TypeError, "'hand'.*expected In or Mask, got NoneType. Leave a free field out"),
        ([In([1])], TypeError, "dict of field names"),
    ],
)
def test_wrong_constraints_say_what_is_wrong(constraints, error, words):
    with pytest.raises(error, match=words):
        legal_actions(constraints, FIELDS, num_envs=2)


def test_terminal_states_may_have_no_legal_action():
    mask = legal_actions({"tool": In([[7], [-1]])}, FIELDS, num_envs=2, terminated=np.array([False, True]))
    assert mask[1, :3].tolist() == [0, 0, 0]


class Workbench(gym.Env):
    """A foreign environment; it notes what action it was given."""

    observation_space = spaces.Dict({"wood": spaces.Box(0, 1, (2,)), "broken": spaces.MultiBinary(3)})

    def __init__(self, action_space):
        self.action_space = action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample() | {"broken": np.array([0, 1, 0], np.int8)}, {}

    def step(self, action):
        self.given = action
        return self.reset()[0], 0.0, False, False, {}


@pytest.mark.parametrize(
    "inner, check",
    [
        (spaces.Dict({"tool": spaces.Discrete(50, start=-5), "hand": spaces.Discrete(3)}), dict(tool=40, hand=1)),
        (spaces.MultiDiscrete([50, 3], start=[-5, 0]), [40, 1]),
        (spaces.Tuple([spaces.Discrete(50, start=-5), spaces.Discrete(3)]), (40, 1)),
    ],
)
def test_the_simulator_receives_values_not_indices_and_hidden_keys_stay_hidden(inner, check):
    def whole_tools(obs):
        assert "broken" in obs  # the mask function sees the whole state
        return {"tool": Mask(obs["broken"] == 0)}

    env = MaskFunction(Workbench(inner), FIELDS, whole_tools, hide=("broken",))
    obs, info = env.reset(seed=0)
    assert list(obs) == ["wood"] and env.observation_space.contains(obs)
    assert env.action_space == spaces.MultiDiscrete([3, 2])
    obs, *_, info = env.step(np.array([2, 0]))
    assert info["action_mask"].tolist() == [1, 0, 1, 1, 1] and list(obs) == ["wood"]
    given = env.unwrapped.given
    assert given == check if isinstance(check, dict | tuple) else given.tolist() == check


def test_a_single_field_is_discrete():
    env = MaskFunction(Workbench(spaces.Discrete(50, start=-5)), {"tool": Tool}, lambda obs: {})
    assert env.action_space == spaces.Discrete(3)
    env.reset(seed=0)
    env.step(1)
    assert env.unwrapped.given == -3


@pytest.mark.parametrize("inner, fields, words", [
    (spaces.Discrete(2), {"hand": Hand}, r"Field 'hand' has the values \[2\], which are not in Discrete\(2\)"),
    (spaces.MultiDiscrete([50, 3]), FIELDS, r"Field 'tool' has the values \[-3\], which are not in Discrete\(50\)"),
    (spaces.Discrete(3, start=1), FIELDS, r"The fields are \['tool', 'hand'\]; expected those of .*Discrete\(3"),
    (spaces.Dict(hand=spaces.Discrete(3), foot=spaces.Discrete(3)), {"hand": Hand}, "expected those of .*foot"),
    (spaces.Dict(foot=spaces.Discrete(3)), {"hand": Hand}, "expected those of .*foot"),
    (spaces.Tuple([spaces.Discrete(99), spaces.Discrete(3)]), FIELDS, r"'tool' has the values \[-3\].* Discrete\(99\)"),
    (spaces.Tuple([spaces.Discrete(3)]), FIELDS, r"The fields are \['tool', 'hand'\]; expected those of .*Tuple"),
])  # fmt: skip
def test_fields_and_values_that_the_inner_environment_does_not_have_are_refused(inner, fields, words):
    with pytest.raises(ValueError, match=words):
        MaskFunction(Workbench(inner), fields, lambda obs: {})
    MaskFunction(Workbench(spaces.Box(-9, 99, (2,))), FIELDS, lambda obs: {})


def test_hide_must_name_keys_of_the_observation():
    with pytest.raises(ValueError, match=r"hide=\['rust'\]"):
        MaskFunction(Workbench(spaces.Discrete(50, start=-5)), {"tool": Tool}, lambda obs: {}, hide=("rust",))


def test_the_vector_wrapper_gives_the_final_mask_apart_from_the_new_episodes():
    envs = JobRouting(num_envs=3, num_machines=4, num_up=1, num_jobs=5)
    envs = VectorMaskFunction(envs, {"machine": machines(4)}, only_machines_that_are_up, hide=("up",))
    obs, infos = envs.reset(seed=0)
    for _ in range(5):
        assert infos["action_mask"].sum(1).tolist() == [1, 1, 1] and list(obs) == ["job"]
        obs, _, terminations, _, infos = envs.step(infos["action_mask"].argmax(1))
    assert terminations.all() and list(infos["final_obs"]) == ["job"]
    assert infos["final_info"]["action_mask"].shape == (3, 4)
    assert (infos["final_info"]["action_mask"] != infos["action_mask"]).any()


def test_a_mask_function_may_have_settings_of_its_own():
    """Arguments with a default are no choices so far."""

    def brighter(obs, limit=0.5):
        return {"tool": Mask([1, 1, obs["wood"][0] > limit])}

    for function, allowed in ((brighter, [1, 1, 0]), (partial(brighter, limit=-1), [1, 1, 1])):
        env = MaskFunction(Workbench(spaces.Discrete(50, start=-5)), {"tool": Tool}, function)
        env.unwrapped.reset = lambda **kwargs: ({"wood": np.zeros(2)}, {})
        assert not env.dependent and env.reset()[1]["action_mask"].tolist() == allowed


class Keeper(VectorEnv):
    """A guest that keeps its infos: the first episode ends at every step, in a state in which nothing is legal."""

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
    num_envs, single_observation_space = 2, spaces.Dict(open=spaces.MultiBinary(3))
    single_action_space = spaces.Discrete(50, start=-5)
    observation_space, action_space = spaces.Dict(open=spaces.MultiBinary((2, 3))), spaces.MultiDiscrete([50, 50])

    def reset(self, *, seed=None, options=None):
        ended = np.array([True, False])
        self.infos = {"final_obs": {"open": np.zeros((2, 3), np.int8)}, "_final_obs": ended, "final_info": {}}
        return {"open": np.ones((2, 3), np.int8)}, {}

    def step(self, actions):
        ended = np.array([True, False])
        return {"open": np.ones((2, 3), np.int8)}, np.zeros(2), ended, ~ended & False, self.infos


def test_a_guests_infos_are_left_alone_and_rows_that_did_not_end_are_nobodys():
    guest = Keeper()
    envs = VectorMaskFunction(guest, {"tool": Tool}, lambda obs: {"tool": Mask(obs["open"])}, hide=("open",))
    envs.reset()
    for _ in range(2):
        infos = envs.step(np.array([0, 0]))[-1]
        assert infos["final_obs"] == {} and not infos["final_info"]["action_mask"].any()
        assert infos["action_mask"].all()
    assert guest.infos["final_info"] == {} and list(guest.infos["final_obs"]) == ["open"]
