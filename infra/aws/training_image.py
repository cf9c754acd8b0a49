"""AWS's PyTorch training image: the one that script mode runs our training code in."""

from aws_cdk import region_info

from infra.settings import SettingsError

# aws/deep-learning-containers: docs/src/data/pytorch/2.13-cpu-sagemaker.yml lists the tag (Python 3.12, supported until
# 2027-07-20), .github/config/image/pytorch/2.13-sagemaker-cpu.yml publishes it to the regional registries. It has the torch
# version that pyproject.toml pins; these images train only, none of them serves.
REPOSITORY = "pytorch"
TAG = "2.13-cpu-amzn2023-sagemaker"


def training_image(region: str, *, url_suffix: str) -> str:
    """The image's URI in a region's registry. Raises SettingsError for a region without one."""
    return f"{registry_account(region)}.dkr.ecr.{region}.{url_suffix}/{REPOSITORY}:{TAG}"


def training_repository_arn(region: str, *, partition: str) -> str:
    """What the training role may pull from. Raises SettingsError for a region without a registry."""
    return f"arn:{partition}:ecr:{region}:{registry_account(region)}:repository/{REPOSITORY}"


def registry_account(region: str) -> str:
    """The account of AWS's deep learning containers in a region. Raises SettingsError for a region without one."""
    account = region_info.Fact.find(region, region_info.FactName.DLC_REPOSITORY_ACCOUNT)
    if account is None:
        known = sorted(
            name
            for name in region_info.Fact.regions
            if region_info.Fact.find(name, region_info.FactName.DLC_REPOSITORY_ACCOUNT)
        )
        raise SettingsError(f"aws.region: AWS has no PyTorch images in {region!r}; allowed: {', '.join(known)}")
    return account
