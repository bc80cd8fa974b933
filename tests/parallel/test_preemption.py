"""A notice to stop: the work in hand is saved, and the same command goes on from there."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from diffussm_jax.errors import Preempted
from diffussm_jax.parallel.preemption import PreemptionNotice
from tests.jobs import child_of, command, environment, metrics, wait_for_steps


def test_a_notice_is_taken_and_the_handlers_are_put_back():
    before = [signal.getsignal(x) for x in (signal.SIGTERM, signal.SIGINT)]
    with PreemptionNotice() as notice:
        assert not notice.received
        assert not notice.reached()
        os.kill(os.getpid(), signal.SIGINT)
        deadline = time.monotonic() + 10
        while not notice.received and time.monotonic() < deadline:
            time.sleep(0.01)
        assert notice.reached()
    assert before == [signal.getsignal(x) for x in (signal.SIGTERM, signal.SIGINT)]
    with PreemptionNotice() as notice:
        assert not notice.reached(), "an earlier notice is not remembered"


def test_outside_the_main_thread_signals_are_left_alone():
    handlers = []

    def use() -> None:
        with PreemptionNotice() as notice:
            handlers.append(signal.getsignal(signal.SIGTERM))
            assert not notice.reached()

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGTERM)]


BUSY = """
import ctypes, sys
from diffussm_jax.parallel.preemption import PreemptionNotice
with PreemptionNotice() as notice:
    print("ready", flush=True)
    libc = ctypes.CDLL(None)
    while True:
        libc.usleep(10**6)  # as a compilation: without Python's handlers
        print(notice.reached(), flush=True)
"""


def test_a_second_signal_ends_at_once():
    with subprocess.Popen(
        [sys.executable, "-c", BUSY], env=environment(), stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGTERM)
        while child.stdout.readline() != "True\n":
            pass
        child.send_signal(signal.SIGINT)
        assert child.wait(timeout=10) == 128 + signal.SIGINT


LONG = {"training.num_steps": 10**6, "training.sample_every": 10**9, "checkpoint.every": 10**6}


@pytest.mark.slow
@pytest.mark.parametrize("num", [1, 2])
def test_training_saves_its_step_and_goes_on(tmp_path, data_dir, num):
    """Of two processes only the second gets the signal."""
    launcher = [sys.executable, "-m", "launch.local", f"--processes={num}", "--"]
    job = subprocess.Popen(
        [*(launcher if num > 1 else []), *command(tmp_path, data_dir, **LONG)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_for_steps(tmp_path, 3, job)
        os.kill(job.pid if num == 1 else child_of(job.pid, "JAX_PROCESS_ID=1"), signal.SIGTERM)
        output = job.communicate(timeout=60)[0]
    finally:
        job.kill()
    assert job.returncode == Preempted.exit_code, output
    step = metrics(tmp_path)[-1]["step"]
    assert f"preempted: step {step} of 1000000 is saved in {tmp_path}; the same command" in output
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == [str(step)]
    again = command(tmp_path, data_dir, **LONG | {"training.num_steps": step + 2})
    result = subprocess.run(again, env=environment(), capture_output=True, check=False)
    assert result.returncode == 0, result.stderr
    steps = [x["step"] for x in metrics(tmp_path) if "loss" in x]
    assert steps == list(range(1, step + 3))
