"""Run the scripts as a user does: in a process of their own, in an empty folder."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).parent.parent


def start(folder: Path, script: str, *flags: str, ranks: int = 1) -> subprocess.Popen:
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [*launcher, str(ROOT / script), *flags],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(folder: Path, script: str, *flags: str, ranks: int = 1) -> subprocess.CompletedProcess:
    process = start(folder, script, *flags, ranks=ranks)
    out, err = process.communicate(timeout=240)
    return subprocess.CompletedProcess(flags, process.returncode, out, err)


def run_folder(folder: Path) -> Path:
    (only,) = (folder / "runs").iterdir()
    return only


def checkpoint(folder: Path) -> dict:
    return torch.load(run_folder(folder) / "checkpoint.pt", weights_only=True)


def tensorboard(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(run_folder(folder)))
    events.Reload()
    return events


def assert_same_weights(a: dict, b: dict) -> None:
    assert a["model"].keys() == b["model"].keys()
    for name, weights in a["model"].items():
        assert torch.equal(weights, b["model"][name]), name
