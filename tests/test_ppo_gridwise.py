"""Grid-wise PPO: the distribution over maps, the two ratios, teams of any size, and what it learns."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from script import tensorboard
from torch.testing import assert_close

import ppo_gridwise as grid
from ppo_gridwise import Agent, Args, CategoricalMap, CategoricalMasked, ppo_loss

# The design's worked figures: one 2x2 map with three actions.
LOGITS = torch.tensor([[[[1.0608, 0.4416], [1.2075, 0.0888]], [[0.1279, 0.0160], [-1.0273, 0.5896]],
                        [[-0.0016, 0.6164], [0.1350, 0.5542]]]])  # fmt: skip
DIAGONAL = torch.tensor([[[True, False], [False, True]]])
ACTION = torch.tensor([[[0, 0], [2, 2]]])


def test_the_worked_figures():
    everywhere, diagonal = (CategoricalMap(LOGITS, mask, None) for mask in (torch.ones_like(DIAGONAL), DIAGONAL))
    assert_close(everywhere.log_prob(ACTION), torch.tensor([-4.0220]), atol=5e-5, rtol=0)
    assert_close(everywhere.entropy(), torch.tensor([0.9776]), atol=5e-5, rtol=0)
    assert_close(diagonal.entropy(), torch.tensor([1.0256]), atol=5e-5, rtol=0)
    # Agents on r0c0, which plays 0, and on r1c1, which plays 2.
    assert_close(diagonal.log_prob(ACTION), torch.tensor([-1.5331]), atol=5e-5, rtol=0)


def random_maps(seed=0, nvec=(5,), batch=4, height=3, width=4, p=0.5):
    generator = torch.Generator().manual_seed(seed)
    total = sum(nvec)
    agents = torch.rand(batch, height, width, generator=generator) < p
    legal = torch.rand(batch, total, height, width, generator=generator) < 0.6
    legal[:, np.cumsum([0, *nvec[:-1]])] = True  # the first choice of each field
    return torch.randn(batch, total, height, width, generator=generator), agents, legal


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([(5,), (2, 3), (6, 4, 4, 4, 4, 7, 49)]), st.sampled_from([0.0, 0.3, 1.0]))
def test_a_slow_loop_over_cells_gives_the_same(seed, nvec, p):
    """Sums and means of one distribution per occupied cell; a map without agents has 0."""
    logits, agents, legal = random_maps(seed, nvec, p=p)
    fields = nvec if len(nvec) > 1 else None
    dist = CategoricalMap(logits, agents, legal, fields)
    actions = dist.sample()
    log_prob, entropy = torch.zeros(4), torch.zeros(4)
    for b in range(4):
        cells = agents[b].nonzero().tolist()
        for y, x in cells:
            cell = CategoricalMasked(logits[b, :, y, x], legal[b, :, y, x], fields)
            log_prob[b] += cell.log_prob(actions[b, y, x])
            entropy[b] += cell.entropy() / len(cells)
    assert_close(dist.log_prob(actions), log_prob)
    assert_close(dist.entropy(), entropy)
    assert actions.shape == (agents.shape if fields is None else (*agents.shape, len(nvec)))
    assert (actions[~agents] == 0).all() and (dist.mode[~agents] == 0).all()


def test_gathered_logits_give_the_same_as_whole_maps():
    logits, agents, legal = random_maps()
    gathered = logits.permute(0, 2, 3, 1)[agents], legal.permute(0, 2, 3, 1)[agents]
    whole, packed = CategoricalMap(logits, agents, legal), CategoricalMap(gathered[0], agents, gathered[1])
    actions = whole.sample()
    assert torch.equal(whole.log_prob(actions), packed.log_prob(actions)) and torch.equal(whole.mode, packed.mode)


def test_illegal_actions_and_empty_cells_have_no_gradient_and_are_never_sampled():
    logits, agents, legal = random_maps()
    logits.requires_grad_()
    dist = CategoricalMap(logits, agents, legal)
    for _ in range(50):
        actions = dist.sample()
        assert legal.gather(1, actions[:, None])[:, 0][agents].all()
    (dist.log_prob(actions) + dist.entropy()).sum().backward()
    used = legal & agents[:, None]
    assert (logits.grad[~used] == 0).all() and (logits.grad[used] != 0).any()


def test_an_agent_without_a_legal_action_is_refused():
    logits, agents, legal = random_maps()
    legal[:, :, 0, 0], agents[:, 0, 0] = False, True
    with pytest.raises(ValueError, match="No legal action"):
        CategoricalMap(logits, agents, legal)
    with pytest.raises(ValueError, match="expected the logits' shape"):
        CategoricalMap(logits, agents, legal[:, :2])


@pytest.mark.parametrize("given, words", [
    ({"mask": torch.ones(2, 3, 4)}, r"mask of cells .* torch.float32; expected \(B, H, W\) and torch.bool"),
    ({"mask": torch.ones(2, 3, 4, dtype=torch.uint8)}, "mask of cells .* torch.uint8; expected .* torch.bool"),
    ({"mask": torch.ones(2, 3, 4, dtype=torch.int64)}, "mask of cells .* torch.int64; expected .* torch.bool"),
    ({"mask": torch.ones(3, 4, dtype=torch.bool)}, r"mask of cells has shape \(3, 4\) .* expected \(B, H, W\)"),
    ({"mask": torch.ones(2, 1, 3, 4, dtype=torch.bool)}, r"mask of cells has shape \(2, 1, 3, 4\)"),
    ({"mask": torch.ones(2, 4, 3, dtype=torch.bool)}, r"mask of shape \(2, 5, 3, 4\); expected \(2, A, 4, 3\)"),
    ({"mask": torch.ones(1, 3, 4, dtype=torch.bool)}, r"mask of shape \(2, 5, 3, 4\); expected \(1, A, 3, 4\)"),
    ({"logits": torch.zeros(2, 5, 4, 3)}, r"Logits of shape \(2, 5, 4, 3\); expected \(2, A, 3, 4\)"),
    ({"logits": torch.zeros(1, 5, 3, 4)}, r"Logits of shape \(1, 5, 3, 4\); expected \(2, A, 3, 4\)"),
    ({"logits": torch.zeros(23, 5)}, r"Logits of shape \(23, 5\); expected .* or \(24, A\) for the occupied"),
    ({"logits": torch.zeros(5, 3, 4)}, r"Logits of shape \(5, 3, 4\)"),
    ({"action_mask": torch.ones(2, 5, 4, 3, dtype=torch.bool)}, r"action mask of shape \(2, 5, 4, 3\); expected"),
    ({"action_mask": torch.ones(1, 5, 3, 4, dtype=torch.bool)}, r"action mask of shape \(1, 5, 3, 4\); expected"),
    ({"action_mask": torch.ones(25, 5, dtype=torch.bool)}, r"action mask of shape \(25, 5\); .* \(24, A\)"),
    ({"action_mask": torch.ones(2, 3, 4, dtype=torch.bool)}, r"action mask of shape \(2, 3, 4\); expected"),
    ({"action_mask": torch.ones(2, 4, 3, 4, dtype=torch.bool)}, r"shape \(24, 4\) .* logits' shape \(24, 5\)"),
    ({"action_mask": torch.ones(2, 5, 3, 4)}, "torch.float32; expected .*torch.bool"),
    ({"action_mask": torch.ones(2, 5, 3, 4, dtype=torch.uint8)}, "torch.uint8; expected .*torch.bool"),
    ({"nvec": (2, 2)}, r"nvec=\(2, 2\) has 4 choices; expected 5"),
])  # fmt: skip
def test_maps_that_do_not_fit_together_are_refused(given, words):
    whole = {"logits": torch.zeros(2, 5, 3, 4), "mask": torch.ones(2, 3, 4, dtype=torch.bool)}
    whole["action_mask"] = torch.ones(2, 5, 3, 4, dtype=torch.bool)
    CategoricalMap(**whole)
    with pytest.raises(ValueError, match=words):
        CategoricalMap(**(whole | given), validate=False)


def test_legal_logits_of_minus_infinity_let_no_illegal_action_of_an_agent_in():
    logits, agents, legal = random_maps()
    logits = torch.where(legal, -torch.inf, logits).requires_grad_()
    dist = CategoricalMap(logits, agents, legal)
    actions = dist.sample()
    for choice in (actions, dist.mode):
        assert legal.gather(1, choice[:, None])[:, 0][agents].all()
    (dist.log_prob(actions) + dist.entropy()).sum().backward()
    assert torch.isfinite(dist.entropy()).all() and torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("size", [(8, 8), (9, 13), (5, 6)])
def test_any_height_and_width(size):
    net = Agent((3, *size), (4,), channels=4)
    policy, values = net(
        torch.randn(2, 3, *size),
        torch.ones(2, *size, dtype=torch.bool),
        torch.ones(2 * size[0] * size[1], 4, dtype=torch.bool),
    )
    assert policy.sample().shape == (2, *size) and values.shape == (2,)


def test_each_agent_reads_the_maps_where_it_stands_and_the_cells_around_it():
    """Against a loop over the agents, which crops by hand."""
    torch.manual_seed(0)
    net, obs = Agent((3, 5, 6), (4,), channels=4), torch.randn(2, 3, 5, 6)
    agents = torch.rand(2, 5, 6) < 0.5
    agents[:, 0, 0] = agents[:, 4, 5] = True  # corners, the latter in the row that rounding up adds
    policy, _ = net(obs, agents, torch.ones(int(agents.sum()), 4, dtype=torch.bool))
    half, quarter, _ = net.encode(obs)
    margin = torch.nn.functional.pad(obs, (1, 1, 1, 1))
    for logits, (b, y, x) in zip(policy.agents.logits, agents.nonzero().tolist(), strict=True):
        around = margin[b, :, y : y + 3, x : x + 3].permute(1, 2, 0).flatten()
        seen = torch.cat([around, half[b, :, y // 2, x // 2], quarter[b, :, y // 4, x // 4]])
        torch.testing.assert_close(logits, net.actor(net.decoder(seen).relu()))


def test_masks_are_split_into_where_agents_are_and_what_each_may_do():
    _, agents, legal = random_maps()
    found, rows = grid.split_masks(torch.cat([agents[:, None], legal], dim=1))
    assert torch.equal(found, agents)
    for row, (b, y, x) in zip(rows, agents.nonzero().tolist(), strict=True):
        assert torch.equal(row, legal[b, :, y, x])


def minibatch(p=0.5, nvec=(4,), batch=6):
    """A network, and a minibatch that is a rollout of its own."""
    _, agents, legal = random_maps(nvec=nvec, batch=batch, p=p)
    torch.manual_seed(0)
    net, obs = Agent((3, 3, 4), nvec, channels=4), torch.randn(batch, 3, 3, 4)
    agents, legal = grid.split_masks(torch.cat([agents[:, None], legal], dim=1))
    rows = torch.full(agents.shape, -1).masked_scatter(agents, torch.arange(len(legal)))
    with torch.no_grad():
        policy, values = net(obs, agents, legal)
        actions = policy.agents.sample()
        logprobs = policy.agents.log_prob(actions)
    tables = [torch.cat([b, b.new_zeros(1, *b.shape[1:])]) for b in (actions, legal, logprobs)]  # as in `main`
    return net, (*tables, obs, rows, torch.randn(batch), torch.randn(batch), values)


@pytest.mark.parametrize("ratio", ["joint", "agent"])
@pytest.mark.parametrize("nvec", [(4,), (2, 3)])
def test_ratio_is_one_before_the_first_step(ratio, nvec):
    net, mb = minibatch(nvec=nvec)
    metrics = ppo_loss(net, mb, Args(ratio=ratio))[1]
    assert metrics[3] == metrics[4] == metrics[5] == 0  # old_approx_kl, approx_kl, clipfrac


@pytest.mark.parametrize("ratio", ["joint", "agent"])
def test_no_agent_at_all_is_survived(ratio):
    net, mb = minibatch(p=0.0)
    loss, metrics = ppo_loss(net, mb, Args(ratio=ratio))
    loss.backward()
    assert torch.isfinite(metrics).all() and (metrics[2:6] == 0).all()  # entropy, both KLs, clipfrac
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in net.parameters())
    assert all(p.grad is None or (p.grad == 0).all() for p in net.actor.parameters())


def test_the_ratios_are_of_the_team_and_of_each_agent():
    """By hand: the joint loss clips the product over a map's agents, the other one each factor."""
    net, mb = minibatch()
    actions, legal, logprobs, obs, rows, advantages, returns, values = mb
    noisy = logprobs + 0.3 * torch.randn_like(logprobs)
    mb = (actions, legal, noisy, obs, rows, advantages, returns, values)
    losses = {"joint": [], "agent": []}
    for b in range(6):
        each = (logprobs - noisy)[rows[b][rows[b] >= 0]].exp()
        for ratio, factors in (("joint", each.prod()[None]), ("agent", each)):
            clipped = factors.clamp(0.8, 1.2)
            losses[ratio] += (-torch.min(advantages[b] * factors, advantages[b] * clipped)).tolist()
    for ratio, terms in losses.items():
        assert ppo_loss(net, mb, Args(ratio=ratio))[1][0].item() == pytest.approx(np.mean(terms), rel=1e-4)


def test_any_part_of_a_rollout_in_any_order_gives_the_loss_of_its_maps():
    """Agents are rows of the rollout, maps are shuffled: each map must find its own agents."""
    net, mb = minibatch()
    agents_rows, maps = mb[:3], mb[3:]
    order = torch.tensor([4, 0, 3])
    obs, rows = maps[0][order], maps[1][order]
    own = rows[rows >= 0]  # the same maps as a rollout of their own
    alone = torch.full(rows.shape, -1).masked_scatter(rows >= 0, torch.arange(len(own)))
    others = [each[order] for each in maps[2:]]
    part = ppo_loss(net, (*agents_rows, obs, rows, *others), Args())[1]
    whole = ppo_loss(net, (*(each[own] for each in agents_rows), obs, alone, *others), Args())[1]
    assert torch.equal(part, whole) and whole[3:6].eq(0).all()


def test_joint_ratios_leave_the_clipping_range_with_many_agents():
    """Log-ratio noise of 0.02 per agent: 0, 0.2, 31 and 53 % of samples are clipped at 1, 10, 100 and 256 agents."""
    noise = 0.02 * torch.randn(20_000, 256, generator=torch.Generator().manual_seed(0))
    for count, expected in ((1, 0.0), (10, 0.002), (100, 0.31), (256, 0.527)):
        ratio = noise[:, :count].sum(1).exp()
        assert ((ratio - 1).abs() > 0.2).float().mean().item() == pytest.approx(expected, abs=0.01)
    assert ((noise.exp() - 1).abs() <= 0.2).all()


def test_stricter_masks_are_stricter_for_each_agent(tmp_path, monkeypatch):
    """With one choice left to each agent, luck plays: legally, and worse than what was learnt in a few steps."""
    monkeypatch.chdir(tmp_path)
    scores = grid.main(Args(total_timesteps=2048, eval_mask_drop=1.0, eval_episodes=16, save_model=False))
    assert scores["illegal_rate_mask_dropped"] == 0 != scores["illegal_rate_no_mask"]
    assert scores["episodic_return_mask_dropped"] != scores["episodic_return"]


def test_learns_harvest_in_seconds(tmp_path, monkeypatch):
    """Random legal play returns 2.3; the sampled training return passes 8 within 25,000 steps."""
    monkeypatch.chdir(tmp_path)
    grid.main(Args(total_timesteps=25_600, eval_episodes=0, save_model=False, channels=16))
    assert tensorboard(tmp_path).Scalars("charts/episodic_return")[-1].value > 8


USES = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 1, 1]], dtype=torch.bool)  # of choices 0, 1 and 2 in field 0


def test_fields_that_do_not_count_have_no_log_probability_no_entropy_and_no_gradient():
    """By brute force: each agent's distribution over the fields that its action uses, one at a time."""
    nvec, generator = (3, 2, 4), torch.Generator().manual_seed(0)
    logits = torch.randn(50, 9, generator=generator, requires_grad=True)
    legal = torch.rand(50, 9, generator=generator) < 0.7
    legal[:, [0, 3, 5]] = True
    actions = CategoricalMasked(logits, legal, nvec).sample(generator)
    kept, counted = grid.drop_unused(actions, legal, USES, nvec)
    policy = CategoricalMasked(logits, counted, nvec)
    log_prob, entropy = policy.log_prob(kept), policy.entropy()
    (log_prob + entropy).sum().backward()
    for row in range(50):
        expected, start = np.zeros(2), 0
        for k, n in enumerate(nvec):
            field = slice(start, start + n)
            start += n
            if USES[actions[row, 0], k]:
                one = CategoricalMasked(logits.detach()[row, field], legal[row, field])
                expected += one.log_prob(actions[row, k]).item(), one.entropy().item()
                assert kept[row, k] == actions[row, k] and (counted[row, field] == legal[row, field]).all()
            else:
                assert (logits.grad[row, field] == 0).all()
        np.testing.assert_allclose([log_prob[row].item(), entropy[row].item()], expected, atol=1e-5)


def test_an_environment_has_to_say_which_fields_count():
    with pytest.raises(
        ValueError, match="--no-count-unused: Masked/Harvest-v0 has 1 fields and its attribute `uses` is"
    ):
        grid.main(Args(count_unused=False))
