"""An emulated account with what `ferry train` works on: buckets, tiny data with their manifest, the deployed pipeline.

The emulator is moto's server, real enough here: S3, pipelines and the model registry keep and answer what they are given.
"""

import gzip
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from ferry import aws
from ferry.cli import main
from ferry.data import upload
from infra.aws.image import image_uri, own_training_image_uri, processing_image_uri
from infra.aws.pipeline_definition import pipeline_definition
from infra.aws.pipeline_requests import PipelineResources, TrainingCode
from infra.aws.source_bundle import source_bundle
from infra.settings import DATASETS_PREFIX, ROOT, TRAINING_PREFIX, Settings, load_settings
from model_code.environment import CHANNEL_FOLDERS
from model_code.training.dataset import lay_out
from tests.emulator_server import emulator_server
from tests.idx_files import digit_like, idx
from tests.local_settings import local_settings

ASSETS = "assets-of-the-tests"
_ROLE = "arn:aws:iam::123456789012:role/"


@dataclass(frozen=True)
class Account:
    """An environment whose AWS side is a running emulator; `settings_path` is the same for `ferry --env`."""

    settings: Settings
    settings_path: Path

    def client(self, service: str) -> Any:
        return aws.client(self.settings, service)

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        listed = self.client("s3").list_objects_v2(Bucket=bucket, Prefix=prefix)
        return [entry["Key"] for entry in listed.get("Contents", [])]


@contextmanager
def emulated(folder: Path) -> Iterator[Settings]:
    """A running emulator with nothing in it."""
    settings = local_settings(folder)
    assert settings.local is not None
    with emulator_server(settings.local.emulator_port):
        yield settings


def fresh_account(emulator: Settings, folder: Path) -> Account:
    """An environment of the test's own in a running emulator: buckets, model package group, a build folder."""
    name = "t" + hashlib.sha256(str(folder).encode()).hexdigest()[:8]
    path = Path(emulator.build_dir).with_name(f"{emulator.environment}.toml")
    own = path.read_text().replace(f'"{emulator.environment}"', f'"{name}"', 1)
    path = folder / f"{name}.toml"
    path.write_text(own.replace(f'"{emulator.build_dir}"', f'"{folder / "build"}"'))
    settings = load_settings(str(path))
    s3 = aws.client(settings, "s3")
    for bucket in (settings.data_bucket, settings.artifact_bucket, ASSETS):
        s3.create_bucket(Bucket=bucket)
    s3.put_bucket_versioning(Bucket=settings.artifact_bucket, VersioningConfiguration={"Status": "Enabled"})
    aws.client(settings, "sagemaker").create_model_package_group(ModelPackageGroupName=settings.model_package_group)
    return Account(settings, path)


def upload_images(account: Account, *, dataset: str = "mnist", train: int = 256, test: int = 60) -> str:
    """Upload tiny IDX channels as `ferry data upload` does; returns the manifest's sha256."""
    contents = {}
    for channel, prefix, count in (("training", "train", train), ("testing", "t10k", test)):
        images, labels = digit_like(count, seed=count)
        for name, values in (("images-idx3", images), ("labels-idx1", labels)):
            path = f"{CHANNEL_FOLDERS[channel]}/{prefix}-{name}-ubyte.gz"
            contents[path] = gzip.compress(idx(values), mtime=0)
    return upload_files(account, contents, dataset)


def upload_files(account: Account, contents: Mapping[str, bytes], dataset: str) -> str:
    """Upload files, by their paths below the dataset, and return the manifest's sha256."""
    settings = account.settings
    upload(settings, lay_out(contents, settings.build_path / "data" / dataset, dataset, "a test"), lambda _: None)
    answer = account.client("s3").get_object(Bucket=settings.data_bucket, Key=settings.dataset_manifest)
    return hashlib.sha256(answer["Body"].read()).hexdigest()


def definition(account: Account, *, own_image: bool = False) -> dict[str, Any]:
    """The pipeline of the account's settings, with the values that a deployment would fill in."""
    settings = account.settings
    bundle = source_bundle(ROOT)
    source = f"{bundle.digest}.tar.gz"
    account.client("s3").put_object(Bucket=ASSETS, Key=source, Body=bundle.archive)
    script = TrainingCode(
        "763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch:2", f"s3://{ASSETS}/{source}", "sha256:s"
    )
    own = TrainingCode(own_training_image_uri(settings), None, "sha256:own")
    resources = PipelineResources(
        datasets_uri=f"s3://{settings.data_bucket}/{DATASETS_PREFIX}",
        output_uri=f"s3://{settings.artifact_bucket}/{TRAINING_PREFIX}",
        code=own if own_image else script,
        processing_image=processing_image_uri(settings),
        serving_image=image_uri(settings),
        training_role_arn=f"{_ROLE}training",
        evaluation_role_arn=f"{_ROLE}evaluation",
        key_arn="arn:aws:kms:us-east-1:123456789012:key/00000000-0000-0000-0000-000000000000",
        volume_key_arns={},
    )
    return pipeline_definition(settings, resources)


def ferry(account: Account, *arguments: str) -> Result:
    """Run the command in the account's environment, in this process."""
    return CliRunner().invoke(main, ["--env", str(account.settings_path), *arguments])


def deploy(account: Account, **options: bool) -> None:
    """Create the pipeline under its own name."""
    account.client("sagemaker").create_pipeline(
        PipelineName=account.settings.pipeline,
        PipelineDefinition=json.dumps(definition(account, **options)),
        RoleArn=f"{_ROLE}pipeline",
        ClientRequestToken="t" * 32,
    )
