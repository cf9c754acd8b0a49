"""What every test runs under: no credentials of a real account, no setting of the caller's."""

import os
from pathlib import Path

import pytest

import model_code  # noqa: F401  (it sets a variable, once)

# Set before anything imports boto3: a test that forgets its endpoint must fail, not reach somebody's account. The kit of the
# Azure stack is chosen for the whole run (`make test-cdktn`).
for _name in [name for name in os.environ if name.startswith(("AWS_", "FERRY_", "SM_", "SAGEMAKER_", "ARM_"))]:
    if _name != "FERRY_CDKTF_KIT":
        del os.environ[_name]
os.environ |= {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    # Tests talk to loopback only; and jsii refuses a cache below a home folder that a group may write to.
    "NO_PROXY": "localhost,127.0.0.1",
    "no_proxy": "localhost,127.0.0.1",
    "JSII_RUNTIME_PACKAGE_CACHE_ROOT": str(Path(__file__).resolve().parent.parent / "build" / "jsii"),
}

# With one process of tests a core, a training that takes every core would only be in the others' way.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"


# torch sets the first one when it is imported, pytest the other.
_NOT_OURS = ("TORCHINDUCTOR_CACHE_DIR", "PYTEST_CURRENT_TEST")


@pytest.fixture(autouse=True)
def _environment_is_left_as_it_was() -> object:
    """A test may set variables with monkeypatch only; anything else would leak into the next one."""
    before = dict(os.environ)
    yield
    left = {name: value for name, value in os.environ.items() if name not in _NOT_OURS}
    before = {name: value for name, value in before.items() if name not in _NOT_OURS}
    assert left == before


# Minutes each: begun last, one of them would run alone at the end while the other core waits.
_SLOW_FILES = ("test_demo.py", "test_distributed.py", "test_checkpoints.py", "test_pipeline_runner.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow files first, in this order; everything else as it was."""
    order = {name: place for place, name in enumerate(_SLOW_FILES)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))
