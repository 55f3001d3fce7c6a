"""What a notebook shows of a profile, a search or a comparison: a picture and a small table.

One piece of HTML with everything inside, without scripts and styles: code hosts show it as they
show Jupyter's own tables.
"""

import base64
import html
import io
from collections.abc import Iterable
from typing import Any

import numpy as np
import rich.table
import rich.text
from matplotlib.figure import Figure

from keras_layer_entropy import plots
from keras_layer_entropy.measures.measure import Profile
from keras_layer_entropy.report.tables import layer_value_table, number, table, table_of
from keras_layer_entropy.report.verdict import summary

_MOST_ROWS = 30
_MOST_TABLES = 3
_MOST_BYTES = 150_000  # of a picture


def profile_html(profile: Profile) -> str:
    """An `EntropyProfile`: what it says, the curve of its first measure, and the table of layers.

    Example:

    >>> from keras_layer_entropy import EntropyProfile
    >>> profile = EntropyProfile(
    ...     layers=("dense", "logits"), widths=(8, 2), is_output=(False, True),
    ...     classes=("a", "b"), count=[5, 5],
    ...     results={"activation_entropy": [[0.9, 0.8], [0.1, 0.2]]})
    >>> "<td>logits</td>" in profile_html(profile), "<img " in profile_html(profile)
    (True, True)
    """
    name = next(iter(profile.results), None)
    if name is None:
        return fragment("A profile without measures", [])
    if name == "activation_entropy":
        rows, figure = table(profile), plots.entropy_curve(profile)
    else:
        rows = layer_value_table(profile, name)
        figure = plots.panel(profile, name, profile.measures[name].panels[0])
    epoch = "" if profile.epoch is None else f", epoch {profile.epoch + 1}"
    title = f"{profile.measures[name].title} of {int(profile.count.sum())} samples{epoch}"
    rows.title = None
    return fragment(title, [rows], figure, [summary(profile)])


def units_html(profile: Any) -> str:
    """A `UnitProfile`: what each unit tells of each class, and those that tell most."""
    order = np.argsort(-np.nan_to_num(profile.information_labels), kind="stable")
    columns = {
        "I(unit; labels)": profile.information_labels,
        "shuffled": profile.information_labels_shuffled,
        "I(input; unit)": profile.information_input,
        "feature entropy": profile.mean_feature_entropy,
    }
    known = {name: values for name, values in columns.items() if np.isfinite(values).any()}
    rows = table_of(None, "unit")
    for name in known:
        rows.add_column(name)
    for unit in order[:10]:
        rows.add_row(str(unit), *(number(values[unit]) for values in known.values()))
    title = f"The {profile.units} units of {profile.layer}, bits; those that tell most"
    figure = (
        plots.unit_classes(profile) if np.isfinite(profile.information_per_class).any() else None
    )
    return fragment(title, [rows], figure)


def result_html(result: Any) -> str:
    """A `PruningResult`: every step, and the entropies before and after."""
    quality = result.quality
    rows = table_of(None, "what")
    for name in ("kind", "kept?", f"{quality.words} before", "removed", "retrained", "parameters"):
        rows.add_column(name)
    for step in result.steps:
        values = (step.quality_before, step.quality_removed, step.quality_retrained)
        kept = "yes" if step.accepted else "no"
        cells = (step.kind, kept, *map(quality.text, values), f"{step.parameters:,d}")
        rows.add_row(rich.text.Text(step.part), *cells)
    both = {"before": result.before, "after": result.after}
    drawn = all("activation_entropy" in profile.results for profile in both.values())
    figure = plots.compared_curves(both) if drawn else None
    kept = sum(step.accepted for step in result.steps)
    return fragment(f"{len(result.steps)} steps, {kept} of them kept", [rows], figure)


def comparison_html(comparison: Any) -> str:
    """A `Comparison`: its figure, its first tables and its notes."""
    tables, more = [], len(comparison.sections) - _MOST_TABLES
    for section in comparison.sections[:_MOST_TABLES]:
        tables.append(section.table())
        tables[-1].title = section.title
    rest = [f"{more} more tables are shown by print()."] if more > 0 else []
    title = f"{comparison.names[0]} and {comparison.names[1]}"
    return fragment(title, tables, comparison.figure(), [*comparison.notes, *rest])


def fragment(
    title: str,
    tables: Iterable[rich.table.Table],
    figure: Figure | None = None,
    sentences: Iterable[str] = (),
) -> str:
    """A piece of HTML: title, sentences, a picture, and tables of at most 30 rows.

    Args:
        title: what it is.
        tables: `rich.table.Table`s.
        figure: a matplotlib figure, None for none.
        sentences: what stands below the title.
    """
    parts = [f"<p><strong>{_text(title)}</strong></p>"]
    parts += [f"<p>{_text(sentence)}</p>" for sentence in sentences if sentence]
    if figure is not None:
        parts.append(f'<img alt="{_text(title)}" src="data:image/png;base64,{_png(figure)}">')
    return "\n".join([*parts, *map(_table, tables)])


def _png(figure: Figure) -> str:
    """The picture in base64, coarser where it would be large."""
    resolution = 110.0
    while True:
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=resolution)
        coded = base64.b64encode(file.getvalue()).decode()
        if len(coded) <= _MOST_BYTES:
            return coded
        resolution *= 0.7


def _table(rows: rich.table.Table) -> str:
    columns = [list(column.cells) for column in rows.columns]
    count = rows.row_count
    lines = ["<table>"]
    if rows.title:
        lines.append(f"<caption>{_text(rows.title)}</caption>")
    lines.append(_row("th", (column.header for column in rows.columns)))
    lines += [_row("td", (cells[i] for cells in columns)) for i in range(min(count, _MOST_ROWS))]
    lines.append("</table>")
    if count > _MOST_ROWS:
        lines.append(f"<p>... and {count - _MOST_ROWS} more rows</p>")
    return "\n".join(lines)


def _row(tag: str, cells: Iterable[Any]) -> str:
    return f"<tr>{''.join(f'<{tag}>{_text(cell)}</{tag}>' for cell in cells)}</tr>"


def _text(cell: Any) -> str:
    """A cell of rich as text of HTML; headers are broken for the terminal."""
    text = cell.plain if isinstance(cell, rich.text.Text) else str(cell)
    return html.escape(text.replace("-\n", "").replace("\n", " "))
