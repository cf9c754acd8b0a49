"""What each measurement leaves for the report: build/bench/parts/<name>.json, and the machine that it ran on."""

import argparse
import json
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from bench.environments import BUILD
from infra.settings import ROOT

PARTS = BUILD / "parts"
RELEASE_DIR = ROOT / "build" / "local" / "release"


def write_part(name: str, measured: Mapping[str, Any], *, quick: bool) -> None:
    """`measured` is the part's own share of the report."""
    PARTS.mkdir(parents=True, exist_ok=True)
    part = {"measured": measured, "quick": quick, "machine": machine()}
    (PARTS / f"{name}.json").write_text(json.dumps(part, indent=2) + "\n")


def machine() -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "python": platform.python_version(),
        "onnxruntime": ort.__version__,
        "numpy": np.__version__,
        "load_when_it_ended": round(os.getloadavg()[0], 1),
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def arguments(module: str, doc: str) -> argparse.ArgumentParser:
    """The command line that all measurements of a release share."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "release_dir",
        nargs="?",
        type=Path,
        default=RELEASE_DIR,
        metavar="RELEASE_DIR",
        help="the folder with release.json and model.tar.gz (default: build/local/release, which `make demo` makes)",
    )
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds: a try, not a measurement")
    return parser
