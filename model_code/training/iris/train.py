"""Trains the iris classifier: `python -m model_code.training.iris.train`, or as `sagemaker_program` of AWS's toolkit.

Standardised features and a logistic regression. Its solver starts at zero and draws no random number, so the same rows give
the same coefficients.
"""

import dataclasses
import sys
from dataclasses import dataclass

from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from model_code.environment import METRICS_LINE
from model_code.training.evaluate import score
from model_code.training.examples import Examples
from model_code.training.hyperparameters import number, parse_hyperparameters
from model_code.training.iris.data import LABELS, PREPROCESSING, RESPONSE_KEY, read_channel
from model_code.training.job import Job, run
from model_code.training.log import report
from model_code.training.sklearn_export import sklearn_model
from model_code.training.trained import TrainedModel


@dataclass(frozen=True)
class Hyperparameters:
    """Of the training job: the inverse strength of the regularisation, and the most iterations of the solver."""

    c: float = number(1.0, minimum=1e-4, maximum=1e6)
    max_iter: int = number(200, minimum=1, maximum=100_000)


def main() -> int:
    return run("iris", train)


def train(job: Job) -> TrainedModel:
    """Fit on channel `training`, report on channel `testing`. Raises TrainingError."""
    settings = parse_hyperparameters(Hyperparameters, job.hyperparameters)
    training = read_channel(job.channel("training"), "training")
    testing = read_channel(job.channel("testing"), "testing")
    job.raise_if_stopped("before the fit")
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=settings.c, max_iter=settings.max_iter))
    classifier.fit(training.inputs, training.labels)
    trained = sklearn_model(
        classifier,
        preprocessing=PREPROCESSING,
        labels=LABELS,
        response_key=RESPONSE_KEY,
        hyperparameters=dataclasses.asdict(settings),
        testing=testing,
    )
    _report_metrics(trained, training, testing)
    return trained


def _report_metrics(trained: TrainedModel, training: Examples, testing: Examples) -> None:
    """A fit is one epoch."""
    seen, unseen = (
        score(trained.outputs(examples.inputs), examples.labels, trained.activation) for examples in (training, testing)
    )
    report(METRICS_LINE.format(epoch=1, train_loss=seen.loss, test_loss=unseen.loss, test_accuracy=unseen.accuracy))


if __name__ == "__main__":
    sys.exit(main())
