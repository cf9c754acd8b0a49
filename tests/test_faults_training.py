"""A training that is stopped, killed or starved at any moment: it ends with its reason, and leaves a whole model or none.

Jobs run in processes that are forked from one that has torch in it already, so that a dozen of them cost seconds.
"""

import math
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from infra.settings import ROOT
from model_code import environment
from model_code.environment import MlPaths
from model_code.inference.contract import Preprocessing
from model_code.inference.predictor import Predictor
from model_code.training.checkpoint import MAGIC, Checkpoints, unpack
from model_code.training.errors import BadConfiguration, BadData, Diverged
from model_code.training.evaluate import score
from model_code.training.hyperparameters import parse_hyperparameters
from model_code.training.job import Job, run
from model_code.training.launcher import Hosts, World
from model_code.training.mnist.data import read_channel
from model_code.training.torch_loop import LoopHyperparameters, Recipe, choose_device, fit
from model_code.training.trained import INPUT_NAME, OPSET, OUTPUT_NAME, TrainedModel
from tests import test_checkpoints as small
from tests.idx_files import write_channels, write_job
from tests.training_processes import SECONDS, TRAIN, checkpoints

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.test_faults_training", "torch._dynamo"])  # an optimizer's first step imports that
SETTINGS = LoopHyperparameters(epochs=60, batch_size=8, checkpoint_steps=20)  # of 6 steps each
NOBODY = 65534


@pytest.fixture(autouse=True)
def _caches_are_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "torch"))  # torch sets it for good where it is not


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


def first_line(paths: MlPaths) -> str:
    """The cause, after what is true of every failure file was checked."""
    text = paths.failure.read_text(encoding="utf-8")
    assert len(text) <= 1024
    cause = text.splitlines()[0]
    assert 0 < len(cause) <= 200
    return cause


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that another user reaches: pytest's own are closed, and every start of pytest closes them again."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


# Processes.


def colours(job: Job) -> TrainedModel:
    """Train the small network of the checkpoint tests; its noise comes from the loop's own generator."""

    def augment(inputs: Tensor, generator: torch.Generator) -> Tensor:
        return inputs + torch.randn(20, generator=generator)

    testing = small.examples(20, 2)
    recipe = Recipe(small.Classifier, "logits", augment)
    network = fit(recipe, SETTINGS, small.examples(45, 1), testing, choose_device(), job).eval()

    def outputs(inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.no_grad():
            found: NDArray[np.float32] = network(torch.from_numpy(inputs)).numpy()
        return found

    return TrainedModel(
        outputs=outputs,
        to_onnx=lambda: written_by_hand(network),
        framework="torch",
        framework_versions={"torch": torch.__version__},
        activation="logits",
        preprocessing=Preprocessing(1.0, (0.0,) * 20, (1.0,) * 20),
        labels=("red", "green", "blue", "black"),
        response_key="colours",
        hyperparameters={},
        testing=testing,
    )


def written_by_hand(network: torch.nn.Module) -> onnx.ModelProto:
    """torch's exporter would take longer than all the rest of the job."""
    weights = {name.replace(".", "_"): value.numpy() for name, value in network.state_dict().items()}
    first, second = (f"layers_{number}" for number in (0, 3))
    nodes = [
        onnx.helper.make_node("Gemm", [INPUT_NAME, f"{first}_weight", f"{first}_bias"], ["hidden"], transB=1),
        onnx.helper.make_node("Relu", ["hidden"], ["active"]),
        onnx.helper.make_node("Gemm", ["active", f"{second}_weight", f"{second}_bias"], [OUTPUT_NAME], transB=1),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "colours",
        [onnx.helper.make_tensor_value_info(INPUT_NAME, onnx.TensorProto.FLOAT, ["batch", 20])],
        [onnx.helper.make_tensor_value_info(OUTPUT_NAME, onnx.TensorProto.FLOAT, ["batch", 4])],
        [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=10)


def _in_this_process(base: Path) -> None:
    """Make a forked process a job's own: its folders, its log, one thread, no memory dump when it is killed."""
    os.environ[environment.BASE_DIR] = str(base)
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    log = os.open(base / "job.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(log, number)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")


def _run_colours(base: Path, largest_file: int | None) -> None:
    _in_this_process(base)

    def train(job: Job) -> TrainedModel:
        trained = colours(job)
        if largest_file is not None:  # answers as a full disk does
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))
        return trained

    sys.exit(run("colours", train))


def start_colours(base: Path, largest_file: int | None = None) -> ForkServerProcess:
    process = FORKS.Process(target=_run_colours, args=(base, largest_file))
    process.start()
    return process


def code_of(process: ForkServerProcess) -> int | None:
    process.join(SECONDS)
    return process.exitcode


# T1 to T3, T11 and T12 beyond what a SageMaker service would ever write.


def test_t1_a_channel_that_may_not_be_read_says_so(open_folder: Path) -> None:
    paths = MlPaths(open_folder)
    write_channels(paths)
    paths.channel("training").chmod(0)
    root = os.geteuid() == 0
    if root:  # whom no permission stops
        os.seteuid(NOBODY)
    try:
        with pytest.raises(BadData, match=r"^UNREADABLE channel 'training': Permission denied"):
            read_channel(paths.channel("training"), "training")
    finally:
        if root:
            os.seteuid(0)
        paths.channel("training").chmod(0o755)


def test_t2_a_file_whose_name_is_no_text_is_named_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_job(tmp_path, {})
    monkeypatch.setenv(environment.BASE_DIR, str(tmp_path))
    folder = os.fsencode(paths.channel("training"))
    os.rename(folder + b"/train-images-idx3-ubyte.gz", folder + b"/images-idx3-\xff\n")
    code = run("digits", lambda job: read_channel(job.channel("training"), "training"))  # type: ignore[arg-type, return-value]
    assert code == 1
    assert first_line(paths).startswith("BAD_MAGIC training/images-idx3-\\udcff : starts with 1f8b0800")


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ('{"epochs": "1", "epochs": "2"}', "hyperparameters.json: not JSON: duplicate key 'epochs'"),
        ('{"\\ud800": "1"}', "hyperparameter '\\ud800' is unknown"),
        ('{"\\ud800": 1}', "hyperparameters.json: \\ud800: found 1; allowed: text"),
        ("[" * 100_000, "hyperparameters.json: not JSON: "),
        ('{"epochs": ' + "1" * 5000 + "}", "hyperparameters.json: not JSON: Exceeds the limit"),
        ("\ufeff{}", "hyperparameters.json: not JSON: "),
    ],
    ids=["twice", "half a character", "half a character and a number", "deep", "many digits", "a byte order mark"],
)
def test_t11_strange_json_is_refused_with_its_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, cause: str
) -> None:
    paths = write_job(tmp_path, {})
    monkeypatch.setenv(environment.BASE_DIR, str(tmp_path))
    paths.hyperparameters.write_text(content, encoding="utf-8")
    code = run("colours", lambda job: parse_hyperparameters(LoopHyperparameters, job.hyperparameters))  # type: ignore[arg-type, return-value]
    assert code == 2
    assert first_line(paths).startswith(cause)


@pytest.mark.parametrize(("rank", "size", "local_rank"), [("2", "2", "0"), ("0", "0", "0"), ("0", "2", "1")])
def test_t12_a_rank_that_cannot_be_is_refused_and_waits_for_nobody(
    monkeypatch: pytest.MonkeyPatch, rank: str, size: str, local_rank: str
) -> None:
    for name, value in (("RANK", rank), ("WORLD_SIZE", size), ("LOCAL_RANK", local_rank)):
        monkeypatch.setenv(name, value)
    with pytest.raises(
        BadConfiguration, match=f"^RANK: found {rank}, WORLD_SIZE {size}, LOCAL_RANK {local_rank}; allowed: "
    ):
        World.from_environment()


@pytest.mark.parametrize("names", [["a", "a"], ["a", "b", "a"], ["a", ""]])
def test_t12_hosts_of_one_name_or_of_none_are_refused_and_wait_for_nobody(names: list[str]) -> None:
    with pytest.raises(BadConfiguration, match=r"^resourceconfig\.json: hosts: found .*; allowed: "):
        Hosts.parse({"hosts": names, "current_host": "a"}, "resourceconfig.json")


# T13: a training that diverges.


def diverging(base: Path, spoil: Callable[[Tensor, int], Tensor], network: Callable[[], torch.nn.Module]) -> Diverged:
    """What the training raises when `spoil` gets the inputs and the number of every step."""
    steps = iter(range(1, 1000))
    recipe = Recipe(network, "logits", lambda inputs, generator: spoil(inputs, next(steps)))
    settings = LoopHyperparameters(epochs=3, batch_size=8, checkpoint_steps=1)
    job = Job({}, MlPaths(base), threading.Event())
    with pytest.raises(Diverged) as raised:
        fit(recipe, settings, small.examples(45, 1), small.examples(20, 2), choose_device(), job)
    return raised.value


def assert_good(base: Path, step: int) -> None:
    """The newest checkpoint is that of this step, and every weight in it is a number."""
    name = checkpoints(MlPaths(base))[-1]
    assert name.endswith(f"-{step:010}.checkpoint")
    state = unpack((MlPaths(base).checkpoints / name).read_bytes()[len(MAGIC) + 32 :])
    assert all(bool(torch.isfinite(value).all()) for value in state["network"].values())


def test_t13_a_loss_that_is_no_number_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    error = diverging(tmp_path, lambda inputs, step: inputs * float("nan") if step == 9 else inputs, small.Classifier)
    assert str(error) == "DIVERGED at epoch 2, step 3 of 6: the loss is nan"
    assert "Lower lr, now 0.002" in error.hint
    assert_good(tmp_path, 8)


class WrongGradient(small.Classifier):
    """Its loss is a number to the end; from the ninth step on its gradients are not."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = super().forward(inputs)
        self.calls += self.training
        if self.training and self.calls == 9:
            outputs.register_hook(lambda gradient: gradient * float("inf"))  # type: ignore[no-untyped-call]
        return outputs


def test_t13_weights_that_are_no_numbers_never_become_a_checkpoint(tmp_path: Path) -> None:
    error = diverging(tmp_path, lambda inputs, step: inputs, WrongGradient)
    assert str(error) == "DIVERGED at epoch 2, step 3 of 6: weights are no finite numbers any more"
    assert_good(tmp_path, 8)


def test_t13_a_last_step_that_diverges_is_noticed_by_the_testing_channel(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Between two checkpoints nobody looks at the weights; a test loss that is no number is no perfect one."""
    recipe = Recipe(WrongGradient, "logits", lambda inputs, generator: inputs)
    settings = LoopHyperparameters(epochs=1, batch_size=5)  # nine steps
    job = Job({}, MlPaths(tmp_path), threading.Event())
    with pytest.raises(Diverged, match=r"^DIVERGED at epoch 1, step 9 of 9: the loss on the testing channel is nan"):
        fit(recipe, settings, small.examples(45, 1), small.examples(20, 2), choose_device(), job)
    assert "metrics epoch=1 " in capsys.readouterr().out
    assert checkpoints(MlPaths(tmp_path)) == []


@pytest.mark.parametrize("activation", ["log_softmax", "logits"])
def test_t13_a_loss_that_is_no_number_is_never_counted_as_a_perfect_one(activation: str) -> None:
    scores = score(np.full((3, 2), np.nan, np.float32), np.zeros(3, np.int64), activation)
    assert math.isnan(scores.loss)


# T14: stopped.


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, float]:
    """The model that nobody stopped, and the seconds that it took."""
    paths = write_job(tmp_path_factory.mktemp("uninterrupted") / "ml", {})
    first = FORKS.Process(target=os.getpid)  # so that the time is the job's own, and not the fork server's
    first.start()
    assert code_of(first) == 0
    started = time.monotonic()
    assert code_of(start_colours(paths.base)) == 0, (paths.base / "job.log").read_text()
    return (paths.model / environment.MODEL_FILE).read_bytes(), time.monotonic() - started


def stop_again_and_again(base: Path, times: int, seed: int, model: bytes, seconds: float) -> None:
    """SIGTERM at seeded moments, each run going on from the one before; then one to the end."""
    paths, chance = write_job(base / "ml", {}), random.Random(seed)
    artifact = [environment.SIGNATURE_FILE, environment.MODEL_FILE]
    for _ in range(times):
        process = start_colours(paths.base)
        process.join(chance.uniform(0, seconds))
        if process.is_alive():
            assert process.pid is not None
            os.kill(process.pid, signal.SIGTERM)
        code = code_of(process)
        log = (paths.base / "job.log").read_text()
        assert code in (0, 143, -signal.SIGTERM), log
        if code == 143:  # else it had ended, or Python had not yet begun to listen
            assert left_in(paths.model) == []
            assert first_line(paths).startswith("STOPPED by SIGTERM ")
        assert left_in(paths.model) in ([], artifact), log
        if code == 0:
            assert left_in(paths.model) == artifact
            assert Predictor.load(paths.model).release_id.startswith("colours-")
        for name in checkpoints(paths):
            assert unpack((paths.checkpoints / name).read_bytes()[len(MAGIC) + 32 :])["position"]
    assert code_of(start_colours(paths.base)) == 0, (paths.base / "job.log").read_text()
    assert not paths.failure.exists()
    assert (paths.model / environment.MODEL_FILE).read_bytes() == model


def test_t14_sigterm_at_any_moment_leaves_a_whole_model_or_none_and_the_next_job_goes_on(
    tmp_path: Path, uninterrupted: tuple[bytes, float]
) -> None:
    stop_again_and_again(tmp_path, 3, 14, *uninterrupted)


@pytest.mark.slow
def test_t14_sigterm_at_fifty_moments_leaves_a_whole_model_or_none_each_time(
    tmp_path: Path, uninterrupted: tuple[bytes, float]
) -> None:
    for series in range(5):
        stop_again_and_again(tmp_path / str(series), 10, series, *uninterrupted)


# T15: killed while it writes a checkpoint.


def _die(*arguments: object, **named: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _killed_while_writing(base: Path, point: int | str) -> None:
    """Trains until its second checkpoint: there a write past `point` bytes, or this function of os, is the end."""
    _in_this_process(base)

    def arm(job: Job, step: int) -> None:
        if step == 7 and isinstance(point, int):
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python would make it an error
            resource.setrlimit(resource.RLIMIT_FSIZE, (point, resource.RLIM_INFINITY))
        elif step == 7:
            setattr(os, str(point), _die)

    small.train(base, arm)


def kill_points() -> list[int | str]:
    """Before, in and after each part of the file, at some seeded places in its content, and each call that makes it last."""
    chance = random.Random(15)
    header = len(MAGIC) + 32
    inside = [chance.randrange(header, 20_000) for _ in range(2)]
    return [len(MAGIC), header, *inside, "fsync", "replace", "unlink"]


def test_t15_sigkill_while_a_checkpoint_is_written_costs_the_steps_since_the_one_before(tmp_path: Path) -> None:
    weights = small.train(tmp_path / "uninterrupted")
    for point in kill_points():
        base = tmp_path / str(point)
        base.mkdir()
        process = FORKS.Process(target=_killed_while_writing, args=(base, point))
        process.start()
        code = code_of(process)
        assert code == (-signal.SIGXFSZ if isinstance(point, int) else -signal.SIGKILL), point
        # Of a step 8 that was killed the file is there, whole, once it has its name, and not before.
        steps = [name[-13:-11] for name in checkpoints(MlPaths(base))]
        assert steps[-1] in (("08",) if point == "unlink" else ("04", "06")), point  # 06 where epochs' ends are cheap
        log = (base / "job.log").read_text()
        assert "warning" not in log
        assert small.train(base) == weights, point
        assert not list(MlPaths(base).checkpoints.glob(".*")), point


def test_t15_what_a_killed_job_left_unfinished_is_never_read(tmp_path: Path) -> None:
    folder = MlPaths(tmp_path).checkpoints
    folder.mkdir()
    (folder / ".unfinished").write_bytes(MAGIC + bytes(500))
    found = Checkpoints.open(folder, "a" * 64)
    assert found is not None
    assert found.newest() is None
    assert list(folder.iterdir()) == []


# T18: a disk that is full when the model is written.


@pytest.mark.parametrize(
    "largest_file", [2000, pytest.param(0, marks=pytest.mark.slow)], ids=["the model", "the failure file, too"]
)
def test_t18_a_model_that_finds_no_room_fails_the_job_and_leaves_no_part_of_it(
    tmp_path: Path, largest_file: int
) -> None:
    paths = write_job(tmp_path / "ml", {})
    assert code_of(start_colours(paths.base, largest_file)) == 1
    assert left_in(paths.model) == []
    assert left_in(paths.output / "data") == []
    if largest_file:
        assert first_line(paths) == f"ARTIFACT {paths.model} cannot be written: File too large"
        assert "larger volume" in paths.failure.read_text()
    else:
        assert not paths.failure.exists() or paths.failure.read_text() == ""
    assert checkpoints(paths)  # the next job goes on from there


# T21: as little of a machine as SageMaker may give.


def cut_off(paths: MlPaths) -> list[str]:
    """What to put before a command that shall have no network, nothing to write on but the job's folders, and no privileges."""
    root = os.geteuid() == 0
    script = 'mount --bind "$0" "$0" && mount -o remount,ro,bind / && exec "$@"'
    command = [
        "unshare",
        "--net",
        "--mount",
        *([] if root else ["--map-root-user"]),
        "sh",
        "-c",
        script,
        str(paths.base),
    ]
    if root:
        command += ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs"]
    return command


def test_t21_a_job_trains_without_network_privileges_gpu_or_a_place_to_write_but_its_own(open_folder: Path) -> None:
    paths = write_job(open_folder / "ml", {"epochs": "1"})
    (paths.base / "tmp").mkdir()
    if os.geteuid() == 0:
        for path in (paths.base, *paths.base.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
    probe = "import os, socket; print(os.geteuid(), os.access('/usr', os.W_OK), socket.if_nameindex())"
    limited = cut_off(paths)
    answer = subprocess.run([*limited, sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    if not shutil.which("unshare") or answer.returncode:
        pytest.skip(f"this machine gives no namespaces: {answer.stderr[:200]}")
    assert "False [(1, 'lo')]" in answer.stdout
    job = subprocess.run(
        [*limited, *TRAIN],
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": "/nonexistent",
            "TMPDIR": str(paths.base / "tmp"),
            "CUDA_VISIBLE_DEVICES": "",
            environment.BASE_DIR: str(paths.base),
            environment.MODEL_NAME: "mnist",
            environment.THREADS: "1",
        },
        cwd="/", capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert job.returncode == 0, job.stdout + job.stderr
    assert left_in(paths.model) == [environment.SIGNATURE_FILE, environment.MODEL_FILE]
    assert "training on the CPU, 1 threads: no CUDA device" in job.stdout
