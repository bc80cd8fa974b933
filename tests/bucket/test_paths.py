"""Paths at gs:// behave as those on a disk do, in what the package needs of them."""

import pytest
from etils import epath

from diffussm_jax.errors import UserError
from diffussm_jax.files.paths import as_path, is_in_bucket


def test_files_of_a_bucket(bucket):
    run = as_path(f"{bucket}/run")
    assert is_in_bucket(run) and type(epath.Path(f"{bucket}/run")) is type(run)
    run.mkdir(parents=True)
    assert not run.exists()  # folders are only names
    (run / "a" / "b.txt").write_text("hello", encoding="utf-8")
    assert run.exists() and run.is_dir() and (run / "a").is_dir()
    assert not (run / "a" / "b.txt").is_dir()
    assert (run / "a" / "b.txt").read_bytes() == b"hello"
    assert [path.name for path in run.iterdir()] == ["a"]
    assert list(run.glob("*/*.txt")) == [run / "a" / "b.txt"]
    with (run / "a" / "b.txt").open("rb") as file:
        file.seek(1)
        assert file.read(3) == b"ell"
    (run / "a" / "b.txt").unlink()
    assert not run.exists()
    (run / "a" / "b.txt").unlink(missing_ok=True)


@pytest.mark.parametrize("method", ["read_bytes", "unlink", "stat"])
def test_a_missing_object_is_a_missing_file(bucket, method):
    path = as_path(f"{bucket}/run/none.txt")
    with pytest.raises(FileNotFoundError) as info:
        getattr(path, method)()
    assert info.value.filename == str(path)


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
def test_a_large_object_is_sent_in_parts_and_read_by_ranges(bucket, storage):
    data = bytes(range(256)) * 2**16
    path = as_path(f"{bucket}/large")
    path.write_bytes(data)
    assert sum("upload_id" in line for line in storage.lines) > 1
    with path.open("rb") as file:
        file.seek(2**23 + 5)
        assert file.read(10) == data[5:15]
    assert path.read_bytes() == data


def test_nothing_is_appended_silently(bucket):
    with pytest.raises(ValueError, match="cannot be appended to"):
        as_path(f"{bucket}/log").open("a")


@pytest.mark.parametrize("name", ["s3://bucket/run", "gs://", "gs:///run", "http://host/run"])
def test_other_places_are_named(name):
    with pytest.raises(UserError, match="gs://"):
        as_path(name)
