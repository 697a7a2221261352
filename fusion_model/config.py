"""Shape and loss of the encrypted-trainable fusion network."""

from dataclasses import dataclass

WEIGHT_SCALE_BITS = 20
"""Integer weights are in units of 2^-20."""

WEIGHT_UNIT = 2.0**-WEIGHT_SCALE_BITS


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """F = S + sum_c v_c * (w_c * X + b_c)^2 + d on `patch` x `patch` windows, S the mean of the inputs.

    Both convolutions are `kernel` x `kernel` without padding, and d = -sum v b^2 is tied so that black stays
    black. Flat parameter order everywhere: w[c, input, k, l], b[c], v[c, k, l], each in C order; a gradient
    has one more entry, the derivative with respect to d taken as if it were free.
    """

    patch: int = 6
    channels: int = 4
    kernel: int = 3
    inputs: int = 2
    gradient_weight: int = 1
    """Weight of the image-gradient term: mu in the circuits' formulas, lambda in the loss's; one number."""

    def __post_init__(self) -> None:
        if min(self.patch, self.channels, self.kernel) < 1 or self.kernel % 2 == 0:
            raise ValueError(
                "patch and channels must be positive and kernel odd; "
                f"got {self.patch}, {self.channels}, {self.kernel}"
            )
        if self.inputs < 2:
            raise ValueError(f"fusion needs at least 2 inputs; got {self.inputs}")
        if self.gradient_weight < 0:
            raise ValueError(f"gradient_weight must not be negative; got {self.gradient_weight}")
        if self.output < 1:
            raise ValueError(
                f"a {self.patch}x{self.patch} patch has no output under two {self.kernel}x{self.kernel}"
            )

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
        return self.kernel - 1

    @property
    def first_weights(self) -> int:
        """Number of weights of the first convolution."""
        return self.channels * self.inputs * self.kernel**2

    @property
    def parameters(self) -> int:
        """Number of trained weights, without the tied output bias."""
        return self.first_weights + self.channels + self.channels * self.kernel**2

    @property
    def gradient_entries(self) -> int:
        """Entries of an untied gradient: the parameters, then d."""
        return self.parameters + 1
