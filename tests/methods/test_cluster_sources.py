"""Affinity from probe files: pooling, order, what is refused; and the groupings that are decided from it."""

from __future__ import annotations

import numpy as np
import pytest

from mnmt_scale.errors import MnmtError
from mnmt_scale.flow import Grouping
from mnmt_scale.groups import write_groups
from mnmt_scale.methods.affinity.decide import MEANING, Options, decide
from mnmt_scale.methods.affinity.fuzzy import helpers_of, score
from mnmt_scale.methods.affinity.sources import check_covers, directions_in, find_probe, pool
from mnmt_scale.probes import read_probe
from tests.support.affinity_files import affinity_file, run_with, vectors_file

TASKS = ["en-de", "en-fr", "en-it"]
FIGURE_1 = np.array([[1.1, 0.2, 0.2], [0.3, 0.9, -0.2], [-0.2, 0.1, 1.2]])


def pooled(*paths, **options):
    return pool([read_probe(path, "affinity") for path in paths], **options)


def test_pooled_windows_are_the_measurements_put_together(tmp_path):
    random = np.random.default_rng(0)
    samples = [[random.normal(j - i, 1, size=random.integers(2, 6)) for _ in range(3)] for j in range(2) for i in range(2)]

    def table(what):
        return np.array([[[what(samples[2 * j + i][w]) for i in range(2)] for j in range(2)] for w in range(3)])

    path = affinity_file(
        tmp_path / "a.safetensors", TASKS[:2], table(np.mean), count=table(len), variance=table(lambda x: x.var(ddof=1))
    )
    found = pooled(path)
    for j in range(2):
        for i in range(2):
            every = np.concatenate(samples[2 * j + i])
            assert found.counts[j, i] == len(every)
            assert found.cells[j, i] == pytest.approx(every.mean())
            assert found.error[j, i] == pytest.approx(every.std(ddof=1) / np.sqrt(len(every)))
    summed, late = pooled(path, statistic="sum"), pooled(path, since=100)
    every, rest = np.concatenate(samples[1]), np.concatenate(samples[1][1:])
    assert summed.cells[0, 1] == pytest.approx(every.sum())
    assert summed.error[0, 1] == pytest.approx(every.std(ddof=1) * np.sqrt(len(every)))
    assert late.cells[0, 1] == pytest.approx(rest.mean())
    assert late.about["windows"] == [[[100, 199], [200, 299]]]
    assert pooled(path, since=101).counts[0, 1] == len(samples[1][2])


def test_several_files_are_pooled_by_count_whatever_their_order_of_directions(tmp_path):
    one = affinity_file(tmp_path / "1.safetensors", TASKS, FIGURE_1, count=30)
    order = [2, 0, 1]
    other = affinity_file(
        tmp_path / "2.safetensors", [TASKS[i] for i in order], (FIGURE_1 + 4)[np.ix_(order, order)], count=10, run="second"
    )
    found = pooled(one, other)
    assert found.tasks == tuple(TASKS)
    assert found.cells == pytest.approx(FIGURE_1 + 1)
    assert found.about["runs"] == ["universal", "second"]
    assert found.about["measurements"] == {"least": 40, "median": 40.0, "most": 40}
    assert "row = trained" in found.about["convention"]


def test_the_order_in_the_file_does_not_matter(tmp_path):
    order = [1, 2, 0]
    straight = affinity_file(tmp_path / "1.safetensors", TASKS, FIGURE_1)
    turned = affinity_file(tmp_path / "2.safetensors", [TASKS[i] for i in order], FIGURE_1[np.ix_(order, order)])
    a, b = (decide("ftac", [path], Options()).grouping for path in (straight, turned))
    assert a == b == Grouping("ftac", (("en-de", "en-fr"), ("en-it",)), ((), ("en-de",)))


def test_a_cell_measured_once_has_no_standard_error(tmp_path):
    variance = np.full((3, 3), np.nan)
    path = affinity_file(tmp_path / "a.safetensors", TASKS, FIGURE_1, count=1, variance=variance)
    assert np.isnan(pooled(path, min_count=1).error).all()
    assert any("9 of 9 cells were measured too seldom" in w for w in decide("ftac", [path], Options(min_count=1)).warnings)
    twice = affinity_file(
        tmp_path / "b.safetensors", TASKS, np.stack([FIGURE_1, FIGURE_1 + 2]), count=1, variance=np.stack([variance] * 2)
    )
    assert pooled(twice).error == pytest.approx(np.full((3, 3), 1.0))  # of two values 2 apart: sd sqrt 2, / sqrt 2


def test_thin_cells_are_named_and_refused_unless_told(tmp_path):
    count = np.full((3, 3), 5.0)
    count[0, 2], count[1, 0] = 0, 1
    mean = np.where(count > 0, FIGURE_1, 0.0)
    path = affinity_file(tmp_path / "a.safetensors", TASKS, mean, count=count)
    with pytest.raises(
        MnmtError, match=r"E607.*2 of 9 .*less than 2 times: en-de -> en-it, en-fr -> en-de; never.*en-de -> en-it"
    ):
        pooled(path)
    with pytest.raises(MnmtError, match=r"E607: 1 of 9 .*less than 1 times: en-de -> en-it"):
        pooled(path, min_count=1)
    found = pooled(path, min_count=0)
    assert found.cells[0, 2] == 0
    assert "en-de" not in decide("ftac", [path], Options(min_count=0)).grouping.helpers[-1]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_cells_that_are_not_finite_are_named(tmp_path, bad):
    mean = np.stack([FIGURE_1, FIGURE_1])
    mean[0, 1, 2] = bad
    path = affinity_file(tmp_path / "a.safetensors", TASKS, mean)
    for least in (2, 0):
        with pytest.raises(MnmtError, match=r"E607: 1 of 9 cells are not finite: en-fr -> en-it.*--since"):
            pooled(path, min_count=least)
    assert pooled(path, since=100).cells == pytest.approx(FIGURE_1)


def test_files_that_do_not_fit_each_other_are_refused(tmp_path):
    first = affinity_file(tmp_path / "1.safetensors", TASKS, FIGURE_1)
    fewer = affinity_file(tmp_path / "2.safetensors", TASKS[:2], FIGURE_1[:2, :2])
    ratio = affinity_file(tmp_path / "3.safetensors", TASKS, FIGURE_1, quantity="1 - loss after / loss before")
    with pytest.raises(MnmtError, match=r"E607.*lacks en-it.*2\.safetensors"):
        pooled(first, fewer)
    with pytest.raises(MnmtError, match=r"E607.*does not have: en-it"):
        pooled(fewer, first)
    with pytest.raises(MnmtError, match=r"E607.*quantity is '1 - loss"):
        pooled(first, ratio)
    with pytest.raises(MnmtError, match=r"E607.*begins at 1000 or later.*they begin at 0"):
        pooled(first, since=1000)


def test_a_file_with_fewer_directions_than_its_training_is_refused(tmp_path):
    run = run_with(tmp_path / "run", [*TASKS, "en-ru", "en-uk", "en-sk", "en-cs"])
    file = affinity_file(run / "probes" / "affinity-step-000100.safetensors", TASKS, FIGURE_1)
    for source in (run, file):
        with pytest.raises(MnmtError, match=r"E607.*3 directions of the 7.*en-cs, en-ru, en-sk and 1 more"):
            decide("ftac", [source], Options())
    elsewhere = affinity_file(tmp_path / "copied.safetensors", TASKS, FIGURE_1)
    assert len(decide("ftac", [elsewhere], Options()).grouping.clusters) == 2
    with pytest.raises(MnmtError, match="E607.*lacks en-cs"):
        decide("ftac", [elsewhere], Options(tasks=run))
    with pytest.raises(MnmtError, match="E607.*does not have: en-ru"):
        check_covers(["en-fr", "en-ru"], ["en-fr"], "x")


def test_the_newest_probe_of_a_run_is_taken(tmp_path):
    run = run_with(tmp_path / "run", TASKS)
    with pytest.raises(MnmtError, match=r"E605.*no probe of affinity.*mnmt probe affinity"):
        find_probe(run, "affinity")
    for step in (900_000, 1_000_000, 50):
        affinity_file(run / "probes" / f"affinity-step-{step:06d}.safetensors", TASKS, FIGURE_1, step=step)
    vectors_file(run / "probes" / "vectors-step-2000000.safetensors", TASKS, {"fr": [1.0]})
    assert find_probe(run, "affinity").about["step"] == 1_000_000
    with pytest.raises(MnmtError, match="E407"):
        find_probe(tmp_path, "affinity")
    with pytest.raises(MnmtError, match="E605.*'vectors', not of affinity"):
        decide("ftac", [run / "probes" / "vectors-step-2000000.safetensors"], Options())


def test_directions_of_all_kinds_of_sources(tmp_path):
    run = run_with(tmp_path / "run", TASKS)
    probe = affinity_file(tmp_path / "a.safetensors", TASKS, FIGURE_1)
    write_groups(tmp_path / "groups.json", Grouping("x", (("en-it", "en-fr"), ("en-de",)), ((), ())), {})
    for source in (run, run / "config.toml", probe, tmp_path / "groups.json"):
        assert sorted(directions_in(source)) == TASKS
    (tmp_path / "c.toml").write_text(f'[data]\nstore = "{tmp_path}/none"\n')
    with pytest.raises(MnmtError, match="E303"):
        directions_in(tmp_path / "c.toml")


SIX = [f"en-{code}" for code in ("cs", "de", "es", "it", "nl", "sk")]
FAMILY = [0, 1, 2, 2, 1, 0]


@pytest.fixture
def six(tmp_path):
    """Three families, a task of which helps its own and a little the next one's."""
    own = np.equal.outer(FAMILY, FAMILY)
    following = np.equal.outer([(f + 1) % 3 for f in FAMILY], FAMILY)
    affinity = np.where(own, 1.0, np.where(following, 0.6, -0.5)) + 0.01 * np.random.default_rng(0).normal(size=(6, 6))
    return affinity_file(tmp_path / "six.safetensors", SIX, affinity, variance=1e-6)


FAMILIES_OF_SIX = (("en-cs", "en-sk"), ("en-de", "en-nl"), ("en-es", "en-it"))


def test_fuzzy_hard_random_and_average_of_one_affinity(six):
    Z = pooled(six).cells
    fuzzy = decide("ftac", [six], Options(clusters=3))
    assert fuzzy.grouping.clusters == FAMILIES_OF_SIX
    assert fuzzy.grouping.helpers == (("en-es", "en-it"), ("en-cs", "en-sk"), ("en-de", "en-nl"))
    scores = [score(Z, c, helpers_of(Z, c)) for c in ((0, 5), (1, 4), (2, 3))]
    assert fuzzy.about["scores"] == pytest.approx(scores)
    assert fuzzy.about["overall"] == pytest.approx(sum(scores))
    hard = decide("htac", [six], Options(clusters=3)).grouping
    assert (hard.method, hard.clusters, hard.helpers) == ("htac", FAMILIES_OF_SIX, ((), (), ()))
    scores = decide("htac", [six], Options(clusters=3)).about["scores"]
    cells = pooled(six).cells
    where = [[sorted(hard.tasks).index(name) for name in cluster] for cluster in hard.clusters]
    assert scores == pytest.approx([cells[np.ix_(c, c)].sum() / len(c) for c in where]), "g is c"
    rand = decide("ftac", [six], Options(clusters=3, helpers="random", seed=3)).grouping
    assert rand.clusters == FAMILIES_OF_SIX
    assert [len(h) for h in rand.helpers] == [2, 2, 2]
    assert rand.helpers != fuzzy.grouping.helpers
    plain = decide("average", [six], Options()).grouping
    assert plain.clusters == FAMILIES_OF_SIX  # the elbow
    assert plain.helpers == ((), (), ())
    assert decide("average", [six], Options(clusters=3, helpers="fuzzy")).grouping.helpers == fuzzy.grouping.helpers
    assert len(decide("average", [six], Options(clusters=5)).grouping.clusters) == 5


def test_what_was_decided_with_is_kept(six):
    about = decide("ftac", [six], Options(clusters=3, since=0)).about
    assert about["options"] == {
        "clusters": 3, "at_least": 1, "since": 0, "statistic": "mean", "min_count": 2, "tolerance": 1e-9, "helpers": "fuzzy",
        "seed": 1,
    }  # fmt: skip
    assert about["sources"] == [str(six)]
    assert [merge["of"] for merge in about["merges"]][:1] in ([["en-cs", "en-sk"]], [["en-de", "en-nl"]], [["en-es", "en-it"]])
    assert all(merge["forced"] in (True, False) for merge in about["merges"])


def test_agreement_with_families(six, tmp_path):
    table = tmp_path / "f.toml"
    table.write_text("".join(f'{name[3:]} = "f{family}"\n' for name, family in zip(SIX, FAMILY, strict=True)))
    found = decide("ftac", [six], Options(clusters=3, families=table)).about["agreement"]
    assert found["adjusted_rand"] == 1.0
    assert found["families"]["en-sk"] == "f0"
    assert found["effect"]["within"] > 0.9
    assert found["effect"]["size"] > 1
    assert found["effect"]["p"] == pytest.approx(1 / 15, abs=0.02)  # one of the 15 ways to pair six
    alone = decide("bilingual", [six], Options(families=table)).about["agreement"]
    assert alone["adjusted_rand"] == 0.0
    assert alone["effect"] is None


def test_language_embeddings(tmp_path):
    random = np.random.default_rng(0)
    centres = random.normal(size=(3, 8)) * 5
    vectors = {name[3:]: centres[f] + 0.1 * random.normal(size=8) for name, f in zip(SIX, FAMILY, strict=True)}
    pivot = {"en": np.zeros(8)}
    path = vectors_file(tmp_path / "v.safetensors", SIX[::-1], pivot | dict(sorted(vectors.items(), reverse=True)))
    found = decide("lec", [path], Options())
    assert found.grouping == Grouping("lec", FAMILIES_OF_SIX, ((), (), ()))
    assert len(decide("lec", [path], Options(clusters=2, linkage="average")).grouping.clusters) == 2
    into = vectors_file(tmp_path / "m.safetensors", [f"{n[3:]}-en" for n in SIX], pivot | vectors, directions="many-to-one")
    assert decide("lec", [into], Options()).grouping.clusters[0] == ("cs-en", "sk-en")
    both = vectors_file(tmp_path / "b.safetensors", [*SIX, "cs-en"], pivot | vectors)
    with pytest.raises(MnmtError, match=r"E608.*not defined for many-to-many.*different clusters"):
        decide("lec", [both], Options())
    few = vectors_file(tmp_path / "f.safetensors", SIX, pivot | {c: v for c, v in vectors.items() if c not in ("es", "it")})
    with pytest.raises(MnmtError, match="E607: no vectors of es, it"):
        decide("lec", [few], Options())
    broken = vectors_file(tmp_path / "n.safetensors", SIX, pivot | vectors | {"nl": np.full(8, np.nan)})
    with pytest.raises(MnmtError, match="E607: vectors of nl are not finite"):
        decide("lec", [broken], Options())
    two = vectors_file(tmp_path / "2.safetensors", SIX[:2], vectors)
    with pytest.raises(MnmtError, match="E608.*no elbow"):
        decide("lec", [two], Options())
    with pytest.raises(MnmtError, match="E608: lec takes one source, not 2"):
        decide("lec", [path, path], Options())


def test_groupings_without_a_measurement(six, tmp_path):
    assert decide("bilingual", [six], Options()).grouping.clusters == tuple((name,) for name in SIX)
    assert decide("universal", [six], Options()).grouping.clusters == (tuple(SIX),)
    assert decide("linguistic", [six], Options()).grouping.clusters == FAMILIES_OF_SIX
    model = Grouping("ftac", (tuple(SIX[:3]), tuple(SIX[3:5]), (SIX[5],)), (("en-sk",), (), ("en-cs", "en-de")))
    write_groups(tmp_path / "groups.json", model, {})
    drawn = [decide("random", [tmp_path], Options(seed=seed)).grouping for seed in range(5)]
    assert all(sorted(map(len, g.clusters)) == [1, 2, 3] and g.tasks == tuple(SIX) for g in drawn)
    assert len(set(drawn)) > 1
    assert drawn[2] == decide("random", [tmp_path / "groups.json"], Options(seed=2)).grouping
    assert not any(any(g.helpers) for g in drawn)
    helped = decide("random", [tmp_path], Options(seed=2, helpers="random")).grouping
    assert helped.clusters == drawn[2].clusters
    assert {len(c): len(h) for c, h in zip(helped.clusters, helped.helpers, strict=True)} == {3: 1, 2: 0, 1: 2}


@pytest.mark.parametrize(
    ("method", "options", "match"),
    [
        ("ftac", {"clusters": 7}, r"7 clusters of 6 directions at --clusters; give 1 to 6"),
        ("htac", {"clusters": 7}, r"7 clusters of 6"),
        ("average", {"clusters": 7}, r"7 clusters of 6"),
        ("ftac", {"clusters": 0}, r"0 clusters of 6"),
        ("ftac", {"clusters": 2, "at_least": 3}, r"3 clusters at least, but 2 at most at --at-least"),
        ("linguistic", {"clusters": 2}, r"--clusters has no meaning for linguistic.*it is for ftac, htac, average, lec"),
        ("htac", {"helpers": "fuzzy"}, r"--helpers has no meaning for htac"),
        ("ftac", {"linkage": "ward"}, r"--linkage has no meaning for ftac .*; it is for lec"),
        ("random", {"helpers": "fuzzy"}, r"no affinity to choose helpers by"),
        ("ftak", {}, r"no method 'ftak' at METHOD; did you mean 'ftac'"),
    ],
)
def test_what_cannot_be_done_is_refused(six, method, options, match):
    with pytest.raises(MnmtError, match=f"E608.*{match}"):
        decide(method, [six], Options(**options))


def test_at_least_keeps_from_uniting_further(six):
    assert len(decide("ftac", [six], Options(clusters=6, at_least=6)).grouping.clusters) == 6
    assert set(MEANING) == {"ftac", "htac", "average", "lec", "linguistic", "random", "bilingual", "universal"}


def test_the_same_measurements_are_not_counted_twice(tmp_path):
    """Of one file, or of a file and a later one of the same training."""
    mean = np.stack([FIGURE_1, FIGURE_1 + 0.1])
    short = affinity_file(tmp_path / "short.safetensors", TASKS, mean[:1], count=4, windows=[[1, 10]])
    long = affinity_file(tmp_path / "long.safetensors", TASKS, mean, count=4, windows=[[1, 10], [11, 20]])
    other = affinity_file(tmp_path / "other.safetensors", TASKS, mean + 0.01, count=4, windows=[[1, 10], [11, 20]])
    for files in ((long, long), (long, short)):
        with pytest.raises(MnmtError, match=r"E607: it holds measurements that are in .*long"):
            pooled(*files)
    assert pooled(long, other).counts.min() == 16


def test_of_several_probes_of_a_run_the_newest_is_taken_and_that_is_said(tmp_path):
    run = run_with(tmp_path / "run", TASKS)
    affinity_file(run / "probes" / "affinity-step-000060.safetensors", TASKS, FIGURE_1)
    assert decide("ftac", [run], Options()).warnings == []
    affinity_file(run / "probes" / "affinity-step-000074.safetensors", TASKS, FIGURE_1 + 1)
    found = decide("ftac", [run], Options())
    assert found.about["sources"] == [str(run / "probes" / "affinity-step-000074.safetensors")]
    said = [line for line in found.warnings if "passed over" in line]
    assert len(said) == 1
    assert said[0].endswith("taken, affinity-step-000074.safetensors; passed over: affinity-step-000060.safetensors")
