"""The handlers that AWS's PyTorch inference image calls, in front of the same core as the other doors.

The image runs TorchServe with one process for each CPU, each of which answers one request at a time. Its toolkit
(sagemaker-pytorch-inference 2.0.25, sagemaker_inference/transformer.py) gives a handler that has one parameter more than it
needs the context of the request (ts/context.py). Only through that can an answer keep its status, its headers and its body:
the toolkit turns any exception of a handler into its message and its traceback, sent to the caller.
"""

import logging
import os
import re
import signal
from http import HTTPStatus
from pathlib import Path
from typing import Any

from sagemaker_inference import content_types

from model_code import environment
from model_code.inference.codecs import JSON
from model_code.inference.contract import RELEASE_ID_HEADER, Request, Response
from model_code.inference.predictor import Predictor
from model_code.inference.respond import respond

# TorchServe has one process for each CPU: an inference takes one thread, or the processes take the CPUs from each other.
_INFERENCE_THREADS = 1
# The one response header of a container that SageMaker hands on (botocore: InvokeEndpoint, CustomAttributes).
_CUSTOM_ATTRIBUTES = "x-amzn-sagemaker-custom-attributes"
_INFERENCE_ID = "x-amzn-sagemaker-inference-id"
# The class that `java` runs (sagemaker_pytorch_serving_container/torchserve.py, TS_NAMESPACE).
_MODEL_SERVER = b"org.pytorch.serve.ModelServer"

_log = logging.getLogger(__name__)

# The toolkit decodes bodies of these types before it calls a handler; one that is not UTF-8 would get a 500 and a traceback.
content_types.UTF8_TYPES.clear()


def model_fn(model_dir: str, context: Any) -> Predictor:
    """The model below `model_dir`, which has to be the release that the deployment pins.

    Where it cannot be served, TorchServe is ended and the reason raised: left alone, it would start this process again and
    again and answer /ping with 200 all the while (0.12, as it does before its workers are ready). Ended, it answers nothing,
    and SageMaker sees that the container is not healthy.
    """
    try:
        predictor = _load(Path(model_dir), context.system_properties["batch_size"])
    except Exception as error:
        _log.critical("the model cannot be served: %s", error)
        _end_model_server()
        raise
    _log.info("serving %s", predictor.release_id)
    return predictor


def _load(directory: Path, batch_size: int) -> Predictor:
    """Raises ModelInvalid, and ValueError where TorchServe is told to batch requests: the toolkit answers all requests of a
    batch by the headers and with the status of its first one."""
    if batch_size != 1:
        raise ValueError(
            f"SAGEMAKER_TS_BATCH_SIZE: found {batch_size}; allowed: 1. One request may hold many instances"
        )
    return Predictor.load(
        directory,
        threads=_INFERENCE_THREADS,
        release_id=os.environ.get(environment.RELEASE_ID),
        model_json_sha256=os.environ.get(environment.MODEL_JSON_SHA256),
    )


def _end_model_server() -> None:
    """TorchServe is the parent of its workers; the toolkit knows it by the same argument."""
    parent = os.getppid()
    if _MODEL_SERVER in Path(f"/proc/{parent}/cmdline").read_bytes().split(b"\0"):
        os.kill(parent, signal.SIGTERM)


def input_fn(body: bytearray | None, content_type: str | None, context: Any) -> Request:
    """The request as the core takes it, under the caller's inference id where there is one, else under TorchServe's.

    A form has no body of its own; its content type is refused.
    """
    headers = {name.lower(): value for name, value in context.get_all_request_header(0).items()}
    given = headers.get(_INFERENCE_ID, "")
    request_id = given if re.fullmatch(r"[\x21-\x7e]{1,64}", given) else context.get_request_id(0)
    return Request(bytes(body or b""), content_type, headers.get("accept"), request_id)


def predict_fn(request: Request, predictor: Predictor) -> Response:
    """The core's answer, or its refusal."""
    return respond(predictor, request)


def output_fn(response: Response, accept: str, context: Any) -> tuple[bytes, str]:
    """Body and media type; status and headers go by way of the context.

    `accept` is not looked at: the toolkit has put a default in the place of what the caller did not say.
    """
    headers = {name: value for name, value in response.headers.items() if name != "content-type"}
    if RELEASE_ID_HEADER in headers:
        headers[_CUSTOM_ATTRIBUTES] = headers[RELEASE_ID_HEADER]
    for name, value in headers.items():
        context.set_response_header(0, name, value)
    context.set_response_status(code=response.status, phrase=HTTPStatus(response.status).phrase)
    return response.body, response.headers.get("content-type", JSON)
