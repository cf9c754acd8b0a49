"""Makes the archive that AWS's PyTorch inference image serves: the released model at its root, our code below code/.

SageMaker's layout (Python SDK documentation, "Use PyTorch with the SageMaker Python SDK", model directory structure) also has
code/requirements.txt, which is left out here: the image gives it to pip each time a container starts
(sagemaker_inference/model_server.py), and a model in network isolation has no network. The libraries lie unpacked beside the
handlers instead. The image puts code/ at the head of the search path of the processes that serve
(sagemaker_pytorch_serving_container/torchserve.py), so they are found before its own.
"""

from collections.abc import Mapping
from pathlib import Path

from ferry.archive import write_archive
from ferry.errors import FerryError
from ferry.native import native_files
from ferry.wheels import fetch_wheels, read_pins, read_wheel
from infra.aws.script_mode import REQUIREMENTS, script_mode_sources
from infra.settings import ROOT

# Of 2.6, the last PyTorch inference image (aws/deep-learning-containers: pytorch/inference/docker/2.6/py3/Dockerfile.cpu).
IMAGE_PYTHON = "3.12"

_CODE = "code"
# The image's toolkit imports scipy, which runs `from numpy import *`, and that imports numpy.f2py.
_KEPT = ("numpy/f2py/*",)
_WHEEL_CACHE = ROOT / "build" / "wheels"


def script_mode_archive(
    members: Mapping[str, bytes], *, python_version: str = IMAGE_PYTHON, cache: Path = _WHEEL_CACHE
) -> bytes:
    """A model.tar.gz of a release's `members` and of everything that serves them; the same inputs give the same bytes.

    `cache` holds the wheels of the libraries; the first call for a set of pins fills it from the registry. Raises FerryError.
    """
    files = {name.removeprefix("model_code/script_mode/"): content for name, content in script_mode_sources().items()}
    del files[Path(REQUIREMENTS).name]
    files |= native_files()
    for wheel in fetch_wheels(read_pins(ROOT / REQUIREMENTS, python_version), python_version, cache):
        unpacked = read_wheel(wheel, keep=_KEPT)
        if overlap := files.keys() & unpacked.keys():
            raise FerryError(f"{wheel}: {min(overlap)} is there already; one of the two cannot be packed")
        files |= unpacked
    return write_archive({**members, **{f"{_CODE}/{name}": content for name, content in files.items()}})
