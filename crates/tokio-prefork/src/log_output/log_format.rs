//! The formats of log lines: text, JSON, and text or JSON with the priority prefix of systemd's journal.

use std::fmt::{self, Write as _};
use std::io::{self, Write};
use std::sync::OnceLock;
use std::time::SystemTime;

use log::kv::{self, Source, VisitSource};
use log::{Level, Record};

use super::json_line::JsonLine;
use super::process_role::{LeadingTag, ProcessRole};
use crate::client::RequestId;
use crate::config::impl_choice;
use crate::text::{MAX_PRINTABLE_BYTES, Printable, cut_between_characters, format_system_time};

/// The format of the lines of the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum LogFormat {
    /// `TIME LEVEL TAG MESSAGE key=value ...`. The default.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

impl_choice!(LogFormat, "a format of the log", { "text" => Text, "json" => Json });

/// How this process and those that it forks format log lines. Set once, as the loggers are.
static STYLE: OnceLock<LineStyle> = OnceLock::new();

/// How log lines are formatted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LineStyle {
    pub(super) format: LogFormat,
    /// Whether lines begin with a priority, `<N>`, which journald takes off.
    pub(super) has_priority: bool,
}

impl LineStyle {
    /// Sets the style of this process and those that it forks, unless it has one.
    pub(super) fn set(self) {
        // The logger that was installed first stays, and so does its format.
        let _ = STYLE.set(self);
    }

    /// Returns the style of this process. `None` if no format was set, as with a logger of the application's own.
    pub(super) fn current() -> Option<LineStyle> {
        STYLE.get().copied()
    }

    /// Formats a line with its line feed.
    pub(super) fn format(
        self,
        now: SystemTime,
        role: Option<ProcessRole>,
        line: &Line<'_>,
    ) -> String {
        let mut out = String::new();
        if self.has_priority {
            let _ = write!(out, "<{}>", journal_priority(line.level));
        }
        match self.format {
            LogFormat::Text => {
                if !self.has_priority {
                    let _ = write!(out, "{} {:<5} ", format_system_time(now), line.level);
                }
                push_text(&mut out, role, line);
            }
            LogFormat::Json => push_json(&mut out, now, role, line),
        }
        out.push('\n');
        out
    }
}

/// What a log line says.
pub(super) struct Line<'a> {
    pub(super) level: Level,
    pub(super) target: &'a str,
    pub(super) message: &'a dyn fmt::Display,
    /// The key-values of the record.
    pub(super) fields: Option<&'a dyn Source>,
}

/// Formats a record as one line with its line feed, in the format that [`init_log_output`](super::init_log_output) was given.
///
/// Each line says which process wrote it: `primary`, or the tag of the worker. Everything that is not printable is escaped.
/// For [`env_logger::Builder::format`](https://docs.rs/env_logger/latest/env_logger/struct.Builder.html#method.format):
///
/// ```no_run
/// use tokio_prefork::log_output::{self, LogFormat, LogOutput};
///
/// log_output::init_log_output(LogFormat::Json);
/// env_logger::Builder::from_default_env()
///     .format(log_output::write_record)
///     .target(env_logger::Target::Pipe(Box::new(LogOutput)))
///     .init();
/// ```
///
/// # Errors
/// Those of `out`.
pub fn write_record<W: Write>(out: &mut W, record: &Record<'_>) -> io::Result<()> {
    let line = Line {
        level: record.level(),
        target: record.target(),
        message: record.args(),
        fields: Some(record.key_values()),
    };
    let style =
        LineStyle::current().unwrap_or(LineStyle { format: LogFormat::Text, has_priority: false });
    out.write_all(style.format(SystemTime::now(), ProcessRole::current(), &line).as_bytes())
}

/// Returns the priority of a level; see sd-daemon(3).
fn journal_priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

fn push_text(out: &mut String, role: Option<ProcessRole>, line: &Line<'_>) {
    let message = Printable(line.message).to_string();
    let message = match role {
        None => message.as_str(),
        Some(role) => {
            let separator = if matches!(role, ProcessRole::Worker(_)) { " " } else { ": " };
            let _ = write!(out, "{role}{separator}");
            role.strip_own_tag(&message)
        }
    };
    out.push_str(message);
    if let Some(fields) = line.fields {
        // Fails never: neither the visitor nor a string does.
        let _ = fields.visit(&mut TextFields(out));
    }
    if let Some(id) = RequestId::current() {
        let _ = write!(out, " request_id={id}");
    }
}

/// Writes each field as ` key=value`.
struct TextFields<'a>(&'a mut String);

impl<'kvs> VisitSource<'kvs> for TextFields<'_> {
    fn visit_pair(&mut self, key: kv::Key<'kvs>, value: kv::Value<'kvs>) -> Result<(), kv::Error> {
        let value = value.to_string();
        // As it would be read: a value with spaces or quotes is quoted.
        let is_plain = !value.is_empty() && !value.contains([' ', '"', '=']);
        let _ = match is_plain {
            true => write!(self.0, " {}={}", Printable(key), Printable(value)),
            false => write!(self.0, " {}={}", Printable(key), Printable(format!("{value:?}"))),
        };
        Ok(())
    }
}

fn push_json(out: &mut String, now: SystemTime, role: Option<ProcessRole>, line: &Line<'_>) {
    let message = CutText::of(line.message);
    let mut message = message.as_str();
    let mut json = JsonLine::begin(out);
    json.add_text("time", &format_system_time(now));
    json.add_text("level", line.level.as_str());
    json.add_short_text("target", line.target);
    if let Some(role) = role {
        json.add_text("process", role.name());
        message = role.strip_own_tag(message);
    }
    json.add_number("pid", std::process::id().into());
    match role {
        Some(ProcessRole::Worker(tag)) => {
            json.add_number("worker", tag.id.0);
            json.add_number("slot", tag.slot.0.into());
            json.add_number("generation", tag.generation.0);
            json.add_short_text("kind", tag.kind);
        }
        // The primary writes about its workers.
        _ => {
            if let Some((tag, rest)) = LeadingTag::split(message) {
                json.add_number("worker", tag.worker);
                json.add_number("slot", tag.slot);
                json.add_number("generation", tag.generation);
                json.add_short_text("kind", tag.kind.unwrap_or(prefork_supervisor::WEB_KIND));
                if let Some(pid) = tag.pid {
                    json.add_number("worker_pid", pid);
                }
                message = rest;
            }
        }
    }
    if let Some(id) = RequestId::current() {
        json.add_short_text("request_id", id.as_str());
    }
    if let Some(fields) = line.fields {
        json.add_fields(fields);
    }
    // The last member, because a line that is too long is cut there.
    json.finish_with_message(message);
}

/// A text of at most [`MAX_PRINTABLE_BYTES`].
struct CutText {
    text: String,
    is_cut: bool,
}

impl CutText {
    fn of(value: &dyn fmt::Display) -> CutText {
        let mut text = CutText { text: String::new(), is_cut: false };
        // An error of a `Display` implementation leaves what it has written.
        let _ = write!(text, "{value}");
        if text.is_cut {
            text.text.push_str("... (cut)");
        }
        text
    }

    fn as_str(&self) -> &str {
        &self.text
    }
}

impl fmt::Write for CutText {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let free = MAX_PRINTABLE_BYTES.saturating_sub(self.text.len());
        if self.is_cut || text.len() <= free {
            if !self.is_cut {
                self.text.push_str(text);
            }
            return Ok(());
        }
        self.text.push_str(cut_between_characters(text, free));
        self.is_cut = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use prefork_supervisor::{Generation, Slot, WEB_KIND, WorkerId, WorkerTag};

    const WORKER: ProcessRole = ProcessRole::Worker(WorkerTag {
        id: WorkerId(3),
        slot: Slot(1),
        generation: Generation(2),
        pid: Some(4711),
        kind: WEB_KIND,
    });

    fn format(style: (LogFormat, bool), role: Option<ProcessRole>, message: &str) -> String {
        let style = LineStyle { format: style.0, has_priority: style.1 };
        let line =
            Line { level: Level::Info, target: "app::users", message: &message, fields: None };
        let now = UNIX_EPOCH + Duration::from_millis(1_795_341_600_123);
        style.format(now, role, &line)
    }

    #[test]
    fn text_lines_have_time_level_and_tag_and_journal_lines_a_priority() {
        let text = (LogFormat::Text, false);
        for (role, message, expected) in [
            (None, "a\nb", "a\\nb"),
            (Some(ProcessRole::Primary), "reloading", "primary: reloading"),
            (Some(WORKER), "is full", "worker=3 slot=1 gen=2 pid=4711 is full"),
            (
                Some(WORKER),
                "worker=3 slot=1 gen=2 pid=4711 is full",
                "worker=3 slot=1 gen=2 pid=4711 is full",
            ),
        ] {
            assert_eq!(
                format(text, role, message),
                format!("2026-11-22T10:00:00.123Z INFO  {expected}\n")
            );
        }
        let journal = format((LogFormat::Text, true), Some(WORKER), "x");
        assert_eq!(journal, "<6>worker=3 slot=1 gen=2 pid=4711 x\n");
        let json = format((LogFormat::Json, true), Some(WORKER), "x");
        assert!(json.starts_with("<6>{\"time\":"), "{json}");
        let priorities = [3, 4, 6, 7, 7];
        assert!(Level::iter().map(journal_priority).eq(priorities));
    }

    fn json(role: Option<ProcessRole>, message: &str) -> Value {
        let line = format((LogFormat::Json, false), role, message);
        assert_eq!(line.matches('\n').count(), 1, "{line}");
        serde_json::from_str(&line).expect("JSON")
    }

    #[test]
    fn json_lines_name_the_process_and_the_worker() {
        let own = json(Some(WORKER), "worker=3 slot=1 gen=2 pid=4711 is\n\"full\"");
        let expected = serde_json::json!({
            "time": "2026-11-22T10:00:00.123Z", "level": "INFO", "target": "app::users",
            "process": "worker", "pid": std::process::id(), "worker": 3, "slot": 1,
            "generation": 2, "kind": "web", "message": "is\n\"full\"",
        });
        assert_eq!(own, expected);
        let about =
            json(Some(ProcessRole::Primary), "worker=5 slot=0 gen=1 pid=99 kind=jobs ready");
        for (name, value) in [
            ("process", Value::from("primary")),
            ("worker", 5.into()),
            ("worker_pid", 99.into()),
            ("kind", "jobs".into()),
            ("message", "ready".into()),
        ] {
            assert_eq!(about[name], value, "{about}");
        }
        assert!(json(None, "x").get("process").is_none());
    }

    #[test]
    fn key_values_of_a_record_are_shown() {
        let fields: &[(&str, kv::Value<'_>)] = &[
            ("user", "a b\n".into()),
            ("count", 7.into()),
            ("ratio", 0.5.into()),
            ("nan", f64::NAN.into()),
            ("ok", true.into()),
        ];
        let record = |style: LineStyle| {
            let message = &"said";
            let fields: Option<&dyn Source> = Some(&fields);
            style.format(
                UNIX_EPOCH,
                None,
                &Line { level: Level::Info, target: "a", message, fields },
            )
        };
        let text = record(LineStyle { format: LogFormat::Text, has_priority: true });
        assert_eq!(text, "<6>said user=\"a b\\n\" count=7 ratio=0.5 nan=NaN ok=true\n");
        let json = record(LineStyle { format: LogFormat::Json, has_priority: false });
        let json: Value = serde_json::from_str(&json).expect("JSON");
        let expected = serde_json::json!({
            "user": "a b\n", "count": 7, "ratio": 0.5, "nan": "NaN", "ok": true,
        });
        assert_eq!(json["fields"], expected);
    }

    #[test]
    fn formats_are_read_as_they_are_printed() {
        for format in [LogFormat::Text, LogFormat::Json] {
            assert_eq!(format.to_string().parse(), Ok(format));
        }
        assert!("yaml".parse::<LogFormat>().is_err());
    }

    proptest! {
        #[test]
        fn any_message_is_one_valid_json_line(message: String) {
            let line = json(Some(ProcessRole::Primary), &message);
            if LeadingTag::split(&message).is_none() {
                prop_assert_eq!(&line["message"], message.as_str());
            }
        }
    }
}
