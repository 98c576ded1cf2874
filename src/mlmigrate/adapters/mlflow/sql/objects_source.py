"""Objects of a database: models, traces and all else that `objects.KINDS` names, as trees of rows.

A ref stands for all objects of a group, of one experiment where they belong to one.  Traces come up to
TRACES a ref, in the order of their time, so that new ones change the last ref only.
"""

# ruff: noqa: S608 - no value from outside is written into SQL but by Session.among, in hexadecimal

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from mlmigrate.adapters.mlflow.objects import (
    BY_NAME,
    DEFAULT_WORKSPACE,
    GROUPS,
    Kind,
    Row,
    Tree,
    id_of,
    record_of,
    registered_kind,
)
from mlmigrate.adapters.mlflow.sql.artifacts import Kept
from mlmigrate.adapters.mlflow.sql.layout import texts_of
from mlmigrate.adapters.mlflow.sql.rows import Rows, chunks, quoted
from mlmigrate.adapters.mlflow.sql.schema import SECRETS
from mlmigrate.adapters.mlflow.sql.stamps import digest, stamps
from mlmigrate.model import Loss, Record, RunRef

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from mlmigrate.adapters.mlflow.sql.connect import Session
    from mlmigrate.adapters.mlflow.sql.layout import Layout, Own, Part

TRACES = 10_000  # of one ref
_AT_ONCE = 500  # objects whose rows are held in memory together
_TRACES_AT_ONCE = 200
_TRACE_TABLE, _TRACE_ORDER = "trace_info", ("timestamp_ms", "request_id")
_FOLDER, _ARCHIVED = "mlflow.artifactLocation", "mlflow.trace.archiveLocation"  # tags of traces
_SPANS = "mlflow.trace.spansLocation"
_KEY = '"key"'
_READY = "2"
Label = tuple[str, int]  # an experiment's id, and which of its traces


class Objects:
    """The objects that one session sees."""

    def __init__(self, session: Session, layout: Layout) -> None:
        self.session, self.layout, self.shape = session, layout, layout.shape

    def refs(self, identity: str) -> Iterator[RunRef]:
        """A ref for each group that has anything, in the order in which they are carried."""
        for group in GROUPS:
            counts: Counter[Label] = Counter()
            marks: dict[Label, list[str]] = {}
            for own in self.layout.group(group):
                found = self._counts(own)
                counts.update(found)
                if found:
                    self._stamp(own, marks)
            for label in sorted(counts, key=lambda one: (len(one[0]), *one)):
                yield _ref(group, label, counts[label], digest(" ".join(marks.get(label, ()))), identity)

    def read(self, ref: RunRef, rows: Rows, losses: list[Loss], between: Callable[[], None]) -> Iterator[Record]:
        """The objects that `ref` stands for. `between` is called where nothing is being read."""
        for own in self.layout.group(group_of(ref)):
            held = _TRACES_AT_ONCE if own.table == _TRACE_TABLE else _AT_ONCE
            for links in chunks(self.links(own, ref), held):
                trees = self._trees(own, links, ref, rows, losses)
                between()
                yield from (record_of(_kind(own.kind, tree), tree) for tree in trees)

    def links(self, own: Own, ref: RunRef) -> list[str]:
        """What the objects of a ref are found by."""
        link = self.session.text(quoted(own.link))
        where = f"{own.where} AND {self.of_experiment(own, ref.experiment)} AND {quoted(own.link)} IS NOT NULL"
        if own.table != _TRACE_TABLE:
            sql = f"SELECT DISTINCT {link} AS id FROM {quoted(own.table)} WHERE {where} ORDER BY 1"
        else:
            order = ", ".join(one for one in _TRACE_ORDER if self.shape.has(_TRACE_TABLE, one))
            limits = f"LIMIT {TRACES} OFFSET {TRACES * _number(ref)}"
            sql = f"SELECT {link} AS id FROM {_TRACE_TABLE} WHERE {where} ORDER BY {order} {limits}"
        return [id_ for (id_,) in self.session.rows(sql)]

    def models(self, ref: RunRef) -> Iterator[Kept]:
        """Where the files of the logged models lie that `ref` stands for."""
        for own, links in self._linked(ref, "logged_models", "artifact_location"):
            ready = self.session.text("status") if self.shape.has(own.table, "status") else "'2'"
            for id_, uri, status in self.session.rows(
                f"SELECT {self.session.text('model_id')} AS id, COALESCE({self.session.text('artifact_location')}, '') "
                f"AS uri, {ready} AS status FROM logged_models WHERE {self.session.among('model_id', links)} ORDER BY 1"
            ):
                yield Kept.of_model(id_, ref.experiment, uri, ready=status == _READY)

    def traces(self, ref: RunRef) -> Iterator[Kept]:
        """Where the files of the traces lie that `ref` stands for: their spans, where these are in no table."""
        for _, links in self._linked(ref, _TRACE_TABLE, "request_id"):
            for id_, tags in self._locations(links).items():
                spans = tags.get(_SPANS, "")
                for tag in (_FOLDER, _ARCHIVED):
                    here = _ARCHIVED if spans == "ARCHIVE_REPO" else _FOLDER
                    expected = tag == here and spans != "TRACKING_STORE"
                    if tag in tags:
                        yield Kept.of_trace(id_, ref.experiment, tags[tag], spans=expected)

    def _linked(self, ref: RunRef, table: str, column: str) -> Iterator[tuple[Own, Sequence[str]]]:
        for own in self.layout.group(group_of(ref)):
            if own.table == table and self.shape.has(table, column):
                yield from ((own, links) for links in chunks(self.links(own, ref), _AT_ONCE))

    def _locations(self, links: Sequence[str]) -> dict[str, dict[str, str]]:
        """Trace -> those of its tags that tell where its files are."""
        if not self.shape.has("trace_tags"):
            return {}
        s = self.session
        found: dict[str, dict[str, str]] = {}
        chosen = f"{s.text('request_id')} AS id, {s.text(_KEY)} AS k, COALESCE({s.text('value')}, '') AS v"
        where = f"{_KEY} IN ({texts_of((_FOLDER, _ARCHIVED, _SPANS))}) AND {s.among('request_id', links)}"
        sql = f"SELECT {chosen} FROM trace_tags WHERE {where} ORDER BY 1"
        for id_, key, value in s.rows(sql):
            found.setdefault(id_, {})[key] = value
        return found

    def of_experiment(self, own: Own, experiment: str, alias: str = "") -> str:
        """A condition for what belongs to an experiment; every row of kinds that belong to none."""
        if not own.kind.experiment:
            return "1 = 1"
        column = f"{alias}{own.kind.experiment}"
        if not experiment:
            return f"{column} IS NULL"
        if experiment.isascii() and experiment.isdecimal() and len(experiment) < 19:  # noqa: PLR2004 - of 64 bits
            return f"{column} = {int(experiment)}"
        return self.session.among(self.session.text(column), [experiment])

    def _trees(self, own: Own, links: Sequence[str], ref: RunRef, rows: Rows, losses: list[Loss]) -> list[Tree]:
        where = f"{self.session.among(quoted(own.link), links)} AND {own.where} AND "
        where += self.of_experiment(own, ref.experiment)
        hidden = SECRETS.get(own.table, ())[:1]
        trees: dict[tuple[str, ...], Tree] = {}
        for root in rows.read(own.table, where, hidden):
            key = _key(root, own.key)
            if key in trees:
                losses.append(
                    Loss("", f"{own.kind.record} {id_of(own.kind, root)!r}", "is there twice; the first is read")
                )
            else:
                trees[key] = {own.table: [root]}
        for part in own.parts:
            self._join(own, part, links, trees, rows)
        self._tell_missing(own, links, trees, losses)
        found = sorted(trees.values(), key=_order(own, links))
        for tree in found:
            _leave_out_default(tree)
        return found

    def _join(self, own: Own, part: Part, links: Sequence[str], trees: dict[tuple[str, ...], Tree], rows: Rows) -> None:
        """Adds the rows of one table to the objects that they belong to."""
        there = tuple(column for _, column in part.keys)
        here = tuple(column for column, _ in part.keys)
        owners: dict[tuple[str, ...], list[Tree]] = {}
        for tree in trees.values():
            owners.setdefault(_key(tree[own.table][0], there), []).append(tree)
        where = f"{self.session.among(quoted(here[-1]), links)} AND {part.where} AND {self.layout.unmarked(part.table)}"
        keyless = part.table in self.shape.keyless
        for row in rows.read(part.table, where):
            for tree in owners.get(_key(row, here), ()):
                held = tree.setdefault(part.table, [])
                if not keyless or row not in held:
                    held.append(row)

    def _tell_missing(
        self, own: Own, links: Sequence[str], trees: dict[tuple[str, ...], Tree], losses: list[Loss]
    ) -> None:
        found = {str(tree[own.table][0][own.link]) for tree in trees.values()}
        why = "could not be found again by its name"
        losses += [Loss("", f"{own.kind.record} {link!r}", why) for link in links if link not in found]

    def _counts(self, own: Own) -> dict[Label, int]:
        before, group, _ = self._grouped(own)
        sql = (
            f"{before}SELECT g, count(*) AS n FROM r GROUP BY g"
            if before
            else (f"SELECT {group} AS g, count(*) AS n FROM {quoted(own.table)} WHERE {own.where}")
        )
        return {_label(own, group): int(count) for group, count in self.session.rows(sql) if count}

    def _stamp(self, own: Own, marks: dict[Label, list[str]]) -> None:
        """Notes what tells whether anything of this kind changed, table by table."""
        before, group, joined = self._grouped(own)
        tables = [(own.table, own.link, own.where if not before else "1 = 1")]
        tables += [(part.table, part.keys[-1][0], part.where) for part in own.parts]
        for table, link, where in tables:
            source = f"{quoted(table)} t" + (f" {joined} ON r.k = t.{quoted(link)}" if before else "")
            ours = f"{where} AND {self.layout.unmarked(table, 't.')}"
            for name, found in stamps(self.session, self.shape, table, group, source, ours, before).items():
                marks.setdefault(_label(own, name), []).append(f"{table} {found}")

    def _grouped(self, own: Own) -> tuple[str, str, str]:
        """(a WITH that maps each object's link to its ref, what names the ref, how to join it)."""
        if not own.kind.experiment:
            return "", "''", ""
        experiment = f"COALESCE({self.session.text(own.kind.experiment)}, '')"
        place = "0"
        if own.table == _TRACE_TABLE:
            order = ", ".join(one for one in _TRACE_ORDER if self.shape.has(_TRACE_TABLE, one))
            number = f"(row_number() OVER (PARTITION BY {own.kind.experiment} ORDER BY {order}) - 1)"
            place = f"({number} - {number} % {TRACES})"
        label = f"{experiment} || '/' || {self.session.text(place)}"
        objects = f"SELECT {quoted(own.link)} AS k, {label} AS g FROM {quoted(own.table)} WHERE {own.where}"
        # SQLite does as CROSS JOIN says: the rows in their order, each with its object from an index made on the way
        return f"WITH r AS ({objects}) ", "r.g", "CROSS JOIN r" if self.session.kind == "sqlite" else "JOIN r"


def group_of(ref: RunRef) -> str:
    """The group that a ref stands for."""
    return ref.id[1:].partition("/")[0]


def _number(ref: RunRef) -> int:
    """Which of the traces of its experiment a ref stands for."""
    rest = ref.id.removeprefix(f"@{group_of(ref)}/{ref.experiment}").removeprefix("/")
    return int(rest) if rest.isdecimal() else 0


def _ref(group: str, label: Label, count: int, stamp: str, identity: str) -> RunRef:
    experiment, first = label
    with_experiment = any(kind.experiment for kind in BY_NAME.values() if kind.group == group)
    name = f"{group}/{experiment}" if with_experiment else group
    name += f"/{first // TRACES}" if first else ""
    return RunRef(
        experiment=experiment,
        id=f"@{name}",
        name=name,
        origin=f"mlflow:@{name}:{identity}",
        stamp=stamp,
        points=count,
        kind="records",
    )


def _label(own: Own, name: str) -> Label:
    if not own.kind.experiment:
        return "", 0
    experiment, _, first = name.rpartition("/")
    return experiment, int(first)


def _kind(kind: Kind, tree: Tree) -> Kind:
    return registered_kind(tree.get("registered_model_tags", ())) if kind.table == "registered_models" else kind


def _key(row: Row, columns: Sequence[str]) -> tuple[str, ...]:
    return tuple(str(row.get(one)) for one in columns)


def _order(own: Own, links: Sequence[str]) -> Callable[[Tree], int]:
    places = {link: at for at, link in enumerate(links)}
    return lambda tree: places.get(str(tree[own.table][0][own.link]), len(links))


def _leave_out_default(tree: Tree) -> None:
    for rows in tree.values():
        for row in rows:
            if row.get("workspace", "") in (None, DEFAULT_WORKSPACE):
                del row["workspace"]
