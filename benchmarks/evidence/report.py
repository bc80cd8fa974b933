"""The tables, the commands and the plots of what a folder's runs have shown so far."""

import itertools
import logging
import shlex
import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.evidence.rows import COMPARISONS, ROWS, Comparison, Row, Scoring
from benchmarks.evidence.study import (
    Record,
    Study,
    drawing_options,
    evaluate_options,
    sample_options,
)
from benchmarks.throughput.tables import table
from diffussm_jax.errors import UserError
from diffussm_jax.files import one_writer, write_json, write_text
from diffussm_jax.planning.multiply_adds import multiply_adds

logger = logging.getLogger(__name__)

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

DISTANCE = "frechet_distance"
# Heading, factor and decimals of each score in the tables; the last three are benchmarks.digits'.
COLUMNS = {
    DISTANCE: ("Frechet distance", 1, 2),
    "class_agreement": ("class agreement, %", 100, 1),
    "agreement": ("agreement by 3 neighbours, %", 100, 1),
    "variance": ("variance", 1, 2),
    "copies": ("copies, %", 100, 1),
}
Entry = tuple[Row, Scoring, list[dict[str, Any]]]  # the scores of each seed


def write_report(study: Study) -> None:
    """Write evidence.md, evidence.json and a plot for each comparison that has scores.

    Raises:
        UserError: a run was trained by another definition of its row.
    """
    with one_writer(study.folder / "evidence.md"):
        _write_report(study)


def _write_report(study: Study) -> None:
    records = {row.name: _records(study, row) for row in ROWS.values()}
    lines = ["# Evidence\n"]
    for comparison in COMPARISONS:
        entries = list(_entries(study, comparison, records))
        if entries:
            plot = _plot_calls if comparison.plot == "calls" else _plot_seeds
            plot(entries, study.folder / f"{comparison.name}.png")
            rows = [_cells(*entry) for entry in entries]
            _compare_with_teacher(entries, rows)
            lines += [f"## {comparison.question}\n", table(rows)]
            lines += [f"\n![{comparison.question}]({comparison.name}.png)\n"]
    trained = [row for row in ROWS.values() if records[row.name]]
    if trained:
        lines += ["## Trainings\n", table([_training(study, row, records) for row in trained])]
        lines += ["\n## Commands\n", "```bash", *_commands(study, trained), "```"]
    write_text(study.folder / "evidence.md", "\n".join(lines) + "\n")
    write_json(study.folder / "evidence.json", _as_json(study, trained, records))


def _records(study: Study, row: Row) -> list[Record]:
    """The runs of a row by its definition of today."""
    records = []
    for seed in row.seeds:
        try:
            records.append(study.record(row, seed))
        except UserError as error:
            logger.warning("left out: %s", error)
    return [record for record in records if record is not None]


def _entries(
    study: Study, comparison: Comparison, records: dict[str, list[Record]]
) -> Iterable[Entry]:
    for name, chosen in comparison.rows.items():
        row = ROWS[name]
        for scoring in study.scorings(row):
            if not chosen or scoring.name in chosen:
                scores = [
                    of_seed | {"seed": record.seed}
                    for record in records[name]
                    if (of_seed := record.scores.get(scoring.name)) is not None
                    and _is_of_today(of_seed, study.facts(row, scoring), record)
                ]
                if scores:
                    yield row, scoring, scores


def _is_of_today(scores: dict[str, Any], facts: dict[str, Any], record: Record) -> bool:
    """Whether scores are of images drawn as these facts say; if not, the log tells."""
    for name, x in facts.items():
        if scores.get(name) != x:
            had = scores.get(name)
            where = f"{record.row}, seed {record.seed}, {scores.get('sampler')}"
            logger.warning("left out: %s has %s = %r, and now it is %r", where, name, had, x)
            return False
    return True


def _cells(row: Row, scoring: Scoring, scores: Sequence[dict[str, Any]]) -> dict[str, Any]:
    cells: dict[str, Any] = {
        "training": row.name,
        "sampler": scoring.sampler,
        "steps": scoring.steps,
        "guidance": f"{scoring.cfg_scale:g}",
        "calls": scores[0]["calls"],
    }
    for name, (heading, factor, decimals) in COLUMNS.items():
        if all(name in x for x in scores):
            cells[heading] = _mean([factor * x[name] for x in scores], decimals)
    return cells | {"images": scoring.num, "seeds": len(scores)}


def _compare_with_teacher(entries: Sequence[Entry], cells: Sequence[dict[str, Any]]) -> None:
    """Add to the cells a training's distance over its teacher's of the same seeds and sampling."""
    teachers = {row.teacher.name for row, _, _ in entries if row.teacher is not None}
    of_teachers = {
        (scoring.name, x["seed"]): x[DISTANCE]
        for row, scoring, scores in entries
        if row.name in teachers
        for x in scores
    }
    for (_, scoring, scores), line in zip(entries, cells, strict=True):
        ratios = [
            x[DISTANCE] / of_teachers[scoring.name, x["seed"]]
            for x in scores
            if (scoring.name, x["seed"]) in of_teachers
        ]
        if teachers and ratios:
            line["over the teacher's"] = _mean(ratios, 2)


def _mean(values: Sequence[float], decimals: int) -> str:
    """The mean over seeds; where there are several, with their standard deviation."""
    mean = f"{statistics.fmean(values):.{decimals}f}"
    return f"{mean} ± {statistics.stdev(values):.{decimals}f}" if len(values) > 1 else mean


def _training(study: Study, row: Row, records: dict[str, list[Record]]) -> dict[str, Any]:
    """A training in a line; its multiply-adds are those of a call of the network for an image."""
    runs = records[row.name]
    config = study.config(row, row.seeds[0])
    num_images = config.training.num_steps * config.training.batch_size
    speed = statistics.fmean(x.images_per_second for x in runs)
    return {
        "training": row.name,
        "seeds": len(runs),
        "G multiply-adds": f"{multiply_adds(config).total / 1e9:.3f}",
        "images": f"{num_images:,}",
        "images/s": f"{speed:,.0f}",
        "minutes": f"{num_images / speed / 60:.1f}",
        "device": ", ".join(sorted({x.device for x in runs})),
    }


def _commands(study: Study, rows: Iterable[Row]) -> Iterator[str]:
    """How a user trains each row's first seed, and scores it in the last of its ways."""
    of_reference = study.options | {"evaluate.features": "classifier"}
    references = set()
    for row in rows:
        seed, scoring = row.seeds[0], study.scorings(row)[-1]
        workdir, reference = study.workdir(row, seed), study.reference(row)
        images = workdir / "samples" / "samples.npz"
        name = f"{row.name}-{seed}-{scoring.name}"
        changes = study.changes(row, seed)
        if reference not in references:
            references.add(reference)
            yield command(row.on_data, reference, "refstats", of_reference) + "\n"
        if row.teacher is not None and row.num_drawn:
            drawing = study.changes(row.teacher, seed) | drawing_options(row)
            yield command(row.teacher, study.workdir(row.teacher, seed), "sample", drawing)
        yield command(row, workdir, "train", changes)
        yield command(row, workdir, "sample", changes | sample_options(scoring))
        of_images = study.options | evaluate_options(images, name)
        yield command(row.on_data, reference, "evaluate", of_images) + "\n"


def command(row: Row, workdir: Path, mode: str, fields: dict[str, str]) -> str:
    """The command of a mode, one line."""
    options = shlex.join(f"--config.{name}={value}" for name, value in fields.items())
    program = f"python -m diffussm_jax.main --config={row.config}"
    return f"{program} --workdir={workdir} --mode={mode} {options}"


def _as_json(
    study: Study, rows: Iterable[Row], records: dict[str, list[Record]]
) -> list[dict[str, Any]]:
    return [
        {
            "row": row.name,
            "config": row.config,
            "changes": study.changes(row, record.seed),
            "seed": record.seed,
            "device": record.device,
            "images_per_second": record.images_per_second,
            "scores": record.scores,
        }
        for row in rows
        for record in records[row.name]
    ]


def _plot_calls(entries: Sequence[Entry], path: Path) -> None:
    """Draw the distance over the calls: a line for each training and scale of guidance."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for (name, scale), group in itertools.groupby(
        entries, key=lambda entry: (entry[0].name, entry[1].cfg_scale)
    ):
        points = [(x["calls"], x[DISTANCE]) for _, _, seeds in group for x in seeds]
        calls = sorted({x for x, _ in points})
        means = [statistics.fmean(y for x, y in points if x == n) for n in calls]
        label = name if scale == 1 else f"{name}, guidance {scale:g}"
        (line,) = axes.plot(calls, means, label=label)
        axes.plot(*zip(*points), ".", color=line.get_color())
    axes.set(xscale="log", xlabel="calls of the network for an image")
    axes.set(yscale="log", ylabel="Frechet distance")
    calls = sorted({x["calls"] for _, _, seeds in entries for x in seeds})
    axes.set_xticks(calls, [str(x) for x in calls], minor=False)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.legend()
    _save(figure, axes, path)


def _plot_seeds(entries: Sequence[Entry], path: Path) -> None:
    """Draw the distance of each seed as a dot, a line of them for each way to sample a training."""
    figure, axes = plt.subplots(figsize=(6, 1 + 0.35 * len(entries)), layout="constrained")
    names = [f"{row.name}, {scoring.name}" for row, scoring, _ in entries]
    for place, (_, _, seeds) in enumerate(entries):
        distances = [x[DISTANCE] for x in seeds]
        axes.plot(distances, [place] * len(seeds), "o", color="C0", alpha=0.6)
        axes.plot(statistics.fmean(distances), place, "|", color="black", markersize=14)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set(xlabel="Frechet distance", xlim=(0, None))
    _save(figure, axes, path)


def _save(figure: Figure, axes: Axes, path: Path) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
