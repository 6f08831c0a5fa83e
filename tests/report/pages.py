"""Pages as a strict reader of HTML sees them: tags that close in order, texts, and tables."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


@dataclass
class Element:
    """One element; `parts` are texts and elements in order."""

    tag: str
    attributes: dict[str, str]
    parts: list = field(default_factory=list)

    @property
    def text(self) -> str:
        """All texts inside."""
        return "".join(part if isinstance(part, str) else part.text for part in self.parts)

    @property
    def own_text(self) -> str:
        """The texts inside that are no remarks in small."""
        return "".join(
            part if isinstance(part, str) else part.own_text if part.tag != "small" else "" for part in self.parts
        ).strip()

    def all(self, tag: str) -> list["Element"]:
        """All elements of the tag inside, in order."""
        inner = [part for part in self.parts if isinstance(part, Element)]
        return [found for part in inner for found in ([part] if part.tag == tag else []) + part.all(tag)]

    def one(self, tag: str, **attributes: str) -> "Element":
        """The only such element."""
        (found,) = [each for each in self.all(tag) if attributes.items() <= each.attributes.items()]
        return found


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("document", {})
        self.open = [self.root]
        self.ids: set[str] = set()

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), f"<{tag}> has an attribute twice: {names}"
        element = Element(tag, {name: value or "" for name, value in attrs})
        assert element.attributes.get("id") not in self.ids, f"id {element.attributes['id']} stands twice"
        self.ids |= {value for name, value in attrs if name == "id"}
        self.open[-1].parts.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert tag not in VOID, f"</{tag}>"
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data):
        self.open[-1].parts.append(data)


def read_page(text: str) -> Element:
    """The page; fails where a tag is not closed in order, or an id or attribute stands twice."""
    assert text.startswith("<!DOCTYPE html>")
    reader = _Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == [reader.root], f"<{reader.open[-1].tag}> is not closed"
    return reader.root


def table_of(page: Element, label: str) -> list[list[str]]:
    """Rows of the table in the region of that name, without remarks in small."""
    region = page.one("div", role="region", **{"aria-label": label})
    rows = region.one("tbody").all("tr")
    return [[cell.own_text for cell in row.parts if isinstance(cell, Element)] for row in rows]


def number_of(text: str) -> float:
    """`0.00240`, or `3.85 · 10⁻⁷`."""
    plain = text.replace(" · 10", "e").replace("\N{MINUS SIGN}", "-").replace(",", "")
    return float(plain.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")))
