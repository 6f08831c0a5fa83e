"""What `make test` leaves to `make slow`: families of cases that take long, and of which a few say nearly as much."""

from collections import defaultdict
from collections.abc import Iterable

import pytest

#: File and function -> how many of its cases `make test` runs, evenly spaced from the first to the last.
FEW = {
    "app/test_cli.py::test_figures_that_are_not_what_is_measured_are_named": 8,
    "app/test_front_door.py::test_a_folder_of_hugging_face_tells_its_task_and_is_remembered": 0,
    "app/test_main.py::test_standard_output_holds_json_alone": 0,
    "datasets/test_arrays.py::test_of_a_large_file_only_the_rows_asked_for_are_read": 0,
    "graph/test_capture.py::test_a_batch_that_does_not_fit_is_refused": 5,
    "graph/test_capture.py::test_the_graph_computes_what_the_model_does_at_any_batch_size": 6,
    "graph/test_functional.py::test_operators_are_those_of_torchs_decomposition": 3,
    "graph/test_layers.py::test_every_operator_linear_in_a_parameter_is_a_layer": 12,
    "graph/test_operators.py::test_an_operator_runs_as_its_node_does_without_the_bias": 12,
    "graph/test_recurrent.py::test_the_parts_compute_what_the_operator_does_and_hold_its_weights_as_layers": 3,
    "graph/test_sample_axis.py::test_rows_are_grouped_by_sample": 6,
    "graph/test_sample_axis.py::test_the_axis_is_read_from_symbolic_shapes": 6,
    "graph/test_transformers.py::test_every_length_and_labels_in_the_batch": 0,
    "metric_study/test_study.py::test_damaged_figures_are_refused": 3,
    "metric_study/test_study.py::test_edited_parts_are_refused": 3,
    "metric_study/test_study.py::test_other_settings_are_refused": 3,
    "metrics/test_contract.py::test_a_seed_gives_the_same_table_and_another_seed_another": 10,
    "metrics/test_contract.py::test_an_entry_does_not_depend_on_the_other_choices": 10,
    "metrics/test_contract.py::test_float_costs_nothing_and_bits_pay": 15,
    "metrics/test_contract.py::test_labels_are_needed_where_the_metric_says_so": 10,
    "metrics/test_contract.py::test_nothing_of_the_users_changes": 10,
    "metrics/test_contract.py::test_regression_has_a_table_too": 10,
    "metrics/test_contract.py::test_the_table_is_finite_and_nowhere_negative": 10,
    "metrics/test_fisher.py::test_entries_are_half_the_mean_square_of_dense_gradients_times_errors": 3,
    "metrics/test_fit.py::test_entries_are_mean_squares_of_dense_gradients_times_powers": 3,
    "metrics/test_fit.py::test_every_operator_has_an_entry": 6,
    "metrics/test_hawq.py::test_entries_are_those_of_the_full_hessian_for_the_same_vectors": 2,
    "metrics/test_hawq.py::test_the_estimate_is_unbiased_and_its_error_honest": 0,
    "metrics/test_measured.py::test_entries_are_the_divergence_of_whole_runs": 2,
    "metrics/test_measured.py::test_every_operator_is_measured_as_quantize_deploys_it": 8,
    "metrics/test_modelopt.py::test_every_operator_has_scores": 6,
    "metrics/test_output_error.py::test_samples_are_told_apart_wherever_an_operator_keeps_them": 8,
    "models/test_onnx.py::test_recurrent_layers_are_torchs_own": 2,
    "models/test_onnx_odd.py::test_inputs_of_any_name_are_called_as_the_example_says": 4,
    "models/test_onnx_operators.py::test_operator_is_that_of_the_standard": 45,
    "pipeline/test_auto.py::test_every_option_of_static_quantization_reaches_the_artefact": 1,
    "pipeline/test_outputs.py::test_every_output_is_near_the_simulations_and_the_models": 3,
    "pipeline/test_trials.py::test_a_largest_drop_against_every_plan_of_the_front": 1,
    "pruning/test_prune.py::test_layers_make_up_for_what_they_no_longer_read": 3,
    "pruning/test_prune.py::test_smaller_graph_is_measured_quantized_and_exported": 1,
    "pruning/test_prune.py::test_smaller_graph_is_the_network_with_zeros_for_these_channels": 2,
    "quantization/test_calibrate.py::test_a_calibration_for_a_target_simulates_its_plans_as_one_for_all": 4,
    "quantization/test_quantizer.py::test_the_operator_keeps_torchs_contract": 2,
    "quantization/test_ranges.py::test_a_constant_is_kept": 40,
    "quantization/test_ranges.py::test_mse_is_nearly_the_best_on_the_data_itself": 20,
    "quantization/test_ranges.py::test_one_value_a_million_times_the_rest": 12,
    "quantization/test_scales.py::test_each_channel_takes_the_ratio_with_the_least_output_error": 16,
    "quantization/test_simulate.py::test_a_simulated_operator_reads_rounded_tensors": 12,
    "quantization/test_simulate.py::test_corrected_biases_take_the_mean_error_off_the_output": 10,
    "results/test_against.py::test_accuracy_and_agreement_are_those_of_the_runtime_itself": 1,
    "results/test_folder.py::test_the_code_that_made_it_makes_it_again": 1,
    "results/test_folder.py::test_the_cpp_program_for_openvino_compiles_and_returns_what_was_checked": 0,
    "results/test_folder.py::test_the_python_program_runs_as_it_stands_and_returns_what_was_checked": 1,
    "roundings/test_blockwise.py::test_adaround_comes_near_the_best_of_all_roundings": 1,
    "roundings/test_blockwise.py::test_steps_of_coarse_activations_are_learned_and_others_left": 0,
    "roundings/test_contract.py::test_the_result_is_the_simulated_graph_with_other_numbers": 4,
    "roundings/test_contract.py::test_the_same_seed_gives_the_same_and_nothing_given_changes": 4,
    "roundings/test_contract.py::test_weights_are_whole_multiples_of_their_scales_and_no_worse_than_the_nearest": 16,
    "roundings/test_gptq.py::test_every_operator_gets_what_the_plain_loop_finds": 10,
    "roundings/test_gptq.py::test_layers_are_rounded_for_what_they_read_in_the_finished_network": 3,
    "targets/test_capabilities.py::test_what_runs_is_executed_and_stored_as_the_rows_say": 1,
    "targets/test_cases.py::test_every_output_of_every_file_is_the_models": 3,
    "targets/test_compressed_tensors.py::test_it_holds_exactly_the_bytes_that_were_predicted": 5,
    "targets/test_compressed_tensors.py::test_transformers_computes_the_numbers_of_the_simulation": 3,
    "targets/test_contract.py::test_a_profile_holds_every_layer": 10,
    "targets/test_contract.py::test_damaged_files_are_refused": 24,
    "targets/test_contract.py::test_files_hold_little_else": 20,
    "targets/test_contract.py::test_holds_exactly_the_bytes_that_were_predicted": 20,
    "targets/test_contract.py::test_layers_run_in_integers_where_their_input_is_quantized": 20,
    "targets/test_contract.py::test_runs_as_simulated_at_a_fixed_batch_size": 10,
    "targets/test_contract.py::test_runs_as_simulated_at_every_batch_size": 20,
    "targets/test_contract.py::test_runs_in_a_process_of_the_runtime_alone": 2,
    "targets/test_contract.py::test_runs_nearly_as_simulated_under_the_runtimes_default_settings": 10,
    "targets/test_contract.py::test_verification_finds_nothing": 8,
    "targets/test_ethosu.py::test_a_file_that_vela_did_not_report_on_is_refused": 1,
    "targets/test_ethosu.py::test_velas_own_figure_is_predicted_from_the_integers": 4,
    "targets/test_ethosu.py::test_zeros_and_one_scale_take_the_bytes_that_are_predicted": 2,
    "targets/test_executorch.py::test_the_program_computes_what_the_simulation_does": 1,
    "targets/test_integers.py::test_integers_times_scales_are_the_simulated_weight": 15,
    "targets/test_litert.py::test_one_operator_returns_what_the_simulation_does_number_by_number": 12,
    "targets/test_litert.py::test_operators_between_layers_run_in_int8_and_return_what_the_simulation_does": 4,
    "targets/test_litert.py::test_operators_return_what_torch_does": 9,
    "targets/test_litert.py::test_other_kernels_return_what_their_simulation_does": 8,
    "targets/test_onnx_operators.py::test_onnxruntime_computes_what_torch_does": 2,
    "targets/test_onnxruntime.py::test_layers_in_float_between_quantized_tensors_keep_their_weights": 3,
    "targets/test_operators.py::test_outputs_are_as_simulated_and_layers_run_in_int8": 24,
    "targets/test_qonnx.py::test_averages_over_positions_are_convolutions": 3,
    "targets/test_qonnx.py::test_one_operator_returns_what_the_simulation_does_number_by_number": 8,
    "targets/test_recurrences.py::test_a_file_returns_what_torch_does_with_the_stored_weights": 2,
    "targets/test_recurrences.py::test_what_looks_like_a_recurrence_is_written_as_it_is": 2,
    "targets/test_shapes.py::test_an_artefact_runs_as_simulated_at_every_size": 4,
    "targets/test_size.py::test_a_budget_of_file_bytes_is_kept": 0,
    "targets/test_sizes.py::test_sizes_are_computed_as_torch_does": 4,
    "targets/test_telemetry.py::test_nothing_is_sent_and_nothing_is_left": 0,
    "targets/test_weights.py::test_a_file_does_what_the_simulation_does": 10,
    "test_mistakes.py::test_mistakes_on_the_command_line": 16,
    "test_pages.py::test_every_block_of_a_page_runs": 4,
    "training/test_finetune.py::test_an_interrupted_training_goes_on_to_the_same_bits": 1,
    "training/test_learning.py::test_settled_biases_are_whole_multiples_of_their_steps": 10,
}


def mark_slow(items: Iterable[pytest.Item]) -> None:
    """Mark the cases that FEW leaves out."""
    families: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        name = item.nodeid.partition("[")[0].removeprefix("tests/")
        if name in FEW and item.get_closest_marker("slow") is None:
            families[name].append(item)
    for name, cases in families.items():
        last, count = len(cases) - 1, FEW[name]
        kept = {round(place * last / max(1, count - 1)) for place in range(count)}
        for place, item in enumerate(cases):
            if place not in kept:
                item.add_marker(pytest.mark.slow)
