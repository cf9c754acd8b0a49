"""A model in 8-bit integers: what the job leaves, what it may cost, and who refuses what."""

import dataclasses
import functools
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper
from torch import Tensor, nn

from ferry.errors import Refused
from ferry.model_check import OPERATORS, ModelError, check_model
from ferry.model_probe import probe_model
from ferry.pipeline import Data, start_parameters
from infra.release import read_release
from infra.settings import ROOT, ModelSettings, Settings, SettingsError, load_settings
from model_code import environment
from model_code.environment import MlPaths
from model_code.inference.contract import Preprocessing, parse_model_json
from model_code.inference.errors import ModelInvalid
from model_code.inference.predictor import PROBABILITY_TOLERANCE, Predictor
from model_code.training.examples import Examples
from model_code.training.iris import train as iris
from model_code.training.job import run
from model_code.training.mnist import train as mnist
from model_code.training.mnist.data import read_channel
from model_code.training.quantise import CALIBRATION_EXAMPLES, calibration_sample, to_int8
from model_code.training.torch_export import torch_model
from model_code.training.trained import TrainedModel
from tests.idx_files import write_config, write_job
from tests.local_settings import write_settings
from tests.optimised_models import optimised
from tests.table_files import write_table_job

FLOAT_LAYERS = {"Conv", "FusedConv", "Gemm", "FusedGemm", "FusedMatMul", "MatMul"}


def images(count: int, seed: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, 1, 8, 8), np.float32)


class Residual(nn.Module):
    """A small ResNet: what it adds up is an integer, what it averages no more."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.last = nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.relu(torch.max_pool2d(self.first(inputs), 2))
        hidden = torch.relu(hidden + self.second(hidden))
        logits: Tensor = self.last(hidden.mean(dim=(2, 3)))
        return logits


class Tables(nn.Module):
    """A network for tables that scales its inputs itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(64, 16), nn.Linear(4, 4), nn.Linear(16, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.relu(self.first((torch.flatten(inputs, 1) - 0.1) / 0.9))
        hidden = self.second(torch.unflatten(hidden, 1, (4, 4)))
        logits: Tensor = self.last(torch.flatten(hidden, 1))
        return logits


class Sigmoid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 8), nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.last(torch.sigmoid(self.first(torch.flatten(inputs, 1))))
        return logits


@functools.cache
def network(kind: Callable[[], nn.Module]) -> TrainedModel:
    """A network with seeded weights, whose testing channel has its own answers for labels; it is exported once."""
    torch.manual_seed(1)
    return trained(kind().eval(), images(100))


def trained(module: nn.Module, inputs: NDArray[np.float32]) -> TrainedModel:
    made = torch_model(
        module,
        activation="logits",
        preprocessing=Preprocessing(1.0, (0.0,), (1.0,)),
        labels=("red", "green", "blue"),
        response_key="colours",
        hyperparameters={},
        testing=Examples(inputs, np.zeros(len(inputs), np.int64)),
        training=Examples(inputs, np.zeros(len(inputs), np.int64)),
    )
    raw = made.to_onnx().SerializeToString()
    answers = made.outputs(inputs).argmax(axis=1).astype(np.int64)
    return dataclasses.replace(
        made, to_onnx=lambda: onnx.load_model_from_string(raw), testing=Examples(inputs, answers)
    )


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a job of this process that is to leave an int8 model."""
    monkeypatch.setenv(environment.BASE_DIR, str(tmp_path))
    monkeypatch.setenv(environment.QUANTIZE, "int8")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "torch"))
    return tmp_path


@pytest.fixture
def paths(base: Path) -> MlPaths:
    """A job that needs no channel."""
    paths = MlPaths(base)
    write_config(paths, {}, {})
    return paths


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> MlPaths:
    """The artifact of a finished job, quantised."""
    paths = write_job(tmp_path_factory.mktemp("digits"), {"epochs": "1", "batch_size": "32"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(environment.BASE_DIR, str(paths.base))
        patch.setenv(environment.QUANTIZE, "int8")
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(paths.base / "torch"))
        assert mnist.main() == 0
    return paths


# What the job leaves.


def test_the_metrics_are_the_released_files_own_with_the_float32_ones_beside_them(digits: MlPaths) -> None:
    metrics = parse_model_json((digits.model / environment.SIGNATURE_FILE).read_bytes()).metrics
    assert set(metrics) == {"accuracy", "loss", "accuracy_float32", "accuracy_difference"}
    assert metrics["accuracy"] - metrics["accuracy_float32"] == metrics["accuracy_difference"]


def test_every_answer_and_golden_output_is_the_released_files_own(digits: MlPaths) -> None:
    predictor = Predictor.load(digits.model)
    testing = read_channel(digits.channel("testing"), "testing")
    recorded = np.load(digits.test_outputs, allow_pickle=False)
    answers = np.concatenate([predictor.run(testing.inputs[[index]]) for index in range(60)])
    assert np.abs(np.exp(answers) - np.exp(recorded)).max() <= PROBABILITY_TOLERANCE
    assert np.array_equal(predictor.description.signature.golden.outputs, recorded[:4])


def test_the_release_check_takes_the_file_and_its_golden_answers(digits: MlPaths) -> None:
    check_model((digits.model / environment.MODEL_FILE).read_bytes(), "here")
    probe_model(digits.model, "here")


def test_the_file_is_a_quarter_of_the_weights_and_says_nothing_about_the_machine(digits: MlPaths) -> None:
    raw = (digits.model / environment.MODEL_FILE).read_bytes()
    assert len(raw) < 1.05 * 1_199_882  # a byte for each parameter
    model = onnx.load_model_from_string(raw)
    assert {node.op_type for node in model.graph.node} <= OPERATORS
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    assert not model.metadata_props
    for place in (str(digits.base), str(ROOT), "ferry-quantise"):
        assert place.encode() not in raw


def test_a_changed_scale_fails_the_golden_answers(digits: MlPaths, tmp_path: Path) -> None:
    model = onnx.load(digits.model / environment.MODEL_FILE)
    (scale,) = (tensor for tensor in model.graph.initializer if tensor.name == "fc2.weight_scale")
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) / 2, scale.name))
    raw = model.SerializeToString()
    document = json.loads((digits.model / environment.SIGNATURE_FILE).read_bytes())
    document["onnx"] |= {"sha256": hashlib.sha256(raw).hexdigest(), "size": len(raw)}
    (tmp_path / environment.MODEL_FILE).write_bytes(raw)
    (tmp_path / environment.SIGNATURE_FILE).write_text(json.dumps(document))
    with pytest.raises(ModelInvalid, match="golden probability is off by"):
        Predictor.load(tmp_path)


# What becomes int8.


def int8(kind: Callable[[], nn.Module]) -> tuple[ModelProto, str]:
    return to_int8(network(kind).to_onnx(), images(64, seed=2))


@pytest.mark.parametrize(
    ("kind", "extent", "floats", "integers"),
    [
        (Residual, "2 of 3 convolutions and matrix products", 1, {"QLinearConv": 2, "QLinearAdd": 1, "NhwcMaxPool": 1}),
        (Tables, "3 of 3 convolutions and matrix products", 0, {"QGemm": 2, "QLinearMatMul": 1}),
    ],
    ids=["residual", "tables"],
)
def test_onnx_runtime_computes_in_integers_what_was_quantised(
    tmp_path: Path, kind: Callable[[], nn.Module], extent: str, floats: int, integers: dict[str, int]
) -> None:
    model, said = int8(kind)
    assert said == extent
    computed = optimised(model, tmp_path)
    assert len([name for name in computed if name in FLOAT_LAYERS]) == floats
    assert {name: computed.count(name) for name in integers} == integers
    check_model(model.SerializeToString(), "here")


def test_onnx_runtime_moves_nothing_for_neighbours_that_are_computed_at_once(tmp_path: Path) -> None:
    """The channels of its int8 convolutions come last, so that these lie where they belong."""
    computed = optimised(int8(Residual)[0], tmp_path)
    first = computed.index("QLinearConv")
    assert computed[first : first + 3] == ["QLinearConv", "Reshape", "NhwcMaxPool"]


def test_the_same_weights_and_examples_give_the_same_bytes() -> None:
    files = [int8(Residual)[0].SerializeToString(deterministic=True) for _ in range(2)]
    assert files[0] == files[1]


def test_two_products_fit_into_16_bits_so_that_no_processor_saturates() -> None:
    """255 is the largest activation; the CPUs without VNNI add two products before they widen the sum."""
    for kind in (Residual, Tables):
        weights = [numpy_helper.to_array(tensor) for tensor in int8(kind)[0].graph.initializer]
        largest = [int(np.abs(each.astype(np.int32)).max()) for each in weights if each.dtype == np.int8]
        assert len(largest) > 1
        assert 2 * 255 * max(largest) <= np.iinfo(np.int16).max


def test_every_output_channel_of_a_weight_has_its_own_scale() -> None:
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in int8(Residual)[0].graph.initializer}
    assert tensors["second.0.weight_scale"].shape == (8,)
    # Two of its outputs are computed at once, with the same weights.
    assert np.array_equal(
        tensors["first.0.weight_scale_Conv_0"], np.tile(tensors["first.0.weight_scale_Conv_0"][:8], 2)
    )


def test_the_layer_after_a_rounding_that_differs_between_processors_stays_as_it_is(tmp_path: Path) -> None:
    """An exponential is such a one; the averages of the residual network above are another."""
    model, said = int8(Sigmoid)
    assert said == "1 of 2 convolutions and matrix products"
    assert [name for name in optimised(model, tmp_path) if name in FLOAT_LAYERS] == ["Gemm"]


def test_the_sample_is_the_same_at_every_call_and_of_the_whole_channel() -> None:
    inputs = np.arange(60_000, dtype=np.float32).reshape(-1, 1)
    sample = calibration_sample(inputs)
    assert sample.shape == (CALIBRATION_EXAMPLES, 1)
    assert np.array_equal(sample, calibration_sample(inputs))
    assert len(np.unique(sample)) == CALIBRATION_EXAMPLES
    assert sample.min() < 1000
    assert sample.max() > 59_000
    assert np.array_equal(calibration_sample(inputs[:7]), inputs[:7])


# What is refused.


def failure(paths: MlPaths) -> str:
    assert not list(paths.model.rglob("*"))
    assert not paths.test_outputs.exists()
    return paths.failure.read_text()


def test_the_job_says_how_much_is_int8_and_what_it_cost(paths: MlPaths, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("colours", lambda job: network(Tables)) == 0
    metrics = parse_model_json((paths.model / environment.SIGNATURE_FILE).read_bytes()).metrics
    accuracy = f"accuracy {metrics['accuracy']:.4f}, in float32 {metrics['accuracy_float32']:.4f}; "
    assert f"int8 in 3 of 3 convolutions and matrix products; {accuracy}" in capsys.readouterr().out


def test_a_network_that_int8_makes_worse_fails_the_job_with_both_numbers(paths: MlPaths) -> None:
    """One input is so much larger than the others that they all fall into one of its 256 steps."""
    torch.manual_seed(1)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    nn.init.zeros_(module[1].weight[:, 0])  # type: ignore[index]
    inputs = images(100)
    inputs[:, 0, 0, 0] *= 10_000
    assert run("colours", lambda job: trained(module.eval(), inputs)) == 1
    said = failure(paths)
    assert re.match(r"QUANTIZE_COST int8: \d\d of 100 test inputs right, float32: 100; that is \d\d\.00% lost, ", said)
    assert 'allowed: 0.10%, 0\nTake quantize = "int8" out of [model]' in said


@pytest.mark.parametrize(("lost", "code"), [(1, 0), (2, 1)])
def test_one_of_a_thousand_test_inputs_may_be_lost_and_not_two(paths: MlPaths, lost: int, code: int) -> None:
    inputs, made = images(1000, seed=3), network(Tables)
    assert made.calibration is not None
    model, _ = to_int8(made.to_onnx(), made.calibration)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    whole = made.outputs(inputs).argmax(axis=1)
    quantised = session.run(None, {"input_0": inputs})[0].argmax(axis=1)
    differ = np.flatnonzero(quantised != whole)
    labels = np.where(quantised == whole, whole, 3 - quantised - whole)  # where they differ, both are wrong
    labels[differ[:lost]] = whole[differ[:lost]]
    assert len(differ) >= lost
    testing = Examples(inputs, labels.astype(np.int64))
    assert run("colours", lambda job: dataclasses.replace(made, testing=testing)) == code
    if code:
        assert "; that is 0.20% lost, and 0 NaN or infinity; " in failure(paths)


def test_a_network_without_a_layer_to_quantise_fails_the_job(paths: MlPaths) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Sigmoid(), nn.Linear(64, 3)).eval()
    assert run("colours", lambda job: trained(module, images(100))) == 1
    assert failure(paths).startswith("QUANTIZE_NOTHING of 1 convolutions and matrix products none ")


def test_a_model_of_scikit_learn_is_refused_as_configuration(base: Path) -> None:
    write_table_job(base, {})
    assert iris.main() == 2
    said = failure(MlPaths(base))
    assert said.startswith("FERRY_QUANTIZE is 'int8' and the model has no examples to quantise with; allowed: none\n")
    assert "scikit-learn gains nothing by it" in said


def test_an_unknown_quantisation_is_refused_before_the_training(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_job(base, {})
    monkeypatch.setenv(environment.QUANTIZE, "int4")
    assert run("colours", lambda job: pytest.fail("it trained")) == 2
    assert failure(MlPaths(base)).startswith("FERRY_QUANTIZE: found 'int4'; allowed: none, int8\n")


def test_the_release_check_still_refuses_what_the_export_does_not_write() -> None:
    model, _ = int8(Tables)
    model.graph.node[0].op_type = "DynamicQuantizeLinear"
    with pytest.raises(ModelError, match="DynamicQuantizeLinear"):
        check_model(model.SerializeToString(), "here")


# From the settings to the job.


def quantised(path: Path) -> Path:
    text = path.read_text()
    path.write_text(text.replace('dataset = "mnist"\n', 'dataset = "mnist"\nquantize = "int8"\n'))
    return path


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(str(quantised(write_settings(tmp_path))))


def test_the_settings_take_what_the_job_takes(tmp_path: Path, settings: Settings) -> None:
    assert settings.model.quantize == "int8"
    assert load_settings(str(write_settings(tmp_path, name="other"))).model.quantize == "none"
    assert get_args(ModelSettings.model_fields["quantize"].annotation) == environment.QUANTIZATIONS
    path = tmp_path / "trial.toml"
    path.write_text(path.read_text().replace('"int8"', '"int4"'))
    with pytest.raises(SettingsError, match=r"model.quantize: found 'int4'; .*'none' or 'int8'"):
        load_settings(str(path))


def started(settings: Settings, declared: list[str], **given: str) -> dict[str, str]:
    definition = {"Parameters": [{"Name": name} for name in declared]}
    return start_parameters(settings, definition, Data("mnist", "0" * 64), given)


def test_an_execution_is_told_what_the_settings_say_and_whoever_starts_it_may_say_otherwise(settings: Settings) -> None:
    declared = ["Dataset", "Gate", "Epochs", "Quantize"]
    assert started(settings, declared)["Quantize"] == "int8"
    assert started(settings, declared, Quantize="none")["Quantize"] == "none"


def test_a_pipeline_that_was_deployed_before_is_not_started_without_it(tmp_path: Path, settings: Settings) -> None:
    declared = ["Dataset", "Gate", "Epochs"]
    with pytest.raises(Refused, match=r"model.quantize is 'int8' .* no parameter Quantize: deploy Training again"):
        started(settings, declared)
    assert "Quantize" not in started(load_settings(str(write_settings(tmp_path, name="other"))), declared)


@pytest.mark.slow
def test_the_same_int8_file_answers_alike_behind_both_doors(tmp_path: Path) -> None:
    """`ferry demo` and `ferry verify` of an environment whose settings say int8."""
    path, output = quantised(write_settings(tmp_path, name="small")), tmp_path / "demo"

    def ferry(*arguments: str) -> str:
        command = [str(Path(sys.executable).with_name("ferry")), "--env", str(path), *arguments]
        finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert finished.returncode == 0, finished.stdout + finished.stderr
        return finished.stdout

    try:
        assert "int8 in 4 of 4" in ferry("demo", "--data", "digits", "--keep", "--output", str(output))
        ferry("verify")
    finally:
        ferry("local", "down")
    report = json.loads((output / "report.json").read_bytes())
    assert len(set(report["accuracy"].values())) == 1
    assert report["parity"]["max_abs_diff"] <= PROBABILITY_TOLERANCE
    release = read_release(load_settings(str(path)).release_path)
    assert release.release_id == report["release_id"]
    assert release.onnx.size < 1.05 * 1_199_882
    assert release.metrics["accuracy"] == report["accuracy"]["sagemaker"]
    assert release.metrics["accuracy"] >= release.metrics["accuracy_float32"] - 0.001
