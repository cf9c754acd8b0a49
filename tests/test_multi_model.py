"""The multi-model container: the real `serve` process, asked as SageMaker asks it."""

import asyncio
import json
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import psutil  # type: ignore[import-untyped]
import pytest

from model_code import environment
from model_code.container.loaded_models import LoadedModels
from model_code.container.multi_model import MultiModelApplication
from model_code.inference import errors
from model_code.inference.contract import MAX_BODY_BYTES, Limits
from tests import serving_models
from tests.exchanges import call
from tests.serving_processes import Reply, Server, container, wait_until

JSON = {"Content-Type": "application/json"}
IMAGES = np.random.default_rng(0).normal(size=(2, 1, 28, 28)).astype(np.float32)
BODY = json.dumps({"data": IMAGES.tolist(), "probabilities": True}).encode()
SLOW_BODY = json.dumps({"data": (serving_models.SLOW / 5e8 * 6e5).tolist()}).encode()  # about a third of a second
SEEDS = 5


def answer(seed: int) -> list[int]:
    labels: list[int] = serving_models.log_probabilities(IMAGES, seed=seed).argmax(axis=1).tolist()
    return labels


def code(reply: Reply) -> str:
    return str(json.loads(reply.body)["error"]["code"])


def message(reply: Reply) -> str:
    return str(json.loads(reply.body)["error"]["message"])


class Endpoint:
    """What SageMaker does with a multi-model container: it unpacks models below `base` and names them to `server`."""

    def __init__(self, server: Server, base: Path) -> None:
        self.server = server
        self.base = base

    def unpack(self, name: str, seed: int = 0) -> str:
        """The url of a model, which is there like a downloaded one."""
        directory = self.base / "models" / name / "model"
        if not directory.exists():
            serving_models.write_model(directory, seed=seed)
        return str(directory)

    def load(self, name: str, url: str | None = None, seed: int = 0) -> Reply:
        document = {"model_name": name, "url": url or self.unpack(name, seed)}
        return self.server.ask("POST", "/models", json.dumps(document).encode(), JSON)

    def invoke(self, name: str, body: bytes = BODY, headers: dict[str, str] = JSON) -> Reply:
        return self.server.ask("POST", f"/models/{quote(name, safe='')}/invoke", body, headers)

    def unload(self, name: str) -> Reply:
        return self.server.ask("DELETE", f"/models/{quote(name, safe='')}")

    def get(self, name: str) -> Reply:
        return self.server.ask("GET", f"/models/{quote(name, safe='')}")

    def list(self) -> tuple[list[dict[str, str]], int]:
        """All models, and in how many pages they came."""
        models: list[dict[str, str]] = []
        pages, token = 0, None
        while pages == 0 or token:
            reply = self.server.ask("GET", "/models" + (f"?next_page_token={token}" if token else ""))
            assert reply.status == 200
            document = json.loads(reply.body)
            models += document["models"]
            pages, token = pages + 1, document.get("nextPageToken")
        return models, pages

    def worker(self) -> psutil.Process:
        (worker,) = psutil.Process(self.server.process.pid).children()
        return worker


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    base = tmp_path_factory.mktemp("ml")
    with container(base, SAGEMAKER_MULTI_MODEL="true", FERRY_WORKERS="2") as server:
        yield Endpoint(server, base)
        assert server.ask("GET", "/ping").status == 200  # whatever the tests sent, it still serves


# The contract


def test_without_models_ping_is_200_and_nothing_is_listed(endpoint: Endpoint) -> None:
    ping = endpoint.server.ask("GET", "/ping")
    assert (ping.status, ping.body) == (200, b"")
    assert endpoint.list() == ([], 1)


def test_a_model_is_loaded_told_asked_and_unloaded(endpoint: Endpoint) -> None:
    url = endpoint.unpack("one", seed=1)
    described = {"modelName": "one", "modelUrl": url}
    assert json.loads(endpoint.load("one", url).body) == described
    assert json.loads(endpoint.get("one").body) == described
    assert endpoint.list() == ([described], 1)
    reply = endpoint.invoke("one", headers=JSON | {"X-Amzn-SageMaker-Target-Model": "one/model.tar.gz"})
    assert (reply.status, json.loads(reply.body)["digits"]) == (200, answer(1))
    assert reply.headers["x-amzn-sagemaker-custom-attributes"] == reply.headers["x-release-id"]
    assert endpoint.unload("one").status == 200
    assert endpoint.list() == ([], 1)


def test_h42_what_is_not_loaded_is_404_for_every_verb(endpoint: Endpoint) -> None:
    for reply in (endpoint.get("nobody"), endpoint.unload("nobody"), endpoint.invoke("nobody")):
        assert (reply.status, code(reply)) == (404, "MODEL_NOT_LOADED")


def test_h42_a_name_is_loaded_once_and_again_after_it_was_unloaded(endpoint: Endpoint) -> None:
    assert endpoint.load("twice", seed=1).status == 200
    again = endpoint.load("twice")
    assert (again.status, code(again)) == (409, "MODEL_LOADED")
    endpoint.unload("twice")
    assert endpoint.load("twice").status == 200
    endpoint.unload("twice")


def test_h42_two_loads_of_a_name_at_once_are_one_200_and_one_409(endpoint: Endpoint) -> None:
    url = endpoint.unpack("race")
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda _: endpoint.load("race", url), range(8)))
    assert sorted(reply.status for reply in replies) == [200] + [409] * 7
    assert endpoint.invoke("race").status == 200
    endpoint.unload("race")


@pytest.mark.parametrize(
    "name",
    ["a b", "a/b", "50%", "50%25", "?x=1#y", "ż/ó\\ł", "a" * 1024, '"quoted"', "..x", "invoke", "-", "+", ";", "🙂"],
)
def test_a_name_is_opaque(endpoint: Endpoint, name: str) -> None:
    url = endpoint.unpack("odd")
    assert endpoint.load(name, url).status == 200
    assert json.loads(endpoint.get(name).body)["modelName"] == name
    assert endpoint.list()[0] == [{"modelName": name, "modelUrl": url}]
    assert endpoint.invoke(name).status == 200
    assert endpoint.unload(name).status == 200


@pytest.mark.parametrize("name", ["../../x", "..", ".", "a/../b", "a\x00b", "line\nbreak", "a" * 1025])
def test_h42_a_name_that_no_url_could_carry_is_400(endpoint: Endpoint, name: str) -> None:
    reply = endpoint.load(name, endpoint.unpack("odd"))
    assert (reply.status, code(reply)) == (400, "BAD_MODEL")


def test_h42_a_url_outside_the_folder_of_the_models_is_400_and_nothing_of_it_is_read(
    endpoint: Endpoint, tmp_path: Path
) -> None:
    serving_models.write_model(tmp_path / "outside")
    models = endpoint.base / "models"
    models.mkdir(exist_ok=True)
    (models / "link").symlink_to(tmp_path / "outside")
    (models / "circle").symlink_to(models / "circle")
    for url in (
        str(tmp_path / "outside"),
        f"{models}/../../{tmp_path.name}/outside",
        str(models / "link"),
        str(models / "circle"),
        str(models),
        f"{models}x",
        "/",
        "models/odd/model",
        "file:///etc",
        "/etc/passwd",
        f"{models}/a\0b",
    ):
        reply = endpoint.load("outside", url)
        assert (reply.status, code(reply)) == (400, "BAD_MODEL"), url
        assert str(endpoint.base) not in message(reply)
    assert endpoint.get("outside").status == 404


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda model: (model / "model.onnx").write_bytes(b"junk"), "DIGEST_MISMATCH"),
        (lambda model: (model / "model.json").write_bytes(b"{}"), "MODEL_INVALID"),
        (lambda model: (model / "model.json").unlink(), "MODEL_INVALID"),
        (lambda model: shutil.rmtree(model), "MODEL_INVALID"),
    ],
    ids=["onnx", "json", "missing", "folder"],
)
def test_h42_a_model_that_cannot_be_served_is_400_and_leaves_nothing_behind(
    endpoint: Endpoint, tmp_path: Path, damage: Any, reason: str
) -> None:
    url = endpoint.unpack(tmp_path.name)
    damage(Path(url))
    assert endpoint.load("sound", seed=1).status == 200
    reply = endpoint.load("damaged", url)
    assert (reply.status, code(reply)) == (400, "BAD_MODEL")
    assert reason in message(reply)
    assert url not in message(reply)
    assert url in endpoint.server.log.read_text()
    assert endpoint.get("damaged").status == 404
    assert json.loads(endpoint.invoke("sound").body)["digits"] == answer(1)
    assert endpoint.unload("sound").status == 200


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", "BAD_JSON"),
        (b"{", "BAD_JSON"),
        (b"\xff", "BAD_JSON"),
        (b"[" * 60_000, "BAD_JSON"),
        (b"[]", "BAD_FIELD"),
        (b"{}", "BAD_FIELD"),
        (b'{"model_name": "x"}', "BAD_FIELD"),
        (b'{"model_name": 1, "url": "/x"}', "BAD_FIELD"),
        (b'{"model_name": "x", "url": ""}', "BAD_FIELD"),
    ],
)
def test_an_order_that_is_none_is_400(endpoint: Endpoint, body: bytes, expected: str) -> None:
    reply = endpoint.server.ask("POST", "/models", body, JSON)
    assert (reply.status, code(reply)) == (400, expected)


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", "/ping", "GET"),
        ("PUT", "/models", "GET, POST"),
        ("DELETE", "/models", "GET, POST"),
        ("POST", "/models/x", "GET, DELETE"),
        ("GET", "/models/x/invoke", "POST"),
    ],
)
def test_another_method_is_405_and_says_which_are_allowed(
    endpoint: Endpoint, method: str, path: str, allow: str
) -> None:
    reply = endpoint.server.ask(method, path)
    assert (reply.status, code(reply), reply.headers["allow"]) == (405, "METHOD_NOT_ALLOWED", allow)


@pytest.mark.parametrize("path", ["/", "/invocations", "/models/x/invoke/y", "/models/%ff", "/execution-parameters"])
def test_any_other_path_is_404(endpoint: Endpoint, path: str) -> None:
    reply = endpoint.server.ask("POST", path, BODY, JSON)
    assert (reply.status, code(reply)) == (404, "NOT_FOUND")


def test_bad_requests_to_a_model_are_refused_as_everywhere(endpoint: Endpoint) -> None:
    endpoint.load("strict")
    for body, headers, expected in (
        (b"", JSON, (400, "EMPTY_BODY")),
        (b"{", JSON, (400, "BAD_JSON")),
        (b"<a/>", {"Content-Type": "text/xml"}, (415, "UNSUPPORTED_MEDIA_TYPE")),
        (BODY, JSON | {"Accept": "text/xml"}, (406, "NOT_ACCEPTABLE")),
        (bytes(MAX_BODY_BYTES + 1), JSON, (413, "BODY_TOO_LARGE")),
    ):
        reply = endpoint.invoke("strict", body, headers)
        assert (reply.status, code(reply)) == expected
    assert endpoint.invoke("strict").status == 200
    endpoint.unload("strict")


def test_an_order_that_is_too_long_is_413(endpoint: Endpoint) -> None:
    reply = endpoint.server.ask("POST", "/models", bytes(100_000), JSON)
    assert (reply.status, code(reply)) == (413, "BODY_TOO_LARGE")


@pytest.mark.parametrize("token", ["x", "%21", "AAA", "_w=="])
def test_a_token_that_is_none_is_400(endpoint: Endpoint, token: str) -> None:
    reply = endpoint.server.ask("GET", f"/models?next_page_token={token}")
    assert (reply.status, code(reply)) == (400, "BAD_FIELD")


# Many at once


def test_fifty_models_are_loaded_asked_and_unloaded_in_parallel(endpoint: Endpoint) -> None:
    names = [f"model-{number:02}" for number in range(50)]
    seeds = {name: number % SEEDS for number, name in enumerate(names)}
    for name in names:
        endpoint.unpack(name, seeds[name])

    def life(name: str) -> None:
        assert endpoint.load(name).status == 200
        assert json.loads(endpoint.invoke(name).body)["digits"] == answer(seeds[name])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(life, names))
        models, pages = endpoint.list()
        assert [model["modelName"] for model in models] == names
        assert pages == 3
        replies = list(pool.map(lambda name: endpoint.invoke(name, headers=JSON), names * 2))
        for name, reply in zip(names * 2, replies, strict=True):
            assert json.loads(reply.body)["digits"] == answer(seeds[name])
        assert endpoint.server.ask("GET", "/ping").status == 200
        assert {reply.status for reply in pool.map(endpoint.unload, names)} == {200}
    assert endpoint.list() == ([], 1)


def test_memory_and_files_are_given_back_over_many_lives(endpoint: Endpoint) -> None:
    worker = endpoint.worker()
    directory = endpoint.base / "models" / "heavy" / "model"
    serving_models.write_heavy_model(directory, megabytes=16)

    def live() -> None:
        assert endpoint.load("heavy", str(directory)).status == 200
        assert endpoint.invoke("heavy").status == 200
        assert endpoint.unload("heavy").status == 200

    for _ in range(5):
        live()
    before, files = worker.memory_info().rss, worker.num_fds()
    for _ in range(40):
        live()
    assert worker.memory_info().rss - before < 24 * 2**20  # 640 MB, if they were kept
    assert worker.num_fds() - files <= 4


def test_a_model_that_is_unloaded_answers_what_it_was_asked_before_and_nothing_after(endpoint: Endpoint) -> None:
    directory = endpoint.base / "models" / "slow" / "model"
    serving_models.write_slow_model(directory)
    assert endpoint.load("slow", str(directory)).status == 200
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(endpoint.invoke, "slow", SLOW_BODY) for _ in range(4)]
        time.sleep(0.15)
        unloading = pool.submit(endpoint.unload, "slow")
        wait_until(lambda: endpoint.get("slow").status == 404)
        assert not all(one.done() for one in asked)
        assert endpoint.invoke("slow").status == 404
        again = pool.submit(endpoint.load, "slow", str(directory))
        ping = endpoint.server.ask("GET", "/ping")
        assert unloading.result().status == 200
    assert {one.result().status for one in asked} == {200}
    assert ping.status == 200
    assert again.result().status == 200  # it waited for the unload
    assert endpoint.unload("slow").status == 200


def test_ping_and_the_other_models_answer_while_a_large_one_is_loaded(endpoint: Endpoint) -> None:
    directory = endpoint.base / "models" / "large" / "model"
    serving_models.write_heavy_model(directory, megabytes=192)
    endpoint.load("small")
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(endpoint.load, "large", str(directory))
        longest, answers = 0.0, 0
        while not loading.done():
            started = time.monotonic()
            assert endpoint.server.ask("GET", "/ping").status == 200
            assert endpoint.invoke("small").status == 200
            longest, answers = max(longest, time.monotonic() - started), answers + 1
        assert loading.result().status == 200
    assert answers > 1
    assert longest < 2
    for name in ("small", "large"):
        assert endpoint.unload(name).status == 200


# The process


def test_h42_what_does_not_fit_is_507_until_another_model_is_unloaded(tmp_path: Path) -> None:
    for number in range(12):
        directory = tmp_path / "models" / f"heavy-{number}" / "model"
        if number == 0:
            serving_models.write_heavy_model(directory, megabytes=24)
        else:
            directory.parent.mkdir()
            directory.symlink_to(tmp_path / "models" / "heavy-0" / "model")
    variables = {environment.MULTI_MODEL: "true", environment.MODEL_MEMORY: "320"}
    with container(tmp_path, **variables) as server:
        endpoint = Endpoint(server, tmp_path)
        loaded = 0
        while (reply := endpoint.load(f"heavy-{loaded}")).status == 200:
            loaded += 1
        assert 2 <= loaded <= 10
        assert (reply.status, code(reply)) == (507, "RESOURCES_EXHAUSTED")
        assert "of 320 MB are taken; unload a model first" in message(reply)
        assert endpoint.get(f"heavy-{loaded}").status == 404
        assert endpoint.invoke("heavy-0").status == 200
        assert endpoint.unload("heavy-0").status == 200
        assert endpoint.load(f"heavy-{loaded}").status == 200
        assert endpoint.invoke(f"heavy-{loaded}").status == 200
        assert endpoint.worker().memory_info().rss < 320 * 2**20


def test_h35_a_worker_that_takes_a_dead_ones_place_has_its_models(tmp_path: Path) -> None:
    with container(tmp_path, SAGEMAKER_MULTI_MODEL="true") as server:
        endpoint = Endpoint(server, tmp_path)
        for seed in range(3):
            assert endpoint.load(f"model-{seed}", seed=seed).status == 200
        endpoint.unload("model-0")
        shutil.rmtree(tmp_path / "models" / "model-1")  # it cannot come back, and must not keep the others away
        endpoint.worker().kill()
        wait_until(lambda: server.log.read_text().count("this worker is ready") == 2)
        assert [model["modelName"] for model in endpoint.list()[0]] == ["model-2"]
        assert json.loads(endpoint.invoke("model-2").body)["digits"] == answer(2)


def test_it_listens_on_its_port_alone_and_stops_with_0(tmp_path: Path) -> None:
    variables = {environment.MULTI_MODEL: "true", "SAGEMAKER_SAFE_PORT_RANGE": "20000-20010", environment.WORKERS: "4"}
    with container(tmp_path, **variables) as server:
        parent = psutil.Process(server.process.pid)
        assert len(parent.children()) == 1
        family = [parent, *parent.children(recursive=True)]
        ports = {link.laddr.port for one in family for link in one.net_connections() if link.status == "LISTEN"}
        assert ports == {server.port}
        parent.terminate()
        assert server.process.wait(30) == 0


# In this process, where time must be short


def table(tmp_path: Path, **options: Any) -> LoadedModels:
    return LoadedModels(tmp_path, 2**40, tmp_path / "journal.json", **options)


def test_pages_move_no_model_when_others_come_and_go(tmp_path: Path) -> None:
    serving_models.write_model(tmp_path / "m")

    async def scenario() -> None:
        models = table(tmp_path, page_models=2)
        for name in ("a", "b", "c", "d", "e"):
            await models.load(name, str(tmp_path / "m"))
        first, token = models.page(None)
        assert [model.name for model in first] == ["a", "b"]
        await models.unload("b")  # the one that the token names
        await models.load("aa", str(tmp_path / "m"))
        second, token = models.page(token)
        assert [model.name for model in second] == ["c", "d"]
        third, end = models.page(token)
        assert ([model.name for model in third], end) == (["e"], None)

    asyncio.run(scenario())


def test_a_load_goes_on_to_its_end_when_sagemaker_hangs_up(tmp_path: Path) -> None:
    serving_models.write_model(tmp_path / "m")
    file = tmp_path / "m" / environment.MODEL_FILE
    content = file.read_bytes()
    file.unlink()
    os.mkfifo(file)  # cannot be read before somebody writes it

    async def scenario() -> None:
        models = table(tmp_path)
        app = MultiModelApplication(models, threads=1, limits=Limits())
        await app.open()
        order = json.dumps({"model_name": "x", "url": str(tmp_path / "m")}).encode()
        asked = asyncio.create_task(call(app, "POST", "/models", order))
        pipe = await asyncio.to_thread(file.open, "wb")  # which waits until the model is being read
        asked.cancel()
        with suppress(asyncio.CancelledError):
            await asked
        with pipe:
            await asyncio.to_thread(pipe.write, content)
        while not models.page(None)[0]:
            await asyncio.sleep(0.01)
        assert models.find("x").predictor is not None

    asyncio.run(scenario())


def test_files_that_run_out_are_507_and_no_invalid_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serving_models.write_model(tmp_path / "m")

    def no_more(path: Path) -> bytes:
        raise OSError(24, os.strerror(24), str(path))

    async def scenario() -> None:
        models = table(tmp_path)
        with monkeypatch.context() as patched:
            patched.setattr(Path, "read_bytes", no_more)
            with pytest.raises(errors.ResourcesExhausted, match="not enough memory or files"):
                await models.load("x", str(tmp_path / "m"))
        assert await models.load("x", str(tmp_path / "m"))

    asyncio.run(scenario())


def test_a_list_that_cannot_be_written_stops_no_model(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    serving_models.write_model(tmp_path / "m")

    async def scenario() -> None:
        models = LoadedModels(tmp_path, 2**40, tmp_path / "no folder" / "journal.json")
        await models.load("x", str(tmp_path / "m"))
        with models.use("x") as predictor:
            assert predictor.run(IMAGES).shape == (2, 10)

    asyncio.run(scenario())
    assert "cannot be written" in caplog.text
