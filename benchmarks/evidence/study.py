"""A folder of runs: where each is, what it is, and what is known of it.

references/DATA/      the classifier and the reference that all runs on the data are scored with
runs/ROW/SEED/        a work directory; it may be removed when its scores are complete
scores/ROW-SEED.json  what the run was, its speed, and its scores
"""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from absl import flags

from benchmarks.evidence.rows import Row, Scoring
from diffussm_jax.config import Config, config_file, from_dict, parsing
from diffussm_jax.errors import UserError
from diffussm_jax.workdir import layout

# Large calls: they are as fast on a CPU, and many times as fast on an accelerator.
BATCH_SIZE = "500"


@dataclasses.dataclass(frozen=True)
class Record:
    """A run and its scores so far.

    Attributes:
        definition: the fields that the trained model depends on.
        images_per_second: the median over the log's lines.
        scores: by the names of the scorings; beside the scores what they are of.
    """

    row: str
    seed: int
    definition: dict[str, Any]
    device: str
    images_per_second: float
    scores: dict[str, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Study:
    """A folder of runs, and what all of them have in common.

    Attributes:
        options: values of dotted fields for every row, as after `--config.`.
        scale: multiplies the steps of every training.
    """

    folder: Path
    options: dict[str, str] = dataclasses.field(default_factory=dict)
    scale: float = 1.0

    def changes(self, row: Row, seed: int) -> dict[str, str]:
        """The fields of a run that differ from its config file, as after `--config.`."""
        num_steps = max(1, round(row.num_steps * self.scale))
        own = {"seed": str(seed), "training.num_steps": str(num_steps)}
        if row.teacher is not None:
            field = "training.teacher" if row.is_taught else "training.init_from"
            own[field] = str(self.workdir(row.teacher, seed))
        if row.num_drawn:
            # The samples have the padding of the images that the teacher learned.
            own |= {"data.name": f"folder:{self.drawn(row, seed)}", "data.pad": "0"}
            own |= {"data.eval_split": "None"}
        return own | row.changes | self.options

    def config(self, row: Row, seed: int, **more: str) -> Config:
        """The config of a run.

        Raises:
            UserError: in one line, where a field does not exist or does not fit the others.
        """
        try:
            given = {
                name: read_value(name, x) for name, x in (self.changes(row, seed) | more).items()
            }
            return from_dict(config_file.load(row.config), given)
        except UserError as error:
            raise UserError(f"{row.name}: {error}") from error

    def scorings(self, row: Row) -> tuple[Scoring, ...]:
        """The scorings of a row, of as many images as the options say, if they do.

        Raises:
            UserError: they do not say a number.
        """
        num = self.options.get("sample.num")
        if num is None:
            return row.scorings
        num_images = parsing.with_option(Config(), "sample.num", num).sample.num
        return tuple(dataclasses.replace(x, num=num_images) for x in row.scorings)

    def facts(self, row: Row, scoring: Scoring) -> dict[str, Any]:
        """What the scores of a scoring are of; they are kept beside them."""
        own = sample_options(scoring)
        options = {
            name: x
            for name, x in self.options.items()
            if name.startswith(("sample.", "evaluate.")) and name not in own
        }
        calls = self.calls(row, scoring)
        return dataclasses.asdict(scoring) | {"calls": calls, "options": options}

    def calls(self, row: Row, scoring: Scoring) -> int:
        """The calls of the network for an image.

        Guidance takes a second call, unless its scale is an input of the model.
        """
        calls = 2 * scoring.steps - 1 if scoring.sampler == "heun" else scoring.steps
        takes_scale = self.config(row, row.seeds[0]).guidance.max_scale is not None
        return calls if scoring.cfg_scale == 1 or takes_scale else 2 * calls

    def workdir(self, row: Row, seed: int) -> Path:
        """The work directory of a run."""
        return self.folder / "runs" / row.name / str(seed)

    def drawn(self, row: Row, seed: int) -> Path:
        """The folder of the images that the teacher of a row draws to be its data."""
        assert row.teacher is not None
        return self.workdir(row.teacher, seed) / "samples" / "classes"

    def reference(self, row: Row) -> Path:
        """The folder of the classifier and the reference of a row's data."""
        data = self.config(row.on_data, row.seeds[0]).data.name
        return self.folder / "references" / re.sub(r"\W+", "-", data)

    def record_path(self, row: Row, seed: int) -> Path:
        """Where the scores of a run are kept."""
        return self.folder / "scores" / f"{row.name}-{seed}.json"

    def record(self, row: Row, seed: int) -> Record | None:
        """What is known of a run whose training is complete.

        Raises:
            UserError: it was trained by another definition of its row.
        """
        path = self.record_path(row, seed)
        if not path.exists():
            return None
        record = parsing.read_as(path, Record)
        for field, now in definition(self.config(row, seed)).items():
            then = record.definition.get(field, parsing.get_field(Config(), field))
            if then != now:
                raise UserError(
                    f"--out={self.folder} holds a run of {row.name} with {field} = {then!r}, and "
                    f"now it is {now!r}: remove {path} and {self.workdir(row, seed)}, or give "
                    "another --out"
                )
        return record


def read_value(field: str, text: str) -> str | bool:
    """The value of a switch, else the text, as the command line of a run would have it."""
    if parsing.find_type(Config, field) is not bool:
        return text
    try:
        return bool(flags.BooleanParser().parse(text))
    except ValueError as error:
        raise UserError(f"config.{field} must be true or false, got {text!r}") from error


def definition(config: Config) -> dict[str, Any]:
    """The fields that a trained model depends on, as JSON."""
    names = [x for x in parsing.field_names(Config) if not layout.may_differ(x)]
    values = {x: parsing.get_field(config, x) for x in [*names, "training.num_steps"]}
    return json.loads(json.dumps(values))


def sample_options(scoring: Scoring) -> dict[str, str]:
    """The options of `--mode=sample` for a scoring."""
    values = dataclasses.asdict(scoring) | {"batch_size": BATCH_SIZE}
    return {f"sample.{name}": str(value) for name, value in values.items()}


def drawing_options(row: Row) -> dict[str, str]:
    """The options of `--mode=sample` by which the teacher of a row draws its data."""
    assert row.teacher is not None
    (scoring,) = row.teacher.scorings
    options = sample_options(dataclasses.replace(scoring, num=row.num_drawn))
    return options | {"sample.outputs": "classes", "sample.labels": "balanced"}


def evaluate_options(images: Path, name: str) -> dict[str, str]:
    """The options of `--mode=evaluate` for the images of a scoring."""
    shared = {"evaluate.features": "classifier", "evaluate.batch_size": BATCH_SIZE}
    return shared | {"evaluate.images": str(images), "evaluate.name": name}
