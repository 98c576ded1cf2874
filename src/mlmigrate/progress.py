"""Events -> tqdm bars on a terminal, a plain line now and then elsewhere, JSON lines, or nothing.

stdout   results: findings, runs (-v), the report's sentences; with --json one object a line
stderr   everything else: bars, notes, waits
"""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import NoReturn

from tqdm import tqdm

from mlmigrate import messages, report
from mlmigrate.events import Failure, Progress, RunEvent
from mlmigrate.model import Finding, Loss

POINT_BYTES = 50  # a point is about as much work as so many bytes of an artifact
ARTIFACT_BYTES = 1 << 15  # and so is an artifact, however small
WINDOW = 20.0  # seconds that a rate is measured over
Say = Callable[[str], None]
_COUNT = re.compile(r"(\d[\d,]*)(?: points)?")


@dataclass
class Tally:
    """How much is to be done and how much is done; counted from any thread."""

    runs: int = 0
    points: int = 0
    size: int = 0
    artifacts: int = 0
    runs_done: int = 0
    points_done: int = 0
    size_done: int = 0
    artifacts_done: int = 0
    failed: int = 0
    started: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _lately: deque[tuple[float, int, int]] = field(default_factory=deque)  # when, bytes, artifacts

    def advance(self, points: int, artifacts: int, size: int) -> None:
        """So much more is done; or less, where it is to be done again."""
        with self._lock:
            self.points_done += points
            self.artifacts_done += artifacts
            self.size_done += size

    def rates(self, now: float) -> tuple[float, float]:
        """Bytes and artifacts a second lately: since they were asked for a while ago, or since the beginning."""
        with self._lock:
            size, artifacts = self.size_done, self.artifacts_done
            while len(self._lately) > 1 and self._lately[1][0] <= now - WINDOW:
                self._lately.popleft()
            when, size_then, artifacts_then = self._lately[0] if self._lately else (self.started, 0, 0)
            if not self._lately or now - self._lately[-1][0] >= 1:
                self._lately.append((now, size, artifacts))
        if now - when < 1:  # nobody can tell yet
            return 0.0, 0.0
        return max(0.0, (size - size_then) / (now - when)), max(0.0, (artifacts - artifacts_then) / (now - when))

    def left(self, now: float) -> float | None:
        """Seconds left, as far as anybody can tell."""
        done = self._share()
        gone = now - self.started
        if not 0 < done < 1 or gone < 1:
            return None
        return gone / done - gone

    def _share(self) -> float:
        """Which part of the work is done; the totals are estimates and may fall short."""
        work = self.points * POINT_BYTES + self.size + self.artifacts * ARTIFACT_BYTES
        by_runs = self.runs_done / self.runs if self.runs else 0.0
        if not work:
            return by_runs
        done = self.points_done * POINT_BYTES + self.size_done
        done += self.artifacts_done * ARTIFACT_BYTES if self.artifacts else 0
        return min(1.0, max(by_runs, done / work))

    def sentence(self, now: float) -> str:
        """461/1500 runs, 26.1 GB of 96.6 GB, 612 artifacts, 104.0 MB/s, 2 failed, about 9 min left."""
        parts = [f"{self.runs_done}/{self.runs} runs"] if self.runs else []
        parts += self._amounts()
        if rate := self.rates(now)[0]:
            parts.append(f"{report.size(round(rate))}/s")
        if self.failed:
            parts.append(f"{self.failed} failed")
        left = self.left(now)
        if left is not None:
            parts.append(f"about {report.duration(max(left, 10))} left")
        return ", ".join(parts) or "nothing yet"

    def _amounts(self) -> list[str]:
        """Bytes, artifacts and points: those that there are."""
        parts = []
        if self.size:
            parts.append(f"{report.size(self.size_done)} of {report.size(max(self.size, self.size_done))}")
        elif self.size_done:
            parts.append(report.size(self.size_done))
        if self.artifacts:
            of = max(self.artifacts, self.artifacts_done)
            parts.append(f"{report.amount(self.artifacts_done)} of {report.several(of, 'artifact')}")
        elif self.artifacts_done:
            parts.append(report.several(self.artifacts_done, "artifact"))
        if self.points_done and not self.size:
            of_points = f" of {report.amount(self.points)}" if self.points >= self.points_done else ""
            parts.append(f"{report.amount(self.points_done)}{of_points} points")
        return parts

    def message(self, now: float) -> messages.Progress:
        """The same for programs."""
        left = self.left(now)
        return messages.Progress(
            runs_done=self.runs_done,
            runs=self.runs,
            points_done=self.points_done,
            points=self.points,
            bytes_done=self.size_done,
            bytes=self.size,
            objects_done=self.artifacts_done,
            objects=self.artifacts,
            bytes_per_second=round(self.rates(now)[0]),
            failed=self.failed,
            seconds_left=None if left is None else round(left),
        )


class Ticker:
    """Calls `tick` every so many seconds, in a thread of its own, until it is stopped."""

    def __init__(self, seconds: float, tick: Callable[[], None]) -> None:
        self._seconds, self._tick = seconds, tick
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(self._seconds):
            self._tick()

    def stop(self) -> None:
        """Returns once no tick is under way."""
        self._stop.set()
        self._thread.join()


class Plain:
    """For people, without anything that moves: a line every `seconds` (0: none)."""

    def __init__(self, out: Say, err: Say, *, verbose: int = 0, quiet: bool = False, seconds: float = 30) -> None:
        self.out, self.err, self.verbose, self.quiet, self.seconds = out, err, verbose, quiet, seconds
        self.tally = Tally()
        self._ticker: Ticker | None = None

    def begin(self, what: str, runs: int, points: int, size: int, artifacts: int = 0) -> None:  # noqa: ARG002  told by the command itself
        self.end()
        self.tally = Tally(runs, points, size, artifacts)
        if self.seconds and not self.quiet:
            self._ticker = Ticker(self.seconds, lambda: self.err(self.tally.sentence(time.monotonic())))

    def advance(self, points: int = 0, artifacts: int = 0, size: int = 0) -> None:
        self.tally.advance(points, artifacts, size)

    def run(self, event: RunEvent) -> None:
        self.tally.runs_done += event.state in ("copied", "equal", "differs")
        if not self.verbose or event.state == "differs":
            return
        name = f"{event.experiment}/{event.name or event.id}"
        if event.state == "equal":
            self.result(f"= {name}")
        else:
            self.result(f"{event.state:<8} {name}" + (f" -> {event.target_id}" if event.target_id else ""))

    def loss(self, loss: Loss) -> None:
        if self.verbose > 1:
            self.result(f"lost     {loss.what} of {loss.run or loss.experiment or 'the estate'}: {loss.because}")

    def failure(self, failure: Failure) -> None:  # noqa: ARG002  listed at the end
        self.tally.failed += 1

    def finding(self, finding: Finding) -> None:
        self.result(report.found(finding))

    def note(self, text: str) -> None:
        if not self.quiet:
            self.aside(text)

    def waiting(self, what: str) -> None:
        if self.verbose > 1:
            self.aside(f"again: {what}")

    def end(self) -> None:
        if self._ticker is not None:
            self._ticker.stop()
            self._ticker = None

    def result(self, text: str) -> None:
        """One line on stdout."""
        self.out(text)

    def aside(self, text: str) -> None:
        """One line on stderr."""
        self.err(text)


@dataclass
class _Bar:
    """One line on a terminal, drawn once there is anything to draw."""

    name: str
    total: int
    done: Callable[[], int]
    unit: str = ""
    always: bool = False
    _line: tqdm[NoReturn] | None = None

    @property
    def shown(self) -> bool:
        """Whether there is anything to draw."""
        return self.always or bool(self.total or self.done())

    def draw(self, after: str) -> None:
        """What is done now; `after` stands behind it."""
        done = self.done()
        if self._line is None:
            self._line = self._made()
        if self.total:
            self.total = max(self.total, done)  # it was an estimate
            self._line.total = self.total
        self._line.n = done
        self._line.set_postfix_str(after, refresh=False)
        self._line.refresh()

    def _made(self) -> tqdm[NoReturn]:
        shape = "{percentage:3.0f}% {bar} {n_fmt}/{total_fmt}" if self.total else "{n_fmt}"
        return tqdm(
            total=self.total or None,
            desc=self.name.ljust(6),
            unit=self.unit,
            unit_scale=bool(self.unit) or self.total > report.MILLION,
            bar_format="{desc} " + shape + "{postfix}",
            dynamic_ncols=True,
            leave=False,
        )

    def close(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None


class Bars(Plain):
    """For people at a terminal: what is done, redrawn in place `often` a second, whoever tells of it how often."""

    def __init__(self, out: Say, err: Say, *, verbose: int = 0, quiet: bool = False, often: float = 5) -> None:
        super().__init__(out, err, verbose=verbose, quiet=quiet, seconds=0)
        self._bars: list[_Bar] = []
        self._often = often
        self._waits = 0
        self._drawing = threading.Lock()

    def begin(self, what: str, runs: int, points: int, size: int, artifacts: int = 0) -> None:
        super().begin(what, runs, points, size, artifacts)
        if self.quiet:
            return
        tally = self.tally
        self._bars = [_Bar("runs", runs, lambda: tally.runs_done, always=True)] if runs else []
        self._bars += [
            _Bar("points", points, lambda: tally.points_done),
            _Bar("bytes", size, lambda: tally.size_done, "B"),
            _Bar("files", artifacts, lambda: tally.artifacts_done),
        ]
        self.draw()
        self._ticker = Ticker(1 / self._often, self.draw)

    def draw(self) -> None:
        """All lines as they are now."""
        with self._drawing:
            now = time.monotonic()
            size, artifacts = self.tally.rates(now)
            left = self.tally.left(now)
            time_left = "" if left is None else f"about {report.duration(left if left < 10 else round(left))} left"  # noqa: PLR2004
            after = {
                "bytes": f"{report.size(round(size))}/s" if size else "",
                "files": f"{artifacts:,.0f}/s" if artifacts else "",
            }
            first = [time_left, *self._odd()]
            for bar in [one for one in self._bars if one.shown]:
                bar.draw("   ".join(one for one in (after.get(bar.name, ""), *first) if one))
                first = []

    def waiting(self, what: str) -> None:
        super().waiting(what)
        self._waits += 1

    def _odd(self) -> list[str]:
        """What does not go as it should."""
        failed, waits = self.tally.failed, self._waits
        return [f"{failed} failed"] * bool(failed) + [f"called again {waits} times"] * bool(waits)

    def end(self) -> None:
        super().end()
        for bar in reversed(self._bars):
            bar.close()
        self._bars = []

    def result(self, text: str) -> None:
        with self._cleared():
            self.out(text)

    def aside(self, text: str) -> None:
        with self._cleared():
            self.err(text)

    def _cleared(self) -> AbstractContextManager[None]:
        """The bars out of the way while a line is written."""
        return tqdm.external_write_mode() if self._bars else nullcontext()


class Json:
    """For programs: one object a line on `out`, how far it is about every `seconds` (0: never)."""

    def __init__(self, out: Say, *, seconds: float = 1) -> None:
        self.out, self.seconds = out, seconds
        self.tally = Tally()
        self._ticker: Ticker | None = None

    def begin(self, what: str, runs: int, points: int, size: int, artifacts: int = 0) -> None:  # noqa: ARG002
        self.end()
        self.tally = Tally(runs, points, size, artifacts)
        if self.seconds:
            self._ticker = Ticker(self.seconds, lambda: self._say(self.tally.message(time.monotonic())))

    def advance(self, points: int = 0, artifacts: int = 0, size: int = 0) -> None:
        self.tally.advance(points, artifacts, size)

    def run(self, event: RunEvent) -> None:
        self.tally.runs_done += event.state in ("copied", "equal", "differs")
        self._say(
            messages.Run(
                experiment=event.experiment,
                id=event.id,
                name=event.name,
                state=event.state,
                target_id=event.target_id,
                losses=event.losses,
            )
        )

    def loss(self, loss: Loss) -> None:
        self._say(loss_message(loss))

    def failure(self, failure: Failure) -> None:
        self.tally.failed += 1
        self._say(failure_message(failure))

    def finding(self, finding: Finding) -> None:
        self._say(finding_message(finding))

    def note(self, text: str) -> None: ...

    def waiting(self, what: str) -> None: ...

    def end(self) -> None:
        if self._ticker is not None:
            self._ticker.stop()
            self._ticker = None

    def _say(self, message: messages.Message) -> None:
        self.out(messages.line(message))


def loss_message(loss: Loss) -> messages.Loss:
    """A loss for programs."""
    return messages.Loss(experiment=loss.experiment, id=loss.run, what=loss.what, because=loss.because)


def failure_message(failure: Failure) -> messages.Failure:
    """A failure for programs."""
    return messages.Failure(
        experiment=failure.experiment, id=failure.run, name=failure.name, error=failure.error, message=failure.message
    )


def finding_message(finding: Finding) -> messages.Finding:
    """A finding for programs: counts of points are numbers."""
    here, there = _COUNT.fullmatch(finding.source), _COUNT.fullmatch(finding.target)
    counts = here is not None and there is not None and finding.source.endswith(" points")
    return messages.Finding(
        mark=finding.mark,
        experiment=finding.experiment,
        id=finding.run,
        what=finding.what,
        source=int(here[1].replace(",", "")) if counts and here else finding.source,
        target=int(there[1].replace(",", "")) if counts and there else finding.target,
    )


def made(
    out: Say, err: Say, *, terminal: bool, json: bool, moving: bool, verbose: int = 0, quiet: bool = False
) -> Progress:
    """What shows progress: `terminal` says whether stderr is one, `moving` whether progress is wanted at all."""
    if json:
        return Json(out, seconds=1 if moving else 0)
    if terminal and moving:
        return Bars(out, err, verbose=verbose, quiet=quiet)
    return Plain(out, err, verbose=verbose, quiet=quiet, seconds=30 if moving else 0)
