"""Draw the README's curves from the recorded runs in docs/results/: python benchmark/figures.py"""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

ROOT = Path(__file__).parent.parent
INK, COLORS = "#7b8794", ("#2a9d8f", "#d97742", "#3a6ea5")  # readable on light and on dark pages
CURVES = {  # file: script, title, label of each run
    "attention": (
        "ppo_attention_mask",
        "PandaForest: return while training",
        {"PandaForest": "absent entities masked", "PandaForest, padding seen": "padding seen"},
    ),
    "ratio": (
        "ppo_gridwise",
        "Harvest: return while training",
        {"Harvest": "one ratio per agent", "Harvest, joint ratio": "one ratio per team"},
    ),
}


def draw(name: str) -> None:
    """The mean over seeds, and a band from the smallest to the largest."""
    script, title, labels = CURVES[name]
    runs = json.loads((ROOT / f"docs/results/{script}.json").read_text())
    figure, axes = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
    for (run, label), color in zip(labels.items(), COLORS, strict=False):
        curves = np.array([seed["curve"] for seed in runs[run]])  # (seeds, points, 2)
        steps, returns = curves[0, :, 0], curves[:, :, 1]
        axes.plot(steps, returns.mean(0), color=color, label=f"{label} ({len(returns)} seeds)")
        axes.fill_between(steps, returns.min(0), returns.max(0), color=color, alpha=0.2, linewidth=0)
    axes.set_title(title, color=INK, fontsize=11)
    axes.set_xlabel("environment steps", color=INK)
    axes.tick_params(colors=INK)
    axes.grid(color=INK, alpha=0.2)
    for spine in axes.spines.values():
        spine.set_color(INK)
    axes.legend(labelcolor=INK, framealpha=0)
    figure.savefig(ROOT / f"docs/{name}.png", dpi=140, transparent=True)


if __name__ == "__main__":
    for name in CURVES:
        draw(name)
