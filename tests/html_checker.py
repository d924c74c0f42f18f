"""Reads the HTML of our pages strictly."""

import html.parser
import re

VOID = {"meta", "link", "img", "br", "hr", "input", "wbr"}


class Checker(html.parser.HTMLParser):
    """Asserts balanced tags, alt texts and that nothing is loaded; collects the visible text.

    texts: pieces of text as they come. shown: all of it with single spaces. tags: in order.
    """

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.tags = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []
        self.shown = re.sub(r"\s+", " ", "".join(self.texts))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
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
