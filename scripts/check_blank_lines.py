"""Long functions are written in paragraphs: list each function of 25 lines or more without a blank line.

Usage: python scripts/check_blank_lines.py [--report] PATH...

The docstring does not count, and neither do blank lines within string literals. The exit status is 1 if a
function is listed, or 0 with --report.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterator
from pathlib import Path

LONG_BODY = 25
"""Lines from which on a function body needs a blank line; shorter ones fit into one glance."""


def long_bodies(path: Path) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, bool]]:
    """Yield each function of `path` with a long body, and whether that body has a blank line."""
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines()

    for node in ast.walk(ast.parse(source, filename=str(path))):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue

        body = node.body[1:] if ast.get_docstring(node) is not None else node.body
        if not body:
            continue

        first, last = body[0].lineno, body[-1].end_lineno or body[-1].lineno
        if last - first + 1 < LONG_BODY:
            continue

        literals = _lines_inside_strings(body)
        blank = any(not lines[n - 1].strip() for n in range(first, last + 1) if n not in literals)
        yield node, blank


def _lines_inside_strings(body: list[ast.stmt]) -> set[int]:
    """Return the numbers of all lines that continue a string literal."""
    inside: set[int] = set()
    for node in (node for statement in body for node in ast.walk(statement)):
        if isinstance(node, ast.JoinedStr | ast.Constant):
            inside.update(range(node.lineno + 1, (node.end_lineno or node.lineno) + 1))
    return inside


def main() -> int:
    """Check the files and folders named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--report", action="store_true", help="list the functions, but do not fail")
    parser.add_argument("paths", nargs="+", type=Path)
    options = parser.parse_args()

    files = [file for path in options.paths for file in (sorted(path.rglob("*.py")) or [path])]
    found = [(file, node, blank) for file in files for node, blank in long_bodies(file)]
    missing = [(file, node) for file, node, blank in found if not blank]

    for file, node in missing:
        print(f"{file}:{node.lineno}: {node.name} has {LONG_BODY} lines or more and no blank line")
    print(f"{len(missing)} of {len(found)} long functions have no blank line.")
    return int(bool(missing) and not options.report)


if __name__ == "__main__":
    sys.exit(main())
