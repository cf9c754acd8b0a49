"""The serving process: reads the environment, and keeps one worker for each CPU alive, each with its own copy of the model.

Exit codes: 0 after SIGTERM or SIGINT, 1 when the model cannot be served or the workers crash in a row, 2 when a setting is
wrong. SageMaker stops a container with SIGTERM and kills it 30 seconds later (Developer Guide, "Use Your Own Inference Code
with Hosting Services"): the workers stop listening at once and answer what they have accepted.
"""

import gc
import json
import logging
import logging.config
import os
import resource
import socket
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from model_code import environment
from model_code.container.balance import Balance
from model_code.container.connection import Connections
from model_code.container.http_server import serve
from model_code.container.loaded_models import LoadedModels
from model_code.container.multi_model import MultiModelApplication
from model_code.container.readiness import Readiness
from model_code.container.server import Application
from model_code.container.settings import ServeSettings, SettingError
from model_code.container.supervisor import CANNOT_WORK, Supervisor
from model_code.container.worker import Worker
from model_code.inference.contract import ModelDescription
from model_code.inference.errors import ModelInvalid, ResourcesExhausted
from model_code.inference.predictor import Predictor, load_description

# Connections one worker takes at a time, idle ones included.
MAX_CONNECTIONS = 2048
# A connection without a complete request line and headers is closed, and what is open at SIGTERM is ended, after this time. What
# does not end then is killed, a little before SageMaker would do it.
HEADER_SECONDS = 20
DRAIN_SECONDS = 25
KILL_SECONDS = 28
# How long a client may leave what it is sent unread.
UNREAD_SECONDS = 20
_RECEIVE_BYTES = 256 * 1024
# Connections that wait to be accepted; the system may allow fewer (net.core.somaxconn).
_BACKLOG = 2048

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
    "root": {"handlers": ["stderr"], "level": "INFO"},
}


def main() -> int:
    """Serve until a signal ends it; returns the exit code."""
    logging.config.dictConfig(LOGGING)
    try:
        settings = ServeSettings.from_environment()
        listener = listen(settings.address, settings.port)
    except SettingError as error:
        _log.critical("%s", error)
        return 2
    _allow_files()
    # What every worker inherits would be copied at its first collection.
    gc.collect()
    gc.freeze()
    workers = 1 if settings.multi_model else settings.workers
    readiness, balances = Readiness.of(workers), Balance.of(workers)
    _log.info("listening on %s:%d with %d workers", settings.address, settings.port, workers)
    with tempfile.TemporaryDirectory(prefix="ferry-serve-") as folder:
        work = partial(_work, settings, listener, Path(folder), readiness, balances)
        return Supervisor(workers, work, listener, drain_seconds=KILL_SECONDS).run()


def application(settings: ServeSettings, folder: Path, readiness: Readiness) -> Worker:
    """What each worker runs; `folder` outlives the workers."""
    if settings.multi_model:
        models = environment.MlPaths.from_environment().models
        loaded = LoadedModels(models, settings.model_bytes, folder / "models.json")
        return MultiModelApplication(loaded, threads=settings.workers, limits=settings.limits, readiness=readiness)
    return Application(
        _describe if settings.stage == "preprocess" else _predictor,
        workers=settings.workers,
        dynamic_batch=settings.dynamic_batch,
        limits=settings.limits,
        readiness=readiness,
    )


def _work(
    settings: ServeSettings,
    listener: socket.socket,
    folder: Path,
    readiness: Sequence[Readiness],
    balances: Sequence[Balance],
    number: int,
) -> int:
    """One worker's life; returns the exit code of its process."""
    mine = readiness[number]
    worker = application(settings, folder, mine)
    connections = Connections(MAX_CONNECTIONS, HEADER_SECONDS, balances[number])
    try:
        serve(worker, listener, connections, drain_seconds=DRAIN_SECONDS)
    except (ModelInvalid, ResourcesExhausted) as error:
        _log.critical("the model cannot be served: %s: %s", error.code, error)
        return CANNOT_WORK if not mine.told else 1
    return 0


def _allow_files() -> None:
    """A connection is a file; a shell's usual limit of 1,024 would come before MAX_CONNECTIONS does."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _predictor() -> Predictor:
    """The model below /opt/ml/model, which has to be the release that the deployment pins. Raises ModelInvalid."""
    release_id, model_json_sha256 = _pins()
    directory = environment.MlPaths.from_environment().model
    return Predictor.load(directory, release_id=release_id, model_json_sha256=model_json_sha256, timed=True)


def _describe() -> ModelDescription:
    """The same model's description, and nothing else of it."""
    release_id, model_json_sha256 = _pins()
    directory = environment.MlPaths.from_environment().model
    return load_description(directory, release_id=release_id, model_json_sha256=model_json_sha256)


def _pins() -> tuple[str | None, str | None]:
    return os.environ.get(environment.RELEASE_ID), os.environ.get(environment.MODEL_JSON_SHA256)


def listen(address: str, port: int) -> socket.socket:
    """The socket that all workers accept connections on. Raises SettingError."""
    listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    # What the connections inherit: answers leave at once, a client that never reads its own does not keep it, and its connection,
    # for ever (TCP_USER_TIMEOUT in tcp(7)), and a body of that size arrives as one while its worker computes.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_SECONDS * 1000)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BYTES)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setblocking(False)
    try:
        listener.bind((address, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        raise SettingError(
            f"{environment.BIND_TO_PORT}: {address}:{port} cannot be bound ({error.strerror or error}); end what "
            f"listens there, set another port, or another {environment.BIND_ADDRESS}"
        ) from error
    return listener
