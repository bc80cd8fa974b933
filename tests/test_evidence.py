"""Comparisons are trained, scored and tabled once, whatever ends their command."""

import dataclasses
import json

import filelock
import numpy as np
import pytest

from benchmarks.evidence import __main__ as evidence
from benchmarks.evidence import report, rows, run, times
from benchmarks.evidence.study import Study
from diffussm_jax.errors import Preempted, UserError
from diffussm_jax.evaluate import result_path
from diffussm_jax.evaluation import classifier
from diffussm_jax.files import write_json
from tests.jobs import TINY

SCORINGS = (rows.Scoring("ddim", 2), rows.Scoring("ddim", 3, cfg_scale=2.0))
ROW = rows.Row("tiny", "configs/digits.py", {"optimizer.warmup_steps": "2"}, 4, (3, 5), SCORINGS)
OPTIONS = TINY | {"sample.num": 20, "evaluate.reference_images": 50, "training.sample_every": None}


@pytest.fixture
def command(tmp_path, data_dir, monkeypatch):
    """The command line on one tiny row of two seeds, in this process."""
    for module in (evidence, report):
        monkeypatch.setattr(module, "ROWS", {"tiny": ROW})
    monkeypatch.setattr(report, "COMPARISONS", ())  # whose plots take a second each
    options = [f"--config.{name}={value}" for name, value in OPTIONS.items()]
    words = [f"--out={tmp_path}", f"--config.data.data_dir={data_dir}", *options]
    return lambda *more: evidence.main([*words, *more])


@pytest.fixture
def done(monkeypatch):
    """What was trained and drawn, by stand-ins for the modes that leave what they leave."""
    calls = []

    def train(config, workdir):
        calls.append(f"train {config.seed}")
        workdir.mkdir(parents=True)
        (workdir / "metrics.jsonl").write_text('{"step": 4, "images_per_second": 7.0}\n')

    def sample(config, workdir):
        calls.append(f"sample {config.seed} {config.sample.steps}")
        (workdir / "samples").mkdir(exist_ok=True)
        labels = np.arange(20) % 10
        images = np.zeros((20, 8, 8, 1), np.uint8)
        np.savez(workdir / "samples" / "samples.npz", arr_0=images, arr_1=labels)

    def evaluate(config, folder):
        path = result_path(config, folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"scores": {"frechet_distance": float(len(calls)), "precision": 0.5}})

    stand_ins = {"train": train, "sample": sample, "evaluate": evaluate}
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(run, name, stand_in)
    monkeypatch.setattr(run, "refstats", lambda config, folder: None)
    monkeypatch.setattr(run, "measure", lambda images, labels: {"agreement": 0.9})
    monkeypatch.setattr(run.layout, "holds_run", lambda workdir: workdir.exists())
    return calls


ALL = ["train 3", "sample 3 2", "sample 3 3", "train 5", "sample 5 2", "sample 5 3"]


def test_the_first_seeds_alone(command, done):
    command("--seeds=1")
    assert done == ["train 3", "sample 3 2", "sample 3 3"]
    with pytest.raises(UserError, match="--seeds=0 must be at least 1"):
        command("--seeds=0")


def test_a_teacher_is_trained_before_its_student(command, done, tmp_path, monkeypatch):
    """It is not among the chosen rows, and its images are left to whoever asks for them."""
    student = dataclasses.replace(ROW, name="student", num_steps=2, seeds=(3,), teacher=ROW)
    for module in (evidence, report):
        monkeypatch.setattr(module, "ROWS", {"tiny": ROW, "student": student})
    teachers = []

    def train(config, workdir, stand_in=run.train):
        teachers.append(config.training.teacher)
        stand_in(config, workdir)

    monkeypatch.setattr(run, "train", train)
    command("--only=student")
    assert done == ["train 3", "train 3", "sample 3 2", "sample 3 3"]
    assert teachers == [None, str(tmp_path / "runs" / "tiny" / "3")]
    command("--only=tiny,student")
    assert done[4:] == ["sample 3 2", "sample 3 3", "train 5", "sample 5 2", "sample 5 3"]
    commands = (tmp_path / "evidence.md").read_text().partition("## Commands")[2]
    modes = ("refstats", "train", "sample", "evaluate")
    assert [commands.count(f"--mode={mode} ") for mode in modes] == [1, 2, 2, 2]


def test_a_teacher_draws_the_data_of_its_students_once(command, done, tmp_path, monkeypatch):
    teacher = dataclasses.replace(ROW, seeds=(3,), scorings=SCORINGS[:1])
    student = dataclasses.replace(teacher, name="student", teacher=teacher, num_drawn=30)
    again = dataclasses.replace(student, name="again")
    for module in (evidence, report):
        monkeypatch.setattr(module, "ROWS", {"student": student, "again": again})
    sets = []

    def train(config, workdir, stand_in=run.train):
        sets.append((config.data.name, config.data.eval_split))
        stand_in(config, workdir)

    def sample(config, workdir, stand_in=run.sample):
        stand_in(config, workdir)
        if config.sample.outputs == ("classes",):
            jobs = {"classes": {"num": config.sample.num}}
            write_json(workdir / "samples" / "outputs.json", jobs)

    monkeypatch.setattr(run, "train", train)
    monkeypatch.setattr(run, "sample", sample)
    scored = []
    monkeypatch.setattr(run, "refstats", lambda config, folder: scored.append(config.data.name))
    command()
    assert done == ["train 3", "sample 3 2", *["train 3", "sample 3 2"] * 2]
    drawn = f"folder:{tmp_path / 'runs/tiny/3/samples/classes'}"
    assert sets == [("digits", "test"), (drawn, None), (drawn, None)]
    assert set(scored) == {"digits"}
    commands = (tmp_path / "evidence.md").read_text().partition("## Commands")[2]
    drawing = [line for line in commands.splitlines() if "--config.sample.outputs=classes" in line]
    assert len(drawing) == 2  # of the teacher's work directory, for each student
    assert all(f"--workdir={tmp_path / 'runs/tiny/3'} " in line for line in drawing)


def test_nothing_is_trained_or_scored_twice(command, done, tmp_path, monkeypatch):
    with monkeypatch.context() as patches, pytest.raises(Preempted):
        patches.setattr(run, "evaluate", lambda config, folder: raise_(Preempted("told to stop")))
        command()
    assert done == ALL[:2]
    done.clear()
    few = rows.Comparison("few", "Few steps, or fewer?", {"tiny": ()}, plot="calls")
    comparisons = few, dataclasses.replace(few, name="dots", plot="seeds")
    monkeypatch.setattr(report, "COMPARISONS", comparisons)
    command()
    assert done == ALL[1:]
    outputs = "evidence.md", "evidence.json", "few.png", "dots.png"
    written = [(tmp_path / name).read_bytes() for name in outputs]
    command()
    assert done == ALL[1:]
    assert written == [(tmp_path / name).read_bytes() for name in outputs]
    table = written[0].decode()
    assert "| tiny | ddim | 2 | 1 | 2 | 2.50 ± 2.12 |" in table
    assert "| tiny | ddim | 3 | 2 | 6 | 3.50 ± 2.12 |" in table
    assert [x["seed"] for x in json.loads(written[1])] == [3, 5]


def raise_(error):
    raise error


def test_a_run_in_other_hands_is_left_to_them(command, done, tmp_path):
    (tmp_path / "scores").mkdir()
    with filelock.FileLock(tmp_path / "scores" / "tiny-3.lock"):
        command()
    assert done == ALL[3:]


def test_a_run_that_fails_leaves_the_others_to_be_done(command, done, monkeypatch):
    train = run.train

    def fail_once(config, workdir):
        if config.seed == 3:
            raise FloatingPointError("not finite")
        train(config, workdir)

    monkeypatch.setattr(run, "train", fail_once)
    with pytest.raises(UserError, match="tiny, seed 3: not finite"):
        command()
    assert done == ALL[3:]


def test_another_definition_is_refused_before_anything_is_done(command, done):
    command()
    done.clear()
    with pytest.raises(UserError, match="with training.num_steps = 4, and now it is 8: remove"):
        command("--scale=2")
    with pytest.raises(UserError, match=r"tiny: config has no field 'model\.depht\'"):
        command("--config.model.depht=3")
    assert not done


def test_other_images_are_scored_anew_of_a_model_that_is_still_there(command, done, tmp_path):
    command()
    done.clear()
    command("--config.sample.num=30")
    assert done == [x for x in ALL if "sample" in x]
    done.clear()
    command("--config.sample.num=30", "--config.sample.ema=False")
    assert done == [x for x in ALL if "sample" in x]


def test_a_student_is_compared_with_its_teacher_and_with_one_that_goes_on(
    command, done, tmp_path, monkeypatch
):
    one = dataclasses.replace(ROW, seeds=(3,), scorings=SCORINGS[:1])
    student = dataclasses.replace(one, name="student", teacher=one)
    further = dataclasses.replace(one, name="further", teacher=one, is_taught=False)
    chosen = {row.name: row for row in (one, student, further)}
    of_all = rows.Comparison("all", "Which?", dict.fromkeys(chosen, ()), plot="seeds")
    monkeypatch.setattr(report, "COMPARISONS", (of_all,))
    for module in (evidence, report):
        monkeypatch.setattr(module, "ROWS", chosen)
    begun = []

    def train(config, workdir, stand_in=run.train):
        begun.append((config.training.teacher, config.training.init_from))
        stand_in(config, workdir)

    monkeypatch.setattr(run, "train", train)
    command()
    folder = str(tmp_path / "runs" / "tiny" / "3")
    assert begun == [(None, None), (folder, None), (None, folder)]
    lines = (tmp_path / "evidence.md").read_text().splitlines()
    ratios = [line.split("|")[-2].strip() for line in lines if "| ddim |" in line]
    assert ratios == ["1.00", "2.00", "3.00"]  # of distances 2, 4 and 6


def test_the_rows_fit_their_configs_and_their_comparisons(tmp_path):
    for comparison in rows.COMPARISONS:
        for name, scorings in comparison.rows.items():
            assert set(scorings) <= {x.name for x in rows.ROWS[name].scorings}
    for row in rows.ROWS.values():
        for scoring in row.scorings:
            Study(tmp_path).config(row, 0, **run.sample_options(scoring))


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--only=digits"], "there is no row 'digits': --list shows them"),
        (["--config.seed=1"], "each row has seeds of its own"),
        (["--seed=1"], "options are --config"),
    ],
)
def test_mistakes_end_in_one_line(words, match):
    with pytest.raises(UserError, match=match):
        evidence.main(words)


def test_a_ratio_is_of_equal_seeds_and_what_is_left_out_is_told(
    command, done, tmp_path, monkeypatch, capsys
):
    teacher = dataclasses.replace(ROW, scorings=SCORINGS[:1])
    chosen = {
        "tiny": teacher,
        "student": dataclasses.replace(teacher, name="student", teacher=teacher),
    }
    of_all = rows.Comparison("all", "Which?", dict.fromkeys(chosen, ()), plot="seeds")
    monkeypatch.setattr(report, "COMPARISONS", (of_all,))
    for module in (evidence, report):
        monkeypatch.setattr(module, "ROWS", chosen)
    command()
    (tmp_path / "scores" / "tiny-3.json").unlink()
    command("--table")
    (entry,) = (
        x for x in json.loads((tmp_path / "evidence.json").read_text()) if x["row"] == "tiny"
    )
    theirs = entry["scores"]["ddim_2"]["frechet_distance"]
    ours = json.loads((tmp_path / "scores" / "student-5.json").read_text())
    ratio = ours["scores"]["ddim_2"]["frechet_distance"] / theirs
    (line,) = (
        x for x in (tmp_path / "evidence.md").read_text().splitlines() if "| student | ddim" in x
    )
    assert line.endswith(f"| {ratio:.2f} |")
    command("--table", "--config.sample.ema=False")
    assert "left out: student, seed 5, ddim has options = " in capsys.readouterr().err
    assert "| student | ddim" not in (tmp_path / "evidence.md").read_text()


def test_times_of_rows_side_by_side(capsys, monkeypatch):
    options = [f"--config.{name}={value}" for name, value in TINY.items()]
    times.main(["digits_dit", "digits_s4d_alone", "--batch-size=2", "--turns=1", *options])
    first, second = capsys.readouterr().out.splitlines()[2:]
    assert first.startswith("| digits_dit |") and first.endswith("| 1 |")
    assert second.startswith("| digits_s4d_alone |")


@pytest.mark.slow
def test_a_tiny_row_is_trained_drawn_and_scored(command, tmp_path, monkeypatch):
    monkeypatch.setattr(classifier, "NUM_STEPS", 20)
    row = dataclasses.replace(ROW, seeds=(3,), scorings=SCORINGS[:1])
    for module in (evidence, report):
        monkeypatch.setattr(module, "ROWS", {"tiny": row})
    command()
    (of_run,) = json.loads((tmp_path / "evidence.json").read_text())
    names = {"frechet_distance", "class_agreement", "agreement", "variance", "copies"}
    assert names <= of_run["scores"]["ddim_2"].keys()
    assert of_run["images_per_second"] > 0
