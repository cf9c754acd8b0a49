"""Reads and checks release.json, the only thing that both clouds deploy from. No cloud SDK, no network.

A release is immutable and content-addressed: its id is the model's name and the first 12 hex digits of the sha256 of its
ONNX file. Unknown fields and unknown versions are refused: a reader that guesses would deploy what nobody described.
"""

import json
import reprlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

MAX_RELEASE_BYTES = 256 * 1024
_MAX_COMPLAINTS = 10

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
    size: Annotated[int, Field(gt=0, le=2**31)]


class StoredArchive(FileDigest):
    """The digest-pinned model.tar.gz and the S3 object version that holds it."""

    uri: S3Uri
    version_id: Annotated[str, StringConstraints(pattern=r"^[!-~]{1,1024}$")]


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

    schema_version: Annotated[int, Field(ge=2, le=2)]  # a literal would take 2.0, too
    release_id: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]*-[0-9a-f]{12}$")]
    model: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]*$")]
    dataset: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
    archive: StoredArchive
    onnx: FileDigest
    model_json: FileDigest
    metrics: dict[str, float]
    gate: Gate
    pipeline_execution: Annotated[str, StringConstraints(pattern=EXECUTION)]
    model_package: Annotated[str, StringConstraints(pattern=MODEL_PACKAGE)] | None
    dataset_manifest_sha256: Sha256 | None
    source_revision: Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]{1,256}$")]
    training_end_time: Annotated[str, StringConstraints(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]

    @model_validator(mode="after")
    def _content_addressed(self) -> Self:
        expected = release_id(self.model, self.onnx.sha256)
        if self.release_id != expected:
            found, expected = reprlib.repr(self.release_id), reprlib.repr(expected)
            raise ValueError(f"release_id is {found}, but model and onnx.sha256 make it {expected}")
        return self

    def to_bytes(self) -> bytes:
        """The file's bytes: sorted keys, so that the same release is the same file."""
        return (json.dumps(self.model_dump(), indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def release_id(model: str, onnx_sha256: str) -> str:
    """`<model>-<first 12 hex of the ONNX sha256>`."""
    return f"{model}-{onnx_sha256[:12]}"


def parse_release(raw: bytes, origin: str) -> Release:
    """Check the bytes of a release.json; `origin` is named in errors. Raises ReleaseError, with JSON pointers (RFC 6901)."""
    if len(raw) > MAX_RELEASE_BYTES:
        raise ReleaseError(f"{origin}: /: more than the {MAX_RELEASE_BYTES} bytes that a release.json has at most")
    try:
        document = json.loads(raw.decode("utf-8"), object_pairs_hook=_Object)
        _refuse_duplicates(document, ())
        return Release.model_validate(document)
    except ValidationError as error:
        complaints = [f"{origin}: {_complaint(problem)}" for problem in error.errors()]
        if len(complaints) > _MAX_COMPLAINTS:
            complaints[_MAX_COMPLAINTS:] = [f"{origin}: /: and {len(complaints) - _MAX_COMPLAINTS} more"]
        raise ReleaseError("\n".join(complaints)) from error
    except ReleaseError as error:
        raise ReleaseError(f"{origin}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ReleaseError(f"{origin}: /: not a release.json: {error}; make it with `ferry release`") from error


def read_release(path: Path) -> Release:
    """Read and check one file. Raises ReleaseError, also where there is none."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_RELEASE_BYTES + 1)
    except OSError as error:
        raise ReleaseError(f"{path}: cannot be read ({error.strerror}); make it with `ferry release`") from error
    return parse_release(raw, str(path))


class _Object(dict[str, Any]):
    """A JSON object that knows which of its keys stood in it twice."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        repeated = (key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        self.repeated = next(repeated, None)


def _refuse_duplicates(value: Any, place: tuple[str | int, ...]) -> None:
    if isinstance(value, _Object):
        if value.repeated is not None:
            raise ReleaseError(f"{_pointer((*place, value.repeated))}: duplicate key {reprlib.repr(value.repeated)}")
        for key, inner in value.items():
            _refuse_duplicates(inner, (*place, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _refuse_duplicates(inner, (*place, index))


def _complaint(problem: Any) -> str:
    found = "" if problem["type"] in ("missing", "value_error") else f"; found {reprlib.repr(problem['input'])}"
    return f"{_pointer(problem['loc'])}: {problem['msg']}{found}"


def _pointer(place: Iterable[str | int]) -> str:
    """As in RFC 6901, but / for the whole document; a key that would break the line or fill the screen is cut."""
    steps = (str(step).replace("~", "~0").replace("/", "~1") for step in place)
    return "/" + "/".join(step if step.isprintable() and len(step) <= 60 else reprlib.repr(step) for step in steps)
