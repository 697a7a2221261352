"""Random networks for properties: every kind of layer, branches, residuals, what can and can't be folded."""

import numpy as np
from hypothesis import strategies as st

from he.network import (
    INPUT,
    Add,
    AveragePool,
    BatchNorm,
    Convolution,
    Dense,
    GlobalAveragePool,
    Layer,
    Network,
    Polynomial,
    Shape,
    compute_shapes,
)


class Builder:
    """Grows a network layer by layer and remembers shapes."""

    def __init__(self, shape: Shape, seed: int) -> None:
        self.shape = shape
        self.rng = np.random.default_rng(seed)
        self.layers: list[Layer] = []

    def get_shape(self, name: str) -> Shape:
        if name == INPUT:
            return self.shape
        return compute_shapes(Network(self.shape, tuple(self.layers)))[name]

    def add(self, kind: str, source: str) -> str:
        """Name of the new layer, or `source` where the kind does not fit."""
        channels, height, width = self.get_shape(source)
        name = f"{kind}{len(self.layers)}"
        layer: Layer
        match kind:
            case "conv" | "strided":
                outputs, side = int(self.rng.integers(1, 4)), int(self.rng.integers(1, 4))
                padding = int(self.rng.integers(0, side))
                if min(height, width) + 2 * padding < side:
                    return source
                weights = self.rng.normal(size=(outputs, channels, side, side)) / (side * channels**0.5)
                stride = 1 if kind == "conv" else 2
                layer = Convolution(name, source, weights, self.rng.normal(size=outputs) / 4, stride, padding)
            case "norm":
                scale, shift = self.rng.normal(size=(2, channels)) / 2
                layer = BatchNorm(name, source, scale, shift)
            case "pool":
                if min(height, width) < 2:
                    return source
                layer = AveragePool(name, source, 2)
            case "mean":
                layer = GlobalAveragePool(name, source)
            case "dense":
                outputs = int(self.rng.integers(1, 5))
                weights = self.rng.normal(size=(outputs, channels * height * width))
                layer = Dense(
                    name, source, weights / (channels * height * width) ** 0.5, self.rng.normal(size=outputs)
                )
            case "square":
                layer = Polynomial(name, source, (0.0, 0.0, 1.0), (-3.0, 3.0))
            case "quadratic":
                c0, c1, c2 = (float(value) for value in self.rng.normal(size=3) / 2)
                layer = Polynomial(name, source, (c0, c1, c2), (-3.0, 3.0), 0.1)
            case "cubic":
                cs = tuple(float(value) for value in self.rng.normal(size=4) / 4)
                layer = Polynomial(name, source, cs, (-3.0, 3.0), 0.1)
            case "add":
                others = [
                    item.name for item in self.layers if self.get_shape(item.name) == self.get_shape(source)
                ]
                if not others:
                    return source
                layer = Add(name, source, others[int(self.rng.integers(len(others)))])
            case _:
                raise AssertionError(kind)
        self.layers.append(layer)
        return name


KINDS = ("conv", "strided", "norm", "pool", "mean", "dense", "square", "quadratic", "add")


@st.composite
def build_networks(draw: st.DrawFn, kinds: tuple[str, ...] = KINDS, most: int = 9) -> Network:
    """Each layer mostly follows the last one, now and then an earlier one; layers that nothing reads stay."""
    shape = (draw(st.integers(1, 2)), draw(st.integers(2, 6)), draw(st.integers(2, 6)))
    builder = Builder(shape, draw(st.integers(0, 2**32 - 1)))
    last = builder.add("conv", INPUT)
    if last == INPUT:
        last = builder.add("norm", INPUT)
    for _ in range(draw(st.integers(0, most))):
        source = last
        if builder.layers and draw(st.integers(0, 4)) == 0:
            source = draw(st.sampled_from([layer.name for layer in builder.layers]))
        last = builder.add(draw(st.sampled_from(kinds)), source)
    return Network(shape, tuple(builder.layers))
