"""The emulator creates what its own tool would skip: pipelines and model package groups of a template."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from ferry import aws, local
from infra.settings import Settings
from tests.local_settings import local_settings

ROLE = {"Type": "AWS::IAM::Role", "Properties": {"RoleName": "role", "AssumeRolePolicyDocument": {"Statement": []}}}
GROUP = {"Type": "AWS::SageMaker::ModelPackageGroup", "Properties": {"ModelPackageGroupName": "group"}}


def silent(_: str) -> None:
    return None


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    settings = local_settings(tmp_path_factory.mktemp("emulator"))
    try:
        local.up(settings, ["emulator"], silent)
        yield settings
    finally:
        local.down(settings, silent)


def template(body: Any) -> str:
    pipeline = {
        "Type": "AWS::SageMaker::Pipeline",
        "Properties": {
            "PipelineName": "pipeline",
            "RoleArn": {"Fn::GetAtt": ["Role", "Arn"]},
            "PipelineDefinition": {"PipelineDefinitionBody": body},
        },
    }
    return json.dumps({"Resources": {"Role": ROLE, "Group": GROUP, "Pipeline": pipeline}})


def test_a_pipeline_is_deployed_changed_and_deleted_with_its_stack(settings: Settings) -> None:
    cloudformation, sagemaker = aws.client(settings, "cloudformation"), aws.client(settings, "sagemaker")

    def definition() -> str:
        return str(sagemaker.describe_pipeline(PipelineName="pipeline")["PipelineDefinition"])

    role = {"Fn::GetAtt": ["Role", "Arn"]}
    cloudformation.create_stack(StackName="s", TemplateBody=template({"Fn::Join": ["", ['{"role": "', role, '"}']]}))
    assert json.loads(definition()) == {"role": "arn:aws:iam::123456789012:role/role"}
    groups = sagemaker.list_model_package_groups()["ModelPackageGroupSummaryList"]
    assert [group["ModelPackageGroupName"] for group in groups] == ["group"]
    cloudformation.update_stack(StackName="s", TemplateBody=template("{}"))
    assert definition() == "{}"
    cloudformation.delete_stack(StackName="s")
    assert sagemaker.list_pipelines()["PipelineSummaries"] == []
    assert sagemaker.list_model_package_groups()["ModelPackageGroupSummaryList"] == []
