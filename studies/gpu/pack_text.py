"""Pack text for a machine without network: source files and documentation into one compressed file.

    apt-get install linux-source linux-doc    # about 1.3 GB of text, unpack the sources in /usr/src
    python studies/gpu/pack_text.py /usr/src/linux-source-* /usr/share/doc --megabytes 400 --out text.xz
    xz -d text.xz                             # there; then check.py --text text

Files are taken in an order that is shuffled by their names' hashes, so that any prefix is a fair sample.
"""

from __future__ import annotations

import argparse
import hashlib
import lzma
from pathlib import Path

SUFFIXES = {".c", ".h", ".rst", ".txt", ".md", ".html", ".S", ".dts", ".py"}


def main() -> None:
    """Pack until there is enough."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--megabytes", type=int, default=400)
    parser.add_argument("--out", type=Path, default=Path("text.xz"))
    arguments = parser.parse_args()

    files = [
        path
        for folder in arguments.folders
        for path in folder.rglob("*")
        if path.suffix in SUFFIXES and path.is_file() and not path.is_symlink()
    ]
    files.sort(key=lambda path: hashlib.sha256(str(path).encode()).digest())
    size, wanted = 0, arguments.megabytes * 10**6
    with lzma.open(arguments.out, "wb", preset=1) as packed:
        for path in files:
            text = path.read_bytes().decode(errors="ignore").replace("\0", "").encode()
            packed.write(text + b"\n\n")
            size += len(text) + 2
            if size >= wanted:
                break
    print(f"{size / 1e6:.0f} MB of {wanted / 1e6:.0f} MB in {arguments.out}")


if __name__ == "__main__":
    main()
