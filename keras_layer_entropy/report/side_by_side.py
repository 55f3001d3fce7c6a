"""Two things side by side: tables, notes and a figure."""

import dataclasses
import io
from collections.abc import Callable, Sequence

import numpy as np
import rich.box
import rich.console
import rich.table
import rich.text
from matplotlib.figure import Figure

from keras_layer_entropy.files import AnyPath
from keras_layer_entropy.report.notebook import comparison_html
from keras_layer_entropy.report.page import write_comparison
from keras_layer_entropy.report.tables import number, table_of


@dataclasses.dataclass(frozen=True)
class Section:
    """One table of a comparison, as text.

    Attributes:
        title: what is compared.
        columns: their headers; the first is of what the rows are named after.
        rows: one cell for each column.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def table(self) -> rich.table.Table:
        """The section without its title, a `rich.table.Table`."""
        result = table_of(None, self.columns[0])
        result.padding = (0, 0, 0, 1)
        for header in self.columns[1:]:
            result.add_column(rich.text.Text(header), justify="right")
        for row in self.rows:
            result.add_row(*map(rich.text.Text, row))  # names may hold what looks like markup
        return result


@dataclasses.dataclass(frozen=True, repr=False)
class Comparison:
    """Two things of one kind side by side; printed, it is a table.

    Attributes:
        names: what the two are called.
        sections: its `Section`s.
        notes: what differs in how the two were made or measured, sentences.
        draw: a function that draws the figure.

    Example:

    >>> section = Section("Costs", ("", "big", "small", "change"),
    ...                   [("parameters", "100", "50", share(100, 50))])
    >>> print(Comparison(("big", "small"), [section], ["Other data."], Figure))
    Costs
                big  small  change
    ──────────────────────────────
    parameters  100     50    -50%
    <BLANKLINE>
    Note: Other data.
    """

    names: tuple[str, str]
    sections: Sequence[Section]
    notes: Sequence[str]
    draw: Callable[[], Figure]

    def table(self) -> rich.table.Table:
        """Everything that it says, one section below the other, a `rich.table.Table`."""
        result = rich.table.Table.grid()
        result.add_column()
        for section in self.sections:
            # Not the table's own title, which would be folded where the table is narrow.
            result.add_row(rich.text.Text(section.title, style="italic"))
            result.add_row(section.table())
            result.add_row("")
        for note in self.notes:
            result.add_row(rich.text.Text(f"Note: {note}"))
        return result

    def figure(self) -> Figure:
        """The two in one matplotlib `Figure`."""
        return self.draw()

    def report(self, path: AnyPath, *, overwrite: bool = False) -> AnyPath:
        """Writes one self-contained HTML page, as `report.page.write_comparison`."""
        return write_comparison(path, self, overwrite)

    def _repr_html_(self) -> str:
        return comparison_html(self)

    def __repr__(self) -> str:
        file = io.StringIO()
        # In a notebook rich would show what it prints, besides.
        console = rich.console.Console(file=file, record=True, highlight=False, force_jupyter=False)
        console.print(self.table())
        lines = console.export_text().rstrip().splitlines()
        return "\n".join(line.rstrip() for line in lines)


def difference(first: float, second: float) -> str:
    """How much more the second is, as a cell; `-` where one is not known."""
    return number(second - first, sign=True)


def share(first: float | None, second: float | None) -> str:
    """How much more the second is, in per cent of the first; `-` where that is not known.

    >>> share(200, 150), share(100, 100), share(1000, 999), share(0, 3), share(None, 3)
    ('-25%', '0%', '-0.1%', '-', '-')
    """
    if first is None or second is None or not first:
        return "-"
    change = 100 * (second / first - 1)
    return f"{change:+.{0 if abs(change) >= 1 else 1}f}%" if change else "0%"


def change_of_word(first: str | None, second: str | None) -> str:
    """A word of each as one cell: `a`, or `a -> b` where they differ; `-` for none.

    >>> change_of_word("flat", "flat"), change_of_word("flat", "falls"), change_of_word(None, "8")
    ('flat', 'flat -> falls', '- -> 8')
    """
    return first or "-" if first == second else f"{first or '-'} -> {second or '-'}"


def most_changed(changes: np.ndarray, names: Sequence[str]) -> str:
    """The largest of some differences in a cell, and what has it; `-` where none is known.

    >>> most_changed(np.array([0.1, -0.3, np.nan]), ("cat", "dog", "eel"))
    '-0.300 (dog)'
    """
    if np.isnan(changes).all():
        return "-"
    place = int(np.nanargmax(np.abs(changes)))
    return f"{number(changes[place], sign=True)} ({names[place]})"
