"""The serving process: reads the environment, verifies the model once, and keeps one worker for each CPU alive.

Exit codes: 0 after SIGTERM or SIGINT, 1 when the model cannot be served or the workers crash in a row, 2 when a setting is
wrong. SageMaker stops a container with SIGTERM and kills it 30 seconds later (Developer Guide, "Use Your Own Inference Code
with Hosting Services"): the server stops listening at once and answers what it has accepted.
"""

import ctypes
import gc
import json
import logging
import logging.config
import os
import signal
import socket
import tempfile
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from granian import Granian
from granian.constants import HTTPModes, Interfaces, Loops
from granian.http import HTTP1Settings

from model_code import environment
from model_code.container import memory
from model_code.container.loaded_models import LoadedModels
from model_code.container.multi_model import MultiModelApplication
from model_code.container.server import Application
from model_code.container.settings import ServeSettings, SettingError
from model_code.container.worker import Worker
from model_code.inference.contract import ModelDescription
from model_code.inference.errors import ModelInvalid, ResourcesExhausted
from model_code.inference.predictor import Predictor, load_description

# Connections one worker takes at a time, idle ones included: past this, not even /ping is accepted.
MAX_CONNECTIONS = 2048
# A connection without a complete request line and headers is closed, and what is open at SIGTERM is killed, after this time.
HEADER_SECONDS = 20
DRAIN_SECONDS = 25
_PR_SET_PDEATHSIG = 1  # linux/prctl.h

_log = logging.getLogger(__name__)


class JsonLines(logging.Formatter):
    """One JSON object a line, as CloudWatch Logs Insights reads it."""

    def format(self, record: logging.LogRecord) -> str:
        event = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
        }
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        return json.dumps(event)


LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": JsonLines}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
    "loggers": {"_granian": {"handlers": ["stderr"], "propagate": False}},
    "root": {"handlers": ["stderr"], "level": "INFO"},
}


def main() -> int:
    """Serve until a signal ends it; returns the exit code."""
    logging.config.dictConfig(LOGGING)
    try:
        settings = ServeSettings.from_environment()
        _check_free(settings.address, settings.port)
        what = _check_model(settings)
    except SettingError as error:
        _log.critical("%s", error)
        return 2
    except (ModelInvalid, ResourcesExhausted) as error:
        _log.critical("the model cannot be served: %s: %s", error.code, error)
        return 1
    # What the check took would be kept, and what every worker inherits be copied at its first collection.
    gc.collect()
    gc.freeze()
    memory.give_back()
    processes = 1 if settings.multi_model else settings.workers
    _log.info("serving %s on %s:%d with %d workers", what, settings.address, settings.port, settings.workers)
    server = Granian(
        "modelferry",
        address=settings.address,
        port=settings.port,
        interface=Interfaces.ASGI,
        # Not whichever is installed: uvloop loses a SIGTERM that comes before its first iteration.
        loop=Loops.asyncio,
        workers=processes,
        http=HTTPModes.http1,
        http1_settings=HTTP1Settings(header_read_timeout=HEADER_SECONDS * 1000),
        websockets=False,
        backpressure=MAX_CONNECTIONS,
        respawn_failed_workers=True,
        workers_kill_timeout=DRAIN_SECONDS,
        log_dictconfig=LOGGING,
    )
    _prepare_new_workers()
    with tempfile.TemporaryDirectory(prefix="ferry-serve-") as folder:
        server.serve(target_loader=partial(application, settings, Path(folder)), wrap_loader=False)
    return 0


def application(settings: ServeSettings, folder: Path) -> Worker:
    """What each worker runs; `folder` outlives the workers."""
    if settings.multi_model:
        models = environment.MlPaths.from_environment().models
        loaded = LoadedModels(models, settings.model_bytes, folder / "models.json")
        return MultiModelApplication(loaded, threads=settings.workers, limits=settings.limits)
    load = _describe if settings.stage == "preprocess" else _predictor
    return Application(load, workers=settings.workers, dynamic_batch=settings.dynamic_batch, limits=settings.limits)


def _check_model(settings: ServeSettings) -> str:
    """What is going to be served, loaded once to see that it can be. Raises ModelInvalid or ResourcesExhausted."""
    if settings.multi_model:
        return "many models"
    if settings.stage == "preprocess":
        return f"the preprocessing of {_describe().release_id}"
    return _predictor().release_id


def _predictor() -> Predictor:
    """The model below /opt/ml/model, which has to be the release that the deployment pins. Raises ModelInvalid."""
    release_id, model_json_sha256 = _pins()
    directory = environment.MlPaths.from_environment().model
    return Predictor.load(directory, release_id=release_id, model_json_sha256=model_json_sha256)


def _describe() -> ModelDescription:
    """The same model's description, and nothing else of it."""
    release_id, model_json_sha256 = _pins()
    directory = environment.MlPaths.from_environment().model
    return load_description(directory, release_id=release_id, model_json_sha256=model_json_sha256)


def _pins() -> tuple[str | None, str | None]:
    return os.environ.get(environment.RELEASE_ID), os.environ.get(environment.MODEL_JSON_SHA256)


def _prepare_new_workers() -> None:
    """Two things that a worker needs before it has handlers of its own.

    It inherits a handler that is meant for its parent: until it has its own, SIGTERM would be lost on it, and the server would
    wait DRAIN_SECONDS for it. Held back while it is forked, the signal meets the default, which ends it.

    And it dies with its parent (PR_SET_PDEATHSIG in prctl(2)), as everything in a container dies with its first process:
    workers without one would keep the port and serve for ever. The parent's main thread forks them, and ends last.
    """
    sigterm, parent = {signal.SIGTERM}, os.getpid()
    prctl = ctypes.CDLL(None).prctl

    def begin() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before it could be watched
            os._exit(1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, sigterm)

    os.register_at_fork(
        before=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, sigterm),
        after_in_parent=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, sigterm),
        after_in_child=begin,
    )


def _check_free(address: str, port: int) -> None:
    """The workers share the port (SO_REUSEPORT) and would quietly share it with a stranger too."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            raise SettingError(
                f"{environment.BIND_TO_PORT}: {address}:{port} cannot be bound ({error.strerror or error}); end what "
                f"listens there, set another port, or another {environment.BIND_ADDRESS}"
            ) from error
