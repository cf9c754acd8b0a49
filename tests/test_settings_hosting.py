"""The [hosting] table: what SageMaker would refuse, or would quietly not do, is refused when settings are read, by its keys."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from infra.settings import ROOT, Settings, SettingsError, load_settings
from tests.hosting_variants import VARIANTS, hosting_settings
from tests.local_settings import write_settings

IMAGE = "111122223333.dkr.ecr.eu-west-1.amazonaws.com/team/translate@sha256:" + "5e" * 32
ONE = "[[hosting.containers]]\nhostname = 'one'\n"
TWO = f"{ONE}[[hosting.containers]]\nhostname = 'two'\n"
BEHIND = f"[[hosting.containers]]\nhostname = 'behind'\nimage = '{IMAGE}'\n"
SHADOW = "[hosting.shadow]\nrelease = 'candidate/release.json'\n"
SCALING = "[hosting.autoscaling]\n"
CAPTURE = "[hosting.data_capture]\n"
VPC = "[hosting.network.vpc]\ncidr = '10.20.0.0/20'\n"


def settings_with(folder: Path, hosting: str = "", tables: str = "") -> Settings:
    """Settings whose [hosting] table has `hosting` added or replaced, with further `tables`."""
    path = write_settings(folder)
    own = "" if "instance_type" in hosting else 'instance_type = "ml.c5.large"\n'
    text = path.read_text().replace('[hosting]\ninstance_type = "ml.c5.large"\n', f"[hosting]\n{own}{hosting}\n")
    path.write_text(f"{text}\n{tables}\n")
    return load_settings(str(path))


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_legal(name: str) -> None:
    assert hosting_settings(**VARIANTS[name])


@pytest.mark.parametrize(
    ("hosting", "tables", "key", "allowed"),
    [
        ("mode = 'streaming'", "", "hosting.mode", "'realtime', 'serverless', 'async' or 'batch'"),
        ("layout = 'pipeline'", "", "hosting.layout", "'multi-container' or 'serial-pipeline'"),
        ("instance_type = 'c5.large'", "", "hosting.instance_type", "pattern"),
        ("instance_count = 0", "", "hosting.instance_count", "1"),
        ("image_digest = 'sha256:abc'", "", "hosting.image_digest", "pattern"),
        ("health_check_timeout_seconds = 30", "", "hosting.health_check_timeout_seconds", "60"),
        ("download_timeout_seconds = 3601", "", "hosting.download_timeout_seconds", "3600"),
        ("", "[hosting.serverless]\nmemory_mb = 1500", "hosting.serverless.memory_mb", "1024, 2048"),
        ("", "[hosting.serverless]\nmax_concurrency = 201", "hosting.serverless.max_concurrency", "200"),
        ("", "[hosting.serverless]\nprovisioned_concurrency = 9", "hosting.serverless", "max_concurrency is 5"),
        ("", "[hosting.async_inference]\ninvocation_timeout_seconds = 3601", "hosting.async_inference", "3600"),
        ("", "[hosting.batch]\nmax_payload_mb = 50", "hosting.batch", "100 MB, not 200"),
        ("", "[hosting.batch]\nstrategy = 'SingleRecord'", "hosting.batch", "split_type is 'None'"),
        ("", "[hosting.batch]\njoin = true", "hosting.batch", "split_type is 'None'"),
        ("", f"{SCALING}max_capacity = 0", "hosting.autoscaling.max_capacity", "1"),
        ("", f"{SCALING}min_capacity = 5", "hosting.autoscaling", "max_capacity is 4"),
        ("", "[hosting.rollout]\nstrategy = 'blue-green'", "hosting.rollout.strategy", "'all-at-once', 'canary'"),
        ("", "[hosting.rollout]\nstep_percent = 51", "hosting.rollout.step_percent", "50"),
        ("", "[hosting.rollout]\nstrategy = 'linear'\nstep_percent = 5", "hosting.rollout", "10 to 50 %"),
        (
            "instance_count = 2",
            "[hosting.rollout]\nstrategy = 'rolling'\nstep_percent = 5",
            "hosting.rollout",
            "its steps wait 6000 s together",
        ),
        ("", f"{SHADOW}starts = 2026-11-30T08:00:00Z", "hosting.shadow", "form is 'variant' and starts is set"),
        ("", f"{SHADOW}form = 'experiment'\nends = 2026-11-30T08:00:00", "hosting.shadow", "give its offset"),
        (
            "",
            f"{SHADOW}form = 'experiment'\nstarts = 2026-11-01T08:00:00Z\nends = 2026-12-31T08:00:00Z",
            "hosting.shadow",
            "30 days at most",
        ),
        ("", "[hosting.shadow]\nsampling_percent = 10", "hosting.shadow.release", "missing; Path to the release.json"),
        ("", f"{CAPTURE}sampling_percent = 0", "hosting.data_capture.sampling_percent", "1"),
        ("", "[hosting.network.vpc]\ncidr = '10.0.0.0/8'", "hosting.network.vpc.cidr", "between /16 and /24"),
        ("", "[hosting.network.vpc]\ncidr = '8.8.8.0/24'", "hosting.network.vpc.cidr", "private"),
        ("", f"{VPC}subnet_ids = ['subnet-0a1b2c3d']", "hosting.network.vpc", "give cidr for a new network"),
        ("", "[hosting.network.vpc]\nsubnet_ids = ['subnet-0a1b2c3d']", "hosting.network.vpc", "at least two"),
        ("", "[hosting.alarms]\nemails = ['nobody']", "hosting.alarms.emails.0", "pattern"),
        ("", "[hosting.rollut]\nstrategy = 'canary'", "hosting.rollut", "did you mean 'rollout'?"),
        ("", "[hosting.shadow]\nrelase = 'x'", "hosting.shadow.relase", "did you mean 'release'?"),
        ("", f"{TWO}imgae = '{IMAGE}'", "hosting.containers.1.imgae", "did you mean 'image'?"),
        ("", "[[hosting.containers]]\nrelease = 'x'", "hosting.containers.0.hostname", "missing; What Target"),
        ("", "[[hosting.containers]]\nhostname = 'a b'", "hosting.containers.0.hostname", "pattern"),
        ("", f"{ONE}image = 'translate:latest'", "hosting.containers.0.image", "pattern"),
        ("", f"{ONE}release = 'x'\nimage = '{IMAGE}'", "hosting.containers.0", "release and image are both set"),
        ("containers = 'all'", "", "hosting.containers", "list"),
    ],
)
def test_one_wrong_value_is_refused_with_its_key_and_what_is_allowed(
    tmp_path: Path, hosting: str, tables: str, key: str, allowed: str
) -> None:
    with pytest.raises(SettingsError) as refused:
        settings_with(tmp_path, hosting, tables)
    assert f"trial.toml: {key}" in str(refused.value)
    assert allowed in str(refused.value)


@pytest.mark.parametrize(
    ("hosting", "tables", "first", "second", "rule"),
    [
        *(
            (f"mode = '{mode}'\nlayout = '{layout}'", TWO if layout == "multi-container" else "",
             f"mode is '{mode}'", f"layout is '{layout}'", "need mode = 'realtime'")
            for mode in ("serverless", "async")
            for layout in ("multi-model", "multi-container", "serial-pipeline")
        ),
        ("mode = 'batch'\nlayout = 'multi-model'", "", "mode is 'batch'", "layout is 'multi-model'", "no TargetModel"),
        ("mode = 'batch'\nlayout = 'multi-container'", TWO, "mode is 'batch'", "layout is", "TargetContainerHostname"),
        ("layout = 'multi-model'\nimage = 'pytorch-dlc'", "", "image is 'pytorch-dlc'", "layout is", "image = 'own'"),
        ("layout = 'multi-model'\ndynamic_batch = 1", "", "layout is 'multi-model'", "dynamic_batch is 1", "each request alone"),
        ("image = 'pytorch-dlc'\ndynamic_batch = 1", "", "image is 'pytorch-dlc'", "dynamic_batch is 1", "our container"),
        ("layout = 'multi-model'\ninstance_type = 'ml.g4dn.xlarge'", "", "layout is", "instance_type is", "CPU"),
        ("instance_type = 'ml.c7g.large'", "", "image is 'own'", "instance_type is 'ml.c7g.large'", "linux/amd64"),
        ("image = 'pytorch-dlc'\ninstance_type = 'ml.g5.xlarge'", "", "image is", "instance_type is", "idle"),
        (f"image = 'pytorch-dlc'\nimage_digest = 'sha256:{'3c' * 32}'", "", "image is", "image_digest is", "our own"),
        ("", ONE, "layout is 'single'", "containers has 1 table;", "multi-container and serial-pipeline"),
        ("layout = 'multi-container'", ONE, "layout is", "containers has 1 table;", "2 to 15 containers"),
        ("layout = 'multi-container'", ONE + ONE, "layout is", "containers has 2 tables;", "every hostname is there once"),
        ("layout = 'serial-pipeline'", ONE, "layout is", "containers has 1 table;", "an image of its own"),
        ("layout = 'serial-pipeline'", BEHIND.replace("behind", "Model"), "layout is", "containers", "already"),
        ("mode = 'serverless'", VPC, "mode is 'serverless'", "network.vpc is set", "feature exclusions"),
        ("mode = 'serverless'", "[hosting.network]\nisolation = true", "mode is", "network.isolation is true", "none"),
        ("mode = 'serverless'", CAPTURE, "mode is 'serverless'", "data_capture is set", "feature exclusions"),
        ("mode = 'serverless'\nhealth_check_timeout_seconds = 60", "", "mode is", "health_check_timeout_seconds", "none"),
        ("mode = 'serverless'\ndownload_timeout_seconds = 60", "", "mode is", "download_timeout_seconds is 60", "none"),
        ("mode = 'serverless'\nimage = 'pytorch-dlc'", "", "mode is", "image is 'pytorch-dlc'", "image = 'own'"),
        ("mode = 'async'\nimage = 'pytorch-dlc'", "", "mode is", "image is 'pytorch-dlc'", "image = 'own'"),
        ("mode = 'async'", CAPTURE, "mode is 'async'", "data_capture is set", "in S3 already"),
        ("mode = 'batch'", CAPTURE, "mode is 'batch'", "data_capture is set", "in S3 already"),
        ("mode = 'batch'\nhealth_check_timeout_seconds = 60", "", "mode is", "health_check_timeout_seconds", "no endpoint"),
        ("mode = 'batch'", SCALING, "mode is 'batch'", "autoscaling is set", "until it ends"),
        ("mode = 'serverless'", SCALING, "autoscaling is set", "serverless.provisioned_concurrency is None", "scales"),
        (
            "mode = 'serverless'", f"{SCALING}max_capacity = 9\n[hosting.serverless]\nprovisioned_concurrency = 2",
            "autoscaling.max_capacity is 9", "serverless.max_concurrency is 5", "cannot be larger",
        ),
        ("", f"{SCALING}min_capacity = 0", "mode is 'realtime'", "autoscaling.min_capacity is 0", "scales to zero"),
        ("instance_count = 9", SCALING, "instance_count is 9", "autoscaling is set", "max_capacity 4"),
        ("mode = 'serverless'", "[hosting.rollout]\nstrategy = 'canary'", "mode is", "rollout.strategy is", "all-at-once"),
        ("mode = 'batch'", "[hosting.rollout]\nstrategy = 'canary'", "mode is", "rollout.strategy is", "all-at-once"),
        ("", "[hosting.rollout]\nstrategy = 'canary'", "instance_count is 1", "rollout.strategy is 'canary'", "at least 2"),
        (
            "instance_type = 'ml.inf1.xlarge'\ninstance_count = 2", "[hosting.rollout]\nstrategy = 'linear'",
            "instance_type is", "rollout.strategy is 'linear'", "Inferentia 1",
        ),
        (
            "instance_count = 2", f"[hosting.rollout]\nstrategy = 'rolling'\n{SHADOW}",
            "rollout.strategy is 'rolling'", "shadow is set", "several variants",
        ),
        (
            "instance_count = 2", "[hosting.rollout]\nstrategy = 'rolling'\ntermination_wait_seconds = 60",
            "rollout.strategy is 'rolling'", "rollout.termination_wait_seconds is 60", "no old fleet",
        ),
        ("mode = 'async'", SHADOW, "mode is 'async'", "shadow is set", "realtime"),
        ("layout = 'multi-model'", SHADOW, "layout is 'multi-model'", "shadow is set", "single"),
        ("", f"{SHADOW}instance_type = 'ml.inf1.xlarge'", "instance_type is", "shadow is set", "Inferentia 1"),
        ("", f"{SHADOW}instance_type = 'ml.m6g.large'", "image is 'own'", "shadow.instance_type is", "linux/amd64"),
    ],
)  # fmt: skip
def test_two_keys_that_cannot_go_together_are_refused_by_both_names_and_the_rule(
    tmp_path: Path, hosting: str, tables: str, first: str, second: str, rule: str
) -> None:
    with pytest.raises(SettingsError) as refused:
        settings_with(tmp_path, hosting, tables)
    message = str(refused.value)
    assert f"hosting.{first}" in message
    assert f"hosting.{second}" in message
    assert message.index(f"hosting.{first}") < message.index(f"hosting.{second}") < message.index(rule)


def test_a_table_of_another_mode_may_stay(tmp_path: Path) -> None:
    tables = "[hosting.serverless]\nmemory_mb = 4096\n[hosting.async_inference]\ninvocation_timeout_seconds = 60"
    assert settings_with(tmp_path, "instance_type = 'ml.m7i.large'", tables).hosting.mode == "realtime"


def test_serverless_and_batch_do_not_care_for_an_instance_type_that_they_do_not_use(tmp_path: Path) -> None:
    assert settings_with(tmp_path, "mode = 'serverless'\ninstance_type = 'ml.c7g.large'").hosting.mode == "serverless"


def test_app_ends_with_2_and_the_file_for_a_combination_that_is_refused(tmp_path: Path) -> None:
    path = write_settings(tmp_path)
    path.write_text(path.read_text().replace("[hosting]\n", "[hosting]\nmode = 'async'\nlayout = 'multi-model'\n"))
    command = [sys.executable, str(ROOT / "app.py"), "aws"]
    variables = {"FERRY_ENV": str(path), "PATH": f"{Path(sys.executable).parent}{os.pathsep}/usr/bin{os.pathsep}/bin"}
    run = subprocess.run(command, env=variables, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.startswith(f"{path}: hosting: hosting.mode is 'async' and hosting.layout is 'multi-model'; ")
    assert not list(tmp_path.glob("cdk.out/*"))
