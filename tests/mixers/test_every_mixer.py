"""Every registered mixer in both hosts, by the checks of zoo.arena.support, which also make the table in the docs."""

import pytest
import torch

from zoo.arena import support
from zoo.mixers.base import Mixer
from zoo.registry import MIXERS

FAST = [name for name in support.CHECKS if name not in support.SLOW]


@pytest.mark.parametrize("mixer", MIXERS.names())
@pytest.mark.parametrize("host", support.HOSTS)
@pytest.mark.parametrize("check", FAST)
def test_in_a_host(check, host, mixer):
    support.CHECKS[check](host, mixer)


@pytest.mark.slow
@pytest.mark.parametrize("mixer", MIXERS.names())
@pytest.mark.parametrize("host", support.HOSTS)
def test_generated_code(host, mixer):
    support.generates_code(host, mixer)


class Faulty(Mixer):
    """Breaks one rule a time."""

    def __init__(self, dim: int, num_heads: int, fault: str):
        super().__init__(dim, num_heads)
        self.fault = fault
        self.proj = torch.nn.Linear(dim, dim)

    def forward(self, x, prefix=None):
        y = self.proj(x)
        if self.fault == "any size" and x.shape[1] % 2 == 0:
            return y / 0
        if self.fault == "repeats":
            return y + torch.randn_like(y)
        if self.fault == "image by itself":
            return y + y.mean(0, keepdim=True)
        if self.fault == "gradient":
            return y + y.detach()
        if self.fault == "bf16 autocast" and y.dtype == torch.bfloat16:
            return y * 100
        if self.fault == "compile":
            torch._dynamo.graph_break()
            return y
        if self.fault == "export" and x.sum() > 0:
            return y
        return y


@pytest.mark.parametrize("fault", FAST)
def test_the_check_finds_the_fault(fault):
    host = "pyramid" if fault == "any size" else "vit"
    with pytest.raises(Exception):  # noqa: B017 - each check raises what it meets
        support.CHECKS[fault](host, dict(type=Faulty, fault=fault))
    support.CHECKS[fault]("vit", dict(type=Faulty, fault="none"))


def test_table_in_the_docs_is_of_these_mixers_and_checks(repo_root):
    """What it says of each was measured by tools/mixer_table.py; here only that nothing was added or changed since."""
    lines = (repo_root / "docs" / "mixers_table.md").read_text(encoding="utf-8").splitlines()
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert cells[0][-len(support.CHECKS) :] == list(support.CHECKS)
    rows = {row[0].partition("`")[2].partition("`")[0]: row for row in cells[2:]}
    stale = [n for n in MIXERS.names() if n not in rows or rows[n][1] != MIXERS.get(n).growth]
    stale += sorted(rows.keys() - set(MIXERS.names()))
    assert stale == [], "run tools/mixer_table.py --missing"
    for name, row in rows.items():  # the fast checks must pass, see above
        assert {row[cells[0].index(check)] for check in FAST} == {"yes"}, name


def test_hosts_are_named():
    with pytest.raises(ValueError, match="vit, pyramid"):
        support.small_host("cnn", "softmax")
