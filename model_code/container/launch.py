"""The serving process: reads the environment, verifies the model once, and keeps one worker for each CPU alive.

Exit codes: 0 after SIGTERM or SIGINT, 1 when the model cannot be served or the workers crash in a row, 2 when a setting is
wrong. SageMaker stops a container with SIGTERM and kills it 30 seconds later (Developer Guide, "Use Your Own Inference Code
with Hosting Services"): the server stops listening at once and answers what it has accepted.
"""

import ipaddress
import json
import logging
import logging.config
import os
import socket
from datetime import UTC, datetime
from typing import Any

from granian import Granian
from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings

from model_code import environment
from model_code.container.server import Application
from model_code.inference.errors import ModelInvalid
from model_code.inference.predictor import Predictor

ALL_INTERFACES = "0.0.0.0"  # what SageMaker needs inside its container; a local run binds loopback
# Connections one worker takes at a time, idle ones included: past this, not even /ping is accepted.
MAX_CONNECTIONS = 2048
# A connection without a complete request line and headers is closed, and what is open at SIGTERM is killed, after this time.
HEADER_SECONDS = 20
DRAIN_SECONDS = 25

_log = logging.getLogger(__name__)


class SettingError(ValueError):
    """A variable of the environment cannot be used; the message names it, what was found and what is allowed."""


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
        address, port, workers = _address(), _port(), _workers()
        _check_free(address, port)
        release_id = load_predictor().release_id
    except SettingError as error:
        _log.critical("%s", error)
        return 2
    except ModelInvalid as error:
        _log.critical("the model cannot be served: %s: %s", error.code, error)
        return 1
    _log.info("serving %s on %s:%d with %d workers", release_id, address, port, workers)
    server = Granian(
        "modelferry",
        address=address,
        port=port,
        interface=Interfaces.ASGI,
        workers=workers,
        http=HTTPModes.http1,
        http1_settings=HTTP1Settings(header_read_timeout=HEADER_SECONDS * 1000),
        websockets=False,
        backpressure=MAX_CONNECTIONS,
        respawn_failed_workers=True,
        workers_kill_timeout=DRAIN_SECONDS,
        log_dictconfig=LOGGING,
    )
    server.serve(target_loader=application, wrap_loader=False)
    return 0


def application() -> Application:
    """What each worker runs."""
    return Application(load_predictor)


def load_predictor() -> Predictor:
    """The model below /opt/ml/model, which has to be the release that the deployment pins. Raises ModelInvalid."""
    return Predictor.load(
        environment.MlPaths.from_environment().model,
        release_id=os.environ.get(environment.RELEASE_ID),
        model_json_sha256=os.environ.get(environment.MODEL_JSON_SHA256),
    )


def _address() -> str:
    text = os.environ.get(environment.BIND_ADDRESS, ALL_INTERFACES)
    try:
        return str(ipaddress.ip_address(text))
    except ValueError as error:
        raise SettingError(f"{environment.BIND_ADDRESS}: found {text!r}; allowed: an IP address") from error


def _port() -> int:
    return _whole_number(environment.BIND_TO_PORT, environment.DEFAULT_PORT, 1, 65535)


def _workers() -> int:
    return _whole_number(environment.WORKERS, os.cpu_count() or 1, 1, 256)


def _whole_number(name: str, default: int, lowest: int, highest: int) -> int:
    text = os.environ.get(name, str(default))
    if not (text.isascii() and text.isdigit() and lowest <= int(text[:9]) <= highest):
        raise SettingError(f"{name}: found {text!r}; allowed: a whole number from {lowest} to {highest}")
    return int(text)


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
