"""Where benchmarks reach into the scripts: steps and parts of a training, a single update, parts replaced.

Nothing else in this folder patches a script or what is behind it, so that a change there has to be followed here only.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # the scripts, envs and experiment

from envs.uniform import UniformVectorEnv  # noqa: E402
from experiment import Adam, Run  # noqa: E402
from experiment.fast import columns_first, compiled  # noqa: E402


@contextmanager
def watched(
    tick: Callable[[int], None], episodes: Callable[[np.ndarray, np.ndarray], None] | None = None
) -> Iterator[None]:
    """Watch all environments that are stepped, those of an evaluation too.

    Args:
        tick: takes the number of environments, before each step of them.
        episodes: takes the returns of the episodes that a step has ended, and of best play in them, 1 where the world
            does not know it.
    """
    step = UniformVectorEnv.step

    def watched_step(vector: UniformVectorEnv, actions: np.ndarray) -> tuple:
        tick(vector.num_envs)
        result = step(vector, actions)
        if episodes and "episode" in result[4]:
            infos, ended = result[4], result[4]["_episode"]
            optima = infos["final_info"].get("optimal_return", np.ones(vector.num_envs))
            episodes(infos["episode"]["r"][ended], optima[ended])
        return result

    with mock.patch.object(UniformVectorEnv, "step", watched_step):
        yield


@contextmanager
def timed(script: ModuleType, timer: Callable[[str, Callable], Callable]) -> Iterator[None]:
    """Time three parts of a training: environment, acting and update.

    Args:
        script: ppo_action_mask, or another that acts with `sampler`.
        timer: maps a part's name and its function to the function that is called instead.
    """
    step, sampler, compile_function = UniformVectorEnv.step, script.sampler, Run.compile

    def timed_compile(run: Run, function: Callable) -> Callable:
        made = compile_function(run, function)
        return timer("update", made) if function is script.update else made

    with (
        mock.patch.object(UniformVectorEnv, "step", timer("environment", step)),
        mock.patch.object(script, "sampler", lambda *inputs: timer("acting", sampler(*inputs))),
        mock.patch.object(Run, "compile", timed_compile),
    ):
        yield


def updater(script: ModuleType, agent: nn.Module, args: Any) -> Callable[[tuple[Tensor, ...]], Tensor]:
    """A function that makes one update with a minibatch as the script's main does, and returns the metrics.

    Args:
        script: one of the three for PPO.
        agent: which is trained; its parameters get their final memory layout.
        args: the script's flags; the step size is always 1e-4.
    """
    columns_first(agent)
    optimizer = Adam(agent, eps=1e-5)
    optimizer.lr.fill_(1e-4)
    update = compiled(script.update) if args.compile else script.update

    def mean(x: Any) -> Any:
        return x  # of one rank

    return lambda mb: update(agent, optimizer, mb, args, mean)


def replace(script: ModuleType, network: Callable[..., nn.Module]) -> None:
    """Change all further trainings of ppo_action_mask in this process; actions are then sampled in evaluation too.

    Args:
        script: ppo_action_mask.
        network: makes policy and value from obs_dim, hidden_dim, out_dim and std.
    """
    script.Agent._mlp = staticmethod(network)
    make = script.sampler
    script.sampler = lambda *inputs: _always_sampled(make(*inputs))


def clip_each_field(script: ModuleType) -> None:
    """Let further trainings of ppo_action_mask clip the ratio of each field of an action, and take their mean."""

    def log_prob(policy: Any, action: Tensor) -> Tensor:
        return policy.log_probs.gather(-1, action.unsqueeze(-1)).squeeze(-1)  # (..., K), not summed

    @torch.no_grad()
    def evaluate_actions(agent: nn.Module, obs: Tensor, masks: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        policy, values = agent(obs.flatten(0, 1), masks.flatten(0, 1))
        log_probs = policy.log_prob(actions.flatten(0, 1))
        return log_probs.unflatten(0, obs.shape[:2]), values.view(obs.shape[:2])

    script.CategoricalMasked.log_prob, script.evaluate_actions, loss = log_prob, evaluate_actions, script.ppo_loss

    def ppo_loss(agent: nn.Module, mb: tuple[Tensor, ...], args: Any) -> tuple[Tensor, Tensor]:
        *before, advantages, returns, values = mb
        return loss(agent, (*before, advantages.unsqueeze(1), returns, values), args)  # (B, 1), for all fields

    script.ppo_loss = ppo_loss


def add_entropy_to_loss(script: ModuleType) -> None:
    """Let further trainings of ppo_action_mask add the entropy to the loss, which makes policies certain."""
    loss = script.ppo_loss
    script.ppo_loss = lambda agent, mb, args: loss(agent, mb, dataclasses.replace(args, ent_coef=-args.ent_coef))


def count_unused_in_entropy() -> None:
    """Let further trainings of ppo_gridwise on MicroRTS leave unused fields out of the ratio, and only there."""
    import ppo_gridwise
    from envs.worlds.microrts import USES

    uses = torch.from_numpy(USES)

    def log_prob(policy: Any, action: Tensor) -> Tensor:
        log_probs = policy.log_probs.gather(-1, action.unsqueeze(-1)).squeeze(-1)
        return (log_probs * uses[action[:, 0]]).sum(-1)

    ppo_gridwise.CategoricalMasked.log_prob = log_prob


def _always_sampled(act: Callable) -> Callable:
    return lambda obs, mask, field_mask=None, greedy=False: act(obs, mask, field_mask)
