"""Build architectures by name: CIFAR ResNets, wide ResNets, torchvision's classifiers, a user's factory."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock

from trainables.errors import InputError
from trainables.registry import import_module

ImageShape = tuple[int, int, int]

SMALL_SIDE = 64  # images up to this side in pixels are too small for an ImageNet stem
CIFAR_DEPTHS = tuple(range(8, 111, 6))
WRN_DEPTHS = tuple(range(10, 101, 6))
WRN_EXAMPLES = ("wrn16_1", "wrn16_2", "wrn16_4", "wrn16_8", "wrn22_2", "wrn28_2", "wrn28_10", "wrn40_2")

# By torchvision class: the stem's convolution, changed to 3x3 with stride 1, and the pooling to remove.
CONV_STEMS: dict[str, tuple[str, str | None]] = {
    "ResNet": ("conv1", "maxpool"),
    "DenseNet": ("features.conv0", "features.pool0"),
    "GoogLeNet": ("conv1.conv", "maxpool1"),
    "ShuffleNetV2": ("conv1.0", "maxpool"),
    "MobileNetV2": ("features.0.0", None),
    "MobileNetV3": ("features.0.0", None),
    "EfficientNet": ("features.0.0", None),
    "RegNet": ("stem.0", None),
    "MNASNet": ("layers.0", None),
}
# By torchvision class: the convolution that makes the patches.
PATCH_STEMS = {"ConvNeXt": "features.0.0", "SwinTransformer": "features.0.0"}


class CifarResNet(nn.Module):
    """Residual network for small images: one 3x3 convolution, three stages, global average, linear layer.

    The stages consist of torchvision's `BasicBlock`s. State-dict keys are those of torchvision's `ResNet`
    (`conv1`, `bn1`, `layer1.0.conv1`, ..., `layer2.0.downsample.0`, `fc`). A block that changes the shape
    has a projection shortcut (1x1 convolution and batch norm).

    Source: He et al. 2016, Deep Residual Learning for Image Recognition, section 4.2.

    Args:
        blocks: blocks in each of the three stages.
        width: channels of the first stage are `16 * width`, doubled in each following stage.
        num_classes: length of the logits.
    """

    def __init__(self, blocks: int, width: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(16, 16 * width, blocks, stride=1)
        self.layer2 = _stage(16 * width, 32 * width, blocks, stride=2)
        self.layer3 = _stage(32 * width, 64 * width, blocks, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map normalised images (B, 3, H, W) to logits (B, num_classes)."""
        x = self.relu(self.bn1(self.conv1(images)))  # (B, 16, H, W)
        x = self.layer3(self.layer2(self.layer1(x)))  # (B, 64 * width, H / 4, W / 4)
        logits: torch.Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


def _stage(c_in: int, c_out: int, blocks: int, stride: int) -> nn.Sequential:
    downsample = None
    if stride != 1 or c_in != c_out:
        downsample = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))
    first = BasicBlock(c_in, c_out, stride, downsample)
    return nn.Sequential(first, *(BasicBlock(c_out, c_out) for _ in range(blocks - 1)))


def build_model(
    arch: str, num_classes: int, image_shape: ImageShape, small_stem: bool | None = None
) -> nn.Module:
    """Build a network with random weights that maps images (B, 3, H, W) to logits (B, num_classes).

    `arch` is one of
      - `cifar_resnet<depth>`, depth 6n + 2 from 8 to 110: see `CifarResNet`.
      - `wrn<depth>_<k>`, depth 6n + 4 from 10 to 100: the same network with k times the channels, n blocks a
        stage. It has the widths and depths of Zagoruyko & Komodakis 2016 but torchvision's blocks: norm and
        activation follow each convolution instead of preceding it, and there is no dropout.
      - `torchvision:<name>`, a classification model of torchvision. With a small stem ResNet, ResNeXt,
        Wide-ResNet, DenseNet, GoogLeNet and ShuffleNet start with a 3x3 convolution of stride 1 and no
        pooling; MobileNet, EfficientNet, RegNet and MNASNet with stride 1; ConvNeXt and Swin with patches of
        2 px (1 px for sides up to 16); ViT with at least 8 x 8 patches. AlexNet, VGG, SqueezeNet, Inception
        and MaxViT keep their stem. ViT and MaxViT are built for the image's size, which must be square.
      - `import:<package.module>:<factory>` or `import:<file.py>:<factory>`, a callable in the user's code; it
        gets `num_classes` if it has that argument. The working directory is searched too.

    Args:
        arch: which network.
        num_classes: length of the logits.
        image_shape: (3, H, W) of its inputs.
        small_stem: stem of torchvision models; None: the small one for sides up to 64 px.

    Returns:
        The model, in training mode, tested with one forward pass in eval mode.

    Raises:
        InputError: no such network, or it does not work on such images.
    """
    if match := re.fullmatch(r"cifar_resnet(\d+)", arch):
        model: nn.Module = CifarResNet(_stage_blocks(arch, int(match[1]), CIFAR_DEPTHS, 2), 1, num_classes)
    elif match := re.fullmatch(r"wrn(\d+)_([1-9]\d*)", arch):
        blocks = _stage_blocks(arch, int(match[1]), WRN_DEPTHS, 4)
        model = CifarResNet(blocks, int(match[2]), num_classes)
    elif arch.startswith("torchvision:"):
        model = _torchvision_model(
            arch, num_classes, image_shape, resolve_stem(arch, image_shape, small_stem)
        )
    elif arch.startswith("import:"):
        model = _imported_model(arch, num_classes)
    else:
        raise _unknown(arch)
    _check_forward(model, arch, num_classes, image_shape)
    return model.train()


def resolve_stem(arch: str, image_shape: ImageShape, small_stem: bool | None) -> bool:
    """Return whether `build_model` gives this model a small stem; torchvision's models alone can have one."""
    if not arch.startswith("torchvision:"):
        return False
    return max(image_shape[1:]) <= SMALL_SIDE if small_stem is None else small_stem


def _stage_blocks(arch: str, depth: int, depths: tuple[int, ...], extra: int) -> int:
    if depth not in depths:
        near = min(depths, key=lambda d: abs(d - depth))
        raise InputError(
            f"teacher.arch: {arch}: depth must be 6n + {extra} from {depths[0]} to {depths[-1]}, "
            f"but got {depth}; the nearest is {near}"
        )
    return (depth - extra) // 6


def _unknown(arch: str) -> InputError:
    full = [f"cifar_resnet{d}" for d in CIFAR_DEPTHS] + list(WRN_EXAMPLES)
    names = {name: name for name in full}
    for name in torchvision.models.list_models(module=torchvision.models):
        names[name] = names[f"torchvision:{name}"] = f"torchvision:{name}"
    near = [names[key] for key in difflib.get_close_matches(arch, names, n=5, cutoff=0.5)]
    hint = f"; nearest: {', '.join(list(dict.fromkeys(near))[:3])}" if near else ""
    return InputError(
        f"teacher.arch: unknown {arch!r}: expected cifar_resnet<depth>, wrn<depth>_<k>, torchvision:<name> "
        f"or import:<package.module>:<factory>{hint}"
    )


def _torchvision_model(arch: str, num_classes: int, image_shape: ImageShape, small: bool) -> nn.Module:
    name = arch.removeprefix("torchvision:")
    if name not in torchvision.models.list_models(module=torchvision.models):
        raise _unknown(arch)
    _, height, width = image_shape
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        options = {"aux_logits": False, "init_weights": True}
    elif name.startswith("maxvit"):
        options = {"input_size": (height, width)}
    elif name.startswith("vit_"):
        native = int(name.rsplit("_", 1)[1])
        patch = max(p for p in range(1, max(1, height // 8) + 1) if height % p == 0) if small else native
        # torchvision derives the patch size from the name, so request an image with this number of patches.
        options = {"image_size": height // patch * native if small else height}
    try:
        model: nn.Module = torchvision.models.get_model(
            name, weights=None, num_classes=num_classes, **options
        )
    except Exception as error:  # for a wrong size, models raise AssertionError, ValueError or RuntimeError
        raise InputError(_does_not_fit(arch, image_shape, error)) from error
    if small and name.startswith("vit_"):
        model.conv_proj = nn.Conv2d(3, model.hidden_dim, patch, patch)  # type: ignore[arg-type]
        model.patch_size, model.image_size = patch, height  # type: ignore[assignment]
    elif small:
        _shrink_stem(model, max(height, width))
    return model


def _shrink_stem(model: nn.Module, side: int) -> None:
    """Replace a convolutional or patch stem by one that shrinks images less; leave other stems unchanged."""
    kind = type(model).__name__
    if kind in CONV_STEMS:
        path, pool = CONV_STEMS[kind]
        _replace_conv(model, path, kernel=3, stride=1, padding=1)
        if pool is not None:
            model.set_submodule(pool, nn.Identity())
    elif kind in PATCH_STEMS:
        patch = 2 if side > 16 else 1
        _replace_conv(model, PATCH_STEMS[kind], kernel=patch, stride=patch, padding=0)


def _replace_conv(model: nn.Module, path: str, kernel: int, stride: int, padding: int) -> None:
    old = model.get_submodule(path)
    assert isinstance(old, nn.Conv2d), path
    new = nn.Conv2d(
        old.in_channels, old.out_channels, kernel, stride, padding=padding, bias=old.bias is not None
    )
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    model.set_submodule(path, new)


def _imported_model(arch: str, num_classes: int) -> nn.Module:
    factory = _find_factory(arch)
    try:
        parameters = inspect.signature(factory).parameters.values()
    except ValueError:  # some built-in callables lack a signature
        parameters = {}.values()
    takes = any(p.name == "num_classes" or p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    try:
        model = factory(num_classes=num_classes) if takes else factory()
    except Exception as error:
        raise InputError(f"teacher.arch: {arch}: the factory failed: {_first_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise InputError(
            f"teacher.arch: {arch}: the factory must give a torch.nn.Module, but gave {type(model).__name__}"
        )
    return model


def _find_factory(arch: str) -> Callable[..., Any]:
    try:
        module = import_module(arch)
    except InputError as error:
        raise InputError(f"teacher.arch: {error}") from error.__cause__
    name = arch.rpartition(":")[2]
    factory = getattr(module, name, None)
    if not callable(factory):
        near = difflib.get_close_matches(name, [n for n in vars(module) if not n.startswith("_")])
        hint = f"; nearest: {', '.join(near)}" if near else ""
        raise InputError(f"teacher.arch: {arch}: {module.__name__} has no callable {name!r}{hint}")
    return factory  # type: ignore[no-any-return]


def _check_forward(model: nn.Module, arch: str, num_classes: int, image_shape: ImageShape) -> None:
    model.eval()
    try:
        with torch.no_grad():
            logits = model(torch.zeros(2, *image_shape))
    except Exception as error:
        raise InputError(_does_not_fit(arch, image_shape, error)) from error
    shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if shape != (2, num_classes):
        raise InputError(
            f"teacher.arch: {arch}: images (2, {', '.join(map(str, image_shape))}) must give logits "
            f"(2, {num_classes}), but gave {shape}"
        )


def _does_not_fit(arch: str, image_shape: ImageShape, error: Exception) -> str:
    return (
        f"teacher.arch: {arch} does not work on images {image_shape}: {_first_line(error).rstrip('.')}. "
        "Try a larger data.size, teacher.small_stem: true, or another teacher.arch"
    )


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
