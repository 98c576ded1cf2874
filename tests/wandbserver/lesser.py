"""Servers that are less able: what a strict gateway refuses, what an older server lacks, what is told as null.

plain   a request asks for one thing: an operation with several fields at its root, or with one field twice under other
        names, is refused; "status" says how
older   lacks what the SDK (0.31) itself asks for only where the server says that it has it, or leaves out; and exports
nulls   fields ("Run.user") that are told as null, whether or not the schema allows that
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLInputObjectType,
    GraphQLInterfaceType,
    GraphQLNonNull,
    GraphQLObjectType,
    GraphQLSchema,
    InlineFragmentNode,
    OperationDefinitionNode,
    SelectionSetNode,
)

# How a gateway may say it: some words of these mean something else where a server says them.
REFUSALS = {
    400: "Only one root field is permitted in an operation",
    200: "duplicate fields under aliases are not supported",
    403: "Forbidden by policy: batched operation",
    422: "operation has too many aliases",
}
# What the SDK 0.31 asks for where a feature of the server's allows it, or sends where it must ("a later server
# version", "added in server version 0.58", "server 0.77+" in the comments of its operations).
LACKS = (
    "Artifact.digestAlgorithm",
    "ArtifactCollectionConnection.totalCount",
    "ArtifactCollectionMembership.files",
    "ArtifactType.artifactCollections.filters",
    "ArtifactType.artifactCollections.order",
    "CreateArtifactInput.tags",
    "Entity.artifactCollections",
    "Entity.artifactMemberships",
    "Entity.xxhashDigestsEnabled",
    "FileConnection.totalCount",
    "LinkArtifactPayload.artifactMembership",
    "Mutation.markRunFilesUploaded",
    "Organization.featureFlags",
    "Organization.advancedRegistryFeatures",
    "Project.artifactCollections.filters",
    "Project.artifactCollections.order",
    "Project.sweeps.filters",
    "Run.logLines.useImprovedPagination",
    "Run.parquetHistory",
    "UpsertModelInput.artifactTypes",
    "UpsertSweepInput.scheduler",
    "UseArtifactInput.artifactEntityName",
    "UseArtifactInput.artifactProjectName",
)


@dataclass(frozen=True, slots=True)
class Lesser:
    """What a server does not do. `plain`: the status of its refusals; 0: it takes all."""

    plain: int = 0
    older: bool = False
    nulls: frozenset[str] = frozenset()

    def refusal(self, document: DocumentNode | None) -> str:
        """Why a strict gateway does not take this; "" where it does."""
        return REFUSALS[self.plain] if self.plain and document is not None and _several(document) else ""


def _several(document: DocumentNode) -> bool:
    fragments = {one.name.value: one for one in document.definitions if isinstance(one, FragmentDefinitionNode)}
    for one in document.definitions:
        if isinstance(one, OperationDefinitionNode):
            root = list(_fields(one.selection_set, fragments))
            if len(root) > 1 or any(_twice(field, fragments) for field in root):
                return True
    return False


def _twice(field: FieldNode, fragments: dict[str, FragmentDefinitionNode]) -> bool:
    """Whether a field is asked for twice, under other names, at any depth."""
    if field.selection_set is None:
        return False
    below = list(_fields(field.selection_set, fragments))
    called = {(one.name.value, one.alias.value if one.alias else one.name.value) for one in below}
    return len(called) > len({name for name, _ in called}) or any(_twice(one, fragments) for one in below)


def _fields(of: SelectionSetNode, fragments: dict[str, FragmentDefinitionNode]) -> Iterator[FieldNode]:
    for one in of.selections:
        if isinstance(one, FieldNode):
            yield one
        elif isinstance(one, InlineFragmentNode):
            yield from _fields(one.selection_set, fragments)
        elif isinstance(one, FragmentSpreadNode):
            yield from _fields(fragments[one.name.value].selection_set, fragments)


def lessened(schema: GraphQLSchema, lesser: Lesser) -> GraphQLSchema:
    """The schema without what an older server lacks, where nulls are allowed that are told."""
    for path in LACKS if lesser.older else ():
        kind, name, *argument = path.split(".")
        if argument:
            del _fields_of(schema, kind)[name].args[argument[0]]
        else:
            del _fields_of(schema, kind)[name]
    for path in lesser.nulls:
        kind, name = path.split(".")
        of = schema.type_map[kind]
        above = of.interfaces if isinstance(of, GraphQLObjectType) else ()
        for one in (kind, *(one.name for one in above if name in one.fields)):
            field = _fields_of(schema, one)[name]
            field.type = field.type.of_type if isinstance(field.type, GraphQLNonNull) else field.type
    return schema


def _fields_of(schema: GraphQLSchema, kind: str) -> dict[str, Any]:
    of = schema.type_map[kind]
    assert isinstance(of, GraphQLObjectType | GraphQLInterfaceType | GraphQLInputObjectType)
    return of.fields
