"""The errors that end a command in one line, each with its exit code.

docs/resuming.md has the table of exit codes and what to do about each.
"""

# Of a run whose steps do not finish: its watchdog ends the process, where an error might hang too.
HANG_EXIT_CODE = 1


class CommandEnd(Exception):
    """Ends a command with one line and an exit code instead of a traceback."""

    exit_code = 1
    may_hang = False  # whether an exit that waits for all threads might never end

    @property
    def last_line(self) -> str:
        """The line that the command ends with."""
        return f"error: {self}"


class UserError(CommandEnd, ValueError):
    """A mistake in what the user gave; the message names it and the mend."""

    exit_code = 2


class StorageError(CommandEnd):
    """A bucket that refuses a request, or does not answer; the message names the object.

    It is no OSError, which is taken for a file that is missing or damaged.
    """

    def __init__(self, name: str, reason: str, *, may_pass: bool):
        """Args: name: of the object; may_pass: whether the same command may succeed later."""
        super().__init__(f"{name}: {reason}")
        self.exit_code = 1 if may_pass else 2


class NonFiniteError(CommandEnd, FloatingPointError):
    """The loss or the gradient was infinite or NaN.

    Attributes:
        step: the last step at which it was; the first step of a run is 1.
    """

    def __init__(self, text: str, *, step: int):
        super().__init__(text)
        self.step = step


class CheckpointError(CommandEnd, RuntimeError):
    """A checkpoint could not be written, or not in time."""

    may_hang = True


class OtherImages(CommandEnd, RuntimeError):
    """A model draws other images than its export keeps of it."""


class Preempted(CommandEnd):
    """The process got a notice to stop and has saved its work; the message says what."""

    exit_code = 75  # EX_TEMPFAIL: the same command, given again, goes on

    @property
    def last_line(self) -> str:
        return f"preempted: {self}; the same command goes on"
