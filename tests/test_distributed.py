"""Several processes that train one model on loopback: the same result as one, one artifact, and one cause of a failure."""

import json
import signal
import socket
from pathlib import Path

import numpy as np
import psutil
import pytest

from model_code import environment
from model_code.environment import MlPaths
from model_code.training.job import run
from model_code.training.mnist import train as mnist
from tests.idx_files import write_job
from tests.training_processes import TORCHRUN, RunningJob, checkpoints, finish_job, start_job, weights

# The last of the 18 steps of an epoch has one image: one of two processes has none.
HYPERPARAMETERS = {"epochs": "2", "batch_size": "15", "checkpoint_steps": "1"}
ENDLESS = HYPERPARAMETERS | {"epochs": "1000"}
# Two names of this machine stand for two hosts.
HOSTS = ["127.0.0.1", "localhost"]
TWO = {environment.PROCESSES_PER_HOST: "2"}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> MlPaths:
    """What one process made."""
    paths = write_job(tmp_path_factory.mktemp("alone"), HYPERPARAMETERS)
    finish_job(paths)
    return paths


def write_hosts(base: Path, hyperparameters: dict[str, str]) -> list[MlPaths]:
    """One /opt/ml for each of HOSTS."""
    every = []
    for host in HOSTS:
        paths = write_job(base / host, hyperparameters)
        document = {"current_host": host, "hosts": HOSTS, "network_interface_name": "lo"}
        paths.resource_config.write_text(json.dumps(document))
        every.append(paths)
    return every


def start_hosts(every: list[MlPaths]) -> list[RunningJob]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    return [start_job(paths, MASTER_PORT=port) for paths in every]


def assert_equal_up_to_rounding(first: MlPaths, second: MlPaths) -> None:
    ours, others = weights(first), weights(second)
    assert ours.keys() == others.keys()
    for name, values in ours.items():
        np.testing.assert_allclose(values, others[name], rtol=0, atol=2e-5, err_msg=name)
    answers = [np.load(paths.test_outputs, allow_pickle=False) for paths in (first, second)]
    assert np.array_equal(*(outputs.argmax(axis=1) for outputs in answers))
    np.testing.assert_allclose(*(np.exp(outputs) for outputs in answers), rtol=0, atol=1e-5)


# The same result.


@pytest.mark.slow
def test_two_processes_that_torchrun_starts_train_what_one_trains(tmp_path: Path, alone: MlPaths) -> None:
    paths = write_job(tmp_path, HYPERPARAMETERS)
    job = finish_job(paths, TORCHRUN)
    assert_equal_up_to_rounding(alone, paths)
    assert job.log.count("metrics epoch=1 ") == 1
    assert job.log.count("exported mnist-") == 1


@pytest.mark.slow
def test_two_processes_of_one_host_train_what_one_trains(tmp_path: Path, alone: MlPaths) -> None:
    paths = write_job(tmp_path, HYPERPARAMETERS)
    job = finish_job(paths, **TWO)
    assert "processes 0 to 1 of 2; the first one is on localhost\n" in job.log
    assert_equal_up_to_rounding(alone, paths)


@pytest.mark.slow
def test_two_hosts_train_what_one_trains_and_the_first_leaves_it(tmp_path: Path, alone: MlPaths) -> None:
    first, second = write_hosts(tmp_path, HYPERPARAMETERS)
    for job in start_hosts([first, second]):
        assert job.end() == 0, job.log
    assert_equal_up_to_rounding(alone, first)
    assert checkpoints(first)
    assert list(second.model.iterdir()) == []
    assert checkpoints(second) == []
    assert not second.test_outputs.exists()


# Stopped.


@pytest.mark.slow
def test_sigterm_reaches_all_processes_and_their_training_goes_on(tmp_path: Path, alone: MlPaths) -> None:
    paths = write_job(tmp_path, HYPERPARAMETERS)
    job = start_job(paths, **TWO)
    job.wait_until(lambda: checkpoints(paths))
    job.process.terminate()
    assert job.end() == 143, job.log
    assert paths.failure.read_text().startswith("STOPPED by SIGTERM at epoch ")
    assert list(paths.model.iterdir()) == []
    job = finish_job(paths, **TWO)
    assert "going on from checkpoint" in job.log
    assert_equal_up_to_rounding(alone, paths)


@pytest.mark.slow
def test_a_last_checkpoint_that_cannot_be_written_is_not_promised(tmp_path: Path) -> None:
    paths = write_job(tmp_path, ENDLESS | {"checkpoint_steps": "1000000"})
    job = start_job(paths, **TWO)
    job.wait_until(lambda: "metrics epoch=2 " in job.log)
    paths.checkpoints.rename(tmp_path / "away")
    paths.checkpoints.write_text("no folder")
    job.process.terminate()
    assert job.end() == 1, job.log
    assert paths.failure.read_text().startswith("CHECKPOINT ")


# Failures.


@pytest.mark.slow
def test_bad_data_on_one_host_fails_both_and_each_says_what_it_knows(tmp_path: Path) -> None:
    first, second = write_hosts(tmp_path, HYPERPARAMETERS)
    (second.channel("training") / "train-labels-idx1-ubyte.gz").unlink()
    jobs = start_hosts([first, second])
    assert [job.end() for job in jobs] == [1, 1]
    assert second.failure.read_text().startswith("channel 'training' has no file like *labels*idx1*")
    assert first.failure.read_text().startswith("PEER_LOST process 0 of 2: ")


@pytest.mark.slow
def test_hosts_with_different_data_are_refused(tmp_path: Path) -> None:
    first, second = write_hosts(tmp_path, HYPERPARAMETERS)
    second.hyperparameters.write_text(json.dumps(HYPERPARAMETERS | {"seed": "2"}))
    jobs = start_hosts([first, second])
    assert [job.end() for job in jobs] == [1, 1]
    assert second.failure.read_text().startswith(
        "process 1 of 2 reads other data than the first one, or has other hyper"
    )


@pytest.mark.slow
def test_a_killed_process_ends_the_job_with_its_number_and_signal(tmp_path: Path) -> None:
    paths = write_job(tmp_path, ENDLESS)
    job = start_job(paths, **TWO)
    job.wait_until(lambda: checkpoints(paths))
    children = sorted(psutil.Process(job.process.pid).children(), key=lambda child: child.pid)
    children[1].send_signal(signal.SIGKILL)
    assert job.end() == 1, job.log
    assert paths.failure.read_text().startswith("PROCESS_LOST process 1 of the job was killed by signal 9\n")
    assert list(paths.model.iterdir()) == []
    assert checkpoints(paths)


# What starts them.


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlPaths:
    monkeypatch.setenv(environment.BASE_DIR, str(tmp_path))
    return write_job(tmp_path, HYPERPARAMETERS)


@pytest.mark.parametrize("count", ["0", "-1", "two", "1000"])
def test_t12_a_wrong_number_of_processes_is_refused(
    paths: MlPaths, monkeypatch: pytest.MonkeyPatch, count: str
) -> None:
    monkeypatch.setenv(environment.PROCESSES_PER_HOST, count)
    assert mnist.main() == 2
    expected = f"FERRY_PROCESSES_PER_HOST: found '{count}'; allowed: a whole number from 1 to 256\n"
    assert paths.failure.read_text().startswith(expected)


def test_t12_half_of_what_torchrun_tells_is_refused(paths: MlPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(environment.RANK, "0")
    assert mnist.main() == 2
    assert paths.failure.read_text().startswith("WORLD_SIZE: found ''; allowed: a whole number\n")


RESOURCES = {
    '{"hosts": [], "current_host": "a"}': "resourceconfig.json: hosts: found []; allowed: one name or more",
    '{"current_host": "a"}': "resourceconfig.json: hosts: found None; allowed: one name or more",
    '{"hosts": ["a", "b"], "current_host": "c"}': "resourceconfig.json: current_host: found c; allowed: a, b",
}


@pytest.mark.parametrize("content", RESOURCES)
def test_t12_hosts_that_make_no_sense_are_refused(paths: MlPaths, content: str) -> None:
    paths.resource_config.write_text(content)
    assert mnist.main() == 2
    assert paths.failure.read_text().startswith(RESOURCES[content])


def test_t12_a_missing_resource_file_is_no_single_host(paths: MlPaths) -> None:
    paths.resource_config.unlink()
    assert mnist.main() == 2
    assert paths.failure.read_text().startswith("resourceconfig.json: cannot be read (No such file or directory)\n")


def test_t12_a_model_that_one_process_trains_refuses_several_hosts(paths: MlPaths) -> None:
    paths.resource_config.write_text('{"hosts": ["a", "b"], "current_host": "a"}')
    assert run("colours", lambda job: pytest.fail("it trains")) == 2
    assert paths.failure.read_text().startswith("resourceconfig.json: hosts: found a, b; allowed: one host\n")
