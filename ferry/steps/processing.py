"""A Processing step on this machine: inputs out of S3 below /opt/ml/processing, one executable of our image, outputs back."""

import json
from typing import Any

from ferry.errors import FerryError
from ferry.steps import objects
from ferry.steps.job import StepJob, own_image, python_command
from infra.settings import ROOT, Settings
from model_code import environment


def refusals(settings: Settings, arguments: dict[str, Any]) -> list[str]:
    """What of a CreateProcessingJob request cannot be done on this machine."""
    app, cluster = arguments["AppSpecification"], arguments["ProcessingResources"]["ClusterConfig"]
    found = []
    if not own_image(settings, app["ImageUri"]):
        found.append(f"image {app['ImageUri']} (it is not built here)")
    if python_command(_command(app)) is None:
        found.append(
            f"command {' '.join(_command(app)) or '(the image’s own)'} (neither an executable of our images nor a module of ours)"
        )
    if cluster.get("InstanceCount", 1) != 1:
        found.append(f"InstanceCount {cluster['InstanceCount']}")
    for each in arguments.get("ProcessingInputs", []):
        if "S3Input" not in each or each["S3Input"].get("S3InputMode", "File") != "File":
            found.append(f"input {each['InputName']}: anything but an S3Input in mode File")
    for each in arguments.get("ProcessingOutputConfig", {}).get("Outputs", []):
        if "S3Output" not in each or each["S3Output"].get("S3UploadMode") != "EndOfJob":
            found.append(f"output {each['OutputName']}: anything but an S3Output in mode EndOfJob")
    return found


def run(job: StepJob, arguments: dict[str, Any]) -> dict[str, Any]:
    """Run the processing job of a CreateProcessingJob request; returns what DescribeProcessingJob would answer.

    Raises FerryError with the end of its log.
    """
    s3 = job.client("s3")
    for each in arguments.get("ProcessingInputs", []):
        source = each["S3Input"]
        if not objects.download(s3, source["S3Uri"], job.local_path(source["LocalPath"]), source["S3DataType"]):
            raise FerryError(f"processing job {job.name}: input {each['InputName']}: nothing is at {source['S3Uri']}")
    outputs = arguments.get("ProcessingOutputConfig", {}).get("Outputs", [])
    for each in outputs:
        job.local_path(each["S3Output"]["LocalPath"]).mkdir(parents=True, exist_ok=True)
    _write_config(job, arguments)
    _run(job, arguments)
    for each in outputs:
        objects.upload(s3, job.local_path(each["S3Output"]["LocalPath"]), each["S3Output"]["S3Uri"])
    return arguments | {
        "ProcessingJobName": job.name,
        "ProcessingJobArn": job.arn("processing-job"),
        "ProcessingJobStatus": "Completed",
    }


def read_property_files(job: StepJob, step: dict[str, Any], properties: dict[str, Any]) -> dict[str, Any]:
    """The step's property files, parsed, by name: each lies at an output's S3Uri. Raises FerryError for one that is not there."""
    outputs = {
        each["OutputName"]: each["S3Output"]["S3Uri"]
        for each in properties.get("ProcessingOutputConfig", {}).get("Outputs", [])
    }
    files = {}
    for each in step.get("PropertyFiles", []):
        bucket, prefix = objects.split_uri(outputs[each["OutputName"]])
        key = f"{prefix.rstrip('/')}/{each['FilePath']}"
        try:
            body = job.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read()
            files[each["PropertyFileName"]] = json.loads(body)
        except (job.client("s3").exceptions.NoSuchKey, ValueError) as error:
            raise FerryError(f"property file {each['PropertyFileName']}: s3://{bucket}/{key}: {error}") from error
    return files


def _command(app: dict[str, Any]) -> list[str]:
    """Entry point and arguments; our images' own entry point is env, which runs its first argument."""
    return [*app.get("ContainerEntrypoint", []), *app.get("ContainerArguments", [])]


def _write_config(job: StepJob, arguments: dict[str, Any]) -> None:
    """The two JSON files of a processing container (developer guide, "How Amazon SageMaker Processing configures")."""
    folder = job.folder / "config"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "processingjobconfig.json").write_text(json.dumps(arguments, indent=2) + "\n")
    (folder / "resourceconfig.json").write_text(json.dumps({"current_host": "algo-1", "hosts": ["algo-1"]}) + "\n")


def _run(job: StepJob, arguments: dict[str, Any]) -> None:
    command = python_command(_command(arguments["AppSpecification"]))
    assert command is not None  # refused before anything started
    variables = arguments.get("Environment", {}) | {
        environment.BASE_DIR: str(job.folder),
        "PROCESSING_JOB_NAME": job.name,
        "PYTHONPATH": str(ROOT),
    }
    exit_code = job.run(command, variables, job.folder)
    if exit_code != 0:
        message = job.folder / "output" / "message"  # becomes the job's ExitMessage
        lines = job.log.read_text(encoding="utf-8", errors="replace").splitlines()
        cause = message.read_text().strip() if message.exists() else "\n".join(lines[-15:])
        raise FerryError(f"processing job {job.name} failed ({exit_code}): {cause}\nlog: {job.log}")
