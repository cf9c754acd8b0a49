"""The whole journey on one machine: data, emulated AWS, training, release, both clouds' stacks, both doors, one report.

Nothing is played back: the stacks go through the real `cdk` and `cdktf`, the job trains, the whole test set is sent to both
doors over HTTP. `run` returns only when every number holds.
"""

import functools
import itertools
import json
import os
import shlex
import shutil
import tempfile
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from numpy.typing import NDArray
from rich.table import Table

from ferry import aws, local, picture, registry
from ferry.console import OUT, Steps, line
from ferry.data import dataset_settings, known_models, prepare, read_test_set, upload
from ferry.doors import Door, doors, request_body
from ferry.errors import FerryError, Refused
from ferry.files import write_atomically
from ferry.locking import exclusively
from ferry.package import build_package
from ferry.pipeline_runner import Execution
from ferry.processes import signals_interrupt
from ferry.release import current_release
from ferry.tools import node_tool
from ferry.tools import run as run_tool
from ferry.train_local import train_locally
from infra.release import Release, ReleaseError, read_release
from infra.settings import ROOT, Settings, load_settings, settings_file
from model_code.environment import MlPaths
from model_code.inference.codecs import CSV, JSON
from model_code.inference.contract import Signature
from model_code.inference.predictor import PROBABILITY_TOLERANCE, Predictor
from model_code.training.dataset import Dataset
from model_code.training.examples import Examples

_BATCH = 200  # examples in one request of the accuracy run: of images about 0.5 MB of JSON
_LATENCY_REQUESTS = 300
_LATENCY_WARM_UP = 20
_STEPS = 9
_AWS_STACKS = ("foundation", "training", "hosting", "gateway")
_REQUESTS = {"request.json": JSON, "request.csv": CSV}  # one of them is written, for the models that take it


@dataclass
class _Findings:
    """The numbers of the report, and what is wrong with them."""

    report: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def expect(self, holds: bool, problem: str) -> None:
        if not holds:
            self.problems.append(problem)


def run(settings: Settings, settings_path: Path, source: str | None, output: Path, keep: bool) -> None:
    """Run the journey, write report.json, report.png and request.json or .csv below `output`, print the result.

    `settings_path` is where the `cdk` and `cdktf` processes read the same settings; with `keep` the local environment
    stays up. Raises FerryError when a step fails or a number is off, naming it.
    """
    aws.local_settings(settings)
    with exclusively(settings.build_path / "demo.lock", "ferry demo"), signals_interrupt():
        for name in ("report.json", "report.png", *_REQUESTS):
            (output / name).unlink(missing_ok=True)
        local.down(settings, lambda _: None)  # an earlier run's stacks would be updated, not created
        local.refuse_busy_ports(settings)
        try:
            findings = _journey(settings, str(settings_path), source, output, Steps(_STEPS))
        except BaseException:
            local.down(settings, line)
            raise
        _print_result(findings, output)
        _print_curl(settings, settings_path, output, keep)
        if not keep:
            local.down(settings, line)
    if findings.problems:
        raise FerryError("the numbers do not hold:\n" + "\n".join(f"  - {problem}" for problem in findings.problems))


def with_model(settings: Settings, settings_path: Path, model: str) -> tuple[Settings, Path]:
    """The same environment with another model and the dataset of its name, in a settings file and a build folder of its own.

    Nothing but `model` and `build_dir` differs. Raises Refused for a model that has no folder or no table [datasets.<model>].
    """
    if model == settings.model.name:
        return settings, settings_path
    allowed = [name for name in known_models() if name in settings.datasets]
    if model not in allowed:
        raise Refused(
            f"--model {model}: allowed: {', '.join(allowed)}; a model is a folder in model_code/training, and a table "
            f"[datasets.<model>] in {settings_path}"
        )
    build_dir = f"{settings.build_dir}-{model}"
    table = tomllib.loads(settings_path.read_text(encoding="utf-8-sig"))
    table |= {
        "environment": settings.environment,
        "build_dir": build_dir,
        "model": {"name": model, "dataset": model},
    }
    path = settings.model_copy(update={"build_dir": build_dir}).build_path / settings_path.name
    write_atomically(path, tomli_w.dumps(table).encode())
    return load_settings(str(path)), path


def _journey(settings: Settings, environment: str, source: str | None, output: Path, steps: Steps) -> _Findings:
    findings = _Findings()
    with steps.step("Data: a training and a testing channel"):
        dataset = prepare(settings, source, line)
        findings.report["dataset"] = dataset.name
        line(f"using {dataset.origin}")
    with steps.step("AWS: emulator, cdk bootstrap, cdk deploy Foundation Training"):
        local.up(settings, ["emulator"], line)
        _set_aside_unreadable(settings)
        target = f"aws://{settings.aws.account}/{settings.aws.region}"
        _tool(settings, environment, output, "cdk", "bootstrap", target)
        _deploy(settings, environment, output, "Foundation", "Training")
    with steps.step(f"Upload to s3://{settings.data_bucket}, the manifest last"):
        upload(settings, dataset, line)
    with steps.step("The deployed pipeline: train, evaluate, gate, register, transform"):
        execution = train_locally(settings, dataset.name, {}, line)
        if execution.reason is not None:
            raise FerryError(execution.reason)
    with steps.step("Approve and release: verify, gate, pin, store"):
        _release(settings, execution)
        release, members = current_release(settings)
    with steps.step("AWS: cdk deploy Hosting Gateway"):
        _deploy(settings, environment, output, "Hosting", "Gateway")
        _check_aws(settings, release, findings)
    with steps.step("Azure: ferry package, cdktf synth"):
        package = build_package(settings.release_path.parent, settings.package_path, report=line)
        line(f"{package.path.name}: {package.size / 2**20:.1f} MiB for Python {package.python_version}")
        _tool(settings, environment, output, "cdktf", "synth", "--output", str(output / "cdktf.out"))
        findings.report["azure"] = {"stack": _azure_stack(output / "cdktf.out")}
    with steps.step("Both doors: the SageMaker container and the Azure Function"):
        local.up(settings, ["sagemaker", "azure"], line)
    with steps.step("The same test set through both"), tempfile.TemporaryDirectory() as folder:
        for name, content in members.items():
            (Path(folder) / name).write_bytes(content)
        predictor = Predictor.load(Path(folder), threads=os.cpu_count() or 1)
        _measure(settings, dataset, MlPaths(execution.folder / "Train"), release, predictor, findings, output)
    findings.report["problems"] = findings.problems
    write_atomically(output / "report.json", (json.dumps(findings.report, indent=2) + "\n").encode())
    return findings


def _set_aside_unreadable(settings: Settings) -> None:
    """A release that an earlier version of ferry left would stop every synth, and the demo makes a new one anyway."""
    try:
        if settings.release_path.exists():
            read_release(settings.release_path)
    except ReleaseError as error:
        aside = settings.release_path.with_suffix(".unreadable")
        shutil.copyfile(settings.release_path, aside)  # the path is a link, which will lead to the next release
        settings.release_path.unlink()
        line(f"an earlier release cannot be read, it is {aside.name} now: {str(error).splitlines()[0]}")


def _release(settings: Settings, execution: Execution) -> None:
    """What `ferry approve` does with the version that the pipeline registered."""
    registered: str = execution.step("Register").properties["ModelPackageArn"]
    package = registry.approve(settings, int(registered.rpartition("/")[2]), None)
    registry.release_package(settings, package, line)


def _deploy(settings: Settings, environment: str, output: Path, *stacks: str) -> None:
    # The emulator forgets a stack's exports when it is created through a change set, and its parameters when it is updated.
    options = ("--exclusively", "--method", "direct", "--no-previous-parameters", "--require-approval", "never")
    _tool(settings, environment, output, "cdk", "deploy", *stacks, *options)


def _tool(settings: Settings, environment: str, output: Path, tool: str, *arguments: str) -> None:
    """Run the pinned cdk or cdktf against the emulator; its whole output goes to a log, the lines that matter here."""
    if tool == "cdk":
        arguments = (*arguments, "--output", str(output / "cdk.out"), "--ci", "--no-color", "--no-notices")
    executable, variables = node_tool(tool, settings, Path(environment))
    named = "-".join(itertools.takewhile(str.isalpha, arguments)).lower()  # the verb and its stacks
    run_tool(
        [executable, *arguments],
        environment=variables,
        folder=ROOT,
        log=output / f"{tool}-{named}.log",
        shows=lambda text: any(sign in text for sign in ("✅", "❌", "deploying...", "Generated Terraform")),
        report=line,
        alone=True,
    )


def _check_aws(settings: Settings, release: Release, findings: _Findings) -> None:
    """Ask the emulated control plane, not our own templates, what is deployed."""
    sagemaker, cloudformation = aws.client(settings, "sagemaker"), aws.client(settings, "cloudformation")
    stacks = {
        stack["StackName"]: stack["StackStatus"]
        for name in _AWS_STACKS
        for stack in cloudformation.describe_stacks(StackName=settings.stack(name))["Stacks"]
    }
    endpoint = sagemaker.describe_endpoint(EndpointName=settings.endpoint)
    config = sagemaker.describe_endpoint_config(EndpointConfigName=endpoint["EndpointConfigName"])
    model = sagemaker.describe_model(ModelName=config["ProductionVariants"][0]["ModelName"])
    deployed = model["PrimaryContainer"]["ModelDataUrl"]
    findings.report["aws"] = {"stacks": stacks, "endpoint_status": endpoint["EndpointStatus"]}
    line(f"endpoint {settings.endpoint}: {endpoint['EndpointStatus']}, serves {deployed}")
    for name, status in stacks.items():
        findings.expect(status == "CREATE_COMPLETE", f"stack {name} is {status}")
    findings.expect(endpoint["EndpointStatus"] == "InService", f"the endpoint is {endpoint['EndpointStatus']}")
    findings.expect(
        deployed == release.archive.uri, f"the endpoint serves {deployed}, released is {release.archive.uri}"
    )


def _azure_stack(folder: Path) -> str:
    (stack,) = json.loads((folder / "manifest.json").read_bytes())["stacks"]
    return str(stack)


def _measure(
    settings: Settings,
    dataset: Dataset,
    job: MlPaths,
    release: Release,
    predictor: Predictor,
    findings: _Findings,
    output: Path,
) -> None:
    examples = read_test_set(settings, dataset)
    signature, count = predictor.description.signature, len(examples.labels)
    probabilities: dict[str, NDArray[Any]] = {
        "training": predictor.probabilities(np.load(job.test_outputs, allow_pickle=False)),
        "onnx": _in_batches(count, lambda part: predictor.probabilities(predictor.run(examples.inputs[part]))),
    }
    both = doors(settings)
    for door in both:
        line(f"{count:,} examples to {door.url}")
        ask = functools.partial(_ask, door, _raw(examples.inputs, signature), signature, release)
        probabilities[door.name] = _in_batches(count, ask)
    labels = {name: values.argmax(axis=1) for name, values in probabilities.items()}
    gate = dataset_settings(settings, dataset.name).gate
    difference = max(
        float(np.abs(one.astype(np.float64) - other).max())
        for one in probabilities.values()
        for other in probabilities.values()
    )
    line(f"{_LATENCY_REQUESTS} requests with one example to each door, in turn")
    findings.report |= {
        "accuracy": {name: float((given == examples.labels).mean()) for name, given in labels.items()},
        "gate": gate,
        "parity": {"max_abs_diff": difference},
        "release_id": release.release_id,
        "examples": count,
        "latency_ms": _latency(both, examples.inputs),
    }
    for name, accuracy in findings.report["accuracy"].items():
        findings.expect(accuracy >= gate, f"accuracy of {name} is {accuracy:.4f}, at least {gate} wanted")
        different = int((labels[name] != labels["training"]).sum())
        findings.expect(different == 0, f"{different} labels of {name} differ from those of the training job")
    findings.expect(
        difference <= PROBABILITY_TOLERANCE,
        f"probabilities differ by {difference:.1e}, at most {PROBABILITY_TOLERANCE:.0e} allowed",
    )
    title = f"{release.release_id} on {dataset.name}: what both doors say"
    answers = {"SageMaker": labels["sagemaker"], "Azure": labels["azure"]}
    _draw(output / "report.png", title, examples, signature, answers)
    _write_request(output, examples.inputs)


def _raw(inputs: NDArray[np.float32], signature: Signature) -> tuple[str, NDArray[Any]]:
    """The key and the values of a request: images go to the doors as pixels, so that preprocessing is theirs."""
    if inputs.ndim == 4:
        return "images", picture.pixels(inputs, signature.preprocessing)
    return "data", inputs


def _in_batches(count: int, answer: Callable[[slice], NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate([answer(slice(start, start + _BATCH)) for start in range(0, count, _BATCH)])


def _ask(
    door: Door, raw: tuple[str, NDArray[Any]], signature: Signature, release: Release, part: slice
) -> NDArray[np.float64]:
    key, values = raw
    answer = door.classify(request_body(values[part], key))
    if answer.release_id != release.release_id:
        raise FerryError(f"{door.name} answers with release {answer.release_id}, expected {release.release_id}")
    if answer.labels != [signature.labels[index] for index in answer.probabilities.argmax(axis=1)]:
        raise FerryError(f"{door.name} answers with labels that do not belong to its probabilities")
    return answer.probabilities


def _draw(
    path: Path, title: str, examples: Examples, signature: Signature, answers: Mapping[str, NDArray[np.int64]]
) -> None:
    truth, *said = ([signature.labels[i] for i in each] for each in (examples.labels, *answers.values()))
    named = dict(zip(answers, said, strict=True))
    if examples.inputs.ndim == 4:
        images = picture.pixels(examples.inputs, signature.preprocessing)
        picture.draw_images(path, title, images, truth, named)
    else:
        picture.draw_confusion(path, title, signature.labels, truth, named)


def _write_request(output: Path, inputs: NDArray[np.float32]) -> None:
    """The first example, as somebody would send it by hand: a row of a table is one line of CSV."""
    if inputs.ndim == 2:
        write_atomically(output / "request.csv", (",".join(map(str, inputs[0])) + "\n").encode())
    else:
        write_atomically(output / "request.json", json.dumps({"data": inputs[:1].tolist()}).encode())


def _latency(both: Sequence[Door], inputs: NDArray[np.float32]) -> dict[str, dict[str, float]]:
    """p50 and p99 in milliseconds of requests with one example, the doors asked in turn so that both see the same machine."""
    bodies = [request_body(inputs[[i % len(inputs)]]) for i in range(_LATENCY_REQUESTS)]
    seconds: dict[str, list[float]] = {door.name: [] for door in both}
    for door in both:
        for body in bodies[:_LATENCY_WARM_UP]:
            door.classify(body)
    for body in bodies:
        for door in both:
            seconds[door.name].append(door.classify(body).seconds)
    return {
        name: {f"p{share}": round(float(np.percentile(values, share)) * 1000, 2) for share in (50, 99)}
        for name, values in seconds.items()
    }


def _print_result(findings: _Findings, output: Path) -> None:
    report = findings.report
    table = Table(title=f"{report['release_id']} on {report['examples']:,} test examples of {report['dataset']}")
    for column, side in (("where", "left"), ("accuracy", "right"), ("p50 ms", "right"), ("p99 ms", "right")):
        table.add_column(column, justify="right" if side == "right" else "left")
    names = {
        "training": "training job",
        "onnx": "ONNX Runtime",
        "sagemaker": "SageMaker container",
        "azure": "Azure Function",
    }
    for name, title in names.items():
        latency = report["latency_ms"].get(name, {})
        figures = [f"{latency[share]:.2f}" if latency else "" for share in ("p50", "p99")]
        table.add_row(title, f"{report['accuracy'][name]:.2%}", *figures)
    OUT.print(table)
    OUT.print(f"largest difference of a probability  {report['parity']['max_abs_diff']:.1e}")
    OUT.print(f"gate                                 {report['gate']:.2%}")
    OUT.print(f"endpoint in the emulator             {report['aws']['endpoint_status']}")
    OUT.print(f"report                               {output / 'report.json'}")
    OUT.print(f"picture                              {output / 'report.png'}")


def _print_curl(settings: Settings, settings_path: Path, output: Path, keep: bool) -> None:
    OUT.print("\nOne example by hand, to each door:" if keep else "\nKEEP=1 make demo leaves both doors open; then:")
    for name, content_type in _REQUESTS.items():
        if (output / name).exists():
            shown = shlex.quote(f"@{os.path.relpath(output / name)}")
            for door in doors(settings):
                OUT.print(f"  curl -H 'Content-Type: {content_type}' --data-binary {shown} {door.url}")
    if keep:
        chosen = "" if settings_path == settings_file() else f"--env {os.path.relpath(settings_path)} "
        OUT.print(f"Both are up until: ferry {chosen}local down")
