"""Jobs of several processes on this machine.

They compute the numbers of one process, and all end when one is missing or dies.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from configs import digits
from diffussm_jax.errors import UserError
from diffussm_jax.parallel.distributed import find_processes
from diffussm_jax.parallel.roll_call import Processes
from diffussm_jax.sampling.model import load
from launch.local import free_ports
from tests.jobs import child_of, command, environment, metrics, run, start_all, wait_for_steps
from tests.teachers import DIT, write_teacher


def compare(workdir: Path, data_dir: str, num_processes: int, num_devices: int, **changes):
    """A job's losses, EMA and sample grid are those of one process with as many devices."""
    num_steps = changes["training.num_steps"]
    one, several = workdir / "one", workdir / "several"
    alone = run(
        command(one, data_dir, **changes), JAX_NUM_CPU_DEVICES=str(num_processes * num_devices)
    )
    assert alone.returncode == 0, alone.stderr
    launcher = [sys.executable, "-m", "launch.local", f"--processes={num_processes}"]
    launcher += [f"--devices={num_devices}", "--"]
    together = run([*launcher, *command(several, data_dir, **changes)])
    assert together.returncode == 0, together.stdout[-3000:] + together.stderr
    for ours, theirs in zip(metrics(several), metrics(one), strict=True):
        for name in ("loss", "grad_norm"):
            if name in theirs:
                np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5)
    grid = f"samples/step_{num_steps:07d}.png"
    assert (several / grid).read_bytes() == (one / grid).read_bytes()
    ours, theirs = load(several), load(one)
    assert ours.step == theirs.step == num_steps
    leaves = [_flat(model.params) for model in (ours, theirs)]
    np.testing.assert_allclose(*leaves, rtol=1e-5, atol=1e-6)


def _flat(tree) -> np.ndarray:
    import jax

    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


GATES = """
import sys, time
from diffussm_jax.parallel.roll_call import Processes, RollCall

address, index = sys.argv[1], int(sys.argv[2])
call = RollCall(Processes(address, 2, index), timeout=60.0)
for gate in ("b", "a", "a") if index == 0 else ("a", "b", "a"):
    if index == 0:
        time.sleep(0.5)
        print(time.monotonic())
    call.follow(gate)
    if index == 1:
        print(time.monotonic())
call.leave()
"""


def test_the_others_pass_a_gate_after_the_first():
    """Each of its gates once, also where they come to one late; no device is touched."""
    address = f"localhost:{free_ports()}"
    words = [sys.executable, "-c", GATES, address]
    jobs = [subprocess.Popen([*words, index], stdout=subprocess.PIPE, text=True) for index in "01"]
    first, other = ([float(x) for x in job.communicate()[0].split()] for job in jobs)
    assert [job.returncode for job in jobs] == [0, 0]
    assert other[0] > first[1] and other[1] < first[2] < other[2]


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path, data_dir):
    compare(tmp_path, data_dir, 2, 2, **{"training.num_steps": 4, "mesh.fsdp": 2})


@pytest.mark.slow
def test_two_processes_learn_from_a_teacher_as_one(tmp_path, data_dir):
    """The teacher is sharded as the student is, and each process reads its own part."""
    values = digits.get_config().to_dict()
    model = values["model"] | DIT | {"depth": 1, "state_size": 4}
    write_teacher(tmp_path / "teacher", model=model, diffusion=values["diffusion"])
    student = {"model.name": "dit", "model.mixer": "s4d", "model.num_heads": 2}
    student |= {"training.teacher": tmp_path / "teacher", "training.num_steps": 4, "mesh.fsdp": 2}
    compare(tmp_path, data_dir, 2, 2, **student)
    assert all("distill_output" in line for line in metrics(tmp_path / "several") if "loss" in line)


@pytest.mark.slow
def test_two_processes_sample_what_one_does(tmp_path, data_dir):
    """Each draws its ranges on its own devices; with the same microbatch the npz is the same."""
    training = command(tmp_path, data_dir, **{"training.num_steps": 2, "mesh.fsdp": 2})
    launcher = [sys.executable, "-m", "launch.local", "--processes=2", "--devices=2"]
    job = {"sample.microbatch": 4, "sample.num": 40, "sample.labels": "random"}
    sampling = [*command(tmp_path, data_dir, **job), "--mode=sample"]
    samples, written = tmp_path / "samples", []
    for line in (training, sampling):
        together = run([*launcher, "--", *line])
        assert together.returncode == 0, together.stdout[-3000:] + together.stderr
    written.append((samples / "samples.npz").read_bytes())
    assert len(list((samples / "parts").glob("images-*.npy"))) == 3
    samples.rename(tmp_path / "before")
    alone = run([*sampling, "--config.mesh.fsdp=1"])
    assert alone.returncode == 0, alone.stderr
    written.append((samples / "samples.npz").read_bytes())
    assert written[0] == written[1]


@pytest.mark.slow
@pytest.mark.nightly
def test_four_processes_train_the_demo_as_one(tmp_path, data_dir):
    demo = {
        "model.depth": 4,
        "model.width": 64,
        "model.state_size": 16,
        "training.batch_size": 32,
        "training.num_steps": 20,
        "sample.num": 100,
        "sample.batch_size": 100,
        "sample.steps": 50,
    }
    compare(tmp_path, data_dir, 4, 2, **demo)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.nightly)])
def test_when_one_is_killed_all_end_and_name_it(tmp_path, data_dir, victim):
    long = {"training.num_steps": 10**6, "training.sample_every": 10**9}
    children = start_all(command(tmp_path, data_dir, **long), 2 if victim == 0 else 4)
    try:
        wait_for_steps(tmp_path, 3, children[victim])
        children[victim].kill()
        killed = time.monotonic()
        for index, child in enumerate(children):
            output = child.communicate(timeout=60)[0]
            assert child.returncode != 0
            if index != victim:
                assert f"process {victim} (" in output or "leader" in output
        assert time.monotonic() - killed < 60
    finally:
        for child in children:
            child.kill()


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, pytest.param(2, marks=pytest.mark.nightly)])
def test_the_launcher_ends_all_and_shows_the_last_lines_of_the_killed(tmp_path, data_dir, victim):
    long = command(tmp_path, data_dir, **{"training.num_steps": 10**6})
    launcher = [sys.executable, "-m", "launch.local", "--processes=4", "--devices=2"]
    job = subprocess.Popen(
        [*launcher, "--", *long],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_for_steps(tmp_path, 3, job)
        os.kill(child_of(job.pid, f"JAX_PROCESS_ID={victim}"), signal.SIGKILL)
        output = job.communicate(timeout=60)[0]
    finally:
        job.kill()
    assert job.returncode == 128 + signal.SIGKILL
    assert f"error: process {victim} of 4 was ended by SIGKILL; its last lines:" in output


@pytest.mark.parametrize(
    ("present", "missing"), [([0, 2], "of 3 processes, 1 did"), ([1, 2], "process 0 (localhost:")]
)
def test_a_missing_process_is_named_within_the_time(tmp_path, present, missing):
    started = time.monotonic()
    children = start_all(
        [*command(tmp_path, str(tmp_path)), "--start_timeout=4"], 3, indices=present
    )
    outputs = [child.communicate(timeout=60)[0] for child in children]
    assert time.monotonic() - started < 40
    for child, output in zip(children, outputs):
        assert child.returncode == 2
        assert f"error: {missing}" in output
        assert "not start within 4 s" in output


@pytest.mark.slow
def test_an_error_of_one_process_ends_the_others(tmp_path, data_dir):
    """The second process refuses its config; the first would wait for it in a collective."""
    address = f"localhost:{free_ports()}"
    children = [
        subprocess.Popen(
            command(tmp_path, folder),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment(
                JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES="2", JAX_PROCESS_ID=str(index)
            ),
        )
        for index, folder in enumerate([data_dir, "/proc/nowhere"])
    ]
    outputs = [child.communicate(timeout=120)[0] for child in children]
    assert [child.returncode for child in children] == [1, 2]
    assert "error: config.data.data_dir" in outputs[1]
    assert "ended: exit code 2; process 0 ends" in outputs[0]


def test_flags_and_variables_say_who_a_process_is(monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "a:1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "3")
    processes = find_processes({"process_id": 2}, timeout=1.0)
    assert processes == Processes("a:1", 3, 2)
    assert find_processes({"process_id": 0, "num_processes": 1}, timeout=1.0) is None
    for changes, message in (
        ({}, "--process_id"),
        ({"process_id": 3}, "below 3"),
        ({"process_id": 1, "coordinator_address": "a"}, "host:port"),
        ({"process_id": 1, "num_processes": "x"}, "--num_processes"),
    ):
        with pytest.raises(UserError, match=message):
            find_processes(changes, timeout=1.0)


@pytest.mark.slow
def test_two_processes_of_one_number_are_named(tmp_path):
    children = start_all(
        [*command(tmp_path, str(tmp_path)), "--start_timeout=30"], 3, indices=[0, 1, 1]
    )
    outputs = [child.communicate(timeout=60)[0] for child in children]
    host = socket.gethostname()
    text = f"process 1 was started twice, on {host} and on {host}"
    assert text in outputs[0]
    assert all(child.returncode == 2 for child in children)


def test_a_command_that_cannot_be_run_is_one_line(tmp_path):
    for name in ("no_such_command", str(tmp_path)):
        result = run([sys.executable, "-m", "launch.local", "--processes=2", "--", name])
        assert result.returncode == 2
        assert result.stderr.startswith(f"error: {name} cannot be run: ")
        assert result.stderr.count("\n") == 1


def test_output_is_passed_on_in_any_encoding():
    program = "import sys; sys.stdout.buffer.write(b'caf\\xe9 \\xc3\\xa9\\n')"
    words = [sys.executable, "-m", "launch.local", "--processes=1", "--", sys.executable, "-c"]
    variables = environment(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    result = subprocess.run([*words, program], env=variables, capture_output=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"caf\xe9 \xc3\xa9\n", b"")
