"""Files put behind a server: through its proxy, or to where its runs' artifact URIs point.

A URI that the server chose never makes us write to this machine, nor to a host that nobody named.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import BinaryIO, ParamSpec

from mlmigrate.adapters.mlflow.repositories import allowed, direct, repository_writer, strange_path
from mlmigrate.adapters.mlflow.rest.artifacts import Root, proxied, shown
from mlmigrate.adapters.mlflow.rest.client import CHUNK, Client
from mlmigrate.adapters.mlflow.rest.parts import Parts, Whole
from mlmigrate.adapters.mlflow.rest.wire import Files
from mlmigrate.errors import Damaged, MigrateError, NotFound, Unavailable
from mlmigrate.model import Artifact, Loss
from mlmigrate.storage.budget import Budget

UPLOAD = "ajax-api/2.0/mlflow/upload-artifact"  # servers from 2.9; for roots on the server's own disk
SMALL = 8 << 20  # bytes; smaller files are sent several at a time
UNDER_WAY = 64 << 20  # bytes of them
LARGEST = 10 << 20  # bytes; what that route takes
UNSERVABLE = ("#", "%")  # MLflow refuses to serve such names

P = ParamSpec("P")


class Uploads:
    """The files of one pack. Losses are added to the list that is given."""

    def __init__(self, client: Client, allow: tuple[str, ...], losses: list[Loss]) -> None:
        self._client, self._allow, self._losses = client, allow, losses
        self._sizes: dict[str, dict[str, int]] = {}  # run here -> path -> bytes written
        self._roots: dict[str, Root] = {}
        self._lock = threading.Lock()
        self._parts = Parts(client, allow, client.stores.part_size)
        self._room = Budget(UNDER_WAY)

    def of(self, run: str, uri: str, artifact: Artifact) -> Callable[[], None] | None:
        """What sends this file, to be called from any thread; large ones are sent before this comes back."""
        if why := strange_path(artifact.path):
            self._losses.append(Loss(artifact.owner, f"artifact {artifact.path!r}", f"its name is {why}"))
            return None
        folder = proxied(uri, self._client.login.base)
        if folder is not None:
            return self._through_proxy(Root(run, folder), artifact)
        if direct(uri) or allowed(uri, self._allow):
            return partial(repository_writer(uri, self._allow, self._client.stores), artifact)
        return self._by_run(run, uri, artifact)

    def _through_proxy(self, root: Root, artifact: Artifact) -> Callable[[], None] | None:
        self._roots[root.run] = root
        if artifact.size is None or artifact.size > SMALL:
            self._told(artifact, self._large, root, artifact)
            return None
        with ExitStack() as room:
            room.enter_context(self._room.of(artifact.size))
            return partial(self._whole, root, artifact, _bytes(artifact), room.pop_all())

    def _large(self, root: Root, artifact: Artifact) -> None:
        """In parts, straight into the store, or else as a stream through the proxy."""
        if not (artifact.size and self._parts.put(_file(root, artifact, artifact.size))):
            self._stream(root, artifact)
            return
        self._note(root.run, artifact.path, artifact.size)

    def _stream(self, root: Root, artifact: Artifact) -> None:
        with artifact.open() as data:
            counted = _Counted(data, artifact)
            self._client.upload(root.upload(artifact.path), counted, artifact.size)  # type: ignore[arg-type]
        self._note(root.run, artifact.path, counted.read_so_far)

    def _whole(self, root: Root, artifact: Artifact, data: bytes, room: ExitStack) -> None:
        def call() -> None:
            self._client.upload(root.upload(artifact.path), io.BytesIO(data), len(data))
            self._note(root.run, artifact.path, len(data))

        with room:
            self._told(artifact, call)

    def _told(self, artifact: Artifact, call: Callable[P, None], /, *given: P.args, **named: P.kwargs) -> None:
        """Calls, again while the server is away; a name that it cannot hold is a loss."""
        try:
            self._client.again.do(artifact.path, call, *given, **named)
        except (Unavailable, Damaged):
            raise
        except MigrateError as error:
            if not any(one in artifact.path for one in UNSERVABLE):
                raise
            because = f"the server refuses its name ({error.message})"
            self._losses.append(Loss(artifact.owner, f"artifact {artifact.path!r}", because))

    def _by_run(self, run: str, uri: str, artifact: Artifact) -> Callable[[], None] | None:
        """The server writes to its own disk for us, files of up to 10 MiB that are not empty."""
        if not artifact.size or artifact.size > LARGEST:
            self._lose(artifact, uri, "the server takes no file of this size")
            return None
        return partial(self._post, run, uri, artifact, _bytes(artifact))

    def _post(self, run: str, uri: str, artifact: Artifact, data: bytes) -> None:
        try:
            self._client.again.do(
                artifact.path, self._client.send, UPLOAD, {"run_uuid": run, "path": artifact.path}, data
            )
        except Unavailable:
            raise
        except MigrateError as error:
            self._lose(artifact, uri, f"the server does not take it ({error.message})")
            return
        self._roots[run] = Root(run, None)
        self._note(run, artifact.path, len(data))

    def _lose(self, artifact: Artifact, uri: str, because: str) -> None:
        why = f"{because}, and its files lie at {shown(uri)}; to write there directly: --allow-artifacts {shown(uri)}"
        self._losses.append(Loss(artifact.owner, f"artifact {artifact.path!r}", why))

    def _note(self, run: str, path: str, size: int) -> None:
        with self._lock:
            self._sizes.setdefault(run, {})[path] = size

    def check(self, run: str) -> None:
        """Lists each folder once and compares sizes. Raises Damaged when what is there is not what was sent."""
        written = self._sizes.get(run, {})
        for folder in sorted({path.rpartition("/")[0] for path in written}):
            there = self._listed(self._roots[run], folder)
            for path, size in written.items():
                if path.rpartition("/")[0] == folder and there.get(path) != size:
                    raise Damaged(f"Artifact {path!r} has {there.get(path)} bytes on the server, and {size} were sent.")

    def _listed(self, root: Root, folder: str) -> dict[str, int]:
        request, params = root.listing(folder)
        try:
            files = self._client.get(request, Files, params).files
        except NotFound:
            return {}
        return {root.below(folder, info.path): info.file_size or 0 for info in files if not info.is_dir}


def _bytes(artifact: Artifact) -> bytes:
    with artifact.open() as data:
        read = data.read()
    if artifact.size is not None and len(read) != artifact.size:
        raise Damaged(f"Artifact {artifact.path!r} should have {artifact.size} bytes, and {len(read)} were read.")
    return read


def _file(root: Root, artifact: Artifact, size: int) -> Whole:
    """The file as the proxy names it."""
    folder, _, name = f"{root.folder}/{artifact.path}".rpartition("/")
    return Whole(folder, name, size, artifact.open)


class _Counted(io.RawIOBase):
    """A stream that counts what is read of it, and ends where it was said to. Raises Damaged when it does not."""

    def __init__(self, data: BinaryIO, artifact: Artifact) -> None:
        self._data, self._artifact = data, artifact
        self.read_so_far = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._data.read(CHUNK if size < 0 else size) or b""
        self.read_so_far += len(data)
        said = self._artifact.size
        if said is not None and (self.read_so_far > said or (not data and self.read_so_far < said)):
            raise Damaged(
                f"Artifact {self._artifact.path!r} should have {said} bytes, and {self.read_so_far} were read."
            )
        return data
