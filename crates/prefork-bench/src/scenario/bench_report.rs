//! The report of `prefork bench`: that of a load of requests, or that of a scenario of another kind.

use std::fmt::Write;

use serde::Serialize;
use serde_json::Value;

use super::ScenarioSummary;
use crate::load::LoadReport;
use crate::load::report::html::load_plots;
use crate::load_kinds::KindReport;
use crate::report_format::html_page::{
    environment_list, escape_html, escape_html_lines, html_page,
};
use crate::run_environment::RunEnvironment;
use tokio_prefork::exit;

/// Report of a run of `prefork bench`.
#[derive(Debug, Clone)]
pub enum BenchReport {
    /// Requests were sent, and nothing else.
    Requests(Box<LoadReport>),
    /// The measured load was of another kind, or ran beside slow readers.
    Kind(Box<ScenarioKindReport>),
}

/// Report of a scenario whose figures are not those of requests only.
#[derive(Debug, Clone)]
pub struct ScenarioKindReport {
    /// Machine, kernel, versions, command and date.
    pub environment: RunEnvironment,
    /// URL of the server.
    pub target: String,
    /// The scenario, and what else it has measured.
    pub scenario: ScenarioSummary,
    /// The figures.
    pub report: KindReport,
}

/// The form of [`ScenarioKindReport`] in JSON: the figures are fields beside the others.
#[derive(Serialize)]
struct ScenarioKindJson<'a> {
    environment: &'a RunEnvironment,
    target: &'a str,
    scenario: &'a ScenarioSummary,
    #[serde(flatten)]
    report: Value,
}

impl BenchReport {
    /// Sets the commit and the compiler of the program.
    pub fn set_build(&mut self, commit: Option<&'static str>, compiler: Option<&'static str>) {
        let environment = match self {
            BenchReport::Requests(report) => &mut report.environment,
            BenchReport::Kind(report) => &mut report.environment,
        };
        environment.set_build(commit, compiler);
    }

    /// Returns the exit status: 0 all requests succeeded, 1 some failed, 69 no response at all.
    pub fn exit_status(&self) -> u8 {
        match self {
            BenchReport::Requests(report) => report.exit_status(),
            BenchReport::Kind(report) => match &report.report {
                KindReport::WebSocketEcho(echo) if echo.failed > 0 => exit::FAILURE,
                other => other.load().map_or(exit::OK, LoadReport::exit_status),
            },
        }
    }

    /// Formats the report as JSON.
    pub fn to_json(&self) -> String {
        match self {
            BenchReport::Requests(report) => report.to_json(),
            BenchReport::Kind(report) => report.to_json(),
        }
    }

    /// Formats the report as text for a terminal.
    pub fn to_table(&self) -> String {
        match self {
            BenchReport::Requests(report) => report.to_table(),
            BenchReport::Kind(report) => report.to_table(),
        }
    }

    /// Formats the report as one self-contained HTML page.
    pub fn to_html(&self) -> String {
        match self {
            BenchReport::Requests(report) => report.to_html(),
            BenchReport::Kind(report) => report.to_html(),
        }
    }
}

impl ScenarioKindReport {
    /// Returns what the report says after the URL if a signal ended the run.
    fn early_end(&self) -> &'static str {
        match self.report.ended_early() {
            true => ", ended early by a signal",
            false => "",
        }
    }

    /// Formats the report as JSON.
    pub fn to_json(&self) -> String {
        let report = ScenarioKindJson {
            environment: &self.environment,
            target: &self.target,
            scenario: &self.scenario,
            // Every kind of report is an object in JSON.
            report: serde_json::from_str(&self.report.to_json()).unwrap_or_default(),
        };
        serde_json::to_string_pretty(&report).unwrap_or_default()
    }

    /// Formats the report as text for a terminal.
    pub fn to_table(&self) -> String {
        // Writing to a string cannot fail.
        let mut text = String::new();
        let _ = writeln!(text, "{}{}", self.target, self.early_end());
        self.scenario.write_lines(&mut text);
        let _ = writeln!(text, "\n{}\n", self.report.to_table().trim_end());
        for (name, value) in self.environment.lines() {
            let _ = writeln!(text, "{name:8} {value}");
        }
        text
    }

    /// Formats the report as one self-contained HTML page.
    pub fn to_html(&self) -> String {
        let mut about = String::new();
        self.scenario.write_lines(&mut about);
        let are_processes_kept = matches!(self.report, KindReport::SlowReaders(_));
        let plots = |load: &LoadReport| load_plots(load, are_processes_kept);
        let main = format!(
            "<h1>prefork bench</h1>\n<p class=\"how\">{}</p>\n<pre>{}</pre>\n<pre>{}</pre>\n{}{}",
            escape_html(&format!("{}{}", self.target, self.early_end())),
            escape_html_lines(&about),
            escape_html_lines(&self.report.to_table()),
            self.report.load().map(plots).unwrap_or_default(),
            environment_list(&self.environment, &[])
        );
        html_page("prefork bench", &main, &self.environment.version)
    }
}
