//! Tables that fit a terminal.

/// Rows as text in columns two spaces apart; the first row is the heading. Columns whose cells all begin with a digit,
/// a sign or a dash are set to the right. Cells longer than `MAX` are cut in the middle, where names differ least.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    const MAX: usize = 60;
    let rows: Vec<Vec<String>> =
        rows.iter().map(|r| r.iter().map(|c| shorten(c, MAX)).collect()).collect();
    let n = rows.iter().map(Vec::len).max().unwrap_or(0);
    let cell = |row: &Vec<String>, i: usize| row.get(i).cloned().unwrap_or_default();
    let width = |i: usize| rows.iter().map(|r| cell(r, i).chars().count()).max().unwrap_or(0);
    let is_number =
        |c: &str| c.is_empty() || c.starts_with(|c: char| c.is_ascii_digit() || "+-–".contains(c));
    let right = |i: usize| rows.iter().skip(1).all(|r| is_number(&cell(r, i)));
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for i in 0..n {
            let (cell, width) = (cell(row, i), width(i));
            line +=
                &if right(i) { format!("{cell:>width$}  ") } else { format!("{cell:<width$}  ") };
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

/// `text`, or its two ends with `…` between them.
pub(crate) fn shorten(text: &str, max: usize) -> String {
    let n = text.chars().count();
    if n <= max {
        return text.to_owned();
    }
    let (head, tail) = (max / 2, max - max / 2 - 1);
    text.chars().take(head).chain(['…']).chain(text.chars().skip(n - tail)).collect()
}

/// `1.25 MB`, in units of 1000.
pub(crate) fn size(bytes: u64) -> String {
    midtread::report::size(bytes)
}

/// `93.21 %`.
pub(crate) fn percent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stand_to_the_right_and_words_to_the_left() {
        let rows = [vec!["model", "size"], vec!["float32", "1 kB"], vec!["i8", "20 kB"]];
        let rows: Vec<Vec<String>> =
            rows.iter().map(|r| r.iter().map(|c| c.to_string()).collect()).collect();
        assert_eq!(table(&rows), "model     size\nfloat32   1 kB\ni8       20 kB\n");
    }

    #[test]
    fn long_names_keep_both_ends() {
        assert_eq!(shorten("abcdefghij", 5), "ab…ij");
        assert_eq!(shorten("abcde", 5), "abcde");
    }
}
