"""Files from place to place: many at once, each proven, and gone on with where it was broken off.

    for one in Mover(target).move(tasks):      one after another, in the order they end
        Moved    the target has the file, whole, and `digest` is what its bytes are
        Failed   it has not, and why; the others go on

small files      read, hashed and put whole, in many threads
large files      in parallel parts, streamed; parts of an upload that was broken off are not sent again
within a store   copied by the store itself, no byte passing through here

The caller's thread pulls tasks, tells progress and is given what ended; the threads only move.  What
concerns the target as a whole (no right to write, no space) ends the move: what is under way still is told.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import ParamSpec, TypeVar

from mlmigrate.adapters.base import Again, Once
from mlmigrate.errors import Refused, Stopped, Unavailable
from mlmigrate.storage.carry import Carry, Etags, Failed, Moved, ObjectBody, TargetLost, Task
from mlmigrate.storage.objects import PART, Objects

__all__ = ["Failed", "Moved", "Mover", "ObjectBody", "Task"]

LARGE_AT_ONCE = 4  # files, in 4 parts each
HELD = 48 << 20  # bytes of files of more than a MiB that are held at once
AWAY = 8  # files one after another that found nobody there: then nobody is
WAITING = 500  # large files that are pulled before their turn, so that the small ones behind them need not wait
LOT = 8  # small files that a thread is given at once, while all have something to do
LOT_SIZE = 1 << 18  # bytes of a lot
PATIENCE = 10.0  # seconds that a stop waits for what is under way: a store that hangs keeps nobody
LOOK = 0.2  # seconds between looks around while nothing ends
SMALL, LARGE = 0, 1

Ended = tuple[int, list[tuple[Moved | Failed, int]], BaseException | None]  # lane, what ended and its bytes, or why


P = ParamSpec("P")
T = TypeVar("T")


def _nothing(_bytes: int, _objects: int) -> None:
    """Tells nobody."""


def _never() -> None:
    """Stops nothing."""


class Mover:
    """Moves files into `target`.

    threads  small files that are moved at once
    told     is called with bytes and objects that arrived, in the caller's thread
    check    is called there too, several times a second, and raises Stopped to end the move
    """

    def __init__(
        self,
        target: Objects,
        *,
        threads: int = 32,
        part_size: int = 0,
        again: Again | None = None,
        told: Callable[[int, int], object] = _nothing,
        check: Callable[[], None] = _never,
    ) -> None:
        self.target = target
        self.threads, self.part_size = max(1, threads), part_size
        self.again = again or Once()
        self.told, self.check = told, check

    def move(self, tasks: Iterable[Task]) -> Iterator[Moved | Failed]:
        """Each task's end. Raises Refused, DiskFull or NotFound of the target, and Unavailable when all is away."""
        crew = _Crew(self)
        try:
            yield from crew.work(iter(tasks))
        finally:
            crew.end()


class _Crew:
    """The threads of one move, and what they share (carry.Shared)."""

    def __init__(self, mover: Mover) -> None:
        self.mover, self.target, self.again, self.part_size = mover, mover.target, mover.again, mover.part_size
        self.over, self.closing = threading.Event(), threading.Event()
        self.etags = Etags()
        self.ended: SimpleQueue[Ended] = SimpleQueue()
        self.away = 0
        self.apart = False
        self._lots: tuple[SimpleQueue[list[Task] | None], ...] = (SimpleQueue(), SimpleQueue())
        self._hands: tuple[list[_Hand], list[_Hand]] = ([], [])
        self._most = (mover.threads, LARGE_AT_ONCE)
        self._open = [0, 0]  # lots given out and not ended yet
        self._fatal: BaseException | None = None
        self._pulled: Task | None = None
        self._lock = threading.Lock()
        self._held = threading.Condition()
        self._free = HELD
        self._arrived = 0
        self._listed: dict[str, list[str]] | None = None

    def work(self, tasks: Iterator[Task]) -> Iterator[Moved | Failed]:
        """Gives tasks out and what ended back, until there is no more."""
        more = True
        while more or any(self._open):
            self.mover.check()
            room = self._open[SMALL] < 2 * self.mover.threads and self._open[LARGE] < WAITING
            more = more and not self.closing.is_set()
            if more and room:
                more = self._give(tasks)
            yield from self._received(wait=not (more and room))
        if self._fatal is not None:
            raise self._fatal

    def end(self) -> None:
        """No thread is left when this returns, but for what sleeps or hangs in a request; that ends by itself."""
        self.closing.set()
        self.over.set()
        with self._held:
            self._held.notify_all()
        for lots, hands in zip(self._lots, self._hands, strict=True):
            for _ in hands:
                lots.put(None)
        until = time.monotonic() + PATIENCE
        for hand in (*self._hands[SMALL], *self._hands[LARGE]):
            while hand.is_alive() and not hand.sleeping and time.monotonic() < until:
                hand.join(LOOK)

    @contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Waits until so many bytes may be held."""
        with self._held:
            self._held.wait_for(lambda: self._free >= size or self.over.is_set())
            if self.over.is_set():
                raise Stopped
            self._free -= size
        try:
            yield
        finally:
            with self._held:
                self._free += size
                self._held.notify_all()

    def unfinished(self, key: str, *, fresh: bool = False) -> list[str]:
        """The uploads of this key that were broken off, the youngest last."""
        with self._lock:
            if self._listed is None:
                self._listed = self._list("")
        found = self._list(key.rpartition("/")[0]) if fresh else self._listed
        return found.get(key, [])

    def _list(self, folder: str) -> dict[str, list[str]]:
        found: dict[str, list[tuple[float, str]]] = {}
        try:
            for key, upload, began in self.target.unfinished(folder + "/" if folder else ""):
                found.setdefault(key, []).append((began, upload))
        except Refused:  # whoever may write need not be allowed to list that; then all parts are sent
            return {}
        return {key: [upload for _, upload in sorted(uploads)] for key, uploads in found.items()}

    def arrived(self, size: int) -> None:
        """So many bytes more of a large file are there."""
        with self._lock:
            self._arrived += size

    def _give(self, tasks: Iterator[Task]) -> bool:
        """One lot to the threads; False when there are no more tasks."""
        first = self._pulled or next(tasks, None)
        self._pulled = None
        if first is None:
            return False
        lane = LARGE if first.size > PART else SMALL
        lot = [first]
        if lane == SMALL and self._open[SMALL] >= self.mover.threads:
            self._enlarge(lot, tasks)
        self._open[lane] += 1
        hands = self._hands[lane]
        if len(hands) < min(self._open[lane], self._most[lane]):
            hands.append(_Hand(self, lane, self._lots[lane]))
        self._lots[lane].put(lot)
        return True

    def _enlarge(self, lot: list[Task], tasks: Iterator[Task]) -> None:
        """More small tasks for a lot; one that is too large for it begins the next."""
        size = lot[0].size
        while len(lot) < LOT and size < LOT_SIZE:
            one = next(tasks, None)
            if one is None:
                return
            size += one.size
            if size > LOT_SIZE:
                self._pulled = one
                return
            lot.append(one)

    def _received(self, *, wait: bool) -> Iterator[Moved | Failed]:
        """What ended meanwhile; waits a little for the first when nothing has."""
        while wait or not self.ended.empty():
            try:
                lane, ended, error = self.ended.get(timeout=LOOK)
            except Empty:
                break
            wait = False
            self._open[lane] -= 1
            if error is not None:
                self._fatal = self._fatal or error
            for one, size in ended:
                if isinstance(one, Moved):
                    self.mover.told(size, 1)
                yield one
        with self._lock:
            size, self._arrived = self._arrived, 0
        if size:
            self.mover.told(size, 0)


class _Hand(threading.Thread):
    """A thread that carries what it is given, until it is given None."""

    def __init__(self, crew: _Crew, lane: int, lots: SimpleQueue[list[Task] | None]) -> None:
        super().__init__(name=f"mover-{lane}", daemon=True)
        self._crew, self._lane, self._lots = crew, lane, lots
        self.sleeping = False
        self.start()

    def run(self) -> None:
        """Carries one lot after another."""
        while (lot := self._lots.get()) is not None:
            ended: list[tuple[Moved | Failed, int]] = []
            error: BaseException | None = None
            try:
                self._carry(lot, ended)
            except BaseException as raised:  # noqa: BLE001  it rises in the caller's thread
                error = raised.error if isinstance(raised, TargetLost) else raised
                self._crew.closing.set()
            self._crew.ended.put((self._lane, ended, error))

    def _carry(self, lot: list[Task], ended: list[tuple[Moved | Failed, int]]) -> None:
        crew = self._crew
        for task in lot:
            if crew.closing.is_set():
                return
            carry = Carry(crew, task, self)
            one = carry.end()
            ended.append((one, carry.left))
            if isinstance(one, Failed) and isinstance(one.error, Unavailable):
                crew.away += 1
                if crew.away >= AWAY:
                    raise one.error
            else:
                crew.away = 0

    def do(self, what: str, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls again while a place is away; nobody waits for a thread that sleeps meanwhile."""

        def awake() -> T:
            self.sleeping = False
            if self._crew.over.is_set():
                raise Stopped
            try:
                return call(*args, **kwargs)
            finally:
                self.sleeping = True

        try:
            return self._crew.again.do(what, awake)
        finally:
            self.sleeping = False
