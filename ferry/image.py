"""Builds the images with Docker or Podman, pushes them to ECR, and notes the digest that the stacks then pin.

What is pushed has to be what SageMaker takes: one image for the architecture of its instances, with its labels, and in
Docker's manifest format. SageMaker refuses OCI manifests (aws/amazon-sagemaker-feedback, issue 180), and a manifest list is one.
"""

import base64
import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import urllib3
from botocore.exceptions import ClientError

from ferry import aws
from ferry.console import Report
from ferry.errors import FerryError, Refused
from ferry.files import write_atomically
from ferry.tools import run
from infra.aws.image import PROCESSING_SUFFIX, image_tag, image_uri, training_image_tag
from infra.settings import ROOT, Settings

ENGINES = ("docker", "podman")
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
# Developer Guide, "Host multiple models which use different containers behind one endpoint" and "Build your own container for
# SageMaker AI multi-model endpoints": an image without its label is refused there.
BIND_TO_PORT_LABEL = "com.amazonaws.sagemaker.capabilities.accept-bind-to-port"
MULTI_MODEL_LABEL = "com.amazonaws.sagemaker.capabilities.multi-models"
# Of the base images' platforms, and of every instance type that the settings take.
ARCHITECTURE = "amd64"

_MAX_CONFIGURATION = 2**20
_PUSH_AGAIN = "delete its tag in ECR and run `ferry image push` again"
_SECONDS = 30


@dataclass(frozen=True)
class Image:
    """One image: where it goes, what it is built from (`target` is a stage of the Dockerfile, None its last), and the labels
    that SageMaker wants it to have."""

    name: str
    registry: str
    repository: str
    tag: str
    dockerfile: str
    target: str | None
    labels: tuple[str, ...]

    @property
    def uri(self) -> str:
        return f"{self.registry}/{self.repository}:{self.tag}"


def images(settings: Settings) -> list[Image]:
    """What an environment needs, the serving image first."""
    registry = f"{settings.aws.account}.dkr.ecr.{settings.aws.region}.amazonaws.com"
    tag, dockerfile = image_tag(ROOT), "model_code/container/Dockerfile"
    several = settings.hosting.layout == "multi-model"
    labels = (BIND_TO_PORT_LABEL, *((MULTI_MODEL_LABEL,) if several else ()))
    processing_tag = f"{tag}{PROCESSING_SUFFIX}"
    found = [
        Image("serving", registry, settings.repository, tag, dockerfile, "serving", labels),
        Image("processing", registry, settings.repository, processing_tag, dockerfile, "processing", ()),
    ]
    if settings.training.image == "own":
        own, name = training_image_tag(ROOT), f"{dockerfile}.training"
        found.append(Image("training", registry, settings.training_repository, own, name, None, ()))
    return found


def engine() -> str | None:
    """Path of the container engine on this machine, Docker before Podman; None where there is neither."""
    return next((path for name in ENGINES if (path := shutil.which(name))), None)


def build(settings: Settings, report: Report) -> list[Image]:
    """Build every image of the environment under the tag that names its sources. Raises Refused without an engine."""
    tool = engine()
    if tool is None:
        raise Refused(
            f"neither {' nor '.join(ENGINES)} is on the PATH; `ferry image push` builds and pushes the images without one, in "
            "AWS CodeBuild (`cdk deploy Image` makes the project)"
        )
    built = images(settings)
    for image in built:
        _build(settings, tool, image, report)
    return built


def push(
    settings: Settings,
    report: Report,
    *,
    codebuild: bool = False,
    connect: aws.Connect = aws.client,
    pause: float = 5.0,
) -> str:
    """Bring every image of the environment into ECR and note the serving image's digest; returns it.

    An image that is there already is left alone: tags are immutable, and the same tag is the same sources. With an engine on
    the PATH it is built and pushed from here, otherwise, and with `codebuild`, by the CodeBuild project of the stack Image,
    looked at every `pause` seconds. Raises FerryError for an image that SageMaker would not take.
    """
    if settings.local is not None:
        raise Refused(
            f"environment {settings.environment!r} has no container registry; `ferry local up sagemaker` runs the image's "
            "code on this machine, and any other environment has a registry in AWS"
        )
    ecr = connect(settings, "ecr")
    wanted = images(settings)
    missing = [image for image in wanted if digest(ecr, image) is None]
    for image in wanted:
        if image not in missing:
            report(f"{image.name}: {image.uri} is there already")
    tool = None if codebuild else engine()
    if missing and tool is not None:
        _log_in(tool, ecr, report)
        for image in missing:
            _push(settings, tool, image, report)
    elif missing:
        from ferry.image_codebuild import build_and_follow

        build_and_follow(settings, report, connect=connect, pause=pause)
    found = digest(ecr, wanted[0])
    # The note is written when every image has been looked at, and their tags never move.
    known = _noted(settings) == (wanted[0].tag, found)
    for image in wanted:
        _check_pushed(ecr, image, looked_at=known or (tool is not None and image in missing))
    assert found is not None  # _check_pushed has seen it
    note = json.dumps({"tag": wanted[0].tag, "digest": found}, indent=2) + "\n"
    write_atomically(settings.image_path, note.encode())
    report(f"noted     {settings.image_path}")
    return found


def digest(ecr: Any, image: Image) -> str | None:
    """The digest that a tag has in ECR; None where it has none. Raises Refused where the repository is not deployed."""
    detail = _described(ecr, image, {"imageTag": image.tag})
    return None if detail is None else str(detail["imageDigest"])


def absent_images(settings: Settings, ecr: Any) -> list[str]:
    """Look at every image that the stacks of an environment name, as ECR has it; returns those that are not there.

    The serving image is the one that Hosting would pin, by digest where one is known. Raises FerryError for one that
    SageMaker would not take, and for a tag that is not what was pushed under it; Refused where a repository is not deployed.
    """
    absent = []
    pinned = image_uri(settings).partition("@")[2]
    for image in images(settings):
        wanted = {"imageDigest": pinned} if pinned and image.name == "serving" else {"imageTag": image.tag}
        detail = _described(ecr, image, wanted)
        if detail is None:
            absent.append(f"{image.registry}/{image.repository}@{pinned}" if "imageDigest" in wanted else image.uri)
            continue
        _check_manifest(ecr, image, detail)
    noted = _noted(settings)
    serving = images(settings)[0]
    if noted is not None and noted[0] == serving.tag and (found := digest(ecr, serving)) not in (noted[1], None):
        raise FerryError(
            f"{serving.uri} is {found}, and {settings.image_path} noted {noted[1]} when it was pushed: the tag has moved. "
            "`ferry image push` notes what is there after looking at it"
        )
    return absent


def check(image: Image, architecture: str, labels: Mapping[str, str], origin: str) -> None:
    """Raises FerryError where an image is not for its instances or lacks a label; `origin` names it, best by digest."""
    if architecture != ARCHITECTURE:
        raise FerryError(
            f"{origin}: built for {architecture}, and the instances are {ARCHITECTURE}; build it with --platform "
            f"linux/{ARCHITECTURE}. Tags are immutable: a wrong image leaves ECR with `aws ecr "
            f"batch-delete-image --repository-name {image.repository} --image-ids imageTag={image.tag}`"
        )
    if lacking := [label for label in image.labels if labels.get(label) != "true"]:
        raise FerryError(
            f"{origin}: lacks the label {lacking[0]}=true, without which SageMaker refuses it; {image.dockerfile} sets it"
        )


def _build(settings: Settings, tool: str, image: Image, report: Report) -> None:
    report(f"{image.name}: building {image.uri}")
    form = _build_form(tool)
    target = ["--target", image.target] if image.target else []
    command = [tool, *form, "--platform", f"linux/{ARCHITECTURE}", "--file", image.dockerfile, *target]
    _run(settings, [*command, "--tag", image.uri, "."], f"build-{image.name}", report)


def _build_form(tool: str) -> list[str]:
    """What makes an engine build in Docker's own format, without the attestations that would make a manifest list of it.

    Docker without its plugin buildx has the old builder, which makes nothing else.
    """
    if Path(tool).name == "podman":
        return ["build", "--format", "docker"]
    if subprocess.run([tool, "buildx", "version"], capture_output=True, check=False).returncode != 0:
        return ["build"]
    return ["buildx", "build", "--output", "type=docker", "--provenance=false", "--sbom=false"]


def _push(settings: Settings, tool: str, image: Image, report: Report) -> None:
    """Build an image that is not on this machine, look at what it is, and only then upload it: its tag is for ever."""
    if (inspected := _inspect(tool, image)) is None:
        _build(settings, tool, image, report)
        inspected = _inspect(tool, image)
    if inspected is None:
        raise FerryError(f"{image.uri}: {tool} built it and does not have it; `{tool} images` lists what it has")
    check(image, inspected["Architecture"], (inspected.get("Config") or {}).get("Labels") or {}, image.uri)
    report(f"{image.name}: pushing {image.uri}")
    _run(settings, [tool, "push", image.uri], f"push-{image.name}", report)


def _inspect(tool: str, image: Image) -> dict[str, Any] | None:
    answer = subprocess.run([tool, "image", "inspect", image.uri], capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        return None
    (inspected,) = json.loads(answer.stdout)
    return dict(inspected)


def _run(settings: Settings, command: list[str], name: str, report: Report) -> None:
    log = settings.build_path / "image" / f"{name}.log"
    shown = re.compile(r"^(#\d+ \[|STEP |Step |Copying blob|[0-9a-f]{12}: Pushed)")
    run(
        command, environment=os.environ, folder=ROOT, log=log, shows=lambda text: bool(shown.match(text)),
        report=lambda text: report(f"  {text}"),
    )  # fmt: skip


def _log_in(tool: str, ecr: Any, report: Report) -> None:
    """Log the engine in to the registry for twelve hours; the password goes through a pipe, where no process list shows it."""
    (granted,) = ecr.get_authorization_token()["authorizationData"]
    user, _, password = base64.b64decode(granted["authorizationToken"]).decode().partition(":")
    registry = granted["proxyEndpoint"].removeprefix("https://")
    answer = subprocess.run(
        [tool, "login", "--username", user, "--password-stdin", registry],
        input=password, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if answer.returncode != 0:
        raise FerryError(f"{tool} login {registry} ended with {answer.returncode}: {answer.stderr.strip()}")
    report(f"logged in {registry}")


def _described(ecr: Any, image: Image, wanted: dict[str, str]) -> dict[str, Any] | None:
    try:
        answer = ecr.describe_images(repositoryName=image.repository, imageIds=[wanted])
    except ClientError as error:
        code = error.response["Error"]["Code"]
        if code == "RepositoryNotFoundException":
            raise Refused(f"ECR has no repository {image.repository}; `cdk deploy Foundation` makes it") from error
        if code != "ImageNotFoundException":
            raise
        return None
    return next((dict(detail) for detail in answer["imageDetails"]), None)


def _check_pushed(ecr: Any, image: Image, *, looked_at: bool) -> None:
    """What was pushed, as ECR has it; `looked_at` says that architecture and labels are known to be right."""
    detail = _described(ecr, image, {"imageTag": image.tag})
    if detail is None:
        raise FerryError(f"{image.uri}: not in ECR after it was pushed; run `ferry image push` again")
    _check_manifest(ecr, image, detail, looked_at=looked_at)


def _check_manifest(ecr: Any, image: Image, detail: dict[str, Any], *, looked_at: bool = False) -> None:
    """What ECR holds, by digest: its manifest's format and, where it was not looked at before, architecture and labels."""
    origin = f"{image.registry}/{image.repository}@{detail['imageDigest']}"
    media_type = detail.get("imageManifestMediaType", DOCKER_MANIFEST)
    if media_type != DOCKER_MANIFEST:
        raise FerryError(
            f"{origin}: its manifest is {media_type}, and SageMaker takes {DOCKER_MANIFEST} only; delete the tag with `aws ecr "
            f"batch-delete-image --repository-name {image.repository} --image-ids imageTag={image.tag}`, then build it with "
            "--output type=docker --provenance=false"
        )
    if looked_at:
        return
    configuration = _configuration(ecr, image, detail["imageDigest"])
    check(image, configuration["architecture"], (configuration.get("config") or {}).get("Labels") or {}, origin)


def _noted(settings: Settings) -> tuple[str, str] | None:
    """Tag and digest of the image that was checked before."""
    try:
        note = json.loads(settings.image_path.read_bytes())
        return note["tag"], note["digest"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _configuration(ecr: Any, image: Image, image_digest: str) -> dict[str, Any]:
    """The image's own description, which its manifest names by digest and ECR hands out like a layer."""
    answer = ecr.batch_get_image(
        repositoryName=image.repository, imageIds=[{"imageDigest": image_digest}], acceptedMediaTypes=[DOCKER_MANIFEST]
    )
    try:
        layer = json.loads(answer["images"][0]["imageManifest"])["config"]["digest"]
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise FerryError(
            f"{image.uri}: ECR has no manifest of {image_digest} that can be read; {_PUSH_AGAIN}"
        ) from error
    url = ecr.get_download_url_for_layer(repositoryName=image.repository, layerDigest=layer)["downloadUrl"]
    try:
        content = urllib3.request("GET", url, timeout=_SECONDS, retries=False)
    except urllib3.exceptions.HTTPError as error:
        raise FerryError(f"{image.uri}: its configuration cannot be read from ECR: {error}") from error
    if content.status != 200 or len(content.data) > _MAX_CONFIGURATION:
        raise FerryError(f"{image.uri}: its configuration cannot be read from ECR: HTTP {content.status}")
    try:
        document = json.loads(content.data)
        document["architecture"], (document.get("config") or {}).get("Labels")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise FerryError(
            f"{image.uri}: what ECR has as the configuration of {image_digest} is none, or half of one; {_PUSH_AGAIN}"
        ) from error
    return dict(document)
