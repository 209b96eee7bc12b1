"""Documents against the program: every error code explained, links that lead somewhere, commands that exist, promises kept."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest
import typer

from mnmt_scale.cli.main import VERBS, app
from mnmt_scale.errors import CODES

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted(
    path for folder in (ROOT, ROOT / "docs", ROOT / "launchers", ROOT / "configs") for path in folder.glob("*.md")
)
SOURCES = sorted((ROOT / "mnmt_scale").rglob("*.py"))


def anchors(text: str) -> set[str]:
    """Fragments that a renderer gives the headings of a document."""
    titles = re.findall(r"^#+ +(.*)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def test_every_error_code_has_an_entry_with_a_remedy():
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    entries = dict(re.findall(r"^### (E\d{3})\n(.*?)(?=^##|\Z)", text, flags=re.M | re.S))
    assert set(entries) == set(CODES)
    for code, entry in entries.items():
        assert entry.strip().startswith("**"), code
        assert "*Remedy:*" in entry, code
    assert list(entries) == sorted(entries)


def test_codes_that_the_program_raises_are_listed():
    raised = {code for path in SOURCES for code in re.findall(r'MnmtError\(\s*"(E\d{3})"', path.read_text())}
    assert raised <= set(CODES)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_relative_links_lead_somewhere(document):
    text = document.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, fragment = target.partition("#")
        file = (document.parent / name).resolve() if name else document
        assert file.exists(), f"{document.name}: {target}"
        if fragment and file.suffix == ".md":
            assert fragment in anchors(file.read_text()), f"{document.name}: {target}"


def options_of(command: typer.core.click.Command) -> set[str]:
    names = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    for sub in getattr(command, "commands", {}).values():
        names |= options_of(sub)
    return names | {"--help", "--debug"}


def command_lines(text: str) -> list[list[str]]:
    """What follows ``mnmt`` in code spans, code blocks and docstrings, up to the end of the command."""
    found = []
    for line in re.findall(r"(?:^|[`\s(/])mnmt ([a-z][^`\n]*)", text):
        words = re.split(r"[|;<>&#]|\.\.\.(?=`|$)", line)[0]
        try:
            found.append(shlex.split(words))
        except ValueError:
            found.append(words.split())
    return [words for words in found if words]


def verbs_and_options(text: str) -> list[tuple[str, list[str]]]:
    rows = []
    for words in command_lines(text):
        words = words[: words.index("--")] if "--" in words else words  # what follows is another program's
        options = [re.split(r"[=,.;:)]", word)[0] for word in words[1:] if word.startswith("--") and len(word) > 2]
        rows.append((words[0].rstrip(".,:)"), options))
    return rows


def mentions(path: Path) -> list[tuple[str, list[str]]]:
    """Commands in the code spans and blocks of a document, and in the examples of a verb's docstring."""
    text = path.read_text()
    if path.suffix == ".md":
        spans = re.findall(r"`([^`\n]+)`", text) + re.findall(r"^ {4,}(\S.*)$", text, flags=re.M)
        spans += [
            line for block in re.findall(r"^```[^\n]*\n(.*?)^```", text, flags=re.M | re.S) for line in block.splitlines()
        ]
        text = "\n".join(spans)
    else:
        text = "\n".join(re.findall(r"Example: (.*)", text))
    return verbs_and_options(text)


@pytest.mark.parametrize("path", [*DOCUMENTS, *(ROOT / "mnmt_scale" / "cli").glob("*.py")], ids=lambda path: path.name)
def test_commands_that_are_named_exist(path):
    group = typer.main.get_command(app)
    context = group.make_context("mnmt", ["doctor"], resilient_parsing=False)
    for verb, options in mentions(path):
        if not re.fullmatch(r"[a-z]+", verb) or verb == "is":
            continue
        assert verb in VERBS, f"{path.name}: mnmt {verb}"
        known = options_of(group.get_command(context, verb))
        for option in options:
            assert option in known, f"{path.name}: mnmt {verb} {option}"


def test_settings_that_troubleshooting_names_exist():
    from mnmt_scale import settings
    from mnmt_scale.train.config import RunConfig

    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    sections = "data|sampling|batch|model|method|engine|train|evaluation"
    known = {name for name, _, _ in settings.reference(RunConfig)}
    for name in re.findall(rf"`((?:{sections})(?:\.[a-z_]+)+)", text):
        assert name in known or any(other.startswith(name + ".") for other in known) or name == "engine.deepspeed", name


def test_promises_of_the_security_page_are_kept():
    """No pickle, no torch.load, no eval, no shell, no remote code anywhere in the package."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                assert not {"pickle", "dill", "cloudpickle", "marshal", "shelve"} & {n.split(".")[0] for n in names}, path
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("torch.load", "eval", "exec", "os.system", "yaml.load", "np.load"), f"{path}: {called}"
                for keyword in node.keywords:
                    unsafe = keyword.arg in ("shell", "trust_remote_code", "allow_pickle")
                    assert not (unsafe and ast.unparse(keyword.value) != "False"), f"{path}: {keyword.arg}"
