"""Histories read from a server: every row once, in few requests, however the steps lie; what is missing is told."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import wandbserver
from mlmigrate.adapters.wandb.api import histories
from mlmigrate.adapters.wandb.api.client import Client
from mlmigrate.adapters.wandb.api.histories import FARTHEST, History, Told, Where, step_of
from mlmigrate.adapters.wandb.shape import Block
from mlmigrate.errors import BadData
from mlmigrate.model import Loss

pytestmark = pytest.mark.slow
UPSERT = """
mutation UpsertBucket($name: String, $project: String, $entity: String) {
  upsertBucket(input: {name: $name, modelName: $project, entityName: $entity}) { bucket { id } }
}
"""


@pytest.fixture(scope="module")
def shared() -> Iterator[wandbserver.Server]:
    with wandbserver.running() as running:
        yield running


@pytest.fixture
def server(shared: wandbserver.Server) -> wandbserver.Server:
    shared.reset()
    shared.switch(strict_steps=True)
    return shared


@pytest.fixture
def client(server: wandbserver.Server) -> Iterator[Client]:
    made = Client(server.url, server.key)
    yield made
    made.close()


def put(client: Client, rows: Sequence[dict[str, Any]], run: str = "r", events: Sequence[dict[str, Any]] = ()) -> Where:
    """A run with these rows."""
    client.graphql(UPSERT, {"name": run, "project": "p", "entity": "team"})
    lines = [json.dumps(row) for row in rows]
    for start in range(0, max(len(lines), 1), 20_000):
        files = {"wandb-history.jsonl": {"offset": start, "content": lines[start : start + 20_000]}}
        if events and not start:
            files["wandb-events.jsonl"] = {"offset": 0, "content": [json.dumps(event) for event in events]}
        client.stream("team", "p", run, {"files": files})
    return Where("team", "p", run)


def rows_at(steps: Sequence[int]) -> list[dict[str, Any]]:
    return [{"_step": step, "_timestamp": 1.6e9 + n, "loss": n / 3} for n, step in enumerate(steps)]


def read(client: Client, where: Where, told: Told) -> tuple[list[tuple[int | None, float]], list[Loss]]:
    """(step, loss) of each row."""
    losses: list[Loss] = []
    blocks = list(History(client, where, told, losses).blocks())
    return [pair for block in blocks for pair in pairs(block)], losses


def pairs(block: Block) -> list[tuple[int | None, float]]:
    steps, at = block.step.to_pylist(), list(block.keys).index("loss")
    found = zip(block.row.to_pylist(), block.key.to_pylist(), block.value.to_pylist(), strict=True)
    return [(steps[row], value) for row, key, value in found if key == at]


def expected(steps: Sequence[int]) -> list[tuple[int, float]]:
    return [(step, n / 3) for n, step in enumerate(steps)]


def pages(server: wandbserver.Server) -> int:
    return sum(name == "HistoryPage" for _, name in server.requests())


@pytest.mark.parametrize(
    ("steps", "most"),
    [
        (range(10), 1),
        (range(25_000), 3),
        (range(0, 2_500_000, 100), 12),
        ([0, 1, 10**13], 1),
        ([n * n * n * 1000 for n in range(20_001)], 24),
        ([*range(12_000), 10**13, 10**13 + 5], 8),
    ],
    ids=["few", "dense", "sparse", "epoch milliseconds", "ever sparser", "a leap at the end"],
)
def test_every_row_comes_in_few_requests(
    server: wandbserver.Server, client: Client, steps: Sequence[int], most: int
) -> None:
    where = put(client, rows_at(steps))
    server.forget()
    found, losses = read(client, where, Told(len(steps), max(steps), 1))
    assert found == expected(steps)
    assert losses == []
    assert pages(server) <= most


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    gaps=st.lists(st.one_of(st.integers(1, 3), st.integers(1, 10**9)), min_size=1, max_size=400),
    exported=st.lists(st.integers(1, 150), max_size=3),
    page=st.integers(2, 60),
    whole=st.booleans(),
)
def test_any_history_is_read_whole_and_in_order(
    server: wandbserver.Server, client: Client, gaps: list[int], exported: list[int], page: int, whole: bool
) -> None:
    steps = [step - gaps[0] for step in accumulate(gaps)]
    server.reset()
    where = put(client, rows_at(steps))
    parts = [part for n, part in enumerate(exported) if sum(exported[: n + 1]) <= len(steps)]
    server.export("team/p/r", *parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(histories, "PAGE", page)
        patch.setattr(histories, "SMALLEST", 1)
        found, losses = read(client, where, Told(len(steps), steps[-1] if whole else -1, 1))
    assert (found, losses) == (expected(steps), [])


def test_pages_are_asked_for_side_by_side(
    server: wandbserver.Server, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = put(client, rows_at(range(40_000)))
    asked, all_there = client._graphql, threading.Barrier(4)

    def met(name: str, body: bytes) -> dict[str, Any]:
        """None is asked for before the others are about to be."""
        if name == "HistoryPage":
            all_there.wait(60)
        return asked(name, body)

    monkeypatch.setattr(client, "_graphql", met)
    server.forget()
    found, _ = read(client, where, Told(40_000, 39_999, 1))
    assert found == expected(range(40_000))
    assert pages(server) == 4


def test_a_server_that_gives_fewer_rows_than_asked_for_is_asked_again(
    server: wandbserver.Server, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = put(client, rows_at(range(1000)))
    asked = client.graphql

    def capped(operation: str, variables: Any = None, **more: Any) -> Any:
        if "pageSize" in (variables or {}):
            variables = {**variables, "pageSize": min(variables["pageSize"], 300)}
        return asked(operation, variables, **more)

    monkeypatch.setattr(client, "graphql", capped)
    found, losses = read(client, where, Told(1000, 999, 1))
    assert found == expected(range(1000))
    assert losses == []


def test_a_server_that_has_fewer_rows_than_it_says_is_told_of(server: wandbserver.Server, client: Client) -> None:
    where = put(client, rows_at(range(10)))
    found, losses = read(client, where, Told(12, 9, 1))
    assert found == expected(range(10))
    assert [loss.because for loss in losses] == ["the server says that there are 12 rows, and gave 10"]


def test_a_run_that_goes_on_may_have_more_rows_than_were_told(server: wandbserver.Server, client: Client) -> None:
    where = put(client, rows_at(range(10)))
    _, losses = read(client, where, Told(8, 9, 1, live=True))
    assert losses == []


def test_a_server_without_end_is_not_followed_without_end(
    server: wandbserver.Server, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def endless(_: str, variables: Any = None, **__: Any) -> Any:
        asked.append(1)
        low, high = variables.get("minStep", 0), variables.get("maxStep", 0)
        rows = [json.dumps({"_step": low + n * (high - low) // 10_000}) for n in range(min(10_000, high - low))]
        return {"project": {"run": {"history": rows, "parquetHistory": {"parquetUrls": [], "liveData": []}}}}

    monkeypatch.setattr(client, "graphql", endless)
    monkeypatch.setattr(histories, "PAGE", 100)
    with pytest.raises(BadData, match="more pages"):
        read(client, Where("team", "p", "r"), Told(1000, FARTHEST, 1))
    assert len(asked) < 1000


def test_a_last_step_that_was_told_too_early_loses_nothing(server: wandbserver.Server, client: Client) -> None:
    where = put(client, rows_at(range(100)))
    assert read(client, where, Told(100, 49, 1)) == (expected(range(100)), [])
    assert read(client, where, Told(100, -1, 1)) == (expected(range(100)), [])


def test_steps_that_repeat_and_go_back_are_all_read(server: wandbserver.Server, client: Client) -> None:
    server.switch(strict_steps=False)
    where = put(client, rows_at([0, 0, 5, 3, 3, 4]))
    found, losses = read(client, where, Told(6, 5, 1))
    assert sorted(found) == sorted(expected([0, 0, 5, 3, 3, 4]))
    assert losses == []


def test_steps_below_zero_are_read(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_at([-3, -1, 0, 1])

    def served(_: str, variables: Any = None, **__: Any) -> Any:
        low, high = variables.get("minStep", 0), variables.get("maxStep", 0)
        told = [json.dumps(row) for row in rows if low <= row["_step"] < high]
        return {"project": {"run": {"history": told, "parquetHistory": {"parquetUrls": [], "liveData": []}}}}

    monkeypatch.setattr(client, "graphql", served)
    found, losses = read(client, Where("team", "p", "r"), Told(4, 1, 1))
    assert sorted(found) == expected([-3, -1, 0, 1])
    assert losses == []


class TestExports:
    @pytest.mark.parametrize("parts", [(100,), (40, 60), (40, 30), (1,)], ids=str)
    def test_exports_come_first_and_the_rest_after_them(
        self, server: wandbserver.Server, client: Client, parts: tuple[int, ...]
    ) -> None:
        where = put(client, rows_at(range(100)))
        server.export("team/p/r", *parts)
        server.forget()
        found, losses = read(client, where, Told(100, 99, 1))
        assert found == expected(range(100))
        assert losses == []
        assert pages(server) == (0 if sum(parts) == 100 else 1)

    def test_rows_that_are_exported_and_live_come_once(
        self, server: wandbserver.Server, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        where = put(client, rows_at(range(100)))
        server.export("team/p/r", 50)
        urls, _ = histories.parquet_of(client, where)
        monkeypatch.setattr(histories, "parquet_of", lambda *_: (urls * 2, 30))
        found, losses = read(client, where, Told(100, 99, 1))
        assert found == expected(range(100))
        assert losses == []

    def test_urls_that_are_too_old_are_asked_for_again(
        self, server: wandbserver.Server, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        where = put(client, rows_at(range(100)))
        server.export("team/p/r", 50, 50)
        fetch, first = client.fetch, [True]

        def late(url: str, file: Any) -> int:
            if first.pop() if first else False:
                server.expire()
            return fetch(url, file)

        monkeypatch.setattr(client, "fetch", late)
        assert read(client, where, Told(100, 99, 1)) == (expected(range(100)), [])

    def test_an_export_that_is_gone_is_told_of(self, server: wandbserver.Server, client: Client) -> None:
        where = put(client, rows_at(range(100)))
        server.export("team/p/r", 50)
        server.fail("GET", 404, times=5)
        found, losses = read(client, where, Told(100, 99, 1))
        server.heal()
        assert found == expected(range(100))[50:]
        assert "100 rows, and gave 50" in losses[0].because
        assert "/storage/get/" in losses[0].because

    def test_an_export_that_is_no_parquet_is_read_row_by_row(
        self, server: wandbserver.Server, client: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        where = put(client, rows_at(range(100)))
        monkeypatch.setattr(histories, "parquet_of", lambda *_: ([f"{server.url}/nothing"], None))
        monkeypatch.setattr(client, "fetch", lambda _, file: file.write(b"PAR1 no PAR1"))
        assert read(client, where, Told(100, 99, 1)) == (expected(range(100)), [])

    def test_values_are_the_same_in_both(self, server: wandbserver.Server, client: Client) -> None:
        row = {"_step": 0, "_timestamp": 1.5, "_runtime": 2.5, "loss": 0.1, "big": 2**53, "name": "x", "deep": {"a": 1}}
        where = put(client, [row, {**row, "_step": 1, "loss": math.nan}, {"_step": 2, "other": -0.0}])
        told = Told(3, 2, 5)
        plain = list(History(client, where, told, []).blocks())
        server.export("team/p/r", 3)
        exported = list(History(client, where, told, []).blocks())
        assert values(exported) == values(plain)
        assert values(plain)["deep.a"] == [1.0, 1.0]


def values(blocks: Sequence[Block]) -> dict[str, list[Any]]:
    """Key -> its numbers in order, and what is no number as text."""
    found: dict[str, list[Any]] = {}
    for block in blocks:
        for key, value in zip(block.key.to_pylist(), block.value.to_pylist(), strict=True):
            found.setdefault(block.keys[key], []).append("nan" if math.isnan(value) else value)
        for other in block.others:
            found.setdefault(other.key, []).append(other.text)
    return found


class TestEvents:
    def told(self, n: int) -> list[dict[str, Any]]:
        return [{"_timestamp": 1.6e9 + i, "_runtime": i, "system.cpu": i / 7} for i in range(n)]

    @pytest.mark.parametrize(("early", "asked"), [(None, 1), (200, 1), (300, 0)])
    def test_all_are_read(self, server: wandbserver.Server, client: Client, early: int | None, asked: int) -> None:
        where = put(client, rows_at([0]), events=self.told(300))
        came = None if early is None else [json.dumps(one) for one in self.told(early)]
        server.forget()
        losses: list[Loss] = []
        (block,) = histories.events(client, where, 300, came, losses)
        assert list(block.keys) == ["cpu"]
        assert block.value.to_pylist() == [i / 7 for i in range(300)]
        assert block.time.to_pylist() == [1.6e9 + i for i in range(300)]
        assert losses == []
        assert len(server.requests()) == asked

    def test_a_sample_is_told_of(self, server: wandbserver.Server, client: Client) -> None:
        where = put(client, rows_at([0]), events=self.told(10))
        losses: list[Loss] = []
        assert sum(block.rows for block in histories.events(client, where, 12, None, losses)) == 10
        assert "12 rows, and gave 10" in losses[0].because


@pytest.mark.parametrize(
    ("row", "step"),
    [
        ('{"_step": 3}', 3),
        ('{"_step": 3.0, "x": NaN}', 3),
        ('{"x": Infinity, "_step": 10000000000000}', 10**13),
        ('{"x": 1}', None),
        ('{"_step": "x"}', None),
        ("[]", None),
        ("no json", None),
    ],
)
def test_the_step_of_a_row_is_found_in_whatever_w_and_b_writes(row: str, step: int | None) -> None:
    assert step_of(row) == step
