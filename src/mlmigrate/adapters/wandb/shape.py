"""What W&B holds of a run, in W&B's own words: what both of its sources give and both of its targets take.

A run's history travels as Blocks: columns of some rows.  Times are those of W&B: seconds for what is in
a row, milliseconds for what is told of a run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, Protocol

import pyarrow as pa

from mlmigrate.model import Loss

if TYPE_CHECKING:
    from mlmigrate.adapters.wandb.clients import Named

Opener = Callable[[], AbstractContextManager[BinaryIO]]


class Other(NamedTuple):
    """A value in a row that is no number: `text` is its JSON, as it was."""

    row: int
    key: str
    text: str


@dataclass(frozen=True, slots=True)
class Block:
    """Some rows of a history (or of system metrics), in the order of the log.

    Of each row, null where it has none:
      step     int64    `_step`
      time     float64  `_timestamp`, seconds since the epoch
      runtime  float64  `_runtime`, seconds since the start
    Of each number in them, one entry in three columns of one length, rows ascending:
      row      int32    which row of this block, from 0
      key      int32    which of `keys`; nested keys are joined by ".", keys that begin with "_" and are W&B's own are
                        not among them (_step, _timestamp, _runtime); a name stands there once, but for "", which
                        keys of the run's other stream may have here
      value    float64  NaN and the infinities kept
    `others`: what is no number, or an integer that float64 cannot hold, rows ascending.
    """

    step: pa.Array
    time: pa.Array
    runtime: pa.Array
    keys: Sequence[str]
    row: pa.Array
    key: pa.Array
    value: pa.Array
    others: Sequence[Other] = ()

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self.step)


@dataclass(frozen=True, slots=True)
class File:
    """A file of a run, or of an artifact. `path` is relative; `md5` in base64, as W&B has it; `size` in bytes.

    `ref` is the URI of an entry whose bytes W&B never had; then `digest` is whatever W&B keeps for it, `open` None.
    `open` is None also where the bytes are known to be gone (`gone` says why).
    """

    path: str
    open: Opener | None = field(compare=False, repr=False, default=None)
    size: int | None = None
    md5: str = ""
    ref: str = ""
    digest: str = ""
    gone: str = ""


@dataclass(frozen=True, slots=True)
class Version:
    """A version of an artifact. `name` is its collection's; `version` "v3", of one that is to be made the number that
    it had where it came from; `digest` that of its manifest.

    `project` and `entity` are where it lives; `run` is the id of the run that logged it ("" for none); `clients` the
    ids by which values name it, see clients.py.
    """

    name: str
    type: str
    version: str = ""
    entity: str = ""
    project: str = ""
    digest: str = ""
    description: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    ttl: int | None = None
    created: int | None = None
    run: str = ""
    state: str = "COMMITTED"
    clients: tuple[tuple[str, str], ...] = ()
    files: tuple[File, ...] = ()


@dataclass(frozen=True, slots=True)
class WandbRun:
    """All that W&B holds of a run beside rows and bytes. Times in ms since the epoch, `runtime` in seconds.

    name       the display name; `id` is what W&B's API calls name
    state      W&B's own word: finished, failed, crashed, killed, running, ...
    config     plain values (not {"value": ...}), without the key `_wandb`
    internal   the value of config's `_wandb`: metric definitions `m`, environment `e`, ...
    summary    plain values, with `_wandb`, `_step`, `_timestamp`, `_runtime` where there are such
    metrics    definitions, in the field names of MetricRecord: name or glob_name, step_metric, ...
    sweep      the sweep's id; `sweep_config` what it is told of it
    created    the server's own time of making the run; `started`, `ended` what the run says
    metadata   the run's wandb-metadata.json, or what stands for it
    files      of the run page; output.log among them
    logged     versions that this run made; `used` those it read (their files are not told)
    lines      how many lines of history the server says that there are
    alone      keys of numbers that only the summary has, where that is known: history was seen to its end
    """

    id: str
    entity: str = ""
    project: str = ""
    name: str = ""
    notes: str = ""
    tags: tuple[str, ...] = ()
    group: str = ""
    job_type: str = ""
    sweep: str = ""
    sweep_config: Mapping[str, Any] = field(default_factory=dict)
    state: str = "finished"
    exit_code: int | None = None
    user: str = ""
    host: str = ""
    program: str = ""
    args: tuple[str, ...] = ()
    git_remote: str = ""
    git_commit: str = ""
    created: int | None = None
    started: int | None = None
    ended: int | None = None
    runtime: float | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    internal: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    metrics: tuple[Mapping[str, Any], ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[File, ...] = ()
    logged: tuple[Version, ...] = ()
    used: tuple[Version, ...] = ()
    lines: int | None = None
    alone: tuple[str, ...] | None = None


class Opened(Protocol):
    """A run opened for reading: one look at it. Each stream may be taken once; `losses` is complete after them.

    `run` has everything told, files and artifacts too.
    """

    run: WandbRun
    losses: list[Loss]

    def history(self) -> Iterator[Block]:
        """All rows, unsampled, in the order of their steps."""

    def events(self) -> Iterator[Block]:
        """System metrics; their keys are without the leading "system."."""

    def called(self, named: Named) -> tuple[Version, ...]:
        """The logged versions, with the ids by which the values that were looked at name them."""


@dataclass(frozen=True, slots=True)
class Sheet:
    """A run to be written: `run.config` holds its provenance without the stamp, which is set when all is there.

    history  all rows from row `start` on, `_step` in each; may be taken again
    rows     how many; `events` and `event_rows` the same for system metrics (keys without "system.")
    stamp    what the provenance gets last
    origin   what names the run wherever it came from
    """

    run: WandbRun
    origin: str
    stamp: str
    rows: int
    history: Callable[[int], Iterator[Block]]
    event_rows: int
    events: Callable[[int], Iterator[Block]]


@dataclass(frozen=True, slots=True)
class Linked:
    """A version of a registered model: the artifact (its collection's name) that holds it, and the run it is of.

    `run` is "" for a logged model, whose artifact the run of its records has logged.
    """

    artifact: str
    run: str
    version: str
    aliases: tuple[str, ...] = ()
    description: str = ""


@dataclass(frozen=True, slots=True)
class Collection:
    """A registered model as W&B could have it: links to versions of artifacts, oldest first."""

    name: str
    description: str
    versions: tuple[Linked, ...]


class Delivery(Protocol):
    """What a target does with sheets; the rest of writing is the same for all.

    `needs_levels`: who reads an artifact must come in a later delivery than who logs it.
    """

    needs_levels: bool

    @property
    def losses(self) -> Sequence[Loss]:
        """What did not go as it was, of all sheets so far."""

    def deliver(self, sheets: Sequence[Sheet]) -> Mapping[str, str]:
        """Writes these runs, in parallel where that helps, proves that each is whole, and then sets its stamp.

        Gives origin -> the run's id there, which may have another generation than the sheet's. What is there
        already is gone on with, never doubled; raises the first error after all others have come to an end.
        """

    def link(self, collections: Sequence[Collection]) -> Sequence[Loss]:
        """Makes registered models of versions that are there, where it can; tells what could not be linked."""
