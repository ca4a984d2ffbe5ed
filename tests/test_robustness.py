"""benchmark/robustness.py: what it calls right is right, and it does not call right what is not."""

import importlib
import json
import time

import pytest
from script import ROOT


@pytest.fixture(scope="module")
def robustness():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmark")
        patch.syspath_prepend(ROOT)
        yield importlib.import_module("robustness")


@pytest.fixture(scope="module")
def cases(robustness):
    return [case for group in robustness.GROUPS for case in group()]


def test_there_are_cases_enough_each_with_a_name_of_its_own(cases):
    names = {(case.kind, case.name) for case in cases}
    assert len(names) == len(cases) >= 150 and len({case.kind for case in cases}) >= 15


@pytest.mark.parametrize("kind, name", [
    ("constraints on named fields", "Mask of another length"),
    ("classes to copy", "CategoricalMasked, mask of uint8"),
    ("masks that are wrong", "ppo_action_mask: np.array([0.5, 1, 1])"),
    ("masks that are right in their own way", "bool"),
    ("flags out of their range", "ppo_action_mask --gamma 2"),
    ("one info, observation or mask for ever, changed in place", "mask by info"),
])  # fmt: skip
def test_some_cases(robustness, cases, kind, name):
    (case,) = [case for case in cases if (case.kind, case.name) == (kind, name)]
    outcome, got = robustness.judge(case)
    assert outcome == ("refused" if isinstance(case.right, robustness.Refusal) else "passed"), got


def raises(error):
    def run():
        raise error

    return run


@pytest.mark.parametrize("run, right, words", [
    (lambda: 1, 2, "value 1"),
    (lambda: 1, True, "value 1"),
    (lambda: "ended well", ("mask",), "no refusal"),
    (raises(ValueError("something else")), ("mask",), "something else"),
    (raises(ValueError("the mask")), 1, "the mask"),
    (raises(KeyError("mask")), ("mask",), "KeyError"),
    (lambda: time.sleep(10), 1, "not finished after 1 s"),
])  # fmt: skip
def test_what_is_not_right_fails(robustness, run, right, words):
    right = robustness.Refusal(right) if isinstance(right, tuple) else right
    outcome, got = robustness.judge(robustness.Case("kind", "name", run, right, 1.0))
    assert outcome == "failed" and words in got


def test_two_right_outcomes(robustness):
    for run, outcome in ((lambda: 1, "passed"), (raises(TypeError("the MASK is None")), "refused")):
        case = robustness.Case("kind", "name", run, (robustness.Refusal(("mask", "none")), 1), 1.0)
        assert robustness.judge(case)[0] == outcome


def test_a_difference_is_found_wherever_it_is(robustness):
    import torch

    a = {"model": {"w": torch.zeros(2)}, "ranks": [{"rng": 1}], "args": {"gamma": 1}}
    assert robustness.difference(a, a | {"args": {}}) is None
    assert robustness.difference(a, a | {"model": {"w": torch.ones(2)}}) == "/model/w"
    assert robustness.difference(a, a | {"ranks": [{"rng": 2}]}) == "/ranks/0/rng"
    assert robustness.difference(a, a | {"more": 1}) == "/more"


def test_the_page_has_the_tables_of_what_is_recorded(robustness, cases):
    recorded, page = ROOT / "docs/results/robustness.json", ROOT / "docs/robustness.md"
    if not recorded.exists():
        pytest.skip("nothing is recorded yet")
    record = json.loads(recorded.read_text())
    assert robustness.fill(page.read_text(), record) == page.read_text()
    known = {(case.kind, case.name) for case in cases}
    assert {(one["kind"], one["name"]) for one in record["inputs"]["records"]} <= known
