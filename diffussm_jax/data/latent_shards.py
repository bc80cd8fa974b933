"""Writing a cache of latents: shard by shard, and at the end the manifest that lists them."""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from array_record.python.array_record_module import ArrayRecordWriter

from diffussm_jax.config.parsing import read_as
from diffussm_jax.data.latents import CACHE_MANIFEST, Shard
from diffussm_jax.data.record_ranges import WRITER_OPTIONS
from diffussm_jax.files import replacing, sha256_of, write_json, writing_to

Sides = tuple[bytes, bytes]  # the records of an image and of its mirror

_FIELD = "config.data.latents_dir"


def write_shard(path: Path, records: Iterator[Sides]) -> None:
    """Write a shard and its summary. The shard's name appears when both are complete."""
    with replacing(path) as temporary:
        writing = functools.partial(writing_to, path, field=_FIELD)
        with writing():
            writer = ArrayRecordWriter(str(temporary), WRITER_OPTIONS)
        num_images = 0
        for sides in records:
            with writing():
                for record in sides:
                    writer.write(record)
            num_images += 1
        with writing():
            writer.close()
            num_bytes = temporary.stat().st_size
            shard = Shard(path.name, num_images, num_bytes, sha256_of(temporary))
            write_json(summary_path(path), dataclasses.asdict(shard))


def finish(folder: Path, facts: dict[str, Any], *, num_source: int) -> int:
    """List the shards in the manifest, which completes the cache: training reads no other.

    Args:
        num_source: images that there are; those without latents were skipped.

    Returns:
        The number of images with latents.
    """
    summaries = sorted(folder.glob("moments-*.json"))
    shards = [shard for path in summaries if (shard := read_as(path, Shard)).num_images]
    num_images = sum(shard.num_images for shard in shards)
    manifest = facts | {
        "num_images": num_images,
        "num_skipped": num_source - num_images,
        "shards": [dataclasses.asdict(shard) for shard in shards],
    }
    with writing_to(folder, field=_FIELD):
        write_json(folder / CACHE_MANIFEST, manifest)
    return num_images


def shard_name(number: int, num_shards: int) -> str:
    """The file name of a shard."""
    return f"moments-{number:05d}-of-{num_shards:05d}.array_record"


def summary_path(path: Path) -> Path:
    """The file beside a shard that describes it."""
    return path.with_suffix(".json")
