"""Episodes played by a trained agent, and their scores."""

from collections.abc import Callable

import numpy as np
import torch

from envs.uniform import UniformVectorEnv

# Actions for observations and masks (N, ...), and for flags (N,) that say where an episode starts with this very
# observation: there an agent with memory begins anew. All of them do in the first call.
Play = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@torch.inference_mode()
def evaluate(play: Play, envs: UniformVectorEnv, episodes: int, use_mask: bool, seed: int = 10_000) -> dict[str, float]:
    """Play `episodes` episodes, the mask applied or removed, and average over them; closes `envs`.

    Every environment plays the same number of episodes: taking the first to finish would favour short ones. `win_rate`
    is the share of episodes with a positive return; where the environment knows best play, `optimality` is the return
    as a share of the optimum; `success` is the share of episodes that it calls a success.
    """
    left = np.full(envs.num_envs, episodes // envs.num_envs)
    left[: episodes % envs.num_envs] += 1
    obs, infos = envs.reset(seed=seed)
    started = np.ones(envs.num_envs, bool)
    totals = {"episodic_return": 0.0, "episodic_length": 0.0, "win_rate": 0.0}
    illegal = steps = 0
    while left.any():
        mask = infos["action_mask"]
        actions = play(obs, mask if use_mask else envs.all_legal(mask), started)
        illegal += (envs.illegal(actions, mask) * (left > 0)).sum()
        steps += (left > 0).sum()
        obs, _, terminations, truncations, infos = envs.step(actions)
        started = terminations | truncations
        if started.any():
            ended = started & (left > 0)
            left[ended] -= 1
            totals["episodic_return"] += infos["episode"]["r"][ended].sum()
            totals["episodic_length"] += infos["episode"]["l"][ended].sum()
            totals["win_rate"] += (infos["episode"]["r"][ended] > 0).sum()
            for key in ("optimal_return", "optimal_length", "success"):
                if key in infos["final_info"]:
                    totals[key] = totals.get(key, 0.0) + infos["final_info"][key][ended].sum()
    envs.close()
    scores = {key: float(total) / episodes for key, total in totals.items()}
    if "optimal_return" in scores:
        scores["optimality"] = scores["episodic_return"] / scores["optimal_return"]
    return scores | {"illegal_rate": float(illegal / steps)}
