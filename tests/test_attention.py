"""MultiHeadAttention, the agent and what it observes: absent entities do not exist, all else is read."""

import numpy as np
import pytest
import torch
import worlds  # noqa: F401
from gymnasium import spaces
from torch.testing import assert_close

from envs.make import make_vec
from envs.observations import entities_shape, entity_rows
from ppo_attention_mask import Agent, Args, MultiHeadAttention, main, ppo_loss

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


def agent(num_globals=0, **flags):
    torch.manual_seed(0)
    pointer = flags.get("pointer", False)
    args = Args(dim=16, heads=4, num_blocks=2, **flags)
    return Agent((7, 1 + 5 + num_globals), (7 if pointer else 4,), args, num_globals)


def observations(mask, num_globals=0):
    known = torch.randn(len(mask), 1, num_globals).expand(-1, mask.shape[1], -1)
    return torch.cat([mask[..., None].float(), torch.randn(*mask.shape, 5), known], dim=-1)


def sets_without_the_first():
    """The first row is absent in all sets but one, which is in the fourth row; the last set is empty."""
    _, mask = some_sets()
    mask[:, 0], mask[3, 0], mask[-1] = False, True, False
    mask[:-1, 3] = True
    return mask


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


def test_scores_that_half_precision_holds_do_not_overflow_on_the_way():
    """Queries and keys of +-34 over 64 columns: their product is beyond float16, a score of 9,248 is not."""
    module = MultiHeadAttention(64, 1, 64).half()
    with torch.no_grad():
        module.to_q.weight.copy_(torch.eye(64))
        module.to_kv.weight[:64].copy_(torch.eye(64))
    x = torch.full((1, 3, 64), 34.0).half()
    x[0, 1] = -34
    mask = torch.tensor([[True, True, False]])
    _, weights = module(x, mask)
    assert weights[0, 0].tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert_close(module(x, mask, need_weights=False)[0], module(x, mask)[0])


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


@pytest.mark.parametrize("mask, words", [
    (torch.ones(3, 2), r"shape \(3, 2\) and dtype torch.float32; expected \(B, E\) and torch.bool"),
    (torch.ones(2, 3, dtype=torch.uint8), r"dtype torch.uint8; expected .* torch.bool"),
    (torch.ones(2, 3, dtype=torch.int64), r"dtype torch.int64; expected .* torch.bool"),
    (torch.ones(3, 2, dtype=torch.bool), r"shape \(3, 2\); expected \(2, 3\).*sets \(2, 3, 16\)"),  # transposed
    (torch.ones(2, 2, dtype=torch.bool), r"shape \(2, 2\); expected \(2, 3\)"),
    (torch.ones(1, 3, dtype=torch.bool), r"shape \(1, 3\); expected \(2, 3\)"),
    (torch.ones(6, 1, dtype=torch.bool), r"shape \(6, 1\); expected \(2, 3\)"),
    (torch.ones(2, 4, dtype=torch.bool), r"shape \(2, 4\); expected \(2, 3\)"),
    (torch.ones(3, dtype=torch.bool), r"shape \(3,\) and dtype torch.bool; expected \(B, E\)"),
    (torch.ones(2, 3, 1, dtype=torch.bool), r"shape \(2, 3, 1\) .*; expected \(B, E\)"),
    (torch.ones(2, 3, 3, dtype=torch.bool), r"shape \(2, 3, 3\) .*; expected \(B, E\)"),  # of pairs
])  # fmt: skip
@pytest.mark.parametrize("num_queries", [None, 1])
def test_masks_of_another_shape_or_dtype_are_refused(mask, words, num_queries):
    with pytest.raises(ValueError, match=words):
        attention()(torch.randn(2, 3, 16), mask, num_queries=num_queries)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_scores_of_minus_infinity_give_absent_entities_no_weight(dtype):
    """Half precision overflows at 65504: here all present ones' scores do, each 4 * 300 * -300 before the scale."""
    module = MultiHeadAttention(dim=4, heads=1, dim_head=4).to(dtype)
    huge = 300 if dtype == torch.float16 else 1e20
    with torch.no_grad():
        module.to_q.weight.copy_(huge * torch.eye(4)), module.to_kv.weight[:4].copy_(-huge * torch.eye(4))
    x = torch.ones(1, 3, 4, dtype=dtype, requires_grad=True)
    out, weights = module(x, torch.tensor([[True, True, False]]))
    assert weights[0, 0].tolist() == [[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 0]] and torch.isfinite(out).all()
    out.sum().backward()
    assert not torch.isnan(x.grad).any()


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("num_globals", [0, 2])
@pytest.mark.parametrize("pointer", [True, False])
def test_the_whole_agent_ignores_absent_entities(pointer, num_globals, bad):
    net, mask = agent(num_globals, pointer=pointer), torch.cat([some_sets()[1], sets_without_the_first()])
    obs, results = observations(mask, num_globals), []
    for filler in (0.0, bad):
        net.zero_grad()
        filled = obs.clone()
        filled[..., 1:6] = torch.where(mask[..., None], obs[..., 1:6], filler)
        logits, values = net.logits_and_values(filled)
        (logits[mask].sum() if pointer else logits.square().sum()).backward(retain_graph=True)
        values.sum().backward()
        results.append([logits.detach(), values.detach(), *(p.grad.clone() for p in net.parameters())])
    for clean, dirty in zip(*results, strict=True):
        assert torch.equal(clean, dirty) and torch.isfinite(dirty).all()


def test_without_the_attention_mask_padding_is_seen():
    net, (_, mask) = agent(attention_mask=False), some_sets()
    obs = observations(mask)
    changed = torch.cat([obs[..., :1], torch.where(mask[..., None], obs[..., 1:], 3.0)], dim=-1)
    assert not torch.allclose(net.logits_and_values(obs)[1][1:], net.logits_and_values(changed)[1][1:])


def test_a_pointer_follows_its_entities():
    """Logits move with the entities, the value does not: it is the mean over those that are present."""
    net, (_, mask) = agent(pointer=True), some_sets()
    obs, order = observations(mask), torch.randperm(7)
    logits, values = net.logits_and_values(obs)
    moved_logits, moved_values = net.logits_and_values(obs[:, order])
    assert_close(moved_logits, logits[:, order])
    assert_close(moved_values, values)


def test_the_first_row_alone_is_read_where_it_is_present():
    net, (_, mask) = agent(), some_sets()
    obs = observations(mask)
    row, present, weights = net.encode(obs, need_weights=True)
    net.pointer = True  # all rows are computed
    rows, _, all_weights = net.encode(obs, need_weights=True)
    assert row.shape == (6, 1, 16) and present.all()
    assert_close(row, rows[:, :1], rtol=1e-6, atol=1e-6)
    assert_close(weights, all_weights[:, :, :1])


def test_without_the_first_row_the_others_are_read_in_any_order():
    net, mask = agent(), sets_without_the_first()
    obs, order = observations(mask), torch.tensor([0, 4, 2, 6, 1, 3, 5])
    results = net.logits_and_values(obs)
    for result, moved in zip(results, net.logits_and_values(obs[:, order]), strict=True):
        assert_close(result, moved)
    _, _, weights = net.encode(obs, need_weights=True)
    assert_close(weights.sum(-1), mask.any(1)[:, None, None].expand(-1, 4, 1).float())
    assert (weights[:, :, 0][~mask[:, None].expand(-1, 4, -1)] == 0).all()
    changed = obs.clone()
    changed[:, 3, 1:] += 1
    for result, other in zip(results, net.logits_and_values(changed), strict=True):
        difference = (result - other).abs().view(6, -1).max(1).values
        assert (difference[:-1] > 1e-4).all() and difference[-1] == 0  # there is nobody in the last one


def test_where_nobody_is_present_the_global_features_are_read():
    nobody = torch.zeros(3, 7, dtype=torch.bool)
    for num_globals in (0, 2):
        for result in agent(num_globals).logits_and_values(observations(nobody, num_globals)):
            assert (result[0] == result[1]).all() == (num_globals == 0)


@pytest.mark.parametrize("pointer", [True, False])
def test_global_features_change_which_entities_matter(pointer):
    """Beyond a shift of all logits, which is no change of a policy that picks one of the entities."""
    net, (_, mask) = agent(2, pointer=pointer), some_sets()
    obs = observations(mask, 2)
    changed = obs.clone()
    changed[..., -2:] += 1
    (logits, values), (other_logits, other_values) = net.logits_and_values(obs), net.logits_and_values(changed)
    assert ((logits - other_logits).std(1) > 1e-4).all() and ((values - other_values).abs() > 1e-4).all()


@pytest.mark.parametrize("num_globals", [0, 2])
def test_an_observation_without_entities_has_finite_logits_value_and_gradients(num_globals):
    net = agent(num_globals)
    logits, values = net.logits_and_values(observations(torch.zeros(3, 7, dtype=torch.bool), num_globals))
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


@pytest.mark.parametrize("mask", [some_sets()[1], sets_without_the_first()])
def test_layers_compute_on_present_rows_only(mask):
    """In the last block, where one row is read of each set that has any, on that row alone."""
    net, rows = agent(), []
    for layer in (net.embed[0], *(block.mlp for block in net.blocks), net.blocks[1].attention.to_kv):
        layer.register_forward_hook(lambda module, inputs, out: rows.append(len(inputs[0])))
    net.logits_and_values(observations(mask))
    assert rows == [mask.sum(), mask.sum(), mask.sum(), mask.any(1).sum()] and mask.sum() < mask.numel()


@pytest.mark.parametrize("env_id, steps, pointer, least", [
    ("Test/Signs-v0", 3_000, False, 5.5),  # 2 of 6, where the own row alone is read
    ("Test/Bells-v0", 10_000, False, 5),  # of 6; at most 4 without the bell, the sign, or what to do without a sign
    ("Test/Orders-v0", 6_000, True, 7),  # of 8; at most 5 without the order
])  # fmt: skip
def test_it_learns_from_all_that_is_observed(tmp_path, monkeypatch, env_id, steps, pointer, least):
    monkeypatch.chdir(tmp_path)
    sizes = dict(num_envs=8, num_steps=32, minibatch_size=64, dim=32, learning_rate=3e-3)
    scores = main(Args(env_id=env_id, total_timesteps=steps, pointer=pointer, eval_episodes=64, **sizes))
    assert scores["episodic_return"] > least


def test_global_features_end_every_row_and_have_to_be_finite():
    envs = make_vec("Test/Bells-v0", 5, layout="entities")
    assert envs.single_observation_space.shape == (4, 1 + 3 + 3) and envs.num_globals == 3
    obs, _ = envs.reset(seed=0)
    assert not obs[..., 0].any(1).all() and obs.dtype == np.float32
    bells = obs[..., 4:]
    assert (bells == bells[:, :1]).all() and (bells.sum(2) == 1).all() and (bells[:, 0].sum(0) > 0).sum() > 1
    for _ in range(6):
        *_, infos = envs.step(np.zeros(5, int))
    assert infos["final_obs"].shape == (5, 4, 7) and (infos["final_obs"][..., 4:].sum(2) == 1).all()
    absent = {"entities": np.full((1, 1, 1), np.nan), "entity_mask": np.zeros((1, 1)), "heat": np.full((1, 1), np.nan)}
    _, seen = entity_rows(absent, None, spaces.Dict(heat=spaces.Box(0, 1, (1,))))
    np.testing.assert_array_equal(seen, [[[0, 0, np.nan]]])  # the vector environment refuses what it sees here


@pytest.mark.parametrize("bad", [0.5, np.nan, 2, -1])
@pytest.mark.parametrize("column", [None, 1])
def test_presence_is_0_or_1(column, bad):
    rows = np.zeros((3, 2, 4), np.float32)
    rows[1, 1, 1] = bad
    obs = {"entities": rows, "entity_mask": rows[..., 1]} if column is None else rows
    name = "entity_mask" if column is None else "the presence column"
    with pytest.raises(ValueError, match=rf"Environment 1: {name} holds {bad}.* for entity 1; expected 1 where"):
        entity_rows(obs, column, spaces.Dict())


ENTITIES, MASK = spaces.Box(0, 1, (5, 7)), spaces.MultiBinary(5)


@pytest.mark.parametrize("space, column, words", [
    ({"entities": spaces.Box(0, 1, (5, 7, 2)), "entity_mask": MASK}, None, r"`entities` is Box.*\(5, 7, 2\).*\(E, D\)"),
    ({"entities": spaces.Sequence(ENTITIES), "entity_mask": MASK}, None, r"`entities` is Sequence.*\(E, D\)"),
    ({"entities": ENTITIES, "entity_mask": spaces.MultiBinary(4)}, None, r"`entity_mask` MultiBinary\(4\).*\(E,\)"),
    ({"entities": ENTITIES, "entity_mask": spaces.Box(0, 1, (5, 1))}, None, r"`entity_mask` Box.*\(5, 1\).*\(E,\)"),
    ({"entities": ENTITIES, "entity_mask": MASK}, 0, "--presence-column 0: .* leave the flag out"),
    ({"entities": ENTITIES, "entity_mask": MASK, "log": spaces.Text(5)}, None, "key 'log': .* no fixed flat form"),
    ({"entities": ENTITIES, "entity_mask": MASK, "past": spaces.Tuple([spaces.Sequence(MASK)])}, None, "key 'past'"),
])  # fmt: skip
def test_what_is_no_set_of_entities_is_refused(space, column, words):
    with pytest.raises(ValueError, match=words):
        entities_shape(spaces.Dict(space), column)


def test_other_keys_of_any_flat_space_add_to_the_rows():
    others = {"hour": spaces.Discrete(24), "at": spaces.Tuple([MASK, spaces.Dict(x=spaces.Box(0, 1, (2, 2)))])}
    assert entities_shape(spaces.Dict(entities=ENTITIES, entity_mask=MASK, **others), None) == (5, 1 + 7 + 24 + 5 + 4)
