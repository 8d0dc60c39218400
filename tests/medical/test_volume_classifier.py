"""Classifiers of volumes: data with a table of labels, losses, and that CT-Scroll learns generated scans."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from zoo.classification.data_sample import ClsDataSample
from zoo.data.volume_labels import GeneratedScans, VolumeLabels, read_findings
from zoo.medical.ct_scroll import prepare_chest_ct
from zoo.medical.volume_classifier import VolumeClassifier
from zoo.registry import MODELS


class Linear(nn.Module):
    """Logits of the mean over places; several of them with ``count``."""

    num_classes = 3

    def __init__(self, count: int = 1):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2, 3) for _ in range(count))

    def forward(self, x):
        found = [layer(x.flatten(2).mean(2)) for layer in self.layers]
        return found if len(found) > 1 else found[0]


def sample(*labels: int) -> ClsDataSample:
    return ClsDataSample().set_gt_label(torch.tensor(labels, dtype=torch.int64))


def test_losses_and_scores() -> None:
    x = torch.randn(2, 2, 4, 4, 4)
    model = VolumeClassifier(Linear(), pos_weight=[1.0, 2.0, 3.0])
    logits = model(x)
    targets = torch.tensor([[1.0, 0, 1], [0, 0, 0]])
    loss = model(x, [sample(0, 2), sample()], mode="loss")["loss"]
    by_hand = -(targets * torch.tensor([1.0, 2, 3]) * F.logsigmoid(logits) + (1 - targets) * F.logsigmoid(-logits))
    torch.testing.assert_close(loss, by_hand.mean())
    for s, row in zip(model(x, mode="predict"), logits.sigmoid()):
        torch.testing.assert_close(s.pred_score, row)
        assert s.pred_label.tolist() == [i for i in range(3) if row[i] >= 0.5]


def test_several_logits_are_averaged() -> None:
    x = torch.randn(2, 2, 4, 4)
    model = VolumeClassifier(Linear(2), score="softmax")
    each = [layer(x.flatten(2).mean(2)) for layer in model.network.layers]
    loss = model(x, [sample(1), sample(2)], mode="loss")["loss"]
    torch.testing.assert_close(loss, sum(F.cross_entropy(e, torch.tensor([1, 2])) for e in each) / 2)
    scores = torch.stack([s.pred_score for s in model(x, mode="predict")])
    torch.testing.assert_close(scores, sum(e.softmax(-1) for e in each) / 2)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="score='tanh'"):
        VolumeClassifier(Linear(), score="tanh")
    with pytest.raises(ValueError, match=r"pos_weight=\[1\]: accepted are 3 positive"):
        VolumeClassifier(Linear(), pos_weight=[1])
    with pytest.raises(ValueError, match="but the network has 3"):
        VolumeClassifier(Linear(), 4)
    x = torch.zeros(1, 2, 2, 2)
    with pytest.raises(ValueError, match=r"labels \[3\], but the model has 3 classes"):
        VolumeClassifier(Linear())(x, [sample(3)], mode="loss")
    with pytest.raises(ValueError, match="has 2 labels; score='sigmoid' takes those"):
        VolumeClassifier(Linear(), score="softmax")(x, [sample(0, 1)], mode="loss")
    with pytest.raises(ValueError, match="sizes"):
        VolumeClassifier(Linear())([x[0], torch.zeros(2, 3, 3)])


def test_sizes_are_the_authors() -> None:
    with torch.device("meta"):
        counts = {n: sum(p.numel() for p in MODELS.get(n)().parameters()) for n in ("ct_scroll", "ag_sononet")}
    assert counts == {"ct_scroll": 16239058, "ag_sononet": 177068}


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    import nibabel

    rng = np.random.default_rng(0)
    for name in "abcdef":
        data = rng.normal(-500, 300, (10, 8, 6)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(data, np.diag([1.0, 1, 2, 1])), tmp_path / f"{name}.nii.gz")
    rows = ["volume,nodule,effusion", "a,1,0", "b.nii.gz,0,0", "c,1,1", "d,0,1", "e,0,0", "f,1,0"]
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def test_volumes_with_a_table(scans: Path) -> None:
    import nibabel

    data = VolumeLabels(scans, size=(9, 8, 8), split="all")
    assert data.classes == ("nodule", "effusion")
    assert [d["data_samples"].gt_label.tolist() for d in data] == [[0], [], [0, 1], [1], [], [0]]
    raw = nibabel.load(scans / "c.nii.gz").get_fdata()
    expected = prepare_chest_ct(torch.from_numpy(raw.transpose(2, 1, 0).copy()), (9, 8, 8))
    torch.testing.assert_close(data[2]["inputs"], expected)
    assert data.pos_weight() == [1.0, 2.0]
    parts = [VolumeLabels(scans, size=(9, 8, 8), split=s, fold=1, folds=3) for s in ("train", "val")]
    assert sorted(p.name for d in parts for p in d.paths) == [f"{n}.nii.gz" for n in "abcdef"]
    assert [len(p) for p in parts] == [4, 2]


@pytest.mark.parametrize(
    ("table", "error", "message"),
    [
        ("volume,x\na,2\n", ValueError, "line 2: x is '2'; accepted are 0 and 1"),
        ("volume,x\na,1\na.nii.gz,1\n", ValueError, "line 3: volume 'a' is empty or occurs twice"),
        ("name,x\na,1\n", ValueError, "'volume' and one for each label"),
        ("volume,x\n", ValueError, "has no volumes"),
        ("volume,x\nz,1\n", FileNotFoundError, "the first is 'z'"),
    ],
)
def test_wrong_tables_are_refused(scans: Path, table: str, error, message: str) -> None:
    (scans / "labels.csv").write_text(table)
    with pytest.raises(error, match=message):
        VolumeLabels(scans, split="all")
    with pytest.raises(FileNotFoundError, match="no table"):
        read_findings(scans / "x.csv")


def test_it_learns(tmp_path: Path) -> None:
    from zoo.engine.launch import test as evaluate
    from zoo.engine.launch import train

    config = "ct-scroll-nano_cls_20e_scans"
    train(config, work_dir=tmp_path, options={"log_level": "WARNING", "visualizer": None})
    metrics = evaluate(config, tmp_path / "epoch_20.pth", work_dir=tmp_path / "test")
    assert metrics["scan/auc"] >= 0.95


def test_generated_scans_are_a_function_of_the_seed() -> None:
    a, b, c = (GeneratedScans("val", volumes=20, data_seed=s) for s in (0, 0, 1))
    assert torch.equal(a[1]["inputs"], b[1]["inputs"])
    assert not torch.equal(a[1]["inputs"], c[1]["inputs"])
    with pytest.raises(ValueError, match="sizes from 12 on"):
        GeneratedScans(size=(13, 32, 32))
