"""Runs API Gateway's mapping templates: Velocity with Java's strings, and the variables that API Gateway puts beside them.

The variables are those of "API Gateway mapping template and access logging variable reference" (Developer Guide), no more:
a template that asks for another one raises.
"""

import json
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote_plus, unquote_plus

import airspeed

REQUEST_ID = "c6af9ac6-7b61-11e6-9a41-93e8deadbeef"

# java.lang.String: matches() is about the whole text, which airspeed's own is not.
airspeed.__additional_methods__[str] |= {
    "compareTo": lambda text, other: (text > other) - (text < other),
    "endsWith": lambda text, suffix: text.endswith(suffix),
    "matches": lambda text, pattern: re.fullmatch(pattern, text) is not None,
    "substring": lambda text, start, end=None: text[start:end],
    "toLowerCase": lambda text: text.lower(),
    "trim": lambda text: text.strip(),
}
# Velocity allows a dash in a name, airspeed does not.
_HEADER = re.compile(r"(?<=responseOverride\.header\.)[A-Za-z-]+")


@dataclass(frozen=True)
class Mapped:
    """What a template makes of an answer; `status` is None where it keeps the declared one."""

    body: str
    status: int | None
    headers: dict[str, str]


class _Input:
    """$input; `body` is what the integration answered, `headers` are those of the request."""

    def __init__(self, body: str, headers: dict[str, str]) -> None:
        self._body = body
        self._headers = {name.lower(): value for name, value in headers.items()}

    def path(self, expression: str) -> Any:
        value = json.loads(self._body)
        for name in expression.removeprefix("$").split(".")[1:]:
            value = value.get(name) if isinstance(value, dict) else None
        return value

    def json(self, expression: str) -> str:
        return json.dumps(self.path(expression))

    def params(self, name: str) -> str:
        return self._headers.get(name.lower(), "")


class _Util:
    """$util: java.net.URLEncoder keeps letters, digits and .-*_ and makes a space a plus."""

    def urlEncode(self, text: str) -> str:  # noqa: N802 - API Gateway's name
        return quote_plus(text, safe="*").replace("~", "%7E")

    def urlDecode(self, text: str) -> str:  # noqa: N802 - API Gateway's name
        return unquote_plus(text)


def run(template: str, body: str, request_headers: dict[str, str] | None = None) -> Mapped:
    """Interpret a response template over the integration's `body`."""
    override: dict[str, Any] = {"header": {}}
    context = {"requestId": REQUEST_ID, "responseOverride": override}
    names = {"input": _Input(body, request_headers or {}), "util": _Util(), "context": context}
    text = airspeed.Template(_HEADER.sub(lambda match: match[0].replace("-", "__"), template)).merge(names)
    status = override.get("status")
    headers = {name.replace("__", "-"): value for name, value in override["header"].items()}
    return Mapped(text.strip(), int(status) if status is not None else None, headers)
