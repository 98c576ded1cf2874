"""Which runs, and which parts of them, a person asked for. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache

from mlmigrate.model import Experiment, RunRef

PARTS = ("params", "metrics", "tags", "artifacts", "inputs", "models", "traces", "records")
# how the id of a ref of kind "records" begins -> the part that it belongs to; all others are "records"
PART_OF = {"@registry": "models", "@logged_models": "models", "@traces": "traces"}
BESIDE = ("models", "traces")  # parts that no run contains
_GLOB = re.compile(r"(?<![^/])\*\*/|\*\*|\*|\?|\[!?\]?[^\]/]*\]|.", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Selection:
    """Globs and bounds; an empty one selects everything.

    experiments  globs over an experiment's name or id
    runs         globs over a run's id or name
    since, until ms since the epoch, compared with a run's start; until is exclusive
    statuses     upper case
    parts        which of PARTS are carried
    deleted      whether deleted runs and experiments are carried
    max_artifact_size  bytes; larger artifacts are left behind, as losses
    include, exclude   globs over an artifact's path in its run, model or trace (see `meets`); what is in no
                       `include` (when there is any) or in some `exclude` is left behind, as a loss
    """

    experiments: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()
    since: int | None = None
    until: int | None = None
    statuses: tuple[str, ...] = ()
    parts: frozenset[str] = frozenset(PARTS)
    deleted: bool = True
    max_artifact_size: int | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def wants_experiment(self, experiment: Experiment) -> bool:
        """Whether this experiment is asked for."""
        if experiment.deleted and not self.deleted:
            return False
        return not self.experiments or _any(self.experiments, experiment.name, experiment.id)

    def wants(self, ref: RunRef) -> bool:
        """Whether this run is asked for, its experiment being asked for already."""
        if ref.kind == "records":
            part = PART_OF.get(ref.id.partition("/")[0], "records")
            return part in self.parts and not self._single and (bool(ref.experiment) or not self.experiments)
        if ref.deleted and not self.deleted:
            return False
        if self.statuses and ref.status not in self.statuses:
            return False
        if self.runs and not _any(self.runs, ref.id, ref.name):
            return False
        return self._within(ref.start)

    def refuses_path(self, path: str) -> str:
        """Why an artifact of this path is left behind; "" when it is not."""
        unwanted = next((glob for glob in self.exclude if meets(path, glob)), None)
        if unwanted is not None:
            return f"left out by --exclude {unwanted!r}"
        if self.include and not any(meets(path, glob) for glob in self.include):
            return "left out: no --include names it"
        return ""

    @property
    def _single(self) -> bool:
        """Whether single runs are asked for: then what belongs to no run stays behind."""
        return bool(self.runs or self.statuses or self.since is not None or self.until is not None)

    def _within(self, start: int | None) -> bool:
        if self.since is None and self.until is None:
            return True
        if start is None:
            return False
        return (self.since is None or start >= self.since) and (self.until is None or start < self.until)

    @property
    def recipe(self) -> str:
        """What of this selection changes the contents of a run that is carried; "" when all of it is."""
        left_out = sorted(set(PARTS) - self.parts - set(BESIDE))
        size = [] if self.max_artifact_size is None else [f"<={self.max_artifact_size}"]
        globs = [f"{name}={sorted(set(chosen))}" for name, chosen in self._globs.items() if chosen]
        return " ".join(left_out + size + globs)

    @property
    def _globs(self) -> dict[str, tuple[str, ...]]:
        return {"include": self.include, "exclude": self.exclude}


def meets(path: str, glob: str) -> bool:
    """Whether a glob names the whole of a path.

    `*` and `?` stand for what is within a part, `[abc]` and `[!abc]` for one letter, `**` for any number of parts:

        *.ckpt           files beside the run's other things, not deeper
        **/*.ckpt        at any depth
        checkpoints/**   everything below that folder; checkpoints/ says the same
    """
    return _pattern(glob).fullmatch(path) is not None


@cache
def _pattern(glob: str) -> re.Pattern[str]:
    if glob.endswith("/"):
        glob += "**"
    return re.compile("".join(_expression(found[0]) for found in _GLOB.finditer(glob)), re.DOTALL)


def _expression(token: str) -> str:
    """The regular expression of one piece of a glob."""
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    if token in known:
        return known[token]
    if token[0] == "[" and len(token) > 1:
        negated = token[1] == "!"
        letters = re.sub(r"[\\\[\]^&|~]", r"\\\g<0>", token[1 + negated : -1])
        try:
            return re.compile(f"(?!/)[{'^' * negated}{letters}]").pattern
        except re.error:  # "[z-a]" stands for itself
            pass
    return re.escape(token)


def _any(globs: tuple[str, ...], *names: str) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs for name in names)
