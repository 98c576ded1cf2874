"""What is in an archive, from its commits: which run lies in which pack.

The newest checkpoint that can be read, and every commit that it does not hold.  The commits are the
truth: a checkpoint is a copy of some of them, so a lost, torn or outdated one costs time and nothing
else.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

from mlmigrate.archive import layout
from mlmigrate.archive.commits import Commit, Entry, decode, encode, pack_lines, unpack_lines
from mlmigrate.errors import Damaged, NotFound
from mlmigrate.storage import Storage

CHUNK = 1 << 20
LOOSE = 32  # so many commits may lie beside the checkpoint ...
SHARE = 8  # ... or one for each so many in it, while packs are still being written
OLD_CHECKPOINTS = 1  # kept for those who are about to read them


@dataclass(frozen=True)
class Index:
    """The commits of an archive, in their order. `loose` are not in the checkpoint; `bad` could not be read."""

    commits: tuple[Commit, ...]
    loose: int = 0
    bad: tuple[Damaged, ...] = ()

    @cached_property
    def live(self) -> Mapping[str, tuple[Commit, Entry]]:
        """Each run by its key, where it was written last."""
        found: dict[str, tuple[Commit, Entry]] = {}
        for commit in self.commits:
            for entry in commit.runs:
                found.pop(entry.key, None)
                found[entry.key] = (commit, entry)
        return found

    @cached_property
    def experiments(self) -> Mapping[str, tuple[str, Commit]]:
        """The fingerprint of each experiment by id, and its last pack; in the order of their first commits."""
        return {id_: (print_, commit) for commit in self.commits for id_, print_ in commit.experiments.items()}

    @property
    def sequence(self) -> int:
        """The greatest one of all commits."""
        return self.commits[-1].sequence if self.commits else 0

    def living(self) -> set[str]:
        """The packs that still have a say."""
        of_runs = {commit.pack for commit, _ in self.live.values()}
        return of_runs | {commit.pack for _, commit in self.experiments.values()}


@dataclass
class Clock:
    """Gives sequences: microseconds since the epoch, each more than any before and than `seen`."""

    seen: int = 0

    def next(self) -> int:
        """The next sequence."""
        self.seen = max(self.seen + 1, time.time_ns() // 1000)
        return self.seen


def load(storage: Storage) -> Index:
    """Reads the commits of an archive."""
    folded = {commit.pack: commit for commit in _newest_checkpoint(storage)}
    loose: list[Commit] = []
    bad: list[Damaged] = []
    for one in read_commits(storage, [n for n in commit_names(storage) if layout.pack_of_commit(n) not in folded]):
        (bad if isinstance(one, Damaged) else loose).append(one)  # type: ignore[arg-type]
    return Index(tuple(sorted([*folded.values(), *loose], key=lambda one: one.order)), len(loose), tuple(bad))


def read_commits(storage: Storage, names: Sequence[str]) -> Iterator[Commit | Damaged]:
    """The commits, or what is wrong with them; many at once where each is a request."""
    if storage.many == 1 or len(names) < 2:  # noqa: PLR2004
        for name in names:
            yield from read_commit(storage, name)
        return
    with ThreadPoolExecutor(storage.many, thread_name_prefix="commit") as pool:
        for found in pool.map(lambda name: list(read_commit(storage, name)), names):
            yield from found


def read_commit(storage: Storage, name: str) -> Iterator[Commit | Damaged]:
    """The commit, or what is wrong with it; nothing when it went away meanwhile."""
    try:
        yield decode(read_all(storage, name, layout.MOST_COMMIT), name)
    except Damaged as error:
        yield error
    except NotFound:
        return


def commit_names(storage: Storage) -> list[str]:
    """The files of all commits."""
    there = storage.entries(layout.PACKS) if storage.many == 1 else storage.walk(layout.PACKS)
    return sorted(entry.name for entry in there if not entry.folder and layout.pack_of_commit(entry.name))


def checkpoint_names(storage: Storage) -> list[str]:
    """The checkpoints, the newest first."""
    names = [entry.name for entry in storage.entries(layout.CHECKPOINTS) if not entry.folder]
    return sorted((name for name in names if layout.sha256_of_checkpoint(name)), reverse=True)


def read_checkpoint(storage: Storage, name: str) -> list[Commit]:
    """The commits in a checkpoint. Raises Damaged, and NotFound when it went away meanwhile."""
    data = read_all(storage, name, layout.MOST_CHECKPOINT)
    if layout.sha256_of(data) != layout.sha256_of_checkpoint(name):
        raise layout.damaged(name, "it is not as it was written (sha256 differs)")
    return [decode(line, name) for line in unpack_lines(data, name)]


def read_all(storage: Storage, name: str, most: int) -> bytes:
    """The bytes of a file. Raises NotFound, and Damaged when there are more than `most`."""
    chunks, size = [], 0
    with storage.open(name) as file:
        while size <= most and (chunk := file.read(CHUNK)):  # asked for at once, `most` bytes would be reserved
            chunks.append(chunk)
            size += len(chunk)
    if size > most:
        raise layout.damaged(name, f"it is larger than {most} bytes")
    return b"".join(chunks)


def fold(storage: Storage, commits: Sequence[Commit]) -> None:
    """Writes a checkpoint of these commits, and takes the older ones away."""
    if not commits:
        return
    data = pack_lines(encode(commit) for commit in commits)
    name = layout.checkpoint_name(max(commit.sequence for commit in commits), data)
    storage.create(name, data)
    keep_newest(storage, OLD_CHECKPOINTS + 1)


def keep_newest(storage: Storage, number: int) -> None:
    """Takes all but the newest checkpoints away."""
    storage.delete_files(checkpoint_names(storage)[number:])


def _newest_checkpoint(storage: Storage) -> Iterable[Commit]:
    for name in checkpoint_names(storage):
        try:
            return read_checkpoint(storage, name)
        except (Damaged, NotFound):  # the commits that it held are still there, and are read one by one
            continue
    return ()
