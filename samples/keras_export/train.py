"""Trains a small network in Keras that tells circles, squares and triangles apart, and saves it in three forms.

    python samples/keras_export/train.py FOLDER      (a Python with tensorflow-cpu)

Writes shapes.keras, shapes.h5, the SavedModel shapes_saved/, data.npz (inputs for `--data`) and expected.npz
(pictures, labels, and what Keras computes for them). Takes some seconds on one core.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import keras
import numpy as np
from keras import layers

sys.path.insert(0, str(Path(__file__).parents[1] / "shapes"))
from pictures import pictures


def network() -> Any:
    """Probabilities of three shapes from grey pictures [N, 32, 32, 1]."""
    image = layers.Input((32, 32, 1), name="image")
    x = layers.Conv2D(16, 5, strides=2, padding="same", activation="gelu", name="stem")(image)
    y = layers.SeparableConv2D(16, 3, padding="same", use_bias=False, name="block_conv")(x)
    y = layers.BatchNormalization(momentum=0.8, name="block_norm")(y)
    x = layers.Add(name="block_sum")([x, layers.ReLU(name="block_relu")(y)])
    x = layers.AveragePooling2D(4, name="pool")(x)
    x = layers.Flatten(name="flat")(x)
    return keras.Model(image, layers.Dense(3, activation="softmax", name="probabilities")(x), name="shapes")


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(0)
    model = network()
    model.compile(optimizer=keras.optimizers.Adam(3e-3), loss="sparse_categorical_crossentropy")
    images, labels = pictures(6000, np.random.default_rng(1))
    images = images.transpose(0, 2, 3, 1)
    model.fit(images, labels, batch_size=64, epochs=2, verbose=0)
    images, labels = pictures(200, np.random.default_rng(2))
    images = images.transpose(0, 2, 3, 1)
    probabilities = model.predict(images, verbose=0)
    model.save(folder / "shapes.keras")
    model.save(folder / "shapes.h5")
    model.export(folder / "shapes_saved", verbose=False)
    np.savez(folder / "data.npz", image=images[:16])
    np.savez(folder / "expected.npz", image=images, label=labels, probabilities=probabilities)
    print(f"accuracy in Keras {np.mean(probabilities.argmax(1) == labels):.3f} on {len(labels)} new pictures")


if __name__ == "__main__":
    main()
