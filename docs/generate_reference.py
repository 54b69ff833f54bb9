"""Write the generated pages of docs/reference from the code that they describe.

    python docs/generate_reference.py

Settings come from the pydantic models and the presets, options from the argparse parsers, trainers from their classes.
What the paper and its released code say is in docs/paper_and_release.json. docs/reference/files.md is written by hand.
tests/test_reference.py compares the pages with what is committed.
"""

from __future__ import annotations

import argparse
import inspect
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard, get_origin

from pydantic import BaseModel

from rehrseg_nnunet.cli.main import COMMANDS, build_parser
from rehrseg_nnunet.config import guidance, rehrseg
from rehrseg_nnunet.config.guidance import GuidanceConfig
from rehrseg_nnunet.config.presets import Preset, load_preset, preset_names
from rehrseg_nnunet.config.rehrseg import RehrsegConfig

FOLDER = Path(__file__).parent / "reference"
PAPER_AND_RELEASE = json.loads((Path(__file__).parent / "paper_and_release.json").read_text(encoding="utf-8"))
NOTHING = "-"  # says nothing about a setting
COMMAND = "python docs/generate_reference.py"
DEFAULT = "(default: "  # how a help text ends that names its default

SETTINGS_INTRODUCTION = """\
Settings are in two blocks of a configuration in the plans file, beside nnU-Net's own keys: `rehrseg` for REHRSeg,
[`guidance`](#guidance) for guidance by a better scan. A configuration may have one, both or none of them:

    "configurations": {"3d_fullres": {..., "rehrseg": {"factor": 4}, "guidance": {"keeper": {"kernel": 3}}}}

A key that is left out has its default. An unknown key or an impossible value is refused with the key's name.
`rehrseg plan -d 509 --preset NAME -o PLANS` writes plans with a `rehrseg` block, with `--method guidance` or `both`
with the other one or with both; train and predict with `-p PLANS`.
The `plans.json` that nnU-Net keeps with a model of REHRSegTrainer holds every setting, also those that were left out.
A block that is inherited (`inherits_from`) is replaced as a whole, because nnU-Net merges configurations shallowly.

*Default from* says where the default value comes from: the method's paper, the authors' released code (where the paper
gives no value) or this package. [Decisions](../decisions.md) has the reasons. *Preset `paper`* is shown where it
differs.
"""
SETTINGS_END = """\
## Environment variables

| variable | meaning |
|---|---|
| `nnUNet_extTrainer` | where nnU-Net looks for trainers: `export nnUNet_extTrainer="$(rehrseg trainers)"` |
| `REHRSEG_SELF_SR` | another stage-1 fold folder than the one of the same dataset, plans, configuration and fold |
| `REHRSEG_TEACHER` | the same for the teacher of a keeper |
| `REHRSEG_KEEPER` | the [keeper that guides](../how-to/guided.md#which-keeper): a paired dataset, or a fold folder |

If a stage 1 from `REHRSEG_SELF_SR` was trained on cases that you validate on, the validation is no longer one.

Changed `self_sr.export` settings take effect when stage 1 runs again with `--val`, which makes all pseudo-HR cases
anew.
"""
GUIDANCE_INTRODUCTION = """\
## `guidance`

The settings of guidance by a better scan (Oh et al., arXiv 2402.08409). Without the block, every key has its default.
Cascades are refused; any other 2d or 3d configuration will do, thick slices or not.
"""
PAPER_INTRODUCTION = """\
What the paper (Song et al. 2025) says about each setting, what its released code (github.com/zhiyuns/REHRSeg) does, and
what this package does: by default, and with `rehrseg plan --preset paper`, which is the paper's wherever the paper says
something. Sections and equations are the paper's; `-` means that it says nothing. Settings that neither of the two has
come last. [The same](#guidance-by-a-better-scan) for the settings of guidance.
"""
PAPER_GUIDANCE_INTRODUCTION = """\
## Guidance by a better scan

The same for the settings of `guidance`: Oh et al., arXiv 2402.08409, and its released code. Of the paper's text only
the abstract and a few sentences were at hand: `-` means that they do not say it.
"""
TRAINERS_INTRODUCTION = """\
Name a trainer with `-tr` in nnU-Net's commands, after `export nnUNet_extTrainer="$(rehrseg trainers)"`. Append
`_100epochs` (any number; `_1epoch`) to train for another length. Such a training builds on the runs of its fold that
have the same length, else on those without a length.

`SMORETrainer` reads `smore` of the [settings](settings.md), `SelfSRTrainer` reads `self_sr`, `GuidanceTeacherTrainer`,
`KnowledgeKeeperTrainer` and `GuidedTrainer` read the block `guidance`, `GuidedREHRSegTrainer` reads it and
`segmentation`, the others read `segmentation`. Settings that a trainer does not change are the plans'.
"""


def main() -> None:
    """Write every generated page."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
        print(f"wrote {FOLDER / name}")


def pages() -> dict[str, str]:
    """Text of every generated page, by file name."""
    return {
        "settings.md": _page("Settings", settings()),
        "paper.md": _page("Paper, released code and this package", paper_and_release()),
        "command-line.md": _page("Command line", command_line()),
        "trainers.md": _page("Trainers", trainers()),
    }


def _page(title: str, parts: Iterable[str]) -> str:
    note = f"Generated by `{COMMAND}`; change the code, not this page."
    return "\n\n".join((f"# {title}", note, *(part.strip("\n") for part in parts))) + "\n"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; bars inside a cell are escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def settings() -> Iterator[str]:
    """Sections of the settings page: one table for each group of settings, then the presets."""
    yield SETTINGS_INTRODUCTION
    yield from _block_tables(RehrsegConfig, rehrseg.BLOCK, prefix="")
    yield GUIDANCE_INTRODUCTION
    yield from _block_tables(GuidanceConfig, guidance.BLOCK, prefix=f"{guidance.BLOCK}.")
    yield "## Presets"
    yield table(("preset", "for", "network width"), (_preset_row(name) for name in preset_names()))
    yield "Keys in which a preset differs from the defaults:"
    yield _preset_changes()
    yield SETTINGS_END


def _block_tables(model: type[BaseModel], block: str, *, prefix: str) -> Iterator[str]:
    """Tables of one block; headings have the prefix."""
    paper = getattr(load_preset("paper"), block)
    yield _group_table(model, "", block=model, paper=paper)
    for name, group in _groups(model):
        yield f"## `{prefix}{name}`\n\n{inspect.getdoc(group)}"
        yield _group_table(group, name, block=model, paper=paper)


def _groups(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Nested models with their dotted keys, in the order of the file."""
    for key, field in model.model_fields.items():
        if _is_model(field.annotation):
            yield prefix + key, field.annotation
            yield from _groups(field.annotation, f"{prefix}{key}.")


def _is_model(annotation: Any) -> TypeGuard[type[BaseModel]]:
    """Whether a field holds a block; in Python 3.10 tuple[int, int] is an instance of type, but no class."""
    return isinstance(annotation, type) and get_origin(annotation) is None and issubclass(annotation, BaseModel)


def _group_table(model: type[BaseModel], group: str, *, block: type[BaseModel], paper: BaseModel) -> str:
    """The table of one group of a block's settings."""
    schema = block.model_json_schema()
    properties = (schema if model is block else schema["$defs"][model.__name__])["properties"]
    prefix = f"{group}." if group else ""
    nested = {key for key, _ in _groups(block)}
    rows = [
        _setting_row(prefix + key, entry, paper=_flat(paper)[prefix + key])
        for key, entry in properties.items()
        if prefix + key not in nested
    ]
    return table(("key", "type", "default", "default from", "preset `paper`", "meaning"), rows)


def _setting_row(key: str, entry: Mapping[str, Any], *, paper: Any) -> Sequence[str]:
    default = entry.get("default")
    differs = "" if paper == default else f"`{json.dumps(paper)}`"
    short = f"`{key.rpartition('.')[2]}`"
    return short, describe_type(entry), f"`{json.dumps(default)}`", entry["source"], differs, entry["description"]


def describe_type(entry: Mapping[str, Any]) -> str:
    """What a JSON schema allows, in words."""
    if "anyOf" in entry:
        return " or ".join(describe_type(option) for option in entry["anyOf"])
    if "enum" in entry or "const" in entry:
        return " or ".join(f"`{value}`" for value in entry.get("enum", [entry.get("const")]))
    if entry["type"] == "array":
        items = entry.get("prefixItems")
        return (
            f"list of {len(items)}: {describe_type(items[0])}" if items else f"list of {describe_type(entry['items'])}"
        )
    words = {"exclusiveMinimum": "above", "minimum": "at least", "maximum": "at most", "multipleOf": "a multiple of"}
    limits = [f"{word} {entry[limit]:g}" for limit, word in words.items() if limit in entry]
    return " ".join((entry["type"], ", ".join(limits))).strip()


def _flat(model: BaseModel) -> dict[str, Any]:
    """Every setting as JSON has it, by its dotted key."""

    def walk(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in values.items():
            if isinstance(value, Mapping):
                yield from walk(value, f"{prefix}{key}.")
            else:
                yield prefix + key, value

    return dict(walk(model.model_dump(mode="json"), ""))


def _preset_row(name: str) -> Sequence[str]:
    preset = load_preset(name)
    return f"`{name}`", preset.description, f"{preset.network_width:g}"


def _preset_changes() -> str:
    values = {name: _all_settings(load_preset(name)) for name in preset_names()}
    defaults = _all_settings(Preset(description=""))
    changed = {name: {key for key in defaults if own[key] != defaults[key]} for name, own in values.items()}
    shown = [name for name in values if changed[name]]
    rows = [
        (
            f"`{key}`",
            f"`{json.dumps(default)}`",
            *(f"`{json.dumps(values[name][key])}`" if key in changed[name] else "" for name in shown),
        )
        for key, default in defaults.items()
        if any(key in changed[name] for name in shown)
    ]
    return table(("key", "default", *(f"`{name}`" for name in shown)), rows)


def _all_settings(preset: Preset) -> dict[str, Any]:
    """Settings of both blocks by their dotted keys; those of `guidance` begin with its name."""
    guided = {f"{guidance.BLOCK}.{key}": value for key, value in _flat(preset.guidance).items()}
    return {**_flat(preset.rehrseg), **guided}


def paper_and_release() -> Iterator[str]:
    """Sections of the page that compares the papers, their released code and this package, setting by setting."""
    yield PAPER_INTRODUCTION
    yield from _comparison(PAPER_AND_RELEASE, RehrsegConfig(), load_preset("paper").rehrseg)
    yield PAPER_GUIDANCE_INTRODUCTION
    yield from _comparison(PAPER_AND_RELEASE[guidance.BLOCK], GuidanceConfig(), load_preset("paper").guidance)


def _comparison(sources: Mapping[str, Any], defaults: BaseModel, paper: BaseModel) -> Iterator[str]:
    """Tables of one block: settings that a source has, what is no setting, and settings of this package alone."""
    said, values, preset = sources["settings"], _flat(defaults), _flat(paper)

    def row(key: str) -> Sequence[str]:
        return f"`{key}`", *said.get(key, ()), f"`{json.dumps(preset[key])}`", f"`{json.dumps(values[key])}`"

    header = ("setting", "paper", "released code", "preset `paper`", "default")
    yield table(header, (row(key) for key in values if key in said))
    yield "### What is no setting"
    yield table(("what", "paper", "released code", "this package"), sources["others"])
    yield "### Settings of this package alone"
    yield table((header[0], *header[3:]), (row(key) for key in values if key not in said))


def command_line() -> Iterator[str]:
    """Sections of the command-line page: one for each subcommand of `rehrseg`."""
    yield "Bad input gives one line on stderr and exit status 1; Ctrl-C gives one line and 130."
    yield table(("command", "what it does"), ((f"[`rehrseg {n}`](#rehrseg-{n})", text) for n, text in COMMANDS.items()))
    for name in COMMANDS:
        parser = _subparser(name)
        yield f"## rehrseg {name}\n\n{_sentence(parser.description or '')}"
        options = [_option_row(action) for action in parser._actions if action.dest != "help"]
        yield table(("option", "value", "default", "meaning"), options) if options else "It has no options."


def _subparser(name: str) -> argparse.ArgumentParser:
    """The parser of one subcommand, with its options."""
    actions = build_parser(name)._actions
    return next(action for action in actions if isinstance(action, argparse._SubParsersAction)).choices[name]


def _option_row(action: argparse.Action) -> Sequence[str]:
    meaning, _, rest = (action.help or "").partition(DEFAULT)
    default = rest.removesuffix(")") if rest else _default(action)
    names = ", ".join(f"`{flag}`" for flag in action.option_strings) or f"`{action.metavar or action.dest}`"
    return names, _value(action), default % vars(action), (meaning % vars(action)).strip().rstrip(",")


def _default(action: argparse.Action) -> str:
    if action.required:
        return "required"
    return "" if action.nargs == 0 or action.default is None else str(action.default).replace("%", "%%")


def _value(action: argparse.Action) -> str:
    if action.nargs == 0 or not action.option_strings:
        return ""
    many = " ..." if action.nargs == "+" else ""
    if action.choices is not None:
        return ", ".join(f"`{choice}`" for choice in action.choices) + many
    return f"{action.metavar or action.dest.upper()}{many}"


def trainers() -> Iterator[str]:
    """Sections of the trainers page."""
    from rehrseg_nnunet.trainers.rehrseg_training_lengths import TRAINERS

    yield TRAINERS_INTRODUCTION
    rows = [(f"`{name}`", _summary(trainer), _changes(trainer), _file(trainer)) for name, trainer in TRAINERS.items()]
    yield table(("trainer", "what it is", "settings it changes", "file"), rows)


def _summary(trainer: type) -> str:
    """First paragraph of the class's docstring."""
    return " ".join((inspect.getdoc(trainer) or "").split("\n\n")[0].split())


def _changes(trainer: type) -> str:
    changes: dict[str, Any] = {}
    for key, value in {**getattr(trainer, "changes", {}), **getattr(trainer, "guidance_changes", {})}.items():
        changes |= {f"{key}.{name}": own for name, own in value.items()} if isinstance(value, dict) else {key: value}
    return ", ".join(f"`{key}`: `{json.dumps(value)}`" for key, value in changes.items())


def _file(trainer: type) -> str:
    name = Path(inspect.getfile(trainer)).name
    return f"[{name}](../../trainers/{name})"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."


if __name__ == "__main__":
    main()
