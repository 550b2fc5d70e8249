//! Why a model could not be prepared.

/// Why a model could not be prepared at all. What a single pass refuses is a [`crate::Skip`], not an error.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A name that is no pass.
    #[error("there is no pass `{name}` (there are {known})")]
    UnknownPass {
        /// The name given.
        name: String,
        /// The names there are, with commas.
        known: String,
    },
    /// A size was fixed that no input has.
    #[error("no input has a size `{name}` (there are {known})")]
    UnknownDim {
        /// The name given.
        name: String,
        /// The names there are, with commas.
        known: String,
    },
    /// A size was fixed that the model fixes otherwise.
    #[error("size {axis} of input `{input}` is {size}, not {wanted}")]
    FixedDim {
        /// The input.
        input: String,
        /// The position of the size.
        axis: usize,
        /// What the model says.
        size: usize,
        /// What was asked for.
        wanted: usize,
    },
    /// The graph is not one: a value without a maker, or nodes that wait for one another.
    #[error("graph `{graph}`")]
    Graph {
        /// Its name.
        graph: String,
        /// What is wrong.
        #[source]
        source: Box<midtread_exec::Error>,
    },
}
