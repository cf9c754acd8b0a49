"""`ferry verify`: which door is asked for what, with whose permission, and what counts as the released model's answer."""

import json
from pathlib import Path
from typing import Any

import pytest

from ferry.azure import app_url
from ferry.doors import HttpDoor, azure_door, doors, request_body
from ferry.errors import FerryError, Refused
from ferry.verify import DoorReport, verify, wait_for_release
from infra.release import Release
from infra.settings import Settings
from infra.settings_azure import AzureSettings
from model_code.inference.contract import Request
from model_code.inference.predictor import Predictor
from model_code.inference.respond import error_response, health, respond
from tests.local_settings import local_settings
from tests.scripted_server import Reply, Server, SignedIn, scripted
from tests.serving_models import write_model
from tests.stack_fixtures import dev_settings, make_release

TENANT, CLIENT = "11111111-2222-3333-4444-555555555555", "66666666-7777-8888-9999-000000000000"
IMAGE = {"image": f"registry.example.com/serving@sha256:{'0' * 64}"}
HEALTH, CLASSIFY = "GET /api/health", "POST /api/classify"


def silent(_: str) -> None:
    return None


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    folder = tmp_path_factory.mktemp("model")
    write_model(folder)
    return Predictor.load(folder)


@pytest.fixture(scope="module")
def release(predictor: Predictor) -> Release:
    return make_release(dev_settings(), predictor.description.onnx.sha256)


def classified(predictor: Predictor) -> Reply:
    """What the serving core answers to the golden inputs."""
    body = request_body(predictor.description.signature.golden.inputs)
    answer = respond(predictor, Request(body, "application/json", "application/json", "an id"))
    return Reply(answer.status, answer.body, answer.headers)


def healthy(predictor: Predictor | None) -> Reply:
    answer = health(predictor, "an id")
    return Reply(answer.status, answer.body, answer.headers)


def reported(release_id: str) -> Reply:
    return Reply(200, json.dumps({"status": "ok", "release_id": release_id}).encode(), {"x-release-id": release_id})


def door(server: Server) -> HttpDoor:
    return HttpDoor("azure", f"{server.url}/api/classify", health=f"{server.url}/api/health", denied="show your key")


def asked(replies: dict[str, list[Reply]], release: Release, predictor: Predictor, wait: float = 20) -> DoorReport:
    with scripted(replies) as server:
        return verify(door(server), release, predictor, wait=wait)


def azure(**table: Any) -> Settings:
    settings = dev_settings()
    return settings.model_copy(update={"azure": AzureSettings(location="westeurope", suffix="dev01", **table)})


def test_the_released_model_has_no_problems(release: Release, predictor: Predictor) -> None:
    report = asked({HEALTH: [healthy(predictor)], CLASSIFY: [classified(predictor)]}, release, predictor)
    assert report.problems == ()
    assert report.release_id == release.release_id
    assert report.max_abs_diff is not None
    assert report.max_abs_diff <= 1e-5


def test_golden_inputs_go_out_only_after_health_reports_the_release(release: Release, predictor: Predictor) -> None:
    starting = [Reply(404), healthy(None), reported("mnist-000000000000"), healthy(predictor)]
    lines: list[str] = []
    with scripted({HEALTH: starting, CLASSIFY: [classified(predictor)]}) as server:
        report = verify(door(server), release, predictor, wait=20, report=lines.append)
    assert report.problems == ()
    assert [request.path for request in server.asked] == ["/api/health"] * 4 + ["/api/classify"]
    assert len(lines) == 3
    assert "HTTP 503" in lines[1]
    assert "serves release mnist-000000000000" in lines[2]


def test_waiting_has_an_end_that_says_what_to_do(release: Release, predictor: Predictor) -> None:
    report = asked({HEALTH: [reported("mnist-000000000000")]}, release, predictor, wait=0.3)
    (problem,) = report.problems
    assert "serves release mnist-000000000000" in problem
    assert f"waited 0.3 s for release {release.release_id}" in problem
    assert "`cdktf deploy`" in problem


@pytest.mark.parametrize("status", [401, 403])
def test_a_closed_door_is_not_waited_for(status: int, release: Release, predictor: Predictor) -> None:
    with scripted({HEALTH: [Reply(status, b"Ip Forbidden")]}) as server:
        with pytest.raises(FerryError, match=rf"HTTP {status}: Ip Forbidden; show your key"):
            wait_for_release(door(server), release.release_id, 20, silent)
        assert len(server.asked) == 1


def test_a_wrong_key_says_where_the_right_one_is(release: Release, predictor: Predictor) -> None:
    report = asked({HEALTH: [healthy(predictor)], CLASSIFY: [Reply(401)]}, release, predictor)
    assert "show your key" in report.problems[0]


def test_without_waiting_the_door_is_asked_at_once(release: Release, predictor: Predictor) -> None:
    report = asked({CLASSIFY: [Reply(503, error_response(ValueError("x"), "1").body)]}, release, predictor, wait=0)
    assert "HTTP 503" in report.problems[0]


def test_m24_another_release_other_labels_and_other_numbers_are_each_named(
    release: Release, predictor: Predictor
) -> None:
    document = json.loads(classified(predictor).body)
    document["digits"][0] = (document["digits"][0] + 1) % 10
    document["probabilities"][0][0] += 0.5
    wrong = Reply(200, json.dumps(document).encode(), {"x-release-id": "mnist-000000000000"})
    report = asked({CLASSIFY: [wrong]}, release, predictor, wait=0)
    assert [problem.split()[0] for problem in report.problems] == ["serves", "labels", "probabilities"]


def test_a_redirect_is_not_followed(release: Release, predictor: Predictor) -> None:
    with scripted({}) as elsewhere:
        moved = Reply(307, headers={"Location": f"{elsewhere.url}/api/classify"})
        report = asked({CLASSIFY: [moved]}, release, predictor, wait=0)
    assert "HTTP 307" in report.problems[0]
    assert elsewhere.asked == []


def permission(settings: Settings, monkeypatch: pytest.MonkeyPatch, credential: SignedIn | None = None) -> Any:
    """The headers that reach the door of `settings`."""
    with scripted({"GET /api/health": [reported("a")], "GET /ping": [reported("a")]}) as server:
        monkeypatch.setenv("FERRY_AZURE_URL", server.url)
        azure_door(settings, credential).release()
    (request,) = server.asked
    return request.headers


def test_the_functions_key_opens_the_default_door(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Refused, match="FERRY_FUNCTION_KEY is not set: az functionapp keys list"):
        azure_door(azure())
    monkeypatch.setenv("FERRY_FUNCTION_KEY", "a-key")
    headers = permission(azure(), monkeypatch)
    assert headers["x-functions-key"] == "a-key"
    assert "Authorization" not in headers


def test_entra_opens_its_door_with_a_token_for_the_audience_and_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FERRY_FUNCTION_KEY", "a-key")
    entra = {"tenant_id": TENANT, "client_id": CLIENT, "audiences": [f"api://{CLIENT}"]}
    for table in ({}, {"hosting": "container", "container": IMAGE}):
        credential = SignedIn()
        headers = permission(azure(authorization="entra", entra=entra, **table), monkeypatch, credential)
        assert headers["Authorization"] == "Bearer an-entra-token"
        assert credential.scopes == [f"api://{CLIENT}/.default"]
        assert "x-functions-key" not in headers


def test_an_anonymous_door_gets_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FERRY_FUNCTION_KEY", "a-key")
    headers = permission(azure(authorization="anonymous"), monkeypatch)
    assert not {"Authorization", "x-functions-key"} & set(headers)


def test_a_container_answers_where_sagemaker_asks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FERRY_AZURE_URL", "https://ca-modelferry.example.com/")
    found = azure_door(azure(hosting="container", container=IMAGE))
    assert found.url == "https://ca-modelferry.example.com/invocations"
    assert found.health == "https://ca-modelferry.example.com/ping"


def test_a_container_without_an_address_is_refused_with_the_reason() -> None:
    with pytest.raises(Refused, match=r"inside its environment only.*FERRY_AZURE_URL"):
        app_url(azure(hosting="container", container=IMAGE))
    with pytest.raises(Refused, match=r"FERRY_AZURE_URL.*az containerapp show"):
        app_url(azure(hosting="container", container=IMAGE, authorization="anonymous"))


def test_a_given_address_wins_and_has_to_be_a_safe_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert app_url(azure()) == "https://func-modelferry-dev-dev01.azurewebsites.net"
    monkeypatch.setenv("FERRY_AZURE_URL", "https://digits.example.com")
    assert app_url(azure()) == "https://digits.example.com"
    for wrong in ("http://digits.example.com", "digits.example.com", "https://user:pass@digits.example.com", ""):
        monkeypatch.setenv("FERRY_AZURE_URL", wrong)
        with pytest.raises(Refused, match="FERRY_AZURE_URL: found"):
            app_url(azure())


def test_one_door_can_be_asked_without_the_others_permission() -> None:
    (only,) = doors(dev_settings(), ["sagemaker"])
    assert only.name == "sagemaker"


def test_a_local_environment_never_leaves_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FERRY_AZURE_URL", "https://digits.example.com")
    assert all(each.url.startswith("http://127.0.0.1:") for each in doors(local_settings(tmp_path)))
