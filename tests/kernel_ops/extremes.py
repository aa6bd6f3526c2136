"""What ordinary random inputs do not reach, for every way an operation can run. EXTREMES: name -> check(device)."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from tests.kernel_ops.contract import compare_divergences, compare_scores, seed
from torch import Tensor

from understudy_kernels import Scores, divergence, divergence_logits, score, score_logits

INF = torch.inf


def random(*shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed()))


def excluded_tokens(device: str) -> None:
    """Tokens of logit -inf have no probability; where only one side excludes, one KL is infinite."""
    a, b = random(6, 300, scale=3.0), random(6, 300, scale=3.0)
    targets = torch.tensor([0, 5, 7, 299, 10, 10])
    a[1, :200] = b[1, :200] = -INF  # both sides; a whole block of them too
    a[2, 7] = -INF  # the target
    a[3, :290] = -INF  # q has what p excludes: KL(q || p) = inf
    b[4, 10:] = -INF  # p has what q excludes
    a[5, 0] = b[5, 1] = -INF  # both ways
    compare_scores(score_logits(a.to(device), targets.to(device)), a.double(), targets, exact=True)
    found = divergence_logits(a.to(device), b.to(device), targets.to(device), js=True)
    compare_divergences(found, a.double(), b.double(), targets)
    infinite = [[bool(kl.isinf()) for kl in (found.kl_pq[row], found.kl_qp[row])] for row in range(6)]
    assert infinite == [
        [False, False],
        [False, False],
        [False, True],
        [False, True],
        [True, False],
        [True, True],
    ]


def a_bias_that_excludes(device: str) -> None:
    hidden, weight, bias = random(4, 32), random(70, 32), torch.zeros(70)
    bias[11:64] = -INF
    targets = torch.tensor([3, 20, 69, 0])
    found = score(hidden.to(device), weight.to(device), targets.to(device), bias=bias.to(device))
    compare_scores(found, hidden.double() @ weight.double().T + bias.double(), targets)
    assert found.logprob[1] == -INF
    assert found.rank[1] == 70 - 53 + 1


def nothing_but_excluded(device: str) -> None:
    """No distribution at all is NaN, as torch.log_softmax says, and touches no other row."""
    logits = random(3, 100)
    logits[1] = -INF
    check_bad_row(score_logits(logits.to(device), torch.zeros(3, dtype=torch.int64, device=device)), logits)


def not_a_number(device: str) -> None:
    """NaN in one hidden state shows in its own row, and nowhere else."""
    hidden, weight = random(3, 32), random(100, 32)
    hidden[1, 5] = torch.nan
    targets = torch.zeros(3, dtype=torch.int64, device=device)
    logits = hidden @ weight.T
    check_bad_row(score(hidden.to(device), weight.to(device), targets), logits)
    found = divergence(*(x.to(device) for x in (hidden, weight, random(3, 32), weight)), targets, js=True)
    for values in (found.kl_pq, found.kl_qp, found.entropy_p, found.logprob_p, found.hellinger, found.js):
        assert values is not None
        assert values.isnan().tolist() == [False, True, False]
    assert not bool(found.entropy_q.isnan().any())


def check_bad_row(found: Scores, logits: Tensor) -> None:
    for values in (found.logprob, found.entropy, found.max_logprob):
        assert values.isnan().tolist() == [False, True, False]
    assert 0 <= int(found.argmax[1]) < logits.shape[1]
    good = torch.tensor([0, 2])
    one = Scores(*(getattr(found, name).cpu()[good] for name in Scores.__slots__))
    compare_scores(one, logits[good].double(), torch.zeros(2, dtype=torch.int64))


def huge_logits(device: str) -> None:
    """Far beyond what exp can take, up to the last float32."""
    largest = torch.finfo(torch.float32).max
    a = torch.tensor([[1e30, -1e30, 0.0, 1e30], [largest, -largest, largest, 0.0], [-largest, -1e30, -1e20, -1e20]])
    b = torch.tensor([[1e30, -1e30, 0.0, 1e30], [5.0, 1.0, 2.0, 3.0], [-largest, -1e30, -1e20, -1e20]])
    targets = torch.tensor([0, 1, 3])
    found = score_logits(a.to(device), targets.to(device))
    ln2 = torch.tensor(2.0).log().item()
    torch.testing.assert_close(found.entropy.cpu(), torch.full((3,), ln2))
    assert found.rank.tolist() == [1, 4, 1]
    assert found.argmax.tolist() == [0, 0, 2]
    pair = divergence_logits(a.to(device), b.to(device), targets.to(device))
    torch.testing.assert_close(pair.kl_pq[[0, 2]].cpu(), torch.zeros(2))
    torch.testing.assert_close(pair.kl_qp[[0, 2]].cpu(), torch.zeros(2))
    assert float(pair.kl_qp[1]) > 1e37


def a_far_target(device: str) -> None:
    """A probability that float32 does not have still has its logprob."""
    logits = torch.zeros(1, 50)
    logits[0, 3] = -500.0
    found = score_logits(logits.to(device), torch.tensor([3], device=device))
    assert abs(float(found.logprob) + 500.0 + torch.tensor(49.0).log().item()) < 1e-4
    assert int(found.rank) == 50


def equal_logits(device: str) -> None:
    """The lowest of equal tokens is the argmax, over blocks and splits; the rank counts strictly larger ones only."""
    logits = random(4, 5000)
    for row, places in enumerate(([4999, 17], [300, 2100, 4000], [0, 1], [2047, 2048])):
        logits[row, places] = 9.0
    targets = torch.tensor([4999, 4000, 1, 2048])
    found = score_logits(logits.to(device), targets.to(device))
    assert found.argmax.tolist() == [17, 300, 0, 2047]
    assert found.rank.tolist() == [1, 1, 1, 1]
    uniform = score_logits(torch.ones(1, 5000, device=device), torch.tensor([4000], device=device))
    assert (int(uniform.argmax), int(uniform.rank)) == (0, 1)


def the_target_is_never_above_itself(device: str) -> None:
    """The sum for the target is taken twice, in two orders: the rank of the largest must be 1 all the same."""
    hidden, weight = random(40, 257), random(199, 257)
    targets = (hidden.double() @ weight.double().T).argmax(-1)
    found = score(hidden.to(device), weight.to(device), targets.to(device))
    assert found.rank.tolist() == [1] * 40
    assert torch.equal(found.argmax.cpu(), targets)
    assert torch.equal(found.logprob, found.max_logprob)


def targets_far_outside(device: str) -> None:
    """A target is 64 bits wide: one whose lower 32 bits are a token of the vocabulary is outside all the same."""
    a, b = random(5, 300), random(5, 300)
    targets = torch.tensor([2**32 + 7, -(2**32) + 7, 2**31, -1, 7])
    compare_scores(score_logits(a.to(device), targets.to(device)), a.double(), targets, exact=True)
    found = divergence_logits(a.to(device), b.to(device), targets.to(device), js=True)
    compare_divergences(found, a.double(), b.double(), targets)


def a_model_against_itself(device: str) -> None:
    hidden, weight, targets = random(7, 48).to(device), random(500, 48).to(device), torch.arange(7, device=device)
    found = divergence(hidden, weight, hidden.clone(), weight.clone(), targets, js=True)
    assert found.js is not None
    assert found.total_variation is not None
    for values in (found.kl_pq, found.kl_qp, found.js, found.total_variation):
        assert float(values.max()) <= 1e-6
        assert float(values.min()) >= -1e-7
    assert bool(found.agreement.all())
    assert torch.equal(found.logprob_p, found.logprob_q)


def swapped_sides(device: str) -> None:
    """p and q change places, and nothing else changes."""
    p, q, targets = random(5, 400, scale=4.0).to(device), random(5, 400, scale=2.0).to(device), torch.arange(5)
    one, other = (divergence_logits(*sides, targets.to(device), js=True) for sides in ((p, q), (q, p)))
    for mine, theirs in (("kl_pq", "kl_qp"), ("entropy_p", "entropy_q"), ("logprob_p", "logprob_q")):
        torch.testing.assert_close(getattr(one, mine), getattr(other, theirs), rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(getattr(one, theirs), getattr(other, mine), rtol=1e-6, atol=1e-7)
    assert torch.equal(one.argmax_p, other.argmax_q)
    torch.testing.assert_close(one.js, other.js)
    assert float((one.kl_pq - one.kl_qp).abs().min()) > 1e-3, "the sides of this test are too alike"


def rows_with_a_stride(device: str) -> None:
    """Hidden states and weights that are columns of something wider, and targets with a stride."""
    hidden, weight = random(6, 100).to(device), random(90, 80).to(device)
    targets = torch.arange(12, device=device)[::2]
    found = score(hidden[:, :33], weight[:, 40:73], targets)
    expected = score(hidden[:, :33].contiguous(), weight[:, 40:73].contiguous(), targets.contiguous())
    for name in Scores.__slots__:
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))


def rounded_logits(device: str) -> None:
    """As a model's own head rounds them. Small fractions: the sums are exact, and so is what they are rounded to.

    Triton's interpreter cuts bfloat16 off instead of rounding it, so there only the other two are tried.
    """
    g = torch.Generator().manual_seed(seed())
    interpreting = os.environ.get("TRITON_INTERPRET") == "1"
    for dtype in (torch.float16, torch.float32) if interpreting else (torch.bfloat16, torch.float16, torch.float32):
        shapes = ((9, 40), (300, 40), (300,), (9, 40))
        hidden, weight, bias, other = ((torch.randint(-99, 100, shape, generator=g) / 32).to(dtype) for shape in shapes)
        targets = torch.arange(9) * 7
        a, b = ((x.double() @ weight.double().T + bias.double()).to(dtype).double() / 4 for x in (hidden, other))
        if dtype != torch.float32:
            assert not torch.equal(a, (hidden.double() @ weight.double().T + bias.double()) / 4), "nothing was rounded"
        p, q, w, c, t = (x.to(device) for x in (hidden, other, weight, bias, targets))
        compare_scores(score(p, w, t, bias=c, scale=0.25, round_logits=True), a, targets, exact=True)
        found = divergence(p, w, q, w, t, bias_p=c, bias_q=c, scale_p=0.25, scale_q=0.25, round_logits=True)
        compare_divergences(found, a, b, targets)
        without = score(p, w, t, round_logits=True)
        compare_scores(without, (hidden.double() @ weight.double().T).to(dtype).double(), targets, exact=True)


EXTREMES: dict[str, Callable[[str], None]] = {
    check.__name__: check
    for check in (
        excluded_tokens,
        a_bias_that_excludes,
        nothing_but_excluded,
        not_a_number,
        huge_logits,
        a_far_target,
        equal_logits,
        the_target_is_never_above_itself,
        targets_far_outside,
        a_model_against_itself,
        swapped_sides,
        rows_with_a_stride,
        rounded_logits,
    )
}
