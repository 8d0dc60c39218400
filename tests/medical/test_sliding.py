"""Windows over volumes: against MONAI's, against a plain sum over windows, and what is held in memory."""

import itertools

import pytest
import torch
from torch import nn

from zoo.medical.sliding import sliding_window, window_starts


def network(dims: int, classes: int = 3, channels: int = 2) -> nn.Module:
    torch.manual_seed(0)
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    return nn.Sequential(conv(channels, 5, 3, padding=1), nn.Tanh(), conv(5, classes, 3, padding=1)).eval()


def bell(window):
    """The Gaussian of a window as a full map, sigma an eighth of each side."""
    out = torch.ones(window, dtype=torch.float64)
    for a, w in enumerate(window):
        x = torch.arange(w, dtype=torch.float64) - (w - 1) / 2
        out = out * torch.exp(-0.5 * (x / (w / 8)) ** 2).view([-1 if i == a else 1 for i in range(len(window))])
    return out


def plain(net, volume, window, overlap, weight):
    """Weighted mean over all windows, everything in float64 and in full size."""
    size = volume.shape[2:]
    total = None
    norm = torch.zeros(size, dtype=torch.float64)
    for starts in itertools.product(*(window_starts(s, w, overlap) for s, w in zip(size, window))):
        at = tuple(slice(b, b + w) for b, w in zip(starts, window))
        with torch.no_grad():
            y = net(volume[(slice(None), slice(None), *at)])
        total = torch.zeros(volume.shape[0], y.shape[1], *size, dtype=torch.float64) if total is None else total
        total[(slice(None), slice(None), *at)] += y.double() * weight
        norm[at] += weight
    return total / norm


@pytest.mark.parametrize("weighting", ["gaussian", "constant"])
@pytest.mark.parametrize("size, window, overlap", [
    ((17, 12, 9), (8, 6, 9), 0.5), ((9, 20, 11), (8, 7, 5), 0.75), ((8, 8, 8), (4, 4, 4), 0.0),
    ((30, 21), (8, 16), 0.6), ((5, 33, 7), (5, 8, 3), 0.3), ((40,), (16,), 0.5),
])  # fmt: skip
def test_is_the_weighted_mean_of_the_windows(size, window, overlap, weighting):
    net = network(len(size)).double()
    volume = torch.randn(2, 2, *size, dtype=torch.float64)
    weight = bell(window) if weighting == "gaussian" else torch.ones(window, dtype=torch.float64)
    expected = plain(net, volume, window, overlap, weight)
    found = sliding_window(net, volume, window, overlap=overlap, weighting=weighting, batch=3)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    probabilities = sliding_window(net, volume, window, overlap=overlap, weighting=weighting, output="probabilities")
    torch.testing.assert_close(probabilities, expected.softmax(1), rtol=1e-10, atol=1e-10)
    labels = sliding_window(net, volume, window, overlap=overlap, weighting=weighting, output="labels", batch=2)
    assert labels.dtype == torch.uint8
    assert torch.equal(labels.long(), expected.argmax(1))


@pytest.mark.parametrize("output", ["logits", "probabilities"])
def test_a_network_on_another_device_than_the_volume(output):
    """The slab is then on the network's device, and finished slices are copied: "cpu:0" is told apart from "cpu"."""
    from zoo.medical import sliding

    net = network(3)
    volume = torch.randn(2, 2, 17, 12, 9)
    expected = sliding_window(net, volume, (8, 6, 9), overlap=0.6, output=output)
    made = sliding._Slab.for_volume.__func__

    def apart(cls, volume, classes, axes, stream, kind, dtype, device):
        slab = made(cls, volume, classes, axes, stream, kind, dtype, torch.device("cpu", 0))
        assert not slab.inside
        assert slab.sums.shape[1 + stream] == (8, 6, 9)[stream]
        return slab

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sliding._Slab, "for_volume", classmethod(apart))
        found = sliding_window(net, volume, (8, 6, 9), overlap=0.6, output=output)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("overlap", [0.25, 0.5, 0.7])
@pytest.mark.parametrize(
    "size, window", [((20, 33, 14), (16, 8, 10)), ((10, 5, 24), (8, 8, 8)), ((3, 4, 5), (8, 8, 9))]
)
def test_equals_monai(size, window, overlap):
    """MONAI's own function with the same Gaussian; volumes that are smaller than the window are padded alike."""
    inferers = pytest.importorskip("monai.inferers")
    net = network(3)
    volume = torch.randn(2, 2, *size)
    with torch.no_grad():
        expected = inferers.sliding_window_inference(
            volume, window, 2, net, overlap=overlap, roi_weight_map=bell(window).float(), cval=0.5, mode="gaussian"
        )
    found = sliding_window(net, volume, window, overlap=overlap, batch=2, padding_value=0.5)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_mirrored_copies_are_averaged():
    net = network(3)
    volume = torch.randn(1, 2, 8, 9, 10)
    with torch.no_grad():
        copies = [net(volume.flip(f)).flip(f) for f in ([], [2], [4], [2, 4])]
    found = sliding_window(net, volume, (8, 9, 10), mirror_axes=(0, 2))
    torch.testing.assert_close(found, sum(copies) / 4)
    assert (found - copies[0]).abs().max() > 1e-3


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_along_an_axis(axis):
    net = network(2)
    volume = torch.randn(2, 2, 7, 9, 11)
    with torch.no_grad():
        slices = [net(volume.select(axis + 2, i)) for i in range(volume.shape[axis + 2])]
    expected = torch.stack(slices, axis + 2)
    torch.testing.assert_close(sliding_window(net, volume, None, axis=axis, batch=4), expected)
    labels = sliding_window(net, volume, [None, -1], axis=axis, batch=4, output="labels")
    assert torch.equal(labels.long(), expected.argmax(1))
    rest = tuple(s for a, s in enumerate((7, 9, 11)) if a != axis)
    one = sliding_window(net, volume, (4, 4), axis=axis, overlap=0.5)
    alone = sliding_window(net, volume.select(axis + 2, 3), (4, 4), overlap=0.5)
    assert alone.shape[2:] == rest
    torch.testing.assert_close(one.select(axis + 2, 3), alone)


def test_slices_are_mirrored_along_the_volumes_axes():
    net = network(2)
    volume = torch.randn(1, 2, 7, 9, 11)
    flat = sliding_window(net, volume, None, axis=1)
    back = sliding_window(net, volume.flip(4), None, axis=1).flip(4)
    found = sliding_window(net, volume, None, axis=1, mirror_axes=(2,))
    torch.testing.assert_close(found, (flat + back) / 2)
    assert (flat - back).abs().max() > 1e-3


def test_one_channel_is_a_sigmoid():
    net = network(2, classes=1)
    volume = torch.randn(1, 2, 12, 12)
    logits = sliding_window(net, volume, 8)
    torch.testing.assert_close(sliding_window(net, volume, 8, output="probabilities"), logits.sigmoid())
    assert torch.equal(sliding_window(net, volume, 8, output="labels"), (logits[:, 0] > 0).to(torch.uint8))


def test_many_classes_do_not_overflow_the_labels():
    def classes(x):
        return torch.stack([(x[:, 0] * 0 + k) for k in range(300)], 1)

    labels = sliding_window(classes, torch.zeros(1, 1, 4, 4), 4, output="labels")
    assert labels.dtype == torch.int16
    assert (labels == 299).all()


def test_progress_counts_windows():
    seen = []
    sliding_window(network(3), torch.randn(1, 2, 8, 8, 8), 4, overlap=0.5, batch=4, progress=lambda *n: seen.append(n))
    assert seen == [(n, 27) for n in (4, 8, 12, 16, 20, 24, 27)]


def test_half_precision_outputs_are_summed_in_float32():
    net = network(3)
    volume = torch.randn(1, 2, 12, 12, 12)
    found = sliding_window(lambda x: net(x).bfloat16(), volume, 8, mirror_axes=(0, 1))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, sliding_window(net, volume, 8, mirror_axes=(0, 1)), rtol=0, atol=0.02)


def test_labels_never_need_the_logits_of_the_volume():
    """The largest tensor that is alive while labels are made is a slab of the window's thickness."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = [0]

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest[0] = max(largest[0], out.untyped_storage().nbytes())
            return out

    volume = torch.zeros(1, 1, 128, 16, 16)
    with Watch():
        sliding_window(lambda x: x.expand(-1, 6, -1, -1, -1) * 1, volume, (8, 16, 16), batch=2, output="labels")
    volume_bytes, slab = volume.nbytes, 6 * 8 * 16 * 16 * 4
    assert largest[0] == max(volume_bytes, 2 * slab) < 6 * volume_bytes


@pytest.mark.parametrize("change, message", [
    (dict(window=(4, 4)), "window=.*3 sizes"), (dict(window=0), "window=0"), (dict(overlap=1.0), "overlap=1.0"),
    (dict(overlap=-0.1), "overlap"), (dict(weighting="linear"), "gaussian, constant"), (dict(batch=0), "batch=0"),
    (dict(mirror_axes=(3,)), "mirror_axes"), (dict(mirror_axes=(1, 1)), "mirror_axes"), (dict(axis=3), "axis=3"),
    (dict(axis=0, window=(4, 4), mirror_axes=(0,)), "slices are taken across"), (dict(output="mask"), "labels"),
])  # fmt: skip
def test_arguments_out_of_range(change, message):
    with pytest.raises(ValueError, match=message):
        sliding_window(network(3), torch.zeros(1, 2, 8, 8, 8), **{"window": 4, **change})


def test_volumes_and_networks_that_do_not_fit():
    with pytest.raises(TypeError, match="int64"):
        sliding_window(network(3), torch.zeros(1, 2, 8, 8, 8, dtype=torch.int64), 4)
    with pytest.raises(ValueError, match="spatial axes"):
        sliding_window(network(3), torch.zeros(2, 8), 4)
    with pytest.raises(ValueError, match="nothing in it"):
        sliding_window(network(3), torch.zeros(1, 2, 8, 0, 8), 4)
    with pytest.raises(TypeError, match="gave a list"):
        sliding_window(lambda x: [x], torch.zeros(1, 2, 8, 8, 8), 4)
    with pytest.raises(ValueError, match="same sides"):
        sliding_window(lambda x: x[..., ::2], torch.zeros(1, 2, 8, 8, 8), 4)
    with pytest.raises(FloatingPointError, match="not finite"):
        sliding_window(lambda x: x * float("nan"), torch.zeros(1, 2, 8, 8, 8), 4, output="labels")
