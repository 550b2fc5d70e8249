//! Codes that index a table, times the largest magnitude of their block: bitsandbytes' NF4, FP4 and dynamic 8-bit map.
//!
//! A block is a run of the flattened tensor. Values are divided by the block's `absmax` and become the nearest entry; a
//! value at the middle of two becomes the lower. NF4's entries are quantiles of the normal distribution ("QLoRA",
//! Dettmers et al. 2023, here bitsandbytes 0.50's `float32`s), FP4's are `±{0, 1/192, 1/6, 1/4, 1/3, 1/2, 2/3, 1}` in an
//! order of their own (it is *not* [`FloatType::FP4_E2M1`](super::float::FloatType::FP4_E2M1)), the dynamic map has
//! decimal exponents and as many fraction bits as they leave ("8-Bit Approximations for Parallelism in Deep Learning",
//! Dettmers 2016).
//!
//! Two details are bitsandbytes' and decide codes: full blocks multiply by the reciprocal of `absmax`, the short one at
//! the end divides; and the short one's `absmax` is at least 1e-38.

use alloc::vec;
use alloc::vec::Vec;

use super::{
    Encoded, FormatDef, FormatError, Matrix, PartLayout, PartType, Settings, Sharing, bits,
    f32_bytes, f32s, max_abs,
};

/// Entries of NF4, by code.
#[expect(clippy::excessive_precision, reason = "as bitsandbytes prints them")]
pub const NF4_CODE: [f32; 16] = [
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
];

/// Entries of bitsandbytes' FP4, by code.
#[expect(clippy::excessive_precision, reason = "as bitsandbytes prints them")]
pub const FP4_CODE: [f32; 16] = [
    0.0,
    0.0052083334885537624,
    0.6666666865348816,
    1.0,
    0.3333333432674408,
    0.5,
    0.1666666716337204,
    0.25,
    0.0,
    -0.0052083334885537624,
    -0.6666666865348816,
    -1.0,
    -0.3333333432674408,
    -0.5,
    -0.1666666716337204,
    -0.25,
];

/// The smallest `absmax` that a block is divided by.
pub const MIN_ABSMAX: f32 = 1e-38;

/// A table, its order, and the borders between neighbors.
pub struct Codebook {
    /// The entry of each code.
    pub values: Vec<f32>,
    /// Codes from the smallest entry to the largest.
    pub order: Vec<u8>,
    /// The middles of neighbors in that order, one fewer than entries.
    pub borders: Vec<f32>,
}

impl Codebook {
    /// From the entries by code. Of equal ones (FP4 has two zeros) the one with the lower code comes first.
    pub fn new(values: Vec<f32>) -> Self {
        let mut order: Vec<u8> = (0..values.len()).map(|code| code as u8).collect();
        order.sort_by(|a, b| values[usize::from(*a)].total_cmp(&(values[usize::from(*b)] + 0.0)));
        // -0 sorts before 0, and no table has it.
        let value = |code: u8| values[usize::from(code)];
        let borders =
            order.windows(2).map(|pair| (value(pair[0]) + value(pair[1])) / 2.0).collect();
        Self { values, order, borders }
    }

    /// The code of the nearest entry; at a border that of the lower one.
    pub fn code(&self, x: f32) -> u8 {
        self.order[self.borders.partition_point(|border| *border < x)]
    }
}

/// bitsandbytes' dynamic map of 8 bits: 256 entries from about -1 to 1, in order.
///
/// For each exponent `i` of -6..=0 the interval from 0.1 to 1 is cut into `2^(i + 6)` pieces, whose middles, times
/// `10^i` and with both signs, are entries, besides 0 and 1. The unsigned map has twice the pieces and one sign.
pub fn dynamic_map(is_signed: bool) -> Vec<f32> {
    let mut entries = vec![0.0, 1.0];
    for (i, power) in TENTHS.into_iter().enumerate() {
        let n_pieces = 1_usize << (i + usize::from(!is_signed));
        // torch.linspace: from both ends to the middle, with a step in f32 and one rounding for product and sum.
        let step = (1.0_f32 - 0.1) / n_pieces as f32;
        let border = |k: usize| {
            if k < n_pieces.div_ceil(2) {
                (f64::from(0.1_f32) + f64::from(step) * k as f64) as f32
            } else {
                (1.0 - f64::from(step) * (n_pieces - k) as f64) as f32
            }
        };
        for k in 0..n_pieces {
            let middle = power * ((border(k) + border(k + 1)) / 2.0);
            entries.push(middle);
            if is_signed {
                entries.push(-middle);
            }
        }
    }
    entries.sort_by(f32::total_cmp);
    entries
}

/// 10^-6 to 1.
const TENTHS: [f32; 7] = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0];

/// Codes of a flat run and the `absmax` of its blocks of `block_size`.
pub(crate) fn quantize_blocks(
    codebook: &Codebook,
    x: &[f32],
    block_size: usize,
) -> (Vec<i32>, Vec<f32>) {
    let mut codes = Vec::with_capacity(x.len());
    let mut scales = Vec::with_capacity(x.len().div_ceil(block_size));
    for block in x.chunks(block_size) {
        let is_full = block.len() == block_size;
        let max = max_abs(block);
        let divisor = if max < MIN_ABSMAX { MIN_ABSMAX } else { max };
        let reciprocal = 1.0 / divisor;
        codes.extend(block.iter().map(|x| {
            let scaled = if is_full { x * reciprocal } else { x / divisor };
            i32::from(codebook.code(scaled.clamp(-1.0, 1.0)))
        }));
        scales.push(if is_full { max } else { divisor });
    }
    (codes, scales)
}

/// The values of codes.
pub(crate) fn dequantize_blocks(
    codebook: &Codebook,
    codes: &[i32],
    scales: &[f32],
    block_size: usize,
) -> Vec<f32> {
    let mut values = Vec::with_capacity(codes.len());
    for (block, scale) in codes.chunks(block_size).zip(scales) {
        values.extend(block.iter().map(|code| codebook.values[*code as usize] * scale));
    }
    values
}

/// The number of elements of a block.
pub(crate) fn block_size(settings: &Settings<'_>) -> usize {
    match settings.sharing {
        Sharing::Block(size) => size,
        _ => unreachable!("`Format::named` gives flat formats blocks only"),
    }
}

/// The code that fills an odd end: that of 0.
pub(crate) fn pad(codebook: &Codebook) -> i32 {
    i32::from(codebook.code(0.0))
}

fn quantize(
    codebook: &Codebook,
    matrix: &Matrix<'_>,
    settings: &Settings<'_>,
) -> Result<Encoded, FormatError> {
    matrix.finite()?;
    let (codes, scales) = quantize_blocks(codebook, matrix.values(), block_size(settings));
    Ok(Encoded::with(codes, vec![("absmax", scales)]))
}

macro_rules! four_bits {
    ($(#[$doc:meta])* $def:ident, $name:literal, $code:ident, $summary:literal, $source:literal) => {
        $(#[$doc])*
        pub static $def: FormatDef = FormatDef {
            name: $name,
            summary: $summary,
            source: $source,
            numbers: &[],
            sharing: Sharing::Block(64),
            sharing_is_free: true,
            is_flat: true,
            needs_max_abs: false,
            layout: |shape, settings| {
                vec![
                    PartLayout::new("codes", PartType::U8, shape.n().div_ceil(2)),
                    PartLayout::new("absmax", PartType::F32, settings.sharing.n_groups(shape)),
                ]
            },
            quantize: |matrix, settings| quantize(&Codebook::new($code.to_vec()), matrix, settings),
            dequantize: |encoded, _, settings| {
                let codebook = Codebook::new($code.to_vec());
                dequantize_blocks(&codebook, &encoded.codes, encoded.param("absmax"), block_size(settings))
            },
            pack: |encoded, _, _| {
                let pad = pad(&Codebook::new($code.to_vec()));
                vec![bits::pack_high_first(&encoded.codes, pad), f32_bytes(encoded.param("absmax"))]
            },
            unpack: |parts, shape, _| {
                let codes = bits::unpack_high_first(parts[0], shape.n());
                Encoded::with(codes, vec![("absmax", f32s(parts[1]))])
            },
        };
    };
}

four_bits!(
    /// `nf4`.
    NF4, "nf4", NF4_CODE, "4-bit quantiles of the normal distribution, blocks of 64", "QLoRA (Dettmers et al. 2023); bitsandbytes"
);
four_bits!(
    /// `fp4`.
    FP4, "fp4", FP4_CODE, "bitsandbytes' 4-bit float (not E2M1), blocks of 64", "bitsandbytes"
);

/// `dynamic8`.
pub static DYNAMIC8: FormatDef = FormatDef {
    name: "dynamic8",
    summary: "8-bit codes with decimal exponents, blocks of 4096",
    source: "8-Bit Approximations for Parallelism in Deep Learning (Dettmers 2016); bitsandbytes",
    numbers: &[],
    sharing: Sharing::Block(4096),
    sharing_is_free: true,
    is_flat: true,
    needs_max_abs: false,
    layout: |shape, settings| {
        vec![
            PartLayout::new("codes", PartType::U8, shape.n()),
            PartLayout::new("absmax", PartType::F32, settings.sharing.n_groups(shape)),
        ]
    },
    quantize: |matrix, settings| quantize(&Codebook::new(dynamic_map(true)), matrix, settings),
    dequantize: |encoded, _, settings| {
        let codebook = Codebook::new(dynamic_map(true));
        dequantize_blocks(&codebook, &encoded.codes, encoded.param("absmax"), block_size(settings))
    },
    pack: |encoded, _, _| vec![bits::pack(&encoded.codes, 8), f32_bytes(encoded.param("absmax"))],
    unpack: |parts, shape, _| {
        let codes = bits::unpack(parts[0], shape.n(), 8);
        Encoded::with(codes, vec![("absmax", f32s(parts[1]))])
    },
};
