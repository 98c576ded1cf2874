"""What Stores and Sending ask of a place, told by a place in memory that writes it down."""

from __future__ import annotations

import io
import threading
from concurrent.futures import Future

import pytest

from mlmigrate.adapters.base import Once
from mlmigrate.adapters.mlflow.direct import AHEAD, SMALL, Far, Stores, Unreadable, reachable
from mlmigrate.adapters.mlflow.sending import WINDOW, Sending
from mlmigrate.errors import Damaged, Refused, Unavailable
from mlmigrate.model import Artifact, Spot
from mlmigrate.storage.objects import PART, BadKey, FileBody, Stored, digest_of, digest_text, open_objects


class Bucket:
    """Objects in memory. `asked` lists (what, key) of every request."""

    local = None

    def __init__(self, name="b", store="mem", files=None):
        self.url, self.store, self.files = f"s3://{name}", store, dict(files or {})
        self.asked, self.lock = [], threading.Lock()
        self.broken_off, self.resumed, self.shut, self.refuses = {}, [], False, ()

    def note(self, what, key):
        with self.lock:
            self.asked.append((what, key))
        if self.shut:
            raise Refused(f"{self.url}: these credentials may not do that (AccessDenied).") from OSError("AccessDenied")

    def keys(self, what):
        return sorted(key for said, key in self.asked if said == what)

    def stored(self, key, data):
        return Stored(key, len(data), "v1", 0.0, digest_of(io.BytesIO(data))[0])

    def list(self, below=""):
        self.note("list", below)
        for key, data in self.files.items():
            if key.startswith(below):
                yield Stored(key, len(data), "v1")

    def head(self, key):
        self.note("head", key)
        return self.stored(key, self.files[key]) if key in self.files else None

    def open(self, key, start=0, length=None, version=""):
        self.note("open", key)
        end = None if length is None else start + length
        return io.BytesIO(self.files[key][start:end])

    def put(self, key, data, *, create=False, sha256=""):
        self.note("put", key)
        if key.endswith(self.refuses) and self.refuses:
            raise BadKey(f"no object can be called {key!r}")
        with self.lock:
            self.files[key] = bytes(data)
        return self.stored(key, bytes(data))

    def upload(self, key, body, *, part_size=0, resume="", threads=4):
        self.note("upload", key)
        self.resumed.append(resume)
        with body.open(0, body.size) as stream:
            self.files[key] = stream.read()
        return self.stored(key, self.files[key])

    def unfinished(self, below=""):
        self.note("unfinished", below)
        yield from ((key, id_, 0.0) for key, id_ in self.broken_off.items())

    def copy(self, source, key, to, size, version=""):
        self.note("copy", to)
        if source.shut:
            raise Refused("these credentials may not read the source (AccessDenied).") from OSError("AccessDenied")
        self.files[to] = source.files[key]
        return self.stored(to, self.files[to])


@pytest.fixture
def stores():
    made = []

    def of(*buckets, again=None):
        one = Stores({}, again=again)
        one._places = {bucket.url: bucket for bucket in buckets}
        made.append(one)
        return one

    yield of
    for one in made:
        one.close()


def streamed(path, data, **known):
    return Artifact("run", path, lambda: io.BytesIO(data), len(data), **known)


def read(artifact):
    with artifact.open() as stream:
        return stream.read()


def all_sent(stores, uri, artifacts):
    losses = []
    sending = Sending(stores, losses)
    try:
        for artifact in artifacts:
            sending.put(uri, artifact)
        sending.settle()
    finally:
        sending.close()
    return losses


class TestReading:
    def test_a_path_is_what_the_store_says_behind_the_place(self, stores):
        names = ["a//b", "../x", "%2F", " ", "é", "a", "a/b"]
        bucket = Bucket(files={f"p/run/{name}": b"x" for name in names} | {"p/run2/z": b"", "p/run/dir/": b""})
        found = list(stores(bucket).artifacts("s3://b/p/run/", "run"))
        assert [one.path for one in found] == names
        assert found[0].spot == Spot("mem", "s3://b/p/run/a//b", "v1")
        assert bucket.asked == [("list", "p/run/")]

    def test_a_uri_is_read_as_mlflow_reads_it(self, stores):
        assert stores(bucket := Bucket()).at("s3://b/p q/%20/x?y#z") == (bucket, "p q/%20/x")

    def test_nothing_is_fetched_before_a_file_is_read(self, stores):
        bucket = Bucket(files={f"r/{n:03}": b"x" for n in range(200)})
        one = stores(bucket)
        for _ in one.in_turn(iter([Far("s3://b/r", "run")])):
            pass
        assert bucket.keys("open") == []

    def test_small_files_are_fetched_ahead_and_each_once(self, stores):
        files = {f"r/{n:03}": b"%d" % n for n in range(200)} | {"r/large": bytes(SMALL + 1)}
        bucket = Bucket(files=files)
        seen = {}
        for artifact in stores(bucket).in_turn(iter([Far("s3://b/r", "run")])):
            seen[f"r/{artifact.path}"] = read(artifact)
        assert seen == files
        assert bucket.keys("open") == sorted(files)

    def test_no_more_than_a_window_is_fetched_for_nothing(self, stores):
        bucket = Bucket(files={f"r/{n:03}": b"x" for n in range(500)})
        for number, artifact in enumerate(stores(bucket).in_turn(iter([Far("s3://b/r", "run")]))):
            if not number:
                read(artifact)
        assert len(bucket.keys("open")) <= 4 * AHEAD

    def test_an_mlmodel_that_is_read_fetches_nothing_else(self, stores):
        bucket = Bucket(files={f"r/{n:03}": b"x" for n in range(50)} | {"r/MLmodel": b"m"})
        for artifact in stores(bucket).in_turn(iter([Far("s3://b/r", "run")])):
            if artifact.path == "MLmodel":
                read(artifact)
        assert bucket.keys("open") == ["r/MLmodel"]

    def test_a_file_can_be_opened_again(self, stores):
        bucket = Bucket(files={"r/a": b"x"})
        (artifact,) = stores(bucket).in_turn(iter([Far("s3://b/r", "run")]))
        assert [read(artifact) for _ in range(3)] == [b"x"] * 3

    def test_an_empty_place_is_told(self, stores):
        told = []
        assert list(stores(Bucket()).in_turn(iter([Far("s3://b/r", "run", lambda: told.append(1))]))) == []
        assert told == [1]

    def test_a_place_that_may_not_be_read_is_no_reason_to_give_up_all(self, stores):
        bucket = Bucket(files={"x/y": b""})
        list((one := stores(bucket)).artifacts("s3://b/x", "run"))
        bucket.shut = True
        with pytest.raises(Unreadable, match="s3://b/r may not be read") as told:
            list(one.artifacts("s3://b/r", "run"))
        assert told.value.exit_code == 3

    def test_when_none_may_be_read_all_ends_at_once(self, stores):
        shut, open_ = Bucket("shut"), Bucket("open", files={"x/a": b"x"})
        shut.shut = True
        one = stores(shut, open_)
        one.named = lambda: ["s3://shut/1", "/a/folder"]
        with pytest.raises(Refused):
            list(one.artifacts("s3://shut/1/r", "run"))
        one = stores(shut, open_)
        one.named = lambda: ["s3://shut/1", "s3://open/x"]
        with pytest.raises(Unreadable):
            list(one.artifacts("s3://shut/1/r", "run"))

    @pytest.mark.parametrize("cause", [OSError("InvalidAccessKeyId"), OSError("<Code>ExpiredToken</Code>"), None])
    def test_who_is_nobody_there_reads_nothing_else_either(self, stores, cause):
        class Nobody(Bucket):
            def note(self, what, key):
                raise Refused("refused") from cause

        with pytest.raises(Refused):
            list(stores(Nobody()).artifacts("s3://b/r", "run"))

    @pytest.mark.parametrize(
        ("uri", "known"),
        [("s3://b/x", True), ("S3A://b", True), ("gs://b/x", True), ("wasbs://c@a.blob.core.windows.net/x", True),
         ("s3:/x", False), ("dbfs:/x", False), ("hdfs://h/x", False), ("/s3://b", False), ("file:///x", False)],
    )  # fmt: skip
    def test_which_uris_are_of_object_stores(self, uri, known):
        assert reachable(uri) == known


class TestSending:
    def test_small_files_are_put_whole_and_names_stay(self, stores):
        bucket = Bucket()
        files = {name: name.encode() for name in ("a", "b/c", "a//b", "%2F")}
        assert all_sent(stores(bucket), "s3://b/p", [streamed(*one) for one in files.items()]) == []
        assert bucket.files == {f"p/{name}": data for name, data in files.items()}

    def test_within_a_store_nothing_is_read(self, stores):
        source, target = Bucket("old", files={"r/a": b"x", "r/MLmodel": b"m"}), Bucket("new")
        one = stores(source, target)
        all_sent(one, "s3://new/r", one.artifacts("s3://old/r", "run"))
        assert (target.files, source.keys("open"), target.keys("put")) == (source.files, [], [])

    def test_what_these_credentials_may_not_copy_goes_through_us(self, stores):
        source, seen_by_target, target = (
            Bucket("old", files={f"r/{n}": b"x" for n in range(9)}),
            Bucket("old"),
            Bucket("new"),
        )
        seen_by_target.shut = True
        artifacts = list(stores(source).artifacts("s3://old/r", "run"))
        all_sent(stores(seen_by_target, target), "s3://new/r", artifacts)
        assert target.files == source.files
        assert len(target.keys("copy")) < len(artifacts) + 1

    def test_a_large_file_of_a_disk_is_sent_from_there(self, stores, tmp_path):
        file = tmp_path / "big"
        file.write_bytes(bytes(PART + 1))
        told = file.stat()
        spot = Spot("file", str(file), f"{told.st_mtime_ns}-{told.st_size}")
        passed = []

        def opened():
            raise AssertionError("not by way of the stream")

        big = Artifact("run", "big", opened, told.st_size, spot=spot, told=lambda at, n: passed.append((at, n)))
        bucket = Bucket()
        all_sent(stores(bucket), "s3://b", [big])
        assert (bucket.keys("upload"), bucket.files["big"]) == (["big"], bytes(PART + 1))
        assert (0, PART + 1) in passed

    def test_a_large_file_goes_on_at_its_parts(self, stores):
        bucket = Bucket()
        bucket.broken_off = {"r/big": "upload-7", "r/other": "upload-8"}
        all_sent(stores(bucket), "s3://b/r", [streamed("big", bytes(PART + 1))])
        assert bucket.resumed == ["upload-7"]

    def test_what_is_there_whole_is_not_sent_again(self, stores):
        files = {f"r/{n}": b"%d" % n for n in range(5)} | {"r/big": bytes(PART + 1)}
        bucket = Bucket(files={**files, "r/3": b"another", "r/4": b"x"})
        all_sent(stores(bucket), "s3://b/r", [streamed(key[2:], data) for key, data in files.items()])
        assert (bucket.files, bucket.keys("put"), bucket.keys("upload")) == (files, ["r/3", "r/4"], [])

    def test_into_an_empty_place_nothing_is_asked_file_by_file(self, stores):
        bucket = Bucket()
        all_sent(stores(bucket), "s3://b/r", [streamed(str(n), b"x") for n in range(50)])
        assert (bucket.keys("head"), bucket.keys("list")) == ([], ["r/"])

    def test_a_name_that_the_store_refuses_is_a_loss(self, stores):
        bucket = Bucket()
        bucket.refuses = ("bad",)
        losses = all_sent(stores(bucket), "s3://b/r", [streamed("good", b"x"), streamed("bad", b"x")])
        assert ([loss.what for loss in losses], bucket.files) == (["artifact 'bad'"], {"r/good": b"x"})

    @pytest.mark.parametrize("known", [{"sha256": "0" * 64}, {"size": 5}])
    def test_bytes_that_are_not_what_was_promised_are_not_written(self, stores, known):
        bucket = Bucket()
        artifact = Artifact("run", "a", lambda: io.BytesIO(b"data"), **{"size": 4, **known})
        with pytest.raises(Damaged):
            all_sent(stores(bucket), "s3://b/r", [artifact])
        assert bucket.files == {}

    def test_a_damaged_copy_within_a_store_is_told(self, stores):
        source, target = Bucket("old", files={"r/a": b"rotten"}), Bucket("new")
        one = stores(source, target)
        artifact = Artifact("run", "a", io.BytesIO, 6, "0" * 64, Spot("mem", "s3://old/r/a"))
        with pytest.raises(Damaged):
            all_sent(one, "s3://new/r", [artifact])

    def test_an_error_is_told_at_the_end_at_the_latest_and_no_file_begins_after_it(self, stores):
        bucket = Bucket()

        def broken():
            raise Unavailable("the source is away")

        sending = Sending(stores(bucket), [])
        sending.put("s3://b/r", Artifact("run", "a", broken, 1))
        with pytest.raises(Unavailable):
            sending.settle()
        sending.close()

    def test_each_file_is_tried_again_by_itself(self, stores):
        class Twice(Once):
            def do(self, what, call, /, *args, **kwargs):
                try:
                    return call(*args, **kwargs)
                except Unavailable:
                    return call(*args, **kwargs)

        failed = set()

        class Flaky(Bucket):
            def put(self, key, data, **how):
                if key not in failed:
                    failed.add(key)
                    raise Unavailable("busy")
                return super().put(key, data, **how)

        bucket = Flaky()
        all_sent(stores(bucket, again=Twice()), "s3://b/r", [streamed(str(n), b"x") for n in range(20)])
        assert len(bucket.files) == 20

    def test_no_more_than_a_window_is_under_way(self, stores):
        gate, begun = threading.Event(), []

        class Slow(Bucket):
            def put(self, key, data, **how):
                begun.append(key)
                gate.wait(10)
                return super().put(key, data, **how)

        sending, put = Sending(stores(Slow()), []), Future()

        def fill():
            for n in range(WINDOW + 10):
                sending.put("s3://b/r", streamed(str(n), b"x"))
            put.set_result(None)

        thread = threading.Thread(target=fill)
        thread.start()
        with pytest.raises(TimeoutError):
            put.result(0.3)
        gate.set()
        thread.join()
        sending.settle()

    def test_bytes_of_unknown_size_are_laid_aside(self, stores):
        bucket = Bucket()
        all_sent(stores(bucket), "s3://b/r", [Artifact("run", "a", lambda: io.BytesIO(b"data"))])
        assert bucket.files == {"r/a": b"data"}


def test_a_folder_here_is_a_place_too(tmp_path):
    """The bodies that are made here are those that uploads take."""
    (tmp_path / "from").write_bytes(b"x" * 10)
    stored = open_objects(str(tmp_path / "to"), {}).upload("k", FileBody(tmp_path / "from", 10))
    assert (stored.digest, (tmp_path / "to" / "k").read_bytes()) == (digest_of(io.BytesIO(b"x" * 10))[0], b"x" * 10)
    assert digest_text(bytes(32)).startswith("sha256:0")
