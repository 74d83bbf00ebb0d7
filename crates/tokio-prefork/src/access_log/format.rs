//! The format of the lines: `combined`, `common`, `json`, or a template with variables as in nginx's `log_format`.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use hyper::header::{AUTHORIZATION, HeaderName, PROXY_AUTHORIZATION};

use super::escape::ValueStyle;
use super::variable::{REQUEST_HEADER_PREFIX, RESPONSE_HEADER_PREFIX, VARIABLES, Variable};
use crate::config::ParseValueError;

const COMMON: &str =
    "$remote_addr - $remote_user [$time_local] \"$request\" $status $body_bytes_sent";

const COMBINED_END: &str = " \"$http_referer\" \"$http_user_agent\"";

/// The members of a line in the format `json`.
const JSON_MEMBERS: [(&str, &str); 22] = [
    ("time", "time_iso8601_ms"),
    ("remote_addr", "remote_addr"),
    ("remote_user", "remote_user"),
    ("method", "request_method"),
    ("uri", "request_uri"),
    ("protocol", "server_protocol"),
    ("scheme", "scheme"),
    ("host", "host"),
    ("status", "status"),
    ("bytes", "body_bytes_sent"),
    ("completion", "request_completion"),
    ("duration_us", "duration_us"),
    ("queue_wait_us", "queue_wait_us"),
    ("referer", "http_referer"),
    ("user_agent", "http_user_agent"),
    ("peer", "peer"),
    ("pid", "pid"),
    ("worker", "worker"),
    ("slot", "slot"),
    ("generation", "generation"),
    ("request_id", "request_id"),
    ("trace_id", "trace_id"),
];

/// The longest template: a line for a pipe has at most 4096 bytes.
const MAX_TEMPLATE_BYTES: usize = 2048;

/// The format of access log lines. Default: `combined`.
///
/// In text: `combined`, `common` or `json`; anything with a `$` is a template in the syntax of nginx's `log_format`, whose
/// variables the page [Access log](https://docs.rs/tokio-prefork) of the manual lists. A template that begins with `{` is
/// JSON: its values are escaped for JSON strings.
///
/// ```
/// use tokio_prefork::AccessLogFormat;
///
/// let format: AccessLogFormat = "$remote_addr \"$request\" $status ${request_time}s".parse()?;
/// assert!("$remote_adr".parse::<AccessLogFormat>().is_err());
/// # drop(format);
/// # Ok::<(), tokio_prefork::ParseValueError>(())
/// ```
#[derive(Clone)]
pub struct AccessLogFormat {
    text: Arc<str>,
    pub(super) parts: Arc<[FormatPart]>,
    pub(super) captures: Arc<Captures>,
}

/// A part of a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum FormatPart {
    Literal(String),
    Value(Variable, ValueStyle),
}

/// What a format needs of requests and responses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Captures {
    pub(crate) request_headers: Vec<HeaderName>,
    pub(crate) response_headers: Vec<HeaderName>,
    /// Whether the exact duration is logged.
    pub(crate) duration: bool,
}

impl AccessLogFormat {
    /// Returns the combined log format: the common one with referer and user agent.
    pub fn combined() -> AccessLogFormat {
        AccessLogFormat::builtin("combined", &format!("{COMMON}{COMBINED_END}"))
    }

    /// Returns the common log format.
    pub fn common() -> AccessLogFormat {
        AccessLogFormat::builtin("common", COMMON)
    }

    /// Returns the format of one JSON object per line.
    pub fn json() -> AccessLogFormat {
        let mut builder = FormatBuilder::default();
        for (n, (key, variable)) in JSON_MEMBERS.iter().enumerate() {
            builder.literal(&format!("{}\"{key}\":", if n == 0 { "{" } else { "," }));
            // Every name in the table is a variable; a test asserts it.
            let _ = builder.value(variable, ValueStyle::JsonValue);
        }
        builder.literal("}");
        builder.build("json")
    }

    fn builtin(name: &str, template: &str) -> AccessLogFormat {
        let mut builder = FormatBuilder::default();
        // The templates above are valid; a test asserts it.
        let _ = builder.add_template(template);
        builder.build(name)
    }
}

impl Default for AccessLogFormat {
    fn default() -> AccessLogFormat {
        AccessLogFormat::combined()
    }
}

impl FromStr for AccessLogFormat {
    type Err = ParseValueError;

    /// # Errors
    ///
    /// Another word than `combined`, `common` and `json` without a `$`, an unknown variable, or a template that has a line
    /// break, or more than 2048 bytes.
    fn from_str(text: &str) -> Result<AccessLogFormat, ParseValueError> {
        let error = |reason: String| ParseValueError::new(text, reason);
        match text.trim() {
            "combined" => return Ok(AccessLogFormat::combined()),
            "common" => return Ok(AccessLogFormat::common()),
            "json" => return Ok(AccessLogFormat::json()),
            _ if !text.contains('$') => {
                return Err(error(
                    "is not a format: give combined, common, json or a template with variables such as $status"
                        .to_string(),
                ));
            }
            _ => {}
        }
        if text.len() > MAX_TEMPLATE_BYTES {
            return Err(error(format!("is too long: give at most {MAX_TEMPLATE_BYTES} bytes")));
        }
        if text.chars().any(|c| c.is_control() && c != '\t') {
            return Err(error("has a line break or another control character".to_string()));
        }
        let mut builder = FormatBuilder::default();
        builder.add_template(text).map_err(error)?;
        if is_json(text) {
            builder.check_json().map_err(error)?;
        }
        Ok(builder.build(text))
    }
}

impl fmt::Display for AccessLogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for AccessLogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AccessLogFormat").field(&self.text).finish()
    }
}

impl PartialEq for AccessLogFormat {
    fn eq(&self, other: &AccessLogFormat) -> bool {
        self.text == other.text
    }
}

impl Eq for AccessLogFormat {}

/// Returns whether a template is one of JSON.
fn is_json(template: &str) -> bool {
    template.trim_start().starts_with('{')
}

#[derive(Default)]
struct FormatBuilder {
    parts: Vec<FormatPart>,
    captures: Captures,
}

impl FormatBuilder {
    fn literal(&mut self, text: &str) {
        match self.parts.last_mut() {
            _ if text.is_empty() => {}
            Some(FormatPart::Literal(before)) => before.push_str(text),
            _ => self.parts.push(FormatPart::Literal(text.to_string())),
        }
    }

    /// Adds `$name`, `${name}`, `$$` and what is between them.
    fn add_template(&mut self, template: &str) -> Result<(), String> {
        let is_json = is_json(template);
        let (mut rest, mut is_quoted) = (template, false);
        while let Some(at) = rest.find('$') {
            let (literal, variable) = (&rest[..at], &rest[at + 1..]);
            is_quoted ^= literal.matches('"').count() % 2 == 1;
            self.literal(literal);
            if let Some(after) = variable.strip_prefix('$') {
                self.literal("$");
                rest = after;
                continue;
            }
            let (name, after) = split_variable(variable)?;
            let style = match (is_json, is_quoted) {
                (true, true) => ValueStyle::JsonText,
                (true, false) => ValueStyle::JsonValue,
                (false, true) => ValueStyle::Quoted,
                (false, false) => ValueStyle::Bare,
            };
            self.value(name, style)?;
            rest = after;
        }
        self.literal(rest);
        Ok(())
    }

    /// Checks that lines are JSON, whether the values are strings or not.
    fn check_json(&self) -> Result<(), String> {
        for value in ["null", "\"\""] {
            let line = self.parts.iter().map(|part| match part {
                FormatPart::Literal(text) => text.as_str(),
                FormatPart::Value(_, ValueStyle::JsonValue) => value,
                FormatPart::Value(..) => "",
            });
            let line: String = line.collect();
            serde_json::from_str::<serde::de::IgnoredAny>(&line).map_err(|e| {
                format!(
                    "begins with {{, and would make lines that are no JSON, such as {line}: {e}"
                )
            })?;
        }
        Ok(())
    }

    fn value(&mut self, name: &str, style: ValueStyle) -> Result<(), String> {
        let variable = self.variable(name)?;
        self.parts.push(FormatPart::Value(variable, style));
        Ok(())
    }

    fn variable(&mut self, name: &str) -> Result<Variable, String> {
        if let Some((_, variable)) = VARIABLES.iter().find(|(known, _)| *known == name) {
            self.captures.duration |= variable.needs_duration();
            return Ok(*variable);
        }
        let (prefix, headers) = if name.starts_with(RESPONSE_HEADER_PREFIX) {
            (RESPONSE_HEADER_PREFIX, &mut self.captures.response_headers)
        } else if name.starts_with(REQUEST_HEADER_PREFIX) {
            (REQUEST_HEADER_PREFIX, &mut self.captures.request_headers)
        } else {
            return Err(unknown_variable(name));
        };
        let header = name[prefix.len()..].replace('_', "-").to_ascii_lowercase();
        let header: HeaderName =
            header.parse().map_err(|_| format!("has ${name}, which names no header"))?;
        if header == AUTHORIZATION || header == PROXY_AUTHORIZATION {
            return Err(format!(
                "has ${name}, which is a secret: use $remote_user for the user of Basic authentication"
            ));
        }
        let index = index_of(headers, header);
        Ok(match prefix {
            REQUEST_HEADER_PREFIX => Variable::RequestHeader(index),
            _ => Variable::ResponseHeader(index),
        })
    }

    fn build(self, text: &str) -> AccessLogFormat {
        AccessLogFormat {
            text: text.into(),
            parts: self.parts.into(),
            captures: Arc::new(self.captures),
        }
    }
}

/// Returns the index of `header` in `headers`, where it is added if it is missing.
pub(super) fn index_of(headers: &mut Vec<HeaderName>, header: HeaderName) -> usize {
    headers.iter().position(|known| *known == header).unwrap_or_else(|| {
        headers.push(header);
        headers.len() - 1
    })
}

/// Splits the name of a variable, after its `$`, from what follows.
fn split_variable(text: &str) -> Result<(&str, &str), String> {
    if let Some(braced) = text.strip_prefix('{') {
        let end = braced.find('}').ok_or("has a ${ without its }")?;
        return Ok((&braced[..end], &braced[end + 1..]));
    }
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let end = text.find(|c| !is_name(c)).unwrap_or(text.len());
    match end {
        0 => Err("has a $ without the name of a variable: write $$ for the character".to_string()),
        end => Ok(text.split_at(end)),
    }
}

fn unknown_variable(name: &str) -> String {
    let names = VARIABLES.iter().map(|(name, _)| *name);
    #[cfg(feature = "cli")]
    let near = crate::cli::nearest_name(name, names.clone());
    #[cfg(not(feature = "cli"))]
    let near = None::<&str>;
    match near {
        Some(near) => format!("has the unknown variable ${name}; do you mean ${near}?"),
        None => format!(
            "has the unknown variable ${name}: give one of {}, http_HEADER, sent_http_HEADER",
            names.collect::<Vec<_>>().join(", ")
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        text.parse::<AccessLogFormat>().expect_err(text).to_string()
    }

    #[test]
    fn the_builtin_formats_have_their_variables() {
        let values = |format: &AccessLogFormat| {
            format.parts.iter().filter(|part| matches!(part, FormatPart::Value(..))).count()
        };
        let [common, combined, json] =
            ["common", "combined", "json"].map(|name| name.parse().expect(name));
        assert_eq!((values(&common), values(&combined)), (6, 8));
        assert_eq!(values(&json), JSON_MEMBERS.len());
        assert_eq!(combined, AccessLogFormat::default());
        assert!(!combined.captures.duration && json.captures.duration);
        assert_eq!(combined.captures.request_headers, ["referer", "user-agent"]);
    }

    #[test]
    fn templates_have_braces_dollars_and_headers() {
        let format: AccessLogFormat =
            "a$$b ${status}00 \"$http_x_real_ip$sent_http_etag\" $host".parse().expect("a format");
        assert_eq!(
            *format.parts,
            [
                FormatPart::Literal("a$b ".to_string()),
                FormatPart::Value(Variable::Status, ValueStyle::Bare),
                FormatPart::Literal("00 \"".to_string()),
                FormatPart::Value(Variable::RequestHeader(0), ValueStyle::Quoted),
                FormatPart::Value(Variable::ResponseHeader(0), ValueStyle::Quoted),
                FormatPart::Literal("\" ".to_string()),
                FormatPart::Value(Variable::Host, ValueStyle::Bare),
            ]
        );
        assert_eq!(format.captures.request_headers, ["x-real-ip"]);
    }

    #[test]
    fn a_template_that_begins_with_a_brace_is_json() {
        let format: AccessLogFormat =
            "{\"a\": \"$http_a\", \"s\": $status}".parse().expect("a format");
        let values: Vec<_> = format
            .parts
            .iter()
            .filter_map(|part| match part {
                FormatPart::Value(_, style) => Some(*style),
                FormatPart::Literal(_) => None,
            })
            .collect();
        assert_eq!(values, [ValueStyle::JsonText, ValueStyle::JsonValue]);
    }

    #[test]
    fn wrong_templates_are_errors_that_say_what_to_do() {
        for (text, why) in [
            ("combine", "give combined, common, json"),
            ("", "give combined"),
            ("$remote_adr", "$remote_adr"),
            ("$zzzzzzzzz", "one of remote_addr, "),
            ("$http_authorization", "use $remote_user"),
            ("$sent_http_proxy_authorization", "use $remote_user"),
            ("$", "write $$"),
            ("${status", "without its }"),
            ("$status\n", "line break"),
            ("${http_ä}", "names no header"),
            (&"$status".repeat(400), "too long"),
            ("{\"a\":$status", "no JSON"),
            ("{\"a\":$http_a\"}", "no JSON"),
            ("{$status:1}", "no JSON"),
            ("{\"a\":\"\\\"$http_a\"}", "no JSON"),
        ] {
            let refused = refused(text);
            assert!(refused.contains(why), "{refused}");
        }
    }
}
