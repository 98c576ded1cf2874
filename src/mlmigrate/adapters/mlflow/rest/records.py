"""Things of a server that belong to no run: models, prompts, traces, evaluation datasets and the rest.

One ref stands for all things of a group in an experiment, or in the whole server: "@registry", "@traces/3".  Each
thing becomes a Record, a tree of rows as MLflow's own database has them; the files of logged models and of traces
come as artifacts of "@model/<id>" and "@trace/<id>".  A ref's stamp is a hash of what a listing shows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import msgspec

from mlmigrate.adapters.mlflow.objects import BY_NAME, GROUPS, Kind, Tree, record_of
from mlmigrate.adapters.mlflow.rest.ahead import ahead
from mlmigrate.adapters.mlflow.rest.artifacts import TRACE_FILE
from mlmigrate.adapters.mlflow.rest.client import Client
from mlmigrate.adapters.mlflow.rest.listing import Site, having
from mlmigrate.adapters.mlflow.rest.read_datasets import Datasets
from mlmigrate.adapters.mlflow.rest.read_estate import Gateway, Webhooks, Workspaces
from mlmigrate.adapters.mlflow.rest.read_experiments import Issues, Reviews, Schemas, Scorers
from mlmigrate.adapters.mlflow.rest.read_models import LoggedModels, RunsOf
from mlmigrate.adapters.mlflow.rest.read_registry import Registry
from mlmigrate.adapters.mlflow.rest.read_traces import Keys, Traces
from mlmigrate.adapters.mlflow.rest.server import Server
from mlmigrate.adapters.mlflow.rest.wire import WireRun
from mlmigrate.errors import BadData
from mlmigrate.model import Artifact, Loss, Record, RunRef

STAMPED = 20_000  # things; a ref with more is taken again each time
TOGETHER = 50  # experiments that are searched at once
SUM = 1 << 128  # digests are summed up modulo this: what is listed comes in any order
NOWHERE = ""  # the experiment of what belongs to the server as a whole
Trees = Iterator[tuple[Kind, Tree]]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Group:
    """How the things of one group are read.

    since    the first version of MLflow that has them
    heads    what a stamp is made of: the things of an experiment (or of all, for NOWHERE), as listed
    trees    the things, whole
    any_in   whether there are any in some experiments; None: each is asked for by itself
    estate   they belong to no experiment
    managed  services other than a plain server may have them too
    database only servers over a database have them
    living   a server does not show those of deleted experiments
    """

    name: str
    since: tuple[int, int]
    heads: Callable[[str], Iterator[Tree]]
    trees: Callable[[str, list[Loss], Executor], Trees]
    any_in: Callable[[Sequence[str]], bool] | None = None
    estate: bool = False
    managed: bool = False
    database: bool = True
    living: bool = False

    @property
    def title(self) -> str:
        return self.name.replace("_", " ")


class Things:
    """All that a server has beside runs."""

    def __init__(self, client: Client, server: Server, runs: RunsOf) -> None:
        self._site = Site(client, server)
        self._runs = runs
        self._models = LoggedModels(self._site, runs)
        self._traces = Traces(self._site)
        self._experiments: Sequence[str] = ()
        self._made: dict[str, int] = {}
        self._groups = {group.name: group for group in self._all_groups() if self._has(group)}

    def note(self, run: WireRun) -> None:
        """A run that was listed: what it made belongs to the stamp of its experiment's models."""
        for link in run.outputs.model_outputs:
            of = run.info.experiment_id
            self._made[of] = self._made.get(of, 0) + _digest((run.id, link.model_id, link.step))

    def refs(
        self, experiments: Sequence[str], gone: Container[str], losses: list[Loss], pool: Executor
    ) -> Iterator[RunRef]:
        """A ref for each group of things in each experiment that has any; what the server keeps to itself is a loss.

        `gone` are the experiments that are deleted.
        """
        self._experiments = experiments
        living = [of for of in experiments if of not in gone]
        for name in GROUPS:
            group = self._groups.get(name)
            if group is not None:
                places = self._places(group, living if group.living else experiments, losses)
                yield from (ref for ref in ahead(pool, places, partial(self._ref, group, losses)) if ref is not None)

    def records(self, ref: RunRef, experiments: Sequence[str], losses: list[Loss], pool: Executor) -> Iterator[Record]:
        """Every thing of a ref, whole. What comes after one that cannot be listed is a loss."""
        self._experiments = experiments
        group, of = self._group(ref)
        loss = Loss("", f"{group.title} (those that were not read before)", "", of)
        found = _checked(group.trees(of, losses, pool))
        while (one := self._site.take(losses, loss, _next, found)) is not None:
            yield record_of(*one)

    def roots(self, ref: RunRef, in_use: Callable[[str], bool]) -> Iterator[tuple[str, str]]:
        """(owner, artifact URI) of every thing of a ref that has files; `in_use`: whether there are any at a URI."""
        group, of = self._group(ref)
        if group.name == "logged_models":
            yield from self._models.roots(of)
        elif group.name == "traces":
            yield from self._traces.roots(of, in_use)

    def is_copy(self, artifact: Artifact) -> bool:
        """Whether a file holds but what rows hold."""
        return artifact.path == TRACE_FILE and artifact.owner in self._traces.with_rows

    def _group(self, ref: RunRef) -> tuple[Group, str]:
        name, _, of = ref.id.removeprefix("@").partition("/")
        return self._groups[name], of

    def _has(self, group: Group) -> bool:
        server, client = self._site.server, self._site.client
        if server.version < group.since or (group.database and server.store == "FileStore"):
            return False
        return group.managed or not client.login.databricks

    def _places(self, group: Group, experiments: Sequence[str], losses: list[Loss]) -> Iterator[str]:
        """The experiments that may have things of a group."""
        if group.estate:
            yield NOWHERE
        elif group.any_in is None:
            yield from experiments
        else:
            for start in range(0, len(experiments), TOGETHER):
                some = experiments[start : start + TOGETHER]
                yield from self._site.take(losses, Loss("", group.title, ""), having, some, group.any_in) or ()

    def _ref(self, group: Group, losses: list[Loss], of: str) -> RunRef | None:
        stamp = self._site.take(losses, Loss("", group.title, "", of), _stamp, _checked(group.heads(of)))
        if stamp is None:
            return None
        store = hashlib.blake2b(self._site.client.login.base.encode(), digest_size=8).hexdigest()
        text = stamp.text
        if text and group.name == "logged_models":
            text = f"{text}-{self._made.get(of, 0) % SUM:x}"
        name = f"@{group.name}" if group.estate else f"@{group.name}/{of}"
        return RunRef(of, name, group.title, f"mlflow:{name}:{store}", text, kind="records")

    def _with_models(self) -> Sequence[str]:
        """All experiments that have logged models."""
        found: list[str] = []
        for start in range(0, len(self._experiments), TOGETHER):
            found += having(self._experiments[start : start + TOGETHER], self._models.any_in)
        return found

    def _linkable(self, of: str) -> Keys:
        """What traces of an experiment may be linked to: its runs, and all versions of prompts."""
        runs = [("run", run.id) for run in self._runs([of])]
        return runs + [("prompt_version", version) for version in Registry(self._site).prompt_versions()]

    def _all_groups(self) -> Iterator[Group]:
        site, models, traces = self._site, self._models, self._traces
        registry, datasets, scorers = Registry(site), Datasets(site), Scorers(site)
        reviews = Reviews(site)
        schemas, issues = Schemas(site, reviews), Issues(site)
        hooks, spaces = Webhooks(site), Workspaces(site)

        def logged(of: str, losses: list[Loss], pool: Executor) -> Trees:
            return _of("logged_model", models.trees(of, self._with_models, losses, pool))

        def traced(of: str, losses: list[Loss], pool: Executor) -> Trees:
            return _of("trace", traces.trees(of, lambda: self._linkable(of), losses, pool))

        yield Group(
            "registry", (1, 0), lambda _: registry.heads(), lambda _, losses, pool: registry.trees(losses, pool),
            estate=True, managed=True, database=False,
        )  # fmt: skip
        yield Group("logged_models", (3, 0), models.heads, logged, models.any_in, managed=True, database=False)
        yield Group("traces", (2, 14), traces.heads, traced, traces.any_in, managed=True, database=False)
        yield Group(
            "evaluation_datasets", (3, 4), lambda _: datasets.heads(),
            lambda _, losses, pool: _of("evaluation_dataset", datasets.trees(losses, pool)), estate=True,
        )  # fmt: skip
        yield Group(
            "scorers", (3, 4), scorers.heads, lambda of, losses, _: _of("scorer", scorers.trees(of, losses)),
            living=True,
        )  # fmt: skip
        yield Group(
            "label_schemas", (3, 14), lambda of: schemas.trees(of, []),
            lambda of, losses, _: _of("label_schema", schemas.trees(of, losses)),
        )  # fmt: skip
        yield Group(
            "review_queues", (3, 14), lambda of: reviews.trees(of, []),
            lambda of, losses, _: _of("review_queue", reviews.trees(of, losses)),
        )  # fmt: skip
        yield Group("issues", (3, 11), issues.trees, lambda of, *_: _of("issue", issues.trees(of)))
        yield Group(
            "webhooks", (3, 3), lambda _: hooks.trees(), lambda *_: _of("webhook", hooks.trees()), estate=True
        )  # fmt: skip
        yield Group(
            "workspaces", (3, 10), lambda _: spaces.trees(), lambda *_: _of("workspace", spaces.trees()), estate=True
        )  # fmt: skip
        yield _gateway(Gateway(site))


def _gateway(gateway: Gateway) -> Group:
    def trees(_: str, losses: list[Loss], __: Executor | None = None) -> Trees:
        yield from _of("gateway_model", gateway.models())
        yield from _of("gateway_endpoint", gateway.endpoints(losses))
        yield from _of("guardrail", gateway.guardrails(losses))
        yield from _of("budget_policy", gateway.budgets())

    return Group("gateway", (3, 8), lambda _: (tree for _, tree in trees("", [])), trees, estate=True)


def _of(name: str, trees: Iterable[Tree]) -> Trees:
    kind = BY_NAME[f"mlflow.{name}"]
    return ((kind, tree) for tree in trees)


def _next(found: Iterator[T]) -> T | None:
    return next(found, None)


def _checked(found: Iterator[T]) -> Iterator[T]:
    """The things of a listing. Raises BadData for one without what every such thing has."""
    try:
        yield from found
    except (KeyError, TypeError, AttributeError, ValueError, StopIteration) as error:
        raise BadData(f"The server gave something that lacks what it must have ({error!r}).") from error


@dataclass(frozen=True, slots=True)
class _Stamp:
    text: str


def _encoded(value: object) -> bytes:
    return msgspec.json.encode(value, order="deterministic")


def _digest(value: object) -> int:
    return int.from_bytes(hashlib.blake2b(_encoded(value), digest_size=16).digest())


def _stamp(heads: Iterator[Tree]) -> _Stamp | None:
    """Changes when one of the things does, in whatever order they and their rows come; None when there are none.

    Servers give tags as protobuf's maps, whose order is another in each process.
    """
    total, n = 0, 0
    for head in heads:
        total += _digest({table: sorted(map(_encoded, rows)) for table, rows in head.items()})
        n += 1
        if n > STAMPED:
            return _Stamp("")
    return _Stamp(f"{n}-{total % SUM:032x}") if n else None
