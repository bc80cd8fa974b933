"""The end of a run that hangs: it prints the stack of every thread and ends the process."""

import faulthandler
import os
import queue
import sys
import threading
from typing import Any, NoReturn

import jax

from diffussm_jax.errors import HANG_EXIT_CODE

COMPILATION_SECONDS = 1800.0  # more for the first step


class Watchdog:
    """Waits for each step's results in threads of its own; ends the process if they do not come.

    Args:
        seconds: allowed from one finished step to the next, with the evaluations and sample grids
            between them; None watches nothing.
    """

    def __init__(self, seconds: float | None):
        self._seconds = seconds
        self._started: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._finished: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def __enter__(self) -> "Watchdog":  # noqa: PYI034 - beartype knows no Self in a method alone
        if self._seconds is not None:
            threading.Thread(target=self._follow, daemon=True).start()
            threading.Thread(target=self._guard, args=(self._seconds,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._started.put(None)

    def watch(self, results: Any) -> None:
        """Take the arrays that a step will have made when it is finished."""
        if self._seconds is not None:
            self._started.put(results)

    def _follow(self) -> None:
        while (results := self._started.get()) is not None:
            try:
                jax.block_until_ready(results)
            except Exception:  # noqa: BLE001 - the run itself meets it and ends
                break
            self._finished.put(True)
        self._finished.put(False)

    def _guard(self, seconds: float) -> None:
        allowed = seconds + COMPILATION_SECONDS
        try:
            while self._finished.get(timeout=allowed):
                allowed = seconds
        except queue.Empty:
            _end(allowed)


def _end(seconds: float) -> NoReturn:
    sys.stderr.write(
        f"error: no step finished within {seconds:g} s (config.training.watchdog_seconds); where "
        "each thread is:\n"
    )
    sys.stderr.flush()
    faulthandler.dump_traceback(file=2)
    os._exit(HANG_EXIT_CODE)
