"""What a server's words of a run, of versions and of files mean; no server is needed for that."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, BinaryIO

import pytest

from mlmigrate.adapters.wandb.api.told import as_json, config_of, listed, metrics_of
from mlmigrate.adapters.wandb.api.versions import Urls, opener, version_of
from mlmigrate.adapters.wandb.moments import milliseconds
from mlmigrate.errors import Damaged, MigrateError, NotFound, Refused


def node(**more: Any) -> dict[str, Any]:
    environment = {"host": "box", "program": "train.py", "args": ["--lr", "1"], "startedAt": "2024-01-02T03:04:05.678Z",
                   "git": {"remote": "git@x:y", "commit": "abc"}}  # fmt: skip
    config = {"lr": {"value": 0.1, "desc": None}, "_wandb": {"value": {"e": {"w1": environment}}}}
    told = {"name": "r", "config": json.dumps(config), "summaryMetrics": '{"_wandb": {"runtime": 60}, "loss": NaN}'}
    return {**told, "createdAt": "2024-01-02T03:00:00", "state": "finished", "historyLineCount": 5, **more}


class TestRun:
    def test_it_has_what_its_environment_says(self) -> None:
        run = listed(node(), "e", "p").run
        assert (run.host, run.program, run.args) == ("box", "train.py", ("--lr", "1"))
        assert (run.git_remote, run.git_commit) == ("git@x:y", "abc")
        assert run.created == 1704164400000
        assert (run.started, run.runtime, run.ended) == (1704164645678, 60.0, 1704164705678)
        assert run.config == {"lr": 0.1}
        assert math.isnan(run.summary["loss"])

    def test_one_that_goes_on_has_no_end(self) -> None:
        found = listed(node(state="running", heartbeatAt="2024-01-02T04:00:00"), "e", "p")
        assert found.live
        assert found.run.ended is None

    def test_one_that_was_resumed_began_when_it_was_made_and_ended_with_its_last_row(self) -> None:
        last = 1704164645 + 10  # 10 s after it was resumed, and only 70 s of work after its start
        summary = json.dumps({"_timestamp": last, "_runtime": 70, "_wandb": {"runtime": 70}})
        run = listed(node(summaryMetrics=summary), "e", "p").run
        assert (run.started, run.ended) == (run.created, last * 1000)

    def test_one_that_was_not_resumed_began_when_it_says(self) -> None:
        summary = json.dumps({"_timestamp": 1704164645.7 + 60, "_runtime": 60, "_wandb": {"runtime": 61}})
        run = listed(node(summaryMetrics=summary), "e", "p").run
        assert (run.started, run.ended) == (1704164645678, 1704164706678)

    @pytest.mark.parametrize("config", [None, "", "no json", "[]", "1", json.dumps({"_wandb": 3}), "[" * 100_000])
    def test_a_config_that_is_none_is_empty(self, config: str | None) -> None:
        run = listed(node(config=config, summaryMetrics=config, historyKeys=None), "e", "p").run
        assert (run.config, run.internal) == ({}, {})

    def test_a_config_keeps_what_only_looks_like_a_value(self) -> None:
        told = {"a": {"value": {"value": 1}}, "b": 3, "wandb_version": 1}
        assert config_of(told) == ({"a": {"value": 1}, "b": 3}, {})

    def test_control_characters_in_a_config_are_read(self) -> None:
        assert as_json('{"a": "b\tc"}') == {"a": "b\tc"}


def test_definitions_of_metrics_have_the_names_of_their_fields() -> None:
    told = [{"1": "epoch", "6": [3]}, {"1": "loss", "5": 1, "6": [1, 3], "7": [1, 2], "8": 2}, {"2": "val/*", "4": "x"}]
    assert metrics_of(told) == (
        {"name": "epoch", "options": {"defined": True}},
        {
            "name": "loss",
            "step_metric": "epoch",
            "options": {"step_sync": True, "defined": True},
            "summary": {"min": True, "max": True},
            "goal": "GOAL_MAXIMIZE",
        },
        {"glob_name": "val/*", "step_metric": "x"},
    )


@pytest.mark.parametrize(
    ("told", "time"),
    [
        ("1970-01-01T00:00:01", 1000),
        ("1970-01-01T00:00:01.5Z", 1500),
        ("1970-01-01T02:00:00+02:00", 0),
        ("1969-12-31T23:59:59.999Z", -1),
        ("", None),
        ("yesterday", None),
        (None, None),
    ],
)
def test_times_are_in_utc(told: str | None, time: int | None) -> None:
    assert milliseconds(told) == time


def test_aliases_are_those_of_the_versions_own_collection() -> None:
    home = {"name": "data", "project": {"name": "p", "entity": {"name": "e"}}}
    other = {"name": "registered", "project": {"name": "model-registry", "entity": {"name": "e"}}}
    told = [("best", home), ("v3", home), ("prod", other)]
    found = version_of(
        {
            "artifactSequence": home,
            "artifactType": {"name": "dataset"},
            "versionIndex": 3,
            "ttlDurationSeconds": 60,
            "ttlIsInherited": True,
            "aliases": [{"alias": alias, "artifactCollection": collection} for alias, collection in told],
            "createdBy": {"__typename": "Run", "name": "r1"},
        }
    )
    assert (found.name, found.version, found.aliases, found.ttl, found.run) == ("data", "v3", ("best",), None, "r1")


def md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


class Store:
    """Gives bytes by URL; what is in `old` is refused."""

    def __init__(self, files: dict[str, bytes], old: set[str] = frozenset()) -> None:  # type: ignore[assignment]
        self.files, self.old = files, old

    @contextmanager
    def get(self, url: str) -> Iterator[BinaryIO]:
        if url in self.old:
            raise Refused("too old")
        yield io.BytesIO(self.files[url])


class TestBytes:
    def read(self, data: bytes, size: int | None, digest: str, algorithm: str = "MD5") -> bytes:
        urls = Urls(dict, {"x": "u"}, complete=True)
        with opener(Store({"u": data}), urls, "x", size, digest, algorithm)() as file:  # type: ignore[arg-type]
            return file.read()

    def test_they_are_checked_by_their_md5(self) -> None:
        assert self.read(b"abc", 3, md5(b"abc")) == b"abc"
        with pytest.raises(Damaged, match="MD5"):
            self.read(b"abd", 3, md5(b"abc"))

    def test_they_are_checked_by_their_xxh128_where_the_manifest_says_so(self) -> None:
        digest = "BrBatnM6YYV4r1+UiS85UA=="  # of "abc"
        assert self.read(b"abc", 3, digest, "XXH128") == b"abc"
        with pytest.raises(Damaged, match="XXH128"):
            self.read(b"abd", 3, digest, "XXH128")

    @pytest.mark.parametrize("algorithm", ["MD5", "BLAKE9"])
    def test_they_are_checked_by_their_size_where_the_digest_is_another(self, algorithm: str) -> None:
        digest = "" if algorithm == "MD5" else md5(b"abd")
        assert self.read(b"abc", 3, digest, algorithm) == b"abc"
        with pytest.raises(Damaged, match="3 bytes"):
            self.read(b"abc", 4, digest, algorithm)

    def test_a_digest_that_is_no_md5_is_not_checked(self) -> None:
        assert self.read(b"abc", None, "s3://etag") == b"abc"

    def test_a_url_that_another_has_asked_for_anew_meanwhile_is_taken(self) -> None:
        store = Store({"u1": b"", "u2": b"abc"}, {"u1"})
        urls = Urls(lambda: {"x": "u2"}, {"x": "u1"}, complete=True)
        urls.at -= 60
        refused = store.get

        def get(url: str) -> AbstractContextManager[BinaryIO]:
            if url == "u1":
                urls.of("x", anew=True)
            return refused(url)

        store.get = get  # type: ignore[method-assign]
        with opener(store, urls, "x", 3, "")() as file:  # type: ignore[arg-type]
            assert file.read() == b"abc"

    def test_a_url_that_is_too_old_is_asked_for_anew(self) -> None:
        store = Store({"u1": b"", "u2": b"abc"}, {"u1"})
        urls = Urls(lambda: {"x": "u2"}, {"x": "u1"}, complete=True)
        urls.at -= 60
        with opener(store, urls, "x", 3, "")() as file:  # type: ignore[arg-type]
            assert file.read() == b"abc"

    def test_a_file_without_a_url_is_gone(self) -> None:
        urls = Urls(dict, {}, complete=False)
        with pytest.raises(NotFound), opener(Store({}), urls, "x", 3, "")():  # type: ignore[arg-type]
            pass

    def test_a_fresh_url_that_is_refused_is_an_error(self) -> None:
        urls = Urls(lambda: {"x": "u"}, {"x": "u"}, complete=True)
        with pytest.raises(MigrateError), opener(Store({}, {"u"}), urls, "x", 3, "")():  # type: ignore[arg-type]
            pass
