"""Sections of the README within the pages, so that each passage is written once.

In a page, `<!-- README: Two commands -->` becomes the text of that section. Links to pages in `docs/` lead to the page,
links to other sections lead to the page that shows them, and links to other files become the files' names.
"""

import re
from pathlib import Path
from typing import Any

__all__ = ["on_files", "on_page_markdown", "section"]

README = Path(__file__).parents[2] / "README.md"
MARK = re.compile(r"<!-- README: (.+?) -->")
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)")

_page_of: dict[str, str] = {}  # the page that shows a section, by the section's anchor


def section(title: str) -> str:
    """Return the text between a heading and the next one.

    Raises:
      ValueError: the README has no such section.
    """
    sections = dict(re.findall(r"(?ms)^##+ (.+?)\n(.*?)(?=^##+ |\Z)", README.read_text("utf-8")))
    if title not in sections:
        raise ValueError(f"docs: README.md has no section {title!r}; it has {', '.join(sections)}")
    # GitHub indents text in a numbered list by three spaces, Python-Markdown by four.
    return re.sub(r"(?m)^   (?=(?:    )*\S)", "    ", sections[title].strip())


def on_files(files: Any, **_: Any) -> None:
    """Find out which page shows which section. MkDocs calls this hook once."""
    _page_of.clear()
    for file in files.documentation_pages():
        for title in MARK.findall(file.content_string):
            _page_of[_anchor(title)] = file.src_uri


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replace each mark by its section. MkDocs calls this hook for every page."""
    up = "../" * page.file.src_uri.count("/")

    def insert(mark: re.Match) -> str:
        return LINK.sub(lambda link: _site_link(*link.groups(), up), section(mark[1]))

    return MARK.sub(insert, markdown)


def _site_link(text: str, target: str, up: str) -> str:
    """A link of the README as the site needs it; `up` leads from the page to the site's root."""
    if target.startswith(("http:", "https:")):
        return f"[{text}]({target})"
    if target.startswith("#"):
        return f"[{text}]({up}{_page_of[target[1:]]})" if target[1:] in _page_of else text
    if target.startswith("docs/") and target.partition("#")[0].endswith(".md"):
        return f"[{text}]({up}{target.removeprefix('docs/')})"
    return f"{text} (`{target}`)" if text.strip("`") != target else f"`{target}`"


def _anchor(title: str) -> str:
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
