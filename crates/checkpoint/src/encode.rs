//! Values to the bytes of a format's parts: by `num`'s definition, or by a kernel that gives the same bytes.

use midtread_kernels::formats::codebook::{self, FourBit};
use midtread_kernels::formats::k::{self, KType};
use midtread_kernels::formats::{floats, int8, simple};
use midtread_num::formats::codebook::{FP4_CODE, NF4_CODE};
use midtread_num::formats::{Format, FormatError, Matrix, Search, Shape, Sharing};

/// Encodes rows; `parts` become the bytes of the parts of the format's layout.
pub(crate) fn encode(
    format: &Format<'_>,
    values: &[f32],
    shape: Shape,
    parts: &mut Vec<Vec<u8>>,
) -> Result<(), FormatError> {
    if let Some(kernel) = kernel(format, shape) {
        let layout = format.layout(shape);
        parts.resize(layout.len(), vec![]);
        for (part, layout) in parts.iter_mut().zip(&layout) {
            // What was there is overwritten, so it need not be cleared.
            part.resize(layout.n_bytes(), 0);
        }
        if kernel(values, shape, parts) {
            return Ok(());
        }
        // Something is not finite: the definition says what and where.
    }
    let matrix = Matrix::new(values, shape.cols)?;
    let encoded = format.quantize(&matrix)?;
    *parts = format.pack(&encoded, shape);
    Ok(())
}

/// Values and their shape to the bytes of each part; whether all is finite.
type Kernel<'a> = Box<dyn Fn(&[f32], Shape, &mut [Vec<u8>]) -> bool + 'a>;

/// The kernel for a format, where there is one.
fn kernel<'a>(format: &Format<'a>, shape: Shape) -> Option<Kernel<'a>> {
    let settings = format.settings;
    let is_max_abs = settings.search == Search::MaxAbs;
    let importance = settings.importance;
    if cfg!(target_endian = "big") || shape.n() == 0 {
        return None;
    }
    let k_type = KType::ALL.iter().copied().find(|ty| ty.name() == format.def.name);
    if let Some(ty) = k_type {
        let is_whole = shape.cols.is_multiple_of(256);
        return is_whole.then(|| -> Kernel<'a> {
            Box::new(move |x, shape, parts| k::rows(ty, x, importance, shape.cols, &mut parts[0]))
        });
    }
    let is_whole = shape.cols.is_multiple_of(32);
    match (format.def.name, settings.sharing) {
        ("intN", Sharing::Row) if settings.n == 8 && is_max_abs => {
            Some(Box::new(|x, shape, parts| {
                with_scales(parts, |codes, scales| int8::rows(x, shape.cols, codes, scales))
            }))
        }
        ("llm_int8", _) if settings.threshold.is_infinite() => Some(Box::new(|x, shape, parts| {
            with_scales(parts, |codes, absmax| int8::llm_int8_rows(x, shape.cols, codes, absmax))
        })),
        (name @ ("nf4" | "fp4"), Sharing::Block(size)) if size.is_multiple_of(codebook::UNIT) => {
            let table = FourBit::new(if name == "nf4" { NF4_CODE } else { FP4_CODE });
            Some(Box::new(move |x, _, parts| {
                with_scales(parts, |codes, absmax| {
                    codebook::four_bit(x, size, &table, bytemuck::cast_slice_mut(codes), absmax)
                })
            }))
        }
        ("q4_0", _) if is_whole && importance.is_none() => {
            Some(Box::new(|x, _, parts| simple::q4_0(x, &mut parts[0])))
        }
        ("q8_0", _) if is_whole => Some(Box::new(|x, _, parts| simple::q8_0(x, &mut parts[0]))),
        ("float16", Sharing::Nothing) => Some(Box::new(|x, _, parts| {
            floats::to_f16(x, parts[0].as_chunks_mut().0);
            true
        })),
        ("bfloat16", Sharing::Nothing) => Some(Box::new(|x, _, parts| {
            floats::to_bf16(x, parts[0].as_chunks_mut().0);
            true
        })),
        _ => None,
    }
}

/// Calls `f` with the codes and, as numbers, the scales.
fn with_scales(parts: &mut [Vec<u8>], f: impl FnOnce(&mut [i8], &mut [f32]) -> bool) -> bool {
    let [codes, scales] = parts else { unreachable!("codes and scales") };
    let mut numbers = vec![0.0; scales.len() / 4];
    let is_finite = f(bytemuck::cast_slice_mut(codes), &mut numbers);
    scales.copy_from_slice(bytemuck::cast_slice(&numbers));
    is_finite
}
