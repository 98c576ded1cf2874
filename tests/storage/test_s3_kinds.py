"""Every kind of S3, and every way to it: profiles, tokens, endpoints, certificates, what is said with an object.

A stand-in writes down what it is asked (s3double.py), so the expected values are headers on the wire.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import io
import json
import os
import shlex
import ssl
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from botocore.credentials import Credentials
from botocore.exceptions import EndpointConnectionError

import s3double
from mlmigrate.adapters.base import Context
from mlmigrate.errors import MigrateError, NotFound, Refused, Unavailable, UsageError
from mlmigrate.storage import access as module
from mlmigrate.storage.access import access
from mlmigrate.storage.objects import open_objects
from recorder import Answer

MIB = 1 << 20
PART = 5 * MIB  # the smallest that S3 takes


@dataclass
class Body:
    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)

    def open(self, start, length):
        return io.BytesIO(self.data[start : start + length])


@pytest.fixture(autouse=True)
def _quiet_environment(monkeypatch, tmp_path):
    """Nothing of the machine's own settings: no files of Amazon's, no instance to ask."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "MLFLOW_S3", "MLMIGRATE_S3")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def s3():
    with s3double.double() as store:
        yield store


@pytest.fixture
def config(tmp_path):
    """Writes a configuration file; gives the environment that leads to it."""

    def write(text: str) -> dict[str, str]:
        file = tmp_path / "config"
        file.write_text(text)
        return {"AWS_CONFIG_FILE": str(file), "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none")}

    return write


def put_both_ways(env, bucket="bucket"):
    """One small file by obstore, one large one by boto3."""
    objects = open_objects(f"s3://{bucket}/p", env)
    objects.put("small", b"abc")
    objects.upload("large", Body(bytes(PART + 1)), part_size=PART)
    return objects


def of_mlflow(**extra):
    return {"MLFLOW_S3_UPLOAD_EXTRA_ARGS": json.dumps(extra)}


class TestCredentials:
    def test_keys_of_the_environment_sign_both_ways(self, s3):
        put_both_ways(s3.env | {"AWS_SESSION_TOKEN": "CANARY-token"})
        assert set(s3.keys_used()) == {s3double.KEY}
        assert {one.headers.get("x-amz-security-token") for one in s3.requests} == {"CANARY-token"}

    def test_a_profile_says_keys_region_and_endpoint(self, s3, config):
        env = config(f"""
[profile other]
aws_access_key_id = OFTHEPROFILE
aws_secret_access_key = secret
region = eu-profile-2
endpoint_url = {s3.url}
""")
        put_both_ways(env | {"AWS_PROFILE": "other"})
        assert set(s3.keys_used()) == {"OFTHEPROFILE"}
        assert {one.headers["authorization"].split("/")[2] for one in s3.requests} == {"eu-profile-2"}

    def test_a_profiles_services_section_says_where_its_s3_is(self, s3, config):
        env = config(f"""
[profile other]
aws_access_key_id = OFTHEPROFILE
aws_secret_access_key = secret
endpoint_url = http://127.0.0.1:1
services = mine
[services mine]
s3 =
  endpoint_url = {s3.url}
""")
        put_both_ways(env | {"AWS_PROFILE": "other"})
        assert set(s3.keys_used()) == {"OFTHEPROFILE"}

    def test_a_profile_that_is_not_there_is_a_usage_error(self, config):
        with pytest.raises(UsageError, match="nowhere"):
            access(config("[default]\n") | {"AWS_PROFILE": "nowhere"})

    def test_no_credentials_at_all_are_said_with_what_to_set(self, config):
        with pytest.raises(Refused, match="No credentials") as caught:
            access(config(""))
        assert "AWS_PROFILE" in caught.value.hint

    def test_without_credentials_public_buckets_are_asked_unsigned(self, s3, config):
        for name in ("AWS_NO_SIGN_REQUEST", "MLMIGRATE_S3_ANONYMOUS"):
            put_both_ways(config("") | {name: "true", "AWS_ENDPOINT_URL": s3.url})
        assert set(s3.keys_used()) == {""}

    def test_a_process_gives_credentials_and_again_when_they_expire(self, s3, config, tmp_path):
        """Each is about to expire: what is sent later is signed with another."""
        env = config(_process(tmp_path, seconds=120)) | {"AWS_PROFILE": "short", "AWS_ENDPOINT_URL": s3.url}
        objects = open_objects("s3://bucket/p", env)
        for _ in range(3):
            objects.put("small", b"abc")
            objects.upload("large", Body(bytes(PART + 1)), part_size=PART)
        asked = int((tmp_path / "asked").read_text())
        used = [int(key.removeprefix("KEY")) for key in s3.keys_used()]
        assert (len(set(used)) >= 2, used[-1] > used[0], asked >= 2) == (True, True, True)
        assert asked <= len(used) + 2

    def test_credentials_that_last_are_asked_for_once(self, s3, config, tmp_path):
        env = config(_process(tmp_path, seconds=7200)) | {"AWS_PROFILE": "short", "AWS_ENDPOINT_URL": s3.url}
        put_both_ways(env)
        put_both_ways(env)
        assert int((tmp_path / "asked").read_text()) == 2  # each opening asks once

    @pytest.mark.slow
    def test_single_sign_on_turns_a_cached_token_into_keys(self, s3, config, tmp_path):
        """In a process of its own, for botocore finds the folder of tokens when it is imported."""
        env = config(f"""
[profile sso]
sso_session = mine
sso_account_id = 123456789012
sso_role_name = reader
services = here
[sso-session mine]
sso_start_url = https://sso.invalid/start
sso_region = eu-test-1
[services here]
sso =
  endpoint_url = {s3.url}
""")
        cache = tmp_path / ".aws" / "sso" / "cache"
        cache.mkdir(parents=True)
        token = {"startUrl": "https://sso.invalid/start", "region": "eu-test-1", "accessToken": "CANARY-sso"}
        token["expiresAt"] = _stamp(3600)
        (cache / f"{hashlib.sha1(b'mine').hexdigest()}.json").write_text(json.dumps(token))
        keys = {"accessKeyId": "OFTHEPORTAL", "secretAccessKey": "s", "sessionToken": "t"}
        said = json.dumps({"roleCredentials": {**keys, "expiration": int((time.time() + 3600) * 1000)}}).encode()
        s3.fault = lambda one: Answer(200, said) if one.path == "/federation/credentials" else None
        script = (
            "import os; from mlmigrate.storage.objects import open_objects;"
            "open_objects('s3://bucket/p', dict(os.environ)).put('a', b'x')"
        )
        env |= {"HOME": str(tmp_path), "AWS_PROFILE": "sso", "MLFLOW_S3_ENDPOINT_URL": s3.url}
        subprocess.run([sys.executable, "-c", script], env={**os.environ, **env}, check=True)
        portal, put = s3.requests
        assert (portal.headers["x-amz-sso_bearer_token"], portal.query["role_name"]) == ("CANARY-sso", "reader")
        assert (put.method, s3.keys_used()[1], put.headers["x-amz-security-token"]) == ("PUT", "OFTHEPORTAL", "t")

    def test_a_single_sign_on_that_has_ended_is_refused_with_what_to_do(self, s3, config):
        env = config("""
[profile sso]
sso_session = gone
sso_account_id = 123456789012
sso_role_name = reader
[sso-session gone]
sso_start_url = https://sso.invalid/start
sso_region = eu-test-1
""")
        objects = open_objects("s3://bucket/p", env | {"AWS_PROFILE": "sso", "AWS_ENDPOINT_URL": s3.url})
        for ask in (objects.check, lambda: objects.put("a", b"x")):
            with pytest.raises(Refused) as caught:
                ask()
            assert "aws sso login" in caught.value.hint
        assert s3.requests == []

    def test_a_portal_that_does_not_answer_may_do_so_later(self, s3, config, monkeypatch):
        def away(_):
            raise EndpointConnectionError(endpoint_url="http://portal")

        objects = open_objects("s3://bucket/p", s3.env)
        monkeypatch.setattr(Credentials, "get_frozen_credentials", away)
        with pytest.raises(Unavailable):
            objects.put("a", b"x")

    def test_a_process_that_fails_is_refused(self, config):
        with pytest.raises(Refused, match="program that is to give credentials"):
            access(config("[default]\ncredential_process = false\n"))

    def test_a_container_gives_credentials_through_the_sides_own_address(self, s3):
        keys = {"AccessKeyId": "OFTHECONTAINER", "SecretAccessKey": "s", "Token": "t", "Expiration": _stamp(3600)}
        s3.fault = lambda one: Answer(200, json.dumps(keys).encode()) if one.path == "/role" else None
        env = {"AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{s3.url}/role", "AWS_ENDPOINT_URL": s3.url}
        put_both_ways(env)
        assert set(s3.keys_used()[1:]) - {""} == {"OFTHECONTAINER"}

    def test_an_instance_gives_the_keys_of_its_role(self, s3, config, monkeypatch):
        keys = {"Code": "Success", "AccessKeyId": "OFTHEROLE", "SecretAccessKey": "s", "Token": "t"}
        answers = {
            "/latest/api/token": b"session",
            "/latest/meta-data/iam/security-credentials/": b"the-role",
            "/latest/meta-data/iam/security-credentials/the-role": json.dumps(
                keys | {"Expiration": _stamp(3600)}
            ).encode(),
        }
        s3.fault = lambda one: Answer(200, answers[one.path]) if one.path in answers else None
        monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", s3.url)
        put_both_ways(config("") | {"AWS_ENDPOINT_URL": s3.url})
        assert set(s3.keys_used()) - {""} == {"OFTHEROLE"}

    def test_a_profile_may_take_on_a_role(self, s3, config):
        env = config(f"""
[profile base]
aws_access_key_id = OFTHEBASE
aws_secret_access_key = s
[profile role]
role_arn = arn:aws:iam::123456789012:role/mover
source_profile = base
region = eu-test-1
services = here
[services here]
sts =
  endpoint_url = {s3.url}/sts
s3 =
  endpoint_url = {s3.url}
""")
        said = (
            "<AssumeRoleResponse><AssumeRoleResult><Credentials><AccessKeyId>OFTHEROLE</AccessKeyId>"
            f"<SecretAccessKey>s</SecretAccessKey><SessionToken>t</SessionToken><Expiration>{_stamp(3600)}</Expiration>"
            "</Credentials></AssumeRoleResult></AssumeRoleResponse>"
        )
        s3.fault = lambda one: Answer(200, said.encode()) if one.path.startswith("/sts") else None
        put_both_ways(env | {"AWS_PROFILE": "role"})
        assert (s3.keys_used()[0], set(s3.keys_used()[1:])) == ("OFTHEBASE", {"OFTHEROLE"})


class TestSides:
    """SOURCE_X and TARGET_X win over any X, each for its own side alone, also where obstore looks by itself."""

    def test_each_side_has_its_own_keys_and_endpoint(self, s3, monkeypatch):
        with s3double.double() as other:
            for side, store in (("SOURCE", s3), ("TARGET", other)):
                monkeypatch.setenv(f"{side}_AWS_ACCESS_KEY_ID", f"KEYOF{side}")
                monkeypatch.setenv(f"{side}_AWS_SECRET_ACCESS_KEY", "secret")
                monkeypatch.setenv(f"{side}_AWS_ENDPOINT_URL", store.url)
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", "OFALL")
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
            monkeypatch.setenv("AWS_SESSION_TOKEN", "of the keys of all")
            monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
            monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", "http://127.0.0.1:1")
            for side, store in (("source", s3), ("target", other)):
                put_both_ways(Context(side).env)
                assert set(store.keys_used()) == {f"KEYOF{side.upper()}"}
                assert not any("x-amz-security-token" in one.headers for one in store.requests)

    def test_a_sides_own_profile_wins_over_keys_and_endpoint_of_all(self, s3, config, monkeypatch):
        text = "[profile {0}]\naws_access_key_id = OF{0}\naws_secret_access_key = s\nendpoint_url = {1}\n"
        for name, value in config(text.format("mine", s3.url)).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "OFALL")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        monkeypatch.setenv("SOURCE_AWS_PROFILE", "mine")
        put_both_ways(Context("source").env)
        assert set(s3.keys_used()) == {"OFmine"}
        found = access(Context("target").env)
        assert (found.endpoint, found.session.get_credentials().access_key) == ("http://127.0.0.1:1", "OFALL")

    def test_a_side_may_say_that_it_is_amazons_own(self, monkeypatch):
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        monkeypatch.setenv("SOURCE_AWS_ENDPOINT_URL", "")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
        found = access(Context("source").env | {"AWS_REGION": "eu-west-1"})
        assert (found.endpoint, found.client().meta.endpoint_url) == (None, "https://s3.eu-west-1.amazonaws.com")
        config, _ = found.options("bucket")
        assert config["endpoint"] == "https://bucket.s3.eu-west-1.amazonaws.com"

    def test_what_obstore_would_find_in_the_process_does_not_reach_it(self, s3, monkeypatch):
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
        monkeypatch.setenv("AWS_S3_EXPRESS", "true")
        monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
        monkeypatch.setenv("AWS_SESSION_TOKEN", "another's")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ANOTHERS")
        put_both_ways(s3.env)
        assert set(s3.keys_used()) == {s3double.KEY}
        assert not any("x-amz-security-token" in one.headers for one in s3.requests)


class TestEndpoints:
    @pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "MLFLOW_S3_ENDPOINT_URL"])
    def test_each_variable_leads_there(self, s3, name):
        put_both_ways(s3double.CREDENTIALS | {name: s3.url})
        assert {one.method for one in s3.requests} >= {"PUT", "POST"}

    def test_mlflows_own_wins_as_it_does_in_mlflow_and_the_one_of_s3_over_the_general(self):
        env = {**s3double.CREDENTIALS, "AWS_ENDPOINT_URL": "http://a", "AWS_ENDPOINT_URL_S3": "http://b"}
        assert access(env).endpoint == "http://b"
        assert access(env | {"MLFLOW_S3_ENDPOINT_URL": "http://c/"}).endpoint == "http://c"
        assert access(env | {"AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true"}).endpoint is None

    def test_a_custom_endpoint_has_the_bucket_in_the_path(self, s3):
        put_both_ways(s3.env)
        assert {one.path.split("/")[1] for one in s3.requests} == {"bucket"}

    def test_amazon_has_the_bucket_in_the_hosts_name_both_ways(self):
        found = access({**s3double.CREDENTIALS, "AWS_REGION": "eu-west-1"})
        url = found.client().generate_presigned_url("get_object", Params={"Bucket": "bucket", "Key": "k"})
        assert url.startswith("https://bucket.s3.eu-west-1.amazonaws.com/k?")
        assert found.options("bucket")[0]["virtual_hosted_style_request"] is True

    @pytest.mark.parametrize(
        ("style", "start"), [("virtual", "http://bucket.s3.here:9/k"), ("path", "http://s3.here:9/bucket/k")]
    )
    def test_either_style_can_be_asked_for(self, style, start):
        env = {**s3double.CREDENTIALS, "AWS_ENDPOINT_URL": "http://s3.here:9", "MLMIGRATE_S3_ADDRESSING": style}
        found = access(env)
        url = found.client().generate_presigned_url("get_object", Params={"Bucket": "bucket", "Key": "k"})
        assert url.startswith(start)
        assert found.options("bucket")[0]["endpoint"] == start.removesuffix("/k").removesuffix("/bucket")

    def test_a_bucket_in_the_hosts_name_is_asked_there_on_the_wire(self, s3):
        """Names below 127.0.0.1 cannot be had here, so the proxy is the place where the name is read."""
        port = s3.url.rpartition(":")[2]
        script = (
            "import os; from mlmigrate.storage.objects import open_objects;"
            "open_objects('s3://bucket/p', dict(os.environ)).put('a', b'x')"
        )
        env = {"AWS_ENDPOINT_URL": "http://s3.invalid", "MLMIGRATE_S3_ADDRESSING": "virtual"}
        env |= {"HTTP_PROXY": f"http://127.0.0.1:{port}", "http_proxy": f"http://127.0.0.1:{port}", "NO_PROXY": ""}
        subprocess.run([sys.executable, "-c", script], env={**os.environ, **s3double.CREDENTIALS, **env}, check=True)
        assert {one.headers["host"] for one in s3.requests} == {"bucket.s3.invalid"}

    def test_a_profile_may_ask_for_a_style(self, config):
        text = "[default]\naws_access_key_id = k\naws_secret_access_key = s\nendpoint_url = http://s3.here\n"
        text += "s3 =\n  addressing_style = virtual\n"
        assert access(config(text)).path_style is False


class TestCertificates:
    @pytest.fixture
    def secure(self, tmp_path):
        certificate, key = _certificate(tmp_path)
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate, key)
        with s3double.double(tls) as store:
            yield store, certificate

    @pytest.mark.parametrize("name", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"])
    def test_a_bundle_of_ones_own_is_trusted_both_ways(self, secure, name):
        store, certificate = secure
        put_both_ways(store.env | {name: str(certificate)})
        assert len(store.requests) >= 4

    def test_a_certificate_that_nobody_knows_is_not_trusted_either_way(self, secure):
        store, _ = secure
        objects = open_objects("s3://bucket/p", store.env)
        for ask in (objects.check, lambda: objects.put("a", b"x")):
            with pytest.raises(MigrateError, match="not trusted") as caught:
                ask()
            assert (type(caught.value), "AWS_CA_BUNDLE" in caught.value.hint) == (MigrateError, True)
        assert store.requests == []

    @pytest.mark.filterwarnings("ignore:Unverified HTTPS")
    def test_mlflows_variable_turns_the_check_off(self, secure):
        store, _ = secure
        put_both_ways(store.env | {"MLFLOW_S3_IGNORE_TLS": "true"})
        assert len(store.requests) >= 4

    def test_a_bundle_that_is_not_there_is_a_usage_error(self, s3, tmp_path):
        with pytest.raises(UsageError, match="cannot be read"):
            open_objects("s3://bucket/p", s3.env | {"AWS_CA_BUNDLE": str(tmp_path / "none")}).put("a", b"x")


class TestWhatIsSaid:
    """Headers of an object's first request: the put of a small one, the beginning of a large one."""

    def firsts(self, s3, more):
        put_both_ways(s3.env | more)
        small = next(one for one in s3.record.asked("PUT") if one.path.endswith("/small"))
        return small.headers, s3.record.asked("POST", "uploads")[0].headers

    @pytest.mark.parametrize(
        ("env", "header", "value"),
        [
            ({"MLMIGRATE_S3_STORAGE_CLASS": "ONEZONE_IA"}, "x-amz-storage-class", "ONEZONE_IA"),
            ({"MLMIGRATE_S3_SSE": "AES256"}, "x-amz-server-side-encryption", "AES256"),
            ({"MLMIGRATE_S3_SSE_KMS_KEY_ID": "arn:k"}, "x-amz-server-side-encryption", "aws:kms"),
            ({"MLMIGRATE_S3_SSE_KMS_KEY_ID": "arn:k"}, "x-amz-server-side-encryption-aws-kms-key-id", "arn:k"),
            (of_mlflow(StorageClass="GLACIER_IR"), "x-amz-storage-class", "GLACIER_IR"),
            (of_mlflow(ServerSideEncryption="aws:kms"), "x-amz-server-side-encryption", "aws:kms"),
            (of_mlflow(ACL="bucket-owner-full-control"), "x-amz-acl", "bucket-owner-full-control"),
            (of_mlflow(Metadata={"team": "a"}), "x-amz-meta-team", "a"),
            (of_mlflow(Tagging="a=b"), "x-amz-tagging", "a=b"),
            ({"MLMIGRATE_S3_REQUESTER_PAYS": "true"}, "x-amz-request-payer", "requester"),
        ],
    )
    def test_it_goes_with_small_and_large_files(self, s3, env, header, value):
        assert [headers.get(header) for headers in self.firsts(s3, env)] == [value, value]

    def test_without_being_told_nothing_is_said(self, s3):
        small, large = self.firsts(s3, {})
        said = [
            name for name in (*small, *large) if name.startswith(("x-amz-server-side", "x-amz-storage", "x-amz-acl"))
        ]
        assert said == []

    def test_every_request_says_who_pays(self, s3):
        objects = put_both_ways(s3.env | {"MLMIGRATE_S3_REQUESTER_PAYS": "true"})
        objects.head("small")
        with objects.open("small") as stream:
            assert stream.read() == b"abc"
        objects.delete(["small"])
        list(objects.list())
        silent = [
            (one.method, one.query) for one in s3.requests if one.headers.get("x-amz-request-payer") != "requester"
        ]
        assert silent == []

    def test_what_is_no_json_is_a_usage_error(self, s3):
        for text in ("{", "[]"):
            with pytest.raises(UsageError, match="MLFLOW_S3_UPLOAD_EXTRA_ARGS"):
                access(s3.env | {"MLFLOW_S3_UPLOAD_EXTRA_ARGS": text})

    def test_a_checksum_goes_with_every_part_and_an_md5_with_a_deletion(self, s3):
        put_both_ways(s3.env).delete(["small"])
        for one in s3.record.asked("PUT"):
            data = b"abc" if one.path.endswith("small") else s3.parts[int(one.query["partNumber"])]
            assert base64.b64decode(one.headers["x-amz-checksum-sha256"]) == hashlib.sha256(data).digest()
        deletion = s3.record.asked("POST", "delete")[0]
        assert base64.b64decode(deletion.headers["content-md5"]) == hashlib.md5(deletion.body).digest()

    def test_a_plain_file_is_not_hashed_twice_to_be_signed(self, s3):
        put_both_ways(s3.env)
        parts = s3.record.asked("PUT", "partNumber")
        assert {one.headers["x-amz-content-sha256"] for one in parts} == {"UNSIGNED-PAYLOAD"}


class TestErrors:
    def ask(self, s3, what):
        objects = open_objects("s3://bucket/p", s3.env)
        if what == "put":
            objects.put("a", b"abc")
        elif what == "head":
            objects.head("a")
        else:
            with objects.open("a") as stream:
                stream.read()

    @pytest.mark.parametrize("what", ["put", "open"])
    @pytest.mark.parametrize("code", ["SlowDown", "InternalError"])
    def test_a_busy_store_is_asked_five_times_and_is_unavailable(self, s3, what, code):
        s3.fault = s3double.failing(503, code)
        with pytest.raises(Unavailable, match=code):
            self.ask(s3, what)
        assert len(s3.requests) == 5

    def test_a_busy_store_that_recovers_is_no_error(self, s3):
        s3.fault = s3double.failing(503, "SlowDown", times=2)
        self.ask(s3, "put")
        assert len(s3.requests) == 3

    @pytest.mark.parametrize(("status", "code"), [(403, "ExpiredToken"), (400, "ExpiredToken"), (403, "AccessDenied")])
    @pytest.mark.parametrize("what", ["put", "open", "head"])
    def test_a_refusal_is_not_repeated_and_is_refused(self, s3, what, status, code):
        s3.fault = s3double.failing(status, code)
        with pytest.raises(Refused):
            self.ask(s3, what)
        assert len(s3.requests) <= 2  # boto3 asks once more whether the region was wrong

    def test_no_such_bucket(self, s3):
        s3.fault = s3double.failing(404, "NoSuchBucket")
        with pytest.raises(NotFound, match="no such bucket"):
            open_objects("s3://bucket/p", s3.env).check()

    @pytest.mark.parametrize(
        ("status", "code"), [(403, "SignatureDoesNotMatch"), (501, ""), (400, "Strange"), (418, "")]
    )
    def test_no_secret_stands_in_any_error(self, s3, status, code):
        objects = open_objects("s3://bucket/p", s3.env | {"AWS_SESSION_TOKEN": "CANARY-token"})
        s3.fault = s3double.failing(status, code)
        for ask in (
            lambda: objects.put("a", b"x"),
            lambda: objects.head("a"),
            objects.check,
            lambda: list(objects.list()),
        ):
            with pytest.raises(MigrateError) as caught:
                ask()
            assert "CANARY" not in f"{caught.value!r}{caught.value.hint}{caught.value.__cause__!r}"
        assert "CANARY" not in f"{objects!r}{objects.access!r}{objects.shown}"

    def test_a_store_that_cannot_be_reached_is_unavailable(self, monkeypatch):
        monkeypatch.setattr(module, "_TIMEOUTS", {"connect_timeout": 1, "read_timeout": 1})
        objects = open_objects("s3://bucket/p", {**s3double.CREDENTIALS, "AWS_ENDPOINT_URL": "http://127.0.0.1:1"})
        for ask in (objects.check, lambda: objects.put("a", b"x")):
            with pytest.raises(Unavailable):
                ask()


def _process(folder: Path, seconds: int) -> str:
    """A profile whose keys a program gives: each time others, that last for so long."""
    program = folder / "keys.py"
    program.write_text(f"""
import datetime, json, pathlib
file = pathlib.Path({str(folder / "asked")!r})
number = int(file.read_text()) + 1 if file.exists() else 1
file.write_text(str(number))
end = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds={seconds})
print(json.dumps({{"Version": 1, "AccessKeyId": f"KEY{{number}}", "SecretAccessKey": "CANARY",
                  "SessionToken": "t", "Expiration": end.isoformat()}}))
""")
    return f"[profile short]\ncredential_process = {shlex.quote(sys.executable)} {shlex.quote(str(program))}\n"


def _stamp(seconds: int) -> str:
    then = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=seconds)
    return then.strftime("%Y-%m-%dT%H:%M:%SZ")


def _certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate of its own for localhost, which nobody trusts who was not told."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), dt.datetime.now(dt.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    (folder / "tls.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    )
    (folder / "tls.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return folder / "tls.crt", folder / "tls.key"
