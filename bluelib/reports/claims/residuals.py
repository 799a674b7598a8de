"""Claims of ``04_residuals``."""

from __future__ import annotations

import pandas as pd

from . import Claim, Numbers, above, below
from .wording import band, listed, ordered, published_layers, published_single_layers, rises


class View:
    """The two residuals at each layer, the last critical one at the end.

    Attributes:
        distributed, direct: their contributions.
        cosine, deviation: means of the two residuals' cosine and of their deviation, by layer.
        trend: by measure, how much it falls, or grows, from the layer before the last to the first.
        steps: the steps that a layer needs once those before it are updated; ``drop`` is the share of the first layer's
            that the second is spared. They are those of the first batch's ``at_once`` edits.
        of_direct, of_distributed: mean efficacy of single-layer editing before the last layer; ``times`` is the ratio.
        gains: the paired differences in efficacy, by layer.
    """

    def __init__(self, numbers: Numbers) -> None:
        contribution = ordered(numbers, "contributions", "layer")
        self.distributed, self.direct = (
            contribution[contribution.residual == kind] for kind in ("distributed", "direct")
        )
        compared = ordered(numbers, "compared", "layer")
        self.cosine, self.deviation = (
            compared[compared.measure == measure]["mean"].tolist() for measure in ("cosine", "deviation")
        )
        self.trend = pd.DataFrame(numbers["trend"]).set_index("measure")
        about = numbers["parameters"]
        self.at_once = min(about["edits"], about["batch_size"])
        self.steps = ordered(numbers, "steps", "layer")
        first, second = self.steps["mean"].iloc[:2]
        self.drop = 1 - second / first if first else 0.0
        single = pd.DataFrame(numbers["single_layer"])
        efficacy = single[single.metric == "efficacy"].pivot(index="layer", columns="residual", values="mean").iloc[:-1]
        self.of_direct, self.of_distributed = efficacy.direct.mean(), efficacy.distributed.mean()
        self.times = self.of_direct / max(self.of_distributed, 1e-9)
        differences = pd.DataFrame(numbers["single_layer_differences"])
        self.gains = differences[differences.metric == "efficacy"]


CLAIMS = (
    Claim(
        "a distributed residual contributes near 1 at the last critical layer only, under 0.7 elsewhere and under "
        "0.1 at the first",
        lambda v: f"from first to last: {listed(v.distributed['mean'])}",
        {
            "the interval of its contribution is below 0.7 at all layers before the last": (
                lambda v: min(below(v.distributed.iloc[:-1], 0.7))
            ),
            "it is below 0.1 at the first": lambda v: below(v.distributed.iloc[0], 0.1),
            "it is above 0.8 at the last": lambda v: above(v.distributed.iloc[-1], 0.8),
        },
        published=published_layers("layer_analysis", quantity="contribution_distributed"),
    ),
    Claim(
        "a direct residual contributes near 1 at every layer",
        lambda v: f"from first to last: {listed(v.direct['mean'])}",
        {
            "the interval of its contribution is above 0.8, at each layer": lambda v: above(v.direct, 0.8),
        },
        published=published_layers("layer_analysis", quantity="contribution_direct"),
    ),
    Claim(
        "the two residuals' cosine falls with distance",
        lambda v: (
            f"from first to last: {listed(v.cosine)}; from the layer before the last to the first it falls by "
            f"{band(v.trend.loc['cosine'])}"
        ),
        {
            "the mean cosine falls at every layer from the one before the last to the first": (
                lambda v: rises(v.cosine[:-1])
            ),
            "the interval of that fall from end to end is above 0": lambda v: above(v.trend.loc["cosine"]),
        },
        published=published_layers("layer_analysis", quantity="cosine"),
    ),
    Claim(
        "‖R* − R^L‖ grows with distance",
        lambda v: (
            f"from first to last: {listed(v.deviation, 1)}; from the layer before the last to the first it grows by "
            f"{band(v.trend.loc['deviation'])}"
        ),
        {
            "its mean grows at every layer from the one before the last to the first": (
                lambda v: rises(v.deviation[-2::-1])
            ),
            "the interval of that growth from end to end is above 0": lambda v: above(v.trend.loc["deviation"]),
        },
        published=published_layers("layer_analysis", quantity="deviation_norm"),
    ),
    Claim(
        "once the first layer is updated, the second needs far fewer steps, and the third fewer than 2",
        lambda v: f"steps from first to last: {listed(v.steps['mean'])}: {v.drop:.0%} fewer at the second",
        {
            "the upper end of the second layer's interval is under half of the lower end of the first's": (
                lambda v: v.steps.high.iloc[1] < 0.5 * v.steps.low.iloc[0]
            ),
            "the third layer's interval is below 2": lambda v: below(v.steps.iloc[2], 2),
        },
        published=published_layers("optimisation_steps", "mean_steps"),
        size=lambda v: f"{v.at_once} edits",
    ),
    Claim(
        "single-layer editing is more than 3 times as effective with direct residuals",
        lambda v: (
            f"mean efficacy before the last layer {v.of_direct:.1f} % direct, {v.of_distributed:.1f} % distributed "
            f"({'over 100' if v.times > 100 else f'{v.times:.1f}'} times); least paired gain "
            f"{v.gains['mean'].min():.1f} points, interval from {v.gains['low'].min():.1f}"
        ),
        {
            "mean efficacy over the layers before the last is more than 3 times as high": lambda v: v.times > 3,
            "the interval of the paired gain in efficacy is above 0 at all layers compared": (
                lambda v: min(above(v.gains))
            ),
        },
        published=published_single_layers(),
    ),
)
