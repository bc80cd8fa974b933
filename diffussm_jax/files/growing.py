"""Files that grow or change often, as logs do, where their folder is in a bucket.

An object cannot be appended to. The files are written on the disk, and sent as wholes.
"""

import logging
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from diffussm_jax.files.paths import is_in_bucket

logger = logging.getLogger(__name__)

# A bucket takes one write of an object a second; more often also costs more.
SECONDS_BETWEEN = 10.0


class GrowingFiles:
    """A folder on the disk whose files are also those of `target`, or `target` itself on a disk.

    Attributes:
        folder: where to write.
    """

    def __init__(self, target: Path):
        self._target, self._temporary = target, None
        self.folder = target
        if is_in_bucket(target):
            self._temporary = tempfile.TemporaryDirectory(prefix="growing-")
            self.folder = Path(self._temporary.name)
            self._pool = ThreadPoolExecutor(1)
            self._sending: Future[None] | None = None
            self._sent: dict[str, int] = {}  # hashes of their content
            self._last = time.monotonic()

    def fetch(self, name: str) -> Path:
        """The path of a file on the disk, with what the target's file holds."""
        path = self.folder / name
        if self._temporary is not None and (self._target / name).exists():
            path.write_bytes((self._target / name).read_bytes())
        return path

    def send(self) -> None:
        """Send the files that have changed, in the background, if none were sent just now."""
        if self._temporary is None or time.monotonic() < self._last + SECONDS_BETWEEN:
            return
        if self._sending is not None:
            if not self._sending.done():
                return
            if error := self._sending.exception():
                logger.warning("%s; sent again later", error)
        self._last = time.monotonic()
        self._sending = self._pool.submit(self._send)

    def finish(self) -> None:
        """Send what was not sent yet, and wait for it.

        Raises:
            OSError: the bucket does not take it.
        """
        if self._temporary is not None:
            self._pool.submit(self._send).result()

    def close(self) -> None:
        """Finish, and remove the files on the disk."""
        if self._temporary is not None:
            try:
                self.finish()
            finally:
                self._pool.shutdown()
                self._temporary.cleanup()

    def _send(self) -> None:
        for path in sorted(self.folder.glob("[!.]*")):  # others are being replaced
            data = path.read_bytes()
            if hash(data) != self._sent.get(path.name):
                (self._target / path.name).write_bytes(data)
                self._sent[path.name] = hash(data)
