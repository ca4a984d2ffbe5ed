"""Connect Four: rules, masks, seats, search, past agents; against PettingZoo's where that is installed."""

import json
import math
import re
from collections import Counter, defaultdict

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from script import checkpoint, run_folder, tensorboard
from test_scripts import main

import ppo_action_mask as ppo
from envs.episodes import evaluate
from envs.make import make_vec
from envs.players import Player, introduce
from envs.statistics import Statistics
from envs.worlds.connect_four import CELLS, COLUMNS, LINES, PASS, ConnectFour, drops, has_four, negamax

BITS = np.uint64(1) << CELLS.astype(np.uint64)  # (6, 7), top row first


def board(*rows):
    """Bit boards (1,) of the discs x, who moves next, and o of a board whose rows are given from the top."""
    cells = np.array([list(f"{row:.<7}") for row in [""] * (6 - len(rows)) + list(rows)])
    return [np.array([BITS[cells == disc].sum()], np.uint64) for disc in "xo"]


def legal_moves(rng, infos):
    mask = infos["action_mask"]
    return np.where(mask > 0, rng.random(mask.shape), -1).argmax(axis=1)


def test_four_in_a_row_are_found_in_every_line_and_nowhere_else():
    cells = BITS.ravel()
    assert len(LINES) == 69 and all(has_four(cells[line].sum()) for line in LINES)
    rng = np.random.default_rng(0)
    discs = rng.random((2000, 42)) < 0.4
    expected = discs[:, LINES].all(axis=2).any(axis=1)
    np.testing.assert_array_equal(has_four((discs * cells).sum(axis=1, dtype=np.uint64)), expected)
    assert 0.2 < expected.mean() < 0.8


def test_games_are_those_of_pettingzoo_move_by_move():
    connect_four = pytest.importorskip("pettingzoo.classic.connect_four.connect_four", reason="optional")
    env, rng, ends = ConnectFour(200, opponent="self"), np.random.default_rng(0), []
    _, infos = env.reset(seed=0)
    others = [connect_four.raw_env() for _ in range(100)]
    for other in others:
        other.reset()
    while len(ends) < 1000:
        actions = legal_moves(rng, infos)
        mover = actions.reshape(100, 2) != PASS
        assert (mover.sum(axis=1) == 1).all()
        obs, rewards, terminations, _, infos = env.step(actions)
        final = infos.get("final_obs", obs)
        for game, other in enumerate(others):
            seat = int(mover[game, 1])
            assert other.agent_selection == f"player_{seat}"
            other.step(int(actions[2 * game + seat]))
            ended = terminations[2 * game]
            seen = final if ended else obs
            for side in (0, 1):
                theirs = other.observe(f"player_{side}")
                np.testing.assert_array_equal(seen[2 * game + side, ..., :2], theirs["observation"])
                assert rewards[2 * game + side] == other.rewards[f"player_{side}"]
                if not ended and infos["action_mask"][2 * game + side, PASS] == 0:
                    np.testing.assert_array_equal(infos["action_mask"][2 * game + side, :PASS], theirs["action_mask"])
            assert ended == terminations[2 * game + 1] == other.terminations["player_0"]
            if ended:
                ends.append(rewards[2 * game])
                other.reset()
    assert min(ends.count(1), ends.count(-1)) > 300


@pytest.mark.parametrize("opponent", ["self", "pool", "random", "minimax"])
def test_masks_are_columns_with_room_and_rewards_sum_to_zero(opponent):
    env, rng, returns = ConnectFour(7, opponent, depth=1), np.random.default_rng(0), 0
    obs, infos = env.reset(seed=0)
    for _ in range(300):
        turn = obs[..., 2].all((1, 2))
        room = obs[..., :2].sum(-1)[:, 0] == 0
        expected = np.concatenate([room & turn[:, None], ~turn[:, None]], axis=1)
        np.testing.assert_array_equal(infos["action_mask"], expected)
        if opponent in ("self", "pool"):
            assert (turn[:6:2] ^ turn[1:6:2]).all() and turn[6]  # one of both; the last is alone
        else:
            assert turn.all()
        obs, rewards, terminations, truncations, infos = env.step(legal_moves(rng, infos))
        assert not truncations.any() and not rewards[~terminations].any()
        if opponent in ("self", "pool"):
            np.testing.assert_array_equal(rewards[:6:2], -rewards[1:6:2])
            np.testing.assert_array_equal(terminations[:6:2], terminations[1:6:2])
        if terminations.any():
            final = infos["final_info"]
            np.testing.assert_array_equal((final["success"] - final["lost"])[terminations], rewards[terminations])
            assert ((final["success"] + final["drawn"] + final["lost"])[terminations] == 1).all()
        returns += rewards
    assert returns.any()


def test_illegal_moves_change_nothing():
    env = ConnectFour(2, opponent="self")
    env.reset(seed=0)
    for turn in range(6):
        env.step([3, PASS] if turn % 2 == 0 else [PASS, 3])
    before, discs = env.render(), env.discs.copy()
    for actions in ([3, PASS], [PASS, 0], [PASS, 3]):  # a full column, who moves passes, who waits moves
        _, rewards, terminations, _, infos = env.step(actions)
        assert not rewards.any() and not terminations.any() and infos["action_mask"][:, PASS].tolist() == [0, 1]
    np.testing.assert_array_equal(env.discs, discs)
    alone = ConnectFour(1, opponent="random", max_episode_steps=9)
    alone.reset(seed=0)
    ends = [alone.step([PASS])[2:4] for _ in range(9)]
    assert [bool(terminated[0] or truncated[0]) for terminated, truncated in ends] == [False] * 8 + [True]
    assert ends[-1][1].all() and not ends[-1][0].any() and before is None


@pytest.mark.parametrize("rows, depth, column, value", [
    (("ooo", "xxx"), 1, 3, 1),  # mate in one
    (("xxo", "ooo"), 2, 3, None),  # the only move that does not lose at once
    ((".oo", ".xx"), 3, None, 1 / 3),  # an open three: mate in two of one's own moves
])  # fmt: skip
def test_the_search_finds_what_is_decided(rows, depth, column, value):
    own, other = board(*rows)
    values = negamax(own, other, depth)[0]
    if value is not None:
        assert values.max() == pytest.approx(value)
    if column is not None:
        assert values.argmax() == column and (values > values[column] - 1e-9).sum() == 1


def solve(own, other, known):
    """What best play returns for who moves next: the plain recursion, to the end of the game."""
    if (own, other) not in known:
        best = -2
        for column in range(COLUMNS):
            new = int(drops(np.uint64(own | other))[column])
            if new:
                won = bool(has_four(np.uint64(own | new)))
                best = max(best, 1 if won else -solve(other, own | new, known))
        known[own, other] = 0 if best == -2 else best
    return known[own, other]


def test_the_search_is_exact_on_positions_with_few_empty_cells():
    env, rng, checked, found = ConnectFour(400, opponent="self"), np.random.default_rng(0), 0, set()
    _, infos = env.reset(seed=0)
    for _ in range(200):
        env.step(legal_moves(rng, infos))
        infos = env._info(env._rows)
        for game in np.flatnonzero((env.plies >= 34) & (env.result == 0) & (env.plies < 42))[:2]:
            side = env.plies[game] % 2
            own, other = env.discs[game, side], env.discs[game, 1 - side]
            values = negamax(own[None], other[None], 42 - int(env.plies[game]))[0]
            assert np.sign(values.max()) == solve(int(own), int(other), {})
            checked, found = checked + 1, found | {np.sign(values.max())}
    assert checked > 50 and found == {-1, 0, 1}


def test_deeper_search_wins():
    env, rng, points = ConnectFour(64, opponent="minimax", depth=2), np.random.default_rng(0), []
    env.reset(seed=0)
    for _ in range(120):  # depth 3 against depth 2
        own = env.discs[env.game, env.seat]
        values = negamax(own, env.discs[env.game, 1 - env.seat], 3)
        best = np.where(values == values.max(axis=1, keepdims=True), rng.random(values.shape), -1).argmax(axis=1)
        _, rewards, terminations, *_ = env.step(best)
        points += rewards[terminations].tolist()
    assert len(points) > 200 and np.mean(points) > 0.1


def test_who_waits_changes_no_weight():
    """Half of the rows of self-play wait: their terms of the policy's loss have no gradient, exactly."""
    torch.manual_seed(0)
    env = ConnectFour(8, opponent="self")
    obs, infos = env.reset(seed=0)
    agent = ppo.Agent(126, (8,), 16)
    mask = torch.tensor(infos["action_mask"]).bool()
    policy, _ = agent(torch.tensor(obs).float().flatten(1), mask)
    actions = policy.sample()
    waiting = mask[:, PASS]
    assert (actions[waiting] == PASS).all() and waiting.sum() == 4
    terms = (policy.log_prob(actions) + policy.entropy())[waiting]
    assert (terms == 0).all()
    gradients = torch.autograd.grad(terms.sum(), list(agent.actor.parameters()))
    assert all((g == 0).all() for g in gradients)


def past_agent(column=None):
    """An agent that plays by chance, or one column whenever it has room."""
    torch.manual_seed(0)
    agent = ppo.Agent(126, (8,), 16)
    if column is not None:
        agent.actor[-1].bias.data[column] = 100.0
    return agent


def rollout(env, steps, rng):
    seen = []
    infos = env._info(env._rows)
    for _ in range(steps):
        obs, rewards, *_ = env.step(legal_moves(rng, {"action_mask": infos["action_mask"]}))
        infos = env._info(env._rows)
        seen.append(np.concatenate([obs.reshape(len(obs), -1), rewards[:, None]], axis=1))
    return np.stack(seen)


@pytest.mark.parametrize("opponent", ["random", "minimax", "self", "pool"])
def test_a_saved_state_goes_on_bit_for_bit(opponent):
    env = ConnectFour(80, opponent, depth=2, share=0.9)
    env.reset(seed=0)
    if opponent == "pool":
        env.meet(past_agent())
    rollout(env, 50, np.random.default_rng(0))
    if opponent == "pool":
        assert set(env.by.ravel()) == {-1, 0, 1, 2, 3}  # environments, the yardsticks, the past agent
    state = env.get_state()
    other = ConnectFour(80, opponent, depth=2, share=0.9)
    other.reset(seed=5)
    other.set_state(state)
    first, second = (rollout(e, 60, np.random.default_rng(1)) for e in (env, other))
    np.testing.assert_array_equal(first, second)
    assert first.any()


def test_others_take_a_seat_in_their_share_of_games():
    env, rng = ConnectFour(2000, "pool", share=0.3), np.random.default_rng(0)
    env.reset(seed=0)
    assert set(env.by.ravel()) == {-1, 0, 1, 2}  # nobody has been met
    assert 0.08 < (env.by >= 0).any(axis=1).mean() < 0.15
    for _ in range(20):
        env.meet(past_agent())
    assert len(env.pool) == 16
    env.reset(seed=1)
    taken = env.by >= 0
    assert 0.25 < taken.any(axis=1).mean() < 0.35 and taken.sum(axis=1).max() == 1 and taken.sum(axis=0).min() > 100
    counts = np.bincount(env.by[taken], minlength=19)
    assert len(counts) == 19 and (counts[:3] > 20).all() and (counts[:3] < 60).all() and (counts[3:] > 1).all()
    infos = env._info(env._rows)
    rows = np.flatnonzero(taken.ravel())  # environments 2i and 2i + 1 are the sides of game i
    for _ in range(30):
        assert infos["action_mask"][rows, PASS].all()  # it waits for the whole game
        before = env.by.copy()
        *_, terminations, _, infos = env.step(legal_moves(rng, infos))
        if terminations.any():
            break
        np.testing.assert_array_equal(env.by, before)


class Watched(ConnectFour):
    """Keeps what the others saw and chose."""

    def _choose(self, games, side):
        columns = super()._choose(games, side)
        own, other = self.discs[games, side], self.discs[games, 1 - side]
        self.moves.append(np.stack([self.by[games, side], own, other, columns], axis=1).astype(np.uint64))
        return columns


def test_others_play_as_their_kind_does():
    env, rng = Watched(400, "pool", share=1.0), np.random.default_rng(0)
    env.moves, agent = [], past_agent(column=6)
    env.meet(agent)
    agent.actor[-1].bias.data[:] = torch.tensor([99.0] * 6 + [0.0] * 2)  # its past self is a copy
    env.reset(seed=0)
    infos = env._info(env._rows)
    for _ in range(40):
        *_, infos = env.step(legal_moves(rng, infos))
    by, own, other, columns = np.concatenate(env.moves).T
    new = drops(own | other)
    columns, room = columns.astype(int), new != 0
    assert room[np.arange(len(by)), columns].all()
    wins, threats = (room & has_four(discs[:, None] | new) for discs in (own, other))
    won = wins[np.arange(len(by)), columns]
    blocks = own | (new * threats).max(axis=1)
    saved = ~has_four(other[:, None] | drops(blocks | other)).any(axis=1)  # by a block of the only threat
    for kind, depth in ((1, 2), (2, 4)):  # wins where that is possible, else blocks a four that could come next
        rows = by == kind
        at_once, blocked = rows & wins.any(axis=1), rows & ~wins.any(axis=1) & (threats.sum(axis=1) == 1) & saved
        assert at_once.sum() > 10 and blocked.sum() > 10 and won[at_once].all()
        assert (threats[blocked].argmax(axis=1) == columns[blocked]).all()
        best, shallow = (negamax(own[rows], other[rows], n) for n in (depth, depth - 1))
        best, shallow = (values == values.max(axis=1, keepdims=True) for values in (best, shallow))
        assert best[np.arange(rows.sum()), columns[rows]].all() and (shallow & ~best).any(axis=1).sum() > 10
    assert 0 < won[(by == 0) & wins.any(axis=1)].mean() < 0.6  # random moves see no four
    counts = np.bincount(columns[by == 0])
    assert counts.min() / counts.max() > 0.6
    assert (columns[(by == 3) & room[:, 6]] == 6).all() and (by == 3).sum() > 1000
    assert (columns[(by == 3) & ~room[:, 6]] != 6).all()


def test_a_training_introduces_itself_32_times_to_a_world_with_a_pool():
    for opponent, count in (("pool", 16), ("self", 0)):  # the last 16
        env, met = ConnectFour(2, opponent), 0
        for iteration in range(1, 65):
            before = env.pool
            introduce(env, past_agent(), iteration, 64)
            met += env.pool is not before
        assert (met, len(env.pool)) == (2 * count, count)


def test_points_are_of_who_was_met_and_episodes_of_others_do_not_count():
    envs = make_vec("Masked/ConnectFour-v0", 401, {"opponent": "pool", "share": 0.7})
    rng, met = np.random.default_rng(0), Counter()
    raw, infos, expected = envs.unwrapped, envs.reset(seed=0)[1], defaultdict(list)
    kinds = ("random", "minimax_2", "minimax_4", "pool")
    for step in range(60):
        if step == 20:
            raw.meet(past_agent())
        against = np.minimum(raw.by[raw.game, 1 - raw.seat], 3)  # of each row; -1 for oneself
        theirs = raw.by[raw.game, raw.seat] >= 0
        _, rewards, terminations, _, infos = envs.step(legal_moves(rng, infos))
        if not terminations.any():
            continue
        np.testing.assert_array_equal(infos["_episode"], terminations & ~theirs)
        expected["episodic_return"] += rewards[infos["_episode"]].tolist()
        for kind, name in enumerate(kinds):
            points = infos["final_info"][f"points_{name}"]
            rows = terminations & (against == kind)
            assert np.isnan(points[terminations & ~rows]).all()
            np.testing.assert_array_equal(points[rows], (rewards[rows] + 1) / 2)
            met[name] += rows.sum()
            if rows.any():
                expected[f"points_{name}"] += points[rows].tolist()
    assert min(met.values()) > 20 and {name: envs.ended[name] for name in expected} == expected
    assert all(envs.ended.values())  # nothing is kept, and logged, of a kind that was not met


def test_evaluation_has_points_by_kind_and_no_others():
    envs = make_vec("Masked/ConnectFour-v0", 400, {"opponent": "pool", "share": 0.8})
    rng, kept = np.random.default_rng(0), []
    step = envs.step

    def keep(actions):
        answer = step(actions)
        if "episode" in answer[-1]:
            kept.append(answer[-1])
        return answer

    envs.step = keep
    scores = evaluate(lambda obs, mask, started: legal_moves(rng, {"action_mask": mask}), envs, 400, 1000)
    first = [next(infos for infos in kept if infos["_episode"][row]) for row in range(400)]  # each plays one of its own
    ends = {key: np.array([infos["final_info"][key][row] for row, infos in enumerate(first)])
            for key in first[0]["final_info"]}  # fmt: skip
    for key in ("success", "drawn", "lost"):
        assert scores[key] == pytest.approx(ends[key].mean())
    assert scores["episodic_return"] == pytest.approx((ends["success"] - ends["lost"]).mean())
    for name in ("random", "minimax_2", "minimax_4"):
        assert scores[f"points_{name}"] == pytest.approx(np.nanmean(ends[f"points_{name}"]))
    assert "points_pool" not in scores and np.isnan(ends["points_pool"]).all()
    assert scores["points_random"] > scores["points_minimax_2"]


def test_tensorboard_has_the_points_by_kind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ("--num-envs", "32", "--num-steps", "16", "--total-timesteps", "16384", "--eval-episodes", "64")
    scores = main("ppo_action_mask", "--env-id", "Masked/ConnectFour-v0", *flags, "--env-kwargs", "opponent", "pool")
    events = tensorboard(tmp_path)
    for name in ("random", "minimax_2", "minimax_4", "pool"):
        values = [event.value for event in events.Scalars(f"charts/points_{name}")]
        assert 0 < len(values) < 32 and min(values) >= 0 and max(values) <= 1  # 32 logs, some without such a game
    assert any("points_random" in name for name in scores) and all(np.isfinite(list(scores.values())))


def test_a_checkpoint_plays_as_it_is_evaluated(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ("--env-id", "Masked/ConnectFour-v0", "--num-envs", "16", "--total-timesteps", "8192")
    main("ppo_action_mask", *flags, "--eval-episodes", "0", "--env-kwargs", "opponent", "pool")
    path = str(run_folder(tmp_path) / "checkpoint.pt")
    saved = checkpoint(tmp_path)
    assert len(saved["ranks"][0]["envs"]["env"]["pool"]) == 16  # the last of 32
    player = Player.of_checkpoint(path, "ConnectFour", (126, 8))
    agent = ppo.Agent(126, (8,), 64)
    agent.load_state_dict(saved["model"])
    env, rng = ConnectFour(32, "random"), np.random.default_rng(0)
    obs, infos = env.reset(seed=0)
    for _ in range(10):
        mask = infos["action_mask"].astype(bool)
        policy, _ = agent(torch.tensor(obs).float().flatten(1), torch.tensor(mask))
        np.testing.assert_array_equal(player.best(obs.reshape(32, -1), mask), policy.mode.numpy())
        draws = np.linspace(0, 1, 32, endpoint=False)
        assert mask[np.arange(32), player.sample(obs.reshape(32, -1), mask, draws)].all()
        obs, *_, infos = env.step(legal_moves(rng, infos))
    capsys.readouterr()
    main("ppo_action_mask", "--eval-only", path, "--env-kwargs", "opponent", path, "--eval-episodes", "16")
    scores = json.loads(re.search(r"{\s*\"as_trained.*}", capsys.readouterr().out, re.S)[0])["as_trained"]
    # It plays itself, greedily: the same game from both seats.
    assert abs(scores["episodic_return"]) <= 1 and scores["success"] + scores["lost"] + scores["drawn"] == 1


def test_samples_of_a_player_have_its_odds():
    weights = {"actor.0.weight": np.zeros((2, 1), np.float32), "actor.0.bias": np.log([1, 3]).astype(np.float32)}
    player = Player(weights, (1, 2), "a player")
    draws = (np.arange(1000) + 0.5) / 1000
    actions = player.sample(np.zeros((1000, 1)), np.ones((1000, 2), bool), draws)
    assert (actions == 0).sum() == 250
    assert player.sample(np.zeros((1, 1)), np.array([[True, False]]), np.array([0.999]))[0] == 0


def test_what_is_no_player_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.pt").write_text("nothing")
    with pytest.raises(ValueError, match=r"opponent .*text.pt: no checkpoint of these scripts"):
        ConnectFour(1, opponent=str(tmp_path / "text.pt"))
    with pytest.raises(ValueError, match="opponent 'nobody': expected random, minimax, self, pool or the path"):
        ConnectFour(1, opponent="nobody")
    main("ppo_action_mask", "--num-envs", "4", "--num-steps", "8", "--minibatch-size", "16", "--total-timesteps", "32",
         "--eval-episodes", "0")  # fmt: skip
    with pytest.raises(ValueError, match="trained on Masked/JobRouting-v0; expected ConnectFour"):
        ConnectFour(1, opponent=str(run_folder(tmp_path) / "checkpoint.pt"))
    with pytest.raises(ValueError, match="--norm-obs: past selves see observations as the world gives them"):
        make_vec("Masked/ConnectFour-v0", 2, {"opponent": "pool"}, statistics=Statistics(True, False, 0.9))
    make_vec("Masked/ConnectFour-v0", 2, {"opponent": "self"}, statistics=Statistics(True, False, 0.9))
    for kwargs in ({"depth": 0}, {"share": 1.5}):
        with pytest.raises(ValueError, match="Expected depth from 1 to 7 and share from 0 to 1"):
            ConnectFour(1, **kwargs)
    with pytest.raises(ValueError, match=r"a player takes 3 inputs and has 2 actions; expected \(126, 8\)"):
        Player({"actor.0.weight": np.zeros((2, 3)), "actor.0.bias": np.zeros(2)}, (126, 8), "a player")
    with pytest.raises(ValueError, match="a player has weights head.weight; expected the linear layers"):
        Player({"head.weight": np.zeros((2, 3))}, (126, 8), "a player")


def test_gymnasiums_checker_passes_and_a_single_environment_plays():
    check_env(gym.make("Masked/ConnectFour-v0", render_mode="rgb_array").unwrapped)
    envs = make_vec("Masked/ConnectFour-v0", 3)
    assert envs.reset(seed=1)[0].shape == (3, 126)


def test_rendering_shows_full_columns():
    env = ConnectFour(2, opponent="self", render_mode="ansi")
    env.reset(seed=0)
    mover, other = env.render()
    assert "↓ ↓ ↓ ↓ ↓ ↓ ↓" in mover and "Your move" in mover and "You wait" in other
    for turn in range(6):
        env.step([3, PASS] if turn % 2 == 0 else [PASS, 3])
    assert "↓ ↓ ↓ × ↓ ↓ ↓" in env.render()[0] and env.render()[0].count("●") == 3 + 1
    env.render_mode = "rgb_array"
    frame = env.render()[0]
    assert frame.dtype == np.uint8 and frame.ndim == 3 and frame.std() > 20 and math.prod(frame.shape) > 1000
