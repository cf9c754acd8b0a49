"""How the released model is hosted on SageMaker and what stands in front of it: the [hosting] and [gateway] tables.

Two switches, `mode` and `layout`, and tables that refine them. A table of another mode may stay in the file, so that a change
of mode is a change of one line; a combination that SageMaker refuses, or would quietly not do, is refused when it is read,
with both keys and the rule. The rules are those of the SageMaker Developer Guide: "Inference options" and its feature
table, "Serverless inference, feature exclusions", "Deployment guardrails, exclusions", "Shadow tests, exclusions".
"""

import ipaddress
import re
from datetime import datetime, timedelta
from math import ceil
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from infra.settings_table import Email, Table

# Beside the model that it serves, what an endpoint may hold at most (CreateModel, Containers).
MAX_CONTAINERS = 15
# CreateTransformJob: MaxConcurrentTransforms times MaxPayloadInMB.
MAX_BATCH_MEGABYTES = 100

# Custom containers in a multi-model endpoint run on CPUs only (Developer Guide, "Build your own container for multi-model
# endpoints"), and neither guardrails nor shadow tests work with Inferentia 1.
_GPU = re.compile(r"^ml\.(g|p)\d")
_INFERENTIA_1 = "ml.inf1."
# Our image and AWS's are built for linux/amd64; the families with a "g" behind the generation have Graviton processors.
_GRAVITON = re.compile(r"^ml\.[a-z]+\d+g")
# Developer Guide, "Create a shadow test".
MIN_EXPERIMENT, MAX_EXPERIMENT = timedelta(hours=1), timedelta(days=30)


def _private_network(cidr: str) -> str:
    network = ipaddress.ip_network(cidr)
    if network.version != 4 or not network.is_private or not 16 <= network.prefixlen <= 24:
        raise ValueError("a private IPv4 network between /16 and /24, such as 10.20.0.0/20")
    return cidr


Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
InstanceType = Annotated[str, StringConstraints(pattern=r"^ml\.[a-z0-9-]+\.[a-z0-9]+$")]
PinnedImage = Annotated[
    str, StringConstraints(pattern=r"^[0-9]{12}\.dkr\.ecr\.[a-z0-9-]+\.[a-z0-9.]+/[a-z0-9._/-]+@sha256:[0-9a-f]{64}$")
]
Timeout = Annotated[int, Field(ge=60, le=3600)]
Percent = Annotated[int, Field(ge=1, le=100)]
Cooldown = Annotated[int, Field(ge=0, le=3600)]


class ServerlessSettings(Table):
    """With mode = "serverless"."""

    memory_mb: Literal[1024, 2048, 3072, 4096, 5120, 6144] = Field(
        default=2048, description="Memory of one concurrent invocation, MB; its share of a CPU grows with it."
    )
    max_concurrency: Annotated[int, Field(ge=1, le=200)] = Field(
        default=5, description="Invocations at once; more are answered 429."
    )
    provisioned_concurrency: Annotated[int, Field(ge=1, le=200)] | None = Field(
        default=None, description="Invocations at once that never start cold, and are paid for all the time."
    )

    @model_validator(mode="after")
    def _within(self) -> Self:
        if self.provisioned_concurrency is not None and self.provisioned_concurrency > self.max_concurrency:
            raise ValueError(
                f"provisioned_concurrency is {self.provisioned_concurrency} and max_concurrency is {self.max_concurrency}; "
                "what is provisioned is a part of the maximum, so it cannot be larger"
            )
        return self


class AsyncInferenceSettings(Table):
    """With mode = "async". Requests and answers are objects in the artifacts bucket; two SNS topics tell of the outcome."""

    invocation_timeout_seconds: Annotated[int, Field(ge=1, le=3600)] = Field(
        default=900, description="Longest time that one request may take in the container."
    )
    max_concurrent_invocations_per_instance: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        default=None, description="Requests that SageMaker sends to one instance at once; without it SageMaker chooses."
    )


class BatchSettings(Table):
    """With mode = "batch": the transform jobs that `ferry batch` starts."""

    max_payload_mb: Annotated[int, Field(ge=1, le=100)] = Field(
        default=6, description="Largest request that SageMaker makes of the input, MB."
    )
    max_concurrent_transforms: Annotated[int, Field(ge=1, le=100)] = Field(
        default=4, description="Requests at once to one instance."
    )
    strategy: Literal["MultiRecord", "SingleRecord"] = Field(
        default="MultiRecord", description="With split_type Line: as many records in a request as fit, or one."
    )
    split_type: Literal["None", "Line"] = Field(
        default="None", description="How objects become requests: each a whole one, or by lines."
    )
    join: bool = Field(
        default=False, description="Put every input record before its result; for lines of text/csv or JSON only."
    )
    invocations_timeout_seconds: Annotated[int, Field(ge=1, le=3600)] = Field(
        default=600, description="Longest time that one request may take in the container."
    )
    max_retries: Annotated[int, Field(ge=0, le=3)] = Field(default=3, description="Retries of a request that failed.")

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        product = self.max_payload_mb * self.max_concurrent_transforms
        if product > MAX_BATCH_MEGABYTES:
            raise ValueError(
                f"max_payload_mb is {self.max_payload_mb} and max_concurrent_transforms is "
                f"{self.max_concurrent_transforms}; their product may be {MAX_BATCH_MEGABYTES} MB, not {product}"
            )
        if self.strategy == "SingleRecord" and self.split_type == "None":
            raise ValueError(
                "strategy is 'SingleRecord' and split_type is 'None'; without a split there are no records"
            )
        if self.join and self.split_type == "None":
            raise ValueError("join is true and split_type is 'None'; results are joined to the lines of the input")
        return self


class ContainerSettings(Table):
    """One container beside others: of a multi-container endpoint, or behind the model in a serial pipeline."""

    hostname: Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}$")] = Field(
        description="What TargetContainerHostname names; unique in the endpoint."
    )
    release: str | None = Field(
        default=None,
        description="Path to the release.json that it serves, relative to the repository; without it and without image the "
        "release that is deployed.",
    )
    image: PinnedImage | None = Field(
        default=None, description="Another image than our own, by digest; it gets no model data."
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.image and self.release:
            raise ValueError(
                "release and image are both set; our own image serves releases, another image brings its own"
            )
        return self


class AutoscalingSettings(Table):
    """Application Auto Scaling of the endpoint's variant. Each mode has a target of its own."""

    min_capacity: Annotated[int, Field(ge=0, le=100)] = Field(
        default=1, description="Fewest instances, or provisioned concurrency; 0 with mode = async only."
    )
    max_capacity: Annotated[int, Field(ge=1, le=200)] = Field(
        default=4, description="Most instances, or provisioned concurrency."
    )
    invocations_per_instance: Annotated[int, Field(ge=1, le=1000000)] = Field(
        default=1000, description="With mode = realtime: invocations per minute and instance to aim at."
    )
    backlog_per_instance: Annotated[int, Field(ge=1, le=1000000)] = Field(
        default=5, description="With mode = async: waiting requests per instance to aim at."
    )
    provisioned_concurrency_utilization: Annotated[float, Field(ge=0.1, le=0.9)] = Field(
        default=0.7, description="With mode = serverless: share of the provisioned concurrency in use to aim at."
    )
    scale_in_cooldown_seconds: Cooldown = Field(default=300, description="Rest after instances were taken away.")
    scale_out_cooldown_seconds: Cooldown = Field(default=60, description="Rest after instances were added.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_capacity > self.max_capacity:
            raise ValueError(
                f"min_capacity is {self.min_capacity} and max_capacity is {self.max_capacity}; the first cannot be larger"
            )
        return self


class RolloutSettings(Table):
    """How an endpoint moves to another configuration (CreateEndpoint, DeploymentConfig); alarms roll it back."""

    strategy: Literal["all-at-once", "canary", "linear", "rolling"] = Field(
        default="all-at-once",
        description="A second fleet that takes the traffic at once, first a part of it, or step by step; "
        "rolling replaces instances batch by batch without a second fleet.",
    )
    step_percent: Annotated[int, Field(ge=5, le=50)] = Field(
        default=25,
        description="Size of the canary, of a linear step (at least 10), or of a rolling batch, % of capacity.",
    )
    wait_seconds: Annotated[int, Field(ge=0, le=3600)] = Field(
        default=300,
        description="Time in which the alarms watch a step before the next one; all-at-once has no next one.",
    )
    termination_wait_seconds: Annotated[int, Field(ge=0, le=3600)] = Field(
        default=120,
        description="Time that the old fleet stays after the last step while the alarms watch; not with rolling.",
    )
    maximum_execution_timeout_seconds: Annotated[int, Field(ge=600, le=28800)] = Field(
        default=3600, description="After this time the update is rolled back."
    )

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        if self.strategy == "linear" and self.step_percent < 10:
            raise ValueError(
                f"strategy is 'linear' and step_percent is {self.step_percent}; a linear step is 10 to 50 % of the capacity"
            )
        if self.waiting_seconds >= self.maximum_execution_timeout_seconds:
            raise ValueError(
                f"strategy is {self.strategy!r} and maximum_execution_timeout_seconds is "
                f"{self.maximum_execution_timeout_seconds}; its steps wait {self.waiting_seconds} s together, so it would always "
                "be rolled back"
            )
        return self

    @property
    def waiting_seconds(self) -> int:
        """All waits of one update together; MaximumExecutionTimeoutInSeconds must be larger (BlueGreenUpdatePolicy)."""
        steps = {"all-at-once": 0, "canary": 1}.get(self.strategy, ceil(100 / self.step_percent))
        return steps * self.wait_seconds + (0 if self.strategy == "rolling" else self.termination_wait_seconds)


class ShadowSettings(Table):
    """A second release that gets copies of the requests; its answers go nowhere but into metrics and data capture."""

    release: str = Field(description="Path to the release.json of the candidate, relative to the repository.")
    form: Literal["variant", "experiment"] = Field(
        default="variant",
        description="A shadow variant of the endpoint, or an InferenceExperiment that adds one for a time and compares.",
    )
    sampling_percent: Percent = Field(default=100, description="Share of the requests that are copied, %.")
    instance_type: InstanceType | None = Field(
        default=None, description="Instance type of the shadow; without it that of the model."
    )
    instance_count: Annotated[int, Field(ge=1, le=100)] = Field(default=1, description="Instances of the shadow.")
    starts: datetime | None = Field(
        default=None,
        description="With form = experiment: 2026-11-30T08:00:00Z, say; without it the deployment starts it.",
    )
    ends: datetime | None = Field(
        default=None, description="With form = experiment: at most 30 days later; without it SageMaker ends it after 7."
    )

    @model_validator(mode="after")
    def _schedule(self) -> Self:
        """A duration would need a clock to become times, and the same settings would be another template every day."""
        times = {name: value for name, value in (("starts", self.starts), ("ends", self.ends)) if value is not None}
        for name, value in times.items():
            if self.form == "variant":
                raise ValueError(
                    f"form is 'variant' and {name} is set; a shadow variant stays as long as the table is there"
                )
            if value.tzinfo is None:
                raise ValueError(f"{name} is {value.isoformat()}; give its offset, such as {value.isoformat()}Z")
        if self.starts and self.ends and not MIN_EXPERIMENT <= self.ends - self.starts <= MAX_EXPERIMENT:
            raise ValueError(
                f"starts is {self.starts.isoformat()} and ends is {self.ends.isoformat()}; an experiment runs for an "
                f"hour at least and {MAX_EXPERIMENT.days} days at most"
            )
        return self


class DataCaptureSettings(Table):
    """A sample of requests and answers, kept encrypted in the artifacts bucket."""

    sampling_percent: Percent = Field(default=10, description="Share of the requests that are kept, %.")
    capture: Literal["input", "output", "both"] = Field(default="both", description="What of them is kept.")


class VpcSettings(Table):
    """Where the containers get their network interfaces: a network that the stack makes, or subnets that are there."""

    cidr: Annotated[str, AfterValidator(_private_network)] | None = Field(
        default=None,
        description="Address range of a network that the stack makes: two private subnets and the endpoints that hosting needs.",
    )
    subnet_ids: list[Annotated[str, StringConstraints(pattern=r"^subnet-[0-9a-f]{8,17}$")]] = Field(
        default_factory=list, max_length=16, description="Subnets that are there, at least two, in different zones."
    )
    security_group_ids: list[Annotated[str, StringConstraints(pattern=r"^sg-[0-9a-f]{8,17}$")]] = Field(
        default_factory=list, max_length=5, description="Security groups that are there, one to five."
    )

    @model_validator(mode="after")
    def _one_network(self) -> Self:
        if self.cidr and (self.subnet_ids or self.security_group_ids):
            raise ValueError(
                "cidr and subnet_ids or security_group_ids are set; give cidr for a new network or the ids of yours"
            )
        if not self.cidr and (len(self.subnet_ids) < 2 or not self.security_group_ids):
            raise ValueError("give cidr for a new network, or at least two subnet_ids and one of security_group_ids")
        return self


class NetworkSettings(Table):
    """What the containers can reach."""

    isolation: bool = Field(
        default=True, description="The containers make no call to any network, not even to AWS. Serverless has none."
    )
    vpc: VpcSettings | None = Field(default=None, description="Network interfaces in a VPC instead of SageMaker's own.")


class AlarmSettings(Table):
    """When the endpoint is not well: what CloudWatch tells, and what rolls an update back."""

    emails: list[Email] = Field(default_factory=list, max_length=10, description="Who is told; each confirms it once.")
    errors_5xx: Annotated[int, Field(ge=1)] = Field(default=5, description="Answers 5xx of the container in a minute.")
    invocation_errors_percent: Percent = Field(
        default=5, description="Share of the invocations that failed in each of two minutes, in percent, 4xx included."
    )
    model_latency_ms: Annotated[int, Field(ge=1, le=3600000)] = Field(
        default=500,
        description="Time in which the container answers 95 of 100 requests, ms; two slower minutes are too many.",
    )


class HostingSettings(Table):
    """The SageMaker endpoint or, with mode = "batch", the model that transform jobs use."""

    mode: Literal["realtime", "serverless", "async", "batch"] = Field(
        default="realtime", description="SageMaker's way to run the model."
    )
    layout: Literal["single", "multi-model", "multi-container", "serial-pipeline"] = Field(
        default="single",
        description="What is behind the endpoint: one model; every release by TargetModel; several containers by "
        "TargetContainerHostname; a container that decodes and preprocesses, then the model.",
    )
    image: Literal["own", "pytorch-dlc"] = Field(
        default="own",
        description="Our ONNX image, or AWS's last PyTorch inference image with script-mode serving (code/inference.py).",
    )
    image_digest: Digest | None = Field(
        default=None,
        description="Pins the serving image by digest; without it what `ferry image push` noted for these sources, or else "
        "their immutable tag.",
    )
    instance_type: InstanceType = Field(default="ml.c6i.large", description="Instance type behind the endpoint.")
    instance_count: Annotated[int, Field(ge=1, le=100)] = Field(
        default=1, description="Instances behind the endpoint; with autoscaling those to begin with."
    )
    health_check_timeout_seconds: Timeout | None = Field(
        default=None, description="Time for a container to become healthy; SageMaker's default without it."
    )
    download_timeout_seconds: Timeout | None = Field(
        default=None, description="Time for the download of the model data; SageMaker's default without it."
    )
    dynamic_batch: Annotated[int, Field(ge=1, le=64)] | None = Field(
        default=None,
        description="Instances of several waiting requests that one inference of our image takes, where that changes no bit of "
        "an answer; 1 answers each request alone. Without it the container's own default.",
    )
    containers: list[ContainerSettings] = Field(
        default_factory=list,
        max_length=MAX_CONTAINERS,
        description="With layout = multi-container all of them; with serial-pipeline those behind the model.",
    )
    serverless: ServerlessSettings = Field(default_factory=ServerlessSettings)
    async_inference: AsyncInferenceSettings = Field(default_factory=AsyncInferenceSettings)
    batch: BatchSettings = Field(default_factory=BatchSettings)
    autoscaling: AutoscalingSettings | None = Field(default=None, description="Without it the capacity is fixed.")
    rollout: RolloutSettings = Field(default_factory=RolloutSettings)
    shadow: ShadowSettings | None = Field(default=None, description="A candidate beside the release.")
    data_capture: DataCaptureSettings | None = Field(default=None, description="Keep a sample of the traffic.")
    network: NetworkSettings = Field(default_factory=NetworkSettings)
    alarms: AlarmSettings = Field(default_factory=AlarmSettings)

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        for refused, first, second, rule in (
            *self._layout_rules(),
            *self._serverless_rules(),
            *self._batch_rules(),
            *self._scaling_rules(),
            *self._rollout_rules(),
            *self._shadow_rules(),
        ):
            if refused:
                raise ValueError(f"{self._found(first)} and {self._found(second)}; {rule}")
        return self

    def _found(self, key: str) -> str:
        """`hosting.rollout.strategy is 'canary'`; a table is set, a list has so many."""
        value: Any = self
        for part in key.split("."):
            value = getattr(value, part)
        if isinstance(value, list):
            return f"hosting.{key} has {len(value)} table{'' if len(value) == 1 else 's'}"
        shown = "set" if isinstance(value, Table) else str(value).lower() if isinstance(value, bool) else repr(value)
        return f"hosting.{key} is {shown}"

    @property
    def _on_instances(self) -> bool:
        """Whether instance_type says where the containers run."""
        return self.mode in ("realtime", "async")

    def _layout_rules(self) -> tuple[tuple[bool, str, str, str], ...]:
        several = self.layout in ("multi-model", "multi-container")
        names = [container.hostname.lower() for container in self.containers]
        return (
            (
                self.mode in ("serverless", "async") and self.layout != "single",
                "mode", "layout",
                f"{self.mode} endpoints host a single model in one container; several models, several containers and serial "
                "pipelines need mode = 'realtime'",
            ),
            (
                self.mode == "batch" and several,
                "mode", "layout",
                "a transform job has no TargetModel and no TargetContainerHostname; it takes single or serial-pipeline",
            ),
            (
                self.image == "pytorch-dlc" and self.layout != "single",
                "image", "layout",
                "script-mode serving is one model in one container; the other layouts need image = 'own'",
            ),
            (
                self._on_instances and bool(_GRAVITON.match(self.instance_type)),
                "image", "instance_type",
                "the image is built for linux/amd64, and this type has Graviton processors",
            ),
            (
                self.image == "pytorch-dlc" and bool(_GPU.match(self.instance_type)),
                "image", "instance_type",
                "it is the image for CPUs; a GPU would stay idle",
            ),
            (
                self.image == "pytorch-dlc" and self.image_digest is not None,
                "image", "image_digest",
                "the digest is that of our own image; AWS's has a tag",
            ),
            (
                self.dynamic_batch is not None and self.layout == "multi-model",
                "layout", "dynamic_batch",
                "a multi-model container answers each request alone: neighbours ask for different models",
            ),
            (
                self.dynamic_batch is not None and self.image == "pytorch-dlc",
                "image", "dynamic_batch",
                "it is our container that joins requests; AWS's answers each alone",
            ),
            (
                self.layout == "multi-model" and bool(_GPU.match(self.instance_type)),
                "layout", "instance_type",
                "a multi-model endpoint with a container of one's own runs on CPU instances",
            ),
            (
                bool(self.containers) and self.layout in ("single", "multi-model"),
                "layout", "containers",
                "containers are for multi-container and serial-pipeline",
            ),
            (
                self.layout == "multi-container" and len(self.containers) < 2,
                "layout", "containers",
                f"a multi-container endpoint has 2 to {MAX_CONTAINERS} containers, each in a [[hosting.containers]] table",
            ),
            (
                self.layout == "serial-pipeline" and len(self.containers) > MAX_CONTAINERS - 2,
                "layout", "containers",
                f"a serial pipeline has 2 to {MAX_CONTAINERS} containers, and the first two are there already",
            ),
            (
                self.layout == "serial-pipeline" and any(not container.image for container in self.containers),
                "layout", "containers",
                "what comes behind the model has an image of its own; releases come in other layouts",
            ),
            (
                len(set(names)) != len(names) or (self.layout == "serial-pipeline" and bool({"preprocess", "model"} & set(names))),
                "layout", "containers",
                "every hostname is there once; a serial pipeline has preprocess and model already",
            ),
        )  # fmt: skip

    def _serverless_rules(self) -> tuple[tuple[bool, str, str, str], ...]:
        serverless = self.mode == "serverless"
        excluded = "serverless endpoints have none (Developer Guide, 'Serverless Inference', feature exclusions)"
        return (
            (serverless and self.network.vpc is not None, "mode", "network.vpc", excluded),
            (
                serverless and self.network.isolation and "isolation" in self.network.model_fields_set,
                "mode", "network.isolation", excluded,
            ),
            (serverless and self.data_capture is not None, "mode", "data_capture", excluded),
            (serverless and self.health_check_timeout_seconds is not None, "mode", "health_check_timeout_seconds", excluded),
            (serverless and self.download_timeout_seconds is not None, "mode", "download_timeout_seconds", excluded),
            (
                self.mode != "realtime" and self.image == "pytorch-dlc",
                "mode", "image",
                "the model server in that image takes bodies of 6.5 MB and needs more than serverless memory; other modes than "
                "realtime need image = 'own'",
            ),
            (
                self.mode in ("async", "batch") and self.data_capture is not None,
                "mode", "data_capture",
                "data is captured from real-time endpoints; what goes into async and batch and comes out is in S3 already",
            ),
        )  # fmt: skip

    def _batch_rules(self) -> tuple[tuple[bool, str, str, str], ...]:
        batch, without = self.mode == "batch", "a transform job has no endpoint to apply it to"
        return (
            (batch and self.health_check_timeout_seconds is not None, "mode", "health_check_timeout_seconds", without),
            (batch and self.download_timeout_seconds is not None, "mode", "download_timeout_seconds", without),
        )

    def _scaling_rules(self) -> tuple[tuple[bool, str, str, str], ...]:
        scaling = self.autoscaling
        if scaling is None:
            return ()
        serverless = self.mode == "serverless"
        provisioned = self.serverless.provisioned_concurrency
        return (
            (self.mode == "batch", "mode", "autoscaling", "a transform job keeps its instances until it ends"),
            (
                serverless and provisioned is None,
                "autoscaling", "serverless.provisioned_concurrency",
                "on-demand concurrency scales by itself; what is scaled is provisioned concurrency",
            ),
            (
                serverless and scaling.max_capacity > self.serverless.max_concurrency,
                "autoscaling.max_capacity", "serverless.max_concurrency",
                "provisioned concurrency is a part of the maximum, so it cannot be larger",
            ),
            (
                self.mode != "async" and scaling.min_capacity == 0,
                "mode", "autoscaling.min_capacity",
                "only an async endpoint, whose requests wait in a queue, scales to zero",
            ),
            (
                not serverless and not max(scaling.min_capacity, 1) <= self.instance_count <= scaling.max_capacity,
                "instance_count", "autoscaling",
                f"the endpoint begins with instance_count, which lies between min_capacity {scaling.min_capacity} and "
                f"max_capacity {scaling.max_capacity}",
            ),
        )  # fmt: skip

    def _rollout_rules(self) -> tuple[tuple[bool, str, str, str], ...]:
        guarded = self.rollout.strategy != "all-at-once"
        return (
            (
                guarded and self.mode in ("serverless", "batch"),
                "mode", "rollout.strategy",
                "deployment guardrails are for real-time and asynchronous endpoints; another one gets all-at-once",
            ),
            (
                guarded and self.instance_type.startswith(_INFERENTIA_1),
                "instance_type", "rollout.strategy",
                "deployment guardrails exclude Inferentia 1; such an endpoint gets all-at-once",
            ),
            (
                guarded and self.instance_count < 2,
                "instance_count", "rollout.strategy",
                "a step is at most half of the capacity, so there are at least 2 instances",
            ),
            (
                self.rollout.strategy == "rolling" and self.shadow is not None,
                "rollout.strategy", "shadow",
                "a rolling update excludes endpoints with several variants",
            ),
            (
                self.rollout.strategy == "rolling" and "termination_wait_seconds" in self.rollout.model_fields_set,
                "rollout.strategy", "rollout.termination_wait_seconds",
                "a rolling update has no old fleet that could wait",
            ),
        )  # fmt: skip

    def _shadow_rules(self) -> tuple[tuple[bool, str, str, str], ...]:
        if self.shadow is None:
            return ()
        excluded = "shadow tests exclude it (Developer Guide, 'Shadow tests', exclusions)"
        instances = {self.instance_type, self.shadow.instance_type or self.instance_type}
        return (
            (self.mode != "realtime", "mode", "shadow", f"{excluded}: mode = 'realtime' only"),
            (self.layout != "single", "layout", "shadow", f"{excluded}: layout = 'single' only"),
            (
                any(each.startswith(_INFERENTIA_1) for each in instances),
                "instance_type", "shadow",
                f"{excluded}: no Inferentia 1",
            ),
            (
                bool(_GRAVITON.match(self.shadow.instance_type or "")),
                "image", "shadow.instance_type",
                "the image is built for linux/amd64, and this type has Graviton processors",
            ),
        )  # fmt: skip


class WafSettings(Table):
    """A web ACL on the stage: AWS's common rules, and a limit for each address."""

    requests_per_five_minutes: Annotated[int, Field(ge=10, le=2000000000)] = Field(
        default=2000, description="Requests of one IP address in five minutes; more are refused."
    )


class GatewaySettings(Table):
    """The REST API in front of the endpoint; with mode = "batch" there is none."""

    authorization: Literal["iam", "api-key", "cognito"] = Field(
        default="iam",
        description="Who may call: AWS principals that sign their requests (SigV4), holders of an API key, or users of "
        "Cognito user pools.",
    )
    cognito_user_pool_arns: list[
        Annotated[
            str, StringConstraints(pattern=r"^arn:aws[a-z-]*:cognito-idp:[a-z0-9-]+:[0-9]{12}:userpool/[A-Za-z0-9_-]+$")
        ]
    ] = Field(default_factory=list, max_length=10, description="With authorization = cognito: whose users may call.")
    rate_limit: Annotated[int, Field(ge=1, le=10000)] = Field(default=50, description="Requests per second, steady.")
    burst_limit: Annotated[int, Field(ge=1, le=5000)] = Field(default=100, description="Requests at once.")
    waf: WafSettings | None = Field(default=None, description="A web ACL in front of the stage.")

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        if (self.authorization == "cognito") != bool(self.cognito_user_pool_arns):
            raise ValueError(
                f"gateway.authorization is {self.authorization!r} and gateway.cognito_user_pool_arns is "
                f"{self.cognito_user_pool_arns}; 'cognito' needs at least one user pool, and nothing else takes any"
            )
        return self
