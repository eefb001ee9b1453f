"""The page's parts: one file without scripts that asks nothing of any network, in light and dark, on paper too."""

from collections.abc import Sequence
from dataclasses import dataclass

from diffmm_dist.charts.shapes import Picture
from diffmm_dist.charts.svg import safe, style, svg

# Nothing is loaded and nothing runs, whatever an id or a path may hold.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_STYLE = """
*{box-sizing:border-box}
body{margin:0 auto;padding:20px 16px 48px;max-width:1320px;background:var(--paper);color:var(--text);
font:16px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.7rem;line-height:1.25;margin:0 0 4px}
h2{font-size:1.25rem;margin:40px 0 8px;padding-top:12px;border-top:1px solid var(--grid)}
h3{font-size:1rem;margin:22px 0 8px}
p{margin:6px 0 12px;max-width:78ch}
.muted,figcaption,small{color:var(--muted)}
small{font-size:.82em}
.stamp{background:#b3261e;color:#fff;font-weight:700;padding:10px 14px;border-radius:8px;margin:12px 0;max-width:none}
.note{border-left:4px solid var(--c4);padding:4px 12px;margin:10px 0}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,170px),1fr));gap:12px;margin:16px 0}
.tile{border:1px solid var(--grid);border-radius:10px;padding:10px 14px}
.tile b{display:block;font-size:1.45rem;line-height:1.3;font-variant-numeric:tabular-nums}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,340px),1fr));gap:26px 30px;margin:12px 0}
.charts>*{max-width:420px;break-inside:avoid}
.beside{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,430px),1fr));gap:0 40px}
.wide{overflow-x:auto;margin:10px 0}
table{border-collapse:collapse;font-size:.92rem;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:5px 12px 5px 0;border-bottom:1px solid var(--grid);vertical-align:top}
th:first-child,td:first-child{text-align:left;min-width:8em;overflow-wrap:anywhere}
td:not(:first-child),th{overflow-wrap:normal}table.facts td{overflow-wrap:anywhere}
td:not(:first-child) small{white-space:nowrap}
th{font-weight:600;color:var(--muted)}
table.facts td{text-align:left}
table.facts td:first-child{color:var(--muted);white-space:nowrap}
pre{background:color-mix(in srgb,var(--grid) 55%,var(--paper));padding:12px;border-radius:8px;overflow-x:auto;
font-size:.85rem;overflow-wrap:normal}
details{margin:12px 0}
summary{cursor:pointer;font-weight:600}
@media print{body{padding:0;max-width:none;font-size:11pt}h2,h3{break-after:avoid}
.charts{grid-template-columns:1fr 1fr}
pre{white-space:pre-wrap}.stamp{border:2px solid #b3261e;color:#b3261e;background:none}}
"""


@dataclass(frozen=True)
class Html:
    """Markup that is safe to put into the page; every other text is escaped."""

    text: str


Content = Html | str


def raw(content: Content) -> str:
    """Return the markup of a content."""
    return content.text if isinstance(content, Html) else safe(content)


def joined(*parts: Content) -> Html:
    """Return parts one behind the other."""
    return Html("".join(map(raw, parts)))


def tag(name: str, *parts: Content, kind: str = "") -> Html:
    """Return an element; ``kind`` is its class."""
    attribute = f' class="{kind}"' if kind else ""
    return Html(f"<{name}{attribute}>{joined(*parts).text}</{name}>")


def paragraph(*parts: Content, kind: str = "") -> Html:
    """Return a paragraph."""
    return tag("p", *parts, kind=kind)


def code(text: str) -> Html:
    """Return lines as they are to be typed."""
    return tag("pre", tag("code", Html("\n".join(map(safe, text.split("\n"))))))


def section(title: str, *parts: Content) -> Html:
    """Return a part of the page with a heading."""
    return tag("section", tag("h2", title), *parts)


def folded(summary: str, *parts: Content) -> Html:
    """Return what is shown when it is asked for."""
    return tag("details", tag("summary", summary), *parts)


def charts(pictures: Sequence[Picture]) -> Html:
    """Return pictures side by side, as many as there is room for; nothing of none."""
    if not pictures:
        return Html("")
    return tag("div", *(tag("figure", Html(svg(one)), kind="chart") for one in pictures), kind="charts")


def table(columns: Sequence[str], rows: Sequence[Sequence[Content]]) -> Html:
    """Return a table that scrolls where it is too wide, or nothing without rows."""
    if not rows:
        return Html("")
    head = tag("thead", tag("tr", *(tag("th", column) for column in columns)))
    body = tag("tbody", *(tag("tr", *(tag("td", cell) for cell in row)) for row in rows))
    return tag("div", tag("table", head, body), kind="wide")


def facts(rows: Sequence[tuple[str, Content]]) -> Html:
    """Return names and what belongs to them."""
    body = tag("tbody", *(tag("tr", tag("td", name), tag("td", value)) for name, value in rows))
    return tag("div", tag("table", body, kind="facts"), kind="wide")


def tiles(rows: Sequence[tuple[str, str, Content]]) -> Html:
    """Return figures in large: what each is, its value, and what is to be said of it."""
    found = [
        tag("div", tag("span", name, kind="muted"), tag("b", value), tag("small", more)) for name, value, more in rows
    ]
    return tag("div", *(Html(one.text.replace("<div>", '<div class="tile">', 1)) for one in found), kind="tiles")


def page(title: str, *parts: Content) -> str:
    """Return the whole page."""
    return (
        "<!doctype html>\n"
        f'<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{safe(title)}</title><style>{style()}{_STYLE}figure{{margin:0}}</style></head>\n"
        f"<body><main>{joined(*parts).text}</main></body></html>\n"
    )
