"""Points of a run become rows of a W&B history, and come back from them as they were."""

import json
import math
import struct
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlmigrate import model
from mlmigrate.adapters.wandb import blocks
from mlmigrate.adapters.wandb.rows import Rows
from mlmigrate.adapters.wandb.sorting import Chunks
from mlmigrate.errors import DiskFull
from mlmigrate.model import POINTS

COLUMNS = [name for name in POINTS.names if name != "run"]
FLOATS = [0.0, -0.0, 5e-324, 1e-320, 1.7976931348623157e308, math.nan, math.inf, -math.inf, 0.1 + 0.2]
HARD_KEYS = ["", "_step", "_timestamp", "mlflow/step", "mlflow/time", "mlflow/key/x", "system/", "system/cpu", "a.b"]
HARD_MS = [0, -1, 1, 4 * 10**15, 2**53 + 1, -(2**63) + 1, 2**63 - 1, 1_700_000_000_123, 8_589_934_592_000]
HARD_STEPS = [0, -1, 2**53 - 1, 2**53 + 1, -(2**53) - 1, 2**63 - 1, -(2**63) + 1]
INT64 = st.integers(-(2**63) + 1, 2**63 - 1)
SMALL = st.integers(-2, 3)
SMALL_STEPS = st.integers(0, 5)


def micro(largest):
    return st.none() | st.integers(0, largest)


POINT = st.fixed_dictionaries(
    {
        "key": st.sampled_from(["a", "b", *HARD_KEYS]) | st.text(),
        "step": st.none() | SMALL | st.sampled_from(HARD_STEPS) | INT64,
        "step_micro": micro(999_999),
        "timestamp": st.none() | SMALL | st.sampled_from(HARD_MS) | INT64,
        "timestamp_micro": micro(999),
        "value": st.sampled_from(FLOATS) | st.floats(),
        "dataset_name": st.none() | st.sampled_from(["", "NaN", "d", "é\n\"'"]),
        "dataset_digest": st.none() | st.sampled_from(["1", "Infinity"]),
        "model": st.none() | st.sampled_from(["m", "true"]),
    }
)


def told(point):
    """A point without what nobody can tell of it: parts of a step or time that there is not."""
    gone = {f"{name}_micro": None for name in ("step", "timestamp") if point[name] is None}
    return {**point, **gone}


POINTS_OF_A_RUN = st.lists(POINT.map(told), max_size=40)


def batch(points):
    return model.points({name: [point[name] for point in points] for name in COLUMNS} | {"run": ["r"] * len(points)})


def exact(point):
    """Equal for equal points alone: -0.0 is not 0.0, and NaN is NaN."""
    value = "nan" if math.isnan(point["value"]) else struct.pack("d", point["value"])
    return tuple(value if name == "value" else point[name] for name in COLUMNS)


def multiset(points):
    return Counter(map(exact, points))


def written(tmp_path, points, *, native=False, size=None, start=None, in_memory=1_000_000):
    rows = Rows(tmp_path, start, in_memory)
    for i in range(0, len(points), size or len(points) or 1):
        rows.add(batch(points[i : i + (size or len(points))]))
    return rows.sorted(native=native)


def lines(found):
    return [line for block in found.history(0) for line in blocks.lines(block)]


def event_lines(found):
    return [line for block in found.events(0) for line in blocks.lines(block, "system.")]


def read_back(found):
    history, events = blocks.from_lines(lines(found)), blocks.from_lines(event_lines(found), "system.")
    restored = not found.native
    return [
        *blocks.points(history, "r", restored=restored, first_row=0).to_pylist(),
        *blocks.event_points(events, "r", restored=True, first_row=0).to_pylist(),
    ]


def plain(key="loss", step=0, timestamp=0, value=1.0, **more):
    return dict.fromkeys(COLUMNS) | {"key": key, "step": step, "timestamp": timestamp, "value": value} | more


def expected_rows(points):
    """Independently, one point after another: (time, step, dataset, model, repetition) of each row -> its keys."""
    seen, rows = Counter(), defaultdict(dict)
    for point in points:
        group = tuple(
            (point[name] is not None, point[name] if point[name] is not None else 0)
            for name in ("timestamp", "timestamp_micro", "step", "step_micro")
        ) + tuple((point[n] is not None, point[n] or "") for n in ("dataset_name", "dataset_digest", "model"))
        row = (group, seen[group, point["key"]])
        seen[group, point["key"]] += 1
        rows[row][point["key"]] = exact(point)
    return [rows[row] for row in sorted(rows)]


LOOSELY = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class TestNothingIsLost:
    @LOOSELY
    @given(points=POINTS_OF_A_RUN)
    def test_points_come_back_from_their_lines_as_they_were(self, tmp_path, points):
        assert multiset(read_back(written(tmp_path, points))) == multiset(points)

    @LOOSELY
    @given(points=POINTS_OF_A_RUN, size=st.integers(1, 7), in_memory=st.integers(1, 20))
    def test_they_come_back_too_when_hardly_anything_fits_in_memory(self, tmp_path, points, size, in_memory):
        found = written(tmp_path, points, size=size, in_memory=in_memory)
        assert multiset(read_back(found)) == multiset(points)

    @LOOSELY
    @given(points=POINTS_OF_A_RUN)
    def test_rows_are_wished_native_and_come_back_all_the_same(self, tmp_path, points):
        kept = [point for point in points if not point["key"].startswith(("_", "mlflow/")) and point["key"]]
        assert multiset(read_back(written(tmp_path, kept, native=True))) == multiset(kept)


class TestOrder:
    @LOOSELY
    @given(points=POINTS_OF_A_RUN, size=st.integers(1, 7), in_memory=st.integers(1, 20))
    def test_rows_are_those_of_time_step_and_repetition_in_order(self, tmp_path, points, size, in_memory):
        history = [point for point in points if not point["key"].startswith("system/")]
        found = written(tmp_path, points, size=size, in_memory=in_memory)
        rows = defaultdict(dict)
        for block in found.history(0):
            back = blocks.points(block, "r", restored=True, first_row=0).to_pylist()
            own = block.keys.index("mlflow/step")
            rows_of = [r for r, k in zip(block.row.to_pylist(), block.key.to_pylist(), strict=True) if k != own]
            for row, point in zip(rows_of, back, strict=True):
                rows[block.step[row].as_py()][point["key"]] = exact(point)
        expected = expected_rows(history)
        assert [rows[i] for i in range(len(rows))] == expected
        assert found.rows == len(expected)
        assert found.event_rows == len(expected_rows([point for point in points if point not in history]))

    @LOOSELY
    @given(points=POINTS_OF_A_RUN, data=st.data())
    def test_the_same_points_by_key_or_by_time_make_the_same_lines(self, tmp_path, points, data):
        by_key = sorted(points, key=lambda point: point["key"])  # stable: the log order of each key stays
        one = written(tmp_path, points, size=data.draw(st.integers(1, 9)), in_memory=data.draw(st.integers(1, 50)))
        other = written(tmp_path, by_key, size=data.draw(st.integers(1, 9)), in_memory=data.draw(st.integers(1, 50)))
        assert lines(one) == lines(other)
        assert event_lines(one) == event_lines(other)

    @LOOSELY
    @given(points=POINTS_OF_A_RUN, start=st.integers(0, 45), in_memory=st.sampled_from([3, 1000]))
    def test_rows_can_be_taken_again_from_any_of_them_on(self, tmp_path, points, start, in_memory):
        found = written(tmp_path, points, size=5, in_memory=in_memory)
        for rows, all_lines in ((found.history, lines(found)), (found.events, None)):
            if all_lines is not None:
                again = [line for block in rows(start) for line in blocks.lines(block)]
                assert again == all_lines[start:]
        assert len([line for block in found.events(start) for line in blocks.lines(block)]) == max(
            0, found.event_rows - start
        )

    def test_a_repeat_goes_to_a_further_row(self, tmp_path):
        points = [plain(value=1.0), plain("other", value=2.0), plain(value=3.0), plain(step=1, value=4.0)]
        assert [json.loads(line) for line in lines(written(tmp_path, points, start=-500))] == [
            {"_step": 0, "_timestamp": 0.0, "_runtime": 0.5, "mlflow/step": 0, "loss": 1.0, "other": 2.0},
            {"_step": 1, "_timestamp": 0.0, "_runtime": 0.5, "mlflow/step": 0, "loss": 3.0},
            {"_step": 2, "_timestamp": 0.0, "_runtime": 0.5, "mlflow/step": 1, "loss": 4.0},
        ]

    def test_what_has_no_time_comes_first_and_has_no_timestamp(self, tmp_path):
        found = written(tmp_path, [plain(), plain(timestamp=None, step=None)], start=0)
        assert [sorted(json.loads(line)) for line in lines(found)] == [
            ["_step", "loss"],
            ["_runtime", "_step", "_timestamp", "loss", "mlflow/step"],
        ]

    def test_one_moment_larger_than_memory_is_sorted_all_the_same(self, tmp_path):
        points = [plain(f"k{i % 3}", value=float(i)) for i in range(1000)]
        found = written(tmp_path, points, size=100, in_memory=50)
        told = [json.loads(line) for line in lines(found)]
        assert [[row.get(f"k{k}") for k in range(3)] for row in told] == [
            [float(3 * n + k) if 3 * n + k < 1000 else None for k in range(3)] for n in range(334)
        ]

    def test_many_values_make_blocks_of_bounded_size(self, tmp_path):
        rows = Rows(tmp_path, None, 40_000)
        step = np.repeat(np.arange(30_000), 5)
        keys = pa.DictionaryArray.from_arrays(np.tile(np.arange(5, dtype=np.int32), 30_000), list("abcde"))
        for i in range(0, 150_000, 30_000):
            columns = {"run": ["r"] * 30_000, "key": keys[i : i + 30_000], "value": step[i : i + 30_000].astype(float)}
            rows.add(model.points(columns | {"step": pa.array(step[i : i + 30_000]), "timestamp": [7] * 30_000}))
        found = list(rows.sorted(native=False).history())
        assert sum(block.rows for block in found) == 30_000
        assert max(len(block.value) for block in found) <= 70_000  # 50,000, and the step of each row
        assert [step for block in found for step in block.step.to_pylist()] == list(range(30_000))


class TestSystemMetrics:
    def test_they_are_events_with_their_own_step_and_no_step_of_wandb(self, tmp_path):
        found = written(tmp_path, [plain("system/cpu", step=7, timestamp=2500), plain()], start=500)
        assert [json.loads(line) for line in event_lines(found)] == [
            {"_timestamp": 2.5, "_runtime": 2.0, "system.mlflow/step": 7, "system.cpu": 1.0}
        ]
        assert (found.rows, found.event_rows) == (1, 1)

    def test_they_are_not_among_the_latest(self, tmp_path):
        assert written(tmp_path, [plain("system/cpu"), plain()]).latest == {"loss": 1.0}


class TestNative:
    def test_steps_that_increase_are_the_steps_of_wandb_whatever_their_times(self, tmp_path):
        found = written(
            tmp_path, [plain(step=9, timestamp=1), plain(step=4, timestamp=2), plain("b", 4, 2)], native=True
        )
        assert found.native
        assert [json.loads(line) for line in lines(found)] == [
            {"_step": 4, "_timestamp": 0.002, "b": 1.0, "loss": 1.0},
            {"_step": 9, "_timestamp": 0.001, "loss": 1.0},
        ]

    @pytest.mark.parametrize(
        "points",
        [
            [plain(step=None)],
            [plain(step=-1)],
            [plain(step=1), plain(step=1)],
            [plain(step=1, timestamp=1), plain(step=1, timestamp=2)],
            [plain(step=1, step_micro=500_000)],
            [plain(model="m")],
            [plain(timestamp=2**53 + 1)],
        ],
    )
    @pytest.mark.parametrize("in_memory", [1, 1000])
    def test_what_wandb_cannot_count_by_step_is_counted_by_row(self, tmp_path, points, in_memory):
        found = written(tmp_path, points, native=True, size=1, in_memory=in_memory)
        assert not found.native
        assert multiset(read_back(found)) == multiset(points)

    @pytest.mark.parametrize("in_memory", [1, 1000])
    def test_what_is_no_number_joins_the_row_of_its_step(self, tmp_path, in_memory):
        rows = Rows(tmp_path, 0, in_memory)
        rows.add(batch([plain(step=1, timestamp=1000), plain("on", 1, 1000), plain(step=3, timestamp=3000)]))
        rows.other(1, 1.0, 0.25, "on", "true")
        rows.other(1, 1.0, 0.25, "image", '{"_type":"image-file","path":"é"}')
        rows.other(2, 2.0, None, "note", '"\ud800"')
        found = rows.sorted(native=True)
        assert found.native
        assert [json.loads(line) for line in lines(found)] == [
            {
                "_step": 1,
                "_timestamp": 1.0,
                "_runtime": 0.25,
                "loss": 1.0,
                "image": {"_type": "image-file", "path": "é"},
                "on": True,
            },
            {"_step": 2, "_timestamp": 2.0, "_runtime": 2.0, "note": "\ud800"},
            {"_step": 3, "_timestamp": 3.0, "_runtime": 3.0, "loss": 1.0},
        ]

    @LOOSELY
    @given(
        numbers=st.dictionaries(st.tuples(SMALL_STEPS, st.sampled_from("abc")), st.floats(-1e6, 1e6)),
        exact=st.dictionaries(
            st.tuples(SMALL_STEPS, st.sampled_from("bcd")), st.sampled_from(["true", str(2**53 + 1)])
        ),
        texts=st.dictionaries(st.tuples(SMALL_STEPS, st.sampled_from("xy")), st.sampled_from(['"x"', "[1]", "null"])),
        system=st.dictionaries(st.tuples(SMALL_STEPS, st.sampled_from(["system/a", "system/b", "system/z"])), SMALL),
    )
    def test_each_line_of_a_native_run_has_all_that_was_logged_at_its_step(
        self, tmp_path_factory, numbers, exact, texts, system
    ):
        rows = Rows(tmp_path_factory.mktemp("rows"), 0)
        rows.add(batch([plain(key, step, 1000 * step, value) for (step, key), value in (numbers | system).items()]))
        for (step, key), text in texts.items():
            rows.other(step, float(step), None, key, text)
        expected = {step: {"_step": step, "_timestamp": step, "_runtime": step} for step, _ in {**numbers, **texts}}
        for (step, key), value in numbers.items():
            expected[step][key] = value
        for (step, key), text in texts.items():  # of a number that is told as text besides, the text is the word
            expected[step][key] = json.loads(text)
        found = rows.sorted(native=True)
        assert found.native
        assert [json.loads(line) for line in lines(found)] == [expected[step] for step in sorted(expected)]

    def test_a_number_and_a_text_of_one_key_are_not_one_row_though_they_are_of_one_step_and_time(self, tmp_path):
        rows = Rows(tmp_path, 0)
        rows.add(batch([plain(step=1, timestamp=1000)]))
        rows.other(1, 1.0, None, "loss", "[]")
        found = rows.sorted(native=True)
        assert not found.native

    def test_truth_values_are_points_again_when_rows_had_to_be_counted(self, tmp_path):
        points = [plain("on", 1, 1000), plain("on", 1, 2000, value=0.0)]
        rows = Rows(tmp_path, None)
        rows.add(batch(points))
        rows.other(1, 1.0, None, "on", "true")
        rows.other(1, 2.0, None, "on", "false")
        assert multiset(read_back(rows.sorted(native=True))) == multiset(points)

    @pytest.mark.parametrize("in_memory", [1, 1000])
    def test_system_metrics_whose_steps_are_their_lines_are_wandbs_own(self, tmp_path, in_memory):
        points = [plain("system/b", 1, 1000), plain("system/a", 0, 2000), plain("system/b", 0, 2000), plain()]
        found = written(tmp_path, points, native=True, in_memory=in_memory)
        assert [json.loads(line) for line in event_lines(found)] == [
            {"_timestamp": 2.0, "system.a": 1.0, "system.b": 1.0},
            {"_timestamp": 1.0, "system.b": 1.0},
        ]

    @pytest.mark.parametrize("key", ["system/b", "system/mlflow/step", "system/_step"])
    def test_system_metrics_with_steps_of_their_own_tell_them(self, tmp_path, key):
        found = written(tmp_path, [plain(key, 1, 1000), plain(key, 2, 2000), plain()], native=True)
        assert found.native
        (events,) = found.events()
        again = blocks.event_points(
            blocks.from_lines(blocks.lines(events)), "run", restored=True, first_row=0
        ).to_pylist()
        assert [(one["key"], one["step"], one["timestamp"]) for one in again] == [(key, 1, 1000), (key, 2, 2000)]


class TestLatest:
    @pytest.mark.parametrize("size", [1, 100])
    def test_it_is_the_greatest_step_then_time_then_value(self, tmp_path, size):
        points = [
            plain(step=2, timestamp=1, value=5.0),
            plain(step=2, timestamp=2, value=1.0),
            plain(step=2, timestamp=2, value=3.0),
            plain(step=1, timestamp=9, value=9.0),
            plain("b", step=None, value=7.0),
            plain("b", step=-3, value=2.0),
        ]
        assert written(tmp_path, points, size=size).latest == {"loss": 3.0, "b": 2.0}

    @pytest.mark.parametrize(
        ("values", "latest"),
        [([math.nan, -1.0], "nan"), ([math.nan, 1.0], 1.0), ([math.inf, 1.0], math.inf), ([0.0, math.nan], 0.0)],
    )
    def test_nan_counts_as_0_as_it_does_in_the_databases_of_mlflow(self, tmp_path, values, latest):
        found = written(tmp_path, [plain(value=value) for value in values]).latest["loss"]
        assert ("nan" if math.isnan(found) else found) == latest

    @LOOSELY
    @given(points=POINTS_OF_A_RUN)
    def test_it_is_what_one_comparison_after_another_finds(self, tmp_path, points):
        best = {}
        for point in points:
            value = point["value"]
            finite = 0.0 if math.isnan(value) else max(-1.7976931348623157e308, min(1.7976931348623157e308, value))
            times = [
                (-(2**63) if point[n] is None else point[n], point[f"{n}_micro"] is not None, point[f"{n}_micro"] or 0)
                for n in ("step", "timestamp")
            ]
            rank = (*times, finite)
            if not point["key"].startswith("system/") and (point["key"] not in best or rank > best[point["key"]][0]):
                best[point["key"]] = (rank, value)
        found = written(tmp_path, points, size=3).latest
        assert {key: struct.pack("d", v) for key, v in found.items() if not math.isnan(v)} == {
            key: struct.pack("d", v) for key, (_, v) in best.items() if not math.isnan(v)
        }


def test_closed_rows_leave_no_file(tmp_path):
    rows = Rows(tmp_path, None, in_memory=2)
    rows.add(batch([plain(), plain(), plain()]))
    rows.other(1, None, None, "x", '"y"')
    list(rows.sorted(native=False).history())
    assert list(tmp_path.rglob("*.arrow"))
    rows.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk that is always full")
def test_a_full_disk_is_told_as_such():
    chunks = Chunks(Path("/dev/full"))
    with pytest.raises(DiskFull, match="No space is left"):
        chunks.write({"a": np.random.default_rng(0).integers(0, 2**62, 1_000_000)})
