"""The zoo: all public networks that folding is tried on, in one table."""

from __future__ import annotations

from benches.zoo import ecg, eeg, medical, seismic, shown, speech, timeseries
from benches.zoo.network import Network

NETWORKS: tuple[Network, ...] = (
    *shown.NETWORKS,
    *speech.NETWORKS,
    *timeseries.NETWORKS,
    *eeg.NETWORKS,
    *ecg.NETWORKS,
    *seismic.NETWORKS,
    *medical.NETWORKS,
)


def named(name: str) -> Network:
    """Return the network called ``name``. Raises ValueError with all names if there is none."""
    for network in NETWORKS:
        if network.name == name:
            return network
    raise ValueError(f"no network {name!r} in the zoo; there are {', '.join(network.name for network in NETWORKS)}")
