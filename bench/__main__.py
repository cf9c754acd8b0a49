"""Every measurement, one after the other, and the report of them all.

    python -m bench [--quick] [--data FOLDER] [--int8 RELEASE_DIR] [--peers NAMES] [RELEASE_DIR]

Each runs in a process of its own, so that none warms up the next. One that fails is missing from the report; the others go on.
Exit code 0, 1 where a measurement failed, 2 without a release, 130 interrupted.
"""

import shutil
import sys
import time
from pathlib import Path

from bench import interruption, report
from bench.parts import PARTS, arguments
from bench.quantised import INT8_DIR
from bench.serving import peer_names
from infra.release import ReleaseError, read_release
from model_code.environment import RELEASE_FILE


def main() -> int:
    parser = arguments("bench", __doc__ or "")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FOLDER",
        help="the four MNIST files; without them no training is measured, and no int8 but that of --int8",
    )
    parser.add_argument(
        "--int8",
        type=Path,
        metavar="RELEASE_DIR",
        help="a quantised release, measured beside the first; default with --data: one made of it",
    )
    parser.add_argument("--peers", type=peer_names, metavar="NAMES", help='only these servers: "fastapi flask"')
    given = parser.parse_args()
    try:
        read_release(given.release_dir / RELEASE_FILE)
    except ReleaseError as error:
        print(f"{error}\n`make demo` makes a release; another one: python -m bench RELEASE_DIR", file=sys.stderr)
        return 2
    common = ["--quick"] if given.quick else []
    measurements = [
        (name, [*common, str(given.release_dir.absolute())])
        for name in ("core", "cold_start", "synth", "scale", "gpu", "serving")
    ]
    options = dict(measurements)
    failed = []
    int8 = given.int8
    if given.data and not int8:
        made = interruption.run([sys.executable, "-m", "bench.quantised", str(given.data), str(given.release_dir)])
        failed += ["quantised"] if made != 0 else []
        int8 = INT8_DIR if made == 0 else None
    if int8:
        options["serving"].extend(["--int8", str(int8.absolute())])
    if given.peers:
        options["serving"].extend(["--peers", " ".join(given.peers)])
    if given.data:
        options["gpu"].extend(["--data", str(given.data.absolute())])
        measurements.append(("training", [str(given.data.absolute())]))
    if PARTS.exists():
        shutil.rmtree(PARTS)
    started = time.monotonic()
    for number, (name, flags) in enumerate(measurements, 1):
        print(
            f"\n=== {number} of {len(measurements)}: {name} ({time.monotonic() - started:.0f} s so far)\n", flush=True
        )
        if interruption.run([sys.executable, "-m", f"bench.{name}", *flags]) != 0:
            failed.append(name)
    print(f"\n=== report ({time.monotonic() - started:.0f} s)\n", flush=True)
    report.main()
    if failed:
        print(f"failed, see above: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    interruption.raise_once()
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(interruption.EXIT_CODE)
