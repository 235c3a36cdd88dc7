"""The `vkrt` command: its subcommands, and one line on stderr for whatever goes wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from vkrt import __version__
from vkrt.arguments import shown
from vkrt.cli.cache import clear, list_cache
from vkrt.cli.doctor import doctor
from vkrt.cli.export import export
from vkrt.cli.failures import BAD_INPUT, INTERRUPTED, SIGNALLED, explain
from vkrt.cli.generate import generate
from vkrt.cli.memory_limits import check_address_space
from vkrt.cli.models import models
from vkrt.cli.pull import pull
from vkrt.cli.segment import segment
from vkrt.cli.signals import Stopped, stop_by_exception
from vkrt.cli.streams import flush, make_writable
from vkrt.cli.track import track
from vkrt.errors import VkrtError

__all__ = ["app", "main"]

EXAMPLES: dict[Callable[..., Any], str] = {
    segment: "vkrt segment photo.jpg --point 500,375 --out mask.png --overlay seen.png",
    track: "vkrt track clip.mp4 --point 210,350@0 --out masks/ --out overlay.mp4",
    generate: 'vkrt generate "a lighthouse at dusk" --seed 7 --out lighthouse.png',
    export: "vkrt export sam2.1-nano --out nano.vkrt",
    models: "vkrt models --json",
    doctor: "vkrt doctor",
    pull: "vkrt pull sam2.1-tiny",
}

app = typer.Typer(
    name="vkrt",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command, example in EXAMPLES.items():
    app.command(epilog=f"Example: {example}")(command)

cache = typer.Typer(help="List what the cache folder holds, and delete from it.")
cache.command("list", epilog="Example: vkrt cache list")(list_cache)
cache.command("clear", epilog="Example: vkrt cache clear --refusals")(clear)
app.add_typer(cache, name="cache")


def show_version(wanted: bool) -> None:
    """Print the version and leave, if that is wanted."""
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback(epilog=f"Example: {EXAMPLES[segment]}")
def root(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Segment photos and track objects with SAM 2; make pictures with Stable Diffusion 3.5.

    Exit codes: 0 done, 1 nothing can run here or fits (doctor), 2 bad input, 130 interrupted,
    128 and its number stopped by another signal.
    """


def check_texts(given: Sequence[str]) -> None:
    """Refuse what no shell hands over, and no file may be called.

    Raises:
        VkrtError: a text has a NUL character in it.
    """
    for text in given:
        if "\0" in text:
            raise VkrtError(f"{shown(text)} holds a NUL character; leave that out")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line, `sys.argv` if none is given, and return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    make_writable()
    try:
        check_address_space()
        check_texts(given)
        with stop_by_exception():
            command = typer.main.get_command(app)
            code = command.main(given or ["--help"], prog_name="vkrt", standalone_mode=False)
            flush()
    except Stopped as stopped:
        print(f"vkrt: stopped by {stopped}", file=sys.stderr)
        return SIGNALLED + stopped.signal
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        print(f"vkrt: {line}", file=sys.stderr)
        return BAD_INPUT
    if code == INTERRUPTED:
        print("vkrt: interrupted", file=sys.stderr)
    return code if isinstance(code, int) else 0
