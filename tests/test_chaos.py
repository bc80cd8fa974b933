"""The short form of `make chaos`: three kills, one of them at least in a write, and a SIGTERM."""

from benchmarks import chaos


def test_a_run_that_is_killed_ends_where_the_undisturbed_one_does(
    tmp_path, data_dir, capsys
):
    chaos.main(["--short", "--folder", str(tmp_path), "--data_dir", data_dir])
    output = capsys.readouterr().out
    assert "kills: 62 log lines" in output
    assert "terms: 62 log lines" in output
