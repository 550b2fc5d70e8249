//! What people see while they wait: on stderr, and only where stderr is a terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// A bar with rate and time left, which appears once the work has taken a moment.
pub(crate) fn bar(what: &str, n: usize) -> ProgressBar {
    let bar = ProgressBar::new(n as u64);
    let style = "{msg:<18} {bar:30.cyan/blue} {pos}/{len}  {per_sec}  {eta} left";
    bar.set_style(ProgressStyle::with_template(style).expect("the template is valid"));
    bar.set_message(what.to_owned());
    bar
}

/// A bar with MB/s and time left.
pub(crate) fn bytes_bar(what: &str, n: u64) -> ProgressBar {
    let bar = ProgressBar::new(n);
    let style = "{msg:<10} {bar:24.cyan/blue} {decimal_bytes}/{decimal_total_bytes}  {decimal_bytes_per_sec}  {eta} left";
    bar.set_style(ProgressStyle::with_template(style).expect("the template is valid"));
    bar.set_message(what.to_owned());
    bar
}

/// A line that moves while something takes its time.
pub(crate) fn spinner(what: &str) -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    bar.set_style(
        ProgressStyle::with_template("{spinner} {msg}  {elapsed}").expect("the template is valid"),
    );
    bar.set_message(what.to_owned());
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}
