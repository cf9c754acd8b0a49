"""Where the archive stands that AWS's PyTorch inference image serves: hosting.image = "pytorch-dlc"."""

from infra.aws.sources import CORE_SOURCES, NATIVE_SOURCES, digest, read_sources
from infra.settings import RELEASES_PREFIX, ROOT
from model_code import environment

REQUIREMENTS = "model_code/script_mode/requirements.txt"

_HANDLERS = "model_code/script_mode/inference.py"
_DIGEST_LENGTH = 12


def script_mode_sources() -> dict[str, bytes]:
    """Our part of the archive: handlers, serving core, and the pins of the libraries that go with them."""
    return read_sources(ROOT, (*CORE_SOURCES, _HANDLERS, REQUIREMENTS))


def script_mode_key(release_id: str) -> str:
    """The key in the artifacts bucket: releases/<release id>/pytorch/<12 hex digits>/model.tar.gz.

    The digits name our part and what is compiled for it, as an image's tag does: other code for the same release has another
    key. So no object is ever written twice, and a change of the code is a change of the stack.
    """
    code = digest(script_mode_sources() | read_sources(ROOT, NATIVE_SOURCES))[:_DIGEST_LENGTH]
    return f"{RELEASES_PREFIX}/{release_id}/pytorch/{code}/{environment.ARCHIVE_FILE}"
