"""The commands around a deployment: what would stop it before it starts, and what stands afterwards."""

import json
from dataclasses import asdict

import click

from ferry.cli import main, pass_settings
from ferry.console import OUT
from infra.settings import Settings

_json = click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
_STYLES = {"ok": "green", "busy": "red", "repair": "red", "set up": "red"}


@main.command()
@click.argument("cloud", type=click.Choice(("aws", "azure", "all")), default="all")
@_json
@pass_settings
def preflight(settings: Settings, cloud: str, as_json: bool) -> None:
    """Look at everything that `cdk deploy` and `cdktf deploy` need, before they start. Reads only; done in ten seconds.

    One line for each check. "set up", "repair" and "busy" stop a deployment and say what to do; "none yet" is what a
    deployment, or another step before it, will make; "not checked" says why nothing is known.

    \b
    aws    credentials and their account, the clock, region, bootstrap version, the release and its object in S3, the images
           in ECR, every stack, buckets, endpoint, instance quota
    azure  sign-in, subscription, location, package, terraform, the lock of its state, the app

    \b
    Exit codes:
    0   nothing stands in the way
    1   "repair", "busy": something that is there has to be mended, or to end, first
    2   "set up": credentials, account, clock, bootstrap, region, quota, subscription or a tool are not
        what the settings want. It goes before 1: in another account nothing else that was found counts
    """
    from ferry.preflight import preflight, refusal
    from ferry.preflight_aws import aws_checks
    from ferry.preflight_azure import azure_checks

    checks = [
        *(aws_checks(settings) if cloud != "azure" else []),
        *(azure_checks(settings) if cloud != "aws" else []),
    ]
    rows, found = [], []
    for check, finding in preflight(checks):
        found.append((check, finding))
        rows.append({"cloud": check.cloud, "check": check.name, **asdict(finding)})
        if not as_json:
            line = f"{check.cloud:5} {check.name:16} {finding.verdict:11} {finding.text}"
            OUT.print(line, style=_STYLES.get(finding.verdict))
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    if error := refusal(found):
        raise error


@main.command()
@_json
@pass_settings
def status(settings: Settings, as_json: bool) -> None:
    """Show what stands where: every stack, the endpoint, the app on Azure, the stored releases, and this machine's.

    Reads only. What cannot be reached is "unknown", with the reason, and the rest is shown. The last line is the verdict: SAME
    when both clouds serve this machine's release, PARTIAL when one serves another, with the commands that bring them
    together, INCOMPLETE when one serves none or cannot be asked. `ferry verify` compares answers, this only names.

    For Azure, `az login`, or another credential that Azure's SDK finds, with Reader on the app.
    """
    from ferry.rollback import deploy_commands
    from ferry.status import status as look

    seen = look(settings)
    if as_json:
        document = {
            "verdict": seen.verdict,
            "local": seen.local,
            "serving": seen.serving,
            "rows": [asdict(row) for row in seen.rows],
        }
        click.echo(json.dumps(document, indent=2))
        return
    for row in seen.rows:
        OUT.print(f"{row.where:20} {row.state:24} {row.release_id or '':24} {row.note}".rstrip())
    served = ", ".join(f"{cloud} serves {release or 'none that is known'}" for cloud, release in seen.serving.items())
    OUT.print(f"{seen.verdict}: {served}; this machine has {seen.local or 'none'}")
    if seen.verdict != "PARTIAL":
        return
    OUT.print("These bring this machine's release to both; `ferry rollback` chooses another one first:")
    local = ["ferry package", "ferry local down", "ferry local up"]
    for command in deploy_commands(settings) if settings.local is None else local:
        OUT.print(f"  {command}")
