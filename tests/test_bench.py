"""The report's arithmetic and the peers' descriptions. What is measured depends on the machine, and no test says how much."""

import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench import cells as arithmetic
from bench import constant, training
from bench.cells import Cells
from bench.core import take_turn
from bench.environments import Missing, Peer, build, find_peers
from bench.goals import GOALS, goal_lines, judge, look_up
from bench.load import Load, read_autocannon, read_wrk
from bench.payloads import Payload, WrongAnswer
from bench.report import markdown, merge, ranked, write
from bench.servers import LOOPBACK, constant_server, running, tree
from bench.serving import peer_names
from infra.settings import ROOT
from model_code.training.evaluate import Scores

IMAGES = {"json_1": 1, "json_16": 16, "binary_16": 16}
PEERS = {"fastapi", "flask"}
MACHINE = {"processor": "any", "cores": 2, "python": "3.11.7", "onnxruntime": "1.31.1", "load_when_it_ended": 0.1}


def loads(*rates: float, p50: float = 1.0, p99: float = 2.0, errors: int = 0) -> list[Load]:
    return [Load(rate, p50, p99, errors) for rate in rates]


def three_rounds(**changes: list[Load]) -> Cells:
    """Ours and two peers with 16 images and 32 connections; `changes` replaces a server's rounds."""
    rounds = {"ours": loads(150, 300, 160), "fastapi": loads(100, 200, 80), "flask": loads(90, 210, 70), **changes}
    return Cells(
        images=IMAGES,
        loads={(name, "json_16", 32): measured for name, measured in rounds.items()},
        raw={1: [7000, 7000, 7000], 16: [3000, 6000, 3200]},
        start_seconds={name: [0.3, 0.6, 0.3] if name == "ours" else [0.6, 0.6, 1.2] for name in rounds},
        peak_bytes={name: [100 * 2**20, 130 * 2**20] if name == "ours" else [200 * 2**20] for name in rounds},
    )


def test_a_cell_is_the_median_of_its_rounds_and_the_sum_of_their_errors() -> None:
    measured = three_rounds(ours=loads(150, 300, 160, errors=2))
    cell = arithmetic.summarise(measured, PEERS)["ours"]["json_16"]["c32"]
    assert (cell["requests_per_second"], cell["images_per_second"], cell["errors"]) == (160, 2560, 6)
    assert cell["rounds"] == [150, 300, 160]


def test_ours_is_compared_with_the_best_peer_in_the_same_round() -> None:
    http = arithmetic.summarise(three_rounds(), PEERS)
    assert http["best_peer"]["json_16"]["c32"] == "fastapi"  # by its median, though flask had the best single round
    assert http["ratio_to_best_peer"]["json_16"]["c32"] == 1.5  # 1.5, 1.5 and 2; the medians would give 1.6


def test_the_share_of_the_raw_limit_is_of_the_same_round_too() -> None:
    http = arithmetic.summarise(three_rounds(), PEERS)
    assert http["images_per_second_over_raw"] == {"json_16": pytest.approx(0.8)}
    assert http["raw"] == {"images_per_second_batch_1": 7000, "images_per_second_batch_16": 3200}


def test_latency_memory_and_start_are_compared_with_the_peers() -> None:
    http = arithmetic.summarise(three_rounds(ours=loads(1, 1, 1, p50=4, p99=5), flask=loads(1, 1, 1, p99=10)), PEERS)
    assert http["p99_over_p50"]["json_16"]["c32"] == 1.25
    assert http["worst_p99_over_best_peer"] == 2.5
    assert http["memory_over_best_peer"] == 0.65
    assert http["start_over_fastapi"] == 0.5


def test_the_int8_release_counts_with_its_worst_cell() -> None:
    measured = three_rounds()
    measured.loads["ours", "json_1", 8] = loads(10, 10, 10)
    measured.loads["ours-int8", "json_1", 8] = loads(18, 18, 18)
    measured.loads["ours-int8", "json_16", 32] = loads(300, 900, 320)
    for table in (measured.start_seconds, measured.peak_bytes):
        table["ours-int8"] = [1, 1, 1]
    assert arithmetic.summarise(measured, PEERS)["int8_over_fp32"] == 1.8


def test_a_cell_that_no_peer_has_gets_no_ratio() -> None:
    measured = three_rounds()
    measured.loads["ours", "binary_16", 1] = loads(5, 5, 5)
    http = arithmetic.summarise(measured, PEERS)
    assert http["ours"]["binary_16"]["c1"]["requests_per_second"] == 5
    assert "binary_16" not in http["ratio_to_best_peer"]


def test_a_server_that_failed_in_one_round_is_gone_from_all() -> None:
    measured = three_rounds(fastapi=loads(100, 200))
    measured.drop("fastapi")
    http = arithmetic.summarise(measured, PEERS)
    assert "fastapi" not in http
    assert "start_over_fastapi" not in http
    assert http["best_peer"]["json_16"]["c32"] == "flask"


def test_without_ours_nothing_is_compared() -> None:
    measured = three_rounds()
    measured.drop("ours")
    assert set(arithmetic.summarise(measured, PEERS)) == {"fastapi", "flask", "raw"}


def test_only_answers_of_status_2xx_are_requests() -> None:
    wrk = {"requests": 100, "seconds": 2.0, "p50_ms": 1, "p99_ms": 2, "status_errors": 10, "socket_errors": 3}
    assert read_wrk(wrk) == Load(45, 1, 2, 13)
    autocannon = {"2xx": 90, "non2xx": 10, "errors": 3, "duration": 2.0, "latency": {"p50": 1, "p99": 2}}
    assert read_autocannon(autocannon) == Load(45, 1, 2, 13)
    autocannon["latency"] = {"p50": 0, "p99": 0}
    assert read_autocannon(autocannon) == Load(45, 1, 1, 13)


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


def test_the_training_within_the_examples_time_is_the_longest_that_fits() -> None:
    example, first, second = (
        training.Result(name, Scores(loss=loss, accuracy=accuracy), seconds, seconds)
        for name, accuracy, loss, seconds in (
            ("example", 0.984, 0.05, 60),
            ("1 epoch", 0.988, 0.04, 30),
            ("2 epochs", 0.991, 0.03, 59),
        )
    )
    measured = training.summarise(example, [first, second])["training"]
    assert (measured["ours_over_example_time"], measured["accuracy"], measured["loss"]) == (0.5, 0.988, 0.04)
    assert measured["accuracy_within_example_time"] == 0.991
    assert training.summarise(first, [second])["training"]["accuracy_within_example_time"] is None


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """A server that answers every POST alike; yields its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    server = HTTPServer((LOOPBACK, 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
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
    measured = three_rounds()
    for payload in IMAGES:
        for connections in arithmetic.CONNECTIONS:
            for name in ("ours", "fastapi"):
                measured.loads[name, payload, connections] = loads(100, 100, 100)
    measured.drop("flask")
    serving = {
        "http": arithmetic.summarise(measured, PEERS),
        "servers": {"ours": "modelferry", "fastapi": "FastAPI + uvicorn", "flask": "Flask + gunicorn"},
        "settings": {"flask": {"settings": "One worker a core.", "source": "https://example.com"}},
        "missing": {"flask": "no right answer\nfrom it", "ray": "ERROR: no matching distribution"},
        "method": {"load_generator": "wrk 4.1.0", "server_cores": [0, 1], "rounds": 3, "cell": 4},
    }
    return merge({"serving": {"measured": serving, "quick": True, "machine": MACHINE}})


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
