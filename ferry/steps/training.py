"""A Training step on this machine: the documented /opt/ml layout, the channels out of S3, the artifact back into it.

Two kinds of image are known: AWS's own in script mode, whose source bundle is fetched and whose program is run, and ours, whose
`train` executable is run. Both run under this machine's Python and its packages.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

from ferry.archive import write_archive
from ferry.errors import FerryError
from ferry.steps import objects
from ferry.steps.job import EXECUTABLES, StepJob, own_image
from ferry.steps.source import PROGRAM, fetch_source
from infra.settings import ROOT, Settings
from model_code import environment
from model_code.environment import MlPaths

_CHECKPOINTS = "/opt/ml/checkpoints"
_CODE = "code"


def refusals(settings: Settings, arguments: dict[str, Any]) -> list[str]:
    """What of a CreateTrainingJob request cannot be done on this machine."""
    algorithm = arguments["AlgorithmSpecification"]
    image = str(algorithm.get("TrainingImage", algorithm.get("AlgorithmName")))
    found = []
    if PROGRAM not in arguments.get("HyperParameters", {}) and not own_image(settings, image):
        found.append(f"image {image} (it is not built here, and no script is given to it)")
    if algorithm.get("TrainingInputMode", "File") == "Pipe":
        found.append("TrainingInputMode Pipe")
    if (count := arguments["ResourceConfig"].get("InstanceCount", 1)) != 1:
        found.append(f"InstanceCount {count}")
    if arguments["OutputDataConfig"].get("CompressionType", "GZIP") != "GZIP":
        found.append("OutputDataConfig.CompressionType NONE")
    for channel in arguments.get("InputDataConfig", []):
        if channel["DataSource"].get("S3DataSource", {}).get("S3DataType") not in ("S3Prefix", "ManifestFile"):
            found.append(f"channel {channel['ChannelName']}: a DataSource other than an S3Prefix or a ManifestFile")
        if channel.get("CompressionType", "None") != "None":
            found.append(f"channel {channel['ChannelName']}: CompressionType {channel['CompressionType']}")
    return found


def run(job: StepJob, arguments: dict[str, Any]) -> dict[str, Any]:
    """Run the training job of a CreateTrainingJob request; returns what DescribeTrainingJob would answer.

    Raises FerryError with the content of the job's failure file; its folder stays for reading.
    """
    s3, paths = job.client("s3"), MlPaths(job.folder)
    _write_input(paths, arguments)
    for channel in arguments["InputDataConfig"]:
        _fetch_channel(s3, channel, paths)
    checkpoints = arguments.get("CheckpointConfig")
    local = job.local_path((checkpoints or {}).get("LocalPath", _CHECKPOINTS))
    if checkpoints:
        objects.download(s3, checkpoints["S3Uri"], local)
    command, code = _command(s3, job.folder, arguments.get("HyperParameters", {}))
    try:
        exit_code = job.run(command, _variables(job, arguments, code), code)
    finally:
        if checkpoints:
            objects.upload(s3, local, checkpoints["S3Uri"])
    if exit_code != 0:
        cause = paths.failure.read_text() if paths.failure.exists() else "the job left no failure file"
        raise FerryError(f"training job {job.name} failed ({exit_code}): {cause.strip()}\nlog: {job.log}")
    output = f"{arguments['OutputDataConfig']['S3OutputPath'].rstrip('/')}/{job.name}/output"
    _put_archive(s3, paths.model, f"{output}/{environment.ARCHIVE_FILE}")
    _put_archive(s3, paths.output / "data", f"{output}/output.tar.gz")
    return arguments | {
        "TrainingJobName": job.name,
        "TrainingJobArn": job.arn("training-job"),
        "TrainingJobStatus": "Completed",
        "ModelArtifacts": {"S3ModelArtifacts": f"{output}/{environment.ARCHIVE_FILE}"},
        "FinalMetricDataList": _metrics(job.log, arguments["AlgorithmSpecification"].get("MetricDefinitions", [])),
    }


def _write_input(paths: MlPaths, arguments: dict[str, Any]) -> None:
    """The three JSON files that SageMaker mounts, with the keys of its developer guide."""
    algorithm = arguments["AlgorithmSpecification"]
    channels = {
        channel["ChannelName"]: {
            "TrainingInputMode": channel.get("InputMode", algorithm.get("TrainingInputMode", "File")),
            "S3DistributionType": channel["DataSource"]["S3DataSource"].get(
                "S3DataDistributionType", "FullyReplicated"
            ),
            "RecordWrapperType": channel.get("RecordWrapperType", "None"),
        }
        for channel in arguments["InputDataConfig"]
    }
    documents: dict[Path, Any] = {
        paths.hyperparameters: arguments.get("HyperParameters", {}),
        paths.input_data_config: channels,
        paths.resource_config: {"current_host": "algo-1", "hosts": ["algo-1"], "network_interface_name": "lo"},
    }
    for path, document in documents.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=2) + "\n")
    paths.model.mkdir(parents=True, exist_ok=True)
    paths.output.mkdir(parents=True, exist_ok=True)


def _fetch_channel(s3: Any, channel: dict[str, Any], paths: MlPaths) -> None:
    source = channel["DataSource"]["S3DataSource"]
    uri = source["S3Uri"]
    if not objects.download(s3, uri, paths.channel(channel["ChannelName"]), source["S3DataType"]):
        raise FerryError(
            f"channel {channel['ChannelName']}: nothing is at {uri}; upload a dataset first: ferry data upload"
        )


def _command(s3: Any, folder: Path, hyperparameters: dict[str, str]) -> tuple[list[str], Path]:
    """The command that the container would run, and the folder that its modules are imported from."""
    if PROGRAM not in hyperparameters:
        return [sys.executable, "-u", str(EXECUTABLES / "train")], ROOT
    fetch_source(s3, hyperparameters, folder / _CODE)
    return [sys.executable, "-u", hyperparameters[PROGRAM]], folder / _CODE


def _variables(job: StepJob, arguments: dict[str, Any], code: Path) -> dict[str, str]:
    """What SageMaker sets, and nothing of what AWS's toolkit adds."""
    given: dict[str, str] = arguments.get("Environment", {})
    return given | {
        environment.BASE_DIR: str(job.folder),
        "TRAINING_JOB_NAME": job.name,
        "TRAINING_JOB_ARN": job.arn("training-job"),
        "PYTHONPATH": str(code),
    }


def _put_archive(s3: Any, folder: Path, uri: str) -> None:
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }
    bucket, key = objects.split_uri(uri)
    s3.put_object(Bucket=bucket, Key=key, Body=write_archive(files), ChecksumAlgorithm="SHA256")


def _metrics(log: Path, definitions: list[dict[str, str]]) -> list[dict[str, Any]]:
    """The last value of every metric that the job's definitions find in its log."""
    text = log.read_text(encoding="utf-8", errors="replace")
    found = {each["Name"]: re.findall(each["Regex"], text) for each in definitions}
    return [{"MetricName": name, "Value": float(values[-1])} for name, values in found.items() if values]
