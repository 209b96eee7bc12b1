"""``mnmt``: one program, one module per verb. A verb's module is imported when it is called, so that help is quick."""

from __future__ import annotations

import importlib
import os
import sys

import typer
from typer.core import TyperGroup
from typer.main import get_command_from_info
from typer.models import CommandInfo

from .. import __version__
from .common import run_verb

VERBS = {
    # name: (module, function, one line)
    "doctor": ("doctor", "doctor", "What this machine offers, and whether training can work."),
    "demo": ("demo", "demo", "End to end on constructed languages, or on a directory of real text."),
    "prepare": ("prepare", "prepare", "Corpora -> cleaned -> tokenizer -> token store."),
    "train": ("train", "train", "One training; under a launcher, one rank of it."),
    "probe": ("probe", "app", "Measure gradients, curvature, affinity or language vectors; writes a probe file."),
    "cluster": ("cluster", "cluster", "From a probe file to a groups file: which directions train together."),
    "workflow": ("workflow", "app", "Chains of trainings: compare methods over seeds, or the systems of the FTAC paper."),
    "translate": ("translate", "translate", "Translate standard input line by line."),
    "evaluate": ("evaluate", "evaluate", "BLEU, chrF++ and NLL per direction and resource class."),
    "export": ("export", "export", "Write a run as Hugging Face, CTranslate2 or safetensors directory."),
    "import": ("import_", "import_", "Read an M2M100 or NLLB directory as a run."),
    "report": ("report", "report", "One self-contained page about one or more runs."),
    "bench": ("bench", "app", "Measure this machine and this system: kernels, data, train, decode."),
    "estimate": ("estimate", "estimate", "Memory, hours and cost of a training, before it starts."),
}


UsageError = typer.BadParameter.__mro__[1]
"""The base of what is wrong with a command line; typer keeps it in a private module since it brought its own click."""


class _Verbs(TyperGroup):
    """Loads a verb on demand; the list of verbs needs no import."""

    def list_commands(self, ctx: typer.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: typer.Context, name: str):
        if name not in VERBS:
            return None
        module, attribute, line = VERBS[name]
        verb = getattr(importlib.import_module(f"mnmt_scale.cli.{module}"), attribute)
        if isinstance(verb, typer.Typer):
            command = typer.main.get_command(verb)
            command.name = name
            return command
        info = CommandInfo(name=name, callback=verb, short_help=line)
        return get_command_from_info(info, pretty_exceptions_short=True, rich_markup_mode=None)

    def format_commands(self, ctx: typer.Context, formatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(name, line) for name, (_, _, line) in VERBS.items()])

    def resolve_command(self, ctx: typer.Context, args: list[str]):
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            from ..errors import nearest

            near = nearest(args[0], VERBS) or "see mnmt --help"
            raise UsageError(f"no verb {args[0]!r}; {near}", ctx)
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_Verbs,
    add_completion=False,
    rich_markup_mode=None,
    help="Multilingual machine translation training on ZeRO-sharded Transformers. `mnmt VERB --help` has an example.",
)


@app.callback(invoke_without_command=False)
def _root(
    ctx: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and leave.", is_eager=True),
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``mnmt`` and ``python -m mnmt_scale``."""
    _calm_threads()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]  # accepted before and after the verb
    if "--version" in arguments[:1]:
        print(__version__)
        return
    command = typer.main.get_command(app)
    sys.exit(run_verb_of(command, arguments, debug))


def _calm_threads() -> None:
    """Let OpenMP threads wait by sleeping soon, not by spinning for milliseconds (read when torch is first imported).

    Where another process holds one of the cores, a spinning thread keeps the one it waits for from running: a training with
    two threads beside one busy process fell from 4,000 tokens a second to 170.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")


def run_verb_of(command, arguments: list[str], debug: bool) -> int:
    """Exit code: 0, 2 for a user's error, 70 for a bug of ours, or what the verb chose (``typer.Exit``)."""
    code = 0

    def call() -> None:
        nonlocal code
        try:
            code = command.main(args=arguments, prog_name="mnmt", standalone_mode=False) or 0
        except UsageError as error:
            print(f"mnmt: {error.format_message()}", file=sys.stderr)
            code = 2
        except typer.Exit as leave:
            code = leave.exit_code
        except typer.Abort:
            code = 130

    failed = run_verb(call, debug)
    return failed or (code if isinstance(code, int) else 0)
