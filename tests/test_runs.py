"""What is finished is never lost, what is wrong is refused by name: flags, files and ends of runs."""

import errno
import gc
import importlib
import json
import os
import random
import re
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import get_args, get_type_hints

import gymnasium as gym
import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from script import ROOT, checkpoint, run, run_folder, tensorboard
from test_scripts import SMALL, main

import ppo_action_mask as ppo
from envs.episodes import EVALUATION_SEED, evaluate
from envs.make import make_vec
from experiment import Run
from experiment.board import new_folder
from experiment.checkpoint import PREVIOUS, save_checkpoint
from experiment.flags import Count, parse
from experiment.ranks import rank_seed

SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py"))
PPO = "ppo_action_mask"
FLAGS = (*SMALL[PPO], "--total-timesteps", "64")  # two iterations


class Door(gym.Env):
    """Two doors, of which the second is shut: four steps, a point for each through the first. It has one fault."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 1}
    observation_space, action_space = gym.spaces.Box(0, 1, (1,)), gym.spaces.Discrete(2)

    def __init__(self, fault="", render_mode=None):
        if fault == "import" and render_mode:
            raise ImportError("no module named screen")
        self.fault, self.render_mode = fault, render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return np.zeros(1, np.float32), {"action_mask": np.array([1, 0], np.int8)}

    def step(self, action):
        self.count += 1
        if self.fault == "raise" and action == 1:
            raise IndexError("door 1 is shut")
        mask = np.array([0, 0] if self.fault == "mask" and action == 1 else [1, 0], np.int8)
        info = {"action_mask": mask} | KNOWN.get(self.fault, {"success": True, "optimal_return": 4.0})
        return np.array([self.count / 4], np.float32), float(action == 0), self.count == 4, False, info

    def render(self):
        if self.fault == "silent":
            return super().render()
        return FRAMES.get(self.fault, FRAME + 60 * self.count)

    def close(self):
        if self.fault == "close":
            raise OSError("the door is stuck")


class Modeless(Door):
    """Says that it renders, and takes no `render_mode`."""

    def __init__(self):
        super().__init__()


KNOWN = {
    "text": {"success": "yes", "optimal_return": 4.0},
    "several": {"success": np.ones(3), "optimal_return": 4.0},
    "none": {"success": None, "optimal_return": 4.0},
    "dict": {"success": {"of": 1}, "optimal_return": 4.0},
    "zero": {"success": True, "optimal_return": 0.0},
}
FRAME = np.zeros((8, 8, 3), np.uint8)
FRAMES = {
    "none": None,
    "list": [FRAME, FRAME],
    "text": "a door",
    "grey": FRAME[..., 0],
    "float": FRAME / 255,
    "empty": FRAME[:0],
}
gym.register("Test/Door-v0", Door, disable_env_checker=True)
gym.register("Test/Modeless-v0", Modeless, disable_env_checker=True)


class Clock(gym.Env):
    """Step t pays t, and the third or a later one ends the episode if its action is 0: it may go on for ever."""

    observation_space, action_space = gym.spaces.Discrete(2), gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return 0, {}

    def step(self, action):
        self.count += 1
        done = self.count >= 3 and action == 0
        return 0, self.count - 1.0, done, False, {"success": True, "optimal_return": 3.0} if done else {}


gym.register("Test/Clock-v0", Clock, disable_env_checker=True)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def trained(tmp_path):
    """The checkpoint of a run of two iterations."""
    main(PPO, *FLAGS, "--seed", "3")
    return run_folder(tmp_path) / "checkpoint.pt"


# Flags


@pytest.mark.parametrize("script", SCRIPTS)
def test_which_flags_were_given_is_known_and_not_guessed(script):
    """Every second flag, with its default as value, in all ways to write it; then the others."""
    kind = importlib.import_module(script).Args
    assert parse(kind, []).given == set() == kind().given and kind(seed=2).given == {"seed"}
    forms = {}
    for field in fields(kind):
        flag, words = field.name.replace("_", "-"), [str(field.default or 1)]
        if isinstance(field.default, bool):
            forms[field.name] = [f"--{flag}"], [f"--no-{flag}"], [f"--{field.name}"], [f"--no_{field.name}"]
        elif field.name == "env_kwargs":
            forms[field.name] = ([f"--{flag}", "size", "seed"],) * 4
        else:
            plain, underscored = [f"--{flag}", *words], [f"--{field.name}", *words]
            forms[field.name] = plain, underscored, [f"--{flag}={words[0]}"], [f"--{field.name}={words[0]}"]
    for names in (list(forms)[::2], list(forms)[1::2]):
        for form in range(4):
            assert parse(kind, [word for name in names for word in forms[name][form]]).given == set(names)


def test_counts_are_written_as_one_likes(capsys):
    kind = importlib.import_module("ppo_action_mask").Args
    for text in ("1000000", "1_000_000", "1e6", "1E+06"):
        assert parse(kind, ["--total-timesteps", text]).total_timesteps == 1_000_000
    for text in ("1.5", "nan", "inf", "many"):
        with pytest.raises(SystemExit):
            parse(kind, ["--total-timesteps", text])
        assert text in capsys.readouterr().err


def test_a_flag_by_its_initials_is_guessed(capsys):
    with pytest.raises(SystemExit):
        parse(importlib.import_module("ppo_action_mask").Args, ["--lr", "1e-3"])
    assert "--lr: did you mean --learning-rate?" in capsys.readouterr().err


BROKEN = """
import gymnasium

class Broken(gymnasium.Env):
    def __init__(self):
        raise KeyError("the user's own")

gymnasium.register("Broken-v0", Broken)
"""


def test_a_refusal_is_one_sentence_and_a_fault_of_the_users_keeps_its_traceback(tmp_path):
    done = run(tmp_path, "ppo_action_mask", "--env-kwargs", "colour", "1")
    assert done.stderr.startswith("ppo_action_mask.py: Masked/JobRouting-v0 cannot be made with --env-kwargs")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "It takes num_machines, num_up" in done.stderr
    done = run(tmp_path, "ppo_action_mask", "--env-id", "nowhere:Broken-v0")
    assert done.returncode == 1 and done.stderr.startswith("ppo_action_mask.py: --env-id nowhere:Broken-v0: No module")
    (tmp_path / "mine.py").write_text(BROKEN)
    done = run(tmp_path, "ppo_action_mask", "--env-id", "mine:Broken-v0")
    assert done.returncode == 1 and "mine.py" in done.stderr and 'raise KeyError("the user' in done.stderr
    assert done.stderr.splitlines()[-1].startswith("ValueError: mine:Broken-v0 cannot be made with")


COUNTS = (
    *("eval_max_steps", "num_envs", "total_timesteps", "num_threads", "num_steps", "minibatch_size", "update_epochs"),
    *("hidden_dim", "buffer_size", "target_network_frequency", "batch_size", "train_frequency", "dim", "heads"),
    *("num_blocks", "channels"),
)
OUTSIDE = {  # of the range of each flag; NaN and inf are outside of all
    **{name: (0, -1) for name in COUNTS},
    **{name: (-1,) for name in ("checkpoint_every", "eval_episodes", "learning_starts", "presence_column")},
    **{name: (0.0, -1.0) for name in ("learning_rate", "clip_coef", "max_grad_norm", "target_kl", "replay_ratio")},
    **{name: (-0.1, 1.1, 2.0) for name in ("gamma", "gae_lambda", "start_e", "end_e", "eval_mask_drop")},
    **{name: (0.0, -0.1, 1.1, 2.0) for name in ("tau", "exploration_fraction")},
    **{name: (-0.1,) for name in ("ent_coef", "vf_coef")},
    "invalid_penalty": (),
    "seed": (-1, 2**31),
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_numeric_flag_has_its_range(script, tmp_path):
    module = importlib.import_module(script)
    for name, hint in get_type_hints(module.Args).items():
        kinds = {hint, *get_args(hint)} & {int, float}
        for value in (*OUTSIDE[name], *(() if int in kinds else map(float, ("nan", "inf", "-inf")))) if kinds else ():
            with pytest.raises(ValueError, match=rf"^--{name.replace('_', '-')} {value}: expected [^.]+") as refused:
                module.main(module.Args(**{name: value}))
            assert len(str(refused.value)) < 80
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("flags, words", [
    ({"num_steps": 16.5}, "--num-steps 16.5: expected a whole number, at least 1"),
    ({"eval_max_steps": "9"}, "--eval-max-steps '9': expected a whole number, at least 1"),
    ({"seed": True}, "--seed True: expected a whole number, from 0 to"),
    ({"seed": None}, "--seed None: expected a whole number"),
    ({"gamma": None}, "--gamma None: expected a number, from 0 to 1"),
    ({"learning_rate": "1e-3"}, "--learning-rate '1e-3': expected a number, more than 0"),
    ({"norm_adv": 1}, "--norm-adv 1: expected one of True, False"),
    ({"exp_name": 5}, "--exp-name 5: expected text"),
    ({"env_id": None}, "--env-id None: expected text"),
    ({"env_kwargs": "num_machines 4"}, "--env-kwargs takes pairs KEY VALUE, got 'num_machines 4'"),
    ({"env_kwargs": None}, "--env-kwargs takes pairs KEY VALUE, got None"),
    ({"env_kwargs": (1, "num_machines")}, "--env-kwargs takes pairs KEY VALUE, got 2 words: 1 num_machines"),
])  # fmt: skip
def test_flags_of_another_type_are_refused_before_anything_is_made(flags, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        ppo.main(ppo.Args(**flags))
    assert not Path("runs").exists()


def test_whole_numbers_may_be_floats_and_arguments_a_dict():
    sizes = dict(num_envs=4.0, num_steps=8.0, minibatch_size=32.0, update_epochs=1.0, total_timesteps=64.0)
    kwargs = {"num_machines": 4, "num_up": 2}
    ppo.main(ppo.Args(**sizes, eval_episodes=2.0, eval_max_steps=1e2, seed=3.0, learning_rate=1, env_kwargs=kwargs))
    saved = checkpoint()["args"]
    assert saved["total_timesteps"] == 64 and type(saved["total_timesteps"]) is int and saved["env_kwargs"] == kwargs


def test_going_on_from_an_earlier_checkpoint_leaves_the_later_one(capsys):
    main(PPO, *FLAGS, "--eval-episodes", "0", "--checkpoint-every", "1")
    (path,) = Path("runs").glob("*/checkpoint.pt")
    last = path.read_bytes()
    main(PPO, "--resume", str(path.with_name(PREVIOUS)), "--eval-episodes", "0", "--checkpoint-every", "1")
    (aside,) = (other for other in path.parent.glob("checkpoint_*.pt") if other.name != PREVIOUS)
    assert aside.read_bytes() == last and checkpoint()["iteration"] == 2
    assert f"{path} is {aside.name} now, for this run goes on from {PREVIOUS}" in capsys.readouterr().err


def test_the_path_of_a_checkpoint_may_be_a_path():
    main(PPO, *FLAGS, "--eval-episodes", "0")
    (path,) = Path("runs").glob("*/checkpoint.pt")
    ppo.main(ppo.Args(resume=path, total_timesteps=256))
    assert checkpoint()["args"]["resume"] == str(path)


@pytest.mark.parametrize("flags, words", [
    (("--exp-name", ""), "--exp-name ''"),
    (("--exp-name", "a/b"), "--exp-name 'a/b'"),
    (("--exp-name", "x" * 101), "--exp-name 'x.*of 100 bytes at most"),
    (("--eval-only", "."), "--eval-only checkpoint.pt: there is no such file; expected a run's folder"),
    (("--exp-name", "/../../up"), "--exp-name '/../../up'"),
    (("--resume", ""), "--resume '': .*unset variable"),
    (("--init-from", ""), "--init-from '': .*unset variable"),
    (("--init-from", "."), "--init-from checkpoint.pt: there is no such file; expected a run's folder"),
    (("--init-from", "a.pt", "--resume", "b.pt"), "--resume 'b.pt' --init-from 'a.pt': expected one of them"),
    (("--eval-only", ""), "--eval-only '': .*unset variable"),
    (("--resume", "a.pt", "--eval-only", "b.pt"), "--resume 'a.pt' --eval-only 'b.pt': expected one of them"),
])  # fmt: skip
def test_names_and_paths_that_cannot_be_meant_are_refused(flags, words, tmp_path):
    for script in SCRIPTS:
        with pytest.raises(ValueError, match=words):
            main(script, *flags)
    assert not list(tmp_path.iterdir())


def test_no_training_has_the_seeds_of_evaluation():
    with pytest.raises(ValueError, match=f"^--seed {EVALUATION_SEED}: expected from 0 to 2\\^31 - 1"):
        main(PPO, "--seed", str(EVALUATION_SEED))
    assert all(rank_seed(seed, rank) < EVALUATION_SEED for seed in range(100) for rank in range(8))


def test_steps_that_are_left_over_are_announced(capsys):
    main(PPO, *SMALL[PPO], "--total-timesteps", "95")
    assert "--total-timesteps 95: 32 are played at a time, so 31 are left over" in capsys.readouterr().err
    main(PPO, *FLAGS)
    assert "left over" not in capsys.readouterr().err


# Checkpoints


def test_a_flag_that_contradicts_the_checkpoint_is_refused_even_if_it_is_the_default(trained):
    assert main(PPO, "--resume", str(trained), "--seed", "3", "--num-envs", "4", "--eval-episodes", "0") == {}
    for flag, value, saved in (("seed", "1", "3"), ("num-envs", "64", "4"), ("exp-name", "x", PPO)):
        with pytest.raises(ValueError, match=f"^--{flag} {value}: the checkpoint was trained with {saved}"):
            main(PPO, "--resume", str(trained), f"--{flag}", value)
    with pytest.raises(ValueError, match="^--total-timesteps 1000000: the checkpoint was trained with 64"):
        main(PPO, "--eval-only", str(trained), "--total-timesteps", "1000000")
    assert "win_rate" in main(PPO, "--eval-only", str(trained), "--num-threads", "2", "--eval-episodes", "4")
    with pytest.raises(ValueError, match="^--eval-only makes no folder for --capture-video"):
        main(PPO, "--eval-only", str(trained), "--capture-video")


def test_a_resumed_training_writes_checkpoints_and_plays_as_many_episodes_as_it_did(tmp_path):
    main(PPO, *FLAGS, "--checkpoint-every", "1", "--eval-episodes", "3")
    main(PPO, "--resume", str(run_folder()), "--total-timesteps", "128")
    args = checkpoint()["args"]
    assert (args["checkpoint_every"], args["eval_episodes"]) == (1, 3)
    assert torch.load(run_folder() / PREVIOUS, weights_only=True)["iteration"] == 3
    main(PPO, "--resume", str(run_folder()), "--total-timesteps", "192", "--eval-episodes", "2")
    assert checkpoint()["args"]["eval_episodes"] == 2


def test_a_checkpoint_of_another_kind_of_device_goes_on_with_a_line(trained, capsys):
    state = torch.load(trained, weights_only=True)
    state["ranks"][0]["generator"] = torch.zeros(16, dtype=torch.uint8)  # as large as a GPU's
    save_checkpoint(trained, state)
    main(PPO, "--resume", str(trained), "--total-timesteps", "128", "--eval-episodes", "0")
    assert "written on another kind of device than cpu: minibatches are drawn anew" in capsys.readouterr().err


def test_a_training_in_a_thread_leaves_signals_alone():
    with ThreadPoolExecutor(1) as pool:
        assert "episodic_return" in pool.submit(main, PPO, *FLAGS, "--eval-episodes", "2").result()


def test_environment_arguments_that_are_given_twice_are_refused():
    for words in (["size", "4", "--env-kwargs", "density", "0.1"], ["size", "4", "--env_kwargs", "size", "5"]):
        with pytest.raises(ValueError, match="^--env-kwargs is given twice; expected it once, with all pairs"):
            parse(ppo.Args, ["--env-kwargs", *words])
    with pytest.raises(ValueError, match="^--env-kwargs: size is given twice, 4 and 5; expected it once"):
        main(PPO, *FLAGS, "--env-kwargs", "size", "4", "size", "5")


def test_a_training_can_be_prolonged_and_says_what_that_does_to_the_step_size(trained, tmp_path, capsys):
    @dataclass
    class Args(ppo.Args):
        total_timesteps: Count = 128

    resume = ("--eval-episodes", "0", "--resume", str(trained))
    ppo.main(parse(Args, resume))
    assert checkpoint(tmp_path)["iteration"] == 2  # it had finished, and the default is no wish
    ppo.main(parse(Args, (*resume, "--total-timesteps", "128")))
    assert checkpoint(tmp_path)["iteration"] == 4 and checkpoint(tmp_path)["args"]["total_timesteps"] == 128
    said = "--total-timesteps 128 instead of 64, of which 64 are played: a step size that is annealed jumps from "
    assert said + "0.0% to 50.0% of its first value" in capsys.readouterr().err
    rates = [event.value for event in tensorboard(tmp_path).Scalars("charts/learning_rate")]
    assert rates == pytest.approx([1e-3, 5e-4, 5e-4, 2.5e-4])  # of the step to go on from, and of those after it
    with pytest.raises(ValueError, match="--total-timesteps 96 instead of 128, of which 128 are played; expected more"):
        main(PPO, *resume, "--total-timesteps", "96")


def test_a_new_run_begins_with_the_agent_of_another_and_with_flags_of_its_own(trained, tmp_path, monkeypatch):
    """It steps where that agent stands, leaves the file alone, and goes on when it is resumed itself."""
    before, old = trained.read_bytes(), torch.load(trained, weights_only=True)
    flags = (*SMALL[PPO], "--total-timesteps", "32", "--eval-episodes", "0", "--learning-rate", "1e-30")
    monkeypatch.chdir(tmp_path / "runs")
    main(PPO, *flags, "--init-from", str(trained.parent), "--seed", "4", "--env-kwargs", "num_up", "1")
    new = checkpoint()
    assert all(torch.equal(new["model"][name], weights) for name, weights in old["model"].items())
    assert (new["iteration"], new["args"]["seed"], new["args"]["init_from"]) == (1, 4, str(trained))
    assert new["optimizer"]["steps"][0] > old["optimizer"]["steps"][0]
    main(PPO, "--resume", str(run_folder()), "--total-timesteps", "64", "--eval-episodes", "0")
    assert checkpoint()["iteration"] == 2 and trained.read_bytes() == before


@pytest.mark.parametrize("flags, words", [
    (("--env-kwargs", "num_machines", "32"), r"trained on \[\d+\] obs.* and \[\d+\] choices; Masked/Job"),
    (("--hidden-dim", "8"), "its model does not fit this ppo_action_mask.py: .*size mismatch"),
    (("--norm-obs",), "its statistics does not fit .*: it scales nothing and these flags obs; expected --norm-obs and"),
])  # fmt: skip
def test_an_agent_that_a_new_run_cannot_begin_with_is_refused(flags, words, trained):
    with pytest.raises(ValueError, match=f"(?s)^{trained}: {words}"):
        main(PPO, *FLAGS, "--init-from", str(trained), *flags)
    assert len(list(trained.parent.parent.iterdir())) == 1


def test_an_agent_that_read_the_same_weights_with_other_heads_is_refused(tmp_path):
    script = "ppo_attention_mask"
    flags = (*SMALL[script], "--total-timesteps", "32", "--init-from")
    main(script, *flags[:-1], "--heads", "2")
    with pytest.raises(ValueError, match="^--init-from .*checkpoint.pt: trained with --heads 2, not 4"):
        main(script, *flags, str(run_folder()))
    main(script, *flags, str(run_folder()), "--heads", "2")


def test_every_bit_counts(trained):
    """Wherever a bit is flipped, the file is refused; unharmed, torch reads it as well."""
    whole, flip = trained.read_bytes(), random.Random(0)
    assert torch.load(trained, weights_only=True)["iteration"] == 2
    places = [*(flip.randrange(8 * len(whole)) for _ in range(300)), 0, 8 * len(whole) - 1]
    for place in places:
        harmed = bytearray(whole)
        harmed[place // 8] ^= 1 << place % 8
        trained.write_bytes(harmed)
        with pytest.raises(ValueError, match=f"^--resume {trained}: not a whole checkpoint") as refused:
            ppo.main(ppo.Args(resume=str(trained)))
        assert "The one before" not in str(refused.value)
    trained.with_name(PREVIOUS).write_bytes(whole)
    with pytest.raises(ValueError, match=f"The one before is {trained.with_name(PREVIOUS)}"):
        main(PPO, "--resume", str(trained))
    trained.write_bytes(whole)
    main(PPO, "--resume", str(trained), "--eval-episodes", "0")


def test_the_checkpoint_before_is_an_earlier_one(tmp_path):
    main(PPO, *FLAGS, "--checkpoint-every", "1")
    before = torch.load(run_folder(tmp_path) / PREVIOUS, weights_only=True)
    assert (before["iteration"], checkpoint(tmp_path)["iteration"]) == (1, 2)


def test_what_was_logged_of_the_step_to_go_on_from_stays(trained, tmp_path):
    main(PPO, "--resume", str(trained), "--eval-episodes", "0")
    assert [event.step for event in tensorboard(tmp_path).Scalars("losses/entropy")] == [32, 64]


def test_the_checkpoint_before_is_kept(trained):
    first = trained.read_bytes()
    main(PPO, "--resume", str(trained), "--total-timesteps", "96", "--eval-episodes", "0")
    assert trained.with_name(PREVIOUS).read_bytes() == first != trained.read_bytes()
    main(PPO, "--resume", str(trained.with_name(PREVIOUS)), "--eval-episodes", "0")
    assert {path.suffix for path in trained.parent.iterdir() if "tfevents" not in path.name} == {".pt"}


def test_weights_that_are_no_numbers_are_refused(trained):
    state = torch.load(trained, weights_only=True)
    next(iter(state["model"].values()))[0] = float("nan")
    save_checkpoint(trained, state)
    for flag in ("--resume", "--eval-only"):
        with pytest.raises(ValueError, match=f"^{flag} {trained}: the agent's weights hold NaN or inf"):
            main(PPO, flag, str(trained))


@pytest.mark.parametrize("change, words", [
    (lambda saved: saved.pop("model"), "holds no model, which ppo_action_mask.py keeps"),
    (lambda saved: saved["ranks"][0].pop("generator"), "holds no generator, which ppo_action_mask.py keeps"),
    (lambda saved: saved["model"].popitem(), "its model does not fit this ppo_action_mask.py: .*Missing key"),
    (lambda saved: saved["ranks"][0]["envs"].popitem(), "its envs fit another version of these .*; train anew"),
    (lambda saved: saved["model"].update(more=torch.zeros(2)), "its model does not fit .*Unexpected key"),
    (lambda saved: saved["model"].update({"actor.0.weight": torch.zeros(3, 3)}), "its model does not fit .*mismatch"),
])  # fmt: skip
def test_a_checkpoint_of_another_network_is_refused(change, words, trained):
    state = torch.load(trained, weights_only=True)
    change(state)
    save_checkpoint(trained, state)
    with pytest.raises(ValueError, match=f"(?s)^{trained}: {words}"):
        main(PPO, "--resume", str(trained))


def test_a_copied_script_with_other_flags_reads_what_it_can(trained, capsys):
    @dataclass
    class More(ppo.Args):
        extra: Count = 7

    resume = ("--eval-episodes", "0", "--resume", str(trained))
    ppo.main(parse(More, resume))
    assert "does not know --extra: 7 counts" in capsys.readouterr().err
    ppo.main(parse(ppo.Args, resume))
    assert "knows --extra: ignored" in capsys.readouterr().err
    state = torch.load(trained, weights_only=True)
    save_checkpoint(trained, {name: value for name, value in state.items() if name != "optimizer"})
    with pytest.raises(ValueError, match="holds no optimizer, which ppo_action_mask.py keeps"):
        main(PPO, "--resume", str(trained))


def test_a_full_disk_costs_a_sentence_and_no_file(trained, monkeypatch, capsys):
    def full(descriptor):
        if not space.pop(0):
            raise OSError(errno.ENOSPC, "No space left on device")

    before, space = trained.read_bytes(), [False, False, True, True]
    monkeypatch.setattr("experiment.checkpoint.os.fsync", full)
    resume = ("--resume", str(trained), "--eval-episodes", "2", "--total-timesteps")
    with pytest.raises(SystemExit) as end:
        main(PPO, *resume, "96")
    out, err = capsys.readouterr()
    assert end.value.code == 1 and "Evaluation: episodic_return" in out  # the agent is lost, its scores are not
    assert f"{trained} is not written, and what stood there is left: [Errno 28] No space left on device" in err
    assert trained.read_bytes() == before and not list(trained.parent.glob("*.tmp"))
    main(PPO, *resume, "128", "--checkpoint-every", "1")  # on the way, and then there is space again
    assert checkpoint()["iteration"] == 4 and capsys.readouterr().err.count("is not written") == 1


def test_a_log_that_cannot_be_written_does_not_stop_the_training(monkeypatch, capsys):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("torch.utils.tensorboard.writer.FileWriter.add_summary", full)
    monkeypatch.setattr("experiment.board.SummaryWriter.add_custom_scalars", lambda *arguments: None)
    monkeypatch.setattr("experiment.board.SummaryWriter.add_text", lambda *arguments: None)
    assert main(PPO, *FLAGS, "--eval-episodes", "2")["episodic_return"] > 0
    assert "TensorBoard's file is not written: [Errno 28]" in capsys.readouterr().err and checkpoint()["iteration"] == 2


def test_what_a_script_logs_by_mistake_is_its_error(monkeypatch):
    """A full disk is no excuse for a bug: a scalar that is none raises. Signals are given back then, too."""
    handler = signal.getsignal(signal.SIGINT)
    log = Run.log
    monkeypatch.setattr(Run, "log", lambda run, scalars: log(run, scalars | {"losses/mine": np.zeros(2)}))
    with pytest.raises(TypeError):
        main(PPO, *FLAGS)
    gc.collect()  # what the error held
    assert signal.getsignal(signal.SIGINT) is handler


def test_runs_of_the_same_second_have_folders_of_their_own():
    args = SimpleNamespace(env_id="Masked/Maze-v0", exp_name="x", mask_mode="mask", seed=1)
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: new_folder(args), range(32)))
    assert len(set(folders)) == 32 and all(folder.name.startswith("mask__x__1__Masked-Maze-v0__") for folder in folders)


@pytest.mark.parametrize("block", [Path.touch, lambda runs: runs.symlink_to("a disk that is not there")])
def test_where_no_folder_can_be_made_nothing_is_trained(block, tmp_path):
    block(tmp_path / "runs")
    with pytest.raises(ValueError, match="^No folder for this run can be made in runs/: .*File exists"):
        main(PPO, *FLAGS)


def test_where_nothing_can_be_written_nothing_is_trained(monkeypatch):
    def full(*arguments, **more):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("experiment.board.SummaryWriter", full)
    with pytest.raises(ValueError, match="^Nothing can be written into runs/mask__.*No space left on device"):
        main(PPO, *FLAGS)


def test_where_no_folder_can_be_made_in_runs_nothing_is_trained(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    mkdir = Path.mkdir
    monkeypatch.setattr(Path, "mkdir", lambda path, **more: mkdir(path, **more) if more else os.mkdir("/proc/none"))
    with pytest.raises(ValueError, match="^No folder for this run can be made in runs/: .*. Start it elsewhere"):
        main(PPO, *FLAGS)


# Ends


@pytest.mark.parametrize("fault, said", [
    ("raise", "No scores with no mask: Environment 0: step(1) of Door raised IndexError: door 1 is shut."),
    ("mask", ""),  # empty where illegal play leads: without the mask it only counts who plays illegally
    ("close", "The environments did not close: the door is stuck (OSError)"),
    ("text", "Environment 0: info['success'] is 'yes', no number; left out"),
    ("several", "Environment 0: info['success'] is "),
    ("none", "Environment 0: info['success'] is None, no number; left out"),
    ("dict", "Environment 0: info['success'] is "),
    ("zero", "The optimal return is 0, so no share of it is known"),
])  # fmt: skip
def test_what_fails_after_the_training_is_said_and_costs_nothing_else(
    fault, said, tmp_path, monkeypatch, capsys, recwarn
):
    """In training and in evaluation; without the mask the agent plays the shut door."""
    monkeypatch.setattr("experiment.fast.choose", lambda scores, mask, *rest: mask.astype(int) @ np.arange(1, 3) // 2)
    flags = ("--env-id", "Test/Door-v0", "--env-kwargs", "fault", fault, "--eval-episodes", "6")
    scores = main(PPO, *FLAGS, *flags)
    out, err = capsys.readouterr()
    err += "".join(str(warning.message) for warning in recwarn)
    assert said in err and "Evaluation: episodic_return 4.000" in out and scores["episodic_return"] == 4
    assert tensorboard(tmp_path).Scalars("eval/episodic_return")[0].value == 4
    removed = fault != "raise"
    assert scores.get("episodic_return_no_mask") == (0 if removed else None)
    known = {"success": 1, "optimal_return": 4, "optimality": 1}
    left_out = {"success": fault in ("text", "several", "none", "dict"), "optimality": fault == "zero"}
    if fault == "zero":
        known["optimal_return"] = 0
    assert {key: scores.get(key) for key in known} == {k: None if left_out.get(k) else v for k, v in known.items()}

    main(PPO, "--eval-only", str(run_folder() / "checkpoint.pt"), "--eval-episodes", "6")
    out, err = capsys.readouterr()
    err += "".join(str(warning.message) for warning in recwarn)
    printed = json.loads(out)
    assert (
        said in err and printed["as_trained"]["episodic_return"] == 4 and "Evaluation: {'episodic_return': 4.0" in err
    )
    assert (printed["no_mask"] is not None) == removed


def test_an_evaluation_that_fails_with_the_mask_is_an_error(monkeypatch):
    """Nothing is known then; the checkpoint is written."""
    monkeypatch.setattr("envs.episodes.act", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(PPO, *FLAGS, "--eval-episodes", "2")
    assert checkpoint()["iteration"] == 2


@pytest.mark.parametrize("stuck_for, episodes, expected", [
    (99, 5, {"episodic_return": 36 / 5, "episodic_length": 21 / 5, "success": 2 / 5, "cut": 3 / 5}),
    (6, 8, {"episodic_return": 31 / 8, "episodic_length": 26 / 8, "success": 7 / 8, "cut": 1 / 8}),
])  # fmt: skip
def test_an_episode_without_end_is_cut_and_every_one_that_counts_begins_with_a_reset(stuck_for, episodes, expected):
    """Environment 0 goes on for ever, or for six steps; the first five pay 10, an episode of 1 pays 3."""
    started = []

    def play(obs, mask, starts):
        started.append(starts.copy())
        return np.array([len(started) <= stuck_for, 0])

    scores = evaluate(play, make_vec("Test/Clock-v0", 2, require_mask=False), episodes, max_steps=5)
    assert {key: scores.get(key) for key in expected} == pytest.approx(expected)
    assert scores["win_rate"] == scores["success"] and not {"optimal_return", "optimality"} & scores.keys()
    both = [t for t, starts in enumerate(started) if starts.all()]
    # Reset when environment 1 has played its two episodes, and after each cut; or never, where the episode ends late.
    assert (both, len(started)) == (([0, 6, 11], 16) if stuck_for == 99 else ([0], 16))


def test_a_walk_into_a_wall_for_ever_ends(capsys):
    flags = (*SMALL[PPO], "--env-id", "CliffWalking-v1", "--mask-mode", "none", "--total-timesteps", "32")
    scores = main(PPO, *flags, "--eval-episodes", "6", "--eval-max-steps", "50")
    assert scores["cut"] == 1 and scores["episodic_length"] == 50 and scores["episodic_return"] <= -50
    assert "6 of 6 episodes were cut" in capsys.readouterr().err


@pytest.mark.parametrize("env_id, fault, said", [
    ("Test/Modeless-v0", None, "Test/Modeless-v0 cannot be made with --env-kwargs"),
    ("Test/Door-v0", "import", "no module named screen"),
    ("Test/Door-v0", "none", "render() gave None; expected uint8 (H, W, 3)"),
    ("Test/Door-v0", "silent", "raised in render(), line "),
    ("Test/Door-v0", "list", "render() gave uint8 of shape (2, 8, 8, 3)"),
    ("Test/Door-v0", "text", "render() gave <U6 of shape ()"),
    ("Test/Door-v0", "grey", "render() gave uint8 of shape (8, 8)"),
    ("Test/Door-v0", "empty", "render() gave uint8 of shape (0, 8, 3)"),
    ("Test/Door-v0", "float", "render() gave float64 of shape (8, 8, 3); expected uint8 (H, W, 3)"),
])  # fmt: skip
def test_what_is_no_picture_costs_a_line(env_id, fault, said, tmp_path, capsys):
    flags = (*FLAGS, "--env-id", env_id, *(("--env-kwargs", "fault", fault) if fault else ()), "--eval-episodes", "2")
    assert main(PPO, *flags)["episodic_return"] == 4
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("No picture of the agent: ")]
    assert len(lines) == 1 and said in lines[0]
    assert tensorboard(tmp_path).Tags()["images"] == []
    with pytest.raises(ValueError, match="^--capture-video cannot draw this: ") as refused:
        main(PPO, *flags, "--capture-video", "--exp-name", "video")
    assert said in str(refused.value) and not list((tmp_path / "runs").glob("*video*"))


@pytest.mark.parametrize("steps, shown", [(10, [0, 60, 120, 180] * 2), (8, [0, 60, 120, 180] * 2), (2, [0, 60, 120])])
def test_an_animation_has_whole_episodes_or_else_all_of_its_steps(steps, shown, monkeypatch):
    monkeypatch.setattr("experiment.pictures.PICTURE", 0)
    monkeypatch.setattr("experiment.pictures.GIF", steps)
    main(PPO, *FLAGS, "--env-id", "Test/Door-v0", "--eval-episodes", "2", "--capture-video")
    with Image.open(run_folder() / "agent.gif") as gif:
        assert [np.asarray(one.convert("RGB"))[0, 0, 0] for one in ImageSequence.Iterator(gif)] == shown


def test_an_attention_map_needs_no_renderer(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("envs.worlds.panda_forest.PandaForest.render", lambda forest: None)
    script = "ppo_attention_mask"
    main(script, *SMALL[script], "--total-timesteps", "32", "--eval-episodes", "2", "--eval-max-steps", "3")
    assert tensorboard(tmp_path).Tags()["images"] == ["attention"]
    assert "No picture of the agent: render() gave None" in capsys.readouterr().err


def test_an_interrupted_evaluation_ends_with_a_sentence(monkeypatch, tmp_path, capsys):
    calls = []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return {"episodic_return": 4.0}

    monkeypatch.setattr("experiment.evaluation.evaluate", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in a shell's background it would be ignored
    try:
        with pytest.raises(SystemExit) as end:
            main(PPO, *FLAGS, "--eval-episodes", "2")
    finally:
        signal.signal(signal.SIGINT, before)
    out, err = capsys.readouterr()
    assert end.value.code == 128 + signal.SIGINT and "Stopped by SIGINT after the training" in err
    assert "Evaluation: episodic_return 4.000" in out and checkpoint()["iteration"] == 2
    assert [event.value for event in tensorboard(tmp_path).Scalars("eval/episodic_return")] == [4.0]


def test_an_environment_that_fails_leaves_the_agent_of_the_last_iteration(monkeypatch, capsys):
    step, count = Door.step, []

    def fails(door, action):
        count.append(1)
        if len(count) == 80:
            raise ConnectionError("the door is gone")
        return step(door, action)

    monkeypatch.setattr(Door, "step", fails)
    flags = (*SMALL[PPO], "--env-id", "Test/Door-v0", "--total-timesteps", "128", "--eval-episodes", "0")
    with pytest.raises(ValueError, match="Environment .: step.* raised ConnectionError: the door is gone"):
        main(PPO, *flags)
    (path,) = Path("runs").glob("*/checkpoint.pt")
    assert checkpoint()["iteration"] == 2 and f"the agent after 64 steps is in {path}" in capsys.readouterr().err
    main(PPO, "--resume", str(path), "--eval-episodes", "0")
    assert checkpoint()["iteration"] == 4


@pytest.mark.parametrize("every", ["0", "1"])
def test_a_signal_while_the_last_checkpoint_is_written_leaves_it_whole(monkeypatch, capsys, every):
    sync, calls = os.fsync, []

    def interrupted(file):
        calls.append(file)
        if len(calls) == (1 if every == "0" else 2):
            signal.raise_signal(signal.SIGTERM)
        sync(file)

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(SystemExit) as end:
        main(PPO, *FLAGS, "--eval-episodes", "2", "--checkpoint-every", every)
    out, err = capsys.readouterr()
    assert end.value.code == 128 + signal.SIGTERM and checkpoint()["iteration"] == 2 and "Evaluation" not in out
    assert "Stopped by SIGTERM. Continue with --resume runs/" in err


def test_scaled_observations_and_rewards_are_a_part_of_the_agent(capsys):
    """Saved, restored to the bit when a run goes on, frozen in evaluation; and missed where returns are large."""
    flags = (
        *SMALL[PPO],
        "--env-id",
        "test_statistics:Test/Noise-v0",
        "--mask-mode",
        "none",
        "--norm-obs",
        "--norm-reward",
    )
    main(PPO, *flags, "--total-timesteps", "256", "--eval-episodes", "4")
    whole = checkpoint()
    assert whole["statistics"]["obs"]["count"] > 256 and (whole["statistics"]["obs"]["mean"] > 900).all()
    assert whole["statistics"]["returns"]["var"] > 1000
    capsys.readouterr()
    main(PPO, "--eval-only", str(run_folder() / "checkpoint.pt"), "--eval-episodes", "4")
    assert json.loads(capsys.readouterr().out)["as_trained"]["episodic_return"] == pytest.approx(10_000, rel=0.01)
    assert torch.equal(checkpoint()["statistics"]["obs"]["mean"], whole["statistics"]["obs"]["mean"])


def test_a_run_with_scaled_observations_resumes_to_the_bit(monkeypatch, tmp_path):
    flags = (*SMALL[PPO], "--norm-obs", "--norm-reward", "--total-timesteps", "128", "--eval-episodes", "0")
    main(PPO, *flags)
    whole = checkpoint()
    monkeypatch.chdir(tmp_path / "runs")
    main(PPO, *flags[:-4], "--total-timesteps", "128", "--eval-episodes", "0", "--checkpoint-every", "1")
    half = run_folder() / "checkpoint_previous.pt"
    half.rename(run_folder() / "half.pt")
    main(PPO, "--resume", str(run_folder() / "half.pt"))
    for name in ("obs", "returns"):
        for key, value in whole["statistics"][name].items():
            assert torch.equal(value, checkpoint()["statistics"][name][key])
    assert all(torch.equal(a, b) for a, b in zip(whole["model"].values(), checkpoint()["model"].values(), strict=True))


def test_a_value_that_explains_nothing_of_large_returns_is_warned_of(capsys):
    flags = ("--env-id", "test_statistics:Test/Noise-v0", "--mask-mode", "none", "--eval-episodes", "0")
    main(PPO, *SMALL[PPO], *flags, "--total-timesteps", "3200")
    assert re.search(
        r"The value explains nothing of returns around 1?[09]\d+: try --norm-reward", capsys.readouterr().err
    )
