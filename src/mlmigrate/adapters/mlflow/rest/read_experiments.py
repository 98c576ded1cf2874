"""What belongs to single experiments of a server: scorers, label schemas, review queues, issues (3.4 and later).

Listing the label schemas of an experiment makes one there, unless its default one is there already.  So where that is
missing they are not listed: nobody has looked at them yet, and those that a queue names are asked for by id.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mlmigrate.adapters.mlflow.objects import Row, Tree
from mlmigrate.adapters.mlflow.rest.listing import Listing, Site
from mlmigrate.adapters.mlflow.rest.things import dumped, experiment, numbers, texts, tree, truths
from mlmigrate.errors import NotFound
from mlmigrate.model import Loss

API = "api/3.0/mlflow"
MOST = 100
DEFAULT_SCHEMA = "Feedback"
ONLINE = "ajax-api/3.0/mlflow/scorers/online-configs"
ONLINE_SINCE = (3, 8)
Said = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Scorers:
    """Scorers with all their versions."""

    site: Site

    def heads(self, of: str) -> Iterator[Tree]:
        """The scorers of an experiment, each with its newest version."""
        for said in self.site.items(Listing(f"{API}/scorers/list", "scorers", {"experiment_id": of}), Said):
            yield _scorer([said])

    def trees(self, of: str, losses: list[Loss]) -> Iterator[Tree]:
        """The scorers of an experiment, whole."""
        for head in self.heads(of):
            row = head["scorers"][0]
            ask = {"experiment_id": of, "name": row["scorer_name"]}
            listing = Listing(f"{API}/scorers/versions", "scorers", ask)
            loss = Loss("", f"versions of scorer {row['scorer_name']!r}", "", of)
            versions = self.site.take(losses, loss, self.site.all, listing, Said)
            yield (_scorer(versions) if versions else head) | self._online(row, of, losses)

    def _online(self, row: Row, of: str, losses: list[Loss]) -> Tree:
        if self.site.server.version < ONLINE_SINCE or "scorer_id" not in row:
            return {}
        listing = Listing(ONLINE, "configs", {"scorer_ids": [row["scorer_id"]]})
        loss = Loss("", f"online scoring of {row['scorer_name']!r}", "", of)
        found = self.site.take(losses, loss, self.site.all, listing, Said)
        return tree(online_scoring_configs=[_config(said) for said in found or ()])


@dataclass(frozen=True, slots=True)
class Reviews:
    """Review queues with their users, items and schemas."""

    site: Site

    def heads(self, of: str) -> Iterator[Tree]:
        """The queues of an experiment without their items."""
        listing = Listing(f"{API}/review-queues/list", "review_queues", {"experiment_id": of}, MOST)
        return map(_queue, self.site.items(listing, Said))

    def trees(self, of: str, losses: list[Loss]) -> Iterator[Tree]:
        """The queues of an experiment, whole."""
        for head in self.heads(of):
            queue = head["review_queues"][0]["queue_id"]
            listing = Listing(f"{API}/review-queues/items/list", "items", {"queue_id": queue}, MOST)
            loss = Loss("", f"items of review queue {queue}", "", of)
            items = self.site.take(losses, loss, self.site.all, listing, Said)
            yield head | tree(review_queue_items=[_item(said) for said in items or ()])


@dataclass(frozen=True, slots=True)
class Schemas:
    """Label schemas."""

    site: Site
    reviews: Reviews

    def trees(self, of: str, losses: list[Loss]) -> Iterator[Tree]:
        """The schemas of an experiment."""
        if self._listed(of):
            listing = Listing(f"{API}/label-schemas/list", "label_schemas", {"experiment_id": of}, MOST)
            yield from (tree(label_schemas=[_schema(said)]) for said in self.site.items(listing, Said))
            return
        named = {row["schema_id"] for queue in self.reviews.heads(of) for row in queue.get(_QUEUE_SCHEMAS, ())}
        for schema in sorted(named):
            loss = Loss("", f"label schema {schema}", "", of)
            path, ask = f"{API}/label-schemas/get", {"schema_id": schema}
            found = self.site.take(losses, loss, self.site.client.get, path, dict[str, Said], ask)
            if found:
                yield tree(label_schemas=[_schema(found["label_schema"])])

    def _listed(self, of: str) -> bool:
        """Whether listing them leaves the server as it is."""
        ask = {"experiment_id": of, "name": DEFAULT_SCHEMA}
        try:
            found = self.site.client.get(f"{API}/label-schemas/get-by-name", dict[str, Said], ask)
        except NotFound:
            return False
        return bool(found.get("label_schema", {}).get("is_default"))


@dataclass(frozen=True, slots=True)
class Issues:
    """Issues that were found in traces."""

    site: Site

    def trees(self, of: str) -> Iterator[Tree]:
        """The issues of an experiment."""
        listing = Listing(f"{API}/issues/search", "issues", {"experiment_id": of}, MOST, post=True)
        return (tree(issues=[_issue(said)]) for said in self.site.items(listing, Said))


_QUEUE_SCHEMAS = "review_queue_label_schemas"


def _scorer(versions: list[Said]) -> Tree:
    first = versions[0]
    key = texts(first, "scorer_id")
    root = {"experiment_id": experiment(str(first["experiment_id"])), **texts(first, "scorer_name"), **key}
    rows = [key | texts(one, "serialized_scorer") | numbers(one, "scorer_version creation_time") for one in versions]
    return tree(scorers=[root], scorer_versions=rows)


def _config(said: Said) -> Row:
    row = texts(said, "online_scoring_config_id scorer_id filter_string")
    row["sample_rate"] = float(said["sample_rate"])
    return row | {"experiment_id": experiment(str(said["experiment_id"]))}


def _of(said: Said) -> Row:
    return {"experiment_id": experiment(str(said["experiment_id"]))}


def _queue(said: Said) -> Tree:
    key = texts(said, "queue_id")
    row = _of(said) | key | texts(said, "name created_by") | numbers(said, "creation_time_ms last_update_time_ms")
    row |= {"queue_type": str(said["queue_type"]).lower(), "name_key": str(said["name"]).lower()}
    return tree(
        review_queues=[row],
        review_queue_users=[{**key, "user_id": user} for user in said.get("users", ())],
        review_queue_label_schemas=[{**key, "schema_id": schema} for schema in said.get("schema_ids", ())],
    )


def _item(said: Said) -> Row:
    row = texts(said, "queue_id item_id completed_by")
    row |= numbers(said, "completed_time_ms creation_time_ms last_update_time_ms")
    return row | {"item_type": str(said["item_type"]).lower(), "status": str(said["status"]).lower()}


def _schema(said: Said) -> Row:
    row = _of(said) | texts(said, "schema_id name instruction created_by") | truths(said, "enable_comment is_default")
    kind, given = next(iter(said["input"].items()))
    row |= {"type": str(said["type"]).lower(), "input_type": kind, "input_config": dumped(_config_of(kind, given))}
    times = numbers(said, "created_at last_updated_at")
    return row | {_TIMES[name]: value for name, value in times.items()}


_TIMES = {"created_at": "created_time", "last_updated_at": "last_update_time"}
_INPUTS = {
    "pass_fail": ("positive_label", "negative_label"),
    "categorical": ("options", "multi_select"),
    "numeric": ("min_value", "max_value"),
    "text": ("max_length",),
}


def _config_of(kind: str, given: Mapping[str, Any]) -> Mapping[str, Any]:
    """The input as the database has it: all that it can say, in its order."""
    names = _INPUTS.get(kind)
    return given if names is None else {name: given.get(name) for name in names}


def _issue(said: Said) -> Row:
    row = _of(said) | texts(said, "issue_id name description status severity source_run_id created_by")
    row |= numbers(said, "created_timestamp last_updated_timestamp")
    return row | {name: dumped(said[name]) for name in ("root_causes", "categories") if said.get(name)}
