"""The Triton kernels of sampling. Programs are tiles of the vocabulary; the last to end goes on with all of them.

What a token lies under the best is its distance. The tokens in a draw are always the nearest ones, of equal ones those
of lowest id: a limit (the greatest distance, and how many of it) says which. Weights are whole numbers of 2**-42, whose
sums are the same in any order.
"""

from __future__ import annotations

from edgemem.kernels.cuda import launching  # noqa: F401  # sets the environment that triton reads

import triton  # isort: skip
import triton.language as tl  # isort: skip
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait  # isort: skip

# Places in `settings` (float64) and in `state` (int64).
TEMPERATURE, TOP_P, LOG_MIN_P, PENALTY = (tl.constexpr(place) for place in range(4))
TOP_K, SEED, DRAWS, LIMIT, TIES, BASE, PREFIX, WANTED = (tl.constexpr(place) for place in range(8))
# Places in `survey` (float32): greatest logit after the penalty, log of the sum of exponentials without one, finite.
BEST, LOG_SUM, FINITE = (tl.constexpr(place) for place in range(3))

BINS = tl.constexpr(2048)  # of a level: see `narrow`
LEVELS = 4
BINS_A_NAT = tl.constexpr(64)
UNIT = tl.constexpr(float(1 << 42))  # of weights: sums stay under 2**63 for 2**20 tokens
INFINITE = tl.constexpr(0x7F800000)  # bits of the float32 infinity
ALL = tl.constexpr(0x7FFFFFFF)


@triton.jit
def survey_logits(
    logits, seen, settings, state, survey, tiles, counter, token, drawn, surprisal, position, vocabulary,
    TILE: tl.constexpr, TILES_WIDE: tl.constexpr, PENALISED: tl.constexpr, DRAWING: tl.constexpr,
    SURPRISAL: tl.constexpr, POSITION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The best token, and whether all is finite; without a draw it is the one chosen. tiles (5, TILES_WIDE) float32."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    tile = tl.program_id(0)
    ids = tile * TILE + tl.arange(0, TILE)
    raw = tl.load(logits + ids, ids < vocabulary, float("-inf"))
    own = penalised(raw, seen, settings, ids, vocabulary, PENALISED)
    best, top = tl.max(own, 0), tl.max(raw, 0)
    base = tl.where(tl.abs(top) < float("inf"), top, -1e30)
    own_results = tiles + tile
    tl.store(own_results, best)
    tl.store(own_results + TILES_WIDE, tl.min(tl.where(own == best, ids, ALL), 0).to(tl.float32, bitcast=True))
    tl.store(own_results + 2 * TILES_WIDE, base)
    tl.store(own_results + 3 * TILES_WIDE, tl.sum(tl.exp(tl.minimum(raw - base, 0.0)), 0))
    tl.store(own_results + 4 * TILES_WIDE, tl.sum(tl.where(tl.abs(own) >= 0, 0.0, 1.0), 0))
    if is_last(counter):
        choice, finite, log_sum = best_of_tiles(state, survey, tiles, tl.cdiv(vocabulary, TILE), TILES_WIDE)
        if not DRAWING:
            finish(
                choice, finite, log_sum, logits, seen, token, drawn, surprisal, position, vocabulary,
                PENALISED, SURPRISAL, POSITION,
            )  # fmt: skip


@triton.jit
def best_of_tiles(state, survey, tiles, count, TILES_WIDE: tl.constexpr):
    """(best token, whether all is finite, log of the sum of exponentials); all tokens are within the limit again."""
    places = tl.arange(0, TILES_WIDE)
    held = places < count
    results = tiles + places
    bests = tl.load(results, held, float("-inf"), cache_modifier=".cg")
    firsts = tl.load(results + TILES_WIDE, held, 0.0, cache_modifier=".cg").to(tl.int32, bitcast=True)
    bases = tl.load(results + 2 * TILES_WIDE, held, float("-inf"), cache_modifier=".cg")
    sums = tl.load(results + 3 * TILES_WIDE, held, 0.0, cache_modifier=".cg")
    bad = tl.sum(tl.load(results + 4 * TILES_WIDE, held, 0.0, cache_modifier=".cg"), 0)
    best, base = tl.max(bests, 0), tl.max(bases, 0)
    choice = tl.min(tl.where(held & (bests == best), firsts, ALL), 0)
    log_sum = tl.log(tl.sum(sums * tl.exp(bases - base), 0)) + base
    is_sound = (bad == 0) & (tl.abs(best) < float("inf"))
    finite = is_sound.to(tl.float32)
    tl.store(survey + BEST, tl.where(is_sound, best, 0.0))
    tl.store(survey + LOG_SUM, log_sum)
    tl.store(survey + FINITE, finite)
    tl.store(state + LIMIT, INFINITE)
    tl.store(state + TIES, ALL)
    return choice, finite, log_sum


@triton.jit
def narrow(
    logits, seen, settings, state, survey, bins, counter, vocabulary,
    LEVEL: tl.constexpr, WEIGHED: tl.constexpr, TILE: tl.constexpr, PENALISED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One level of the search for the limit: of so many tokens, or of so much of the weight.

    Level 0 counts in bins of 1/64 of distance, the others in ever finer ranges of the bits of the bin that held the
    limit: 2**20 of them, 2**10, one. bins (BINS,) int64, left at zero.
    """
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    ids = tl.program_id(0) * TILE + tl.arange(0, TILE)
    best = tl.load(survey + BEST)
    limit = tl.load(state + LIMIT).to(tl.int32)
    base, prefix = tl.load(state + BASE).to(tl.int32), tl.load(state + PREFIX).to(tl.int32)
    key = distance(logits, seen, settings, best, ids, vocabulary, PENALISED)
    place, is_within = bin_of(key, base, prefix, LEVEL)
    is_within &= ids < vocabulary
    if WEIGHED:
        is_within &= key < limit
    amount = weight_of(key, 1.0) if WEIGHED else tl.full((TILE,), 1, tl.int64)
    tl.atomic_add(bins + place, amount, is_within, sem="relaxed")
    if is_last(counter):
        narrow_limit(settings, state, bins, limit, base, prefix, LEVEL, WEIGHED)


@triton.jit
def narrow_limit(settings, state, bins, limit, base, prefix, LEVEL: tl.constexpr, WEIGHED: tl.constexpr):
    """The bin in which the amount wanted is reached; at the last level that is the limit."""
    places = tl.arange(0, BINS)
    amounts = tl.load(bins + places, cache_modifier=".cg")
    tl.store(bins + places, tl.zeros((BINS,), tl.int64))
    ties = tl.load(state + TIES)
    if WEIGHED:  # those at the limit so far, as many as are in the draw
        at_limit, is_within = bin_of(limit, base, prefix, LEVEL)
        amount = tl.where(is_within & (limit < INFINITE), ties * weight_of(limit, 1.0), 0)
        amounts += tl.where(places == at_limit, amount, 0)
    if LEVEL > 0:
        wanted = tl.load(state + WANTED)
    elif WEIGHED:
        share = tl.load(settings + TOP_P) * tl.sum(amounts, 0).to(tl.float64)
        wanted = tl.maximum(tl.ceil(share).to(tl.int64), 1)
    else:
        wanted = tl.load(state + TOP_K)
    sums = tl.cumsum(amounts, 0)
    place = tl.minimum(tl.sum((sums < wanted).to(tl.int32), 0), BINS - 1)
    wanted -= tl.sum(tl.where(places < place, amounts, 0), 0)
    if LEVEL == 0:
        tl.store(state + BASE, (place.to(tl.float32) / BINS_A_NAT).to(tl.int32, bitcast=True).to(tl.int64))
    elif LEVEL < 3:
        tl.store(state + PREFIX, (place if LEVEL == 1 else prefix * 1024 + place).to(tl.int64))
    else:
        limit = base + prefix * 1024 + place
        if WEIGHED:
            each = tl.maximum(weight_of(limit, 1.0), 1)
            wanted = (wanted + each - 1) // each
        tl.store(state + LIMIT, limit.to(tl.int64))
        tl.store(state + TIES, wanted)
    tl.store(state + WANTED, wanted)


@triton.jit
def draw(
    logits, seen, settings, state, survey, weights, ties, counter, token, drawn, surprisal, position, vocabulary,
    TILE: tl.constexpr, TILES_WIDE: tl.constexpr, PENALISED: tl.constexpr, SURPRISAL: tl.constexpr,
    POSITION: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Walk the tokens within the limit, in order of id, until their summed weights pass this draw's share of the total.

    weights (TILES_WIDE,) int64 of the tokens nearer than the limit, ties (TILES_WIDE,) int32 of those at it.
    """
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    tile = tl.program_id(0)
    best = tl.load(survey + BEST)
    limit, most_ties = tl.load(state + LIMIT).to(tl.int32), tl.load(state + TIES)
    temperature = tl.load(settings + TEMPERATURE).to(tl.float32)
    nearest = -tl.load(settings + LOG_MIN_P).to(tl.float32)
    ids = tile * TILE + tl.arange(0, TILE)
    key = distance(logits, seen, settings, best, ids, vocabulary, PENALISED)
    is_kept = (ids < vocabulary) & (key.to(tl.float32, bitcast=True) <= nearest)
    weight = weight_of(key, temperature)
    tl.store(weights + tile, tl.sum(tl.where(is_kept & (key < limit), weight, 0), 0))
    tl.store(ties + tile, tl.sum((is_kept & (key == limit)).to(tl.int32), 0))
    if is_last(counter):
        choice = walk(
            logits, seen, settings, state, weights, ties, best, limit, most_ties, temperature, nearest, vocabulary,
            TILE, TILES_WIDE, PENALISED,
        )  # fmt: skip
        tl.store(state + DRAWS, tl.load(state + DRAWS) + 1)
        finish(
            choice, tl.load(survey + FINITE), tl.load(survey + LOG_SUM), logits, seen, token, drawn, surprisal,
            position, vocabulary, PENALISED, SURPRISAL, POSITION,
        )  # fmt: skip


@triton.jit
def walk(
    logits, seen, settings, state, weights, ties, best, limit, most_ties, temperature, nearest, vocabulary,
    TILE: tl.constexpr, TILES_WIDE: tl.constexpr, PENALISED: tl.constexpr,
):  # fmt: skip
    """The token at which the draw ends: first its tile, then its place there."""
    tiles = tl.arange(0, TILES_WIDE)
    held = tiles < tl.cdiv(vocabulary, TILE)
    own_ties = tl.load(ties + tiles, held, 0, cache_modifier=".cg").to(tl.int64)
    ties_before = tl.cumsum(own_ties, 0) - own_ties
    taken = tl.minimum(tl.maximum(most_ties - ties_before, 0), own_ties)
    amounts = tl.load(weights + tiles, held, 0, cache_modifier=".cg") + taken * weight_of(limit, temperature)
    sums = tl.cumsum(amounts, 0)
    total = tl.sum(amounts, 0)
    number = uniform(tl.load(state + SEED), tl.load(state + DRAWS))
    share = tl.minimum((number * total.to(tl.float64)).to(tl.int64), total - 1)
    tile = tl.minimum(tl.sum((sums <= share).to(tl.int32), 0), tl.cdiv(vocabulary, TILE) - 1)
    start = tl.sum(tl.where(tiles < tile, amounts, 0), 0)
    before = tl.sum(tl.where(tiles < tile, own_ties, 0), 0)
    ids = tile * TILE + tl.arange(0, TILE)
    key = distance(logits, seen, settings, best, ids, vocabulary, PENALISED)
    is_kept = (ids < vocabulary) & (key.to(tl.float32, bitcast=True) <= nearest)
    is_tie = (is_kept & (key == limit)).to(tl.int64)
    is_taken = (is_tie == 1) & (before + tl.cumsum(is_tie, 0) <= most_ties)
    weight = tl.where((is_kept & (key < limit)) | is_taken, weight_of(key, temperature), 0)
    place = tl.sum((start + tl.cumsum(weight, 0) <= share).to(tl.int32), 0)
    return tl.minimum(tile * TILE + place, vocabulary - 1)


@triton.jit
def finish(
    choice, finite, log_sum, logits, seen, token, drawn, surprisal, position, vocabulary,
    PENALISED: tl.constexpr, SURPRISAL: tl.constexpr, POSITION: tl.constexpr,
):  # fmt: skip
    """The token chosen, for the next step and for the host; no token is ever outside the vocabulary."""
    is_sound = (finite > 0) & (choice < vocabulary)
    choice = tl.where(is_sound, choice, 0)
    tl.store(token, choice)
    tl.store(drawn, tl.where(is_sound, choice, -1))
    if SURPRISAL:
        tl.store(surprisal, log_sum - tl.load(logits + choice))
    if PENALISED:
        tl.store(seen + choice, 1)
    if POSITION:
        tl.store(position, tl.load(position) + 1)


@triton.jit
def penalised(raw, seen, settings, ids, vocabulary, PENALISED: tl.constexpr):
    """Logits of tokens already seen made less likely."""
    if PENALISED:
        penalty = tl.load(settings + PENALTY).to(tl.float32)
        is_seen = tl.load(seen + ids, ids < vocabulary, 0) != 0
        raw = tl.where(is_seen, tl.where(raw > 0, tl.div_rn(raw, penalty + tl.zeros_like(raw)), raw * penalty), raw)
    return raw


@triton.jit
def distance(logits, seen, settings, best, ids, vocabulary, PENALISED: tl.constexpr):
    """Bits of the float32 by which a token lies under the best: integers in the same order, at most INFINITE."""
    raw = tl.load(logits + ids, ids < vocabulary, float("-inf"))
    under = tl.abs(best - penalised(raw, seen, settings, ids, vocabulary, PENALISED))  # -0 would be the least integer
    return tl.where(under >= 0, tl.minimum(under.to(tl.int32, bitcast=True), INFINITE), INFINITE)


@triton.jit
def weight_of(key, temperature):
    """exp(-distance / temperature) in units of 2**-42."""
    under = key.to(tl.float32, bitcast=True)
    return (tl.exp(-tl.div_rn(under, temperature + tl.zeros_like(under))) * UNIT).to(tl.int64)


@triton.jit
def bin_of(key, base, prefix, LEVEL: tl.constexpr):
    """A key's bin at this level, and whether it lies in the range that the levels before have left."""
    scaled = key.to(tl.float32, bitcast=True) * BINS_A_NAT
    if LEVEL == 0:
        place, is_within = tl.minimum(scaled, BINS - 1).to(tl.int32), key >= 0
    else:
        beyond = key - base
        is_within = tl.minimum(scaled, BINS - 1).to(tl.int32) == (base.to(tl.float32, bitcast=True) * BINS_A_NAT).to(
            tl.int32
        )
        if LEVEL == 1:
            place = beyond >> 20
        elif LEVEL == 2:
            place, is_within = (beyond >> 10) & 1023, is_within & (beyond >> 20 == prefix)
        else:
            place, is_within = beyond & 1023, is_within & (beyond >> 10 == prefix)
    return place, is_within


@triton.jit
def uniform(seed, draws):
    """Number `draws` of the stream `seed`, in [0, 1): see uniform in runtime/sampling.py."""
    mixed = seed.to(tl.uint64, bitcast=True) + (draws + 1).to(tl.uint64, bitcast=True) * 0x9E3779B97F4A7C15
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB
    return ((mixed ^ (mixed >> 31)) >> 11).to(tl.float64) * 1.1102230246251565e-16


@triton.jit
def is_last(counter):
    """Whether this program is the last one to come here. All that the others stored before may then be read."""
    tl.debug_barrier()  # all threads' stores come before the one thread's atomic
    came = tl.atomic_add(counter, 1, sem="acq_rel") == tl.num_programs(0) - 1
    if came:
        tl.store(counter, 0)
    return came
