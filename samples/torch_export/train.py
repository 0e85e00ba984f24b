"""Trains a small network in torch that tells circles, squares and triangles apart, and saves it as a program.

    python samples/torch_export/train.py FOLDER

Writes shapes.pt2 (torch.export), data.npz (inputs for `--data`) and expected.npz (pictures, labels, and what torch
computes for them). Takes some seconds on one core.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "shapes"))
from pictures import pictures


class Block(nn.Module):
    """x + relu(norm(conv(x)))"""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.relu(self.norm(self.conv(x)))


class Shapes(nn.Module):
    """Probabilities of three shapes from grey pictures [N, 1, 32, 32]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 5, stride=2, padding=2)
        self.blocks = nn.Sequential(Block(16), nn.MaxPool2d(2), Block(16))
        self.head = nn.Linear(16 * 16, 3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.blocks(nn.functional.gelu(self.stem(image)))
        x = nn.functional.avg_pool2d(x, 2)
        return self.head(x.flatten(1)).softmax(-1)


def trained(steps: int = 150) -> Shapes:
    """A network after `steps` batches of 64 new pictures."""
    torch.manual_seed(0)
    model, rng = Shapes(), np.random.default_rng(1)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(steps):
        images, labels = (torch.from_numpy(a) for a in pictures(64, rng))
        loss = nn.functional.nll_loss(torch.log(model(images) + 1e-9), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    model = trained()
    images, labels = pictures(200, np.random.default_rng(2))
    with torch.no_grad():
        probabilities = model(torch.from_numpy(images)).numpy()
    example, batch = torch.from_numpy(images[:2]), torch.export.Dim("N")
    program = torch.export.export(model, (example,), dynamic_shapes={"image": {0: batch}})
    torch.export.save(program, folder / "shapes.pt2")
    np.savez(folder / "data.npz", image=images[:16])
    np.savez(folder / "expected.npz", image=images, label=labels, probabilities=probabilities)
    print(f"accuracy in torch {np.mean(probabilities.argmax(1) == labels):.3f} on {len(labels)} new pictures")


if __name__ == "__main__":
    main()
