"""The fields that operations of ours ask a W&B server for, by its schema."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

from graphql import FieldNode, GraphQLInterfaceType, GraphQLObjectType, TypeInfo, TypeInfoVisitor, Visitor, parse, visit
from graphql import is_non_null_type as never_null

from wandbserver.graph import schema

SCHEMA = schema()


def texts(module: ModuleType) -> list[str]:
    """The operations of a module."""
    held = [text for name, text in vars(module).items() if name[0] != "_" and isinstance(text, str)]
    return [text for text in held if re.match(r"\s*(query|mutation) ", text)]


def nullable(operations: Sequence[str]) -> list[str]:
    """Each field that they ask for and that may be null, as Type.field; of an interface, that of each type that has it.

    Besides those that the schema here calls never null, for nobody has seen W&B's own, of what may be deleted.
    """
    found: set[str] = set()
    info = TypeInfo(SCHEMA)

    class Fields(Visitor):
        def enter_field(self, node: FieldNode, *_: Any) -> None:
            kind, name = info.get_parent_type(), node.name.value
            for one in _kinds(kind):
                if name[:2] != "__" and (not never_null(info.get_type()) or f"{one.name}.{name}" in DOUBTED):
                    found.add(f"{one.name}.{name}")

    for text in operations:
        visit(parse(text), TypeInfoVisitor(info, Fields()))
    return sorted(found)


DOUBTED = ("Artifact.artifactSequence", "Artifact.artifactType", "Artifact.aliases", "Artifact.tags", "File.directUrl",
           "FileConnection.edges", "RunConnection.edges", "RunEdge.node", "ParquetHistory.parquetUrls",
           "Run.createdAt", "ArtifactManifest.file")  # fmt: skip


def _kinds(kind: Any) -> Iterator[GraphQLObjectType]:
    yield from SCHEMA.get_possible_types(kind) if isinstance(kind, GraphQLInterfaceType) else (kind,)
