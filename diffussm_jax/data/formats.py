"""The formats of images that are read: those of the installed Pillow and its plug-ins."""

import contextlib
import functools
import importlib

from PIL import Image, PngImagePlugin

# Packages that add a format to Pillow: used where they are installed, named where they are missing.
_PLUGINS = ("pillow_heif.HeifImagePlugin", "pillow_jxl")
_PACKAGES = {
    ".avif": "pip install 'pillow>=11.3'",
    ".heic": "pip install pillow-heif",
    ".heif": "pip install pillow-heif",
    ".hif": "pip install pillow-heif",
    ".jxl": "pip install pillow-jxl-plugin",
}
_RAW = "a camera's raw file: develop it, as rawpy does"
_RAW_SUFFIXES = (".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".raw", ".rw2")
# What Pillow lists beside pictures: formats that it tells from others but cannot decode, videos,
# pages that another program must draw, measurements without a range, and documents of layers,
# which need not hold the picture that they make.
_NO_PICTURES = frozenset(
    ("BUFR", "EPS", "FITS", "FLI", "GRIB", "HDF5", "IPTC", "MPEG", "PALM", "PDF", "PSD", "WMF")
)


@functools.cache
def set_up_pillow() -> None:
    """Load the plug-ins, and raise Pillow's limits, which are those of the process.

    `transforms.decode_image` has its own limit of pixels. Image generators write more text into a
    chunk of a PNG than the 1 MB that Pillow allows.
    """
    for plugin in _PLUGINS:
        with contextlib.suppress(ImportError):
            importlib.import_module(plugin)
    Image.MAX_IMAGE_PIXELS = None
    PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY


@functools.cache
def suffixes() -> frozenset[str]:
    """The suffixes of files that are read as images, in lower case with their dot."""
    set_up_pillow()
    formats = Image.registered_extensions()
    return frozenset(suffix for suffix, name in formats.items() if name not in _NO_PICTURES)


def why_unread(suffix: str) -> str:
    """A suffix that is not read, in lower case, and what would read it where something does."""
    hint = _RAW if suffix in _RAW_SUFFIXES else _PACKAGES.get(suffix)
    name = suffix or "without a suffix"
    return f"{name} ({hint})" if hint else name
