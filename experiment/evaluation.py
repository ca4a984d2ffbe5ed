"""The scores of a trained agent: with the mask, and without it."""

import json
from typing import Any

import torch

from envs.episodes import Play, evaluate
from experiment.notes import attempt, say


@torch.inference_mode()
def score(run: Any, play: Play, how: str, others: dict[str, Play]) -> dict[str, float]:
    """The scores of a run's agent as trained, and in other ways; each of them is shown once it is known.

    Args:
        run: a `Run` at its end.
        play: acts; also with the mask removed, and with a stricter one if `--eval-mask-drop` says so.
        how: it chooses among actions, to be said.
        others: act too, without a mask; their scores have these names at their end.
    """

    def shown(name: str, play: Play, masked: bool, drop: float = 0.0) -> dict[str, float]:
        episodes, most = run.args.eval_episodes, run.args.eval_max_steps
        envs = run.make_vec(min(episodes, run.args.num_envs), require_mask=masked)
        scores, suffix = evaluate(play, envs, episodes, most, drop), f"_{name}" if name else ""
        if "cut" in scores:
            count = round(scores["cut"] * episodes)
            say(f"{count} of {episodes} episodes were cut after --eval-max-steps {most}; their return so far counts.")
        if run.board:
            run.board.show_scores(scores, suffix, run.global_step, f"{episodes} episodes, {how}")
        else:
            say(f"Evaluation{suffix}: {scores}")
        return scores

    ways = {name: (other, False) for name, other in ({"no_mask": play} | others).items()}
    if run.args.eval_mask_drop:
        ways["mask_dropped"] = (play, True, run.args.eval_mask_drop)
    found = {"as_trained": shown("", play, not run.free_play)} | dict.fromkeys(ways)
    for name, way in ways.items():
        with attempt(f"No scores with {name.replace('_', ' ')}"):
            found[name] = shown(name, *way)
    scores = found["as_trained"] | {f"{key}_{name}": x for name in ways for key, x in (found[name] or {}).items()}
    if run.board:
        run.board.compare(scores)
    else:
        print(json.dumps(found, indent=2))
    return scores
