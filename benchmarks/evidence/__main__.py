"""Trains named recipes, scores them in one way, and writes the tables that compare them.

python -m benchmarks.evidence --list
python -m benchmarks.evidence --out=runs/evidence [--only=ROW,ROW] [--seeds=1] [--scale=2]
    [--config.x.y=VALUE]

Options of the form --config.x.y=VALUE hold for every row, as on the command line of a run; --scale
multiplies the steps of every training, and --seeds takes the first of each row's seeds alone. The
same command, given again, goes on where a kill ended it. Given several times at once, as many
processes share the work, each a run at a time. At its end each writes evidence.md, evidence.json
and a plot for each comparison, from all scores in the folder.
"""

import argparse
import dataclasses
import importlib
import logging
import os
import sys
from pathlib import Path

from benchmarks.evidence.report import write_report
from benchmarks.evidence.rows import ROWS, Row
from benchmarks.evidence.study import Study
from benchmarks.throughput.tables import table
from diffussm_jax.errors import CommandEnd, UserError
from diffussm_jax.parallel.settings import start_jax


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--list", action="store_true", help="show the rows and do nothing")
    parser.add_argument("--table", action="store_true", help="write the tables and train nothing")
    parser.add_argument("--only", help="names of rows, separated by commas; else all")
    parser.add_argument("--out", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--seeds", type=int, help="how many of a row's seeds; else all")
    args, others = parser.parse_known_args(words)
    if args.seeds is not None and args.seeds < 1:
        raise UserError(f"--seeds={args.seeds} must be at least 1")
    rows = [
        dataclasses.replace(row, seeds=row.seeds[: args.seeds]) for row in chosen_rows(args.only)
    ]
    if not 0 < args.scale < float("inf"):
        raise UserError(f"--scale={args.scale} must be positive and finite")
    study = Study(args.out, read_options(others), args.scale)
    if args.list:
        sys.stdout.write(table([describe(study, row) for row in rows]) + "\n")
        return
    start_logging()
    start_jax()
    failures = []
    if not args.table:
        # It imports TensorFlow, which reads at that time what `start_logging` sets.
        run = importlib.import_module("benchmarks.evidence.run")
        failures = run.run_all(study, rows)
    write_report(study)
    sys.stdout.write(f"wrote {study.folder / 'evidence.md'}\n")
    if failures:
        raise UserError("; ".join(failures))


def chosen_rows(only: str | None) -> list[Row]:
    """The rows of these names, or all.

    Raises:
        UserError: there is no row of a name.
    """
    names = list(ROWS) if only is None else only.split(",")
    for name in names:
        if name not in ROWS:
            raise UserError(f"there is no row {name!r}: --list shows them")
    return [ROWS[name] for name in names]


def read_options(words: list[str]) -> dict[str, str]:
    """The values of dotted fields in words of the form --config.x.y=VALUE.

    Raises:
        UserError: a word is of another form, or is the seed, which rows have of their own.
    """
    options = {}
    for word in words:
        name, is_given, value = word.removeprefix("--config.").partition("=")
        if not (word.startswith("--config.") and is_given):
            raise UserError(f"unexpected argument {word!r}: options are --config.x.y=VALUE")
        if name == "seed":
            raise UserError(f"{word}: each row has seeds of its own")
        options[name] = value
    return options


def describe(study: Study, row: Row) -> dict[str, str]:
    """What `--list` says of a row."""
    changes = study.changes(row, row.seeds[0])
    return {
        "row": row.name,
        "config": row.config,
        "seeds": ", ".join(map(str, row.seeds)),
        "changes": " ".join(f"{name}={x}" for name, x in changes.items() if name != "seed"),
        "scorings": " ".join(scoring.name for scoring in row.scorings),
    }


def start_logging() -> None:
    """Show what the package and this program log, on stderr."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # on, it announces itself
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    for name in ("diffussm_jax", "benchmarks"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.handlers, logger.propagate = [handler], False


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except CommandEnd as end:
        sys.stderr.write(f"{end.last_line}\n")
        sys.exit(end.exit_code)
