"""A roll call of a job's processes: it names those that are missing at the start or die later.

JAX's own coordination ends every process too, but its messages name nobody at the start, and a
dead process only after its heartbeats have been missed. Here each process holds a connection to
process 0, over which they send lines of JSON. The system closes it when a process ends, however it
ends.
"""

import json
import os
import socket
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any, TextIO

from diffussm_jax.errors import UserError
from diffussm_jax.parallel.stop_point import StopPoint

GRACE_SECONDS = 5.0  # in which the other processes may end by themselves
# Options of a connection: a peer whose machine is gone is noticed after 10 + 3 * 5 seconds.
KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}


@dataclass(frozen=True)
class Processes:
    """The processes of a job, and which of them this one is.

    Attributes:
        coordinator: host:port of process 0 for JAX; the roll call uses the port after it.
        num: the number of processes.
        index: the number of this one, from 0.
    """

    coordinator: str
    num: int
    index: int


class RollCall:
    """This process's part in the roll call, from its construction until `leave`.

    If another process ends in between with an error, this one ends too.

    Attributes:
        stop_point: the point at which all stop when one gets a notice to.

    Raises:
        UserError: a process did not start in time, or started twice; the message names it.
    """

    def __init__(self, processes: Processes, *, timeout: float):
        self._processes, self._lock = processes, threading.Lock()
        self._peers: dict[int, _Peer] = {}
        self._leaving = False
        self.stop_point = StopPoint(processes.index, processes.num, self._tell)
        self._called, self._passed = Counter[str](), Counter[str]()
        self._has_called = threading.Condition()
        deadline = time.monotonic() + timeout
        if processes.index == 0:
            self._gather(deadline, timeout)
        else:
            self._answer(deadline, timeout)
        self._threads = [
            threading.Thread(target=self._watch, args=(index, peer), daemon=True)
            for index, peer in self._peers.items()
        ]
        for thread in self._threads:
            thread.start()

    def follow(self, name: str) -> None:
        """Pass a gate after process 0 has, however long that takes it; process 0 does not wait.

        A gate is passed as often by the others as by process 0, or less often.
        """
        if self._processes.index == 0:
            self._tell({"called": name})
            return
        with self._has_called:
            self._passed[name] += 1
            self._has_called.wait_for(lambda: self._called[name] >= self._passed[name])

    def leave(self, error: str | None = None, *, code: int = 1) -> None:
        """Tell the others that this process ends; with an error they end too.

        Args:
            error: what this process ends with, if not as it should.
            code: the exit code of the others.
        """
        with self._lock:
            self._leaving = True
        self._tell({"left": self._processes.index, "error": error, "code": code})
        if error is not None and self._processes.index == 0:
            self._let_them_end()

    def _gather(self, deadline: float, timeout: float) -> None:
        """Wait for the others and tell them the result; process 0 does this."""
        port = int(self._processes.coordinator.rpartition(":")[2]) + 1
        others, problem = set(range(1, self._processes.num)), None
        with socket.create_server(("", port), backlog=self._processes.num) as server:
            while others - self._peers.keys() and not problem:
                server.settimeout(max(0.01, deadline - time.monotonic()))
                try:
                    peer = _Peer(server.accept()[0])
                    hello = peer.read(timeout=GRACE_SECONDS)
                except TimeoutError:
                    if time.monotonic() >= deadline:
                        break
                    continue
                problem = self._greet(peer, hello)
        missing = sorted(others - self._peers.keys())
        if missing and not problem:
            names = ", ".join(str(index) for index in missing)
            problem = (
                f"of {self._processes.num} processes, {names} did not start within {timeout:g} s "
                "(--start_timeout): see their logs"
            )
        self._tell({"problem": problem, "host": socket.gethostname()})
        if problem:
            raise UserError(problem)

    def _greet(self, peer: "_Peer", hello: dict[str, Any]) -> str | None:
        """Take a process in, or return what is wrong with it; other connections are ignored."""
        index, num, ours = hello.get("process"), hello.get("num"), self._processes.num
        if not isinstance(index, int):
            return None
        peer.host = str(hello.get("host"))
        if num != ours or not 0 < index < ours:
            return (
                f"process {index} on {peer.host} was started as one of {num}, process 0 as one of "
                f"{ours}"
            )
        if index in self._peers:
            first = self._peers[index].host
            return f"process {index} was started twice, on {first} and on {peer.host}"
        self._peers[index] = peer
        return None

    def _answer(self, deadline: float, timeout: float) -> None:
        """Connect to process 0 and wait for its result; the other processes do this."""
        host, _, port = self._processes.coordinator.rpartition(":")
        while True:
            try:
                peer = _Peer(socket.create_connection((host, int(port) + 1), timeout=5))
                break
            except OSError as error:
                if time.monotonic() >= deadline:
                    raise UserError(
                        f"process 0 ({self._processes.coordinator}) did not start within "
                        f"{timeout:g} s (--start_timeout): see its log ({error})"
                    ) from error
                time.sleep(0.2)
        mine = {"process": self._processes.index, "num": self._processes.num}
        peer.write(mine | {"host": socket.gethostname()})
        try:
            verdict = peer.read(timeout=deadline - time.monotonic() + GRACE_SECONDS)
        except TimeoutError:
            verdict = {}
        peer.host = verdict.get("host", host)
        if problem := verdict.get("problem", "process 0 ended while the others started"):
            raise UserError(problem)
        self._peers[0] = peer

    def _watch(self, index: int, peer: "_Peer") -> None:
        """Read a peer's messages until its last; an end without one means that it died."""
        while not (last := peer.read()).keys() & {"left", "end"} and last:
            self.stop_point.receive(index, last)
            if "called" in last:
                with self._has_called:
                    self._called[last["called"]] += 1
                    self._has_called.notify_all()
        if last.get("left") == index and not last.get("error"):
            self.stop_point.has_left(index)
            return
        name = f"process {index} ({peer.host})"
        code = last.get("code", 1)
        if error := last.get("error"):
            time.sleep(GRACE_SECONDS)  # where all fail alike, each ends with its own message
            self._end(f"{name} ended: {error}", code)
        else:
            self._end(last.get("end", f"{name} died"), code)

    def _end(self, reason: str, code: int) -> None:
        with self._lock:
            if self._leaving:  # another thread was first
                return
            self._leaving = True
        sys.stderr.write(f"error: {reason}; process {self._processes.index} ends\n")
        sys.stderr.flush()
        self._tell({"end": reason, "code": code})
        if self._processes.index == 0:
            self._let_them_end()
        os._exit(code)

    def _tell(self, message: dict[str, Any]) -> None:
        for peer in self._peers.values():
            peer.write(message)

    def _let_them_end(self) -> None:
        """Wait for the others to end: without process 0 JAX aborts them before their last words."""
        deadline = time.monotonic() + GRACE_SECONDS
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))


class _Peer:
    """A connection to another process."""

    host = "?"

    def __init__(self, connection: socket.socket):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE.items():
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._connection = connection
        self._lines: TextIO = connection.makefile("r")

    def read(self, *, timeout: float | None = None) -> dict[str, Any]:
        """Read the next message; {} when the connection is closed, or a line is not a message.

        Raises:
            TimeoutError: nothing came in time.
        """
        self._connection.settimeout(timeout)
        try:
            message = json.loads(self._lines.readline())
        except TimeoutError:
            raise
        except (OSError, ValueError):
            return {}
        return message if isinstance(message, dict) else {}

    def write(self, message: dict[str, Any]) -> None:
        """Send a message, if the other end is still open."""
        try:
            self._connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            return
