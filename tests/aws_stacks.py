"""Synthesizes the AWS stacks for tests, in this process, with the composition and the feature flags of app.py."""

import json
from pathlib import Path
from typing import Any

import aws_cdk as cdk

import app as composition
from infra.aws.foundation import FoundationStack
from infra.aws.hosting import HostingStack
from infra.aws.hosting_releases import hosted_releases
from infra.release import Release
from infra.settings import ROOT, Settings

STACKS = ("Foundation", "Image", "Training", "Hosting", "Gateway")
Template = dict[str, Any]


def new_app(folder: Path) -> cdk.App:
    """An app without stacks, with the feature flags of cdk.json."""
    flags = json.loads((ROOT / "cdk.json").read_text())["context"]
    return cdk.App(auto_synth=False, context=flags, outdir=str(folder))


def compose(folder: Path, settings: Settings, release: Release | None) -> cdk.App:
    """An app with the environment's stacks, not yet synthesized; its output goes to `folder`."""
    app = new_app(folder)
    composition.compose_aws(app, settings, release)
    return app


def compose_hosting(folder: Path, settings: Settings, release: Release) -> cdk.App:
    """The same with the stacks that [hosting] is about, and no others: half the time."""
    app = new_app(folder)
    foundation = FoundationStack(app, "Foundation", settings=settings)
    releases = hosted_releases(settings, release)
    HostingStack(app, "Hosting", settings=settings, foundation=foundation, releases=releases)
    return app


def synthesize(folder: Path, settings: Settings, release: Release | None) -> dict[str, Template]:
    """The templates by construct id."""
    compose(folder, settings, release).synth()
    return read_templates(folder)


def read_templates(folder: Path) -> dict[str, Template]:
    return {
        stack: json.loads((folder / f"{stack}.template.json").read_bytes())
        for stack in STACKS
        if (folder / f"{stack}.template.json").exists()
    }


def resources(template: Template, kind: str) -> list[dict[str, Any]]:
    """Properties of all resources of one CloudFormation type."""
    return [each.get("Properties", {}) for each in template["Resources"].values() if each["Type"] == kind]


def one(template: Template, kind: str) -> dict[str, Any]:
    """Properties of the only resource of its type."""
    (properties,) = resources(template, kind)
    return properties


def plain(value: Any) -> str:
    """A string that holds intrinsic functions, with each replaced by something of the right shape."""
    if isinstance(value, str):
        return value
    ((function, argument),) = value.items()
    if function == "Fn::Join":
        return str(argument[0]).join(map(plain, argument[1]))
    if function == "Ref" and argument == "AWS::URLSuffix":
        return "amazonaws.com"
    if function == "Fn::ImportValue" and "Roles" in argument:
        return "arn:aws:iam::111122223333:role/imported"
    if function in ("Fn::ImportValue", "Fn::GetAtt"):
        return "arn:aws:kms:eu-west-1:111122223333:key/00000000-0000-0000-0000-000000000000"
    raise AssertionError(f"no stand-in for {function} {argument}")
