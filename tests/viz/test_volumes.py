"""Pictures of label maps: which way round a volume lies, what is drawn where, and what is refused."""

import numpy as np
import pytest
from PIL import Image

from zoo.metrics.volume import ClassScore
from zoo.viz.figures import COLOURS
from zoo.viz.volumes import draw_boxplot, draw_overlay, save_boxplot, save_overlay, to_ras

CLASSES = ("background", "liver", "spleen")


def colour(k):
    return [int(COLOURS[k - 1][i : i + 2], 16) for i in (1, 3, 5)]


def areas(axes):
    """The label picture RGBA of a plane."""
    return np.asarray(axes.images[1].get_array())


def volume(affine_signs=(1, 1, 1)):
    """A volume with one labelled voxel at the right, front, top of the patient, stored along any directions."""
    labels = np.zeros((8, 10, 12), np.uint8)
    at = [n - 2 if s > 0 else 1 for n, s in zip(labels.shape, affine_signs)]
    labels[tuple(at)] = 1
    affine = np.diag([*(s * mm for s, mm in zip(affine_signs, (1.0, 2.0, 3.0))), 1.0])
    return np.random.default_rng(0).normal(size=labels.shape).astype(np.float32), labels, affine


@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, -1, 1), (1, -1, -1)])
def test_planes_lie_as_radiologists_look_at_them(signs):
    image, labels, affine = volume(signs)
    axial, coronal, sagittal = draw_overlay(image, labels, affine=affine, classes=CLASSES).axes
    assert [a.get_title() for a in (axial, coronal, sagittal)] == ["axial", "coronal", "sagittal"]
    # the patient's right at the left, the front at the top (axial) or left (sagittal), the head at the top
    places = [tuple(np.argwhere(areas(a)[..., 3])[0]) for a in (axial, coronal, sagittal)]
    assert places == [(1, 1), (1, 1), (1, 1)]
    assert [areas(a).shape[:2] for a in (axial, coronal, sagittal)] == [(10, 8), (12, 8), (12, 10)]
    assert [[t.get_text() for t in a.texts] for a in (axial, coronal, sagittal)] == [
        list(w) for w in ("RLPA", "RLIS", "APIS")
    ]
    assert [a.get_aspect() for a in (axial, coronal, sagittal)] == [2.0, 3.0, 1.5]


def test_axes_in_another_order():
    image, labels, affine = volume()
    swapped = affine[:, [2, 0, 1, 3]]  # the array's first axis goes up, the second to the right, the third to the front
    found = draw_overlay(image.transpose(2, 0, 1), labels.transpose(2, 0, 1), affine=swapped).axes
    for a, b in zip(found, draw_overlay(image, labels, affine=affine).axes):
        assert np.array_equal(areas(a), areas(b))
        assert np.array_equal(a.images[0].get_array(), b.images[0].get_array())
        assert a.get_aspect() == b.get_aspect()
    assert np.array_equal(to_ras(image.transpose(2, 0, 1), swapped), image)


def test_directions_are_nibabels():
    orientations = pytest.importorskip("nibabel.orientations")
    rng = np.random.default_rng(0)
    array = rng.normal(size=(3, 4, 5))
    for _ in range(20):
        affine = np.eye(4)
        axes = np.eye(3)[rng.permutation(3)] * rng.choice([-1, 1], 3)
        tilt = np.linalg.qr(np.eye(3) + rng.uniform(-0.2, 0.2, (3, 3)))[0]
        affine[:3, :3] = tilt @ axes * rng.uniform(0.5, 3, 3)
        expected = orientations.apply_orientation(array, orientations.io_orientation(affine))
        assert np.array_equal(to_ras(array, affine), expected)


def test_areas_have_their_class_colour_and_truth_is_a_line():
    image = np.zeros((6, 7, 8), np.float32)
    truth, prediction = np.zeros(image.shape, np.uint8), np.zeros(image.shape, np.uint8)
    truth[1:4, 1:4, 1:4], prediction[2:5, 2:5, 2:5] = 1, 2
    figure = draw_overlay(image, prediction, truth, classes=CLASSES, at=(3, 3, 3), title="case")
    for ax in figure.axes:
        shown = areas(ax)
        assert (shown[..., 3] > 0).sum() == 9
        assert {tuple(c) for c in shown[shown[..., 3] > 0][:, :3]} == {tuple(colour(2))}
        lines = [c for c in ax.collections if len(c.get_paths()[0].vertices)]
        assert len(lines) == 1
    texts = [t.get_text() for legend in figure.legends for t in legend.get_texts()]
    assert texts == ["liver", "spleen", "area: prediction", "line: truth"]
    alone = draw_overlay(image, truth=truth)
    assert all(len(a.images) == 1 for a in alone.axes)
    assert not draw_overlay(image).legends


def test_planes_go_where_the_labels_are():
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[3:6, 10:14, 17], labels[4, 11, 15:19] = 1, 2
    image = np.zeros(labels.shape, np.float32)
    for ax in draw_overlay(image, labels).axes:
        shown = areas(ax)
        assert {tuple(c) for c in shown[shown[..., 3] > 0][:, :3]} == {tuple(colour(1)), tuple(colour(2))}


def test_images_of_two_dimensions_and_files(tmp_path):
    image = np.random.default_rng(0).normal(size=(30, 40))
    labels = (image > 1).astype(np.int64)
    path = save_overlay(tmp_path / "a" / "x.png", image, labels, spacing=(2.0, 1.0))
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 100
    (ax,) = draw_overlay(image, labels, spacing=(2.0, 1.0)).axes
    assert ax.get_aspect() == 2.0
    assert np.array_equal(areas(ax)[..., 3] > 0, labels > 0)


def test_images_without_contrast_are_drawn():
    image = np.full((4, 4, 4), np.nan, np.float32)
    assert draw_overlay(image).axes[0].images[0].get_clim() == (0.0, 1.0)
    assert draw_overlay(np.ones((4, 4, 4))).axes[0].images[0].get_clim() == (1.0, 2.0)
    assert draw_overlay(np.ones((4, 4, 4)), window=(-5, 5)).axes[0].images[0].get_clim() == (-5, 5)


def test_what_cannot_be_drawn():
    image = np.zeros((4, 5, 6))
    with pytest.raises(ValueError, match="truth has shape"):
        draw_overlay(image, truth=np.zeros((4, 5, 5), int))
    with pytest.raises(ValueError, match="no voxel"):
        draw_overlay(image, at=(4, 0, 0))
    with pytest.raises(ValueError, match="accepted are"):
        draw_overlay(np.zeros((2, 4, 5, 6)))
    with pytest.raises(ValueError, match="no scores"):
        draw_boxplot([])


def test_box_plot_leaves_out_what_is_not_finite(tmp_path):
    inf, nan = float("inf"), float("nan")
    scores = [ClassScore(f"c{i}", 1, "liver", d, h, h / 2, 1.0, 1.5) for i, (d, h) in
              enumerate(((0.9, 2.0), (0.8, 3.0), (0.0, inf)))]  # fmt: skip
    scores.append(ClassScore("c3", 1, "liver", nan, nan, nan, 0.0, 0.0))
    dice, hd95, assd, error = draw_boxplot(scores).axes
    labels = [[t.get_text() for t in a.get_xticklabels()] for a in (dice, hd95, assd, error)]
    assert labels == [["liver\n3"], ["liver\n2"], ["liver\n2"], ["liver\n3"]]
    assert np.allclose(hd95.collections[0].get_offsets()[:, 1], [2.0, 3.0])
    assert np.allclose(error.collections[0].get_offsets()[:, 1], 0.5)
    with Image.open(save_boxplot(scores, tmp_path / "b.png")) as picture:
        assert picture.format == "PNG"
