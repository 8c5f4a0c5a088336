"""Sections of the README within the pages, so that each passage is written once.

In a page, `<!-- README: Many devices -->` becomes the text of that section. Links to other sections lead to the page
that shows them; links to files of the repository become their names.
"""

import re
from pathlib import Path
from typing import Any

__all__ = ["on_files", "on_page_markdown", "section"]

README = Path(__file__).parents[2] / "README.md"
MARK = re.compile(r"<!-- README: (.+?) -->")

_page_of: dict[str, str] = {}  # the page that shows a section, by the section's anchor


def section(title: str) -> str:
    """The text below a heading of the second level.

    Raises:
      ValueError: the README has no such section.
    """
    sections = dict(re.findall(r"(?ms)^## (.+?)\n(.*?)(?=^## |\Z)", README.read_text("utf-8")))
    if title not in sections:
        raise ValueError(f"docs: README.md has no section {title!r}; it has {', '.join(sections)}")
    # Within a numbered list GitHub is content with three spaces, Python-Markdown asks for four.
    return re.sub(r"(?m)^   (?=\S)", "    ", sections[title].strip())


def on_files(files: Any, **_: Any) -> None:
    """Hook of MkDocs: find out which page shows which section."""
    _page_of.clear()
    for file in files.documentation_pages():
        for title in MARK.findall(file.content_string):
            _page_of[_anchor(title)] = file.src_uri


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Hook of MkDocs: put the sections in place of their marks."""
    up = "../" * page.file.src_uri.count("/")

    def link(match: re.Match) -> str:
        text, target = match.groups()
        if target.startswith(("http:", "https:")):
            return match[0]
        if target.startswith("#"):
            return f"[{text}]({up}{_page_of[target[1:]]})" if target[1:] in _page_of else text
        return f"{text} (`{target}`)" if text.strip("`") != target else f"`{target}`"

    insert = lambda match: re.sub(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)", link, section(match[1]))
    return MARK.sub(insert, markdown)


def _anchor(title: str) -> str:
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
