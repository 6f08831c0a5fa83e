"""The captured network: its layers, how to run and watch it."""

from mixbit.graph.evaluate import (
    Difference as Difference,
    Evaluation as Evaluation,
    Reference as Reference,
    evaluate as evaluate,
    fitted as fitted,
    returned_by as returned_by,
)
from mixbit.graph.graph import (
    FEW_ELEMENTS as FEW_ELEMENTS,
    Case as Case,
    Graph as Graph,
    Layer as Layer,
    Operation as Operation,
    SampleAxis as SampleAxis,
    argument as argument,
    check_arguments as check_arguments,
    check_graph as check_graph,
    group_samples as group_samples,
    is_parameter as is_parameter,
    model_fingerprint as model_fingerprint,
    num_uses as num_uses,
    packet as packet,
    sample_axis as sample_axis,
    split_name as split_name,
    tensor_of as tensor_of,
    without_torchs_warnings as without_torchs_warnings,
)
from mixbit.graph.layers import (
    NONLINEARITIES as NONLINEARITIES,
    activations as activations,
    after as after,
    bounds_of as bounds_of,
    inputs_between as inputs_between,
    is_float as is_float,
    result_of as result_of,
    run_stacked as run_stacked,
    shared_inputs as shared_inputs,
    stack_weights as stack_weights,
    with_layers as with_layers,
)
from mixbit.graph.ports import ports_of as ports_of, returned_nodes as returned_nodes
from mixbit.graph.room import (
    LAYER_BY_LAYER as LAYER_BY_LAYER,
    check_by_layer as check_by_layer,
    check_room_for_moments as check_room_for_moments,
)
from mixbit.graph.stored import (
    Waiting as Waiting,
    parameters_on_meta as parameters_on_meta,
    put as put,
    read_of as read_of,
    scratch as scratch,
    stored_weights_of as stored_weights_of,
)
from mixbit.graph.trial import try_data as try_data
from mixbit.graph.walk import (
    ActivationCache as ActivationCache,
    Backward as Backward,
    SampleGradients as SampleGradients,
    Walker as Walker,
    in_order as in_order,
    run_backward as run_backward,
    seen as seen,
)
from mixbit.graph.windows import convolution_gradients as convolution_gradients, windows as windows
