"""One job at a time in a folder: who is refused, and when the folder is free again."""

import dataclasses
import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from diffussm_jax.errors import UserError
from diffussm_jax.workdir import lock
from tests.fuzz.one_line import error_of

HOLDER = """
import pathlib, sys, time
from diffussm_jax.workdir.lock import held
with held(pathlib.Path(sys.argv[1]), named="it"):
    print("held", flush=True)
    time.sleep(600)
"""


def hold(folder):
    with lock.held(folder, named=f"--workdir={folder}"):
        pass


def test_the_second_job_is_refused_in_a_line_that_names_the_first(tmp_path):
    with lock.held(tmp_path / "run", named="it"):
        line = error_of(lambda: hold(tmp_path / "run"))
        assert f"--workdir={tmp_path / 'run'} is in use by process {os.getpid()} on " in line
        with lock.held(tmp_path / "run" / "samples", named="it"):
            pass  # outputs of another kind
    hold(tmp_path / "run")
    assert not list(tmp_path.rglob(".lock"))


@pytest.mark.slow
def test_the_death_of_the_holder_frees_the_folder(tmp_path):
    command = [sys.executable, "-c", HOLDER, tmp_path]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    assert f"process {holder.pid} on " in error_of(lambda: hold(tmp_path))
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    began = time.monotonic()
    hold(tmp_path)
    assert time.monotonic() - began < 1


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file" / "run", tmp_path / "a\0b"):
        assert "cannot be written" in error_of(lambda path=path: hold(path))


@pytest.fixture
def ended(monkeypatch):
    """Leases on a file system without locks, soon over; set where one ends its process."""

    def flock(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    for name, seconds in (("RENEWAL", 0.05), ("EXPIRY", 20.0), ("SETTLING", 0.2)):
        monkeypatch.setattr(lock, f"{name}_SECONDS", seconds)
    event = threading.Event()
    monkeypatch.setattr(lock, "_end", lambda named, owner: event.set())
    return event


def test_a_lease_is_held_as_long_as_it_is_renewed(ended, tmp_path):
    with lock.held(tmp_path, named="it"):
        assert "is in use by process" in error_of(lambda: hold(tmp_path))
        assert "is in use by process" in error_of(lambda: hold(tmp_path))
    hold(tmp_path)
    assert not list(tmp_path.iterdir())
    assert not ended.is_set()


def test_a_lease_that_nobody_renews_is_free_after_a_while(ended, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "EXPIRY_SECONDS", 0.3)
    left = lock._this_process()
    (tmp_path / ".lock").write_text(lock._describe(left))
    began = time.monotonic()
    hold(tmp_path)
    assert time.monotonic() - began > lock.EXPIRY_SECONDS
    monkeypatch.setattr(lock, "EXPIRY_SECONDS", 3600.0)
    hours_ago = dataclasses.replace(left, renewed=time.time() - 7200)
    for text in ("torn", lock._describe(hours_ago)):
        (tmp_path / ".lock").write_text(text)
        hold(tmp_path)


def test_of_those_who_claim_a_lease_at_once_one_has_it(ended, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "SETTLING_SECONDS", 1.0)
    outcomes, barrier, is_over = [], threading.Barrier(4), threading.Event()

    def claim():
        barrier.wait()
        try:
            with lock.held(tmp_path, named="it"):
                outcomes.append("held")
                is_over.wait(60)
        except UserError:
            outcomes.append("refused")

    claimants = [threading.Thread(target=claim) for _ in range(4)]
    for claimant in claimants:
        claimant.start()
    while len(outcomes) < 4:
        time.sleep(0.01)
    is_over.set()
    for claimant in claimants:
        claimant.join()
    assert sorted(outcomes) == ["held", "refused", "refused", "refused"]


def test_who_finds_the_lease_taken_over_ends(ended, tmp_path):
    with lock.held(tmp_path, named="it"):
        (tmp_path / ".lock").write_text(lock._describe(lock._this_process()))
        assert ended.wait(20)
