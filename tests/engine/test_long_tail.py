"""Deferred re-weighting and tuned weights in real runs of a few steps."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from zoo.backbones.deit_lt import DistilledViT
from zoo.backbones.prompts import VPT
from zoo.classification.distillation import DistilledClassifier, effective_number_weights
from zoo.classification.model import ImageClassifier
from zoo.data.digits import Digits
from zoo.data.long_tail import LongTailed
from zoo.engine.launch import train
from zoo.engine.long_tail import DeferredReweightingHook, TunedWeightsHook
from zoo.layers.tuning import tuned_state_dict


def test_classes_are_weighed_from_an_epoch_on():
    hook = DeferredReweightingHook(start_epoch=2)
    data = LongTailed(Digits(split="train", size=8), imbalance=20)
    backbone = dict(type=DistilledViT, img_size=8, patch_size=4, embed_dim=16, depth=1, num_heads=2)
    model = DistilledClassifier(backbone, 10, distillation=dict(kind="none", beta=0.99))
    runner = SimpleNamespace(model=model, epoch=0, train_dataloader=SimpleNamespace(dataset=data))
    hook.before_train(runner)
    torch.testing.assert_close(model.loss.class_weights, effective_number_weights(data.class_counts, 0.99))
    for runner.epoch, weighted in ((0, False), (1, False), (2, True), (5, True), (1, False)):
        hook.before_train_epoch(runner)
        assert model.loss.weighted is weighted
    runner.model = ImageClassifier(backbone, 10)
    with pytest.raises(TypeError, match="weighs no classes"):
        hook.before_train(runner)
    runner.model, runner.train_dataloader.dataset = model, object()
    with pytest.raises(TypeError, match="no labels"):
        hook.before_train(runner)
    with pytest.raises(ValueError, match="start_epoch=-1"):
        DeferredReweightingHook(-1)


def test_tuned_weights_are_saved_by_themselves(tmp_path):
    backbone = dict(type=VPT, input_size=16, patch_size=8, dim=16, depth=2, num_heads=2, num_prompts=3)
    torch.manual_seed(0)
    model = ImageClassifier(backbone, 10).train()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    hook, logged = TunedWeightsHook(), []
    runner = SimpleNamespace(
        model=model, work_dir=tmp_path, has_trained=True, logger=SimpleNamespace(info=logged.append)
    )
    hook.after_run(runner)
    saved = load_file(tmp_path / "tuned.safetensors")
    assert saved.keys() == tuned_state_dict(model).keys()
    assert sum(v.numel() for v in saved.values()) == 2 * 3 * 16 + 16 * 10 + 10
    assert all(torch.equal(saved[n], before[n]) for n in saved)
    assert "266 trained parameters" in logged[0]


def test_recipe_runs(tmp_path):
    """One epoch of the recipe on long-tailed digits, from an untrained teacher, with weights from the start."""
    options = {
        "model.teacher_weights": None,
        "train_cfg.max_epochs": 1,
        "train_dataloader.dataset.imbalance": 140,
        "model.backbone.depth": 1,
        "train_cfg.val_interval": 5,
        "custom_hooks.0.start_epoch": 0,
        "visualizer": None,
        "default_hooks.curves": None,
    }
    runner = train("deit-lt-nano_cls_100e_digits-lt", work_dir=tmp_path, options=options)
    loss = runner.model.loss
    counts = torch.tensor(runner.train_dataloader.dataset.class_counts)
    assert loss.weighted
    torch.testing.assert_close(loss.class_weights.cpu(), effective_number_weights(counts, loss.beta))
    assert (tmp_path / "epoch_1.pth").is_file()
