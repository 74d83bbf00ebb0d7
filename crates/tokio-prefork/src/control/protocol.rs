//! Requests and replies of the control protocol, and their encoding as JSON.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::event_history::LoggedEvent;
use crate::config::WorkerCount;
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
        /// Whether to answer when the workers of the new image serve, or as soon as the new binary is proved.
        #[serde(default = "default_true")]
        wait: bool,
    },
    /// Returns the events after number `since`; with `follow`, also future ones.
    Events {
        #[serde(default)]
        follow: bool,
        #[serde(default)]
        since: u64,
    },
}

/// The verbs, as an error lists them.
const VERBS: [&str; 6] = ["status", "reload", "scale", "stop", "upgrade", "events"];

/// A change to the number of workers of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RescaleFields", into = "RescaleFields")]
pub struct Rescale {
    /// The worker kind; `None` for `web`.
    pub kind: Option<String>,
    /// By how much, or to how many.
    pub change: Change,
}

/// A change to a number of workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// 0 is for other kinds than `web`.
    To(u32),
    /// Never 0.
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
    /// How things are.
    Status(Box<ClusterStatus>),
    /// One thing that happened.
    Event(Event),
    /// The number of the last requested event.
    LastEvent(u64),
}

/// One event of the primary, as in its log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Event {
    /// Counted from 1 since the primary started, without gaps.
    pub sequence: u64,
    /// When it happened, milliseconds since 1970.
    pub time_ms: u64,
    /// `error`, `warn` or `info`.
    pub level: String,
    /// The line of the log.
    pub text: String,
}

impl Request {
    /// Reads a request; the error names what is wrong with it.
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

    /// The request as it is sent.
    pub(crate) fn encode(&self) -> Vec<u8> {
        // Plain numbers, flags and texts: this cannot fail.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

impl TryFrom<RescaleFields> for Rescale {
    type Error = String;

    fn try_from(said: RescaleFields) -> Result<Rescale, String> {
        let most = WorkerCount::MAX;
        // Somebody has to serve; workers of other kinds may pause.
        let least = u32::from(said.kind.is_none());
        let change = match (said.to, said.by) {
            (Some(to), None) if (least..=most).contains(&to) => Change::To(to),
            (Some(to), None) => {
                return Err(format!("to = {to} is out of range: give {least} to {most}"));
            }
            (None, Some(by)) if by != 0 && by.unsigned_abs() <= most => Change::By(by),
            (None, Some(by)) => {
                return Err(format!(
                    "by = {by} is out of range: give 1 to {most} or -1 to -{most}"
                ));
            }
            _ => return Err("give either to or by".to_string()),
        };
        Ok(Rescale { kind: said.kind, change })
    }
}

impl From<Rescale> for RescaleFields {
    fn from(Rescale { kind, change }: Rescale) -> RescaleFields {
        match change {
            Change::To(to) => RescaleFields { kind, to: Some(to), by: None },
            Change::By(by) => RescaleFields { kind, to: None, by: Some(by) },
        }
    }
}

impl From<Change> for Rescale {
    fn from(change: Change) -> Rescale {
        Rescale { kind: None, change }
    }
}

impl Reply {
    /// The reply as it is sent.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let value = match self {
            Reply::Refused(why) => json!({ "ok": false, "error": why }),
            Reply::Done(message) => json!({ "ok": true, "message": message }),
            Reply::Status(status) => json!({ "ok": true, "status": status }),
            Reply::Event(event) => json!({ "ok": true, "event": event }),
            Reply::LastEvent(last) => json!({ "ok": true, "last": last }),
        };
        value.to_string().into_bytes()
    }

    /// Reads a reply. Fields that we do not know are those of a newer primary.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Reply, String> {
        #[derive(Deserialize)]
        struct Fields {
            ok: bool,
            error: Option<String>,
            message: Option<String>,
            status: Option<Box<ClusterStatus>>,
            event: Option<Event>,
            last: Option<u64>,
        }
        let fields: Fields = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        if !fields.ok {
            return Ok(Reply::Refused(fields.error.unwrap_or_default()));
        }
        let status = fields.status.map(Reply::Status);
        let event = || fields.event.map(Reply::Event);
        let last = || fields.last.map(Reply::LastEvent);
        let done = || fields.message.map(Reply::Done);
        status.or_else(event).or_else(last).or_else(done).ok_or("the reply is empty".to_string())
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
    /// The event as JSON on one line.
    pub fn to_json(&self) -> String {
        // Plain numbers and texts: this cannot fail.
        printable_json(&serde_json::to_string(self).unwrap_or_default()).into_owned()
    }
}

fn default_true() -> bool {
    true
}

#[cfg(test)]
mod tests;
