//! Random numbers.
//!
//! The same node gives the same numbers in every run: from its `seed`, or without one from its name, so that a model's
//! result can be repeated. (Iterations of a loop repeat them too.) They are not the numbers of any other runtime.

use std::f64::consts::TAU;

use midtread_graph::{AttrValue, DataType, Node, Tensor};

use crate::{
    attr,
    cast::cast,
    def::{Eval, OpDef, Role},
    eval::{Args, EvalCtx, OpError},
    infer::InferCtx,
    layout::to_sizes,
    quantize::type_attr,
    sym::SymDim,
    typed::{from_reals, reals},
};

const ROLE: Role = Role::Float("its values are random");

/// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
pub(crate) struct Generator(u64);

impl Generator {
    pub(crate) fn of(node: &Node) -> Result<Self, OpError> {
        let start = match node.attr("seed") {
            Some(AttrValue::Float(seed)) => u64::from(seed.to_bits()),
            // Dropout's is an integer.
            Some(AttrValue::Int(seed)) => *seed as u64,
            Some(_) => return Err(OpError::Invalid("`seed` is not a number".to_owned())),
            // FNV-1a.
            None => node.name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| {
                (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3)
            }),
        };
        Ok(Self(start))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }

    /// At least 0, less than 1.
    pub(crate) fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Mean 0, variance 1 (Box and Muller 1958).
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (TAU * self.uniform()).cos()
    }
}

/// Where the sizes come from.
#[derive(Clone, Copy, PartialEq)]
enum Sizes {
    Attribute,
    Input,
}

#[derive(Clone, Copy)]
enum Distribution {
    Uniform,
    Normal,
}

fn infer_random(ctx: &mut InferCtx<'_>, sizes: Sizes) -> Result<(), OpError> {
    let elem = type_attr(ctx.node, "dtype")?;
    if sizes == Sizes::Input {
        ctx.set(0, elem.or(ctx.elem(0)), ctx.dims(0).map(<[_]>::to_vec));
        return Ok(());
    }
    let dims = attr::ints(ctx.node, "shape")?.ok_or(OpError::MissingAttr("shape"))?;
    let dims = dims.iter().map(|&d| SymDim::known(d)).collect();
    ctx.set(0, elem.or(Some(DataType::Float)), Some(dims));
    Ok(())
}

fn random(
    ctx: &EvalCtx<'_>,
    args: &Args,
    sizes: Sizes,
    distribution: Distribution,
) -> Result<Vec<Tensor>, OpError> {
    let elem = type_attr(ctx.node, "dtype")?;
    let (dims, own) = match sizes {
        Sizes::Attribute => {
            let dims = attr::ints(ctx.node, "shape")?.ok_or(OpError::MissingAttr("shape"))?;
            (to_sizes(dims)?, DataType::Float)
        }
        Sizes::Input => (args.required(0)?.dims().to_vec(), args.required(0)?.dtype()),
    };
    let mut generator = Generator::of(ctx.node)?;
    let float = |name, default| attr::float(ctx.node, name, default).map(f64::from);
    let y = ctx.pool.fill::<f64>(dims, |y| {
        match distribution {
            Distribution::Uniform => {
                let (low, high) = (float("low", 0.0)?, float("high", 1.0)?);
                y.iter_mut().for_each(|y| *y = low + generator.uniform() * (high - low));
            }
            Distribution::Normal => {
                let (mean, scale) = (float("mean", 0.0)?, float("scale", 1.0)?);
                y.iter_mut().for_each(|y| *y = mean + scale * generator.normal());
            }
        }
        Ok(())
    })?;
    Ok(vec![cast(ctx, y, elem.unwrap_or(own))?])
}

macro_rules! random {
    ($(#[$doc:meta])* $name:ident: $op:literal, $sizes:ident, $distribution:ident, $attrs:expr) => {
        $(#[$doc])*
        pub(crate) static $name: OpDef = OpDef {
            op_type: $op,
            domain: "",
            versions: &[1, 22],
            attrs: &$attrs,
            infer: |ctx| infer_random(ctx, Sizes::$sizes),
            eval: Eval::Tensors(|ctx, args| {
                random(ctx, &args, Sizes::$sizes, Distribution::$distribution)
            }),
            role: ROLE,
        };
    };
}

random! {
    /// ONNX RandomNormal 1 and 22.
    RANDOM_NORMAL: "RandomNormal", Attribute, Normal, ["dtype", "mean", "scale", "seed", "shape"]
}
random! {
    /// ONNX RandomNormalLike 1 and 22.
    RANDOM_NORMAL_LIKE: "RandomNormalLike", Input, Normal, ["dtype", "mean", "scale", "seed"]
}
random! {
    /// ONNX RandomUniform 1 and 22.
    RANDOM_UNIFORM: "RandomUniform", Attribute, Uniform, ["dtype", "high", "low", "seed", "shape"]
}
random! {
    /// ONNX RandomUniformLike 1 and 22.
    RANDOM_UNIFORM_LIKE: "RandomUniformLike", Input, Uniform, ["dtype", "high", "low", "seed"]
}

/// 1 with the probability that the input says, else 0. ONNX Bernoulli 15 and 22.
pub(crate) static BERNOULLI: OpDef = OpDef {
    op_type: "Bernoulli",
    domain: "",
    versions: &[15, 22],
    attrs: &["dtype", "seed"],
    infer: |ctx| infer_random(ctx, Sizes::Input),
    eval: Eval::Tensors(|ctx, args| {
        let x = args.required(0)?;
        let elem = type_attr(ctx.node, "dtype")?.unwrap_or(x.dtype());
        let mut generator = Generator::of(ctx.node)?;
        let drawn = |p: f64| f64::from(u8::from(generator.uniform() < p));
        let y: Vec<f64> = reals(x)?.into_iter().map(drawn).collect();
        let y = from_reals(ctx, DataType::Double, x.dims().to_vec(), &y)?;
        Ok(vec![cast(ctx, y, elem)?])
    }),
    role: ROLE,
};

/// Classes drawn by their unnormalized log-probabilities. ONNX Multinomial 7 and 22.
pub(crate) static MULTINOMIAL: OpDef = OpDef {
    op_type: "Multinomial",
    domain: "",
    versions: &[7, 22],
    attrs: &["dtype", "sample_size", "seed"],
    infer: |ctx| {
        let n = SymDim::known(attr::int(ctx.node, "sample_size", 1)?);
        let elem = type_attr(ctx.node, "dtype")?.unwrap_or(DataType::Int32);
        let dims = ctx.dims(0).and_then(|dims| Some(vec![dims.first()?.clone(), n]));
        ctx.set(0, Some(elem), dims);
        Ok(())
    },
    eval: Eval::Tensors(|ctx, args| {
        let x = args.required(0)?;
        let n = attr::size(ctx.node, "sample_size", 1)?;
        let elem = type_attr(ctx.node, "dtype")?.unwrap_or(DataType::Int32);
        let &[rows, classes] = x.dims() else {
            return Err(OpError::Invalid(format!("scores of sizes {:?}", x.dims())));
        };
        if classes == 0 {
            return Err(OpError::Invalid("no class to draw".to_owned()));
        }
        let scores = reals(x)?;
        let mut generator = Generator::of(ctx.node)?;
        let y = ctx.pool.fill::<i64>(vec![rows, n], |y| {
            for (scores, y) in scores.chunks_exact(classes).zip(y.chunks_exact_mut(n.max(1))) {
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let mut sums = Vec::with_capacity(classes);
                let total = scores.iter().fold(0.0, |sum, s| {
                    sums.push(sum + (s - max).exp());
                    sum + (s - max).exp()
                });
                for y in y {
                    let drawn = generator.uniform() * total;
                    let class = sums.iter().position(|&sum| drawn < sum);
                    *y = class.unwrap_or(classes - 1) as i64;
                }
            }
            Ok(())
        })?;
        Ok(vec![cast(ctx, y, elem)?])
    }),
    role: ROLE,
};

/// `x` with a share of its elements made 0 and the others made larger by as much, and which ones were kept.
pub(crate) fn dropped(ctx: &EvalCtx<'_>, x: &Tensor, ratio: f64) -> Result<Vec<Tensor>, OpError> {
    if !(0.0..1.0).contains(&ratio) {
        return Err(OpError::Invalid(format!("a ratio of {ratio}")));
    }
    let mut generator = Generator::of(ctx.node)?;
    let kept: Vec<u8> = (0..x.len()).map(|_| u8::from(ratio <= generator.uniform())).collect();
    let factor = 1.0 / (1.0 - ratio);
    let values = reals(x)?;
    let values: Vec<f64> =
        values.iter().zip(&kept).map(|(x, &k)| x * f64::from(k) * factor).collect();
    let mask = Tensor::from_slice(x.dims().to_vec(), &kept)?.with_dtype(DataType::Bool)?;
    Ok(vec![from_reals(ctx, x.dtype(), x.dims().to_vec(), &values)?, mask])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Pool, typed::elements};

    fn run(op: &OpDef, attrs: &[(&str, AttrValue)], args: Vec<Option<Tensor>>) -> Tensor {
        let mut node = Node::new(op.op_type, "", Vec::new(), Vec::new());
        for (name, value) in attrs {
            node.set_attr(name, value.clone());
        }
        let ctx = EvalCtx { node: &node, opset: 22, pool: &Pool::default() };
        op.evaluate_tensors(&ctx, Args(args)).unwrap().remove(0)
    }

    fn moments(x: &Tensor) -> (f64, f64) {
        let x = elements::<f32>(x).unwrap();
        let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / x.len() as f64;
        let var = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / x.len() as f64;
        (mean, var)
    }

    /// Of 40,000 draws the mean is within five of its standard deviations (sd / 200) of the distribution's.
    #[test]
    fn draws_have_the_moments_of_their_distribution_and_their_seed_decides_them() {
        let shape = ("shape", AttrValue::Ints(vec![200, 200]));
        let seed = |s: f32| ("seed", AttrValue::Float(s));
        let limits = [("low", AttrValue::Float(-1.0)), ("high", AttrValue::Float(3.0))];
        let uniform = |s| {
            run(
                &RANDOM_UNIFORM,
                &[shape.clone(), seed(s), limits[0].clone(), limits[1].clone()],
                vec![],
            )
        };
        let (mean, var) = moments(&uniform(1.0));
        assert!((mean - 1.0).abs() < 5.0 * (16.0_f64 / 12.0).sqrt() / 200.0, "{mean}");
        assert!((var - 16.0 / 12.0).abs() < 0.04, "{var}");
        assert_eq!(uniform(1.0), uniform(1.0));
        assert_ne!(uniform(1.0), uniform(2.0));

        let scaled = [("mean", AttrValue::Float(2.0)), ("scale", AttrValue::Float(0.5))];
        let normal = run(
            &RANDOM_NORMAL,
            &[shape.clone(), seed(3.0), scaled[0].clone(), scaled[1].clone()],
            vec![],
        );
        let (mean, var) = moments(&normal);
        assert!((mean - 2.0).abs() < 5.0 * 0.5 / 200.0, "{mean}");
        assert!((var - 0.25).abs() < 0.01, "{var}");
        let beyond =
            elements::<f32>(&normal).unwrap().iter().filter(|x| 1.0 < (*x - 2.0).abs()).count();
        // 4.55 % lie beyond two standard deviations.
        assert!((1600..2040).contains(&beyond), "{beyond}");

        let p = Tensor::from_slice(vec![40_000], &[0.3_f32; 40_000]).unwrap();
        let (mean, _) = moments(&run(&BERNOULLI, &[seed(4.0)], vec![Some(p)]));
        assert!((mean - 0.3).abs() < 5.0 * 0.21_f64.sqrt() / 200.0, "{mean}");

        let scores =
            Tensor::from_slice(vec![1, 3], &[0.1_f32.ln(), 0.7_f32.ln(), 0.2_f32.ln()]).unwrap();
        let n = ("sample_size", AttrValue::Int(40_000));
        let drawn = run(&MULTINOMIAL, &[seed(5.0), n], vec![Some(scores)]).to_vec::<i32>().unwrap();
        for (class, p) in [(0, 0.1), (1, 0.7), (2, 0.2)] {
            let share = drawn.iter().filter(|&&c| c == class).count() as f64 / 40_000.0;
            assert!((share - p).abs() < 5.0 * (p * (1.0 - p)).sqrt() / 200.0, "{class}: {share}");
        }
    }
}
