"""Synthesizes the gateway's stack for tests, behind a stack that stands for Hosting: a name and a release are all it needs."""

import json
from pathlib import Path
from typing import Any

import aws_cdk as cdk

from infra.aws.foundation import FoundationStack
from infra.aws.gateway import GatewayStack
from infra.aws.stack import EnvironmentStack
from infra.settings import ROOT, Settings
from infra.settings_hosting import GatewaySettings, HostingSettings
from tests.aws_stacks import Template
from tests.stack_fixtures import dev_settings, make_release

POOL = "arn:aws:cognito-idp:eu-west-1:111122223333:userpool/eu-west-1_abcdefghi"
# What each variant changes in config/dev.toml.
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "api-key": {"gateway": {"authorization": "api-key"}},
    "cognito": {"gateway": {"authorization": "cognito", "cognito_user_pool_arns": [POOL]}},
    "waf": {"gateway": {"waf": {}}},
    "async": {"hosting": {"mode": "async"}},
    "serverless": {"hosting": {"mode": "serverless"}},
    "multi-model": {"hosting": {"layout": "multi-model"}},
    "multi-container": {
        "hosting": {"layout": "multi-container", "containers": [{"hostname": "first"}, {"hostname": "second"}]}
    },
}


def gateway_settings(variant: str) -> Settings:
    changes = VARIANTS[variant]
    return dev_settings().model_copy(
        update={
            "gateway": GatewaySettings.model_validate(changes.get("gateway", {})),
            "hosting": HostingSettings.model_validate(changes.get("hosting", {})),
        }
    )


class Hosted(EnvironmentStack):
    """What the gateway asks of HostingStack."""

    def __init__(self, scope: cdk.App, settings: Settings) -> None:
        release = make_release(settings)
        super().__init__(scope, "Hosting", settings=settings, purpose="hosting", description="-", release=release)
        self.release = release
        self.endpoint_name = settings.endpoint
        cdk.CfnWaitConditionHandle(self, "Resource")  # CloudFormation takes no empty stack


def app_in(folder: Path) -> cdk.App:
    flags = json.loads((ROOT / "cdk.json").read_text())["context"]
    return cdk.App(auto_synth=False, context=flags, outdir=str(folder))


def compose(folder: Path, settings: Settings) -> cdk.App:
    """Not yet synthesized; the output goes to `folder`."""
    app = app_in(folder)
    foundation = FoundationStack(app, "Foundation", settings=settings)
    hosted: Any = Hosted(app, settings)
    GatewayStack(app, "Gateway", settings=settings, foundation=foundation, hosting=hosted)
    return app


def synthesize(folder: Path, settings: Settings) -> dict[str, Template]:
    """The templates of Foundation and Gateway."""
    compose(folder, settings).synth()
    return {name: json.loads((folder / f"{name}.template.json").read_bytes()) for name in ("Foundation", "Gateway")}
