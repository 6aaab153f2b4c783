"""Reads which groups pictures belong to: a CSV file with a line for each, and columns such as age or camera."""

import codecs
import csv
import io
import math
import os
import posixpath
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fmengine.errors import DataError, SourceError
from fmengine.jobs.rows import decode_path, escape_path, escape_text
from fmengine.system.files import read_file
from fmengine.wording import pluralise

from .labelled import list_labelled_files
from .permutation import MIN_PICTURES

PATH = "path"  # the column that names the picture; without one it is the first
MAX_BYTES = 256 * 1024 * 1024
MAX_COLUMNS = 50
MAX_GROUPS = 30  # of a column
MAX_NUMBERS = 10  # that are groups each; where there are more they are cut
UNKNOWN = ("", "nan")  # cells of pictures whose group is not known
QUARTILES = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Table:
    """A CSV file of groups: its columns, and the cells of each picture's name, in the order of the file."""

    file: str
    columns: list[str]
    cells: dict[str, list[str]]


@dataclass(frozen=True)
class GroupColumn:
    """A column of groups.

    Attributes:
        name: as the file has it.
        groups: their names, in the order to show them in.
        values: the group of each picture, by its path; pictures whose group is not known are not in it.
    """

    name: str
    groups: list[str]
    values: dict[str, str]


@dataclass(frozen=True)
class Groups:
    """The groups of pictures, and what should be known of them before the work."""

    columns: list[GroupColumn]
    notes: list[str]


def read_table(path: Path) -> Table:
    """Read a CSV file of groups.

    The first line names the columns; that called `path`, or else the first, names the picture. Semicolons or tabs
    may separate them; quotes, byte order marks and UTF-16 are understood.

    Raises:
        DataError: if it is no such file.
    """
    try:
        data = read_file(str(path), MAX_BYTES)
    except SourceError as error:
        raise DataError(f"cannot read groups from {path}: {error.message}") from error
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = data.decode("utf-16" if utf16 else "utf-8-sig")
        if "\0" in text:
            raise ValueError("a null character")
    except ValueError as error:
        raise DataError(f"{path} is no CSV file ({error}); save the table as CSV in UTF-8") from error
    delimiter = max(",;\t", key=text.split("\n", 1)[0].count)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = [name.strip() for name in next(lines, [])]
        key = _check_header(path, header)
        cells: dict[str, list[str]] = {}
        repeated = []
        for line in lines:
            if not any(line):
                continue
            if len(line) != len(header):
                raise DataError(
                    f"{path} has {pluralise(len(line), 'cell')} in line {lines.line_num}; expected {len(header)}, "
                    "as its first line has"
                )
            row = [cell.strip() for cell in line]
            name = row.pop(key)
            if not name:
                raise DataError(f"{path} names no picture in line {lines.line_num}; expected one in each")
            if name in cells:
                repeated.append(name)
            cells[name] = row
    except csv.Error as error:
        raise DataError(f"{path} is no CSV file: line {lines.line_num}: {error}") from error
    if repeated:
        raise DataError(f"{path} names {_list_some(repeated)} more than once; expected one line for each picture")
    if not cells:
        raise DataError(f"{path} names no pictures; expected a line for each under its first")
    return Table(escape_path(str(path)), header[:key] + header[key + 1 :], cells)


def assign_groups(table: Table, roots: Sequence[Path], labels: tuple[str, ...]) -> Groups:
    """Find the pictures that a table names, and make groups of its columns.

    A name is a path as it is given, one relative to a folder of `roots`, or a file's name where one picture alone
    has it. Columns of more than `MAX_NUMBERS` numbers are cut at their quartiles.

    Args:
        table: of `read_table`.
        roots: folders with one for each label.
        labels: the model's.

    Raises:
        DataError: if a name may mean several pictures, or several mean one; if no picture is found, or no column
            has groups.
    """
    files = {root: [path for path, _ in list_labelled_files(root, labels)] for root in roots}
    where = " and ".join(escape_path(str(root)) for root in roots)
    found, missing = _find_pictures(table, files)
    notes = []
    if not found:
        raise DataError(
            f"{table.file} names no picture of {where}: {_list_some(missing)}; expected names such as "
            f"{_shorten(os.path.relpath(files[roots[0]][0], roots[0]))}"
        )
    if missing:
        names = pluralise(len(missing), "picture")
        notes.append(f"{table.file} names {names} that {where} does not have: {_list_some(missing)}")
    without = [os.path.relpath(path, root) for root, paths in files.items() for path in paths if path not in found]
    if without:
        names = pluralise(len(without), "picture")
        notes.append(f"{table.file} does not name {names} of {where}, left out by group: {_list_some(without)}")
    columns = []
    for index, name in enumerate(table.columns):
        values = {p: row[index] for p, row in found.items() if row[index].casefold() not in UNKNOWN}
        if (column := _make_column(name, values, notes)) is not None:
            columns.append(column)
    if not columns:
        raise DataError(f"{table.file} has no column of groups: {'; '.join(notes)}")
    return Groups(columns, notes)


def _check_header(path: Path, header: list[str]) -> int:
    """Check the names of columns; return the index of that of pictures."""
    if len(header) < 2:
        raise DataError(f"{path} has no columns of groups; expected a first line such as: path,age,camera")
    if len(header) - 1 > MAX_COLUMNS:
        raise DataError(f"{path} has {len(header):,} columns; expected {MAX_COLUMNS} of groups at most")
    for name, count in Counter(header).items():
        if not name or count > 1:
            trouble = f"{count} columns named {_shorten(name)}" if name else "a column without a name"
            raise DataError(f"{path} has {trouble} in its first line; name each differently")
    return header.index(PATH) if PATH in header else 0


def _find_pictures(table: Table, files: dict[Path, list[str]]) -> tuple[dict[str, list[str]], list[str]]:
    """Return the cells of each picture that the table names, and the names of those that are not there."""
    whole: dict[str, str | None] = {}  # None where a name may mean several pictures
    last: dict[str, str | None] = {}
    for root, paths in files.items():
        for file in paths:
            for name in {file, os.path.relpath(file, root)}:
                whole[name] = file if whole.get(name, file) == file else None
            base = os.path.basename(file)
            last[base] = file if last.get(base, file) == file else None
    found: dict[str, list[str]] = {}
    names: dict[str, str] = {}  # by which they were found
    missing = []
    for name, row in table.cells.items():
        known = next((k for k in _list_spellings(name) if k in whole), None)
        path = whole[known] if known else last.get(name, "")
        if path is None:
            raise DataError(
                f"{table.file} names {_shorten(name)}, which several pictures are called; "
                "name the folder too, such as happy/a.png"
            )
        if path in found:
            both = f"{_shorten(names[path])} and {_shorten(name)}"
            raise DataError(f"{table.file} names one picture twice, as {both}; expected one line for each picture")
        if path:
            found[path], names[path] = row, name
        elif not any(os.path.lexists(os.path.join(root, name)) for root in files):  # else of another label
            missing.append(name)
    return found, missing


def _list_spellings(name: str) -> list[str]:
    """List what a picture may be called that a table calls so; our own rows percent-encode some names."""
    tidy = posixpath.normpath(name)
    decoded = decode_path({"path": tidy, "path_encoding": "percent"})
    return [tidy, os.path.relpath(tidy) if os.path.isabs(tidy) else os.path.abspath(tidy), decoded]


def _make_column(name: str, values: dict[str, str], notes: list[str]) -> GroupColumn | None:
    """Make the groups of a column, or None where it has none; add to the notes what should be known."""
    shown = f"column {_shorten(name)}"
    numbers = _parse_numbers(values.values())
    if numbers is not None and len(set(numbers)) > MAX_NUMBERS:
        cut = _cut_at_quartiles(numbers)
        notes.append(f"{shown} has {len(set(numbers))} numbers, cut at their quartiles: {', '.join(cut)}")
        groups = list(cut)
        values = {
            path: next(group for group, high in cut.items() if number <= high)
            for path, number in zip(values, numbers, strict=True)
        }
    else:
        groups = sorted(set(values.values()), key=float if numbers else None)
    if not groups:
        notes.append(f"{shown} is empty, and left out")
        return None
    if len(groups) > MAX_GROUPS:
        notes.append(
            f"{shown} has {len(groups):,} groups for {len(values):,} pictures, and is left out; "
            f"join them into {MAX_GROUPS} at most, such as 18 to 29"
        )
        return None
    sizes = Counter(values.values())
    if small := [group for group in groups if sizes[group] < MIN_PICTURES]:
        notes.append(
            f"{shown} has {pluralise(len(small), 'group')} of fewer than {MIN_PICTURES} pictures, shown and not "
            f"compared: {_list_some(small)}"
        )
    if len(groups) - len(small) < 2:
        notes.append(f"{shown} has not two groups of {MIN_PICTURES} pictures or more: nothing is compared")
    return GroupColumn(name, groups, values)


def _parse_numbers(values: Iterable[str]) -> list[float] | None:
    """Parse finite numbers; None if one of the values is none."""
    try:
        numbers = [float(value) for value in values]
    except ValueError:
        return None
    return numbers if all(map(math.isfinite, numbers)) else None


def _cut_at_quartiles(numbers: Sequence[float]) -> dict[str, float]:
    """Cut numbers into four groups of about as many pictures each: the name of each, and its largest number."""
    ordered = np.unique(numbers)
    highs = np.unique([*np.quantile(numbers, QUARTILES, method="inverted_cdf"), ordered[-1]]).tolist()
    lows = [ordered[0], *(ordered[ordered > high][0] for high in highs[:-1])]
    return {
        f"{low:g}" if low == high else f"{low:g} to {high:g}": high for low, high in zip(lows, highs, strict=True)
    }


def _list_some(names: Iterable[str]) -> str:
    """List the first three names, in order, and say how many more there are."""
    ordered = sorted(names)
    more = f" and {len(ordered) - 3:,} more" if len(ordered) > 3 else ""
    return ", ".join(map(_shorten, ordered[:3])) + more


def _shorten(text: str, width: int = 60) -> str:
    """Make a text of strangers fit into a line."""
    shown = escape_text(text) or "''"
    return shown if len(shown) <= width else f"{shown[: width - 1]}…"
