"""docs/what-survives.md says what the adapters declare, and what they declare is of MLflow's own schema."""

import re
import sqlite3
from pathlib import Path

import pytest

from mlmigrate import survives
from mlmigrate.adapters.base import Change, Holding, Limits, Reads
from mlmigrate.adapters.mlflow import objects

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "what-survives.md"
SCHEMA = ROOT / "src" / "mlmigrate" / "adapters" / "mlflow" / "sql" / "head-sqlite.sql"
SINCE_3_18 = {"issue_categories"}  # not in the schema of 3.17, which is the one in the repository
TARGETS = {place.name: place.limits for place in survives.targets()}
SOURCES = survives.sources()
KINDS = [kind.record for kind in objects.KINDS]


@pytest.fixture(scope="module")
def columns():
    """Tables -> columns, as SQLite itself makes them from the schema."""
    link = sqlite3.connect(":memory:")
    link.executescript(SCHEMA.read_text("utf-8"))
    tables = [name for (name,) in link.execute("select name from sqlite_master where type = 'table'")]
    yield {table: {row[1] for row in link.execute(f'pragma table_xinfo("{table}")')} for table in tables}
    link.close()


def declared():
    """(where, holding) of everything that any adapter declares."""
    for name, limits in TARGETS.items():
        yield from ((f"to {name}", holding) for holding in limits.holdings)
    for name, reads in SOURCES.items():
        yield from ((f"from {name}", holding) for holding in reads.holdings)


def changes():
    for where, holding in declared():
        yield from ((where, holding.kind, change) for change in holding.changes if change.part)


def rows():
    return [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| ")]


def test_the_page_is_what_the_adapters_declare():
    assert PAGE.read_text("utf-8") == survives.page(), (
        "An adapter declares something else than docs/what-survives.md says.\n"
        "Make the page again, and read what changed: scripts/what-survives > docs/what-survives.md"
    )


def test_every_kind_of_the_catalogue_is_a_row_once():
    told = [thing.kind for things in survives.things().values() for thing in things]
    assert sorted(set(told)) == sorted(told)
    assert set(KINDS) <= set(told)


def test_every_reason_is_used_and_every_number_has_a_reason():
    reasons = {int(number) for number in re.findall(r"^(\d+)\. ", PAGE.read_text("utf-8"), re.MULTILINE)}
    used = {int(one) for row in rows() for numbers in re.findall(r"\(([\d, ]+)\)", row) for one in numbers.split(",")}
    assert used == reasons == set(range(1, len(reasons) + 1))


def test_the_table_fits_a_screen():
    assert max(len(re.split(r"(?<!\\)\|", row)) - 2 for row in rows()) <= 9


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", TARGETS)
def test_every_target_says_how_it_holds_every_kind_and_why_not(target, kind):
    limits = TARGETS[target]
    holding = limits.holding(kind)
    if holding is None:
        assert limits.holds(kind), f"{target} says nothing of {kind}"
    else:
        assert holding.how in ("whole", "mapped") or holding.because


@pytest.mark.parametrize("place", [*(f"to {name}" for name in TARGETS), *(f"from {name}" for name in SOURCES)])
def test_nothing_is_declared_of_a_kind_that_there_is_not(place):
    rows = {thing.kind for things in survives.things().values() for thing in things}
    kinds = [holding.kind for where, holding in declared() if where == place]
    assert [kind for kind in kinds if kind not in rows and not kind.startswith(objects.ROWS)] == []
    assert len(set(kinds)) == len(kinds)


def test_every_change_names_a_table_or_a_column_of_mlflow(columns):
    wrong = []
    for where, kind, change in changes():
        table, _, column = change.part.partition(".")
        known = table in SINCE_3_18 or (table in columns and (not column or column in columns[table]))
        if not known:
            wrong.append((where, kind, change.part))
    assert wrong == []


def test_every_change_names_a_table_of_its_kind():
    assert [
        (where, kind, change.part)
        for where, kind, change in changes()
        if kind in objects.BY_NAME and change.part.partition(".")[0] not in objects.BY_NAME[kind].tables
    ] == []


def test_every_length_is_of_a_column_of_mlflow(columns):
    parts = {at for limits in TARGETS.values() for at, _ in limits.column_lengths}
    assert {at for at in parts if at.partition(".")[2] not in columns.get(at.partition(".")[0], ())} == set()


def test_every_change_has_a_reason():
    assert [(where, kind, change.part) for where, kind, change in changes() if not change.because] == []


def test_an_archive_holds_every_kind_whole():
    assert {survives.Thing(kind, "").held(survives.Place("archive", TARGETS["archive"])).how for kind in KINDS} == {
        "whole"
    }


class TestACell:
    """The weaker of both sides."""

    def cell(self, told, held, kind="mlflow.webhook"):
        notes = survives.Notes()
        place = survives.Place("there", Limits(records=(), holdings=(held,)))
        made = survives.cell(survives.Thing(kind, ""), told, place, held, notes)
        return str(made), list(notes.numbers)

    @pytest.mark.parametrize(
        ("told", "held", "becomes"),
        [("whole", "whole", "whole"), ("whole", "mapped", "mapped"), ("mapped", "record", "record only (1)")],
    )
    def test_is_the_weaker(self, told, held, becomes):
        because = "nothing there uses it" if held == "record" else ""
        cell, _ = self.cell(Holding("mlflow.webhook", told), Holding("mlflow.webhook", held, because))
        assert cell == becomes

    def test_says_why_a_source_cannot_tell_it_and_not_what_the_target_would_do(self):
        told = Holding("mlflow.webhook", "lost", "it is secret")
        held = Holding("mlflow.webhook", "record", "nothing there uses it")
        assert self.cell(told, held) == ("lost (1)", ["it is secret"])

    def test_names_the_parts_that_are_lost_on_either_side(self):
        told = Holding("mlflow.webhook", changes=(Change("webhooks.secret", "it is secret"),))
        held = Holding("mlflow.webhook", changes=(Change("webhooks.status", "it would call", "DISABLED"),))
        assert self.cell(told, held) == (
            "whole, but (1, 2)",
            ["`secret` of webhooks: it is secret", "`status` (becomes DISABLED) of webhooks: it would call"],
        )

    def test_is_silent_about_what_the_target_makes_again(self):
        held = Holding("mlflow.webhook", changes=(Change("webhook_events", "made again", lost=False),))
        assert self.cell(Holding("mlflow.webhook"), held) == ("whole", [])

    def test_of_an_older_server_adds_what_comes_on_top(self):
        url, secret = Change("webhooks.url", "another"), Change("webhooks.secret", "no place")
        current = Holding("mlflow.webhook", changes=(url,))
        older = survives.Place("older", Limits(holdings=(Holding("mlflow.webhook", changes=(url, secret)),)))
        notes = survives.Notes()
        made = survives.cell(survives.Thing("mlflow.webhook", ""), Holding("mlflow.webhook"), older, current, notes)
        assert (str(made), list(notes.numbers)) == (
            "whole, but (1, 2)",
            ["`url` of webhooks: another", "`secret` of webhooks: no place"],
        )


def test_a_source_tells_whole_what_it_does_not_name_and_nothing_of_what_it_never_has():
    reads = Reads(holdings=(Holding("a", "lost", "secret"),), absent=frozenset(["b"]))
    assert (reads.of("a"), reads.of("b"), reads.of("c")) == (Holding("a", "lost", "secret"), None, Holding("c"))
