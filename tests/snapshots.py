"""The snapshot that the stacks of both clouds are compared with: one JSON file a stack, reviewed like code.

Hashes of assets are replaced by their kind, so that an edit of the model's code does not touch an infrastructure snapshot.
"""

import re
from typing import Any

from syrupy.extensions.json import JSONSnapshotExtension

# A content hash as CDK and CDKTF write it, 32 or 64 hex digits that stand alone or in a longer string; and an MD5 alone.
_HASH = re.compile(r"(?<![0-9a-f])([0-9a-f]{64}|[0-9A-F]{32})(?![0-9A-Fa-f])|^[0-9a-f]{32}$")


class TemplateSnapshot(JSONSnapshotExtension):
    """A synthesized document as sorted JSON."""


def without_asset_hashes(document: Any, kept: frozenset[str] = frozenset()) -> Any:
    """A copy of `document` in which every content hash in keys and values, except those in `kept`, reads <hash>."""
    if isinstance(document, dict):
        return {without_asset_hashes(key, kept): without_asset_hashes(value, kept) for key, value in document.items()}
    if isinstance(document, list):
        return [without_asset_hashes(value, kept) for value in document]
    if isinstance(document, str):
        return _HASH.sub(lambda match: match[0] if match[0] in kept else "<hash>", document)
    return document
