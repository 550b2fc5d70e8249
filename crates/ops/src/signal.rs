//! Signals: windows, Fourier transforms, mel bands.
//!
//! Transforms are computed in `f64` and rounded once at the end.

use std::f64::consts::{PI, TAU};

use midtread_graph::{DataType, Tensor};

use crate::{
    attr,
    cast::cast,
    def::{Eval, OpDef, Role},
    eval::{Args, EvalCtx, OpError},
    infer::{InferCtx, normalize_axis},
    quantize::type_attr,
    shape::product,
    sym::SymDim,
    typed::{indices, reals},
};

const ROLE: Role = Role::Float("its sums need float32");

macro_rules! window {
    ($(#[$doc:meta])* $name:ident: $op:literal, $f:expr) => {
        $(#[$doc])*
        pub(crate) static $name: OpDef = OpDef {
            op_type: $op,
            domain: "",
            versions: &[17],
            attrs: &["output_datatype", "periodic"],
            infer: infer_window,
            eval: Eval::Tensors(|ctx, args| window(ctx, &args, $f)),
            role: Role::Structural,
        };
    };
}

window! {
    /// ONNX HannWindow 17.
    HANN_WINDOW: "HannWindow", |turn| 0.5 - 0.5 * turn.cos()
}
window! {
    /// ONNX HammingWindow 17, with 25/46 and 21/46.
    HAMMING_WINDOW: "HammingWindow", |turn| 25.0 / 46.0 - 21.0 / 46.0 * turn.cos()
}
window! {
    /// ONNX BlackmanWindow 17.
    BLACKMAN_WINDOW: "BlackmanWindow", |turn| 0.42 - 0.5 * turn.cos() + 0.08 * (2.0 * turn).cos()
}

fn infer_window(ctx: &mut InferCtx<'_>) -> Result<(), OpError> {
    let elem = type_attr(ctx.node, "output_datatype")?.unwrap_or(DataType::Float);
    let n = ctx.value(0).filter(|v| v.len() == 1).map_or(SymDim::Unknown, |mut v| v.remove(0));
    ctx.set(0, Some(elem), Some(vec![n]));
    Ok(())
}

/// One integer that is not negative.
fn one_size(tensor: &Tensor, what: &str) -> Result<usize, OpError> {
    match indices(tensor)?[..] {
        [n] => usize::try_from(n).map_err(|_| OpError::Invalid(format!("{what} is {n}"))),
        _ => Err(OpError::Invalid(format!("{what} is not one number"))),
    }
}

/// `f` of angles from 0 to a full turn.
fn window(ctx: &EvalCtx<'_>, args: &Args, f: fn(f64) -> f64) -> Result<Vec<Tensor>, OpError> {
    let n = one_size(args.required(0)?, "the size")?;
    let elem = type_attr(ctx.node, "output_datatype")?.unwrap_or(DataType::Float);
    let is_periodic = attr::flag(ctx.node, "periodic", true)?;
    // A symmetric window reaches its first value again at the last place.
    let period = if is_periodic { n } else { n.saturating_sub(1) }.max(1);
    let y = ctx.pool.fill::<f64>(vec![n], |y| {
        y.iter_mut().enumerate().for_each(|(i, y)| *y = f(TAU * i as f64 / period as f64));
        Ok(())
    })?;
    Ok(vec![cast(ctx, y, elem)?])
}

/// ONNX MelWeightMatrix 17.
pub(crate) static MEL_WEIGHT_MATRIX: OpDef = OpDef {
    op_type: "MelWeightMatrix",
    domain: "",
    versions: &[17],
    attrs: &["output_datatype"],
    infer: |ctx| {
        let elem = type_attr(ctx.node, "output_datatype")?.unwrap_or(DataType::Float);
        let one = |i: usize| {
            ctx.value(i).filter(|v| v.len() == 1).map_or(SymDim::Unknown, |mut v| v.remove(0))
        };
        let bins = one(1).div(&SymDim::known(2)).add(&SymDim::known(1));
        ctx.set(0, Some(elem), Some(vec![bins, one(0)]));
        Ok(())
    },
    eval: Eval::Tensors(mel_weight_matrix),
    role: Role::Structural,
};

/// Triangles over the bins of a spectrum, whose corners are evenly spaced in mel: `2595 * log10(1 + hertz / 700)`.
fn mel_weight_matrix(ctx: &EvalCtx<'_>, args: Args) -> Result<Vec<Tensor>, OpError> {
    let elem = type_attr(ctx.node, "output_datatype")?.unwrap_or(DataType::Float);
    let bands = one_size(args.required(0)?, "the number of bands")?;
    let dft_length = one_size(args.required(1)?, "the transform's length")?;
    let rate = one_size(args.required(2)?, "the sample rate")?;
    let edge = |i: usize| match reals(args.required(i)?)?[..] {
        [hertz] => Ok(hertz),
        _ => Err(OpError::Invalid("an edge is not one number".to_owned())),
    };
    let mel = |hertz: f64| 2595.0 * (1.0 + hertz / 700.0).log10();
    let (low, high) = (mel(edge(3)?), mel(edge(4)?));
    let bins = dft_length / 2 + 1;
    // The specification's formula has one corner more than there are steps.
    let n_corners =
        bands.checked_add(2).ok_or_else(|| OpError::Invalid("too many bands".into()))?;
    let step = (high - low) / n_corners as f64;
    let corner = |i: usize| {
        let hertz = 700.0 * (10_f64.powf((low + i as f64 * step) / 2595.0) - 1.0);
        ((dft_length as f64 + 1.0) * hertz / rate as f64).floor()
    };
    let last = corner(bands + 1);
    if !(0.0 <= corner(0) && last <= bins as f64) {
        return Err(OpError::Invalid(format!(
            "bands up to bin {last} of {bins}: an edge lies beyond half the sample rate"
        )));
    }
    let y = ctx.pool.fill::<f64>(vec![bins, bands], |y| {
        y.fill(0.0);
        for band in 0..bands {
            let [from, top, to] = [band, band + 1, band + 2].map(|i| corner(i) as usize);
            for bin in from..to.min(bins) {
                y[bin * bands + band] = if bin < top {
                    (bin - from) as f64 / (top - from) as f64
                } else {
                    (to - bin) as f64 / (to - top) as f64
                };
            }
            // A triangle without a right side keeps its top.
            if to == top && top < bins {
                y[top * bands + band] = 1.0;
            }
        }
        Ok(())
    })?;
    Ok(vec![cast(ctx, y, elem)?])
}

/// A complex number.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Complex {
    re: f64,
    im: f64,
}

impl Complex {
    fn turned(angle: f64) -> Self {
        Self { re: angle.cos(), im: angle.sin() }
    }

    fn add(self, o: Self) -> Self {
        Self { re: self.re + o.re, im: self.im + o.im }
    }

    fn sub(self, o: Self) -> Self {
        Self { re: self.re - o.re, im: self.im - o.im }
    }

    fn mul(self, o: Self) -> Self {
        Self { re: self.re * o.re - self.im * o.im, im: self.re * o.im + self.im * o.re }
    }

    fn conj(self) -> Self {
        Self { im: -self.im, ..self }
    }
}

/// A Fourier transform of one length.
enum Transform {
    /// Radix 2; `e^(-2 pi i k / n)` for the first half.
    PowerOfTwo(Vec<Complex>),
    /// Any other length as a convolution with a chirp, which is done by transforms of a power of two (Bluestein 1970).
    Chirp { chirp: Vec<Complex>, spectrum: Vec<Complex>, inner: Box<Transform> },
}

impl Transform {
    fn new(n: usize) -> Self {
        if n.is_power_of_two() {
            let turn = |k: usize| Complex::turned(-TAU * k as f64 / n as f64);
            return Self::PowerOfTwo((0..n / 2).map(turn).collect());
        }
        let len = (2 * n - 1).next_power_of_two();
        // The square is taken modulo 2n, so that the angle stays small and exact.
        let angle = |k: usize| PI * ((k as u128 * k as u128) % (2 * n as u128)) as f64 / n as f64;
        let chirp: Vec<Complex> = (0..n).map(|k| Complex::turned(-angle(k))).collect();
        let mut spectrum = vec![Complex::default(); len];
        for (k, c) in chirp.iter().enumerate() {
            spectrum[k] = c.conj();
            spectrum[(len - k) % len] = c.conj();
        }
        let inner = Self::new(len);
        inner.run(&mut spectrum);
        Self::Chirp { chirp, spectrum, inner: Box::new(inner) }
    }

    /// Forward, in place.
    fn run(&self, x: &mut [Complex]) {
        match self {
            Self::PowerOfTwo(turns) => radix_2(x, turns),
            Self::Chirp { chirp, spectrum, inner } => {
                let len = spectrum.len();
                let mut y = vec![Complex::default(); len];
                y.iter_mut().zip(&*x).zip(chirp).for_each(|((y, x), c)| *y = x.mul(*c));
                inner.run(&mut y);
                // The way back is the way there of the conjugates, divided by the length.
                y.iter_mut().zip(spectrum).for_each(|(y, s)| *y = y.mul(*s).conj());
                inner.run(&mut y);
                for ((x, y), c) in x.iter_mut().zip(&y).zip(chirp) {
                    let y = y.conj().mul(*c);
                    *x = Complex { re: y.re / len as f64, im: y.im / len as f64 };
                }
            }
        }
    }

    /// Backward, divided by the length, in place.
    fn run_back(&self, x: &mut [Complex]) {
        x.iter_mut().for_each(|x| *x = x.conj());
        self.run(x);
        let n = x.len() as f64;
        x.iter_mut().for_each(|x| *x = Complex { re: x.re / n, im: -x.im / n });
    }
}

fn radix_2(x: &mut [Complex], turns: &[Complex]) {
    let n = x.len();
    let bits = n.trailing_zeros();
    for i in 0..n {
        let j = if bits == 0 { 0 } else { i.reverse_bits() >> (usize::BITS - bits) };
        if i < j {
            x.swap(i, j);
        }
    }
    let mut half = 1;
    while half < n {
        for block in x.chunks_exact_mut(2 * half) {
            let (low, high) = block.split_at_mut(half);
            for (k, (a, b)) in low.iter_mut().zip(high).enumerate() {
                let turned = b.mul(turns[k * (n / 2 / half)]);
                (*a, *b) = (a.add(turned), a.sub(turned));
            }
        }
        half *= 2;
    }
}

/// ONNX DFT 17 (`axis` an attribute) and 20 (an input).
pub(crate) static DFT: OpDef = OpDef {
    op_type: "DFT",
    domain: "",
    versions: &[17, 20],
    attrs: &["axis", "inverse", "onesided"],
    infer: |ctx| {
        let (inverse, onesided) =
            (attr::flag(ctx.node, "inverse", false)?, attr::flag(ctx.node, "onesided", false)?);
        let axis = match ctx.opset {
            ..20 => Some(attr::int(ctx.node, "axis", 1)?),
            _ if ctx.input(2).is_some() => ctx.known_value(2).and_then(|a| a.first().copied()),
            _ => Some(-2),
        };
        let Some(dims) = ctx.dims(0) else {
            ctx.set(0, ctx.elem(0), None);
            return Ok(());
        };
        let mut out = dims.to_vec();
        match axis {
            Some(axis) => {
                let axis = normalize_axis(axis, dims.len())?;
                let one =
                    |v: Vec<SymDim>| if let [n] = &v[..] { n.clone() } else { SymDim::Unknown };
                let n = match (ctx.input(1), ctx.value(1)) {
                    (Some(_), n) => n.map_or(SymDim::Unknown, one),
                    (None, _) if inverse && onesided => {
                        dims[axis].sub(&SymDim::known(1)).mul(&SymDim::known(2))
                    }
                    (None, _) => dims[axis].clone(),
                };
                out[axis] = if onesided && !inverse {
                    n.div(&SymDim::known(2)).add(&SymDim::known(1))
                } else {
                    n
                };
            }
            None => out.fill(SymDim::Unknown),
        }
        if let Some(last) = out.last_mut() {
            *last = SymDim::known(if inverse && onesided { 1 } else { 2 });
        }
        ctx.set(0, ctx.elem(0), Some(out));
        Ok(())
    },
    eval: Eval::Tensors(dft),
    role: ROLE,
};

fn dft(ctx: &EvalCtx<'_>, args: Args) -> Result<Vec<Tensor>, OpError> {
    let x = args.required(0)?;
    let (inverse, onesided) =
        (attr::flag(ctx.node, "inverse", false)?, attr::flag(ctx.node, "onesided", false)?);
    let axis = match ctx.opset {
        ..20 => attr::int(ctx.node, "axis", 1)?,
        _ => args.get(2).map(indices).transpose()?.map_or(-2, |a| a.first().copied().unwrap_or(-2)),
    };
    let rank = x.dims().len();
    let axis = normalize_axis(axis, rank)?;
    let parts = x.dims()[rank - 1];
    if rank < 2 || axis == rank - 1 || !matches!(parts, 1 | 2) {
        return Err(OpError::Invalid(format!("axis {axis} of sizes {:?}", x.dims())));
    }
    let n_in = x.dims()[axis];
    let n = match args.get(1) {
        Some(n) => one_size(n, "the transform's length")?,
        None if inverse && onesided => 2 * n_in.saturating_sub(1),
        None => n_in,
    };
    if n == 0 {
        return Err(OpError::Invalid("a transform of no samples".to_owned()));
    }
    let n_out = if onesided && !inverse { n / 2 + 1 } else { n };
    let parts_out = if onesided && inverse { 1 } else { 2 };
    let mut dims = x.dims().to_vec();
    (dims[axis], dims[rank - 1]) = (n_out, parts_out);
    // Before the work: a length may ask for more than there is room for.
    let mut y = ctx.pool.tensor(DataType::Double, dims.clone())?;
    let out = y.to_mut::<f64>()?;
    if out.is_empty() {
        return Ok(vec![cast(ctx, y, x.dtype())?]);
    }
    let inner = product(&x.dims()[axis + 1..rank - 1]);
    let src = reals(x)?;
    let transform = Transform::new(n);
    let mut row = vec![Complex::default(); n];
    for i in 0..product(&x.dims()[..axis]) * inner {
        let (outer, i) = (i / inner, i % inner);
        row.fill(Complex::default());
        for (k, e) in row.iter_mut().enumerate().take(n_in) {
            let at = ((outer * n_in + k) * inner + i) * parts;
            *e = Complex { re: src[at], im: if parts == 2 { src[at + 1] } else { 0.0 } };
        }
        if inverse && onesided {
            // The other half are the conjugates; what is given beyond the middle is not looked at.
            for k in n / 2 + 1..n {
                row[k] = row[n - k].conj();
            }
            row[0].im = 0.0;
            if n.is_multiple_of(2) {
                row[n / 2].im = 0.0;
            }
        }
        if inverse {
            transform.run_back(&mut row)
        } else {
            transform.run(&mut row)
        }
        for (k, e) in row.iter().enumerate().take(n_out) {
            let at = ((outer * n_out + k) * inner + i) * parts_out;
            out[at] = e.re;
            if parts_out == 2 {
                out[at + 1] = e.im;
            }
        }
    }
    Ok(vec![cast(ctx, y, x.dtype())?])
}

/// ONNX STFT 17.
pub(crate) static STFT: OpDef = OpDef {
    op_type: "STFT",
    domain: "",
    versions: &[17],
    attrs: &["onesided"],
    infer: |ctx| {
        let onesided = attr::flag(ctx.node, "onesided", true)?;
        let one = |v: Vec<SymDim>| if let [n] = &v[..] { n.clone() } else { SymDim::Unknown };
        let length = match (ctx.input(3), ctx.dims(2)) {
            (Some(_), _) => ctx.value(3).map_or(SymDim::Unknown, one),
            (None, Some([n])) => n.clone(),
            _ => SymDim::Unknown,
        };
        let step = ctx.value(1).map_or(SymDim::Unknown, one);
        let dims = ctx.dims(0).filter(|dims| 2 <= dims.len()).map(|dims| {
            let frames = dims[1].sub(&length).div(&step).add(&SymDim::known(1));
            let bins = match onesided {
                true => length.div(&SymDim::known(2)).add(&SymDim::known(1)),
                false => length.clone(),
            };
            vec![dims[0].clone(), frames, bins, SymDim::known(2)]
        });
        ctx.set(0, ctx.elem(0), dims);
        Ok(())
    },
    eval: Eval::Tensors(stft),
    role: ROLE,
};

fn stft(ctx: &EvalCtx<'_>, args: Args) -> Result<Vec<Tensor>, OpError> {
    let x = args.required(0)?;
    let onesided = attr::flag(ctx.node, "onesided", true)?;
    let step = one_size(args.required(1)?, "the frame step")?;
    let window = args.get(2).map(reals).transpose()?;
    let (batch, samples, parts) = match *x.dims() {
        [batch, samples] => (batch, samples, 1),
        [batch, samples, parts @ (1 | 2)] => (batch, samples, parts),
        _ => return Err(OpError::Invalid(format!("a signal of sizes {:?}", x.dims()))),
    };
    let length = match (args.get(3), &window) {
        (Some(n), _) => one_size(n, "the frame length")?,
        (None, Some(window)) => window.len(),
        (None, None) => return Err(OpError::Invalid("neither window nor frame length".to_owned())),
    };
    if step == 0
        || length == 0
        || samples < length
        || window.as_ref().is_some_and(|w| length < w.len())
    {
        return Err(OpError::Invalid(format!(
            "frames of {length} every {step} of {samples} samples, with a window of {:?}",
            window.map(|w| w.len())
        )));
    }
    let frames = (samples - length) / step + 1;
    let bins = if onesided { length / 2 + 1 } else { length };
    // A shorter window lies in the middle of the frame.
    let window = window.unwrap_or_else(|| vec![1.0; length]);
    let before = (length - window.len()) / 2;
    let dims = vec![batch, frames, bins, 2];
    let mut y = ctx.pool.tensor(DataType::Double, dims)?;
    let out = y.to_mut::<f64>()?;
    let src = reals(x)?;
    let transform = Transform::new(length);
    let mut row = vec![Complex::default(); length];
    for (i, out) in out.chunks_exact_mut(2 * bins).enumerate() {
        let start = i / frames * samples + i % frames * step;
        row.fill(Complex::default());
        for (k, w) in window.iter().enumerate() {
            let at = (start + before + k) * parts;
            let im = if parts == 2 { src[at + 1] } else { 0.0 };
            row[before + k] = Complex { re: w * src[at], im: w * im };
        }
        transform.run(&mut row);
        for (out, e) in out.chunks_exact_mut(2).zip(&row) {
            out.copy_from_slice(&[e.re, e.im]);
        }
    }
    Ok(vec![cast(ctx, y, x.dtype())?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transforms_of_every_length_are_the_sum_that_defines_them_and_come_back() {
        for n in 1..70_usize {
            let x: Vec<Complex> = (0..n)
                .map(|k| Complex { re: (k as f64 * 0.7).sin(), im: (k as f64 * k as f64).cos() })
                .collect();
            let mut y = x.clone();
            let transform = Transform::new(n);
            transform.run(&mut y);
            for (k, y) in y.iter().enumerate() {
                let sum = x.iter().enumerate().fold(Complex::default(), |sum, (j, x)| {
                    sum.add(x.mul(Complex::turned(-TAU * ((j * k) % n) as f64 / n as f64)))
                });
                assert!(y.sub(sum).re.abs() < 1e-11 && y.sub(sum).im.abs() < 1e-11, "{n}: {k}");
            }
            transform.run_back(&mut y);
            for (x, y) in x.iter().zip(&y) {
                assert!(y.sub(*x).re.abs() < 1e-12 && y.sub(*x).im.abs() < 1e-12, "{n}");
            }
        }
    }
}
