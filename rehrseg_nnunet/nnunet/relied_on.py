"""What this package relies on in nnU-Net and its libraries beyond what they promise: see `PARTS`."""

from __future__ import annotations

from rehrseg_nnunet.nnunet.relied_on_part import Part
from rehrseg_nnunet.nnunet.relied_on_prediction import PREDICTION_PARTS

_TRAINER = "nnunetv2.training.nnUNetTrainer.nnUNetTrainer:nnUNetTrainer"
_PREDICTOR = "nnunetv2.inference.predict_from_raw_data:nnUNetPredictor"
_LOADER = "nnunetv2.training.dataloading.data_loader:nnUNetDataLoader"
_LABELS = "nnunetv2.utilities.label_handling.label_handling:LabelManager"
_PLANS = "nnunetv2.utilities.plans_handling.plans_handler"
_PLANNER = "nnunetv2.experiment_planning.experiment_planners.default_experiment_planner:ExperimentPlanner"
_DATASET = "nnunetv2.training.dataloading.nnunet_dataset"
_TRANSFORMS = "batchgeneratorsv2.transforms"
_BLOCKS = "dynamic_network_architectures.building_blocks"
_LOSSES = "nnunetv2.training.loss"
_LOGGER = "nnunetv2.training.logging.nnunet_logger"
_PREPROCESSOR = "nnunetv2.preprocessing.preprocessors.default_preprocessor:DefaultPreprocessor"
_UNETS = "dynamic_network_architectures.architectures.unet"

TRAINER_PARTS = (
    Part(
        _TRAINER, "__init__", "the constructor of every trainer", exact="plans configuration fold dataset_json device"
    ),
    Part(
        _TRAINER,
        "build_network_architecture",
        "networks of trainers, in training and prediction",
        exact="plans_manager configuration_manager num_input_channels num_output_channels enable_deep_supervision",
    ),
    Part(_TRAINER, "_build_loss", "the losses of both stages"),
    Part(_TRAINER, "_do_i_compile", "compiling the Dice of thin slices where nnU-Net compiles its own"),
    Part(_TRAINER, "_get_deep_supervision_scales", "sizes of the training labels"),
    Part(_TRAINER, "_set_batch_size_and_oversample", "a batch size of stage 1's own"),
    Part(
        _TRAINER,
        "configure_rotation_dummyDA_mirroring_and_inital_patch_size",
        "rotation, mirroring and patch size of the augmentation",
    ),
    Part(
        _TRAINER,
        "get_training_transforms",
        "nnU-Net's augmentation",
        first="patch_size rotation_for_DA deep_supervision_scales mirror_axes do_dummy_2d_data_aug",
        keywords="use_mask_for_norm",
    ),
    Part(
        _TRAINER,
        "get_validation_transforms",
        "validation patches",
        first="deep_supervision_scales",
        keywords="regions ignore_label",
    ),
    Part(
        _TRAINER,
        (
            "initialize configure_optimizers get_dataloaders on_train_start on_train_epoch_start "
            "on_validation_epoch_start on_epoch_end"
        ),
        "steps of the training",
        exact="",
    ),
    Part(_TRAINER, "do_split run_training", "cases of the fold, and the demo's trainings"),
    Part(_TRAINER, "on_train_epoch_end", "steps of the training", exact="train_outputs"),
    Part(_TRAINER, "on_validation_epoch_end", "image metrics in the log", exact="val_outputs"),
    Part(_TRAINER, "train_step validation_step", "steps of stage 1", exact="batch"),
    Part(_TRAINER, "set_deep_supervision_enabled", "networks without deep supervision", exact="enabled"),
    Part(
        _TRAINER,
        "perform_actual_validation",
        "thin-slice predictions and derived cases after training",
        exact="save_probabilities",
    ),
    Part(_TRAINER, "save_checkpoint", "checkpoints that survive a kill", exact="filename"),
    Part(_TRAINER, "load_checkpoint", "continuing a training", exact="filename_or_checkpoint"),
    Part(_TRAINER, "my_init_kwargs", "the keeper in a guided network's checkpoint"),
    Part(_TRAINER, "print_to_log_file", "the training's log", keywords="add_timestamp"),
    Part(
        _TRAINER,
        "plans_manager configuration_manager configuration_name dataset_json label_manager",
        "plans and labels of the training",
    ),
    Part(
        _TRAINER,
        (
            "num_epochs current_epoch num_iterations_per_epoch num_val_iterations_per_epoch initial_lr "
            "weight_decay batch_size oversample_foreground_percent probabilistic_oversampling "
            "enable_deep_supervision save_every"
        ),
        "settings of the training",
    ),
    Part(
        _TRAINER,
        (
            "network loss optimizer lr_scheduler grad_scaler logger device is_ddp local_rank num_input_channels "
            "inference_allowed_mirroring_axes was_initialized disable_checkpointing"
        ),
        "state of the training",
    ),
    Part(
        _TRAINER,
        "output_folder preprocessed_dataset_folder dataset_class",
        "where the training's cases and results lie",
    ),
    Part(_LOGGER + ":MetaLogger", "log get_value", "image metrics in the log"),
    Part(_LOGGER + ":MetaLogger", "local_logger", "new metrics in the log"),
    Part(_LOGGER + ":MetaLogger", "loggers", "losses by term in Weights & Biases"),
    Part(_LOGGER + ":MetaLogger", "log_summary", "scores of stage 1 in Weights & Biases", first="key value"),
    Part(_LOGGER + ":WandbLogger", "log", "losses by term in Weights & Biases", first="key value step"),
    Part(_LOGGER + ":LocalLogger", "my_fantastic_logging", "new metrics in the log"),
    Part("nnunetv2.training.lr_scheduler.polylr:PolyLRScheduler", "initial_lr", "the learning rate of a resumed run"),
    Part("nnunetv2.paths", "nnUNet_extTrainer", "finding the trainers of this package"),
)

LOSS_PARTS = (
    Part(
        _LOSSES + ".compound_losses:DC_and_CE_loss",
        "__init__",
        "the label loss",
        first="soft_dice_kwargs ce_kwargs",
        keywords="ignore_label dice_class",
    ),
    Part(
        _LOSSES + ".compound_losses:DC_and_BCE_loss",
        "__init__",
        "the label loss of regions",
        first="bce_kwargs soft_dice_kwargs",
        keywords="use_ignore_label dice_class",
    ),
    Part(_LOSSES + ".compound_losses:DC_and_CE_loss", "dc", "the Dice alone"),
    Part(_LOSSES + ".compound_losses:DC_and_BCE_loss", "dc", "the Dice alone"),
    Part(_LOSSES + ".dice:MemoryEfficientSoftDiceLoss", "__init__", "the Dice", keywords="batch_dice do_bg smooth ddp"),
    Part(
        _LOSSES + ".dice:MemoryEfficientSoftDiceLoss", "forward", "the Dice of annotated voxels", keywords="loss_mask"
    ),
    Part(
        _LOSSES + ".deep_supervision:DeepSupervisionWrapper", "weight_factors", "weights of Eq. 7 with deep supervision"
    ),
)

DATA_PARTS = (
    Part(
        _LOADER,
        "__init__",
        "loaders of training patches",
        first="data batch_size patch_size final_patch_size label_manager",
        keywords="oversample_foreground_percent probabilistic_oversampling transforms",
    ),
    Part(
        _LOADER,
        "get_bbox",
        "positions of training patches on the thick slices",
        first="data_shape force_fg class_locations",
    ),
    Part(_LOADER, "generate_train_batch", "batches of stage 1", exact=""),
    Part(_LOADER, "get_indices get_do_oversample annotated_classes_key _data", "batches of stage 1"),
    Part(
        "nnunetv2.training.data_augmentation.compute_initial_patch_size",
        "get_patch_size",
        "room for rotation",
        first="final_patch_size rot_x rot_y rot_z scale_range",
    ),
    Part(_DATASET + ":nnUNetDatasetBlosc2", "identifiers source_folder load_case", "stored cases"),
    Part(
        _DATASET + ":nnUNetDatasetBlosc2",
        "save_case",
        "writing cases",
        first="data seg properties output_filename_truncated",
        keywords="chunks blocks chunks_seg blocks_seg",
    ),
    Part(_DATASET, "comp_blosc2_params", "chunks of written cases", first="image_size patch_size bytes_per_pixel"),
    Part(
        _PREPROCESSOR,
        "_sample_foreground_locations",
        "class locations of written cases",
        first="seg classes_or_regions",
    ),
    Part(
        "batchgenerators.dataloading.nondet_multi_threaded_augmenter:NonDetMultiThreadedAugmenter",
        "__init__",
        "background workers",
        keywords="data_loader transform num_processes num_cached seeds pin_memory wait_time",
    ),
    Part(
        "acvl_utils.cropping_and_padding.bounding_boxes",
        "crop_and_pad_nd",
        "windows of stage 1",
        first="image bbox pad_value",
        keywords="pad_mode cast_cropped_to",
    ),
    Part(_TRANSFORMS + ".base.basic_transform:BasicTransform", "apply get_parameters", "own transforms"),
    Part(_TRANSFORMS + ".utils.compose:ComposeTransforms", "transforms", "changing nnU-Net's augmentation"),
    Part(_TRANSFORMS + ".utils.random:RandomTransform", "transform", "changing nnU-Net's augmentation"),
    Part(_TRANSFORMS + ".spatial.spatial:SpatialTransform", "patch_size", "augmentation on thin slices"),
    Part(
        _TRANSFORMS + ".utils.seg_to_regions:ConvertSegmentationToRegionsTransform",
        "__init__",
        "labels of regions",
        keywords="regions channel_in_seg",
    ),
    Part("multiprocessing.pool:Pool", "_pool", "noticing killed workers"),
)

PLANS_PARTS = (
    Part(_PLANS + ":PlansManager", "plans dataset_name transpose_forward transpose_backward", "plans"),
    Part(_PLANS + ":PlansManager", "get_configuration get_label_manager", "plans"),
    Part(_PLANS + ":PlansManager", "experiment_planner_class", "planning networks of thin slices"),
    Part(_PLANNER, "__init__", "planning networks of thin slices", first="dataset_name_or_id"),
    Part(
        _PLANNER,
        "get_plans_for_configuration",
        "planning networks of thin slices",
        first="spacing median_shape data_identifier approximate_n_voxels_dataset _cache",
    ),
    Part(_PLANNER, "dataset_json UNet_base_num_features", "planning networks of thin slices"),
    Part("nnunetv2.utilities.json_export", "recursive_fix_for_json_export", "planning networks of thin slices"),
    Part(_PLANS + ":PlansManager", "foreground_intensity_properties_per_channel", "keepers of CT scans"),
    Part(_PLANS + ":ConfigurationManager", "data_identifier", "preprocessed pairs of a keeper"),
    Part(_PLANS + ":PlansManager", "image_reader_writer_class", "reading and writing whole files only"),
    Part(_PLANS + ":ConfigurationManager", "configuration spacing patch_size", "plans"),
    Part(_PLANS + ":ConfigurationManager", "batch_dice use_mask_for_norm normalization_schemes", "plans"),
    Part(
        _PLANS + ":ConfigurationManager",
        "preprocessor_class resampling_fn_probabilities",
        "the configuration of thin-slice predictions",
    ),
    Part(_PLANS + ":ConfigurationManager", "previous_stage_name", "predictions of cascades"),
    Part(
        _LABELS, "all_labels foreground_labels foreground_regions has_regions has_ignore_label ignore_label", "labels"
    ),
    Part(
        _LABELS,
        "num_segmentation_heads convert_logits_to_segmentation convert_probabilities_to_segmentation",
        "labels from logits",
    ),
)

NETWORK_PARTS = (
    Part(_BLOCKS + ".plain_conv_encoder:PlainConvEncoder", "strides output_channels", "the HR head"),
    Part(_BLOCKS + ".residual_encoders:ResidualEncoder", "strides output_channels", "the HR head"),
    Part(_BLOCKS + ".plain_conv_encoder:PlainConvEncoder", "kernel_sizes", "guidance"),
    Part(_BLOCKS + ".residual_encoders:ResidualEncoder", "kernel_sizes", "guidance"),
    Part(_BLOCKS + ".unet_decoder:UNetDecoder", "seg_layers", "the HR head"),
    Part(_UNETS + ":PlainConvUNet", "encoder decoder initialize", "the HR head"),
    Part(_UNETS + ":ResidualEncoderUNet", "encoder decoder initialize", "the HR head"),
    Part("torch._dynamo.eval_frame:OptimizedModule", "_orig_mod", "weights of compiled networks"),
)

PARTS = (*TRAINER_PARTS, *LOSS_PARTS, *DATA_PARTS, *PLANS_PARTS, *NETWORK_PARTS, *PREDICTION_PARTS)
