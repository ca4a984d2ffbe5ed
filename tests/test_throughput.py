"""The rounds of the throughput benchmark: their seeds, and what a second call repeats."""

import importlib
import json

import pytest
from script import ROOT

import ppo_action_mask


@pytest.fixture
def throughput(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmark")
    return importlib.import_module("throughput")


def test_every_round_has_a_seed_of_its_own(throughput, monkeypatch, tmp_path):
    seeds, path = [], tmp_path / "throughput.json"

    def child(file, *flags, ranks):
        seeds.append(int(flags[flags.index("--seed") + 1]))
        return {"steps_per_second": 1.0, "seconds_to_score": None, "final_return": None}

    monkeypatch.setattr(throughput, "child", child)
    monkeypatch.setattr(throughput, "setup", lambda pairs, *peers: {"pairs": pairs, "commit": "1a2b3c"})

    def recorded(pairs):
        throughput.main(throughput.Args(suite="jax-64", pairs=pairs, out=path))
        return json.loads(path.read_text())

    assert recorded(2)["seeds"] == [1, 2] and seeds == [1, 1, 1, 2, 2, 2]  # three arms
    assert recorded(3)["seeds"] == [1, 2, 3] and seeds[6:] == [3, 3, 3]  # the peer's too
    old = json.loads(path.read_text())
    del old["seeds"]
    path.write_text(json.dumps(old))
    assert recorded(4)["seeds"] == [1, 1, 1, 4]  # once rounds shared a seed, and files did not say so


def test_our_arms_train_with_the_seed_of_the_round(throughput, monkeypatch):
    trained = []
    monkeypatch.setattr(ppo_action_mask, "main", trained.append)
    throughput.run_ours(throughput.Args(suite="ppo", arm="ours, 8 batched envs", seed=7), 1024)
    assert [args.seed for args in trained] == [7]
