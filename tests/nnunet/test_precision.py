import torch

from rehrseg_nnunet.nnunet.precision import at_least_float32, connected_zero, without_autocast


def test_at_least_float32():
    for given, wanted in [
        ("float16", "float32"),
        ("bfloat16", "float32"),
        ("int64", "float32"),
        ("float64", "float64"),
    ]:
        assert at_least_float32(torch.ones(2, dtype=getattr(torch, given))).dtype == getattr(torch, wanted)
    tensor = torch.ones(2)
    assert at_least_float32(tensor) is tensor


def test_without_autocast_keeps_matrix_products_in_full_precision():
    matrix = torch.ones(2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (matrix @ matrix).dtype == torch.bfloat16
        with without_autocast("cpu"):
            assert (matrix @ matrix).dtype == torch.float32
    with without_autocast("mps"):
        assert (matrix @ matrix).dtype == torch.float32


def test_connected_zero_gives_zero_gradients_even_for_infinite_values():
    tensor = torch.full((2, 3), float("inf"), dtype=torch.float16, requires_grad=True)
    zero = connected_zero(tensor)
    assert zero.item() == 0
    zero.backward()
    assert (tensor.grad == 0).all()
