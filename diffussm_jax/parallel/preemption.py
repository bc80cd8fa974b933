"""Told to stop: SIGTERM, as before a machine is taken away, or SIGINT, Ctrl-C. The work in hand is saved and the process ends."""

import logging
import os
import signal
import socket
import threading
from types import FrameType

from diffussm_jax.parallel import distributed
from diffussm_jax.parallel.stop_point import StopPoint

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class PreemptionNotice:
    """Inside this context the first SIGTERM or SIGINT only asks to stop, and a second one ends the process at once.

    The handlers of before are back on leaving it. Outside the main thread, where Python takes no signals, it only hears
    of the other processes' ones.

        with PreemptionNotice() as notice:
            for batch in batches:
                work(batch)
                if notice.reached():
                    save()
                    raise Preempted("...")
    """

    def __init__(self) -> None:
        self._stop = distributed.stop_point() or StopPoint()
        self._handlers: dict = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            # The system writes each signal's number here at once, even while the main thread compiles; Python's own
            # handlers would wait for it, and two signals become one.
            self._read_end, self._write_end = socket.socketpair()
            self._write_end.setblocking(False)
            self._wakeup = signal.set_wakeup_fd(self._write_end.fileno())
            self._handlers = {x: signal.signal(x, _do_nothing) for x in SIGNALS}
            threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        if not self._handlers:
            return
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        self._write_end.close()  # ends the thread, which closes the other end

    @property
    def received(self) -> bool:
        """Whether a process of the job was told to stop: for loops of which each process has its own."""
        return self._stop.is_asked

    def reached(self) -> bool:
        """Whether to stop here. Called once per turn of a loop; all processes of a job get True on the same turn."""
        return self._stop.reached()

    def _listen(self) -> None:
        num_received = 0
        with self._read_end:
            while byte := self._read_end.recv(1):
                if byte[0] not in SIGNALS:
                    continue
                num_received += 1
                if num_received > 1:
                    os._exit(128 + byte[0])
                name = signal.Signals(byte[0]).name
                logger.warning("%s: saving, then ending; a second ends at once", name)
                self._stop.ask()


def _do_nothing(number: int, frame: FrameType | None) -> None:
    """`_listen` does it; without a Python handler the system would end the process."""
