"""The local environment: AWS emulator, SageMaker container and Azure Function on loopback, started and ended as one.

`up` starts what is not running and leaves alone what is; `down` ends everything that `up` ever started here, also what a
killed command left behind.
"""

import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ferry import aws, processes
from ferry.console import Report
from ferry.errors import FerryError, Refused
from ferry.files import write_atomically
from ferry.functions_host import FUNCTION_KEY
from ferry.locking import exclusively
from infra.release import Release
from infra.settings import ROOT, LocalSettings, Settings
from model_code import environment
from model_code.environment import MlPaths
from model_code.inference.contract import RELEASE_ID_HEADER

SERVICES = ("emulator", "sagemaker", "azure")
_LOOPBACK = "127.0.0.1"
# A proxy of the caller's leads elsewhere.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_START_SECONDS = 90
_HEALTH_SECONDS = 2  # what SageMaker gives /ping
# A little over the 30 s that SageMaker grants a container between SIGTERM and SIGKILL.
_STOP_SECONDS = 35


@dataclass(frozen=True)
class _Service:
    """How one service is started, and the URL that answers 200 once it works."""

    port: int
    setting: str
    health: str
    prepare: Callable[[], "_Launch"]


@dataclass(frozen=True)
class _Launch:
    command: Sequence[str]
    environment: dict[str, str]
    folder: Path


def up(settings: Settings, services: Sequence[str], report: Report) -> None:
    """Start the named services and wait until each answers; the two doors need a release.

    What an earlier, killed command left behind is ended first. Raises Refused for a busy port, naming who holds it and the
    setting that moves it; FerryError with the end of the log for a service that does not come up.
    """
    with exclusively(settings.build_path / "local" / "lock", "ferry local"):
        for name in services:  # all of them before the first is started
            _refuse_busy_port(settings, name)
        wanted = _wanted_release(settings, services)
        for name in services:
            service = _service(settings, name)
            if processes.find(_mark(settings, name)):
                if _answers(service.health) and (name == "emulator" or _released(service.health) == wanted):
                    report(f"{name:10} already up on port {service.port}")
                    continue
                processes.stop(_mark(settings, name), _STOP_SECONDS)
            launch = service.prepare()
            log = _log(settings, name)
            started = processes.start(_mark(settings, name), launch.command, launch.environment, launch.folder, log)
            _wait(settings, name, service, started)
            report(f"{name:10} up on port {service.port}")


def down(settings: Settings, report: Report) -> None:
    """End every service that this environment started, and what a killed `ferry train --local` or `ferry batch` left running.

    Running it again, or with nothing up, is fine; so is a job of a command that is still there, which goes on.
    """
    from ferry.steps.job import end_abandoned  # it needs this module

    with exclusively(settings.build_path / "local" / "lock", "ferry local"):
        for name in reversed(SERVICES):
            ended = processes.stop(_mark(settings, name), _STOP_SECONDS)
            report(f"{name:10} {'ended' if ended else 'was not running'}")
    end_abandoned(settings)


def status(settings: Settings) -> dict[str, Any]:
    """What runs: URLs of the emulator and of the doors (null where one does not answer), release id, pids.

    A door's URL takes a POST as it is: where `local.function_key` is set, the Function's holds it, as Azure's own do.
    """
    local = aws.local_settings(settings)
    services = {name: _service(settings, name) for name in SERVICES}
    found = {name: processes.find(_mark(settings, name)) for name in SERVICES}
    running = {name: bool(found[name]) and _answers(service.health) for name, service in services.items()}
    urls = {
        "sagemaker": f"http://{_LOOPBACK}:{services['sagemaker'].port}/invocations",
        "azure": f"http://{_LOOPBACK}:{services['azure'].port}/api/classify",
    }
    if local.function_key is not None:
        urls["azure"] += f"?code={local.function_key}"
    return {
        "environment": settings.environment,
        "release_id": next((_released(services[door].health) for door in urls if running[door]), None),
        "emulator": aws.emulator_url(settings) if running["emulator"] else None,
        "doors": {name: url if running[name] else None for name, url in urls.items()},
        "pids": {name: [process.pid for process in marked] for name, marked in found.items()},
    }


def _service(settings: Settings, name: str) -> _Service:
    local = aws.local_settings(settings)
    match name:
        case "emulator":
            url = f"{aws.emulator_url(settings)}/moto-api/"
            return _Service(local.emulator_port, "local.emulator_port", url, lambda: _emulator(settings, local))
        case "sagemaker":
            url = f"http://{_LOOPBACK}:{local.sagemaker_port}/ping"
            return _Service(local.sagemaker_port, "local.sagemaker_port", url, lambda: _container(settings, local))
        case "azure":
            url = f"http://{_LOOPBACK}:{local.azure_port}/api/health"
            return _Service(local.azure_port, "local.azure_port", url, lambda: _function(settings, local))
    raise Refused(f"{name!r} is no local service; allowed: {', '.join(SERVICES)}")


def _emulator(settings: Settings, local: LocalSettings) -> _Launch:
    command = [sys.executable, "-m", "ferry.emulator", "--host", _LOOPBACK, "--port", str(local.emulator_port)]
    return _Launch(command, aws.emulator_environment(settings), settings.build_path)


def _container(settings: Settings, local: LocalSettings) -> _Launch:
    """The image's `serve` executable over the unpacked release, as SageMaker unpacks it into /opt/ml/model."""
    from ferry.release import current_release

    release, members = current_release(settings)
    paths = MlPaths(settings.build_path / "local" / "sagemaker")
    for name, content in members.items():
        write_atomically(paths.model / name, content)
    variables = _clean_environment() | _pins(release) | {
        environment.BASE_DIR: str(paths.base),
        environment.BIND_TO_PORT: str(local.sagemaker_port),
        environment.BIND_ADDRESS: _LOOPBACK,
        "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    return _Launch([sys.executable, str(ROOT / "model_code" / "container" / "serve")], variables, paths.base)


def _function(settings: Settings, local: LocalSettings) -> _Launch:
    """The Function from its own package, in Azure's Core Tools where they are installed, else in our development host.

    In our host also where a key is wanted: Core Tools ask for none, or for one that they made themselves.
    """
    from ferry.package import SITE_PACKAGES, build_package
    from ferry.release import current_release

    release, _ = current_release(settings)
    package = settings.package_path.with_name("local-package.zip")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    build_package(settings.release_path.parent, package, python_version=version)
    folder = settings.build_path / "local" / "function"
    shutil.rmtree(folder, ignore_errors=True)
    with zipfile.ZipFile(package) as archive:
        archive.extractall(folder)  # our own build, just made
    variables = _clean_environment() | {environment.RELEASE_ID: release.release_id}
    tools = _core_tools() if local.function_key is None else None
    if tools:
        variables |= {
            "FUNCTIONS_WORKER_RUNTIME": "python",
            "AzureWebJobsStorage": "",
            # Core Tools take the first Python on the PATH, and only on Azure the libraries inside the package.
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{variables['PATH']}",
            "PYTHONPATH": str(folder / SITE_PACKAGES),
        }
        return _Launch([tools, "start", "--address", _LOOPBACK, "--port", str(local.azure_port)], variables, folder)
    if local.function_key is not None:
        variables[FUNCTION_KEY] = local.function_key
    host = [sys.executable, "-I", "-S", str(ROOT / "ferry" / "functions_host.py")]
    return _Launch([*host, "--package", str(folder), "--port", str(local.azure_port)], variables, folder)


def _core_tools() -> str | None:
    """Azure's `func`, where it can be told to listen on loopback only: before 4.13.0 (July 2026) it opened every interface,
    without asking for keys."""
    tools = shutil.which("func")
    if tools is None:
        return None
    help_text = subprocess.run([tools, "start", "--help"], capture_output=True, text=True, check=False).stdout
    return tools if "--address" in help_text else None


def _pins(release: Release) -> dict[str, str]:
    """The two variables that the stack sets on the SageMaker model."""
    return {environment.RELEASE_ID: release.release_id, environment.MODEL_JSON_SHA256: release.model_json.sha256}


def _clean_environment() -> dict[str, str]:
    """No credential and no path of the caller's reaches a server."""
    return {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR", "HOME") if name in os.environ}


def refuse_busy_ports(settings: Settings) -> None:
    """Raises Refused where somebody else listens on a port of the environment, naming who and the setting to change."""
    for name in SERVICES:
        _refuse_busy_port(settings, name)


def _refuse_busy_port(settings: Settings, name: str) -> None:
    service = _service(settings, name)
    owner = None if processes.find(_mark(settings, name)) else processes.port_owner(service.port)
    if owner is not None:
        raise Refused(f"port {service.port} is taken by {owner}; end it, or set {service.setting} to a free port")


def _wanted_release(settings: Settings, services: Sequence[str]) -> str | None:
    """The release that the doors have to serve. Raises FerryError where a door is wanted and there is none."""
    if set(services) <= {"emulator"}:
        return None
    from ferry.release import current_release  # brings ONNX Runtime, which `status` and `down` do without

    return current_release(settings)[0].release_id


def _wait(settings: Settings, name: str, service: _Service, process: "subprocess.Popen[bytes]") -> None:
    started = time.monotonic()
    log = _log(settings, name)
    while not _answers(service.health):
        # The process itself is asked: one that has only just begun shows no mark yet.
        gone = process.poll() is not None
        if gone or time.monotonic() - started > _START_SECONDS:
            processes.stop(_mark(settings, name), _STOP_SECONDS)
            reason = "ended at once" if gone else f"did not answer {service.health} within {_START_SECONDS} s"
            raise FerryError(f"{name} {reason}; the end of {log}:\n{processes.log_tail(log)}")
        processes.pause(started)


def _answers(url: str) -> bool:
    try:
        with _DIRECT.open(url, timeout=_HEALTH_SECONDS) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError, ValueError):
        return False


def _released(url: str) -> str | None:
    """The release id that a running door reports with its health."""
    try:
        with _DIRECT.open(url, timeout=_HEALTH_SECONDS) as answer:
            release_id: str | None = answer.headers.get(RELEASE_ID_HEADER)
            return release_id
    except (urllib.error.URLError, OSError, ValueError):
        return None


def _mark(settings: Settings, name: str) -> str:
    return f"{settings.build_path}:{settings.environment}:{name}"


def _log(settings: Settings, name: str) -> Path:
    return settings.build_path / "local" / f"{name}.log"
