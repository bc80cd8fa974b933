"""Where a run's numbers go: its loggers, the log and a progress bar."""

import contextlib
import datetime
import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from clu import metric_writers
from tqdm import tqdm

from diffussm_jax.config import Config
from diffussm_jax.files import write_text
from diffussm_jax.files.growing import GrowingFiles
from diffussm_jax.parallel.distributed import is_first
from diffussm_jax.training.monitor import NumericsMonitor
from diffussm_jax.training.wandb_writer import WandbWriter, require_wandb

logger = logging.getLogger(__name__)
T = TypeVar("T")

METRICS_FILE = "metrics.jsonl"
SKIP_COUNTS = {"skipped", "skipped_in_a_row"}
_DTYPES = {float: np.float32, int: np.int32}  # of metrics that come out of a checkpoint


class JsonlWriter(metric_writers.LoggingWriter):
    """Appends each call of `write_scalars` as one JSON line; ignores everything but scalars.

    Lines after `start_step` are dropped first: a resumed run makes those steps again.
    """

    def __init__(self, path: Path, *, start_step: int):
        super().__init__()
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        write_text(path, "".join(line for line in lines if _step_of(line) <= start_step))
        self._file = path.open("a", encoding="utf-8")

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        values = {name: float(value) for name, value in scalars.items()}
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Ignore them."""

    def close(self) -> None:
        self._file.close()


class TrainingLog(contextlib.AbstractContextManager["TrainingLog"]):
    """Collects each step's metrics on the device and reports their means.

    A report is due every `training.log_every` steps; between two of them nothing waits for the
    device. Leaving the context closes the files.

    Args:
        record: record of the checkpoint that the run goes on from.
        runs: those of the data's examples (`pipeline.stacks_of`).
    """

    def __init__(
        self, config: Config, workdir: Path, record: Mapping[str, Any], runs: Sequence[range]
    ):
        start_step: int = record["step"]
        self._config, self._step = config, start_step
        self._monitor = NumericsMonitor(config, runs)
        self._pending: list[dict] = [
            {name: _DTYPES[type(x)](x) for name, x in metrics.items()}
            for metrics in record["unreported"]
        ]
        self._paused, self._waited = _Stopwatch(), _Stopwatch()
        self._since, self._num_timed = 0.0, 0
        num_steps = config.training.num_steps
        self._bar = tqdm(total=num_steps, initial=start_step, disable=not sys.stderr.isatty())
        # Every process has the same numbers.
        self._files = GrowingFiles(workdir)
        writers = list(_writers(config, workdir, self._files, start_step)) if is_first() else []
        self._writer = metric_writers.MultiWriter(writers)

    def __exit__(self, *exception: object) -> None:
        self._bar.close()
        self._writer.flush()
        self._writer.close()
        self._files.close()

    def record(self, metrics: dict[str, jax.Array]) -> None:
        """Take the metrics of the next step; report when a report is due."""
        if self._since:
            self._num_timed += 1
        else:  # the first step of a process is its compilation
            jax.block_until_ready(metrics)
            self._restart()
        self._step += 1
        self._pending.append(metrics)
        self._bar.update()
        if self._step % self._config.training.log_every == 0:
            self.report()

    def report(self) -> None:
        """Write the means over the steps since the last report, without those that were skipped.

        Raises:
            NonFiniteError: too many updates in a row were skipped.
        """
        if not self._pending:
            return
        steps = jax.device_get(self._pending)
        made = self._monitor.check(self._step - len(steps) + 1, steps)
        means = {
            name: float(np.mean([x[name] for x in made]))
            for name in steps[0].keys() - SKIP_COUNTS
            if made
        }
        means["skipped"] = float(steps[-1]["skipped"])
        elapsed = time.perf_counter() - self._since - self._paused.seconds
        if self._num_timed:
            means["input_wait"] = self._waited.seconds / elapsed
            rate = self._num_timed / elapsed
            means["images_per_second"] = rate * self._config.training.batch_size
            self._show_progress(means, (self._config.training.num_steps - self._step) / rate)
        self._writer.write_scalars(self._step, means)
        self._files.send()
        self._pending = []
        self._restart()

    def finish(self) -> None:
        """See to it that what was written is kept, also in a bucket."""
        self._writer.flush()
        self._files.finish()

    def unreported(self) -> list[dict[str, float]]:
        """Metrics of the steps since the last report, to save: a resumed run reports them too."""
        return [
            {name: np.asarray(x).item() for name, x in metrics.items()}
            for metrics in jax.device_get(self._pending)
        ]

    def write(self, scalars: Mapping[str, float], images: Mapping[str, np.ndarray]) -> None:
        """Write what is not metrics of a step, if anything, at the current step.

        Args:
            images: uint8 [h w c], by name.
        """
        if images:
            self._writer.write_images(self._step, images)
        if scalars:
            self._writer.write_scalars(self._step, scalars)
            self._log(", ".join(f"{name} {value:.4f}" for name, value in scalars.items()))

    def pause(self) -> "_Stopwatch":
        """A context whose time does not count towards images per second."""
        return self._paused

    def timed(self, batches: Iterator[T]) -> Iterator[T]:
        """Yield the batches; report the share of time spent waiting for them as `input_wait`."""
        while True:
            with self._waited:
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def _restart(self) -> None:
        self._paused.seconds = self._waited.seconds = 0.0
        self._since, self._num_timed = time.perf_counter(), 0

    def _show_progress(self, means: dict[str, float], seconds_left: float) -> None:
        eta = datetime.timedelta(seconds=round(seconds_left))
        name = self._config.diffusion.told_loss
        loss = means.get(name, float("nan"))  # every step of the report was skipped
        text = f"{name} {loss:.4f}, {means['images_per_second']:.0f} images/s, {eta} left"
        text += f", {means['input_wait']:.1%} of the time waiting for input"
        if self._bar.disable:
            self._log(text)
        else:
            self._bar.set_postfix_str(text)

    def _log(self, text: str) -> None:
        if is_first():
            num_steps = self._config.training.num_steps
            logger.info("step %d of %d: %s", self._step, num_steps, text)


def require_loggers(config: Config) -> None:
    """Raise UserError unless the packages of `training.loggers` are installed."""
    if "wandb" in config.training.loggers:
        require_wandb()


def _writers(
    config: Config, workdir: Path, files: GrowingFiles, start_step: int
) -> Iterator[metric_writers.MetricWriter]:
    loggers = config.training.loggers
    if "jsonl" in loggers:
        yield JsonlWriter(files.fetch(METRICS_FILE), start_step=start_step)
    if "tensorboard" in loggers:
        yield metric_writers.SummaryWriter(str(files.folder))
    if "wandb" in loggers:
        yield WandbWriter(config, workdir, files.folder, start_step=start_step)


class _Stopwatch:
    """A context that adds up the seconds spent inside it."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *exception: object) -> None:
        self.seconds += time.perf_counter() - self._began


def _step_of(line: str) -> int | float:
    """The step of a metrics line; a line torn by a kill counts as later than any step."""
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")
