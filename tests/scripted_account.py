"""An AWS account in which a deployment may start, as its services describe it; a test changes one answer."""

import base64
import datetime
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs

from ferry.cloud_states import STACKS
from ferry.image import BIND_TO_PORT_LABEL, DOCKER_MANIFEST, images
from infra.release import Release
from infra.settings import Settings
from model_code import environment
from tests.scripted_aws import refuses, says
from tests.scripted_server import Asked, Reply, Script

DIGEST = f"sha256:{'5e' * 32}"
MADE = datetime.datetime(2026, 11, 20, 9, 30, tzinfo=datetime.UTC)
BUCKETS = ("data", "artifacts", "logs")
_LAYER = "sha256:" + "c0" * 32


def account(settings: Settings, release: Release | None, stacks: Mapping[str, str] | None = None) -> dict[str, Script]:
    """Every answer of an account where the stacks stand as `stacks` says; with a `release` it is stored and served."""
    standing = dict.fromkeys(STACKS, "UPDATE_COMPLETE") if stacks is None else stacks
    replies: dict[str, Script] = {
        "GetCallerIdentity": [caller(settings.aws.account)],
        "GetParameter": [bootstrap("28")],
        "DescribeStacks": lambda asked: _stack(settings, standing, asked, release),
        "DescribeImages": lambda asked: _image(settings, asked),
        "BatchGetImage": [_manifest(settings)],
        "GetDownloadUrlForLayer": lambda asked: _layer(asked),
        "GET /configuration": [configuration()],
        "ListServiceQuotas": [quota(settings, 4)],
    }
    for bucket in BUCKETS if "Foundation" in standing else ():
        head = Reply(200, headers={"x-amz-bucket-region": settings.aws.region})
        replies[f"HEAD /{settings.prefix}-{bucket}-{settings.aws.account}-{settings.aws.region}"] = [head]
    if release is not None:
        replies[f"HEAD /{release.archive.uri.removeprefix('s3://')}"] = [artifact(release)]
    if "Hosting" in standing:
        replies |= endpoint(settings, "InService", release)
    return replies


def caller(number: str, headers: Mapping[str, str] | None = None) -> Reply:
    arn = f"arn:aws:sts::{number}:assumed-role/deployer/ada"
    said = says("sts", "GetCallerIdentity", {"UserId": "AROA:ada", "Account": number, "Arn": arn})
    return Reply(said.status, said.body, {**said.headers, **(headers or {})})


def bootstrap(version: str) -> Reply:
    parameter = {"Name": "/cdk-bootstrap/hnb659fds/version", "Type": "String", "Value": version}
    return says("ssm", "GetParameter", {"Parameter": parameter})


def artifact(release: Release, **changes: Any) -> Reply:
    """What S3 answers to the HEAD of a stored archive."""
    checksum = base64.b64encode(bytes.fromhex(changes.get("sha256", release.archive.sha256))).decode()
    size = str(changes.get("size", release.archive.size))
    return Reply(200, headers={"Content-Length": size, "x-amz-checksum-sha256": checksum})


def configuration(architecture: str = "amd64", labels: Mapping[str, str] | None = None) -> Reply:
    """An image's own description."""
    given = {BIND_TO_PORT_LABEL: "true"} if labels is None else dict(labels)
    return Reply(200, json.dumps({"architecture": architecture, "config": {"Labels": given}}).encode())


def quota(settings: Settings, value: float) -> Reply:
    name = f"{settings.hosting.instance_type} for endpoint usage"
    return says("service-quotas", "ListServiceQuotas", {"Quotas": [{"QuotaName": name, "Value": value}]})


def endpoint(settings: Settings, status: str, release: Release | None, reason: str | None = None) -> dict[str, Script]:
    """An endpoint, its configuration, and the model of `release` behind it."""
    name, arn = settings.endpoint, f"arn:aws:sagemaker:{settings.aws.region}:{settings.aws.account}"
    described = {
        "EndpointName": name,
        "EndpointArn": f"{arn}:endpoint/{name}",
        "EndpointConfigName": f"{name}-0a",
        "EndpointStatus": status,
        "CreationTime": MADE,
        "LastModifiedTime": MADE,
        **({"FailureReason": reason} if reason else {}),
    }
    variant = {"VariantName": "AllTraffic", "ModelName": f"{name}-0b"}
    configured = {
        "EndpointConfigName": f"{name}-0a",
        "EndpointConfigArn": f"{arn}:endpoint-config/{name}-0a",
        "ProductionVariants": [variant],
        "CreationTime": MADE,
    }
    container: dict[str, Any] = {"Image": "111122223333.dkr.ecr.eu-west-1.amazonaws.com/serving"}
    if release is not None:
        container |= {"ModelDataUrl": release.archive.uri, "Environment": {environment.RELEASE_ID: release.release_id}}
    model = {
        "ModelName": f"{name}-0b",
        "ModelArn": f"{arn}:model/{name}-0b",
        "CreationTime": MADE,
        "PrimaryContainer": container,
    }
    return {
        "DescribeEndpoint": [says("sagemaker", "DescribeEndpoint", described)],
        "DescribeEndpointConfig": [says("sagemaker", "DescribeEndpointConfig", configured)],
        "DescribeModel": [says("sagemaker", "DescribeModel", model)],
    }


def _stack(settings: Settings, standing: Mapping[str, str], asked: Asked, release: Release | None) -> Reply:
    (name,) = parse_qs(asked.body.decode())["StackName"]
    found = next((stack for stack in standing if settings.stack(stack.lower()) == name), None)
    if found is None:
        return refuses("cloudformation", "ValidationError", f"Stack with id {name} does not exist")
    outputs = {"EndpointName": settings.endpoint, **({"ReleaseId": release.release_id} if release else {})}
    stack = {
        "StackName": name,
        "CreationTime": MADE,
        "StackStatus": standing[found],
        "Outputs": [{"OutputKey": key, "OutputValue": value} for key, value in outputs.items() if found == "Hosting"],
    }
    return says("cloudformation", "DescribeStacks", {"Stacks": [stack]})


def _image(settings: Settings, asked: Asked) -> Reply:
    detail = {"repositoryName": settings.repository, "imageDigest": DIGEST, "imageManifestMediaType": DOCKER_MANIFEST}
    return says("ecr", "DescribeImages", {"imageDetails": [detail]})


def _manifest(settings: Settings) -> Reply:
    manifest = json.dumps({"mediaType": DOCKER_MANIFEST, "config": {"digest": _LAYER}})
    return says(
        "ecr", "BatchGetImage", {"images": [{"repositoryName": settings.repository, "imageManifest": manifest}]}
    )


def _layer(asked: Asked) -> Reply:
    url = f"http://{asked.headers['Host']}/configuration"
    return says("ecr", "GetDownloadUrlForLayer", {"downloadUrl": url, "layerDigest": _LAYER})


def serving_uri(settings: Settings) -> str:
    return images(settings)[0].uri
