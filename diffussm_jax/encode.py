"""`--mode=encode`: images to cached latents, once, in shards that survive a kill."""

import itertools
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from tqdm import tqdm

from diffussm_jax.autoencoder.on_mesh import Autoencoder
from diffussm_jax.config import Config
from diffussm_jax.config.parsing import read_as
from diffussm_jax.data.buckets import of_bucket
from diffussm_jax.data.faults import BadRecordError, Faults
from diffussm_jax.data.latent_shards import Sides, finish, shard_name, summary_path, write_shard
from diffussm_jax.data.latents import (
    CACHE_MANIFEST,
    Shard,
    cache_folder,
    read_manifest,
    record_dtype,
    require_images_at_hand,
    require_same,
    shared_fields,
)
from diffussm_jax.data.pipeline import read_options
from diffussm_jax.data.sources import Buckets, Source, open_images
from diffussm_jax.data.transforms import describe_crop
from diffussm_jax.errors import Preempted, UserError
from diffussm_jax.files import require_only, sha256_of, write_json, writing_to
from diffussm_jax.parallel.distributed import is_first, wait_for_all
from diffussm_jax.parallel.mesh import make_mesh
from diffussm_jax.parallel.preemption import PreemptionNotice
from diffussm_jax.shapes import ceil_div
from diffussm_jax.workdir.lock import held, is_lock
from diffussm_jax.workdir.teacher import read_teacher_config

logger = logging.getLogger(__name__)

_FIELD = "config.data.latents_dir"


def encode(config: Config) -> None:
    """Write the moments of the training split and of the held-out one.

    Finished shards are kept: after a kill the same command goes on, and on a finished cache it
    compares every checksum. Processes take shards in turn and must share the folder.

    Raises:
        UserError: the data, the autoencoder, an earlier cache or the teacher of the run to come
            does not fit the config.
        Preempted: the process got a notice to stop.
    """
    if config.data.space != "latents":
        raise UserError("config.data.space must be 'latents' for --mode=encode, got 'pixels'")
    if config.training.teacher is not None:
        read_teacher_config(config)  # the images may take hours
    # Gloo waits 30 s for all at the first meeting, and the lock of a killed process takes longer.
    wait_for_all("encoding")
    autoencoder = Autoencoder(config, make_mesh(devices=jax.local_devices()))
    with PreemptionNotice() as notice:
        for split in (config.data.split, config.data.eval_split):
            if split is not None:
                _encode_split(config, split, autoencoder, notice)


def _encode_split(
    config: Config, split: str, autoencoder: Autoencoder, notice: PreemptionNotice
) -> None:
    source = open_images(config, split)
    if isinstance(source, Buckets):
        for sides, bucket in zip(config.data.bucket_sides, source.sources):
            _encode_source(of_bucket(config, sides), split, bucket, autoencoder, notice)
    else:
        _encode_source(config, split, source, autoencoder, notice)


def _encode_source(
    config: Config, split: str, source: Source, autoencoder: Autoencoder, notice: PreemptionNotice
) -> None:
    folder = cache_folder(config, split)
    facts = _facts(config, split, source, autoencoder)
    _require_same_cache_or_new(config, split, facts)
    with held(folder, named=f"{_FIELD}: {folder}"):
        _encode_to(folder, config, split, source, facts, autoencoder, notice)


def _encode_to(
    folder: Path,
    config: Config,
    split: str,
    source: Source,
    facts: dict[str, Any],
    autoencoder: Autoencoder,
    notice: PreemptionNotice,
) -> None:
    if is_first() and not _has_shards(folder):
        with writing_to(folder, field=_FIELD):
            write_json(folder / CACHE_MANIFEST, facts | {"shards": []})
    wait_for_all(f"encoding {split} begun")
    size = config.data.shard_size
    num_shards = ceil_div(len(source), size)
    faults = Faults(config.data.on_error, num_records=len(source))
    mine = range(jax.process_index(), num_shards, jax.process_count())
    for number in tqdm(mine, desc=f"encoding {split}", disable=not sys.stderr.isatty()):
        path = folder / shard_name(number, num_shards)
        if _is_finished(path):
            continue
        logger.info("encoding shard %d of %d of %s", number + 1, num_shards, split)
        indices = range(number * size, min((number + 1) * size, len(source)))
        records = _records(config, source, indices, autoencoder, faults)
        write_shard(path, _until(notice, records, folder))
    wait_for_all(f"encoded {split}")
    if is_first():
        num_images = finish(folder, facts, num_source=len(source))
        logger.info("latents of %d images are in %s", num_images, folder)
        if num_images < len(source):
            logger.warning("%d images were skipped", len(source) - num_images)


def _until(notice: PreemptionNotice, records: Iterator[Sides], folder: Path) -> Iterator[Sides]:
    """Yield records until a notice to stop; the next run makes the shard in hand again."""
    for record in records:
        if notice.received:
            raise Preempted(f"the finished shards are in {folder}")
        yield record


def _facts(config: Config, split: str, source: Source, autoencoder: Autoencoder) -> dict[str, Any]:
    """Everything that a shard depends on, for the manifest."""
    dtype = record_dtype(config)
    facts = shared_fields(config, split) | source.facts
    facts |= {
        "crop": describe_crop(),
        "autoencoder.sha256": autoencoder.sha256,
        "autoencoder.dtype": config.autoencoder.dtype,
        "data.shard_size": config.data.shard_size,
        "record": [[name, dtype[name].base.str, dtype[name].shape] for name in dtype.names or ()],
    }
    return json.loads(json.dumps(facts))  # as it will be read: tuples become lists


def _require_same_cache_or_new(config: Config, split: str, facts: dict[str, Any]) -> None:
    folder = cache_folder(config, split)
    manifest = read_manifest(folder)
    if manifest is not None and not _has_shards(folder):
        return  # it ended before its first shard, as at a bad image that has been mended since
    if manifest is not None:
        require_images_at_hand(config, split, manifest.fingerprint)
        # Elsewhere the same images have another name.
        compared = {k: v for k, v in facts.items() if k not in ("source", "fingerprint")}
        require_same(manifest.facts, compared, folder)
    elif is_first():
        ours = {CACHE_MANIFEST, f".{CACHE_MANIFEST}"}  # of a kill at the start
        require_only(folder, lambda x: x in ours or is_lock(x), named=f"{_FIELD}: {folder}")


def _records(
    config: Config, source: Source, indices: range, autoencoder: Autoencoder, faults: Faults
) -> Iterator[Sides]:
    """Yield the records of each good image and its mirror.

    Batches begin at the shard's first image and have one size, so that a shard's bytes do not
    depend on what was encoded before it.
    """

    def read(index: int) -> dict[str, Any]:
        try:
            return {"index": int(index), **source.example(int(index), mirrored=False)}
        except BadRecordError as error:
            faults.note(int(index), error)
            return {}

    size = config.autoencoder.batch_size * jax.local_device_count()
    dataset = grain.MapDataset.range(indices.start, indices.stop).map(read)
    options = read_options(config, ahead=size)
    good = filter(None, dataset.to_iter_dataset(options))
    before: tuple[list[dict[str, Any]], Any] = ([], [])
    while examples := list(itertools.islice(good, size)):
        images = np.zeros((size, *examples[0]["image"].shape), np.uint8)
        images[: len(examples)] = [example["image"] for example in examples]
        moments = autoencoder.encode(images)  # computed while the batch before is written
        yield from _pack(config, *before, faults)
        before = examples, moments
    yield from _pack(config, *before, faults)


def _pack(
    config: Config, examples: list[dict[str, Any]], moments: Any, faults: Faults
) -> Iterator[Sides]:
    """Yield the records of a batch; moments beyond the range of float16 make an image a bad one."""
    dtype = record_dtype(config)
    for example, sides in zip(examples, np.asarray(moments)):
        if np.isfinite(sides).all():
            label = example["label"]
            image, mirror = (np.array((label, mean, std), dtype).tobytes() for mean, std in sides)
            yield image, mirror
        else:
            index = example["index"]
            text = f"record {index} of {config.data.name}: its moments are not finite as float16"
            faults.note(index, BadRecordError(text))


def _is_finished(path: Path) -> bool:
    """Whether a shard exists and has the checksum that was noted when it was written."""
    if not path.exists():
        return False
    try:
        noted = read_as(summary_path(path), Shard).sha256
    except (OSError, UserError):
        noted = None
    if noted != sha256_of(path):
        logger.warning("%s is damaged and is encoded again", path)
        return False
    return True


def _has_shards(folder: Path) -> bool:
    return any(folder.glob("moments-*"))
