import json

import pytest
import torch
import torch.nn.functional as F

from resvae import ResNetClassifier
from resvae.errors import ResvaeError
from resvae.evaluation import evaluate


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    return ResNetClassifier(depth=8, num_classes=3, image_shape=(1, 8, 8))


def test_error_and_loss_are_those_of_each_image_alone(classifier):
    x, y = torch.randint(0, 256, (7, 1, 8, 8), dtype=torch.uint8), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    found = evaluate(classifier, zip(x.split(4), y.split(4), strict=True), source="a")
    assert classifier.training  # as it was
    with torch.no_grad():
        logits = torch.cat([classifier.eval()(image[None]) for image in x])
        figures = classifier.figures(x, y)
    assert found.error == (logits.argmax(1) != y).sum().item() / 7 == pytest.approx(figures["error"].mean().item())
    assert found.loss == pytest.approx(F.cross_entropy(logits, y).item(), rel=1e-5)
    assert found.loss == pytest.approx(figures["loss"].mean().item(), rel=1e-5)
    assert f"| error, % | {100 * found.error:.2f} |" in found.table()
    assert "parameters, 7 images" in found.table()
    read = json.loads(found.json())
    assert (read["arguments"], read["images"], read["error"]) == (classifier.arguments, 7, found.error)


@pytest.mark.parametrize("labels", [[3, 0], [-1, 1], [1, 1], None])
def test_labels_that_it_cannot_be_measured_by_are_refused(classifier, labels):
    x = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    with pytest.raises(ResvaeError, match=r"labels of the batches are not allowed; 0 to 2|all alike|without labels"):
        evaluate(classifier, [x if labels is None else (x, torch.tensor(labels))])
