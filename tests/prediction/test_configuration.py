import copy
import pickle

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.inference.export_prediction import export_prediction_from_logits

from rehrseg_nnunet.nnunet.whole_files import UnusableImageError
from rehrseg_nnunet.prediction.configuration import HRConfigurationManager
from rehrseg_nnunet.prediction.image_checks import FAILURE
from rehrseg_nnunet.prediction.output_grid import NativeGrid
from rehrseg_nnunet.prediction.reference_grid import ReferenceGrid

FACTOR = 4


def write_image(tiny, path, *, channels=1):
    image = tiny.ball(tiny.blank((24, 22, 7), (1.1, 1.0, 4.0)))
    files = [str(path / f"ball_{channel:04d}.nii.gz") for channel in range(channels)]
    for file in files:
        sitk.WriteImage(image, file)
    return files


def preprocess(hr, configuration, files):
    preprocessor = configuration.preprocessor_class(verbose=False)
    return preprocessor.run_case(files, None, hr.plans_manager, configuration, hr.dataset_json)


def test_spacing_is_hr_and_probabilities_are_linear_along_z(tiny):
    lr = tiny.predictor(axis=2).configuration_manager.lr
    before = copy.deepcopy(lr.configuration)
    configuration = HRConfigurationManager(lr, factor=FACTOR)
    assert configuration.spacing == [1.0, 1.0, 1.1]
    assert configuration.configuration["resampling_fn_probabilities_kwargs"]["order_z"] == 1
    assert configuration.configuration["resampling_fn_data_kwargs"]["order_z"] == 0
    assert lr.configuration == before
    by_torch = tiny.predictor(resampling="resample_torch_fornnunet").configuration_manager.configuration
    assert by_torch["resampling_fn_probabilities_kwargs"]["aniso_axis_mode"] == "linear"


@pytest.mark.parametrize("regions", [False, True])
def test_resampling_takes_nnunets_four_arguments_and_survives_pickling(tiny, regions):
    """Thick native slices average probabilities, of classes or of regions."""
    configuration = tiny.predictor(grid=NativeGrid(), regions=regions).configuration_manager
    logits = np.random.default_rng(0).normal(scale=3, size=(2, 3 * FACTOR, 4, 5)).astype(np.float32)
    arguments = (logits, (3, 4, 5), (1.0, 1.0, 1.1), (4.0, 1.0, 1.1))
    result = configuration.resampling_fn_probabilities(*arguments)
    assert result.shape == (2, 3, 4, 5)
    total = torch.from_numpy(result).exp().sum(0)
    assert torch.allclose(total, torch.ones(3, 4, 5), atol=1e-5) is not regions
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(configuration)).resampling_fn_probabilities(*arguments), result
    )


def test_what_worker_processes_get_survives_pickling(tiny, tmp_path):
    files, output = write_image(tiny, tmp_path), tmp_path / "ball"
    hr = tiny.predictor()
    data, _, properties = preprocess(hr, hr.configuration_manager, files)
    logits = hr.predict_logits_from_preprocessed_data(torch.from_numpy(data)).numpy()
    arguments = (logits, properties, hr.configuration_manager, hr.plans_manager, hr.dataset_json, str(output))
    export_prediction_from_logits(*pickle.loads(pickle.dumps(arguments)))
    copied = sitk.GetArrayFromImage(sitk.ReadImage(f"{output}.nii.gz"))
    hr.predict_from_files_sequential([files], [str(output)])
    np.testing.assert_array_equal(copied, sitk.GetArrayFromImage(sitk.ReadImage(f"{output}.nii.gz")))


def test_images_that_cannot_be_predicted_travel_back_from_workers(tiny, tmp_path):
    files = write_image(tiny, tmp_path, channels=2)
    hr = tiny.predictor()
    message = r"ball_0000\.nii\.gz, .*ball_0001\.nii\.gz must have as many channels as the training data, 1, got 2"
    with pytest.raises(UnusableImageError, match=message):
        preprocess(hr, hr.configuration_manager, files)
    data, segmentation, properties = preprocess(hr, hr.configuration_manager.for_workers(), files)
    assert data.shape == (1, 1, 1, 1)
    assert segmentation is None
    with pytest.raises(UnusableImageError, match=message):
        raise UnusableImageError(properties[FAILURE])
    assert not hr.configuration_manager.return_failures


def test_errors_of_the_grid_name_the_image(tiny, tmp_path):
    files = write_image(tiny, tmp_path)
    (tmp_path / "references").mkdir()
    hr = tiny.predictor(grid=ReferenceGrid(tmp_path / "references"))
    with pytest.raises(
        UnusableImageError, match=r"ball_0000\.nii\.gz: --grid .* needs a file ball\.nii\.gz for every case"
    ):
        preprocess(hr, hr.configuration_manager, files)
