"""Write the tables of README and docs from the recorded runs in docs/results/: python benchmark/tables.py"""

import json
import re
from collections.abc import Callable
from math import floor, inf
from pathlib import Path
from statistics import mean, median

import numpy as np
from defaults import TASKS
from scores import ROOT, RUNS
from study import PUBLISHED

SCORES = {  # world, the first word of a run's name: (what is reported, its key, as a share)
    "JobRouting": ("return, share of the optimum", "optimality", True),
    "Maze": ("episodes that end at the goal", "win_rate", True),
    "BinPlacement": ("return, share of the optimum", "optimality", True),
    "Taxi": ("return", "episodic_return", False),
    "PandaForest": ("all eaten, no harm", "success", True),
    "OrderPicking": ("right picks", "episodic_return", True),
    "Vault": ("return, share of the optimum", "optimality", True),
    "Harvest": ("return, half a unit when gathered, half at home", "episodic_return", False),
    "MicroRTS": ("games won of 100", "success", True),
}


LEFT_OUT = ("gymnasium", "python")  # of the versions under a table


def cut(value: float, decimals: int = 2) -> float | str:
    """Cut off after so many decimals, so that nothing is rounded up; inf stands for what a run did not reach."""
    return "not reached" if value == inf else floor(round(value * 10**decimals, 6)) / 10**decimals  # 4.85 stays 4.85


def spread(values: list[float], share: bool) -> str:
    """Median [smallest, largest]; shares in percent with one decimal, all else with two."""
    texts = [f"{cut(value * 100, 1)} %" if share else f"{cut(value)}" for value in values]
    ordered = sorted(zip(values, texts, strict=True))
    middle = texts[values.index(sorted(values)[len(values) // 2])]
    return f"{middle} [{ordered[0][1]}, {ordered[-1][1]}]"


def files() -> str:
    """Which file serves what, with one score and one speed of each."""
    names = (*RUNS, *(f"throughput_{suite}" for suite in ("ppo", "dqn", "microrts", "memory")), "attention_speed")
    recorded = {name: json.loads((ROOT / f"docs/results/{name}.json").read_text()) for name in names}

    def score(script: str, name: str, words: str) -> str:
        _, key, share = SCORES[name.split()[0].strip(",")]
        runs = recorded[script][name]
        minutes = round(median(run["minutes"] for run in runs), 2)
        middle = spread([run["scores"][key] for run in runs], share).split(" [")[0]
        return f"{name}: {middle}{words}, {minutes} min"

    def times(file: str, arm: str, peer: str) -> str:
        return f"{cut(recorded[file]['ratios'][arm]['median_ratio'], 1)} x {peer}"

    rows = {
        "ppo_action_mask": (
            "Discrete, MultiDiscrete, MultiBinary",
            "logits (B, sum(nvec)): legal actions",
            "`CategoricalMasked`",
            score("ppo_action_mask", "JobRouting", " of the optimum"),
            times("throughput_ppo", "ours, 64 batched envs, compiled", "MaskablePPO"),
        ),
        "dqn_action_mask": (
            "Discrete",
            "Q-values (B, A): acting, exploring, target",
            "`td_targets`, `masked`",
            score("dqn_action_mask", "JobRouting", " of the optimum"),
            times("throughput_dqn", "ours, 64 batched envs, compiled", "SB3's DQN"),
        ),
        "ppo_attention_mask": (
            "the same, or an entity to pick",
            "attention (B, E): entities that are there",
            "`Packing`, `MultiHeadAttention`",
            score("ppo_attention_mask", "PandaForest", " eaten empty without harm"),
            times("attention_speed", "1 block, own row read, 50% present", "nn.TransformerEncoder"),
        ),
        "ppo_gridwise": (
            "one for each agent on a map",
            "cells (B, H, W) and their actions (B, A, H, W)",
            "`CategoricalMasked`, `CategoricalMap`",
            score("ppo_gridwise", "MicroRTS 8x8, workerRushAI", " of games won"),
            times("throughput_microrts", "ours", "MicroRTS-Py's GridNet, a larger network"),
        ),
        "ppo_recurrent_mask": (
            "Discrete, MultiDiscrete, MultiBinary",
            "logits (T, N, sum(nvec)) after a GRU",
            "`EpisodicGRU`",
            score("ppo_recurrent_mask", "Vault", " of the optimum"),
            times("throughput_memory", "ours, 32 batched envs, compiled", "RecurrentPPO"),
        ),
    }
    lines = ["| file | actions | what is masked | to copy | score | speed |", "|-|-|-|-|-|-|"]
    return "\n".join(lines + [f"| `{script}.py` | {' | '.join(row)} |" for script, row in rows.items()])


def results(script: str) -> str:
    """Scores of a script with the mask, and of the same agents with the mask removed at evaluation."""
    runs = json.loads((ROOT / f"docs/results/{script}.json").read_text())
    lines = ["| flags | score | with the mask | the mask removed | seeds | minutes |", "|-" * 6 + "|"]
    for name in filter(runs.get, RUNS[script]):
        what, key, share = SCORES[re.split("[ ,]", name)[0]]
        flags = re.sub(r" --seed \d+ --eval-episodes \d+", "", runs[name][0]["flags"])
        masked, removed = ([run["scores"][k] for run in runs[name]] for k in (key, f"{key}_no_mask"))
        minutes = round(median(run["minutes"] for run in runs[name]), 2)
        cells = (spread(masked, share), spread(removed, share), str(len(masked)), str(minutes))
        lines.append(f"| `{flags}` | {what} | {' | '.join(cells)} |")
    if "Maze" in runs:
        paths = [run["scores"] for run in runs["Maze"]]
        ratio = max(path["episodic_length"] / path["optimal_length"] for path in paths)
        lines.append(
            f"\nIn the maze, paths are {ratio:.3f} times as long as the shortest ones (the worst of the seeds)."
        )
    return "\n".join(lines)


def speed(suite: str) -> str:
    """Steps per second as ratios to the suite's first peer, and the time to a score."""
    recorded = json.loads((ROOT / f"docs/results/throughput_{suite}.json").read_text())
    rates, finals = recorded["steps_per_second"], recorded.get("final_return")
    peer = next(iter(rates))

    columns = {"seconds to a training return of 36": {arm: reached(recorded, arm) for arm in rates}}
    if all(set(texts.values()) == {"not reached"} for texts in columns.values()):
        columns = {}
    if finals:
        columns["return at the end"] = {arm: tenths(finals[arm]) for arm in rates}
    ratios = {peer: f"1 (it ran at {int(median(rates[peer])):,} steps/s here)"}
    for arm, ratio in recorded["ratios"].items():
        ratios[arm] = tenths([ratio[key] for key in ("median_ratio", "min", "max")])
    columns = {f"steps per second, x {peer}": ratios} | columns
    lines = [f"| arm | {' | '.join(columns)} |", "|-" * (1 + len(columns)) + "|"]
    lines += [f"| {arm} | {' | '.join(texts[arm] for texts in columns.values())} |" for arm in ratios]
    packages = ", ".join(f"{name} {x}" for name, x in recorded["versions"].items() if name not in LEFT_OUT)
    seeds = sorted(set(recorded.get("seeds", [1])))
    lines.append(
        f"\n{recorded['pairs']} rounds in alternation on {recorded['cores']} cores, median [smallest, largest]; "
        f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}; {packages}. "
        f"`python benchmark/throughput.py --suite {suite}` repeats it."
    )
    return "\n".join(lines)


def speed_only(suite: str) -> str:
    """Steps per second as ratios to the suite's first peer, where no score is timed."""
    recorded = json.loads((ROOT / f"docs/results/throughput_{suite}.json").read_text())
    peer, rates = next(iter(recorded["steps_per_second"].items()))
    lines = [
        f"| arm | steps per second, x {peer} |",
        "|-|-|",
        f"| {peer} | 1 (it ran at {int(median(rates)):,} steps/s here) |",
    ]
    for arm, ratio in recorded["ratios"].items():
        lines.append(f"| {arm} | {interval([ratio[key] for key in ('median_ratio', 'min', 'max')])} |")
    return "\n".join([*lines, repeated(recorded, f"throughput.py --suite {suite}")])


def breakdown() -> str:
    """Shares of the CPU time, and of what the core reaches in matrix products alone."""
    recorded = json.loads((ROOT / "docs/results/throughput_breakdown.json").read_text())
    parts = ("environment", "acting", "update", "rest")
    lines = [
        f"| training | {' | '.join(parts)} | steps per CPU second | of sgemm 1024 x 1024 x 1024 | 256 x 64 x 64 |",
        "|-|-|-|-|-|-|-|-|",
    ]
    for arm, figures in recorded["figures"].items():
        totals = figures["total"]
        shares = [[a / b for a, b in zip(figures[part], totals, strict=True)] for part in parts]
        for key in ("sgemm 1024 x 1024 x 1024", "sgemm 256 x 64 x 64"):
            reached = zip(figures["flops_per_step"], totals, figures[key], strict=True)
            shares.append([flops / total / peak for flops, total, peak in reached])
        *parts_of_time, large, small = (spread(values, True) for values in shares)
        lines.append(f"| {arm} | {' | '.join(parts_of_time)} | {int(1 / median(totals)):,} | {large} | {small} |")
    flops = next(iter(recorded["figures"].values()))["flops_per_step"][0]
    lines.append(f"\nMatrix products of a step: {flops / 1000:.0f} kFLOP, of its four epochs and of acting.")
    return "\n".join([*lines, repeated(recorded, "growth.py --suite breakdown")])


def grid_speed() -> str:
    """Updates per CPU second of the grid-wise agent as ratios to GridNet's."""
    recorded = json.loads((ROOT / "docs/results/throughput_grid.json").read_text())
    lines = []
    for world, seconds in recorded["figures"].items():
        peer, *others = seconds
        lines = lines or [f"| an agent's action | update | updates per CPU second, x {peer} |", "|-|-|-|"]
        for arm in others:
            ratios = [a / b for a, b in zip(seconds[peer], seconds[arm], strict=True)]
            lines.append(f"| {world} | {arm} | {interval(ratios)} |")
    return "\n".join([*lines, repeated(recorded, "growth.py --suite grid")])


def growth() -> str:
    """CPU time per step as ratios to the smallest size's."""
    recorded = json.loads((ROOT / "docs/results/throughput_growth.json").read_text())
    lines = ["| more | CPU time per step, x that at the smallest |", "|-|-|"]
    for kind, costs in recorded["figures"].items():
        (smallest, base), *larger = costs.items()
        cells = [f"{smallest}: 1"]
        for size, seconds in larger:
            ratios = [a / b for a, b in zip(seconds, base, strict=True)]
            cells.append(f"{size}: {interval(ratios)}")
        lines.append(f"| {kind} | {', '.join(cells)} |")
    return "\n".join([*lines, repeated(recorded, "growth.py --suite growth")])


def interval(values: list[float]) -> str:
    """Median [smallest, largest], cut off after two decimals."""
    middle, low, high = (cut(value) for value in (median(values), min(values), max(values)))
    return f"{middle} [{low}, {high}]"


def repeated(recorded: dict, command: str) -> str:
    """How it was measured, and how to do so again."""
    torch = recorded["versions"]["torch"]
    return (
        f"\n{recorded['pairs']} rounds in alternation, median [smallest, largest]; torch {torch}. "
        f"`python benchmark/{command}` repeats it."
    )


def attention_speed() -> str:
    """Updates per second of the attention encoder as ratios to PyTorch's."""
    ratios = json.loads((ROOT / "docs/results/attention_speed.json").read_text())["ratios"]
    lines = ["| encoder | updates per second, x nn.TransformerEncoder |", "|-|-|"]
    for name, ratio in ratios.items():
        middle, low, high = (cut(ratio[key]) for key in ("median_ratio", "min", "max"))
        lines.append(f"| {name} | {middle} [{low}, {high}] |")
    return "\n".join(lines)


def gru_speed() -> str:
    """Time of the GRU that begins anew where episodes start, as ratios to PyTorch's."""
    recorded = json.loads((ROOT / "docs/results/gru_speed.json").read_text())
    lines = ["| way | time, x nn.GRU without starts |", "|-|-|"]
    for name, ratio in recorded["ratios"].items():
        lines.append(f"| {name} | {interval([ratio[key] for key in ('median_ratio', 'min', 'max')])} |")
    return "\n".join(lines)


def tenths(values: list[float]) -> str:
    """Median [smallest, largest], cut off after one decimal."""
    middle, low, high = (cut(value, 1) for value in (median(values), min(values), max(values)))
    return f"{middle} [{low}, {high}]"


def reached(recorded: dict, arm: str) -> str:
    """Median [smallest, largest] of the seconds to the score, rounded; what a run did not reach is endless."""
    seconds = sorted(inf if s is None else s for s in recorded["seconds_to_score"][arm])
    texts = ["not reached" if s == inf else f"{s:.1f}" for s in seconds]
    middle = texts[len(texts) // 2]
    return middle if middle == "not reached" else f"{middle} [{texts[0]}, {texts[-1]}]"


def study(name: str) -> dict[str, dict[int, list[dict]]]:
    """The runs of a study: arm, then point, then one for each seed."""
    cells: dict[str, dict[int, list[dict]]] = {}
    for run in json.loads((ROOT / f"docs/results/study_{name}.json").read_text()):
        cells.setdefault(run["arm"], {}).setdefault(run["point"], []).append(run)
    return cells


def grid(name: str, title: str, rows: dict[str, tuple[str, Callable[[dict], float]]]) -> str:
    """A table with a column for each point; `rows` has the arm, and the share to show of each run."""
    cells = study(name)
    points = list(dict.fromkeys(point for arm in cells.values() for point in arm))
    lines = [f"| {title} | {' | '.join(map(str, points))} |", "|-" * (1 + len(points)) + "|"]
    for row, (arm, value) in rows.items():
        values = [[value(run) for run in cells[arm].get(point, [])] for point in points]
        texts = [spread(seeds, True) if seeds else "" for seeds in values]
        lines.append(f"| {row} | {' | '.join(texts)} |")
    seeds = sorted({len(runs) for arm in cells.values() for runs in arm.values()})
    return "\n".join(lines) + f"\n\nMedian [smallest, largest]; number of seeds: {' or '.join(map(str, seeds))}."


def optimality(run: dict) -> float:
    return run["scores"]["optimality"]


def memory() -> str:
    """Returns with memory and without, with a mask and without."""
    columns = {
        f"{who}, {arm}": cells[arm]
        for who, cells in (("GRU", study("memory")), ("feed-forward", study("memory_feedforward")))
        for arm in ("mask", "none")
    }
    points = dict.fromkeys(point for column in columns.values() for point in column)
    lines = [f"| world | {' | '.join(columns).replace('none', 'no mask')} |", "|-" * (1 + len(columns)) + "|"]
    for point in points:
        runs = [column.get(point, []) for column in columns.values()]
        texts = [spread([run["scores"]["episodic_return"] for run in seeds], False) if seeds else "" for seeds in runs]
        lines.append(f"| {point.split(' name ')[-1].replace(' --env-kwargs', ',')} | {' | '.join(texts)} |")
    seeds = sorted({len(runs) for column in columns.values() for runs in column.values()})
    return "\n".join(lines) + f"\n\nMedian [smallest, largest]; number of seeds: {' or '.join(map(str, seeds))}."


def arms(name: str) -> str:
    """The four arms of masking, scores with the mask and without, and how far an update of the naive arm goes."""
    cells = study(name)
    rows = {arm: (arm, optimality) for arm in cells}
    for arm in ("mask", "naive"):
        rows[f"{arm}, the mask removed"] = (arm, lambda run: run["scores"]["optimality_no_mask"])
    kl = [
        " against ".join(f"{median(run['approx_kl'] for run in cells[arm][point]):.4f}" for arm in ("naive", "mask"))
        for point in cells["mask"]
    ]
    text = "Approximate KL of an update, median over the training, naive against mask, in the order of the columns"
    return f"{grid(name, 'machines', rows)} {text}: {', '.join(kl)}."


def hidden(name: str) -> str:
    """Training with absent entities masked, and with their padding seen."""
    labels = {"masked": "absent entities masked", "seen": "padding seen"}
    rows = {label: (arm, lambda run: mean(value for _, value in run["curve"])) for arm, label in labels.items()}
    return grid(name, "places, 8 with a parcel", rows)


def ratio(name: str) -> str:
    """Scores and clipped samples as the team grows."""
    rows = {f"right, `--ratio {arm}`": (arm, optimality) for arm in ("agent", "joint")}
    rows |= {f"samples clipped, `--ratio {arm}`": (arm, lambda run: run["clipfrac"]) for arm in ("agent", "joint")}
    return grid(name, "agents", rows)


def fields(name: str) -> str:
    """Dependent masks beside independent ones and one field of all combinations: score, and speed."""
    arms = ("dependent", "independent", "one field")
    rows = {f"{arm}, share of the optimum": (arm, optimality) for arm in arms}
    text = grid(name, "fields", rows)
    cells = study(name)
    speeds = []
    for arm in arms:
        medians = [median(run["steps_per_second"] for run in runs) for runs in cells[arm].values()]
        speeds.append(f"{arm} {', '.join(f'{value:,.0f}' for value in medians)}")
    return f"{text} Steps per second, median, in the order of {', '.join(cells['dependent'])}: {'; '.join(speeds)}."


def predicted(name: str) -> str:
    """An agent's scores with the mask, with the one it predicts, without, and with a stricter one."""
    key = "optimality" if name == "predicted" else "episodic_return"
    lines = [
        "| world | what is legal | mask | mask as predicted (illegal) | mask removed (illegal) | a quarter forbidden |",
        "|-" * 6 + "|",
    ]
    for arm, points in study(name).items():
        for point, runs in points.items():
            scores = [run["scores"] for run in runs]

            def cell(suffix: str, scores: list[dict] = scores) -> str:
                illegal = median(s[f"illegal_rate{suffix}"] for s in scores)
                shown = spread([s[f"{key}{suffix}"] for s in scores], key == "optimality")
                return f"{shown} ({illegal:.0%})" if suffix in ("_predicted_mask", "_no_mask") else shown

            world = f"JobRouting, {point} machines" if key == "optimality" else point
            cells = " | ".join(map(cell, ("", "_predicted_mask", "_no_mask", "_mask_dropped")))
            lines.append(f"| {world} | {arm} | {cells} |")
    figure = "Share of the optimum" if key == "optimality" else "Return"
    return "\n".join(lines) + f"\n\n{figure}, median [smallest, largest]; number of seeds: {len(runs)}."


def microrts(name: str) -> str:
    """Ours, one value for each seed, and in parentheses what Huang & Ontanon published."""
    columns: dict[str, Callable[[dict], str]] = {
        "final_return": lambda run: f"{cut(run['final_return'])}",
        "solved": lambda run: "never" if run["solved"] is None else f"{run['solved']:.1%}",
        "removed": lambda run: f"{cut(run['scores']['episodic_return_no_mask'])}",
        "final_kl": lambda run: f"{run['final_kl']:.4f}",
    }
    lines = ["| map | arm | return at the end | solved after | return, mask removed | KL at the end |", "|-|-|-|-|-|-|"]
    differences = {
        "mask, each field's ratio clipped": study(f"{name}_each_field")["mask"],
        "mask, entropy added to the loss": study(f"{name}_certain")["mask"],
    }
    differences |= {f"mask, {arm}": sizes for arm, sizes in study(f"{name}_exact").items()}
    for arm, sizes in (study(name) | differences).items():
        for size, runs in sizes.items():
            published = PUBLISHED.get((arm, size), {})
            texts = [
                ", ".join(map(text, runs)) + (f" ({published[key]})" if key in published else "")
                for key, text in columns.items()
            ]
            lines.append(f"| {size}x{size} | {arm} | {' | '.join(texts)} |")
    return "\n".join(lines)


def teams(name: str) -> str:
    """Games of MicroRTS that each seed won and drew, and whether a higher return meant more of them."""
    cells = study(name) | study(f"{name}_entropy")
    lines = [
        "| arm | games won of 100, each seed | drawn | won while training | rank correlation of return and games won |",
        "|-" * 5 + "|",
    ]

    def row(arm: str, texts: Callable[[dict], str]) -> str:
        return ", ".join(texts(run) for points in cells[arm].values() for run in points)

    for arm in cells:
        won, drawn = (row(arm, lambda run, key=key: f"{100 * run['scores'][key]:.0f}") for key in ("success", "drawn"))
        mean_won = row(arm, lambda run: f"{mean(value for _, value in run['won']):.2f}")
        ties = row(arm, lambda run: rank_correlation(*(late(run[key]) for key in ("curve", "won"))))
        lines.append(f"| {arm} | {won} | {drawn} | {mean_won} | {ties} |")
    return "\n".join(lines)


def late(curve: list) -> list[float]:
    """The values of a curve once MicroRTS' rewards of the way have faded, in 24 seats."""
    return [value for step, value in curve if step > 24 * 10_000]


def rank_correlation(*series: list[float]) -> str:
    """Spearman's, of two series; equal values share their mean rank. None where one is constant."""
    ranks = []
    for values in series:
        _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(counts) - (counts - 1) / 2)[place])
    return f"{np.corrcoef(*ranks)[0, 1]:.2f}" if all(np.ptp(rank) for rank in ranks) else "none"


def defaults() -> str:
    """CPU seconds to a score at each setting of the sizes, and as ratios to the first setting's with the same seed."""
    runs = json.loads((ROOT / "docs/results/defaults.json").read_text())
    lines = ["| training | score | sizes | CPU seconds | x the first setting's | steps | seeds |", "|-" * 7 + "|"]

    def endless(run: dict, figure: str) -> float:
        return run[figure] if run["reached"] else inf

    for name, task in TASKS.items():
        first, label = {}, f"{name} | {task.score}"
        for setting in task.settings:
            seeds = {r["seed"]: r for r in runs if r["task"] == name and tuple(r["setting"]) == setting}
            first = first or {seed: run["seconds"] for seed, run in seeds.items()}
            if not seeds:
                continue
            seconds = {seed: endless(run, "seconds") for seed, run in seeds.items()}
            ratio = interval([value / first[seed] for seed, value in seconds.items()])
            steps = median(endless(run, "steps") for run in seeds.values())
            reached = "not reached" if steps == inf else f"{steps:,.0f}"
            cells = (" x ".join(map(str, setting)), interval([*seconds.values()]), ratio, reached, str(len(seeds)))
            lines.append(f"| {label} | {' | '.join(cells)} |")
            label = " | "
    torch = re.search(r"torch [\w.+]+", runs[0]["versions"])[0]
    return "\n".join([*lines, f"\nMedian [smallest, largest] over seeds; {torch}."])


def bots() -> str:
    """MicroRTS agents against every bot."""
    agents = {
        "against workerRushAI alone": "bots",
        "against four bots, 24 min": "bots_mix",
        "mostly against coacAI and mayari, 81 min": "bots_hours",
    }
    recorded = [json.loads((ROOT / f"docs/results/{name}.json").read_text()) for name in agents.values()]
    lines = [f"| bot | {' | '.join(f'trained {name}' for name in agents)} |", "|-" * (1 + len(agents)) + "|"]
    for bot in dict.fromkeys(bot for results in recorded for bot in results):
        texts = []
        for result in (results.get(bot) for results in recorded):
            counts = result and [round(result["games"] * result[key]) for key in ("success", "drawn", "lost")]
            texts.append(" / ".join(map(str, counts)) if counts else "")
        lines.append(f"| {bot} | {' | '.join(texts)} |")
    return "\n".join(lines)


def games() -> str:
    """Points against each opponent, and the first mover's on the way."""
    recorded = json.loads((ROOT / "docs/results/games.json").read_text())
    opponents = ("random", "minimax 2", "minimax 4")
    lines = [
        f"| training | {' | '.join(opponents)} | first mover's points against itself, through the training | minutes |",
        "|-" * 6 + "|",
    ]
    for name, runs in recorded.items():
        ends = [spread([run["curve"][-1][key] for run in runs], True) for key in opponents]
        curves = zip(*([row["first"] for row in run["curve"]] for run in runs), strict=True)
        shares = ", ".join(f"{median(values):.2f}" for values in curves)
        minutes = spread([run["minutes"] for run in runs], False)
        lines.append(f"| {name} | {' | '.join(ends)} | {shares} | {minutes} |")
    return "\n".join(lines)


def games_speed() -> str:
    """Games per second of our Connect Four and of PettingZoo's."""
    speed = json.loads((ROOT / "docs/results/games_speed.json").read_text())
    rates = {name: median(one[name] for one in speed["rounds"]) for name in speed["rounds"][0]}
    (peer, slow), (ours, fast) = rates.items()
    return (
        f"Games of random legal play per CPU second on one core: {peer} {slow:,.0f}, {ours} {fast:,.0f}, "
        f"{interval(speed['ratio'])} times as many ({len(speed['rounds'])} rounds in alternation)."
    )


def headline() -> str:
    """Speed and time to a score of PPO against MaskablePPO, in a sentence."""
    recorded = json.loads((ROOT / "docs/results/throughput_ppo.json").read_text())
    peer, arm = next(iter(recorded["steps_per_second"])), "ours, 64 batched envs"
    times = [cut(recorded["ratios"][name]["median_ratio"], 1) for name in (arm, f"{arm}, compiled")]
    seconds = [reached(recorded, name).split(" [")[0] for name in (peer, arm, f"{arm}, compiled")]
    return (
        f"Our PPO with 64 environments makes {times[0]} times the steps per second of sb3-contrib's MaskablePPO, and "
        f"{times[1]} times with `--compile`.\nA training return of 36 on JobRouting takes MaskablePPO {seconds[0]} s, "
        f"ours {seconds[1]} s, and ours compiled {seconds[2]} s from torch's cache, some 13 s\nmore where it is empty. "
        "One JAX program that holds rollout, world and update makes more steps per second still:\n"
        "[docs/speed.md](docs/speed.md)."
    )


def tables() -> dict[str, str]:
    """All tables by the names of their markers."""
    found = {
        "files": files(),
        "headline": headline(),
        "results ppo": results("ppo_action_mask"),
        "results dqn": results("dqn_action_mask"),
        "results attention": results("ppo_attention_mask"),
        "results grid": results("ppo_gridwise"),
        "results recurrent": results("ppo_recurrent_mask"),
        "speed attention": attention_speed(),
        "speed ppo": speed("ppo"),
        "speed dqn": speed("dqn"),
        "speed fields": speed_only("fields"),
        "speed microrts": speed_only("microrts"),
        "speed jax-64": speed_only("jax-64"),
        "speed jax-256": speed_only("jax-256"),
        "speed breakdown": breakdown(),
        "speed grid": grid_speed(),
        "speed growth": growth(),
        "speed memory": speed("memory"),
        "speed gru": gru_speed(),
        "memory": memory(),
        "defaults": defaults(),
        "bots": bots(),
        "games": games(),
        "games speed": games_speed(),
    }
    studies = {"arms": arms, "arms_shown": arms, "hidden": hidden, "ratio": ratio, "microrts": microrts}
    studies |= {"teams": teams, "fields": fields, "predicted": predicted, "predicted_worlds": predicted}
    return found | {f"results study-{name}": table(name) for name, table in studies.items()}


def filled() -> dict[Path, str]:
    """README and the pages of docs/ with fresh tables between their markers, of which each has one place."""
    texts = {path: path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
    for name, table in tables().items():
        marked = re.compile(f"(<!-- {name} -->\\n).*?(\\n<!-- /{name} -->)", re.S)
        places = [path for path, text in texts.items() for _ in marked.findall(text)]
        if len(places) != 1:
            raise ValueError(f"README.md and docs/ have {len(places)} places for the table {name!r}, expected 1.")
        texts[places[0]] = marked.sub(lambda m, t=table: m[1] + t + m[2], texts[places[0]])
    return texts


if __name__ == "__main__":
    for path, text in filled().items():
        path.write_text(text)
