import torch
from torchvision.ops import nms

from zoo.detection.boxes import cxcywh_to_xyxy
from zoo.detection.postprocess import best_of_pairs, best_of_queries

SIZES = torch.tensor([[40, 80], [100, 30]])


def outputs(queries: int = 5, classes: int = 3) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return {
        "pred_logits": torch.randn(2, queries, classes, generator=g),
        "pred_boxes": torch.rand(2, queries, 4, generator=g),
    }


def test_pairs_are_the_best_in_order_and_in_pixels():
    out = outputs()
    for i, found in enumerate(best_of_pairs(out, SIZES, count=4)):
        scores = out["pred_logits"][i].sigmoid()
        assert torch.equal(found["scores"], scores.flatten().sort(descending=True).values[:4])
        height, width = SIZES[i].tolist()
        for score, label, box in zip(found["scores"], found["labels"], found["boxes"]):
            query = int((scores[:, label] == score).nonzero()[0])
            expected = cxcywh_to_xyxy(out["pred_boxes"][i, query]) * torch.tensor([width, height, width, height])
            torch.testing.assert_close(box, expected)


def test_fewer_pairs_than_wanted_are_all_there_are():
    assert len(best_of_pairs(outputs(), SIZES, count=100)[0]["scores"]) == 15


def test_overlapping_boxes_are_dropped_whatever_their_class():
    out = outputs()
    plain, kept = best_of_pairs(out, SIZES, 15)[0], best_of_pairs(out, SIZES, 15, nms_threshold=0.5)[0]
    index = nms(plain["boxes"], plain["scores"], 0.5)
    assert len(index) < 15
    assert torch.equal(kept["boxes"], plain["boxes"][index])


def test_softmax_keeps_every_query_and_leaves_no_object_out():
    out = outputs(classes=4)
    found = best_of_queries(out, SIZES)[1]
    p = out["pred_logits"][1].softmax(-1)[:, :3]
    assert torch.equal(found["scores"], p.amax(-1))
    assert torch.equal(found["labels"], p.argmax(-1))
