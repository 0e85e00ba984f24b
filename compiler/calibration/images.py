"""Folders of images as samples: each file through a preprocessing that the user states."""

from __future__ import annotations

from pathlib import Path

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})


def files(path: Path) -> list[Path]:
    """The image files of a folder and those below it, by name; empty where it is no such folder."""
    if not path.is_dir():
        return []
    return sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
