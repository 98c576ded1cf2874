"""The contract server's schema takes what the SDK says, holds nothing that it never says, and takes what we say."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from graphql import (
    DocumentNode,
    GraphQLError,
    GraphQLInputObjectType,
    GraphQLInterfaceType,
    GraphQLObjectType,
    OperationDefinitionNode,
    TypeInfo,
    TypeInfoVisitor,
    Visitor,
    get_named_type,
    parse,
    validate,
    visit,
)

import mlmigrate.adapters.wandb.api as ours
import wandbsdk
from wandbserver.graph import schema

SCHEMA = schema()
GENERATED = ("apis/_generated", "sdk/artifacts/_generated", "sdk/internal/_generated")
WRITTEN = ("runs", "files", "api", "summary", "reports", "sweeps", "projects")
# what the SDK does with W&B that no migration needs: teams, members, keys, launch, agents, charts, rewinding
OTHERS = re.compile(
    r"GetSweepAgent|GetAgentRuns|GetTeamEntity|CreateTeam|Invite|ServiceAccount|CreateUser|ApiKey|"
    r"RenameRegistry|DeleteRegistry|Registry(User|Team)|RegistryMembers|RegistryRole|EnqueueSweepRun|CreateAgent|"
    r"Heartbeat|CustomChart|ResourceConfig|RunQueue|RewindRun"
)
# texts that the SDK puts together as it runs (test_contract_sdk.py sees them), and two of its repository's own
# (ServerInfo, ArtifactFileURLs), which the linker takes out of its binary
TEMPLATED = {
    ("Run", "events"),
    ("Run", "events", "samples"),
    ("Sweep", "project"),
    ("DeleteRunInput", "deleteArtifacts"),
    ("UpsertSweepInput", "launchScheduler"),
    ("UpsertSweepInput", "templateVariableValues"),
    ("UseArtifactInput", "artifactEntityName"),
    ("UseArtifactInput", "artifactProjectName"),
    *(("ServerInfo", name) for name in ("cliVersionInfo", "latestLocalVersionInfo")),
    *(("LatestLocalVersionInfo", name) for name in ("outOfDate", "latestVersionString", "versionOnThisInstanceString")),
    ("Artifact", "files"),
    *(("Artifact", "files", name) for name in ("names", "after", "first")),
}


def package(version: str) -> Path:
    """Where this version of the SDK lies."""
    return next((wandbsdk.environment(version).parent / "lib").glob("python*/site-packages/wandb"))


@cache
def texts(version: str) -> tuple[str, ...]:
    """The operations in the SDK's Python files and in its binary."""
    home = package(version)
    found = [text for folder in GENERATED for _, text in quoted(home / folder / "operations.py")]
    for name in WRITTEN:
        found += whole(list(quoted(home / "apis" / "public" / f"{name}.py")))
    core = (home / "bin" / "wandb-core").read_bytes()
    pattern = rb"\n(?:query|mutation) \w+[^\x00]{0,4000}?\n}\n(?:fragment \w+ on[^\x00]{0,3000}?\n}\n)*"
    return (*found, *(match.decode() for match in re.findall(pattern, core)))


def quoted(file: Path) -> Iterator[tuple[str, str]]:
    """The long texts of a Python file, and what stands before each (f or nothing)."""
    yield from re.findall(r'(f?)"""(.*?)"""', file.read_text(), re.DOTALL)


def whole(found: list[tuple[str, str]]) -> Iterator[str]:
    """The operations among these, with the fragments that they name."""
    fragments = {match[1]: text for _, text in found if (match := re.match(r"\s*fragment (\w+) on", text))}
    for kind, text in found:
        if not re.match(r"\s*(#graphql)?\s*(query|mutation) \w+", text):
            continue
        plain = text.replace("{{", "{").replace("}}", "}") if kind or "{{" in text else text
        names = ("RunFragment", "LightweightRunFragment") if "{fragment_name}" in plain else ("",)
        for name in names:
            filled = re.sub(r"\{\w*\}", "", plain.replace("{fragment_name}", name))
            used = [fragments[one] for one in re.findall(r"\.\.\.(\w+)", filled) if one in fragments]
            yield "\n".join([filled, *used])


def parsed(version: str) -> Iterator[tuple[str, DocumentNode]]:
    """Each operation with its name; what the SDK puts together as it runs is no text yet."""
    for text in texts(version):
        try:
            document = parse(text)
        except GraphQLError:
            continue
        for one in document.definitions:
            if isinstance(one, OperationDefinitionNode) and one.name is not None:
                yield one.name.value, document


@pytest.mark.slow
@pytest.mark.parametrize("version", wandbsdk.VERSIONS)
def test_what_the_sdk_says_fits_the_schema(version):
    names, wrong = set(), {}
    for name, document in parsed(version):
        names.add(name)
        errors = [error.message for error in validate(SCHEMA, document)]
        if errors and not OTHERS.search(name) and "_PROJECT_QUERY_" not in str(errors):
            wrong[name] = errors
    assert wrong == {}
    assert {"UpsertBucket", "Runs", "HistoryPage", "CreateArtifact", "GetProjects", "RunFiles"} <= names


class Used(Visitor):
    """Notes which fields, arguments and input fields a document asks for."""

    def __init__(self, info: TypeInfo) -> None:
        super().__init__()
        self.info = info
        self.found: set[tuple[str, ...]] = set()
        self.inputs: set[str] = set()

    def enter_field(self, node, *_):
        parent = self.info.get_parent_type()
        if parent and self.info.get_field_def():
            self.found.add((parent.name, node.name.value))
            self.found |= {(parent.name, node.name.value, argument.name.value) for argument in node.arguments}

    def enter_object_field(self, node, *_):
        parent = get_named_type(self.info.get_parent_input_type())
        if parent:
            self.found.add((parent.name, node.name.value))

    def enter_variable_definition(self, *_):
        given = get_named_type(self.info.get_input_type())
        if isinstance(given, GraphQLInputObjectType):
            self.inputs.add(given.name)


def asked() -> set[tuple[str, ...]]:
    """All that any version asks for; of inputs given as one variable, the fields whose names stand in the SDK."""
    info = TypeInfo(SCHEMA)
    used = Used(info)
    names = b""
    for version in wandbsdk.VERSIONS:
        for _, document in parsed(version):
            visit(document, TypeInfoVisitor(info, used))
        files = [package(version) / folder / "input_types.py" for folder in GENERATED[:2]]
        names += b"".join(file.read_bytes() for file in (*files, package(version) / "bin" / "wandb-core"))
    left = list(used.inputs)
    while left:
        kind = SCHEMA.type_map[left.pop()]
        for name, field in kind.fields.items():
            if (kind.name, name) not in used.found and (f'"{name}"'.encode() in names or f" {name}:".encode() in names):
                used.found.add((kind.name, name))
            inner = get_named_type(field.type)
            if isinstance(inner, GraphQLInputObjectType) and inner.name not in used.inputs:
                used.inputs.add(inner.name)
                left.append(inner.name)
    return used.found


@pytest.mark.slow
def test_the_schema_holds_nothing_that_the_sdk_never_asks_for():
    found, held = asked(), set()
    for name, kind in SCHEMA.type_map.items():
        if name.startswith("__") or not isinstance(
            kind, GraphQLObjectType | GraphQLInterfaceType | GraphQLInputObjectType
        ):
            continue
        for field, given in kind.fields.items():
            shared = [one.name for one in getattr(kind, "interfaces", ()) if field in one.fields]
            if not shared:  # else it counts where the interface has it
                held |= {(name, field), *((name, field, argument) for argument in getattr(given, "args", ()))}
    assert held - found - TEMPLATED == set()


def spoken() -> dict[str, str]:
    """Our own operations, by where they stand; of those that are put together, what that gives."""
    found = {}
    for module in pkgutil.iter_modules(ours.__path__):
        held = vars(importlib.import_module(f"{ours.__name__}.{module.name}"))
        for name, text in held.items():
            if isinstance(text, str) and re.match(r"\s*(query|mutation) \w", text) and "%" not in text:
                found[f"{module.name}.{name}"] = text
    operations, writes = (importlib.import_module(f"{ours.__name__}.{name}") for name in ("operations", "writes"))
    found["read_run"] = operations.read_run(operations.PARTS)
    return found | {"look_at": writes.look_at(3), "stamp_all": writes.stamp_all(3)}


def test_what_we_say_fits_the_schema():
    said = spoken()
    wrong = {name: [error.message for error in validate(SCHEMA, parse(text))] for name, text in said.items()}
    assert {name: errors for name, errors in wrong.items() if errors} == {}
    assert len(said) > 20
