//! PEM: the text form of certificates and keys (RFC 7468), with the headers of older tools.

// The decoders of rustls and of the crate `pem-rfc7468` allocate copies that they do not overwrite, or refuse files that OpenSSL
// writes and every server takes: text between the blocks, lines of any length, the headers of RFC 1421.

use base64ct::{Base64, Encoding as _};
use prefork_os::locked_memory::LockedBytes;

const BEGIN: &[u8] = b"-----BEGIN ";
const END: &[u8] = b"-----END ";
const DASHES: &[u8] = b"-----";

/// A block of PEM: `-----BEGIN LABEL-----` to `-----END LABEL-----`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PemBlock<'a> {
    pub(super) label: &'a str,
    /// Whether a header says that the content is encrypted (RFC 1421).
    pub(super) is_encrypted: bool,
    /// The lines of base64.
    content: &'a [u8],
}

/// Returns the blocks of a file in their order. Text outside of them is skipped.
///
/// # Errors
/// A block has no end; the reason completes a sentence that begins with the file.
pub(super) fn parse_blocks(file: &[u8]) -> Result<Vec<PemBlock<'_>>, String> {
    let mut blocks = Vec::new();
    let mut lines = Lines { rest: file };
    while let Some(line) = lines.next() {
        let Some(label) = boundary_label(line, BEGIN) else { continue };
        let (mut is_encrypted, mut content) = (false, lines.rest);
        loop {
            let before = lines.rest;
            let Some(line) = lines.next() else {
                return Err(format!("has no line -----END {label}----- : it was cut off"));
            };
            if let Some(end) = boundary_label(line, END) {
                if end != label {
                    return Err(format!("has -----END {end}----- after -----BEGIN {label}-----"));
                }
                content = &content[..content.len() - before.len()];
                blocks.push(PemBlock { label, is_encrypted, content });
                break;
            }
            if boundary_label(line, BEGIN).is_some() {
                return Err(format!("has no line -----END {label}----- before the next block"));
            }
            // No line of base64 has a colon. Headers end with an empty line.
            if line.contains(&b':') {
                is_encrypted |= line.starts_with(b"Proc-Type:") && line.ends_with(b"ENCRYPTED");
                content = lines.rest;
            } else if line.starts_with(b" ") || line.starts_with(b"\t") {
                continue;
            }
        }
    }
    Ok(blocks)
}

impl PemBlock<'_> {
    /// Decodes the content into locked pages.
    ///
    /// # Errors
    /// It is no base64, or the system has no memory; the reason completes a sentence that begins with the file.
    pub(super) fn decode(&self) -> Result<LockedBytes, String> {
        let no_memory = |e| format!("cannot be decoded: {e}");
        let mut text = LockedBytes::zeroed(self.content.len()).map_err(no_memory)?;
        let characters = self.content.iter().filter(|byte| !byte.is_ascii_whitespace());
        let mut length = 0;
        for (to, from) in text.as_mut_slice().iter_mut().zip(characters) {
            (*to, length) = (*from, length + 1);
        }
        text.truncate(length);
        let mut der = LockedBytes::zeroed(length / 4 * 3).map_err(no_memory)?;
        let decoded = Base64::decode(text.as_slice(), der.as_mut_slice()).map(<[u8]>::len);
        let length = decoded.map_err(|_| {
            format!("has no valid base64 in its block {}: it was damaged or cut off", self.label)
        })?;
        der.truncate(length);
        Ok(der)
    }
}

/// Returns the label of a line `-----BEGIN LABEL-----`.
fn boundary_label<'a>(line: &'a [u8], start: &[u8]) -> Option<&'a str> {
    let line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
    let label = line.strip_prefix(start)?.strip_suffix(DASHES)?;
    std::str::from_utf8(label).ok().filter(|label| label.bytes().all(|b| matches!(b, b' '..=b'~')))
}

/// Lines that end with LF, CR LF or CR, without trailing white space.
struct Lines<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Lines<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if self.rest.is_empty() {
            return None;
        }
        let is_end = |byte: &u8| matches!(byte, b'\n' | b'\r');
        let end = self.rest.iter().position(is_end).unwrap_or(self.rest.len());
        let line = &self.rest[..end];
        self.rest = self.rest.get(end + 1..).unwrap_or_default();
        Some(line.trim_ascii_end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(file: &str) -> Vec<(String, Vec<u8>)> {
        let blocks = parse_blocks(file.as_bytes()).expect("blocks");
        let decode = |block: &PemBlock<'_>| {
            (block.label.to_string(), block.decode().expect("base64").as_slice().to_vec())
        };
        blocks.iter().map(decode).collect()
    }

    #[test]
    fn blocks_are_found_among_text_with_any_line_ends() {
        let file = "\u{feff}-----BEGIN A-----\nAQID\n-----END A-----\nsubject: CN=x\n-----BEGIN B C-----\nBA\nUG\n\
                    -----END B C-----\ntrailing";
        let blocks = [("A".to_string(), vec![1, 2, 3]), ("B C".to_string(), vec![4, 5, 6])];
        assert_eq!(decoded(file), blocks);
        assert_eq!(decoded(&file.replace('\n', "\r\n")), blocks);
        assert_eq!(decoded(&file.replace('\n', "\r")), blocks);
        assert_eq!(decoded(&file.replace('\n', " \n")), blocks);
        assert!(decoded("no block").is_empty());
    }

    #[test]
    fn headers_tell_whether_the_content_is_encrypted() {
        for (header, is_encrypted) in [("Proc-Type: 4,ENCRYPTED", true), ("Comment: x", false)] {
            let file =
                format!("-----BEGIN A-----\n{header}\nDEK-Info: x,y\n\nAQID\n-----END A-----");
            let blocks = parse_blocks(file.as_bytes()).expect("blocks");
            assert_eq!(blocks[0].is_encrypted, is_encrypted, "{header}");
            assert_eq!(blocks[0].decode().expect("base64").as_slice(), [1, 2, 3]);
        }
    }

    #[test]
    fn a_block_that_was_cut_off_or_damaged_is_an_error() {
        for (file, why) in [
            ("-----BEGIN A-----\nAQID\n", "has no line -----END A-----"),
            ("-----BEGIN A-----\nAQID\n-----END B-----", "has -----END B----- after"),
            ("-----BEGIN A-----\n-----BEGIN A-----\n", "before the next block"),
        ] {
            let error = parse_blocks(file.as_bytes()).expect_err(why);
            assert!(error.contains(why), "{error}");
        }
        for content in ["AQI", "AQ=I", "A*ID", "AQID====", "=", "A"] {
            let file = format!("-----BEGIN A-----\n{content}\n-----END A-----");
            let block = parse_blocks(file.as_bytes()).expect("a block")[0];
            let error = block.decode().map(drop).expect_err(content);
            assert!(error.contains("no valid base64"), "{error}");
        }
        let empty = parse_blocks(b"-----BEGIN A-----\n-----END A-----").expect("a block")[0];
        assert!(empty.decode().expect("no bytes").as_slice().is_empty());
    }
}
