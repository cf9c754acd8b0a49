"""A BentoML service; the array's type makes BentoML check and convert it."""

import os
from typing import Annotated

import bentoml
import numpy as np
from bentoml.validators import DType
from digits import Digits


@bentoml.service(
    workers=int(os.environ["BENCH_PROCESSES"]), metrics={"enabled": False}, logging={"access": {"enabled": False}}
)
class DigitsService:
    def __init__(self) -> None:
        self.model = Digits()

    @bentoml.api(route="/invocations")
    def invocations(self, data: Annotated[np.ndarray, DType("float32")]) -> dict[str, list[int]]:
        return self.model.answer(data)
