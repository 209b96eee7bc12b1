"""Gradients of single tasks: both routes at every ZeRO stage equal one backward pass a task in one plain process."""

from __future__ import annotations

import functools
import math

import pytest
import torch

from mnmt_scale.engine.config import EngineConfig
from mnmt_scale.engine.optimizer import make_optimizer
from mnmt_scale.flow import IGNORE
from mnmt_scale.settings import validate
from tests.support import gram_cases
from tests.support.gram_models import model_of
from tests.support.gram_truth import grams, shared_out, truth
from tests.support.tiny_training import token_mean

CASES = "tests.support.gram_cases:"
LIMIT = 1e-5  # of sqrt(G_ii G_jj), fp32
PLAIN_SGD = {"optimizer": {"name": "sgd", "learning_rate": 0.3}, "schedule": {"name": "constant", "warmup_steps": 0}}
BOTH = ({"route": "per_task"}, {})  # the watched one last: it ends in an update
ALPHA = (1.0, 0.0, 2.5)


@functools.cache
def true(step, ranks, accumulation, split, micro=None):
    return truth(step, ranks, accumulation, split, micro=micro)


def distance(ours, theirs):
    """Largest error of an inner product relative to the two norms."""
    norms = theirs.diagonal().clamp(min=0).sqrt()
    scale = (norms[:, None] * norms).clamp(min=1e-30)
    return float(((ours - theirs).abs() / scale).max())


def assert_gram(found, expected, limit=LIMIT, weights=None):
    """Gram, norms and cosines, in all and by group; losses and token counts."""
    by_group = grams(expected["gradients"], weights)
    assert found["groups"].keys() == by_group.keys()
    total = torch.stack(list(by_group.values())).sum(dim=0)
    assert distance(found["gram"], total) <= limit
    for group, gram in by_group.items():
        assert found["groups"][group].dtype == torch.float64
        assert distance(found["groups"][group], gram) <= limit, group
    assert found["losses"] == pytest.approx(expected["losses"], rel=max(limit, 1e-5))
    assert found["tokens"] == expected["tokens"]
    assert found["bad"] == ()
    absent = [k for k, n in enumerate(found["tokens"]) if n == 0]
    assert not found["gram"][absent].any()
    assert (found["gram"].diagonal() > 0).tolist() == [n > 0 for n in found["tokens"]]


def pool_of(request, ranks):
    return request.getfixturevalue({1: "one_rank", 2: "two_ranks", 3: "three_ranks"}[ranks])


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_both_routes_equal_one_process(request, ranks, stage, accumulation):
    """Also where a task is on one rank alone, where a rank holds nothing, and where a task is not in the step; then an
    observed step makes the update of an ordinary one with the same weights, 0 among them."""
    splits = ["missing", "even", "absent"] + (["empty"] if ranks > 1 else [])
    settings = {"zero_stage": stage, **PLAIN_SGD}
    results = pool_of(request, ranks).run(
        CASES + "observed", settings=settings, hows=BOTH, splits=splits, accumulation=accumulation, alpha=ALPHA
    )
    assert [route for route, _, _ in results[0]["facts"]] == ["per_task", "segmented"]
    assert len(results[0]["measured"]) == 2 * len(splits)
    kept = f"of all weights in pieces of 1/{ranks}"
    assert [kept.split(" ", 3)[3] in text for _, _, text in results[0]["facts"]] == [True, accumulation > 1]
    for found in results[0]["measured"] + results[0]["watched"]:
        assert_gram(found, true(0, ranks, accumulation, found["split"]))
    for other in results[1:]:
        for mine, theirs in zip(results[0]["measured"], other["measured"], strict=True):
            assert torch.equal(mine["gram"], theirs["gram"]), "every rank must see the same"
            assert mine["losses"] == theirs["losses"]
    expected = true(0, ranks, accumulation, splits[-1])["gradients"]
    combined = {n: (torch.tensor(ALPHA, dtype=torch.float64)[:, None] * g).sum(dim=0) for n, g in expected.items()}
    norm = math.sqrt(sum(float(g.square().sum()) for g in combined.values()))
    assert results[0]["norm"] == pytest.approx(norm, rel=1e-5)
    for name, before in results[0]["before"].items():
        step = (before - results[0]["weights"][name]).double().flatten() / 0.3
        assert (step - combined[name]).norm() <= 2e-5 * norm, name


def test_a_sum_of_the_micro_batches_grams_is_far_from_the_steps():
    """What the test above would show if the cross terms between micro-batches were left out."""
    for split in ("even", "absent"):
        step = true(0, 2, 3, split)
        total = torch.stack(list(grams(step["gradients"]).values())).sum(dim=0)
        summed = 0
        for micro in range(3):
            part = true(0, 2, 3, split, micro)
            share = torch.tensor(part["tokens"]) / torch.tensor(step["tokens"])
            gradients = {n: g * share[:, None] for n, g in part["gradients"].items()}
            summed = summed + torch.stack(list(grams(gradients).values())).sum(dim=0)
        assert distance(summed, total) > 0.2


def test_a_dropped_cross_term_of_the_shared_table_would_show(two_ranks):
    """Embedding and output share their weight; the inner products between the two uses are no small change."""
    batch = shared_out(0, 1, 1, "even")[0][0]
    model = model_of()
    parts = []
    for use in ("embedding", "output"):
        rows = []
        for k in range(3):
            scales = [1.0 / n if j == k else 0.0 for j, n in enumerate(batch.step_tokens)]
            rows.append(gradient_of_one_use(model, batch, scales, use))
        parts.append(torch.stack(rows).double())
    whole = true(0, 1, 1, "even")["gradients"]["shared.weight"]
    torch.testing.assert_close(parts[0] + parts[1], whole, rtol=1e-4, atol=1e-6)
    without = sum(p @ p.t() for p in parts)
    found = two_ranks.run(CASES + "observed", settings={"zero_stage": 2}, hows=[{}])[0]
    for gram in (found["measured"][0], found["watched"][0]):
        assert distance(gram["groups"]["embeddings"], whole @ whole.t()) <= LIMIT
        assert distance(gram["groups"]["embeddings"], without) > 1000 * LIMIT


def gradient_of_one_use(model, batch, scales, use):
    """Of the table, as if embedding and output had one each."""
    from mnmt_scale.losses.task_loss import task_losses

    hidden = model.hidden(batch)
    weight = model.shared.weight
    if use == "output":
        total = task_losses(hidden.detach(), weight, batch, scales, 0.1).total
    else:
        total = task_losses(hidden, weight.detach(), batch, scales, 0.1).total
    return torch.autograd.grad(total, weight)[0].flatten()


@pytest.mark.parametrize(("ranks", "stage"), [(1, 1), (2, 3)])
def test_torchjds_gramian_is_the_same(request, ranks, stage):
    """Of a model whose embedding and output are not tied; torchjd knows nothing of tapes, ranks or segments."""
    engine = pytest.importorskip("torchjd.autogram").Engine
    changes = {"kind": "Untied", "attention": "packed"}
    result = pool_of(request, ranks).run(CASES + "observed", settings={"zero_stage": stage}, hows=BOTH, **changes)[0]
    model, batch = model_of(**changes), shared_out(0, 1, 1, "even")[0][0]
    gramian = engine(model, batch_dim=None)
    gram = gramian.compute_gramian(task_means(model.output(model.hidden(batch)), batch))
    assert [route for route, _, _ in result["facts"]] == ["per_task", "segmented"]
    for found in result["measured"] + result["watched"]:
        assert distance(found["gram"], gram.double()) <= LIMIT


def task_means(logits, batch):
    """[K] label-smoothed losses a token."""
    losses = torch.nn.functional.cross_entropy(
        logits, batch.target_out, ignore_index=IGNORE, label_smoothing=0.1, reduction="none"
    )
    parts = losses.split(torch.tensor(batch.target_segments).diff().tolist())
    return torch.stack([x.sum() / n for x, n in zip(parts, batch.step_tokens, strict=True)])


@pytest.mark.parametrize(("stage", "kind"), [(1, "Scaled"), (3, "Scaled"), (2, "Reread"), (2, "Repeated"), (3, "Repeated")])
def test_an_uncovered_parameter_falls_back_by_name(two_ranks, stage, kind):
    result = two_ranks.run(CASES + "observed", settings={"zero_stage": stage}, hows=[{}], kind=kind)[0]
    route, reason, text = result["facts"][0]
    blamed = {"Scaled": "output_scale", "Reread": "decoder.layer_norm.bias", "Repeated": "encoder.layers.0.self_attn."}[kind]
    assert route == "per_task"
    assert f"parameter {blamed}" in reason
    assert reason in text
    assert_gram(result["measured"][0], truth(0, 2, 1, "even", kind=kind))


@pytest.mark.parametrize(
    ("how", "optimizer", "words"),
    [
        ({"route": "segmented"}, "adam", "parameter output_scale"),
        ({"route": "off"}, "adam", "turned off"),
        ({"preconditioner": "adam"}, "sgd", "no second moment"),
    ],
)
def test_what_cannot_be_measured_is_refused(one_rank, how, optimizer, words):
    code, text = one_rank.run(CASES + "refusal", settings={"optimizer": {"name": optimizer}}, how=how, kind="Scaled")[0]
    assert code == "E507"
    assert words in text


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(("ranks", "stage"), [(1, 1), (2, 1), (2, 2), (3, 3)])
def test_in_the_metric_of_adam(request, ranks, stage, accumulation):
    result = pool_of(request, ranks).run(
        CASES + "weighted", settings={"zero_stage": stage}, steps=2, accumulation=accumulation
    )[0]
    for name in ("fresh", "fresh by task"):
        assert_gram(result[name], true(0, ranks, accumulation, "even"))  # before the first update all weights are 1
    weights = plain_adam(ranks, accumulation, 2)
    expected = truth(2, ranks, accumulation, "even", weights=result["before"])
    for name in ("segmented", "per_task", "watched"):
        assert_gram(result[name], expected, limit=1e-4, weights=weights)  # small moments amplify rounding
    plain = torch.stack(list(grams(expected["gradients"]).values())).sum(dim=0)
    assert distance(result["segmented"]["gram"], plain) > 1, "the weights must matter"


def plain_adam(ranks, accumulation, steps):
    """1 / (sqrt(v / (1 - beta2^t)) + eps) after some steps of torch's own Adam in one process."""
    config = gram_cases.engine_config()
    model = model_of()
    optimizer = make_optimizer(config.optimizer, model.parameters(), torch.device("cpu"))
    from mnmt_scale.engine.schedule import rate_factor

    for step in range(steps):
        rate = config.optimizer.learning_rate * rate_factor(config.schedule, step + 1, gram_cases.MAX_STEPS)
        optimizer.param_groups[0]["lr"] = rate
        for mine in shared_out(step, ranks, accumulation, "even"):
            for batch in mine:
                model(batch, token_mean(batch)).total.backward()
        optimizer.step()
        optimizer.zero_grad()
    settings = validate(EngineConfig, {}, "test").optimizer
    return {
        n: 1 / ((optimizer.state[p]["exp_avg_sq"].double() / (1 - settings.beta2**steps)).sqrt() + settings.epsilon)
        for n, p in model.named_parameters()
    }


@pytest.mark.parametrize(("ranks", "stage"), [(1, 2), (2, 1), (2, 3), (3, 2)])
def test_the_gram_of_the_first_micro_batch(request, ranks, stage):
    """Normalised by its own token counts; the update is still that of the whole step."""
    hows = [{"route": "per_task", "gram_over": "microbatch"}, {"gram_over": "microbatch"}]
    settings = {"zero_stage": stage, **PLAIN_SGD}
    result = pool_of(request, ranks).run(
        CASES + "observed", settings=settings, hows=hows, splits=["absent"], accumulation=3, alpha=ALPHA
    )[0]
    expected = true(0, ranks, 3, "absent", 0)
    for found in result["measured"] + result["watched"]:
        assert found["over"] == "microbatch"
        assert_gram(found, expected)
    whole = true(0, ranks, 3, "absent")["gradients"]
    for name, before in result["before"].items():
        step = (before - result["weights"][name]).double().flatten() / 0.3
        combined = (torch.tensor(ALPHA, dtype=torch.float64)[:, None] * whole[name]).sum(dim=0)
        torch.testing.assert_close(step, combined, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("stage", [1, 3])
@pytest.mark.parametrize("changes", [{"activation_checkpointing": True}, {"norm": "post"}, {"norm_affine": False}], ids=str)
def test_other_models(two_ranks, stage, changes):
    result = two_ranks.run(CASES + "observed", settings={"zero_stage": stage}, hows=[{}], **changes)[0]
    expected = truth(0, 2, 1, "even", **changes)
    for found in result["measured"] + result["watched"]:
        assert found["route"] == "segmented"
        assert_gram(found, expected)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bf16_is_near(two_ranks, stage):
    settings = {"zero_stage": stage, "dtype": "bf16"}
    result = two_ranks.run(CASES + "observed", settings=settings, hows=BOTH, accumulation=2)[0]
    for found in result["measured"] + result["watched"]:
        assert_gram(found, truth(0, 2, 2, "even", dtype=torch.bfloat16), limit=0.02)
        assert distance(found["gram"], torch.stack(list(grams(true(0, 2, 2, "even")["gradients"]).values())).sum(dim=0)) <= 0.03


@pytest.mark.parametrize(("ranks", "stage"), [(1, 1), (2, 3), (3, 2)])
def test_single_gradients_and_their_inner_products(request, ranks, stage):
    results = pool_of(request, ranks).run(CASES + "single_gradients", settings={"zero_stage": stage}, split="even")
    model = model_of().eval()
    expected = []
    for scales in ((0.5, 0.0, 0.25), (0.0, 0.125, 0.0)):
        batches = [batch for mine in shared_out(0, ranks, 2, "even") for batch in mine]
        total = sum(model(batch, scales).total for batch in batches)
        expected.append(
            dict(zip(dict(model.named_parameters()), torch.autograd.grad(total, list(model.parameters())), strict=True))
        )
    both = {n: torch.stack([g[n].flatten().double() for g in expected]) for n in expected[0]}
    for result in results:
        for i, whole in enumerate(result["whole"]):
            for name, g in whole.items():
                torch.testing.assert_close(g, expected[i][name].flatten(), rtol=1e-4, atol=1e-6)
        for group, gram in grams(both).items():
            assert distance(result["inner"][group], gram) <= LIMIT, group
        assert result["training"]
        assert result["repeated"], "dropout depends on the position alone"
        assert result["dropout"], "in training there is dropout and smoothing"
    for name, spans in results[0]["spans"].items():
        n = expected[0][name].numel()
        assert spans == [(min(n, r * math.ceil(n / ranks)), min(n, (r + 1) * math.ceil(n / ranks))) for r in range(ranks)]


@pytest.mark.parametrize("chunk", [1, 40, 1 << 22])
@pytest.mark.parametrize("ranks", [2, 3])
def test_sums_in_the_cut(request, ranks, chunk):
    for result in pool_of(request, ranks).run(CASES + "cut_sums", chunk=chunk):
        assert all(result[k] for k in ("sums", "ragged", "buckets", "narrow"))
        assert result["dtype"] == {"torch.float32"}
        ends = [end for _, end in result["spans"]]
        assert len(set(ends)) > 1
