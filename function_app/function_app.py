"""The Azure Function: POST /api/classify and GET /api/health, in front of the same core as the SageMaker container.

GET /api/openapi.json tells what these take and answer with this model, to whoever may call classify.

It logs one JSON object for the load of the model and one for each request, and never a body, a key or a header. Records go
through `logging` in the thread that runs the handler: the worker knows by the thread which invocation a record belongs to.
"""

# ruff: noqa: E402 (what makes a cold start short has to come before the imports that it makes short)

import gc
import importlib.util
import json
import logging
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from model_code import environment

# Both were measured with bench/cold_start.py. ONNX Runtime computes here, and never numpy's own threads.
os.environ.setdefault(environment.BLAS_THREADS, "1")
# What imports make stays: to look for garbage in between finds nothing, again and again.
gc.disable()

from model_code.inference import errors
from model_code.inference.contract import DEADLINE_SECONDS
from model_code.inference.predictor import Predictor

_PACKAGED = Path(__file__).resolve().parent / "release"
# A probe is answered in two seconds, with 503 while the model is not there yet.
_HEALTH_SECONDS = 1.0
# One inference takes one thread: several requests share the one or two cores of an instance.
_INFERENCE_THREADS = 1
# The names of the worker's own loggers begin with "azure"; records of those do not reach the app's owner.
_log = logging.getLogger("modelferry.function")

# The model, verified and warm; where there is none, the code of the error whose reason is in the log.
_predictor: Predictor | None = None
_load_error = errors.InferenceError.code


def _load() -> None:
    global _predictor, _load_error
    started = time.monotonic()
    declared = os.environ.get(environment.RELEASE_ID)
    directory = Path(os.environ.get(environment.MODEL_DIR) or _PACKAGED)
    try:
        _predictor = Predictor.load(
            directory,
            threads=_INFERENCE_THREADS,
            release_id=declared,
            model_json_sha256=_released_model_json(directory),
        )
    except Exception as error:
        if isinstance(error, errors.InferenceError):
            _load_error = error.code
        _write(
            logging.ERROR,
            event="load",
            release_id=declared,
            code=_load_error,
            message=f"the model cannot be served: {error}",
            traceback=traceback.format_exc(),
        )
        return
    _write(
        logging.INFO,
        event="load",
        release_id=_predictor.release_id,
        milliseconds=_milliseconds_since(started),
        inference_threads=_INFERENCE_THREADS,
        worker_threads=os.environ.get(environment.WORKER_THREADS),
    )


def _released_model_json(directory: Path) -> str | None:
    """sha256 that model.json must have: what the release.json beside it says, else the variable, else None."""
    try:
        release = json.loads((directory / environment.RELEASE_FILE).read_bytes())
    except FileNotFoundError:
        return os.environ.get(environment.MODEL_JSON_SHA256)
    return str(release["model_json"]["sha256"])


def _write(level: int, **fields: object) -> None:
    _log.log(level, "%s", json.dumps(fields))


def _milliseconds_since(started: float) -> float:
    return round((time.monotonic() - started) * 1000, 3)


# Azure's worker imports this module, and only then tells the host which functions there are: the model loads meanwhile, and
# whoever asks earlier waits. Digests are computed and sessions made without the interpreter's lock, beside what follows.
_loading = threading.Thread(target=_load, name="load")
_loading.start()


def _defer(name: str) -> None:
    """Let modules of this package be imported without its own code, which runs when somebody asks for what it defines."""
    spec = None if name in sys.modules else importlib.util.find_spec(name)
    if spec is None or spec.loader is None:
        return
    loader, package = spec.loader, importlib.util.module_from_spec(spec)

    def ask(attribute: str) -> Any:
        if importlib.util.find_spec(f"{name}.{attribute}"):
            raise AttributeError(f"{name} has no {attribute} yet")  # which tells `from` to import the module
        package.__dict__.pop("__getattr__", None)
        loader.exec_module(package)
        return getattr(package, attribute)

    package.__dict__["__getattr__"] = ask
    sys.modules[name] = package


# azure.functions reads headers and forms with it, and it would begin with its development server and its test client.
_defer("werkzeug")

import azure.functions as func

from model_code.inference.codecs import JSON
from model_code.inference.contract import Request, Response
from model_code.inference.respond import error_response, respond
from model_code.inference.respond import health as health_of

# Everything so far is here to stay, so that a collection during a request need not look at it.
gc.freeze()
gc.enable()

# How callers show who they are, as the document says it: to the host with a key, to the platform with a token.
_KEYS = {
    "key": {"type": "apiKey", "in": "header", "name": "x-functions-key"},
    "keyInQuery": {"type": "apiKey", "in": "query", "name": "code"},
}
_TOKEN = {"token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}}


def _auth_level() -> func.AuthLevel:
    """The level of `classify` and of the document: a key, unless somebody else checks the caller or nobody is meant to.

    With Entra the platform checks tokens before the host sees a request. Flex Consumption did not do so at first: where the
    platform does not say that it does, and for a value that nobody knows, callers need a key.
    """
    authorization = os.environ.get(environment.AUTHORIZATION) or "function-key"
    if authorization == "anonymous":
        return func.AuthLevel.ANONYMOUS
    platform = os.environ.get(environment.PLATFORM_AUTHENTICATION, "")
    if authorization == "entra" and platform.lower() == "true":
        return func.AuthLevel.ANONYMOUS
    if authorization != "function-key":
        reason = f"{environment.PLATFORM_AUTHENTICATION} is {platform!r}; it has to be 'True'"
        if authorization not in environment.AUTHORIZATIONS:
            reason = f"allowed: {', '.join(environment.AUTHORIZATIONS)}"
        _write(
            logging.ERROR,
            event="authorization",
            message=f"{environment.AUTHORIZATION} is {authorization!r}: {reason}. /api/classify asks for a function key",
        )
    return func.AuthLevel.FUNCTION


# The worker wants exactly one such object in this module.
_level = _auth_level()
app = func.FunctionApp(http_auth_level=_level)


# Neither handler is async: the worker runs these in its threads, an async one would run on its event loop and stop it.
@app.route(route="classify", methods=["POST"])
def classify(req: func.HttpRequest, context: func.Context) -> func.HttpResponse:
    """Classify a batch; what goes in and out, its limits and its deadline are the core's contract."""
    arrived = time.monotonic()
    headers = req.headers
    content_type, accept = headers.get("content-type"), headers.get("accept")
    request = Request(req.get_body(), content_type, accept, context.invocation_id, arrived)
    _wait_for_the_load(arrived)
    return _answer("classify", respond(_predictor, request), context.invocation_id, arrived)


@app.route(route="health", methods=["GET"], auth_level=func.AuthLevel.ANONYMOUS)
def health(req: func.HttpRequest, context: func.Context) -> func.HttpResponse:
    """Which release answers here, for probes without a key; 503 with the error's code where no model could be loaded."""
    arrived = time.monotonic()
    _wait_for_the_load(arrived, _HEALTH_SECONDS)
    invocation = context.invocation_id
    response = _not_ready(invocation) if _predictor is None else health_of(_predictor, invocation)
    return _answer("health", response, invocation, arrived)


@app.route(route="openapi.json", methods=["GET"])
def openapi(req: func.HttpRequest, context: func.Context) -> func.HttpResponse:
    """What the functions take and answer with this model, as an OpenAPI document; 503 where no model could be loaded."""
    arrived = time.monotonic()
    _wait_for_the_load(arrived)
    if _predictor is None:
        response = _not_ready(context.invocation_id)
    else:
        # Not at the top: nobody who waits for a cold start has asked for this.
        from model_code.inference.openapi import FUNCTION, openapi_document

        document = openapi_document(_predictor.description, FUNCTION, security=_security())
        response = Response(200, json.dumps(document).encode(), {"content-type": JSON})
    return _answer("openapi", response, context.invocation_id, arrived)


def _security() -> dict[str, dict[str, str]]:
    if _level is func.AuthLevel.FUNCTION:
        return _KEYS
    return _TOKEN if os.environ.get(environment.AUTHORIZATION) == "entra" else {}


def _wait_for_the_load(arrived: float, seconds: float = DEADLINE_SECONDS) -> None:
    """Until it has ended, well or not, or the request that came `seconds` ago is answered anyhow."""
    if _loading.is_alive():
        _loading.join(max(0.0, arrived + seconds - time.monotonic()))


def _not_ready(invocation_id: str) -> Response:
    reason = "it is being loaded, try again" if _loading.is_alive() else f"{_load_error}; the log has the reason"
    return error_response(errors.NotReady(f"no model is loaded: {reason}"), invocation_id)


def _answer(function: str, response: Response, invocation_id: str, arrived: float) -> func.HttpResponse:
    """Log the request and hand the core's answer to the worker."""
    _write(
        logging.ERROR if response.status >= 500 else logging.INFO,
        event="request",
        function=function,
        invocation_id=invocation_id,
        release_id=_predictor.release_id if _predictor else None,
        status=response.status,
        code=json.loads(response.body)["error"]["code"] if response.status >= 400 else None,
        milliseconds=_milliseconds_since(arrived),
    )
    return func.HttpResponse(response.body, status_code=response.status, headers=response.headers)
