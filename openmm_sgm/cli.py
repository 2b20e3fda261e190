"""The command line: what each verb of `arguments` does. Bad input: one sentence, exit code 2."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import shutil
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import DEFAULT_EVALUATIONS, DEFAULT_LARGEST, DEFAULT_QUICK, DEFAULT_SEED, make_parser

if TYPE_CHECKING:
    from .journal import Journal
    from .options import SamplerOptions

__all__ = ["main"]

SAVE_SECONDS = 1.0
RED, YELLOW = 31, 33
"""ANSI colours of errors and warnings, on terminals alone."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1 when a run failed, 2 for bad input, 130 when interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = make_parser().parse_args(given)
    # Imports wait until the arguments are known to be good: --help and a misspelt option should not take seconds.
    from .units import InputError, SamplingError

    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return _VERBS[options.command](options, shlex.join(["openmm-sgm", *given]))
    except InputError as error:
        print(_painted(f"openmm-sgm: {error}", RED), file=sys.stderr)
        return 2
    except SamplingError as error:
        print(_painted(f"openmm-sgm: {error}", RED), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("openmm-sgm: interrupted", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace, command: str) -> int:
    from .platforms import PlatformOptions
    from .report import ADVICE, find_warnings, write_report
    from .runfolder import has_state, keep, refuse_overwriting, write_results, write_status
    from .sampler import ScoreSampler
    from .set_aside import save_failed
    from .status import read_status, resumed, storage_errors
    from .system_file import load_system
    from .units import HiddenStateWarning

    folder: Path = options.output
    if not options.resume:
        refuse_overwriting(folder)
    before = read_status(folder) if options.resume and (folder / "status.json").is_file() else {}
    workers, executor = _workers(options, before)
    quick = options.quick or before.get("quick", False)
    ladder = options.ladder or ",".join(f"{t:g}" for t in before.get("ladder", []))
    usual = DEFAULT_QUICK if quick else DEFAULT_EVALUATIONS
    budget = before.get("budget", usual) if options.force_evaluations is None else options.force_evaluations
    seed = before.get("seed", DEFAULT_SEED) if options.seed is None else options.seed
    molecule = load_system(options.system, options.trust)

    def tell(state: str, found: list[str] | None = None) -> None:
        write_status(folder, state, sampler, budget, command, found)

    def keep_failed(segment: Any, reason: str, temperature_k: float) -> None:
        save_failed(folder / "failed", segment, reason, temperature_k)

    platform = PlatformOptions(options.platform, options.precision, options.deterministic_forces)
    show = _Progress(budget, lambda: tell("running"))
    chosen: dict[str, Any] = {"options": _options(ladder, quick)} if ladder or quick else {}
    if options.generator is not None:
        chosen["generator"] = _load_generator(options.generator)
    sampler = ScoreSampler(
        molecule,
        seed=seed,
        workers=workers,
        executor=executor,
        platform=platform,
        progress=show.line,
        on_round=lambda _: tell("running"),
        on_set_aside=keep_failed,
        **chosen,
    )
    show.sampler = sampler
    left, target = sampler.check_budget(budget), sampler.check_target(options.target_error)
    began = has_state(folder)
    with storage_errors(folder, command), keep(sampler, folder, options.resume) as spent:
        if sampler.campaign is not None:
            done = sampler.campaign.plan.rounds == 0 and budget <= sampler.campaign.plan.end
            left = 0 if done else left - spent
        elif options.resume and not began:
            show.line("the run had saved nothing before it ended: it begins anew")
        tell("running")
        show.saving = True
        try:
            if left > 0:
                with warnings.catch_warnings(), _stopping_gently(sampler.journal, show):
                    warnings.simplefilter("ignore", HiddenStateWarning)  # it is told with the others, at the end
                    with contextlib.nullcontext() if executor is None else executor:
                        sampler.run(left, target)
            show.line("estimating")
            show.saving = False
            result = write_results(folder, sampler, command)
            path = write_report(folder)
            found = find_warnings(folder)
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt)
            with contextlib.suppress(OSError):  # of a full disk, the first error is the one to tell
                tell("interrupted" if interrupted else "failed")
            if interrupted:
                show.note(f"to continue: {resumed(command)}")
            raise
        finally:
            show.close()
        tell("finished", found)
    for line in _evidence(result):
        show.note(line)
    for warning in found:
        show.note(_painted(f"warning: {warning}", YELLOW))
    if found:
        show.note(ADVICE)
    print(path)
    return 0


def _workers(options: argparse.Namespace, before: dict[str, Any]) -> tuple[int | None, Any]:
    """Return the number of workers and, for Parsl, the executor; it starts when it is first used.

    before : the status of the run to resume, whose number of workers counts where none is given
    """
    from .preflight import refuse_copies
    from .units import InputError

    refuse_copies()
    if (options.executor == "parsl") != (options.executor_config is not None):
        raise InputError("--executor parsl and --executor-config FILE go together: see examples/executors")
    if options.executor != "processes" and options.workers is not None:
        raise InputError(f"--workers is for --executor processes, not {options.executor}")
    if options.executor == "serial":
        return 0, None
    if options.executor == "processes":
        return before.get("workers") if options.workers is None else options.workers, None
    from .parsl_pool import ParslPool, load_parsl_options

    parsl = load_parsl_options(options.executor_config)
    return parsl.workers, ParslPool(parsl, options.output / "parsl")


@contextlib.contextmanager
def _stopping_gently(journal: Journal | None, show: _Progress) -> Iterator[None]:
    """Within, the first Ctrl-C lets what is running end and be kept, and a second ends the process at once."""

    def stop(number: int, frame: Any) -> None:
        assert journal is not None
        if journal.stopping:
            print("openmm-sgm: stopped; what had been kept is whole", file=sys.stderr, flush=True)
            os._exit(130)
        journal.stop()
        show.note("stopping after what is running; Ctrl-C again to stop at once")

    if journal is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    usual = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)


def _new(options: argparse.Namespace, command: str) -> int:
    from .new_system import new_system

    torsions = new_system(
        options.folder,
        options.pdb,
        force_field=options.force_field,
        solvent=options.solvent,
        add_hydrogens=options.add_hydrogens,
        trust=options.trust,
        seed=options.seed,
    )
    for k, torsion in enumerate(torsions):
        print(f"{'CV' if k < 2 else '  '} {torsion.name:12} {torsion.meaning}, atoms {list(torsion.atoms)}")
    path = options.folder / "system.toml"
    print(f"{path} has the first {min(2, len(torsions))} as collective variables; edit it to choose others.")
    if len(torsions) > 2:
        print(
            "A torsion that turns freely within picoseconds need not be one. The run warns where one that is none is "
            "slow: then make it one, or add --ladder 420,600,850 to the command."
        )
    print(f"openmm-sgm run {shlex.quote(str(options.folder))} --output {shlex.quote(options.folder.name)}_run")
    return 0


def _train(options: argparse.Namespace, command: str) -> int:
    from .pretrain import read_trajectories, train_from_frames, write_pretrained
    from .reporter import load_frames
    from .system_file import load_system
    from .units import InputError

    if options.seed < 0:
        raise InputError(f"the seed must be a whole number, 0 or more, got {options.seed}")
    if os.path.lexists(options.output) and (not options.output.is_dir() or any(options.output.iterdir())):
        raise InputError(f"{options.output} is there already and not an empty folder: choose another --output")
    above = next(folder for folder in options.output.absolute().parents if folder.exists())
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise InputError(f"cannot make the folder {options.output}: {above} is not a folder that can be written to")
    molecule = load_system(options.system, options.trust)
    frames = load_frames(options.frames) if options.frames else read_trajectories(molecule, options.trajectory)
    show = _Progress(1)
    result = train_from_frames(molecule, frames, seed=options.seed, progress=show.note)
    write_pretrained(options.output, result, options.seed, command)
    for line in result.left_out:
        show.note(f"left out: {line}")
    show.note(result.coverage)
    losses = [loss for _, loss in result.held_out]
    show.note(
        f"held-out loss {losses[0]:.3f} before, {min(losses):.3f} after {result.steps} steps; "
        f"{result.force_evaluations:,} force evaluations"
    )
    print(options.output / "generator")
    return 0


def _load_generator(folder: Path) -> Any:
    from .files import DAMAGE
    from .generator import Generator
    from .units import InputError, one_line

    try:
        return Generator.load(folder)
    except DAMAGE as error:  # a RuntimeError for weights of another shape
        raise InputError(f"{folder} holds no generator that can be read: {one_line(error)}") from None


def _compare(options: argparse.Namespace, command: str) -> int:
    from .compare import budget_series, compare
    from .compare_report import Summary, write_comparison
    from .rivals import METHODS
    from .system_file import load_system
    from .units import InputError, SamplingError

    if options.budgets is not None and options.force_evaluations is not None:
        raise InputError("give --budgets or --force-evaluations, not both")
    largest = DEFAULT_LARGEST if options.force_evaluations is None else options.force_evaluations
    budgets = budget_series(largest) if options.budgets is None else _whole_numbers(options.budgets)
    show = _Progress(max(budgets, default=1))
    show.bar = False
    result = compare(
        load_system(options.system, options.trust),
        options.output,
        methods=list(METHODS) if options.methods is None else [m.strip() for m in options.methods.split(",")],
        budgets=budgets,
        largest=_largest(options.largest),
        score_options=_options(options.ladder) if options.ladder else None,
        seeds=options.seeds,
        workers=(os.cpu_count() or 1) if options.workers is None else options.workers,
        reference=options.reference,
        resume=options.resume,
        say=show.line,
        command=command,
    )
    path = write_comparison(options.output, result)
    for name, reasons in result.failures.items():
        for reason in reasons:
            show.note(_painted(f"warning: {name}, {reason}", YELLOW))
    if not Summary(result).methods:
        raise SamplingError(f"no method has given a surface: {options.output} says why")
    print(path)
    return 0


def _options(ladder: str | None, quick: bool = False) -> SamplerOptions:
    """Return the options for what is given on the command line."""
    from .options import SamplerOptions
    from .units import InputError

    try:
        options = SamplerOptions(ladder=tuple(float(t) for t in ladder.split(",")) if ladder else ())
        return options.made_quick() if quick else options
    except ValueError as error:
        raise InputError(
            f"--ladder takes ascending temperatures in K, such as 420,600,850, and goes without --quick: {error}"
        ) from None


def _largest(text: str | None) -> dict[str, int]:
    """Return METHOD=N,... as a dict."""
    from .units import InputError

    try:
        pairs = [part.split("=") for part in text.split(",")] if text else []
        return {name.strip(): int(number) for name, number in pairs}
    except ValueError:
        raise InputError(f"--largest takes METHOD=N with commas between them, got '{text}'") from None


def _whole_numbers(text: str) -> list[int]:
    from .units import InputError

    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--budgets takes whole numbers with commas between them, got '{text}'") from None


def _evidence(result: dict[str, Any]) -> list[str]:
    """Return what a run says of its own quality, in two lines."""

    def number(value: float | None) -> str:
        return "unknown" if value is None or value != value else f"{value:.2f}"

    energy = result["simulated_minus_generated_kj_mol"]
    return [
        f"acceptance {number(result['acceptance']['median'])}, effective sample size "
        f"{number(result['ess']['median'])}, standard error {number(result['std_error_rms_kj_mol'])} kJ/mol",
        f"micro-macro consistency {number(result['micro_macro_rmse_kj_mol'])} kJ/mol; mean energy, simulated - "
        f"generated, {number(energy['mean'])} +- {number(energy['std_error'])} kJ/mol",
    ]


def _status(options: argparse.Namespace, command: str) -> int:
    from .status import describe

    for line in describe(options.folder):
        print(line)
    return 0


def _report(options: argparse.Namespace, command: str) -> int:
    from .report import write_report

    print(write_report(options.folder, options.comparison))
    return 0


def _completion(options: argparse.Namespace, command: str) -> int:
    import shtab

    print(shtab.complete(make_parser(), shell=options.shell))
    return 0


_VERBS: dict[str, Callable[[argparse.Namespace, str], int]] = {
    "new": _new,
    "run": _run,
    "train": _train,
    "compare": _compare,
    "status": _status,
    "report": _report,
    "completion": _completion,
}


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    """Show a warning as a sentence; where in the program it was raised tells the user of a command nothing."""
    print(_painted(f"warning: {message}", YELLOW), file=sys.stderr)


def _painted(text: str, code: int) -> str:
    """Return the text in a colour for a terminal, as it is for anything else or where NO_COLOR is set."""
    plain = not sys.stderr.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return text if plain else f"\x1b[{code}m{text}\x1b[0m"


class _Progress:
    """A bar on a terminal, plain lines elsewhere; while `saving`, the status is saved with a line now and then."""

    def __init__(self, budget: int, save: Callable[[], None] = lambda: None) -> None:
        self.budget, self.save, self.saving, self.saved = budget, save, False, 0.0
        self.started = time.monotonic()
        self.bar = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self.sampler: Any = None

    def line(self, text: str) -> None:
        seconds = time.monotonic() - self.started
        if self.saving and time.monotonic() - self.saved > SAVE_SECONDS:
            self.save()
            self.saved = time.monotonic()
        if not self.bar:
            self.note(text)
            return
        import numpy as np

        campaign = self.sampler.campaign if self.sampler else None
        done = campaign.cost.total if campaign else 0
        share = min(1.0, done / self.budget)
        left = f"{seconds * (1 - share) / share:4.0f} s left" if 0 < share < 1 else ""
        round_number = f"round {campaign.round}" if campaign and campaign.round else "exploring"
        acceptance = campaign.acceptance[np.isfinite(campaign.acceptance)] if campaign else np.zeros(0)
        accepted = f"acceptance {np.median(acceptance):.2f} " if len(acceptance) else ""
        head = f"[{'#' * int(20 * share):20}] {round_number} {done:,} {accepted}{left}  {text}"
        width = shutil.get_terminal_size().columns - 1
        print("\r" + head[:width].ljust(width), end="", file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """Print a line that stays, once the bar is closed."""
        print(f"{time.monotonic() - self.started:7.1f} s  {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.bar:
            print(file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
