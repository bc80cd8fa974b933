"""A work directory at gs://, on TensorFlow's file system in memory.

The arrays are left out: Orbax writes them to buckets itself.
"""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import jax.numpy as jnp
import numpy as np
from etils import epath
from etils.epath import gpath

name = gpath.PosixGPath._path_str.fget
gpath.PosixGPath._path_str = property(lambda self: name(self).replace("gs://", "ram://"))

from diffussm_jax import main
from diffussm_jax.config import from_dict
from diffussm_jax.errors import UserError
from diffussm_jax.sampling import images
from diffussm_jax.training.log import JsonlWriter
from diffussm_jax.workdir import ema_snapshots, integrity, layout, lock, ownership

run, config = main.as_path("gs://bucket/run"), from_dict({})
lock.RENEWAL_SECONDS, lock.SETTLING_SECONDS = 0.1, 0.2
for _ in range(2):
    with ownership.claimed(run):
        layout.begin(run, config)
        try:
            with ownership.claimed(run):
                raise AssertionError("two processes have the folder")
        except UserError as error:
            assert "/bucket/run is in use by process" in str(error), error
assert not (run / ".lock").exists()
assert layout.read_config(run) == config

path = run / "metrics.jsonl"
for start, steps in ((0, (1, 2)), (1, (2, 3))):
    writer = JsonlWriter(path, start_step=start)
    for step in steps:
        writer.write_scalars(step, {"loss": 0.5})
    writer.close()
assert [line[9] for line in path.read_text().splitlines()] == ["1", "2", "3"]

images.save_grid(np.zeros((4, 8, 8, 1), np.uint8), run / "samples" / "grid.png")
assert (run / "samples" / "grid.png").read_bytes()[1:4] == b"PNG"

folder = run / "checkpoints" / "5"
(folder / "state").mkdir(parents=True)
(folder / "state" / "a").write_bytes(b"abc")
integrity.write_manifest(folder)
assert integrity.find_damage(folder) is None
(folder / "state" / "a").unlink()
assert integrity.find_damage(folder) == "state/a is missing"
assert layout.has_checkpoint(run)

ema_snapshots.save_snapshots(run, [{"a": {"b": jnp.ones(2)}}], [0.1], step=5)
assert [(x.step, x.width) for x in ema_snapshots.find_snapshots(run)] == [(5, 0.1)]
"""


@pytest.mark.slow
def test_what_a_run_writes_beside_its_arrays():
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
