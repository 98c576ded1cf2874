"""What a copy asks of object stores and servers: requests and bytes, so that a person can multiply by a price.

Estimated by these rules from what a plan reads; a store bills a few requests more or less.

    a file is written    1 PUT; over 16 MiB: 1 for each part (of 16 MiB, or --part-size), 2 around them, and 1 HEAD
    a file is read       1 GET; over 16 MiB: 1 a part
    a file is copied     1 COPY inside the store; over 16 MiB 1 for each part, 2 around them, and 3 HEADs; no byte here
    files are listed     1 LIST for each run, model or trace that has files, and for each 1,000 files
    an archive           for each pack: TABLES PUTs (or GETs) and some POINT_BYTES bytes a point; a listing;
                         its files are written and read as above, and looked for by 1 HEAD if over 256 KiB
    a server             1 request for each file, 1 for each run, model or trace that has files; all bytes through it

Runs, params and points of databases and servers are not counted: nobody bills them by the request.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal, Self

from mlmigrate.adapters.base import Context, Side
from mlmigrate.address import Address, hide_secrets, in_store
from mlmigrate.model import Artifact, Spot
from mlmigrate.passing import HERE
from mlmigrate.storage.objects import PART, open_objects, part_size
from mlmigrate.survey import Job

TABLES = 6  # files of a pack in an archive
POINT_BYTES = 10  # of a point in an archive
PAGE = 1000  # files that one request lists
ASK_FIRST = 1 << 18  # bytes; an archive looks whether it has a larger file before it is sent
KEEP = "keep"
Way = Literal["store", "server"]
Number = Literal["puts", "gets", "up", "down", "inside"]


@dataclass(frozen=True, slots=True)
class Cost:
    """What one place is asked for. `puts`: PUT, COPY, POST and LIST requests, `gets`: GET and HEAD; bytes each way.

    way   "store", or "server": then `puts` are uploads and `gets` all other requests
    """

    side: Side
    way: Way
    place: str
    puts: int
    gets: int
    up: int
    down: int
    inside: int


@dataclass(frozen=True, slots=True)
class Ways:
    """How files leave a job's source and where they go. "" for places that nobody bills: this machine's."""

    source: str
    source_way: Way
    target: str
    target_way: Way
    target_store: str = ""  # what spots call the store that files go to, where it can copy
    archives: tuple[Side, ...] = ()
    asked: int = 0  # bytes of a part

    @classmethod
    def of(cls, job: Job) -> Ways:
        """Those of a job. Asks nobody."""
        files_to = job.target_settings.artifacts_to
        target = files_to if in_store(files_to) else job.target.text if job.target.far else ""
        sides: tuple[tuple[Side, Address], ...] = (("source", job.source), ("target", job.target))
        return cls(
            job.source.text if job.source.far else "",
            _way(job.source),
            "" if files_to == KEEP else target,
            "store" if in_store(files_to) else _way(job.target),
            _store(files_to, job) if in_store(files_to) else "",
            tuple(side for side, place in sides if place.kind == "archive" and place.far),
            job.target_settings.part_size,
        )


def _way(place: Address) -> Way:
    return "store" if place.kind == "archive" else "server"


def _store(place: str, job: Job) -> str:
    return open_objects(place, Context("target", settings=job.target_settings).env).store


@dataclass
class Costs:
    """Counts what a pack costs: its files, then `pack`; those of several packs are added up."""

    ways: Ways
    numbers: Counter[tuple[Side, Way, str, Number]] = field(default_factory=Counter)
    owners: Counter[tuple[Side, Way, str, str]] = field(default_factory=Counter)

    def __iadd__(self, other: Costs) -> Self:
        self.numbers += other.numbers
        return self

    def pack(self, points: int) -> None:
        """The end of a pack. It is written into an archive in a store, or read from one; other places are listed."""
        for (side, way, place, _), files in self.owners.items():
            self._add(side, way, place, "puts" if way == "store" else "gets", -(-files // PAGE))
        self.owners.clear()  # there may be many
        for side in self.ways.archives:
            place = self.ways.source if side == "source" else self.ways.target
            requests: Number = "gets" if side == "source" else "puts"
            self._add(side, "store", place, requests, TABLES)
            self._add(side, "store", place, "down" if side == "source" else "up", points * POINT_BYTES)

    def artifact(self, artifact: Artifact) -> None:
        """A file is carried."""
        size = artifact.size or 0
        spot = artifact.spot
        if spot is not None and self.ways.target_store and spot.store == self.ways.target_store:
            self._copied(artifact, self._place_of(spot), size)
            return
        if spot is not None and in_store(spot.url):
            self._read(artifact, "store", self._place_of(spot), size)
        elif self.ways.source and (spot is None or spot.store != HERE):
            self._read(artifact, self.ways.source_way, self.ways.source, size)
        if self.ways.target:
            self._written(artifact, size)

    def _place_of(self, spot: Spot) -> str:
        """The source's place, if it is an archive; the bucket, if the files of a tracker lie there."""
        return self.ways.source if "source" in self.ways.archives else _bucket(spot.url)

    def _read(self, artifact: Artifact, way: Way, place: str, size: int) -> None:
        self._add("source", way, place, "gets", _parts(size) if way == "store" else 1)
        self._add("source", way, place, "down", size)
        if "source" not in self.ways.archives:
            self.owners["source", way, place, artifact.owner] += 1

    def _written(self, artifact: Artifact, size: int) -> None:
        way, place = self.ways.target_way, self.ways.target
        if way == "store":
            parts = _parts(size, self.ways.asked)
            self._add("target", way, place, "puts", parts if parts == 1 else parts + 2)
            asked_for = "target" in self.ways.archives and size > ASK_FIRST
            self._add("target", way, place, "gets", int(parts > 1 or asked_for))
        else:
            self._add("target", way, place, "puts", 1)
        self._add("target", way, place, "up", size)
        if "target" not in self.ways.archives:
            self.owners["target", way, place, artifact.owner] += 1

    def _copied(self, artifact: Artifact, place: str, size: int) -> None:
        parts = _parts(size)
        self._add("target", "store", self.ways.target, "puts", parts + 2 * (parts > 1))
        self._add("target", "store", self.ways.target, "gets", 3 * (parts > 1))
        self._add("target", "store", self.ways.target, "inside", size)
        if "source" not in self.ways.archives:
            self.owners["source", "store", place, artifact.owner] += 1

    def _add(self, side: Side, way: Way, place: str, number: Number, count: int) -> None:
        self.numbers[side, way, place, number] += count

    def all(self) -> list[Cost]:
        """What each place is asked for."""
        numbers = self.numbers
        places = dict.fromkeys((side, way, place) for side, way, place, _ in numbers)
        return [
            Cost(
                side,
                way,
                hide_secrets(place),
                *(numbers[side, way, place, number] for number in ("puts", "gets", "up", "down", "inside")),
            )
            for side, way, place in places
        ]


def _parts(size: int, asked: int = 0) -> int:
    """Requests that a file is read or written in."""
    return 1 if size <= PART else -(-size // part_size(size, asked))


def _bucket(url: str) -> str:
    """The bucket that a URL names."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}"
