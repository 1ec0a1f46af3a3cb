"""ResNets of torchvision's layout, whole or cut after one of their four stages."""

from torch import Tensor, nn

from ..backbone import Backbone

UNUSED = r"(?!)"  # nothing: what a cut network leaves out, `rename` takes away


def create(backbone: Backbone) -> nn.Module:
    """timm's ResNet without classifier, with the first `stages` of its stages (an option; 4 when absent), not yet
    filled.
    """
    import timm

    options = {name: value for name, value in backbone.options.items() if name != "stages"}
    network = timm.create_model(backbone.arch, pretrained=False, num_classes=0, **options)
    for name in _cut(backbone):
        setattr(network, name, nn.Identity())
    return network


def rename(backbone: Backbone, state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Torchvision's names are timm's. A cut network takes the file of the whole one, classifier and all; a file with
    the last stage but no classifier is that of another training, and is left as it is, to be refused.
    """
    if not _cut(backbone) or "fc.weight" not in state:
        return state
    return {name: value for name, value in state.items() if name.partition(".")[0] not in (*_cut(backbone), "fc")}


def _cut(backbone: Backbone) -> list[str]:
    return [f"layer{stage}" for stage in range(backbone.options.get("stages", 4) + 1, 5)]
