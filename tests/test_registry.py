"""From a registered version to a release and back: approval, the gate, what a release names, rollback.

The registry is moto's: it keeps versions, approval and metadata, and forgets metadata that an update leaves out.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ferry import registry
from ferry.archive import read_archive, write_archive
from ferry.errors import FerryError, Refused
from ferry.release import current_release, make_release
from ferry.rollback import deploy_commands, list_releases, rollback
from infra.release import Release, read_release
from infra.settings import Settings
from tests.emulated_training import Account, emulated, ferry, fresh_account
from tests.serving_models import write_artifact

EXECUTION = "arn:aws:sagemaker:us-east-1:123456789012:pipeline/modelferry-mnist/execution/0123456789ab"
MANIFEST = "a1" * 32


def silent(_: str) -> None:
    return None


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    with emulated(tmp_path_factory.mktemp("registry")) as settings:
        yield settings


@pytest.fixture
def account(emulator: Settings, tmp_path: Path) -> Account:
    return fresh_account(emulator, tmp_path)


def register(account: Account, folder: Path, seed: int = 0, accuracy: float = 0.97, **request: Any) -> str:
    """What the pipeline's Register step does with the tiny model of this seed; returns the version's ARN."""
    s3, bucket = account.client("s3"), account.settings.artifact_bucket
    write_artifact(folder / f"{seed}.tar.gz", seed=seed)
    s3.upload_file(str(folder / f"{seed}.tar.gz"), bucket, f"training/{seed}/model.tar.gz")
    evaluation = {"multiclass_classification_metrics": {"accuracy": {"value": accuracy, "standard_deviation": "NaN"}}}
    s3.put_object(Bucket=bucket, Key=f"training/{seed}/evaluation.json", Body=json.dumps(evaluation).encode())
    given = {
        "ModelPackageGroupName": account.settings.model_package_group,
        "ModelApprovalStatus": "PendingManualApproval",
        "InferenceSpecification": {
            "Containers": [{"Image": "image", "ModelDataUrl": f"s3://{bucket}/training/{seed}/model.tar.gz"}],
            "SupportedContentTypes": ["application/json"],
            "SupportedResponseMIMETypes": ["application/json"],
        },
        "ModelMetrics": {
            "ModelQuality": {
                "Statistics": {
                    "ContentType": "application/json",
                    "S3Uri": f"s3://{bucket}/training/{seed}/evaluation.json",
                }
            }
        },
        "CustomerMetadataProperties": {
            "model": "mnist",
            "dataset": "mnist",
            "data_manifest_sha256": MANIFEST,
            "source_revision": "sha256:code",
            "pipeline_execution": EXECUTION,
        },
    }
    created = account.client("sagemaker").create_model_package(**(given | request))
    return str(created["ModelPackageArn"])


def released(account: Account, folder: Path, seed: int, day: int) -> Release:
    """A release of the tiny model of this seed, trained on that day."""
    path = folder / f"{seed}.tar.gz"
    write_artifact(path, seed=seed)
    members = read_archive(path.read_bytes(), "a")
    document = json.loads(members["model.json"])
    document["training"]["ended_at"] = f"2026-01-{day:02}T00:00:00Z"
    path.write_bytes(write_archive(members | {"model.json": json.dumps(document).encode()}))
    return make_release(account.settings, str(path), silent)


def test_the_newest_version_is_listed_first_with_what_it_was_made_of(account: Account, tmp_path: Path) -> None:
    register(account, tmp_path, seed=0)
    newest = register(account, tmp_path, seed=1, accuracy=0.98)
    finished = ferry(account, "models", "--json")
    assert finished.exit_code == 0, finished.stderr
    first, second = json.loads(finished.stdout)
    assert (first["version"], second["version"]) == (2, 1)
    assert first["arn"] == newest
    assert (first["approval"], first["accuracy"], first["dataset"]) == ("PendingManualApproval", 0.98, "mnist")
    assert (first["data_manifest_sha256"], first["execution"]) == (MANIFEST, EXECUTION)


def test_an_approval_makes_the_release_and_the_release_names_where_it_comes_from(
    account: Account, tmp_path: Path
) -> None:
    arn = register(account, tmp_path)
    finished = ferry(account, "approve", "1", "--reason", "better on sevens")
    assert finished.exit_code == 0, finished.stderr
    release = read_release(account.settings.release_path)
    assert release.release_id in finished.stdout
    assert release.model_package == arn
    assert release.dataset_manifest_sha256 == MANIFEST
    assert release.pipeline_execution == EXECUTION
    assert release.source_revision == "unknown"  # what the model's own record says
    assert release.gate.value == 0.97  # the evaluation's number; the training job itself measured 0.99
    (package,) = registry.list_packages(account.settings)
    assert (package.approval, package.reason) == ("Approved", "better on sevens")
    assert package.data_manifest_sha256 == MANIFEST


def test_an_approval_without_a_release_leaves_it_to_the_next_command(account: Account, tmp_path: Path) -> None:
    register(account, tmp_path)
    assert ferry(account, "approve", "1", "--no-release").exit_code == 0
    assert not account.settings.release_path.exists()
    finished = ferry(account, "release", "--approved")
    assert finished.exit_code == 0, finished.stderr
    assert read_release(account.settings.release_path).release_id in finished.stdout


def test_the_newest_approved_version_is_released_and_not_a_newer_pending_one(account: Account, tmp_path: Path) -> None:
    arns = [register(account, tmp_path, seed=seed) for seed in range(3)]
    for version in (1, 2):
        registry.approve(account.settings, version, None)
    assert registry.newest_approved(account.settings).arn == arns[1]
    registry.reject(account.settings, 2, "too slow")
    assert registry.newest_approved(account.settings).arn == arns[0]


def test_nothing_approved_says_how_to_approve(account: Account, tmp_path: Path) -> None:
    register(account, tmp_path)
    with pytest.raises(Refused, match="none of 1 versions is approved"):
        registry.newest_approved(account.settings)
    finished = ferry(account, "release", "--approved")
    assert finished.exit_code == 2
    assert "ferry approve VERSION" in finished.stderr


def test_the_gate_holds_the_evaluation_even_where_the_job_measured_more(account: Account, tmp_path: Path) -> None:
    settings = account.settings
    register(account, tmp_path, accuracy=0.4)  # the gate is 0.5
    package = registry.approve(settings, 1, None)
    with pytest.raises(FerryError, match=r"GATE_FAILED .*accuracy 0\.4"):
        registry.release_package(settings, package, silent)
    assert account.keys(settings.artifact_bucket, "releases/") == []
    assert registry.list_packages(settings)[0].approval == "Approved"


@pytest.mark.parametrize("body", [b"", b"[]", b'{"multiclass_classification_metrics": {"accuracy": {"value": 7}}}'])
def test_an_evaluation_that_cannot_be_read_is_no_reason_to_believe_the_job(
    account: Account, tmp_path: Path, body: bytes
) -> None:
    settings = account.settings
    register(account, tmp_path)
    account.client("s3").put_object(Bucket=settings.artifact_bucket, Key="training/0/evaluation.json", Body=body)
    with pytest.raises(FerryError, match="run the pipeline again"):
        registry.release_package(settings, registry.approve(settings, 1, None), silent)
    assert account.keys(settings.artifact_bucket, "releases/") == []
    assert json.loads(ferry(account, "models", "--json").stdout)[0]["accuracy"] is None


def test_a_version_that_the_pipeline_did_not_register_is_not_released(account: Account, tmp_path: Path) -> None:
    register(account, tmp_path, CustomerMetadataProperties={})
    with pytest.raises(Refused, match="the pipeline did not register it"):
        registry.release_package(account.settings, registry.approve(account.settings, 1, None), silent)


def test_a_version_has_to_be_approved_before_it_is_released(account: Account, tmp_path: Path) -> None:
    register(account, tmp_path)
    with pytest.raises(Refused, match="is PendingManualApproval; `ferry approve 1`"):
        registry.release_package(account.settings, registry.list_packages(account.settings)[0], silent)


def test_an_unknown_version_is_refused_with_those_that_are_there(account: Account, tmp_path: Path) -> None:
    finished = ferry(account, "reject", "1")
    assert finished.exit_code == 2
    assert "none yet; the pipeline registers them" in finished.stderr
    register(account, tmp_path)
    finished = ferry(account, "approve", "4")
    assert finished.exit_code == 2
    assert "has no version 4; registered: 1" in finished.stderr


@pytest.mark.parametrize("arguments", [(), ("model.tar.gz", "--approved"), ("--approved", "--dataset", "mnist")])
def test_release_takes_an_artifact_or_the_approved_version(account: Account, arguments: tuple[str, ...]) -> None:
    assert ferry(account, "release", *arguments).exit_code == 2


def test_a_rollback_goes_to_the_release_before_and_says_what_deploys_it(account: Account, tmp_path: Path) -> None:
    first, second = released(account, tmp_path, 0, day=1), released(account, tmp_path, 1, day=2)
    stored = account.keys(account.settings.artifact_bucket)
    finished = ferry(account, "rollback")
    assert finished.exit_code == 0, finished.stderr
    assert current_release(account.settings)[0] == first
    commands = ["cdk deploy Hosting Gateway", "ferry package", "cdktf deploy", "ferry verify"]
    assert [text.strip() for text in finished.stdout.splitlines()[-4:]] == commands
    assert rollback(account.settings, second.release_id, silent) == second
    assert current_release(account.settings)[0] == second
    assert account.keys(account.settings.artifact_bucket) == stored


def test_releases_are_listed_newest_first_with_the_current_one_marked(account: Account, tmp_path: Path) -> None:
    first, second = released(account, tmp_path, 0, day=1), released(account, tmp_path, 1, day=2)
    listed = list_releases(account.settings, silent)
    assert [(each.release, each.current) for each in listed] == [(second, True), (first, False)]
    printed = ferry(account, "rollback", "--list").stdout.splitlines()
    assert [line.split()[0] for line in printed] == ["release", second.release_id, first.release_id]


def test_m12_a_rollback_takes_the_bytes_that_were_released_whatever_lies_there_now(
    account: Account, tmp_path: Path
) -> None:
    first, _ = released(account, tmp_path, 0, day=1), released(account, tmp_path, 1, day=2)
    key = f"releases/{first.release_id}/model.tar.gz"
    account.client("s3").put_object(Bucket=account.settings.artifact_bucket, Key=key, Body=b"other bytes")
    assert rollback(account.settings, first.release_id, silent) == first
    current_release(account.settings)


def test_m11_a_stored_manifest_that_lies_about_its_archive_changes_nothing(account: Account, tmp_path: Path) -> None:
    first, second = released(account, tmp_path, 0, day=1), released(account, tmp_path, 1, day=2)
    lie = first.model_copy(update={"archive": first.archive.model_copy(update={"sha256": "0" * 64})})
    account.client("s3").put_object(
        Bucket=account.settings.artifact_bucket,
        Key=f"releases/{first.release_id}/release.json",
        Body=lie.to_bytes(),
    )
    with pytest.raises(FerryError, match="DIGEST_MISMATCH"):
        rollback(account.settings, first.release_id, silent)
    assert current_release(account.settings)[0] == second


def test_m13_a_manifest_that_cannot_be_read_does_not_hide_the_others(account: Account, tmp_path: Path) -> None:
    first = released(account, tmp_path, 0, day=1)
    account.client("s3").put_object(
        Bucket=account.settings.artifact_bucket, Key="releases/mnist-000000000000/release.json", Body=b"{}"
    )
    said: list[str] = []
    assert [each.release for each in list_releases(account.settings, said.append)] == [first]
    assert "releases/mnist-000000000000/release.json: /schema_version" in said[0]


def test_a_rollback_that_has_no_target_says_what_is_stored(account: Account, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="which release is current is not known"):
        rollback(account.settings, None, silent)
    only = released(account, tmp_path, 0, day=1)
    with pytest.raises(Refused, match="is the oldest release"):
        rollback(account.settings, None, silent)
    with pytest.raises(Refused, match=f"no release 'mnist-1' is stored; stored, newest first: {only.release_id}"):
        rollback(account.settings, "mnist-1", silent)


def test_a_container_on_azure_needs_no_package(account: Account) -> None:
    azure = account.settings.azure.model_copy(update={"hosting": "container"})
    assert "ferry package" not in deploy_commands(account.settings.model_copy(update={"azure": azure}))
