"""Puts what the measurements left together: build/bench/report.json, report.md and the pictures.

    python -m bench.report

A measurement that was not run, or that failed, is missing from it. Exit code 0 also where a goal is missed: a report is no test.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from bench.cells import CONNECTIONS, CONSTANT
from bench.environments import BUILD
from bench.goals import goal_lines, judge, look_up
from bench.parts import PARTS
from bench.plots import draw_latency, draw_throughput
from bench.scale_plots import draw_batch, draw_cores, draw_models
from bench.scale_tables import gpu_lines, scale_lines
from bench.tables import table
from infra.settings import ROOT

NAMES = ("core", "cold_start", "serving", "scale", "synth", "training", "gpu")

HEADINGS = {"json_1": "JSON, 1 image", "json_16": "JSON, 16 images", "binary_16": "npy, 16 images"}


def merge(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """One report of the parts' shares; what they say of machine and versions stands below `run`, by part."""
    report: dict[str, Any] = {"run": {}}
    for name, part in parts.items():
        report.update(part["measured"])
        report["run"][name] = {"quick": part["quick"], **part["machine"]}
    report["goals"] = {
        path: {"value": value, "verdict": verdict} for path, value, verdict in judge(report) if value is not None
    }
    return report


def ranked(report: Mapping[str, Any]) -> list[str]:
    """The measured servers, by images a second with JSON, 1 image, 8 connections; the one that answers a constant is last."""
    http, titles = report.get("http", {}), report.get("servers", {})
    names = [name for name in titles if name in http]
    return sorted(names, key=lambda name: (name == CONSTANT, -http[name]["json_1"]["c8"]["images_per_second"]))


def markdown(report: Mapping[str, Any]) -> Iterator[str]:
    yield "# Measurements\n"
    for name, run in report["run"].items():
        short = ", a quick try and no measurement" if run["quick"] else ""
        yield (
            f"- {name}: {run['processor']}, {run['cores']} cores, Python {run['python']}, onnxruntime {run['onnxruntime']}, "
            f"load {run['load_when_it_ended']} when it ended{short}"
        )
    yield "\n## Goals\n"
    yield from table(
        ("number", "measured", "goal"),
        [(f"`{path}`", "" if value is None else f"{value:.3f}", verdict) for path, value, verdict in judge(report)],
    )
    if "http" in report:
        yield from _http(report)
    if "core_microseconds" in report:
        yield "\n## Core, one process, no HTTP\n"
        rows = [(way, f"{micros:.0f}") for way, micros in report["core_microseconds"].items()]
        yield from table(("way, images", "median µs"), rows)
    if "function_cold_start" in report:
        yield "\n## Cold start of the Function\n"
        rows = [(way, f"{ms:.0f}") for way, ms in report["function_cold_start"]["milliseconds"].items()]
        yield from table(("way", "median ms to the first answer"), rows)
    if "training" in report:
        training = report["training"]
        yield f"\n## Training, torch {training['torch']}, {training['threads']} threads\n"
        accuracies = training["accuracies"]
        yield from table(
            ("loop", "seconds", "accuracy"),
            [(name, f"{time:.1f}", f"{accuracies[name]:.2%}") for name, time in training["seconds"].items()],
        )
    if "synth" in report:
        yield "\n## `cdk synth`\n"
        rows = [(name, f"{seconds:.2f}") for name, seconds in report["synth"]["seconds"].items()]
        yield from table(("app", "median seconds"), rows)
    if "scale" in report:
        yield from scale_lines(report["scale"])
    if "gpu" in report:
        yield from gpu_lines(report["gpu"])


def _http(report: Mapping[str, Any]) -> Iterator[str]:
    http, titles, method = report["http"], report["servers"], report["method"]
    names = ranked(report)
    yield "\n## HTTP\n"
    yield (
        f"Rounds: {method['rounds']}, in each of them {method['turns']} turns of {method['turn']:g} s with ours in a cell; medians; "
        f"servers on {len(method['server_cores'])} cores; {method['load_generator']}; c8 is 8 connections. Bold: the best peer of a "
        "cell, by its turns with ours. The last row is HTTP without a model."
    )
    columns = [(payload, f"c{connections}") for payload in HEADINGS for connections in CONNECTIONS]
    heads = [f"{HEADINGS[payload]}, {place}" for payload, place in columns]
    for what, show in (("Requests a second", _rate), ("p50 / p99, ms", _latency)):
        yield f"\n### {what}\n"
        rows = [[titles[name], *(show(http, name, payload, place) for payload, place in columns)] for name in names]
        yield from table(("server", *heads), rows)
    if "int8_over_fp32_by_cell" in http:
        yield "\n### Requests a second of the int8 release over those of the float32 one\n"
        ratios = [look_up(http, f"int8_over_fp32_by_cell.{payload}.{place}") for payload, place in columns]
        yield from table(heads, [[f"{ratio:.2f}" if ratio else "–" for ratio in ratios]])
        yield "\n`http.int8_over_fp32` is their geometric mean."
    yield "\n### Raw limit: images a second of `session.run`\n"
    yield from table(("limit", "images/s"), [(name, f"{rate:.0f}") for name, rate in http["raw"].items()])
    yield "\n### Memory, start, errors\n"
    rows = []
    for name in names:
        errors = sum(http[name][payload][place]["errors"] for payload, place in columns if payload in http[name])
        server = http[name]
        rows.append([titles[name], f"{server['peak_mebibytes']:.0f}", f"{server['start_seconds']:.2f}", str(errors)])
    yield from table(("server", "peak MiB (PSS)", "seconds to the first answer", "errors"), rows)
    if "best_peer_over_all" in http:
        yield (
            f"\nMemory is compared with {titles[http['best_peer_over_all']]}, the peer with the most requests a second: the "
            "largest geometric mean over the cells that all peers have."
        )
    if "quickest_peer" in http:
        yield "\n### p99 over the quickest peer's, of the same round and connections\n"
        cells = [
            f"{http['p99_over_quickest_peer'][payload][place]:.2f} × {titles[http['quickest_peer'][payload][place]]}"
            if look_up(http, f"quickest_peer.{payload}.{place}")
            else "–"
            for payload, place in columns
        ]
        yield from table(heads, [cells])
    if report["missing"]:
        yield "\n### Missing\n"
        yield from (f"- {name}: {' '.join(reason.split())}" for name, reason in report["missing"].items())
    yield "\n### Settings of the peers\n"
    for name, said in report["settings"].items():
        yield f"- **{titles.get(name, name)}**: {' '.join(said['settings'].split())} ({said['source']})"


def _rate(http: Mapping[str, Any], name: str, payload: str, place: str) -> str:
    rate = look_up(http, f"{name}.{payload}.{place}.requests_per_second")
    best = look_up(http, f"best_peer.{payload}.{place}") == name
    return "–" if rate is None else f"**{rate:.0f}**" if best else f"{rate:.0f}"


def _latency(http: Mapping[str, Any], name: str, payload: str, place: str) -> str:
    cell = look_up(http, f"{name}.{payload}.{place}")
    return f"{cell['p50_ms']:.1f} / {cell['p99_ms']:.1f}" if cell else "–"


def write(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """The report's files in `folder`; the pictures only of what was measured."""
    files = [folder / "report.json", folder / "report.md"]
    files[0].write_text(json.dumps(report, indent=2) + "\n")
    files[1].write_text("\n".join(markdown(report)) + "\n")
    for name, image in _pictures(report):
        image.save(folder / name)
        files.append(folder / name)
    return files


def _pictures(report: Mapping[str, Any]) -> Iterator[tuple[str, Image.Image]]:
    if ranked(report):
        for name, draw in (("throughput.png", draw_throughput), ("latency.png", draw_latency)):
            yield name, draw(report, ranked(report), HEADINGS)
    if "scale" in report:
        for name, draw_lines in (("batch", draw_batch), ("cores", draw_cores), ("models", draw_models)):
            yield f"scale-{name}.png", draw_lines(report["scale"])


def read_parts() -> dict[str, dict[str, Any]]:
    paths = {name: PARTS / f"{name}.json" for name in NAMES}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def main() -> None:
    parts = read_parts()
    if not parts:
        raise SystemExit(
            f"nothing was measured yet: {PARTS} is empty; run `make bench`, or one of bench.{', bench.'.join(NAMES)}"
        )
    report = merge(parts)
    files = write(report, BUILD)
    for line in goal_lines(report):
        print(line)
    missing = [path for path, value, _ in judge(report) if value is None]
    if missing:
        print(f"\nnot measured: {', '.join(missing)}")
    print(f"\n{', '.join(str(file.relative_to(ROOT)) for file in files)}")


if __name__ == "__main__":
    main()
