//! Sizes: broadcasting, strides, and copying through a strided view.

use midtread_graph::{DataType, Tensor};

use crate::{
    eval::{EvalCtx, OpError},
    infer::InferCtx,
    sym::SymDim,
    typed::unsupported_type,
};

/// The sizes that tensors of the given sizes broadcast to (ONNX "multidirectional broadcasting").
pub(crate) fn broadcast(shapes: &[&[usize]]) -> Result<Vec<usize>, OpError> {
    let rank = shapes.iter().map(|s| s.len()).max().unwrap_or(0);
    let mut out = vec![1; rank];
    for shape in shapes {
        for (o, &d) in out[rank - shape.len()..].iter_mut().zip(*shape) {
            if *o == 1 {
                *o = d;
            } else if d != 1 && d != *o {
                return Err(OpError::Invalid(format!("sizes {shapes:?} do not broadcast")));
            }
        }
    }
    Ok(out)
}

/// [`broadcast`] of expressions. Two sizes that may differ are the one that is known not to be 1, else unknown.
pub(crate) fn broadcast_syms(shapes: &[&[SymDim]]) -> Result<Vec<SymDim>, OpError> {
    let rank = shapes.iter().map(|s| s.len()).max().unwrap_or(0);
    let mut out = vec![SymDim::known(1); rank];
    for shape in shapes {
        for (o, d) in out[rank - shape.len()..].iter_mut().zip(*shape) {
            *o = match (o.as_known(), d.as_known()) {
                (Some(1), _) => d.clone(),
                (_, Some(1)) => o.clone(),
                (Some(a), Some(b)) if a != b => {
                    return Err(OpError::Invalid(format!("sizes {a} and {b} do not broadcast")));
                }
                (Some(_), _) => o.clone(),
                (None, Some(_)) => d.clone(),
                (None, None) if o.same(d) => o.clone(),
                (None, None) => SymDim::Unknown,
            };
        }
    }
    Ok(out)
}

/// The broadcast sizes of all inputs in `range`, if all are known.
pub(crate) fn broadcast_inputs(
    ctx: &InferCtx<'_>,
    range: std::ops::Range<usize>,
) -> Result<Option<Vec<SymDim>>, OpError> {
    let shapes: Option<Vec<&[SymDim]>> = range.map(|i| ctx.dims(i)).collect();
    shapes.map(|shapes| broadcast_syms(&shapes)).transpose()
}

/// Row-major strides, in elements.
pub(crate) fn strides(dims: &[usize]) -> Vec<usize> {
    let mut strides = vec![1_usize; dims.len()];
    for i in (1..dims.len()).rev() {
        // An empty tensor may have sizes whose product overflows; nothing lies at its strides.
        strides[i - 1] = strides[i].saturating_mul(dims[i].max(1));
    }
    strides
}

/// Strides under which a tensor of sizes `dims` reads as one of sizes `out` that it broadcasts to.
pub(crate) fn broadcast_strides(dims: &[usize], out: &[usize]) -> Vec<isize> {
    let own = strides(dims);
    let skip = out.len() - dims.len();
    (0..out.len())
        .map(|i| if i < skip || dims[i - skip] == 1 { 0 } else { own[i - skip] as isize })
        .collect()
}

/// The product of some sizes; the largest number where it overflows, which no tensor has.
pub(crate) fn product(dims: &[usize]) -> usize {
    dims.iter().fold(1, |product, &dim| product.saturating_mul(dim))
}

/// The sum of some sizes; the largest number where it overflows.
pub(crate) fn sum(sizes: &[usize]) -> usize {
    sizes.iter().fold(0, |sum, &size| sum.saturating_add(size))
}

/// Whether every size of a `SymDim` list is a number; those numbers.
pub(crate) fn known(dims: &[SymDim]) -> Option<Vec<usize>> {
    dims.iter().map(|d| d.as_known().and_then(|n| usize::try_from(n).ok())).collect()
}

/// Axes counted from the front, without repetition.
pub(crate) fn normalize_axes(axes: &[i64], rank: usize) -> Result<Vec<usize>, OpError> {
    let axes = axes
        .iter()
        .map(|&a| crate::infer::normalize_axis(a, rank))
        .collect::<Result<Vec<_>, _>>()?;
    let mut sorted = axes.clone();
    sorted.sort_unstable();
    match sorted.windows(2).find(|w| w[0] == w[1]) {
        Some(w) => Err(OpError::Invalid(format!("axis {} is given twice", w[0]))),
        None => Ok(axes),
    }
}

/// A way of reading elements of a tensor in another order: element `i` of the result lies at
/// `offset + sum(i[d] * strides[d])`.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) dims: Vec<usize>,
    pub(crate) strides: Vec<isize>,
    pub(crate) offset: usize,
}

impl View {
    /// The same view with neighboring dimensions that are walked as one made one, and sizes of 1 left out.
    fn merged(&self) -> Self {
        let (mut dims, mut strides): (Vec<usize>, Vec<isize>) = (Vec::new(), Vec::new());
        for (&d, &s) in self.dims.iter().zip(&self.strides) {
            if d == 1 {
                continue;
            }
            match (dims.last_mut(), strides.last_mut()) {
                (Some(dim), Some(stride)) if *stride == s * d as isize => {
                    *dim *= d;
                    *stride = s;
                }
                _ => {
                    dims.push(d);
                    strides.push(s);
                }
            }
        }
        Self { dims, strides, offset: self.offset }
    }

    /// Writes the elements that the view selects, in its order.
    pub(crate) fn copy<E: Clone>(&self, src: &[E], dst: &mut [E]) {
        if dst.is_empty() {
            return;
        }
        let view = self.merged();
        let Some((&n, outer)) = view.dims.split_last() else {
            dst[0] = src[view.offset].clone();
            return;
        };
        let step = view.strides[outer.len()];
        let mut odometer = Odometer::new(outer, &[&view.strides[..outer.len()]]);
        for run in dst.chunks_exact_mut(n) {
            let start = (view.offset as isize + odometer.offsets[0]) as usize;
            match step {
                1 => run.clone_from_slice(&src[start..start + n]),
                0 => run.fill(src[start].clone()),
                _ => {
                    let mut at = start as isize;
                    for e in run {
                        *e = src[at as usize].clone();
                        at += step;
                    }
                }
            }
            odometer.advance();
        }
    }
}

/// Walks the positions of a tensor in row-major order and keeps an offset for each of several sets of strides.
pub(crate) struct Odometer {
    dims: Vec<usize>,
    strides: Vec<Vec<isize>>,
    at: Vec<usize>,
    /// For each set of strides, the offset of the present position.
    pub(crate) offsets: Vec<isize>,
}

impl Odometer {
    /// At the first position.
    pub(crate) fn new(dims: &[usize], strides: &[&[isize]]) -> Self {
        Self {
            dims: dims.to_vec(),
            strides: strides.iter().map(|s| s.to_vec()).collect(),
            at: vec![0; dims.len()],
            offsets: vec![0; strides.len()],
        }
    }

    /// To the next position; from the last to the first.
    pub(crate) fn advance(&mut self) {
        for d in (0..self.dims.len()).rev() {
            self.at[d] += 1;
            let done = self.at[d] < self.dims[d];
            for (offset, strides) in self.offsets.iter_mut().zip(&self.strides) {
                *offset += if done { strides[d] } else { -strides[d] * (self.at[d] as isize - 1) };
            }
            if done {
                return;
            }
            self.at[d] = 0;
        }
    }

    /// The present position.
    pub(crate) fn position(&self) -> &[usize] {
        &self.at
    }
}

/// Something that puts elements of tensors elsewhere without looking at them, and so works for every type.
pub(crate) trait Move {
    /// Writes every element of `dst`.
    fn run<E: Clone>(&self, srcs: &[&[E]], dst: &mut [E]) -> Result<(), OpError>;
}

impl Move for View {
    fn run<E: Clone>(&self, srcs: &[&[E]], dst: &mut [E]) -> Result<(), OpError> {
        self.copy(srcs[0], dst);
        Ok(())
    }
}

/// What is put where there is no element: zero, or the empty string.
pub(crate) fn blank(dtype: DataType) -> Result<Tensor, OpError> {
    Ok(match dtype {
        DataType::String => Tensor::from_strings(Vec::new(), vec![midtread_graph::Bytes::new()])?,
        _ => Tensor::zeros(dtype, Vec::new())?,
    })
}

/// A tensor of sizes `dims` made from elements of `srcs`, which have one type.
pub(crate) fn moved(
    ctx: &EvalCtx<'_>,
    srcs: &[&Tensor],
    dims: Vec<usize>,
    how: &impl Move,
) -> Result<Tensor, OpError> {
    let dtype = srcs[0].dtype();
    if let Some(other) = srcs.iter().find(|t| t.dtype() != dtype) {
        return Err(OpError::Invalid(format!("inputs are {dtype} and {}", other.dtype())));
    }
    if dtype == DataType::String {
        let strings: Vec<_> =
            srcs.iter().map(|t| t.as_strings().expect("the type is string")).collect();
        let mut out =
            vec![midtread_graph::Bytes::new(); midtread_graph::tensor::n_elements(&dims)?];
        how.run(&strings, &mut out)?;
        return Ok(Tensor::from_strings(dims, out)?);
    }
    let mut out = ctx.pool.tensor(dtype, dims)?;
    macro_rules! of_width {
        ($n:literal) => {{
            let srcs: Vec<_> = srcs.iter().map(|t| t.as_bytes().as_chunks::<$n>().0).collect();
            how.run(&srcs, out.bytes_mut().as_chunks_mut::<$n>().0)?
        }};
    }
    match dtype.n_bits() {
        Some(8) => of_width!(1),
        Some(16) => of_width!(2),
        Some(32) => of_width!(4),
        Some(64) => of_width!(8),
        Some(128) => of_width!(16),
        Some(bits @ (2 | 4)) => {
            let srcs: Vec<_> = srcs.iter().map(|t| unpacked(t.as_bytes(), bits, t.len())).collect();
            let srcs: Vec<&[u8]> = srcs.iter().map(Vec::as_slice).collect();
            let mut codes = vec![0; out.len()];
            how.run(&srcs, &mut codes)?;
            pack(&codes, bits, out.bytes_mut());
        }
        _ => return Err(unsupported_type(dtype)),
    }
    Ok(out)
}

/// Packed elements of 2 or 4 bits, one a byte; the sign is not extended.
fn unpacked(bytes: &[u8], bits: usize, n: usize) -> Vec<u8> {
    let (per_byte, mask) = (8 / bits, (1_u8 << bits) - 1);
    (0..n).map(|i| bytes[i / per_byte] >> (i % per_byte * bits) & mask).collect()
}

/// The reverse of [`unpacked`].
fn pack(codes: &[u8], bits: usize, bytes: &mut [u8]) {
    for (byte, codes) in bytes.iter_mut().zip(codes.chunks(8 / bits)) {
        *byte = codes.iter().rev().fold(0, |byte, code| byte << bits | code);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_broadcast_from_the_right_and_only_from_one() {
        assert_eq!(broadcast(&[&[2, 1, 4], &[3, 1], &[]]), Ok(vec![2, 3, 4]));
        assert_eq!(broadcast(&[&[0], &[1]]), Ok(vec![0]));
        assert!(broadcast(&[&[2], &[3]]).is_err());
        let (n, two) = (SymDim::symbol("N"), SymDim::known(2));
        let got =
            broadcast_syms(&[&[n.clone(), two.clone()], &[SymDim::known(1), SymDim::symbol("S")]])
                .unwrap();
        assert_eq!(got, [n, two]);
    }

    #[test]
    fn a_view_selects_what_its_strides_say_however_dimensions_merge() {
        let src: Vec<u32> = (0..24).collect();
        for (dims, strides, offset) in [
            (vec![2, 3, 4], vec![12, 4, 1], 0),
            (vec![4, 3, 2], vec![1, 4, 12], 0),
            (vec![2, 3, 2], vec![12, 4, 2], 1),
            (vec![3, 4], vec![-4, -1], 23),
            (vec![2, 5, 3], vec![0, 0, 1], 4),
            (vec![], vec![], 7),
        ] {
            let view = View { dims: dims.clone(), strides: strides.clone(), offset };
            let mut got = vec![0; product(&dims)];
            view.copy(&src, &mut got);
            for (i, &e) in got.iter().enumerate() {
                let mut rest = i;
                let mut at = offset as isize;
                for d in (0..dims.len()).rev() {
                    at += (rest % dims[d]) as isize * strides[d];
                    rest /= dims[d];
                }
                assert_eq!(e, src[at as usize], "{view:?} at {i}");
            }
        }
    }

    #[test]
    fn packed_elements_survive_a_round_trip_at_every_length() {
        for bits in [2, 4] {
            for n in 0..10_usize {
                let codes: Vec<u8> =
                    (0..n).map(|i| (i * 7 + 1) as u8 & ((1 << bits) - 1)).collect();
                let mut bytes = vec![0xff; (n * bits).div_ceil(8)];
                pack(&codes, bits, &mut bytes);
                assert_eq!(unpacked(&bytes, bits, n), codes);
            }
        }
        let mut bytes = [0];
        pack(&[1, 2], 4, &mut bytes);
        assert_eq!(bytes, [0x21], "the first element lies in the low bits");
    }
}
