"""The `ferry` command."""

import functools
import io
import json
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from botocore.exceptions import BotoCoreError, ClientError
from rich.table import Table

from ferry import local as local_environment
from ferry.aws_errors import explain
from ferry.console import ERR, OUT, error_line, line
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
_NEWEST = "newest"  # no ARN
_AGAIN_SECONDS = 0.05


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
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # blocked in __main__.py
            with _dropped_interruptions_come_again():
                return super().invoke(ctx)
        except SettingsError as error:
            _fail(str(error), Refused.exit_code)
        except FerryError as error:
            _fail(str(error), error.exit_code)
        except (BotoCoreError, ClientError) as error:
            _fail(f"AWS: {explain(error)}", FerryError.exit_code)
        except OSError as error:
            _fail(f"{error.filename or 'system'}: {error.strerror or error}", FerryError.exit_code)
        except (KeyboardInterrupt, click.Abort):
            _fail("interrupted; the same command can be run again", 130)


@contextmanager
def _dropped_interruptions_come_again() -> Iterator[None]:
    """Compiled code may drop an interruption that comes while it works, as pydantic's does while it defines a model."""
    hook = sys.unraisablehook
    timers: list[threading.Timer] = []

    def look_at(dropped: "sys.UnraisableHookArgs") -> None:
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            hook(dropped)
            return
        again = (threading.main_thread().ident, signal.SIGINT)
        timers.append(threading.Timer(_AGAIN_SECONDS, signal.pthread_kill, again))
        timers[-1].start()

    sys.unraisablehook = look_at
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for timer in timers:
            timer.cancel()


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
    With two clouds:                      ferry image push, ferry data upload, ferry train, ferry approve,
                                          cdk deploy, ferry package, cdktf deploy, ferry verify
    Before a deployment, and after it:    ferry preflight, ferry status
    One request, many, what it costs:     ferry invoke, ferry batch, ferry cost, ferry recommend
    Back to an earlier model:             ferry rollback
    Other code, the same release:         ferry package, ferry publish azure
    The end of it:                        ferry destroy all

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
    document = Settings.model_json_schema() if schema else settings.model_dump(mode="json")
    click.echo(json.dumps(document, indent=2))


_source = click.option(
    "--data",
    "source",
    metavar="SOURCE",
    help="Where the examples come from: a folder, or a word that the model's dataset.py knows; default: its own choice.",
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


def _pairs(ctx: click.Context, option: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    """NAME=VALUE, repeated, as a map."""
    pairs = [text.partition("=") for text in given]
    if wrong := [name for name, sign, _ in pairs if not (name and sign)]:
        raise click.BadParameter(f"{wrong[0]!r} is not NAME=VALUE", ctx, option)
    return {name: value for name, _, value in pairs}


@main.command()
@click.option("--local", "on_this_machine", is_flag=True, help="Run the pipeline's steps here, over the emulator.")
@click.option("--once", is_flag=True, help="Run the Train step alone, through the SageMaker SDK (extra: sagemaker).")
@click.option(
    "--follow",
    metavar="[ARN]",
    is_flag=False,
    flag_value=_NEWEST,
    help="Start nothing; follow this execution, or without an ARN the newest.",
)
@click.option("--dataset", metavar="NAME", help="Table below [datasets]; default: model.dataset of the settings.")
@click.option(
    "--parameter",
    "parameters",
    metavar="NAME=VALUE",
    multiple=True,
    callback=_pairs,
    help="A parameter of the pipeline, such as Epochs=3; repeated for several.",
)
@click.option("--again", is_flag=True, help="Start another execution for data that were trained on before.")
@pass_settings
def train(
    settings: Settings,
    on_this_machine: bool,
    once: bool,
    follow: str | None,
    dataset: str | None,
    parameters: dict[str, str],
    again: bool,
) -> None:
    """Start the deployed pipeline on the uploaded data, and follow it: steps, status, the log of the job that runs.

    \b
    Exit code 0: the pipeline succeeded. `ferry models` lists what it registered.
    Exit code 1: a step failed; the last lines say which and why.

    Ctrl-C ends the watching only: the execution goes on, and --follow shows it again. An upload of new data starts the
    pipeline by itself; the same data with the same parameters start it once, unless --again is given.
    """
    if sum((on_this_machine, once, follow is not None)) > 1:
        raise Refused("--local, --once and --follow are three ways to train; give one of them")
    if follow is not None and (dataset or parameters):
        raise Refused("--follow starts nothing; leave --dataset and --parameter out")
    if again and (on_this_machine or once or follow is not None):
        raise Refused("--again is for the deployed pipeline; --local and --once always start something new")
    name = dataset or settings.model.dataset
    if on_this_machine:
        _train_locally(settings, name, parameters)
        return
    _refuse_emulator(settings)
    if once:
        from ferry.train_once import train_once

        OUT.print(train_once(settings, name, parameters, line))
        return
    from ferry import train as pipeline

    if follow is None:
        arn = pipeline.start(settings, name, parameters, again=again, report=line)
    else:
        arn = pipeline.newest_execution(settings) if follow == _NEWEST else follow
    pipeline.follow(settings, arn, line)
    OUT.print(f"{arn}: Succeeded; `ferry models` lists what it registered")


def _train_locally(settings: Settings, dataset: str, parameters: dict[str, str]) -> None:
    from ferry.processes import signals_interrupt
    from ferry.train_local import train_locally

    with signals_interrupt():
        execution = train_locally(settings, dataset, parameters, line)
    OUT.print(f"{execution.arn}: {execution.status}; record: {execution.folder / 'execution.json'}")
    if execution.reason is not None:
        raise FerryError(execution.reason)


def _refuse_emulator(settings: Settings) -> None:
    if settings.local is not None:
        raise Refused(
            f"environment {settings.environment!r} has no SageMaker that would run a pipeline; "
            "ferry train --local runs its steps on this machine"
        )


@main.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
@pass_settings
def models(settings: Settings, as_json: bool) -> None:
    """List the registered versions of the model, the newest first: approval, accuracy, dataset, execution."""
    from ferry.registry import evaluated_accuracy, list_packages

    report = error_line if as_json else line
    rows = []
    for package in list_packages(settings):
        try:
            accuracy = evaluated_accuracy(settings, package)
        except FerryError as error:  # of one version; the others are still listed
            report(str(error))
            accuracy = None
        rows.append(asdict(package) | {"created": f"{package.created:%Y-%m-%dT%H:%M:%SZ}", "accuracy": accuracy})
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    table = listing("version", "approval", "accuracy", "dataset", "created", "execution")
    for row in rows:
        shown = "" if row["accuracy"] is None else f"{row['accuracy']:.4f}"
        execution = (row["execution"] or "").rpartition("/")[2]
        table.add_row(str(row["version"]), row["approval"], shown, row["dataset"], row["created"][:10], execution)
    print_listing(table)


def listing(*columns: str) -> Table:
    """A table without borders; its first column, which other commands take, is never cut or broken."""
    table = Table(box=None, pad_edge=False)
    for place, name in enumerate(columns):
        table.add_column(name, no_wrap=place == 0, overflow="fold")
    return table


def print_listing(table: Table) -> None:
    """A row is a line wherever nobody's window is too narrow for it."""
    OUT.print(table, width=None if OUT.is_terminal else 200)


_version = click.argument("version", type=click.IntRange(min=1))
_reason = click.option("--reason", metavar="TEXT", help="Kept in the registry beside the decision.")


@main.command()
@_version
@_reason
@click.option("--no-release", is_flag=True, help="Leave the release to `ferry release --approved`.")
@pass_settings
def approve(settings: Settings, version: int, reason: str | None, no_release: bool) -> None:
    """Approve a version of the model in the registry, and release it.

    VERSION is a number that `ferry models` shows. The release is verified and gated like any other; where it fails, the
    approval stands, and `ferry release --approved` tries again.
    """
    from ferry import registry

    package = registry.approve(settings, version, reason)
    OUT.print(f"{package.arn}: {package.approval}")
    if not no_release:
        OUT.print(registry.release_package(settings, package, line).release_id)


@main.command()
@_version
@_reason
@pass_settings
def reject(settings: Settings, version: int, reason: str | None) -> None:
    """Reject a version of the model in the registry. What was released of it stays released: see `ferry rollback`."""
    from ferry import registry

    package = registry.reject(settings, version, reason)
    OUT.print(f"{package.arn}: {package.approval}")


@main.command()
@click.argument("artifact", metavar="ARTIFACT", required=False)
@click.option("--approved", is_flag=True, help="The newest approved version in the registry, instead of an ARTIFACT.")
@click.option("--dataset", metavar="NAME", help="What the model is trained on; default: model.dataset of the settings.")
@click.option("--execution", metavar="ARN", help="The pipeline execution that made the artifact; default: local.")
@pass_settings
def release(
    settings: Settings, artifact: str | None, approved: bool, dataset: str | None, execution: str | None
) -> None:
    """Verify a model artifact and publish it as a release.

    ARTIFACT is the model.tar.gz of a training job: a path, or an s3:// URI. With --approved it is the one of the newest
    approved version, which says itself what it was trained on and how good it is. The release is stored once, below
    releases/ in the artifacts bucket, and laid beside the other build results, where `cdk deploy` and `ferry package` find it.
    """
    from ferry import registry
    from ferry.release import Origin, make_release

    if approved == (artifact is not None):
        raise Refused("give an ARTIFACT, or --approved for the newest approved version; one of the two")
    if artifact is None:
        if dataset is not None or execution is not None:
            raise Refused(
                "--approved takes dataset and execution from the registry; leave --dataset and --execution out"
            )
        made = registry.release_package(settings, registry.newest_approved(settings), line)
    else:
        made = make_release(settings, artifact, line, dataset=dataset, origin=Origin(execution or "local"))
    OUT.print(made.release_id)


@main.command()
@click.argument("release_id", required=False)
@click.option("--list", "listed", is_flag=True, help="Only list the stored releases, the newest first.")
@pass_settings
def rollback(settings: Settings, release_id: str | None, listed: bool) -> None:
    """Go back to an earlier release: fetch and verify it, make it the current one, say which deployments follow.

    Without a RELEASE_ID it is the one that was stored before the current one. Nothing is deleted, so the way forward is the
    same command with the newer id. Both clouds serve what they serve until the commands that it prints have run.
    """
    from ferry.rollback import deploy_commands, list_releases
    from ferry.rollback import rollback as roll_back

    if listed:
        table = listing("release", "stored", "dataset", "accuracy", "package", "")
        for each in list_releases(settings, error_line):
            accuracy, package = f"{each.release.gate.value:.4f}", (each.release.model_package or "").rpartition("/")[2]
            stored = f"{each.stored:%Y-%m-%d %H:%M:%S}"
            current = "current" if each.current else ""
            table.add_row(each.release.release_id, stored, each.release.dataset, accuracy, package, current)
        print_listing(table)
        return
    chosen = roll_back(settings, release_id, line)
    OUT.print(f"{chosen.release_id} is current on this machine; these bring it to both clouds:")
    for command in deploy_commands(settings):
        OUT.print(f"  {command}")


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
    """The container images that serve, evaluate and train on SageMaker."""


@image.command("uri")
@click.argument("name", type=click.Choice(("serving", "processing", "training")), default="serving")
@pass_settings
def image_uri(settings: Settings, name: str) -> None:
    """Print an image's address in ECR; its tag is a hash of the sources, so new sources are a new image.

    serving answers on the endpoint and on Azure Container Apps, processing evaluates in the pipeline: two targets of one
    Dockerfile. training is the image for image = "own" below [training].
    """
    from infra.aws import image as images

    address = {
        "serving": images.image_uri,
        "processing": images.processing_image_uri,
        "training": images.own_training_image_uri,
    }[name]
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


_wait = click.option(
    "--wait",
    "seconds",
    type=click.IntRange(min=0),
    default=300,
    show_default=True,
    metavar="SECONDS",
    help="How long the app on Azure may take until it reports the release; 0 asks at once.",
)


@main.group()
def publish() -> None:
    """Upload the built package to a deployed app."""


@publish.command("azure")
@_wait
@pass_settings
def publish_azure(settings: Settings, seconds: int) -> None:
    """Upload the package of the current release to the deployed Function App, then verify it.

    For those who deploy code apart from infrastructure, and for hosting = "flex" only: `cdktf deploy` uploads the package,
    too. It replaces the code and leaves the app's settings alone. Those declare one release, so a package with another
    model would be answered with 503: a new release goes out with `cdktf deploy`.

    Needs `az login`, or another credential that Azure's SDK finds, with the role Website Contributor on the app. Where a
    role has not reached every place yet, it tries again for up to 15 minutes and says so.
    """
    from ferry.azure import scm_url
    from ferry.publish import publish as upload_package

    upload_package(settings, scm_url(settings), line)
    _verify(settings, ["azure"], seconds, as_json=False)


@main.command()
@click.argument("names", metavar="[sagemaker|azure]...", nargs=-1, type=click.Choice(("sagemaker", "azure")))
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
@_wait
@pass_settings
def verify(settings: Settings, names: tuple[str, ...], as_json: bool, seconds: int) -> None:
    """Send the release's golden inputs to the named doors, or both, and compare labels, probabilities and release id.

    The app on Azure is asked for its release id first, until it reports the current one: after a deployment that takes a
    while. A 401 or 403 ends that at once.

    Real clouds need AWS credentials that may invoke the endpoint, and for Azure what azure.authorization asks for: the
    Function's key in FERRY_FUNCTION_KEY, or with "entra" whoever `az login` signed in. FERRY_AZURE_URL is the app's base
    URL where it is not the usual one: a container app, a custom domain, a name inside a private network.
    """
    _verify(settings, names or ("sagemaker", "azure"), seconds, as_json)


def _verify(settings: Settings, names: Sequence[str], seconds: int, as_json: bool) -> None:
    from ferry.doors import doors
    from ferry.release import current_release
    from ferry.verify import verify as verify_door
    from model_code.inference.predictor import Predictor

    current, members = current_release(settings)
    with tempfile.TemporaryDirectory() as folder:
        for name, content in members.items():
            (Path(folder) / name).write_bytes(content)
        predictor = Predictor.load(Path(folder))
    # On one machine nothing comes up later by itself. Standard output belongs to the JSON document alone.
    wait = 0 if settings.local is not None else seconds
    report = error_line if as_json else line
    reports = [  # of each door, also when the first one fails
        verify_door(door, current, predictor, wait=wait if door.name == "azure" else 0, report=report)
        for door in doors(settings, names)
    ]
    if as_json:
        click.echo(
            json.dumps({"release_id": current.release_id, "doors": [asdict(report) for report in reports]}, indent=2)
        )
    else:
        table = Table("door", "release", "largest difference", "seconds", "verdict")
        for each in reports:
            verdict = "; ".join(each.problems) or "same answers"
            difference = "" if each.max_abs_diff is None else f"{each.max_abs_diff:.1e}"
            table.add_row(each.door, each.release_id or "", difference, f"{each.seconds:.3f}", verdict)
        OUT.print(table)
    if wrong := [each.door for each in reports if each.problems]:
        raise FerryError(
            f"{' and '.join(wrong)}: not what release {current.release_id} has to answer; the result above says why"
        )


@main.command()
@click.argument("cloud", type=click.Choice(("azure", "aws", "all")))
@click.option("--data", is_flag=True, help="Also what holds data: buckets, packages, logs, images.")
@click.option("--keep", is_flag=True, help="Agree that something remains: exit code 0 all the same.")
@click.option("--yes", is_flag=True, help="Do not ask; for scripts.")
@pass_settings
@click.pass_context
def destroy(ctx: click.Context, settings: Settings, cloud: str, data: bool, keep: bool, yes: bool) -> None:
    """Delete the environment from one cloud or from both: what runs and costs; what holds data only with --data.

    Shows what will go and what will stay, and asks. Lists what remains, and ends with 1 where anything does, unless --keep agrees
    to it. It can be killed and run again.

    azure needs the stack folder that `cdktf synth` writes, its state, and `terraform` or `tofu`. A resource group that was
    imported is never deleted. aws runs `cdk destroy`; with aws.retain_data = true not even --data takes the Foundation
    stack, and with false its buckets are emptied first, every version.
    """
    from ferry.destroy import destroy as destroy_environment
    from ferry.processes import signals_interrupt

    if not yes and not sys.stdin.isatty():
        raise Refused("nobody is at this terminal to agree; --yes deletes without asking")
    path = settings_file(ctx.find_root().params["environment"])
    with signals_interrupt():  # the tool that is at work is told, and ends its step
        remaining = destroy_environment(
            settings, path, cloud, data, functools.partial(_ask_to_delete, settings, yes), line
        )
    if remaining and not keep:
        takes = "" if data else "--data takes what holds data, and "
        raise FerryError(f"{cloud}: {len(remaining)} remain, listed above; {takes}--keep agrees that they stay")


def _ask_to_delete(settings: Settings, yes: bool, cloud: str, goes: Sequence[str], stays: Sequence[str]) -> None:
    OUT.print(f"{cloud}, environment {settings.environment}: this will be deleted", style="bold")
    for each in goes:
        OUT.print(f"  - {each}")
    if stays:
        OUT.print("This stays:", style="bold")
        for each in stays:
            OUT.print(f"    {each}")
    if not yes and not click.confirm(f"Delete {len(goes)} from {cloud}?"):
        raise Refused(f"{cloud}: nothing was deleted")


@main.command()
@click.option(
    "--model", metavar="NAME", help="Another model in model_code/training; default: model.name of the settings."
)
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
def demo(
    ctx: click.Context, settings: Settings, model: str | None, source: str | None, keep: bool, output: Path
) -> None:
    """The whole journey on this machine: data, training, release, both stacks, both doors, one report."""
    from ferry.demo import run, with_model

    path = settings_file(ctx.find_root().params["environment"])
    settings, path = with_model(settings, path, model or settings.model.name)
    run(settings, path, source, output.resolve(), keep)


# The commands around a deployment and a hosted model are registered by modules of their own, which need what is defined above.
from ferry import cli_deploy, cli_hosting  # noqa: E402, F401
