"""Which layers a runtime ran in float, from its own words."""

import pytest

from mixbit.results.result import FOLDED, LayerRow, in_float

#: What was executed of a layer with a quantized input -> whether an operator of it computed in float.
EXECUTED = {
    "QLinearConv int8": False,
    "FullyConnected int8, inputs in groups of 32 (brgemm_avx512_i8)": False,
    "Convolution int8 (brgconv_avx512_amx_I8)": False,
    "MatMulIntegerToFloat int8, MatMulIntegerToFloat int8": False,
    "Gather float32": False,
    "Gather f32 (ref_any_f32), FullyConnected int8 (brgemm_avx512_I8)": False,
    FOLDED: False,
    "Gather float32, Gemm float32": True,
    "QLinearConv int8, FusedConv float32": True,
    "Deconvolution f32 (jit_avx512_f32)": True,
    "ConvTranspose float32": True,
    "not reported": True,
    "float32 on rounded values": True,
}


@pytest.mark.parametrize("executed", EXECUTED)
def test_a_layer_runs_in_float_where_one_of_its_products_does(executed):
    def row(scheme):
        return LayerRow(scheme=scheme, predicted_bytes=1, weight_bytes=1, stored="", executed=executed)

    assert in_float({"a": row("w4a8"), "b": row("w4")}) == (["a"] if EXECUTED[executed] else [])
