"""Everything that differs between environments: typed, frozen, checked when read, and the names of all resources.

`config/<environment>.toml` is the only source; there is no second place that a value can come from. An unknown key, a value
of the wrong type, or a name that a platform would refuse stops here, before any network call, with the file and the key.
"""

import difflib
import errno
import hashlib
import os
import re
import stat
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin

from pydantic import AfterValidator, BaseModel, Field, StringConstraints, ValidationError, model_validator

from infra.settings_azure import AzureSettings
from infra.settings_hosting import GatewaySettings, HostingSettings, InstanceType
from infra.settings_table import (
    INSTANCE_TYPES,
    Region,
    Table,
    Use,
    is_placeholder,
    names_a_secret,
    nearest_instance_type,
    secret_in,
)

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT_VARIABLE = "FERRY_ENV"
DEFAULT_ENVIRONMENT = "local"
# Below this key of the data bucket lie the files of every dataset, and what the manifest of each is called.
DATASETS_PREFIX = "datasets"
MANIFEST_FILE = "manifest.json"
# Below these keys of the artifacts bucket: what training jobs leave, and what was released.
TRAINING_PREFIX = "training"
RELEASES_PREFIX = "releases"
# What `ferry train --once` stages for its job.
ONCE_PREFIX = f"{TRAINING_PREFIX}/once"
# Requests and answers of an async endpoint, those of transform jobs, and what data capture keeps.
ASYNC_PREFIX = "async"
BATCH_PREFIX = "batch"
CAPTURE_PREFIX = "capture"
MAX_SETTINGS_BYTES = 256 * 1024
_SHOWN = 80  # characters of a value in a message
_MAX_COMPLAINTS = 10
_DEEPEST = 8  # tables in each other
# Far more than any key takes. What a secret looks like is found in time that grows with the square of a text.
_LONGEST = 4096
# tomllib's time grows with the cube of the parts of a key: 32,000 of them would take it most of a minute.
_DOTTED = re.compile(r"""(?<![A-Za-z0-9_-])(?:(?:[A-Za-z0-9_-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){32}""")
# Tags that the stacks set themselves.
RESERVED_TAGS = ("project", "environment", "release-id")
# The newest Python that azure-functions 1.x, onnxruntime and the Flex Consumption plan have in common.
FUNCTION_PYTHON = "3.12"


def _no_placeholder(account: str) -> str:
    if account == "000000000000":
        raise ValueError("a placeholder; give the 12 digits of your account")
    return account


def _own_tags(tags: dict[str, str]) -> dict[str, str]:
    """Azure tells tag names apart without their case, and both clouds keep some prefixes for themselves."""
    for name in tags:
        if re.match("aws:|azure|microsoft|windows", name, re.IGNORECASE) or name.lower() in RESERVED_TAGS:
            raise ValueError(f"{name!r} is a tag of a cloud or of this project; choose another name")
    if len({name.lower() for name in tags}) != len(tags):
        raise ValueError(f"two of {', '.join(sorted(tags))} differ in case only; to Azure they are one tag")
    return tags


Slug = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]*[a-z0-9]$", max_length=16)]
AccountId = Annotated[str, StringConstraints(pattern=r"^[0-9]{12}$"), AfterValidator(_no_placeholder)]
# What both clouds take: AWS 128 and 256 characters, Azure no <>%&\?/ in a name.
Tags = Annotated[
    dict[
        Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_ .:=+@-]+$", max_length=128)],
        Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_ .:/=+@-]*$", max_length=256)],
    ],
    AfterValidator(_own_tags),
]
# CreateTrainingJob, HyperParameters: at most 100, a key of 256 and a value of 2,500 characters in one line.
Hyperparameters = Annotated[
    dict[
        Annotated[str, StringConstraints(min_length=1, max_length=256)],
        Annotated[str, StringConstraints(max_length=2500)],
    ],
    Field(max_length=100),
]
Share = Annotated[float, Field(ge=0, le=1)]
Port = Annotated[int, Field(ge=1024, le=65535)]


class SettingsError(ValueError):
    """The settings cannot be used; the message names file, key, what was found and what is allowed."""


class ModelSettings(Table):
    """Which model this environment trains and serves."""

    name: Slug = Field(description="Folder below model_code/training, and the first part of every release id.")
    dataset: Slug = Field(description="The table below [datasets] that the SageMaker pipeline trains with.")
    quantize: Literal["none", "int8"] = Field(
        default="none",
        description="int8: the training job leaves a model that computes in 8-bit integers, or fails where that costs more than "
        "0.1 percentage points of accuracy on the testing channel. For networks; a model of scikit-learn is refused.",
    )


class DatasetSettings(Table):
    """How a model is trained on one dataset, and how good it has to be."""

    gate: Share = Field(description="Smallest accuracy on the testing channel that may be released, 0 to 1.")
    hyperparameters: Hyperparameters = Field(
        default_factory=dict, description="Passed to the training job as they are; SageMaker allows strings only."
    )


class AwsSettings(Table):
    """Where the AWS stacks go and how long they keep things."""

    account: AccountId = Field(description="The account that the stacks may be deployed to.")
    region: Region = Field(
        description="The region of every stack; SageMaker wants model data in the endpoint's region."
    )
    retain_data: bool = Field(
        default=True, description="Keep buckets, key, repository and logs when their stack is deleted."
    )
    log_retention_days: Literal[1, 7, 14, 30, 90, 180, 365] = Field(
        default=90, description="Days that CloudWatch keeps logs and the log bucket keeps its objects."
    )


class TrainingSettings(Table):
    """The SageMaker pipeline: its training job, what comes before and after it, and when it starts."""

    image: Literal["pytorch", "own"] = Field(
        default="pytorch",
        description="Image of the training job: AWS's PyTorch training image with our code in script mode, or our own image.",
    )
    instance_type: InstanceType = Field(default="ml.m5.xlarge", description="Instance type of the training job.")
    instance_count: Annotated[int, Field(ge=1, le=100)] = Field(
        default=1, description="Instances of the training job; more than one train one model together."
    )
    encrypt_inter_container_traffic: bool = Field(
        default=True,
        description="With several instances: encrypt what they send each other. It makes their training slower.",
    )
    volume_size_gb: Annotated[int, Field(ge=1, le=16384)] = Field(
        default=30, description="Encrypted volume of every job of the pipeline, GiB."
    )
    max_runtime_seconds: Annotated[int, Field(ge=60, le=28 * 86400)] = Field(
        default=3600, description="SageMaker stops the training job after this time; at most 28 days."
    )
    spot: bool = Field(default=False, description="Train on managed spot instances; max_wait_seconds is needed too.")
    max_wait_seconds: Annotated[int, Field(ge=60, le=30 * 86400)] | None = Field(
        default=None,
        description="With spot: longest time for waiting and training together, at least max_runtime_seconds.",
    )
    checkpoints: bool = Field(
        default=False,
        description="Keep what the job writes below /opt/ml/checkpoints in S3, for the job that goes on from it.",
    )
    cache_days: Annotated[int, Field(ge=1, le=365)] | None = Field(
        default=None,
        description="Take the result of a training and evaluation with equal arguments that is at most so many days old. "
        "SageMaker compares names, not content: start the pipeline with the version of its data, as an upload does.",
    )
    preprocess: bool = Field(
        default=False, description="Run preprocess.py of the model's folder on the dataset and train on what it writes."
    )
    processing_instance_type: InstanceType = Field(
        default="ml.m5.large", description="Instance type of preprocessing and evaluation."
    )
    transform_instance_type: InstanceType = Field(
        default="ml.m5.large", description="Instance type of the batch transform of the testing channel."
    )
    approval: Literal["PendingManualApproval", "Approved"] = Field(
        default="PendingManualApproval", description="Approval status of a model package that passed the gate."
    )
    schedule: (
        Annotated[
            str,
            StringConstraints(
                pattern=r"^(rate\([1-9][0-9]* (minute|hour|day)s?\)|cron\([A-Za-z0-9,*?/#-]+( [A-Za-z0-9,*?/#-]+){5}\))$",
                max_length=256,
            ),
        ]
        | None
    ) = Field(
        default=None,
        description='When the pipeline starts by itself, in UTC: "rate(7 days)" or "cron(0 3 ? * MON *)" '
        "as EventBridge Scheduler writes it; without it only data and people start it.",
    )

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        """What SageMaker would refuse only when the pipeline runs, or what would quietly do nothing."""
        if self.spot and self.max_wait_seconds is None:
            raise ValueError("spot is true and max_wait_seconds is not set; spot instances need both")
        if self.max_wait_seconds is not None and not self.spot:
            raise ValueError(
                f"max_wait_seconds is {self.max_wait_seconds} and spot is false; it is for spot = true only"
            )
        if self.max_wait_seconds is not None and self.max_wait_seconds < self.max_runtime_seconds:
            raise ValueError(
                f"max_wait_seconds is {self.max_wait_seconds} and max_runtime_seconds is {self.max_runtime_seconds}; "
                "the wait includes the training, so it cannot be shorter"
            )
        # Each execution has its own place for checkpoints, and the cache compares it (SageMaker Developer Guide, "Default
        # cache key attributes by pipeline step type").
        if self.cache_days is not None and self.checkpoints:
            raise ValueError(
                f"cache_days is {self.cache_days} and checkpoints is true; with checkpoints nothing is found"
            )
        if self.cache_days is not None and self.schedule is not None:
            raise ValueError(
                f"cache_days is {self.cache_days} and schedule is {self.schedule!r}; a scheduled start has always the same "
                "arguments, so it would find its last result and train nothing"
            )
        return self


class LocalSettings(Table):
    """Loopback ports of an environment that runs on one machine."""

    emulator_port: Port = Field(default=5005, description="The AWS emulator.")
    sagemaker_port: Port = Field(default=8080, description="The SageMaker container's server.")
    azure_port: Port = Field(default=7071, description="The Azure Function.")

    function_key: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{20,100}$")] | None = Field(
        default=None,
        description="Key that the Function asks for, as the deployed one does; without it none, as in Core Tools.",
    )

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        if len({self.emulator_port, self.sagemaker_port, self.azure_port}) != 3:
            raise ValueError("emulator_port, sagemaker_port and azure_port must be three different ports")
        return self


class Settings(Table):
    """One environment. Names of resources are methods here and nowhere else."""

    environment: Slug = Field(
        description="Part of every resource name; must equal the file's name for files in config/."
    )
    project: Slug = Field(default="modelferry", description="First part of every resource name.")
    build_dir: str = Field(
        default="build/{environment}",
        description="Where releases, packages and the local environment's files go; relative to the repository.",
    )
    model: ModelSettings
    datasets: dict[Slug, DatasetSettings] = Field(min_length=1, description="One table for each dataset.")
    aws: AwsSettings
    azure: AzureSettings
    training: TrainingSettings = Field(default_factory=TrainingSettings)
    hosting: HostingSettings = Field(default_factory=HostingSettings)
    gateway: GatewaySettings = Field(default_factory=GatewaySettings)
    local: LocalSettings | None = Field(
        default=None,
        description="Only where the AWS side is the emulator on this machine; its absence means real clouds.",
    )
    tags: Tags = Field(default_factory=dict, max_length=40, description="Put on every resource of both clouds.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if "{" in self.build_dir.replace("{environment}", ""):
            raise ValueError(
                f"build_dir is {self.build_dir!r}; the one placeholder that it may hold is {{environment}}"
            )
        if Path(os.path.normpath(self.build_path)) in (ROOT, *ROOT.parents):
            raise ValueError(
                f"build_dir is {self.build_dir!r}, the repository or a folder around it; give a folder that holds nothing else"
            )
        if self.model.dataset not in self.datasets:
            raise ValueError(f"model.dataset is {self.model.dataset!r}; allowed: {', '.join(sorted(self.datasets))}")
        if self.model.name == DATASETS_PREFIX:
            raise ValueError(
                f"model.name is {self.model.name!r}, the folder of all datasets in the data bucket; take another"
            )
        # S3 allows 63 characters and the longest of our bucket names carries account and region.
        for name in (self.data_bucket, self.artifact_bucket, self.log_bucket):
            if len(name) > 63:
                raise ValueError(
                    f"project and environment make the bucket name {name!r} longer than S3's 63 characters"
                )
        # Past 32 characters the host ids of two Function Apps can collide; a container app may not be longer at all.
        if len(self.function_app) > 32:
            raise ValueError(
                f"project, environment and azure.suffix make the app name {self.function_app!r} longer than 32 characters"
            )
        if self.azure.hosting == "container" and "--" in self.container_app:
            raise ValueError(
                f"azure.hosting is 'container' and project and environment make the app name {self.container_app!r}; "
                "Azure Container Apps takes no two dashes in a row"
            )
        self._same_image()
        self._known_instance_types()
        return self

    def _known_instance_types(self) -> None:
        """SageMaker takes other types for each use, and would say so only when the stack or a job is made."""
        # The emulator's transform jobs run on this machine, whatever the type.
        batch, shadow = self.hosting.mode == "batch" and self.local is None, self.hosting.shadow
        uses: list[tuple[str, str | None, Use]] = [
            ("hosting.instance_type", self.hosting.instance_type, "transform" if batch else "endpoint"),
            ("hosting.shadow.instance_type", shadow.instance_type if shadow else None, "endpoint"),
            ("training.instance_type", self.training.instance_type, "training"),
            ("training.processing_instance_type", self.training.processing_instance_type, "processing"),
            ("training.transform_instance_type", self.training.transform_instance_type, "transform"),
        ]
        for key, found, use in uses:
            if found is not None and found not in INSTANCE_TYPES[use]:
                raise ValueError(
                    f"{key} is {found!r}, no instance type that SageMaker has for {use}; {nearest_instance_type(found, use)}"
                )

    def _same_image(self) -> None:
        container, digest = self.azure.container, self.hosting.image_digest
        if container and digest and not container.image.endswith(f"@{digest}"):
            raise ValueError(
                f"hosting.image_digest is {digest} and azure.container.image is {container.image}; both clouds run the same "
                "image, so the digests must be equal"
            )

    @property
    def prefix(self) -> str:
        return f"{self.project}-{self.environment}"

    def stack(self, name: str) -> str:
        return f"{self.prefix}-{name}"

    def _bucket(self, purpose: str) -> str:
        return f"{self.prefix}-{purpose}-{self.aws.account}-{self.aws.region}"

    @property
    def data_bucket(self) -> str:
        return self._bucket("data")

    @property
    def artifact_bucket(self) -> str:
        return self._bucket("artifacts")

    @property
    def log_bucket(self) -> str:
        return self._bucket("logs")

    @property
    def repository(self) -> str:
        return f"{self.prefix}-serving"

    @property
    def training_repository(self) -> str:
        """Holds our own training image."""
        return f"{self.prefix}-training"

    def role(self, purpose: str) -> str:
        """IAM allows 64 characters; the region keeps two deployments of one account apart (IAM is global)."""
        return f"{self.prefix}-{purpose}-{self.aws.region}"

    @property
    def pipeline(self) -> str:
        return f"{self.prefix}-{self.model.name}"

    @property
    def model_package_group(self) -> str:
        return f"{self.prefix}-{self.model.name}"

    @property
    def endpoint(self) -> str:
        return f"{self.prefix}-{self.model.name}"

    def async_topic(self, outcome: Literal["success", "error"]) -> str:
        """The SNS topic that an async endpoint tells about requests with this outcome."""
        return f"{self.endpoint}-{outcome}"

    @property
    def alarm_topic(self) -> str:
        """The SNS topic that every alarm of the endpoint and of its gateway tells."""
        return f"{self.endpoint}-alarms"

    @property
    def waf_log_prefix(self) -> str:
        """What the name of a web ACL's log group begins with; AWS WAF delivers to no group of another name (Developer Guide,
        "Sending web ACL traffic logs to a CloudWatch Logs log group").
        """
        return f"aws-waf-logs-{self.prefix}-"

    @property
    def image_build(self) -> str:
        """The CodeBuild project that builds and pushes the serving image where there is no Docker."""
        return f"{self.prefix}-image"

    @property
    def dataset_prefix(self) -> str:
        """Key prefix of the dataset in the data bucket."""
        return f"{DATASETS_PREFIX}/{self.model.name}"

    @property
    def dataset_manifest(self) -> str:
        """Key of the manifest of the version that was uploaded last."""
        return f"{self.dataset_prefix}/{MANIFEST_FILE}"

    def dataset_version(self, sha256: str) -> str:
        """The version of the dataset whose manifest has this sha256: `DATASETS_PREFIX` and this are the prefix of its files.

        It is a key, too: of an object that is written once, after all files, and whose creation starts the pipeline.
        EventBridge hands on that key and can put nothing around it, and a pipeline can join texts and cut none.
        """
        return f"{self.dataset_versions}{sha256}"

    @property
    def dataset_versions(self) -> str:
        """What the versions begin with."""
        return f"{self.model.name}/"

    @property
    def azure_name(self) -> str:
        return f"{self.prefix}-{self.azure.suffix}"

    @property
    def resource_group(self) -> str:
        return self.azure.resource_group or f"rg-{self.prefix}"

    @property
    def function_app(self) -> str:
        return f"func-{self.azure_name}"

    @property
    def storage_account(self) -> str:
        """3 to 24 lower-case letters and digits, globally unique: a readable head, a hash of the rest."""
        digest = hashlib.sha256(f"{self.azure_name}/{self.azure.location}".encode()).hexdigest()[:8]
        return f"st{re.sub('[^a-z0-9]', '', self.prefix)[:14]}{digest}"

    @property
    def deployment_container(self) -> str:
        """The blob container that the Function App starts its package from."""
        return "deployment"

    @property
    def service_plan(self) -> str:
        return f"asp-{self.prefix}"

    @property
    def app_identity(self) -> str:
        return f"id-{self.prefix}"

    @property
    def log_workspace(self) -> str:
        return f"log-{self.prefix}"

    @property
    def app_insights(self) -> str:
        return f"appi-{self.prefix}"

    @property
    def container_app(self) -> str:
        return f"ca-{self.azure_name}"

    @property
    def container_app_environment(self) -> str:
        return f"cae-{self.prefix}"

    @property
    def virtual_network(self) -> str:
        return f"vnet-{self.prefix}"

    @property
    def action_group(self) -> str:
        return f"ag-{self.prefix}"

    @property
    def budget(self) -> str:
        return f"budget-{self.prefix}"

    @property
    def build_path(self) -> Path:
        return ROOT / self.build_dir.replace("{environment}", self.environment)

    @property
    def release_path(self) -> Path:
        """Where `ferry release` puts release.json beside its model.tar.gz, and where the stacks look for it."""
        return self.build_path / "release" / "release.json"

    @property
    def image_path(self) -> Path:
        """Where `ferry image push` notes the digest of the image that it pushed, and where the stacks look for it."""
        return self.build_path / "image.json"

    @property
    def package_path(self) -> Path:
        """The zip that `ferry package` builds for Azure."""
        return self.build_path / "package" / "released-package.zip"

    @property
    def azure_release_file(self) -> Path:
        """What the Azure stack uploads: the package for a Function App, the release's own archive for a container."""
        if self.azure.hosting == "container":
            return self.release_path.parent / "model.tar.gz"
        return self.package_path


def load_settings(environment: str | None = None) -> Settings:
    """Read one environment's settings.

    `environment` is a name (a file below config/) or a path to a .toml file; None takes FERRY_ENV, and `local` where that
    is not set. Raises SettingsError.
    """
    path = settings_file(environment)
    table = _parse(path, _read(path))
    _refuse_texts(path, table)
    table.setdefault("environment", path.stem)
    try:
        settings = Settings.model_validate(table)
    except ValidationError as error:
        problems = error.errors()
        complaints = [_explain(path, problem) for problem in problems[:_MAX_COMPLAINTS]]
        if len(problems) > _MAX_COMPLAINTS:
            complaints.append(f"{path}: and {len(problems) - _MAX_COMPLAINTS} more")
        raise SettingsError("\n".join(complaints)) from error
    if path.parent == ROOT / "config" and settings.environment != path.stem:
        raise SettingsError(
            f"{path}: environment: found {settings.environment!r}; allowed: {path.stem!r}, the file's name"
        )
    return settings


def settings_file(environment: str | None = None) -> Path:
    """The file that `load_settings` reads for the same argument."""
    origin = "the environment"
    if environment is None:
        environment, origin = os.environ.get(ENVIRONMENT_VARIABLE, DEFAULT_ENVIRONMENT), ENVIRONMENT_VARIABLE
    if not environment:
        raise SettingsError(f"{origin} is set but empty; give a name in config/ or a path to a .toml file")
    if not environment.endswith(".toml"):
        return ROOT / "config" / f"{environment}.toml"
    try:
        return Path(environment).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of symbolic links, a name that no file can have
        raise SettingsError(f"{environment[:_SHOWN]!r} is no path: {error}") from error


def _read(path: Path) -> bytes:
    """The content of a regular file, no more of it than settings may have. Raises SettingsError."""
    try:
        # Without O_NONBLOCK a named pipe would wait for a writer that never comes.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError(errno.EINVAL, "no regular file")
            raw = file.read(MAX_SETTINGS_BYTES + 1)
    except (OSError, ValueError) as error:
        known = ", ".join(sorted(p.stem for p in (ROOT / "config").glob("*.toml")))
        reason = getattr(error, "strerror", None) or error
        raise SettingsError(f"{path}: cannot be read ({reason}); environments in config/: {known}") from error
    if len(raw) > MAX_SETTINGS_BYTES:
        raise SettingsError(f"{path}: more than {MAX_SETTINGS_BYTES:,} bytes; settings are at most that many")
    return raw


def _parse(path: Path, raw: bytes) -> dict[str, Any]:
    """Raises SettingsError, which names the line."""
    try:
        text = raw.decode("utf-8-sig").replace("\r\n", "\n")
        if deep := _DOTTED.search(text):
            line = text.count("\n", 0, deep.start()) + 1
            raise SettingsError(f"{path}:{line}: a key of more parts than any setting has: {_shown(deep[0])}")
        return tomllib.loads(text)
    except SettingsError:
        raise
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise SettingsError(f"{path}:{line}: not UTF-8: byte {raw[error.start]:#04x}") from error
    except RecursionError as error:
        raise SettingsError(f"{path}: arrays or tables lie too deep in each other") from error
    except ValueError as error:  # also a number of more digits than Python reads
        place = re.search(r" \(at line (\d+), column \d+\)$", str(error))
        raise SettingsError(f"{path}{f':{place[1]}' if place else ''}: not TOML: {str(error)[:400]}") from error


def _refuse_texts(path: Path, table: dict[str, Any]) -> None:
    """What no text may be, whatever its key takes. Raises SettingsError before anything shows a value: it may be a secret."""
    for location, text in _texts(path, table):
        if len(text) > _LONGEST:
            raise SettingsError(
                f"{path}: {_key(location)[:_SHOWN]}: a text of {len(text):,} characters; allowed: at most {_LONGEST:,}"
            )
        key = _key(["(not shown)" if secret_in(part) else part for part in location])
        if key == "local.function_key":  # opens a door of this machine only
            continue
        kind = secret_in(text) or ("a secret, by its name" if text and _promises_a_secret(location) else None)
        if kind:
            raise SettingsError(
                f"{path}: {key}: found what looks like {kind} ({len(text)} characters, not shown); settings are read by "
                "everybody who reads the repository, the templates or the job: keep it in AWS Secrets Manager or Azure Key Vault"
            )
        if any(character < " " or character == "\x7f" for character in text):
            raise SettingsError(f"{path}: {key}: found {_shown(text)}; allowed: a text without control characters")
        if is_placeholder(text):
            raise SettingsError(f"{path}: {key}: found {_shown(text)}, a placeholder; put your own value there")


def _promises_a_secret(location: Sequence[str]) -> bool:
    """Only where names are free: what a key of ours holds is known."""
    return ("tags" in location[:-1] or "hyperparameters" in location[:-1]) and names_a_secret(location[-1])


def _texts(path: Path, value: Any, location: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every text with its place; a key is a text at the place of its table."""
    if len(location) > _DEEPEST:
        raise SettingsError(f"{path}: {_key(location)}: tables lie deeper in each other than any setting does")
    if isinstance(value, str):
        yield location, value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield location, key
            yield from _texts(path, each, (*location, key))
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from _texts(path, each, (*location, str(index)))


def _explain(path: Path, problem: Any) -> str:
    location = [str(part) for part in problem["loc"] if part != "[key]"]  # the name itself is wrong, not its value
    key = _key(location) or "settings"
    if problem["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        near = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(known)}"
        return f"{path}: {key}: unknown key; {hint}"
    if problem["type"] == "missing":
        return f"{path}: {key}: missing; {_description(location)}"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "string_pattern_mismatch":
        key_itself = location[:-1] if location[-1].isdecimal() else location
        message = f"{message}; {_description(key_itself)}"
    found = "" if isinstance(problem["input"], dict) else f"found {_shown(problem['input'])}; "
    return f"{path}: {key}: {found}{message}"


def _key(location: Sequence[str]) -> str:
    """A dotted key for a message; a name that TOML would want in quotes has some."""
    return ".".join(part if re.fullmatch(r"[A-Za-z0-9_-]+|\(not shown\)", part) else _shown(part) for part in location)


def _shown(value: Any) -> str:
    """A value for a message, which stays readable whatever somebody put there."""
    try:
        text = repr(value)
    except ValueError:  # a number of more digits than Python writes
        text = f"a number of {value.bit_length():,} bits"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def _table_at(location: list[str]) -> type[BaseModel] | None:
    """The kind of table that a location names; the name of a dataset or the index of a list is a part of its own."""
    table: type[BaseModel] = Settings
    parts = iter(location)
    for part in parts:
        annotation = table.model_fields[part].annotation if part in table.model_fields else None
        # Optional, in a list or by name: `Table | None`, `list[Table]`, `dict[Slug, Table]`.
        choices = [annotation, *get_args(annotation)]
        nested = [choice for choice in choices if isinstance(choice, type) and issubclass(choice, BaseModel)]
        if not nested:
            return None
        table = nested[0]
        if get_origin(annotation) in (list, dict) and next(parts, None) is None:
            return None
    return table


def _known_keys(location: list[str]) -> list[str]:
    table = _table_at(location)
    return list(table.model_fields) if table else []


def _description(location: list[str]) -> str:
    table = _table_at(location[:-1])
    field = table.model_fields.get(location[-1]) if table else None
    return (field.description if field and field.description else "a table is needed") if location else ""
