"""MultiHeadAttention and the encoder: absent entities do not exist."""

import pytest
import torch
from torch.testing import assert_close

from ppo_attention_mask import Agent, Args, MultiHeadAttention, ppo_loss

BAD = [float("nan"), float("inf"), -float("inf"), 1e30]


def attention(seed=0):
    torch.manual_seed(seed)
    return MultiHeadAttention(dim=16, heads=4, dim_head=4)


def some_sets(batch=6, entities=7, width=16):
    torch.manual_seed(1)
    mask = torch.rand(batch, entities) < 0.6
    mask[:, 0] = True
    mask[0] = True
    return torch.randn(batch, entities, width), mask


def agent(**flags):
    torch.manual_seed(0)
    pointer = flags.get("pointer", False)
    return Agent((7, 1 + 5), (7 if pointer else 4,), Args(dim=16, heads=4, num_blocks=2, **flags))


def observations(mask):
    return torch.cat([mask[..., None].float(), torch.randn(*mask.shape, 5)], dim=-1)


@pytest.mark.parametrize("num_queries", [None, 1, 3])
def test_both_paths_agree_forward_and_backward(num_queries):
    module, (x, mask) = attention(), some_sets()
    results = []
    for need_weights in (True, False):
        x_in = x.clone().requires_grad_()
        module.zero_grad()
        out, weights = module(x_in, mask, need_weights, num_queries)
        out.square().sum().backward()
        results.append([out, x_in.grad, *(p.grad.clone() for p in module.parameters())])
        assert (weights is not None) == need_weights
    for written_out, fused in zip(*results, strict=True):
        assert_close(written_out, fused, rtol=1e-5, atol=1e-5)


def test_the_first_queries_are_those_of_all():
    module, (x, mask) = attention(), some_sets()
    everything, weights = module(x, mask)
    first, first_weights = module(x, mask, num_queries=2)
    assert_close(first, everything[:, :2])
    assert_close(first_weights, weights[:, :, :2])


def test_weights_are_zero_to_and_from_absent_entities_and_sum_to_one_over_present_ones():
    module, (x, mask) = attention(), some_sets()
    _, weights = module(x, mask)
    assert weights.shape == (6, 4, 7, 7)
    assert (weights.transpose(-1, -2)[~mask[:, None].expand(-1, 4, -1)] == 0).all()  # to
    assert (weights[~mask[:, None].expand(-1, 4, -1)] == 0).all()  # from
    assert_close(weights.sum(-1), mask[:, None].expand(-1, 4, -1).float())


@pytest.mark.parametrize("need_weights", [True, False])
def test_the_order_of_entities_means_nothing(need_weights):
    module, (x, mask) = attention(), some_sets()
    order = torch.randperm(7)
    out, _ = module(x, mask, need_weights)
    assert_close(module(x[:, order], mask[:, order], need_weights)[0], out[:, order])


@pytest.mark.parametrize("need_weights", [True, False])
def test_a_padded_set_gives_what_the_smaller_set_gives(need_weights):
    module, (x, mask) = attention(), some_sets()
    out, _ = module(x, mask, need_weights)
    for row in range(len(x)):
        present = mask[row]
        alone, _ = module(x[row : row + 1, present], None, need_weights)
        assert_close(out[row, present], alone[0])
        assert (out[row, ~present] == 0).all()


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("need_weights", [True, False])
def test_what_absent_rows_hold_changes_nothing_in_values_and_gradients(need_weights, bad):
    module, (x, mask) = attention(), some_sets()
    results = []
    for filler in (0.0, bad):
        module.zero_grad()
        x_in = torch.where(mask[..., None], x, filler).requires_grad_()
        out, _ = module(x_in, mask, need_weights)
        out.square().sum().backward()
        results.append([out.detach(), x_in.grad, *(p.grad.clone() for p in module.parameters())])
    for clean, dirty in zip(*results, strict=True):
        assert torch.equal(clean, dirty) and torch.isfinite(dirty).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("need_weights", [True, False])
def test_an_empty_set_gives_zeros_and_finite_gradients(need_weights, dtype):
    module, (x, mask) = attention().to(dtype), some_sets()
    x, mask[2] = x.to(dtype).requires_grad_(), False
    out, weights = module(x, mask, need_weights)
    assert (out[2] == 0).all() and torch.isfinite(out).all() and out.dtype == dtype
    assert weights is None or (weights[2] == 0).all()
    out.float().square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in [x, *module.parameters()]) and (x.grad[2] == 0).all()


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("pointer", [True, False])
def test_the_whole_agent_ignores_absent_entities(pointer, bad):
    net, (_, mask) = agent(pointer=pointer), some_sets()
    obs, results = observations(mask), []
    for filler in (0.0, bad):
        net.zero_grad()
        filled = torch.cat([obs[..., :1], torch.where(mask[..., None], obs[..., 1:], filler)], dim=-1)
        logits, values = net.heads(filled)
        (logits[mask].sum() if pointer else logits.square().sum()).backward(retain_graph=True)
        values.sum().backward()
        results.append([logits.detach(), values.detach(), *(p.grad.clone() for p in net.parameters())])
    for clean, dirty in zip(*results, strict=True):
        assert torch.equal(clean, dirty) and torch.isfinite(dirty).all()


def test_without_the_attention_mask_padding_is_seen():
    net, (_, mask) = agent(attention_mask=False), some_sets()
    obs = observations(mask)
    changed = torch.cat([obs[..., :1], torch.where(mask[..., None], obs[..., 1:], 3.0)], dim=-1)
    assert not torch.allclose(net.heads(obs)[1][1:], net.heads(changed)[1][1:])


def test_a_pointer_follows_its_entities():
    """Logits move with the entities, the value does not: it is the mean over those that are present."""
    net, (_, mask) = agent(pointer=True), some_sets()
    obs, order = observations(mask), torch.randperm(7)
    logits, values = net.heads(obs)
    moved_logits, moved_values = net.heads(obs[:, order])
    assert_close(moved_logits, logits[:, order])
    assert_close(moved_values, values)


def test_an_observation_without_entities_has_finite_logits_value_and_gradients():
    net = agent()
    logits, values = net.heads(observations(torch.zeros(3, 7, dtype=torch.bool)))
    (logits.sum() + values.sum()).backward()
    grads = [p.grad for p in net.parameters() if p.grad is not None]
    assert torch.isfinite(logits).all() and torch.isfinite(values).all() and all(torch.isfinite(g).all() for g in grads)


@pytest.mark.parametrize("pointer", [True, False])
def test_ratio_is_one_before_the_first_step(pointer):
    """Rollout and update agree to the bit: the same kernels, no train and eval modes."""
    net, (_, mask) = agent(pointer=pointer), some_sets(batch=32)
    obs, action_mask = observations(mask), (mask if pointer else torch.ones(32, 4, dtype=torch.bool))
    with torch.no_grad():
        policy, values = net(obs, action_mask)
        actions = policy.sample()
        logprobs = policy.log_prob(actions)
    mb = (obs, actions, action_mask, logprobs, torch.randn(32), torch.randn(32), values)
    _, metrics = ppo_loss(net, mb, Args())
    assert metrics[3] == metrics[4] == metrics[5] == 0  # old_approx_kl, approx_kl, clipfrac


def test_layers_compute_on_present_rows_only():
    """In the last block, where the agent's own row is read, on that row alone."""
    net, (_, mask) = agent(), some_sets()
    rows = []
    for layer in (net.embed[0], *(block.mlp for block in net.blocks), net.blocks[1].attention.to_kv):
        layer.register_forward_hook(lambda module, inputs, out: rows.append(len(inputs[0])))
    net.heads(observations(mask))
    assert rows == [mask.sum(), mask.sum(), mask.sum(), len(mask)] and mask.sum() < mask.numel()
