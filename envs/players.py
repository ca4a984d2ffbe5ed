"""Agents of earlier trainings, and of earlier moments of this one, as players of games: a world needs no script."""

from copy import deepcopy
from typing import Any

import numpy as np
import torch

POOL = 16  # past agents that a world keeps, the last ones
KINDS = {"actor": np.tanh, "network": lambda x: np.maximum(x, 0)}  # the layers of PPO's policy, and of the Q-values


def introduce(envs: Any, agent: torch.nn.Module, iteration: int, num_iterations: int) -> None:
    """Let a world that has a pool of past agents, as its `meets` says, `meet` this one: 32 times or more."""
    if getattr(envs, "meets", False) and iteration % max(1, num_iterations // 32) == 0:
        envs.meet(agent)


def weights_of(agent: torch.nn.Module) -> dict[str, np.ndarray]:
    """A copy of the weights that a `Player` needs, as a checkpoint can hold them."""
    weights = {key: x for key, x in agent.state_dict().items() if key.split(".")[0] in KINDS}
    return {key: x.cpu().numpy().copy() for key, x in weights.items()}


class Player:
    """A trained policy or Q-network that chooses actions.

    Args:
        weights: of `ppo_action_mask.py`'s Agent or `dqn_action_mask.py`'s QNetwork, as they are.
        shape: numbers of inputs and of actions.
        name: for messages.

    Raises:
        ValueError: layers of another kind or shape.
    """

    def __init__(self, weights: dict[str, np.ndarray], shape: tuple[int, int], name: str):
        kinds = [kind for kind in KINDS if f"{kind}.0.weight" in weights]
        if not kinds:
            expected = "the linear layers of ppo_action_mask.py's Agent or of dqn_action_mask.py's QNetwork"
            raise ValueError(f"{name} has weights {', '.join(weights)}; expected {expected}.")
        self.activation = KINDS[kinds[0]]
        numbers = sorted(int(key.split(".")[1]) for key in weights if key.startswith(kinds[0]) and "weight" in key)
        self.layers = [[weights[f"{kinds[0]}.{n}.{part}"] for part in ("weight", "bias")] for n in numbers]
        found = (self.layers[0][0].shape[1], self.layers[-1][0].shape[0])
        if found != shape:
            raise ValueError(f"{name} takes {found[0]} inputs and has {found[1]} actions; expected {shape}.")

    @classmethod
    def of_checkpoint(cls, path: str, world: str, shape: tuple[int, int]) -> "Player":
        """The agent of a checkpoint that was trained in a world of this name.

        Raises:
            ValueError: the file is no checkpoint, one of another world, or of an agent with normalized observations.
        """
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
            env_id, normalized = saved["args"]["env_id"], saved["args"]["norm_obs"]
            weights = {key: value.numpy() for key, value in saved["model"].items()}
        except Exception as error:
            raise ValueError(f"opponent {path}: no checkpoint of these scripts ({type(error).__name__}).") from error
        if world not in env_id or normalized:
            how = " with --norm-obs" * normalized
            raise ValueError(f"opponent {path}: trained on {env_id}{how}; expected {world}, without --norm-obs.")
        return cls(weights, shape, f"opponent {path}")

    def best(self, obs: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """The best legal action (B,) for obs (B, D) and mask (B, A)."""
        return self._scores(obs, mask).argmax(axis=1)

    def sample(self, obs: np.ndarray, mask: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """An action (B,) by the policy, for draws (B,) in [0, 1); the best one of a Q-network."""
        scores = self._scores(obs, mask)
        if self.activation is not np.tanh:
            return scores.argmax(axis=1)
        odds = np.exp(scores - scores.max(axis=1, keepdims=True)).cumsum(axis=1)
        return (odds <= draws[:, None] * odds[:, -1:]).sum(axis=1)

    def _scores(self, obs: np.ndarray, mask: np.ndarray) -> Any:
        x = obs.astype(np.float32)
        for i, (weight, bias) in enumerate(self.layers):
            x = x @ weight.T + bias
            x = self.activation(x) if i < len(self.layers) - 1 else x
        return np.where(mask, x, -np.inf)


class Team:
    """A copy of an agent as it is now, `ppo_gridwise.py`'s, that acts for all units of a seat.

    Args:
        agent: maps observations, where units stand, and what each may do, to a distribution and values.
    """

    def __init__(self, agent: torch.nn.Module):
        self.agent = deepcopy(agent).eval()
        self.device = next(agent.parameters()).device

    @torch.inference_mode()
    def sample(self, obs: np.ndarray, agents: np.ndarray, legal: np.ndarray, seed: int) -> np.ndarray:
        """Actions (B, H, W) or (B, H, W, K) by the policy.

        Args:
            obs: (B, C, H, W).
            agents: (B, H, W), 1 where a unit takes orders.
            legal: (B, A, H, W), 1 where it may do this.
            seed: of the draws.
        """
        seen, where, may = (torch.from_numpy(x).to(self.device) for x in (obs, agents > 0, legal > 0))
        b, y, x = where.nonzero().unbind(1)
        generator = torch.Generator(self.device).manual_seed(seed)
        return self.agent(seen, where, may[b, :, y, x])[0].sample(generator).cpu().numpy()
