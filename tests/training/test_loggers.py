"""Where a run's numbers and sample grids go: Weights & Biases offline, TensorBoard, JSON lines."""

import io
import json
import struct
import sys

import numpy as np
import pytest
from PIL import Image

from diffussm_jax import train as train_lib
from diffussm_jax.config import from_dict
from diffussm_jax.errors import UserError
from diffussm_jax.training.wandb_writer import WandbWriter
from tests.conftest import merge

LOGGERS = ("tensorboard", "wandb")
HEADER = 7  # bytes of a wandb file before its first block
BLOCK = 2**15


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """The mode of its environment variable; its settings and caches are not the user's."""
    for name, value in (("MODE", "offline"), ("CONFIG_DIR", tmp_path), ("CACHE_DIR", tmp_path)):
        monkeypatch.setenv(f"WANDB_{name}", str(value))
    import wandb  # here, because it reads the environment

    yield
    wandb.teardown()


def records_of(workdir):
    """All records of each of a work directory's offline runs, in the order of their starts.

    The files are logs of LevelDB, in blocks of 32 KiB: checksum, length, kind (whole, first, middle
    or last part), bytes.
    """
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # its service writes the files to their ends
    for path in sorted(workdir.glob("wandb/offline-run-*/run-*.wandb")):
        data, records, text, at = path.read_bytes(), [], b"", HEADER
        while at + HEADER <= len(data):
            if BLOCK - at % BLOCK < HEADER:
                at += BLOCK - at % BLOCK
            _, length, kind = struct.unpack("<IHB", data[at : at + 7])
            text += data[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4):
                records.append(Record.FromString(text))
                text = b""
        yield records


def rows_of(records):
    """The rows of a run's history, each a mapping of names to values."""
    for record in records:
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            yield {x.key or ".".join(x.nested_key): json.loads(x.value_json) for x in items}


def test_a_resumed_run_goes_on_in_its_run_and_sends_no_step_twice(tiny_config, tmp_path):
    training = {"loggers": LOGGERS, "log_every": 1, "sample_every": None, "ema_lengths": ()}
    config = merge(tiny_config, {"training": training})
    workdir = tmp_path / "my run"
    train_lib.train(config, workdir)
    longer = merge(tiny_config, {"training": training | {"num_steps": 8}})
    (workdir / "checkpoints" / "6").rename(tmp_path / "6")  # as if killed before it was saved
    train_lib.train(longer, workdir)
    first, second = records_of(workdir)
    runs = [next(x.run for x in part if x.HasField("run")) for part in (first, second)]
    assert runs[0].run_id == runs[1].run_id
    assert runs[0].display_name == "my run"
    configured = {x.key: json.loads(x.value_json) for x in runs[0].config.update}
    assert configured["training"]["num_steps"] == 6
    rows = [list(rows_of(part)) for part in (first, second)]
    assert [[x["_step"] for x in part] for part in rows] == [[1, 2, 3, 4, 5, 6], [7, 8]]
    assert {"loss", "grad_norm", "images_per_second"} <= rows[0][1].keys()
    assert "eval_loss" in rows[0][3]
    assert not (workdir / "metrics.jsonl").exists()


def test_sample_grids_are_images_of_tensorboard_and_of_wandb(tiny_config, tmp_path):
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    train_lib.train(merge(tiny_config, {"training": {"loggers": LOGGERS}}), tmp_path)
    expected = np.asarray(Image.open(tmp_path / "samples" / "step_0000006.png"))
    (media,) = tmp_path.glob("wandb/offline-run-*/files/media/images/samples_6_*.png")
    np.testing.assert_array_equal(np.asarray(Image.open(media)), expected)
    (path,) = tmp_path.glob("events.out.tfevents.*")
    values = [x for event in EventFileLoader(str(path)).Load() for x in event.summary.value]
    (grid,) = [x.tensor for x in values if x.tag == "samples"]
    shown = np.asarray(Image.open(io.BytesIO(grid.string_val[2])))  # after its width and height
    np.testing.assert_array_equal(shown, expected)


def test_a_run_that_begins_anew_is_another_run(tmp_path):
    ids = []
    for start_step in (0, 0, 3):
        writer = WandbWriter(from_dict({}), tmp_path, tmp_path, start_step=start_step)
        writer.write_scalars(start_step + 1, {"loss": 1.0})
        writer.close()
        ids.append(json.loads((tmp_path / "wandb.json").read_text())["id"])
    assert ids[0] != ids[1] == ids[2]


def test_a_service_that_is_down_leaves_the_run_offline(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setattr("diffussm_jax.training.wandb_writer.INIT_SECONDS", 1)
    with caplog.at_level("INFO", "diffussm_jax"):
        writer = WandbWriter(from_dict({}), tmp_path, tmp_path, start_step=0)
    writer.write_scalars(1, {"loss": 0.5})
    writer.close()
    assert "wandb is offline until the next start: " in caplog.text
    (records,) = records_of(tmp_path)
    assert [(x["_step"], x["loss"]) for x in rows_of(records)] == [(1, 0.5)]


def test_a_client_that_breaks_does_not_stop_the_run(tmp_path, caplog):
    import wandb

    writer = WandbWriter(from_dict({}), tmp_path, tmp_path, start_step=0)
    wandb.teardown()  # its service is gone
    with caplog.at_level("INFO", "diffussm_jax"):
        for step in (1, 2):
            writer.write_scalars(step, {"loss": 1.0})
        writer.close()
    assert caplog.text.count("wandb gets no more of this run") == 1


def test_a_missing_key_or_package_is_one_line(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(UserError, match="No API key configured.*WANDB_MODE=offline") as error:
        WandbWriter(from_dict({}), tmp_path, tmp_path, start_step=0)
    assert "\n" not in str(error.value)
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = merge(tiny_config, {"training": {"loggers": LOGGERS}})
    with pytest.raises(UserError, match="loggers: 'wandb' needs its package: pip install wandb"):
        train_lib.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
