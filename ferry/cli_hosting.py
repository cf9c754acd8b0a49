"""The commands around a hosted model: its images, transform jobs, single requests, load tests and cost."""

import datetime
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.table import Table

from ferry.batch_results import FORMATS
from ferry.cli import image, listing, main, pass_settings, print_listing
from ferry.console import ERR, OUT, error_line, line
from ferry.errors import FerryError, Refused
from infra.settings import Settings

if TYPE_CHECKING:
    from ferry.cost import Estimate, Saving  # it brings ONNX Runtime, which most commands do without
    from ferry.prices import Price, Prices

_json = click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
_DOORS = ("endpoint", "gateway", "local", "azure")
_SHOWN_RESULTS = 10


@image.command("build")
@pass_settings
def image_build(settings: Settings) -> None:
    """Build the images with Docker or Podman, under the tags that name their sources.

    Needs no account. Without an engine there is `ferry image push`, which lets AWS CodeBuild do it.
    """
    from ferry.image import build

    for built in build(settings, line):
        OUT.print(built.uri)


@image.command("push")
@click.option("--codebuild", is_flag=True, help="Let CodeBuild do it, although there is Docker or Podman here.")
@pass_settings
def image_push(settings: Settings, codebuild: bool) -> None:
    """Bring the images into ECR and note the serving image's digest, which `cdk deploy` then pins.

    What the registry has is left alone. With Docker or Podman the images are built and pushed from here; without, by the
    CodeBuild project that `cdk deploy Image` makes, and its log is followed. Ctrl-C ends the watching only: the same command
    follows the same build again.
    """
    from ferry.image import push

    OUT.print(push(settings, line, codebuild=codebuild))


@main.command()
@click.argument("inputs", metavar="[FILE|FOLDER|S3-PREFIX]...", nargs=-1)
@click.option("--job", metavar="NAME", help="Go on with this job, or give a new one this name.")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where the results go; default: batch/<job> below the build folder.",
)
@click.option("--format", "form", type=click.Choice(FORMATS), default="csv", show_default=True, help="Of the table.")
@click.option("--wait/--no-wait", default=True, help="Follow the job and fetch its results; default: --wait.")
@_json
@pass_settings
def batch(
    settings: Settings,
    inputs: tuple[str, ...],
    job: str | None,
    output: Path | None,
    form: str,
    wait: bool,
    as_json: bool,
) -> None:
    """Run the deployed model over files: upload them, start a transform job, fetch its results as one table.

    \b
    ferry batch images/ more.npy           a job over all of them
    ferry batch s3://bucket/prefix/        over what lies there
    ferry batch --job NAME                 the same job again, after an interruption: nothing is done twice

    For environments with hosting.mode = "batch". The kind of a file is told by its name: .json, .jsonl, .npy, .csv, .png,
    .jpg; one job takes one kind. The table has a row for each record: file, record number, label, and probabilities where
    the requests ask for them. A file with a bad record has no result; it is named with the reason, and the exit code is 1.

    In a local environment the job is really run, on this machine, with the model and the data in the emulator.
    """
    from ferry import batch as jobs
    from ferry.processes import signals_interrupt

    if not inputs and job is None:
        raise Refused("give files, folders or an s3:// prefix, or --job NAME for one that was started")
    report = error_line if as_json else line
    name = job or jobs.new_job(settings)
    report(f"job       {name}")
    request = jobs.start(settings, name, inputs, report)
    if not wait:
        click.echo(json.dumps({"job": name}) if as_json else f"{name}: started; ferry batch --job {name}")
        return
    folder = output or jobs.default_folder(settings, name)
    with signals_interrupt():
        found = jobs.finish(settings, request, folder, report, form=form, bar=not as_json)
    if as_json:
        document = asdict(found) | {"table": str(found.table), "results": len(found.results)}
        click.echo(json.dumps(document, indent=2))
    else:
        table = listing("file", "record", "label")
        for each in found.results[:_SHOWN_RESULTS]:
            table.add_row(each.file, str(each.record), str(each.label))
        print_listing(table)
        if len(found.results) > _SHOWN_RESULTS:
            OUT.print(f"... and {len(found.results) - _SHOWN_RESULTS:,} more")
        OUT.print(f"{found.job}: {found.status}; {len(found.results):,} results in {found.table}")
    for file, reason in found.failed.items():
        ERR.print(f"no result  {file}: {reason}")
    if found.failed or found.status != "Completed":
        raise FerryError(f"{found.job}: {found.status}; {len(found.failed)} input files have no result")


@main.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path), required=False)
@click.option("--door", type=click.Choice(_DOORS), help="Default: the endpoint; in a local environment its container.")
@click.option("--random", "at_random", is_flag=True, help="A random test example; the default without a FILE.")
@click.option("--data", "source", metavar="SOURCE", help="Where random examples come from, as for `ferry data upload`.")
@click.option(
    "--probabilities", is_flag=True, help="Ask for probabilities; a FILE that is no JSON is sent as JSON then."
)
@click.option("--target-model", metavar="RELEASE", help="Which release of a multi-model endpoint.")
@click.option("--container", metavar="HOST", help="Which container of a multi-container endpoint.")
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    default=900,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for the answer of an asynchronous endpoint.",
)
@_json
@pass_settings
def invoke(
    settings: Settings,
    file: Path | None,
    door: str | None,
    at_random: bool,
    source: str | None,
    probabilities: bool,
    target_model: str | None,
    container: str | None,
    wait: float,
    as_json: bool,
) -> None:
    """Send one request to the model and show the answer.

    FILE is .json, .npy, .csv, .png or .jpg. Without one it is a random example of the test data, shown in the terminal with
    the label that is right.

    \b
    --door endpoint  the SageMaker runtime, with your AWS credentials
    --door gateway   API Gateway: signed with them, or with FERRY_GATEWAY_KEY or FERRY_GATEWAY_TOKEN, by
                     gateway.authorization
    --door local     the container of `ferry local up sagemaker`
    --door azure     the app on Azure; its key in FERRY_FUNCTION_KEY

    With an asynchronous endpoint the request is an object in S3, and so is the answer that is waited for.
    """
    from ferry import invoke as requests
    from ferry.doors import NotServing

    if file is not None and (at_random or source is not None):
        raise Refused("give a FILE, or --random with or without --data")
    report = error_line if as_json else line
    # The door first: what it lacks is told before a dataset is fetched.
    opened = requests.open_door(settings, door, report, wait=wait)
    asked = (
        requests.random_question(settings, source, report)
        if file is None
        else requests.file_question(settings, file, probabilities=probabilities)
    )
    asked = requests.aimed(asked, target_model, container)
    if asked.picture is not None and not as_json:
        OUT.print(requests.draw(asked.picture, colours=OUT.is_terminal), soft_wrap=True)
    try:
        reply = opened.ask(asked.question)
    except NotServing as error:
        started = "" if settings.local is None else f"; start it: ferry local up {opened.name}"
        raise FerryError(f"{error}{started}") from error
    document = requests.answer_document(settings, opened, asked, reply)
    if as_json:
        click.echo(json.dumps(document, indent=2))
        return
    rows = document["probabilities"] or [None] * len(document["labels"])
    for label, row in zip(document["labels"], rows, strict=True):
        expected = f"   expected {document['expected']}" if document["expected"] is not None else ""
        OUT.print(f"{label}{expected}", style="bold")
        for bar in requests.bars(row, document["names"]) if row else []:
            OUT.print(f"  {bar}")
    OUT.print(f"door       {document['door']}, {document['url']}")
    OUT.print(f"latency    {document['seconds'] * 1000:.1f} ms")
    OUT.print(f"release    {document['release_id'] or 'not told by this door'}")
    OUT.print(f"request    {document['request_id'] or 'not told by this door'}")


@main.command()
@click.option("--advanced", is_flag=True, help="A load test with traffic of your own (JobType Advanced).")
@click.option("--instance-type", "types", multiple=True, metavar="TYPE", help="With --advanced; repeated for several.")
@click.option(
    "--traffic",
    "traffic",
    multiple=True,
    metavar="USERS:SPAWNED:SECONDS",
    help="With --advanced, a phase: users to begin with, more a minute, how long; repeated for several.",
)
@click.option(
    "--max-invocations", type=click.IntRange(min=1), default=6000, show_default=True, help="A minute, with --advanced."
)
@click.option(
    "--latency-ms",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="P95 of the model, with --advanced.",
)
@click.option("--role", metavar="ARN", help="Role of the job; default: the hosting role.")
@click.option("--follow", "job", metavar="NAME", help="Start nothing; follow this job, and show what it recommends.")
@_json
@pass_settings
def recommend(
    settings: Settings,
    advanced: bool,
    types: tuple[str, ...],
    traffic: tuple[str, ...],
    max_invocations: int,
    latency_ms: int,
    role: str | None,
    job: str | None,
    as_json: bool,
) -> None:
    """Let SageMaker Inference Recommender measure the released model on real instances, and show what fits.

    Takes the current release's model package, or else the newest approved version, and the release's golden inputs as sample
    requests. A default job takes about 45 minutes and costs the hours of the instances it tries. The answer is a table, the
    cheapest inference first, and the lines to put into the settings.

    The job's role makes endpoints and calls them, which the hosting role of this project may not: give --role with the ARN
    of one that may (AWS names AmazonSageMakerFullAccess), and that reads releases/ in the artifacts bucket.
    """
    from ferry import recommend as recommender

    report = error_line if as_json else line
    if not advanced and (types or traffic):
        raise Refused("--instance-type and --traffic are for a load test: add --advanced")
    if job is None:
        load_test = (
            recommender.LoadTest(
                types or (settings.hosting.instance_type,),
                recommender.phases(traffic or ("1:1:120", "1:1:120")),
                max_invocations,
                latency_ms,
            )
            if advanced
            else None
        )
        job = recommender.start(settings, report, load_test=load_test, role=role)
    found = recommender.follow(settings, job, report)
    if as_json:
        rows = [asdict(each) | {"toml": each.toml()} for each in found]
        click.echo(json.dumps({"job": job, "recommendations": rows}, indent=2))
        return
    if not found:
        raise FerryError(f"{job}: completed without a recommendation; its steps above say why")
    table = listing("endpoint", "USD an hour", "USD a million", "requests a minute", "latency ms")
    for each in found:
        million = None if each.cost_per_inference is None else each.cost_per_inference * 1_000_000
        numbers = (each.cost_per_hour, million, each.max_invocations, each.model_latency_ms)
        table.add_row(each.place, *("" if number is None else f"{number:,.4g}" for number in numbers))
    print_listing(table)
    OUT.print("\nThe cheapest inference, as settings:\n", style="bold")
    click.echo(found[0].toml(), nl=False)


@main.command()
@click.option("--requests", "count", type=click.IntRange(min=1), default=1_000_000, show_default=True, help="A month.")
@click.option(
    "--seconds", type=click.FloatRange(min=0, min_open=True), help="Of the container for one; default: measured here."
)
@click.option("--payload-kb", type=click.FloatRange(min=0), help="Of a request and its answer; default: measured here.")
@click.option(
    "--busy-hours",
    type=click.FloatRange(min=0, max=24),
    default=8,
    show_default=True,
    help="Of a day in which an asynchronous endpoint that scales to zero has instances.",
)
@click.option("--update", is_flag=True, help="First read the prices of these settings from AWS; needs credentials.")
@click.option("--today", type=click.DateTime(["%Y-%m-%d"]), help="The day that prices are old by; default: today.")
@_json
@pass_settings
def cost(
    settings: Settings,
    count: int,
    seconds: float | None,
    payload_kb: float | None,
    busy_hours: float,
    update: bool,
    today: datetime.datetime | None,
    as_json: bool,
) -> None:
    """Estimate a month of these settings in every mode of hosting, from prices with a date and a source.

    Every price is in ferry/prices.toml or was read with --update; "~" marks those that are derived from others, and their
    sums. An estimate of the chosen mode that lacks a price ends with exit code 1. docs/operations.md shows the arithmetic.
    """
    from ferry import cost as costs
    from ferry.prices import OLD_DAYS, load_prices, own_file
    from ferry.prices import update as read_prices

    report = error_line if as_json else line
    day = today.date() if today else datetime.datetime.now(datetime.UTC).date()
    if update:
        report(f"prices    {read_prices(settings, report, today=day)}")
    if seconds is None or payload_kb is None:
        took, size = costs.measured(settings)
        report(f"measured  {took * 1000:.2f} ms and {size / 1000:.1f} kB for one request, on this machine")
        seconds = took if seconds is None else seconds
        payload_kb = size / 1000 if payload_kb is None else payload_kb
    traffic = costs.Traffic(count, seconds, round(payload_kb * 1000), busy_hours)
    prices = load_prices(settings)
    found = costs.estimate(settings, prices, traffic)
    old = prices.old(day)
    if as_json:
        document = {
            "region": prices.region,
            "traffic": asdict(traffic),
            "estimates": [asdict(each) | {"usd": each.usd, "derived": each.derived} for each in found],
            "prices": {label: _price_document(price) for label, price in prices.used.items()},
            "missing": prices.missing,
            "old": old,
        }
        click.echo(json.dumps(document, indent=2))
    else:
        OUT.print(_cost_table(found))
        for note in _cost_notes(found, asks_aws=settings.local is None):
            OUT.print(note, style="dim")
        for each in found:
            if each.chosen:
                OUT.print(f"\n{each.mode}, as the settings choose:", style="bold")
                for part in each.lines:
                    OUT.print(f"  {part.name:12} {part.formula} = {_usd(part.usd, part.derived)}")
        _print_prices(prices, day)
    # A local environment has no account that could ask.
    update_helps = "" if settings.local else "; `ferry cost --update` reads what AWS lists"
    if old:
        oldest, age = next(iter(old.items()))
        ERR.print(
            f"{len(old)} of {len(prices.used)} prices are older than {OLD_DAYS} days, the oldest ({oldest}) {age}{update_helps}",
            style="yellow",
        )
    if prices.missing:
        ERR.print(
            f"not known in {prices.region}: the price of {', '.join(prices.missing)}{update_helps}; "
            f"{own_file(settings)} takes others by hand",
            style="yellow",
        )
    if any(each.chosen and each.usd is None for each in found):
        raise FerryError(f"mode = {settings.hosting.mode!r} cannot be estimated: a price of it is not known")


def _price_document(price: "Price") -> dict[str, object]:
    """A price for a script: `derived` tells whether, `derivation` how."""
    given = asdict(price)
    return given | {"date": str(price.date), "derived": price.derived is not None, "derivation": price.derived}


def _cost_table(found: Sequence["Estimate"]) -> Table:
    table = Table("USD a month")
    for each in found:
        table.add_column(f"{each.mode} *" if each.chosen else each.mode, justify="right")
    names = list(dict.fromkeys(part.name for each in found for part in each.lines))
    for name in names:
        cells = []
        for each in found:
            parts = [part for part in each.lines if part.name == name]
            cells.append(_usd(parts[0].usd, parts[0].derived) if parts else "")
        table.add_row(name, *cells)
    table.add_row("all", *(_usd(each.usd, each.derived) for each in found), style="bold")
    for years in sorted({years for each in found for years in each.savings}):
        cells = [_saving(each.savings[years]) if years in each.savings else "" for each in found]
        table.add_row(f"with a {years}-year Savings Plan", *cells)
    return table


def _cost_notes(found: Sequence["Estimate"], *, asks_aws: bool) -> Iterator[str]:
    """What the marks in the table mean, as far as it has them."""
    from ferry.cost import MOST_SAVED

    if any(part.derived for each in found for part in each.lines):
        yield "~ holds a price that is derived from others; the list of prices says how."
    if any(plan.at_least is not None for each in found for plan in each.savings.values()):
        yield (
            f'from: the plan\'s rate is not known here. A plan saves "up to {MOST_SAVED:.0%}" of the instances, says AWS:\n'
            "      docs.aws.amazon.com/sagemaker/latest/dg/inference-cost-optimization.html"
        )
        if asks_aws:
            yield "      `ferry cost --update` reads the rate."


def _print_prices(prices: "Prices", day: datetime.date) -> None:
    """A line for each price that was used, and one for each source that they name."""
    if not prices.used:
        return
    sources: list[str] = []
    OUT.print("\nprices:", style="bold")
    names = max(map(len, prices.used))
    for label, price in prices.used.items():
        reasons = [price.derived] if price.derived else []
        if price.source:
            if price.source not in sources:
                sources.append(price.source)
            reasons.append(f"[{sources.index(price.source) + 1}]")
        old = "old" if price.old(day) else ""
        OUT.print(f"  {label:{names}}  {price.shown:>13}  {price.date} {old:3}  {' '.join(reasons)}", style="dim")
    for number, source in enumerate(sources, start=1):
        OUT.print(f"  [{number}] {_short(source)}", style="dim")


def _short(source: str) -> str:
    """A file on GitHub as its repository and name; ferry/prices.toml and --json have the whole address."""
    return re.sub(r"https://github\.com/([^/]+/[^/]+)/blob/(?:[^/,]+/)+", r"\1: ", source)


def _saving(plan: "Saving") -> str:
    return _usd(plan.usd, plan.derived) if plan.at_least is None else f"from {_usd(plan.at_least, plan.derived)}"


def _usd(value: float | None, derived: bool) -> str:
    if value is None:
        return "not known"
    digits = 2 if value >= 1 or value == 0 else 2 - math.floor(math.log10(value))
    return f"{'~' if derived else ''}{value:,.{digits}f}"
