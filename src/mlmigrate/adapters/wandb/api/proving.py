"""What was written, read back and compared: line counts, each value of each row, config, summary, files, artifacts.

Several runs are looked at in one request.  A server may be behind with what it took, so what differs is looked at
again for a while; what still differs then is an error that names it.
"""

from __future__ import annotations

import json
import math
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlmigrate.adapters.wandb.api.client import Client
from mlmigrate.adapters.wandb.api.logged import Made
from mlmigrate.adapters.wandb.api.pages import Untold, all_pages, held, hidden, nodes
from mlmigrate.adapters.wandb.api.stream import Where, history_lines
from mlmigrate.adapters.wandb.api.writes import HISTORY_PAGE, INPUT_ARTIFACTS, OUTPUT_ARTIFACTS, RUN_FILES, look_at
from mlmigrate.adapters.wandb.shape import Block, Sheet
from mlmigrate.errors import Damaged, MigrateError, Refused, Unavailable

ROWS_PER_PAGE = 10_000
LEAST_ROWS = 500  # a page that comes back too short is asked for in halves, for the server may sample; down to this
BYTES_PER_PAGE = 2 << 20
FILES_PER_LOOK = 100  # of one run among others; more are asked for on their own
ARTIFACTS_PER_PAGE = 200
EVENTS_READ = 2000  # up to so many system metrics are compared one by one: the server samples more of them
TOO_MANY = "there are too many lines"  # how a difference begins that no waiting mends
UNTOLD, NULL = "W&B does not tell of it", "W&B tells null for"
SHOWN = 5  # differences in a message
FIRST_WAIT, LONGEST_WAIT = 0.05, 3.0
_WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Written:
    """A run as it was sent. `proven`: so many rows were compared before the others were sent.

    lines, events  what was sent, where that is little enough to be kept; else None, and the sheet gives it again
    files          path -> md5, or "" where the server may have written it itself
    """

    sheet: Sheet
    where: Where
    bucket: str
    config: Mapping[str, Any]
    state: str
    proven: int = 0
    lines: Sequence[bytes] | None = None
    steps: tuple[int, int] = (0, 0)
    events: Sequence[bytes] | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    logged: tuple[Made, ...] = ()
    used: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes that its look brings, about."""
        return sum(map(len, self.lines or ())) + sum(map(len, self.events or ())) + 2000


@dataclass
class Proof:
    """Looks at runs until they are as sent, or `patience` (seconds) is over.

    `numbers` are those that W&B gave to the versions that it was asked for: id -> 3 of "v3".
    """

    client: Client
    patience: float = 30.0
    numbers: dict[str, int] = field(default_factory=dict)

    def prove(self, written: Sequence[Written]) -> dict[str, MigrateError]:
        """Origin -> what is wrong, for those that are not as sent. All of one project."""
        left, wait, until = list(written), FIRST_WAIT, time.monotonic() + self.patience
        while True:
            wrong = {one.sheet.origin: found for one, found in self._differences(left) if found}
            left = [one for one in left if one.sheet.origin in wrong]
            if not left or time.monotonic() > until or all(map(_final, wrong.values())):
                return {one.sheet.origin: _error(one, wrong[one.sheet.origin]) for one in left}
            self.client.check()
            time.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT)

    def _differences(self, written: Sequence[Written]) -> Iterator[tuple[Written, list[str]]]:
        """What differs of each; where the server does not tell of one, that is a difference of its own."""
        for one, seen in zip(written, self._look(written), strict=True):
            try:
                yield one, self._differ(one, seen)
            except (Unavailable, Refused):
                raise
            except MigrateError as error:
                yield one, [f"{UNTOLD}: {error.message}"]

    def _differ(self, one: Written, seen: Row | MigrateError | None) -> list[str]:
        if isinstance(seen, MigrateError):
            raise seen
        if seen is None:
            return ["the run itself is missing"]
        nulls = [name for name, sent in _sent(one).items() if sent and seen.get(name) is None]
        if nulls:
            return [f"{NULL} {', '.join(nulls)}"]
        found = told(one, seen) + history(one, seen) + events(one, seen) + self._files(one, seen)
        return found or self._artifacts(one) + self._rows(one, seen)

    def _look(self, written: Sequence[Written]) -> Sequence[Row | MigrateError | None]:
        if len(written) == 1:
            return self._look_at_each(written)
        return self.client.together(lambda: self._look_at(written), lambda: self._look_at_each(written))

    def _look_at_each(self, written: Sequence[Written]) -> Sequence[Row | MigrateError | None]:
        seen: list[Row | MigrateError | None] = []
        for one in written:
            try:
                seen += self._look_at([one])
            except (Unavailable, Refused):
                raise
            except MigrateError as error:
                seen.append(error)
        return seen

    def _look_at(self, written: Sequence[Written]) -> Sequence[Row | None]:
        where = written[0].where
        variables: dict[str, Any] = {"entity": where.entity, "project": where.project}
        for n, one in enumerate(written):
            variables |= {f"{name}{n}": value for name, value in _asked(one).items()}
        project = self.client.graphql(look_at(len(written)), variables).get("project") or {}
        return [project.get(f"r{n}") for n in range(len(written))]

    def _files(self, one: Written, seen: Row) -> list[str]:
        there = _seen(seen.get("files"), one.where) if one.files else []
        paths = list(one.files)
        for first in range(FILES_PER_LOOK, len(paths), FILES_PER_LOOK):
            some = paths[first : first + FILES_PER_LOOK]
            variables = {"entity": one.where.entity, "project": one.where.project, "name": one.where.id}
            data = self.client.graphql(RUN_FILES, {**variables, "fileNames": some, "fileLimit": len(some)})
            there += _seen(((data.get("project") or {}).get("run") or {}).get("files"), one.where)
        md5s = {node["name"]: node.get("md5") for node in there}
        found = [f"the file {path!r} is missing" for path in paths if path not in md5s]
        return found + [
            f"the file {path!r} has the md5 {md5s[path]}, {md5} was sent"
            for path, md5 in one.files.items()
            if md5 and md5s.get(path) not in (None, "", md5)
        ]

    def _artifacts(self, one: Written) -> list[str]:
        found: list[str] = []
        if one.logged:
            there = {node["id"]: node for node in self.artifacts(one.where, OUTPUT_ARTIFACTS)}
            indices = {id_: node.get("versionIndex") for id_, node in there.items()}
            self.numbers |= {id_: index for id_, index in indices.items() if isinstance(index, int)}
            for made in one.logged:
                if made.lent:
                    continue
                node = there.get(made.id)
                if node is None:
                    found.append(f"the artifact {made.name!r} is missing")
                elif node["state"] != "COMMITTED" or node["digest"] != made.digest:
                    found.append(f"the artifact {made.name!r} is {node['state']} with the digest {node['digest']}")
        meant = [*one.used, *(made.id for made in one.logged if made.lent)]
        if meant:
            used = {node["id"] for node in self.artifacts(one.where, INPUT_ARTIFACTS)}
            found += [f"the use of the artifact {id_!r} is missing" for id_ in meant if id_ not in used]
        return found

    def artifacts(self, where: Where, operation: str) -> Iterator[dict[str, Any]]:
        """The versions that a run made, or read."""
        given: dict[str, Any] = {"entity": where.entity, "project": where.project, "run": where.id}
        given["perPage"] = ARTIFACTS_PER_PAGE

        def ask(cursor: str | None) -> Row | None:
            data = self.client.graphql(operation, {**given, "cursor": cursor})
            return ((data.get("project") or {}).get("run") or {}).get("artifacts")

        for page in all_pages(ask, f"the artifacts of the run {where.shown}"):
            if n := hidden(page):
                raise Untold(f"W&B tells null for {n} of the artifacts of the run {where.shown}.")
            yield from nodes(page)

    def _rows(self, one: Written, seen: Row) -> list[str]:
        """The rows that one look did not bring."""
        if one.lines is not None and len(seen.get("history") or ()) >= len(one.lines):
            return []
        difference = self.compare(one.where, one.sheet.history(one.proven), one.sheet.rows - one.proven, one.proven)
        return [difference] if difference else []

    def compare(self, where: Where, blocks: Iterator[Block], rows: int, first: int = 0) -> str:
        """What differs first among so many rows; "" for nothing."""
        for page in pages(blocks, rows):
            difference = self._compare(where, page, first)
            if difference:
                return difference
            first += len(page.lines)
        return ""

    def _compare(self, where: Where, page: Page, first: int) -> str:
        rows = len(page.lines)
        variables: dict[str, Any] = {"entity": where.entity, "project": where.project, "run": where.id}
        variables |= {"minStep": page.steps[0], "maxStep": page.steps[-1] + 1, "pageSize": rows + 10}
        data = self.client.graphql(HISTORY_PAGE, variables)
        got = ((data.get("project") or {}).get("run") or {}).get("history")
        if got is None:
            raise Untold(
                f"W&B tells nothing of the history of the run {where.shown}.", "The same command again goes on"
            )
        if len(got) >= rows or rows <= LEAST_ROWS:
            return lines_differ(page.lines, got, first)
        half = rows // 2
        left, right = page.part(0, half), page.part(half, rows)
        return self._compare(where, left, first) or self._compare(where, right, first + half)


@dataclass(frozen=True, slots=True)
class Page:
    """Lines that follow each other, and their steps."""

    lines: Sequence[bytes]
    steps: Sequence[int]

    def part(self, start: int, end: int) -> Page:
        """Some of them."""
        return Page(self.lines[start:end], self.steps[start:end])


def pages(blocks: Iterator[Block], rows: int) -> Iterator[Page]:
    """The first `rows` rows, in pages that fit into an answer."""
    for block in blocks:
        lines, _ = history_lines(block)
        steps = block.step.to_pylist()
        for start, end in _bounds(lines[:rows]):
            yield Page(lines[start:end], steps[start:end])
        rows -= len(lines)
        if rows <= 0:
            return


def _bounds(lines: Sequence[bytes]) -> Iterator[tuple[int, int]]:
    start = size = 0
    for n, line in enumerate(lines):
        if n > start and (n - start >= ROWS_PER_PAGE or size + len(line) > BYTES_PER_PAGE):
            yield start, n
            start, size = n, 0
        size += len(line)
    if start < len(lines):
        yield start, len(lines)


def told(one: Written, seen: Row) -> list[str]:
    """What differs of all that is told of a run."""
    run = one.sheet.run
    wanted = {"displayName": run.name, "notes": run.notes, "group": run.group, "jobType": run.job_type}
    found = [
        f"{name} is {seen.get(name)!r}, {value!r} was sent"
        for name, value in wanted.items()
        if (seen.get(name) or "") != (value or "")
    ]
    if sorted(seen.get("tags") or ()) != sorted(run.tags):
        found.append(f"tags are {seen.get('tags')!r}")
    if seen.get("state") != one.state and one.state in ("finished", "failed"):
        found.append(f"the state is {seen.get('state')!r}, not {one.state!r}")
    summary = parsed(seen.get("summaryMetrics"))
    found += [f"summary {key!r} is not as it was sent" for key in differing(run.summary, summary)]
    return found + _config_differs(one.config, parsed(seen.get("config")))


def _config_differs(sent: Mapping[str, Any], got: Mapping[str, Any]) -> list[str]:
    found = []
    for key, wrapped in sent.items():
        there = got.get(key)
        there = there.get("value") if isinstance(there, Mapping) else None
        wanted = wrapped["value"]
        if key == "_wandb" and isinstance(there, Mapping):  # the server adds to it
            there = {name: there.get(name) for name in wanted}
        if not same(wanted, there):
            found.append(f"config {key!r} is not as it was sent")
    return found


def history(one: Written, seen: Row) -> list[str]:
    """What differs of the rows; only how many there are where the look did not bring all of them."""
    count = seen.get("historyLineCount") or 0
    if count > one.sheet.rows:
        return [f"{TOO_MANY} of history: {count}, {one.sheet.rows} were sent"]
    if count != one.sheet.rows:
        return [f"there are {count} lines of history, {one.sheet.rows} were sent"]
    got = seen.get("history") or []
    if one.lines is None or len(got) < len(one.lines):
        return []
    difference = lines_differ(one.lines, got, one.proven)
    return [difference] if difference else []


def events(one: Written, seen: Row) -> list[str]:
    """What differs of the system metrics. Their values are compared where the server gives all of them."""
    count = seen.get("eventsLineCount")
    if count is not None and count != one.sheet.event_rows:
        return [f"there are {count} lines of system metrics, {one.sheet.event_rows} were sent"]
    got = seen.get("events") or []
    if one.events is None or len(got) != len(one.events):
        return []
    difference = lines_differ(one.events, got, 0)
    return [f"system metrics: {difference}"] if difference else []


def lines_differ(sent: Sequence[bytes], got: Sequence[Any], first: int) -> str:
    """What differs first; "" for nothing."""
    if len(sent) != len(got):
        return f"of the rows from {first} on there are {len(got)}, {len(sent)} were sent"
    for n, (line, there) in enumerate(zip(sent, got, strict=True)):
        if isinstance(there, str) and line == there.encode():
            continue
        row = there if isinstance(there, Mapping) else parsed(there)
        keys = differing(flat(json.loads(line)), flat(row))
        if keys:
            return f"row {first + n}: {keys[0]!r} is not as it was sent"
    return ""


def differing(sent: Row, got: Row) -> list[str]:
    """The keys whose values differ; null and nothing are one."""
    found = [key for key, value in sent.items() if not same(value, got.get(key))]
    return found + [key for key, value in got.items() if key not in sent and value is not None and key != "_wandb"]


def flat(row: Row, prefix: str = "") -> dict[str, Any]:
    """The row with nested keys joined."""
    if not any(isinstance(value, dict) for value in row.values()) and not prefix:
        return dict(row)
    joined: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, dict) and value and "_type" not in value:
            joined |= flat(value, f"{prefix}{key}.")
        else:
            joined[prefix + key] = value
    return joined


def same(sent: object, got: object) -> bool:  # noqa: PLR0911  a case for each kind
    """Whether two JSON values are one, bit for bit. The API tells NaN and the infinities in words."""
    if isinstance(sent, bool) or isinstance(got, bool) or sent is None or got is None:
        return sent is got
    if isinstance(sent, float | int):
        return _same_number(sent, got)
    if isinstance(sent, str):
        if isinstance(got, float) and sent in _WORDS:
            return _bits(_WORDS[sent]) == _bits(got)
        return sent == got
    if isinstance(sent, Mapping):
        return isinstance(got, Mapping) and not differing(sent, got)
    if isinstance(sent, Sequence):
        return (
            isinstance(got, Sequence)
            and not isinstance(got, str)
            and len(sent) == len(got)
            and all(map(same, sent, got))
        )
    return sent == got


def _same_number(sent: float, got: object) -> bool:
    if isinstance(got, str):
        return got in _WORDS and isinstance(sent, float) and _bits(_WORDS[got]) == _bits(sent)
    if isinstance(sent, int) and isinstance(got, int):
        return sent == got
    if not isinstance(got, float | int):
        return False
    if isinstance(sent, float) and isinstance(got, float):
        return _bits(sent) == _bits(got)
    return sent == got and (sent != 0 or math.copysign(1, sent) == math.copysign(1, got))  # 3 and 3.0


def _bits(value: float) -> bytes:
    return b"nan" if math.isnan(value) else struct.pack("<d", value)


def parsed(text: object) -> dict[str, Any]:
    """JSON as the API gives it: text, or already a value."""
    if isinstance(text, str):
        try:
            text = json.loads(text, strict=False)
        except ValueError as error:
            raise Damaged("W&B gave JSON that cannot be read.") from error
    return dict(text) if isinstance(text, Mapping) else {}


def _asked(one: Written) -> dict[str, Any]:
    rows = len(one.lines) if one.lines is not None else 0
    names = list(one.files)[:FILES_PER_LOOK] or ["-"]
    return {
        "r": one.where.id,
        "a": one.steps[0],
        "b": one.steps[1] + 1 if rows else one.steps[0],
        "s": rows + 10 if rows else 1,
        "e": len(one.events) + 10 if one.events is not None else 1,
        "f": names,
        "l": len(names),
    }


def _final(differences: Sequence[str]) -> bool:
    """Waiting mends nothing: more is there than was sent, or the server refuses to tell."""
    return any(one.startswith((TOO_MANY, UNTOLD)) for one in differences)


def _seen(files: Row | None, where: Where) -> list[dict[str, Any]]:
    """Files that the server tells. Raises Untold where it keeps some to itself."""
    found = nodes(held(files, f"the files of the run {where.shown}"))
    if n := hidden(files):
        raise Untold(f"W&B tells null for {n} of the files of the run {where.shown}.")
    return found


def _sent(one: Written) -> dict[str, object]:
    """Whether anything was sent of what a look asks for."""
    run = one.sheet.run
    plain = {"state": run.state, "tags": run.tags, "config": one.config, "summaryMetrics": run.summary}
    lines = {"historyLineCount": one.sheet.rows, "history": one.lines, "events": one.events}
    return {**plain, "displayName": run.name, "jobType": run.job_type, **lines, "files": one.files}


def _error(one: Written, differences: Sequence[str]) -> MigrateError:
    """Untold where there is no difference, but nothing to compare with."""
    more = f", and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
    shown = "; ".join(differences[:SHOWN]) + more
    if differences[0].startswith((UNTOLD, NULL)):
        return Untold(
            f"The run {one.where.shown} cannot be proven: {shown}.",
            "It has no stamp, so the same command again goes on with it",
        )
    return Damaged(
        f"The run {one.where.shown} is not as it was sent: {shown}.",
        "It has no stamp, so the same command again goes on with it",
    )
