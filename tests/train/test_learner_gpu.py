"""What measures single tasks, on the device of a training: the two routes agree, and nothing is left on the host."""

import pytest
import torch
import torch.distributed as td

from mnmt_scale import dist
from mnmt_scale.bench.method_steps import NAMES, Trainee
from mnmt_scale.bench.train_data import prepared
from mnmt_scale.data.packing import only
from mnmt_scale.flow import Lookahead
from mnmt_scale.train.alignment import measure_alignment
from mnmt_scale.train.lookahead import hold, look_again
from tests.support.corpora import write_tree

pytestmark = pytest.mark.gpu
DEVICE, DTYPE = "cuda", "bf16"
MODEL = {"encoder_layers": 2, "decoder_layers": 2, "d_model": 64, "d_ffn": 128, "heads": 2, "dropout": 0.0}


@pytest.fixture(scope="module")
def trainee(tmp_path_factory):
    if td.is_initialized():
        dist.leave()
    place = tmp_path_factory.mktemp("gpu")
    tree = write_tree(place / "tree", {"de-en": 120, "en-fr": 60, "en-ru": 60})
    found = Trainee(prepared(tree, place, 400), MODEL, 3, DTYPE, 512, batches=3, device=DEVICE)
    yield found
    found.close()
    dist.leave()


def test_the_routes_agree(trainee):
    batches = trainee.batches[0]
    one, other = (trainee._by_route[route].measure(batches) for route in ("segmented", "per_task"))
    assert (one.route, other.route) == ("segmented", "per_task")
    assert one.tokens == other.tokens == batches[0].step_tokens
    assert one.losses == pytest.approx(other.losses, rel=0.01)
    assert {g.device.type for g in one.groups.values()} == {"cpu"}
    for group, expected in other.groups.items():
        assert (one.groups[group] - expected).norm() <= 0.03 * expected.norm(), group


def test_watching_changes_neither_update_nor_gram(trainee):
    """With the plain step's weights the watched step is the plain step, and its Gram is that of a pass of its own."""
    learner, batches = trainee.learner, trainee.batches[1]
    scales = trainee._joint.scales(batches[0])
    learner.task_gradients = trainee._by_route["segmented"]
    alone = learner.task_gradients.measure(batches)
    watch = learner.task_gradients.watch(batches, scales)
    sums = learner._backward(batches, scales, watch)
    beside = watch.finish()
    watched = learner.engine.step().grad_norm
    assert (beside.gram - alone.gram).norm() <= 0.03 * alone.gram.norm()
    assert (sums[0] / sums[2]).tolist() == pytest.approx(alone.losses, rel=0.01)
    alpha = torch.tensor([s * n for s, n in zip(scales, alone.tokens, strict=True)], dtype=torch.float64)
    assert watched == pytest.approx(float(alpha @ beside.gram @ alpha) ** 0.5, rel=0.03)


def test_held_losses_are_the_same_bits_where_no_weight_moved(trainee):
    learner = trainee.learner
    held = hold(learner, Lookahead((0, 1, 2), "train", 128), [only(trainee.batches[0][0], 0)])
    change = look_again(learner, held)
    assert change.before == change.after
    assert all(x > 0 for x in change.before)
    trainee.plain(trainee.batches[0])
    assert look_again(learner, held).after != change.after


def test_rewards_are_cosines(trainee):
    rewards = measure_alignment(trainee.learner, trainee._by_route["segmented"])
    assert len(rewards) == 3
    assert all(-1.0 <= r <= 1.0 for r in rewards)
    assert max(rewards) > 0.0, "training text points along dev text of its own kind"


@pytest.mark.parametrize("name", NAMES)
def test_every_method_makes_its_steps(trainee, name):
    for variant in trainee.variants(name):
        for kind in trainee.kinds([variant])[1:]:
            kind.take(trainee.batches[0])
    assert trainee.learner.bad_observations == 0
    assert all(bool(torch.isfinite(p).all()) for p in trainee.learner.engine.module.parameters())
