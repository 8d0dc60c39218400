import itertools

import pytest
import torch

from zoo.detection.matcher import HungarianMatcher


def case(queries: int, objects: int, classes: int = 4, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    outputs = {
        "pred_logits": torch.randn(1, queries, classes, generator=g),
        "pred_boxes": torch.rand(1, queries, 4, generator=g) * 0.5 + 0.1,
    }
    target = {
        "labels": torch.randint(0, classes - 1, (objects,), generator=g),
        "boxes": torch.rand(objects, 4, generator=g) * 0.5 + 0.1,
    }
    return outputs, target


@pytest.mark.parametrize("classification", ["focal", "softmax"])
@pytest.mark.parametrize("seed", range(3))
def test_finds_the_cheapest_assignment(classification, seed):
    outputs, target = case(5, 3, seed=seed)
    matcher = HungarianMatcher(classification=classification)
    cost = matcher.cost(outputs["pred_logits"][0], outputs["pred_boxes"][0], target["labels"], target["boxes"])
    best = min(itertools.permutations(range(5), 3), key=lambda p: sum(cost[q, t].item() for t, q in enumerate(p)))
    queries, objects = matcher(outputs, [target])[0]
    assert {(int(q), int(t)) for q, t in zip(queries, objects)} == {(q, t) for t, q in enumerate(best)}
    assert queries.tolist() == sorted(queries.tolist())


def test_an_image_without_objects_has_no_pairs_and_disturbs_none():
    outputs, target = case(6, 2)
    both = {k: v.repeat(2, 1, 1) for k, v in outputs.items()}
    empty = {"labels": target["labels"][:0], "boxes": target["boxes"][:0]}
    alone = HungarianMatcher()(outputs, [target])[0]
    first, second = HungarianMatcher()(both, [empty, target])
    assert len(first[0]) == len(first[1]) == 0
    assert torch.equal(second[0], alone[0])


def test_more_objects_than_queries_match_all_queries():
    outputs, target = case(2, 4)
    queries, objects = HungarianMatcher()(outputs, [target])[0]
    assert queries.tolist() == [0, 1]
    assert len(set(objects.tolist())) == 2


def test_predictions_that_are_no_numbers_are_named():
    outputs, target = case(4, 2)
    outputs["pred_boxes"][0, 1] = float("nan")
    with pytest.raises(FloatingPointError, match="image 0"):
        HungarianMatcher()(outputs, [target])


def test_refuses_options_without_meaning():
    with pytest.raises(ValueError, match="cost_class"):
        HungarianMatcher(0, 0, 0)
    with pytest.raises(ValueError, match="classification"):
        HungarianMatcher(classification="hinge")
