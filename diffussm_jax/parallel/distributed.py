"""One job of several processes: who they are, and their start and end together."""

import contextlib
import logging
import os
import time
import traceback
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

from diffussm_jax.errors import UserError
from diffussm_jax.parallel.roll_call import Processes, RollCall
from diffussm_jax.parallel.stop_point import StopPoint

logger = logging.getLogger(__name__)

# Of each part of `Processes`: the flag, and the environment variable where the flag is not given.
NAMES = {
    "coordinator_address": "JAX_COORDINATOR_ADDRESS",
    "num_processes": "JAX_NUM_PROCESSES",
    "process_id": "JAX_PROCESS_ID",
}

NEWS = 2.0  # seconds for the roll call to name who died, where an error comes of that


def find_processes(given: dict[str, str | int | None], *, timeout: float) -> Processes | None:
    """The job that this process is of: from flags, from the environment, or from Cloud TPU's metadata; None if it is alone.

    Args:
        given: values of flags, by the names in `NAMES`.
        timeout: seconds that process 0 of a slice may take to answer to its name.

    Raises:
        UserError: a part is missing or not a number.
    """
    found = {
        name: given.get(name) if given.get(name) is not None else os.environ.get(variable)
        for name, variable in NAMES.items()
    }
    if missing := [name for name, value in found.items() if value is None]:
        if len(missing) < len(NAMES):
            raise UserError(
                f"--{missing[0]} (or {NAMES[missing[0]]}) is missing: a job of several processes needs "
                f"{', '.join('--' + name for name in NAMES)}"
            )
        return _of_a_tpu_slice(timeout)
    return _checked(found)


def _checked(found: dict) -> Processes | None:
    coordinator = str(found["coordinator_address"])
    _, colon, port = coordinator.rpartition(":")
    if not colon or not port.isdecimal():
        raise UserError(
            f"--coordinator_address must be host:port of process 0, got {coordinator!r}"
        )
    try:
        num, index = int(found["num_processes"]), int(found["process_id"])
    except ValueError as error:
        raise UserError(f"--num_processes and --process_id: {error}") from error
    if not 0 <= index < num:
        raise UserError(f"--process_id must be below {num}, got {index}")
    return Processes(coordinator, num, index) if num > 1 else None


def _of_a_tpu_slice(timeout: float) -> Processes | None:
    """What Cloud TPU's metadata say (GCE) or its variables (GKE); None for one host.

    JAX has no public way to ask before it connects, and connecting it names nobody who is missing.
    """
    from jax._src.clusters.cloud_tpu_cluster import GceTpuCluster, GkeTpuCluster

    for cluster in (GkeTpuCluster, GceTpuCluster):
        try:
            if cluster.is_env_present() and (num := cluster.get_process_count()) > 1:
                address = cluster.get_coordinator_address(int(timeout), None)
                return Processes(address, num, cluster.get_process_id())
        except (OSError, RuntimeError, LookupError, ValueError) as error:
            logger.warning(
                "Cloud TPU's metadata cannot be read (%r): this process runs alone, which is right on Colab. On a slice "
                "of several hosts name the processes by --coordinator_address, --num_processes and --process_id",
                error,
            )
    return None


_joined: list[RollCall] = []  # the job of this process, if it is in one


def stop_point() -> StopPoint | None:
    """Where the processes of the job stop together; None where this one is alone."""
    return _joined[0].stop_point if _joined else None


def is_first() -> bool:
    """Whether this process is the one that writes for all."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Wait until every process has come to the point of this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def joined(processes: Processes | None, *, timeout: float) -> Iterator[None]:
    """Inside, JAX sees the devices of every process, and the death of one ends them all with a line that names it.

    An exception ends this process at once, with exit code 1 or the SystemExit's own: JAX would wait at exit for processes
    that may hang in a collective.

    Raises:
        UserError: processes are missing after `timeout` seconds.
    """
    if processes is None:
        yield
        return
    roll_call = RollCall(processes, timeout=timeout)
    _joined[:] = [roll_call]
    # JAX's would take SIGTERM from `preemption.py`, which knows SIGINT and a second signal too.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        processes.coordinator,
        processes.num,
        processes.index,
        initialization_timeout=int(timeout),
        cluster_detection_method="deactivate",  # what it would find is known
    )
    try:
        yield
    except SystemExit as end:
        if end.code:
            code = end.code if isinstance(end.code, int) else 1
            # Of the user's mistakes each process has its own; who is ended by another's has none.
            roll_call.leave(f"exit code {code}", code=1 if code == 2 else code)
            os._exit(code)
        raise
    except BaseException as error:  # noqa: BLE001 - it ends the process
        time.sleep(NEWS)
        traceback.print_exc()
        roll_call.leave(f"{type(error).__name__}: {error}")
        os._exit(1)
    roll_call.leave()
