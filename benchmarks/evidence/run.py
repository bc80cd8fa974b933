"""Trains and scores the runs of a folder, each once, by the functions of the modes."""

import dataclasses
import json
import logging
from collections.abc import Iterable, Iterator
from typing import Any

import filelock
import jax
import numpy as np

from benchmarks.digits import measure
from benchmarks.evidence.rows import Row, Scoring
from benchmarks.evidence.study import (
    Record,
    Study,
    definition,
    drawing_options,
    evaluate_options,
    sample_options,
)
from diffussm_jax.config import parsing
from diffussm_jax.errors import Preempted
from diffussm_jax.evaluate import evaluate, result_path
from diffussm_jax.files import one_writer, write_json
from diffussm_jax.refstats import refstats
from diffussm_jax.sample import OUTPUTS_FILE, sample
from diffussm_jax.train import train
from diffussm_jax.workdir import layout

logger = logging.getLogger(__name__)

SCORES = ("frechet_distance", "class_agreement", "precision", "recall", "inception_score")


def runs_of(rows: Iterable[Row]) -> Iterator[tuple[Row, int]]:
    """Each row and seed; the first seed of every row before the second of any."""
    rows = list(rows)
    for number in range(max(len(row.seeds) for row in rows)):
        yield from ((row, row.seeds[number]) for row in rows if number < len(row.seeds))


def run_all(study: Study, rows: Iterable[Row]) -> list[str]:
    """Train and score all runs that nobody else has in hand; return what failed, and why.

    Raises:
        UserError: a row does not fit its config, or a run of it was another's.
        Preempted: the process was told to stop.
    """
    runs, failures = list(runs_of(rows)), []
    for row, seed in runs:
        study.record(row, seed)
        for scoring in study.scorings(row):
            study.config(row, seed, **sample_options(scoring))
    for row, seed in runs:
        path = study.record_path(row, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with filelock.FileLock(path.with_suffix(".lock"), timeout=0):
                _run(study, row, seed)
        except filelock.Timeout:
            logger.info("%s, seed %d: in another process's hands", row.name, seed)
        except Preempted:
            raise
        except Exception as error:  # the other rows are hours of work
            logger.exception("%s, seed %d failed", row.name, seed)
            failures.append(f"{row.name}, seed {seed}: {error}")
        jax.clear_caches()
    return failures


def _run(study: Study, row: Row, seed: int) -> None:
    record, missing = study.record(row, seed), {}
    if record is not None:
        missing = _missing(study, row, record)
    if record is None or (missing and not layout.holds_run(study.workdir(row, seed))):
        record = _train(study, row, seed)
        missing = _missing(study, row, record)
    for scoring, facts in missing.items():
        logger.info("%s, seed %d: scoring %s", row.name, seed, scoring.name)
        record.scores[scoring.name] = facts | _score(study, row, seed, scoring)
        _write(study, row, record)


def _missing(study: Study, row: Row, record: Record) -> dict[Scoring, dict[str, Any]]:
    """The scorings that a run lacks, or has of other images; with what they are of."""
    facts = {x: study.facts(row, x) for x in study.scorings(row)}
    return {
        x: y for x, y in facts.items() if not y.items() <= record.scores.get(x.name, {}).items()
    }


def _write(study: Study, row: Row, record: Record) -> None:
    write_json(study.record_path(row, record.seed), dataclasses.asdict(record))


def _train(study: Study, row: Row, seed: int) -> Record:
    if row.teacher is not None:
        _have_trained(study, row, row.teacher, seed)
    logger.info("%s, seed %d: training", row.name, seed)
    config, workdir = study.config(row, seed), study.workdir(row, seed)
    train(config, workdir)
    lines = (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    speeds = [x["images_per_second"] for x in map(json.loads, lines) if "images_per_second" in x]
    speed = float(np.median(speeds))
    device = jax.devices()[0].device_kind
    record = Record(row.name, seed, definition(config), device, speed, {})
    _write(study, row, record)
    return record


def _have_trained(study: Study, row: Row, teacher: Row, seed: int) -> None:
    """Train a row's teacher, and let it draw, unless that is done; who is at it is waited for."""
    path = study.record_path(teacher, seed)
    with filelock.FileLock(path.with_suffix(".lock")):
        is_trained = study.record(teacher, seed) is not None
        if not (is_trained and layout.holds_run(study.workdir(teacher, seed))):
            _train(study, teacher, seed)
        if row.num_drawn and not _has_drawn(study, row, seed):
            logger.info("%s, seed %d: drawing %d images", teacher.name, seed, row.num_drawn)
            config = study.config(teacher, seed, **drawing_options(row))
            sample(config, study.workdir(teacher, seed))


def _has_drawn(study: Study, row: Row, seed: int) -> bool:
    """Whether the images are complete; other samples of the same teacher leave them alone."""
    path = study.drawn(row, seed).with_name(OUTPUTS_FILE)
    jobs = parsing.read_as(path, dict) if path.exists() else {}
    return jobs.get("classes", {}).get("num") == row.num_drawn


def _score(study: Study, row: Row, seed: int, scoring: Scoring) -> dict[str, float]:
    """Draw into the work directory, and score the images by what the rows on the data share."""
    options = sample_options(scoring)
    workdir, folder = study.workdir(row, seed), study.reference(row)
    images = workdir / "samples" / "samples.npz"
    sample(study.config(row, seed, **options), workdir)
    _make_reference(study, row)
    name = f"{row.name}-{seed}-{scoring.name}"
    config = study.config(row.on_data, 0, **evaluate_options(images, name))
    evaluate(config, folder)
    scores = parsing.read_as(result_path(config, folder), dict)["scores"]
    scores = {name: scores[name] for name in SCORES if name in scores}
    if config.data.name == "digits":
        with np.load(images) as drawn:
            scores |= measure(drawn["arr_0"], drawn["arr_1"])
    return scores


def _make_reference(study: Study, row: Row) -> None:
    """Train the classifier and write the reference, unless they are there."""
    folder = study.reference(row)
    path = folder / "evaluation" / "reference-classifier.npz"
    with one_writer(folder):
        if not path.exists():
            refstats(study.config(row.on_data, 0, **{"evaluate.features": "classifier"}), folder)
