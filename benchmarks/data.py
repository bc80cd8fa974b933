"""The input path, stage by stage and from end to end.

python -m benchmarks.data [--memory]

Makes its own data in a temporary folder: photographs of 500 x 375 as JPEG, and random moments of
32 x 32 x 4. With `--memory` it only reads 20,000 batches and prints the resident memory on the way.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import psutil
import skimage.data
from PIL import Image

from diffussm_jax.config import Config, from_dict
from diffussm_jax.data import latents, transforms
from diffussm_jax.data.latent_shards import write_shard
from diffussm_jax.data.pipeline import open_source, train_batches
from diffussm_jax.parallel.feed import prefetch, shard_batch
from diffussm_jax.parallel.mesh import make_mesh

BATCH_SIZE = 256
NUM_IMAGES, NUM_LATENTS = 512, 8000
STEPS_PER_SECOND = 2000 / BATCH_SIZE  # of the sleep that stands in for a train step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        latent_config = make_latents(Path(folder))
        if arguments.memory:
            _print_memory(latent_config)
            return
        image_config = _make_photos(Path(folder))
        _print_image_stages(image_config)
        _print_latent_stages(latent_config)
        _print_whole(image_config, latent_config, arguments.workers)
        _print_wait(latent_config)


def _make_photos(folder: Path) -> Config:
    """Write crops of real photographs, of the usual size of ImageNet's."""
    photos = [skimage.data.astronaut(), skimage.data.rocket(), skimage.data.coffee()]
    rng = np.random.default_rng(0)
    (folder / "photos").mkdir()
    for index in range(NUM_IMAGES):
        photo = photos[index % len(photos)]
        side = int(rng.integers(200, 320))
        top, left = (int(rng.integers(0, n - side)) for n in photo.shape[:2])
        patch = Image.fromarray(photo[top : top + side, left : left + side])
        patch = patch.resize((500, 375), Image.Resampling.BICUBIC)
        patch.save(folder / "photos" / f"{index:05d}.jpg", quality=90)
    data = {
        "name": f"folder:{folder}/photos",
        "data_dir": str(folder / "tfds"),
        "image_size": 256,
        "channels": 3,
        "num_classes": 0,
    }
    return from_dict({"data": data, "training": {"batch_size": BATCH_SIZE}})


def latent_config(folder: Path) -> Config:
    """The config that reads the moments of `make_latents`."""
    data = {
        "name": "random",
        "space": "latents",
        "image_size": 256,
        "channels": 3,
        "num_classes": 0,
        "latents_dir": str(folder),
    }
    return from_dict({"data": data, "training": {"batch_size": BATCH_SIZE}})


def make_latents(folder: Path) -> Config:
    """Write random moments into a folder, and return the config that reads them."""
    config = latent_config(folder)
    dtype, cache = latents.record_dtype(config), latents.cache_folder(config, "train")
    cache.mkdir(parents=True)
    rng = np.random.default_rng(0)
    shards = []
    for number in range(NUM_LATENTS // config.data.shard_size):
        path = cache / f"moments-{number:05d}.array_record"
        moments = rng.normal(size=(config.data.shard_size, 2, 2, *dtype["mean"].shape))
        records = (
            (np.array((0, *plain), dtype).tobytes(), np.array((0, *flipped), dtype).tobytes())
            for plain, flipped in moments.astype(np.float16)
        )
        write_shard(path, records)
        shards.append(json.loads(path.with_suffix(".json").read_text(encoding="utf-8")))
    manifest = latents.shared_fields(config, "train")
    fingerprint = {"data_set": "random moments", "num_images": NUM_LATENTS, "sha256": ""}
    manifest |= {"class_names": None, "fingerprint": fingerprint, "shards": shards}
    (cache / latents.CACHE_MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    return config


def _print_image_stages(config: Config) -> None:
    source = open_source(config, "train")
    records = source._records  # type: ignore[attr-defined]
    data = [records[index]["image"] for index in range(64)]
    decoded = [transforms.decode_image(x, channels=3) for x in data]
    cropped = [transforms.centre_crop(x, (256, 256)) for x in decoded]
    batch = {"image": np.stack(cropped)}
    mesh = make_mesh()
    _print_stages(
        "Images of 500 x 375 to 256 x 256, one thread",
        {
            "read": lambda: [records[index] for index in range(64)],
            "decode": lambda: [transforms.decode_image(x, channels=3) for x in data],
            "crop": lambda: [transforms.centre_crop(x, (256, 256)) for x in decoded],
            "batch": lambda: np.stack(cropped),
            "to device": lambda: jax.block_until_ready(
                shard_batch(mesh, batch, batch_size=len(next(iter(batch.values()))))
            ),
        },
        num=64,
    )


def _print_latent_stages(config: Config) -> None:
    source = open_source(config, "train")
    order = np.random.default_rng(0).integers(0, len(source), BATCH_SIZE).tolist()
    records = source._records  # type: ignore[attr-defined]
    examples = [source.example(index, mirrored=False) for index in order]
    names = examples[0]

    def stack() -> dict[str, np.ndarray]:
        return {name: np.stack([e[name] for e in examples]) for name in names}

    batch, mesh = stack(), make_mesh()
    _print_stages(
        "Latents of 32 x 32 x 4, one thread",
        {
            "read": lambda: [records[2 * index] for index in order],
            "read, check, view": lambda: [source.example(i, mirrored=True) for i in order],
            "batch": stack,
            "to device": lambda: jax.block_until_ready(
                shard_batch(mesh, batch, batch_size=len(next(iter(batch.values()))))
            ),
        },
        num=BATCH_SIZE,
    )


def _print_stages(title: str, stages: dict[str, Callable], *, num: int) -> None:
    print(f"\n{title}\n\n| stage | a second |\n|---|---|")
    for name, stage in stages.items():
        print(f"| {name} | {num / _seconds(stage):,.0f} |")


def _seconds(function: Callable, *, repeats: int = 7) -> float:
    """The median seconds of a call, after one call to warm up."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def _print_whole(images: Config, moments: Config, workers: list[int]) -> None:
    """Time the path from storage to the device, in turn with the same work by tf.data."""
    print("\nFrom storage to the device\n\n| | workers | a second |\n|---|---|---|")
    for count in workers:
        rate = rate_of(device_batches(moments, workers=count), num_batches=80)
        print(f"| latents | {count} | {rate:,.0f} |")
    rounds: dict[str, list[float]] = {}
    for _ in range(3):
        for count in workers:
            rate = rate_of(device_batches(images, workers=count), num_batches=4)
            rounds.setdefault(f"| images | {count} |", []).append(rate)
        rate = rate_of(_tf_batches(images), num_batches=4)
        rounds.setdefault("| images, tf.data | autotuned |", []).append(rate)
    for name, rates in rounds.items():
        print(f"{name} {statistics.median(rates):,.0f} |")


def device_batches(config: Config, *, workers: int | None) -> Iterator[dict]:
    """The batches of a config, as training has them on its devices."""
    values = {"data": {**vars(config.data), "workers": workers}}
    config = from_dict(values | {"training": {"batch_size": BATCH_SIZE}})
    batches = train_batches(config, open_source(config, "train"))
    return prefetch(make_mesh(), batches, batch_size=BATCH_SIZE)


def _tf_batches(config: Config) -> Iterator[dict]:
    """Batches by a plain tf.data pipeline: read, decode, bicubic, centre, mirror, to the device."""
    import tensorflow as tf

    def load(path: tf.Tensor) -> tf.Tensor:
        image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
        size = tf.cast(tf.shape(image)[:2], tf.float32)
        shape = tf.cast(tf.round(size * 256 / tf.reduce_min(size)), tf.int32)
        image = tf.image.resize(image, shape, "bicubic", antialias=True)
        image = tf.image.resize_with_crop_or_pad(image, 256, 256)
        image = tf.image.random_flip_left_right(image)
        return tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)

    pattern = config.data.name.removeprefix("folder:") + "/*.jpg"
    files = tf.data.Dataset.list_files(pattern, shuffle=True).repeat()
    dataset = files.map(load, num_parallel_calls=tf.data.AUTOTUNE).batch(BATCH_SIZE)
    batches = dataset.prefetch(2).as_numpy_iterator()
    named = ({"image": batch} for batch in batches)
    return prefetch(make_mesh(), named, batch_size=BATCH_SIZE)


def rate_of(batches: Iterator[dict], *, num_batches: int) -> float:
    """The examples a second that come after the first batch."""
    jax.block_until_ready(next(batches))
    start = time.perf_counter()
    for _ in range(num_batches):
        jax.block_until_ready(next(batches))
    return num_batches * BATCH_SIZE / (time.perf_counter() - start)


def _print_wait(config: Config) -> None:
    share = wait_share(device_batches(config, workers=None))
    print(f"\nA step that takes 2,000 latents a second waits {share:.2%} of its time.")


def wait_share(batches: Iterator[dict], *, num_batches: int = 100) -> float:
    """The share of time that a step which takes 2,000 latents a second waits for its batch."""
    jax.block_until_ready(next(batches))
    waited, start = 0.0, time.perf_counter()
    for _ in range(num_batches):
        before = time.perf_counter()
        jax.block_until_ready(next(batches))
        waited += time.perf_counter() - before
        time.sleep(1 / STEPS_PER_SECOND)
    return waited / (time.perf_counter() - start)


def _print_memory(config: Config) -> None:
    process = psutil.Process()
    batches = device_batches(config, workers=None)
    print("| batches | resident MiB |\n|---|---|")
    for number, batch in zip(range(1, 20_001), batches):
        jax.block_until_ready(batch)
        if number in (100, 500) or number % 2500 == 0:
            print(f"| {number:,} | {process.memory_info().rss / 2**20:,.0f} |")


if __name__ == "__main__":
    main()
