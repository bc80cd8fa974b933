"""An end for a run that hangs: where no step finishes in time, every thread's stack is printed and the process ends."""

import faulthandler
import os
import queue
import sys
import threading
from typing import Any, NoReturn

import jax

EXIT_CODE = 1
COMPILATION = 1800.0  # seconds that the first step may take besides


class Watchdog:
    """Waits for each step's results in threads of its own; used as a context manager.

    Args:
        seconds: from one finished step to the next, evaluations and sample grids between them included; None watches
            nothing.
    """

    def __init__(self, seconds: float | None):
        self._seconds = seconds
        self._started: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._finished: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def __enter__(self):
        if self._seconds is not None:
            threading.Thread(target=self._follow, daemon=True).start()
            threading.Thread(target=self._guard, args=(self._seconds,), daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        self._started.put(None)

    def watch(self, results: Any) -> None:
        """Take the arrays that a step will have made when it is finished."""
        if self._seconds is not None:
            self._started.put(results)

    def _follow(self) -> None:
        while (results := self._started.get()) is not None:
            try:
                jax.block_until_ready(results)
            except Exception:  # noqa: BLE001 - the run itself comes to it
                break
            self._finished.put(True)
        self._finished.put(False)

    def _guard(self, seconds: float) -> None:
        allowed = seconds + COMPILATION
        try:
            while self._finished.get(timeout=allowed):
                allowed = seconds
        except queue.Empty:
            _end(allowed)


def _end(seconds: float) -> NoReturn:
    sys.stderr.write(
        f"error: no step finished within {seconds:g} s (config.training.watchdog_seconds); where each thread is:\n"
    )
    sys.stderr.flush()
    faulthandler.dump_traceback(file=2)
    os._exit(EXIT_CODE)
