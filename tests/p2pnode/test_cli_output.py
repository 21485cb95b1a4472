"""What the command line does when its words cannot be written, and how it puts them."""

import os
from pathlib import Path

import click
import pytest

from p2pnode.cli.main import cli
from p2pnode.errors import ExitCode
from tests.p2pnode.command import Result, finish, start, start_python

SPEAK = """
import click
from p2pnode.cli.main import cli, main
from p2pnode.cli.session import run_async, until_interrupted

@cli.command()
def speak():
    async def work():
        for _ in range(9):
            click.echo("words " * 1_000)
    run_async(lambda: until_interrupted(work))

main()
"""
"""A command that says something while it is at work, as those do that ask the network."""


def unread(*words: object, python: bool = False) -> Result:
    """Run a command into a pipe whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as out:
        return finish(start_python(*words, home=None, out=out) if python else start(*words, out=out))


@pytest.mark.parametrize("words", [("version",), ("--help",), ("blob-id", "--shards", 10, __file__)])
def test_a_command_whose_reader_has_gone_ends_without_a_word(words: tuple[object, ...]) -> None:
    done = unread(*words)
    assert (done.code, done.err) == (ExitCode.UNREAD, "")


def test_so_does_one_that_is_at_work() -> None:
    done = unread("-c", SPEAK, "speak", python=True)
    assert (done.code, done.err) == (ExitCode.UNREAD, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux alone has a disk that is always full")
def test_a_full_disk_under_the_output_is_named() -> None:
    with open("/dev/full", "wb") as out:
        at_once = finish(start("version", out=out))
        at_work = finish(start_python("-c", SPEAK, "speak", home=None, out=out))
    for done in (at_once, at_work):
        assert (done.code, done.err) == (ExitCode.SPACE, "error: a disk is full: free some space and try again\n")


def test_the_list_of_commands_has_no_line_that_is_cut() -> None:
    def summaries(group: click.Group) -> list[str]:
        inner = [line for one in group.commands.values() if isinstance(one, click.Group) for line in summaries(one)]
        return [*inner, *(one.get_short_help_str(62) for one in group.commands.values())]

    assert [line for line in summaries(cli) if line.endswith("...")] == []
