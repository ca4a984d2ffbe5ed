"""Write the README's tables from the recorded runs in docs/results/: python benchmark/tables.py"""

import json
import re
from math import floor
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parent.parent
SCORES = {  # run: (what is reported, its key, as a share)
    "JobRouting": ("return, share of the optimum", "optimality", True),
    "Maze": ("episodes that end at the goal", "win_rate", True),
    "BinPlacement": ("return, share of the optimum", "optimality", True),
    "Taxi": ("return", "episodic_return", False),
    "ConnectFour": ("games won against random", "win_rate", True),
}


def spread(values: list[float], share: bool) -> str:
    """Median [smallest, largest]; shares in percent, cut off after one decimal so that nothing is rounded up."""
    texts = [f"{floor(value * 1000) / 10} %" if share else f"{floor(value * 100) / 100}" for value in values]
    ordered = sorted(zip(values, texts, strict=True))
    middle = texts[values.index(sorted(values)[len(values) // 2])]
    return f"{middle} [{ordered[0][1]}, {ordered[-1][1]}]"


def results() -> str:
    """Scores of ppo_action_mask.py with the mask, and of the same agents with the mask removed at evaluation."""
    runs = json.loads((ROOT / "docs/results/ppo_action_mask.json").read_text())
    lines = ["| flags | score | with the mask | the mask removed | minutes |", "|-|-|-|-|-|"]
    for name, (what, key, share) in SCORES.items():
        flags = re.sub(r" --seed.*", "", runs[name][0]["flags"])
        masked, removed = ([run["scores"][k] for run in runs[name]] for k in (key, f"{key}_no_mask"))
        minutes = median(run["minutes"] for run in runs[name])
        lines.append(f"| `{flags}` | {what} | {spread(masked, share)} | {spread(removed, share)} | {minutes} |")
    paths = [run["scores"] for run in runs["Maze"]]
    ratios = [path["episodic_length"] / path["optimal_length"] for path in paths]
    lines.append(
        f"\nIn the maze, paths are {max(ratios):.3f} times as long as the shortest ones (the worst of the seeds)."
    )
    return "\n".join(lines)


def speed() -> str:
    """Ratios to MaskablePPO."""
    recorded = json.loads((ROOT / "docs/results/throughput.json").read_text())
    base = median(recorded["steps_per_second"]["MaskablePPO"])
    lines = [
        f"Steps per second as a ratio to sb3-contrib's MaskablePPO over eight Python environments, in alternation "
        f"({recorded['pairs']} rounds, {recorded['cores']} cores; MaskablePPO ran "
        f"at {int(base):,} steps/s here). Rules, network, minibatch size and epochs are the same; "
        f"`python benchmark/throughput.py` repeats it.\n",
        "| arm | median ratio [smallest, largest] |",
        "|-|-|",
    ]
    for arm, ratio in recorded["ratios"].items():
        median_ratio, low, high = (floor(ratio[key] * 10) / 10 for key in ("median_ratio", "min", "max"))
        lines.append(f"| {arm} | {median_ratio} [{low}, {high}] |")
    return "\n".join(lines)


def fill(readme: str) -> str:
    """The README with fresh tables between its markers."""
    for name, table in (("results", results()), ("speed", speed())):
        readme = re.sub(
            f"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)", lambda m, t=table: m[1] + t + m[2], readme, flags=re.S
        )
    return readme


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(fill(path.read_text()))
