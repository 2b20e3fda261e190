"""The methods paragraph of a report, with its references, ready to be pasted."""

from __future__ import annotations

from .figures import RunData
from .pages import copied_text

__all__ = ["methods"]

OPENMM = (
    "P. Eastman et al., OpenMM 8: molecular dynamics simulation with machine learning potentials, J. Phys. Chem. B "
    "128, 109–116 (2024)",
    "10.1021/acs.jpcb.3c06662",
)
CRABTREE = (
    "E. R. Crabtree, J. M. Bello-Rivas, I. G. Kevrekidis, Micro-macro consistency in multiscale modeling: score-based "
    "model assisted sampling of fast/slow dynamical systems, Chaos 34, 053110 (2024)",
    "10.1063/5.0190899",
)
SONG = (
    "Y. Song et al., Score-based generative modeling through stochastic differential equations, ICLR (2021)",
    "10.48550/arXiv.2011.13456",
)
MBAR = (
    "M. R. Shirts, J. D. Chodera, Statistically optimal analysis of samples from multiple equilibrium states, J. Chem. "
    "Phys. 129, 124105 (2008)",
    "10.1063/1.2978177",
)
MDTRAJ = (
    "R. T. McGibbon et al., MDTraj: a modern open library for the analysis of molecular dynamics trajectories, "
    "Biophys. J. 109, 1528–1532 (2015)",
    "10.1016/j.bpj.2015.08.015",
)


def methods(run: RunData) -> str:
    """Return the paragraph and its numbered references as HTML, with a button that copies both."""
    names = " and ".join(str(cv["name"]) for cv in run.cvs)
    cited: list[tuple[str, str]] = []

    def cite(reference: tuple[str, str]) -> str:
        if reference not in cited:
            cited.append(reference)
        return f"[{cited.index(reference) + 1}]"

    versions, cost = run.result["versions"], run.result["force_evaluations"]
    text = (
        f"Umbrella windows over {names} at {run.about['temperature_k']:g} K were simulated with OpenMM "
        f"{versions.get('openmm', '')} {cite(OPENMM)}. A score-based generative model of whole configurations, "
        f"conditioned on the window, was trained on their frames and forces, after Crabtree, Bello-Rivas and "
        f"Kevrekidis {cite(CRABTREE)}; its exact density comes from the probability-flow ODE {cite(SONG)}. Generated "
        "configurations entered the windows by Metropolis tests with that density. The surface combines MBAR "
        f"{cite(MBAR)} over simulated frames with the generated configurations' importance weights; errors are "
        "standard errors from a block bootstrap."
    )
    if run.basins:
        text += (
            " Basins were assigned by steepest descent on the surface's bins, and joined where the barrier between "
            "them was lower than kT or twice its standard error."
        )
    text += (
        f" In all {cost['total']:,} force evaluations were spent. Collective variables were computed with mdtraj "
        f"{cite(MDTRAJ)}. The program was openmm_sgm {versions.get('openmm_sgm', '')}."
    )
    references = [f"[{k}] {what}. doi:{doi}" for k, (what, doi) in enumerate(cited, 1)]
    return copied_text("methods", " ".join(text.split()), references)
