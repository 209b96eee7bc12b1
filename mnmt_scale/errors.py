"""Errors that a user can act on: one line with a code, what is wrong, where, and the remedy.

A ``MnmtError`` is for the user: the command line prints it as one line and exits with ``exit_code``; a bug of ours is
an ``AssertionError`` or any other exception and keeps its traceback. The first digit of a code names the part of the
system; ``docs/troubleshooting.md`` has one entry per code, which a test keeps complete.
"""

from __future__ import annotations

CODES = {
    # 1xx settings and the command line
    "E101": "unknown setting",
    "E102": "wrong type, unit or value of a setting",
    "E103": "settings file missing or not TOML",
    "E104": "settings contradict each other",
    "E105": "unknown or misspelt language or pair",
    # 2xx raw text
    "E201": "corpus file missing",
    "E202": "the two sides of a corpus have different numbers of lines",
    "E203": "invalid UTF-8, NUL byte, byte order mark or CRLF line ends in a corpus file",
    "E204": "corpus file or side empty",
    "E205": "compressed or columnar file damaged",
    "E206": "a pair has no sentences left after cleaning",
    "E207": "too much of the training text is in dev or test",
    "E208": "the same pair is given twice",
    "E209": "constructed languages cannot be made as asked",
    # 3xx tokenizer and token store
    "E301": "vocabulary size impossible for this corpus",
    "E302": "tokenizer model missing or damaged",
    "E303": "token store missing, or not finished",
    "E304": "token store damaged",
    "E305": "token store of another format version",
    "E306": "token store belongs to another tokenizer",
    "E307": "token id beyond the vocabulary",
    # 4xx run directory and checkpoints
    "E401": "run directory not writable",
    "E402": "run directory in use by a living process",
    "E403": "no checkpoint to resume from",
    "E404": "checkpoint file missing, truncated or altered",
    "E405": "checkpoint does not fit this run",
    "E406": "a checkpoint could not be saved",
    "E407": "not a run directory",
    "E408": "checkpoint files are not safe to load",
    # 5xx training
    "E501": "loss or gradient is not finite",
    "E502": "a sentence does not fit into the micro-batch",
    "E503": "the optimizer that DeepSpeed chose is not the one the table names",
    "E504": "the other ranks disagree or are gone",
    "E505": "gradients of single tasks are not finite, again and again",
    "E506": "task weights diverged",
    "E507": "gradients of single tasks cannot be measured in this setting",
    # 6xx evaluation and translation
    "E601": "hypotheses and references have different numbers of lines",
    "E602": "metric or its tokenizer not available",
    "E603": "runs cannot be compared",
    "E604": "a stage of a workflow failed",
    "E605": "not a probe file",
    "E606": "groups file cannot be used",
    "E607": "affinity measured too thinly, or for other directions",
    "E608": "directions cannot be clustered as asked",
    # 7xx interchange
    "E701": "this model cannot be exported to that format",
    "E702": "export failed its parity check",
    "E703": "directory cannot be imported",
    "E704": "output directory is taken or cannot be written",
    # 8xx the machine
    "E801": "optional package missing",
    "E802": "this machine cannot train",
    "E803": "launcher gave an unusable environment",
    "E804": "the kernels that were forced cannot run here",
}


class MnmtError(ValueError):
    """Something that the user can mend.

    Args:
        code: a key of ``CODES``.
        what: what is wrong, in one clause.
        where: file, line, setting, rank or language.
        remedy: what to do about it.
    """

    exit_code = 2

    def __init__(self, code: str, what: str, *, where: str | None = None, remedy: str | None = None) -> None:
        assert code in CODES, code
        self.code, self.what, self.where, self.remedy = code, what, where, remedy
        super().__init__(str(self))

    def __str__(self) -> str:
        parts = [f"MNMT-{self.code}: {self.what}"]
        if self.where:
            parts.append(f"at {self.where}")
        line = " ".join(parts)
        if self.remedy:
            line += f"; {self.remedy}"
        return " ".join(line.split())

    def __reduce__(self):
        return (_rebuild, (self.code, self.what, self.where, self.remedy))


def _rebuild(code: str, what: str, where: str | None, remedy: str | None) -> MnmtError:
    return MnmtError(code, what, where=where, remedy=remedy)


def nearest(name: str, candidates, remedy: str = "did you mean {}?") -> str | None:
    """The remedy that names the candidate closest to ``name``; None when nothing is close."""
    import difflib

    close = difflib.get_close_matches(name, [str(c) for c in candidates], n=1, cutoff=0.5)
    if not close:  # a code of two letters that differs in one: difflib rates it 0.5 at best
        same = [str(c) for c in candidates if str(c)[:2].lower() == name[:2].lower()]
        close = same[:1]
    return remedy.format(f"'{close[0]}'") if close else None
