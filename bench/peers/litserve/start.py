"""LitServe in its own process, which starts one inference worker a core."""

import os
from typing import Any

import litserve as ls
from digits import Digits


class DigitsAPI(ls.LitAPI):
    def setup(self, device: str) -> None:
        self.model = Digits()

    def decode_request(self, request: dict[str, Any]) -> Any:
        return request["data"]

    def predict(self, images: Any) -> dict[str, list[int]]:
        return self.model.answer(images)

    def encode_response(self, answer: dict[str, list[int]]) -> dict[str, list[int]]:
        return answer


if __name__ == "__main__":
    server = ls.LitServer(
        DigitsAPI(api_path="/invocations"), accelerator="cpu", workers_per_device=int(os.environ["BENCH_PROCESSES"])
    )
    server.run(
        host="127.0.0.1",
        port=int(os.environ["BENCH_PORT"]),
        log_level="error",
        generate_client_file=False,
        access_log=False,
    )
