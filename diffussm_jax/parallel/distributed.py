"""A job of several processes: which they are, and how they start and end together."""

import contextlib
import logging
import os
import time
import traceback
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

from diffussm_jax.errors import UserError
from diffussm_jax.parallel.roll_call import Processes, RollCall
from diffussm_jax.parallel.stop_point import StopPoint

logger = logging.getLogger(__name__)

# The environment variable that serves where a flag is not given.
VARIABLES = {
    "coordinator_address": "JAX_COORDINATOR_ADDRESS",
    "num_processes": "JAX_NUM_PROCESSES",
    "process_id": "JAX_PROCESS_ID",
}
# When a process dies, the others fail in a collective. They wait this long before they show that
# error, in which time the roll call names the one that died and ends them.
OBITUARY_SECONDS = 2.0


def find_processes(given: dict[str, str | int | None], *, timeout: float) -> Processes | None:
    """Find the job that this process belongs to; None if it runs alone.

    Flags describe the job, then the environment, then Cloud TPU's metadata.

    Args:
        given: values of flags, by the names in `VARIABLES`.
        timeout: seconds in which the name of a slice's process 0 must resolve.

    Raises:
        UserError: a part of the description is missing or not a number.
    """
    values = {
        name: given.get(name) if given.get(name) is not None else os.environ.get(variable)
        for name, variable in VARIABLES.items()
    }
    if missing := [name for name, value in values.items() if value is None]:
        if len(missing) < len(VARIABLES):
            raise UserError(
                f"--{missing[0]} (or {VARIABLES[missing[0]]}) is missing: a job of several "
                f"processes needs {', '.join('--' + name for name in VARIABLES)}"
            )
        return _find_tpu_slice(timeout)
    return _parse_processes(values)


def _parse_processes(values: dict[str, Any]) -> Processes | None:
    coordinator = str(values["coordinator_address"])
    _, colon, port = coordinator.rpartition(":")
    if not colon or not port.isdecimal():
        raise UserError(
            f"--coordinator_address must be host:port of process 0, got {coordinator!r}"
        )
    try:
        num, index = int(values["num_processes"]), int(values["process_id"])
    except ValueError as error:
        raise UserError(f"--num_processes and --process_id: {error}") from error
    if not 0 <= index < num:
        raise UserError(f"--process_id must be below {num}, got {index}")
    return Processes(coordinator, num, index) if num > 1 else None


def _find_tpu_slice(timeout: float) -> Processes | None:
    """Read Cloud TPU's variables (GKE) or metadata (GCE); None for a single host.

    JAX reads them without a private import only while it connects the processes, and then names
    nobody who is missing. tests/test_packaging.py watches what this takes from JAX.
    """
    from jax._src.clusters.cloud_tpu_cluster import GceTpuCluster, GkeTpuCluster

    for cluster in (GkeTpuCluster, GceTpuCluster):
        try:
            if cluster.is_env_present() and (num := cluster.get_process_count()) > 1:
                address = cluster.get_coordinator_address(int(timeout), None)
                return Processes(address, num, cluster.get_process_id())
        except (OSError, RuntimeError, LookupError, ValueError) as error:
            logger.warning(
                "Cloud TPU's metadata cannot be read (%r): this process runs alone, which is right "
                "on Colab. On a slice of several hosts name the processes by "
                "--coordinator_address, --num_processes and --process_id",
                error,
            )
    return None


_joined: list[RollCall] = []  # the job of this process, if it is in one


def stop_point() -> StopPoint | None:
    """The point at which the job's processes stop together; None where this one is alone."""
    return _joined[0].stop_point if _joined else None


def is_first() -> bool:
    """Whether this process is the one that writes for all; of one alone no device is touched."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def follow_first(name: str) -> None:
    """Let the first process pass a point of this name before the others, which wait for it.

    No device is touched: a collective would not wait longer than half a minute on CPUs.
    """
    if _joined:
        _joined[0].follow(name)


def wait_for_all(name: str) -> None:
    """Wait until every process has reached the point of this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def joined(processes: Processes | None, *, timeout: float) -> Iterator[None]:
    """Join the processes of a job: JAX sees the devices of all, and the death of one ends them all.

    An exception ends this process at once, with exit code 1 or that of a SystemExit. JAX would wait
    at exit for processes that may hang in a collective.

    Raises:
        UserError: processes are missing after `timeout` seconds.
    """
    if processes is None:
        yield
        return
    roll_call = RollCall(processes, timeout=timeout)
    _joined[:] = [roll_call]
    # JAX's own service would take SIGTERM from preemption.py, which handles second signals too.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        processes.coordinator,
        processes.num,
        processes.index,
        initialization_timeout=int(timeout),
        cluster_detection_method="deactivate",  # everything that it would detect is given
    )
    try:
        yield
    except SystemExit as end:
        if end.code:
            code = end.code if isinstance(end.code, int) else 1
            # A process that ends because of another one's mistake has made none itself.
            roll_call.leave(f"exit code {code}", code=1 if code == 2 else code)
            os._exit(code)
        raise
    except BaseException as error:  # noqa: BLE001 - it ends the process
        time.sleep(OBITUARY_SECONDS)
        traceback.print_exc()
        roll_call.leave(f"{type(error).__name__}: {error}")
        os._exit(1)
    roll_call.leave()
