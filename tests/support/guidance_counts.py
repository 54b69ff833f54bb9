"""Numbers of weights that the paper's networks have, from shapes alone."""

from math import prod


def weights(kernel, in_channels, out_channels):
    return prod(kernel) * in_channels * out_channels


def block(kernel, in_channels, out_channels, convs):
    return weights(kernel, in_channels, out_channels) + (convs - 1) * weights(kernel, out_channels, out_channels)


def sized(shape, level, size):
    """The kernel of a size at a level."""
    return [1 if own == 1 else size for own in shape.kernels[level]]


def strided(shape, level):
    """The kernel of the strided convolution to a level."""
    pairs = zip(shape.kernels[level], shape.strides[level], strict=True)
    return [{2: 4, 3: 5}.get(stride, own) for own, stride in pairs]


def encoder_count(shape):
    channels = [shape.privileged_channels, *shape.widths]
    return sum(block(sized(shape, n, 3), channels[n], w, shape.convs_per_block) for n, w in enumerate(shape.widths))


def projection_count(shape):
    return sum(fine * coarse for fine, coarse in zip(shape.widths[:-1], shape.widths[1:], strict=True))


def decoder_count(shape):
    last = len(shape.widths) - 1
    bottom = block(sized(shape, last, 3), shape.widths[-1], shape.widths[-1], shape.convs_per_block)
    joins = sum(block(sized(shape, n, 3), 2 * w, w, shape.convs_per_block) for n, w in enumerate(shape.widths[:-1]))
    return bottom + projection_count(shape) + joins + shape.widths[0] * shape.privileged_channels


def reconstruction_count(shape):
    blocks = sum(block(sized(shape, n, 3), w, w, shape.convs_per_block) for n, w in enumerate(shape.widths[:-1]))
    return projection_count(shape) + blocks


def source_features_count(shape):
    projection = shape.source_channels * shape.privileged_channels
    maps = sum(width * width + width for width in shape.widths)
    return encoder_count(shape) + maps + projection * (shape.source_channels != shape.privileged_channels)


def keeper_count(shape, kernel=7, *, recalibration=True, residual=False):
    entering, total = shape.source_channels, projection_count(shape)
    for n, width in enumerate(shape.widths):
        size, growth = sized(shape, n, kernel), width // 4
        total += sum(block(size, entering + k * growth, growth, shape.convs_per_block) for k in range(3))
        extracted = entering + 3 * growth
        total += block(size, extracted, width, shape.convs_per_block)
        if n < len(shape.widths) - 1:
            total += weights(strided(shape, n + 1), extracted, growth)
            total += 2 * (2 * width + 1)  # the two maps
        entering = growth
    total += residual * (source_features_count(shape) + sum(shape.widths))
    return total + recalibration * len(shape.widths) * (5 + len(shape.strides[0]))


def discriminator_count(shape, stages):
    channels = [shape.privileged_channels, *(shape.widths[0] * 2**n for n in range(stages))]
    strides = sum(weights(strided(shape, n), channels[n - 1], channels[n]) for n in range(1, stages + 1))
    return strides + weights(sized(shape, stages, 4), channels[-1], 1)


def counted(network):
    return sum(parameter.numel() for parameter in network.parameters())
