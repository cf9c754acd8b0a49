"""`ferry train --local` runs the pipeline's own definition: what its steps make, what it refuses, what a kill leaves.

The emulator is moto's server: it keeps objects, pipelines, models and model packages, and gives them back as they were.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ferry import processes, registry
from ferry.errors import Refused
from ferry.pipeline_runner import Execution, run_pipeline
from ferry.steps.job import mark
from ferry.train_local import train_locally
from infra.aws.image import image_uri
from infra.settings import DATASETS_PREFIX, MANIFEST_FILE, ROOT, Settings
from tests.emulated_training import (
    Account,
    definition,
    deploy,
    emulated,
    ferry,
    fresh_account,
    upload_files,
    upload_images,
)
from tests.idx_files import digit_like
from tests.serving_models import log_probabilities, write_artifact

STEPS = ["Train", "Evaluate", "CheckAccuracy", "Register", "CreateModel", "Transform"]


def silent(_: str) -> None:
    return None


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    with emulated(tmp_path_factory.mktemp("pipeline")) as settings:
        yield settings


@pytest.fixture
def account(emulator: Settings, tmp_path: Path) -> Account:
    return fresh_account(emulator, tmp_path)


@pytest.fixture(scope="module")
def trained(emulator: Settings, tmp_path_factory: pytest.TempPathFactory) -> tuple[Account, Execution, str]:
    """The pipeline of the settings, with AWS's image in script mode, run once; and the sha256 of its data's manifest.

    Before its first job reads anything, other data of the same dataset are uploaded.
    """
    account = fresh_account(emulator, tmp_path_factory.mktemp("trained"))
    manifest = upload_images(account)
    deploy(account)

    def upload_more(line: str) -> None:
        if line == "Train: Training":
            assert upload_images(account, train=200, test=40) != manifest

    execution = train_locally(account.settings, "mnist", {"Gate": "0.1"}, upload_more)
    assert execution.status == "Succeeded", execution.reason
    return account, execution, manifest


def run(account: Account, *steps: dict[str, Any], given: dict[str, str] | None = None, **declared: Any) -> Execution:
    """Run a definition of these steps and parameters, each `name=(type, default)`."""
    parameters = [{"Name": name, "Type": kind, "DefaultValue": value} for name, (kind, value) in declared.items()]
    document = {"Version": "2020-12-01", "Metadata": {}, "Parameters": parameters, "Steps": list(steps)}
    return run_pipeline(account.settings, "small", document, given or {}, silent)


def get(path: str) -> dict[str, str]:
    return {"Get": path}


def fail(name: str, *words: Any) -> dict[str, Any]:
    return {
        "Name": name,
        "Type": "Fail",
        "Arguments": {"ErrorMessage": {"Std:Join": {"On": " ", "Values": list(words)}}},
    }


def decide(condition: dict[str, Any]) -> dict[str, Any]:
    arguments = {"Conditions": [condition], "IfSteps": [fail("Yes", "yes")], "ElseSteps": [fail("No", "no")]}
    return {"Name": "Decide", "Type": "Condition", "Arguments": arguments}


def compare(kind: str, left: Any, right: Any) -> dict[str, Any]:
    return {"Type": kind, "LeftValue": left, "RightValue": right}


def model(account: Account, name: str, artifact: Any, **environment: Any) -> dict[str, Any]:
    container = {"Image": image_uri(account.settings), "ModelDataUrl": artifact, "Environment": environment}
    role = "arn:aws:iam::123456789012:role/evaluation"
    return {"Name": name, "Type": "Model", "Arguments": {"ExecutionRoleArn": role, "PrimaryContainer": container}}


def test_every_step_of_the_definition_runs_in_its_order(trained: tuple[Account, Execution, str]) -> None:
    _, execution, _ = trained
    assert [step.name for step in execution.steps] == STEPS
    assert {step.status for step in execution.steps} == {"Succeeded"}


def test_what_the_steps_made_lies_below_the_execution_in_s3(trained: tuple[Account, Execution, str]) -> None:
    account, execution, _ = trained
    below = f"training/{execution.folder.name}"
    job = execution.step("Train").properties["TrainingJobName"]
    assert set(account.keys(account.settings.artifact_bucket)) == {
        f"{below}/train/{job}/output/model.tar.gz",
        f"{below}/train/{job}/output/output.tar.gz",
        f"{below}/evaluate/evaluation/evaluation.json",
        f"{below}/evaluate/requests/part-00000.npy",
        f"{below}/transform/part-00000.npy.out",
    }


def test_the_jobs_saw_the_documented_layout(trained: tuple[Account, Execution, str]) -> None:
    _, execution, _ = trained
    train, evaluate = execution.folder / "Train", execution.folder / "Evaluate"
    configuration = train / "input" / "config"
    assert json.loads((configuration / "hyperparameters.json").read_text())["epochs"] == "1"
    assert set(json.loads((configuration / "inputdataconfig.json").read_text())) >= {"training", "testing"}
    assert json.loads((configuration / "resourceconfig.json").read_text())["hosts"] == ["algo-1"]
    assert (train / "code" / "requirements.txt").is_file()
    assert (evaluate / "processing" / "input" / "model" / "model.tar.gz").is_file()
    assert (evaluate / "config" / "processingjobconfig.json").is_file()


def test_the_registered_version_names_data_execution_and_evaluation(trained: tuple[Account, Execution, str]) -> None:
    account, execution, manifest = trained
    (package,) = registry.list_packages(account.settings)
    assert package.approval == "PendingManualApproval"
    assert package.data_manifest_sha256 == manifest
    assert package.execution == execution.arn
    assert package.dataset == "mnist"
    assert package.source_revision == "sha256:s"
    metrics = {each["MetricName"]: each["Value"] for each in execution.step("Train").properties["FinalMetricDataList"]}
    assert registry.evaluated_accuracy(account.settings, package) == pytest.approx(metrics["test:accuracy"], abs=5e-5)


def test_an_upload_during_an_execution_changes_nothing_of_what_it_reads(
    trained: tuple[Account, Execution, str],
) -> None:
    account, execution, manifest = trained
    s3, settings = account.client("s3"), account.settings
    newest = s3.get_object(Bucket=settings.data_bucket, Key=settings.dataset_manifest)["Body"].read()
    assert hashlib.sha256(newest).hexdigest() != manifest
    read = {
        "train": execution.folder / "Train" / "input" / "data" / "training",
        "test": execution.folder / "Evaluate" / "processing" / "input" / "testing",
    }
    prefix = f"{DATASETS_PREFIX}/{settings.dataset_version(manifest)}"
    named = json.loads(s3.get_object(Bucket=settings.data_bucket, Key=f"{prefix}/{MANIFEST_FILE}")["Body"].read())
    assert {
        f"{folder}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest()
        for folder, below in read.items()
        for path in below.iterdir()
    } == {entry["path"]: entry["sha256"] for entry in named["files"]}
    (package,) = registry.list_packages(settings)
    assert package.data_manifest_sha256 == manifest


def test_the_batch_transform_answers_as_the_evaluation_counted(trained: tuple[Account, Execution, str]) -> None:
    account, execution, _ = trained
    key = f"training/{execution.folder.name}/transform/part-00000.npy.out"
    body = account.client("s3").get_object(Bucket=account.settings.artifact_bucket, Key=key)["Body"].read()
    _, truth = digit_like(60, seed=60)
    (package,) = registry.list_packages(account.settings)
    right = float(np.mean(np.asarray(json.loads(body)["digits"]) == truth))
    assert right == pytest.approx(registry.evaluated_accuracy(account.settings, package))


def test_the_execution_is_recorded_below_the_build_folder(trained: tuple[Account, Execution, str]) -> None:
    account, execution, _ = trained
    assert execution.folder.parent == account.settings.build_path / "training"
    record = json.loads((execution.folder / "execution.json").read_text())
    assert (record["arn"], record["status"], record["parameters"]["Gate"]) == (execution.arn, "Succeeded", 0.1)
    assert [step["name"] for step in record["steps"]] == STEPS


@pytest.mark.slow
def test_a_model_below_the_gate_is_not_registered_and_the_reason_has_the_number(account: Account) -> None:
    upload_images(account, train=64)  # one step, which is too little for all 60 labels
    deploy(account, own_image=True)
    execution = train_locally(account.settings, "mnist", {"Gate": "1.0"}, silent)
    assert execution.status == "Failed"
    assert [step.name for step in execution.steps] == ["Train", "Evaluate", "CheckAccuracy", "BelowGate"]
    evaluation = json.loads(
        (execution.folder / "Evaluate" / "processing" / "evaluation" / "evaluation.json").read_text()
    )
    accuracy = evaluation["multiclass_classification_metrics"]["accuracy"]["value"]
    assert f"accuracy {accuracy} is below 1.0" in str(execution.reason)
    assert registry.list_packages(account.settings) == []


def test_a_failing_job_ends_the_execution_with_the_text_of_its_failure_file(account: Account) -> None:
    upload_images(account)
    deploy(account)
    execution = train_locally(account.settings, "mnist", {"Epochs": "many"}, silent)
    assert execution.status == "Failed"
    assert [(step.name, step.status) for step in execution.steps] == [("Train", "Failed")]
    assert "hyperparameter epochs: found 'many'" in str(execution.reason)
    assert account.keys(account.settings.artifact_bucket) == []


def test_what_cannot_run_here_is_refused_by_name_and_nothing_starts(account: Account) -> None:
    document = definition(account)
    train, evaluate, _ = document["Steps"]
    train["Arguments"]["ResourceConfig"]["InstanceCount"] = 2
    train["Arguments"]["AlgorithmSpecification"]["TrainingInputMode"] = "Pipe"
    evaluate["Arguments"]["AppSpecification"]["ImageUri"] = "example.com/other:1"
    document["Steps"].append({"Name": "Search", "Type": "Tuning", "Arguments": {}})
    with pytest.raises(Refused) as refused:
        run_pipeline(account.settings, "p", document, {}, silent)
    for problem in (
        "Train: InstanceCount 2",
        "Train: TrainingInputMode Pipe",
        "Evaluate: image example.com/other:1",
        "Search: a step of type Tuning",
        "nothing was started",
    ):
        assert problem in str(refused.value)
    assert not account.settings.build_path.exists()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"Type": "Model", "DependsOn": ["B"]}, "wait for each other"),
        ({"Type": "Model", "DependsOn": ["Elsewhere"]}, "refers to the step 'Elsewhere'"),
    ],
)
def test_a_graph_that_cannot_be_walked_is_refused(account: Account, change: dict[str, Any], problem: str) -> None:
    second = model(account, "B", get("Steps.A.ModelName"))
    with pytest.raises(Refused, match=problem):
        run(account, model(account, "A", "s3://b/a") | change, second)
    assert not account.settings.build_path.exists()


def test_steps_wait_for_what_they_refer_to(account: Account) -> None:
    later = model(account, "Later", "s3://b/a", BASE=get("Steps.Earlier.ModelName"))
    execution = run(account, later, model(account, "Earlier", "s3://b/a"))
    assert [step.name for step in execution.steps] == ["Earlier", "Later"]
    name = execution.step("Later").properties["ModelName"]
    described = account.client("sagemaker").describe_model(ModelName=name)
    assert described["PrimaryContainer"]["Environment"] == {"BASE": execution.step("Earlier").properties["ModelName"]}


@pytest.mark.parametrize(
    ("condition", "answer"),
    [
        (compare("GreaterThanOrEqualTo", get("Parameters.Share"), 0.5), "yes"),
        (compare("GreaterThan", get("Parameters.Share"), 0.5), "no"),
        (compare("LessThan", get("Parameters.Count"), 4), "yes"),
        (compare("LessThanOrEqualTo", get("Parameters.Count"), 2), "no"),
        (compare("Equals", get("Parameters.Word"), "seven"), "yes"),
        ({"Type": "Not", "Expression": compare("Equals", get("Parameters.Flag"), True)}, "no"),
        ({"Type": "Or", "Conditions": [compare("Equals", 1, 2), compare("Equals", 1, 1)]}, "yes"),
        ({"Type": "In", "QueryValue": get("Parameters.Word"), "Values": ["six", "seven"]}, "yes"),
    ],
)
def test_conditions_choose_the_branch(account: Account, condition: dict[str, Any], answer: str) -> None:
    execution = run(
        account,
        decide(condition),
        Share=("Float", 0.5),
        Count=("Integer", 3),
        Word=("String", "seven"),
        Flag=("Boolean", "true"),
    )
    assert execution.reason == f"step {'Yes' if answer == 'yes' else 'No'}: {answer}"


def test_a_message_is_joined_from_parameters_and_execution_variables(account: Account) -> None:
    step = fail(
        "End", "of", get("Execution.PipelineName"), get("Parameters.Count"), get("Execution.PipelineExecutionId")
    )
    execution = run(account, step, given={"Count": "7"}, Count=("Integer", 1))
    assert execution.reason == f"step End: of small 7 {execution.folder.name}"


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"Speed": "1"}, "no parameter 'Speed'; it has: Count"),
        ({"Count": "1.5"}, "parameter Count: found '1.5'; allowed: a value of type Integer"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(account: Account, given: dict[str, str], problem: str) -> None:
    with pytest.raises(Refused, match=problem):
        run(account, fail("End", "x"), given=given, Count=("Integer", 1))


def test_a_reference_to_what_a_step_did_not_make_says_what_it_made(account: Account) -> None:
    execution = run(
        account,
        model(account, "A", "s3://b/a"),
        model(account, "B", get("Steps.A.Artifacts")),
    )
    assert "there is no 'Artifacts'; found: " in str(execution.reason)
    assert "ModelArn" in str(execution.reason)


def test_a_batch_transform_sends_line_by_line_and_keeps_their_order(account: Account, tmp_path: Path) -> None:
    settings, s3 = account.settings, account.client("s3")
    write_artifact(tmp_path / "model.tar.gz")
    s3.upload_file(str(tmp_path / "model.tar.gz"), settings.artifact_bucket, "m/model.tar.gz")
    inputs = np.random.default_rng(3).normal(size=(5, 1, 28, 28)).astype(np.float32)
    lines = [json.dumps({"data": inputs[[place]].tolist()}) for place in range(5)]
    s3.put_object(Bucket=settings.data_bucket, Key="hold-out/a/lines.jsonl", Body="\n".join(lines).encode())
    source = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": f"s3://{settings.data_bucket}/hold-out/"}}
    transform = {
        "Name": "Transform",
        "Type": "Transform",
        "Arguments": {
            "ModelName": get("Steps.Create.ModelName"),
            "BatchStrategy": "SingleRecord",
            "TransformInput": {"DataSource": source, "ContentType": "application/json", "SplitType": "Line"},
            "TransformOutput": {"S3OutputPath": f"s3://{settings.artifact_bucket}/said", "AssembleWith": "Line"},
            "TransformResources": {"InstanceType": "ml.m5.large", "InstanceCount": 1},
        },
    }
    execution = run(account, model(account, "Create", f"s3://{settings.artifact_bucket}/m/model.tar.gz"), transform)
    assert execution.status == "Succeeded", execution.reason
    said = s3.get_object(Bucket=settings.artifact_bucket, Key="said/a/lines.jsonl.out")["Body"].read().decode()
    digits = [json.loads(line)["digits"] for line in said.splitlines()]
    assert digits == [[label] for label in log_probabilities(inputs).argmax(axis=1).tolist()]
    assert processes.find(mark(settings)) == []


def test_data_of_another_dataset_are_refused_with_the_option_that_takes_them(account: Account) -> None:
    deploy(account)
    upload_files(account, {}, "digits")
    with pytest.raises(Refused, match="--dataset digits trains on it"):
        train_locally(account.settings, "mnist", {}, silent)


def test_without_data_or_pipeline_it_says_what_makes_them(account: Account) -> None:
    with pytest.raises(Refused, match="cdk deploy Foundation Training"):
        train_locally(account.settings, "mnist", {}, silent)
    deploy(account)
    with pytest.raises(Refused, match="ferry data upload"):
        train_locally(account.settings, "mnist", {}, silent)


@pytest.mark.slow
def test_an_interrupt_ends_the_job_with_its_execution(account: Account) -> None:
    upload_images(account)
    deploy(account)

    def interrupted(line: str) -> None:
        if "metrics epoch=1 " in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_locally(account.settings, "mnist", {"Epochs": "500"}, interrupted)
    assert processes.find(mark(account.settings)) == []
    (path,) = (account.settings.build_path / "training").glob("*/execution.json")
    record = json.loads(path.read_text())
    assert (record["status"], record["steps"][0]["status"]) == ("Stopped", "Stopped")
    assert account.keys(account.settings.artifact_bucket) == []


@pytest.mark.slow
def test_sigterm_ends_the_job_with_its_execution(emulator: Settings, tmp_path: Path) -> None:
    account = fresh_account(emulator, tmp_path)
    upload_images(account)
    deploy(account)
    options = ["train", "--local", "--parameter", "Gate=0.1", "--parameter", "Epochs=500"]
    command = [str(Path(sys.executable).with_name("ferry")), "--env", str(account.settings_path), *options]
    training = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert training.stdout is not None
    next(line for line in training.stdout if "metrics epoch=1 " in line)
    training.terminate()
    training.communicate(timeout=60)
    assert training.returncode == 130
    assert processes.find(mark(account.settings)) == []


@pytest.mark.slow
def test_a_killed_execution_leaves_nothing_that_runs_behind_the_next_one(emulator: Settings, tmp_path: Path) -> None:
    account = fresh_account(emulator, tmp_path)
    upload_images(account)
    deploy(account)
    options = ["train", "--local", "--parameter", "Gate=0.1", "--parameter"]
    command = [str(Path(sys.executable).with_name("ferry")), "--env", str(account.settings_path), *options]
    first = subprocess.Popen([*command, "Epochs=500"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    next(line for line in first.stdout if "metrics epoch=1 " in line)
    os.kill(first.pid, signal.SIGKILL)
    first.stdout.close()
    first.wait()
    left = processes.find(mark(account.settings))
    assert left  # the job goes on without its parent
    again = ferry(account, *options, "Epochs=1")
    assert again.exit_code == 0, again.stdout + again.stderr
    assert "Succeeded" in again.stdout
    records = (account.settings.build_path / "training").glob("*/execution.json")
    assert sorted(json.loads(path.read_text())["status"] for path in records) == ["Stopped", "Succeeded"]
    deadline = time.monotonic() + 30
    while any(process.is_running() and process.status() != "zombie" for process in left):
        assert time.monotonic() < deadline
        time.sleep(0.1)
