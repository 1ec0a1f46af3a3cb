"""The backbones, as tables: one entry each, and nothing else to write for a model of a known family."""

from .general import GENERAL
from .own_networks import OWN_NETWORKS
from .pathology import PATHOLOGY
from .vision_language import VISION_LANGUAGE

# those that are not of pathology come last, whichever table they are in
ENTRIES = sorted(
    (*GENERAL, *PATHOLOGY, *OWN_NETWORKS, *VISION_LANGUAGE), key=lambda entry: not entry.domain.startswith("pathology")
)
