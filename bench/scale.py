"""How cost grows: with the images in a request, with cores, with models in one container.

    python -m bench.scale [--quick] [RELEASE_DIR]     the folder holds release.json and model.tar.gz

Rounds are interleaved, every other one backwards where several things take turns; every number is the median of its rounds.
Servers are the container's own process on loopback, as in bench.serving, and each is asked for ONNX Runtime's labels first.
"""

import dataclasses
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench import interruption, scale_batch, scale_cores, scale_models
from bench.core import unpack
from bench.load import find_generator
from bench.parts import arguments, write_part
from bench.payloads import WrongAnswer
from bench.scale_setup import CORES, FULL, QUICK, Setup
from ferry.archive import ArchiveError
from infra.release import ReleaseError, read_release
from model_code.inference.errors import ModelInvalid


def measure(setup: Setup) -> dict[str, Any]:
    """The report's share. Raises WrongAnswer where a server gives one."""
    return {
        "scale": {
            "batch": scale_batch.measure(setup),
            "cores": scale_cores.measure(setup),
            "processes": scale_cores.measure_processes(setup),
            **scale_models.measure(setup),
            "method": {
                "load_generator": find_generator(setup.cores).version,
                "server_cores": setup.cores[:CORES],
                "batch_connections": 2 * len(setup.cores[:CORES]),
                "connections_a_core": scale_cores.CONNECTIONS_A_CORE,
                "models_connections": scale_models.CONNECTIONS,
                **dataclasses.asdict(setup.plan),
            },
        }
    }


def main() -> None:
    given = arguments("bench.scale", __doc__ or "").parse_args()
    with tempfile.TemporaryDirectory(prefix="ferry-bench-") as name:
        folder = Path(name)
        (folder / "model").mkdir()
        try:
            predictor = unpack(given.release_dir, folder / "model")
            release = read_release(given.release_dir / "release.json")
            cores = sorted(os.sched_getaffinity(0))
            measured = measure(Setup(QUICK if given.quick else FULL, release, predictor, folder, cores))
        except (ReleaseError, ArchiveError, ModelInvalid, WrongAnswer, OSError) as error:
            raise SystemExit(str(error)) from error
    write_part("scale", measured, quick=given.quick)
    print(f"\nload of this machine when it ended: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    interruption.raise_once()
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(interruption.EXIT_CODE)
