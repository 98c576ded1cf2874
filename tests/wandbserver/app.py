"""The server: what a request is, who may ask, which fault it meets, and who answers it."""

from __future__ import annotations

import asyncio
import base64
import sys
import time
import traceback
from dataclasses import dataclass, field
from typing import Any

import msgspec

from . import histories, stream
from .graph import Graph
from .lesser import Lesser
from .nodes import World
from .state import told
from .store import Refused, Store, View, now
from .uploads import PREFIX, Uploads
from .web import Connection, Reply, Request

CONTROL = "/_control/"
_encode = msgspec.json.Encoder().encode


@dataclass(slots=True)
class Fault:
    """What befalls requests that match: after the first `skip` of them, the next `times`."""

    match: str
    status: int | None = None
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)
    after: bool = False
    hang: float = 0.0
    skip: int = 0


@dataclass(slots=True)
class Seen:
    """A request as the log has it. `name` is the operation's, or the path."""

    method: str
    name: str
    status: int
    time: float
    names: tuple[str, ...] = ()
    variables: dict[str, Any] | None = None


class App:
    def __init__(self, key: str, latency: float) -> None:
        self.key, self.base, self.storage_base = key, "", ""
        self.delay = latency
        self.lesser = Lesser()
        self.clear()

    def clear(self) -> None:
        """As new."""
        self.store = Store()
        self.uploads = Uploads(self.store)
        self.uploads.base, self.uploads.server = self.storage_base, self.base
        self.graph = self._graph()
        self.faults: list[Fault] = []
        self.seen: list[Seen] = []
        self.texts: dict[str, None] = {}

    def _graph(self) -> Graph:
        self.store.features = dict.fromkeys(self.store.features, not self.lesser.older)
        return Graph(World(self.store, self.uploads), self.lesser)

    def answer(self, request: Request) -> Reply:
        """The reply, and a line in the log."""
        if request.path.startswith(CONTROL):
            return self._control(request)
        at = time.time()
        name, names, payload = self._named(request)
        fault = self._fault((name, *names))
        reply = self._with(fault, request, payload)
        reply.wait += self.delay
        variables = payload.get("variables") if payload else None
        self.seen.append(Seen(request.method, name, 0 if reply.drop else reply.status, at, names, variables))
        return reply

    def _with(self, fault: Fault | None, request: Request, payload: dict[str, Any] | None) -> Reply:
        if fault is None:
            return self._reply(request, payload)
        if fault.after:
            self._reply(request, payload)
            return Reply(drop=True, wait=fault.hang)
        if fault.status is None:
            reply = self._reply(request, payload)
            reply.wait += fault.hang
            return reply
        if fault.status == 0:
            return Reply(drop=True, wait=fault.hang)
        body = _encode({"errors": [{"message": f"status {fault.status} on request", "path": []}]})
        return Reply(fault.status, body, dict(fault.headers), fault.hang)

    def _named(self, request: Request) -> tuple[str, tuple[str, ...], dict[str, Any] | None]:
        """How the log calls it, all that faults may call it, and what a GraphQL request says."""
        if request.path == "/graphql":
            try:
                payload = msgspec.json.decode(request.body)
                names = self.graph.operation(payload["query"]).names
            except (msgspec.DecodeError, KeyError, TypeError):
                return "graphql", (), None
            self.texts[payload["query"]] = None
            return (names[0] if names else "graphql"), (*names, "graphql", request.path), payload
        if request.path.startswith(PREFIX):
            kind = self.uploads.kind(request)
            return request.path, (request.method, f"{request.method} {kind}"), None
        more = ("file_stream",) if request.path.endswith("/file_stream") else ()
        return (more[0] if more else request.path), (*more, request.path, request.method), None

    def _fault(self, names: tuple[str, ...]) -> Fault | None:
        for fault in self.faults:
            if (
                fault.match in names
                or fault.match == "*"
                or (fault.match[:1] == "/" and names[0].startswith(fault.match))
            ):
                if fault.skip:
                    fault.skip -= 1
                    continue
                fault.times -= 1
                if not fault.times:
                    self.faults.remove(fault)
                return fault
        return None

    def _reply(self, request: Request, payload: dict[str, Any] | None) -> Reply:
        try:
            return self._route(request, payload)
        except Refused as error:
            return Reply(error.status, _encode({"error": str(error)}))
        except Exception as error:  # noqa: BLE001  a mistake here must be seen by the test, not hang it
            self.graph.bugs.append("".join(traceback.format_exception(error)))
            sys.stderr.write(self.graph.bugs[-1])
            return Reply(500, _encode({"error": repr(error)}))

    def store_answer(self, request: Request) -> Reply:
        """What the second port answers: signed URLs and nothing else."""
        return self.answer(request) if request.path.startswith(PREFIX) else Reply(404)

    def _route(self, request: Request, payload: dict[str, Any] | None) -> Reply:
        if request.path.startswith(PREFIX):
            return self.uploads.answer(request)
        return self._server(request, payload)

    def _server(self, request: Request, payload: dict[str, Any] | None) -> Reply:
        if not self._known(request):
            told = {"message": "user is not logged in", "path": [], "extensions": {"code": "PERMISSION_ERROR"}}
            return Reply(401, _encode({"errors": [told], "data": None}))
        if request.path == "/graphql" and request.method == "POST":
            return self._graphql(payload)
        kind, *parts = request.parts
        if kind == "files" and len(parts) == 4 and parts[3] == "file_stream" and request.method == "POST":
            return self._stream(parts, request)
        if kind == "files" and len(parts) > 3 and request.method in ("GET", "HEAD"):
            return self._file(parts)
        if kind == "artifactsV2" and request.method == "GET":
            return self._blob(parts)
        return Reply(404, _encode({"error": f"{request.method} {request.path} not found"}))

    def _known(self, request: Request) -> bool:
        kind, _, word = request.headers.get("authorization", "").partition(" ")
        try:
            return kind == "Basic" and base64.b64decode(word, validate=True).decode() == f"api:{self.key}"
        except ValueError:
            return False

    def _graphql(self, payload: dict[str, Any] | None) -> Reply:
        if payload is None:
            return Reply(400, _encode({"errors": [{"message": "invalid request body"}]}))
        operation = self.graph.operation(payload["query"])
        status, told = self.graph.answer(operation, payload.get("variables") or {}, payload.get("operationName"))
        return Reply(status, _encode(told))

    def _stream(self, parts: list[str], request: Request) -> Reply:
        entity, project, name, _ = parts
        found = self.store.project(entity, project)
        if found is not None and name in found.deleted:
            raise Refused(f"run {found.path}/{name} was previously created and deleted", 409)
        run = self.store.the_run(entity, project, name)
        return Reply(200, _encode(stream.take(self.store, run, request.body)))

    def _file(self, parts: list[str]) -> Reply:
        run = self.store.the_run(*parts[:3])
        file = run.files.get("/".join(parts[3:]))
        if file is None:
            raise Refused("file not found", 404)
        return Reply(200, self.store.blobs[file.md5], {"Content-Type": "application/octet-stream"})

    def _blob(self, parts: list[str]) -> Reply:
        md5 = base64.b64encode(bytes.fromhex(parts[-2])).decode()
        if md5 not in self.store.blobs:
            raise Refused("file not found", 404)
        return Reply(200, self.store.blobs[md5], {"Content-Type": "application/octet-stream"})

    def _control(self, request: Request) -> Reply:
        """What only tests ask for."""
        name = request.path.removeprefix(CONTROL)
        given = msgspec.json.decode(request.body) if request.body else {}
        try:
            return getattr(self, f"control_{name}")(given)  # type: ignore[no-any-return]
        except Exception as error:  # noqa: BLE001  the test is told
            return Reply(500, _encode({"error": "".join(traceback.format_exception(error))}))

    def control_state(self, given: dict[str, Any]) -> Reply:
        return Reply(200, _encode(told(self.store)))

    def control_blob(self, given: dict[str, Any]) -> Reply:
        return Reply(200, self.store.blobs[given["md5"]])

    def control_lose(self, given: dict[str, Any]) -> Reply:
        del self.store.blobs[given["md5"]]
        return Reply(200, b"null")

    def control_harm(self, given: dict[str, Any]) -> Reply:
        self.store.blobs[given["digest"]] = given["data"].encode()
        return Reply(200, b"null")

    def control_fail(self, given: dict[str, Any]) -> Reply:
        self.faults.append(Fault(**given))
        return Reply(200, b"null")

    def control_heal(self, given: dict[str, Any]) -> Reply:
        self.faults.clear()
        return Reply(200, b"null")

    def control_latency(self, given: dict[str, Any]) -> Reply:
        self.delay = given["seconds"]
        return Reply(200, b"null")

    def control_requests(self, given: dict[str, Any]) -> Reply:
        return Reply(200, _encode(self.seen))

    def control_forget(self, given: dict[str, Any]) -> Reply:
        self.seen.clear()
        return Reply(200, b"null")

    def control_operations(self, given: dict[str, Any]) -> Reply:
        wrong = {text: [e.message for e in self.graph.operation(text).errors] for text in self.texts}
        return Reply(200, _encode(wrong))

    def control_bugs(self, given: dict[str, Any]) -> Reply:
        return Reply(200, _encode(self.graph.bugs))

    def control_reset(self, given: dict[str, Any]) -> Reply:
        self.clear()
        return Reply(200, b"null")

    def control_expire(self, given: dict[str, Any]) -> Reply:
        self.uploads.expire()
        return Reply(200, b"null")

    def control_export(self, given: dict[str, Any]) -> Reply:
        histories.export(self.store, self.store.the_run(*given["run"].split("/")), given["parts"])
        return Reply(200, b"null")

    def control_set(self, given: dict[str, Any]) -> Reply:
        """Fields of a run as no client may set them: state, created, user ..."""
        run = self.store.the_run(*given["run"].split("/"))
        for name, value in given["fields"].items():
            getattr(run, name)
            setattr(run, name, value)
        return Reply(200, b"null")

    def control_switch(self, given: dict[str, Any]) -> Reply:
        for name in ("strict_steps", "whole_pages"):
            if given.get(name) is not None:
                setattr(self.store, name, given[name])
        self.store.features |= given.get("features", {})
        return Reply(200, b"null")

    def control_less(self, given: dict[str, Any]) -> Reply:
        self.lesser = Lesser(given["plain"], given["older"], frozenset(given["nulls"]))
        bugs, self.graph = self.graph.bugs, self._graph()
        self.graph.bugs = bugs
        return Reply(200, b"null")

    def control_report(self, given: dict[str, Any]) -> Reply:
        project = self.store.made_project(given["entity"], given["project"], "report")
        number = next(self.store.numbers)
        view = View(number, f"view{number}", given["title"], given["description"], given["spec"], "runs", now(), now())
        project.views.append(view)
        return Reply(200, b"null")


async def serve(key: str, latency: float) -> None:
    """Serves on a free port, which is told on standard output, until standard input ends."""
    app = App(key, latency)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(app.answer), "127.0.0.1", 0, backlog=512)
    stored = await loop.create_server(lambda: Connection(app.store_answer), "127.0.0.1", 0, backlog=512)
    port, other = (one.sockets[0].getsockname()[1] for one in (server, stored))
    app.base = app.uploads.server = f"http://127.0.0.1:{port}"
    app.storage_base = app.uploads.base = f"http://127.0.0.1:{other}"
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()
    stored.close()
