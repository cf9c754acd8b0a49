"""`ferry publish azure` speaks the deployment service's protocol: patient where time helps, at once where it does not."""

import json
import zipfile
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from azure.core.exceptions import ClientAuthenticationError

from ferry.doors import HttpDoor
from ferry.errors import FerryError, Refused
from ferry.publish import Patience, check_package, publish, refuse_hosting, refuse_other_release, upload
from infra.release import Release
from infra.settings import Settings
from infra.settings_azure import AzureSettings
from tests.local_settings import local_settings
from tests.scripted_server import Reply, SignedIn, scripted
from tests.stack_fixtures import dev_settings, make_release, write_release

DEPLOYMENT = "3f394416-b25a-4e42-aa01-02a1f011772e"
PUBLISH = "POST /api/publish"
STATUS = f"GET /api/deployments/{DEPLOYMENT}"
LOG = f"GET /api/deployments/{DEPLOYMENT}/log"
ACCEPTED = Reply(202, json.dumps(DEPLOYMENT).encode())
QUICK = Patience(seconds=20, pause=0.01, longest_pause=0.02)
IMPATIENT = Patience(seconds=0.05, pause=0.01, longest_pause=0.02)


def deployment(status: int, identifier: str = DEPLOYMENT) -> Reply:
    """What /api/deployments/<id> says of a deployment, as far as anybody reads it."""
    document = {"id": identifier, "status": status, "status_text": "", "complete": status > 2, "deployer": "ferry"}
    return Reply(200, json.dumps(document).encode())


def log(*messages: str) -> Reply:
    return Reply(
        200, json.dumps([{"message": message, "type": 0, "details_url": None} for message in messages]).encode()
    )


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return write_package(tmp_path, make_release(dev_settings()))


def write_package(folder: Path, release: Release) -> Path:
    path = folder / "released-package.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("release/release.json", release.to_bytes())
        archive.writestr("function_app.py", "app = 1\n" * 5000)
    return path


def send(package: Path, replies: dict[str, list[Reply]], patience: Patience = QUICK) -> tuple[Any, list[str]]:
    lines: list[str] = []
    with scripted(replies) as server:
        upload(package, server.url, SignedIn(), lines.append, patience)
    return server, lines


def failure(package: Path, replies: dict[str, list[Reply]], patience: Patience = QUICK) -> str:
    with pytest.raises(FerryError) as caught:
        send(package, replies, patience)
    return str(caught.value)


def test_the_zip_arrives_whole_with_a_token_and_asks_for_no_build(package: Path) -> None:
    server, lines = send(package, {PUBLISH: [ACCEPTED], STATUS: [deployment(0), deployment(2), deployment(4)]})
    (posted,) = [request for request in server.asked if request.method == "POST"]
    assert posted.path == "/api/publish?type=zip&RemoteBuild=false"
    assert posted.headers["Content-Type"] == "application/zip"
    assert posted.body == package.read_bytes()
    assert {request.headers["Authorization"] for request in server.asked} == {"Bearer an-entra-token"}
    assert lines[1:] == [
        f"accepted  deployment {DEPLOYMENT}",
        "deploying pending",
        "deploying deploying",
        f"deployed  {DEPLOYMENT}",
    ]


def test_the_token_is_for_azures_management(package: Path) -> None:
    credential = SignedIn()
    with scripted({PUBLISH: [ACCEPTED], STATUS: [deployment(4)]}) as server:
        upload(package, server.url, credential, lambda _: None, QUICK)
    assert set(credential.scopes) == {"https://management.azure.com/.default"}


@pytest.mark.parametrize("status", [401, 403, 404, 409, 429, 500, 503])
def test_d15_what_may_pass_is_tried_again_and_said(package: Path, status: int) -> None:
    replies = {PUBLISH: [Reply(status, b"not yet"), Reply(status, b"not yet"), ACCEPTED], STATUS: [deployment(4)]}
    server, lines = send(package, replies)
    assert len(server.paths("POST")) == 3
    assert len([text for text in lines if text.startswith("again in") and f"HTTP {status}" in text]) == 2


def test_a_bad_request_is_not_tried_again(package: Path) -> None:
    lines: list[str] = []
    with scripted({PUBLISH: [Reply(400, b"no zip")]}) as server, pytest.raises(FerryError, match="HTTP 400: no zip"):
        upload(package, server.url, SignedIn(), lines.append, QUICK)
    assert len(server.asked) == 1


def test_the_services_own_wish_is_honoured(package: Path) -> None:
    wish = Reply(429, headers={"Retry-After": "1"})
    _, lines = send(package, {PUBLISH: [wish, ACCEPTED], STATUS: [deployment(4)]})
    assert any(text.startswith("again in 1 s") for text in lines)


def test_a_wish_for_a_date_that_has_passed_costs_no_more_than_our_own_pause(package: Path) -> None:
    wish = Reply(503, headers={"Retry-After": formatdate(0, usegmt=True)})
    _, lines = send(package, {PUBLISH: [wish, ACCEPTED], STATUS: [deployment(4)]})
    assert any(text.startswith("again in 0.01 s") for text in lines)


def test_a_wish_beyond_our_patience_ends_it_at_once(package: Path) -> None:
    message = failure(package, {PUBLISH: [Reply(503, headers={"Retry-After": "3600"})]})
    assert "HTTP 503" in message
    assert "gave up after 20 s" in message


def test_d15_the_last_answer_says_what_is_missing(package: Path) -> None:
    message = failure(package, {PUBLISH: [Reply(403, b"AuthorizationFailed")]}, IMPATIENT)
    assert "HTTP 403" in message
    assert "Website Contributor" in message
    assert "AuthorizationFailed" in message
    assert "can be run again" in message


def test_d16_nobody_listening_is_tried_again_until_patience_ends(package: Path) -> None:
    with scripted({}) as server:
        pass
    with pytest.raises(FerryError, match="gave up after"):
        upload(package, server.url, SignedIn(), lambda _: None, IMPATIENT)


def test_a_failed_deployment_shows_the_end_of_its_log(package: Path) -> None:
    message = failure(
        package, {PUBLISH: [ACCEPTED], STATUS: [deployment(3)], LOG: [log("Starting", "host.json missing")]}
    )
    assert f"deployment {DEPLOYMENT} failed" in message
    assert "host.json missing" in message


def test_d15_an_app_whose_own_role_has_not_arrived_gets_the_package_again(package: Path) -> None:
    forbidden = log("Failed to upload because Azure Storage responded with Forbidden : 403 (not authorized)")
    replies = {PUBLISH: [ACCEPTED], STATUS: [deployment(3), deployment(4)], LOG: [forbidden]}
    server, _ = send(package, replies)
    assert len(server.paths("POST")) == 2


def test_a_deployment_that_gave_way_to_another_is_sent_again(package: Path) -> None:
    server, _ = send(package, {PUBLISH: [ACCEPTED], STATUS: [deployment(5), deployment(4)]})
    assert len(server.paths("POST")) == 2


def test_a_deployment_without_a_record_is_looked_up_as_the_latest_one(package: Path) -> None:
    other = deployment(4, "00000000-0000-0000-0000-000000000000")
    replies = {PUBLISH: [ACCEPTED], "GET /api/deployments/latest": [other, deployment(2), deployment(4)]}
    server, lines = send(package, replies)
    assert len(server.paths("POST")) == 1
    assert "deploying deploying" in lines  # another one's success was not taken for ours


def test_the_id_may_stand_in_location_only(package: Path) -> None:
    accepted = Reply(202, headers={"Location": f"https://elsewhere.example/api/deployments/{DEPLOYMENT}"})
    server, _ = send(package, {PUBLISH: [accepted], STATUS: [deployment(4)]})
    assert server.paths("GET") == [f"/api/deployments/{DEPLOYMENT}"]


def test_an_answer_that_is_no_json_is_asked_for_again(package: Path) -> None:
    send(package, {PUBLISH: [ACCEPTED], STATUS: [Reply(200, b"<html>"), Reply(502), deployment(4)]})


def test_a_deployment_that_does_not_end_is_named(package: Path) -> None:
    message = failure(package, {PUBLISH: [ACCEPTED], STATUS: [deployment(1)]}, IMPATIENT)
    assert f"deployment {DEPLOYMENT} did not end" in message
    assert "building" in message


def test_nobody_signed_in_says_how_to(package: Path) -> None:
    class Nobody:
        def get_token(self, *scopes: str) -> Any:
            raise ClientAuthenticationError("DefaultAzureCredential failed to retrieve a token.\nAttempted: …")

    with pytest.raises(FerryError, match=r"(?s)Sign in with `az login`.*failed to retrieve a token"):
        upload(package, "http://127.0.0.1:1", Nobody(), lambda _: None, QUICK)


def test_the_whole_way_looks_before_it_sends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = hosted(authorization="anonymous").model_copy(update={"build_dir": str(tmp_path)})
    release = make_release(settings)
    write_release(release, settings.release_path.parent)
    settings.package_path.parent.mkdir(parents=True)
    write_package(settings.package_path.parent, release)
    health = Reply(200, headers={"x-release-id": release.release_id})
    replies = {"GET /api/health": [health], PUBLISH: [ACCEPTED], STATUS: [deployment(4)]}
    with scripted(replies) as server:
        monkeypatch.setenv("FERRY_AZURE_URL", server.url)
        publish(settings, server.url, lambda _: None, SignedIn())
    assert [request.path.partition("?")[0] for request in server.asked] == [
        "/api/health",
        "/api/publish",
        f"/api/deployments/{DEPLOYMENT}",
    ]
    assert "Authorization" not in server.asked[0].headers


def hosted(**azure: Any) -> Settings:
    settings = dev_settings()
    return settings.model_copy(update={"azure": AzureSettings(location="westeurope", suffix="dev01", **azure)})


def test_a_hosting_that_takes_no_upload_is_refused_with_what_to_do(tmp_path: Path) -> None:
    refuse_hosting(hosted())
    with pytest.raises(Refused, match=r"'premium'.*`cdktf deploy`"):
        refuse_hosting(hosted(hosting="premium"))
    image = {"image": f"registry.example.com/serving@sha256:{'0' * 64}"}
    with pytest.raises(Refused, match=r"'container'.*`cdktf deploy`"):
        refuse_hosting(hosted(hosting="container", container=image))
    with pytest.raises(Refused, match="ferry local up azure"):
        refuse_hosting(local_settings(tmp_path))


def test_a_package_of_another_release_is_refused(tmp_path: Path) -> None:
    settings = dev_settings()
    release_path = write_release(make_release(settings), tmp_path / "release")
    assert check_package(write_package(tmp_path, make_release(settings)), release_path) == make_release(settings)
    with pytest.raises(Refused, match="build it with `ferry package`"):
        check_package(write_package(tmp_path, make_release(settings, "aa" * 32)), release_path)
    with pytest.raises(Refused, match="build it with `ferry package`"):
        check_package(tmp_path / "none.zip", release_path)
    with pytest.raises(Refused, match="make it with `ferry release`"):
        check_package(tmp_path / "none.zip", tmp_path / "none.json")


def test_an_app_that_serves_another_release_gets_nothing() -> None:
    release = make_release(dev_settings())
    for served, status in ((release.release_id, 200), (None, 503), (None, 404)):
        headers = {"x-release-id": served} if served else {}
        with scripted({"GET /api/health": [Reply(status, headers=headers)]}) as server:
            refuse_other_release(HttpDoor("azure", server.url, health=f"{server.url}/api/health"), release)
    with scripted({"GET /api/health": [Reply(200, headers={"x-release-id": "mnist-000000000000"})]}) as server:
        door = HttpDoor("azure", server.url, health=f"{server.url}/api/health")
        with pytest.raises(Refused, match=r"only `cdktf deploy` moves that"):
            refuse_other_release(door, release)
