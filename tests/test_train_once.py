"""`ferry train --once`: one training job through the SageMaker SDK, with what the deployed pipeline's Train step says.

The SDK is an extra that the project's own environment does not have; the test that needs it is skipped there. moto takes its
request and calls the job completed at once, so nothing is trained here.
"""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ferry import train_once
from ferry.errors import Refused
from infra.settings import Settings
from tests.emulated_training import Account, definition, deploy, emulated, fresh_account, upload_images

# What the SDK cannot be told, or carries in a way of its own: the code, and the name of the job.
_THE_SDKS_OWN = {"AlgorithmSpecification", "HyperParameters", "InputDataConfig", "TrainingJobName"}


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    with emulated(tmp_path_factory.mktemp("once")) as settings:
        yield settings


@pytest.fixture
def account(emulator: Settings, tmp_path: Path) -> Account:
    return fresh_account(emulator, tmp_path)


def test_the_arguments_are_those_of_the_train_step_with_an_output_of_their_own(account: Account) -> None:
    upload_images(account)
    deploy(account)
    arguments = train_once.training_arguments(account.settings, "mnist", {"Epochs": "2"})
    (step,) = [each for each in definition(account)["Steps"] if each["Name"] == "Train"]
    assert set(arguments) == set(step["Arguments"])
    assert arguments["HyperParameters"]["epochs"] == "2"
    assert arguments["OutputDataConfig"]["S3OutputPath"].startswith(
        f"s3://{account.settings.artifact_bucket}/training/once-"
    )
    assert "Get" not in json.dumps(arguments)


def test_a_train_step_that_needs_another_step_is_refused(account: Account) -> None:
    upload_images(account)
    document = definition(account)
    document["Steps"][0]["Arguments"]["RoleArn"] = {"Get": "Steps.Preprocess.RoleArn"}
    account.client("sagemaker").create_pipeline(
        PipelineName=account.settings.pipeline,
        PipelineDefinition=json.dumps(document),
        RoleArn="arn:aws:iam::123456789012:role/pipeline",
        ClientRequestToken="t" * 32,
    )
    with pytest.raises(Refused, match="--once runs Train alone"):
        train_once.training_arguments(account.settings, "mnist", {})


def test_the_sdk_sends_the_same_request(account: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer_type = pytest.importorskip("sagemaker.train", exc_type=ImportError).ModelTrainer
    from sagemaker.core.helper.session_helper import Session

    upload_images(account)
    deploy(account)
    settings = account.settings
    assert settings.local is not None
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://localhost:{settings.local.emulator_port}")
    monkeypatch.setenv("SAGEMAKER_VALIDATE_ROLE", "false")
    session: Any = Session(default_bucket=settings.artifact_bucket, default_bucket_prefix="training")
    arguments = train_once.training_arguments(settings, "mnist", {})
    trainer = train_once.model_trainer(settings, trainer_type, arguments, tmp_path, session)
    sent = json.loads(json.dumps(trainer._create_training_job_args(boto3=True), default=str))
    assert {name for name in {*sent, *arguments} if sent.get(name) != arguments.get(name)} == _THE_SDKS_OWN
    assert sent["HyperParameters"] == {
        name: value for name, value in arguments["HyperParameters"].items() if not name.startswith("sagemaker_")
    }
    channels = {each["ChannelName"]: each["DataSource"] for each in sent["InputDataConfig"]}
    assert {
        each["ChannelName"]: each["DataSource"] for each in arguments["InputDataConfig"]
    }.items() <= channels.items()
    assert (tmp_path / arguments["HyperParameters"]["sagemaker_program"]).is_file()
    assert sent["AlgorithmSpecification"]["TrainingImage"] == arguments["AlgorithmSpecification"]["TrainingImage"]


@pytest.mark.skipif(importlib.util.find_spec("sagemaker") is not None, reason="the SDK is here")
def test_without_the_sdk_it_says_how_to_install_it(account: Account) -> None:
    with pytest.raises(Refused, match=r"pip install '.\[local,sagemaker\]'"):
        train_once.train_once(account.settings, "mnist", {}, print)
