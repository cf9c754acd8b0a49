"""Runs a SageMaker pipeline definition on this machine: the same steps, in the same order, with what each really produced.

Training, Processing and Transform steps run the executables of our images; RegisterModel and Model steps go to the emulator.
What cannot be run here is refused by its name before anything starts. Every execution has a folder of its own below the
build folder, with a record of its steps; a failed or killed one stays there for reading, and the next starts from nothing.
"""

import datetime
import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from ferry import aws
from ferry.console import Report
from ferry.errors import FerryError, Refused
from ferry.files import write_atomically
from ferry.pipeline_values import Scope, holds, references, resolve, typed_parameters, unknown_conditions
from ferry.steps import model, processing, training, transform
from ferry.steps.job import StepJob, alone
from infra.settings import Settings

SUCCEEDED, FAILED, EXECUTING, STOPPED = "Succeeded", "Failed", "Executing", "Stopped"
_RECORD = "execution.json"
Step = dict[str, Any]
_Run = Callable[[StepJob, dict[str, Any]], dict[str, Any]]
_Refusals = Callable[[Settings, dict[str, Any]], list[str]]


def _runs_here(settings: Settings, arguments: dict[str, Any]) -> list[str]:
    return []


# How a type of step runs here, and what of its arguments cannot.
_JOBS: dict[str, tuple[_Run, _Refusals]] = {
    "Training": (training.run, training.refusals),
    "Processing": (processing.run, processing.refusals),
    "RegisterModel": (model.register, _runs_here),
    "Model": (model.create, _runs_here),
    "Transform": (transform.run, transform.refusals),
}
_TYPES = (*_JOBS, "Condition", "Fail")


@dataclass
class StepRecord:
    """What became of one step, in SageMaker's words; `properties` is what Describe would answer for its job."""

    name: str
    type: str
    status: str
    started_at: str
    ended_at: str | None = None
    reason: str | None = None
    properties: dict[str, Any] = field(default_factory=dict)


@dataclass
class Execution:
    """One run of a pipeline; `folder` holds a folder for each of its jobs, and the record."""

    arn: str
    folder: Path
    status: str
    started_at: str
    parameters: dict[str, Any]
    steps: list[StepRecord] = field(default_factory=list)
    ended_at: str | None = None
    reason: str | None = None

    def step(self, name: str) -> StepRecord:
        """The record of a step that ran."""
        return next(step for step in self.steps if step.name == name)

    def write(self) -> None:
        document = asdict(self) | {"folder": str(self.folder)}
        write_atomically(self.folder / _RECORD, (json.dumps(document, indent=2, default=str) + "\n").encode())


class _StepFailed(Exception):
    """A step ended the execution; the message is the reason."""


def run_pipeline(
    settings: Settings, pipeline: str, definition: dict[str, Any], given: Mapping[str, str], report: Report
) -> Execution:
    """Execute a definition (schema 2020-12-01) with the given parameters; the defaults stand for the rest.

    Returns the finished execution, whether it succeeded or not. Raises Refused, with nothing started, for parameters that
    do not fit, and for steps that cannot run on this machine.
    """
    aws.local_settings(settings)
    if definition.get("Version") != "2020-12-01":
        raise Refused(f"pipeline {pipeline}: definition version {definition.get('Version')!r}; allowed: '2020-12-01'")
    execution, scope = _begin(settings, pipeline, typed_parameters(definition.get("Parameters", []), given))
    _check(settings, definition["Steps"], scope)
    with alone(settings):
        _close_records(execution.folder.parent)
        _Runner(settings, execution, scope, report).run(definition["Steps"])
    return execution


def _begin(settings: Settings, pipeline: str, parameters: dict[str, Any]) -> tuple[Execution, Scope]:
    """A new execution, with nothing written yet, and what its steps can refer to."""
    identifier = secrets.token_hex(6)  # 12 characters, as SageMaker's are
    arn = f"arn:aws:sagemaker:{settings.aws.region}:{settings.aws.account}:pipeline/{pipeline}"
    folder = settings.build_path / "training" / identifier
    execution = Execution(f"{arn}/execution/{identifier}", folder, EXECUTING, _now(), parameters)
    variables = {
        "PipelineArn": arn,
        "PipelineName": pipeline,
        "PipelineExecutionArn": execution.arn,
        "PipelineExecutionId": identifier,
        "StartDateTime": execution.started_at,
        "CurrentDateTime": execution.started_at,
    }
    return execution, Scope(parameters, variables)


def _close_records(folder: Path) -> None:
    """A record that says Executing while we hold the lock was left by a killed command."""
    for path in folder.glob(f"*/{_RECORD}"):
        record = json.loads(path.read_text())
        if record["status"] == EXECUTING:
            write_atomically(path, (json.dumps(record | {"status": STOPPED}, indent=2) + "\n").encode())


class _Runner:
    def __init__(self, settings: Settings, execution: Execution, scope: Scope, report: Report) -> None:
        self._settings = settings
        self._execution = execution
        self._scope = scope
        self._report = report

    def run(self, steps: list[Step]) -> None:
        self._execution.write()
        self._report(f"execution {self._execution.arn}")
        try:
            self._run_all(steps)
            self._execution.status = SUCCEEDED
        except _StepFailed as error:
            self._execution.status, self._execution.reason = FAILED, str(error)
        except BaseException:
            self._execution.status = STOPPED
            raise
        finally:
            self._execution.ended_at = _now()
            self._execution.write()

    def _run_all(self, steps: list[Step]) -> None:
        for step in _in_order(steps):
            record = StepRecord(step["Name"], step["Type"], EXECUTING, _now())
            self._execution.steps.append(record)
            self._execution.write()
            self._report(f"{step['Name']}: {step['Type']}")
            started = time.monotonic()
            try:
                chosen = self._run(step, record)
                record.status = SUCCEEDED
            except (FerryError, BotoCoreError, ClientError, OSError) as error:
                record.status, record.reason = FAILED, str(error)
                raise _StepFailed(f"step {step['Name']}: {error}") from error
            except BaseException:
                record.status = STOPPED
                raise
            finally:
                record.ended_at = _now()
                self._execution.write()
                self._report(f"{step['Name']}: {record.status} after {time.monotonic() - started:.1f} s")
            self._run_all(chosen)

    def _run(self, step: Step, record: StepRecord) -> list[Step]:
        """Run one step; returns the steps that it chose to go on with."""
        if step["Type"] == "Condition":
            outcome = all(holds(each, self._scope) for each in step["Arguments"]["Conditions"])
            record.properties = {"Outcome": str(outcome)}
            self._scope.properties[step["Name"]] = record.properties
            self._report(f"  {outcome}")
            return list(step["Arguments"]["IfSteps" if outcome else "ElseSteps"])
        arguments = resolve(step.get("Arguments", {}), self._scope)
        if step["Type"] == "Fail":
            raise FerryError(arguments["ErrorMessage"])
        identifier = self._scope.execution["PipelineExecutionId"]
        job = StepJob(
            self._settings,
            f"pipelines-{identifier}-{step['Name']}",
            self._execution.folder / step["Name"],
            self._report,
        )
        job.folder.mkdir(parents=True, exist_ok=True)
        record.properties = _JOBS[step["Type"]][0](job, arguments)
        self._scope.properties[step["Name"]] = record.properties
        self._scope.property_files[step["Name"]] = processing.read_property_files(job, step, record.properties)
        return []


def _check(settings: Settings, steps: list[Step], scope: Scope) -> None:
    """Raises Refused with everything that cannot run on this machine, step by step."""
    found = [f"{step['Name']}: {problem}" for step in _walk(steps) for problem in _problems(settings, step, scope)]
    if found:
        raise Refused(
            "this pipeline cannot run on this machine; nothing was started:\n"
            + "\n".join(f"  - {each}" for each in found)
        )
    names = {step["Name"] for step in _walk(steps)}
    for step in _walk(steps):
        if missing := _needs(step) - names:
            raise Refused(f"{step['Name']}: refers to the step {min(missing)!r}; steps: {', '.join(sorted(names))}")
    list(_in_order(steps))


def _problems(settings: Settings, step: Step, scope: Scope) -> list[str]:
    kind = step["Type"]
    if kind not in _TYPES:
        return [f"a step of type {kind}; possible here: {', '.join(_TYPES)}"]
    if kind == "Condition":
        return [
            f"a condition of type {each}"
            for part in step["Arguments"]["Conditions"]
            for each in unknown_conditions(part)
        ]
    return _JOBS[kind][1](settings, resolve(step["Arguments"], scope, partly=True)) if kind in _JOBS else []


def _walk(steps: list[Step]) -> Iterator[Step]:
    """All steps, those inside conditions too."""
    for step in steps:
        yield step
        yield from _walk(_inner(step))


def _inner(step: Step) -> list[Step]:
    arguments = step["Arguments"] if step["Type"] == "Condition" else {}
    return [*arguments.get("IfSteps", []), *arguments.get("ElseSteps", [])]


def _needs(step: Step) -> set[str]:
    """Names of the steps that a step, or one inside it, waits for."""
    named = {str(path[1]) for path in references(step) if path[0] == "Steps"}
    depends = {name for each in _walk([step]) for name in each.get("DependsOn", [])}
    return (named | depends) - {each["Name"] for each in _walk([step])}


def _in_order(steps: list[Step]) -> Iterator[Step]:
    """Each step after those of the same list that it waits for; the list's own order where that leaves a choice."""
    # A step may wait for one inside a condition: then it waits for that condition.
    holder = {inner["Name"]: step["Name"] for step in steps for inner in _walk([step])}
    waiting = {step["Name"]: {holder[name] for name in _needs(step) if name in holder} for step in steps}
    done: set[str] = set()
    while waiting:
        ready = next((step for step in steps if step["Name"] in waiting and waiting[step["Name"]] <= done), None)
        if ready is None:
            raise Refused(f"the steps {', '.join(sorted(waiting))} wait for each other")
        del waiting[ready["Name"]]
        done.add(ready["Name"])
        yield ready


def _now() -> str:
    return f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%SZ}"
