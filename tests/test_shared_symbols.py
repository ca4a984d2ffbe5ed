"""What several scripts hold, so that each can be copied alone, is the same text in all of them."""

import ast

import pytest
from script import ROOT

SCRIPTS = ("ppo_action_mask", "dqn_action_mask")
SHARED = {
    SCRIPTS: (
        "flat_parameters",
        "evaluate",
        "greedy_actions",
        "masks_acting",
        "on_host",
        "make_update",
        "agreed",
        "finish",
    ),
}


def symbols(script):
    source = (ROOT / f"{script}.py").read_text()
    named = (node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef | ast.ClassDef))
    return {node.name: ast.get_source_segment(source, node) for node in named}


@pytest.mark.parametrize("scripts, name", [(scripts, name) for scripts, names in SHARED.items() for name in names])
def test_copies_are_identical(scripts, name):
    assert len({symbols(script)[name] for script in scripts}) == 1


def test_the_list_names_all_copies():
    """A symbol of two scripts that is not listed has another meaning in each."""
    differing = {"Args", "main", "make_act", "check_args"}
    for a, b in [(a, b) for a in SCRIPTS for b in SCRIPTS if a < b]:
        listed = {name for scripts, names in SHARED.items() if {a, b} <= set(scripts) for name in names}
        assert symbols(a).keys() & symbols(b).keys() == listed | differing
