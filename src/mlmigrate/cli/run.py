"""Around every command: signals become Stopped, errors become exit codes, lines are written safely."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import time
import traceback
from types import FrameType
from typing import NoReturn

import click

from mlmigrate.address import hide_secrets
from mlmigrate.errors import MigrateError, Stopped, UsageError

BUG = 1
IMPATIENT = 1.0  # seconds after which a second signal is meant, not an echo of the first
_first_signal = 0.0


def run(command: click.Command) -> NoReturn:
    """Runs the command line and ends the process with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    code = _code(command)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _forget_stdout()
        code = code or Stopped.exit_code
    atexit.register(_leave, code)
    sys.exit(code)


def _leave(code: int) -> None:
    """The end, with nothing taken apart that has no more to say.

    Threads of Arrow's may be ending themselves now. Where its C++ destructors meet one, they abort the process, though
    all is done and written: one command of a hundred on a busy machine ("terminate called without an active
    exception").
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _code(command: click.Command) -> int:
    """The exit code of the command; errors are told on stderr."""
    try:
        return int(command.main(standalone_mode=False) or 0)
    except click.ClickException as error:
        return _tell(UsageError(*_of_click(error)))
    except MigrateError as error:
        return _tell(error)
    except (Stopped, KeyboardInterrupt, click.Abort):
        return _tell(MigrateError("stopped.", "Run the same command again to go on."), Stopped.exit_code)
    except Exception as error:  # noqa: BLE001  whatever is left is a bug: shown whole, and counted as one
        for line in hide_secrets("".join(traceback.format_exception(error))).splitlines():
            complain(line)
        return _tell(MigrateError(f"unexpected error: {type(error).__name__}: {error}"), BUG)


def _of_click(error: click.ClickException) -> tuple[str, str]:
    ctx = getattr(error, "ctx", None)
    return error.format_message(), f"{ctx.command_path} --help says what there is." if ctx else ""


def _tell(error: MigrateError, code: int | None = None) -> int:
    """What happened, to what, and what now; with --json one object. Gives the exit code."""
    exit_code = error.exit_code if code is None else code
    message, hint = hide_secrets(error.message), hide_secrets(error.hint)
    if "--json" in sys.argv or os.environ.get("MLMIGRATE_JSON", "").lower() in ("1", "true", "yes", "on"):
        from mlmigrate import messages

        _write(sys.stderr.fileno(), messages.line(messages.ExitError(code=exit_code, message=message, hint=hint)))
        return exit_code
    first, *more = message.splitlines() or [""]
    complain(f"mlmigrate: {first}")
    for line in (*more, *hint.splitlines()):
        complain(f"  {line.strip()}")
    return exit_code


def say(line: str) -> None:
    """One line on stdout, with nothing in it that could command a terminal."""
    from mlmigrate.report import escape

    say_raw(escape(line))


def say_raw(line: str) -> None:
    """One line on stdout as it is: for JSON. A reader that has gone stops the command."""
    try:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        _forget_stdout()
        raise Stopped from None


def complain(line: str) -> None:
    """One line on stderr, with nothing in it that could command a terminal."""
    from mlmigrate.report import escape

    with contextlib.suppress(BrokenPipeError):
        sys.stderr.write(escape(line) + "\n")
        sys.stderr.flush()


def _write(descriptor: int, line: str) -> None:
    with contextlib.suppress(OSError):
        os.write(descriptor, (line + "\n").encode())


def _forget_stdout() -> None:
    """Nobody reads any more; what is still buffered goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  signal's signature
    """Ctrl-C or SIGTERM. A second one ends the process at once: what is not committed does not exist."""
    global _first_signal  # noqa: PLW0603  a process has one
    now = time.monotonic()
    if not _first_signal:
        _first_signal = now
        raise Stopped
    if now - _first_signal > IMPATIENT:
        _write(2, "mlmigrate: stopped at once. Run the same command again to go on.")
        os._exit(Stopped.exit_code)
