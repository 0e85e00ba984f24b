"""Writes the benchmark's models: MobileNetV2, ResNet-50, ViT-small and BERT-base shapes with random weights.

    python benchmarks/models.py FOLDER

Runs in an environment of its own (benchmarks/requirements-models.txt): torch and transformers are needed for
nothing else. Batch normalisation gets random statistics, so that folding it wrongly cannot go unnoticed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import transformers


def mobilenet_v2() -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    config = transformers.MobileNetV2Config(num_labels=1000)
    return transformers.MobileNetV2ForImageClassification(config), {
        "pixel_values": torch.randn(1, 3, 224, 224)
    }


def resnet_50() -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    config = transformers.ResNetConfig(num_labels=1000)
    return transformers.ResNetForImageClassification(config), {"pixel_values": torch.randn(1, 3, 224, 224)}


def vit_small() -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    config = transformers.ViTConfig(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536, num_labels=1000
    )
    return transformers.ViTForImageClassification(config), {"pixel_values": torch.randn(1, 3, 224, 224)}


def bert_base() -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    config = transformers.BertConfig()
    ids = torch.randint(0, config.vocab_size, (1, 128))
    return transformers.BertModel(config), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


MODELS = {f.__name__: f for f in (mobilenet_v2, resnet_50, vit_small, bert_base)}


class Plain(torch.nn.Module):
    """The model with tensors in and out."""

    def __init__(self, model: torch.nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *tensors: torch.Tensor) -> Any:
        return self.model(**dict(zip(self.names, tensors, strict=True)), return_dict=True)[0]


def randomise(model: torch.nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.1)


def write(name: str, folder: Path) -> Path:
    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    randomise(model)
    path = folder / f"{name}.onnx"
    torch.onnx.export(
        Plain(model.eval(), list(inputs)).eval(),
        tuple(inputs.values()),
        str(path),
        input_names=list(inputs),
        output_names=["output"],
        opset_version=18,
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    return path


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name in MODELS:
        path = write(name, folder)
        print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
