"""Masks that are given in several places: the outermost one counts, or all agree, or it is refused."""

from enum import IntEnum

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import VectorActionWrapper, VectorWrapper

from envs import In, Mask, MaskFunction
from envs.foreign import Guest
from envs.make import make_vec
from envs.uniform import UniformVectorEnv
from envs.worlds.bin_placement import make_bin_placement_vec

A, B = IntEnum("A", ["X", "Y"], start=0), IntEnum("B", ["U", "V", "W"], start=0)


class Inner(gym.Env):
    """Three actions, or two fields, of which `mask` says what is legal, in one place or in several."""

    observation_space = spaces.Box(0, 1, (1,))

    def __init__(self, mask, *places, nvec=None):
        self.mask, self.places = np.array(mask, np.int8), places
        self.action_space = spaces.MultiDiscrete(nvec) if nvec else spaces.Discrete(len(mask))
        if "method" in places:
            self.action_masks = lambda: self.mask
        if "field" in places:
            self.field_mask = lambda chosen: np.split(self.mask, np.cumsum(nvec))[len(chosen)]

    def told(self):
        return {"action_mask": self.mask} if "info" in self.places else {}

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), self.told()

    def step(self, action):
        return np.zeros(1, np.float32), 0.0, False, False, self.told()


class Method(gym.Wrapper):
    def __init__(self, env, mask):
        super().__init__(env)
        self.action_masks = lambda: mask


class Reversed(gym.ActionWrapper):
    """Action 0 is the last one of the inner environment, and the mask follows."""

    def action(self, action):
        return self.env.action_space.n - 1 - action

    def action_masks(self):
        return self.unwrapped.mask[::-1]


class Flat(gym.Wrapper):
    """Two fields as one, which has as many actions as there are combinations."""

    def __init__(self, env):
        super().__init__(env)
        self.action_space = spaces.Discrete(6)

    def step(self, action):
        return self.env.step(np.array(divmod(action, 3)))

    def action_masks(self):
        return np.outer(*np.split(self.unwrapped.mask, [2])).ravel()


class Info(gym.Wrapper):
    """Writes a mask into the info."""

    def __init__(self, env, mask):
        super().__init__(env)
        self.own = np.array(mask, np.int8)

    def reset(self, **kwargs):
        obs, info = self.env.reset(**kwargs)
        return obs, info | {"action_mask": self.own}

    def step(self, action):
        *result, info = self.env.step(action)
        return *result, info | {"action_mask": self.own}


class Scaled(gym.Wrapper):
    """Has a step of its own, and changes no mask."""

    def step(self, action):
        obs, reward, *rest = self.env.step(action)
        return obs, reward / 10, *rest


class Seen(gym.ObservationWrapper):
    """Shows a mask."""

    def __init__(self, env, mask):
        super().__init__(env)
        self.own = np.array(mask, np.int8)
        self.observation_space = spaces.Dict(x=env.observation_space, action_mask=spaces.MultiBinary(len(mask)))

    def observation(self, obs):
        return {"x": obs, "action_mask": self.own}


def declared(env):
    return MaskFunction(env, {"a": A, "b": B}, lambda obs: {"a": In([1]), "b": Mask([0, 0, 1])})


COUNTS = {
    "a method around an info": (lambda: Method(Inner([1, 1, 0], "info"), [1, 0, 0]), [1, 0, 0]),
    "a method around a method": (lambda: Method(Inner([1, 1, 0], "method"), [1, 0, 0]), [1, 0, 0]),
    "other actions than the info's": (lambda: Reversed(Inner([1, 1, 0], "info")), [0, 1, 1]),
    "Gymnasium's wrapper around it": (lambda: gym.wrappers.TimeLimit(Reversed(Inner([1, 1, 0], "info")), 9), [0, 1, 1]),
    "one field of two": (lambda: Flat(Inner([0, 1, 1, 0, 1], "info", nvec=[2, 3])), [0, 0, 0, 1, 0, 1]),
    "one field of two that depend": (lambda: Flat(Inner([0, 1, 1, 0, 1], "field", nvec=[2, 3])), [0, 0, 0, 1, 0, 1]),
    "a function around an info": (lambda: declared(Inner([1] * 5, "info", nvec=[2, 3])), [0, 1, 0, 0, 1]),
    "all agree": (lambda: Seen(Info(Inner([1, 1, 0], "method"), [1, 1, 0]), [1, 1, 0]), [1, 1, 0]),
    "an info around a method of fields": (
        lambda: Info(Inner([1, 1, 1, 1, 0], "field", nvec=[2, 3]), [0, 1, 0, 1, 1]),
        [0, 1, 0, 1, 1],
    ),
}


@pytest.mark.parametrize("case", COUNTS)
def test_the_outermost_mask_counts(case):
    make, expected = COUNTS[case]
    env = Guest(make())
    assert env.reset(seed=0)[1]["action_mask"].tolist() == expected
    action = env.action_space.sample()
    assert env.step(action)[-1]["action_mask"].tolist() == expected


DISAGREE = {
    "an info around a method": lambda: Info(Inner([1, 1, 0], "method"), [1, 0, 0]),
    "an observation around an info": lambda: Seen(Inner([1, 1, 0], "info"), [1, 0, 0]),
    "an observation around a method": lambda: Seen(Inner([1, 1, 0], "method"), [1, 0, 0]),
    "two of one environment": lambda: Info(Method(Inner([1, 1, 0]), [1, 1, 0]), [1, 0, 0]),
    "a step of one's own around both": lambda: Scaled(Reversed(Inner([1, 1, 0], "info"))),
}


@pytest.mark.parametrize("case", DISAGREE)
def test_masks_of_which_none_is_known_to_be_the_outermost_have_to_agree(case):
    with pytest.raises(
        ValueError, match=r"Environment 0: .* gives \[.*\] and .* \[.*\] .*; expected the same, or a wr"
    ):
        Guest(DISAGREE[case]()).reset(seed=0)
    assert Guest(DISAGREE[case](), require_mask=False).reset(seed=0)[1] == {}


@pytest.mark.parametrize("wrap", [declared, lambda env: Method(env, [1, 0, 1, 1, 1])])
def test_a_mask_that_does_not_know_of_fields_that_depend_is_refused(wrap):
    with pytest.raises(
        ValueError, match="has action_masks.. around Inner, whose field_mask.. says .*; expected a field"
    ):
        Guest(wrap(Inner([1] * 5, "field", nvec=[2, 3])))


def test_a_mask_beside_the_method_of_fields_narrows_every_field():
    env = lambda: Info(Inner([1, 1, 1, 1, 0], "field", nvec=[2, 3]), [0, 1, 0, 1, 1])  # noqa: E731
    gym.register("Test/Narrowed-v0", env, disable_env_checker=True)
    envs = make_vec("Test/Narrowed-v0", 2, dependent=True)
    envs.reset(seed=0)
    assert envs.field_mask(np.zeros((2, 0), int)).tolist() == [[0, 1]] * 2
    assert envs.field_mask(np.ones((2, 1), int)).tolist() == [[0, 1, 0]] * 2


class Clipped(VectorWrapper):
    """Knows nothing of masks."""


class Turned(VectorActionWrapper):
    def actions(self, actions):
        return actions[:, ::-1]


def test_a_wrapper_around_a_batch_keeps_the_masks_of_later_fields():
    bare, wrapped = (
        UniformVectorEnv(wrap(make_bin_placement_vec(4, dependent=True)), dependent=True)
        for wrap in (lambda env: env, Clipped)
    )
    for envs in (bare, wrapped):
        envs.reset(seed=3)
    chosen = bare.last_mask[:, :7].argmax(1)[:, None]
    assert (wrapped.field_mask(chosen) == bare.field_mask(chosen)).all() and not bare.field_mask(chosen).all()
    state, before = wrapped.get_state(), wrapped.field_mask(chosen)
    wrapped.step(np.concatenate([chosen, np.zeros((4, 1), int)], axis=1))
    wrapped.set_state(state)
    assert (wrapped.field_mask(chosen) == before).all()


def test_actions_that_a_batch_renumbers_outside_of_the_masks_function_are_refused():
    with pytest.raises(ValueError, match="Turned changes actions between the script and the mask's function"):
        UniformVectorEnv(Turned(make_bin_placement_vec(2)))
