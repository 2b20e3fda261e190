"""The report in a headless Chromium, from disk and with no network: what a reader sees when pointing at the surface.

Left out, with the reason, where Playwright or a browser is missing.

Seen to fail with axes exchanged or upside down, names written as HTML, another bin's structure or none, coordinates of
another byte order, another bin's basin, the error's value for the error, a bin that is not held, a map that does not
change with the quantity, keys that stop at the period's end, and a message on the console.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_cli import FinishedRun, finished_run
from test_report import EVIL, healthy_data, healthy_result, write_run

from openmm_sgm.basins import find_basins, letter
from openmm_sgm.free_energy import Surface
from openmm_sgm.report import write_report

playwright_api = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("there is no Chromium and no Google Chrome here", allow_module_level=True)

QUIET = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--no-first-run"]
WEBGL = ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
NO_WEBGL = ["--disable-gpu", "--disable-3d-apis"]
LOCAL = ("file:", "data:", "blob:")
STRUCTURE = "#surface-structure canvas"


class Opened:
    """A report in a browser: the page, what its console said, and what it wanted from a network."""

    def __init__(self, browser: Any, path: Path) -> None:
        self.page = browser.new_page(viewport={"width": 1050, "height": 900})
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: message.type == "error" and self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.said.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        self.page.route("**/*", self._route)
        self.page.goto(path.as_uri())

    def _route(self, route: Any) -> None:
        if route.request.url.startswith(LOCAL):
            route.continue_()
        else:
            self.asked.append(route.request.url)
            route.abort()

    def point(self, bin_: tuple[int, ...], click: bool = False) -> list[str]:
        """Point at the middle of a bin and return what is said of it."""
        flat = int(np.ravel_multi_index(bin_, self.shape))
        box = self.page.evaluate(
            """([i, j, nx, ny]) => {
                const frame = document.querySelector("#surface-map rect.axis").getBoundingClientRect();
                return [frame.left + frame.width * (i + 0.5) / nx, frame.bottom - frame.height * (j + 0.5) / ny];
            }""",
            [bin_[0], bin_[1] if len(bin_) > 1 else 0, self.shape[0], self.shape[1] if len(bin_) > 1 else 1],
        )
        self.page.mouse.move(*box)
        if click:
            self.page.mouse.click(*box)
            return self.read()
        self.page.wait_for_function("bin => document.getElementById('surface').dataset.bin == bin", arg=flat)
        return self.read()

    def read(self) -> list[str]:
        return str(self.page.inner_text("#surface-values")).splitlines()

    @property
    def shape(self) -> list[int]:
        return list(self.page.evaluate("JSON.parse(document.getElementById('surface-data').textContent).shape"))

    def drawn(self) -> float:
        """Return the share of the structure's pixels that are not white."""
        count = """() => new Promise(done => requestAnimationFrame(() => {
            const source = document.querySelector("#surface-structure canvas"), copy = document.createElement("canvas");
            copy.width = source.width; copy.height = source.height;
            const context = copy.getContext("2d");
            context.drawImage(source, 0, 0);
            const pixels = context.getImageData(0, 0, copy.width, copy.height).data;
            let dark = 0;
            for (let k = 0; k < pixels.length; k += 4) {
                dark += pixels[k + 3] > 0 && pixels[k] + pixels[k + 1] + pixels[k + 2] < 720;
            }
            done(dark / (pixels.length / 4));
        }))"""
        return float(self.page.evaluate(count))


@pytest.fixture(scope="module")
def playwright() -> Iterator[Any]:
    with playwright_api.sync_playwright() as started:
        yield started


@pytest.fixture(scope="module")
def browser(playwright: Any) -> Iterator[Any]:
    started = playwright.chromium.launch(executable_path=CHROMIUM, args=[*QUIET, *WEBGL])
    yield started
    started.close()


def write_folder(folder: Path, name: str = "made_by_hand") -> tuple[Path, dict[str, np.ndarray]]:
    """Write what a run over two CVs leaves, by hand: a bowl, with structures of four atoms in all bins but one.

    The bowl is halved into two basins, and the first of the structures has all its atoms in one place.
    """
    data = healthy_data(2)
    surface = Surface(
        data["surface"], data["surface_error"], (data["edges_0"], data["edges_1"]), ("phi", "r"), ("rad", "nm")
    )
    basins = find_basins(surface, (True, False), 300.0, 25.0)
    sampled = np.flatnonzero(np.isfinite(surface.free_energy))
    kept = sampled[sampled != sampled[3]]
    chain = np.array([[-180, 0, 0], [-60, 90, 0], [60, 0, 0], [180, 90, 30]])
    halves = np.where(basins.basin_of < 0, -1, np.arange(surface.free_energy.shape[1]) < 3)
    data |= {"basins": halves, "barrier_bins": np.zeros((0, 2), dtype=int), "structure_bins": kept}
    data["structures"] = np.repeat(chain[None], len(kept), axis=0).astype(np.int16)
    data["structures"][0] = 0
    result = healthy_result() | {"system": name}
    result["barriers"], result["basins"] = [], [
        {
            "label": letter(k),
            "minimum": dict(zip(("phi", "r"), basins.point(m).tolist(), strict=True)),
            "population": 1.0, "std_error": 0.0, "free_energy_kj_mol": 0.0, "free_energy_std_error_kj_mol": 0.0,
        }
        for k, m in enumerate(2 * basins.minima.tolist())
    ]  # fmt: skip
    write_run(folder, 2, data, result)
    surface.write_csv(folder / "surface.csv")
    about = json.loads((folder / "diagnostics.json").read_text())
    about |= {"elements": ["C", "O", "N", "X"], "bonds": [[0, 1], [1, 2], [2, 3]]}
    (folder / "diagnostics.json").write_text(json.dumps(about))
    return folder, data


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    folder, data = write_folder(tmp_path_factory.mktemp("by_hand") / "run", EVIL)
    about = json.loads((folder / "diagnostics.json").read_text())
    about["cvs"][0]["name"] = EVIL
    (folder / "diagnostics.json").write_text(json.dumps(about))
    write_report(folder)
    return folder, data


@pytest.fixture(scope="module")
def opened(browser: Any, by_hand: tuple[Path, dict[str, np.ndarray]]) -> Iterator[Opened]:
    found = Opened(browser, by_hand[0] / "report.html")
    yield found
    found.page.close()


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "surface.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def check_whole(report: Opened) -> None:
    """Nothing was wanted from a network, nothing went wrong, and every picture is there."""
    assert report.asked == []
    assert report.said == []
    sizes = report.page.evaluate("[...document.images].map(i => i.complete ? i.naturalWidth * i.naturalHeight : 0)")
    assert sizes
    assert min(sizes) > 0


def test_it_opens_from_disk_without_a_network(opened: Opened) -> None:
    check_whole(opened)
    assert opened.page.is_visible("#surface")
    assert opened.page.text_content("#surface-map").count(EVIL) == 1  # as text, on its axis
    assert opened.page.title().startswith(EVIL)
    assert opened.page.evaluate("document.scripts.length") == 4  # viewer, surface, copy and the data: none of EVIL's


def test_every_bin_says_what_the_table_says(opened: Opened, by_hand: tuple[Path, dict[str, np.ndarray]]) -> None:
    """Against surface.csv, bin by bin."""
    folder, data = by_hand
    shape = data["surface"].shape
    for k, row in enumerate(rows_of(folder)):
        index = tuple(int(i) for i in np.unravel_index(k, shape))
        where, *lines = opened.point(index)
        phi, r = np.degrees(float(row["phi"])), float(row["r"])
        assert where == f"{EVIL} {round(phi)}°, r {r:.3f} nm".replace("-", "−")
        if row["free_energy_kj_mol"] == "":
            assert lines == ["not sampled"]
            assert opened.page.inner_text("#surface-note") == "not sampled"
        else:
            value, error = float(row["free_energy_kj_mol"]), float(row["std_error_kj_mol"])
            assert abs(float(lines[0].split()[2]) - value) <= 0.00501
            assert abs(float(lines[1].split()[2]) - error) <= 0.00501
            basin = int(data["basins"][index])
            assert lines[2:] == [f"basin {letter(basin)}" if basin >= 0 else "in no basin"]


def test_a_structure_is_drawn_where_there_is_one(opened: Opened, by_hand: tuple[Path, dict[str, np.ndarray]]) -> None:
    _, data = by_hand
    shape, values = data["surface"].shape, data["surface"]
    lowest = np.unravel_index(int(np.nanargmin(values)), shape)
    unsampled = tuple(np.argwhere(np.isnan(values))[0])
    without = np.unravel_index(int(np.flatnonzero(np.isfinite(values))[3]), shape)
    opened.point(tuple(map(int, lowest)))
    assert "largest weight" in opened.page.inner_text("#surface-note")
    assert opened.drawn() > 0.01
    opened.point(tuple(map(int, unsampled)))
    assert opened.drawn() == 0.0
    opened.point(tuple(map(int, without)))
    assert opened.page.inner_text("#surface-note") == "no structure is kept for this bin"
    assert opened.drawn() == 0.0
    opened.point(tuple(map(int, lowest)))
    whole = opened.drawn()
    assert whole > 0.01
    opened.point(tuple(int(i) for i in np.unravel_index(int(data["structure_bins"][0]), shape)))
    assert 0 < opened.drawn() < 0.7 * whole  # four atoms in one place


def test_a_click_holds_a_bin_and_keys_move_it(opened: Opened) -> None:
    held = opened.point((4, 3), click=True)
    opened.page.mouse.move(5, 5)
    box = opened.page.locator("#surface-map").bounding_box()
    opened.page.mouse.move(box["x"] + 70, box["y"] + 60)
    assert opened.read() == held
    opened.page.locator("#surface-map").press("Escape")
    opened.point((1, 1))
    opened.page.locator("#surface-map").press("ArrowLeft")
    opened.page.locator("#surface-map").press("ArrowLeft")  # the first CV is periodic: round to the last bin
    shape = opened.shape
    assert opened.page.get_attribute("#surface", "data-bin") == str((shape[0] - 1) * shape[1] + 1)
    for _ in range(shape[1]):  # the second is not: it stays at the last
        opened.page.locator("#surface-map").press("ArrowUp")
    assert opened.page.get_attribute("#surface", "data-bin") == str((shape[0] - 1) * shape[1] + shape[1] - 1)


def test_the_map_of_errors_is_another_picture(opened: Opened) -> None:
    colours = "[...document.querySelectorAll('#surface-map rect.bin')].map(r => r.getAttribute('fill')).join()"
    before = opened.page.evaluate(colours)
    opened.page.check("input[value=error]")
    assert "standard error (kJ/mol)" in opened.page.text_content("#surface-map")
    assert opened.page.evaluate(colours) != before
    opened.page.check("input[value=value]")
    assert opened.page.evaluate(colours) == before


def test_methods_can_be_copied(opened: Opened) -> None:
    opened.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    opened.page.click("button[data-copies]")
    opened.page.locator("button[data-copies]").filter(has_text="copied").wait_for()
    text = opened.page.evaluate("navigator.clipboard.readText()")
    assert f"Umbrella windows over {EVIL} and r at 300 K" in text
    assert "[5] R. T. McGibbon" in text
    assert "doi:10.1063/5.0190899" in text


def test_on_paper_there_are_the_pictures_and_no_buttons(opened: Opened) -> None:
    paper = opened.page.pdf(format="A4", print_background=True)
    assert paper.startswith(b"%PDF")
    assert len(paper) > 50_000
    opened.page.emulate_media(media="print")
    assert not opened.page.is_visible("#surface")
    assert not opened.page.is_visible("button")
    assert opened.page.is_visible("img >> nth=0")
    opened.page.emulate_media(media="screen")
    assert opened.said == []


def test_without_webgl_all_but_the_structures_works(playwright: Any, tmp_path: Path) -> None:
    folder, data = write_folder(tmp_path / "run")
    write_report(folder)
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*QUIET, *NO_WEBGL])
    try:
        report = Opened(browser, folder / "report.html")
        check_whole(report)
        assert "This browser has no WebGL" in report.page.inner_text("#surface-note")
        lowest = np.unravel_index(int(np.nanargmin(data["surface"])), data["surface"].shape)
        assert "free energy 0.00 kJ/mol" in report.point(tuple(map(int, lowest)))
        assert "This browser has no WebGL" in report.page.inner_text("#surface-note")
    finally:
        browser.close()


def test_script_that_is_not_ours_does_not_run(browser: Any, by_hand: tuple[Path, dict[str, np.ndarray]]) -> None:
    """The page's policy is a second wall: text that was put in unescaped would not run."""
    text = (by_hand[0] / "report.html").read_text()
    path = by_hand[0] / "tampered.html"
    path.write_text(
        text.replace("</h1>", "</h1><script>document.title = 'run'</script><img src=x onerror=alert(1)>", 1)
    )
    report = Opened(browser, path)
    assert report.page.title() != "run"
    assert not [said for said in report.said if said.startswith("dialog")]
    report.page.close()


def test_folders_of_earlier_versions_have_a_surface_without_structures(browser: Any, tmp_path: Path) -> None:
    folder = write_run(tmp_path, 2, healthy_data(2), healthy_result())
    report = Opened(browser, write_report(folder))
    check_whole(report)
    assert report.page.inner_text("#surface-note") == "this folder holds no structures"
    assert "free energy" in report.point((4, 3))[1]
    report.page.close()


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """A finished run, which no test may change."""
    return finished_run(tmp_path_factory.getbasetemp())


def test_a_real_run_over_one_cv(browser: Any, finished: FinishedRun) -> None:
    report = Opened(browser, finished.folder / "report.html")
    check_whole(report)
    assert (finished.folder / "report.html").stat().st_size < 5_000_000
    sampled = 0
    for k, row in enumerate(rows_of(finished.folder)):
        lines = report.point((k,))
        if row["free_energy_kj_mol"] == "":
            assert lines[1:] == ["not sampled"]
            continue
        sampled += 1
        assert abs(float(lines[1].split()[2]) - float(row["free_energy_kj_mol"])) <= 0.0051
        assert "largest weight" in report.page.inner_text("#surface-note")
        assert report.drawn() > 0.005
    assert sampled > 3
    report.page.close()
