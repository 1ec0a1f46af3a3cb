"""Anyone's tables, as they come: CSV of any of the usual separators, or Parquet. Every cell is a text."""

import csv
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from wsi.errors import ManifestError
from wsi.missing import said

_FORMULA = re.compile(r"^'(?=[=+\-@])")  # the quote that keeps a spreadsheet from running a text
_SEPARATORS = ",;\t"


@dataclass(frozen=True, slots=True)
class Row:
    """One line: `where` names it in messages."""

    where: str
    cells: dict[str, str]

    def text(self, column: str) -> str:
        """The cell, "" where it says nothing."""
        return said(self.cells.get(column))

    def number(self, column: str, remedy: str = "give a number, with a point for decimals") -> float:
        """The cell as a finite number. Raises ManifestError for text, nothing, NaN and infinity."""
        text = self.cells.get(column, "")
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            shown = f"{column} is empty" if not text else f"{column} {text!r} is no finite number"
            raise ManifestError(self.where, shown, remedy)
        return value


@dataclass(frozen=True, slots=True)
class Table:
    """A table with named columns and at least one row."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    def column(self, name: str, option: str) -> str:
        """The column of this name, else the only one that differs by case alone.

        Raises ManifestError with the columns there are; `option` is what named it.
        """
        if name in self.columns:
            return name
        alike = [column for column in self.columns if column.casefold() == name.casefold()]
        if len(alike) == 1:
            return alike[0]
        problem = f"it has no column {name!r} ({option}); it has {listed(self.columns, 12)}"
        raise ManifestError(self.path, problem, f"name the right one with {option}")

    def first(self, names: Sequence[str]) -> str | None:
        """The first of these names that is a column, by its own spelling; None without any."""
        own = {column.casefold(): column for column in reversed(self.columns)}
        return next((own[name.casefold()] for name in names if name.casefold() in own), None)


def read_table(path: Path) -> Table:
    """A table of CSV (comma, semicolon or tab; UTF-8) or Parquet. Raises ManifestError naming the file or line."""
    if not path.is_file():
        raise ManifestError(path, "there is no such file", "give a table: CSV or Parquet")
    names, lines = _parquet(path) if path.suffix.lower() in (".parquet", ".pq") else _csv(path)
    columns = [name.strip() for name in names]
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise ManifestError(path, f"the column {twice[0]!r} stands there twice", "keep one of them")
    if "" in columns[1:]:
        raise ManifestError(path, "a column has no name", "name every column in the first line")
    rows = []
    for number, cells in lines:
        where = f"{path}, line {number}"
        if len(cells) != len(columns):
            problem = f"{len(cells)} cells for {len(columns)} columns"
            raise ManifestError(where, problem, "put quotes around values that hold the separator")
        rows.append(Row(where, {name: _FORMULA.sub("", c.strip()) for name, c in zip(columns, cells, strict=True)}))
    if not rows:
        raise ManifestError(path, "it is empty", "give a header line and a line for every slide")
    return Table(path, tuple(columns), tuple(rows))


def listed(names: Sequence[str], most: int = 10) -> str:
    """a, b, c … of many names."""
    return ", ".join(map(str, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


def _csv(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Column names, and (line number, cells) of every line that is not blank."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(path, f"it cannot be read ({error})", "give a CSV file in UTF-8") from error
    header = text.partition("\n")[0]
    separator = max(_SEPARATORS, key=header.count)  # of equals the comma
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        lines = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except csv.Error as error:
        raise ManifestError(f"{path}, line {reader.line_num}", f"it is no CSV ({error})", "check its quotes") from error
    if not lines:
        raise ManifestError(path, "it is empty", "give a header line and a line for every slide")
    return lines[0][1], lines[1:]


def _parquet(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    try:
        pyarrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError as error:
        raise ManifestError(path, "Parquet needs pyarrow", "pip install pyarrow, or save the table as CSV") from error
    try:
        table = parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise ManifestError(path, f"it is no sound Parquet file ({error})", "write it again, or as CSV") from error
    columns = [["" if value is None else str(value) for value in column.to_pylist()] for column in table.columns]
    return list(table.column_names), [(i, list(cells)) for i, cells in enumerate(zip(*columns, strict=True), start=1)]
