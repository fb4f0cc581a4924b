"""FedLite: devices hold the front half of a model, and activations travel product-quantized. Both ends in one file.

    device   z = f_c(x),  z~ = Q(z)                    the message has the codebook and an index per subvector
    server   z~ from the message,  G = ∂ (1/B)·Σ_i loss(f_s(z~_i), y_i) / ∂z~,  a step of w_s;  G goes back
    device   dz_i = G_i + (λ/B)·(z_i - z~_i)           from which f_c back-propagates

That is the gradient of  mean_i loss_i + (λ/2)·mean_i |z_i - z~_i|²  with dz~/dz taken to be the identity in the first
term. In the second it is exact: where centroids are means of their clusters, their own dependence on z cancels, as the
residuals of a cluster sum to zero. It puts λ·I for the Hessian in G(z) = G(z~) + H·(z - z~) + .., and trains f_c to
give what quantizes well. The *true* derivative of the loss through z~(z) is the mean of G over each cluster, which says
next to nothing: training stalls on it. So a gradient for every example comes back, in few bits.

λ must stay below about the gradient's size over the residual's, or the correction is all that f_c learns from:

    relative   λ ← λ·mean_i |B·G_i| / mean_i |z_i - z~_i|      λ is then a share, whatever the scale of activations
    ramp       λ ← λ·min(1, (t + 1)/ramp_steps)                 early, when residuals are large beside a new network's z
    cap        λ ← min(λ, cap·|G| / |(z - z~)/B|)

Steps, with K devices and the mean over each batch: the server averages their gradients of w_s and of w_c, which for
batches of equal size is mini-batch SGD on the union. Wang et al., 2022 (https://arxiv.org/abs/2201.11865).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedge.codecs.product import Floats
from fedge.errors import CodecError
from fedge.split.gradient import GradientMessage
from fedge.split.message import MOST_VALUES, ActivationMessage, Codebook
from fedge.split.options import INDEX_KINDS, Coding, Options, Start
from fedge.split.quantizer import as_columns, assign, fit, restore
from fedge.split.shared import Shared


@dataclass(frozen=True, slots=True, eq=False)
class Quantized:
    """What a device sends of a batch, and z~, float32 ``[B, d]``, which it keeps with z until G comes."""

    data: bytes
    restored: Floats


def quantize(z: Floats, options: Options, step: int, seed: int, shared: Shared | None = None) -> Quantized:
    """Device: quantize activations, float32 ``[B, d]``. The same arguments give the same bytes.

    ``shared`` is the state of the run, if the device has one. Without it, codebooks are fitted from scratch and indices
    coded by themselves, whatever the options say; and so they are where its codebook describes the batch worse than
    zeros would.

    Raises:
        CodecError: activations of another shape than the options allow, or out of range; a batch smaller than
            ``least_members``; a shared state of another run.
    """
    if z.ndim != 2:
        raise CodecError(f"expected activations of shape (examples, values), got {z.shape}")
    shape = options.shape(*z.shape)
    x = as_columns(z, shape)
    book = _codebook(x, options, step, seed, shared, z.shape)
    index = assign(x, shape, book.centroids)
    restored = restore(book.centroids, index, shape)
    if shared is not None and not np.square(z - restored).sum() <= np.square(z).sum():
        # Worse than none at all: what all share was made by others, and one of them may have lied.
        return quantize(z, options, step, seed)
    coding = options.coding
    if coding is Coding.SHARED and (shared is None or shared.model is None):
        coding = Coding.ADAPTIVE
    name = b"" if shared is None else bytes.fromhex(shared.id)
    data = ActivationMessage(shape, book, index, INDEX_KINDS[coding], name).to_bytes(shared)
    return Quantized(data, restored)


def _codebook(
    x: Floats, options: Options, step: int, seed: int, shared: Shared | None, size: tuple[int, ...]
) -> Codebook:
    shape = options.shape(*size)
    known = None if shared is None else shared.codebook
    if options.start is Start.FRESH or known is None or shared is None:
        centroids = fit(x, shape, options.fitting(warm=False), seed)
    elif known.shape != shape.codebook_shape:
        raise CodecError(f"expected a shared codebook of shape {shape.codebook_shape}, got {known.shape}")
    elif options.fits_at(step):
        centroids = fit(x, shape, options.fitting(warm=True), seed, known)
    else:
        return Codebook.shared(shared)
    return Codebook.eight_bits(centroids) if options.codebook_bits == 8 else Codebook.float32(centroids)


@dataclass(frozen=True, slots=True, eq=False)
class Received:
    """A message read: z~, float32 ``[B, d]``."""

    message: ActivationMessage
    restored: Floats


def receive(data: bytes, options: Options, shared: Shared | None = None, most_values: int = MOST_VALUES) -> Received:
    """Server: return z~ of a message by these ``options``.

    Raises:
        CodecError: it is no message, is larger than ``most_values``, needs another shared state, or is not by these
            options.
    """
    message = ActivationMessage.from_bytes(data, shared, most_values)
    got = message.shape
    if (got.subvectors, got.groups, got.centroids) != (options.subvectors, options.groups, options.centroids):
        agreed = f"q {options.subvectors}, R {options.groups}, L {options.centroids}"
        raise CodecError(f"expected {agreed}, got q {got.subvectors}, R {got.groups}, L {got.centroids}")
    return Received(message, restore(message.codebook.centroids, message.index, got))


def answer(gradient: Floats, options: Options, seed: int) -> bytes:
    """Server: return the bytes of G = ∂(mean loss of this batch)/∂z~, float32 ``[B, d]``.

    Raises:
        CodecError: numbers that are not finite.
    """
    return GradientMessage.of(gradient, options.gradient_bits, seed, options.gradient_coding).data


def correct(data: bytes, z: Floats, restored: Floats, options: Options, step: int) -> Floats:
    """Device: return dz, float32 ``[B, d]``, of a gradient message for the batch with these z and z~.

    Raises:
        CodecError: it is no gradient, or one of another shape.
    """
    gradient = GradientMessage.from_bytes(data, z.size).gradient
    if gradient.shape != z.shape:
        raise CodecError(f"expected gradients of shape {z.shape}, got {gradient.shape}")
    return corrected(gradient, z, restored, strength(gradient, z, restored, options, step))


def corrected(gradient: Floats, z: Floats, restored: Floats, lam: float) -> Floats:
    """Return G + (λ/B)·(z - z~), in the dtype of ``gradient``."""
    # In place: a device has the tape in memory beside this.
    found = (z - restored).astype(gradient.dtype, copy=False)
    found *= gradient.dtype.type(lam / len(z))
    found += gradient
    return found


def strength(gradient: Floats, z: Floats, restored: Floats, options: Options, step: int) -> float:
    """Return the λ of step ``step``, counted from 0."""
    lam = options.correction
    if lam and (options.relative or options.cap):
        sizes = _norms(gradient) * len(z), _norms(z - restored)
        lam = relative(lam, *sizes) if options.relative else lam
        lam = min(lam, cap(options.cap, *sizes)) if options.cap else lam
    return lam * ramp(step, options.ramp_steps)


def relative(share: float, gradients: Floats, residuals: Floats) -> float:
    """Return λ = share·mean_i |B·G_i| / mean_i |z_i - z~_i| of norms ``[B]``; 0 without a residual."""
    residual = float(residuals.mean())
    return share * float(gradients.mean()) / residual if residual > 0 else 0.0


def cap(share: float, gradients: Floats, residuals: Floats) -> float:
    """Return the λ for which |(λ/B)·(z - z~)| = share·|G|, of norms ``[B]``, G's times B; 0 without a residual."""
    residual = float(np.linalg.norm(residuals))
    return share * float(np.linalg.norm(gradients)) / residual if residual > 0 else 0.0


def ramp(step: int, ramp_steps: int) -> float:
    """Return min(1, (t + 1)/ramp_steps), 1 without a ramp."""
    return min(1.0, (step + 1) / ramp_steps) if ramp_steps else 1.0


def _norms(rows: Floats) -> Floats:
    found: Floats = np.linalg.norm(rows, axis=1)
    return found
