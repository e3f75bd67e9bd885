"""The time of the three forms of Fig. 3, which compute the same."""

import numpy as np

from ...modeling.blocks import FORMS
from ..engines import choose_engine
from .measure import in_turn
from .networks import Networks, bottom_up, bottom_up_name
from .sides import compile_submodule, title_of, without_gradients


def time_forms(networks: Networks) -> dict[str, dict[str, float]]:
    """Time the backbone in each form, eager and compiled by the fastest engine in float32.

    Returns:
        Of each form the median seconds, "eager" and by the title of the compiled side.
    """
    settings = networks.settings
    engine = choose_engine()
    images = networks.normalised(networks.image[None])
    calls = {}
    for form in FORMS:
        model = networks.ours_in_form(form)
        eager = without_gradients(bottom_up(model))
        compiled = compile_submodule(model, bottom_up_name(model), engine, "f32")
        calls[form, "eager"] = lambda function=eager: function(images)
        calls[form, title_of(engine)] = lambda function=compiled: function(images)
    seconds = in_turn(calls, settings.repeats, max(settings.warmup, 1))
    return {
        form: {how: float(np.median(seconds[form, how])) for how in ("eager", title_of(engine))}
        for form in FORMS
    }
