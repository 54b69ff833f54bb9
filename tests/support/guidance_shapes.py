"""Levels of guidance networks as nnU-Net's plans have them, small, with patches that divide evenly and others."""

from rehrseg_nnunet.guided.shape import GuidanceShape

# by name: strides, kernels, widths, convolutions a block, patches
TABLES = {
    "cube": ([(1, 1, 1), (2, 2, 2), (2, 2, 2)], [(3, 3, 3)] * 3, (4, 8, 16), 1, [(16, 16, 16), (9, 14, 11)]),
    "five levels": (
        [(1, 1, 1), *[(2, 2, 2)] * 4],
        [(3, 3, 3)] * 5,
        (4, 8, 16, 32, 64),
        1,
        [(16, 32, 16), (33, 18, 21)],
    ),
    "thick slices": (
        [(1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2)],
        [(1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3)],
        (4, 8, 16, 32),
        1,
        [(4, 16, 24), (5, 19, 17), (3, 16, 18)],
    ),
    "plane": ([(1, 1), *[(2, 2)] * 4], [(3, 3)] * 5, (8, 8, 8, 8, 8), 2, [(32, 48), (35, 41)]),
    "uneven plane": ([(1, 1), (2, 1), (2, 2), (3, 1)], [(3, 3)] * 4, (4, 8, 4, 12), 2, [(24, 16), (31, 13)]),
}
PATCHES = [(name, patch) for name, table in TABLES.items() for patch in table[4]]


def shape_of(name, **changes):
    strides, kernels, widths, convs, _ = TABLES[name]
    return GuidanceShape(
        **{"strides": strides, "kernels": kernels, "widths": widths, "convs_per_block": convs} | changes
    )


def patch_of(name):
    return TABLES[name][4][0]
