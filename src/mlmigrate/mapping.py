"""Rename, drop, redact: what a person wants to be otherwise on the other side. Pure, but for `load`.

    [experiments]  "research/*" = "research-{1}"    a name, or false: not carried
    [keys]         "sys/**" = false                 of metrics and params alike
    [tag_keys]     "team.*" = "{1}"                 of tags, of runs and of experiments
    [users]        "*@acme.io" = "{1}"
    [tags]         origin = "old server"            added to every run
    [redact.names]   '(?i)password' = "[redacted]"  the whole value of what has such a name; false: not carried
    [redact.values]  'AKIA[A-Z]+'   = "[redacted]"   what is found in any text of a run
    [wandb]        params = "text"                  a choice that one tracker offers, which its adapter knows

In names `*` is some text without "/", `**` is some text, and {n} on the right is the text of the n-th of them ({0}: the
whole name).  In [redact] they are regular expressions and their groups.  The first rule that meets a name decides:
plain names come before patterns, and rules of later files before those of earlier ones.

Files stay as they are, but for those that we made of a run's values (wandb/run.json, ...): what is left out or redacted
of params, metrics, tags and users is so there, too.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
import tempfile
import tomllib
from collections import abc
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import BinaryIO, cast

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from mlmigrate.adapters.wandb import mapped
from mlmigrate.errors import UsageError
from mlmigrate.globs import glob
from mlmigrate.model import OURS, Artifact, DatasetInput, Experiment, Loss, Record, Run, Value

GLOBS = ("experiments", "keys", "tag_keys", "users")
EXPRESSIONS = ("redact.names", "redact.values")
SECTIONS = (*GLOBS, "tags", *EXPRESSIONS)
CHOICES = ("wandb",)  # sections of what a person may choose for one tracker
USER_TAG = "mlflow.user"  # MLflow keeps the user twice

_GROUP = re.compile(r"\{(\d+)\}")
_IN_MEMORY = 1 << 20  # bytes of a redacted file
_DIGITS = 4000
_PRESET = re.compile(r"[\w-]+")
_WANTED = {
    **dict.fromkeys(GLOBS, "a name or false"),
    "tags": "a text",
    "redact.names": "a text or false",
    "redact.values": "a text",
}
_HELP = "The preset mlflow-to-mlflow.toml shows every kind of rule."
_LEFT_OUT = "left out by the mapping"
_REDACTED = "redacted by the mapping"
_PARTS_LEFT_OUT = "without what the mapping leaves out"
_IN_FILES = ("keys", "tag_keys", "users", *EXPRESSIONS)  # what has a say in files made of values


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of a mapping file. `to` None: not carried."""

    section: str
    name: str
    to: str | None
    pattern: re.Pattern[str]

    @property
    def label(self) -> str:
        """How the rule is called in plans and errors."""
        return f'[{self.section}] "{self.name}"'

    @property
    def hides(self) -> bool:
        """Whether something is not to be told any more, or not whose it was."""
        return self.section in (*EXPRESSIONS, "users") or (self.section in ("keys", "tag_keys") and self.to is None)

    def meets(self, name: str) -> bool:
        """Whether the rule has something to say about this name (or, in [redact.values], this text)."""
        return self._match(name) is not None

    def gives(self, name: str) -> str | None:
        """What becomes of a name that the rule meets."""
        found = self._match(name)
        return name if found is None else self._filled(found)

    def scrubbed(self, text: str) -> str:
        """`text` with all that the expression finds replaced."""
        return self.pattern.sub(lambda found: self._filled(found) or "", text)

    def _match(self, name: str) -> re.Match[str] | None:
        return self.pattern.search(name) if self.section in EXPRESSIONS else self.pattern.fullmatch(name)

    def _filled(self, found: re.Match[str]) -> str | None:
        if self.to is None:
            return None
        return _GROUP.sub(lambda group: found[int(group[1])] or "", self.to)


@dataclass(frozen=True, slots=True)
class Mapping:
    """Rules, in the order in which they are asked; an empty one changes nothing.

    choices  ("wandb.params", "text"): for the adapters, which know what they mean
    """

    ordered: tuple[Rule, ...] = ()
    choices: tuple[tuple[str, str | bool], ...] = ()

    @property
    def empty(self) -> bool:
        """Whether nothing is changed."""
        return not self.ordered

    @property
    def recipe(self) -> str:
        """A short name of all rules and choices together, the same for the same ones; "" when there are none."""
        if self.empty and not self.choices:
            return ""
        said = repr([(rule.section, rule.name, rule.to) for rule in self.ordered])
        said += repr(sorted(self.choices)) if self.choices else ""
        return hashlib.blake2b(said.encode(), digest_size=8).hexdigest()

    def experiment(self, experiment: Experiment) -> Experiment | None:
        """The experiment as it shall be; None when it and its runs are not carried."""
        name = self._renamed("experiments", experiment.name)
        if name is None:
            return None
        tags, _ = self._tags(experiment.tags, "", experiment.id)
        return replace(experiment, name=name, tags=tags, artifact_root=self._scrubbed(experiment.artifact_root))

    def experiment_losses(self, experiment: Experiment) -> list[Loss]:
        """What the mapping takes from an experiment, or that it is not carried at all."""
        if self._renamed("experiments", experiment.name) is None:
            return [Loss("", f"experiment {experiment.name!r}", _LEFT_OUT, experiment.id)]
        return self._tags(experiment.tags, "", experiment.id)[1]

    def run(self, run: Run) -> tuple[Run, list[Loss]]:
        """The run as it shall be, and what is lost by that."""
        if self.empty:
            return run, []
        params, losses = self._params(run)
        tags, tag_losses = self._tags(run.tags, run.id, run.experiment)
        user, user_losses = self._user(run)
        records, record_losses = self._records(run.records)
        mapped = replace(run, params=params, tags=self._with_user(tags), user=user, records=records)
        mapped, text_losses = self._texts(mapped)
        mapped, added_losses = self._added(mapped)
        return mapped, [*losses, *tag_losses, *user_losses, *record_losses, *text_losses, *added_losses]

    def record(self, record: Record) -> tuple[Record, list[Loss]]:
        """A record with its texts redacted."""
        if not any(rule.section in EXPRESSIONS for rule in self.ordered):
            return record, []
        body = self._body(record.body)
        if body == record.body:
            return record, []
        return replace(record, body=body), [Loss(record.owner, f"{record.kind} {record.id!r}", _REDACTED)]

    def refuses_path(self, path: str) -> str:
        """Why a file of this path is left behind; "" when it is not."""
        if path not in mapped.REPEATED or not any(rule.hides for rule in self.ordered):
            return ""
        return f"left out: it repeats what the mapping hides; what it says otherwise stands in {mapped.PATHS[0]}"

    def artifact(self, artifact: Artifact) -> tuple[Artifact, list[Loss]]:
        """A file that was made of a run's values, without what is not carried, and redacted; any other file stays."""
        ours = artifact.path in mapped.PATHS  # also where another tracker has kept it
        if not (artifact.values or ours) or not any(rule.section in _IN_FILES for rule in self.ordered):
            return artifact, []
        if not artifact.values:  # it is first read where what cannot be read is told
            return replace(artifact, open=lambda: self._opened(artifact), size=None, sha256=None, spot=None), []
        found, changed = self._copied(artifact)
        if not changed:
            return artifact, []
        size = found.tell()

        @contextmanager
        def opened() -> Iterator[BinaryIO]:
            found.seek(0)
            yield found

        made = replace(artifact, open=opened, size=size, sha256=None, spot=None)
        hides = any(rule.section in EXPRESSIONS for rule in self.ordered)
        return made, [Loss(artifact.owner, f"artifact {artifact.path!r}", _REDACTED if hides else _PARTS_LEFT_OUT)]

    @contextmanager
    def _opened(self, artifact: Artifact) -> Iterator[BinaryIO]:
        found, _ = self._copied(artifact)
        with found:
            found.seek(0)
            yield found

    def _copied(self, artifact: Artifact) -> tuple[BinaryIO, bool]:
        """The file as the rules want it, and whether that is otherwise."""
        by_line, changed = artifact.path.endswith("l"), False
        found = cast("BinaryIO", tempfile.SpooledTemporaryFile(_IN_MEMORY))  # noqa: SIM115  the artifact is opened from it
        with artifact.open() as stream:
            for text in stream if by_line else (stream.read(),):
                given = text.decode("utf-8", "surrogatepass").removesuffix("\n" if by_line else "")
                body = self._told(artifact.path, given)
                changed |= body != given
                if body is not None:
                    found.write((body + "\n" * by_line).encode("utf-8", "surrogatepass"))
        return found, changed

    def _told(self, path: str, text: str) -> str | None:
        """What a file made of values says (or one of its lines); None: nothing any more."""
        try:
            given = json.loads(text, parse_int=_whole)
            if path in mapped.PATHS:
                told = mapped.told(path, copy.deepcopy(given), self, dict(self.choices))
            else:
                told = self.tree("", given)
        except (ValueError, RecursionError):  # not quite JSON, or too deep: as one text
            return self._scrubbed(text)
        if told is None or told == given:
            return None if told is None and given is not None else text
        made = json.dumps(told, ensure_ascii=False, separators=(",", ":"))
        return made if made.isascii() else made.encode("utf-8", "backslashreplace").decode()

    def tag(self, name: str) -> str | None:
        """What a tag is called; None when it is not carried."""
        return self._renamed("tag_keys", name)

    def user(self, name: str) -> str | None:
        """What a user is called; None when that is not carried."""
        return self._renamed("users", name)

    def instead(self, name: str) -> str | None:
        """What stands in place of the value of a param or a tag of this name; None where no rule meets it."""
        rule = next((rule for rule in self._of("redact.names") if rule.meets(name)), None)
        return None if rule is None else rule.gives(name) or ""

    def key(self, name: str) -> str | None:
        """What a metric or param is called; None when it is not carried."""
        return self._renamed("keys", name)

    def points(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The points under their new keys, without those whose key is not carried."""
        if not self._of("keys"):
            return batch
        column = batch.column("key")
        old = column.dictionary.to_pylist()
        new = [self.key(name) for name in old]
        return batch if new == old else _with_keys(batch, new)

    def key_losses(self, run: str, keys: Iterable[str]) -> list[Loss]:
        """What the mapping does to the points of a run that has these keys."""
        now: dict[str, list[str]] = {}
        losses = []
        for name in sorted(set(keys)):
            to = self.key(name)
            if to is None:
                losses.append(Loss(run, f"metric {name!r}", _LEFT_OUT))
            else:
                now.setdefault(to, []).append(name)
        merged = [(to, names) for to, names in now.items() if len(names) > 1]
        return losses + [Loss(run, f"metrics {_listed(names)}", f"merged into {to!r}") for to, names in merged]

    def rules(self) -> tuple[str, ...]:
        """How each rule is called."""
        return tuple(rule.label for rule in self.ordered)

    def names(self, thing: Experiment | Run) -> Iterator[tuple[str, str]]:
        """All (section, name) that `counts` wants to know of an experiment or a run, but for the keys of its points."""
        if isinstance(thing, Experiment):
            yield "experiments", thing.name
        else:
            yield from (("keys", name) for name in thing.params)
            yield "users", thing.user
            yield "tags", thing.id
            yield from (("redact.names", name) for name in thing.params)
        yield from (("tag_keys", name) for name in thing.tags)
        yield from (("redact.names", name) for name in thing.tags)
        values = self._of("redact.values")
        yield from (("redact.values", text) for text in _texts_of(thing) if any(rule.meets(text) for rule in values))

    def counts(self, names: Iterable[tuple[str, str]]) -> dict[str, int]:
        """How many of the different names each rule decides about, by the rule's label; 0 for a rule that met none."""
        counted = dict.fromkeys(self.rules(), 0)
        sections = {section: self._of(section) for section in SECTIONS}
        for section, name in set(names):
            for rule in sections[section]:
                if section == "tags" or rule.meets(name):
                    counted[rule.label] += 1
                    if section in GLOBS or section == "redact.names":
                        break
        return counted

    def _of(self, section: str) -> tuple[Rule, ...]:
        return tuple(rule for rule in self.ordered if rule.section == section)

    def _renamed(self, section: str, name: str) -> str | None:
        rule = next((rule for rule in self._of(section) if rule.meets(name)), None)
        return name if rule is None else rule.gives(name)

    def _params(self, run: Run) -> tuple[dict[str, Value], list[Loss]]:
        return self._named(run.params, "param", "keys", run.id, run.experiment)

    def _tags(self, tags: abc.Mapping[str, str], run: str, experiment: str) -> tuple[dict[str, str], list[Loss]]:
        named, losses = self._named(tags, "tag", "tag_keys", run, experiment)
        return {name: str(value) for name, value in named.items()}, losses

    def _named(
        self, given: abc.Mapping[str, Value] | abc.Mapping[str, str], what: str, section: str, run: str, experiment: str
    ) -> tuple[dict[str, Value], list[Loss]]:
        """Params or tags under their new names and redacted; of two with one name the one that had it stays."""
        named: dict[str, Value] = {}
        losses = []
        for name in sorted(given, key=lambda name: (self._renamed(section, name) != name, name)):
            to, value = self._renamed(section, name), self._redacted(name, given[name])
            reason = _LEFT_OUT if to is None or value is _GONE else ""
            if not reason and to in named:
                reason = f"left out: the mapping calls it {to!r}, and there is one already"
            if not reason and to is not None:
                named[to] = value  # type: ignore[assignment]
                reason = "" if value == given[name] else _REDACTED
            if reason:
                losses.append(Loss(run, f"{what} {name!r}", reason, experiment))
        order = {self._renamed(section, name): place for place, name in reversed(list(enumerate(given)))}
        return dict(sorted(named.items(), key=lambda one: order[one[0]])), losses

    def _redacted(self, name: str, value: Value) -> Value | object:
        """The value, or what stands in its place; an empty one has nothing to hide."""
        if value in ("", None):
            return value
        rule = next((rule for rule in self._of("redact.names") if rule.meets(name)), None)
        if rule is not None:
            to = rule.gives(name)
            return _GONE if to is None else to
        if isinstance(value, frozenset):
            return frozenset(self._scrubbed(text) for text in value)
        return self._scrubbed(value) if isinstance(value, str) else value

    def _scrubbed(self, text: str) -> str:
        for rule in self._of("redact.values"):
            text = rule.scrubbed(text)
        return text

    def _user(self, run: Run) -> tuple[str, list[Loss]]:
        user = self._renamed("users", run.user) if run.user else ""
        if user is None:
            return "", [Loss(run.id, f"user {run.user!r}", _LEFT_OUT, run.experiment)]
        return user, []

    def _with_user(self, tags: dict[str, str]) -> dict[str, str]:
        if not tags.get(USER_TAG):
            return tags
        user = self._renamed("users", tags[USER_TAG])
        others = {name: value for name, value in tags.items() if name != USER_TAG}
        return others if user is None else {**tags, USER_TAG: user}

    def _records(self, records: Sequence[Record]) -> tuple[tuple[Record, ...], list[Loss]]:
        pairs = [self.record(record) for record in records]
        return tuple(record for record, _ in pairs), [loss for _, losses in pairs for loss in losses]

    def _body(self, body: str) -> str:
        try:
            tree = msgspec.json.decode(body)
            redacted = self.tree("", tree)
        except (msgspec.DecodeError, RecursionError):  # not quite JSON, or too deep: as one text
            return self._scrubbed(body)
        return body if redacted == tree else msgspec.json.encode(redacted).decode()

    def tree(self, name: str, tree: object) -> object:
        """Any JSON, redacted; `name` is what it is called."""
        if isinstance(tree, dict):
            pair = tree.get("key") if isinstance(tree.get("key"), str) else None  # {"key": name, "value": ...}
            return {part: self.tree(pair if pair and part == "value" else part, tree[part]) for part in tree}
        if isinstance(tree, list):
            return [self.tree(name, part) for part in tree]
        if tree is None or isinstance(tree, bool | int | float | str):
            redacted = self._redacted(name, tree)
            return "" if redacted is _GONE else redacted
        return tree

    def _texts(self, run: Run) -> tuple[Run, list[Loss]]:
        """What is neither param nor tag may hold a secret too: a user:password@ in a URI, in a source's name."""
        mapped = replace(
            run,
            name=self._scrubbed(run.name),
            artifact_uri=self._scrubbed(run.artifact_uri),
            system={name: self._scrubbed(text) for name, text in run.system.items()},
            inputs=tuple(self._input(given) for given in run.inputs),
        )
        parts = ("name", "artifact_uri", "system", "inputs")
        changed = [part for part in parts if getattr(run, part) != getattr(mapped, part)]
        return mapped, [Loss(run.id, part, _REDACTED, run.experiment) for part in changed]

    def _input(self, given: DatasetInput) -> DatasetInput:
        return replace(
            given,
            source=self._scrubbed(given.source),
            schema=None if given.schema is None else self._scrubbed(given.schema),
            profile=None if given.profile is None else self._scrubbed(given.profile),
            tags={name: self._scrubbed(text) for name, text in given.tags.items()},
        )

    def _added(self, run: Run) -> tuple[Run, list[Loss]]:
        added = {rule.name: rule.to or "" for rule in self._of("tags")}
        hidden = [name for name, value in added.items() if run.tags.get(name, value) != value]
        losses = [Loss(run.id, f"tag {name!r}", "overwritten by the mapping", run.experiment) for name in hidden]
        return replace(run, tags={**run.tags, **added}), losses


_GONE = object()


def load(paths: Sequence[Path]) -> Mapping:
    """The rules of all these files; later ones win. A bare name ("scrub-secrets") is a preset.

    Raises UsageError, with the file, the line and the rule.
    """
    ordered: dict[tuple[str, str], Rule] = {}
    choices: dict[str, str | bool] = {}
    for path in reversed(paths):
        file = _File.read(path)
        for rule in sorted(file.rules(), key=_patterned):
            ordered.setdefault((rule.section, rule.name), rule)
        choices = file.choices() | choices
    return Mapping(tuple(ordered.values()), tuple(choices.items()))


def presets() -> dict[str, Path]:
    """The mapping files that come with mlmigrate, by name."""
    packaged = Path(str(resources.files("mlmigrate"))) / "mappings"
    folder = packaged if packaged.is_dir() else Path(__file__).parents[2] / "mappings"
    return {file.stem: file for file in sorted(folder.glob("*.toml"))}


@dataclass(frozen=True, slots=True)
class _File:
    """A mapping file: what it says, and its text, to find the line of what is wrong."""

    path: Path
    text: str
    tables: dict[str, object]

    @classmethod
    def read(cls, path: Path) -> _File:
        place = _place(path)
        try:
            text = place.read_text("utf-8")
            return cls(place, text, tomllib.loads(text))
        except OSError as error:
            raise UsageError(f"{place}: the mapping file cannot be read: {error.strerror}.") from error
        except UnicodeDecodeError as error:
            raise UsageError(f"{place}: the mapping file is not UTF-8 text.") from error
        except tomllib.TOMLDecodeError as error:
            raise UsageError(f"{place}: the mapping file is not TOML: {error}.", "https://toml.io says how") from error

    def rules(self) -> list[Rule]:
        return [self._rule(section, name, to) for section, table in self._sections() for name, to in table.items()]

    def choices(self) -> dict[str, str | bool]:
        """What is chosen for single trackers."""
        found: dict[str, str | bool] = {}
        for section in CHOICES:
            table = self.tables.get(section, {})
            for name, value in table.items() if isinstance(table, dict) else ():
                if not isinstance(value, str | bool):
                    raise self._error(section, name, f"must be a text, true or false, not {_shown(value)}")
                found[f"{section}.{name}"] = value
        return found

    def _sections(self) -> Iterator[tuple[str, dict[str, object]]]:
        for section, table in self.tables.items():
            if not isinstance(table, dict):
                raise self._error("", section, "stands in no section")
            if section in CHOICES:
                continue
            if section != "redact":
                yield self._known(section, SECTIONS), table
                continue
            for part, rules in table.items():
                whole = self._known(f"redact.{part}", EXPRESSIONS)
                if not isinstance(rules, dict):
                    raise self._error("redact", part, "must be a section")
                yield whole, rules

    def _known(self, section: str, known: Sequence[str]) -> str:
        if section in known:
            return section
        close = get_close_matches(section, SECTIONS, 1) or SECTIONS
        raise UsageError(
            f"{self.path}, line {self._line(section, None)}: there is no section [{section}].",
            f"There {'is' if len(close) == 1 else 'are'} " + ", ".join(f"[{name}]" for name in close),
        )

    def _rule(self, section: str, name: str, to: object) -> Rule:
        wanted = _WANTED[section]
        if not (isinstance(to, str) and (to or section not in GLOBS)) and not (to is False and "false" in wanted):
            raise self._error(section, name, f"must be {wanted}, not {_shown(to)}")
        made = name if section == "tags" else str(to)
        if section in ("keys", "tag_keys", "tags") and made.startswith(OURS):
            raise self._error(section, name, f"makes a name that begins with {OURS!r}: that is mlmigrate's own")
        return Rule(section, name, to if isinstance(to, str) else None, self._pattern(section, name, to))

    def _pattern(self, section: str, name: str, to: object) -> re.Pattern[str]:
        if section == "tags":
            return re.compile(re.escape(name))
        try:
            pattern = re.compile(name) if section in EXPRESSIONS else glob(name)
        except re.error as error:
            raise self._error(section, name, f"is no expression: {error}") from error
        if section == "redact.values" and pattern.match("") is not None:
            raise self._error(section, name, "finds something in an empty text")
        asked = max((int(number) for number in _GROUP.findall(to)), default=0) if isinstance(to, str) else 0
        if asked > pattern.groups:
            kind = "groups" if section in EXPRESSIONS else "wildcards"
            raise self._error(section, name, f"has {pattern.groups} {kind}, so {{{asked}}} means nothing")
        return pattern

    def _error(self, section: str, name: str, says: str) -> UsageError:
        where = f'[{section}] "{name}"' if section else f'"{name}"'
        return UsageError(f"{self.path}, line {self._line(section, name)}: {where} {says}.", _HELP)

    def _line(self, section: str, name: str | None) -> int:
        """The line of a rule (of a section, name None). A line that is TOML by itself says what it names."""
        inside = ""
        for number, line in enumerate(self.text.splitlines(), 1):
            found = _one_line(line)
            if line.lstrip().startswith("["):
                inside = _header(found)
                if name is None and inside.startswith(section):
                    return number
            elif name is not None and inside == section and name in found:
                return number
        lines = enumerate(self.text.splitlines(), 1)
        return next((number for number, line in lines if (name or section) in line), 1)


def _one_line(line: str) -> dict[str, object]:
    try:
        return tomllib.loads(line)
    except tomllib.TOMLDecodeError:  # a part of something longer
        return {}


def _header(found: dict[str, object]) -> str:
    parts = []
    while found:
        name, inner = next(iter(found.items()))
        parts.append(name)
        found = inner if isinstance(inner, dict) else {}
    return ".".join(parts)


def _place(path: Path) -> Path:
    """The file itself, or the preset of that name."""
    name = str(path)
    if path.exists() or not _PRESET.fullmatch(name):
        return path
    known = presets()
    if name in known:
        return known[name]
    close = get_close_matches(name, known, 1) or sorted(known)
    raise UsageError(f"There is no mapping file and no preset called {name!r}.", f"Presets: {', '.join(close)}")


def _whole(digits: str) -> int | str:
    """An integer, exactly; one of so many digits that Python reads no such is their text."""
    return int(digits) if len(digits) < _DIGITS else digits


def _patterned(rule: Rule) -> bool:
    return rule.section in GLOBS and rule.pattern.groups > 0


def _with_keys(batch: pa.RecordBatch, new: Sequence[str | None]) -> pa.RecordBatch:
    """The batch with each name of its key dictionary replaced; rows whose name is None go."""
    at = batch.schema.get_field_index("key")
    column = batch.column(at)
    place = {name: number for number, name in enumerate(dict.fromkeys(name for name in new if name is not None))}
    moved = pa.array([None if name is None else place[name] for name in new], pa.int32())
    indices = moved.take(column.indices)
    keys = pa.DictionaryArray.from_arrays(indices, pa.array(list(place), pa.utf8()))
    arrays = [keys if number == at else array for number, array in enumerate(batch.columns)]
    mapped = pa.RecordBatch.from_arrays(arrays, schema=batch.schema)
    return mapped.filter(pc.is_valid(indices)) if None in new else mapped


def _texts_of(thing: Experiment | Run) -> Iterator[str]:
    yield from thing.tags.values()
    if isinstance(thing, Experiment):
        yield thing.artifact_root
        return
    yield from (value for value in thing.params.values() if isinstance(value, str))
    yield from (thing.name, thing.artifact_uri, *thing.system.values())
    for given in thing.inputs:
        yield from (given.source, given.schema or "", given.profile or "", *given.tags.values())


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)


def _shown(value: object) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)
