"""`mlmigrate relocate`: plan, copy until nothing is left, switch, sweep, check; and the way back.

Each step can be broken off anywhere: the same command finds out from the store, the target and its ledger
how far it came, and goes on.
"""

from __future__ import annotations

import json
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from mlmigrate.adapters import registry
from mlmigrate.adapters.base import Context, Settings
from mlmigrate.adapters.estate import Downloads, Estate
from mlmigrate.address import Address, hide_secrets
from mlmigrate.errors import Conflict, DiskFull, MigrateError, NotFound, UsageError
from mlmigrate.events import Progress
from mlmigrate.model import Finding
from mlmigrate.relocate import check, places
from mlmigrate.relocate.check import Checked, Checker
from mlmigrate.relocate.copying import Copier, Pass
from mlmigrate.relocate.deleting import Deleter
from mlmigrate.relocate.ledger import Ledger, Owner, default_file
from mlmigrate.relocate.returning import Returner
from mlmigrate.relocate.sources import Found, Sources
from mlmigrate.relocate.survey import Survey
from mlmigrate.relocate.switch import Switch, Switched, Undone
from mlmigrate.steps import Steps
from mlmigrate.storage.moving import Mover
from mlmigrate.storage.objects import Objects, open_objects

SAMPLE = 100
PASSES = 8  # copies before the switch, at most: training may never pause
FEW = 20  # files; so little is left to the last look and to the sweep
LAST_LOOK = 1.0  # seconds that writers wait for a last look
SMALL = 16 << 20  # bytes of a file that is copied while they wait


@dataclass(frozen=True, slots=True)
class Wish:
    """What a person asked for.

    to        the new place          from_   where a server keeps what lies behind mlflow-artifacts:
    check     so many files at random; 0: all; None: the command's own
    server    a server over this store, to download through
    """

    store: Address
    to: str
    from_: str = ""
    dry_run: bool = False
    copy_only: bool = False
    check: int | None = None
    sweep: bool = False
    undo: bool = False
    delete_source: bool = False
    server: str = ""
    seed: int | None = None
    ledger: Path | None = None
    tries: int = 3
    threads: int = 32
    settings: Settings = field(default_factory=Settings)

    @property
    def all_of_it(self) -> bool:
        """Whether nothing less was asked for than the whole way."""
        return not (self.copy_only or self.check is not None or self.sweep or self.undo or self.delete_source)


@dataclass
class Done:
    """What a command did and found. What it did not do is None."""

    store: str
    to: str
    uri: str = ""  # the new place as MLflow writes it
    values: int = 0
    there: int = 0
    proxied: int = 0
    proxy_at: str = ""
    look: Pass = field(default_factory=Pass)
    listed: int = 0
    lists: int = 0
    copied: Pass | None = None
    passes: list[float] = field(default_factory=list)  # seconds of each, the looking included
    switched: Switched | None = None
    ready: bool = True
    swept: Pass | None = None
    checked: Checked | None = None
    seed: int = 0
    by_client: bool = True
    undone: Undone | None = None
    returned: Pass | None = None
    deleted: tuple[int, int] | None = None
    left: list[str] = field(default_factory=list)
    held: list[Owner] = field(default_factory=list)
    alone: list[tuple[str, str, str, str, str]] = field(default_factory=list)
    failures: list[tuple[str, str, str, str]] = field(default_factory=list)
    active: list[str] = field(default_factory=list)
    ledger: str = ""
    server_side: bool = False
    source_remote: bool = False
    target_local: bool = False
    seconds: float = 0.0
    unknown: bool = False  # the store names the new place, but who moved it there is not known


def relocate(wish: Wish, progress: Progress) -> Done:
    """Does what was asked for. Raises what ends it; the same command then goes on."""
    begun = time.monotonic()
    with opened(wish, progress) as work:
        work.begin()
        try:
            work.do()
        except BaseException:
            work.steps.stop.set()
            raise
        work.end()
        work.done.seconds = time.monotonic() - begun
        return work.done


@contextmanager
def opened(wish: Wish, progress: Progress) -> Iterator[Relocation]:
    """The store, the target and the ledger, opened for one command."""
    steps = Steps(wish.tries, progress.waiting)
    source = Context("source", steps, wish.settings)
    target = open_objects(wish.to, Context("target", steps, wish.settings).env, source.throttle)
    must_be_plain(target.url)
    with closing(registry.open_estate(wish.store, source)) as estate:
        file = wish.ledger or default_file(estate.identity, target.url)
        book = (
            Ledger.of_nobody(file)
            if wish.dry_run
            else Ledger.open(file, hide_secrets(estate.identity), hide_secrets(target.url))
        )
        with closing(book):
            sources = Sources(book, source.env, source.throttle)
            yield Relocation(wish, estate, target, book, sources, progress, steps)


def must_be_plain(url: str) -> None:
    """Raises UsageError for a place that MLflow could not name."""
    place = places.old_place(url)
    if not place or not places.nameable(url) or places.proxied(place):
        raise UsageError(f"{hide_secrets(url)} is no place that MLflow can name.", "Use letters, digits, - _ . and /.")


class Relocation:
    """One command at work."""

    def __init__(
        self,
        wish: Wish,
        estate: Estate,
        target: Objects,
        book: Ledger,
        sources: Sources,
        progress: Progress,
        steps: Steps,
    ) -> None:
        self.wish, self.estate, self.target, self.book = wish, estate, target, book
        self.sources, self.progress, self.steps = sources, progress, steps
        self.copier = Copier(book, sources, target, self._mover(target), wish.settings.part_size)
        self.survey = Survey(book, target.url, estate.folder, self._proxy_at(), wish.settings.allow_artifacts)
        self.switch = Switch(estate, book, self.survey)
        self.looked = 0.0  # seconds that the first look at the files took
        self.done = Done(estate.shown, target.shown, hide_secrets(target.url), target_local=target.local is not None)

    def _mover(self, target: Objects) -> Mover:
        return Mover(
            target,
            threads=self.wish.threads,
            part_size=self.wish.settings.part_size,
            again=self.steps,
            told=lambda size, files: self.progress.advance(artifacts=files, size=size),
            check=self.steps.check,
        )

    def _proxy_at(self) -> str:
        """Where a server keeps what lies behind its proxy."""
        if self.wish.from_:
            place = self.wish.from_
            return place.rstrip("/") if "://" in place else str(Path(place).expanduser().absolute())
        told = self.book.get("proxy")
        folders = [Path(one) for one in self.wish.settings.artifacts_at]
        file = self.wish.store.place.partition("sqlite:///")[2].partition("?")[0]
        folders += [Path(file).absolute().parent / "mlartifacts"] if file else []
        return told or next((str(one.absolute()) for one in folders if one.is_dir()), "")

    def begin(self) -> None:
        """What a command that was broken off left is set right; what was held back may be tried again."""
        self.switch.recover()
        self.book.do("update owner set state = 'todo', why = '' where state = 'held'")
        self.book.do("delete from failure")
        self.look()

    def look(self) -> None:
        """At the store, as it is now."""
        self.survey.look(self.estate.cells())
        self.done.proxied = self.survey.proxied
        self.done.proxy_at = self.survey.proxy_at
        known = self.book.switches("committed is not null and undone is null")
        self.done.unknown = not known and not self.book.get("proxy")

    def do(self) -> None:
        """The steps that were asked for, in their order."""
        wish = self.wish
        if not (wish.dry_run or wish.copy_only or wish.all_of_it):
            self._must_be_known()
        if wish.undo:
            self.undo()
            return
        if wish.dry_run or wish.copy_only or wish.all_of_it:
            self.plan()
        if not wish.dry_run:
            self._work()

    def _work(self) -> None:
        wish = self.wish
        if wish.copy_only or wish.all_of_it:
            self.copy()
        if wish.all_of_it and self.done.ready:
            self.change()
        if wish.sweep or (wish.all_of_it and self.done.ready):
            self.sweep()
            self._stragglers()
        if wish.check is not None or (wish.all_of_it and self.done.ready) or wish.delete_source:
            self.check()
        if wish.all_of_it and self.done.ready:
            self.sweep()  # what was written while we checked
            self._stragglers()
        if wish.delete_source:
            self.delete_source()

    def plan(self) -> None:
        """What there is to do. Raises what would make it fail."""
        if self.target.local is None or self.target.local.exists():
            self.target.check(write=not self.wish.dry_run)
        self.done.values = self.survey.to_change()
        self.progress.note(f"Looking at {self.estate.shown} ...")
        begun = time.monotonic()
        self.copier.look_at_target()
        self.done.look = self.copier.gather(self.sources.files())
        self.looked = time.monotonic() - begun
        self.done.listed, self.done.lists = self.copier.there, self.sources.lists
        self.done.there = self.survey.done
        self.done.server_side, self.done.source_remote = self._from_a_store()
        self._room(self.done.look.todo_size)

    def _from_a_store(self) -> tuple[bool, bool]:
        """Whether the files lie in the target's own store, and whether they lie in any."""
        row = self.book.one("select place from todo limit 1")
        owner = next(self.book.owners("place = ?", row[0]), None) if row else None
        if owner is None:
            return False, False
        place = self.sources.place(owner.at)
        return place.store == self.target.store, place.local is None

    def _room(self, size: int) -> None:
        """Raises DiskFull when a folder has no room for so much."""
        if self.target.local is None:
            return
        folder = next(one for one in (self.target.local, *self.target.local.parents) if one.is_dir())
        free = shutil.disk_usage(folder).free
        if free < size:
            raise DiskFull(
                f"{self.target.shown} has {free:,} bytes free, and {size:,} are to be copied.",
                "Free some, or choose another.",
            )

    def copy(self) -> None:
        """Pass after pass, until one finds nearly nothing new."""
        total = Pass()
        self.since = time.time()
        begun = time.monotonic() - self.looked
        look = self.done.look
        self.copier.listed = False  # from here on the ledger knows better
        for number in range(PASSES):
            if number:
                self.since, begun = time.time(), time.monotonic()
                self.look()
                look = self.copier.gather(self.sources.files())
            self.progress.begin("copy", runs=0, points=0, size=look.todo_size, artifacts=look.todo)
            try:
                total.add(self.copier.move(look))
            finally:
                self.progress.end()
            self.done.passes.append(time.monotonic() - begun)
            if look.todo <= FEW or look.failed:
                break
        self.done.copied = total
        self.book.set(proxy=self.survey.proxy_at if self.done.proxied else "")
        self.done.ready = not total.failed

    def change(self) -> None:
        """The switch, when there is anything to switch."""
        if not any(True for _ in self.survey.edits()):
            return  # what lies behind a proxy keeps its addresses
        self.progress.note("Switching: writers wait ...")
        self.done.switched = self.switch.make(self.since, self._last_look)
        if self.done.switched.not_made:
            self.look()

    def _stragglers(self) -> None:
        """Runs that a server made of what it had read before the switch: they came after it with the old place.

        A server reads the experiment's place, and waits for us to write the run.
        """
        self.look()
        if self.done.unknown or not self.survey.to_change():
            return
        self.since = time.time()
        if self.copier.move(self.copier.gather(self.sources.files())).failed:
            return  # they stay where they are until the next command
        first = self.done.switched
        self.change()
        if first is not None and self.done.switched is not None:
            self.done.switched = first.and_then(self.done.switched)
        self.sweep()

    def _last_look(self, owners: Iterable[Owner]) -> None:
        """What these wrote since the last pass, as far as it goes quickly: writers wait."""
        until = time.monotonic() + LAST_LOOK

        def quick() -> Iterator[Found]:
            for one in self.sources.files(only=owners):
                if time.monotonic() > until:
                    return
                if one.stored.size <= SMALL:
                    yield one

        done = self.copier.move(self.copier.gather(quick()))
        if self.done.copied is not None:
            self.done.copied.copied += done.copied
            self.done.copied.copied_size += done.copied_size

    def sweep(self) -> None:
        """What was written at the old places since it was copied is brought over."""
        look = self.copier.gather(self.sources.files("switched"), after_switch=True)
        self.progress.begin("sweep", runs=0, points=0, size=look.todo_size, artifacts=look.todo)
        before = self.done.swept
        try:
            self.done.swept = self.copier.move(look)
        finally:
            self.progress.end()
        if before is not None:
            self.done.swept.with_wrote(before)
        if look.copied:
            self.book.set(checked="")

    def check(self) -> None:
        """Values, a sample of files or all, and what a sweep would find."""
        wish, done = self.wish, self.done
        self.look()
        number = SAMPLE if wish.check is None else wish.check
        done.seed = check.a_seed() if wish.seed is None else wish.seed
        client = self._client()
        done.by_client = client is not None
        try:
            done.checked = self._files_checked(client, number)
        finally:
            if client is not None:
                client.close()
        done.checked.values, findings = check.values(self.book)
        done.checked.findings += findings
        if not wish.all_of_it:
            done.checked.findings += [*self._unswept(), *self._unswitched()]
        passed = {"at": time.time(), "files": done.checked.files, "of": done.checked.of}
        self.book.set(checked="" if done.checked.findings else json.dumps(passed))

    def _files_checked(self, client: Downloads | None, number: int) -> Checked:
        def told(size: int, files: int) -> None:
            self.progress.advance(artifacts=files, size=size)

        checker = Checker(self.book, self.sources, self.target, client, bool(self.wish.server), told)
        total = self.book.count("select count(*) from file where gone = 0")
        self.progress.begin("check", runs=0, points=0, size=0, artifacts=min(number or total, total))
        try:
            return checker.files(number, self.done.seed)
        finally:
            self.progress.end()

    def _client(self) -> Downloads | None:
        """MLflow's own client; None where it is not installed."""
        env = Context("target", self.steps, self.wish.settings).env
        try:
            return registry.open_downloads(self.wish.store.kind, env, self.wish.server)
        except UsageError:
            if self.wish.server or self.wish.delete_source:
                raise
            return None

    def _unswept(self) -> list[Finding]:
        """What lies at the old places and was not brought over."""
        look = self.copier.gather(self.sources.files("switched"), after_switch=True)
        rows = self.book.rows("select at, place from todo order by at limit 1000")
        found = []
        for at, place in rows:
            owner = next(self.book.owners("place = ?", place))
            found.append(Finding("+", owner.experiment, owner.owner, f"artifact {at}", "not swept yet", ""))
        for owner, at, why in look.conflicts:
            found.append(Finding("*", owner.experiment, owner.owner, f"artifact {at}", "", why))
        return found

    def _must_be_known(self) -> None:
        """Raises NotFound when nothing was ever moved, as far as the ledger knows."""
        if not self.done.unknown:
            return
        raise NotFound(
            f"No switch of {self.estate.shown} to {self.target.shown} is in the ledger {self.book.file}.",
            "Name the ledger of that move with --ledger, or make it: mlmigrate relocate STORE --to PLACE",
        )

    def _must_be_restarted(self) -> None:
        """Raises Conflict unless the server gives a file that only the new place has."""
        key, client = f"mlmigrate-{secrets.token_hex(8)}.txt", self._client() if self.wish.server else None
        if client is None:
            raise Conflict(
                "Nothing was deleted: whether the server was restarted is not known.",
                "Give --server URL: it is asked for a file that only the new place has.",
            )
        self.target.put(key, key.encode())
        try:
            with tempfile.TemporaryDirectory(prefix="mlmigrate-") as folder:
                client.of_uri(f"mlflow-artifacts:/{key}", Path(folder))
        except MigrateError as error:
            raise Conflict(
                f"Nothing was deleted: the server does not give what lies at {self.target.shown}.",
                f"Restart it with --artifacts-destination {self.target.shown}",
            ) from error
        finally:
            client.close()
            self.target.delete([key])

    def _unswitched(self) -> list[Finding]:
        """Values that name an old place and would be switched: made since, by a server that was not restarted."""
        some = islice(self.survey.edits(), 1000)
        return [
            Finding("*", cell.experiment, cell.owner, f"{edit.table}.{edit.column}", edit.new, edit.old)
            for edit, cell in some
        ]

    def undo(self) -> None:
        """The way back."""
        if self.book.get("deleted"):
            raise Conflict(
                f"{self.target.shown} holds what there is: the old files were deleted.",
                "To bring the bytes back: mlmigrate relocate STORE --to the old place",
            )
        back = Returner(self.book, self.sources, self.target, self._mover)
        self.done.returned = back.run()
        if self.done.returned.failed:
            self.done.ready = False
            return
        self.done.undone = self.switch.undo()

    def delete_source(self) -> None:
        """Takes away what was copied and checked, and nothing else."""
        self._may_delete()
        self.done.deleted, self.done.left = Deleter(self.book, self.sources, self.target).run()

    def _may_delete(self) -> None:
        """Raises Conflict unless a check has passed and nobody goes on writing there."""
        if not self.book.get("checked"):
            raise Conflict(
                "Nothing was deleted: the check found differences.", "See them above, and: --sweep --check=all"
            )
        if self.done.proxied:
            self._must_be_restarted()
        active = set(json.loads(self.book.get("active") or "[]"))
        running = [cell.owner for cell, _ in self.book.cells("active and kind = 'run'") if cell.owner in active]
        if running:
            raise Conflict(
                f"Nothing was deleted: {len(running):,} runs that were active at the switch still are, "
                f"for example {running[0]}.",
                "They may go on writing to the old place. When they have ended: --sweep, then --delete-source",
            )

    def end(self) -> None:
        """What is to be told beside."""
        done = self.done
        done.ledger = str(self.book.file or "")
        done.held = list(self.book.owners("state = 'held'"))
        done.alone = [
            (str(a), str(b), str(c), str(d), str(e)) for a, b, c, d, e in self.book.rows("select * from alone")
        ]
        done.failures = [
            (str(owner), str(at), str(error), str(message))
            for at, owner, error, message in self.book.rows("select at, owner, error, message from failure order by at")
        ]
        active = set(json.loads(self.book.get("active") or "[]"))
        done.active = [cell.owner for cell, _ in self.book.cells("active and kind = 'run'") if cell.owner in active]
