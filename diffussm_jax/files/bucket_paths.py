"""Paths at gs://, which Orbax and TensorFlow Datasets get from `epath.Path` too.

Without this epath would take TensorFlow's file system where TensorFlow is installed, whose errors
are no OSErrors and whose repeated requests nobody sees (decision 32).
"""

import functools
import io
import pathlib
from typing import TYPE_CHECKING, Any

from etils import epath
from etils.epath import backend
from etils.epath.gpath import PosixGPath

if TYPE_CHECKING:
    from diffussm_jax.files.gcs import BucketFileSystem


PARALLEL_WRITES = 16  # of files of a folder, of which at most 50 MiB each are in memory


@epath.register_path_cls("gs://")
class BucketPath(PosixGPath, pathlib.PosixPath):  # type: ignore[misc]
    """A path at gs://, and a Path to whoever asks.

    Folders are only names: they are there while an object is in them. An object is written as
    a whole: it appears, or replaces the one before, when it is closed.
    """

    @property
    def _backend(self) -> backend.Backend:
        file_system()
        return backend.fsspec_backend

    def mkdir(self, mode: int | None = None, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing, but raise FileExistsError as on a disk."""
        if not exist_ok and self.exists():
            raise FileExistsError(f"{self} exists already")

    def open(  # type: ignore[override]
        self, mode: str = "r", **options: Any
    ) -> Any:
        """Open an object to read it, or to write it whole; text is UTF-8.

        Args:
            options: of fsspec, such as `cache_type`.

        Raises:
            ValueError: of mode "a", because an object cannot be appended to.
        """
        if mode.strip("bt") not in ("r", "w"):
            raise ValueError(f"{self}: an object cannot be opened in mode {mode!r}")
        if "r" in mode:
            # Not gcsfs's own kind, whose tasks in the background outlive a file that is not closed.
            options = {"cache_type": "readahead"} | options
            return file_system().open(str(self), mode.replace("t", ""), **options)
        return _NewObject(self) if "b" in mode else _NewText(self)

    def read_bytes(self) -> bytes:
        return file_system().cat_file(str(self))

    def write_bytes(self, data: Any) -> int:
        file_system().pipe_file(str(self), bytes(data))
        return len(data)

    def replace_by(self, source: pathlib.Path) -> None:
        """Put a file of the disk here, or the files of a folder in place of those here.

        Those here go first, so that a kill leaves no mixture.
        """
        system = file_system()
        if source.is_file():
            system.put_file(str(source), str(self))
            return
        if self.exists():
            self.rmtree()
        paths = sorted(x for x in source.rglob("*") if x.is_file())
        targets = [str(self / x.relative_to(source)) for x in paths]
        system.put([str(x) for x in paths], targets, batch_size=PARALLEL_WRITES)

    def names(self) -> list[str]:
        """The objects under this path, as paths from it."""
        start = len(str(self).removeprefix("gs://")) + 1
        return [name[start:] for name in file_system().find(str(self))]

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            file_system().rm_file(str(self))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def absolute(self) -> "BucketPath":
        return self

    def resolve(self, strict: bool = False) -> "BucketPath":
        return self

    def expanduser(self) -> "BucketPath":
        return self

    def is_symlink(self) -> bool:
        return False


class _NewObject(io.BytesIO):
    """What is written to an object, which is made when this is closed, unless by an exception."""

    def __init__(self, path: BucketPath):
        super().__init__()
        self._path: BucketPath | None = path

    def __exit__(self, *exception: object) -> None:
        if exception[0] is not None:
            self._path = None
        self.close()

    def close(self) -> None:
        if not self.closed and self._path is not None:
            self._path.write_bytes(self.getvalue())
        super().close()


class _NewText(io.TextIOWrapper):
    """The same of text."""

    def __init__(self, path: BucketPath):
        self._bytes = _NewObject(path)
        super().__init__(self._bytes, encoding="utf-8")

    def __exit__(self, *exception: object) -> None:
        if exception[0] is not None:
            self._bytes.__exit__(*exception)
        self.close()


@functools.cache
def file_system() -> "BucketFileSystem":
    """The file system at gs://, which fsspec, and epath by it, take from now on too."""
    import fsspec

    from diffussm_jax.files.gcs import BucketFileSystem, log_retries

    for protocol in BucketFileSystem.protocol:
        fsspec.register_implementation(protocol, BucketFileSystem, clobber=True)
    log_retries()
    return fsspec.filesystem("gcs", finalize_on_close=True)  # as epath asks for it
