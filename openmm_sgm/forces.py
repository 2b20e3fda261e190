"""Small readers of OpenMM forces."""

from __future__ import annotations

import openmm

__all__ = ["parameter_names", "set_default_parameters"]


def parameter_names(force: openmm.Force) -> list[str]:
    if not hasattr(force, "getNumGlobalParameters"):
        return []
    return [force.getGlobalParameterName(k) for k in range(force.getNumGlobalParameters())]


def set_default_parameters(force: openmm.Force, values: dict[str, float]) -> None:
    """Make a context's current global parameters the defaults of a force, and of those inside a CustomCVForce."""
    for k, name in enumerate(parameter_names(force)):
        if name in values:
            force.setGlobalParameterDefaultValue(k, values[name])
    if isinstance(force, openmm.CustomCVForce):
        for k in range(force.getNumCollectiveVariables()):
            set_default_parameters(force.getCollectiveVariable(k), values)
