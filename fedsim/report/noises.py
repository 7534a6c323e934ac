"""Which noise scale is which, in words. Three are measured, of three kinds of average, and only words keep them apart.

With V = E|G_c - G|^2, G_c being client c's mean gradient: over all clients the trace is E tr(Sigma_c) + V and the signal E|G_c|^2 - V,
within clients they are without V.
"""

WATCHED = (
    "Within clients it counts examples: how a client's own examples differ, which is what its mini-batches average. Between clients it"
    " counts clients: how the updates of a round differ. A study of batch sizes measures a third, over all clients together."
)
"""Of what a run's monitor measures."""
ADVISED = (
    "Noise is that of the later half of the rounds; a report has it over all. Within clients: how a client's own examples differ. Between"
    " them: how their updates do. A study's is over all clients' examples together, and larger where clients hold unlike data: to it, what"
    " lies between their mean gradients is noise too, and no signal."
)
"""Of what ``fedsim advise`` goes by."""
STUDIED = (
    "This noise scale is over all clients: how examples of all of them together differ, as if one computer held them. A run's monitor and"
    " “fedsim advise” have that within clients, of a client's own examples, which are what its mini-batches average."
)
"""Of what a study measures."""
LARGER = (
    "Where clients hold unlike data, that over all clients is larger than that within: what lies between their mean gradients is noise to"
    " the one and not to the other, and is missing from its signal."
)
