"""Records meant and records found: what is missing, what differs, and what does not count."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from mlmigrate.compare import Expected
from mlmigrate.model import Record


def tree(id_: str, body: dict[str, list[dict[str, object]]], owner: str = "1") -> Record:
    return Record("mlflow.trace", id_, owner, json.dumps(body))


MEANT = {"trace_info": [{"request_id": "t", "status": "OK"}], "trace_tags": [{"key": "a", "value": "1"}, {"key": "b"}]}


def compared(meant: list[Record], found: list[Record]) -> tuple[list[str], list[tuple[str, str, str]]]:
    expected = Expected()
    for record in meant:
        expected.add(record)
    return [differing for record in found if (differing := expected.meet(record))], list(expected.left())


def test_equal_trees_are_equal_whatever_the_order_of_their_rows() -> None:
    found = {"trace_tags": MEANT["trace_tags"][::-1], "trace_info": MEANT["trace_info"]}
    assert compared([tree("t", MEANT)], [tree("t", found)]) == ([], [])


def test_columns_that_the_source_did_not_know_do_not_count() -> None:
    found = {**MEANT, "trace_info": [{"request_id": "t", "status": "OK", "trace_name": "new"}]}
    assert compared([tree("t", MEANT)], [tree("t", found)]) == ([], [])


def test_a_changed_row_a_lost_row_and_rows_too_many_are_found_by_table() -> None:
    changed = {**MEANT, "trace_info": [{"request_id": "t", "status": "ERROR"}]}
    lost = {**MEANT, "trace_tags": MEANT["trace_tags"][:1]}
    extra = {**MEANT, "spans": [{"span_id": "s"}]}
    meant = [tree("t", MEANT)]
    assert compared(meant, [tree("t", changed)])[0] == ["other trace_info"]
    assert compared(meant, [tree("t", lost)])[0] == ["other trace_tags"]
    assert compared(meant, [tree("t", extra)])[0] == ["other spans"]


def test_what_is_not_there_is_named_with_its_owner() -> None:
    assert compared([tree("t", MEANT, "7")], [tree("u", MEANT)]) == ([], [("mlflow.trace", "t", "7")])


def test_rows_of_a_table_without_an_owner_are_compared_as_a_multiset() -> None:
    def row(number: int, **body: object) -> Record:
        return Record("mlflow.sql.skills", f"skills/{number}", "", json.dumps(body))

    meant = [row(0, a=1), row(1, a=1), row(2, a=2)]
    assert compared(meant, [row(5, a=1, new=0), row(6, a=2, new=0), row(7, a=1, new=0)]) == ([], [])
    assert compared(meant, [row(5, a=1), row(6, a=2)])[1] == [("mlflow.sql.skills", "skills/1", "")]


@given(st.dictionaries(st.sampled_from(["a", "b"]), st.lists(st.fixed_dictionaries({"x": st.integers()}), max_size=3)))
def test_a_tree_is_equal_to_itself_and_to_no_tree_with_one_value_changed(body: dict[str, list[dict[str, int]]]) -> None:
    record = Record("mlflow.scorer", "1/s", "1", json.dumps(body))
    assert compared([record], [record]) == ([], [])
    for table, rows in body.items():
        for n in range(len(rows)):
            other = {**body, table: [*rows[:n], {"x": rows[n]["x"] + 1}, *rows[n + 1 :]]}
            same = sorted(row["x"] for row in other[table]) == sorted(row["x"] for row in rows)
            found, _ = compared([record], [Record("mlflow.scorer", "1/s", "1", json.dumps(other))])
            assert bool(found) != same
