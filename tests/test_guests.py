"""Environments that others wrote: never written to, copied, asked when somebody acts, and named when they are wrong."""

import gc
import multiprocessing
import os
import signal
import time
from traceback import extract_tb

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from envs.episodes import evaluate
from envs.foreign import AsyncGuests, admit
from envs.make import make_vec
from envs.uniform import UniformVectorEnv
from envs.worlds.job_routing import make_job_routing_vec

BOTH = pytest.mark.parametrize("async_envs", [False, True])


class Doors(gym.Env):
    """Three doors; at time t only door t % 3 is open. It keeps one info, one observation and one mask for ever."""

    action_space = spaces.Discrete(3)

    def __init__(self, convention="info", length=5, cut="terminated", extra=None):
        self.convention, self.length, self.cut, self.extra = convention, length, cut, extra
        self.obs, self.open, self.info = np.zeros(1, np.float32), np.zeros(3, np.int8), {}
        self.observation_space = spaces.Box(0, 100, (1,))
        if convention == "dict":
            self.observation_space = spaces.Dict(x=self.observation_space, action_mask=spaces.MultiBinary(3))
        if convention == "method":
            self.action_masks = lambda: self.open
        if convention == "list":
            self.get_available_actions = lambda: [self.t % 3]

    def seen(self):
        self.obs[:], self.open[:] = self.t, np.arange(3) == self.t % 3
        if self.convention == "info":
            self.info["action_mask"] = self.open
        if self.extra:  # what others put into their infos
            self.info |= {"episode": self.t, "final_obs": [1] * self.t, "x": np.zeros(self.t), "f": lambda: 0}
            self.info["type"] = "a" if self.t % 2 else 1
        return ({"x": self.obs, "action_mask": self.open} if self.convention == "dict" else self.obs), self.info

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.seen()

    def step(self, action):
        self.t += 1
        obs, info = self.seen()
        ended = self.t == self.length
        return obs, 1.0, ended and self.cut == "terminated", ended and self.cut == "truncated", info


class Property(Doors):
    @property
    def action_masks(self):
        return self.open


gym.register("Test/Doors-v0", Doors, disable_env_checker=True)
gym.register("Test/Property-v0", Property, disable_env_checker=True)


@BOTH
@pytest.mark.parametrize("extra", [False, True])
@pytest.mark.parametrize("convention", ["info", "method", "list", "dict"])
def test_masks_and_final_observations_are_those_of_their_step_whatever_the_environment_keeps(
    convention, extra, async_envs
):
    envs = make_vec("Test/Doors-v0", 2, {"convention": convention, "cut": "truncated", "extra": extra}, async_envs)
    obs, infos = envs.reset(seed=0)
    seen, masks = [obs], [infos["action_mask"]]
    for _ in range(5):
        obs, *_, infos = envs.step(np.zeros(2, int))
        seen.append(obs), masks.append(infos["action_mask"])
    opened = [mask[1].tolist() for mask in masks]
    assert opened == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0], [0, 1, 0], [1, 0, 0]]
    assert [obs[1, 0] for obs in seen] == [0, 1, 2, 3, 4, 0]
    assert infos["final_obs"][1].tolist() == [5] and infos["final_info"]["action_mask"][1].tolist() == [0, 0, 1]
    assert set(infos) == {"action_mask", "final_obs", "_final_obs", "final_info", "episode", "_episode"}
    envs.close()


def test_nothing_is_written_into_what_belongs_to_the_environment():
    envs = make_vec("Test/Doors-v0", 1, {"convention": "method"})
    envs.reset(seed=0)
    for _ in range(7):
        envs.step(np.array([1]))
    assert envs.env.envs[0].unwrapped.info == {}


def test_a_mask_as_a_property_is_read_anew_each_step():
    envs = make_vec("Test/Property-v0", 1, {"convention": "property"})
    masks = [envs.reset(seed=0)[1]["action_mask"]] + [envs.step(np.array([0]))[-1]["action_mask"] for _ in range(3)]
    assert [mask[0].tolist() for mask in masks] == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]]


class Batch(VectorEnv):
    """Somebody's vector environment, which keeps its arrays and infos; `lacks` says what it leaves out."""

    num_envs, metadata = 2, {"autoreset_mode": AutoresetMode.SAME_STEP}
    single_observation_space, single_action_space = spaces.Box(0, 9, (1,)), spaces.Discrete(3)
    observation_space, action_space = spaces.Box(0, 9, (2, 1)), spaces.MultiDiscrete([3, 3])

    def __init__(self, num_envs=2, lacks=None):
        self.obs, self.masks, self.infos, self.lacks = np.zeros((2, 1), np.float32), np.ones((2, 3), int), {}, lacks

    def reset(self, *, seed=None, options=None):
        self.t, self.obs[:] = 0, 0
        return self.obs, self.seen()

    def seen(self):
        self.masks[:] = np.arange(3) == self.t % 3
        self.infos |= {"action_mask": self.masks, "_action_mask": np.ones(2, bool), "episode": 5}
        self.infos.pop(self.lacks, None)
        return self.infos

    def step(self, actions):
        self.t += 1
        self.obs[:] = self.t
        ended, infos = np.full(2, self.t == 3), {}
        if self.t == 3:
            infos = {"final_obs": self.obs.copy(), "final_info": {"success": np.ones(2), "_success": ended}}
            infos.pop(self.lacks, None)
            self.reset()
        if self.lacks == "a step":
            raise KeyError("wheel")
        return self.obs, np.ones((2, 1)), ended, ended & False, self.seen() | infos


gym.register("Test/Batch-v0", vector_entry_point=Batch)


def test_vector_environments_that_keep_their_arrays_are_copied():
    envs = make_vec("Test/Batch-v0", 2)
    seen = [envs.reset(seed=0)]
    for _ in range(3):
        obs, rewards, terminations, _, infos = envs.step(np.zeros(2, int))
        seen.append((obs, infos))
    assert [obs[0, 0] for obs, _ in seen] == [0, 1, 2, 0] and rewards.shape == (2,)
    assert [infos["action_mask"][0].tolist() for _, infos in seen] == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]]
    assert infos["final_obs"].tolist() == [[3], [3]] and infos["final_info"]["success"].tolist() == [1, 1]
    assert infos["final_info"]["action_mask"].tolist() == [[0, 0, 0]] * 2 and infos["episode"]["r"].tolist() == [3, 3]


class Part(Batch):
    """Only the first row's episode ends; what stands in the other row of the final observations is no observation."""

    def step(self, actions):
        obs, rewards, ended, cut, infos = super().step(actions)
        if "final_obs" in infos:
            infos["final_obs"][1] = np.nan
        return obs, rewards, ended & np.array([True, False]), cut, infos


gym.register("Test/Part-v0", vector_entry_point=Part)


def test_rows_of_final_observations_of_episodes_that_go_on_may_hold_anything():
    envs = make_vec("Test/Part-v0", 2)
    envs.reset(seed=0)
    for _ in range(3):
        *_, infos = envs.step(np.zeros(2, int))
    assert infos["_final_obs"].tolist() == [True, False] and infos["final_obs"][0].tolist() == [3]


class PartMask(Part):
    """Its final masks are as wrong in the other row, or in the row that ended."""

    def __init__(self, num_envs=2, row=1):
        super().__init__()
        self.row = row

    def step(self, actions):
        obs, rewards, ended, cut, infos = super().step(actions)
        if "final_obs" in infos:
            mask = np.ones((2, 3))
            mask[self.row] = [0, np.nan, 5]
            infos["final_info"] = {"action_mask": mask, "_action_mask": ended | True}
        return obs, rewards, ended & False, ended, infos


gym.register("Test/PartMask-v0", vector_entry_point=PartMask)


@pytest.mark.parametrize("row, require_mask, expected", [
    (1, True, [[1, 1, 1], [0, 0, 0]]),
    (0, True, "Environment 0: the action mask holds nan at entry 1"),
    (0, False, [[0, 0, 0]] * 2),
])  # fmt: skip
def test_final_masks_are_looked_at_where_an_episode_ended_and_somebody_reads_them(row, require_mask, expected):
    envs = make_vec("Test/PartMask-v0", 2, {"row": row}, require_mask=require_mask)
    envs.reset(seed=0)
    steps = (envs.step(np.zeros(2, int)) for _ in range(3))
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            list(steps)
    else:
        assert list(steps)[-1][-1]["final_info"]["action_mask"].tolist() == expected


@pytest.mark.parametrize("kind", [SyncVectorEnv, AsyncVectorEnv])
def test_gymnasiums_own_vector_environments_of_plain_environments_are_refused(kind):
    """Their final observations are what the environment overwrites, and their seeds are shared by other runs."""
    make = lambda num_envs: kind([Doors] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)  # noqa: E731
    gym.register("Test/Plain-v0", vector_entry_point=make)
    with pytest.raises(ValueError, match="VectorEnv.* holds environments as they are.* with an entry_point"):
        make_vec("Test/Plain-v0", 2)


class Crooked(Batch):
    """Wrong in one way, from the first step on."""

    def step(self, actions):
        obs, rewards, ended, cut, infos = super().step(actions)
        kind, _, what = self.fault.partition(" ")
        if kind == "obs":
            obs = {"turned": obs.T, "none": None, "dict": {"x": obs}, "wide": np.zeros((2, 3))}[what]
        if kind == "infos":
            infos = {"none": None, "list": []}[what]
        if kind == "mask":
            infos["action_mask"] = np.ones(3, np.int8)
        if kind == "flag":
            infos["_action_mask"] = {"float": np.ones(2), "short": np.ones(1, bool)}[what]
        if kind == "last":
            ended, infos["final_info"] = ended | True, {}
            infos["final_obs"] = {"short": obs[:1], "wide": np.zeros((2, 3)), "none": None}[what]
        if kind == "final":
            ended, infos["final_obs"] = ended | True, obs.copy()
            infos["final_info"] = None if what == "none" else {"success": 1.0, "_success": ended}
        return obs, rewards, ended * 1.0 if kind == "ended" else ended, cut, infos

    def __init__(self, num_envs=2, fault=""):
        super().__init__()
        self.fault = fault


class Shown(Batch):
    """Its mask is a part of what it observes."""

    single_observation_space = spaces.Dict(x=spaces.Box(0, 9, (1,)), action_mask=spaces.MultiBinary(3))


gym.register("Test/Crooked-v0", vector_entry_point=Crooked)
gym.register("Test/Shown-v0", vector_entry_point=Shown)


@pytest.mark.parametrize("fault, words", [
    ("obs turned", r"observes a ndarray of shape \(1, 2\); expected 2 rows of Box"),
    ("obs wide", r"observes a ndarray of shape \(2, 3\); expected 2 rows of Box"),
    ("obs none", "observes a NoneType of shape .*; expected 2 rows of Box"),
    ("obs dict", "observes a dict of shape .*; expected 2 rows of Box"),
    ("infos none", "The infos of .* are None; expected a dict"),
    ("infos list", r"The infos of .* are \[\]; expected a dict"),
    ("flag float", r"hold _action_mask of shape \(2,\) and type float64; expected \(2,\) bool"),
    ("mask", r"hold action_mask of shape \(3,\); expected 2 rows"),
    ("flag short", r"hold _action_mask of shape \(1,\) and type bool; expected \(2,\) bool"),
    ("final none", "expected final_obs and final_info"),
    ("final scalar", r"final_info of .* holds success of shape \(\) .*; expected \(2,\)"),
    ("last short", r"has as final_obs a ndarray of shape \(1, 1\); expected 2 rows of Box"),
    ("last wide", r"has as final_obs a ndarray of shape \(2, 3\); expected 2 rows of Box"),
    ("last none", "has as final_obs a NoneType of shape .*; expected 2 rows of Box"),
    ("ended", "step.. of .* raised TypeError: terminations and truncations are numbers. Expected obs, reward"),
])  # fmt: skip
def test_what_a_vector_environment_does_wrong_is_one_sentence(fault, words):
    envs = make_vec("Test/Crooked-v0", 2, {"fault": fault})
    envs.reset(seed=0)
    with pytest.raises(ValueError, match=words):
        envs.step(np.zeros(2, int))
    with pytest.raises(ValueError, match="observes an action_mask; expected it in the infos"):
        make_vec("Test/Shown-v0", 2)


def test_another_number_of_environments_than_asked_for_is_refused():
    with pytest.raises(ValueError, match="Test/Batch-v0 was asked for 3 environments and made 2; expected as many"):
        make_vec("Test/Batch-v0", 3)


@pytest.mark.parametrize("lacks, words", [
    ("_action_mask", "hold action_mask without _action_mask: expected .N,. bool"),
    ("final_info", "expected final_obs and final_info"),
    ("final_obs", "expected final_obs and final_info"),
    ("a step", "step.. of .*Batch.* raised KeyError: 'wheel'. Expected obs, reward"),
])  # fmt: skip
def test_what_a_vector_environment_lacks_is_named(lacks, words):
    with pytest.raises(ValueError, match=words):
        envs = make_vec("Test/Batch-v0", 2, {"lacks": lacks})
        envs.reset(seed=0)
        for _ in range(3):
            envs.step(np.zeros(2, int))


class Space(gym.Env):
    """Takes members of its action space only, and remembers what it got; legal is what is even."""

    observation_space = spaces.Box(0, 1, (1,))

    def __init__(self, action_space, mask=None):
        self.action_space, self.mask, self.got = action_space, mask, []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {} if self.mask is None else {"action_mask": self.mask}

    def step(self, action):
        assert self.action_space.contains(action), repr(action)
        self.got.append(action)
        obs, info = self.reset()
        return obs, np.array([0.5]), False, False, info


gym.register("Test/Space-v0", Space, disable_env_checker=True)


@BOTH
@pytest.mark.parametrize("space, actions, expected", [
    (spaces.Discrete(3, start=-1), [2, 0], [1, -1]),
    (spaces.Discrete(3, dtype=np.int32), [2, 0], [2, 0]),
    (spaces.MultiDiscrete([4]), [3, 0], [[3], [0]]),
    (spaces.MultiDiscrete([2, 3], start=[1, 5]), [[0, 2], [1, 0]], [[1, 7], [2, 5]]),
    (spaces.MultiDiscrete([[2, 3], [4, 5]]), [[0, 2, 3, 4], [1, 1, 1, 1]], [[[0, 2], [3, 4]], [[1, 1], [1, 1]]]),
    (spaces.MultiBinary(1), [1, 0], [[1], [0]]),
    (spaces.MultiBinary((2, 2)), [[1, 0, 0, 1], [0, 0, 0, 0]], [[[1, 0], [0, 1]], [[0, 0], [0, 0]]]),
])  # fmt: skip
def test_actions_reach_an_environment_as_members_of_its_space(space, actions, expected, async_envs):
    envs = make_vec("Test/Space-v0", 2, {"action_space": space}, async_envs, require_mask=False)
    envs.reset(seed=0)
    _, rewards, *_ = envs.step(np.array(actions))
    assert np.shape(actions)[1:] == envs.single_action_space.shape and rewards.tolist() == [0.5, 0.5]
    got = envs.env.get_attr("got")
    assert [np.asarray(g[0]).tolist() for g in got] == expected
    envs.close()


def test_masks_of_several_fields_may_be_a_tuple_of_arrays():
    mask = (np.array([1, 0], np.int8), np.array([0, 1, 1], np.int8))
    envs = make_vec("Test/Space-v0", 2, {"action_space": spaces.MultiDiscrete([2, 3]), "mask": mask})
    assert envs.reset(seed=0)[1]["action_mask"].tolist() == [[1, 0, 0, 1, 1]] * 2


@pytest.mark.parametrize("nvec, mask, expected", [
    ((2, 2), (np.array([1, 0]), np.array([0, 1])), [1, 0, 0, 1]),
    ((2, 3), [[1, 0], [0, 1, 1]], [1, 0, 0, 1, 1]),
    ((2, 3), [[1, 0, 0], [0, 0, 0]], [1, 0, 1, 0, 0]),  # of whole actions, as an array would be
    ((2, 2), np.array([[1, 0], [0, 0]]), [1, 0, 1, 0]),
    ((2, 2, 2), [[[1, 0], [0, 0]], [[0, 0], [0, 0]]], [1, 0, 1, 0, 1, 0]),
    ((2, 2), [[1, 0], [0, 1]], None),
])  # fmt: skip
def test_lists_of_masks_are_of_fields_or_of_whole_actions_and_never_guessed(nvec, mask, expected):
    kwargs = {"action_space": spaces.MultiDiscrete(nvec), "mask": mask}
    if expected is None:
        with pytest.raises(ValueError, match="Environment 0: the action mask is the list .*expected a tuple of a mask"):
            make_vec("Test/Space-v0", 1, kwargs, dependent=True).reset(seed=0)
    else:
        assert (
            make_vec("Test/Space-v0", 1, kwargs, dependent=True).reset(seed=0)[1]["action_mask"].tolist()[0] == expected
        )


class Lists(Doors):
    """What it lists is no list of legal actions."""

    def __init__(self, listed):
        super().__init__(convention="none")
        self.get_available_actions = lambda: listed


class Single(Doors):
    """Asked field by field, of which it has one."""

    def __init__(self):
        super().__init__(convention="none")
        self.field_mask = lambda chosen: self.open


class Second(gym.Wrapper):
    """Nothing is legal in its second field, or its process ends there."""

    def __init__(self, dies=False):
        super().__init__(Space(spaces.MultiDiscrete([2, 3])))
        self.dies = dies

    def field_mask(self, chosen):
        if chosen and self.dies:
            os._exit(3)
        return np.zeros(3) if chosen else np.ones(2)


class Pairs(gym.Wrapper):
    """It lists actions of two fields."""

    def __init__(self):
        super().__init__(Space(spaces.MultiDiscrete([2, 3])))

    def get_available_actions(self):
        return [(0, 1), (1, 2)]


gym.register("Test/Lists-v0", Lists, disable_env_checker=True)
gym.register("Test/Single-v0", Single, disable_env_checker=True)
gym.register("Test/Second-v0", Second, disable_env_checker=True)


@pytest.mark.parametrize("listed", [[True, False, True], np.array([True, False, True]), [1, 0, 1]])
def test_flags_are_no_list_of_legal_actions(listed):
    with pytest.raises(ValueError, match="Environment 0: get_available_actions.*expected each legal action once"):
        make_vec("Test/Lists-v0", 1, {"listed": listed}).reset(seed=0)


def test_actions_of_several_fields_are_not_listed():
    gym.register("Test/Pairs-v0", Pairs, disable_env_checker=True)
    with pytest.raises(ValueError, match="Environment 0: get_available_actions .*several fields; expected flags, as"):
        make_vec("Test/Pairs-v0", 1).reset(seed=0)


@BOTH
def test_a_single_field_is_asked_as_a_mask(async_envs):
    envs = make_vec("Test/Single-v0", 2, async_envs=async_envs)
    assert envs.reset(seed=0)[1]["action_mask"].tolist() == [[1, 0, 0]] * 2 and envs.field_mask is None
    assert envs.step(np.zeros(2, int))[-1]["action_mask"].tolist() == [[0, 1, 0]] * 2
    envs.close()


def test_an_empty_field_is_named_by_its_index():
    envs = make_vec("Test/Second-v0", 1, dependent=True)
    envs.reset(seed=0)
    with pytest.raises(ValueError, match="Environment 0: the action mask leaves no legal action in field 1 .its 3 "):
        envs.path_mask(np.zeros((1, 2), int))


class Over(Doors):
    """`action_masks()` raises once the game is over, as MaskablePPO allows; in a truncated state nothing is legal."""

    def action_masks(self):
        if self.t == self.length:
            if self.cut == "terminated":
                raise RuntimeError("the game is over")
            return np.zeros(3)
        return self.open


class NoMask(Doors):
    def get_available_actions(self):
        raise NotImplementedError


class HalfLegal(Doors):
    def get_available_actions(self):
        return [0.5]


class Raises(Doors):
    def action_masks(self):
        raise KeyError("board")


class SaysNothing(Doors):
    def step(self, action):
        raise AssertionError


for kind in (Over, NoMask, HalfLegal, Raises, SaysNothing):
    gym.register(f"Test/{kind.__name__}-v0", kind, disable_env_checker=True)


@pytest.mark.parametrize("cut", ["terminated", "truncated"])
def test_nobody_is_asked_for_a_mask_where_nobody_acts(cut):
    envs = make_vec("Test/Over-v0", 2, {"convention": "own", "cut": cut})
    envs.reset(seed=0)
    for _ in range(5):
        *_, infos = envs.step(np.zeros(2, int))
    assert infos["final_info"]["action_mask"].tolist() == [[0, 0, 0]] * 2
    assert infos["action_mask"].tolist() == [[1, 0, 0]] * 2


def test_a_method_that_is_not_implemented_is_no_mask_and_one_that_raises_is_named():
    with pytest.raises(ValueError, match="Environment 0: no action mask was given"):
        make_vec("Test/NoMask-v0", 2, {"convention": "own"}).reset(seed=0)
    with pytest.raises(ValueError, match="Environment 0: action_masks of Raises raised KeyError: 'board'"):
        make_vec("Test/Raises-v0", 2, {"convention": "own"}).reset(seed=0)
    with pytest.raises(ValueError, match=r"Environment 0: .*it lists \[0.5\], which are not all in Discrete\(3\)"):
        make_vec("Test/HalfLegal-v0", 2, {"convention": "own"}).reset(seed=0)
    for name in ("NoMask", "Raises", "HalfLegal"):  # without masks, nothing that is wrong with them stops anybody
        envs = make_vec(f"Test/{name}-v0", 2, {"convention": "own"}, require_mask=False)
        assert (envs.reset(seed=0)[1]["action_mask"] == 1).all()


def test_an_error_without_a_message_says_where_it_was_raised():
    envs = make_vec("Test/SaysNothing-v0", 2)
    envs.reset(seed=0)
    with pytest.raises(ValueError, match=r"SaysNothing raised AssertionError: raised in step\(\), line \d+ of .*py"):
        envs.step(np.zeros(2, int))


class Renumber(gym.ActionWrapper):
    def action(self, action):
        return 2 - action


class RenumberAll(Renumber):
    def action_masks(self):
        return self.env.get_wrapper_attr("action_masks")()[::-1]


def renumbered(wrapper, convention):
    return wrapper(Doors(convention))


gym.register("Test/Renumbered-v0", renumbered, disable_env_checker=True)


@pytest.mark.parametrize("convention", ["info", "method", "list", "dict"])
def test_actions_that_are_renumbered_between_us_and_the_mask_are_refused(convention):
    with pytest.raises(ValueError, match="Renumber changes actions between the script and Doors, whose mask"):
        make_vec("Test/Renumbered-v0", 1, {"wrapper": Renumber, "convention": convention})


def test_a_wrapper_that_renumbers_the_mask_as_well_is_fine():
    envs = make_vec("Test/Renumbered-v0", 1, {"wrapper": RenumberAll, "convention": "method"})
    assert envs.reset(seed=0)[1]["action_mask"].tolist() == [[0, 0, 1]]


class Wrong(gym.Env):
    """Wrong in one way, from the second step on."""

    observation_space, action_space = spaces.Box(0, 1, (2,)), spaces.Discrete(2)

    def __init__(self, fault):
        self.fault, self.steps = fault, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2), {"action_mask": np.ones(2, np.int8)}

    def step(self, action):
        self.steps += 1
        obs, info = self.reset()
        if self.steps < 2:
            return obs, 0.0, False, False, info
        if self.fault == "dies":
            os._exit(3)
        if self.fault == "hangs":
            time.sleep(60)
        if self.fault == "raises":
            raise AttributeError("no board")
        if self.fault == "4 values":
            return obs, 0.0, False, info
        return (
            {"shape": obs[:1], "none": None, "text": "ab", "list": [0.1, [0.2]]}.get(self.fault, obs),
            (None if self.fault == "no reward" else np.zeros(2) if self.fault == "two rewards" else 0.0),
            {"not ended": None, "ended in words": "no", "ended twice": np.zeros(2, bool)}.get(self.fault, False),
            np.False_,
            {"ragged mask": {"action_mask": [[1], [1, 1]]}, "info": [1], "array": np.ones(2)}.get(self.fault, info),
        )


class Seedless(Wrong):
    def reset(self):
        return np.zeros(2), {"action_mask": np.ones(2, np.int8)}


gym.register("Test/Wrong-v0", Wrong, disable_env_checker=True)
gym.register("Test/Seedless-v0", Seedless, disable_env_checker=True)


@BOTH
@pytest.mark.parametrize("fault, words", [
    ("raises", r"step\(1\) of Wrong raised AttributeError: no board. Expected obs, reward, terminated"),
    ("4 values", "step.*not enough values to unpack.*Expected obs, reward, terminated, truncated and info"),
    ("shape", r"the observation is .* of shape \(1,\) .*; expected Box.*\(2,\), float32"),
    ("none", "the observation is None; expected Box"),
    ("text", "the observation is 'ab'; expected Box"),
    ("list", r"the observation is \[0.1, \[0.2\]\]; expected Box"),
    ("no reward", "the reward is nan; expected a finite number"),
    ("two rewards", "step.*raised ValueError"),
    ("not ended", "terminated is None; expected True or False"),
    ("ended in words", "terminated is 'no'; expected True or False"),
    ("ended twice", r"terminated is array\(\[False, False\]\); expected True or False"),
    ("info", r"the info is \[1\]; expected a dict"),
    ("array", r"the info is array\(\[1., 1.\]\); expected a dict"),
    ("ragged mask", r"the action mask is \[\[1\], \[1, 1\]\]; expected 2 entries, 1 where legal"),
])  # fmt: skip
def test_what_an_environment_does_wrong_is_one_sentence_with_its_index(fault, words, async_envs):
    envs = make_vec("Test/Wrong-v0", 2, {"fault": fault}, async_envs)
    envs.reset(seed=0)
    envs.step(np.ones(2, int))
    with pytest.raises(ValueError, match=f"Environment [01]: .*{words}|Environment 0: {words}") as refused:
        envs.step(np.ones(2, int))
    assert (
        "envs" in extract_tb(refused.value.__traceback__)[-1].filename.split(os.sep)[-2:]
    )  # raised by us: no traceback
    envs.close()


@pytest.mark.parametrize("fault, words", [
    ("dies", "Environment [01]: its process ended with exit code 3"),
    ("hangs", "Environment 0: did not answer within 0.5 s"),
])  # fmt: skip
def test_a_worker_that_dies_or_hangs_is_named(fault, words, monkeypatch):
    monkeypatch.setattr(AsyncGuests, "patience", 0.5)
    envs = make_vec("Test/Wrong-v0", 2, {"fault": fault}, async_envs=True)
    envs.reset(seed=0)
    envs.step(np.ones(2, int))
    with pytest.raises(ValueError, match=words):
        envs.step(np.ones(2, int))


def test_a_worker_that_dies_when_it_is_asked_for_a_field_is_named():
    envs = make_vec("Test/Second-v0", 2, {"dies": True}, async_envs=True, dependent=True)
    envs.reset(seed=0)
    with pytest.raises(ValueError, match="Environment [01]: its process ended with exit code 3"):
        envs.field_mask(np.zeros((2, 1), int))


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_workers_leave_signals_to_the_training(signum):
    """Both come to the whole group: from a terminal, from `timeout`, from schedulers."""
    envs = make_vec("Test/Doors-v0", 2, async_envs=True)
    envs.reset(seed=0)
    for process in envs.env.processes:
        os.kill(process.pid, signum)
    assert envs.step(np.zeros(2, int))[0].tolist() == [[1], [1]]
    envs.close()


@pytest.mark.parametrize("how", ["ends", "is deleted"])
def test_workers_end_with_a_training_that_does_not_close_them(how):
    def train():
        envs = make_vec("Test/Doors-v0", 2, async_envs=True)
        envs.reset(seed=0)
        if how == "is deleted":
            workers = envs.env.processes
            del envs
            gc.collect()
            os._exit(any(worker.is_alive() for worker in workers))

    process = multiprocessing.get_context("fork").Process(target=train)
    process.start()
    process.join(60)
    assert process.exitcode == 0


class Old(gym.Env):
    """Seeded by a method, as before Gymnasium."""

    observation_space, action_space, seeds = spaces.Box(0, 1, (1,)), spaces.Discrete(2), []

    def seed(self, seed):
        self.seeds.append(seed)

    def reset(self):
        return np.zeros(1, np.float32), {"action_mask": np.ones(2, np.int8)}


class Modern(gym.Wrapper):
    def reset(self, *, seed=None, options=None):
        self.env.seed(seed)
        return self.env.reset()


class Passing(gym.Wrapper):
    def reset(self, **kwargs):
        return self.env.reset(**kwargs)


def test_the_seed_gets_to_a_wrapper_that_seeds_an_old_environment():
    gym.register("Test/Modern-v0", lambda: Passing(Modern(Old())), disable_env_checker=True)
    Old.seeds.clear()
    make_vec("Test/Modern-v0", 2).reset(seed=3)
    assert len(set(Old.seeds)) == 2 and None not in Old.seeds
    gym.register("Test/Old-v0", lambda: Passing(Old()), disable_env_checker=True)
    with pytest.warns(UserWarning, match="takes no seed"):
        make_vec("Test/Old-v0", 1)


def test_masks_that_hide_entries_are_refused():
    class Hidden(Doors):
        def seen(self):
            obs, info = super().seen()
            return obs, info | {"action_mask": np.ma.masked_array([1, 1, 1], mask=[0, 0, 1])}

    gym.register("Test/Hidden-v0", Hidden, disable_env_checker=True)
    with pytest.raises(ValueError, match="Environment 0: the action mask is masked_array.data=.1, 1, --"):
        make_vec("Test/Hidden-v0", 1).reset(seed=0)


@pytest.mark.parametrize("success", [np.array(True), np.array([True]), 1, np.float32(1)])
def test_success_may_be_any_number(success):
    class Told(Doors):
        def seen(self):
            obs, info = super().seen()
            return obs, info | {"success": success}

    gym.register("Test/Told-v0", Told, disable_env_checker=True)
    envs = make_vec("Test/Told-v0", 1, {"length": 1})
    envs.reset(seed=0)
    assert envs.step(np.zeros(1, int))[-1]["final_info"]["success"].tolist() == [1]


def test_what_a_guest_calls_multiple_is_its_own():
    class Multiple(Doors):
        multiple = 2

    gym.register("Test/Multiple-v0", Multiple, disable_env_checker=True)
    assert make_vec("Test/Multiple-v0", 3, learns=False).num_envs == 3


def test_a_reset_without_a_seed_is_taken_with_a_warning():
    with pytest.warns(UserWarning, match="takes no seed, so a run of it cannot be repeated"):
        envs = make_vec("Test/Seedless-v0", 2, {"fault": None})
    assert envs.reset(seed=3)[0].tolist() == [[0, 0], [0, 0]]


def test_statistics_that_an_environment_learns_by_itself_are_warned_of():
    gym.register("Test/Own-v0", lambda: gym.wrappers.NormalizeReward(Doors()), disable_env_checker=True)
    with pytest.warns(UserWarning, match="learns statistics of its own.*--norm-obs or --norm-reward"):
        make_vec("Test/Own-v0", 2)
    with pytest.warns(UserWarning, match="learns statistics of its own.*--norm-obs or --norm-reward"):
        UniformVectorEnv(gym.wrappers.vector.NormalizeReward(make_job_routing_vec(2)))


class Dice(Doors):
    def step(self, action):
        obs, *rest, info = super().step(action)
        return obs, float(self.np_random.integers(2**53)), *rest[1:], info


gym.register("Test/Dice-v0", Dice, disable_env_checker=True)


def test_streams_of_guests_are_shared_by_no_other_seed():
    draws = {}
    for seed in range(5):
        envs = make_vec("Test/Dice-v0", 16)
        envs.reset(seed=seed)
        draws[seed] = envs.step(np.zeros(16, int))[1].tolist()
    assert len({x for row in draws.values() for x in row}) == 5 * 16
    envs.reset(seed=4)
    assert envs.step(np.zeros(16, int))[1].tolist() == draws[4]


class Odd(Doors):
    def step(self, action):
        *rest, info = super().step(action)
        return *rest, info | {"success": "yes", "optimal_return": np.float32(7)}


gym.register("Test/Odd-v0", Odd, disable_env_checker=True)


def test_what_an_environment_knows_of_an_episode_is_read_as_numbers_or_left_out_with_a_line():
    envs = make_vec("Test/Odd-v0", 1, {"length": 1})
    envs.reset(seed=0)
    with pytest.warns(UserWarning, match="Environment 0: info.'success'. is 'yes', no number; left out"):
        *_, infos = envs.step(np.zeros(1, int))
    assert infos["final_info"]["optimal_return"].tolist() == [7] and "success" not in infos["final_info"]


@pytest.mark.parametrize("space, obs, expected", [
    (spaces.Box(0, 255, (2,), np.uint8), [3, 4], [3, 4]),
    (spaces.Box(0, 255, (2,), np.uint8), np.array([3.0, 4.0]), [3, 4]),
    (spaces.Discrete(4), 3, 3),
    (spaces.Discrete(4), np.float32(3), 3),
    (spaces.MultiBinary(2), np.array([True, False]), [1, 0]),
])  # fmt: skip
def test_observations_come_in_the_type_of_their_space(space, obs, expected):
    assert admit(space, obs, 0).tolist() == expected and admit(space, obs, 0).dtype == space.dtype


@pytest.mark.parametrize("space, obs", [
    (spaces.Box(0, 255, (2,), np.uint8), np.array([3.5, 4])),
    (spaces.Box(0, 255, (2,), np.uint8), np.array([300, 4])),
    (spaces.Discrete(4), 1.5),
    (spaces.Discrete(4), np.array([1])),
    (spaces.Dict(a=spaces.Discrete(2)), {"b": 1}),
    (spaces.Dict(a=spaces.Discrete(2)), 1),
    (spaces.Tuple((spaces.Discrete(2), spaces.Discrete(2))), (1,)),
])  # fmt: skip
def test_observations_of_another_form_are_refused_by_the_environments_index(space, obs):
    with pytest.raises(ValueError, match="Environment 7: the observation is .*; expected "):
        admit(space, obs, 7)


def test_nan_in_a_map_is_named():
    class Map(gym.Env):
        observation_space, action_space = spaces.Box(0, 1, (1, 2, 2)), spaces.MultiDiscrete(np.full((2, 2), 3))

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            obs = np.zeros((1, 2, 2), np.float32)
            obs[0, 1, 0] = np.nan
            return obs, {"agent_mask": np.ones((2, 2)), "action_mask": np.ones((3, 2, 2))}

    gym.register("Test/Map-v0", Map, disable_env_checker=True)
    with pytest.raises(ValueError, match=r"Environment 0: the observation holds nan at entry \[0, 1, 0\] of its grid"):
        make_vec("Test/Map-v0", 2, layout="grid").reset(seed=0)


def test_a_grid_without_an_agent_mask_is_named():
    class Nobody(gym.Env):
        observation_space, action_space = spaces.Box(0, 1, (2, 2, 2)), spaces.MultiDiscrete(np.full((2, 2), 3))

        def reset(self, *, seed=None, options=None):
            return np.zeros((2, 2, 2), np.float32), {"agent_mask": None, "action_mask": np.ones((3, 2, 2))}

    gym.register("Test/Nobody-v0", Nobody, disable_env_checker=True)
    with pytest.raises(ValueError, match=r'Environment 0: no agent mask: expected info\["agent_mask"\]'):
        make_vec("Test/Nobody-v0", 2, layout="grid").reset(seed=0)


@pytest.mark.parametrize("mask", [np.zeros((3, 2, 2)), [[1], [1, 1]]])
def test_without_a_mask_who_stands_on_a_grid_counts_whatever_they_may_do(mask):
    class Stuck(gym.Env):
        observation_space, action_space = spaces.Box(0, 1, (2, 2, 2)), spaces.MultiDiscrete(np.full((2, 2), 3))

        def reset(self, *, seed=None, options=None):
            return np.zeros((2, 2, 2), np.float32), {"agent_mask": np.eye(2), "action_mask": mask}

    gym.register("Test/Stuck-v0", Stuck, disable_env_checker=True)
    masks = make_vec("Test/Stuck-v0", 1, require_mask=False, layout="grid").reset(seed=0)[1]["action_mask"]
    assert masks[0, 0].tolist() == [[1, 0], [0, 1]] and masks[0, 1:].all()
    with pytest.raises(ValueError, match="Environment 0: the action mask "):
        make_vec("Test/Stuck-v0", 1, layout="grid").reset(seed=0)


def test_a_module_in_the_working_folder_is_found(tmp_path, monkeypatch):
    (tmp_path / "my_world_of_one_door.py").write_text(
        "import gymnasium as gym\n"
        "class Door(gym.Env):\n"
        "    observation_space, action_space = gym.spaces.Discrete(2), gym.spaces.Discrete(2)\n"
        "    def reset(self, *, seed=None, options=None):\n"
        "        return 1, {'action_mask': [0, 1]}\n"
        "gym.register('Mine-v0', Door)\n"
    )
    (tmp_path / "my_broken_world.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"--env-id my_broken_world:Mine-v0: division by zero \(ZeroDivisionError\)"):
        make_vec("my_broken_world:Mine-v0", 1)
    envs = make_vec("my_world_of_one_door:Mine-v0", 1)
    assert envs.reset(seed=0)[1]["action_mask"].tolist() == [[0, 1]]


class Sometimes(Doors):
    """Every other episode says that it succeeded; the others say nothing."""

    episodes = 0

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        if terminated:
            Sometimes.episodes += 1
        info = dict(info) | ({"success": True} if terminated and Sometimes.episodes % 2 else {})
        return obs, reward, terminated, truncated, info


class SometimesBatch(Batch):
    """The same as a batch: the first row succeeds, of the second nothing is said."""

    def __init__(self, num_envs=2, word=None):
        super().__init__()
        self.word = word

    def step(self, actions):
        obs, rewards, ended, cut, infos = super().step(actions)
        if "final_info" in infos:
            infos["final_info"] = {"success": np.array([1.0, 5.0]), "_success": np.array([True, False])}
            if self.word:
                infos["final_info"]["success"] = self.word
        return obs, rewards, ended, cut, infos


gym.register("Test/Sometimes-v0", Sometimes, disable_env_checker=True)
gym.register("Test/SometimesBatch-v0", vector_entry_point=SometimesBatch)


def first_legal(obs, mask, *_):
    return mask.argmax(1)


@pytest.mark.parametrize("env_id", ["Test/Sometimes-v0", "Test/SometimesBatch-v0"])
def test_an_episode_of_which_success_is_not_told_is_none(env_id):
    envs = make_vec(env_id, 2)
    scores = evaluate(first_legal, envs, 8, 100)
    assert scores["success"] == scores["win_rate"] == 0.5
    assert np.mean(envs.ended["success"]) == 0.5


def test_a_word_for_success_is_left_out_with_a_line():
    with pytest.warns(UserWarning, match="holds success 'yes', no number; left out"):
        scores = evaluate(first_legal, make_vec("Test/SometimesBatch-v0", 2, {"word": "yes"}), 2, 100)
    assert "success" not in scores and scores["win_rate"] == 1


def test_who_is_cut_has_not_won():
    scores = evaluate(first_legal, make_vec("Test/Doors-v0", 2), 4, max_steps=3)
    assert scores["win_rate"] == 0 and scores["cut"] == 1 and scores["episodic_return"] == 3


@pytest.mark.parametrize("fault", ["mask", "flag short", "flag float"])
def test_without_masks_those_of_a_vector_environment_stop_nobody(fault):
    envs = make_vec("Test/Crooked-v0", 2, {"fault": fault}, require_mask=False)
    envs.reset(seed=0)
    assert envs.step(np.zeros(2, int))[-1]["action_mask"].tolist() == [[1, 1, 1]] * 2


def test_without_masks_fields_that_depend_on_each_other_stop_nobody():
    envs = make_vec("Test/Second-v0", 2, require_mask=False)
    envs.reset(seed=0)
    assert envs.path_mask(np.zeros((2, 2), int)).tolist() == [[1] * 5] * 2


def test_seeds_of_guests_have_31_bits():
    class Seeds(Doors):
        def reset(self, *, seed=None, options=None):
            seeds.append(np.int32(seed))  # OverflowError beyond
            return super().reset(seed=seed)

    seeds = []
    gym.register("Test/Seeds-v0", Seeds, disable_env_checker=True)
    make_vec("Test/Seeds-v0", 64).reset(seed=3)
    assert len(set(seeds)) == 64


def in_a_process():
    signal.signal(signal.SIGINT, signal.default_int_handler)
    make_vec("Test/Doors-v0", 2)
    os._exit(int(signal.getsignal(signal.SIGINT) is not signal.default_int_handler))


def test_a_training_in_a_process_of_its_own_keeps_ctrl_c():
    process = multiprocessing.get_context("fork").Process(target=in_a_process)
    process.start()
    process.join(30)
    assert process.exitcode == 0


def test_arguments_of_a_module_whose_name_holds_envs_are_its_own(monkeypatch):
    def room(sizes: list[int], seed: int = None):
        return Doors()

    room.__module__ = "myenvs.rooms"
    gym.register("Test/Room-v0", room, disable_env_checker=True)
    assert make_vec("Test/Room-v0", 2, {"sizes": [3, 4], "seed": None}).num_envs == 2
