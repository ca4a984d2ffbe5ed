"""The studies: what is recorded, what a second call repeats, and the world of the ratio study."""

import importlib
import json
import shlex
import subprocess
import sys

import numpy as np
import pytest
from script import ROOT

import benchmark.locks
import benchmark.signals  # noqa: F401, both register their worlds
from envs.make import make_vec
from experiment.flags import parse


def test_the_flags_of_every_study_and_of_every_score_are_flags(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmark")
    studies, runs = importlib.import_module("study").STUDIES, importlib.import_module("scores").RUNS
    cases = [
        (s.script, f"{s.flags} {arm}".format(point=s.points[0])) for s in studies.values() for arm in s.arms.values()
    ]
    cases += [
        (script, stage) for script, names in runs.items() for flags in names.values() for stage in flags.split("&&")
    ]
    for script, flags in cases:
        parse(importlib.import_module(script).Args, shlex.split(flags))


def test_a_study_goes_on_with_the_runs_that_are_missing(tmp_path):
    flags = ["--studies", "ratio", "--seeds", "1", "--points", "1", "4", "--arms", "agent", "--out", str(tmp_path)]
    command = [sys.executable, "benchmark/study.py", *flags, "--flags=--total-timesteps 1024 --eval-episodes 2"]
    path = tmp_path / "study_ratio.json"

    def study():
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines(), json.loads(path.read_text())

    lines, runs = study()
    assert [(run["point"], run["arm"], run["seed"]) for run in runs] == [(1, "agent", 1), (4, "agent", 1)]
    assert len(lines) == 2 and all(run["commit"] and "torch" in run["versions"] for run in runs)
    path.write_text(json.dumps(runs[1:]))
    lines, again = study()
    assert len(lines) == 1 and again[0] == runs[1]  # only the missing one
    assert again[1]["scores"] == runs[0]["scores"] and again[1]["curve"] == runs[0]["curve"]
    assert study() == ([], again)


def test_a_run_in_two_stages_ends_with_the_second_which_begins_with_the_first(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmark")
    scores = importlib.import_module("scores")
    stage = "--num-envs 4 --num-steps 8 --minibatch-size 16 --eval-episodes 2 --seed 1 --learning-rate"
    first, second, both = f"{stage} 0.01 --total-timesteps 64", f"{stage} 1e-30 --total-timesteps 32", scores.THEN
    trained, events = scores.train("ppo_action_mask", f"{first}{both}{second}")
    assert trained == scores.train("ppo_action_mask", first)[0]
    assert [event.step for event in events.Scalars("losses/entropy")] == [32]


def test_signals_pays_the_share_of_agents_that_are_right():
    envs = make_vec("benchmark.signals:Signals-v0", 8, {"num_agents": 9}, layout="grid")
    obs, infos = envs.reset(seed=0)
    for step in range(16):
        numbers = obs[:, 0] + 2 * obs[:, 1]
        answers = np.where(np.arange(9).reshape(3, 3) < step % 10, numbers, (numbers + 1) % 4).astype(np.int64)
        obs, rewards, _, truncations, infos = envs.step(answers)
        np.testing.assert_allclose(rewards, step % 10 / 9)
        assert truncations.all() == (step == 15)
    assert (infos["final_info"]["optimal_return"] == 16).all()


@pytest.mark.parametrize("sizes", ["3x4", "2x3x2"])
def test_locks_tell_the_same_combinations_in_three_ways(sizes):
    envs = {
        way: make_vec("benchmark.locks:Locks-v0", 4, {"sizes": sizes, "way": way}, dependent=True)
        for way in ("joint", "product", "flat")
    }
    for env in envs.values():
        env.reset(seed=0)
    nvec, total = envs["joint"].nvec, 0
    for _ in range(16):
        legal = envs["flat"].last_mask.astype(bool)
        best = (envs["flat"].env.unwrapped.worth[envs["flat"].env.unwrapped.kind].reshape(4, -1) * legal).argmax(1)
        fields = np.stack(np.unravel_index(best, nvec), axis=1)
        assert not envs["joint"].illegal(fields, envs["joint"].path_mask(fields)).any()
        np.testing.assert_array_equal(envs["joint"].last_mask, envs["product"].last_mask)
        flat, joint, product = (
            envs[way].step(actions)[1] for way, actions in (("flat", best), ("joint", fields), ("product", fields))
        )
        assert (flat > 0).all() and (flat == joint).all() and (flat == product).all()
        total += flat
    assert (total < 16).all()
