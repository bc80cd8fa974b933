"""The cache of files: bounded, whole files only, the least recently used first to go."""

import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from diffussm_jax.data.file_cache import FileCache, FullError


def put(cache, key, size):
    return cache.fetch(key, size, lambda file: file.write(key[:1].encode() * size))


def sizes_in(folder):
    return {x.name: x.stat().st_size for x in folder.iterdir() if x.name != ".cache.lock"}


def test_a_file_is_there_once_it_is_whole(tmp_path):
    cache = FileCache(tmp_path, max_bytes=100)

    def write(file):
        file.write(b"half")
        file.flush()
        assert cache.find("a") is None
        assert FileCache(tmp_path, max_bytes=100).fetch("a", 8, write) is None  # one is at it
        assert sizes_in(tmp_path) == {".a": 8}  # all of its room is taken
        file.write(b"full")

    path = cache.fetch("a", 8, write)
    assert path.read_bytes() == b"halffull"
    assert cache.find("a") == path
    assert sizes_in(tmp_path) == {"a": 8}


def test_a_failed_fetch_leaves_nothing(tmp_path):
    def write(file):
        file.write(b"half")
        raise OSError("no")

    cache = FileCache(tmp_path, max_bytes=100)
    with pytest.raises(OSError, match="no"):
        cache.fetch("a", 8, write)
    assert sizes_in(tmp_path) == {}
    assert put(cache, "a", 8).read_bytes() == b"a" * 8


@pytest.mark.parametrize("seed", range(20))
def test_of_unused_files_the_least_recently_used_give_way(tmp_path, seed):
    """Random uses by two processes, against a list of keys in the order of their use."""
    rng, limit = random.Random(seed), 100
    size_of = {f"{index}": rng.randint(5, 45) for index in range(12)}
    users = [FileCache(tmp_path, max_bytes=limit) for _ in range(2)]
    held = [set(), set()]
    order = []  # the last one was used last
    for _ in range(80):
        number, key = rng.randrange(2), rng.choice([*size_of])
        if rng.random() < 0.3:  # the process ends, and another begins
            users[number], held[number] = FileCache(tmp_path, max_bytes=limit), set()
            continue
        free = [x for x in order if x not in held[0] | held[1]]
        excess = sum(size_of[x] for x in order) + size_of[key] - limit
        if key not in order:
            going = []
            while excess > 0 and free:
                going.append(free.pop(0))
                excess -= size_of[going[-1]]
            if excess > 0:
                with pytest.raises(FullError):
                    put(users[number], key, size_of[key])
                continue
            order = [x for x in order if x not in going]
        order = [x for x in order if x != key] + [key]
        held[number].add(key)
        path = users[number].find(key) or put(users[number], key, size_of[key])
        assert path.read_bytes() == key[:1].encode() * size_of[key]
        assert sizes_in(tmp_path) == {x: size_of[x] for x in order}
        assert sum(sizes_in(tmp_path).values()) <= limit


def test_a_file_in_use_stays_readable_and_a_larger_file_than_all_is_refused(tmp_path):
    cache, other = (FileCache(tmp_path, max_bytes=10) for _ in range(2))
    path = put(cache, "a", 10)
    for key, size in (("b", 1), ("c", 11)):
        with pytest.raises(FullError):
            put(other, key, size)
    assert path.read_bytes() == b"a" * 10
    del cache
    assert put(other, "b", 1).read_bytes() == b"b"
    assert sizes_in(tmp_path) == {"b": 1}


def test_a_cache_that_is_removed_is_filled_again(tmp_path):
    cache = FileCache(tmp_path / "cache", max_bytes=100)
    path = put(cache, "a", 10)
    for each in path.parent.iterdir():
        each.unlink()
    path.parent.rmdir()
    assert cache.find("a") is None
    assert put(cache, "a", 10).read_bytes() == b"a" * 10
    assert cache.find("a") == path


KILLED = """
import sys, time
from pathlib import Path
from diffussm_jax.data.file_cache import FileCache

def write(file):
    file.write(b"half")
    file.flush()
    print("half", flush=True)
    time.sleep(60)

FileCache(Path(sys.argv[1]), max_bytes=10).fetch(sys.argv[2], 10, write)
"""


@pytest.mark.parametrize("key", ["a", "b"])
def test_what_a_kill_leaves_gives_way(tmp_path, key):
    words = [sys.executable, "-c", KILLED, str(tmp_path), "a"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"half\n"
    cache = FileCache(tmp_path, max_bytes=10)
    if key == "b":
        with pytest.raises(FullError):  # its room is in use
            put(cache, key, 10)
    else:
        assert put(cache, key, 10) is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert cache.find("a") is None
    assert put(cache, key, 10).read_bytes() == key.encode() * 10
    assert sizes_in(tmp_path) == {key: 10}


def test_many_threads_fetch_each_file_once(tmp_path):
    num_written = []

    def work(number):
        cache = FileCache(tmp_path, max_bytes=1000)
        for index in random.Random(number).sample(range(10), 10):
            key = f"{index}"

            def write(file, key=key):
                num_written.append(key)
                file.write(key.encode() * 50)

            while (path := cache.find(key) or cache.fetch(key, 50, write)) is None:
                time.sleep(0.001)
            assert path.read_bytes() == key.encode() * 50

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert sorted(num_written) == [f"{index}" for index in range(10)]
