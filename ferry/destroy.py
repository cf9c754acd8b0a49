"""`ferry destroy`: one cloud or both, the list first, then the question, then the work, then what remains."""

from collections.abc import Callable
from pathlib import Path

from botocore.exceptions import BotoCoreError, ClientError

from ferry.console import Report
from ferry.destroy_aws import destroy_aws
from ferry.destroy_azure import destroy_azure
from ferry.destruction import Ask
from ferry.errors import FerryError
from infra.settings import Settings

CLOUDS = ("azure", "aws")


def destroy(settings: Settings, environment_file: Path, cloud: str, data: bool, ask: Ask, report: Report) -> list[str]:
    """Delete `settings`' environment from `cloud`: one of CLOUDS, or "all", which is each of them in that order.

    Returns what remains, which it has reported.

    `environment_file` is where the `cdk` process reads the same settings; `ask` agrees to each list. With "all" the
    failure of one does not keep the other from its turn. Raises FerryError when anything failed or was declined.
    """
    work: dict[str, Callable[[], list[str]]] = {
        "azure": lambda: destroy_azure(settings, data, ask, report),
        "aws": lambda: destroy_aws(settings, environment_file, data, ask, report),
    }
    if cloud != "all":
        return _report_remaining(cloud, work[cloud](), report)
    if settings.local is not None:
        report(f"azure: environment {settings.environment!r} has nothing there")
        del work["azure"]
    failures, remaining = [], []
    for name, destroy_one in work.items():
        try:
            remaining += _report_remaining(name, destroy_one(), report)
        except (FerryError, BotoCoreError, ClientError, OSError) as error:
            failures.append(f"{name}: {error}")
            report(f"{name}: not done; the reason comes at the end")
    if failures:
        raise FerryError("\n".join(failures))
    return remaining


def _report_remaining(cloud: str, remaining: list[str], report: Report) -> list[str]:
    report(f"{cloud}: {'what remains:' if remaining else 'nothing remains'}")
    for each in remaining:
        report(f"  {each}")
    return remaining
