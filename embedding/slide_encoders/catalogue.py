"""The slide encoders, as their authors published them.

Sources: the model cards and code of the models' own repositories; the tools that run them, where those say more.
"""

from .encoder import SlideEncoder

_MIL_LAB = "https://arxiv.org/abs/2506.09022"

ENTRIES = (
    SlideEncoder(
        "mean", "mean", "none:", None, licence="none needed", paper="https://arxiv.org/abs/1802.04712",
        notes="the baseline: the mean of all tiles' embeddings, of any backbone",
    ),
    SlideEncoder(
        "titan", "titan", "hf-hub:MahmoodLab/TITAN", 768, backbone="conch-v1.5", tile_dim=768, tile_px=512, mpp=(0.5,),
        coordinates="level0", precision="fp16", gated=True, remote_code=True,
        revision="dac6773d9961cfc75503440676ff157a2c6e8d2e",
        licence="CC-BY-NC-ND-4.0", paper="https://arxiv.org/abs/2411.19666",
        notes="its attention bias holds a number for every pair of tiles and head: memory grows with their square",
    ),
    SlideEncoder(
        "prism", "prism", "hf-hub:paige-ai/Prism", 1280, backbone="virchow", variant="cls+mean", tile_dim=2560,
        tile_px=224, mpp=(0.5,), precision="fp16", gated=True, remote_code=True,
        revision="b5ef311e78a0811c71ecf618f6f7140e9ebb5fc6",
        licence="CC-BY-NC-ND-4.0", paper="https://arxiv.org/abs/2405.10254",
        notes="image_embedding; the latents are left out. Its code was written for transformers 4.42 and needs the "
        "packages environs and sacremoses",
    ),
    SlideEncoder(
        "gigapath-slide", "longnet", "hf-hub:prov-gigapath/prov-gigapath", 768, file="slide_encoder.pth",
        revision="eba85dd46097c3eedfcc2a3a9a930baecb6bcc19",
        backbone="prov-gigapath", variant="cls", tile_dim=1536, tile_px=256, mpp=(0.5,), coordinates="grid",
        precision="fp16", gated=True, licence="Apache-2.0 with conditions",
        paper="https://doi.org/10.1038/s41586-024-07441-w",
        options={
            "width": 768, "depth": 12, "heads": 16, "hidden": 3072, "places": 1000,
            "segments": (1024, 5792, 32768, 185363, 1048576), "ratios": (1, 2, 4, 8, 16),
        },
        notes="the class token after the last layer and both norms, as the authors' README calls it; their demo leaves "
        "out the encoder's own norm, TRIDENT takes the mean of the tokens after layer 11",
    ),
    SlideEncoder(
        "chief-slide", "chief", "file:https://drive.google.com/file/d/10bJq_ayX97_1w95omN8_mESrYAGIBAPb", 768,
        file="CHIEF_pretraining.pth", sha256="6a46d200b32a65e5ce4774611b889b5f1bbf7a39f9111321a2a1b5dbdb9996b8",
        backbone="chief-ctranspath", tile_dim=768, tile_px=256, mpp=(1.0,),
        licence="AGPL-3.0", paper="https://doi.org/10.1038/s41586-024-07894-z",
        options={"hidden": 512, "attention": 256},
        notes="WSI_feature: the attention's mean of the tiles' own embeddings; no organ's text is added, as that is "
        "only for the authors' classifier",
    ),
    SlideEncoder(
        "madeleine", "madeleine", "hf-hub:MahmoodLab/madeleine", 512, file="model.pt", backbone="conch",
        tile_dim=512, tile_px=256, mpp=(1.0,), precision="bf16", gated=True, licence="CC-BY-NC-ND-4.0",
        paper="https://arxiv.org/abs/2408.02859", options={"hidden": 512, "heads": 4},
        notes="the H&E encoder; trained on breast; its repository says CC-BY-NC-ND, its page on the hub MIT",
    ),
    SlideEncoder(
        "feather", "feather", "hf-hub:MahmoodLab/abmil.base.conch_v15.pc108-24k", 512, file="model.safetensors",
        revision="423c894c738294e8b0ac38938108180a2c21dd43",
        backbone="conch-v1.5", tile_dim=768, tile_px=512, mpp=(0.5,), gated=True, licence="CC-BY-NC-ND-4.0",
        paper=_MIL_LAB, options={"hidden": 512, "attention": 384},
    ),
    SlideEncoder(
        "feather-uni2", "feather", "hf-hub:MahmoodLab/abmil.base.uni_v2.pc108-24k", 512, file="model.safetensors",
        backbone="uni2-h", variant="cls", tile_dim=1536, tile_px=256, mpp=(0.5,), gated=True,
        licence="CC-BY-NC-ND-4.0", paper=_MIL_LAB, options={"hidden": 512, "attention": 384},
    ),
)  # fmt: skip
