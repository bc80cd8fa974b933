"""`make plan-check` without a compiler: what it tells, what it fails at, what it accepts."""

import json

import pytest

from benchmarks import plan_check
from diffussm_jax.errors import UserError

VERSIONS = {"jax": "1.2", "libtpu": "3.4"}
FIGURES = {"hbm_gb": 20.0, "million_cycles": 100.0}


@pytest.fixture
def check(tmp_path, monkeypatch, capsys):
    """Runs the check on programs with these figures; gives its exit code and what it tells."""
    monkeypatch.setattr(plan_check, "TABLE", tmp_path / "plan_check.json")
    monkeypatch.setattr(plan_check, "versions", lambda: VERSIONS)

    def run(*words, **figures):
        monkeypatch.setattr(plan_check, "measure_all", lambda _: {"S": FIGURES | figures})
        return plan_check.main(list(words)), capsys.readouterr().out.splitlines()

    return run


def test_growth_fails_and_a_fall_is_told(check):
    code, _ = check("--accept")
    assert code == 0
    code, (line,) = check(hbm_gb=20.5, million_cycles=97.5)
    assert code == 0
    assert line == "1 programs are within 3% of plan_check.json"
    mend = "`python -m benchmarks.plan_check --accept` accepts this; commit plan_check.json with"
    code, lines = check(hbm_gb=20.7, million_cycles=104.0)
    assert code == 1
    assert lines == [
        "S: hbm_gb grew by 3.5%, from 20 to 20.7",
        "S: million_cycles grew by 4.0%, from 100 to 104",
        f"{mend} the change",
    ]
    code, lines = check(million_cycles=90.0)
    assert code == 0
    assert lines == ["S: million_cycles fell by 10.0%, from 100 to 90", f"{mend} the change"]


def test_what_is_accepted_is_compared_with(check):
    """And a figure that the table lacks has to be accepted too."""
    check("--accept")
    assert check("--accept", million_cycles=110.0)[0] == 0
    assert check(million_cycles=112.0)[0] == 0
    assert check(million_cycles=100.0)[0] == 0
    code, lines = check(million_cycles=110.0, link_gb=1.0)
    assert code == 1
    assert lines[0] == "S: link_gb is 1, and not in plan_check.json"
    assert plan_check.Change("S", "link_gb", 0.0, 1.0).grew


def test_other_versions_are_not_compared(check, monkeypatch):
    check("--accept")
    monkeypatch.setattr(plan_check, "versions", lambda: VERSIONS | {"libtpu": "4.0"})
    code, (line,) = check(million_cycles=500.0)
    assert code == 0
    assert "was made with jax 1.2 and libtpu 3.4, and this is jax 1.2 and libtpu 4.0" in line
    assert "`python -m benchmarks.plan_check --all --accept` makes the table again" in line
    assert check("--accept", million_cycles=500.0)[1] == [line]
    check("--all", "--accept", million_cycles=500.0)
    assert check(million_cycles=501.0)[0] == 0


def test_libtpu_is_needed(monkeypatch):
    def version(name):
        raise plan_check.PackageNotFoundError(name)

    monkeypatch.setattr(plan_check, "version", version)
    with pytest.raises(UserError, match="libtpu, which exists for Linux only"):
        plan_check.versions()


def test_the_table_is_of_versions_that_are_pinned():
    """New versions in requirements.txt need new figures."""
    table = json.loads(plan_check.TABLE.read_text())
    pins = (plan_check.TABLE.parent.parent / "requirements.txt").read_text()
    for name, version in table["versions"].items():
        assert f"\n{name}=={version} ;" in pins
    small, large = ({x.name for x in part} for part in (plan_check.SMALL, plan_check.LARGE))
    assert set(table["programs"]) == small | large
