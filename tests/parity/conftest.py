"""What the parity tests share."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def torchvision():
    """torchvision, even where its compiled operators are of another build: none is needed here."""
    torch = pytest.importorskip("torch")
    try:
        yield pytest.importorskip("torchvision")
    except RuntimeError:
        operators = torch.library.Library("torchvision", "FRAGMENT")
        arguments = "Tensor dets, Tensor scores, float iou_threshold"
        operators.define(f"nms({arguments}) -> Tensor")
        operators.define(f"qnms({arguments}) -> Tensor")
        yield pytest.importorskip("torchvision"), operators
