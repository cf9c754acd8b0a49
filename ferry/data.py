"""Lays a dataset out as the two channels of the training job, and uploads it with its manifest last.

What a dataset is made of only the model knows: the module `dataset` in its folder below model_code/training/.
"""

import contextlib
import hashlib
import importlib
import io
import json
from pathlib import Path
from types import ModuleType
from typing import Any

from ferry import aws
from ferry.console import Report
from ferry.errors import FerryError, Refused
from infra.aws.pipeline_requests import ALL_FILES, input_manifest
from infra.settings import DATASETS_PREFIX, MANIFEST_FILE, ROOT, DatasetSettings, Settings
from model_code.environment import CHANNEL_FOLDERS
from model_code.training.dataset import Dataset
from model_code.training.errors import BadConfiguration, TrainingError
from model_code.training.examples import Examples

_JSON = {"ContentType": "application/json", "ChecksumAlgorithm": "SHA256"}


def known_models() -> list[str]:
    """The folders below model_code/training that bring a dataset."""
    return sorted(path.parent.name for path in (ROOT / "model_code" / "training").glob("*/dataset.py"))


def prepare(settings: Settings, source: str | None, report: Report) -> Dataset:
    """Lay a dataset of the environment's model out below its build folder.

    `source` is what the model's `dataset.prepare` takes, None its default. Raises Refused for a source that it does not
    take, and FerryError for one that cannot be read.
    """
    try:
        dataset: Dataset = _module(settings, "dataset").prepare(source, settings.build_path / "data", report)
    except TrainingError as error:
        kind = Refused if isinstance(error, BadConfiguration) else FerryError
        raise kind(f"{error}. {error.hint}") from error
    return dataset


def read_test_set(settings: Settings, dataset: Dataset) -> Examples:
    """The testing channel of a dataset that `prepare` laid out, as the training job reads it."""
    with contextlib.redirect_stdout(io.StringIO()):  # it is the job that reports to standard output
        examples: Examples = _module(settings, "data").read_channel(
            dataset.folder / CHANNEL_FOLDERS["testing"], "testing"
        )
    return examples


def dataset_settings(settings: Settings, dataset: str) -> DatasetSettings:
    """The table of a dataset; one without a table is held to that of model.dataset."""
    return settings.datasets.get(dataset, settings.datasets[settings.model.dataset])


def upload(settings: Settings, dataset: Dataset, report: Report) -> str:
    """Put a version of the dataset into the data bucket, its manifest after its files; returns the manifest's s3:// URI.

    A version lies below the sha256 of its manifest, and no other version's files do: an execution of the pipeline reads the
    version that it was started with to its end, whatever is uploaded meanwhile. Then the dataset's own prefix names it as the
    newest. Last comes the object that announces it; it is written once, and its creation starts the pipeline: so half an upload
    starts nothing, and the same data start it once. Files that the bucket already holds with the same content are left alone,
    so an interrupted upload is simply run again. Earlier versions stay.
    """
    s3, bucket = aws.client(settings, "s3"), settings.data_bucket
    files = {f"{path.parent.name}/{path.name}": path for path in dataset.files()}
    entries = [_entry(name, path) for name, path in files.items()]
    document = {"schema_version": 2, "dataset": dataset.name, "files": entries}
    manifest = (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()
    version = settings.dataset_version(hashlib.sha256(manifest).hexdigest())
    prefix = f"{DATASETS_PREFIX}/{version}"
    for entry, path in zip(entries, files.values(), strict=True):
        _upload_file(s3, settings, f"{prefix}/{entry['path']}", path, entry["sha256"], report)
    documents = _input_manifests(f"s3://{bucket}/{prefix}/", list(files)) | {MANIFEST_FILE: manifest}
    for place in (prefix, settings.dataset_prefix):
        for name, content in documents.items():
            s3.put_object(Bucket=bucket, Key=f"{place}/{name}", Body=content, **_JSON)
    try:
        s3.put_object(Bucket=bucket, Key=version, Body=manifest, IfNoneMatch="*", **_JSON)
    except s3.exceptions.ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] not in (409, 412):
            raise
        report("  the same data were uploaded before: this starts no pipeline")
    return f"s3://{bucket}/{settings.dataset_manifest}"


def _entry(name: str, path: Path) -> dict[str, Any]:
    """What the manifest says of one file."""
    content = path.read_bytes()
    return {"path": name, "sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}


def _input_manifests(prefix: str, names: list[str]) -> dict[str, bytes]:
    """What the pipeline's jobs are given as an S3DataType ManifestFile: the files of each channel's folder, and all of them."""
    found = {input_manifest(ALL_FILES): json.dumps([{"prefix": prefix}, *names]).encode()}
    for folder in CHANNEL_FOLDERS.values():
        below = f"{folder}/"
        own = [name.removeprefix(below) for name in names if name.startswith(below)]
        found[input_manifest(folder)] = json.dumps([{"prefix": f"{prefix}{below}"}, *own]).encode()
    return found


def _upload_file(s3: Any, settings: Settings, key: str, path: Path, sha256: str, report: Report) -> None:
    """Put one file under its key unless it is there."""
    if _stored_sha256(s3, settings.data_bucket, key) == sha256:
        report(f"  {key}: already there")
        return
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise FerryError(f"{path}: changed while it was uploaded; nothing was started, run it again")
    s3.put_object(
        Bucket=settings.data_bucket, Key=key, Body=content, Metadata={"sha256": sha256}, ChecksumAlgorithm="SHA256"
    )
    report(f"  {key}: {len(content):,} bytes")


def _stored_sha256(s3: Any, bucket: str, key: str) -> str | None:
    try:
        head = s3.head_object(Bucket=bucket, Key=key)
    except s3.exceptions.ClientError as error:
        if error.response["Error"]["Code"] in ("404", "NoSuchKey", "NotFound"):
            return None
        raise
    sha256: str | None = head["Metadata"].get("sha256")
    return sha256


def _module(settings: Settings, name: str) -> ModuleType:
    """`data` or `dataset` of the environment's model; neither needs its framework."""
    if settings.model.name not in known_models():
        raise Refused(
            f"model.name is {settings.model.name!r}; the models in model_code/training: {', '.join(known_models())}"
        )
    return importlib.import_module(f"model_code.training.{settings.model.name}.{name}")
