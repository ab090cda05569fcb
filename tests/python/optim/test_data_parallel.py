"""Training in several processes, started as people do."""

import pytest
import torch

from tests.python.integrations.torchrun import launch

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this build of torch has no torch.distributed"
)


def test_two_processes_train_as_with_distributed_data_parallel() -> None:
    output, _ = launch("tests.python.optim.two_processes", 2)
    assert "the same in 2 processes" in output
