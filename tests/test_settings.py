"""Settings are read strictly, and every complaint says file, key, what was found and what is allowed."""

from pathlib import Path

import pytest

from infra.settings import ROOT, SettingsError, load_settings
from tests.local_settings import write_settings

HOSTING = '[hosting]\ninstance_type = "ml.c5.large"\n'
ENVIRONMENTS = sorted(path.stem for path in (ROOT / "config").glob("*.toml"))


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_every_environment_in_config_is_valid(name: str) -> None:
    assert load_settings(name).environment == name


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_names_keep_to_the_limits_of_their_platforms(name: str) -> None:
    settings = load_settings(name)
    assert len(settings.storage_account) <= 24
    assert settings.storage_account.isalnum()
    assert settings.storage_account.islower()
    assert len(settings.function_app) <= 32
    assert all(len(bucket) <= 63 for bucket in (settings.data_bucket, settings.artifact_bucket, settings.log_bucket))
    assert all(
        len(settings.role(purpose)) <= 64
        for purpose in ("training", "evaluation", "pipeline", "hosting", "gateway", "trigger", "schedule")
    )


def test_only_the_local_environment_stands_for_one_machine() -> None:
    assert [name for name in ENVIRONMENTS if load_settings(name).local] == ["local"]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("[hosting]\ninstance_typ = 'ml.m5.large'", "hosting.instance_typ: unknown key; did you mean 'instance_type'?"),
        ("[hosting]\ninstance_type = 'm5.large'", "hosting.instance_type: found 'm5.large'"),
        ("[hosting]\ninstance_count = 0", "hosting.instance_count: found 0"),
        ("[hosting]\ninstance_count = '2'", "hosting.instance_count: found '2'"),
        ("[hosting]\nimage_digest = 'latest'", "hosting.image_digest: found 'latest'"),
        ("[training]\nmax_runtime_seconds = 2419201", "training.max_runtime_seconds: found 2419201"),
        ("[training]\nimage = 'mine'", "training.image: found 'mine'"),
        ("[training]\nschedule = 'weekly'", "training.schedule: found 'weekly'"),
        ("[gateway]\nrate_limit = 10001", "gateway.rate_limit: found 10001"),
        ("[gatway]\nrate_limit = 1", "gatway: unknown key; did you mean 'gateway'?"),
    ],
)
def test_a_wrong_line_is_refused_by_its_key(tmp_path: Path, line: str, complaint: str) -> None:
    path = write_settings(tmp_path)
    path.write_text(f"{path.read_text().replace(HOSTING, '')}\n{line}\n")
    with pytest.raises(SettingsError) as refused:
        load_settings(str(path))
    assert f"{path}: {complaint}" in str(refused.value)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('"123456789012"', '"12345678901"', "aws.account"),
        ('"123456789012"', '"000000000000"', "aws.account: found '000000000000'; a placeholder"),
        ('"us-east-1"', '"mars"', "aws.region: found 'mars'"),
        ('"westeurope"', '"West Europe"', "azure.location: found 'West Europe'"),
        ('"tests"', '"no"', "azure.suffix: found 'no'"),
        ('dataset = "mnist"', 'dataset = "fashion"', "model.dataset is 'fashion'; allowed: digits, iris, mnist"),
        ('region = "us-east-1"', "", "aws.region: missing"),
        ("gate = 0.95", "gate = 1.5", "datasets.digits.gate: found 1.5"),
        ("gate = 0.95", "gate = nan", "datasets.digits.gate: found nan"),
        ('build_dir = "', 'build_dir = "{user}', "the one placeholder that it may hold is {environment}"),
    ],
)
def test_a_wrong_value_is_refused_by_its_key(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    path = write_settings(tmp_path)
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(SettingsError) as refused:
        load_settings(str(path))
    assert complaint in str(refused.value)


@pytest.mark.parametrize(
    ("lines", "keys"),
    [
        ("spot = true", ("spot", "max_wait_seconds")),
        ("max_wait_seconds = 3600", ("max_wait_seconds", "spot")),
        ("spot = true\nmax_wait_seconds = 3599", ("max_wait_seconds", "max_runtime_seconds")),
        ("cache_days = 7\ncheckpoints = true", ("cache_days", "checkpoints")),
        ("cache_days = 7\nschedule = 'rate(7 days)'", ("cache_days", "schedule")),
    ],
)
def test_training_settings_that_exclude_each_other_are_refused_by_both_keys(
    tmp_path: Path, lines: str, keys: tuple[str, str]
) -> None:
    path = write_settings(tmp_path)
    path.write_text(f"{path.read_text()}\n[training]\n{lines}\n")
    with pytest.raises(SettingsError) as refused:
        load_settings(str(path))
    first, second = keys
    assert f"{path}: training: {first} is " in str(refused.value)
    assert f" {second} is " in str(refused.value)


def test_ports_of_the_local_environment_must_differ(tmp_path: Path) -> None:
    path = write_settings(tmp_path)
    text = path.read_text()
    path.write_text(text[: text.index("[local]")] + "[local]\nemulator_port = 5005\nsagemaker_port = 5005\n")
    with pytest.raises(SettingsError, match="three different ports"):
        load_settings(str(path))


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"a = ", b"\x00", b"x" * 300_000])
def test_what_is_no_settings_file_is_refused_with_its_path(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=r"broken\.toml"):
        load_settings(str(path))


def test_a_byte_order_mark_and_windows_line_ends_are_accepted(tmp_path: Path) -> None:
    path = write_settings(tmp_path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert load_settings(str(path)).environment == "trial"


def test_an_unknown_environment_names_the_known_ones() -> None:
    with pytest.raises(SettingsError, match="dev, local, prod"):
        load_settings("staging")


def test_an_empty_environment_variable_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FERRY_ENV", "")
    with pytest.raises(SettingsError, match="FERRY_ENV is set but empty"):
        load_settings()
