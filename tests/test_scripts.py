"""What all scripts do alike, each run as a user runs it: tags, resume, signals, ranks, errors."""

import importlib
import importlib.machinery
import json
import re
import shlex
import signal
import sys
import time
import types

import numpy as np
import pytest
import torch
from script import assert_same, checkpoint, run, run_folder, start, tensorboard
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from envs.worlds.drawing import action_map
from experiment.board import COMPARED
from experiment.checkpoint import PREVIOUS, save_checkpoint

SMALL = {  # iterations of 32 steps
    "ppo_action_mask": shlex.split("--num-envs 4 --num-steps 8 --minibatch-size 16 --eval-episodes 0"),
    "dqn_action_mask": shlex.split("--num-envs 4 --train-frequency 8 --batch-size 16 --replay-ratio 1 "
                                   "--learning-starts 32 --buffer-size 512 --eval-episodes 0"),
    "ppo_attention_mask": shlex.split("--num-envs 4 --num-steps 8 --minibatch-size 16 --eval-episodes 0 --dim 8"),
    "ppo_gridwise": shlex.split("--num-envs 4 --num-steps 8 --minibatch-size 16 --eval-episodes 0 --channels 4"),
    "ppo_recurrent_mask": shlex.split("--num-envs 4 --num-steps 8 --minibatch-size 16 --eval-episodes 0 "
                                      "--hidden-dim 8"),
}  # fmt: skip
WORLDS = {  # an environment that renders and has illegal actions, and one that cannot be saved
    "ppo_action_mask": ("Masked/Maze-v0", "Taxi-v4"),
    "dqn_action_mask": ("Masked/Maze-v0", "Taxi-v4"),
    "ppo_attention_mask": ("Masked/PandaForest-v0", "worlds:Test/Apples-v0"),
    "ppo_gridwise": ("Masked/Harvest-v0", "worlds:Test/Lights-v0"),
    "ppo_recurrent_mask": ("Masked/Maze-v0", "Taxi-v4"),
}
KILLED = [  # every script with an environment that it resumes bit for bit, and flags
    ("ppo_action_mask", "Masked/JobRouting-v0"),
    ("ppo_action_mask", "Masked/JobRouting-v0", "--compile"),
    ("dqn_action_mask", "Masked/Maze-v0"),
    ("ppo_attention_mask", "Masked/PandaForest-v0"),
    ("ppo_gridwise", "Masked/Harvest-v0"),
    ("ppo_recurrent_mask", "Masked/Vault-v0", "--prev-inputs"),
]
RESUMED = [  # the other environments that can be saved
    *(("ppo_action_mask", f"Masked/{name}-v0") for name in ("Maze", "BinPlacement")),
    ("ppo_action_mask", "Masked/BinPlacement-v0", "--env-kwargs", "dependent", "True"),
    ("dqn_action_mask", "Masked/JobRouting-v0"),
    ("ppo_attention_mask", "Masked/OrderPicking-v0"),
    *((name, "Masked/ConnectFour-v0", "--env-kwargs", "opponent", "pool") for name in list(SMALL)[:2]),
]
PPO_LOSSES = {"value_loss", "policy_loss", "entropy", "old_approx_kl", "approx_kl", "clipfrac", "explained_variance"}
LOSSES = {script: {"td_loss", "q_values"} if script == "dqn_action_mask" else PPO_LOSSES for script in SMALL}
IMAGES = {script: {"agent"} for script in SMALL} | {
    "ppo_attention_mask": {"agent", "attention"},
    "ppo_gridwise": {"agent", "actions"},
}
TAGS = {
    *(f"charts/{tag}" for tag in ("episodic_return", "episodic_length", "learning_rate", "SPS")),
    *("masks/legal_fraction", "masks/illegal_rate", "eval/episodic_return"),
}


@pytest.fixture(params=SMALL)
def script(request):
    return request.param


def main(script, *flags):
    module = importlib.import_module(script)
    return module.main(module.parse(module.Args, flags))


def test_a_run_writes_tags_hparams_text_gif_and_checkpoint(script, tmp_path):
    flags = ("--env-id", WORLDS[script][0], "--total-timesteps", "2048", "--capture-video", "--eval-episodes", "8")
    done = run(tmp_path, script, *SMALL[script], *flags)
    assert done.returncode == 0, done.stderr
    how = "sampled" if script == "ppo_gridwise" else "greedy"
    lines = [line for line in done.stdout.splitlines() if line.startswith("Evaluation")]
    for line, ends in zip(lines, ("", " no mask"), strict=True):
        assert re.match(rf"Evaluation{ends}: episodic_return -?[\d.]+, .*\(8 episodes, {how}\)$", line)
    events = tensorboard(tmp_path)
    tags = TAGS | {f"losses/{name}" for name in LOSSES[script]}
    assert set(events.Tags()["scalars"]) >= tags
    assert all(np.isfinite(event.value) for tag in tags for event in events.Scalars(tag))
    assert events.Scalars("masks/illegal_rate")[-1].value == 0.0
    assert 0.3 < events.Scalars("masks/legal_fraction")[-1].value < 1.0
    assert {"_hparams_/session_start_info"} <= set(events.summary_metadata)
    plugin = events.summary_metadata["_hparams_/experiment"].plugin_data.content
    columns = HParamsPluginData.FromString(plugin).experiment.hparam_infos  # TensorBoard shows five, these first
    assert {column.name for column in columns if column.differs} == COMPARED and len(columns) > len(COMPARED) == 5
    started = HParamsPluginData.FromString(events.summary_metadata["_hparams_/session_start_info"].plugin_data.content)
    assert started.session_start_info.hparams["anneal_lr"].string_value in ("True", "False")
    assert [event.step for event in events.Scalars("eval/episodic_return")] == [2048]  # one event, at the last step
    assert "hyperparameters/text_summary" in events.Tags()["tensors"] and set(events.Tags()["images"]) == IMAGES[script]
    assert (run_folder(tmp_path) / "agent.gif").read_bytes()[:3] == b"GIF"
    assert checkpoint(tmp_path)["script"] == script

    (layout,) = events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val
    charts = [chart.multiline.tag for category in Layout.FromString(layout).category for chart in category.chart]
    shown = [[tag for tag in events.Tags()["scalars"] if re.match("|".join(chart), tag)] for chart in charts]
    losses = ("q_values", "td_loss") if script == "dqn_action_mask" else ("approx_kl", "entropy")
    assert shown == [
        ["charts/episodic_return"],
        ["masks/illegal_rate"],
        *([f"losses/{name}"] for name in losses),
        ["charts/episodic_length"],
    ]


@pytest.mark.parametrize("mode", ["naive", "penalty", "none"])
def test_the_other_arms(script, tmp_path, monkeypatch, mode):
    """With one gradient step for each rollout, PPO's ratio is 1 in all of them, as Huang & Ontanon's code has it."""
    flags = ("--env-id", WORLDS[script][0], "--mask-mode", mode, "--total-timesteps", "640")
    flags += () if script == "dqn_action_mask" else ("--minibatch-size", "32", "--update-epochs", "1")
    monkeypatch.chdir(tmp_path)
    main(script, *SMALL[script], *flags)
    events = tensorboard(tmp_path)
    rates = [event.value for event in events.Scalars("masks/illegal_rate")]
    assert (max(rates) == 0) if mode == "naive" else (min(rates) > 0)
    if script != "dqn_action_mask":
        assert max(abs(event.value) for event in events.Scalars("losses/approx_kl")) < 1e-5


@pytest.mark.parametrize("case", KILLED, ids=" ".join)
def test_killed_and_resumed_equals_never_stopped(tmp_path, case):
    """Everything in the checkpoint: weights, optimizer, environments, generators, and a replay buffer."""
    script, env_id, *more = case
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir(), killed.mkdir()
    flags = (*SMALL[script], "--env-id", env_id, "--total-timesteps", "3200", *more)
    flags += ("--checkpoint-every", "1")
    other, process = start(whole, script, *flags), start(killed, script, *flags)
    deadline = time.time() + 120
    while not list(killed.glob("runs/*/checkpoint.pt")) and time.time() < deadline:
        time.sleep(0.02)
    process.kill()  # SIGKILL: nothing can be saved any more
    process.communicate()
    path = next(killed.glob("runs/*/checkpoint.pt"))
    assert 0 < checkpoint(killed)["iteration"] < 100
    done = run(killed, script, "--resume", str(path.parent))  # the folder will do
    assert done.returncode == 0, done.stderr
    _, err = other.communicate(timeout=120)
    assert other.returncode == 0, err
    a, b = checkpoint(whole), checkpoint(killed)
    assert a["iteration"] == 100 and a["ranks"][0]["envs"] is not None
    assert_same(a | {"args": None}, b | {"args": None})


@pytest.mark.parametrize("case", RESUMED, ids=" ".join)
def test_resumed_from_the_middle_equals_never_stopped(tmp_path, monkeypatch, case):
    script, env_id, *more = case
    monkeypatch.chdir(tmp_path)
    flags = ("--env-id", env_id, "--total-timesteps", "3200", "--checkpoint-every", "60")
    main(script, *SMALL[script], *flags, *more)
    whole = checkpoint()
    (run_folder() / PREVIOUS).replace(run_folder() / "checkpoint.pt")
    assert checkpoint()["iteration"] == 60 and whole["ranks"][0]["envs"] is not None
    main(script, "--resume", str(run_folder()))
    assert_same(whole | {"args": None}, checkpoint() | {"args": None})


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_says_where_and_exits_as_shells_expect(script, tmp_path, signum):
    process = start(tmp_path, script, *SMALL[script], "--total-timesteps", "10000000", "--checkpoint-every", "5")
    deadline = time.time() + 120
    while not list(tmp_path.glob("runs/*/checkpoint.pt")) and time.time() < deadline:
        time.sleep(0.05)
    process.send_signal(signum)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signum, err
    assert f"Stopped by {signum.name}. Continue with --resume runs" in err and "Traceback" not in err
    assert checkpoint(tmp_path)["iteration"] >= 5


def test_a_foreign_env_restarts_on_resume_and_says_so(script, tmp_path, monkeypatch, capsys):
    flags = ("--env-id", WORLDS[script][1], *SMALL[script], "--total-timesteps", "640")
    monkeypatch.chdir(tmp_path)
    main(script, *flags)
    path = run_folder(tmp_path) / "checkpoint.pt"
    saved = torch.load(path, weights_only=True)
    save_checkpoint(path, saved | {"iteration": 10})
    main(script, "--resume", str(path))
    assert "its environments restart" in capsys.readouterr().err
    assert checkpoint(tmp_path)["iteration"] == 20


def test_two_ranks_end_with_equal_weights_and_one_run_folder(script, tmp_path):
    flags = (*SMALL[script], "--env-id", WORLDS[script][0], "--total-timesteps", "640")
    done = run(tmp_path, script, *flags, ranks=2)
    assert done.returncode == 0, done.stderr
    saved = checkpoint(tmp_path)
    assert len(saved["ranks"]) == 2 and saved["iteration"] == 20
    jobs = [rank["envs"]["last_obs"] for rank in saved["ranks"]]
    assert jobs[0].shape[0] == 2 and not torch.equal(*jobs)  # each rank has its own half of the environments
    assert torch.equal(*(rank["weights_sum"] for rank in saved["ranks"]))
    done = run(tmp_path, script, "--resume", str(run_folder(tmp_path) / "checkpoint.pt"))
    assert done.returncode != 0 and "written by 2 ranks, not 1" in done.stderr


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("trained")


@pytest.fixture
def trained(runs, script):
    """The checkpoint of a short run, made once for each script."""
    folder = runs / script
    if not folder.exists():
        folder.mkdir()
        assert run(folder, script, *SMALL[script], "--total-timesteps", "64", "--eval-episodes", "2").returncode == 0
    return run_folder(folder) / "checkpoint.pt"


def test_eval_only_prints_scores_with_and_without_the_mask(script, tmp_path, trained):
    done = run(tmp_path, script, "--eval-only", str(trained.parent), "--eval-episodes", "6")
    assert done.returncode == 0, done.stderr
    scores = json.loads(done.stdout)
    assert scores["as_trained"]["illegal_rate"] == 0 < scores["no_mask"]["illegal_rate"]
    assert scores["as_trained"]["episodic_length"] > 0 and not (tmp_path / "runs").exists()


def test_pictures_need_no_video(script, trained):
    events = tensorboard(trained.parents[2])
    assert set(events.Tags()["images"]) == IMAGES[script]
    assert not (trained.parent / "agent.gif").exists()


@pytest.mark.parametrize("script, env_id", [
    ("ppo_action_mask", "worlds:Test/Wheel-v0"),
    ("dqn_action_mask", "worlds:Test/Wheel-v0"),
    ("ppo_attention_mask", "worlds:Test/Apples-v0"),
    ("ppo_gridwise", "worlds:Test/Lights-v0"),
])  # fmt: skip
def test_an_env_without_a_renderer_has_no_picture_of_it(script, env_id, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(script, *SMALL[script], "--env-id", env_id, "--total-timesteps", "64", "--eval-episodes", "2")
    tags = tensorboard(tmp_path).Tags()
    assert set(tags["images"]) == IMAGES[script] - {"agent"} and "eval/episodic_return" in tags["scalars"]
    assert "picture" not in "".join(capsys.readouterr())


def test_a_renderer_that_fails_costs_the_picture_only(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    script = "ppo_action_mask"
    flags = (*SMALL[script], "--env-id", "worlds:Test/Screenless-v0", "--total-timesteps", "64", "--eval-episodes", "2")
    assert main(script, *flags)
    assert "No picture of the agent: there is no screen" in capsys.readouterr().err
    with pytest.raises(ValueError, match="^--capture-video cannot draw this: RuntimeError: there is no screen"):
        main(script, *flags, "--capture-video", "--exp-name", "video")
    assert not list((tmp_path / "runs").glob("*video*"))  # refused before the training


def test_the_action_map_shows_who_acts_and_what():
    """Two fields side by side, a gap of one cell between them."""
    actions, agents = np.zeros((2, 3, 2), int), np.array([[1, 0, 0], [0, 0, 1]])
    actions[1, 2] = 1, 3
    picture = action_map(actions, agents, np.array([2, 4]))
    assert picture.shape == (48, 7 * 24, 3) and picture.dtype == np.uint8
    corners = picture[4::24, 4::24]  # of each cell, where no number stands
    empty = (corners == corners[0, 3]).all(-1)
    assert np.array_equal(~empty, np.hstack([agents, [[0], [0]], agents]))
    assert len({tuple(corners[y, x]) for y, x in ((0, 0), (1, 2), (1, 6))}) == 3  # choices 0, 1 of 2 and 3 of 4


@pytest.mark.parametrize("flags, words", [
    (("--num-envs", "0"), "--num-envs 0: expected at least 1"),
    (("--learning-rate", "nan"), "--learning-rate nan: expected more than 0"),
    (("--gamma", "1.5"), "--gamma 1.5: expected from 0 to 1"),
    (("--invalid-penalty=-inf",), "--invalid-penalty -inf: expected finite"),
    (("--seed", "-1"), "--seed -1: expected from 0 to"),
    (("--device", "cuda"), "--device cuda: torch sees no GPU"),
    (("--track",), "pip install wandb"),
    (("--env-id", "Masked/Nowhere-v0"), "--env-id Masked/Nowhere-v0"),
    (("--env-kwargs", "num_machines"), "--env-kwargs takes pairs KEY VALUE, got 1"),
    (("--env-kwargs", "colour", "1"), "cannot be made with --env-kwargs .*colour"),
    (("--resume", "runs/none.pt"), "--resume runs/none.pt: there is no such file"),
    (("--eval-only", "none.pt"), "--eval-only none.pt: there is no such file"),
])  # fmt: skip
def test_bad_flags_are_refused_before_training(script, tmp_path, monkeypatch, flags, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=words):
        main(script, *flags)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("script", ["ppo_action_mask", "dqn_action_mask"])
@pytest.mark.parametrize("flags, words", [
    (("--env-id", "CartPole-v1"), "no action mask was given. .*--mask-mode none"),
    (("--env-id", "Pendulum-v1", "--mask-mode", "none"), "expected Discrete .*dqn_action_mask.py"),
])  # fmt: skip
def test_environments_without_masks_or_choices_are_refused(script, tmp_path, monkeypatch, flags, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=words):
        main(script, *flags)


@pytest.mark.parametrize(
    "script, kwargs",
    [("ppo_gridwise", ("height", "12", "width", "9")), ("ppo_attention_mask", ("num_watermelons", "6"))],
)
def test_a_trained_agent_is_evaluated_in_a_larger_world(script, kwargs, tmp_path, trained):
    default = json.loads(run(tmp_path, script, "--eval-only", str(trained), "--eval-episodes", "6").stdout)
    done = run(tmp_path, script, "--eval-only", str(trained), "--eval-episodes", "6", "--env-kwargs", *kwargs)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["as_trained"] != default["as_trained"]
    with pytest.raises(ValueError, match="--env-kwargs .* the checkpoint was trained with"):
        main(script, "--resume", str(trained), "--env-kwargs", *kwargs)


def test_bad_checkpoints_are_refused_and_left_as_they_were(script, tmp_path, trained, monkeypatch):
    whole = trained.read_bytes()
    broken = tmp_path / "checkpoint.pt"
    broken.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="not a whole checkpoint"):
        main(script, "--resume", str(broken))
    assert broken.read_bytes() == whole[: len(whole) // 2]

    state = torch.load(trained, weights_only=True)
    save_checkpoint(broken, state | {"script": "other"})
    with pytest.raises(ValueError, match=f"a checkpoint of other.py, expected one of {script}.py"):
        main(script, "--resume", str(broken))
    with pytest.raises(ValueError, match="--env-id Taxi-v4: the checkpoint was trained with Masked/"):
        main(script, "--resume", str(trained), "--env-id", "Taxi-v4")
    with monkeypatch.context() as older:
        older.setattr("experiment.checkpoint.FORMAT", 2)
        save_checkpoint(broken, state)
    with pytest.raises(ValueError, match=f"written by another version of {script}.py; use that one, or train anew"):
        main(script, "--resume", str(broken))
    save_checkpoint(broken, state | {"obs_shape": [99]})
    with pytest.raises(ValueError, match=r"\[99\] observations.*another version"):
        main(script, "--resume", str(broken))
    assert trained.read_bytes() == whole


def test_a_diverged_loss_stops_and_keeps_the_last_good_checkpoint(script, tmp_path):
    flags = (*SMALL[script], "--total-timesteps", "6400", "--learning-rate", "1e30", "--checkpoint-every", "1")
    done = run(tmp_path, script, *flags)
    assert done.returncode != 0 and "NaN or inf" in done.stderr and "Lower --learning-rate" in done.stderr
    kept = list(tmp_path.glob("runs/*/checkpoint.pt"))
    if kept:
        weights = torch.load(kept[0], weights_only=True)["model"]
        assert all(torch.isfinite(w).all() for w in weights.values())
        assert f"Last good checkpoint: {kept[0].relative_to(tmp_path)}" in done.stderr


def test_track_starts_weights_and_biases(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    started, wandb = [], types.ModuleType("wandb")
    wandb.__spec__, wandb.init = importlib.machinery.ModuleSpec("wandb", None), lambda **kwargs: started.append(kwargs)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    main(script, *SMALL[script], "--track", "--total-timesteps", "64", "--seed", "3")
    assert len(started) == 1 and started[0]["sync_tensorboard"] and started[0]["config"]["seed"] == 3


def test_flags_have_help_a_range_and_a_group_also_where_a_script_changes_the_default(script, capsys):
    with pytest.raises(SystemExit):
        main(script, "--help")
    out, args = capsys.readouterr().out, importlib.import_module(script).Args()
    shown = re.sub(r"[\s│]+", " ", out)
    groups = re.split(r"^\W*(\w+) options\W*$", out, flags=re.MULTILINE)[1:]
    assert groups[::2] == ["experiment", "environment", "masking", "runtime", "algorithm"]
    flags = [re.findall(r"^[│ ] --([a-z][a-z-]*)", group, re.MULTILINE) for group in groups[1::2]]
    assert sorted(sum(flags, [])) == sorted(name.replace("_", "-") for name in vars(args) if name != "given")
    assert "env-id" in flags[1] and "mask-mode" in flags[2] and "total-timesteps" in flags[3]
    assert "gamma" in flags[4] and f"ranks (default: {args.total_timesteps})" in shown
    assert "any registered id; module:Id-v0 imports the module first" in shown
    assert "--total-timesteps INT, at least 1 environment steps over all environments and ranks (default: " in shown
    assert "--gamma FLOAT, from 0 to 1 discount (default: 0.99)" in shown


def test_ranks_that_do_not_log_forget_episodes_as_well(tmp_path):
    """Both ranks' lists of ended episodes are empty at the end, when the last iteration was logged."""
    code = "import importlib, sys; from experiment import Run; finish = Run.finish\n"
    code += "left = lambda run: sys.stdout.write(f'LEFT {len(run.envs.ended)}\\n')\n"  # one write, for two ranks do
    code += "Run.finish = lambda run, *play: (left(run), finish(run, *play))[1]\n"
    code += "script = importlib.import_module(sys.argv[1]); script.main(script.parse(script.Args, sys.argv[2:]))"
    path = tmp_path / "watched.py"
    path.write_text(code)
    flags = ("ppo_action_mask", *SMALL["ppo_action_mask"], "--total-timesteps", "6400")
    done = run(tmp_path, path, *flags, ranks=2)
    assert done.returncode == 0 and done.stdout.count("LEFT 0") == 2, done.stdout + done.stderr
