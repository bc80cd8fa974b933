"""Reading images from parquet in order and at random, by the size of row groups and of the cache.

python -m benchmarks.parquet

Makes 20,000 JPEGs of 64 x 64 from photographs in a temporary folder, in files of 5,000. One thread
reads records, and examples, which are decoded and cropped. A cache of a tenth stands for a data set
that is ten times as large as `data.parquet_cache_gb`.
"""

import io
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import skimage.data
from PIL import Image

from diffussm_jax.config import from_dict
from diffussm_jax.data.sources import open_images

NUM_IMAGES, PER_FILE = 20_000, 5_000
SIDE = 64
ROW_GROUPS = (100, 1000)
SECONDS = 5.0  # of each measurement, at most


def main() -> None:
    images = _make_images()
    size = sum(map(len, images))
    print(f"{NUM_IMAGES:,} images, {size / 2**20:.0f} MiB\n")
    print("| rows of a group | cache | order | records a second | examples a second |")
    print("|---|---|---|---|---|")
    rng = np.random.default_rng(0)
    orders = {"sequential": np.arange(NUM_IMAGES), "random": rng.permutation(NUM_IMAGES)}
    for rows in ROW_GROUPS:
        with tempfile.TemporaryDirectory() as folder:
            _write(Path(folder), images, rows)
            for cache, num_bytes in (("all", 4 * size), ("a tenth", size // 10)):
                for name, order in orders.items():
                    rates = _rates(folder, order.tolist(), num_bytes / 2**30)
                    print(f"| {rows:,} | {cache} | {name} | {rates[0]:,.0f} | {rates[1]:,.0f} |")


def _make_images() -> list[bytes]:
    photos = [skimage.data.astronaut(), skimage.data.rocket(), skimage.data.coffee()]
    rng = np.random.default_rng(0)
    images = []
    for index in range(NUM_IMAGES):
        photo = photos[index % len(photos)]
        top, left = (int(rng.integers(0, n - SIDE)) for n in photo.shape[:2])
        file = io.BytesIO()
        Image.fromarray(photo[top : top + SIDE, left : left + SIDE]).save(file, "jpeg", quality=90)
        images.append(file.getvalue())
    return images


def _write(folder: Path, images: list[bytes], rows: int) -> None:
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["a"]}}
    note = json.dumps({"info": {"features": features}})
    num_files = NUM_IMAGES // PER_FILE
    for number in range(num_files):
        part = images[number * PER_FILE : (number + 1) * PER_FILE]
        paths = [f"{number}-{index}.jpg" for index in range(PER_FILE)]
        image = pa.StructArray.from_arrays([pa.array(part), pa.array(paths)], ["bytes", "path"])
        table = pa.table({"image": image, "label": np.zeros(PER_FILE, np.int64)})
        path = folder / f"train-{number:05d}-of-{num_files:05d}.parquet"
        pq.write_table(
            table.replace_schema_metadata({"huggingface": note}), path, row_group_size=rows
        )


def _rates(folder: str, order: list[int], cache_gb: float) -> list[float]:
    """Records and examples a second, with a source of its own each."""
    data = {
        "name": f"parquet:{folder}",
        "image_size": SIDE,
        "channels": 3,
        "num_classes": 0,
        "parquet_cache_gb": cache_gb,
    }
    rates = []
    for what in ("records", "examples"):
        source: Any = open_images(from_dict({"data": data}), "train")
        read = source._records.__getitem__ if what == "records" else source.example
        passes = 1 if cache_gb < 1e-2 else 2  # of which the first fills the cache
        for _ in range(passes):
            start, num = time.perf_counter(), 0
            for index in order:
                read(index)
                num += 1
                if num % 50 == 0 and time.perf_counter() - start > SECONDS:
                    break
            rate = num / (time.perf_counter() - start)
        rates.append(rate)
    return rates


if __name__ == "__main__":
    main()
