"""A table of plain values: what the functions of the Python API return."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import Any

from segbench.errors import PluginError, UsageError, did_you_mean
from segbench.text import safe

MOST_ROWS = 40  # shown of a long table


class Table(Sequence[dict[str, Any]]):
    """Rows of named values. It needs no other package, and becomes a pandas data frame on request.

    ``table[0]`` is a row as a dictionary, ``table["dice"]`` a column as a list, ``len(table)`` the
    number of rows. A notebook shows it as HTML. Values that are not defined are None.

    Attributes:
        columns: the names of the columns.
        rows: the rows, one dictionary per row with all columns.
    """

    def __init__(self, rows: Iterable[dict[str, Any]], columns: Sequence[str] = ()) -> None:
        self.rows = [dict(row) for row in rows]
        names = dict.fromkeys(columns)
        for row in self.rows:
            names.update(dict.fromkeys(row))
        self.columns = list(names)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    def __getitem__(self, key: Any) -> Any:
        """Return a row by its number, rows by a slice, or a column by its name.

        Raises:
            UsageError: there is no such column.
        """
        if isinstance(key, str):
            self._require(key)
            return [row.get(key) for row in self.rows]
        if isinstance(key, slice):
            return Table(self.rows[key], self.columns)
        return self.rows[key]

    def where(self, **values: Any) -> Table:
        """Return the rows with these values, such as ``where(method="bcp", labeled=4)``.

        Raises:
            UsageError: there is no such column.
        """
        for name in values:
            self._require(name)
        kept = []
        for row in self.rows:
            if all(row.get(name) == value for name, value in values.items()):
                kept.append(row)
        return Table(kept, self.columns)

    def select(self, *columns: str) -> Table:
        """Return the table with these columns only.

        Raises:
            UsageError: there is no such column.
        """
        for name in columns:
            self._require(name)
        rows = [{name: row.get(name) for name in columns} for row in self.rows]
        return Table(rows, columns)

    def to_pandas(self) -> Any:
        """Return a ``pandas.DataFrame``.

        Raises:
            PluginError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise PluginError(
                "pandas is not installed",
                found=error,
                expected="pandas, which only this method needs",
                fix="pip install pandas",
            ) from error
        return pandas.DataFrame(self.rows, columns=self.columns)

    def to_csv(self) -> str:
        """Return the table as CSV text, with a line of column names."""
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows(self.rows)
        return text.getvalue()

    def __str__(self) -> str:
        lines = [self.columns]
        for row in self.rows[:MOST_ROWS]:
            lines.append([_shown(row.get(name)) for name in self.columns])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        texts = []
        for line in lines:
            cells = [f"{cell:{size}}" for cell, size in zip(line, widths, strict=True)]
            texts.append("  ".join(cells).rstrip())
        if len(self.rows) > MOST_ROWS:
            texts.append(f"... and {len(self.rows) - MOST_ROWS} more rows")
        return "\n".join(texts)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Return the table as HTML, which notebooks show."""
        head = "".join(f"<th>{escape(name)}</th>" for name in self.columns)
        lines = [f"<tr>{head}</tr>"]
        for row in self.rows[:MOST_ROWS]:
            cells = [escape(_shown(row.get(name))) for name in self.columns]
            body = "".join(f"<td>{cell}</td>" for cell in cells)
            lines.append(f"<tr>{body}</tr>")
        rest = len(self.rows) - MOST_ROWS
        more = f"<p>... and {rest} more rows</p>" if rest > 0 else ""
        return f"<table>{''.join(lines)}</table>{more}"

    def _require(self, name: str) -> None:
        if name not in self.columns:
            raise UsageError(
                f"the table has no column '{name}'.{did_you_mean(name, self.columns)}",
                expected=f"one of {', '.join(self.columns)}",
            )


def _shown(value: Any) -> str:
    """Return a value as text: numbers with four digits that count, a dash for None."""
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else safe(value)
