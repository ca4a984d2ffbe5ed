"""What several scripts hold, so that each can be copied alone, is the same text in all of them."""

import ast
import doctest
import re
from itertools import combinations
from typing import ClassVar

import einops
import pytest
import torch
from script import ROOT

PPO, DQN, ATTENTION, GRID = "ppo_action_mask", "dqn_action_mask", "ppo_attention_mask", "ppo_gridwise"
RECURRENT = "ppo_recurrent_mask"
SCRIPTS = (PPO, DQN, ATTENTION, GRID, RECURRENT)
SHARED = {
    (PPO, ATTENTION, GRID, RECURRENT): ("CategoricalMasked", "layer_init", "compute_gae", "update"),
    (PPO, ATTENTION, RECURRENT): ("ppo_loss",),
    (PPO, ATTENTION): ("evaluate_actions",),
}
DIFFERENT = {"Args", "Agent", "main", "ppo_loss", "evaluate_actions", "update"}  # the same name, another text


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


COPIED = {  # what the README names, and its doctest
    PPO: ("CategoricalMasked",),
    DQN: ("td_targets", "masked"),
    ATTENTION: ("Packing", "MultiHeadAttention"),
    GRID: ("CategoricalMasked", "CategoricalMap"),
    RECURRENT: ("EpisodicGRU",),
}


@pytest.mark.parametrize("script", COPIED)
def test_what_readers_copy_stands_together_and_needs_torch_and_einops_only(script):
    names = {"torch": torch, "nn": torch.nn, "F": torch.nn.functional, "Tensor": torch.Tensor, "ClassVar": ClassVar}
    names |= {"rearrange": einops.rearrange, "einsum": einops.einsum, "__name__": "copied"}
    order = [name for name in symbols(script) if name in COPIED[script]]
    first = list(symbols(script)).index(order[0])
    assert list(symbols(script))[first : first + len(order)] == order == list(COPIED[script])
    for name in order:
        exec(symbols(script)[name], names)
    results = [doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test)
               for name in order for test in doctest.DocTestFinder().find(names[name], name, globs=names)]  # fmt: skip
    assert sum(result.attempted for result in results) > 0 == sum(result.failed for result in results)


def test_scripts_use_experiment_which_uses_envs_and_never_the_other_way_round():
    for folder, strangers in (("envs", {"experiment", *SCRIPTS}), ("experiment", set(SCRIPTS))):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else getattr(node, "names", [])
                assert not {getattr(m, "name", m).split(".")[0] for m in modules} & strangers, path


def test_no_two_worlds_of_the_tests_have_one_id():
    """Tests share processes, in any order."""
    texts = [path.read_text() for path in (ROOT / "tests").glob("*.py")]
    ids = [name for text in texts for name in re.findall(r"""register(?:_batched)?\("(Test/[^"]+)""", text)]
    assert len(ids) > 40 and sorted(ids) == sorted(set(ids))
