"""The report's arithmetic and the peers' descriptions. What is measured depends on the machine, and no test says how much."""

import dataclasses
import json
import math
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from PIL import Image

from bench import cells as arithmetic
from bench import constant, gpu, publish, scale_batch, scale_cores, scale_models, sizing
from bench.cells import Cells
from bench.core import check, one_thread, take_turn
from bench.environments import Missing, Peer, build, find_peers
from bench.goals import GOALS, goal_lines, judge, look_up
from bench.load import Load, find_generator, har, read_autocannon, read_wrk
from bench.payloads import Payload, WrongAnswer, make_payload
from bench.report import markdown, merge, ranked, write
from bench.scale_models import Step
from bench.servers import LOOPBACK, Ping, constant_server, many_models, running, tree
from bench.serving import peer_names
from infra.settings import ROOT
from infra.settings_azure import FlexSettings
from infra.settings_hosting import HostingSettings
from model_code import environment
from model_code.container.settings import _MODEL_SHARE
from model_code.inference.predictor import Predictor
from tests import serving_models

IMAGES = {"json_1": 1, "json_16": 16, "binary_16": 16}
PEERS = {"fastapi", "flask"}
MACHINE = {
    "date": "2026-11-21",
    "processor": "any",
    "cores": 2,
    "python": "3.11.7",
    "onnxruntime": "1.31.1",
    "load_when_it_ended": 0.1,
}


def loads(*rates: float, p50: float = 1.0, p99: float = 2.0, errors: int = 0) -> list[Load]:
    return [Load(rate, p50, p99, errors) for rate in rates]


def add(cells: Cells, cell: tuple[str, int], mine: list[Load], **others: list[Load]) -> None:
    """What `others` did in a cell, in turns with ours."""
    for name, turns in others.items():
        for theirs, own in zip(turns, mine, strict=False):
            cells.add((name, *cell), theirs, own)


def three_turns(**changes: list[Load]) -> Cells:
    """Ours and two peers with 16 images and 32 connections; `changes` replaces a server's turns."""
    turns = {"ours": loads(150, 300, 160), "fastapi": loads(100, 200, 80), "flask": loads(90, 210, 70), **changes}
    cells = Cells(
        images=IMAGES,
        raw={1: [7000, 7000, 7000], 16: [3000, 6000, 3200]},
        steady={"json_16": loads(1, 1, p50=4, p99=5) + loads(1, p50=4, p99=6)},
        over_raw={("json_16", 8): [0.7, 0.9, 0.7], ("json_16", 32): [0.9, 0.8, 0.8]},
        start_seconds={name: [0.3, 0.6, 0.3] if name == "ours" else [0.6, 0.6, 1.2] for name in turns},
        peak_bytes={name: [100 * 2**20, 130 * 2**20] if name == "ours" else [200 * 2**20] for name in turns},
    )
    mine = turns.pop("ours")
    add(cells, ("json_16", 32), mine, **turns)
    return cells


def test_a_cell_is_the_median_of_its_turns_and_the_sum_of_their_errors() -> None:
    measured = three_turns(flask=loads(150, 300, 160, errors=2))
    cell = arithmetic.summarise(measured, PEERS)["flask"]["json_16"]["c32"]
    assert (cell["requests_per_second"], cell["images_per_second"], cell["errors"]) == (160, 2560, 6)
    assert cell["rounds"] == [150, 300, 160]


def test_ours_is_compared_with_the_best_peer_in_the_same_turn() -> None:
    http = arithmetic.summarise(three_turns(), PEERS)
    assert http["best_peer"]["json_16"]["c32"] == "fastapi"  # though flask had the best single turn
    assert http["ratio_to_best_peer"]["json_16"]["c32"] == 1.5  # 1.5, 1.5 and 2; the medians would give 1.6


def test_the_best_peer_is_the_one_that_came_nearest_to_ours_and_not_the_one_that_was_measured_in_a_quick_moment() -> (
    None
):
    measured = three_turns()
    add(measured, ("json_16", 32), loads(600, 600, 600), ray=loads(210, 210, 210))
    measured.start_seconds["ray"], measured.peak_bytes["ray"] = [9.0], [2**30]
    http = arithmetic.summarise(measured, PEERS | {"ray"})
    assert http["best_peer"]["json_16"]["c32"] == "fastapi"


def test_the_share_of_the_raw_limit_is_that_of_the_connections_that_suit_it_best() -> None:
    http = arithmetic.summarise(three_turns(), PEERS)
    assert http["images_per_second_over_raw"] == {"json_16": 0.8}
    assert http["raw"] == {"images_per_second_batch_1": 7000, "images_per_second_batch_16": 3200}


def test_latency_and_start_are_compared_with_the_peers() -> None:
    http = arithmetic.summarise(three_turns(ours=loads(1, 1, 1, p99=5), flask=loads(1, 1, 1, p99=10)), PEERS)
    assert http["p99_over_p50"]["json_16"]["c32"] == 1.25
    assert http["worst_p99_over_any_peer"] == 2.5
    assert http["start_over_fastapi"] == 0.5


def test_p99_is_compared_with_the_quickest_peer_of_each_cell_however_few_requests_it_answers() -> None:
    measured = three_turns(ours=loads(150, 300, 160, p99=4), flask=loads(9, 9, 9, p99=1))
    add(measured, ("json_1", 1), loads(10, 10, 10, p99=3), fastapi=loads(5, 5, 5, p99=6))
    http = arithmetic.summarise(measured, PEERS)
    assert http["quickest_peer"] == {"json_16": {"c32": "flask"}, "json_1": {"c1": "fastapi"}}
    assert http["p99_over_quickest_peer"] == {"json_16": {"c32": 4}, "json_1": {"c1": 0.5}}
    assert http["worst_p99_over_any_peer"] == 4


def test_memory_is_compared_with_the_peer_of_the_most_requests_and_not_with_the_lightest() -> None:
    measured = three_turns()
    measured.peak_bytes["flask"] = [50 * 2**20]
    mine = loads(2000, 2000, 2000)
    add(measured, ("json_1", 8), mine, fastapi=loads(1000, 1000, 1000), flask=loads(900, 900, 900))
    add(measured, ("binary_16", 8), mine, flask=loads(9000, 9000, 9000))  # a cell that fastapi does not have
    http = arithmetic.summarise(measured, PEERS)
    assert http["best_peer_over_all"] == "fastapi"
    assert http["memory_over_best_peer"] == 0.65  # 130 of 200 MiB


def test_the_int8_release_counts_with_the_geometric_mean_of_its_cells_and_each_is_in_the_report() -> None:
    measured = three_turns()
    add(measured, ("json_1", 8), loads(10, 10, 10), **{"ours-int8": loads(12.5, 12.5, 12.5)})
    add(measured, ("json_16", 32), loads(100, 300, 100), **{"ours-int8": loads(200, 900, 200)})
    for table in (measured.start_seconds, measured.peak_bytes):
        table["ours-int8"] = [1, 1, 1]
    http = arithmetic.summarise(measured, PEERS)
    assert http["int8_over_fp32_by_cell"] == {"json_1": {"c8": 1.25}, "json_16": {"c32": 2}}
    assert http["int8_over_fp32"] == pytest.approx(2.5**0.5)


def test_a_cell_that_no_peer_has_gets_no_ratio() -> None:
    measured = three_turns()
    measured.loads["ours", "binary_16", 1] = loads(5, 5, 5)
    http = arithmetic.summarise(measured, PEERS)
    assert http["ours"]["binary_16"]["c1"]["requests_per_second"] == 5
    assert "binary_16" not in http["ratio_to_best_peer"]


def test_a_server_that_failed_in_one_round_is_gone_from_all() -> None:
    measured = three_turns(fastapi=loads(100, 200))
    measured.drop("fastapi")
    http = arithmetic.summarise(measured, PEERS)
    assert "fastapi" not in http
    assert "start_over_fastapi" not in http
    assert http["best_peer"]["json_16"]["c32"] == "flask"


def test_without_ours_nothing_is_compared() -> None:
    measured = three_turns()
    measured.drop("ours")
    assert set(arithmetic.summarise(measured, PEERS)) == {"fastapi", "flask", "raw"}


def test_only_answers_of_status_2xx_are_requests() -> None:
    wrk = {"requests": 100, "seconds": 2.0, "p50_ms": 1, "p99_ms": 2, "status_errors": 10, "socket_errors": 3}
    assert read_wrk(wrk) == Load(45, 1, 2, 13)
    autocannon = {"2xx": 90, "non2xx": 10, "errors": 3, "duration": 2.0, "latency": {"p50": 1, "p99": 2}}
    assert read_autocannon(autocannon) == Load(45, 1, 2, 13)
    autocannon["latency"] = {"p50": 0, "p99": 0}
    assert read_autocannon(autocannon) == Load(45, 1, 1, 13)


def test_requests_that_go_round_are_spelled_for_autocannon_too(payload: Payload) -> None:
    entries = har("http://127.0.0.1:8080/models/a/invoke", payload, ["/models/a/invoke", "/models/b/invoke"])["log"][
        "entries"
    ]
    assert [entry["request"]["url"] for entry in entries] == [
        "http://127.0.0.1:8080/models/a/invoke",
        "http://127.0.0.1:8080/models/b/invoke",
    ]
    assert {entry["request"]["postData"]["text"] for entry in entries} == {'{"data": []}'}


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_wrk_goes_round_over_all_paths_and_sends_the_body_to_each(payload: Payload) -> None:
    asked: list[tuple[str, bytes]] = []
    with answering(200, b"{}", asked) as url:
        load = find_generator([0]).run(url, payload, 1, 1, ["/a", "/b", "/c"])
    assert load.errors == 0
    assert len(asked) > 3
    paths = [path for path, _ in asked]
    after = {"/a": "/b", "/b": "/c", "/c": "/a"}
    assert all(after[path] == following for path, following in pairwise(paths))
    assert {body for _, body in asked} == {b'{"data": []}'}


def test_a_goal_is_met_missed_or_missing() -> None:
    report = {"synth": {"ours_over_minimal": 2.0}, "core_over_raw": {"json_1": 1.26}}
    verdicts = {path: verdict for path, _, verdict in judge(report)}
    assert verdicts["synth.ours_over_minimal"] == "≤ 2 met"
    assert verdicts["core_over_raw.json_1"] == "≤ 1.25 MISSED"
    assert verdicts["training.accuracy"] == "missing"
    assert len(list(goal_lines(report))) == 2
    assert set(verdicts) == set(GOALS)


@pytest.mark.parametrize("path", ["a", "a.b.c", "a.x"])
def test_what_stands_at_no_path_is_missing(path: str) -> None:
    assert look_up({"a": {"b": 1}} if path != "a" else {}, path) is None


def test_one_turn_counts_at_least_one_call_but_the_first() -> None:
    calls: list[int] = []
    seconds = take_turn(lambda: calls.append(1))
    assert len(calls) == len(seconds) + 1 > 1


@contextmanager
def answering(status: int, body: bytes, asked: list[tuple[str, bytes]] | None = None) -> Iterator[str]:
    """A server that answers every POST alike, and keeps its paths and bodies in `asked`; yields its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["content-length"]))
            if asked is not None:
                asked.append((self.path, content))
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    server = HTTPServer((LOOPBACK, 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://{LOOPBACK}:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def payload(tmp_path: Path) -> Payload:
    body = tmp_path / "body"
    body.write_bytes(b'{"data": []}')
    return Payload("json_1", 1, "application/json", body, b'{"digits": [7]}')


def test_the_right_labels_in_any_spelling_are_right(payload: Payload) -> None:
    with answering(200, b'{"digits":[7]}\n') as url:
        payload.check(url)


@pytest.mark.parametrize(
    ("status", "body"), [(200, b'{"digits":[8]}'), (200, b"7"), (200, b"<html>"), (500, b'{"digits":[7]}')]
)
def test_wrong_labels_no_labels_and_error_statuses_are_wrong(payload: Payload, status: int, body: bytes) -> None:
    with answering(status, body) as url, pytest.raises(WrongAnswer, match="json_1"):
        payload.check(url)


def test_nothing_of_a_server_outlives_its_measurement(payload: Payload) -> None:
    assert payload.expected == constant.ANSWER
    with running(constant_server("constant", 2), payload, [0]) as server:
        leader, mark = server.leader, server.mark
        assert len(tree(leader, mark)) > 1
        server.weigh()
        assert server.peak_bytes > 2**20
    assert tree(leader, mark) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_measurement_leaves_no_server(payload: Payload, number: signal.Signals) -> None:
    script = f"""
import time
from bench import interruption
from bench.payloads import Payload
from bench.servers import *
interruption.raise_once()
with running(constant_server("constant", 1), Payload("", 1, "text/plain", Path({str(payload.file)!r}), {payload.expected!r}), [0]) as server:
    print(server.leader, server.mark, flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        leader, mark = process.stdout.readline().split()
        assert tree(int(leader), mark)
        process.send_signal(number)
        process.wait()
    assert tree(int(leader), mark) == []


def report_with_servers() -> dict[str, Any]:
    measured = three_turns()
    for payload in IMAGES:
        for connections in arithmetic.CONNECTIONS:
            add(measured, (payload, connections), loads(100, 100, 100), fastapi=loads(100, 100, 100))
    measured.drop("flask")
    serving = {
        "http": arithmetic.summarise(measured, PEERS),
        "servers": {"ours": "modelferry", "fastapi": "FastAPI + uvicorn", "flask": "Flask + gunicorn"},
        "settings": {"flask": {"settings": "One worker a core.", "source": "https://example.com"}},
        "missing": {"flask": "no right answer\nfrom it", "ray": "ERROR: no matching distribution"},
        "method": {"load_generator": "wrk 4.1.0", "server_cores": [0, 1], "rounds": 3, "turns": 2, "turn": 1},
    }
    return merge({"serving": {"measured": serving, "quick": True, "machine": MACHINE}})


def cell(rate: float, **more: Any) -> dict[str, Any]:
    return {"requests_per_second": rate, "images_per_second": rate, "p99_ms": 2.5, "errors": 0, **more}


def scale_part() -> dict[str, Any]:
    """What bench.scale measures, on two cores."""
    refused = {"skipped": "the body is larger than 6291456 bytes"}
    ways = ("session_run", "npy", "json_images", "json_data", "http_npy", "http_json_data")
    batch: dict[str, Any] = {way: {"1": cell(1000), "1024": cell(4000)} for way in ways}
    batch["json_data"]["1024"] = batch["http_json_data"]["1024"] = refused
    cores = {
        str(count): {
            way: {name: cell(rate * count, over_one_core=count) for name in names} | shape
            for way, rate, names, shape in (
                ("session_run", 2000, ("json_1", "binary_16"), {}),
                ("container", 1500, ("json_1", "binary_16"), {"processes": count + 1, "mebibytes": 60.0 * count}),
                ("multi_model", 1400, ("json_1",), {"processes": 2, "mebibytes": 70.0}),
            )
        }
        | {"load_generator": "on the other cores" if count == 1 else "on the same cores"}
        for count in (1, 2)
    }
    steps = {count: Step([(60 + 10 * count) * 2**20] * 3, [0.05] * 3, loads(800, 900, 1000)) for count in (1, 2, 4)}
    return {
        "batch": batch,
        "cores": cores,
        "processes": {"one": cell(900, mebibytes=70.0), "two": cell(950, mebibytes=120.0)},
        **scale_models.summarise(steps, "4 models are the most that are tried"),
        "method": {
            "load_generator": "wrk 4.1.0",
            "server_cores": [0, 1],
            "batch_connections": 4,
            "connections_a_core": 8,
            "models_connections": 8,
            "rounds": 3,
            "core_rounds": 4,
        },
    }


def full_report() -> dict[str, Any]:
    """All that is published, of no quick run."""
    report = report_with_servers()
    parts = {"core": {"core_over_raw": {"json_1": 1.2}}, "scale": {"scale": scale_part()}}
    merged = merge({name: {"measured": part, "quick": False, "machine": MACHINE} for name, part in parts.items()})
    run = {**merged["run"], "serving": {"quick": False, **MACHINE}}
    return {**report, **merged, "run": run}


def test_the_report_names_what_is_missing_and_why(tmp_path: Path) -> None:
    report = report_with_servers()
    files = write(report, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text()) == report
    text = (tmp_path / "report.md").read_text()
    assert "- flask: no right answer from it" in text
    assert "- ray: ERROR: no matching distribution" in text
    assert "| modelferry | 100 | 100 |" in text
    assert "| FastAPI + uvicorn | **100** |" in text
    assert "| Flask + gunicorn |" not in text
    assert "a quick try and no measurement" in text
    for picture in (file for file in files if file.suffix == ".png"):
        with Image.open(picture) as image:
            assert np.asarray(image).std() > 0  # something is drawn on it


def test_the_constant_answer_is_no_peer_and_stands_last() -> None:
    report = report_with_servers()
    report["servers"] = {"constant": "constant answer", **report["servers"]}
    report["http"]["constant"] = {"json_1": {"c8": {"images_per_second": 1e6}}}
    assert ranked(report)[-1] == "constant"


def test_a_report_of_one_part_is_written_too(tmp_path: Path) -> None:
    synth = {"synth": {"ours_over_minimal": 1.5, "seconds": {"ours": 9.0, "minimal": 6.0}}}
    report = merge({"synth": {"measured": synth, "quick": False, "machine": MACHINE}})
    assert [file.name for file in write(report, tmp_path)] == ["report.json", "report.md"]
    assert report["goals"] == {"synth.ours_over_minimal": {"value": 1.5, "verdict": "≤ 2 met"}}
    lines = list(markdown(report))
    assert "| `synth.ours_over_minimal` | 1.500 | ≤ 2 met |" in lines
    assert "\n## HTTP\n" not in lines


def test_the_report_has_a_part_and_pictures_for_scale(tmp_path: Path) -> None:
    report = merge({"scale": {"measured": {"scale": scale_part()}, "quick": False, "machine": MACHINE}})
    files = {file.name: file for file in write(report, tmp_path)}
    text = files["report.md"].read_text()
    assert "| 1024 | 4000 | 4000 | 4000 | † | 4000 | † |" in text
    assert "† the body is larger than 6291456 bytes" in text
    assert "| 2 | container | 3000 (2.00 ×) | 3000 (2.00 ×) | 2.5 | 3 | 120 | on the same cores |" in text
    assert "Each model after the first adds 10.0 MiB." in text
    assert "| 4 | 100 | 50 | 900 | 2.0 | 0 |" in text
    for name in ("scale-batch.png", "scale-cores.png", "scale-models.png"):
        with Image.open(files[name]) as image:
            assert np.asarray(image).std() > 0


def test_one_step_is_drawn_and_told_too(tmp_path: Path) -> None:
    scale = scale_part()
    scale["cores"] = {"1": scale["cores"]["1"]}
    scale |= scale_models.summarise({1: Step([2**26], [0.05], loads(10))}, "no memory for another")
    assert scale["mebibytes_per_model"] is None
    report = merge({"scale": {"measured": {"scale": scale}, "quick": False, "machine": MACHINE}})
    assert "scale-models.png" in [file.name for file in write(report, tmp_path)]
    assert "End: no memory for another." in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(("available", "counts"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4]), (16, [1, 2, 4, 8, 16])])
def test_cores_are_measured_by_powers_of_two(available: int, counts: list[int]) -> None:
    assert scale_cores.core_counts(available) == counts


def test_servers_that_are_asked_together_add_up_and_the_slowest_latency_counts() -> None:
    pair = [Load(100, 1, 2, 0), Load(50, 3, 4, 1)]
    assert scale_cores.together(pair) == Load(150, 3, 4, 1)


@pytest.fixture(scope="module")
def ml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An /opt/ml with a tiny model."""
    folder = tmp_path_factory.mktemp("ml")
    serving_models.write_model(folder / "model")
    return folder


def test_a_batch_that_the_core_refuses_is_not_timed_and_keeps_the_reason(ml: Path) -> None:
    predictor = Predictor.load(ml / "model")
    session = ort.InferenceSession(ml / "model" / "model.onnx", one_thread(), providers=["CPUExecutionProvider"])
    ways, refused = scale_batch.find_ways(predictor, session, (1, 1024))
    check(ways)
    assert {(way.name, way.count) for way in ways if way.count == 1024} == {
        ("session_run", 1024),
        ("json_images", 1024),
        ("npy", 1024),
    }
    assert list(refused) == [("json_data", 1024)]
    assert "6291456 bytes" in refused["json_data", 1024]


def test_models_are_loaded_as_sagemaker_does_until_the_container_is_full(ml: Path) -> None:
    server = many_models("test-scale", ml, 1)
    with running(server, Ping(), [0]) as container:
        urls = [scale_models.load_model(ml, container.url, name) for name in ("one", "two")]
        session = ort.InferenceSession(ml / "model" / "model.onnx", one_thread(), providers=["CPUExecutionProvider"])
        signature = Predictor.load(ml / "model").description.signature
        one_image = make_payload(signature, session, ml / "json_1", 1, "application/json")
        for url in urls:
            one_image.check(url)
        assert container.memory() > 2**20
    tight = dataclasses.replace(server, variables={**server.variables, environment.MODEL_MEMORY: "1"})
    with running(tight, Ping(), [0]) as container, pytest.raises(scale_models.Full, match="unload a model first"):
        scale_models.load_model(ml, container.url, "one")


def test_a_provider_is_measured_only_where_it_is_and_gives_the_same_labels(ml: Path) -> None:
    signature, model = Predictor.load(ml / "model").description.signature, ml / "model" / "model.onnx"
    measured = gpu.infer(signature, model, "CPUExecutionProvider", rounds=1, sizes=(1, 64))
    assert all(cell["images_per_second"] > 0 for cell in measured.values())
    assert list(measured) == ["1", "64"]
    with pytest.raises(gpu.Missing, match="has no NoSuchExecutionProvider"):
        gpu.infer(signature, model, "NoSuchExecutionProvider", rounds=1, sizes=(1,))


def test_the_report_of_a_machine_without_a_gpu_says_what_was_missing(tmp_path: Path) -> None:
    found = {"device": None, "training": {"missing": "no CUDA device"}, "inference": {"missing": "no such provider"}}
    report = merge({"gpu": {"measured": {"gpu": found}, "quick": False, "machine": MACHINE}})
    assert report["goals"] == {}
    write(report, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "## GPU: none" in text
    assert "- training: not measured: no CUDA device" in text
    assert "- inference: not measured: no such provider" in text


def test_the_report_of_a_gpu_has_its_numbers(tmp_path: Path) -> None:
    training = {"device": "H", "torch": "2", "seconds": [9.5, 4.25], "accuracy": 0.9876, "loss": 0.0357}
    found = {"device": "H", "training": training, "inference": {"1": {"images_per_second": 5000.0}}}
    write(merge({"gpu": {"measured": {"gpu": found}, "quick": False, "machine": MACHINE}}), tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "one epoch 4.2 s, 9.5 s with CUDA's start; accuracy 98.76%, loss 0.0357" in text
    assert "| 1 | 5000 |" in text


def committed() -> dict[str, Any] | None:
    """The report behind the page; None before the first one is published."""
    file = publish.PUBLISHED / "report.json"
    return json.loads(file.read_text()) if file.exists() else None


def test_every_number_on_the_page_is_that_of_the_committed_report() -> None:
    text = publish.PAGE.read_text()
    assert publish.page(text, committed()) == text
    shown = set(re.findall(r"\]\(performance/([\w.-]+)\)", text))
    assert shown == ({path.name for path in publish.PUBLISHED.iterdir()} if publish.PUBLISHED.exists() else set())


def test_publishing_writes_page_report_and_pictures_and_a_second_time_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, folder = tmp_path / "performance.md", tmp_path / "performance"
    page.write_text(publish.PAGE.read_text())
    write(full_report(), tmp_path)
    monkeypatch.setattr(publish, "PAGE", page)
    monkeypatch.setattr(publish, "PUBLISHED", folder)
    monkeypatch.setattr(sys, "argv", ["publish", str(tmp_path)])
    publish.main()
    once = page.read_text()
    assert {path.name for path in folder.iterdir()} == {"report.json", *publish.PICTURES}
    assert "| modelferry | 100; 2.0 | 100; 2.0 | 100; 2.0 | 130 | 0.30 |" in once
    assert "| `core_over_raw.json_1` | 1.200 | ≤ 1.25 met |" in once
    assert "Not measured: flask, no right answer\n" in once
    # From its own folder too: that is how the page follows a change of the goals or of its words.
    monkeypatch.setattr(sys, "argv", ["publish", str(folder)])
    publish.main()
    assert page.read_text() == once


@pytest.mark.parametrize(
    "report", [full_report(), *filter(None, [committed()])], ids=lambda one: one["run"]["core"]["processor"]
)
def test_the_example_of_the_page_can_be_followed_with_a_calculator(report: dict[str, Any]) -> None:
    text = " ".join("\n".join(sizing.example(report)).split())
    ours, scale = report["http"]["ours"]["json_1"], report["scale"]
    core = round(round(ours["c8"]["requests_per_second"]) / len(report["method"]["server_cores"]))
    usable = round(core * 0.65)
    assert f"**{core:,} requests a second**" in text
    assert f"**{usable:,} a second and core**" in text
    instances = -(-2000 // (2 * usable))
    assert f"**{instances:,} instance{'s' * (instances != 1)}** at the peak" in text
    assert f"`max_capacity = {instances + 1}`" in text
    assert f"`invocations_per_instance = {usable * 2 * 60}`" in text
    hold = round(1000 / core, 2)
    assert f"**{4.6 * hold / 0.35:.1f} ms**" in text
    in_flight = math.ceil(2000 * round(ours["c1"]["p99_ms"], 2) / 1000 / 0.7)
    assert f"`max_concurrency = {in_flight}`" in text
    least = -(-2000 // usable)
    assert f"**{least} instance{'s' * (least != 1)}** at least" in text
    first, each = round(scale["models"]["1"]["mebibytes"]), round(scale["mebibytes_per_model"], 1)
    assert f"**{int((3277 - first) / each) + 1} models**" in text
    assert f"--requests 525600000 --seconds {hold / 1000:.5f}" in text


def test_the_defaults_that_the_example_names_are_those_of_the_settings() -> None:
    assert FlexSettings().instance_memory_mb == 2048
    assert HostingSettings.model_fields["instance_type"].default == "ml.c6i.large"
    assert sizing.MULTI_MODEL_SHARE == _MODEL_SHARE


def test_a_quick_run_a_part_of_one_and_a_page_without_markers_are_not_published() -> None:
    report = full_report()
    report["run"]["core"]["quick"] = True
    with pytest.raises(SystemExit, match="a quick run is no measurement: core"):
        publish.publishable(report)
    del report["run"]["core"]
    with pytest.raises(SystemExit, match="the report has no core"):
        publish.publishable(report)
    with pytest.raises(SystemExit, match="<!-- results: "):
        publish.page("# Performance\n", None)


def test_nothing_of_this_machines_folders_is_published() -> None:
    report = full_report()
    report["missing"] = {"ray": f"{ROOT}/build/bench/env-ray: no such file\n/tmp/log: the end of a log"}
    assert publish.publishable(report)["missing"] == {"ray": "build/bench/env-ray: no such file"}


@pytest.mark.parametrize("peer", find_peers(), ids=lambda peer: peer.name)
def test_every_peer_has_exact_pins_and_its_settings_written_down(peer: Peer) -> None:
    pins = peer.pins()
    assert pins["onnxruntime"] == find_peers()[0].pins()["onnxruntime"]
    for name, version in pins.items():
        assert re.fullmatch(r"[A-Za-z0-9._-]+", name), name
        assert re.fullmatch(r"[0-9][A-Za-z0-9.]*", version), f"{name}=={version}"
    assert (peer.folder / "start.py").is_file()
    assert peer.source.startswith("https://")
    for subject in ("a core", "ONNX\\s+Runtime\\s+thread", "[Bb]atch"):
        assert re.search(subject, peer.settings), f"{peer.name}: {subject}"


def test_the_peers_run_the_onnx_runtime_that_ours_runs() -> None:
    ours = (ROOT / "model_code" / "container" / "requirements.txt").read_text()
    assert f"onnxruntime=={find_peers()[0].pins()['onnxruntime']}" in ours


def test_a_peer_without_its_program_is_missing_and_not_guessed() -> None:
    peer = next(peer for peer in find_peers() if peer.name == "torchserve")
    assert peer.programs == ("java",)
    needy = Peer(peer.name, peer.title, peer.path, True, peer.settings, peer.source, ("no-such-program",))
    with pytest.raises(Missing, match="no-such-program is not installed"):
        build(needy)


def test_an_unknown_peer_is_refused_with_the_known_ones() -> None:
    assert peer_names("flask, ray fastapi") == ["flask", "ray", "fastapi"]
    with pytest.raises(Exception, match=r"found 'django'; allowed: .*fastapi.*torchserve"):
        peer_names("flask django")
