"""`ferry train --local`: the pipeline that is deployed into the emulator, run on this machine."""

from collections.abc import Mapping

from ferry import aws
from ferry.console import Report
from ferry.pipeline import deployed_definition, start_parameters, uploaded_data
from ferry.pipeline_runner import Execution, run_pipeline
from infra.settings import Settings


def train_locally(settings: Settings, dataset: str, given: Mapping[str, str], report: Report) -> Execution:
    """Run the emulator's pipeline on the data in the emulator's bucket; returns the finished execution, however it ended.

    Raises Refused, with nothing started, where no pipeline is deployed, no data or other data are there, a parameter does not
    fit, or a step cannot run on this machine.
    """
    aws.local_settings(settings)
    definition = deployed_definition(settings, aws.client(settings, "sagemaker"))
    data = uploaded_data(settings, aws.client(settings, "s3"), dataset)
    return run_pipeline(
        settings, settings.pipeline, definition, start_parameters(settings, definition, data, given), report
    )
