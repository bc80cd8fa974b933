"""What runs saved, read back, for tests that compare two of them."""

import jax
import numpy as np

from diffussm_jax.parallel.mesh import make_mesh
from diffussm_jax.training.state import abstract_state
from diffussm_jax.workdir.checkpoints import Checkpoints


def abstract(config, mesh=None):
    mesh = make_mesh(config.mesh) if mesh is None else mesh
    return abstract_state(config, mesh)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def restored(config, workdir, **options):
    with Checkpoints(workdir, config.checkpoint) as checkpoints:
        return checkpoints.restore(abstract(config), **options)
