"""The whole journey, once, on the embedded digits: real cdk, real training, both doors, every number of the report."""

import hashlib
import json
import os
import shlex
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from ferry import aws
from infra.release import read_release
from infra.settings import DATASETS_PREFIX, ROOT, Settings, load_settings
from tests.local_settings import write_settings


@dataclass(frozen=True)
class Journey:
    """A finished `ferry demo --keep`: both doors and the emulator are up."""

    settings: Settings
    output: Path
    printed: str

    @property
    def report(self) -> Any:
        return json.loads((self.output / "report.json").read_bytes())


def ferry(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("ferry")), "--env", str(path), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def settings_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_settings(tmp_path_factory.mktemp("demo"), name="demo", digits_epochs=6)


@pytest.fixture(scope="module")
def journey(settings_path: Path) -> Iterator[Journey]:
    """On a machine where an earlier version left a release."""
    output = settings_path.parent / "demo"
    left_over = load_settings(str(settings_path)).release_path
    left_over.parent.mkdir(parents=True)
    left_over.write_text('{"schema_version": 1}')
    try:
        finished = ferry(settings_path, "demo", "--data", "digits", "--keep", "--output", str(output))
        assert finished.returncode == 0, finished.stdout + finished.stderr
        yield Journey(load_settings(str(settings_path)), output, finished.stdout)
    finally:
        ferry(settings_path, "local", "down")


def post(url: str, body: bytes) -> Any:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


@pytest.mark.slow
def test_a_model_below_its_gate_ends_the_journey_with_1_and_leaves_nothing_running(tmp_path: Path) -> None:
    path = write_settings(tmp_path, name="weak", digits_epochs=1)
    finished = ferry(path, "demo", "--data", "digits", "--keep", "--output", str(tmp_path / "demo"))
    assert finished.returncode == 1
    assert "GATE_FAILED" in finished.stderr
    assert "is below 0.95 which is the gate of dataset digits and nothing was registered" in finished.stderr
    assert not any(json.loads(ferry(path, "local", "status", "--json").stdout)["pids"].values())
    assert not load_settings(str(path)).release_path.exists()


@pytest.mark.slow
def test_another_model_makes_the_same_journey_in_a_build_folder_of_its_own(tmp_path: Path) -> None:
    path, output = write_settings(tmp_path, name="second"), tmp_path / "demo"
    finished = ferry(path, "demo", "--model", "iris", "--output", str(output))
    assert finished.returncode == 0, finished.stdout + finished.stderr
    report = json.loads((output / "report.json").read_bytes())
    assert report["dataset"] == "iris"
    assert report["release_id"].startswith("iris-")
    assert len(set(report["accuracy"].values())) == 1
    assert min(report["accuracy"].values()) >= 0.9
    assert report["parity"]["max_abs_diff"] <= 1e-5
    assert (output / "request.csv").read_text() == "5.1,3.5,1.4,0.2\n"
    assert "curl -H 'Content-Type: text/csv'" in finished.stdout
    with Image.open(output / "report.png") as picture:
        assert picture.size[0] > 700
    assert not load_settings(str(path)).release_path.exists()
    second = load_settings(str(tmp_path / "build-iris" / path.name))
    assert second.model_dump(exclude={"model", "build_dir"}) == load_settings(str(path)).model_dump(
        exclude={"model", "build_dir"}
    )
    assert read_release(second.release_path).release_id == report["release_id"]


def test_a_model_without_a_folder_or_a_table_is_refused(tmp_path: Path) -> None:
    finished = ferry(write_settings(tmp_path), "demo", "--model", "roses", "--output", str(tmp_path / "demo"))
    assert finished.returncode == 2
    assert "--model roses: allowed: iris, mnist; a model is a folder in model_code/training" in finished.stderr
    assert not (tmp_path / "build-roses").exists()


def test_a_release_that_cannot_be_read_is_set_aside(journey: Journey) -> None:
    assert journey.settings.release_path.with_suffix(".unreadable").read_text() == '{"schema_version": 1}'


def test_every_number_of_the_report_holds(journey: Journey) -> None:
    report = journey.report
    assert report["dataset"] == "digits"
    assert set(report["accuracy"]) == {"training", "onnx", "sagemaker", "azure"}
    assert len(set(report["accuracy"].values())) == 1
    assert min(report["accuracy"].values()) >= 0.95
    assert 0 <= report["parity"]["max_abs_diff"] <= 1e-5
    assert report["release_id"] == read_release(journey.settings.release_path).release_id
    for door in ("sagemaker", "azure"):
        assert 0 < report["latency_ms"][door]["p50"] <= report["latency_ms"][door]["p99"]
    assert report["aws"]["endpoint_status"] == "InService"
    assert set(report["aws"]["stacks"].values()) == {"CREATE_COMPLETE"}
    assert report["azure"]["stack"] == journey.settings.stack("azure")


def test_the_picture_shows_fifty_digits(journey: Journey) -> None:
    with Image.open(journey.output / "report.png") as picture:
        assert picture.size[0] > 800
        assert len(np.unique(np.asarray(picture.convert("L")))) > 50


def test_the_emulated_account_holds_what_the_stacks_declare(journey: Journey) -> None:
    settings = journey.settings
    buckets = {bucket["Name"] for bucket in aws.client(settings, "s3").list_buckets()["Buckets"]}
    assert {settings.data_bucket, settings.artifact_bucket, settings.log_bucket} <= buckets
    roles = {role["RoleName"] for role in aws.client(settings, "iam").list_roles(MaxItems=1000)["Roles"]}
    assert {settings.role(purpose) for purpose in ("training", "pipeline", "hosting", "gateway", "trigger")} <= roles
    repositories = aws.client(settings, "ecr").describe_repositories()["repositories"]
    assert settings.repository in [repository["repositoryName"] for repository in repositories]
    sagemaker = aws.client(settings, "sagemaker")
    release = read_release(settings.release_path)
    # Beside the released model stands the candidate that the pipeline transformed the test set with.
    (model,) = (each for each in sagemaker.list_models()["Models"] if each["ModelName"].startswith(settings.endpoint))
    container = sagemaker.describe_model(ModelName=model["ModelName"])["PrimaryContainer"]
    assert container["ModelDataUrl"] == release.archive.uri
    assert container["Environment"]["FERRY_RELEASE_ID"] == release.release_id
    (configuration,) = sagemaker.list_endpoint_configs()["EndpointConfigs"]
    assert configuration["EndpointConfigName"].startswith(settings.endpoint)
    assert sagemaker.describe_endpoint(EndpointName=settings.endpoint)["EndpointStatus"] == "InService"
    apis = aws.client(settings, "apigateway").get_rest_apis()["items"]
    assert [api["name"] for api in apis] == [settings.prefix]


def test_the_manifest_went_up_after_every_file_that_it_names(journey: Journey) -> None:
    s3, settings = aws.client(journey.settings, "s3"), journey.settings
    listing = s3.list_objects_v2(Bucket=settings.data_bucket)["Contents"]
    written = {entry["Key"]: entry["LastModified"] for entry in listing}
    raw = s3.get_object(Bucket=settings.data_bucket, Key=settings.dataset_manifest)["Body"].read()
    version = settings.dataset_version(hashlib.sha256(raw).hexdigest())
    files = {f"{DATASETS_PREFIX}/{version}/{entry['path']}" for entry in json.loads(raw)["files"]}
    assert files < set(written)
    assert max(written[key] for key in files) <= written[settings.dataset_manifest] <= written[version]
    assert written[version] == max(written.values())


def test_a_request_of_sixteen_images_gets_the_same_answer_at_both_doors(journey: Journey, settings_path: Path) -> None:
    status = json.loads(ferry(settings_path, "local", "status", "--json").stdout)
    image = json.loads((journey.output / "request.json").read_bytes())["data"][0]
    body = json.dumps({"data": [image] * 16}).encode()
    answers = [post(url, body) for url in (status["doors"]["sagemaker"], status["doors"]["azure"])]
    assert answers[0] == answers[1]
    assert list(answers[0]) == ["digits"]
    assert len(answers[0]["digits"]) == 16


def test_status_names_urls_pids_and_the_release(journey: Journey, settings_path: Path) -> None:
    status = json.loads(ferry(settings_path, "local", "status", "--json").stdout)
    local = journey.settings.local
    assert local is not None
    assert status["doors"]["sagemaker"] == f"http://127.0.0.1:{local.sagemaker_port}/invocations"
    assert status["doors"]["azure"] == f"http://127.0.0.1:{local.azure_port}/api/classify"
    assert status["emulator"] == f"http://localhost:{local.emulator_port}"
    assert status["release_id"] == journey.report["release_id"]
    assert all(psutil.pid_exists(pid) for pids in status["pids"].values() for pid in pids)
    assert all(status["pids"].values())


def test_verify_finds_both_doors_in_agreement(journey: Journey, settings_path: Path) -> None:
    finished = ferry(settings_path, "verify", "--json")
    assert finished.returncode == 0, finished.stderr
    document = json.loads(finished.stdout)
    assert [door["problems"] for door in document["doors"]] == [[], []]
    assert {door["release_id"] for door in document["doors"]} == {document["release_id"]}


def test_the_printed_curl_command_works(journey: Journey, settings_path: Path) -> None:
    commands = [shlex.split(text) for text in journey.printed.splitlines() if text.strip().startswith("curl ")]
    assert [command[:3] for command in commands] == [["curl", "-H", "Content-Type: application/json"]] * 2
    for *_, option, data, url in commands:
        assert option == "--data-binary"
        assert data[0] == "@"
        assert list(post(url, Path(data[1:]).read_bytes())) == ["digits"]
    assert f"Both are up until: ferry --env {os.path.relpath(settings_path, ROOT)} local down" in journey.printed


@pytest.mark.slow
def test_a_service_that_was_killed_comes_back_and_down_leaves_nothing(journey: Journey, settings_path: Path) -> None:
    pids = json.loads(ferry(settings_path, "local", "status", "--json").stdout)["pids"]
    psutil.Process(pids["sagemaker"][0]).kill()
    assert json.loads(ferry(settings_path, "local", "status", "--json").stdout)["doors"]["azure"]
    again = ferry(settings_path, "local", "up")
    assert again.returncode == 0, again.stderr
    status = json.loads(ferry(settings_path, "local", "status", "--json").stdout)
    assert all(status["doors"].values())
    everything = {pid for each in (pids, status["pids"]) for owned in each.values() for pid in owned}
    assert ferry(settings_path, "local", "down").returncode == 0
    assert not any(psutil.pid_exists(pid) for pid in everything)
    assert ferry(settings_path, "local", "down").returncode == 0
    assert os.listdir(journey.output)
