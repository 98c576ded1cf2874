import io
import json
import math
from dataclasses import fields, replace

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlmigrate.adapters.wandb import index
from mlmigrate.adapters.wandb.shape import Block, File, Other, Version, WandbRun
from mlmigrate.errors import BadData

TEXTS = st.text(max_size=8) | st.sampled_from(["$float", "$is", "NaN", "\ud800", "a/b"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=10,
)
MAPPINGS = st.dictionaries(TEXTS, VALUES, max_size=4)


def opener(data):
    return lambda: io.BytesIO(data)


FULL = WandbRun(
    "3kx9",
    entity="team",
    project="vision",
    name="sunny",
    notes="two\nlines",
    tags=("a", "b"),
    group="g",
    job_type="train",
    sweep="sw",
    sweep_config={"method": "grid"},
    state="failed",
    exit_code=3,
    user="ada",
    host="node7",
    program="train.py",
    args=("--lr", "0.1"),
    git_remote="https://host/r.git",
    git_commit="abc",
    created=1,
    started=2,
    ended=3,
    runtime=0.5,
    config={"a": {"b": [1, 2.0, {"c": None}]}, "nan": math.inf, "big": 2**70},
    internal={"m": [{"1": "x"}]},
    summary={"loss": -math.inf, "_step": 4},
    metrics=({"name": "epoch"}, {"glob_name": "*", "step_metric": "epoch"}),
    metadata={"os": "Linux"},
    files=(File("output.log", opener(b"x"), 1, "md5=="), File("gone.txt", gone="deleted in W&B")),
    logged=(
        Version(
            "net",
            "model",
            "v3",
            "team",
            "vision",
            "d1",
            "the net",
            {"layers": 3},
            ("best", "latest"),
            ("t",),
            60,
            9,
            "3kx9",
            "PENDING",
            (("abc", "def"), ("ghi", "")),
            files=(File("w.bin", opener(b"yz"), 2, "m=="), File("far", ref="s3://bucket/far", digest="etag", size=7)),
        ),
    ),
    used=(Version("cifar", "dataset", "v0", "team", "data", "d2"),),
    lines=12,
    alone=("best",),
)


def again(run, found=index.nothing):
    return index.parse(index.of(run).encoded(), found)


class TestRunJson:
    def test_it_brings_back_all_that_was_told(self):
        parsed = again(FULL, lambda at: opener(at.encode()))
        assert parsed == FULL

    def test_that_is_true_of_every_field(self):
        for value in (FULL, FULL.logged[0]):
            assert [one.name for one in fields(value) if getattr(value, one.name) == one.default] == []

    def test_the_bytes_of_a_file_are_found_where_it_lies(self):
        parsed = again(FULL, lambda at: opener(at.encode()))
        output, gone = parsed.files
        weights, far = parsed.logged[0].files
        assert output.open().read() == b"wandb/files/output.log"
        assert weights.open().read() == b"wandb/artifacts/net/v3/w.bin"
        assert (gone.open, gone.gone) == (None, "deleted in W&B")
        assert (far.open, far.ref, far.gone) == (None, "s3://bucket/far", "")

    def test_it_says_where_each_file_lies_or_why_it_does_not(self):
        told = json.loads(index.of(FULL).encoded())
        assert told["version"] == 1
        assert told["run"]["files"] == [
            {"path": "output.log", "size": 1, "md5": "md5==", "at": "wandb/files/output.log"},
            {"path": "gone.txt", "gone": "deleted in W&B"},
        ]
        assert told["run"]["logged"][0]["files"] == [
            {"path": "w.bin", "size": 2, "md5": "m==", "at": "wandb/artifacts/net/v3/w.bin"},
            {"path": "far", "size": 7, "ref": "s3://bucket/far", "digest": "etag"},
        ]

    def test_a_file_found_to_be_gone_on_the_way_is_told_so(self):
        made = index.of(FULL)
        made.gone["wandb/files/output.log"] = "404"
        assert json.loads(made.encoded())["run"]["files"][0]["gone"] == "404"
        assert index.parse(made.encoded()).files[0].gone == "404"

    def test_a_file_that_did_not_come_along_is_gone(self):
        assert "not among" in again(FULL).files[0].gone

    @given(MAPPINGS, MAPPINGS)
    def test_any_config_and_summary_come_back_exactly(self, config, summary):
        parsed = again(WandbRun("x", config=config, summary=summary))
        assert repr(parsed.config) == repr(config)  # NaN is not equal to itself, 1 is equal to 1.0
        assert repr(parsed.summary) == repr(summary)

    @given(MAPPINGS)
    def test_it_is_json_that_everybody_reads(self, config):
        def refuse(word):
            raise AssertionError(word)

        json.loads(index.of(WandbRun("x", config=config)).encoded().decode(), parse_constant=refuse)

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"\xff\xfe",
            b"[]",
            b"{}",
            b'{"run": 3}',
            b'{"run": {}}',
            b'{"run": {"id": 5}}',
            b'{"run": {"id": "x", "config": []}}',
            b'{"run": {"id": "x", "files": [{"path": null}]}}',
            b'{"run": {"id": "x", "logged": [{"name": "n"}]}}',
            b'{"run": {"id": "x", "started": "soon"}}',
            b'{"run": {"id": "x", "config": ' + b"[" * 100_000,
            b'{"run": {"id": "x", "lines": NaN}}',
        ],
    )
    def test_what_is_no_index_is_bad_data(self, data):
        with pytest.raises(BadData):
            index.parse(data)

    def test_names_of_later_versions_are_passed_over(self):
        assert index.parse(b'{"version": 9, "run": {"id": "x", "mood": "good"}, "more": 1}') == WandbRun("x")


class TestPlaces:
    HOSTILE = (
        "../../etc/passwd",
        "/etc/passwd",
        "a//b",
        "./a",
        "",
        "a",
        "a/b",
        "a/b/c",
        "C:\\x",
        "nul\0l",
        "x" * 3000,
        "ü" * 300 + "/y",
        "..",
    )

    def places(self, paths):
        run = WandbRun("x", files=tuple(File(path, opener(b"")) for path in paths))
        return [place.path for place in index.of(run).places()]

    def test_a_plain_file_lies_under_its_own_name(self):
        assert self.places(["media/images/a b_1.png", "größe"]) == [
            "wandb/files/media/images/a b_1.png",
            "wandb/files/größe",
        ]

    @given(st.lists(TEXTS | st.sampled_from(HOSTILE), max_size=8))
    def test_no_name_leaves_the_folder_and_no_two_meet(self, paths):
        found = self.places(paths)
        assert len(set(found)) == len(paths)
        folders = {path[:at] for path in found for at, letter in enumerate(path) if letter == "/"}
        assert not folders & set(found)
        for path in found:
            parts = path.split("/")
            assert parts[:2] == ["wandb", "files"]
            assert not {"", ".", ".."} & set(parts)
            assert not set("\0\\") & set(path)
            assert all(len(part.encode("utf-8", "replace")) < 255 for part in parts)

    def test_hostile_names_come_back_as_they_were(self):
        run = WandbRun("x", files=tuple(File(path, opener(b"")) for path in self.HOSTILE))
        assert [file.path for file in again(run).files] == list(self.HOSTILE)

    def test_versions_lie_by_name_and_number(self):
        net = FULL.logged[0]
        same = replace(net, version="")
        folders = index.folders_of(
            [net, replace(net, version="v4"), same, same, replace(net, name="../n", version="v/1")]
        )
        assert folders[:2] == ["wandb/artifacts/net/v3", "wandb/artifacts/net/v4"]
        assert folders[2].startswith("wandb/artifacts/net/unnumbered-")
        assert folders[3] == folders[2] + "~2"
        assert ".." not in folders[4].split("/")
        assert folders[4].count("/") == 3


def block(others, rows=3):
    return Block(
        pa.array(range(10, 10 + rows)),
        pa.array([1.5e9 + row / 7 for row in range(rows)]),
        pa.array([None] * rows, pa.float64()),
        [],
        *(pa.array([], kind) for kind in (pa.int32(), pa.int32(), pa.float64())),
        others,
    )


class TestHistoryJsonl:
    def test_a_line_is_a_value_that_is_no_number(self):
        lines = list(index.lines(block([Other(0, "note", '"x"'), Other(2, "a.b", '{"_type": "image-file"}')])))
        assert [json.loads(line) for line in lines] == [
            {"_step": 10, "_timestamp": 1.5e9, "_runtime": None, "key": "note", "value": "x"},
            {
                "_step": 12,
                "_timestamp": 1.5e9 + 2 / 7,
                "_runtime": None,
                "key": "a.b",
                "value": {"_type": "image-file"},
            },
        ]
        assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in lines)

    def test_rows_of_numbers_give_no_line(self):
        assert list(index.lines(block([]))) == []

    @given(st.lists(st.tuples(st.integers(0, 2), TEXTS, VALUES), max_size=5))
    def test_values_come_back_with_their_rows(self, given_):
        others = [Other(row, key, json.dumps(value, indent=1)) for row, key, value in given_]
        lines = list(index.lines(block(others)))
        found = list(index.values(lines))
        assert [(one.step, one.key) for one in found] == [(10 + row, key) for row, key, _ in given_]
        assert [one.time for one in found] == [1.5e9 + row / 7 for row, _, _ in given_]
        assert [repr(json.loads(one.text)) for one in found] == [repr(value) for _, _, value in given_]
        for line in lines:
            json.loads(line, parse_constant=pytest.fail)

    @pytest.mark.parametrize(
        "line", [b"[]", b"{", b'{"key": 3, "value": 1}', b'{"key": "x"}', b'{"key": "x", "value": NaN}', b"\xff"]
    )
    def test_a_bad_line_is_named(self, line):
        with pytest.raises(BadData, match="line 2"):
            list(index.values([b'{"key": "x", "value": 1}\n', line]))
