"""How the bench compares trainings. What they take depends on the machine, and no test says how much."""

import functools
import time
from itertools import groupby
from pathlib import Path

import pytest

from bench import training
from bench.training import Arrays, Judge, Loop
from model_code.training.evaluate import Scores
from tests.idx_files import digit_like, idx


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for prefix, count in (("train", 20), ("t10k", 10)):
        images, labels = digit_like(count, seed=count)
        (tmp_path / f"{prefix}-images-idx3-ubyte").write_bytes(idx(images))
        (tmp_path / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(labels))
    return tmp_path


def writes_while_it_trains(name: str, diary: Path, examples: Arrays, tests: Arrays) -> Judge:
    with diary.open("a", buffering=1) as lines:
        for _ in range(300):
            lines.write(f"{name}\n")
            until = time.process_time() + 0.002
            while time.process_time() < until:
                pass
    return lambda: Scores(loss=len(tests[1]), accuracy=len(examples[1]))


def fails(examples: Arrays, tests: Arrays) -> Judge:
    raise ValueError(f"{len(examples[1])} images are too few")


def test_trainings_take_turns_and_one_stands_still_while_another_trains(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "TURN_SECONDS", 0.1)
    diary = data / "diary"
    loops: dict[str, Loop] = {name: functools.partial(writes_while_it_trains, name, diary) for name in ("a", "b")}
    results = training.in_turns(data, loops)
    assert [(result.name, result.scores) for result in results] == [
        (name, Scores(loss=10, accuracy=20)) for name in loops
    ]
    assert all(result.cpu_seconds >= 0.6 and result.seconds > 0 for result in results)
    written = diary.read_text().split()
    assert (written.count("a"), written.count("b")) == (300, 300)
    # Side by side on two cores they would take turns line by line.
    assert 4 <= len(list(groupby(written))) < 100


def test_a_training_that_fails_ends_the_comparison_with_its_name(data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="theirs ended with 1; its error stands above"):
        training.in_turns(data, {"theirs": fails})
    assert "ValueError: 20 images are too few" in capfd.readouterr().err


def test_a_training_without_its_files_ends_before_any_turn(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="theirs ended with 1"):
        training.in_turns(tmp_path, {"theirs": fails})
    assert "one file named train-images-idx3-ubyte, raw or .gz, is wanted; found 0" in capfd.readouterr().err


def test_the_training_within_the_examples_time_is_the_longest_that_fits() -> None:
    example, first, second = (
        training.Result(name, Scores(loss=loss, accuracy=accuracy), seconds, seconds)
        for name, accuracy, loss, seconds in (
            ("example", 0.984, 0.05, 60),
            ("1 epoch", 0.988, 0.04, 30),
            ("2 epochs", 0.991, 0.03, 59),
        )
    )
    measured = training.summarise(example, [first, second])["training"]
    assert (measured["ours_over_example_time"], measured["accuracy"], measured["loss"]) == (0.5, 0.988, 0.04)
    assert measured["accuracy_within_example_time"] == 0.991
    assert training.summarise(first, [second])["training"]["accuracy_within_example_time"] is None
