"""Single records of an ArrayRecord file at gs://, each by one ranged read.

array_record reads gs:// itself, but asks for all bytes up to the end of the file and cuts the
connection when it has the record. Records that are uncompressed, in groups of one and of one size
lie where arithmetic says. The library still checks and decodes each: what was read is put into a
file of one record on this machine, in place of the record there.

Source: the records file format of Riegeli, "File structure" and "Simple chunk with records".
"""

import functools
import os
import tempfile
import threading

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from diffussm_jax.files.ranges import read_range
from diffussm_jax.shapes import ceil_div

# One record a chunk, so that reading one decompresses nothing else; moments do not compress.
WRITER_OPTIONS = "group_size:1,uncompressed"
READER_OPTIONS = "readahead_buffer_size:0"

BLOCK, BLOCK_HEADER = 2**16, 24  # each block of a file begins with a header
CHUNK_HEADER = 40
FIRST = CHUNK_HEADER  # the first chunk is the signature of a file, a header alone


def read_record(name: str, index: int, record_bytes: int) -> bytes:
    """Read a record of a file at gs:// that was written with `WRITER_OPTIONS`.

    Args:
        record_bytes: the size of every record of it.

    Raises:
        FileNotFoundError, StorageError: the object cannot be read.
        RuntimeError: it is damaged there.
    """
    size = chunk_bytes(record_bytes)
    start = FIRST + index * size
    first, last = in_file(start), in_file(start + size - 1)
    chunk = without_headers(read_range(name, first, last + 1), first)
    file = _file_of_one_record(record_bytes)
    with file.lock:
        return file.decode(chunk)


def chunk_bytes(record_bytes: int) -> int:
    """The bytes of a chunk of one record, without the headers of blocks.

    They are the chunk's header, the kind of compression, the length of the list of sizes, this
    list, which is the record's size as a varint, and the record.
    """
    return CHUNK_HEADER + 1 + 1 + ceil_div(max(record_bytes.bit_length(), 1), 7) + record_bytes


def in_file(position: int) -> int:
    """Where a byte lies in a file, given its position among those that are no block's header."""
    return position + BLOCK_HEADER * (position // (BLOCK - BLOCK_HEADER) + 1)


def without_headers(data: bytes, start: int) -> bytes:
    """Leave the headers of blocks out of bytes that begin at `start` in a file."""
    parts = [data[: -start % BLOCK]]
    parts += [data[x + BLOCK_HEADER : x + BLOCK] for x in range(-start % BLOCK, len(data), BLOCK)]
    return b"".join(parts)


class _FileOfOneRecord:
    """A nameless file of one record, which is replaced by others of its size."""

    def __init__(self, record_bytes: int):
        self.lock = threading.Lock()
        self._file, name = tempfile.mkstemp()
        os.unlink(name)
        self._name = f"/dev/fd/{self._file}"
        writer = ArrayRecordWriter(self._name, WRITER_OPTIONS)
        writer.write(bytes(record_bytes))
        writer.close()

    def decode(self, chunk: bytes) -> bytes:
        """The record of a chunk; raises RuntimeError if that does not have its own checksums."""
        position = FIRST
        while chunk:
            room = BLOCK - BLOCK_HEADER - position % (BLOCK - BLOCK_HEADER)
            os.pwrite(self._file, chunk[:room], in_file(position))
            chunk, position = chunk[room:], position + room
        # A reader that was open before might have the last record in its buffer.
        reader = ArrayRecordReader(
            self._name, options=READER_OPTIONS, file_reader_buffer_size=2**15
        )
        try:
            return reader.read([0])[0]
        finally:
            reader.close()


@functools.cache
def _file_of_one_record(record_bytes: int) -> _FileOfOneRecord:
    return _FileOfOneRecord(record_bytes)
