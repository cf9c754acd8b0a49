"""Objects of S3 to files below a folder, and back, as SageMaker's jobs move them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ferry.errors import FerryError


def split_uri(uri: str) -> tuple[str, str]:
    """Bucket and key of an s3:// URI."""
    parts = urlsplit(uri)
    return parts.netloc, parts.path.lstrip("/")


def list_keys(s3: Any, uri: str) -> list[str]:
    """All keys that begin with the URI's, sorted; S3 itself knows no folders."""
    bucket, prefix = split_uri(uri)
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return sorted(
        entry["Key"] for page in pages for entry in page.get("Contents", []) if not entry["Key"].endswith("/")
    )


def relative_name(key: str, prefix: str) -> str:
    """What is left of a key below a prefix: its own name where the prefix is the key."""
    return key.removeprefix(prefix).lstrip("/") or Path(key).name


def download(s3: Any, uri: str, target: Path, data_type: str = "S3Prefix") -> list[Path]:
    """Download every object of a source into `target`; returns the files.

    `data_type` is an S3DataType: S3Prefix, the objects below `uri` or the one that it names, or ManifestFile, those that the
    object `uri` names. Nothing is downloaded where nothing is there.
    """
    bucket, names = _manifest(s3, uri) if data_type == "ManifestFile" else _below(s3, uri)
    target.mkdir(parents=True, exist_ok=True)
    files = []
    for key, name in names.items():
        path = target / name
        if not path.resolve().is_relative_to(target.resolve()):
            raise FerryError(f"s3://{bucket}/{key}: leads out of {target}; nothing was read from it")
        path.parent.mkdir(parents=True, exist_ok=True)
        s3.download_file(bucket, key, str(path))
        files.append(path)
    return files


def upload(s3: Any, folder: Path, uri: str) -> None:
    """Upload every file below a folder, under the same relative names."""
    bucket, prefix = split_uri(uri)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        s3.upload_file(str(path), bucket, f"{prefix.rstrip('/')}/{path.relative_to(folder).as_posix()}")


def _below(s3: Any, uri: str) -> tuple[str, Mapping[str, str]]:
    """The bucket, and the name of each object below a prefix by its key."""
    bucket, prefix = split_uri(uri)
    return bucket, {key: relative_name(key, prefix) for key in list_keys(s3, uri)}


def _manifest(s3: Any, uri: str) -> tuple[str, Mapping[str, str]]:
    """The same of a manifest: [{"prefix": "s3://..."}, "name", ...] (SageMaker API Reference, S3DataSource)."""
    bucket, key = split_uri(uri)
    try:
        raw = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
    except s3.exceptions.NoSuchKey:
        return bucket, {}
    try:
        first, *names = json.loads(raw)
        bucket, prefix = split_uri(first["prefix"])
        return bucket, {f"{prefix}{name}": str(name) for name in names}
    except (ValueError, TypeError, KeyError) as error:
        raise FerryError(f'{uri}: no manifest ({error}); allowed: [{{"prefix": "s3://..."}}, "name", ...]') from error
