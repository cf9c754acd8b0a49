"""Does what a worker process of TorchServe does: `python script_mode_worker.py MODEL_DIR BATCH_SIZE REQUESTS ANSWERS`.

The handler service and the transformer are AWS's own. The context is made and used as TorchServe 0.12 does it (ts/context.py,
ts/service.py, ts/model_loader.py): one for the life of the process, with a new request processor for each request.

REQUESTS is a JSON list of {"headers", "body"}, bodies in base64. ANSWERS becomes {"modules", "answers"}: where each module was
loaded from, and {"status", "phrase", "headers", "body"} for each request.
"""

import base64
import json
import sys
from pathlib import Path
from typing import Any

from sagemaker_pytorch_serving_container.handler_service import HandlerService


class RequestProcessor:
    """One request's headers, and what the answer shall have."""

    def __init__(self, request_header: dict[str, Any]) -> None:
        self.status, self.phrase = 200, ""
        self.response_header: dict[str, str] = {}
        self._request_header = request_header

    def get_request_properties(self) -> dict[str, Any]:
        return self._request_header

    def add_response_property(self, key: str, value: str) -> None:
        self.response_header[key] = value

    def report_status(self, code: int, reason_phrase: str) -> None:
        self.status, self.phrase = code, reason_phrase


class Context:
    """What handlers are given."""

    def __init__(self, model_dir: str, batch_size: int) -> None:
        self.model_name = "model"
        self.system_properties = {"model_dir": model_dir, "gpu_id": None, "batch_size": batch_size}
        self.request_ids: dict[int, str] = {}
        self.request_processor: list[RequestProcessor] = []

    def get_request_id(self, idx: int = 0) -> str | None:
        return self.request_ids.get(idx)

    def get_all_request_header(self, idx: int) -> dict[str, Any]:
        return self.request_processor[idx].get_request_properties()

    def set_response_content_type(self, idx: int, value: str) -> None:
        self.set_response_header(idx, "content-type", value)

    def set_response_header(self, idx: int, key: str, value: str) -> None:
        self.request_processor[idx].add_response_property(key, value)

    def set_response_status(self, code: int = 200, phrase: str = "", idx: int = 0) -> None:
        self.request_processor[idx].report_status(code, reason_phrase=phrase)


def main(model_dir: str, batch_size: str, requests: str, answers: str) -> None:
    context = Context(model_dir, int(batch_size))
    service = HandlerService()
    service.initialize(context)
    answered = []
    for number, request in enumerate(json.loads(Path(requests).read_bytes())):
        content_type = next((value for name, value in request["headers"].items() if name.lower() == "content-type"), "")
        processor = RequestProcessor({"body": {"content-type": content_type}, **request["headers"]})
        context.request_ids = {0: f"request-{number}"}
        context.request_processor = [processor]
        (body,) = service.handle([{"body": bytearray(base64.b64decode(request["body"]))}], context)
        # As otf_message_handler.py puts it on the wire.
        raw = body if isinstance(body, bytes) else body.encode("utf-8")
        headers = {name.lower(): value for name, value in processor.response_header.items()}
        answered.append(
            {
                "status": processor.status,
                "phrase": processor.phrase,
                "headers": headers,
                "body": base64.b64encode(raw).decode(),
            }
        )
    modules = {name: getattr(module, "__file__", None) for name, module in sys.modules.items()}
    Path(answers).write_text(json.dumps({"modules": modules, "answers": answered}))


if __name__ == "__main__":
    main(*sys.argv[1:])
