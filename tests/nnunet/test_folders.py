"""nnU-Net's folders, found or missing."""

import pytest

from rehrseg_nnunet.nnunet.folders import find_dataset, nnunet_folder, raw_folder


def test_nnunets_folders(monkeypatch, tmp_path):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    assert nnunet_folder("nnUNet_raw") == tmp_path
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match=r"nnUNet_raw must name an existing folder, got .*none"):
        nnunet_folder("nnUNet_raw")
    for missing in ("", None):
        monkeypatch.setenv("nnUNet_raw", "") if missing == "" else monkeypatch.delenv("nnUNet_raw")
        with pytest.raises(ValueError, match="environment variable nnUNet_raw must be set"):
            nnunet_folder("nnUNet_raw")


def test_datasets_by_number_and_name(tmp_path):
    for name in ("Dataset004_Hippocampus", "Dataset040_Other", "Dataset005_A", "Dataset005_B", ".Dataset006_X.partial"):
        (tmp_path / name).mkdir()
    (tmp_path / "Dataset007_File").touch()
    for number in ("4", "004", "Dataset004_Hippocampus"):
        assert find_dataset(tmp_path, number).name == "Dataset004_Hippocampus"
    for missing in ("6", "7", "400", "Dataset004_Liver", "Dataset004"):
        with pytest.raises(FileNotFoundError, match=f"dataset {missing} was not found"):
            find_dataset(tmp_path, missing)
    with pytest.raises(ValueError, match=r"dataset number 5 must be unique, got .*Dataset005_A.*Dataset005_B"):
        find_dataset(tmp_path, "5")
    with pytest.raises(ValueError, match="-d must be a number or a name like Dataset004_Hippocampus, got liver"):
        find_dataset(tmp_path, "liver")


def test_the_raw_folder_is_not_at_hand_everywhere(monkeypatch, tmp_path):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    assert raw_folder("Dataset009_X") == tmp_path / "Dataset009_X"  # whether it exists or not
    monkeypatch.setenv("nnUNet_raw", "")
    assert raw_folder("Dataset009_X") is None
    monkeypatch.delenv("nnUNet_raw")
    assert raw_folder("Dataset009_X") is None
