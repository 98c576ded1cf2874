"""Values -> text: what a person reads at the end, in lines and sentences. Pure.

The last line is always a sentence that answers "is it good?".
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from unicodedata import combining, east_asian_width

from mlmigrate.address import hide_secrets
from mlmigrate.costs import Cost
from mlmigrate.events import Failure
from mlmigrate.ledger import State
from mlmigrate.model import Finding, Loss
from mlmigrate.plan import Plan
from mlmigrate.transfer import Job, Report
from mlmigrate.verify import Verdict

KINDS_SHOWN = 12  # of losses; the ledger and --json have them all
FAILURES_SHOWN = 20
MILLION = 1_000_000

# what could move a terminal's cursor, colour it, or turn the order of letters around
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff]"
)
# what differs among losses of one kind
_DETAIL = re.compile(r"""'[^']*'|"[^"]*"|\S*[/\\]\S*|\b[0-9a-f]{8,}\b|\d[\d,.]*""")


def escape(text: str) -> str:
    """`text` with control characters written out: names from outside are data, never commands to a terminal."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def amount(number: int) -> str:
    """1,500; from a million on 18.2 M."""
    return f"{number:,}" if abs(number) < MILLION else f"{number / MILLION:,.1f} M"


def size(count: int) -> str:
    """312 B, 96.4 GB."""
    if count < 1000:  # noqa: PLR2004  the first unit
        return f"{count} B"
    number, unit = float(count), ""
    for unit in ("kB", "MB", "GB", "TB", "PB"):  # noqa: B007  the last one is used
        number /= 1000
        if number < 999.95:  # noqa: PLR2004  what would be shown as 1000.0
            break
    return f"{number:,.1f} {unit}"


def duration(seconds: float) -> str:
    """0.4 s, 12 s, 13 min 40 s, 2 h 5 min."""
    if seconds < 10:  # noqa: PLR2004
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = (("h", hours), ("min", minutes), ("s", rest if not hours else 0))
    return " ".join(f"{count} {unit}" for unit, count in parts if count) or "0 s"


def several(number: int, noun: str) -> str:
    """1 run, 1,500 runs."""
    return f"{amount(number)} {noun if number == 1 else plural(noun)}"


def things(records: Mapping[str, int]) -> list[str]:
    """3 registered models, 1,000 traces: records counted by kind, in words."""
    return [several(count, _word(kind)) for kind, count in records.items() if count]


def _word(kind: str) -> str:
    """mlflow.registered_model: registered model; mlflow.sql.skills: row of skills."""
    name = kind.rpartition(".")[2].replace("_", " ")
    return f"row of {name}" if kind.startswith("mlflow.sql.") else name


def plural(noun: str) -> str:
    """The plural of the nouns that losses are about."""
    if noun.startswith("row of"):
        return noun.replace("row", "rows", 1)
    if noun.endswith("s"):
        return noun
    return noun[:-1] + "ies" if noun.endswith("y") else noun + "s"


def table(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """Columns wide enough for all; those numbered in `right` stand to the right. Cells are escaped."""
    cells = [[escape(cell) for cell in row] for row in rows]
    widths = [max(map(_width, column)) for column in zip(*cells, strict=True)]
    return [
        "   ".join(
            _padded(cell, width, right=number in right)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def _padded(cell: str, width: int, *, right: bool) -> str:
    space = " " * (width - _width(cell))
    return space + cell if right else cell + space


def _width(text: str) -> int:
    """How many columns of a terminal the text takes."""
    if text.isascii():
        return len(text)
    wide = sum(east_asian_width(letter) in "WF" for letter in text)
    return len(text) + wide - sum(combining(letter) != 0 for letter in text)


# transfer


def transferred(report: Report, job: Job, *, verbose: bool = False, strict: bool = False) -> list[str]:
    """What a transfer came to; its last line says whether all is there."""
    lines = list(_odd(report.oddities, job.source.shown))
    if verbose or report.failed or report.losses or report.stopped:
        lines += _block(report)
    return [*lines, _closing(report, job, strict=strict)]


def _block(report: Report) -> Iterator[str]:
    yield (
        f"copied {report.copied:>9,} {_runs(report.copied)}, {several(report.points, 'point')}, "
        f"{several(report.artifacts, 'artifact')}, {size(report.size)} in {duration(report.seconds)}"
    )
    if report.records:
        yield f"and              {', '.join(things(report.records))}"
    if report.already:
        yield f"already {report.already:>8,} {_runs(report.already)}"
    if report.failed:
        yield f"failed {len(report.failed):>9,} {_runs(len(report.failed))}"
        yield from failed(report.failed)
    if report.losses:
        losses, runs = len(report.losses), len({loss.run for loss in report.losses if loss.run})
        where = f" in {several(runs, 'run')}" if runs else ""
        yield f"lost {losses:>11,} {_things(losses)}{where} (mlmigrate status --losses lists them)"


def failed(failures: Sequence[Failure]) -> Iterator[str]:
    """One line for each run that did not arrive."""
    shown = failures[:FAILURES_SHOWN]
    names = [escape(f"{one.experiment}/{one.name or one.run}") for one in shown]
    width = max(map(len, names), default=0)
    for name, one in zip(names, shown, strict=True):
        message = one.message.strip().splitlines()
        yield f"  {name.ljust(width)}   {one.error}: {hide_secrets(message[-1]) if message else ''}"
    if len(failures) > len(shown):
        yield f"  and {several(len(failures) - len(shown), 'run')} more (mlmigrate status --failures lists them)"


def _closing(report: Report, job: Job, *, strict: bool) -> str:
    source, target = job.source.shown, job.target.shown
    there = report.copied + report.already
    bad = len(report.failed)
    if report.stopped:
        verb = "is" if there == 1 else "are"
        return (
            f"Stopped. {there:,} of {several(report.runs, 'run')} {verb} copied. Run the same command again to go on."
        )
    if bad:
        verb, them = ("is", "it") if bad == 1 else ("are", "them")
        of = f"{bad:,} of {several(report.runs, 'run')}" if report.runs >= bad else several(bad, "thing")
        return f"{of} {verb} not copied. Run the same command again to try {them} once more."
    if not report.runs:
        return _without_runs(report, source, target)
    whole = f"{_all(report.runs)} of {source} {_is(report.runs)} in {target}"
    if strict and report.losses:
        return f"{whole}, but {several(len(report.losses), 'thing')} {_was(len(report.losses))} lost (--strict)."
    if job.target.kind == "archive":
        gone = len(report.losses)
        new = size(report.size) if report.copied else "nothing new"
        return f"{whole} ({new}, {duration(report.seconds)}). {several(gone, 'thing')} lost."
    return f"{whole}. To check {'it' if report.runs == 1 else 'them'}: {command('verify', job)}"


def _without_runs(report: Report, source: str, target: str) -> str:
    if not report.records:
        return f"No run of {source} was asked for: there is nothing to copy."
    return f"{_sentence(things(report.records))} of {source} {_is(sum(report.records.values()))} in {target}."


def _sentence(parts: Sequence[str]) -> str:
    return f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else "".join(parts)


def command(name: str, job: Job) -> str:
    """A command for the same places, to be typed next."""
    more = " …" if _narrowed(job) else ""
    sources = job.source.many or (job.source,)
    files = job.target_settings.artifacts_to
    options = ["--artifacts-to", files] if files not in ("", "keep") else []
    return shlex.join(["mlmigrate", name, *(one.shown for one in sources), job.target.shown, *options]) + more


def _narrowed(job: Job) -> bool:
    return job.selection != type(job.selection)() or job.mapping != type(job.mapping)()


def _odd(oddities: Sequence[Loss], source: str) -> Iterator[str]:
    if oddities:
        yield f"{several(len(oddities), 'thing')} about {source}:"
        yield from grouped(oddities)


# losses


def grouped(losses: Sequence[Loss]) -> Iterator[str]:
    """Losses of one kind on one line, the most frequent first."""
    kinds: Counter[tuple[str, str]] = Counter()
    first: dict[tuple[str, str], Loss] = {}
    for loss in losses:
        kind = (_noun(loss.what), _DETAIL.sub("#", loss.because))
        kinds[kind] += 1
        first.setdefault(kind, loss)
    shown = kinds.most_common(KINDS_SHOWN)
    width = max((len(f"{count:,}") for _, count in shown), default=0)
    for kind, count in shown:
        yield f"  {count:>{width},} {_kind(kind[0], count, first[kind])}"
    if len(kinds) > len(shown):
        yield f"  and {several(len(kinds) - len(shown), 'kind')} more (--json lists all)"


def _kind(noun: str, count: int, loss: Loss) -> str:
    if count == 1:
        return escape(f"{loss.what}{_of(loss)}   {loss.because}")
    example = loss.what.removeprefix("the ").removeprefix(noun).strip() or loss.run
    return escape(
        f"{plural(noun)}   {loss.because}"
        + (f", e.g. {example}{_of(loss) if example != loss.run else ''}" if example else "")
    )


def _of(loss: Loss) -> str:
    return f" of {loss.run}" if loss.run and loss.run not in loss.what else ""


def _noun(what: str) -> str:
    word = what.removeprefix("the ").removeprefix("a ").partition(" ")[0]
    return word if word.isalpha() and word.isascii() else "thing"


# plan


def planned(plan: Plan, job: Job) -> list[str]:
    """The table of a plan, what would be lost, and what to type next."""
    source, target = plan.source, plan.target
    about = "" if not plan.quick else "about "
    beside = [f"and {', '.join(things(plan.records))}"] if plan.records else []
    lines = [f"{source}  ->  {target}", "", *_plan_table(plan), *beside, ""]
    if plan.already:
        lines.append(f"{several(plan.already, 'run')} {_is(plan.already)} there already and will be skipped.")
    lines += _odd(plan.oddities, source)
    if plan.losses:
        lines.append(f"{about}{several(len(plan.losses), 'thing')} cannot be carried as they are:")
        lines += grouped(plan.losses)
    if plan.left.artifacts:
        lines.append(f"Left behind as asked: {several(plan.left.artifacts, 'artifact')}, {size(plan.left.size)}.")
    lines += _rules(plan.rules)
    lines += _costs(plan.costs)
    return [*lines, f"Nothing was written. To copy: {command('copy', job)}"]


def _plan_table(plan: Plan) -> list[str]:
    rows = [("experiment", "runs", "points", "artifacts", "size")]
    rows += [
        (
            one.experiment or "(of no experiment)",
            f"{one.runs:,}",
            amount(one.points),
            f"{one.artifacts:,}",
            size(one.size),
        )
        for one in plan.lines
    ]
    sums = [sum(getattr(one, name) for one in plan.lines) for name in ("runs", "points", "artifacts", "size")]
    experiments = several(sum(bool(one.experiment) for one in plan.lines), "experiment")
    rows.append((experiments, f"{sums[0]:,}", amount(sums[1]), f"{sums[2]:,}", size(sums[3])))
    return table(rows, right=(1, 2, 3, 4))


def _rules(rules: Sequence[tuple[str, int]]) -> Iterator[str]:
    if rules:
        yield f"{several(len(rules), 'rule')} of the mapping:"
        met = [(rule, several(count, "name") if count else "met none") for rule, count in rules]
        yield from ("  " + line for line in table(met))


def _costs(costs: Sequence[Cost]) -> Iterator[str]:
    """Requests and bytes, for those who pay for them."""
    stores = [cost for cost in costs if cost.way == "store"]
    servers = [cost for cost in costs if cost.way == "server"]
    if stores:
        yield "Object stores, estimated:"
        head = ("", "PUT, COPY, LIST", "GET, HEAD", "up", "down", "copied inside")
        yield from table(
            [
                head,
                *(
                    (f"  {one.place}", amount(one.puts), amount(one.gets), *map(size, (one.up, one.down, one.inside)))
                    for one in stores
                ),
            ],
            right=(1, 2, 3, 4, 5),
        )
    for one in servers:
        requests, gone = several(one.puts + one.gets, "request"), size(one.up + one.down)
        yield escape(f"Through {one.place}: {requests} for artifacts, {gone}.")


# verify


def found(finding: Finding) -> str:
    """One difference: its mark, where it is, and what each place holds."""
    where = "/" if finding.run else "   "
    what = f"{finding.experiment}{where}{finding.what}" if finding.experiment else finding.what
    return escape(f"{finding.mark} {what:<60}   {_values(finding)}".rstrip())


def _values(finding: Finding) -> str:
    source, target = _long(finding.source), _long(finding.target)
    match finding.source, finding.target:
        case ("there", "not there") | ("not there", "there"):
            return "not there" if finding.source == "there" else "only there"
        case "not there", _:
            return f"not here, {target} there"
        case _, "not there":
            return f"{source} here, not there"
        case ("", _) | (_, ""):
            return source or target
    return f"{source} here, {target} there"


def _long(text: str, most: int = 60) -> str:
    return text if len(text) <= most else f"{text[:most]}… ({len(text):,} characters)"


def verified(verdict: Verdict, job: Job, *, quick: bool, download: bool) -> list[str]:
    """The closing sentences of verify."""
    known = len(verdict.losses)
    lines = [f"{several(known, 'thing')} {_is(known)} known not to have arrived unchanged:"] if known else []
    lines += grouped(verdict.losses)
    if not differs(verdict):
        return [*lines, _equal(verdict, job, quick=quick, download=download)]
    parts = [f"{verdict.equal:,} of {several(verdict.runs, 'run')} {_is(verdict.equal)} equal"]
    if verdict.differs:
        parts.append(f"{verdict.differs:,} {'differs' if verdict.differs == 1 else 'differ'}")
    if verdict.missing:
        parts.append(f"{verdict.missing:,} {_is(verdict.missing)} missing")
    if verdict.extra:
        parts.append(f"{verdict.extra:,} {_is(verdict.extra)} only in the target")
    if verdict.unreadable:
        parts.append(f"{verdict.unreadable:,} could not be read")
    if len(parts) == 1:
        parts.append(f"{several(len(verdict.findings), 'difference')} outside the runs")
    return [*lines, ", ".join(parts) + "."]


def differs(verdict: Verdict) -> bool:
    """Whether verify found anything that is not as it should be."""
    return bool(verdict.findings or verdict.differs or verdict.missing or verdict.extra or verdict.unreadable)


def _equal(verdict: Verdict, job: Job, *, quick: bool, download: bool) -> str:
    if not verdict.runs and verdict.records:
        return f"Equal: {', '.join(things(verdict.records))}."
    if not verdict.runs:
        return f"No run of {job.source.shown} was asked for: there is nothing to compare."
    runs = f"{_all(verdict.runs)} {_is(verdict.runs)} equal"
    if quick:
        return f"{runs} by counts, times and sizes; values were not compared (--quick)."
    parts = job.selection.parts
    what: list[str] = [name for name in ("params", "tags") if name in parts]
    if "metrics" in parts:
        what.append(several(verdict.points, "point"))
    if "artifacts" in parts and job.target_settings.artifacts_to == "keep":
        what.append("artifacts by where they lie")
    elif "artifacts" in parts:
        what.append(f"{several(verdict.artifacts, 'artifact')} by {'sha256' if download else 'what both places know'}")
    what += things(verdict.records)
    return f"{runs}: {', '.join(what)}."


# status


def status(state: State, now: float) -> list[str]:
    """How far a copy is."""
    return [f"{state.source}  ->  {state.target}       {_when(state)}", _counts(state, now)]


def _when(state: State) -> str:
    if state.pid:
        return f"running since {_clock(state.started)} (pid {state.pid})"
    if state.ended is not None:
        return f"ended {_clock(state.ended)}"
    if not state.started:
        return "not begun"
    return f"broken off, begun {_clock(state.started)}: run the same command again to go on"


def _counts(state: State, now: float) -> str:
    todo = max(0, state.runs - state.copied - state.already - state.failed)
    parts = [f"copied {state.copied:,}", f"already {state.already:,}", f"failed {state.failed:,}", f"to do {todo:,}"]
    if state.losses:
        parts.append(f"lost {state.losses:,}")
    if state.artifacts:
        parts.append(f"{several(state.artifacts, 'artifact')}, {size(state.size)}")
    if state.pid and state.copied and todo:
        parts.append(f"about {duration((now - state.started) / state.copied * todo)} left")
    return "   ".join(parts)


def _clock(seconds: float) -> str:
    when = datetime.fromtimestamp(seconds).astimezone()
    today = datetime.now().astimezone().date()
    return when.strftime("%H:%M" if when.date() == today else "%Y-%m-%d %H:%M")


def history(state: State, failures: Sequence[Failure], losses: Sequence[Loss]) -> list[str]:
    """What happened in a copy, from its ledger."""
    there = state.copied + state.already
    lines = [
        f"{state.source}  ->  {state.target}",
        _when(state),
        (
            f"copied {state.copied:>9,} {_runs(state.copied)}, {several(state.points, 'point')}, "
            f"{several(state.artifacts, 'artifact')}, {size(state.size)}"
        ),
        f"already {state.already:>8,} {_runs(state.already)}",
    ]
    if failures:
        lines += [f"failed {len(failures):>9,} {_runs(len(failures))}", *failed(failures)]
    if losses:
        lines += [f"lost {len(losses):>11,} {_things(len(losses))}", *grouped(losses)]
    if failures or there < state.runs:
        return [*lines, f"{there:,} of {several(state.runs, 'run')} {_is(there)} copied."]
    return [*lines, f"{_all(state.runs)} {_is(state.runs)} copied."]


def _all(runs: int) -> str:
    return "The one run" if runs == 1 else f"All {several(runs, 'run')}"


def _is(number: int) -> str:
    return "is" if number == 1 else "are"


def _was(number: int) -> str:
    return "was" if number == 1 else "were"


def _runs(number: int) -> str:
    return "run" if number == 1 else "runs"


def _things(number: int) -> str:
    return "thing" if number == 1 else "things"
