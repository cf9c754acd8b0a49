"""The deployed pipeline of an environment, and what an execution of it is started with."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError

from ferry.data import dataset_settings
from ferry.errors import Refused
from infra.aws.pipeline_requests import parameter_name
from infra.settings import Settings


@dataclass(frozen=True)
class Data:
    """What lies in the data bucket, as its manifest says: the dataset's name, and the sha256 of the manifest itself."""

    dataset: str
    manifest_sha256: str


def deployed_definition(settings: Settings, sagemaker: Any) -> dict[str, Any]:
    """The definition of the environment's deployed pipeline. Raises Refused where there is none."""
    try:
        described = sagemaker.describe_pipeline(PipelineName=settings.pipeline)
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("ResourceNotFound", "ValidationException", "ValidationError"):
            raise
        raise Refused(
            f"there is no pipeline {settings.pipeline}: {error.response['Error']['Message']}; "
            "cdk deploy Foundation Training makes it"
        ) from error
    definition: dict[str, Any] = json.loads(described["PipelineDefinition"])
    return definition


def uploaded_data(settings: Settings, s3: Any, dataset: str) -> Data:
    """What was uploaded last. Raises Refused where nothing was, and where it is not `dataset`."""
    uri = f"s3://{settings.data_bucket}/{settings.dataset_manifest}"
    try:
        raw = s3.get_object(Bucket=settings.data_bucket, Key=settings.dataset_manifest)["Body"].read()
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("NoSuchKey", "NoSuchBucket", "404"):
            raise
        raise Refused(f"{uri}: nothing is there; upload a dataset first: ferry data upload") from error
    try:
        name = str(json.loads(raw)["dataset"])
    except (ValueError, KeyError, TypeError) as error:
        raise Refused(f"{uri}: no manifest ({error}); upload the dataset again: ferry data upload") from error
    if name != dataset:
        raise Refused(f"{uri}: the dataset is {name!r}, expected {dataset!r}; --dataset {name} trains on it")
    return Data(name, hashlib.sha256(raw).hexdigest())


def start_parameters(
    settings: Settings, definition: dict[str, Any], data: Data, given: Mapping[str, str]
) -> dict[str, str]:
    """The parameters of an execution on `data`: its version, gate and hyperparameters of its table, quantize; `given` wins.

    Raises Refused for one of them that the deployed pipeline does not know.
    """
    declared = {each["Name"] for each in definition.get("Parameters", [])}
    table = dataset_settings(settings, data.dataset)
    wanted = {parameter_name(name): value for name, value in table.hyperparameters.items()}
    if unknown := sorted(set(wanted) - declared):
        raise Refused(
            f"datasets.{data.dataset}.hyperparameters: the deployed pipeline has no parameter {unknown[0]}; it is made for "
            f"{settings.model.dataset!r}: give both tables the same hyperparameters and deploy Training again"
        )
    return wanted | {
        "Dataset": data.dataset,
        "DatasetVersion": settings.dataset_version(data.manifest_sha256),
        "Gate": str(table.gate),
        **_quantize(settings, declared),
        **given,
    }


def _quantize(settings: Settings, declared: set[str]) -> dict[str, str]:
    """A pipeline that was deployed before it could quantise cannot be told so; one that can is always told."""
    if "Quantize" in declared:
        return {"Quantize": settings.model.quantize}
    if settings.model.quantize == "none":
        return {}
    raise Refused(
        f"model.quantize is {settings.model.quantize!r} and the deployed pipeline has no parameter Quantize: deploy Training again"
    )
