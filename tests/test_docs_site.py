"""Pages of the documentation that are made from the code."""

import importlib.util
from pathlib import Path

import pytest
from mkdocs.structure.files import File

from transfer_bo.parametrization import RULES, Power

SCRIPT = Path(__file__).parents[1] / "scripts" / "docs_site.py"
spec = importlib.util.spec_from_file_location("docs_site", SCRIPT)
assert spec is not None
assert spec.loader is not None
docs_site = importlib.util.module_from_spec(spec)
spec.loader.exec_module(docs_site)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (Power(), "1"),
        (Power(width=1), "m_N"),
        (Power(width=-0.5, tokens=2), "m_N^-0.5 m_D^2"),
        (Power(depth_alpha=-1), "m_L^-α"),
        (Power(depth=-1, depth_alpha=1, fan_out=1), "m_L^(α-1) m_out"),
        (Power(depth=1, depth_alpha=-2), "m_L^(-2α+1)"),
    ],
)
def test_a_power_is_written_as_a_product(entry: Power, expected: str) -> None:
    """Exponents of 1 and factors of 1 are left out."""
    assert expected == docs_site.power(entry)


def test_every_rule_has_a_section() -> None:
    """The page of rules has a heading for each rule, in their order."""
    headings = [line[3:] for line in docs_site.rules_page().splitlines() if line.startswith("## ")]

    assert ["Hidden matrices by optimizer", *RULES] == headings


@pytest.mark.parametrize(
    ("page", "link", "expected"),
    [
        ("guide/own-model.md", "[x](per-module.md#top)", "[x](per-module.md#top)"),
        ("guide/own-model.md", "[x](../../README.md#example)", "[x](../index.md#example)"),
        ("results.md", "![x](../benchmarks/results/steplaw.png)", "![x](images/steplaw.png)"),
        ("index.md", "[x](docs/guide/own-model.md)", "[x](guide/own-model.md)"),
        ("guide/own-model.md", "[`space.py`](../../transfer_bo/space.py)", "`space.py`"),
        ("index.md", "[x](https://optuna.org)", "[x](https://optuna.org)"),
    ],
)
def test_links_of_the_repository_become_links_of_the_site(page: str, link: str, expected: str) -> None:
    """A page or image of the site is linked where it is there; of other files the text is left."""

    class Page:
        file = File(page, None, "site", True)

    assert expected == docs_site.on_page_markdown(link, Page(), None, None)
