"""Files behind a server that keeps them in S3, or on its disk: straight from the store, or through the proxy.

What lies there is written and read with boto3, or on the disk itself.
"""

from __future__ import annotations

import hashlib
import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

import faults
import s3faults
import s3server
import servers
from mlmigrate.adapters.mlflow.direct import Stores
from mlmigrate.adapters.mlflow.rest import artifacts, downloads, parts, uploads
from mlmigrate.adapters.mlflow.rest.artifacts import Shelf
from mlmigrate.adapters.mlflow.rest.auth import Login
from mlmigrate.adapters.mlflow.rest.client import Client
from mlmigrate.adapters.mlflow.rest.uploads import Uploads
from mlmigrate.errors import Damaged, Unavailable
from mlmigrate.model import Artifact
from mlmigrate.steps import Steps

pytestmark = pytest.mark.slow
MIB = 1 << 20
PROXIED = "/api/2.0/mlflow-artifacts/artifacts/"
ODD = ["ä b/ü.txt", "emoji 🎉.bin", "sp ace/+plus&x=y.txt", "case/A", "case/a", "日本/語.txt", "tilde~/(x)'!.txt"]


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    with s3server.running(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="module")
def place(s3, tmp_path_factory):
    """A server over S3, reached through a proxy that makes faults; so are its store's signed URLs."""
    with s3faults.faulty(s3) as store, pytest.MonkeyPatch.context() as patch:
        for name, value in store.env.items():
            patch.setenv(name, value)
        bucket = s3.bucket()
        server = servers.start(
            servers.CURRENT, tmp_path_factory.mktemp("mlflow"), "--artifacts-destination", f"s3://{bucket}/pre fix"
        )
        front = faults.Proxy(server.url)
        try:
            yield SimpleNamespace(s3=s3, store=store, bucket=bucket, server=server, front=front, url=front.url)
        finally:
            front.stop()
            server.stop()


@pytest.fixture(autouse=True)
def _quiet(place, monkeypatch):
    place.store.rule = s3faults.never
    place.front.rule = lambda number, method, path: None
    place.store.seen.clear()
    place.front.seen.clear()
    monkeypatch.setattr("mlmigrate.steps.FIRST_WAIT", 0.01)
    monkeypatch.setattr("mlmigrate.steps.LONGEST_WAIT", 0.05)


@pytest.fixture
def small(monkeypatch):
    """Files are large soon."""
    for module in (artifacts, downloads):
        monkeypatch.setattr(module, "WHOLE", MIB)
    monkeypatch.setattr(downloads, "RANGE", MIB)
    monkeypatch.setattr(uploads, "SMALL", MIB)
    monkeypatch.setattr(parts, "LARGE", 6 * MIB)


@pytest.fixture
def client(place):
    with opened(place.url, place.store.env) as one:
        yield one


@contextmanager
def opened(url, env, part_size=5 * MIB):
    one = Client(Login(url), Steps(3))
    one.stores = Stores(env, part_size=part_size)
    try:
        yield one
    finally:
        one.close()


def content(size, seed=0):
    return random.Random(f"{size} {seed}").randbytes(size)


def read(client, run, allow=()):
    """Every file of a run, as the adapter reads it."""
    with ThreadPoolExecutor(4) as pool:
        shelf = Shelf(client, pool, allow)
        found = {}
        for artifact in shelf.of([(run, f"mlflow-artifacts:/1/{run}/artifacts")]):
            with artifact.open() as stream:
                found[artifact.path] = stream.read()
        assert shelf.losses == []
    return found


def put(place, run, files):
    client = place.s3.client()
    for path, data in files.items():
        client.put_object(Bucket=place.bucket, Key=f"pre fix/1/{run}/artifacts/{path}", Body=data)


def stored(place, run):
    return place.s3.objects(place.bucket, f"pre fix/1/{run}/artifacts")


def through_the_proxy(place, run):
    return [path for method, path in place.front.seen if method == "GET" and f"{PROXIED}1/{run}/" in path]


def given(data, path="big.bin", **changes):
    fields = {"open": lambda: memory(data), "size": len(data), **changes}
    return Artifact("source", path, **fields)


@contextmanager
def memory(data):
    import io

    yield io.BytesIO(data)


def send(client, run, *files):
    """Sends files as the adapter does; gives what was lost."""
    losses = []
    sending = Uploads(client, (), losses)
    for artifact in files:
        call = sending.of(run, f"mlflow-artifacts:/1/{run}/artifacts", artifact)
        if call is not None:
            call()
    sending.check(run)
    return losses


def signed(fault, op):
    """The fault meets requests by signed URLs alone, not those of the server itself."""
    return lambda request: fault if request.op == op and "X-Amz-Signature" in request.query else None


def unfinished(place):
    return place.s3.client().list_multipart_uploads(Bucket=place.bucket).get("Uploads", [])


# reading


def test_files_of_every_size_are_read_straight_from_the_store(place, client, small):
    sizes = [0, 1, MIB - 1, MIB, MIB + 1, 2 * MIB, 3 * MIB + 7]
    files = {f"{size}.bin": content(size) for size in sizes} | {name: name.encode() for name in ODD}
    put(place, "sizes", files)
    assert read(client, "sizes") == files
    assert through_the_proxy(place, "sizes") == []


def test_a_large_file_in_the_real_sizes_is_read_in_ranges(place, client):
    data = content(19 * MIB)
    put(place, "large", {"big.bin": data})
    assert read(client, "large") == {"big.bin": data}
    ranges = [one for one in place.store.seen if one.op == "GetObject" and one.key.endswith("big.bin")]
    assert len(ranges) == 3
    assert through_the_proxy(place, "large") == []


def test_a_store_that_nobody_named_is_not_asked(place, small):
    files = {"a.bin": content(100), "b.bin": content(3 * MIB)}
    put(place, "nobody", files)
    with opened(place.url, {}) as stranger:
        assert read(stranger, "nobody") == files
    assert len(through_the_proxy(place, "nobody")) == 2


def test_a_store_that_is_allowed_is_asked(place, small):
    files = {"a.bin": content(100), "b.bin": content(3 * MIB)}
    put(place, "allowed", files)
    with opened(place.url, {}) as stranger:
        assert read(stranger, "allowed", (place.store.url,)) == files
    assert through_the_proxy(place, "allowed") == []


def test_answers_that_break_off_are_asked_for_again(place, client, small):
    files = {"a.bin": content(100), "b.bin": content(5 * MIB)}
    put(place, "broken", files)
    read(client, "broken")  # the store is known from here on
    place.front.seen.clear()
    place.store.rule = s3faults.at(s3faults.TRUNCATED, "GetObject", 1, 3, 5)
    assert read(client, "broken") == files
    assert through_the_proxy(place, "broken") == []


def test_a_url_that_ran_out_is_asked_for_again(place, client, small):
    data = content(5 * MIB)
    put(place, "ran out", {"b.bin": data})
    place.store.rule = s3faults.at(s3faults.EXPIRED, "GetObject", 3)
    assert read(client, "ran out") == {"b.bin": data}
    signed = [path for _, path in place.front.seen if "/presigned/" in path]
    assert len(signed) == 2


def test_a_store_out_of_reach_is_left_alone_and_the_proxy_gives_the_files(place, small):
    files = {f"{n}.bin": content(1000, n) for n in range(12)} | {"b.bin": content(3 * MIB)}
    put(place, "reach", files)
    place.store.rule = signed(s3faults.DENIED, "GetObject")
    with opened(place.url, place.store.env) as one:
        assert read(one, "reach") == files
        assert one.offers.downloads is False


def test_a_bit_that_flips_on_the_way_is_noticed(place, client, small):
    put(place, "flip", {"a.bin": content(1000)})
    place.store.rule = s3faults.at(s3faults.FLIPPED_ANSWER, "GetObject")
    with pytest.raises(Damaged):
        read(client, "flip")


def test_a_flipped_bit_of_a_large_file_that_was_put_whole_is_noticed(place, client, small):
    put(place, "flips", {"b.bin": content(3 * MIB)})
    place.store.rule = s3faults.at(s3faults.FLIPPED_ANSWER, "GetObject", 3)
    with pytest.raises(Damaged):
        read(client, "flips")


def test_a_file_that_is_written_while_it_is_read_is_not_mixed(place, client, small):
    put(place, "mixed", {"b.bin": content(20 * MIB)})
    with ThreadPoolExecutor(1) as pool:
        shelf = Shelf(client, pool, ())
        (artifact,) = shelf.of([("mixed", "mlflow-artifacts:/1/mixed/artifacts")])
        with artifact.open() as stream:
            stream.read(MIB)
            put(place, "mixed", {"b.bin": content(20 * MIB, 1)})
            with pytest.raises(Exception, match="written while it was read"):
                stream.read()


def test_many_small_files_are_read_in_order_and_at_once(place, client):
    files = {f"{n:03}.bin": content(500, n) for n in range(150)}
    put(place, "many", files)
    assert list(read(client, "many").items()) == sorted(files.items())


def test_nothing_is_fetched_for_who_only_looks(place, client):
    put(place, "looked at", {f"{n}.bin": content(500, n) for n in range(80)})
    with ThreadPoolExecutor(4) as pool:
        found = list(Shelf(client, pool, ()).of([("looked at", "mlflow-artifacts:/1/looked at/artifacts")]))
    assert sorted(one.size for one in found) == [500] * 80
    assert place.store.ops("GetObject") == []


def test_files_are_read_by_many_threads_after_all_were_given_out(place, client):
    files = {f"{n}.bin": content(500, n) for n in range(400)}
    put(place, "threads", files)
    with ThreadPoolExecutor(4) as pool, ThreadPoolExecutor(16) as readers:
        found = list(Shelf(client, pool, ()).of([("threads", "mlflow-artifacts:/1/threads/artifacts")]))

        def one(artifact):
            with artifact.open() as stream:
                return artifact.path, stream.read()

        assert dict(readers.map(one, found)) == files
    assert len(place.store.ops("GetObject")) == 400


# the proxy as a stream


def test_a_stream_of_a_folder_is_taken_up_with_a_range(tmp_path, proxy_of, current, small):
    data = content(5 * MIB)
    file = current.files / "1" / "ranged" / "artifacts" / "b.bin"
    file.parent.mkdir(parents=True)
    file.write_bytes(data)
    proxy = proxy_of(current.url, rule=cut_first(2))
    with opened(proxy.url, {}) as one:
        assert read(one, "ranged") == {"b.bin": data}
    asked = [path for _, path in proxy.seen if path.endswith("b.bin")]
    assert len(asked) == 3


def test_a_stream_from_s3_is_taken_up_from_its_start(place, small):
    data = content(5 * MIB)
    put(place, "unranged", {"b.bin": data})
    place.front.rule = cut_first(1)
    with opened(place.url, {}) as stranger:
        assert read(stranger, "unranged") == {"b.bin": data}
    assert len(through_the_proxy(place, "unranged")) == 2


def test_a_stream_that_always_breaks_off_at_its_start_ends_with_an_error(place, small):
    put(place, "always", {"b.bin": content(5 * MIB)})
    place.front.rule = cut_first(1000)
    with opened(place.url, {}) as stranger, pytest.raises(Unavailable):
        read(stranger, "always")


def cut_first(times):
    """The first answers with bytes of a large file are cut in half."""
    left = iter(range(times))

    def rule(number, method, path):
        wanted = path.endswith("b.bin") and PROXIED in path
        return faults.TRUNCATED if wanted and next(left, None) is not None else None

    return rule


# writing


def test_files_of_every_size_arrive(place, client, small):
    part = 5 * MIB
    sizes = [0, 1, MIB, MIB + 1, 6 * MIB - 1, 6 * MIB, 2 * part - 1, 2 * part, 2 * part + 1, 3 * part + 5]
    files = {f"d/{size}.bin": content(size) for size in sizes} | {name: name.encode() for name in ODD}
    assert send(client, "sent", *(given(data, path) for path, data in files.items())) == []
    assert stored(place, "sent") == files
    assert unfinished(place) == []


def test_the_bytes_of_a_large_file_do_not_pass_the_server(place, client, small):
    data = content(11 * MIB)
    send(client, "parts", given(data))
    head = place.s3.client().head_object(Bucket=place.bucket, Key="pre fix/1/parts/artifacts/big.bin")
    md5s = [hashlib.md5(data[at : at + 5 * MIB]).digest() for at in range(0, len(data), 5 * MIB)]
    assert head["ETag"].strip('"') == f"{hashlib.md5(b''.join(md5s)).hexdigest()}-3"
    assert [path for method, path in place.front.seen if method == "PUT"] == []


def test_a_part_is_sent_again_by_itself(place, client, small):
    data = content(23 * MIB)
    send(client, "first", given(content(6 * MIB)))
    place.store.seen.clear()
    place.store.rule = s3faults.at(s3faults.SLOW_DOWN, "UploadPart", 2, 4)
    send(client, "part", given(data))
    assert stored(place, "part") == {"big.bin": data}
    assert len(place.store.ops("UploadPart")) == 5 + 2
    assert [path for method, path in place.front.seen if method == "PUT"] == []


def test_a_part_whose_bits_flipped_is_sent_again(place, client, small):
    data = content(12 * MIB)
    send(client, "first", given(content(6 * MIB)))
    place.store.rule = s3faults.at(s3faults.FLIPPED, "UploadPart", 2)
    send(client, "flipped", given(data))
    assert stored(place, "flipped") == {"big.bin": data}


def test_an_upload_that_fails_for_good_is_aborted_and_the_proxy_takes_the_file(place, client, small):
    data = content(12 * MIB)
    place.store.rule = signed(s3faults.DENIED, "UploadPart")
    send(client, "denied", given(data))
    place.store.rule = s3faults.never
    assert stored(place, "denied") == {"big.bin": data}
    assert unfinished(place) == []


def test_a_store_that_takes_nothing_from_us_is_left_alone_after_some_files(place, small):
    data = content(7 * MIB)
    place.store.rule = signed(s3faults.DENIED, "UploadPart")
    with opened(place.url, place.store.env) as one:
        send(one, "left", *(given(data, f"{n}.bin") for n in range(5)))
        assert one.offers.uploads is False
    place.store.rule = s3faults.never
    assert stored(place, "left") == {f"{n}.bin": data for n in range(5)}
    assert unfinished(place) == []
    begun = [path for _, path in place.front.seen if "/mpu/create/" in path]
    assert len(begun) == 3


def test_an_end_whose_answer_was_lost_is_found_to_be_done(place, client, small):
    data = content(12 * MIB)
    read(client, "nothing there")
    place.front.rule = lambda number, method, path: faults.LOST if "/mpu/complete/" in path else None
    send(client, "lost", given(data))
    assert stored(place, "lost") == {"big.bin": data}
    assert [path for method, path in place.front.seen if method == "PUT"] == []


def test_a_source_that_fails_leaves_no_upload_behind(place, client, small):
    @contextmanager
    def torn():
        yield Torn(content(12 * MIB), 8 * MIB)

    with pytest.raises(Unavailable, match="source"):
        send(client, "torn", given(content(12 * MIB), open=torn))
    assert unfinished(place) == []
    assert stored(place, "torn") == {}


@pytest.mark.parametrize("said", [11 * MIB, 13 * MIB])
def test_a_file_of_another_size_than_was_said_is_damaged(place, client, small, said):
    with pytest.raises(Damaged, match="should have"):
        send(client, "size", given(content(12 * MIB), size=said))
    assert unfinished(place) == []
    assert stored(place, "size") == {}


def test_a_store_that_nobody_named_gets_no_part(place, small):
    data = content(12 * MIB)
    with opened(place.url, {}) as stranger:
        send(stranger, "stranger", given(data))
    assert stored(place, "stranger") == {"big.bin": data}
    assert [path for method, path in place.front.seen if method == "PUT" and "stranger" in path] != []
    assert unfinished(place) == []


def test_a_server_with_a_folder_takes_large_files_as_a_stream(current, small):
    data = content(12 * MIB)
    with opened(current.url, {}) as one:
        send(one, "folder", given(data), given(content(MIB), "s/small.bin"))
    folder = current.files / "1" / "folder" / "artifacts"
    assert (folder / "big.bin").read_bytes() == data
    assert (folder / "s" / "small.bin").read_bytes() == content(MIB)


@pytest.mark.parametrize("version", ["2.9.2", "2.22.4"])
def test_old_servers_take_and_give_large_files_through_the_proxy(server_of, small, version):
    server, data = server_of(version), content(12 * MIB)
    with opened(server.url, {}) as one:
        send(one, "old", given(data), given(b"", "empty.txt"))
        assert read(one, "old") == {"big.bin": data, "empty.txt": b""}
    assert (server.files / "1" / "old" / "artifacts" / "big.bin").read_bytes() == data


def test_a_large_file_of_unknown_size_arrives(place, client, small):
    data = content(9 * MIB)
    send(client, "unknown", given(data, size=None))
    assert stored(place, "unknown") == {"big.bin": data}


def test_memory_does_not_grow_with_a_file(place, client):
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size, piece = 512 * MIB, content(MIB)

    @contextmanager
    def endless():
        yield Endless(piece, size)

    send(client, "endless", given(b"", open=endless, size=size))
    with ThreadPoolExecutor(1) as pool:
        (artifact,) = Shelf(client, pool, ()).of([("endless", "mlflow-artifacts:/1/endless/artifacts")])
        with artifact.open() as stream:
            while data := stream.read(MIB):
                assert data == piece
                size -= len(data)
    assert size == 0
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 350
    place.s3.client().delete_object(Bucket=place.bucket, Key="pre fix/1/endless/artifacts/big.bin")


class Torn:
    """A source that goes away."""

    def __init__(self, data, left):
        self._data, self._left, self._at = data, left, 0

    def read(self, size=-1):
        if self._at >= self._left:
            raise Unavailable("The source is away.")
        data = self._data[self._at : self._at + size]
        self._at += len(data)
        return data


class Endless:
    """The same piece again and again."""

    def __init__(self, piece, left):
        self._piece, self._left = piece, left

    def read(self, size=-1):
        data = self._piece[: min(size if size >= 0 else len(self._piece), self._left, len(self._piece))]
        self._left -= len(data)
        return data
