"""Names of the environment variables and of the folders that the platforms hand to our code.

Standard library only: the stacks that set these names and the processes that read them both import this module, so that a
renamed variable breaks synth and not production.

`SM_*` variables are set by AWS's sagemaker-training toolkit (its ENVIRONMENT_VARIABLES.md); SageMaker itself provides only
the files below /opt/ml (SageMaker Developer Guide, "How Amazon SageMaker provides training information").
"""

import os
from pathlib import Path
from typing import NamedTuple

# The release that the deployment expects; the server refuses any other model.
RELEASE_ID = "FERRY_RELEASE_ID"
# The Function does without: the release.json in its package holds this digest.
MODEL_JSON_SHA256 = "FERRY_MODEL_JSON_SHA256"

# Who may call the Function: one of AUTHORIZATIONS.
AUTHORIZATION = "FERRY_AUTHORIZATION"
AUTHORIZATIONS = ("function-key", "entra", "anonymous")
# App Service says "True" where its built-in authentication stands in front of the app.
PLATFORM_AUTHENTICATION = "WEBSITE_AUTH_ENABLED"
# Threads that run the handlers of one worker process (Azure Functions app settings reference).
WORKER_THREADS = "PYTHON_THREADPOOL_THREAD_COUNT"
# Threads that numpy's OpenBLAS starts when it is imported, one a core where it is not set.
BLAS_THREADS = "OPENBLAS_NUM_THREADS"
# No code reads it: a changed app setting restarts the Function App, also where only the code in its package changed.
CODE_SHA256 = "FERRY_CODE_SHA256"

# Serving.
WORKERS = "FERRY_WORKERS"
MODEL_DIR = "FERRY_MODEL_DIR"
BIND_TO_PORT = "SAGEMAKER_BIND_TO_PORT"
BIND_ADDRESS = "FERRY_BIND_ADDRESS"
DEFAULT_PORT = 8080
# Instances of several waiting requests that one inference takes; 1 answers each request alone. Beyond 16 there is little to
# gain: weights that one image waits for are then read once for sixteen.
DYNAMIC_BATCH = "FERRY_DYNAMIC_BATCH"
DEFAULT_DYNAMIC_BATCH = 16
MAX_DYNAMIC_BATCH = 64
# Longest time from a request to its answer, seconds: for asynchronous endpoints, where nobody waits on a connection.
DEADLINE = "FERRY_DEADLINE_SECONDS"

# SageMaker sets the first in a batch transform, and the second where the job names a MaxPayloadInMB; 0 means bodies of any
# size, sent in chunks (Developer Guide, "Use Your Own Inference Code with Batch Transform").
BATCH = "SAGEMAKER_BATCH"
MAX_PAYLOAD = "SAGEMAKER_MAX_PAYLOAD_IN_MB"

# What a container of an endpoint does with a request: one of STAGES. `preprocess` decodes and normalises it for the next
# container of a serial pipeline, and answers application/x-npy instead of labels.
STAGE = "FERRY_STAGE"
STAGES = ("predict", "preprocess")
# SageMaker sets it in a multi-model endpoint (Developer Guide, "Build Your Own Container for SageMaker AI Multi-Model Endpoints").
MULTI_MODEL = "SAGEMAKER_MULTI_MODEL"
# Memory that its server may take, models included, MB; what would not fit is answered 507.
MODEL_MEMORY = "FERRY_MODEL_MEMORY_MB"

# `fetch`, where nobody else brings the model: the blob of the released archive, and the identity that may read it. The
# last two are the platform's (Azure Container Apps, "Managed identities", REST endpoint reference).
ARCHIVE_URL = "FERRY_ARCHIVE_URL"
IDENTITY_CLIENT_ID = "AZURE_CLIENT_ID"
IDENTITY_ENDPOINT = "IDENTITY_ENDPOINT"
IDENTITY_HEADER = "IDENTITY_HEADER"

# Training.
MODEL_NAME = "FERRY_MODEL"
DATASET = "FERRY_DATASET"
SOURCE_REVISION = "FERRY_SOURCE_REVISION"
# What the job does to the model that it has trained: one of QUANTIZATIONS.
QUANTIZE = "FERRY_QUANTIZE"
QUANTIZATIONS = ("none", "int8")
BASE_DIR = "SAGEMAKER_BASE_DIR"
SM_HPS = "SM_HPS"
SM_MODEL_DIR = "SM_MODEL_DIR"
SM_OUTPUT_DIR = "SM_OUTPUT_DIR"
SM_CHANNEL_PREFIX = "SM_CHANNEL_"

# Training by several processes: ours, what torchrun tells each of them, and what gloo, nccl and OpenMP read.
PROCESSES_PER_HOST = "FERRY_PROCESSES_PER_HOST"
RANK = "RANK"
WORLD_SIZE = "WORLD_SIZE"
LOCAL_RANK = "LOCAL_RANK"
MASTER_ADDR = "MASTER_ADDR"
MASTER_PORT = "MASTER_PORT"
TORCHRUN = "TORCHELASTIC_RUN_ID"
INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
THREADS = "OMP_NUM_THREADS"

# The line that every model prints once an epoch, and how SageMaker reads its numbers (MetricDefinitions of the training job).
METRICS_LINE = (
    "metrics epoch={epoch} train_loss={train_loss:.4f} test_loss={test_loss:.4f} test_accuracy={test_accuracy:.4f}"
)
METRIC_DEFINITIONS = (
    ("train:loss", "train_loss=([0-9.]+)"),
    ("test:loss", "test_loss=([0-9.]+)"),
    ("test:accuracy", "test_accuracy=([0-9.]+)"),
)

# Channel of the training job -> folder of the dataset in the data bucket.
CHANNEL_FOLDERS = {"training": "train", "testing": "test"}

# What a model artifact and a release are made of.
MODEL_FILE = "model.onnx"
SIGNATURE_FILE = "model.json"
RELEASE_FILE = "release.json"
ARCHIVE_FILE = "model.tar.gz"

# What the evaluation of a model artifact leaves, and where in it the accuracy and the sha256 of the dataset's manifest stand
# (SageMaker's schema of model quality metrics; the second table is ours).
EVALUATION_FILE = "evaluation.json"
ACCURACY_PATH = "multiclass_classification_metrics.accuracy.value"
MANIFEST_SHA256_PATH = "dataset.manifest_sha256"


class MlPaths(NamedTuple):
    """The /opt/ml layout below `base`; SAGEMAKER_BASE_DIR moves it, as it does for AWS's own toolkits."""

    base: Path

    @classmethod
    def from_environment(cls) -> "MlPaths":
        return cls(Path(os.environ.get(BASE_DIR) or "/opt/ml"))

    @property
    def model(self) -> Path:
        return self.base / "model"

    @property
    def models(self) -> Path:
        """Of a multi-model endpoint: SageMaker unpacks each model into <name>/model below it."""
        return self.base / "models"

    @property
    def output(self) -> Path:
        return self.base / "output"

    @property
    def test_outputs(self) -> Path:
        """What the trained network itself, or its quantised file, said on the testing channel: float32 (n, classes), beside the
        artifact in S3."""
        return self.output / "data" / "test_outputs.npy"

    @property
    def failure(self) -> Path:
        """Its first 1,024 characters become the job's FailureReason."""
        return self.output / "failure"

    @property
    def checkpoints(self) -> Path:
        """Kept in S3 while the job runs, and brought back when it starts again (CheckpointConfig of the training job)."""
        return self.base / "checkpoints"

    @property
    def hyperparameters(self) -> Path:
        return self.base / "input" / "config" / "hyperparameters.json"

    @property
    def input_data_config(self) -> Path:
        return self.base / "input" / "config" / "inputdataconfig.json"

    @property
    def resource_config(self) -> Path:
        return self.base / "input" / "config" / "resourceconfig.json"

    def channel(self, name: str) -> Path:
        return self.base / "input" / "data" / name


class ProcessingPaths(NamedTuple):
    """The layout of the processing jobs below `base`: the pipeline names these folders, SageMaker fills and uploads them.

    `raw`, `train` and `test` are preprocessing's, the rest is the evaluation's.
    """

    base: Path

    @classmethod
    def from_environment(cls) -> "ProcessingPaths":
        return cls(Path(os.environ.get(BASE_DIR) or "/opt/ml"))

    @property
    def message(self) -> Path:
        """Its first 1,024 bytes become the job's ExitMessage (Developer Guide, "Save and Access Metadata Information")."""
        return self.base / "output" / "message"

    @property
    def raw(self) -> Path:
        """The dataset as it was uploaded."""
        return self.base / "processing" / "input" / "raw"

    @property
    def train(self) -> Path:
        return self.base / "processing" / "train"

    @property
    def test(self) -> Path:
        return self.base / "processing" / "test"

    @property
    def model(self) -> Path:
        """Holds the training job's model.tar.gz."""
        return self.base / "processing" / "input" / "model"

    @property
    def testing(self) -> Path:
        """Holds the files of the testing channel."""
        return self.base / "processing" / "input" / "testing"

    @property
    def manifest(self) -> Path:
        """Holds one file: the manifest of the dataset."""
        return self.base / "processing" / "input" / "manifest"

    @property
    def evaluation(self) -> Path:
        return self.base / "processing" / "evaluation"

    @property
    def requests(self) -> Path:
        """The testing channel as bodies of requests, which a batch transform sends to the container."""
        return self.base / "processing" / "requests"
