//! Requests and replies of the control protocol, and their encoding as JSON.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::event_history::LoggedEvent;
use crate::config::WorkerCount;
use crate::stack::WorkerStack;
use crate::status::ClusterStatus;
use crate::text::printable_json;

/// A request of a client. `verb` names it; the rest are its fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "lowercase", deny_unknown_fields)]
pub(crate) enum Request {
    /// Returns the status.
    Status {},
    /// Replaces the workers; with `wait`, answers when that is done.
    Reload {
        #[serde(default = "default_true")]
        wait: bool,
    },
    /// Changes the number of workers.
    Scale(Rescale),
    /// Stops the cluster; with `now`, without finishing open requests.
    Stop {
        #[serde(default)]
        now: bool,
    },
    /// Executes the binary that is now at the primary's path.
    Upgrade {
        /// Whether to reply when workers of the new image serve, or when the new binary has passed its check.
        #[serde(default = "default_true")]
        wait: bool,
    },
    /// Returns the stacks of the threads of a worker, by its id, or of the worker in a slot.
    Stack {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        worker: Option<u64>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        slot: Option<u32>,
    },
    /// Returns the events after number `since`; with `follow`, also future ones.
    Events {
        #[serde(default)]
        follow: bool,
        #[serde(default)]
        since: u64,
    },
}

/// All verbs, for error messages.
const VERBS: [&str; 7] = ["status", "reload", "scale", "stop", "upgrade", "events", "stack"];

/// A change to the number of workers of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RescaleFields", into = "RescaleFields")]
pub struct Rescale {
    /// The worker kind; `None` for `web`.
    pub kind: Option<String>,
    /// The new number of workers or the difference.
    pub change: WorkerCountChange,
}

/// A change to a number of workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkerCountChange {
    /// Sets the number; 0 is allowed for other kinds than `web`.
    To(u32),
    /// Adds workers, or removes them if negative; never 0.
    By(i32),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RescaleFields {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kind: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    by: Option<i32>,
}

/// The reply to a request.
#[derive(Debug, Clone)]
pub(crate) enum Reply {
    /// The request failed, with the reason.
    Refused(String),
    /// The request succeeded, with a description.
    Done(String),
    /// The status of the cluster.
    Status(Box<ClusterStatus>),
    /// The stacks of a worker.
    Stack(Box<WorkerStack>),
    /// One event.
    Event(Event),
    /// The number of the last requested event.
    LastEvent(u64),
}

/// One event of the primary, as in its log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Event {
    /// The event's number, from 1 since the primary started, without gaps.
    pub sequence: u64,
    /// The time of the event in milliseconds since 1970.
    pub time_ms: u64,
    /// The log level: `error`, `warn` or `info`.
    pub level: String,
    /// The text of the log line.
    pub text: String,
}

impl Request {
    /// Decodes a request; the error says what is wrong with it.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Request, String> {
        let value: Value =
            serde_json::from_slice(bytes).map_err(|e| format!("the request is not JSON: {e}"))?;
        let verbs = VERBS.join(", ");
        match value.get("verb") {
            Some(Value::String(verb)) if VERBS.contains(&verb.as_str()) => {
                let verb = verb.clone();
                serde_json::from_value(value).map_err(|e| format!("{verb}: {e}"))
            }
            Some(verb) => {
                let shown: String = verb.to_string().chars().take(100).collect();
                Err(format!("unknown verb {shown}: give one of {verbs}"))
            }
            None => Err(format!("the request has no verb: give one of {verbs}")),
        }
    }

    /// Encodes the request as JSON.
    pub(crate) fn encode(&self) -> Vec<u8> {
        // Encoding numbers, flags and strings cannot fail.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

impl TryFrom<RescaleFields> for Rescale {
    type Error = String;

    fn try_from(fields: RescaleFields) -> Result<Rescale, String> {
        let most = WorkerCount::MAX;
        // At least one `web` worker has to serve; other kinds may have none.
        let least = u32::from(fields.kind.is_none());
        let change = match (fields.to, fields.by) {
            (Some(to), None) if (least..=most).contains(&to) => WorkerCountChange::To(to),
            (Some(to), None) => {
                return Err(format!("to = {to} is out of range: give {least} to {most}"));
            }
            (None, Some(by)) if by != 0 && by.unsigned_abs() <= most => WorkerCountChange::By(by),
            (None, Some(by)) => {
                return Err(format!(
                    "by = {by} is out of range: give 1 to {most} or -1 to -{most}"
                ));
            }
            _ => return Err("give either to or by".to_string()),
        };
        Ok(Rescale { kind: fields.kind, change })
    }
}

impl From<Rescale> for RescaleFields {
    fn from(Rescale { kind, change }: Rescale) -> RescaleFields {
        match change {
            WorkerCountChange::To(to) => RescaleFields { kind, to: Some(to), by: None },
            WorkerCountChange::By(by) => RescaleFields { kind, to: None, by: Some(by) },
        }
    }
}

impl From<WorkerCountChange> for Rescale {
    fn from(change: WorkerCountChange) -> Rescale {
        Rescale { kind: None, change }
    }
}

impl Reply {
    /// Encodes the reply as JSON.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let value = match self {
            Reply::Refused(why) => json!({ "ok": false, "error": why }),
            Reply::Done(message) => json!({ "ok": true, "message": message }),
            Reply::Status(status) => json!({ "ok": true, "status": status }),
            Reply::Stack(stack) => json!({ "ok": true, "stack": stack }),
            Reply::Event(event) => json!({ "ok": true, "event": event }),
            Reply::LastEvent(last) => json!({ "ok": true, "last": last }),
        };
        value.to_string().into_bytes()
    }

    /// Decodes a reply. Ignores unknown fields, which a newer primary may send.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Reply, String> {
        #[derive(Deserialize)]
        struct Fields {
            ok: bool,
            error: Option<String>,
            message: Option<String>,
            status: Option<Box<ClusterStatus>>,
            stack: Option<Box<WorkerStack>>,
            event: Option<Event>,
            last: Option<u64>,
        }
        let fields: Fields = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        if !fields.ok {
            return Ok(Reply::Refused(fields.error.unwrap_or_default()));
        }
        let status = fields.status.map(Reply::Status);
        let stack = || fields.stack.map(Reply::Stack);
        let event = || fields.event.map(Reply::Event);
        let last = || fields.last.map(Reply::LastEvent);
        let done = || fields.message.map(Reply::Done);
        status
            .or_else(stack)
            .or_else(event)
            .or_else(last)
            .or_else(done)
            .ok_or("the reply is empty".to_string())
    }
}

impl From<&LoggedEvent> for Event {
    fn from(entry: &LoggedEvent) -> Event {
        Event {
            sequence: entry.sequence,
            time_ms: entry.time_ms,
            level: entry.level.as_str().to_ascii_lowercase(),
            text: entry.text.clone(),
        }
    }
}

impl Event {
    /// Returns the event as JSON on one line.
    pub fn to_json(&self) -> String {
        // Encoding numbers and strings cannot fail.
        printable_json(&serde_json::to_string(self).unwrap_or_default()).into_owned()
    }
}

fn default_true() -> bool {
    true
}

#[cfg(test)]
mod tests;
