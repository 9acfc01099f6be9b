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
    Knowledge,
    RelationalDistances,
    SoftenedLogits,
    SoftLabels,
    SupervisedContrastive,
    UncertaintyWeighted,
    WeightedSum,
    set_class_counts,
)
from mmemo.metrics import DimensionMetrics

TARGET = torch.tensor([0, 2, UNLABELLED, 1, 0])
LABELLED = torch.tensor([0, 1, 3, 4])


def outputs(**values: torch.Tensor) -> SimpleNamespace:
    generator = torch.Generator().manual_seed(0)
    defaults = {
        "logits": torch.randn(5, 3, generator=generator),
        "embedding": torch.randn(5, 4, generator=generator),
        "dimensions": torch.rand(5, 3, generator=generator) - 0.5,
    }
    return SimpleNamespace(**(defaults | values))


def targets(**values: torch.Tensor) -> SimpleNamespace:
    defaults = {
        "target": TARGET,
        "votes": torch.zeros(5, 3),
        "dimensions": torch.rand(5, 3, generator=torch.Generator().manual_seed(1)) - 0.5,
    }
    return SimpleNamespace(**(defaults | values))


def test_balanced_weights_equal_scikit_learns() -> None:
    train_targets = np.array([0] * 6 + [1] * 3 + [2])
    loss = CrossEntropy(class_weights="balanced")
    set_class_counts(WeightedSum([loss]), torch.bincount(torch.from_numpy(train_targets)))
    assert loss.weights is not None
    expected = compute_class_weight("balanced", classes=np.arange(3), y=train_targets)
    np.testing.assert_allclose(loss.weights.numpy(), expected, rtol=1e-6)
    logits = outputs().logits[LABELLED]
    reference = torch.nn.functional.cross_entropy(logits, TARGET[LABELLED], loss.weights)
    torch.testing.assert_close(loss(outputs(), targets()), reference)
    with pytest.raises(ValueError, match=r"has 2 weights, data\.classes has 3 classes"):
        CrossEntropy(class_weights=[1.0, 2.0]).set_class_counts(torch.ones(3))


def test_focal_loss_equals_cross_entropy_at_gamma_0_and_down_weights_easy_utterances_above_it() -> None:
    torch.testing.assert_close(FocalLoss(0.0)(outputs(), targets()), CrossEntropy()(outputs(), targets()))
    easy = outputs(logits=torch.tensor([[9.0, 0, 0]]))
    hard = outputs(logits=torch.tensor([[0.1, 0, 0]]))
    label = targets(target=torch.tensor([0]))
    ratio = CrossEntropy()(hard, label) / CrossEntropy()(easy, label)
    assert FocalLoss()(hard, label) / FocalLoss()(easy, label) > 1000 * ratio


def test_balanced_softmax_with_equal_counts_equals_cross_entropy() -> None:
    loss = BalancedSoftmax()
    set_class_counts(loss, torch.tensor([7, 7, 7]))
    torch.testing.assert_close(loss(outputs(), targets()), CrossEntropy()(outputs(), targets()))
    torch.testing.assert_close(loss.eval()(outputs(), targets()), CrossEntropy()(outputs(), targets()))
    loss.train()
    set_class_counts(loss, torch.tensor([90, 9, 1]))
    prior = torch.tensor([[0.90, 0.09, 0.01]]).log()
    label = targets(target=torch.tensor([1]))
    expected = -prior[0, 1]
    torch.testing.assert_close(loss(outputs(logits=torch.zeros(1, 3)), label), expected, atol=1e-5, rtol=1e-5)


def test_soft_label_loss_of_a_single_vote_equals_cross_entropy() -> None:
    votes = torch.nn.functional.one_hot(TARGET.clamp(min=0), 3).float()
    votes[2] = 0
    torch.testing.assert_close(SoftLabels()(outputs(), targets(votes=votes)), CrossEntropy()(outputs(), targets()))
    perfect = outputs(logits=votes[LABELLED].clamp(min=1e-9).log())
    assert float(SoftLabels("kl")(perfect, targets(votes=votes[LABELLED]))) == pytest.approx(0.0, abs=1e-6)


def test_ccc_loss_is_one_minus_lins_coefficient() -> None:
    x, y = outputs().dimensions.numpy().astype(float), targets().dimensions.numpy().astype(float)
    covariance = ((x - x.mean(0)) * (y - y.mean(0))).mean(0)
    ccc = 2 * covariance / (x.var(0) + y.var(0) + (x.mean(0) - y.mean(0)) ** 2)  # Lin 1989
    assert float(CCCLoss()(outputs(), targets())) == pytest.approx(1 - ccc.mean(), abs=1e-6)
    assert float(CCCLoss()(outputs(dimensions=targets().dimensions), targets())) == pytest.approx(0.0, abs=1e-5)
    assert float(CCCLoss()(outputs(dimensions=-targets().dimensions), targets())) > 1.0


def test_ccc_of_a_thousand_utterances_equals_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(3)
    target = torch.rand(1000, 3, generator=generator) * 2 - 1
    predicted = 0.5 * target + 0.2 * torch.randn(1000, 3, generator=generator)
    target[torch.rand(1000, 3, generator=generator) < 0.3] = float("nan")
    metric = DimensionMetrics("")
    metric.update(predicted, target)
    loss = CCCLoss()(outputs(dimensions=predicted), targets(dimensions=target))
    assert float(loss) == pytest.approx(1 - float(metric.compute()["ccc"]), abs=1e-3)


def test_dimension_metrics_ignore_missing_labels() -> None:
    metric = DimensionMetrics("test/")
    predicted = torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.1, 0.0], [0.9, 0.9, 0.9]])
    target = torch.tensor([[0.2, float("nan"), 0.3], [0.4, float("nan"), 0.1], [float("nan")] * 3])
    metric.update(predicted, target)
    values = metric.compute()
    assert "test/ccc_arousal" not in values
    assert float(values["test/mae_valence"]) == pytest.approx(0.05)
    assert float(values["test/mae"]) == pytest.approx(0.05)
    metric.reset()
    metric.update(predicted, torch.full((3, 3), float("nan")))
    assert "test/mae" not in metric.compute(), "an error of 0 would be reported as a perfect result"


@pytest.mark.parametrize(
    "loss", [CrossEntropy(), FocalLoss(), BalancedSoftmax(), SoftLabels(), CCCLoss(), SupervisedContrastive()]
)
def test_unlabelled_batches_give_zero_loss_and_finite_gradients(loss: torch.nn.Module) -> None:
    output = outputs()
    for tensor in vars(output).values():
        tensor.requires_grad_()
    labels = targets(target=torch.full((5,), UNLABELLED), dimensions=torch.full((5, 3), float("nan")))
    value = loss(output, labels)
    assert float(value) == 0.0
    value.backward()
    assert all(tensor.grad is None or tensor.grad.isfinite().all() for tensor in vars(output).values())


def test_supervised_contrastive_equals_the_papers_equation() -> None:
    """Khosla et al. 2020, eq. 2, written out."""
    output, labels = outputs(), targets()
    z = torch.nn.functional.normalize(output.embedding, dim=1)
    terms = []
    for i in LABELLED.tolist():
        others = [a for a in LABELLED.tolist() if a != i]
        positives = [p for p in others if TARGET[p] == TARGET[i]]
        if positives:
            denominator = sum(torch.exp(z[i] @ z[a] / 0.1) for a in others)
            terms.append(
                -sum(torch.log(torch.exp(z[i] @ z[p] / 0.1) / denominator) for p in positives) / len(positives)
            )
    torch.testing.assert_close(SupervisedContrastive()(output, labels), torch.stack(terms).mean())
    with pytest.raises(ValueError, match=r"are of one class; raise data\.batch_size"):
        SupervisedContrastive()(output, targets(target=torch.zeros(5, dtype=torch.long)))


def test_losses_combine_with_fixed_and_with_learned_weights() -> None:
    parts = [CrossEntropy(), CCCLoss()]
    values = [part(outputs(), targets()) for part in parts]
    fixed = WeightedSum(parts, [1.0, 0.25])
    assert fixed.required_labels == ("emotion", "dimensions")
    torch.testing.assert_close(fixed(outputs(), targets()), values[0] + 0.25 * values[1])
    learned = UncertaintyWeighted(parts)
    torch.testing.assert_close(learned(outputs(), targets()), values[0] + values[1])
    optimizer = torch.optim.SGD(learned.parameters(), lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        learned(outputs(), targets()).backward()
        optimizer.step()
    expected = 2 * torch.stack(values)  # where d/ds (e^-s L + s/2) = 0
    torch.testing.assert_close(learned.log_variances.exp().detach(), expected, rtol=1e-2, atol=1e-2)
    with pytest.raises(ValueError, match="one of 0 or more for each"):
        WeightedSum(parts, [1.0])


def make_knowledge(seed: int, dim: int = 5) -> Knowledge:
    torch.manual_seed(seed)
    return Knowledge(torch.randn(4, 3), torch.randn(4, dim), torch.randn(4, dim + 1))


def test_distillation_is_zero_if_student_and_teacher_agree() -> None:
    teacher, student = make_knowledge(0), make_knowledge(1)
    for part in (SoftenedLogits(3.0), RelationalDistances()):
        assert part(teacher, teacher).item() == pytest.approx(0.0, abs=1e-6)
        assert part(student, teacher).item() > 0.01
    hints = FeatureHints()
    hints.prepare({"embedding": 5}, {"embedding": 5})
    target = torch.nn.functional.layer_norm(teacher.embedding, [5])
    assert hints.projector is not None
    torch.nn.init.eye_(hints.projector.weight)
    torch.nn.init.zeros_(hints.projector.bias)
    assert hints(teacher._replace(embedding=target), teacher).item() == pytest.approx(0.0, abs=1e-6)


def test_softened_logits_equal_scipys_divergence() -> None:
    from scipy.special import rel_entr

    student, teacher = make_knowledge(0), make_knowledge(1)
    p = (teacher.logits / 2).softmax(-1).numpy()
    q = (student.logits / 2).softmax(-1).numpy()
    assert SoftenedLogits(2.0)(student, teacher).item() == pytest.approx(4 * rel_entr(p, q).sum(1).mean(), rel=1e-5)


def test_relational_distances_ignore_scale_and_rotation() -> None:
    teacher = make_knowledge(0)
    rotation, _ = torch.linalg.qr(torch.randn(5, 5))
    rotated = teacher._replace(embedding=3 * teacher.embedding @ rotation)
    assert RelationalDistances()(rotated, teacher).item() == pytest.approx(0.0, abs=1e-5)
    student = teacher._replace(embedding=torch.zeros(4, 5, requires_grad=True))
    RelationalDistances()(student, teacher).backward()
    assert student.embedding.grad is not None
    assert student.embedding.grad.isfinite().all(), "the gradient of identical vectors must be finite"
    duplicated = teacher.embedding.clone()
    duplicated[1] = duplicated[0]
    duplicated.requires_grad_()
    RelationalDistances()(teacher._replace(embedding=duplicated), make_knowledge(2)).backward()
    assert duplicated.grad is not None
    assert duplicated.grad.abs().max() < 10


def test_relational_distances_equal_scipys_distances_and_angles() -> None:
    from scipy.spatial.distance import cdist

    student, teacher = make_knowledge(0), make_knowledge(1)

    def relations(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values = vectors.numpy()
        distances = torch.from_numpy(cdist(values, values))
        angles = torch.zeros(4, 4, 4)
        for i in range(4):
            for j in range(4):
                for k in range(4):
                    a, b = vectors[j] - vectors[i], vectors[k] - vectors[i]
                    if i not in (j, k):
                        angles[i, j, k] = a @ b / (a.norm() * b.norm())
        return distances / distances[distances > 0].mean(), angles

    predicted, target = relations(student.embedding), relations(teacher.embedding)
    huber = torch.nn.functional.smooth_l1_loss
    expected = huber(predicted[0], target[0]) + 2 * huber(predicted[1], target[1])
    assert RelationalDistances()(student, teacher).item() == pytest.approx(expected.item(), rel=1e-4)


def test_invalid_temperatures_and_weights_are_rejected() -> None:
    for build in (lambda: SoftenedLogits(0), lambda: FeatureHints(weight=-1), lambda: RelationalDistances(0, 0)):
        with pytest.raises(ValueError, match="expected"):
            build()
