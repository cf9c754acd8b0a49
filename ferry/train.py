"""Starts the deployed pipeline and follows an execution of it: steps, their status, the log of the job that runs."""

import hashlib
import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from botocore.exceptions import BotoCoreError

from ferry import aws
from ferry.console import Report
from ferry.errors import FerryError, Refused
from ferry.log_tail import LogTail
from ferry.pipeline import deployed_definition, start_parameters, uploaded_data
from infra.settings import Settings

# Kind of a step's job in ListPipelineExecutionSteps -> log group; its streams begin with the job's name.
_LOG_GROUPS = {
    "TrainingJob": "/aws/sagemaker/TrainingJobs",
    "ProcessingJob": "/aws/sagemaker/ProcessingJobs",
    "TransformJob": "/aws/sagemaker/TransformJobs",
}
_UNDER_WAY = ("Executing", "Stopping")
_PAUSE_SECONDS = 5.0


def start(
    settings: Settings,
    dataset: str,
    given: Mapping[str, str],
    *,
    again: bool,
    report: Report,
    connect: aws.Connect = aws.client,
) -> str:
    """Start the deployed pipeline on the data that were uploaded last; returns the execution's ARN.

    The same data, parameters and definition start one execution however often they are sent: SageMaker answers a repeated
    ClientRequestToken with the execution that it belongs to. `again` starts another one. Raises Refused where no pipeline is
    deployed, no data is there, or a parameter does not fit.
    """
    sagemaker = connect(settings, "sagemaker")
    definition = deployed_definition(settings, sagemaker)
    data = uploaded_data(settings, connect(settings, "s3"), dataset)
    declared = [each["Name"] for each in definition["Parameters"]]
    if unknown := [name for name in given if name not in declared]:
        raise Refused(f"the pipeline has no parameter {unknown[0]!r}; it has: {', '.join(sorted(declared))}")
    parameters = start_parameters(settings, definition, data, given)
    identity = json.dumps([data.manifest_sha256, parameters, definition], sort_keys=True)
    token = secrets.token_hex(32) if again else hashlib.sha256(identity.encode()).hexdigest()
    arn: str = sagemaker.start_pipeline_execution(
        PipelineName=settings.pipeline,
        PipelineParameters=[{"Name": name, "Value": value} for name, value in sorted(parameters.items())],
        PipelineExecutionDescription=f"ferry train on {data.dataset}, manifest {data.manifest_sha256[:12]}",
        ClientRequestToken=token,
    )["PipelineExecutionArn"]
    report(f"execution {arn}")
    return arn


def newest_execution(settings: Settings, connect: aws.Connect = aws.client) -> str:
    """The ARN of the pipeline's newest execution, whoever started it. Raises Refused where there is none."""
    answer = connect(settings, "sagemaker").list_pipeline_executions(
        PipelineName=settings.pipeline, SortBy="CreationTime", SortOrder="Descending", MaxResults=1
    )
    if not answer["PipelineExecutionSummaries"]:
        raise Refused(f"pipeline {settings.pipeline} was never started; ferry data upload or ferry train starts it")
    return str(answer["PipelineExecutionSummaries"][0]["PipelineExecutionArn"])


def follow(
    settings: Settings, arn: str, report: Report, *, connect: aws.Connect = aws.client, pause: float = _PAUSE_SECONDS
) -> None:
    """Report what an execution does until it has succeeded; looks every `pause` seconds.

    Interrupted, the execution goes on, and that is said. Raises FerryError with the reason of the step that failed.
    """
    view = _View(connect(settings, "sagemaker"), connect(settings, "logs"), arn, report)
    try:
        while (status := view.look()) in _UNDER_WAY:
            time.sleep(pause)
    except (KeyboardInterrupt, BotoCoreError):
        report(f"{arn} goes on by itself; to see it again: ferry train --follow {arn}")
        raise
    if status != "Succeeded":
        raise FerryError(f"{arn}: {status}: {view.reason()}")


@dataclass
class _View:
    """What was seen of one execution so far, so that every line is reported once."""

    sagemaker: Any
    logs: Any
    arn: str
    report: Report
    seen: dict[str, str] = field(default_factory=dict)
    tails: dict[str, LogTail] = field(default_factory=dict)

    def look(self) -> str:
        """Report what is new; returns the execution's status."""
        status: str = self.sagemaker.describe_pipeline_execution(PipelineExecutionArn=self.arn)[
            "PipelineExecutionStatus"
        ]
        # In this order: a step that ended in between is still reported before the execution's end is told.
        for step in self._steps():
            self._report(step)
        return status

    def reason(self) -> str:
        failed = [
            f"step {step['StepName']}: {step.get('FailureReason', 'no reason given')}"
            for step in self._steps()
            if step["StepStatus"] == "Failed"
        ]
        described = self.sagemaker.describe_pipeline_execution(PipelineExecutionArn=self.arn)
        return "\n".join(failed) or described.get("FailureReason") or "no step failed"

    def _steps(self) -> list[dict[str, Any]]:
        pages = self.sagemaker.get_paginator("list_pipeline_execution_steps").paginate(
            PipelineExecutionArn=self.arn, SortOrder="Ascending"
        )
        return [step for page in pages for step in page["PipelineExecutionSteps"]]

    def _report(self, step: dict[str, Any]) -> None:
        name, status = step["StepName"], step["StepStatus"]
        changed, ended = status != self.seen.get(name), "EndTime" in step
        if changed and not ended:
            self.report(f"{name}: {status}")
        self._tail(step)
        if changed and ended:
            self.report(f"{name}: {status}{_took(step)}{_outcome(step)}")
        self.seen[name] = status

    def _tail(self, step: dict[str, Any]) -> None:
        for kind, group in _LOG_GROUPS.items():
            job = step.get("Metadata", {}).get(kind, {}).get("Arn", "").rpartition("/")[2]
            # A result out of the cache has the job of another execution, whose log was told there.
            if job and "CacheHitResult" not in step:
                tail = self.tails.setdefault(job, LogTail(self.logs, group, f"{job}/", self.report))
                if self.seen.get(step["StepName"]) in (None, "Starting", "Executing"):
                    tail.look()


def _took(step: dict[str, Any]) -> str:
    if "StartTime" not in step or "EndTime" not in step:
        return ""
    return f" after {(step['EndTime'] - step['StartTime']).total_seconds():.0f} s"


def _outcome(step: dict[str, Any]) -> str:
    metadata = step.get("Metadata", {})
    if "CacheHitResult" in step:
        return f", taken from {step['CacheHitResult']['SourcePipelineExecutionArn']}"
    if "Condition" in metadata:
        return f", {metadata['Condition'].get('Outcome', '')}"
    if "RegisterModel" in metadata:
        return f", {metadata['RegisterModel'].get('Arn', '')}"
    return ""
