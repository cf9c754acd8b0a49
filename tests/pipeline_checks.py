"""What is wrong with a SageMaker pipeline definition, as SageMaker itself would find it when the pipeline is made or runs.

References, cycles, and each step's Arguments against the shape of the request that they become (botocore's service model).
"""

import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import botocore.session
from botocore.model import Shape
from botocore.validate import ParamValidator

# Type of a step: the request, the name that SageMaker Pipelines fills in itself, and the answer that describes the result.
REQUESTS = {
    "Training": ("CreateTrainingJob", "TrainingJobName", "DescribeTrainingJob"),
    "Processing": ("CreateProcessingJob", "ProcessingJobName", "DescribeProcessingJob"),
    "Transform": ("CreateTransformJob", "TransformJobName", "DescribeTransformJob"),
    "Model": ("CreateModel", "ModelName", "DescribeModel"),
    "RegisterModel": ("CreateModelPackage", None, "DescribeModelPackage"),
}
EXECUTION = {
    "Execution.PipelineExecutionId": "abcdefghijkl",
    "Execution.PipelineExecutionArn": "arn:aws:sagemaker:eu-west-1:111122223333:pipeline/x/execution/abcdefghijkl",
}
RETRIED = {
    "Step.SERVICE_FAULT",
    "Step.THROTTLING",
    "SageMaker.JOB_INTERNAL_ERROR",
    "SageMaker.CAPACITY_ERROR",
    "SageMaker.RESOURCE_LIMIT",
}
CACHED = {"Training", "Processing", "Transform"}
TYPES = {"String": str, "Float": float, "Integer": int, "Boolean": bool}
Definition = dict[str, Any]


@dataclass(frozen=True)
class Placed:
    """A step and the branch that it stands in: the name of the condition and which list of it, or nothing."""

    step: dict[str, Any]
    branch: tuple[str, str] | None


def problems(definition: Definition) -> list[str]:
    """Every problem in words; an empty list for a definition that SageMaker would take."""
    placed = list(_steps(definition["Steps"], None))
    names = [each.step["Name"] for each in placed]
    found = [f"{name}: two steps have this name" for name in sorted(set(names)) if names.count(name) > 1]
    by_name = {each.step["Name"]: each for each in placed}
    found += _parameter_problems(definition)
    for each in placed:
        found += [f"{each.step['Name']}: {text}" for text in _step_problems(each, by_name, definition)]
    found += _cycles({name: _dependencies(each, by_name) for name, each in by_name.items()})
    if not found:
        for each in placed:
            found += [f"{each.step['Name']}: {text}" for text in _request_problems(each.step, definition, by_name)]
    return found


def all_steps(definition: Definition) -> dict[str, dict[str, Any]]:
    """Every step by name, those in the branches of conditions too."""
    return {each.step["Name"]: each.step for each in _steps(definition["Steps"], None)}


def resolved(definition: Definition, step: str) -> dict[str, Any]:
    """The Arguments of a step with every parameter at its default and everything else as a placeholder of the right type."""
    by_name = {each.step["Name"]: each for each in _steps(definition["Steps"], None)}
    arguments: dict[str, Any] = _fill(by_name[step].step["Arguments"], definition, by_name)
    return arguments


def _steps(steps: list[dict[str, Any]], branch: tuple[str, str] | None) -> Iterator[Placed]:
    for step in steps:
        yield Placed(step, branch)
        if step["Type"] == "Condition":
            for name in ("IfSteps", "ElseSteps"):
                yield from _steps(step["Arguments"].get(name, []), (step["Name"], name))


def _own_arguments(step: dict[str, Any]) -> dict[str, Any]:
    """Without the steps inside a condition, which speak for themselves."""
    return {key: value for key, value in step["Arguments"].items() if key not in ("IfSteps", "ElseSteps")}


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for each in value:
            yield from _references(each)
    elif isinstance(value, dict):
        if set(value) == {"Get"}:
            yield value["Get"]
        else:
            yield from _references(list(value.values()))


def _parameter_problems(definition: Definition) -> Iterator[str]:
    names = [each["Name"] for each in definition["Parameters"]]
    used = set(_references(definition["Steps"]))
    for each in definition["Parameters"]:
        name = each["Name"]
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) or names.count(name) > 1:
            yield f"parameter {name}: no name, or not the only one of it"
        if type(each["DefaultValue"]) is not TYPES[each["Type"]]:
            yield f"parameter {name}: the default is no {each['Type']}"
        if f"Parameters.{name}" not in used:
            yield f"parameter {name}: nobody reads it"


def _step_problems(placed: Placed, by_name: dict[str, Placed], definition: Definition) -> Iterator[str]:
    step = placed.step
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", step["Name"]):
        yield "not a name"
    declared = {f"Parameters.{each['Name']}" for each in definition["Parameters"]}
    for reference in _references(_own_arguments(step)):
        kind = reference.split(".")[0]
        if kind == "Steps":
            yield from _reference_problems(reference, placed, by_name)
        elif reference not in declared | set(EXECUTION):
            yield f"{reference} does not exist"
    for name in step.get("DependsOn", []):
        if name not in by_name:
            yield f"depends on {name}, which does not exist"
    outputs = [each["OutputName"] for each in _outputs(step)]
    for file in step.get("PropertyFiles", []):
        if file["OutputName"] not in outputs:
            yield f"property file {file['PropertyFileName']} is in {file['OutputName']}, which is no output"
    for policy in step.get("RetryPolicies", []):
        unknown = set(policy["ExceptionType"]) - RETRIED
        job_errors = {name for name in policy["ExceptionType"] if name.startswith("SageMaker.")}
        if unknown or (job_errors and step["Type"] in ("Model", "RegisterModel")):
            yield f"cannot be retried on {sorted(unknown or job_errors)}"
    cache = step.get("CacheConfig")
    expires = not cache or not cache["Enabled"] or re.fullmatch(r"P\d+D", cache["ExpireAfter"])
    if cache and (step["Type"] not in CACHED or not expires):
        yield f"cannot be cached with {cache}"


def _reference_problems(reference: str, placed: Placed, by_name: dict[str, Placed]) -> Iterator[str]:
    _, name, path = reference.split(".", 2)
    target = by_name.get(name)
    if target is None:
        yield f"{reference}: there is no step {name}"
    elif target.branch not in (None, *_branches(placed, by_name)):
        yield f"{reference}: {name} stands in a branch that may not have run"
    elif path.startswith("PropertyFiles."):
        if path.removeprefix("PropertyFiles.") not in [
            each["PropertyFileName"] for each in target.step.get("PropertyFiles", [])
        ]:
            yield f"{reference}: {name} has no such property file"
    elif _property_shape(target.step, path) is None:
        yield f"{reference}: {name} has no such property"


def _branches(placed: Placed, by_name: dict[str, Placed]) -> Iterator[tuple[str, str]]:
    while placed.branch:
        yield placed.branch
        placed = by_name[placed.branch[0]]


def _outputs(step: dict[str, Any]) -> list[dict[str, Any]]:
    outputs: list[dict[str, Any]] = step["Arguments"].get("ProcessingOutputConfig", {}).get("Outputs", [])
    return outputs


def _property_shape(step: dict[str, Any], path: str) -> Shape | None:
    """The shape of a property in the answer that describes the step's result; None where there is none."""
    if step["Type"] not in REQUESTS:
        return None
    shape: Shape | None = operation_model(REQUESTS[step["Type"]][2]).output_shape
    for part in path.split("."):
        name, _, index = part.partition("[")
        members = getattr(shape, "members", {})
        if name not in members:
            return None
        shape = members[name]
        if index:
            if index not in [f"'{each['OutputName']}']" for each in _outputs(step)]:
                return None
            shape = shape.member
    return shape


def _dependencies(placed: Placed, by_name: dict[str, Placed]) -> set[str]:
    read = {each.split(".")[1] for each in _references(_own_arguments(placed.step)) if each.startswith("Steps.")}
    around = {placed.branch[0]} if placed.branch else set()
    return (read | around | set(placed.step.get("DependsOn", []))) & set(by_name)


def _cycles(graph: dict[str, set[str]]) -> list[str]:
    """What is left when steps without unfinished dependencies are taken away, one after the other."""
    left = dict(graph)
    while ready := [name for name, needs in left.items() if not needs & set(left)]:
        for name in ready:
            del left[name]
    return [f"{', '.join(sorted(left))}: wait for each other"] if left else []


def _request_problems(step: dict[str, Any], definition: Definition, by_name: dict[str, Placed]) -> Iterator[str]:
    if step["Type"] not in REQUESTS:
        return
    operation, name, _ = REQUESTS[step["Type"]]
    request = _fill(step["Arguments"], definition, by_name)
    if name in request:
        yield f"{name} is SageMaker Pipelines' own to give"
    shape = operation_model(operation).input_shape
    report = ParamValidator().validate(request | ({name: "pipelines-abcdefghijkl-Step-0"} if name else {}), shape)
    if report.has_errors():
        yield report.generate_report()
    yield from value_problems(shape, request, operation)


def value_problems(shape: Shape, value: Any, place: str) -> Iterator[str]:
    """What botocore leaves to the service: enumerations and patterns."""
    if shape.type_name == "structure" and isinstance(value, dict):
        for name, member in shape.members.items():
            if name in value:
                yield from value_problems(member, value[name], f"{place}.{name}")
    elif shape.type_name == "list" and isinstance(value, list):
        for index, each in enumerate(value):
            yield from value_problems(shape.member, each, f"{place}[{index}]")
    elif shape.type_name == "map" and isinstance(value, dict):
        for key, each in value.items():
            yield from value_problems(shape.value, each, f"{place}[{key}]")
    elif shape.type_name == "string" and isinstance(value, str):
        if shape.enum and value not in shape.enum:
            yield f"{place}: {value!r} is none of {', '.join(shape.enum[:4])}..."
        pattern = shape.metadata.get("pattern")
        if pattern and r"\p" not in pattern and not re.fullmatch(pattern, value, re.DOTALL):
            yield f"{place}: {value!r} does not match {pattern}"


def _fill(value: Any, definition: Definition, by_name: dict[str, Placed]) -> Any:
    again: Callable[[Any], Any] = functools.partial(_fill, definition=definition, by_name=by_name)
    if isinstance(value, list):
        return [again(each) for each in value]
    if not isinstance(value, dict):
        return value
    match list(value):
        case ["Get"]:
            return _placeholder(value["Get"], definition, by_name)
        case ["Std:Join"]:
            return value["Std:Join"]["On"].join(str(again(each)) for each in value["Std:Join"]["Values"])
        case ["Std:JsonGet"]:
            return "0.5"
    return {key: again(each) for key, each in value.items()}


def _placeholder(reference: str, definition: Definition, by_name: dict[str, Placed]) -> Any:
    if reference in EXECUTION:
        return EXECUTION[reference]
    if reference.startswith("Parameters."):
        (default,) = (
            each["DefaultValue"] for each in definition["Parameters"] if f"Parameters.{each['Name']}" == reference
        )
        return default
    _, name, path = reference.split(".", 2)
    shape = _property_shape(by_name[name].step, path)
    assert shape is not None
    if shape.type_name != "string":
        return 1
    return f"s3://placeholder/{name}" if "S3" in path else f"placeholder-{name}"


@functools.cache
def operation_model(name: str) -> Any:
    return botocore.session.get_session().get_service_model("sagemaker").operation_model(name)
