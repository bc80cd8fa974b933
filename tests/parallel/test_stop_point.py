"""Processes that stop together, as threads with queues for connections."""

import queue
import random
import threading
import time

import pytest

from diffussm_jax.parallel.stop_point import StopPoint


class Job:
    """Stop points of several processes, each with a thread that delivers its messages in order."""

    def __init__(self, num: int):
        self._boxes = [queue.SimpleQueue() for _ in range(num)]
        self.points = [StopPoint(i, num, self._sender(i)) for i in range(num)]
        for index in range(num):
            threading.Thread(target=self._deliver, args=(index,), daemon=True).start()

    def _sender(self, index: int):
        others = range(1, len(self._boxes)) if index == 0 else [0]
        return lambda message: [self._boxes[i].put((index, message)) for i in others]

    def _deliver(self, index: int) -> None:
        while True:
            sender, message = self._boxes[index].get()
            time.sleep(random.random() * 1e-3)
            self.points[index].receive(sender, message)


def run(job: Job, num_turns: int, speed: float) -> list[int]:
    """The turn at which each process stopped; num_turns where it came to its end."""
    stopped = [num_turns] * len(job.points)

    def loop(index: int) -> None:
        rng = random.Random(index)
        for turn in range(num_turns):
            time.sleep(rng.random() * speed)
            if job.points[index].reached():
                stopped[index] = turn
                return

    threads = [
        threading.Thread(target=loop, args=(i,), daemon=True) for i in range(len(job.points))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive(), "a process waits for ever"
    return stopped


@pytest.mark.parametrize("askers", [(0,), (2,), (0, 1, 2)])
@pytest.mark.parametrize("after", [0.0, 0.02])
def test_all_stop_at_the_same_turn(askers, after):
    job = Job(3)
    for index in askers:
        threading.Timer(after, job.points[index].request).start()
    stopped = run(job, 10_000, speed=1e-3)
    assert len(set(stopped)) == 1
    assert stopped[0] < 10_000


def test_one_process_stops_at_once():
    alone = StopPoint()
    assert [alone.reached() for _ in range(3)] == [False] * 3
    alone.request()
    assert alone.is_requested
    assert alone.reached()


def test_who_has_come_to_its_end_is_not_waited_for():
    """Asked for after the last turn of another: all come to their end."""
    job = Job(2)
    for _ in range(5):
        assert not job.points[1].reached()
    job.points[0].has_left(1)
    job.points[0].request()
    assert [job.points[0].reached() for _ in range(5)] == [False] * 5
