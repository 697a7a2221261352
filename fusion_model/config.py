"""Shape and loss of the encrypted-trainable fusion network."""

from dataclasses import dataclass

WEIGHT_SCALE_BITS = 20
"""Integer weights are in units of 2^-20."""

WEIGHT_UNIT = 2.0**-WEIGHT_SCALE_BITS


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """F = S + sum_c v_c * (w_c * X + b_c)^2 + d on `patch` x `patch` windows.

    X are the two images and `inputs` - 2 planes computed from them; S, the skip image, is data. Each
    channel has a first kernel of its own odd side (1, 3 and 5 beside each other make an Inception block);
    one of a smaller kernel sees the centre of the window that the largest sees. Second kernels are `second`
    x `second`; nothing is padded, and d = -sum v b^2 is tied so that black stays black.

    Flat parameter order everywhere: channel by channel w[c][input, k, l] of the channel's own side, then
    b[c], then v[c, k, l], each in C order; a gradient has one more entry, the derivative with respect to d
    taken as if it were free.
    """

    patch: int = 6
    kernels: tuple[int, ...] = (3, 3, 3, 3)
    second: int = 3
    inputs: int = 2
    gradient_weight: int = 1
    """Weight of the image-gradient term: mu in the circuits' formulas, lambda in the loss's; one number."""

    def __post_init__(self) -> None:
        if not self.kernels or self.patch < 1:
            raise ValueError(f"patch and kernels must not be empty; got {self.patch}, {self.kernels}")
        if any(side < 1 or side % 2 == 0 for side in (*self.kernels, self.second)):
            raise ValueError(f"kernels must be positive and odd; got {self.kernels}, second {self.second}")
        if self.inputs < 2:
            raise ValueError(f"fusion needs at least 2 inputs; got {self.inputs}")
        if self.gradient_weight < 0:
            raise ValueError(f"gradient_weight must not be negative; got {self.gradient_weight}")
        if self.output < 1:
            raise ValueError(
                f"a {self.patch}x{self.patch} patch has no output under kernels of sides {self.kernel} and "
                f"{self.second}"
            )

    @property
    def channels(self) -> int:
        """Number of first kernels."""
        return len(self.kernels)

    @property
    def kernel(self) -> int:
        """Side of the largest first kernel."""
        return max(self.kernels)

    @property
    def hidden(self) -> int:
        """Side of the hidden layer's window."""
        return self.patch - self.kernel + 1

    @property
    def output(self) -> int:
        """Side of the output window."""
        return self.patch - 2 * self.margin

    @property
    def margin(self) -> int:
        """Pixels that the two convolutions take from each side."""
        return self.kernel // 2 + self.second // 2

    @property
    def first_weights(self) -> int:
        """Number of weights of the first convolutions."""
        return self.inputs * sum(side**2 for side in self.kernels)

    @property
    def second_start(self) -> int:
        """Place of the first weight of v."""
        return self.first_weights + self.channels

    @property
    def parameters(self) -> int:
        """Number of trained weights, without the tied output bias."""
        return self.second_start + self.channels * self.second**2

    @property
    def gradient_entries(self) -> int:
        """Entries of an untied gradient: the parameters, then d."""
        return self.parameters + 1

    def get_entry_name(self, index: int) -> str:
        """The gradient entry at a place of the flat order, e.g. `w[1,0,2,2]`, `b[0]`, `v[3,0,2]` or `d`.

        Places in w are counted in the channel's own kernel. Raises IndexError outside the order.
        """
        if not 0 <= index < self.gradient_entries:
            raise IndexError(f"gradient entries are 0 to {self.gradient_entries - 1}, not {index}")
        for channel, side in enumerate(self.kernels):
            count = self.inputs * side**2
            if index < count:
                plane, place = divmod(index, side**2)
                return f"w[{channel},{plane},{place // side},{place % side}]"
            index -= count
        if index < self.channels:
            return f"b[{index}]"
        channel, place = divmod(index - self.channels, self.second**2)
        if channel < self.channels:
            return f"v[{channel},{place // self.second},{place % self.second}]"
        return "d"
