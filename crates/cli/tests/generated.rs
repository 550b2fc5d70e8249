//! Files that are made from the program and checked in: the reference pages, and plans that show in a diff what a
//! change of the planner changes. `cargo xtask generate` remakes them.

use std::{collections::BTreeMap, fmt::Write as _, fs, process::Command};

use midtread::{
    PlanOptions, Scheme, Stats, Target,
    graph::{AttrValue, DataType, Dim, Graph, Model, Node, Tensor, Type, ValueId},
    ops::{InputRole, OutputRole, Role, table::OPS},
    passes::{PrepareOptions, prepare},
    quant::plan::{Ranges, TARGETS, WeightGranularity, plan_ranges},
};
use midtread_testkit::root;

/// What a checked-in file should say, by its path in the repository. With `MIDTREAD_GENERATE` in the environment the
/// files are written; otherwise a difference is told line by line.
fn check(files: &BTreeMap<String, String>) {
    let is_generating = std::env::var_os("MIDTREAD_GENERATE").is_some();
    let mut stale = String::new();
    for (path, text) in files {
        let file = root().join(path);
        let found = fs::read_to_string(&file).unwrap_or_default();
        if found == *text {
            continue;
        }
        if is_generating {
            fs::write(&file, text).unwrap();
        } else {
            stale += &difference(path, &found, text);
        }
    }
    assert!(stale.is_empty(), "out of date (remake with `cargo xtask generate`):\n{stale}");
}

/// The lines that are in one text alone, in their order; some of them, if there are many.
fn difference(path: &str, found: &str, made: &str) -> String {
    const MOST: usize = 12;
    let mut text = format!("{path}\n");
    for (sign, lines, others) in [('-', found, made), ('+', made, found)] {
        let others: Vec<&str> = others.lines().collect();
        let own: Vec<&str> = lines.lines().filter(|line| !others.contains(line)).collect();
        for line in own.iter().take(MOST) {
            let _ = writeln!(text, "  {sign} {}", line.chars().take(300).collect::<String>());
        }
        if MOST < own.len() {
            let _ = writeln!(text, "  {sign} ... and {} more", own.len() - MOST);
        }
    }
    text
}

#[test]
fn the_page_of_operators_says_what_the_table_says() {
    let mut text = "# Operators\n\n\
        Made from the table in `crates/ops` by `cargo xtask generate`.\n\n\
        *Versions*: the operator sets in which the specification changed it, of those that are known; a model with an\n\
        older one, or with an attribute that is not listed, is refused by name. *Targets*: those that run it on\n\
        integers (see `targets/`). *Quantized*: what each input is, and where the output's scale and zero point come\n\
        from.\n"
        .to_owned();
    let mut domain = None;
    for def in OPS {
        if domain != Some(def.domain) {
            domain = Some(def.domain);
            let name = if def.domain.is_empty() { "ai.onnx" } else { def.domain };
            let _ = write!(
                text,
                "\n## {name}\n\n| operator | versions | attributes | targets | quantized |\n\
                 | --- | --- | --- | --- | --- |\n"
            );
        }
        let versions: Vec<String> = def.versions.iter().map(i64::to_string).collect();
        let attrs: Vec<String> = def.attrs.iter().map(|name| format!("`{name}`")).collect();
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} |",
            def.op_type,
            versions.join(", "),
            attrs.join(", "),
            targets_of(def.op_type),
            role(&def.role)
        );
    }
    check(&[("docs/reference/operators.md".to_owned(), text)].into());
}

fn targets_of(op_type: &str) -> String {
    let names: Vec<&str> = TARGETS
        .iter()
        .filter(|(name, _)| Target::find(name).unwrap().operators.contains_key(op_type))
        .map(|&(name, _)| name)
        .collect();
    if names.len() == TARGETS.len() { "all".to_owned() } else { names.join(", ") }
}

fn role(role: &Role) -> String {
    match role {
        Role::Quantized { inputs, output } => {
            let inputs: Vec<&str> = inputs
                .iter()
                .map(|input| match input {
                    InputRole::Activation => "activation",
                    InputRole::Weight { .. } => "weight",
                    InputRole::Bias => "bias",
                    InputRole::Parameter => "parameter",
                })
                .collect();
            let output = match output {
                OutputRole::Calibrated => "its own range".to_owned(),
                OutputRole::SameAs(input) => format!("input {input}'s"),
                OutputRole::AllSame => "one set for inputs and output".to_owned(),
                OutputRole::Fixed(min, max) => format!("the range {min} to {max}"),
                OutputRole::Unquantized => "not quantized".to_owned(),
            };
            format!("{} → {output}", inputs.join(", "))
        }
        Role::Clamp { .. } => {
            "goes into its input's range, else activation → its own range".to_owned()
        }
        Role::Structural => "never: shapes, indices, masks".to_owned(),
        Role::Float(why) => format!("no: {why}"),
    }
}

/// `--help` of a command, wrapped at 100 columns.
fn help(command: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_midtread"))
        .args(command)
        .arg("--help")
        .env("COLUMNS", "100")
        .output()
        .unwrap();
    assert!(output.status.success(), "{command:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The commands that a help text lists.
fn subcommands(help: &str) -> Vec<String> {
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    lines
        .take_while(|line| !line.is_empty())
        // A summary that goes on in a second line is indented further.
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_page_of_commands_says_what_help_says() {
    let mut text = "# The command line\n\n\
        What `--help` prints, by `cargo xtask generate`.\n"
        .to_owned();
    let mut waiting: Vec<Vec<String>> = vec![Vec::new()];
    let mut n_commands = 0;
    while let Some(command) = waiting.pop() {
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        let help = help(&words);
        let title = [&["midtread"], &words[..]].concat().join(" ");
        let lines: String = help.lines().map(|line| line.trim_end().to_owned() + "\n").collect();
        let _ = write!(text, "\n## {title}\n\n```text\n{}\n```\n", lines.trim_end());
        let below = subcommands(&help);
        waiting.extend(below.into_iter().rev().map(|name| [&command[..], &[name]].concat()));
        n_commands += 1;
    }
    assert!(12 <= n_commands, "{n_commands} found in the help texts");
    check(&[("docs/reference/cli.md".to_owned(), text)].into());
}

/// A small model under construction.
struct Net(Graph);

impl Net {
    fn new(dims: &[usize]) -> (Self, ValueId) {
        let mut graph = Graph::default();
        let x = graph.intern("x");
        let dims = dims.iter().map(|&d| Dim::Known(d)).collect();
        graph.value_mut(x).ty = Some(Type::tensor(DataType::Float, Some(dims)));
        graph.inputs.push(x);
        (Self(graph), x)
    }

    /// A constant whose values go up and down between -`max` and `max`.
    fn wave(&mut self, name: &str, dims: &[usize], max: f32) -> ValueId {
        let n: usize = dims.iter().product();
        let wave: Vec<f32> =
            (0..n).map(|i| max * (((i * 37 + 11) % 101) as f32 / 50.0 - 1.0)).collect();
        self.0.add_constant(name, Tensor::from_slice(dims.to_vec(), &wave).unwrap())
    }

    fn node(
        &mut self,
        op_type: &str,
        inputs: &[ValueId],
        output: &str,
        attrs: &[(&str, AttrValue)],
    ) -> ValueId {
        let out = self.0.intern(output);
        let node = Node::new(op_type, &format!("{output}_node"), inputs.iter().copied(), [out]);
        let node =
            attrs.iter().fold(node, |node, (name, value)| node.with_attr(name, value.clone()));
        self.0.nodes.push(node);
        out
    }

    fn model(mut self, output: ValueId) -> Model {
        self.0.name = "g".to_owned();
        self.0.outputs = vec![output];
        let opset_imports = vec![(String::new(), 17)];
        Model { ir_version: 8, opset_imports, graph: self.0, ..Model::default() }
    }
}

/// Two dense layers, the first as MatMul and Add.
fn perceptron() -> Model {
    let (mut net, x) = Net::new(&[1, 4]);
    let (w1, b1) = (net.wave("w1", &[4, 3], 0.5), net.wave("b1", &[3], 0.1));
    let (w2, b2) = (net.wave("w2", &[3, 2], 2.0), net.wave("b2", &[2], 0.3));
    let h = net.node("MatMul", &[x, w1], "h", &[]);
    let h = net.node("Add", &[h, b1], "hb", &[]);
    let h = net.node("Relu", &[h], "r", &[]);
    let y = net.node("Gemm", &[h, w2, b2], "g", &[]);
    let y = net.node("Softmax", &[y], "y", &[("axis", AttrValue::Int(1))]);
    net.model(y)
}

/// A head of attention with its residual and normalization.
fn attention() -> Model {
    let (mut net, x) = Net::new(&[1, 3, 4]);
    let [q, k, v] = ["q", "k", "v"].map(|name| {
        let w = net.wave(&format!("w{name}"), &[4, 4], 0.7);
        net.node("MatMul", &[x, w], name, &[])
    });
    let k = net.node("Transpose", &[k], "kt", &[("perm", AttrValue::Ints(vec![0, 2, 1]))]);
    let scores = net.node("MatMul", &[q, k], "scores", &[]);
    let two = net.0.add_constant("two", Tensor::vector(&[2.0_f32]));
    let scores = net.node("Div", &[scores, two], "scaled", &[]);
    let shares = net.node("Softmax", &[scores], "shares", &[("axis", AttrValue::Int(-1))]);
    let mixed = net.node("MatMul", &[shares, v], "mixed", &[]);
    let sum = net.node("Add", &[mixed, x], "sum", &[]);
    let (gamma, beta) = (net.wave("gamma", &[4], 1.0), net.wave("beta", &[4], 0.2));
    let y = net.node("LayerNormalization", &[sum, gamma, beta], "y", &[]);
    net.model(y)
}

/// Two branches of convolutions that meet in a Concat; a value with two uses; an operator in float.
fn branches() -> Model {
    let (mut net, x) = Net::new(&[1, 2, 6, 6]);
    let pads = [("pads", AttrValue::Ints(vec![1, 1, 1, 1]))];
    let (w, b) = (net.wave("w", &[4, 2, 3, 3], 0.6), net.wave("b", &[4], 0.05));
    let stem = net.node("Conv", &[x, w, b], "stem", &pads);
    let (low, high) = (
        net.0.add_constant("low", Tensor::scalar(0.0_f32)),
        net.0.add_constant("high", Tensor::scalar(6.0_f32)),
    );
    let stem = net.node("Clip", &[stem, low, high], "stem6", &[]);
    let w = net.wave("depthwise_w", &[4, 1, 3, 3], 1.5);
    let group = ("group", AttrValue::Int(4));
    let left = net.node("Conv", &[stem, w], "left", &[pads[0].clone(), group]);
    let window = ("kernel_shape", AttrValue::Ints(vec![3, 3]));
    let right = net.node("MaxPool", &[stem], "right", &[pads[0].clone(), window]);
    let both = net.node("Concat", &[left, right], "both", &[("axis", AttrValue::Int(1))]);
    let both = net.node("Erf", &[both], "erf", &[]);
    let both = net.node("GlobalAveragePool", &[both], "pooled", &[]);
    let flat = net.node("Flatten", &[both], "flat", &[]);
    let w = net.wave("classes_w", &[3, 8], 0.4);
    let y = net.node("Gemm", &[flat, w], "y", &[("transB", AttrValue::Int(1))]);
    net.model(y)
}

/// Ranges that differ from tensor to tensor.
fn ranges(model: &Model) -> BTreeMap<String, (f32, f32)> {
    let names = model.graph.values().iter().map(|value| value.name().to_owned());
    names
        .enumerate()
        .map(|(i, name)| (name, (-1.0 - i as f32 / 8.0, 2.0 + i as f32 / 4.0)))
        .collect()
}

/// What a target takes by default: its first types and symmetries.
fn options(target: &Target, scheme: Scheme, granularity: WeightGranularity) -> PlanOptions {
    PlanOptions {
        scheme,
        activation_type: target.activations.types[0],
        activation_symmetry: target.activations.symmetries[0],
        weight_type: target.weights.types[0],
        granularity,
        ..PlanOptions::default()
    }
}

#[test]
fn plans_are_what_they_were() {
    let demo = root().join("assets/demo/fashion_mobilenet.onnx");
    let demo_stats = root().join("testdata/plans/fashion_mobilenet.stats");
    let demo_stats = Stats::from_text(&fs::read_to_string(demo_stats).unwrap()).unwrap();
    let models = [
        ("perceptron", perceptron(), None),
        ("attention", attention(), None),
        ("branches", branches(), None),
        ("fashion_mobilenet", midtread::onnx::load(demo).unwrap(), Some(demo_stats)),
    ];
    let mut plans = BTreeMap::new();
    for (model_name, model, stats) in models {
        let is_small = stats.is_none();
        let (model, _) = prepare(model, &PrepareOptions::default()).unwrap();
        let ranges: Box<dyn Ranges> = match stats {
            Some(stats) => Box::new(stats),
            None => Box::new(ranges(&model)),
        };
        // A scale for each of the demo's channels would say little more, in many times the bytes.
        let granularity =
            if is_small { WeightGranularity::PerChannel } else { WeightGranularity::PerTensor };
        for (target_name, _) in TARGETS {
            let target = Target::find(target_name).unwrap();
            for &scheme in &target.schemes {
                let options = options(&target, scheme, granularity);
                let plan = plan_ranges(&model, Some(&*ranges), &target, &options).unwrap();
                let path = format!("testdata/plans/{model_name}.{target_name}.{scheme}.plan");
                plans.insert(path, plan.to_text());
            }
        }
    }
    check(&plans);
    let is_known = |name: &str| {
        !name.ends_with(".plan") || plans.contains_key(&format!("testdata/plans/{name}"))
    };
    for entry in fs::read_dir(root().join("testdata/plans")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(is_known(&name), "testdata/plans/{name} is of no model or target: remove it");
    }
}
