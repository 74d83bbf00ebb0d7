//! How a counter, gauge or histogram is named and described in metrics.

use std::fmt::Write as _;

use crate::error::{Error, Result};

/// The most labels of one metric.
const MAX_LABELS: usize = 16;
/// The longest value of a label, in bytes.
const MAX_LABEL_VALUE_BYTES: usize = 256;
/// The longest help text, in bytes.
const MAX_HELP_BYTES: usize = 1024;
/// The prefix of the metrics of this crate.
const RESERVED_PREFIX: &str = "prefork_";

/// The name of a [`SharedCounter`](super::SharedCounter), [`SharedGauge`](super::SharedGauge) or
/// [`SharedHistogram`](super::SharedHistogram), with what `/metrics` says about it. A plain `&str` is a name without more.
///
/// Declarations with the same name and other values of the same labels are series of one metric. They share the help text.
///
/// ```
/// use tokio_prefork::SharedCounter;
/// use tokio_prefork::shared::MetricDescription;
///
/// let jobs = MetricDescription::new("jobs_total").help("Jobs that were done.");
/// let mail = SharedCounter::new(jobs.label("queue", "mail"))?;
/// let images = SharedCounter::new(jobs.label("queue", "images"))?;
/// mail.add(2);
/// assert_eq!((mail.value(), images.value()), (2, 0));
/// # Ok::<(), tokio_prefork::Error>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub struct MetricDescription<'a> {
    name: &'a str,
    help: &'a str,
    labels: [Option<(&'a str, &'a str)>; MAX_LABELS],
    has_too_many_labels: bool,
    scale: f64,
}

/// A checked description, kept for ever.
#[derive(Debug)]
pub(super) struct Declared {
    /// The name with the labels: `jobs_total{queue="mail"}`.
    pub(super) key: &'static str,
    pub(super) name: String,
    pub(super) help: String,
    pub(super) labels: Vec<(String, String)>,
    pub(super) scale: f64,
}

impl<'a> MetricDescription<'a> {
    /// Starts with a name: up to 128 letters, digits, `_` and `:`, no digit first. The prefix `prefork_` is reserved.
    ///
    /// A counter is exposed with the suffix `_total`, which the name may have or not.
    pub const fn new(name: &'a str) -> MetricDescription<'a> {
        let labels = [None; MAX_LABELS];
        MetricDescription { name, help: "", labels, has_too_many_labels: false, scale: 1.0 }
    }

    /// Sets the help text: what is counted, and in which unit. Up to 1024 bytes.
    pub const fn help(mut self, help: &'a str) -> MetricDescription<'a> {
        self.help = help;
        self
    }

    /// Adds a label, up to 16. The name consists of letters, digits and `_`, no digit first; `le` and names that begin with `__`
    /// are reserved. The value is up to 256 bytes.
    pub const fn label(mut self, name: &'a str, value: &'a str) -> MetricDescription<'a> {
        let mut at = 0;
        while at < MAX_LABELS && self.labels[at].is_some() {
            at += 1;
        }
        match at < MAX_LABELS {
            true => self.labels[at] = Some((name, value)),
            false => self.has_too_many_labels = true,
        }
        self
    }

    /// Multiplies all values by `scale` in metrics, to expose a base unit: 0.001 for `latency_seconds` that is observed in
    /// milliseconds. Default: 1. Other readers get the values as they are.
    pub const fn scale(mut self, scale: f64) -> MetricDescription<'a> {
        self.scale = scale;
        self
    }

    fn labels(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.labels.into_iter().flatten()
    }

    /// Checks the description.
    pub(super) fn check(&self) -> Result<Declared> {
        super::registry::check_name(self.name)?;
        if let Some(problem) = self.problem() {
            let name = self.name;
            return Err(Error::config(format!("cannot declare shared state {name:?}: {problem}")));
        }
        let mut labels: Vec<(String, String)> =
            self.labels().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        labels.sort();
        let mut key = self.name.to_string();
        for (n, (name, value)) in labels.iter().enumerate() {
            let open = if n == 0 { '{' } else { ',' };
            // Writing to a string cannot fail.
            let _ = write!(key, "{open}{name}={value:?}");
        }
        key.push_str(if labels.is_empty() { "" } else { "}" });
        Ok(Declared {
            key: Box::leak(key.into_boxed_str()),
            name: self.name.to_string(),
            help: self.help.to_string(),
            labels,
            scale: self.scale,
        })
    }

    fn problem(&self) -> Option<String> {
        let first = |c: char| c.is_ascii_alphabetic() || c == '_';
        let is_label_name = |name: &str| {
            name.starts_with(first)
                && name.chars().all(|c| first(c) || c.is_ascii_digit())
                && !name.starts_with("__")
                && name != "le"
        };
        if self.name.starts_with(RESERVED_PREFIX) {
            return Some(format!(
                "names that begin with {RESERVED_PREFIX} are those of the server's own metrics; choose another name"
            ));
        }
        if self.has_too_many_labels {
            return Some(format!("it has more than {MAX_LABELS} labels; leave some out"));
        }
        if let Some((name, _)) = self.labels().find(|(name, _)| !is_label_name(name)) {
            return Some(format!(
                "the label name {name:?} is not valid; use letters, digits and `_`, no digit first, not `le`, no `__` first"
            ));
        }
        if let Some((name, _)) =
            self.labels().find(|(_, value)| value.len() > MAX_LABEL_VALUE_BYTES)
        {
            return Some(format!(
                "the value of the label {name:?} is longer than {MAX_LABEL_VALUE_BYTES} bytes; use a shorter one"
            ));
        }
        let mut names: Vec<&str> = self.labels().map(|(name, _)| name).collect();
        names.sort_unstable();
        if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Some(format!("it has the label {:?} twice; remove one", pair[0]));
        }
        if self.help.len() > MAX_HELP_BYTES {
            return Some(format!("its help is longer than {MAX_HELP_BYTES} bytes; shorten it"));
        }
        if !(self.scale.is_finite() && self.scale > 0.0) {
            return Some(format!("the scale {} is not a positive number", self.scale));
        }
        None
    }
}

impl<'a> From<&'a str> for MetricDescription<'a> {
    fn from(name: &'a str) -> MetricDescription<'a> {
        MetricDescription::new(name)
    }
}

impl<'a> From<&'a String> for MetricDescription<'a> {
    fn from(name: &'a String) -> MetricDescription<'a> {
        MetricDescription::new(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(description: MetricDescription<'_>) -> String {
        description.check().expect_err("refused").to_string()
    }

    #[test]
    fn the_key_has_the_labels_in_order() {
        let description = MetricDescription::new("jobs").label("queue", "a\"b").label("kind", "x");
        let declared = description.check().expect("valid");
        assert_eq!(declared.key, r#"jobs{kind="x",queue="a\"b"}"#);
        assert_eq!(MetricDescription::from("jobs").check().expect("valid").key, "jobs");
    }

    #[test]
    fn a_bad_description_is_refused_with_its_reason() {
        let jobs = MetricDescription::new("jobs");
        for name in ["", "1a", "a-b", "le", "__name__", "ä"] {
            let text = error(jobs.label(name, "x"));
            assert!(text.contains("label name") && text.contains(&format!("{name:?}")), "{text}");
        }
        assert!(error(jobs.label("a", "1").label("a", "2")).contains("twice"));
        assert!(error(jobs.label("a", &"x".repeat(257))).contains("longer than 256"));
        assert!(error(jobs.help(&"x".repeat(1025))).contains("help"));
        assert!(error(MetricDescription::new("prefork_jobs")).contains("prefork_"));
        assert!(error(MetricDescription::new("a b")).contains("letters, digits"));
        for scale in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(error(jobs.scale(scale)).contains("scale"));
        }
        let names: Vec<String> = (0..17).map(|n| format!("label_{n}")).collect();
        let many = names.iter().fold(jobs, |jobs, name| jobs.label(name, "x"));
        assert!(error(many).contains("more than 16"));
    }
}
