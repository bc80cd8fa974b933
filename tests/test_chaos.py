"""The short form of `make chaos`: three kills, one of them at least in a write, and a SIGTERM."""

import subprocess
import sys

import pytest


@pytest.mark.slow
def test_a_run_that_is_killed_ends_where_the_undisturbed_one_does(tmp_path, data_dir):
    command = [
        sys.executable,
        "-m",
        "benchmarks.chaos",
        "--short",
        f"--folder={tmp_path}",
        f"--data_dir={data_dir}",
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "kills: 62 log lines" in result.stdout
    assert "terms: 62 log lines" in result.stdout
