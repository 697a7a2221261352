"""The recurrent cell in clear: its numbers and its bytes."""

from dataclasses import replace

import numpy as np
import pytest

from he.errors import ParameterError
from he.recurrent import OddCubic, RecurrentCell, State, evaluate_sequence, evaluate_step

GATE = OddCubic(0.5, 0.2, -0.006, 4.0, 0.04)
TANH = OddCubic(0.0, 0.8, -0.1, 2.0, 0.08)


def make_cell(features: int = 2, hidden: int = 3) -> RecurrentCell:
    generator = np.random.default_rng(1)
    return RecurrentCell(
        generator.normal(size=(4 * hidden, features)),
        generator.normal(size=(4 * hidden, hidden)),
        generator.normal(size=4 * hidden),
        generator.normal(size=features),
        generator.normal(size=hidden),
        0.5,
        GATE,
        TANH,
        TANH,
        3.0,
    )


def test_a_step_of_one_value_by_hand() -> None:
    one = np.ones((1, 1))
    cell = RecurrentCell(
        np.array([[1.0], [2.0], [0.5], [-1.0]]),
        np.array([[0.5], [0.0], [1.0], [1.0]]),
        np.zeros(4),
        np.array([2.0]),
        np.array([3.0]),
        -1.0,
        GATE,
        TANH,
        TANH,
        3.0,
    )
    y, state = evaluate_step(cell, one, State(one, one))
    i, f, g, o = GATE.evaluate(np.array(1.5)), GATE.evaluate(np.array(2.0)), TANH.evaluate(np.array(1.5)), 0.5
    c = f + i * g
    h = o * TANH.evaluate(c)
    assert state.cell.item() == pytest.approx(float(c))
    assert state.hidden.item() == pytest.approx(float(h))
    assert y.item() == pytest.approx(float(2.0 + 3.0 * h - 1.0))


def test_no_state_means_zeros() -> None:
    cell = make_cell()
    x = np.random.default_rng(2).normal(size=(3, 2, 5))
    zeros = State(np.zeros((3, 5)), np.zeros((3, 5)))
    first, state = evaluate_step(cell, x[0], None)
    assert np.allclose(first, evaluate_step(cell, x[0], zeros)[0])
    second, _ = evaluate_step(cell, x[1], state)
    assert np.allclose(evaluate_sequence(cell, x)[:2], [first, second])


def test_bytes_round_trip() -> None:
    data = make_cell().encode()
    assert RecurrentCell.decode(data).encode() == data
    negative = replace(make_cell(), offset=-0.0)
    assert negative.encode() == replace(make_cell(), offset=0.0).encode()


@pytest.mark.parametrize("cut", [0, 5, 11, -8, -1])
def test_cut_bytes_are_refused(cut: int) -> None:
    with pytest.raises(ParameterError, match="cell"):
        RecurrentCell.decode(make_cell().encode()[:cut])


@pytest.mark.parametrize(
    ("at", "new"), [(0, b"X"), (8, b"\0\0"), (10, b"\xff\0"), (20, b"\xff" * 8), (-8, b"\xff" * 8)]
)
def test_changed_bytes_are_refused(at: int, new: bytes) -> None:
    data = bytearray(make_cell().encode())
    at %= len(data)
    data[at : at + len(new)] = new
    with pytest.raises(ParameterError, match="cell"):
        RecurrentCell.decode(bytes(data))


def test_minus_zero_is_no_canonical_encoding() -> None:
    data = bytearray(replace(make_cell(), bias=np.zeros(12)).encode())
    start = 12 + 8 * (24 + 36)
    data[start : start + 8] = np.array([-0.0]).tobytes()
    with pytest.raises(ParameterError, match="canonical"):
        RecurrentCell.decode(bytes(data))


def test_wrong_shapes_are_named() -> None:
    for field in ("weights", "recurrent", "bias"):
        with pytest.raises(ParameterError, match=field):
            replace(make_cell(), **{field: np.zeros((2, 2))})
    with pytest.raises(ParameterError, match="gate"):
        replace(make_cell(), gate=replace(GATE, c3=0.0))
    with pytest.raises(ParameterError, match="feature_bound"):
        replace(make_cell(), feature_bound=0.0)
    with pytest.raises(ParameterError, match="hidden"):
        make_cell(1, 65)
