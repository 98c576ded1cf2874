"""A stand-in for the server of Weights & Biases, for tests: what the SDK is known to use, kept strictly.

    with wandbserver.running() as server:
        run_something(env=server.env)
        assert server.state()["runs"]["team/project/id"]["history"] == [...]

Runs in a process of its own. It refuses what the real one is known to refuse: a wrong key (401), a run id that was
deleted (409), tags of more than 64 characters, config that is no JSON, operations that ask for what the SDK never
asks for, uploads without a signed URL (403) or with other bytes than declared, commits of artifacts whose bytes are
missing. Where nobody knows what the real one does it is strict: lines of history whose `_step` is not past the one
before are refused, unless `switch(strict_steps=False)`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

KEY = "0123456789abcdef0123456789abcdef01234567"
ENTITY, OTHER_ENTITY, FORBIDDEN_ENTITY = "team", "other", "forbidden"


class Server:
    """A running server, as tests see it. Faults, latency and the log are set and read while it runs.

    `entity` is the default one of the key; "other" is another that it may use, "forbidden" one that it may not.
    """

    key = KEY
    entity = ENTITY

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    @property
    def env(self) -> dict[str, str]:
        """What a client needs to talk to it, and to nobody else."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": self.key, "WANDB_ERROR_REPORTING": "false"}

    def state(self) -> dict[str, Any]:
        """Everything stored: see state.py. History, events and console are the lines as they were sent."""
        return self._ask("state")  # type: ignore[no-any-return]

    def blob(self, md5: str) -> bytes:
        """The bytes with this md5 (base64)."""
        return self._raw("blob", {"md5": md5})

    def lose(self, md5: str) -> None:
        """The bytes with this md5 (base64) are gone; what names them stays."""
        self._ask("lose", md5=md5)

    def harm(self, digest: str, data: bytes) -> None:
        """The bytes with this digest (base64) are others by now."""
        self._ask("harm", digest=digest, data=data.decode())

    def fail(
        self,
        match: str,
        status: int | None = None,
        times: int = 1,
        headers: Mapping[str, str] | None = None,
        after: bool = False,
        hang: float = 0.0,
        skip: int = 0,
    ) -> None:
        """The next `times` requests that match (after the first `skip`) fail.

        match    an operation's name (UpsertBucket) or its field (upsertBucket), "graphql", "file_stream",
                 "PUT" or "GET" of a signed URL, "PUT file", "PUT artifact", "PUT manifest", "PUT part", the beginning
                 of a path ("/files/"), "*"
        status   of the answer, given in place of doing it; 0: the connection is closed; None: it is done, with `hang`
        after    it is done, but the connection is closed without an answer
        hang     seconds before anything is answered
        """
        given = {"match": match, "status": status, "times": times, "after": after, "hang": hang, "skip": skip}
        self._ask("fail", **given, headers=dict(headers or {}))

    def heal(self) -> None:
        """No more faults."""
        self._ask("heal")

    def latency(self, seconds: float) -> None:
        """Every answer from now on comes so much later."""
        self._ask("latency", seconds=seconds)

    def requests(self) -> list[tuple[str, str]]:
        """All requests since the start (or `forget`): (method, operation's name or path)."""
        return [(one["method"], one["name"]) for one in self.log()]

    def log(self) -> list[dict[str, Any]]:
        """The same with status (0: dropped), time, names and variables."""
        return self._ask("requests")  # type: ignore[no-any-return]

    def forget(self) -> None:
        """The log is empty."""
        self._ask("forget")

    def operations(self) -> dict[str, list[str]]:
        """Texts of all operations that came, and what the schema says against each."""
        return self._ask("operations")  # type: ignore[no-any-return]

    def reset(self) -> None:
        """As new, faults and log too; the latency stays."""
        self._ask("reset")

    def expire(self) -> None:
        """Signed URLs that were given so far are answered with 403."""
        self._ask("expire")

    def export(self, run: str, *parts: int) -> None:
        """The first lines of team/project/run are exported as parquet files, with so many lines each."""
        self._ask("export", run=run, parts=list(parts))

    def set(self, run: str, **fields: Any) -> None:
        """Sets what no client may: state, created, heartbeat, user, stopped ... (fields of store.Run)."""
        self._ask("set", run=run, fields=fields)

    def switch(self, strict_steps: bool | None = None, whole_pages: bool | None = None, **features: bool) -> None:
        """Sets whether steps must increase, pages tell exported lines too, and the features the server says it has."""
        self._ask("switch", strict_steps=strict_steps, whole_pages=whole_pages, features=features)

    def less(self, plain: int = 0, older: bool = False, nulls: Sequence[str] = ()) -> None:
        """From now on, also after a reset, it is less able: see lesser.py. Without anything: as able as ever.

        plain  requests that ask for several things are refused with this status (200: as GraphQL's errors are told)
        older  what the SDK asks for only where a server has it is missing, and all features are off
        nulls  fields ("Run.user") that are told as null
        """
        self._ask("less", plain=plain, older=older, nulls=list(nulls))

    def report(self, project: str, title: str, spec: Any, description: str = "", entity: str = ENTITY) -> None:
        """Puts a report into a project."""
        given = {"entity": entity, "project": project, "title": title, "description": description}
        self._ask("report", **given, spec=json.dumps(spec))

    def bugs(self) -> list[str]:
        """Tracebacks of this server's own mistakes: there should be none."""
        return self._ask("bugs")  # type: ignore[no-any-return]

    def _ask(self, name: str, **given: Any) -> Any:
        return json.loads(self._raw(name, given))

    def _raw(self, name: str, given: Mapping[str, Any]) -> bytes:
        request = urllib.request.Request(f"{self.url}/_control/{name}", json.dumps(given).encode(), method="POST")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=120) as reply:
            return reply.read()  # type: ignore[no-any-return]


@contextmanager
def running(latency: float = 0.0, key: str = KEY, plain: int = 0, older: bool = False) -> Iterator[Server]:
    """A server in a process of its own, on a free port; `plain`, `older`: see less(). Its own mistakes end the test."""
    command: Sequence[str] = [sys.executable, "-m", __name__, key, str(latency)]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            server = Server(int(process.stdout.readline()))
            server.key = key
            if plain or older:
                server.less(plain, older)
            yield server
            assert server.bugs() == []
        finally:
            assert process.stdin is not None
            process.stdin.close()  # it serves until then, so it ends also when the test is killed
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
