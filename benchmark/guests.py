"""Environments as others write them, each with one fault: `--env-id benchmark.guests:Guests/Doors-v0`.

What is wrong is named by two arguments: `fault`, a slot of what the environment gives, and `value`, a Python expression
that is put there (`fault="reward" value="np.nan"`) from step `at` of an episode on. What reached an environment stands
in `LOG`, for whoever steps it in the same process.
"""

import os  # noqa: F401 (expressions use these three)
import signal  # noqa: F401
import time  # noqa: F401
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

LOG: list[tuple] = []  # (what happened, details)


class Guest(gym.Env):
    """What all of them share: a fault, and the choice to give the same objects all the time.

    Args:
        fault: the slot that is wrong: obs, reward, terminated, truncated, info, mask or result, of steps and resets;
            step, reset, close or render, of a call; None: nothing.
        value: an expression.
        at: the first step of an episode in which it is wrong.
        keep: always return the same info, observation and mask, changed in place.
        length: steps of an episode.
        cut: episodes are truncated, not terminated.
    """

    def __init__(self, fault=None, value="None", at=2, keep=False, length=6, cut=False):
        self.fault, self.value, self.at, self.keep, self.length, self.cut = fault, value, at, keep, length, cut
        self.t, self.kept = 0, {}

    def given(self, slot: str, right: Any, **names: Any) -> Any:
        """What stands in a slot: what is right there, or the faulty value."""
        if slot != self.fault or self.t < self.at:
            return right
        return (
            eval(self.value, globals(), {"self": self, "t": self.t, slot: right} | names)
            if isinstance(self.value, str)
            else self.value
        )

    def same(self, name: str, value: Any) -> Any:
        """The same object as ever with new contents, if objects are kept."""
        if not self.keep:
            return value
        if isinstance(value, dict):
            kept = self.kept.setdefault(name, {})
            kept.update({key: self.same(f"{name}/{key}", part) for key, part in value.items()})
            return kept
        if isinstance(value, np.ndarray):
            kept = self.kept.setdefault(name, value.copy())
            kept[...] = value
            return kept
        return value

    def seen(self) -> tuple[Any, dict[str, Any]]:
        obs, info = self.look()
        return self.same("obs", self.given("obs", obs)), self.given("info", self.same("info", info))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        LOG.append(("reset", seed, float(self.np_random.random())))
        self.given("reset", None)
        obs, info = self.seen()
        return self.given("reset_result", (obs, info), obs=obs, info=info)

    def step(self, action):
        reward = self.given("reward", self.play(action))
        self.t += 1
        self.given("step", None)
        obs, info = self.seen()
        ended = self.t >= self.length
        terminated = self.given("terminated", ended and not self.cut)
        truncated = self.given("truncated", ended and self.cut)
        result = (obs, reward, terminated, truncated, info)
        return self.given("result", result, obs=obs, reward=reward, info=info)

    def close(self):
        self.t = self.at
        self.given("close", None)


class Doors(Guest):
    """Three doors: at time t only door t % 3 is open. A point for each step; what is seen is t.

    Args:
        convention: how the mask is given: info, method, list, obs, or none of them.
        strict: raise where an action is illegal.
        start: of the action space.
        dict_obs: t is in a Dict.
        **fault: as for `Guest`.
    """

    def __init__(self, convention="info", strict=False, start=0, dict_obs=False, **fault):
        super().__init__(**fault)
        self.convention, self.strict, self.start, self.dict_obs = convention, strict, start, dict_obs
        self.action_space, t = spaces.Discrete(3, start=start), spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.observation_space = spaces.Dict(t=t) if dict_obs else t
        if convention == "obs":
            self.observation_space = spaces.Dict(t=t, action_mask=spaces.MultiBinary(3))
        if convention == "method":
            self.action_masks = self.mask
        if convention == "list":
            self.get_available_actions = self.available

    def mask(self):
        right = np.zeros(3, np.int8)
        right[self.t % 3] = 1
        return self.given("mask", self.same("mask", right))

    def available(self):
        return self.given("mask", [self.start + self.t % 3])

    def look(self):
        t = np.array([self.t], np.float32)
        obs = {"t": t} if self.dict_obs or self.convention == "obs" else t
        if self.convention == "obs":
            obs["action_mask"] = self.mask()
        return obs, {"action_mask": self.mask()} if self.convention == "info" else {}

    def play(self, action):
        legal = int(action) - self.start == self.t % 3
        LOG.append(("step", self.t, int(action), legal))
        if self.strict and not legal:
            raise RuntimeError(f"door {action} is closed")
        return 1.0


class Owned(Doors):
    """Doors whose `action_masks` is a property."""

    @property
    def action_masks(self):
        return self.mask()


class Painted(Doors):
    """Doors with a renderer; `picture` is an expression of what it gives, `needs` one that its making evaluates."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 1}

    def __init__(self, picture="np.zeros((8, 8, 3), np.uint8)", needs="0", render_mode=None, **kwargs):
        super().__init__(**kwargs)
        self.picture, self.render_mode = picture, render_mode
        if render_mode:
            eval(str(needs))

    def render(self):
        return eval(str(self.picture))


class Unpainted(Doors):
    """Says that it renders, and takes no `render_mode`."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 1}


class Seedless(Doors):
    """As environments were written once: `reset()` takes nothing."""

    def reset(self):
        return super().reset()


class Spaces(Guest):
    """Any action space; each step earns a point if the action is a member of it. The mask allows everything.

    Args:
        space: an expression of the action space.
        mask: an expression of the mask, where `n` is its flat length; "" for none.
        **fault: as for `Guest`.
    """

    observation_space = spaces.Box(0, 1, (1,), np.float32)

    def __init__(self, space="spaces.Discrete(2)", mask="np.ones(n, np.int8)", **fault):
        super().__init__(**fault)
        self.action_space, self.mask = eval(space), mask
        sizes = getattr(self.action_space, "nvec", getattr(self.action_space, "n", 1))
        binary = isinstance(self.action_space, spaces.MultiBinary)
        self.n = 2 * int(np.prod(self.action_space.shape)) if binary else int(np.sum(sizes))

    def look(self):
        info = {"action_mask": eval(self.mask, globals(), {"n": self.n})} if self.mask else {}
        return np.zeros(1, np.float32), info

    def play(self, action):
        member = bool(self.action_space.contains(action))
        LOG.append(("action", type(action).__name__, np.asarray(action).tolist(), member))
        return float(member)


class Seen(Guest):
    """Any observation space; what is seen is a sample of it, or an expression. Two actions, both legal."""

    action_space = spaces.Discrete(2)

    def __init__(self, space="spaces.Discrete(5)", obs=None, **fault):
        super().__init__(**fault)
        self.observation_space, self.shown = eval(space), obs
        self.observation_space.seed(0)

    def look(self):
        obs = eval(self.shown) if isinstance(self.shown, str) else self.shown
        return self.observation_space.sample() if obs is None else obs, {"action_mask": np.ones(2, np.int8)}

    def play(self, action):
        return 1.0


class Sets(Guest):
    """Three places for an entity, one of them taken; it tells which of three actions earns a point.

    Args:
        first: it stands in place 0; else there is nobody, ever.
        goal: what tells is a key beside the entities, which are noise.
        space: an expression of another observation space.
        **fault: as for `Guest`.
    """

    action_space = spaces.Discrete(3)

    def __init__(self, first=False, goal=False, space=None, **fault):
        super().__init__(**fault)
        self.first, self.goal = first, goal
        parts = {"entities": spaces.Box(-np.inf, np.inf, (3, 3), np.float32), "entity_mask": spaces.MultiBinary(3)}
        parts |= {"goal": spaces.Box(0, 1, (3,), np.float32)} if goal else {}
        self.observation_space = eval(space) if space else spaces.Dict(parts)

    def look(self):
        self.right, place = int(self.np_random.integers(3)), 0 if self.first else int(self.np_random.integers(1, 3))
        entities, present = np.zeros((3, 3), np.float32), np.zeros(3, np.int8)
        entities[place], present[place] = self.np_random.random(3) if self.goal else np.eye(3)[self.right], 1
        names = {"entities": entities, "entity_mask": present} | ({"goal": np.eye(3, dtype=np.float32)[self.right]}
                                                                  if self.goal else {})  # fmt: skip
        names = {key: self.given(key, value) for key, value in names.items()}
        return names, {"action_mask": np.ones(3, np.int8)}

    def play(self, action):
        return float(action == self.right)


class Rows(Sets):
    """`Sets` as a matrix whose first column says who is there."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.observation_space = spaces.Box(-np.inf, np.inf, (3, 4), np.float32)

    def look(self):
        obs, info = super().look()
        return np.concatenate([obs["entity_mask"][:, None], obs["entities"]], axis=1, dtype=np.float32), info


class Lamps(Guest):
    """A map of 2 x 2 cells with lamps on its diagonal; at time t each may only be set to t % 3."""

    observation_space = spaces.Box(-np.inf, np.inf, (1, 2, 2), np.float32)

    def __init__(self, space="spaces.MultiDiscrete(np.full((2, 2), 3))", **fault):
        super().__init__(**fault)
        self.action_space = eval(space)

    def look(self):
        agents = self.given("agent_mask", np.eye(2, dtype=np.int8))
        legal = np.zeros((3, 2, 2), np.int8)
        legal[self.t % 3] = 1
        info = {"agent_mask": agents, "action_mask": self.given("mask", legal)}
        info = {key: value for key, value in info.items() if value is not None}
        return np.full((1, 2, 2), self.t, np.float32), info

    def play(self, action):
        legal = bool((np.diag(action) == self.t % 3).all())
        LOG.append(("step", self.t, np.asarray(action).tolist(), legal))
        LOG.append(("action", type(action).__name__, np.asarray(action).tolist(), self.action_space.contains(action)))
        return 1.0


class Batched(VectorEnv):
    """A vector environment as somebody writes it: three doors for each of N, episodes of six steps, one kept info.

    Args:
        num_envs: N.
        lacks: a key that its infos do not have: _action_mask, final_info, final_obs or action_mask.
        mode: of the automatic reset.
    """

    single_action_space, single_observation_space = spaces.Discrete(3), spaces.Box(0, 9, (1,), np.float32)

    def __init__(self, num_envs=1, lacks=None, mode="SAME_STEP"):
        self.num_envs, self.lacks, self.t, self.infos = num_envs, lacks, 0, {}
        self.metadata = {"autoreset_mode": AutoresetMode[mode]}
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, num_envs)
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.obs, self.all = np.zeros((num_envs, 1), np.float32), np.ones(num_envs, bool)

    def masks(self, t):
        masks = np.zeros((self.num_envs, 3), np.int8)
        masks[:, t % 3] = 1
        return {"action_mask": masks, "_action_mask": self.all}

    def seen(self):
        self.obs[:] = self.t
        self.infos.update(self.masks(self.t))
        self.infos.pop(self.lacks, None)
        return self.obs, self.infos

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return self.seen()

    def step(self, actions):
        LOG.extend(("step", self.t, int(a), int(a) == self.t % 3) for a in actions)
        self.t += 1
        ended, self.infos = np.full(self.num_envs, self.t == 6), {}
        if self.t == 6:
            self.infos |= {"final_obs": np.full_like(self.obs, 6.0), "final_info": self.masks(6)}
            self.t = 0
        return *self.seen()[:1], np.ones(self.num_envs), ended, np.zeros_like(ended), self.infos


class Renumbered(gym.ActionWrapper):
    """Turns the order of the actions round, between us and whoever gives the mask."""

    def action(self, action):
        return 2 - action


def renumbered(**kwargs):
    return Renumbered(Doors(**kwargs))


class Learnt(gym.wrappers.NormalizeObservation):
    """Doors seen through Gymnasium's wrapper, which learns statistics inside of the environment."""

    def __init__(self, **kwargs):
        super().__init__(Doors(**kwargs))


for kind in (Doors, Owned, Painted, Unpainted, Seedless, Spaces, Seen, Sets, Rows, Lamps, Learnt):
    gym.register(f"Guests/{kind.__name__}-v0", kind)
gym.register("Guests/Renumbered-v0", renumbered)
gym.register("Guests/Batched-v0", vector_entry_point=Batched)
