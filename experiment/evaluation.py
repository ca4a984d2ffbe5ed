"""The scores of a trained agent: with the mask, and without it."""

import json
from typing import Any

import torch

from envs.episodes import Play, evaluate
from experiment.notes import attempt, say


@torch.inference_mode()
def score(run: Any, play: Play) -> dict[str, float]:
    """The scores of a run's agent as trained, and with the mask removed; each of them is shown once it is known."""

    def shown(masked: bool, suffix: str) -> dict[str, float]:
        envs = run.make_vec(min(run.args.eval_episodes, run.args.num_envs), require_mask=masked)
        episodes, most = run.args.eval_episodes, run.args.eval_max_steps
        scores = evaluate(play, envs, episodes, most)
        if "cut" in scores:
            count = round(scores["cut"] * episodes)
            say(f"{count} of {episodes} episodes were cut after --eval-max-steps {most}; their return so far counts.")
        if run.board:
            run.board.show_scores(scores, suffix, run.global_step)
        else:
            say(f"Evaluation{suffix}: {scores}")
        return scores

    as_trained, removed = shown(not run.free_play, ""), None
    with attempt("No scores with the mask removed"):
        removed = shown(False, "_no_mask")
    scores = as_trained | {f"{key}_no_mask": value for key, value in (removed or {}).items()}
    if run.board:
        run.board.compare(scores)
    else:
        print(json.dumps({"as_trained": as_trained, "no_mask": removed}, indent=2))
    return scores
