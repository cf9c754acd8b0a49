"""Settings files for tests that run the local environment: free ports and a build folder of their own."""

import itertools
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from infra.settings import Settings, load_settings

_TEMPLATE = """\
environment = "{name}"
build_dir = "{build}"

[model]
name = "mnist"
dataset = "mnist"

[datasets.mnist]
gate = {gate}
hyperparameters = {{ epochs = "1" }}

[datasets.digits]
gate = 0.95
hyperparameters = {{ epochs = "{digits_epochs}" }}

[datasets.iris]
gate = 0.9

[hosting]
instance_type = "ml.c5.large"

[aws]
account = "123456789012"
region = "us-east-1"
retain_data = false

[azure]
location = "westeurope"
suffix = "tests"

[local]
emulator_port = {ports[0]}
sagemaker_port = {ports[1]}
azure_port = {ports[2]}
"""


def write_settings(folder: Path, name: str = "trial", gate: float = 0.5, digits_epochs: int = 20) -> Path:
    """Write a settings file below `folder` and return its path; the ports were free a moment ago."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.toml"
    values = {"name": name, "build": folder / "build", "gate": gate, "digits_epochs": digits_epochs}
    path.write_text(_TEMPLATE.format(ports=free_ports(3), **values))
    return path


def local_settings(folder: Path, name: str = "trial", gate: float = 0.5) -> Settings:
    """The settings of a file that `write_settings` just wrote."""
    return load_settings(str(write_settings(folder, name, gate)))


def free_ports(count: int) -> list[int]:
    """Loopback ports that nobody listens on, never the same twice in one process.

    Below those that Linux gives to connections and to whoever binds port 0 (32768 and up): such a one may be taken again
    before the test binds it. Processes that run side by side begin at different places.
    """
    return list(itertools.islice(_unused, count))


def _unused_ports() -> Iterator[int]:
    first, end = 10_000, 32_000
    for number in itertools.count(os.getpid() * 101):
        port = first + number % (end - first)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        yield port


_unused = _unused_ports()
