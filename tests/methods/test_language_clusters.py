"""Language clusters, the elbow, average linkage, families of languages and agreement with them."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from mnmt_scale.data.synthetic.truth import Truth
from mnmt_scale.errors import MnmtError
from mnmt_scale.methods.affinity.agreement import adjusted_rand, family_effect
from mnmt_scale.methods.affinity.families import FAMILIES, TABLE, family_of, labels, read_families
from mnmt_scale.methods.affinity.language import language_clusters, languages_of
from mnmt_scale.methods.affinity.linkage import affinity_distances, average_clusters, cut, dispersion, elbow, tree

ISO_639_1 = """
aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el en eo
es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it iu ja jv ka kg ki kj kk kl
km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na nb nd ne ng nl nn no nr nv ny oc oj om or
os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg si sk sl sm sn so sq sr ss st su sv sw ta te tg th ti tk tl tn to tr ts tt tw
ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu sh mo"""
TED = "pt_br fr_ca zh_cn zh_tw es fr ar zh ko ru tr it ja he pt ro vi nl hu fa pl de el sr bg uk hr cs id th sv sk"
OLDI = """ace_Arab ace_Latn ary_Arab arz_Arab bam_Latn ban_Latn bho_Deva bjn_Arab bjn_Latn bug_Latn crh_Latn dik_Latn dzo_Tibt
eng_Latn fur_Latn fuv_Latn gug_Latn hne_Deva kas_Arab kas_Deva knc_Arab knc_Latn lij_Latn lim_Latn lmo_Latn ltg_Latn mag_Deva
mni_Beng mri_Latn nqo_Nkoo nus_Latn pbt_Arab prs_Arab scn_Latn shn_Mymr srd_Latn szl_Latn taq_Latn taq_Tfng vec_Latn
zgh_Tfng"""


def spread(centres, each, width=0.1, seed=0):
    """``each`` vectors about every centre."""
    random = np.random.default_rng(seed)
    return np.concatenate([np.asarray(c) + width * random.normal(size=(each, len(c))) for c in centres])


@pytest.mark.parametrize("kind", ["ward", "average", "complete", "single"])
def test_the_elbow_finds_groups_of_vectors(kind):
    vectors = spread([(0, 0, 9), (9, 0, 0), (0, 9, 0), (9, 9, 9)], each=5)
    assert language_clusters(vectors, kind=kind) == tuple(tuple(range(5 * g, 5 * g + 5)) for g in range(4))
    assert len(language_clusters(vectors, 7, kind)) == 7


def test_dispersion_is_the_sum_of_squares_and_the_elbow_by_hand():
    points = np.array([0.0, 1.0, 10.0, 12.0])
    squared = (points[:, None] - points) ** 2
    merged = tree(np.sqrt(squared), "ward")
    assert cut(merged, 2) == ((0, 1), (2, 3))
    assert dispersion(squared, ((0, 1), (2, 3))) == pytest.approx(0.5 + 2.0)
    assert dispersion(squared, ((0, 1, 2, 3),)) == pytest.approx(((points - 5.75) ** 2).sum())
    # 112.75, 2.5, 0.5, 0 against the line 112.75, 75.17, 37.58, 0: farthest at two
    assert elbow(merged, squared) == 2


def test_exactly_so_many_clusters_where_distances_are_tied():
    distances = 1.0 - np.eye(6)
    assert [len(cut(tree(distances, "average"), K)) for K in range(1, 7)] == [1, 2, 3, 4, 5, 6]
    assert language_clusters(np.ones((1, 4))) == ((0,),)


def test_average_linkage_is_of_the_symmetrised_affinity():
    """Greedy unions of the highest mean mutual affinity, from the definition."""
    for seed in range(20):
        Z = np.random.default_rng(seed).normal(size=(8, 8))
        mutual, clusters = (Z + Z.T) / 2, [(i,) for i in range(8)]
        while len(clusters) > 3:
            a, b = max(itertools.combinations(clusters, 2), key=lambda pair: mutual[np.ix_(*pair)].mean())
            clusters = [c for c in clusters if c not in (a, b)] + [(*a, *b)]
        want = {tuple(sorted(c)) for c in clusters}
        for shift in (0.0, 5.0):  # the zero point and the diagonal are free
            assert set(average_clusters(affinity_distances(Z + shift + shift * np.eye(8)), 3)) == want
        assert set(average_clusters(affinity_distances(Z.T), 3)) == want


def test_the_language_of_a_direction():
    assert languages_of([("en", "fr"), ("en", "de")]) == ["fr", "de"]
    assert languages_of([("fr", "en"), ("de", "en")]) == ["fr", "de"]
    assert languages_of([("fr", "en"), ("en", "fr")]) is None


def test_adjusted_rand_by_hand():
    """Hubert and Arabie: {0,1},{2,3,4} against {0,1,2},{3,4}: 2 pairs in common, 4 and 4 of 10: (2 - 1.6) / (4 - 1.6)."""
    assert adjusted_rand([(0, 1), (2, 3, 4)], ["a", "a", "a", "b", "b"]) == pytest.approx(0.4 / 2.4)
    assert adjusted_rand([(3, 4), (0, 1, 2)], ["x", "x", "x", "y", "y"]) == 1.0


def test_effect_size_by_hand_and_p_by_enumeration():
    Z = np.array([[9.0, 3.0, 0.0, 1.0], [5.0, 9.0, 2.0, 1.0], [0.0, 1.0, 9.0, 4.0], [2.0, 1.0, 4.0, 9.0]])
    within, across = np.array([3.0, 5.0, 4.0, 4.0]), np.array([0.0, 1.0, 2.0, 1.0, 0.0, 1.0, 2.0, 1.0])
    found = family_effect(Z, ["a", "a", "b", "b"])
    pooled = np.sqrt((3 * within.var(ddof=1) + 7 * across.var(ddof=1)) / 10)
    assert (found.within, found.across) == (4.0, 1.0)
    assert found.size == pytest.approx(3.0 / pooled)
    # of the three ways to pair four tasks this one alone has the difference: p is a third
    assert found.p == pytest.approx(1 / 3, abs=0.02)
    assert found.p == family_effect(Z * 1e-6, ["b", "b", "x", "x"]).p


def test_effect_is_none_without_two_of_one_family_or_without_two_families():
    Z = np.ones((3, 3))
    assert family_effect(Z, ["a", "b", "c"]) is None
    assert family_effect(Z, ["a", "a", "a"]) is None
    flat = family_effect(Z, ["a", "a", "b"], permutations=99)
    assert flat.size is None
    assert flat.p == 1.0


def test_a_random_affinity_has_uniform_p_and_a_real_one_a_small_p():
    families = [i // 3 for i in range(12)]
    ps = [family_effect(np.random.default_rng(seed).normal(size=(12, 12)), families, permutations=99).p for seed in range(100)]
    assert 0.35 < np.mean(ps) < 0.65
    assert 0 < np.mean(np.array(ps) <= 0.1) < 0.25
    same = np.equal.outer(families, families)
    assert family_effect(np.random.default_rng(1).normal(size=(12, 12)) + 2 * same, families).p < 0.001


def test_the_table_knows_common_languages_and_no_code_twice():
    codes = [code for text in TABLE.values() for code in text.split()]
    assert len(codes) == len(set(codes)) == len(FAMILIES)
    assert [code for code in f"{ISO_639_1} {TED} {OLDI}".split() if family_of(code) is None] == []
    named = {"pt_br": "Romance", "zh_cn": "Sinitic", "hne_Deva": "Indo-Aryan", "pbt_Arab": "Iranian", "szl_Latn": "Slavic"}
    assert {code: family_of(code) for code in named} == named
    for group in (("ja", "jpn"), ("he", "iw", "heb"), ("fa", "prs", "pes"), ("taq_Tfng", "zgh"), ("hr", "sr", "sh", "bs")):
        assert len({family_of(code) for code in group}) == 1
    assert family_of("qaa") is None


def test_labels_of_directions():
    assert labels([("en", "fr"), ("en", "ru")]) == ["Romance", "Slavic"]
    assert labels([("fr", "qaa"), ("ru", "qaa")]) == ["Romance", "Slavic"]  # the side that all share needs no family
    assert labels([("fr", "ru"), ("ru", "fr")]) == ["Romance > Slavic", "Slavic > Romance"]
    with pytest.raises(MnmtError, match=r"E105.*qaa, qab.*--families"):
        labels([("en", "qaa"), ("en", "fr"), ("en", "qab")])


def test_families_from_files(tmp_path):
    truth = Truth("en", {"one": ("qaa", "qab"), "isolate": ("qac",)}, {}, (), {})
    truth.save(tmp_path / "truth.json")
    (tmp_path / "flat.toml").write_text('qaa = "one"\nqab = "one"\nqac = "isolate"\n')
    (tmp_path / "lists.json").write_text(json.dumps({"one": ["qaa", "qab"], "isolate": ["qac"]}))
    want = {"qaa": "one", "qab": "one", "qac": "isolate"}
    for name in ("truth.json", "flat.toml", "lists.json"):
        assert read_families(tmp_path / name) == want
        assert labels([("en", "qab"), ("en", "qac")], read_families(tmp_path / name)) == ["one", "isolate"]
    assert read_families("table") == FAMILIES


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "neither JSON nor TOML"),
        ("[]", "no table"),
        ("{}", "no table"),
        ('{"a": 1}', "'a' is neither"),
        ('{"a": ["x"], "b": ["x"]}', "'x' is in two families"),
        ('{"x": "a", "b": ["y"]}', "'x' is neither"),
    ],
)
def test_damaged_tables_of_families_are_refused(tmp_path, text, match):
    path = tmp_path / "f.json"
    path.write_text(text)
    with pytest.raises(MnmtError, match=f"E102.*{match}"):
        read_families(path)
    with pytest.raises(MnmtError, match="E201"):
        read_families(tmp_path / "nothing.json")
