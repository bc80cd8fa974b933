"""A notice to stop: SIGTERM, as before a machine is taken away, or SIGINT, which is Ctrl-C.

The work in hand is saved and the process ends.
"""

import logging
import os
import signal
import socket
import threading
from types import FrameType
from typing import Any

from diffussm_jax.parallel import distributed
from diffussm_jax.parallel.stop_point import StopPoint

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class PreemptionNotice:
    """A context in which a first SIGTERM or SIGINT requests a stop and a second ends the process.

    On leaving it the earlier handlers are back. Outside the main thread Python takes no signals;
    there it only learns of those of the job's other processes.

        with PreemptionNotice() as notice:
            for batch in batches:
                work(batch)
                if notice.reached():
                    save()
                    raise Preempted("...")
    """

    def __init__(self) -> None:
        self._stop = distributed.stop_point() or StopPoint()
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "PreemptionNotice":  # noqa: PYI034 - beartype knows no Self here
        if threading.current_thread() is threading.main_thread():
            # The system writes each signal's number here at once, even while the main thread
            # compiles. Python's own handlers would wait for it, and two signals would become one.
            self._read_end, self._write_end = socket.socketpair()
            self._write_end.setblocking(False)
            self._wakeup = signal.set_wakeup_fd(self._write_end.fileno())
            self._handlers = {x: signal.signal(x, _do_nothing) for x in SIGNALS}
            threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        if not self._handlers:
            return
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        self._write_end.close()  # ends the thread, which closes the other end

    @property
    def received(self) -> bool:
        """Whether a process of the job got a notice. For loops that each process has for itself."""
        return self._stop.is_requested

    def reached(self) -> bool:
        """Whether to stop here. For loops that all processes share.

        It must be called once per turn; all processes of a job get True on the same turn.
        """
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
                self._stop.request()


def _do_nothing(number: int, frame: FrameType | None) -> None:
    """Leave a signal to `_listen`; without a Python handler the system would end the process."""
