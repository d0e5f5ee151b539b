"""The GPU suite where there is no card."""

import pytest
import torch

from tools import gpu_suite


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a card: the suite itself is the test")
def test_without_a_card_it_says_so() -> None:
    with pytest.raises(SystemExit, match="this machine has no CUDA device that torch can use"):
        gpu_suite.main([])
