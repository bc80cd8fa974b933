"""On a machine without a TPU, libtpu is a compiler and says nothing."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("libtpu")

PROGRAM = "from diffussm_jax.parallel.mesh import make_mesh; make_mesh()"


def test_devices_are_found_without_a_word():
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
