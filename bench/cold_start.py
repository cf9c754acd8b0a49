"""Times the cold start of the Azure Function: fresh processes, from the import of function_app.py to its first answer.

    python -m bench.cold_start [--quick] [RELEASE_DIR]     the folder holds release.json and model.tar.gz

Ours is the package that `ferry package` builds, with the bytecode that it ships, and it checks its model before it answers.
The published handler is that of the multi-cloud example on the AWS blog in our words (published_function.py), beside the same
libraries: as published, without bytecode in a package that is mounted read-only, and with it.

The import of azure.functions is part of the time. Our model loads beside it; on Azure, where the worker has imported that
before, it loads while the host asks which functions there are and sends the first request.

All ways take turns, and a ratio is the median of the ratios in each turn. Files are in the page cache: what a first mount of
the package costs on Azure comes on top, and is why its size counts.
"""

import compileall
import json
import os
import py_compile
import shutil
import statistics
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.core import as_json
from bench.goals import goal_lines
from bench.parts import arguments, write_part
from ferry.errors import FerryError
from ferry.package import build_package
from infra.release import ReleaseError, read_release
from model_code import environment
from model_code.inference.contract import Signature, parse_model_json

ROUNDS = 40
QUICK_ROUNDS = 5

OURS = "ours, as shipped"
WITHOUT_BYTECODE = "published, no bytecode"
WITH_BYTECODE = "published, bytecode"

_PROBE = Path(__file__).with_name("first_answer.py")
_PUBLISHED = Path(__file__).with_name("published_function.py")


@dataclass(frozen=True)
class Way:
    """One unpacked package, and the seconds that its cold starts took: until the import ended, until the first answer."""

    name: str
    folder: Path
    imported: list[float] = field(default_factory=list)
    answered: list[float] = field(default_factory=list)

    def ratio(self, other: "Way") -> float:
        """How many times as long as the other it takes to its first answer."""
        return statistics.median(mine / theirs for mine, theirs in zip(self.answered, other.answered, strict=True))


def unpack_ways(package: Path, folder: Path) -> list[Way]:
    ours, with_bytecode, without = folder / "ours", folder / "published", folder / "published-sources"
    with zipfile.ZipFile(package) as archive:
        archive.extractall(ours)
    for published in (with_bytecode, without):
        published.mkdir()
        shutil.copy(_PUBLISHED, published / "function_app.py")
        shutil.copytree(ours / "release", published / "release")
        shutil.copytree(
            ours / ".python_packages", published / ".python_packages", ignore=shutil.ignore_patterns("__pycache__")
        )
    # As `python -m compileall` does it, without the options that `ferry package` has.
    compileall.compile_dir(with_bytecode, quiet=2, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    return [Way(OURS, ours), Way(WITHOUT_BYTECODE, without), Way(WITH_BYTECODE, with_bytecode)]


def start_cold(way: Way, release_id: str, body: bytes) -> Any:
    """What first_answer.py prints. Raises SystemExit where the package gives no answer."""
    finished = subprocess.run(
        [sys.executable, "-I", "-S", "-B", str(_PROBE), str(way.folder)],
        input=body,
        env={environment.RELEASE_ID: release_id},
        capture_output=True,
        check=False,
        cwd=way.folder,
    )
    if finished.returncode != 0:
        raise SystemExit(f"{way.name}: {finished.stderr.decode()}")
    return json.loads(finished.stdout)


def measure(ways: list[Way], release_id: str, signature: Signature, rounds: int) -> None:
    """Fill the times of `ways`; the first turn brings the files into the page cache and is not counted."""
    body = as_json("data", signature.golden.inputs[:1])
    expected = [signature.labels[index] for index in signature.golden.outputs[:1].argmax(axis=1).tolist()]
    for number in range(rounds + 1):
        for way in ways:
            seen = start_cold(way, release_id, body)
            if seen["status"] != 200 or seen["answer"] != {signature.response_key: expected}:
                raise SystemExit(f"{way.name}: {seen['status']} {seen['answer']}; expected labels: {expected}")
            if number > 0:
                way.imported.append(seen["imported"])
                way.answered.append(seen["answered"])
        if number % 5 == 0:
            print(f"{number} of {rounds} rounds", flush=True)


def summarise(ways: list[Way], package: Path) -> dict[str, Any]:
    """The cold start's share of the report: ratios, and median milliseconds to the first answer."""
    ours, without, with_bytecode = ways
    return {
        "function_cold_start": {
            "ours_over_published": ours.ratio(without),
            "ours_over_published_with_bytecode": ours.ratio(with_bytecode),
            "milliseconds": {way.name: statistics.median(way.answered) * 1000 for way in ways},
        },
        "package": {"mebibytes": package.stat().st_size / 2**20},
    }


def table(ways: list[Way]) -> Iterator[str]:
    yield f"\n{'cold start':<28}{'imported':>12}{'answered':>12}{'best':>12}"
    for way in ways:
        times = (statistics.median(way.imported), statistics.median(way.answered), min(way.answered))
        yield f"{way.name:<28}" + "".join(f"{seconds * 1000:9.0f} ms" for seconds in times)


def main() -> None:
    given = arguments("bench.cold_start", __doc__ or "").parse_args()
    release_dir = given.release_dir
    python_version = f"{sys.version_info.major}.{sys.version_info.minor}"
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "package.zip"
        try:
            release_id = read_release(release_dir / environment.RELEASE_FILE).release_id
            build_package(release_dir, package, python_version=python_version)
        except (ReleaseError, FerryError) as error:
            raise SystemExit(str(error)) from error
        ways = unpack_ways(package, Path(folder))
        description = parse_model_json((ways[0].folder / "release" / environment.SIGNATURE_FILE).read_bytes())
        print(f"{release_id}: package for Python {python_version}", flush=True)
        measure(ways, release_id, description.signature, QUICK_ROUNDS if given.quick else ROUNDS)
        measured = summarise(ways, package)
    write_part("cold_start", measured, quick=given.quick)
    for line in (*table(ways), "", *goal_lines(measured)):
        print(line)
    print(f"\nload of this machine when it ended: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
