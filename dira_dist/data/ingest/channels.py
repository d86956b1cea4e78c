"""Registered volumes of one patient as the channels of one sample, such as the sequences of an MR: which go together.

By name: the word of a channel, without regard to case, stands in the file's name, or in the nearest of its folders that
has such a word; what is left of the path is the case. ``p7_t1.nii.gz`` and ``p7_flair.nii.gz`` are the case ``p7``,
``p7/T1/scan.nii.gz`` and ``p7/FLAIR/scan.nii.gz`` the case ``p7/scan``; nnU-Net's go by ``--channels 0000,0001``.
By table: a row for each case, with a column ``case`` and one for each channel, which holds a file's path or name.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import PurePosixPath

from dira_dist.config import RequestError
from dira_dist.data.ingest.items import Item
from dira_dist.data.ingest.listing import without_suffix
from dira_dist.data.ingest.salt import Salt
from dira_dist.data.ingest.tables import Table, names_of, read_table

_WORD = re.compile(r"[0-9A-Za-z]+")
_SIGNS = "_-. "
_CASE = "case"  # column of a table


@dataclass
class Joined:
    """Items of several channels, and why files are in none.

    Attributes:
        names: of the channels, in order.
        table: that says which files belong together, if one does.
        items: of the kind ``channels``.
        left: ``(file, reason)``.
    """

    names: tuple[str, ...]
    table: Table | None = None
    items: list[Item] = field(default_factory=list)
    left: list[tuple[str, str]] = field(default_factory=list)


def is_table(channels: Sequence[str]) -> bool:
    """Whether the option is the address of a table, and no names."""
    return len(channels) == 1 and channels[0].lower().endswith(".csv")


def join(items: Sequence[Item], channels: Sequence[str], salt: Salt) -> Joined:
    """Volumes of a case become one item.

    Args:
        items: volumes, one for each file or series.
        channels: names in order, or the address of a table.
        salt: for the keys.

    Raises:
        RequestError: the table cannot be read, or has fewer than two channels.
    """
    if is_table(channels):
        joined = _with_table(channels[0])
        cases = _by_table(items, joined)
    else:
        joined = Joined(tuple(channels))
        cases = _by_name(items, joined)
    names = joined.names
    for case, found in sorted(cases.items()):
        twice = [name for name in names if len(found.get(name, ())) > 1]
        missing = [name for name in names if name not in found]
        if twice or missing:
            why = f"several files are channel {twice[0]}" if twice else f"channel {', '.join(missing)} is not there"
            said = f"it is left out with its case: {why}"
            joined.left += [(item.files[0], said) for each in found.values() for item in each]
            continue
        own = tuple(found[name][0] for name in names)
        files = tuple(chain.from_iterable(item.files for item in own))
        joined.items.append(Item(salt.digest("sample", case), "channels", files, called=case, channels=own))
    return joined


_Cases = Mapping[str, Mapping[str, Sequence[Item]]]


def _by_name(items: Sequence[Item], joined: Joined) -> _Cases:
    cases: dict[str, dict[str, list[Item]]] = {}
    for item in items:
        found = case_of(item.called or without_suffix(item.files[0]), joined.names)
        if found is None:
            said = f"none of the channels {', '.join(joined.names)} stands in its name, or several do"
            joined.left.append((item.files[0], said))
            continue
        case, channel = found
        cases.setdefault(case, {}).setdefault(channel, []).append(item)
    return cases


def case_of(path: str, names: Sequence[str]) -> tuple[str, str] | None:
    """The case that a file belongs to and its channel; none where no part of its path has the word of just one.

    Args:
        path: within the source, without suffix.
        names: of the channels.
    """
    of_word = {name.lower(): name for name in names}
    parts = list(PurePosixPath(path).parts)
    for place in range(len(parts) - 1, -1, -1):
        words = [match for match in _WORD.finditer(parts[place]) if match[0].lower() in of_word]
        if len(words) == 1:
            start, end = words[0].span()
            before, after = parts[place][:start].rstrip(_SIGNS), parts[place][end:].lstrip(_SIGNS)
            rest = [*parts[:place], "_".join(filter(None, (before, after))), *parts[place + 1 :]]
            return "/".join(filter(None, rest)) or ".", of_word[words[0][0].lower()]
        if words:
            return None
    return None


def _with_table(address: str) -> Joined:
    table = read_table(address, _CASE)
    names = tuple(column for column in table.columns if column not in ("", _CASE))
    if len(names) < 2:
        raise RequestError(
            f"{address}: found the channels {', '.join(names) or 'none'}; a table of channels has a column {_CASE!r} "
            "and one for each channel, two or more, with a file's path within the source."
        )
    return Joined(names, table)


def _by_table(items: Sequence[Item], joined: Joined) -> _Cases:
    assert joined.table is not None
    known = {name: item for item in items for file in (*item.files, item.called) if file for name in names_of(file)}
    cases: dict[str, dict[str, list[Item]]] = {}
    for case, rows in joined.table.rows.items():
        for name in joined.names:
            found = [known[cell] for row in rows if (cell := row[name].strip()) in known]
            if found:
                cases.setdefault(case, {})[name] = found
    used = {item.key for channels in cases.values() for found in channels.values() for item in found}
    said = "no row of the table of channels names it"
    joined.left += [(item.files[0], said) for item in items if item.key not in used]
    return cases
