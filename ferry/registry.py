"""The model registry: versions of the environment's model package group, their approval, and the release of an approved one.

What a version says about itself is what the pipeline's Register step wrote: the artifact, the evaluation, and as customer
metadata the dataset, the hash of its manifest, the source revision and the execution (DescribeModelPackage).
"""

import datetime
import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from botocore.exceptions import ClientError

from ferry import aws
from ferry.console import Report
from ferry.errors import FerryError, Refused
from ferry.release import Origin, make_release
from infra.release import Release
from infra.settings import Settings

APPROVED, REJECTED = "Approved", "Rejected"
_MAX_EVALUATION = 2**20


@dataclass(frozen=True)
class ModelPackage:
    """One version of a model: where its artifact is, what it was made of, how good it is, who agreed.

    `evaluation` is the s3:// URI of its evaluation.json. It, the artifact and what the metadata says are None for a version
    that something other than the pipeline registered.
    """

    version: int
    arn: str
    approval: str
    reason: str | None
    created: datetime.datetime
    artifact: str | None
    dataset: str | None
    data_manifest_sha256: str | None
    source_revision: str | None
    execution: str | None
    evaluation: str | None


def list_packages(settings: Settings) -> list[ModelPackage]:
    """All versions of the environment's model, the newest first."""
    sagemaker = aws.client(settings, "sagemaker")
    return [_describe(sagemaker, arn) for arn in _arns(settings, sagemaker).values()]


def evaluated_accuracy(settings: Settings, package: ModelPackage) -> float | None:
    """The accuracy in the version's evaluation.json, 0 to 1; None where no evaluation is registered.

    Raises FerryError for one that cannot be read: to fall back to the training job's own number would let a model past the
    gate that nobody else has measured.
    """
    if package.evaluation is None:
        return None
    uri = urlsplit(package.evaluation)
    try:
        body = aws.client(settings, "s3").get_object(Bucket=uri.netloc, Key=uri.path.lstrip("/"))["Body"]
        metrics = json.loads(body.read(_MAX_EVALUATION))["multiclass_classification_metrics"]
        accuracy = float(metrics["accuracy"]["value"])
    except (ClientError, ValueError, KeyError, TypeError) as error:
        raise FerryError(
            f"{package.evaluation}: no evaluation with multiclass_classification_metrics.accuracy.value ({error}); "
            "run the pipeline again"
        ) from error
    if not 0 <= accuracy <= 1:
        raise FerryError(f"{package.evaluation}: accuracy is {accuracy}; allowed: 0 to 1; run the pipeline again")
    return accuracy


def approve(settings: Settings, version: int, reason: str | None) -> ModelPackage:
    """Approve a version. Raises Refused for one that is not registered."""
    return _decide(settings, version, APPROVED, reason)


def reject(settings: Settings, version: int, reason: str | None) -> ModelPackage:
    """Reject a version; what was released of it stays released. Raises Refused for one that is not registered."""
    return _decide(settings, version, REJECTED, reason)


def newest_approved(settings: Settings) -> ModelPackage:
    """The approved version with the highest number. Raises Refused where none is approved."""
    packages = list_packages(settings)
    for package in packages:
        if package.approval == APPROVED:
            return package
    raise Refused(
        f"{settings.model_package_group}: none of {len(packages)} versions is approved; "
        "`ferry models` lists them, `ferry approve VERSION` approves one"
    )


def release_package(settings: Settings, package: ModelPackage, report: Report) -> Release:
    """Release the artifact of an approved version; the gate is held against the accuracy of its evaluation.

    Raises Refused for a version that is not approved, or that says too little about itself.
    """
    if package.approval != APPROVED:
        raise Refused(
            f"version {package.version} of {settings.model_package_group} is {package.approval}; "
            f"`ferry approve {package.version}` approves it"
        )
    if (
        package.artifact is None
        or package.dataset is None
        or package.execution is None
        or package.data_manifest_sha256 is None
    ):
        raise Refused(
            f"{package.arn}: it does not name its artifact, dataset, data_manifest_sha256 and pipeline_execution, so the "
            "pipeline did not register it; release its artifact by hand: ferry release s3://..."
        )
    accuracy = evaluated_accuracy(settings, package)
    origin = Origin(package.execution, package.arn, package.data_manifest_sha256, accuracy)
    return make_release(settings, package.artifact, report, dataset=package.dataset, origin=origin)


def _decide(settings: Settings, version: int, approval: str, reason: str | None) -> ModelPackage:
    sagemaker = aws.client(settings, "sagemaker")
    arns = _arns(settings, sagemaker)
    if version not in arns:
        known = ", ".join(map(str, arns)) or "none yet; the pipeline registers them"
        raise Refused(f"{settings.model_package_group} has no version {version}; registered: {known}")
    described = sagemaker.describe_model_package(ModelPackageName=arns[version])
    sagemaker.update_model_package(
        ModelPackageArn=arns[version],
        ModelApprovalStatus=approval,
        # The emulator forgets what an update does not repeat; to SageMaker it is no change.
        CustomerMetadataProperties=described.get("CustomerMetadataProperties", {}),
        **({"ApprovalDescription": reason} if reason else {}),
    )
    return _describe(sagemaker, arns[version])


def _arns(settings: Settings, sagemaker: Any) -> dict[int, str]:
    """ARN of every registered version, the newest first."""
    pages = sagemaker.get_paginator("list_model_packages").paginate(
        ModelPackageGroupName=settings.model_package_group, ModelPackageType="Versioned"
    )
    summaries = [summary for page in pages for summary in page["ModelPackageSummaryList"]]
    arns = {summary["ModelPackageVersion"]: summary["ModelPackageArn"] for summary in summaries}
    return dict(sorted(arns.items(), reverse=True))


def _describe(sagemaker: Any, arn: str) -> ModelPackage:
    described = sagemaker.describe_model_package(ModelPackageName=arn)
    containers = described.get("InferenceSpecification", {}).get("Containers", [])
    metadata = described.get("CustomerMetadataProperties", {})
    statistics = described.get("ModelMetrics", {}).get("ModelQuality", {}).get("Statistics", {})
    return ModelPackage(
        version=described["ModelPackageVersion"],
        arn=arn,
        approval=described["ModelApprovalStatus"],
        reason=described.get("ApprovalDescription"),
        created=described["CreationTime"],
        artifact=containers[0].get("ModelDataUrl") if containers else None,
        dataset=metadata.get("dataset"),
        data_manifest_sha256=metadata.get("data_manifest_sha256"),
        source_revision=metadata.get("source_revision"),
        execution=metadata.get("pipeline_execution"),
        evaluation=statistics.get("S3Uri"),
    )
