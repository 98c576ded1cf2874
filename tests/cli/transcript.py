"""Plays the transcripts of this folder.

    ```
    $ mlmigrate verify mlflow:./mlruns ./archive       a command, run by bash in a folder of its own
    All 12 runs are equal.                             its stdout
    2> Reading mlflow:./mlruns and ./archive           its stderr
    => 0                                               its exit code; left out when 0
    \\$ and so on                                       stdout that looks like one of these
    ```

`[...]` stands for any text in a line; on a line alone, for any lines.  In the folder stands the estate of
mlmigrate.demo as `mlruns/`.  To write down what really happens: python tests/cli/transcript.py FILE...
"""

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from mlmigrate import demo

ANY = "[...]"
MARKS = ("$ ", "2>", "=> ")
ESCAPED = tuple("\\" + mark for mark in MARKS)
TIMED = re.compile(r"\d+(\.\d)? s\b")


@dataclass
class Step:
    command: str
    out: list[str] = field(default_factory=list)
    err: list[str] = field(default_factory=list)
    code: int = 0

    def lines(self):
        yield f"$ {self.command}"
        yield from ("\\" + line if line.startswith(MARKS) else line for line in self.out)
        yield from (f"2> {line}".rstrip() for line in self.err)
        if self.code:
            yield f"=> {self.code}"


def steps(text):
    """The commands of a transcript with what is expected of them."""
    found = []
    for block in re.findall(r"^```\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append(Step(line[2:]))
            elif line.startswith("2>"):
                found[-1].err.append(line[3:])
            elif line.startswith("=> "):
                found[-1].code = int(line[3:])
            else:
                found[-1].out.append(line.removeprefix("\\") if line.startswith(ESCAPED) else line)
    return found


def play(step, folder):
    """What really happens."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MLMIGRATE_", "MLFLOW_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{own['PATH']}"
    env = own | {
        "PATH": path,
        "HOME": str(folder),
        "XDG_STATE_HOME": str(folder / "state"),
        "TZ": "UTC",
        "COLUMNS": "100",
    }
    done = subprocess.run(
        ["bash", "-c", step.command],
        cwd=folder,
        env=env,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )
    return Step(step.command, done.stdout.splitlines(), done.stderr.splitlines(), done.returncode)


def matches(expected, actual):
    """Whether the lines are those expected, `[...]` standing for anything."""
    pattern = "".join(
        r"(?:.*\n)*?" if line == ANY else ".*?".join(map(re.escape, line.split(ANY))) + r"\n" for line in expected
    )
    return re.fullmatch(pattern, "".join(line.rstrip() + "\n" for line in actual)) is not None


def as_expected(expected, actual):
    return expected.code == actual.code and matches(expected.out, actual.out) and matches(expected.err, actual.err)


def rewritten(text, folder):
    """The transcript as it really goes; what takes time becomes `[...]`."""
    demo.make(folder)

    def again(block):
        lines = []
        for step in steps(block[0]):
            actual = play(step, folder)
            lines += step.lines() if as_expected(step, actual) else actual.lines()
        return "```\n" + "".join(TIMED.sub(ANY, line.rstrip()) + "\n" for line in lines) + "```"

    return re.sub(r"^```\n(.*?)^```$", again, text, flags=re.MULTILINE | re.DOTALL)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as made:
            file = Path(name)
            file.write_text(rewritten(file.read_text(encoding="utf-8"), Path(made)), encoding="utf-8")
