"""The second model: a scikit-learn pipeline on CSV channels, through the same job, export, release check and core."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import sklearn
from sklearn.calibration import CalibratedClassifierCV
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LogisticRegression, Perceptron, SGDClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.tree import DecisionTreeClassifier

from ferry.model_check import check_model
from ferry.model_probe import probe_model
from infra.aws.source_bundle import source_bundle
from infra.settings import ROOT
from model_code import environment
from model_code.environment import MlPaths
from model_code.inference.contract import Preprocessing, Request, parse_model_json
from model_code.inference.predictor import PROBABILITY_TOLERANCE, Predictor
from model_code.inference.respond import respond
from model_code.training.export import Provenance, export_model
from model_code.training.iris import train as iris
from model_code.training.iris.data import FEATURES, LABELS, read_channel
from model_code.training.job import Job, run
from model_code.training.sklearn_export import sklearn_model
from model_code.training.trained import TrainedModel
from tests.table_files import SPECIES, flowers, write_table_job

TRAIN = ROOT / "model_code" / "container" / "train"
SECONDS = 120


def run_executable(paths: MlPaths, *options: str) -> subprocess.CompletedProcess[str]:
    """The image's own entry point, in a process of its own."""
    variables = {environment.BASE_DIR: str(paths.base), environment.MODEL_NAME: "iris", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *options, str(TRAIN)],
        env=os.environ | variables,
        cwd=paths.base,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[MlPaths, str]:
    paths = write_table_job(tmp_path_factory.mktemp("job"), {"c": "10"})
    answer = run_executable(paths, "-X", "importtime")
    assert answer.returncode == 0, answer.stdout
    return paths, answer.stdout


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlPaths:
    """A job that would succeed, for this process: a test spoils one thing."""
    monkeypatch.setenv(environment.BASE_DIR, str(tmp_path))
    return write_table_job(tmp_path, {})


def failure(paths: MlPaths) -> str:
    assert list(paths.model.iterdir()) == []
    return paths.failure.read_text(encoding="utf-8")


# What a job leaves.


def test_a_job_leaves_a_model_with_named_labels(finished: tuple[MlPaths, str]) -> None:
    paths, _ = finished
    assert sorted(path.name for path in paths.model.iterdir()) == [environment.SIGNATURE_FILE, environment.MODEL_FILE]
    description = parse_model_json((paths.model / environment.SIGNATURE_FILE).read_bytes())
    assert description.model == "iris"
    assert description.signature.labels == SPECIES
    assert description.signature.response_key == "species"
    assert description.signature.input.shape == (None, 4)
    assert description.training.hyperparameters == {"c": 10.0, "max_iter": 200}
    assert description.framework_versions["scikit-learn"] == sklearn.__version__
    assert description.metrics["accuracy"] > 0.9


def test_it_trains_without_torch(finished: tuple[MlPaths, str]) -> None:
    _, log = finished
    assert "sklearn" in log
    assert not re.search(r"\| +torch$", log, re.MULTILINE)


def test_every_metric_definition_reads_its_number_from_the_log(finished: tuple[MlPaths, str]) -> None:
    paths, log = finished
    read = {name: re.findall(regex, log) for name, regex in environment.METRIC_DEFINITIONS}
    assert {name: len(values) for name, values in read.items()} == dict.fromkeys(read, 1)
    metrics = parse_model_json((paths.model / environment.SIGNATURE_FILE).read_bytes()).metrics
    assert float(read["test:accuracy"][0]) == pytest.approx(metrics["accuracy"], abs=1e-4)
    assert float(read["test:loss"][0]) == pytest.approx(metrics["loss"], abs=1e-4)


def test_serving_answers_as_the_pipeline_did(finished: tuple[MlPaths, str]) -> None:
    paths, _ = finished
    predictor = Predictor.load(paths.model)
    recorded = np.load(paths.test_outputs, allow_pickle=False)
    testing = read_channel(paths.channel("testing"), "testing")
    assert np.abs(predictor.probabilities(predictor.run(testing.inputs)) - recorded).max() <= PROBABILITY_TOLERANCE
    rows = "".join(line.partition(",")[2] + "\n" for line in flowers(30, seed=30).splitlines())
    answer = respond(predictor, Request(rows.encode(), "text/csv", None, "request-1"))
    assert json.loads(answer.body) == {"species": [SPECIES[index] for index in recorded.argmax(axis=1)]}


def test_the_same_rows_give_the_same_file(finished: tuple[MlPaths, str], paths: MlPaths) -> None:
    paths.hyperparameters.write_text('{"c": "10"}')
    assert iris.main() == 0
    first, second = ((each.model / environment.MODEL_FILE).read_bytes() for each in (finished[0], paths))
    assert first == second


def test_the_release_check_accepts_the_artifact(finished: tuple[MlPaths, str]) -> None:
    probe_model(finished[0].model, "s3://bucket/model.tar.gz")


@pytest.mark.slow
def test_awss_toolkit_runs_it_from_the_uploaded_archive(finished: tuple[MlPaths, str], tmp_path: Path) -> None:
    archive = tmp_path / "sourcedir.tar.gz"
    archive.write_bytes(source_bundle(ROOT).archive)
    program = {"sagemaker_program": "model_code/training/iris/train.py", "sagemaker_submit_directory": str(archive)}
    paths = write_table_job(tmp_path, {key: json.dumps(value) for key, value in {"c": 10, **program}.items()})
    answer = subprocess.run(
        [sys.executable, "-m", "sagemaker_training.cli.train"],
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        | {environment.BASE_DIR: str(tmp_path), "PIP_NO_INDEX": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    first, second = ((each.model / environment.MODEL_FILE).read_bytes() for each in (finished[0], paths))
    assert first == second


# Other classifiers of scikit-learn.


CLASSIFIERS = {
    "logistic regression alone": lambda: LogisticRegression(),
    "scaled to a range": lambda: make_pipeline(MinMaxScaler(), LogisticRegression()),
    "stochastic gradient": lambda: make_pipeline(StandardScaler(), SGDClassifier(loss="log_loss", random_state=0)),
    "calibrated": lambda: make_pipeline(StandardScaler(), CalibratedClassifierCV(LogisticRegression(), cv=2)),
    "quadratic discriminant": lambda: make_pipeline(StandardScaler(), QuadraticDiscriminantAnalysis()),
    "naive Bayes": lambda: make_pipeline(StandardScaler(), GaussianNB()),
    "neural network": lambda: make_pipeline(StandardScaler(), MLPClassifier((8,), max_iter=2000, random_state=0)),
    "decision tree": lambda: DecisionTreeClassifier(random_state=0),
    "forest": lambda: ExtraTreesClassifier(5, random_state=0),
}


def exported(make: Callable[[], object], paths: MlPaths, folder: Path) -> TrainedModel:
    training = read_channel(paths.channel("training"), "training")
    classifier = make()
    classifier.fit(training.inputs, training.labels)  # type: ignore[attr-defined]
    trained = sklearn_model(
        classifier,
        preprocessing=Preprocessing(1.0, (0.0,) * 4, (1.0,) * 4),
        labels=LABELS,
        response_key="species",
        hyperparameters={},
        testing=read_channel(paths.channel("testing"), "testing"),
    )
    export_model(trained, Provenance("iris", "flowers", "2026-01-02T03:04:05Z", "unknown"), folder)
    return trained


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_other_classifiers_export_with_parity_and_pass_the_release_check(paths: MlPaths, name: str) -> None:
    exported(CLASSIFIERS[name], paths, paths.model)
    raw = (paths.model / environment.MODEL_FILE).read_bytes()
    check_model(raw, name)
    model = onnx.load_model_from_string(raw)
    assert [output.name for output in model.graph.output] == ["output_0"]
    assert len({entry.domain for entry in model.opset_import}) == len(model.opset_import)


def test_a_classifier_without_probabilities_fails_the_job_with_its_reason(paths: MlPaths) -> None:
    assert run("iris", lambda job: exported(Perceptron, paths, paths.model)) == 1
    assert failure(paths).startswith("AttributeError: ")


# Bad data, hyperparameters, signals.


def spoil(change: Callable[[bytes], bytes], channel: str = "training") -> Callable[[MlPaths], None]:
    def apply(paths: MlPaths) -> None:
        path = paths.channel(channel) / "flowers.csv"
        path.write_bytes(change(path.read_bytes()))

    return apply


def line_3(text: bytes) -> Callable[[MlPaths], None]:
    return spoil(lambda raw: b"\n".join([*raw.split(b"\n")[:2], text, *raw.split(b"\n")[3:]]))


def remove_channel(paths: MlPaths) -> None:
    paths.channel("training").rename(paths.base / "input" / "data" / "train")


def rename_file(paths: MlPaths) -> None:
    (paths.channel("training") / "flowers.csv").rename(paths.channel("training") / "flowers.parquet")


HEADER = b"species,sepal length,sepal width,petal length,petal width\n"
BAD_DATA = {
    "no channel": (remove_channel, "channel 'training' is missing; channels found: testing, train"),
    "no CSV file": (rename_file, "channel 'training' has no file like *.csv; found: flowers.parquet"),
    "empty": (spoil(lambda _: b""), "NO_ROWS channel 'training': its files are empty"),
    "a header": (spoil(lambda raw: HEADER + raw), "BAD_LABEL training/flowers.csv, line 1: found 'species'; allowed: setosa, versicolor, virginica"),
    "an unknown label": (line_3(b"Setosa,5,3,1,0"), "BAD_LABEL training/flowers.csv, line 3: found 'Setosa'; allowed: setosa, "),
    "the label last": (line_3(b"5,3,1,0,setosa"), "BAD_LABEL training/flowers.csv, line 3: found '5'"),
    "a quoted label": (line_3(b'"setosa",5,3,1,0'), "BAD_LABEL training/flowers.csv, line 3: found '\"setosa\"'"),
    "a blank line": (line_3(b""), "BAD_LABEL training/flowers.csv, line 3: found ''"),
    "a column less": (line_3(b"setosa,5,3,1"), "COLUMN_COUNT training/flowers.csv, line 3: found 4 columns; allowed: 5, the label and 4 numbers"),
    "decimal commas": (line_3(b"setosa,5,1,3,5,1,4,0,2"), "COLUMN_COUNT training/flowers.csv, line 3: found 9 columns"),
    "text": (line_3(b"setosa,5,three,1,0"), "NOT_A_NUMBER training/flowers.csv, line 3, sepal width: found 'three'; allowed: a finite number"),
    "nothing": (line_3(b"setosa,5,,1,0"), "NOT_A_NUMBER training/flowers.csv, line 3, sepal width: found ''"),
    "a space": (line_3(b"setosa, 5,3,1,0"), "NOT_A_NUMBER training/flowers.csv, line 3, sepal length: found ' 5'"),
    "nan": (line_3(b"setosa,nan,3,1,0"), "NOT_A_NUMBER training/flowers.csv, line 3, sepal length: found 'nan'"),
    "an underscore": (line_3(b"setosa,1_0,3,1,0"), "NOT_A_NUMBER training/flowers.csv, line 3, sepal length: found '1_0'"),
    "1e39": (line_3(b"setosa,5,3,1,1e39"), "OUT_OF_RANGE training/flowers.csv, line 3, petal width: found '1e39'; allowed: what float32 holds"),
    "1e400": (line_3(b"setosa,5,3,1,1e400"), "OUT_OF_RANGE training/flowers.csv, line 3, petal width: found '1e400'"),
    "latin-1": (line_3(b"set\xf6sa,5,3,1,0"), "NOT_UTF8 training/flowers.csv: byte "),
    "a byte order mark": (spoil(lambda raw: b"\xef\xbb\xbf" + raw), "BYTE_ORDER_MARK training/flowers.csv: starts with one"),
    "one class": (spoil(lambda raw: raw.splitlines()[0] + b"\n"), "ONE_CLASS channel 'training': every label is 'setosa'"),
    "a class absent": (spoil(lambda raw: b"".join(line for line in raw.splitlines(True) if not line.startswith(b"virginica"))), "CLASS_ABSENT the training channel has no example of virginica"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_rows_fail_the_job_with_file_line_and_column(paths: MlPaths, name: str) -> None:
    spoil_it, cause = BAD_DATA[name]
    spoil_it(paths)
    assert iris.main() == 1
    assert failure(paths).startswith(cause)


def test_a_class_that_only_the_testing_channel_lacks_is_said_and_allowed(
    paths: MlPaths, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(lambda raw: b"".join(line for line in raw.splitlines(True) if line[:3] != b"set"), "testing")(paths)
    assert iris.main() == 0
    assert "warning: channel 'testing' has no row of setosa\n" in capsys.readouterr().out


def test_several_files_and_windows_line_ends_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_bytes(b"virginica,5,3,5,2\r\n")
    (tmp_path / "a.csv").write_bytes(b"setosa,1,2,3,4\r\nsetosa,5,3,1,0")
    examples = read_channel(tmp_path, "training")
    assert examples.labels.tolist() == [0, 0, 2]
    assert examples.inputs.tolist() == [[1, 2, 3, 4], [5, 3, 1, 0], [5, 3, 5, 2]]
    assert examples.inputs.dtype == np.float32
    assert len(FEATURES) == 4


BAD_HYPERPARAMETERS = {
    '{"epochs": "1"}': "hyperparameter 'epochs' is unknown; allowed: c, max_iter",
    '{"c": "0"}': "hyperparameter c: found '0'; allowed: a number from 0.0001 to ",
    '{"max_iter": "1.5"}': "hyperparameter max_iter: found '1.5'; allowed: a whole number",
}


@pytest.mark.parametrize("content", BAD_HYPERPARAMETERS)
def test_a_bad_hyperparameter_is_refused(paths: MlPaths, content: str) -> None:
    paths.hyperparameters.write_text(content)
    assert iris.main() == 2
    assert failure(paths).startswith(BAD_HYPERPARAMETERS[content])


def test_a_job_that_was_stopped_leaves_no_artifact(paths: MlPaths) -> None:
    def stopped(job: Job) -> TrainedModel:
        job.stop.set()
        return iris.train(job)

    assert run("iris", stopped) == 143
    assert failure(paths).startswith("STOPPED by SIGTERM before the fit")
