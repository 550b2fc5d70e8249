//! Sizes of a tensor, without an allocation.

use alloc::format;
use core::{fmt, ops::Deref};

use crate::fault::Fault;

/// The most dimensions that a tensor of a program has.
pub const MAX_RANK: usize = 8;

/// Sizes, outermost first.
///
/// Invariant: their product, sizes of 0 counted as 1, is at most `isize::MAX / 8`, so that no product of some of them
/// overflows, nor does the number of bytes of the elements.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Dims {
    rank: usize,
    sizes: [usize; MAX_RANK],
}

impl Dims {
    /// Checks the invariant.
    pub fn new(sizes: &[usize]) -> Result<Self, Fault> {
        let mut all = [0; MAX_RANK];
        let Some(first) = all.get_mut(..sizes.len()) else {
            return Err(Fault::new(format!("{} dimensions, and at most {MAX_RANK}", sizes.len())));
        };
        first.copy_from_slice(sizes);
        let product = sizes.iter().try_fold(1_usize, |n, &d| n.checked_mul(d.max(1)));
        match product {
            Some(n) if n <= isize::MAX as usize / 8 => Ok(Self { rank: sizes.len(), sizes: all }),
            _ => Err(Fault::new(format!("{sizes:?} has more elements than can be addressed"))),
        }
    }

    /// How many elements there are.
    pub fn n_elements(&self) -> usize {
        self.iter().product()
    }
}

impl Deref for Dims {
    type Target = [usize];

    fn deref(&self) -> &[usize] {
        &self.sizes[..self.rank]
    }
}

impl fmt::Debug for Dims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.deref().fmt(f)
    }
}
