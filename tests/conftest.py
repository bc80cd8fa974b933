"""Eight fake CPU devices, one cache of compiled programs, and what is made once for all tests."""

import ctypes
import logging
import os
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

# Tests compile much and compute little. LLVM's optimisations cost more than they save, and JAX 0.10
# still has the emitters that compile four times as fast as those that replaced them.
FLAGS = [
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
]
if version("jaxlib").startswith("0.10."):
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join(FLAGS)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# What one worker compiled the other worker reads, and so do the processes that tests start.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    COMPILED = tempfile.TemporaryDirectory(prefix="compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax
import pytest
from filelock import FileLock

from diffussm_jax.config import Config, from_dict

TINY_MODEL = {"depth": 2, "width": 16, "state_size": 8, "dtype": "float32"}


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Compiled programs stay in memory, a megabyte each: drop those of a module after it."""
    yield
    jax.clear_caches()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)  # of glibc: give the pages back


@pytest.fixture(scope="session")
def shared(tmp_path_factory, worker_id) -> Path:
    """The folder of this test run, the same for all workers."""
    folder = tmp_path_factory.getbasetemp()
    return folder if worker_id == "master" else folder.parent


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> str:
    """A TFDS folder with the digits prepared, shared by all workers."""
    from diffussm_jax.data.sources import open_images

    folder = tmp_path_factory.getbasetemp().parent / "tfds"
    with FileLock(f"{folder}.lock"):
        open_images(from_dict({"data": {"data_dir": str(folder)}}), "train")
    return str(folder)


@pytest.fixture(scope="session")
def tiny_config(data_dir) -> dict:
    """A run of seconds on the digits, as nested values for `from_dict`."""
    return {
        "model": TINY_MODEL,
        "diffusion": {"num_steps": 20},
        "data": {"data_dir": data_dir, "flip": False},
        "optimizer": {"learning_rate": 1e-3},
        "training": {
            "num_steps": 6,
            "batch_size": 16,
            "log_every": 2,
            "eval_every": 4,
            "eval_batches": 1,
            "sample_every": 6,
            "ema_lengths": (0.05, 0.1),
            "ema_snapshot_every": 3,
        },
        "checkpoint": {"every": 3, "keep": 5},
        "sample": {"num": 10, "batch_size": 8, "steps": 4, "sampler": "ddim"},
    }


def merge(values: dict, changes: dict) -> Config:
    """A config from nested values with some fields of some sections replaced."""
    merged = {name: dict(section) for name, section in values.items()}
    for name, section in changes.items():
        merged[name] = merged.get(name, {}) | section
    return from_dict(merged)


@pytest.fixture(scope="session")
def tiny_autoencoder(tmp_path_factory) -> Path:
    """The folder of an autoencoder with random weights that halves sides: nothing writes into it.

    Its pictures have three channels, and its latents four.
    """
    from diffussm_jax.autoencoder.network import AutoencoderKLConfig
    from diffussm_jax.autoencoder.weights import save_autoencoder
    from examples.photos import random_autoencoder

    shape = AutoencoderKLConfig(block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4)
    folder = tmp_path_factory.mktemp("autoencoder")
    save_autoencoder(random_autoencoder(shape), folder)
    return folder


@pytest.fixture(scope="session")
def trained_once(tiny_config, shared) -> Path:
    """The work directory of a finished tiny run, shared by all workers: nothing writes into it."""
    from diffussm_jax.train import train

    folder = shared / "trained"
    with FileLock(f"{folder}.lock"):
        train(from_dict(tiny_config), folder)  # does nothing where it is done
    return folder


@pytest.fixture
def trained(trained_once, tmp_path_factory) -> Path:
    """A copy of that work directory, for one test to write into."""
    return shutil.copytree(trained_once, tmp_path_factory.mktemp("trained") / "run")


@pytest.fixture(scope="session")
def exported_once(trained_once, tiny_config, tmp_path_factory) -> Path:
    """The export of that run: nothing writes into it."""
    from diffussm_jax.export import export

    folder = tmp_path_factory.mktemp("exported") / "weights"
    export(merge(tiny_config, {"export": {"folder": str(folder)}}), trained_once)
    return folder


@pytest.fixture
def exported(exported_once, tmp_path_factory) -> Path:
    """A copy of that export, for one test to write into."""
    return shutil.copytree(exported_once, tmp_path_factory.mktemp("exported") / "weights")


@pytest.fixture(autouse=True)
def _log_level_of_a_new_process():
    """Commands set the level of the package's log, and must not set it for the next test."""
    logging.getLogger("diffussm_jax").setLevel(logging.NOTSET)
