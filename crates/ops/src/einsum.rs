//! Sums of products over named dimensions.

use std::collections::BTreeMap;

use midtread_graph::{DataType, Tensor};

use crate::{
    attr,
    binary::Number,
    def::{Eval, OpDef, Role},
    eval::{Args, EvalCtx, OpError},
    infer::InferCtx,
    layout::transposed,
    matmul::product_f32,
    shape::{Odometer, View, moved, product, strides},
    sym::SymDim,
    typed::{by_type, elements, in_f32},
};

/// ONNX Einsum 12: `f32` by matrix products where it can be, all else term by term.
pub(crate) static EINSUM: OpDef = OpDef {
    op_type: "Einsum",
    domain: "",
    versions: &[12],
    attrs: &["equation"],
    infer: infer_einsum,
    eval: Eval::Tensors(|ctx, args| in_f32(ctx, args, einsum)),
    role: Role::Float("its integer form depends on the equation"),
};

/// A dimension: one of a letter, or one that an ellipsis stands for, counted from the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Label {
    Ellipsis(usize),
    Letter(char),
}

/// An equation over inputs of given ranks.
struct Equation {
    inputs: Vec<Vec<Label>>,
    output: Vec<Label>,
}

impl Equation {
    fn parse(text: &str, ranks: &[usize]) -> Result<Self, OpError> {
        let refused =
            || OpError::Invalid(format!("equation `{text}` of inputs with ranks {ranks:?}"));
        let text: String = text.chars().filter(|c| !c.is_whitespace()).collect();
        let (left, right) = match text.split_once("->") {
            Some((left, right)) => (left, Some(right)),
            None => (text.as_str(), None),
        };
        let terms: Vec<&str> = left.split(',').collect();
        if terms.len() != ranks.len() {
            return Err(refused());
        }
        let letters = |part: &str| -> Result<Vec<Label>, OpError> {
            let one = |c: char| {
                if c.is_ascii_alphabetic() { Ok(Label::Letter(c)) } else { Err(refused()) }
            };
            part.chars().map(one).collect()
        };
        let labels = |term: &str, n_ellipsis: &dyn Fn(usize) -> Option<usize>| {
            let Some((before, after)) = term.split_once("...") else { return letters(term) };
            let (before, after) = (letters(before)?, letters(after)?);
            let n = n_ellipsis(before.len() + after.len()).ok_or_else(refused)?;
            Ok([before, (0..n).rev().map(Label::Ellipsis).collect(), after].concat())
        };
        let mut inputs = Vec::new();
        for (term, &rank) in terms.iter().zip(ranks) {
            let term = labels(term, &|n| rank.checked_sub(n))?;
            if term.len() != rank {
                return Err(refused());
            }
            inputs.push(term);
        }
        let n_ellipsis = inputs.iter().flatten().filter_map(|l| match l {
            Label::Ellipsis(i) => Some(i + 1),
            Label::Letter(_) => None,
        });
        let n_ellipsis = n_ellipsis.max().unwrap_or(0);
        let output = match right {
            Some(right) => labels(right, &|_| Some(n_ellipsis))?,
            None => {
                let mut counts: BTreeMap<Label, usize> = BTreeMap::new();
                inputs.iter().flatten().for_each(|&l| *counts.entry(l).or_default() += 1);
                let once = counts.iter().filter(|(l, n)| matches!(l, Label::Letter(_)) && **n == 1);
                let ellipsis = (0..n_ellipsis).rev().map(Label::Ellipsis);
                ellipsis.chain(once.map(|(&l, _)| l)).collect()
            }
        };
        let is_known = |l: &Label| inputs.iter().any(|input| input.contains(l));
        let is_twice = |i: usize| output[..i].contains(&output[i]);
        if !output.iter().all(is_known) || (0..output.len()).any(is_twice) {
            return Err(refused());
        }
        Ok(Self { inputs, output })
    }
}

fn infer_einsum(ctx: &mut InferCtx<'_>) -> Result<(), OpError> {
    let shapes: Option<Vec<&[SymDim]>> = (0..ctx.n_inputs()).map(|i| ctx.dims(i)).collect();
    let Some(shapes) = shapes else {
        ctx.set(0, ctx.elem(0), None);
        return Ok(());
    };
    let ranks: Vec<usize> = shapes.iter().map(|s| s.len()).collect();
    let equation = Equation::parse(attr::string(ctx.node, "equation", "")?, &ranks)?;
    let size = |label: &Label| {
        let all = equation.inputs.iter().zip(&shapes).flat_map(|(labels, dims)| {
            labels.iter().zip(*dims).filter(|(l, _)| *l == label).map(|(_, d)| d)
        });
        let not_one: Vec<&SymDim> = all.filter(|d| d.as_known() != Some(1)).collect();
        let known = not_one.iter().find(|d| d.as_known().is_some());
        match (known, not_one.as_slice()) {
            (Some(d), _) => (*d).clone(),
            (None, []) => SymDim::known(1),
            (None, [first, rest @ ..]) if rest.iter().all(|d| first.same(d)) => (*first).clone(),
            _ => SymDim::Unknown,
        }
    };
    ctx.set(0, ctx.elem(0), Some(equation.output.iter().map(size).collect()));
    Ok(())
}

/// A factor whose dimensions each have a label of their own. Those of size 1 have none: they repeat for any.
struct Factor {
    labels: Vec<Label>,
    x: Tensor,
}

impl Factor {
    /// A repeated label walks a diagonal.
    fn new(
        ctx: &EvalCtx<'_>,
        labels: &[Label],
        x: &Tensor,
        sizes: &BTreeMap<Label, usize>,
    ) -> Result<Self, OpError> {
        let mut own: Vec<(Label, isize)> = Vec::new();
        for ((&label, &d), step) in labels.iter().zip(x.dims()).zip(strides(x.dims())) {
            match own.iter_mut().find(|(l, _)| *l == label) {
                _ if d == 1 => {}
                Some((_, own)) => *own += step as isize,
                None => own.push((label, step as isize)),
            }
        }
        let (labels, steps): (Vec<Label>, Vec<isize>) = own.into_iter().unzip();
        let dims: Vec<usize> = labels.iter().map(|l| sizes[l]).collect();
        let view = View { dims: dims.clone(), strides: steps, offset: 0 };
        let x = if product(&dims) == x.len() {
            x.reshaped(dims)?
        } else {
            moved(ctx, &[x], dims, &view)?
        };
        Ok(Self { labels, x })
    }

    /// The dimensions of three groups of labels one after the other, each group as one.
    fn grouped(
        &self,
        ctx: &EvalCtx<'_>,
        groups: [&[Label]; 3],
        sizes: &BTreeMap<Label, usize>,
    ) -> Result<Tensor, OpError> {
        let wanted = groups.iter().copied().flatten();
        let perm: Vec<usize> = wanted
            .map(|l| self.labels.iter().position(|own| own == l))
            .collect::<Option<_>>()
            .ok_or_else(|| OpError::Invalid("a dimension without a label".to_owned()))?;
        let dims = groups.map(|g| g.iter().map(|l| sizes[l]).product::<usize>());
        Ok(transposed(ctx, self.x.clone(), &perm)?.reshaped(dims.to_vec())?)
    }
}

/// The sum by matrix products, one for each factor after the first; `None` where a dimension that is summed over is of
/// one factor only.
fn by_products(
    ctx: &EvalCtx<'_>,
    equation: &Equation,
    inputs: &[&Tensor],
    sizes: &BTreeMap<Label, usize>,
) -> Result<Option<Tensor>, OpError> {
    let factors = equation.inputs.iter().zip(inputs);
    let factors = factors.map(|(labels, x)| Factor::new(ctx, labels, x, sizes));
    let mut factors = factors.collect::<Result<Vec<_>, _>>()?.into_iter();
    let Some(mut left) = factors.next() else { return Ok(None) };
    while let Some(right) = factors.next() {
        let rest = factors.as_slice();
        let is_needed = |l: &Label| {
            equation.output.contains(l) || rest.iter().any(|factor| factor.labels.contains(l))
        };
        let split = |own: &Factor, other: &Factor, both: bool, needed: bool| -> Vec<Label> {
            let labels = own.labels.iter().filter(|l| other.labels.contains(l) == both);
            labels.filter(|l| is_needed(l) == needed).copied().collect()
        };
        let alone = [split(&left, &right, false, false), split(&right, &left, false, false)];
        if alone.iter().any(|labels| !labels.is_empty()) {
            return Ok(None);
        }
        let (batch, summed) = (split(&left, &right, true, true), split(&left, &right, true, false));
        let (rows, columns) =
            (split(&left, &right, false, true), split(&right, &left, false, true));
        let a = left.grouped(ctx, [&batch, &rows, &summed], sizes)?;
        let b = right.grouped(ctx, [&batch, &summed, &columns], sizes)?;
        let labels = [batch, rows, columns].concat();
        let dims = labels.iter().map(|l| sizes[l]).collect();
        let x = product_f32(ctx, &a, &b, 1.0)?.remove(0).reshaped(dims)?;
        left = Factor { labels, x };
    }
    if left.labels.iter().any(|l| !equation.output.contains(l)) {
        return Ok(None);
    }
    let long: Vec<Label> =
        equation.output.iter().filter(|l| left.labels.contains(l)).copied().collect();
    let y = left.grouped(ctx, [&long, &[], &[]], sizes)?;
    // What has no label now has the size 1, as no factor was longer.
    Ok(Some(y.reshaped(equation.output.iter().map(|l| sizes[l]).collect())?))
}

/// How large each dimension is: where a factor has 1, it repeats.
fn sizes_of(equation: &Equation, dims: &[&[usize]]) -> Result<BTreeMap<Label, usize>, OpError> {
    let mut sizes: BTreeMap<Label, usize> = BTreeMap::new();
    for (labels, dims) in equation.inputs.iter().zip(dims) {
        for (&label, &d) in labels.iter().zip(*dims) {
            let size = sizes.entry(label).or_insert(d);
            if *size == 1 {
                *size = d;
            } else if d != 1 && d != *size {
                return Err(OpError::Invalid(format!("{label:?} has the sizes {size} and {d}")));
            }
        }
    }
    Ok(sizes)
}

fn einsum(ctx: &EvalCtx<'_>, args: Args) -> Result<Vec<Tensor>, OpError> {
    let inputs = (0..args.len()).map(|i| args.required(i)).collect::<Result<Vec<_>, _>>()?;
    let ranks: Vec<usize> = inputs.iter().map(|x| x.dims().len()).collect();
    let equation = Equation::parse(attr::string(ctx.node, "equation", "")?, &ranks)?;
    Ok(vec![evaluate(ctx, &equation, &inputs)?])
}

/// The gradient of input `i`: the sum of products of the output's gradient and the other factors, over what input `i`
/// does not have. Along what it alone has it is repeated; where it repeated, it is summed.
pub(crate) fn gradient(
    ctx: &EvalCtx<'_>,
    i: usize,
    inputs: &[&Tensor],
    dy: &Tensor,
) -> Result<Tensor, OpError> {
    let ranks: Vec<usize> = inputs.iter().map(|x| x.dims().len()).collect();
    let equation = Equation::parse(attr::string(ctx.node, "equation", "")?, &ranks)?;
    let dims: Vec<&[usize]> = inputs.iter().map(|x| x.dims()).collect();
    let sizes = sizes_of(&equation, &dims)?;
    let labels = &equation.inputs[i];
    if (0..labels.len()).any(|k| labels[..k].contains(&labels[k])) {
        return Err(OpError::Unsupported("a gradient of a diagonal".to_owned()));
    }
    // A factor of ones has what nobody else has.
    let is_alone = |l: &&Label| {
        let others = equation.inputs.iter().enumerate().filter(|(k, _)| *k != i);
        !equation.output.contains(l) && !others.into_iter().any(|(_, other)| other.contains(l))
    };
    let alone: Vec<Label> = labels.iter().filter(is_alone).copied().collect();
    let ones = alone.iter().map(|l| sizes[l]).collect::<Vec<_>>();
    let ones = Tensor::from_slice(ones.clone(), &vec![1.0_f32; product(&ones)])?;
    let mut factors = vec![dy];
    let mut terms = vec![equation.output.clone()];
    if !alone.is_empty() {
        factors.push(&ones);
        terms.push(alone);
    }
    for (k, (x, term)) in inputs.iter().zip(&equation.inputs).enumerate() {
        if k != i {
            factors.push(x);
            terms.push(term.clone());
        }
    }
    // What it repeats along is not its own.
    let own: Vec<Label> =
        labels.iter().zip(dims[i]).filter(|(l, d)| **d == sizes[l]).map(|(l, _)| *l).collect();
    let back = Equation { inputs: terms, output: own };
    Ok(evaluate(ctx, &back, &factors)?.reshaped(dims[i].to_vec())?)
}

fn evaluate(ctx: &EvalCtx<'_>, equation: &Equation, inputs: &[&Tensor]) -> Result<Tensor, OpError> {
    let first = *inputs.first().ok_or(OpError::MissingInput(0))?;
    let dims: Vec<&[usize]> = inputs.iter().map(|x| x.dims()).collect();
    let sizes = sizes_of(equation, &dims)?;
    if first.dtype() == DataType::Float
        && let Some(y) = by_products(ctx, equation, inputs, &sizes)?
    {
        return Ok(y);
    }
    let summed: Vec<Label> =
        sizes.keys().copied().filter(|l| !equation.output.contains(l)).collect();
    let dims_of = |labels: &[Label]| labels.iter().map(|l| sizes[l]).collect::<Vec<_>>();
    // How far each input moves when a dimension does: a repeated label walks a diagonal.
    let steps_of = |labels: &[Label]| -> Vec<Vec<isize>> {
        let one = |(own, x): (&Vec<Label>, &&Tensor)| {
            let strides = strides(x.dims());
            let step = |label: &Label| {
                let at = own.iter().zip(x.dims()).zip(&strides);
                at.filter(|((l, d), _)| *l == label && **d != 1).map(|(_, &s)| s as isize).sum()
            };
            labels.iter().map(step).collect()
        };
        equation.inputs.iter().zip(inputs).map(one).collect()
    };
    let (out_dims, sum_dims) = (dims_of(&equation.output), dims_of(&summed));
    let (out_steps, sum_steps) = (steps_of(&equation.output), steps_of(&summed));
    let out_steps: Vec<&[isize]> = out_steps.iter().map(Vec::as_slice).collect();
    let sum_steps: Vec<&[isize]> = sum_steps.iter().map(Vec::as_slice).collect();
    let n_summed = product(&sum_dims);
    by_type!(first.dtype(), T in [f32, f64, i8, i16, i32, i64, u8, u16, u32, u64] => {
        let srcs = inputs.iter().map(|x| elements::<T>(x)).collect::<Result<Vec<_>, _>>()?;
        let y = ctx.pool.fill::<T>(out_dims.clone(), |y| {
            let mut outer = Odometer::new(&out_dims, &out_steps);
            let mut inner = Odometer::new(&sum_dims, &sum_steps);
            for y in y {
                let mut sum = T::default();
                for _ in 0..n_summed {
                    let at = outer.offsets.iter().zip(&inner.offsets);
                    let mut factors = srcs.iter().zip(at).map(|(src, (a, b))| src[(a + b) as usize]);
                    let first = factors.next().unwrap_or_default();
                    sum = Number::add(sum, factors.fold(first, Number::mul));
                    inner.advance();
                }
                *y = sum;
                outer.advance();
            }
            Ok(())
        })?;
        Ok(y)
    })
}
