"""The Hosting template as the requests that CloudFormation makes of it, and what SageMaker would say to them."""

from collections.abc import Iterator
from typing import Any

from botocore.validate import ParamValidator

from tests.aws_stacks import Template
from tests.pipeline_checks import operation_model, value_problems

# CloudFormation type: the request that its properties become.
REQUESTS = {
    "AWS::SageMaker::Model": "CreateModel",
    "AWS::SageMaker::EndpointConfig": "CreateEndpointConfig",
    "AWS::SageMaker::Endpoint": "CreateEndpoint",
    "AWS::SageMaker::InferenceExperiment": "CreateInferenceExperiment",
}
_ARN = "arn:aws:{service}:eu-west-1:111122223333:{name}"
# What a reference to a resource of a type, or to an attribute, becomes when it is deployed.
_REFERENCES = {
    "AWS::SNS::Topic": _ARN.format(service="sns", name="topic"),
    "AWS::EC2::Subnet": "subnet-0a1b2c3d4e5f60718",
    "AWS::EC2::SecurityGroup": "sg-0a1b2c3d4e5f60718",
    "AWS::CloudWatch::Alarm": "modelferry-alarm",
}


def requests(template: Template) -> Iterator[tuple[str, dict[str, Any]]]:
    """Operation and request of every SageMaker resource, all references resolved."""
    for resource in template["Resources"].values():
        if resource["Type"] in REQUESTS:
            yield REQUESTS[resource["Type"]], deployed(resource["Properties"], template)


def request_problems(template: Template) -> list[str]:
    """Every problem in words: members, types, enumerations and patterns of botocore's service model."""
    found = []
    for operation, request in requests(template):
        shape = operation_model(operation).input_shape
        report = ParamValidator().validate(request, shape)
        if report.has_errors():
            found.append(f"{operation}: {report.generate_report()}")
        found += value_problems(shape, request, operation)
    return found


def deployed(value: Any, template: Template) -> Any:
    """A copy of `value` with every intrinsic function replaced by something of the right shape."""
    if isinstance(value, list):
        return [deployed(each, template) for each in value]
    if not isinstance(value, dict):
        return value
    match value:
        case {"Ref": "AWS::URLSuffix"}:
            return "amazonaws.com"
        case {"Ref": str(name)}:
            return _REFERENCES[template["Resources"][name]["Type"]]
        case {"Fn::GetAtt": [str(name), str(attribute)]}:
            resource = template["Resources"][name]
            named = resource["Properties"].get(attribute)
            return deployed(named, template) if named else _REFERENCES[resource["Type"]]
        case {"Fn::ImportValue": str(export)}:
            role = "arn:aws:iam::111122223333:role/imported"
            return role if "Roles" in export else _ARN.format(service="kms", name="key/" + "0" * 8)
        case {"Fn::Join": [str(separator), list(parts)]}:
            return separator.join(str(deployed(part, template)) for part in parts)
    return {key: deployed(each, template) for key, each in value.items()}
