"""Configuration: YAML, protocols, resolved experiments, machine settings. Imports no torch."""

from segbench.config.experiment import Experiment, Resolved, resolve
from segbench.config.machine import Machine, machine_settings
from segbench.config.protocol import Protocol, load_protocol, protocol_names
from segbench.config.yaml import dump_yaml, load_yaml, parse_scalar

__all__ = [
    "Experiment",
    "Machine",
    "Protocol",
    "Resolved",
    "dump_yaml",
    "load_protocol",
    "load_yaml",
    "machine_settings",
    "parse_scalar",
    "protocol_names",
    "resolve",
]
