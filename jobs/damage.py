"""Whether a run's JSON files are still what was written. Every byte is read."""

import json
from pathlib import Path
from typing import Any

from wsi.publish import seal_fits


def read_sealed(path: Path) -> tuple[dict[str, Any], str]:
    """(content, what is wrong with it, "" for nothing) of a JSON object, by its checksum where it has one."""
    text = path.read_bytes()
    try:
        content = json.loads(text)
    except ValueError as error:
        return {}, f"it is no JSON ({error})"
    if not isinstance(content, dict):
        return {}, "it is no JSON object"
    return content, "its checksum does not fit" if seal_fits(text) is False else ""
