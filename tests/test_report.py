"""The report: one file of valid HTML without a network, that says in words what is wrong with a run."""

from __future__ import annotations

import base64
import csv
import json
import re
import shutil
import struct
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from test_cli import FinishedRun, draw_nothing, finished_run, snapshot

from openmm_sgm.pages import asset
from openmm_sgm.report import write_report
from openmm_sgm.units import InputError

SECTIONS = [
    "The run in numbers",
    "The generator",
    "What became of the generated configurations",
    "Micro-macro consistency",
    "Window overlap",
    "Cost and coverage",
    "Windows",
    "How it was made",
]
WITH_ALL = ["Basins", *SECTIONS[:2], "Bonds, angles and torsions", *SECTIONS[2:]]
"""Of a run by this version; folders of earlier ones lack two."""
SCRIPTS = ("3Dmol-min.js", "surface.js", "copy.js")
VOID = {"br", "hr", "img", "input", "link", "meta"}
EVIL = "<script>alert('$x_')</script>"


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """A finished run, which no test may change."""
    return finished_run(tmp_path_factory.getbasetemp())


@pytest.fixture
def copied(finished: FinishedRun, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may change."""
    return Path(shutil.copytree(finished.folder, tmp_path / "copied"))


@pytest.fixture
def rough_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw every picture without its layout and with few pixels, which takes a tenth of the time."""

    def savefig(figure: Figure, *arguments: Any, **options: Any) -> None:
        figure.set_layout_engine("none")
        original(figure, *arguments, **{**options, "dpi": 32})

    original = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", savefig)


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the pictures empty, for tests of the words."""
    monkeypatch.setattr(Figure, "savefig", draw_nothing)


class Page(HTMLParser):
    """A page, read strictly: every element is closed where it was opened.

    Attributes
    ----------
    elements : (tag, attributes) in order; texts : the text of each element, by tag; text : all of it
    """

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.text = ""
        self.declaration = ""
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_decl(self, decl: str) -> None:
        self.declaration = decl

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"{tag} has an attribute twice"
        self.elements.append((tag, dict(attrs)))
        self.texts.setdefault(tag, []).append("")
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self._open.pop() == tag, f"</{tag}> stands in the wrong place"

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in ("style", "script"):
            return
        self.text += data
        for tag in set(self._open):
            self.texts[tag][-1] += data

    def having(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def warnings(self) -> list[str]:
        """Return the warnings, one string each; they are the only list of a report."""
        assert bool(self.texts.get("li")) == any(a.get("class") == "warnings" for a in self.having("div"))
        return self.texts.get("li", [])


def read_page(path: Path) -> Page:
    """Read a report, and check what holds for every one: it is whole, and loads nothing."""
    page = Page(path)
    assert page.declaration.lower() == "doctype html"
    assert [len(page.having(tag)) for tag in ("html", "head", "title", "body", "h1")] == [1] * 5
    assert {"charset": "utf-8"} in page.having("meta")
    text = path.read_text(encoding="utf-8")
    known = [f"<script>{asset(name)}</script>" for name in SCRIPTS]
    data = text.count('<script type="application/json" id="surface-data">')
    assert len(page.having("script")) == sum(text.count(script) for script in known) + data, "a script of another's"
    (policy,) = [str(m["content"]) for m in page.having("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ")
    assert policy.count("'sha256-") == len(page.having("script")) - data
    assert not page.having("link")
    assert not page.having("iframe")
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "data", "action"):
            assert (attributes.get(name) or "data:").startswith("data:"), f"{tag} {name}"
        assert not [name for name in attributes if name.startswith("on")], f"{tag} runs something"
    assert "url(" not in text
    for image in page.having("img"):
        assert image["alt"]
        header, _, content = str(image["src"]).partition(",")
        assert header == "data:image/png;base64"
        picture = base64.b64decode(content, validate=True)
        assert picture.startswith(b"\x89PNG\r\n\x1a\n")
        assert picture.endswith(b"IEND\xaeB`\x82")
        width, height = struct.unpack(">II", picture[16:24])
        assert min(width, height) > 0
    return page


def change_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


# A folder made by hand, as a run over one to three CVs leaves it

CVS = [
    {"name": "phi", "unit": "rad", "period": 2 * np.pi},
    {"name": "r", "unit": "nm", "period": None},
    {"name": "theta", "unit": "rad", "period": None},
]
RANGES = ((-np.pi, np.pi), (0.2, 0.8), (1.0, 3.0))
WINDOWS, BINS = (6, 4, 3), (9, 7, 5)


def bowl(points: np.ndarray) -> np.ndarray:
    """Return a free energy (kJ/mol) of points (n, n_cvs): 0 in the middle, 30 more at the end of each CV."""
    middle, half = np.array([(low + high, high - low) for low, high in RANGES[: points.shape[1]]]).T / 2
    return 30.0 * (((points - middle) / half) ** 2).sum(axis=1)


def grid(axes: list[np.ndarray]) -> np.ndarray:
    return np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], axis=1)


def healthy_data(n_cvs: int) -> dict[str, np.ndarray]:
    """Return what diagnostics.npz holds for a run with nothing to complain of, but with bins and windows left out."""
    rng = np.random.default_rng(5)
    edges = [np.linspace(low, high, n + 1) for (low, high), n in zip(RANGES, BINS, strict=True)][:n_cvs]
    shape = BINS[:n_cvs]
    surface = bowl(grid([0.5 * (e[1:] + e[:-1]) for e in edges])).reshape(shape)
    surface -= surface.min()
    surface[surface > 0.8 * surface.max()] = np.nan
    error = np.where(np.isnan(surface), np.nan, 0.2 + 0.01 * np.nan_to_num(surface))
    spacings = [(high - low) / n for (low, high), n in zip(RANGES, WINDOWS, strict=True)]
    axes = [
        low + (np.arange(n) + 0.5) * spacing for (low, _), n, spacing in zip(RANGES, WINDOWS, spacings, strict=True)
    ]
    centers = grid(axes[:n_cvs])
    micro = bowl(centers)
    micro -= micro.min()
    visited = np.flatnonzero(micro < 0.9 * micro.max())
    never = ~np.isin(np.arange(len(centers)), visited)
    micro[never] = np.nan
    macro = micro + rng.normal(scale=0.1, size=len(micro))
    macro -= np.nanmean(macro - micro)
    rows = np.repeat(visited, 30)
    overlap = rng.random((len(visited), len(visited))) + 1.0
    data = {
        "centers": centers,
        "visited": visited,
        "micro": micro,
        "micro_error": np.where(never, np.nan, 0.1),
        "macro": macro,
        "macro_error": np.where(never, np.nan, 0.1),
        "difference": micro - macro,
        "overlap": overlap / overlap.sum(axis=1, keepdims=True),
        "acceptance": np.where(never, np.nan, 0.6),
        "ess": np.where(never, np.nan, 0.5),
        "simulated_energies": rng.normal(100.0, 5.0, len(rows)),
        "simulated_windows": rows,
        "generated_energies": rng.normal(103.0, 6.0, len(rows)),
        "generated_log_weights": rng.normal(-20.0, 1.0, len(rows)),
        "generated_windows": rows,
    }
    for method in ("surface", "surface_mbar", "surface_generator"):
        data |= {method: surface, f"{method}_error": error}
    return data | {f"edges_{k}": edge for k, edge in enumerate(edges)}


def healthy_result() -> dict[str, Any]:
    record = {"force_evaluations": 40_000, "seconds": 10.0, "windows": 20, "covered": 0.5, "ess": None}
    stages = [
        {**record, "stage": "exploration", "error_kj_mol": None, "acceptance": None},
        {**record, "stage": "round 1", "force_evaluations": 90_000, "error_kj_mol": 0.5, "acceptance": 0.6},
    ]
    return {
        "system": "made_by_hand",
        "force_evaluations": {"simulation": 50_000, "generation": 40_000, "total": 90_000},
        "wall_seconds": {"simulate": 5.0, "train": 20.0, "generate": 30.0, "total": 60.0},
        "acceptance": {"median": 0.6, "p05": 0.5},
        "ess": {"median": 0.5, "p05": 0.4},
        "density_error_kt": 0.01,
        "micro_macro_rmse_kj_mol": 0.12,
        "simulated_minus_generated_kj_mol": {"mean": 0.2, "std_error": 0.3},
        "std_error_rms_kj_mol": 0.3,
        "platform": "Reference",
        "seed": 7,
        "ledger_rows": 12,
        "versions": {"openmm_sgm": "9.8.7", "openmm": "8.2.0"},
        "units": {"run": 40, "retried": 0, "set_aside": 0},
        "windows": {
            "visited": 20,
            "above_the_explored_height": [],
            "left_by_the_budget": [],
            "set_aside": {},
            "started_from": {"the starting structure": 1, "pulling from a neighbour": 19},
        },
        "history": stages,
        "trainings": [
            {"round": 1, "frames": 900, "steps": 500, "seconds": 9.0, "held_out": [[0, 1.0], [250, 0.5], [500, 0.4]]}
        ],
        "command": "openmm-sgm run hand --output made",
    }


def write_run(
    folder: Path, n_cvs: int, data: dict[str, np.ndarray], result: dict[str, Any], height: float = 25.0
) -> Path:
    """Write what the report is made of."""
    folder.mkdir(exist_ok=True)
    (folder / "result.json").write_text(json.dumps(result))
    about = {
        "cvs": CVS[:n_cvs],
        "heights_kj_mol": {"surface": height, "explored": 40.0},
        "temperature_k": 300.0,
    }
    (folder / "diagnostics.json").write_text(json.dumps(about))
    with (folder / "diagnostics.npz").open("wb") as file:
        np.savez(file, **data)
    with (folder / "ledger.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        labels = [f"label_{cv['name']}" for cv in CVS[:n_cvs]]
        writer.writerow(
            ["number", "round", "window", *labels, "purpose", "energy_kj_mol", "log_density", "log_weight", "verdict"]
        )
        for k in range(12):
            verdict = ("accepted", "rejected", "energy not finite")[min(k // 5, 2)]
            writer.writerow([k, 1, 0, *([0.5] * n_cvs), "injection", 100.0, 20.0, -60.0, verdict])
    return folder


# A real run


def test_report_of_a_run_is_whole(finished: FinishedRun) -> None:
    page = read_page(finished.folder / "report.html")
    assert page.texts["h2"] == WITH_ALL
    assert len(page.having("img")) == 9
    assert all(len(str(image["src"])) > 10_000 for image in page.having("img"))
    assert len(page.texts["figcaption"]) == 9
    assert page.texts["h1"] == page.texts["title"] == ["tiny: free-energy surface"]


def test_report_tells_what_was_done(finished: FinishedRun) -> None:
    page = read_page(finished.folder / "report.html")
    result = json.loads((finished.folder / "result.json").read_text())
    assert page.texts["code"] == [result["command"]]
    assert f"{finished.system} --output {finished.folder}" in result["command"]
    cells = page.texts["td"]
    for name, version in result["versions"].items():
        assert cells[cells.index(name) + 1] == version
    for key in ("simulation", "generation"):
        assert f"{result['force_evaluations'][key]:,}" in cells
    assert f"{result['force_evaluations']['total']:,} force evaluations" in page.text
    assert f"on the {result['platform']} platform" in page.text
    assert cells[cells.index("seed") + 1] == "3"
    for verdict in ("accepted", "rejected"):
        assert f"{sum(row.verdict == verdict for row in ledger_of(finished)):,}" in cells
    assert f"{result['windows']['visited']} windows were visited" in page.text


def ledger_of(finished: FinishedRun) -> list[Any]:
    campaign = finished.sampler.campaign
    assert campaign is not None
    return campaign.ledger.rows


def test_report_changes_nothing_else(copied: Path) -> None:
    before = snapshot(copied)
    assert write_report(copied) == copied / "report.html"
    assert snapshot(copied) == before


def test_report_does_not_need_the_state(copied: Path) -> None:
    shutil.rmtree(copied / "state")
    (copied / "report.html").unlink()
    read_page(write_report(copied))


# With a comparison of methods

COMPARED: dict[str, Any] = {
    "system": "made_by_hand", "seeds": 1, "workers": 2, "limit_kj_mol": 20.92, "reference": f"the file {EVIL}",
    "settings": {}, "versions": {}, "command": "openmm-sgm compare hand --output there",
}  # fmt: skip


def write_compared(folder: Path, **about: Any) -> Path:
    """Write what a comparison leaves for the section: one seed of two methods, one of which has failed at the end."""
    rows = [
        {
            "method": method, "seed": 1, "budget": budget, "force_evaluations": budget, "seconds": 9.0, "note": "",
            "rmse_kj_mol": error, "coverage": 1.0, "error_bar_ratio": None, "within_two_se": None,
        }
        for method, budget, error in (("umbrella", 50_000, 2.0), ("score", 50_000, 0.8), ("score", 100_000, 0.5))
    ]  # fmt: skip
    folder.mkdir()
    content = {"rows": rows, "failures": {"umbrella": [f"seed 1: {EVIL}"]}, "about": COMPARED | about}
    (folder / "compare.json").write_text(json.dumps(content))
    return folder


def test_report_with_a_comparison_has_a_section_more(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", 2, healthy_data(2), healthy_result())
    compared = write_compared(tmp_path / "compared")
    page = read_page(write_report(folder, compared))
    assert page.texts["h2"] == [*SECTIONS[:-1], "Methods compared", SECTIONS[-1]]
    assert len(page.having("img")) == 9
    assert "2.00; 100%, 9 s" in page.texts["td"]
    assert "In force evaluations, score is the first at 0.6 kJ/mol (76k)." in page.texts["p"]
    assert f"umbrella, seed 1: {EVIL}." in page.texts["p"]  # as text: read_page has seen that there is no script
    assert f"Reference: the file {EVIL}." in page.texts["p"]
    assert read_page(write_report(folder)).texts["h2"] == SECTIONS


@pytest.mark.parametrize(
    ("about", "text", "said"),
    [
        ({"system": "another"}, None, "is of another, the run of made_by_hand"),
        ({}, "{", "compare.json is damaged"),
        ({}, "[]", "compare.json is damaged"),
        ({}, '{"rows": [], "failures": {}, "about": {}}', "compared are damaged"),
        ({}, "", "compare.json is damaged"),
    ],
)
def test_comparison_that_cannot_be_used_is_refused(
    about: dict[str, Any], text: str | None, said: str, tmp_path: Path, no_pictures: None
) -> None:
    folder = write_run(tmp_path / "run", 2, healthy_data(2), healthy_result())
    compared = write_compared(tmp_path / "compared", **about)
    if text is not None:
        (compared / "compare.json").write_text(text)
    with pytest.raises(InputError, match=said):
        write_report(folder, compared)
    assert not (folder / "report.html").exists()
    (compared / "compare.json").unlink()
    with pytest.raises(InputError, match="holds no finished comparison"):
        write_report(folder, compared)


# Names that are code


def test_names_and_reasons_are_escaped(copied: Path, rough_pictures: None) -> None:
    def change(result: dict[str, Any]) -> None:
        result |= {"system": EVIL, "command": f"run {EVIL}", "platform": f"platform {EVIL}"}
        result["versions"] = {f"name {EVIL}": f"version {EVIL}"}
        result["windows"]["set_aside"] = {f"r = {EVIL}": f"reason {EVIL}"}
        result["windows"]["started_from"] = {f"start {EVIL}": 2}
        result["windows"]["above_the_explored_height"] = [f"high {EVIL}"]
        result["windows"]["left_by_the_budget"] = [f"left {EVIL}"]

    change_json(copied / "result.json", change)
    change_json(copied / "diagnostics.json", lambda about: about["cvs"][0].update(name=EVIL, unit=f"unit {EVIL}"))
    text = (copied / "ledger.csv").read_text()
    (copied / "ledger.csv").write_text(text.replace(",rejected", f",verdict {EVIL}", 1))
    page = read_page(write_report(copied))
    assert page.texts["h1"] == page.texts["title"] == [f"{EVIL}: free-energy surface"]
    assert page.texts["code"] == [f"run {EVIL}"]
    for word in ("platform", "name", "version", "start", "high", "left", "verdict"):
        assert f"{word} {EVIL}" in page.text
    assert f"The window at r = {EVIL} was set aside: reason {EVIL}." in page.warnings()
    assert f"Umbrella windows over {EVIL} at" in page.text
    text = (copied / "report.html").read_text()  # read_page has seen that every script is ours
    assert EVIL not in text
    assert "<script>alert" not in text.lower()


# One, two and three CVs


@pytest.mark.filterwarnings("error::RuntimeWarning", "error::UserWarning")
@pytest.mark.parametrize("n_cvs", [1, 2, 3])
def test_report_over_one_to_three_cvs(n_cvs: int, tmp_path: Path) -> None:
    data = healthy_data(n_cvs)
    assert np.isnan(data["surface"]).any()
    assert np.isnan(data["micro"]).any()
    page = read_page(write_report(write_run(tmp_path, n_cvs, data, healthy_result())))
    assert page.texts["h2"] == SECTIONS
    assert len(page.having("img")) == 7
    assert page.warnings() == []
    names = " and ".join(str(cv["name"]) for cv in CVS[:n_cvs])
    assert f"Umbrella windows over {names} at 300 K" in page.text
    assert f"{np.isfinite(data['surface']).mean():.0%} of the bins are sampled" in page.text
    assert f"for each of the {len(data['visited'])} labels" in page.text
    cells = page.texts["td"]
    for verdict, count in (("accepted", "5"), ("rejected", "5"), ("energy not finite", "2")):
        assert cells[cells.index(verdict) + 1] == count


def no_macro(data: dict[str, np.ndarray]) -> None:
    for name in ("macro", "macro_error", "difference"):
        data[name] = np.full_like(data[name], np.nan)


def no_micro(data: dict[str, np.ndarray]) -> None:
    for name in ("micro", "micro_error", "difference"):
        data[name] = np.full_like(data[name], np.nan)


def no_acceptance(data: dict[str, np.ndarray]) -> None:
    for name in ("acceptance", "ess"):
        data[name] = np.full_like(data[name], np.nan)


def one_bin(data: dict[str, np.ndarray]) -> None:
    lowest = np.unravel_index(np.nanargmin(data["surface"]), data["surface"].shape)
    for name in ("surface", "surface_error"):
        values = np.full_like(data[name], np.nan)
        values[lowest] = data[name][lowest]
        data[name] = values


def low_surface(data: dict[str, np.ndarray]) -> None:
    data["surface"] = 0.02 * data["surface"]


def one_window(data: dict[str, np.ndarray]) -> None:
    window = int(np.nanargmin(data["micro"]))
    others = np.arange(len(data["micro"])) != window
    for name in ("micro", "micro_error", "macro", "macro_error", "difference", "acceptance", "ess"):
        data[name] = np.where(others, np.nan, data[name])
    data["visited"], data["overlap"] = np.array([window]), np.ones((1, 1))
    for kind in ("simulated", "generated"):
        rows = data[f"{kind}_windows"] == window
        for name in ("energies", "windows", "log_weights"):
            if f"{kind}_{name}" in data:
                data[f"{kind}_{name}"] = data[f"{kind}_{name}"][rows]


def nothing_simulated(data: dict[str, np.ndarray]) -> None:
    for name in ("simulated_energies", "simulated_windows"):
        data[name] = data[name][:0]


def unknown_errors(data: dict[str, np.ndarray]) -> None:
    """NaN in the errors alone, as where a window has too few draws."""
    for name in ("micro_error", "macro_error"):
        data[name] = data[name].copy()
        data[name][data["visited"][::2]] = np.nan


THIN: dict[str, tuple[Callable[[dict[str, np.ndarray]], None], tuple[int, ...]]] = {
    "MBAR knows nothing": (no_macro, (1, 2, 3)),
    "the generator knows nothing": (no_micro, (2,)),
    "nothing was asked for": (no_acceptance, (1, 2, 3)),
    "one bin": (one_bin, (1, 2, 3)),
    "a low surface": (low_surface, (2,)),
    "one window": (one_window, (1, 2, 3)),
    "nothing was simulated": (nothing_simulated, (2,)),
    "errors unknown": (unknown_errors, (1,)),
}


@pytest.mark.filterwarnings("error::RuntimeWarning", "error::UserWarning")
@pytest.mark.parametrize(("case", "n_cvs"), [(case, n) for case, numbers in THIN.items() for n in numbers[1]])
def test_report_of_a_run_that_knows_little(case: str, n_cvs: int, tmp_path: Path, rough_pictures: None) -> None:
    data, result = healthy_data(n_cvs), healthy_result()
    THIN[case][0](data)
    if np.isnan(data["difference"]).all():
        result["micro_macro_rmse_kj_mol"] = None
    page = read_page(write_report(write_run(tmp_path, n_cvs, data, result)))
    assert page.texts["h2"] == SECTIONS
    assert len(page.having("img")) == 7
    if np.isnan(data["difference"]).all():
        assert "they differ by unknown kJ/mol" in page.text
    assert "nan" not in page.text.lower().split()


@pytest.mark.filterwarnings("error::RuntimeWarning", "error::UserWarning")
def test_report_of_numbers_that_are_unknown(tmp_path: Path, rough_pictures: None) -> None:
    result = healthy_result()
    for name in ("density_error_kt", "micro_macro_rmse_kj_mol", "std_error_rms_kj_mol"):
        result[name] = None
    for name in ("acceptance", "ess"):
        result[name] = {"median": None, "p05": None}
    page = read_page(write_report(write_run(tmp_path, 2, healthy_data(2), result)))
    cells = page.texts["td"]
    assert cells[cells.index("acceptance over labels, median (5th percentile)") + 1] == "unknown (unknown)"
    assert cells[cells.index("micro-macro consistency, RMS") + 1] == "unknown kJ/mol"
    assert page.warnings() == ["The step error of the log density, unknown kT, is above 0.05 kT."]


# Warnings in words


def warnings_of(folder: Path, data: dict[str, np.ndarray], result: dict[str, Any], n_cvs: int = 2) -> list[str]:
    return read_page(write_report(write_run(folder, n_cvs, data, result))).warnings()


def low_windows(data: dict[str, np.ndarray], count: int) -> np.ndarray:
    """Return the `count` lowest windows."""
    return np.argsort(data["micro"])[:count]


def place(data: dict[str, np.ndarray], window: int) -> str:
    phi, r = data["centers"][window]
    return f"phi {np.degrees(phi):.3g}°, r {r:.3g} nm"


def test_step_error_is_warned_of(tmp_path: Path, no_pictures: None) -> None:
    result = healthy_result() | {"density_error_kt": 0.2}
    found = warnings_of(tmp_path, healthy_data(2), result)
    assert found == ["The step error of the log density, 0.20 kT, is above 0.05 kT."]
    assert warnings_of(tmp_path, healthy_data(2), result | {"density_error_kt": 0.049}) == []


def test_units_done_again_are_counted(tmp_path: Path, no_pictures: None) -> None:
    result = healthy_result()
    result["units"] = {"run": 40, "retried": 3, "set_aside": 1}
    (text,) = [w for w in warnings_of(tmp_path, healthy_data(2), result) if "units of work" in w]
    assert text.startswith("Of 40 units of work 3 failed and were done again, and 1 walkers or batches")


def test_windows_set_aside_are_named(tmp_path: Path, no_pictures: None) -> None:
    result = healthy_result()
    result["windows"]["set_aside"] = {"phi = -150°, r = 0.35 nm": "the energy is not finite", "phi = 90°": "it blew up"}
    assert warnings_of(tmp_path, healthy_data(2), result) == [
        "The window at phi = -150°, r = 0.35 nm was set aside: the energy is not finite.",
        "The window at phi = 90° was set aside: it blew up.",
    ]


def test_windows_without_overlap_are_named(tmp_path: Path, no_pictures: None) -> None:
    data = healthy_data(2)
    first, second = sorted(low_windows(data, 2))
    for name in ("macro", "macro_error", "difference"):
        data[name][[first, second]] = np.nan
    (warning,) = warnings_of(tmp_path, data, healthy_result())
    assert warning.startswith(f"The simulations at {place(data, first)}; {place(data, second)} do not overlap")
    assert "MBAR has no free energy for them" in warning


def test_high_windows_without_overlap_are_not_warned_of(tmp_path: Path, no_pictures: None) -> None:
    data = healthy_data(2)
    high = data["micro"] > 18.0
    assert 0 < high.sum() < len(data["visited"])
    for name in ("macro", "macro_error", "difference"):
        data[name][high] = np.nan
    page = read_page(write_report(write_run(tmp_path, 2, data, healthy_result(), height=18.0)))
    assert page.warnings() == []
    page = read_page(write_report(write_run(tmp_path, 2, data, healthy_result(), height=25.0)))
    assert len(page.warnings()) == 1


def test_many_windows_are_named_by_their_range(tmp_path: Path, no_pictures: None) -> None:
    data = healthy_data(2)
    low = low_windows(data, 9)
    data["acceptance"][low] = 0.1
    (warning,) = warnings_of(tmp_path, data, healthy_result())
    phi, r = (np.unique(data["centers"][low, k]) for k in range(2))
    within = f"phi {np.degrees(phi[0]):.3g}° to {np.degrees(phi[-1]):.3g}°, r {r[0]:.3g} nm to {r[-1]:.3g} nm"
    assert warning.startswith(f"At 9 adjoining windows within {within} fewer than 20% of the generated configurations")


def test_scattered_windows_are_counted_and_the_largest_ranges_named(tmp_path: Path, no_pictures: None) -> None:
    """Of the 6 x 4 windows those at phi -150 and -90 but one, two at 30, and one at 150, which adjoins the first."""
    data = healthy_data(2)
    data["micro"][:] = data["macro"][:] = 1.0
    poor = np.zeros(24, dtype=bool)
    poor[[0, 1, 2, 4, 5, 6, 7, 12, 13, 23]] = True
    data["acceptance"] = np.where(poor, 0.1, 0.6)
    (warning,) = warnings_of(tmp_path, data, healthy_result())
    assert warning.startswith(
        "At 10 windows (8 of them adjoining, within phi 150° to -90° (over 180°), r 0.275 nm to 0.725 nm; 2 of them "
        "adjoining, within phi 30°, r 0.275 nm to 0.425 nm) fewer than 20%"
    )
    data["acceptance"][:] = 0.1
    (warning,) = warnings_of(tmp_path, data, healthy_result())
    assert warning.startswith("At 24 adjoining windows all over the surface fewer than 20%")


def test_windows_about_the_period_are_one_range(tmp_path: Path, no_pictures: None) -> None:
    """Of the six windows of phi all but the two at +-30 degrees: from 90 through 180 to -90.

    Seen to fail with windows that do not adjoin over the period's end, and ranges that begin at the smallest value.
    """
    data = healthy_data(2)
    data["micro"][:] = data["macro"][:] = 1.0
    about = np.abs(data["centers"][:, 0]) > 1.0
    data["acceptance"] = np.where(about, 0.1, 0.6)
    (warning,) = warnings_of(tmp_path, data, healthy_result())
    assert warning.startswith(
        f"At {about.sum()} adjoining windows within phi 90° to -90° (over 180°), r 0.275 nm to 0.725 nm "
    )


def with_two_basins(data: dict[str, np.ndarray], result: dict[str, Any]) -> np.ndarray:
    """Add two basins by hand, and a barrier between them whose path's upper half is the bins in row 4; return these."""
    shape = data["surface"].shape
    flank = np.ravel_multi_index((np.full(3, 4), np.arange(2, 5)), shape)
    data["basins"] = np.repeat(np.where(np.arange(shape[0]) < 4, 0, 1)[:, None], shape[1], axis=1)
    data["barrier_bins"] = np.stack([np.zeros(3, int), flank], axis=1)
    result["basins"] = [
        {
            "label": label, "minimum": {"phi": x, "r": 0.5}, "population": 0.5, "std_error": 0.1,
            "free_energy_kj_mol": 0.0, "free_energy_std_error_kj_mol": 0.5,
        }
        for label, x in (("A", -1.0), ("B", 1.0))
    ]  # fmt: skip
    result["barriers"] = [
        {"between": ["A", "B"], "at": {"phi": 0.0, "r": 0.5}, "free_energy_kj_mol": 5.0, "std_error_kj_mol": 0.4}
    ]
    return flank


@pytest.mark.parametrize("where", ["on the path", "elsewhere"])
def test_a_barrier_is_doubted_where_its_path_is(where: str, tmp_path: Path, no_pictures: None) -> None:
    """Seen to fail where any window counts, and where one CV's distance does."""
    data, result = healthy_data(2), healthy_result()
    with_two_basins(data, result)
    middle = np.linalg.norm(data["centers"] - [0.0 if where == "on the path" else 1.6, 0.425], axis=1)
    window = int(middle.argmin())
    data["micro"][window] = data["macro"][window] = 1.0
    data["difference"][window] = 3.0
    (warning,) = warnings_of(tmp_path, data, result)
    assert warning.startswith(f"Generator and MBAR disagree at {place(data, window)}")
    doubt = "The barrier between A and B is not to be trusted."
    assert warning.endswith(doubt) == (doubt in warning) == (where == "on the path")


@pytest.mark.parametrize("where", ["on the path", "elsewhere"])
def test_a_barrier_over_windows_that_disagree_is_not_to_be_trusted(
    where: str, tmp_path: Path, no_pictures: None
) -> None:
    data, result = healthy_data(2), healthy_result()
    flank = with_two_basins(data, result)
    untrusted = np.zeros(data["surface"].size, dtype=bool)
    untrusted[flank[1] if where == "on the path" else 0] = True
    data["untrusted"] = untrusted.reshape(data["surface"].shape)
    result["hidden_states"] = ["phi = 10° and phi = 30°: windows 3 and 4 hold different basins of torsion A-B"]
    (warning,) = warnings_of(tmp_path, data, result)
    assert ("The barrier between A and B is not to be trusted." in warning) == (where == "on the path")


def test_methods_can_be_pasted(tmp_path: Path, no_pictures: None) -> None:
    """Every reference that the text numbers is there once, in order, with its DOI."""
    data, result = healthy_data(2), healthy_result()
    plain = read_page(write_report(write_run(tmp_path / "plain", 2, data, result))).text
    with_two_basins(data, result)
    text = read_page(write_report(write_run(tmp_path / "basins", 2, data, result))).text
    assert ("steepest descent" in plain, "steepest descent" in text) == (False, True)
    start, end = text.index("Umbrella windows over"), text.index("copy with references")
    paragraph, references = text[start:end].split("[1] P. Eastman", maxsplit=1)
    assert paragraph.startswith("Umbrella windows over phi and r at 300 K were simulated with OpenMM 8.2.0 [1].")
    assert "In all 90,000 force evaluations were spent." in paragraph
    assert "The program was openmm_sgm 9.8.7." in paragraph
    cited = re.findall(r"\[(\d+)\]", paragraph)
    assert cited == [str(k) for k in range(1, len(cited) + 1)]
    assert re.findall(r"\[(\d+)\] [A-Z]", references) == cited[1:]
    assert references.count("doi:10.") == len(cited)


def test_generator_that_cannot_say_is_warned_of(tmp_path: Path, no_pictures: None) -> None:
    data = healthy_data(2)
    (window,) = low_windows(data, 1)
    for name in ("micro", "micro_error", "difference"):
        data[name][window] = np.nan
    (warning,) = warnings_of(tmp_path, data, healthy_result())
    assert warning.startswith(f"At {place(data, window)} the weights of the generated configurations cannot be trusted")


def test_wrong_energies_are_warned_of(tmp_path: Path, no_pictures: None) -> None:
    result = healthy_result()
    result["simulated_minus_generated_kj_mol"] = {"mean": -2.0, "std_error": 0.3}
    (warning,) = warnings_of(tmp_path, healthy_data(2), result)
    assert "differ in their mean energy by -2.00 ± 0.30 kJ/mol" in warning


def test_disagreement_is_warned_of(tmp_path: Path, no_pictures: None) -> None:
    data = healthy_data(2)
    first, second, third = low_windows(data, 3)
    data["difference"][first] = 3.0
    data["difference"][second] = 0.9  # within what is tolerated
    data["difference"][third], data["micro_error"][third] = -3.0, 2.0  # within three standard errors
    (warning,) = warnings_of(tmp_path, data, healthy_result())
    assert warning.startswith(f"Generator and MBAR disagree at {place(data, first)} by more than 1 kJ/mol")


def test_budget_that_ended_too_early_is_warned_of(tmp_path: Path, no_pictures: None) -> None:
    result = healthy_result()
    result["windows"]["left_by_the_budget"] = ["phi = 10°, r = 0.3 nm", "phi = 30°, r = 0.3 nm"]
    expected = "The budget ended before phi = 10°, r = 0.3 nm; phi = 30°, r = 0.3 nm could be visited: "
    (warning,) = warnings_of(tmp_path, healthy_data(2), result)
    assert warning == expected + "--resume with more --force-evaluations goes on there."


def test_windows_that_hold_different_states_are_named(tmp_path: Path, no_pictures: None) -> None:
    result = healthy_result()
    result["hidden_states"] = ["phi = 10° and phi = 30°: windows 3 and 4 hold different basins of torsion A-B"]
    (warning,) = warnings_of(tmp_path, healthy_data(2), result)
    assert warning.startswith(f"Overlapping windows hold different states: {result['hidden_states'][0]}.")
    assert "make the torsion that is named a CV, or use a temperature ladder" in warning
    result["hidden_states"] = ["phi = 10° and phi = 30°: windows 3 and 4 differ in energy (3 against 9)"]
    (warning,) = warnings_of(tmp_path, healthy_data(2), result)
    assert warning.startswith(f"Overlapping windows differ where they should agree: {result['hidden_states'][0]}.")
    assert "more force evaluations may be enough" in warning


def test_torsions_that_stayed_in_one_place_are_named(tmp_path: Path, no_pictures: None) -> None:
    result = healthy_result() | {"confined_torsions": ["torsion A B (-120° to -2°)"]}
    (warning,) = warnings_of(tmp_path, healthy_data(2), result)
    assert warning.startswith("In all windows torsion A B (-120° to -2°) stayed in one place.")


# Folders that cannot be read


FILES = ("result.json", "diagnostics.json", "diagnostics.npz", "ledger.csv")


def check_refused(folder: Path, message: str) -> None:
    before = snapshot(folder)
    with pytest.raises(InputError, match=message) as caught:
        write_report(folder)
    assert len(str(caught.value).splitlines()) == 1
    assert snapshot(folder) == before


@pytest.mark.parametrize("name", FILES)
def test_missing_file_is_named(name: str, copied: Path, no_pictures: None) -> None:
    (copied / name).unlink()
    check_refused(copied, f"copied holds no finished run: {name} is missing")


def test_folder_that_is_none(copied: Path, tmp_path: Path, no_pictures: None) -> None:
    with pytest.raises(InputError, match="holds no finished run"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"result\.json"):
        write_report(copied / "result.json")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0, 2], ids=["empty", "cut in half"])
def test_cut_file_is_refused(name: str, share: int, copied: Path, no_pictures: None) -> None:
    content = (copied / name).read_bytes()
    if name == "ledger.csv" and share:  # in the middle of its last row
        content = content[: content.rindex(b",")]
    else:
        content = content[: len(content) // share if share else 0]
    (copied / name).write_bytes(content)
    check_refused(copied, "the results in .*copied are damaged")


@pytest.mark.parametrize("text", ["[]", "{}", "3", "null"])
@pytest.mark.parametrize("name", ["result.json", "diagnostics.json"])
def test_json_of_something_else_is_refused(name: str, text: str, copied: Path, no_pictures: None) -> None:
    (copied / name).write_text(text)
    check_refused(copied, "the results in .*copied are damaged")


@pytest.mark.parametrize("key", ["system", "windows", "history", "trainings", "versions", "density_error_kt"])
def test_result_without_a_key_is_refused(key: str, copied: Path, no_pictures: None) -> None:
    change_json(copied / "result.json", lambda result: result.pop(key))
    check_refused(copied, "the results in .*copied are damaged")


@pytest.mark.parametrize("name", ["surface", "edges_0", "micro", "overlap", "generated_log_weights"])
def test_diagnostics_without_an_array_are_refused(name: str, copied: Path, no_pictures: None) -> None:
    path = copied / "diagnostics.npz"
    with np.load(path) as archive:
        data = {key: archive[key] for key in archive.files if key != name}
    with path.open("wb") as file:
        np.savez(file, **data)
    check_refused(copied, "the results in .*copied are damaged")


def test_diagnostics_with_a_pickle_are_refused(copied: Path, no_pictures: None) -> None:
    path = copied / "diagnostics.npz"
    with np.load(path) as archive:
        data = {key: archive[key] for key in archive.files}
    data["surface"] = np.array([{"not": "numbers"}], dtype=object)
    with path.open("wb") as file:
        np.savez(file, **data)
    check_refused(copied, "the results in .*copied are damaged")


def test_old_report_stays_when_a_new_one_cannot_be_made(copied: Path, no_pictures: None) -> None:
    (copied / "report.html").write_text("the old one")
    (copied / "diagnostics.json").unlink()
    with pytest.raises(InputError, match=r"diagnostics\.json is missing"):
        write_report(copied)
    assert (copied / "report.html").read_text() == "the old one"
    assert not list(copied.glob("*.tmp"))
