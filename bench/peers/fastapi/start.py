"""Becomes uvicorn."""

import os
import sys

arguments = ["--host", "127.0.0.1", "--port", os.environ["BENCH_PORT"], "--workers", os.environ["BENCH_PROCESSES"]]
os.execv(
    sys.executable,
    [sys.executable, "-m", "uvicorn", "service:app", *arguments, "--no-access-log", "--log-level", "warning"],
)
