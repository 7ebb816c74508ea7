"""An HTML page that needs nothing else, of lists, tables and plots: no network, no scripts. All texts are escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from edgemem.profiles.html_page import html_page
from edgemem.tools.memory_eval.tables import Table


def page(title: str, eyebrow: str, parts: Sequence[str]) -> str:
    """parts: HTML, under the title, which is escaped here."""
    body = [f'<p class="eyebrow">{escape(eyebrow)}</p>', f"<h1>{escape(title)}</h1>", *parts]
    return html_page(title, "\n".join(body))


def warning(text: str) -> str:
    return f'<p class="warning">{escape(text)}</p>'


def bullets(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"


def figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def table_html(table: Table) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.headers)
    rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in table.rows)
    return (
        f'<h2>{escape(table.title)}</h2><div class="scroll"><table><caption>{escape(table.note)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )
