"""Where assembled models are kept."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """RLSPEECH_CACHE, else `rlspeech` in the user's cache folder (XDG_CACHE_HOME, else ~/.cache)."""
    if chosen := os.environ.get("RLSPEECH_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "rlspeech"
