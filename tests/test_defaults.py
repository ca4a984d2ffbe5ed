"""The time to a score: when a training has reached it, and what a second call repeats."""

import importlib
import json

import numpy as np
import pytest
from script import ROOT

import ppo_action_mask

SETTING = (8, 16, 64)


@pytest.fixture
def defaults(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "benchmark")
    monkeypatch.chdir(tmp_path)  # for runs/
    module = importlib.import_module("defaults")
    monkeypatch.setattr(module, "WINDOW", 1024)
    return module


def task(defaults, score, cap=2048):
    return defaults.Task("ppo_action_mask", "Masked/JobRouting-v0", 65_536, score, cap, ((64, 16, 256), SETTING), 2)


def test_a_training_ends_at_the_score_or_at_the_cap(defaults):
    reached = defaults.train(task(defaults, 0.4, cap=8192), SETTING, seed=1)  # legal play earns half of the optimum
    assert reached["reached"] and reached["steps"] == 2048 and 0.4 <= reached["score"] < 1  # never before two windows
    capped = defaults.train(task(defaults, 0.99, cap=3000), SETTING, seed=1)
    assert not capped["reached"] and capped["steps"] == 3072  # its episodes end together, every 512 steps
    assert 0.4 <= capped["score"] < 0.99 and capped["seconds"] > 0


def test_the_score_is_that_of_the_last_window(defaults):
    watch = defaults.Watch(task(defaults, 0.9, cap=10**6))
    for share in (1.0, 0.5, 0.5, 0.7):
        watch.tick(512)
        watch.episodes(np.full(8, 2 * share), np.full(8, 2.0))
    assert watch.score() == pytest.approx(0.6)
    watch.tick(512)
    with pytest.raises(defaults.Done):
        watch.episodes(np.full(8, 2.4), np.full(8, 2.0))
    assert watch.reached and watch.score() == pytest.approx(0.95)


def test_sizes_seed_and_step_size_reach_the_script(defaults, monkeypatch):
    trained = []
    monkeypatch.setattr(ppo_action_mask, "main", trained.append)
    with pytest.raises(ValueError, match="cap"):  # as nothing was trained
        defaults.train(task(defaults, 0.9), SETTING, seed=7)
    args = trained[0]
    assert (args.num_envs, args.num_steps, args.minibatch_size, args.seed, args.compile) == (*SETTING, 7, False)
    assert args.learning_rate == pytest.approx(ppo_action_mask.Args.learning_rate / 2)  # a quarter of the samples


def test_runs_that_are_missing_are_made(defaults, monkeypatch, tmp_path):
    made, path = [], tmp_path / "defaults.json"
    monkeypatch.setattr(defaults, "TASKS", {"short": task(defaults, 0.5)})
    monkeypatch.setattr(defaults, "child", lambda *flags: made.append(flags[4:]) or {"reached": True})
    defaults.main(defaults.Args(tasks=("short",), out=path))
    settings = [("--setting", "64", "16", "256"), ("--setting", "8", "16", "64")]
    assert made == [(seed, *setting) for seed in ("1", "2") for setting in settings]
    runs = json.loads(path.read_text())
    path.write_text(json.dumps(runs[1:]))
    made.clear()
    defaults.main(defaults.Args(tasks=("short",), out=path))
    assert made == [("1", *settings[0])] and len(json.loads(path.read_text())) == 4
