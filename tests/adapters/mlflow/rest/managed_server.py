"""Before a real MLflow server: what managed services are published to do otherwise. None of them is reached.

Each class stands for one service.  It refuses what the service is said to refuse, gives smaller
pages than asked for, empty pages that go on, tokens that belong to one size of page or run out once,
fields that are null, errors of other shapes, and bursts of 429.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import threading
from collections import Counter
from email.utils import formatdate
from urllib.parse import parse_qs, urlencode, urlsplit

import faults

SEARCHES = (
    "experiments/search",
    "runs/search",
    "registered-models/search",
    "model-versions/search",
    "logged-models/search",
    "traces/search",
)
Answer = tuple[int, list[tuple[str, str]], bytes]


def answer(status: int, body: object, *headers: tuple[str, str]) -> Answer:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return status, [("Content-Type", "application/json"), *headers], data


class Refusal(Exception):
    """What is answered without asking the server."""

    def __init__(self, status: int, body: object, *headers: tuple[str, str]) -> None:
        super().__init__(status)
        self.answer = answer(status, body, *headers)


class Managed(faults.Proxy):
    """A service that differs in nothing yet. `page` is the most that a search gives; `refused` counts refusals."""

    def __init__(self, target: str, page: int = 2) -> None:
        super().__init__(target)
        self.page = page
        self.refused: Counter[str] = Counter()
        self.sent: list[tuple[str, str, dict[str, str], bytes]] = []  # as it came, before anything was changed
        self.expire: set[str] = set()  # ends of paths whose next token is refused, once
        self.busy: dict[str, int] = {}  # end of a path -> how many calls are refused
        self.longest: dict[str, int] = {}
        self._turn = threading.Lock()

    def forward(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> Answer:
        with self._turn:
            self.sent.append((method, path, headers, body))
        try:
            self.let_in(method, path, headers, body)
            self.throttle(path)
            return self.served(method, self.plain_path(path), body, headers)
        except Refusal as refusal:
            return refusal.answer

    def let_in(self, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        """Raises Refusal for who shows no credentials."""

    def plain_path(self, path: str) -> str:
        """The path that the server behind knows."""
        return path

    def refuse(self, why: str, status: int, body: object, *headers: tuple[str, str]) -> None:
        with self._turn:
            self.refused[why] += 1
        raise Refusal(status, body, *headers)

    def throttle(self, path: str) -> None:
        """Some calls meet 429, which says when to come back in seconds or as a date."""
        with self._turn:  # requests come from many threads
            end = next((one for one, left in self.busy.items() if left and urlsplit(path).path.endswith(one)), "")
            left = self.busy.get(end, 0)
            self.busy |= {end: left - 1} if left else {}
        if left:
            when = "0" if left % 2 else formatdate(usegmt=True)
            self.refuse("busy", 429, b"<html>Too Many Requests</html>", ("Retry-After", when))

    def served(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> Answer:
        place = urlsplit(path).path
        if place.endswith(("runs/log-batch", "set-tag", "runs/create")):
            self.check_lengths(json.loads(body))
        if place.endswith(SEARCHES):
            return self.paged(method, path, body, headers)
        return super().forward(method, path, body, headers)

    def check_lengths(self, body: dict) -> None:
        given = [("param", one) for one in body.get("params", ())] + [("tag", one) for one in body.get("tags", ())]
        given += [("tag", body)] if "value" in body else []
        for role, one in given:
            most = self.longest.get(role)
            if most is not None and len(one["value"]) > most:
                self.too_long(role, one, most)

    def too_long(self, role: str, one: dict, most: int) -> None:
        said = f"{role.title()} value '{one['value']}' had length {len(one['value'])}, which exceeded length limit of"
        self.refuse(f"long {role}", 400, {"error_code": "INVALID_PARAMETER_VALUE", "message": f"{said} {most}"})

    def paged(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> Answer:
        """First an empty page with a token, then pages of `page`; a token is good for one size of page."""
        ask, size = self._asked(path, body)
        token = str(ask.pop("page_token", "") or "")
        end = urlsplit(path).path.rpartition("mlflow/")[2]
        if not token:
            return answer(200, {"next_page_token": f"{size}~"})
        bound, _, inner = token.partition("~")
        with self._turn:
            refused = bound != str(size) or end in self.expire
            self.expire -= {end} if refused else set()
        if refused:
            self.refuse("token", 400, {"error_code": "INVALID_PARAMETER_VALUE", "message": "Invalid page token"})
        ask |= {"max_results": min(size, self.page)} | ({"page_token": inner} if inner else {})
        path, body = self._told(path, body, ask)
        status, kept, data = super().forward(method, path, body, {**headers, "Content-Length": str(len(body))})
        found = json.loads(data)
        if found.get("next_page_token"):
            found["next_page_token"] = f"{size}~{found['next_page_token']}"
        return status, kept, self.told(found)

    def told(self, found: dict) -> bytes:
        return json.dumps(found).encode()

    def _asked(self, path: str, body: bytes) -> tuple[dict, int]:
        if body:
            ask = json.loads(body)
        else:
            ask = {name: values[-1] for name, values in parse_qs(urlsplit(path).query).items()}
        return ask, int(ask.get("max_results", 100))

    def _told(self, path: str, body: bytes, ask: dict) -> tuple[str, bytes]:
        if body:
            return path, json.dumps(ask).encode()
        return f"{urlsplit(path).path}?{urlencode(ask)}", b""


class Databricks(Managed):
    """A bearer token; experiments named by paths in folders that are there; 1 MB a log-batch."""

    token = "dapi-0123456789"

    def __init__(self, target: str, page: int = 2) -> None:
        super().__init__(target, page)
        self.folders = {"/Shared", "/Users/me"}
        self.longest = {"tag": 5000, "param": 6000}

    def let_in(self, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        if headers.get("Authorization") != f"Bearer {self.token}":
            self.refuse("credentials", 401, b"<html><title>Error 401</title></html>")

    def served(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> Answer:
        place = urlsplit(path).path
        if not place.startswith("/api/"):
            self.refuse(
                "no such path", 404, {"error_code": "ENDPOINT_NOT_FOUND", "message": f"No API found for {place}"}
            )
        if place == "/api/2.0/workspace/mkdirs":
            self.folders.add(json.loads(body)["path"])
            return answer(200, {})
        if place.endswith("experiments/create"):
            self.check_name(json.loads(body)["name"])
        if place.endswith("runs/log-batch") and len(body) > 1_000_000:
            self.refuse("large", 400, {"error_code": "INVALID_PARAMETER_VALUE", "message": "Request is over 1 MB"})
        if place.endswith(SEARCHES) and self._asked(path, body)[1] > 50_000:
            self.refuse("page", 400, {"error_code": "INVALID_PARAMETER_VALUE", "message": "max_results is too big"})
        return super().served(method, path, body, headers)

    def check_name(self, name: str) -> None:
        if not name.startswith("/"):
            said = f"Got an invalid experiment name '{name}'. An experiment name must be an absolute path"
            self.refuse("name", 400, {"error_code": "INVALID_PARAMETER_VALUE", "message": said})
        if name.rpartition("/")[0] not in self.folders:
            said = f"Parent directory {name.rpartition('/')[0]} does not exist."
            self.refuse("folder", 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": said})


class UnityCatalog(Databricks):
    """A registry of its own: other paths, no search for tags, versions by the name of their model alone."""

    def served(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> Answer:
        place = urlsplit(path).path
        registry = place.endswith(("registered-models/search", "model-versions/search"))
        if registry and "/unity-catalog/" not in place:
            self.refuse("registry", 403, {"error_code": "PERMISSION_DENIED", "message": "Use Unity Catalog"})
        asked = parse_qs(urlsplit(path).query).get("filter", [""])[0]
        if place.endswith("registered-models/search") and asked:
            self.refuse("filter", 400, {"error_code": "INVALID_PARAMETER_VALUE", "message": "No filters"})
        if place.endswith("model-versions/search") and not re.fullmatch("name = ('[^']*'|\"[^\"]*\")", asked):
            self.refuse("filter", 400, {"error_code": "INVALID_PARAMETER_VALUE", "message": "Only by name"})
        return super().served(method, path.replace("/unity-catalog/", "/"), body, headers)


class AzureMl(Managed):
    """A path that names the workspace; ids that are not hexadecimal; no `!=` on tags; nulls; 250 points a call."""

    workspace = "/mlflow/v2.0/subscriptions/s/resourceGroups/g/providers/Microsoft.MachineLearningServices/workspaces/w"
    token = "eyJ-azure"

    def __init__(self, target: str, page: int = 2) -> None:
        super().__init__(target, page)
        self.longest = {"tag": 1000, "param": 500}

    def forward(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> Answer:
        """Ids are `frosty_<id>` outside, and plain inside."""
        size = {"Content-Length": str(len(inside(body)))} if body else {}
        status, kept, data = super().forward(method, inside(path.encode()).decode(), inside(body), {**headers, **size})
        return status, kept, re.sub(rb"(?<![\w:-])([0-9a-f]{32})(?!\w)", rb"frosty_\1", data)

    def let_in(self, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        if headers.get("Authorization") != f"Bearer {self.token}":
            self.fail("credentials", 401, "AuthenticationFailed", "The token has no workspace.")

    def fail(self, why: str, status: int, code: str, message: str) -> None:
        self.refuse(why, status, {"error": {"code": code, "message": message, "innerError": None}})

    def plain_path(self, path: str) -> str:
        if not path.startswith(self.workspace + "/api/2.0/"):
            self.fail("no such path", 404, "UserError", "No such route.")
        return path.removeprefix(self.workspace)

    def served(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> Answer:
        place = urlsplit(path).path
        asked = json.loads(body) if body.startswith(b"{") else {}
        if place.endswith("runs/search"):
            if "!=" in asked.get("filter", ""):
                self.fail("filter", 400, "UserError", "Operator != is not supported on tags")
            if any(order.split()[0] not in ("start_time", "end_time") for order in asked.get("order_by", ())):
                self.fail("order", 400, "UserError", "Cannot order by that")
        if place.endswith("runs/log-batch") and len(asked.get("metrics", ())) > 250:
            self.fail("batch", 400, "UserError", "Number of metrics is greater than the max number")
        if "log-inputs" in place or "logged-models" in place:
            self.fail("newer", 404, "UserError", "No such route.")
        return super().served(method, path, body, headers)

    def too_long(self, role: str, one: dict, most: int) -> None:
        said = f"The value of {role} {one['key']} exceeds the maximum length of {most} characters"
        self.fail(f"long {role}", 400, "UserError", said)

    def told(self, found: dict) -> bytes:
        found.setdefault("next_page_token", None)
        for run in found.get("runs", ()):
            run["info"].setdefault("end_time", None)
            run["data"].setdefault("metrics", None)
            run["inputs"] = None
        for thing in (
            *found.get("experiments", ()),
            *found.get("registered_models", ()),
            *found.get("model_versions", ()),
        ):
            for name in ("tags", "description", "aliases", "latest_versions"):
                thing.setdefault(name, None)
        return json.dumps(found).encode()


def inside(data: bytes) -> bytes:
    return re.sub(rb"frosty_([0-9a-f]{32})", rb"\1", data)


class SageMaker(Managed):
    """Each request is signed, body and all, and names the server that is meant."""

    secret = b"the secret key"
    arn = "arn:aws:sagemaker:eu-west-1:123456789012:mlflow-tracking-server/ours"

    def let_in(self, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        named = {name.lower(): value for name, value in headers.items()}
        signed = signature(self.secret, method, path, body, named.get("x-signed-at", ""))
        right = named.get("authorization") == f"AWS4-HMAC-SHA256 {signed}"
        if not right or named.get("x-mlflow-sm-tracking-server-arn") != self.arn:
            self.refuse("signature", 403, {"message": "The request signature we calculated does not match"})


def signature(secret: bytes, method: str, path: str, body: bytes, when: str) -> str:
    """Simpler than Amazon's, and over the same parts."""
    parts = [method, path, hashlib.sha256(body).hexdigest(), when]
    return hmac.new(secret, "\n".join(parts).encode(), "sha256").hexdigest()
