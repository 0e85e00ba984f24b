"""Files that options ask for besides the artifact: a device's blob, the list of models of OpenVINO Model Server."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

from tapeout.sdk import Request
from tapeout.targets.openvino.blob import NOTE, SUFFIX, able, blob
from tapeout.targets.openvino.options import flag
from tapeout.targets.openvino.server import CONFIG, config, served


def also(place: Path, request: Request) -> dict[Path, Callable[[Path], bytes]]:
    """The files beside the artifact at `place`, with what makes each of the proven artifact.

    Raises UsageError and VendorToolError where an option cannot be fulfilled here.
    """
    found: dict[Path, Callable[[Path], bytes]] = {}
    if flag(request.options):
        able(request)

        @functools.cache
        def made(artifact: Path) -> dict[str, bytes]:
            return blob(artifact, request)

        for suffix in (SUFFIX, NOTE):
            found[place.with_suffix(suffix)] = lambda artifact, suffix=suffix: made(artifact)[suffix]  # type: ignore[misc]
    model = served(request.options)
    if model is not None:
        folder = place.parents[2]
        content = config(folder, model)
        found[folder / CONFIG] = lambda artifact: content
    return found
