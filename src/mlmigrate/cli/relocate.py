"""mlmigrate relocate: a live store's artifacts moved to another place, undoably."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlmigrate.cli import options
from mlmigrate.cli.options import Chosen

if TYPE_CHECKING:
    from mlmigrate import messages
    from mlmigrate.relocate.job import Done, Wish


class HowMany(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A number of files, or all of them (0)."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401
        if isinstance(value, int):
            return value
        if value.lower() == "all":
            return 0
        if not value.isdecimal() or not int(value):
            self.fail(f"{value!r} is no number of files; write --check=500 or --check=all", param, ctx)
        return int(value)


@click.command(
    "relocate",
    **options.help_of(
        "Move the artifacts of the MLflow store STORE to PLACE while it is in use, and switch its URIs there.\n\n"
        "Copies, catches up, switches all URIs in one transaction, brings over what was written meanwhile, and checks "
        "a sample. Stopped anywhere, the same command goes on.",
        "relocate mlflow:sqlite:///mlflow.db --to s3://bucket/prefix --dry-run",
        "relocate mlflow:postgresql://user@host/mlflow --to s3://bucket/prefix",
        "relocate mlflow:sqlite:///mlflow.db --to s3://bucket/prefix --sweep --check=all",
        "relocate mlflow:sqlite:///mlflow.db --to s3://bucket/prefix --undo",
        "relocate mlflow:sqlite:///mlflow.db --to /data/artifacts --from ./mlartifacts",
    ),
)
@click.argument("store")
@options.option("--to", required=True, metavar="PLACE", help="s3://bucket/prefix, gs://..., az://..., or a folder.")
@options.option(
    "--from",
    "from_",
    default="",
    metavar="PLACE",
    help="The server's --artifacts-destination (mlflow-artifacts: URIs).",
)
@options.option("-n", "--dry-run", is_flag=True, help="Say what would be done, what it costs, what cannot be found.")
@click.option("--copy-only", is_flag=True, help="Copy, and switch nothing yet.")
@click.option(
    "--check",
    type=HowMany(),
    is_flag=False,
    flag_value="100",
    default=None,
    metavar="N|all",
    help="Download N files (100) through MLflow's client and compare them.",
)
@click.option("--seed", type=int, default=None, metavar="N", help="Which files a check takes.")
@click.option("--sweep", is_flag=True, help="Bring over what was written at the old places since.")
@click.option("--undo", is_flag=True, help="Give every URI back the value it had.")
@click.option("--delete-source", is_flag=True, help="Check, then delete the old files that are proven to be at PLACE.")
@click.option("--server", default="", metavar="URL", help="Check through this server of the store.")
@options.option("--ledger", type=options.file(), metavar="FILE", help="Where this move's history and undo are kept.")
@options.takes(options.PLACES[2:], options.LIMITS, options.RETRIES, options.STRICT, options.PRINTING)
def command(
    store: str,
    to: str,
    from_: str,
    dry_run: bool,
    copy_only: bool,
    check: int | None,
    seed: int | None,
    sweep: bool,
    undo: bool,
    delete_source: bool,
    server: str,
    ledger: Path | None,
    chosen: Chosen,
) -> int:
    """One relocation."""
    from mlmigrate.cli.jobs import place_of
    from mlmigrate.cli.light import leave_pandas_out
    from mlmigrate.cli.output import shown, tell
    from mlmigrate.errors import UsageError
    from mlmigrate.relocate import job, told

    leave_pandas_out()
    if sum((undo, dry_run, copy_only, bool(sweep or check is not None or delete_source))) > 1:
        raise UsageError("--undo, --dry-run and --copy-only go alone.", "mlmigrate relocate --help says what there is.")
    wish = job.Wish(
        place_of(store, "source"),
        to,
        from_,
        dry_run=dry_run,
        copy_only=copy_only,
        check=check,
        sweep=sweep,
        undo=undo,
        delete_source=delete_source,
        server=server,
        seed=seed,
        ledger=ledger,
        tries=chosen.retries,
        settings=_settings(chosen),
    )
    done = job.relocate(wish, shown(chosen))
    code = told.code(done, strict=chosen.strict)
    tell(chosen, told.lines(done, wish, verbose=bool(chosen.verbose)), _messages(done, wish, ok=code == 0))
    return code


def _settings(chosen: Chosen) -> Any:  # noqa: ANN401  Settings, imported when it is needed
    from mlmigrate.adapters.base import Settings

    return Settings(
        artifacts_at=chosen.artifacts_at,
        allow_artifacts=chosen.allow_artifacts,
        bwlimit=chosen.bwlimit,
        tpslimit=chosen.tpslimit,
        part_size=chosen.part_size,
    )


def _messages(done: Done, wish: Wish, *, ok: bool) -> list[messages.Message]:
    """The same for programs."""
    from mlmigrate import messages, progress
    from mlmigrate.relocate import told

    findings = done.checked.findings if done.checked is not None else []
    failures = [
        messages.Failure(experiment="", id=owner, name=at, error=error, message=message)
        for owner, at, error, message in done.failures
    ]
    left = [messages.Oddity(what=one.shown, because=one.why) for one in done.held]
    left += [
        messages.Oddity(what=f"{kind} {name or owner}: {value}", because=why)
        for kind, owner, name, value, why in done.alone
    ]
    return [*left, *failures, *map(progress.finding_message, findings), _summary(done, told.verdict(done, wish), ok=ok)]


def _summary(done: Done, sentence: str, *, ok: bool) -> messages.Relocated:
    from mlmigrate import messages

    copied, swept, checked, switched = done.copied, done.swept, done.checked, done.switched
    return messages.Relocated(
        ok=ok,
        store=done.store,
        target=done.to,
        files=done.look.seen,
        bytes=done.look.size,
        to_copy=done.look.todo,
        bytes_to_copy=done.look.todo_size,
        copied=copied.copied if copied else 0,
        bytes_copied=copied.copied_size if copied else 0,
        bytes_sent=copied.sent if copied else 0,
        uris=switched.edits if switched else 0 if not done.undone else done.undone.edits,
        uris_to_change=done.values,
        pass_seconds=[round(one, 3) for one in done.passes],
        switch_seconds=round(switched.seconds, 3) if switched else 0.0,
        swept=swept.copied if swept else 0,
        checked=checked.files if checked else 0,
        findings=len(checked.findings) if checked else 0,
        failed=len(done.failures),
        held=len(done.held),
        deleted=done.deleted[0] if done.deleted else 0,
        seconds=round(done.seconds, 3),
        message=sentence,
    )
