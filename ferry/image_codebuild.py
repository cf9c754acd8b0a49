"""The same images without an engine on this machine: the CodeBuild project of the stack Image builds and pushes them."""

import time
from typing import Any

from botocore.exceptions import BotoCoreError

from ferry import aws
from ferry.console import Report
from ferry.errors import FerryError, Refused
from ferry.log_tail import LogTail
from infra.aws.image import image_tag
from infra.settings import ROOT, Settings

# What the stack Image puts into the project's environment: the tag of the sources that it was deployed with.
TAG_VARIABLE = "IMAGE_TAG"


def build_and_follow(
    settings: Settings, report: Report, *, connect: aws.Connect = aws.client, pause: float = 5.0
) -> None:
    """Start the project's build, or go on with the one that runs, and report its phases and its log until it has succeeded.

    Interrupted, the build goes on, and that is said. Raises Refused where the project is not deployed or has other sources
    than this checkout, FerryError with what CodeBuild says about a phase that failed.
    """
    codebuild = connect(settings, "codebuild")
    _check_project(settings, codebuild)
    identifier = _running(settings, codebuild)
    if identifier is None:
        identifier = codebuild.start_build(projectName=settings.image_build)["build"]["id"]
        report(f"started   {identifier}")
    else:
        report(f"runs      {identifier} since before")
    view = _View(codebuild, connect(settings, "logs"), identifier, report)
    try:
        while (build := view.look())["buildStatus"] == "IN_PROGRESS":
            time.sleep(pause)
    except (KeyboardInterrupt, BotoCoreError):
        report(f"{identifier} goes on by itself; `ferry image push` follows it again")
        raise
    if build["buildStatus"] != "SUCCEEDED":
        raise FerryError(f"{identifier}: {build['buildStatus']}: {_reason(build)}")


def _check_project(settings: Settings, codebuild: Any) -> None:
    projects = codebuild.batch_get_projects(names=[settings.image_build]).get("projects", [])
    if not projects:
        raise Refused(
            f"there is no CodeBuild project {settings.image_build}, which builds where docker or podman are not on the PATH; "
            "`cdk deploy Image` makes the project, then run `ferry image push` again"
        )
    variables = {each["name"]: each["value"] for each in projects[0]["environment"].get("environmentVariables", [])}
    current, deployed = image_tag(ROOT), variables.get(TAG_VARIABLE)
    if deployed != current:
        raise Refused(
            f"{settings.image_build} was deployed with other sources: it builds {TAG_VARIABLE} {deployed}, and those of this "
            f"checkout are {current}; `cdk deploy Image` hands it these, then run `ferry image push` again"
        )


def _running(settings: Settings, codebuild: Any) -> str | None:
    """The newest build of the project, where it has not ended."""
    listed = codebuild.list_builds_for_project(projectName=settings.image_build, sortOrder="DESCENDING")
    if not listed["ids"]:
        return None
    (build,) = codebuild.batch_get_builds(ids=listed["ids"][:1])["builds"]
    return str(build["id"]) if build["buildStatus"] == "IN_PROGRESS" else None


class _View:
    """What was seen of one build so far, so that every line is reported once."""

    def __init__(self, codebuild: Any, logs: Any, identifier: str, report: Report) -> None:
        self._codebuild = codebuild
        self._logs = logs
        self._identifier = identifier
        self._report = report
        self._seen: dict[str, str] = {}
        self._tail: LogTail | None = None

    def look(self) -> dict[str, Any]:
        """Report what is new; returns the build."""
        (build,) = self._codebuild.batch_get_builds(ids=[self._identifier])["builds"]
        written = build.get("logs", {})
        if self._tail is None and written.get("groupName") and written.get("streamName"):
            self._tail = LogTail(self._logs, written["groupName"], written["streamName"], self._report)
        if self._tail is not None:
            self._tail.look()
        for phase in build.get("phases", []):
            name, status = phase["phaseType"], phase.get("phaseStatus", "IN_PROGRESS")
            if name != "COMPLETED" and self._seen.get(name) != status:
                took = f" after {phase['durationInSeconds']} s" if "durationInSeconds" in phase else ""
                self._report(f"{name}: {status}{took}")
                self._seen[name] = status
        return dict(build)


def _reason(build: dict[str, Any]) -> str:
    said = [
        f"phase {phase['phaseType']}: {context.get('message') or context.get('statusCode')}"
        for phase in build.get("phases", [])
        for context in phase.get("contexts", [])
        if phase.get("phaseStatus") not in (None, "SUCCEEDED") and (context.get("message") or context.get("statusCode"))
    ]
    return "\n".join(said) or "no phase says why; its log above does"
