"""Files behind a server.

A run's artifact URI is chosen by the server, so it never leads to a local file or to a host that
nobody named:

    mlflow-artifacts:/...        asked from the server itself, through its proxy
    s3:, gs:, az:                from the store itself
    what --allow-artifacts says  likewise
    all else                     asked from the server, run by run or model by model: it reads its own disk for us;
                                 of a trace it gives one file, its spans
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import BinaryIO
from urllib.parse import quote, unquote, urlsplit

from mlmigrate.adapters.mlflow.repositories import allowed, direct, repository_artifacts, strange_path
from mlmigrate.adapters.mlflow.rest.client import Client, Params, path_of
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
SMALL = 1 << 20  # bytes; smaller files are fetched ahead
AHEAD = 16  # files
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


@dataclass(slots=True)
class Listed:
    """A file that was found, and its bytes once they are asked for ahead of need."""

    owner: str
    path: str
    size: int | None
    requests: list[tuple[str, Params | None]]
    bytes: Future[bytes] | None = None


@dataclass
class Shelf:
    """The files of some runs. `losses` is complete once they are drained."""

    client: Client
    pool: Executor
    allow: tuple[str, ...]
    losses: list[Loss] = field(default_factory=list)
    used: dict[str, frozenset[str]] = field(default_factory=dict)

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
        wanted = False  # whether the last file was opened: then the next ones are fetched ahead
        ahead: deque[Listed | Artifact] = deque()

        def opener(listed: Listed) -> Callable[[], AbstractContextManager[BinaryIO]]:
            def opened() -> AbstractContextManager[BinaryIO]:
                nonlocal wanted
                wanted = True
                self._fetch(ahead)
                return self._open(listed)

            return opened

        for found in self._found(runs):
            ahead.append(found)
            if len(ahead) < AHEAD:
                continue
            if wanted:
                self._fetch(ahead)
            yield self._given(ahead.popleft(), opener)
        while ahead:
            yield self._given(ahead.popleft(), opener)

    def _given(
        self, found: Listed | Artifact, opener: Callable[[Listed], Callable[[], AbstractContextManager[BinaryIO]]]
    ) -> Artifact:
        if isinstance(found, Artifact):
            return found
        return Artifact(found.owner, found.path, opener(found), found.size)

    def _fetch(self, ahead: Sequence[Listed | Artifact]) -> None:
        for one in list(ahead):
            if isinstance(one, Listed) and one.bytes is None and one.size is not None and one.size <= SMALL:
                one.bytes = self.pool.submit(self._whole, one)

    def _whole(self, listed: Listed) -> bytes:
        return self.client.again.do(listed.path, self._read, listed)

    def _read(self, listed: Listed) -> bytes:
        with self._stream(listed) as stream:
            return stream.read()

    def _open(self, listed: Listed) -> AbstractContextManager[BinaryIO]:
        fetched, listed.bytes = listed.bytes, None
        if fetched is None:
            return self._stream(listed)
        return io.BytesIO(fetched.result())

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
            while len(under_way) < AHEAD // 2 and (run := next(left, None)) is not None:
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
                yield Listed(root.run, found, info.file_size, root.file(found))


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
