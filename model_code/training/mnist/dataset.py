"""Handwritten digits as two channels of IDX files.

Where they come from, in this order: a folder that was named; MNIST from its public mirrors; the handwritten digits inside
scikit-learn, so that a machine without a network runs the same journey on real, smaller data.
"""

import gzip
import hashlib
import struct
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_code.environment import CHANNEL_FOLDERS
from model_code.training.dataset import Dataset, Report, dataset_name, lay_out
from model_code.training.errors import BadConfiguration, BadData

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
_SOURCES = f"a folder with {', '.join(MNIST)}, raw or as .gz, or the word {EMBEDDED}; default: MNIST from its mirrors"
_DOWNLOAD_SECONDS = 10  # without an answer; a firewall that drops packets must not hold anybody up
_MAX_DOWNLOAD = 64 * 2**20


def prepare(source: str | None, target: Path, report: Report) -> Dataset:
    """Lay the dataset out below `target`.

    `source` is a folder with the four IDX files, raw or gzipped, under their MNIST names, or the word `digits` for the
    embedded ones; None downloads MNIST, or takes the embedded digits when no mirror answers. Raises BadConfiguration for a
    folder that lacks a file, and BadData for a file that cannot be read.
    """
    if source == EMBEDDED:
        return _embedded_digits(target)
    if source is not None:
        return _from_folder(Path(source), target)
    downloaded = _download_mnist(target / "downloads", report)
    if downloaded is not None:
        return _from_folder(downloaded, target, origin="MNIST, 70,000 handwritten digits, from its public mirror")
    report("No MNIST mirror can be reached: using the 1,797 handwritten digits that ship inside scikit-learn.")
    return _embedded_digits(target)


def _from_folder(source: Path, target: Path, origin: str | None = None) -> Dataset:
    if not source.is_dir():
        raise BadConfiguration(f"{source}: no such folder", f"Give {_SOURCES}.")
    if source.resolve().is_relative_to(target.resolve()) and origin is None:
        raise BadConfiguration(f"{source}: lies in {target}, which is written to", "Give a folder outside of it.")
    contents = {name: _read_either(source, name) for name in MNIST}
    published = all(hashlib.sha256(contents[name]).hexdigest() == digest for name, digest in MNIST.items())
    name = "mnist" if published else dataset_name(source)
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
                raise BadData(f"{path}: cannot be read: {error}", "Copy it again from where it came.") from error
    found = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
    raise BadConfiguration(f"{folder}: neither {name} nor {name}.gz is there; found: {found}", f"Give {_SOURCES}.")


def _lay_out(contents: dict[str, bytes], folder: Path, name: str, origin: str) -> Dataset:
    packed = {}
    for file, content in contents.items():
        channel = CHANNEL_FOLDERS["training" if file.startswith("train") else "testing"]
        # Level 1: the point is the documented .gz form, not the last per cent; mtime 0 keeps the bytes the same.
        packed[f"{channel}/{file}.gz"] = gzip.compress(content, compresslevel=1, mtime=0)
    return lay_out(packed, folder, name, origin)


def _download_mnist(folder: Path, report: Report) -> Path | None:
    """The folder with the four verified files, or None when no mirror can be reached."""
    for name, digest in MNIST.items():
        path = folder / f"{name}.gz"
        if path.is_file() and _content_digest(path.read_bytes()) == digest:
            continue
        content = _download(f"{name}.gz", digest, report)
        if content is None:
            return None
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)  # a half one is downloaded again, for its checksum
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
