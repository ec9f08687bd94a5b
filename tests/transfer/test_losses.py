"""Every loss and its gradient against float64 numpy written from the equations; gradients by central differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from kt_study.errors import DataError
from kt_study.settings import Settings
from worker.objectives import Batch, Setup, build_objective
from worker.objectives.crd import ContrastiveRepresentationDistillation, OtherClasses

Array = NDArray[np.float64]
B, C, D_S, D_T = 6, 7, 4, 5


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def example(seed: int = 0) -> dict[str, Any]:
    draw = rng(seed)
    logits, target = draw.normal(size=(2, B, C)) * 2
    labels = draw.integers(C, size=B)
    labels[0], labels[1] = logits[0].argmax(), target[1].argmax()  # student right; teacher right
    return {
        "logits": logits,
        "target": target,
        "labels": labels,
        "features": draw.normal(size=(B, D_S)),
        "teacher_features": draw.normal(size=(B, D_T)),
    }


def log_softmax(z: Array) -> Array:
    out: Array = z - np.log(np.exp(z - z.max(1, keepdims=True)).sum(1, keepdims=True)) - z.max(1, keepdims=True)
    return out


def kl(p_logits: Array, q_logits: Array, t: float) -> Array:
    """T^2 sum_c p (log p - log q), p of the first argument: teacher first."""
    log_p, log_q = log_softmax(p_logits / t), log_softmax(q_logits / t)
    out: Array = t * t * (np.exp(log_p) * (log_p - log_q)).sum(1)
    return out


def xe(z: Array, y: NDArray[np.int64]) -> Array:
    out: Array = -log_softmax(z)[np.arange(len(y)), y]
    return out


def softmax(z: Array) -> Array:
    out: Array = np.exp(log_softmax(z))
    return out


def top(x: dict[str, Any], k: int) -> tuple[Array, Array]:
    chosen = [sorted(range(C), key=lambda c: -row[c])[:k] for row in x["target"]]
    return (
        np.array([row[c] for row, c in zip(x["logits"], chosen, strict=True)]),
        np.array([row[c] for row, c in zip(x["target"], chosen, strict=True)]),
    )


def smoothed_xe(x: dict[str, Any], e: float) -> Array:
    log_q = log_softmax(x["logits"])
    y = np.full((B, C), e / C)
    y[np.arange(B), x["labels"]] += 1 - e
    out: Array = -(y * log_q).sum(1)
    return out


def similarity_kl(x: dict[str, Any]) -> Array:
    def rows(f: Array) -> Array:
        unit = f / np.sqrt((f * f).sum(1, keepdims=True))
        return log_softmax(unit @ unit.T)

    log_t, log_s = rows(x["teacher_features"]), rows(x["features"])
    out: Array = (np.exp(log_t) * (log_t - log_s)).sum(1)
    return out


def authors_mcl(x: dict[str, Any]) -> Array:
    """0.7 of KL averaged over what is no negative flip, and 0.3 of XE taken on probabilities."""
    teacher_wrong = x["target"].argmax(1) != x["labels"]
    kept = ~(teacher_wrong & (x["logits"].argmax(1) == x["labels"]))
    assert 0 < kept.sum() < B  # the example has both
    divergence = kl(x["target"], x["logits"], 1.0)
    out: Array = 0.7 * np.where(kept, divergence, 0) * B / kept.sum() + 0.3 * xe(softmax(x["logits"]), x["labels"])
    return out


CASES: dict[str, tuple[str, dict[str, Any], Callable[[dict[str, Any]], Array]]] = {
    "kl": ("kl", {"temperature": 3.0}, lambda x: kl(x["target"], x["logits"], 3.0)),
    "kl top-k": ("kl", {"top_k": 3}, lambda x: kl(*reversed(top(x, 3)), 1.0)),
    "kl_dp": ("kl_dp", {}, lambda x: kl(x["target"], x["logits"], 1.0)),
    "kl_dp_unsupervised": ("kl_dp_unsupervised", {}, lambda x: kl(x["target"], x["logits"], 1.0)),
    "self_distillation": ("self_distillation", {"temperature": 0.5}, lambda x: kl(x["target"], x["logits"], 0.5)),
    "kl_dp_random": ("kl_dp_random", {"temperature": 2.0}, lambda x: kl(x["target"], x["logits"], 2.0)),
    "kl_dp_oracle": ("kl_dp_oracle", {}, lambda x: kl(x["target"], x["logits"], 1.0)),
    "labels": ("labels", {}, lambda x: xe(x["logits"], x["labels"])),
    "labels authors": ("labels", {"reading": "authors"}, lambda x: xe(x["logits"], x["labels"])),
    "xe_kl": (
        "xe_kl",
        {"kl_weight": 0.3, "temperature": 2.0},
        lambda x: 0.3 * kl(x["target"], x["logits"], 2.0) + 0.7 * xe(x["logits"], x["labels"]),
    ),
    "xe_kl authors": (
        "xe_kl",
        {"kl_weight": 0.3, "reading": "authors"},
        lambda x: 0.3 * kl(x["target"], x["logits"], 1.0) + 0.7 * xe(softmax(x["logits"]), x["labels"]),
    ),
    "xe_kl_mcl": (
        "xe_kl_mcl",
        {"kl_weight": 0.7},
        lambda x: 0.7 * kl(x["target"], x["logits"], 1.0) + 0.3 * xe(x["logits"], x["labels"]),
    ),
    "xe_kl_mcl authors": ("xe_kl_mcl", {"kl_weight": 0.7, "reading": "authors"}, authors_mcl),
    "kl_label_smoothing": (
        "kl_label_smoothing",
        {"label_smoothing": 0.2, "kl_weight": 0.4},
        lambda x: 0.4 * kl(x["target"], x["logits"], 1.0) + 0.6 * smoothed_xe(x, 0.2),
    ),
    "kl_label_smoothing authors": (
        "kl_label_smoothing",
        {"label_smoothing": 0.2, "kl_weight": 0.4, "reading": "authors"},
        lambda x: 0.4 * kl(x["target"], x["logits"], 1.0) + 0.6 * xe(0.8 * softmax(x["logits"]) + 0.2 / C, x["labels"]),
    ),
    "soft_xe": (
        "soft_xe",
        {"temperature": 2.0},
        lambda x: -4.0 * (softmax(x["target"] / 2) * log_softmax(x["logits"] / 2)).sum(1),
    ),
    "soft_xe authors": (
        "soft_xe",
        {"reading": "authors"},
        lambda x: -(softmax(x["target"]) * log_softmax(softmax(x["logits"]))).sum(1),
    ),
    "cd": ("cd", {}, lambda x: xe(x["logits"], x["labels"]) + similarity_kl(x)),
    "cd authors": (
        "cd",
        {"reading": "authors"},
        lambda x: 0.1 * xe(x["logits"], x["labels"]) + 10 * B * similarity_kl(x),
    ),
}


def central_differences(loss: Callable[[dict[str, Any]], Array], x: dict[str, Any], name: str) -> Array:
    """d mean(loss) / d x[name]."""
    gradient = np.zeros_like(x[name])
    for at in np.ndindex(*x[name].shape):
        sides = []
        for step in (1e-6, -1e-6):
            moved = x[name].copy()
            moved[at] += step
            sides.append(loss({**x, name: moved}).mean())
        gradient[at] = (sides[0] - sides[1]) / 2e-6
    return gradient


def batch_of(x: dict[str, Any]) -> Batch:
    def tensor(name: str) -> torch.Tensor:
        return torch.tensor(x[name], dtype=torch.float32, requires_grad=name in ("logits", "features"))

    return Batch(
        logits=tensor("logits"),
        labels=torch.from_numpy(x["labels"]),
        index=torch.arange(B),
        target=tensor("target"),
        teacher_class=torch.from_numpy(x["target"].argmax(1)),
        features=tensor("features"),
        teacher_features=tensor("teacher_features"),
    )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", [3, 12])
def test_loss_and_gradient(case: str, seed: int) -> None:
    name, settings, loss = CASES[case]
    x = example(seed)
    batch = batch_of(x)
    losses = build_objective(name, Setup(settings=Settings(**settings), labels=batch.labels))(batch)
    np.testing.assert_allclose(losses.detach().numpy(), loss(x), rtol=2e-5, atol=2e-6)
    losses.mean().backward()
    for of in ("logits", "features"):
        found = getattr(batch, of).grad
        expected = central_differences(loss, x, of)
        np.testing.assert_allclose(np.zeros_like(expected) if found is None else found, expected, rtol=1e-3, atol=2e-5)


def test_authors_mcl_without_any_sample_left_is_cross_entropy() -> None:
    x = example()
    x["logits"][np.arange(B), x["labels"]] = 20.0
    x["target"][np.arange(B), x["labels"]] = -20.0
    settings = Settings(kl_weight=0.7, reading="authors")
    losses = build_objective("xe_kl_mcl", Setup(settings=settings, labels=torch.zeros(1, dtype=torch.int64)))(
        batch_of(x)
    )
    np.testing.assert_allclose(losses.detach(), 0.3 * xe(softmax(x["logits"]), x["labels"]), rtol=1e-5)


class TestContrastiveRepresentationDistillation:
    """Tian et al. 2020, Eqs. 17 to 19, with M = 9 samples and N = 5 negatives."""

    M, N, TAU = 9, 5, 0.07

    def crd(self) -> ContrastiveRepresentationDistillation:
        torch.manual_seed(5)
        labels = torch.tensor([0, 0, 1, 1, 1, 2, 2, 0, 1])
        setup = Setup(settings=Settings(), labels=labels, student_dim=D_S, teacher_dim=D_T)
        return ContrastiveRepresentationDistillation(setup, negatives=self.N)

    def exponentials(self, state: dict[str, Any], x: dict[str, Any], anchor: str, compared: Any) -> Array:
        """exp(g . m / tau) of one side's embeddings against the other side's memory, [b, 1 + N]."""
        name, other = ("features", "teacher") if anchor == "student" else ("teacher_features", "student")
        v = x[name] @ state[f"embed_{anchor}.weight"].T + state[f"embed_{anchor}.bias"]
        v = v / np.sqrt((v * v).sum(1, keepdims=True))
        return np.exp(np.einsum("bd,bkd->bk", v, state[f"{other}_memory"][compared]) / self.TAU)

    def expected(self, state: dict[str, Any], x: dict[str, Any], z: dict[str, float], compared: Any) -> Array:
        """XE + 0.8 (L_s + L_t); z by anchor."""
        total = xe(x["logits"], x["labels"])
        for anchor in ("student", "teacher"):
            e = self.exponentials(state, x, anchor, compared) / z[anchor]
            h = e / (e + self.N / self.M)
            total = total + 0.8 * (-np.log(h[:, 0]) - np.log(1 - h[:, 1:]).sum(1))
        return np.asarray(total)

    @pytest.mark.parametrize("z", [None, 1.0, 37.0])
    def test_loss_and_gradient(self, z: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
        crd, x = self.crd(), example(4)
        x["labels"] = x["labels"] % 3
        negatives = torch.from_numpy(rng(1).integers(self.M, size=(B, self.N)))
        monkeypatch.setattr(OtherClasses, "draw", lambda *_: negatives)
        compared = np.concatenate([np.arange(B)[:, None], negatives.numpy()], axis=1)
        state = {name: value.double().numpy() for name, value in crd.state_dict().items()}
        constants = dict.fromkeys(("student", "teacher"), z or 0.0)
        if z is None:
            constants = {a: self.M * self.exponentials(state, x, a, compared).mean() for a in constants}
        else:
            crd.student_z.fill_(z)
            crd.teacher_z.fill_(z)
        batch = batch_of(x)
        losses = crd(batch)
        np.testing.assert_allclose(losses.detach(), self.expected(state, x, constants, compared), rtol=2e-4)
        losses.mean().backward()
        assert batch.features is not None and batch.features.grad is not None
        slopes = central_differences(lambda moved: self.expected(state, moved, constants, compared), x, "features")
        np.testing.assert_allclose(batch.features.grad, slopes, rtol=2e-3, atol=1e-4)

    def test_memory_moves_halfway_after_the_backward_pass(self) -> None:
        crd, x = self.crd(), example(4)
        x["labels"] = x["labels"] % 3
        before = crd.student_memory.clone()
        batch = batch_of(x)
        crd(batch).mean().backward()
        assert torch.equal(crd.student_memory, before)
        crd.settle()
        weight, bias = crd.embed_student.weight.detach().double(), crd.embed_student.bias.detach().double()
        v = torch.from_numpy(x["features"]) @ weight.T + bias
        v = v / v.norm(dim=1, keepdim=True)
        blended = 0.5 * before[:B].double() + 0.5 * v
        torch.testing.assert_close(
            crd.student_memory[:B].double(), blended / blended.norm(dim=1, keepdim=True), rtol=1e-5, atol=1e-6
        )
        assert torch.equal(crd.student_memory[B:], before[B:])

    def test_samples_of_one_class_have_no_negatives(self) -> None:
        """On a GPU the draw would end in an index out of range, and with it every later job of the worker."""
        for labels in (torch.zeros(9, dtype=torch.int64), torch.full((9,), 3)):
            with pytest.raises(DataError, match="all 9 samples are of one"):
                OtherClasses(labels)
        assert OtherClasses(torch.tensor([3, 3, 1])).draw(torch.tensor([1]), 5).max() < 2

    def test_negatives_are_of_other_classes_and_uniform(self) -> None:
        labels = torch.tensor([2, 0, 1, 1, 0, 2, 1, 1])
        torch.manual_seed(0)
        drawn = OtherClasses(labels).draw(torch.tensor([0, 1, 2]), 30_000)
        for label, row in zip((0, 1, 2), drawn, strict=True):
            others = [i for i in range(8) if labels[i] != label]
            counts = torch.bincount(row, minlength=8).double()
            assert counts[labels == label].sum() == 0
            expected = 30_000 / len(others)
            chi2 = float(((counts[others] - expected) ** 2 / expected).sum())
            assert chi2 < 27.9  # 99.99 % of chi-square with 6 degrees of freedom; fewer have less
