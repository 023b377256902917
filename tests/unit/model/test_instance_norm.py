"""Instance norm and activation in one step give what PyTorch's layers give one after the other."""

import pytest
import torch
from torch import nn

from pipeline.model.blocks import Style, conv_unit
from pipeline.model.instance_norm import instance_norm, takes_instance_norm


def layer_and_image(dims: int, dtype: torch.dtype, channels_last: bool) -> tuple[nn.Module, torch.Tensor]:
    generator = torch.Generator().manual_seed(dims)
    norm = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[dims](5, affine=True)
    norm.weight.data = torch.rand(5, generator=generator) + 0.5
    norm.bias.data = torch.randn(5, generator=generator)
    image = torch.randn((3, 5, 7, 6, 4)[: dims + 2], generator=generator).mul(3).add(2).to(dtype)
    if channels_last:
        image = image.contiguous(memory_format=(torch.channels_last, torch.channels_last_3d)[dims - 2])
    return norm, image.requires_grad_()


@pytest.mark.parametrize("slope", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dims", [2, 3])
def test_values_and_gradients_are_those_of_the_layers(dims: int, channels_last: bool, slope: float) -> None:
    norm, image = layer_and_image(dims, torch.float32, channels_last)
    wanted = nn.functional.leaky_relu(norm(image), slope)
    found = instance_norm(image, norm, slope)
    torch.testing.assert_close(found, wanted)
    assert found.stride() == image.stride()
    inputs = (image, norm.weight, norm.bias)
    upstream = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(9))
    expected = torch.autograd.grad(wanted, inputs, upstream)
    for gradient, value in zip(torch.autograd.grad(found, inputs, upstream), expected, strict=True):
        torch.testing.assert_close(gradient, value, rtol=1e-4, atol=1e-5)


def test_gradients_are_exact() -> None:
    norm, image = layer_and_image(3, torch.float64, True)
    norm.double()
    assert torch.autograd.gradcheck(
        lambda x, weight, bias: instance_norm(x, norm, 0.01), (image, norm.weight, norm.bias)
    )


def test_bfloat16_is_rounded_once() -> None:
    norm, image = layer_and_image(3, torch.bfloat16, True)
    exact = nn.functional.leaky_relu(norm(image.float()), 0.01)
    found = instance_norm(image, norm, 0.01)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact, rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "prelu", "gelu"])
@pytest.mark.parametrize("activate", [True, False])
def test_a_unit_gives_what_its_layers_give(activation: str, activate: bool) -> None:
    unit = conv_unit(2, 6, (3, 3, 3), Style(3, norm="instance", activation=activation), activate=activate)  # type: ignore[arg-type]
    nn.init.normal_(unit.norm.weight)
    image = torch.randn(2, 2, 5, 6, 7)
    wanted = nn.Sequential(*unit)(image.clone())
    torch.testing.assert_close(unit(image), wanted, rtol=1e-4, atol=1e-5)


def test_a_unit_whose_activation_was_taken_out() -> None:
    unit = conv_unit(1, 3, (3, 3), Style(2, norm="instance"))
    unit.activation = nn.Identity()
    assert unit(torch.randn(1, 1, 8, 8)).min() < -0.1


def test_what_is_left_to_pytorch() -> None:
    image = torch.ones(2, 3, 4, 4)
    assert takes_instance_norm(nn.InstanceNorm2d(3, affine=True), image)
    assert not takes_instance_norm(nn.InstanceNorm2d(3), image)
    assert not takes_instance_norm(nn.BatchNorm2d(3), image)
    assert not takes_instance_norm(nn.InstanceNorm2d(3, affine=True), image.to("meta"))
    assert not takes_instance_norm(nn.InstanceNorm2d(3, affine=True), image.half())
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        conv_unit(1, 3, (1, 1), Style(2, norm="instance"))(torch.ones(1, 1, 1, 1))
