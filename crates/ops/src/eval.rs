//! What an operator's evaluation sees.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

use midtread_graph::{AlignedBuf, DataType, Element, Home, Node, Tensor, TensorError, Type};

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

/// What a value is while a model runs.
#[derive(Clone, Debug, PartialEq)]
pub enum Datum {
    /// A tensor, also one in an optional value.
    Tensor(Tensor),
    /// Tensors in order. A clone shares the list until one of the two is changed.
    Sequence(Arc<Vec<Tensor>>),
    /// An optional value that is not there.
    Empty,
}

impl From<Tensor> for Datum {
    fn from(tensor: Tensor) -> Self {
        Self::Tensor(tensor)
    }
}

impl Datum {
    /// The tensor.
    pub fn as_tensor(&self) -> Option<&Tensor> {
        match self {
            Self::Tensor(tensor) => Some(tensor),
            Self::Sequence(_) | Self::Empty => None,
        }
    }

    /// The tensor, or an error where it is something else.
    pub fn into_tensor(self) -> Result<Tensor, OpError> {
        match self {
            Self::Tensor(tensor) => Ok(tensor),
            other => Err(OpError::Invalid(format!("{} where a tensor is needed", other.kind()))),
        }
    }

    /// The tensors of a sequence, or an error where it is something else.
    pub fn into_sequence(self) -> Result<Arc<Vec<Tensor>>, OpError> {
        match self {
            Self::Sequence(tensors) => Ok(tensors),
            other => Err(OpError::Invalid(format!("{} where a sequence is needed", other.kind()))),
        }
    }

    /// `a tensor`, `a sequence`, `an empty optional`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Tensor(_) => "a tensor",
            Self::Sequence(_) => "a sequence",
            Self::Empty => "an empty optional",
        }
    }

    /// Every tensor in it.
    pub fn tensors(&self) -> &[Tensor] {
        match self {
            Self::Tensor(tensor) => std::slice::from_ref(tensor),
            Self::Sequence(tensors) => tensors,
            Self::Empty => &[],
        }
    }
}

/// Runs the graphs in a node's attributes. What they take from the graph around them is known to whoever does.
pub trait Bodies {
    /// The outputs of the graph in the attribute `name` on these inputs.
    fn run(&self, name: &'static str, inputs: Vec<Datum>) -> Result<Vec<Datum>, OpError>;
    /// What that graph says of its outputs.
    fn outputs(&self, name: &'static str) -> Result<Vec<Option<Type>>, OpError>;
}

/// For nodes that have no graph.
pub struct NoBodies;

impl Bodies for NoBodies {
    fn run(&self, name: &'static str, _: Vec<Datum>) -> Result<Vec<Datum>, OpError> {
        Err(OpError::MissingAttr(name))
    }

    fn outputs(&self, name: &'static str) -> Result<Vec<Option<Type>>, OpError> {
        Err(OpError::MissingAttr(name))
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
    /// An output is larger than what may still be held ([`Pool::set_max_tensor`]).
    #[error("a tensor of {needed} bytes is more than may be held")]
    Memory {
        /// Its size.
        needed: usize,
    },
    /// Something went wrong in a graph that the node runs: which graph, and what it said.
    #[error("in its `{name}`: {message}")]
    Body {
        /// The attribute with the graph.
        name: &'static str,
        /// The error there.
        message: String,
    },
    /// A tensor has another type or size than it must.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

/// Memory of tensors that are no longer used, for those that come next.
///
/// Fresh memory of more than a few pages costs more to obtain (the system zeroes each page on first use) than most
/// elementwise operators cost to compute. What a pool gave comes back to it when it is dropped, wherever that is.
#[derive(Debug)]
pub struct Pool {
    free: Arc<FreeList>,
    max_tensor: AtomicUsize,
}

/// Free buffers, the one that came last at the end, and how many are kept at most.
struct FreeList(Mutex<VecDeque<AlignedBuf>>, usize);

impl Default for FreeList {
    fn default() -> Self {
        Self(Mutex::default(), 32)
    }
}

impl FreeList {
    fn lock(&self) -> MutexGuard<'_, VecDeque<AlignedBuf>> {
        self.0.lock().expect("no panic while the lock is held")
    }
}

impl Home for FreeList {
    fn take_in(&self, buf: AlignedBuf) {
        let mut free = self.lock();
        free.push_back(buf);
        // The oldest goes: nothing of its size was asked for since. Freed after the lock.
        let _freed = if self.1 < free.len() { free.pop_front() } else { None };
        drop(free);
    }
}

impl std::fmt::Debug for FreeList {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} buffers", self.lock().len())
    }
}

impl Default for Pool {
    fn default() -> Self {
        Self { free: Arc::default(), max_tensor: AtomicUsize::new(usize::MAX) }
    }
}

impl Pool {
    /// A pool that keeps up to `n` free buffers: for those who hold many values at once and give them all back.
    pub fn keeping(n: usize) -> Self {
        Self { free: Arc::new(FreeList(Mutex::default(), n)), ..Self::default() }
    }

    /// A tensor whose elements are whatever the memory held before: the caller writes every one.
    pub fn tensor(&self, dtype: DataType, dims: Vec<usize>) -> Result<Tensor, OpError> {
        let n = midtread_graph::tensor::n_elements(&dims)?;
        let n_bytes =
            dtype.n_bytes(n).ok_or_else(|| TensorError::TooLarge { dims: dims.clone() })?;
        if self.max_tensor.load(Ordering::Relaxed) < n_bytes {
            return Err(OpError::Memory { needed: n_bytes });
        }
        let mut free = self.free.lock();
        // The smallest that is large enough, but not one that wastes more than it holds.
        let best = (0..free.len())
            .filter(|&i| (n_bytes..=(2 * n_bytes).max(4096)).contains(&free[i].capacity()))
            .min_by_key(|&i| free[i].capacity());
        let buf = best.and_then(|i| free.remove(i));
        drop(free);
        let buf =
            buf.and_then(|b| b.reuse(n_bytes).ok()).unwrap_or_else(|| AlignedBuf::zeroed(n_bytes));
        let home: Weak<FreeList> = Arc::downgrade(&self.free);
        Ok(Tensor::from_buf(dtype, dims, buf.with_home(home))?)
    }

    /// From now on, larger tensors are refused with [`OpError::Memory`].
    pub fn set_max_tensor(&self, n_bytes: usize) {
        self.max_tensor.store(n_bytes, Ordering::Relaxed);
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
        // A buffer of this pool comes back when it is dropped; one from elsewhere is as welcome.
        if let Some(buf) = tensor.into_buf() {
            let home: Weak<FreeList> = Arc::downgrade(&self.free);
            drop(buf.with_home(home));
        }
    }

    /// Bytes held free.
    pub fn n_free_bytes(&self) -> usize {
        self.free.lock().iter().map(AlignedBuf::capacity).sum()
    }

    /// Frees what is held, the oldest first, until at most `n_bytes` are.
    pub fn trim(&self, n_bytes: usize) {
        while n_bytes < self.n_free_bytes() {
            let oldest = self.free.lock().pop_front();
            drop(oldest);
        }
    }
}
