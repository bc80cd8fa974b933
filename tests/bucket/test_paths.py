"""Paths at gs:// behave as those on a disk do, in what the package needs of them."""

import numpy as np
import pytest
from etils import epath

from diffussm_jax.errors import StorageError, UserError
from diffussm_jax.exporting.subfolder import write_subfolder
from diffussm_jax.files import (
    array_shape,
    read_tensors,
    replacing,
    replacing_folder,
    seekable,
    write_tensors,
)
from diffussm_jax.files.growing import GrowingFiles
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
    data = bytes(range(256)) * 2**18
    path = as_path(f"{bucket}/large")
    path.write_bytes(data)
    assert sum("upload_id" in line for line in storage.lines) > 1
    with path.open("rb") as file:
        file.seek(2**23 + 5)
        assert file.read(10) == data[5:15]
    assert path.read_bytes() == data


def test_what_an_exception_interrupts_is_not_written(bucket):
    path = as_path(f"{bucket}/torn")
    for mode, text in (("wb", b"half"), ("w", "half")):
        with pytest.raises(KeyError), path.open(mode) as file:
            file.write(text)
            raise KeyError
        assert not path.exists()
    with path.open("w") as file:
        file.write("whole \u00e9")
    assert path.read_text(encoding="utf-8") == "whole \u00e9"


def test_a_folder_is_replaced_by_one_of_the_disk(bucket, tmp_path):
    folder = as_path(f"{bucket}/folder")
    for names in (["a", "b/c"], ["b/c", "d"]):
        with replacing_folder(folder) as temporary:
            for name in names:
                (temporary / name).parent.mkdir(exist_ok=True)
                (temporary / name).write_text(name, encoding="utf-8")
        assert sorted(folder.names()) == names
    with pytest.raises(KeyError), replacing_folder(folder):
        raise KeyError
    assert sorted(folder.names()) == ["b/c", "d"]


def test_arrays_and_tensors_of_a_bucket(bucket):
    array = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    with replacing(as_path(f"{bucket}/a.npy")) as path:
        np.save(path, array)  # which keeps a suffix that is there
    path = as_path(f"{bucket}/a.npy")
    assert array_shape(path) == (3, 4, 5)
    np.testing.assert_array_equal(np.load(seekable(path)), array)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="torn"):
        array_shape(path)
    write_tensors(as_path(f"{bucket}/a.safetensors"), {"x": array.T})
    tensors = read_tensors(as_path(f"{bucket}/a.safetensors"))
    np.testing.assert_array_equal(tensors["x"], array.T)


def test_nothing_is_appended_silently(bucket):
    with pytest.raises(ValueError, match="cannot be opened in mode 'a'"):
        as_path(f"{bucket}/log").open("a")


@pytest.mark.parametrize("name", ["s3://bucket/run", "gs://", "gs:///run", "http://host/run"])
def test_other_places_are_named(name):
    with pytest.raises(UserError, match="gs://"):
        as_path(name)


def test_a_folder_is_renamed(bucket):
    folder = as_path(f"{bucket}/faults/step_1")
    (folder / "a" / "b.txt").write_text("1")
    folder.rename(folder.with_name("step_1.1"))
    assert not folder.exists()
    assert (folder.with_name("step_1.1") / "a" / "b.txt").read_text() == "1"


def test_a_subfolder_replaces_the_one_before(bucket):
    folder = as_path(f"{bucket}/export/web")
    write_subfolder(folder, {"index.html": b"1", "old/a.js": b"2"})
    write_subfolder(folder, {"index.html": b"3", "b.js": b"4"})
    assert set(folder.names()) == {"index.html", "b.js"}
    assert (folder / "index.html").read_bytes() == b"3"
    write_subfolder(folder, {})
    assert not folder.exists()


def test_files_that_change_are_sent_also_where_their_size_stays(bucket):
    folder = as_path(f"{bucket}/run")
    files = GrowingFiles(folder)
    for text in ("1", "2"):
        (files.folder / "a.json").write_text(text)
        files.finish()
        assert (folder / "a.json").read_text() == text
    (files.folder / ".b.json").write_text("being replaced")
    files.close()
    assert folder.names() == ["a.json"]


def test_a_folder_takes_the_place_of_another(bucket, storage):
    folder = as_path(f"{bucket}/made")
    for numbers in (range(40), range(20, 50)):
        with replacing_folder(folder) as temporary:
            for number in numbers:
                path = temporary / str(number % 3) / f"{number} \u00e9[1].txt"
                path.parent.mkdir(exist_ok=True)
                path.write_text(f"{number} of {len(numbers)}")
            expected = {str(x.relative_to(temporary)) for x in temporary.rglob("*.txt")}
        assert set(folder.names()) == expected
    refusal = pytest.raises(StorageError, match=f"{folder}/a.txt: .*denies access")
    with storage.failing("^POST /upload", 403), refusal, replacing_folder(folder) as temporary:
        (temporary / "a.txt").write_text("new")
    assert not folder.exists()  # and no mixture
