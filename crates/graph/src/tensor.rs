//! Typed bytes with a shape.

use std::{
    fmt,
    sync::{Arc, Weak},
};

use bytemuck::{Pod, Zeroable};
use bytes::Bytes;

use crate::dtype::DataType;

/// A dense tensor: element type, sizes, and the elements in row-major order.
///
/// Cloning is cheap (the elements are shared) and writing copies only what is shared. The bytes of a weight may
/// lie in a mapped file, at any alignment; [`Tensor::as_slice`] of such a tensor fails and
/// [`Tensor::to_aligned`] copies it.
///
/// Invariant: the storage holds exactly the bytes that `dtype` and `dims` call for (types of fewer than 8 bits are
/// packed as in ONNX `raw_data`), or exactly as many strings.
#[derive(Clone)]
pub struct Tensor {
    dtype: DataType,
    dims: Vec<usize>,
    storage: Storage,
    notes: Option<Arc<Notes>>,
}

#[derive(Clone)]
enum Storage {
    /// Any alignment; never written. Of a mapped file, who lets its pages go.
    Shared(Bytes, Option<Arc<dyn Pages>>),
    /// 64-byte aligned; written in place when this is the only owner.
    Aligned(Arc<AlignedBuf>),
    Strings(Arc<Vec<Bytes>>),
}

/// The pages of a mapped file.
pub trait Pages: Send + Sync {
    /// `bytes` lie in the mapping, and nobody needs them soon: their pages may leave the process's memory. Reading
    /// them later brings them back.
    fn release(&self, bytes: &[u8]);
}

/// What a file says about a tensor besides its elements. Carried, never looked at by a computation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notes {
    /// `TensorProto.name` of a tensor in an attribute. An initializer's name is its value's.
    pub name: String,
    /// `TensorProto.doc_string`.
    pub doc_string: String,
    /// `TensorProto.metadata_props`.
    pub metadata: Vec<(String, String)>,
}

/// A Rust type that a tensor's elements can be viewed as.
pub trait Element: Pod + PartialEq + fmt::Debug + Send + Sync {
    /// The ONNX type with this layout.
    const DATA_TYPE: DataType;
}

macro_rules! elements {
    ($($rust:ty => $onnx:ident),*) => {$(
        impl Element for $rust { const DATA_TYPE: DataType = DataType::$onnx; }
    )*};
}

elements!(f32 => Float, f64 => Double, i8 => Int8, u8 => Uint8, i16 => Int16, u16 => Uint16, i32 => Int32,
    u32 => Uint32, i64 => Int64, u64 => Uint64, half::f16 => Float16, half::bf16 => Bfloat16);

/// Why bytes and a shape do not make a tensor, or a tensor cannot be viewed as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TensorError {
    /// The product of the sizes, or its size in bytes, overflows.
    #[error("{dims:?} has more elements than can be addressed")]
    TooLarge {
        /// The sizes.
        dims: Vec<usize>,
    },
    /// The data's length does not fit the shape.
    #[error("{dtype}{dims:?} needs {needed} bytes of data, not {got}")]
    Length {
        /// Element type.
        dtype: DataType,
        /// Sizes.
        dims: Vec<usize>,
        /// Bytes (or strings) that these call for.
        needed: usize,
        /// Bytes (or strings) given.
        got: usize,
    },
    /// The elements have another type than the one asked for.
    #[error("the tensor is {got}, not {asked}")]
    Type {
        /// What the caller can use.
        asked: DataType,
        /// What the tensor holds.
        got: DataType,
    },
    /// The bytes lie at an address that the element type does not allow.
    #[error("the tensor's bytes are not aligned for {0}")]
    Unaligned(DataType),
}

/// The product of `dims`, or an error where it overflows.
pub fn n_elements(dims: &[usize]) -> Result<usize, TensorError> {
    // A zero size makes the tensor empty whatever the others multiply to.
    if dims.contains(&0) {
        return Ok(0);
    }
    dims.iter()
        .try_fold(1_usize, |n, &d| n.checked_mul(d))
        .ok_or_else(|| TensorError::TooLarge { dims: dims.to_vec() })
}

impl Tensor {
    /// A tensor over shared bytes, which are not copied.
    pub fn from_bytes(
        dtype: DataType,
        dims: Vec<usize>,
        bytes: Bytes,
    ) -> Result<Self, TensorError> {
        check_length(dtype, &dims, bytes.len())?;
        Ok(Self { dtype, dims, storage: Storage::Shared(bytes, None), notes: None })
    }

    /// A tensor over bytes of a mapping, which are not copied.
    pub fn from_mapped(
        dtype: DataType,
        dims: Vec<usize>,
        bytes: Bytes,
        pages: Arc<dyn Pages>,
    ) -> Result<Self, TensorError> {
        check_length(dtype, &dims, bytes.len())?;
        Ok(Self { dtype, dims, storage: Storage::Shared(bytes, Some(pages)), notes: None })
    }

    /// Says that the elements will not be read soon. Those in a mapped file leave this process's memory, until they
    /// are read again; others stay. Whoever walks over the weights of a whole model calls this after each, so that
    /// models larger than the memory can be worked on.
    pub fn release_pages(&self) {
        if let Storage::Shared(bytes, Some(pages)) = &self.storage {
            pages.release(bytes);
        }
    }

    /// A tensor over a buffer, which is not copied. Bytes of `buf` past the needed length are cut off.
    pub fn from_buf(
        dtype: DataType,
        dims: Vec<usize>,
        mut buf: AlignedBuf,
    ) -> Result<Self, TensorError> {
        let needed = dtype.n_bytes(n_elements(&dims)?);
        let needed = needed.ok_or_else(|| TensorError::TooLarge { dims: dims.clone() })?;
        if buf.len < needed {
            return Err(TensorError::Length { dtype, dims, needed, got: buf.len });
        }
        buf.len = needed;
        Ok(Self { dtype, dims, storage: Storage::Aligned(Arc::new(buf)), notes: None })
    }

    /// A tensor of zeros (of any type but string).
    pub fn zeros(dtype: DataType, dims: Vec<usize>) -> Result<Self, TensorError> {
        let needed = dtype.n_bytes(n_elements(&dims)?);
        let needed = needed.ok_or_else(|| TensorError::TooLarge { dims: dims.clone() })?;
        Self::from_buf(dtype, dims, AlignedBuf::zeroed(needed))
    }

    /// A tensor with a copy of `elements`.
    pub fn from_slice<T: Element>(dims: Vec<usize>, elements: &[T]) -> Result<Self, TensorError> {
        let bytes = bytemuck::cast_slice(elements);
        check_length(T::DATA_TYPE, &dims, bytes.len())?;
        Self::from_buf(T::DATA_TYPE, dims, AlignedBuf::from_bytes(bytes))
    }

    /// A tensor without dimensions.
    pub fn scalar<T: Element>(value: T) -> Self {
        Self::from_slice(Vec::new(), &[value]).expect("one element fits no dimensions")
    }

    /// A one-dimensional tensor.
    pub fn vector<T: Element>(elements: &[T]) -> Self {
        Self::from_slice(vec![elements.len()], elements).expect("the size is the slice's length")
    }

    /// A tensor of strings.
    pub fn from_strings(dims: Vec<usize>, strings: Vec<Bytes>) -> Result<Self, TensorError> {
        let (needed, got) = (n_elements(&dims)?, strings.len());
        if needed != got {
            return Err(TensorError::Length { dtype: DataType::String, dims, needed, got });
        }
        Ok(Self {
            dtype: DataType::String,
            dims,
            storage: Storage::Strings(Arc::new(strings)),
            notes: None,
        })
    }

    /// Element type.
    pub fn dtype(&self) -> DataType {
        self.dtype
    }

    /// Sizes, outermost first.
    pub fn dims(&self) -> &[usize] {
        &self.dims
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        n_elements(&self.dims).expect("checked when the tensor was made")
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements' bytes, packed as in ONNX `raw_data`, in this machine's (little-endian) order. Empty for
    /// strings.
    pub fn as_bytes(&self) -> &[u8] {
        match &self.storage {
            Storage::Shared(bytes, _) => bytes,
            Storage::Aligned(buf) => buf.as_bytes(),
            Storage::Strings(_) => &[],
        }
    }

    /// The bytes as a shared buffer: without a copy where they are one already.
    pub fn to_shared_bytes(&self) -> Bytes {
        match &self.storage {
            Storage::Shared(bytes, _) => bytes.clone(),
            Storage::Aligned(buf) => Bytes::from_owner(SharedBuf(buf.clone())),
            Storage::Strings(_) => Bytes::new(),
        }
    }

    /// The strings of a string tensor.
    pub fn as_strings(&self) -> Option<&[Bytes]> {
        match &self.storage {
            Storage::Strings(strings) => Some(strings),
            Storage::Shared(..) | Storage::Aligned(_) => None,
        }
    }

    /// The elements. Fails for another type, and for unaligned bytes (see [`Tensor::to_aligned`]).
    pub fn as_slice<T: Element>(&self) -> Result<&[T], TensorError> {
        self.check_type::<T>()?;
        bytemuck::try_cast_slice(self.as_bytes()).map_err(|_| TensorError::Unaligned(self.dtype))
    }

    /// The elements as a new vector, whatever their alignment.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>, TensorError> {
        self.check_type::<T>()?;
        Ok(bytemuck::pod_collect_to_vec(self.as_bytes()))
    }

    /// The elements, to be written. Copies first if they are shared with another tensor or lie in a file.
    pub fn to_mut<T: Element>(&mut self) -> Result<&mut [T], TensorError> {
        self.check_type::<T>()?;
        Ok(bytemuck::cast_slice_mut(self.bytes_mut()))
    }

    /// The bytes, to be written. Copies first if they are shared. Empty for strings.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        if let Storage::Shared(bytes, _) = &self.storage {
            self.storage = Storage::Aligned(Arc::new(AlignedBuf::from_bytes(bytes)));
        }
        match &mut self.storage {
            Storage::Aligned(buf) => Arc::make_mut(buf).as_bytes_mut(),
            Storage::Strings(_) => &mut [],
            Storage::Shared(..) => unreachable!("replaced above"),
        }
    }

    /// Whether writing would not copy.
    pub fn is_unique(&self) -> bool {
        matches!(&self.storage, Storage::Aligned(buf) if Arc::strong_count(buf) == 1)
    }

    /// This tensor if its bytes are aligned for its type, else a copy whose are.
    pub fn to_aligned(&self) -> Self {
        let align = self.dtype.n_bits().map_or(1, |bits| bits.div_ceil(8).next_power_of_two());
        match &self.storage {
            Storage::Shared(bytes, _) if !(bytes.as_ptr() as usize).is_multiple_of(align) => {
                let storage = Storage::Aligned(Arc::new(AlignedBuf::from_bytes(bytes)));
                Self { storage, ..self.clone() }
            }
            _ => self.clone(),
        }
    }

    /// The buffer, to be used again, if no other tensor shares it.
    pub fn into_buf(self) -> Option<AlignedBuf> {
        match self.storage {
            Storage::Aligned(buf) => Arc::into_inner(buf),
            Storage::Shared(..) | Storage::Strings(_) => None,
        }
    }

    /// The same elements under other sizes of the same product.
    pub fn reshaped(&self, dims: Vec<usize>) -> Result<Self, TensorError> {
        let (needed, got) = (n_elements(&dims)?, self.len());
        if needed != got {
            return Err(TensorError::Length { dtype: self.dtype, dims, needed, got });
        }
        Ok(Self { dims, ..self.clone() })
    }

    /// The same bytes under another type of the same width (`u8` as `bool`).
    pub fn with_dtype(&self, dtype: DataType) -> Result<Self, TensorError> {
        if self.dtype.n_bits() != dtype.n_bits() {
            return Err(TensorError::Type { asked: dtype, got: self.dtype });
        }
        Ok(Self { dtype, ..self.clone() })
    }

    /// What the file says about the tensor besides its elements.
    pub fn notes(&self) -> Option<&Notes> {
        self.notes.as_deref()
    }

    /// The same tensor with other notes.
    pub fn with_notes(self, notes: Notes) -> Self {
        let notes = (notes != Notes::default()).then(|| Arc::new(notes));
        Self { notes, ..self }
    }

    /// The one element of a tensor with one element.
    pub fn item<T: Element>(&self) -> Option<T> {
        (self.len() == 1).then(|| self.to_vec().ok()).flatten().map(|v| v[0])
    }

    fn check_type<T: Element>(&self) -> Result<(), TensorError> {
        if self.dtype == T::DATA_TYPE {
            Ok(())
        } else {
            Err(TensorError::Type { asked: T::DATA_TYPE, got: self.dtype })
        }
    }
}

fn check_length(dtype: DataType, dims: &[usize], got: usize) -> Result<(), TensorError> {
    let needed = dtype.n_bytes(n_elements(dims)?);
    let needed = needed.ok_or_else(|| TensorError::TooLarge { dims: dims.to_vec() })?;
    if needed != got {
        return Err(TensorError::Length { dtype, dims: dims.to_vec(), needed, got });
    }
    Ok(())
}

/// Equal type, sizes and bytes: NaN equals the same NaN, and -0.0 differs from 0.0.
impl PartialEq for Tensor {
    fn eq(&self, other: &Self) -> bool {
        self.dtype == other.dtype
            && self.dims == other.dims
            && self.as_bytes() == other.as_bytes()
            && self.as_strings() == other.as_strings()
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.dtype, self.dims)?;
        let some: &[u8] = &self.as_bytes()[..self.as_bytes().len().min(64)];
        match self.dtype {
            DataType::Float => write!(f, " {:?}", bytemuck::pod_collect_to_vec::<u8, f32>(some)),
            DataType::Int64 => write!(f, " {:?}", bytemuck::pod_collect_to_vec::<u8, i64>(some)),
            DataType::Int32 => write!(f, " {:?}", bytemuck::pod_collect_to_vec::<u8, i32>(some)),
            DataType::String => write!(f, " {:?}", self.as_strings()),
            _ => write!(f, " {some:?}"),
        }
    }
}

/// One set of values for a model's inputs: a picture, a sentence, a batch of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Where it came from (a file's name, or an index): unique in a data set, and the order of samples is the order
    /// of their names.
    pub name: String,
    /// Input name and tensor.
    pub inputs: Vec<(String, Tensor)>,
}

/// Bytes at a 64-byte boundary (one cache line, one AVX-512 register), rounded up to whole lines.
#[derive(Clone, Default)]
pub struct AlignedBuf {
    lines: Vec<Line>,
    len: usize,
    home: Option<Weak<dyn Home>>,
}

/// Where the memory of buffers goes when they are dropped.
pub trait Home: Send + Sync {
    /// Takes in the buffer, which has no home any more. If it is dropped there, its memory is freed.
    fn take_in(&self, buf: AlignedBuf);
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

impl AlignedBuf {
    /// `n_bytes` zeros. Large buffers come zeroed from the system, without being written here.
    pub fn zeroed(n_bytes: usize) -> Self {
        Self {
            lines: bytemuck::allocation::zeroed_vec(n_bytes.div_ceil(64)),
            len: n_bytes,
            home: None,
        }
    }

    /// A copy.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut buf = Self::zeroed(bytes.len());
        buf.as_bytes_mut().copy_from_slice(bytes);
        buf
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }

    /// The bytes, to be written.
    pub fn as_bytes_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }

    /// Bytes the buffer could hold without growing.
    pub fn capacity(&self) -> usize {
        self.lines.len() * 64
    }

    /// The same buffer, which goes to `home` when it is dropped, if there is still such a place then.
    pub fn with_home(mut self, home: Weak<dyn Home>) -> Self {
        self.home = Some(home);
        self
    }

    /// The same memory as a buffer of `n_bytes` of whatever it held before, or itself where it is too small.
    pub fn reuse(mut self, n_bytes: usize) -> Result<Self, Self> {
        if self.capacity() < n_bytes {
            return Err(self);
        }
        self.len = n_bytes;
        Ok(self)
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        if let Some(home) = self.home.take().and_then(|home| home.upgrade()) {
            home.take_in(std::mem::take(self));
        }
    }
}

/// Lets `Bytes` own a tensor's buffer.
struct SharedBuf(Arc<AlignedBuf>);

impl AsRef<[u8]> for SharedBuf {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn length_must_fit_the_shape() {
        let bytes = Bytes::from_static(&[0; 8]);
        assert!(Tensor::from_bytes(DataType::Float, vec![2], bytes.clone()).is_ok());
        assert!(matches!(
            Tensor::from_bytes(DataType::Float, vec![3], bytes.clone()),
            Err(TensorError::Length { needed: 12, got: 8, .. })
        ));
        assert!(matches!(
            Tensor::from_bytes(DataType::Float, vec![usize::MAX, 2], bytes),
            Err(TensorError::TooLarge { .. })
        ));
        assert_eq!(Tensor::zeros(DataType::Int4, vec![3]).unwrap().as_bytes(), [0, 0]);
        assert_eq!(Tensor::zeros(DataType::Float, vec![usize::MAX, 0]).unwrap().len(), 0);
    }

    #[test]
    fn writing_copies_only_what_is_shared() {
        let mut a = Tensor::vector(&[1.0_f32, 2.0]);
        let address = a.as_bytes().as_ptr();
        a.to_mut::<f32>().unwrap()[0] = 5.0;
        assert_eq!(a.as_bytes().as_ptr(), address, "the only owner writes in place");

        let b = a.clone();
        a.to_mut::<f32>().unwrap()[0] = 7.0;
        assert_eq!(b.as_slice::<f32>().unwrap(), [5.0, 2.0]);
        assert_eq!(a.as_slice::<f32>().unwrap(), [7.0, 2.0]);
    }

    #[test]
    fn unaligned_bytes_are_refused_as_a_slice_and_copied_when_asked() {
        let bytes = Bytes::from_owner(AlignedBuf::from_bytes(&[0, 0, 0, 0x80, 0x3f])).slice(1..);
        let tensor = Tensor::from_bytes(DataType::Float, vec![1], bytes).unwrap();
        assert_eq!(tensor.as_slice::<f32>(), Err(TensorError::Unaligned(DataType::Float)));
        assert_eq!(tensor.to_vec::<f32>().unwrap(), [1.0]);
        assert_eq!(tensor.to_aligned().as_slice::<f32>().unwrap(), [1.0]);
        assert!(matches!(tensor.as_slice::<i32>(), Err(TensorError::Type { .. })));
    }

    impl AsRef<[u8]> for AlignedBuf {
        fn as_ref(&self) -> &[u8] {
            self.as_bytes()
        }
    }

    #[test]
    fn buffers_come_back_only_from_their_last_owner() {
        let a = Tensor::zeros(DataType::Float, vec![100]).unwrap();
        let b = a.clone();
        assert!(a.into_buf().is_none());
        let buf = b.into_buf().unwrap();
        assert_eq!(buf.capacity(), 448);
        let buf = buf.reuse(449).err().unwrap();
        assert_eq!(buf.reuse(448).ok().unwrap().as_bytes().len(), 448);
    }
}
