"""``resvae study shortcuts``: what goes around the branch (He 2016, table 1; He 2015's options A, B, C)."""

from typing import Any

from resvae.studies.variants import Study, Variant

GATE = -6.0  # where its bias starts: the best of He 2016
# In what it differs from the first, and the test error in % of ResNet-110 on CIFAR-10.
REPORTED: dict[str, tuple[dict[str, Any], str | None]] = {
    "A identity": ({}, "6.61"),
    "B projection": ({"shortcut": "projection"}, None),
    "C projection everywhere": ({"shortcut": "projection_everywhere"}, "12.22"),
    "constant 0.5": ({"merge": "half"}, "12.35"),
    "exclusive gate": ({"merge": "highway", "gate_bias": GATE}, "8.70"),
    "shortcut-only gate": ({"merge": "shortcut_gate", "gate_bias": GATE}, "6.91"),
    "none": ({"merge": "none"}, "fails"),
}
SHORTCUTS = [
    Variant(name, {"shortcut": "zero_pad", "merge": "sum"} | block, {"reported ResNet-110 test error, %": reported})
    for name, (block, reported) in REPORTED.items()
]
STUDY = Study("shortcuts", "the seven kinds of shortcut", lambda _: SHORTCUTS, "configs/he_resnet110.yaml", "110")
main = STUDY.main
