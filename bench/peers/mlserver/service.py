"""An MLServer runtime with a custom handler, which takes our contract in the place of the V2 protocol."""

from typing import Any

from digits import Digits
from mlserver import MLModel
from mlserver.handlers import custom_handler


class DigitsRuntime(MLModel):
    async def load(self) -> bool:
        self.model = Digits()
        return True

    @custom_handler(rest_path="/invocations")
    async def invocations(self, payload: dict[str, Any]) -> dict[str, Any]:
        return self.model.answer(payload["data"])
