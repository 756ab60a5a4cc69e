"""Hooks of MkDocs: pages that are made from the code or lie elsewhere in the repository, and links to them.

README, CONTRIBUTING and CHANGELOG become pages, so that nothing is written twice, and so do the tables of all
rules of parametrizations. Links between Markdown files work both in the repository and on the site: here a
link to a file that is on the site leads to its page, and of a link to source code only the text is kept.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from transfer_bo.parametrization import RULES, Power, Role, RoleExponents, Rule
from transfer_bo.parametrization.rules import MATRIX_SOURCES
from transfer_bo.parametrization.tables import optimizers_of
from transfer_bo.parametrization.tables.matrices import MATRIX_ROWS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

FROM_REPOSITORY = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "studies/demo_report.png": "images/demo_report.png",
    "benchmarks/results/steplaw.png": "images/steplaw.png",
    "benchmarks/results/scalebench.png": "images/scalebench.png",
}
"""Files outside of `docs` and where they are on the site."""

SYMBOLS = {
    "width": "m_N",
    "depth": "m_L",
    "batch": "m_B",
    "tokens": "m_D",
    "fan_out": "m_out",
    "parameters": "m_P",
    "rank": "m_r",
}
"""Symbol of each ratio target/base, as in `transfer_bo.parametrization.rules`."""

COLUMNS = {
    "init_var": "initial variance",
    "lr": "learning rate",
    "eps": "ε",
    "weight_decay": "weight decay",
    "forward": "forward multiplier",
}
"""Quantities of a tensor, and how a table calls them."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that do not lie in the documentation's folder."""
    for source, uri in FROM_REPOSITORY.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / source)))
    files.append(File.generated(config, "theory/rules.md", content=rules_page()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let the links of a page lead to pages of the site."""
    sources = {uri: source for source, uri in FROM_REPOSITORY.items()}
    here = page.file.src_uri
    folder = (ROOT / sources[here]).parent if here in sources else (DOCS / here).parent

    def rewrite(found: re.Match[str]) -> str:
        image, text, target, anchor = found.groups()
        path = (folder / target).resolve()
        if path.is_relative_to(DOCS):
            uri = path.relative_to(DOCS).as_posix()
        else:
            uri = FROM_REPOSITORY.get(path.relative_to(ROOT).as_posix(), "")

        if not uri:
            return text
        return f"{image}[{text}]({posixpath.relpath(uri, posixpath.dirname(here) or '.')}{anchor})"

    return re.sub(r"(!?)\[([^\]]*)\]\((?![a-z]+:)([^)#\s]+)(#[^)\s]*|)\)", rewrite, markdown)


def rules_page() -> str:
    """Return the page with the table of every rule."""
    sections = [f"# Rules of parametrizations\n\n{_INTRODUCTION}", _matrices()]
    first: dict[str, str] = {}
    for rule in RULES.values():
        table = _table(rule)
        same = first.setdefault(table, rule.name)
        rows = table if same == rule.name else f"The rows are those of [{same}](#{same})."
        sections.append(f"## {rule.name}\n\n{_facts(rule)}\n\n{rows}")
    return "\n\n".join(sections) + "\n"


_INTRODUCTION = """\
Every rule of `transfer_bo.parametrization.RULES`, made from the tables that the code uses. An entry is what a
quantity of a tensor is multiplied by when the model grows from the base to the target: a product of powers of
the ratios target/base of width (m_N; of a weight, its fan-in), depth (m_L), batch (m_B), tokens (m_D),
fan-out (m_out), parameters (m_P) and ranks of adapters (m_r). α is the exponent of the residual multiplier.
Roles with equal entries share a row; those in italics are not printed in the source, but follow from its
reasoning."""


def _matrices() -> str:
    """Return the rows of hidden matrices by optimizer."""
    lines = ["| optimizer | " + " | ".join(COLUMNS.values()) + " | source |"]
    lines.append("|---" * (2 + len(COLUMNS)) + "|")
    for name, exponents in MATRIX_ROWS.items():
        entries = [power(getattr(exponents, column)) for column in COLUMNS]
        lines.append(f"| {name} | " + " | ".join(entries) + f" | {MATRIX_SOURCES[name]} |")
    text = (
        "Some optimizers take two-dimensional hidden weights only. Under Complete(d)P their row of "
        f"`{Role.HIDDEN_WEIGHT}` is one of these, times what the rule gives every tensor; muP has them "
        "without factors of depth, and SP without any but the initial variance. All other tensors have the "
        "rule's own."
    )
    return "## Hidden matrices by optimizer\n\n" + text + "\n\n" + "\n".join(lines)


def _facts(rule: Rule) -> str:
    """Return a list of what holds for all tensors."""
    optimizer = rule.optimizer
    if rule.matrices is not None:
        optimizer = f"{rule.matrices} for hidden matrices, {rule.optimizer} for other tensors"

    root = RULES.get(rule.parametrization, rule)
    low, high = rule.alpha_range
    return "\n".join(
        [
            f"- source: {rule.source}",
            f"- optimizer: {optimizer}",
            f"- tables of the same parametrization: {', '.join(optimizers_of(root))}",
            f"- residual branches: x + {power(rule.residual)} · F(x), α from {low:g} to {high:g}",
            f"- every tensor: {_factors(rule.every)}",
            f"- 1-β: {power(rule.one_minus_beta)}, form: {rule.betas.replace('_', '-')}",
        ]
    )


def _table(rule: Rule) -> str:
    """Return the rows of a rule, one for all roles with the same exponents."""
    roles: dict[RoleExponents, list[str]] = {}
    for role, exponents in rule.rows.items():
        roles.setdefault(exponents, []).append(f"*{role}*" if role in rule.derived else str(role))

    lines = ["| role | " + " | ".join(COLUMNS.values()) + " |", "|---" * (1 + len(COLUMNS)) + "|"]
    for exponents, names in roles.items():
        entries = [power(getattr(exponents, column)) for column in COLUMNS]
        lines.append(f"| {', '.join(names)} | " + " | ".join(entries) + " |")
    return "\n".join(lines)


def _factors(exponents: RoleExponents) -> str:
    """Return the factors that every tensor gets, e.g. `learning rate m_B^0.5`."""
    factors = {name: power(getattr(exponents, column)) for column, name in COLUMNS.items()}
    return ", ".join(f"{name} {factor}" for name, factor in factors.items() if factor != "1") or "no factor"


def power(entry: Power) -> str:
    """Return a product of powers as text, e.g. `m_N^-1 m_L^(α-1)`."""
    factors = []
    for axis, symbol in SYMBOLS.items():
        exponent = f"{getattr(entry, axis):g}"
        if axis == "depth" and entry.depth_alpha:
            slope = {1.0: "α", -1.0: "-α"}.get(entry.depth_alpha, f"{entry.depth_alpha:g}α")
            exponent = slope if not entry.depth else f"({slope}{entry.depth:+g})"
        if exponent != "0":
            factors.append(symbol if exponent == "1" else f"{symbol}^{exponent}")
    return " ".join(factors) or "1"
