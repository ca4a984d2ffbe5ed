"""What is said on the way: lines of rank 0, what fails when the work is done, and why a run does not begin."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import extract_tb
from types import TracebackType

from tqdm import tqdm

from envs.foreign import reason

HOUSE = Path(__file__).parent.parent


def say(line: str) -> None:
    """Write a line from rank 0 alone, above a bar that may stand there, to stderr: stdout is for scores."""
    if int(os.environ.get("RANK", 0)) == 0:
        tqdm.write(line, file=sys.stderr)


@contextmanager
def attempt(what: str) -> Iterator[None]:
    """Say in a line that begins with `what` that the block failed, in whatever way, and go on.

    For what comes when the work is done, and is another's: environments, renderers, disks.
    """
    try:
        yield
    except Exception as error:
        say(f"{what}: {reason(error)} ({type(error).__name__})")


def end_with_a_sentence(kind: type[BaseException], error: BaseException, trace: TracebackType) -> None:
    """An excepthook: what a script, `envs` or `experiment` refuses ends with its sentence, all else with a traceback.

    Refused is what one of them raises in so many words. What the user's own code has caused keeps its traceback.
    """
    *_, last = extract_tb(trace)
    trail = extract_tb(error.__cause__.__traceback__) if error.__cause__ else ()
    causes = [Path(frame.filename) for frame in trail if not frame.filename.startswith("<frozen")]
    rooms = (HOUSE / "envs", HOUSE / "experiment", Path(sys.argv[0]).resolve())
    known = (*rooms, Path(sys.prefix), Path(sys.base_prefix))  # not the user's own
    refused = last.line.startswith("raise ") and any(Path(last.filename).is_relative_to(room) for room in rooms)
    if refused and all(any(file.is_relative_to(place) for place in known) for file in causes):
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)
