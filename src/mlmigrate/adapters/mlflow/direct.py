"""Files in object stores, read where they lie, with what one side's environment leads to.

    Stores.artifacts(uri, owner)    every file below a URI, as the store lists them
    Stores.in_turn(several)         those of several places, one after another, listed ahead of need
    Stores.ahead(artifacts)         the same artifacts; small ones are fetched many at a time, once any is read
    Stores.folder(uri)              the place below a URI, for files that are put there (sending.py)

A bucket is opened once a side, so that both sides' credentials never meet.  A path in a run is what the
store calls the file, behind the run's own place: never cleaned, never decoded.
"""

from __future__ import annotations

import io
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, islice
from typing import BinaryIO, ParamSpec, TypeVar
from urllib.parse import urlsplit

from mlmigrate.adapters.base import Again, Context, Once
from mlmigrate.adapters.mlflow.references import MLMODEL
from mlmigrate.adapters.mlflow.sending import Folder
from mlmigrate.address import hide_secrets
from mlmigrate.errors import BadData, MigrateError, NotFound, Refused, UsageError
from mlmigrate.model import Artifact, Spot
from mlmigrate.storage.budget import Budget
from mlmigrate.storage.objects import Objects, Stored, open_objects
from mlmigrate.storage.throttle import UNLIMITED, Throttle

P = ParamSpec("P")
T = TypeVar("T")
SCHEMES = ("s3", "s3a", "gs", "az", "abfss", "wasbs")
SMALL = 1 << 20  # bytes; smaller files are fetched ahead
AHEAD = 32  # files
THREADS = 32
LISTS = 8  # places that are listed at once
PAGE = 1000  # files of a listing that are held before they are asked for
LATELY = 2 * AHEAD  # files after which one that was read tells nothing any more
FOLDERS = 512  # places that are remembered
IN_FLIGHT = 128 << 20  # bytes on their way into stores at once
# what a store says when it knows nobody of this name: then nothing else can be read either
_NOBODY = (
    *("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired"),
    *("RequestTimeTooSkewed", "AccountProblem"),
    *("Unauthenticated", "AuthenticationFailed", "NoCredentials", "InvalidAuthenticationInfo"),
)


def reachable(uri: str) -> bool:
    """Whether `uri` names a place in an object store that is read and written without MLflow."""
    parts = urlsplit(uri)
    return parts.scheme.lower() in SCHEMES and bool(parts.netloc)


def _nothing() -> None:
    """What an empty place is to most."""


@dataclass(frozen=True, slots=True)
class Far:
    """Files of somebody that lie in an object store; `empty` is called when there are none."""

    uri: str
    owner: str
    empty: Callable[[], None] = _nothing


class Stores:
    """The object stores that one side reaches. Used by many threads at once."""

    def __init__(
        self,
        env: Mapping[str, str],
        throttle: Throttle = UNLIMITED,
        again: Again | None = None,
        part_size: int = 0,
    ) -> None:
        self._env, self._throttle = env, throttle
        self.again: Again = again or Once()
        self.part_size = part_size
        self.budget = Budget(IN_FLIGHT)
        self.closed: set[str] = set()  # places of the other side that this one's credentials may not read
        self._lock = threading.Lock()
        self._places: dict[str, Objects] = {}
        self._answered = False  # whether any place was ever listed
        self.named: Callable[[], Iterable[str]] = tuple  # gives the places that the source's experiments name
        self._folders: OrderedDict[str, Folder] = OrderedDict()

    @classmethod
    def of(cls, context: Context) -> Stores:
        """Those of the side that `context` is of; nothing is asked yet."""
        return cls(context.env, context.throttle, context.again, context.settings.part_size)

    @property
    def env(self) -> Mapping[str, str]:
        """The environment of this side."""
        return self._env

    @property
    def throttle(self) -> Throttle:
        """How fast this side may go."""
        return self._throttle

    @cached_property
    def pool(self) -> ThreadPoolExecutor:
        """The threads that wait for stores. No task of theirs waits for another that began later."""
        return ThreadPoolExecutor(THREADS, "stores")

    def submit(self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Has `call` made by one of the threads."""
        with self._lock:
            pool = self.pool
        return pool.submit(call, *args, **kwargs)

    def close(self) -> None:
        """Lets the threads go."""
        if "pool" in self.__dict__:
            self.pool.shutdown(cancel_futures=True)

    def at(self, uri: str) -> tuple[Objects, str]:
        """The bucket that a URI of MLflow's names, and the key there, read as MLflow does: up to any "?" or "#".

        Raises Refused when no credentials are found.
        """
        parts = urlsplit(uri)
        return self._bucket(parts.scheme, parts.netloc), parts.path.removeprefix("/").rstrip("/")

    def of_spot(self, spot: Spot) -> tuple[Objects, str]:
        """The bucket and the key of a spot, which is not quoted."""
        scheme, _, rest = spot.url.partition("://")
        bucket, _, key = rest.partition("/")
        return self._bucket(scheme, bucket), key

    def _bucket(self, scheme: str, name: str) -> Objects:
        place = f"{scheme.lower()}://{name}"
        with self._lock:
            if place not in self._places:
                self._places[place] = open_objects(place, self._env, self._throttle)
            return self._places[place]

    def check(self, uri: str) -> None:
        """Asks whether files may be written there. Raises NotFound, Refused, Unavailable."""
        self.again.do(hide_secrets(uri), open_objects(uri, self._env, self._throttle).check, write=True)

    def folder(self, uri: str) -> Folder:
        """The place below `uri`, for writing; what was found out about it is remembered for a while."""
        objects, prefix = self.at(uri)
        with self._lock:
            folder = self._folders.pop(uri, None) or Folder(self, objects, prefix)
            self._folders[uri] = folder
            if len(self._folders) > FOLDERS:
                self._folders.popitem(last=False)
            return folder

    def artifacts(self, uri: str, owner: str) -> Iterator[Artifact]:
        """All files below `uri`, in the store's order. Raises Refused, Unreadable, NotFound, Unavailable."""
        objects, prefix = self.at(uri)
        below = f"{prefix}/" if prefix else ""
        for stored in self._listed(uri, objects, below):
            if stored.key.endswith("/") and not stored.size:
                continue  # stands for a folder
            if not stored.key.startswith(below):
                raise BadData(f"{hide_secrets(uri)} lists {stored.key!r:.200}, which does not lie there.")
            yield _artifact(objects, stored, owner, stored.key.removeprefix(below))

    def _listed(self, uri: str, objects: Objects, below: str) -> Iterator[Stored]:
        found = iter(objects.list(below))
        try:
            with readable(uri):
                first = next(found, None)
        except (Unreadable, NotFound) as error:
            if self._hopeless:
                raise _for_all(error) from error
            raise
        self._answered = True
        with readable(uri):
            yield from () if first is None else chain([first], found)

    @cached_property
    def _hopeless(self) -> bool:
        """Whether no bucket that the source names gives anything out; asked once, when the first one does not."""
        if self._answered:
            return False
        places = {urlsplit(uri).netloc: uri for uri in self.named() if reachable(uri)}
        return not any(self._answers(uri) for uri in places.values())

    def _answers(self, uri: str) -> bool:
        objects, prefix = self.at(uri)
        try:
            next(iter(objects.list(f"{prefix}/" if prefix else "")), None)
        except (Refused, NotFound):
            return False
        return True

    def _begun(self, uri: str, owner: str) -> Iterator[Artifact]:
        """As `artifacts`, the first of them asked for now."""

        def begin() -> Iterator[Artifact]:
            found = self.artifacts(uri, owner)
            return chain(list(islice(found, PAGE)), found)

        return self.again.do(f"the files of {owner}", begin)

    def in_turn(self, several: Iterator[Iterator[Artifact] | Far]) -> Iterator[Artifact]:
        """All artifacts of all, one after another; places are listed, and small files there fetched, ahead of that."""
        return self.ahead(self._in_turn(several))

    def _in_turn(self, several: Iterator[Iterator[Artifact] | Far]) -> Iterator[Artifact]:
        under_way: deque[Iterator[Artifact]] = deque()
        while True:
            while len(under_way) < LISTS and (one := next(several, None)) is not None:
                under_way.append(self._of(one) if isinstance(one, Far) else one)
            if not under_way:
                return
            yield from under_way.popleft()

    def _of(self, far: Far) -> Iterator[Artifact]:
        listing = self.submit(self._begun, far.uri, far.owner)

        def given() -> Iterator[Artifact]:
            empty = True
            for artifact in listing.result():
                empty = False
                yield artifact
            if empty:
                far.empty()

        return given()

    def ahead(self, artifacts: Iterator[Artifact]) -> Iterator[Artifact]:
        """The same artifacts. Those that are small and lie in a store are fetched before they are asked for.

        Not before one is read, and no longer than some are: where a store copies by itself, or a plan only
        counts, no byte is fetched.
        """
        return _Window(self).through(artifacts)


class Unreadable(MigrateError):
    """A place in a store that these credentials may not read, though they are good for others."""


class NoBucket(UsageError):
    """None of the buckets that a source names is there."""

    exit_code = NotFound.exit_code


def _for_all(error: MigrateError) -> MigrateError:
    """The error that ends a copy at once: what one place answers, all do."""
    hint = "Other credentials: SOURCE_AWS_PROFILE and the like. All but files: --skip artifacts"
    kind = NoBucket if isinstance(error, NotFound) else Refused
    return kind(error.message, hint)


@contextmanager
def readable(uri: str) -> Iterator[None]:
    """That one place may not be read is the business of those whose files lie there alone."""
    try:
        yield
    except Refused as error:
        known = f"{error} {error.__cause__!r}"
        if error.__cause__ is None or any(code in known for code in _NOBODY):
            raise
        raise Unreadable(f"{hide_secrets(uri)} may not be read: {error.message}", error.hint) from error


def _artifact(objects: Objects, stored: Stored, owner: str, path: str) -> Artifact:
    lying = Lying(objects, stored.key, stored.size, stored.version)
    spot = Spot(objects.store, lying.url, stored.version)
    return Artifact(owner, path, lying, stored.size, spot=spot)


@dataclass(frozen=True, slots=True)
class Lying:
    """A file in a store: what opens an artifact, and a Body for uploads to elsewhere."""

    objects: Objects
    key: str
    size: int
    version: str

    @property
    def url(self) -> str:
        """Where it lies, as the store has it."""
        return f"{self.objects.url}/{self.key}"

    def __call__(self) -> AbstractContextManager[BinaryIO]:
        return self._open(0, None)

    def open(self, start: int, length: int) -> AbstractContextManager[BinaryIO]:
        """A part of it."""
        return self._open(start, length)

    @contextmanager
    def _open(self, start: int, length: int | None) -> Iterator[BinaryIO]:
        with ExitStack() as stack:
            with readable(self.url):
                stream = stack.enter_context(self.objects.open(self.key, start, length, self.version))
            yield stream

    def digest(self) -> str:
        """What the store says of its bytes, checked when they were written; "" when it says nothing."""
        with readable(self.url):
            there = self.objects.head(self.key)
        return there.digest if there is not None and there.size == self.size else ""


class _Fetched:
    """Opens a small file that may have been fetched already; the second time, the file itself."""

    def __init__(self, window: _Window, lying: Lying, number: int) -> None:
        self._window, self._lying, self._number = window, lying, number
        self.size, self.open, self.digest = lying.size, lying.open, lying.digest
        self._bytes: Future[bytes] | None = None

    def __call__(self) -> AbstractContextManager[BinaryIO]:
        if self._lying.key.rpartition("/")[2] != MLMODEL:  # these are read where a store copies the others, too
            self._window.read(self._number)
        fetched, self._bytes = self._bytes, None
        return self._lying() if fetched is None else io.BytesIO(fetched.result())

    def fetch(self, stores: Stores) -> None:
        """Asks for the bytes, once."""
        if self._bytes is None:
            self._bytes = stores.submit(stores.again.do, self._lying.key, self._all)

    def forget(self) -> None:
        """Nobody will ask."""
        if self._bytes is not None:
            self._bytes.cancel()

    def _all(self) -> bytes:
        with self._lying() as stream:
            return stream.read()


class _Window:
    """The next few artifacts of a stream."""

    def __init__(self, stores: Stores) -> None:
        self._stores = stores
        self._waiting: deque[tuple[Artifact, _Fetched | None]] = deque()
        self._count = 0
        self._read = -LATELY  # number of the last one that was read

    def through(self, artifacts: Iterator[Artifact]) -> Iterator[Artifact]:
        try:
            for artifact in artifacts:
                self._waiting.append(self._held(artifact))
                if len(self._waiting) >= AHEAD:
                    yield self._next()
            while self._waiting:
                yield self._next()
        finally:
            for _, fetched in self._waiting:
                if fetched is not None:
                    fetched.forget()

    def read(self, number: int) -> None:
        """One was opened: the next ones will be too."""
        first = number - self._read >= LATELY
        self._read = max(self._read, number)
        if first:
            self._fetch()

    def _held(self, artifact: Artifact) -> tuple[Artifact, _Fetched | None]:
        self._count += 1
        if not isinstance(artifact.open, Lying) or artifact.open.size > SMALL:
            return artifact, None
        fetched = _Fetched(self, artifact.open, self._count)
        return replace(artifact, open=fetched), fetched

    def _next(self) -> Artifact:
        if self._count - self._read < LATELY:
            self._fetch()
        return self._waiting.popleft()[0]

    def _fetch(self) -> None:
        for _, fetched in list(self._waiting):
            if fetched is not None:
                fetched.fetch(self._stores)
