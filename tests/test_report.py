"""What people read: amounts, tables, losses in groups, and the last sentence."""

import math
import random
from dataclasses import replace

import pytest

from mlmigrate import report
from mlmigrate.adapters.base import Settings
from mlmigrate.address import Address, parse
from mlmigrate.events import Failure
from mlmigrate.ledger import State
from mlmigrate.model import Finding, Loss
from mlmigrate.plan import Line, Plan
from mlmigrate.selection import Selection
from mlmigrate.transfer import Job, Report
from mlmigrate.verify import Verdict

JOB = Job(parse("mlflow:http://old:5000"), parse("mlflow:http://new:5000"))
DONE = Report(1500, 1488, 12, (), (), (), 22_300_000, 1942, 96_600_000_000, 820)
VERDICT = Verdict(1500, 1500, 0, 0, 0, 0, 22_300_000, 1942, 96_600_000_000, (), ())
STATE = State("mlflow:./mlruns", "./archive", 1000.0, None, 4711, 1500, 461, 0, 2, 0, 5, 6)


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (1500, "1,500"), (999_999, "999,999"), (18_240_000, "18.2 M"), (2_500_000_000, "2,500.0 M")],
)
def test_amounts_are_short_from_a_million_on(number, text):
    assert report.amount(number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_999, "1.0 MB"),
        (96_400_000_000, "96.4 GB"),
        (1_300_000_000_000, "1.3 TB"),
    ],
)
def test_sizes_have_a_unit(number, text):
    assert report.size(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.44, "0.4 s"), (12.3, "12 s"), (59.7, "1 min"), (820, "13 min 40 s"), (2460, "41 min"), (7503, "2 h 5 min")],
)
def test_durations_are_told_as_people_tell_them(seconds, text):
    assert report.duration(seconds) == text


def test_control_characters_are_written_out_and_all_else_is_kept():
    assert report.escape("\x1b[31mred\r\n\u202e\ud800é 予測 \\x") == r"\x1b[31mred\r\n\u202e\ud800é 予測 \x"


def test_escaping_twice_changes_nothing_more():
    letters = [chr(number) for number in range(0x2100)] + ["\ud800", "\u2028"]
    text = "".join(random.Random(1).choices(letters, k=5000))
    once = report.escape(text)
    assert report.escape(once) == once
    assert once.isprintable() or all(one.isprintable() or one.isspace() or ord(one) > 0xA0 for one in once)
    assert "\x1b" not in once


def test_columns_are_as_wide_as_a_terminal_shows_them():
    assert report.table([("a", "1"), ("予測", "20")], right=(1,)) == ["a       1", "予測   20"]


def test_all_well_is_one_sentence():
    (line,) = report.transferred(DONE, JOB)
    assert line.startswith("All 1,500 runs of mlflow:http://old:5000 are in mlflow:http://new:5000. To check them: ")
    assert line.endswith("mlmigrate verify mlflow:http://old:5000 mlflow:http://new:5000")


def test_an_export_says_how_much_and_that_nothing_was_lost():
    job = replace(JOB, target=parse("./archive"))
    assert report.transferred(replace(DONE, seconds=2460), job) == [
        "All 1,500 runs of mlflow:http://old:5000 are in ./archive (96.6 GB, 41 min). 0 things lost."
    ]


def test_failures_and_losses_are_counted_and_the_end_says_so():
    failures = (
        Failure("vision", "1", "odd-fog-7", "NotFound", "W&B has no file model/weights.pt"),
        Failure("vision", "2", "dry-elm", "Unavailable", "answered 503"),
    )
    losses = (Loss("3", "param 'a'", "cut"), Loss("3", "param 'b'", "cut"), Loss("4", "tag 'c'", "cut"))
    lines = report.transferred(replace(DONE, copied=1486, failed=failures, losses=losses), JOB)
    assert lines == [
        "copied     1,486 runs, 22.3 M points, 1,942 artifacts, 96.6 GB in 13 min 40 s",
        "already       12 runs",
        "failed         2 runs",
        "  vision/odd-fog-7   NotFound: W&B has no file model/weights.pt",
        "  vision/dry-elm     Unavailable: answered 503",
        "lost           3 things in 2 runs (mlmigrate status --losses lists them)",
        "2 of 1,500 runs are not copied. Run the same command again to try them once more.",
    ]


def test_a_stopped_copy_says_how_far_it_came():
    last = report.transferred(replace(DONE, copied=449, stopped=True), JOB)[-1]
    assert last == "Stopped. 461 of 1,500 runs are copied. Run the same command again to go on."


def test_strict_says_that_something_was_lost():
    last = report.transferred(replace(DONE, losses=(Loss("3", "param 'a'", "cut"),)), JOB, strict=True)[-1]
    assert (
        last
        == "All 1,500 runs of mlflow:http://old:5000 are in mlflow:http://new:5000, but 1 thing was lost (--strict)."
    )


def test_no_run_is_no_success_without_a_word():
    last = report.transferred(replace(DONE, runs=0, copied=0, already=0), JOB)[-1]
    assert last == "No run of mlflow:http://old:5000 was asked for: there is nothing to copy."


def test_passwords_are_hidden_in_what_to_type_next():
    job = replace(JOB, target=Address("mlflow", "postgresql://me:secret@host/db"))
    assert "secret" not in "\n".join(report.transferred(DONE, job))


def test_what_to_type_next_shows_that_options_were_given():
    job = replace(JOB, selection=Selection(experiments=("vision",)))
    assert report.command("copy", job) == "mlmigrate copy mlflow:http://old:5000 mlflow:http://new:5000 …"


def test_losses_of_one_kind_are_one_line():
    losses = [Loss(f"r{n}", f"param 'p{n}'", f"cut from {7000 + n:,} to 6,000 characters") for n in range(38)]
    losses.append(Loss("9", "table 'x'", "has no place here"))
    assert list(report.grouped(losses)) == [
        "  38 params   cut from 7,000 to 6,000 characters, e.g. 'p0' of r0",
        "   1 table 'x' of 9   has no place here",
    ]


def test_a_plan_is_a_table_with_a_sum_and_says_that_nothing_was_written():
    lines = (Line("vision", 412, 18_200_000, 1930, 96_400_000_000), Line("sweeps", 1088, 4_100_000, 12, 200_000_000))
    plan = Plan(
        "mlflow:./mlruns", "./archive", lines, 12, (), (), (("[keys] a = b", 3), ("[keys] c = d", 0)), quick=False
    )
    assert report.planned(plan, Job(parse("mlflow:./mlruns"), parse("./archive"))) == [
        "mlflow:./mlruns  ->  ./archive",
        "",
        "experiment       runs   points   artifacts       size",
        "vision            412   18.2 M       1,930    96.4 GB",
        "sweeps          1,088    4.1 M          12   200.0 MB",
        "2 experiments   1,500   22.3 M       1,942    96.6 GB",
        "",
        "12 runs are there already and will be skipped.",
        "2 rules of the mapping:",
        "  [keys] a = b   3 names",
        "  [keys] c = d   met none",
        "Nothing was written. To copy: mlmigrate copy mlflow:./mlruns ./archive",
    ]


def verified(verdict, **how):
    return report.verified(verdict, JOB, **{"quick": False, "download": True, **how})[-1]


def test_equal_places_get_the_sentence_that_says_what_was_compared():
    assert verified(VERDICT) == "All 1,500 runs are equal: params, tags, 22.3 M points, 1,942 artifacts by sha256."


def test_a_quick_look_does_not_say_that_values_are_equal():
    assert "values were not compared" in verified(VERDICT, quick=True)


def test_differences_are_counted():
    verdict = replace(VERDICT, equal=1497, differs=1, missing=1, unreadable=1)
    assert verified(verdict) == "1,497 of 1,500 runs are equal, 1 differs, 1 is missing, 1 could not be read."


def test_a_difference_outside_the_runs_is_one_too():
    verdict = replace(VERDICT, findings=(Finding("*", "vision", "", "experiment tag 'a'", "1", "2"),))
    assert report.differs(verdict)
    assert verified(verdict) == "1,500 of 1,500 runs are equal, 1 difference outside the runs."


@pytest.mark.parametrize(
    ("finding", "end"),
    [
        (
            Finding("*", "v", "1", "eager: metric loss", "480,000 points", "479,000"),
            "480,000 points here, 479,000 there",
        ),
        (
            Finding("*", "v", "1", "eager: artifact a", "there", "not there"),
            "   not there",
        ),
        (Finding("*", "v", "1", "eager: artifact a", "not there", "there"), "only there"),
        (Finding("*", "v", "1", "eager: param p", "x\x1b[0m", "not there"), r"x\x1b[0m here, not there"),
    ],
)
def test_a_finding_says_what_each_place_holds(finding, end):
    text = report.found(finding)
    assert text.startswith("* v/eager: ")
    assert text.endswith(end)


def test_the_state_of_a_copy_that_runs():
    first, second = report.status(STATE, now=1461.0)
    assert "running since" in first
    assert first.endswith("(pid 4711)")
    assert second == "copied 461   already 0   failed 2   to do 1,037   about 17 min 17 s left"


def test_a_copy_that_was_killed_is_told_from_one_that_ended():
    assert "broken off" in report.status(replace(STATE, pid=0), now=2000.0)[0]
    assert "ended" in report.status(replace(STATE, pid=0, ended=1500.0), now=2000.0)[0]


def test_nothing_is_divided_by_nothing():
    assert report.size(0)
    assert not math.isnan(len(report.status(replace(STATE, copied=0, runs=0, failed=0), now=0.0)))


def test_artifacts_that_went_elsewhere_are_looked_for_there():
    job = replace(JOB, target_settings=Settings(artifacts_to="/my files"))
    assert report.command("verify", job).endswith("mlflow:http://new:5000 --artifacts-to '/my files'")


def test_artifacts_that_stay_are_not_said_to_be_compared_byte_by_byte():
    kept = replace(JOB, target_settings=Settings(artifacts_to="keep"))
    last = report.verified(VERDICT, kept, quick=False, download=True)[-1]
    assert last == "All 1,500 runs are equal: params, tags, 22.3 M points, artifacts by where they lie."
