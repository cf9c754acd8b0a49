"""The `ferry` command."""

import functools
import io
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from botocore.exceptions import BotoCoreError, ClientError, EndpointConnectionError
from rich.table import Table

from ferry import local as local_environment
from ferry.console import ERR, OUT, line
from ferry.errors import FerryError, Refused
from infra.settings import (
    ENVIRONMENT_VARIABLE,
    FUNCTION_PYTHON,
    ROOT,
    Settings,
    SettingsError,
    load_settings,
    settings_file,
)

Command = Callable[..., None]


def pass_settings(command: Command) -> Command:
    """Hand the chosen environment's settings to a command; reading them here keeps --help free of their faults."""

    @click.pass_context
    def with_settings(ctx: click.Context, /, **arguments: Any) -> None:
        ctx.invoke(command, load_settings(ctx.find_root().params["environment"]), **arguments)

    return functools.update_wrapper(with_settings, command)


class _Interface(click.Group):
    """Turns every failure into a message for people and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SettingsError as error:
            _fail(str(error), Refused.exit_code)
        except FerryError as error:
            _fail(str(error), error.exit_code)
        except EndpointConnectionError as error:
            _fail(f"{error} In a local environment start the emulator: ferry local up emulator", FerryError.exit_code)
        except (BotoCoreError, ClientError) as error:
            _fail(f"AWS: {error}", FerryError.exit_code)
        except OSError as error:
            _fail(f"{error.filename or 'system'}: {error.strerror or error}", FerryError.exit_code)
        except (KeyboardInterrupt, click.Abort):
            _fail("interrupted; the same command can be run again", 130)


def _fail(message: str, code: int) -> None:
    ERR.print(f"ferry: {message}", style="red")
    sys.exit(code)


@click.group(cls=_Interface, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--env",
    "environment",
    metavar="NAME|FILE",
    envvar=ENVIRONMENT_VARIABLE,
    show_envvar=True,
    help="Environment: a name in config/, or a path to a .toml file; default: local.",
)
@click.version_option(package_name="modelferry")
def main(environment: str | None) -> None:
    """Carry one trained model to Amazon SageMaker and to Azure Functions: the same ONNX file, the same answers.

    \b
    On one machine, without an account:   ferry demo
    With two clouds:                      ferry data upload, ferry release, cdk deploy,
                                          ferry package, cdktf deploy, ferry verify

    Exit codes: 0 done, 1 failed, 2 wrong usage or settings (nothing was done), 130 interrupted.
    Every command can be run again after it failed or was killed.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 gets question marks, not a traceback


@main.command()
@click.option("--schema", is_flag=True, help="Print the JSON Schema of a settings file instead.")
@pass_settings
def settings(settings: Settings, schema: bool) -> None:
    """Print the effective settings as JSON, defaults included."""
    document = Settings.model_json_schema() if schema else settings.model_dump()
    click.echo(json.dumps(document, indent=2))


_source = click.option(
    "--data",
    "source",
    metavar="FOLDER|digits",
    help="Folder with the four IDX files, or the digits inside scikit-learn; default: MNIST from its mirrors.",
)


@main.group()
def data() -> None:
    """The dataset that the training job reads."""


@data.command("upload")
@_source
@pass_settings
def data_upload(settings: Settings, source: str | None) -> None:
    """Upload a dataset to the data bucket, its manifest last: that starts the SageMaker pipeline."""
    from ferry.data import prepare, upload

    dataset = prepare(settings, source, line)
    OUT.print(f"{dataset.origin}")
    OUT.print(f"uploaded {upload(settings, dataset, line)}")


@main.command()
@click.option(
    "--local", "on_this_machine", is_flag=True, required=True, help="Run the job here, over the emulator's buckets."
)
@click.option("--dataset", metavar="NAME", help="Table below [datasets]; default: model.dataset of the settings.")
@pass_settings
def train(settings: Settings, on_this_machine: bool, dataset: str | None) -> None:
    """Run the training job and leave its model artifact in the artifacts bucket.

    In the cloud nobody calls this: the upload of a dataset starts the SageMaker pipeline.
    """
    from ferry.train import run_training_job

    job = run_training_job(settings, dataset or settings.model.dataset, line)
    OUT.print(job.artifact_uri)


@main.command()
@click.argument("artifact", metavar="ARTIFACT")
@click.option("--dataset", metavar="NAME", help="What the model is trained on; default: model.dataset of the settings.")
@click.option(
    "--execution",
    default="local",
    metavar="ARN",
    show_default=True,
    help="The pipeline execution that made the artifact.",
)
@pass_settings
def release(settings: Settings, artifact: str, dataset: str | None, execution: str) -> None:
    """Verify a model artifact and publish it as a release.

    ARTIFACT is the model.tar.gz of a training job: a path, or an s3:// URI. The release is stored once, below releases/ in
    the artifacts bucket, and laid beside the other build results, where `cdk deploy` and `ferry package` find it.
    """
    from ferry.release import make_release

    OUT.print(make_release(settings, artifact, line, dataset=dataset, execution=execution).release_id)


@main.command()
@click.option(
    "--python", "python_version", default=FUNCTION_PYTHON, show_default=True, help="Python of the Function App."
)
@click.option("--output", type=click.Path(path_type=Path), help="Default: where `cdktf deploy` looks for it.")
@pass_settings
def package(settings: Settings, python_version: str, output: Path | None) -> None:
    """Build the zip that the Azure Function App runs from, out of the current release."""
    from ferry.package import build_package

    built = build_package(
        settings.release_path.parent, output or settings.package_path, python_version=python_version, report=line
    )
    OUT.print(f"{built.path}  {built.size / 2**20:.1f} MiB  sha256 {built.sha256}")


@main.group()
def image() -> None:
    """The container image that serves on SageMaker."""


@image.command("uri")
@pass_settings
def image_uri(settings: Settings) -> None:
    """Print the image's address in ECR; its tag is a hash of the sources, so new sources are a new image."""
    from infra.aws.image import image_uri as address

    click.echo(address(settings))


@main.group()
def local() -> None:
    """AWS emulator, SageMaker container and Azure Function on this machine's loopback."""


_services = click.argument("services", nargs=-1, type=click.Choice(local_environment.SERVICES))


@local.command()
@_services
@pass_settings
def up(settings: Settings, services: tuple[str, ...]) -> None:
    """Start the named services, or all three, and wait until they answer."""
    local_environment.up(settings, services or local_environment.SERVICES, line)
    _print_status(local_environment.status(settings))


@local.command()
@pass_settings
def down(settings: Settings) -> None:
    """End everything that `up` started, also what a killed command left behind."""
    local_environment.down(settings, line)


@local.command()
@click.option(
    "--json", "as_json", is_flag=True, help="For scripts: doors.sagemaker and doors.azure are URLs to POST to."
)
@pass_settings
def status(settings: Settings, as_json: bool) -> None:
    """Say what runs and where; exit code 0 whether or not anything does."""
    found = local_environment.status(settings)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        _print_status(found)


def _print_status(found: dict[str, Any]) -> None:
    OUT.print(f"release    {found['release_id'] or 'none is served'}")
    for name, url in {"emulator": found["emulator"], **found["doors"]}.items():
        pids = ", ".join(str(pid) for pid in found["pids"].get(name, []))
        OUT.print(f"{name:10} {url or 'not running'}{f'  (pid {pids})' if url else ''}")


@main.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
@pass_settings
def verify(settings: Settings, as_json: bool) -> None:
    """Send the release's golden inputs to both doors and compare labels, probabilities and release id.

    Real clouds need AWS credentials that may invoke the endpoint, and the Function's key in FERRY_FUNCTION_KEY.
    """
    from ferry.doors import doors
    from ferry.release import current_release
    from ferry.verify import verify as verify_door
    from model_code.inference.predictor import Predictor

    current, members = current_release(settings)
    with tempfile.TemporaryDirectory() as folder:
        for name, content in members.items():
            (Path(folder) / name).write_bytes(content)
        predictor = Predictor.load(Path(folder))
    reports = [verify_door(door, current, predictor) for door in doors(settings)]  # each, also when the first fails
    if as_json:
        click.echo(
            json.dumps({"release_id": current.release_id, "doors": [asdict(report) for report in reports]}, indent=2)
        )
    else:
        table = Table("door", "release", "largest difference", "seconds", "verdict")
        for report in reports:
            verdict = "; ".join(report.problems) or "same answers"
            difference = "" if report.max_abs_diff is None else f"{report.max_abs_diff:.1e}"
            table.add_row(report.door, report.release_id or "", difference, f"{report.seconds:.3f}", verdict)
        OUT.print(table)
    if any(report.problems for report in reports):
        raise FerryError(f"not both doors serve {current.release_id}; the table says which and why")


@main.command()
@_source
@click.option("--keep", is_flag=True, help="Leave the emulator and both doors running.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=ROOT / "build" / "demo",
    help="Folder of report.json and report.png.",
)
@pass_settings
@click.pass_context
def demo(ctx: click.Context, settings: Settings, source: str | None, keep: bool, output: Path) -> None:
    """The whole journey on this machine: data, training, release, both stacks, both doors, one report."""
    from ferry.demo import run

    path = settings_file(ctx.find_root().params["environment"])
    run(settings, path, source, output.resolve(), keep)
