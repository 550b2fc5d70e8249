//! What an operator's evaluation sees.

use std::sync::Mutex;

use midtread_graph::{AlignedBuf, DataType, Element, Node, Tensor, TensorError};

/// An evaluation's surroundings. Kernels use the threads of the rayon pool that the caller is in.
pub struct EvalCtx<'a> {
    /// The node: its attributes.
    pub node: &'a Node,
    /// The version of the node's operator set that the model imports.
    pub opset: i64,
    /// Where outputs get their memory from.
    pub pool: &'a Pool,
}

/// The inputs of one evaluation, by position; `None` where an optional one is left out.
///
/// An input that is used here for the last time is the only owner of its buffer, so that
/// [`Tensor::to_mut`] changes it in place and [`Pool`] need not be asked for another.
pub struct Args(pub Vec<Option<Tensor>>);

impl Args {
    /// Input `i`, if it is there.
    pub fn get(&self, i: usize) -> Option<&Tensor> {
        self.0.get(i)?.as_ref()
    }

    /// Input `i`, which the specification requires.
    pub fn required(&self, i: usize) -> Result<&Tensor, OpError> {
        self.get(i).ok_or(OpError::MissingInput(i))
    }

    /// Input `i`, to be owned.
    pub fn take(&mut self, i: usize) -> Result<Tensor, OpError> {
        self.0.get_mut(i).and_then(Option::take).ok_or(OpError::MissingInput(i))
    }

    /// How many positions there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Why a node could not be evaluated or inferred. The caller adds which node it was.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum OpError {
    /// An input that the specification requires is absent.
    #[error("input {0} is missing")]
    MissingInput(usize),
    /// An attribute that the specification requires is absent or of the wrong kind.
    #[error("attribute `{0}` is missing")]
    MissingAttr(&'static str),
    /// Something is against the specification; a clause: "3 input channels do not divide into 2 groups".
    #[error("{0}")]
    Invalid(String),
    /// A form that this version does not compute; a noun phrase: "`auto_pad` SAME_UPPER".
    #[error("{0} is not supported")]
    Unsupported(String),
    /// A tensor has another type or size than it must.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

/// Memory of tensors that are no longer used, for those that come next.
///
/// Fresh memory of more than a few pages costs more to obtain (the system zeroes each page on first use) than most
/// elementwise operators cost to compute.
#[derive(Debug, Default)]
pub struct Pool {
    free: Mutex<Vec<Entry>>,
}

/// A free buffer.
struct Entry(AlignedBuf);

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.0.capacity())
    }
}

impl Pool {
    /// At most this many buffers are kept.
    const MAX_FREE: usize = 32;

    /// A tensor whose elements are whatever the memory held before: the caller writes every one.
    pub fn tensor(&self, dtype: DataType, dims: Vec<usize>) -> Result<Tensor, OpError> {
        let n = midtread_graph::tensor::n_elements(&dims)?;
        let n_bytes = dtype.n_bytes(n).ok_or_else(|| TensorError::TooLarge { dims: dims.clone() })?;
        let mut free = self.free.lock().expect("no panic while the lock is held");
        // The smallest that is large enough, but not one that wastes more than it holds.
        let best = (0..free.len())
            .filter(|&i| (n_bytes..=(2 * n_bytes).max(4096)).contains(&free[i].0.capacity()))
            .min_by_key(|&i| free[i].0.capacity());
        let buf = best.map(|i| free.swap_remove(i).0);
        drop(free);
        let buf = buf.and_then(|b| b.reuse(n_bytes).ok()).unwrap_or_else(|| AlignedBuf::zeroed(n_bytes));
        Ok(Tensor::from_buf(dtype, dims, buf)?)
    }

    /// A tensor made by writing every element of `T`.
    pub fn fill<T: Element>(
        &self,
        dims: Vec<usize>,
        write: impl FnOnce(&mut [T]) -> Result<(), OpError>,
    ) -> Result<Tensor, OpError> {
        let mut tensor = self.tensor(T::DATA_TYPE, dims)?;
        write(tensor.to_mut()?)?;
        Ok(tensor)
    }

    /// Takes back the memory of a tensor, if nothing else shares it.
    pub fn give_back(&self, tensor: Tensor) {
        let Some(buf) = tensor.into_buf() else { return };
        let mut free = self.free.lock().expect("no panic while the lock is held");
        if free.len() < Self::MAX_FREE {
            free.push(Entry(buf));
        }
    }

    /// Bytes held free.
    pub fn n_free_bytes(&self) -> usize {
        self.free.lock().expect("no panic while the lock is held").iter().map(|e| e.0.capacity()).sum()
    }
}
