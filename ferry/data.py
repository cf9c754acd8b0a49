"""Gets a dataset, lays it out as the two channels of the training job, and uploads it with its manifest last.

Where the images come from, in this order: a folder that was named; MNIST from its public mirrors; the handwritten digits
inside scikit-learn, so that a machine without a network runs the same journey on real, smaller data.
"""

import gzip
import hashlib
import json
import shutil
import struct
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ferry import aws
from ferry.console import Report
from ferry.errors import FerryError, Refused
from ferry.files import write_atomically
from infra.settings import DatasetSettings, Settings
from model_code.environment import CHANNEL_FOLDERS

# The bucket of the SageMaker examples, then the one that torchvision downloads from.
MIRRORS = (
    "https://sagemaker-example-files-prod-us-east-1.s3.amazonaws.com/datasets/image/MNIST/",
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
)
# sha256 of the uncompressed files: a gzip made anew differs, its content does not.
MNIST = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
EMBEDDED = "digits"
MANIFEST = "manifest.json"
_DOWNLOAD_SECONDS = 10  # without an answer; a firewall that drops packets must not hold the demo up
_MAX_DOWNLOAD = 64 * 2**20


@dataclass(frozen=True)
class Dataset:
    """A folder with `train/` and `test/` of gzipped IDX files; `origin` says in words where the images come from."""

    name: str
    folder: Path
    origin: str

    def files(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("*/*") if path.is_file())

    def settings(self, settings: Settings) -> DatasetSettings:
        """This dataset's table in the settings; a dataset without one is held to that of model.dataset."""
        return settings.datasets.get(self.name, settings.datasets[settings.model.dataset])


def prepare(settings: Settings, source: str | None, report: Report) -> Dataset:
    """Lay a dataset out below the environment's build folder.

    `source` is a folder with the four IDX files, raw or gzipped, under their MNIST names, or the word `digits` for the
    embedded ones; None downloads MNIST, or takes the embedded digits when no mirror answers. Raises Refused for a folder
    that lacks a file.
    """
    target = settings.build_path / "data"
    if source == EMBEDDED:
        return _embedded_digits(target)
    if source is not None:
        return _from_folder(Path(source), target)
    downloaded = _download_mnist(target / "downloads", report)
    if downloaded is not None:
        return _from_folder(downloaded, target, origin="MNIST, 70,000 handwritten digits, from its public mirror")
    report("No MNIST mirror can be reached: using the 1,797 handwritten digits that ship inside scikit-learn.")
    return _embedded_digits(target)


def upload(settings: Settings, dataset: Dataset, report: Report) -> str:
    """Put the files below the dataset prefix of the data bucket, the manifest last; returns the manifest's s3:// URI.

    The pipeline starts on the manifest alone, so half an upload starts nothing. Files that the bucket already holds with
    the same content are left alone, so an interrupted upload is simply run again.
    """
    s3 = aws.client(settings, "s3")
    entries = []
    for path in dataset.files():
        content = path.read_bytes()
        key = f"{settings.dataset_prefix}/{path.parent.name}/{path.name}"
        entry = {"key": key, "sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        entries.append(entry)
        if _stored_sha256(s3, settings.data_bucket, key) == entry["sha256"]:
            report(f"  {key}: already there")
            continue
        s3.put_object(
            Bucket=settings.data_bucket, Key=key, Body=content, Metadata={"sha256": entry["sha256"]},
            ChecksumAlgorithm="SHA256",
        )  # fmt: skip
        report(f"  {key}: {len(content):,} bytes")
    manifest = {"schema_version": 1, "dataset": dataset.name, "files": entries}
    key = f"{settings.dataset_prefix}/{MANIFEST}"
    s3.put_object(
        Bucket=settings.data_bucket,
        Key=key,
        Body=(json.dumps(manifest, indent=2, sort_keys=True) + "\n").encode(),
        ContentType="application/json",
        ChecksumAlgorithm="SHA256",
    )
    return f"s3://{settings.data_bucket}/{key}"


def read_test_set(dataset: Dataset) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images, uint8 (n, rows, columns), and labels, uint8 (n,), of the testing channel that `prepare` laid out."""
    folder = dataset.folder / CHANNEL_FOLDERS["testing"]
    arrays = {}
    for path in folder.iterdir():
        raw = gzip.decompress(path.read_bytes())
        dimensions = raw[3]
        shape = struct.unpack(f">{dimensions}I", raw[4 : 4 + 4 * dimensions])
        arrays[dimensions] = np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
    return arrays[3], arrays[1]


def _stored_sha256(s3: Any, bucket: str, key: str) -> str | None:
    try:
        head = s3.head_object(Bucket=bucket, Key=key)
    except s3.exceptions.ClientError as error:
        if error.response["Error"]["Code"] in ("404", "NoSuchKey", "NotFound"):
            return None
        raise
    sha256: str | None = head["Metadata"].get("sha256")
    return sha256


def _from_folder(source: Path, target: Path, origin: str | None = None) -> Dataset:
    if not source.is_dir():
        raise Refused(f"{source}: no such folder; give one that holds {', '.join(MNIST)}, raw or as .gz")
    if source.resolve().is_relative_to(target.resolve()) and origin is None:
        raise Refused(f"{source}: lies in {target}, which is written to; give a folder outside of it")
    contents = {name: _read_either(source, name) for name in MNIST}
    published = all(hashlib.sha256(contents[name]).hexdigest() == digest for name, digest in MNIST.items())
    name = "mnist" if published else _slug(source.resolve().name)
    if origin is None:
        origin = f"{'the published MNIST files' if published else 'IDX files'} in {source}"
    return _lay_out(contents, target / name, name, origin)


def _read_either(folder: Path, name: str) -> bytes:
    """The uncompressed content of `name` or `name`.gz."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            try:
                raw = path.read_bytes()
                return gzip.decompress(raw) if path.suffix == ".gz" else raw
            except (OSError, EOFError, ValueError) as error:
                raise FerryError(f"{path}: cannot be read: {error}") from error
    found = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
    raise Refused(f"{folder}: neither {name} nor {name}.gz is there; found: {found}")


def _slug(name: str) -> str:
    kept = "".join(character if character.isascii() and character.isalnum() else "-" for character in name.lower())
    return kept.strip("-")[:64] or "data"


def _lay_out(contents: dict[str, bytes], folder: Path, name: str, origin: str) -> Dataset:
    for channel in CHANNEL_FOLDERS.values():  # ours; what else may lie in the folder is not
        shutil.rmtree(folder / channel, ignore_errors=True)
    for file, content in contents.items():
        channel = CHANNEL_FOLDERS["training" if file.startswith("train") else "testing"]
        # Level 1: the point is the documented .gz form, not the last per cent; mtime 0 keeps the bytes the same.
        write_atomically(folder / channel / f"{file}.gz", gzip.compress(content, compresslevel=1, mtime=0))
    return Dataset(name, folder, origin)


def _download_mnist(folder: Path, report: Report) -> Path | None:
    """The folder with the four verified files, or None when no mirror can be reached."""
    for name, digest in MNIST.items():
        path = folder / f"{name}.gz"
        if path.is_file() and _content_digest(path.read_bytes()) == digest:
            continue
        content = _download(f"{name}.gz", digest, report)
        if content is None:
            return None
        write_atomically(path, content)
        report(f"  {name}.gz: {len(content):,} bytes, checksum right")
    return folder


def _download(name: str, digest: str, report: Report) -> bytes | None:
    for mirror in MIRRORS:
        report(f"  trying {mirror}{name}")
        try:
            with urllib.request.urlopen(mirror + name, timeout=_DOWNLOAD_SECONDS) as answer:
                content: bytes = answer.read(_MAX_DOWNLOAD)
        except (urllib.error.URLError, OSError) as error:
            report(f"  {mirror}: {error}")
            continue
        if _content_digest(content) == digest:
            return content
        report(f"  {mirror}{name}: the content is not the published one; not used")
    return None


def _content_digest(content: bytes) -> str | None:
    try:
        return hashlib.sha256(gzip.decompress(content)).hexdigest()
    except (OSError, EOFError, ValueError):
        return None


def _embedded_digits(target: Path) -> Dataset:
    """scikit-learn's digits, 8×8 pixels of 0–16, as MNIST shapes them: 20×20 in the middle of 28×28, 0–255."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.zeros((len(digits.images), 28, 28), np.uint8)
    for image, small in zip(images, digits.images, strict=True):
        scaled = Image.fromarray((small * (255 / 16)).astype(np.uint8)).resize((20, 20), Image.Resampling.BICUBIC)
        image[4:24, 4:24] = np.asarray(scaled)
    labels = digits.target.astype(np.uint8)
    # Two of eleven are held out, spread over the set: it is ordered by writer, and its labels mostly run from 0 to 9.
    held_out = np.arange(len(labels)) % 11 < 2
    contents = {
        "train-images-idx3-ubyte": _idx(images[~held_out]),
        "train-labels-idx1-ubyte": _idx(labels[~held_out]),
        "t10k-images-idx3-ubyte": _idx(images[held_out]),
        "t10k-labels-idx1-ubyte": _idx(labels[held_out]),
    }
    origin = "the 1,797 handwritten digits inside scikit-learn, enlarged to 28×28"
    return _lay_out(contents, target / EMBEDDED, EMBEDDED, origin)


def _idx(array: NDArray[np.uint8]) -> bytes:
    """The IDX file of an array of unsigned bytes: magic 00 00 08 <dimensions>, big-endian sizes, the data."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()
