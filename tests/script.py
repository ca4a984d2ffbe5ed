"""Run the scripts as a user does: in a process of their own, in an empty folder."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

ROOT = Path(__file__).parent.parent
# A folder's event files are read in the order of their names, which end with the writers' number in the process: it
# begins where a run and the one that resumes it in the same second have numbers of as many digits.
event_file_writer._global_uid = event_file_writer.AtomicCounter(1_000_000)


def start(folder: Path, script: str | Path, *flags: str, ranks: int = 1) -> subprocess.Popen:
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    environment = os.environ | {
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
    }
    return subprocess.Popen(
        [*launcher, str(script if isinstance(script, Path) else ROOT / f"{script}.py"), *flags],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(folder: Path, script: str | Path, *flags: str, ranks: int = 1) -> subprocess.CompletedProcess:
    process = start(folder, script, *flags, ranks=ranks)
    out, err = process.communicate(timeout=240)
    return subprocess.CompletedProcess(flags, process.returncode, out, err)


def run_folder(folder: Path = Path()) -> Path:
    (only,) = (folder / "runs").iterdir()
    return only


def checkpoint(folder: Path = Path()) -> dict:
    return torch.load(run_folder(folder) / "checkpoint.pt", weights_only=True)


def tensorboard(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(run_folder(folder)))
    events.Reload()
    return events


def assert_same(a: object, b: object, where: str = "") -> None:
    """Equal bit for bit, in nested dicts and lists of tensors and plain values."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key, value in a.items():
            assert_same(value, b[key], f"{where}/{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for i, value in enumerate(a):
            assert_same(value, b[i], f"{where}/{i}")
    else:
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, where
