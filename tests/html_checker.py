"""Reads the HTML of our pages strictly."""

import html.parser
import re

# Names of files, rows, classes, ... that would be markup if they were not escaped.
HOSTILE = """<script>alert(1)</script> "><img onerror='x' src=y> ' onload=z & &lt;b&gt; {{ 7*7 }}"""
HOSTILE_FILE = HOSTILE.replace("/", "|")
VOID = {"meta", "link", "img", "br", "hr", "input", "wbr"}


class Checker(html.parser.HTMLParser):
    """Asserts balanced tags, alt texts and that nothing is loaded; collects the visible text.

    texts: pieces of text as they come. shown: all of it with single spaces. tags: in order.
    structure: (tag, names of its attributes, its classes) in order.
    """

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.tags, self.structure = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []
        self.shown = re.sub(r"\s+", " ", "".join(self.texts))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        self.structure.append((tag, *attrs, attrs.get("class")))
        for name in ("src", "href", "srcset", "data", "action"):
            assert attrs.get(name, "data:").startswith(("data:", "#")), attrs
        assert not any(name.startswith("on") for name in attrs)
        if tag == "img":
            assert attrs["alt"]
        if tag == "svg":
            assert attrs["aria-label"] and attrs["role"] == "img"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script", "title"} & set(self.open):
            self.texts.append(data)


def assert_only_text(hostile: str, harmless: str, count: int) -> None:
    """A page whose names are HOSTILE has the elements of one with harmless names, and shows them.

    Args:
      count: how often the hostile text is shown at least.
    """
    one, other = Checker(hostile), Checker(harmless)
    assert one.structure == other.structure
    shown = one.shown.count(HOSTILE) + one.shown.count(HOSTILE_FILE)
    assert shown >= count, shown
    assert not Checker(harmless).shown.count("alert(1)")
