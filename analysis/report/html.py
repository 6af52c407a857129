"""HTML of the report page: one self-contained file, light and dark theme, for desktop and phone."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

CSS = """
:root { color-scheme: light dark;
  --ink: #1f2328; --muted: #59636e; --grid: #d8dee4; --paper: #ffffff; --panel: #f6f8fa;
  --blue: #0072b2; --red: #c04f00; --green: #00805d; --grey: #8c959f; }
@media (prefers-color-scheme: dark) { :root {
  --ink: #e6edf3; --muted: #9aa4af; --grid: #30363d; --paper: #0d1117; --panel: #161b22;
  --blue: #58a6e8; --red: #ff9452; --green: #2ec49a; --grey: #8c959f; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 1.2rem 1rem 4rem; }
h1 { font-size: 1.6rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .8rem; padding-top: .8rem; border-top: 1px solid var(--grid); }
h3 { font-size: 1rem; margin: 0 0 .2rem; }
p { margin: .3rem 0 .8rem; } .muted { color: var(--muted); } small, .note { font-size: .875rem; }
a { color: var(--blue); }
nav { font-size: .9rem; margin: .8rem 0; } nav a { margin-right: .9rem; white-space: nowrap; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); gap: .7rem;
  margin: 1rem 0; }
.tile { background: var(--panel); border: 1px solid var(--grid); border-radius: 8px; padding: .6rem .8rem; }
.tile b { display: block; font-size: 1.35rem; line-height: 1.3; }
.tile span { color: var(--muted); font-size: .85rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); gap: 1rem;
  align-items: start; margin: 1rem 0; }
figure { margin: 0; background: var(--panel); border: 1px solid var(--grid); border-radius: 8px;
  padding: .8rem; min-width: 0; }
figure svg { display: block; width: 100%; height: auto; max-width: 640px; margin: .4rem auto 0; }
figure svg text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans",
  sans-serif !important; }
.scroll { overflow: auto; max-height: 34rem; border: 1px solid var(--grid); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .5rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--grid); }
th { background: var(--panel); position: sticky; top: 0; font-weight: 600; }
th.text, td.text { text-align: left; }
td.wrap { white-space: normal; min-width: 16rem; overflow-wrap: anywhere; }
tr.teacher td { color: var(--red); font-weight: 600; } tr.picked td { color: var(--green); font-weight: 600; }
dl { display: grid; grid-template-columns: minmax(6rem, max-content) 1fr; gap: .25rem 1rem; margin: 0; }
dt { color: var(--muted); } dd { margin: 0; overflow-wrap: anywhere; min-width: 0; }
pre { background: var(--panel); border: 1px solid var(--grid); border-radius: 8px; padding: .6rem .8rem;
  overflow-x: auto; font-size: .85rem; margin: .3rem 0 .9rem; }
code { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
@media (max-width: 600px) { main { padding: .8rem .5rem 3rem; } figure { padding: .6rem .3rem; }
  figure > * { margin-left: .3rem; } figure svg { margin-left: 0; } }
figure small { display: block; }
.notice { color: var(--red); }
.badge { display: inline-block; border: 1px solid currentColor; border-radius: 999px; padding: 0 .6rem;
  font-size: .8rem; vertical-align: middle; color: var(--green); } .badge.open { color: var(--red); }
"""


def page(title: str, body: str) -> str:
    """Build the whole document; `title` is text, `body` is HTML."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n"
        "</body>\n</html>\n"
    )


def section(anchor: str, title: str, *parts: str) -> str:
    """Build a section with a title; parts are HTML, empty ones are left out."""
    inner = "\n".join(part for part in parts if part)
    return f'<section id="{escape(anchor)}">\n<h2>{escape(title)}</h2>\n{inner}\n</section>'


def table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    marks: Sequence[str] = (),
    text: Sequence[int] = (0,),
) -> str:
    """Build a table that scrolls sideways on a phone.

    Args:
        headers, rows: texts; they are escaped here.
        marks: CSS class of each row ("" for none).
        text: columns with words instead of numbers; long ones wrap.
    """

    def cell(tag: str, column: int, value: str) -> str:
        kind = ("text wrap" if len(value) > 50 else "text") if column in text else ""
        return f'<{tag} class="{kind}">{escape(value)}</{tag}>' if kind else f"<{tag}>{escape(value)}</{tag}>"

    head = "".join(cell("th", i, value) for i, value in enumerate(headers))
    body = "\n".join(
        f'<tr class="{mark}">' + "".join(cell("td", i, value) for i, value in enumerate(row)) + "</tr>"
        for row, mark in zip(rows, [*marks, *[""] * (len(rows) - len(marks))], strict=True)
    )
    return (
        f'<div class="scroll" tabindex="0"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Build a list of names and values; pairs with an empty value are left out."""
    inner = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in pairs if value)
    return f"<dl>{inner}</dl>"


def tiles(pairs: Sequence[tuple[str, str]]) -> str:
    """Build a row of large numbers with their names below."""
    inner = "".join(f'<div class="tile"><b>{escape(v)}</b><span>{escape(n)}</span></div>' for n, v in pairs)
    return f'<div class="tiles">{inner}</div>'


def figure(svg: str, title: str, note: str, csv: str) -> str:
    """Build a figure from themed SVG with a link to its numbers; without `svg`, only title and note."""
    words = f'<p class="note muted">{escape(note)}</p>' if note else ""
    link = f'<small class="muted">Numbers: <a href="{escape(csv)}">{escape(csv)}</a></small>' if svg else ""
    return f"<figure>\n<h3>{escape(title)}</h3>\n{words}{svg}\n{link}</figure>"


def noted(text: str, *files: str) -> str:
    """Build a small note that ends with links to its tables."""
    links = ", ".join(f'<a href="{escape(file)}">{escape(file)}</a>' for file in files)
    return f'<p class="note muted">{escape(text)}{links}</p>'


def code(text: str) -> str:
    """Build a block of commands to copy."""
    return f"<pre><code>{escape(text)}</code></pre>"


def paragraph(text: str, kind: str = "") -> str:
    """Build a paragraph of text."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"
