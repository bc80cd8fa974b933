"""A file of plans, so that a benchmark which takes hours goes on where it ended."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffussm_jax.config.parsing import read_as
from diffussm_jax.files import write_json


def kept_plan(store: Path, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The plan of this key in a JSON file; if it is missing, make it and add it to the file."""
    plans = read_as(store, dict) if store.exists() else {}
    if key not in plans:
        sys.stderr.write(f"{key}\n")
        plans[key] = make()
        store.parent.mkdir(parents=True, exist_ok=True)
        write_json(store, plans)
    return plans[key]
