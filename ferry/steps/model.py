"""RegisterModel and Model steps: the same requests, to the emulator's registry and control plane."""

from typing import Any

from ferry.steps.job import StepJob

_MAX_MODEL_NAME = 63


def register(job: StepJob, arguments: dict[str, Any]) -> dict[str, Any]:
    """Register a version in the model package group; returns what DescribeModelPackage answers."""
    sagemaker = job.client("sagemaker")
    arn = sagemaker.create_model_package(**arguments)["ModelPackageArn"]
    job.report(f"  registered {arn}: {arguments.get('ModelApprovalStatus', 'without an approval status')}")
    return arguments | {"ModelPackageArn": arn, "ModelPackageStatus": "Completed"}


def create(job: StepJob, arguments: dict[str, Any]) -> dict[str, Any]:
    """Create the model under the job's name; returns what DescribeModel answers."""
    name = job.name[:_MAX_MODEL_NAME]
    arn = job.client("sagemaker").create_model(ModelName=name, **arguments)["ModelArn"]
    return arguments | {"ModelName": name, "ModelArn": arn}
