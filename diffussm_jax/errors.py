"""The errors that end a command in one line, each with its exit code (the table of docs/resuming.md)."""


class UserError(ValueError):
    """A mistake in what the user gave; the message names it and the mend."""

    exit_code = 2


class NonFiniteError(FloatingPointError):
    """The loss or the gradient was infinite or NaN; `step` is the last such step, the first step of a run being 1."""

    exit_code = 1

    def __init__(self, text: str, *, step: int):
        super().__init__(text)
        self.step = step


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or not in time."""

    exit_code = 1


class Preempted(Exception):
    """The process was told to stop and has saved its work; the message says what."""

    exit_code = 75  # EX_TEMPFAIL: the same command, given again, goes on
