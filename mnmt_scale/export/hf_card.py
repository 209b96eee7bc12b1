"""The README of an exported Hugging Face directory: how to load it and how to say which languages are meant."""

from __future__ import annotations

from ..runs import OpenedRun
from ..tasks import Task

_HEAD = """---
pipeline_tag: translation
library_name: transformers
---
# {name}

An `M2M100ForConditionalGeneration` exported by mnmt_scale: {parameters:,} parameters, {count} direction(s) ({examples}).
No code of its own is needed; `AutoTokenizer` gives a fast tokenizer with the tags of this model's languages.
`config.json` lists all tags (`language_tags`) and trained directions (`directions`).

```python
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("PATH")
model = AutoModelForSeq2SeqLM.from_pretrained("PATH")
"""

_SINGLE = """# {source} is the only source language: its tag is added
inputs = tokenizer(["..."], return_tensors="pt", padding=True)
"""

_SEVERAL = """# from {source}
inputs = tokenizer(["{tag}" + line for line in ["..."]], return_tensors="pt", padding=True)
"""

_FORCED = """# {target} is the only target language: generation_config.json forces its tag
outputs = model.generate(**inputs)
"""

_CHOSEN = """# into {target}
outputs = model.generate(**inputs, forced_bos_token_id=tokenizer.convert_tokens_to_ids("{tag}"))
"""

_TAIL = """print(tokenizer.batch_decode(outputs, skip_special_tokens=True))
```
"""

_TEMPLATE = """
A tag written before the text is read as the tag, and so is one that happens to stand in the text. For text that you do not
control, set the source language once and have special tokens in the text treated as text:

```python
from tokenizers.processors import TemplateProcessing

def set_source(tokenizer, tag):
    special = [(t, tokenizer.convert_tokens_to_ids(t)) for t in (tag, tokenizer.eos_token)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{tag} $A {tokenizer.eos_token}", special_tokens=special)
    tokenizer.split_special_tokens = True

set_source(tokenizer, "EXAMPLE")
inputs = tokenizer(["..."], return_tensors="pt", padding=True)
```
"""


def card(run: OpenedRun, source: str | None) -> str:
    """Text of README.md.

    Args:
        source: the only source language; None where there are several.
    """
    example: Task = run.tasks[0]
    pieces, tokenizer = run.tokenizer.pieces(), run.tokenizer
    source_tag = pieces[tokenizer.tag_id(example.source)]
    target_tag = pieces[tokenizer.tag_id(example.target)]
    names = run.tasks.names
    text = _HEAD.format(
        name=run.name,
        parameters=sum(p.numel() for p in run.model.parameters()),
        count=len(names),
        examples=", ".join(names[:8]) + (", ..." if len(names) > 8 else ""),
    )
    text += _SINGLE.format(source=source) if source else _SEVERAL.format(source=example.source, tag=source_tag)
    forced = len({task.target for task in run.tasks}) == 1
    text += _FORCED.format(target=example.target) if forced else _CHOSEN.format(target=example.target, tag=target_tag)
    return text + _TAIL + ("" if source else _TEMPLATE.replace("EXAMPLE", source_tag))
