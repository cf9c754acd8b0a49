"""Times `cdk synth` of every stack of ours against that of an app with one bucket, in paired runs.

    python -m bench.synth [--quick] [RELEASE_DIR]     the folder holds release.json

Both run through the same `cdk` command, with the same Python and into an empty folder. The first pair brings the files into the
page cache and is not counted.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.goals import goal_lines
from bench.parts import arguments, write_part
from infra.settings import ROOT

ROUNDS = 7
QUICK_ROUNDS = 2
# The one that `make demo` makes its release for.
ENVIRONMENT = "local"

_MINIMAL = Path(__file__).with_name("minimal_app.py")


def synthesize(app: Sequence[str], context: Sequence[str], folder: Path) -> float:
    """Seconds of one `cdk synth` into `folder`. Raises SystemExit where it fails."""
    if folder.exists():
        shutil.rmtree(folder)
    program = shutil.which("cdk")
    if not program:
        raise SystemExit("cdk is not on the PATH; run `make setup`, or `make bench`, which does")
    command = [program, "synth", "--quiet", "--output", str(folder), "--app", " ".join(app), *context]
    variables = {**os.environ, "JSII_RUNTIME_PACKAGE_CACHE_ROOT": str(ROOT / "build" / "jsii")}
    variables["CDK_DISABLE_CLI_TELEMETRY"] = "true"
    started = time.perf_counter()
    finished = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if finished.returncode != 0:
        raise SystemExit(f"{' '.join(command)}: exit code {finished.returncode}\n{finished.stderr[-2000:]}")
    return seconds


def measure(release: Path, rounds: int) -> dict[str, Any]:
    """The synth's share of the report: the median of the ratios of each pair, and the seconds of both."""
    python = sys.executable
    ours: list[float] = []
    minimal: list[float] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "cdk.out"
        for number in range(rounds + 1):
            context = ["-c", f"env={ENVIRONMENT}", "-c", f"release={release}"]
            pair = (synthesize([python, "app.py", "aws"], context, folder), folder_stacks(folder))
            bucket = synthesize([python, str(_MINIMAL)], [], folder)
            if number > 0:
                ours.append(pair[0])
                minimal.append(bucket)
            print(
                f"{number} of {rounds} rounds: {pair[1]} stacks {pair[0]:.1f} s, one bucket {bucket:.1f} s", flush=True
            )
    return {
        "synth": {
            "ours_over_minimal": statistics.median(mine / theirs for mine, theirs in zip(ours, minimal, strict=True)),
            "seconds": {"ours": statistics.median(ours), "minimal": statistics.median(minimal)},
        }
    }


def folder_stacks(folder: Path) -> int:
    """How many stacks a synth has left."""
    artifacts = json.loads((folder / "manifest.json").read_text())["artifacts"].values()
    return sum(artifact["type"] == "aws:cloudformation:stack" for artifact in artifacts)


def main() -> None:
    given = arguments("bench.synth", __doc__ or "").parse_args()
    measured = measure(given.release_dir / "release.json", QUICK_ROUNDS if given.quick else ROUNDS)
    write_part("synth", measured, quick=given.quick)
    for line in ("", *goal_lines(measured)):
        print(line)


if __name__ == "__main__":
    main()
