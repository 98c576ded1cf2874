"""Registered models and prompts arrive at a server as they were: read in its own database."""

from __future__ import annotations

import contextlib
import sqlite3
import uuid

import pytest
from rest_helpers import Database, estate, fresh

import faults
from mlmigrate.adapters import registry as adapters
from mlmigrate.adapters.base import Context, Settings
from mlmigrate.adapters.memory import Held, install
from mlmigrate.adapters.mlflow import objects
from mlmigrate.address import Address, parse
from mlmigrate.errors import Conflict, Unavailable
from mlmigrate.events import Silent
from mlmigrate.ledger import Ledger
from mlmigrate.model import Run
from mlmigrate.plan import plan
from mlmigrate.survey import Job
from mlmigrate.testing.conformance import copy
from mlmigrate.transfer import transfer

pytestmark = pytest.mark.slow
BORN = 1_700_000_000_000


def version(model: str, number: int, source: str = "s3://bucket/x", run: str | None = None, **fields) -> dict:
    row = {"name": model, "version": number, "creation_time": BORN + number, "last_updated_time": BORN, "user_id": None}
    row |= {"description": None, "current_stage": "None", "source": source, "run_id": run, "run_link": None}
    row |= {"status": "READY", "status_message": None, "storage_location": source}
    return row | fields


def registered(model: str, *versions: dict, aliases=(), tags=(), version_tags=(), born=BORN, description=None):
    root = {"name": model, "creation_time": born, "last_updated_time": born, "description": description}
    tree = {
        "registered_models": [root],
        "registered_model_tags": [{"name": model, "key": key, "value": value} for key, value in tags],
        "registered_model_aliases": [{"name": model, "alias": alias, "version": n} for alias, n in aliases],
        "model_versions": list(versions),
        "model_version_tags": [{"name": model, "version": n, "key": k, "value": v} for n, k, v in version_tags],
    }
    tree = {table: rows for table, rows in tree.items() if rows}
    kind = objects.registered_kind(tree.get("registered_model_tags", ()))
    return objects.record_of(kind, tree)


def registry(place, *records, stamp="1"):
    """Puts a registry into a place, or another in its stead."""
    origin = f"mlflow:@registry:{place.experiments()[0].name}"
    place.held[origin] = Held(Run("@registry", "", origin=origin, stamp=stamp), records=records)
    return place


def name(word: str) -> str:
    return f"{word} {uuid.uuid4().hex[:8]}"


def copied(place, server, tmp_path, **settings):
    target = parse(f"mlflow:{server.url}")
    job = Job(install(uuid.uuid4().hex, place), target, target_settings=Settings(**settings))
    ledger = Ledger.open(tmp_path / f"{uuid.uuid4().hex}.sqlite", Address("memory", "x"), target)
    try:
        return transfer(job, ledger, Silent(), workers=2)
    finally:
        ledger.close()


def rows(server, query: str, *values) -> list[tuple]:
    with contextlib.closing(sqlite3.connect(f"file:{server.database}?mode=ro", uri=True, timeout=30)) as db:
        return db.execute(query, values).fetchall()


def versions(server, model: str) -> list[tuple]:
    """All that are not deleted."""
    return rows(
        server,
        "select version, source, run_id, description, current_stage, run_link from model_versions "
        "where name = ? and current_stage != 'Deleted_Internal' order by version",
        model,
    )


def version_tags(server, model: str, number: int) -> dict[str, str]:
    return dict(rows(server, "select key, value from model_version_tags where name = ? and version = ?", model, number))


def ours(tags: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in tags.items() if not key.startswith("mlmigrate.")}


def aliases(server, model: str) -> dict[str, int]:
    return dict(rows(server, "select alias, version from registered_model_aliases where name = ?", model))


def model(server, name: str) -> tuple[str, dict[str, str]]:
    (row,) = rows(server, "select description from registered_models where name = ?", name)
    return row[0], dict(rows(server, "select key, value from registered_model_tags where name = ?", name))


def losses(report) -> list[str]:
    return [f"{loss.what}: {loss.because}" for loss in report.losses if not loss.experiment]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr("mlmigrate.steps.FIRST_WAIT", 0.01)
    monkeypatch.setattr("mlmigrate.steps.LONGEST_WAIT", 0.05)


def test_a_model_arrives_whole_with_its_gaps_stages_and_aliases(server, tmp_path):
    fraud, run = name("fraud 'größe'"), fresh("made it")
    record = registered(
        fraud,
        version(fraud, 2, description="second", current_stage="Production"),
        version(fraud, 5, f"mlflow-artifacts:/9/{run.id}/artifacts/model", run.id, run_link="https://x/y"),
        tags=[("team", "größe")],
        version_tags=[(2, "n", "two"), (5, "long", "x" * 4000)],
        aliases=[("champion", 5), ("old", 2)],
        description="who cheats?\nsecond line",
    )
    place = registry(estate(Held(run)), record)
    report = copied(place, server, tmp_path)
    assert report.failed == ()
    here = Database(server).run(run)[0]
    (uri,) = rows(server, "select artifact_uri from runs where run_uuid = ?", here)[0]
    assert versions(server, fraud) == [
        (2, "s3://bucket/x", "", "second", "Production", ""),
        (5, f"{uri}/model", here, "", "None", "https://x/y"),
    ]
    assert ours(version_tags(server, fraud, 2)) == {"n": "two"}
    assert ours(version_tags(server, fraud, 5)) == {"long": "x" * 4000}
    assert aliases(server, fraud) == {"champion": 5, "old": 2}
    description, tags = model(server, fraud)
    assert (description, ours(tags)) == ("who cheats?\nsecond line", {"team": "größe"})
    assert not [one for one in losses(report) if "version" in one and "values of" not in one]


def test_a_second_copy_changes_nothing(current, tmp_path):
    plain = name("again")
    place = registry(estate(), registered(plain, version(plain, 1), version(plain, 3), aliases=[("a", 3)]))
    query = "select * from model_versions where name = ?"
    copied(place, current, tmp_path)
    before = rows(current, query, plain), rows(current, "select * from registered_models where name = ?", plain)
    copied(place, current, tmp_path)
    place.held = {origin: Held(Run("@registry", "", origin=origin, stamp="?"), records=held.records)
                  for origin, held in place.held.items()}  # fmt: skip
    report = copied(place, current, tmp_path)  # one that nobody can tell to be unchanged is looked at again
    assert report.failed == ()
    assert (
        rows(current, query, plain),
        rows(current, "select * from registered_models where name = ?", plain),
    ) == before


def test_a_registry_that_changed_is_brought_up_to_date(current, tmp_path):
    plain = name("changing")
    tags = [(1, "same", "1"), (1, "gone", "2"), (1, "other", "3")]
    place = registry(estate(), registered(plain, version(plain, 1), version_tags=tags, aliases=[("a", 1)]))
    copied(place, current, tmp_path)
    later = registered(
        plain,
        version(plain, 1, description="now", current_stage="Archived"),
        version(plain, 2),
        version_tags=[(1, "same", "1"), (1, "other", "4")],
        tags=[("new", "tag")],
        aliases=[("a", 2)],
        description="new",
    )
    report = copied(registry(place, later, stamp="2"), current, tmp_path)
    assert report.failed == ()
    assert [(row[0], row[3], row[4]) for row in versions(current, plain)] == [(1, "now", "Archived"), (2, "", "None")]
    assert ours(version_tags(current, plain, 1)) == {"same": "1", "other": "4"}
    assert aliases(current, plain) == {"a": 2}
    assert model(current, plain)[0] == "new"


def test_a_prompt_arrives_as_a_prompt(current, tmp_path):
    greeting = name("greeting").replace(" ", "_")
    marks = [("mlflow.prompt.is_prompt", "true")]
    text = [(n, key, value) for n in (1, 2) for key, value in [*marks, ("mlflow.prompt.text", f"Hello {n} {{{{x}}}}")]]
    record = registered(
        greeting,
        version(greeting, 1, "dummy-source"),
        version(greeting, 2, "prompt-template", description="shorter"),
        tags=marks,
        version_tags=text,
        aliases=[("live", 1)],
    )
    assert record.kind == "mlflow.prompt"
    report = copied(registry(estate(), record), current, tmp_path)
    assert report.failed == ()
    assert [(row[0], row[1], row[3]) for row in versions(current, greeting)] == [
        (1, "dummy-source", ""),
        (2, "prompt-template", "shorter"),
    ]
    from mlflow import MlflowClient

    client = MlflowClient(current.url, current.url)
    assert client.get_prompt_version(greeting, 2).template == "Hello 2 {{x}}"
    assert client.get_prompt_version_by_alias(greeting, "live").version == 1


def test_a_source_that_the_server_refuses_is_kept_in_a_tag_and_the_version_arrives(current, tmp_path):
    lost = name("lost")
    gone = "f" * 32
    sources = {
        1: f"mlflow-artifacts:/3/{gone}/artifacts/model",
        2: "/home/alice/mlruns/0/x/artifacts/model",
        3: f"runs:/{gone}/model",
        4: "s3://bucket/fine",
        5: "C:\\mlruns\\model",
        6: "",
    }
    rows_ = [version(lost, n, source, gone if n in (1, 3) else None) for n, source in sources.items()]
    report = copied(registry(estate(), registered(lost, *rows_)), current, tmp_path)
    assert report.failed == ()
    there = {row[0]: row for row in versions(current, lost)}
    assert sorted(there) == [1, 2, 3, 4, 5, 6]
    for number, source in sources.items():
        tags = version_tags(current, lost, number)
        if number in (3, 4):
            assert (there[number][1], "mlmigrate.source" in tags) == (source, False)
        else:
            assert there[number][1].startswith("mlmigrate-lost:/")
            assert tags["mlmigrate.source"] == source
    told = [one for one in losses(report) if "source of version" in one]
    assert len(told) == 4


def test_a_version_made_from_another_model_names_that_model_here(current, tmp_path):
    first, second = name("first"), name("second")
    place = registry(
        estate(),
        registered(second, version(second, 1, f"models:/{first}/2")),
        registered(first, version(first, 2, "s3://bucket/two")),
    )
    report = copied(place, current, tmp_path)
    assert report.failed == ()
    assert [row[:2] for row in versions(current, second)] == [(1, f"models:/{first}/2")]


class TestAModelOfThisNameIsThere:
    """From somebody else: merge, rename or fail."""

    @pytest.fixture
    def taken(self, current):
        from mlflow import MlflowClient

        client, taken = MlflowClient(current.url, current.url), name("taken").replace(" ", "-")
        client.create_registered_model(taken, tags={"team": "theirs"}, description="theirs")
        client.create_model_version(taken, "s3://theirs/1")
        client.set_registered_model_alias(taken, "champion", "1")
        return taken

    def place(self, taken):
        record = registered(
            taken,
            version(taken, 1, "s3://ours/1"),
            version(taken, 2, f"models:/{taken}/1"),
            tags=[("team", "ours"), ("more", "x")],
            aliases=[("champion", 2), ("mine", 1)],
        )
        run = fresh("names it", tags={"uses": f"models:/{taken}/1"})
        return registry(estate(Held(run)), record), run

    def test_merged_no_version_is_overwritten(self, current, taken, tmp_path):
        place, run = self.place(taken)
        report = copied(place, current, tmp_path, on_conflict="merge")
        assert report.failed == ()
        sources = [(1, "s3://theirs/1"), (2, "s3://ours/1"), (3, f"models:/{taken}/2")]
        assert [row[:2] for row in versions(current, taken)] == sources
        assert aliases(current, taken) == {"champion": 1, "mine": 2}
        description, tags = model(current, taken)
        assert (description, tags["team"], tags["more"]) == ("theirs", "theirs", "x")
        assert Database(current).tags(Database(current).run(run)[0])["uses"] == f"models:/{taken}/2"
        told = "\n".join(losses(report))
        for piece in ("ours is merged into it", "it is version 2", "it is version 3", "alias 'champion'", "tag 'team'"):
            assert piece in told
        copied(registry(place, *self.place(taken)[0].held.popitem()[1].records, stamp="2"), current, tmp_path)
        assert [row[:2] for row in versions(current, taken)] == sources

    def test_renamed_both_are_there(self, current, taken, tmp_path):
        place, run = self.place(taken)
        report = copied(place, current, tmp_path, on_conflict="rename")
        assert report.failed == ()
        new = f"{taken}-2"
        assert [row[:2] for row in versions(current, taken)] == [(1, "s3://theirs/1")]
        assert [row[:2] for row in versions(current, new)] == [(1, "s3://ours/1"), (2, f"models:/{new}/1")]
        assert aliases(current, new) == {"champion": 2, "mine": 1}
        assert Database(current).tags(Database(current).run(run)[0])["uses"] == f"models:/{new}/1"
        assert any(f"ours is {new!r}" in one for one in losses(report))

    def test_failing_nothing_is_written_and_a_plan_says_so(self, current, taken, tmp_path):
        place, _ = self.place(taken)
        other = registered(free := name("free"), version(free, 1))
        held = next(held for held in place.held.values() if held.records)
        registry(place, other, *held.records)
        with pytest.raises(Conflict, match=taken):
            copied(place, current, tmp_path, on_conflict="fail")
        assert rows(current, "select 1 from registered_models where name = ?", free) == []
        assert [row[:2] for row in versions(current, taken)] == [(1, "s3://theirs/1")]
        target = parse(f"mlflow:{current.url}")
        job = Job(install(uuid.uuid4().hex, place), target, target_settings=Settings(on_conflict="fail"))
        with pytest.raises(Conflict, match="registered model"):
            plan(job, Silent())


@pytest.mark.parametrize("kind", [faults.LOST, faults.ERROR_AFTER, faults.BEFORE])
def test_answers_that_are_lost_make_no_version_twice(kind, current, proxy_of, tmp_path):
    plain = name("faulty")
    place = registry(estate(), registered(plain, version(plain, 2), version(plain, 3), aliases=[("a", 3)]))
    writes = ("create", "alias", "set-tag", "delete", "transition")

    def rule(number, method, path):
        return kind if any(word in path for word in writes) and number % 2 else None

    proxy = proxy_of(current.url, rule=rule)
    report = copy(place, parse(f"mlflow:{proxy.url}"), tmp_path / "l", tries=12)
    assert report.failed == ()
    assert proxy.made > 2
    assert [row[0] for row in versions(current, plain)] == [2, 3]
    assert aliases(current, plain) == {"a": 3}


def test_stopped_between_any_two_calls_it_is_taken_up_without_doubles(current, proxy_of, tmp_path):
    plain = name("stopped")
    place = registry(estate(), registered(plain, version(plain, 2), version(plain, 4), aliases=[("a", 4)]))
    for last in range(4, 60, 3):
        proxy = proxy_of(current.url, rule=lambda number, *_, last=last: faults.BEFORE if number > last else None)
        with contextlib.suppress(Unavailable):
            report = copy(place, parse(f"mlflow:{proxy.url}"), tmp_path / f"{last}", tries=1)
            if not report.failed:
                break
    assert not report.failed
    assert [row[0] for row in versions(current, plain)] == [2, 4]
    every = rows(current, "select version from model_versions where name = ? order by version", plain)
    assert [number for (number,) in every] == [1, 2, 3, 4]  # the gaps, filled once


def test_verify_finds_a_registry_equal_and_a_change_in_it(current, tmp_path):
    from mlmigrate.verify import verify

    plain = name("verified")
    gone = f"mlflow-artifacts:/3/{'e' * 32}/artifacts/m"
    record = registered(plain, version(plain, 1), version(plain, 3, gone), tags=[("a", "b")], aliases=[("x", 3)])
    place = registry(estate(), record)
    copied(place, current, tmp_path)
    job = Job(install(uuid.uuid4().hex, place), parse(f"mlflow:{current.url}"))
    assert verify(job, Silent()).findings == ()
    opened = adapters.open_target(parse(f"mlflow:{current.url}"), Context("target"))
    body = {"name": plain, "version": "1", "key": "new", "value": "x"}
    opened._client.post("api/2.0/mlflow/model-versions/set-tag", dict, body)
    opened.close()
    assert [finding.what for finding in verify(job, Silent()).findings] == [f"mlflow.registered_model {plain}"]
