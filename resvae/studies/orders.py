"""``resvae study orders``: the five orders of normalisation and activation in a block (He 2016, figure 4, table 2)."""

from resvae.studies.variants import Study, Variant

# Test error in %, ResNet-110 and ResNet-164 on CIFAR-10.
REPORTED = {
    "original": (6.61, 5.93),
    "norm_after_add": (8.17, 6.50),
    "relu_before_add": (7.84, 6.14),
    "relu_only_pre": (6.71, 5.91),
    "full_pre": (6.37, 5.46),
}
ORDERS = [
    Variant(order, {"order": order}, {"reported ResNet-110 test error, %": a, "reported ResNet-164 test error, %": b})
    for order, (a, b) in REPORTED.items()
]
TOLD = "networks of the five block orders (without normalisation, as VAEs are by default, they are but three)"
STUDY = Study("orders", TOLD, lambda _: ORDERS, "configs/he_resnet110.yaml", "110")
main = STUDY.main
