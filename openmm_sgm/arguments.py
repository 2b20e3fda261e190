"""The arguments of the command line: verbs, options, their help and examples, and completion in shells."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import shtab

__all__ = ["DEFAULT_EVALUATIONS", "DEFAULT_LARGEST", "DEFAULT_QUICK", "DEFAULT_SEED", "make_parser"]

DEFAULT_EVALUATIONS, DEFAULT_QUICK, DEFAULT_SEED = 250_000, 300_000, 1
DEFAULT_LARGEST = 2_000_000
EXIT_CODES = "Exit codes: 0 done, 1 a run could not go on, 2 input that cannot be used, 130 interrupted."


def make_parser() -> argparse.ArgumentParser:
    """Return the parser; the verb that was given is `command` in what it parses."""
    from . import __version__

    parser = argparse.ArgumentParser(
        prog="openmm-sgm",
        description="Free-energy surfaces by a score model with exact injection into OpenMM.",
        epilog=EXIT_CODES,
    )
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")

    new = verbs.add_parser(
        "new",
        help="write a system folder for a molecule, with torsions to choose from",
        **_examples(
            "openmm-sgm new leucine --pdb leucine.pdb",
            "openmm-sgm new leucine --pdb leucine.pdb --solvent obc --add-hydrogens",
        ),
    )
    new.add_argument("folder", type=Path, metavar="DIR", help="a new folder")
    new.add_argument("--pdb", type=Path, required=True, metavar="FILE", help="the molecule, complete but for hydrogens")
    new.add_argument(
        "--force-field", default="amber99sbildn.xml", metavar="NAME", help="OpenMM's, or a file (default %(default)s)"
    )
    new.add_argument("--solvent", default="vacuum", metavar="S", help="vacuum (default) or obc, generalised Born")
    _add_trust(new)
    new.add_argument("--add-hydrogens", action="store_true", help="those missing at pH 7; added anyway if it has none")
    new.add_argument("--seed", type=int, default=DEFAULT_SEED, metavar="S", help="of added hydrogens (default 1)")

    run = verbs.add_parser(
        "run",
        help="sample a system folder and write surface, samples and report",
        **_examples(
            "openmm-sgm run leucine --output out",
            "openmm-sgm run leucine --output out --resume",
            "openmm-sgm run leucine --output longer --force-evaluations 1000000 --target-error 0.5 --workers 8",
            "openmm-sgm run leucine --output hot --ladder 420,600,850",
            "openmm-sgm run leucine --output cluster --executor parsl --executor-config slurm_gpus.toml",
            notes="All that has been computed is kept in DIR at once: after Ctrl-C (once to stop after what is\n"
            "running, twice to stop at once), a kill or a loss of power, --resume goes on from there.",
        ),
    )
    run.add_argument("system", type=Path, metavar="SYSTEM_FOLDER", help="a folder with system.toml")
    run.add_argument("--output", type=Path, required=True, metavar="DIR", help="a new folder for the results")
    run.add_argument(
        "--force-evaluations",
        type=int,
        metavar="N",
        help=f"the budget: every MD step and every energy counts (default {DEFAULT_EVALUATIONS}, or that of the run to "
        "resume)",
    )
    run.add_argument(
        "--target-error",
        type=float,
        metavar="KJ_MOL",
        help="end earlier, when the surface's RMS standard error is below this",
    )
    run.add_argument(
        "--workers",
        type=int,
        metavar="W",
        help="processes (default: the processors there are, or as many as the run to resume had)",
    )
    run.add_argument(
        "--executor",
        choices=["serial", "processes", "parsl"],
        default="processes",
        help="where work runs: in this process, in processes on this machine (default), or wherever Parsl is told",
    )
    run.add_argument(
        "--executor-config", type=Path, metavar="FILE", help="workers and nodes for Parsl, see examples/executors"
    )
    run.add_argument("--platform", metavar="NAME", help="OpenMM platform (default: the fastest here, by timing)")
    run.add_argument(
        "--precision", default="mixed", metavar="P", help="single, mixed or double, on GPUs (default mixed)"
    )
    run.add_argument("--deterministic-forces", action="store_true", help="sum forces in an order that does not vary")
    run.add_argument("--seed", type=int, metavar="S", help="default 1, or that of the run to resume")
    run.add_argument(
        "--ladder",
        metavar="A,B,C",
        help="temperatures (K) above the system's, such as 420,600,850, where states are looked for that no CV leads "
        "to; in no estimate themselves",
    )
    run.add_argument(
        "--quick",
        action="store_true",
        help="least time instead of fewest force evaluations, where these are cheap (the default is then "
        f"{DEFAULT_QUICK}: opening windows over two torsions takes some 200000)",
    )
    run.add_argument(
        "--generator", type=Path, metavar="DIR", help="begin with this generator: of `train`, or of another run"
    )
    _add_trust(run)
    run.add_argument("--resume", action="store_true", help="continue an interrupted run in DIR")

    train = verbs.add_parser(
        "train",
        help="train a generator on unbiased frames that there are already",
        **_examples(
            "openmm-sgm train leucine --trajectory md.dcd --output pre",
            "openmm-sgm run leucine --output out --generator pre/generator",
        ),
    )
    train.add_argument("system", type=Path, metavar="SYSTEM_FOLDER", help="a folder with system.toml")
    data = train.add_mutually_exclusive_group(required=True)
    data.add_argument(
        "--trajectory",
        type=Path,
        action="append",
        metavar="FILE",
        help="unbiased dynamics at the system's temperature, in a format that mdtraj reads; may be given several times",
    )
    data.add_argument("--frames", type=Path, metavar="FOLDER", help="what a FrameReporter has written")
    train.add_argument("--output", type=Path, required=True, metavar="DIR", help="a new folder for the results")
    _add_trust(train)
    train.add_argument("--seed", type=int, default=DEFAULT_SEED, metavar="S", help="default 1")

    compare = verbs.add_parser(
        "compare",
        help="run several methods on one system and compare their errors and costs",
        **_examples(
            "openmm-sgm compare leucine --output comparison --seeds 3",
            "openmm-sgm compare leucine --output short --methods score,umbrella --budgets 100000,250000",
        ),
    )
    compare.add_argument("system", type=Path, metavar="SYSTEM_FOLDER", help="a folder with system.toml")
    compare.add_argument("--output", type=Path, required=True, metavar="DIR", help="a new folder for the results")
    compare.add_argument("--methods", metavar="A,B,C", help="default: all (a wrong name tells which there are)")
    compare.add_argument(
        "--force-evaluations",
        type=int,
        metavar="N",
        help=f"the largest budget of the series 50k, 100k, 250k, 500k, 1M, 2M (default {DEFAULT_LARGEST})",
    )
    compare.add_argument("--budgets", metavar="A,B,C", help="these budgets instead of the series")
    compare.add_argument(
        "--largest", metavar="METHOD=N,...", help="the largest budget of single methods, such as score=250000"
    )
    compare.add_argument("--ladder", metavar="A,B,C", help="hotter temperatures (K) for score, as in run")
    compare.add_argument("--seeds", type=int, default=3, metavar="K", help="runs of each method (default 3)")
    compare.add_argument(
        "--reference",
        type=Path,
        metavar="FILE",
        help="a surface.csv that counts as the truth (default: the mean of the methods' longest runs)",
    )
    _add_trust(compare)
    compare.add_argument("--workers", type=int, metavar="W", help="processes (default: the processors there are)")
    compare.add_argument(
        "--resume", action="store_true", help="continue an interrupted comparison in DIR, or add to it"
    )

    status = verbs.add_parser(
        "status", help="tell how far a live, finished or killed run is", **_examples("openmm-sgm status out")
    )
    status.add_argument("folder", type=Path, metavar="DIR")

    report = verbs.add_parser(
        "report",
        help="write report.html anew from a finished run's folder",
        **_examples("openmm-sgm report out", "openmm-sgm report out --comparison comparison"),
    )
    report.add_argument("folder", type=Path, metavar="DIR")
    report.add_argument(
        "--comparison", type=Path, metavar="DIR", help="add a section with the comparison of methods in this folder"
    )

    completion = verbs.add_parser(
        "completion",
        help="print what lets a shell complete commands and options",
        **_examples(
            'eval "$(openmm-sgm completion bash)"',
            "openmm-sgm completion zsh > ~/.zfunc/_openmm-sgm",
        ),
    )
    completion.add_argument("shell", choices=shtab.SUPPORTED_SHELLS)
    _complete_paths(verbs.choices.values())
    return parser


def _add_trust(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--trust",
        action="store_true",
        help="let the system's own files run code: scripts of a force field, a PythonForce (refused otherwise)",
    )


def _examples(*commands: str, notes: str = "") -> dict[str, Any]:
    """Return the end of a verb's help: examples, notes and exit codes, in lines as they stand."""
    lines = ["examples:", *(f"  {command}" for command in commands), *([notes] if notes else []), EXIT_CODES]
    return {"epilog": "\n".join(lines), "formatter_class": argparse.RawDescriptionHelpFormatter}


def _complete_paths(parsers: Iterable[argparse.ArgumentParser]) -> None:
    """Let shells complete the arguments that are paths."""
    for parser in parsers:
        for action in parser._actions:
            if action.type is Path:
                action.complete = shtab.FILE if action.metavar == "FILE" else shtab.DIRECTORY  # type: ignore[attr-defined]
