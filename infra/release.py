"""Reads and checks release.json, the only thing that both clouds deploy from. No cloud SDK, no network.

A release is immutable and content-addressed: its id is the model's name and the first 12 hex digits of the sha256 of its
ONNX file. Unknown fields and unknown versions are refused: a reader that guesses would deploy what nobody described.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

MAX_RELEASE_BYTES = 256 * 1024

# Where an artifact was made: the ARN of the pipeline's execution, or this machine.
EXECUTION = r"^(local|arn:aws[a-z-]*:sagemaker:.+)$"
MODEL_PACKAGE = r"^arn:aws[a-z-]*:sagemaker:[a-z0-9-]+:[0-9]{12}:model-package/[a-zA-Z0-9-]+/[0-9]+$"

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
S3Uri = Annotated[
    str,
    StringConstraints(
        pattern=r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9_-][A-Za-z0-9._-]*)+$", max_length=1024
    ),
]


class ReleaseError(ValueError):
    """release.json is missing or cannot be trusted; the message names the file, the field and what is allowed."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class FileDigest(_Part):
    """Size in bytes and sha256 (64 lower-case hex digits) of one file."""

    sha256: Sha256
    size: Annotated[int, Field(gt=0)]


class StoredArchive(FileDigest):
    """The digest-pinned model.tar.gz and the S3 object version that holds it."""

    uri: S3Uri
    version_id: Annotated[str, Field(min_length=1, max_length=1024)]


class Gate(_Part):
    """The number that decided, and what it was held against."""

    metric: Literal["accuracy"]
    threshold: Annotated[float, Field(ge=0, le=1)]
    value: Annotated[float, Field(ge=0, le=1)]

    @model_validator(mode="after")
    def _passed(self) -> Self:
        if self.value < self.threshold:
            raise ValueError(f"{self.metric} {self.value} is below the gate {self.threshold}: this is no release")
        return self


class Release(_Part):
    """What release.json says. Every field is there; null where the artifact came from no registry or no known dataset."""

    schema_version: Literal[2]
    release_id: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]*-[0-9a-f]{12}$")]
    model: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]*$")]
    dataset: Annotated[str, Field(min_length=1, max_length=64)]
    archive: StoredArchive
    onnx: FileDigest
    model_json: FileDigest
    metrics: dict[str, float]
    gate: Gate
    pipeline_execution: Annotated[str, StringConstraints(pattern=EXECUTION)]
    model_package: Annotated[str, StringConstraints(pattern=MODEL_PACKAGE)] | None
    dataset_manifest_sha256: Sha256 | None
    source_revision: str
    training_end_time: Annotated[str, StringConstraints(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]

    @model_validator(mode="after")
    def _content_addressed(self) -> Self:
        expected = release_id(self.model, self.onnx.sha256)
        if self.release_id != expected:
            raise ValueError(f"release_id is {self.release_id!r}, but model and onnx.sha256 make it {expected!r}")
        return self

    def to_bytes(self) -> bytes:
        """The file's bytes: sorted keys, so that the same release is the same file."""
        return (json.dumps(self.model_dump(), indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def release_id(model: str, onnx_sha256: str) -> str:
    """`<model>-<first 12 hex of the ONNX sha256>`."""
    return f"{model}-{onnx_sha256[:12]}"


def parse_release(raw: bytes, origin: str) -> Release:
    """Check the bytes of a release.json; `origin` is named in errors. Raises ReleaseError."""
    if len(raw) > MAX_RELEASE_BYTES:
        raise ReleaseError(f"{origin}: {len(raw)} bytes; a release.json has at most {MAX_RELEASE_BYTES}")
    try:
        document = json.loads(raw.decode("utf-8"), object_pairs_hook=_no_duplicates)
        return Release.model_validate(document)
    except ValidationError as error:
        problems = (f"{origin}: /{'/'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors())
        raise ReleaseError("\n".join(problems)) from error
    except (ValueError, RecursionError) as error:
        raise ReleaseError(f"{origin}: not a release.json: {error}") from error


def read_release(path: Path) -> Release:
    """Read and check one file. Raises ReleaseError, also where there is none."""
    try:
        return parse_release(path.read_bytes(), str(path))
    except OSError as error:
        raise ReleaseError(f"{path}: cannot be read ({error.strerror}); make it with `ferry release`") from error


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    repeated = {key for key in keys if keys.count(key) > 1}
    if repeated:
        raise ValueError(f"duplicate key {sorted(repeated)[0]!r}")
    return dict(pairs)
