"""Both blocks in one configuration, or each alone."""

import pytest

from rehrseg_nnunet.config.blocks import blocks_of, learning_rate_from_trained, parse_blocks
from rehrseg_nnunet.config.guidance import GuidanceConfig
from rehrseg_nnunet.config.rehrseg import RehrsegConfig

REHRSEG = {"segmentation": {"learning_rate_from_trained": 0.01}}
GUIDANCE = {"learning_rate_from_trained": 0.01}


def test_the_blocks_that_are_there():
    assert parse_blocks({"spacing": [1, 1, 1]}) == {}
    assert parse_blocks({"rehrseg": {}, "guidance": {}}) == {"rehrseg": RehrsegConfig(), "guidance": GuidanceConfig()}
    assert list(parse_blocks({"guidance": GUIDANCE})) == ["guidance"]
    with pytest.raises(ValueError, match=r"^guidance\.epochs: unknown key$"):
        parse_blocks({"rehrseg": {}, "guidance": {"epochs": 3}})
    plans = {"configurations": {"2d": {"guidance": {}}, "3d_fullres": {"guidance": {}, "rehrseg": {}}}}
    assert blocks_of(plans) == ["rehrseg", "guidance"]
    assert blocks_of({"configurations": {"2d": {}, "3d_fullres": {"guidance": {}}}}) == ["guidance"]


@pytest.mark.parametrize(
    ("blocks", "rate"),
    [
        ({}, 1e-3),
        ({"rehrseg": REHRSEG}, 0.01),
        ({"guidance": GUIDANCE}, 0.01),
        ({"rehrseg": REHRSEG, "guidance": GUIDANCE}, 0.01),
        ({"rehrseg": {}, "guidance": {}}, 1e-3),
    ],
)
def test_the_learning_rate_from_trained(blocks, rate):
    assert learning_rate_from_trained(blocks) == rate


def test_blocks_that_do_not_agree_are_both_named():
    with pytest.raises(ValueError, match="must be the same in both blocks") as error:
        learning_rate_from_trained({"rehrseg": REHRSEG, "guidance": {}})
    for part in ("rehrseg.segmentation.learning_rate_from_trained 0.01", "guidance.learning_rate_from_trained 0.001"):
        assert part in str(error.value)
