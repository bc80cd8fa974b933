"""Files that need PyTorch alone: weights in safetensors, and images as PNG."""

import json
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The float32 tensors of a file by name.

    It holds the length of a header, the header, which is JSON, and the bytes of the tensors.
    """
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    data = torch.from_file(str(path), size=path.stat().st_size, dtype=torch.uint8)[8 + length :]
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            tensors[name] = data[start:end].view(torch.float32).reshape(entry["shape"])
    return tensors


def png(image: Tensor) -> bytes:
    """The PNG of a uint8 image [h w c] of one channel or three."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    height, width, channels = image.shape
    header = struct.pack(">IIBBBBB", width, height, 8, {1: 0, 3: 2}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + bytes(row.flatten().tolist()) for row in image)  # 0: as they are
    chunks = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def grid(images: Tensor) -> Tensor:
    """Images [b h w c] in rows and columns of one image, as square as they fit."""
    num, height, width, channels = images.shape
    columns = int(num**0.5 + 0.999)
    rows = -(-num // columns)
    padding = images.new_zeros(rows * columns - num, height, width, channels)
    images = torch.cat([images, padding]).reshape(rows, columns, height, width, channels)
    return images.transpose(1, 2).reshape(rows * height, columns * width, channels)
