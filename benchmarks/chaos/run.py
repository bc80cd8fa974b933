"""A run in a process of its own, forked from this one, that is ended from outside."""

import argparse
import copy
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

import diffussm_jax.train  # noqa: F401 - imported once, before all forks
from diffussm_jax import main as command_line

FIELDS = {
    "model.depth": 1,
    "model.width": 16,
    "model.state_size": 4,
    "training.batch_size": 16,
    "training.log_every": 1,
    "training.eval_every": 50,
    "training.eval_batches": 1,
    "training.sample_every": 10**6,
    "checkpoint.every": 5,
    "checkpoint.keep": 2,
    "sample.num": 4,
    "sample.batch_size": 4,
    "sample.steps": 2,
}
FLOW = {
    "diffusion.process": "flow",
    "diffusion.variance": "none",
    "diffusion.time_sampling": "logit_normal",
    "sample.sampler": "euler",
    "sample.cfg_scale": 1.0,
}
# What is trained: changes of configs/digits.py.
RECIPES: dict[str, dict[str, Any]] = {
    "ddpm": {},
    "flow": FLOW,
    "mean_flow": FLOW
    | {
        "diffusion.process": "mean_flow",
        "diffusion.weighting": "adaptive",
        "guidance.max_scale": 3.0,
    },
    "muon": {
        "optimizer.name": "muon",
        "optimizer.schedule": "warmup_stable_decay",
        "optimizer.warmup_steps": 5,
        "optimizer.decay_steps": 40,
    },
}
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
}
PATIENCE = 600.0  # seconds that a run may take until it is ended
Line = dict[str, float]
_FORK = multiprocessing.get_context("fork")


class Run:
    """One work directory, and the process that trains in it, if there is one now."""

    def __init__(self, folder: Path, options: argparse.Namespace, *, processes: int = 1):
        self.folder, self._processes = folder, processes
        self.log = folder.with_suffix(".log")
        shutil.rmtree(folder, ignore_errors=True)
        fields = FIELDS | RECIPES[options.recipe]
        fields |= {
            "training.num_steps": options.num_steps,
            "compilation_cache_dir": options.folder / "compiled",
        }
        if options.data_dir is not None:
            fields["data.data_dir"] = options.data_dir
        self._command = [
            "-m",
            "diffussm_jax.main",
            "--config=configs/digits.py",
            f"--workdir={folder}",
        ]
        self._command += [f"--config.{k}={v}" for k, v in fields.items()]

    def start(self, num_devices: int = 1) -> None:
        """Start a process that trains, or goes on training."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self.log.unlink(missing_ok=True)  # of the process before
        work = _run_main if self._processes == 1 else _run_job
        arguments = (self._command, self.log, self._processes, num_devices)
        self.process = _FORK.Process(target=work, args=arguments)
        self.process.start()
        self._deadline = time.monotonic() + PATIENCE

    def rival(self) -> "Run":
        """A second process for the same work directory."""
        other = copy.copy(self)
        other.log = self.folder.with_suffix(".rival.log")
        return other

    def wait(self) -> int | None:
        """Wait for the end of the process; give its exit code."""
        self.process.join()
        return self.process.exitcode

    def finish(self) -> None:
        """Let the process run to its end, which must be a good one."""
        if code := self.wait():
            self._fail(f"ended with {code}")

    def lines(self) -> list[Line]:
        """Read the metrics so far, without a line that is still being written."""
        path = self.folder / "metrics.jsonl"
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        return [json.loads(line) for line in text.split("\n")[:-1]]

    def step(self) -> int:
        """The last step in the metrics so far."""
        return int(max((line["step"] for line in self.lines()), default=0))

    def log_text(self) -> str:
        """What the process has said so far."""
        return self.log.read_text(encoding="utf-8") if self.log.exists() else ""

    def await_start(self) -> int:
        """Wait until the process trains; give the step that it goes on from."""
        while "step " not in (text := self.log_text()):
            self._keep_waiting()
        resumed = text.partition("resuming from step ")[2]
        return int(resumed.split()[0]) if resumed else 0

    def await_step(self, step: int) -> None:
        """Wait until the metrics have a step."""
        while self.step() < step:
            self._keep_waiting()

    def await_write(self) -> None:
        """Wait until a checkpoint is being written."""
        while not self.unfinished():
            self._keep_waiting()

    def unfinished(self) -> list[str]:
        """The checkpoints that are begun and not complete."""
        folder = self.folder / "checkpoints"
        paths = list(folder.iterdir()) if folder.exists() else []
        return [p.name for p in paths if not (p / "manifest.json").exists()]

    def _keep_waiting(self) -> None:
        if self.process.exitcode is not None:
            self._fail(f"ended by itself with {self.process.exitcode}")
        if time.monotonic() > self._deadline:
            self._fail(f"waits for more than {PATIENCE:g} s")
        time.sleep(0.001)

    def _fail(self, what: str) -> None:
        raise SystemExit(f"error: {self.folder} {what}:\n{self.log_text()[-3000:]}")

    def child(self, index: int) -> int:
        """The process id of one process of the job."""
        variable = f"JAX_PROCESS_ID={index}".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                is_child = (
                    f"PPid:\t{self.process.pid}\n".encode() in (folder / "status").read_bytes()
                )
                if is_child and variable in (folder / "environ").read_bytes().split(b"\0"):
                    return int(folder.name)
            except OSError:
                continue
        raise SystemExit(f"error: process {index} of {self.folder} is gone")


def _run_main(command: list[str], log: Path, processes: int, devices: int) -> None:
    """Do in a fork what `python command` does."""
    _write_to(log)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    sys.argv = command[1:]
    command_line.run()


def _run_job(command: list[str], log: Path, processes: int, devices: int) -> None:
    _write_to(log)
    launcher = [
        "-m",
        "launch.local",
        f"--processes={processes}",
        f"--devices={devices}",
        "--",
        sys.executable,
    ]
    os.execv(sys.executable, [sys.executable, *launcher, *command])


def _write_to(log: Path) -> None:
    with log.open("w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def in_fork(function: Callable, *arguments: Any) -> None:
    """Run a function that uses JAX, which this process must not start before it forks.

    Ends the program if the function fails.
    """
    process = _FORK.Process(target=function, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(process.exitcode)
