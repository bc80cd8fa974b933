"""A save in the background of a run: its end, its failure, its time limit."""

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future

from diffussm_jax.errors import CheckpointError


class Save:
    """The writing of one checkpoint.

    Args:
        timeout: seconds that the save may take from now on.
        last: step of the last good checkpoint, for error messages; None where there is none.
    """

    def __init__(self, step: int, *, timeout: float, last: int | None):
        self.step, self._timeout, self._last = step, timeout, last
        self._deadline = time.monotonic() + timeout
        self._future: Future[None] = Future()

    def finish(self, function: Callable[[int], None]) -> None:
        """Run the rest of the save, a function of the step, in a thread of its own."""

        def run() -> None:
            try:
                function(self.step)
                self._future.set_result(None)
            except BaseException as error:  # noqa: BLE001 - `wait` raises it
                self._future.set_exception(error)

        # A daemon: the function may hang, and the process waits for other threads at its end.
        threading.Thread(target=run, name="save", daemon=True).start()

    def is_over(self) -> bool:
        """Whether the save has ended or run out of time."""
        return self._future.done() or time.monotonic() > self._deadline

    def wait(self) -> None:
        """Wait for the end of the save.

        Raises:
            CheckpointError: the save failed or took too long.
        """
        with self.errors():
            self._future.result(timeout=max(0.0, self._deadline - time.monotonic()))

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Turn the errors inside into a CheckpointError in one line."""
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
                f"the checkpoint of step {self.step} could not be written: {one_line(error)}; "
                f"{last}"
            ) from error


def one_line(error: BaseException) -> str:
    """The first line of an error's message, or its name where the message is empty.

    TensorStore's goes on with all that it was asked and answered, which is left out.
    """
    lines = re.split(
        r"\n| \[(?:http_response|tensorstore_spec|source locations)", str(error).strip()
    )
    return lines[0] or type(error).__name__
