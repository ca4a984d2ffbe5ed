"""Episodes played by a trained agent, and their scores."""

from collections import defaultdict
from collections.abc import Callable

import numpy as np
import torch

from envs.uniform import UniformVectorEnv

# Actions for observations and masks (N, ...), and for flags (N,) that say where an episode starts with this very
# observation: there an agent with memory begins anew. All of them do in the first call.
KNOWN = ("optimal_return", "optimal_length", "success")  # what an environment may know about an episode that ended
Play = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@torch.inference_mode()
def evaluate(play: Play, envs: UniformVectorEnv, episodes: int, seed: int = 10_000) -> dict[str, float]:
    """Play `episodes` episodes, with the mask if `envs` requires one, and average over them; closes `envs`.

    Every environment plays the same number of episodes: taking the first to finish would favour short ones. `win_rate`
    is the share of episodes with a positive return; where the environment knows best play, `optimality` is the return
    as a share of the optimum; `success` is the share of episodes that it calls a success.
    """
    left = np.bincount(np.arange(episodes) % envs.num_envs)  # (N,) episodes to play
    obs, infos = envs.reset(seed=seed)
    started = np.ones(envs.num_envs, bool)
    totals: defaultdict[str, float] = defaultdict(float)
    illegal = steps = 0
    while left.any():
        mask = infos["action_mask"]
        actions = play(obs, mask if envs.require_mask else envs.all_legal(mask), started)
        illegal += (envs.illegal(actions, mask) * (left > 0)).sum()
        steps += (left > 0).sum()
        obs, _, terminations, truncations, infos = envs.step(actions)
        started = terminations | truncations
        if started.any():
            ended = started & (left > 0)
            left[ended] -= 1
            returns, lengths = infos["episode"]["r"], infos["episode"]["l"]
            ours = {"episodic_return": returns, "episodic_length": lengths, "win_rate": returns > 0}
            for key, values in (ours | infos["final_info"]).items():
                if key in ours or key in KNOWN:
                    totals[key] += float(values[ended].sum())
    envs.close()
    scores = {key: total / episodes for key, total in totals.items()}
    if "optimal_return" in scores:
        scores["optimality"] = scores["episodic_return"] / scores["optimal_return"]
    return scores | {"illegal_rate": float(illegal / steps)}
