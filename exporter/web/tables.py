"""Tables of the status page. In a narrow window each row becomes a paragraph. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

STYLE = """
table{border-collapse:collapse;width:100%}tr{border-bottom:1px solid var(--line)}th,td{padding:.25rem .6rem;
text-align:left}th{color:var(--dim);font-weight:600;vertical-align:bottom;overflow-wrap:normal}
td.name{min-width:7rem}td.text{min-width:12rem}td.n,td.word{white-space:nowrap}td.n,th.n{text-align:right;
font-variant-numeric:tabular-nums}tr.more{border:0}tr.said td{padding-top:0}
"""
NARROW = """
table,tbody,td{display:block}thead{display:none}tr{display:flex;flex-wrap:wrap;gap:0 1rem;padding:.4rem 0}
tr.more{padding-bottom:0}tr.said{padding-top:0}
td,td.n,td.name,td.text,tr.said td{padding:0;min-width:0;text-align:left}
td:first-child{flex-basis:100%}td.name:first-child{font-weight:600}td::before{color:var(--dim)}
"""


@dataclass(frozen=True, slots=True)
class Column:
    """Numbers are aligned to the right. In a narrow window, without a row of heads, each is shown with its head."""

    head: str
    number: bool = False


def table(name: str, columns: Sequence[Column], rows: Sequence[str]) -> str:
    """The HTML of a table. `name` is the class that `narrow` styles."""
    head = "".join(f"<th{' class=n' if one.number else ''}>{escape(one.head)}" for one in columns)
    return f'<table class="{name}"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def with_message(cells: str, columns: Sequence[Column], message: str) -> str:
    """A row, and below it its message in a row as wide as the table."""
    if not message:
        return f"<tr>{cells}</tr>"
    return f'<tr class="more">{cells}</tr><tr class="said"><td colspan={len(columns)}>{escape(message)}</td></tr>'


def narrow(width: str, tables: dict[str, Sequence[Column]]) -> str:
    """The CSS for windows up to `width`, such as 62rem. `tables` are the columns by table name."""
    heads = "".join(
        f'.{name} td:nth-child({number})::before{{content:"{column.head} "}}\n'
        for name, columns in tables.items()
        for number, column in enumerate(columns, 1)
        if column.number
    )
    return f"@media(max-width:{width}){{{NARROW}{heads}}}\n"
