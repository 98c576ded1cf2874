"""Evaluation datasets of a server, with their records (3.4 and later, servers over a database)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import msgspec

from mlmigrate.adapters.mlflow.objects import Row, Tree
from mlmigrate.adapters.mlflow.rest.ahead import ahead
from mlmigrate.adapters.mlflow.rest.client import path_of
from mlmigrate.adapters.mlflow.rest.listing import Listing, Site
from mlmigrate.adapters.mlflow.rest.things import Text, Whole, dumped, known, tags, tree
from mlmigrate.errors import BadData
from mlmigrate.model import Loss

API = "api/3.0/mlflow/datasets"
MOST = 1000
WRAPPED = "mlflow_wrapped"  # outputs lie one deeper in the database
JSON_COLUMNS = ("inputs", "expectations", "tags", "source")


class WireDataset(msgspec.Struct, frozen=True, kw_only=True):
    """An evaluation dataset. `tags` is a JSON object."""

    dataset_id: str
    name: Text = None
    tags: Text = None
    schema: Text = None
    profile: Text = None
    digest: Text = None
    created_time: Whole = None
    last_update_time: Whole = None
    created_by: Text = None
    last_updated_by: Text = None


class RecordPage(msgspec.Struct, frozen=True):
    """A page of records, a JSON list in text."""

    records: str = "[]"
    next_page_token: str | None = None


class Experiments(msgspec.Struct, frozen=True):
    """The experiments that a dataset belongs to."""

    experiment_ids: list[str] = []


@dataclass(frozen=True, slots=True)
class Datasets:
    """The evaluation datasets of a server."""

    site: Site

    def heads(self) -> Iterator[Tree]:
        """The datasets without their records; when a record changes, so does its dataset's digest."""
        listing = Listing(f"{API}/search", "datasets", {"order_by": ["created_time ASC"]}, MOST, post=True)
        seen = set()
        for dataset in self.site.items(listing, WireDataset):
            if dataset.dataset_id not in seen:
                seen.add(dataset.dataset_id)
                yield _tree(dataset)

    def trees(self, losses: list[Loss], pool: Executor) -> Iterator[Tree]:
        """The datasets, whole."""
        yield from ahead(pool, self.heads(), lambda head: head | self._rest(head, losses))

    def _rest(self, head: Tree, losses: list[Loss]) -> Tree:
        row = head["evaluation_datasets"][0]
        key, named = row["dataset_id"], f"evaluation dataset {row.get('name')!r}"
        take, client = self.site.take, self.site.client
        path = f"{path_of(API, key)}/experiment-ids"
        belongs = take(losses, Loss("", f"experiments of {named}", ""), client.get, path, Experiments)
        records = take(losses, Loss("", f"records of {named}", ""), lambda: list(self._records(key)))
        found = belongs.experiment_ids if belongs is not None else []
        return tree(
            evaluation_dataset_records=records or (), entity_associations=[_association(key, one) for one in found]
        )

    def _records(self, id: str) -> Iterator[Row]:
        token, seen = "", set[str]()
        while True:
            ask = {"max_results": MOST} | ({"page_token": token} if token else {})
            page = self.site.client.get(f"{path_of(API, id)}/records", RecordPage, ask)
            yield from _rows(page.records, id)
            token = page.next_page_token or ""
            if not token:
                return
            if token in seen:
                raise BadData("the server goes round in circles over them")
            seen.add(token)


def _tree(dataset: WireDataset) -> Tree:
    row = known(
        dataset_id=dataset.dataset_id,
        name=dataset.name,
        schema=dataset.schema,
        profile=dataset.profile,
        digest=dataset.digest,
        created_time=dataset.created_time,
        last_update_time=dataset.last_update_time,
        created_by=dataset.created_by,
        last_updated_by=dataset.last_updated_by,
    )
    told = _object(dataset.tags) if isinstance(dataset.tags, str) else {}
    return tree(evaluation_datasets=[row], evaluation_dataset_tags=tags(told, dataset_id=dataset.dataset_id))


def _object(text: str) -> dict[str, str]:
    try:
        return msgspec.json.decode(text, type=dict[str, str])
    except ValueError as error:
        raise BadData("The server gave tags of an evaluation dataset that are none.") from error


def _rows(text: str, id: str) -> Iterator[Row]:
    try:
        yield from [_row(record, id) for record in json.loads(text)]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadData("the server gave something that is none") from error


def _row(record: Mapping[str, Any], id: str) -> Row:
    row = known(
        dataset_record_id=record["dataset_record_id"],
        dataset_id=id,
        source_id=record.get("source_id"),
        source_type=record.get("source_type"),
        created_time=record.get("created_time"),
        last_update_time=record.get("last_update_time"),
        created_by=record.get("created_by"),
        last_updated_by=record.get("last_updated_by"),
        # what makes the server take a record with the same inputs for the same
        input_hash=hashlib.sha256(json.dumps(record["inputs"], sort_keys=True).encode()).hexdigest(),
    )
    row |= {name: dumped(record[name]) for name in JSON_COLUMNS if record.get(name) is not None}
    if record.get("outputs") is not None:
        row["outputs"] = dumped({WRAPPED: record["outputs"]})
    return row


def _association(id: str, experiment: str) -> Row:
    return {
        "source_type": "evaluation_dataset",
        "source_id": id,
        "destination_type": "experiment",
        "destination_id": experiment,
    }
