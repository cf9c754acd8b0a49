"""The gateway's stack by mode, layout, authorization and web ACL: what must never change about it, in sentences."""

import json
from pathlib import Path
from typing import Any

import aws_cdk as cdk
import botocore.session
import pytest
from cdk_nag import AwsSolutionsChecks
from syrupy.assertion import SnapshotAssertion

from infra.aws import gateway, gateway_errors, gateway_routes, gateway_waf
from infra.settings import ROOT
from model_code.inference import codecs, contract
from tests.aws_stacks import Template, one, plain, resources
from tests.gateway_stacks import POOL, VARIANTS, compose, gateway_settings, synthesize
from tests.nag import acknowledged, nag_reports
from tests.snapshots import TemplateSnapshot, without_asset_hashes
from tests.stack_fixtures import dev_settings, make_release

Templates = dict[str, dict[str, Template]]


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Templates:
    """Foundation and Gateway, by variant."""
    return {name: synthesize(tmp_path_factory.mktemp(name), gateway_settings(name)) for name in VARIANTS}


def methods(template: Template) -> dict[str, dict[str, Any]]:
    """All methods of the API, by verb and path."""
    paths = {
        name: (each["Properties"]["PathPart"], each["Properties"]["ParentId"])
        for name, each in template["Resources"].items()
        if each["Type"] == "AWS::ApiGateway::Resource"
    }

    def path(reference: dict[str, Any]) -> str:
        part, parent = paths[reference["Ref"]]
        return (path(parent) if "Ref" in parent else "") + f"/{part}"

    return {
        f"{each['HttpMethod']} {path(each['ResourceId'])}": each
        for each in resources(template, "AWS::ApiGateway::Method")
    }


def gateway_of(templates: Templates, variant: str) -> Template:
    return templates[variant]["Gateway"]


def classify_of(template: Template) -> dict[str, Any]:
    (method,) = (each for name, each in methods(template).items() if name.startswith("POST"))
    return method


# Routes


@pytest.mark.parametrize("variant", VARIANTS)
def test_there_are_two_routes_and_no_others(templates: Templates, variant: str) -> None:
    path = "/classify/async" if variant == "async" else "/classify"
    assert set(methods(gateway_of(templates, variant))) == {f"POST {path}", "GET /health"}


@pytest.mark.parametrize(("variant", "path"), [("default", "/v1/classify"), ("async", "/v1/classify/async")])
def test_the_url_that_the_stack_tells_is_that_of_the_post(templates: Templates, variant: str, path: str) -> None:
    (url,) = (each["Value"]["Fn::Join"][1] for each in gateway_of(templates, variant)["Outputs"].values())
    assert url[0] == "https://"
    assert url[-1].endswith(path)


def test_the_api_calls_the_endpoint_itself(templates: Templates) -> None:
    integration = classify_of(gateway_of(templates, "default"))["Integration"]
    assert integration["Type"] == "AWS"
    assert integration["Uri"].endswith(f":runtime.sagemaker:path/endpoints/{dev_settings().endpoint}/invocations")
    assert integration["TimeoutInMillis"] == 29_000


def test_the_gateway_waits_longer_than_the_model_may_take() -> None:
    assert contract.DEADLINE_SECONDS < gateway_routes.TIMEOUT_SECONDS


def test_an_async_request_is_a_body_or_an_object_and_its_answer_says_where_it_will_be(templates: Templates) -> None:
    method = classify_of(gateway_of(templates, "async"))
    assert method["Integration"]["Uri"].endswith("/async-invocations")
    request = method["Integration"]["RequestParameters"]
    header = "X-Amzn-SageMaker-InputLocation"
    assert request[f"integration.request.header.{header}"] == f"method.request.header.{header}"
    assert request["integration.request.header.X-Amzn-SageMaker-InvocationTimeoutSeconds"] == "'900'"
    assert request["integration.request.header.X-Amzn-SageMaker-Content-Type"] == "method.request.header.Content-Type"
    accepted = method["Integration"]["IntegrationResponses"][0]
    assert (accepted["SelectionPattern"], accepted["StatusCode"]) == ("202", "202")
    location = accepted["ResponseParameters"]["method.response.header.Location"]
    assert location == "integration.response.header.X-Amzn-SageMaker-OutputLocation"
    template = accepted["ResponseTemplates"]["application/json"].replace("$context.requestId", "11-22")
    assert json.loads(template) == {"inference_id": "11-22"}
    assert request["integration.request.header.X-Amzn-SageMaker-Inference-Id"] == "context.requestId"


def test_the_headers_of_the_runtime_are_those_of_its_service_model(templates: Templates) -> None:
    """A header of another name would be dropped without a word."""
    model = botocore.session.get_session().get_service_model("sagemaker-runtime")
    for variant, operation in (("default", "InvokeEndpoint"), ("async", "InvokeEndpointAsync")):
        members = model.operation_model(operation).input_shape.members.values()
        known = {each.serialization["name"] for each in members if each.serialization.get("location") == "header"}
        request = classify_of(gateway_of(templates, variant))["Integration"]["RequestParameters"]
        sent = {name.removeprefix("integration.request.header.") for name in request}
        assert sent - {"Content-Type"} <= known
    for header in gateway_routes.TARGET_HEADERS.values():
        assert header in {
            each.serialization.get("name")
            for each in model.operation_model("InvokeEndpoint").input_shape.members.values()
        }


def test_health_asks_the_control_plane_as_its_service_model_says(templates: Templates) -> None:
    model = botocore.session.get_session().get_service_model("sagemaker")
    integration = methods(gateway_of(templates, "default"))["GET /health"]["Integration"]
    operation = model.operation_model("DescribeEndpoint")
    assert integration["IntegrationHttpMethod"] == operation.http["method"]
    assert integration["Uri"].endswith(f":{model.endpoint_prefix}:path/{operation.http['requestUri']}")
    assert integration["RequestParameters"] == {
        "integration.request.header.Content-Type": f"'application/x-amz-json-{model.metadata['jsonVersion']}'",
        "integration.request.header.X-Amz-Target": f"'{model.metadata['targetPrefix']}.DescribeEndpoint'",
    }
    body = json.loads(integration["RequestTemplates"]["application/json"])
    assert body == {"EndpointName": dev_settings().endpoint}
    assert set(body) == set(operation.input_shape.members)


def test_health_names_the_release_that_is_deployed(templates: Templates) -> None:
    integration = methods(gateway_of(templates, "default"))["GET /health"]["Integration"]
    template = integration["IntegrationResponses"][0]["ResponseTemplates"]["application/json"]
    assert f'"release_id":"{make_release(dev_settings()).release_id}"' in template


@pytest.mark.parametrize(
    ("variant", "header"),
    [
        ("multi-model", "X-Amzn-SageMaker-Target-Model"),
        ("multi-container", "X-Amzn-SageMaker-Target-Container-Hostname"),
    ],
)
def test_where_there_are_several_models_a_request_has_to_name_one(
    templates: Templates, variant: str, header: str
) -> None:
    method = classify_of(gateway_of(templates, variant))
    assert method["RequestParameters"][f"method.request.header.{header}"] is True
    mapped = method["Integration"]["RequestParameters"][f"integration.request.header.{header}"]
    assert mapped == f"method.request.header.{header}"


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_method_validates_headers_and_body(templates: Templates, variant: str) -> None:
    template = gateway_of(templates, variant)
    validators = resources(template, "AWS::ApiGateway::RequestValidator")
    assert len(validators) == 2
    assert all(each["ValidateRequestBody"] and each["ValidateRequestParameters"] for each in validators)
    assert all("RequestValidatorId" in each for each in methods(template).values())


# Bytes and text


def test_what_the_core_reads_as_bytes_passes_as_bytes() -> None:
    text = {media_type for media_type in codecs.DECODERS if media_type.startswith(("text/", "application/json"))}
    assert set(codecs.DECODERS) - text <= set(gateway.BINARY_TYPES)


def test_an_answer_of_the_model_is_converted_by_its_type_and_an_error_never_is(templates: Templates) -> None:
    """With Accept: application/x-npy API Gateway would decode the envelope as base64, and answer 500."""
    for name, method in methods(gateway_of(templates, "default")).items():
        for response in method["Integration"]["IntegrationResponses"]:
            answer = name == "POST /classify" and response["StatusCode"] == "200"
            assert response.get("ContentHandling") == (None if answer else "CONVERT_TO_TEXT")


# By the kinds of the payload and of the first type of Accept, and by contentHandling: what API Gateway makes of an answer
# (Developer Guide, "Content type conversions in API Gateway", the rows for an API with binary types).
CONVERSIONS = {
    ("text", "text", None): "as it is",
    ("text", "text", "CONVERT_TO_TEXT"): "as it is",
    ("text", "bytes", None): "decoded as base64",
    ("text", "bytes", "CONVERT_TO_TEXT"): "as it is",
    ("bytes", "text", None): "encoded as base64",
    ("bytes", "bytes", None): "as it is",
}


def kind(media_type: str) -> str:
    return "bytes" if media_type in gateway.BINARY_TYPES else "text"


@pytest.mark.parametrize("accept", [*codecs.ENCODERS, "*/*", None])
def test_whoever_names_one_type_gets_answers_and_errors_as_they_are(templates: Templates, accept: str | None) -> None:
    first = kind(accept or "application/json")  # without Accept, API Gateway takes this
    payloads = {"200": kind(codecs.find_encoder(accept)[0])}
    for response in classify_of(gateway_of(templates, "default"))["Integration"]["IntegrationResponses"]:
        payload = payloads.get(response["StatusCode"], "text")
        assert CONVERSIONS[payload, first, response.get("ContentHandling")] == "as it is"


def test_the_docs_name_the_header_of_each_layout() -> None:
    text = (ROOT / "docs" / "gateway.md").read_text()
    for layout, header in gateway_routes.TARGET_HEADERS.items():
        assert f"| `{layout}` | `{header}` |" in text


def test_the_gateway_and_the_core_agree_on_the_header_of_the_release() -> None:
    assert gateway_routes.RELEASE_ID_HEADER == contract.RELEASE_ID_HEADER


# Errors


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_mapped_status_is_declared_with_the_headers_that_it_sets(templates: Templates, variant: str) -> None:
    for method in methods(gateway_of(templates, variant)).values():
        declared = {each["StatusCode"]: each.get("ResponseParameters", {}) for each in method["MethodResponses"]}
        for response in method["Integration"]["IntegrationResponses"]:
            assert set(response.get("ResponseParameters", {})) <= set(declared[response["StatusCode"]])


def test_what_api_gateway_answers_itself_is_declared_as_the_table_says(templates: Templates) -> None:
    declared = {
        each["ResponseType"]: (each.get("StatusCode"), each["ResponseTemplates"]["application/json"])
        for each in resources(gateway_of(templates, "default"), "AWS::ApiGateway::GatewayResponse")
    }
    own = gateway_errors.own_responses(dev_settings())
    assert declared == {each.type: (each.status, each.template) for each in own}


# Who may call


@pytest.mark.parametrize(
    ("variant", "kind", "key"),
    [("default", "AWS_IAM", None), ("api-key", "NONE", True), ("cognito", "COGNITO_USER_POOLS", None)],
)
def test_both_methods_are_behind_the_chosen_authorization(
    templates: Templates, variant: str, kind: str, key: bool | None
) -> None:
    for method in methods(gateway_of(templates, variant)).values():
        assert (method["AuthorizationType"], method.get("ApiKeyRequired")) == (kind, key)


def test_an_api_key_belongs_to_a_throttled_plan_of_this_stage_and_its_value_is_in_no_template(
    templates: Templates,
) -> None:
    template = gateway_of(templates, "api-key")
    plan = one(template, "AWS::ApiGateway::UsagePlan")
    limits = dev_settings().gateway
    assert plan["Throttle"] == {"RateLimit": limits.rate_limit, "BurstLimit": limits.burst_limit}
    assert len(plan["ApiStages"]) == 1
    assert one(template, "AWS::ApiGateway::UsagePlanKey")["KeyType"] == "API_KEY"
    assert "Value" not in one(template, "AWS::ApiGateway::ApiKey")


def test_cognito_users_of_the_given_pools_may_call(templates: Templates) -> None:
    authorizer = one(gateway_of(templates, "cognito"), "AWS::ApiGateway::Authorizer")
    assert (authorizer["Type"], authorizer["ProviderARNs"]) == ("COGNITO_USER_POOLS", [POOL])


@pytest.mark.parametrize(("variant", "invoke"), [("default", "InvokeEndpoint"), ("async", "InvokeEndpointAsync")])
def test_the_role_invokes_and_describes_one_endpoint_and_does_nothing_else(
    templates: Templates, variant: str, invoke: str
) -> None:
    (role,) = (
        each
        for each in resources(templates[variant]["Foundation"], "AWS::IAM::Role")
        if each["RoleName"].split("-")[2] == "gateway"
    )
    (policy,) = role["Policies"]
    statements = policy["PolicyDocument"]["Statement"]
    assert [each["Action"] for each in statements] == [f"sagemaker:{invoke}", "sagemaker:DescribeEndpoint"]
    assert all(each["Resource"].endswith(f":endpoint/{dev_settings().endpoint}") for each in statements)


# Stage, logs, web ACL


def test_throttling_follows_the_settings_and_no_body_is_logged(templates: Templates) -> None:
    stage = one(gateway_of(templates, "default"), "AWS::ApiGateway::Stage")
    (limits,) = stage["MethodSettings"]
    assert limits["ThrottlingRateLimit"] == dev_settings().gateway.rate_limit
    assert limits["ThrottlingBurstLimit"] == dev_settings().gateway.burst_limit
    assert limits["DataTraceEnabled"] is False
    assert stage["TracingEnabled"] is True


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_log_group_is_encrypted_and_ends(templates: Templates, variant: str) -> None:
    groups = resources(gateway_of(templates, variant), "AWS::Logs::LogGroup")
    assert len(groups) == 3
    assert all(each["KmsKeyId"] for each in groups)
    assert {each["RetentionInDays"] for each in groups} == {dev_settings().aws.log_retention_days}


def test_without_the_table_there_is_no_web_acl(templates: Templates) -> None:
    assert not [
        each for each in gateway_of(templates, "default")["Resources"].values() if each["Type"].startswith("AWS::WAF")
    ]


@pytest.fixture(scope="module")
def rules(templates: Templates) -> dict[str, dict[str, Any]]:
    acl = one(gateway_of(templates, "waf"), "AWS::WAFv2::WebACL")
    assert (acl["Scope"], acl["DefaultAction"]) == ("REGIONAL", {"Allow": {}})
    return {each["Name"]: each for each in acl["Rules"]}


def test_an_address_that_asks_too_often_is_refused(rules: dict[str, dict[str, Any]]) -> None:
    assert rules["RateLimit"]["Action"] == {"Block": {}}
    statement = rules["RateLimit"]["Statement"]["RateBasedStatement"]
    assert (statement["Limit"], statement["EvaluationWindowSec"], statement["AggregateKeyType"]) == (2000, 300, "IP")


def test_no_rule_of_the_common_set_refuses_a_body_and_every_other_one_holds(rules: dict[str, dict[str, Any]]) -> None:
    """One digit as JSON is over 8 KB, where SizeRestrictions_BODY refuses."""
    digit = json.dumps({"data": [[[[-0.42421296] * 28] * 28]]}).encode()
    assert len(digit) > 8 * 1024
    rule = rules["AWSManagedRulesCommonRuleSet"]
    assert rule["OverrideAction"] == {"None": {}}
    overrides = rule["Statement"]["ManagedRuleGroupStatement"]["RuleActionOverrides"]
    assert {each["Name"]: each["ActionToUse"] for each in overrides} == {
        name: {"Count": {}} for name in gateway_waf.COUNTED_RULES
    }
    assert all(name.endswith("_BODY") for name in gateway_waf.COUNTED_RULES)


def test_the_web_acl_is_on_the_stage_and_its_log_is_one_that_waf_takes_and_the_key_allows(templates: Templates) -> None:
    template = gateway_of(templates, "waf")
    assert "/stages/" in json.dumps(one(template, "AWS::WAFv2::WebACLAssociation")["ResourceArn"])
    logging = one(template, "AWS::WAFv2::LoggingConfiguration")
    (destination,) = logging["LogDestinationConfigs"]
    beginning, api = destination["Fn::Join"][1]  # and no ":*" behind, which WAF refuses
    assert beginning.endswith(f":log-group:{dev_settings().waf_log_prefix}")
    assert dev_settings().waf_log_prefix.startswith("aws-waf-logs-")
    names = [json.dumps(each.get("LogGroupName")) for each in resources(template, "AWS::Logs::LogGroup")]
    assert json.dumps({"Fn::Join": ["", [dev_settings().waf_log_prefix, api]]}) in names
    redacted = {each["SingleHeader"]["Name"] for each in logging["RedactedFields"]}
    assert redacted == {"authorization", "x-amz-security-token", "x-api-key"}
    key = one(templates["waf"]["Foundation"], "AWS::KMS::Key")
    (statement,) = (each for each in key["KeyPolicy"]["Statement"] if each.get("Sid") == "EncryptLogGroups")
    allowed = json.dumps(statement["Condition"]["ArnLike"]["kms:EncryptionContext:aws:logs:arn"])
    assert f"log-group:{dev_settings().waf_log_prefix}*" in allowed


# Alarms


@pytest.mark.parametrize(
    ("variant", "milliseconds"),
    [("default", 750), ("serverless", 5500), ("async", 1000)],
)
def test_errors_and_waiting_at_the_door_tell_the_endpoints_topic(
    templates: Templates, variant: str, milliseconds: int
) -> None:
    alarms = {each["MetricName"]: each for each in resources(gateway_of(templates, variant), "AWS::CloudWatch::Alarm")}
    assert alarms.keys() == {"5XXError", "Latency"}
    assert alarms["5XXError"]["Threshold"] == dev_settings().hosting.alarms.errors_5xx
    assert (alarms["Latency"]["Threshold"], alarms["Latency"]["ExtendedStatistic"]) == (milliseconds, "p95")
    for alarm in alarms.values():
        (action,) = alarm["AlarmActions"]
        assert plain(action).endswith(f":{dev_settings().alarm_topic}")
        assert alarm["TreatMissingData"] == "notBreaching"


# Whole stacks


@pytest.mark.parametrize("variant", VARIANTS)
def test_cdk_nag_finds_nothing_that_is_not_acknowledged(tmp_path: Path, variant: str) -> None:
    app = compose(tmp_path, gateway_settings(variant))
    cdk.Validations.of(app).add_plugins(AwsSolutionsChecks(app))
    app.synth()
    (report,) = (each for each in nag_reports(tmp_path) if each["pluginName"] == "AwsSolutions")
    assert report["violations"] == []
    found = {(each["acknowledgedAt"], each["acknowledgedId"]) for each in report["suppressedViolations"]}
    assert found == acknowledged(tmp_path)
    keys = {rule.split("-")[-1] for path, rule in found if path.startswith("Gateway")}
    assert ("APIG4" in keys) == (variant == "api-key")
    assert ("COG4" in keys) == (variant != "cognito")
    assert ("APIG3" in keys) == (variant != "waf")


@pytest.mark.parametrize("variant", ["api-key", "cognito", "waf", "async", "multi-model"])
def test_the_stack_is_the_reviewed_one(variant: str, templates: Templates, snapshot: SnapshotAssertion) -> None:
    assert without_asset_hashes(gateway_of(templates, variant)) == snapshot(extension_class=TemplateSnapshot)
