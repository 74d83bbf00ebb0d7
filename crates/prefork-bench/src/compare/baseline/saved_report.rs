//! A report of `prefork compare --json`, read from a file.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use nix::libc::O_NONBLOCK;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::super::compared_metric::ComparedMetric;
use super::super::confidence::Confidence;
use super::super::report::{REPORT_FORMAT, REPORT_FORMAT_VERSION};
use super::super::run_settings::RunSettings;
use super::super::verdict::Verdict;
use crate::run_environment::RunEnvironment;
use crate::scenario::Workload;
use tokio_prefork::text::printable;

/// Largest report that is read, in bytes: 64 MiB.
const MAX_REPORT_BYTES: u64 = 64 * 1024 * 1024;
const HOW_TO_MAKE_ONE: &str = "make a report with: prefork compare --json > FILE";

/// What an earlier run has measured, and where and how.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct SavedReport {
    pub(crate) environment: RunEnvironment,
    /// Protocol, workers, rounds and lengths.
    #[serde(flatten)]
    pub settings: RunSettings,
    pub(crate) reference: Option<String>,
    pub(crate) confidence: Confidence,
    pub(crate) verdict: Verdict,
    pub(crate) workloads: Vec<SavedWorkload>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct SavedWorkload {
    /// Name, or an object with the name and the rest of the definition.
    pub(crate) workload: Value,
    pub(crate) about: String,
    pub(crate) metric: ComparedMetric,
    /// The definition of the workload.
    #[serde(default)]
    pub(crate) scenario: Value,
    pub(crate) servers: Vec<SavedServer>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct SavedServer {
    pub(crate) server: String,
    pub(crate) is_control: bool,
    pub(crate) samples: Vec<SavedSample>,
}

/// One measurement.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct SavedSample {
    pub(crate) round: usize,
    #[serde(flatten)]
    values: Map<String, Value>,
}

impl SavedSample {
    /// Returns the value of a metric; `None` if it was not measured.
    pub(crate) fn value(&self, metric: ComparedMetric) -> Option<f64> {
        self.values.get(metric.sample_field())?.as_f64()
    }
}

impl SavedWorkload {
    /// Returns the name of the workload.
    pub(crate) fn name(&self) -> &str {
        let name = self.workload.as_str().or_else(|| self.workload.get("name")?.as_str());
        name.unwrap_or_default()
    }

    fn read_scenario(&self) -> Result<Workload, String> {
        Workload::from_report(self.name(), &self.scenario)
    }

    /// Returns what servers are compared by under the workload, its own metric first.
    pub(crate) fn compared_metrics(&self) -> Vec<ComparedMetric> {
        let further = self.read_scenario().map(|workload| workload.compared_metrics());
        let further =
            further.unwrap_or(vec![ComparedMetric::CpuPerRequest, ComparedMetric::Memory]);
        let further = further.into_iter().filter(|metric| *metric != self.metric);
        std::iter::once(self.metric).chain(further).collect()
    }

    pub(crate) fn server(&self, name: &str) -> Option<&SavedServer> {
        self.servers.iter().find(|one| one.server == name && !one.samples.is_empty())
    }

    /// Returns the control: the reference, measured once more.
    pub(crate) fn control(&self) -> Option<&SavedServer> {
        self.servers.iter().find(|one| one.is_control && !one.samples.is_empty())
    }
}

impl SavedReport {
    /// Reads a report from a regular file of up to 64 MiB.
    ///
    /// # Errors
    /// The file cannot be read, is not a regular file, or is not a report of this version of `prefork compare`; the message
    /// says what it is.
    pub fn read(path: &Path) -> Result<SavedReport, String> {
        let text = read_regular_file(path)
            .map_err(|why| format!("cannot read {}: {why}", path.display()))?;
        let report = SavedReport::parse(&text).and_then(|report| match report.has_samples() {
            true => Ok(report),
            false => Err(format!("is a report in which nothing was measured; {HOW_TO_MAKE_ONE}")),
        });
        report.map_err(|why| format!("{} {why}", path.display()))
    }

    fn has_samples(&self) -> bool {
        self.workloads.iter().flat_map(|one| &one.servers).any(|server| !server.samples.is_empty())
    }

    /// Parses the text of a report; an error continues the name of the file.
    pub(crate) fn parse(text: &[u8]) -> Result<SavedReport, String> {
        if text.iter().all(u8::is_ascii_whitespace) {
            return Err(format!("is empty; {HOW_TO_MAKE_ONE}"));
        }
        let value: Value = serde_json::from_slice(text).map_err(|why| match why.classify() {
            serde_json::error::Category::Eof => {
                format!("is truncated: its JSON ends early ({why}); {HOW_TO_MAKE_ONE}")
            }
            _ => format!("is not JSON ({why}); {HOW_TO_MAKE_ONE}"),
        })?;
        check_format(&value).map_err(|what| format!("{what}; {HOW_TO_MAKE_ONE}"))?;
        let report: SavedReport = serde_json::from_value(value).map_err(|why| {
            format!("is a damaged report of prefork compare: {why}; {HOW_TO_MAKE_ONE}")
        })?;
        match report.settings.has_possible_lengths() {
            true => Ok(report),
            false => Err(format!(
                "is a damaged report of prefork compare: a duration is impossible; {HOW_TO_MAKE_ONE}"
            )),
        }
    }

    /// Returns the names of the servers, without the control.
    pub fn server_names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for server in self.workloads.iter().flat_map(|workload| &workload.servers) {
            if !server.is_control && !names.contains(&server.server.as_str()) {
                names.push(&server.server);
            }
        }
        names
    }

    /// Returns the names of the workloads.
    pub fn workload_names(&self) -> Vec<&str> {
        self.workloads.iter().map(SavedWorkload::name).collect()
    }

    /// Returns the workloads as they were in the earlier run.
    ///
    /// # Errors
    /// A workload is one of the user, and has keys that this version does not know.
    pub fn workloads(&self) -> Result<Vec<Arc<Workload>>, String> {
        let read = |saved: &SavedWorkload| {
            match saved.read_scenario() {
            Ok(workload) => Ok(Arc::new(workload)),
            Err(why) => Workload::built_in(saved.name()).map_err(|_| {
                format!("cannot measure the workload {} of the baseline again: {why}; give its file with --scenario", saved.name())
            }),
        }
        };
        self.workloads.iter().map(read).collect()
    }

    /// Returns the name of the server that the others were compared with.
    pub fn reference_name(&self) -> Option<&str> {
        self.reference.as_deref()
    }

    pub(crate) fn workload(&self, name: &str) -> Option<&SavedWorkload> {
        self.workloads.iter().find(|one| one.name() == name)
    }
}

/// Checks that the JSON is a report of this program and version, and says what it is otherwise.
fn check_format(value: &Value) -> Result<(), String> {
    let has = |name: &str| value.get(name).is_some();
    match value.get("format").and_then(Value::as_str) {
        Some(REPORT_FORMAT) => {}
        Some(other) => {
            return Err(format!("is JSON of another format, {:?}", printable(other)));
        }
        None if has("verdict") && has("workloads") => {
            return Err("is a report of an older prefork compare, which this version cannot read"
                .to_string());
        }
        None if has("timeline") && has("latency") => {
            return Err("is a report of prefork bench, not of prefork compare".to_string());
        }
        None => {
            return Err("is JSON of another program, not a report of prefork compare".to_string());
        }
    }
    match value.get("format_version").and_then(Value::as_u64) {
        Some(version) if version == u64::from(REPORT_FORMAT_VERSION) => Ok(()),
        version => {
            let age =
                if version > Some(REPORT_FORMAT_VERSION.into()) { "a newer" } else { "an older" };
            let version = version.map_or("none".to_string(), |version| version.to_string());
            Err(format!(
                "is a report of {age} prefork compare: its format version is {version}, and this program reads version \
                 {REPORT_FORMAT_VERSION}"
            ))
        }
    }
}

/// Reads a file without waiting for a writer, as that of a FIFO may never come.
fn read_regular_file(path: &Path) -> Result<Vec<u8>, String> {
    let open = || -> std::io::Result<(File, std::fs::Metadata)> {
        let file = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path)?;
        let metadata = file.metadata()?;
        Ok((file, metadata))
    };
    let (file, metadata) = open().map_err(|why| why.to_string())?;
    let kind = metadata.file_type();
    if !kind.is_file() {
        let what = match () {
            () if kind.is_dir() => "a directory",
            () if kind.is_fifo() => "a FIFO",
            () => "not a regular file",
        };
        return Err(format!("it is {what}; give a file that prefork compare --json has written"));
    }
    let mut text = Vec::new();
    // A file may grow meanwhile.
    file.take(MAX_REPORT_BYTES + 1).read_to_end(&mut text).map_err(|why| why.to_string())?;
    match text.len() as u64 > MAX_REPORT_BYTES {
        true => Err(format!("it is larger than {} MiB, as no report is", MAX_REPORT_BYTES >> 20)),
        false => Ok(text),
    }
}

#[cfg(test)]
#[path = "saved_report_tests.rs"]
mod tests;
