"""Language profiles: right on real and made-up text, the same in every process."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mnmt_scale.evaluation.offtarget import LanguageProfiles, ngram_buckets
from mnmt_scale.evaluation.script import main_script, scripts_of

TEXT = {
    "en": ["the cat sat on the mat and looked at the other cats", "this is what they thought about the weather"] * 5,
    "de": ["die Katze sa\u00df auf der Matte und schaute nach den anderen", "das ist was sie \u00fcber das Wetter dachten"] * 5,
    "ru": [
        "\u043a\u043e\u0442 \u0441\u043f\u0430\u043b \u0434\u043e\u043c\u0430",
        "\u0431\u044b\u043b\u0430 \u043f\u043e\u0433\u043e\u0434\u0430",
    ]
    * 9,
}


def test_languages_are_told_apart():
    profiles = LanguageProfiles(TEXT)
    assert profiles.classify("the weather looked like that") == "en"
    assert profiles.classify("das Wetter war auf der Matte") == "de"
    assert profiles.classify("\u0434\u043e\u043c\u0430 \u043f\u043e\u0433\u043e\u0434\u0430") == "ru"
    assert profiles.classify("123 , ?!") is None
    assert profiles.classify("") is None


def test_rates_count_what_is_off_target():
    profiles = LanguageProfiles(TEXT)
    hypotheses = [
        "die Katze schaute auf das Wetter",
        "the cat looked at the weather",
        "\u043a\u043e\u0442 \u0441\u043f\u0430\u043b",
        "",
        "42",
    ]
    found = profiles.judge(hypotheses, ["die anderen Katzen dachten das"] * 5, "de")
    assert found.lines == 3
    assert found.script_rate == pytest.approx(1 / 3)
    assert found.ngram_rate == pytest.approx(2 / 3)
    assert found.reference_rate == 0.0
    assert found.languages == {"en": 1, "ru": 1}
    assert profiles.judge(hypotheses, hypotheses, "fr") is None
    assert profiles.judge(["", "7"], ["a", "b"], "de") is None


def test_buckets_do_not_depend_on_the_process():
    code = "from mnmt_scale.evaluation.offtarget import ngram_buckets as n; print(n('Stra\u00dfe \u0e44\u0e17\u0e22').tolist())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert out.stdout.strip() == str(ngram_buckets("Stra\u00dfe \u0e44\u0e17\u0e22").tolist())
    assert len(ngram_buckets("ab")) == 4 + 3 + 2
    assert ngram_buckets("AB  c").tolist() == ngram_buckets("ab c").tolist()


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Hello \u043c\u0438\u0440 abc", "LATIN"),
        ("\u6f22\u5b57\u304b\u306a\u6f22\u5b57", "HAN"),
        ("\uff71\uff72\uff73", "KATAKANA"),
        ("\ud55c\uad6d\uc5b4", "HANGUL"),
        ("12 \u00b7", None),
    ],
)
def test_main_script(text, script):
    assert main_script(text) == script


def test_script_shares():
    assert scripts_of(["ab", "\u0432\u0433"]) == {"CYRILLIC": 0.5, "LATIN": 0.5}
    assert scripts_of(["1", ""]) == {}


def test_real_languages_are_told_apart(real_text):
    root = real_text / "lafand" / "supervised"
    text, held_out = {}, {}
    for language in ("hau", "ibo", "swa", "yor", "zul", "lug", "pcm"):
        for folder in sorted(root.glob(f"*{language}*")):
            for path in folder.glob(f"*train.{language}"):
                text[language] = path.read_bytes().decode().split("\n")[:2000]
            for path in folder.glob(f"*test.{language}"):
                held_out[language] = path.read_bytes().decode().split("\n")[:60]
    if len(text) < 3:
        pytest.skip("other languages in the real text than expected")
    profiles = LanguageProfiles(text)
    for language, lines in held_out.items():
        right = [profiles.classify(line) == language for line in lines if line.strip()]
        assert sum(right) / len(right) > 0.9, language
