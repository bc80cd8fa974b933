"""Commands as a user types them, read in the test's own process."""

import sys
import warnings
from pathlib import Path
from unittest import mock

from absl import flags

from diffussm_jax import main
from diffussm_jax.config import Config


def read(*arguments: object) -> tuple[Config, Path | None]:
    """The config and the work directory that `main` would run a mode with; flags stay unchanged."""
    saved = flags.FLAGS.flag_values_dict() if flags.FLAGS.is_parsed() else {}
    flags.FLAGS.unparse_flags()
    words = ["main", *map(str, arguments)]
    try:
        # ml_collections finds fields in sys.argv, and loads files as Python soon will not.
        with mock.patch.object(sys, "argv", words), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return main.read_run(main.parse_flags(words))
    finally:
        for name in [x for x in flags.FLAGS if x.startswith("config.")]:  # ml_collections' too
            delattr(flags.FLAGS, name)
        for name in ("config", "workdir", "mode"):
            flags.FLAGS[name].value = saved.get(name, flags.FLAGS[name].default)
        flags.FLAGS.unparse_flags()
