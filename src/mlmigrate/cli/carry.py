"""What export, import and copy do: one transfer, and its report."""

from __future__ import annotations

from collections.abc import Callable

from mlmigrate import ledger, messages, report, transfer
from mlmigrate.cli.jobs import whole_file
from mlmigrate.cli.options import Chosen
from mlmigrate.cli.output import shown, tell
from mlmigrate.errors import Stopped
from mlmigrate.ledger import Ledger
from mlmigrate.transfer import Job, Report

SOME_FAILED = 3


def carry(job: Job, chosen: Chosen) -> int:
    """Carries the job; with --dry-run plans it. Gives the exit code."""
    if chosen.dry_run:
        from mlmigrate.cli.plan import show

        return show(job, chosen)
    file = chosen.ledger or ledger.default_file(job.source, job.target)
    book = Ledger.open(file, job.source, job.target, restart=chosen.restart)
    try:
        done = transfer.transfer(job, book, shown(chosen), chosen.workers, chosen.dask)
    finally:
        book.close()
    return _told(done, job, chosen)


def _told(done: Report, job: Job, chosen: Chosen) -> int:
    lines = report.transferred(done, job, verbose=bool(chosen.verbose), strict=chosen.strict)
    code = exit_code(done, strict=chosen.strict)
    summary = summary_message(done, ok=code == 0)
    if chosen.report is not None:
        whole_file(chosen.report, written(lines, [summary], as_json=chosen.report.suffix == ".json"))
    oddities = [messages.Oddity(what=one.what, because=one.because) for one in done.oddities]
    tell(chosen, lines, [*oddities, summary])
    return code


def exit_code(done: Report, *, strict: bool) -> int:
    """0 when all of it is there."""
    if done.stopped:
        return Stopped.exit_code
    return SOME_FAILED if done.failed or (strict and done.losses) else 0


def written(lines: list[str], told: list[messages.Message], *, as_json: bool) -> str:
    """The contents of a --report file."""
    line: Callable[[messages.Message], str] = messages.line
    return "".join(
        one + "\n" for one in ([line(message) for message in told] if as_json else map(report.escape, lines))
    )


def summary_message(done: Report, *, ok: bool) -> messages.Summary:
    """The end of a transfer for programs."""
    return messages.Summary(
        ok=ok,
        stopped=done.stopped,
        runs=done.runs,
        copied=done.copied,
        already=done.already,
        failed=len(done.failed),
        losses=len(done.losses),
        points=done.points,
        artifacts=done.artifacts,
        bytes=done.size,
        seconds=round(done.seconds, 3),
        records=dict(done.records),
    )
