"""Tables: one row for each set of labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from grafana_foundation_sdk.builders import common, dashboard, table
from grafana_foundation_sdk.models import common as options
from grafana_foundation_sdk.models import dashboard as models

from grafana import colours
from grafana.style import (
    Panel,
    Properties,
    Query,
    Text,
    as_numbers,
    fixed,
    framed,
    properties,
    target,
    value_texts,
)


@dataclass(frozen=True, slots=True)
class Column:
    """`source`: a label, or the number of the query whose value it shows."""

    source: str | int
    title: str
    unit: str | None = None
    decimals: int | None = None
    width: int | None = None
    # A label that holds a number.
    number: bool = False
    # Cells take their colours from their values.
    by: dashboard.ThresholdsConfig | None = None
    texts: Sequence[tuple[float, str]] = ()
    # Cells have a bar as long as their value, from 0 to the largest of the column.
    bar: bool = False
    # Where a click leads, with {{target}}-like values as Grafana writes them.
    link: str | None = None

    def properties(self) -> Properties:
        found: dict[str, Any] = {}
        if self.unit is not None:
            found["unit"] = self.unit
        if self.decimals is not None:
            found["decimals"] = self.decimals
        if self.width is not None:
            found["custom.width"] = self.width
        if self.by is not None:
            found["thresholds"] = self.by.build()
            found["color"] = {"mode": "thresholds"}
            found["custom.cellOptions"] = {"type": "color-text"}
        if self.bar:
            found["min"] = 0
            found["fieldMinMax"] = True
            found["color"] = fixed(colours.NEUTRAL)
            found["custom.cellOptions"] = {"type": "gauge", "mode": "basic", "valueDisplayMode": "text"}
        if self.texts:
            found["mappings"] = [value_texts(self.texts)]
        if self.link is not None:
            found["links"] = [{"title": "Open", "url": self.link}]
        return found


def rows(
    text: Text,
    queries: Sequence[Query],
    columns: Sequence[Column],
    *,
    width: int = 24,
    height: int = 8,
    min_width: int = 78,
    sort: Sequence[tuple[str, bool]] = (),
) -> Panel:
    """One row for each set of labels, one column for each query. `sort`: titles of columns, whether largest first."""
    single = len(queries) == 1
    names = {
        column.source
        if isinstance(column.source, str)
        else ("Value" if single else f"Value #{chr(ord('A') + column.source)}"): column.title
        for column in columns
    }
    kept = "^(" + "|".join(names).replace("#", "\\#") + ")$"
    panel = (
        framed(table.Panel(), text, width, height)
        .min_width(min_width)
        .cell_height(options.TableCellHeight.SM)
        .show_header(True)
        .targets([target(query, number, "table") for number, query in enumerate(queries)])
        .transformations(
            [
                models.DataTransformerConfig(id_val="merge", options={}),
                as_numbers(*(column.source for column in columns if column.number)),
                models.DataTransformerConfig(id_val="filterFieldsByName", options={"include": {"pattern": kept}}),
                models.DataTransformerConfig(
                    id_val="organize",
                    options={
                        "indexByName": {name: index for index, name in enumerate(names)},
                        "renameByName": {name: title for name, title in names.items() if name != title},
                    },
                ),
            ]
        )
    )
    for column in columns:
        if found := column.properties():
            panel = panel.override_by_name(column.title, properties(found))
    if sort:
        panel = panel.sort_by([common.TableSortByFieldState().display_name(title).desc(desc) for title, desc in sort])
    return panel
