"""What pruning and factorization without training cost on real models, and what they gain, held to goals.

    python benchmarks/compression.py --assets ../shared/assets [--only 'vww-*,minilm-*'] [--targets tflite,openvino]
                                     [--json FILE] [--keep FOLDER]

Each line is one command, `tapeout export MODEL --calibration CALIB` with the options that the line names: it looks at
`calib` data alone, and the artifact is verified on the target's runtime. Figures are those of the scripts beside the
models, on evaluation data: points lost against the source, agreement (the share of samples with the source's largest
score; for sentences the mean cosine), zeros among all weights of convolutions and matrix products, operations that are
left, the seconds of the steps, and of the whole command the seconds of a processor (which other work on the machine
hardly moves) and the peak memory. A gain in accuracy never counts against a loss elsewhere. `svd-*` puts low-rank
weights in place without splitting layers, since a rank of 90% saves nothing: it compares what two ways to choose them
lose. Exits 1 where a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from asset_data import inputs
from assets import SUFFIXES, TASKS, score
from command import Exported, export
from scoring import open_session

IC, VWW, MINILM = "ic01_resnet8", "vww01_mobilenetv1", "minilm_l6"
# At most, and at least.
MOST = ("points", "seconds", "operations")
RANKS = (0.9, 0.7, 0.5)


@dataclass(frozen=True)
class Case:
    """One export: the options, or the text of a recipe, and goals for figures (see MOST)."""

    name: str
    model: str
    options: str = ""
    recipe: str = ""
    goals: Mapping[str, float] = field(default_factory=dict)


# The first two thirds of the network's layers stay as they are.
LATE = """
[[step]]
factorize = "svd"
ratio = 0.3
[[step.rule]]
node = ["model/conv2d/*", "model/conv2d_[1-6]/*"]
skip = true
"""
CASES = (
    Case("ic01-50", IC, "--prune admm=0.5", goals={"points": 2, "agreement": 0.87}),
    Case("ic01-2:4", IC, "--prune admm=2:4", goals={"points": 5}),
    Case("vww-50", VWW, "--prune admm=0.5", goals={"points": 2, "agreement": 0.90}),
    Case("vww-2:4", VWW, "--prune admm=2:4", goals={"points": 2}),
    Case("ic01-channels-10", IC, "--prune channels=0.1", goals={"points": 3, "operations": 0.9}),
    Case("ic01-channels-30", IC, "--prune channels=0.3", goals={"points": 10, "operations": 0.7}),
    Case("vww-constant", VWW, "--prune constant-channels", goals={"agreement": 1.0, "operations": 0.515}),
    Case("vww-channels-60", VWW, "--prune channels=0.6", goals={"points": 2, "operations": 0.4}),
    Case(
        "vww-channels-60-by-16",
        VWW,
        "--prune channels=0.6,multiple=16",
        goals={"points": 2, "operations": 0.4},
    ),
    Case("ic01-svd-10", IC, "--factorize svd=0.1", goals={"points": 3, "operations": 0.9}),
    Case("ic01-tucker-10", IC, "--factorize tucker=0.1", goals={"points": 3, "operations": 0.9}),
    Case("vww-svd-30", VWW, "--factorize svd=0.3", goals={"points": 2, "operations": 0.7}),
    Case("vww-late-svd-30", VWW, recipe=LATE, goals={"points": 2}),
    Case("minilm-magnitude", MINILM, "--prune magnitude=0.5"),
    Case("minilm-wanda", MINILM, "--prune wanda=0.5"),
    Case("minilm-sparsegpt", MINILM, "--prune sparsegpt=0.5", goals={"agreement": 0.96}),
    Case("minilm-admm", MINILM, "--prune admm=0.5", goals={"agreement": 0.97, "seconds": 60}),
)


def exported(case: Case, source: Path, target: str, calibration: Path, out: Path) -> Exported:
    """The export of one case."""
    options = ["--calibration", calibration, *case.options.split()]
    if case.recipe:
        recipe = out.with_suffix(".toml")
        recipe.write_text(case.recipe)
        options += ["--recipe", recipe]
    return export(source, target, out, *options)


def agreement(assets: Path, name: str, files: Sequence[Path]) -> float:
    """The share of evaluation samples whose first output is largest at the same place in two files."""
    sys.path.insert(0, str(assets / "eval"))
    import onnxruntime
    import runner

    onnxruntime.InferenceSession = open_session
    given = inputs(assets, TASKS[name][1], files[0], None)
    count = len(next(iter(given.values())))
    first, second = (
        runner.Model(str(f)).predict(*given.values())[0].reshape(count, -1).argmax(1) for f in files
    )
    return float(np.mean(first == second))


def figures(assets: Path, name: str, files: Sequence[Path]) -> dict[str, float]:
    """Points lost and agreement of the second file against the first, on evaluation data."""
    source, found = score(assets, name, list(files))
    key = next(k for k in ("top1", "accuracy") if k in source)
    agrees = found.get("cos_to_first")
    return {
        "source": 100 * source[key],
        "points": 100 * (source[key] - found[key]),
        "agreement": agreement(assets, name, files) if agrees is None else float(agrees),
    }


def run(case: Case, assets: Path, target: str, folder: Path) -> dict[str, Any]:
    """The figures of one case."""
    source = assets / "models" / case.model / "model.onnx"
    calibration = folder / f"{case.model}_calib.npz"
    if not calibration.exists():
        np.savez(calibration, **inputs(assets, TASKS[case.model][1], source, None, "calib"))
    out = folder / f"{case.name.replace(':', '_')}{SUFFIXES[target]}"
    done = exported(case, source, target, calibration, out)
    if done.code:
        return {"failed": f"exit code {done.code}: {done.said.strip()[-400:]}"}
    steps = done.answer["report"]["compression"]
    last = steps[-1]
    return figures(assets, case.model, (source, out)) | {
        "zeros": last["zeros"] / last["weights"],
        "operations": last["operations"] / steps[0]["operations"],
        "weights": last["weights"] / steps[0]["weights"],
        "seconds": sum(step["seconds"] for step in steps[1:]),
        "processor": done.processor,
        "peak": done.peak,
        "left": [reason for step in steps[1:] for reason in step["left"]],
        "verified": done.answer["report"]["proof"]["proven"],
    }


def missed(case: Case, found: Mapping[str, Any]) -> list[str]:
    """The goals that are not met, in words."""
    if "failed" in found:
        return ["failed"]
    wrong = []
    for key, goal in case.goals.items():
        value = found[key]
        if value > goal + 1e-9 if key in MOST else value < goal - 1e-9:
            wrong.append(f"{key} {value:.4g} of {goal:g}")
    return wrong


def low_rank(assets: Path, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Sentences: 1 - cosine that is lost with every product at a share of its rank, whitened and plain."""
    from tapeout.calibrating import Samples
    from tapeout.compiler.ir.save import save
    from tapeout.compiler.pipeline import run as run_passes
    from tapeout.passes.canonicalize import CANONICALIZE
    from tapeout.passes.factorization.lowrank import factors
    from tapeout.passes.fusion import FUSION
    from tapeout.passes.quantization.layers import spread
    from tapeout.passes.sparsity.layers import layers
    from tapeout.passes.sparsity.prune import SAMPLES, Sequential
    from tapeout.road import Wish, prepare

    source = assets / "models" / MINILM / "model.onnx"
    calibration = folder / "svd_calib.npz"
    np.savez(calibration, **inputs(assets, TASKS[MINILM][1], source, None, "calib"))
    for share in RANKS:
        lost = {}
        for plain in (True, False):
            prepared = prepare(source, Wish())
            run_passes(prepared.model, (*CANONICALIZE, *FUSION, *CANONICALIZE))
            chosen = list(layers(prepared.model.graph))

            def solve(_: Any, weight: Any, moments: Any, plain: bool = plain, share: float = share) -> Any:
                a, b = factors(weight, None if plain else moments, max(1, round(share * min(weight.shape))))
                return a @ b

            feeds = spread(list(Samples(str(calibration)).open(prepared).feeds()), SAMPLES)
            still = {layer.name for layer in chosen} if plain else ()
            Sequential(prepared.model, feeds, still).run(chosen, solve)
            made = folder / f"svd_{plain}_{share}.onnx"
            save(prepared.model, made)
            lost[plain] = 1 - figures(assets, MINILM, (source, made))["agreement"]
            made.unlink()
        yield (
            f"svd-{round(100 * share)}",
            {"plain": lost[True], "whitened": lost[False], "ratio": lost[False] / lost[True]},
        )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--assets", type=Path, required=True)
    parser.add_argument("--only", default="*", help="wildcards over the names of cases, with commas")
    parser.add_argument("--targets", default="tflite")
    parser.add_argument("--keep", type=Path, help="a folder for the files that were made")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    assets, only = options.assets.resolve(), options.only.split(",")
    results: dict[str, Any] = {}
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="tapeout-") as made:
        folder = options.keep or Path(made)
        folder.mkdir(exist_ok=True)
        for case in CASES:
            for target in options.targets.split(","):
                if not any(fnmatchcase(case.name, pattern) for pattern in only):
                    continue
                found = results[f"{case.name} {target}"] = run(case, assets, target, folder)
                held = missed(case, found)
                wrong += bool(held)
                print(
                    f"{case.name:23} {target:8} {line(found)}  {'MISSED ' + ', '.join(held) if held else ''}",
                    flush=True,
                )
        if any(fnmatchcase(f"svd-{round(100 * share)}", p) for share in RANKS for p in only):
            for name, found in low_rank(assets, folder):
                results[name] = found
                wrong += found["ratio"] > 0.25
                print(f"{name:23} 1 - cosine: plain {found['plain']:.4f}, whitened {found['whitened']:.4f}, "
                      f"ratio {found['ratio']:.3f} (goal 0.25)", flush=True)  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    return 1 if wrong else 0


def line(found: Mapping[str, Any]) -> str:
    if "failed" in found:
        return str(found["failed"])
    return (
        f"{found['source']:6.2f} - {found['points']:5.2f} points  agrees {found['agreement']:.4f}  "
        f"zeros {found['zeros']:6.1%}  operations {found['operations']:6.1%}  weights {found['weights']:6.1%}  "
        f"{found['seconds']:5.1f} s ({found['processor']:.0f} s of a processor)  {found['peak'] / 1e6:5.0f} MB  "
        f"{len(found['left'])} left"
    )


if __name__ == "__main__":
    sys.exit(main())
