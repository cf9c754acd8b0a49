"""Builds and pushes the images where there is no Docker: a CodeBuild project, its sources, and what it runs."""

import io
import json
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aws_cdk as cdk
from aws_cdk import aws_codebuild as codebuild
from aws_cdk import aws_iam as iam
from aws_cdk import aws_logs as logs
from aws_cdk import aws_s3_assets as assets
from constructs import Construct

from infra.aws.foundation import FoundationStack
from infra.aws.image import PROCESSING_SUFFIX, image_tag, training_image_tag
from infra.aws.sources import (
    PREPROCESSING_SOURCES,
    SERVING_SOURCES,
    TRAINING_IMAGE_SOURCES,
    digest,
    read_sources,
)
from infra.aws.stack import EnvironmentStack
from infra.settings import ROOT, Settings

DOCKERFILE = "model_code/container/Dockerfile"
TRAINING_DOCKERFILE = "model_code/container/Dockerfile.training"
# Which of the sources go into which image; BuildKit prefers the one that is named after its Dockerfile.
IGNORE_FILE = ".dockerignore"
TRAINING_IGNORE_FILE = f"{TRAINING_DOCKERFILE}.dockerignore"
# CodeBuild's current image with Docker (User Guide, "Docker images provided by CodeBuild").
BUILD_IMAGE = "aws/codebuild/amazonlinux-x86_64-standard:5.0"
BUILD_MINUTES = 60
QUEUE_MINUTES = 60
# A member of a zip carries a time; the earliest that the format knows, for every build of the same files.
_TIME = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class BuildSources:
    """`digest` names the files as the image tags do; `archive` is a zip with the layout of the repository."""

    digest: str
    archive: bytes
    executables: tuple[str, ...]


def build_sources(root: Path, *, own_training: bool) -> BuildSources:
    """What the Dockerfiles copy, the Dockerfiles, and their ignore files, below the repository's `root`."""
    sources = read_sources(root, (*SERVING_SOURCES, IGNORE_FILE), PREPROCESSING_SOURCES)
    name = image_tag(root)
    if own_training:
        sources |= read_sources(root, (*TRAINING_IMAGE_SOURCES, TRAINING_IGNORE_FILE))
        name = digest({"serving": name.encode(), "training": training_image_tag(root).encode()})
    executables = tuple(sorted(path for path, content in sources.items() if content.startswith(b"#!")))
    return BuildSources(name, _zip(sources, executables), executables)


def _zip(sources: dict[str, bytes], executables: tuple[str, ...]) -> bytes:
    """Stored, not compressed: the bytes depend on the files and on no version of zlib."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in sorted(sources.items()):
            member = zipfile.ZipInfo(name, _TIME)
            member.create_system = 3  # Unix, on every system
            member.external_attr = (0o100755 if name in executables else 0o100644) << 16
            archive.writestr(member, content)
    return packed.getvalue()


# A script of its own, so that its options are not those of the shell that CodeBuild runs all commands in. A tag never
# moves, so a build of one that is there has nothing to do; the serving image comes last, so that its tag says all are there.
_SCRIPT = """\
set -euo pipefail
# With attestations an image becomes an index of several, which SageMaker does not take.
export BUILDX_NO_DEFAULT_ATTESTATIONS=1

# digest REPOSITORY TAG: prints the digest, or nothing where the tag is not there.
digest() {
    if aws ecr describe-images --repository-name "$1" --image-ids imageTag="$2" \\
        --query 'imageDetails[0].imageDigest' --output text 2>/tmp/describe-images; then
        return 0
    fi
    if grep -q ImageNotFoundException /tmp/describe-images; then
        return 0
    fi
    cat /tmp/describe-images >&2
    return 1
}

# build REPOSITORY TAG DOCKERFILE [TARGET]: builds and pushes the image unless its tag is there; leaves its digest in $found.
build() {
    image="$REGISTRY/$1:$2"
    found=$(digest "$1" "$2")
    if [ -n "$found" ]; then
        echo "there already: $image $found"
        return 0
    fi
    docker build --platform linux/amd64 --file "$3" ${4:+--target "$4"} --tag "$image" .
    docker push "$image"
    found=$(digest "$1" "$2")
    if [ -z "$found" ]; then
        echo "pushed, but not in the registry: $image" >&2
        return 1
    fi
    echo "pushed: $image $found"
}

"""
_LOG_IN = 'aws ecr get-login-password | docker login --username AWS --password-stdin "$REGISTRY"'


def buildspec(executables: tuple[str, ...], *, own_training: bool) -> dict[str, Any]:
    """What CodeBuild runs (User Guide, "Build specification reference", version 0.2): all commands in one bash.

    IMAGE_DIGEST, the serving image's, is left to whoever started the build (BatchGetBuilds, exportedEnvironmentVariables).
    """
    training = f'build "$TRAINING_REPOSITORY" "$TRAINING_IMAGE_TAG" {TRAINING_DOCKERFILE}\n' if own_training else ""
    script = (
        f"{_SCRIPT}{training}"
        f'build "$REPOSITORY" "$IMAGE_TAG{PROCESSING_SUFFIX}" {DOCKERFILE} processing\n'
        f'build "$REPOSITORY" "$IMAGE_TAG" {DOCKERFILE} serving\n'
        'echo "$found" > /tmp/image-digest\n'
    )
    return {
        "version": 0.2,
        "env": {"shell": "bash", "exported-variables": ["IMAGE_DIGEST"]},
        "phases": {
            "pre_build": {
                # What unpacks the sources promises nothing about modes, and the image runs these files.
                "commands": [f"chmod 0755 {' '.join(executables)}", _LOG_IN],
            },
            "build": {
                "commands": [
                    f"cat > /tmp/build-images <<'END'\n{script}END",
                    "bash /tmp/build-images",
                    'export IMAGE_DIGEST="$(cat /tmp/image-digest)"',
                ],
            },
        },
    }


class ImageStack(EnvironmentStack):
    """The CodeBuild project that builds the serving image and its processing target, and the training image where it is ours.

    Deploying it builds nothing: a build is started by name. Its sources are an asset, so the project follows them.
    """

    def __init__(self, scope: Construct, construct_id: str, *, settings: Settings, foundation: FoundationStack) -> None:
        super().__init__(
            scope,
            construct_id,
            settings=settings,
            purpose="image",
            description="CodeBuild project that builds and pushes the images.",
        )
        self._foundation = foundation
        own_training = settings.training.image == "own"
        sources = build_sources(ROOT, own_training=own_training)
        project = self._project(self._asset(sources), buildspec(sources.executables, own_training=own_training))
        cdk.CfnOutput(self, "ProjectName", value=project.ref)

    def _asset(self, sources: BuildSources) -> assets.Asset:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "sources.zip"
            path.write_bytes(sources.archive)
            return assets.Asset(
                self, "Sources", path=str(path), asset_hash=sources.digest, asset_hash_type=cdk.AssetHashType.CUSTOM
            )

    def _grant_sources_and_log(self, source: assets.Asset, log_group: logs.CfnLogGroup) -> iam.Policy:
        """Lets the role read this one object and write this one log. The policy lives here: new code must not change Foundation.

        CodeBuild also asks whose bucket it is (User Guide, "Allow CodeBuild to interact with other AWS services").
        """
        return iam.Policy(
            self,
            "Build",
            roles=[self._foundation.roles.build],
            statements=[
                iam.PolicyStatement(
                    sid="ReadSources",
                    actions=["s3:GetObject", "s3:GetObjectVersion"],
                    resources=[source.bucket.arn_for_objects(source.s3_object_key)],
                ),
                iam.PolicyStatement(
                    sid="IdentifyBucket",
                    actions=["s3:GetBucketAcl", "s3:GetBucketLocation"],
                    resources=[source.bucket.bucket_arn],
                ),
                iam.PolicyStatement(
                    sid="WriteLog",
                    actions=["logs:CreateLogStream", "logs:PutLogEvents"],
                    resources=[log_group.attr_arn],  # ends in ":*", the streams
                ),
            ],
        )

    def _project(self, source: assets.Asset, specification: dict[str, Any]) -> codebuild.CfnProject:
        """No artifacts, no webhook, no badge, no VPC: what leaves it is images."""
        log_group = self.log_group("Logs", key=self._foundation.key)
        project = codebuild.CfnProject(
            self,
            "Project",
            name=self.settings.image_build,
            description=f"Builds {self.settings.repository} from the sources of this deployment.",
            service_role=self._foundation.roles.build.role_arn,
            encryption_key=self._foundation.key.key_arn,
            source=codebuild.CfnProject.SourceProperty(
                type="S3",
                location=f"{source.s3_bucket_name}/{source.s3_object_key}",
                build_spec=json.dumps(specification, indent=1),
            ),
            artifacts=codebuild.CfnProject.ArtifactsProperty(type="NO_ARTIFACTS"),
            environment=codebuild.CfnProject.EnvironmentProperty(
                type="LINUX_CONTAINER",
                compute_type="BUILD_GENERAL1_SMALL",
                image=BUILD_IMAGE,
                # CodeBuild starts a Docker daemon in privileged mode only (User Guide, "Docker sample").
                privileged_mode=True,
                environment_variables=self._variables(),
            ),
            logs_config=codebuild.CfnProject.LogsConfigProperty(
                cloud_watch_logs=codebuild.CfnProject.CloudWatchLogsConfigProperty(
                    status="ENABLED", group_name=log_group.ref
                )
            ),
            timeout_in_minutes=BUILD_MINUTES,
            queued_timeout_in_minutes=QUEUE_MINUTES,
            concurrent_build_limit=1,
            visibility="PRIVATE",
        )
        project.node.add_dependency(self._grant_sources_and_log(source, log_group))
        return project

    def _variables(self) -> list[codebuild.CfnProject.EnvironmentVariableProperty]:
        aws = self.settings.aws
        values = {
            "REGISTRY": f"{aws.account}.dkr.ecr.{aws.region}.{self.url_suffix}",
            "REPOSITORY": self.settings.repository,
            "IMAGE_TAG": image_tag(ROOT),
        }
        if self.settings.training.image == "own":
            values |= {
                "TRAINING_REPOSITORY": self.settings.training_repository,
                "TRAINING_IMAGE_TAG": training_image_tag(ROOT),
            }
        return [
            codebuild.CfnProject.EnvironmentVariableProperty(name=key, value=value) for key, value in values.items()
        ]
