"""Noisy grey pictures of circles, squares and triangles, drawn with numpy: the data of several samples."""

from __future__ import annotations

from typing import Any

import numpy as np

SIZE, CLASSES = 32, 3
Array = np.ndarray[Any, Any]


def pictures(count: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """`count` noisy grey pictures [count, 1, 32, 32] in 0..1 and their classes: circle, square, triangle."""
    y, x = np.mgrid[:SIZE, :SIZE]
    images, labels = np.empty((count, 1, SIZE, SIZE), np.float32), rng.integers(CLASSES, size=count)
    for image, label in zip(images, labels, strict=True):
        cx, cy, r, turn = *rng.uniform(13, 19, 2), rng.uniform(7, 10), rng.uniform(-0.4, 0.4)
        u, v = (
            (x - cx) * np.cos(turn) + (y - cy) * np.sin(turn),
            (y - cy) * np.cos(turn) - (x - cx) * np.sin(turn),
        )
        if label == 0:
            inside = u**2 + v**2 < r**2
        elif label == 1:
            inside = np.maximum(abs(u), abs(v)) < 0.9 * r
        else:
            inside = np.maximum(v, 0.866 * abs(u) - 0.5 * v) < 0.6 * r
        low, high = rng.uniform(0, 0.3), rng.uniform(0.6, 1)
        image[0] = np.clip(np.where(inside, high, low) + rng.normal(scale=0.05, size=(SIZE, SIZE)), 0, 1)
    return images, labels
