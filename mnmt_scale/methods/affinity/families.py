"""Families of languages by code: a table for common languages, or a file."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...errors import MnmtError
from .language import languages_of

TABLE = {
    "Albanian": "sq sqi als aln",
    "Algonquian": "cr oj cre oji",
    "Armenian": "hy hye hyw",
    "Athabaskan": "nv nav",
    "Atlantic": "ff wo ful fuv wol",
    "Austroasiatic": "km vi kha khm mnw sat vie",
    "Austronesian": "ch fj ho id jv jw mg mh mi ms na sm su tl to ty ace ban bjn bug ceb cha fij fil haw hil hmo ilo ind "
    "jav mah min mlg mri msa nau pag pam plt smo sun tah tgl ton war zlm zsm",
    "Aymaran": "ay aym ayr",
    "Baltic": "lt lv lav lit ltg lvs sgs",
    "Bantu": "hz kg ki kj lg ln lu nd ng nr ny rn rw sn ss st sw tn ts ve xh zu bem cjk her kam kik kin kmb kon "
    "kua lin loz lua lub lug nbl nde ndo nso nya nyn run sna sot ssw swa swh tsn tso tum umb ven xho zul",
    "Basque": "eu eus",
    "Berber": "ber kab rif shi taq tmh tzm zgh",
    "Celtic": "br cy ga gd gv kw bre cor cym gla gle glv",
    "Chadic": "ha hau",
    "Constructed": "eo ia ie io vo epo ido ile ina jbo tlh vol",
    "Creole": "bi ht sg bis hat kea mfe pap sag tpi",
    "Cushitic": "aa om so aar gaz orm sid som",
    "Dravidian": "kn ml ta te kan mal tam tcy tel",
    "Eskimo-Aleut": "ik iu kl iku ipk kal",
    "Germanic": "af da de en fo fy is lb li nb nl nn no sv yi afr dan deu eng fao fry gsw isl lim ltz nds nld nno nob "
    "nor swe ydd yid",
    "Greek": "el ell grc",
    "Gur": "dag kbp mos",
    "Hmong-Mien": "hmn mww",
    "Indo-Aryan": "as bh bn dv gu hi ks mr ne or pa pi sa sd si ur asm awa ben bho bih div guj hin hne kas kok mag mai "
    "mar nep npi ori ory pan pli pnb rom san sin skr snd urd",
    "Iranian": "ae fa ku os ps tg ave bal ckb fas glk kmr kur mzn oss pbt pes prs pus tgk zza",
    "Japonic": "ja jpn",
    "Kartvelian": "ka kat xmf",
    "Koreanic": "ko kor",
    "Kwa": "ak tw aka fat gaa twi",
    "Mande": "bm bam dyu nqo",
    "Mayan": "quc",
    "Mongolic": "mn bxr khk mon",
    "Nahuan": "nah nhi",
    "Nilotic": "dik din kln luo nus",
    "Northeast Caucasian": "av ce ava che lez",
    "Northwest Caucasian": "ab abk ady kbd",
    "Quechuan": "qu que quy quz",
    "Romance": "an ca co es fr gl it la mo oc pt rm ro sc wa arg ast cat cos fra fur glg ita lad lat lij lld lmo oci "
    "por roh ron scn spa srd vec wln",
    "Saharan": "kr kau knc",
    "Semitic": "am ar he iw mt ti acm acq aeb ajp amh apc ara arb ars ary arz heb mlt tir",
    "Sinitic": "zh cmn hak lzh nan wuu yue zho",
    "Slavic": "be bg bs cs cu hr mk pl ru sh sk sl sr uk bel bos bul ces chu csb dsb hrv hsb mkd pol rue rus slk "
    "slv srp szl ukr",
    "Tai-Kadai": "lo th za lao shn tha zha",
    "Tibeto-Burman": "bo dz ii my bod brx dzo iii kac lus mni mya new",
    "Tupian": "gn grn gug",
    "Turkic": "az ba cv kk ky tk tr tt ug uz alt aze azb azj bak chv crh gag kaz kir sah tat tuk tur tyv uig uzb uzn",
    "Uralic": "et fi hu kv se ekk est fin hun koi krl liv mdf mhr myv sme udm vro",
    "Volta-Niger": "ee ig yo ewe fon ibo yor",
}
"""Family -> ISO 639-1 and 639-3 codes. Branches where these are what is commonly meant (Romance), else whole families."""

FAMILIES = {code: family for family, codes in TABLE.items() for code in codes.split()}
"""Code -> family."""

BUILT_IN = "table"
"""What stands for ``FAMILIES`` in place of a file's name."""


def family_of(code: str, table: Mapping[str, str] = FAMILIES) -> str | None:
    """The family of a language; scripts and regions are looked through (``kas_Deva``, ``pt_br``). None where not known."""
    return table.get(code, table.get(code.partition("_")[0].lower()))


def read_families(path: str | Path) -> dict[str, str]:
    """Code -> family from a JSON or TOML file: a table of that, a table family -> list of codes, or either of them under
    ``families``, as the ``truth.json`` of constructed languages has it. The word ``table`` is the table here.

    Raises:
        MnmtError: E201 when it is not there, E102 when it is no such table.
    """
    path = Path(path)
    if str(path) == BUILT_IN:
        return FAMILIES
    try:
        text = path.read_text(encoding="utf-8")
        table = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except OSError as error:
        raise MnmtError("E201", f"table of families cannot be read ({error.strerror or error})", where=str(path)) from None
    except (ValueError, RecursionError):
        raise _no_table(path, "neither JSON nor TOML (by its name)") from None
    if isinstance(table, dict) and isinstance(table.get("families"), dict):
        table = table["families"]
    if not isinstance(table, dict) or not table:
        raise _no_table(path, "no table")
    if all(isinstance(family, str) for family in table.values()):
        return dict(table)
    out: dict[str, str] = {}
    for family, codes in table.items():
        if not isinstance(codes, list) or not all(isinstance(code, str) for code in codes):
            raise _no_table(path, f"{family!r} is neither a family nor a list of codes")
        twice = next((code for code in codes if code in out), None)
        if twice is not None:
            raise _no_table(path, f"{twice!r} is in two families")
        out |= dict.fromkeys(codes, family)
    return out


def labels(directions: Sequence[tuple[str, str]], table: Mapping[str, str] = FAMILIES) -> list[str]:
    """The family of each direction: of its other language where all share their source or target, else of both,
    ``Romance > Slavic``.

    Raises:
        MnmtError: E105 naming the languages that the table lacks.
    """
    shared = languages_of(directions)
    keys = list(directions) if shared is None else [(code,) for code in shared]
    missing = sorted({code for key in keys for code in key if family_of(code, table) is None})
    if missing:
        raise MnmtError(
            "E105",
            f"no family is known for {', '.join(missing)}",
            remedy='give them all with --families FILE (a table of code = "family")',
        )
    return [" > ".join(str(family_of(code, table)) for code in key) for key in keys]


def _no_table(path: Path, what: str) -> MnmtError:
    return MnmtError("E102", what, where=str(path), remedy='wanted: code = "family", or family = ["code", ...]')
