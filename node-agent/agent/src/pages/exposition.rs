//! Prometheus' text format.

use std::fmt::Write as _;

/// A page as it is written.
#[derive(Default)]
pub(super) struct Page {
    text: String,
    /// Milliseconds since the epoch, of every sample.
    millis: i64,
}

/// A name with its value.
pub(super) type Label<'a> = (&'static str, &'a str);

impl Page {
    /// A page whose samples are of this time, nanoseconds since the epoch.
    pub(super) fn at(unix_nanos: i64) -> Self {
        Self {
            text: String::new(),
            millis: unix_nanos / 1_000_000,
        }
    }

    /// Begins a family: `counter` or `gauge`.
    pub(super) fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    }

    /// A sample of the family that was begun last.
    pub(super) fn sample(&mut self, name: &str, labels: &[Label<'_>], value: f64) {
        self.text.push_str(name);
        for (at, (label, text)) in labels.iter().enumerate() {
            self.text.push(if at == 0 { '{' } else { ',' });
            self.line(format_args!("{label}=\"{}\"", escaped(text)));
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        let millis = self.millis;
        self.line(format_args!(" {value} {millis}\n"));
    }

    pub(super) fn finish(self) -> String {
        self.text
    }

    fn line(&mut self, text: std::fmt::Arguments<'_>) {
        // Writing to a String does not fail.
        self.text.write_fmt(text).unwrap_or_default();
    }
}

fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\\\").replace('"', "\\\"");
    text.replace('\n', "\\n")
}

/// Seconds of so many nanoseconds.
pub(super) fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

/// A number as the format has it.
pub(super) fn number(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_written_as_it_is_read() {
        let mut page = Page::at(1_767_323_045_678_901_234);
        page.family("a_total", "counter", "What a is.");
        page.sample(
            "a_total",
            &[("x", "1\"\\\n"), ("y", "")],
            seconds(1_500_000_000),
        );
        page.sample("a_total", &[], number(1 << 40));
        let expected = "# HELP a_total What a is.\n# TYPE a_total counter\n\
            a_total{x=\"1\\\"\\\\\\n\",y=\"\"} 1.5 1767323045678\n\
            a_total 1099511627776 1767323045678\n";
        assert_eq!(page.finish(), expected);
    }
}
