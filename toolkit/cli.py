"""The `tune2ollama` command: parse, call one function, print the artifact and the next command.

Only the standard library, click and `errors` are imported at the top, here and in `commands`, so that `--help` is instant.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys

import click

from toolkit.commands import around, chain, exports, measured
from toolkit.errors import INTERRUPTED, MAKE_ROOM, StageFailed, ToolkitError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="tune2ollama")
@click.option("--debug", is_flag=True, envvar="TUNE2OLLAMA_DEBUG", help="Show the traceback of an error.")
@click.pass_context
def cli(context: click.Context, debug: bool) -> None:
    """A fine-tune that you can `ollama run`, with proof that what runs is what was trained.

    \b
    Start:   tune2ollama run recipes/medical.yaml
    Then:    ollama run medical
    """
    context.obj = {"debug": debug}
    if debug:
        os.environ["TUNE2OLLAMA_DEBUG"] = "1"


for _command in (
    chain.run, *chain.STAGE_COMMANDS, chain.modelfile, exports.verify, exports.export, measured.evaluate,
    around.inspect_rows, around.init,
    around.list_recipes,
    around.doctor, around.plan, around.chat, around.clean,
):  # fmt: skip
    cli.add_command(_command)


@cli.command(name="stage-process", hidden=True)
def stage_process() -> None:
    """Run one stage in this process, as ordered on standard input (used by `run`)."""
    from toolkit.run.pipeline import run_stage_here
    from toolkit.run.processes import die_with_parent

    order = json.load(sys.stdin)
    die_with_parent(signal.SIGKILL, order["parent"])()
    run_stage_here(order)


@cli.command(name="stage-server", hidden=True)
@click.argument("replies", type=int)
def stage_server(replies: int) -> None:
    """Fork for every stage that is ordered on standard input (used by `run`)."""
    from toolkit.run.pipeline import run_stage_here
    from toolkit.run.processes import die_with_parent
    from toolkit.run.stage_processes import serve

    order = serve(replies)
    if order is not None:
        die_with_parent(signal.SIGKILL, order["parent"])()
        run_stage_here(order)


def _tell(error: ToolkitError) -> None:
    if not isinstance(error, StageFailed):
        click.secho("Error: ", fg="red", bold=True, err=True, nl=False)
    click.echo(error.message, err=True)
    if error.hint:
        click.echo(error.hint, err=True)


def main() -> None:
    """Run the command; the one place where an error becomes text and an exit code."""
    from toolkit.run.processes import keep_interrupts, without_compiler

    # A polite `kill` ends like Ctrl-C: locks are released, started servers are stopped.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    keep_interrupts()
    without_compiler()
    debug = "--debug" in sys.argv or bool(os.environ.get("TUNE2OLLAMA_DEBUG"))
    try:
        cli.main(standalone_mode=False)
    except ToolkitError as error:
        if debug:
            raise
        _tell(error)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        if not {"stage-process", "stage-server"} & set(sys.argv):  # the command that started it says so
            click.echo("\nInterrupted. Finished stages stay; run the same command again to go on.", err=True)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        sys.exit(0)
    except Exception as error:
        if debug:
            raise
        _tell(translated(error))
        sys.exit(translated(error).exit_code)


HALF_WRITTEN = "marshal data too short"
"""What Python says of bytecode that a full disk cut; it does not write it again by itself."""


def translated(error: Exception) -> ToolkitError:
    """An error that no part of the toolkit expected, in words."""
    import errno

    from toolkit.errors import ExternalToolError, ResourceError
    from toolkit.models.safetensors_file import no_space

    if HALF_WRITTEN in str(error):
        return ExternalToolError(
            "Python keeps a translation of every module that it imports, and one of them is half written: a disk was full",
            f"Run: find {shlex.quote(sys.prefix)} -name '*.pyc' -delete",
        )
    if reason := no_space(error):
        return ResourceError(
            f"the disk is full: {getattr(error, 'filename', None) or 'while writing'} ({reason})",
            f"{MAKE_ROOM}; then run the same command again.",
        )
    if isinstance(error, OSError) and error.errno in {errno.EACCES, errno.EROFS}:
        return ResourceError(f"{error.filename} cannot be written or read: {error.strerror}", "Mend its permissions.")
    if isinstance(error, MemoryError):
        return ResourceError("memory ran out", "Close other programs, or take a smaller base: tune2ollama plan …")
    return ToolkitError(
        f"{type(error).__name__}: {error}", "This was not foreseen. For the traceback: tune2ollama --debug …"
    )


if __name__ == "__main__":
    main()
