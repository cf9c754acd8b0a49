"""Puts the numbers of one full run on docs/performance.md, and the report and pictures that they come from beside it.

    python -m bench.publish [FOLDER]     the folder holds report.json and the pictures (default: build/bench)

Writes what stands between the page's markers and docs/performance/, and nothing else. Exit code 1 for a report of a quick run
or one without what the page shows: its numbers would be none.
"""

import argparse
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.cells import CONSTANT
from bench.environments import BUILD
from bench.goals import judge
from bench.report import HEADINGS, ranked
from bench.sizing import example
from bench.tables import table
from infra.settings import ROOT

PAGE = ROOT / "docs" / "performance.md"
PUBLISHED = ROOT / "docs" / "performance"
PICTURES = {
    "throughput.png": "Images a second of every server",
    "latency.png": "p50 to p99 of every server",
    "scale-batch.png": "Images a second over the images in a request",
    "scale-cores.png": "Images a second over cores",
    "scale-models.png": "Memory, rate and load time over the models in one container",
}
NEEDED = ("core", "serving", "scale")
UNPUBLISHED = "No full run has been published here yet; `python -m bench.publish` does it."

_CONNECTIONS = 8


def page(text: str, report: Mapping[str, Any] | None) -> str:
    """The page with the report's numbers between its markers. Raises SystemExit where a marker is missing."""
    for name, section in (("results", results), ("example", example)):
        begin, end = f"<!-- {name}: python -m bench.publish -->\n", f"<!-- end of {name} -->\n"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise SystemExit(f"docs/performance.md: wanted, once each: {begin.strip()} and {end.strip()}")
        body = "\n".join(section(report)) if report is not None else UNPUBLISHED
        head, rest = text.split(begin)
        text = f"{head}{begin}\n{body}\n\n{end}{rest.split(end)[1]}"
    return text


def results(report: Mapping[str, Any]) -> Iterator[str]:
    """Machine, goals, servers, pictures."""
    run, method = report["run"]["serving"], report["method"]
    loads = ", ".join(f"{name} {part['load_when_it_ended']}" for name, part in report["run"].items())
    yield f"{run['date']}: {run['processor']}, {run['cores']} cores, Python {run['python']}, onnxruntime"
    yield f"{run['onnxruntime']}, {method['load_generator']}; servers on {len(method['server_cores'])} cores. Load of the"
    yield f"machine at the end of each measurement: {loads}. Everything is in"
    yield "[performance/report.json](performance/report.json).\n"
    rows = [(f"`{path}`", "" if value is None else f"{value:.3f}", verdict) for path, value, verdict in judge(report)]
    yield from table(("number", "measured", "goal"), rows)
    yield f"\nRequests a second and p99 in ms with {_CONNECTIONS} connections; memory is the peak, PSS:\n"
    http, place = report["http"], f"c{_CONNECTIONS}"
    rows = []
    for name in ranked(report):
        cells = [http[name].get(payload, {}).get(place) for payload in HEADINGS]
        shown = [f"{cell['requests_per_second']:,.0f}; {cell['p99_ms']:.1f}" if cell else "–" for cell in cells]
        memory, start = http[name]["peak_mebibytes"], http[name]["start_seconds"]
        rows.append((report["servers"][name], *shown, f"{memory:.0f}", f"{start:.2f}"))
    yield from table(("server", *HEADINGS.values(), "MiB", "start, s"), rows)
    if CONSTANT in http:
        yield "\nThe last row answers a constant: HTTP without a model."
    for name, reason in report["missing"].items():
        yield f"\nNot measured: {name}, {reason}"
    for file, title in PICTURES.items():
        yield f"\n![{title}](performance/{file})"


def publishable(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report without what belongs to this machine alone: paths, and the ends of logs. Raises SystemExit."""
    missing = [name for name in NEEDED if name not in report["run"]]
    quick = [name for name, part in report["run"].items() if part["quick"]]
    if missing:
        raise SystemExit(f"the report has no {', '.join(missing)}: run `make bench` to its end")
    if quick:
        raise SystemExit(f"a quick run is no measurement: {', '.join(quick)}; run `make bench` without QUICK")
    document = json.loads(json.dumps(report).replace(f"{ROOT}/", ""))
    document["missing"] = {name: reason.splitlines()[0] for name, reason in document["missing"].items()}
    return dict(document)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.publish", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=BUILD, metavar="FOLDER", help="default: build/bench")
    folder = parser.parse_args().folder
    try:
        report = publishable(json.loads((folder / "report.json").read_text()))
        pictures = {name: (folder / name).read_bytes() for name in PICTURES}
    except OSError as error:
        raise SystemExit(f"{error}; run `make bench` first") from error
    text = page(PAGE.read_text(), report)
    if PUBLISHED.exists():
        shutil.rmtree(PUBLISHED)
    PUBLISHED.mkdir()
    (PUBLISHED / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    for name, content in pictures.items():
        (PUBLISHED / name).write_bytes(content)
    PAGE.write_text(text)
    print(f"{PAGE} and {PUBLISHED}: read the diff, then commit both")


if __name__ == "__main__":
    main()
