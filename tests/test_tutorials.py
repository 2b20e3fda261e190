"""Every tutorial runs to its end as it stands, with a small network, a short training and a small budget."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from openmm_sgm.networks import NetworkOptions
from openmm_sgm.options import SamplerOptions
from openmm_sgm.sampler import ScoreSampler
from openmm_sgm.training import TrainingOptions

TUTORIALS = sorted((Path(__file__).parents[1] / "tutorials").glob("*.py"))
QUICK = SamplerOptions(
    pull_steps=40,
    equilibration_steps=20,
    exploration_steps=40,
    md_steps=20,
    density_error=1.0,
    exploration_training_steps=50,
    training=TrainingOptions(steps=300, batch_size=256, check_every=50, rows=2000),
    network=NetworkOptions(width=64, hidden=48, conditioning=16),
)


def test_there_are_tutorials() -> None:
    assert TUTORIALS


@pytest.mark.filterwarnings("ignore::openmm_sgm.HiddenStateWarning")  # with so little of everything
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    start, run, step = ScoreSampler.__init__, ScoreSampler.run, ScoreSampler.step

    def quick_start(self: ScoreSampler, *args: Any, **kwargs: Any) -> None:
        start(self, *args, **{**kwargs, "options": QUICK, "workers": 0})

    def quick_run(self: ScoreSampler, force_evaluations: int) -> None:
        run(self, min(force_evaluations, 80_000))

    def quick_step(self: ScoreSampler, simulation: Any, steps: int) -> Any:
        return step(self, simulation, min(steps, 1000))

    monkeypatch.setattr(ScoreSampler, "__init__", quick_start)
    monkeypatch.setattr(ScoreSampler, "run", quick_run)
    monkeypatch.setattr(ScoreSampler, "step", quick_step)
    runpy.run_path(str(path), run_name="__main__")
    printed = capsys.readouterr().out
    assert "kJ/mol" in printed
