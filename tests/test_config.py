"""The job file's grammar: YAML with lines, overrides, environment references, and messages that name the remedy."""

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from dira_dist.config import (
    ALLOWED_VARIABLES,
    Document,
    RequestError,
    Section,
    flatten,
    parse_document,
    public_values,
    read_document,
    validate,
    with_environment,
    without_credentials,
)
from dira_dist.jobs.load import load_job

JOBS = Path(__file__).resolve().parents[1] / "jobs"


class Ring(Section):
    name: Literal["ring"] = "ring"
    queue_size: int = Field(8, ge=1, description="keys kept")


class Plain(Section):
    name: Literal["plain"] = "plain"
    scale: float = 1.0


class Example(Section):
    title: str
    method: Annotated[Ring | Plain, Field(discriminator="name")] = Ring()
    workers: int | tuple[int, int] = 1
    parts: tuple[Ring, ...] = ()
    uri: str | None = None


def bomb(levels: int) -> str:
    """Aliases of aliases, nine each: a few lines that stand for 9 to the power of levels."""
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)]
    return "\n".join(lines)


def message_of(text: str, overrides: list[str] | None = None) -> str:
    with pytest.raises(RequestError) as caught:
        validate(Example, parse_document(text, "job.yaml").with_overrides(overrides or []))
    return str(caught.value)


def test_every_mistake_is_named_at_once_with_its_line() -> None:
    message = message_of("title: 3\nmethod: {name: ring, queue_size: 0}\nparts:\n  - queue_size: five\n")
    assert message.splitlines() == [
        "job.yaml:1: title: found 3; allowed: a valid string",
        "job.yaml:2: method.queue_size: found 0; allowed: greater than or equal to 1 (queue_size: keys kept)",
        "job.yaml:4: parts.0.queue_size: found 'five'; allowed: a valid integer (queue_size: keys kept)",
    ]


def test_unknown_key_offers_the_nearest_and_lists_the_known() -> None:
    message = message_of("title: a\nmethod:\n  name: ring\n  queue_sise: 4\n")
    assert message.startswith("job.yaml:4: method.queue_sise: unknown key; did you mean 'queue_size'? known here: ")


def test_missing_key_is_named() -> None:
    assert "title: this key is missing" in message_of("workers: 2\n")


def test_numbers_in_quotes_are_not_numbers() -> None:
    assert "found '2'" in message_of("title: a\nworkers: '2'\n")


def test_key_that_stands_twice_is_refused() -> None:
    with pytest.raises(RequestError, match=r"job:3: title stands twice \(first on line 1\)"):
        parse_document("title: a\nworkers: 1\ntitle: b\n")


@pytest.mark.parametrize("text", ["[1, 2]", "just words", "", "a: [1\n"])
def test_what_is_no_mapping_is_refused(text: str) -> None:
    with pytest.raises(RequestError):
        parse_document(text)


def test_yaml_means_what_version_1_2_says() -> None:
    values = parse_document("a: 1e-4\nb: on\nc: 012\nd: ~\ne: 1.\nf: true\ng: -3\nh: 1_000\n").values
    assert values == {"a": 1e-4, "b": "on", "c": 12, "d": None, "e": 1.0, "f": True, "g": -3, "h": "1_000"}


def test_overrides_set_make_and_replace_keys() -> None:
    document = parse_document("title: a\nparts: [{queue_size: 1}]\n").with_overrides(
        ["title=b", "method={name: ring, queue_size: 5}", "parts.0.queue_size=7", "workers=[1, 3]"]
    )
    example = validate(Example, document)
    assert (example.title, example.method, example.parts, example.workers) == (
        "b",
        Ring(queue_size=5),
        (Ring(queue_size=7),),
        (1, 3),
    )


def test_a_part_of_a_list_that_is_not_written_cannot_be_set() -> None:
    with pytest.raises(RequestError, match=r"parts\.0\.queue_size: the job file has no list parts; write it there"):
        parse_document("title: a\n").with_overrides(["parts.0.queue_size=1"])


@pytest.mark.parametrize("override", ["title", "=3", "parts.4.queue_size=1", "title.inner.deep=1"])
def test_overrides_that_lead_nowhere_are_refused(override: str) -> None:
    with pytest.raises(RequestError, match="--set"):
        parse_document("title: a\nparts: [{queue_size: 1}]\n").with_overrides([override])


def test_environment_is_read_and_never_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKING", "https://user:sesame@host/x")
    document = parse_document("title: a\nuri: '${env:TRACKING}'\n")
    example = validate(Example, document)
    assert example.uri == "https://user:sesame@host/x"
    assert public_values(example, document)["uri"] == "${env:TRACKING}"


def test_a_cluster_says_what_jobs_may_read_of_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKING", "https://host/x")
    document = parse_document("title: a\nuri: '${env:TRACKING}'\n")
    for allowed in ("TRACKING", "AWS_*, TRACK*"):
        monkeypatch.setenv(ALLOWED_VARIABLES, allowed)
        assert validate(Example, document).uri == "https://host/x"
        assert with_environment("${env:TRACKING}") == "https://host/x"
    for allowed in ("", "AWS_*", "tracking"):
        monkeypatch.setenv(ALLOWED_VARIABLES, allowed)
        with pytest.raises(RequestError, match="job:2: uri: the environment variable 'TRACKING' is none of those"):
            validate(Example, document)
        assert with_environment("${env:TRACKING}") == "${env:TRACKING}"


def test_credentials_inside_addresses_are_not_recorded() -> None:
    document = Document({"title": "a", "uri": "https://user:sesame@host/x"})
    assert public_values(validate(Example, document), document)["uri"] == "https://host/x"


def test_no_message_shows_what_a_variable_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither where the value is of the wrong type, nor where a validator quotes it."""
    monkeypatch.setenv("X", "TOPSECRET123")
    for key in ("model.encoder", "method.name", "data.image_size", "stages.0.objective"):
        with pytest.raises(RequestError) as caught:
            load_job(JOBS / "pretrain.yaml", [f"{key}=${{env:X}}", "tracking.uri=null"])
        assert "TOPSECRET123" not in str(caught.value)
        assert "${env:X}" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("title: " + "9" * 6000, "digits"),
        ("title: !!binary aGVsbG8=", "!!binary is no value of a job file"),
        ("title: !!set {a, b}", "!!set is no value"),
        ("title: &a [*a]", "levels of them"),
        ("title: " + "[" * 100_000, "nested too deeply|levels of them|not valid YAML"),
        ("title: " + "[" * 60 + "]" * 60, "more than 50 levels"),
        (bomb(9), "aliases written out"),
    ],
)
def test_odd_yaml_is_refused_in_a_sentence(text: str, word: str) -> None:
    for read in (lambda: parse_document(text), lambda: parse_document("title: a").with_overrides([f"title={text}"])):
        with pytest.raises(RequestError, match=word):
            read()


def test_a_job_file_is_utf_8(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_bytes("title: Röntgen".encode("latin-1"))
    with pytest.raises(RequestError, match="byte 8 is no UTF-8"):
        read_document(tmp_path / "job.yaml")


def test_missing_environment_variable_is_named_with_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ABSENT", raising=False)
    assert "job.yaml:2: uri: the environment variable 'ABSENT' is not set" in message_of(
        "title: a\nuri: ${env:ABSENT}\n"
    )


def test_recorded_job_is_read_again_as_the_same() -> None:
    document = parse_document("title: a\nmethod: {name: plain, scale: 2}\nworkers: [1, 2]\n")
    example = validate(Example, document)
    again = parse_document(yaml.safe_dump(public_values(example, document)))
    assert validate(Example, again) == example


def test_sections_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Ring().queue_size = 3  # type: ignore[misc]


leaves = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
trees = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", min_size=1), inner)
)


@given(st.dictionaries(st.text("abc", min_size=1), trees, min_size=1))
def test_flatten_keeps_every_leaf(tree: dict[str, Any]) -> None:
    def count(node: Any) -> int:
        children = list(node.values()) if isinstance(node, dict) else node if isinstance(node, list) else []
        return sum(map(count, children)) if children else 1

    assert len(flatten(tree)) == count(tree)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("http://u:a/b@host/x", "http://host/x"),
        ("postgresql://u:p@ss@host", "postgresql://host"),
        ("https://token@host:5000/x y://z", "https://host:5000/x y://z"),
        ("http://host:5000/path@x", "http://host:5000/path@x"),
        ("postgresql://h/db?password=s3cret", "postgresql://h/db"),
        ("postgresql://h/db?sslmode=require&sslpassword=a/b@c&x=1", "postgresql://h/db?sslmode=require&x=1"),
        ('{"uri": "mysql://h/db?user=me&password=it\'s\\"so", "seed": 1}', '{"uri": "mysql://h/db", "seed": 1}'),
        ("found 'https://h/x?a=1&access_token=t0'; allowed: y", "found 'https://h/x?a=1'; allowed: y"),
        ("https://b.s3/k?X-Amz-Credential=me&X-Amz-Signature=5a&part=1", "https://b.s3/k?part=1"),
        ("http://host/search?tokenizer=bpe&page=2", "http://host/search?tokenizer=bpe&page=2"),
        ("s3://bucket/a@b/c", "s3://bucket/a@b/c"),
        ("models:/name@best", "models:/name@best"),
        ("https://h/x?auth=a1&page=2", "https://h/x?page=2"),
        ("https://h/x?key=a1", "https://h/x"),
        ("https://h/cb#access_token=a1&state=2", "https://h/cb#state=2"),
        ("https://h/x?page=2#access_token=a1", "https://h/x?page=2"),
        ("https://h/x?page=2#part", "https://h/x?page=2#part"),
        ("Authorization: Bearer eyJhbGciOiJI.UzI1-NiJ9 was refused", "Authorization: Bearer ... was refused"),
        ("the bearer of the key", "the bearer of the key"),
    ],
)
def test_credentials_are_cut_out_and_nothing_else(text: str, clean: str) -> None:
    assert without_credentials(text) == clean


def test_a_section_that_is_made_by_hand_does_not_show_what_it_refuses() -> None:
    with pytest.raises(ValueError, match="valid string") as refused:
        Example.model_validate({"title": ["sesame"]})
    assert "sesame" not in str(refused.value)


@given(st.text(st.characters(exclude_characters="& \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\"\\'),;:.", codec="ascii")))
def test_no_password_behind_the_question_mark_survives(password: str) -> None:
    cleaned = without_credentials(f"a postgresql://host:1/db?password={password}&sslmode=require b")
    assert cleaned == "a postgresql://host:1/db?sslmode=require b"
    assert without_credentials(f"a postgresql://host/db?token={password} b") == "a postgresql://host/db b"


@given(st.text(st.characters(exclude_characters="/ \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\x85", codec="ascii"), min_size=1))
def test_no_password_survives(password: str) -> None:
    cleaned = without_credentials(f"a postgresql://someone:{password}@host:1/db b")
    assert cleaned == "a postgresql://host:1/db b"
