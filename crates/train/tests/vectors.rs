//! Fake quantization and its gradients against PyTorch's (`testdata/golden/training.json`).

use midtread_kernels::{
    grad::fake_quantize::{ParamGrads, fake_quantize_grad},
    quantize::fake_quantize,
};
use midtread_num::{QParams, QRange};
use serde_json::Value;

fn golden(what: &str) -> Value {
    let path = midtread_testkit::root().join("testdata/golden/training.json");
    let all: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    all[what].clone()
}

fn floats(value: &Value) -> Vec<f32> {
    let one = |x: &Value| x.as_f64().map_or(f32::INFINITY, |x| x as f32);
    value.as_array().unwrap().iter().map(one).collect()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

/// Output, the input's gradient for an output gradient of ones, and the parameters'.
fn run(
    x: &[f32],
    scale: f64,
    zero_point: i32,
    qmin: i32,
    qmax: i32,
) -> (Vec<f32>, Vec<f32>, ParamGrads) {
    let range = QRange::new(qmin, qmax).unwrap();
    let params = QParams::new(scale as f32, zero_point, range).unwrap();
    let (mut y, mut dx) = (vec![0.0; x.len()], vec![0.0; x.len()]);
    fake_quantize(x, &mut y, params, range);
    let grads = fake_quantize_grad(x, &vec![1.0; x.len()], params, range, &mut dx);
    (y, dx, grads)
}

/// Sums of about ten terms below 8, in another order: within a few units of 8 in the last place of `f32`.
fn close(a: f64, b: f64) -> bool {
    (a - b).abs() < 4e-6
}

#[test]
fn fake_quantization_is_pytorchs() {
    let v = golden("fake_quant");
    let (y, dx, _) = run(&floats(&v["x"]), 0.25, 8, 0, 15);
    assert_eq!((y, dx), (floats(&v["y"]), floats(&v["grad_x"])));
}

#[test]
fn gradients_of_scale_and_zero_point_are_pytorchs() {
    let v = golden("learnable_fake_quant");
    let (y, dx, grads) = run(&floats(&v["x"]), 0.25, 8, 0, 15);
    assert_eq!((y, dx), (floats(&v["y"]), floats(&v["grad_x"])));
    assert!(close(grads.scale, number(&v["grad_scale"])), "{grads:?}");
    assert!(close(grads.zero_point, number(&v["grad_zero_point"])), "{grads:?}");
}

#[test]
fn the_gradient_of_a_learned_step_is_lsqs() {
    let v = golden("lsq");
    let x = floats(&v["v"]);
    let (y, dx, grads) = run(&x, 0.2, 0, -8, 7);
    assert!(y.iter().zip(floats(&v["y"])).all(|(a, b)| close(f64::from(*a), f64::from(b))));
    assert_eq!(dx, floats(&v["grad_v"]));
    let factor = 1.0 / (x.len() as f64 * 7.0).sqrt();
    assert!(close(factor, number(&v["grad_scale"])));
    assert!(close(factor * grads.scale, number(&v["grad_s"])), "{grads:?}");
}

#[test]
fn an_offset_in_real_units_is_lsq_plus() {
    let v = golden("lsq_plus");
    let (beta, scale) = (number(&v["beta"]) as f32, number(&v["s"]));
    let x: Vec<f32> = floats(&v["v"]).iter().map(|x| x - beta).collect();
    let (y, dx, grads) = run(&x, scale, 0, 0, 15);
    for (y, want) in y.iter().zip(floats(&v["y"])) {
        assert!(close(f64::from(y + beta), f64::from(want)), "{y}");
    }
    assert_eq!(dx, floats(&v["grad_v"]));
    // 1e-5: 15 of 16.67 steps; `x - beta` is rounded once more here.
    assert!((grads.scale - number(&v["grad_s"])).abs() < 1e-5, "{grads:?}");
    let of_beta = dx.iter().map(|dx| f64::from(1.0 - dx)).sum::<f64>();
    assert_eq!(of_beta, number(&v["grad_beta"]));
    // The same by the chain rule: the zero point is -beta / scale.
    let zero_point_by_beta = -scale.recip();
    assert!(close(grads.zero_point * zero_point_by_beta, of_beta), "{grads:?}");
}

#[test]
fn the_gradient_of_an_upper_bound_is_pacts() {
    let v = golden("pact");
    let x = floats(&v["x"]);
    let alpha = number(&v["alpha"]);
    let (y, dx, grads) = run(&x, alpha / 15.0, 0, 0, 15);
    for (y, want) in y.iter().zip(floats(&v["y"])) {
        assert!(close(f64::from(*y), f64::from(want)), "{y}");
    }
    assert_eq!(grads.upper_bound, number(&v["grad_alpha_paper"]));
    for ((x, dx), want) in x.iter().zip(dx).zip(floats(&v["grad_x_clip"])) {
        // PACT stops gradients at the bounds themselves, where rounding here still lets them through.
        let x = f64::from(*x);
        let at_bound = x.abs() < 1e-6 || (x - alpha).abs() < 0.5 * alpha / 15.0 + 1e-6;
        assert!(dx == want || at_bound, "{x}: {dx} {want}");
    }
}
