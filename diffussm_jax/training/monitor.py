"""Steps whose loss or gradient is not finite, and losses far above those before them."""

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diffussm_jax.config import Config
from diffussm_jax.data.pipeline import example_indices
from diffussm_jax.errors import NonFiniteError
from diffussm_jax.training.step import max_skipped

logger = logging.getLogger(__name__)

WINDOW = 200  # losses that a spike is compared with
MIN_LOSSES = 50  # before that the loss falls fast and nothing is said
# The median absolute deviation of a normal distribution over its standard deviation
# (Rousseeuw & Croux 1993).
MAD_OF_NORMAL = 0.6745
MIN_SPREAD = 0.01  # of the median: less is never a spike

StepMetrics = Mapping[str, Any]  # numbers by name, on the host


class NumericsMonitor:
    """Watches each step's metrics: warns of skipped updates and loss spikes, or stops the run."""

    def __init__(self, config: Config, runs: Sequence[range]):
        self._config, self._runs = config, runs
        self._losses: deque[float] = deque(maxlen=WINDOW)

    def check(self, first_step: int, steps: Sequence[StepMetrics]) -> list[StepMetrics]:
        """Check consecutive steps, and give the metrics of those whose update was made.

        Raises:
            NonFiniteError: `training.max_nonfinite` updates in a row were dropped, or one where
                `training.on_nonfinite` is "stop".
        """
        made, spikes = [], []
        for step, metrics in enumerate(steps, first_step):
            if metrics["skipped_in_a_row"]:
                self._report_skipped(step, metrics)
                continue
            made.append(metrics)
            loss = float(metrics[self._config.diffusion.told_loss])
            spikes.append((self._deviations(loss), step, metrics))
        if spikes:
            self._report_spike(*max(spikes, key=lambda spike: spike[0]))
        return made

    def examples(self, step: int) -> str:
        """The examples of a step's batch, by their indices in the data."""
        data = self._config.data
        indices = example_indices(self._config, self._runs, step=step - 1)
        name = data.name
        if data.buckets is not None:
            bucket = next(k for k, run in enumerate(self._runs) if indices[0] in run)
            indices = indices - self._runs[bucket].start
            name = f"those of {name} in the bucket {data.buckets[bucket]}"
        return f"examples {', '.join(map(str, indices))} of {name}"

    def _report_skipped(self, step: int, metrics: StepMetrics) -> None:
        bad = [f"{name} is {x}" for name, x in metrics.items() if not np.isfinite(x)]
        text = f"step {step}: {', '.join(bad)}; its batch is {self.examples(step)}"
        in_a_row, total = metrics["skipped_in_a_row"], metrics["skipped"]
        if in_a_row >= max_skipped(self._config.training):
            raise NonFiniteError(f"{text}; {in_a_row} in a row", step=step)
        logger.warning("%s; its update was skipped, %d in a row, %d in all", text, in_a_row, total)

    def _report_spike(self, deviations: float, step: int, metrics: StepMetrics) -> None:
        threshold = self._config.training.spike_threshold
        if threshold is None or deviations <= threshold:
            return
        logger.warning(
            "step %d: loss %.4g is a spike, %.0f robust deviations above the median of the steps "
            "before; gradient norm %.3g; its batch is %s",
            step,
            metrics[self._config.diffusion.told_loss],
            deviations,
            metrics["grad_norm"],
            self.examples(step),
        )

    def _deviations(self, loss: float) -> float:
        """Note a loss; give its robust standard deviations above the median of those before."""
        before = np.asarray(self._losses)
        self._losses.append(loss)
        if len(before) < MIN_LOSSES:
            return 0.0
        median = np.median(before)
        deviation = np.median(np.abs(before - median)) / MAD_OF_NORMAL
        return float((loss - median) / max(deviation, MIN_SPREAD * abs(median)))
