"""Label schemas, review queues, issues and webhooks written to a server; what its API cannot take is said.

None of them has tags, so each is ours when it is what we would write: schemas and queues by their names,
which are an experiment's own, issues and webhooks by what they hold.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

from mlmigrate.adapters.base import Change, Holding
from mlmigrate.adapters.mlflow import conflicts
from mlmigrate.adapters.mlflow.objects import Row, Tree, tree_of
from mlmigrate.adapters.mlflow.rest.client import Client
from mlmigrate.adapters.mlflow.rest.homes import ISSUE_TAG
from mlmigrate.adapters.mlflow.rest.wire import Anything
from mlmigrate.errors import Conflict, MigrateError, NotFound, Unavailable
from mlmigrate.model import Artifact, Record

if TYPE_CHECKING:
    from mlmigrate.adapters.mlflow.rest.objects import Frame

API = "api/3.0/mlflow"
WEBHOOKS = "api/2.0/mlflow/webhooks"
SCHEMA, QUEUE, ISSUE, WEBHOOK = "mlflow.label_schema", "mlflow.review_queue", "mlflow.issue", "mlflow.webhook"
SINCE = {SCHEMA: (3, 14), QUEUE: (3, 14), ISSUE: (3, 11), WEBHOOK: (3, 3)}
WORDS = {SCHEMA: "label schemas", QUEUE: "review queues", ISSUE: "issues", WEBHOOK: "webhooks"}
ITEMS = 100  # of a queue in one call
PAGE = 100
ITS_OWN = "the server sets its own"
NEW_ID = "they have new ids"
Said = dict[str, Any]

_CHANGES = {
    SCHEMA: (
        Change("label_schemas.schema_id", NEW_ID, lost=False, kept=True),
        *(Change(f"label_schemas.{one}", ITS_OWN) for one in ("created_by", "created_time", "last_update_time")),
    ),
    QUEUE: (
        Change("review_queues.queue_id", NEW_ID, lost=False, kept=True),
        *(
            Change(f"{table}.queue_id", NEW_ID, lost=False)
            for table in ("review_queue_users", "review_queue_items", "review_queue_label_schemas")
        ),
        Change("review_queue_label_schemas.schema_id", NEW_ID, lost=False, kept=True),
        Change("review_queues.name_key", "the server makes it again", lost=False),
        *(Change(f"review_queues.{one}", ITS_OWN) for one in ("created_by", "creation_time_ms", "last_update_time_ms")),
        *(
            Change(f"review_queue_items.{one}", ITS_OWN)
            for one in ("completed_time_ms", "creation_time_ms", "last_update_time_ms")
        ),
    ),
    ISSUE: (
        Change("issues.issue_id", NEW_ID, lost=False, kept=True),
        *(Change(f"issues.{one}", ITS_OWN) for one in ("created_timestamp", "last_updated_timestamp")),
    ),
    WEBHOOK: (
        Change("webhooks.webhook_id", NEW_ID, lost=False, kept=True),
        Change("webhook_events.webhook_id", NEW_ID, lost=False),
        Change("webhooks.secret", "secrets are not carried: set a new one before it is enabled"),
        Change("webhooks.status", "no webhook is enabled on arrival", becomes="DISABLED", unless=("DISABLED",)),
        *(Change(f"webhooks.{one}", ITS_OWN) for one in ("creation_timestamp", "last_updated_timestamp")),
    ),
}
_LOST = {
    "mlflow.workspace": "a server's workspaces are set up by who runs it; objects go into the one that is asked for",
    "mlflow.gateway_model": "MLflow's API makes none without its secret, and secrets are not carried",
    "mlflow.gateway_endpoint": "its models need their secrets, and secrets are not carried",
    "mlflow.guardrail": "it guards a gateway endpoint, which is not carried",
    "mlflow.budget_policy": "it is about a gateway's spending, which is not carried",
    "mlflow.mcp_server": "it is kept in an archive or written to a database; by the API it is not written",
    "mlflow.job": "MLflow's API starts jobs, and takes none that have run",
}


def holdings(version: tuple[int, int]) -> tuple[Holding, ...]:
    """How a server of this version holds these kinds."""
    shown = ".".join(map(str, version))
    held = [
        Holding(kind, "mapped", changes=changes)
        if version >= SINCE[kind]
        else Holding(kind, "lost", f"MLflow {shown} knows no {WORDS[kind]}")
        for kind, changes in _CHANGES.items()
    ]
    return (*held, *(Holding(kind, "lost", because) for kind, because in _LOST.items()))


class OtherWriter:
    """Writes each as it comes: there are few of them, and they refer to each other."""

    kinds = (SCHEMA, QUEUE, ISSUE, WEBHOOK, *_LOST)
    owner = ""
    raw = False

    def __init__(self, frame: Frame) -> None:
        self._frame, self._client = frame, frame.client
        self._there: dict[str, Counter[str]] = {}  # what was there before us, by where

    def keep(self, record: Record) -> None:
        """Writes one."""
        write: Mapping[str, Callable[[Record, Tree], None]] = {
            SCHEMA: self._schema,
            QUEUE: self._queue,
            ISSUE: self._issue,
            WEBHOOK: self._webhook,
        }
        if record.kind not in write:
            return
        try:
            write[record.kind](record, tree_of(record))
        except (Unavailable, Conflict):
            raise
        except MigrateError as error:
            self._lose(record, "it", error.message)

    def put(self, artifact: Artifact) -> None:
        """Nothing: none of them has files."""

    def commit(self) -> None:
        """Nothing is left to do."""

    def _lose(self, record: Record, what: str, because: str) -> None:
        self._frame.lose(f"{record.kind} {record.id!r}: {what}", because, record.owner)

    def _schemas(self) -> dict[str, str]:
        """The source's ids of label schemas -> those here; kept for the queues, which come in another pack."""
        return self._frame.known.ids.setdefault("label_schema", {})

    def _schema(self, record: Record, tree: Tree) -> None:
        row = tree["label_schemas"][0]
        experiment = self._frame.home(record.owner)
        wanted = _schema_body(row, experiment)
        for n in count(1):
            name = row["name"] if n == 1 else f"{row['name']}-{n}"
            there = self._named("label-schemas", "label_schema", experiment, name)
            if there is None and row.get("is_default"):
                there = self._default(experiment, name)
            same = there is not None and _same_schema(there, wanted)
            if there is None:
                there = self._made("label-schemas", "label_schema", {**wanted, "name": name})
            elif not same and not self._joins(record, "label schema", name):
                continue
            self._schemas()[record.id] = str(there["schema_id"])
            if name != row["name"]:
                self._lose(record, "its name", f"{conflicts.THERE}; ours is {name!r}")
            return

    def _default(self, experiment: str, name: str) -> Said | None:
        """The schema that a server makes for an experiment when its schemas are listed for the first time."""
        self._client.get(f"{API}/label-schemas/list", Anything, {"experiment_id": experiment})
        return self._named("label-schemas", "label_schema", experiment, name)

    def _joins(self, record: Record, what: str, name: str) -> bool:
        """Whether ours is what is there under its name; else it gets another. Raises Conflict."""
        policy = self._frame.settings.on_conflict
        if policy == "fail":
            raise Conflict(f"The target has a {what} {name!r} already, and it is another.")
        if policy == "merge":
            self._lose(record, "it", f"{conflicts.THERE}, and it is left as it is")
        return policy == "merge"

    def _named(self, path: str, word: str, experiment: str, name: str) -> Said | None:
        return named(self._client, path, word, experiment, name)

    def _made(self, path: str, word: str, body: Said) -> Said:
        """Made once: two of a name cannot be, so a doubtful answer is told by the next."""
        tries = count()

        def attempt() -> Said:
            if next(tries) > 0 and (there := self._named(path, word, body["experiment_id"], body["name"])):
                return there
            return self._client.once("POST", f"{API}/{path}/create", dict[str, Said], None, body)[word]

        return self._client.again.do(f"{word} {body['name']}", attempt)

    def _queue(self, record: Record, tree: Tree) -> None:
        row = tree["review_queues"][0]
        experiment = self._frame.home(record.owner)
        schemas = [str(one["schema_id"]) for one in tree.get("review_queue_label_schemas", ())]
        known = [self._schemas()[schema] for schema in schemas if schema in self._schemas()]
        if len(known) < len(schemas):
            self._lose(record, "some of its label schemas", "they are not there")
        users = [one["user_id"] for one in tree.get("review_queue_users", ())]
        queue = str(self._queue_there(row, experiment, users, known)["queue_id"])
        self._items(record, queue, tree.get("review_queue_items", ()))

    def _queue_there(self, row: Row, experiment: str, users: list[str], schemas: list[str]) -> Said:
        """The queue of this name, made or joined: users and schemas that it has not are added."""
        if row["queue_type"] == "user":
            body = {"experiment_id": experiment, "user": row["name"]}
            found = self._client.post(f"{API}/review-queues/get-or-create-user", dict[str, Said], body)
            return found["review_queue"]
        there = self._named("review-queues", "review_queue", experiment, row["name"])
        if there is None:
            body = {"experiment_id": experiment, "name": row["name"], "queue_type": row["queue_type"].upper()}
            return self._made("review-queues", "review_queue", {**body, "users": users, "schema_ids": schemas})
        has = there.get("users", []), there.get("schema_ids", [])
        more = [one for one in users if one not in has[0]], [one for one in schemas if one not in has[1]]
        if any(more):
            body = {"queue_id": there["queue_id"], "update_users": True, "update_schema_ids": True}
            body |= {"users": [*has[0], *more[0]], "schema_ids": [*has[1], *more[1]]}
            self._client.post(f"{API}/review-queues/update", Anything, body)
        return there

    def _items(self, record: Record, queue: str, rows: Sequence[Row]) -> None:
        """Adding what is there changes nothing; a status is set where it is not that of a new one."""
        for start in range(0, len(rows), ITEMS):
            some = [row["item_id"] for row in rows[start : start + ITEMS]]
            body = {"queue_id": queue, "item_type": "TRACE", "item_ids": some}
            self._client.post(f"{API}/review-queues/items/add", Anything, body)
        for row in rows:
            if row["status"] == "pending":
                continue
            said = {"queue_id": queue, "item_id": row["item_id"], "status": row["status"].upper()}
            said |= {"completed_by": row["completed_by"]} if row.get("completed_by") else {}
            try:
                self._client.post(f"{API}/review-queues/items/set-status", Anything, said)
            except Unavailable:
                raise
            except MigrateError as error:
                self._lose(record, f"the status of {row['item_id']}", error.message)

    def _issue(self, record: Record, tree: Tree) -> None:
        experiment = self._frame.home(record.owner)
        row = tree["issues"][0]
        run = row.get("source_run_id")
        if run and run not in self._frame.known.ids["run"].values():
            self._lose(record, f"the run that found it ({run})", "it was not carried")
            del row["source_run_id"]
        body = issue_body(tree, experiment)
        at = f"issues of {experiment}"
        self._once(at, issue_key(body), lambda: map(issue_key, issues(self._client, experiment)), f"{API}/issues", body)
        self._note_issue(record, experiment, issue_key(body))

    def _note_issue(self, record: Record, experiment: str, key: str) -> None:
        """Assessments of traces name issues by their ids, so it is kept which has become which."""
        here = next((one["issue_id"] for one in issues(self._client, experiment) if issue_key(one) == key), None)
        if here is not None:
            self._frame.known.ids.setdefault("issue", {})[record.id] = here
            name = ISSUE_TAG + hashlib.blake2b(record.id.encode(), digest_size=8).hexdigest()
            body = {"experiment_id": experiment, "key": name, "value": json.dumps([record.id, here])}
            self._client.post("api/2.0/mlflow/experiments/set-experiment-tag", Anything, body)

    def _webhook(self, record: Record, tree: Tree) -> None:
        row = tree["webhooks"][0]
        if row.get("deleted_timestamp") is not None:
            self._lose(record, "it", "it is deleted, and MLflow's API shows no deleted webhook")
            return
        body = webhook_body(tree)
        self._once("webhooks", webhook_key(body), lambda: map(webhook_key, webhooks(self._client)), WEBHOOKS, body)

    def _once(self, at: str, key: str, there: Callable[[], Iterator[str]], path: str, body: Said) -> None:
        """Makes what is not there; of several that hold the same, as many as there are in the source."""
        if at not in self._there:
            self._there[at] = Counter(there())
        if self._there[at][key] > 0:
            self._there[at][key] -= 1
            return
        before = Counter(there())[key]
        tries = count()

        def attempt() -> None:
            if next(tries) == 0 or Counter(there())[key] == before:
                self._client.once("POST", path, Anything, None, body)

        self._client.again.do(path, attempt)


def _schema_body(row: Row, experiment: str) -> Said:
    given = json.loads(row["input_config"])
    body: Said = {
        "experiment_id": experiment,
        "name": row["name"],
        "type": row["type"].upper(),
        "input": {row["input_type"]: {name: value for name, value in given.items() if value is not None}},
    }
    body |= {"instruction": row["instruction"]} if row.get("instruction") is not None else {}
    return body | ({"enable_comment": row["enable_comment"]} if row.get("enable_comment") else {})


def _same_schema(there: Said, wanted: Said) -> bool:
    """Whether two schemas ask the same; what is false or empty may be left out."""
    names = ("type", "input", "instruction", "enable_comment")
    return all((there.get(name) or None) == (wanted.get(name) or None) for name in names)


def named(client: Client, path: str, word: str, experiment: str, name: str) -> Said | None:
    """The schema or queue of this name."""
    ask = {"experiment_id": experiment, "name": name}
    try:
        found = client.get(f"{API}/{path}/get-by-name", dict[str, Said], ask)
    except NotFound:
        return None
    return found.get(word)


def issues(client: Client, experiment: str) -> Iterator[Said]:
    """The issues of an experiment."""
    token = ""
    while True:
        body = {"experiment_id": experiment, "max_results": PAGE} | ({"page_token": token} if token else {})
        page = client.post(f"{API}/issues/search", Said, body)
        yield from page.get("issues", ())
        token = page.get("next_page_token", "")
        if not token:
            return


def webhooks(client: Client) -> Iterator[Said]:
    """The webhooks of a server."""
    token = ""
    while True:
        page = client.get(WEBHOOKS, Said, {"page_token": token} if token else {})
        yield from page.get("webhooks", ())
        token = page.get("next_page_token", "")
        if not token:
            return


def webhook_body(tree: Tree) -> Said:
    """A webhook as the call that makes one takes it; never enabled."""
    row = tree["webhooks"][0]
    events = [
        {"entity": one["entity"].upper(), "action": one["action"].upper()} for one in tree.get("webhook_events", ())
    ]
    body = {"name": row["name"], "url": row["url"], "events": events, "status": "DISABLED"}
    return body | ({"description": row["description"]} if row.get("description") else {})


def issue_body(tree: Tree, experiment: str) -> Said:
    """An issue as the call that makes one takes it."""
    row = tree["issues"][0]
    body = {name: row[name] for name in ("name", "description", "status", "severity", "created_by") if row.get(name)}
    body |= {"source_run_id": row["source_run_id"]} if row.get("source_run_id") else {}
    for name in ("root_causes", "categories"):
        if row.get(name):
            body[name] = json.loads(row[name])
    if not row.get("categories") and tree.get("issue_categories"):
        body["categories"] = [one["category"] for one in tree["issue_categories"] if "category" in one]
    return body | {"experiment_id": experiment, "description": row.get("description") or ""}


def issue_key(said: Said) -> str:
    """What tells one issue of an experiment from another."""
    return json.dumps([said.get(name) or "" for name in ("name", "description", "source_run_id")])


def webhook_key(said: Said) -> str:
    """What tells one webhook from another."""
    events = sorted(f"{one['entity']}.{one['action']}" for one in said.get("events", ()))
    return json.dumps([said.get("name"), said.get("url"), events])
