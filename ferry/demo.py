"""The whole journey on one machine: data, emulated AWS, training, release, both clouds' stacks, both doors, one report.

Nothing is played back: the stacks go through the real `cdk` and `cdktf`, the job trains, the whole test set is sent to both
doors over HTTP. `run` returns only when every number holds.
"""

import functools
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from ferry import aws, local, picture
from ferry.console import OUT, Steps, line
from ferry.data import Dataset, prepare, read_test_set, upload
from ferry.doors import Door, doors, request_body
from ferry.errors import FerryError
from ferry.files import write_atomically
from ferry.package import build_package
from ferry.release import current_release, make_release
from ferry.train import TrainingJob, run_training_job
from infra.release import Release
from infra.settings import ENVIRONMENT_VARIABLE, ROOT, Settings
from model_code.inference.predictor import PROBABILITY_TOLERANCE, Predictor
from model_code.inference.preprocess import normalise

_BATCH = 200  # images in one request of the accuracy run: about 0.5 MB of JSON
_LATENCY_REQUESTS = 300
_LATENCY_WARM_UP = 20
_STEPS = 9
_AWS_STACKS = ("foundation", "training", "hosting", "gateway")


@dataclass
class _Findings:
    """The numbers of the report, and what is wrong with them."""

    report: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def expect(self, holds: bool, problem: str) -> None:
        if not holds:
            self.problems.append(problem)


def run(settings: Settings, settings_path: Path, source: str | None, output: Path, keep: bool) -> None:
    """Run the journey, write report.json, report.png and request.json below `output`, print the result.

    `settings_path` is where the `cdk` and `cdktf` processes read the same settings; with `keep` the local environment
    stays up. Raises FerryError when a step fails or a number is off, naming it.
    """
    aws.local_settings(settings)
    with local.exclusively(settings.build_path / "demo.lock", "ferry demo"), _signals_interrupt():
        for name in ("report.json", "report.png"):
            (output / name).unlink(missing_ok=True)
        local.down(settings, lambda _: None)  # an earlier run's stacks would be updated, not created
        local.refuse_busy_ports(settings)
        try:
            findings = _journey(settings, str(settings_path), source, output, Steps(_STEPS))
        except BaseException:
            local.down(settings, line)
            raise
        _print_result(findings, output)
        _print_curl(settings, output, keep)
        if not keep:
            local.down(settings, line)
    if findings.problems:
        raise FerryError("the numbers do not hold:\n" + "\n".join(f"  - {problem}" for problem in findings.problems))


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """A cancelled CI run or a closed terminal ends the demo as Ctrl-C does, with everything that it started."""

    def interrupt(number: int, _: object) -> None:
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _journey(settings: Settings, environment: str, source: str | None, output: Path, steps: Steps) -> _Findings:
    findings = _Findings()
    with steps.step("Data: two channels of IDX images"):
        dataset = prepare(settings, source, line)
        findings.report["dataset"] = dataset.name
        line(f"using {dataset.origin}")
    with steps.step("AWS: emulator, cdk bootstrap, cdk deploy Foundation Training"):
        local.up(settings, ["emulator"], line)
        target = f"aws://{settings.aws.account}/{settings.aws.region}"
        _tool(settings, environment, output, "cdk", "bootstrap", target)
        _deploy(settings, environment, output, "Foundation", "Training")
    with steps.step(f"Upload to s3://{settings.data_bucket}, the manifest last"):
        upload(settings, dataset, line)
    with steps.step("Training job, as SageMaker runs it"):
        job = run_training_job(settings, dataset.name, line)
    with steps.step("Release: verify, gate, pin, store"):
        make_release(settings, job.artifact_uri, line, dataset=dataset.name)
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
    with steps.step("The same test images through both"), tempfile.TemporaryDirectory() as folder:
        for name, content in members.items():
            (Path(folder) / name).write_bytes(content)
        predictor = Predictor.load(Path(folder), threads=os.cpu_count() or 1)
        _measure(settings, dataset, job, release, predictor, findings, output)
    findings.report["problems"] = findings.problems
    write_atomically(output / "report.json", (json.dumps(findings.report, indent=2) + "\n").encode())
    return findings


def _deploy(settings: Settings, environment: str, output: Path, *stacks: str) -> None:
    # The emulator forgets a stack's exports when it is created through a change set, and its parameters when it is updated.
    options = ("--exclusively", "--method", "direct", "--no-previous-parameters", "--require-approval", "never")
    _tool(settings, environment, output, "cdk", "deploy", *stacks, *options)


def _tool(settings: Settings, environment: str, output: Path, tool: str, *arguments: str) -> None:
    """Run the pinned cdk or cdktf against the emulator; its whole output goes to a log, the lines that matter here."""
    if tool == "cdk":
        arguments = (*arguments, "--output", str(output / "cdk.out"), "--ci", "--no-color", "--no-notices")
    log = output / f"{tool}-{arguments[0]}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    variables = aws.emulator_environment(settings) | {
        ENVIRONMENT_VARIABLE: environment,
        # The virtual environment's Node, not the system's, for the tools and for jsii.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "CHECKPOINT_DISABLE": "1",
        "CI": "1",
    }
    executable = ROOT / "node_modules" / ".bin" / tool
    if not executable.exists():
        raise FerryError(f"{executable}: not there; `make setup` installs it")
    command = [str(executable), *arguments]
    with log.open("a", encoding="utf-8") as file:
        process = subprocess.Popen(
            command, env=variables, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, encoding="utf-8", errors="replace",
        )  # fmt: skip
        assert process.stdout is not None
        try:
            tail: list[str] = []
            for text in process.stdout:
                file.write(text)
                tail = [*tail[-20:], text.rstrip()]
                if any(sign in text for sign in ("✅", "❌", "deploying...", "Generated Terraform")):
                    line(" ".join(text.split()))
            process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if process.returncode != 0:
        raise FerryError(
            f"{tool} {' '.join(arguments)} ended with {process.returncode}; {log} ends:\n" + "\n".join(tail)
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
    job: TrainingJob,
    release: Release,
    predictor: Predictor,
    findings: _Findings,
    output: Path,
) -> None:
    images, truth = read_test_set(dataset)
    signature = predictor.description.signature
    inputs = images.reshape(len(images), *(size or 1 for size in signature.input.shape[1:]))
    normalised = normalise(inputs, signature.preprocessing)
    probabilities: dict[str, NDArray[Any]] = {
        "torch": predictor.probabilities(np.load(job.paths.test_outputs, allow_pickle=False)),
        "onnx": _in_batches(len(images), lambda part: predictor.probabilities(predictor.run(normalised[part]))),
    }
    both = doors(settings)
    for door in both:
        line(f"{len(images):,} images to {door.url}")
        probabilities[door.name] = _in_batches(len(images), functools.partial(_ask, door, inputs, release))
    labels = {name: values.argmax(axis=1) for name, values in probabilities.items()}
    gate = dataset.settings(settings).gate
    difference = max(
        float(np.abs(one.astype(np.float64) - other).max())
        for one in probabilities.values()
        for other in probabilities.values()
    )
    line(f"{_LATENCY_REQUESTS} single images to each door, in turn")
    findings.report |= {
        "accuracy": {name: float((given == truth).mean()) for name, given in labels.items()},
        "gate": gate,
        "parity": {"max_abs_diff": difference},
        "release_id": release.release_id,
        "images": len(images),
        "latency_ms": _latency(both, normalised),
    }
    for name, accuracy in findings.report["accuracy"].items():
        findings.expect(accuracy >= gate, f"accuracy of {name} is {accuracy:.4f}, at least {gate} wanted")
        different = int((labels[name] != labels["torch"]).sum())
        findings.expect(different == 0, f"{different} labels of {name} differ from torch's")
    findings.expect(
        difference <= PROBABILITY_TOLERANCE,
        f"probabilities differ by {difference:.1e}, at most {PROBABILITY_TOLERANCE:.0e} allowed",
    )
    names = np.asarray(signature.labels)
    title = f"{release.release_id} on {dataset.name}: what both doors say"
    answers = {"SageMaker": names[labels["sagemaker"]].tolist(), "Azure": names[labels["azure"]].tolist()}
    picture.draw(output / "report.png", title, images, names[truth].tolist(), answers)
    write_atomically(output / "request.json", json.dumps({"data": normalised[:1].tolist()}).encode())


def _in_batches(count: int, answer: Callable[[slice], NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate([answer(slice(start, start + _BATCH)) for start in range(0, count, _BATCH)])


def _ask(door: Door, images: NDArray[np.uint8], release: Release, part: slice) -> NDArray[np.float64]:
    answer = door.classify(request_body(images[part], key="images"))
    if answer.release_id != release.release_id:
        raise FerryError(f"{door.name} answers with release {answer.release_id}, expected {release.release_id}")
    return answer.probabilities


def _latency(both: Sequence[Door], inputs: NDArray[np.float32]) -> dict[str, dict[str, float]]:
    """p50 and p99 in milliseconds of requests with one image, the doors asked in turn so that both see the same machine."""
    bodies = [request_body(inputs[i : i + 1]) for i in range(min(len(inputs), _LATENCY_REQUESTS))]
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
    table = Table(title=f"{report['release_id']} on {report['images']:,} test images of {report['dataset']}")
    for column, side in (("where", "left"), ("accuracy", "right"), ("p50 ms", "right"), ("p99 ms", "right")):
        table.add_column(column, justify="right" if side == "right" else "left")
    names = {"torch": "PyTorch", "onnx": "ONNX Runtime", "sagemaker": "SageMaker container", "azure": "Azure Function"}
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


def _print_curl(settings: Settings, output: Path, keep: bool) -> None:
    OUT.print("\nOne image by hand, to each door:" if keep else "\nKEEP=1 make demo leaves both doors open; then:")
    shown = shlex.quote(f"@{os.path.relpath(output / 'request.json')}")
    for door in doors(settings):
        OUT.print(f"  curl -H 'Content-Type: application/json' --data {shown} {door.url}")
    if keep:
        OUT.print("Both are up until: ferry local down")
