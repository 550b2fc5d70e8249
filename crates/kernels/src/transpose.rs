//! Permuting a tensor's dimensions.

use alloc::vec::Vec;

use crate::par::{self, Disjoint};

/// `y[i_perm] = x[i]`: dimension `d` of `y` is dimension `perm[d]` of `x`, as ONNX `Transpose`.
///
/// # Panics
///
/// When `perm` is not a permutation of `dims`' positions, or a slice has another length than `dims` say.
pub fn transpose<T: Copy + Send + Sync>(x: &[T], dims: &[usize], perm: &[usize], y: &mut [T]) {
    let is_permutation = (0..dims.len()).all(|d| perm.contains(&d));
    assert!(is_permutation, "{perm:?} is a permutation");
    assert_eq!(perm.len(), dims.len(), "a permutation of every dimension");
    assert_eq!(x.len(), dims.iter().product::<usize>(), "the input's elements");
    assert_eq!(y.len(), x.len(), "the output's elements");
    if y.is_empty() {
        return;
    }

    let (mut few, mut many) = ([Dim { size: 1, step: 1 }; 8], Vec::new());
    let room = match dims.len() {
        ..=8 => &mut few[..],
        n => {
            many.resize(n, few[0]);
            &mut many[..]
        }
    };
    // The innermost dimension of the output; what goes on in both is copied as it is.
    let Some((&mut last, out)) = merged(dims, perm, room).split_last_mut() else {
        y.copy_from_slice(x);
        return;
    };
    if last.step == 1 {
        let unit = last.size;
        par::for_each_chunk(y, unit, unit as f32 * 0.25 + 2.0, |start, y| {
            for (i, y) in y.chunks_exact_mut(unit).enumerate() {
                let from = source(start / unit + i, out);
                y.copy_from_slice(&x[from..][..unit]);
            }
        });
        return;
    }
    // Some other dimension of the output is the input's innermost: a matrix to turn, for each index of the rest.
    let turned = out.iter().position(|d| d.step == 1).expect("one dimension has step 1");
    let row_step: usize = out[turned + 1..].iter().map(|d| d.size).product::<usize>() * last.size;
    let rows = out[turned];
    // Blocks of rows of the output, so that a task writes whole cache lines.
    let n_blocks = rows.size.div_ceil(BLOCK);
    let outer: usize = out.iter().map(|d| d.size).product::<usize>() / rows.size;
    let y = Disjoint::new(y);
    let n_tasks = outer * n_blocks;
    par::for_each_task(n_tasks, x.len() / 2, |task| {
        let (i, row0) = (task / n_blocks, task % n_blocks * BLOCK);
        let n_rows = BLOCK.min(rows.size - row0);
        // `i` counts the other dimensions, in the output's order.
        let (mut rest, mut from, mut to, mut to_step) = (i, 0, 0, last.size);
        for (d, dim) in out.iter().enumerate().rev() {
            if d != turned {
                from += rest % dim.size * dim.step;
                to += rest % dim.size * to_step;
                rest /= dim.size;
            }
            to_step *= dim.size;
        }
        let x = &x[from + row0..];
        for col0 in (0..last.size).step_by(BLOCK) {
            let n_cols = BLOCK.min(last.size - col0);
            for r in 0..n_rows {
                let start = to + (row0 + r) * row_step + col0;
                // SAFETY: a task has its own rows of its own matrix, and one of them at a time.
                let y = unsafe { y.slice(start, n_cols) };
                for (c, y) in y.iter_mut().enumerate() {
                    *y = x[(col0 + c) * last.step + r];
                }
            }
        }
    });
}

/// Rows and columns of a block: its lines of both sides fit the first-level cache.
const BLOCK: usize = 16;

/// A dimension of the output, and how far a step along it goes in the input.
#[derive(Clone, Copy)]
struct Dim {
    size: usize,
    step: usize,
}

/// The output's dimensions, without those of size 1 and with those made one that follow each other in the input too:
/// the first ones of `room`, which has one for each.
fn merged<'a>(dims: &[usize], perm: &[usize], room: &'a mut [Dim]) -> &'a mut [Dim] {
    let mut n = 0;
    for &p in perm.iter().filter(|p| dims[**p] != 1) {
        let dim = Dim { size: dims[p], step: dims[p + 1..].iter().product() };
        match room[..n].last_mut() {
            Some(last) if last.step == dim.step * dim.size => {
                *last = Dim { size: last.size * dim.size, step: dim.step };
            }
            _ => {
                room[n] = dim;
                n += 1;
            }
        }
    }
    &mut room[..n]
}

fn source(mut i: usize, out: &[Dim]) -> usize {
    let mut from = 0;
    for dim in out.iter().rev() {
        from += i % dim.size * dim.step;
        i /= dim.size;
    }
    from
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn definition(x: &[u32], dims: &[usize], perm: &[usize]) -> Vec<u32> {
        let out_dims: Vec<usize> = perm.iter().map(|&p| dims[p]).collect();
        (0..x.len())
            .map(|mut i| {
                let mut at = vec![0; dims.len()];
                for d in (0..dims.len()).rev() {
                    at[perm[d]] = i % out_dims[d];
                    i /= out_dims[d];
                }
                x[dims.iter().zip(&at).fold(0, |index, (size, at)| index * size + at)]
            })
            .collect()
    }

    proptest! {
        #[test]
        fn every_permutation_moves_each_element_where_the_definition_says(
            (dims, perm) in prop::collection::vec(1_usize..20, 0..5).prop_flat_map(|dims| {
                let perm: Vec<usize> = (0..dims.len()).collect();
                (Just(dims), Just(perm).prop_shuffle())
            })
        ) {
            let x: Vec<u32> = (0..dims.iter().product::<usize>() as u32).collect();
            let mut y = vec![u32::MAX; x.len()];
            transpose(&x, &dims, &perm, &mut y);
            prop_assert_eq!(y, definition(&x, &dims, &perm));
        }
    }

    #[test]
    fn an_empty_tensor_stays_empty() {
        transpose::<f32>(&[], &[2, 0, 3], &[2, 0, 1], &mut []);
    }
}
