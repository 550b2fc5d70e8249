//! Programs as bytes.
//!
//! `"midtread"`, the version as a little-endian `u32`, the payload's length as `u64`, its FNV-1a hash as `u64`, the
//! payload. In it, numbers are little-endian, a list is its length as `u32` and its elements, and the elements of
//! tensors lie at multiples of 64 from the file's beginning, so that a program that is mapped or embedded is not copied.
//!
//! What is read is checked: a file whose hash is right may still say anything.

use alloc::{boxed::Box, format, string::String, vec::Vec};

use bytes::Bytes;
use midtread_num::requant::Multiplier;

use crate::{code::*, fault::Fault};

const MAGIC: &[u8; 8] = b"midtread";
/// Goes up with every change of what follows.
const VERSION: u32 = 2;
const HEADER: usize = 28;
/// Where tensors' elements begin.
const ALIGN: usize = 64;

impl Code {
    /// The program as bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Writer(Vec::new());
        out.0.extend([0; HEADER]);
        self.write(&mut out);
        let Writer(mut bytes) = out;
        let payload = &bytes[HEADER..];
        let header = [
            &MAGIC[..],
            &VERSION.to_le_bytes(),
            &(payload.len() as u64).to_le_bytes(),
            &hash(payload).to_le_bytes(),
        ]
        .concat();
        bytes[..HEADER].copy_from_slice(&header);
        bytes
    }

    /// A program from bytes, whose tensors share them.
    pub fn from_bytes(bytes: Bytes) -> Result<Self, Fault> {
        let mut input = Reader { bytes, at: 0 };
        if input.take(8).ok().as_deref() != Some(MAGIC) {
            return Err(Fault::new("no compiled program: it does not begin with `midtread`"));
        }
        let version = input.u32()?;
        if version != VERSION {
            return Err(Fault::new(format!(
                "a compiled program of version {version}, and version {VERSION} is known: compile the model again"
            )));
        }
        let (len, sum) = (input.u64()?, input.u64()?);
        let payload = &input.bytes[HEADER..];
        if len != payload.len() as u64 {
            return Err(Fault::new(format!(
                "a compiled program of {len} bytes, of which {} are there",
                payload.len()
            )));
        }
        if sum != hash(payload) {
            return Err(Fault::new(
                "a compiled program whose bytes were changed: its checksum differs",
            ));
        }
        let code = Self::read(&mut input)?;
        if input.at != input.bytes.len() {
            return Err(Fault::new("bytes behind the end of a compiled program"));
        }
        Ok(code)
    }

    /// Whether these bytes begin as a program does.
    pub fn is_program(bytes: &[u8]) -> bool {
        bytes.starts_with(MAGIC)
    }
}

/// FNV-1a, eight bytes at a time.
fn hash(bytes: &[u8]) -> u64 {
    const PRIME: u64 = 0x0100_0000_01b3;
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        hash = (hash ^ u64::from_le_bytes(*word)).wrapping_mul(PRIME);
        // The product moves bits up only.
        hash ^= hash >> 32;
    }
    for &byte in rest {
        hash = (hash ^ u64::from(byte)).wrapping_mul(PRIME);
    }
    hash
}

struct Writer(Vec<u8>);

struct Reader {
    bytes: Bytes,
    at: usize,
}

impl Reader {
    fn take(&mut self, n: usize) -> Result<Bytes, Fault> {
        let end = self.at.checked_add(n).filter(|&end| end <= self.bytes.len());
        let end = end.ok_or_else(|| Fault::new("a compiled program that ends too early"))?;
        let part = self.bytes.slice(self.at..end);
        self.at = end;
        Ok(part)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        Ok(*self.take(N)?.first_chunk().expect("as many as were asked for"))
    }

    fn u32(&mut self) -> Result<u32, Fault> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, Fault> {
        Ok(u64::from_le_bytes(self.array()?))
    }
}

fn unknown(what: &str, tag: u8) -> Fault {
    Fault::new(format!("{what} of unknown kind {tag}"))
}

/// What is written and read in one order.
trait Part: Sized {
    fn write(&self, out: &mut Writer);
    fn read(input: &mut Reader) -> Result<Self, Fault>;
}

macro_rules! numbers {
    ($($ty:ty),*) => {$(
        impl Part for $ty {
            fn write(&self, out: &mut Writer) {
                out.0.extend(self.to_le_bytes());
            }
            fn read(input: &mut Reader) -> Result<Self, Fault> {
                Ok(Self::from_le_bytes(input.array()?))
            }
        }
    )*};
}

numbers!(u8, u32, i32, i64, f32);

impl Part for usize {
    fn write(&self, out: &mut Writer) {
        out.0.extend((*self as u64).to_le_bytes());
    }
    fn read(input: &mut Reader) -> Result<Self, Fault> {
        let n = input.u64()?;
        Self::try_from(n).map_err(|_| Fault::new(format!("a size of {n}")))
    }
}

impl Part for bool {
    fn write(&self, out: &mut Writer) {
        u8::from(*self).write(out);
    }
    fn read(input: &mut Reader) -> Result<Self, Fault> {
        match u8::read(input)? {
            0 => Ok(false),
            1 => Ok(true),
            tag => Err(unknown("a yes or no", tag)),
        }
    }
}

impl<T: Part> Part for Option<T> {
    fn write(&self, out: &mut Writer) {
        self.is_some().write(out);
        if let Some(value) = self {
            value.write(out);
        }
    }
    fn read(input: &mut Reader) -> Result<Self, Fault> {
        bool::read(input)?.then(|| T::read(input)).transpose()
    }
}

impl<T: Part> Part for Vec<T> {
    fn write(&self, out: &mut Writer) {
        u32::try_from(self.len()).expect("lists of a program are short").write(out);
        self.iter().for_each(|item| item.write(out));
    }
    fn read(input: &mut Reader) -> Result<Self, Fault> {
        let n = input.u32()? as usize;
        // No more than there can be, so that a wrong length asks for no memory: an item is a byte at least.
        let mut list =
            Self::with_capacity(n.min((input.bytes.len() - input.at) / size_of::<T>().max(1)));
        for _ in 0..n {
            list.push(T::read(input)?);
        }
        Ok(list)
    }
}

impl<T: Part + Default, const N: usize> Part for [T; N] {
    fn write(&self, out: &mut Writer) {
        self.iter().for_each(|item| item.write(out));
    }
    fn read(input: &mut Reader) -> Result<Self, Fault> {
        let mut items: Self = core::array::from_fn(|_| T::default());
        for item in &mut items {
            *item = T::read(input)?;
        }
        Ok(items)
    }
}

impl<T: Part> Part for Box<T> {
    fn write(&self, out: &mut Writer) {
        (**self).write(out);
    }
    fn read(input: &mut Reader) -> Result<Self, Fault> {
        T::read(input).map(Self::new)
    }
}

impl<A: Part, B: Part> Part for (A, B) {
    fn write(&self, out: &mut Writer) {
        self.0.write(out);
        self.1.write(out);
    }
    fn read(input: &mut Reader) -> Result<Self, Fault> {
        Ok((A::read(input)?, B::read(input)?))
    }
}

impl Part for String {
    fn write(&self, out: &mut Writer) {
        u32::try_from(self.len()).expect("names of a program are short").write(out);
        out.0.extend(self.as_bytes());
    }
    fn read(input: &mut Reader) -> Result<Self, Fault> {
        let n = input.u32()? as usize;
        let bytes = input.take(n)?;
        let text =
            core::str::from_utf8(&bytes).map_err(|_| Fault::new("a name that is no text"))?;
        Ok(text.into())
    }
}

/// Aligned, and not copied when it is read.
impl Part for Bytes {
    fn write(&self, out: &mut Writer) {
        self.len().write(out);
        out.0.resize(out.0.len().next_multiple_of(ALIGN), 0);
        out.0.extend_from_slice(self);
    }
    fn read(input: &mut Reader) -> Result<Self, Fault> {
        let n = usize::read(input)?;
        input.take(input.at.next_multiple_of(ALIGN) - input.at)?;
        input.take(n)
    }
}

impl Part for Multiplier {
    fn write(&self, out: &mut Writer) {
        self.mantissa().write(out);
        self.shift().write(out);
    }
    fn read(input: &mut Reader) -> Result<Self, Fault> {
        let (mantissa, shift) = (i32::read(input)?, input.u32()?);
        Self::from_parts(mantissa, shift)
            .ok_or_else(|| Fault::new(format!("a multiplier {mantissa} * 2^-{shift}")))
    }
}

/// Fields in one order.
macro_rules! structs {
    ($($ty:ident { $($field:ident),* })*) => {$(
        impl Part for $ty {
            fn write(&self, out: &mut Writer) {
                $(self.$field.write(out);)*
            }
            fn read(input: &mut Reader) -> Result<Self, Fault> {
                Ok(Self { $($field: Part::read(input)?),* })
            }
        }
    )*};
}

structs! {
    Code { inputs, outputs, n_values, constants, steps }
    Port { name, elem, dims, value }
    Constant { elem, dims, data }
    Step { node, op_type, why, op, inputs, outputs }
    Operator { domain, op_type, opset, attrs }
    Quant { scale, zero_point, is_signed }
    Window { kernel, strides, dilations, pads, ceil }
    Conv { window, groups, c_in, weights, bias, x_zero, x_signed, to }
    Product { k, weights, bias, x_signed, to, row }
    Row { pair, is_swapped, codes }
    Matmul { inputs, output, codes, perms, is_fixed }
    Pair { inputs, output, codes, is_fixed }
    Single { x, y, is_fixed }
}

impl Default for Quant {
    fn default() -> Self {
        Self { scale: 1.0, zero_point: 0, is_signed: false }
    }
}

/// A tag and the variant's parts.
macro_rules! enums {
    ($($ty:ident, $what:literal { $($tag:literal => $variant:ident $(($($part:ident),*))? $({$($field:ident),*})?),* $(,)? })*) => {$(
        impl Part for $ty {
            fn write(&self, out: &mut Writer) {
                match self {
                    $(Self::$variant $(($($part),*))? $({$($field),*})? => {
                        out.0.push($tag);
                        $($($part.write(out);)*)?
                        $($($field.write(out);)*)?
                    })*
                }
            }
            fn read(input: &mut Reader) -> Result<Self, Fault> {
                Ok(match u8::read(input)? {
                    $($tag => {
                        $($(let $part = Part::read(input)?;)*)?
                        $($(let $field = Part::read(input)?;)*)?
                        Self::$variant $(($($part),*))? $({$($field),*})?
                    })*
                    tag => return Err(unknown($what, tag)),
                })
            }
        }
    )*};
}

enums! {
    Size, "a size" { 0 => Known(n), 1 => Named(name), 2 => Unknown }
    Pads, "a padding" { 0 => Said(pads), 1 => SameUpper, 2 => SameLower }
    Factors, "factors" { 0 => Float(list), 1 => Fixed(list) }
    To, "an output" {
        0 => Codes { factors, codes, zero_point, is_signed },
        1 => Numbers { scales },
        2 => Dynamic { scales, shifts },
    }
    Reshape, "a reshape" {
        0 => To { sizes, allow_zero }, 1 => Flatten(axis), 2 => Squeeze(axes), 3 => Unsqueeze(axes),
    }
    Attribute, "an attribute" {
        0 => Float(x), 1 => Int(i), 2 => String(s), 3 => Tensor(t), 4 => Floats(x), 5 => Ints(i), 6 => Strings(s),
    }
    Op, "a step" {
        0 => Operator(operator),
        1 => Quantize(quant),
        2 => Dequantize(quant),
        3 => DynamicQuantize,
        4 => Conv(conv),
        5 => Product(product),
        6 => Add(pair),
        7 => Mul(pair),
        8 => Concat { axis, tables },
        9 => Mean(single),
        10 => AveragePool(window, single, include_pads),
        11 => MaxPool(window, is_signed),
        12 => Table(codes, signs),
        13 => Reshape(reshape),
        14 => Transpose(perm),
        15 => ToLast,
        16 => ToPlain,
        17 => Matmul(matmul),
        18 => Softmax(single),
    }
}
