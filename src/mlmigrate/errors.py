"""The errors a person can meet, each with the exit code it ends the command with.

An error says what happened, to what, and what to do next, in three lines at most.  What is not
one of these is a bug of ours and rises whole, with its traceback (exit code 1).
"""

from __future__ import annotations


class MigrateError(Exception):
    """The root of the tree: something a person can act on.

    `hint` is what to do next, printed on a line of its own.
    """

    exit_code = 3

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class UsageError(MigrateError):
    """The command line, a mapping file or an option is wrong."""

    exit_code = 2


class NotFound(MigrateError):
    """A place that was named does not exist, or is not what it was said to be."""

    exit_code = 10


class LedgerInUse(MigrateError):
    """Another process holds the ledger, or it belongs to another copy."""

    exit_code = 11


class Refused(MigrateError):
    """The credentials were refused."""

    exit_code = 12


class Unavailable(MigrateError):
    """The one error worth retrying. `after` is the wait the tracker asked for, in seconds."""

    exit_code = 5

    def __init__(self, message: str, hint: str = "", after: float | None = None) -> None:
        super().__init__(message, hint)
        self.after = after

    def __reduce__(self) -> tuple[type[Unavailable], tuple[str, str, float | None]]:
        return type(self), (self.message, self.hint, self.after)


class BadData(MigrateError):
    """What was read is not what it should be: torn, of another format, or hostile."""


class Damaged(BadData):
    """The bytes read are not the bytes written."""


class Conflict(MigrateError):
    """The target holds something else under the same id or name."""


class DiskFull(MigrateError):
    """No space is left where the target, the ledger or a temporary file lies."""


class Stopped(BaseException):
    """Ctrl-C or SIGTERM. Not an Exception: nothing may swallow it."""

    exit_code = 130
