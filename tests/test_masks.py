"""CategoricalMasked: worked figures, brute force, dtypes, and the traps that other implementations fall into."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppo_action_mask import CategoricalMasked

LOGITS = torch.tensor([[-1.8222, 1.0769, -0.6567], [-0.6729, 0.1665, -1.7856]])
MASK = torch.tensor([[False, False, True], [True, True, False]])


def random_case(seed, nvec, batch=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(batch, sum(nvec), generator=generator, dtype=dtype)
    mask = torch.rand(batch, sum(nvec), generator=generator) < 0.5
    starts = torch.tensor((0, *nvec[:-1])).cumsum(0)
    for start, n in zip(starts, nvec, strict=True):  # one choice at least is legal in each field
        mask[torch.arange(batch), start + torch.randint(n, (batch,), generator=generator)] = True
    return logits, mask


def test_worked_figures():
    free = CategoricalMasked(LOGITS, None)
    torch.testing.assert_close(
        free.probs, torch.tensor([[0.0447, 0.8119, 0.1434], [0.2745, 0.6353, 0.0902]]), atol=5e-5, rtol=0
    )
    torch.testing.assert_close(free.entropy(), torch.tensor([0.5867, 0.8600]), atol=5e-5, rtol=0)
    masked = CategoricalMasked(LOGITS, MASK)
    torch.testing.assert_close(masked.probs, torch.tensor([[0, 0, 1], [0.3017, 0.6983, 0]]), atol=5e-5, rtol=0)
    torch.testing.assert_close(masked.entropy(), torch.tensor([0, 0.6123]), atol=5e-5, rtol=0)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), nvec=st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_log_prob_and_entropy_match_brute_force(seed, nvec):
    """Every joint action enumerated: probabilities are products over fields of renormalised legal weights."""
    logits, mask = random_case(seed, nvec)
    dist = CategoricalMasked(logits, mask, tuple(nvec))
    joint = torch.cartesian_prod(*(torch.arange(n) for n in nvec)).view(-1, len(nvec))
    for row in range(len(logits)):
        fields = []
        for field_logits, field_mask in zip(logits[row].split(nvec), mask[row].split(nvec), strict=True):
            weights = torch.where(field_mask, field_logits.exp(), 0.0)
            fields.append(weights / weights.sum())
        expected = torch.stack([math.prod(f[a] for f, a in zip(fields, action, strict=True)) for action in joint])
        one = CategoricalMasked(logits[row].expand(len(joint), -1), mask[row].expand(len(joint), -1), tuple(nvec))
        legal = expected > 0
        torch.testing.assert_close(one.log_prob(joint).exp(), expected)
        entropy = -(expected[legal] * expected[legal].log()).sum()
        torch.testing.assert_close(dist.entropy()[row], entropy)
        best = joint[expected.argmax()]
        assert torch.isclose(dist.log_prob(dist.mode)[row].exp(), expected.max()), best


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("nvec", [(7,), (3, 3, 3), (2, 5, 1)])
def test_illegal_choices_have_zero_mass_and_zero_gradient_in_every_dtype(dtype, nvec):
    logits, mask = random_case(0, nvec)
    logits = (logits * 20).to(dtype).requires_grad_()
    dist = CategoricalMasked(logits, mask, nvec)
    action = dist.sample()
    loss = dist.log_prob(action).sum() + dist.entropy().sum()
    loss.backward()
    assert logits.grad.dtype == dtype and torch.isfinite(logits.grad).all()
    assert (logits.grad[~mask] == 0).all()
    assert torch.isfinite(dist.entropy()).all() and torch.isfinite(dist.log_prob(action)).all()
    flat_probs = torch.zeros_like(mask, dtype=dist.probs.dtype)
    for k, (start, n) in enumerate(zip(torch.tensor((0, *nvec[:-1])).cumsum(0), nvec, strict=True)):
        flat_probs[:, start : start + n] = dist.probs[:, k, :n]
        assert mask[torch.arange(5), start + action[:, k]].all()
    assert (flat_probs[~mask] == 0).all()
    torch.testing.assert_close(flat_probs.sum(-1), torch.full((5,), float(len(nvec)), dtype=flat_probs.dtype))


def test_half_precision_at_its_limits_keeps_illegal_mass_at_zero():
    logits = torch.full((1, 3), torch.finfo(torch.float16).min, dtype=torch.float16)
    probs = CategoricalMasked(logits, torch.tensor([[True, False, True]])).probs
    assert probs.tolist() == [[0.5, 0.0, 0.5]]


LOWEST = [-math.inf, "lowest"]  # the lowest finite number of the dtype


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("low", LOWEST)
@pytest.mark.parametrize("nvec", [None, (5,), (2, 2, 1), (1, 4)])
@pytest.mark.parametrize("illegal", [5.0, 1e4])
def test_legal_logits_as_low_as_can_be_let_no_illegal_choice_in(dtype, low, nvec, illegal):
    """All legal ones of the first row are; in the second one is, beside a logit of 1 (in a field of its own or not)."""
    low = torch.finfo(dtype).min if low == "lowest" else low
    logits = torch.tensor([[low, illegal, low, illegal, low], [low, illegal, 1.0, illegal, 1.0]], dtype=dtype)
    mask = torch.tensor([[True, False, True, False, True]]).expand(2, 5)
    logits.requires_grad_()
    dist = CategoricalMasked(logits, mask, nvec)
    fields = [5] if nvec is None else nvec
    starts = [sum(fields[:k]) for k in range(len(fields))]
    legal_choices = [[a for a in range(n) if (start + a) % 2 == 0] for start, n in zip(starts, fields, strict=True)]
    probs = dist.probs.view(2, len(fields), -1)
    for k, (start, choices) in enumerate(zip(starts, legal_choices, strict=True)):
        for row, lows in enumerate([[low] * 5, [low, None, 1.0, None, 1.0]]):
            best = max(lows[start + a] for a in choices)
            expected = torch.zeros(probs.shape[-1], dtype=probs.dtype)
            winners = [a for a in choices if lows[start + a] == best]
            expected[winners] = 1 / len(winners)
            torch.testing.assert_close(probs[row, k], expected)
            assert (probs[row, k][[a for a in range(len(expected)) if a not in choices]] == 0).all()  # not about 0
    for action in [dist.mode, *(dist.sample(torch.Generator().manual_seed(seed)) for seed in range(20))]:
        for k, choices in enumerate(legal_choices):
            assert all(a in choices for a in action.view(2, -1)[:, k].tolist())
        dist = CategoricalMasked(logits, mask, nvec)
        log_prob, entropy = dist.log_prob(action), dist.entropy()
        assert torch.isfinite(log_prob).all() and torch.isfinite(entropy).all()
        (gradient,) = torch.autograd.grad(log_prob.exp().sum() + log_prob.sum() + entropy.sum(), logits)
        assert torch.isfinite(gradient).all() and (gradient[~mask] == 0).all()
    uniform = sum(math.log(len(choices)) for choices in legal_choices)
    assert entropy[0].item() == pytest.approx(uniform, abs=1e-6)
    assert not torch.isnan(dist.log_prob(torch.zeros_like(action))).any()  # of a choice that has no probability


@settings(max_examples=100, deadline=None)
@given(st.data(), st.integers(1, 6))
def test_whatever_finite_or_minus_infinite_logits_give_no_nan(data, size):
    numbers = st.floats(max_value=2.0**126, width=32, allow_nan=False) | st.sampled_from(
        [-math.inf, -3.4028234663852886e38]
    )
    logits = torch.tensor(data.draw(st.lists(numbers, min_size=size, max_size=size)), requires_grad=True)
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    mask[data.draw(st.integers(0, size - 1))] = True
    dist = CategoricalMasked(logits[None], mask[None])
    action = dist.sample()
    loss = dist.log_prob(action).sum() + dist.entropy().sum()
    loss.backward()
    assert not torch.isnan(dist.log_probs).any() and torch.isfinite(loss) and torch.isfinite(logits.grad).all()
    assert mask[action] and mask[dist.mode] and (dist.probs[0][~mask] == 0).all() and (logits.grad[~mask] == 0).all()
    assert dist.probs.sum().item() == pytest.approx(1, abs=1e-5)


def test_ordinary_logits_are_what_they_are_to_the_bit():
    logits, mask = random_case(0, (16,), batch=64, dtype=torch.float32)
    for scale in (1.0, 1e4, 1e30):
        dist = CategoricalMasked(scale * logits, mask)
        assert torch.equal(dist.logits[mask], (scale * logits)[mask])
        lowest = torch.finfo(torch.float32).min
        assert torch.equal(dist.probs, torch.where(mask, scale * logits, lowest).softmax(-1))


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_nan_and_infinity_reach_the_loss(broken):
    """Nothing hides them: the loss is NaN, which stops a training. In an illegal entry nobody reads them."""
    logits, mask = torch.tensor([[broken, 1.0, 2.0]]), torch.tensor([[True, True, False]])
    dist = CategoricalMasked(logits, mask)
    assert dist.log_prob(torch.tensor([0])).isnan().all() and dist.entropy().isnan().all()
    assert CategoricalMasked(logits, ~mask | torch.tensor([[False, True, False]])).probs[0, 0] == 0


def test_gradients_pass_gradcheck():
    logits, mask = random_case(3, (4, 2))
    CategoricalMasked._cache.clear()
    with torch.inference_mode():  # what is made while acting must serve the backward pass as well
        actions = CategoricalMasked(logits, mask, (4, 2)).sample()
    actions = actions.clone()
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: CategoricalMasked(x, mask, (4, 2)).log_prob(actions), logits)
    assert torch.autograd.gradcheck(lambda x: CategoricalMasked(x, mask, (4, 2)).entropy(), logits)


def test_logits_and_mask_are_never_changed_in_place():
    logits, mask = LOGITS.clone(), MASK.clone()
    dist = CategoricalMasked(logits, mask)
    dist.sample(), dist.mode, dist.entropy(), dist.log_prob(dist.mode), dist.probs
    assert torch.equal(logits, LOGITS) and torch.equal(mask, MASK)


@pytest.mark.parametrize("k", [1, 2, 5, 16])
def test_k_equal_legal_logits_have_entropy_ln_k(k):
    mask = torch.arange(16) < k
    dist = CategoricalMasked(torch.full((1, 16), 0.7), mask[None])
    assert dist.entropy().item() == pytest.approx(math.log(k), abs=1e-6)


def test_one_legal_action_has_probability_exactly_one():
    mask = torch.zeros(1, 16, dtype=torch.bool)
    mask[0, 5] = True
    dist = CategoricalMasked(torch.randn(1, 16) * 50, mask)
    assert dist.probs[0, 5].item() == 1.0 and dist.log_prob(torch.tensor([5])).item() == 0.0
    assert dist.entropy().item() == 0.0 and dist.mode.item() == 5 and dist.sample().item() == 5


def test_992_actions_of_which_one_stands_out():
    logits = torch.full((1, 992), -17.0)
    logits[0, 3] = 0.0
    dist = CategoricalMasked(logits, torch.ones(1, 992, dtype=torch.bool))
    p = 1 / (1 + 991 * math.exp(-17))
    q = (1 - p) / 991
    # float32 near 1: the lane of a sum that holds the 1 loses its other addends of 4e-8, a quarter of 991 with 4 lanes.
    assert dist.log_prob(torch.tensor([3])).item() == pytest.approx(math.log(p), abs=1.1e-5)
    assert dist.entropy().item() == pytest.approx(-p * math.log(p) - 991 * q * math.log(q), rel=2e-2)
    assert dist.mode.item() == 3


def test_339_binary_fields_at_once():
    nvec = (2,) * 339
    logits, mask = random_case(1, nvec, batch=8, dtype=torch.float32)
    dist = CategoricalMasked(logits, mask, nvec)
    action = dist.sample()
    assert action.shape == (8, 339) and dist.log_prob(action).shape == dist.entropy().shape == (8,)
    pairs, legal = logits.view(8, 339, 2).double(), mask.view(8, 339, 2)
    expected = pairs.masked_fill(~legal, -torch.inf).log_softmax(-1).gather(-1, action[..., None]).sum((1, 2))
    torch.testing.assert_close(dist.log_prob(action).double(), expected, rtol=1e-5, atol=1e-5)


def test_sampling_frequencies_match_probabilities():
    logits, mask = LOGITS[1].expand(200_000, 3), MASK[1].expand(200_000, 3)
    samples = CategoricalMasked(logits, mask, validate=False).sample(torch.Generator().manual_seed(0))
    frequencies = samples.bincount(minlength=3) / len(samples)
    torch.testing.assert_close(frequencies, torch.tensor([0.3017, 0.6983, 0.0]), atol=0.005, rtol=0)
    assert frequencies[2] == 0


@pytest.mark.parametrize("shift", [-1e30, -1e7, 1e7, -math.inf])
def test_sampling_frequencies_match_probabilities_of_large_logits(shift):
    """Noise that is added to a logit of 1e7 in float32 is rounded to its steps of 1, beside 1e30 it is lost."""
    logits = (LOGITS[1] + shift).expand(20_000, 3)
    policy = CategoricalMasked(logits, MASK[1].expand(20_000, 3))
    samples = policy.sample(torch.Generator().manual_seed(0))
    torch.testing.assert_close(samples.bincount(minlength=3) / len(samples), policy.probs[0], atol=0.015, rtol=0)


@pytest.mark.parametrize("quiet", [torch.no_grad, torch.inference_mode])
def test_what_is_looked_at_without_gradients_leaves_the_gradient_as_it_is(quiet):
    """Such as the entropy for a log, before the loss is computed."""
    logits, action = torch.randn(4, 3, requires_grad=True), torch.tensor([0, 1, 2, 0])
    (expected,) = torch.autograd.grad(CategoricalMasked(logits, None).log_prob(action).sum(), logits)
    policy = CategoricalMasked(logits, None)
    with quiet():
        policy.entropy()
    (found,) = torch.autograd.grad((policy.log_prob(action) + policy.entropy().detach()).sum(), logits)
    assert torch.equal(found, expected) and found.any()


def test_an_action_with_several_illegal_choices_has_a_finite_log_probability():
    """The sum of two lowest numbers is -inf, and the difference of two of those NaN."""
    policy = CategoricalMasked(torch.zeros(1, 4), torch.tensor([[True, False, True, False]]), (2, 2))
    assert policy.log_prob(torch.tensor([[1, 1]])).item() == pytest.approx(torch.finfo(torch.float32).min)


def test_infinite_noise_does_not_pick_an_illegal_action(monkeypatch):
    """float32 exponential draws can be exactly 0: their Gumbel noise is +inf, and must not win if it is illegal."""
    monkeypatch.setattr(torch.Tensor, "exponential_", lambda self, generator=None: self.fill_(0.0))
    assert CategoricalMasked(LOGITS, MASK).sample().tolist() == [2, 0]


@pytest.mark.parametrize(
    "mask, words",
    [
        (torch.tensor([[True, True, True], [False, False, False]]), r"No legal action in row \[1\]"),
        (torch.ones(2, 4, dtype=torch.bool), "expected the logits' shape"),
        (torch.ones(2, 3), "torch.bool"),
    ],
)
def test_bad_masks_are_refused(mask, words):
    with pytest.raises(ValueError, match=words):
        CategoricalMasked(LOGITS, mask)


@pytest.mark.parametrize("nvec, words", [
    ((2, 2), r"nvec=\(2, 2\) has 4 choices; expected 5, as the logits"),
    ((3, 3), r"nvec=\(3, 3\) has 6 choices; expected 5"),
    ((4,), r"nvec=\(4,\) has 4 choices; expected 5"),
    ((), r"nvec=\(\) has 0 choices; expected 5"),
    ((5, 0), r"nvec=\(5, 0\) .* 1 or more a field"),
    ((6, -1), r"nvec=\(6, -1\) .* 1 or more a field"),
])  # fmt: skip
@pytest.mark.parametrize("mask", [None, torch.ones(2, 5, dtype=torch.bool)])
def test_fields_that_do_not_add_up_are_refused(nvec, words, mask):
    with pytest.raises(ValueError, match=words):
        CategoricalMasked(torch.zeros(2, 5), mask, nvec, validate=False)


def test_a_field_without_a_legal_choice_is_refused():
    mask = torch.tensor([[True, True, False, False, False]])
    with pytest.raises(ValueError, match=r"row \[0, 1\]"):
        CategoricalMasked(torch.zeros(1, 5), mask, (2, 3))


@pytest.mark.parametrize(
    "nvec, shape", [((2, 3), (4, 1)), ((2, 3), (1, 2)), ((2, 3), (4,)), (None, (4, 1)), (None, (1,))]
)
def test_actions_of_another_shape_are_refused(nvec, shape):
    dist = CategoricalMasked(torch.zeros(4, 5), None, nvec)
    with pytest.raises(ValueError, match="The action has shape .*; expected .4"):
        dist.log_prob(torch.zeros(shape, dtype=torch.int64))


@pytest.mark.parametrize("nvec", [(2, 3), (3, 3)])
def test_sizes_of_fields_may_be_any_list_of_them(nvec):
    logits = torch.randn(4, sum(nvec))
    expected = CategoricalMasked(logits, None, nvec).probs
    for same in (list(nvec), np.array(nvec), torch.tensor(nvec)):
        assert torch.equal(CategoricalMasked(logits, None, same).probs, expected)
    many = np.array([100, 100], np.int8)  # whose sum is beyond int8
    assert CategoricalMasked(torch.randn(2, 200), None, many).probs.shape == (2, 2, 100)


@pytest.mark.parametrize("graph", ["export", "compile"])
def test_a_graph_leaves_nothing_behind_that_others_cannot_use(graph, monkeypatch):
    """Where the places of fields of unequal sizes are first asked for in a graph."""
    monkeypatch.setattr(CategoricalMasked, "_cache", {})

    class Policy(torch.nn.Module):
        def forward(self, logits):
            return CategoricalMasked(logits, None, (5, 7, 11), validate=False).log_probs

    logits = torch.randn(3, 23, requires_grad=True)
    if graph == "export":
        torch.export.export(Policy(), (logits,), strict=False)
    else:
        with torch.inference_mode():
            torch.compile(Policy(), backend="aot_eager")(logits)
    learnt = CategoricalMasked(logits, None, (5, 7, 11)).log_probs
    (learnt * torch.randn(3, 3, 11)).sum().backward()
    assert logits.grad.isfinite().all() and logits.grad.any()
