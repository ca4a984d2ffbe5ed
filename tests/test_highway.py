"""highway-env, a real environment that others wrote: its Kinematics matrix and its available actions, no adapter."""

import shlex

import pytest
from script import run, tensorboard

pytest.importorskip("highway_env", reason='highway-env is optional: pip install "highway-env==1.12.1"')

SMALL = shlex.split("--num-envs 2 --num-steps 8 --minibatch-size 16 --total-timesteps 64 --eval-episodes 1 --dim 8")


def test_merge_trains_with_a_flag_and_no_adapter(tmp_path):
    flags = ("--env-id", "highway_env:merge-v0", "--presence-column", "0", *SMALL)
    done = run(tmp_path, "ppo_attention_mask", *flags)
    assert done.returncode == 0, done.stderr
    events = tensorboard(tmp_path)
    legal = [event.value for event in events.Scalars("masks/legal_fraction")]
    assert max(event.value for event in events.Scalars("masks/illegal_rate")) == 0
    assert all(0 < fraction <= 1 for fraction in legal) and min(legal) < 1


def test_without_the_flag_the_error_names_it(tmp_path):
    done = run(tmp_path, "ppo_attention_mask", "--env-id", "highway_env:merge-v0", *SMALL)
    assert done.returncode != 0 and "--presence-column 0 for highway-env's Kinematics" in done.stderr
