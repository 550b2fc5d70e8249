//! Options, report and driver.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use midtread_exec::topological_order;
use midtread_graph::{Graph, Model};

use crate::{PASSES, error::Error, infer_shapes};

/// A named change of a model that keeps what it computes.
pub struct PassDef {
    /// `snake_case`, unique. What the command line, the Python API and reports use.
    pub name: &'static str,
    /// One line for `--help` and the reference documentation.
    pub summary: &'static str,
    /// Whether [`PrepareOptions::default`] runs it.
    pub is_default: bool,
    /// Changes the model and notes what it did. Finds everything it can do in one walk over the graph, as far as
    /// its own changes are concerned, so that the number of rounds does not grow with the graph.
    pub run: fn(&mut Model, &mut Ctx<'_>) -> Result<(), Error>,
}

impl fmt::Debug for PassDef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// Which passes run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassSet(BTreeSet<&'static str>);

impl Default for PassSet {
    fn default() -> Self {
        Self::canonical()
    }
}

impl PassSet {
    /// What a quantizer wants: every pass that is a default.
    pub fn canonical() -> Self {
        Self(PASSES.iter().filter(|pass| pass.is_default).map(|pass| pass.name).collect())
    }

    /// No pass.
    pub fn none() -> Self {
        Self(BTreeSet::new())
    }

    /// Every pass.
    pub fn all() -> Self {
        Self(PASSES.iter().map(|pass| pass.name).collect())
    }

    /// With `name` on.
    pub fn with(mut self, name: &str) -> Result<Self, Error> {
        self.0.insert(find(name)?.name);
        Ok(self)
    }

    /// With `name` off.
    pub fn without(mut self, name: &str) -> Result<Self, Error> {
        self.0.remove(find(name)?.name);
        Ok(self)
    }

    /// Whether `name` is on.
    pub fn contains(&self, name: &str) -> bool {
        self.0.contains(name)
    }
}

fn find(name: &str) -> Result<&'static PassDef, Error> {
    PASSES.iter().copied().find(|pass| pass.name == name).ok_or_else(|| Error::UnknownPass {
        name: name.to_owned(),
        known: PASSES.iter().map(|pass| pass.name).collect::<Vec<_>>().join(", "),
    })
}

/// How a model is prepared.
#[derive(Clone, Debug)]
pub struct PrepareOptions {
    /// Which passes run.
    pub passes: PassSet,
    /// Sizes to fix: by the name the model gives them (`batch`), or as `input:axis` (`pixels:0`).
    pub dims: BTreeMap<String, usize>,
    /// The version of the default operator set to upgrade to, if the model's is older. `None` keeps the model's.
    pub opset: Option<i64>,
    /// Bytes by which all folding of constants together may make the constants larger.
    pub max_growth: usize,
}

impl Default for PrepareOptions {
    fn default() -> Self {
        Self {
            passes: PassSet::default(),
            dims: BTreeMap::new(),
            opset: None,
            max_growth: 64 * 1024,
        }
    }
}

/// What a pass sees besides the model, and where it notes what it does.
pub struct Ctx<'a> {
    /// The options.
    pub options: &'a PrepareOptions,
    /// Bytes by which constants have grown so far (shrinking counts as negative).
    pub growth: i64,
    changes: Vec<Change>,
    skips: Vec<Skip>,
    /// Whether a value's type became better known, which is worth another round but no line in the report each.
    n_types: usize,
}

impl<'a> Ctx<'a> {
    /// For one call of one pass outside of [`prepare`].
    pub fn new(options: &'a PrepareOptions) -> Self {
        Self { options, growth: 0, changes: Vec::new(), skips: Vec::new(), n_types: 0 }
    }

    /// Notes that something was done to the node or value `at`: a clause, "took in `bn1`".
    pub fn change(&mut self, at: &str, what: impl Into<Cow<'static, str>>) {
        self.changes.push(Change { at: at.to_owned(), what: what.into() });
    }

    /// Notes that the pass's rule is about `at`, but was not applied.
    pub fn skip(&mut self, at: &str, because: impl Into<Cow<'static, str>>) {
        self.skips.push(Skip { at: at.to_owned(), because: because.into() });
    }

    /// Notes that `n` values' types became better known.
    pub fn learned_types(&mut self, n: usize) {
        self.n_types += n;
    }

    /// What was noted.
    pub fn into_notes(self) -> (Vec<Change>, Vec<Skip>) {
        (self.changes, self.skips)
    }
}

/// Something a pass did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The node or value.
    pub at: String,
    /// What happened to it; a clause: "took in `bn1`".
    pub what: Cow<'static, str>,
}

/// A condition of a pass's rule that does not hold where the rule would apply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skip {
    /// The node or value.
    pub at: String,
    /// A clause that completes "was left as it is: ...".
    pub because: Cow<'static, str>,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` {}", self.at, self.what)
    }
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` was left as it is: {}", self.at, self.because)
    }
}

/// What one pass did, over all rounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassReport {
    /// [`PassDef::name`].
    pub name: &'static str,
    /// What it did, in the order in which it was done.
    pub changes: Vec<Change>,
    /// What it refused in the last round, when nothing changed any more.
    pub skips: Vec<Skip>,
    /// Values whose element type or sizes it found.
    pub n_types: usize,
}

/// What [`prepare`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// One entry for each pass that was on, in order.
    pub passes: Vec<PassReport>,
    /// How often the passes ran.
    pub n_rounds: usize,
    /// Whether the last round found nothing to do.
    pub is_fixed_point: bool,
}

impl Report {
    /// The entry of a pass.
    pub fn pass(&self, name: &str) -> Option<&PassReport> {
        self.passes.iter().find(|pass| pass.name == name)
    }
}

/// Rounds after which [`prepare`] stops. Each pass finds all that it can do in one walk, so a round more is needed
/// only where one pass makes room for an earlier one; real models need two or three.
pub const MAX_ROUNDS: usize = 16;

/// Runs the passes until none finds anything to do.
///
/// Fails for options that do not fit the model and for a graph that is not one; a pass that cannot apply says why in
/// the report. Graph inputs and outputs keep their names and order.
pub fn prepare(mut model: Model, options: &PrepareOptions) -> Result<(Model, Report), Error> {
    sort_nodes(&mut model.graph)?;
    infer_shapes::fix_dims(&mut model, &options.dims)?;
    let passes: Vec<&PassDef> =
        PASSES.iter().copied().filter(|pass| options.passes.contains(pass.name)).collect();
    let mut report = Report {
        passes: passes
            .iter()
            .map(|pass| PassReport {
                name: pass.name,
                changes: Vec::new(),
                skips: Vec::new(),
                n_types: 0,
            })
            .collect(),
        ..Report::default()
    };
    let mut growth = 0;
    while !report.is_fixed_point && report.n_rounds < MAX_ROUNDS {
        report.n_rounds += 1;
        report.is_fixed_point = true;
        for (pass, pass_report) in passes.iter().zip(&mut report.passes) {
            let mut ctx = Ctx { growth, ..Ctx::new(options) };
            (pass.run)(&mut model, &mut ctx)?;
            growth = ctx.growth;
            report.is_fixed_point &= ctx.changes.is_empty() && ctx.n_types == 0;
            pass_report.n_types += ctx.n_types;
            pass_report.changes.extend(ctx.changes);
            pass_report.skips = ctx.skips;
        }
    }
    if model.ir_version < 4 && model.graph.initializers.len() != n_initializer_inputs(&model.graph)
    {
        // Before version 4, every initializer must be an input.
        model.ir_version = 4;
    }
    Ok((model, report))
}

fn n_initializer_inputs(graph: &Graph) -> usize {
    graph.inputs.iter().filter(|id| graph.value(**id).constant.is_some()).count()
}

/// Puts nodes in an order in which every value is made before it is used, which files are asked for but do not
/// always have.
fn sort_nodes(graph: &mut Graph) -> Result<(), Error> {
    let order = topological_order(graph)
        .map_err(|source| Error::Graph { graph: graph.name.clone(), source: Box::new(source) })?;
    if !order.is_sorted() {
        let mut nodes: Vec<_> = std::mem::take(&mut graph.nodes).into_iter().map(Some).collect();
        graph.nodes =
            order.into_iter().map(|i| nodes[i].take().expect("each index is there once")).collect();
    }
    Ok(())
}
