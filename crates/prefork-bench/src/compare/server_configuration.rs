//! How each server of a comparison was started, for its reports.

use std::fmt::Write;
use std::path::Path;

use serde::Serialize;

use super::ComparePlan;
use super::compare_certificate::CompareCertificate;
use super::run_resources::RunResources;
use crate::report_format::html_page::{escape_html, escape_html_lines};
use crate::run_environment::quote_shell_word;

/// Stands in reports for the directory of temporary files.
pub(super) const DIRECTORY_NAME: &str = "DIR";
/// Stands in reports for the port.
pub(super) const PORT_NAME: &str = "PORT";

/// What was started as a server, and with which configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ServerConfiguration {
    /// Name of the server in the report.
    pub server: String,
    /// What it is, in a phrase; `None` for a command that the caller gave.
    pub about: Option<&'static str>,
    /// Why it is configured so; `None` for the models of `prefork` and commands of the caller.
    pub why: Option<&'static str>,
    /// Version, as the program prints it; `None` if it was not asked.
    pub version: Option<String>,
    /// Environment variables that were set for it, as `NAME=VALUE`.
    pub environment: Vec<String>,
    /// Command line. `DIR` is a temporary directory, `PORT` a free port.
    pub command: String,
    /// Its programs and configuration files.
    pub files: Vec<ConfigurationFile>,
}

/// A text file of a server's configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ConfigurationFile {
    /// Path below `DIR`.
    pub path: String,
    /// Content.
    pub text: String,
}

/// Describes all servers of a plan.
pub(super) fn configurations(
    plan: &ComparePlan,
    resources: &RunResources,
) -> Vec<ServerConfiguration> {
    let certificate =
        plan.https.then(|| CompareCertificate::in_directory(Path::new(DIRECTORY_NAME)));
    plan.servers.iter().map(|one| one.describe(resources, certificate.as_ref())).collect()
}

/// Joins words to a command line for a POSIX shell.
pub(super) fn shell_line(words: &[String]) -> String {
    words.iter().map(|word| quote_shell_word(word)).collect::<Vec<_>>().join(" ")
}

/// Writes a block for each server: version and command in a line; what reports of peers add.
pub(super) fn write_configurations(
    text: &mut String,
    servers: &[ServerConfiguration],
    left_out: &[String],
) {
    let is_peer = |one: &&ServerConfiguration| one.version.is_some();
    if servers.iter().any(|one| is_peer(&one)) {
        text.push_str("\nPeers, with their files in DIR (--html and --json show these):\n");
    }
    for one in servers.iter().filter(is_peer) {
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{} ({}): {}\n  {}",
            one.server,
            one.version.as_deref().unwrap_or_default(),
            one.about.unwrap_or_default(),
            one.command_with_environment()
        );
    }
    for why in left_out {
        let _ = writeln!(text, "left out: {why}");
    }
}

/// Returns a section with a block to unfold for each server.
pub(super) fn configuration_section(
    servers: &[ServerConfiguration],
    left_out: &[String],
) -> String {
    let mut html = "<h2>Servers</h2>\n".to_string();
    for one in servers {
        let version = one.version.as_deref().map(|version| format!(" ({})", escape_html(version)));
        let _ = writeln!(
            html,
            "<details><summary>{}{}</summary>",
            escape_html(&one.server),
            version.unwrap_or_default()
        );
        for line in one.about.iter().chain(&one.why) {
            let _ = writeln!(html, "<p class=\"how\">{}</p>", escape_html(line));
        }
        let _ = writeln!(html, "<pre>{}</pre>", escape_html(&one.command_with_environment()));
        for file in &one.files {
            let _ = writeln!(
                html,
                "<p class=\"how\">DIR/{}</p>\n<pre>{}</pre>",
                escape_html(&file.path),
                escape_html_lines(&file.text)
            );
        }
        html.push_str("</details>\n");
    }
    for why in left_out {
        let _ = writeln!(html, "<p class=\"how\">Left out: {}</p>", escape_html(why));
    }
    html
}

impl ServerConfiguration {
    fn command_with_environment(&self) -> String {
        let words = self.environment.iter().map(|word| quote_shell_word(word));
        words.chain([self.command.clone()]).collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_are_short_in_text_and_whole_in_html() {
        let peer = ServerConfiguration {
            server: "nginx".to_string(),
            about: Some("nginx with files"),
            why: Some("as it advises"),
            version: Some("nginx/1.22 <b>".to_string()),
            environment: vec!["A=b c".to_string()],
            command: "nginx -c DIR/nginx.conf".to_string(),
            files: vec![ConfigurationFile {
                path: "nginx.conf".to_string(),
                text: "daemon off;\naccess_log \"off\";".to_string(),
            }],
        };
        let own = ServerConfiguration {
            server: "single".to_string(),
            version: None,
            files: Vec::new(),
            ..peer.clone()
        };
        let (servers, left_out) = ([own, peer], ["puma: not installed".to_string()]);
        let mut text = String::new();
        write_configurations(&mut text, &servers, &left_out);
        assert!(text.contains("  'A=b c' nginx -c DIR/nginx.conf\n"), "{text}");
        assert!(text.contains("left out: puma") && !text.contains("daemon off"), "{text}");
        assert!(!text.contains("single"), "{text}");
        let html = configuration_section(&servers, &left_out);
        assert!(html.contains("daemon off;\naccess_log &quot;off&quot;;"), "{html}");
        assert!(html.contains("<summary>nginx (nginx/1.22 &lt;b&gt;)</summary>"), "{html}");
    }
}
