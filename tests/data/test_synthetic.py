"""Constructed languages: deterministic text, disjoint splits, settings, trees."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mnmt_scale import settings
from mnmt_scale.data.config import CorpusConfig, DataConfig
from mnmt_scale.data.corpus import find_corpora
from mnmt_scale.data.synthetic import SyntheticConfig, Truth, construct, generate
from mnmt_scale.data.synthetic.__main__ import main
from mnmt_scale.data.synthetic.concepts import concepts
from mnmt_scale.data.synthetic.draws import stream
from mnmt_scale.data.synthetic.english import English
from mnmt_scale.data.synthetic.lexicon import family_tree
from mnmt_scale.data.synthetic.meaning import TRANSITIVE, Sampler
from mnmt_scale.errors import MnmtError
from mnmt_scale.train.config import RunConfig
from tests.support.constructed import DEFAULT, SMALL, lines


@pytest.fixture(scope="module")
def world():
    return construct(DEFAULT)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """(directory, truth) of the default languages with less text."""
    out = tmp_path_factory.mktemp("constructed")
    return out, generate(SMALL, out)


# ---- the corpus


def test_tree_of_files_sizes_and_truth(corpus):
    out, truth = corpus
    assert truth.families == {
        "a": ("qaa", "qab", "qac", "qad"), "b": ("qba", "qbb", "qbc"), "c": ("qca", "qcb", "qcc"), "d": ("qda",),
    }  # fmt: skip
    sizes = sorted(truth.sizes.values(), reverse=True)
    assert sizes[0] == 1200
    assert sizes[-1] == 100
    ratios = [a / b for a, b in itertools.pairwise(sizes)]
    assert max(ratios) < 1.1 * min(ratios), "a geometric row"
    for family in ("a", "b", "c"):
        own = [truth.sizes[code] for code in truth.families[family]]
        assert max(own) > 4 * min(own), "each family has large and small languages"
    for code, size in truth.sizes.items():
        for split, count in (("train", size), ("dev", 40), ("test", 150)):
            assert len(lines(out, code, split, code)) == len(lines(out, code, split, "en")) == count
    assert Truth.load(out / "truth.json") == truth
    assert json.loads((out / "truth.json").read_text())["pivot"] == "en"


def test_same_seed_same_bytes_and_another_seed_others(tmp_path):
    few = {
        "families": [2, 1],
        "largest_sentences": 150,
        "smallest_sentences": 50,
        "dev_sentences": 10,
        "test_sentences": 20,
    }
    digests = []
    for i, seed in enumerate((3, 3, 4)):
        generate(SyntheticConfig(seed=seed, **few), tmp_path / str(i))
        files = sorted(p for p in (tmp_path / str(i)).rglob("*") if p.is_file())
        assert len(files) == 3 * 6 + 1
        digests.append(hashlib.sha256(b"".join(p.read_bytes() for p in files)).hexdigest())
    assert digests[0] == digests[1] != digests[2]


def test_bytes_do_not_depend_on_the_hash_seed(tmp_path):
    settings_file = tmp_path / "few.toml"
    settings_file.write_text("families = [1]\nlargest_sentences = 60\nsmallest_sentences = 60\ntest_sentences = 20\n")
    for seed in ("1", "2"):
        command = [sys.executable, "-m", "mnmt_scale.data.synthetic", str(settings_file), str(tmp_path / seed)]
        subprocess.run(command, check=True, timeout=60, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True)
    first, second = (sorted((tmp_path / seed).rglob("*.*")) for seed in ("1", "2"))
    assert first
    assert [p.read_bytes() for p in first if p.is_file()] == [p.read_bytes() for p in second if p.is_file()]


def test_splits_do_not_overlap_in_any_language(corpus):
    out, truth = corpus
    held_out = set(lines(out, "qaa", "test", "en")) | set(lines(out, "qaa", "dev", "en"))
    assert len(held_out) == 190, "test and dev are disjoint and without duplicates"
    for code in truth.sizes:
        assert set(lines(out, code, "test", "en")) | set(lines(out, code, "dev", "en")) == held_out, "the same meanings"
        train = lines(out, code, "train", "en")
        assert len(set(train)) == len(train)
        assert not held_out & set(train)
        own = set(lines(out, code, "test", code)) & set(lines(out, code, "train", code))
        assert len(own) <= 1, own  # nothing but a homophone can do that


def test_splits_are_disjoint_by_skeleton():
    """Changing number, definiteness, tense, polarity or a person never moves a meaning to another split."""
    known = concepts(0.1)
    sampler = Sampler(known, 0.5, 1)
    english = English(known, trace=True)

    def skeleton(clause):
        content = [w.split("\x1f")[1] for w in english.sentence(clause)]
        return tuple(sorted({x for x in content if x[0] in "nvadru"})), clause.kind

    blocks: dict[tuple, set[int]] = {}
    rng = stream("skeleton")
    plain = 0
    for _ in range(30000):
        clause, block = sampler.draw(rng)
        if clause.next is None and clause.kind == TRANSITIVE and not clause.places:
            phrases = (clause.agent, clause.patient)
            if all(p.owner is None and p.relative is None and p.other is None and p.pronoun < 0 for p in phrases):
                order = tuple((p.noun, p.adjectives, p.numeral) for p in phrases)
                blocks.setdefault((skeleton(clause), order), set()).add(block)
                plain += 1
    assert plain - len(blocks) > 500, "many meanings share a skeleton"
    assert all(len(found) == 1 for found in blocks.values())
    shares = [sum(min(b) == split for b in blocks.values()) / len(blocks) for split in (0, 1)]
    assert all(0.01 < share < 0.07 for share in shares)


def test_the_opus_reader_takes_it(corpus):
    out, truth = corpus
    found = find_corpora(DataConfig(corpora=[CorpusConfig(reader="opus", path=str(out))]))
    assert [c.pair for c in found] == [f"en-{code}" for code in sorted(truth.sizes)]


# ---- settings


def test_impossible_requests_are_refused(tmp_path, monkeypatch):
    for wrong, where in (
        ({"families": []}, "families"),
        ({"families": [27]}, "families"),
        ({"families": [1] * 21}, "families"),
        ({"smallest_sentences": 30000}, "smallest_sentences"),
        ({"scripts": ["cyrilic"]}, "scripts"),
        ({"max_words": 5}, "max_words"),
    ):
        with pytest.raises(MnmtError) as caught:
            settings.validate(SyntheticConfig, wrong, "here")
        assert caught.value.code == "E209"
        assert caught.value.where == where
    with pytest.raises(MnmtError, match="E209.*code 'qaa'"):
        construct(SyntheticConfig(pivot="qaa"))
    monkeypatch.setattr("mnmt_scale.data.synthetic.text._PATIENCE", 200)
    tiny = SyntheticConfig(families=[1], lexicon=0.02, max_words=6, test_sentences=100000)
    with pytest.raises(MnmtError, match="E209.*different test sentences"):
        generate(tiny, tmp_path)


def test_asked_for_families_scripts_and_pivot():
    config = SyntheticConfig(families=[3, 3, 3, 3, 1], scripts=["greek", "latin"], pivot="xx", depth=3)
    truth = construct(config).truth
    assert [len(codes) for codes in truth.families.values()] == [3, 3, 3, 3, 1]
    assert [e.script for e in truth.languages] == ["greek"] * 3 + ["latin"] * 3 + ["greek"] * 3 + ["latin"] * 3 + ["greek"]
    orders = [next(e for e in truth.languages if e.code == codes[0]).grammar["order"] for codes in truth.families.values()]
    assert len(set(orders[:4])) == 4, "families differ in the order of subject, verb and object"


def test_recipes_load():
    recipes = Path(__file__).resolve().parents[2] / "configs" / "synthetic"
    assert settings.load(SyntheticConfig, recipes / "languages.toml") == SyntheticConfig()
    joint = settings.load(RunConfig, recipes / "joint.toml")
    bilingual = settings.load(RunConfig, recipes / "bilingual.toml")
    assert joint.model.preset == bilingual.model.preset == "tiny"
    assert joint.data.store == bilingual.data.store
    assert joint.data.tokenizer == bilingual.data.tokenizer
    sizes = construct(SyntheticConfig()).truth.sizes
    assert bilingual.data.tasks == [min(sizes, key=sizes.__getitem__) + "-en"]


def test_command(tmp_path, capsys):
    (tmp_path / "s.toml").write_text("families = [1]\nlargest_sentences = 30\nsmallest_sentences = 30\n")
    assert main([str(tmp_path / "s.toml"), str(tmp_path / "out"), "seed=5"]) == 0
    assert "1 languages, 30 training pairs" in capsys.readouterr().out
    assert main([str(tmp_path / "s.toml"), str(tmp_path / "out"), "sed=5"]) == 2
    assert "did you mean 'seed'" in capsys.readouterr().err
    assert main([]) == 2


# ---- trees


def test_trees_and_distances(world):
    for seed in range(20):
        rng = random.Random(seed)
        languages = [f"l{i}" for i in range(1 + seed % 9)]
        tree = family_tree(rng, "r", languages, 1 + seed % 3)
        assert [leaf.name for leaf in tree.leaves()] == languages
    truth = world.truth
    assert truth.distance("qaa", "qaa") == 0
    for a, b in itertools.combinations(truth.families["a"], 2):
        assert 2 <= truth.distance(a, b) <= 4
        assert truth.distance(a, b) == truth.distance(b, a)
    across = [truth.distance(a, b) for a in truth.families["a"] for b in truth.families["b"]]
    assert min(across) > 3
    hand_made = Truth("en", {"x": ("qxa", "qxb", "qxc"), "y": ("qya",)}, {"x": "((qxa,qxb)x.1,qxc)x;", "y": "qya;"}, (), {})
    assert hand_made.distance("qxa", "qxb") == 2
    assert hand_made.distance("qxa", "qxc") == 3
    assert hand_made.distance("qxc", "qya") == 5  # 2 + 1 + 2, an isolate being its own root


def test_sisters_share_their_history(world):
    """The changes of a language begin with those of the branches that it shares with its sisters."""
    for family in world.truth.families.values():
        for a, b in itertools.combinations(family, 2):
            changes = [world.daughters[code].changes for code in (a, b)]
            common = len(list(itertools.takewhile(lambda xy: xy[0] == xy[1], zip(*changes, strict=False))))
            shared_branches = len(set(_inner_nodes(world.truth, a)) & set(_inner_nodes(world.truth, b))) - 1
            assert common >= DEFAULT.changes_per_branch * shared_branches
            grammars = [world.daughters[code].grammar.described() for code in (a, b)]
            assert grammars[0]["order"] == grammars[1]["order"]
            assert sum(grammars[0][k] != grammars[1][k] for k in grammars[0]) <= 4, "a branch drifts in one feature"


def _inner_nodes(truth, code):
    """Names of the nodes above a language, found in the Newick text by matching brackets from the right."""
    newick = truth.trees[truth.family_of(code)]
    return [m for m in set(re.findall(r"\)([a-z.0-9]+)", newick)) if code in _below(newick, m)]


def _below(newick, name):
    end = newick.rindex(")" + name)
    depth, start = 0, end
    while True:
        depth += {")": 1, "(": -1}.get(newick[start], 0)
        if depth == 0:
            return newick[start:end]
        start -= 1
