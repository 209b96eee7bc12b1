"""Everything that can speak: families, trees, grammars, lexicons and scripts of a configuration."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest

from ...errors import MnmtError
from ...tasks import check_code
from .concepts import Concepts, concepts
from .config import SyntheticConfig
from .draws import shuffled, stream
from .english import English
from .grammar import draw_grammar, family_orders
from .lexicon import Daughter, Node, ProtoLanguage, family_tree, grow
from .meaning import Sampler
from .realise import Speaker
from .truth import LanguageTruth, Truth

_FAMILY_SCRIPTS = ("latin", "cyrillic", "latin_diacritic", "georgian", "latin", "greek", "armenian", "devanagari")
_ODD_SCRIPT = "arabic"


@dataclass(frozen=True, slots=True)
class World:
    """Everything that can speak: the languages of a configuration before any text is written."""

    config: SyntheticConfig
    known: Concepts
    daughters: dict[str, Daughter]
    scripts: dict[str, str]
    truth: Truth

    def english(self, trace: bool = False) -> English:
        """The pivot's speaker."""
        return English(self.known, trace)

    def speaker(self, code: str, trace: bool = False) -> Speaker:
        """The speaker of a constructed language."""
        return Speaker(self.daughters[code], self.known, self.scripts[code], trace)

    def sampler(self) -> Sampler:
        """Draws meanings that all of them can express."""
        return Sampler(self.known, self.config.zipf, self.config.seed)


def construct(config: SyntheticConfig) -> World:
    """The families, trees, grammars and lexicons of ``config``."""
    check_code(config.pivot)
    known = concepts(config.lexicon)
    orders = family_orders(stream(config.seed, "orders"), len(config.families))
    families = {
        chr(ord("a") + f): [f"q{chr(ord('a') + f)}{chr(ord('a') + i)}" for i in range(size)]
        for f, size in enumerate(config.families)
    }
    scripts = _scripts(config, families)
    sizes = _sizes(config, families)
    daughters: dict[str, Daughter] = {}
    trees: dict[str, Node] = {}
    for f, (name, codes) in enumerate(families.items()):
        rng = stream(config.seed, "tree", f)
        trees[name] = family_tree(rng, name, codes, config.depth)
        proto = ProtoLanguage(config.seed, f, known)
        grown = grow(
            rng,
            trees[name],
            proto,
            draw_grammar(stream(config.seed, "grammar", f), orders[f]),
            changes=config.changes_per_branch,
            replacement=config.replacement,
            drifting=config.grammar_drift,
        )
        daughters |= {d.code: d for d in grown}
    if config.pivot in daughters:
        raise MnmtError("E209", f"the pivot's code {config.pivot!r} is that of a constructed language", where="pivot")
    languages = tuple(
        LanguageTruth(code, code[1], scripts[code], sizes[code], tuple(d.changes), d.grammar.described())
        for code, d in daughters.items()
    )
    truth = Truth(
        config.pivot,
        {name: tuple(codes) for name, codes in families.items()},
        {name: tree.newick() + ";" for name, tree in trees.items()},
        languages,
        config.model_dump(mode="json"),
    )
    return World(config, known, daughters, scripts, truth)


def _scripts(config: SyntheticConfig, families: dict[str, list[str]]) -> dict[str, str]:
    names = config.scripts or _FAMILY_SCRIPTS
    scripts = {code: names[f % len(names)] for f, codes in enumerate(families.values()) for code in codes}
    second = list(families.values())[1:2]
    if config.scripts is None and second and len(second[0]) > 2:
        by_size = _sizes(config, families)
        scripts[sorted(second[0], key=by_size.__getitem__)[1]] = _ODD_SCRIPT
    return scripts


def _sizes(config: SyntheticConfig, families: dict[str, list[str]]) -> dict[str, int]:
    """A geometric row from the largest to the smallest language, dealt to the families in turn."""
    hands = [shuffled(stream(config.seed, "sizes", name), codes) for name, codes in families.items()]
    dealt = [code for turn in zip_longest(*shuffled(stream(config.seed, "deal"), hands)) for code in turn if code]
    ratio = config.smallest_sentences / config.largest_sentences
    last = max(1, len(dealt) - 1)
    return {code: round(config.largest_sentences * ratio ** (i / last)) for i, code in enumerate(dealt)}
