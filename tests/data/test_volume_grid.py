"""Axes, spacings and intensities of volumes, against nibabel, scipy, SimpleITK and MONAI."""

import itertools

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from zoo.data.volume_grid import Preparation, axis_codes, reorient, resample, resize, resize_labels
from zoo.data.volume_intensity import check_normalisation, normalise
from zoo.data.volumes import Volume, spacing_of


def affine(codes="LPS", spacing=(0.7, 0.9, 3.0)):
    """An affine whose axes lead to ``codes``."""
    matrix = np.zeros((4, 4))
    for axis, letter in enumerate(codes):
        row = next(i for i, pair in enumerate(("RL", "AP", "SI")) if letter in pair)
        matrix[row, axis] = spacing[axis] * (1 if letter in "RAS" else -1)
    matrix[:, 3] = (11, -22, 33, 1)
    return matrix


def volume(shape=(6, 5, 4), codes="LPS", seed=0):
    data = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return Volume(data, affine(codes), spacing_of(affine(codes)), None, "v")


@pytest.mark.parametrize("codes", ["LPS", "RAS", "SRA", "IPL", "AIR"])
def test_reorientation_moves_no_voxel_in_the_world(codes):
    before = volume(codes=codes)
    assert axis_codes(before.affine) == codes
    after = reorient(before, "RAS")
    assert axis_codes(after.affine) == "RAS"
    expected = nib.as_closest_canonical(nib.Nifti1Image(before.data, before.affine))
    np.testing.assert_array_equal(after.data, expected.get_fdata(dtype=np.float32))
    np.testing.assert_allclose(after.affine, expected.affine, atol=1e-9)
    assert after.spacing == pytest.approx(spacing_of(expected.affine))
    channels = reorient(Volume(np.stack([before.data, -before.data]), before.affine, before.spacing), "RAS")
    np.testing.assert_array_equal(channels.data, np.stack([after.data, -after.data]))


@pytest.mark.parametrize("codes", ["RA", "RRS", "XYZ", "RASL"])
def test_unknown_orientations(codes):
    with pytest.raises(ValueError, match="is unknown; accepted are three letters"):
        reorient(volume(), codes)


def test_resampling_is_that_of_simpleitk():
    before = volume((12, 10, 8))
    after = resample(before, (1.4, 0.6, 2.0))
    assert after.shape == (6, 15, 12)
    image = sitk.GetImageFromArray(before.data.T)
    image.SetSpacing(before.spacing)
    spacing = tuple(n * s / m for n, s, m in zip(before.shape, before.spacing, after.shape))
    assert after.spacing == pytest.approx(spacing)
    grid = sitk.Image(list(after.shape), sitk.sitkFloat32)
    grid.SetSpacing(spacing)
    grid.SetOrigin([(a - b) / 2 for a, b in zip(spacing, before.spacing)])
    expected = sitk.GetArrayFromImage(sitk.Resample(image, grid, sitk.Transform(), sitk.sitkLinear, np.nan)).T
    inside = np.isfinite(expected)
    assert inside.mean() > 0.6
    np.testing.assert_allclose(after.data[inside], expected[inside], atol=1e-5)
    # the corners of the box of all voxels stay where they are
    for corner in ((-0.5, -0.5, -0.5), (0.5, 0.5, 0.5)):
        first = [(n if c > 0 else 0) - 0.5 for c, n in zip(corner, before.shape)]
        second = [(n if c > 0 else 0) - 0.5 for c, n in zip(corner, after.shape)]
        np.testing.assert_allclose(before.affine @ [*first, 1], after.affine @ [*second, 1], atol=1e-9)
    assert resample(before, before.spacing) is before
    with pytest.raises(ValueError, match="three numbers above 0"):
        resample(before, (1, 0, 1))


def test_labels_are_resampled_to_the_class_with_the_greatest_share():
    labels = np.random.default_rng(1).integers(0, 4, (6, 5, 4)).astype(np.uint8)
    shape = (9, 4, 7)
    shares = np.stack([resize((labels == k).astype(np.float32), shape) for k in range(4)])
    out = resize_labels(labels, shape)
    assert out.dtype == np.uint8
    np.testing.assert_array_equal(out, shares.argmax(0))
    doubled = resize_labels(labels.repeat(2, 0).repeat(2, 1).repeat(2, 2), labels.shape)
    np.testing.assert_array_equal(doubled, labels)
    assert set(np.unique(resize_labels(labels * 60, shape))) <= {0, 60, 120, 180}


@pytest.mark.parametrize("orientation", [None, "RAS", "SAR"])
@pytest.mark.parametrize("spacing", [None, (0.7, 1.8, 1.5)])
def test_a_result_comes_back_to_the_grid_of_the_file(orientation, spacing):
    original = volume((12, 16, 10), "PLS")
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in original.shape], indexing="ij")
    labels = ((x + 0.2) ** 2 + (y - 0.1) ** 2 + z**2 < 0.5).astype(np.uint8)
    labels[2:5, :3] = 2
    image = Volume(original.data[None], original.affine, original.spacing)
    preparation = Preparation(spacing, orientation, "zscore")
    prepared = preparation.image(image)
    truth = preparation.label(Volume(labels, original.affine, original.spacing))
    assert truth.shape == prepared.shape
    np.testing.assert_allclose(truth.affine, prepared.affine)
    back = preparation.restore(truth.data, image)
    assert back.shape == original.shape
    if spacing is None:
        np.testing.assert_array_equal(back, labels)
    else:
        assert (back == labels).mean() > 0.9
    scores = preparation.restore(np.stack([truth.data == k for k in range(3)]).astype(np.float32), image)
    assert scores.shape == (3, *original.shape)
    assert (scores.argmax(0) == labels).mean() > 0.9
    copy = Preparation.from_dict(preparation.to_dict(1))
    np.testing.assert_array_equal(copy.image(image).data, prepared.data)


ALL = ["".join(p) for letters in itertools.product("RL", "AP", "SI") for p in itertools.permutations(letters)]


@pytest.mark.parametrize("codes", ALL)
def test_every_orientation_of_a_file_comes_back_exactly(codes):
    shape = (5, 4, 3)
    original = volume(shape, codes)
    labels = np.arange(60).reshape(shape).astype(np.uint8)
    for target in ("RAS", "PIR"):
        preparation = Preparation(orientation=target)
        turned = preparation.label(Volume(labels, original.affine, original.spacing))
        assert axis_codes(turned.affine) == target
        np.testing.assert_array_equal(preparation.restore(turned.data, original), labels)
        scores = np.stack([turned.data, turned.data * 2]).astype(np.float32)
        np.testing.assert_array_equal(preparation.restore(scores, original)[1], labels * 2.0)


def test_normalisations_are_those_of_monai_or_of_numpy():
    from monai import transforms as T

    x = (np.random.default_rng(0).gamma(2, 90, (2, 8, 7, 6)) - 60).astype(np.float32)
    x[:, :2] = 0

    def same(spec, expected):
        got = normalise(x, spec)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, np.asarray(expected), rtol=1e-5, atol=1e-5)

    same(None, x)
    same("zscore", T.NormalizeIntensity(channel_wise=True)(x.copy()))
    same({"kind": "zscore", "nonzero": True}, T.NormalizeIntensity(channel_wise=True, nonzero=True)(x.copy()))
    same(
        {"kind": "window", "level": 50, "width": 120},
        T.ScaleIntensityRange(a_min=-10, a_max=110, b_min=0, b_max=1, clip=True)(x.copy()),
    )
    same(
        {"kind": "percentiles", "low": 2, "high": 95},
        T.ScaleIntensityRangePercentiles(2, 95, 0, 1, clip=True, channel_wise=True)(x.copy()),
    )
    same(
        {"kind": "ct", "lower": -20, "upper": 200, "mean": 70, "std": 30},
        (np.clip(x.astype(np.float64), -20, 200) - 70) / 30,
    )
    both = normalise(x, ["zscore", {"kind": "window", "level": 50, "width": 120}])
    np.testing.assert_array_equal(both[0], normalise(x, "zscore")[0])
    assert both[1].min() == 0
    assert both[1].max() == 1


def test_a_constant_volume_becomes_zero():
    x = np.full((1, 4, 4, 4), 1e4, np.float32)
    for spec in ("zscore", "percentiles"):
        assert (normalise(x, spec) == 0).all()


@pytest.mark.parametrize(
    "spec, message",
    [
        ("minmax", "'minmax' is unknown; accepted are 'none', 'zscore'"),
        ({"kind": "window", "level": 40}, "needs width"),
        ({"kind": "window", "level": 40, "width": 0}, "width=0 must be above 0"),
        ({"kind": "ct", "lower": 5, "upper": 5, "mean": 0, "std": 1}, "lower=5 must be below upper=5"),
        ({"kind": "zscore", "nonzeros": True}, "no argument 'nonzeros'"),
        (["zscore"], r"1 entries for 2 channel\(s\)"),
    ],
)
def test_what_is_no_normalisation(spec, message):
    with pytest.raises(ValueError, match=message):
        check_normalisation(spec, 2)
