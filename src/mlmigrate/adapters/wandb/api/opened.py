"""One run of a server, opened: most of it in one request.

ReadRun           line counts, rows where they are few, events, files, logged and used versions
+ a manifest      for each version that it logged
+ pages           of what did not fit
history, events   when they are taken
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, cast

from mlmigrate.adapters.wandb import restored
from mlmigrate.adapters.wandb.api import operations
from mlmigrate.adapters.wandb.api.answers import Unsupported
from mlmigrate.adapters.wandb.api.client import Client
from mlmigrate.adapters.wandb.api.histories import FEW_EVENTS, History, Told, Where, events, inline, run_of
from mlmigrate.adapters.wandb.api.named import named_by
from mlmigrate.adapters.wandb.api.pages import Untold, all_pages, held, hidden, next_page, nodes
from mlmigrate.adapters.wandb.api.told import Listed, as_json, whole, with_environment
from mlmigrate.adapters.wandb.api.versions import (
    HISTORY_TYPE,
    Urls,
    files_of,
    opener,
    producer_of,
    version_of,
)
from mlmigrate.adapters.wandb.clients import Named
from mlmigrate.adapters.wandb.shape import Block, File, Opener, Version
from mlmigrate.errors import BadData, MigrateError, NotFound, Refused
from mlmigrate.model import Loss

FILES, VERSIONS, LINES = 200, 50, 1000  # in a page
OUTPUT, METADATA = "output.log", "wandb-metadata.json"
CALLED = {"history": "history", "events": "system metrics", "files": "files of the run page",
          "logged": "artifacts that it logged", "used": "artifacts that it used"}  # fmt: skip
LARGEST_METADATA = 4 << 20
_SPOOL = 1 << 20
Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _List:
    """How pages of a list of a run's are asked for: the field, the operation, what it calls the cursor."""

    field: str
    operation: str
    cursor: str
    more: Json


_LISTS = {
    "files": _List("files", operations.FILES, "fileCursor", {"fileLimit": FILES}),
    "logged": _List("outputArtifacts", operations.LOGGED, "cursor", {"perPage": VERSIONS}),
    "used": _List("inputArtifacts", operations.USED, "cursor", {"perPage": VERSIONS}),
}


class OnlineRun:
    """A run that was looked at. Its streams may be taken again: then they are asked for again."""

    def __init__(self, client: Client, where: Where, listed: Listed, answer: Json, losses: list[Loss]) -> None:
        self._client, self._where, self._listed = client, where, listed
        self.losses = losses
        self.ids: Sequence[str] = ()  # W&B's own, of what it logged
        self._events = whole(answer.get("eventsLineCount"))
        self._early_events: Sequence[str] | None = answer.get("events")
        lines = whole(answer.get("historyLineCount"))
        lines = lines if lines is not None else listed.run.lines
        self._told = Told(lines, listed.last, listed.keys, listed.live, answer.get("history"))
        self.run = replace(listed.run, lines=lines)

    def history(self) -> Iterator[Block]:
        """All rows."""
        told, self._told = self._told, replace(self._told, early=None)  # what came along is held once
        return History(self._client, self._where, told, self.losses).blocks()

    def events(self) -> Iterator[Block]:
        """System metrics."""
        early, self._early_events = self._early_events, None
        if self._events == 0 and not early:
            return iter(())
        return events(self._client, self._where, self._events, early, self.losses)

    def called(self, named: Named) -> tuple[Version, ...]:
        """What it logged, with the ids by which rows and summary name it, as far as the server tells."""
        found: dict[str, list[tuple[str, str]]] = {}
        known, untold = named_by(self._client, list(named.clients))
        for client, id_ in known.items():
            found.setdefault(id_, []).append((client, named.clients[client]))
        if untold:
            because = "W&B does not tell which versions their ids mean"
            self.losses.append(Loss(self.run.id, f"{len(untold)} artifacts that values show", because))
        logged = zip(self.ids, self.run.logged, strict=True)
        return tuple(replace(version, clients=tuple(found.get(id_, ()))) for id_, version in logged)


def open_run(client: Client, listed: Listed, sweep: Json | None = None) -> OnlineRun:
    """Looks at a run. Raises NotFound where it is gone."""
    run = listed.run
    where = Where(run.entity, run.project, run.id)
    losses: list[Loss] = []
    answer = look(client, where, listed, losses)
    opened = OnlineRun(client, where, listed, answer, losses)
    files = _files(client, where, answer, losses, live=listed.live)
    logged = _versions(client, where, answer, "logged", losses)
    used = _versions(client, where, answer, "used", losses)
    console = _console(client, where, answer, files)
    told = opened.run if run.metadata else with_environment(opened.run, _metadata(files), listed.beat)
    opened.ids = [str(node.get("id")) for node in logged]
    opened.run = replace(
        told,
        files=(*files, *console),
        logged=tuple(_logged(client, node, run.id, losses) for node in logged),
        sweep_config=dict(sweep or {}),
    )
    lent = restored.lent(opened.run)
    opened.run = replace(opened.run, used=tuple(_used(client, node, lent, run.id, losses) for node in used))
    return opened


def look(client: Client, where: Where, listed: Listed, losses: list[Loss]) -> dict[str, Any]:
    """Asks for all parts at once; a server that does not take that is asked for each."""
    few = inline(Told(listed.run.lines, listed.last, listed.keys))
    parts = [part for part in operations.PARTS if part != "history" or few]
    variables = {
        "entity": where.entity,
        "project": where.project,
        "name": where.run,
        "minStep": 0,
        "maxStep": listed.last + 1,
        "rows": (listed.run.lines or 0) + 1,
        "events": FEW_EVENTS,
        "fileLimit": FILES,
        "logged": VERSIONS,
        "used": VERSIONS,
    }
    try:
        return _look(client, where, parts, variables)
    except MigrateError:  # too much at once, or one part that is not for us
        return _look_singly(client, where, parts, variables, losses)


def _look(client: Client, where: Where, parts: Sequence[str], variables: Json) -> dict[str, Any]:
    text = operations.read_run(parts)
    wanted = {name: value for name, value in variables.items() if f"${name}:" in text}
    return run_of(client.graphql(text, wanted), where)


def _look_singly(
    client: Client, where: Where, parts: Sequence[str], variables: Json, losses: list[Loss]
) -> dict[str, Any]:
    """Raises what is wrong with the run; a part that cannot be had is told of."""
    found = _look(client, where, ["lines"], variables)
    for part in parts:
        try:
            found |= {} if part == "lines" else _look(client, where, [part], variables)
        except (Unsupported, Refused, NotFound) as error:
            losses.append(Loss(where.run, CALLED[part], f"the server does not tell it: {error.message}"))
    return found


def _files(client: Client, where: Where, answer: Json, losses: list[Loss], *, live: bool) -> list[File]:
    """The files of the run page. Those of a run that goes on may change before they are read."""
    urls = Urls(lambda: {str(one["name"]): str(one["directUrl"]) for one in _all_files(client, where)}, complete=True)
    found = _told(client, where, answer, "files", losses)
    return [_file(client, urls, {**node, "md5": ""} if live else node) for node in found if node.get("name")]


def _file(client: Client, urls: Urls, node: Json) -> File:
    name, url = str(node["name"]), str(node.get("directUrl") or "")
    size, md5 = whole(node.get("sizeBytes")), str(node.get("md5") or "")
    if not url:
        return File(name, None, size, md5, gone="W&B has no bytes for it")
    urls.known[name] = url
    return File(name, opener(client, urls, name, size if md5 else None, md5), size, md5)


def _all_files(client: Client, where: Where) -> Iterator[dict[str, Any]]:
    pages = all_pages(lambda cursor: _page(client, where, "files", cursor), "the files of a run")
    return (one for page in pages for one in nodes(page) if one.get("name") and one.get("directUrl"))


def _versions(client: Client, where: Where, answer: Json, part: str, losses: list[Loss]) -> list[dict[str, Any]]:
    """Versions in the order they were made; W&B's own copies of the history are left out."""
    found = _told(client, where, answer, part, losses)
    found = [node for node in found if (node.get("artifactType") or {}).get("name") != HISTORY_TYPE]
    return sorted(found, key=lambda node: str(node.get("createdAt") or ""))


def _told(client: Client, where: Where, answer: Json, part: str, losses: list[Loss]) -> list[dict[str, Any]]:
    """All of a list of the run's, whose first page is in the answer. What the server keeps to itself is a loss."""
    first, what = _LISTS[part].field, f"{CALLED[part]} of {where.run}"
    if first not in answer:  # which was told
        return []
    try:
        held(answer[first], what)
    except Untold:
        losses.append(Loss(where.run, CALLED[part], "the server tells null for them"))
        return []
    found: list[dict[str, Any]] = []
    for page in all_pages(lambda cursor: answer[first] if cursor is None else _page(client, where, part, cursor), what):
        found += nodes(page)
        if n := hidden(page):
            losses.append(Loss(where.run, CALLED[part], f"the server tells null for {n} of them"))
    return found


def _page(client: Client, where: Where, part: str, cursor: str | None) -> Json | None:
    one = _LISTS[part]
    named = {"entity": where.entity, "project": where.project, "name": where.run}
    variables = {**named, **one.more, one.cursor: cursor}
    return run_of(client.graphql(one.operation, variables), where).get(one.field)


def _logged(client: Client, node: Json, run: str, losses: list[Loss]) -> Version:
    return replace(version_of(node, run), files=files_of(client, node, run, losses))


def _used(client: Client, node: Json, lent: frozenset[str], run: str, losses: list[Loss]) -> Version:
    """A version that the run read; with its files, where they are in its own name among the run's."""
    found = version_of(node, producer_of(node))
    if lent.isdisjoint((found.name, f"{found.name}:{found.digest}")):
        return found
    return replace(found, files=files_of(client, node, run, losses))


def _metadata(files: Sequence[File]) -> dict[str, Any]:
    """wandb-metadata.json, where there is one that can be read."""
    file = next((one for one in files if one.path == METADATA and one.open is not None), None)
    if file is None or file.open is None or (file.size or 0) > LARGEST_METADATA:
        return {}
    try:
        with file.open() as data:
            return as_json(data.read(LARGEST_METADATA).decode("utf-8", "replace"))
    except (NotFound, Refused, BadData):
        return {}  # the same is told once more when the file itself is read


def _console(client: Client, where: Where, answer: Json, files: Sequence[File]) -> list[File]:
    """The console's lines as output.log, where the run has no such file."""
    if any(file.path == OUTPUT for file in files) or answer.get("logLineCount") == 0:
        return []
    if answer.get("logLineCount") is None and not _talks(client, where):
        return []
    return [File(OUTPUT, console_opener(client, where))]


def _talks(client: Client, where: Where) -> bool:
    """Whether there are console lines, where the server does not say how many."""
    try:
        return any(True for _ in _lines(client, where))
    except (Unsupported, NotFound):
        return False


def console_opener(client: Client, where: Where) -> Opener:
    """The lines of the console, in order."""

    @contextmanager
    def open_() -> Iterator[BinaryIO]:
        with tempfile.SpooledTemporaryFile(_SPOOL, prefix="mlmigrate-console-") as file:
            for line in _lines(client, where):
                file.write(line.encode("utf-8", "surrogatepass") + b"\n")
            file.seek(0)
            yield cast("BinaryIO", file)

    return open_


def _lines(client: Client, where: Where) -> Iterator[str]:
    """All lines, by pages; a server that has no pages of them is asked for as many as it says there are."""
    named = {"entity": where.entity, "project": where.project, "runName": where.run}
    try:
        page = _console_page(client, where, operations.CONSOLE, {**named, "first": LINES, "after": None})
    except Unsupported:
        told = _look(client, where, ["lines"], {**named, "name": where.run})
        last = whole(told.get("logLineCount")) or 1 << 30
        page = _console_page(client, where, operations.CONSOLE_TAIL, {**named, "last": last})
    cursor: str | None = None
    while True:
        yield from (str(node.get("line") or "").rstrip("\n") for node in nodes(page))
        cursor = next_page(page, cursor, f"the console lines of {where.run}")
        if cursor is None:
            return
        page = _console_page(client, where, operations.CONSOLE, {**named, "first": LINES, "after": cursor})


def _console_page(client: Client, where: Where, operation: str, variables: Json) -> Json:
    page = run_of(client.graphql(operation, variables), where).get("logLines")
    if not isinstance(page, dict):
        raise NotFound(f"{client.base_url} tells no console lines of the run {where.run}.")
    return page
