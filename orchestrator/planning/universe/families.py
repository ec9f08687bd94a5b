"""The family of an architecture: cnn, transformer, mlp or hybrid.

The family depends on how information is mixed between positions of the image:

* cnn: convolution, or another fixed local window (pooling), with at most attention over channels in addition;
* transformer: attention between positions in every stage, with any patch embedding or position encoding;
* mlp: dense layers over positions;
* hybrid: stages of more than one kind, or a kind that is none of these (recurrence, state spaces).

timm's modules have one family each, except those of `EXCEPTIONS`. The paper's Tables 5 and 6 agree for every model but
MixNet, which Table 5 prints as an MLP. MixNet is a convolutional network with
kernels of several sizes in a layer (Tan and Le 2019), and is a cnn here.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

from kt_study.errors import UnknownModelError

FAMILIES = ("cnn", "transformer", "mlp", "hybrid")

_MODULES_OF = {
    "cnn": """
        byobnet convmixer convnext cspnet cspnext densenet dla dpn efficientnet fasternet focalnet ghostnet
        hardcorenas hgnet hrnet inception_next inception_resnet_v2 inception_v3 inception_v4 lcnetv2 mambaout
        mobilenetv3 nasnet nfnet pnasnet rdnet regnet repghost repvit res2net resnest resnet resnetv2 rexnet
        selecsls senet sknet starnet tresnet vgg vovnet xception xception_aligned
    """,
    "transformer": """
        beit cait coat convit crossvit davit deepseek_vit deit eva gcvit gemma4_vit hiera hieradet_sam2 mvitv2
        naflexvit nest pit pvt_v2 qwen3_vit swin_transformer swin_transformer_v2 swin_transformer_v2_cr tnt
        twins vision_transformer vision_transformer_relpos vision_transformer_sam volo xcit
    """,
    "mlp": "mlp_mixer",
    "hybrid": """
        byoanet cpubone csatv2 edgenext efficientformer efficientformer_v2 efficientvim efficientvit_mit
        efficientvit_msra fastvit iformer levit lowformer maxxvit metaformer mobilenetv5 mobilevit nextvit
        sequencer shvit swiftformer tiny_vit visformer vision_transformer_hybrid vitamin
    """,
}

FAMILY_OF_MODULE = {module: family for family, modules in _MODULES_OF.items() for module in modules.split()}
"""timm's module name (the last part of `timm.models.<module>`) to family."""

EXCEPTIONS = (
    ("byobnet", "bat_resnext*", "hybrid"),  # non-local (bilinear) attention between positions
    ("fastvit", "fastvit_t*", "cnn"),  # RepMixer in every stage; the sa and ma variants end in attention
    ("fastvit", "fastvit_s12", "cnn"),
    ("lowformer", "lowformer_e[12]", "cnn"),  # built with attention switched off
    ("metaformer", "convformer*", "cnn"),
    ("metaformer", "poolformer*", "cnn"),
    ("mobilenetv3", "mobilenetv4_hybrid*", "hybrid"),
)
"""(module, glob over architectures, family) for modules with several families; the first match counts."""


def family_of(architecture: str, module: str) -> str:
    """The family of a timm architecture.

    Raises:
        UnknownModelError: `module` has no family yet.
    """
    for mixed, glob, family in EXCEPTIONS:
        if module == mixed and fnmatchcase(architecture, glob):
            return family
    try:
        return FAMILY_OF_MODULE[module]
    except KeyError:
        raise UnknownModelError(
            f"{architecture}: timm's module {module} has no family; add it to orchestrator/planning/universe/families.py"
        ) from None
