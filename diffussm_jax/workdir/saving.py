"""A save that goes on while the run does: its end, its failure, its time limit."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future

from diffussm_jax.errors import CheckpointError


class Save:
    """The writing of one checkpoint.

    Args:
        timeout: seconds that it may take from now on.
        last: the step of the last checkpoint that is whole, for the message of an error.
    """

    def __init__(self, step: int, *, timeout: float, last: int | None):
        self.step, self._timeout, self._last = step, timeout, last
        self._deadline = time.monotonic() + timeout
        self._future: Future[None] = Future()

    def finish(self, function: Callable[[int], None]) -> None:
        """Run the rest, a function of the step, in a thread of its own."""

        def run() -> None:
            try:
                function(self.step)
                self._future.set_result(None)
            except BaseException as error:  # noqa: BLE001 - `wait` raises it
                self._future.set_exception(error)

        # Not one that the end of the process waits for: it may hang.
        threading.Thread(target=run, name="save", daemon=True).start()

    def is_over(self) -> bool:
        """Whether it has come to an end, or its time has."""
        return self._future.done() or time.monotonic() > self._deadline

    def wait(self) -> None:
        """Wait for the end.

        Raises:
            CheckpointError: it failed or took too long.
        """
        with self.errors():
            self._future.result(timeout=max(0.0, self._deadline - time.monotonic()))

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Inside, what goes wrong is a CheckpointError in one line."""
        last = (
            "there is none before it"
            if self._last is None
            else f"the last whole one is of step {self._last}"
        )
        try:
            yield
        except TimeoutError as error:
            raise CheckpointError(
                f"the checkpoint of step {self.step} was not written within {self._timeout:g} s "
                f"(config.checkpoint.timeout); {last}"
            ) from error
        except Exception as error:  # Orbax and file systems raise anything
            raise CheckpointError(
                f"the checkpoint of step {self.step} could not be written: {one_line(error)}; {last}"
            ) from error


def one_line(error: BaseException) -> str:
    """An error's first line, or its name where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
