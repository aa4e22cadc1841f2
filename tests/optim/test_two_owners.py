import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ludus.optim import muon


def every():
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        import two_owners
    finally:
        sys.path.pop(0)
    return two_owners.every()


@pytest.mark.law
def test_two_owners_of_the_matrices_step_as_one_process(tmp_path: Path):
    script = Path(__file__).with_name("two_owners.py")
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(Path(__file__).parents[2])}
    both = subprocess.run(
        [sys.executable, script, tmp_path], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert both.returncode == 0, both.stderr
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    expected = every()
    assert first.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(first[name], second[name]), name
        tolerance = 1e-2 if "bfloat16" in name else 1e-6  # products of a smaller stack may round otherwise
        torch.testing.assert_close(first[name], weight, atol=tolerance, rtol=0, msg=name)


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_every_matrix_has_one_owner_and_owners_share_evenly(ranks: int, monkeypatch: pytest.MonkeyPatch):
    generator = torch.Generator().manual_seed(0)
    shapes = [(8, 12)] * 5 + [(12, 8)] * 3 + [(6, 6)]
    done: dict[int, list[float]] = {}

    def noted(directions: torch.Tensor, **how: object) -> torch.Tensor:
        done[rank].extend(directions.flatten(1).sum(1).tolist())
        return directions

    monkeypatch.setattr(muon, "orthogonalise", noted)
    monkeypatch.setattr(muon.distributed, "all_gather_into_tensor", lambda received, sent: received.zero_())
    gradients = [torch.randn(shape, generator=generator) for shape in shapes]
    for rank in range(ranks):
        done[rank] = []
        parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        muon.Muon([{"params": parameters, "lr": 0.1}], rank=rank, ranks=ranks).step()
    owned = sorted(one for each in done.values() for one in each)
    assert len(owned) == len(set(owned)) == len(shapes)
    counts = [len(each) for each in done.values()]
    assert max(counts) - min(counts) <= 1
