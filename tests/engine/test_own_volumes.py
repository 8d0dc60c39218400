"""Networks for volumes on one's own data: the config follows from the fingerprint; what is wrong is refused."""

import pytest

from zoo.cli import main
from zoo.data.fingerprint import Fingerprint
from zoo.data.phantom import write_phantom
from zoo.engine.own_volumes import is_volume_segmenter, own_volumes_config, volume_segmenter_name
from zoo.registry import MODELS, UnknownNameError, build


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five small volumes in the layout of the Medical Segmentation Decathlon."""
    root = tmp_path_factory.mktemp("own") / "abdomens"
    write_phantom(root, 5, (40, 36, 20))
    return root


def test_names_and_families():
    assert is_volume_segmenter("attention_unet_3d")
    assert is_volume_segmenter("wau")
    assert not is_volume_segmenter("davit_tiny")
    assert not is_volume_segmenter("detr")
    assert volume_segmenter_name("monai_unet_2d") == "monai_unet_2d"
    assert volume_segmenter_name("attention_unet") == "attention_unet_3d"
    assert volume_segmenter_name("turbolift") == "additive_gate_unet_3d"
    with pytest.raises(UnknownNameError, match="'attention_une'; did you mean attention_unet"):
        volume_segmenter_name("attention_une")


def test_a_3d_config_follows_from_the_data(folder, tmp_path):
    config = own_volumes_config("wau_unet_3d", folder, work_dir=tmp_path, workers=0)
    facts = Fingerprint.load(tmp_path / "fingerprint.json")
    assert len(facts.cases) == 4  # one of five folds is held out
    plan = facts.plan()
    data = config.train_dataloader.dataset
    assert tuple(data.spacing) == plan.spacing
    assert tuple(data.patch_size) == tuple(plan.patch_size) == tuple(config.model.window)
    assert list(data.normalisation) == plan.normalisation
    assert data.normalisation[0]["kind"] == "ct"
    assert config.val_dataloader.dataset.split == "val"
    assert config.model.num_classes == 5
    strides = [tuple(s) for s in config.model.network.strides]
    assert strides == [tuple(s) for s in plan.strides[1 : len(strides) + 1]]
    model = build(config.model.to_dict(), MODELS)
    assert [u.stride for u in model.network.up] == strides
    assert config.train_dataloader.batch_size == plan.batch_size


def test_slices_and_patches_fit_the_network(folder, tmp_path):
    """2-D networks get slices across the coarsest axis; patches are multiples of what the network needs."""
    config = own_volumes_config("attention_unet_nano", folder, work_dir=tmp_path / "2d", batch_size=3, epochs=2)
    data = config.train_dataloader.dataset
    assert (data.axis, config.model.axis) == (2, 2)
    assert len(data.patch_size) == 2
    assert all(n % 16 == 0 for n in data.patch_size)
    assert config.model.window is None
    config = own_volumes_config("attention_unet_nano_3d", folder, work_dir=tmp_path / "3d", size=20)
    assert tuple(config.train_dataloader.dataset.patch_size) == (32, 32, 32)
    config = own_volumes_config("monai_dynunet_3d", folder, work_dir=tmp_path / "dynunet")
    network = config.model.network
    assert len(network.kernels) == len(network.widths) == len(network.strides) + 1
    build(config.model.to_dict(), MODELS)


def test_refusals(folder, tmp_path):
    with pytest.raises(ValueError, match="mixer='bra': networks for volumes take none"):
        own_volumes_config("wau_unet_nano", folder, mixer="bra", work_dir=tmp_path)
    with pytest.raises(ValueError, match="epochs=0"):
        own_volumes_config("wau_unet_nano", folder, epochs=0, work_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        own_volumes_config("wau_unet_nano", tmp_path / "nowhere", work_dir=tmp_path)
    (tmp_path / "photos").mkdir()
    with pytest.raises(ValueError, match="none of the layouts"):
        own_volumes_config("wau_unet_nano", tmp_path / "photos", work_dir=tmp_path)


def test_one_command_trains(folder, tmp_path, capsys):
    words = "--epochs 1 --batch-size 4 --workers 0 --cfg-options visualizer=None"
    argv = ["train", "--model", "monai_unet_nano", "--data", str(folder), "--work-dir", str(tmp_path / "run")]
    assert main([*argv, *words.split()]) == 0
    assert "trained; checkpoints" in capsys.readouterr().out
    assert (tmp_path / "run" / "best_volume_dice.pth").is_file()
    file = folder / "labelsTr" / "phantom_000.nii.gz"
    whole = file.read_bytes()
    try:
        file.write_bytes(whole[: len(whole) // 2])
        assert main([*argv[:-1], str(tmp_path / "other"), "--epochs", "1"]) != 0
        assert "cannot be trained on" in capsys.readouterr().err
    finally:
        file.write_bytes(whole)
