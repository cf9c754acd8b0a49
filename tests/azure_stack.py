"""Synthesizes the Azure stack for tests, with the smallest zip that it takes for a package."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from infra.azure.function_stack import synthesize
from infra.release import Release
from infra.settings import Settings
from tests.stack_fixtures import dev_settings, make_release

STACK = "modelferry-dev-azure"
Template = dict[str, Any]


def write_package(folder: Path, release: Release, code: str = "") -> Path:
    """A package of `release` whose only code is `code`; the same arguments give the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "released-package.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo("release/release.json"), release.to_bytes())
        archive.writestr(zipfile.ZipInfo("function_app.py"), code)
    return path


def synthesize_template(
    folder: Path, settings: Settings | None = None, release: Release | None = None, code: str = ""
) -> Path:
    """The path of cdk.tf.json below `folder`, made in this process."""
    settings = settings or dev_settings()
    release = release or make_release(settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CDKTF_OUTDIR", str(folder / "cdktf.out"))
        synthesize(settings, release, write_package(folder, release, code))
    return folder / "cdktf.out" / "stacks" / settings.stack("azure") / "cdk.tf.json"


def read_template(path: Path) -> Template:
    template: Template = json.loads(path.read_bytes())
    return template
