"""Runs made by chance in W&B, copied, and held against what the SDK's own reader says that there is.

Nothing here is read by mlmigrate: the expected values are those of `wandb.Api` in an environment of its own, what
arrived is read from MLflow's tables and folders by hand, or by `wandb.Api` again.
"""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import sizes
import wandbchance
import wandbsdk
import wandbserver
import wandbtarget

pytestmark = pytest.mark.slow

NEWEST = wandbsdk.VERSIONS[-1]
OLDER = [pytest.param((version, 20 + n), marks=sizes.large) for n, version in enumerate(wandbsdk.VERSIONS[:-1])]
MORE = [pytest.param((NEWEST, seed), marks=sizes.large) for seed in range(2, 6)]
LARGEST = 1.7976931348623157e308  # what MLflow's tables hold for infinity
SPELT = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}
WRITTEN = {"config.yaml", "wandb-metadata.json", "wandb-summary.json"}
MADE = ("mlflow-artifacts", "mlmigrate-records")  # types of artifacts that hold the rest of a run
OURS = "mlmigrate"  # the job type of runs that stand for experiments
OWN = {"_step", "_timestamp", "_runtime", "_wandb"}


class World:
    """What was logged in "team", and the copies of it: in MLflow, and in "other"."""

    def __init__(self, version: str, server: wandbserver.Server, folder: Path) -> None:
        self.version, self.server, self.folder = version, server, folder
        self.team = self.read("team")
        self.copies = {
            place: wandbtarget.command("copy", "wandb:team", place, "--ledger", folder / f"{n}.sqlite", *more)
            for n, (place, *more) in enumerate(
                ((f"mlflow:sqlite:///{folder}/x.db", "--artifacts-to", folder / "files"), ("wandb:other",))
            )
        }
        self.other = self.read("other")

    def read(self, entity: str) -> dict[str, dict[str, Any]]:
        done = wandbsdk.ask(self.version, wandbchance.READ, self.server, self.folder, {"ENTITY": entity})
        found = wandbchance.told(done)
        return {
            project: {id_: run for id_, run in runs.items() if run["job_type"] != OURS}
            for project, runs in found.items()
        }

    def runs(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Id, and all that W&B's own reader says of each run."""
        for project in self.team.values():
            yield from project.items()

    def pairs(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Each run, and its copy in W&B."""
        for project, runs in self.team.items():
            for id_, run in runs.items():
                yield run, self.other[project][id_]

    def ask(self, query: str, *given: str) -> list[tuple[Any, ...]]:
        """MLflow's tables, by hand."""
        with closing(sqlite3.connect(self.folder / "x.db")) as link:
            return link.execute(query, given).fetchall()

    def in_mlflow(self, id_: str) -> str:
        """The id that MLflow's run has."""
        ((found,),) = self.ask("select run_uuid from tags where key = 'wandb.id' and value = ?", id_)
        return str(found)

    def folder_of(self, id_: str) -> Path:
        """Where MLflow's run has its artifacts."""
        ((uri,),) = self.ask("select artifact_uri from runs where run_uuid = ?", self.in_mlflow(id_))
        return self.folder / "files" / str(uri).removeprefix("mlflow-artifacts:/")


@pytest.fixture(scope="module", params=[(NEWEST, 1), *OLDER, *MORE], ids=str)
def world(request, tmp_path_factory):
    version, seed = request.param
    folder = tmp_path_factory.mktemp("chance")
    with wandbserver.running() as server, pytest.MonkeyPatch.context() as patch:
        wandbtarget.use(server, patch)
        patch.chdir(tmp_path_factory.mktemp("here"))
        wandbsdk.run(version, wandbchance.LOG, server, folder, {"SEED": str(seed), "RUNS": "12"})
        yield World(version, server, folder)


def number(value: object) -> float | None:
    """A number of a row as a float; words stand for those that JSON has not."""
    found = SPELT.get(value, value) if isinstance(value, str) else value
    return float(found) if isinstance(found, int | float) else None


def leaves(row: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    """Keys, those within others joined, and values; media are one value."""
    for name, value in row.items():
        if not before and name in OWN:
            continue
        if isinstance(value, dict) and value and "_type" not in value:
            yield from leaves(value, f"{before}{name}.")
        else:
            yield before + name, value


def ms(seconds: float) -> int:
    """Whole milliseconds, cut, of what is told to the microsecond."""
    return round(Decimal(seconds) * 1_000_000) // 1000


def comparable(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with nested names joined, as W&B shows them, and with times as exact as the copy has them.

    `_runtime` is not always kept (it is the time since the start, which leaves no breaks out), and the mark `_wandb`
    of system metrics never.
    """
    own = [{name: row[name] for name in (OWN - {"_runtime", "_wandb"}) & row.keys()} for row in rows]
    return [
        {**dict(leaves(row)), **one, "_timestamp": round(row["_timestamp"], 6)}
        for row, one in zip(rows, own, strict=True)
    ]


def ordered(value: object) -> str:
    return json.dumps(value, sort_keys=True)


def config_leaves(config: Any, before: str = "") -> Iterator[tuple[str, str]]:
    """Names and texts of params: what MLflow itself would make of the values, JSON for lists."""
    for name, value in config.items():
        if isinstance(value, dict) and value:
            yield from config_leaves(value, f"{before}{name}.")
        else:
            yield before + name, json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else str(value)


def in_table(value: float) -> str:
    return repr(max(-LARGEST, min(LARGEST, value)) + 0.0 if not math.isnan(value) else value)


def content(folder: Path) -> dict[str, str]:
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}


def theirs(files: dict[str, Any]) -> dict[str, Any]:
    """Files of the run page, but for those that are written anew of config, summary and metadata."""
    return {name: one for name, one in files.items() if name not in WRITTEN}


def versions(run: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """What people logged, without numbers: W&B gives them as versions arrive."""
    told = [(unnumbered(name), one) for name, one in run["logged"].items() if one["type"] not in MADE]
    return sorted(((name, {**one, "name": name}) for name, one in told), key=repr)


def used(run: dict[str, Any]) -> list[list[str]]:
    return sorted([project, unnumbered(name), *more] for project, name, *more in run["used"])


def unnumbered(name: str) -> str:
    return name.partition(":")[0]


def history(run: dict[str, Any]) -> set[tuple[str, int, int, str]]:
    """Key, step, time in ms and value of each number in a run's rows."""
    return {
        (key, row["_step"], ms(row["_timestamp"]), in_table(float(one)))
        for row in run["rows"]
        for key, value in leaves(row)
        if (one := number(value)) is not None
    }


def events(run: dict[str, Any]) -> set[tuple[str, int, int, str]]:
    """The same of system metrics; their step is the number of the line."""
    return {
        (key.replace("system.", "system/", 1), n, ms(row["_timestamp"]), in_table(float(value)))
        for n, row in enumerate(run["events"])
        for key, value in leaves(row)
        if number(value) is not None
    }


def test_chance_made_what_is_to_be_copied(world):
    runs = dict(world.runs())
    assert len(runs) == 12
    assert {run["state"] for run in runs.values()} == {"finished", "failed"}
    kinds = {type(value) for run in runs.values() for row in run["rows"] for _, value in leaves(row)}
    assert {int, float, str, bool, list, dict, type(None)} <= kinds
    assert any(run["used"] for run in runs.values())
    assert any(run["metrics"] for run in runs.values())
    assert sum(len(run["logged"]) for run in runs.values()) > 5
    assert sum(len(run["rows"]) for run in runs.values()) > 50


def test_both_copies_end_well(world):
    assert [code for code, _ in world.copies.values()] == [0, 0], world.copies


class TestInMlflow:
    def test_every_number_is_a_point_at_its_step_and_time(self, world):
        for id_, run in world.runs():
            query = "select key, step, timestamp, iif(is_nan, 'nan', value) from metrics where run_uuid = ?"
            found = {
                (key, step, at, in_table(float(value)))
                for key, step, at, value in world.ask(query, world.in_mlflow(id_))
            }
            logged = history(run) | events(run)
            assert logged - found == set(), id_
            keys = {key for row in run["rows"] for key, _ in leaves(row)}
            only = {
                key: value for key, value in leaves(run["summary"]) if key not in keys and not isinstance(value, bool)
            }
            alone = {(key, in_table(one)) for key, value in only.items() if (one := number(value)) is not None}
            assert {(key, value) for key, _, _, value in found - logged} == alone, id_

    def test_what_is_no_number_stands_in_a_file_of_the_run(self, world):
        for id_, run in world.runs():
            path = world.folder_of(id_) / "wandb" / "history.jsonl"
            lines = path.read_text("utf-8").split("\n")[:-1] if path.exists() else []
            found = [(line["_step"], line["key"], ordered(line["value"])) for line in map(json.loads, lines)]
            meant = [
                (row["_step"], key, ordered(value))
                for row in run["rows"]
                for key, value in leaves(row)
                if isinstance(value, bool)
                or number(value) is None
                or (isinstance(value, int) and int(float(value)) != value)
            ]
            assert sorted(found) == sorted(meant), id_

    def test_every_leaf_of_the_config_is_a_param(self, world):
        for id_, run in world.runs():
            found = dict(world.ask("select key, value from params where run_uuid = ?", world.in_mlflow(id_)))
            assert found == dict(config_leaves(run["config"])), id_

    def test_what_people_said_of_runs_is_there(self, world):
        for id_, run in world.runs():
            tags = dict(world.ask("select key, value from tags where run_uuid = ?", world.in_mlflow(id_)))
            query = (
                "select r.name, status, e.name from runs r join experiments e using (experiment_id) where run_uuid = ?"
            )
            ((name, status, _),) = world.ask(query, world.in_mlflow(id_))
            assert (name, status) == (run["name"], {"finished": "FINISHED", "failed": "FAILED"}[run["state"]])
            told = {"mlflow.note.content": run["notes"], "wandb.group": run["group"], "wandb.job_type": run["job_type"]}
            assert {key: tags.get(key, "") for key in told} == {key: text or "" for key, text in told.items()}
            assert json.loads(tags.get("wandb.tags", "[]")) == run["tags"]
            assert tags["mlflow.user"] == run["user"]

    def test_every_file_and_every_version_has_its_bytes(self, world):
        for id_, run in world.runs():
            folder = world.folder_of(id_) / "wandb"
            assert content(folder / "files") == run["bytes"], id_
            versions = {name: content(folder / "artifacts" / name.replace(":", "/")) for name in run["logged"]}
            assert versions == {name: version["files"] for name, version in run["logged"].items()}, id_

    def test_no_run_began_after_its_first_row_or_ended_before_its_last(self, world):
        for id_, run in world.runs():
            query = "select start_time, end_time from runs where run_uuid = ?"
            ((start, end),) = world.ask(query, world.in_mlflow(id_))
            times = [ms(row["_timestamp"]) for row in run["rows"]] or [start]
            assert start <= min(times), id_
            # W&B tells the runtime in whole seconds, and counts it from when its helper process began to take part
            assert end >= max(times) - 5000, id_

    def test_used_datasets_are_inputs(self, world):
        query = (
            "select d.name, d.digest from inputs i join datasets d on d.dataset_uuid = i.source_id "
            "where i.destination_id = ?"
        )
        for id_, run in world.runs():
            used = {(name.partition(":")[0], digest) for _, name, kind, digest in run["used"] if kind == "dataset"}
            assert set(world.ask(query, world.in_mlflow(id_))) == used, id_


class TestInWandb:
    def test_every_run_is_there(self, world):
        assert {project: set(runs) for project, runs in world.other.items()} == {
            project: set(runs) for project, runs in world.team.items()
        }

    @pytest.mark.parametrize(
        "what", ["name", "notes", "tags", "group", "job_type", "state", "summary", "metrics", "metadata"]
    )
    def test_it_says_the_same(self, world, what):
        for run, copy in world.pairs():
            assert (copy[what] or "") == (run[what] or ""), run["name"]

    def test_config_is_the_same_but_for_what_is_ours(self, world):
        for run, copy in world.pairs():
            assert {key: value for key, value in copy["config"].items() if key != "mlmigrate"} == run["config"]

    def test_rows_are_the_same(self, world):
        for run, copy in world.pairs():
            rows = [row for row in run["rows"] if row.keys() - OWN]  # one without values arrives nowhere
            assert comparable(copy["rows"]) == comparable(rows), run["name"]
            assert comparable(copy["events"]) == comparable(run["events"]), run["name"]
            assert all(row["_runtime"] >= 0 for row in copy["rows"]), run["name"]

    def test_bytes_are_the_same(self, world):
        for run, copy in world.pairs():
            assert theirs(copy["bytes"]) == theirs(run["bytes"]), run["name"]
            assert theirs(copy["files"]) == theirs(run["files"]), run["name"]

    def test_versions_aliases_and_lineage_are_the_same(self, world):
        for run, copy in world.pairs():
            assert versions(copy) == versions(run), run["name"]
            assert used(copy) == used(run), run["name"]
