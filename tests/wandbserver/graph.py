"""GraphQL: operations are parsed and validated against schema.graphql once for each text, then executed."""

from __future__ import annotations

import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graphql import (
    DocumentNode,
    GraphQLError,
    GraphQLSchema,
    OperationDefinitionNode,
    build_schema,
    execute_sync,
    parse,
    validate,
)
from graphql.language import FieldNode

from .lesser import Lesser, lessened
from .mutations import RUNS
from .nodes import (
    ArtifactNode,
    EntityNode,
    OrganizationNode,
    PortfolioNode,
    ProjectNode,
    RunNode,
    UserNode,
    World,
    collection_node,
    connection,
    plain_edges,
)
from .store import ENTITY, ORGANIZATION, Refused
from .versions import ARTIFACTS

SCHEMA_FILE = Path(__file__).with_name("schema.graphql")
TYPES = {RunNode: "Run", UserNode: "User", PortfolioNode: "ArtifactPortfolio"}


@dataclass(frozen=True, slots=True)
class Operation:
    """A text that was parsed: the names by which faults find it, and what is wrong with it."""

    document: DocumentNode | None
    names: tuple[str, ...]
    errors: tuple[GraphQLError, ...]


def schema() -> GraphQLSchema:
    built = build_schema(SCHEMA_FILE.read_text())
    for name in ("ArtifactCollection", "Creator"):
        built.type_map[name].resolve_type = lambda value, info, kind: TYPES.get(type(value), "ArtifactSequence")  # type: ignore[attr-defined]
    return built


class Graph:
    """Answers GraphQL requests of one server."""

    def __init__(self, world: World, lesser: Lesser) -> None:
        self.world = world
        self.lesser = lesser
        self.schema = lessened(schema(), lesser)
        self.operations: dict[str, Operation] = {}
        self.bugs: list[str] = []

    def operation(self, text: str) -> Operation:
        if text not in self.operations:
            self.operations[text] = self._parsed(text)
        return self.operations[text]

    def _parsed(self, text: str) -> Operation:
        try:
            document = parse(text)
        except GraphQLError as error:
            return Operation(None, (), (error,))
        names = []
        for one in document.definitions:
            if isinstance(one, OperationDefinitionNode):
                names += [one.name.value] if one.name else []
                names += [field.name.value for field in one.selection_set.selections if isinstance(field, FieldNode)]
        return Operation(document, tuple(names), tuple(validate(self.schema, document)))

    def answer(self, operation: Operation, variables: dict[str, Any], name: str | None) -> tuple[int, dict[str, Any]]:
        """The HTTP status and the JSON of the answer."""
        if refusal := self.lesser.refusal(operation.document):
            return self.lesser.plain, {"errors": [{"message": refusal}], "data": None}
        if operation.errors or operation.document is None:
            return 400, {"errors": [{"message": error.message} for error in operation.errors]}
        result = execute_sync(
            self.schema,
            operation.document,
            Root(self.world),
            None,
            variables,
            name or None,
            field_resolver=self._resolve,
        )
        if not result.errors:
            return 200, {"data": result.data}
        told = [{"message": error.message, "path": error.path or []} for error in result.errors]
        return max(self._status(error) for error in result.errors), {"errors": told, "data": result.data}

    def _status(self, error: GraphQLError) -> int:
        cause = error.original_error
        if isinstance(cause, Refused):
            return cause.status
        if cause is None or isinstance(cause, GraphQLError):  # variables that do not fit
            return 400
        self.bugs.append("".join(traceback.format_exception(cause)))
        sys.stderr.write(self.bugs[-1])
        return 500

    def _resolve(self, source: Any, info: Any, **given: Any) -> Any:
        """As GraphQL's own, but a name that is missing is a mistake, not null."""
        value = source.get(info.field_name) if isinstance(source, dict) else getattr(source, info.field_name)
        found = value(info, **given) if callable(value) else value
        return found if f"{info.parent_type.name}.{info.field_name}" not in self.lesser.nulls else None


class Root:
    """Queries, and mutations by name."""

    def __init__(self, world: World) -> None:
        self.world = world

    def __getattr__(self, name: str) -> Any:
        change = RUNS.get(name) or ARTIFACTS[name]
        return lambda info, **given: change(self.world, given["input"])

    def viewer(self, info: Any) -> UserNode:
        return UserNode(self.world, None)

    def users(self, info: Any, query: str = "") -> dict[str, Any]:
        return plain_edges([self.viewer(info)])

    def serverInfo(self, info: Any) -> dict[str, Any]:  # noqa: N802
        features = [{"name": name, "isEnabled": on} for name, on in self.world.store.features.items()]
        cli = {"max_cli_version": "99.0.0", "min_cli_version": "0.0.1"}
        return {"features": features, "cliVersionInfo": cli, "latestLocalVersionInfo": None}

    def entity(self, info: Any, name: str | None = None) -> EntityNode | None:
        return EntityNode(self.world, name or ENTITY) if (name or ENTITY) in self.world.store.entities else None

    def organization(self, info: Any, name: str) -> OrganizationNode | None:
        return OrganizationNode(self.world, name) if name == ORGANIZATION else None

    def project(self, info: Any, name: str | None = None, entityName: str | None = None) -> ProjectNode | None:  # noqa: N803
        found = self.world.store.project(entityName, name)
        return ProjectNode(self.world, found) if found else None

    model = project

    def models(
        self,
        info: Any,
        entityName: str | None = None,  # noqa: N803
        after: str | None = None,
        first: int | None = None,
    ) -> dict[str, Any]:
        self.world.store.project(entityName, None)
        held = list(self.world.store.entities.get(entityName or ENTITY, {}).values())
        return connection(held, lambda one: ProjectNode(self.world, one), after, first)

    def artifact(self, info: Any, id: str) -> ArtifactNode | None:
        found = self.world.store.artifacts.get(id)
        return ArtifactNode(self.world, found) if found else None

    def artifactCollection(self, info: Any, id: str) -> Any:  # noqa: N802
        found = self.world.store.collections.get(id)
        return collection_node(self.world, found) if found else None

    def clientIDMapping(self, info: Any, clientID: str) -> dict[str, str] | None:  # noqa: N802, N803
        found = self.world.store.clients.get(clientID)
        return {"serverID": found.id} if found else None
