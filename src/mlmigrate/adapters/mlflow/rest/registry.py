"""Registered models and prompts written to a server: a model, its versions in order, its aliases last.

    model     made with the tag mlmigrate.origin, or the one that bears it; others of its name: see conflicts
    versions  each made with all its tags, found again by its origin; numbers that are missing before it are
              filled with placeholders, which are deleted when all others are there
    stages    then, and the tag mlmigrate.stamp when a version is whole
    aliases   last

A server takes as a version's source only what lies in a run or a logged model that it has, or in a store of
other people.  A source that it refuses is kept in the tag mlmigrate.source, and the version made without one.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import count
from typing import IO, Any
from urllib.parse import quote

import msgspec

from mlmigrate.adapters.base import LEFT_OUT, Change, Holding, OnConflict
from mlmigrate.adapters.mlflow import conflicts, objects
from mlmigrate.adapters.mlflow.conflicts import Choice
from mlmigrate.adapters.mlflow.objects import Row, Tree
from mlmigrate.adapters.mlflow.rest.client import Client
from mlmigrate.adapters.mlflow.rest.here import (
    DELETED_STAGE,
    MODELS_SINCE,
    PLACEHOLDER_TAG,
    SOURCE_TAG,
    VERSIONS_TAG,
    Alias,
    Registered,
    Version,
    is_stamped,
    registered,
    renumbered,
    versions,
)
from mlmigrate.adapters.mlflow.rest.models import OneModel as OneLogged
from mlmigrate.adapters.mlflow.rest.objects import Frame
from mlmigrate.adapters.mlflow.rest.server import Server
from mlmigrate.adapters.mlflow.rest.source import API
from mlmigrate.adapters.mlflow.rest.wire import Anything
from mlmigrate.adapters.mlflow.rest.writing import pairs
from mlmigrate.errors import Conflict, MigrateError, NotFound, Unavailable
from mlmigrate.model import ORIGIN_TAG, OURS, STAMP_TAG, Artifact, Loss, Record

KINDS = ("mlflow.registered_model", "mlflow.prompt")
NOWHERE = "mlmigrate-lost:/"  # how a source begins that no server took; nothing can be loaded from there
DUMMY = "dummy-source"  # the source of prompts, and of placeholders
LONGEST_PATH = 200
ALIASES_SINCE, PROMPTS_SINCE, LONG_TAGS_SINCE = (2, 3), (2, 21), (3, 0)
_MODEL_SOURCE = re.compile(r"models:/([^/]+)/\d+$")
Wanted = tuple[str, str]  # origin, name


class OneModel(msgspec.Struct, frozen=True):
    """The model that was asked for, or made."""

    registered_model: Registered = Registered()


class OneVersion(msgspec.Struct, frozen=True):
    """The version that was made."""

    model_version: Version = Version()


def holdings(version: tuple[int, int]) -> Sequence[Holding]:
    """Registered models and prompts, at servers of this version."""
    changes = _changes()
    if version < ALIASES_SINCE:
        changes += (Change("registered_model_aliases", f"MLflow {_shown(version)} knows no aliases"),)
    model = Holding("mlflow.registered_model", "mapped", changes=changes)
    if version >= PROMPTS_SINCE:
        return model, Holding("mlflow.prompt", "mapped", changes=changes)
    because = f"MLflow {_shown(version)} knows no prompts: they are among its models"
    return model, Holding("mlflow.prompt", "record", because, changes)


def _changes() -> tuple[Change, ...]:
    own, empty = "the server sets its own", "the server writes no null"
    return (
        Change("registered_models.creation_time", own, kept=True),
        Change("registered_models.last_updated_time", own),
        Change("registered_models.description", empty, LEFT_OUT, only=(None, ""), lost=False),
        Change("model_versions.creation_time", own, kept=True),
        Change("model_versions.last_updated_time", own),
        Change("model_versions.user_id", "the server keeps nobody's name", unless=("",)),
        Change("model_versions.storage_location", "the server finds it from the source", lost=False),
        Change("model_versions.status", "a version that is made is ready", unless=("READY",)),
        Change("model_versions.status_message", "the server sets its own", unless=("",)),
        Change("model_versions.description", empty, "", only=(None,), lost=False),
        Change("model_versions.run_id", empty, "", only=(None,), lost=False),
        Change("model_versions.run_link", empty, "", only=(None,), lost=False),
        Change("model_versions.current_stage", empty, "None", only=(None,), lost=False),
    )


def _shown(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def foreseen(client: Client, server: Server, records: Sequence[Record], policy: OnConflict) -> list[Loss]:
    """What meets others of its name. Raises Conflict when that is to fail."""
    wanted = [_wanted(objects.tree_of(record)) for record in records if record.kind in KINDS]
    if not wanted:
        return []
    there = {model.name: model.pairs.get(ORIGIN_TAG, "") for model in registered(client, server)}
    return conflicts.losses(wanted, conflicts.settle(wanted, there, policy, "registered model"), "registered model")


def _wanted(tree: Tree) -> Wanted:
    root = tree["registered_models"][0]
    return objects.model_origin(root), root["name"]


class RegistryWriter:
    """Writes the registry of one pack: all names are settled before the first model is made."""

    kinds = KINDS
    owner = ""
    raw = True

    def __init__(self, frame: Frame) -> None:
        self._frame, self._client = frame, frame.client
        self._held: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as this
        self._wanted: list[Wanted] = []
        self._tagged: dict[str, str] = {}  # logged model here -> the versions that its tag named before
        self._after: dict[str, set[str]] = {}  # name -> names of the models that its sources speak of

    def keep(self, record: Record) -> None:
        """Lays a model aside."""
        tree = objects.tree_of(record)
        self._wanted.append(_wanted(tree))
        sources = (_MODEL_SOURCE.match(row.get("source") or "") for row in tree.get("model_versions", ()))
        self._after[_wanted(tree)[1]] = {found[1] for found in sources if found}
        self._held.write(record.body.encode() + b"\n")

    def put(self, artifact: Artifact) -> None:
        """No file belongs to a registered model."""

    def commit(self) -> None:
        """Settles the names, then writes all models; those that others are made from first."""
        there = {model.name: model for model in registered(self._client, self._frame.server)}
        origins = {name: model.pairs.get(ORIGIN_TAG, "") for name, model in there.items()}
        choices = conflicts.settle(self._wanted, origins, self._frame.settings.on_conflict, "registered model")
        self._frame.losses += conflicts.losses(self._wanted, choices, "registered model")
        for origin, choice in choices.items():
            self._frame.known.name(origin, choice.name)
        waiting = dict(choices)
        while waiting:
            ready = [origin for origin, name in self._wanted if origin in waiting and not self._before(name, waiting)]
            chosen = {origin: waiting.pop(origin) for origin in ready or list(waiting)}  # a circle, as it comes
            for tree in self._trees():
                origin = _wanted(tree)[0]
                if origin in chosen:
                    self._frame.later(self._write, tree, chosen[origin], there.get(chosen[origin].name))
            self._frame.settle()
        self._name_versions()

    def _name_versions(self) -> None:
        """A server that makes a version of a logged model writes that into the model's tag, and not always right."""
        for id_, before in self._tagged.items():
            tags = {VERSIONS_TAG: renumbered(before, self._frame.known)}
            path = f"{API}/logged-models/{quote(id_, safe='')}/tags"
            self._client.patch(path, Anything, {"tags": pairs(tags)})

    def _before(self, name: str, waiting: Mapping[str, Choice]) -> bool:
        """Whether a model that versions of this one were made from is not written yet."""
        names = {origin.rpartition("@")[0] for origin in waiting}
        return bool((self._after[name] - {name}) & names)

    def _trees(self) -> Iterator[Tree]:
        self._held.seek(0)
        for line in self._held:
            yield msgspec.json.decode(line)

    def _write(self, tree: Tree, choice: Choice, there: Registered | None) -> None:
        origin, name = _wanted(tree)
        try:
            Model(self._frame, tree, choice, origin, self._tagged).write(there)
        except Unavailable:
            raise
        except MigrateError as error:
            self._frame.lose(f"registered model {name!r}", error.message)


class Model:
    """One model being written. `own`: its description and tags are ours to change."""

    def __init__(self, frame: Frame, tree: Tree, choice: Choice, origin: str, tagged: dict[str, str]) -> None:
        self._frame, self._client = frame, frame.client
        self._tree, self._origin, self._tagged = tree, origin, tagged
        self._root = tree["registered_models"][0]
        self._source_name = self._root["name"]
        self._name, self._own = choice.name, choice.how != "merged"
        self._numbers: dict[int, int] = {}  # the source's -> here
        self._fillers: set[int] = set()
        self._last = 0
        rows = [row for row in tree.get("model_versions", ()) if row.get("current_stage") != DELETED_STAGE]
        self._rows = sorted(rows, key=lambda row: int(row["version"]))

    def write(self, there: Registered | None) -> None:
        """Makes or completes it."""
        if there is None:
            there = self._make()
        self._own = self._own and there.pairs.get(ORIGIN_TAG) == self._origin
        self._describe(there)
        here = list(versions(self._client, self._frame.server, self._name))
        self._fillers = {one.version for one in here if PLACEHOLDER_TAG in one.pairs}
        by_origin = {one.pairs[ORIGIN_TAG]: one for one in here if ORIGIN_TAG in one.pairs}
        self._last = max((one.version for one in here), default=0)
        for row in self._rows:
            self._version(row, by_origin)
        for number in sorted(self._fillers):
            self._once("model-versions/delete", self._key(version=str(number)))
        self._aliases(there.aliases)

    def _make(self) -> Registered:
        """Two of one name cannot be, so a doubtful answer is told by the next: it is there already."""
        tags = {key: self._text(value) for key, value in _tags(self._tree.get("registered_model_tags", ())).items()}
        body = {
            "name": self._name,
            "tags": pairs({**tags, ORIGIN_TAG: self._origin}),
            "description": self._root.get("description") or "",
        }
        try:
            return self._client.post(f"{API}/registered-models/create", OneModel, body).registered_model
        except Conflict:
            there = self._get()
            if there.pairs.get(ORIGIN_TAG) != self._origin:
                raise
            return there

    def _get(self) -> Registered:
        return self._client.get(f"{API}/registered-models/get", OneModel, {"name": self._name}).registered_model

    def _describe(self, there: Registered) -> None:
        """Of a model of others only the tags that it has not are set, and its description if it has none."""
        means = {key: self._text(value) for key, value in _tags(self._tree.get("registered_model_tags", ())).items()}
        has = there.pairs
        for key, value in means.items():
            if key not in has or (self._own and has[key] != value):
                self._tag(key, value)
            elif has[key] != value:
                self._lose(f"tag {key!r}", "the model of this name has another, which is kept")
        for key in has if self._own else ():
            if key not in means and not key.startswith(OURS):
                self._once("registered-models/delete-tag", self._key(key=key))
        text = self._root.get("description") or ""
        if text == there.description:
            return
        if self._own or not there.description:
            self._client.patch(f"{API}/registered-models/update", Anything, self._key(description=text))
        elif text:
            self._lose("description", "the model of this name has another, which is kept")

    def _version(self, row: Row, by_origin: Mapping[str, Version]) -> None:
        """One version, once, under its own number if that is free."""
        number, origin = int(row["version"]), objects.version_origin(row)
        there = by_origin.get(origin)
        while there is None and self._last < number - 1:
            self._placeholder()
        if there is None:
            there = self._create(row, origin)
            self._last = max(self._last, there.version)
        self._numbers[number] = there.version
        self._frame.known.number(origin, there.version)
        if there.version != number:
            because = f"the number was taken; it is version {there.version}"
            self._lose(f"version {number}", because)
        self._complete(row, there)

    def _placeholder(self) -> None:
        """Fills a number that the source does not have."""
        body = {"name": self._name, "source": f"{NOWHERE}placeholder", "tags": pairs({PLACEHOLDER_TAG: "true"})}
        made = self._made_once(body, lambda one: PLACEHOLDER_TAG in one.pairs and one.version > self._last)
        self._last = max(self._last, made.version)
        self._fillers.add(made.version)

    def _create(self, row: Row, origin: str) -> Version:
        """The version with its true source, or, when the server refuses that, without."""
        tags = {key: self._text(value) for key, value in self._version_tags(row).items()}
        told = {"name": self._name, "description": row.get("description") or "", "run_link": row.get("run_link") or ""}
        refusal = "" if self._frame.server.version >= MODELS_SINCE else "the server knows no logged models"
        for source, beside in self._sources(row):
            meant = self._source(row)
            where = source if source is not None else _nowhere(meant)
            kept = {} if where == meant else {SOURCE_TAG: meant}
            if "model_id" in beside:
                self._note(beside["model_id"])
            body = {**told, **beside, "source": where, "tags": pairs({**tags, **kept, ORIGIN_TAG: origin})}
            try:
                made = self._made_once(body, lambda one: one.pairs.get(ORIGIN_TAG) == origin)
            except (Unavailable, NotFound, Conflict):
                raise
            except MigrateError as error:
                refusal = refusal or error.message
                continue
            self._tell(row, source, made, refusal)
            return made
        raise MigrateError(refusal)

    def _note(self, model: str) -> None:
        """What the tag of a logged model says before a version is made of it."""
        if model in self._tagged:
            return
        with suppress(NotFound):
            path = f"{API}/logged-models/{quote(model, safe='')}"
            if before := self._client.get(path, OneLogged).model.info.pairs.get(VERSIONS_TAG):
                self._tagged.setdefault(model, before)

    def _sources(self, row: Row) -> Iterator[tuple[str | None, dict[str, str]]]:
        """What a server may take as the source, the truest first: (source, None for nowhere; fields beside)."""
        source, run = self._source(row), self._run(row)
        with_run = {"run_id": run} if run else {}
        if objects.IS_PROMPT in self._version_tags(row):
            yield from ((place, with_run) for place in dict.fromkeys((source or DUMMY, DUMMY)))
        elif source.startswith("models:/m-"):
            if self._frame.server.version >= MODELS_SINCE:
                yield source, {**with_run, "model_id": source.removeprefix("models:/").partition("/")[0]}
        elif source.startswith("models:/"):
            yield source, {}
            yield source, with_run
        elif source:
            yield source, with_run
            if with_run:
                yield source, {}
        yield None, with_run
        yield None, {}

    def _run(self, row: Row) -> str:
        run = row.get("run_id") or ""
        return self._frame.references.id("run", run)

    def _tell(self, row: Row, source: str | None, made: Version, refusal: str) -> None:
        what = f"version {row['version']}"
        if source is None:
            self._lose(f"source of {what} ({row.get('source')!r})", f"kept in its tag {SOURCE_TAG}: {refusal}")
        elif source != self._source(row):
            self._lose(f"source of {what} ({row.get('source')!r})", f"became {source!r}: {refusal}")
        if (made.run_id or "") != self._run(row):
            self._lose(
                f"run of {what} ({row.get('run_id')})", f"became {made.run_id!r}: {refusal or 'the server chose'}"
            )

    def _made_once(self, body: Mapping[str, Any], is_it: Any) -> Version:  # noqa: ANN401  # Version -> bool
        """A version made, once: after an answer that was lost it is looked for before it is made again."""
        tries = count()

        def attempt() -> Version:
            if next(tries) > 0:
                for one in versions(self._client, self._frame.server, self._name):
                    if is_it(one):
                        return one
            return self._client.once("POST", f"{API}/model-versions/create", OneVersion, None, body).model_version

        return self._client.again.do(f"version of {self._name}", attempt)

    def _complete(self, row: Row, there: Version) -> None:
        """What making could not set, and what changed since; then the stamp."""
        stamp = self._stamp(row)
        has = there.pairs
        if is_stamped(has, stamp):
            return
        means = {key: self._text(value) for key, value in self._version_tags(row).items()}
        key = {"name": self._name, "version": str(there.version)}
        for name, value in means.items():
            if has.get(name) != value:
                body = {**key, "key": name, "value": value}
                self._client.post(f"{API}/model-versions/set-tag", Anything, body)
        for name in has:
            if name not in means and not name.startswith(OURS):
                self._once("model-versions/delete-tag", {**key, "key": name})
        if (row.get("description") or "") != there.description:
            body = {**key, "description": row.get("description") or ""}
            self._client.patch(f"{API}/model-versions/update", Anything, body)
        stage = row.get("current_stage") or "None"
        if stage != (there.current_stage or "None"):
            moved: dict[str, object] = {**key, "stage": stage, "archive_existing_versions": False}
            self._client.post(f"{API}/model-versions/transition-stage", Anything, moved)
        self._client.post(f"{API}/model-versions/set-tag", Anything, {**key, "key": STAMP_TAG, "value": stamp})

    def _stamp(self, row: Row) -> str:
        told = {name: value for name, value in row.items() if name not in ("last_updated_time", "status_message")}
        seen = msgspec.json.encode((told, sorted(self._version_tags(row).items())), order="sorted")
        return hashlib.blake2b(seen, digest_size=16).hexdigest()

    def _version_tags(self, row: Row) -> dict[str, str]:
        rows = self._tree.get("model_version_tags", ())
        return _tags(one for one in rows if int(one["version"]) == int(row["version"]))

    def _aliases(self, there: Sequence[Alias]) -> None:
        """An alias that others gave to a version of theirs stays with it."""
        has = {one.alias: one.version for one in there}
        for row in self._tree.get("registered_model_aliases", ()):
            version = self._numbers.get(int(row["version"]))
            if version is None:
                self._lose(f"alias {row['alias']!r}", "it names a version that is not there")
            elif row["alias"] in has and has[row["alias"]] != version and not self._own:
                self._lose(f"alias {row['alias']!r}", "the model of this name has it already, for another version")
            elif has.get(row["alias"]) != version:
                body = self._key(alias=row["alias"], version=str(version))
                self._client.post(f"{API}/registered-models/alias", Anything, body)
        given = {row["alias"] for row in self._tree.get("registered_model_aliases", ())}
        for alias in has if self._own else ():
            if alias not in given:
                self._once("registered-models/alias", self._key(alias=alias))

    def _once(self, path: str, body: object) -> None:
        """Deletes."""
        with suppress(NotFound):  # it is gone already
            self._client.again.do(path, self._client.once, "DELETE", f"{API}/{path}", Anything, None, body)

    def _tag(self, key: str, value: str) -> None:
        self._client.post(f"{API}/registered-models/set-tag", Anything, self._key(key=key, value=value))

    def _key(self, **beside: str) -> dict[str, str]:
        return {"name": self._name, **beside}

    def _source(self, row: Row) -> str:
        return self._frame.known.source(row.get("source") or "")

    def _text(self, text: str) -> str:
        return self._frame.references.text(text)

    def _lose(self, what: str, because: str) -> None:
        self._frame.lose(f"registered model {self._source_name!r}: {what}", because)


def _tags(rows: Any) -> dict[str, str]:  # noqa: ANN401  # any rows of tags
    return {row["key"]: row["value"] or "" for row in rows if not row["key"].startswith(OURS)}


def _nowhere(source: str) -> str:
    """A URI that every server takes, from which nothing can be loaded, and that a person recognises."""
    clean = re.sub(r"[^\w\-]+", "_", source, flags=re.ASCII).strip("_")[:LONGEST_PATH]
    return NOWHERE + (clean or "unknown")
