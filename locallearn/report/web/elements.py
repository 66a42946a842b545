"""Pieces of a page. What is plain text is escaped; what is markup already says so by its type."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from locallearn.report.ink import swatch
from locallearn.report.material import Material
from locallearn.report.summary import Group


class Html(str):
    """Markup."""

    __slots__ = ()


def markup(value: object) -> Html:
    """A value for a page."""
    return value if isinstance(value, Html) else Html(escape(str(value)))


def tag(name: str, *parts: object, **attributes: str) -> Html:
    """An element with what is inside. Attributes: a trailing underscore is dropped (`class_`)."""
    written = "".join(f' {key.rstrip("_").replace("_", "-")}="{escape(value, quote=True)}"' for key, value in attributes.items())
    return Html(f"<{name}{written}>{''.join(map(markup, parts))}</{name}>")


def together(parts: Sequence[object], between: str = "") -> Html:
    """One after the other."""
    return Html(between.join(map(markup, parts)))


def section(key: str, title: str, *parts: object) -> Html:
    """A part of the page with a heading, which can be linked to. Empty if there is nothing in it."""
    inside = together(parts)
    return tag("section", tag("h2", title), inside, id=key) if inside else Html("")


def table(head: Sequence[object], rows: Sequence[Sequence[object]], words: int = 1) -> Html:
    """Rows under a head; scrolls by itself where the page is narrow. words: so many columns are words, the others numbers."""
    if not rows:
        return Html("")

    def line(name: str, cells: Sequence[object]) -> Html:
        names = ["th", *[name] * (len(cells) - 1)]
        looks = ["w" if k < words else "n" for k in range(len(cells))]
        return tag("tr", *(tag(each, cell, class_=look) for each, cell, look in zip(names, cells, looks, strict=True)))

    body = together([line("td", row) for row in rows], "\n")
    return tag("div", tag("table", tag("thead", line("th", head)), tag("tbody", body)), class_="scroll", tabindex="0")


def details(title: object, *parts: object) -> Html:
    """Closed until it is asked for; open in print."""
    return tag("details", tag("summary", title), *parts)


def folded(head: Sequence[object], rows: Sequence[Sequence[object]], words: int = 1, limit: int = 30, first: int = 12) -> Html:
    """A table; of a long one its first rows, and all of them behind a title."""
    if len(rows) <= limit:
        return table(head, rows, words)
    return together([table(head, rows[:first], words), details(f"all {len(rows)} rows", table(head, rows, words))])


def bullets(items: Sequence[object]) -> Html:
    """A list."""
    return tag("ul", *(tag("li", item) for item in items)) if items else Html("")


def code(text: str) -> Html:
    """A block of code."""
    return tag("pre", tag("code", text), tabindex="0")


def figures(drawings: Sequence[Html], caption: object, files: str = "") -> Html:
    """Drawings side by side where there is room, with what they show, and the files that hold them."""
    if not drawings:
        return Html("")
    links = [tag("a", form.upper(), href=f"figures/{files}.{form}") for form in ("svg", "pdf", "csv")] if files else []
    told = together([caption, Html(" "), tag("span", together(links, " · "), class_="files")])
    return tag("figure", tag("div", *drawings, class_="drawings"), tag("figcaption", told))


def named(material: Material, group: Group) -> Html:
    """A group in the colour that it has in figures, with a word beside what is a baseline."""
    dot = tag("i", class_="dot", style=f"background: {swatch(material.colors[group.rule])}")
    mark = [Html(" "), tag("small", "baseline", class_="tag")] if material.baseline(group.rule) else []
    return together([dot, group.words, *mark])
