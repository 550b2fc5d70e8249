//! Quantization-aware training: the weights of a float model are trained while its quantized form computes the outputs.
//!
//! What is trained is the deployed graph: batch normalizations are folded, fake quantization stands exactly where the
//! plan puts QuantizeLinear and DequantizeLinear, biases have the integers they will have. So what training sees is what
//! `quant::apply` writes; the parameters of the result are put into the plan, and nothing is decided again.
//!
//! Reading order: [`options`] (what can be asked for, and the recipes), [`net`] (the graph forwards and backwards),
//! `net::recover` (what can be had back without training), [`quantizer`] (fake quantization and its parameters), [`norm`] (batch normalization, folded while it is trained),
//! [`loss`], [`optimizer`], [`batches`] (data), [`checkpoint`], [`run`] (the loop), [`error`].
#![forbid(unsafe_code)]

pub mod batches;
pub mod checkpoint;
pub mod error;
pub mod loss;
pub mod net;
pub mod norm;
pub mod optimizer;
pub mod options;
pub mod quantizer;
pub mod run;

pub use error::Error;
pub use options::{Augment, Loss, Optimizer, Options, RECIPES, Recipe, Scales, recipe_for_bits};
pub use run::{Data, Epoch, Hooks, Labels, Progress, Score, Start, Trained, recover, score, train};
