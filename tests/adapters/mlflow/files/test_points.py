"""Metric files: what is parsed in bulk is what Python reads line by line, each point once."""

import math
import struct

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlmigrate.adapters.mlflow.files import huge, points
from mlmigrate.model import POINTS


def oracle(data: bytes):
    """The points of a metric file by plain Python, each once, with the dataset that any copy has; and the bad lines."""
    found: dict[tuple, list] = {}
    bad = 0
    for line in data.split(b"\n"):
        fields = line.strip().split(b" ")
        if fields == [b""]:
            continue
        try:
            time, value, step = int(fields[0]), float(fields[1]), int(fields[2]) if len(fields) > 2 else 0
            struct.pack("<qq", time, step)  # 64 bits each
        except (ValueError, IndexError, struct.error):
            bad += 1
            continue
        if len(fields) not in (2, 3, 5):
            bad += 1
            continue
        link = tuple(name.decode("utf-8", "backslashreplace") for name in fields[3:]) or None
        key = (time, repr(value), step)
        if found.setdefault(key, [link])[0] is None:
            found[key][0] = link
    return [(*key, link) for key, (link,) in found.items()], bad


def rows(batches):
    out = []
    for batch in batches:
        assert batch.schema == POINTS
        assert len(batch) <= points.ROWS
        for row in batch.to_pylist():
            link = None if row["dataset_name"] is None else (row["dataset_name"], row["dataset_digest"])
            out.append((row["timestamp"], repr(row["value"]), row["step"], link))
    return out


def read(tmp_path, contents):
    files = []
    for number, data in enumerate(contents):
        place = tmp_path / str(number)
        place.write_bytes(data)
        files.append(points.MetricFile("1", "run", f"key {number}", str(place)))
    losses, repeats = [], []
    return rows(points.batches(files, losses, repeats)), losses, repeats


def bad_lines(losses):
    told = sum("line" in loss.what for loss in losses)
    return told + sum(int(loss.because.split()[0]) for loss in losses if "more lines" in loss.because)


INTS = st.one_of(
    st.integers(-(1 << 63), (1 << 63) - 1).map(str),
    st.integers(0, 3).map(str),
    st.sampled_from(
        ["0x1F", "+1", "1_0", "9223372036854775808", "-9223372036854775808", "007", "-0", "1.0", "", "1e3"]
    ),
)
FLOATS = st.one_of(
    st.floats().map(str),
    st.floats(0, 1).map(str),
    st.sampled_from(
        ["nan", "inf", "-inf", "NaN", "-nan", "Infinity", "1e400", "1e-400", "5e-324", "0x1p3", "nan(1)", ".5", "5."]
    ),
    st.sampled_from(
        ["1_0.5", "+2", "-0.0", "0.0", "", "e", "2.2250738585072011e-308", "9007199254740993", "1,5", "tru"]
    ),
    st.decimals(allow_nan=False, allow_infinity=False).map(str),
)
NAMES = st.sampled_from(["data", "0x", "übung", "a,b", '"q"', "x(1)"])
LINES = st.one_of(
    st.tuples(INTS, FLOATS, INTS).map(" ".join),
    st.tuples(INTS, FLOATS).map(" ".join),
    st.tuples(INTS, FLOATS, INTS, NAMES, NAMES).map(" ".join),
    st.tuples(st.integers(0, 2).map(str), st.sampled_from(["0.1", "nan"]), st.integers(0, 2).map(str)).map(" ".join),
    st.sampled_from(
        ["", " ", "1 2 3 4", "1 2 3\r", "\t1 2 3", "1  2 3", "1 2 3 ", "\0", "1 2\0 3", "x" * 80, "1 2 3\v"]
    ),
    st.text(max_size=8).filter(lambda text: "\n" not in text),
).map(lambda line: line.encode("utf-8", "surrogatepass"))
FILES = st.tuples(st.lists(LINES, max_size=8), st.booleans()).map(lambda made: b"\n".join(made[0]) + b"\n" * made[1])


@settings(max_examples=400, deadline=None)
@given(st.lists(FILES, max_size=5))
@example([b"1 0.5 0x3\n"])
@example([b"1 nan(2) 3\n"])
@example([b"1 2 3\n", b"1 2\n", b"1 2 3 a b\n1 2 3\n", b"torn"])
@example([b"1 2 3\n\n1 2 3\n"])
@example([b"1 2 3 4\n1 2\n"])
def test_what_is_parsed_in_bulk_is_what_python_reads(contents):
    parsed = points.parse(contents) if contents else None
    expected = [oracle(data) for data in contents]
    if parsed is None:
        return
    assert len(parsed.columns) == sum(parsed.rows)
    start = 0
    for place, (data, count) in enumerate(zip(contents, parsed.rows, strict=True)):
        part = parsed.columns.part(start, start + count)
        start += count
        names = part.name.to_pylist() if part.name is not None else [None] * count
        digests = part.digest.to_pylist() if part.digest is not None else [None] * count
        links = [None if name is None else (name, digest) for name, digest in zip(names, digests, strict=True)]
        told = zip(part.timestamp.tolist(), map(repr, part.value.tolist()), part.step.tolist(), links, strict=True)
        once: dict[tuple, list] = {}
        for time, value, step, link in told:
            if once.setdefault((time, value, step), [link])[0] is None:
                once[time, value, step][0] = link
        assert [(*key, link) for key, (link,) in once.items()] == expected[place][0], data
        assert sum(1 for where, _ in parsed.bad if where == place) == expected[place][1]


@settings(max_examples=200, deadline=None)
@given(contents=st.lists(FILES, max_size=4))
@example(contents=[b"1 1 1\n2 1 2\n1 1 1\n", b"1 1 1\n"])
@example(contents=[b"1 1 0\n1 1 0 d g\n", b"1 nan 0\n1 -nan 0\n1 0.0 0\n1 -0.0 0\n"])
def test_each_point_comes_once_in_the_order_of_its_file(contents, tmp_path_factory):
    found, losses, _ = read(tmp_path_factory.mktemp("m"), contents)
    expected = [oracle(data) for data in contents]
    assert found == [row for listed, _ in expected for row in listed]
    assert bad_lines(losses) == sum(bad for _, bad in expected)


def test_equal_lines_are_told_once_for_their_metric(tmp_path):
    found, losses, repeats = read(tmp_path, [b"1 0.5 0\n1 0.5 0\n2 0.5 1\n1 0.5 0\n"])
    assert found == [(1, "0.5", 0, None), (2, "0.5", 1, None)]
    assert [(loss.what, loss.because) for loss in repeats] == [
        (
            "metric 'key 0'",
            "2 lines are there already, equal to the last digit; each point is counted once, no value is lost",
        )
    ]
    assert losses == []


def test_a_second_dataset_of_one_point_is_a_loss(tmp_path):
    found, losses, _ = read(tmp_path, [b"1 0.5 0 a 1\n1 0.5 0 b 2\n"])
    assert found == [(1, "0.5", 0, ("a", "1"))]
    assert losses[-1].because == "1 line is there already with another dataset; the first dataset is kept"


def test_a_line_with_a_dataset_keeps_its_step(tmp_path):
    assert read(tmp_path, [b"7 0.25 42 train d1ge57\n"])[0] == [(7, "0.25", 42, ("train", "d1ge57"))]


def test_many_bad_lines_are_told_in_few_words(tmp_path):
    _, losses, _ = read(tmp_path, [b"\xff\n" * 1000 + b"1 2 3\n"])
    assert len(losses) == points.TOLD + 1
    assert losses[0].what == "metric 'key 0', line 1"
    assert losses[0].because.isascii()
    assert losses[-1].because == "990 more lines cannot be read"


def test_a_file_that_is_gone_is_a_loss_and_the_next_is_read(tmp_path):
    place = tmp_path / "there"
    place.write_bytes(b"1 2 3\n")
    files = [points.MetricFile("1", "run", key, str(tmp_path / key)) for key in ("gone", "there")]
    losses = []
    assert len(rows(points.batches(files, losses, []))) == 1
    assert [(loss.run, loss.what, loss.because) for loss in losses] == [
        ("run", "metric 'gone'", "gone while it was read")
    ]


@pytest.fixture
def small_chunks(monkeypatch):
    """Files count as large from 64 bytes on, and are read 50 bytes at a time."""
    monkeypatch.setattr(points, "BIG", 64)
    monkeypatch.setattr("mlmigrate.adapters.mlflow.files.disk.AT_ONCE", 64)
    monkeypatch.setattr(huge, "CHUNK", 50)
    monkeypatch.setattr(huge, "AT_A_TIME", 3)
    monkeypatch.setattr(huge, "LONGEST", 200)


@settings(max_examples=150, deadline=None)
@given(data=st.lists(LINES, min_size=4, max_size=40).map(b"\n".join))
@example(data=b"".join(b"%d 0.5 %d\n" % (n % 7, n % 7) for n in range(60)))
def test_a_large_file_read_in_chunks_is_the_same(data, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huge, "CHUNK", 50)
        patch.setattr(huge, "AT_A_TIME", 3)
        file = tmp_path_factory.mktemp("m") / "loss"
        file.write_bytes(data)
        losses = []
        parts = list(huge.stream(points.MetricFile("1", "run", "loss", str(file)), losses, []))
    found = [
        (time, repr(value), step)
        for part in parts
        for time, value, step in zip(part.timestamp.tolist(), part.value.tolist(), part.step.tolist(), strict=True)
    ]
    expected, bad = oracle(data)
    assert found == [row[:3] for row in expected]
    assert bad_lines(losses) == bad


def test_a_line_without_end_does_not_fill_the_memory(tmp_path, small_chunks):
    found, losses, _ = read(tmp_path, [b"1 2 3\n" + b"9" * 1000 + b"\n4 5 6\n" + b"8" * 500])
    assert [row[:3] for row in found] == [(1, "2.0", 3), (4, "5.0", 6)]
    assert [loss.what for loss in losses] == ["metric 'key 0', line 2", "metric 'key 0', line 4"]


def test_a_large_file_whose_steps_start_again_is_read_whole(tmp_path, small_chunks):
    data = b"".join(b"%d 0.5 %d\n" % (1000 + n, n % 50) for n in range(200))
    found, losses, _ = read(tmp_path, [data])
    assert (found, losses) == ([(1000 + n, "0.5", n % 50, None) for n in range(200)], [])


def test_values_are_exact_to_the_last_bit(tmp_path):
    values = [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, 2.0**53 + 2, -0.0, math.inf, -math.inf]
    found, _, _ = read(tmp_path, ["".join(f"{n} {value} {n}\n" for n, value in enumerate(values)).encode()])
    assert [value for _, value, _, _ in found] == [repr(value) for value in values]


def test_batches_are_of_one_schema_and_bounded(tmp_path):
    (tmp_path / "k").write_bytes(b"".join(b"%d 1 %d\n" % (n, n) for n in range(150_000)))
    batches = list(points.batches([points.MetricFile("1", "run", "k", str(tmp_path / "k"))], [], []))
    assert [len(batch) for batch in batches] == [points.ROWS, 150_000 - points.ROWS]
    assert all(isinstance(batch, pa.RecordBatch) and batch.schema == POINTS for batch in batches)
