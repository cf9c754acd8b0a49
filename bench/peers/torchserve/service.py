"""A custom TorchServe handler; the model archive holds this file."""

from typing import Any

from digits import Digits


class DigitsHandler:
    def initialize(self, context: Any) -> None:
        self.model = Digits()

    def handle(self, requests: list[dict[str, Any]], context: Any) -> list[dict[str, list[int]]]:
        """TorchServe has parsed JSON bodies, and hands over the bytes of all others."""
        bodies = [request.get("data") or request["body"] for request in requests]
        return [self._answer(body) for body in bodies]

    def _answer(self, body: Any) -> dict[str, list[int]]:
        if isinstance(body, (bytes, bytearray)):
            return self.model.answer_npy(body)
        return self.model.answer(body["data"] if isinstance(body, dict) else body)
