"""The named trainings, how each is scored, and the questions that they answer."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class Scoring:
    """Images drawn in one way, to be scored.

    Attributes:
        num: images; distances of other numbers of images do not compare.
    """

    sampler: str
    steps: int
    cfg_scale: float = 1.0
    num: int = 10_000

    @property
    def name(self) -> str:
        """The name of its result among those of a run."""
        guidance = "" if self.cfg_scale == 1 else f"_cfg{self.cfg_scale:g}"
        return f"{self.sampler}_{self.steps}{guidance}"


@dataclasses.dataclass(frozen=True)
class Row:
    """A training by one recipe, once for each seed.

    Attributes:
        changes: values of dotted fields, as after `--config.`, in place of the config file's.
        num_steps: of the training.
        teacher: the row whose run of the same seed it learns from, if there is one.
        is_taught: whether it imitates the teacher; else it only begins from the teacher's weights.
        num_drawn: images that the teacher draws to be the data, in place of the config's; or 0.
    """

    name: str
    config: str
    changes: dict[str, str]
    num_steps: int
    seeds: tuple[int, ...]
    scorings: tuple[Scoring, ...]
    teacher: "Row | None" = None
    is_taught: bool = True
    num_drawn: int = 0

    @property
    def on_data(self) -> "Row":
        """The row whose data this one is scored by: itself, or the teacher that drew its data."""
        return self.teacher if self.teacher is not None and self.num_drawn else self


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Rows that answer a question together.

    Attributes:
        name: of its plot.
        rows: names of rows, each with the names of the scorings that are compared; empty means all.
        plot: the distance over the calls, or a dot for each seed.
    """

    name: str
    question: str
    rows: dict[str, tuple[str, ...]]
    plot: Literal["calls", "seeds"]


FLOW = {"diffusion.process": "flow", "diffusion.variance": "none", "sample.sampler": "euler"}
# configs/one_step.py's, with the optimizer of the other rows.
MEAN_FLOW = FLOW | {
    "diffusion.process": "mean_flow",
    "diffusion.weighting": "adaptive",
    "guidance.scale": "1.25",
    "sample.cfg_scale": "1",
}
LOGIT_NORMAL = {"diffusion.time_sampling": "logit_normal"}
GUIDED = {"guidance.scale": "1.5", "sample.cfg_scale": "1"}
COMMON = {"checkpoint.keep": "1", "training.sample_every": "None"}
SEEDS = (0, 1, 2)
CALLS = (1, 2, 4, 8, 20, 50)


def at_calls(
    sampler: str, calls: Iterable[int], *, cfg_scale: float = 1.0, num: int = 10_000
) -> tuple[Scoring, ...]:
    """One scoring for each number of calls; with guidance a step takes two, and 1 is left out."""
    per_step = 1 if cfg_scale == 1 else 2
    return tuple(Scoring(sampler, n // per_step, cfg_scale, num) for n in calls if n >= per_step)


def _digits(
    name: str, changes: dict[str, str], scorings: tuple[Scoring, ...], config: str = "digits"
) -> Row:
    # Steps and learning rates are those of the recipe of one call, a third longer.
    changes = COMMON | {"optimizer.schedule": "cosine"} | changes
    return Row(f"digits_{name}", f"configs/{config}.py", changes, 4000, SEEDS, scorings)


def _fashion(name: str, changes: dict[str, str], *scorings: Scoring) -> Row:
    config = "configs/fashion_mnist.py"
    return Row(f"fashion_{name}", config, COMMON | changes, 2600, SEEDS, scorings)


def _students(prefix: str, teacher: Row) -> Iterator[Row]:
    """Mixers in place of the teacher's attention: a fifth and a third of its steps, and alone.

    Beside them what tells where a student's distance comes from: the teacher itself with as many
    further steps, and S4D that has the teacher's weights and does not imitate it. Then S4D without
    other data than the teacher's samples, and hybrids, of which a part of the layers have
    attention.
    """

    def row(name: str, changes: dict[str, str], share: float, **values: Any) -> Row:
        return dataclasses.replace(
            teacher,
            name=f"{prefix}_{name}",
            changes=teacher.changes | changes,
            num_steps=round(share * teacher.num_steps),
            **values,
        )

    yield row("dit_continued", {}, 1 / 3, teacher=teacher, is_taught=False)
    for mixer in ("s4d", "delta_conv", "convnext"):
        changes = {"model.mixer": mixer}
        yield row(f"{mixer}_fifth", changes, 1 / 5, teacher=teacher)
        yield row(f"{mixer}_third", changes, 1 / 3, teacher=teacher)
        yield row(f"{mixer}_third_alone", changes, 1 / 3)
        yield row(f"{mixer}_alone", changes, 1)
    s4d = {"model.mixer": "s4d"}
    yield row("s4d_third_inherited", s4d | {"distill.output": "0"}, 1 / 3, teacher=teacher)
    yield row("s4d_third_drawn", s4d, 1 / 3, teacher=teacher, num_drawn=20_000)
    for name, pattern in (("quarter", "s4d,s4d,s4d,attention"), ("half", "s4d,attention")):
        yield row(f"{name}_attention", {"model.mixers": pattern}, 1)


def _compared(question: str, prefix: str, scoring: Scoring) -> Iterator[Comparison]:
    """The questions about a teacher and its students."""
    for mixer in ("s4d", "delta_conv", "convnext"):
        names = ["fifth", "third", "third_alone", "alone"]
        names += ["third_inherited", "third_drawn"] if mixer == "s4d" else []
        rows = [f"{prefix}_dit", f"{prefix}_dit_continued"]
        rows += [f"{prefix}_{mixer}_{name}" for name in names]
        yield Comparison(
            f"{prefix}_{mixer}",
            f"{question}: {mixer} from a DiT, or alone?",
            {name: (scoring.name,) for name in rows},
            plot="seeds",
        )
    hybrids = ("s4d_alone", "quarter_attention", "half_attention", "dit")
    yield Comparison(
        f"{prefix}_hybrids",
        f"{question}: how many layers need attention?",
        {f"{prefix}_{name}": (scoring.name,) for name in hybrids},
        plot="seeds",
    )


def _digits_at_calls(sampler: str) -> tuple[Scoring, ...]:
    """Without guidance, then at as many calls with it."""
    plain, guided = (at_calls(sampler, CALLS, cfg_scale=x, num=2000) for x in (1.0, 1.5))
    return plain + guided


DIT = {"model.name": "dit", "model.num_heads": "4"}
DIGITS_DRAWN, FASHION_DRAWN = Scoring("ddim", 20, num=2000), Scoring("ddim", 20)
# A DiT of the demo's width and depth, and one on Fashion-MNIST whose depth four divides.
DIGITS_DIT = dataclasses.replace(_digits("dit", DIT, (DIGITS_DRAWN,)), num_steps=1500)
FASHION_DIT = _fashion("dit", DIT | {"model.depth": "8", "model.scan_unroll": "8"}, FASHION_DRAWN)

ROWS = {
    row.name: row
    for row in (
        _digits("gaussian", {}, _digits_at_calls("ddim")),
        _digits("flow", FLOW, _digits_at_calls("euler")),
        _digits("mean_flow", {}, at_calls("euler", CALLS, num=2000), config="one_step"),
        _fashion("gaussian", {}, *at_calls("ddim", (1, 4, 8, 20)), Scoring("dpm_solver++", 20)),
        _fashion(
            "flow",
            FLOW,
            *at_calls("euler", (1, 4, 8, 20)),
            *at_calls("euler", (20, 40), cfg_scale=1.5),
        ),
        _fashion("mean_flow", MEAN_FLOW, *at_calls("euler", (1, 2, 4, 20))),
        _fashion("flow_logit_normal", FLOW | LOGIT_NORMAL, Scoring("euler", 20)),
        _fashion("gaussian_min_snr", {"diffusion.weighting": "min_snr"}, Scoring("ddim", 20)),
        _fashion("flow_muon", FLOW | {"optimizer.name": "muon"}, Scoring("euler", 20)),
        _fashion("flow_guided", FLOW | GUIDED, *at_calls("euler", (10, 20))),
        DIGITS_DIT,
        *_students("digits", DIGITS_DIT),
        FASHION_DIT,
        *_students("fashion", FASHION_DIT),
    )
}

COMPARISONS = (
    Comparison(
        "digits_calls",
        "Digits: how few calls of the network suffice?",
        {"digits_mean_flow": (), "digits_flow": (), "digits_gaussian": ()},
        plot="calls",
    ),
    Comparison(
        "fashion_calls",
        "Fashion-MNIST: one call, or twenty?",
        {
            "fashion_mean_flow": (),
            "fashion_flow": ("euler_1", "euler_4", "euler_8", "euler_20"),
            "fashion_gaussian": ("ddim_1", "ddim_4", "ddim_8", "ddim_20"),
        },
        plot="calls",
    ),
    Comparison(
        "fashion_flow",
        "Fashion-MNIST: a flow, or DDPM's recipe?",
        {"fashion_flow": ("euler_20",), "fashion_gaussian": ("ddim_20", "dpm_solver++_20")},
        plot="seeds",
    ),
    Comparison(
        "fashion_times",
        "Fashion-MNIST: times of a flow drawn logit-normally, or uniformly?",
        {"fashion_flow_logit_normal": ("euler_20",), "fashion_flow": ("euler_20",)},
        plot="seeds",
    ),
    Comparison(
        "fashion_min_snr",
        "Fashion-MNIST: does Min-SNR help DDPM's recipe?",
        {"fashion_gaussian_min_snr": ("ddim_20",), "fashion_gaussian": ("ddim_20",)},
        plot="seeds",
    ),
    Comparison(
        "fashion_muon",
        "Fashion-MNIST: Muon, or AdamW?",
        {"fashion_flow_muon": ("euler_20",), "fashion_flow": ("euler_20",)},
        plot="seeds",
    ),
    Comparison(
        "fashion_guidance",
        "Fashion-MNIST: guidance in the model, or by a second call?",
        {
            "fashion_flow_guided": (),
            "fashion_flow": ("euler_10_cfg1.5", "euler_20_cfg1.5", "euler_20"),
        },
        plot="seeds",
    ),
    *_compared("Digits", "digits", DIGITS_DRAWN),
    *_compared("Fashion-MNIST", "fashion", FASHION_DRAWN),
)
