"""Training runs of seconds in processes of their own, for tests that start and end them."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from launch.local import free_ports

TINY = {
    "model.depth": 1,
    "model.width": 16,
    "model.state_size": 4,
    "training.batch_size": 16,
    "training.log_every": 1,
    "training.eval_every": 10**9,
    "training.sample_every": 20,
    "sample.num": 10,
    "sample.batch_size": 16,
    "sample.steps": 2,
}
FAST = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def command(workdir: Path, data_dir: str, **changes) -> list[str]:
    """The command of a training run of the digits, tiny unless changed."""
    fields = TINY | {"data.data_dir": data_dir} | changes
    options = [f"--config.{name}={value}" for name, value in fields.items()]
    program = [sys.executable, "-m", "diffussm_jax.main"]
    return [*program, "--config=configs/digits.py", f"--workdir={workdir}", *options]


def environment(**variables: str) -> dict[str, str]:
    """The environment of a process with one CPU device unless the variables say otherwise."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    return kept | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": FAST} | variables


def run(words: list[str], **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        words, env=environment(**variables), capture_output=True, text=True, check=False
    )


def start_all(words: list[str], num: int, *, indices=None) -> list[subprocess.Popen]:
    """Start the processes of a job as a user's own scripts would."""
    address = f"localhost:{free_ports()}"
    return [
        subprocess.Popen(
            [
                *words,
                f"--coordinator_address={address}",
                f"--num_processes={num}",
                f"--process_id={index}",
            ],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in (range(num) if indices is None else indices)
    ]


def metrics(workdir: Path) -> list[dict]:
    """The lines of a run's log."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def wait_for_steps(workdir: Path, num: int, job: subprocess.Popen) -> None:
    deadline = time.monotonic() + 240
    while not (workdir / "metrics.jsonl").exists() or len(metrics(workdir)) < num:
        assert job.poll() is None, job.communicate()[0]
        assert time.monotonic() < deadline, "the job does not train"
        time.sleep(0.2)


def child_of(parent: int, variable: str) -> int:
    """The process started by another whose environment holds a variable."""
    for folder in Path("/proc").iterdir():
        try:
            is_child = f"PPid:\t{parent}\n" in (folder / "status").read_text()
            if is_child and variable in (folder / "environ").read_text().split("\0"):
                return int(folder.name)
        except OSError:
            continue
    raise AssertionError(f"no process under {parent} with {variable}")
