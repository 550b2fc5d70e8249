//! Evaluates the operators that are not done in integers, on tensors.

use midtread_graph::{Attr, AttrValue, DataType, Graph, Node, Tensor};
use midtread_ops::{Args, EvalCtx, OpDef, Pool};

use crate::{
    code::{Attribute, Code, Constant, Op, Operator, Step},
    dims::Dims,
    fault::Fault,
    machine::{Elem, Host, Meta, Operand, View},
};

/// The operators of a program.
pub(crate) struct Operators {
    /// By step.
    steps: Vec<Option<(Node, &'static OpDef, i64)>>,
    /// By value.
    constants: Vec<Option<Tensor>>,
}

impl Operators {
    /// Looks up every operator, and makes tensors of the constants that they read.
    pub(crate) fn new(code: &Code) -> Result<Self, Fault> {
        code.check_values()?;
        let mut constants = vec![None; code.n_values as usize];
        for (value, constant) in &code.constants {
            let place = constants.get_mut(*value as usize);
            let place = place.ok_or_else(|| Fault::new(format!("constant {value} is no value")))?;
            *place = Some(tensor(constant)?);
        }
        // Nodes need values for their inputs and outputs; which does not matter, but how many there are does.
        let mut graph = Graph::default();
        let mut operator = |step: &Step| match &step.op {
            Op::Operator(operator) => {
                let Operator { domain, op_type, opset, attrs } = operator;
                let def = midtread_ops::find(domain, op_type)
                    .ok_or_else(|| Fault::new(format!("operator {op_type} is not known")))?;
                let mut ids = |list: &[Option<u32>]| -> Vec<_> {
                    list.iter().map(|id| id.map(|id| graph.intern(&id.to_string()))).collect()
                };
                let mut node = Node::new(op_type, &step.node, [], []).with_domain(domain);
                (node.inputs, node.outputs) = (ids(&step.inputs), ids(&step.outputs));
                node.attrs = attrs.iter().map(attribute).collect::<Result<_, _>>()?;
                def.check(&node, *opset).map_err(|e| Fault::new(e.to_string()))?;
                Ok(Some((node, def, *opset)))
            }
            _ => Ok(None),
        };
        let at = |step: &Step, fault: Fault| fault.at(&step.node, &step.op_type);
        let steps = code.steps.iter().map(|step| operator(step).map_err(|fault| at(step, fault)));
        let steps = steps.collect::<Result<_, _>>()?;
        Ok(Self { steps, constants })
    }

    /// A constant of the program.
    pub(crate) fn constant(&self, value: u32) -> Option<Tensor> {
        self.constants[value as usize].clone()
    }
}

fn tensor(constant: &Constant) -> Result<Tensor, Fault> {
    let dtype = DataType::from_onnx(constant.elem)
        .ok_or_else(|| Fault::new(format!("a constant of ONNX type {}", constant.elem)))?;
    let tensor = Tensor::from_bytes(dtype, constant.dims.clone(), constant.data.clone());
    Ok(tensor.map_err(|e| Fault::new(e.to_string()))?.to_aligned())
}

fn attribute((name, value): &(String, Attribute)) -> Result<Attr, Fault> {
    let value = match value {
        Attribute::Float(x) => AttrValue::Float(*x),
        Attribute::Int(i) => AttrValue::Int(*i),
        Attribute::String(s) => AttrValue::String(s.clone()),
        Attribute::Tensor(t) => AttrValue::Tensor(tensor(t)?),
        Attribute::Floats(x) => AttrValue::Floats(x.clone()),
        Attribute::Ints(i) => AttrValue::Ints(i.clone()),
        Attribute::Strings(s) => AttrValue::Strings(s.clone()),
    };
    Ok(Attr { name: name.clone(), value, doc_string: String::new() })
}

/// The operators and the memory of one run.
pub(crate) struct Tensors<'a> {
    pub(crate) operators: &'a Operators,
    pub(crate) pool: &'a Pool,
}

fn onnx(elem: Elem) -> DataType {
    match elem {
        Elem::U8 => DataType::Uint8,
        Elem::I8 => DataType::Int8,
        Elem::F32 => DataType::Float,
    }
}

impl Host for Tensors<'_> {
    type Value = Tensor;

    fn view<'a>(&self, value: &'a Tensor) -> Result<View<'a>, Fault> {
        let elem = Elem::from_onnx(value.dtype().to_onnx()).ok_or_else(|| {
            Fault::new(format!("a tensor of {} as codes or numbers", value.dtype()))
        })?;
        let meta = Meta { elem, dims: Dims::new(value.dims())? };
        Ok(View { meta, bytes: value.as_bytes() })
    }

    fn constant(&self, value: u32) -> Option<Tensor> {
        self.operators.constant(value)
    }

    fn make(&self, meta: &Meta) -> Result<Option<Tensor>, Fault> {
        let tensor = self.pool.tensor(onnx(meta.elem), meta.dims.to_vec());
        tensor.map(Some).map_err(|e| Fault::new(e.to_string()))
    }

    fn bytes_mut<'a>(&self, value: &'a mut Tensor) -> &'a mut [u8] {
        value.bytes_mut()
    }

    fn call(
        &self,
        step: usize,
        inputs: Vec<Option<Operand<'_, Tensor>>>,
    ) -> Result<Vec<Tensor>, Fault> {
        let Some((node, def, opset)) = &self.operators.steps[step] else {
            return Err(Fault::new("a step that is no operator"));
        };
        let tensor = |operand| match operand {
            Operand::Own(tensor) => Ok(tensor),
            Operand::View(View { meta, bytes }) => {
                let mut tensor = self.pool.tensor(onnx(meta.elem), meta.dims.to_vec())?;
                tensor.bytes_mut().copy_from_slice(bytes);
                Ok(tensor)
            }
        };
        let ctx = EvalCtx { node, opset: *opset, pool: self.pool };
        let args = inputs.into_iter().map(|operand| operand.map(tensor).transpose());
        let outputs = args.collect::<Result<_, _>>().map(Args);
        let outputs = outputs.and_then(|args| def.evaluate_tensors(&ctx, args));
        outputs.map_err(|e| Fault::new(e.to_string()))
    }
}
