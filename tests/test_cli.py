"""The command line says what is wrong, with the exit code that scripts rely on."""

import json
import re
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from ferry import aws
from infra.settings import ROOT, load_settings
from tests.kills import run
from tests.local_settings import write_settings


def ferry(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("ferry")), *arguments]
    variables = {"PATH": str(Path(sys.executable).parent), **(environment or {})}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=variables)


def test_help_reads_without_valid_settings() -> None:
    finished = ferry("--env", "nowhere", "release", "--help")
    assert finished.returncode == 0
    assert "ARTIFACT" in finished.stdout


def test_wrong_settings_end_with_2_and_name_file_and_key(tmp_path: Path) -> None:
    path = write_settings(tmp_path)
    path.write_text(path.read_text() + "\n[hostng]\n")
    finished = ferry("--env", str(path), "settings")
    assert finished.returncode == 2
    assert f"{path}: hostng: unknown key; did you mean 'hosting'?" in finished.stderr
    assert "Traceback" not in finished.stderr


def test_the_environment_variable_chooses_the_environment_and_the_option_wins() -> None:
    assert json.loads(ferry("settings", environment={"FERRY_ENV": "prod"}).stdout)["environment"] == "prod"
    both = ferry("--env", "dev", "settings", environment={"FERRY_ENV": "prod"})
    assert json.loads(both.stdout)["environment"] == "dev"


def test_the_schema_describes_every_key() -> None:
    schema = json.loads(ferry("settings", "--schema").stdout)
    assert schema["properties"]["hosting"]
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize(
    "arguments",
    [("nonsense",), ("train",), ("local", "up", "oven"), ("release",), ("verify", "oven"), ("destroy",), ("publish",)],
)
def test_wrong_usage_ends_with_2(arguments: tuple[str, ...]) -> None:
    assert ferry(*arguments).returncode == 2


DROPPED = """
import sys, time
from ferry import cli

class Compiled:
    def __del__(self):
        raise KeyboardInterrupt

@cli.main.command()
def work():
    Compiled()
    time.sleep(60)

sys.argv = ["ferry", "work"]
cli.main()
"""
WHILE_IMPORTING = """
import signal, sys
from ferry.__main__ import main

class Interrupts:
    def find_spec(self, name, *_):
        if name == "ferry.cli":
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Interrupts())
sys.argv = ["ferry", "settings"]
main()
"""


@pytest.mark.parametrize("script", [DROPPED, WHILE_IMPORTING], ids=["dropped", "while importing"])
def test_no_interruption_is_lost_in_compiled_code(script: str) -> None:
    """Such code has nobody to raise it to, as little as a finalizer has."""
    finished = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 130
    assert finished.stderr == "ferry: interrupted; the same command can be run again\n"


def test_commands_for_one_machine_refuse_an_environment_of_real_clouds() -> None:
    for arguments in (("local", "up"), ("train", "--local"), ("demo",)):
        finished = ferry("--env", "dev", *arguments)
        assert finished.returncode == 2, arguments
        assert "use --env local" in finished.stderr


def test_a_busy_port_is_named_with_its_owner_and_its_setting(tmp_path: Path) -> None:
    path = write_settings(tmp_path)
    settings = load_settings(str(path))
    assert settings.local is not None
    with socket.create_server(("127.0.0.1", settings.local.emulator_port)):
        finished = ferry("--env", str(path), "local", "up", "emulator")
    assert finished.returncode == 2
    assert f"port {settings.local.emulator_port} is taken by pid" in finished.stderr
    assert "local.emulator_port" in finished.stderr


def test_nothing_is_started_when_a_later_service_cannot_be(tmp_path: Path) -> None:
    path = write_settings(tmp_path)
    settings = load_settings(str(path))
    assert settings.local is not None
    with socket.create_server(("127.0.0.1", settings.local.azure_port)):
        finished = ferry("--env", str(path), "local", "up")
    assert finished.returncode == 2
    assert "local.azure_port" in finished.stderr
    assert not any(json.loads(ferry("--env", str(path), "local", "status", "--json").stdout)["pids"].values())


@pytest.mark.slow
def test_a_proxy_of_the_caller_does_not_hide_the_emulator(tmp_path: Path) -> None:
    path = write_settings(tmp_path)
    proxy = {"http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9", "HOME": str(tmp_path)}
    try:
        assert ferry("--env", str(path), "local", "up", "emulator", environment=proxy).returncode == 0
        finished = ferry("--env", str(path), "data", "upload", "--data", "digits", environment=proxy)
        assert "NoSuchBucket" in finished.stderr  # the emulator itself answered
    finally:
        ferry("--env", str(path), "local", "down")


def test_without_the_emulator_the_message_says_how_to_start_it(tmp_path: Path) -> None:
    finished = ferry("--env", str(write_settings(tmp_path)), "train", "--local")
    assert finished.returncode == 1
    assert "ferry local up emulator" in finished.stderr
    assert "Traceback" not in finished.stderr


# What somebody who works with real accounts has in the environment.
REAL_ACCOUNT = {
    "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "AWS_SESSION_TOKEN": "token",
    "AWS_PROFILE": "company",
    "AWS_REGION": "eu-west-1",
    "AWS_ENDPOINT_URL_S3": "https://s3.eu-west-1.amazonaws.com",
    "AWS_USE_DUALSTACK_ENDPOINT": "true",
    "AWS_USE_FIPS_ENDPOINT": "true",
    "HTTPS_PROXY": "http://proxy.example:3128",
    "HTTP_PROXY": "http://proxy.example:3128",
}
HERE = ("localhost", "127.0.0.1", "::1")


def test_every_client_of_a_local_environment_is_the_emulators_whatever_the_caller_has_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_settings(str(write_settings(tmp_path)))
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    for name, value in REAL_ACCOUNT.items():
        monkeypatch.setenv(name, value)
    for service in ("cloudformation", "ecr", "logs", "s3", "sagemaker", "sagemaker-runtime", "sts"):
        client = aws.client(settings, service)
        assert urlsplit(client.meta.endpoint_url).hostname in HERE, service
        assert client._request_signer._credentials.access_key == "emulator", service
        assert not client.meta.config.proxies, service
    variables = aws.emulator_environment(settings)
    assert urlsplit(variables["AWS_ENDPOINT_URL"]).hostname in HERE
    assert not [
        name for name, value in REAL_ACCOUNT.items() if name.startswith("AWS_") and variables.get(name) == value
    ]


def test_no_module_makes_a_client_of_its_own() -> None:
    """But train --once, which refuses a local environment, and the signature of the gateway's door, which has none there."""
    calls = {
        (path.name, match)
        for path in (ROOT / "ferry").rglob("*.py")
        for match in re.findall(r"\bboto3\.(\w+)", path.read_text())
        if path.name != "aws.py"
    }
    assert calls == {("doors_gateway.py", "Session"), ("train_once.py", "Session")}


@pytest.mark.parametrize("arguments", [("models",), ("destroy", "aws", "--yes")])
def test_a_command_of_a_local_environment_connects_to_nothing_but_this_machine(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    path = write_settings(tmp_path)
    settings = load_settings(str(path))
    assert settings.local is not None
    ended = run(path, arguments, tmp_path, variables=REAL_ACCOUNT)
    assert (ended.code, "ferry local up emulator" in ended.errors) == (1, True), ended.errors
    asked = [effect for effect in ended.effects if effect.startswith("socket.")]
    assert f"socket.getaddrinfo {HERE[0]}" in asked
    connected = [effect for effect in asked if effect.startswith("socket.connect ")]
    assert connected
    assert {effect.split("'")[1] for effect in connected} <= set(HERE)
    assert {effect for effect in asked if effect not in connected} == {f"socket.getaddrinfo {HERE[0]}"}


def test_an_empty_environment_variable_is_refused_everywhere() -> None:
    finished = ferry("settings", environment={"FERRY_ENV": ""})
    assert finished.returncode == 2
    assert "FERRY_ENV is set but empty" in finished.stderr


def test_data_inside_the_build_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = write_settings(tmp_path)
    source = load_settings(str(path)).build_path / "data" / "mine"
    source.mkdir(parents=True)
    (source / "train-images-idx3-ubyte").write_bytes(b"precious")
    finished = ferry("--env", str(path), "data", "upload", "--data", str(source))
    assert finished.returncode == 2
    assert "Give a folder outside of it" in finished.stderr
    assert (source / "train-images-idx3-ubyte").read_bytes() == b"precious"


def test_doors_without_a_release_say_what_makes_one(tmp_path: Path) -> None:
    finished = ferry("--env", str(write_settings(tmp_path)), "local", "up", "sagemaker")
    assert finished.returncode == 1
    assert "make it with `ferry release`" in finished.stderr


def test_verify_without_a_release_says_what_makes_one(tmp_path: Path) -> None:
    finished = ferry("--env", str(write_settings(tmp_path)), "verify")
    assert finished.returncode == 1
    assert "make it with `ferry release`" in finished.stderr


def test_a_missing_data_folder_is_refused_before_anything_starts(tmp_path: Path) -> None:
    finished = ferry("--env", str(write_settings(tmp_path)), "data", "upload", "--data", str(tmp_path / "none"))
    assert finished.returncode == 2
    assert "no such folder" in finished.stderr


def test_invoke_without_its_door_says_how_to_start_it(tmp_path: Path) -> None:
    request = tmp_path / "one.json"
    request.write_text('{"data": []}')
    path = str(write_settings(tmp_path))
    for door, service in (("local", "sagemaker"), ("azure", "azure")):
        finished = ferry("--env", path, "invoke", str(request), "--door", door)
        assert finished.returncode == 1
        assert f"start it: ferry local up {service}" in finished.stderr
        assert "Traceback" not in finished.stderr


@pytest.mark.parametrize("arguments", [("batch",), ("image", "push"), ("recommend",), ("cost", "--update")])
def test_what_needs_an_account_or_an_input_ends_with_2(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    finished = ferry("--env", str(write_settings(tmp_path)), *arguments)
    assert finished.returncode == 2
    assert "Traceback" not in finished.stderr


def test_publish_refuses_an_environment_of_this_machine(tmp_path: Path) -> None:
    finished = ferry("--env", str(write_settings(tmp_path)), "publish", "azure")
    assert finished.returncode == 2
    assert "ferry local up azure" in finished.stderr


def test_publish_without_a_release_says_what_makes_one(tmp_path: Path) -> None:
    path = tmp_path / "cloud.toml"
    path.write_text(f'build_dir = "{tmp_path}"\n' + (ROOT / "config" / "dev.toml").read_text())
    finished = ferry("--env", str(path), "publish", "azure")
    assert finished.returncode == 2
    assert "make it with `ferry release`" in finished.stderr


def test_nothing_is_deleted_where_nobody_can_agree(tmp_path: Path) -> None:
    for cloud in ("azure", "aws", "all"):
        finished = ferry("--env", str(write_settings(tmp_path)), "destroy", cloud)
        assert finished.returncode == 2
        assert "--yes deletes without asking" in finished.stderr


def test_destroy_without_the_emulator_says_how_to_start_it(tmp_path: Path) -> None:
    finished = ferry("--env", str(write_settings(tmp_path)), "destroy", "aws", "--yes")
    assert finished.returncode == 1
    assert "ferry local up emulator" in finished.stderr
