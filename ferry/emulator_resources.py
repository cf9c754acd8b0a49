"""Pipelines and model package groups of a template, for the emulator.

moto 5.2 has both, and skips them in templates. Here a stack creates them through moto's own functions, so that what
`ferry train --local` runs is the definition that was deployed.
"""

from typing import Any

from moto.core.common_models import CloudFormationModel
from moto.sagemaker.models import sagemaker_backends


class _Named:
    """What CloudFormation remembers of a resource that moto keeps elsewhere: its name."""

    def __init__(self, name: str) -> None:
        self.physical_resource_id = name

    @classmethod
    def has_cfn_attr(cls, attr: str) -> bool:
        return False

    def is_created(self) -> bool:
        return True


# moto looks at the direct subclasses of its base class only.
class Pipeline(_Named, CloudFormationModel):
    """AWS::SageMaker::Pipeline."""

    @staticmethod
    def cloudformation_name_type() -> str:
        return "PipelineName"

    @staticmethod
    def cloudformation_type() -> str:
        return "AWS::SageMaker::Pipeline"

    @classmethod
    def create_from_cloudformation_json(
        cls, resource_name: str, cloudformation_json: Any, account_id: str, region_name: str, **_: Any
    ) -> "Pipeline":
        properties = cloudformation_json["Properties"]
        sagemaker_backends[account_id][region_name].create_pipeline(
            pipeline_name=resource_name,
            pipeline_display_name=resource_name,
            pipeline_definition=properties["PipelineDefinition"]["PipelineDefinitionBody"],
            pipeline_definition_s3_location={},
            pipeline_description=properties.get("PipelineDescription", ""),
            role_arn=properties["RoleArn"],
            tags=[],
            parallelism_configuration={},
        )
        return cls(resource_name)

    @classmethod
    def update_from_cloudformation_json(
        cls, original_resource: Any, new_resource_name: str, cloudformation_json: Any, account_id: str, region_name: str
    ) -> "Pipeline":
        cls.delete_from_cloudformation_json(new_resource_name, cloudformation_json, account_id, region_name)
        return cls.create_from_cloudformation_json(new_resource_name, cloudformation_json, account_id, region_name)

    @classmethod
    def delete_from_cloudformation_json(
        cls, resource_name: str, cloudformation_json: Any, account_id: str, region_name: str
    ) -> None:
        sagemaker_backends[account_id][region_name].pipelines.pop(resource_name, None)


class ModelPackageGroup(_Named, CloudFormationModel):
    """AWS::SageMaker::ModelPackageGroup. Updates and deletions leave its versions alone."""

    @staticmethod
    def cloudformation_name_type() -> str:
        return "ModelPackageGroupName"

    @staticmethod
    def cloudformation_type() -> str:
        return "AWS::SageMaker::ModelPackageGroup"

    @classmethod
    def create_from_cloudformation_json(
        cls, resource_name: str, cloudformation_json: Any, account_id: str, region_name: str, **_: Any
    ) -> "ModelPackageGroup":
        sagemaker_backends[account_id][region_name].create_model_package_group(
            model_package_group_name=resource_name,
            model_package_group_description=cloudformation_json["Properties"].get("ModelPackageGroupDescription", ""),
        )
        return cls(resource_name)

    @classmethod
    def update_from_cloudformation_json(
        cls, original_resource: Any, new_resource_name: str, cloudformation_json: Any, account_id: str, region_name: str
    ) -> "ModelPackageGroup":
        return cls.create_from_cloudformation_json(new_resource_name, cloudformation_json, account_id, region_name)

    @classmethod
    def delete_from_cloudformation_json(
        cls, resource_name: str, cloudformation_json: Any, account_id: str, region_name: str
    ) -> None:
        sagemaker_backends[account_id][region_name].model_package_groups.pop(resource_name, None)
