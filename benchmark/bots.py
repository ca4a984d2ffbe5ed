"""A trained MicroRTS agent against every bot that the game brings: won, drawn and lost games of a hundred.

    python benchmark/bots.py --checkpoint runs/NAME/checkpoint.pt --out docs/results/bots.json

Bots that search (naiveMCTS and its kin) think a tenth of a second for every move: --games 20 is enough of them.
"""

import json
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import tyro
from seam import ROOT

BOTS = ("passiveAI", "randomAI", "randomBiasedAI", "workerRushAI", "lightRushAI", "POWorkerRush",
        "POLightRush", "POHeavyRush", "PORangedRush", "coacAI", "mayari", "naiveMCTSAI",
        "mixedBot", "rojo", "izanagi", "tiamat", "droplet", "guidedRojoA3N")  # fmt: skip


@dataclass
class Args:
    """Which agent, and how many games."""

    checkpoint: Path
    """of `ppo_gridwise.py`, trained on Masked/MicroRTS-v0"""
    map_path: str = "maps/8x8/basesWorkers8x8.xml"
    """of the games"""
    bots: tuple[str, ...] = BOTS
    """opponents"""
    games: int = 100
    """games against each"""
    minutes: float = 10.0
    """for a bot, beyond which it is left out"""
    out: Path | None = None
    """file for the results (JSON)"""


def main(args: Args) -> None:
    """Play, print and write after each bot."""
    results = json.loads(args.out.read_text()) if args.out and args.out.exists() else {}
    for bot in args.bots:
        if bot in results:
            continue
        command = [sys.executable, str(ROOT / "ppo_gridwise.py"), "--eval-only", str(args.checkpoint.resolve())]
        command += ["--eval-episodes", str(args.games), "--env-kwargs", "map_path", args.map_path, "opponents", bot]
        start = time.time()
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60 * args.minutes)
        except subprocess.TimeoutExpired:
            print(bot, f"is left out: more than {args.minutes} min", flush=True)
            continue
        if done.returncode:
            raise RuntimeError(f"{bot}\n{done.stderr}")
        scores = json.loads(re.search(r'{\s*"as_trained".*}', done.stdout, re.S)[0])["as_trained"]
        results[bot] = {key: scores[key] for key in ("success", "drawn", "lost", "episodic_length")}
        results[bot] |= {"games": args.games, "minutes": (time.time() - start) / 60}
        print(bot, results[bot], flush=True)
        if args.out:
            args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Args))
