"""Devices and properties of OpenVINO's runtime as a user writes them: `GPU`, `HETERO:NPU,CPU`, `NUM_STREAMS=2`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tapeout.sdk import UsageError, VendorToolError
from tapeout.targets.openvino.options import PROPERTY, nearest
from tapeout.targets.openvino.runtime import core, version

# What the runtime has plugins for.
PLUGINS = ("CPU", "GPU", "NPU")
# What spreads a model over devices: of several by need, one chosen, all at once, in batches.
VIRTUAL = ("HETERO", "AUTO", "MULTI", "BATCH")


def device(text: str) -> str:
    """A device as the runtime takes it, checked: every part of it is known and is there.

    Raises UsageError for a name that OpenVINO does not have, VendorToolError for a device that is not here.
    """
    head, colon, rest = text.upper().partition(":")
    if head in VIRTUAL:
        names = [n for n in rest.split(",") if n]
        if colon and not names:
            raise UsageError(f"device '{text}': expected devices behind the colon, such as {head}:GPU,CPU")
        for name in names:
            _present(name.lstrip("-").partition("(")[0], text)
        return f"{head}:{','.join(names)}" if names else head
    if colon:
        raise UsageError(f"device '{text}': {nearest(head, VIRTUAL)}")
    return _present(head, text)


def _present(name: str, text: str) -> str:
    kind = name.partition(".")[0]
    if kind not in PLUGINS:
        raise UsageError(f"device '{text}': OpenVINO has no '{name}'; {nearest(kind, (*PLUGINS, *VIRTUAL))}")
    here = core().available_devices
    if not any(d == name or d.partition(".")[0] == name for d in here):
        raise VendorToolError(
            f"device '{text}': there is no {name} here; OpenVINO {version()} sees {', '.join(here) or 'none'}",
            hint="run it on a machine that has one, with its driver installed",
        )
    return name


def properties(options: Mapping[str, str], name: str) -> dict[str, str]:
    """What the options `property.NAME=VALUE` set for the device `name`. Raises UsageError."""
    asked = {k.removeprefix(PROPERTY): v for k, v in options.items() if k.startswith(PROPERTY)}
    if not asked:
        return {}
    base = name.partition(":")[2].partition(",")[0] or name
    known = {k for k, v in core().get_property(base, "SUPPORTED_PROPERTIES").items() if v in ("RW", "WO")}
    for key in asked:
        if key not in known:
            raise UsageError(f"option {PROPERTY}{key}: {name} has no such property; {nearest(key, known)}")
    return asked


def compiled(model: Any, name: str, settings: Mapping[str, Any]) -> Any:
    """`model` compiled for a checked device. Raises UsageError on a value that a property does not take."""
    try:
        return core().compile_model(model, name, dict(settings))
    except RuntimeError as error:
        text = re.sub(
            r"(Exception from|Check) \S+( failed at \S+)?:\d+:", "", " ".join(str(error).split())
        ).strip()
        if any(word in text for word in ("Wrong value", "Unsupported property", "Could not read")):
            raise UsageError(
                f"device {name}, {', '.join(f'{k}={v}' for k, v in settings.items())}: {text}"
            ) from error
        raise VendorToolError(f"OpenVINO {version()} does not compile it for {name}: {text}") from error
