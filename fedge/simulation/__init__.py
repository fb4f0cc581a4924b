"""Both machines on a virtual clock, without a network."""

from fedge.errors import SimulationError
from fedge.simulation.simulate import Simulation, SimulationResult, simulate
from fedge.simulation.world import Link, Trainer, World

__all__ = ["Link", "Simulation", "SimulationError", "SimulationResult", "Trainer", "World", "simulate"]
