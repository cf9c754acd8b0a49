"""The Azure Function: POST /api/classify and GET /api/health, in front of the same core as the SageMaker container."""

import logging
import os
from pathlib import Path

import azure.functions as func

from model_code import environment
from model_code.inference.contract import Request, Response
from model_code.inference.predictor import Predictor
from model_code.inference.respond import health as health_of
from model_code.inference.respond import respond


def _load() -> Predictor | None:
    """The packaged model, or None after the reason went to the log: the app then answers 503 and says so to its probes."""
    packaged = Path(__file__).resolve().parent / "release"
    try:
        return Predictor.load(
            Path(os.environ.get(environment.MODEL_DIR) or packaged),
            release_id=os.environ.get(environment.RELEASE_ID),
            model_json_sha256=os.environ.get(environment.MODEL_JSON_SHA256),
        )
    except Exception:
        logging.exception("the model cannot be served")
        return None


# At module level, because Azure's worker imports this module before it takes requests: none of them waits for the model.
_predictor = _load()

# The worker wants exactly one such object in this module.
app = func.FunctionApp(http_auth_level=func.AuthLevel.FUNCTION)


# Neither handler is async: the worker runs these in its threads, an async one would run on its event loop and stop it.
@app.route(route="classify", methods=["POST"])
def classify(req: func.HttpRequest, context: func.Context) -> func.HttpResponse:
    """Classify a batch; what goes in and out is the core's contract."""
    headers = req.headers
    request = Request(req.get_body(), headers.get("content-type"), headers.get("accept"), context.invocation_id)
    return _to_azure(respond(_predictor, request))


@app.route(route="health", methods=["GET"], auth_level=func.AuthLevel.ANONYMOUS)
def health(req: func.HttpRequest, context: func.Context) -> func.HttpResponse:
    """Which release answers here, for probes without a key."""
    return _to_azure(health_of(_predictor, context.invocation_id))


def _to_azure(response: Response) -> func.HttpResponse:
    return func.HttpResponse(response.body, status_code=response.status, headers=response.headers)
