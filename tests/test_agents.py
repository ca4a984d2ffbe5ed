"""What docs/agents.md shows: trained agents in another program, and as ONNX files."""

import itertools
import re
from functools import partial
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
import worlds  # noqa: F401
from script import ROOT, run_folder
from test_scripts import SMALL, main

from envs import episodes
from envs.masks import choose, illegal_actions
from envs.statistics import Statistics
from ppo_action_mask import CategoricalMasked

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs/agents.md").read_text(), re.S)
BAD = [np.nan, np.inf, -np.inf, 3e38, -3e38]


class Dials(gym.Env):
    """Fields of unequal sizes, on a scale far from 0; with `crews` an action for each of some cells of a map."""

    def __init__(self, crews=False):
        self.shape, self.nvec = (3, 5) if crews else (), np.array([2, 5, 3])
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (4, *self.shape), np.float32)
        self.action_space = gym.spaces.MultiDiscrete(np.broadcast_to(self.nvec, (*self.shape, 3)))

    def seen(self):
        mask = masks(self.np_random, 1, self.nvec, self.shape)[0]
        agents = self.np_random.random(self.shape) < 0.3
        obs = self.np_random.normal(1000, 30, (4, *self.shape)).astype(np.float32)
        return obs, {"action_mask": mask.astype(np.int8), "agent_mask": agents.astype(np.int8)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return self.seen()

    def step(self, action):
        self.count += 1
        obs, info = self.seen()
        return obs, float(np.sum(action)), self.count == 6, False, info


gym.register("Test/Dials-v0", Dials, disable_env_checker=True)
CASES = {  # fields of one size and of several, flat, sets with global features, maps, memory; scaled and as they are
    "discrete": ("ppo_action_mask", "Masked/JobRouting-v0"),
    "fields": ("ppo_action_mask", "test_agents:Test/Dials-v0", "--norm-obs"),
    "dqn": ("dqn_action_mask", "Masked/Maze-v0", "--norm-obs"),
    "attention": ("ppo_attention_mask", "worlds:Test/Orders-v0", "--norm-obs"),
    "grid": ("ppo_gridwise", "Masked/Harvest-v0"),
    "grid_fields": ("ppo_gridwise", "test_agents:Test/Dials-v0", "--norm-obs", "--env-kwargs", "crews", "True"),
    "recurrent": ("ppo_recurrent_mask", "Masked/Vault-v0", "--norm-obs", "--norm-reward", "--prev-inputs"),
}


def masks(rng, rows, nvec, cells=(), share=0.4):
    """Random masks (rows, sum(nvec), *cells) with a legal choice in each field, and with a share of 0 no other."""
    luck = rng.random((rows, sum(nvec), *cells))
    fields = np.split(luck, np.cumsum(nvec)[:-1], axis=1)
    return (luck < share) | np.concatenate([field == field.max(1, keepdims=True) for field in fields], axis=1)


def illegal(case, action, inputs):
    """How many actions break the mask."""
    assert (action.reshape(-1, len(case.nvec)) < case.nvec).all()
    if "agent_mask" not in inputs:
        return illegal_actions(action.reshape(len(action), -1), inputs["action_mask"], case.nvec).sum()
    there = inputs["agent_mask"]
    assert not action[~there].any()
    legal = np.moveaxis(inputs["action_mask"], 1, -1)[there]
    return illegal_actions(action[there].reshape(len(legal), -1), legal, case.nvec).sum()


def load(script, path):
    """The names that the blocks of a script define."""
    (own,) = (block for block in BLOCKS if block.startswith(f"from {script} import"))
    names = {}
    for block in (BLOCKS[0].replace("runs/NAME/checkpoint.pt", str(path)), own):
        exec(compile(block, "docs/agents.md", "exec"), names)
    return names


def play(folder, script, env_id, *flags):
    """The checkpoint of ten iterations, and what the script's own evaluation saw and did at each step.

    That are observations before --norm-obs, masks, where episodes begin, torch's generator, and actions.
    """
    real_act, real_scale, raw, seen = episodes.act, Statistics.scale_observations, [], []

    def scale(self, obs, *rest):
        raw[:] = [obs]
        return real_scale(self, obs, *rest)

    def act(play, envs, *rest):
        random = torch.get_rng_state()
        action = real_act(play, envs, *rest)
        mask = envs.path_mask(action) if envs.require_mask else envs.all_legal(envs.last_mask)
        obs = raw[0] if raw else envs.last_obs
        obs = np.concatenate([obs, envs.last_obs[:, obs.shape[1] :]], axis=1)  # --prev-inputs adds columns, unscaled
        seen.append((obs.astype(np.float32), mask.astype(bool), envs.episode_lengths == 0, random, action))
        return action

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        flags = ("--env-id", env_id, "--total-timesteps", "320", "--learning-rate", "0.02", *flags)
        main(script, *SMALL[script], *flags)
        path = run_folder() / "checkpoint.pt"
        patch.setattr(episodes, "act", act)
        patch.setattr(Statistics, "scale_observations", scale)
        main(script, "--eval-only", str(path), "--eval-episodes", "8", "--eval-max-steps", "100")
    return folder / path, seen


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    script, *flags = CASES[request.param]
    path, seen = play(tmp_path_factory.mktemp("agents"), script, *flags)
    names = load(script, path)
    nvec, observed = np.array(names["nvec"]), np.concatenate([obs for obs, *_ in seen])
    return SimpleNamespace(script=script, path=path, names=names, nvec=nvec, seen=seen, observed=observed)


@pytest.fixture(scope="module")
def exported(case):
    """A greedy agent, and its ONNX file by the page's last block."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    names = load(case.script, case.path)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(case.path.parent)
        exec(compile(BLOCKS[-1], "docs/agents.md", "exec"), names)
    assert [path.name for path in case.path.parent.glob("agent.*")] == ["agent.onnx"]
    return SimpleNamespace(agent=names["agent"], run=partial(names["session"].run, None))


def some_inputs(case, rng, rows, share=0.4, bad=None):
    """Random inputs around what evaluation saw; with `bad` that value in all places of a row, or in half of them."""
    inputs = {}
    for name, example in case.names["inputs"].items():
        shape = (rows, *example.shape[1:])
        if name == "action_mask":
            inputs[name] = masks(rng, rows, case.nvec, shape[2:], share)
        elif example.dtype == torch.bool:
            inputs[name] = rng.random(shape) < 0.3
        else:
            values = rng.standard_normal(shape, np.float32)
            if name == "obs":
                values = values * case.observed.std(0) + case.observed[rng.integers(len(case.observed), size=rows)]
            places = rng.random(shape) < rng.choice([0.5, 1.0], (rows, *(1 for _ in shape[1:])))
            inputs[name] = values if bad is None else np.where(places, np.float32(bad), values)
    return inputs


def in_torch(agent, inputs):
    """The outputs of a loaded agent, as arrays."""
    outputs = agent(**{name: torch.from_numpy(x) for name, x in inputs.items()})
    return [x.numpy() for x in (outputs if isinstance(outputs, tuple) else (outputs,))]


def test_loaded_agents_act_as_evaluation_does(case):
    state = np.full((len(case.seen[0][0]), case.names["args"].get("hidden_dim", 0)), np.nan, np.float32)
    for obs, mask, started, random, action in case.seen:
        inputs = {"obs": obs, "action_mask": mask}
        if "agent_mask" in case.names["inputs"]:
            inputs |= {"agent_mask": mask[:, 0], "action_mask": mask[:, 1:]}
        if "state" in case.names["inputs"]:
            inputs |= {"started": started, "state": state}
        torch.set_rng_state(random)  # for agents that sample
        found, *state = in_torch(case.names["agent"], inputs)
        state = state[0] if state else None
        assert (found == action).all() and illegal(case, found, inputs) == 0
    assert len(case.observed) >= 80 and len(np.unique(np.concatenate([x[-1].ravel() for x in case.seen]))) > 1


def test_onnx_files_act_as_the_agents_do(case, exported):
    rng, different = np.random.default_rng(0), set()
    for rows, times in ((1, 50), (7, 50), (300, 10)):
        for _ in range(times):
            inputs = some_inputs(case, rng, rows)
            expected, *state = in_torch(exported.agent, inputs)
            found, *next_state = exported.run(inputs)
            assert found.shape == expected.shape and found.dtype == np.int64 and (found == expected).all()
            assert illegal(case, found, inputs) == 0
            different |= set(found.ravel().tolist())
            for a, b in zip(state, next_state, strict=True):
                np.testing.assert_allclose(a, b, atol=1e-5)
    assert len(different) > 1


@pytest.mark.parametrize("share", [0.0, 0.4])
@pytest.mark.parametrize("bad", BAD)
def test_no_input_makes_an_illegal_action_come_out(case, exported, bad, share):
    """With one legal choice in each field, and with several."""
    rng, loaded = np.random.default_rng(0), case.names["agent"]  # that of a grid samples
    for rows in (1, 7, 300):
        inputs = some_inputs(case, rng, rows, share, bad)
        for action, *_ in (exported.run(inputs), in_torch(exported.agent, inputs), in_torch(loaded, inputs)):
            assert illegal(case, action, inputs) == 0


def test_observations_are_scaled_as_in_training(case):
    """To the bit, and clipped."""
    scale, kept = case.names["scale"], case.names["saved"]["statistics"]
    columns = len(kept["obs"]["mean"]) if kept else 5
    x = 1e5 * np.random.default_rng(0).standard_cauchy((300, columns)).astype(np.float32)
    statistics = Statistics(observations="obs" in kept, rewards="returns" in kept, gamma=0.99)
    statistics.load_state_dict(kept)
    expected = statistics.scale_observations(x, "flat", learn=False)
    assert (scale(torch.from_numpy(x)).numpy() == expected).all() and (not kept or abs(expected).max() == 10)


def test_no_logits_make_an_illegal_action_come_out(tmp_path):
    """All combinations of extreme logits under all masks, in the ONNX form of `best` alone."""
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    names = {}
    exec(BLOCKS[0][BLOCKS[0].index("def best") :], {"torch": torch}, names)

    class Best(torch.nn.Module):
        def forward(self, logits, mask):
            return names["best"](CategoricalMasked(logits, mask, (2, 3), validate=False))

    limits = np.finfo(np.float32)
    logits = torch.tensor(list(itertools.product([*BAD, limits.min, limits.min / 2, limits.max, 0.0], repeat=5)))
    legal = [mask for mask in itertools.product((True, False), repeat=5) if any(mask[:2]) and any(mask[2:])]
    legal, finite, nvec, rows = torch.tensor(legal), logits.isfinite().all(1).numpy(), (2, 3), {0: "batch"}
    example, best = (logits[:2], legal[:2]), Best().eval()
    best(*example)  # the table of unequal fields, which no export may make
    torch.onnx.export(best, example, tmp_path / "best.onnx", dynamic_shapes=(rows, rows), verbose=False)
    session = runtime.InferenceSession(tmp_path / "best.onnx")
    for mask in legal.unsqueeze(1).expand(-1, len(logits), -1):
        (found,) = session.run(None, {"logits": logits.numpy(), "mask": mask.numpy()})
        assert (found < nvec).all() and not illegal_actions(found, mask.numpy(), np.array(nvec)).any()
        assert (found == CategoricalMasked(logits, mask, nvec).mode.numpy())[finite].all()
    nothing = np.zeros(logits.shape, bool)
    assert not session.run(None, {"logits": logits.numpy(), "mask": nothing})[0].any()


def test_fields_that_depend_on_each_other_are_chosen_as_the_page_says(tmp_path):
    path, seen = play(tmp_path, "ppo_action_mask", "Masked/BinPlacement-v0", "--norm-obs")
    names = load("ppo_action_mask", path)
    for obs, path_mask, _, _, action in seen:
        scores = names["agent"].actor(names["scale"](torch.from_numpy(obs))).numpy()
        assert (choose(scores, path_mask, np.array(names["nvec"])) == action).all()
