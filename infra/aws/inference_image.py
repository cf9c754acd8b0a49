"""AWS's last PyTorch inference image: script-mode serving of the same ONNX file, for those who need that image.

aws/deep-learning-containers, docs/src/data/pytorch-inference/2.6-cpu-sagemaker.yml: no later version serves, and this one has
had no patches since SUPPORT_ENDED. Our own image is what everything else here is made for.
"""

from infra.aws.training_image import registry_account
from model_code import environment

REPOSITORY = "pytorch-inference"
TAG = "2.6.0-cpu-py312-ubuntu22.04-sagemaker"
SUPPORT_ENDED = "2026-06-30"


def inference_image(region: str, *, url_suffix: str) -> str:
    """The image's URI in a region's registry. Raises SettingsError for a region without one."""
    return f"{registry_account(region)}.dkr.ecr.{region}.{url_suffix}/{REPOSITORY}:{TAG}"


def inference_repository_arn(region: str, *, partition: str) -> str:
    """What the hosting role may pull from. Raises SettingsError for a region without a registry."""
    return f"arn:{partition}:ecr:{region}:{registry_account(region)}:repository/{REPOSITORY}"


def serving_environment(region: str) -> dict[str, str]:
    """What aws/sagemaker-inference-toolkit reads (its parameters.py); code/ of the archive is unpacked below /opt/ml/model.

    TorchServe starts a worker for each CPU, so each of them keeps to one thread.
    """
    return {
        environment.BLAS_THREADS: "1",
        environment.THREADS: "1",
        "SAGEMAKER_PROGRAM": "inference.py",
        "SAGEMAKER_SUBMIT_DIRECTORY": "/opt/ml/model/code",
        "SAGEMAKER_CONTAINER_LOG_LEVEL": "20",
        "SAGEMAKER_REGION": region,
    }
