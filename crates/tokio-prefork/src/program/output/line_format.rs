//! The form of a line of output, and the names of files.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Serialize;

use super::ProgramOutput;
use crate::text::{format_system_time, printable_json};
use crate::worker_stdio::OutputStream;
use prefork_supervisor::WorkerTag;

/// The placeholders in paths of files.
pub(super) const PLACEHOLDERS: [&str; 3] = ["slot", "stream", "name"];

/// A line as a JSON object. The members have the names of those of the log.
#[derive(Serialize)]
struct JsonOutput<'a> {
    time: String,
    process: &'static str,
    worker: u64,
    slot: u32,
    generation: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    stream: &'static str,
    message: &'a str,
}

/// Appends a line with its line feed.
pub(super) fn push_line(
    out: &mut Vec<u8>,
    output: &ProgramOutput,
    worker: WorkerTag,
    stream: OutputStream,
    line: &[u8],
) {
    match output {
        ProgramOutput::Prefix => {
            // Writing to memory cannot fail.
            let _ = write!(out, "worker={} slot={} {stream}: ", worker.id, worker.slot);
            out.extend_from_slice(line);
        }
        ProgramOutput::Json => {
            let object = JsonOutput {
                time: format_system_time(SystemTime::now()),
                process: "program",
                worker: worker.id.0,
                slot: worker.slot.0,
                generation: worker.generation.0,
                pid: worker.pid,
                stream: stream_name(stream),
                message: &String::from_utf8_lossy(line),
            };
            // Numbers and strings can always be serialized.
            let json = serde_json::to_string(&object).unwrap_or_default();
            out.extend_from_slice(printable_json(&json).as_bytes());
        }
        ProgramOutput::Plain | ProgramOutput::File(_) => out.extend_from_slice(line),
    }
    out.push(b'\n');
}

/// Returns `stdout` or `stderr`.
pub(super) fn stream_name(stream: OutputStream) -> &'static str {
    match stream {
        OutputStream::Stdout => "stdout",
        OutputStream::Stderr => "stderr",
    }
}

/// Returns the path of the file for a program in a slot.
pub(super) fn fill_placeholders(pattern: &Path, name: &str, slot: u32, stream: &str) -> PathBuf {
    let text = pattern.to_string_lossy();
    let values = [slot.to_string(), stream.to_string(), name.to_string()];
    let filled = PLACEHOLDERS
        .iter()
        .zip(values)
        .fold(text.into_owned(), |text, (key, value)| text.replace(&format!("{{{key}}}"), &value));
    PathBuf::from(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use prefork_supervisor::{Generation, Slot, WEB_KIND, WorkerId};

    const WORKER: WorkerTag = WorkerTag {
        id: WorkerId(3),
        slot: Slot(1),
        generation: Generation(2),
        pid: Some(4711),
        kind: WEB_KIND,
    };

    fn line(output: &ProgramOutput, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        push_line(&mut out, output, WORKER, OutputStream::Stderr, bytes);
        out
    }

    #[test]
    fn prefixed_lines_name_worker_slot_and_stream_and_keep_their_bytes() {
        let text = line(&ProgramOutput::Prefix, b"\xff\x1b[1mhello");
        assert_eq!(text, b"worker=3 slot=1 stderr: \xff\x1b[1mhello\n");
        assert_eq!(line(&ProgramOutput::File("x".into()), b"a"), b"a\n");
    }

    #[test]
    fn json_lines_are_one_valid_object_whatever_the_bytes_are() {
        let text = line(&ProgramOutput::Json, b"\xff\x1b\"quoted\"");
        assert_eq!(text.iter().filter(|byte| **byte == b'\n').count(), 1);
        let json: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
        for (name, value) in [
            ("worker", serde_json::json!(3)),
            ("slot", 1.into()),
            ("generation", 2.into()),
            ("pid", 4711.into()),
            ("stream", "stderr".into()),
            ("message", "\u{fffd}\u{1b}\"quoted\"".into()),
        ] {
            assert_eq!(json[name], value, "{json}");
        }
    }

    #[test]
    fn placeholders_are_filled() {
        let path = fill_placeholders(Path::new("/log/{name}-{slot}.{stream}"), "node", 7, "stdout");
        assert_eq!(path, Path::new("/log/node-7.stdout"));
    }
}
