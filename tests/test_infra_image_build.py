"""The CodeBuild project: what it builds from, what it may, and its build run here with stand-ins for docker and aws."""

import io
import json
import os
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import aws_cdk as cdk
import pytest
from cdk_nag import AwsSolutionsChecks

from infra.aws.foundation import FoundationStack
from infra.aws.image import image_tag, own_training_image_uri, processing_image_uri, training_image_tag
from infra.aws.image_build import BuildSources, ImageStack, build_sources, buildspec
from infra.aws.sources import PREPROCESSING_SOURCES, SERVING_SOURCES, TRAINING_IMAGE_SOURCES, read_sources
from infra.settings import ROOT, Settings, TrainingSettings
from tests.aws_stacks import Template, one, plain, resources
from tests.gateway_stacks import app_in
from tests.nag import acknowledged, nag_reports
from tests.stack_fixtures import dev_settings

Run = subprocess.CompletedProcess[str]


def settings_of(training_image: str) -> Settings:
    return dev_settings().model_copy(update={"training": TrainingSettings.model_validate({"image": training_image})})


def compose(folder: Path, settings: Settings) -> cdk.App:
    app = app_in(folder)
    foundation = FoundationStack(app, "Foundation", settings=settings)
    ImageStack(app, "Image", settings=settings, foundation=foundation)
    return app


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Template]]:
    """Foundation and Image, by training.image."""
    synthesized = {}
    for training_image in ("pytorch", "own"):
        folder = tmp_path_factory.mktemp(training_image)
        compose(folder, settings_of(training_image)).synth()
        synthesized[training_image] = {
            name: json.loads((folder / f"{name}.template.json").read_bytes()) for name in ("Foundation", "Image")
        }
    return synthesized


# Sources


def unpacked(sources: BuildSources) -> zipfile.ZipFile:
    return zipfile.ZipFile(io.BytesIO(sources.archive))


def test_the_archive_is_the_build_context_of_the_serving_image_with_its_ignore_file() -> None:
    context = set(read_sources(ROOT, SERVING_SOURCES, PREPROCESSING_SOURCES))
    archive = unpacked(build_sources(ROOT, own_training=False))
    assert set(archive.namelist()) == context | {".dockerignore"}
    assert all(archive.read(name) == (ROOT / name).read_bytes() for name in archive.namelist())


def test_the_archive_holds_the_context_of_our_own_training_image_where_there_is_one() -> None:
    serving = set(unpacked(build_sources(ROOT, own_training=False)).namelist())
    both = set(unpacked(build_sources(ROOT, own_training=True)).namelist())
    training = set(read_sources(ROOT, TRAINING_IMAGE_SOURCES))
    assert both == serving | training | {"model_code/container/Dockerfile.training.dockerignore"}


def test_docker_sees_of_the_archive_what_belongs_to_each_image() -> None:
    """Both images are built from one folder; what keeps them apart are their ignore files."""
    names = set(unpacked(build_sources(ROOT, own_training=True)).namelist())
    for ignore_file, patterns in (
        (".dockerignore", (*SERVING_SOURCES, *PREPROCESSING_SOURCES)),
        ("model_code/container/Dockerfile.training.dockerignore", TRAINING_IMAGE_SOURCES),
    ):
        lines = (ROOT / ignore_file).read_text().splitlines()
        allowed = {path for line in lines if line.startswith("!") for path in ROOT.glob(line.removeprefix("!"))}
        seen = {path.relative_to(ROOT).as_posix() for path in allowed} & names
        assert seen == set(read_sources(ROOT, patterns, PREPROCESSING_SOURCES))


def test_the_same_files_are_the_same_bytes_whatever_their_times_and_modes(tmp_path: Path) -> None:
    for name in unpacked(build_sources(ROOT, own_training=True)).namelist():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
        os.utime(tmp_path / name, (0, 0))
        (tmp_path / name).chmod(0o600)
    assert build_sources(tmp_path, own_training=True) == build_sources(ROOT, own_training=True)


def test_what_docker_runs_is_executable_in_the_archive() -> None:
    archive = unpacked(build_sources(ROOT, own_training=True))
    executable = {each.filename for each in archive.infolist() if (each.external_attr >> 16) & 0o111}
    assert {Path(name).name for name in executable} == {"evaluate", "fetch", "serve", "train"}
    assert executable == {name for name in archive.namelist() if os.access(ROOT / name, os.X_OK)}


def test_the_archive_is_named_as_the_images_are() -> None:
    assert build_sources(ROOT, own_training=False).digest == image_tag(ROOT)
    assert build_sources(ROOT, own_training=True).digest not in (image_tag(ROOT), training_image_tag(ROOT))


# The build, run

# Both write down how they were called. docker keeps what was pushed; aws tells of it as ECR does.
DOCKER = """#!/bin/sh
echo "docker $*" >> "$CALLS"
case "$1" in
    login) cat > /dev/null ;;
    build) for file; do :; done; [ -f "$(echo "$*" | sed 's/.*--file \\([^ ]*\\).*/\\1/')" ] ;;
    push) [ -z "$LOST" ] && echo "${2##*:}" >> "$PUSHED" || true ;;
esac
"""
AWS = """#!/bin/sh
echo "aws $1 $2" >> "$CALLS"
[ "$2" = get-login-password ] && { echo secret; exit 0; }
[ -n "$DENIED" ] && { echo "An error occurred (AccessDeniedException) when calling the DescribeImages operation" >&2; exit 254; }
tag=$(echo "$*" | sed 's/.*imageTag=\\([^ ]*\\).*/\\1/')
grep -qx -- "$tag" "$PUSHED" && { echo "sha256:of-$tag"; exit 0; }
echo "An error occurred (ImageNotFoundException) when calling the DescribeImages operation" >&2
exit 254
"""
VARIABLES = {
    "REGISTRY": "111122223333.dkr.ecr.eu-west-1.amazonaws.com",
    "REPOSITORY": "modelferry-dev-serving",
    "IMAGE_TAG": "aaaa",
    "TRAINING_REPOSITORY": "modelferry-dev-training",
    "TRAINING_IMAGE_TAG": "bbbb",
}


class Build:
    """A checkout of the sources, and CodeBuild's way to run a buildspec: each phase's commands in one bash."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._bin = folder / "bin"
        self._bin.mkdir()
        for name, text in (("docker", DOCKER), ("aws", AWS)):
            (self._bin / name).write_text(text)
            (self._bin / name).chmod(0o755)
        self.calls_file, self.pushed_file = folder / "calls", folder / "pushed"
        self.calls_file.touch()
        self.pushed_file.touch()

    def run(self, *, own_training: bool = False, **variables: str) -> Run:
        """stdout ends in the variable that the build exports. A command that fails ends the phase, and the build."""
        sources = build_sources(ROOT, own_training=own_training)
        unpacked(sources).extractall(self._folder / "checkout")
        phases = buildspec(sources.executables, own_training=own_training)["phases"]
        commands = [command for phase in ("pre_build", "build") for command in phases[phase]["commands"]]
        lines = [f"{command}\n[ $? = 0 ] || exit 1" for command in commands]
        script = "\n".join(lines).replace("/tmp/", f"{self._folder}/") + '\necho "exported: $IMAGE_DIGEST"\n'
        environment = {
            **VARIABLES,
            **variables,
            "PATH": f"{self._bin}:/usr/bin:/bin",
            "CALLS": str(self.calls_file),
            "PUSHED": str(self.pushed_file),
        }
        return subprocess.run(
            ["bash", "-c", script],
            cwd=self._folder / "checkout",
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    @property
    def calls(self) -> list[str]:
        return self.calls_file.read_text().splitlines()


@pytest.fixture
def build(tmp_path: Path) -> Build:
    return Build(tmp_path)


@pytest.mark.parametrize("own_training", [False, True])
def test_bash_can_read_every_command(own_training: bool) -> None:
    for phase in buildspec(("serve",), own_training=own_training)["phases"].values():
        for command in phase["commands"]:
            script = command.split("<<'END'\n")[-1].removesuffix("END")
            subprocess.run(["bash", "-n", "-c", script], check=True)


def test_a_build_logs_in_and_pushes_both_targets_the_serving_image_last(build: Build) -> None:
    finished = build.run()
    assert finished.returncode == 0, finished.stderr
    image = f"{VARIABLES['REGISTRY']}/modelferry-dev-serving:aaaa"
    dockerfile = "--file model_code/container/Dockerfile"
    assert [call for call in build.calls if call.startswith("docker")] == [
        f"docker login --username AWS --password-stdin {VARIABLES['REGISTRY']}",
        f"docker build --platform linux/amd64 {dockerfile} --target processing --tag {image}-processing .",
        f"docker push {image}-processing",
        f"docker build --platform linux/amd64 {dockerfile} --target serving --tag {image} .",
        f"docker push {image}",
    ]
    assert f"pushed: {image} sha256:of-aaaa" in finished.stdout
    assert finished.stdout.endswith("exported: sha256:of-aaaa\n")


def test_the_training_image_is_built_from_its_own_dockerfile_before_the_others(build: Build) -> None:
    finished = build.run(own_training=True)
    assert finished.returncode == 0, finished.stderr
    assert build.pushed_file.read_text().split() == ["bbbb", "aaaa-processing", "aaaa"]
    (command,) = (call for call in build.calls if "Dockerfile.training" in call)
    assert "--target" not in command


def test_a_tag_that_is_there_is_not_built_again(build: Build) -> None:
    build.pushed_file.write_text("aaaa\naaaa-processing\n")
    finished = build.run()
    assert finished.returncode == 0, finished.stderr
    assert not [call for call in build.calls if call.startswith(("docker build", "docker push"))]
    assert finished.stdout.count("there already: ") == 2
    assert finished.stdout.endswith("exported: sha256:of-aaaa\n")


def test_a_build_that_was_cut_off_goes_on_where_it_was(build: Build) -> None:
    build.pushed_file.write_text("aaaa-processing\n")
    assert build.run().returncode == 0
    (command,) = (call for call in build.calls if call.startswith("docker build"))
    assert "--target serving" in command


def test_a_registry_that_may_not_be_asked_ends_the_build_before_anything_is_built(build: Build) -> None:
    finished = build.run(DENIED="yes")
    assert finished.returncode == 1
    assert "AccessDeniedException" in finished.stderr
    assert not [call for call in build.calls if call.startswith("docker build")]


def test_an_image_that_did_not_arrive_ends_the_build(build: Build) -> None:
    finished = build.run(LOST="yes")
    assert finished.returncode == 1
    assert "pushed, but not in the registry" in finished.stderr


def test_the_files_that_the_image_runs_are_executable_when_docker_copies_them(build: Build, tmp_path: Path) -> None:
    """zipfile, like some other programs, forgets modes when it unpacks."""
    assert build.run().returncode == 0
    serve = tmp_path / "checkout" / "model_code" / "container" / "serve"
    assert os.access(serve, os.X_OK)


# The project


def project_of(templates: dict[str, dict[str, Template]], training_image: str = "pytorch") -> dict[str, Any]:
    return one(templates[training_image]["Image"], "AWS::CodeBuild::Project")


def test_the_project_is_called_as_the_settings_say_and_runs_this_buildspec(
    templates: dict[str, dict[str, Template]],
) -> None:
    project = project_of(templates)
    assert project["Name"] == dev_settings().image_build
    executables = build_sources(ROOT, own_training=False).executables
    assert json.loads(project["Source"]["BuildSpec"]) == buildspec(executables, own_training=False)


def test_the_project_pushes_the_images_that_the_stacks_name(templates: dict[str, dict[str, Template]]) -> None:
    settings = settings_of("own")
    values = {
        each["Name"]: plain(each["Value"])
        for each in project_of(templates, "own")["Environment"]["EnvironmentVariables"]
    }
    assert values["IMAGE_TAG"] == image_tag(ROOT)
    processing = f"{values['REGISTRY']}/{values['REPOSITORY']}:{values['IMAGE_TAG']}-processing"
    training = f"{values['REGISTRY']}/{values['TRAINING_REPOSITORY']}:{values['TRAINING_IMAGE_TAG']}"
    assert (processing, training) == (processing_image_uri(settings), own_training_image_uri(settings))


def test_nothing_of_the_project_is_public_and_one_build_runs_at_a_time(
    templates: dict[str, dict[str, Template]],
) -> None:
    project = project_of(templates)
    assert project["Visibility"] == "PRIVATE"
    assert project["ConcurrentBuildLimit"] == 1
    assert project["TimeoutInMinutes"] == 60
    assert project["Artifacts"] == {"Type": "NO_ARTIFACTS"}
    assert not {"VpcConfig", "Triggers", "BadgeEnabled"} & set(project)


def test_the_log_is_encrypted_ends_and_is_one_that_the_key_allows(templates: dict[str, dict[str, Template]]) -> None:
    group = one(templates["pytorch"]["Image"], "AWS::Logs::LogGroup")
    assert group["KmsKeyId"]
    assert group["RetentionInDays"] == dev_settings().aws.log_retention_days
    # CloudFormation's name begins with the stack's, and so does the pattern in the key's policy.
    assert "LogGroupName" not in group
    statements = one(templates["pytorch"]["Foundation"], "AWS::KMS::Key")["KeyPolicy"]["Statement"]
    (statement,) = (each for each in statements if each.get("Sid") == "EncryptLogGroups")
    assert f"log-group:{dev_settings().prefix}-*" in json.dumps(statement["Condition"])
    assert dev_settings().stack("image").startswith(f"{dev_settings().prefix}-")


def statements_of(template: Template, kind: str, name: str) -> dict[str, dict[str, Any]]:
    if kind == "AWS::IAM::Role":
        (role,) = (each for each in resources(template, kind) if each["RoleName"].split("-")[2] == name)
        (policy,) = role["Policies"]
    else:
        policy = one(template, kind)
    return {each["Sid"]: each for each in policy["PolicyDocument"]["Statement"]}


@pytest.mark.parametrize(
    ("training_image", "repositories"),
    [("pytorch", ["modelferry-dev-serving"]), ("own", ["modelferry-dev-serving", "modelferry-dev-training"])],
)
def test_the_role_pushes_to_our_repositories_and_does_little_else(
    templates: dict[str, dict[str, Template]], training_image: str, repositories: list[str]
) -> None:
    statements = statements_of(templates[training_image]["Foundation"], "AWS::IAM::Role", "build")
    assert set(statements) == {"PushImages", "LogInToRegistry", "UseKey"}
    resource = statements["PushImages"]["Resource"]
    arns = resource if isinstance(resource, list) else [resource]
    assert [arn.rsplit("/", 1)[1] for arn in arns] == repositories
    assert statements["LogInToRegistry"]["Action"] == "ecr:GetAuthorizationToken"
    assert set(statements["UseKey"]["Resource"]) == {"Fn::GetAtt"}
    verbs = {action.split(":")[1] for action in statements["PushImages"]["Action"]}
    assert not {verb for verb in verbs if verb.startswith(("Delete", "Set", "PutLifecycle", "Create"))}


def test_the_role_reads_one_object_and_writes_one_log(
    templates: dict[str, dict[str, Template]],
) -> None:
    template = templates["pytorch"]["Image"]
    statements = statements_of(template, "AWS::IAM::Policy", "")
    assert set(statements) == {"ReadSources", "IdentifyBucket", "WriteLog"}
    bucket, key = project_of(templates)["Source"]["Location"].split("/")
    assert statements["ReadSources"]["Resource"].endswith(f":::{bucket}/{key}")
    assert set(statements["ReadSources"]["Action"]) == {"s3:GetObject", "s3:GetObjectVersion"}
    assert statements["IdentifyBucket"]["Resource"].endswith(f":::{bucket}")
    assert set(statements["IdentifyBucket"]["Action"]) == {"s3:GetBucketAcl", "s3:GetBucketLocation"}
    (group,) = (name for name, each in template["Resources"].items() if each["Type"] == "AWS::Logs::LogGroup")
    assert statements["WriteLog"]["Resource"] == {"Fn::GetAtt": [group, "Arn"]}
    assert set(statements["WriteLog"]["Action"]) == {"logs:CreateLogStream", "logs:PutLogEvents"}


@pytest.mark.parametrize("training_image", ["pytorch", "own"])
def test_cdk_nag_finds_nothing_about_the_project(tmp_path: Path, training_image: str) -> None:
    app = compose(tmp_path, settings_of(training_image))
    cdk.Validations.of(app).add_plugins(AwsSolutionsChecks(app))
    app.synth()
    (report,) = (each for each in nag_reports(tmp_path) if each["pluginName"] == "AwsSolutions")
    assert report["violations"] == []
    found = {(each["acknowledgedAt"], each["acknowledgedId"]) for each in report["suppressedViolations"]}
    assert found == acknowledged(tmp_path)
    assert not [rule for path, rule in found if path.startswith("Image")]
