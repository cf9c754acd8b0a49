"""Each AWS stack, whole, as it was reviewed. What must never change is said in sentences in test_infra_aws.py."""

import pytest
from syrupy.assertion import SnapshotAssertion

from tests.aws_stacks import STACKS, Template, synthesize
from tests.snapshots import TemplateSnapshot, without_asset_hashes
from tests.stack_fixtures import dev_settings, make_release

# With the image pinned, an edit of the serving code changes no name; the source bundle's hash is masked.
PINNED = "sha256:" + "3c" * 32


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Template]:
    settings = dev_settings()
    hosting = settings.hosting.model_copy(update={"image_digest": PINNED})
    settings = settings.model_copy(update={"hosting": hosting})
    return synthesize(tmp_path_factory.mktemp("cdk.out"), settings, make_release(settings))


@pytest.mark.parametrize("stack", STACKS)
def test_the_stack_is_the_reviewed_one(stack: str, templates: dict[str, Template], snapshot: SnapshotAssertion) -> None:
    release = make_release(dev_settings())
    kept = frozenset({PINNED.removeprefix("sha256:"), release.onnx.sha256, release.model_json.sha256})
    assert without_asset_hashes(templates[stack], kept) == snapshot(extension_class=TemplateSnapshot)
