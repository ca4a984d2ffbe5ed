"""Small environments whose right answers are known; importing this registers them."""

import gymnasium as gym
import numpy as np


class Switches(gym.Env):
    """Three switches, one of them stuck and shown; a point for each that is on. Nested observations."""

    observation_space = gym.spaces.Tuple((gym.spaces.Discrete(3), gym.spaces.Dict(t=gym.spaces.Box(0, 1, (1,)))))

    def __init__(self, kind):
        self.action_space = gym.spaces.MultiBinary(3) if kind == "binary" else gym.spaces.MultiDiscrete([2, 2, 2])

    def seen(self):
        self.stuck = int(self.np_random.integers(3))
        mask = np.ones((3, 2), np.int8)
        mask[self.stuck, 1] = 0  # "may be 0", "may be 1" for each
        return (self.stuck, {"t": np.array([self.count / 8], np.float32)}), {"action_mask": mask.ravel()}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return self.seen()

    def step(self, action):
        assert self.action_space.contains(np.asarray(action, self.action_space.dtype))
        points = float(np.sum(action)) * (action[self.stuck] == 0)
        self.count += 1
        obs, info = self.seen()
        return obs, points, self.count == 8, False, info


gym.register("Test/Switches-v0", Switches, disable_env_checker=True)


class Treadmill(gym.Env):
    """Reward 1 for ever, cut into pieces of four steps: truncation, so that every state is worth 1 / (1 - gamma)."""

    observation_space, action_space = gym.spaces.Box(0, 1, (2,)), gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return np.array([0.0, 1.0], np.float32), {"action_mask": np.ones(2, np.int8)}

    def step(self, action):
        self.count += 1
        obs, info = np.array([self.count / 4, 1.0], np.float32), {"action_mask": np.ones(2, np.int8)}
        return (
            obs,
            1.0,
            self.cut == "termination" and self.count == 4,
            self.cut == "truncation" and self.count == 4,
            info,
        )

    def __init__(self, cut):
        self.cut = cut


gym.register("Test/Treadmill-v0", Treadmill)


class Wheel(gym.Env):
    """Eight states in a circle, 10 for passing the last; a piece starts anywhere and is truncated after four steps."""

    observation_space, action_space = gym.spaces.Discrete(8), gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state, self.count = int(self.np_random.integers(8)), 0
        return self.state, {"action_mask": np.ones(2, np.int8)}

    def step(self, action):
        reward = 10.0 * (self.state == 7)
        self.state, self.count = (self.state + 1) % 8, self.count + 1
        return self.state, reward, False, self.count == 4, {"action_mask": np.ones(2, np.int8)}


gym.register("Test/Wheel-v0", Wheel)


class Screenless(Wheel):
    """Says that it renders, and cannot."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 1}

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def render(self):
        raise RuntimeError("there is no screen")


gym.register("Test/Screenless-v0", Screenless)


class Apples(gym.Env):
    """Three apples, some of them there; the one to pick is the ripest. Absent ones hold NaN."""

    observation_space = gym.spaces.Dict(
        entities=gym.spaces.Box(-np.inf, np.inf, (3, 1), np.float32), entity_mask=gym.spaces.MultiBinary(3)
    )
    action_space = gym.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return self.seen()

    def seen(self):
        self.there = self.np_random.random(3) < 0.5
        self.there[self.np_random.integers(3)] = True
        self.ripe = np.where(self.there, self.np_random.random(3), np.nan).astype(np.float32)
        mask = self.there.astype(np.int8)
        return {"entities": self.ripe[:, None], "entity_mask": mask}, {"action_mask": mask}

    def step(self, action):
        reward = float(action == np.nanargmax(self.ripe))
        self.count += 1
        obs, info = self.seen()
        return obs, reward, self.count == 8, False, info


gym.register("Test/Apples-v0", Apples, disable_env_checker=True)


class Lights(gym.Env):
    """Lamps on some cells of a map, each to be switched on; none of them, at times. A broken one has to stay off."""

    observation_space = gym.spaces.Box(0, 1, (2, 3, 4), np.uint8)
    action_space = gym.spaces.MultiDiscrete(np.full((3, 4), 2))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return self.seen()

    def seen(self):
        lamps = self.np_random.random((3, 4)) < self.np_random.choice([0.0, 0.5])
        broken = lamps & (self.np_random.random((3, 4)) < 0.3)
        self.lit = lamps & ~broken
        info = {"agent_mask": lamps.astype(np.int8), "action_mask": np.stack([lamps, self.lit]).astype(np.int8)}
        return np.stack([lamps, broken]).astype(np.uint8), info

    def step(self, action):
        reward = float((action[self.lit] == 1).mean()) if self.lit.any() else 0.0
        self.count += 1
        obs, info = self.seen()
        return obs, reward, False, self.count == 8, info


gym.register("Test/Lights-v0", Lights, disable_env_checker=True)


class Spot(gym.Env):
    """A picture (1, 6, 6) with a bright spot in one of four quarters, which is to be named; another one is illegal."""

    observation_space, action_space = gym.spaces.Box(0, 255, (1, 6, 6), np.uint8), gym.spaces.Discrete(4)

    def seen(self):
        self.quarter = int(self.np_random.integers(4))
        picture, mask = self.np_random.integers(0, 60, (1, 6, 6)).astype(np.uint8), np.ones(4, np.int8)
        y, x = 3 * np.array(divmod(self.quarter, 2)) + self.np_random.integers(3, size=2)
        picture[0, y, x] = 255
        mask[(self.quarter + self.np_random.integers(1, 4)) % 4] = 0
        return picture, {"action_mask": mask}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return self.seen()

    def step(self, action):
        reward = float(action == self.quarter)
        self.count += 1
        obs, info = self.seen()
        return obs, reward, self.count == 8, False, info


gym.register("Test/Spot-v0", Spot, disable_env_checker=True)


class Signs(gym.Env):
    """One sign names the right one of three doors, in the first of four places or, without `own`, in any other."""

    observation_space = gym.spaces.Dict(
        entities=gym.spaces.Box(0, 1, (4, 3), np.float32), entity_mask=gym.spaces.MultiBinary(4)
    )
    action_space = gym.spaces.Discrete(3)

    def __init__(self, own=False):
        self.own = own

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return self.seen()

    def seen(self):
        self.door, place = int(self.np_random.integers(3)), 0 if self.own else int(self.np_random.integers(1, 4))
        obs = {"entities": np.zeros((4, 3), np.float32), "entity_mask": np.zeros(4, np.int8)}
        obs["entities"][place, self.door], obs["entity_mask"][place] = 1, 1
        return obs, {"action_mask": np.ones(3, np.int8)}

    def step(self, action):
        reward = float(action == self.door)
        self.count += 1
        obs, info = self.seen()
        return obs, reward, self.count == 6, False, info


gym.register("Test/Signs-v0", Signs, disable_env_checker=True)


class Bells(Signs):
    """A bell, of no place, names the right door; a sign, if there is one, says how many doors further it is."""

    observation_space = gym.spaces.Dict(bell=gym.spaces.Discrete(3), **Signs.observation_space.spaces)

    def seen(self):
        obs, info = super().seen()
        obs["bell"], shift = int(self.np_random.integers(3)), self.door
        if self.np_random.random() < 0.5:
            obs["entity_mask"][:], shift = 0, 0
        self.door = (obs["bell"] + shift) % 3
        return obs, info


gym.register("Test/Bells-v0", Bells, disable_env_checker=True)


class Orders(Apples):
    """The ripest apple is to be picked or the greenest, as the order says."""

    observation_space = gym.spaces.Dict(ripest=gym.spaces.Discrete(2), **Apples.observation_space.spaces)

    def seen(self):
        obs, info = super().seen()
        obs["ripest"] = int(self.np_random.integers(2))
        if not obs["ripest"]:
            self.ripe = -self.ripe
        return obs, info


gym.register("Test/Orders-v0", Orders, disable_env_checker=True)
