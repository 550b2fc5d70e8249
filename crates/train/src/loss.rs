//! What is minimized: a number, and its gradient in the output. All are means over the rows of a batch, in `f64`.

use midtread_graph::Tensor;
use midtread_ops::OpError;

/// Rows of an output: the last dimension is that of the classes.
fn rows(output: &Tensor) -> Result<(Vec<f32>, usize), OpError> {
    let n = output.dims().last().copied().unwrap_or(1).max(1);
    Ok((output.to_vec::<f32>()?, n))
}

/// `log(softmax(row / temperature))`.
fn log_softmax(row: &[f32], temperature: f64) -> Vec<f64> {
    let max = row.iter().fold(f64::NEG_INFINITY, |max, &x| max.max(f64::from(x) / temperature));
    let sum: f64 = row.iter().map(|&x| (f64::from(x) / temperature - max).exp()).sum();
    row.iter().map(|&x| f64::from(x) / temperature - max - sum.ln()).collect()
}

/// Cross-entropy of rows of scores (before any softmax) with the right classes. The gradient is added to `grad`.
pub fn cross_entropy(
    output: &Tensor,
    classes: &[usize],
    weight: f64,
    grad: &mut [f32],
) -> Result<f64, OpError> {
    let (values, n) = rows(output)?;
    let n_rows = values.len() / n;
    if n_rows != classes.len() {
        return Err(OpError::Invalid(format!(
            "{} labels for {n_rows} rows of scores",
            classes.len()
        )));
    }
    let mut loss = 0.0;
    for ((row, &class), grad) in values.chunks_exact(n).zip(classes).zip(grad.chunks_exact_mut(n)) {
        if n <= class {
            return Err(OpError::Invalid(format!("label {class} for {n} classes")));
        }
        let log = log_softmax(row, 1.0);
        loss -= log[class];
        for (i, grad) in grad.iter_mut().enumerate() {
            let wanted = if i == class { 1.0 } else { 0.0 };
            *grad += (weight * (log[i].exp() - wanted) / n_rows as f64) as f32;
        }
    }
    Ok(weight * loss / n_rows as f64)
}

/// Kullback-Leibler divergence of the teacher's rows of scores from the output's, both softened by `temperature`, times
/// its square (so that gradients do not shrink with it; Hinton et al., 2015). The gradient is added to `grad`.
pub fn distill(
    output: &Tensor,
    teacher: &Tensor,
    temperature: f64,
    weight: f64,
    grad: &mut [f32],
) -> Result<f64, OpError> {
    if output.dims() != teacher.dims() {
        return Err(OpError::Invalid(format!(
            "outputs of {:?} and {:?}",
            output.dims(),
            teacher.dims()
        )));
    }
    let ((values, n), (wanted, _)) = (rows(output)?, rows(teacher)?);
    let n_rows = (values.len() / n).max(1) as f64;
    let mut loss = 0.0;
    for ((row, wanted), grad) in
        values.chunks_exact(n).zip(wanted.chunks_exact(n)).zip(grad.chunks_exact_mut(n))
    {
        let (log, teacher) = (log_softmax(row, temperature), log_softmax(wanted, temperature));
        for i in 0..n {
            let p = teacher[i].exp();
            loss += p * (teacher[i] - log[i]);
            grad[i] += (weight * temperature * (log[i].exp() - p) / n_rows) as f32;
        }
    }
    Ok(weight * temperature * temperature * loss / n_rows)
}

/// Mean squared difference. The gradient is added to `grad`.
pub fn squared(
    output: &Tensor,
    wanted: &Tensor,
    weight: f64,
    grad: &mut [f32],
) -> Result<f64, OpError> {
    let (a, b) = (output.to_vec::<f32>()?, wanted.to_vec::<f32>()?);
    if a.len() != b.len() {
        return Err(OpError::Invalid(format!(
            "values of {:?} and {:?}",
            output.dims(),
            wanted.dims()
        )));
    }
    let n = a.len().max(1) as f64;
    let mut loss = 0.0;
    for ((a, b), grad) in a.iter().zip(&b).zip(grad) {
        let difference = f64::from(*a) - f64::from(*b);
        loss += difference * difference;
        *grad += (2.0 * weight * difference / n) as f32;
    }
    Ok(weight * loss / n)
}

/// [`squared`], relative to the mean square of what is wanted.
pub fn features(
    value: &Tensor,
    wanted: &Tensor,
    weight: f64,
    grad: &mut [f32],
) -> Result<f64, OpError> {
    let b = wanted.to_vec::<f32>()?;
    let power = b.iter().map(|&b| f64::from(b).powi(2)).sum::<f64>() / b.len().max(1) as f64;
    squared(value, wanted, weight / power.max(1e-12), grad)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output() -> Tensor {
        Tensor::from_slice(vec![2, 3], &[0.3_f32, -1.2, 2.0, 0.1, 0.0, -0.4]).unwrap()
    }

    /// A loss that adds its gradient.
    type LossFn<'a> = &'a dyn Fn(&Tensor, &mut [f32]) -> f64;

    #[test]
    fn gradients_are_the_differences_of_the_losses() {
        let teacher =
            Tensor::from_slice(vec![2, 3], &[1.0_f32, -1.0, 0.5, 0.2, 2.0, -0.7]).unwrap();
        let losses: [(&str, LossFn<'_>); 4] = [
            ("cross_entropy", &|y, g| cross_entropy(y, &[2, 0], 0.7, g).unwrap()),
            ("distill", &|y, g| distill(y, &teacher, 3.0, 0.7, g).unwrap()),
            ("squared", &|y, g| squared(y, &teacher, 0.7, g).unwrap()),
            ("features", &|y, g| features(y, &teacher, 0.7, g).unwrap()),
        ];
        for (name, loss) in losses {
            let y = output();
            let mut grad = vec![0.0; 6];
            loss(&y, &mut grad);
            for i in 0..6 {
                let at = |d: f32| {
                    let mut values = y.to_vec::<f32>().unwrap();
                    values[i] += d;
                    loss(&Tensor::from_slice(vec![2, 3], &values).unwrap(), &mut [0.0; 6])
                };
                let slope = (at(0.01) - at(-0.01)) / 0.02;
                // The error of a central difference is its step squared times a third derivative below 1.
                assert!(
                    (f64::from(grad[i]) - slope).abs() < 1e-4,
                    "{name} {i}: {} {slope}",
                    grad[i]
                );
            }
        }
    }

    #[test]
    fn a_student_like_its_teacher_has_no_loss() {
        let mut grad = vec![0.0; 6];
        let loss = distill(&output(), &output(), 2.0, 1.0, &mut grad).unwrap();
        assert_eq!((loss, grad), (0.0, vec![0.0; 6]));
    }

    #[test]
    fn labels_that_do_not_fit_are_refused() {
        let mut grad = vec![0.0; 6];
        assert!(cross_entropy(&output(), &[2], 1.0, &mut grad).is_err());
        assert!(cross_entropy(&output(), &[2, 3], 1.0, &mut grad).is_err());
    }
}
