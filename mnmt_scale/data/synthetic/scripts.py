"""Scripts: how the phonemes of a constructed language are written.

Phonemes are single ASCII characters: vowels ``a e i o u y @``; consonants ``p b t d k g q m n N f v s z S Z C x h l r w
j`` (N ng, S sh, Z zh, C ch, x kh, @ schwa, j the glide of "yes"). A script writes each phoneme in one way (plain Latin
with digraphs, Devanagari with vowel signs), so a transliterated language keeps the information of the original and
shares nothing visible with it. All letters are stable under NFKC, which SentencePiece applies.
"""

from __future__ import annotations

from collections.abc import Callable

VOWELS = "aeiouy@"
CONSONANTS = "pbtdkgqmnNfvszSZCxhlrwj"
PHONEMES = VOWELS + CONSONANTS

# In the order of PHONEMES: letters, or code points in hexadecimal.
_LETTERS = {
    "latin": "a e i o u y \u00eb p b t d k g q m n ng f v s z sh zh ch kh h l r w j",
    "latin_diacritic": "a e i o u \u00fc \u0103 p b t d k g \u0137 m n \u0148 f v s z \u0161 \u017e \u010d x h l r w j",
}
_CODES = {
    "cyrillic": "430 44d 438 43e 443 44b 44a 43f 431 442 434 43a 433 49b 43c "
    "43d 4a3 444 432 441 437 448 436 447 445 4bb 43b 440 45e 458",
    "greek": "3b1 3b5 3b9 3bf 3c9 3c5 3b7 3c0 3b2 3c4 3b4 3ba 3b3 3d9 3bc "
    "3bd 3be 3c6 3dd 3c3 3b6 3fb 3b8 3c8 3c7 371 3bb 3c1 3f8 3f3",
    "georgian": "10d0 10d4 10d8 10dd 10e3 10f1 10f5 10de 10d1 10e2 10d3 10d9 10d2 10e7 10db "
    "10dc 10eb 10e4 10d5 10e1 10d6 10e8 10df 10e9 10ee 10f0 10da 10e0 10f3 10f2",
    "armenian": "561 565 56b 578 582 567 568 57a 562 57f 564 56f 563 584 574 "
    "576 581 586 57e 57d 566 577 56a 579 56d 570 56c 580 583 575",
    "arabic": "627 6d5 6cc 6c6 6c7 6d0 6ce 67e 628 62a 62f 6a9 6af 642 645 "
    "646 6ad 641 6a4 633 632 634 698 686 62e 647 644 631 648 64a",
    "devanagari": "93e 947 93f 94b 941 940 - 92a 92c 924 926 915 917 916 92e "
    "928 919 92b 935 938 91c 936 91d 91a 918 939 932 930 92d 92f",
}
_DEVANAGARI_INITIAL = dict(zip(VOWELS, "\u0906\u090f\u0907\u0913\u0909\u0908\u0905", strict=True))
_VIRAMA = "\u094d"

SCRIPTS = (*_LETTERS, *_CODES)


def writer(script: str) -> Callable[[str], str]:
    """The function that writes a string of phonemes in ``script`` (one of ``SCRIPTS``)."""
    table = _table(script)
    if script == "devanagari":
        return lambda phonemes: _write_devanagari(phonemes, table)
    codes = str.maketrans(table)
    return lambda phonemes: phonemes.translate(codes)


def _table(script: str) -> dict[str, str]:
    if script in _LETTERS:
        written = _LETTERS[script].split()
    else:
        written = ["" if code == "-" else chr(int(code, 16)) for code in _CODES[script].split()]
    assert len(written) == len(set(written)) == len(PHONEMES), script
    return dict(zip(PHONEMES, written, strict=True))


def _write_devanagari(phonemes: str, table: dict[str, str]) -> str:
    out = []
    after_consonant = False
    for p in phonemes:
        if p in VOWELS:
            out.append(table[p] if after_consonant else _DEVANAGARI_INITIAL[p])
            after_consonant = False
        else:
            out.append((_VIRAMA if after_consonant else "") + table[p])
            after_consonant = True
    return "".join(out) + (_VIRAMA if after_consonant else "")
