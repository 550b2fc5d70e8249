//! Batches: which samples in which order, read from wherever they are, changed at random and put together.
//!
//! Every random choice is a function of the seed, the epoch and the sample, so that a run that goes on in the middle
//! makes the choices that it would have made.

use midtread_graph::{DataType, Sample, Tensor};
use midtread_quant::calibrate::Samples;
use rayon::prelude::*;

use crate::{error::Error, options::Augment};

/// A number that looks random, of a number (splitmix64).
fn mix(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The order of `n` samples in an epoch.
pub(crate) fn order(n: usize, seed: u64, epoch: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    let mut state = mix(seed ^ mix(epoch as u64));
    for i in (1..n).rev() {
        state = mix(state);
        order.swap(i, (state % (i as u64 + 1)) as usize);
    }
    order
}

/// Reads samples, and changes them as `augment` says.
pub(crate) fn read(
    samples: &dyn Samples,
    which: &[usize],
    augment: Option<(Augment, u64, usize)>,
) -> Result<Vec<Sample>, Error> {
    which
        .par_iter()
        .map(|&i| {
            let mut sample = samples.sample(i).map_err(Error::Read)?;
            if let Some((augment, seed, epoch)) = augment.filter(|(a, ..)| *a != Augment::default())
            {
                let random = mix(mix(seed ^ mix(epoch as u64 + 1)) ^ i as u64);
                for (_, tensor) in &mut sample.inputs {
                    change(tensor, augment, random)?;
                }
            }
            Ok(sample)
        })
        .collect()
}

/// Moves and mirrors the pictures of a tensor of floats with four dimensions.
fn change(tensor: &mut Tensor, augment: Augment, random: u64) -> Result<(), Error> {
    let &[n, a, b, c] = tensor.dims() else { return Ok(()) };
    if tensor.dtype() != DataType::Float {
        return Ok(());
    }
    // Channels are few: they are in front (NCHW), or at the end.
    let in_front = a <= 4 || 4 < c;
    let (outer, height, width, inner) = if in_front { (n * a, b, c, 1) } else { (n, a, b, c) };
    let reach = 2 * augment.crop as u64 + 1;
    let shift = |random: u64| (random % reach) as i64 - augment.crop as i64;
    let (down, right) = (shift(random >> 8), shift(random >> 32));
    let is_flipped = augment.flip && random & 1 == 1;
    let from = tensor.to_vec::<f32>().map_err(|e| Error::Options(e.to_string()))?;
    let to = tensor.to_mut::<f32>().map_err(|e| Error::Options(e.to_string()))?;
    for plane in 0..outer {
        let base = plane * height * width * inner;
        for row in 0..height {
            let from_row = (row as i64 + down).clamp(0, height as i64 - 1) as usize;
            for col in 0..width {
                let at = if is_flipped { width - 1 - col } else { col };
                let from_col = (at as i64 + right).clamp(0, width as i64 - 1) as usize;
                let from = &from[base + (from_row * width + from_col) * inner..][..inner];
                to[base + (row * width + col) * inner..][..inner].copy_from_slice(from);
            }
        }
    }
    Ok(())
}

/// One tensor for each input, from samples along the first dimension.
pub(crate) fn join(samples: &[Sample]) -> Result<Vec<(String, Tensor)>, Error> {
    let Some(first) = samples.first() else { return Ok(Vec::new()) };
    let join_input = |k: usize, name: &str, like: &Tensor| {
        let mut bytes = Vec::new();
        let mut rows = 0;
        for sample in samples {
            let found = sample.inputs.get(k).filter(|(other, t)| {
                other == name
                    && t.dtype() == like.dtype()
                    && t.dims().get(1..) == like.dims().get(1..)
            });
            let Some((_, tensor)) = found else {
                return Err(Error::Options(format!(
                    "samples `{}` and `{}` have different inputs or sizes, and cannot be in one batch",
                    first.name, sample.name
                )));
            };
            bytes.extend_from_slice(tensor.as_bytes());
            rows += tensor.dims().first().copied().unwrap_or(1);
        }
        let mut dims = like.dims().to_vec();
        if let Some(dim) = dims.first_mut() {
            *dim = rows;
        }
        let buf = midtread_graph::AlignedBuf::from_bytes(&bytes);
        let tensor = Tensor::from_buf(like.dtype(), dims, buf);
        Ok((name.to_owned(), tensor.map_err(|e| Error::Options(e.to_string()))?))
    };
    first.inputs.iter().enumerate().map(|(k, (name, like))| join_input(k, name, like)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_has_every_sample_once_and_in_its_own_order() {
        let mut seen = order(100, 7, 3);
        assert_ne!(seen, order(100, 7, 4));
        assert_ne!(seen, order(100, 8, 3));
        assert_eq!(seen, order(100, 7, 3));
        seen.sort_unstable();
        assert_eq!(seen, (0..100).collect::<Vec<_>>());
        assert_eq!(order(0, 0, 0), Vec::<usize>::new());
    }

    #[test]
    fn pictures_are_moved_and_mirrored_in_either_layout() {
        let values: Vec<f32> = (0..2 * 3 * 5).map(|x| x as f32).collect();
        let front = Tensor::from_slice(vec![1, 2, 3, 5], &values).unwrap();
        let mut found = std::collections::BTreeSet::new();
        for random in 0..2000_u64 {
            let random = mix(random);
            let mut picture = front.clone();
            change(&mut picture, Augment { crop: 1, flip: true }, random).unwrap();
            let got = picture.to_vec::<f32>().unwrap();
            // Both channels alike.
            assert!(got[..15].iter().zip(&got[15..]).all(|(a, b)| a + 15.0 == *b));
            found.insert(got.iter().map(|&x| x as u32).collect::<Vec<_>>());
        }
        // Three shifts each way, mirrored or not.
        assert_eq!(found.len(), 18);
        let back = Tensor::from_slice(vec![1, 6, 5, 1], &values).unwrap();
        let mut picture = back.clone();
        change(&mut picture, Augment { crop: 0, flip: true }, 1).unwrap();
        assert_eq!(picture.to_vec::<f32>().unwrap()[..5], [4.0, 3.0, 2.0, 1.0, 0.0]);
    }

    #[test]
    fn samples_of_other_sizes_are_not_joined() {
        let sample = |n: usize| Sample {
            name: n.to_string(),
            inputs: vec![("x".into(), Tensor::from_slice(vec![1, n], &vec![0.0_f32; n]).unwrap())],
        };
        assert_eq!(join(&[sample(2), sample(2)]).unwrap()[0].1.dims(), [2, 2]);
        assert!(join(&[sample(2), sample(3)]).is_err());
    }
}
