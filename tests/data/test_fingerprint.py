"""Facts of a data set of volumes, and the plan that follows from them."""

import math

import nibabel as nib
import numpy as np
import pytest

from zoo.data.fingerprint import CaseFacts, Fingerprint, fingerprint, plan_levels, plan_patch
from zoo.data.phantom import PHANTOM_CLASSES, write_phantom
from zoo.data.volume_dataset import VolumeDataset
from zoo.data.volume_folder import find_volume_data


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    root = tmp_path_factory.mktemp("phantom")
    write_phantom(root, 6, (28, 24, 16))
    return root


def test_facts_are_those_of_the_files(phantom):
    seen = []
    found = fingerprint(phantom, workers=2, progress=lambda *a: seen.append(a))
    assert seen[-1] == (6, 6)
    assert found.classes == list(PHANTOM_CLASSES)
    values = []
    for case, facts in zip(find_volume_data(phantom).cases, found.cases, strict=True):
        image, label = nib.load(case.images[0]), np.asarray(nib.load(case.label).dataobj)
        assert facts.name == case.name
        assert facts.shape == (28, 24, 16)
        assert facts.spacing == pytest.approx(image.header.get_zooms())
        assert facts.orientation == "LPS"
        voxel = math.prod(float(z) for z in image.header.get_zooms())
        for k, name in enumerate(PHANTOM_CLASSES[1:], 1):
            assert facts.volumes[name] == pytest.approx((label == k).sum() * voxel, rel=1e-5)
        values.append(image.get_fdata()[label > 0])
    values = np.concatenate(values)
    numbers = found.intensities[0]
    assert numbers["mean"] == pytest.approx(values.mean())
    assert numbers["std"] == pytest.approx(values.std())
    assert (numbers["min"], numbers["max"], numbers["median"]) == (values.min(), values.max(), np.median(values))
    assert [numbers["percentile_00_5"], numbers["percentile_99_5"]] == pytest.approx(
        np.percentile(values, [0.5, 99.5]).tolist()
    )
    assert found.class_volumes()["liver"]["cases"] == 6
    assert found.class_volumes()["liver"]["max"] == pytest.approx(max(c.volumes["liver"] for c in found.cases) / 1000)


def test_there_and_back_through_json(phantom, tmp_path):
    found = fingerprint(phantom, cases=find_volume_data(phantom).cases[:3])
    assert len(found.cases) == 3
    again = Fingerprint.load(found.save(tmp_path / "f.json"))
    assert again == found
    assert again.plan() == found.plan()
    with pytest.raises(ValueError, match="no fingerprint"):
        Fingerprint.from_dict({"cases": []})
    with pytest.raises(ValueError, match="no cases with labels"):
        fingerprint(phantom, cases=[])


def test_a_plan_trains(phantom):
    plan = fingerprint(phantom).plan(max_voxels=2 * 16**3)
    data = VolumeDataset(phantom, split="all", on_missing_class="warn", **plan.dataset_arguments())
    x = data[0]["inputs"]
    assert x.shape[1:] == plan.patch_size
    assert np.prod(plan.patch_size) <= 16**3
    assert plan.normalisation[0]["kind"] == "ct"
    assert plan.to_dict()["strides"][0] == [1, 1, 1]
    flat = fingerprint(phantom).plan(axis="auto", max_voxels=8 * 16**2)
    assert flat.axis == 2
    assert len(flat.patch_size) == 2
    slices = VolumeDataset(phantom, split="all", on_missing_class="warn", **flat.dataset_arguments())
    assert slices[0]["inputs"].shape[1:] == flat.patch_size


def facts(shape, spacing, orientation="RAS", count=5):
    cases = [CaseFacts(f"c{i}", shape, spacing, orientation, {"a": 10.0}) for i in range(count)]
    return Fingerprint(cases, ["background", "a"], ["MRI"], [dict.fromkeys(("mean", "std"), 1.0)])


def test_spacing_is_the_median_or_finer_where_slices_are_thick():
    mixed = facts((200, 200, 100), (1.0, 1.0, 2.0))
    for case, z in zip(mixed.cases, (1.0, 1.5, 2.0, 2.5, 4.0)):
        case.spacing = (1.0, 1.0, z)
    assert mixed.target_spacing() == (1, 1, 2)
    thick = facts((200, 200, 20), (1.0, 1.0, 6.0))
    for case, z in zip(thick.cases, (4.0, 5.0, 6.0, 7.0, 8.0)):
        case.spacing = (1.0, 1.0, z)
    assert thick.target_spacing() == pytest.approx((1, 1, np.percentile([4, 5, 6, 7, 8], 10)))
    assert thick.plan(spacing=(1, 1, 3)).spacing == (1, 1, 3)
    assert thick.plan(spacing=(1, 1, 3)).shape == (200, 200, 40)


def test_orientations_that_differ_are_turned_before_medians():
    mixed = facts((200, 180, 50), (1.0, 1.0, 3.0))
    mixed.cases[1].orientation, mixed.cases[1].shape, mixed.cases[1].spacing = "SLP", (50, 200, 180), (3.0, 1.0, 1.0)
    plan = mixed.plan()
    assert plan.orientation == "RAS"
    assert plan.shape == (200, 180, 50)
    assert plan.spacing == (1, 1, 3)
    assert facts((200, 180, 50), (1.0, 1.0, 3.0)).plan().orientation is None


def test_normalisation_by_the_channels_name():
    assert facts((9, 9, 9), (1.0, 1.0, 1.0)).plan().normalisation == [{"kind": "zscore", "nonzero": False}]


@pytest.mark.parametrize(
    "spacing, shape, patch, strides",
    [
        # what nnU-Net's article describes: isotropic data get cubes that are halved to 4 voxels ...
        ((1, 1, 1), (512, 512, 500), [128, 128, 128], [(1, 1, 1)] + [(2, 2, 2)] * 5),
        # ... thick slices keep their axis until the others have caught up, and its kernels are flat until then
        (
            (1.5, 1.5, 10),
            (230, 230, 10),
            [256, 256, 10],
            [(1, 1, 1), (2, 2, 1), (2, 2, 1), (2, 2, 2)] + [(2, 2, 1)] * 3,
        ),
        # ... and small cases are taken whole
        ((1, 1, 1), (36, 50, 35), [40, 56, 40], [(1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2)]),
    ],
)
def test_patches_and_levels(spacing, shape, patch, strides):
    found, levels, kernels = plan_patch(spacing, shape, 128**3)
    assert found == patch
    assert levels == strides
    assert len(kernels) == len(levels)
    if spacing[2] > 2:
        assert kernels[:4] == [(3, 3, 1), (3, 3, 1), (3, 3, 3), (3, 3, 3)]


@pytest.mark.parametrize("seed", range(30))
def test_every_plan_holds_what_it_promises(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 4))
    spacing = rng.uniform(0.3, 8, n).tolist()
    shape = rng.integers(4, 400, n).tolist()
    budget = int(rng.integers(12**n, 100**n))
    patch, strides, kernels = plan_patch(spacing, shape, budget)
    assert np.prod(patch) <= budget
    total = np.prod(strides, axis=0)
    assert all(p % t == 0 for p, t in zip(patch, total))
    assert all(p // t >= 4 or t == 1 for p, t in zip(patch, total))
    assert all(p < 2 * s + t for p, s, t in zip(patch, shape, total))
    assert strides[0] == (1,) * n
    assert all(set(s) <= {1, 2} and max(s) == 2 for s in strides[1:])
    assert {k for kernel in kernels for k in kernel} <= {1, 3}
    assert plan_levels(spacing, patch)[0] == strides


@pytest.mark.parametrize(
    "options, message",
    [(dict(axis=3), "axis=3"), (dict(max_voxels=10), "max_voxels=10"), (dict(spacing=(1, 1)), "three numbers"),
     (dict(min_map=0), "min_map=0")],
)  # fmt: skip
def test_plans_check_their_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        facts((9, 9, 9), (1.0, 1.0, 1.0)).plan(**options)
