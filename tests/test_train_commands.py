"""`ferry train` starts the deployed pipeline once for the same data and tells what its execution does.

SageMaker and CloudWatch Logs are a scripted server that answers in their JSON protocol, as the API references show it: the
emulator's executions end the moment they start, so nothing could be followed there. botocore signs, parses and pages as ever.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import boto3
import pytest

from ferry.errors import FerryError, Refused
from ferry.train import follow, newest_execution, start
from infra.settings import ROOT, Settings, load_settings
from tests.local_settings import write_settings
from tests.scripted_server import Reply, Server, scripted

ARN = "arn:aws:sagemaker:eu-west-1:111122223333:pipeline/modelferry-dev-mnist/execution/abcdefghijkl"
JOB = "pipelines-abcdefghijkl-Train-Ab12Cd34Ef"
MANIFEST = json.dumps({"schema_version": 2, "dataset": "mnist", "files": []}).encode()
SHA256 = hashlib.sha256(MANIFEST).hexdigest()
DEFINITION = {
    "Version": "2020-12-01",
    "Parameters": [
        {"Name": name, "Type": "String", "DefaultValue": ""}
        for name in ("Dataset", "DatasetVersion", "Gate", "Epochs", "ApprovalStatus")
    ],
    "Steps": [],
}
Connect = Callable[[Settings, str], Any]


def connect_to(server: Server) -> Connect:
    """Clients of the real kind that reach the scripted server."""

    def connect(settings: Settings, service: str) -> Any:
        given = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": settings.aws.region}
        return boto3.client(service, endpoint_url=server.url, **given)

    return connect


def answer(document: Mapping[str, Any]) -> Reply:
    return Reply(200, json.dumps(document).encode(), {"Content-Type": "application/x-amz-json-1.1"})


def refusal(code: str, message: str) -> Reply:
    body = json.dumps({"__type": code, "message": message}).encode()
    return Reply(400, body, {"Content-Type": "application/x-amz-json-1.1"})


def execution(status: str, **more: Any) -> Reply:
    return answer({"PipelineExecutionArn": ARN, "PipelineExecutionStatus": status, **more})


def steps(*each: dict[str, Any]) -> Reply:
    return answer({"PipelineExecutionSteps": list(each)})


def step(name: str, status: str, **more: Any) -> dict[str, Any]:
    times = {"StartTime": 1_770_000_000.0} | ({"EndTime": 1_770_000_042.0} if status in ("Succeeded", "Failed") else {})
    return {"StepName": name, "StepStatus": status, **times, **more}


def train_step(status: str, **more: Any) -> dict[str, Any]:
    arn = f"arn:aws:sagemaker:eu-west-1:111122223333:training-job/{JOB}"
    return step("Train", status, Metadata={"TrainingJob": {"Arn": arn}}, **more)


def events(token: str, *messages: str) -> Reply:
    listed = [{"timestamp": 1, "message": message, "ingestionTime": 1} for message in messages]
    return answer({"events": listed, "nextForwardToken": token, "nextBackwardToken": "b"})


STREAMS = answer({"logStreams": [{"logStreamName": f"{JOB}/algo-1-1770000000"}]})


@pytest.fixture
def settings() -> Settings:
    return load_settings("dev")


def watch(settings: Settings, replies: Mapping[str, Sequence[Reply]]) -> list[str]:
    """Follow the execution to its end; returns what was reported. Raises as `follow` does."""
    said: list[str] = []
    with scripted(replies) as server:
        follow(settings, ARN, said.append, connect=connect_to(server), pause=0)
    return said


def started(settings: Settings, **options: Any) -> tuple[list[dict[str, Any]], str]:
    """Start twice with the same options; returns both requests and the ARN."""
    key = f"GET /{settings.data_bucket}/{settings.dataset_manifest}"
    replies = {
        "DescribePipeline": [answer({"PipelineDefinition": json.dumps(DEFINITION)})],
        key: [Reply(200, MANIFEST)],
        "StartPipelineExecution": [answer({"PipelineExecutionArn": ARN})],
    }
    given = {"given": {}, "again": False} | options
    with scripted(replies) as server:
        arns = {start(settings, "mnist", report=lambda _: None, connect=connect_to(server), **given) for _ in range(2)}
        requests = [
            json.loads(asked.body)
            for asked in server.asked
            if asked.headers.get("X-Amz-Target") == "SageMaker.StartPipelineExecution"
        ]
    (arn,) = arns
    return requests, arn


def parameters(request: dict[str, Any]) -> dict[str, str]:
    return {each["Name"]: each["Value"] for each in request["PipelineParameters"]}


def test_an_execution_is_started_with_the_manifest_gate_and_hyperparameters(settings: Settings) -> None:
    (request, _), arn = started(settings, given={"Epochs": "3"})
    assert arn == ARN
    assert request["PipelineName"] == settings.pipeline
    assert parameters(request) == {
        "Dataset": "mnist",
        "DatasetVersion": settings.dataset_version(SHA256),
        "Gate": str(settings.datasets["mnist"].gate),
        "Epochs": "3",
    }


def test_the_same_data_and_parameters_carry_the_same_token_and_others_another(settings: Settings) -> None:
    (first, second), _ = started(settings)
    assert first["ClientRequestToken"] == second["ClientRequestToken"]
    (other, _), _ = started(settings, given={"Epochs": "3"})
    assert other["ClientRequestToken"] != first["ClientRequestToken"]
    (once, again), _ = started(settings, again=True)
    assert len({once["ClientRequestToken"], again["ClientRequestToken"], first["ClientRequestToken"]}) == 3
    assert 32 <= len(first["ClientRequestToken"]) <= 128


def test_an_unknown_parameter_is_refused_before_anything_starts(settings: Settings) -> None:
    with pytest.raises(Refused, match="no parameter 'Speed'; it has: ApprovalStatus, Dataset, DatasetVersion, Epochs"):
        started(settings, given={"Speed": "1"})


def test_a_missing_pipeline_says_what_deploys_it(settings: Settings) -> None:
    replies = {"DescribePipeline": [refusal("ResourceNotFound", "Pipeline does not exist")]}
    with scripted(replies) as server, pytest.raises(Refused, match="cdk deploy Foundation Training"):
        start(settings, "mnist", {}, again=False, report=lambda _: None, connect=connect_to(server))


def test_steps_are_told_with_status_and_time_and_the_log_line_by_line(settings: Settings) -> None:
    register = {"RegisterModel": {"Arn": "arn:package/7"}}
    said = watch(
        settings,
        {
            "DescribePipelineExecution": [execution("Executing"), execution("Executing"), execution("Succeeded")],
            "ListPipelineExecutionSteps": [
                steps(train_step("Executing")),
                steps(train_step("Executing")),
                steps(
                    train_step("Succeeded"),
                    step("CheckAccuracy", "Succeeded", Metadata={"Condition": {"Outcome": "True"}}),
                    step("Register", "Succeeded", Metadata=register),
                ),
            ],
            "DescribeLogStreams": [STREAMS],
            "GetLogEvents": [
                events("f/1", "epoch 1/2\n"),
                events("f/1"),
                events("f/2", "epoch 2/2"),
                events("f/2"),
                events("f/2"),
            ],
        },
    )
    assert said == [
        "Train: Executing",
        "  epoch 1/2",
        "  epoch 2/2",
        "Train: Succeeded after 42 s",
        "CheckAccuracy: Succeeded after 42 s, True",
        "Register: Succeeded after 42 s, arn:package/7",
    ]


def test_a_failed_execution_raises_the_reason_of_its_step(settings: Settings) -> None:
    reason = "AlgorithmError: channel 'training' has no images-idx3"
    with pytest.raises(FerryError) as failed:
        watch(
            settings,
            {
                "DescribePipelineExecution": [execution("Failed", FailureReason="Step failure: see the steps")],
                "ListPipelineExecutionSteps": [steps(train_step("Failed", FailureReason=reason))],
                "DescribeLogStreams": [refusal("ResourceNotFoundException", "The specified log group does not exist.")],
            },
        )
    assert str(failed.value) == f"{ARN}: Failed: step Train: {reason}"


def test_a_stopped_execution_is_no_success(settings: Settings) -> None:
    with pytest.raises(FerryError, match="Stopped"):
        watch(
            settings,
            {"DescribePipelineExecution": [execution("Stopped")], "ListPipelineExecutionSteps": [steps()]},
        )


def test_a_log_that_may_not_be_read_is_said_once_and_ends_nothing(settings: Settings) -> None:
    said = watch(
        settings,
        {
            "DescribePipelineExecution": [execution("Executing"), execution("Executing"), execution("Succeeded")],
            "ListPipelineExecutionSteps": [
                steps(train_step("Executing")),
                steps(train_step("Executing")),
                steps(train_step("Succeeded")),
            ],
            "DescribeLogStreams": [
                refusal("AccessDeniedException", "not authorized to perform logs:DescribeLogStreams")
            ],
        },
    )
    assert len([line for line in said if "may not be read" in line]) == 1
    assert said[-1] == "Train: Succeeded after 42 s"


def test_a_cached_step_says_whose_result_it_takes_and_its_old_log_is_not_told(settings: Settings) -> None:
    said = watch(
        settings,
        {
            "DescribePipelineExecution": [execution("Succeeded")],
            "ListPipelineExecutionSteps": [
                steps(train_step("Succeeded", CacheHitResult={"SourcePipelineExecutionArn": "arn:earlier"}))
            ],
        },
    )
    assert said == ["Train: Succeeded after 42 s, taken from arn:earlier"]


def test_the_newest_execution_is_found_and_its_absence_said(settings: Settings) -> None:
    listed = {"PipelineExecutionSummaries": [{"PipelineExecutionArn": ARN, "PipelineExecutionStatus": "Executing"}]}
    replies = {"ListPipelineExecutions": [answer(listed), answer({"PipelineExecutionSummaries": []})]}
    with scripted(replies) as server:
        assert newest_execution(settings, connect_to(server)) == ARN
        with pytest.raises(Refused, match="was never started"):
            newest_execution(settings, connect_to(server))


_FOLLOWER = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored below a shell's background job, these tests' too
from ferry.train import follow
from infra.settings import load_settings
from tests.scripted_server import Server
from tests.test_train_commands import ARN, connect_to
follow(load_settings("dev"), ARN, lambda line: print(line, flush=True), connect=connect_to(Server(sys.argv[1])))
"""


def test_an_interrupt_ends_the_watching_only_and_says_how_to_go_on(settings: Settings) -> None:
    replies = {
        "DescribePipelineExecution": [execution("Executing")],
        "ListPipelineExecutionSteps": [steps(step("Preprocess", "Executing"))],
    }
    with scripted(replies) as server:
        command = [sys.executable, "-c", _FOLLOWER, server.url]
        follower = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert follower.stdout is not None
        assert follower.stdout.readline() == "Preprocess: Executing\n"
        os.kill(follower.pid, signal.SIGINT)
        rest, _ = follower.communicate(timeout=60)
        assert f"ferry train --follow {ARN}" in rest
        assert follower.returncode != 0
        assert "StopPipelineExecution" not in {request.headers.get("X-Amz-Target") for request in server.asked}


def ferry(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("ferry")), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "ferry train --local runs its steps on this machine"),
        (["--once"], "ferry train --local runs its steps on this machine"),
        (["--local", "--once"], "give one of them"),
        (["--follow", "--parameter", "Epochs=1"], "--follow starts nothing"),
        (["--local", "--again"], "--again is for the deployed pipeline"),
        (["--local", "--parameter", "Epochs"], "'Epochs' is not NAME=VALUE"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, arguments: list[str], problem: str) -> None:
    finished = ferry("--env", str(write_settings(tmp_path)), "train", *arguments)
    assert finished.returncode == 2
    assert problem in finished.stderr
