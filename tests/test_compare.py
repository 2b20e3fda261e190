"""The comparison: its measure in closed form, what it keeps and takes up, what it does with failures, and its verb."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from analytic import triatomic
from test_cli import draw_nothing, write_system

from openmm_sgm import compare as compare_module
from openmm_sgm.cli import main
from openmm_sgm.compare import COLUMNS, Comparison, budget_series, compare
from openmm_sgm.compare_report import Summary, _verdicts, cost_to_reach, write_comparison
from openmm_sgm.free_energy import Surface
from openmm_sgm.measure import LIMIT_KJ_MOL, load_reference, mean_reference, surface_error
from openmm_sgm.rivals import METHODS, Method, Snapshot
from openmm_sgm.system import MolecularSystem
from openmm_sgm.umbrella import surface_bins
from openmm_sgm.units import InputError

MOLECULE = triatomic()
EDGES = tuple(surface_bins(MOLECULE)[0])
TRUTH = 8 * (1 - np.cos(np.linspace(0, 2 * np.pi, 28)))  # 0 to 16 kJ/mol


def surface(free_energy: np.ndarray, std_error: np.ndarray | float = np.nan) -> Surface:
    return Surface(free_energy, np.broadcast_to(std_error, free_energy.shape).astype(float), EDGES, ("r",), ("nm",))


# the measure


def test_the_error_is_known_in_closed_form() -> None:
    sign = np.where(np.arange(28) % 2, 1.0, -1.0)
    for constant in (0.0, 7.3):  # the arbitrary constant of a surface does not count
        error = surface_error(surface(TRUTH + 0.4 * sign + constant, 0.3), TRUTH)
        assert error.rmse_kj_mol == pytest.approx(0.4)
        assert error.error_bar_ratio == pytest.approx(4 / 3)
        assert error.coverage == 1
        assert error.within_two_se == 1
        assert surface_error(surface(TRUTH + 0.4 * sign + constant, 0.1), TRUTH).within_two_se == 0
    # without the alignment it would be wrong
    naive = float(np.sqrt(np.mean((TRUTH + 0.4 * sign + 7.3 - TRUTH) ** 2)))
    assert naive != pytest.approx(0.4, abs=1)


def test_normal_errors_lie_within_their_bars() -> None:
    rng = np.random.default_rng(3)
    errors = [surface_error(surface(TRUTH + rng.normal(scale=0.3, size=28), 0.3), TRUTH) for _ in range(200)]
    # one degree of freedom of 28 goes into the alignment
    assert np.mean([e.error_bar_ratio for e in errors]) == pytest.approx(math.sqrt(27 / 28), abs=0.03)
    assert np.mean([e.within_two_se for e in errors]) == pytest.approx(0.954, abs=0.015)
    too_small = [surface_error(surface(TRUTH + rng.normal(scale=0.3, size=28), 0.1), TRUTH) for _ in range(50)]
    assert np.mean([e.error_bar_ratio for e in too_small]) > 2.5
    assert np.mean([e.within_two_se for e in too_small]) < 0.6


def test_only_low_bins_of_the_reference_count() -> None:
    reference = TRUTH.copy()
    reference[13:15] = LIMIT_KJ_MOL + 1
    reference[0] = np.nan
    off = TRUTH.copy()
    off[13:15] = 500
    off[0] = 300
    assert surface_error(surface(off), reference).rmse_kj_mol == pytest.approx(0, abs=1e-12)
    assert surface_error(surface(off), TRUTH).rmse_kj_mol > 50
    off[[4, 5, 6, 7, 8]] = np.nan
    assert surface_error(surface(off), reference).coverage == pytest.approx(20 / 25)


def test_nothing_in_common_and_no_bars_have_no_number() -> None:
    error = surface_error(surface(np.full(28, np.nan)), TRUTH)
    assert error.coverage == 0
    assert math.isnan(error.rmse_kj_mol)
    bars = surface_error(surface(TRUTH), TRUTH)
    assert math.isnan(bars.error_bar_ratio)
    assert math.isnan(bars.within_two_se)
    with pytest.raises(ValueError, match="bins"):
        surface_error(surface(TRUTH), TRUTH[:-1])


def test_a_reference_file_is_read_by_its_bin_centres(tmp_path: Path) -> None:
    path = tmp_path / "reference.csv"
    holed = TRUTH.copy()
    holed[3] = np.nan
    surface(holed, 0.1).write_csv(path)
    np.testing.assert_allclose(load_reference(path, MOLECULE), holed, atol=1e-4)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], *reversed(lines[1:])]))  # in any order
    np.testing.assert_allclose(load_reference(path, MOLECULE), holed, atol=1e-4)
    for text, said in (
        ("r,free_energy_kj_mol\n0.5,1.0\n", "r = 0.5"),
        ("x,free_energy_kj_mol\n0.1,1.0\n", "no column 'r'"),
        ("r,free_energy_kj_mol\n0.0825,soup\n", "soup"),
        ("r,free_energy_kj_mol\n", "no free energy"),
        ("", "no free energy"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=said):
            load_reference(path, MOLECULE)
    with pytest.raises(InputError, match="cannot be read"):
        load_reference(tmp_path / "nowhere.csv", MOLECULE)


def test_the_mean_counts_methods_once_and_leaves_out_those_of_one_basin() -> None:
    narrow = TRUTH.copy()
    narrow[5:] = np.nan
    mean, chosen = mean_reference(
        {"a": [TRUTH + 1, TRUTH + 5, TRUTH - 2], "b": [TRUTH + np.linspace(0, 1, 28)], "c": [narrow + 3]}
    )
    assert chosen == ["a", "b"]
    expected = TRUTH + 0.5 * np.linspace(0, 1, 28)
    np.testing.assert_allclose(mean, expected - expected.min(), atol=1e-12)


def test_the_cost_of_an_error_is_interpolated_in_logarithms() -> None:
    costs = np.array([1e5, 4e5, 1.6e6])
    errors = 300 * costs**-0.5
    cost, bound = cost_to_reach(costs, errors, 0.3)
    assert cost == pytest.approx(1e6)
    assert not bound
    assert cost_to_reach(costs, errors, 2.0) == (1e5, True)
    assert math.isnan(cost_to_reach(costs, errors, 0.01)[0])
    assert cost_to_reach([1e5, *costs], [np.nan, *errors], 0.3)[0] == pytest.approx(1e6)


# the driver, with methods that take no time


def fake(error: float, calls: list[tuple[int, tuple[int, ...]]] | None = None, fails_after: int | None = None) -> Any:
    """Return a method whose surface is off by `error` at 1,000 evaluations and half of it at four times as many."""

    def run(
        molecule: MolecularSystem, seed: int, budgets: Sequence[int], executor: Executor, workers: int
    ) -> Iterator[Snapshot]:
        if calls is not None:
            calls.append((seed, tuple(budgets)))
        sign = np.where(np.arange(28) % 2, 1.0, -1.0)
        for k, budget in enumerate(budgets):
            if k == fails_after:
                raise RuntimeError("the walker\nblew up.")
            off = error * math.sqrt(1000 / budget)
            yield Snapshot(budget, budget - 1, budget / 100, surface(TRUTH + off * sign, off), note="a note")

    return run


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Replace every method by a fake, and return the calls of each."""
    calls: dict[str, Any] = {name: [] for name in METHODS}
    errors = {"umbrella": 0.8, "score": 0.4, "md": 4.0}
    for name, method in list(METHODS.items()):
        monkeypatch.setitem(METHODS, name, replace(method, run=fake(errors.get(name, 2.0), calls[name]), needs=None))
    return calls


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    path = tmp_path / "truth.csv"
    surface(TRUTH).write_csv(path)
    return path


def test_rows_are_tidy_and_exact(table: dict[str, Any], tmp_path: Path, truth: Path) -> None:
    result = compare(
        MOLECULE, tmp_path / "out", methods=["score", "umbrella"], budgets=[4000, 1000], seeds=2, reference=truth
    )
    assert table["umbrella"] == [(1, (1000, 4000)), (2, (1000, 4000))]  # one run, nested
    assert table["score"] == [(1, (1000,)), (1, (4000,)), (2, (1000,)), (2, (4000,))]  # a run for each budget
    assert table["md"] == []
    assert [(r["method"], r["seed"], r["budget"]) for r in result.rows] == [
        (m, s, b) for m in ("umbrella", "score") for s in (1, 2) for b in (1000, 4000)
    ]
    with (tmp_path / "out" / "compare.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    by = {(r["method"], r["seed"], r["budget"]): r for r in rows}
    assert float(by["umbrella", "2", "4000"]["rmse_kj_mol"]) == pytest.approx(0.4, abs=1e-4)
    assert float(by["score", "1", "1000"]["error_bar_ratio"]) == pytest.approx(1, abs=1e-3)
    assert by["score", "1", "1000"]["force_evaluations"] == "999"
    content = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert content["about"]["reference"] == f"the file {truth}"
    assert len(content["rows"]) == 8


def test_an_interrupted_comparison_goes_on(table: dict[str, Any], tmp_path: Path, truth: Path) -> None:
    folder = tmp_path / "out"
    arguments: dict[str, Any] = {"budgets": [1000, 4000], "reference": truth}

    def interrupt(line: str) -> None:
        if line.startswith("score, seed 1: 3,999"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(MOLECULE, folder, methods=["umbrella", "score"], seeds=2, say=interrupt, **arguments)
    assert not (folder / "compare.csv").exists()
    with pytest.raises(InputError, match="already holds a comparison"):
        compare(MOLECULE, folder, methods=["umbrella"], **arguments)
    for calls in table.values():
        calls.clear()
    result = compare(MOLECULE, folder, methods=["umbrella", "score"], seeds=2, resume=True, **arguments)
    assert table["umbrella"] == []
    assert table["score"] == [(1, (4000,)), (2, (1000,)), (2, (4000,))]
    assert len(result.rows) == 8
    table["score"].clear()
    more = compare(MOLECULE, folder, methods=["umbrella", "score", "md"], seeds=3, resume=True, **arguments)
    assert table["umbrella"] == [(3, (1000, 4000))]
    assert [seed for seed, _ in table["md"]] == [1, 2, 3]
    assert len(more.rows) == 18
    for changed, key in (
        ({"budgets": [1000]}, "budgets"),
        ({"workers": 1}, "workers"),
    ):
        with pytest.raises(InputError, match=key):
            compare(MOLECULE, folder, methods=["md"], resume=True, **(arguments | changed))
    with pytest.raises(InputError, match="dynamics"):
        compare(replace(MOLECULE, temperature_k=310.0), folder, methods=["md"], resume=True, **arguments)
    with pytest.raises(InputError, match="no comparison to resume"):
        compare(MOLECULE, tmp_path / "other", methods=["md"], resume=True, **arguments)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: '{"failure": nu',
        lambda text: "[" * 100_000,
        lambda text: json.dumps(json.loads(text) | {"snapshots": [5]}),
        lambda text: text.replace('"budget": 1000', '"budget": "1000"'),
        lambda text: text.replace('"free_energy": [', '"free_energy": [1.0,'),
    ],
)
def test_a_row_that_cannot_be_read_is_made_again(
    spoil: Any, table: dict[str, Any], tmp_path: Path, truth: Path
) -> None:
    folder = tmp_path / "out"
    compare(MOLECULE, folder, methods=["md"], budgets=[1000], seeds=2, reference=truth)
    path = folder / "rows" / "md-seed2.json"
    before = path.read_text()
    path.write_text(spoil(before))
    assert path.read_text() != before
    table["md"].clear()
    result = compare(MOLECULE, folder, methods=["md"], budgets=[1000], seeds=2, reference=truth, resume=True)
    assert table["md"] == [(2, (1000,))]
    assert len(result.rows) == 2
    assert not result.failures


def test_a_method_that_fails_does_not_take_the_others_with_it(
    table: dict[str, Any], tmp_path: Path, truth: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", draw_nothing_at_a_path)
    monkeypatch.setitem(METHODS, "metadynamics", Method(fake(2.0, fails_after=1), "broken"))
    folder = tmp_path / "out"
    said: list[str] = []
    arguments: dict[str, Any] = {"budgets": [1000, 4000], "seeds": 1, "reference": truth, "say": said.append}
    result = compare(MOLECULE, folder, methods=["metadynamics", "score"], **arguments)
    assert [(r["method"], r["budget"]) for r in result.rows] == [
        ("metadynamics", 1000),  # what it had before it failed
        ("score", 1000),
        ("score", 4000),
    ]
    assert result.failures == {"metadynamics": ["seed 1: RuntimeError: the walker blew up"]}
    assert any("blew up" in line for line in said)
    write_comparison(folder, result)
    for name in ("compare.md", "compare.html"):
        assert "metadynamics, seed 1: RuntimeError: the walker blew up." in (folder / name).read_text()
    mended: list[tuple[int, tuple[int, ...]]] = []
    monkeypatch.setitem(METHODS, "metadynamics", Method(fake(2.0, mended), "broken"))
    result = compare(MOLECULE, folder, methods=["metadynamics", "score"], resume=True, **arguments)
    assert mended == [(1, (1000, 4000))]  # what failed is tried again
    assert not result.failures


def test_a_missing_package_skips_its_row_with_a_sentence(
    tmp_path: Path, truth: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        compare_module.importlib.util, "find_spec", lambda name: None if name == "openmm_opes" else find_spec(name)
    )
    monkeypatch.setitem(METHODS, "md", Method(fake(1.0), "fake"))
    result = compare(MOLECULE, tmp_path / "out", methods=["opes", "md"], budgets=[1000], seeds=1, reference=truth)
    assert [r["method"] for r in result.rows] == ["md"]
    assert result.failures == {"opes": ["seed 1: openmm_opes is not installed (pip install 'openmm-sgm[opes]')"]}


def test_without_a_reference_the_mean_of_the_longest_runs_stands_and_is_named(
    table: dict[str, Any], tmp_path: Path
) -> None:
    result = compare(MOLECULE, tmp_path / "out", methods=["umbrella", "md"], budgets=[1000, 4000], seeds=2)
    assert "mean of the runs of 4,000 force evaluations of umbrella, md" in result.about["reference"]
    errors = {(r["method"], r["budget"]): r["rmse_kj_mol"] for r in result.rows}
    assert not any("no verdict" in sentence for sentence in _verdicts(Summary(result)))
    alone = compare(MOLECULE, tmp_path / "alone", methods=["md"], budgets=[1000, 4000], seeds=2)
    assert _verdicts(Summary(alone))[1] == "At 4k there is no verdict: the reference is made of md alone."
    # umbrella is off by ±0.4 there and md by ±2: their mean by ±1.2
    assert errors["umbrella", 4000] == pytest.approx(0.8, abs=1e-9)
    assert errors["md", 4000] == pytest.approx(0.8, abs=1e-9)


def test_what_an_analysis_returns_is_kept(table: dict[str, Any], tmp_path: Path, truth: Path) -> None:
    def analyse(name: str, snapshot: Snapshot) -> dict[str, Any]:
        return {"populations": np.array([0.25, 0.75]), "of": name}

    result = compare(
        MOLECULE, tmp_path / "out", methods=["md"], budgets=[1000], seeds=1, reference=truth, analyse=analyse
    )
    assert result.rows[0]["extras"] == {"populations": [0.25, 0.75], "of": "md"}


# what it says


def test_a_rival_that_wins_is_said_to(
    table: dict[str, Any], tmp_path: Path, truth: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", draw_nothing_at_a_path)
    result = compare(
        MOLECULE, tmp_path / "out", methods=["umbrella", "score", "md"], budgets=[1000, 4000], seeds=3, reference=truth
    )
    write_comparison(tmp_path / "out", result)
    text = (tmp_path / "out" / "compare.md").read_text()
    assert "At 1k score has the smallest median error, 0.40 kJ/mol." in text
    assert "| umbrella | 0.80 (0.80–0.80); 100%, 10 s | 0.40 (0.40–0.40); 100%, 40 s | 2k | 18 s |" in text
    other = {"umbrella": "score", "score": "umbrella", "md": "md"}
    swapped = replace(result, rows=[row | {"method": other[row["method"]]} for row in result.rows])
    write_comparison(tmp_path / "out", swapped)
    text = (tmp_path / "out" / "compare.md").read_text()
    assert "At 1k umbrella has the smallest median error, 0.40 kJ/mol; score has 0.80." in text
    assert "In force evaluations, umbrella is the first at 0.6 kJ/mol (≤ 999)." in text


def test_a_surface_of_few_bins_wins_nothing() -> None:
    def row(method: str, error: float, coverage: float) -> dict[str, Any]:
        return {
            "method": method, "seed": 1, "budget": 1000, "force_evaluations": 1000, "seconds": 1.0, "note": "",
            "rmse_kj_mol": error, "coverage": coverage, "error_bar_ratio": np.nan, "within_two_se": np.nan,
            "extras": {},
        }  # fmt: skip

    summary = Summary(Comparison([row("md", 0.1, 0.4), row("score", 0.5, 1.0)], {}, {}))
    assert summary.best(1000) == "score"
    assert math.isnan(summary.reach("md", "force_evaluations")[0])
    assert Summary(Comparison([row("md", 0.1, 0.4)], {}, {})).best(1000) is None


def test_the_page_is_self_contained(table: dict[str, Any], tmp_path: Path, truth: Path) -> None:
    folder = tmp_path / "out"
    result = compare(
        MOLECULE, folder, budgets=[1000, 4000], seeds=2, reference=truth, command="openmm-sgm compare <script>"
    )
    path = write_comparison(folder, result)
    assert path == folder / "compare.html"
    page = path.read_text()
    assert page.count("data:image/png;base64,") == 2
    assert 'src="http' not in page
    assert "openmm-sgm compare &lt;script&gt;" in page
    for name, method in METHODS.items():
        assert name in page
        assert method.settings.split(",")[0].split("²")[0] in page.replace("&#x27;", "'")
    for name in ("error_force_evaluations.png", "error_seconds.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


# the verb


def test_the_series_ends_with_the_budget_given() -> None:
    assert budget_series(250_000) == [50_000, 100_000, 250_000]
    assert budget_series(300_000) == [50_000, 100_000, 250_000, 300_000]
    assert budget_series(7) == [7]
    with pytest.raises(InputError, match="above zero"):
        budget_series(0)


def test_the_command_compares_resumes_and_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", draw_nothing_at_a_path)
    system, output = write_system(tmp_path / "system"), tmp_path / "out"
    arguments = ["compare", str(system), "--output", str(output), "--workers", "0", "--budgets", "3000,9000"]
    assert main([*arguments, "--methods", "umbrella,md", "--seeds", "1"]) == 0
    captured = capsys.readouterr()
    assert captured.out.strip() == str(output / "compare.html")
    with (output / "compare.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["method"], r["budget"]) for r in rows] == [(m, b) for m in ("umbrella", "md") for b in ("3000", "9000")]
    assert all(int(r["force_evaluations"]) <= int(r["budget"]) for r in rows)
    assert "mean of the runs of 9,000" in (output / "compare.md").read_text()
    before = {path.name: path.stat().st_mtime_ns for path in (output / "rows").iterdir()}
    assert main([*arguments, "--methods", "umbrella,metadynamics", "--seeds", "1", "--resume"]) == 0
    after = {path.name: path.stat().st_mtime_ns for path in (output / "rows").iterdir()}
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"metadynamics-seed1.json"}
    capsys.readouterr()
    for more, said in (
        (["--methods", "umbrella,magic"], "no method 'magic'"),
        (["--methods", ""], "no method ''"),
        (["--seeds", "0"], "number of seeds"),
        (["--reference", str(tmp_path / "no.csv")], "cannot be read"),
        (["--force-evaluations", "5"], "not both"),
        (["--workers", "-1"], "workers"),
        ([], "already holds a comparison"),
    ):
        assert main([*arguments, *more]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    assert main([*arguments[:-1], "soup"]) == 2
    assert main([*arguments[:-2], "--force-evaluations", "-3"]) == 2
    assert main(["compare", str(tmp_path), "--output", str(output)]) == 2


def test_when_nothing_works_the_command_fails_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", draw_nothing_at_a_path)
    monkeypatch.setitem(METHODS, "md", Method(fake(1.0, fails_after=0), "broken"))
    system = write_system(tmp_path / "system")
    arguments = ["compare", str(system), "--output", str(tmp_path / "out"), "--budgets", "1000", "--workers", "0"]
    assert main([*arguments, "--methods", "md", "--seeds", "1"]) == 1
    error = capsys.readouterr().err
    assert "blew up" in error
    assert "no method has given a surface" in error


def draw_nothing_at_a_path(figure: Any, file: Any, **options: Any) -> None:
    """Stand in for `Figure.savefig`, for paths too."""
    if isinstance(file, Path):
        file.write_bytes(b"")
    else:
        draw_nothing(figure, file)
