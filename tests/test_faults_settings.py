"""Settings that are wrong, strange or hostile, through both programs that read them: exit code 2 with file and key, before any
network call, or they work.
"""

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import botocore.session
import pytest
from click.testing import CliRunner

import app
from ferry import aws
from ferry.cli import main
from infra.azure.kit import chosen_kit
from infra.settings import MAX_SETTINGS_BYTES, ROOT, Settings, SettingsError, load_settings
from infra.settings_azure import LOCATIONS
from infra.settings_table import INSTANCE_TYPES, REGIONS
from tests.local_settings import write_settings

NOBODY = 65534
DEV = (ROOT / "config" / "dev.toml").read_text()


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("a network call while settings are read")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def said_by_both(given: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What `ferry settings` and `python app.py azure` say about the same environment: exit code 2 and the same words."""
    result = CliRunner().invoke(main, ["--env", given, "settings"])
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    monkeypatch.setenv("FERRY_ENV", given)
    capsys.readouterr()
    assert app.main(["azure"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert result.stderr == f"ferry: {printed.err}"
    assert "Traceback" not in printed.err
    return printed.err


Said = Callable[[str], str]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Said:
    return lambda given: said_by_both(given, monkeypatch, capsys)


@pytest.fixture
def dev(tmp_path: Path) -> Callable[[str, str], Path]:
    """A copy of config/dev.toml with `old` replaced, or with `old` empty `new` added at the end."""

    def write(old: str, new: str) -> Path:
        path = tmp_path / "copy.toml"
        assert old in DEV
        path.write_text(DEV.replace(old, new) if old else f"{DEV}\n{new}\n")
        return path

    return write


Dev = Callable[[str, str], Path]


# C1: what is no settings file.

NO_TOML = {
    "empty": (b"", ": model: missing; "),
    "yaml": (b"model:\n\tname: mnist\n", ":1: not TOML: "),
    "yaml with an object": (b"a: !!python/object/apply:os.system ['true']\n", ":1: not TOML: "),
    "nul": (b"[model]\nname = 'a\0b'\n", ":2: not TOML: "),
    "an escaped nul": (DEV.replace('owner = "ml', 'owner = "\\u0000').encode(), ": tags.owner: found '\\x00-platform'; "),
    "binary": (b"[model]\n\n\x89PNG\r\n\x1a\n", ":3: not UTF-8: byte 0x89"),
    "utf-16": ("a = 1".encode("utf-16"), ":1: not UTF-8: byte 0xff"),
    "ten megabytes": (b"#" * 10_000_000, f": more than {MAX_SETTINGS_BYTES:,} bytes"),
    "a table twice": (f"{DEV}\n[aws]\n".encode(), f":{DEV.count(chr(10)) + 2}: not TOML: "),
    "a key twice": (b"[model]\nname = 'a'\nname = 'b'\n", ":3: not TOML: "),
    "five thousand brackets": (b"a = " + b"[" * 5000, ": arrays or tables lie too deep in each other"),
    "two hundred brackets": (b"a = " + b"[" * 200 + b"]" * 200, ": a.0.0.0.0.0.0.0.0: tables lie deeper"),
    "a key of 100,000 parts": (b"\n" + b"a." * 100_000 + b"a = 1", ":2: a key of more parts than any setting has: 'a.a."),
    "a number of 200,000 digits": (b"a = " + b"9" * 200_000, ": not TOML: Exceeds the limit (4300 digits)"),
    "a text of 200,000 characters": (
        DEV.replace('"ml-platform"', f'"{"a+" * 100_000}"').encode(),
        ": tags.owner: a text of 200,000 characters; allowed: at most 4,096",
    ),
    "a name of 200,000 characters": (
        f'{DEV}"{"a+" * 100_000}" = "x"\n'.encode(),
        ": tags: a text of 200,000 characters; allowed: at most 4,096",
    ),
    "a number that cannot be written": (
        f"{DEV}\n[hosting]\ninstance_count = 0x{'f' * 20_000}\n".encode(),
        ": hosting.instance_count: found a number of 80,000 bits; ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_TOML)
def test_c1_what_is_no_settings_file_is_refused_with_file_and_line_or_key(
    tmp_path: Path, said: Said, name: str
) -> None:
    content, complaint = NO_TOML[name]
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    message = said(str(path))
    assert message.startswith(f"{path}{complaint}")
    assert len(message) < 2000


def test_c1_what_cannot_be_read_is_refused_with_its_reason_and_the_known_environments(
    tmp_path: Path, said: Said
) -> None:
    (tmp_path / "folder.toml").mkdir()
    os.mkfifo(tmp_path / "pipe.toml")  # nobody will ever write to it
    (tmp_path / "loop.toml").symlink_to(tmp_path / "loop.toml")
    (tmp_path / "nowhere.toml").symlink_to(tmp_path / "gone" / "x.toml")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket.toml"))
        for name, reason in (
            ("folder", "cannot be read (Is a directory)"),
            ("pipe", "cannot be read (no regular file)"),
            ("socket", "cannot be read (No such device or address)"),
            ("absent", "cannot be read (No such file or directory)"),
        ):
            message = said(str(tmp_path / f"{name}.toml"))
            assert message.startswith(f"{tmp_path}/{name}.toml: {reason}; environments in config/: dev, local, prod")
    assert "Symlink loop" in said(str(tmp_path / "loop.toml"))
    assert "gone/x.toml: cannot be read (No such file" in said(str(tmp_path / "nowhere.toml"))
    assert "File name too long" in said("x" * 300)
    assert "config/staging.toml: cannot be read" in said("staging")


def test_c1_a_file_without_read_permission_is_refused_with_its_reason(tmp_path: Path) -> None:
    path = write_settings(tmp_path)
    path.chmod(0)
    root = os.geteuid() == 0
    if root:  # whom no permission stops
        os.seteuid(NOBODY)
    try:
        with pytest.raises(SettingsError, match=r"trial\.toml: cannot be read \(Permission denied\)"):
            load_settings(str(path))
    finally:
        if root:
            os.seteuid(0)


def test_c1_tabs_where_toml_allows_them_change_nothing(dev: Dev) -> None:
    plain = load_settings("dev")
    tabbed = load_settings(str(dev("[tags]", "[tags]\t# a comment\n\t\t")))
    assert tabbed.tags == plain.tags


# C2: keys that nobody knows.


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("", "[hostng]", "hostng: unknown key; did you mean 'hosting'?"),
        ("region =", "regoin =", "aws.regoin: unknown key; did you mean 'region'?"),
        ("region =", "Region =", "aws.Region: unknown key; did you mean 'region'?"),
        ("amount =", "ammount =", "azure.budget.ammount: unknown key; did you mean 'amount'?"),
        ("gate = 0.98", "gates = 0.98", "datasets.mnist.gates: unknown key; did you mean 'gate'?"),
        ("", "[hosting.network.vcp]", "hosting.network.vcp: unknown key; did you mean 'vpc'?"),
        ("", "[[hosting.containers]]\nhostnam = 'a'", "hosting.containers.0.hostnam: unknown key; did you mean 'hostname'?"),
        ("", "[training]\n'' = 1", "training.'': unknown key; allowed: image, instance_type, "),
        ("", "[hosting]\n'größe' = 1", "hosting.'größe': unknown key; allowed: mode, layout, "),
    ],
)  # fmt: skip
def test_c2_an_unknown_key_is_refused_with_the_nearest_one(
    dev: Dev, said: Said, old: str, new: str, complaint: str
) -> None:
    path = dev(old, new)
    assert f"{path}: {complaint}" in said(str(path))


def test_c2_a_thousand_unknown_keys_are_ten_complaints(dev: Dev, said: Said) -> None:
    message = said(str(dev("", "\n".join(f"[unknown{number}]" for number in range(1000)))))
    assert message.count("unknown key") == 10
    assert message.rstrip().endswith("and 990 more")


# C4, C5, C7, C8: values that no cloud would take.


def refused_values(*cases: tuple[str, str, str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("old", "new", "complaint"), cases)


@refused_values(
    ('"111122223333"', '"11112222333"', "aws.account: found '11112222333'; "),
    ('"111122223333"', "111122223333", "aws.account: found 111122223333; Input should be a valid string"),
    ('"111122223333"', "0o12345670123", "aws.account: found 1402433619; "),
    ('"111122223333"', "011122223333", ": not TOML: "),
    ('"111122223333"', '"１１１１２２２２３３３３"', "aws.account: found '１１１１２２２２３３３３'; "),
    ('"eu-west-1"', '"eu-west-9"', "aws.region: found 'eu-west-9'; no AWS region with SageMaker; did you mean 'eu-west-"),
    ('"eu-west-1"', '"mars"', "allowed: af-south-1, ap-east-1, "),
    ('"westeurope"', '"mars"', "azure.location: found 'mars'; no region of Azure's public cloud; allowed: australiacentral, "),
    ('"westeurope"', '"West Europe"', "azure.location: found 'West Europe'; "),
    ("", "[azure.state]\nbackend = 's3'\nbucket = 'state'\nregion = 'eu-west-9'", "azure.state.region: found 'eu-west-9'; no AWS"),
)  # fmt: skip
def test_c4_a_wrong_account_region_or_location_is_refused_and_the_allowed_ones_are_listed(
    dev: Dev, said: Said, old: str, new: str, complaint: str
) -> None:
    assert complaint in said(str(dev(old, new)))


@refused_values(
    ("", "[hosting]\ninstance_type = 'ml.c6i.lage'", "hosting.instance_type is 'ml.c6i.lage', no instance type that SageMaker has for endpoint; did you mean 'ml.c6i.large'? allowed: ml.c6i.12xlarge, "),
    ("", "[hosting]\ninstance_type = 'ml.c99.large'", "hosting.instance_type is 'ml.c99.large', no instance type that SageMaker has for endpoint; families: c4, c5, "),
    ("", "[training]\ninstance_type = 'ml.c6i.large'", "training.instance_type is 'ml.c6i.large', no instance type that SageMaker has for training; "),
    ("", "[training]\nprocessing_instance_type = 'ml.p4d.24xlarge'", "training.processing_instance_type is 'ml.p4d.24xlarge', "),
    ("", "[training]\ntransform_instance_type = 'ml.t3.medium'", "training.transform_instance_type is 'ml.t3.medium', "),
    ("", "[hosting]\nmode = 'batch'\ninstance_type = 'ml.c5.large'", "hosting.instance_type is 'ml.c5.large', no instance type that SageMaker has for transform; "),
    ("", "[hosting.shadow]\nrelease = 'r.json'\ninstance_type = 'ml.m5.huge'", "hosting.shadow.instance_type is 'ml.m5.huge', "),
    ("", "[hosting.serverless]\nmemory_mb = 1500", "hosting.serverless.memory_mb: found 1500; Input should be 1024, 2048, "),
    ("", "[hosting.serverless]\nmax_concurrency = 201", "hosting.serverless.max_concurrency: found 201; Input should be less than or equal to 200"),
    ("", "[hosting]\nmode = 'serverless'\n[hosting.network.vpc]\ncidr = '10.20.0.0/20'", "hosting.mode is 'serverless' and hosting.network.vpc is set; serverless endpoints have none"),
    ("", "[hosting]\nmode = 'serverless'\n[hosting.network]\nisolation = true", "hosting.mode is 'serverless' and hosting.network.isolation is true; serverless endpoints have none"),
)  # fmt: skip
def test_c5_an_instance_type_or_a_serverless_size_that_does_not_exist_is_refused_with_the_rule(
    dev: Dev, said: Said, old: str, new: str, complaint: str
) -> None:
    assert complaint in said(str(dev(old, new)))


def test_c4_c5_the_lists_of_names_are_those_of_the_sdk() -> None:
    """An upgrade of botocore that knows more fails here: then the lists get what is new."""
    session = botocore.session.get_session()
    partitions = ("aws", "aws-cn", "aws-us-gov")
    known = {region for name in partitions for region in session.get_available_regions("sagemaker", name)}
    assert known == REGIONS
    model = session.get_service_model("sagemaker")
    shapes = {
        "endpoint": "ProductionVariantInstanceType",
        "training": "TrainingInstanceType",
        "processing": "ProcessingInstanceType",
        "transform": "TransformInstanceType",
    }
    assert {use: set(model.shape_for(name).enum) for use, name in shapes.items()} == INSTANCE_TYPES
    assert len(LOCATIONS) > 50


@refused_values(
    ("", "[training]\nspot = true\nmax_wait_seconds = 3599", "max_wait_seconds is 3599 and max_runtime_seconds is 3600; "),
    ("", "[training]\nspot = true", "spot is true and max_wait_seconds is not set"),
    ("", "[hosting.batch]\nmax_payload_mb = 50", "max_payload_mb is 50 and max_concurrent_transforms is 4; their product may be 100 MB"),
    ("", "[hosting.async_inference]\ninvocation_timeout_seconds = 3601", "hosting.async_inference.invocation_timeout_seconds: found 3601; "),
    ("", "[hosting]\nhealth_check_timeout_seconds = 3601", "hosting.health_check_timeout_seconds: found 3601; "),
    ("", "[hosting.rollout]\nstrategy = 'canary'\nwait_seconds = 3600", "its steps wait 3720 s together"),
    ("", "[training]\nschedule = 'rate(0 days)'", "training.schedule: found 'rate(0 days)'; "),
    ("", "[training]\nschedule = 'rate(seven days)'", "training.schedule: found 'rate(seven days)'; "),
    ("", "[training]\nschedule = 'cron(0 3 * *)'", "training.schedule: found 'cron(0 3 * *)'; "),
    ("amount = 50.0", "amount = inf", "azure.budget.amount: found inf; Input should be a finite number"),
    ("gate = 0.98", "gate = nan", "datasets.mnist.gate: found nan; Input should be a finite number"),
    ("[model]", "build_dir = ''\n[model]", "build_dir is '', the repository or a folder around it"),
    ("[model]", "build_dir = 'build/../..'\n[model]", "build_dir is 'build/../..', the repository or a folder around it"),
    ('epochs = "1"', f'{"k" * 257} = "1"', "String should have at most 256 characters"),
    ('epochs = "1"', f'epochs = "{"1" * 2501}"', "datasets.mnist.hyperparameters.epochs: found '1111"),
)  # fmt: skip
def test_c7_limits_and_combinations_are_refused_by_their_keys(
    dev: Dev, said: Said, old: str, new: str, complaint: str
) -> None:
    assert complaint in said(str(dev(old, new)))


@refused_values(
    ('"111122223333"', '"000000000000"', "aws.account: found '000000000000'; a placeholder"),
    ('"111122223333"', '"<ACCOUNT>"', "aws.account: found '<ACCOUNT>', a placeholder; put your own value there"),
    ('"dev01"', '"CHANGE_ME"', "azure.suffix: found 'CHANGE_ME', a placeholder"),
    ('"ml-platform"', '"change-me"', "tags.owner: found 'change-me', a placeholder"),
    ('"ml-platform"', '"TODO"', "tags.owner: found 'TODO', a placeholder"),
    ('"ml-platform@example.com"', '"<you>@example.com"', "azure.alerts.emails.0: found '<you>@example.com', a placeholder"),
    ('epochs = "1"', 'epochs = "xxx"', "datasets.mnist.hyperparameters.epochs: found 'xxx', a placeholder"),
)  # fmt: skip
def test_c8_a_placeholder_that_was_left_is_refused_wherever_it_is(
    dev: Dev, said: Said, old: str, new: str, complaint: str
) -> None:
    assert complaint in said(str(dev(old, new)))


# C9: what must not stand in a file that everybody reads. Each of these was made up.

SECRETS = {
    "AKIAQ7EXAMPLE4MADEUP": "an AWS access key id",
    "ASIAQ7EXAMPLE4MADEUP": "an AWS access key id",
    "q9XzLmAbCdEfGhIjKlMnOpQrStUvWxYz0123+/aB": "an AWS secret access key",
    "-----BEGIN OPENSSH PRIVATE KEY-----\\nb3BlbnNzaA\\n-----END": "a private key",
    "DefaultEndpointsProtocol=https;AccountName=st;AccountKey=bm90IGEga2V5": "a connection string",
    "Endpoint=sb://bus.servicebus.windows.net/;SharedAccessKey=bm90": "a connection string",
    "https://st.blob.core.windows.net/c?sv=2024&sig=bm90IGEgc2lnbmF0dXJl": "a shared access signature",
    "eyJhbGciOiJub25lIn0.eyJzdWIiOiJub2JvZHkifQ.": "a JSON Web Token",
    "Bearer bm90LWEtdG9rZW4": "an access token",
    "ghp_0123456789abcdefghijABCDEFGHIJ012345": "an access token",
    f"{'bm90YWtleQ' * 8}bm90YQ==": "an account key of Azure",
    "sig=bm90IGEgc2lnbmF0dXJl&se=2030-01-01": "a shared access signature",
    "https://f.azurewebsites.net/api/classify?code=bm90LWEta2V5LWF0LWFsbA==": "a key of a service of Azure",
    "bm90LWEta2V5LWF0LWFsbC1ub3QtYS1rZXkAzFuAbCdEf==": "a key of a service of Azure",
    "https://hooks.slack.com/services/T0000/B0000/bm90YWtleQ": "an access token",
    "xapp-1-A0000-0000-bm90YWtleQ": "an access token",
    "glrt-bm90YWtleW5vdGFrZXlu": "an access token",
    "npm_bm90YWtleW5vdGFrZXlub3Rha2V5bm90": "an access token",
    "pypi-bm90YWtleW5vdGFrZXlub3Rha2V5bm90": "an access token",
    "AIzabm90YWtleW5vdGFrZXlub3Rha2V5bm90YWt": "an access token",
    "rk_live_bm90YWtleW5vdGFrZXk": "an access token",
    "SG.bm90YWtleW5vdGFrZXk.bm90YWtleW5vdGFrZXk": "an access token",
    "hvs.bm90YWtleW5vdGFrZXlub3Q": "an access token",
    "IQoJb3JpZ2lubm90YWtleW5vdGFrZXlub3Rha2V5bm90YWtleW5vdGFrZXk": "an access token",
    "Authorization: Basic bm9ib2R5": "an access token",
    "https://bm90YWtleW5vdGFrZXlub3Q@github.com/x": "an address with a password",
    "postgres://reader:hunter22@db.example.com/x": "an address with a password",
    "password=hunter22": "a password",
    "PWD : hunter22": "a password",
    "dbPassword=hunter22": "a password",
    "{'api_key': 'hunter22'}": "a password",
    "--password hunter22": "a password",
}
PLACES = {
    "a tag": ('owner = "ml-platform"', 'owner = "{}"', "tags.owner"),
    "a hyperparameter": ('epochs = "1"', 'epochs = "{}"', "datasets.mnist.hyperparameters.epochs"),
    "a name": ("[model]", '"{}" = 1\n[model]', "(not shown)"),
    "a key of ours": ('suffix = "dev01"', 'suffix = "{}"', "azure.suffix"),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("secret", SECRETS)
def test_c9_a_secret_is_refused_and_never_shown(dev: Dev, said: Said, secret: str, place: str) -> None:
    old, new, key = PLACES[place]
    message = said(str(dev(old, new.format(secret))))
    parsed = tomllib.loads(f'a = "{secret}"')["a"]
    if place == "a name":  # its place is the name itself
        assert f"found what looks like {SECRETS[secret]} ({len(parsed)} characters, not shown)" in message
    else:
        assert f": {key}: found what looks like {SECRETS[secret]} ({len(parsed)} characters, not shown)" in message
    for part in parsed.split():
        assert part not in message or part in ("PRIVATE", "KEY", "OPENSSH", ":", "Basic")


@pytest.mark.parametrize(
    "line",
    [
        *('db_password = "tr0ub4dor"', 'apiKey = "tr0ub4dor"', '"team:token" = "tr0ub4dor"', 'SECRET = "tr0ub4dor"'),
        *('dbPassword = "tr0ub4dor"', 'wandbApiKey = "tr0ub4dor"', 'password1 = "tr0ub4dor"', 'DB_PASS = "tr0ub4dor"'),
        *('connection_string = "tr0ub4dor"', 'storageKey = "tr0ub4dor"', 'signing-key = "tr0ub4dor"'),
    ],
)
def test_c9_a_name_that_promises_a_secret_is_enough(dev: Dev, said: Said, line: str) -> None:
    for old in ('owner = "ml-platform"', 'epochs = "1"'):
        message = said(str(dev(old, line)))
        assert "found what looks like a secret, by its name (9 characters, not shown)" in message
        assert "tr0ub4dor" not in message


def test_c9_what_only_resembles_a_secret_is_taken(dev: Dev) -> None:
    kept = {"max_tokens": "512", "monkey": "chimp", "tokenizer": "bpe", "digest": "5e" * 32, "commit": "3c" * 20}
    kept |= {"key": "1", "sort_key": "a", "compass": "n", "n_pass": "2", "numTokens": "5", "bucket": "s3://b/a@b:c"}
    kept |= {"code": "https://example.com/?code=7", "note": "basic training", "nested": '{"token_count": 3}'}
    kept = {name: value.replace('"', '\\"') for name, value in kept.items()}
    lines = ", ".join(f'{name} = "{value}"' for name, value in kept.items())
    settings = load_settings(str(dev('hyperparameters = { epochs = "1" }', f"hyperparameters = {{ {lines} }}")))
    assert settings.datasets["mnist"].hyperparameters == {n: v.replace('\\"', '"') for n, v in kept.items()}


# C10: the environment.


def test_c10_the_option_comes_before_the_variable_and_the_variable_before_local(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def environment(*options: str) -> str:
        result = CliRunner().invoke(main, [*options, "settings"])
        assert result.exit_code == 0, result.output
        return str(json.loads(result.stdout)["environment"])

    assert environment() == "local"
    monkeypatch.setenv("FERRY_ENV", "prod")
    assert environment() == "prod"
    assert environment("--env", "dev") == "dev"


def test_c10_an_empty_environment_is_an_error_from_the_variable_and_from_the_option(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = CliRunner().invoke(main, ["--env", "", "settings"])
    assert result.exit_code == 2
    assert "set but empty; give a name in config/ or a path to a .toml file" in result.stderr
    monkeypatch.setenv("FERRY_ENV", "")
    assert app.main(["azure"]) == 2
    assert capsys.readouterr().err.startswith("FERRY_ENV is set but empty; ")


@pytest.mark.parametrize("name", ["", "terraform", "CDKTF"])
def test_c10_an_empty_or_unknown_kit_is_an_error_that_lists_the_kits(name: str) -> None:
    with pytest.raises(SettingsError, match="is no CDKTF kit; allowed: cdktf, cdktn"):
        chosen_kit({"FERRY_CDKTF_KIT": name})


def test_c10_no_variable_of_a_cloud_changes_what_the_file_says(monkeypatch: pytest.MonkeyPatch) -> None:
    before = load_settings("dev")
    for name, value in {
        "AWS_REGION": "ap-south-1",
        "AWS_DEFAULT_REGION": "ap-south-1",
        "AWS_ACCOUNT_ID": "999988887777",
        "CDK_DEFAULT_ACCOUNT": "999988887777",
        "CDK_DEFAULT_REGION": "ap-south-1",
        "ARM_SUBSCRIPTION_ID": "12345678-1234-1234-1234-123456789012",
        "ARM_LOCATION": "uksouth",
    }.items():
        monkeypatch.setenv(name, value)
    assert load_settings("dev") == before
    assert aws.client(before, "s3").meta.region_name == before.aws.region == "eu-west-1"


# C12: files and machines that are merely unusual.


def unusual(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    return path


def test_c12_line_ends_byte_order_marks_and_paths_of_any_language_change_nothing(tmp_path: Path) -> None:
    plain: Settings = load_settings("dev")
    path = unusual(tmp_path / "my project – größe" / "設定 1.toml", f'environment = "dev"\n{DEV}')
    assert load_settings(str(path)) == plain
    result = CliRunner().invoke(main, ["--env", str(path), "settings"])
    assert json.loads(result.stdout) == plain.model_dump(mode="json")
    link = tmp_path / "link.toml"
    link.symlink_to(path)
    assert load_settings(str(link)) == plain


def test_c12_what_is_no_text_in_a_path_is_refused_with_its_reason(tmp_path: Path) -> None:
    """Through a real process: what a terminal gets is bytes."""
    path = os.fsdecode(bytes(tmp_path) + b"/\xff.toml")
    command = [str(Path(sys.executable).with_name("ferry")), "--env", path, "settings"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    assert answer.returncode == 2
    assert b"cannot be read (No such file or directory)" in answer.stderr
    assert b"Traceback" not in answer.stderr


@pytest.fixture
def cut_off() -> list[str]:
    """What to put before a command that shall have no network, where the system allows that."""
    command = ["unshare", "--net", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    possible = shutil.which("unshare") and subprocess.run([*command, "true"], capture_output=True).returncode == 0
    return command if possible else []


@pytest.mark.slow
def test_c12_synth_works_through_a_link_with_a_home_that_cannot_be_written_and_without_a_network(
    tmp_path: Path, cut_off: list[str]
) -> None:
    settings = unusual(tmp_path / "größe 1" / "s.toml", f'environment = "trial"\nbuild_dir = "{tmp_path}/b"\n{DEV}')
    project, out = tmp_path / "linked project", tmp_path / "aus gabe"
    project.symlink_to(ROOT, target_is_directory=True)
    assert not stat.S_IWOTH & Path("/proc").stat().st_mode
    variables = {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "HOME": "/proc",  # where nobody can write, root included
        "FERRY_ENV": str(settings),
        "CDK_OUTDIR": str(out),
    }
    answer = subprocess.run(
        [*cut_off, sys.executable, str(project / "app.py"), "aws"],
        cwd=tmp_path, env=variables, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    assert {path.name for path in out.glob("*.template.json")} >= {"Foundation.template.json", "Training.template.json"}
