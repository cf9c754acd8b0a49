"""From SageMaker's string→string map to a typed, checked dataclass. Nothing is corrected and nothing is ignored."""

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from model_code.training.errors import BadConfiguration

# sagemaker_program, sagemaker_region, ...: for AWS's toolkit, which leaves them in the file.
_TOOLKIT_PREFIX = "sagemaker_"
_NUMBERS = {int: r"[+-]?\d{1,18}", float: r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?"}
_HINT = "Change HyperParameters of the training job; here they come from [datasets.<name>] in the settings."

T = TypeVar("T")


def number(default: float, minimum: float, maximum: float) -> Any:
    """A field of a hyperparameter dataclass: its default and the smallest and largest value allowed."""
    return dataclasses.field(default=default, metadata={"minimum": minimum, "maximum": maximum})


def parse_hyperparameters(kind: type[T], raw: Mapping[str, str]) -> T:
    """Make a `kind`, a dataclass of int and float fields declared with `number`, from text values.

    Raises BadConfiguration with key, value and what is allowed.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    given = {key: text for key, text in raw.items() if not key.startswith(_TOOLKIT_PREFIX)}
    for key in given:
        if key not in fields:
            raise BadConfiguration(f"hyperparameter {key[:60]!r} is unknown; allowed: {', '.join(fields)}", _HINT)
    return kind(**{key: _parse(fields[key], text) for key, text in given.items()})


def refused(key: str, found: object, allowed: str) -> BadConfiguration:
    """The error for a value that is wrong for a reason that only the model knows."""
    return BadConfiguration(f"hyperparameter {key}: found {str(found)[:40]!r}; allowed: {allowed}", _HINT)


def as_text(document: Any, origin: str) -> dict[str, str]:
    """The map as SageMaker knows it; `document` is parsed JSON.

    The toolkit decodes every value that looks like JSON, so a number may arrive: it is turned back into text, and both ways
    into the job are read by the same rules.
    """
    if not isinstance(document, dict):
        raise BadConfiguration(f"{origin}: found {type(document).__name__}; allowed: an object of texts", _HINT)
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in document.items()}


def _parse(field: "dataclasses.Field[Any]", text: str) -> float:
    minimum, maximum = field.metadata["minimum"], field.metadata["maximum"]
    kind: type[int] | type[float] = field.type  # type: ignore[assignment]
    what = "a whole number" if kind is int else "a number"
    if re.fullmatch(_NUMBERS[kind], text, re.ASCII) and minimum <= (value := kind(text)) <= maximum:
        return value
    raise refused(field.name, text, f"{what} from {minimum:g} to {maximum:,}")
