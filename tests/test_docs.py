"""docs/scripting.md says what the code does: commands, options, exit codes, messages."""

import json
import re
from importlib import import_module
from pathlib import Path

import click
import msgspec
import pytest

from mlmigrate import cli, errors, messages

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "scripting.md").read_text(encoding="utf-8")


def section(title):
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)[1]


def rows(title):
    lines = re.findall(r"^\| (.*) \|$", section(title), re.MULTILINE)[1:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)] for line in lines]


def command(name):
    return import_module(f"mlmigrate.cli.{'import_' if name == 'import' else name}").command


def options():
    """Every option of every command, by its longest name."""
    found = {}
    commands = [command(name) for name in cli.COMMANDS]
    for one in [*commands, *command("archive").commands.values()]:
        for param in one.params:
            if isinstance(param, click.Option):
                found[
                    "/".join(sorted(param.opts + param.secondary_opts, key=len)[-1 - len(param.secondary_opts) :])
                ] = param
    return found


def test_every_command_is_told_in_the_words_of_its_help():
    told = {re.match(r"`mlmigrate (\w+)", row[0])[1]: row[1] for row in rows("Commands")}
    assert told == cli.COMMANDS


def test_every_command_is_there():
    assert all(isinstance(command(name), click.Command) for name in cli.COMMANDS)


def test_the_exit_codes_are_those_of_the_help_and_of_the_errors():
    told = [(int(code), meaning) for code, meaning in rows("Exit codes")]
    helped = [
        (int(code), meaning.strip())
        for code, meaning in re.findall(r"^  (\d+) +(.*(?:\n {8,}.*)*)$", cli.EXITS, re.MULTILINE)
    ]
    assert told == helped
    raised = {one.exit_code for one in vars(errors).values() if isinstance(one, type) and hasattr(one, "exit_code")}
    assert raised <= {code for code, _ in told}


def test_every_option_is_told_with_its_environment_twin():
    told = {re.findall(r"--[\w-]+(?:/--[\w-]+)?", row[0])[0]: row[1].strip("`") for row in rows("Options")}
    twins = {name: param.envvar for name, param in options().items() if param.envvar}
    assert told == twins


def test_options_without_a_twin_are_those_of_one_command_alone():
    assert {name for name, param in options().items() if not param.envvar} == {
        "--at",
        "--check",
        "--copy-only",
        "--delete-source",
        "--failures",
        "--ids",
        "--losses",
        "--older-than",
        "--seed",
        "--server",
        "--sweep",
        "--undo",
    }


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_has_examples_first_and_exit_statuses_last(name):
    text = command(name).get_help(click.Context(command(name), info_name=name))
    assert text.index("Examples:") < text.index("Options:") < text.index("Exit status:")
    assert text.rstrip().endswith("run again to go on")


def test_every_message_is_shown_with_all_its_fields():
    shown = [json.loads(line) for line in re.findall(r'^\{"message_type".*\}$', TEXT, re.MULTILINE)]
    fields = {one["message_type"]: list(one)[1:] for one in shown}
    assert fields == {one.__struct_config__.tag: list(one.__struct_fields__) for one in messages.ALL}


def test_every_message_shown_is_one():
    kinds = msgspec.json.Decoder(type=messages.Run | messages.Progress | messages.Summary | messages.Verified)
    for line in re.findall(r'^\{"message_type":"(?:run|progress|summary|verified)".*\}$', TEXT, re.MULTILINE):
        assert messages.line(kinds.decode(line)) == line
