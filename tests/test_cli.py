"""The command line: what is wrong with a request is said in one message with exit code 2, and nothing is touched."""

import json
import os
import sys
import time
from pathlib import Path

import boto3
import numpy as np
import pytest
from PIL import Image

from dira_dist.cli import main
from dira_dist.cluster.session import _chatter
from dira_dist.environment import VERBOSE
from tests.conftest import S3Server


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Twelve small images in a folder, one of them corrupt, with a label table."""
    folder = tmp_path / "archive"
    folder.mkdir()
    rows = ["image,patient,label"]
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 48), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
        rows.append(f"{number:02d}.png,{number // 2},{'ab'[number % 2]}")
    (folder / "11.png").write_bytes(b"no image")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    return folder


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(
        f"name: a\ndata: {{train: {tmp_path}/shards, global_batch: 4, image_size: 32}}\nmodel: {{encoder: resnet18}}\n"
    )
    return path


def dira_dist(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """The exit code of a command."""
    monkeypatch.setattr(sys, "argv", ["dira-dist", *map(str, words)])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert dira_dist(monkeypatch, *words) == 2
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return printed.err


def test_shard_names_the_corrupt_image_and_goes_on(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["shard", archive, tmp_path / "shards", "--labels", tmp_path / "labels.csv", "--image-size", "32"]
    assert dira_dist(monkeypatch, *words, "--processes", "1", "--report", tmp_path / "report.json") == 0
    assert "skipped 11.png" in capsys.readouterr().out
    assert json.loads((tmp_path / "report.json").read_text())["skipped"][0]["file"] == "11.png"
    assert dira_dist(monkeypatch, "shard", tmp_path / "shards", "--verify") == 0
    capsys.readouterr()
    assert dira_dist(monkeypatch, *words, "--processes", "1") == 0
    assert "nothing to do" in capsys.readouterr().out


def test_strict_shard_refuses_a_corrupt_image(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refusal(monkeypatch, capsys, "shard", archive, tmp_path / "shards", "--strict", "--processes", "1")
    assert "11.png" in message
    assert not (tmp_path / "shards" / "index.json").exists()


def test_check_prints_the_resolved_job_and_its_plan_and_touches_nothing(
    archive: Path, job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dira_dist(monkeypatch, "shard", archive, tmp_path / "shards", "--processes", "1") == 0
    capsys.readouterr()
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    assert dira_dist(monkeypatch, "check", job, "--memory", "--set", "stages=[{objective: dira, epochs: 8}]") == 0
    printed = capsys.readouterr().out
    # 11 images in 4 lanes are 8 samples per epoch, 2 batches of 4
    assert "16 steps of 4 images (4 per worker), 8 epochs, rate 0.03" in printed
    assert "warning  stages.0.optimizer.lr: 0.03 with a batch of 4" in printed
    assert "queue_size: 65536" in printed
    assert "memory   about" in printed
    assert sorted(tmp_path.rglob("*")) == before


def test_run_warns_before_it_starts(
    archive: Path, job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dira_dist(monkeypatch, "shard", archive, tmp_path / "shards", "--processes", "1") == 0
    monkeypatch.setenv("RAY_ADDRESS", "no-address")
    storage = f"checkpoint.storage={tmp_path / 'runs'}"
    message = refusal(monkeypatch, capsys, "run", job, "--set", storage, "--set", "tracking.uri=null")
    assert message.index("warning: stages.0.optimizer.lr: 0.03 with a batch of 4") < message.index("RAY_ADDRESS")


@pytest.mark.parametrize("verb", ["check", "run"])
@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], ["/shards", "no shard set", "dira-dist shard"]),
        (["data.global_bach=3"], ["data.global_bach", "did you mean 'global_batch'"]),
        (["data.image_size=big"], ["data.image_size", "found 'big'"]),
    ],
)
def test_what_cannot_run_is_refused(
    verb: str,
    overrides: list[str],
    words: list[str],
    job: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    message = refusal(monkeypatch, capsys, verb, job, *(word for item in overrides for word in ("--set", item)))
    assert not [word for word in words if word not in message], message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["job.yaml"]


def test_missing_job_file(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such file" in refusal(monkeypatch, capsys, "run", "absent.yaml")


def test_bucket_that_does_not_exist(
    s3: S3Server, job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refusal(monkeypatch, capsys, "check", job, "--set", "data.train=s3://no-such-bucket/set")
    assert "no-such-bucket" in message


def forget_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


WAITING: list[tuple[str, ...]] = [
    ("shard", "--verify", "SET"),
    ("pull", "SET", "weights"),
    ("register", "SET", "--name", "a", "--tracking-uri", "sqlite:///mlflow.db"),
]


@pytest.mark.parametrize("words", WAITING, ids=lambda words: words[0])
def test_storage_that_does_not_answer_is_told_in_seconds(
    words: tuple[str, ...],
    s3: S3Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    words = tuple(s3.address("set") if word == "SET" else word for word in words)
    began_s = time.monotonic()
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        assert "http://127.0.0.1:9 cannot be reached" in refusal(elsewhere, capsys, *words)
    forget_credentials(monkeypatch, tmp_path)
    assert "set AWS_ACCESS_KEY_ID" in refusal(monkeypatch, capsys, *words)
    assert time.monotonic() - began_s < 60


def test_storage_that_fails_in_the_middle_is_exit_code_1(
    archive: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dira_dist(monkeypatch, "shard", archive, s3.address("set"), "--processes", "1") == 0
    boto3.client("s3").put_object(Bucket=s3.bucket, Key="set/index.json", Body=b"", StorageClass="GLACIER")
    capsys.readouterr()
    assert dira_dist(monkeypatch, "shard", "--verify", s3.address("set")) == 1
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    assert "InvalidObjectState" in printed


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("pull", "models:/a@best", "weights", "--tracking-uri", "localhost:5000"), "found 'localhost:5000'"),
        (("pull", "models:/a@best", "weights", "--tracking-uri", "ftp://anna:sesame@h"), "found 'ftp://h'"),
        (("register", "runs:/x", "--name", "a/b"), "found 'a/b'; a model name"),
    ],
)
def test_registries_and_names_that_cannot_be_are_refused(
    words: tuple[str, ...], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refusal(monkeypatch, capsys, *words)
    assert told in message
    assert "sesame" not in message


def test_s3_without_credentials(
    s3: S3Server, job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forget_credentials(monkeypatch, tmp_path)
    message = refusal(monkeypatch, capsys, "check", job, "--set", f"data.train={s3.address('set')}")
    assert "credentials" in message
    assert "AWS_ACCESS_KEY_ID" in message


def test_schema_is_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert dira_dist(monkeypatch, "schema") == 0
    schema = json.loads(capsys.readouterr().out)
    kinds = {kind["$ref"].rpartition("/")[2] for kind in schema["anyOf"]}
    assert "PretrainJob" in kinds
    assert any(kind.startswith("TuneJob_") for kind in kinds)
    assert "loss_weights" in schema["$defs"]["PretrainJob"]["properties"]


@pytest.mark.parametrize(("words", "quiet"), [(["examples"], True), (["--verbose", "examples"], False)])
def test_chatter_of_others_is_for_who_asks_for_it(
    words: list[str], quiet: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (VERBOSE, "MLFLOW_LOGGING_LEVEL"):
        monkeypatch.setenv(name, "")  # which is put back
        monkeypatch.delenv(name)
    assert dira_dist(monkeypatch, *words) == 0
    assert (os.environ.get("MLFLOW_LOGGING_LEVEL") == "WARNING") == quiet
    assert _chatter()["log_to_driver"] != quiet


def test_wrong_words_are_exit_code_2(monkeypatch: pytest.MonkeyPatch) -> None:
    assert dira_dist(monkeypatch, "shard") == 2
    assert dira_dist(monkeypatch, "no-such-verb") == 2
