"""Commands as a user types them, read in the test's own process."""

import sys
import warnings
from pathlib import Path
from unittest import mock

from absl import flags
from absl.testing import flagsaver

from diffussm_jax import main
from diffussm_jax.config import Config


def read(*arguments: object) -> tuple[Config, Path | None]:
    """The config and the work directory that `main` would run a mode with; flags stay unchanged."""
    words = ["main", *map(str, arguments)]
    # ml_collections finds fields in sys.argv, and loads files as Python soon will not.
    with flagsaver.flagsaver(), mock.patch.object(sys, "argv", words), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        flags.FLAGS.unparse_flags()
        return main.read_run(main.parse_flags(words))
