from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from mmemo.labels import UNLABELLED
from mmemo.losses import (
    BalancedSoftmax,
    CCCLoss,
    CrossEntropy,
    FeatureHints,
    FocalLoss,
    RelationalDistances,
    SoftenedLogits,
    SoftLabels,
    SupervisedContrastive,
    Taught,
    UncertaintyWeighted,
    WeightedSum,
    count_classes,
)
from mmemo.metrics import DimensionMetrics

TARGET = torch.tensor([0, 2, UNLABELLED, 1, 0])
LABELLED = torch.tensor([0, 1, 3, 4])


def said(**values: torch.Tensor) -> SimpleNamespace:
    generator = torch.Generator().manual_seed(0)
    defaults = {
        "logits": torch.randn(5, 3, generator=generator),
        "embedding": torch.randn(5, 4, generator=generator),
        "dimensions": torch.rand(5, 3, generator=generator) - 0.5,
    }
    return SimpleNamespace(**(defaults | values))


def true(**values: torch.Tensor) -> SimpleNamespace:
    defaults = {
        "target": TARGET,
        "votes": torch.zeros(5, 3),
        "dimensions": torch.rand(5, 3, generator=torch.Generator().manual_seed(1)) - 0.5,
    }
    return SimpleNamespace(**(defaults | values))


def test_balanced_weights_are_scikit_learns() -> None:
    targets = np.array([0] * 6 + [1] * 3 + [2])
    loss = CrossEntropy(class_weights="balanced")
    count_classes(WeightedSum([loss]), torch.bincount(torch.from_numpy(targets)))
    assert loss.weights is not None
    expected = compute_class_weight("balanced", classes=np.arange(3), y=targets)
    np.testing.assert_allclose(loss.weights.numpy(), expected, rtol=1e-6)
    logits = said().logits[LABELLED]
    theirs = torch.nn.functional.cross_entropy(logits, TARGET[LABELLED], loss.weights)
    torch.testing.assert_close(loss(said(), true()), theirs)
    with pytest.raises(ValueError, match=r"names 2 weights, data\.classes 3 classes"):
        CrossEntropy(class_weights=[1.0, 2.0]).count_classes(torch.ones(3))


def test_focal_loss_without_focus_is_cross_entropy_and_with_it_forgets_what_is_known() -> None:
    torch.testing.assert_close(FocalLoss(0.0)(said(), true()), CrossEntropy()(said(), true()))
    sure = said(logits=torch.tensor([[9.0, 0, 0]]))
    unsure = said(logits=torch.tensor([[0.1, 0, 0]]))
    label = true(target=torch.tensor([0]))
    ratio = CrossEntropy()(unsure, label) / CrossEntropy()(sure, label)
    assert FocalLoss()(unsure, label) / FocalLoss()(sure, label) > 1000 * ratio


def test_balanced_softmax_with_equal_counts_is_cross_entropy() -> None:
    loss = BalancedSoftmax()
    count_classes(loss, torch.tensor([7, 7, 7]))
    torch.testing.assert_close(loss(said(), true()), CrossEntropy()(said(), true()))
    torch.testing.assert_close(loss.eval()(said(), true()), CrossEntropy()(said(), true()))
    loss.train()
    count_classes(loss, torch.tensor([90, 9, 1]))
    prior = torch.tensor([[0.90, 0.09, 0.01]]).log()
    label = true(target=torch.tensor([1]))
    expected = -prior[0, 1]
    torch.testing.assert_close(loss(said(logits=torch.zeros(1, 3)), label), expected, atol=1e-5, rtol=1e-5)


def test_soft_labels_of_one_vote_are_cross_entropy() -> None:
    votes = torch.nn.functional.one_hot(TARGET.clamp(min=0), 3).float()
    votes[2] = 0
    torch.testing.assert_close(SoftLabels()(said(), true(votes=votes)), CrossEntropy()(said(), true()))
    exact = said(logits=votes[LABELLED].clamp(min=1e-9).log())
    assert float(SoftLabels("kl")(exact, true(votes=votes[LABELLED]))) == pytest.approx(0.0, abs=1e-6)


def test_ccc_loss_is_one_minus_lins_coefficient() -> None:
    x, y = said().dimensions.numpy().astype(float), true().dimensions.numpy().astype(float)
    covariance = ((x - x.mean(0)) * (y - y.mean(0))).mean(0)
    ccc = 2 * covariance / (x.var(0) + y.var(0) + (x.mean(0) - y.mean(0)) ** 2)  # Lin 1989
    assert float(CCCLoss()(said(), true())) == pytest.approx(1 - ccc.mean(), abs=1e-6)
    assert float(CCCLoss()(said(dimensions=true().dimensions), true())) == pytest.approx(0.0, abs=1e-5)
    assert float(CCCLoss()(said(dimensions=-true().dimensions), true())) > 1.0


def test_ccc_of_a_thousand_equals_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(3)
    truth = torch.rand(1000, 3, generator=generator) * 2 - 1
    predicted = 0.5 * truth + 0.2 * torch.randn(1000, 3, generator=generator)
    truth[torch.rand(1000, 3, generator=generator) < 0.3] = float("nan")
    metric = DimensionMetrics("")
    metric.update(predicted, truth)
    loss = CCCLoss()(said(dimensions=predicted), true(dimensions=truth))
    assert float(loss) == pytest.approx(1 - float(metric.compute()["ccc"]), abs=1e-3)


def test_dimension_metrics_skip_what_is_not_labelled() -> None:
    metric = DimensionMetrics("test/")
    predicted = torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.1, 0.0], [0.9, 0.9, 0.9]])
    truth = torch.tensor([[0.2, float("nan"), 0.3], [0.4, float("nan"), 0.1], [float("nan")] * 3])
    metric.update(predicted, truth)
    values = metric.compute()
    assert "test/ccc_arousal" not in values
    assert float(values["test/mae_valence"]) == pytest.approx(0.05)
    assert float(values["test/mae"]) == pytest.approx(0.05)
    metric.reset()
    metric.update(predicted, torch.full((3, 3), float("nan")))
    assert "test/mae" not in metric.compute(), "0 would be the best there is"


@pytest.mark.parametrize(
    "loss", [CrossEntropy(), FocalLoss(), BalancedSoftmax(), SoftLabels(), CCCLoss(), SupervisedContrastive()]
)
def test_nothing_labelled_is_zero_loss_with_gradients(loss: torch.nn.Module) -> None:
    output = said()
    for tensor in vars(output).values():
        tensor.requires_grad_()
    labels = true(target=torch.full((5,), UNLABELLED), dimensions=torch.full((5, 3), float("nan")))
    value = loss(output, labels)
    assert float(value) == 0.0
    value.backward()
    assert all(tensor.grad is None or tensor.grad.isfinite().all() for tensor in vars(output).values())


def test_supervised_contrastive_is_the_papers_sum() -> None:
    """Khosla et al. 2020, eq. 2, written out."""
    output, labels = said(), true()
    z = torch.nn.functional.normalize(output.embedding, dim=1)
    terms = []
    for i in LABELLED.tolist():
        others = [a for a in LABELLED.tolist() if a != i]
        positives = [p for p in others if TARGET[p] == TARGET[i]]
        if positives:
            bottom = sum(torch.exp(z[i] @ z[a] / 0.1) for a in others)
            terms.append(-sum(torch.log(torch.exp(z[i] @ z[p] / 0.1) / bottom) for p in positives) / len(positives))
    torch.testing.assert_close(SupervisedContrastive()(output, labels), torch.stack(terms).mean())
    with pytest.raises(ValueError, match=r"holds one class alone; raise data\.batch_size"):
        SupervisedContrastive()(output, true(target=torch.zeros(5, dtype=torch.long)))


def test_losses_join_by_fixed_and_by_learned_weights() -> None:
    parts = [CrossEntropy(), CCCLoss()]
    values = [part(said(), true()) for part in parts]
    joined = WeightedSum(parts, [1.0, 0.25])
    assert joined.reads == ("emotion", "dimensions")
    torch.testing.assert_close(joined(said(), true()), values[0] + 0.25 * values[1])
    learned = UncertaintyWeighted(parts)
    torch.testing.assert_close(learned(said(), true()), values[0] + values[1])
    optimizer = torch.optim.SGD(learned.parameters(), lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        learned(said(), true()).backward()
        optimizer.step()
    expected = 2 * torch.stack(values)  # where d/ds (e^-s L + s/2) = 0
    torch.testing.assert_close(learned.log_variances.exp().detach(), expected, rtol=1e-2, atol=1e-2)
    with pytest.raises(ValueError, match="one of 0 or more for each"):
        WeightedSum(parts, [1.0])


def taught(seed: int, dim: int = 5) -> Taught:
    torch.manual_seed(seed)
    return Taught(torch.randn(4, 3), torch.randn(4, dim), torch.randn(4, dim + 1))


def test_distillation_is_zero_when_the_student_says_what_the_teacher_says() -> None:
    one, other = taught(0), taught(1)
    for part in (SoftenedLogits(3.0), RelationalDistances()):
        assert part(one, one).item() == pytest.approx(0.0, abs=1e-6)
        assert part(other, one).item() > 0.01
    hints = FeatureHints()
    hints.prepare({"embedding": 5}, {"embedding": 5})
    wanted = torch.nn.functional.layer_norm(one.embedding, [5])
    assert hints.projector is not None
    torch.nn.init.eye_(hints.projector.weight)
    torch.nn.init.zeros_(hints.projector.bias)
    assert hints(one._replace(embedding=wanted), one).item() == pytest.approx(0.0, abs=1e-6)


def test_softened_logits_are_the_divergence_of_scipy() -> None:
    from scipy.special import rel_entr

    student, teacher = taught(0), taught(1)
    p = (teacher.logits / 2).softmax(-1).numpy()
    q = (student.logits / 2).softmax(-1).numpy()
    assert SoftenedLogits(2.0)(student, teacher).item() == pytest.approx(4 * rel_entr(p, q).sum(1).mean(), rel=1e-5)


def test_relations_do_not_see_scale_or_rotation() -> None:
    teacher = taught(0)
    rotation, _ = torch.linalg.qr(torch.randn(5, 5))
    turned = teacher._replace(embedding=3 * teacher.embedding @ rotation)
    assert RelationalDistances()(turned, teacher).item() == pytest.approx(0.0, abs=1e-5)
    student = teacher._replace(embedding=torch.zeros(4, 5, requires_grad=True))
    RelationalDistances()(student, teacher).backward()
    assert student.embedding.grad is not None
    assert student.embedding.grad.isfinite().all(), "vectors that coincide have no direction"
    twins = teacher.embedding.clone()
    twins[1] = twins[0]
    twins.requires_grad_()
    RelationalDistances()(teacher._replace(embedding=twins), taught(2)).backward()
    assert twins.grad is not None
    assert twins.grad.abs().max() < 10


def test_relations_are_those_of_scipy() -> None:
    from scipy.spatial.distance import cdist

    student, teacher = taught(0), taught(1)

    def relations(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values = vectors.numpy()
        distances = torch.from_numpy(cdist(values, values))
        angles = torch.zeros(4, 4, 4)
        for at in range(4):
            for one in range(4):
                for other in range(4):
                    a, b = vectors[one] - vectors[at], vectors[other] - vectors[at]
                    if one != at and other != at:
                        angles[at, one, other] = a @ b / (a.norm() * b.norm())
        return distances / distances[distances > 0].mean(), angles

    said, wanted = relations(student.embedding), relations(teacher.embedding)
    huber = torch.nn.functional.smooth_l1_loss
    expected = huber(said[0], wanted[0]) + 2 * huber(said[1], wanted[1])
    assert RelationalDistances()(student, teacher).item() == pytest.approx(expected.item(), rel=1e-4)


def test_strengths_that_are_none_are_told() -> None:
    for build in (lambda: SoftenedLogits(0), lambda: FeatureHints(weight=-1), lambda: RelationalDistances(0, 0)):
        with pytest.raises(ValueError, match="expected"):
            build()
