//! What runs a model: the interpreter, which does exactly what ONNX says, or the engine, which runs quantized models in
//! integers.

use std::time::Duration;

use midtread_engine::Program;
use midtread_exec::{Interpreter, Named, Options};
use midtread_graph::{Model, Tensor};

use crate::error::Error;

/// Which of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Runtime {
    /// Node by node, as ONNX defines the operators.
    #[default]
    Interpreter,
    /// Integer kernels where the model is quantized.
    Engine,
}

impl Runtime {
    /// Every one.
    pub const ALL: &'static [Self] = &[Self::Interpreter, Self::Engine];

    /// As options spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Interpreter => "interpreter",
            Self::Engine => "engine",
        }
    }
}

/// A model that is ready to run.
#[derive(Debug)]
pub enum Runner {
    /// By the interpreter.
    Interpreter(Box<Interpreter>),
    /// By the engine.
    Engine(Box<Program>),
}

/// A part of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct PartTime {
    /// The node.
    pub node: String,
    /// Its operator.
    pub op_type: String,
    /// Types and sizes of its inputs, or how the engine computes it.
    pub detail: String,
    /// How long it took.
    pub time: Duration,
}

impl Runner {
    /// Prepares a model. `max_bytes` bounds the values that the interpreter holds.
    pub fn new(model: &Model, runtime: Runtime, max_bytes: Option<usize>) -> Result<Self, Error> {
        Ok(match runtime {
            Runtime::Interpreter => Self::Interpreter(Box::new(
                Interpreter::new(model, Options { max_bytes }).map_err(Error::Run)?,
            )),
            Runtime::Engine => Self::Engine(Box::new(Program::compile(model)?)),
        })
    }

    /// Runs the model: names and tensors of the inputs in, of the outputs out.
    pub fn run(&self, inputs: Vec<(String, Tensor)>) -> Result<Named, Error> {
        match self {
            Self::Interpreter(interpreter) => interpreter.run(inputs).map_err(Error::Run),
            Self::Engine(program) => Ok(program.run(inputs)?),
        }
    }

    /// Runs the model once and says how long each part took.
    pub fn run_profiled(&self, inputs: Vec<(String, Tensor)>) -> Result<Vec<PartTime>, Error> {
        match self {
            Self::Interpreter(interpreter) => {
                let (_, nodes) = interpreter.run_profiled(inputs).map_err(Error::Run)?;
                let part = |n: midtread_exec::NodeTime| PartTime {
                    node: n.node,
                    op_type: n.op_type,
                    detail: n.inputs,
                    time: n.time,
                };
                Ok(nodes.into_iter().map(part).collect())
            }
            Self::Engine(program) => {
                let mut times = Vec::new();
                program.run_watched(inputs, &mut |_, time| times.push(time))?;
                let part = |(step, time): (midtread_engine::StepInfo, Duration)| PartTime {
                    node: step.node,
                    op_type: step.op_type,
                    detail: step.kind.to_owned(),
                    time,
                };
                Ok(program.steps().zip(times).map(part).collect())
            }
        }
    }
}
