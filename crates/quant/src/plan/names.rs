//! Finding the name that a user may have meant.

/// The candidate nearest to `name` by edit distance, if it is near enough to be a slip of the pen.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let allowed = 1 + name.chars().count() / 4;
    let best = candidates
        .into_iter()
        .filter_map(|candidate| Some((distance(name, candidate, allowed)?, candidate)))
        .min();
    best.map(|(_, candidate)| candidate.to_owned())
}

/// Levenshtein distance over characters, ignoring case, or `None` where it is more than `most`.
fn distance(a: &str, b: &str, most: usize) -> Option<usize> {
    let (a, b): (Vec<char>, Vec<char>) =
        (a.to_lowercase().chars().collect(), b.to_lowercase().chars().collect());
    if a.len().abs_diff(b.len()) > most {
        return None;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(ca != cb);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row.last().copied().filter(|&d| d <= most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_found_and_strangers_are_not() {
        let names = ["conv1", "conv2", "layer.10/MatMul", "Relu"];
        assert_eq!(nearest("con1", names).as_deref(), Some("conv1"));
        assert_eq!(nearest("relu", names).as_deref(), Some("Relu"));
        assert_eq!(nearest("layer.10/Matmull", names).as_deref(), Some("layer.10/MatMul"));
        assert_eq!(nearest("softmax", names), None);
        assert_eq!(distance("kitten", "sitting", 9), Some(3));
    }
}
