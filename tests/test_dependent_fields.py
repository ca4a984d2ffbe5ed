"""Fields that depend on each other: effective masks are the joint distribution, whoever gives them."""

import itertools
from enum import IntEnum

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from envs import BatchedEnv, register_batched
from envs.constraints import In, Mask, MaskFunction, next_mask
from envs.episodes import evaluate
from envs.make import make_vec
from envs.masks import choose
from ppo_action_mask import CategoricalMasked

SIZES = [(4, 5), (2, 2), (3, 4, 2), (2, 3, 2, 4)]


def table(nvec, seed=0):
    """A joint mask with some legal tuples, some values of each field never legal; and logits."""
    rng = np.random.default_rng(seed)
    joint = rng.random(nvec) < 0.3
    joint[tuple(rng.integers(nvec))] = True
    return joint.astype(np.int8), rng.normal(size=sum(nvec)).astype(np.float32)


def path_masks(joint, action):
    """The effective mask (sum(nvec),) of an action, written out."""
    parts = []
    for k in range(joint.ndim):
        rest = joint[action[:k]]
        parts.append(rest.reshape(len(rest), -1).any(1))
    return np.concatenate(parts)


def joint_probabilities(joint, logits):
    """Of all tuples, from the conditionals, written out in float64."""
    nvec, probabilities = joint.shape, {}
    for action in itertools.product(*map(range, nvec)):
        p, mask = 1.0, path_masks(joint, action).astype(float)
        cuts = np.cumsum(nvec)[:-1]
        for a, z, m in zip(action, np.split(logits, cuts), np.split(mask, cuts), strict=True):
            weights = np.exp(z.astype(float)) * m
            p *= weights[a] / weights.sum() if m[a] else 0.0
            if p == 0:
                break
        probabilities[action] = p
    return probabilities


@pytest.mark.parametrize("nvec", SIZES)
def test_the_masked_log_probability_under_effective_masks_is_the_joint_one(nvec):
    joint, logits = table(nvec)
    expected = joint_probabilities(joint, logits)
    legal = [action for action in expected if joint[action]]
    masks = torch.from_numpy(np.array([path_masks(joint, action) for action in legal]))
    dist = CategoricalMasked(torch.from_numpy(logits).expand(len(legal), -1), masks, nvec)
    probabilities = dist.log_prob(torch.tensor(legal)).exp()
    torch.testing.assert_close(probabilities, torch.tensor([expected[a] for a in legal], dtype=torch.float32))
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-5)
    assert all(p == 0 for action, p in expected.items() if not joint[action])
    # The mean entropy of the paths is the joint entropy: the chain rule.
    p = torch.tensor([expected[a] for a in legal], dtype=torch.float64)
    assert (p * dist.entropy()).sum().item() == pytest.approx(-(p * p.log()).sum().item(), abs=1e-5)


def test_gradients_are_those_of_the_flat_joint_categorical_with_the_same_conditionals():
    joint, logits = table((4, 5), seed=1)
    first, second = torch.from_numpy(logits).double().split((4, 5))
    mask = torch.from_numpy(joint).bool()
    one = torch.where(mask.any(1), first, -torch.inf).requires_grad_()
    two = second.clone().requires_grad_()
    conditional = torch.where(mask, two, -1e30).log_softmax(1)
    flat = (one.log_softmax(0)[:, None] + conditional)[mask]  # over legal tuples, whose mass is 1
    for i, action in enumerate(mask.nonzero().tolist()):
        expected = torch.autograd.grad(flat[i], [one, two], retain_graph=True)
        z = torch.from_numpy(logits).double().requires_grad_()
        effective = torch.from_numpy(path_masks(joint, tuple(action)))
        CategoricalMasked(z[None], effective[None], (4, 5)).log_prob(torch.tensor([action])).backward()
        legal = torch.cat([mask.any(1), torch.ones(5, dtype=torch.bool)])
        torch.testing.assert_close(z.grad[legal], torch.cat(expected).nan_to_num()[legal])
        assert (z.grad[~legal] == 0).all()


class Locks(gym.Env):
    """A joint mask, in one of the ways to give it; the reward is 1 for the tuple that was drawn."""

    observation_space = spaces.Discrete(3)

    def __init__(self, way="joint", nvec=(3, 4), start=0):
        self.nvec, self.way = nvec, way
        self.action_space = spaces.MultiDiscrete(nvec, start=[start] * len(nvec))
        self.tables = np.array([table(nvec, seed)[0] for seed in range(3)])
        if way == "method":
            self.field_mask = self.mask_after

    def mask_after(self, chosen):
        rest = self.tables[self.state][tuple(c - self.action_space.start[0] for c in chosen)]
        return rest.reshape(len(rest), -1).any(1)

    def seen(self):
        self.state = int(self.np_random.integers(3))
        return self.state, {"action_mask": self.tables[self.state]} if self.way == "joint" else {}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return self.seen()

    def step(self, action):
        assert self.action_space.contains(action)
        legal = self.tables[self.state][tuple(action - self.action_space.start)]
        self.count += 1
        obs, info = self.seen()
        return obs, float(legal), self.count == 4, False, info


gym.register("Test/Locks-v0", Locks, disable_env_checker=True)


@pytest.mark.parametrize("async_envs", [False, True])
@pytest.mark.parametrize("way, start, nvec", [
    ("joint", 0, (3, 4)), ("joint", 0, (2, 3, 2)),
    ("method", 0, (3, 4)), ("method", 2, (3, 4)), ("method", 0, (2, 3, 2)),
])  # fmt: skip
def test_joint_masks_and_methods_are_asked_field_by_field(way, start, nvec, async_envs):
    kwargs = {"way": way, "start": start, "nvec": nvec}
    envs, rng = make_vec("Test/Locks-v0", 5, kwargs, async_envs, dependent=True), np.random.default_rng(0)
    obs, infos = envs.reset(seed=0)
    tables = Locks(nvec=nvec).tables
    for _ in range(12):
        states = obs.argmax(1)
        scores = rng.gumbel(size=(5, sum(nvec)))
        actions = choose(scores, infos["action_mask"], envs.nvec, envs.field_mask)
        assert all(tables[s][tuple(a)] for s, a in zip(states, actions, strict=True))
        expected = [path_masks(tables[s], tuple(a)) for s, a in zip(states, actions, strict=True)]
        np.testing.assert_array_equal(envs.path_mask(actions), expected)
        assert not envs.illegal(actions, envs.path_mask(actions)).any()
        obs, rewards, _, _, infos = envs.step(actions)
        assert (rewards == 1).all()
    anything = rng.integers(nvec, size=(5, len(nvec)))
    legal = [bool(tables[s][tuple(a)]) for s, a in zip(obs.argmax(1), anything, strict=True)]
    assert (~envs.illegal(anything, envs.path_mask(anything))).tolist() == legal
    envs.close()


def test_samples_have_the_joint_distribution():
    joint, logits = table((3, 4), seed=2)
    expected, n = joint_probabilities(joint, logits), 20_000
    rng = np.random.default_rng(0)
    scores = logits + rng.gumbel(size=(n, 7))

    def field_mask(chosen):
        return joint.any(1)[None].repeat(n, 0) if chosen.shape[1] == 0 else joint[chosen[:, 0]]

    actions = choose(scores, np.ones((n, 7)), np.array([3, 4]), field_mask)
    counts = np.zeros((3, 4))
    np.add.at(counts, tuple(actions.T), 1)
    p = np.array([expected[a] for a in np.ndindex(3, 4)]).reshape(3, 4)
    assert (counts[p == 0] == 0).all()
    chi2 = ((counts - n * p)[p > 0] ** 2 / (n * p[p > 0])).sum()
    assert chi2 < 3 * (p > 0).sum() + 10  # its mean is the number of tuples less one


Kind, Way = IntEnum("Kind", {"WAIT": 3, "MOVE": 7}), IntEnum("Way", {"UP": 1, "DOWN": 2, "LEFT": 5})
FIELDS = {"kind": Kind, "way": Way}


def test_a_field_that_does_not_count_has_one_legal_entry_no_entropy_and_no_gradient():
    def ways(obs, chosen):
        return {"way": In(Way, counts=chosen["kind"] == Kind.MOVE)} if chosen else {"kind": Mask([1, 1])}

    masks = next_mask(ways, None, FIELDS, np.array([[0], [1]]))
    assert masks.tolist() == [[1, 0, 0], [1, 1, 1]]
    logits = torch.randn(2, 5, requires_grad=True)
    effective = torch.from_numpy(np.concatenate([np.ones((2, 2)), masks], axis=1)).bool()
    dist = CategoricalMasked(logits, effective, (2, 3))
    kinds = CategoricalMasked(logits[:1, :2], torch.ones(1, 2, dtype=torch.bool))
    assert dist.log_prob(torch.tensor([[0, 0], [1, 2]]))[0] == kinds.log_prob(torch.tensor([0]))
    assert dist.entropy()[0] == kinds.entropy()
    (dist.log_prob(torch.tensor([[0, 0], [1, 2]])) + dist.entropy()).sum().backward()
    assert (logits.grad[0, 2:] == 0).all() and (logits.grad[1, 2:] != 0).all()


@pytest.mark.parametrize("function, words", [
    (lambda obs, chosen: {"kind": In([3, 7])} if chosen["way"] else {}, "reads field 'way', which is not chosen yet"),
    (lambda obs, chosen: {"way": In([1])}, r"Asked for field 'kind'.*constrains \['way'\]; expected 'kind' only"),
    (lambda obs, chosen: {"kind": In([])}, "Environment 0: the constraint In on field 'kind' leaves no legal value"),
    (lambda obs, chosen: In([3]), "returns a dict of field names"),
])  # fmt: skip
def test_what_a_mask_function_of_two_arguments_does_wrong_is_named(function, words):
    with pytest.raises((ValueError, TypeError), match=words):
        next_mask(function, None, FIELDS, np.zeros((2, 0), int))


class Orders(gym.Env):
    """Observations say which ways are open; only moves have a way. It takes the enumerations' own values."""

    observation_space, action_space = (
        spaces.MultiBinary(3),
        spaces.Dict(kind=spaces.Discrete(9), way=spaces.Discrete(9)),
    )

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.open = np.array([1, 0, 1], np.int8)
        return self.open, {}

    def step(self, action):
        self.got = dict(action)
        return self.open, 0.0, False, False, {}


def declared():
    def ways(obs, chosen):
        return {"way": Mask(obs, counts=chosen["kind"] == Kind.MOVE)} if chosen else {}

    return MaskFunction(Orders(), FIELDS, ways)


gym.register("Test/Declared-v0", declared, disable_env_checker=True)


@pytest.mark.parametrize("async_envs", [False, True])
def test_a_declared_mask_of_a_single_environment_is_asked_field_by_field(async_envs):
    envs = make_vec("Test/Declared-v0", 2, async_envs=async_envs, dependent=True)
    envs.reset(seed=0)
    masks = envs.path_mask(np.array([[0, 0], [1, 2]]))
    assert masks.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 0, 1]]
    envs.step(np.array([[0, 0], [1, 2]]))
    assert [got["kind"] for got in envs.env.get_attr("got")] == [3, 7]
    assert envs.env.get_attr("got")[1]["way"] == 5
    envs.close()


def test_bins_whose_orientations_depend_on_the_bin():
    envs, rng = make_vec("Masked/BinPlacement-v0", 64, {"dependent": True}, dependent=True), np.random.default_rng(0)
    envs.reset(seed=0)
    world, total = envs.env.unwrapped, np.zeros(64)
    for _ in range(32):
        fits, actions = world._fits(np.arange(64)), world.best_actions()
        masks = envs.path_mask(actions)
        np.testing.assert_array_equal(masks[:, :7], fits.any(2))
        expected = np.where(actions[:, :1] == 0, [1, 0], fits[np.arange(64), actions[:, 0]])
        np.testing.assert_array_equal(masks[:, 7:], expected)
        drawn = choose(rng.gumbel(size=(64, 9)), envs.last_mask, envs.nvec, envs.field_mask)
        assert fits[np.arange(64), *drawn.T].all() and not envs.illegal(drawn, envs.path_mask(drawn)).any()
        _, rewards, *_, infos = envs.step(actions)
        assert (rewards > 0).all()
        total += rewards
    np.testing.assert_allclose(infos["final_info"]["optimal_return"], total)


def test_other_scripts_refuse_fields_that_depend_on_each_other():
    for env_id, kwargs in (("Masked/BinPlacement-v0", {"dependent": True}), ("Test/Locks-v0", {"way": "joint"})):
        with pytest.raises(ValueError, match="ppo_action_mask.py chooses field by field, this script does not"):
            make_vec(env_id, 2, kwargs).reset(seed=0)


def test_dead_ends_and_joint_masks_that_cannot_be_meant_are_named():
    envs = make_vec("Test/Locks-v0", 2, {"way": "method"}, dependent=True)
    envs.reset(seed=0)
    envs.env.envs[0].unwrapped.tables[:] = 1
    envs.env.envs[1].unwrapped.tables[:, 0] = 0
    with pytest.raises(ValueError, match="Environment 1: the action mask leaves no legal action|after the choices"):
        envs.field_mask(np.array([[1], [0]]))
    with pytest.raises(ValueError, match="joint action mask of 1,210,000 entries.*field_mask.chosen.*MaskFunction"):
        make_vec("Test/Locks-v0", 1, {"nvec": (1100, 1100)}, dependent=True).reset(seed=0)
    with pytest.raises(ValueError, match=r"Environment 0: the action mask has shape \(3, 5\)"):
        envs = make_vec("Test/Locks-v0", 1, {}, dependent=True)
        envs.env.envs[0].unwrapped.tables = np.ones((3, 3, 5), np.int8)
        envs.reset(seed=0)


@pytest.mark.parametrize("fill, free", [(None, [1, 0]), (0, [1, 1]), (2, [1, 1])])
def test_a_joint_mask_that_is_missing_or_broken_stops_nobody_who_plays_without(fill, free):
    envs = make_vec("Test/Locks-v0", 2, require_mask=False, dependent=True)
    missing, there = (one.unwrapped for one in envs.env.envs)
    missing.state, missing.seen = 0, lambda: (0, {})
    there.tables = there.tables * 0 + fill if fill is not None else there.tables
    envs.reset(seed=0)
    for _ in range(3):
        actions = np.argwhere(there.tables[there.state] != 1)[[0, 0]]
        legal = ~envs.illegal(actions, envs.path_mask(actions))
        assert legal.tolist() == free
        envs.step(actions)
    envs = make_vec("Test/Locks-v0", 2, dependent=True)
    envs.env.envs[0].unwrapped.seen = missing.seen
    with pytest.raises(ValueError, match="Environment 0: no action mask was given"):
        envs.reset(seed=0)


def test_stricter_masks_are_stricter_where_fields_depend_on_each_other():
    """With one choice left in each field the luck of the mask decides, and legally."""

    def play(obs, mask, started, field_mask):
        return choose(np.tile(np.arange(9.0), (len(mask), 1)), mask, np.array([7, 2]), field_mask)

    scores = []
    for drop in (0.0, 1.0):
        envs = make_vec("Masked/BinPlacement-v0", 16, {"dependent": True}, dependent=True)
        scores.append(evaluate(play, envs, episodes=32, max_steps=100, drop=drop))
    assert scores[0]["illegal_rate"] == scores[1]["illegal_rate"] == 0
    assert scores[0]["episodic_return"] != scores[1]["episodic_return"]


class Pins(BatchedEnv):
    """Two pins; which pairs may be set is another joint mask in each of seven states, drawn at random."""

    state_arrays = ("state",)

    def __init__(self, num_envs, render_mode=None):
        super().__init__(num_envs, spaces.Discrete(7), spaces.MultiDiscrete([3, 4]), 50, render_mode)
        self.tables = np.stack([table((3, 4), seed)[0] for seed in range(7)])
        self.state = np.zeros(num_envs, np.int64)

    def _reset_rows(self, rows):
        self.state[rows] = (self._uniform(rows) * 7).astype(int)

    def _advance(self, actions):
        self.state[:] = (self._uniform(self._rows) * 7).astype(int)
        return np.zeros(self.num_envs), np.zeros(self.num_envs, bool)

    def _observe(self, rows):
        return self.state[rows].copy()

    def _info(self, rows):
        return {"action_mask": self.tables[self.state[rows]]}


register_batched("Test/Pins-v0", Pins)


def legal_by_field(envs):
    """The first field's mask, and that of the second after each environment's first legal choice."""
    first = envs.field_mask(np.zeros((envs.num_envs, 0), int))
    return first.tolist(), envs.field_mask(first.argmax(1)[:, None]).tolist()


@pytest.mark.parametrize("env_id, kwargs", [("Test/Pins-v0", {}), ("Masked/BinPlacement-v0", {"dependent": True})])
def test_a_state_that_is_restored_has_its_own_masks_of_later_fields(env_id, kwargs):
    envs, others = (make_vec(env_id, 6, kwargs, dependent=True) for _ in range(2))
    envs.reset(seed=0), others.reset(seed=1)
    for _ in range(3):
        actions = choose(np.zeros((6, envs.nvec.sum())), envs.last_mask, envs.nvec, envs.field_mask)
        envs.step(actions)
    state, expected = envs.get_state(), legal_by_field(envs)
    assert legal_by_field(others) != expected
    others.set_state(state)
    assert legal_by_field(others) == expected


def test_a_single_environment_that_is_restored_has_its_own_masks_of_later_fields():
    one, other = (gym.make("Masked/BinPlacement-v0", dependent=True) for _ in range(2))
    one.reset(seed=0), other.reset(seed=1)
    other.unwrapped.set_state(one.unwrapped.get_state())
    for way in range(one.action_space.nvec[0]):
        if one.unwrapped.field_mask(())[way]:
            assert one.unwrapped.field_mask((way,)).tolist() == other.unwrapped.field_mask((way,)).tolist()
