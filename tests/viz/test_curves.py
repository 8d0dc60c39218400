"""Training curves from logs."""

import pytest

from zoo.viz.curves import draw_curves, plot_curves, read_scalars


def train_record(step, per_epoch=10, loss=1.0):
    epoch = (step - 1) // per_epoch + 1
    return {"lr": 0.1 / step, "loss": loss, "time": 0.1, "memory": 5, "epoch": epoch, "iter": step, "step": step}


def val_record(epoch, top1):
    return {"accuracy/top1": top1, "data_time": 0.1, "time": 0.2, "step": epoch}


def test_training_is_placed_in_epochs(write_log, tmp_path):
    records = [train_record(s) for s in (5, 10)] + [val_record(1, 50.0)] + [train_record(s) for s in (15, 20)]
    train, val, unit = read_scalars(write_log(tmp_path, [*records, val_record(2, 60.0)]))
    assert unit == "epoch"
    assert set(train) == {"lr", "loss"}
    assert train["loss"] == [(0.5, 1.0), (1.0, 1.0), (1.5, 1.0), (2.0, 1.0)]
    assert train["lr"][0] == (0.5, 0.02)
    assert val == {"accuracy/top1": [(1.0, 50.0), (2.0, 60.0)]}


@pytest.mark.parametrize("last", [20, 43, 89])
def test_epochs_are_right_where_their_last_steps_are_not_logged(write_log, tmp_path, last):
    steps = [s for s in (20, 43, 66, 89) if s <= last]  # every 20th of 23 steps
    train, _, _ = read_scalars(write_log(tmp_path, [train_record(s, per_epoch=23) for s in steps]))
    length = 20 if last == 20 else 23
    assert [x for x, _ in train["loss"]] == [s / length for s in steps]


def test_without_epochs_the_axis_counts_iterations(write_log, tmp_path):
    records = [{"lr": 0.1, "loss": 2.0, "step": 100}, {"accuracy/top1": 10.0, "step": 100}]
    train, val, unit = read_scalars(write_log(tmp_path, records))
    assert (unit, train["loss"], val["accuracy/top1"]) == ("iteration", [(100.0, 2.0)], [(100.0, 10.0)])


def test_a_resumed_run_overwrites_what_it_repeats(write_log, tmp_path):
    write_log(tmp_path, [train_record(10, loss=3.0), train_record(20, loss=2.0)], "20260101_000000")
    write_log(tmp_path, [train_record(20, loss=2.5), train_record(30, loss=1.0)], "20260102_000000")
    train, _, _ = read_scalars(tmp_path)
    assert train["loss"] == [(1.0, 3.0), (2.0, 2.5), (3.0, 1.0)]


def test_a_line_that_was_cut_off_is_passed_over(write_log, tmp_path):
    write_log(tmp_path, [train_record(10)])
    with (tmp_path / "20260101_000000" / "vis_data" / "scalars.json").open("a") as file:
        file.write('{"loss": 0.5, "lr"')
    assert read_scalars(tmp_path)[0]["loss"] == [(1.0, 1.0)]


def test_no_log(tmp_path):
    with pytest.raises(FileNotFoundError, match="no scalars"):
        plot_curves(tmp_path)


def test_the_picture(write_log, tmp_path, picture):
    records = [train_record(s, loss=10 / s) for s in range(1, 41)] + [val_record(e, 20.0 * e) for e in range(1, 5)]
    path = plot_curves(write_log(tmp_path, records), title="a run")
    assert path == tmp_path / "curves.png"
    pixels = picture(path)
    panel = pixels.shape[1] // 3  # loss, validation, learning rate
    for i in range(3):
        blue = (pixels[:, i * panel : (i + 1) * panel].astype(int) - (0x1F, 0x5F, 0xA8)).__abs__().max(-1) < 12
        assert blue.sum() > 100, f"no curve in panel {i}"
    assert not list(tmp_path.glob(".*"))
    assert plot_curves(tmp_path, tmp_path / "other" / "c.svg").read_text(encoding="utf-8").startswith("<?xml")


def test_panels(write_log, tmp_path):
    records = [train_record(s) | {"base_lr": 0.1, "grad_norm": 2.0} for s in (5, 10)] + [val_record(1, 50.0)]
    figure = draw_curves(write_log(tmp_path, records))
    legends = {a.get_title(): [line.get_label() for line in a.get_lines()] for a in figure.axes}
    assert legends == {
        "loss": ["loss"],
        "validation": ["accuracy/top1"],
        "training": ["train grad_norm"],
        "learning rate": ["lr"],
    }
    assert figure.axes[1].texts[0].get_text() == "best 50.00"


def test_mmengine_writes_what_is_read(tmp_path):
    """The keys that the local visualiser and the logger hook of mmengine write, from a real run."""
    import torch
    from mmengine.model import BaseModel
    from mmengine.runner import Runner

    class Model(BaseModel):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def forward(self, inputs, mode="loss"):
            return {"loss": self.weight.square()}

    runner = Runner(
        Model(),
        str(tmp_path),
        train_dataloader={
            "dataset": [{"inputs": torch.zeros(1)}] * 8,
            "batch_size": 2,
            "sampler": {"type": "DefaultSampler", "shuffle": False},
        },
        train_cfg={"by_epoch": True, "max_epochs": 2},
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.5}},
        default_hooks={"logger": {"type": "LoggerHook", "interval": 2}, "checkpoint": None},
        visualizer={"type": "Visualizer", "vis_backends": [{"type": "LocalVisBackend"}], "name": "curves"},
        experiment_name="curves",
    )
    runner.train()
    train, _, unit = read_scalars(tmp_path)
    assert unit == "epoch"
    assert [x for x, _ in train["loss"]] == [0.5, 1.0, 1.5, 2.0]
    assert train["lr"] == [(x, 0.5) for x in (0.5, 1.0, 1.5, 2.0)]
