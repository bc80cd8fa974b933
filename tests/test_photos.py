"""The README's path from a folder of pictures to decoded samples, by its own commands."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
COMMANDS = [
    line
    for line in (ROOT / "README.md").read_text().splitlines()
    if re.match("python -m .*photos", line)
]


@pytest.mark.slow
def test_a_folder_of_photographs_becomes_latents_a_model_and_pictures(tmp_path):
    assert len(COMMANDS) == 4
    for name in ("configs", "examples", "diffussm_jax"):
        (tmp_path / name).symlink_to(ROOT / name)
    for command in COMMANDS:
        arguments = [sys.executable, *shlex.split(command)[1:]]
        result = subprocess.run(
            arguments, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr
    with np.load(tmp_path / "runs/photos/run/samples/samples.npz") as arrays:
        assert arrays["arr_0"].shape == (6, 64, 64, 3)
        np.testing.assert_array_equal(arrays["arr_1"], [0, 1, 2, 0, 1, 2])
    assert (tmp_path / "runs/photos/run/samples/samples.png").is_file()
    names = (tmp_path / "runs/photos/run/data.json").read_text()
    assert all(name in names for name in ("scenes", "subjects", "textures"))
