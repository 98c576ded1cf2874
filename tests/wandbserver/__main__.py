"""The process of the contract server: python -m wandbserver KEY LATENCY."""

from __future__ import annotations

import asyncio
import sys

from .app import serve

asyncio.run(serve(sys.argv[1], float(sys.argv[2])))
