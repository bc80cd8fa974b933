"""Paths at gs://, which Orbax and TensorFlow Datasets get from `epath.Path` too.

Without this epath would take TensorFlow's file system where TensorFlow is installed, whose errors
are no OSErrors and whose repeated requests nobody sees (decision 32).
"""

import functools
import pathlib
from typing import TYPE_CHECKING, Any

from etils import epath
from etils.epath import backend
from etils.epath.gpath import PosixGPath

if TYPE_CHECKING:
    from diffussm_jax.files.gcs import BucketFileSystem


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

    def open(self, mode: str = "r", **options: Any) -> Any:
        """Open an object; it cannot be appended to.

        Raises:
            ValueError: of mode "a".
        """
        if mode.startswith("a"):
            raise ValueError(f"{self}: an object cannot be appended to")
        return super().open(mode, **options)

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


@functools.cache
def file_system() -> "BucketFileSystem":
    """The file system at gs://, which fsspec, and epath by it, take from now on too."""
    import fsspec

    from diffussm_jax.files.gcs import BucketFileSystem, log_retries

    for protocol in BucketFileSystem.protocol:
        fsspec.register_implementation(protocol, BucketFileSystem, clobber=True)
    log_retries()
    return fsspec.filesystem("gcs", finalize_on_close=True)  # as epath asks for it
