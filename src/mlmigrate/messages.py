"""What `--json` prints: one object a line, told apart by `message_type`. New fields and types may come, none goes away.

docs/scripting.md shows one of each; a test holds it to these.
"""

from __future__ import annotations

from typing import Any

import msgspec


class Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="message_type"):
    """One line."""


class Progress(Message, frozen=True, tag="progress"):
    """How far the command is; about once a second. The totals are estimates, 0 when nobody knows.

    `objects` are artifacts; `bytes_per_second` is measured over the last 20 seconds.
    """

    runs_done: int
    runs: int
    points_done: int
    points: int
    bytes_done: int
    bytes: int
    objects_done: int
    objects: int
    bytes_per_second: int
    failed: int
    seconds_left: int | None


class Run(Message, frozen=True, tag="run"):
    """A run was dealt with. `state` is copied, already, failed, equal or differs."""

    experiment: str
    id: str
    name: str
    state: str
    target_id: str
    losses: int


class Failure(Message, frozen=True, tag="failure"):
    """A run did not arrive. `error` is the kind of the error."""

    experiment: str
    id: str
    name: str
    error: str
    message: str


class Loss(Message, frozen=True, tag="loss"):
    """Something does not arrive as it was. `id` is the run's in the source."""

    experiment: str
    id: str
    what: str
    because: str


class Oddity(Message, frozen=True, tag="oddity"):
    """Something is strange about the source as a whole."""

    what: str
    because: str


class Finding(Message, frozen=True, tag="finding"):
    """A difference that verify or archive check found. `mark` is +, -, * or !."""

    mark: str
    experiment: str
    id: str
    what: str
    source: int | str
    target: int | str


class Summary(Message, frozen=True, tag="summary"):
    """The end of export, import and copy. `ok` says whether all of it is there; `records` counts by kind."""

    ok: bool
    stopped: bool
    runs: int
    copied: int
    already: int
    failed: int
    losses: int
    points: int
    artifacts: int
    bytes: int
    seconds: float
    records: dict[str, int]


class Verified(Message, frozen=True, tag="verified"):
    """The end of verify. `ok` says whether both places are equal."""

    ok: bool
    runs: int
    equal: int
    differs: int
    missing: int
    extra: int
    unreadable: int
    points: int
    artifacts: int
    bytes: int
    losses: int
    records: dict[str, int]


class PlannedExperiment(Message, frozen=True, tag="planned_experiment"):
    """One experiment of a plan."""

    experiment: str
    runs: int
    points: int
    artifacts: int
    bytes: int


class Rule(Message, frozen=True, tag="rule"):
    """A rule of a mapping, and how many names it met."""

    rule: str
    names: int


class PlannedCost(Message, frozen=True, tag="planned_cost"):
    """What a plan asks of an object store, or of a server for files. `side` is source or target, `way` store or server.

    `put_requests` are PUT, COPY, POST and LIST, `get_requests` GET and HEAD.
    """

    side: str
    way: str
    place: str
    put_requests: int
    get_requests: int
    bytes_up: int
    bytes_down: int
    bytes_inside: int


class Planned(Message, frozen=True, tag="planned"):
    """The end of plan. `artifacts_left` are left behind by --max-artifact-size, --include and --exclude."""

    source: str
    target: str
    runs: int
    already: int
    points: int
    artifacts: int
    bytes: int
    losses: int
    records: dict[str, int]
    artifacts_left: int
    bytes_left: int


class ListedExperiment(Message, frozen=True, tag="experiment"):
    """One experiment of a place."""

    id: str
    name: str
    runs: int
    deleted_runs: int
    deleted: bool


class ListedRun(Message, frozen=True, tag="listed_run"):
    """One run of a place. `start` in ms since the epoch."""

    experiment: str
    id: str
    name: str
    status: str
    start: int | None
    deleted: bool


class Status(Message, frozen=True, tag="status"):
    """How far the copy of a ledger is. Times in seconds since the epoch; `pid` is 0 when nothing runs."""

    source: str
    target: str
    started: float
    ended: float | None
    pid: int
    runs: int
    copied: int
    already: int
    failed: int
    losses: int
    points: int
    artifacts: int
    bytes: int


class Id(Message, frozen=True, tag="id"):
    """Where a run arrived."""

    origin: str
    target_id: str


class Adapter(Message, frozen=True, tag="adapter"):
    """What an adapter can do."""

    name: str
    reads: bool
    writes: bool
    about: str


class Archived(Message, frozen=True, tag="archived"):
    """A run of an archive (then `path` is empty), or a file of one."""

    experiment: str
    id: str
    name: str
    path: str
    points: int
    bytes: int


class Removed(Message, frozen=True, tag="removed"):
    """What archive prune dropped, or would drop."""

    path: str
    dry_run: bool


class Relocated(Message, frozen=True, tag="relocated"):
    """The end of relocate. `ok` says whether all of it is well; `bytes_sent` passed through this process.

    `pass_seconds` are of each pass of copying; `switch_seconds` is how long writers waited.
    """

    ok: bool
    store: str
    target: str
    files: int
    bytes: int
    to_copy: int
    bytes_to_copy: int
    copied: int
    bytes_copied: int
    bytes_sent: int
    uris: int
    uris_to_change: int
    pass_seconds: list[float]
    switch_seconds: float
    swept: int
    checked: int
    findings: int
    failed: int
    held: int
    deleted: int
    seconds: float
    message: str


class Step(Message, frozen=True, tag="step"):
    """One command of the demo and its last line."""

    command: str
    code: int
    last_line: str


class ExitError(Message, frozen=True, tag="exit_error"):
    """The command failed: the last line on stderr."""

    code: int
    message: str
    hint: str


ALL: tuple[type[Message], ...] = tuple(Message.__subclasses__())


def line(message: Message) -> str:
    """The message as one line of JSON: always valid UTF-8, lone surrogates written as escapes; NaN is null."""
    try:
        return msgspec.json.encode(message).decode()
    except UnicodeEncodeError:
        return msgspec.json.encode(_clean(msgspec.to_builtins(message))).decode()


def _clean(value: Any) -> Any:  # noqa: ANN401  whatever JSON holds
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_clean(key): _clean(one) for key, one in value.items()}
    return [_clean(one) for one in value] if isinstance(value, list) else value
