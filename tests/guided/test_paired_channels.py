"""Which channels are privileged: by the key, by default, and what is refused with the key's name."""

import pytest

from rehrseg_nnunet.guided.paired_channels import PairedChannels


def dataset(number, privileged=None):
    names = {str(channel): f"c{channel}" for channel in range(number)}
    return {"channel_names": names, **({} if privileged is None else {"rehrseg_privileged_channels": privileged})}


@pytest.mark.parametrize(
    ("number", "privileged", "expected"),
    [
        (2, None, ((0,), (1,))),
        (2, ["0"], ((1,), (0,))),
        (2, [1], ((0,), (1,))),
        (3, ["2", "0"], ((1,), (0, 2))),
        (4, ["3"], ((0, 1, 2), (3,))),
    ],
)
def test_roles(number, privileged, expected):
    channels = PairedChannels.of_dataset(dataset(number, privileged))
    assert (channels.source, channels.privileged) == expected


def test_channels_are_numbers_whatever_their_order_in_the_file():
    names = {str(channel): "x" for channel in reversed(range(12))}
    channels = PairedChannels.of_dataset({"channel_names": names, "rehrseg_privileged_channels": ["10"]})
    assert channels.source == (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11)


@pytest.mark.parametrize(
    ("number", "privileged", "got"),
    [
        (3, None, "got no such key for channels 0 c0, 1 c1, 2 c2"),
        (2, ["2"], r"got \['2'\] for channels 0 c0, 1 c1"),
        (2, ["0", "1"], r"got \['0', '1'\]"),
        (2, [], r"got \[\]"),
        (3, ["1", 1], r"got \['1', 1\]"),
        (2, "1", "got 1 for"),
        (2, ["T1_7T"], r"got \['T1_7T'\]"),
        (2, {"1": "x"}, "got {'1': 'x'}"),
        (2, [1.7], r"got \[1.7\]"),
        (2, [True], r"got \[True\]"),
        (2, [None], r"got \[None\]"),
        (2, ["-1"], r"got \['-1'\]"),
    ],
)
def test_the_key_is_named(number, privileged, got):
    with pytest.raises(ValueError, match=rf"^rehrseg_privileged_channels of dataset.json must list .*{got}"):
        PairedChannels.of_dataset(dataset(number, privileged))


def test_a_dataset_without_pairs():
    with pytest.raises(ValueError, match="got 0 c0 alone; `rehrseg pair` makes such a dataset"):
        PairedChannels.of_dataset(dataset(1))


def test_the_copy_that_nnunet_reads_is_named():
    with pytest.raises(
        ValueError, match=r"; mend it there, and in its copy in nnUNet_preprocessed, which nnU-Net reads$"
    ):
        PairedChannels.of_dataset(dataset(3))


def test_nnunets_older_name_of_the_channels_is_refused():
    with pytest.raises(
        ValueError, match=r"^dataset.json must have the key channel_names, got modality; modality is nnU"
    ):
        PairedChannels.of_dataset({"modality": {"0": "T1", "1": "T2"}})
