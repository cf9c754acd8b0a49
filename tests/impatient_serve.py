"""The container's `serve` with a deadline that a test can wait for: `python -m tests.impatient_serve SECONDS`."""

import sys

from model_code.container import launch
from model_code.container.server import Application


def application() -> Application:
    """What each worker runs."""
    return Application(launch.load_predictor, seconds=float(sys.argv[1]))


if __name__ == "__main__":
    launch.application = application
    sys.exit(launch.main())
