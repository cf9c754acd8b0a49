"""`ferry local up azure` with real processes: the built package in the development host, or in Core Tools where there are some.

Core Tools are played by a script named `func` that is asked what Azure's is asked, and then serves for real.
"""

import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ferry import local
from ferry.errors import FerryError
from infra.settings import ROOT, Settings
from tests import serving_models
from tests.local_settings import local_settings
from tests.test_packaging import write_release

IMAGES = np.random.default_rng(0).normal(size=(2, 1, 28, 28)).astype(np.float32)
ANSWER = {"digits": serving_models.log_probabilities(IMAGES).argmax(axis=1).tolist()}
KEY = "a-key-of-this-test-only"

CORE_TOOLS = """#!{python}
import json, os, sys
if sys.argv[1:] == ["start", "--help"]:
    print("{help}")
    raise SystemExit
with open({record!r}, "w") as record:
    json.dump({{"arguments": sys.argv[1:], "folder": os.getcwd(), "variables": dict(os.environ)}}, record)
{then}
host = [sys.executable, "-I", "-S", {host!r}, "--package", os.getcwd()]
os.execv(sys.executable, [*host, "--port", sys.argv[sys.argv.index("--port") + 1]])
"""


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    """An environment with a release; nothing of it runs any more afterwards."""
    settings = local_settings(tmp_path)
    settings.release_path.parent.mkdir(parents=True)
    write_release(settings.release_path.parent)
    yield settings
    local.down(settings, silent)


@pytest.fixture(autouse=True)
def _no_core_tools_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [folder for folder in os.environ["PATH"].split(os.pathsep) if not (Path(folder) / "func").exists()]
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path / "tools"), *folders]))


def silent(_: str) -> None:
    return None


def install_core_tools(folder: Path, help_text: str = "--port --address", then: str = "") -> Path:
    """Put `func` where the PATH finds it; returns the file that it writes when it is started."""
    record = folder / "started.json"
    tools = folder / "tools" / "func"
    tools.parent.mkdir()
    host = str(ROOT / "ferry" / "functions_host.py")
    tools.write_text(CORE_TOOLS.format(python=sys.executable, help=help_text, record=str(record), host=host, then=then))
    tools.chmod(0o755)
    return record


def post(url: str) -> Any:
    body = json.dumps({"data": IMAGES.tolist()}).encode()
    with urllib.request.urlopen(urllib.request.Request(url, body, {"Content-Type": "application/json"})) as answer:
        return json.load(answer)


def test_core_tools_serve_the_package_on_loopback_with_its_own_libraries_and_nothing_of_the_caller(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert settings.local is not None
    monkeypatch.setenv("AZURE_CLIENT_SECRET", "of-the-caller")
    record = install_core_tools(tmp_path)
    local.up(settings, ["azure"], silent)
    status = local.status(settings)
    assert post(status["doors"]["azure"]) == ANSWER

    started = json.loads(record.read_bytes())
    folder, variables = Path(started["folder"]), started["variables"]
    port = str(settings.local.azure_port)
    assert started["arguments"] == ["start", "--address", "127.0.0.1", "--port", port]
    assert json.loads((folder / "release" / "release.json").read_bytes())["release_id"] == status["release_id"]
    assert (folder / "host.json").is_file()
    assert variables["FERRY_RELEASE_ID"] == status["release_id"]
    assert (variables["FUNCTIONS_WORKER_RUNTIME"], variables["AzureWebJobsStorage"]) == ("python", "")
    assert variables["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert Path(variables["PYTHONPATH"]) == folder / ".python_packages" / "lib" / "site-packages"
    assert "AZURE_CLIENT_SECRET" not in variables


@pytest.mark.slow
def test_core_tools_that_end_are_a_failure_with_the_end_of_their_log(settings: Settings, tmp_path: Path) -> None:
    install_core_tools(tmp_path, then="raise SystemExit('Found Python version 2.7')")
    with pytest.raises(FerryError, match=r"(?s)azure ended at once.*Found Python version 2\.7"):
        local.up(settings, ["azure"], silent)
    assert local.status(settings)["doors"]["azure"] is None


@pytest.mark.slow
def test_core_tools_that_cannot_stay_on_loopback_are_left_alone(settings: Settings, tmp_path: Path) -> None:
    record = install_core_tools(tmp_path, help_text="--port")
    local.up(settings, ["azure"], silent)
    assert post(local.status(settings)["doors"]["azure"]) == ANSWER
    assert not record.exists()


@pytest.mark.slow
def test_with_a_key_the_function_asks_for_it_and_status_gives_a_url_that_holds_it(
    settings: Settings, tmp_path: Path
) -> None:
    assert settings.local is not None
    record = install_core_tools(tmp_path)
    with_key = settings.model_copy(update={"local": settings.local.model_copy(update={"function_key": KEY})})
    local.up(with_key, ["azure"], silent)
    url = local.status(with_key)["doors"]["azure"]
    assert post(url) == ANSWER
    with pytest.raises(urllib.error.HTTPError, match="401"):
        post(url.partition("?")[0])
    assert not record.exists()
    assert KEY not in (with_key.build_path / "local" / "azure.log").read_text()
