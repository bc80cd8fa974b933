"""On a machine without a TPU, libtpu is a compiler and says nothing."""

import os
import shutil
import subprocess
import sys

import pytest

pytest.importorskip("libtpu")


def stderr_of(*arguments):
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    result = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stderr


def test_devices_are_found_without_a_word():
    program = "from diffussm_jax.parallel.mesh import make_mesh; make_mesh()"
    assert stderr_of("-c", program) == ""


@pytest.mark.slow
def test_a_model_is_loaded_without_a_word(trained):
    program = f"import diffussm_jax; diffussm_jax.load({str(trained)!r})"
    assert stderr_of("-c", program) == ""


@pytest.mark.slow
def test_the_command_line_shows_its_own_log_alone(trained, tmp_path):
    path = tmp_path / "config.py"
    path.write_text(
        "import dataclasses\nfrom pathlib import Path\n"
        "from ml_collections import ConfigDict\n"
        "from diffussm_jax.workdir.layout import read_config\n"
        "def get_config():\n"
        f"    return ConfigDict(dataclasses.asdict(read_config(Path({str(trained)!r}))))\n"
    )
    workdir = shutil.copytree(trained, tmp_path / "run")
    command = "-m", "diffussm_jax.main", f"--config={path}", f"--workdir={workdir}"
    log = stderr_of(*command, "--mode=export")
    assert "libtpu" not in log
    assert "TPU" not in log
