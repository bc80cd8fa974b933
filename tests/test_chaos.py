"""`make chaos`: its short form for kills, and its pairs of runs in one work directory."""

import subprocess
import sys

import pytest

from benchmarks.chaos.run import RECIPES


def chaos(folder, data_dir, *options):
    command = [
        sys.executable,
        "-m",
        "benchmarks.chaos",
        f"--folder={folder}",
        f"--data_dir={data_dir}",
        *options,
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_that_is_killed_ends_where_the_undisturbed_one_does(recipe, tmp_path, data_dir):
    """Three kills, one of them at least in a write, and a SIGTERM."""
    output = chaos(tmp_path, data_dir, "--short", f"--recipe={recipe}")
    assert "kills: 62 log lines" in output
    assert "terms: 62 log lines" in output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "num"), [(["--short"], 2), pytest.param([], 10, marks=pytest.mark.nightly)]
)
def test_of_two_runs_in_one_work_directory_one_is_refused(options, num, tmp_path, data_dir):
    """The other one ends where the undisturbed one does; after SIGKILL the next one goes on."""
    output = chaos(tmp_path, data_dir, *options, "--only=pairs")
    assert output.count("exit codes ['0', '2'], error: --workdir=") == num
    assert "SIGKILL: the next start goes on" in output
    assert output.count("bit for bit those of the undisturbed run") == num + 1
