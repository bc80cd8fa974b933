"""A job of two processes that share nothing but a bucket ends where one on a disk does."""

import hashlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diffussm_jax.files.paths import as_path
from launch.local import free_ports
from tests.jobs import TINY, environment, metrics

ROOT = Path(__file__).parents[2]
FIELDS = TINY | {
    "training.num_steps": 12,
    "training.sample_every": 6,
    "checkpoint.every": 3,
    "mesh.fsdp": 2,
    "sample.num": 24,
    "sample.outputs": "grid,npz,png",
    "evaluate.features": "pixels",
}
TIMINGS = {"images_per_second", "input_wait"}


class Pod:
    """Starts the processes of a job, each with a home, a folder and temporaries of its own."""

    def __init__(self, folder: Path, workdir: str, **variables: str):
        self._folder, self._workdir, self._variables = folder, workdir, variables

    def start(self, mode: str) -> list[subprocess.Popen]:
        address = f"localhost:{free_ports()}"
        fields = FIELDS | {"evaluate.reference": f"{self._workdir}-reference.npz"}
        words = [sys.executable, "-m", "diffussm_jax.main", f"--mode={mode}"]
        words += [f"--config={ROOT}/configs/digits.py", f"--workdir={self._workdir}"]
        words += [f"--config.{name}={value}" for name, value in fields.items()]
        words += [f"--coordinator_address={address}", "--num_processes=2"]
        return [self._start([*words, f"--process_id={i}"], self._folder / str(i)) for i in (0, 1)]

    def _start(self, words: list[str], home: Path) -> subprocess.Popen:
        (home / "tmp").mkdir(parents=True, exist_ok=True)
        own = {"HOME": str(home), "TMPDIR": str(home / "tmp"), "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(
            words,
            cwd=home,
            env=environment(**own, **self._variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *modes: str) -> str:
        """Run modes to their end; the log of the last one."""
        for mode in modes:
            jobs = self.start(mode)
            logs = [job.communicate(timeout=1200)[0] for job in jobs]
            assert [job.returncode for job in jobs] == [0, 0], "\n".join(logs)[-6000:]
        return logs[0]

    def kill_at(self, step: int) -> None:
        """Train until a step is logged in the bucket, and kill both processes."""
        run = as_path(self._workdir)
        jobs = self.start("train")
        deadline = time.monotonic() + 1200
        while not (run / "checkpoints" / str(step) / "manifest.json").exists():
            assert all(job.poll() is None for job in jobs), jobs[0].communicate()[0][-6000:]
            assert time.monotonic() < deadline, "the job does not train"
            time.sleep(0.2)
        for job in jobs:
            job.send_signal(signal.SIGKILL)
            job.communicate()


def results(workdir: str) -> dict[str, object]:
    """What a run has made, but for what is of the hour or the place."""
    run = as_path(workdir)
    files = ["samples/samples.npz", "samples/samples.png", "samples/step_0000012.png"]
    files += ["export/model.safetensors", "export/data.json", "samples/images/000007.png"]
    made: dict[str, object] = {
        name: hashlib.sha256((run / name).read_bytes()).hexdigest() for name in files
    }
    made["reference"] = as_path(f"{workdir}-reference.npz").read_bytes()[-1000:]
    made["log"] = [{k: x[k] for k in x.keys() - TIMINGS} for x in metrics(run)]
    return made


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The results of such a job on a disk."""
    folder = tmp_path_factory.mktemp("disk")
    pod = Pod(folder, str(folder / "run"))
    pod.run("train", "sample", "refstats", "evaluate", "export")
    return results(str(folder / "run"))


@pytest.mark.slow
def test_a_pod_without_a_shared_disk(undisturbed, bucket, storage, tmp_path):
    pod = Pod(tmp_path, f"{bucket}/run", **storage.environment())
    for step in (3, 6):
        pod.kill_at(step)
    pod.run("train", "sample", "refstats", "evaluate", "export")
    assert results(f"{bucket}/run") == undisturbed
    assert not list(tmp_path.rglob("config.json"))


@pytest.mark.slow
def test_the_same_of_a_bucket_that_refuses_and_cuts(undisturbed, bucket, storage, tmp_path):
    pod = Pod(tmp_path, f"{bucket}/run", **storage.environment())
    with (
        storage.failing("", 503, every=13),
        storage.failing("", 429, every=29),
        storage.failing("^GET .*alt=media|^POST /upload", None, every=17),
    ):
        log = pod.run("train", "sample", "refstats", "evaluate", "export")
    assert "trying again" in log
    assert results(f"{bucket}/run") == undisturbed
