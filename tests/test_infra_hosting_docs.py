"""docs/hosting.md: every table of settings in it loads, and the stack that it means synthesizes."""

import re
from pathlib import Path

import pytest

from infra.aws import hosting_releases
from infra.settings import ROOT, load_settings
from tests.aws_stacks import compose_hosting
from tests.hosting_variants import CANDIDATE_SHA256
from tests.stack_fixtures import make_release, write_release

TEXT = (ROOT / "docs" / "hosting.md").read_text()
BLOCKS = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)


def first_key(block: str) -> str:
    """What the test is named after."""
    return ", ".join(line.split("#")[0].strip() for line in block.splitlines()[:3] if line)


def test_there_are_examples_of_every_mode_and_layout() -> None:
    for value in ("realtime", "serverless", "async", "batch"):
        assert f'mode = "{value}"' in TEXT
    for value in ("multi-model", "multi-container", "serial-pipeline"):
        assert f'layout = "{value}"' in TEXT
    assert len(BLOCKS) >= 15


@pytest.mark.parametrize("block", BLOCKS, ids=map(first_key, BLOCKS))
def test_the_settings_load_and_the_stack_synthesizes(
    block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "dev.toml"
    path.write_text(f"{(ROOT / 'config' / 'dev.toml').read_text()}\n{block}")
    settings = load_settings(str(path))
    # The releases of the page lie where `ferry release` would put them in a checkout.
    monkeypatch.setattr(hosting_releases, "ROOT", tmp_path)
    write_release(make_release(settings, CANDIDATE_SHA256), tmp_path / "build" / "dev" / "candidate")
    compose_hosting(tmp_path / "out", settings, make_release(settings)).synth()
    assert (tmp_path / "out" / "Hosting.template.json").exists()
