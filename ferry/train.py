"""Runs the training job on this machine as SageMaker would: channels out of the data bucket, /opt/ml, model.tar.gz into S3."""

import datetime
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ferry import aws
from ferry.archive import write_archive
from ferry.console import Report
from ferry.errors import FerryError
from infra.settings import ROOT, TRAINING_PREFIX, Settings
from model_code import environment
from model_code.environment import MlPaths

_STOP_SECONDS = 120  # what SageMaker grants between SIGTERM and SIGKILL


@dataclass(frozen=True)
class TrainingJob:
    """A finished job: its name, its own /opt/ml, and where its model artifact is."""

    name: str
    paths: MlPaths
    artifact_uri: str


def run_training_job(settings: Settings, dataset: str, report: Report) -> TrainingJob:
    """Train on what the data bucket holds, with the hyperparameters of the table [datasets.<dataset>].

    Each job has a folder of its own below the build folder; a failed one stays there for reading. Raises FerryError with
    the content of the job's failure file.
    """
    aws.local_settings(settings)
    table = settings.datasets.get(dataset, settings.datasets[settings.model.dataset])
    name = f"{settings.pipeline}-{datetime.datetime.now(datetime.UTC):%Y%m%d-%H%M%S-%f}"
    paths = MlPaths(settings.build_path / "training" / name)
    s3 = aws.client(settings, "s3")
    report(f"training job {name}")
    _write_input(paths, dict(table.hyperparameters))
    for channel, folder in environment.CHANNEL_FOLDERS.items():
        _download_channel(s3, settings, folder, paths.channel(channel))
    _run(settings, paths, dataset, report)
    key = f"{TRAINING_PREFIX}/{name}/output/{environment.ARCHIVE_FILE}"
    artifact = write_archive(_files_below(paths.model))
    s3.put_object(Bucket=settings.artifact_bucket, Key=key, Body=artifact, ChecksumAlgorithm="SHA256")
    return TrainingJob(name, paths, f"s3://{settings.artifact_bucket}/{key}")


def _write_input(paths: MlPaths, hyperparameters: dict[str, str]) -> None:
    """The three JSON files that SageMaker mounts, with the keys of its developer guide."""
    channel = {"TrainingInputMode": "File", "S3DistributionType": "FullyReplicated", "RecordWrapperType": "None"}
    documents: dict[Path, Any] = {
        paths.hyperparameters: hyperparameters,
        paths.input_data_config: dict.fromkeys(environment.CHANNEL_FOLDERS, channel),
        paths.resource_config: {"current_host": "algo-1", "hosts": ["algo-1"], "network_interface_name": "lo"},
    }
    for path, document in documents.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=2) + "\n")
    paths.model.mkdir(parents=True, exist_ok=True)
    paths.output.mkdir(parents=True, exist_ok=True)


def _download_channel(s3: Any, settings: Settings, folder: str, target: Path) -> None:
    prefix = f"{settings.dataset_prefix}/{folder}/"
    target.mkdir(parents=True, exist_ok=True)
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=settings.data_bucket, Prefix=prefix)
    keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
    if not keys:
        raise FerryError(
            f"s3://{settings.data_bucket}/{prefix}: nothing is there; upload a dataset first: ferry data upload"
        )
    for key in keys:
        s3.download_file(settings.data_bucket, key, str(target / Path(key).name))


def _run(settings: Settings, paths: MlPaths, dataset: str, report: Report) -> None:
    """The image's `train` executable, with the environment that SageMaker gives it and nothing of the toolkit's."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("SM_", "AWS_", "SAGEMAKER_"))
    }
    process = subprocess.Popen(
        [sys.executable, "-u", str(ROOT / "model_code" / "container" / "train")],
        env=inherited
        | {
            environment.BASE_DIR: str(paths.base),
            environment.MODEL_NAME: settings.model.name,
            environment.DATASET: dataset,
            environment.SOURCE_REVISION: source_revision(),
            "PYTHONPATH": str(ROOT),
            "TRAINING_JOB_NAME": paths.base.name,
        },
        cwd=paths.base,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    assert process.stdout is not None
    try:
        with process, (paths.base / "job.log").open("w", encoding="utf-8") as log:
            for line in process.stdout:
                log.write(line)
                report(f"  {line.rstrip()}")
    except BaseException:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
        raise
    if process.returncode != 0:
        cause = paths.failure.read_text() if paths.failure.exists() else "the job left no failure file"
        raise FerryError(f"training job {paths.base.name} failed ({process.returncode}): {cause}\nlog: {log.name}")


def source_revision() -> str:
    """The commit of the working tree, marked where it has changed since; `unknown` outside a checkout."""
    git = shutil.which("git")
    if git is None:
        return "unknown"
    answer = subprocess.run(
        [git, "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"], cwd=ROOT, capture_output=True, text=True
    )
    return answer.stdout.strip() if answer.returncode == 0 else "unknown"


def _files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
