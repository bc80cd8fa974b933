"""A run that hangs ends, and says where it hung."""

import os
import subprocess
import sys

HANGING = """
import threading
import jax.numpy as jnp
from diffussm_jax.training import watchdog
from diffussm_jax.training.watchdog import Watchdog

def hang_here():
    threading.Event().wait()

watchdog.COMPILATION_SECONDS = {compilation}
with Watchdog(1.0) as dog:
    for _ in range({steps}):
        dog.watch({{"loss": jnp.ones(3).sum()}})
    hang_here()
"""


def run(**values) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", HANGING.format(**values)],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_step_that_does_not_finish_ends_the_run_with_every_stack():
    result = run(compilation=600.0, steps=2)
    assert result.returncode == 1
    assert "error: no step finished within 1 s" in result.stderr
    assert "hang_here" in result.stderr
    assert "Thread 0x" in result.stderr


def test_the_first_step_has_time_to_compile():
    result = run(compilation=1.0, steps=0)
    assert "error: no step finished within 2 s" in result.stderr
