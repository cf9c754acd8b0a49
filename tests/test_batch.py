"""`ferry batch`: what is uploaded, the transform job that the settings make of it, and the one table that comes back.

Locally the job is really run: the container's own server over moto's S3 and control plane. For an account SageMaker,
CloudFormation and CloudWatch Logs are scripted in AWS's shapes, and S3 is moto's.
"""

import csv
import gzip
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ferry import batch, processes
from ferry.archive import write_archive
from ferry.errors import Refused
from ferry.steps.job import mark
from infra.aws.image import image_uri
from infra.settings import ROOT, Settings, load_settings
from tests.emulated_training import Account, emulated, ferry, fresh_account
from tests.scripted_aws import Connect, answer, connect_to, make_bucket, refusal, sent
from tests.scripted_server import Reply, Server, scripted
from tests.serving_models import log_probabilities, table_probabilities, write_artifact, write_table_model

LINES = '[hosting.batch]\nsplit_type = "Line"\n'
STACK = {
    "AWSTemplateFormatVersion": "2010-09-09",
    "Resources": {"Topic": {"Type": "AWS::SNS::Topic"}},
    "Outputs": {"ModelName": {"Value": "the-model"}, "ReleaseId": {"Value": "mnist-000000000000"}},
}


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    with emulated(tmp_path_factory.mktemp("emulator")) as settings:
        yield settings


def with_batch(path: Path, tables: str = "") -> Settings:
    """Make an environment one of transform jobs; `tables` is more TOML."""
    path.write_text(path.read_text().replace("[hosting]\n", '[hosting]\nmode = "batch"\n', 1) + tables)
    return load_settings(str(path))


def deployed(emulator: Settings, folder: Path, tables: str = "", *, table_model: bool = False) -> Account:
    """An account on this machine whose Hosting stack says which model there is."""
    account = fresh_account(emulator, folder)
    settings = with_batch(account.settings_path, tables)
    artifact = folder / "model.tar.gz"
    if table_model:
        write_table_model(folder / "model")
        members = {name: (folder / "model" / name).read_bytes() for name in ("model.json", "model.onnx")}
        artifact.write_bytes(write_archive(members))
    else:
        write_artifact(artifact)
    account.client("s3").upload_file(str(artifact), settings.artifact_bucket, "releases/a/model.tar.gz")
    name = f"model-of-{settings.environment}"
    uri = f"s3://{settings.artifact_bucket}/releases/a/model.tar.gz"
    account.client("sagemaker").create_model(
        ModelName=name,
        ExecutionRoleArn="arn:aws:iam::123456789012:role/hosting",
        PrimaryContainer={"Image": image_uri(settings), "ModelDataUrl": uri},
    )
    template = json.dumps(STACK).replace("the-model", name)
    account.client("cloudformation").create_stack(StackName=settings.stack("hosting"), TemplateBody=template)
    return Account(settings, account.settings_path)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_files_of_json_become_one_table_with_probabilities(emulator: Settings, tmp_path: Path) -> None:
    account = deployed(emulator, tmp_path)
    inputs = np.random.default_rng(3).normal(size=(3, 1, 28, 28)).astype(np.float32)
    (tmp_path / "in").mkdir()
    for name, part in (("a", inputs[:2]), ("b", inputs[2:])):
        document = {"data": part.tolist(), "probabilities": True}
        (tmp_path / "in" / f"{name}.json").write_text(json.dumps(document))
    finished = ferry(account, "batch", str(tmp_path / "in"), "--output", str(tmp_path / "out"))
    assert finished.exit_code == 0, finished.stderr
    expected = log_probabilities(inputs)
    found = rows(tmp_path / "out" / "results.csv")
    assert [(row["file"], row["record"]) for row in found] == [("a.json", "1"), ("a.json", "2"), ("b.json", "1")]
    assert [int(row["label"]) for row in found] == expected.argmax(axis=1).tolist()
    probabilities = [[float(row[f"probability_{label}"]) for label in range(10)] for row in found]
    np.testing.assert_allclose(probabilities, np.exp(expected), atol=1e-5)
    assert sorted(path.name for path in (tmp_path / "out" / "output").iterdir()) == ["a.json.out", "b.json.out"]
    assert processes.find(mark(account.settings)) == []


def test_lines_of_csv_are_joined_to_their_labels(emulator: Settings, tmp_path: Path) -> None:
    account = deployed(emulator, tmp_path, LINES + "join = true\n", table_model=True)
    values = np.array([[5.1, 3.5, 1.4, 0.2], [6.7, 3.1, 4.7, 1.5], [5.9, 3.0, 5.1, 1.8]])
    lines = [",".join(map(str, row)) for row in values.tolist()]
    (tmp_path / "flowers.csv").write_text("\n".join(lines) + "\n")
    finished = ferry(account, "batch", str(tmp_path / "flowers.csv"), "--output", str(tmp_path / "out"), "--json")
    assert finished.exit_code == 0, finished.stderr
    said = json.loads(finished.stdout)
    assert (said["status"], said["results"], said["failed"]) == ("Completed", 3, {})
    joined = (tmp_path / "out" / "output" / "flowers.csv.out").read_text().splitlines()
    labels = [row["label"] for row in rows(tmp_path / "out" / "results.csv")]
    assert joined == [f"{line},{label}" for line, label in zip(lines, labels, strict=True)]
    names = write_table_model(tmp_path / "again").signature.labels
    assert labels == [names[place] for place in table_probabilities(values).argmax(axis=1)]


def test_json_lines_keep_their_order_and_give_json_lines(emulator: Settings, tmp_path: Path) -> None:
    account = deployed(emulator, tmp_path, LINES + 'strategy = "SingleRecord"\njoin = true\n')
    inputs = np.random.default_rng(5).normal(size=(4, 1, 28, 28)).astype(np.float32)
    lines = [json.dumps({"data": each.tolist(), "probabilities": True}) for each in inputs]
    (tmp_path / "digits.jsonl").write_text("\n".join(lines))
    finished = ferry(account, "batch", str(tmp_path / "digits.jsonl"), "--output", str(tmp_path), "--format", "jsonl")
    assert finished.exit_code == 0, finished.stderr
    found = [json.loads(text) for text in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [row["label"] for row in found] == log_probabilities(inputs).argmax(axis=1).tolist()
    assert [row["record"] for row in found] == [1, 2, 3, 4]
    assert all(len(row["probabilities"]) == 10 for row in found)


def test_a_file_with_a_bad_record_is_named_with_the_reason_and_the_others_have_results(
    emulator: Settings, tmp_path: Path
) -> None:
    account = deployed(emulator, tmp_path)
    good = {"data": np.zeros((1, 1, 28, 28)).tolist()}
    (tmp_path / "good.json").write_text(json.dumps(good))
    (tmp_path / "bad.json").write_text('{"data": [[1, 2]]}')
    files = [str(tmp_path / name) for name in ("bad.json", "good.json")]
    finished = ferry(account, "batch", *files, "--job", "one-bad", "--output", str(tmp_path / "out"))
    assert finished.exit_code == 1
    assert "no result  bad.json: HTTP 400" in finished.stderr
    assert "BAD_SHAPE" in finished.stderr
    assert [row["file"] for row in rows(tmp_path / "out" / "results.csv")] == ["good.json"]
    assert not (tmp_path / "out" / "output" / "bad.json.out").exists()


def test_a_job_goes_on_under_its_name_and_an_unknown_one_is_refused(emulator: Settings, tmp_path: Path) -> None:
    account = deployed(emulator, tmp_path)
    np.save(tmp_path / "digits.npy", np.zeros((2, 1, 28, 28), np.float32))
    started = ferry(account, "batch", str(tmp_path / "digits.npy"), "--job", "mine", "--no-wait")
    assert started.stdout.splitlines()[-1] == "mine: started; ferry batch --job mine"
    assert account.keys(account.settings.artifact_bucket, "batch/") == ["batch/mine/input/digits.npy"]
    finished = ferry(account, "batch", "--job", "mine", "--output", str(tmp_path / "out"))
    assert finished.exit_code == 0, finished.stderr
    assert len(rows(tmp_path / "out" / "results.csv")) == 2
    unknown = ferry(account, "batch", "--job", "yours")
    assert unknown.exit_code == 2
    assert "no transform job yours; give it inputs" in unknown.stderr


def test_d5_what_a_command_killed_behind_the_last_result_left_running_is_ended_by_the_next(
    emulator: Settings, tmp_path: Path
) -> None:
    account = deployed(emulator, tmp_path)
    np.save(tmp_path / "digits.npy", np.zeros((2, 1, 28, 28), np.float32))
    done = ferry(account, "batch", str(tmp_path / "digits.npy"), "--job", "mine", "--output", str(tmp_path / "out"))
    assert done.exit_code == 0, done.stderr
    sleeping = [sys.executable, "-c", "import time; time.sleep(600)"]
    left = processes.start(mark(account.settings), sleeping, os.environ, tmp_path, tmp_path / "log")
    try:
        again = ferry(account, "batch", "--job", "mine", "--output", str(tmp_path / "out"))
        assert again.exit_code == 0, again.stderr
        assert processes.find(mark(account.settings)) == []
    finally:
        left.kill()
        left.wait()


@pytest.mark.parametrize(
    ("files", "tables", "problem"),
    [
        (["a.json", "b.npy"], "", "one ContentType"),
        (["a.txt"], "", "allowed: .json, .jsonl, .npy, .csv, .png, .jpg, .jpeg"),
        (["a.npy"], LINES, ".npy files are not records a line"),
        (["x/a.json", "y/a.json"], "", "two inputs are called a.json"),
        (["none.json"], "", "no such file or folder"),
        (["big.csv"], "[hosting.batch]\nmax_payload_mb = 1\n", "big.csv: 1.1 MB; hosting.batch.max_payload_mb is 1"),
    ],
)
def test_what_would_be_sent_wrongly_is_refused_before_anything_is_uploaded(
    emulator: Settings, tmp_path: Path, files: list[str], tables: str, problem: str
) -> None:
    account = deployed(emulator, tmp_path, tables)
    paths = [tmp_path / name for name in files]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        if not path.name.startswith("none"):
            path.write_bytes(b"0" * (1_150_000 if path.name == "big.csv" else 1))
    refused = ferry(account, "batch", *map(str, paths))
    assert refused.exit_code == 2, refused.output
    assert problem in refused.stderr
    assert account.keys(account.settings.artifact_bucket, "batch/") == []


def test_another_mode_and_a_missing_stack_are_refused_with_what_to_do(emulator: Settings, tmp_path: Path) -> None:
    account = fresh_account(emulator, tmp_path)
    (tmp_path / "a.json").write_text("{}")
    refused = ferry(account, "batch", str(tmp_path / "a.json"))
    assert refused.exit_code == 2
    assert "hosting.mode is 'realtime'; transform jobs need an environment with mode = 'batch'" in refused.stderr
    with_batch(account.settings_path)
    missing = ferry(account, "batch", str(tmp_path / "a.json"))
    assert missing.exit_code == 2
    assert "`cdk deploy Hosting`" in missing.stderr


# An account

JOB = "modelferry-dev-batch-20261121-120000-ab12"
OTHER_JOB = "modelferry-dev-batch-20261121-130000-cd34"


def cloud(tmp_path: Path, tables: str = "") -> Settings:
    path = tmp_path / "dev.toml"
    text = (ROOT / "config" / "dev.toml").read_text()
    path.write_text(f'build_dir = "{tmp_path / "build"}"\n{text}\n[hosting]\nmode = "batch"\n{tables}')
    return load_settings(str(path))


def job(status: str, **more: Any) -> Reply:
    output = {"S3OutputPath": "s3://x/y", "Accept": "application/json", "AssembleWith": "None"}
    return answer({"TransformJobName": JOB, "TransformJobStatus": status, "TransformOutput": output, **more})


STACKS = Reply(
    200,
    b"""<DescribeStacksResponse xmlns="http://cloudformation.amazonaws.com/doc/2010-05-15/"><DescribeStacksResult><Stacks>
    <member><StackName>modelferry-dev-hosting</StackName><CreationTime>2026-11-21T00:00:00Z</CreationTime>
    <StackStatus>CREATE_COMPLETE</StackStatus><Outputs><member><OutputKey>ModelName</OutputKey>
    <OutputValue>modelferry-dev-mnist-0123</OutputValue></member></Outputs></member></Stacks></DescribeStacksResult>
    </DescribeStacksResponse>""",
)
UNKNOWN = refusal("ValidationException", "Could not find requested job")


@pytest.fixture
def bucket(emulator: Settings) -> str:
    assert emulator.local is not None
    return f"http://127.0.0.1:{emulator.local.emulator_port}"


def apart(server: Server, s3_url: str) -> Connect:
    """S3 in the emulator, everything else scripted."""
    scripted_services, s3 = connect_to(server), connect_to(s3_url)
    return lambda settings, service: (s3 if service == "s3" else scripted_services)(settings, service)


def test_the_request_is_what_the_settings_say(bucket: str, tmp_path: Path) -> None:
    tables = LINES + "join = true\nmax_payload_mb = 2\nmax_concurrent_transforms = 8\nmax_retries = 1\n"
    settings = cloud(tmp_path, tables)
    (tmp_path / "a.csv").write_text("1,2,3,4\n")
    replies = {
        "DescribeTransformJob": [UNKNOWN],
        "POST /": [STACKS],
        "CreateTransformJob": [answer({"TransformJobArn": "arn:j"})],
    }
    with scripted(replies) as server:
        connect = apart(server, bucket)
        make_bucket(connect(settings, "s3"), settings.artifact_bucket)
        batch.start(settings, OTHER_JOB, [str(tmp_path / "a.csv")], lambda _: None, connect=connect)
        (request,) = sent(server, "CreateTransformJob")
    base = f"s3://{settings.artifact_bucket}/batch/{OTHER_JOB}"
    key = "arn:aws:kms:eu-west-1:111122223333:alias/modelferry-dev"
    assert request == {
        "TransformJobName": OTHER_JOB,
        "ModelName": "modelferry-dev-mnist-0123",
        "MaxPayloadInMB": 2,
        "MaxConcurrentTransforms": 8,
        "ModelClientConfig": {"InvocationsTimeoutInSeconds": 600, "InvocationsMaxRetries": 1},
        "BatchStrategy": "MultiRecord",
        "TransformInput": {
            "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": f"{base}/input/"}},
            "ContentType": "text/csv",
            "CompressionType": "None",
            "SplitType": "Line",
        },
        "TransformOutput": {
            "S3OutputPath": f"{base}/output",
            "Accept": "text/csv",
            "AssembleWith": "Line",
            "KmsKeyId": key,
        },
        "TransformResources": {"InstanceType": "ml.c6i.large", "InstanceCount": 1, "VolumeKmsKeyId": key},
        "DataProcessing": {"JoinSource": "Input"},
        "Tags": [
            {"Key": "environment", "Value": "dev"},
            {"Key": "owner", "Value": "ml-platform"},
            {"Key": "project", "Value": "modelferry"},
        ],
    }


def test_a_failed_job_gives_what_it_has_and_the_reason_that_the_data_log_has(bucket: str, tmp_path: Path) -> None:
    settings = cloud(tmp_path)
    said: list[str] = []
    about = f"2026-11-21T10:00:00.001:[sagemaker logs]: {settings.artifact_bucket}/batch/{JOB}/input/bad.json: "
    log = [f"{about}{text}" for text in ("ClientError: 400", "", "Message:", '{"error":{"code":"BAD_SHAPE"}}')]
    events = {
        "events": [{"timestamp": 1, "message": text, "ingestionTime": 1} for text in log],
        "nextForwardToken": "f/1",
        "nextBackwardToken": "b",
    }
    replies = {
        "DescribeTransformJob": [
            job("InProgress"),
            job("InProgress"),
            job("Failed", FailureReason="ClientError: See job logs"),
        ],
        "DescribeLogStreams": [answer({"logStreams": [{"logStreamName": f"{JOB}/i-1/data-log"}]})],
        # Read by three looks at the job, each to its end, and once more for the reasons.
        "GetLogEvents": [
            answer(events),
            *[answer(events | {"events": []})] * 3,
            answer(events),
            answer(events | {"events": []}),
        ],
        "POST /": [STACKS],
    }
    with scripted(replies) as server:
        connect = apart(server, bucket)
        s3 = connect(settings, "s3")
        put = lambda key, body: s3.put_object(Bucket=settings.artifact_bucket, Key=f"batch/{JOB}/{key}", Body=body)  # noqa: E731
        make_bucket(s3, settings.artifact_bucket)
        for name in ("bad.json", "good.json"):
            put(f"input/{name}", b"{}")
        put("output/good.json.out", b'{"digits": [7]}')
        request = batch.start(settings, JOB, [], said.append, connect=connect)
        found = batch.finish(settings, request, tmp_path, said.append, connect=connect, pause=0)
    assert found.status == "Failed"
    assert [(each.file, each.label) for each in found.results] == [("good.json", 7)]
    assert found.failed == {"bad.json": 'ClientError: 400 {"error":{"code":"BAD_SHAPE"}}'}
    assert f"{JOB}: InProgress" in said
    assert f"{JOB}: Failed" in said
    assert "CreateTransformJob" not in {asked.headers.get("X-Amz-Target") for asked in server.asked}


def test_a_prefix_is_copied_and_a_second_command_uploads_nothing_twice(bucket: str, tmp_path: Path) -> None:
    settings = cloud(tmp_path)
    source = "elsewhere-" + tmp_path.name.replace("_", "-")[:30].strip("-")
    replies = {
        "DescribeTransformJob": [UNKNOWN],
        "POST /": [STACKS],
        "CreateTransformJob": [answer({"TransformJobArn": "arn:j"})],
    }
    with scripted(replies) as server:
        connect = apart(server, bucket)
        s3 = connect(settings, "s3")
        for name in (source, settings.artifact_bucket):
            make_bucket(s3, name)
        s3.put_object(Bucket=source, Key="in/a.npy", Body=b"1")
        s3.put_object(Bucket=source, Key="in/deep/b.npy", Body=b"2")
        (tmp_path / "c.npy").write_bytes(gzip.compress(b"3"))
        given = [f"s3://{source}/in/", str(tmp_path / "c.npy")]
        job_name = "modelferry-dev-batch-copies"
        batch.start(settings, job_name, given, lambda _: None, connect=connect)
        listed = s3.list_objects_v2(Bucket=settings.artifact_bucket, Prefix=f"batch/{job_name}/")["Contents"]
        batch.start(settings, job_name, given, lambda _: None, connect=connect)
        again = s3.head_object(Bucket=settings.artifact_bucket, Key=f"batch/{job_name}/input/c.npy")
        with pytest.raises(Refused, match="nothing is there"):
            batch.start(settings, job_name, [f"s3://{source}/none/"], lambda _: None, connect=connect)
    assert [each["Key"].rpartition("input/")[2] for each in listed] == ["a.npy", "c.npy", "deep/b.npy"]
    assert again["LastModified"] == next(each["LastModified"] for each in listed if each["Key"].endswith("c.npy"))
