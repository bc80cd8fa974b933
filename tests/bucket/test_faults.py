"""What a bucket does wrong is repeated with a line of the log, or ends in one line."""

import re
import time

import pytest

from diffussm_jax.errors import StorageError
from diffussm_jax.files import on_disk, sha256_of
from diffussm_jax.files.paths import as_path
from tests.jobs import command, run


@pytest.fixture
def path(bucket):
    path = as_path(f"{bucket}/run/\u00e9 a.bin")
    path.write_bytes(bytes(range(256)) * 4000)
    return path


def read(path):
    assert path.read_bytes() == bytes(range(256)) * 4000


def read_by_ranges(path):
    with on_disk(path) as copy:
        assert sha256_of(copy) == sha256_of(path)


def write(path):
    path.write_bytes(b"new")
    assert path.read_bytes() == b"new"


def list_folder(path):
    assert [x.name for x in path.parent.iterdir()] == [path.name]
    assert path.exists() and path.parent.is_dir()


def remove(path):
    path.unlink()


ALL = [read, read_by_ranges, write, list_folder, remove]
WAYS = pytest.mark.parametrize("way", ALL, ids=lambda way: way.__name__)


@WAYS
@pytest.mark.parametrize(
    ("status", "seconds"), [(429, 1), (503, 1), pytest.param(503, 30, marks=pytest.mark.slow)]
)
def test_a_busy_bucket_is_asked_again(way, status, seconds, path, storage, caplog):
    with caplog.at_level("INFO", "diffussm_jax"), storage.failing("", status, seconds=seconds):
        way(path)
    lines = [x.getMessage() for x in caplog.records if x.name.startswith("diffussm_jax")]
    assert any(line.startswith(str(path)) or str(path.parent) in line for line in lines), lines
    assert all(f", {status}; trying again" in line for line in lines)


@pytest.mark.parametrize("way", [read, read_by_ranges, write])
def test_a_cut_connection_is_made_again(way, path, storage, caplog):
    with storage.failing("^GET /download|^POST /upload", None, times=1) as fault:
        way(path)
    assert fault.num == 1
    assert "trying again" in caplog.text


@WAYS
def test_a_missing_permission_is_one_line_with_the_object(way, path, storage):
    began = time.monotonic()
    with storage.failing("", 403):
        require_line(way, path, "denies access")
    assert time.monotonic() - began < 3


@pytest.mark.slow
def test_an_expired_credential_is_one_line_after_some_tries(path, storage, caplog):
    began = time.monotonic()
    with storage.failing("", 401):
        require_line(read, path, "have they expired")
    assert time.monotonic() - began < 60
    assert caplog.text.count("trying again") == 5


def require_line(way, path, reason):
    with pytest.raises(StorageError, match=reason) as info:
        way(path)
    assert f"{path.parent}" in str(info.value) and "\n" not in str(info.value)
    assert info.value.exit_code == 2


def test_a_refused_folder_is_not_taken_for_an_empty_one(path, storage):
    with storage.failing("/o[?]", 403):
        for question in ("exists", "is_dir", "is_file"):
            with pytest.raises(StorageError):
                getattr(path.parent, question)()


@pytest.mark.slow
@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("mode", ["train", "sample", "export", "refstats"])
def test_a_command_ends_in_one_line(mode, status, bucket, storage, tmp_path):
    words = [*command(f"{bucket}/run", str(tmp_path)), f"--mode={mode}"]
    with storage.failing("", status):
        result = run(words, **storage.environment())
    last = result.stderr.strip().splitlines()[-1]
    assert result.returncode == 2, result.stderr
    assert last.startswith(f"error: {bucket}/run") and f"({status})" in last
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_a_save_that_the_bucket_refuses_ends_the_run_in_one_line(bucket, storage, data_dir):
    words = command(f"{bucket}/run", data_dir, **{"training.num_steps": 2, "checkpoint.every": 1})
    with storage.failing("^POST .*ocdbt", 403) as fault:
        result = run(words, **storage.environment())
    last = result.stderr.strip().splitlines()[-1]
    assert fault.num and result.returncode == 1, result.stderr
    start = "error: the checkpoint of step 1 could not be written: PERMISSION_DENIED: "
    assert last.startswith(start) and bucket in last and len(last) < 500, last
    # TensorStore may print that asyncio's loop is closed, of requests that were in flight.
    assert not re.search(r'File "[^"]*/diffussm_jax/\w', result.stderr), result.stderr


@pytest.mark.slow
def test_a_checkpoint_out_of_reach_is_not_a_damaged_one(bucket, storage, data_dir):
    fields = {"training.num_steps": 2, "checkpoint.every": 1, "checkpoint.keep": 2}
    words = command(f"{bucket}/run", data_dir, **fields)
    assert run(words, **storage.environment()).returncode == 0
    with storage.failing("^GET .*/checkpoints/2/state/", 403):
        result = run([*words, "--config.training.num_steps=3"], **storage.environment())
    assert result.returncode == 2 and "denies access" in result.stderr, result.stderr
    assert "damaged" not in result.stderr
    folders = {x.name for x in (as_path(f"{bucket}/run") / "checkpoints").iterdir()}
    assert folders == {"1", "2"}
