"""A trained MicroRTS agent against every bot that the game brings: games won, drawn and lost.

    python benchmark/bots.py --checkpoint runs/NAME/checkpoint.pt --out docs/results/bots.json

Bots that search (naiveMCTS and its kin) think a tenth of a second for every move: --games 20 is enough of them.
"""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from envs.episodes import evaluate  # noqa: E402
from envs.make import make_vec  # noqa: E402
from ppo_gridwise import Agent, split_masks  # noqa: E402

BOTS = ("passiveAI", "randomAI", "randomBiasedAI", "workerRushAI", "lightRushAI", "POWorkerRush",
        "POLightRush", "POHeavyRush", "PORangedRush", "coacAI", "mayari", "naiveMCTSAI",
        "mixedBot", "rojo", "izanagi", "tiamat", "droplet", "guidedRojoA3N")  # fmt: skip
CODE = """
import json, sys
from bots import play
print("SCORES", json.dumps(play(*sys.argv[1:4], int(sys.argv[4]))))
"""


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


@torch.inference_mode()
def play(checkpoint: str, map_path: str, bot: str, games: int) -> dict[str, float]:
    """The scores of an agent against a bot, with the mask, as `--eval-only` has them."""
    torch.set_num_threads(1)
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    agent = Agent(saved["obs_shape"], tuple(saved["nvec"]), saved["args"]["channels"])
    agent.load_state_dict(saved["model"])

    def act(obs: np.ndarray, mask: np.ndarray, started: np.ndarray) -> np.ndarray:
        policy, _ = agent(torch.from_numpy(obs), *split_masks(torch.from_numpy(mask).bool()))
        return policy.sample().numpy()

    envs = make_vec("Masked/MicroRTS-v0", min(games, 24), {"map_path": map_path, "opponents": bot}, layout="grid")
    return evaluate(act, envs, games, max_steps=5000)


def main(args: Args) -> None:
    """Play, print and write after each bot, for each of which there is a process: there can be one JVM in it."""
    results = json.loads(args.out.read_text()) if args.out and args.out.exists() else {}
    for bot in args.bots:
        if bot in results:
            continue
        start = time.time()
        command = [sys.executable, "-c", CODE, str(args.checkpoint.resolve()), args.map_path, bot, str(args.games)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60 * args.minutes, cwd=HERE)
        except subprocess.TimeoutExpired:
            print(bot, f"is left out: more than {args.minutes} min", flush=True)
            continue
        if done.returncode:
            raise RuntimeError(f"{bot}\n{done.stderr}")
        scores = json.loads(done.stdout.split("SCORES")[1])
        results[bot] = {key: scores[key] for key in ("success", "drawn", "lost", "episodic_length")}
        results[bot] |= {"games": args.games, "minutes": (time.time() - start) / 60}
        print(bot, results[bot], flush=True)
        if args.out:
            args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Args))
