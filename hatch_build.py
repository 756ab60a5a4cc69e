"""Metadata that the build works out: the README with absolute links, and the project's addresses.

On a package index the README stands alone, so its relative links and images must lead into the repository.
Where that is published is `repository` in `[tool.hatch.metadata.hooks.custom]` of pyproject.toml, or the
environment variable TRANSFER_BO_REPOSITORY. While it is not known, links become their text, and images are
left out.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

LINK = re.compile(r"(!?)\[([^\]]*)\]\((?![a-z]+:|#)([^)\s]+)\)")
"""A relative link or image of Markdown."""


class CustomMetadataHook(MetadataHookInterface):
    """Fills `readme` and `urls`, which pyproject.toml declares as dynamic."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add them to the project's metadata."""
        repository = os.environ.get("TRANSFER_BO_REPOSITORY", self.config.get("repository", "")).rstrip("/")
        readme = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": with_absolute_links(readme, repository),
        }
        metadata["urls"] = {}
        if repository:
            metadata["urls"] = {
                "Repository": repository,
                "Documentation": f"{repository}/tree/main/docs",
                "Changelog": f"{repository}/blob/main/CHANGELOG.md",
                "Issues": f"{repository}/issues",
            }


def with_absolute_links(text: str, repository: str) -> str:
    """The text with its relative links leading into the repository; without one, with their text only."""

    def absolute(found: re.Match[str]) -> str:
        image, words, target = found.groups()
        if not repository:
            return "" if image else words
        return f"{image}[{words}]({repository}/{'raw' if image else 'blob'}/main/{target})"

    return LINK.sub(absolute, text)
