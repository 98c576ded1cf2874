"""Where a run's files go in W&B, and that they come back from there."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import msgspec
import pytest

from mlmigrate.adapters.wandb import index, restored
from mlmigrate.adapters.wandb.options import Options
from mlmigrate.adapters.wandb.outgoing import Facts, Goods, Home, outgoing
from mlmigrate.adapters.wandb.shape import File, Version, WandbRun
from mlmigrate.adapters.wandb.trees import Spool, dataset, described, digest_of, goods
from mlmigrate.model import Artifact, DatasetInput, Experiment, Loss, Run, Spot
from mlmigrate.testing.samples import make

HOME = Home("team", "vision", Experiment("1", "vision"))
RUN = make("files")
NINE = [b"%c: &%c [%s]\n" % (c + 1, c + 1, b", ".join([b"*%c" % c] * 9)) for c in range(97, 110)]
BOMB = b"a: &a [x, x]\n" + b"".join(NINE)


def opener(data: bytes):
    return lambda: io.BytesIO(data)


def artifact(path: str, data: bytes) -> Artifact:
    return Artifact(RUN.id, path, opener(data), len(data))


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool")


def spooled(spool: Spool, files: Mapping[str, bytes]) -> dict[str, File]:
    return {path: spool.take(artifact(path, data)) for path, data in files.items()}


def content(file: File) -> bytes:
    assert file.open is not None
    with file.open() as stream:
        return stream.read()


def back(run: Run, found: Goods, native: WandbRun | None = None) -> dict[str, bytes]:
    """What the reader gives of it."""
    written = outgoing(run, HOME, Options(), Facts(native=native is not None), found, native).run
    told = restored.provenance_of(written)
    assert told is not None
    kept, losses = restored.files_of(written, told)
    assert losses == []
    paths = [path for path, _ in kept]
    assert len(paths) == len(set(paths))
    return {path: content(file) for path, file in kept}


def test_bytes_are_read_once_and_lie_once(tmp_path):
    read: list[str] = []

    class Told(io.BytesIO):
        def close(self) -> None:
            read.append("closed")
            super().close()

    spool = Spool(tmp_path)
    found = [spool.take(Artifact("r", path, lambda: Told(b"same"), 4)) for path in ("a", "b/c")]
    assert read == ["closed", "closed"]
    assert [content(one) for one in found for _ in range(2)] == [b"same"] * 4
    assert [(one.path, one.size) for one in found] == [("a", 4), ("b/c", 4)]
    assert {one.md5 for one in found} == {base64.b64encode(hashlib.md5(b"same").digest()).decode()}
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_of_this_machine_is_sent_from_where_it_lies(tmp_path):
    there = tmp_path / "weights.bin"
    there.write_bytes(b"x" * 10)
    given = Artifact("r", "weights.bin", lambda: there.open("rb"), 10, spot=Spot("file", str(there)))
    found = Spool(tmp_path / "spool").take(given)
    assert (found.size, content(found)) == (10, b"x" * 10)
    assert not (tmp_path / "spool").exists()


def test_a_file_that_cannot_be_read_says_so_itself(spool):
    def torn() -> AbstractContextManager[BinaryIO]:
        raise PermissionError("no")

    with pytest.raises(PermissionError):
        spool.take(Artifact("r", "a", torn))


def test_the_digest_of_a_version_is_the_sdks():
    files = [File("b", size=1, md5="bb=="), File("a", size=1, md5="aa=="), File("c", ref="s3://x/c", digest="etag")]
    wanted = hashlib.md5(b"wandb-artifact-manifest-v1\na:aa==\nb:bb==\nc:etag\n").hexdigest()
    assert digest_of(files) == wanted


def test_a_folder_with_an_mlmodel_is_a_model_and_all_else_is_one_artifact(spool):
    files = {
        "model/MLmodel": b"flavors:\n  sklearn:\n    code: null\nutc_time_created: '2020'\nwhen: 2020-01-02\n",
        "model/weights/w.bin": b"1",
        "model/inner/MLmodel": b"flavors: {}",
        "plots/a.png": b"png",
        "readme": b"",
    }
    found, losses = goods(RUN, HOME, Options(), spooled(spool, files), None)
    assert losses == []
    shape = {(one.name, one.type): sorted(file.path for file in one.files) for one in found.logged}
    assert shape == {
        (f"model-{RUN.id}", "model"): ["MLmodel", "inner/MLmodel", "weights/w.bin"],
        (f"mlflow-artifacts-{RUN.id}", "mlflow-artifacts"): ["plots/a.png", "readme"],
    }
    assert found.logged[0].metadata == {
        "flavors": {"sklearn": {"code": None}}, "utc_time_created": "2020", "when": "2020-01-02",
    }  # fmt: skip
    assert {one.run for one in found.logged} == {RUN.id}
    assert back(RUN, found) == files


def test_a_model_at_the_top_of_the_tree_holds_all_of_it(spool):
    files = {"MLmodel": b"flavors: {}", "a/b": b"1"}
    found, _ = goods(RUN, HOME, Options(), spooled(spool, files), None)
    assert [(one.type, len(one.files)) for one in found.logged] == [("model", 2)]
    assert back(RUN, found) == files


def test_a_run_without_files_logs_nothing():
    assert goods(RUN, HOME, Options(), {}, None) == (Goods(), [])


def test_files_that_a_person_wants_on_the_run_page_are_there(spool):
    files = {"plots/a.png": b"1", "plots/b.png": b"2", "data.csv": b"3", "config.yaml": b"4", "output.log": b"5"}
    found, _ = goods(RUN, HOME, Options(run_files="**"), spooled(spool, files), None)
    assert {file.path for file in found.files} == {"plots/a.png", "plots/b.png", "data.csv", "output.log"}
    # W&B writes these two itself, so ours lie where it does not
    assert [sorted(file.path for file in one.files) for one in found.logged] == [["config.yaml", "output.log"]]
    assert back(RUN, found) == files


@pytest.mark.parametrize(
    "text",
    [
        b"\xff\xfe\x00", b"- a\n", b"!!python/object:os.system x", BOMB, b"x: " + b"y" * 300_000, b"a: [" * 2000,
    ],
)  # fmt: skip
def test_an_mlmodel_that_is_none_says_nothing(spool, text):
    assert described(spool.take(artifact("MLmodel", text))) == {}


def test_numbers_that_json_lacks_are_texts_in_metadata(spool):
    assert described(spool.take(artifact("MLmodel", b"a: .nan\nb: {1: 2}\n"))) == {"a": "nan", "b": {"1": 2}}


def test_a_dataset_is_the_same_artifact_for_all_runs_that_read_it():
    given = DatasetInput("train set", "abc123", "s3", '{"uri": "s3://bucket/x.csv"}', '{"a": "int"}', '{"rows": 3}')
    found = dataset(given, HOME)
    assert (found.type, found.run, found.aliases) == ("dataset", "", ("latest", "abc123"))
    assert found.name.startswith("dataset-train-set-")
    told, there = found.files
    assert msgspec.json.decode(content(told)) == {
        "name": "train set", "digest": "abc123", "source_type": "s3",
        "source": '{"uri": "s3://bucket/x.csv"}', "schema": '{"a": "int"}', "profile": '{"rows": 3}',
    }  # fmt: skip
    assert (there.path, there.ref) == ("source", "s3://bucket/x.csv")
    assert dataset(replace(given, tags={"mlflow.data.context": "eval"}), HOME).digest == found.digest
    assert dataset(replace(given, digest="other"), HOME).digest != found.digest


@pytest.mark.parametrize("source", ["", "{}", "no json", '{"uri": "/home/x"}', '{"uri": 3}', '{"tags": {}}', "\ud800"])
def test_a_dataset_without_a_place_that_others_reach_has_no_reference(source):
    assert [file.path for file in dataset(DatasetInput("d", "1", source=source), HOME).files] == ["dataset.json"]


NET = {"model/w.bin": b"w" * 10}


def native(*, files: Mapping[str, bytes] = {}, versions: tuple[tuple[Version, Mapping[str, bytes]], ...] = ()):
    """A run of W&B's, and its artifacts as another tracker keeps them."""
    run = WandbRun(
        "maker",
        "team",
        "vision",
        files=tuple(File(path, opener(data), len(data)) for path, data in files.items()),
        logged=tuple(
            replace(one, files=(*one.files, *(File(path, opener(data), len(data)) for path, data in held.items())))
            for one, held in versions
        ),
    )
    told = index.of(run)
    tree = {place.path: content(place.file) for place in told.places()} | {"wandb/run.json": told.encoded()}
    return tree, index.parse(told.encoded(), lambda at: opener(tree[at]) if at in tree else None)


def test_what_wandb_had_goes_where_it_was_and_comes_back_as_it_lay(spool):
    page = {"output.log": b"hi", "config.yaml": b"a: 1", "media/images/a.png": b"png"}
    net = Version("net", "model", "v3", "team", "vision", description="d", metadata={"n": 1}, aliases=("best", "v3"))
    tree, had = native(files=page, versions=((net, NET),))
    tree |= {"wandb/history.jsonl": b"{}\n", "added.txt": b"later"}
    found, losses = goods(RUN, HOME, Options(), spooled(spool, tree), had)
    assert losses == []
    assert {file.path for file in found.files} == {"output.log", "media/images/a.png"}
    logged, rest = found.logged
    assert (logged.name, logged.type, logged.aliases, logged.metadata) == ("net", "model", ("best",), {"n": 1})
    assert (logged.description, logged.run, [file.path for file in logged.files]) == ("d", RUN.id, ["model/w.bin"])
    assert sorted(file.path for file in rest.files) == [
        "added.txt", "wandb/files/config.yaml", "wandb/files/output.log", "wandb/history.jsonl", "wandb/run.json",
    ]  # fmt: skip
    assert back(RUN, found, had) == tree


def test_versions_of_one_name_are_logged_in_their_order(spool):
    second = (Version("net", "model", "v10", aliases=("latest",)), {"w": b"2"})
    first = (Version("net", "model", "v9"), {"w": b"1"})
    tree, had = native(versions=(second, first))
    found, _ = goods(RUN, HOME, Options(), spooled(spool, tree), had)
    assert [content(one.files[0]) for one in found.logged if one.name == "net"] == [b"1", b"2"]
    assert back(RUN, found, had) == tree


def test_two_versions_of_the_same_files_are_one_and_that_is_told(spool):
    tree, had = native(versions=((Version("net", "model", "v0"), NET), (Version("net", "model", "v2"), NET)))
    found, losses = goods(RUN, HOME, Options(), spooled(spool, tree), had)
    assert [one.name for one in found.logged if one.type == "model"] == ["net"]
    assert [(loss.what, loss.because) for loss in losses] == [
        ("artifact net:v2 of W&B", "another version has the same files"),
    ]
    assert back(RUN, found, had) == tree


def test_references_stay_and_bytes_that_are_gone_are_told(spool):
    refs = (File("there.csv", ref="https://example.com/x.csv", digest="etag", size=3),)
    tree, had = native(versions=((Version("net", "model", "v0", files=refs), NET | {"lost": b"x"}),))
    del tree["wandb/artifacts/net/v0/lost"]
    found, losses = goods(RUN, HOME, Options(), spooled(spool, tree), had)
    version = next(one for one in found.logged if one.name == "net")
    assert {file.path: file.ref for file in version.files} == {"there.csv": refs[0].ref, "model/w.bin": ""}
    assert [(loss.what, loss.because) for loss in losses] == [
        ("artifact net:v0 of W&B", "made without 1 of its 3 files, whose bytes are not there: 'lost'"),
    ]


def test_references_by_ids_of_another_server_stay_and_are_told(spool):
    refs = tuple(File(f"{n}", ref=f"wandb-{kind}artifact://ff/x", digest="e") for n, kind in enumerate(("", "client-")))
    tree, had = native(versions=((Version("net", "model", "v0", files=refs), NET),))
    found, losses = goods(RUN, HOME, Options(), spooled(spool, tree), had)
    version = next(one for one in found.logged if one.name == "net")
    assert [file.ref for file in version.files if file.ref] == [one.ref for one in refs]
    assert ["2 of its references" in loss.because for loss in losses] == [True]


def test_what_was_logged_twice_is_one_version_with_the_ids_of_both(spool):
    one, other = (Version("net", "model", f"v{n}", clients=((f"c{n}", f"s{n}"),)) for n in range(2))
    tree, had = native(versions=((one, NET), (other, NET)))
    found, _ = goods(RUN, HOME, Options(), spooled(spool, tree), had)
    assert [made.clients for made in found.logged if made.name == "net"] == [(("c0", "s0"), ("c1", "s1"))]


def test_a_version_whose_bytes_are_all_gone_is_told_and_not_made(spool):
    tree, had = native(versions=((Version("net", "model", "v0"), {"a": b"1", "b": b"2"}),))
    tree = {path: data for path, data in tree.items() if path == "wandb/run.json"}
    found, losses = goods(RUN, HOME, Options(), spooled(spool, tree), had)
    assert [one.type for one in found.logged] == ["mlflow-artifacts"]
    assert [loss.because for loss in losses] == ["the bytes of its files are not there"]


def test_a_version_that_never_had_files_is_made_again(spool):
    nothing = hashlib.md5(b"wandb-artifact-manifest-v1\n").hexdigest()
    had = Version("net", "model", "v0", digest=nothing, metadata={"accuracy": 0.9}, aliases=("best",))
    tree, told = native(versions=((had, {}),))
    found, losses = goods(RUN, HOME, Options(), spooled(spool, tree), told)
    (version,) = [one for one in found.logged if one.name == "net"]
    assert (version.digest, version.metadata, version.aliases) == (nothing, {"accuracy": 0.9}, ("best",))
    assert losses == []


def test_a_version_whose_files_nobody_told_is_not_made(spool):
    tree, told = native(versions=((Version("net", "model", "v0", digest="0123"), {}),))
    found, losses = goods(RUN, HOME, Options(), spooled(spool, tree), told)
    assert "net" not in [one.name for one in found.logged]
    assert [loss.because for loss in losses] == ["the bytes of its files are not there"]


@pytest.mark.parametrize("kind", ["job", "wandb-history"])
def test_versions_that_the_server_makes_itself_are_kept_as_files(spool, kind):
    tree, had = native(versions=((Version("run-maker-history", kind, "v0"), {"0.parquet": b"p"}),))
    found, losses = goods(RUN, HOME, Options(), spooled(spool, tree), had)
    assert [one.type for one in found.logged] == ["mlflow-artifacts"]
    assert len(losses) == 1
    assert back(RUN, found, had) == tree


@pytest.mark.parametrize("path", ["../../etc/passwd", "/abs", "a\0b", "a/../b"])
def test_a_path_that_is_none_goes_nowhere_but_into_the_tree(spool, path):
    tree, had = native(files={path: b"1"}, versions=((Version("net", "model", "v0"), {path: b"2", "good": b"3"}),))
    found, losses = goods(RUN, HOME, Options(), spooled(spool, tree), had)
    assert found.files == ()
    assert [one.type for one in found.logged] == ["mlflow-artifacts"]
    assert isinstance(losses[0], Loss)
    assert back(RUN, found, had) == tree


def test_what_a_native_run_read_is_looked_for_in_its_new_home(spool):
    used = (
        Version("numbers", "dataset", "v1", "old", "vision", digest="d1"),
        Version("x", "dataset", "v0", "old", "p/q"),
    )
    had = WandbRun("reader", "old", "vision", used=used)
    found, _ = goods(RUN, Home("new", "target", HOME.experiment), Options(), {}, had)
    assert [(one.entity, one.project, one.name, one.digest) for one in found.used[:1]] == [
        ("new", "target", "numbers", "d1")
    ]
    assert found.used[1].project.startswith("p-q-")
