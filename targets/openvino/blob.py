"""The compiled blob of a device, and what it is compatible with: `--option blob=true`.

A blob is what the device's plugin makes of the file when it loads it. It saves that time at every start, and serves
only the version of OpenVINO, the kind of device and the driver that it was made with: the note says which.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tapeout.sdk import Request, VendorToolError, json_bytes
from tapeout.targets.openvino.devices import compiled, device, properties
from tapeout.targets.openvino.inspection import read
from tapeout.targets.openvino.runtime import core, version

SUFFIX, NOTE = ".blob", ".blob.json"
PROGRAM = """
import json, sys
import openvino
file, device, settings, out = sys.argv[1:]
core = openvino.Core()
made = core.compile_model(file, device, json.loads(settings))
with open(out, "wb") as stream:
    stream.write(made.export_model().getvalue())
facts = {}
for ask, key in ((made, "RUNTIME_REQUIREMENTS"), (core, "DEVICE_ARCHITECTURE"), (made, "INFERENCE_PRECISION_HINT")):
    try:
        found = ask.get_property(key) if ask is made else core.get_property(device, key)
    except RuntimeError:
        continue
    facts[key.lower()] = found.get_type_name() if hasattr(found, "get_type_name") else str(found)
print(json.dumps(facts))
"""


def able(request: Request) -> str:
    """The device whose blob is asked for. Raises VendorToolError where it is not here, or its plugin writes none."""
    name = device(request.device)
    if "EXPORT_IMPORT" not in core().get_property(name, "OPTIMIZATION_CAPABILITIES"):
        raise VendorToolError(f"the plugin of {name} writes no blobs", hint="leave out --option blob=true")
    return name


def blob(artifact: Path, request: Request) -> dict[str, bytes]:
    """The blob and its note, by what follows the artifact's stem. Raises as `able` does."""
    name = able(request)
    settings = properties(request.options, name)
    content, found = _compiled(artifact, name, settings)
    facts: dict[str, Any] = {
        "openvino": version(),
        "device": name,
        "device_name": core().get_property(name, "FULL_DEVICE_NAME"),
        **found,
        "properties": settings,
    }
    return {SUFFIX: content, NOTE: json_bytes(facts)}


def _compiled(artifact: Path, name: str, settings: dict[str, str]) -> tuple[bytes, dict[str, str]]:
    """The blob and what the plugin says of it. A process of its own makes it: the runtime numbers its operators in
    the order in which a process has made them, and a blob holds the numbers."""
    with tempfile.TemporaryDirectory(prefix="tapeout-") as folder:
        out = Path(folder) / "out"
        command = [
            sys.executable,
            "-c",
            PROGRAM,
            str(artifact.resolve()),
            name,
            json.dumps(settings),
            str(out),
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode or not out.is_file():
            compiled(read(artifact), name, settings)  # says better what it is that the plugin does not take
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise VendorToolError(f"OpenVINO {version()} writes no blob for {name}: {last}")
        return out.read_bytes(), dict(json.loads(done.stdout))
