"""What prediction relies on in nnU-Net beyond what it promises: see `relied_on`."""

from __future__ import annotations

from rehrseg_nnunet.nnunet.relied_on_part import Part

_PREDICTOR = "nnunetv2.inference.predict_from_raw_data:nnUNetPredictor"
_PREPROCESSOR = "nnunetv2.preprocessing.preprocessors.default_preprocessor:DefaultPreprocessor"

PREDICTION_PARTS = (
    Part(
        _PREDICTOR,
        "__init__",
        "the HR predictor",
        keywords=(
            "tile_step_size use_gaussian use_mirroring perform_everything_on_device device verbose "
            "verbose_preprocessing allow_tqdm"
        ),
    ),
    Part(
        _PREDICTOR,
        "initialize_from_trained_model_folder",
        "trained networks",
        first="model_training_output_dir use_folds",
        keywords="checkpoint_name",
    ),
    Part(
        _PREDICTOR,
        "manual_initialization",
        "thin-slice predictions after training",
        first=(
            "network plans_manager configuration_manager parameters dataset_json trainer_name "
            "inference_allowed_mirroring_axes"
        ),
    ),
    Part(_PREDICTOR, "predict_sliding_window_return_logits", "HR logits", exact="input_image"),
    Part(_PREDICTOR, "_internal_predict_sliding_window_return_logits", "windows with the HR head's channels"),
    Part(_PREDICTOR, "_internal_maybe_mirror_and_predict", "mirrored HR predictions", exact="x"),
    Part(
        _PREDICTOR,
        "_manage_input_and_output_lists",
        "results that appear when they are whole",
        exact=(
            "list_of_lists_or_source_folder output_folder_or_list_of_truncated_output_files "
            "folder_with_segs_from_prev_stage overwrite part_id num_parts save_probabilities"
        ),
    ),
    Part(
        "nnunetv2.inference.predict_from_raw_data",
        "export_prediction_from_logits",
        "predictions on several grids",
        exact=(
            "predicted_array_or_file properties_dict configuration_manager plans_manager dataset_json_dict_or_file "
            "output_file_truncated save_probabilities num_threads_torch"
        ),
    ),
    Part(_PREDICTOR, "_internal_get_data_iterator_from_lists_of_filenames", "naming images that cannot be predicted"),
    Part(
        _PREDICTOR,
        "predict_from_files",
        "rehrseg predict",
        first="list_of_lists_or_source_folder output_folder_or_list_of_truncated_output_files",
        keywords=(
            "save_probabilities overwrite num_processes_preprocessing num_processes_segmentation_export "
            "folder_with_segs_from_prev_stage num_parts part_id"
        ),
    ),
    Part(
        _PREDICTOR,
        "predict_from_files_sequential",
        "rehrseg predict -npp 0 -nps 0",
        first="list_of_lists_or_source_folder output_folder_or_list_of_truncated_output_files",
        keywords="save_probabilities overwrite folder_with_segs_from_prev_stage",
    ),
    Part(_PREDICTOR, "predict_logits_from_preprocessed_data", "predictions from Python", first="data"),
    Part("nnunetv2.inference.predict_from_raw_data", "tqdm", "short progress bars"),
    Part(_PREDICTOR, "list_of_parameters device verbose", "predictions from Python, and the hash of a model"),
    Part(
        "nnunetv2.inference.export_prediction",
        "convert_predicted_logits_to_segmentation_with_correct_shape",
        "predictions from Python",
        first="predicted_logits plans_manager configuration_manager label_manager properties_dict",
        keywords="return_probabilities",
    ),
    Part(
        "nnunetv2.inference.sliding_window_prediction",
        "compute_gaussian",
        "weights of synthesised windows, and releasing GPU memory",
        first="tile_size",
        keywords="dtype device",
    ),
    Part(
        "nnunetv2.inference.sliding_window_prediction",
        "compute_steps_for_sliding_window",
        "windows of synthesised images",
        first="image_size tile_size tile_step_size",
    ),
    Part(
        "acvl_utils.cropping_and_padding.padding",
        "pad_nd_image",
        "synthesised images of small cases",
        first="image new_shape mode kwargs return_slicer shape_must_be_divisible_by",
    ),
    Part(
        _PREDICTOR,
        (
            "network plans_manager configuration_manager label_manager dataset_json trainer_name "
            "allowed_mirroring_axes use_mirroring tile_step_size"
        ),
        "state of the HR predictor",
    ),
    Part(
        _PREPROCESSOR,
        "run_case",
        "checking images before they are predicted",
        exact="image_files seg_file plans_manager configuration_manager dataset_json",
    ),
    Part(
        _PREPROCESSOR,
        "run_case_npy",
        "checking images before they are predicted",
        exact="data seg properties plans_manager configuration_manager dataset_json",
    ),
    Part(
        "nnunetv2.preprocessing.resampling.default_resampling",
        "compute_new_shape",
        "checking images before they are predicted",
        first="old_shape old_spacing new_spacing",
    ),
    Part(
        "nnunetv2.inference.export_prediction",
        "export_prediction_from_logits",
        "writing thin-slice predictions after training",
        first=(
            "predicted_array_or_file properties_dict configuration_manager plans_manager "
            "dataset_json_dict_or_file output_file_truncated"
        ),
    ),
    Part(
        "nnunetv2.utilities.file_path_utilities",
        "check_workers_alive_and_busy",
        "noticing killed workers",
        first="export_pool worker_list results_list",
        keywords="allowed_num_queued",
    ),
    Part(
        "nnunetv2.imageio.base_reader_writer:BaseReaderWriter",
        "read_images",
        "reading whole files only",
        first="image_fnames",
    ),
    Part(
        "nnunetv2.imageio.base_reader_writer:BaseReaderWriter",
        "write_seg",
        "writing whole files only",
        exact="seg output_fname properties",
    ),
)
