import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

from zoo.detection.boxes import cxcywh_to_xyxy
from zoo.detection.criterion import SetCriterion
from zoo.detection.denoising import contrastive_denoising, group_mask
from zoo.detection.dino_criterion import DINOCriterion, positives
from zoo.detection.matcher import HungarianMatcher


def predictions(batch: int = 2, queries: int = 6, classes: int = 3, seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        "pred_logits": torch.randn(batch, queries, classes, generator=g),
        "pred_boxes": torch.rand(batch, queries, 4, generator=g) * 0.5 + 0.1,
    }


def objects(*counts: int, classes: int = 3) -> list[dict[str, torch.Tensor]]:
    g = torch.Generator().manual_seed(5)
    return [
        {
            "labels": torch.randint(0, classes, (n,), generator=g),
            "boxes": torch.rand(n, 4, generator=g) * 0.5 + 0.1,
        }
        for n in counts
    ]


def test_losses_equal_torchvisions_on_the_matched_pairs():
    outputs, targets = predictions(), objects(2, 3)
    criterion = SetCriterion(3, HungarianMatcher())
    losses = criterion(outputs, targets)
    pairs = criterion.matcher(outputs, targets)
    one_hot = torch.zeros(2, 6, 3)
    found, wanted = [], []
    for i, (q, t) in enumerate(pairs):
        one_hot[i, q, targets[i]["labels"][t]] = 1
        found.append(outputs["pred_boxes"][i, q])
        wanted.append(targets[i]["boxes"][t])
    found, wanted = torch.cat(found), torch.cat(wanted)
    focal = sigmoid_focal_loss(outputs["pred_logits"], one_hot, 0.25, 2, reduction="sum")
    torch.testing.assert_close(losses["loss_ce"], focal / 5)
    torch.testing.assert_close(losses["loss_bbox"], F.l1_loss(found, wanted, reduction="sum") / 5)
    giou = generalized_box_iou_loss(cxcywh_to_xyxy(found), cxcywh_to_xyxy(wanted), reduction="sum")
    torch.testing.assert_close(losses["loss_giou"], giou / 5, rtol=1e-4, atol=1e-5)
    total = losses["loss_ce"] + 5 * losses["loss_bbox"] + 2 * losses["loss_giou"]
    torch.testing.assert_close(criterion.total(losses), total)


def test_softmax_weighs_no_object_less():
    outputs, targets = predictions(classes=4), objects(1, 0)
    criterion = SetCriterion(3, HungarianMatcher(classification="softmax"), classification="softmax", eos_coef=0.1)
    ((query, _),) = [p for p in criterion.matcher(outputs, targets) if len(p[0])]
    labels = torch.full((2, 6), 3)
    labels[0, query] = targets[0]["labels"]
    weight = torch.tensor([1.0, 1.0, 1.0, 0.1])
    expected = F.cross_entropy(outputs["pred_logits"].flatten(0, 1), labels.flatten(), weight)
    torch.testing.assert_close(criterion(outputs, targets)["loss_ce"], expected)


def test_images_without_objects_only_push_scores_down():
    outputs = {k: v.requires_grad_() for k, v in predictions().items()}
    criterion = SetCriterion(3, HungarianMatcher())
    losses = criterion(outputs, objects(0, 0))
    assert losses["loss_bbox"] == losses["loss_giou"] == 0
    criterion.total(losses).backward()
    assert (outputs["pred_logits"].grad > 0).all()


def test_layers_and_stages_have_their_own_losses_and_the_same_weights():
    outputs = {**predictions(), "aux_outputs": [predictions(seed=1)], "enc_outputs": predictions(seed=2)}
    targets = objects(2, 1)
    criterion = SetCriterion(3, HungarianMatcher())
    losses = criterion(outputs, targets)
    alone = criterion(predictions(seed=1), targets)
    torch.testing.assert_close(losses["loss_giou_0"], alone["loss_giou"])
    as_objects = [{**t, "labels": torch.zeros_like(t["labels"])} for t in targets]
    torch.testing.assert_close(losses["loss_ce_enc"], criterion(predictions(seed=2), as_objects)["loss_ce"])
    assert criterion.weight_of("loss_bbox_enc") == criterion.weight_of("loss_bbox") == 5
    assert criterion.weight_of("class_error") is None


def test_group_mask_lets_groups_see_themselves_and_the_matching_queries():
    mask = group_mask(2, 3, 4, torch.device("cpu"))
    assert mask.shape == (10, 10)
    for i in range(10):
        for j in range(10):
            same_group = i < 6 and j < 6 and i // 2 == j // 2
            assert mask[i, j].item() == (j < 6 and not same_group)


def test_denoising_without_noise_restores_the_objects():
    targets = objects(2, 3)
    label_enc = torch.nn.Embedding(4, 8)
    dn = contrastive_denoising(targets, label_enc, 5, 3, 4, label_noise_ratio=0.0, box_noise_scale=0.0)
    assert (dn.groups, dn.size) == (8, 2 * 3 * 8)
    for i, t in enumerate(targets):
        n = len(t["labels"])
        for group in range(dn.groups):
            start = group * 6
            torch.testing.assert_close(dn.boxes[i, start : start + n].sigmoid(), t["boxes"], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(dn.content[i, start : start + n], label_enc(t["labels"]))
    (queries, found), _ = positives(targets, dn.size, dn.groups)
    torch.testing.assert_close(dn.boxes[0, queries].sigmoid(), targets[0]["boxes"][found], rtol=1e-4, atol=1e-5)


def test_negatives_are_further_off_than_positives():
    torch.manual_seed(0)
    targets = [
        {"labels": torch.zeros(20, dtype=torch.int64), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]]).repeat(20, 1)}
    ]
    dn = contrastive_denoising(targets, torch.nn.Embedding(2, 4), 5, 1, 100, box_noise_scale=0.4)
    shift = (cxcywh_to_xyxy(dn.boxes[0].sigmoid()) - cxcywh_to_xyxy(targets[0]["boxes"][:1])).abs() / 0.04
    shift = shift.view(dn.groups, 2, 20, 4)
    assert shift[:, 0].max() <= 1 + 1e-4
    assert shift[:, 1].min() >= 1 - 1e-4
    assert shift[:, 1].max() <= 2 + 1e-4


def test_dino_has_no_denoising_losses_in_evaluation():
    criterion = DINOCriterion(3, HungarianMatcher(eps=1e-6)).eval()
    losses = criterion({**predictions(), "aux_outputs": [predictions(seed=1)]}, objects(1, 1))
    assert all(v == 0 for k, v in losses.items() if "_dn" in k)
    assert sum("_dn" in k for k in losses) == 12


@pytest.mark.parametrize("options", [{"losses": ("labels", "colours")}, {"classification": "hinge"}])
def test_refuses_unknown_options(options):
    with pytest.raises(ValueError, match="accepted"):
        SetCriterion(3, HungarianMatcher(), **options)
