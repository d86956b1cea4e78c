"""Tables of centres: where cubes are cut, and what is known of each, such as whether a candidate is a nodule."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dira_dist.data.ingest.failures import UnreadableError
from dira_dist.data.ingest.options import CentreFrame
from dira_dist.data.ingest.tables import (
    LabelKind,
    Row,
    Table,
    cell_of,
    is_number,
    kinds_and_classes,
    read_table,
    usual_labels,
    values_of,
)
from dira_dist.data.ingest.volumes import Volume

VOLUME_COLUMN = "volume"
_AXES = ("x", "y", "z")


@dataclass(frozen=True)
class Centre:
    """A row of the table.

    Attributes:
        line: of the file, where the row ends.
        xyz: in voxels or millimetres, as the options say.
        labels: of its cube.
    """

    line: int
    xyz: tuple[float, float, float]
    labels: dict[str, Any]


@dataclass(frozen=True)
class Centres:
    """The table, which columns of it are labels, and the names that categorical ones take."""

    table: Table
    kinds: Mapping[str, LabelKind]
    classes: Mapping[str, tuple[str, ...]]

    def of(self, file: str) -> tuple[Centre, ...]:
        """The centres of a volume, in the table's order."""
        name = self.table.name_for(file)
        if name is None:
            return ()
        rows = zip(self.table.lines[name], self.table.rows[name], strict=True)
        return tuple(Centre(line, _xyz(row), values_of(row, self.kinds)) for line, row in rows)


def read_centres(address: str, wanted: tuple[str, ...] | None, group_by: str | None) -> Centres:
    """A table of the columns volume, x, y, z and, where they are known, labels.

    A row with a cell that is no number is left out and told of.

    Args:
        address: of the CSV file.
        wanted: label columns, of which the table may have some; where none are given, those with a usual name.
        group_by: a column that is never a label: it names the patient.

    Raises:
        RequestError: a column is missing, or it has no rows.
    """
    table = read_table(address, VOLUME_COLUMN, _AXES)
    others = [column for column in table.columns if column not in (VOLUME_COLUMN, *_AXES, group_by, "")]
    columns = usual_labels(others) if wanted is None else tuple(column for column in others if column in wanted)
    kinds, classes = kinds_and_classes([row for rows in table.rows.values() for row in rows], columns)
    rows: dict[str, list[Row]] = {}
    lines: dict[str, list[int]] = {}
    refused: list[int] = []
    for name, found in table.rows.items():
        for line, row in zip(table.lines[name], found, strict=True):
            if all(is_number(cell_of(row[axis])) and isfinite(float(row[axis])) for axis in _AXES):
                rows.setdefault(name, []).append(row)
                lines.setdefault(name, []).append(line)
            else:
                refused.append(line)
    problems = (_problem(address, refused),) if refused else ()
    return Centres(replace(table, rows=rows, lines=lines, problems=(*table.problems, *problems)), kinds, classes)


def _problem(address: str, lines: list[int]) -> str:
    shown = ", ".join(map(str, lines[:5])) + (" and others" if len(lines) > 5 else "")
    return (
        f"{PurePosixPath(address).name}: {len(lines)} centres are left out, for x, y or z is no number (line {shown})"
    )


def _xyz(row: Row) -> tuple[float, float, float]:
    return float(row["x"]), float(row["y"]), float(row["z"])


def voxel_of(centre: Centre, volume: Volume, frame: CentreFrame) -> NDArray[np.float64]:
    """Where a centre lies in a volume, as an index (d, h, w) between voxels: (3,).

    Raises:
        UnreadableError: nothing says where the volume lies, or which voxels of its file its own are.
    """
    if frame == "voxels":
        if volume.from_file is None:
            raise UnreadableError("its slices were moved upright: give its centres in millimetres")
        way = volume.from_file
    elif volume.affine is None:
        raise UnreadableError("nothing says where it lies, and its centres are in millimetres: give them as voxels")
    else:
        way = np.linalg.inv(volume.affine).astype(np.float64)
    x, y, z = centre.xyz
    place = (-x, -y, z, 1.0) if frame == "lps" else (x, y, z, 1.0)
    found: NDArray[np.float64] = (way @ np.array(place))[:3]
    return found
