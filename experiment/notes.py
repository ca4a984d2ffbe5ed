"""What is said on the way: lines of rank 0, and what fails when the work is done."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm


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
        say(f"{what}: {' '.join(str(error).split())} ({type(error).__name__})")
