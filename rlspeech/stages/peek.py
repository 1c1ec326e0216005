"""A look at the first lines of a manifest, before anything is read in earnest."""

import json
from itertools import islice
from pathlib import Path
from typing import Any


def first_rows(manifest: Path, count: int) -> list[dict[str, Any]]:
    """Those of the first lines that are JSON objects; none of a missing file. Its reader tells what is bad."""
    if not manifest.is_file():
        return []
    found = []
    with manifest.open("rb") as file:
        for line in islice(file, count):
            try:
                row = json.loads(line)
            except ValueError:
                continue
            found += [row] if isinstance(row, dict) else []
    return found
