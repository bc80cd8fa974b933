"""The one point of a loop at which every process of a job stops.

A process that is to stop requests it of the others. Each then says how many points it has passed,
and passes no further one until all know the first point that nobody has passed. There they stop.
Until a stop is requested nothing is sent and nobody waits.
"""

import threading
from collections.abc import Callable
from typing import Any

NEVER = 2**62  # a number of points that no process passes


class StopPoint:
    """Agrees with those of the other processes, by messages between process 0 and each other one.

    The stop point of a process that runs alone agrees with itself.

    Args:
        send: passes a message to every other process (from process 0) or to process 0 (from
            another one).
    """

    def __init__(
        self,
        index: int = 0,
        num: int = 1,
        send: Callable[[dict[str, Any]], None] = lambda message: None,
    ):
        self._index, self._num, self._send = index, num, send
        self._changed = threading.Condition()
        self._passed = 0  # points, by this process
        self._is_requested = False
        self._stop_at: int | None = None
        self._all_passed: dict[int, int] = {}  # by each process; process 0 keeps it

    @property
    def is_requested(self) -> bool:
        """Whether any process has requested a stop."""
        return self._is_requested

    def request(self) -> None:
        """Request that all processes stop."""
        self.receive(self._index, {"stop": True})

    def reached(self) -> bool:
        """Pass a point; True at the one where all stop. Every process must pass the same points."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_requested or self._stop_at is not None)
            self._passed += 1
            return self._stop_at is not None and self._passed >= self._stop_at

    def receive(self, sender: int, message: dict[str, Any]) -> None:
        """Take a message that another process's StopPoint sent; other messages are ignored."""
        with self._changed:
            if message.get("stop") and not self._is_requested:
                self._take_request(sender)
            if "passed" in message:
                self._count(sender, message["passed"])
            if "stop_at" in message:
                self._stop_at = message["stop_at"]
            self._changed.notify_all()

    def has_left(self, sender: int) -> None:
        """Note that a process has come to its end and passed every point, as the others will."""
        with self._changed:
            self._count(sender, NEVER)
            self._changed.notify_all()

    def _take_request(self, sender: int) -> None:
        if self._index != 0 and sender == self._index:
            self._send({"stop": True})  # process 0 passes it on to all, this one included
            return
        self._is_requested = True
        if self._index == 0:
            self._send({"stop": True})
            self._count(0, self._passed)
        else:
            self._send({"passed": self._passed})

    def _count(self, sender: int, passed: int) -> None:
        self._all_passed[sender] = passed
        if self._is_requested and len(self._all_passed) == self._num:
            self._stop_at = max(self._all_passed.values()) + 1
            self._send({"stop_at": self._stop_at})
