"""Tiny CSV channels and the folders of a training job on them, for tests."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from model_code.environment import MlPaths
from tests.idx_files import write_config

SPECIES = ("setosa", "versicolor", "virginica")


def flowers(count: int, seed: int) -> str:
    """CSV lines that can be told apart: each species has its petals in a range of its own."""
    generator = np.random.default_rng(seed)
    lines = []
    for index in range(count):
        label = index % len(SPECIES)
        lengths = [*generator.normal((5, 3), 0.4), *generator.normal((1.5 + 2 * label, 0.3 + label), 0.3)]
        lines.append(f"{SPECIES[label]},{','.join(f'{length:.2f}' for length in lengths)}\n")
    return "".join(lines)


def write_table_job(base: Path, hyperparameters: Mapping[str, object]) -> MlPaths:
    """The whole /opt/ml below `base`, as SageMaker lays it out for one host: 90 rows to train on, 30 to test."""
    paths = MlPaths(base)
    for channel, count in (("training", 90), ("testing", 30)):
        paths.channel(channel).mkdir(parents=True)
        (paths.channel(channel) / "flowers.csv").write_text(flowers(count, seed=count))
    write_config(paths, hyperparameters, {"ContentType": "text/csv"})
    return paths
