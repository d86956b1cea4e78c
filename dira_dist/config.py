"""The ground floor: what every section of the job file is made of, and how a mistake in it is explained to a person.

A job file is YAML. It is read once into a :class:`Document`, which remembers the line of every key; ``--set``
overrides and ``${env:NAME}`` references are applied to it; then a :class:`Section` is validated from it, strictly
(``"224"`` is not a number). Every mistake found is reported at once, each with its place, what was found, what is
allowed and, for an unknown key, the nearest known one.
"""

import difflib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError
from pydantic_core import ErrorDetails

KeyPath = tuple[str | int, ...]
SectionT = TypeVar("SectionT", bound="Section")

ENV_REFERENCE = re.compile(r"\$\{env:([^}]*)\}")
# Keys of job files by their names in 0.1.0, with those of now; below `base`, too. CHANGELOG.md has the same list.
RENAMED_KEYS = {
    "checkpoint.patience_s": "checkpoint.storage_timeout_s",
    "data.storage_patience_s": "data.storage_timeout_s",
}
# What MLflow, SQLAlchemy and stores take as a secret behind the ?; its value goes as far as the next &.
_SECRET_PARAMETER = re.compile(
    r"(?i:.*(?:password|passwd|passphrase|token|secret|signature|credentials?|api_?key)|pass|pwd|sig|user(?:name)?|uid"
    r"|auth(?:orization)?|key|odbc_connect)"
)
# Up to the end of the word or of the JSON string, without the punctuation of the sentence that it stands in.
_URL_QUERY = re.compile(r"""(?<=://)([^\s?#"]*)([?#](?:\\.|[^\s"\\])*?)(?=['),;:.]*(?:[\s"]|$))""")
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{8,}")
# user:password@, where the password may hold / or @ though it should not, and host:5000/path@x is none; or token@
_URL_USERINFO = re.compile(r"(?<=://)(?:[^\s/:@]+:(?!\d+(?:/|$))\S*@|[^\s/]*@)")


# Set on a cluster, names and patterns (AWS_*), separated by commas: what a job file may read of the environment.
ALLOWED_VARIABLES = "DIRA_DIST_JOB_VARIABLES"


class RequestError(ValueError):
    """What was asked for cannot be done as asked. The message names what was found, what is allowed and the remedy."""


class JobFailedError(RuntimeError):
    """The work was begun and failed. The message names the cause and says how to go on."""


# For a field, or the `model_config` of a section: a run, or a search, goes on under its name with another value of it.
# True of what says where things are and who computes, never of what is computed.
MAY_CHANGE: dict[str, JsonValue] = {"may_change": ["run", "search"]}
MAY_CHANGE_IN_RUN: dict[str, JsonValue] = {"may_change": ["run"]}


def _ascending(bounds: tuple[Any, Any]) -> tuple[Any, Any]:
    if bounds[0] > bounds[1]:
        raise ValueError(f"found {list(bounds)}; wanted low <= high: swap them")
    return bounds


Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NumberT = TypeVar("NumberT", int, float)
Range = Annotated[tuple[NumberT, NumberT], AfterValidator(_ascending)]
_Side = Annotated[int, Field(ge=16)]
ImageSize = Annotated[int, Field(ge=32)] | tuple[_Side, _Side] | tuple[_Side, _Side, _Side]


def per_axis(size_px: int | Sequence[int], axes: int) -> tuple[int, ...]:
    """A size for each of ``axes`` spatial axes, in the order of decoded samples: H, W or x, y, z.

    Raises:
        RequestError: there is one for each of another number of axes.
    """
    if isinstance(size_px, int):
        return (size_px,) * axes
    if len(size_px) != axes:
        raise RequestError(
            f"the size {list(size_px)} has {len(size_px)} axes, the images have {axes}; give {axes} numbers, or one"
        )
    return tuple(size_px)


class Section(BaseModel):
    """Base of every section of the job file: immutable, no unknown keys, no infinities."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True, hide_input_in_errors=True
    )


@dataclass(frozen=True)
class Document:
    """A YAML mapping with the line of each of its keys.

    Attributes:
        values: plain Python values, as JSON knows them; ``${env:NAME}`` references still unresolved.
        source: the file's name, for messages.
        lines: one-based line of every key path that stands in the file.
        inherited: key paths whose values were taken over from elsewhere in the file; a mistake there is reported once.
    """

    values: dict[str, Any]
    source: str = "job"
    lines: Mapping[KeyPath, int] = field(default_factory=dict)
    inherited: frozenset[KeyPath] = frozenset()

    def place(self, path: KeyPath) -> str:
        """``file:line: key.path``, or without the line where the key came from an override or is missing."""
        line = f":{self.lines[path]}" if path in self.lines else ""
        return ": ".join([f"{self.source}{line}", *filter(None, [dotted(path)])])

    def with_overrides(self, overrides: Sequence[str]) -> "Document":
        """A copy with each ``key.path=value`` applied, the values read as YAML.

        Raises:
            RequestError: for an override without ``=`` or one that leads through something that is no mapping.
        """
        values = json.loads(json.dumps(self.values))
        lines = dict(self.lines)
        for override in overrides:
            name, equals, text = override.partition("=")
            if not equals or not name:
                raise RequestError(f"--set {override!r}: write it as key.path=value, for example data.global_batch=64")
            path = tuple(int(part) if part.isdigit() else part for part in name.strip().split("."))
            _assign(values, path, _parse_yaml_value(text, f"--set {name}"))
            lines = {known: line for known, line in lines.items() if known[: len(path)] != path}
        return replace(self, values=values, lines=lines)


def dotted(path: KeyPath) -> str:
    """``("stages", 0, "epochs")`` as ``stages.0.epochs``."""
    return ".".join(str(part) for part in path)


def read_document(path: Path) -> Document:
    """Read a YAML file.

    Raises:
        RequestError: if the file is missing, is no valid YAML, holds no mapping or a key twice.
    """
    if not path.is_file():
        raise RequestError(f"{path}: no such file; give the path of a job file (examples are in jobs/)")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(f"{path}: byte {error.start} is no UTF-8; save the job file as UTF-8") from None
    return parse_document(text, str(path))


def parse_document(text: str, source: str = "job") -> Document:
    """Like :func:`read_document`, from text."""
    node, values = _read_yaml(text, source)
    if not isinstance(values, dict) or not isinstance(node, yaml.MappingNode):
        raise RequestError(f"{source}: found {type(values).__name__}; a job file is a mapping of keys to values")
    lines: dict[KeyPath, int] = {}
    for path, line in _key_lines(node, ()):
        if path in lines:
            raise RequestError(f"{source}:{line}: {dotted(path)} stands twice (first on line {lines[path]}); keep one")
        lines[path] = line
    return Document(values, source, lines)


def validate(section: type[SectionT], document: Document) -> SectionT:
    """The document as a section, its ``${env:NAME}`` references resolved.

    Raises:
        RequestError: one message that lists every mistake with place, found value, what is allowed and remedy.
    """
    resolved = _resolve_environment(document.values, document, ())
    try:
        return section.model_validate_json(json.dumps(resolved), strict=True)
    except ValidationError as error:
        problems = _explain(error.errors(include_url=False), section, resolved, document)
        raise RequestError(_as_referred("\n".join(problems), document)) from None


def public_values(section: Section, document: Document) -> dict[str, Any]:
    """The section with all defaults, fit to be written anywhere: environment references stand unresolved in it.

    What came from ``${env:NAME}`` is written as ``${env:NAME}`` again, and user names and passwords inside
    addresses are cut out, so a secret never reaches a log, MLflow or a checkpoint.
    """
    values = section.model_dump(mode="json")
    for path, text in _strings(document.values, ()):
        if ENV_REFERENCE.search(text):
            _assign(values, path, text)
    for path, text in list(_strings(values, ())):
        _assign(values, path, without_credentials(text))
    return values


def with_environment(values: Any) -> Any:
    """Plain values with ``${env:NAME}`` resolved in every text, as far as the variables are set here."""
    if isinstance(values, dict):
        return {key: with_environment(value) for key, value in values.items()}
    if isinstance(values, list):
        return [with_environment(value) for value in values]
    if not isinstance(values, str):
        return values
    known = {name: value for name, value in os.environ.items() if _may_be_read(name)}
    return ENV_REFERENCE.sub(lambda found: known.get(found[1], found[0]), values)


def _may_be_read(name: str) -> bool:
    """Whether a job file may name the environment variable: any, where nobody has said which."""
    allowed = os.environ.get(ALLOWED_VARIABLES)
    return allowed is None or any(fnmatchcase(name, pattern.strip()) for pattern in allowed.split(","))


def without_credentials(text: str) -> str:
    """``scheme://user:password@host/?token=x&a=b`` as ``scheme://host/?a=b``, anywhere in a text; no bearer's token."""
    return _BEARER.sub(r"\1 ...", _URL_QUERY.sub(_without_secret_parameters, _URL_USERINFO.sub("", text)))


def _without_secret_parameters(address: re.Match[str]) -> str:
    place, mark, parameters = address[1], address[2][0], address[2][1:]
    kept = [_without_secret_fragment(pair) for pair in parameters.split("&") if not _is_secret(pair)]
    return f"{place}{mark}{'&'.join(kept)}" if kept else str(place)


def _without_secret_fragment(pair: str) -> str:
    before, _, fragment = pair.partition("#")
    return before if _is_secret(fragment) else pair


def _is_secret(pair: str) -> bool:
    return _SECRET_PARAMETER.fullmatch(pair.partition("=")[0]) is not None


def mutable_keys(section: type[Section], where: Literal["run", "search"]) -> tuple[str, ...]:
    """Dotted keys that may change between two starts of one run or search; of a section that may, the section's key."""
    found = dict.fromkeys(_mutable_keys(section, where))
    return tuple(found)


def _mutable_keys(section: type[Section], where: str) -> Iterator[str]:
    for name, info in section.model_fields.items():
        inner = _sections_in(info.annotation)
        if any(_may_change(extra, where) for extra in (info.json_schema_extra, *map(_extra_of, inner))):
            yield name
        else:
            yield from (f"{name}.{key}" for each in inner for key in _mutable_keys(each, where))


def _extra_of(section: type[Section]) -> object:
    return section.model_config.get("json_schema_extra")


def _may_change(extra: object, where: str) -> bool:
    return isinstance(extra, dict) and where in extra.get("may_change", ())


def dump_yaml(values: Mapping[str, Any]) -> str:
    """Plain values as YAML text, in their own order."""
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)


def flatten(values: Any, path: KeyPath = ()) -> dict[str, Any]:
    """Nested mappings and lists as one mapping from dotted key paths to leaves."""
    if not isinstance(values, dict | list) or not values:
        return {dotted(path): values}
    items = values.items() if isinstance(values, dict) else enumerate(values)
    return {name: leaf for key, value in items for name, leaf in flatten(value, (*path, key)).items()}


class _Yaml12Loader(yaml.SafeLoader):
    """PyYAML speaks YAML 1.1, where ``1e-4`` is a string and ``on`` a boolean; job files mean what YAML 1.2 says."""


_Yaml12Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
):
    _Yaml12Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))
_Yaml12Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))  # 012 is no octal


_SECRET_LENGTH = 4  # shorter ones are numbers and words that stand anywhere in a sentence
_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("bool", "int", "float", "null", "merge", "str", "seq", "map")}
_MOST_NODES, _DEEPEST = 100_000, 50


def _read_yaml(text: str, place: str) -> tuple[yaml.Node | None, Any]:
    """The text's nodes, and its plain values.

    Raises:
        RequestError: it is no YAML, or more than a job file can be: aliases may make gigabytes of a few lines.
    """
    try:
        node = yaml.compose(text, Loader=_Yaml12Loader)
        if node is not None:
            _check_plain(node, place)
        return node, yaml.load(text, Loader=_Yaml12Loader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        if isinstance(error, RequestError):
            raise
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise RequestError(f"{place}: not valid YAML: {reason}") from error


def _check_plain(root: yaml.Node, place: str) -> None:
    """Refuses what JSON does not know, and what is too much, each alias counted as what it stands for."""
    nodes, waiting = 0, [(root, 0)]
    while waiting:
        node, depth = waiting.pop()
        nodes += 1
        where = f"{place}:{node.start_mark.line + 1}"
        if node.tag not in _TAGS:
            kind = node.tag.replace("tag:yaml.org,2002:", "!!")
            raise RequestError(f"{where}: {kind} is no value of a job file; write text, a number, a list or a mapping")
        if nodes > _MOST_NODES or depth > _DEEPEST:
            raise RequestError(
                f"{where}: more than {_MOST_NODES:,} values, or more than {_DEEPEST} levels of them, aliases written "
                "out; a job file is smaller: look for an alias of aliases"
            )
        if isinstance(node, yaml.MappingNode):
            waiting += [(each, depth + 1) for pair in node.value for each in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += [(each, depth + 1) for each in node.value]


def _parse_yaml_value(text: str, place: str) -> Any:
    return _read_yaml(text, f"{place}: {text[:80]!r}")[1]


def _key_lines(node: yaml.Node, path: KeyPath) -> Iterator[tuple[KeyPath, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value != "<<":
                yield (*path, key.value), key.start_mark.line + 1
                yield from _key_lines(value, (*path, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for position, value in enumerate(node.value):
            yield (*path, position), value.start_mark.line + 1
            yield from _key_lines(value, (*path, position))


def _assign(values: Any, path: KeyPath, value: Any) -> None:
    """Set the leaf at ``path``, making mappings on the way where there is nothing yet."""
    for depth, part in enumerate(path[:-1]):
        if isinstance(values, dict) and values.get(part) is None:
            if isinstance(path[depth + 1], int):
                missing = dotted(path[: depth + 1])
                raise RequestError(
                    f"--set {dotted(path)}: the job file has no list {missing}; write it there, or set all of it "
                    f"(--set '{missing}=[...]')"
                )
            values[part] = {}
        values = _child(values, part, path[: depth + 1])
    if isinstance(values, dict):
        values[path[-1]] = value
        return
    _child(values, path[-1], path)
    values[path[-1]] = value


def _child(values: Any, part: str | int, path: KeyPath) -> Any:
    try:
        return values[part]
    except (KeyError, IndexError, TypeError):
        held = f"a list of {len(values)}" if isinstance(values, list) else repr(values)
        raise RequestError(f"--set {dotted(path)}: there is no such place; {dotted(path[:-1])} is {held}") from None


def _strings(values: Any, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    if isinstance(values, str):
        yield path, values
    elif isinstance(values, dict | list):
        items = values.items() if isinstance(values, dict) else enumerate(values)
        for key, value in items:
            yield from _strings(value, (*path, key))


def _resolve_environment(values: Any, document: Document, path: KeyPath) -> Any:
    if isinstance(values, dict):
        return {key: _resolve_environment(value, document, (*path, key)) for key, value in values.items()}
    if isinstance(values, list):
        return [_resolve_environment(value, document, (*path, index)) for index, value in enumerate(values)]
    if not isinstance(values, str):
        return values

    def look_up(match: re.Match[str]) -> str:
        name = match.group(1)
        if not _may_be_read(name):
            raise RequestError(
                f"{document.place(path)}: the environment variable {name!r} is none of those that jobs may read here "
                f"({os.environ[ALLOWED_VARIABLES]}, by {ALLOWED_VARIABLES}); whoever runs the cluster can add it"
            )
        if name not in os.environ:
            raise RequestError(f"{document.place(path)}: the environment variable {name!r} is not set; export it first")
        return os.environ[name]

    return ENV_REFERENCE.sub(look_up, values)


def _explain(
    errors: Sequence[ErrorDetails], section: type[Section], values: dict[str, Any], document: Document
) -> list[str]:
    """One line for each key at fault; what several members of a union say about one key is put together."""
    by_path: dict[KeyPath, list[ErrorDetails]] = {}
    for error in errors:
        by_path.setdefault(_path_in_document(error["loc"], values), []).append(error)
    reported = [path for path in by_path if path not in document.inherited] or list(by_path)
    # pydantic calls a list too short whose items it has refused
    reported = [path for path in reported if not any(other != path and other[: len(path)] == path for other in by_path)]
    return [_explain_key(path, by_path[path], section, document) for path in reported]


def _explain_key(path: KeyPath, errors: list[ErrorDetails], section: type[Section], document: Document) -> str:
    place, first = document.place(path), errors[0]
    siblings = sorted({name for owner in _chosen(section, path[:-1], document) for name in owner.model_fields})
    if first["type"] == "extra_forbidden":
        if names := _names_with(section, path):
            key = dotted((*path[:-1], "name"))
            return f"{place}: this key goes with {key}: {' or '.join(names)}; set that, or remove it"
        if new := _renamed(path):
            return f"{place}: this key is called {new} now, and means the same; rename it"
        near = difflib.get_close_matches(str(path[-1]), siblings, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"{place}: unknown key; {hint}known here: {', '.join(siblings)}"
    if first["type"] == "missing":
        return f"{place}: this key is missing and has no default; add it"
    if first["type"] in {"value_error", "assertion_error"}:
        return f"{place}: {first['msg'].removeprefix('Value error, ')}"
    allowed = " or ".join(dict.fromkeys(error["msg"].removeprefix("Input should be ") for error in errors))
    found = _as_written(document, path, first["input"])
    return f"{place}: found {found!r}; allowed: {allowed}{_description(section, path)}"


def _as_referred(text: str, document: Document) -> str:
    """The text with what came from the environment named instead: a validator's message may hold a secret."""
    for _, written in _strings(document.values, ()):
        for reference in ENV_REFERENCE.finditer(written):
            value = os.environ.get(reference[1], "")
            if len(value) >= _SECRET_LENGTH:
                text = text.replace(value, reference[0])
    return text


def _names_with(section: type[Section], path: KeyPath) -> list[str]:
    """Names of the sections that may stand there and have this key, where the one that stands there has it not."""
    owners = [owner for owner in _sections_at(section, path[:-1]) if str(path[-1]) in owner.model_fields]
    return [str(owner.model_fields["name"].default) for owner in owners if "name" in owner.model_fields]


def _renamed(path: KeyPath) -> str | None:
    """The present name of a key that had another one."""
    old = dotted(path).removeprefix("base.")
    return f"{dotted(path).removesuffix(old)}{RENAMED_KEYS[old]}" if old in RENAMED_KEYS else None


def _as_written(document: Document, path: KeyPath, found: Any) -> Any:
    """What a message may show: an environment reference by its name, for its value may be a secret."""
    written = dict(_strings(document.values, ())).get(path, "")
    return written if ENV_REFERENCE.search(written) else found


def _path_in_document(location: tuple[int | str, ...], values: Any) -> KeyPath:
    """pydantic puts the tags of unions into a location; only what leads through the document is kept."""
    path: list[str | int] = []
    for depth, part in enumerate(location):
        if isinstance(values, dict) and isinstance(part, str):
            if part not in values and depth < len(location) - 1:
                continue
            values = values.get(part)
        elif isinstance(values, list) and isinstance(part, int) and part < len(values):
            values = values[part]
        elif not isinstance(values, dict):
            break
        path.append(part)
    return tuple(path)


def _sections_at(section: type[Section], path: KeyPath) -> list[type[Section]]:
    """The section classes that may stand at a key path."""
    found = [section]
    for part in path:
        if isinstance(part, str):
            fields = [owner.model_fields[part] for owner in found if part in owner.model_fields]
            if fields:  # else the part is a key of a mapping of sections
                found = [inner for info in fields for inner in _sections_in(info.annotation)]
    return found


def _chosen(section: type[Section], path: KeyPath, document: Document) -> list[type[Section]]:
    """Of the section classes that may stand at a key path the one that is named there, or all of them."""
    owners, name = _sections_at(section, path), dict(_strings(document.values, ())).get((*path, "name"))
    named = [owner for owner in owners if "name" in owner.model_fields and owner.model_fields["name"].default == name]
    return named or owners


def _sections_in(annotation: Any) -> list[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [inner for argument in get_args(annotation) for inner in _sections_in(argument)]


def _description(section: type[Section], path: KeyPath) -> str:
    names = [part for part in path if isinstance(part, str)]
    for owner in _sections_at(section, tuple(names[:-1])) if names else []:
        if names[-1] in owner.model_fields and (text := owner.model_fields[names[-1]].description):
            return f" ({names[-1]}: {text})"
    return ""
