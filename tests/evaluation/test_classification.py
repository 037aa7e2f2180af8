import json

import pytest
import torch
import torch.nn.functional as F

from resvae import ResNetClassifier
from resvae.errors import ResvaeError
from resvae.evaluation import classify


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    return ResNetClassifier(depth=8, num_classes=3, image_shape=(1, 8, 8))


def test_error_and_loss_are_those_of_each_image_alone(classifier):
    x, y = torch.randint(0, 256, (7, 1, 8, 8), dtype=torch.uint8), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    found = classify(classifier, x, y, source="a", data="pictures", split="test")
    assert classifier.training  # as it was
    with torch.no_grad():
        logits = torch.cat([classifier.eval()(image[None]) for image in x])
    assert found.error == (logits.argmax(1) != y).sum().item() / 7
    assert found.loss == pytest.approx(F.cross_entropy(logits, y).item(), rel=1e-5)
    assert found.images == 7
    assert f"| error, % | {100 * found.error:.2f} |" in found.table()
    assert "7 pictures test images" in found.table()
    assert json.loads(found.json())["arguments"] == classifier.arguments


@pytest.mark.parametrize("labels", [[], [3], [-1]])
def test_labels_that_are_none_of_its_classes_are_refused(classifier, labels):
    x = torch.zeros(len(labels), 1, 8, 8, dtype=torch.uint8)
    with pytest.raises(ResvaeError, match="data: the labels of pictures are not allowed; 0 to 2"):
        classify(classifier, x, torch.tensor(labels, dtype=torch.long), data="pictures")
