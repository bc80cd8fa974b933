"""A model's own samples as a cache of latents, which a run trains on as on encoded images."""

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from diffussm_jax.config import Config
from diffussm_jax.data.fingerprint import Fingerprint
from diffussm_jax.data.latent_shards import Sides, finish, shard_name, write_shard
from diffussm_jax.data.latents import DRAWN, cache_folder, record_dtype, shared_fields
from diffussm_jax.data.names import portable_name
from diffussm_jax.files import replacing_folder, require_only, sha256_of
from diffussm_jax.sampling.images import LabelArray, LatentArray
from diffussm_jax.sampling.job import Samples
from diffussm_jax.shapes import ceil_div
from diffussm_jax.workdir.data_facts import DataFacts


def save_latents(config: Config, samples: Samples, folder: Path, known: DataFacts) -> None:
    """Write drawn latents into `folder`, for `data.latents_dir` of runs that train on them.

    They stand for the training split of the model's own data, and the manifest has under `drawn`
    what made them. A latent has no deviation, and its mirror is the same latent.

    Args:
        known: what the model's run or export says of its data.

    Raises:
        UserError: the folder holds anything else.
    """
    data = dataclasses.replace(config.data, latents_dir=str(folder), buckets=None)
    config = dataclasses.replace(config, data=data)
    place = cache_folder(config, data.split).relative_to(folder)
    require_only(folder, lambda name: name == place.parts[0], named=str(folder))
    with replacing_folder(folder) as temporary:
        (temporary / place).mkdir(parents=True)
        shards = list(_write_shards(config, samples, temporary / place))
        digest = hashlib.sha256("".join(map(sha256_of, shards)).encode()).hexdigest()
        facts = _facts(config, samples, digest, known)
        finish(temporary / place, facts, num_source=samples.num)


def _write_shards(config: Config, samples: Samples, folder: Path) -> Iterator[Path]:
    """Write a shard for each file of the job."""
    num = ceil_div(samples.num, samples.range_size)
    for number, (latents, labels) in enumerate(samples):
        path = folder / shard_name(number, num)
        write_shard(path, _records(config, latents, labels))
        yield path


def _records(config: Config, latents: LatentArray, labels: LabelArray | None) -> Iterator[Sides]:
    dtype, no_deviation = record_dtype(config), np.zeros(config.grid, np.float16)
    for index, latent in enumerate(latents):
        label = -1 if labels is None else labels[index]
        record = np.array((label, latent, no_deviation), dtype).tobytes()
        yield record, record


def _facts(config: Config, samples: Samples, sha256: str, known: DataFacts) -> dict[str, Any]:
    labels = [str(label) for label in range(config.data.num_classes)]
    source = f"samples of a model of {portable_name(config.data.name)}"
    facts: dict[str, Any] = shared_fields(config, config.data.split) | {
        "source": source,
        "class_names": known.class_names or labels or None,
        "fingerprint": dataclasses.asdict(Fingerprint(source, samples.num, sha256)),
        DRAWN: samples.facts,
    }
    if known.autoencoder_sha256 is not None:
        facts["autoencoder.sha256"] = known.autoencoder_sha256
    return facts
