//! What a model takes, and whether a sample is that.

use std::fmt;

use midtread_graph::{DataType, Element, Model, Sample, Tensor, TypeKind};

use crate::error::Error;

/// One input of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputSpec {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: DataType,
    /// Its sizes, those that are fixed; `None` where even their number is open.
    pub dims: Option<Vec<Option<usize>>>,
    /// Whether a sample must have it; otherwise the model has a default.
    pub required: bool,
}

impl InputSpec {
    /// The inputs of a model, in its order. Fails for one that is no tensor or does not say its type.
    pub fn of(model: &Model) -> Result<Vec<Self>, Error> {
        let graph = &model.graph;
        let spec = |&id| {
            let value = graph.value(id);
            let name = value.name().to_owned();
            let unsupported =
                |what: &str| Error::Unsupported { input: name.clone(), what: what.to_owned() };
            let ty = graph.type_of(id).ok_or_else(|| unsupported("an input without a type"))?;
            let TypeKind::Tensor { elem, .. } = &ty.kind else {
                return Err(unsupported(&format!("an input of type {ty}")));
            };
            let dtype = elem.ok_or_else(|| unsupported("an input without an element type"))?;
            let dims = ty.dims().map(|dims| dims.iter().map(|d| d.known()).collect());
            Ok(Self { name, dtype, dims, required: value.constant.is_none() })
        };
        graph.inputs.iter().map(spec).collect()
    }

    /// How the sizes are shown.
    pub(crate) fn expected(&self) -> Expected {
        Expected(self.dims.clone())
    }
}

/// Sizes that a model takes: `[?, 3, 224, 224]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected(Option<Vec<Option<usize>>>);

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(dims) = &self.0 else { return f.write_str("any shape") };
        let dims: Vec<_> =
            dims.iter().map(|d| d.map_or("?".to_owned(), |d| d.to_string())).collect();
        write!(f, "[{}]", dims.join(", "))
    }
}

/// Whether the values are looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Check {
    /// Data that is nothing but NaN and infinities is refused.
    Finite,
    /// Any values will do.
    Shape,
}

/// The sample, its tensors those of the model's inputs, in that order.
pub(crate) fn fit(
    sample: &str,
    specs: &[InputSpec],
    given: Vec<(String, Tensor)>,
    check: Check,
) -> Result<Sample, Error> {
    let names: Vec<String> = given.iter().map(|(name, _)| name.clone()).collect();
    if let Some(found) = names.iter().find(|name| specs.iter().all(|spec| spec.name != **name)) {
        // What is missing says more than what is too much.
        check_missing(sample, specs, &names)?;
        let inputs = specs.iter().map(|spec| spec.name.clone()).collect();
        return Err(Error::UnknownInput {
            sample: sample.to_owned(),
            found: found.clone(),
            inputs,
        });
    }
    check_missing(sample, specs, &names)?;
    let mut given = given;
    let mut inputs = Vec::with_capacity(given.len());
    for spec in specs {
        let Some(at) = given.iter().position(|(name, _)| *name == spec.name) else { continue };
        let (name, tensor) = given.swap_remove(at);
        inputs.push((name, fit_input(sample, spec, tensor, check)?));
    }
    Ok(Sample { name: sample.to_owned(), inputs })
}

fn check_missing(sample: &str, specs: &[InputSpec], names: &[String]) -> Result<(), Error> {
    match specs.iter().find(|spec| spec.required && !names.contains(&spec.name)) {
        None => Ok(()),
        Some(spec) => Err(Error::MissingInput {
            sample: sample.to_owned(),
            input: spec.name.clone(),
            found: names.to_vec(),
        }),
    }
}

fn fit_input(
    sample: &str,
    spec: &InputSpec,
    tensor: Tensor,
    check: Check,
) -> Result<Tensor, Error> {
    let (sample, input) = (sample.to_owned(), spec.name.clone());
    if tensor.dtype() != spec.dtype {
        return Err(Error::InputType {
            sample,
            input,
            expected: spec.dtype,
            found: tensor.dtype(),
        });
    }
    if check == Check::Finite && has_no_finite(&tensor) {
        return Err(Error::NotFinite { sample, input, n: tensor.len() });
    }
    let Some(expected) = &spec.dims else { return Ok(tensor) };
    let found = tensor.dims().to_vec();
    let fits = |dims: &[usize]| {
        dims.len() == expected.len()
            && dims.iter().zip(expected).all(|(&d, e)| e.is_none_or(|e| e == d))
    };
    if fits(&found) {
        return Ok(tensor);
    }
    let with_batch = [&[1], &found[..]].concat();
    if fits(&with_batch) {
        return Ok(tensor.reshaped(with_batch).expect("a size of 1 changes no product"));
    }
    Err(Error::InputShape { sample, input, expected: spec.expected(), found })
}

/// Whether there are values and none of them is a finite number.
fn has_no_finite(tensor: &Tensor) -> bool {
    fn none<T: Element>(tensor: &Tensor, is_finite: impl Fn(&T) -> bool) -> bool {
        match tensor.as_slice::<T>() {
            Ok(values) => !values.iter().any(is_finite),
            Err(_) => tensor.to_vec::<T>().is_ok_and(|values| !values.iter().any(is_finite)),
        }
    }
    !tensor.is_empty()
        && match tensor.dtype() {
            DataType::Float => none(tensor, |x: &f32| x.is_finite()),
            DataType::Double => none(tensor, |x: &f64| x.is_finite()),
            DataType::Float16 => none(tensor, |x: &half::f16| x.is_finite()),
            DataType::Bfloat16 => none(tensor, |x: &half::bf16| x.is_finite()),
            _ => false,
        }
}
