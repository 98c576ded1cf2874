"""Options -> values, pure; then jobs."""

from datetime import UTC, datetime

import click
import pytest
from click.testing import CliRunner

from mlmigrate.address import parse
from mlmigrate.cli import jobs, options
from mlmigrate.cli.options import Chosen
from mlmigrate.errors import NotFound, UsageError
from mlmigrate.selection import PARTS


def chosen(arguments, **env):
    got = []

    @click.command()
    @options.takes(
        options.WHICH_RUNS,
        options.WHICH_PARTS,
        options.MAPPING,
        options.PLACES,
        options.RUNNING,
        options.PRINTING,
        options.REPORT,
    )
    def command(chosen):
        got.append(chosen)
        return 0

    done = CliRunner().invoke(command, arguments, env=env)
    return got[0] if got else done


def test_what_is_not_said_takes_its_default():
    assert chosen([]) == Chosen()


def test_every_option_is_taken():
    told = chosen(
        [
            "-e",
            "a",
            "-e",
            "b*",
            "-r",
            "1",
            "--status",
            "finished,FAILED",
            "--no-deleted",
            "--max-artifact-size",
            "2G",
            "-j",
            "8",
            "-vv",
            "--strict",
        ]
    )
    assert told == Chosen(
        experiment=("a", "b*"),
        run=("1",),
        status=("FINISHED", "FAILED"),
        deleted=False,
        max_artifact_size=2 << 30,
        workers=8,
        verbose=2,
        strict=True,
    )


def test_the_environment_says_the_same():
    told = chosen(
        [],
        MLMIGRATE_WORKERS="8",
        MLMIGRATE_STATUS="failed",
        MLMIGRATE_STRICT="1",
        MLMIGRATE_DELETED="0",
        MLMIGRATE_EXPERIMENT="a b",
    )
    assert told == Chosen(workers=8, status=("FAILED",), strict=True, deleted=False, experiment=("a", "b"))


def test_the_command_line_wins_over_the_environment():
    assert chosen(["-j", "2"], MLMIGRATE_WORKERS="8").workers == 2


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("500", 500),
        ("1k", 1024),
        ("2G", 2 << 30),
        ("2GiB", 2 << 30),
        ("2GB", 2_000_000_000),
        ("1.5m", 1_572_864),
        ("10 B", 10),
    ],
)
def test_sizes_are_read_as_people_write_them(text, size):
    assert options.number_of_bytes(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1", "2X", "1e3", "2 G B"])
def test_what_is_no_size_is_none(text):
    assert options.number_of_bytes(text) is None


def test_a_moment_with_a_zone_is_that_moment():
    wanted = datetime(2026, 1, 31, 12, 0, tzinfo=UTC).timestamp() * 1000
    assert options.milliseconds("2026-01-31T14:00+02:00") == wanted


def test_a_date_is_local_midnight():
    assert options.milliseconds("2026-01-31") == datetime(2026, 1, 31).astimezone().timestamp() * 1000


def test_parts_are_those_asked_for_without_those_left_out():
    assert jobs.selection_of(Chosen()).parts == frozenset(PARTS)
    assert jobs.selection_of(Chosen(only=("params", "traces"))).parts == {"params", "traces"}
    skipped = jobs.selection_of(Chosen(skip=("models", "tags"))).parts
    assert skipped == {"params", "metrics", "artifacts", "inputs", "traces", "records"}
    assert jobs.selection_of(Chosen(only=("params", "tags"), skip=("tags",))).parts == {"params"}


def test_several_sources_are_one_place():
    job = jobs.job_of(("mlflow:./a", "mlflow:./b", "./archive"), Chosen())
    assert [one.text for one in job.source.many] == ["mlflow:./a", "mlflow:./b"]
    assert job.target == parse("./archive")


@pytest.mark.parametrize(
    ("place", "database"),
    [
        ("mlflow:sqlite:///a.db", True),
        ("mlflow:postgresql+psycopg2://h/d", True),
        ("mlflow:mysql://h/d", True),
        ("mlflow:http://h", False),
        ("mlflow:./sqlite", False),
        ("./archive", False),
    ],
)
def test_a_database_is_known_by_its_address(place, database):
    assert jobs.is_database(parse(place)) is database


def test_from_database_to_database_artifacts_stay_where_they_are():
    both = ("mlflow:sqlite:///a.db", "mlflow:postgresql://h/d")
    kept = jobs.job_of(both, Chosen())
    assert (kept.source_settings.artifacts_to, kept.target_settings.artifacts_to) == ("keep", "keep")
    assert jobs.job_of(both, Chosen(artifacts_to="/files")).target_settings.artifacts_to == "/files"
    assert jobs.job_of(("./archive", both[1]), Chosen()).target_settings.artifacts_to == ""


def test_mlflow_alone_is_what_its_variable_names(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://one")
    assert jobs.place_of("mlflow:", "source").text == "mlflow:http://one"
    monkeypatch.setenv("SOURCE_MLFLOW_TRACKING_URI", "http://two")
    assert jobs.place_of("mlflow:", "source").text == "mlflow:http://two"
    assert jobs.place_of("mlflow:", "target").text == "mlflow:http://one"


@pytest.mark.parametrize("places", [(), ("./archive",), ("./a", "./a")])
def test_two_places_must_be_named(places):
    with pytest.raises(UsageError):
        jobs.job_of(places, Chosen())


def test_a_scan_that_finds_nothing_is_no_success(tmp_path):
    with pytest.raises(NotFound):
        jobs.job_of(("./archive",), Chosen(scan=(tmp_path,)))
