"""Where the records of a file lie, against files that array_record wrote."""

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from diffussm_jax.data import record_ranges
from diffussm_jax.data.record_ranges import WRITER_OPTIONS, read_record

# Around the sizes at which a varint or a chunk needs another byte or block, and those of latents.
SIZES = [1, 100, 127, 128, 516, 16383, 16384, 16388, 65427, 65428, 65472, 65540, 131020, 200000]


@pytest.fixture
def disk(monkeypatch):
    """Ranges of files on the disk in place of objects."""

    def read_range(name, start, stop):
        with open(name, "rb") as file:
            file.seek(start)
            return file.read(stop - start)

    monkeypatch.setattr(record_ranges, "read_range", read_range)


def write(path, size, num=25):
    rng = np.random.default_rng(size)
    records = [rng.bytes(size) for _ in range(num)]
    writer = ArrayRecordWriter(str(path), WRITER_OPTIONS)
    for record in records:
        writer.write(record)
    writer.close()
    return records


@pytest.mark.parametrize("size", SIZES)
def test_every_record_is_found(disk, tmp_path, size):
    records = write(tmp_path / "records", size)
    order = np.random.default_rng(0).permutation(len(records)).tolist()
    assert [read_record(str(tmp_path / "records"), x, size) for x in order] == [
        records[x] for x in order
    ]


@pytest.mark.parametrize("size", [100, 70_000])
def test_every_flipped_bit_of_a_record_is_noticed(disk, tmp_path, size):
    path = tmp_path / "records"
    records = write(path, size)
    data, rng = path.read_bytes(), np.random.default_rng(1)
    start = data.index(records[7][:50])
    for offset in rng.integers(0, size, 20).tolist():
        position = start + offset + 24 * ((start + offset) // 2**16 - start // 2**16)
        damaged = bytearray(data)
        damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(RuntimeError, match="mismatch"):
            read_record(str(path), 7, size)
        assert read_record(str(path), 8, size) == records[8]


def test_records_of_another_size_are_refused(disk, tmp_path):
    write(tmp_path / "records", 104)
    with pytest.raises(RuntimeError):
        read_record(str(tmp_path / "records"), 3, 100)
