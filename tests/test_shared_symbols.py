"""What several scripts hold, so that each can be copied alone, is the same text in all of them."""

import ast
from itertools import combinations

import pytest
from script import ROOT

PPO, DQN, ATTENTION, GRID = "ppo_action_mask", "dqn_action_mask", "ppo_attention_mask", "ppo_gridwise"
SCRIPTS = (PPO, DQN, ATTENTION, GRID)
SHARED = {
    (PPO, ATTENTION, GRID): ("CategoricalMasked", "layer_init", "compute_gae", "update"),
    (PPO, ATTENTION): ("ppo_loss", "look_back"),
}
DIFFERENT = {"Args", "Agent", "main", "ppo_loss", "look_back", "update"}  # the same name, another text


def symbols(script):
    source = (ROOT / f"{script}.py").read_text()
    named = (node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef | ast.ClassDef))
    return {node.name: ast.get_source_segment(source, node) for node in named}


@pytest.mark.parametrize("scripts, name", [(scripts, name) for scripts, names in SHARED.items() for name in names])
def test_copies_are_identical(scripts, name):
    assert len({symbols(script)[name] for script in scripts}) == 1


@pytest.mark.parametrize("a, b", [*combinations(SCRIPTS, 2)])
def test_the_list_names_all_copies(a, b):
    """A symbol of two scripts that is not listed has another meaning in each, and is known for that."""
    listed = {name for scripts, names in SHARED.items() if {a, b} <= set(scripts) for name in names}
    assert (symbols(a).keys() & symbols(b).keys()) - listed <= DIFFERENT
