"""The chunked op against its reference in fp64, finite differences, and what it must leave out."""

from dataclasses import fields

import pytest
import torch
import torch.nn.functional as F

from mnmt_scale.flow import IGNORE
from mnmt_scale.kernels import backend, teachers
from mnmt_scale.kernels.ops import linear_distillation as ops
from mnmt_scale.kernels.ops import teacher_mixture, vocabulary_rows
from mnmt_scale.kernels.ops.linear_cross_entropy import linear_cross_entropy

fused = ops.linear_distillation
SEGMENTS = (0, 9, 9, 20, 23)
TABLE = [[0.5, 0.2, 0.1], [0.3, 0.3, 0.3], [0.0, 0.4, 0.7], [0.1, 0.0, 0.6]]
W0 = [1.0, 0.5, 0.25, 0.0]


@pytest.fixture(params=["fast", "torch"], autouse=True)
def rows(request, monkeypatch):
    """The chunks' row kernels: those of this device, and those in torch."""
    if request.param == "torch":
        monkeypatch.setattr(vocabulary_rows, "implementation", lambda op, device_type, dtype: "reference")


def case(T=23, D=8, V=31, dtype=torch.float64, ignored=0.2, seed=0, kinds="hpk"):
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    def teacher(kind):
        if kind == "h":
            return ops.HiddenTeacher(normal(T, 5).to(dtype), normal(V, 5).to(dtype))
        q = torch.softmax(2 * normal(T, V), dim=1)
        if kind == "p":
            return ops.ProbabilityTeacher(q.to(dtype))
        best = q.topk(min(4, V), dim=1)
        return ops.TopKTeacher(best.indices, best.values.log().to(dtype), (1 - best.values.sum(dim=1)).clamp(0, 1).to(dtype))

    hidden, weight = normal(T, D).to(dtype).requires_grad_(), normal(V, D).to(dtype).requires_grad_()
    targets = torch.randint(V, (T,), generator=g)
    targets[torch.rand(T, generator=g) < ignored] = IGNORE
    return hidden, weight, targets, torch.rand(T, generator=g), SEGMENTS, [teacher(kind) for kind in kinds]


def languages(T=23, L=4, seed=1):
    return torch.randint(L, (T,), generator=torch.Generator().manual_seed(seed))


def run(*arguments, **options):
    """Every field, and the two gradients."""
    losses = fused(*arguments, **options)
    gradients = torch.autograd.grad(losses.total, arguments[:2])
    return {f.name: getattr(losses, f.name).detach() for f in fields(losses)} | dict(
        d_hidden=gradients[0], d_weight=gradients[1]
    )


def reference(*arguments, **options):
    options.pop("chunk_tokens", None)
    with backend.forced("reference"):
        return run(*arguments, **options)


def doubled(hidden, weight, targets, scale, segments, given):
    def wide(x):
        return x.detach().double() if x.is_floating_point() else x

    given = [type(t)(*(wide(getattr(t, f.name)) for f in fields(t))) for t in given]
    return wide(hidden).requires_grad_(), wide(weight).requires_grad_(), targets, scale, segments, given


def check(ours, truth, tolerance=1e-10):
    for name, b in truth.items():
        a = ours[name]
        assert torch.equal(a.isnan(), b.isnan()), name
        a, b = a.double().nan_to_num(), b.double().nan_to_num()
        assert (a - b).norm() <= tolerance * (b.norm() + 1e-3), (name, (a - b).norm().item(), b.norm().item())


OPTIONS = {
    "plain": {},
    "smoothed": dict(label_smoothing=0.1),
    "languages": dict(languages=languages(), label_smoothing=0.1),
    "cold": dict(temperature=0.5),
    "warm": dict(temperature=2.0, label_smoothing=0.1, languages=languages()),
    "all likelihoods": dict(every_teacher_nll=True, temperature=2.0),
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("chunk", [1, 5, 8, 9, 22, 23, 24, 1000])
@pytest.mark.parametrize("ignored", [0.0, 0.2])
def test_equals_reference_at_every_chunk_boundary(options, chunk, ignored):
    arguments = (*case(ignored=ignored), TABLE, W0)
    check(run(*arguments, chunk_tokens=chunk, **OPTIONS[options]), reference(*arguments, **OPTIONS[options]))


@pytest.mark.parametrize("kinds", ["h", "p", "k", "hhh", ""])
def test_any_number_of_teachers_of_any_kind(kinds):
    table = torch.tensor(TABLE)[:, : len(kinds)]
    arguments = (*case(kinds=kinds), table, 0.5)
    check(run(*arguments, chunk_tokens=7), reference(*arguments))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 4e-2), (torch.float16, 5e-3)])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_narrow_types_against_the_fp64_truth(dtype, tolerance, temperature):
    inputs = case(T=23, D=32, V=97, dtype=dtype)
    options = dict(label_smoothing=0.1, temperature=temperature)
    ours = run(*inputs, TABLE, W0, chunk_tokens=6, **options)
    assert ours["d_hidden"].dtype == ours["d_weight"].dtype == dtype
    assert ours["total"].dtype == ours["teacher_nll"].dtype == torch.float32
    check(ours, reference(*doubled(*inputs), TABLE, W0, **options), tolerance)


def test_a_teacher_may_be_of_another_type():
    inputs = case(dtype=torch.bfloat16)
    given = [doubled(*inputs)[5][0], *inputs[5][1:]]
    given[0] = ops.HiddenTeacher(given[0].hidden.float(), given[0].weight.float())
    arguments = (*inputs[:5], given)
    check(run(*arguments, TABLE, W0, chunk_tokens=6), reference(*doubled(*arguments), TABLE, W0), 4e-2)


@pytest.mark.parametrize("options", ["plain", "warm"])
def test_gradcheck(options):
    hidden, weight, *others = case(T=23, D=3, V=5)

    def total(h, w):
        return fused(h, w, *others, TABLE, W0, chunk_tokens=9, **OPTIONS[options]).total

    assert torch.autograd.gradcheck(total, (hidden, weight))


def test_without_teachers_it_is_linear_cross_entropy():
    inputs = case(kinds="")
    ours = run(*inputs, torch.zeros(4, 0), 1.0, label_smoothing=0.1)
    total, sums, nlls, tokens = linear_cross_entropy(*inputs[:5], 0.1)
    gradients = torch.autograd.grad(total, inputs[:2])
    expected = dict(total=total.detach(), sums=sums, nlls=nlls, tokens=tokens, d_hidden=gradients[0], d_weight=gradients[1])
    check(ours, expected, 1e-14)


def test_a_certain_teacher_is_a_label():
    """KD from the one-hot distribution of the labels is the negative log-likelihood."""
    hidden, weight, targets, scale, segments, _ = case(kinds="")
    one_hot = F.one_hot(targets.clamp(min=0), 31).double()
    ours = run(hidden, weight, targets, scale, segments, [ops.ProbabilityTeacher(one_hot)], [[1.0]] * 4, 0.0)
    plain = run(hidden, weight, targets, scale, segments, [], torch.zeros(4, 0), 1.0)
    for name in ("total", "d_hidden", "d_weight", "sums"):
        torch.testing.assert_close(ours[name], plain[name])
    torch.testing.assert_close(ours["distillation"], plain["nlls"])
    assert not ours["entropy"].any()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_a_student_learns_nothing_from_itself(temperature):
    """Its own weight tensor serves as the teacher's, as in mutual learning from a copy; no gradient flows through that."""
    hidden, weight, targets, scale, segments, _ = case(kinds="")
    itself = [ops.HiddenTeacher(hidden, weight)]
    ours = run(hidden, weight, targets, scale, segments, itself, [[0.7]] * 4, 0.0, temperature=temperature)
    torch.testing.assert_close(ours["distillation"], ours["entropy"])
    torch.testing.assert_close(ours["d_hidden"], torch.zeros_like(hidden))
    torch.testing.assert_close(ours["d_weight"], torch.zeros_like(weight))


def test_teacher_likelihoods():
    inputs = case(kinds="hpk")
    hidden, weight, targets, _, _, given = inputs
    kept = targets != IGNORE
    every = run(*inputs, torch.zeros(4, 3), 1.0, every_teacher_nll=True, temperature=2.0, chunk_tokens=5)["teacher_nll"]
    expected = F.cross_entropy(given[0].hidden @ given[0].weight.t(), targets, reduction="none", ignore_index=IGNORE)
    torch.testing.assert_close(every[kept, 0], expected[kept])
    labels = targets.clamp(min=0)[:, None]
    torch.testing.assert_close(every[kept, 1], -given[1].probabilities.gather(1, labels)[kept, 0].log())
    assert every[~kept].isnan().all()
    assert run(*inputs, torch.zeros(4, 3), 1.0)["teacher_nll"].isnan().all()
    for c, teacher in enumerate(given):
        for chunk in (None, 6):
            alone = ops.teacher_likelihood(teacher, targets, chunk, vocabulary_size=31)
            torch.testing.assert_close(alone, every[:, c], equal_nan=True)


def test_top_k_rest_is_spread_evenly():
    ids, log_p, rest = torch.tensor([[4, 1]]), torch.tensor([[0.5, 0.2]]).log(), torch.tensor([0.3])
    teacher = ops.TopKTeacher(ids, log_p, rest)
    q = torch.tensor([[0.1, 0.2, 0.1, 0.1, 0.5]])
    hidden, weight = torch.randn(1, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    both = [
        run(hidden, weight, torch.tensor([y]), torch.ones(1), (0, 1), [t], [[0.6]], 1.0)
        for t in (teacher, ops.ProbabilityTeacher(q))
        for y in (4, 2)
    ]
    for ours, expected in zip(both[:2], both[2:], strict=True):
        check(ours, expected, 1e-6)


@pytest.fixture
def products(monkeypatch):
    """Rows of the teachers' matrix products."""
    rows = []
    inner = teacher_mixture.product
    monkeypatch.setattr(teacher_mixture, "product", lambda a, b, out: rows.append(a.shape[0]) or inner(a, b, out))
    return rows


@pytest.mark.parametrize("by_language", [False, True])
@pytest.mark.parametrize("chunk", [4, 23])
def test_a_weight_of_zero_costs_no_product(products, by_language, chunk):
    """Two of the table's rows use the first teacher, one the second, none the third, whatever the chunks."""
    table = [[0.5, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.5, 0.3, 0.0]]
    inputs = case(kinds="hhh")
    of = languages() if by_language else torch.tensor([0] * 9 + [2] * 11 + [3] * 3)
    options = dict(languages=of) if by_language else {}
    ours = run(*inputs, table, 1.0, chunk_tokens=chunk, **options)
    kept = inputs[2] != IGNORE
    assert sum(products) == (kept & (of == 0)).sum() + 2 * (kept & (of == 3)).sum()
    check(ours, reference(*inputs, table, 1.0, **options))
    products.clear()
    run(*inputs, table, 1.0, chunk_tokens=chunk, every_teacher_nll=True, **options)
    assert sum(products) == 3 * kept.sum()


def test_skipped_and_ignored_rows_of_a_teacher_may_hold_anything():
    inputs = case(kinds="hp", ignored=0.3)
    clean = run(*inputs, [[0.5, 0.0]] * 2 + [[0.0, 0.5]] * 2, 1.0)
    (first, second), ignored = inputs[5], inputs[2] == IGNORE
    first.hidden[9:], second.probabilities[:9] = float("nan"), float("nan")
    first.hidden[ignored], second.probabilities[ignored] = float("nan"), float("nan")
    with torch.no_grad():
        inputs[0][ignored] = float("nan")
    check(run(*inputs, [[0.5, 0.0]] * 2 + [[0.0, 0.5]] * 2, 1.0), clean)


def test_all_ignored_and_no_tokens_at_all():
    inputs = list(case())
    inputs[2] = torch.full((23,), IGNORE)
    empty = list(case(T=0))
    empty[4] = (0, 0, 0, 0, 0)
    for arguments in (inputs, empty):
        ours = run(*arguments, TABLE, W0, label_smoothing=0.1)
        assert all(not ours[name].any() for name in ("total", "sums", "nlls", "distillation", "entropy", "tokens"))
        assert ours["sums"].shape == (4,)
        assert not ours["d_hidden"].any()
        assert not ours["d_weight"].any()
        assert ours["teacher_nll"].isnan().all()


@pytest.mark.parametrize("size", [1e4, -1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_extreme_logits(size, dtype):
    weight = torch.zeros(5, 2, dtype=dtype)
    weight[3, 0] = 1.0
    hidden = torch.tensor([[size, 0.0]] * 2, dtype=dtype)
    given = [ops.HiddenTeacher(-hidden, weight), ops.HiddenTeacher(hidden, weight)]
    inputs = (hidden.requires_grad_(), weight.clone().requires_grad_(), torch.tensor([3, 0]), torch.ones(2), (0, 1, 2), given)
    ours = run(*inputs, [[0.5, 0.5]] * 2, 1.0)
    truth = reference(*doubled(*inputs), [[0.5, 0.5]] * 2, 1.0)
    check({n: ours[n] for n in truth if n != "d_hidden"}, {n: b for n, b in truth.items() if n != "d_hidden"}, 1e-2)
    check({"nlls": ours["nlls"]}, {"nlls": truth["nlls"]}, 1e-6)
    assert ours["d_hidden"].isfinite().all()


def test_large_odd_vocabulary():
    inputs = case(T=3, D=4, V=65537, dtype=torch.float32, ignored=0.0)
    inputs = (*inputs[:4], (0, 3), inputs[5])
    check(run(*inputs, TABLE[:1], 1.0), reference(*doubled(*inputs), TABLE[:1], 1.0), 2e-5)


def test_nothing_is_kept_of_weights_and_teachers():
    """As under ZeRO-3, which frees a gathered weight before the backward pass."""
    inputs = case()
    expected = reference(*inputs, TABLE, W0)
    total = fused(*inputs, TABLE, W0).total
    inputs[0].data.fill_(float("nan"))
    inputs[1].data.fill_(float("nan"))
    inputs[5][0].weight.fill_(float("nan"))
    gradients = torch.autograd.grad(-2.5 * total, inputs[:2])
    check(dict(a=gradients[0], b=gradients[1]), dict(a=-2.5 * expected["d_hidden"], b=-2.5 * expected["d_weight"]))


def test_opcheck_and_one_node_of_a_compiled_graph():
    hidden, weight, targets, scale, segments, given = case(dtype=torch.float32, ignored=0.0)
    table, w0 = torch.tensor(TABLE, dtype=torch.float64), torch.tensor(W0, dtype=torch.float64)
    arguments = (hidden, weight, targets, scale, segments, *teachers.flattened(given), table, w0, languages())
    torch.library.opcheck(ops._op, (*arguments, 0.1, 2.0, True, 8, True, True))  # nan, of skipped work, never equals nan

    def total(hidden, weight):
        return 2 * fused(hidden, weight, targets, scale, segments, given, TABLE, W0).total

    expected = torch.autograd.grad(total(hidden, weight), (hidden, weight))
    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
    for a, b in zip(torch.autograd.grad(compiled(hidden, weight), (hidden, weight)), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_a_teacher_of_weight_0_may_hold_anything():
    hidden, weight, targets, scale, segments, (teacher,) = case(kinds="h")
    bad = ops.HiddenTeacher(torch.full_like(teacher.hidden, float("nan")), teacher.weight)
    for options in ({}, {"every_teacher_nll": True}):
        arguments = (hidden, weight, targets, scale, segments, [teacher, bad], [[1.0, 0.0]] * 4, 1.0)
        ours = run(*arguments, **options)
        expected = run(*arguments[:5], [teacher], [[1.0]] * 4, 1.0, **options)
        with backend.forced("reference"):
            plain = run(*arguments, **options)
        for name in ("total", "distillation", "d_hidden", "d_weight"):
            torch.testing.assert_close(ours[name], expected[name])
            torch.testing.assert_close(plain[name], expected[name])
