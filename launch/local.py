"""Several processes of one job on this machine.

python -m launch.local --processes 4 [--devices 2] -- <command>

The processes find each other by the environment variables that `diffussm_jax.main` reads. Signals
go to all of them; when one fails all end, and its last lines are shown.
"""

import argparse
import collections
import os
import signal
import socket
import subprocess
import sys
import threading
import time

LAST_LINES = 20
PATIENCE_SECONDS = 15.0  # to end without a signal, and then to end after SIGTERM


def main() -> int:
    """Run the command line; return the exit code of the first process that failed, or 0."""
    arguments = _parse()
    try:
        children = _start(arguments.command, arguments.processes, arguments.devices)
    except OSError as error:  # of the first; the others are no different
        sys.stderr.write(f"error: {arguments.command[0]} cannot be run: {error.strerror}\n")
        return 2
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: _signal(children, received))
    failed = _wait(children)
    if failed is None:
        return 0
    code = failed.process.returncode
    how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
    lines = "".join(f"  {x.decode(errors='replace')}" for x in failed.last) or "  (none)\n"
    name = f"process {failed.index} of {len(children)}"
    sys.stderr.write(f"error: {name} was ended {how}; its last lines:\n{lines}")
    return 128 - code if code < 0 else code


class Child:
    """One process of the job, whose output is passed on line by line.

    Attributes:
        last: its last lines.
    """

    def __init__(self, index: int, command: list[str], environment: dict[str, str]):
        self.index = index
        self.last: collections.deque[bytes] = collections.deque(maxlen=LAST_LINES)
        self.process = subprocess.Popen(
            command,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a terminal's Ctrl-C reaches it once, through this process
        )
        self._reader = threading.Thread(target=self._pass_on, daemon=True)
        self._reader.start()

    def _pass_on(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.last.append(line)
            sys.stdout.buffer.write(line)  # as it is, in whatever encoding
            sys.stdout.flush()

    def finish_reading(self) -> None:
        """Wait until the rest of its output is passed on."""
        self._reader.join(timeout=5)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m launch.local", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("--processes", type=int, required=True)
    parser.add_argument(
        "--devices", type=int, help="CPU devices of each process; default: what the machine has"
    )
    parser.add_argument("command", nargs="+", help="after --")
    arguments = parser.parse_args()
    for name in ("processes", "devices"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            parser.error(f"--{name} must be at least 1, got {value}")
    return arguments


def _start(command: list[str], num: int, num_devices: int | None) -> list[Child]:
    environment = {
        "JAX_COORDINATOR_ADDRESS": f"localhost:{free_ports()}",
        "JAX_NUM_PROCESSES": str(num),
    }
    if num_devices is not None:
        environment |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(num_devices)}
    return [
        Child(index, command, environment | {"JAX_PROCESS_ID": str(index)}) for index in range(num)
    ]


def free_ports() -> int:
    """Find two consecutive free ports, for JAX and for the roll call; return the first."""
    while True:
        with socket.create_server(("", 0)) as first:
            port = first.getsockname()[1]
            try:
                with socket.create_server(("", port + 1)):
                    return port
            except (OSError, OverflowError):
                continue


def _wait(children: list[Child]) -> Child | None:
    """Wait until all have ended and return the first that failed.

    After a failure the others may end by themselves for a while; then they are made to.
    """
    failed, since = None, 0.0
    while running := [child for child in children if child.process.poll() is None]:
        if failed is None:
            failed = _first_failed(children)
            since = time.monotonic()
        elif time.monotonic() - since > 2 * PATIENCE_SECONDS:
            _signal(running, signal.SIGKILL)
        elif time.monotonic() - since > PATIENCE_SECONDS:
            _signal(running, signal.SIGTERM)
        time.sleep(0.05)
    for child in children:
        child.finish_reading()
    return failed or _first_failed(children)


def _first_failed(children: list[Child]) -> Child | None:
    return next((child for child in children if child.process.poll()), None)


def _signal(children: list[Child], number: int) -> None:
    for child in children:
        if child.process.poll() is None:
            child.process.send_signal(number)


if __name__ == "__main__":
    sys.exit(main())
