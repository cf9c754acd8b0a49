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
from infra.settings import ROOT, DatasetSettings, Settings
from model_code.environment import CHANNEL_FOLDERS
from model_code.training.dataset import Dataset
from model_code.training.errors import BadConfiguration, TrainingError
from model_code.training.examples import Examples


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
    """Make the dataset prefix of the data bucket hold these files, their manifest last; returns the manifest's s3:// URI.

    A copy of the manifest under its own sha256 comes after everything else and is written once: its creation starts the
    pipeline, so half an upload starts nothing, and the same data start it once. Files that the bucket already holds with the
    same content are left alone, so an interrupted upload is simply run again. Files of an earlier dataset leave the channels;
    the bucket keeps their versions.
    """
    s3, bucket = aws.client(settings, "s3"), settings.data_bucket
    entries = [_upload_file(s3, settings, path, report) for path in dataset.files()]
    _remove_others(s3, settings, {entry["key"] for entry in entries}, report)
    document = {"schema_version": 1, "dataset": dataset.name, "files": entries}
    manifest = (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()
    options = {"ContentType": "application/json", "ChecksumAlgorithm": "SHA256"}
    s3.put_object(Bucket=bucket, Key=settings.dataset_manifest, Body=manifest, **options)
    started = settings.started_manifest(hashlib.sha256(manifest).hexdigest())
    try:
        s3.put_object(Bucket=bucket, Key=started, Body=manifest, IfNoneMatch="*", **options)
    except s3.exceptions.ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] not in (409, 412):
            raise
        report("  the same data were uploaded before: this starts no pipeline")
    return f"s3://{bucket}/{settings.dataset_manifest}"


def _upload_file(s3: Any, settings: Settings, path: Path, report: Report) -> dict[str, Any]:
    """Put one file into its channel unless it is there; returns its entry in the manifest."""
    content = path.read_bytes()
    key = f"{settings.dataset_prefix}/{path.parent.name}/{path.name}"
    digest = hashlib.sha256(content).hexdigest()
    if _stored_sha256(s3, settings.data_bucket, key) == digest:
        report(f"  {key}: already there")
    else:
        s3.put_object(
            Bucket=settings.data_bucket, Key=key, Body=content, Metadata={"sha256": digest}, ChecksumAlgorithm="SHA256"
        )
        report(f"  {key}: {len(content):,} bytes")
    return {"key": key, "sha256": digest, "size": len(content)}


def _remove_others(s3: Any, settings: Settings, ours: set[str], report: Report) -> None:
    for channel in CHANNEL_FOLDERS.values():
        prefix = f"{settings.dataset_prefix}/{channel}/"
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket=settings.data_bucket, Prefix=prefix)
        for key in [entry["Key"] for page in pages for entry in page.get("Contents", [])]:
            if key not in ours:
                s3.delete_object(Bucket=settings.data_bucket, Key=key)
                report(f"  {key}: of an earlier dataset, removed")


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
