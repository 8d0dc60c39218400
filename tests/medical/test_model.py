"""The segmenter: losses of every network, predictions of whole volumes, refusals."""

import numpy as np
import pytest
import torch
from torch import nn

from zoo.medical.additive_gate_unet import AdditiveGateUNet
from zoo.medical.attention_unet import AttentionUNet, GridAttentionUNet
from zoo.medical.data_sample import VolumeSample
from zoo.medical.deep_supervised_unet import DeepSupervisedUNet
from zoo.medical.losses import deep_supervision_loss, focal_tversky_loss, voxel_cross_entropy
from zoo.medical.model import VolumePreprocessor, VolumeSegmenter
from zoo.medical.ms_dual_guided import MSDualGuided, guided_losses
from zoo.medical.training_losses import DiceCE, OnProbabilities, build_loss, halving_weights
from zoo.medical.unet import UNet

SMALL = dict(stem=8, planes=(8, 8, 16, 16), layers=(1, 1, 1, 1), groups=4, base_width=32)
NETWORKS = {
    "wau 2-D": lambda: UNet(1, 3, 2, (8, 16)),
    "wau 3-D": lambda: UNet(1, 3, 3, (8, 16), upsample=dict(type="wau", window=2, num_heads=2)),
    "attention 2-D": lambda: AttentionUNet(1, 3, 2, (4, 4, 8, 8, 8)),
    "grid 3-D": lambda: GridAttentionUNet(1, 3, 3, (4, 4, 8, 8, 8)),
    "additive 2-D": lambda: AdditiveGateUNet(1, 3, 2, (4, 4, 8, 8, 8)),
    "deep supervision": lambda: DeepSupervisedUNet(1, 3, (8, 8, 8, 8, 8), activation="none"),
    "dual guided": lambda: MSDualGuided(1, 3, 8, SMALL),
}


class Scaled(nn.Module):
    """Logits that are a constant times the input, so that predictions can be computed by hand."""

    dims, in_chans, num_classes = 2, 1, 2

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x):
        return torch.cat([-self.factor * x, self.factor * x], 1)


def sample(label, case="one"):
    return VolumeSample(metainfo={"case": case}).set_gt_label(label)


def batch(dims, classes=3, size=32):
    sizes = (size,) * dims if dims == 2 else (size, size, 8)
    return {
        "inputs": [torch.randn(1, *sizes) for _ in range(2)],
        "data_samples": [sample(torch.randint(0, classes, sizes), f"case {i}") for i in range(2)],
    }


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_gets_a_gradient_everywhere(name):
    model = VolumeSegmenter(NETWORKS[name]()).train()
    losses = model(**model.data_preprocessor(batch(model.dims), True), mode="loss")
    sum(losses.values()).backward()
    assert all(k.startswith("loss_") for k in losses)
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", NETWORKS)
def test_whole_volumes_of_any_size(name):
    """Slices of a 2-D network are those that it gives by itself; sizes need be no multiples of anything."""
    model = VolumeSegmenter(NETWORKS[name]()).eval()
    volume = torch.randn(1, 21, 35, 5)
    (found,) = model([volume], mode="predict")
    assert found.pred_label.shape == (21, 35, 5)
    assert found.pred_label.dtype == torch.int64
    if model.dims == 2:
        size = [-(-n // m) * m for n, m in zip((21, 35), model.multiple)]
        before = [(s - n) // 2 for s, n in zip(size, (21, 35))]
        padded = torch.zeros(1, 1, *size)
        box = (..., slice(before[0], before[0] + 21), slice(before[1], before[1] + 35))
        padded[box] = volume[None, ..., 3]
        with torch.no_grad():
            expected = model.logits(padded)[box].argmax(1)[0]
        assert (found.pred_label[..., 3] == expected).float().mean() > 0.999


def test_slices_along_another_axis_and_a_window():
    """Logits of a network that looks at one place do not depend on windows, axis and mirroring."""
    volume = torch.randn(2, 1, 9, 10, 11)
    expected = (volume[:, 0] > 0).long()
    for options in (
        dict(axis=0),
        dict(axis=1, window=4, overlap=0.25),
        dict(axis=2, mirror_axes=(0, 1), window_batch=3),
    ):
        model = VolumeSegmenter(Scaled(), **options).eval()
        found = torch.stack([s.pred_label for s in model(volume, mode="predict")])
        assert torch.equal(found, expected), options
        assert torch.allclose(model.whole(volume)[:, 1:], volume, atol=1e-5)


def test_the_loss_is_the_formula():
    """Dice and cross entropy in float64, written out."""
    torch.manual_seed(1)
    logits, target = torch.randn(2, 3, 6, 5, dtype=torch.float64), torch.randint(0, 3, (2, 6, 5))
    p, t = logits.softmax(1), nn.functional.one_hot(target, 3).movedim(-1, 1).double()
    inter, total = (p * t).sum((0, 2, 3)), (p + t).sum((0, 2, 3))
    dice = 1 - (2 * inter + 1e-5) / (total + 1e-5)
    ce = -(p.log() * t).sum(1).mean()
    assert torch.allclose(DiceCE()(logits, target), dice[1:].mean() + ce, atol=1e-9)
    assert torch.allclose(DiceCE(include_background=True, ce=0.5)(logits, target), dice.mean() + 0.5 * ce, atol=1e-9)


def test_losses_by_name_and_by_dict():
    logits, target = torch.randn(2, 3, 6, 5), torch.randint(0, 3, (2, 6, 5))
    p, t = logits.softmax(1), nn.functional.one_hot(target, 3).movedim(-1, 1).float()
    found = build_loss(dict(type=OnProbabilities, loss="focal_tversky", alpha=0.6))(logits, target)
    assert torch.allclose(found, focal_tversky_loss(p, t, alpha=0.6))
    found = build_loss("zoo.medical.losses.voxel_cross_entropy")(logits, target)
    assert torch.equal(found, voxel_cross_entropy(logits, target))
    with pytest.raises(ValueError, match="'nothing'.*squared_dice"):
        OnProbabilities("nothing")
    with pytest.raises(TypeError, match="alfa.*did you mean alpha"):
        OnProbabilities("focal_tversky", alfa=1)
    with pytest.raises(TypeError, match="smoth.*did you mean smooth"):
        build_loss(dict(type="zoo.medical.losses.soft_dice_loss", smoth=1))
    assert torch.allclose(halving_weights(3), torch.tensor([4 / 7, 2 / 7, 1 / 7]))


def test_dual_guided_trains_with_its_authors_losses():
    network = MSDualGuided(1, 3, 8, SMALL).train()
    model = VolumeSegmenter(network)
    data = model.data_preprocessor(batch(2), True)
    state = torch.get_rng_state()
    losses = model(**data, mode="loss")
    torch.set_rng_state(state)
    expected = guided_losses(network.outputs(data["inputs"]), torch.stack([s.gt_label for s in data["data_samples"]]))
    assert torch.allclose(sum(losses.values()), expected["total"], rtol=1e-5)
    assert set(losses) == {"loss_seg", "loss_guidance", "loss_reconstruction"}
    other = VolumeSegmenter(network, loss=dict(type=DiceCE))(**data, mode="loss")
    assert not torch.allclose(other["loss_seg"], losses["loss_seg"])
    assert torch.allclose(other["loss_reconstruction"], losses["loss_reconstruction"], rtol=1e-4)


def test_deep_supervision_is_the_mean_over_scales():
    network = DeepSupervisedUNet(1, 3, (8, 8, 8, 8, 8), activation="none").eval()
    model = VolumeSegmenter(network, loss=voxel_cross_entropy)
    data = batch(2)
    x, target = torch.stack(data["inputs"]), torch.stack([s.gt_label for s in data["data_samples"]])
    losses = model(x, data["data_samples"], mode="loss")
    mean, _ = deep_supervision_loss(lambda p, t: voxel_cross_entropy(p, t[:, 0]), network(x), target[:, None])
    assert torch.allclose(sum(losses.values()), mean)
    assert torch.equal(model.logits(x), network(x)[-1])
    with pytest.raises(ValueError, match="'sigmoid': accepted is 'none'"):
        VolumeSegmenter(DeepSupervisedUNet(1, 3, (8, 8, 8, 8, 8), activation="sigmoid"))


def test_refusals():
    model = VolumeSegmenter(Scaled(), loss=voxel_cross_entropy)
    x = torch.randn(1, 1, 4, 4)
    with pytest.raises(ValueError, match="mode='losses'"):
        model(x, mode="losses")
    with pytest.raises(ValueError, match="needs data_samples"):
        model(x, mode="loss")
    with pytest.raises(ValueError, match=r"case three has labels between 0 and 2.*2 classes \(0 to 1\)"):
        model(x, [sample(torch.tensor([[0, 1, 2, 0]] * 4), "three")], mode="loss")
    with pytest.raises(ValueError, match=r"case one: the label has size \(4, 5\), the image \(4, 4\)"):
        model(x, [sample(torch.zeros(4, 5, dtype=torch.long))], mode="loss")
    with pytest.raises(ValueError, match="accepted is .B, C. and 2 sizes"):
        model(torch.randn(1, 1, 4, 4, 4), [sample(torch.zeros(4, 4, 4, dtype=torch.long))], mode="loss")
    with pytest.raises(ValueError, match="or 3 that are cut into slices"):
        model(torch.randn(1, 1, 4), mode="predict")
    with pytest.raises(ValueError, match="num_classes=3, but the network has 2"):
        VolumeSegmenter(Scaled(), num_classes=3)
    with pytest.raises(ValueError, match=r"window=\(20, 20\): accepted are multiples of \(16, 16\)"):
        VolumeSegmenter(NETWORKS["attention 2-D"](), window=20)
    for wrong in (
        dict(overlap=1.0),
        dict(weighting="flat"),
        dict(window_batch=0),
        dict(axis=3),
        dict(mirror_axes=(3,)),
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            VolumeSegmenter(Scaled(), **wrong)


def test_a_loss_that_is_no_number_names_the_cases():
    model = VolumeSegmenter(Scaled(float("nan")), loss=voxel_cross_entropy)
    labels = [sample(torch.zeros(4, 4, dtype=torch.long), c) for c in ("liver_1", "liver_7")]
    with pytest.raises(FloatingPointError, match="loss_seg=nan; the batch has the cases liver_1, liver_7"):
        model(torch.randn(2, 1, 4, 4), labels, mode="loss")


def test_preprocessor():
    whole = VolumePreprocessor(mean=(1.0, 2.0), std=(2.0, 4.0))
    found = whole({"inputs": [torch.full((2, 3, 3, 3), 5.0)]})["inputs"]
    assert found.shape == (1, 2, 3, 3, 3)
    assert torch.equal(found[0, :, 0, 0, 0], torch.tensor([2.0, 0.75]))
    plain = VolumePreprocessor()
    sizes = [torch.zeros(1, 4, 4, dtype=torch.int16), torch.zeros(1, 4, 5, dtype=torch.int16)]
    found = plain({"inputs": sizes})["inputs"]
    assert isinstance(found, list)
    assert found[0].dtype == torch.float32
    with pytest.raises(ValueError, match="patch_size"):
        plain({"inputs": sizes}, True)
    with pytest.raises(ValueError, match="both or neither"):
        VolumePreprocessor(mean=1.0)
    with pytest.raises(ValueError, match="positive deviations"):
        VolumePreprocessor(mean=1.0, std=0.0)


def test_half_precision_stays_finite():
    """Of 2-D networks; PyTorch's Conv3d on CPUs is left in float32 (docs/medical_training.md)."""
    model = VolumeSegmenter(NETWORKS["wau 2-D"]())
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(**model.data_preprocessor(batch(2), True), mode="loss")
    sum(losses.values()).backward()
    assert all(v.dtype == torch.float32 for v in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert np.isfinite(float(sum(v.detach() for v in losses.values())))
