"""Predicted samples."""

import numpy as np
import pytest
import torch


@pytest.fixture
def make_samples():
    """``count`` predicted samples of ``classes`` classes, as dicts like the evaluator's, right in about 60 %."""

    def make(count: int, classes: int, seed: int = 0, with_index: bool = True) -> list[dict]:
        rng = np.random.default_rng(seed)
        samples = []
        for i in range(count):
            target = int(rng.integers(classes))
            scores = rng.random(classes)
            scores[target] += 0.6 * rng.random()
            sample = {
                "gt_label": torch.tensor([target]),
                "pred_score": torch.from_numpy(scores / scores.sum()),
                "img_path": f"images/{i}.png",
            }
            samples.append(sample | ({"sample_idx": i} if with_index else {}))
        return samples

    return make
