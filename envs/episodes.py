"""Episodes played by an agent: their scores, and moments of one to draw."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import gymnasium as gym
import numpy as np
from tqdm import tqdm

from envs.foreign import OUTCOMES, reason
from envs.masks import drop_legal
from envs.uniform import UniformVectorEnv

EVALUATION_SEED = 2**31  # no training has it, for --seed ends below
# Actions for observations and masks (N, ...), and for flags (N,) that say where an episode starts with this very
# observation: there an agent with memory begins anew. All of them do in the first call. Where fields depend on each
# other, a fourth argument is the environments' `field_mask`.
Play = Callable[..., np.ndarray]


@contextmanager
def closing(envs: UniformVectorEnv) -> Iterator[UniformVectorEnv]:
    """Close the environments in the end; what was played counts, even if they fail to close."""
    try:
        yield envs
    finally:
        try:
            envs.close()
        except Exception as error:
            gym.logger.warn(f"The environments did not close: {reason(error)} ({type(error).__name__})")


def act(play: Play, envs: UniformVectorEnv, narrow: Callable = lambda mask, nvec: mask) -> np.ndarray:
    """Actions for what the environments gave last, with the mask if they require one, made narrower."""
    mask = envs.last_mask if envs.require_mask else envs.all_legal(envs.last_mask)
    by_field = ()
    if envs.field_mask and envs.require_mask:
        by_field = (lambda chosen: narrow(envs.field_mask(chosen), envs.nvec[[chosen.shape[1]]]),)
    return play(envs.last_obs, narrow(mask, envs.nvec), envs.episode_lengths == 0, *by_field)


def evaluate(play: Play, envs: UniformVectorEnv, episodes: int, max_steps: int, drop: float = 0.0) -> dict[str, float]:
    """Play `episodes` episodes, with the mask if `envs` requires one, and average over them; closes `envs`.

    With `drop` masks are stricter than they have to be: each legal choice is forbidden with that probability.

    Every environment plays the same number of episodes: taking the first to finish would favour short ones. `success`
    is the share of episodes that the environment calls one, so that one of which it says nothing is none, and
    `win_rate` too, or else that of episodes with a positive return; where it knows best play, `optimality` is the
    return as a share of the optimum. Points against a kind of opponent are the mean of the episodes against it, and
    left out without one; the other means are of all episodes but those of seats that somebody else played, which do not
    count.

    An episode that has not ended after `max_steps` is cut: it counts with its return so far, as no success, and no
    optimum is known then; `cut` is the share of such episodes. Its environment plays on unseen, for none can be reset
    alone: until that episode ends after all, or until all that have more to play are in the same state and are reset.
    """
    left = np.bincount(np.arange(episodes) % envs.num_envs, minlength=envs.num_envs)  # (N,) episodes to play
    totals: defaultdict[str, float] = defaultdict(float)
    met: defaultdict[str, int] = defaultdict(int)  # episodes that know a figure
    against_optimal = 0.0  # the return of those that know the optimal one
    illegal = steps = cut = 0
    rng = np.random.default_rng(0)
    # miniters: the bar's clock goes on while no episode ends.
    with closing(envs), tqdm(total=episodes, desc="Evaluation", unit="episode", leave=False, miniters=0) as bar:
        envs.reset(seed=EVALUATION_SEED)
        while left.any():
            playing = (left > 0) & (envs.episode_lengths < max_steps)
            if not playing.any():
                envs.reset()
                continue
            actions = act(play, envs, partial(drop_legal, share=drop, rng=rng))
            illegal += (envs.illegal(actions, envs.path_mask(actions)) * playing).sum()
            steps += playing.sum()
            *_, infos = envs.step(actions)
            ended = playing & infos.get("_episode", False)
            late = playing & ~ended & (envs.episode_lengths == max_steps)
            if (ended | late).any():
                episode = infos.get("episode", {"r": envs.episode_returns, "l": envs.episode_lengths})
                ours = {"episodic_return": episode["r"], "episodic_length": episode["l"]}
                ours["win_rate"] = (episode["r"] > 0) & ~late
                for key, values in (ours | infos.get("final_info", {})).items():
                    if key != "action_mask":
                        known = ended | late if key in ours else ended & ~np.isnan(values)
                        totals[key], met[key] = totals[key] + float(values[known].sum()), met[key] + int(known.sum())
                        against_optimal += float(episode["r"][known].sum()) if key == "optimal_return" else 0.0
            left -= ended | late
            cut += int(late.sum())
            bar.update(int((ended | late).sum()))
    met |= {key: met["episodic_return"] for key in OUTCOMES if key in met}  # who was cut has not won, nor lost
    scores = {key: total / met[key] for key, total in totals.items() if met[key]}
    if cut:
        scores = {key: score for key, score in scores.items() if not key.startswith("optimal")}
    scores |= {"win_rate": scores["success"]} if "success" in scores else {}
    if scores.get("optimal_return"):
        scores["optimality"] = against_optimal / totals["optimal_return"]
    elif "optimal_return" in scores:
        gym.logger.warn("The optimal return is 0, so no share of it is known.")
    return scores | {"illegal_rate": float(illegal / steps)} | ({"cut": cut / episodes} if cut else {})


def moments(envs: UniformVectorEnv, play: Play, steps: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Observations, masks and actions of one environment before each of so many steps; closes `envs`."""
    with closing(envs):
        envs.reset(seed=EVALUATION_SEED + 1)
        for _ in range(steps):
            actions = act(play, envs)
            yield envs.last_obs, envs.last_mask, actions
            envs.step(actions)


def frame(envs: UniformVectorEnv) -> np.ndarray:
    """The picture of the only environment, (H, W, 3) uint8; ValueError for anything else that may be rendered."""
    rendered = np.asarray(envs.render())
    if rendered.dtype != np.uint8 or rendered.ndim != 4 or rendered.shape[-1] != 3 or not rendered.size:
        what = "None" if rendered.tolist() in (None, [None]) else f"{rendered.dtype} of shape {rendered.shape[1:]}"
        raise ValueError(f"render() gave {what}; expected uint8 (H, W, 3).")
    return rendered[0]


def check_frame(make: Callable[[], UniformVectorEnv]) -> None:
    """Draw one picture of what `make` makes, so that one that cannot be drawn fails before a training (ValueError)."""
    try:
        with closing(make()) as one:
            one.reset(seed=EVALUATION_SEED)
            frame(one)
    except Exception as error:
        raise ValueError(f"--capture-video cannot draw this: {type(error).__name__}: {reason(error)}") from error
