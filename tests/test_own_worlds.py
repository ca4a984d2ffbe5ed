"""Worlds that their users wrote as a `BatchedEnv` or as a guest: what they keep, declare and cannot save."""

from enum import IntEnum

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from script import checkpoint
from test_runs import FLAGS, PPO
from test_scripts import main

from envs import BatchedEnv, In, MaskFunction, register_batched
from envs.episodes import evaluate
from envs.make import make_vec


class Walk(BatchedEnv):
    """Two steps, a point at the end. Its figures are state that a new episode clears, of the type that `kind` says."""

    state_arrays = ("reward", "done")

    def __init__(self, num_envs, kind="bool", render_mode=None):
        box = spaces.Box(0, 9, (1,), np.int8 if kind == "floats" else np.float32)
        super().__init__(num_envs, box, spaces.Discrete(2), 5, render_mode)
        self.kind, self.reward, self.done = kind, np.zeros(num_envs), np.zeros(num_envs, bool)
        self.done = self.done.astype(np.int8) if kind == "int8" else self.done
        if kind == "typo":
            self.state_arrays = ("rewrad",)
        if kind == "scalar":
            self.state_arrays, self.level = (*Walk.state_arrays, "level"), np.float64(2)
        if kind == "drifts":  # from whole numbers to floats
            self.state_arrays, self.level = (*Walk.state_arrays, "level"), np.zeros(num_envs, np.int64)

    def _reset_rows(self, rows):
        self.reward[rows], self.done[rows] = 0, 0

    def _advance(self, actions):
        self.reward[:] = self.elapsed == 1
        self.done[:] = self.elapsed == 1
        return (self.reward[:, None] if self.kind == "column" else self.reward), self.done

    def _observe(self, rows):
        seen = self.elapsed[rows, None].astype(np.float32)
        return np.repeat(seen, 2, axis=1) if self.kind == "wide" else seen

    def _info(self, rows):
        return {"action_mask": np.ones((len(rows), 2), np.int8)}


register_batched("Test/Walk-v0", Walk)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("kind", ["bool", "int8"])
def test_a_world_may_keep_rewards_and_terminations_in_state(kind):
    envs = make_vec("Test/Walk-v0", 3, {"kind": kind})
    envs.reset(seed=0)
    steps = [envs.step(np.zeros(3, int)) for _ in range(4)]
    assert [rewards.tolist() for _, rewards, *_ in steps] == [[0] * 3, [1] * 3] * 2
    assert [terminations.tolist() for _, _, terminations, *_ in steps] == [[False] * 3, [True] * 3] * 2
    assert envs.ended["episodic_length"] == [2] * 6 and envs.ended["episodic_return"] == [1] * 6


def test_state_that_became_another_type_is_restored_as_it_was():
    envs, later = (make_vec("Test/Walk-v0", 3, {"kind": "drifts"}) for _ in range(2))
    later.reset(seed=0)
    envs.reset(seed=0)
    envs.unwrapped.level = envs.unwrapped.level + 0.75
    later.set_state(envs.get_state())
    assert later.unwrapped.level.tolist() == [0.75] * 3
    with pytest.raises(ValueError, match=r"elapsed has shape \(2,\), and was saved with \(3,\)"):
        make_vec("Test/Walk-v0", 2).unwrapped.set_state(envs.unwrapped.get_state())


def test_figures_of_another_shape_are_refused():
    envs = make_vec("Test/Walk-v0", 3, {"kind": "column"})
    envs.reset(seed=0)
    with pytest.raises(ValueError, match=r"_advance\(\) of Walk gives rewards \(3, 1\) and terminations \(3,\); exp"):
        envs.step(np.zeros(3, int))


def test_observations_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"Observations have the shape \(3, 2\); expected 3 rows of Box"):
        make_vec("Test/Walk-v0", 3, {"kind": "wide"}).reset(seed=0)


def test_floats_in_a_space_of_whole_numbers_are_refused_before_a_buffer_cuts_them():
    with pytest.raises(ValueError, match=r"Observations are float32, and their space is Box\(0, 9, \(1,\), int8\)"):
        make_vec("Test/Walk-v0", 3, {"kind": "floats"}).reset(seed=0)


@pytest.mark.parametrize("kind, words", [
    ("typo", "'Walk' object has no attribute 'rewrad'"),
    ("scalar", "'float' object has no attribute 'shape'"),
])  # fmt: skip
def test_state_that_cannot_be_saved_or_restored_is_refused_before_the_training(kind, words, tmp_path):
    with pytest.raises(ValueError, match=rf"get_state\(\) and set_state\(\) of .*Walk.* fail: .*{words}.*Expected di"):
        main(PPO, *FLAGS, "--env-id", "Test/Walk-v0", "--env-kwargs", "kind", kind)
    assert not (tmp_path / "runs").exists()


class Corridor(gym.Env):
    """Three steps, a point at the end; every other episode knows that it is the best one."""

    observation_space, action_space = spaces.Box(0, 9, (1,)), spaces.Discrete(2)
    uses = 3  # its own
    episodes = 0

    def get_state(self):
        """As other interfaces have it, and nothing that restores it."""
        return "here"

    def reset(self, **anything):
        super().reset(seed=anything.get("seed"))
        self.count, self.first = 0, self.np_random.random()
        return np.full(1, self.first, np.float32), {"action_mask": np.ones(2, np.int8)}

    def step(self, action):
        self.count += 1
        ended = self.count == 3
        Corridor.episodes += ended
        known = {"optimal_return": 1.0} if ended and Corridor.episodes % 2 else {}
        info = {"action_mask": np.ones(2, np.int8)} | known
        return np.full(1, self.count, np.float32), float(ended), ended, False, info


gym.register("Test/Corridor-v0", Corridor, disable_env_checker=True)


def test_the_share_of_the_optimum_is_of_the_episodes_that_know_it():
    for count in (1, 4):
        play = lambda obs, *_: np.zeros(len(obs), int)  # noqa: E731
        scores = evaluate(play, make_vec("Test/Corridor-v0", count), 8, 100)
        assert scores["optimal_return"] == scores["optimality"] == scores["episodic_return"] == 1


def test_a_reset_that_takes_anything_takes_a_seed(recwarn):
    first, again = (make_vec("Test/Corridor-v0", 2).reset(seed=5)[0].tolist() for _ in range(2))
    assert first == again and not [x for x in recwarn if "takes no seed" in str(x.message)]


def test_attributes_of_other_meanings_stop_no_training(capsys):
    main(PPO, *FLAGS, "--env-id", "Test/Corridor-v0")
    assert checkpoint()["ranks"][0]["envs"] is None


class Hand(gym.Env):
    """A card is played in each step; at the end the hand is empty, and the mask function has nothing to look at."""

    observation_space, action_space = spaces.MultiBinary(2), spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.cards = np.ones(2, np.int8)
        return self.cards.copy(), {}

    def step(self, action):
        self.cards[action] = 0
        return self.cards.copy(), 1.0, not self.cards.any(), False, {}


def test_a_mask_function_is_not_asked_in_a_terminal_state():
    env = MaskFunction(
        Hand(), {"card": IntEnum("Card", ["A", "B"], start=0)}, lambda cards: {"card": In([min(np.flatnonzero(cards))])}
    )
    assert env.reset(seed=0)[1]["action_mask"].tolist() == [1, 0]
    assert env.step(0)[-1]["action_mask"].tolist() == [0, 1]
    *_, terminated, _, info = env.step(1)
    assert terminated and info["action_mask"].tolist() == [0, 0]


class Base(gym.Env):
    """A base class's method that is not written, and a mask in the observation."""

    action_space = spaces.Discrete(2)
    observation_space = spaces.Dict(x=spaces.Box(0, 1, (1,)), action_mask=spaces.MultiBinary(2))

    def action_masks(self):
        raise NotImplementedError

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return {"x": np.zeros(1, np.float32), "action_mask": np.array([0, 1], np.int8)}, {}


gym.register("Test/Base-v0", Base, disable_env_checker=True)


def test_a_method_that_is_not_written_hides_no_other_mask():
    assert make_vec("Test/Base-v0", 2).reset(seed=0)[1]["action_mask"].tolist() == [[0, 1]] * 2


def test_numbers_of_numpy_among_flags_and_state_can_be_read_back():
    import ppo_action_mask as ppo

    args = ppo.parse(ppo.Args, (*FLAGS, "--eval-episodes", "0"))
    args.learning_rate, args.seed = np.logspace(-3, -2, 2)[0], np.int64(5)
    ppo.main(args)
    args = checkpoint()["args"]
    assert (type(args["learning_rate"]), type(args["seed"])) == (float, int) and args["seed"] == 5


@pytest.mark.parametrize("flags, words", [
    ({"mask_mode": "masked"}, "--mask-mode 'masked': expected one of 'mask', 'naive', 'penalty', 'none'"),
    ({"device": "gpu"}, "--device 'gpu': expected one of 'auto', 'cpu', 'cuda'"),
    ({"anneal_lr": "False"}, "--anneal-lr 'False': expected one of True, False"),
])  # fmt: skip
def test_words_that_a_flag_does_not_have_are_refused_in_python_too(flags, words, tmp_path):
    import ppo_action_mask as ppo

    with pytest.raises(ValueError, match=words):
        ppo.main(ppo.Args(**flags))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("dones", [torch.zeros(3, 2, dtype=torch.uint8), torch.zeros(3, 1, dtype=torch.bool)])
def test_dones_that_are_not_bool_or_of_another_shape_are_refused(dones):
    from ppo_action_mask import compute_gae

    with pytest.raises(ValueError, match=r"dones are .*expected \(T, N\) each, dones bool"):
        compute_gae(*torch.zeros(3, 3, 2), dones, 0.99, 0.95)
