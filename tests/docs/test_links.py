"""Every link from one page to a file of this repository leads to a file that is there; so does every module named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")])
PAGES = [page for page in PAGES if "node_modules" not in page.parts]
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]+)[^)]*\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links(page: Path) -> None:
    missing = [
        link
        for link in LINK.findall(page.read_text(encoding="utf-8"))
        if not (page.parent / link).exists()
    ]
    assert missing == []


MODULE = re.compile(r"`([\w./-]+\.(?:py|yaml|js))`")


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/architecture.md", "bench/README.md"])
def test_modules_that_a_page_names_are_there(page: str) -> None:
    there = [f"/{path.relative_to(ROOT)}" for path in sources()]
    named = MODULE.findall((ROOT / page).read_text(encoding="utf-8"))
    assert [name for name in named if not any(path.endswith(f"/{name}") for path in there)] == []


def test_the_tour_names_every_folder_of_the_package_and_of_the_tests() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    folders = {path.parent for path in sources() if path.parent.parent == ROOT / "zbroker"}
    named = [folder.name for folder in sorted(folders) if f"\n  {folder.name}/ " not in page]
    tests = {path.parent for path in sources() if path.parent.parent == ROOT / "tests"}
    named += [folder.name for folder in sorted(tests) if f"tests/{folder.name}`" not in page]
    assert named == []


def sources() -> list[Path]:
    tops = ("zbroker", "tests", "bench", "configs", "docs", "examples")
    found = [path for top in tops for path in (ROOT / top).rglob("*.*")]
    return [
        path
        for path in found
        if path.suffix in (".py", ".yaml", ".js") and "node_modules" not in path.parts
    ]
