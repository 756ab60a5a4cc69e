"""The project speaks the language of its field: list words and names that have a standard term.

Usage: python scripts/check_vocabulary.py [--report] PATH...

Python files are checked for names (of variables, arguments, attributes, functions, classes and modules), for
comments and for string literals; Markdown and TOML files for words. The exit status is 1 if anything is
listed, or 0 with --report.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

NAMES = {
    "Latent": "OptimumPosterior",
    "Ensemble": "PosteriorSamples",
    "Beliefs": "FitOptions",
    "_Beliefs": "_PriorModel",
    "beliefs": "prior_model",
    "contenders": "optimum_candidates",
    "least_expected_loss": "minimize_expected_loss",
    "scales_misfit": "neg_log_posterior",
    "misfit": "neg_log_posterior",
    "_settle": "find_map",
    "surprise": "residual",
    "whiten": "chol",
    "still": "frozen",
    "told": "informative",
    "nil": "unimportant",
    "dear": "expensive",
    "dearer": "more_expensive",
    "dearest": "most_expensive",
    "Stability": "FeasibilityModel",
    "any_diverged": "any_infeasible",
    "falling_back": "estimate_shrinkage",
    "has_failed": "matches_failed_run",
    "Heart": "Heartbeat",
    "reap": "requeue_dead",
    "give_back": "requeue",
    "deaths": "owner_losses",
    "HeldTrial": "OwnedTrial",
    "Materials": "ModelSpec",
    "Evidence": "TensorObservations",
    "maximise": "maximize",
    "minimise": "minimize",
}
"""Names that nothing in the code may have, and the standard term of each."""

DEFINITIONS = {
    "Settings": "StudySettings",
    "Setting": "ScalingFactors",
    "Row": "RoleExponents",
    "Process": "ForkedWorker",
    "working": "drop_always_failing",
    "TIMES": "MIN_FAILURES",
}
"""Names that the code may not define, as variables, arguments, attributes, functions or classes."""

VAGUE = {
    "apart": "residual_scale_correlation; elsewhere e.g. distance",
    "beyond": "residual_and_category_covariance; elsewhere e.g. extrapolation",
    "excess": "excess_loss",
    "near": "warm_start, jitter_correlation; elsewhere e.g. nearest",
    "floor": "noise_sd; elsewhere e.g. minimum",
    "reach": "lengthscale; elsewhere e.g. span",
    "shift": "source_shift_sd; elsewhere e.g. offset",
    "trade": "drift_mixing",
    "shared": "level_covariance; elsewhere e.g. common",
    "rest": "residual_covariance; elsewhere e.g. others, remainder",
    "seen": "residual_inputs; elsewhere e.g. observed",
    "left": "remaining_budget; elsewhere e.g. remaining, lower",
}
"""Everyday words that the package may not define as names, because nobody can guess their meaning."""

PACKAGE = "transfer_bo"
"""Where `VAGUE` holds; tests and benchmarks may be more casual."""

WORDS = {
    "told": "known, fitted, informative",
    "nil": "unimportant",
    "contenders": "optimum candidates",
    "made-up": "synthetic; for HPs: shadow features",
    "dear": "expensive",
    "dearer": "more expensive",
    "dearest": "most expensive",
    "believed": "expected a priori",
    "beliefs?": "prior",
    r"as\s+there(?=[.,;:)])": "write the arguments out",
    r"that\s+is\s+(?-i:none)": "is not a valid ...",
    "maximise": "maximize",
    "minimise": "minimize",
    r"past\s+(?:study|studies)": "source study",
}
"""Regular expressions that no comment, string or document may match as whole words."""

ALLOWED: dict[str, set[str]] = {
    "transfer_bo/deprecation.py": {"maximise"},
    "transfer_bo/run_table/suggest.py": {"maximise"},
    "tests/test_deprecation.py": {"maximise"},
    "tests/test_lint_scripts.py": {"told", "dearer", "Past studies"},
}
"""Words that a file may use: names in stored results, and old names that still work."""

_WORDS = {re.compile(rf"(?<![\w-]){word}(?![\w-])", re.IGNORECASE): term for word, term in WORDS.items()}

_PROSE = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}


def check_python(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield line, word and standard term of each finding in a Python file."""
    source = path.read_text(encoding="utf-8")
    definitions = DEFINITIONS | (VAGUE if PACKAGE in path.parts else {})
    for node in ast.walk(ast.parse(source, filename=str(path))):
        for line, name, defined in _names(node):
            if name in NAMES:
                yield line, name, NAMES[name]
            elif defined and name in definitions:
                yield line, name, definitions[name]

    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in _PROSE:
            for offset, word, term in _words(token.string):
                yield token.start[0] + offset, word, term


def _names(node: ast.AST) -> Iterator[tuple[int, str, bool]]:
    """Yield the names that a node of the syntax tree mentions: line, name, whether it is defined there."""
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            yield node.lineno, node.name, True
        case ast.Name():
            yield node.lineno, node.id, isinstance(node.ctx, ast.Store)
        case ast.Attribute():
            yield node.lineno, node.attr, isinstance(node.ctx, ast.Store)
        case ast.arg():
            yield node.lineno, node.arg, True
        case ast.keyword(arg=str(name)):
            yield node.lineno, name, False
        case ast.alias():
            yield node.lineno, node.asname or node.name.rpartition(".")[2], node.asname is not None


def check_text(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield line, word and standard term of each finding in a document."""
    for offset, word, term in _words(path.read_text(encoding="utf-8")):
        yield 1 + offset, word, term


def _words(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield the line of `text` that a finding starts in, counted from 0, the word and its standard term."""
    for pattern, term in _WORDS.items():
        for match in pattern.finditer(text):
            yield text.count("\n", 0, match.start()), " ".join(match.group().split()), term


def main() -> int:
    """Check the files and folders named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--report", action="store_true", help="list the findings, but do not fail")
    parser.add_argument("paths", nargs="+", type=Path)
    options = parser.parse_args()

    checks = {".py": check_python, ".md": check_text, ".toml": check_text}
    found = 0
    for path in options.paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.suffix not in checks:
                continue

            allowed = ALLOWED.get(file.as_posix(), set())
            for line, word, term in sorted(set(checks[file.suffix](file))):
                if word not in allowed:
                    print(f"{file}:{line}: {word!r}: the standard term is {term}")
                    found += 1

    print(f"{found} words have a standard term.")
    return int(bool(found) and not options.report)


if __name__ == "__main__":
    sys.exit(main())
