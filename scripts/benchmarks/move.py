"""Moves a folder or a prefix as `mlmigrate relocate` moves bytes: python -m benchmarks.move FROM TO [MIB]

The environment leads to the store; MIB is how large parts are.
"""

from __future__ import annotations

import os
import sys

from mlmigrate.storage.moving import Failed, Mover, Task
from mlmigrate.storage.objects import open_objects


def main(source: str, target: str, part: str = "0") -> int:
    here, there = open_objects(source, os.environ), open_objects(target, os.environ)
    tasks = (Task(here, one.key, one.size, one.version, one.key) for one in here.list())
    failed = [one for one in Mover(there, part_size=int(part) << 20).move(tasks) if isinstance(one, Failed)]
    for one in failed:
        print(one.task.key, one.error)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
