import itertools

import numpy as np
import pytest

from mixbit.core.errors import InfeasibleBudget, InvalidInput
from mixbit.searches.hawq import _sequences, hawq, num_sequences
from tests.searches.fixtures import problem_of


@pytest.mark.parametrize(("layers", "widths", "count"), [(53, 3, 1485), (3, 2, 4), (4, 1, 1), (1, 5, 5)])
def test_count_of_sequences(layers, widths, count):
    """C(L + m - 1, m - 1); for small ones, all that never fall."""
    assert num_sequences(layers, widths) == count
    if layers < 5:
        falls_never = [s for s in itertools.product(range(widths), repeat=layers) if list(s) == sorted(s)]
        found = [tuple(s.tolist()) for s in _sequences(range(layers), widths)]
        assert sorted(found) == falls_never
        assert len(found) == count


def problem(trace, loss, limit, input_ties=(), bits=((4, 8), (8, 8)), offered=None):
    weight_bits, input_bits = np.array(bits).T
    trace = None if trace is None else np.array(trace, dtype=float)
    fields = {"weight_bits": weight_bits, "input_bits": input_bits, "input_ties": input_ties, "trace": trace}
    return problem_of(loss, np.tile(weight_bits, (1, len(loss), 1)), [limit], **fields)


def test_a_hand_worked_example():
    """Three layers of one weight each; bits never fall in the order second, third, first of their traces.

    Sequences in that order: 444, 448, 488, 888; as bits of layers 1, 2, 3: 444 (12 bits, loss 3.6), 844 (16, 2.7),
    848 (20, 0.8), 888 (24, 0.6). The one that is best within 20 bits, 848, is found; within 16 the order rules out 448
    with its loss of 1.7, which is better than 844.
    """
    loss = [[1.1, 0.2], [0.4, 0.2], [2.1, 0.2]]
    assert hawq(problem([9, 1, 4], loss, 20)).tolist() == [1, 0, 1]
    assert hawq(problem([9, 1, 4], loss, 16)).tolist() == [1, 0, 0]
    assert hawq(problem([9, 1, 4], loss, 12)).tolist() == [0, 0, 0]


def test_without_a_trace_the_order_is_that_of_the_losses():
    loss = [[1.1, 0.2], [0.4, 0.2], [2.1, 0.2]]
    assert hawq(problem(None, loss, 16)).tolist() == [0, 0, 1]


INPUT_BITS = ((4, 4), (4, 8), (8, 4), (8, 8))


def test_liberal_inputs_take_the_smallest_width_that_the_weights_share():
    """Two layers read one tensor; weights of 4 and 8 bits share both widths with the inputs, so the input takes 4."""
    loss = [[4.0, 3.0, 2.0, 0.1], [0.4, 0.3, 0.2, 0.1]]
    found = hawq(problem([9, 1], loss, 12, input_ties=[[0, 1]], bits=INPUT_BITS))
    assert [INPUT_BITS[column] for column in found] == [(8, 4), (4, 4)]
    found = hawq(problem([9, 1], loss, 16, input_ties=[[0, 1]], bits=INPUT_BITS))
    assert [INPUT_BITS[column] for column in found] == [(8, 8), (8, 8)]  # they share 8 alone


def test_strict_weights_of_one_input_take_one_width():
    loss = [[4.0, 3.0, 2.0, 0.1], [0.4, 0.3, 0.2, 0.1]]
    found = hawq(problem([9, 1], loss, 12, input_ties=[[0, 1]], bits=INPUT_BITS), assignment="strict")
    assert [INPUT_BITS[column] for column in found] == [(4, 4), (4, 4)]


def test_inputs_that_share_no_width_with_the_weights_take_their_smallest():
    bits = ((2, 4), (2, 8))
    assert hawq(problem([1], [[1.0, 0.5]], 2, bits=bits)).tolist() == [0]


def test_a_layer_that_is_not_offered_a_width_takes_the_nearest():
    loss = [[1.0, 0.5, np.inf], [1.0, 0.5, 0.1]]
    bits = ((2, 8), (4, 8), (8, 8))
    # in ascending order of trace the first layer comes first, and cannot have 8
    assert hawq(problem([1, 9], loss, 12, bits=bits)).tolist() == [1, 2]


def test_layers_with_one_width_are_left_out():
    """53 layers, 52 of them pinned to widths of their own: two sequences are tried, not thousands."""
    offered = np.zeros((53, 5), dtype=bool)
    offered[np.arange(53), np.arange(53) % 5] = True
    offered[7] = [True, False, False, False, True]
    loss = np.where(offered, 1.0, np.inf)
    loss[7, 4] = 0.5
    bits = [(b, 8) for b in (2, 3, 4, 6, 32)]
    found = hawq(problem(np.arange(53.0), loss, 1e9, bits=bits))
    assert found.tolist() == [4 if row == 7 else row % 5 for row in range(53)]
    loss[7] = [np.inf, np.inf, np.inf, np.inf, 0.5]
    assert hawq(problem(np.arange(53.0), loss, 1e9, bits=bits)).tolist() == found.tolist()


def test_limits_nobody_reaches_in_order():
    """The layer with the larger trace uses less at 8 bits, the other at 4; the order has it the other way round."""
    weight_bits = [4, 8]
    usage = np.array([[[4.0, 8.0], [8.0, 4.0]]])  # the second layer uses more at 4 bits
    loss = np.array([[1.0, 0.5], [1.0, 0.5]])
    one = problem_of(loss, usage, [8], weight_bits=weight_bits, trace=np.array([9.0, 1.0]))
    with pytest.raises(InfeasibleBudget, match="no sequence of bits in the order of the layers' traces keeps"):
        hawq(one)


def test_options_out_of_range():
    with pytest.raises(InvalidInput, match="assignment 'loose' is unknown; known: liberal, strict"):
        hawq(problem([1], [[1, 0]], 9), assignment="loose")
    many = problem(None, np.ones((200, 5)), 1e9, bits=[(b, 8) for b in (2, 3, 4, 6, 8)])
    with pytest.raises(InvalidInput, match=r"70,058,751 sequences of 5 widths over 200 layers, more than 3,000,000"):
        hawq(many)
