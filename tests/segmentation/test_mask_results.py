"""Semantic, instance and panoptic results of classified masks: transformers' where it agrees with the papers, and the
papers' rules written down pixel by pixel."""

import types

import pytest
import torch
from torch.nn import functional as F

from zoo.segmentation.geometry import ImageSize
from zoo.segmentation.mask2former import semantic_scores
from zoo.segmentation.mask_postprocess import CHUNK, mask_postprocess

QUERIES, CLASSES = 21, 4
assert QUERIES > CHUNK  # so that chunks are joined


@pytest.fixture(scope="module")
def outputs():
    g = torch.Generator().manual_seed(0)
    low = torch.randn(2, QUERIES, 6, 6, generator=g) * 6  # blobs, so that masks have some size
    return {
        "class_logits": torch.randn(2, QUERIES, CLASSES + 1, generator=g) * 3,
        "mask_logits": F.interpolate(low, size=(24, 24), mode="bilinear"),
    }


def square(side=384):
    """transformers enlarges every image to 384 x 384 first."""
    return [ImageSize((side, side), (side, side), (side, side))] * 2


def theirs(outputs):
    return types.SimpleNamespace(
        class_queries_logits=outputs["class_logits"], masks_queries_logits=outputs["mask_logits"]
    )


@pytest.fixture(scope="module")
def processor():
    return pytest.importorskip("transformers").Mask2FormerImageProcessor()


def test_semantic_is_transformers(outputs, processor):
    expected = processor.post_process_semantic_segmentation(theirs(outputs), [(384, 384)] * 2)
    found = mask_postprocess(outputs, square(), tasks=["sem_seg"])
    for a, b in zip(found, expected):
        assert a.keys() == {"sem_seg"}
        assert a["sem_seg"].dtype == torch.int64
        assert (a["sem_seg"] == b).float().mean() > 0.9999  # two classes may tie
        assert len(b.unique()) > 2


def test_semantic_at_another_size(outputs, processor):
    size = ImageSize((384, 384), (384, 384), (301, 222))
    expected = processor.post_process_semantic_segmentation(theirs(outputs), [(301, 222)] * 2)
    found = mask_postprocess(outputs, [size] * 2, tasks=["sem_seg"])
    for a, b in zip(found, expected):
        assert a["sem_seg"].shape == (301, 222)
        assert (a["sem_seg"] == b).float().mean() > 0.999


def test_instances_are_transformers(outputs, processor):
    expected = processor.post_process_instance_segmentation(
        theirs(outputs), threshold=0.0, target_sizes=[(384, 384)] * 2, return_binary_maps=True
    )
    found = mask_postprocess(outputs, square(), tasks=["instances"], topk=QUERIES)
    for a, b in zip(found, expected):
        ours, its = a["instances"], b["segments_info"]
        assert len(its) == len(ours["scores"]) > 10
        mine = sorted(zip(ours["scores"].tolist(), ours["labels"].tolist(), ours["masks"]), key=lambda x: x[:2])
        other = sorted(
            zip([s["score"] for s in its], [s["label_id"] for s in its], b["segmentation"]), key=lambda x: x[:2]
        )
        for (s, c, m), (t, d, n) in zip(mine, other):
            assert s == pytest.approx(t, abs=1e-5)
            assert c == d
            assert torch.equal(m, n.bool())


def test_panoptic_is_transformers_where_masks_are_sharp(processor):
    """Scores near 1 and masks that do not overlap: there its rules and the papers' are the same."""
    ids = torch.zeros(24, 24, dtype=torch.int64)
    ids[:12], ids[12:, :8], ids[12:, 8:16], ids[18:, 20:] = 1, 2, 3, 4
    masks = torch.full((1, QUERIES, 24, 24), -30.0)
    classes = torch.full((1, QUERIES, CLASSES + 1), -30.0)
    classes[..., CLASSES] = 30.0
    labels = {1: 0, 2: 1, 3: 1, 4: 0}  # class 0 is stuff: 1 and 4 are joined
    for k, label in labels.items():
        masks[0, 3 * k, ids == k] = 30.0
        classes[0, 3 * k, CLASSES], classes[0, 3 * k, label] = -30.0, 30.0
    outputs = {"class_logits": classes, "mask_logits": masks}
    (expected,) = processor.post_process_panoptic_segmentation(
        theirs(outputs), label_ids_to_fuse={0}, target_sizes=[(384, 384)]
    )
    (found,) = mask_postprocess(outputs, square()[:1], tasks=["panoptic"], thing_classes=[1, 2, 3])
    found = found["panoptic"]
    # transformers leaves no void: it gives every pixel to the largest product, however small; compare where one is.
    inside = (F.interpolate(masks, size=(384, 384), mode="bilinear")[0] > 0).any(0)
    assert torch.equal(found["ids"][inside], expected["segmentation"][inside].int())
    assert (found["ids"][~inside] == 0).all()
    assert [(s["id"], s["label"], s["is_thing"]) for s in found["segments"]] == [
        (1, 0, False),
        (2, 1, True),
        (3, 1, True),
    ]
    assert inside.float().mean() < 0.9


def by_the_papers_rules(classes, masks, object_threshold, overlap_threshold, things):
    """MaskFormer's section 3.4, pixel by pixel."""
    p = classes.softmax(-1)
    kept = [q for q in range(len(p)) if p[q].argmax() < CLASSES and p[q].max() > object_threshold]
    probs = masks.sigmoid()
    height, width = masks.shape[1:]
    ids = torch.zeros(height, width, dtype=torch.int32)
    owner = torch.full((height, width), -1)
    for y in range(height):
        for x in range(width):
            owner[y, x] = max(kept, key=lambda q: (float(p[q].max() * probs[q, y, x]), -q))
    segments, joined = [], {}
    for q in kept:
        won, whole = owner == q, probs[q] >= 0.5
        mask = won & whole
        if not mask.any() or won.sum() / whole.sum() < overlap_threshold:
            continue
        label = int(p[q].argmax())
        if label not in things and label in joined:
            ids[mask] = joined[label]
            continue
        segments.append((len(segments) + 1, label))
        joined[label] = len(segments)
        ids[mask] = len(segments)
    return ids, segments


@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.8])
def test_panoptic_follows_the_papers_rules(outputs, overlap):
    things = [1, 3]
    size = ImageSize((24, 24), (24, 24), (24, 24))
    found = mask_postprocess(outputs, [size] * 2, ["panoptic"], things, object_threshold=0.5, overlap_threshold=overlap)
    for i in range(2):
        expected, segments = by_the_papers_rules(
            outputs["class_logits"][i], outputs["mask_logits"][i], 0.5, overlap, things
        )
        assert torch.equal(found[i]["panoptic"]["ids"], expected)
        assert [(s["id"], s["label"]) for s in found[i]["panoptic"]["segments"]] == segments
        present = set(expected.unique().tolist()) - {0}
        assert present == {s[0] for s in segments}
    assert overlap > 0 or len(segments) > 1


def test_padding_is_cut_off_and_the_original_size_restored():
    masks = torch.full((1, 2, 8, 8), -9.0)
    masks[0, 0, :4, :4] = 9.0  # the upper left quarter of the padded image
    classes = torch.tensor([[[9.0, 0, 0], [0, 0, 9.0]]])
    size = ImageSize((32, 32), (32, 16), (64, 32))  # the right half is padding
    (found,) = mask_postprocess({"class_logits": classes, "mask_logits": masks}, [size])
    mask = found["instances"]["masks"][0]
    assert mask.shape == found["sem_seg"].shape == found["panoptic"]["ids"].shape == (64, 32)
    expected = torch.zeros(64, 32, dtype=torch.bool)
    expected[:32] = True
    assert (mask == expected).float().mean() > 0.97
    assert torch.equal(found["panoptic"]["ids"].bool(), mask)


def test_nothing_is_found_where_nothing_is():
    classes = torch.tensor([[[0.0, 0.0, 9.0]] * 3])
    masks = torch.full((1, 3, 4, 4), -5.0)
    size = ImageSize((1, 1), (1, 1), (1, 1))
    (found,) = mask_postprocess({"class_logits": classes, "mask_logits": masks}, [size], thing_classes=[])
    assert found["panoptic"] == {"ids": found["panoptic"]["ids"], "segments": []}
    assert found["panoptic"]["ids"].tolist() == [[0]]
    assert found["instances"]["masks"].shape == (0, 1, 1)
    assert len(found["instances"]["labels"]) == 0


def test_semantic_scores_by_their_definition(outputs):
    p, m = outputs["class_logits"].softmax(-1), outputs["mask_logits"].sigmoid()
    expected = sum(p[:, q, :CLASSES, None, None] * m[:, q, None] for q in range(QUERIES))
    assert torch.allclose(semantic_scores(outputs), expected, atol=1e-5)


def test_arguments_are_checked(outputs):
    with pytest.raises(ValueError, match="semantic"):
        mask_postprocess(outputs, square(), tasks=["semantic"])
    with pytest.raises(ValueError, match="classes 0 to 3"):
        mask_postprocess(outputs, square(), thing_classes=[1, 4])
