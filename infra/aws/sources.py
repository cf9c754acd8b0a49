"""Which of our files go into a training job and into the serving image, and the digest that names what they do."""

import ast
import functools
import hashlib
import io
import re
import tokenize
from pathlib import Path

CORE_SOURCES = ("model_code/__init__.py", "model_code/environment.py", "model_code/inference/**/*.py")
# What is compiled for the core, and what compiles it.
NATIVE_SOURCES = ("model_code/native/*.py", "model_code/native/arrays.c", "model_code/native/requirements.txt")
TRAINING_SOURCES = (*CORE_SOURCES, "model_code/training/**/*.py")
TRAINING_REQUIREMENTS = "model_code/training/requirements.txt"
# The training code that runs without a training framework: what reads and judges a testing channel.
EVALUATION_SOURCES = (
    "model_code/training/__init__.py",
    "model_code/training/channels.py",
    "model_code/training/errors.py",
    "model_code/training/evaluate.py",
    "model_code/training/examples.py",
    "model_code/training/idx.py",
    "model_code/training/log.py",
    "model_code/training/table.py",
    "model_code/training/*/__init__.py",
    "model_code/training/*/data.py",
)
# What a comment in the first two lines can mean to the system and to Python (PEP 263).
_MEANT = re.compile(r"^#!|^[ \t\f]*#.*?coding[:=]")
# A model may have one, and [training] preprocess = true wants it.
PREPROCESSING_SOURCES = ("model_code/training/*/preprocess.py",)
SERVING_SOURCES = (
    *CORE_SOURCES,
    *NATIVE_SOURCES,
    *EVALUATION_SOURCES,
    "model_code/container/*.py",
    "model_code/container/Dockerfile",
    "model_code/container/evaluate",
    "model_code/container/fetch",
    "model_code/container/requirements.txt",
    "model_code/container/serve",
)
TRAINING_IMAGE_SOURCES = (
    *TRAINING_SOURCES,
    TRAINING_REQUIREMENTS,
    "model_code/container/Dockerfile.training",
    "model_code/container/requirements-training.txt",
    "model_code/container/train",
)


def read_sources(root: Path, patterns: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, bytes]:
    """The content of all files below `root` that the allow-list names, by POSIX path, sorted.

    A pattern that matches nothing and is not `optional` raises FileNotFoundError: half a bundle would fail in the cloud,
    minutes later.
    """
    sources: dict[str, bytes] = {}
    for pattern in (*patterns, *optional):
        paths = [path for path in root.glob(pattern) if path.is_file()]
        if not paths and pattern not in optional:
            raise FileNotFoundError(f"{pattern}: no such file in the repository; the checkout is not complete")
        sources |= {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}
    return dict(sorted(sources.items()))


def digest(sources: dict[str, bytes]) -> str:
    """sha256 over names and contents, each with its length, so that no two sets of files share a digest.

    Comments in Python do not count: an edit of one would train again, and build an image and move an endpoint to it.
    """
    checksum = hashlib.sha256()
    for name, content in sorted(sources.items()):
        for part in (name.encode(), without_comments(content) if name.endswith(".py") else content):
            checksum.update(len(part).to_bytes(8, "big"))
            checksum.update(part)
    return checksum.hexdigest()


@functools.cache
def without_comments(python: bytes) -> bytes:
    """A Python file without its comments, and without the lines that held nothing else; code and docstrings stay as they are.

    The same bytes on every Python: their tokenizers differ in f-strings, not in comments. What is not Python, or not in
    UTF-8, comes back unchanged.
    """
    try:
        lines = python.decode("utf-8-sig").split("\n")
        ast.parse(python)  # the tokenizers alone do not agree on what is not Python
        tokens = list(tokenize.tokenize(io.BytesIO(python).readline))
    except (ValueError, tokenize.TokenError, SyntaxError):
        return python
    gone = set()
    for token in tokens:
        row, column = token.start
        index = row - 1
        if token.type != tokenize.COMMENT or (row <= 2 and _MEANT.match(lines[index])):
            continue
        end = "\r" if lines[index].endswith("\r") else ""
        lines[index] = lines[index][:column].rstrip() + end
        if not lines[index].strip():
            gone.add(index)
    return "\n".join(line for index, line in enumerate(lines) if index not in gone).encode()
