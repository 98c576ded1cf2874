"""What belongs to a server as a whole: workspaces, webhooks, its AI gateway (3.3 and later).

No secrets: no server tells them. A webhook is listed with its secret deciphered first, so that a server which was
started again with another key fails at all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mlmigrate.adapters.mlflow.objects import Row, Tree
from mlmigrate.adapters.mlflow.rest.listing import Listing, Site
from mlmigrate.adapters.mlflow.rest.things import dumped, experiment, numbers, texts, tree, truths
from mlmigrate.adapters.mlflow.rest.wire import ServerInfo
from mlmigrate.model import Loss

API = "api/3.0/mlflow"
GATEWAY = f"{API}/gateway"
WORKSPACES_SINCE = (3, 10)
MOST = 1000
Said = dict[str, Any]
_MADE = "created_at last_updated_at"
_BY = "created_by last_updated_by"


@dataclass(frozen=True, slots=True)
class Workspaces:
    """Workspaces, where the server has them switched on."""

    site: Site

    def trees(self) -> Iterator[Tree]:
        """All of them."""
        info = self.site.client.get(f"{API}/server-info", ServerInfo)
        if info.workspaces_enabled:
            for said in self.site.items(Listing(f"{API}/workspaces", "workspaces"), Said):
                yield tree(workspaces=[_workspace(said)])


@dataclass(frozen=True, slots=True)
class Webhooks:
    """Webhooks without their secrets."""

    site: Site

    def trees(self) -> Iterator[Tree]:
        """All of them."""
        listing = Listing("api/2.0/mlflow/webhooks", "webhooks", most=MOST)
        return map(_webhook, self.site.items(listing, Said))


@dataclass(frozen=True, slots=True)
class Gateway:
    """The gateway: models, endpoints, guardrails, budgets."""

    site: Site

    def models(self) -> Iterator[Tree]:
        """Model definitions; a secret is named by its id alone."""
        for said in self._all("model-definitions", "model_definitions"):
            row = texts(said, f"model_definition_id name secret_id provider model_name {_BY}") | numbers(said, _MADE)
            yield tree(model_definitions=[_told(row)])

    def endpoints(self, losses: list[Loss]) -> Iterator[Tree]:
        """Endpoints with their models, tags and bindings."""
        for said in self._all("endpoints", "endpoints"):
            endpoint = str(said["endpoint_id"])
            listing = Listing(f"{GATEWAY}/endpoints/bindings/list", "bindings", {"endpoint_id": endpoint})
            loss = Loss("", f"bindings of gateway endpoint {endpoint}", "")
            bound = self.site.take(losses, loss, self.site.all, listing, Said)
            yield _endpoint(said) | tree(endpoint_bindings=[_binding(one) for one in bound or ()])

    def guardrails(self, losses: list[Loss]) -> Iterator[Tree]:
        """Guardrails, with the endpoints that they guard."""
        guarding: dict[str, list[Row]] = {}
        names = {}
        for said in self._all("endpoints", "endpoints"):
            endpoint = str(said["endpoint_id"])
            names[said.get("name")] = endpoint
            listing = Listing(f"{GATEWAY}/guardrails/list-for-endpoint", "configs", {"endpoint_id": endpoint})
            loss = Loss("", f"guardrails of gateway endpoint {endpoint}", "")
            found = self.site.take(losses, loss, self.site.all, listing, Said)
            for one in found or ():
                guarding.setdefault(str(one["guardrail_id"]), []).append(_guard(one))
        for said in self._all("guardrails", "guardrails"):
            row = _guardrail(said)
            if said.get("action_endpoint_name") in names:
                row["action_endpoint_id"] = names[said["action_endpoint_name"]]
            yield tree(guardrails=[row], guardrail_configs=guarding.get(row["guardrail_id"], ()))

    def budgets(self) -> Iterator[Tree]:
        """Budget policies."""
        for said in self._all("budgets", "budget_policies"):
            named = "budget_policy_id budget_unit target_scope budget_action target_value"
            row = texts(said, f"{named} {_BY}") | numbers(said, _MADE)
            row |= {"budget_amount": float(said["budget_amount"]), "duration_unit": said["duration"]["unit"]}
            yield tree(budget_policies=[_told(row | {"duration_value": int(said["duration"]["value"])})])

    def _all(self, path: str, field: str) -> Iterator[Said]:
        return self.site.items(Listing(f"{GATEWAY}/{path}/list", field), Said)


def _told(row: Row) -> Row:
    """The row without the names of nobody, which a server gives for null."""
    return {name: value for name, value in row.items() if value != "" or not name.endswith("_by")}


def _workspace(said: Said) -> Row:
    row = texts(said, "name description default_artifact_root")
    archival = said.get("trace_archival_config") or {}
    for name, column in (("location", "trace_archival_location"), ("retention", "trace_archival_retention")):
        if isinstance(archival.get(name), str):
            row[column] = archival[name]
    return row


def _webhook(said: Said) -> Tree:
    key = texts(said, "webhook_id")
    row = key | texts(said, "name url description status") | numbers(said, "creation_timestamp last_updated_timestamp")
    events = [{**key, "entity": _word(one["entity"]), "action": _word(one["action"])} for one in said.get("events", ())]
    return tree(webhooks=[row], webhook_events=events)


def _word(name: object) -> str:
    """REGISTERED_MODEL, as protobuf says it, is registered_model in the database."""
    return str(name).lower()


def _endpoint(said: Said) -> Tree:
    key = texts(said, "endpoint_id")
    row = (
        texts(said, f"endpoint_id name routing_strategy {_BY}") | numbers(said, _MADE) | truths(said, "usage_tracking")
    )
    if said.get("experiment_id"):
        row["experiment_id"] = experiment(str(said["experiment_id"]))
    if said.get("fallback_config"):
        row["fallback_config_json"] = dumped(said["fallback_config"])
    return tree(
        endpoints=[_told(row)],
        endpoint_tags=[{**key, **texts(one, "key value")} for one in said.get("tags", ())],
        endpoint_model_mappings=[_mapping(one) for one in said.get("model_mappings", ())],
    )


def _mapping(said: Said) -> Row:
    row = texts(said, "mapping_id endpoint_id model_definition_id linkage_type created_by")
    return _told(row | numbers(said, "created_at fallback_order") | {"weight": float(said["weight"])})


def _binding(said: Said) -> Row:
    return _told(texts(said, f"endpoint_id resource_type resource_id display_name {_BY}") | numbers(said, _MADE))


def _guardrail(said: Said) -> Row:
    scorer = said["scorer"]
    row = texts(said, f"guardrail_id name stage action {_BY}") | numbers(said, _MADE)
    return _told(row | texts(scorer, "scorer_id") | numbers(scorer, "scorer_version"))


def _guard(said: Said) -> Row:
    return _told(texts(said, "endpoint_id guardrail_id created_by") | numbers(said, "execution_order created_at"))
