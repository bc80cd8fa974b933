"""The launcher against a stub gcloud whose hosts are folders: remote.sh and the jobs really run."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from launch import gcloud, tpu_vm

LAUNCH = Path(gcloud.__file__).parent
STUB = Path(__file__).with_name("stub_gcloud.py")
# A training run of three steps: each is a number in a file that outlives the slice, and a run goes
# on where the file ends.
JOB = """
import pathlib, sys, time
done = pathlib.Path(sys.argv[1])
while (n := len(done.read_text().split()) if done.exists() else 0) < 3:
    time.sleep(float(sys.argv[2]))
    with done.open("a") as file:
        file.write(f"{n} ")
print("all steps done")
sys.exit(int(sys.argv[3]))
"""


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """A folder with the stub on the PATH, and the log of its commands."""
    program = tmp_path / "bin" / "gcloud"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {STUB} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/local/bin:/usr/bin:/bin")
    monkeypatch.setenv("STUB", str(tmp_path))
    monkeypatch.setenv("DIFFUSSM_PYTHON", sys.executable)  # nothing is installed on the hosts
    return tmp_path


def call(action, *flags, job=()):
    command = ["--", *map(str, job)] if job else []
    return tpu_vm.main(
        [
            action,
            "--name=church",
            "--zone=us-west4-a",
            "--poll=0.2",
            "--timeout=20",
            *flags,
            *command,
        ]
    )


def commands(stub, verb) -> list[list[str]]:
    lines = (stub / "log").read_text().splitlines()
    return [words for words in map(json.loads, lines) if words[3] == verb]


def job(stub, *, seconds=0.0, code=0):
    return [sys.executable, "-c", JOB, stub / "done", seconds, code]


def test_a_job_runs_on_every_host_and_nothing_is_left(stub, capfd):
    assert call("run", job=job(stub)) == 0
    assert call("status") == 0
    assert len(re.findall("diffussm-job .* ended 0", capfd.readouterr().err)) == 2
    assert call("logs") == 0
    assert "all steps done" in capfd.readouterr().out
    assert call("delete") == call("delete") == 0
    assert list((stub / "resources").iterdir()) == []


def test_a_slice_that_was_taken_back_is_made_again_and_the_job_goes_on(stub, capfd):
    launcher = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "launch.tpu_vm",
            "run",
            "--name=church",
            "--zone=z",
            "--spot",
            "--poll=0.2",
            "--",
            *map(str, job(stub, seconds=0.7)),
        ]
    )
    deadline = time.monotonic() + 30
    while not (stub / "done").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    (stub / "preempt").touch()
    assert launcher.wait(timeout=60) == 0
    assert "started again: the slice was taken back" in capfd.readouterr().err
    assert len(commands(stub, "create")) == 2
    assert all("--spot" in words for words in commands(stub, "create"))
    steps = (stub / "done").read_text().split()
    assert len(steps) >= 3
    assert steps.count("0") <= 2  # once a host: the second job did not start over


def test_create_twice_creates_once(stub):
    assert call("create") == call("create") == 0
    assert len(commands(stub, "create")) == 1


def test_a_failure_ends_with_its_code_and_last_lines(stub, capfd):
    assert call("run", job=job(stub, code=7)) == 7
    captured = capfd.readouterr()
    assert "exit code 7" in captured.err
    assert "all steps done" in captured.out


def test_stop_lets_the_job_save(stub):
    """The job gets SIGTERM, saves and ends with 75; who watches it does not start it again."""
    saving = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        "open(sys.argv[1], 'w')\n"
        "time.sleep(60)"
    )
    launcher = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "launch.tpu_vm",
            "run",
            "--name=church",
            "--zone=z",
            "--poll=0.2",
            "--",
            sys.executable,
            "-c",
            saving,
            str(stub / "ready"),
        ]
    )
    deadline = time.monotonic() + 30
    while not (stub / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    assert call("stop") == 0
    assert launcher.wait(timeout=30) == 143


def test_wrong_use_is_one_line(stub, capfd):
    for flags, message in (
        (["--type=v9-4"], "--type must be like v5e-16"),
        (["--type=v5e"], "--type must be like v5e-16"),
    ):
        assert call("create", *flags) == 2
        assert message in capfd.readouterr().err
    assert call("run") == 2
    assert "needs a command" in capfd.readouterr().err
    assert call("status") == 0
    assert call("logs") == 2
    assert "NOT_FOUND" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--type=v5e-16"],
            [
                "--accelerator-type=v5litepod-16",
                "--runtime-version=v2-alpha-tpuv5-lite",
                "--node-id=church",
            ],
        ),
        (
            ["--type=v4-32", "--reserved"],
            ["--accelerator-type=v4-32", "--runtime-version=tpu-ubuntu2204-base", "--reserved"],
        ),
        (["--type=v6e-256", "--num_slices=2"], ["--node-count=2", "--node-prefix=church"]),
    ],
)
def test_dry_run_prints_the_commands_and_runs_nothing(stub, capfd, flags, words):
    assert call("run", "--dry_run", *flags, job=["python", "-c", "a b"]) == 0
    create, *rest = [x for x in capfd.readouterr().out.splitlines() if " describe " not in x]
    assert set(words) <= set(create.split())
    assert not (stub / "log").exists()
    assert "bash remote.sh start python -c" in rest[-1]


def test_the_jobset_fills_its_slice():
    """Four chips a host, as many pods as hosts, and a pod that needs no more than its host has."""
    manifest = yaml.safe_load((LAUNCH / "jobset.yaml").read_text())
    (slices,) = manifest["spec"]["replicatedJobs"]
    pods = slices["template"]["spec"]
    pod = pods["template"]["spec"]
    rows, columns = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    (container,) = pod["containers"]
    chips = container["resources"]["limits"]["google.com/tpu"]
    assert chips == container["resources"]["requests"]["google.com/tpu"] == 4
    assert pods["parallelism"] == pods["completions"] == int(rows) * int(columns) // chips
    assert pods["backoffLimit"] == 0
    assert manifest["spec"]["failurePolicy"]["maxRestarts"] > 0
    assert container["command"][:3] == ["python", "-m", "diffussm_jax.main"]


def test_every_flag_is_in_the_table():
    with pytest.raises(ValueError, match="--preemptible is not among the flags"):
        gcloud.build(f"{gcloud.QUEUED}/create", "x", preemptible=True)
