"""checkov's policies on the templates of both clouds. What it does not know is checked in test_infra_aws and test_infra_azure.

It runs offline and in its own environment, because its pins clash with ours; `make test` builds that one.
"""

import json
import os
import re
import shutil
import subprocess
from collections import Counter
from typing import Any

import pytest

from infra.settings import ROOT
from tests import aws_stacks
from tests.azure_stack import VARIANTS, azure_settings, synthesize_template
from tests.hosting_variants import VARIANTS as HOSTING_VARIANTS
from tests.hosting_variants import variant_settings
from tests.stack_fixtures import dev_settings, make_release

CHECKOV = ROOT / ".venv-checkov" / "bin" / "checkov"
Report = dict[str, Any]

# What checkov finds and we decided otherwise: by framework, "check resource" and the reason.
ACCEPTED: dict[str, dict[str, str]] = {
    "cloudformation": {
        "CKV_AWS_18 Logs": "It holds the access logs of the other buckets; its own would log themselves for ever.",
        "CKV_AWS_27 DeadLetters": "SQS encrypts it with a key of its own; the check accepts customers' keys only.",
        "CKV_AWS_370 Model": "Serverless knows no network isolation; elsewhere isolation = false is somebody's decision.",
        "CKV_AWS_120 ApiDeploymentStagev1": "Every request is a POST with new data; no answer can be cached.",
    },
    "terraform_json": {
        "CKV_AZURE_212 service_plan": "A Flex Consumption plan has no fixed instances; Azure adds and replaces them.",
        "CKV_AZURE_225 service_plan": "Flex Consumption offers zone redundancy in some regions only.",
        "CKV_AZURE_59 storage_account": "Without private_endpoints the host reaches storage by role, over TLS.",
        "CKV2_AZURE_33 storage_account": "The same: the endpoint comes with private_endpoints.",
        "CKV_AZURE_221 function_app": "The same for the app itself; keys or tokens stand before it.",
        "CKV_AZURE_36 storage_account": "With private_endpoints nobody is let through, Microsoft's services included.",
        "CKV2_AZURE_40 storage_account": 'storage_auth = "connection-string" is the fallback that needs a key.',
        "CKV_AZURE_206 storage_account": "Everything in it is written again by the next deployment.",
        "CKV2_AZURE_1 storage_account": "No data of customers: the package and the host's own records. Encrypted twice.",
        "CKV_AZURE_33 storage_account": "No queue of ours; azurerm 5 drops the argument that the check reads.",
        "CKV2_AZURE_21 deployment_container": "The resource that the check wants reads the account with a shared key.",
    },
}


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Report]:
    """checkov's report for each framework, from one run over the templates of config/dev.toml."""
    if not CHECKOV.exists():
        pytest.fail(f"{CHECKOV} is missing; `make .venv-checkov/.ready` builds its environment")
    folder = tmp_path_factory.mktemp("checkov")
    scanned = folder / "templates"
    scanned.mkdir()
    aws_stacks.synthesize(folder / "aws", dev_settings(), make_release(dev_settings()))
    for template in (folder / "aws").glob("*.template.json"):
        shutil.copy(template, scanned)
    for name in HOSTING_VARIANTS:
        settings = variant_settings(name, folder / name)
        aws_stacks.compose_hosting(folder / name / "aws", settings, make_release(settings)).synth()
        shutil.copy(folder / name / "aws" / "Hosting.template.json", scanned / f"{name}.template.json")
    for name, changes in VARIANTS.items():
        # The runner reads only what ends in .tf.json; under another name it reports nothing and succeeds.
        template = json.loads(synthesize_template(folder / name, azure_settings(**changes)).read_bytes())
        template.pop("import", None)  # it cannot read such a block, and would leave the whole file out
        (scanned / name).mkdir()
        (scanned / name / "cdk.tf.json").write_text(json.dumps(template))
    command = [str(CHECKOV), "--directory", str(scanned), "--framework", "cloudformation", "terraform_json"]
    command += ["--skip-download", "--compact", "--quiet", "--output", "json"]
    # Whatever it may want from the network is refused at once.
    offline = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://localhost:1")
    variables = {"PATH": os.environ["PATH"], "HOME": str(folder), "CKV_SKIP_PACKAGE_UPDATE_CHECK": "true", **offline}
    finished = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert finished.returncode in (0, 1), finished.stderr
    return {report["check_type"]: report for report in json.loads(finished.stdout)}


def found(report: Report) -> dict[str, str]:
    """What each failed check wants, by "check resource": a name without the type in front and the CDK's hash behind."""
    findings = {}
    for check in report["results"]["failed_checks"]:
        resource = re.sub(r"[0-9A-F]{8}$", "", check["resource"].split(".")[-1])
        findings[f"{check['check_id']} {resource}"] = check["check_name"]
    return findings


@pytest.mark.parametrize("framework", ACCEPTED)
def test_d20_checkov_read_the_templates(framework: str, reports: dict[str, Report]) -> None:
    summary = reports[framework]["summary"]
    assert summary["passed"] + summary["failed"] > 0
    assert summary["parsing_errors"] == 0


def test_d20_checkov_examined_every_variant_of_the_azure_stack(reports: dict[str, Report]) -> None:
    results = reports["terraform_json"]["results"]
    examined = Counter(check["file_path"].split("/")[1] for check in results["failed_checks"])
    assert set(examined) == set(VARIANTS)  # of a compact report the failed checks are all there is
    assert reports["terraform_json"]["summary"]["passed"] >= 10 * len(VARIANTS)


def test_only_what_has_no_isolation_or_is_told_to_be_without_is_found_to_be(reports: dict[str, Report]) -> None:
    failed = reports["cloudformation"]["results"]["failed_checks"]
    found_in = {check["file_path"].split(".")[0] for check in failed if check["check_id"] == "CKV_AWS_370"}
    assert found_in == {"/serverless-single", "/serverless-scaling", "/realtime-own-network-open"}


@pytest.mark.parametrize("framework", ACCEPTED)
def test_d20_checkov_finds_nothing_that_was_not_accepted_with_a_reason(
    framework: str, reports: dict[str, Report]
) -> None:
    findings = found(reports[framework])
    assert {key: name for key, name in findings.items() if key not in ACCEPTED[framework]} == {}


@pytest.mark.parametrize("framework", ACCEPTED)
def test_every_accepted_finding_is_still_found(framework: str, reports: dict[str, Report]) -> None:
    assert [key for key in ACCEPTED[framework] if key not in found(reports[framework])] == []
