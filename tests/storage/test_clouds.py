"""Files in Google Cloud Storage and in Azure.

Azure's are read and written in Azurite, Microsoft's own emulator, and looked at with requests signed by
the tests.  Google's lie in a stand-in made from Google's reference (googledouble.py): no emulator at hand
speaks the XML interface that obstore uses.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import threading
from contextlib import AbstractContextManager
from email.utils import formatdate

import pytest

import azurite
import googledouble
from mlmigrate.errors import BadData, Conflict, Damaged, MigrateError, NotFound, Refused, Unavailable, UsageError
from mlmigrate.storage import cloud_access
from mlmigrate.storage import clouds as module
from mlmigrate.storage.clouds import NoBucket, check_key, explain
from mlmigrate.storage.objects import BadKey, Changed, Exists, digest_of, open_objects
from mlmigrate.storage.throttle import Bucket, Throttle
from recorder import Answer

NAMES = [
    "plain.txt",
    "a folder/a file.bin",
    "emoji/😀🧪.json",
    "per%2Fcent%20",
    "hash#and?question",
    "tilde~plus+and&equals=;comma,",
    "Case",
    "case",
    "café",  # one code point
    "café",  # two
    "deep/" * 40 + "leaf",
    "q" * 250,
    ".hidden/..twodots/...",
    "quote'\"<>&",
]


@dataclasses.dataclass
class Bytes:
    """A body that says when it is read and can be made to fail."""

    data: bytes
    fail_at: int | None = None
    at_once: int = 0
    most: int = 0

    def __post_init__(self):
        self.size = len(self.data)
        self.lock = threading.Lock()

    def open(self, start: int, length: int) -> AbstractContextManager[io.BytesIO]:
        if self.fail_at is not None and start >= self.fail_at:
            raise Changed("the file was written meanwhile")
        return io.BytesIO(self.data[start : start + length])


@pytest.fixture(autouse=True)
def _quiet_environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("AZURE_", "GOOGLE_", "STORAGE_EMULATOR")):
            monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def azure(tmp_path_factory):
    if reason := azurite.missing():
        pytest.skip(reason)
    with azurite.running(tmp_path_factory.mktemp("azurite")) as server:
        yield server


@pytest.fixture
def google():
    with googledouble.google() as store:
        yield store


class InGoogle:
    """A place in Google's stand-in, and a look into it."""

    kind = "gs"

    def __init__(self, store):
        self.store = store
        self.env = store.env
        self.root = f"gs://{googledouble.BUCKET}"

    def place(self, prefix: str = "pre/fix") -> str:
        return f"{self.root}/{prefix}".rstrip("/")

    def put(self, key: str, data: bytes) -> None:
        self.store.put(key, data)

    def there(self) -> dict[str, bytes]:
        return {name: kept.data for name, kept in self.store.objects.items()}


class InAzure:
    """A place in Azurite, and a look into it."""

    kind = "az"

    def __init__(self, server):
        self.server = server
        self.env = server.env
        self.container = server.container()
        self.root = f"az://{self.container}"

    def place(self, prefix: str = "pre/fix") -> str:
        return f"{self.root}/{prefix}".rstrip("/")

    def put(self, key: str, data: bytes) -> None:
        self.server.put(self.container, key, data)

    def there(self) -> dict[str, bytes]:
        return self.server.blobs(self.container)


@pytest.fixture(params=["gs", pytest.param("az", marks=pytest.mark.slow)])
def cloud(request):
    if request.param == "gs":
        return InGoogle(request.getfixturevalue("google"))
    return InAzure(request.getfixturevalue("azure"))


@pytest.fixture
def objects(cloud):
    return open_objects(cloud.place(), cloud.env)


def read(objects, key, *more, **named) -> bytes:
    with objects.open(key, *more, **named) as stream:
        return stream.read()


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class TestFiles:
    def test_what_is_put_lies_there_under_its_own_name(self, cloud, objects):
        for name in NAMES:
            if not (cloud.kind == "az" and name.endswith(".")):
                objects.put(name, name.encode())
        expected = {f"pre/fix/{n}": n.encode() for n in NAMES if not (cloud.kind == "az" and n.endswith("."))}
        assert cloud.there() == expected
        assert {one.key: one.size for one in objects.list()} == {
            name.removeprefix("pre/fix/"): len(data) for name, data in expected.items()
        }
        assert all(read(objects, name.removeprefix("pre/fix/")) == data for name, data in expected.items())

    def test_a_put_gives_the_digest_of_what_lies_there(self, cloud, objects):
        stored = objects.put("a/b", b"some bytes")
        assert (stored.key, stored.size, stored.digest) == ("a/b", 10, sha256(b"some bytes"))
        head = objects.head("a/b")
        assert (head.size, head.version) == (10, stored.version)
        assert [one.version for one in objects.list()] == [stored.version]

    def test_an_empty_file_is_a_file(self, cloud, objects):
        objects.put("empty", b"")
        assert [(one.key, one.size) for one in objects.list()] == [("empty", 0)]
        assert (read(objects, "empty"), read(objects, "empty", 0, 0)) == (b"", b"")

    def test_of_two_that_create_one_name_one_wins(self, cloud, objects):
        objects.put("commit", b"first", create=True)
        with pytest.raises(Exists, match="is there already"):
            objects.put("commit", b"second", create=True)
        assert cloud.there() == {"pre/fix/commit": b"first"}
        objects.put("commit", b"third")
        assert cloud.there() == {"pre/fix/commit": b"third"}

    def test_a_file_is_read_whole_or_in_part_and_only_as_it_was(self, cloud, objects):
        stored = objects.put("f", bytes(range(200)))
        assert read(objects, "f", version=stored.version) == bytes(range(200))
        assert read(objects, "f", 10, 5, stored.version) == bytes(range(10, 15))
        assert read(objects, "f", 190) == bytes(range(190, 200))
        objects.put("f", bytes(200))
        with pytest.raises(Changed):
            read(objects, "f", version=stored.version)
        with pytest.raises(Changed):
            read(objects, "f", 10, 5, stored.version)
        with pytest.raises(Changed):
            read(objects, "f", 300, 5)
        assert (read(objects, "f", 200), read(objects, "f", 300)) == (b"", b"")

    def test_a_stream_can_be_read_in_any_steps(self, cloud, objects):
        data = os.urandom(3 << 20)
        cloud.put("pre/fix/big", data)
        with objects.open("big") as stream:
            assert digest_of(stream) == (sha256(data), len(data))
        with objects.open("big") as stream:
            assert b"".join(iter(lambda: stream.read(70_001), b"")) == data

    def test_a_list_has_what_lies_below_and_nothing_beside(self, cloud, objects):
        for name in ("a/1", "a/b/2", "ab/3", "4"):
            objects.put(name, b"x")
        cloud.put("pre/fixed/5", b"x")
        assert {one.key for one in objects.list()} == {"a/1", "a/b/2", "ab/3", "4"}
        assert {one.key for one in objects.list("a/")} == {"a/1", "a/b/2"}
        assert list(objects.list("none/")) == []

    def test_the_whole_bucket_is_a_place_too(self, cloud):
        objects = open_objects(cloud.place(""), cloud.env)
        objects.put("top", b"x")
        assert (cloud.there(), [one.key for one in objects.list()]) == ({"top": b"x"}, ["top"])

    def test_the_marker_of_a_folder_is_no_file(self, cloud, objects):
        cloud.put("pre/fix/folder/", b"")
        objects.put("folder/file", b"x")
        assert [one.key for one in objects.list()] == ["folder/file"]

    def test_a_name_that_cannot_be_read_here_is_said_not_left_out(self, cloud, objects):
        cloud.put("pre/fix/a//b", b"x")
        with pytest.raises(BadData, match="holds an object whose name cannot be read") as caught:
            list(objects.list())
        assert "rename" in caught.value.hint

    def test_what_is_not_there_is_none_or_not_found(self, cloud, objects):
        assert objects.head("none") is None
        with pytest.raises(NotFound, match="none is not there"):
            read(objects, "none")

    def test_files_are_deleted_and_one_that_is_gone_is_no_error(self, cloud, objects):
        for name in ("a", "b", "c"):
            objects.put(name, b"x")
        objects.delete(["a", "gone", "b"])
        assert cloud.there() == {"pre/fix/c": b"x"}
        objects.delete(["a", "gone"])
        objects.delete([])

    def test_a_copy_is_made_by_the_store(self, cloud, objects):
        stored = objects.put("from", b"bytes to copy")
        other = open_objects(cloud.place("elsewhere"), cloud.env)
        copied = other.copy(objects, "from", "to 😀", 13, stored.version)
        assert cloud.there() == {"pre/fix/from": b"bytes to copy", "elsewhere/to 😀": b"bytes to copy"}
        md5 = hashlib.md5(b"bytes to copy").hexdigest()
        assert (copied.size, copied.digest) == (13, f"etag:{md5}" if cloud.kind == "gs" else "")
        with pytest.raises(Changed):
            other.copy(objects, "from", "to", 13, "another version")
        with pytest.raises(Changed):
            other.copy(objects, "from", "to", 12)
        with pytest.raises(NotFound):
            other.copy(objects, "none", "to", 12)

    def test_a_check_says_whether_the_place_can_be_used(self, cloud, objects):
        objects.check(write=True)
        assert cloud.there() == {}
        nowhere = open_objects(f"{cloud.root}-none/x", cloud.env)
        for write in (False, True):
            with pytest.raises(NotFound, match="no such bucket or container"):
                nowhere.check(write=write)

    def test_wrong_credentials_are_refused(self, cloud):
        wrong = {"GOOGLE_BEARER_TOKEN": "x", "AZURE_STORAGE_ACCESS_KEY": "eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHg="}
        objects = open_objects(cloud.place(), cloud.env | wrong)
        with pytest.raises(Refused, match="refused the credentials"):
            objects.check()


class TestLargeFiles:
    DATA = os.urandom(1 << 20) * 21 + b"tail"

    def test_a_large_file_goes_up_in_parts_and_its_digest_is_that_of_the_parts(self, cloud, objects):
        stored = objects.upload("big", Bytes(self.DATA), part_size=6 << 20)
        assert cloud.there() == {"pre/fix/big": self.DATA}
        assert (stored.digest, stored.size) == digest_of(io.BytesIO(self.DATA), 6 << 20)
        assert objects.head("big").version == stored.version

    def test_a_small_file_goes_up_whole(self, cloud, objects):
        assert objects.upload("small", Bytes(b"few")).digest == sha256(b"few")
        assert objects.upload("none", Bytes(b"")).size == 0
        assert cloud.there() == {"pre/fix/small": b"few", "pre/fix/none": b""}

    def test_a_file_that_changes_meanwhile_leaves_nothing(self, cloud, objects):
        with pytest.raises(Changed):
            objects.upload("big", Bytes(self.DATA, fail_at=12 << 20), part_size=6 << 20)
        assert (cloud.there(), list(objects.unfinished())) == ({}, [])

    def test_no_more_parts_are_held_than_memory_is_for_them(self, cloud, objects, monkeypatch):
        monkeypatch.setattr(module, "MEMORY", 12 << 20)
        assert objects.upload("big", Bytes(self.DATA), part_size=6 << 20, threads=16).size == len(self.DATA)


class TestGoogle:
    """What only a stand-in can be made to do."""

    def test_small_files_are_known_by_their_md5_and_not_read_back(self, google):
        objects = open_objects("gs://bucket/p", google.env)
        objects.put("a", b"abc")
        assert [one.method for one in google.record.requests] == ["PUT"]

    def test_bytes_that_arrive_changed_are_found(self, google):
        objects = open_objects("gs://bucket/p", google.env)
        google.spoil = lambda data: data[:-1] + b"!"
        with pytest.raises(Damaged, match="not those that were written"):
            objects.put("a", b"abc")

    def test_one_changed_part_of_many_is_found(self, google):
        objects = open_objects("gs://bucket/p", google.env)
        google.spoil = lambda data: b"!" + data[1:] if data[:1] == b"\x02" else data
        data = b"".join(bytes([number]) * (6 << 20) for number in range(4))
        with pytest.raises(Damaged):
            objects.upload("a", Bytes(data), part_size=6 << 20)

    def test_an_upload_that_breaks_off_is_taken_away(self, google):
        objects = open_objects("gs://bucket/p", google.env)
        with pytest.raises(Changed):
            objects.upload("big", Bytes(TestLargeFiles.DATA, fail_at=12 << 20), part_size=6 << 20)
        assert (google.objects, google.uploads) == ({}, {})

    def test_a_busy_store_is_asked_again_then_unavailable(self, google):
        objects = open_objects("gs://bucket/p", google.env)
        left = [Answer(503, b"<Error><Code>SlowDown</Code></Error>")] * 2
        google.fault = lambda _: left.pop() if left else None
        assert objects.put("a", b"abc").size == 3
        google.fault = lambda _: Answer(503, b"<Error><Code>SlowDown</Code></Error>")
        with pytest.raises(Unavailable, match="503 SlowDown"):
            read(objects, "a")
        assert len(google.record.asked("GET")) == 4

    def test_a_download_that_breaks_off_is_gone_on_with_from_there(self, google):
        objects = open_objects("gs://bucket/p", google.env)
        stored = objects.put("a", b"abcdef")
        said = {"Content-Length": "6", "ETag": f'"{stored.version}"', "Last-Modified": formatdate(usegmt=True)}
        google.fault = lambda one: (
            Answer(200, b"abc", said) if one.method == "GET" and "range" not in one.headers else None
        )
        assert read(objects, "a") == b"abcdef"
        assert [one.headers.get("range") for one in google.record.asked("GET")] == [None, "bytes=3-5"]

    def test_a_refusal_is_not_asked_again(self, google):
        objects = open_objects("gs://bucket/p", google.env)
        google.fault = lambda _: Answer(403, b"<Error><Code>AccessDenied</Code><Message>CANARY</Message></Error>")
        with pytest.raises(Refused, match="403 AccessDenied") as caught:
            objects.put("a", b"abc")
        assert (len(google.record.requests), "CANARY" in str(caught.value)) == (1, False)

    def test_every_request_and_byte_asks_the_throttle(self, google):
        class Counting(Bucket):
            def take(self, amount, *_):
                taken.append(amount)

        taken: list[float] = []
        objects = open_objects("gs://bucket/p", google.env, Throttle(Bucket(), Counting()))
        objects.put("a", b"abc")
        objects.head("a")
        read(objects, "a")
        objects.delete(["a", "b"])
        assert len(taken) == len(google.record.requests)


class TestNames:
    @pytest.mark.parametrize(
        "key",
        ["", "/a", "a/", "a//b", "a/./b", "../a", "a/..", "a\nb", "a\x00b", "a\x7f", "x" * 1025, "é" * 513, "\ud800"],
    )
    @pytest.mark.parametrize("kind", ["gs", "az"])
    def test_names_that_would_not_be_kept_are_refused(self, kind, key):
        with pytest.raises(BadKey):
            check_key(kind, key)

    @pytest.mark.parametrize("key", ["a\\b", "a.", "a./b"])
    def test_azure_changes_backslashes_and_dots_at_the_end(self, key):
        check_key("gs", key)
        with pytest.raises(BadKey, match="Azure"):
            check_key("az", key)

    def test_a_refused_name_is_not_written(self, google):
        objects = open_objects("gs://bucket/p", google.env)
        for key in ("a/", "a//b", "../up", "x" * 1023):
            with pytest.raises(BadKey):
                objects.put(key, b"x")
        assert google.objects == {}
        with pytest.raises(BadKey):
            open_objects("gs://bucket/p/../q", google.env)


KEY = {"AZURE_STORAGE_ACCESS_KEY": "a2V5"}
ACCOUNT = {"AZURE_STORAGE_ACCOUNT": "acct"}


class TestPlaces:
    @pytest.mark.parametrize(
        ("place", "url", "endpoint", "prefix"),
        [
            ("wasbs://c@acct.blob.core.windows.net/p/q", "", "https://acct.blob.core.windows.net", "p/q"),
            ("abfss://c@acct.dfs.core.windows.net/p q#?%2F/", "", "https://acct.blob.core.windows.net", "p q#?%2F"),
            ("wasbs://c@acct.blob.core.chinacloudapi.cn", "", "https://acct.blob.core.chinacloudapi.cn", ""),
            ("az://c/p", "wasbs://c@named.blob.core.windows.net/p", "https://named.blob.core.windows.net", "p"),
        ],
    )
    def test_an_azure_place_is_where_mlflow_would_find_it(self, place, url, endpoint, prefix):
        way = cloud_access.way(place, {**KEY, "AZURE_STORAGE_ACCOUNT": "named"})
        assert (way.url, way.prefix) == (url or place.rstrip("/"), prefix)
        assert (way.config["endpoint"], way.bucket) == (endpoint, "c")

    def test_a_google_place(self):
        way = cloud_access.way("gs://b/p/q/", {})
        assert (way.url, way.bucket, way.prefix) == ("gs://b/p/q", "b", "p/q")

    @pytest.mark.parametrize("place", ["gs://", "gs:///x", "az://", "wasbs://c/p", "wasbs://c@acct/p"])
    def test_what_names_no_bucket_is_a_usage_error(self, place):
        with pytest.raises(UsageError):
            cloud_access.way(place, {**KEY, "AZURE_STORAGE_ACCOUNT": "named"})

    def test_az_without_an_account_says_which_variable_to_set(self):
        with pytest.raises(UsageError) as caught:
            cloud_access.way("az://c/p", KEY)
        assert "AZURE_STORAGE_ACCOUNT" in caught.value.hint

    def test_two_prefixes_of_a_bucket_are_one_store_and_two_buckets_are_two(self):
        stores = [cloud_access.way(place, {}).store for place in ("gs://b/p", "gs://b/q", "gs://c/p")]
        assert (stores[0] == stores[1], stores[0] == stores[2]) == (True, False)


class TestCredentials:
    """The two sides never mix: what a side's own variable says counts, whatever else is set."""

    def config(self, env, place="az://c/p"):
        return cloud_access.way(place, env).config

    def test_a_connection_string_says_all(self):
        text = "DefaultEndpointsProtocol=https;AccountName=acct;AccountKey=a2V5PT0=;EndpointSuffix=core.windows.net"
        config = self.config({"AZURE_STORAGE_CONNECTION_STRING": text})
        assert config["account_key"] == "a2V5PT0="
        assert (config["account_name"], config["credential_type"]) == ("acct", "access_key")
        assert config["endpoint"] == "https://acct.blob.core.windows.net"

    def test_a_connection_string_with_a_signature_or_a_place_of_its_own(self):
        text = "BlobEndpoint=https://acct.blob.example.org/;SharedAccessSignature=sv=1&sig=a%3D"
        config = self.config({"AZURE_STORAGE_CONNECTION_STRING": text})
        assert (config["sas_key"], config["credential_type"]) == ("sv=1&sig=a%3D", "sas_token")
        assert (config["endpoint"], config["account_name"]) == ("https://acct.blob.example.org", "acct")
        config = self.config({"AZURE_STORAGE_CONNECTION_STRING": "UseDevelopmentStorage=true;"})
        assert config["endpoint"] == "http://127.0.0.1:10000/devstoreaccount1"

    def test_a_connection_string_of_another_account_is_not_used(self):
        env = {"AZURE_STORAGE_CONNECTION_STRING": "AccountName=other;AccountKey=CANARY"}
        with pytest.raises(UsageError, match="of account 'other'") as caught:
            self.config(env, "wasbs://c@acct.blob.core.windows.net/p")
        assert "CANARY" not in f"{caught.value}{caught.value.hint}"

    @pytest.mark.parametrize(
        ("env", "kind", "key"),
        [
            ({"AZURE_STORAGE_ACCESS_KEY": "v"}, "access_key", "account_key"),
            ({"AZURE_STORAGE_ACCOUNT_KEY": "v"}, "access_key", "account_key"),
            ({"AZURE_STORAGE_SAS_TOKEN": "?v"}, "sas_token", "sas_key"),
            ({"AZURE_CLIENT_SECRET": "v", "AZURE_CLIENT_ID": "i"}, "client_secret", "client_secret"),
            ({"AZURE_FEDERATED_TOKEN_FILE": "v"}, "workload_identity", "federated_token_file"),
        ],
    )
    def test_one_kind_of_credentials_is_chosen_and_said(self, env, kind, key):
        config = self.config(env | ACCOUNT)
        assert (config["credential_type"], config[key]) == (kind, "v")
        if kind == "client_secret":
            assert config["client_id"] == "i"

    def test_without_any_a_managed_identity_is_asked(self):
        config = self.config(ACCOUNT | {"AZURE_CLIENT_ID": "who"})
        assert (config["credential_type"], config["client_id"]) == ("managed_identity", "who")

    def test_a_sides_own_variable_wins_over_any_other_kind(self):
        env = ACCOUNT | {
            "AZURE_STORAGE_ACCESS_KEY": "of all",
            "AZURE_STORAGE_CONNECTION_STRING": "AccountName=other;AccountKey=x",
            "SOURCE_AZURE_STORAGE_SAS_TOKEN": "own",
            "AZURE_STORAGE_SAS_TOKEN": "own",
        }
        config = self.config(env)
        assert (config["credential_type"], config["sas_key"], config["account_name"]) == ("sas_token", "own", "acct")
        assert "account_key" not in config

    def test_google_takes_one_too_and_a_sides_own_wins(self):
        env = {"GOOGLE_APPLICATION_CREDENTIALS": "/all.json"}
        assert self.config(env, "gs://b") == {"application_credentials": "/all.json"}
        own = {"TARGET_GOOGLE_SERVICE_ACCOUNT": "/own.json", "GOOGLE_SERVICE_ACCOUNT": "/own.json"}
        assert self.config(env | own, "gs://b") == {"service_account": "/own.json"}

    def test_what_obstore_would_find_by_itself_is_refused_when_it_is_anothers(self, monkeypatch):
        monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", '{"private_key": "CANARY"}')
        env = {"TARGET_GOOGLE_APPLICATION_CREDENTIALS": "/own", "GOOGLE_APPLICATION_CREDENTIALS": "/own"}
        with pytest.raises(UsageError, match="GOOGLE_SERVICE_ACCOUNT_KEY would be used") as caught:
            self.config(env | dict(os.environ), "gs://b")
        assert "CANARY" not in f"{caught.value}{caught.value.hint}"

    def test_an_emulator_of_google_needs_no_credentials(self):
        config = self.config({"STORAGE_EMULATOR_HOST": "localhost:9000"}, "gs://b")
        assert config == {"base_url": "http://localhost:9000", "bearer_token": "none"}

    def test_credentials_that_cannot_be_read_are_refused(self, tmp_path):
        with pytest.raises(Refused):
            open_objects("gs://b/p", {"GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "none.json")})

    @pytest.mark.parametrize(
        "text", ["CANARY", '{"private_key": "CANARY"}', '{"client_email": "a", "private_key": "CANARY"}']
    )
    def test_a_key_that_is_none_is_refused_and_not_shown(self, text):
        with pytest.raises(Refused) as caught:
            open_objects("gs://b/p", {"GOOGLE_SERVICE_ACCOUNT_KEY": text})
        assert "CANARY" not in f"{caught.value!r}{caught.value.hint}{caught.value.__cause__!r}"

    def test_no_credentials_are_shown(self):
        secrets = {"AZURE_STORAGE_ACCESS_KEY": "Q0FOQVJZ", "AZURE_STORAGE_ACCOUNT": "acct"}
        objects = open_objects("az://c/p", secrets)
        assert "Q0FOQVJZ" not in f"{objects!r}{objects.shown}{cloud_access.way('az://c/p', secrets)!r}"


@pytest.mark.slow
class TestAzure:
    def test_a_signature_and_a_connection_string_open_it(self, azure):
        container, base = azure.container(), f"{azure.url}/{azurite.ACCOUNT}"
        env = {"AZURE_STORAGE_ACCOUNT": azurite.ACCOUNT, "AZURE_STORAGE_ENDPOINT": base}
        text = f"AccountName={azurite.ACCOUNT};AccountKey={azurite.KEY};BlobEndpoint={base};"
        for number, said in enumerate(
            ({"AZURE_STORAGE_SAS_TOKEN": azurite.signature()}, {"AZURE_STORAGE_CONNECTION_STRING": text})
        ):
            open_objects(f"az://{container}/p", env | said).put(str(number), b"x")
        assert azure.blobs(container) == {"p/0": b"x", "p/1": b"x"}

    def test_what_the_process_has_is_not_what_the_side_has(self, azure, monkeypatch):
        container = azure.container()
        monkeypatch.setenv("AZURE_STORAGE_SAS_TOKEN", "sv=1&sig=another")
        monkeypatch.setenv("AZURE_STORAGE_TOKEN", "another")
        monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", "http://127.0.0.1:1/another")
        monkeypatch.setenv("AZURE_STORAGE_USE_EMULATOR", "true")
        monkeypatch.setenv("AZURE_SKIP_SIGNATURE", "true")
        open_objects(f"az://{container}/p", azure.env).put("a", b"x")
        assert azure.blobs(container) == {"p/a": b"x"}

    def test_a_signature_stands_in_no_error(self, azure):
        env = {**azure.env, "AZURE_STORAGE_SAS_TOKEN": "sv=2020-08-04&sig=CANARY"}
        env.pop("AZURE_STORAGE_ACCESS_KEY")
        objects = open_objects(f"az://{azure.container()}/p", env)
        for ask in (
            objects.check,
            lambda: objects.put("a", b"x"),
            lambda: read(objects, "a"),
            lambda: objects.head("a"),
        ):
            with pytest.raises(Refused) as caught:
                ask()
            assert "CANARY" not in f"{caught.value!r}{caught.value.__cause__!r}"

    def test_a_signature_that_may_only_read_cannot_write(self, azure):
        container = azure.container()
        azure.put(container, "p/a", b"x")
        env = {**azure.env, "AZURE_STORAGE_SAS_TOKEN": azurite.signature("rl")}
        env.pop("AZURE_STORAGE_ACCESS_KEY")
        objects = open_objects(f"az://{container}/p", env)
        assert ([one.key for one in objects.list()], read(objects, "a")) == (["a"], b"x")
        objects.check()
        with pytest.raises(Refused):
            objects.check(write=True)


class TestErrors:
    def test_what_is_no_error_of_a_store_is_not_explained(self):
        assert (explain(ValueError("x"), "gs://b"), explain(OSError("x"), "gs://b")) == (None, None)

    def test_not_every_conflict_of_azure_is_a_file_that_is_there(self):
        from obstore.exceptions import AlreadyExistsError

        text = "Server returned non-2xx status code: 409 Conflict: <Code>{}</Code>"
        assert type(explain(AlreadyExistsError(text.format("BlobAlreadyExists")), "az://c", "k")) is Exists
        found = explain(AlreadyExistsError(text.format("BlobImmutableDueToPolicy")), "az://c", "k")
        assert (type(found), "409 BlobImmutableDueToPolicy" in found.message) == (Conflict, True)

    @pytest.mark.parametrize(
        ("text", "kind"),
        [
            ("Server returned non-2xx status code: 429 Too Many: ", Unavailable),
            ("Server returned non-2xx status code: 503 S: <Code>SlowDown</Code>", Unavailable),
            ("Server returned non-2xx status code: 500 S: ", Unavailable),
            ('Server returned non-2xx status code: 403 F: {"reason": "userRateLimitExceeded"}', Unavailable),
            ("Server returned non-2xx status code: 403 F: <Code>AuthenticationFailed</Code>", Refused),
            ("Server returned non-2xx status code: 401 U: ", Refused),
            ("Generic GCS error: Error performing token request: Error performing GET http://x/y", Refused),
            ("Server returned non-2xx status code: 404 N: <Code>ContainerNotFound</Code>", NoBucket),
            ("Generic S error: HTTP error: error sending request for url (http://h/?sig=CANARY)", Unavailable),
            ("Generic S error: operation timed out", Unavailable),
            ("Generic S error: error sending request: invalid peer certificate: UnknownIssuer", MigrateError),
            ("Something new http://h/?sig=CANARY", MigrateError),
        ],
    )
    def test_each_error_is_one_of_ours_and_says_no_address(self, text, kind):
        from obstore.exceptions import GenericError

        found = explain(GenericError(text), "gs://b", "k")
        assert (type(found), "CANARY" in f"{found!r}") == (kind, False)
