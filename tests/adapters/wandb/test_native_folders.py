"""A run that was W&B's goes through an archive into a folder of W&B's, and its log tells there what it told before."""

import json
import math
from contextlib import closing

import pytest
from wandb.proto import wandb_internal_pb2 as pb

import wandblogs
from mlmigrate.address import parse
from mlmigrate.events import Silent
from mlmigrate.ledger import Ledger
from mlmigrate.survey import Job
from mlmigrate.transfer import transfer
from mlmigrate.verify import verify

END = pb.Record(exit={"exit_code": 3, "runtime": 9})
CONFIG = {
    "none": None,
    "big": 2**70,
    "deep": {"a": {"b": {"c": [1, {"d": None}]}}},
    "_x": 2,
    "a.b": 1,
    "a": {"b": 2, "": 3},
    "empty": {},
    "list": [],
    "said": "NaN",
    "whole": 3.0,
    "minus": -0.0,
}


def row(step, time, **texts):
    record = pb.Record(history={"step": {"num": step}})
    for key, text in {**texts, "_step": str(step), "_timestamp": time}.items():
        record.history.item.add(nested_key=[key], value_json=text)
    return record


def copied(source, target, ledger):
    job = Job(parse(source), parse(target))
    with closing(Ledger.open(ledger, job.source, job.target)) as held:
        report = transfer(job, held, Silent())
    assert (report.failed, report.copied) == ((), 1)
    assert verify(job, Silent()).findings == ()


def told(folder):
    """Config, summary and rows as the log has them: values by their keys, told by their types too."""
    (log,) = (file for file in folder.rglob("*.wandb") if file.name == "run-a.wandb")
    config = {one.key: value(one) for run in wandblogs.of_kind(log, "run") for one in run.config.update}
    summary = {one.nested_key[0]: value(one) for kept in wandblogs.of_kind(log, "summary") for one in kept.update}
    rows = [
        sorted((one.nested_key[0], value(one)) for one in made.item if one.nested_key[0] != "_runtime")
        for made in wandblogs.of_kind(log, "history")
    ]
    own = {name: text for name, text in config.items() if name not in ("mlmigrate", "_wandb")}
    return own, {name: text for name, text in summary.items() if name != "_wandb"}, rows


def value(item):
    """What it is, told with its type; but W&B itself writes 3.0 as 3."""
    return repr(json.loads(item.value_json)).removesuffix(".0")


@pytest.mark.parametrize(
    "records",
    [
        [],
        [row(0, "1600000000.123457", on="true", off="false", none="null", text='"x"', list="[1,2]")],
        [row(0, "1600000000", big="9007199254740993", minus="-0.0", nan="NaN", inf="-Infinity", on="true")],
        [row(n, str(1600000000 + n), on="true" if n % 2 else "0.5", loss="0.25") for n in range(20)],
        [row(0, "-5.5", a="1"), row(5, "1600000000000", a="2"), row(7, "1600000001", a="3")],
        [row(3, "1600000000", **{"_x": "5", "a.b": "1", "x/y": "2", "k" * 3000: "3", "é\n": "true"})],
        [wandblogs.summary(x=1, big=2**60, nan=math.nan, nested={"a": {"b": 1}, "a.b": 2}, none=None, on=True)],
    ],
)
def test_rows_config_and_summary_are_as_they_were(records, tmp_path):
    log = tmp_path / "first" / "offline-run-20200913_122640-a" / "run-a.wandb"
    wandblogs.write(log, [wandblogs.header(), wandblogs.run("a", config=CONFIG), *records, END])
    copied(f"wandb:{tmp_path}/first", f"archive:{tmp_path}/archive", tmp_path / "ledger 1")
    copied(f"archive:{tmp_path}/archive", f"wandb:{tmp_path}/again", tmp_path / "ledger 2")
    assert told(tmp_path / "again") == told(tmp_path / "first")
