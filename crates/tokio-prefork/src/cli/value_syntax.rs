//! Parsing and formatting of setting values. Errors complete a sentence that starts with `KEY = VALUE`.

use std::path::PathBuf;
use std::time::Duration;

use super::field::parse_value;
use crate::config::{Hsts, RedirectAddr};
use crate::error::Error;
use crate::listener::{BindAddr, ListenAddr};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

pub(super) fn parse_address(text: &str) -> Result<ListenAddr, String> {
    text.parse().map_err(|error| without_value(text, &error))
}

pub(super) fn parse_bind_addr(text: &str) -> Result<BindAddr, String> {
    text.parse().map_err(|error| without_value(text, &error))
}

pub(super) fn parse_redirect_addr(text: &str) -> Result<RedirectAddr, String> {
    text.parse().map_err(|error: Error| {
        let error = error.to_string();
        error.strip_prefix(&format!("https-redirect = {text:?} ")).unwrap_or(&error).to_string()
    })
}

/// Parses the value of `Strict-Transport-Security`, or `off`.
pub(super) fn parse_hsts(text: &str) -> Result<Option<Hsts>, String> {
    match text.trim() {
        off if off.eq_ignore_ascii_case(OFF) => Ok(None),
        text => parse_value(text).map(Some),
    }
}

/// Returns the error without the key and the value, which the caller adds with the source.
fn without_value(text: &str, error: &Error) -> String {
    let error = error.to_string();
    error.strip_prefix(&format!("bind = {text:?} ")).unwrap_or(&error).to_string()
}

/// Parses an address or `off`.
pub(super) fn parse_optional_address(text: &str) -> Result<Option<ListenAddr>, String> {
    if text.eq_ignore_ascii_case(OFF) { Ok(None) } else { parse_address(text).map(Some) }
}

/// Parses a whole number. Saturates on overflow, so that the bounds check reports the value as out of range.
pub(super) fn parse_count(text: &str) -> Result<u32, String> {
    let number = parse_digits(text).ok_or("is not a number: give a whole number")?;
    Ok(u32::try_from(number).unwrap_or(u32::MAX))
}

const NO_DURATION: &str = "is not a duration: write 500ms, 30s, 2m, 1h or a number of seconds";
const NO_SIZE: &str = "is not a size: write 16KiB, 1MiB, 1GiB or a number of bytes";

/// Parses `30s`, `500ms`, `2m`, `1h` or a number of seconds, for flags of your own. Saturates on overflow.
///
/// # Errors
///
/// A reason that completes a sentence which begins with the text.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split_unit(text);
    let scale = match unit {
        "" | "s" => Some(1.0),
        "ms" => Some(0.001),
        "m" => Some(60.0),
        "h" => Some(3600.0),
        _ => None,
    };
    match (parse_decimal(number), scale) {
        (Some(number), Some(scale)) => {
            Ok(Duration::try_from_secs_f64(number * scale).unwrap_or(Duration::MAX))
        }
        _ => Err(NO_DURATION.to_string()),
    }
}

/// Value that disables an optional limit. 0 does so as well.
pub(super) const OFF: &str = "off";

/// Value of a number that the library determines. 0 stands for it as well.
pub(super) const AUTO: &str = "auto";

/// Parses a value that may be absent: `absent` and zero give `None`.
fn parse_optional<T: Default + PartialEq>(
    text: &str,
    absent: &str,
    parse: fn(&str) -> Result<T, String>,
) -> Result<Option<T>, String> {
    if text.trim().eq_ignore_ascii_case(absent) {
        return Ok(None);
    }
    let value = parse(text).map_err(|why| format!("{why}, or {absent}"))?;
    Ok(Some(value).filter(|value| *value != T::default()))
}

/// Parses a duration or `off`.
pub(super) fn parse_optional_duration(text: &str) -> Result<Option<Duration>, String> {
    parse_optional(text, OFF, parse_duration)
}

/// Parses a number of bytes per second or `off`.
pub(super) fn parse_optional_rate(text: &str) -> Result<Option<u64>, String> {
    const NO_RATE: &str = "is not a rate: write 16KiB, 1MiB, 1GiB or a number of bytes, per second";
    parse_optional(text, OFF, |text| parse_size(text).map_err(|_| NO_RATE.to_string()))
}

/// Parses a number of bytes or `off`.
pub(super) fn parse_optional_size(text: &str) -> Result<Option<u64>, String> {
    parse_optional(text, OFF, parse_size)
}

/// Parses a whole number or `off`.
pub(super) fn parse_optional_count(text: &str) -> Result<Option<u32>, String> {
    parse_optional(text, OFF, parse_count)
}

/// Parses a whole number or `auto`.
pub(super) fn parse_auto_count(text: &str) -> Result<Option<u32>, String> {
    parse_optional(text, AUTO, parse_count)
}

pub(super) fn format_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    if !duration.subsec_nanos().is_multiple_of(1_000_000) {
        format!("{}s", duration.as_secs_f64())
    } else if !millis.is_multiple_of(1000) {
        format!("{millis}ms")
    } else if millis == 0 || !millis.is_multiple_of(60_000) {
        format!("{}s", millis / 1000)
    } else if !millis.is_multiple_of(3_600_000) {
        format!("{}m", millis / 60_000)
    } else {
        format!("{}h", millis / 3_600_000)
    }
}

/// Parses a number of bytes, with an optional binary unit such as `KiB`, for flags of your own. Saturates on overflow.
///
/// # Errors
/// The text is not a size. `kB` and `MB` are rejected, as they are ambiguous: 1000 or 1024.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let (number, unit) = split_unit(text);
    let scale = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => Some(1),
        "k" | "kib" => Some(KIB),
        "m" | "mib" => Some(MIB),
        "g" | "gib" => Some(GIB),
        _ => None,
    };
    match (parse_digits(number), scale) {
        (Some(number), Some(scale)) => Ok(number.saturating_mul(scale)),
        _ => Err(NO_SIZE.to_string()),
    }
}

pub(super) fn format_size(bytes: u64) -> String {
    match bytes {
        0 => "0".to_string(),
        n if n.is_multiple_of(GIB) => format!("{}GiB", n / GIB),
        n if n.is_multiple_of(MIB) => format!("{}MiB", n / MIB),
        n if n.is_multiple_of(KIB) => format!("{}KiB", n / KIB),
        n => n.to_string(),
    }
}

/// Parses a boolean of a flag or an environment variable.
pub(super) fn parse_switch(text: &str) -> Result<bool, String> {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" | "1" | "on" | "yes" => Ok(true),
        "false" | "0" | "off" | "no" => Ok(false),
        _ => Err("is not a switch: give true or false".to_string()),
    }
}

/// Parses `on` or `off`, and what [`parse_switch`] takes.
pub(super) fn parse_on_off(text: &str) -> Result<bool, String> {
    parse_switch(text).map_err(|_| "is neither on nor off".to_string())
}

/// Parses a boolean of the TOML file, which has only one notation for it.
pub(super) fn parse_toml_switch(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| "is not a switch: write true or false".to_string())
}

pub(super) fn parse_directory(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    match path.metadata() {
        Ok(found) if found.is_dir() => Ok(path),
        Ok(_) => Err("is not a directory: give one that exists".to_string()),
        Err(error) => Err(format!("cannot be read: {error}: give a directory that exists")),
    }
}

/// Parses the name or number of a user or group. Its existence is checked later, with all settings.
pub(super) fn parse_user_or_group(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("is empty: give a name or a number".to_string()),
        name if name.contains([':', '\0', '/']) => {
            Err("is not a valid name: give a name or a number".to_string())
        }
        name => Ok(name.to_string()),
    }
}

pub(super) fn parse_file(text: &str) -> Result<PathBuf, String> {
    match text {
        "" => Err("is empty: give the path of a file".to_string()),
        path => Ok(PathBuf::from(path)),
    }
}

/// Converts the value of `PORT` into an address: that port on all IPv4 addresses.
pub(super) fn port_to_bind(text: &str) -> Result<String, String> {
    let port: u16 = text.trim().parse().map_err(|_| "is not a port: give 0 to 65535")?;
    Ok(format!("0.0.0.0:{port}"))
}

/// Parses ASCII digits without a sign. Saturates on overflow.
fn parse_digits(text: &str) -> Option<u64> {
    let text = text.trim();
    let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    is_number.then(|| text.parse().unwrap_or(u64::MAX))
}

/// Parses digits with at most one decimal point between them.
fn parse_decimal(text: &str) -> Option<f64> {
    let (before, after) = text.split_once('.').unwrap_or((text, "0"));
    parse_digits(before).and(parse_digits(after)).and_then(|_| text.parse().ok())
}

fn split_unit(text: &str) -> (&str, &str) {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    (&text[..end], text[end..].trim_start())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_parsed_and_formatted() {
        let ms = Duration::from_millis;
        for (text, value, shown) in [
            ("30s", ms(30_000), "30s"),
            ("500ms", ms(500), "500ms"),
            ("2m", ms(120_000), "2m"),
            ("1h", ms(3_600_000), "1h"),
            ("90", ms(90_000), "90s"),
            ("1.5", ms(1_500), "1500ms"),
            ("0", ms(0), "0s"),
            (" 2 m ", ms(120_000), "2m"),
            ("0.5ms", Duration::from_micros(500), "0.0005s"),
        ] {
            assert_eq!(parse_duration(text), Ok(value), "{text}");
            assert_eq!(format_duration(value), shown);
            assert_eq!(parse_duration(shown), Ok(value), "{shown}");
        }
        for text in ["", "fast", "s", "-1", "1d", "1.2.3", "1.", ".5", "inf", "1e3", "1 0s", "1S"] {
            let why = parse_duration(text).expect_err(text);
            assert_eq!(why, NO_DURATION, "{text}");
        }
        assert_eq!(parse_duration("99999999999999999999999h"), Ok(Duration::MAX));
    }

    #[test]
    fn optional_limits_accept_off() {
        assert_eq!(parse_optional_duration("Off"), Ok(None));
        assert_eq!(parse_optional_duration("2s"), Ok(Some(Duration::from_secs(2))));
        let why = parse_optional_duration("never").expect_err("no duration");
        assert_eq!(why, format!("{NO_DURATION}, or off"));
        assert_eq!(parse_optional_rate("off"), Ok(None));
        assert_eq!(parse_optional_duration("0"), Ok(None));
        assert_eq!((parse_optional_count("0"), parse_optional_count("7")), (Ok(None), Ok(Some(7))));
        assert_eq!((parse_auto_count("auto"), parse_auto_count("2")), (Ok(None), Ok(Some(2))));
        assert!(parse_auto_count("off").expect_err("no number").ends_with(", or auto"));
        assert_eq!(
            (parse_optional_size("off"), parse_optional_size("1k")),
            (Ok(None), Ok(Some(1024)))
        );
        assert_eq!(parse_optional_rate("1KiB"), Ok(Some(1024)));
        assert!(parse_optional_rate("fast").expect_err("no rate").starts_with("is not a rate"));
    }

    #[test]
    fn sizes_are_parsed_and_formatted() {
        for (text, value, shown) in [
            ("16KiB", 16_384, "16KiB"),
            ("16k", 16_384, "16KiB"),
            ("1m", MIB, "1MiB"),
            ("1MiB", MIB, "1MiB"),
            ("2 gib", 2 * GIB, "2GiB"),
            ("1025", 1025, "1025"),
            ("0", 0, "0"),
            ("7b", 7, "7"),
        ] {
            assert_eq!(parse_size(text), Ok(value), "{text}");
            assert_eq!(format_size(value), shown);
            assert_eq!(parse_size(shown), Ok(value), "{shown}");
        }
        for text in ["", "big", "16kB", "1MB", "-1", "1.5k", "k"] {
            let why = parse_size(text).expect_err(text);
            assert_eq!(why, NO_SIZE, "{text}");
        }
        assert_eq!(parse_size("99999999999999999999g"), Ok(u64::MAX));
    }

    #[test]
    fn booleans_have_one_notation_in_toml_and_four_elsewhere() {
        for text in ["true", "1", "on", "YES"] {
            assert_eq!(parse_switch(text), Ok(true));
        }
        for text in ["false", "0", "off", "no"] {
            assert_eq!(parse_switch(text), Ok(false));
        }
        assert!(parse_switch("maybe").is_err());
        assert_eq!(parse_toml_switch("true"), Ok(true));
        assert!(parse_toml_switch("1").is_err());
    }

    #[test]
    fn overflowing_numbers_saturate() {
        assert_eq!(parse_count("99999999999999999999999"), Ok(u32::MAX));
        assert_eq!(port_to_bind("8080"), Ok("0.0.0.0:8080".to_string()));
        assert!(port_to_bind("70000").is_err());
    }
}
