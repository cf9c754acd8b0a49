"""What runs behind the endpoint, by layout: the containers of CreateModel, each with its image, its model data and its pins."""

from typing import Any

from aws_cdk import aws_sagemaker as sagemaker

from infra.aws import inference_image
from infra.aws.hosting_releases import HostedReleases
from infra.aws.image import image_uri
from infra.aws.script_mode import script_mode_key
from infra.release import Release
from infra.settings import RELEASES_PREFIX, Settings
from model_code import environment

# The first two containers of a serial pipeline; the settings keep others from taking these names.
PREPROCESS, MODEL = "preprocess", "model"

Container = sagemaker.CfnModel.ContainerDefinitionProperty


class Containers:
    """The containers of one environment's models.

    `url_suffix` is the partition's. Every method gives keywords of CfnModel: one container, or several and how they are
    called (CreateModel: PrimaryContainer, Containers, InferenceExecutionConfig).
    """

    def __init__(self, settings: Settings, *, url_suffix: str) -> None:
        self._settings = settings
        self._url_suffix = url_suffix

    def of(self, releases: HostedReleases) -> dict[str, Any]:
        """Those of the settings' layout."""
        layout = self._settings.hosting.layout
        if layout == "multi-model":
            return self._multi_model()
        if layout == "multi-container":
            return self._several("Direct", self._beside(releases))
        if layout == "serial-pipeline":
            first = self._released(releases.deployed, hostname=PREPROCESS, variables={environment.STAGE: "preprocess"})
            second = self._released(releases.deployed, hostname=MODEL)
            return self._several("Serial", [first, second, *self._beside(releases)])
        return self.single(releases.deployed)

    def single(self, release: Release) -> dict[str, Any]:
        if self._settings.hosting.image == "pytorch-dlc":
            return {"primary_container": self._script_mode(release)}
        return {"primary_container": self._released(release)}

    def _multi_model(self) -> dict[str, Any]:
        """Every release below the prefix is a target, "<release id>/model.tar.gz"; none can be pinned, each proves itself."""
        container = Container(
            image=self._image,
            mode="MultiModel",
            model_data_url=f"s3://{self._settings.artifact_bucket}/{RELEASES_PREFIX}/",
        )
        return {"primary_container": container}

    def _beside(self, releases: HostedReleases) -> list[Container]:
        """hosting.containers: our image with a release, or another image that brings all it needs."""
        pairs = zip(self._settings.hosting.containers, releases.containers, strict=True)
        return [
            self._released(release, hostname=table.hostname)
            if release
            else Container(image=table.image, container_hostname=table.hostname)
            for table, release in pairs
        ]

    @staticmethod
    def _several(mode: str, containers: list[Container]) -> dict[str, Any]:
        execution = sagemaker.CfnModel.InferenceExecutionConfigProperty(mode=mode)
        return {"containers": containers, "inference_execution_config": execution}

    def _released(
        self, release: Release, *, hostname: str | None = None, variables: dict[str, str] | None = None
    ) -> Container:
        """Our image; it serves this release and refuses to start with any other."""
        return Container(
            image=self._image,
            mode="SingleModel",
            container_hostname=hostname,
            model_data_url=release.archive.uri,
            environment=_pins(release) | self._process() | (variables or {}),
        )

    def _process(self) -> dict[str, str]:
        """Serverless wants one process with one copy of the model (Developer Guide, "Serverless Inference", container support).

        Nobody waits on a connection for an asynchronous answer, so it may take as long as the settings allow.
        """
        hosting = self._settings.hosting
        variables = {}
        if hosting.dynamic_batch is not None:
            variables[environment.DYNAMIC_BATCH] = str(hosting.dynamic_batch)
        if hosting.mode == "serverless":
            variables[environment.WORKERS] = "1"
        if hosting.mode == "async":
            variables[environment.DEADLINE] = str(hosting.async_inference.invocation_timeout_seconds)
        return variables

    def _script_mode(self, release: Release) -> Container:
        """AWS's image runs code/inference.py of the archive that `ferry release` made for it beside the release."""
        region = self._settings.aws.region
        return Container(
            image=inference_image.inference_image(region, url_suffix=self._url_suffix),
            mode="SingleModel",
            model_data_url=f"s3://{self._settings.artifact_bucket}/{script_mode_key(release.release_id)}",
            environment=_pins(release) | inference_image.serving_environment(region),
        )

    @property
    def _image(self) -> str:
        return image_uri(self._settings, url_suffix=self._url_suffix)


def _pins(release: Release) -> dict[str, str]:
    """What a container serves and nothing else."""
    return {
        environment.RELEASE_ID: release.release_id,
        environment.MODEL_JSON_SHA256: release.model_json.sha256,
    }
