"""The folder of a finished run keeps its contract, and the state of a run is saved and loaded whole or refused."""

from __future__ import annotations

import copy
import csv
import dataclasses
import json
import math
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mdtraj
import numpy as np
import openmm
import pytest
from test_cli import (
    BUDGET,
    SEED,
    FinishedRun,
    finished_run,
    quick_options,
    read_rows,
    run_arguments,
    snapshot,
    write_system,
)

from openmm_sgm.cli import main
from openmm_sgm.cvs import CollectiveVariable, ContactNumber, ExpressionCV, Position
from openmm_sgm.generator import Generator
from openmm_sgm.records import digest
from openmm_sgm.runfolder import _definitions, _untrusted_bins, load_state, save_state, write_results
from openmm_sgm.sampler import DOUBT, ScoreSampler
from openmm_sgm.system_file import load_system
from openmm_sgm.units import InputError, thermal_energy

BINS, MINIMUM, MAXIMUM = 14, 0.16, 0.3
RESULT: dict[str, tuple[str, ...]] = {
    "force_evaluations": ("simulation", "generation", "total"),
    "wall_seconds": ("simulate", "train", "generate", "total"),
    "acceptance": ("median", "p05"),
    "ess": ("median", "p05"),
    "density_error_kt": (),
    "micro_macro_rmse_kj_mol": (),
    "simulated_minus_generated_kj_mol": ("mean", "std_error"),
    "platform": (),
    "seed": (),
    "versions": (),
}
FILES = ("surface.csv", "result.json", "ledger.csv", "weights.csv", "samples.dcd", "topology.pdb", "report.html")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """A finished run, which no test may change."""
    return finished_run(tmp_path_factory.getbasetemp())


@pytest.fixture
def copied(finished: FinishedRun, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may change."""
    return Path(shutil.copytree(finished.folder, tmp_path / "copied"))


@pytest.fixture(scope="module")
def result(finished: FinishedRun) -> dict[str, Any]:
    return json.loads((finished.folder / "result.json").read_text())


@pytest.fixture(scope="module")
def ledger(finished: FinishedRun) -> list[dict[str, str]]:
    return read_rows(finished.folder / "ledger.csv")


def new_sampler(system: Path, seed: int = SEED) -> ScoreSampler:
    return ScoreSampler(load_system(system), seed=seed, workers=0, options=quick_options())


def weights_table(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the CV, shape (n,), and the log-weights, shape (n,), of weights.csv."""
    rows = read_rows(folder / "weights.csv")
    assert list(rows[0]) == ["r", "log_weight"]
    return np.array([float(row["r"]) for row in rows]), np.array([float(row["log_weight"]) for row in rows])


# The contract


@pytest.mark.parametrize("name", FILES)
def test_file_is_there(name: str, finished: FinishedRun) -> None:
    assert (finished.folder / name).stat().st_size > 0


def test_nothing_temporary_is_left(finished: FinishedRun) -> None:
    assert not list(finished.folder.rglob("*.tmp"))


def test_surface(finished: FinishedRun) -> None:
    rows = read_rows(finished.folder / "surface.csv")
    assert list(rows[0]) == ["r", "free_energy_kj_mol", "std_error_kj_mol"]
    width = (MAXIMUM - MINIMUM) / BINS
    expected = MINIMUM + (np.arange(BINS) + 0.5) * width
    np.testing.assert_allclose([float(row["r"]) for row in rows], expected, atol=1e-6)
    values = [(row["free_energy_kj_mol"], row["std_error_kj_mol"]) for row in rows]
    assert all((value == "") == (error == "") for value, error in values)
    sampled = [(float(value), float(error)) for value, error in values if value]
    assert all(math.isfinite(value) and math.isfinite(error) and error > 0 for value, error in sampled)
    assert min(value for value, _ in sampled) == pytest.approx(0, abs=1e-6)
    assert 4 <= len(sampled) < BINS, "the last bins need a stretched bond, and are left empty"
    assert rows[-1]["free_energy_kj_mol"] == ""


def test_surface_is_right(finished: FinishedRun) -> None:
    """The exact surface: the angle's Boltzmann factor with its volume element, averaged over both bond lengths."""
    kt = thermal_energy(300.0)
    grid = np.linspace(-0.03, 0.03, 61)
    first, second = np.meshgrid(0.1 + grid, 0.14 + grid, indexing="ij")
    r = np.linspace(MINIMUM, MAXIMUM, 20 * BINS + 1)
    r = 0.5 * (r[1:] + r[:-1])
    cosine = (first**2 + second**2 - r[:, None, None] ** 2) / (2 * first * second)
    inside = np.abs(cosine) < 1
    angle = np.arccos(np.clip(cosine, -1, 1))
    energy = 0.5 * 1e5 * ((first - 0.1) ** 2 + (second - 0.14) ** 2) + 30.0 * (angle - 1.9) ** 2
    # b₁² b₂² sin θ dθ, and r dr = b₁ b₂ sin θ dθ
    weight = np.where(inside, np.exp(-energy / kt) * first * second * r[:, None, None], 0.0).sum(axis=(1, 2))
    with np.errstate(divide="ignore"):
        exact = -kt * np.log(weight.reshape(BINS, 20).sum(axis=1))
    rows = read_rows(finished.folder / "surface.csv")
    known = np.array([row["free_energy_kj_mol"] != "" for row in rows])
    found, error = (
        np.array([float(row[name]) for row, use in zip(rows, known, strict=True) if use])
        for name in ("free_energy_kj_mol", "std_error_kj_mol")
    )
    low = found < 15
    difference = found[low] - exact[known][low]
    difference -= np.average(difference, weights=1 / error[low] ** 2)
    assert np.abs(difference / error[low]).max() < 4
    assert np.sqrt(np.mean(difference**2)) < 0.3


def test_result(result: dict[str, Any]) -> None:
    for key, parts in RESULT.items():
        assert key in result
        for part in parts:
            assert isinstance(result[key][part], (int, float)), f"{key}.{part}"
            assert math.isfinite(result[key][part]), f"{key}.{part}"
    cost = result["force_evaluations"]
    assert cost["total"] == cost["simulation"] + cost["generation"]
    assert 0.9 * BUDGET < cost["total"] <= BUDGET
    wall = result["wall_seconds"]
    assert 0 < wall["simulate"] + wall["train"] + wall["generate"] <= wall["total"]
    for key in ("acceptance", "ess"):
        assert 0 <= result[key]["p05"] <= result[key]["median"] <= 1
    assert 0 <= result["density_error_kt"] < 0.05
    assert result["micro_macro_rmse_kj_mol"] >= 0
    assert result["seed"] == SEED
    platforms = [openmm.Platform.getPlatform(k).getName() for k in range(openmm.Platform.getNumPlatforms())]
    assert result["platform"] in platforms
    assert result["versions"]["openmm"] == openmm.__version__
    assert {"openmm_sgm", "python", "mdtraj", "torch", "numpy"} <= set(result["versions"])


def test_result_is_plain_json(finished: FinishedRun) -> None:
    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is no JSON")

    for name in ("result.json", "status.json", "diagnostics.json", "state/state.json", "generator/generator.json"):
        content = json.loads((finished.folder / name).read_text(), parse_constant=refuse)
        assert content, name


def test_samples_and_weights(finished: FinishedRun) -> None:
    trajectory = mdtraj.load(finished.folder / "samples.dcd", top=finished.folder / "topology.pdb")
    assert trajectory.n_atoms == 4
    assert trajectory.topology.n_bonds == 3
    assert np.isfinite(trajectory.xyz).all()
    r, log_weights = weights_table(finished.folder)
    assert len(r) == len(log_weights) == trajectory.n_frames > 1000
    assert np.logaddexp.reduce(log_weights) == pytest.approx(0, abs=1e-5)
    computed = mdtraj.compute_distances(trajectory, [[0, 2]], periodic=False)[:, 0]
    np.testing.assert_allclose(r, computed, atol=1e-3)


def test_weights_give_the_surface(finished: FinishedRun) -> None:
    r, log_weights = weights_table(finished.folder)
    shares, _ = np.histogram(r, np.linspace(MINIMUM, MAXIMUM, BINS + 1), weights=np.exp(log_weights))
    rows = read_rows(finished.folder / "surface.csv")
    known = np.array([row["free_energy_kj_mol"] != "" for row in rows])
    surface = np.array([float(row["free_energy_kj_mol"]) for row in rows if row["free_energy_kj_mol"]])
    again = -thermal_energy(300.0) * np.log(shares[known])
    np.testing.assert_allclose(again - again.min(), surface, atol=0.02)


def test_samples_beyond_the_most_are_thinned_at_random(
    finished: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openmm_sgm.runfolder.MOST_SAMPLES", 500)
    write_results(tmp_path, finished.sampler, "openmm-sgm run")
    r, log_weights = weights_table(tmp_path)
    assert len(r) == 500 == mdtraj.load(tmp_path / "samples.dcd", top=tmp_path / "topology.pdb").n_frames
    assert np.logaddexp.reduce(log_weights) == pytest.approx(0, abs=1e-5)
    all_r, all_log_weights = weights_table(finished.folder)
    deviation = np.sqrt(np.average((all_r - np.average(all_r, weights=np.exp(all_log_weights))) ** 2,
                                   weights=np.exp(all_log_weights)))  # fmt: skip
    difference = np.average(r, weights=np.exp(log_weights)) - np.average(all_r, weights=np.exp(all_log_weights))
    assert abs(difference) < 5 * deviation / np.sqrt(500)


def test_hidden_states_are_looked_for(finished: FinishedRun, result: dict[str, Any]) -> None:
    """None in the run as it was; and a window whose energies are another system's is named."""
    assert result["hidden_states"] == []
    campaign = copy.copy(finished.sampler.campaign)
    assert campaign is not None
    window = int(np.nanargmin(campaign.free_energies))
    campaign.chain = [
        dataclasses.replace(part, energies=part.energies + 50.0 * (part.windows == window)) for part in campaign.chain
    ]
    found = campaign.hidden_states()
    assert any(window in (d.first, d.second) and "energy" in d.observable for d in found.disagreements)
    surface = finished.sampler.surface()
    marked = _untrusted_bins(surface, campaign, found)
    nearest = np.array([campaign.grid.nearest(np.array([x])) for x in surface.centers[0]])
    assert marked[nearest == window].all()
    assert not marked.all()
    sampler = copy.copy(finished.sampler)
    sampler.campaign, sampler._hidden = campaign, None
    windows, shares = campaign.active_windows()
    more = sampler._more_where_windows_disagree(windows, shares) / shares
    assert more[windows == window] > more.min()
    assert set(np.round(more / more.min(), 6)) == {1.0, DOUBT}


# The ledger and the generator


def test_ledger_has_a_row_for_each_configuration_asked_for(
    finished: FinishedRun, ledger: list[dict[str, str]], result: dict[str, Any]
) -> None:
    tail = ["purpose", "energy_kj_mol", "log_density", "log_weight", "verdict"]
    assert list(ledger[0]) == ["number", "round", "temperature_k", "window", "label_r", *tail]
    assert [int(row["number"]) for row in ledger] == list(range(len(ledger)))
    assert len({tuple(row.values()) for row in ledger}) == len(ledger)
    campaign = finished.sampler.campaign
    assert campaign is not None
    asked = {
        (k + 1, window): int(count)
        for k, draws in enumerate(campaign.rounds)
        for window, count in enumerate(draws.drawn)
        if count
    }
    injected = [row for row in ledger if row["purpose"] == "injection"]
    assert Counter((int(row["round"]), int(row["window"])) for row in injected) == asked
    tried = Counter(int(row["window"]) for row in ledger if row["purpose"] == "trial")
    assert all(tried[w] >= n for w, n in enumerate(campaign.trial_weights().drawn))
    assert result["force_evaluations"]["generation"] >= sum(row["energy_kj_mol"] != "" for row in ledger)


def test_ledger_says_what_became_of_each(ledger: list[dict[str, str]], result: dict[str, Any]) -> None:
    reasons = {"energy not finite", "chirality changed", "outside the representation"}
    assert {row["verdict"] for row in ledger} <= {"accepted", "rejected", "not offered", *reasons}
    assert all(row["energy_kj_mol"] and row["log_density"] for row in ledger if row["verdict"] == "accepted")
    last = [row for row in ledger if row["round"] == "3"]
    shares = []
    for window in sorted({row["window"] for row in last}):
        verdicts = [row["verdict"] for row in last if row["window"] == window]
        shares.append(verdicts.count("accepted") / len(verdicts))
    assert result["acceptance"]["median"] == pytest.approx(np.median(shares))
    assert result["acceptance"]["p05"] == pytest.approx(np.quantile(shares, 0.05))


def test_generator_is_safetensors_and_json(finished: FinishedRun) -> None:
    names = sorted(path.name for path in (finished.folder / "generator").iterdir())
    assert names == ["generator.json", "generator.safetensors"]


def test_nothing_is_a_pickle(finished: FinishedRun) -> None:
    paths = [path for path in finished.folder.rglob("*") if path.is_file()]
    assert not [path.name for path in paths if path.suffix in {".pkl", ".pickle", ".pt", ".pth"}]
    assert not [path.name for path in paths if path.read_bytes()[:1] == b"\x80"], "how a pickle begins"
    archives = [path for path in paths if path.suffix == ".npz"]
    assert {"diagnostics.npz"} < {path.name for path in archives}
    for path in archives:
        with np.load(path, allow_pickle=False) as archive:
            assert all(archive[name].dtype != object for name in archive.files)


def test_generator_keeps_its_density(finished: FinishedRun, tmp_path: Path) -> None:
    campaign = finished.sampler.campaign
    assert campaign is not None
    assert campaign.generator is not None
    frames = campaign.rounds[-1].frames[:200]
    before = campaign.generator.log_density(frames.positions, frames.labels)
    assert np.isfinite(before).all()
    loaded = Generator.load(finished.folder / "generator")
    np.testing.assert_allclose(loaded.log_density(frames.positions, frames.labels), before, rtol=0, atol=1e-6)
    loaded.save(tmp_path / "again")
    assert snapshot(tmp_path / "again") == snapshot(finished.folder / "generator")


# The state


def test_loaded_state_gives_the_same_surface(finished: FinishedRun) -> None:
    before = snapshot(finished.folder)
    sampler = new_sampler(finished.system)
    load_state(finished.folder, sampler)
    for method in ("combined", "mbar", "generator"):
        old, new = finished.sampler.surface(method=method), sampler.surface(method=method)
        np.testing.assert_allclose(new.free_energy, old.free_energy, atol=1e-9)
        np.testing.assert_allclose(new.std_error, old.std_error, atol=1e-9)
    for old_array, new_array in zip(finished.sampler.mbar(), sampler.mbar(), strict=True):
        np.testing.assert_allclose(new_array, old_array, atol=1e-9)
    assert sampler.history == finished.sampler.history
    assert sampler.seeds_spawned == finished.sampler.seeds_spawned
    assert snapshot(finished.folder) == before


def test_loaded_state_has_the_same_walkers_and_cost(finished: FinishedRun) -> None:
    sampler = new_sampler(finished.system)
    load_state(finished.folder, sampler)
    old, new = finished.sampler.campaign, sampler.campaign
    assert old is not None
    assert new is not None
    assert dataclasses.asdict(new.cost) == dataclasses.asdict(old.cost)
    assert (new.round, new.density_error, new.shared.rotors) == (old.round, old.density_error, old.shared.rotors)
    assert list(new.walkers) == list(old.walkers), "their order decides which is visited first"
    assert [len(part) for part in new.chain] == [len(part) for part in old.chain if len(part)]
    for window, walker in new.walkers.items():
        for field in dataclasses.fields(walker):
            value, expected = getattr(walker, field.name), getattr(old.walkers[window], field.name)
            np.testing.assert_array_equal(value, expected, err_msg=f"window {window}: {field.name}")
    assert [row.verdict for row in new.ledger.rows] == [row.verdict for row in old.ledger.rows]
    assert new.rng().integers(2**62) == np.random.default_rng(_next_seed(old.seed)).integers(2**62)


def _next_seed(seed: np.random.SeedSequence) -> np.random.SeedSequence:
    """Return what `seed` will spawn next, without spawning it."""
    copy = np.random.SeedSequence(seed.entropy, spawn_key=seed.spawn_key, n_children_spawned=seed.n_children_spawned)
    return copy.spawn(1)[0]


def test_saved_again_the_state_is_the_same(finished: FinishedRun, tmp_path: Path) -> None:
    sampler = new_sampler(finished.system)
    load_state(finished.folder, sampler)
    old, new = finished.folder / "state", tmp_path / "state"
    new.mkdir()
    (new / "state.json").write_text('{"number": 3}')  # the next save has the next number
    save_state(tmp_path, sampler)
    assert json.loads((new / "state.json").read_text()) == json.loads((old / "state.json").read_text())
    names = sorted(str(path.relative_to(old)) for path in old.rglob("*"))
    assert sorted(str(path.relative_to(new)) for path in new.rglob("*")) == names
    for name in (name for name in names if name.endswith(".npz")):
        with np.load(old / name) as first, np.load(new / name) as second:
            for key in first.files:
                np.testing.assert_array_equal(second[key], first[key], err_msg=f"{name}: {key}")


def test_only_the_latest_state_is_kept(finished: FinishedRun) -> None:
    names = sorted(path.name for path in (finished.folder / "state").iterdir())
    draws = [f"draws-{k}.npz" for k in range(3)]
    wanted = ["chain-4.npz", *draws, "generator-4", "ledger-4.csv", "state.json", "trials-4.npz", "walkers-4.npz"]
    assert names == wanted


def test_draws_of_a_save_that_was_killed_are_not_taken_over(finished: FinishedRun, copied: Path) -> None:
    """A kill between the draws and state.json leaves draws that are not those of the run that goes on."""
    original = finished.sampler.campaign
    assert original is not None
    last = original.rounds[2]
    change_levels(copied / "state", n_rounds=2)
    dataclasses.replace(last.frames, energies=last.frames.energies + 1.0).save(copied / "state" / "draws-2.npz")
    going_on = new_sampler(finished.system)
    load_state(copied, going_on)
    assert going_on.campaign is not None
    assert len(going_on.campaign.rounds) == 2
    going_on.campaign.rounds.append(last)
    save_state(copied, going_on)
    again = new_sampler(finished.system)
    load_state(copied, again)
    assert again.campaign is not None
    np.testing.assert_array_equal(again.campaign.rounds[2].frames.energies, last.frames.energies)


def cut(path: Path) -> None:
    """Leave the first half of a file."""
    content = path.read_bytes()
    assert len(content) > 1
    path.write_bytes(content[: len(content) // 2])


def sealed(content: dict[str, Any]) -> str:
    """Return a state's JSON with the digest that fits it: what is wrong is then in the content alone."""
    content.pop("digest", None)
    return json.dumps(content | {"digest": digest(json.dumps(content, sort_keys=True))})


def change_state(folder: Path, **changes: Any) -> None:
    path = folder / "state.json"
    path.write_text(sealed(json.loads(path.read_text()) | changes))


def change_levels(folder: Path, **changes: Any) -> None:
    levels = json.loads((folder / "state.json").read_text())["levels"]
    change_state(folder, levels=[level | changes for level in levels])


def forget(folder: Path, key: str) -> None:
    path = folder / "state.json"
    content = json.loads(path.read_text())
    del content[key]
    path.write_text(sealed(content))


def spoil_header(path: Path) -> None:
    header = json.loads(path.read_text())
    path.write_text(json.dumps(header | {"format_version": 99}))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "state.json cut": lambda state: cut(state / "state.json"),
    "state.json empty": lambda state: (state / "state.json").write_text(""),
    "state.json missing": lambda state: (state / "state.json").unlink(),
    "state.json no object": lambda state: (state / "state.json").write_text("[]"),
    "state.json no text": lambda state: (state / "state.json").write_bytes(b"\xff\xfe"),
    "a key missing": lambda state: forget(state, "cost"),
    "a list too short": lambda state: change_levels(state, origins=[]),
    "of another type": lambda state: change_levels(state, n_rounds="three"),
    "cost no object": lambda state: change_state(state, cost=5),
    "chain cut": lambda state: cut(state / "chain-4.npz"),
    "chain empty": lambda state: (state / "chain-4.npz").write_bytes(b""),
    "chain missing": lambda state: (state / "chain-4.npz").unlink(),
    "walkers cut": lambda state: cut(state / "walkers-4.npz"),
    "draws cut": lambda state: cut(state / "draws-1.npz"),
    "draws missing": lambda state: (state / "draws-2.npz").unlink(),
    "draws no archive": lambda state: (state / "draws-0.npz").write_text("nothing of the kind\n"),
    "ledger cut": lambda state: cut(state / "ledger-4.csv"),
    "ledger missing": lambda state: (state / "ledger-4.csv").unlink(),
    "generator cut": lambda state: cut(state / "generator-4" / "generator.safetensors"),
    "generator header cut": lambda state: cut(state / "generator-4" / "generator.json"),
    "generator of another format": lambda state: spoil_header(state / "generator-4" / "generator.json"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_state_is_refused(damage: str, finished: FinishedRun, copied: Path) -> None:
    DAMAGES[damage](copied / "state")
    before = snapshot(copied)
    with pytest.raises(InputError, match=r"the state in .* is damaged: .+") as caught:
        load_state(copied, new_sampler(finished.system))
    assert len(str(caught.value).splitlines()) == 1
    assert snapshot(copied) == before


def test_state_of_the_version_before_is_read(finished: FinishedRun, copied: Path) -> None:
    """It had no digests, no platform and no lengths of the chain's parts; what it held is taken over."""
    path = copied / "state" / "state.json"
    content = json.loads(path.read_text())
    for key in ("digest", "files", "platform"):
        del content[key]
    for level in content["levels"]:
        del level["parts"]
    content["setup"]["dynamics"] = content["setup"]["dynamics"][:3]  # there was one integrator
    path.write_text(json.dumps(content | {"version": 1}))
    sampler = new_sampler(finished.system)
    load_state(copied, sampler)
    old, new = finished.sampler.campaign, sampler.campaign
    assert old is not None
    assert new is not None
    np.testing.assert_array_equal(new.chain[0].positions, np.concatenate([part.positions for part in old.chain]))
    np.testing.assert_array_equal(sampler.surface().free_energy, finished.sampler.surface().free_energy)
    save_state(copied, sampler)
    load_state(copied, new_sampler(finished.system))
    assert json.loads(path.read_text())["version"] == 2


@pytest.mark.parametrize("name", ["state.json", "chain-4.npz", "walkers-4.npz", "draws-1.npz", "ledger-4.csv"])
def test_any_flipped_bit_of_the_state_is_refused(name: str, finished: FinishedRun, copied: Path) -> None:
    """The archives have checksums of their own; the ledger and the JSON have only the state's digests."""
    path = copied / "state" / name
    whole = path.read_bytes()
    rng = np.random.default_rng(3)
    for _ in range(3):
        spoilt = bytearray(whole)
        spoilt[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
        path.write_bytes(spoilt)
        with pytest.raises(InputError):
            load_state(copied, new_sampler(finished.system))
    path.write_bytes(whole)
    load_state(copied, new_sampler(finished.system))


def test_state_without_its_generator_is_refused(finished: FinishedRun, copied: Path) -> None:
    """A run that has finished a round has a generator; the results could not be written without it."""
    shutil.rmtree(copied / "state" / "generator-4")
    with pytest.raises(InputError, match="is damaged"):
        load_state(copied, new_sampler(finished.system))


def test_state_of_something_else_is_refused(finished: FinishedRun, copied: Path, tmp_path: Path) -> None:
    cases = [
        (new_sampler(finished.system, SEED + 1), f"has seed {SEED}, not {SEED + 1}"),
        (new_sampler(write_system(tmp_path / "other", openmm.HarmonicBondForce())), "is of another setup"),
    ]
    for sampler, message in cases:
        with pytest.raises(InputError, match=message) as caught:
            load_state(copied, sampler)
        assert len(str(caught.value).splitlines()) == 1
        assert sampler.campaign is None
    change_state(copied / "state", version=99)
    with pytest.raises(InputError, match="is of version 99, this program reads") as caught:
        load_state(copied, new_sampler(finished.system))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Position("x", [0], "x", -1, 1), Position("x", [0], "y", -1, 1)),
        (ExpressionCV("x", [0], "x1", -1, 1), ExpressionCV("x", [0], "2*x1", -1, 1)),
        (ContactNumber("n", 0.3, 0, 1, pairs=[(0, 1)]), ContactNumber("n", 0.4, 0, 1, pairs=[(0, 1)])),
    ],
    ids=["axis", "expression", "cutoff"],
)
def test_definitions_tell_cvs_of_one_kind_apart(one: CollectiveVariable, other: CollectiveVariable) -> None:
    """Name, kind, atoms and unit are the same; what is computed is not, even where it has one value at the start."""

    class Molecule:
        positions = np.zeros((2, 3))

        def __init__(self, cv: CollectiveVariable) -> None:
            self.cvs = (cv,)

        def evaluate_cvs(self, positions: np.ndarray) -> np.ndarray:
            return np.zeros((len(positions), 1))

    assert _definitions(Molecule(one)) == _definitions(Molecule(one)) != _definitions(Molecule(other))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("old", "new"),
    [("temperature_k = 300.0", "temperature_k = 400.0"), ("windows = 7", "windows = 5"), ("[0, 2]", "[1, 3]")],
    ids=["temperature", "windows", "CV"],
)
def test_state_of_another_setup_is_refused(old: str, new: str, finished: FinishedRun, tmp_path: Path) -> None:
    """The molecule is the same; its temperature, windows or CV are not those that the state was sampled with."""
    other = write_system(tmp_path / "other")
    text = (other / "system.toml").read_text()
    assert old in text
    (other / "system.toml").write_text(text.replace(old, new))
    with pytest.raises(InputError):
        load_state(finished.folder, new_sampler(other))


def test_damaged_state_is_refused_on_the_command_line(
    finished: FinishedRun, copied: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cut(copied / "state" / "walkers-4.npz")
    before = snapshot(copied)
    capfd.readouterr()
    assert main(run_arguments(finished.system, copied, "--resume")) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("openmm-sgm: ")
    assert len(err.splitlines()) == 1
    assert snapshot(copied) == before


def test_nothing_is_written_without_a_round(finished: FinishedRun, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="too small for a single round: give more force evaluations"):
        write_results(tmp_path, new_sampler(finished.system), "openmm-sgm run")
    assert not list(tmp_path.iterdir())


def test_columns_of_ledger_in_state_and_in_results_agree(finished: FinishedRun) -> None:
    with (finished.folder / "state" / "ledger-4.csv").open(newline="") as file:
        saved = list(csv.reader(file))
    with (finished.folder / "ledger.csv").open(newline="") as file:
        assert list(csv.reader(file)) == saved
