"""Every legal mode and layout of the Hosting stack, and what refines them: settings and releases for tests that synthesize."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from infra.settings import Settings
from infra.settings_hosting import HostingSettings
from tests.stack_fixtures import dev_settings, make_release, write_release

# With the image pinned, an edit of the serving code changes no name.
PINNED = "sha256:" + "3c" * 32
OTHER_IMAGE = "111122223333.dkr.ecr.eu-west-1.amazonaws.com/team/translate@sha256:" + "5e" * 32
CANDIDATE_SHA256 = "ab" * 32
# Stands for the release.json that `variant_settings` writes for the candidate.
CANDIDATE = "candidate/release.json"

_TWO_INSTANCES = {"instance_count": 2}
_TRANSLATE = {"hostname": "translate", "image": OTHER_IMAGE}
_CAPTURE = {"sampling_percent": 20, "capture": "both"}
_SUBNETS = {
    "subnet_ids": ["subnet-0a1b2c3d4e5f60718", "subnet-1a1b2c3d4e5f60718"],
    "security_group_ids": ["sg-0a1b2c3d4e5f60718"],
}

# What [hosting] says beyond config/dev.toml, by variant; each has a snapshot.
VARIANTS: dict[str, dict[str, Any]] = {
    "realtime-single": {},
    "realtime-multi-model": {"layout": "multi-model", "download_timeout_seconds": 600},
    "realtime-multi-container": {
        "layout": "multi-container",
        "containers": [{"hostname": "deployed"}, {"hostname": "candidate", "release": CANDIDATE}, _TRANSLATE],
    },
    "realtime-serial-pipeline": {"layout": "serial-pipeline", "containers": [_TRANSLATE]},
    "serverless-single": {"mode": "serverless"},
    "async-single": {"mode": "async", "async_inference": {"max_concurrent_invocations_per_instance": 4}},
    "batch-single": {"mode": "batch"},
    "batch-serial-pipeline": {"mode": "batch", "layout": "serial-pipeline"},
    "realtime-scaling": {"autoscaling": {"min_capacity": 1, "max_capacity": 4}},
    "serverless-scaling": {
        "mode": "serverless",
        "serverless": {"max_concurrency": 20, "provisioned_concurrency": 2},
        "autoscaling": {"min_capacity": 1, "max_capacity": 10},
    },
    "async-scaling-to-zero": {"mode": "async", "autoscaling": {"min_capacity": 0, "max_capacity": 3}},
    "realtime-canary": {**_TWO_INSTANCES, "rollout": {"strategy": "canary", "step_percent": 10}},
    "realtime-linear": {**_TWO_INSTANCES, "rollout": {"strategy": "linear", "step_percent": 50}},
    "realtime-rolling": {**_TWO_INSTANCES, "rollout": {"strategy": "rolling", "step_percent": 50}},
    "async-canary": {**_TWO_INSTANCES, "mode": "async", "rollout": {"strategy": "canary"}},
    "realtime-shadow-variant": {"shadow": {"release": CANDIDATE, "sampling_percent": 50}, "data_capture": _CAPTURE},
    "realtime-shadow-experiment": {
        "shadow": {
            "release": CANDIDATE,
            "form": "experiment",
            "sampling_percent": 50,
            "starts": datetime(2026, 11, 30, 8, tzinfo=UTC),
            "ends": datetime(2026, 12, 14, 8, tzinfo=UTC),
        },
        "data_capture": _CAPTURE,
    },
    "realtime-data-capture": {"data_capture": _CAPTURE, "health_check_timeout_seconds": 120},
    "realtime-own-network": {"network": {"vpc": {"cidr": "10.20.0.0/20"}}},
    "realtime-own-network-open": {"network": {"isolation": False, "vpc": {"cidr": "10.20.0.0/20"}}},
    "realtime-your-network": {"network": {"vpc": _SUBNETS}},
    "realtime-local-storage": {"instance_type": "ml.g4dn.xlarge"},
    "realtime-inferentia-1": {"instance_type": "ml.inf1.xlarge"},
    "realtime-pytorch-dlc": {"image": "pytorch-dlc", "image_digest": None},
}
MODES_AND_LAYOUTS = tuple(VARIANTS)[:8]


def hosting_settings(settings: Settings | None = None, **changes: Any) -> Settings:
    """The settings of config/dev.toml, or others, with other keys in [hosting], validated as a file's would be."""
    settings = settings or dev_settings()
    hosting = HostingSettings.model_validate(settings.hosting.model_dump(exclude_unset=True) | changes)
    return settings.model_copy(update={"hosting": hosting})


def variant_settings(name: str, folder: Path, settings: Settings | None = None) -> Settings:
    """The settings of a variant, with the image pinned; a candidate that it names is written below `folder`."""
    settings = settings or dev_settings()
    path = write_release(make_release(settings, CANDIDATE_SHA256), folder / "candidate")
    return hosting_settings(settings, **{"image_digest": PINNED} | _with(VARIANTS[name], CANDIDATE, str(path)))


def _with(value: Any, placeholder: str, replacement: str) -> Any:
    if isinstance(value, dict):
        return {key: _with(each, placeholder, replacement) for key, each in value.items()}
    if isinstance(value, list):
        return [_with(each, placeholder, replacement) for each in value]
    return replacement if value == placeholder else value
