"""How many files of what size are moved."""

from __future__ import annotations

from dataclasses import dataclass, replace

MIB = 1 << 20
MANY = 100  # files: of so many some are left out of a smaller load, else all are made smaller
LEAST = 17 * MIB  # bytes of a file that still goes in parts


@dataclass(frozen=True)
class Load:
    """Files of one size."""

    files: int
    size: int

    def __str__(self) -> str:
        size = f"{self.size // MIB} MiB" if self.size >= MIB else f"{self.size // 1024} KiB"
        return f"{self.files:,} x {size}"

    def part(self, factor: float) -> Load:
        if self.files >= MANY:
            return replace(self, files=max(10, int(self.files * factor)))
        return replace(self, size=max(LEAST, int(self.size * factor)))

    @property
    def bytes(self) -> int:
        return self.files * self.size


SMALL, LARGE = Load(5_000, 16 * 1024), Load(4, 256 * MIB)
