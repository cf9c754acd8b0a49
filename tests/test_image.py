"""`ferry image build` and `push`: an engine on the PATH, or CodeBuild, and what ECR holds in the end.

The engine is a small executable under Docker's or Podman's name that notes how it is called and keeps what it built; what it
pushes goes into moto's ECR, a real one for describe_images and digests. CodeBuild, and the parts of ECR that moto does not
have, are scripted in AWS's shapes.
"""

import base64
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ferry import image as images
from ferry.cli import main
from ferry.errors import FerryError, Refused
from infra.aws.image import image_tag
from infra.settings import ROOT, Settings, load_settings
from tests.emulator_server import emulator_server
from tests.local_settings import write_settings
from tests.scripted_aws import Connect, answer, connect_to, sent
from tests.scripted_server import Reply, Server, scripted

_ENGINE = """\
#!{python}
import json, pathlib, sys, urllib.request
state = pathlib.Path({state!r})
name, arguments = pathlib.Path(sys.argv[0]).name, sys.argv[1:]
given = sys.stdin.read() if "--password-stdin" in arguments else None
with (state / "calls").open("a") as calls:
    calls.write(json.dumps([name, *arguments, *([] if given is None else ["<" + given])]) + "\\n")
def kept(uri):
    return state / uri.replace("/", "_")
if arguments[0] == "buildx" and (state / "no_buildx").exists():
    sys.exit("docker: 'buildx' is not a docker command.")
if "build" in arguments:
    platform = arguments[arguments.index("--platform") + 1]
    labels = {{}} if (state / "unlabelled").exists() else {{"com.amazonaws.sagemaker.capabilities.accept-bind-to-port": "true"}}
    uri = arguments[arguments.index("--tag") + 1]
    kept(uri).write_text(json.dumps([{{"Architecture": platform.split("/")[1], "Config": {{"Labels": labels}}}}]))
    print("STEP 1/2: FROM python:3.12-slim")
elif arguments[:2] == ["image", "inspect"]:
    if not kept(arguments[2]).exists():
        sys.exit("no such image")
    print(kept(arguments[2]).read_text())
elif arguments[0] == "push":
    repository, tag = arguments[1].split("/", 1)[1].split(":")
    manifest = {{
        "schemaVersion": 2,
        "mediaType": (state / "media_type").read_text(),
        "config": {{"mediaType": "application/vnd.docker.container.image.v1+json", "size": 1, "digest": "sha256:" + "c" * 64}},
        "layers": [{{"mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip", "size": len(tag), "digest": "sha256:" + "d" * 64}}],
    }}
    # As botocore would send it, without the half second that importing it takes.
    request = {{
        "repositoryName": repository, "imageManifest": json.dumps(manifest), "imageTag": tag,
        "imageManifestMediaType": manifest["mediaType"],
    }}
    headers = {{
        "X-Amz-Target": "AmazonEC2ContainerRegistry_V20150921.PutImage",
        "Content-Type": "application/x-amz-json-1.1",
        "Authorization": "AWS4-HMAC-SHA256 Credential=t/20261121/eu-west-1/ecr/aws4_request, SignedHeaders=host, Signature=0",
    }}
    urllib.request.urlopen(urllib.request.Request({url!r}, json.dumps(request).encode(), headers)).close()
"""


@pytest.fixture(scope="module")
def registry() -> Iterator[str]:
    with emulator_server() as url:
        yield url


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """An environment of real clouds with a build folder of its own, whose repository exists."""
    path = tmp_path / "dev.toml"
    path.write_text(f'build_dir = "{tmp_path / "build"}"\n' + (ROOT / "config" / "dev.toml").read_text())
    return load_settings(str(path))


@pytest.fixture
def ecr(registry: str, settings: Settings) -> Iterator[Any]:
    client = connect_to(registry)(settings, "ecr")
    client.create_repository(repositoryName=settings.repository)
    yield client
    client.delete_repository(repositoryName=settings.repository, force=True)


class Engine:
    """The stand-in for an engine: what it was called with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def calls(self, verb: str) -> list[list[str]]:
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [call for call in map(json.loads, lines) if verb in call]


def install(name: str, tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> Engine:
    state, folder = tmp_path / "engine", tmp_path / "bin"
    state.mkdir()
    folder.mkdir()
    (state / "media_type").write_text(images.DOCKER_MANIFEST)
    path = folder / name
    path.write_text(_ENGINE.format(python=sys.executable, state=str(state), url=url))
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    return Engine(state)


def push(settings: Settings, connect: Connect, **options: bool) -> tuple[str, list[str]]:
    """The digest, and what was reported."""
    said: list[str] = []
    return images.push(settings, said.append, connect=connect, pause=0, **options), said


def noted(settings: Settings) -> dict[str, str]:
    return dict(json.loads(settings.image_path.read_bytes()))


def test_push_builds_logs_in_uploads_and_notes_the_digest_that_ecr_gave(
    settings: Settings, ecr: Any, registry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = install("docker", tmp_path, registry, monkeypatch)
    digest, _ = push(settings, connect_to(registry))
    tag = image_tag(ROOT)
    in_ecr = ecr.describe_images(repositoryName=settings.repository, imageIds=[{"imageTag": tag}])["imageDetails"][0]
    assert noted(settings) == {"tag": tag, "digest": in_ecr["imageDigest"]}
    assert digest == in_ecr["imageDigest"]
    builds = engine.calls("build")
    assert [call[call.index("--target") + 1] for call in builds] == ["serving", "processing"]
    assert all({"type=docker", "--provenance=false", "linux/amd64"} <= set(call) for call in builds)
    assert [call[-1].rpartition(":")[2] for call in engine.calls("push")] == [tag, f"{tag}-processing"]


def test_the_password_goes_through_a_pipe_and_never_onto_a_command_line(
    settings: Settings, ecr: Any, registry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = install("docker", tmp_path, registry, monkeypatch)
    push(settings, connect_to(registry))
    (granted,) = ecr.get_authorization_token()["authorizationData"]
    password = base64.b64decode(granted["authorizationToken"]).decode().partition(":")[2]
    (login,) = engine.calls("login")
    assert login[1:5] == ["login", "--username", "AWS", "--password-stdin"]
    assert login[-1] == f"<{password}"
    assert not any(password in argument for argument in login[:-1])


def test_what_the_registry_has_is_not_built_again(
    settings: Settings, ecr: Any, registry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = install("docker", tmp_path, registry, monkeypatch)
    first, _ = push(settings, connect_to(registry))
    before = len(engine.calls("build")), len(engine.calls("push")), len(engine.calls("login"))
    second, said = push(settings, connect_to(registry))
    assert second == first
    assert (len(engine.calls("build")), len(engine.calls("push")), len(engine.calls("login"))) == before
    assert len([text for text in said if "is there already" in text]) == 2


def test_podman_builds_in_dockers_format(
    settings: Settings, ecr: Any, registry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = install("podman", tmp_path, registry, monkeypatch)
    push(settings, connect_to(registry))
    assert all(call[1:4] == ["build", "--format", "docker"] for call in engine.calls("build"))


def test_docker_without_buildx_builds_with_its_old_builder(
    settings: Settings, ecr: Any, registry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = install("docker", tmp_path, registry, monkeypatch)
    (engine.folder / "no_buildx").touch()
    push(settings, connect_to(registry))
    builds = [call for call in engine.calls("build") if "--file" in call]
    assert len(builds) == 2
    assert all(call[1:3] == ["build", "--platform"] for call in builds)


def test_d13_an_image_without_its_label_is_never_pushed(
    settings: Settings, ecr: Any, registry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = install("docker", tmp_path, registry, monkeypatch)
    (engine.folder / "unlabelled").touch()
    with pytest.raises(
        FerryError, match=r"lacks the label com\.amazonaws\.sagemaker\.capabilities\.accept-bind-to-port=true"
    ):
        push(settings, connect_to(registry))
    assert engine.calls("push") == []
    assert not settings.image_path.exists()


def test_d13_a_manifest_that_sagemaker_refuses_is_named_with_its_digest_and_not_noted(
    settings: Settings, ecr: Any, registry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = install("docker", tmp_path, registry, monkeypatch)
    (engine.folder / "media_type").write_text("application/vnd.oci.image.manifest.v1+json")
    with pytest.raises(
        FerryError, match=r"@sha256:[0-9a-f]{64}: its manifest is application/vnd\.oci\.image\.manifest"
    ):
        push(settings, connect_to(registry))
    assert not settings.image_path.exists()


def test_a_missing_repository_says_what_makes_it(settings: Settings, registry: str) -> None:
    with pytest.raises(Refused, match="cdk deploy Foundation"):
        push(settings, connect_to(registry))


def ferry(path: Path, *arguments: str) -> Any:
    return CliRunner().invoke(main, ["--env", str(path), *arguments])


def test_build_needs_no_account_and_without_an_engine_says_what_there_is_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_settings(tmp_path)
    engine = install("docker", tmp_path, "http://127.0.0.1:9", monkeypatch)
    built = ferry(path, "image", "build")
    assert built.exit_code == 0, built.stderr
    assert [line.rpartition(":")[2] for line in built.stdout.splitlines() if line.startswith("123456789012.")] == [
        image_tag(ROOT),
        f"{image_tag(ROOT)}-processing",
    ]
    assert engine.calls("login") == []
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    refused = ferry(path, "image", "build")
    assert refused.exit_code == 2
    assert "`ferry image push` builds and pushes the images without one, in AWS CodeBuild" in refused.stderr


def test_push_refuses_an_environment_of_this_machine(tmp_path: Path) -> None:
    refused = ferry(write_settings(tmp_path), "image", "push")
    assert refused.exit_code == 2
    assert "has no container registry" in refused.stderr


# CodeBuild

BUILD = "modelferry-dev-image:5d0b1c9e"


def project(tag: str | None = None) -> Reply:
    variables = [{"name": "IMAGE_TAG", "value": tag or image_tag(ROOT), "type": "PLAINTEXT"}]
    environment = {"type": "LINUX_CONTAINER", "image": "i", "computeType": "c", "environmentVariables": variables}
    return answer({"projects": [{"name": "modelferry-dev-image", "environment": environment}]})


def build(status: str, *phases: dict[str, Any]) -> Reply:
    logs = {"groupName": "/aws/codebuild/modelferry-dev-image", "streamName": "5d0b1c9e"}
    return answer({"builds": [{"id": BUILD, "buildStatus": status, "phases": list(phases), "logs": logs}]})


def described(digest: str) -> Reply:
    detail = {"imageDigest": digest, "imageManifestMediaType": images.DOCKER_MANIFEST}
    return answer({"imageDetails": [detail]})


def events(token: str, *messages: str) -> Reply:
    listed = [{"timestamp": 1, "message": message, "ingestionTime": 1} for message in messages]
    return answer({"events": listed, "nextForwardToken": token, "nextBackwardToken": "b"})


ABSENT = Reply(400, json.dumps({"__type": "ImageNotFoundException", "message": "no"}).encode())
DIGEST = "sha256:" + "a" * 64
LABELS = {images.BIND_TO_PORT_LABEL: "true"}


def in_codebuild(
    server_url: str = "", *, labels: dict[str, str] = LABELS, architecture: str = "amd64"
) -> dict[str, list[Reply]]:
    """A build that runs, succeeds and leaves both images in ECR."""
    manifest = {"config": {"digest": "sha256:" + "c" * 64}}
    configuration = {"architecture": architecture, "config": {"Labels": labels}}
    succeeded = {"phaseType": "BUILD", "phaseStatus": "SUCCEEDED", "durationInSeconds": 42}
    return {
        "DescribeImages": [ABSENT, ABSENT, described(DIGEST)],
        "BatchGetProjects": [project()],
        "ListBuildsForProject": [answer({"ids": []})],
        "StartBuild": [answer({"build": {"id": BUILD}})],
        "BatchGetBuilds": [build("IN_PROGRESS", {"phaseType": "BUILD"}), build("SUCCEEDED", succeeded)],
        "DescribeLogStreams": [answer({"logStreams": [{"logStreamName": "5d0b1c9e"}]})],
        "GetLogEvents": [events("f/1", "Step 1/9 : FROM python:3.12-slim\n"), events("f/1")],
        "BatchGetImage": [answer({"images": [{"imageManifest": json.dumps(manifest)}]})],
        "GetDownloadUrlForLayer": [answer({"downloadUrl": f"{server_url}/configuration"})],
        "GET /configuration": [Reply(200, json.dumps(configuration).encode())],
    }


@pytest.fixture
def no_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))


def without_engine(
    settings: Settings, replies: dict[str, list[Reply]], **options: bool
) -> tuple[str, list[str], Server]:
    with scripted({"GET /configuration": replies.pop("GET /configuration")}) as elsewhere:
        replies["GetDownloadUrlForLayer"] = [answer({"downloadUrl": f"{elsewhere.url}/configuration"})]
        with scripted(replies) as server:
            digest, said = push(settings, connect_to(server), **options)
            return digest, said, server


@pytest.mark.usefixtures("no_engine")
def test_without_an_engine_codebuild_builds_and_its_phases_and_log_are_told(settings: Settings) -> None:
    digest, said, server = without_engine(settings, in_codebuild())
    assert digest == DIGEST
    assert noted(settings) == {"tag": image_tag(ROOT), "digest": DIGEST}
    assert said == [
        f"started   {BUILD}",
        "  Step 1/9 : FROM python:3.12-slim",
        "BUILD: IN_PROGRESS",
        "BUILD: SUCCEEDED after 42 s",
        f"noted     {settings.image_path}",
    ]
    assert sent(server, "StartBuild") == [{"projectName": settings.image_build}]


def test_codebuild_can_be_chosen_although_there_is_an_engine(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = install("docker", tmp_path, "http://127.0.0.1:9", monkeypatch)
    digest, _, server = without_engine(settings, in_codebuild(), codebuild=True)
    assert digest == DIGEST
    assert len(sent(server, "StartBuild")) == 1
    assert engine.calls("build") == []


@pytest.mark.usefixtures("no_engine")
def test_a_build_that_runs_is_followed_and_no_second_one_is_started(settings: Settings) -> None:
    replies = in_codebuild()
    replies["ListBuildsForProject"] = [answer({"ids": [BUILD]})]
    _, said, server = without_engine(settings, replies)
    assert said[0] == f"runs      {BUILD} since before"
    assert sent(server, "StartBuild") == []


@pytest.mark.usefixtures("no_engine")
def test_other_sources_and_a_missing_project_are_refused_with_what_deploys_them(settings: Settings) -> None:
    for listed, problem in (
        (project("0" * 64), "deployed with other sources"),
        (answer({"projects": []}), "makes the project"),
    ):
        with pytest.raises(Refused, match=problem) as refused:
            without_engine(settings, in_codebuild() | {"BatchGetProjects": [listed]})
        assert "cdk deploy Image" in str(refused.value)


@pytest.mark.usefixtures("no_engine")
def test_a_failed_phase_ends_with_what_codebuild_says_about_it(settings: Settings) -> None:
    said = "Error while executing command: bash /tmp/build-images. Reason: exit status 1"
    phase = {
        "phaseType": "BUILD",
        "phaseStatus": "FAILED",
        "contexts": [{"statusCode": "COMMAND_EXECUTION_ERROR", "message": said}],
    }
    with pytest.raises(FerryError, match=r"FAILED: phase BUILD: Error while executing command"):
        without_engine(settings, in_codebuild() | {"BatchGetBuilds": [build("FAILED", phase)]})
    assert not settings.image_path.exists()


@pytest.mark.usefixtures("no_engine")
@pytest.mark.parametrize(
    ("wrong", "problem"),
    [({"architecture": "arm64"}, "built for arm64"), ({"labels": {}}, "lacks the label")],
)
def test_d13_what_codebuild_pushed_is_looked_at_in_ecr(settings: Settings, wrong: dict[str, Any], problem: str) -> None:
    with pytest.raises(FerryError, match=rf"@{DIGEST}: {problem}"):
        without_engine(settings, in_codebuild(**wrong))
    assert not settings.image_path.exists()
