"""Is the built site whole: python docs/check_site.py docs/_build/html

Every link and anchor within it leads somewhere, no page asks for anything from elsewhere, no
notebook shows a warning, and every public name of the library has its place in the reference.
"""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pyrovae

#: What a browser fetches by itself, by element.
FETCHED = {
    "script": ("src",),
    "img": ("src", "srcset"),
    "iframe": ("src",),
    "source": ("src", "srcset"),
    "video": ("src", "poster"),
    "audio": ("src",),
    "embed": ("src",),
    "object": ("data",),
}
RELATIONS = {"stylesheet", "icon", "shortcut", "preload", "prefetch", "modulepreload", "preconnect"}


class Page(HTMLParser):
    """The anchors, the links and the fetched addresses of one page, and what stderr it shows."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.shows_stderr = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        self.fetched += [found[name] for name in FETCHED.get(tag, ()) if name in found]
        if tag == "link" and RELATIONS & set(found.get("rel", "").split()):
            self.fetched.append(found.get("href", ""))
        self.shows_stderr |= "stderr" in found.get("class", "").split()


def is_external(address: str) -> bool:
    return address.startswith("//") or urlsplit(address).scheme not in ("", "data")


def broken(page: Path, link: str, pages: dict[Path, Page]) -> bool:
    """Whether a link within the site leads nowhere."""
    parts = urlsplit(link)
    target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if target.is_dir():
        target /= "index.html"
    if not target.exists():
        return True
    anchor = unquote(parts.fragment)
    return bool(anchor) and target in pages and anchor not in pages[target].anchors


def faults(site: Path) -> list[str]:
    """What is wrong with the site, a line each."""
    pages = {path.resolve(): Page(path) for path in sorted(site.rglob("*.html"))}
    found = [] if pages else [f"expected pages in {site}; got none. Build it first: make docs"]
    for path, page in pages.items():
        name = path.relative_to(site.resolve())
        found += [f"{name}: asks for {a}" for a in page.fetched if is_external(a)]
        inner = [link for link in page.links if not is_external(link)]
        inner += [a for a in page.fetched if not is_external(a) and not a.startswith("data:")]
        found += [f"{name}: {a} leads nowhere" for a in inner if broken(path, a, pages)]
        if page.shows_stderr:
            found.append(f"{name}: a cell shows a warning")
    for style in sorted(site.rglob("*.css")):
        if re.search(r"""(url\(|@import)\s*['"]?(https?:)?//""", style.read_text(encoding="utf-8")):
            found.append(f"{style.relative_to(site)}: asks for something from elsewhere")
    anchors = set().union(*(page.anchors for page in pages.values()))
    names = sorted(f"pyrovae.{name}" for name in pyrovae.__all__)
    return found + [f"{name} is not in the reference" for name in names if name not in anchors]


if __name__ == "__main__":
    found = faults(Path(sys.argv[1]))
    print("\n".join(found) or "The site is whole: links, anchors, nothing from elsewhere.")
    sys.exit(bool(found))
