"""meta.yaml: what the fast reader says is what YAML says, and hostile files cost nothing."""

import time

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from mlmigrate.adapters.mlflow.files import meta

KEYS = st.sampled_from(["run_id", "name", "status", "tags", "artifact_uri", "on", "null", "x"])
VALUES = st.one_of(
    st.sampled_from(
        ["null", "~", "[]", "{}", "''", "yes", "No", "0b11", "0x1f", "017", "1_000", "1:30", "1e5", "1.5e+3"]
    ),
    st.from_regex(r"[0-9a-f]{1,34}", fullmatch=True),
    st.from_regex(r"-?[0-9_]{1,22}", fullmatch=True),
    st.from_regex(r"'[ -~]{0,12}'", fullmatch=True),
    st.from_regex(r"[A-Za-z/.][ -~]{0,20}", fullmatch=True),
    st.text(max_size=12),
)


def by_yaml(text):
    try:
        return yaml.load(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError):
        return "an error"


@given(st.lists(st.tuples(KEYS, VALUES), min_size=1, max_size=4))
@example([("name", "a: b")])
@example([("name", "a #b")])
@example([("name", "2001-12-14")])
@example([("name", "Null")])
@example([("run_id", "0b1111111111")])
@example([("run_id", "12345678901234567890123456789012")])
@example([("run_id", "1234567890e234567890123456789012")])
def test_the_fast_reader_says_what_yaml_says_or_nothing(pairs):
    text = "".join(f"{key}: {value}\n" for key, value in pairs)
    found = meta.flat(text)
    if found is not None:
        expected = by_yaml(text)
        assert found == expected
        assert [type(value) for value in found.values()] == [type(value) for value in expected.values()]


def test_the_fast_reader_reads_what_mlflow_writes():
    written = {"run_id": "0" * 31 + "a", "name": "", "end_time": None, "status": 3, "tags": [], "user_id": "ada"}
    written |= {"artifact_uri": "file:///C:/Users/a b/mlruns/1/x/artifacts", "experiment_id": "1"}
    assert meta.flat(yaml.safe_dump(written, default_flow_style=False)) == written


@pytest.mark.parametrize(
    ("content", "flaw"),
    [
        (b"", "empty"),
        (b"\0" * 512, "empty"),
        (b"- a\n- b\n", "no mapping"),
        (b"run_id: abc\nstatus: [3\n", "torn or no YAML"),
        (b"a: " + b"[" * 5000 + b"]" * 5000, "nested too deep or too long"),
        (b"a: &a [1]\nb: [*a, *a]\n", "holds YAML aliases"),
        (b"run_id: abc\nname: \xff\n", "not UTF-8"),
        (b"a: !!python/object/apply:os.system [true]\n", "torn or no YAML"),
    ],
)
def test_a_bad_meta_is_told_and_never_raises(content, flaw):
    assert meta.parse(content).flaw == flaw


def test_of_a_torn_meta_the_whole_lines_are_kept():
    assert meta.parse(b"run_id: abc\nstatus: 3\nuser_id: 'ad").meta == {"run_id": "abc", "status": 3}


def test_a_bomb_of_aliases_is_refused_at_once():
    bomb = "a: &a [x, x]\n" + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [*{chr(97 + n)}, *{chr(97 + n)}]\n" for n in range(24)
    )
    begun = time.process_time()  # of this process alone, since the machine may be busy
    assert meta.parse(bomb.encode()).flaw == "holds YAML aliases"
    assert time.process_time() - begun < 1


def test_a_huge_meta_is_not_read(tmp_path):
    file = tmp_path / "meta.yaml"
    file.write_bytes(b"run_id: abc\n" * (1 << 20))
    assert meta.load(str(file)) == meta.Found({}, "larger than 8 MiB")
