"""Draw the figures of README and docs: curves from the recorded runs in docs/results/, and pictures of the masks.

    python benchmark/figures.py --forest runs/A/checkpoint.pt runs/B/checkpoint.pt --harvest runs/C/checkpoint.pt \
        --film runs/D/checkpoint.pt

A and B are of ppo_attention_mask.py, B with --no-attention-mask, C is of ppo_gridwise.py, D of ppo_attention_mask.py,
trained for longer; the pictures that need these agents are left as they are without them.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
import tyro
from matplotlib.ticker import EngFormatter
from PIL import Image
from seam import ROOT

import ppo_attention_mask
import ppo_gridwise
from envs.worlds.harvest import NEW, Harvest
from envs.worlds.panda_forest import KINDS, PandaForest, sprite
from ppo_action_mask import CategoricalMasked

PAPER = "#fbf9f4"  # the environments' background
INK = "#7b8794"
COLORS = ("#2a9d8f", "#d97742", "#3a6ea5", "#c9517b", "#8a5fa8", "#8f8f2f")  # readable on light and on dark pages
T95 = {3: 4.30, 4: 3.18, 5: 2.78}  # two-sided 95 % of Student's t, by the number of seeds
CURVES = {  # file: script, title, label of each run
    "attention": (
        "ppo_attention_mask",
        "PandaForest: return while training",
        {
            "PandaForest": "both masks",
            "PandaForest, padding seen": "padding seen",
            "PandaForest, no action mask": "no action mask",
        },
    ),
    "ratio": (
        "ppo_gridwise",
        "Harvest: return while training",
        {"Harvest": "one ratio per agent", "Harvest, joint ratio": "one ratio per team"},
    ),
}
ARMS = {arm: arm for arm in ("mask", "naive", "penalty -0.01", "penalty -0.1", "penalty -1", "none")}
RATIOS = {"agent": "one ratio per agent", "joint": "one ratio per team"}
PADDING = {"masked": "absent entities masked", "seen": "padding seen"}


def draw_growth() -> None:
    """CPU time per step against size, both as ratios to the smallest."""
    kinds = json.loads((ROOT / "docs/results/throughput_growth.json").read_text())["figures"]
    figure, axes = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
    for (kind, costs), marker, color in zip(kinds.items(), "os^vD", COLORS, strict=False):
        sizes = np.array([int(size) for size in costs])
        seconds = np.array(list(costs.values()))  # (sizes, rounds)
        ratios = seconds / seconds[0]
        label = f"{kind}, {sizes[0]} to {sizes[-1]:,}"
        axes.loglog(sizes / sizes[0], np.median(ratios, axis=1), marker=marker, markersize=4, color=color, label=label)
        axes.fill_between(sizes / sizes[0], ratios.min(1), ratios.max(1), color=color, alpha=0.2, linewidth=0)
    axes.set_title("CPU time per step, as a ratio to the smallest", color=INK, fontsize=11)
    axes.set_xlabel("how many times as many", color=INK)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.tick_params(colors=INK, which="both")
    axes.grid(color=INK, alpha=0.2)
    for spine in axes.spines.values():
        spine.set_color(INK)
    axes.legend(labelcolor=INK, framealpha=0, fontsize=8)
    save(figure, "growth")


@dataclass
class Args:
    """Which trained agents to draw."""

    forest: tuple[Path, Path] | None = None
    """checkpoints of ppo_attention_mask.py, with the attention mask and without"""
    harvest: Path | None = None
    """checkpoint of ppo_gridwise.py"""
    film: Path | None = None
    """checkpoint of ppo_attention_mask.py whose episodes are filmed"""


def load_agent(script: Any, path: Path) -> Any:
    """The agent of a checkpoint, and the flags it was trained with."""
    saved = torch.load(path, weights_only=True)
    args = script.Args(**saved["args"])
    size = args.channels if script is ppo_gridwise else args
    agent = script.Agent(tuple(saved["obs_shape"]), tuple(saved["nvec"]), size)
    agent.load_state_dict(saved["model"])
    return agent


def panels(*sizes: int, height: float, rows: tuple[int, ...] = (1,)) -> tuple[Any, np.ndarray]:
    """A figure as wide as a README, with axes (rows, columns) of these relative sizes, without frames."""
    figure, axes = plt.subplots(
        len(rows),
        len(sizes),
        figsize=(8, height),
        width_ratios=sizes,
        height_ratios=rows,
        layout="constrained",
        squeeze=False,
    )
    for each in axes.flat:
        each.set_xticks([]), each.set_yticks([])
        each.spines[:].set_visible(False)
    return figure, axes


def save(figure: Any, name: str) -> None:
    """Write docs/`name`.png."""
    figure.savefig(ROOT / f"docs/{name}.png", dpi=140, transparent=True)


def draw_logits() -> None:
    """The worked example of the README: two states, three actions, before and after the mask."""
    logits = torch.tensor([[-1.8222, 1.0769, -0.6567], [-0.6729, 0.1665, -1.7856]])
    mask = torch.tensor([[False, False, True], [True, True, False]])
    before, after = (CategoricalMasked(logits, m).probs for m in (None, mask))
    figure, axes = panels(1, 1, height=2.9)
    places = np.array([0, 1, 2, 4, 5, 6])  # two states, a gap between them
    crosses = places[~mask.flatten().numpy()] + 0.2
    shown = {"logits": (logits, torch.where(mask, logits, 0.0)), "probabilities": (before, after)}
    for axis, (title, values) in zip(axes[0], shown.items(), strict=True):
        axis.bar(places - 0.2, values[0].flatten(), 0.38, color=COLORS[1], label="without mask")
        axis.bar(places + 0.2, values[1].flatten(), 0.38, color=COLORS[0], label="with mask")
        style = {"color": "#d64545", "markersize": 8, "markeredgewidth": 2.5, "clip_on": False}
        axis.plot(crosses, 0 * crosses, "x", label="illegal: lowest finite logit, probability 0", **style)
        axis.set_title(title, color=INK, fontsize=11)
        axis.axhline(0, color=INK, linewidth=0.8)
        axis.set_xticks(places, ["0\n", "1\nfirst state", "2\n", "0\n", "1\nsecond state", "2\n"])
        axis.yaxis.set_major_locator(plt.MaxNLocator(6, steps=[1, 2, 5, 10]))
        axis.tick_params(colors=INK, labelsize=9, length=0, pad=6)
        axis.grid(axis="y", color=INK, alpha=0.2)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, labelcolor=INK, framealpha=0, fontsize=9, loc="outside lower center", ncols=3)
    save(figure, "logits")


def draw_entities(axis: Any, env: PandaForest, seen: np.ndarray, title: str, values: list[str]) -> None:
    """All entities of a forest in a row, pale where they are not seen, and a text under each."""
    axis.add_patch(plt.Rectangle((0, -0.75), env.num_entities, 1.8, color=PAPER, zorder=-1))
    for k, kind in enumerate(env.kinds):
        axis.imshow(sprite(KINDS[kind], 64), extent=(k, k + 1, 0, 1), alpha=1.0 if seen[k] else 0.3)
        color = COLORS[0] if seen[k] else COLORS[1]
        axis.text(k + 0.5, -0.35, values[k], ha="center", va="center", color=color, fontsize=9, weight="bold")
    axis.set_title(title, color=INK, fontsize=9)
    axis.set_xlim(0, env.num_entities), axis.set_ylim(-0.75, 1.05)


def draw_forest_masks(seed: int = 30) -> None:
    """One forest, with its trees and without: who is seen."""
    forest = PandaForest(1, render_mode="rgb_array")
    forest.reset(seed=seed)
    meadow = PandaForest(1, num_trees=0, render_mode="rgb_array")
    meadow.reset(seed=seed)
    meadow.cells[:] = forest.cells[:, : meadow.num_entities]
    figure, axes = panels(1, 1, height=4.9, rows=(8, 1))
    for column, env, title in zip(axes.T, (forest, meadow), ("with trees", "the same without trees"), strict=True):
        column[0].imshow(env.render()[0])
        column[0].set_title(title, color=INK, fontsize=11)
        mask = env._observe(np.array([0]))["entity_mask"][0]
        draw_entities(column[1], env, mask, "entity_mask", [str(m) for m in mask])
    save(figure, "forest_masks")


def entity_rows(obs: dict[str, np.ndarray]) -> torch.Tensor:
    """The entities (N, E, 1 + D) as the agent takes them: first whether each is seen."""
    rows = np.concatenate([obs["entity_mask"][..., None], obs["entities"]], axis=-1, dtype=np.float32)
    return torch.from_numpy(rows)


def attention(agent: Any, obs: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """What the panda attends to (N, E), the mean over heads, and its share (N,) on entities that are not seen."""
    with torch.inference_mode():
        weights = agent.encode(entity_rows(obs), need_weights=True)[2][:, :, 0].mean(1).numpy()
    return weights, (weights * (obs["entity_mask"] == 0)).sum(1)


def draw_attention_maps(paths: tuple[Path, Path], seed: int = 3) -> None:
    """What two trained agents attend to in one state: lines from the panda, and numbers."""
    figure, axes = panels(1, 1, height=4.9, rows=(8, 1))
    for column, path, title in zip(axes.T, paths, ("with the mask", "without: padding is seen"), strict=True):
        env, agent = PandaForest(1, render_mode="rgb_array"), load_agent(ppo_attention_mask, path)
        mean = attention(agent, PandaForest(1000).reset(seed=0)[0])[1].mean()
        obs, _ = env.reset(seed=seed)
        weights, unseen = attention(agent, obs)
        env.attention = np.where(np.arange(env.num_entities), weights, 0)  # lines to the others only
        column[0].imshow(env.render()[0])
        column[0].set_title(title, color=INK, fontsize=11)
        label = f"attention in %\non what is hidden: {unseen[0]:.0%} here, mean of 1,000 forests {mean:.0%}"
        draw_entities(column[1], env, obs["entity_mask"][0], label, [f"{100 * weight:.0f}" for weight in weights[0]])
    save(figure, "attention_maps")


def draw_film(path: Path, episodes: int = 3, most: int = 30) -> None:
    """Whole episodes of a trained agent, with lines to what it attends to, as docs/forest.gif.

    They are the first of seeds 0, 1, ... that end within `most` steps, well or not, which keeps the file small.
    """
    env, agent = PandaForest(1, render_mode="rgb_array"), load_agent(ppo_attention_mask, path)
    env.autoreset = False  # so that the last state of an episode can be drawn
    films: list[list[Image.Image]] = []
    for seed in count():
        (obs, info), ended, film = env.reset(seed=seed), False, []
        for _ in range(most + 1):
            env.attention = np.where(np.arange(env.num_entities), attention(agent, obs)[0], 0)
            picture = Image.fromarray(env.render()[0])
            film.append(picture.resize((320, 320 * picture.height // picture.width), Image.Resampling.BOX))
            if ended:
                films.append(film)
                break
            with torch.inference_mode():
                policy, _ = agent(entity_rows(obs), torch.from_numpy(info["action_mask"]).bool())
            obs, _, terminations, truncations, info = env.step(policy.mode.numpy())
            ended = bool(terminations[0] | truncations[0])
        if len(films) == episodes:
            break
    # One palette for all and no dithering: what does not move is not stored again.
    frames = [picture for film in films for picture in film]
    times = [time for film in films for time in [350] * (len(film) - 1) + [2000]]
    palette = Image.fromarray(np.concatenate(frames)).quantize(64)
    first, *others = (each.quantize(palette=palette, dither=Image.Dither.NONE) for each in frames)
    first.save(ROOT / "docs/forest.gif", save_all=True, append_images=others, duration=times, loop=0)


def draw_acting_cells(path: Path, seed: int = 1, steps: int = 40) -> None:
    """Harvest in mid-episode: the map, the cells that act, and what their agents do."""
    env, agent = Harvest(1, render_mode="rgb_array"), load_agent(ppo_gridwise, path)
    torch.manual_seed(seed)
    obs, info = env.reset(seed=seed)
    for _ in range(steps):
        masks = np.concatenate([info["agent_mask"][:, None], info["action_mask"]], axis=1)
        with torch.inference_mode():
            policy, _ = agent(torch.from_numpy(obs), *ppo_gridwise.split_masks(torch.from_numpy(masks).bool()))
            actions = policy.sample().numpy()
        env.last[:] = NEW  # no arrows before
        before, agents, legal = env.render()[0], info["agent_mask"][0], info["action_mask"][0].sum(0)
        obs, _, _, _, info = env.step(actions)
    figure, axes = panels(1, 1, 1, height=3.2)
    for axis, title in zip(axes[0], ("the map", "who acts, out of how many actions", "what they do"), strict=True):
        axis.set_title(title, color=INK, fontsize=10)
    axes[0, 0].imshow(before)
    axes[0, 2].imshow(env.render()[0])
    cell = before.shape[1] / env.width
    top = (before.shape[0] - cell * env.height) / 2  # the headline; the legend is as high
    axes[0, 1].imshow(np.full_like(before, plt.matplotlib.colors.to_rgba_array(PAPER)[0, :3] * 255, np.uint8))
    for y, x in np.ndindex(agents.shape):
        left, upper, color = x * cell, top + y * cell, COLORS[0] if agents[y, x] else PAPER
        axes[0, 1].add_patch(plt.Rectangle((left, upper), cell, cell, facecolor=color, edgecolor="#e4dfd3"))
        if agents[y, x]:
            place = (left + cell / 2, upper + cell / 2)
            axes[0, 1].text(*place, legal[y, x], ha="center", va="center", color="white", weight="bold")
    save(figure, "acting_cells")


def load(name: str) -> list:
    """What docs/results/ has under this name; empty if it is not recorded yet."""
    path = ROOT / f"docs/results/{name}.json"
    return json.loads(path.read_text()) if path.exists() else []


def plots(titles: dict[str, str]) -> tuple[Any, list[Any]]:
    """Axes side by side; `titles` has what is below each."""
    width = 6.4 if len(titles) == 1 else 4.5 * len(titles)
    figure, grid = plt.subplots(1, len(titles), figsize=(width, 3.4), layout="constrained", squeeze=False)
    for axes, (title, below) in zip(grid[0], titles.items(), strict=True):
        axes.set_title(title, color=INK, fontsize=11)
        axes.set_xlabel(below, color=INK)
        if below == "environment steps":
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.tick_params(colors=INK)
        axes.grid(color=INK, alpha=0.2)
        for spine in axes.spines.values():
            spine.set_color(INK)
    return figure, list(grid[0])


def save_with_legend(figure: Any, axes: Any, name: str) -> None:
    """Write docs/`name`.png, the legend in `axes`."""
    axes.legend(labelcolor=INK, framealpha=0, fontsize=8)
    save(figure, name)


def band(
    axes: Any, x: list, values: list, color: str, label: str | None = None, line: str = "-", share: bool = False
) -> None:
    """The mean over seeds of values[i] at x[i], and its 95 % interval by Student's t; of two seeds, both.

    The interval knows no bounds: that of a share is cut at 0 and 1.
    """
    mean = np.array([np.mean(seeds) for seeds in values])
    half = [T95[len(v)] * np.std(v, ddof=1) / len(v) ** 0.5 if len(v) > 2 else np.ptp(v) / 2 for v in values]
    axes.plot(x, mean, line, color=color, label=label, marker="o" if len(x) < 10 else None, markersize=4)
    low, high = np.clip([mean - half, mean + half], *((0, 1) if share else (-np.inf, np.inf)))
    axes.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)


def draw_curves(name: str) -> None:
    """Training returns: the mean over seeds, and its 95 % interval."""
    script, title, labels = CURVES[name]
    runs, (figure, (axes,)) = load(script), plots({title: "environment steps"})
    for (run, label), color in zip(labels.items(), COLORS, strict=False):
        curves = np.array([seed["curve"] for seed in runs[run]])  # (seeds, points, 2)
        band(axes, curves[0, :, 0], curves[:, :, 1].T, color, f"{label} ({len(curves)} seeds)")
    save_with_legend(figure, axes, name)


def by_point(
    axes: Any, name: str, arms: dict[str, str], value: Callable[[dict], float], line: str = "-", suffix: str = ""
) -> None:
    """A value of each run of a study, a share, over its points, a line for each arm."""
    runs = load(f"study_{name}")
    for (arm, label), color in zip(arms.items(), COLORS, strict=False):
        values: dict[int, list[float]] = {}  # by point, as far as they are recorded
        for run in (run for run in runs if run["arm"] == arm):
            values.setdefault(run["point"], []).append(value(run))
        band(axes, list(values), list(values.values()), color, label + suffix, line, share=True)
    points = sorted({run["point"] for run in runs})
    axes.set_xscale("log", base=2)
    axes.set_xticks(points, points)
    axes.minorticks_off()


def draw_arms() -> None:
    """Scores of the arms, and of two of them with the mask removed, as machines grow."""
    studies = {
        "arms": ("JobRouting: share of the optimum", "machines, 8 of them up, which only the mask knows"),
        "arms_shown": ("The same, shown to the learner", "machines, 8 of them up, which is observed"),
    }
    studies = {name: titles for name, titles in studies.items() if load(f"study_{name}")}
    figure, grid = plots(dict(studies.values()))
    for axes, name in zip(grid, studies, strict=True):
        by_point(axes, name, ARMS, lambda run: run["scores"]["optimality"])
        masked = {arm: ARMS[arm] for arm in ("mask", "naive")}
        by_point(axes, name, masked, lambda run: run["scores"]["optimality_no_mask"], "--", ", mask removed")
        axes.set_ylim(-0.02, 1.02)  # the two are compared
    save_with_legend(figure, grid[-1], "study_arms")


def draw_ratio() -> None:
    """Scores and clipped samples of the two ratios as the team grows."""
    titles = {"Signals: share of right answers": "agents", "Share of samples that are clipped": "agents"}
    figure, both = plots(titles)
    by_point(both[0], "ratio", RATIOS, lambda run: run["scores"]["optimality"])
    by_point(both[1], "ratio", RATIOS, lambda run: run["clipfrac"])
    save_with_legend(figure, both[0], "study_ratio")


def draw_hidden() -> None:
    """Learning with and without the attention mask as empty places grow, and at the most."""
    runs = load("study_hidden")
    most = max(run["point"] for run in runs)
    titles = {
        "OrderPicking: right picks over all of the training": "places, 8 of them with a parcel",
        f"Right picks while training, {most} places": "environment steps",
    }
    figure, both = plots(titles)
    by_point(both[0], "hidden", PADDING, lambda run: np.mean(run["curve"], axis=0)[1])
    for arm, color in zip(PADDING, COLORS, strict=False):
        curves = np.array([run["curve"] for run in runs if (run["arm"], run["point"]) == (arm, most)])
        band(both[1], curves[0, :, 0], curves[:, :, 1].T, color, share=True)
    save_with_legend(figure, both[0], "study_hidden")


def draw_microrts() -> None:
    """Training returns of the arms on each map."""
    runs = load("study_microrts")
    sizes = sorted({run["point"] for run in runs})
    figure, maps = plots({f"MicroRTS harvest, {size}x{size}: return": "environment steps" for size in sizes})
    for axes, size in zip(maps, sizes, strict=True):
        for arm, color in zip(ARMS, COLORS, strict=True):
            curves = np.array([run["curve"] for run in runs if (run["arm"], run["point"]) == (arm, size)])
            if len(curves):  # not every arm is recorded on the largest map
                band(axes, curves[0, :, 0], curves[:, :, 1].T, color, arm)
    names = maps[0].get_legend_handles_labels()  # all arms; on the largest map there is room for them
    maps[-1].legend(*names, labelcolor=INK, framealpha=0, fontsize=8, loc=(0.7, 0.12))
    save(figure, "study_microrts")


def draw_teams() -> None:
    """Games of MicroRTS won while training, each seed a line: outcomes have two peaks, so that means say little."""
    shown = {
        "Unused fields": ("as the script has it", "unused fields in the entropy alone", "unused fields not counted"),
        "Ratio": ("as the script has it", "joint ratio"),
        "Rewards of the way": ("as the script has it", "rewards never fade"),
    }
    runs = load("study_teams") + load("study_teams_entropy")
    figure, grid = plots({f"{title}: games won": "environment steps" for title in shown})
    for axes, arms in zip(grid, shown.values(), strict=True):
        for arm, color in zip(arms, COLORS, strict=False):
            for seed, curve in enumerate(run["won"] for run in runs if run["arm"] == arm):
                axes.plot(*zip(*curve, strict=True), color=color, label=None if seed else arm, linewidth=1.2)
        axes.set_ylim(-0.02, 1.02)
        axes.legend(labelcolor=INK, framealpha=0, fontsize=8)
    save(figure, "study_teams")


def draw_games() -> None:
    """Connect Four through the trainings: points against a search, and the first mover's in self-play by odds."""
    titles = {
        "Points against minimax of depth 4": "share of the training",
        "First mover's points, against itself": "share of the training",
    }
    figure, both = plots(titles)
    for (name, runs), color in zip(load("games").items(), COLORS, strict=False):
        curves = [[(row["share"], row["minimax 4"], row["first"]) for row in run["curve"]] for run in runs]
        share, points, first = np.array(curves).transpose(2, 1, 0)  # (moments, seeds) each
        band(both[0], list(share.mean(1)), list(points), color, name, share=True)
        if name.startswith("PPO"):  # Q-values have no odds to draw from
            band(both[1], list(share.mean(1)), list(first), color, share=True)
    save_with_legend(figure, both[0], "games")


if __name__ == "__main__":
    args = tyro.cli(Args)
    for name in CURVES:
        draw_curves(name)
    draw_arms()
    draw_hidden()
    draw_ratio()
    if load("study_microrts"):
        draw_microrts()
    draw_teams()
    draw_growth()
    draw_games()
    draw_logits()
    draw_forest_masks()
    if args.forest:
        draw_attention_maps(args.forest)
    if args.film:
        draw_film(args.film)
    if args.harvest:
        draw_acting_cells(args.harvest)
