"""Bad records: the run ends and names the first, or they are skipped, counted and reported."""

import logging
import threading
from typing import Literal

from diffussm_jax.errors import UserError

logger = logging.getLogger(__name__)

MAX_SHARE = 0.01  # of a data set that may be skipped


class BadRecordError(UserError):
    """A record that cannot be read, decoded or trained on; the message names its file."""


class Faults:
    """Fails at the first bad record or counts and skips them, as `data.on_error` says."""

    def __init__(self, on_error: Literal["fail", "skip"], *, num_records: int):
        self._on_error, self._num_records = on_error, num_records
        self._bad: set[int] = set()
        self._lock = threading.Lock()

    def note(self, index: int, error: BadRecordError) -> None:
        """Take note of the bad record `index`; return if it may be skipped.

        Raises:
            UserError: `on_error` is "fail", or more than 1 % of all records are bad.
        """
        if self._on_error == "fail":
            skip = ", or leave such records out with --config.data.on_error=skip"
            may_skip = self._num_records * MAX_SHARE >= 1
            raise UserError(f"{error}; mend or remove it{skip if may_skip else ''}") from error
        with self._lock:
            if index in self._bad:
                return
            self._bad.add(index)
            num_bad = len(self._bad)
        if num_bad > MAX_SHARE * self._num_records:
            raise UserError(
                f"{num_bad} of {self._num_records} records are bad, and no more than "
                f"{MAX_SHARE:.0%} may be skipped: mend or remove them; the last one: {error}"
            ) from error
        logger.warning("skipped (%d of %d records so far): %s", num_bad, self._num_records, error)
