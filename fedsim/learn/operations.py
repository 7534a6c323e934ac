"""What torch's operations cost, where its own counter does not say; and which of them cost next to nothing.

Knows operations of the aten namespace by name and shape. Knows no model and no clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

Shape = Sequence[int]
_aten: Any = torch.ops.aten


def _matrices(weights: Sequence[Shape]) -> int:
    return sum(math.prod(weight) for weight in weights if len(weight) > 1)


def _rnn_layer(x: Shape, w0: Shape, w1: Shape, *_: Any, **__: Any) -> int:
    return 2 * x[0] * x[1] * _matrices([w0, w1])  # One layer in one direction: (time, rows, inputs).


def _rnn_layer_backward(x: Shape, w0: Shape, w1: Shape, *_: Any, **__: Any) -> int:
    return 2 * _rnn_layer(x, w0, w1)


def _cudnn_rnn(x: Shape, weights: Sequence[Shape], *_: Any, **__: Any) -> int:
    return 2 * x[0] * x[1] * _matrices(weights)


def _cudnn_rnn_backward(x: Shape, weights: Sequence[Shape], *_: Any, **__: Any) -> int:
    return 2 * _cudnn_rnn(x, weights)


def _mv(matrix: Shape, *_: Any, **__: Any) -> int:
    return 2 * math.prod(matrix)


def _addmv(_bias: Shape, matrix: Shape, *_: Any, **__: Any) -> int:
    return 2 * math.prod(matrix)


def _addr(_bias: Shape, left: Shape, right: Shape, *_: Any, **__: Any) -> int:
    return 2 * left[0] * right[0]


def _addbmm(_bias: Shape, left: Shape, right: Shape, *_: Any, **__: Any) -> int:
    return 2 * math.prod(left) * right[-1]


def _trilinear(a: Shape, b: Shape, c: Shape, at_a: Shape, at_b: Shape, at_c: Shape, *_: Any, **__: Any) -> int:
    def spread(shape: Shape, places: Shape) -> list[int]:
        whole = list(shape)
        for place in sorted(places):
            whole.insert(place, 1)
        return whole

    # Two products and a sum at each place of what the three are spread to.
    return 3 * math.prod(max(sizes) for sizes in zip(spread(a, at_a), spread(b, at_b), spread(c, at_c), strict=True))


def _cdist(left: Shape, _right: Shape, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return 3 * math.prod(out_shape) * left[-1]  # What is put out has the batch of both.


def _cdist_backward(gradient: Shape, left: Shape, *_: Any, **__: Any) -> int:
    return 3 * math.prod(gradient) * left[-1]


def _euclidean(left: Shape, _right: Shape, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return 2 * math.prod(out_shape) * (left[-1] + 2)  # One product of (x, |x|^2, 1) and (-2 y, 1, |y|^2).


def _fft(x: Shape, places: Shape, *_: Any, out_shape: Any = None, **__: Any) -> int:
    # 5 n log2 n for n complex numbers (Cooley and Tukey 1965), half of it where one side is real.
    return round(5 * math.prod(x) * math.log2(max(2, math.prod(x[place] for place in places))))


def _fft_real(x: Shape, places: Shape, *_: Any, **__: Any) -> int:
    return _fft(x, places) // 2


def _convolution_backward(
    gradient: Shape, x: Shape, weight: Shape, _bias: Any, _stride: Any, _padding: Any, _dilation: Any, transposed: bool, _more: Any,
    _groups: Any, wanted: Sequence[bool], *_: Any, **__: Any,
) -> int:  # fmt: skip
    # As much as forward for the gradient of the input, and for that of the weight; torch's own takes the latter times the groups.
    places = math.prod((x if transposed else gradient)[2:])
    return 2 * x[0] * math.prod(weight) * places * (bool(wanted[0]) + bool(wanted[1]))


def _attention(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _attention_backward(_gradient: Shape, query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    return 5 * _attention(query, key, value) // 2  # Five products for the forward pass's two.


COSTS: dict[Any, Callable[..., int]] = {
    _aten.mkldnn_rnn_layer: _rnn_layer, _aten.mkldnn_rnn_layer_backward: _rnn_layer_backward,
    _aten._cudnn_rnn: _cudnn_rnn, _aten._cudnn_rnn_backward: _cudnn_rnn_backward,
    _aten.mv: _mv, _aten.addmv: _addmv, _aten.addr: _addr, _aten.addbmm: _addbmm, _aten.dot: _mv, _aten.vdot: _mv,
    _aten._trilinear: _trilinear, _aten._cdist_forward: _cdist, _aten._cdist_backward: _cdist_backward,
    _aten._euclidean_dist: _euclidean,
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    _aten.convolution_backward: _convolution_backward, _aten._fft_c2c: _fft, _aten._fft_r2c: _fft_real, _aten._fft_c2r: _fft_real,
}  # fmt: skip
"""Floating-point operations by shapes, as ``FlopCounterMode`` takes them: what torch's own counter leaves out, or gets wrong."""

OUTER: dict[Any, tuple[int, ...]] = {_aten.mv: (0,), _aten.addmv: (1,), _aten.dot: (0, 1), _aten.vdot: (0, 1)}
"""Of which arguments the gradient is an outer product, a multiplication and an addition for each number: no operation shows it."""

LIGHT = frozenset("""
    transpose_ t_ squeeze_ unsqueeze_ swapaxes_ as_strided_ detach_ unfold
    _adaptive_avg_pool2d _adaptive_avg_pool2d_backward _adaptive_avg_pool3d _adaptive_avg_pool3d_backward
    _batch_norm_no_update _batch_norm_with_update _batch_norm_with_update_functional _conj _embedding_bag
    _embedding_bag_backward _embedding_bag_dense_backward _embedding_bag_forward_only
    _embedding_bag_per_sample_weights_backward _fused_rms_norm _fused_rms_norm_backward _linalg_check_errors
    _local_scalar_dense _log_softmax _log_softmax_backward_data _masked_scale _masked_softmax _native_batch_norm_legit
    _native_batch_norm_legit_functional _native_batch_norm_legit_no_training _pack_padded_sequence
    _pack_padded_sequence_backward _prelu_kernel _prelu_kernel_backward _resize_output_ _safe_softmax
    _segment_reduce_backward _softmax _softmax_backward_data _standard_gamma _thnn_fused_gru_cell
    _thnn_fused_gru_cell_backward _thnn_fused_lstm_cell _thnn_fused_lstm_cell_backward_impl _to_copy _unique _unique2
    _unsafe_index _unsafe_index_put _unsafe_masked_index _unsafe_masked_index_put_accumulate _unsafe_view
    _upsample_bicubic2d_aa _upsample_bicubic2d_aa_backward _upsample_bilinear2d_aa _upsample_bilinear2d_aa_backward
    _upsample_nearest_exact1d _upsample_nearest_exact1d_backward _upsample_nearest_exact2d
    _upsample_nearest_exact2d_backward _upsample_nearest_exact3d _upsample_nearest_exact3d_backward _weight_norm_interface
    _weight_norm_interface_backward abs adaptive_max_pool2d adaptive_max_pool2d_backward adaptive_max_pool3d
    adaptive_max_pool3d_backward affine_grid_generator alias allclose arange argmax argmin argsort as_strided
    as_strided_scatter avg_pool2d avg_pool2d_backward avg_pool3d avg_pool3d_backward batch_norm_backward bernoulli
    bernoulli_ binary_cross_entropy binary_cross_entropy_backward binary_cross_entropy_with_logits bincount binomial
    block_diag bucketize cat cauchy channel_shuffle clone col2im complex constant_pad_nd copy copy_ count_nonzero cross
    cudnn_batch_norm cudnn_batch_norm_backward cummax cummin cumprod cumsum detach diag_embed diagonal diagonal_backward
    diagonal_scatter dist dropout elu_backward embedding embedding_dense_backward embedding_renorm_ empty empty_like
    empty_permuted empty_strided equal exponential_ eye fill fill_ flip floor_divide fractional_max_pool2d
    fractional_max_pool2d_backward full full_like gather gelu geometric glu glu_backward glu_jvp grid_sampler_2d
    grid_sampler_2d_backward grid_sampler_3d grid_sampler_3d_backward hardshrink_backward hardsigmoid_backward hardswish
    hardswish_backward hardtanh_backward histc histogram huber_loss huber_loss_backward im2col index index_add index_add_
    index_copy index_fill index_put index_put_ index_reduce index_select is_pinned is_same_size isin item kthvalue l1_loss
    leaky_relu_backward lift_fresh linspace log_normal_ log_sigmoid_backward log_sigmoid_forward logcumsumexp logspace
    masked_fill masked_fill_ masked_scatter masked_scatter_backward masked_select max_pool2d_with_indices
    max_pool2d_with_indices_backward max_pool3d_with_indices max_pool3d_with_indices_backward max_unpool2d max_unpool3d
    median miopen_batch_norm miopen_batch_norm_backward mish mish_backward mode mse_loss mse_loss_backward multi_margin_loss
    multi_margin_loss_backward multilabel_margin_loss_backward multilabel_margin_loss_forward multinomial nan_to_num
    nanmedian narrow_copy native_batch_norm native_batch_norm_backward native_dropout native_dropout_backward
    native_group_norm native_group_norm_backward native_layer_norm native_layer_norm_backward new_empty new_empty_strided
    new_full new_ones new_zeros nll_loss2d_backward nll_loss2d_forward nll_loss_backward nll_loss_forward nonzero
    nonzero_static norm normal normal_ one_hot ones ones_like permute_copy pixel_shuffle pixel_unshuffle poisson polar rand
    rand_like randint randint_like randn randn_like random_ randperm reflection_pad1d reflection_pad1d_backward
    reflection_pad2d reflection_pad2d_backward reflection_pad3d reflection_pad3d_backward renorm repeat repeat_interleave
    replication_pad1d replication_pad1d_backward replication_pad2d replication_pad2d_backward replication_pad3d
    replication_pad3d_backward resize_ resize_as_ roll rot90 rrelu_with_noise rrelu_with_noise_backward
    rrelu_with_noise_functional scalar_tensor scatter scatter_ scatter_add scatter_add_ scatter_reduce searchsorted
    segment_reduce select_backward select_scatter set_ slice_backward slice_scatter smooth_l1_loss smooth_l1_loss_backward
    soft_margin_loss soft_margin_loss_backward softplus_backward softshrink_backward sort split_with_sizes_copy stack take
    topk trace tril triu unfold_backward uniform_ unique_consecutive unique_dim unsafe_chunk unsafe_split
    unsafe_split_with_sizes upsample_bicubic2d upsample_bicubic2d_backward upsample_bilinear2d upsample_bilinear2d_backward
    upsample_linear1d upsample_linear1d_backward upsample_nearest1d upsample_nearest1d_backward upsample_nearest2d
    upsample_nearest2d_backward upsample_nearest3d upsample_nearest3d_backward upsample_trilinear3d
    upsample_trilinear3d_backward value_selecting_reduction_backward view_as_complex view_as_real xlogy zero_ zeros
    zeros_like
""".split())
"""Operations whose work is a few steps per element: what the charge per element covers."""

COPIES = {_aten.clone, _aten._to_copy, _aten.copy_}
"""Moves, and no work: a broadcast matrix product makes such by itself."""

_TAGS = {torch.Tag.pointwise, torch.Tag.reduction, torch.Tag.view_copy}


def counted(operation: Any) -> bool:
    """Return whether the cost of *operation*, an overload of aten's, is known by its shapes."""
    packet = operation.overloadpacket
    return packet in COSTS or packet in flop_registry


def light(operation: Any) -> bool:
    """Return whether *operation* does a few steps per element at most.

    >>> light(torch.ops.aten.tanh.default), light(torch.ops.aten._linalg_svd.default)
    (True, False)
    """
    name = operation.overloadpacket.__name__
    return (
        bool(_TAGS & set(operation.tags))
        or operation.is_view
        or name.rstrip("_") in LIGHT
        or name in LIGHT
        or (name.startswith("_foreach") and "mm" not in name)
    )


class Watch(TorchDispatchMode):
    """Sees every operation that runs inside: *uncounted* by name, and the *elements* that light ones put out while *open*.

    *outer* is what the gradients of OUTER take, where some are going to be computed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.uncounted: set[str] = set()
        self.open = False
        self.elements = 0
        self.outer = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run *func*, and note what it was."""
        out = func(*args, **(kwargs or {}))
        if torch.is_grad_enabled():
            self.outer += sum(2 * args[i].numel() for i in OUTER.get(func.overloadpacket, ()) if args[i].requires_grad)
        if func.namespace == "aten" and not counted(func):
            if not light(func):
                self.uncounted.add(f"{func.namespace}.{func.overloadpacket.__name__}")
            elif self.open and torch.Tag.pointwise in func.tags and func.overloadpacket not in COPIES and isinstance(out, torch.Tensor):
                self.elements += out.numel()
        elif func.namespace not in ("aten", "prim", "prims"):
            self.uncounted.add(f"{func.namespace}.{func.overloadpacket.__name__}")
        return out
