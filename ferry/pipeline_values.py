"""What a value in a pipeline definition means: parameters, execution variables, properties of steps, joins, JSON look-ups.

The forms are those of the definition schema 2020-12-01 (aws-sagemaker-mlops.github.io/sagemaker-model-building-pipeline-
definition-JSON-schema): {"Get": path}, {"Std:Join": {"On", "Values"}}, {"Std:JsonGet": {"PropertyFile", "Path"}}, and the
conditions of a Condition step.
"""

import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ferry.errors import FerryError, Refused

# One part of a path: a member's name, a place in a list, or the name of a list's or map's entry.
_PART = re.compile(r"\.?([A-Za-z0-9_:-]+)|\[(\d+)\]|\['([^']*)'\]")
_TYPES: dict[str, Callable[[str], Any]] = {
    "String": str,
    "Integer": int,
    "Float": float,
    "Boolean": lambda text: {"true": True, "false": False}[text.lower()],
}
_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "Equals": operator.eq,
    "GreaterThan": operator.gt,
    "GreaterThanOrEqualTo": operator.ge,
    "LessThan": operator.lt,
    "LessThanOrEqualTo": operator.le,
}
# DescribeProcessingJob and its kin keep named entries in lists; a path finds them by name.
_ENTRY_NAMES = ("OutputName", "InputName", "ChannelName", "MetricName")


@dataclass
class Scope:
    """What references can reach: parameters, execution variables, and of each finished step its properties and files.

    A step's properties are what SageMaker's Describe call answers for it; its property files are parsed JSON.
    """

    parameters: Mapping[str, Any]
    execution: Mapping[str, str]
    properties: dict[str, Any] = field(default_factory=dict)
    property_files: dict[str, dict[str, Any]] = field(default_factory=dict)


def typed_parameters(declared: list[dict[str, Any]], given: Mapping[str, str]) -> dict[str, Any]:
    """The value of every declared parameter: the given text, else its default, as the declared type.

    Raises Refused for a name that is not declared, a text that is not of the type or not allowed, and a missing value.
    """
    names = [each["Name"] for each in declared]
    if unknown := [name for name in given if name not in names]:
        raise Refused(f"the pipeline has no parameter {unknown[0]!r}; it has: {', '.join(sorted(names)) or 'none'}")
    return {each["Name"]: _typed(each, given) for each in declared}


def _typed(declared: dict[str, Any], given: Mapping[str, str]) -> Any:
    name, kind = declared["Name"], declared["Type"]
    if name not in given and "DefaultValue" not in declared:
        raise Refused(f"parameter {name} has no default; give it: --parameter {name}=VALUE")
    text = given.get(name, str(declared.get("DefaultValue")))
    try:
        value = _TYPES[kind](text)
    except (ValueError, KeyError) as error:
        raise Refused(f"parameter {name}: found {text!r}; allowed: a value of type {kind}") from error
    allowed = declared.get("EnumValues")
    if allowed and value not in allowed:
        raise Refused(f"parameter {name}: found {text!r}; allowed: {', '.join(map(str, allowed))}")
    return value


def references(value: Any) -> Iterator[list[str | int]]:
    """The path of every "Get" inside a value."""
    if isinstance(value, dict):
        if set(value) == {"Get"}:
            yield _path(value["Get"])
        else:
            for inner in value.values():
                yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def resolve(value: Any, scope: Scope, *, partly: bool = False) -> Any:
    """The value with every reference replaced by what it stands for.

    With `partly`, what refers to a step that has not run yet stays as it is. Raises Refused for a reference to nothing.
    """
    match value:
        case {"Get": path} if len(value) == 1:
            parts = _path(path)
            return value if partly and _waits(parts, scope) else _get(parts, scope, path)
        case {"Std:Join": {"On": separator, "Values": values}} if len(value) == 1:
            texts = [resolve(each, scope, partly=partly) for each in values]
            waits = partly and any(isinstance(each, dict) for each in texts)
            return value if waits else separator.join(map(str, texts))
        case {"Std:JsonGet": {"PropertyFile": file, "Path": path}} if len(value) == 1:
            _, step, _, name = _path(file["Get"])
            if partly and step not in scope.property_files:
                return value
            return _follow(scope.property_files[str(step)][str(name)], _path(path), f"{step}.{name}.{path}")
        case dict():
            return {key: resolve(inner, scope, partly=partly) for key, inner in value.items()}
        case list():
            return [resolve(inner, scope, partly=partly) for inner in value]
    return value


def holds(condition: dict[str, Any], scope: Scope) -> bool:
    """Whether one condition of a Condition step is true."""
    kind = condition["Type"]
    if kind == "Not":
        return not holds(condition["Expression"], scope)
    if kind == "Or":
        return any(holds(each, scope) for each in condition["Conditions"])
    if kind == "In":
        return resolve(condition["QueryValue"], scope) in resolve(condition["Values"], scope)
    left, right = resolve(condition["LeftValue"], scope), resolve(condition["RightValue"], scope)
    try:
        return _COMPARISONS[kind](left, right)
    except TypeError as error:
        raise FerryError(f"{kind}: {left!r} and {right!r} cannot be compared") from error


def unknown_conditions(condition: dict[str, Any]) -> list[str]:
    """The types inside a condition that `holds` does not know."""
    inner = [*condition.get("Conditions", []), *([condition["Expression"]] if "Expression" in condition else [])]
    known = {"Not", "Or", "In", *_COMPARISONS}
    own = [] if condition["Type"] in known else [condition["Type"]]
    return own + [each for part in inner for each in unknown_conditions(part)]


def _path(text: str) -> list[str | int]:
    parts: list[str | int] = []
    end = 0
    for match in _PART.finditer(text):
        if match.start() != end:
            break
        end = match.end()
        parts.append(int(match[2]) if match[2] is not None else match[1] or match[3])
    if end != len(text) or not parts:
        raise Refused(f"{text!r} is no path; allowed: names joined by dots, with [number] or ['name'] for entries")
    return parts


def _waits(parts: list[str | int], scope: Scope) -> bool:
    return parts[0] == "Steps" and parts[1] not in scope.properties


def _get(parts: list[str | int], scope: Scope, path: str) -> Any:
    roots: dict[str | int, Any] = {
        "Parameters": scope.parameters,
        "Execution": scope.execution,
        "Steps": scope.properties,
    }
    return _follow(roots, parts, path)


def _follow(document: Any, parts: list[str | int], path: str) -> Any:
    found = document
    for part in parts:
        if part not in (entries := _entries(found)):
            raise Refused(f"{path}: there is no {part!r}; found: {', '.join(map(str, entries)) or 'nothing'}")
        found = entries[part]
    return found


def _entries(value: Any) -> Mapping[Any, Any]:
    """What a path finds in a value: the members of a map; the entries of a list, each by its place and by its name."""
    if isinstance(value, Mapping):
        return value
    if not isinstance(value, list):
        return {}
    named = {entry[key]: entry for entry in value if isinstance(entry, dict) for key in _ENTRY_NAMES if key in entry}
    return dict(enumerate(value)) | named
