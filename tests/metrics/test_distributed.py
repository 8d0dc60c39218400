"""Two processes give the metrics of one, however their samples are dealt out and padded."""

import json
import socket
import subprocess
import sys

import pytest

WORKER = """
import json, sys
import numpy as np, torch, torch.distributed as dist
from mmengine.dataset import DefaultSampler
from zoo.metrics import Accuracy, ConfusionMatrix, PerClass, PredictionDump

rank, port, out, count = int(sys.argv[1]), sys.argv[2], sys.argv[3], 15

def sample(i, with_index):
    rng = np.random.default_rng(i)
    scores = torch.from_numpy(rng.random(6))
    target = int(scores.argmax()) if rng.random() < 0.5 else int(rng.integers(6))
    return {"gt_label": torch.tensor([target]), "pred_score": scores, "img_path": str(i)} | (
        {"sample_idx": i} if with_index else {})

def run(indices, with_index, folder):
    metrics = [Accuracy(topk=(1, 3)), PerClass(f"{folder}/t.csv"), ConfusionMatrix(f"{folder}/c.json"),
               PredictionDump(f"{folder}/p.json")]
    result = {}
    for metric in metrics:
        for start in range(0, len(indices), 4):
            metric.process(None, [sample(i, with_index) for i in indices[start:start + 4]])
        result |= metric.evaluate(count)
    result["matrix"] = metrics[2].matrix.tolist()
    if rank == 0:
        result["dumped"] = [p["img_path"] for p in json.load(open(f"{folder}/p.json"))["predictions"]]
    return result

single = run(list(range(count)), True, f"{out}/single") if rank == 0 else None
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
dealt = list(DefaultSampler(list(range(count)), shuffle=False))  # padded to 8 each
halves = [list(range(8)), list(range(7, 15))][rank]              # contiguous, sample 7 in both
uneven = [list(range(12)), [12, 13, 14]][rank]
folder = f"{out}/{rank}"
results = [run(dealt, True, folder), run(dealt, False, folder), run(halves, True, folder), run(uneven, True, folder)]
print("RESULT" + json.dumps([single, results]))
from zoo.engine.compat import end_process
end_process(0)
"""


def result_of(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return json.loads(out.split("RESULT")[1])


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    folder = str(tmp_path_factory.mktemp("distributed"))
    command = [sys.executable, "-c", WORKER]
    processes = [
        subprocess.Popen([*command, str(rank), port, folder], stdout=-1, stderr=-1, text=True) for rank in (0, 1)
    ]
    try:
        return [result_of(p) for p in processes]
    finally:
        for process in processes:
            process.kill()


@pytest.mark.parametrize("case", range(4), ids=["padded", "padded, no index", "overlapping halves", "uneven"])
def test_two_processes_are_one(results, case):
    (single, first), (_, second) = results
    first, second = first[case], second[case]
    assert single["dumped"] == [str(i) for i in range(15)]
    assert sum(map(sum, single["matrix"])) == 15
    assert first == single
    assert second == {k: v for k, v in single.items() if k != "dumped"}


def test_only_the_main_process_writes(results, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp()
    assert list(folder.glob("distributed*/0/p.json"))
    assert not list(folder.glob("distributed*/1"))
