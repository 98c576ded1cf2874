"""What becomes of names that a target has already, from somebody else. Pure.

merge   ours join what is there: nothing that is there is changed, versions get the next free numbers
rename  ours get a name of their own: "fraud-2"
fail    nothing is written
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Literal

from mlmigrate.adapters.base import OnConflict
from mlmigrate.errors import Conflict
from mlmigrate.model import Loss

How = Literal["new", "ours", "merged", "renamed"]
SHOWN = 5  # names in an error message
THERE = "the target has one of this name already"


@dataclass(frozen=True, slots=True)
class Choice:
    """Under which name a thing goes into the target, and why."""

    name: str
    how: How


def settle(
    wanted: Sequence[tuple[str, str]], there: Mapping[str, str], policy: OnConflict, what: str
) -> dict[str, Choice]:
    """Origin -> choice, for things with (origin, name), where `there` maps names to origins ("" for not ours).

    `what` is the word for one of them in the message ("experiment"). Raises Conflict when the policy is to fail.
    """
    known = {origin: name for name, origin in there.items() if origin}
    taken = {*there, *(name for _, name in wanted)}
    choices: dict[str, Choice] = {}
    clashes: list[str] = []
    for origin, name in wanted:
        if origin in known:
            choices[origin] = Choice(known[origin], "ours")
        elif name not in there:
            choices[origin] = Choice(name, "new")
        elif policy == "rename":
            choices[origin] = Choice(_free(name, taken), "renamed")
            taken.add(choices[origin].name)
        else:
            choices[origin] = Choice(name, "merged")
            clashes.append(name)
    if clashes and policy == "fail":
        raise _refusal(clashes, what)
    return choices


def losses(wanted: Sequence[tuple[str, str]], choices: Mapping[str, Choice], what: str) -> list[Loss]:
    """The merged and the renamed, told."""
    told = []
    for origin, name in wanted:
        choice = choices[origin]
        if choice.how == "merged":
            told.append(Loss("", f"{what} {name!r}", f"{THERE}; ours is merged into it"))
        elif choice.name != name:
            told.append(Loss("", f"{what} {name!r}", f"{THERE}; ours is {choice.name!r}"))
    return told


def _free(name: str, taken: set[str]) -> str:
    return next(f"{name}-{n}" for n in count(2) if f"{name}-{n}" not in taken)


def _refusal(clashes: Sequence[str], what: str) -> Conflict:
    more = f" and {len(clashes) - SHOWN} more" if len(clashes) > SHOWN else ""
    shown = ", ".join(map(repr, clashes[:SHOWN])) + more
    return Conflict(
        f"The target has {len(clashes)} {what}s of the same name already: {shown}. Nothing was written.",
        "Merge into them with --on-conflict merge, or keep ours apart with --on-conflict rename.",
    )
