"""The commands and their exit codes.

0: done; 1: a problem was found, or the command failed; 2: wrong usage or configuration, and `slo` could not tell;
3: `bench --baseline` found a regression; 128 + N: ended by signal N, so 130 after Ctrl-C. The README has a table.
"""

import argparse
import contextlib
import errno
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from exporter import __version__
from exporter.config.arguments import Parser
from exporter.config.errors import SettingsError
from exporter.config.notation import counted
from exporter.config.settings import Settings
from exporter.config.sources import load
from exporter.plan.check_warnings import sent_in_the_open, too_frequent, too_short, without_limit
from exporter.plan.safety import too_large
from exporter.plan.targets import plans
from exporter.wire import grpc_env

# Why writing to the terminal, a pipe or a file fails, whatever is written.
NOT_WRITTEN = (errno.EPIPE, errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO)


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    grpc_env.prepare()
    os.umask(os.umask(0o077) | 0o002)  # whatever it was: no file and no socket that every user can write
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for a terminal that lacks a character, as on stderr
    try:
        try:
            return _run_command(words)
        finally:
            _flush()  # here a failure can be reported; when Python ends it would print a traceback
    except OSError as error:
        if error.errno not in NOT_WRITTEN:
            raise
        _discard_output()
        if not isinstance(error, BrokenPipeError):  # else the reader has left, as `head` does
            print(f"the output cannot be written: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # in a command that does not handle signals, and has nothing to clear away
        print("interrupted", file=sys.stderr)
        return 130


def _run_command(words: Sequence[str]) -> int:
    options = build_parser(words[:1]).parse_args(words)
    try:
        return int(options.command(options))
    except SettingsError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return 2


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            stream.flush()


def _discard_output() -> None:
    """Drop what is still in the buffers: Python would try to write it again when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
            continue
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def build_parser(command: Sequence[str] = ()) -> Parser:
    """All commands. Some have their options only when they are the `command`: a sidecar must not load their modules."""
    parser = Parser(
        prog="tgi-probe",
        description="Probe LLM inference servers of the TGI family and serve latency and throughput histograms.",
    )
    parser.add_argument("--version", action="version", version=f"tgi-probe {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="the daemon: probe and serve /metrics until SIGTERM")
    _add_config_option(run)
    run.add_argument(
        "--config.check",
        dest="check_only",
        action="store_true",
        help="only check the configuration, like `tgi-probe check`",
    )
    run.set_defaults(command=_run)

    check = commands.add_parser("check", help="check a configuration: exit code 0, or 2 with a line for every error")
    _add_config_option(check)
    check.add_argument(
        "--syntax-only",
        action="store_true",
        help="do not look at the tokens and certificates that it names, which need not be on this machine",
    )
    check.add_argument(
        "--connect",
        action="store_true",
        help="also ask each target for one small answer, and say what to mend: exit code 1 for a problem",
    )
    check.set_defaults(command=_check)

    rules = commands.add_parser(
        "rules", help="print Prometheus rules for a configuration: SLO burn rates, and alerts on the probing itself"
    )
    if "rules" in command:
        from exporter.alerting import rules_command

        rules_command.add_arguments(rules)
        rules.set_defaults(command=rules_command.run)

    slo = commands.add_parser("slo", help="ask Prometheus whether the SLOs are met: exit code 1 when one is missed")
    if "slo" in command:
        from exporter.alerting import slo_report

        slo_report.add_arguments(slo)
        slo.set_defaults(command=slo_report.run)

    health = commands.add_parser(
        "health", help="ask the daemon on this machine: exit code 0 when healthy, else 1 and why"
    )
    _add_config_option(health)
    health.set_defaults(command=_health)

    simulate = commands.add_parser("simulate", help="a simulated shard or router; needs no GPU")
    if "simulate" in command:
        from exporter import simulator

        simulator.add_arguments(simulate)
        simulate.set_defaults(command=simulator.run)

    bench = commands.add_parser("bench", help="one sweep over batch sizes: which one to run, on a live screen")
    if "bench" in command:
        from exporter.bench import command as bench_command
        from exporter.bench import options as bench_options

        bench_options.add_arguments(bench)
        bench.set_defaults(command=bench_command.run)

    demo = commands.add_parser(
        "demo", help="simulated servers, the daemon, Prometheus and Alertmanager together, to look around"
    )
    demo.add_argument(
        "--port",
        type=_port,
        default=9477,
        help="port of the daemon (default 9477); the others get the three after it where these are free",
    )
    demo.set_defaults(command=_demo)
    return parser


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) < 65536):
        raise argparse.ArgumentTypeError(f"must be a port from 0 to 65535, not {text!r}")
    return int(text)


def _add_config_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="YAML file; without it everything comes from TGI_PROBE_… variables"
    )


def _run(options: argparse.Namespace) -> int:
    if options.check_only:
        options.syntax_only = options.connect = False
        return _check(options)
    from exporter.daemon import app

    return app.run(options.config)


def _check(options: argparse.Namespace) -> int:
    settings = load(options.config)
    if settings.web.config_file:
        from exporter.web import web_file_state

        web_file_state.check(settings.web.config_file, with_certificates=not options.syntax_only)
    if not options.syntax_only:
        _check_secrets(settings)
    kinds = ((settings.targets, "target"), (settings.workloads, "workload"), (settings.slos, "SLO"))
    print("ok: " + ", ".join(counted(len(found), noun) for found, noun in kinds))
    from exporter.alerting.rules_command import explain
    from exporter.probes.router.hints import doubled_paths

    notes, warnings = explain(settings)
    about_targets = (without_limit, too_frequent, too_short, doubled_paths, sent_in_the_open)
    never = too_large(plans(settings).values())
    warnings = [*never, *(line for lines in about_targets for line in lines(settings)), *warnings]
    for note in notes:
        print(note)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if not options.connect:
        return 0
    from exporter.probes import connect_check

    return connect_check.run(settings)


def _check_secrets(settings: Settings) -> None:
    """The daemon starts without them, and tries again and again. Raises SettingsError."""
    from exporter.wire import credentials

    missing = [
        f"target {target.name}: {problem}" for target in settings.targets for problem in credentials.problems(target)
    ]
    if missing:
        raise SettingsError([*missing, "to check the configuration without its tokens and certificates: --syntax-only"])


def _health(options: argparse.Namespace) -> int:
    from exporter.web import health

    trouble = health.healthy(options.config)
    if trouble is not None:
        print(trouble, file=sys.stderr)
    return 0 if trouble is None else 1


def _demo(options: argparse.Namespace) -> int:
    from exporter.demo import command

    return command.run(options.port)
