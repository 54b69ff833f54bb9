import copy
import json
import pickle
import re

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from scipy.interpolate import make_interp_spline
from torch import nn

from rehrseg_nnunet.config.segmentation import HRHeadConfig
from rehrseg_nnunet.prediction import predictor as module
from rehrseg_nnunet.prediction.predictor import HRPredictor, fold_phases
from rehrseg_nnunet.segmentation.hr_head import add_hr_head
from rehrseg_nnunet.segmentation.hr_network import get_output_mode, output_mode
from rehrseg_nnunet.slices.geometry import hr_slice_positions
from rehrseg_nnunet.slices.slice_profile import at_phase, interpolate_logits
from rehrseg_nnunet.slices.slice_upsampling import interleave_slices, upsample_slices

FACTOR = 4


def file_size(axis, slices=7, in_plane=(22, 24)):
    """Size in file order (x, y, z) with the slices along an array axis."""
    shape = list(in_plane)
    shape.insert(axis, slices)
    return shape[::-1]


def file_spacing(tiny, axis, thickness=None):
    spacing = list(tiny.SPACING[1:])
    spacing.insert(axis, tiny.SPACING[0] if thickness is None else thickness)
    return spacing[::-1]


@pytest.fixture
def case(tiny, tmp_path):
    def write(*, axis=0, rotation=None, thickness=None, name="ball", **size):
        grid = tiny.blank(file_size(axis, **size), file_spacing(tiny, axis, thickness), rotation=rotation)
        path = tmp_path / "in" / f"{name}_0000.nii.gz"
        path.parent.mkdir(exist_ok=True)
        sitk.WriteImage(tiny.ball(grid), str(path))
        (tmp_path / "out").mkdir(exist_ok=True)
        return path, tmp_path / "out" / name

    return write


def extent_mm(image):
    """Corners of the field of view, outer faces of the voxels."""
    corners = np.array(np.meshgrid(*((-0.5, n - 0.5) for n in image.GetSize()))).reshape(3, -1).T
    return np.array([image.TransformContinuousIndexToPhysicalPoint(c.tolist()) for c in corners])


def spline_of(logits):
    """(K, r*D, H, W): a spline through (K, D, H, W), cubic from four slices on; the edge slices beyond."""
    slices = logits.shape[1]
    degree = {"k": 3, "bc_type": "natural"} if slices > 3 else {"k": 1}
    spline = make_interp_spline(np.arange(slices), logits.numpy(), axis=1, **degree)
    return torch.from_numpy(spline(hr_slice_positions(slices, FACTOR).clip(0, slices - 1))).float()


def test_folding_keeps_slice_order():
    logits = torch.randn(2, 3, FACTOR * 5, 4, 6, generator=torch.Generator().manual_seed(0))
    folded = fold_phases(logits, FACTOR)
    assert folded.shape == (2, 3 * FACTOR, 5, 4, 6)
    for k, phase, d in [(0, 0, 0), (2, 3, 4), (1, 2, 3)]:
        assert torch.equal(folded[:, k * FACTOR + phase, d], logits[:, k, FACTOR * d + phase])
    assert torch.equal(interleave_slices(folded, FACTOR), logits)


def test_hr_logits_are_the_stock_logits_interpolated(tiny):
    # without Gaussian weights: in a tiny window's corners they are so small that float16 sums are coarse
    hr = tiny.predictor(gaussian=False)
    stock = nnUNetPredictor(use_gaussian=False, device=torch.device("cpu"), allow_tqdm=False)
    stock.manual_initialization(
        hr.network, hr.plans_manager, hr.configuration_manager.lr, hr.list_of_parameters, hr.dataset_json, "", (0, 1, 2)
    )
    # three windows in plane, one along z
    image = torch.randn(1, 3, 30, 16, generator=torch.Generator().manual_seed(0))
    lr_logits = stock.predict_logits_from_preprocessed_data(image)
    hr_logits = hr.predict_logits_from_preprocessed_data(image)
    assert hr_logits.shape == (2, FACTOR * 3, 30, 16)
    # the HR head interpolates linearly; the window holds a fourth slice, nnU-Net's padding, on one side
    by_head = upsample_slices(lr_logits[None].float(), FACTOR)[0]
    expected = (by_head + spline_of(lr_logits.float())) / 2
    torch.testing.assert_close(hr_logits.float()[:, 2:-2], expected[:, 2:-2], atol=5e-3, rtol=5e-3)
    assert get_output_mode(hr.network) == "lr"
    assert hr.label_manager.num_segmentation_heads == 2


def test_mirrored_input_gives_mirrored_output(tiny):
    torch.manual_seed(0)
    network = add_hr_head(
        tiny.ThresholdNetwork(2), factor=FACTOR, teacher_channels=1, config=HRHeadConfig(hidden_features=3)
    )
    hr = tiny.predictor(network=network, gaussian=False)
    with torch.no_grad():
        network.decoder.seg_layers[-1].hr_head.second.weight.normal_(std=0.1)  # a new head adds nothing
    image = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    logits = hr.predict_sliding_window_return_logits(image).float()
    assert logits.abs().max() > 0.1
    for axis in (1, 2, 3):
        flipped = hr.predict_sliding_window_return_logits(image.flip(axis)).float().flip(axis)
        torch.testing.assert_close(flipped, logits, atol=2e-3, rtol=2e-3)
        one_way = tiny.predictor(network=network, mirror=False, gaussian=False)
        alone = one_way.predict_sliding_window_return_logits(image.flip(axis)).float().flip(axis)
        assert not torch.allclose(alone, logits, atol=2e-2)


@pytest.fixture
def headless(tiny):
    """Predictors with one network without an HR head, whose weights are random and not symmetric."""
    torch.manual_seed(0)
    network = tiny.ThresholdNetwork(2)
    network.decoder.seg_layers[0] = nn.Conv3d(1, 2, 3, padding=1)

    def make(**options):
        # 4 slices are not padded, 1 is on both sides alike: nnU-Net mirrors what it has padded
        return tiny.predictor(network=network, gaussian=False, patch=(3, 16, 16), **options)

    return make


def test_without_an_hr_head_mirrored_predictions_are_taken_at_all_phases(headless):
    image = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    mirrored = headless().predict_sliding_window_return_logits(image).float()
    one_way = headless(mirror=False)
    total, count = torch.zeros(2, FACTOR * 4, 16, 16), torch.zeros(FACTOR * 4)
    for axes, phase in (((), 0), ((2,), 1), ((3,), 2), ((2, 3), -1)):
        for along_z, p in (((), phase), ((1,), -phase)):
            both = (*along_z, *axes)
            logits = one_way.predict_sliding_window_return_logits(at_phase(image, p, FACTOR, 1).flip(both))
            for j, position in enumerate(hr_slice_positions(4, FACTOR)):
                if p == 0 or max(0, p / FACTOR) <= position <= 3 + min(0, p / FACTOR):
                    total[:, j] += logits.float().flip(both)[:, j - p]
                    count[j] += 1
    assert (count[FACTOR:-FACTOR] == 8).all()
    torch.testing.assert_close(mirrored, total / count[:, None, None], atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize(("slices", "axes"), [(4, (1,)), (1, (1, 2, 3))])
def test_without_an_hr_head_mirrored_input_gives_mirrored_output(headless, slices, axes):
    """Along z always; in plane where a single slice has one phase, at which all mirrored axes are averaged."""
    image = torch.randn(1, slices, 16, 16, generator=torch.Generator().manual_seed(0))
    logits = headless().predict_sliding_window_return_logits(image).float()
    for axis in axes:
        flipped = headless().predict_sliding_window_return_logits(image.flip(axis)).float().flip(axis)
        torch.testing.assert_close(flipped, logits, atol=2e-3, rtol=2e-3)
        alone = headless(mirror=False).predict_sliding_window_return_logits(image.flip(axis)).float().flip(axis)
        assert not torch.allclose(alone, logits, atol=2e-2)


@pytest.mark.parametrize("hr_from", ["mean", "lr"])
def test_hr_logits_without_room_on_the_device_are_made_on_the_cpu(tiny, monkeypatch, hr_from):
    image = torch.randn(1, 5, 18, 17, generator=torch.Generator().manual_seed(0))
    predictor = tiny.predictor(hr_from=hr_from)
    predictor.network = predictor.network.eval()
    expected = predictor.predict_sliding_window_return_logits(image)
    calls = []

    def no_room(logits, factor, axis):
        calls.append(logits.shape)
        if calls.count(logits.shape) % 2:
            raise torch.cuda.OutOfMemoryError("no room")
        return interpolate_logits(logits, factor, axis)

    monkeypatch.setattr(module, "interpolate_logits", no_room)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("emptied"))
    found = predictor.predict_sliding_window_return_logits(image)
    assert torch.equal(found, expected)
    assert "emptied" in calls


@pytest.fixture
def two_headed(tiny):
    """A random network with an HR head of its own opinion, the same without one, and an image of one window."""
    torch.manual_seed(0)
    plain = tiny.ThresholdNetwork(2)
    network = add_hr_head(
        copy.deepcopy(plain), factor=FACTOR, teacher_channels=1, config=HRHeadConfig(label_mode="direct")
    )
    return network, plain, torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))


def test_the_hr_head_can_be_left_out(tiny, two_headed):
    """The network then gives what the same one without a head does."""
    network, plain, image = two_headed
    with_head, without, stock = (
        tiny.predictor(network=n, **options).predict_sliding_window_return_logits(image)
        for n, options in ((network, {}), (network, {"hr_from": "lr"}), (plain, {}))
    )
    assert torch.equal(without, stock)
    assert not torch.allclose(with_head, without, atol=0.1)


def test_the_hr_head_alone_and_the_mean_of_both(tiny, two_headed):
    network, _, image = two_headed
    head, mean = (
        tiny.predictor(network=network, hr_from=source, mirror=False, gaussian=False)
        .predict_sliding_window_return_logits(image)
        .float()
        for source in ("head", "mean")
    )
    with torch.no_grad(), output_mode(network.eval(), "hr"):
        lr, hr = (logits[0] for logits in network(image[None]))
    torch.testing.assert_close(head, hr, atol=5e-3, rtol=5e-3)
    torch.testing.assert_close(mean, (hr + spline_of(lr)) / 2, atol=5e-3, rtol=5e-3)


@pytest.mark.parametrize(("source", "phases"), [("lr", FACTOR), ("head", 1), ("mean", 1)])
def test_only_interpolated_logits_are_taken_at_other_phases(tiny, two_headed, monkeypatch, source, phases):
    """A network of thin slices, whose source is the head, would see the scan interpolated twice."""
    network, _, image = two_headed
    asked = set()

    def noted(volume, phase, *arguments):
        asked.add(phase % FACTOR)
        return at_phase(volume, phase, *arguments)

    monkeypatch.setattr(module, "at_phase", noted)
    tiny.predictor(network=network, hr_from=source).predict_sliding_window_return_logits(image)
    assert len(asked) == phases
    assert 0 in asked


@pytest.mark.parametrize("stored", ["head", "lr", "mean", None])
def test_the_model_says_where_its_thin_slices_come_from(tiny, two_headed, stored):
    """A model of before the setting has the mean; whoever asks for something else gets it."""
    network, _, image = two_headed
    block = {} if stored is None else {"segmentation": {"hr_from": stored}}
    by_model, by_wish, other = (
        tiny.predictor(network=network, **options).predict_sliding_window_return_logits(image)
        for options in ({"block": block}, {"hr_from": stored or "mean"}, {"block": block, "hr_from": "head"})
    )
    assert torch.equal(by_model, by_wish)
    assert torch.equal(by_model, other) == (stored == "head")


@pytest.mark.parametrize("wish", ["head", "mean"])
def test_an_hr_head_that_is_not_there_is_refused(tiny, wish):
    with pytest.raises(ValueError, match=f"--hr_from {wish} needs a network with an HR head, .*leave it out"):
        tiny.predictor(network=tiny.ThresholdNetwork(2), hr_from=wish)
    # what the settings of its plans say is REHRSegTrainer's affair
    tiny.predictor(network=tiny.ThresholdNetwork(2), block={"segmentation": {"hr_from": wish}})


def test_folds_are_averaged(tiny):
    network = tiny.threshold_network()
    double = {
        k: 2 * v if "second" in k or k.endswith("0.weight") else v.clone() for k, v in network.state_dict().items()
    }
    parameters = [copy.deepcopy(network.state_dict()), double]
    image = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    both, first = (
        tiny.predictor(network=network, parameters=p, gaussian=False).predict_logits_from_preprocessed_data(image)
        for p in (parameters, parameters[:1])
    )
    torch.testing.assert_close(both.float(), 1.5 * first.float(), atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIO", "NibabelIOWithReorient", "SimpleITKIOWithReorient"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_file_has_the_inputs_field_of_view_and_the_object_in_place(tiny, case, axis, reader):
    rotation = tiny.oblique() if reader == "NibabelIO" else tiny.oblique() @ np.diag([-1.0, 1.0, -1.0])
    path, output = case(axis=axis, rotation=rotation)
    tiny.predictor(axis=axis, reader=reader).predict_from_files_sequential([[str(path)]], [str(output)])
    source, result = sitk.ReadImage(str(path)), sitk.ReadImage(f"{output}.nii.gz")
    expected = list(source.GetSize())
    expected[2 - axis] *= FACTOR
    assert list(result.GetSize()) == expected
    np.testing.assert_allclose(extent_mm(result), extent_mm(source), atol=1e-3)
    # a grid left where the LR slices were would be off by 1.5 mm
    np.testing.assert_allclose(tiny.centroid_mm(result), tiny.CENTRE_MM, atol=0.1)


@pytest.mark.parametrize("resampling", ["resample_data_or_seg_to_shape", "resample_torch_fornnunet"])
@pytest.mark.parametrize("thickness", [2.5, 5.5])
def test_other_spacing_than_the_plans(tiny, case, thickness, resampling):
    path, output = case(thickness=thickness, slices=9)
    tiny.predictor(resampling=resampling).predict_from_files_sequential([[str(path)]], [str(output)])
    source, result = sitk.ReadImage(str(path)), sitk.ReadImage(f"{output}.nii.gz")
    assert result.GetSize()[2] == FACTOR * 9
    np.testing.assert_allclose(extent_mm(result), extent_mm(source), atol=1e-3)
    np.testing.assert_allclose(tiny.centroid_mm(result), tiny.CENTRE_MM, atol=0.5)
    # preprocessing copies whole slices (order_z 0) at a thickness that differs; export must not copy HR slices
    labels = sitk.GetArrayFromImage(result)
    object_slices = np.flatnonzero(labels.any((1, 2)))
    areas = labels[object_slices].sum((1, 2))
    assert len(np.unique(areas)) >= len(areas) // 4


def test_probabilities_on_the_hr_grid(tiny, case):
    path, output = case()
    tiny.predictor().predict_from_files_sequential([[str(path)]], [str(output)], save_probabilities=True)
    probabilities = np.load(f"{output}.npz")["probabilities"]
    labels = sitk.GetArrayFromImage(sitk.ReadImage(f"{output}.nii.gz"))
    assert probabilities.shape == (2, *labels.shape) == (2, 28, 22, 24)
    np.testing.assert_array_equal(probabilities.argmax(0), labels)
    with open(f"{output}.pkl", "rb") as file:
        assert pickle.load(file)["shape_before_cropping"] == (28, 22, 24)


def test_arrays_in_hr_arrays_out_and_inputs_left_alone(tiny, case):
    path, output = case()
    hr = tiny.predictor()
    image, properties = hr.plans_manager.image_reader_writer_class().read_images([str(path)])
    before = copy.deepcopy(properties), image.copy()
    hr.predict_from_files_sequential([[str(path)]], [str(output)])
    labels = sitk.GetArrayFromImage(sitk.ReadImage(f"{output}.nii.gz"))
    np.testing.assert_array_equal(hr.predict_single_npy_array(image, properties), labels)
    spacing_alone = hr.predict_single_npy_array(image, {"spacing": properties["spacing"]})
    np.testing.assert_array_equal(spacing_alone, labels)
    assert properties == before[0]
    np.testing.assert_array_equal(image, before[1])


def test_regions(tiny, case):
    path, output = case()
    network = tiny.threshold_network()
    with torch.no_grad():
        network.decoder.seg_layers[-1].hr_head.second.bias[0] = 5.0
    tiny.predictor(network=network, regions=True).predict_from_files_sequential(
        [[str(path)]], [str(output)], save_probabilities=True
    )
    result = sitk.ReadImage(f"{output}.nii.gz")
    labels = sitk.GetArrayFromImage(result)
    assert set(np.unique(labels)) == {0, 1, 2}
    assert (labels[:FACTOR] == 0).all()  # cropped away by nnU-Net
    np.testing.assert_allclose(tiny.centroid_mm(result == 2), tiny.CENTRE_MM, atol=0.1)


def write_model(folder, tiny, networks):
    folder.mkdir()
    (folder / "plans.json").write_text(json.dumps(tiny.plans()))
    (folder / "dataset.json").write_text(json.dumps(tiny.dataset_json()))
    for fold, network in enumerate(networks):
        (folder / f"fold_{fold}").mkdir()
        checkpoint = {
            "trainer_name": "REHRSegTrainer",
            "init_args": {"configuration": "3d_fullres"},
            "network_weights": network.state_dict(),
            "inference_allowed_mirroring_axes": (0, 1, 2),
        }
        torch.save(checkpoint, folder / f"fold_{fold}" / "checkpoint_final.pth")


@pytest.fixture
def trainer(monkeypatch):
    """nnU-Net finds a trainer that builds what the test says."""

    def builds(make):
        class Trainer:
            @staticmethod
            def build_network_architecture(
                plans_manager, configuration_manager, channels, heads, enable_deep_supervision=True
            ):
                return make()

        monkeypatch.setattr(
            "nnunetv2.inference.predict_from_raw_data.recursive_find_trainer_class_by_name", lambda name: Trainer
        )

    return builds


def test_trained_model_folder(tiny, trainer, case, tmp_path):
    trainer(tiny.threshold_network)
    write_model(tmp_path / "model", tiny, [tiny.threshold_network(), tiny.threshold_network()])
    hr = HRPredictor(device=torch.device("cpu"), allow_tqdm=False)
    hr.initialize_from_trained_model_folder(str(tmp_path / "model"), (0, 1))
    path, output = case()
    hr.predict_from_files_sequential([[str(path)]], [str(output)])
    result = sitk.ReadImage(f"{output}.nii.gz")
    assert result.GetSize() == (24, 22, FACTOR * 7)
    np.testing.assert_allclose(tiny.centroid_mm(result), tiny.CENTRE_MM, atol=0.1)


def test_a_model_without_hr_head_has_its_logits_interpolated(tiny, trainer, case, tmp_path, caplog):
    def network():
        torch.manual_seed(0)
        return tiny.ThresholdNetwork(2)

    trainer(network)
    write_model(tmp_path / "model", tiny, [network()])
    predictors = [
        make(device=torch.device("cpu"), allow_tqdm=False, use_gaussian=False, use_mirroring=False)
        for make in (HRPredictor, nnUNetPredictor)
    ]
    with caplog.at_level("INFO"):
        for predictor in predictors:
            predictor.initialize_from_trained_model_folder(str(tmp_path / "model"), (0,))
    assert re.search("has no HR head: its logits are interpolated to 4 times as many slices", caplog.text)
    image = torch.randn(1, 7, 30, 16, generator=torch.Generator().manual_seed(0))
    hr, lr = (predictor.predict_logits_from_preprocessed_data(image).float() for predictor in predictors)
    assert hr.shape == (2, FACTOR * 7, 30, 16)
    torch.testing.assert_close(hr, spline_of(lr), atol=5e-3, rtol=5e-3)


def test_the_object_is_in_place_without_an_hr_head(tiny, case):
    network = tiny.ThresholdNetwork(2)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.decoder.seg_layers[-1].weight[-1] = 3
    path, output = case(axis=1, rotation=tiny.oblique())
    tiny.predictor(network=network, axis=1).predict_from_files_sequential([[str(path)]], [str(output)])
    source, result = sitk.ReadImage(str(path)), sitk.ReadImage(f"{output}.nii.gz")
    np.testing.assert_allclose(extent_mm(result), extent_mm(source), atol=1e-3)
    np.testing.assert_allclose(tiny.centroid_mm(result), tiny.CENTRE_MM, atol=0.1)
    # the ball: 5 mm in radius
    volume_mm3 = sitk.GetArrayFromImage(result).sum() * np.prod(result.GetSpacing())
    assert volume_mm3 == pytest.approx(4 / 3 * np.pi * 5**3, rel=0.1)


def test_refuses_models_of_isotropic_plans(tiny, trainer, tmp_path):
    trainer(lambda: tiny.ThresholdNetwork(2))
    write_model(tmp_path / "model", tiny, [tiny.ThresholdNetwork(2)])
    plans = tiny.plans()
    plans["configurations"]["3d_fullres"]["spacing"] = [1.0, 1.0, 1.1]
    (tmp_path / "model" / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(ValueError, match=r"1 x 1 x 1.1 mm.*-overwrite_target_spacing"):
        HRPredictor(device=torch.device("cpu")).initialize_from_trained_model_folder(str(tmp_path / "model"), (0,))


def test_refuses_a_head_of_another_factor(tiny):
    with pytest.raises(ValueError, match="factor 4, got 3"):
        tiny.predictor(network=tiny.threshold_network(factor=3))


def test_compiled_network(tiny):
    network = tiny.threshold_network()
    image = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = tiny.predictor(network=network).predict_sliding_window_return_logits(image)
    compiled = tiny.predictor(network=torch.compile(network, backend="eager"), parameters=[network.state_dict()])
    assert isinstance(compiled.network, nn.Module)
    torch.testing.assert_close(compiled.predict_sliding_window_return_logits(image), expected)
