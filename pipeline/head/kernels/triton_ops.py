"""The Triton programs of the head: what a block of classes goes through on a GPU, without logits in memory.

Forward, a block of n classes: `normalise` (rows to factors), `partial_logsumexp` (product, running maximum and sum in
registers; each program writes its own pair of numbers for a sample, so that the sum has one order and repeats bit for
bit). Backward: `normalise`, `softmax` (the product again; the only tensor of G × n), two matrix products, `finish_rows`
(projection, the target classes' part, then store, add, or the optimizer's update: one pass over rows and slots).

Conventions. Logits are in units of log2(e), since exp2 is the machine's own. `ROWS` holds row numbers where only some
rows take part (sampling): rows are read and written in place and never copied. `COUNT` is the number of rows that take
part, on the device: a captured graph serves any number that its blocks can hold. `D` is the embedding's width, `P` the
next power of two: what is made here has `P` columns, zeros behind `D`. The factor type is that of the tensors; float32
factors are multiplied as three TF32 products (``tf32x3``).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def normalise(
    WEIGHT,
    ROWS,
    COUNT,
    FACTORS,
    INVERSE,
    first,
    D: tl.constexpr,
    P: tl.constexpr,
    BLOCK_R: tl.constexpr,
    SAMPLED: tl.constexpr,
    UNIT: tl.constexpr,
):
    """Rows `first`… of a block to factors [n, P] (unit length if `UNIT`) and 1/‖w‖ [n] (1 if not `UNIT`)."""
    here = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = first + here < tl.load(COUNT)
    columns = tl.arange(0, P)
    row = _row_numbers(ROWS, first + here, inside, SAMPLED)
    mask = _columns_mask(inside, columns, D, P)
    weight = tl.load(WEIGHT + row[:, None] * D + columns[None, :], mask=mask, other=0.0)
    inverse = tl.full((BLOCK_R,), 1.0, tl.float32)
    if UNIT:
        inverse = 1.0 / tl.maximum(tl.sqrt(tl.sum(weight * weight, 1)), 1e-12)
        weight = weight * inverse[:, None]
    place = FACTORS + here[:, None] * P + columns[None, :]
    # Rows past the end become zeros: what is multiplied with them later needs no mask along the classes.
    tl.store(place, weight.to(FACTORS.dtype.element_ty))
    tl.store(INVERSE + here, inverse)


@triton.jit
def partial_logsumexp(
    FACTORS,
    FEATURES,
    TARGET,
    COUNT,
    MAXIMUM,
    TOTAL,
    first,
    G,
    inverse_m,
    scale,
    inverse_scale,
    P: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WARPED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Take one tile [BLOCK_G, BLOCK_R] of logits into the running `MAXIMUM` and sum of exp2 `TOTAL` [parts, G].

    Each part is the same tile of every block of classes, one program at a time: no atomics, one order. Samples are the
    tile's rows, so that the reduction runs along the accumulator's last axis. (Classes first needs 255 registers a
    thread on sm_90, samples first 91.)
    """
    part = tl.program_id(0)
    sample = tl.program_id(1) * BLOCK_G + tl.arange(0, BLOCK_G)
    here = part * BLOCK_R + tl.arange(0, BLOCK_R)
    logits = _logits(FACTORS, FEATURES, sample, here, G, P, BLOCK_G, BLOCK_R, BLOCK_K, PRECISION)
    if WARPED:
        logits = _warp(logits, inverse_m, scale, inverse_scale)
    target = tl.load(TARGET + sample, mask=sample < G, other=-1)
    left_out = (first + here[None, :] == target[:, None]) | (first + here[None, :] >= tl.load(COUNT))
    logits = tl.where(left_out, float("-inf"), logits)
    place = part * G + sample
    before = tl.load(MAXIMUM + place, mask=sample < G, other=float("-inf"))
    maximum = tl.maximum(before, tl.max(logits, 1))
    # No class seen yet: exp2(-inf - 0) is 0, exp2(-inf + inf) is not.
    shift = tl.where(maximum == float("-inf"), 0.0, maximum)
    total = tl.load(TOTAL + place, mask=sample < G, other=0.0) * tl.exp2(before - shift)
    total += tl.sum(tl.exp2(logits - shift[:, None]), 1)
    tl.store(MAXIMUM + place, maximum, mask=sample < G)
    tl.store(TOTAL + place, total, mask=sample < G)


@triton.jit
def softmax(
    FACTORS,
    FEATURES,
    TARGET,
    COUNT,
    LOGSUMEXP,
    GRAD,
    SOFTMAX,
    first,
    G,
    inverse_m,
    scale,
    inverse_scale,
    P: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    WARPED: tl.constexpr,
    DETACHED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """`SOFTMAX` [G, BLOCK] = dL/d(row · features): grad · softmax over non-target classes, times the warp's slope."""
    samples, classes = tl.cdiv(G, BLOCK_G), BLOCK // BLOCK_R
    # Tiles in groups of classes: a group's rows are read from the L2 by all samples' tiles before the next group's.
    program = tl.program_id(0)
    group = program // (GROUP * samples)
    size = min(classes - group * GROUP, GROUP)
    tile_r = group * GROUP + (program % (GROUP * samples)) % size
    tile_g = (program % (GROUP * samples)) // size
    sample = tile_g * BLOCK_G + tl.arange(0, BLOCK_G)
    here = tile_r * BLOCK_R + tl.arange(0, BLOCK_R)
    logits = _logits(FACTORS, FEATURES, sample, here, G, P, BLOCK_G, BLOCK_R, BLOCK_K, PRECISION)
    target = tl.load(TARGET + sample, mask=sample < G, other=-1)
    logsumexp = tl.load(LOGSUMEXP + sample, mask=sample < G, other=0.0)
    grad = tl.load(GRAD + sample, mask=sample < G, other=0.0)
    value = logits
    if WARPED:
        value = _warp(logits, inverse_m, scale, inverse_scale)
    probability = tl.exp2(value - logsumexp[:, None]) * grad[:, None]
    if WARPED and not DETACHED:
        probability = probability * _warp_slope(logits, inverse_m, inverse_scale)
    left_out = (first + here[None, :] == target[:, None]) | (first + here[None, :] >= tl.load(COUNT))
    probability = tl.where(left_out, 0.0, probability)
    place = SOFTMAX + sample[:, None].to(tl.int64) * BLOCK + here[None, :]
    tl.store(place, probability.to(SOFTMAX.dtype.element_ty), mask=(sample < G)[:, None])


@triton.jit
def product(
    A,
    B,
    OUT,
    M,
    N,
    K,
    stride_am,
    stride_ak,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """`OUT` [M, N] = or += A [M, K] · B [K, N]; float32 sums.

    For float32 factors: the library's product of those either rounds them to TF32 or leaves the tensor cores idle.
    """
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        a = tl.load(
            A + row[:, None].to(tl.int64) * stride_am + k[None, :].to(tl.int64) * stride_ak,
            mask=(row < M)[:, None] & (k < K)[None, :],
            other=0.0,
        )
        b = tl.load(
            B + k[:, None].to(tl.int64) * N + column[None, :],
            mask=(k < K)[:, None] & (column < N)[None, :],
            other=0.0,
        )
        total = tl.dot(a, b, total, input_precision=PRECISION)
    place = OUT + row[:, None].to(tl.int64) * N + column[None, :]
    mask = (row < M)[:, None] & (column < N)[None, :]
    if ACCUMULATE:
        total += tl.load(place, mask=mask, other=0.0)
    tl.store(place, total, mask=mask)


@triton.jit
def finish_rows(
    WEIGHT,
    MOMENTUM,
    GRAD,
    ROWS,
    COUNT,
    INVERSE,
    PRODUCT,
    TARGET_ROWS,
    TARGET_ORDER,
    TARGET_GRADS,
    RATE,
    first,
    grad_first,
    momentum,
    weight_decay,
    D: tl.constexpr,
    P: tl.constexpr,
    GRAD_WIDTH: tl.constexpr,
    BLOCK_R: tl.constexpr,
    TARGETS: tl.constexpr,
    SAMPLED: tl.constexpr,
    UNIT: tl.constexpr,
    END: tl.constexpr,
):
    """The gradient of a block's rows, finished: project, add the target classes' part, then what `END` says.

    ``store`` and ``add`` put it into `GRAD`, whose row 0 is row `grad_first` of those that take part; it may be
    `PRODUCT`, since a program reads its rows before it writes them. ``sgd`` updates rows and momentum in place:
    v ← μ v + (g + λ w); w ← w - η v, in the order of ``torch.optim.SGD``.

    `TARGET_ROWS` [TARGETS] are the rows of the batch's target classes, rising, padded with a number beyond any row;
    `TARGET_ORDER` says which sample each is of, `TARGET_GRADS` [samples, D] what reaches it through the target logit.
    Several samples of one class are added in the order of the batch: no atomics, the same bits every time.
    """
    here = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = first + here < tl.load(COUNT)
    columns = tl.arange(0, P)
    mask = _columns_mask(inside, columns, D, P)
    row = _row_numbers(ROWS, first + here, inside, SAMPLED)
    place = row[:, None] * D + columns[None, :]
    weight = tl.load(WEIGHT + place, mask=mask, other=0.0)
    grad = tl.load(PRODUCT + here[:, None] * P + columns[None, :], mask=mask, other=0.0)
    if UNIT:
        # d(w/‖w‖)/dw: the part along w does nothing.
        inverse = tl.load(INVERSE + here, mask=inside, other=0.0)[:, None]
        unit = weight * inverse
        grad = (grad - tl.sum(grad * unit, 1)[:, None] * unit) * inverse
    # Where among the targets is each row? A binary search: a map over all rows would cost four bytes a class.
    number = (first + here).to(tl.int32)
    before = tl.full((BLOCK_R,), -1, tl.int32)
    width = TARGETS
    while width > 1:
        width = width // 2
        before = tl.where(tl.load(TARGET_ROWS + before + width) < number, before + width, before)
    found = before + 1
    is_target = inside & (tl.load(TARGET_ROWS + found) == number)
    while tl.max(is_target.to(tl.int32), 0) > 0:
        sample = tl.load(TARGET_ORDER + found, mask=is_target, other=0)
        part_mask = _columns_mask(is_target, columns, D, P)
        grad += tl.load(TARGET_GRADS + sample[:, None] * D + columns[None, :], mask=part_mask, other=0.0)
        found += 1
        is_target = is_target & (tl.load(TARGET_ROWS + found, mask=is_target, other=-1) == number)
    if END == "sgd":
        velocity = tl.load(MOMENTUM + place, mask=mask, other=0.0)
        velocity = momentum * velocity + (grad + weight_decay * weight)
        tl.store(MOMENTUM + place, velocity, mask=mask)
        tl.store(WEIGHT + place, weight - tl.load(RATE) * velocity, mask=mask)
    else:
        grad_place = GRAD + (first - grad_first + here[:, None]).to(tl.int64) * GRAD_WIDTH + columns[None, :]
        if END == "add":
            grad += tl.load(grad_place, mask=mask, other=0.0)
        tl.store(grad_place, grad, mask=mask)


@triton.jit
def _row_numbers(ROWS, number, inside, SAMPLED: tl.constexpr):
    """Row numbers in the weight, int64: S · D passes 2^31 from four million rows of 512 on."""
    if SAMPLED:
        return tl.load(ROWS + number, mask=inside, other=0).to(tl.int64)
    return number.to(tl.int64)


@triton.jit
def _columns_mask(inside, columns, D: tl.constexpr, P: tl.constexpr):
    """Which numbers of rows [n, P] there are."""
    mask = inside[:, None] & tl.full((1, P), 1, tl.int1)
    if D < P:
        mask = mask & (columns < D)[None, :]
    return mask


@triton.jit
def _logits(
    FACTORS,
    FEATURES,
    sample,
    here,
    G,
    P: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile [BLOCK_G, BLOCK_R] of features · factorsᵀ. Factors are padded with zero rows: no mask along them."""
    total = tl.zeros((BLOCK_G, BLOCK_R), tl.float32)
    for start in range(0, P, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        x = tl.load(FEATURES + sample[:, None] * P + k[None, :], mask=(sample < G)[:, None], other=0.0)
        w = tl.load(FACTORS + here[None, :] * P + k[:, None])
        total = tl.dot(x, w, total, input_precision=PRECISION)
    return total


@triton.jit
def _warp(logits, inverse_m, scale, inverse_scale):
    """SphereFace-R v2: s cos θ to s cos(θ/m), both in units of log2(e); `scale` is s · log2(e)."""
    half = _half_sine(logits * inverse_scale, inverse_m)
    return scale * (1.0 - 2.0 * half * half)


@triton.jit
def _warp_slope(logits, inverse_m, inverse_scale):
    """d cos(θ/m) / d cos θ = sin(θ/m) / (m sin θ), 1/m² at θ = 0; bounded where sin θ alone vanishes."""
    cosine = tl.minimum(tl.maximum(logits * inverse_scale, -1.0), 1.0)
    half = _half_sine(cosine, inverse_m)
    above = 2.0 * half * tl.sqrt(tl.maximum(1.0 - half * half, 0.0))
    below = tl.sqrt((1.0 - cosine) * (1.0 + cosine))
    ratio = tl.where((below < 1e-4) & (above < 1e-2), inverse_m, above / tl.maximum(below, 1e-4))
    return ratio * inverse_m


@triton.jit
def _half_sine(cosine, inverse_m):
    """sin(θ / 2m) from cos θ, absolute error below 1e-7; cosines beyond [-1, 1] are held there.

    Polynomials, because the library's sine and cosine reduce arguments of any size, in a stack of their own: arccos by
    Abramowitz & Stegun 4.4.46, the sine by its series, whose argument is at most π/2.
    """
    x = tl.minimum(tl.abs(cosine), 1.0)
    p = -0.0012624911
    p = p * x + 0.0066700901
    p = p * x - 0.0170881256
    p = p * x + 0.0308918810
    p = p * x - 0.0501743046
    p = p * x + 0.0889789874
    p = p * x - 0.2145988016
    p = p * x + 1.5707963050
    theta = tl.sqrt(1.0 - x) * p
    theta = tl.where(cosine < 0, 3.14159265358979 - theta, theta)
    half = theta * (0.5 * inverse_m)
    square = half * half
    s = 1.6059043837e-10
    s = s * square - 2.5052108385e-8
    s = s * square + 2.7557319224e-6
    s = s * square - 1.9841269841e-4
    s = s * square + 8.3333333333e-3
    s = s * square - 0.16666666667
    return half + half * square * s
