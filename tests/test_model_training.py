"""A training job from its folders to its artifact, and everything that must fail it with a reason and without an artifact."""

import dataclasses
import gzip
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from infra.aws.source_bundle import source_bundle
from infra.settings import ROOT
from model_code import environment
from model_code.environment import MlPaths
from model_code.inference.contract import Preprocessing, parse_model_json
from model_code.inference.predictor import PROBABILITY_TOLERANCE, Predictor
from model_code.training import job as training_job
from model_code.training.examples import Examples
from model_code.training.job import Job, run
from model_code.training.mnist import train as mnist
from model_code.training.mnist.model import ByteDropout
from model_code.training.torch_export import torch_model
from model_code.training.torch_loop import choose_device
from model_code.training.trained import TrainedModel
from tests.idx_files import digit_like, idx, write_job

HYPERPARAMETERS = {"epochs": "3", "batch_size": "32"}
TRAIN = ROOT / "model_code" / "container" / "train"
SECONDS = 120


@dataclasses.dataclass(frozen=True)
class Finished:
    """A job that ran in a process of its own."""

    paths: MlPaths
    code: int
    log: str


def run_process(command: list[str], paths: MlPaths, variables: Mapping[str, str]) -> Finished:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    answer = subprocess.run(
        command,
        env=inherited | {environment.BASE_DIR: str(paths.base)} | dict(variables),
        cwd=paths.base,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
    )
    return Finished(paths, answer.returncode, answer.stdout)


def run_executable(paths: MlPaths, **variables: str) -> Finished:
    """As the image does it: the executable itself, with the sources on the path."""
    return run_process(
        [sys.executable, str(TRAIN)], paths, {"PYTHONPATH": str(ROOT), "FERRY_MODEL": "mnist", **variables}
    )


def run_toolkit(paths: MlPaths) -> Finished:
    """AWS's own sagemaker-training, fed with the very archive that the stack uploads; pip may not ask any index."""
    return run_process([sys.executable, "-m", "sagemaker_training.cli.train"], paths, {"PIP_NO_INDEX": "1"})


def toolkit_job(base: Path, hyperparameters: Mapping[str, object]) -> MlPaths:
    archive = base / "sourcedir.tar.gz"
    archive.write_bytes(source_bundle(ROOT).archive)
    program = {"sagemaker_program": "model_code/training/mnist/train.py", "sagemaker_submit_directory": str(archive)}
    # SageMaker knows texts only, and its SDK writes each as JSON.
    return write_job(base, {key: json.dumps(value) for key, value in {**hyperparameters, **program}.items()})


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


def failure(paths: MlPaths) -> str:
    """The failure file, after what is true of every failed job was checked."""
    text = paths.failure.read_text(encoding="utf-8")
    assert left_in(paths.model) == []
    assert not paths.test_outputs.exists()
    assert len(text) <= 1024
    assert len(text.splitlines()[0]) <= 200
    assert "Traceback" not in text.splitlines()[0]
    return text


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    paths = write_job(tmp_path_factory.mktemp("job"), HYPERPARAMETERS)
    return run_executable(paths, FERRY_DATASET="squares", FERRY_SOURCE_REVISION="abc123")


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlPaths:
    """A job that would succeed, for this process: a test spoils one thing."""
    monkeypatch.setenv(environment.BASE_DIR, str(tmp_path))
    monkeypatch.setenv(
        "TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "torch")
    )  # torch.export sets it for good where it is not
    return write_job(tmp_path, {"epochs": "1"})


# What a job leaves.


def test_a_job_leaves_the_model_and_its_description_and_nothing_else(finished: Finished) -> None:
    assert finished.code == 0, finished.log
    assert left_in(finished.paths.model) == [environment.SIGNATURE_FILE, environment.MODEL_FILE]
    assert left_in(finished.paths.output) == ["data", "test_outputs.npy"]


def test_the_description_says_how_the_model_was_made(finished: Finished) -> None:
    description = parse_model_json((finished.paths.model / environment.SIGNATURE_FILE).read_bytes())
    assert description.model == "mnist"
    assert description.training.dataset == "squares"
    assert description.source_revision == "abc123"
    assert description.training.hyperparameters == {
        "batch_size": 32, "checkpoint_steps": 500, "dropout": 0.25, "early_stop_patience": 0, "epochs": 3, "frozen_share": 0.28,
        "lr": 0.002, "seed": 1, "shift": 1, "weight_decay": 0.01,
    }  # fmt: skip
    assert description.framework_versions["torch"] == torch.__version__
    assert description.metrics["accuracy"] > 0.5


def test_the_predictor_accepts_the_artifact_and_answers_as_the_network_did(finished: Finished) -> None:
    predictor = Predictor.load(finished.paths.model)
    recorded = np.load(finished.paths.test_outputs, allow_pickle=False)
    images, labels = digit_like(60, seed=60)
    inputs = (images[:, None].astype(np.float32) / 255 - np.float32(0.1307)) / np.float32(0.3081)
    outputs = predictor.run(inputs.astype(np.float32))
    assert recorded.shape == (60, 10)
    assert recorded.dtype == np.float32
    assert np.abs(np.exp(outputs) - np.exp(recorded)).max() <= PROBABILITY_TOLERANCE
    assert (recorded.argmax(axis=1) == labels).mean() == pytest.approx(predictor.description.metrics["accuracy"])


def test_the_golden_inputs_are_test_images_of_different_labels(finished: Finished) -> None:
    golden = Predictor.load(finished.paths.model).description.signature.golden
    recorded = np.load(finished.paths.test_outputs, allow_pickle=False)
    assert golden.inputs.shape == (4, 1, 28, 28)
    assert np.array_equal(golden.outputs, recorded[:4])  # the labels of the test images run 0, 1, 2, 3, ...


def test_every_metric_definition_reads_one_number_an_epoch_from_the_log(finished: Finished) -> None:
    read = {name: re.findall(regex, finished.log) for name, regex in environment.METRIC_DEFINITIONS}
    assert {name: len(values) for name, values in read.items()} == dict.fromkeys(read, 3)
    metrics = parse_model_json((finished.paths.model / environment.SIGNATURE_FILE).read_bytes()).metrics
    assert float(read["test:accuracy"][-1]) == pytest.approx(metrics["accuracy"], abs=1e-4)
    assert float(read["test:loss"][-1]) == pytest.approx(metrics["loss"], abs=1e-3)


def test_the_onnx_file_is_self_contained_and_says_nothing_about_the_machine(finished: Finished) -> None:
    raw = (finished.paths.model / environment.MODEL_FILE).read_bytes()
    model = onnx.load_model_from_string(raw)
    assert {node.op_type for node in model.graph.node} == {"Conv", "Gemm", "LogSoftmax", "MaxPool", "Relu", "Reshape"}
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    for trace in (b"stack_trace", b".py", str(ROOT).encode(), str(finished.paths.base).encode()):
        assert trace not in raw


@pytest.mark.slow
def test_the_same_seed_gives_the_same_file_from_raw_and_from_gzipped_images(finished: Finished, tmp_path: Path) -> None:
    again = run_executable(write_job(tmp_path, HYPERPARAMETERS, suffix=""))
    assert again.code == 0, again.log
    first, second = ((job.paths.model / environment.MODEL_FILE).read_bytes() for job in (finished, again))
    assert first == second


# AWS's toolkit.


def test_awss_toolkit_runs_the_same_entry_point_from_the_uploaded_archive(finished: Finished, tmp_path: Path) -> None:
    job = run_toolkit(toolkit_job(tmp_path, {"epochs": 3, "batch_size": 32}))
    assert job.code == 0, job.log
    assert left_in(job.paths.model) == [environment.SIGNATURE_FILE, environment.MODEL_FILE]
    first, second = ((each.paths.model / environment.MODEL_FILE).read_bytes() for each in (finished, job))
    assert first == second


def test_awss_toolkit_keeps_the_cause_that_a_failing_job_wrote(tmp_path: Path) -> None:
    job = run_toolkit(toolkit_job(tmp_path, {"epochs": 0}))
    assert job.code != 0
    text = failure(job.paths)
    assert text.startswith("hyperparameter epochs: found '0'; allowed: a whole number from 1 to 1,000\n")
    assert f"{job.paths.base}/code/model_code/" in text  # the archive ran, not this checkout


# Bad data.


def spoil(name: str, change: Callable[[bytes], bytes]) -> Callable[[MlPaths], None]:
    """Replace a file of the training channel by a changed, uncompressed one."""

    def apply(paths: MlPaths) -> None:
        path = paths.channel("training") / f"{name}-ubyte.gz"
        path.with_suffix("").write_bytes(change(gzip.decompress(path.read_bytes())))
        path.unlink()

    return apply


def spoil_gzip(change: Callable[[bytes], bytes]) -> Callable[[MlPaths], None]:
    def apply(paths: MlPaths) -> None:
        path = paths.channel("training") / "train-images-idx3-ubyte.gz"
        path.write_bytes(change(path.read_bytes()))

    return apply


def replace(where: slice, by: bytes) -> Callable[[bytes], bytes]:
    return lambda raw: raw[: where.start] + by + raw[where.stop :]


def remove_channel(paths: MlPaths) -> None:
    paths.channel("training").rename(paths.base / "input" / "data" / "train")


def hide_files(paths: MlPaths) -> None:
    for path in paths.channel("training").iterdir():
        path.rename(path.with_name(f".{path.name}"))


def empty_channel(paths: MlPaths) -> None:
    for path in paths.channel("training").iterdir():
        path.unlink()


def repeat_labels(paths: MlPaths) -> None:
    path = paths.channel("training") / "train-labels-idx1-ubyte.gz"
    path.with_name("more-labels-idx1-ubyte").write_bytes(gzip.decompress(path.read_bytes()))


IMAGES, LABELS = "train-images-idx3", "train-labels-idx1"
# By the row of the table of faults.
BAD_DATA: dict[str, dict[str, tuple[Callable[[MlPaths], None], str]]] = {
    "t1": {
        "no channel": (remove_channel, "channel 'training' is missing; channels found: testing, train"),
        "only hidden files": (hide_files, "channel 'training' has no file like *images*idx3*; found: nothing"),
        "two files of labels": (repeat_labels, "channel 'training' has more than one file like *labels*idx1*; found: more-"),
        "an empty channel": (empty_channel, "channel 'training' has no file like *images*idx3*; found: nothing"),
    },
    "t2": {
        "png": (spoil(IMAGES, replace(slice(0, 8), b"\x89PNG\r\n\x1a\n")), "BAD_MAGIC training/train-images-idx3-ubyte: starts with 89504e47; expected: 00000803"),
        "labels as images": (spoil(IMAGES, lambda _: idx(digit_like(8, 1)[1])), "BAD_MAGIC training/train-images-idx3-ubyte: starts with 00000801; expected: 00000803"),
        "little-endian": (spoil(IMAGES, replace(slice(0, 4), b"\x03\x08\0\0")), "BAD_MAGIC training/train-images-idx3-ubyte: starts with 03080000"),
        "gzip without .gz": (spoil(IMAGES, gzip.compress), "BAD_MAGIC training/train-images-idx3-ubyte: starts with 1f8b"),
        "images as labels": (spoil(LABELS, lambda _: idx(digit_like(8, 1)[0])), "BAD_MAGIC training/train-labels-idx1-ubyte: starts with 00000803; expected: 00000801"),
    },
    "t3": {
        "empty": (spoil(IMAGES, lambda _: b""), "TRUNCATED_HEADER training/train-images-idx3-ubyte: 0 bytes; the header has 16"),
        "half a header": (spoil(LABELS, lambda raw: raw[:6]), "TRUNCATED_HEADER training/train-labels-idx1-ubyte: 6 bytes; the header has 8"),
    },
    "t4": {
        "one pixel less": (spoil(IMAGES, lambda raw: raw[:-1]), "SIZE_MISMATCH training/train-images-idx3-ubyte: the header says 256 × 28 × 28 = 200,704 bytes; 200,703 follow"),
        "one pixel more": (spoil(IMAGES, lambda raw: raw + b"\0"), "SIZE_MISMATCH training/train-images-idx3-ubyte: the header says 256 × 28 × 28 = 200,704 bytes; 200,705 or more follow"),
        "three terabytes": (spoil(IMAGES, replace(slice(4, 8), b"\xff" * 4)), "SIZE_MISMATCH training/train-images-idx3-ubyte: the header says 4294967295 × 28 × 28"),
        "nothing inside": (spoil(LABELS, lambda _: idx(np.zeros(0, np.uint8))), "SIZE_MISMATCH training/train-labels-idx1-ubyte: the header says 0 = 0 bytes"),
        "28×27": (spoil(IMAGES, lambda _: idx(digit_like(256, 1)[0][:, :, :27])), "IMAGE_SIZE channel 'training': images of 28×27 pixels; allowed: 28×28"),
        "four billion rows": (spoil(IMAGES, replace(slice(8, 12), b"\xff" * 4)), "SIZE_MISMATCH training/train-images-idx3-ubyte: the header says 256 × 4294967295 × 28"),
    },
    "t5": {
        "truncated gzip": (spoil_gzip(lambda raw: raw[: len(raw) // 2]), "CORRUPT_GZIP training/train-images-idx3-ubyte.gz: "),
        "wrong crc": (spoil_gzip(lambda raw: raw[:-8] + bytes(4) + raw[-4:]), "CORRUPT_GZIP training/train-images-idx3-ubyte.gz: CRC"),
        "bit flip": (spoil_gzip(lambda raw: raw[:5000] + bytes([raw[5000] ^ 255]) * 9 + raw[5009:]), "CORRUPT_GZIP training/train-images-idx3-ubyte.gz: "),
        "not gzip": (spoil_gzip(gzip.decompress), "CORRUPT_GZIP training/train-images-idx3-ubyte.gz: Not a gzipped file"),
        "junk behind it": (spoil_gzip(lambda raw: raw + b"junk"), "CORRUPT_GZIP training/train-images-idx3-ubyte.gz: Not a gzipped file"),
    },
    "t8": {
        "label 10": (spoil(LABELS, replace(slice(11, 12), b"\x0a")), "LABEL_RANGE channel 'training': label 10 at index 3; allowed: 0 to 9"),
        "one label less": (spoil(LABELS, lambda _: idx(digit_like(255, 1)[1])), "COUNT_MISMATCH channel 'training': 256 images, but 255 labels"),
        "one class": (spoil(LABELS, lambda _: idx(np.full(256, 7, np.uint8))), "ONE_CLASS channel 'training': every label is 7"),
        "label 255": (spoil(LABELS, replace(slice(8, 9), b"\xff")), "LABEL_RANGE channel 'training': label 255 at index 0; allowed: 0 to 9"),
    },
    "t9": {
        "float32": (spoil(IMAGES, replace(slice(2, 3), b"\x0d")), "BAD_DTYPE training/train-images-idx3-ubyte: holds float32; allowed: unsigned bytes"),
        "int16": (spoil(IMAGES, replace(slice(2, 3), b"\x0b")), "BAD_DTYPE training/train-images-idx3-ubyte: holds int16; allowed: unsigned bytes"),
    },
}  # fmt: skip


def bad_data(row: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("spoil_it", "cause"), BAD_DATA[row].values(), ids=BAD_DATA[row].keys())


def assert_refused(paths: MlPaths, spoil_it: Callable[[MlPaths], None], cause: str) -> None:
    spoil_it(paths)
    assert mnist.main() == 1
    assert failure(paths).startswith(cause)


@bad_data("t1")
def test_t1_a_channel_that_is_missing_or_lacks_its_files_says_what_was_found(
    paths: MlPaths, spoil_it: Callable[[MlPaths], None], cause: str
) -> None:
    assert_refused(paths, spoil_it, cause)


@bad_data("t2")
def test_t2_a_file_of_another_kind_is_refused_by_its_first_bytes(
    paths: MlPaths, spoil_it: Callable[[MlPaths], None], cause: str
) -> None:
    assert_refused(paths, spoil_it, cause)


@bad_data("t3")
def test_t3_a_header_that_is_cut_off_is_refused_with_its_length(
    paths: MlPaths, spoil_it: Callable[[MlPaths], None], cause: str
) -> None:
    assert_refused(paths, spoil_it, cause)


@bad_data("t4")
def test_t4_sizes_that_are_not_those_of_the_data_are_refused_with_both(
    paths: MlPaths, spoil_it: Callable[[MlPaths], None], cause: str
) -> None:
    assert_refused(paths, spoil_it, cause)


@bad_data("t5")
def test_t5_a_damaged_gzip_file_is_refused_by_its_name(
    paths: MlPaths, spoil_it: Callable[[MlPaths], None], cause: str
) -> None:
    assert_refused(paths, spoil_it, cause)


@bad_data("t8")
def test_t8_labels_that_do_not_belong_to_the_images_are_refused(
    paths: MlPaths, spoil_it: Callable[[MlPaths], None], cause: str
) -> None:
    assert_refused(paths, spoil_it, cause)


@bad_data("t9")
def test_t9_values_of_another_type_are_refused(paths: MlPaths, spoil_it: Callable[[MlPaths], None], cause: str) -> None:
    assert_refused(paths, spoil_it, cause)


def test_t8_t9_an_absent_class_and_blank_images_are_said_and_allowed(
    paths: MlPaths, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(LABELS, lambda _: idx((np.arange(256) % 9).astype(np.uint8)))(paths)
    spoil(IMAGES, lambda _: idx(np.full((256, 28, 28), 5, np.uint8)))(paths)
    paths.hyperparameters.write_text(json.dumps({"batch_size": "65536"}))  # stops the job after it has read the data
    assert mnist.main() == 2
    log = capsys.readouterr().out
    assert "warning: channel 'training' has no image of 9\n" in log
    assert "warning: channel 'training': every pixel of every image is 5\n" in log


# Bad hyperparameters and job files.

BAD_HYPERPARAMETERS = {
    '{"epoch": "1"}': "hyperparameter 'epoch' is unknown; allowed: epochs, batch_size, lr, weight_decay, seed, early_stop_patience, checkpoint_steps, shift, dropout, frozen_share",
    '{"epochs": "0"}': "hyperparameter epochs: found '0'; allowed: a whole number from 1 to 1,000",
    '{"epochs": "1000000000"}': "hyperparameter epochs: found '1000000000'",
    '{"epochs": "1.5"}': "hyperparameter epochs: found '1.5'",
    '{"epochs": ""}': "hyperparameter epochs: found ''",
    '{"epochs": "null"}': "hyperparameter epochs: found 'null'",
    '{"epochs": "1_0"}': "hyperparameter epochs: found '1_0'",
    '{"early_stop_patience": "-1"}': "hyperparameter early_stop_patience: found '-1'; allowed: a whole number from 0 to 1,000",
    '{"checkpoint_steps": "0"}': "hyperparameter checkpoint_steps: found '0'; allowed: a whole number from 1 to 1,000,000,000",
    '{"lr": "abc"}': "hyperparameter lr: found 'abc'; allowed: a number from 1e-06 to 1.0",
    '{"lr": "0"}': "hyperparameter lr: found '0'",
    '{"lr": "-1"}': "hyperparameter lr: found '-1'",
    '{"lr": "nan"}': "hyperparameter lr: found 'nan'",
    '{"lr": "1e999"}': "hyperparameter lr: found '1e999'",
    '{"batch_size": "257"}': "hyperparameter batch_size: found '257'; allowed: 1 to 256, the images to train on",
    '{"epochs": 1}': "hyperparameters.json: epochs: found 1; allowed: text, as SageMaker writes it",
    "[]": "hyperparameters.json: found list; allowed: an object",
    "": "hyperparameters.json: not JSON: ",
}


@pytest.mark.parametrize("content", BAD_HYPERPARAMETERS)
def test_t11_a_bad_hyperparameter_is_refused_with_key_and_allowed_values(paths: MlPaths, content: str) -> None:
    paths.hyperparameters.write_text(content)
    assert mnist.main() == 2
    assert failure(paths).startswith(BAD_HYPERPARAMETERS[content])


def test_t11_decoded_values_of_the_toolkit_follow_the_same_rules(
    paths: MlPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(environment.SM_HPS, '{"epochs":true}')
    assert mnist.main() == 2
    assert failure(paths).startswith("hyperparameter epochs: found 'true'")


def test_t11_a_missing_hyperparameter_file_is_no_default(paths: MlPaths) -> None:
    paths.hyperparameters.unlink()
    assert mnist.main() == 2
    assert failure(paths).startswith(
        "hyperparameters.json: cannot be read (No such file or directory)\nSageMaker writes it"
    )


def test_an_unknown_model_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    job = run_executable(write_job(tmp_path, {}), FERRY_MODEL="../mnist")
    assert job.code == 2
    assert failure(job.paths).startswith("FERRY_MODEL is '../mnist'; allowed: ")
    assert "mnist" in failure(job.paths).splitlines()[0]


# What happens while it trains and exports.


class Linear(nn.Module):
    """A small network of another kind than mnist's, to run the job with."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layer(inputs)
        return outputs


class OtherwiseWhenExported(Linear):
    """Its export is not what it computes: what a control flow that the exporter cannot follow leads to."""

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = super().forward(inputs)
        return outputs * 1.01 if torch.onnx.is_in_onnx_export() else outputs


def trained(module: nn.Module) -> TrainedModel:
    inputs = np.random.default_rng(1).standard_normal((12, 5), np.float32)
    return torch_model(
        module,
        activation="logits",
        preprocessing=Preprocessing(1.0, (0.0,) * 5, (1.0,) * 5),
        labels=("red", "green", "blue"),
        response_key="colours",
        hyperparameters={},
        testing=Examples(inputs, np.arange(12) % 3),
    )


def test_the_job_and_the_export_know_no_model(paths: MlPaths) -> None:
    torch.manual_seed(1)
    assert run("colours", lambda job: trained(Linear())) == 0
    predictor = Predictor.load(paths.model)
    assert predictor.release_id.startswith("colours-")
    assert predictor.description.signature.labels == ("red", "green", "blue")
    assert predictor.description.training.dataset == "colours"
    assert predictor.description.source_revision == "unknown"
    assert len(predictor.description.signature.golden.inputs) == 3  # no more labels than that


def test_t19_a_model_whose_export_answers_differently_fails_the_job(paths: MlPaths) -> None:
    torch.manual_seed(1)
    assert run("colours", lambda job: trained(OtherwiseWhenExported())) == 1
    assert failure(paths).startswith("PARITY_FAILED ")


def test_t19_a_model_that_cannot_be_exported_fails_the_job(paths: MlPaths) -> None:
    class Undecidable(Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            return super().forward(inputs if inputs.sum() > 0 else -inputs)

    assert run("colours", lambda job: trained(Undecidable())) == 1
    assert failure(paths).startswith("EXPORT_FAILED ")


def test_t19_weights_that_are_no_numbers_fail_the_job(paths: MlPaths) -> None:
    module = Linear()
    nn.init.constant_(module.layer.bias, float("nan"))
    assert run("colours", lambda job: trained(module)) == 1
    assert failure(paths).startswith("NOT_FINITE the trained model gives NaN or infinity for 12 of 12 test inputs")


def test_a_failure_removes_what_an_earlier_job_left(paths: MlPaths) -> None:
    torch.manual_seed(1)
    assert run("colours", lambda job: trained(Linear())) == 0
    paths.channel("training").rename(paths.base / "elsewhere")
    assert mnist.main() == 1
    assert failure(paths).startswith("channel 'training' is missing")
    assert run("colours", lambda job: trained(Linear())) == 0
    assert not paths.failure.exists()


def test_an_unexpected_error_is_named_before_its_traceback(paths: MlPaths) -> None:
    def broken(job: Job) -> TrainedModel:
        raise KeyError("x" * 2000)

    assert run("colours", broken) == 1
    first, hint, *_ = failure(paths).splitlines()
    assert first.startswith("KeyError: 'xxx")
    assert hint.startswith("Not a known condition")


def test_t18_a_model_folder_that_cannot_be_written_fails_the_job(
    paths: MlPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    occupied = paths.base / "occupied"
    occupied.write_text("a file, where a folder is wanted")
    monkeypatch.setenv(environment.SM_MODEL_DIR, str(occupied / "model"))
    torch.manual_seed(1)
    assert run("colours", lambda job: trained(Linear())) == 1
    assert failure(paths).startswith(f"ARTIFACT {occupied}/model cannot be written: Not a directory\nGive the job ")


def test_t13_a_loss_that_is_no_number_stops_the_job_with_epoch_and_step(paths: MlPaths) -> None:
    def diverging(job: Job) -> TrainedModel:
        settings = mnist.Hyperparameters(batch_size=4)
        digits = Examples(np.full((8, 1, 28, 28), np.nan, np.float32), np.arange(8))
        mnist.fit(settings, digits, digits, choose_device(), job)
        raise AssertionError("it went on")

    assert run("mnist", diverging) == 1
    assert failure(paths).startswith("DIVERGED at epoch 1, step 1 of 2: the loss is nan")


def test_t14_sigterm_stops_the_job_at_the_next_step_without_an_artifact(tmp_path: Path) -> None:
    paths = write_job(tmp_path, {"epochs": "1000"})
    process = subprocess.Popen(
        [sys.executable, str(TRAIN)],
        env=os.environ | {environment.BASE_DIR: str(paths.base), "PYTHONPATH": str(ROOT), "FERRY_MODEL": "mnist"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    with process:
        for line in process.stdout:
            if line.startswith("metrics epoch=1 "):  # once: a second signal would meet Python's own handler at the exit
                process.send_signal(signal.SIGTERM)
    assert process.returncode == 143
    assert failure(paths).startswith("STOPPED by SIGTERM at epoch ")


def test_t14_sigterm_during_the_export_leaves_no_artifact_either(paths: MlPaths) -> None:
    class StopsWhenExported(Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            if torch.onnx.is_in_onnx_export():
                os.kill(os.getpid(), signal.SIGTERM)
            return super().forward(inputs)

    torch.manual_seed(1)
    assert run("colours", lambda job: trained(StopsWhenExported())) == 143
    assert failure(paths).startswith("STOPPED by SIGTERM during the export")


# The network.


def test_byte_dropout_drops_its_share_and_keeps_the_mean() -> None:
    torch.manual_seed(1)
    dropout = ByteDropout(0.25)
    values = torch.ones(1000, 1001)
    dropped = dropout(values)
    assert (dropped == 0).double().mean().item() == pytest.approx(0.25, abs=2e-3)
    assert dropped.double().mean().item() == pytest.approx(1.0, abs=3e-3)
    assert torch.equal(dropout.eval()(values), values)


def test_every_model_has_a_folder_with_its_entry_point() -> None:
    folders = {path.parent.name for path in Path(training_job.__file__).parent.glob("*/__init__.py")}
    entry_points = {path.parent.name for path in Path(training_job.__file__).parent.glob("*/train.py")}
    assert folders == entry_points
