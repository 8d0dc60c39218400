"""What all image datasets promise: the sample, per-sample randomness in any number of workers, unreadable images."""

import copy
import logging
import pickle
import re

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from zoo.classification.data_sample import ClsDataSample
from zoo.data import Digits, ImageFolder, ImageReadError
from zoo.data.base import sample_seed, stratified_split

LIGHT = {"recipe": "light", "train": True, "size": 12}


def together(batch):
    return torch.stack([s["inputs"] for s in batch]), [s["data_samples"].sample_idx for s in batch]


def all_images(dataset, workers=0, **options):
    loader = DataLoader(dataset, batch_size=4, num_workers=workers, collate_fn=together, **options)
    return torch.cat([images for images, _ in loader])


def error_of(loader):
    """The exception that iterating raises; the workers are gone afterwards, not at some later garbage collection."""
    iterator = iter(loader)
    try:
        for _ in iterator:
            pass
    except Exception as error:
        return error.with_traceback(None)
    finally:
        if loader.num_workers:
            iterator._shutdown_workers()
    return None


class TestSample:
    def test_digits(self):
        dataset = Digits("train", size=20)
        sample = dataset[3]
        assert sample["inputs"].dtype == torch.uint8
        assert sample["inputs"].shape == (3, 20, 20)
        assert sample["inputs"].is_contiguous()
        assert isinstance(sample["data_samples"], ClsDataSample)
        assert sample["data_samples"].gt_label.tolist() == [dataset.labels[3]]
        assert sample["data_samples"].metainfo == {
            "img_path": dataset.path_of(3),
            "sample_idx": 3,
            "ori_shape": (20, 20),
        }
        assert dataset.metainfo == {"classes": tuple("0123456789")}
        assert dataset.num_classes == 10

    def test_index(self):
        dataset = Digits("test", size=8)
        assert torch.equal(dataset[-1]["inputs"], dataset[len(dataset) - 1]["inputs"])
        with pytest.raises(IndexError, match="out of range"):
            dataset[len(dataset)]

    def test_original_shape_is_the_one_before_the_transform(self, make_folder, tmp_path):
        dataset = ImageFolder(make_folder(tmp_path / "d", {"a": 1}), transform={"train": False, "size": 8})
        assert dataset[0]["data_samples"].ori_shape == (12, 16)
        assert dataset[0]["inputs"].shape == (3, 8, 8)


class TestDigits:
    def test_the_pixels_are_sklearns(self):
        from sklearn.datasets import load_digits

        scans, labels = load_digits(return_X_y=True)
        dataset = Digits("all", size=8)
        assert len(dataset) == 1797
        images = np.stack([dataset.load_image(i) for i in range(1797)])
        assert np.abs(images[..., 1].reshape(1797, 64) / 255 * 16 - scans).max() < 0.04
        assert np.array_equal(images[..., 0], images[..., 2])
        assert np.array_equal(dataset.labels, labels)

    def test_the_split_is_stratified_complete_and_fixed(self):
        train, test = Digits("train"), Digits("test")
        paths = {train.path_of(i) for i in range(len(train))}, {test.path_of(i) for i in range(len(test))}
        assert not paths[0] & paths[1]
        assert (len(train), len(test)) == (1438, 359)
        assert len(paths[0] | paths[1]) == 1797
        shares = np.bincount(test.labels) / (np.bincount(test.labels) + np.bincount(train.labels))
        assert np.abs(shares - 0.2).max() < 0.005
        assert np.array_equal(Digits("test")._original, test._original)
        assert not np.array_equal(Digits("test", split_seed=1)._original, test._original)

    @pytest.mark.parametrize(("arguments", "message"), [({"split": "val"}, "'val'"), ({"size": 0}, "size=0")])
    def test_bad_arguments(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            Digits(**arguments)


class TestRandomness:
    def test_seed_depends_on_each_part(self):
        seeds = {sample_seed(s, e, i) for s in range(4) for e in range(4) for i in range(50)}
        assert len(seeds) == 800
        assert sample_seed(1, 2, 3) == sample_seed(1, 2, 3)

    @pytest.mark.parametrize("recipe", [LIGHT, {"train": True, "size": 12, "auto_augment": "rand-m9-mstd0.5-inc1"}])
    def test_workers_and_restarts_change_nothing(self, recipe):
        make = lambda: torch.utils.data.Subset(Digits("test", 16, transform=recipe), range(22))  # noqa: E731
        first = all_images(make())
        torch.manual_seed(99)
        np.random.default_rng(5).random()
        assert torch.equal(all_images(make()), first)
        assert torch.equal(all_images(make(), workers=2), first)

    def test_order_of_access_changes_nothing(self):
        dataset = Digits("test", 16, transform=LIGHT)
        forward = [dataset[i]["inputs"] for i in range(10)]
        backward = [dataset[i]["inputs"] for i in reversed(range(10))][::-1]
        assert all(torch.equal(a, b) for a, b in zip(forward, backward))

    @pytest.mark.parametrize("persistent", [False, True])
    def test_running_workers_follow_set_epoch(self, persistent):
        dataset = Digits("test", 16, transform=LIGHT)
        loader = DataLoader(
            torch.utils.data.Subset(dataset, range(12)),
            batch_size=4,
            num_workers=2,
            collate_fn=together,
            persistent_workers=persistent,
        )
        seen = []
        for epoch in (0, 1, 0):
            dataset.set_epoch(epoch)
            seen.append(torch.cat([images for images, _ in loader]))
        assert torch.equal(seen[0], seen[2])
        assert not torch.equal(seen[0], seen[1])
        dataset.set_epoch(1)
        assert torch.equal(all_images(torch.utils.data.Subset(dataset, range(12))), seen[1])

    def test_seeds_differ(self):
        a, b = (Digits("test", 16, transform=LIGHT, seed=s) for s in (0, 1))
        assert not torch.equal(a[0]["inputs"], b[0]["inputs"])

    def test_a_copy_is_independent(self):
        dataset = Digits("test", 16, transform=LIGHT)
        for twin in (copy.deepcopy(dataset), pickle.loads(pickle.dumps(dataset))):
            assert torch.equal(twin[5]["inputs"], dataset[5]["inputs"])

    @pytest.mark.parametrize(("method", "value"), [("set_epoch", -1)])
    def test_negative_epoch(self, method, value):
        with pytest.raises(ValueError, match="epoch=-1"):
            getattr(Digits("test"), method)(value)


@pytest.fixture
def broken_folder(make_folder, tmp_path):
    root = make_folder(tmp_path / "data", {"a": 4, "b": 4})
    (root / "a" / "1.png").write_bytes(b"")
    (root / "a" / "2.png").write_bytes((root / "a" / "2.png").read_bytes()[:60])
    return root


class TestUnreadableImages:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_raise_names_the_path_from_a_worker_too(self, broken_folder, workers):
        loader = DataLoader(ImageFolder(broken_folder), batch_size=2, num_workers=workers, collate_fn=together)
        error = error_of(loader)
        assert type(error) is ImageReadError
        assert str(broken_folder / "a" / "1.png") in str(error)
        assert "empty (0 bytes)" in str(error)

    @pytest.mark.parametrize("workers", [0, 2])
    def test_skip_takes_the_next_good_one_and_counts(self, broken_folder, workers):
        dataset = ImageFolder(broken_folder, on_error="skip")
        loader = DataLoader(dataset, batch_size=2, num_workers=workers, collate_fn=together)
        for _ in range(2):
            assert [i for _, indices in loader for i in indices] == [0, 3, 3, 3, 4, 5, 6, 7]
        assert dataset.num_skipped == 2
        assert dataset.skipped_paths() == [str(broken_folder / "a" / name) for name in ("1.png", "2.png")]

    def test_skip_logs_each_path_once(self, broken_folder, caplog):
        dataset = ImageFolder(broken_folder, on_error="skip")
        with caplog.at_level(logging.WARNING, logger="zoo.data.base"):
            for _ in range(3):
                for i in range(len(dataset)):
                    dataset[i]
        assert len(caplog.records) == 2
        assert "1.png" in caplog.text
        assert "2.png" in caplog.text

    def test_the_last_one_is_replaced_by_the_first(self, broken_folder):
        (broken_folder / "b" / "3.png").write_bytes(b"")
        dataset = ImageFolder(broken_folder, on_error="skip")
        assert dataset[7]["data_samples"].sample_idx == 0

    def test_a_substitute_is_the_sample_itself(self, broken_folder):
        dataset = ImageFolder(broken_folder, on_error="skip", transform=LIGHT)
        assert torch.equal(dataset[1]["inputs"], dataset[3]["inputs"])

    def test_nothing_readable(self, make_folder, tmp_path):
        root = make_folder(tmp_path / "data", {"a": 2})
        for file in (root / "a").iterdir():
            file.write_bytes(b"")
        with pytest.raises(ImageReadError, match="none of the 2 images"):
            ImageFolder(root, on_error="skip")[0]

    def test_a_failing_transform_names_the_image(self, make_folder, tmp_path):
        def fail(image, seed):
            raise KeyError("oops")

        dataset = ImageFolder(make_folder(tmp_path / "data", {"a": 1}), transform=fail)
        error = error_of(DataLoader(dataset, num_workers=1, collate_fn=together))
        assert type(error) is RuntimeError
        assert re.search(r"0\.png.*12 x 16.*oops", str(error))

    def test_unknown_policy(self, broken_folder):
        with pytest.raises(ValueError, match="'ignore'.*'raise' and 'skip'"):
            ImageFolder(broken_folder, on_error="ignore")


class TestStratifiedSplit:
    def test_counts(self):
        labels = [0] * 10 + [1] * 5 + [2] * 2 + [3]
        first, second = stratified_split(labels, 0.2)
        assert sorted(first + second) == list(range(18))
        assert np.bincount(np.array(labels)[second], minlength=4).tolist() == [2, 1, 1, 0]

    def test_other_classes_do_not_change_a_class(self):
        assert stratified_split([0] * 10, 0.3)[1] == stratified_split([0] * 10 + [1] * 7, 0.3)[1][:3]

    @pytest.mark.parametrize("fraction", [0, 1, -0.1])
    def test_bad_fraction(self, fraction):
        with pytest.raises(ValueError, match="fraction="):
            stratified_split([0, 1], fraction)
