"""The update of every script against plain PyTorch: eager, compiled, two ranks, any memory layout, any moment."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from script import ROOT
from torch.testing import assert_close
from updates import SCRIPTS, Case, alone

from experiment.fast import columns_first, compiled

LAYOUTS = {
    "as made": lambda module: None,
    "columns first": columns_first,
    "channels last": lambda module: module.to(memory_format=torch.channels_last),
}


@pytest.fixture(params=SCRIPTS)
def name(request):
    return request.param


def close(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b, atol=1e-6, rtol=0)


def train(case, optimizer, update, minibatches):
    for minibatch in minibatches:
        update(*case.networks, optimizer, minibatch[0], case.args, alone)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_update_is_backward_and_adam_in_every_memory_layout(name, layout):
    """The fused kernel goes by memory: gradients of channels-last convolutions have other strides than the weights."""
    case = Case(name, LAYOUTS[layout])
    train(case, case.adam(), case.script.update, case.minibatches)
    close(case.weights(), Case(name, LAYOUTS["as made"]).reference([0]))


@pytest.mark.parametrize("name, form", [*((name, "eager") for name in SCRIPTS), (SCRIPTS[0], "compiled")])
def test_an_update_of_two_ranks_is_that_of_the_mean_gradient(name, form, tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, str(ROOT / "tests/updates.py"), name, str(tmp_path / "weights.pt"), form]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    close(torch.load(tmp_path / "weights.pt"), Case(name).reference([0, 1]))


@pytest.mark.parametrize("before, after", [("columns first", "channels last"), ("channels last", "as made")])
def test_what_one_layout_has_saved_another_continues(name, before, after, tmp_path):
    """The state is the same to the bit, and so is where it leads, but for the order of sums."""
    case = Case(name, LAYOUTS[before])
    optimizer = case.adam()
    train(case, optimizer, case.script.update, case.minibatches[:3])
    torch.save((case.agent.state_dict(), optimizer.state_dict()), tmp_path / "checkpoint.pt")
    weights, state = torch.load(tmp_path / "checkpoint.pt")

    other = Case(name, LAYOUTS[after])
    restored = other.adam()
    other.agent.load_state_dict(weights), restored.load_state_dict(state)
    for key, tensors in restored.state_dict().items():
        assert all(torch.equal(a, b) for a, b in zip(tensors, optimizer.state_dict()[key], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(other.weights(), case.weights(), strict=True))
    train(other, restored, other.script.update, other.minibatches[3:])
    close(other.weights(), Case(name).reference([0]))


def test_a_compiled_update_is_backward_and_adam_restored_after_the_graph_was_made_as_well(name):
    """Restoring copies into what the graph holds: new tensors would be trained, saved, and never used."""
    case = Case(name)
    optimizer, update = case.adam(), compiled(case.script.update)
    weights, state = copy.deepcopy((case.agent.state_dict(), optimizer.state_dict()))
    for minibatches in (case.minibatches, case.minibatches[:2], case.minibatches):  # the second leads elsewhere
        case.agent.load_state_dict(weights), optimizer.load_state_dict(state)
        train(case, optimizer, update, minibatches)
    close(case.weights(), Case(name).reference([0]))
    assert all(step == 5 for step in optimizer.state_dict()["steps"])
