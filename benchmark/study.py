"""Learning studies: what each level of masking is worth as a problem grows. One clean process for each run.

    python benchmark/study.py --studies arms --seeds 1 2 --points 16 64

Resumable: runs that the file already holds are not repeated. Seeds come first, then arms, then points, so that a study
that is stopped has seed 1 of everything before seed 2 of anything.
"""

import json
import platform
import time
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path

import numpy as np
import tyro
from scores import MICRORTS, ROOT, commit, curve, train

ARMS = {  # Huang & Ontanon 2020, https://arxiv.org/abs/2006.14171
    "mask": "--mask-mode mask",
    "naive": "--mask-mode naive",
    "penalty -0.01": "--mask-mode penalty --invalid-penalty -0.01",
    "penalty -0.1": "--mask-mode penalty --invalid-penalty -0.1",
    "penalty -1": "--mask-mode penalty --invalid-penalty -1",
    "none": "--mask-mode none",
}
# Updates of the naive arm go further; these say how much of the difference is that.
LARGER_STEPS = {f"{arm}, step size 3e-3": f"--mask-mode {arm} --learning-rate 3e-3" for arm in ("mask", "naive")}
# What the paper has for the study "microrts", by arm and size of the map: the shares of steps to a solution and the KL
# are its own, the rest are the smallest and largest of the four seeds in its published logs, and the mean of "removed"
# (https://github.com/vwxyzjn/invalid-action-masking). Its ratio and KL are the means over the eight fields of an
# action, ours are those of their sum.
PUBLISHED = {
    ("mask", 4): {"final_return": "40", "solved": "8.67 to 18.38 %, all maps", "removed": "34.1, 16.4 to 40"},
    ("mask", 10): {
        "final_return": "39.9 to 40",
        "solved": "8.67 to 18.38 %, all maps",
        "removed": "25.6, 4.4 to 40",
        "final_kl": ".0001",
    },
    ("mask", 24): {"final_return": "40", "solved": "8.67 to 18.38 %, all maps", "removed": "16.9, 3.4 to 38.7"},
    ("naive", 4): {"final_return": "40 to 78.6"},
    ("naive", 10): {"final_return": "40", "final_kl": ".0415"},
    ("naive", 24): {"final_return": "34 to 40", "solved": "49.14 %"},
    ("penalty -0.01", 4): {"final_return": "40"},
    ("penalty -0.1", 4): {"final_return": "0 to 40"},
    ("penalty -1", 4): {"final_return": "0"},
    ("none", 4): {"final_return": "1 to 40"},
} | {
    (arm, size): {"final_return": "0 to 1"}
    for arm in ("penalty -0.01", "penalty -0.1", "penalty -1", "none")
    for size in (10, 24)
}
KEPT = (
    "optimality",
    "episodic_return",
    "success",
    "drawn",
    "lost",
    "illegal_rate",
)  # of the scores, with the mask and without
KEPT += tuple(f"{key}_{way}" for way in ("no_mask", "predicted_mask", "mask_dropped") for key in KEPT)


@dataclass(frozen=True)
class Study:
    """All runs of a script over points of difficulty, arms and seeds."""

    script: str
    flags: str  # {point} stands for the point, here and in the arms
    points: tuple[int | str, ...]
    arms: dict[str, str]
    seeds: tuple[int, ...]
    solved: float | None = None  # the mean training return that counts as solved
    prepare: str = ""  # see `train`


MEMORY = (
    "--env-id {point} --num-envs 32 --num-steps 64 --minibatch-size 512 --learning-rate 1e-3 --total-timesteps 262144 "
    "--eval-episodes 256 --eval-max-steps 256 --no-save-model"
)
POP = ("BattleshipEasy", "MineSweeperEasy", "ConcentrationEasy", "RepeatPreviousEasy", "HigherLowerEasy")
REMEMBER = (
    "Masked/Vault-v0",
    "Masked/Maze-v0 --env-kwargs trail False",
    *(f"benchmark.pop:Pop-v0 --env-kwargs name {name}" for name in POP),
)
NOTHING_TO_FORBID = ("RepeatPreviousEasy", "HigherLowerEasy")  # worlds without a mask
MASKED_OR_NOT = {"mask": "--mask-mode mask", "none": "--mask-mode none"}

HARVEST = (
    "--env-id Masked/MicroRTSHarvest-v0 --total-timesteps 500000 --num-envs 10 --num-steps 200 --minibatch-size 250 "
    "--update-epochs 10 --learning-rate 3e-4 --gae-lambda 0.97 --hidden-dim 128 --norm-obs --eval-episodes 20 "
    "--no-save-model"
)
AS_PUBLISHED = f"{HARVEST} --env-kwargs units_only True size {{point}}"  # with the paper's masks, of units alone

TEAMS = f"--total-timesteps 400000 --eval-episodes 100 --no-save-model {MICRORTS} 1000 opponents {{point}}"
TEAM_ARMS = {
    "as the script has it": "",
    "unused fields not counted": "--no-count-unused",
    "joint ratio": "--ratio joint",
    "rewards never fade": "fade 0",  # goes on with --env-kwargs
}

STUDIES = {
    # As many machines are up at any time, whatever their number: only what the mask rules out grows.
    "arms": Study(
        "ppo_action_mask",
        "--env-id Masked/JobRouting-v0 --env-kwargs num_up 8 num_machines {point} --total-timesteps 100000 "
        "--eval-episodes 256 --no-save-model",
        (16, 64, 256, 1024),
        ARMS,
        (1, 2, 3, 4, 5),
    ),
    # The same with the machines' state in the observation, so that penalties have something to teach.
    "arms_shown": Study(
        "ppo_action_mask",
        "--env-id Masked/JobRouting-v0 --env-kwargs num_up 8 show_up True num_machines {point} "
        "--total-timesteps 100000 --eval-episodes 256 --no-save-model",
        (16, 64, 256, 1024),
        ARMS | LARGER_STEPS,
        (1, 2, 3),
    ),
    # The paper's flags, as far as the script has them; its logged runs normalize observations, all of them. 10
    # environments with 200 steps, an episode: each logged return is the mean of 10 episodes.
    "microrts": Study(
        "ppo_action_mask",
        AS_PUBLISHED,
        (4, 10, 24),
        ARMS,
        (1, 2),
        solved=40.0,
        prepare="benchmark.as_published:prepare",
    ),
    # Two differences between the paper's code and ours that may explain what a mask's removal costs.
    **{
        f"microrts_{name}": Study(
            "ppo_action_mask",
            AS_PUBLISHED,
            (4, 10),
            {"mask": "--mask-mode mask"},
            (1, 2),
            solved=40.0,
            prepare=f"benchmark.as_published:{name}",
        )
        for name in ("each_field", "certain")
    },
    # What masks that forbid what the game refuses change there, in the paper's two fields and in all of them.
    "microrts_exact": Study(
        "ppo_action_mask",
        HARVEST,
        (4, 10),
        {
            "exact masks": "--env-kwargs exact_masks True units_only True size {point}",
            "masks of all fields": "--env-kwargs size {point}",
            "exact masks of all fields": "--env-kwargs exact_masks True size {point}",
        },
        (1, 2),
        solved=40.0,
        prepare="benchmark.as_published:prepare",
    ),
    # As many parcels, on a shelf with more and more empty places.
    "hidden": Study(
        "ppo_attention_mask",
        "--env-id Masked/OrderPicking-v0 --env-kwargs num_parcels 8 num_entities {point} --pointer "
        "--total-timesteps 10240 --eval-episodes 256 --no-save-model",
        (8, 32, 64, 128),
        {"masked": "--attention-mask", "seen": "--no-attention-mask"},
        (1, 2, 3),
    ),
    # A quarter of all combinations is legal, told in three ways. Each step stands alone, hence gamma 0.
    "fields": Study(
        "ppo_action_mask",
        "--env-id benchmark.locks:Locks-v0 --total-timesteps 102400 --gamma 0 --eval-episodes 256 --no-save-model "
        "--env-kwargs sizes {point}",
        ("4x4", "16x16", "64x64", "16x16x16"),
        {"dependent": "way joint", "independent": "way product", "one field": "way flat"},
        (1, 2, 3, 4, 5),
    ),
    # Without the mask at run time: as the state tells what is legal, so can the agent; and masks that are too strict.
    "predicted": Study(
        "ppo_action_mask",
        "--env-id Masked/JobRouting-v0 --total-timesteps 200000 --predict-mask --eval-mask-drop 0.25 "
        "--eval-episodes 256 --no-save-model --env-kwargs num_up 8 num_machines {point}",
        (16, 64, 256),
        {"shown": "show_up True", "hidden": "show_up False"},
        (1, 2, 3),
    ),
    "predicted_worlds": Study(
        "ppo_action_mask",
        "--env-id {point} --num-envs 16 --num-steps 64 --predict-mask --eval-mask-drop 0.25 --eval-episodes 256 "
        "--eval-max-steps 200 --no-save-model",
        ("Masked/Maze-v0", "Taxi-v4"),
        {"shown": "--total-timesteps 500000"},
        (1, 2, 3),
    ),
    # What memory is worth, with a mask and without. Worlds without masks have the arm "none" only.
    "memory": Study("ppo_recurrent_mask", MEMORY, REMEMBER, MASKED_OR_NOT, (1, 2, 3)),
    "memory_feedforward": Study("ppo_action_mask", MEMORY, REMEMBER, MASKED_OR_NOT, (1, 2, 3)),
    # Each step stands alone there, hence gamma 0.
    "ratio": Study(
        "ppo_gridwise",
        "--env-id benchmark.signals:Signals-v0 --env-kwargs num_agents {point} --total-timesteps 40960 --gamma 0 "
        "--eval-episodes 256 --no-save-model",
        (1, 4, 16, 64, 256),
        {"agent": "--ratio agent", "joint": "--ratio joint"},
        (1, 2, 3),
    ),
    # Teams that play a game: what unused fields and the ratio are worth, and rewards of the way that never fade.
    "teams": Study("ppo_gridwise", TEAMS, ("workerRushAI",), TEAM_ARMS, (1, 2, 3)),
    "teams_entropy": Study(
        "ppo_gridwise",
        TEAMS,
        ("workerRushAI",),
        {"unused fields in the entropy alone": ""},
        (1, 2, 3),
        prepare="benchmark.seam:count_unused_in_entropy",
    ),
}


@dataclass
class Args:
    """Which studies to run, or which part of them."""

    studies: tuple[str, ...] = tuple(STUDIES)
    """names of the studies"""
    seeds: tuple[int, ...] = ()
    """default: those of the study"""
    points: tuple[str, ...] = ()
    """machines, sizes of the map or of fields, entities or agents; default: those of the study"""
    arms: tuple[str, ...] = ()
    """names of the arms; default all"""
    flags: str = ""
    """more flags for the script, for a try, --flags="--total-timesteps 10240"; give such runs another --out"""
    out: Path = ROOT / "docs/results"
    """folder of the results, study_NAME.json for each study"""


def record(study: Study, point: int | str, arm: str, seed: int, flags: str) -> dict:
    """One run: what it was, its scores, and what its TensorBoard file says of the training."""
    start = time.time()
    scores, events = train(study.script, flags, study.prepare)
    returns = events.Scalars("charts/episodic_return")
    solved = [event.step for event in returns if study.solved and event.value >= study.solved]

    def middle(tag: str) -> float:
        return float(f"{np.median([event.value for event in events.Scalars(tag)]):.3g}")

    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "gymnasium"))
    return (
        {
            "point": point,
            "arm": arm,
            "seed": seed,
            "flags": flags,
            "commit": commit(),
            "versions": f"Python {platform.python_version()}, {packages}",
            "minutes": round((time.time() - start) / 60, 2),
            "scores": {key: round(value, 4) for key, value in scores.items() if key in KEPT},
            "approx_kl": middle("losses/approx_kl"),  # medians over the training
            "clipfrac": middle("losses/clipfrac"),
            "steps_per_second": middle("charts/SPS"),
            # The paper's estimate, the mean of its last ten values.
            "final_kl": float(
                f"{np.mean([event.value for event in events.Scalars('losses/old_approx_kl')][-10:]):.3g}"
            ),
            "final_return": round(returns[-1].value, 3),
            "solved": solved[0] / returns[-1].step if solved else None,  # the share of the steps
            "curve": curve(events, 25),
        }
        | ({"won": curve(events, 25, "charts/success")} if "success" in scores else {})
    )


def main(args: Args) -> None:
    """Run what is missing, writing after each run."""
    for name in args.studies:
        study, path = STUDIES[name], args.out / f"study_{name}.json"
        runs = json.loads(path.read_text()) if path.exists() else []
        points = [point for point in study.points if str(point) in args.points or not args.points]
        for seed, arm, point in product(args.seeds or study.seeds, args.arms or study.arms, points):
            if arm == "mask" and str(point).endswith(NOTHING_TO_FORBID):
                continue
            flags = f"{study.flags} {study.arms[arm]}".format(point=point) + f" --seed {seed} {args.flags}".rstrip()
            if any(run["flags"] == flags for run in runs):
                continue
            runs.append(record(study, point, arm, seed, flags))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("[\n" + ",\n".join(map(json.dumps, runs)) + "\n]\n")
            print(name, point, arm, seed, runs[-1]["minutes"], "min", runs[-1]["scores"], flush=True)


if __name__ == "__main__":
    main(tyro.cli(Args))
