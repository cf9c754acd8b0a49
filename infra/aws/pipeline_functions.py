"""What a pipeline definition can say besides constants: values that SageMaker fills in while an execution runs.

The forms are those of definition schema 2020-12-01 (SageMaker Developer Guide, "Pass Data Between Steps" and the schema in
aws-sagemaker-mlops/sagemaker-model-building-pipeline-definition-JSON-schema).
"""

from typing import Any

Value = dict[str, Any]

EXECUTION_ID: Value = {"Get": "Execution.PipelineExecutionId"}
EXECUTION_ARN: Value = {"Get": "Execution.PipelineExecutionArn"}


def parameter(name: str) -> Value:
    """The value of a pipeline parameter."""
    return {"Get": f"Parameters.{name}"}


def step_property(step: str, path: str) -> Value:
    """A field of what describes the step's job (DescribeTrainingJob and so on), such as ModelArtifacts.S3ModelArtifacts."""
    return {"Get": f"Steps.{step}.{path}"}


def output_uri(step: str, output: str) -> Value:
    """Where a processing step left one of its outputs."""
    return step_property(step, f"ProcessingOutputConfig.Outputs['{output}'].S3Output.S3Uri")


def property_value(step: str, file: str, path: str) -> Value:
    """A value in a JSON file that a processing step wrote and declared as a property file."""
    return {"Std:JsonGet": {"PropertyFile": {"Get": f"Steps.{step}.PropertyFiles.{file}"}, "Path": path}}


def join(on: str, *values: Any) -> Value:
    """The values as one text, with `on` between them."""
    return {"Std:Join": {"On": on, "Values": list(values)}}
