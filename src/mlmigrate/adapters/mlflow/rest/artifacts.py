"""Files behind a server.

A run's artifact URI is chosen by the server, so it never leads to a local file or to a host that
nobody named:

    mlflow-artifacts:/...        asked from the server itself: by URLs that it signs, or through its proxy
    s3:, gs:, az:                from the store itself
    what --allow-artifacts says  likewise
    all else                     asked from the server, run by run or model by model: it reads its own disk for us;
                                 of a trace it gives one file, its spans
"""

from __future__ import annotations

import io
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import BinaryIO, cast
from urllib.parse import quote, unquote, urlsplit

from mlmigrate.adapters.mlflow.repositories import allowed, direct, repository_artifacts, strange_path
from mlmigrate.adapters.mlflow.rest.client import CHUNK, Client, Params, path_of
from mlmigrate.adapters.mlflow.rest.downloads import WHOLE, Downloads, Resumed
from mlmigrate.adapters.mlflow.rest.wire import Files
from mlmigrate.address import hide_secrets
from mlmigrate.errors import MigrateError, Unavailable
from mlmigrate.model import Artifact, Loss

PROXY = "api/2.0/mlflow-artifacts/artifacts"
LIST = "api/2.0/mlflow/artifacts/list"
GET = "get-artifact"
MODEL = "@model/"
MODEL_LIST = "api/2.0/mlflow/logged-models/{}/artifacts/directories"
MODEL_GET = "ajax-api/2.0/mlflow/logged-models/{}/artifacts/files"
TRACE = "@trace/"
TRACE_FILE = "traces.json"
TRACE_GET = "ajax-api/2.0/mlflow/get-trace-artifact"
LISTS = 8  # folders that are listed at once
AHEAD = 64  # small files that are fetched before they are asked for
BEHIND = 256  # files given out and not yet read, that are waited for
BYTES_AHEAD = 64 << 20  # of all that is fetched and not yet read
LATELY = 2 * AHEAD  # files after which one that was read tells nothing any more
DEEPEST = 100  # folders in folders; a listing that goes deeper goes round in circles


@dataclass(frozen=True, slots=True)
class Root:
    """Where the files of one run, model or trace are asked for: a folder of the proxy, or by their owner."""

    run: str
    folder: str | None  # None: ask by owner

    def listing(self, path: str) -> tuple[str, Params]:
        """The request that lists a folder."""
        if self.folder is not None:
            return PROXY, {"path": f"{self.folder}/{path}" if path else self.folder}
        if self.run.startswith(MODEL):
            return self._of_model(MODEL_LIST), {"artifact_directory_path": path} if path else {}
        return LIST, {"run_id": self.run, "path": path} if path else {"run_id": self.run}

    def file(self, path: str) -> list[tuple[str, Params | None]]:
        """The requests that give a file, the best first.

        Servers of many versions answer 500 when the proxy is asked for a name beyond Latin-1: they
        write it into a header.
        """
        if self.folder is None:
            return [self._by_owner(path)]
        through_proxy: tuple[str, Params | None] = (self.upload(path), None)
        return (
            [through_proxy]
            if _in_latin_1(path) or self.run.startswith(TRACE)
            else [self._by_owner(path), through_proxy]
        )

    def _by_owner(self, path: str) -> tuple[str, Params]:
        if self.run.startswith(MODEL):
            return self._of_model(MODEL_GET), {"artifact_file_path": path}
        return GET, {"run_uuid": self.run, "path": path}

    def _of_model(self, path: str) -> str:
        return path.format(quote(self.run.removeprefix(MODEL), safe=""))

    def upload(self, path: str) -> str:
        """Where the proxy takes a file, and gives it."""
        return f"{PROXY}/{path_of(self.folder or '', path)}"

    def signed(self, path: str) -> str | None:
        """What the proxy calls a file, where it may give a URL for it."""
        return f"{self.folder}/{path}" if self.folder is not None else None

    def below(self, path: str, listed: str) -> str:
        """The path in the run of what was listed in the folder `path`: the proxy gives bare names."""
        return f"{path}/{listed}" if path and self.folder is not None else listed


def _in_latin_1(path: str) -> bool:
    return all(character <= "\xff" for character in path)


def proxied(uri: str, base: str) -> str | None:
    """The proxy's folder for an artifact URI of the server at `base`; None when it lies elsewhere."""
    parts = urlsplit(uri)
    if parts.scheme == "mlflow-artifacts":
        if parts.netloc and parts.netloc.rpartition("@")[2] != urlsplit(base).netloc:
            return None
        folder = unquote(parts.path).strip("/")
    else:
        start = f"{base}/{PROXY}/"
        if not uri.startswith(start):
            return None
        folder = unquote(uri.removeprefix(start)).strip("/")
    return folder if folder and strange_path(folder) is None else None


@dataclass(slots=True, eq=False)
class Listed:
    """A file that was found, and its bytes once they are asked for ahead of need.

    signed   what the proxy calls it, where it may give a URL for it
    bytes    None in it: it is larger than was said
    """

    owner: str
    path: str
    size: int | None
    requests: list[tuple[str, Params | None]]
    signed: str | None = None
    bytes: Future[bytes | None] | None = None

    @property
    def small(self) -> bool:
        """Whether it is read whole. Servers leave out the size of empty files."""
        return self.size is None or self.size <= WHOLE


class Window:
    """The next few files, and those given out and not read. Once one is read, the others are fetched, within bounds."""

    def __init__(self, fetch: Callable[[Listed], Future[bytes | None]]) -> None:
        self._fetch = fetch
        self._given: dict[int, Listed] = {}  # by id()
        self._next: deque[Listed | Artifact] = deque()
        self._count, self._read = 0, -LATELY
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._next)

    def add(self, found: Listed | Artifact) -> None:
        """One more that was found."""
        self._next.append(found)

    def take(self) -> Listed | Artifact:
        """The one that comes next."""
        with self._lock:
            if self._count - self._read < LATELY:
                self._ask()
            found = self._next.popleft()
            self._count += 1
            if isinstance(found, Listed) and found.small:
                self._given[id(found)] = found
                self._forget()
        return found

    def _forget(self) -> None:
        """Nobody seems to want the oldest one."""
        if len(self._given) > BEHIND:
            listed = self._given.pop(next(iter(self._given)))
            listed.bytes = None

    def open(self, listed: Listed) -> Future[bytes | None] | None:
        """Its bytes, if they were asked for; somebody reads it now."""
        with self._lock:
            fetched, listed.bytes = listed.bytes, None
            self._given.pop(id(listed), None)
            self._read = self._count
            self._ask()
        return fetched

    def _ask(self) -> None:
        files = [one for one in (*self._given.values(), *self._next) if isinstance(one, Listed) and one.small]
        room = BYTES_AHEAD - sum(one.size or 0 for one in files if one.bytes is not None)
        for one in files:
            if one.bytes is not None:
                continue
            room -= one.size or 0
            if room < 0:
                return
            one.bytes = self._fetch(one)

    def close(self) -> None:
        """Nobody will ask for more."""
        with self._lock:
            for one in self._next:
                if isinstance(one, Listed) and one.bytes is not None:
                    one.bytes.cancel()


@dataclass
class Shelf:
    """The files of some runs. `losses` is complete once they are drained."""

    client: Client
    pool: Executor
    allow: tuple[str, ...]
    losses: list[Loss] = field(default_factory=list)
    used: dict[str, frozenset[str]] = field(default_factory=dict)

    @cached_property
    def downloads(self) -> Downloads:
        """Files by the URLs that the server signs."""
        return Downloads(self.client, self.allow)

    def in_use(self, uri: str) -> bool:
        """Whether the proxy has any files at ".../<id>/artifacts": the folder of all ids is listed once."""
        folder = proxied(uri, self.client.login.base)
        above, _, _ = (folder or "").rpartition("/")
        home, _, owner = above.rpartition("/")
        if not home:
            return False
        if home not in self.used:
            try:
                found = self.client.get(PROXY, Files, {"path": home}).files
            except Unavailable:
                raise
            except MigrateError:
                found = []
            self.used[home] = frozenset(info.path.rstrip("/").rpartition("/")[2] for info in found)
        return owner in self.used[home]

    def of(self, runs: Iterable[tuple[str, str]]) -> Iterator[Artifact]:
        """The files of the runs, given as (id, artifact URI)."""
        window = Window(lambda listed: self.client.stores.submit(self._whole, listed))
        try:
            for found in self._found(runs):
                window.add(found)
                if len(window) >= AHEAD:
                    yield self._given(window)
            while len(window):
                yield self._given(window)
        finally:
            window.close()

    def _given(self, window: Window) -> Artifact:
        found = window.take()
        if isinstance(found, Artifact):
            return found
        return Artifact(found.owner, found.path, partial(self._open, window, found), found.size)

    def _whole(self, listed: Listed) -> bytes | None:
        return self.client.again.do(listed.path, self._read, listed)

    def _read(self, listed: Listed) -> bytes | None:
        """A small file, by URL or through the proxy; None for one that is not small."""
        if listed.signed is not None and (data := self.downloads.whole(listed.signed, listed.size)) is not None:
            return data
        with self._stream(listed) as stream:
            data = stream.read(WHOLE + 1)
        return data if len(data) <= WHOLE else None

    @contextmanager
    def _open(self, window: Window, listed: Listed) -> Iterator[BinaryIO]:
        fetched = window.open(listed)
        if fetched is None and listed.small:
            data = self._whole(listed)
        else:
            data = None if fetched is None or fetched.cancelled() else fetched.result()
        if data is not None:
            yield io.BytesIO(data)
            return
        with self._large(listed) as stream:
            yield stream

    @contextmanager
    def _large(self, listed: Listed) -> Iterator[BinaryIO]:
        """A file of any size as a stream, by URL or through the proxy."""
        with ExitStack() as stack:
            stream = None
            if listed.signed is not None and listed.size:
                stream = stack.enter_context(self.downloads.stream(listed.signed, listed.size))
            yield stream or stack.enter_context(self._resumed(listed))

    @contextmanager
    def _resumed(self, listed: Listed) -> Iterator[BinaryIO]:
        with self.client.again.do(listed.path, self._begun, listed) as raw:
            yield cast("BinaryIO", io.BufferedReader(cast("io.RawIOBase", raw), CHUNK))

    def _begun(self, listed: Listed) -> Resumed:
        """The answer to the first request that the server does not refuse."""
        *others, last = listed.requests
        for request in others:
            try:
                return Resumed(self.client, *request, listed.size)
            except Unavailable:
                raise
            except MigrateError:
                continue
        return Resumed(self.client, *last, listed.size)

    @contextmanager
    def _stream(self, listed: Listed) -> Iterator[BinaryIO]:
        """The answer to the first request that the server does not refuse."""
        *others, last = listed.requests
        with ExitStack() as stack:
            for request in others:
                try:
                    stream = stack.enter_context(self.client.stream(*request, listed.size))
                except Unavailable:
                    raise
                except MigrateError:
                    continue
                yield stream
                return
            yield stack.enter_context(self.client.stream(*last, listed.size))

    def _found(self, runs: Iterable[tuple[str, str]]) -> Iterator[Listed | Artifact]:
        """The listings of the next few runs are under way while one is given out."""
        under_way: deque[tuple[str, Future[list[Listed | Artifact]]]] = deque()
        left = iter(runs)
        while True:
            while len(under_way) < LISTS and (run := next(left, None)) is not None:
                under_way.append((run[0], self.pool.submit(self._list, *run)))
            if not under_way:
                return
            yield from under_way.popleft()[1].result()

    def _list(self, run: str, uri: str) -> list[Listed | Artifact]:
        """All files of one run; what stands in the way is a loss, but for a server that is away."""
        if not uri:
            return []
        folder = proxied(uri, self.client.login.base)
        if folder is None and (direct(uri) or allowed(uri, self.allow)):
            try:
                return list(repository_artifacts(uri, run, self.allow, self.client.stores))
            except MigrateError:  # MLflow or the credentials are missing here: the server has them
                pass
        root = Root(run, folder)
        try:
            return self._spans(run) if folder is None and run.startswith(TRACE) else list(self._walk(root, "", 0))
        except Unavailable:
            raise
        except MigrateError as error:
            self.losses.append(_unreachable(run, uri, error))
            return []

    def _spans(self, owner: str) -> list[Listed | Artifact]:
        """The file of a trace's spans, which a server gives whatever place it lies at; it says nothing of others."""
        request: tuple[str, Params | None] = (TRACE_GET, {"request_id": owner.removeprefix(TRACE)})
        found = Listed(owner, TRACE_FILE, None, [request])
        self.client.again.do(TRACE_FILE, self._peek, found)
        return [found]

    def _peek(self, listed: Listed) -> None:
        with self._stream(listed) as stream:
            stream.read(1)

    def _walk(self, root: Root, path: str, depth: int) -> Iterator[Listed]:
        request, params = root.listing(path)
        for info in self.client.get(request, Files, params).files:
            found = root.below(path, info.path)
            why = strange_path(found) or _stray(path, found) or ("too many folders" if depth > DEEPEST else None)
            if why:
                self.losses.append(Loss(root.run, f"artifact {found!r}", f"the server gives it a name that is {why}"))
            elif info.is_dir:
                yield from self._walk(root, found, depth + 1)
            else:
                yield Listed(root.run, found, info.file_size, root.file(found), root.signed(found))


def _stray(folder: str, path: str) -> str | None:
    return None if not folder or path.startswith(folder + "/") else "outside of its folder"


def _unreachable(run: str, uri: str, error: MigrateError) -> Loss:
    return Loss(
        run,
        f"artifacts at {shown(uri)}",
        f"the server does not give them out ({error.message}); to read them directly: --allow-artifacts {shown(uri)}",
    )


def shown(uri: str) -> str:
    """A URI without the credentials that may stand in it."""
    return hide_secrets(uri)
