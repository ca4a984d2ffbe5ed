"""How a signal ends a run, at a good moment, and what is kept where an environment ends it."""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from experiment.notes import attempt, say


class StopOnSignal:
    """SIGINT and SIGTERM ask for a stop, which the training loop does at its next good moment; a second one kills.

    In the end, also that of a training that failed, they are given back to those who had them.
    """

    def __init__(self):
        self.stopped_by: signal.Signals | None = None
        ours = threading.current_thread() is threading.main_thread()  # another one gets no signals
        both = (signal.SIGINT, signal.SIGTERM) if ours else ()
        self.handlers = {signum: signal.signal(signum, self._stop) for signum in both}

    def _stop(self, signum: int, frame: FrameType | None) -> None:
        self.stopped_by = signal.Signals(signum)
        signal.signal(signum, self.handlers[signum])

    def __enter__(self) -> "StopOnSignal":
        return self

    def __exit__(self, *error: object) -> None:
        for signum, handler in self.handlers.items():
            if signal.getsignal(signum) == self._stop:  # a failed training may end late, when another one has them
                signal.signal(signum, handler)


def rescuing(run: Any, step: Callable) -> Callable:
    """The environments' `step`, whose failure leaves a checkpoint of the last iteration, where no ranks share a run."""

    def rescue(actions: Any) -> Any:
        try:
            return step(actions)
        except Exception:
            if (
                run.board
                and run.world_size == 1
                and run.args.save_model
                and run.iteration
                and run.saved != run.iteration
            ):
                with attempt("The agent of the last iteration is lost"):
                    run.save()
                    say(f"An environment failed: the agent after {run.iteration * run.steps} steps is in {run.kept}.")
            raise

    return rescue
