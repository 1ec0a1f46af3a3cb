"""All backbones by name. A new one is an entry in catalogue/; the loader, the command line's choices and the contract
test read this table.
"""

from difflib import get_close_matches

from wsi.errors import BackboneError

from .backbone import Backbone
from .catalogue import ENTRIES

DEFAULT_BACKBONE = "efficientnet-lite0"  # ImageNet photographs, not pathology: the default because it works offline

BACKBONES: dict[str, Backbone] = {backbone.name: backbone for backbone in ENTRIES}


def find_backbone(name: str, variant: str | None = None) -> Backbone:
    """The entry called `name`, of that variant. Raises BackboneError naming the nearest."""
    if name in BACKBONES:
        return BACKBONES[name].variant(variant)
    from .slide_encoders import SLIDE_ENCODERS  # it reads this module

    if name in SLIDE_ENCODERS:
        remedy = f"give it to `wsi encode --encoder {name}`, with embeddings of its backbone"
        raise BackboneError(name, "it is a slide encoder: it takes embeddings, not tiles", remedy)
    near = get_close_matches(name, BACKBONES, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else "choose one of " + ", ".join(BACKBONES)
    raise BackboneError(name, "there is no backbone of this name", hint)
