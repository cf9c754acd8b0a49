"""`ferry recommend`: the job that a release makes, what is told while it runs, and settings out of its answer.

SageMaker and S3 are scripted: no emulator knows Inference Recommender. The shapes are botocore's, the numbers those of the
Developer Guide's examples ("Get your inference recommendation job results", "Run a custom load test").
"""

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ferry import recommend
from ferry.cli import main
from ferry.errors import FerryError, Refused
from infra.settings import ROOT, Settings, load_settings
from tests.emulator_server import emulator_server
from tests.local_settings import write_settings
from tests.scripted_aws import answer, connect_to, make_bucket, refusal, sent
from tests.scripted_server import Reply, scripted
from tests.serving_models import write_model
from tests.test_invoke import release_here

PACKAGE = "arn:aws:sagemaker:eu-west-1:111122223333:model-package/modelferry-dev-mnist/3"
JOB = "modelferry-dev-20261121-120000-ab12"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """An account's environment with a current release that came from the registry."""
    path = tmp_path / "dev.toml"
    path.write_text(f'build_dir = "{tmp_path / "build"}"\n' + (ROOT / "config" / "dev.toml").read_text())
    settings = load_settings(str(path))
    write_model(tmp_path / "model")
    release_here(settings, {name: (tmp_path / "model" / name).read_bytes() for name in ("model.json", "model.onnx")})
    document = json.loads(settings.release_path.read_bytes()) | {"model_package": PACKAGE}
    settings.release_path.write_text(json.dumps(document))
    return settings


def started(settings: Settings, **options: Any) -> tuple[dict[str, Any], bytes]:
    """The CreateInferenceRecommendationsJob request, and the payload archive that it names."""
    with emulator_server() as url:
        s3 = connect_to(url)(settings, "s3")
        make_bucket(s3, settings.artifact_bucket)
        with scripted({"CreateInferenceRecommendationsJob": [answer({"JobArn": "arn:job"})]}) as sagemaker:
            scripted_services = connect_to(sagemaker)
            recommend.start(
                settings,
                lambda _: None,
                connect=lambda settings, service: s3 if service == "s3" else scripted_services(settings, service),
                **options,
            )
        (request,) = sent(sagemaker, "CreateInferenceRecommendationsJob")
        uri = request["InputConfig"]["ContainerConfig"]["PayloadConfig"]["SamplePayloadUrl"]
        key = uri.removeprefix(f"s3://{settings.artifact_bucket}/")
        return request, s3.get_object(Bucket=settings.artifact_bucket, Key=key)["Body"].read()


def test_a_default_job_takes_the_releases_package_and_its_golden_inputs(settings: Settings) -> None:
    request, payload = started(settings)
    assert request["JobType"] == "Default"
    assert request["InputConfig"]["ModelPackageVersionArn"] == PACKAGE
    assert request["RoleArn"] == "arn:aws:iam::111122223333:role/modelferry-dev-hosting-eu-west-1"
    container = request["InputConfig"]["ContainerConfig"]
    assert (container["Domain"], container["Task"]) == ("COMPUTER_VISION", "IMAGE_CLASSIFICATION")
    assert container["PayloadConfig"]["SamplePayloadUrl"].endswith("/sample-payload.tar.gz")
    # Below releases/, where the hosting role may read.
    assert f"/releases/{json.loads(settings.release_path.read_bytes())['release_id']}/" in str(container)
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(payload))) as archive:
        names = archive.getnames()
        whole = archive.extractfile("golden.json")
        assert whole is not None
        document = json.loads(whole.read())
    assert names == sorted(names)
    assert len(document["data"]) == len(names) - 1
    assert document["probabilities"] is True


def test_d5_the_name_of_a_job_is_said_before_it_is_started(settings: Settings) -> None:
    with emulator_server() as url:
        s3 = connect_to(url)(settings, "s3")
        make_bucket(s3, settings.artifact_bucket)
        with scripted({"CreateInferenceRecommendationsJob": [answer({"JobArn": "arn:job"})]}) as sagemaker:
            scripted_services = connect_to(sagemaker)
            said: list[tuple[str, int]] = []
            job = recommend.start(
                settings,
                lambda line: said.append((line, len(sent(sagemaker, "CreateInferenceRecommendationsJob")))),
                connect=lambda settings, service: s3 if service == "s3" else scripted_services(settings, service),
            )
    assert (f"job       {job}; to see it again: ferry recommend --follow {job}", 0) in said


def test_an_advanced_job_is_a_load_test_with_the_given_traffic(settings: Settings) -> None:
    phases = recommend.phases(["1:1:120", "2:3:300"])
    load_test = recommend.LoadTest(("ml.c6i.large", "ml.m5.large"), phases, 1000, 100)
    request, _ = started(settings, load_test=load_test, role="arn:aws:iam::111122223333:role/recommender")
    assert request["JobType"] == "Advanced"
    assert request["RoleArn"].endswith("/recommender")
    inputs = request["InputConfig"]
    assert inputs["EndpointConfigurations"] == [{"InstanceType": "ml.c6i.large"}, {"InstanceType": "ml.m5.large"}]
    assert inputs["TrafficPattern"]["Phases"][1] == {
        "InitialNumberOfUsers": 2,
        "SpawnRate": 3,
        "DurationInSeconds": 300,
    }
    assert inputs["ResourceLimit"] == {"MaxNumberOfTests": 2, "MaxParallelOfTests": 2}
    assert request["StoppingConditions"] == {
        "MaxInvocations": 1000,
        "ModelLatencyThresholds": [{"Percentile": "P95", "ValueInMilliseconds": 100}],
    }


def described(status: str, *recommended: dict[str, Any], **more: Any) -> Reply:
    times = {"CreationTime": 1.0, "LastModifiedTime": 1.0, "RoleArn": "arn:r", "InputConfig": {}}
    return answer({"JobName": JOB, "Status": status, "InferenceRecommendations": list(recommended), **times, **more})


def recommended(metrics: dict[str, float], **endpoint: Any) -> dict[str, Any]:
    configuration = {"EndpointName": "e", "VariantName": "v", **endpoint}
    return {"Metrics": metrics, "EndpointConfiguration": configuration, "ModelConfiguration": {}}


INSTANCE = recommended(
    {"CostPerHour": 0.204, "CostPerInference": 5.25e-06, "MaxInvocations": 648, "ModelLatency": 263_596},
    InstanceType="ml.c5.xlarge",
    InitialInstanceCount=1,
)
SERVERLESS = recommended(
    {"CostPerInference": 2.9e-06, "MaxInvocations": 655, "ModelLatency": 100_000, "CostPerHour": float("nan")},
    ServerlessConfig={"MemorySizeInMB": 2048, "MaxConcurrency": 10},
)


def steps(*states: tuple[str, str, str | None]) -> Reply:
    listed = [
        {
            "StepType": "BENCHMARK",
            "JobName": f"{JOB}-{place}",
            "Status": status,
            "InferenceBenchmark": {
                "EndpointConfiguration": {"EndpointName": "e", "VariantName": "v", "InstanceType": place},
                "ModelConfiguration": {},
                **({"FailureReason": why} if why else {}),
            },
        }
        for place, status, why in states
    ]
    return answer({"Steps": listed})


def watch(settings: Settings, replies: dict[str, list[Reply]]) -> tuple[list[recommend.Recommendation], list[str]]:
    said: list[str] = []
    with scripted(replies) as server:
        return recommend.follow(settings, JOB, said.append, connect=connect_to(server), pause=0), said


def test_steps_are_told_once_and_the_cheapest_inference_comes_first(settings: Settings) -> None:
    found, said = watch(
        settings,
        {
            "DescribeInferenceRecommendationsJob": [described("IN_PROGRESS"), described("IN_PROGRESS"), described("COMPLETED", INSTANCE, SERVERLESS)],
            "ListInferenceRecommendationsJobSteps": [
                steps(("ml.c5.xlarge", "IN_PROGRESS", None)),
                steps(("ml.c5.xlarge", "IN_PROGRESS", None), ("ml.t2.medium", "FAILED", "no capacity")),
                steps(("ml.c5.xlarge", "COMPLETED", None)),
            ],
        },
    )  # fmt: skip
    assert said == [
        "ml.c5.xlarge: IN_PROGRESS",
        f"{JOB}: IN_PROGRESS",
        "ml.t2.medium: FAILED: no capacity",
        "ml.c5.xlarge: COMPLETED",
        f"{JOB}: COMPLETED",
    ]
    cheapest, other = found
    assert cheapest.place == "serverless 2048 MB, 10 at once"
    assert cheapest.cost_per_hour is None
    assert (other.place, other.max_invocations) == ("1 x ml.c5.xlarge", 648)
    # A load test held to 100 ms ends in 100000: the API answers in microseconds, whatever its reference says.
    assert other.model_latency_ms == pytest.approx(263.596)


def test_what_is_recommended_can_be_read_as_settings(settings: Settings, tmp_path: Path) -> None:
    found, _ = watch(
        settings,
        {
            "DescribeInferenceRecommendationsJob": [described("COMPLETED", INSTANCE, SERVERLESS)],
            "ListInferenceRecommendationsJobSteps": [steps()],
        },
    )
    for number, each in enumerate(found):
        path = tmp_path / f"r{number}.toml"
        path.write_text((ROOT / "config" / "dev.toml").read_text() + "\n" + each.toml())
        hosting = load_settings(str(path)).hosting
        assert hosting.mode == ("serverless" if each.memory_mb else "realtime")
        assert hosting.serverless.memory_mb == 2048
        assert each.memory_mb or hosting.instance_type == "ml.c5.xlarge"


def test_a_failed_job_raises_its_reason_and_an_unknown_one_is_refused(settings: Settings) -> None:
    failed = described("FAILED", FailureReason="AccessDenied: CreateEndpoint")
    with pytest.raises(FerryError, match="FAILED: AccessDenied: CreateEndpoint"):
        watch(
            settings,
            {"DescribeInferenceRecommendationsJob": [failed], "ListInferenceRecommendationsJobSteps": [steps()]},
        )
    with pytest.raises(Refused, match="no recommendation job"):
        watch(settings, {"DescribeInferenceRecommendationsJob": [refusal("ResourceNotFound", "Job does not exist")]})


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "is this machine: Inference Recommender measures on SageMaker's own instances"),
        (["--instance-type", "ml.c5.large"], "add --advanced"),
        (["--advanced", "--traffic", "many"], "allowed: USERS:SPAWNED:SECONDS"),
        (["--advanced", "--traffic", "9:1:120"], "1 to 3 users"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, arguments: list[str], problem: str) -> None:
    refused = CliRunner().invoke(main, ["--env", str(write_settings(tmp_path)), "recommend", *arguments])
    assert refused.exit_code == 2
    assert problem in refused.stderr
