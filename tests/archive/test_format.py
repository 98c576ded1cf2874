"""docs/archive.md is the format: the code agrees with it, and what it says is enough to read an archive."""

import hashlib
import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mlmigrate.archive import layout
from mlmigrate.archive.commits import Commit, Entry, Totals
from mlmigrate.model import Experiment

DOCS = Path(__file__).parents[2] / "docs" / "archive.md"


def section(title):
    text = DOCS.read_text(encoding="utf-8")
    return re.split(r"^#+ ", re.split(rf"^#+ {title}$", text, flags=re.MULTILINE)[1], maxsplit=1, flags=re.MULTILINE)[0]


@pytest.mark.parametrize("table", layout.SCHEMAS)
def test_the_columns_told_are_the_columns_written(table):
    first = re.search(r"^\| column .*?\n\n", section(table), flags=re.MULTILINE | re.DOTALL)[0]
    told = re.findall(r"^\| (\w+) \| ([^|]+) \|", first, flags=re.MULTILINE)[1:]
    assert told == [(field.name, str(field.type).replace(" ('tags')", "")) for field in layout.SCHEMAS[table]]


def test_every_field_of_a_commit_is_told():
    told = set(re.findall(r"`(\w+)`", section("Commits")))
    assert {*Commit.__struct_fields__, *Entry.__struct_fields__, *Totals.__struct_fields__} <= told


def test_an_archive_is_read_by_what_the_page_says_alone(tmp_path, kit, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "archive"
    one, two = kit.run("r1", params={"lr": 0.1, "n": 2**70}, tags={"t": "␛"}), kit.run("r2")
    batches = [kit.series("r1", [1.5, 2.5]), kit.series("r2", [9.0])]
    kit.write(folder, [one, two], batches, [kit.artifact("r1", "a", b"bytes")], experiments=[Experiment("1", "vision")])
    kit.write(folder, [kit.replace(two, stamp="s2")], [kit.series("r2", [9.0, 10.0])])
    code = re.search(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), flags=re.DOTALL)[1]
    space = {}
    exec(code, space)
    assert {run: rows["value"].to_pylist() for run, rows in space["points"].items() if len(rows)} == {
        "r1": [1.5, 2.5],
        "r2": [9.0, 10.0],
    }
    attributes = space["table"]("attributes")["r1"].to_pylist()
    assert [(row["role"], row["name"], row["type"], row["value"]) for row in attributes] == [
        ("param", "lr", "float", "0.1"),
        ("param", "n", "int", str(2**70)),
        ("tag", "t", "str", "␛241b"),
    ]


def test_commits_and_files_are_sealed_as_the_page_says(tmp_path, kit):
    kit.write(tmp_path, [kit.run("r")], [kit.series("r", [1.0])], [kit.artifact("r", "a", b"bytes")])
    for what, files in (("archive", tmp_path.glob("mlmigrate.json")), ("commit", tmp_path.glob("packs/*.json"))):
        for file in files:
            form = rb'\{"sha256":"([0-9a-f]{64})","%s":(.*)\}\n' % what.encode()
            head, body = re.fullmatch(form, file.read_bytes()).groups()
            assert hashlib.sha256(body).hexdigest() == head.decode()
    for pack, commit in kit.commits(tmp_path).items():
        for told in commit["files"]:
            data = (tmp_path / "packs" / pack / told["name"]).read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (told["size"], told["sha256"])
            assert pq.read_metadata(tmp_path / "packs" / pack / told["name"]).num_rows == told["rows"]
    (totals,) = [one["totals"] for one in kit.commits(tmp_path).values() if one["runs"]]
    assert totals == {"runs": 1, "points": 1, "params": 0, "tags": 0, "artifacts": 1, "records": 0, "size": 5}
    sha256 = hashlib.sha256(b"bytes").hexdigest()
    assert (tmp_path / "blobs" / sha256[:2] / sha256).read_bytes() == b"bytes"


def test_losses_given_with_the_commit_are_kept(tmp_path, kit):
    from mlmigrate.archive.writer import ArchiveTarget
    from mlmigrate.model import Loss
    from mlmigrate.storage import LocalStorage

    with ArchiveTarget(LocalStorage(tmp_path)).pack("p", []) as place:
        place.begin([kit.run("r")])
        place.commit([Loss("r", "param 'x'", "cut", "1")])
    (commit,) = kit.commits(tmp_path).values()
    assert commit["losses"] == [{"run": "r", "what": "param 'x'", "because": "cut", "experiment": "1"}]


def test_no_secret_and_no_place_of_the_source_is_in_the_manifest(tmp_path, kit):
    kit.write(tmp_path, [kit.run("r")])
    value = json.loads((tmp_path / "mlmigrate.json").read_bytes())["archive"]
    assert sorted(value) == ["by", "created", "format"]
