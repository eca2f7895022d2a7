"""What `make docs` does beyond mkdocs: navigation from docs/README.md, and links to files outside docs/.

The pages are written for a Git host, where a page may link to any file of the repository, as ../README.md or
../scripts/recipes/dc.sh. The site has a copy of each such file: Markdown and images as they are, other files as a page
that shows their text. mkdocs imports this file (`hooks` in mkdocs.yml) and calls the functions that begin with `on_`.
"""

import os
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# what stands before and in a link: `](FILE#ANCHOR)` of Markdown, `src="FILE"` or `href="FILE"` of HTML
LINK = re.compile(r'(\]\(|\b(?:src|href)=")(?!\w+:|[#/])([^\s)"#]+)')
COPIED = {".md", ".png", ".svg", ".jpg"}  # all other files become a page with their text
# an entry of docs/README.md: `* [Title](page.md)`
ENTRY = re.compile(r"\* \[([^]]+)\]\(([^)#]+)\)")


# place in the site -> path in the repository, of all pages that are Markdown in the repository
ORIGINS: dict[str, str] = {}


def place_in_site(path: str) -> str:
    """Return the source path in the site of a file of the repository, given relative to its root."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path == "README.md":
        return "first-page.md"  # README.md is docs/README.md, the first page of the site
    return path if Path(path).suffix in COPIED else f"{path}.md"


def linked_files(page: str) -> list[str]:
    """Return the existing files of the repository that a page links to; all paths are relative to its root."""
    links = [os.path.normpath(os.path.join(os.path.dirname(page), link)) for _, link in LINK.findall(text_of(page))]
    return [link for link in links if (ROOT / link).is_file() and not link.startswith("..")]


def text_of(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def on_config(config: Any) -> Any:
    """Make the navigation: headings of the second level in docs/README.md are groups, its entries are pages."""
    groups: list[dict[str, list[dict[str, str]]]] = []
    for line in text_of("docs/README.md").splitlines():
        entry = ENTRY.match(line)
        if line.startswith("## "):
            groups.append({line.removeprefix("## "): []})
        elif entry and groups:
            path = os.path.normpath(f"docs/{entry[2]}")
            next(iter(groups[-1].values())).append({entry[1]: place_in_site(path)})
    config["nav"] = [{"Contents": "README.md"}, *groups]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the files outside docs/ that pages link to, and those that these files link to in turn."""
    from mkdocs.structure.files import File, InclusionLevel

    ORIGINS.update({file.src_uri: f"docs/{file.src_uri}" for file in files.documentation_pages()})
    pages = list(ORIGINS.values())
    added = set()
    for page in pages:  # grows in the loop
        for path in linked_files(page):
            if path in added or path.startswith("docs/"):
                continue
            added.add(path)
            place = place_in_site(path)
            if Path(path).suffix in COPIED:
                file = File.generated(config, place, abs_src_path=str(ROOT / path))
            else:
                text = f"# {path}\n\n````{'sh' if path.endswith('.sh') else 'text'}\n{text_of(path)}\n````\n"
                file = File.generated(config, place, content=text)
            file.inclusion = InclusionLevel.NOT_IN_NAV  # may be left out of the navigation
            files.append(file)
            if path.endswith(".md"):
                ORIGINS[place] = path
                pages.append(path)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Rewrite the links of a page that leave docs/, so that they lead to the copies in the site."""
    place = page.file.src_uri
    if place not in ORIGINS:
        return markdown

    def rewritten(link: re.Match[str]) -> str:
        path = os.path.normpath(os.path.join(os.path.dirname(ORIGINS[place]), link[2]))
        if not (ROOT / path).is_file():
            return link[0]  # mkdocs reports it
        return link[1] + os.path.relpath(place_in_site(path), os.path.dirname(place) or ".")

    return LINK.sub(rewritten, markdown)
